"""Listener: waits for messages of one channel, over a connection of its own that heals itself."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any, Protocol

from token_budget.stores.redis._wire import Refusal, Wire, command

_PING = command("PING")
_QUIET = 5.0  # seconds without a word, after which the server is asked for one
_PATIENCE = 5.0  # seconds that this word, or the rest of a message, may take
_LATEST = 2.0  # seconds between attempts to connect, at most
_CONNECTING = 1.0  # seconds that an attempt to connect may take, also where the wait is shorter


class _Connects(Protocol):
    """What a listener needs of a client."""

    location: str
    publish: str

    def connect(self, until: float) -> Wire: ...

    def moved(self, refusal: Refusal | None = None) -> None: ...


class Listener:
    """Waits for messages of one channel. For one thread at a time; `close` may come from any."""

    def __init__(self, client: _Connects, channel: str) -> None:
        self._client = client
        self._channel = channel
        self._wire: Wire | None = None  # subscribed
        self._pid = os.getpid()
        self._heard = 0.0  # when something last came over the wire
        self._pinged = 0.0  # when a word was asked for since, 0 if it was not
        self._again = 0.0  # when to connect again, after failures
        self._failures = 0
        self._refused = False  # told in the log once
        self._closed = threading.Event()

    def wait(self, seconds: float) -> bool:
        """Block until a message comes, or for so many seconds. Return whether one came.

        It never raises for what the server or the network does. It returns True early where messages may have been
        missed: when it has just subscribed, at first or after the connection was lost. Messages can get lost without a
        sign (Redis promises no delivery), so look now and then in any case.
        """
        until = time.monotonic() + seconds
        self._closed.clear()
        if self._pid != os.getpid():
            self.forked()
        while not self._closed.is_set():
            wire = self._wire
            if wire is None:
                if self._connect(until):
                    return True
            else:
                try:
                    if self._message(wire, until):
                        return True
                except OSError:
                    self._drop()
                    continue  # connect at once, and say that messages may have been missed
            if time.monotonic() >= until:
                break
        return False

    def close(self) -> None:
        """End the wait of another thread, if there is one, and close the connection. `wait` may be called again."""
        self._closed.set()
        self._drop()

    def forked(self) -> None:
        """In a forked child: forget the parent's connection, without a word to the server."""
        self._pid = os.getpid()
        self._wire = None
        self._closed = threading.Event()

    def _drop(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def _message(self, wire: Wire, until: float) -> bool:
        """Wait for a message; ask for a sign of life where there was none for long. Return whether a message came."""
        now = time.monotonic()
        if not self._pinged and now - self._heard > _QUIET:
            wire.send(_PING, now + _CONNECTING)
            self._pinged = now
        due = self._pinged + _PATIENCE if self._pinged else self._heard + _QUIET
        answer = wire.receive(min(until, due), min(until, due) + _PATIENCE)
        if answer is None and self._pinged and time.monotonic() >= due:
            raise ConnectionError("the server gives no sign of life")
        found = False
        while answer is not None:
            self._heard, self._pinged = time.monotonic(), 0.0
            found = self._is_message(answer) or found
            # What has come together with it says the same.
            answer = wire.receive(0, self._heard + _PATIENCE) if wire.pending else None
        return found

    def _is_message(self, answer: Any) -> bool:
        if isinstance(answer, Refusal):
            raise ConnectionError(str(answer))
        kind = answer[0] if isinstance(answer, list) else answer
        if kind == "sunsubscribe":  # the slot has moved to another node
            raise ConnectionError("the channel is at another node now")
        return kind in {"message", "smessage"}

    def _connect(self, until: float) -> bool:
        """Connect and subscribe, or wait for the time of the next attempt, which may be later than ``until``."""
        now = time.monotonic()
        if now < self._again:
            self._closed.wait(min(self._again, until) - now)
            return False
        verb = "SSUBSCRIBE" if self._client.publish == "SPUBLISH" else "SUBSCRIBE"
        limit = max(until, now + _CONNECTING)
        try:
            wire = self._client.connect(limit)
            wire.ask(command(verb, self._channel), limit)
        except Exception as error:  # noqa: BLE001 - Refusal, OSError, and what the client's package raises
            self._failed(error)
            return False
        self._heard, self._pinged, self._failures, self._again = time.monotonic(), 0.0, 0, 0.0
        self._wire = wire
        if self._closed.is_set():
            self._drop()
        return True

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        moved = isinstance(error, Refusal) and error.code == "MOVED"
        if moved:
            self._client.moved(error)  # type: ignore[arg-type]
        elif isinstance(error, Refusal) and not self._refused:
            self._refused = True
            logging.getLogger("token_budget").warning(
                "%s does not let this process subscribe to %s, so who waits for room looks now and then: %s",
                self._client.location,
                self._channel,
                error.code,
            )
        pause = 0.0 if moved and self._failures == 1 else min(_LATEST, 0.02 * 2**self._failures)
        self._again = time.monotonic() + pause
