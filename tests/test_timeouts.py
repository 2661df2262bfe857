"""Time-outs: bad ones are refused everywhere, and callers can wait under windows of any length."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from hostile import Claims, EvilFloat, EvilInt, Index, LyingFloat, LyingInt, OnlyFloat
from shapes import SHAPES, Clock, waiting
from support import counters
from token_budget import BudgetPool, BudgetTimeout, Window, _sleep

NO_NUMBERS: list[Any] = [
    "", "1", b"", [], {}, (), set(), 0j, False, True, Decimal(0), Decimal(1), Fraction(0), object(),
    OnlyFloat(), Index(0), Claims(), float, timedelta(seconds=1),
]  # fmt: skip
NO_TIMES: list[Any] = [
    -1, -1e-9, float("nan"), float("-inf"), -(10**400), EvilInt(-1), EvilFloat(-1.0), EvilFloat("nan"),
    LyingFloat(-1.0), LyingInt(-1),
]  # fmt: skip
ASKING: dict[str, Callable[[BudgetPool, Any], object]] = {
    "reserve": lambda pool, timeout: pool.reserve(tokens=1, timeout=timeout),
    "try_reserve": lambda pool, timeout: pool.try_reserve(tokens=1, timeout=timeout),
    "areserve": lambda pool, timeout: pool.areserve(tokens=1, timeout=timeout),  # raises at the call
}


def _named(value: object) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__


@pytest.mark.parametrize("full_pool", [False, True], ids=["room", "full"])
@pytest.mark.parametrize("asking", ASKING)
@pytest.mark.parametrize(
    ("timeout", "error"),
    [*((value, TypeError) for value in NO_NUMBERS), *((value, ValueError) for value in NO_TIMES)],
    ids=_named,
)
def test_a_bad_timeout_is_refused_even_if_the_call_would_not_wait(
    timeout: Any, error: type[Exception], asking: str, full_pool: bool
) -> None:
    for shape in SHAPES.values():
        asked, pool = shape(token_cap=5)
        pool.record(tokens=5 if full_pool else 0)
        with pytest.raises(error, match="timeout must be a number of seconds"):
            ASKING[asking](asked, timeout)
        assert counters(pool) == (5 if full_pool else 0, 0, 0, 0, 0)
        assert pool.statistics().waiters == 0


@pytest.mark.parametrize(
    "timeout", [0, 0.0, -0.0, EvilFloat(0.0), EvilInt(0), 5e-324, 1, 10**400, float("inf"), None], ids=_named
)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_good_timeout_is_accepted(shape: str, timeout: Any) -> None:
    asked, pool = SHAPES[shape](token_cap=5)
    asked.reserve(tokens=5, timeout=timeout).release()

    async def ask() -> None:
        async with asked.areserve(tokens=1, timeout=timeout) as reservation:
            reservation.commit()

    asyncio.run(ask())
    assert counters(pool) == (1, 0, 0, 0, 0)


@pytest.mark.parametrize("timeout", [LyingFloat(1e-9), 1e-9, 5e-324], ids=_named)
def test_a_tiny_timeout_that_claims_to_be_zero_is_still_a_wait(timeout: float) -> None:
    pool = BudgetPool(token_cap=5)
    with pool.reserve(tokens=5), pytest.raises(BudgetTimeout):
        pool.reserve(tokens=1, timeout=timeout)


@pytest.mark.parametrize("timeout", [None, 600.0, 1e300])
@pytest.mark.parametrize("length", [timedelta(days=400 * 366), timedelta(days=999_999_999), timedelta(microseconds=1)])
def test_callers_can_wait_under_a_window_of_any_length(length: timedelta, timeout: float | None) -> None:
    pool = BudgetPool(token_cap=5, window=Window.every(length, clock=Clock()))
    held = pool.reserve(tokens=5)
    done: list[object] = []

    def body() -> None:
        with pool.reserve(tokens=1, timeout=timeout) as reservation:
            done.append(reservation)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    while pool.statistics().waiters == 0 and thread.is_alive():
        pass
    held.release()
    thread.join(30)
    assert len(done) == 1


@pytest.mark.parametrize("timeout", [None, 600.0, 1e300])
def test_no_sleep_is_longer_than_a_lock_can_wait(timeout: float | None) -> None:
    clock = Clock()
    pool = BudgetPool(token_cap=5, window=Window.every(timedelta(days=400 * 366), clock=clock))
    held = pool.reserve(tokens=5)
    waiter = waiting(pool, tokens=1, timeout=timeout)
    seconds = _sleep.Sleeps(waiter, timeout).next()
    assert seconds is not None
    assert 0 < seconds <= threading.TIMEOUT_MAX
    held.release()
    waiter.reservation.release()
