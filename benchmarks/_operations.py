"""The operations that are timed on a `BudgetPool`, and the pools that have room for all of them.

Every operation takes a pool and how often to repeat it, and returns the nanoseconds of all repetitions.
"""

from __future__ import annotations

from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from benchmarks._measure import own_copy
from token_budget import BudgetPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from token_budget import Window

    Loop = Callable[[BudgetPool, int], int]

# Nothing reaches these caps. They and all that is counted below them have the same length inside of `int`.
TOKEN_CAP = 10**15
USD_CAP = 10.0**6


def record(pool: BudgetPool, calls: int) -> int:
    """Time a spend that is already known."""
    record = pool.record
    start = perf_counter_ns()
    for _ in range(calls):
        record(tokens=1200, usd=0.0036)
    return perf_counter_ns() - start


def with_block(pool: BudgetPool, calls: int) -> int:
    """Time a reservation and its commit in a ``with`` block."""
    reserve = pool.reserve
    start = perf_counter_ns()
    for _ in range(calls):
        with reserve(tokens=1500, usd=0.0045) as reservation:
            reservation.commit(tokens=1200, usd=0.0036)
    return perf_counter_ns() - start


def release(pool: BudgetPool, calls: int) -> int:
    """Time a reservation that is given back."""
    try_reserve = pool.try_reserve
    start = perf_counter_ns()
    for _ in range(calls):
        try_reserve(tokens=1500, usd=0.0045).release()
    return perf_counter_ns() - start


def snapshot(pool: BudgetPool, calls: int) -> int:
    """Time a look at all numbers."""
    snapshot = pool.snapshot
    start = perf_counter_ns()
    for _ in range(calls):
        snapshot()
    return perf_counter_ns() - start


SPENDING: dict[str, Loop] = {"record": record, "with reserve + commit": with_block}
LOOPS: dict[str, Loop] = {**SPENDING, "reserve + release": release, "snapshot": snapshot}


def large_pool(parent: BudgetPool | None = None, window: Window | None = None) -> BudgetPool:
    """Return a pool, or a child of the parent, that has room for everything.

    It starts from a spend that gives the counters of all pools the same length, which arithmetic on int depends on.
    """
    make = BudgetPool if parent is None else parent.child
    pool = make(TOKEN_CAP, USD_CAP, window=window)
    pool.record(tokens=10**10, usd=1000.0)
    return pool


def timing(loop: Callable[[Any, int], float], pool: Any, calls: int) -> Callable[[], float]:
    """Return what times a copy of the loop of its own on the pool."""
    return partial(own_copy(loop), pool, calls)
