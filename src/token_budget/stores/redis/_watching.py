"""Watching: how those who wait in this process learn that room may have come, and show that they live."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any

from token_budget.stores._store import Scope
from token_budget.stores.redis._claims import begin
from token_budget.stores.redis._process import Process
from token_budget.stores.redis._reading import keys_of
from token_budget.stores.redis._rows import reading

_BEAT = 1.0  # seconds between beats: who has not beaten for 3.5 s is passed over
_FEW = 4  # so many try at once when a message comes; of more, those are found first for whom something has changed

Heads = Sequence[tuple[Sequence[Scope], Any, int, int]]


class Watcher:
    """What one process has to wait with: its channel, and what it saw of scopes at the last look."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.begin()

    def begin(self) -> None:
        """Forget what was, in a process in which nobody waits."""
        self._listener: Any = None
        self._owner = ""  # whose channel it is
        self._beaten = 0.0
        self._seen: dict[str, str] = {}  # by path: what changes there

    def close(self) -> None:
        """End the connection of the channel."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def watch(self, heads: Heads, seconds: float) -> Collection[Any] | None:
        """See `Store.watch`. Return the keys of those who may get room, None where it may be any.

        A step that gives room back tells the process of the first that waits there, by a message on its channel.
        """
        process, until = self._process, time.monotonic() + seconds
        if self._owner != process.owner or not process.registered:
            self.close()
            with process.step() as step:
                begin(step)
            self._owner, self._beaten = process.owner, 0.0
            self._listener = process.client.listener(process.keys.channel(process.owner))
        few = len(heads) <= _FEW
        if time.monotonic() - self._beaten >= _BEAT or not few:
            changed = self._look(() if few else [*heads])
            if changed:
                return changed
            if self._owner != process.owner:  # declared dead, and with it all tickets ended: all try again
                return None
        listener = self._listener
        if listener is None:  # `close` came meanwhile
            return None
        heard = listener.wait(max(0.0, until - time.monotonic()))
        if few or len(heads) <= _FEW:
            return None if heard else ()
        return self._look([*heads])

    def _look(self, heads: Heads) -> list[Any]:
        """Beat, and return the keys of those for whom something has changed since the last look."""
        process = self._process
        scopes = {scope.path: scope for chain, _, _, _ in heads for scope in chain}
        chain = [*scopes.values()]
        with process.step() as step:
            readings = [reading(scope) for scope in chain]
            keys = keys_of(process, chain)
            answer = step.ask(process.scripts.look, keys, 0, ("", "", "", ""), readings, self._owner)
        if answer[0] == "owner":
            step.not_known(self._owner)
            return [key for _, key, _, _ in heads]
        self._beaten = time.monotonic()
        seen = dict(zip(scopes, answer[1], strict=True))
        changed = {path for path, text in seen.items() if self._seen.get(path) != text}
        if heads:
            self._seen = seen
        return [key for chain_of, key, _, _ in heads if any(scope.path in changed for scope in chain_of)]
