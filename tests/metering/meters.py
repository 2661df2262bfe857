"""What the tests of meters share: a price table, meters on it, a pool as a store's, and a model's answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from token_budget import BudgetPool
from token_budget.metering import Meter, Prices, Usage
from token_budget.metering._ask import Ask

if TYPE_CHECKING:
    from token_budget import BudgetSnapshot

# USD for a million tokens: an input token of "small" costs 1,000 nanodollars, one of output 4,000.
TABLE = {"small": (1, 4), "large": (10, 40), "openai/small": (1, 4), "free-one": "free"}


def prices() -> Prices:
    return Prices(TABLE, catalogue=False)


def meter_of(pool: Any = None, **settings: Any) -> Meter:
    return Meter(pool, prices(), **settings)


def used(pool: Any) -> tuple[int, int, int]:
    """Return (tokens used, nanodollars used, calls in flight)."""
    snapshot = pool.snapshot()
    return snapshot.tokens_used, snapshot.usd_used_nanos, snapshot.in_flight


def ask(
    input_tokens: int = 1000, output_tokens: int = 500, *, model: str | None = "small", body: bytes = b"", **more: Any
) -> Ask:
    worst = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    return Ask(operation="chat", provider="openai", model=model, worst=worst, body=body, **more)


def answer(input_tokens: int = 800, output_tokens: int = 100, **more: Any) -> dict[str, Any]:
    """Return an answer as a provider gives it."""
    return {"usage": {"prompt_tokens": input_tokens, "completion_tokens": output_tokens}, **more}


class StorePool:
    """A pool as a store has it: of no family, and its async methods suspend. It may be out of reach."""

    def __init__(self, pool: BudgetPool) -> None:
        self.inner = pool
        self.down: BaseException | None = None
        self.suspended = 0

    def _reach(self) -> None:
        if self.down is not None:
            raise self.down

    async def _suspend(self) -> None:
        self.suspended += 1
        await asyncio.sleep(0)
        self._reach()

    @property
    def name(self) -> str | None:
        return self.inner.name

    @property
    def closed(self) -> bool:
        return self.inner.closed

    def snapshot(self) -> BudgetSnapshot:
        self._reach()
        return self.inner.snapshot()

    def close(self) -> None:
        self.inner.close()

    def record(self, **amounts: Any) -> None:
        self._reach()
        self.inner.record(**amounts)

    async def arecord(self, **amounts: Any) -> None:
        await self._suspend()
        self.inner.record(**amounts)

    def reserve(self, **amounts: Any) -> StoreHeld:
        self._reach()
        return StoreHeld(self, self.inner.reserve(**amounts))

    async def areserve(self, **amounts: Any) -> StoreHeld:
        await self._suspend()
        return StoreHeld(self, await self.inner.areserve(**amounts))


class StoreHeld:
    """What a call holds of a store's pool. What can be settled no more ends, as a lease does."""

    def __init__(self, store: StorePool, inner: Any) -> None:
        self._store = store
        self._inner = inner

    @property
    def completed(self) -> bool:
        return bool(self._inner.completed)

    def _reach(self) -> None:
        if self._store.down is not None:
            self._inner.release()
        self._store._reach()

    def commit(self, **amounts: Any) -> None:
        self._reach()
        self._inner.commit(**amounts)

    def release(self) -> None:
        self._reach()
        self._inner.release()

    async def _suspend(self) -> None:
        self._store.suspended += 1
        await asyncio.sleep(0)
        self._reach()

    async def acommit(self, **amounts: Any) -> None:
        await self._suspend()
        self._inner.commit(**amounts)

    async def arelease(self) -> None:
        await self._suspend()
        self._inner.release()
