"""Client: one Redis or Valkey, spoken to within a deadline, whatever client the user made and however the server fails."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from typing import Any

from token_budget.stores.redis._listener import Listener


class Script:
    """The text of a script, and the name that the server knows it by."""

    __slots__ = ("sha", "source")

    def __init__(self, source: str) -> None:
        self.source: str = source
        self.sha: str = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class Client:
    """A private copy of a client's connection settings, and what runs scripts and commands over it.

    Answers are what the server says in RESP2, decoded: int, str, None, and lists of these; whatever ``decode_responses``
    and ``protocol`` the user's client has. All methods may be called from any thread.

    Raises (all methods that ask the server):
        BudgetUnavailable: no answer within the time-out. What was asked may have been done, or may be done later.
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
        self.timeout: float = timeout
        self.location: str = "redis://"  # without a password: what texts show, and one family per process is found by
        self.publish: str = "PUBLISH"  # the command that scripts publish with: SPUBLISH in a cluster
        self._key = key
        self._client = client

    def script(self, source: str) -> Script:
        """Return a script of a text. Nothing is sent: the server gets the text when it does not know the script."""
        return Script(source)

    def run(
        self, script: Script, keys: Sequence[str], args: Sequence[str | int] = (), *, timeout: float | None = None
    ) -> Any:
        """Run a script and return its answer. It may be run more than once: after a lost answer it is sent again."""
        return self._client.eval(script.source, len(keys), *keys, *args)

    def command(self, *words: str | int, timeout: float | None = None) -> Any:
        """Send one command on keys of the budget, or on none, and return its answer. It may be sent more than once."""
        return self._client.execute_command(*words)

    def check(self) -> None:
        """Ask the server whether it can keep a budget.

        Raises:
            StoreError: it evicts keys that have no time of expiry, or is too old, or forbids what is needed.
        """

    def scan(self, pattern: str) -> list[str]:
        """Return the keys that a pattern fits, each once, of the server that has the budget."""
        return sorted({str(key) for key in self._client.scan_iter(match=pattern, count=1000)})

    def listener(self, channel: str) -> Listener:
        """Return what waits for messages of a channel. Nothing is sent before its first `wait`."""
        return Listener(self, channel)

    def forked(self) -> None:
        """In a forked child: forget the parent's connections, without a word to the server."""

    def close(self) -> None:
        """Close the connections that are idle. The client can still be used, and then makes new ones."""


def module_of(name: str) -> Any:
    """Return a module of the client's package."""
    return importlib.import_module(name)
