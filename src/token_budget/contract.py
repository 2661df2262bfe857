"""What a pool is to the layers above the core: the core's own `BudgetPool`, the pools of a store, a user's double.

A `Meter` takes anything that keeps this contract. The meaning of each method is `BudgetPool`'s.
"""

from __future__ import annotations

from collections.abc import Awaitable
from decimal import Decimal
from fractions import Fraction
from typing import Protocol, SupportsIndex

from token_budget._snapshot import BudgetSnapshot

Amount = float | Decimal | Fraction


class BudgetUnavailable(RuntimeError):
    """The pool cannot answer: what keeps its numbers (a database, a server) cannot be reached. It is no refusal.

    ``Meter(on_error="allow")`` lets calls pass that meet this error.
    """


class HeldAmount(Protocol):
    """What one call holds, until it is committed or released: `Reservation`, or a store's."""

    @property
    def completed(self) -> bool:
        """Whether it is committed or released."""
        ...

    def commit(self, *, tokens: SupportsIndex | None = None, usd: Amount | None = None) -> None:
        """Record the real cost. Raises BudgetOverrun after it has recorded a cost that passes a cap."""
        ...

    def release(self) -> None:
        """Give back what is held. Does nothing if it is settled already."""
        ...

    async def acommit(self, *, tokens: SupportsIndex | None = None, usd: Amount | None = None) -> None:
        """Do what `commit` does, without blocking the event loop."""
        ...

    async def arelease(self) -> None:
        """Do what `release` does, without blocking the event loop."""
        ...


class Pool(Protocol):
    """A budget of tokens and dollars."""

    @property
    def name(self) -> str | None:
        """The name that refusals show."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it refuses new work."""
        ...

    def record(self, *, tokens: SupportsIndex = 0, usd: Amount = 0, force: bool = False) -> None:
        """Add a spend, or refuse it. With ``force`` it is added in any case, and BudgetOverrun raised after."""
        ...

    def reserve(self, *, tokens: SupportsIndex = 0, usd: Amount = 0, timeout: float | None = 0) -> HeldAmount:
        """Hold an amount, or raise BudgetExceeded. It waits for room up to ``timeout`` seconds."""
        ...

    def areserve(
        self, *, tokens: SupportsIndex = 0, usd: Amount = 0, timeout: float | None = None
    ) -> Awaitable[HeldAmount]:
        """Do what `reserve` does; the task waits, and not the thread."""
        ...

    async def arecord(self, *, tokens: SupportsIndex = 0, usd: Amount = 0, force: bool = False) -> None:
        """Do what `record` does, without blocking the event loop."""
        ...

    def snapshot(self) -> BudgetSnapshot:
        """Return the numbers of one moment."""
        ...

    def close(self) -> None:
        """Refuse new work for good. Calls in flight still settle."""
        ...
