"""The kinds of pools that a promise must hold for, and the ways to spend from them, as parameters of tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from token_budget import BudgetPool, _ledger
from token_budget._reservation import new_reservation
from token_budget._waiting import Waiter


def _alone(**settings: Any) -> tuple[BudgetPool, BudgetPool]:
    pool = BudgetPool(**settings)
    return pool, pool


def _child(**settings: Any) -> tuple[BudgetPool, BudgetPool]:
    pool = BudgetPool(**settings)
    return pool.child(name="asked"), pool


def _deep(**settings: Any) -> tuple[BudgetPool, BudgetPool]:
    asked = pool = BudgetPool(**settings)
    for _ in range(6):
        asked = asked.child(name="asked")
    return asked, pool


def _join(**settings: Any) -> tuple[BudgetPool, BudgetPool]:
    total = BudgetPool()
    user, project = total.child(**settings), total.child()
    return BudgetPool.join(user, project, name="asked"), user


def _keyed(**settings: Any) -> tuple[BudgetPool, BudgetPool]:
    pool = BudgetPool().keyed(**settings)["asked"]
    return pool, pool


# Each makes a pool to ask, and the pool with these settings, against which the asked pool counts.
SHAPES: dict[str, Callable[..., tuple[BudgetPool, BudgetPool]]] = {
    "alone": _alone,
    "child": _child,
    "deep": _deep,
    "join": _join,
    "keyed": _keyed,
}


def _record(pool: BudgetPool, **amounts: Any) -> None:
    pool.record(**amounts)


def _reserve(pool: BudgetPool, **amounts: Any) -> None:
    pool.reserve(**amounts).commit()


def _wait(pool: BudgetPool, **amounts: Any) -> None:
    pool.reserve(timeout=None, **amounts).commit()


def _areserve(pool: BudgetPool, **amounts: Any) -> None:
    async def ask() -> None:
        async with pool.areserve(**amounts) as reservation:
            reservation.commit()

    asyncio.run(ask())


# Each spends an amount, or raises.
WAYS: dict[str, Callable[..., None]] = {
    "record": _record,
    "reserve": _reserve,
    "reserve, waiting": _wait,
    "areserve": _areserve,
}


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self, now: float = 1_750_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Bell:
    """A bell that remembers whether it was rung, for a waiter without a thread."""

    def __init__(self) -> None:
        self.rung = 0

    def ring(self) -> bool:
        self.rung += 1
        return True

    def deaf(self) -> bool:
        return False


def waiting(pool: BudgetPool, tokens: int = 0, nanos: int = 0, timeout: float | None = None) -> Waiter:
    """Put a request in line and return its waiter at once. No thread waits for it that could be interrupted."""
    reservation = new_reservation(pool, tokens, nanos)
    waiter = Waiter(reservation, Bell(), timeout, _ledger.give_back)
    _ledger.reserve(reservation, waiter)
    assert waiter.state == "waiting"
    return waiter
