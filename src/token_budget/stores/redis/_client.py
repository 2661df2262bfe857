"""Client: one Redis or Valkey, spoken to within a deadline, whatever client the user made and however the server fails.

What is sent is sent again after a lost connection, a time-out, a failover or a restart, until the deadline. So it may
be run twice: scripts carry the id of the operation, and commands must be such that a repeat changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import time
import weakref
from collections.abc import Sequence
from typing import Any

from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError
from token_budget.stores.redis import _faults
from token_budget.stores.redis._listener import Listener
from token_budget.stores.redis._routes import Route, route_of
from token_budget.stores.redis._wire import Refusal, Wire, command, packed

_OLDEST = (6, 0)  # of Redis
_KEPT = 64  # connections that are kept while nobody uses them
_ASKING = command("ASKING")


class Script:
    """The text of a script, and the name that the server knows it by."""

    __slots__ = ("head", "load", "sha", "source")

    def __init__(self, source: str) -> None:
        self.source: str = source
        self.sha: str = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        self.head: bytes = packed(("EVALSHA", self.sha))
        self.load: bytes = command("SCRIPT", "LOAD", source)


def _close_all(wires: list[Wire]) -> None:
    with contextlib.suppress(IndexError):  # other threads take some, too
        while True:
            wires.pop().close()


class Client:
    """A private copy of a client's connection settings, and what runs scripts and commands over it.

    Answers are what the server says in RESP2, decoded: int, str, None, and lists of these; whatever the user's client
    has as ``decode_responses`` and ``protocol``. All methods may be called from any thread.

    Each call ends within the time-out in all, with two exceptions that Python has no time-out for: the look-up of a
    host's name, and a provider of credentials. An attempt gets a third of the time-out, so that a connection that died
    without a sign leaves time for a new one. The error of a script is a StoreError: scripts return what they find.

    Raises (all methods that ask the server):
        BudgetUnavailable: no answer within the time-out. What was asked may have been done, or may be done later.
            Or the server's disk or memory is full, and nothing was done.
        StoreError: the server refuses, and asking again does not help. Nothing was done.
    """

    def __init__(self, client: Any, *, key: str, timeout: float = 5) -> None:
        """Copy the settings of a client; nothing is sent.

        Args:
            client: redis.Redis, valkey.Valkey, a cluster's client, or what `Sentinel.master_for` returns.
            key: any key of the budget, such as ``tb:{total}``: all of its keys share this one's hash tag.
            timeout: seconds that each call may take in all.

        Raises:
            TypeError: it is no such client, or one for asyncio.
            ValueError: its settings cannot be copied, or it reads from replicas.
        """
        self._route: Route = route_of(client, key)
        self.timeout: float = timeout
        self.location: str = self._route.location  # a URL without a login
        self.publish: str = "SPUBLISH" if self._route.clustered else "PUBLISH"  # what scripts publish with
        self.volatile: bool = False  # as `check` found: whether keys that have a time of expiry may be evicted before
        self._key = key
        self._pid = os.getpid()
        # A connection is here, or used by one thread. When the master may have moved, the generation grows: connections
        # of an older one are closed, when they come back or when they are found here.
        self._idle: list[Wire] = []
        self._generation = 0
        weakref.finalize(self, _close_all, self._idle)

    # ------------------------------------------------------------------ asking

    def script(self, source: str) -> Script:
        """Return a script of a text. Nothing is sent: the server gets the text when it does not know the script."""
        return Script(source)

    def run(
        self, script: Script, keys: Sequence[str], args: Sequence[str | int] = (), *, timeout: float | None = None
    ) -> Any:
        """Run a script and return its answer. It may be run more than once: after a lost answer it is sent again."""
        words = packed((len(keys), *keys, *args))
        sent = b"*%d\r\n%b%b" % (3 + len(keys) + len(args), script.head, words)
        return self._ask(sent, self.timeout if timeout is None else timeout, script)

    def command(self, *words: str | int, timeout: float | None = None) -> Any:
        """Send one command on keys of the budget, or on none, and return its answer. It may be sent more than once."""
        return self._ask(command(*words), self.timeout if timeout is None else timeout)

    def scan(self, pattern: str, *, timeout: float | None = None) -> list[str]:
        """Return the keys that a pattern fits, each once, of the server that has the budget.

        The server looks at all of its keys, a thousand a step; ``timeout`` is for all steps.
        """
        until = time.monotonic() + (self.timeout if timeout is None else timeout)
        found: dict[str, None] = {}
        cursor, generation = "0", self._generation
        while True:
            rest = until - time.monotonic()
            cursor, keys = self.command("SCAN", cursor, "MATCH", pattern, "COUNT", 1000, timeout=rest)
            if generation != self._generation:  # perhaps another server, to which the cursor says nothing
                cursor, generation = "0", self._generation
                continue
            found.update(dict.fromkeys(keys))
            if cursor == "0":
                return list(found)

    def check(self) -> None:
        """Ask the server whether it can keep a budget.

        Raises:
            StoreError: it evicts keys that have no time of expiry, or is too old, or forbids what is needed.
        """
        lines = self.command("INFO").split("\r\n")
        info = dict(line.split(":", 1) for line in lines if ":" in line)
        policy = info.get("maxmemory_policy", "noeviction")
        if policy.startswith("allkeys-"):
            raise StoreError(
                f"{self.location} evicts any key when its memory is full (maxmemory-policy {policy}), so it would "
                "forget what was spent. Set maxmemory-policy to noeviction or volatile-ttl, or use another server"
            )
        self.volatile = policy.startswith("volatile-") and info.get("maxmemory") != "0"
        version = info.get("redis_version", "")
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
        if numbers and numbers < _OLDEST:
            raise StoreError(f"{self.location} is Redis {version}, and a budget needs {'.'.join(map(str, _OLDEST))}")
        if self._route.clustered and numbers and numbers < (7, 0):
            self.publish = "PUBLISH"  # the others came with Redis 7; this one goes to all nodes

    def listener(self, channel: str) -> Listener:
        """Return what waits for messages of a channel. Nothing is sent before its first `wait`."""
        return Listener(self, channel)

    # ------------------------------------------------------------------ connections

    def forked(self) -> None:
        """In a forked child: forget the parent's connections, without a word to the server."""
        self._pid = os.getpid()
        self._idle.clear()
        self._generation += 1

    def close(self) -> None:
        """Close the connections that are idle. The client can still be used, and then makes new ones."""
        self._generation += 1
        _close_all(self._idle)

    def connect(self, until: float) -> Wire:
        """Return a new connection to the master, made by a moment.

        Raises:
            Refusal: it does not let the client in.
            Exception: whatever else goes wrong, of any class.
        """
        generation = self._generation
        try:
            wire = self._route.connect(until)
        except Exception as error:
            refusal = error if isinstance(error, Refusal) else _faults.refusal_of(error)
            if refusal is None:
                raise
        else:
            wire.generation = generation
            return wire
        try:
            raise refusal  # here, it drags no text of the package along, which may repeat a password
        finally:
            del refusal  # it refers to this frame

    def moved(self, refusal: Refusal | None = None) -> None:
        """Take note that the master does not answer, or is another one: no connection of before is used again."""
        self._route.lost(refusal)
        self.close()

    def _take(self, until: float) -> Wire:
        if self._pid != os.getpid():
            self.forked()
        while True:
            try:
                wire = self._idle.pop()
            except IndexError:
                return self.connect(until)
            if wire.generation == self._generation:
                return wire
            wire.close()

    def _put(self, wire: Wire) -> None:
        if wire.generation == self._generation and len(self._idle) < _KEPT:
            wire.used = True
            self._idle.append(wire)
        else:
            wire.close()

    def _ask(self, sent: bytes, timeout: float, script: Script | None = None) -> Any:
        """Send something until it is answered or the time is over."""
        now = time.monotonic()
        until, attempt = now + timeout, now + timeout / 3
        failures, unanswered = 0, False
        while True:
            wire = None
            try:
                wire = self._take(attempt)
                answer = self._answer(wire, sent, attempt, script)
            except Refusal as refusal:
                at_once, why = self._met(refusal, wire, unanswered=unanswered), str(refusal)
            except Exception as error:  # noqa: BLE001 - OSError, and what the client's package raises
                at_once, why = self._failed(wire), f"{type(error).__name__}: {error}"
                unanswered = unanswered or wire is not None
            else:
                self._put(wire)
                return answer
            failures += 1
            now = time.monotonic()
            if failures > 1 or not at_once:
                time.sleep(max(0, min(until - now, random.uniform(0.5, 1) * min(0.25, 0.01 * 2**failures))))  # noqa: S311
                now = time.monotonic()
            if now >= until:
                rest = f", what was left of {self.timeout:.3g}" if timeout < self.timeout * 0.9 else ""
                raise BudgetUnavailable(
                    f"{self.location} has not answered within {timeout:.3g} seconds{rest}; the last error: {why}"
                )
            attempt = min(now + timeout / 3, until)

    def _answer(self, wire: Wire, sent: bytes, until: float, script: Script | None) -> Any:
        """Ask over a connection, and give the server the script where it has none."""
        try:
            return wire.ask(sent, until)
        except Refusal as refusal:
            if refusal.code == "ASK":
                return self._asking(refusal, sent, until, script)
            if refusal.code != "NOSCRIPT" or script is None:
                raise
        wire.ask(script.load, until)
        return wire.ask(sent, until)

    def _asking(self, refusal: Refusal, sent: bytes, until: float, script: Script | None) -> Any:
        """Ask the node of a cluster that a slot is on its way to."""
        wire = self._route.redirected(refusal, until)
        try:
            if script is not None:
                wire.ask(script.load, until)
            wire.ask(_ASKING, until)
            return wire.ask(sent, until)
        finally:
            wire.close()

    def _failed(self, wire: Wire | None) -> bool:
        """Take note that a connection was lost or could not be made. Return whether to try again at once."""
        if wire is None:
            self._route.lost()
            return False
        if wire.generation == self._generation:  # the first that notices: what is idle is as good as lost
            self.moved()
        return wire.used  # the server may have closed it while it was idle

    def _met(self, refusal: Refusal, wire: Wire | None, *, unanswered: bool) -> bool:
        """Decide what an error of the server means: return whether to ask again at once, or later; or raise it."""
        code = _faults.code_of(refusal)
        asked_again = self._route.clustered or code not in _faults.OF_NODES
        elsewhere = asked_again and code in _faults.ELSEWHERE
        later = asked_again and code in _faults.LATER
        login_ended = code in _faults.LOGIN and wire is not None and wire.used
        if wire is not None:
            if elsewhere or code in _faults.LOGIN:
                wire.close()
                if wire.generation == self._generation:
                    self.moved(refusal)
            else:
                self._put(wire)
        if elsewhere or later or login_ended:
            return login_ended or code == "MOVED"
        if unanswered:  # a StoreError means that nothing was done, and what was sent before may be done yet
            raise BudgetUnavailable(str(_faults.final(refusal, self.location, self._key))) from None
        raise _faults.final(refusal, self.location, self._key) from None
