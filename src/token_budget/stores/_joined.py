"""Joined: the numbers of a join in this process. A join has no scope of its own in the store."""

from __future__ import annotations

from threading import RLock
from typing import Any

from token_budget.stores._store import Numbers, Scope


class Joined:
    """What one join has used and holds. It lives in this process alone; a forked child begins with none."""

    __slots__ = ("_epoch", "_family", "_held", "_lock", "_nanos", "_tokens", "scope")

    def __init__(self, family: Any, name: str | None) -> None:
        # For those who listen to the join; the store knows nothing of it. A join may have no name.
        self.scope = Scope(name, "")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        self._family = family
        self._begin(family.epoch)

    def _begin(self, epoch: int) -> None:
        self._epoch = epoch
        self._lock = RLock()  # a new one in a forked child, where another thread may have held the old one
        self._held: dict[Any, tuple[int, int]] = {}  # by the keys of the claims
        self._tokens = 0  # used
        self._nanos = 0

    def hold(self, key: Any, tokens: int, nanos: int) -> None:
        """Note what a claim holds."""
        with self._own():
            self._held[key] = tokens, nanos

    def settle(self, key: Any, tokens: int, nanos: int) -> None:
        """Note that a claim ended, and what it used. A claim that is not known uses nothing: it was counted before."""
        with self._own():
            if self._held.pop(key, None) is not None:
                self._tokens += tokens
                self._nanos += nanos

    def spend(self, tokens: int, nanos: int) -> None:
        """Note a spend."""
        with self._own():
            self._tokens += tokens
            self._nanos += nanos

    def reset(self) -> None:
        """Set what is used to 0."""
        with self._own():
            self._tokens = self._nanos = 0

    def row(self) -> Numbers:
        """Return its numbers as a scope of the store has them."""
        with self._own():
            tokens = sum(amount[0] for amount in self._held.values())
            nanos = sum(amount[1] for amount in self._held.values())
            return Numbers(
                token_cap=None,
                nano_cap=None,
                tokens_claimed=self._tokens + tokens,
                tokens_held=tokens,
                nanos_claimed=self._nanos + nanos,
                nanos_held=nanos,
                in_flight=len(self._held),
                start=None,
                end=None,
                era=0,
                waiting=0,
                closed=self.scope.closed,
            )

    def _own(self) -> Any:
        """Return the lock of this process."""
        epoch = self._family.epoch
        if epoch != self._epoch:
            self._begin(epoch)
        return self._lock
