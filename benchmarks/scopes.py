"""What an operation costs over several scopes, with a window, a threshold, a key or a subscriber.

Each is compared with the same operation of a lone pool, whose time is taken a moment apart. The second table asks what
one user's operations cost while somebody waits for another user's budget. Flat is 1.00.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle, islice
from threading import Thread
from time import perf_counter_ns, sleep
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks._measure import AGAINST_HEADER, Options, Table, against_first
from benchmarks._operations import SPENDING, TOKEN_CAP, USD_CAP, large_pool, record, timing, with_block
from token_budget import BudgetExceeded, BudgetPool, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from token_budget import KeyedPools

LONE = "a lone pool"
KEYS = [f"user-{index}" for index in range(1_000)]


class Case(NamedTuple):
    """What is compared with a lone pool's operation, and the largest ratio that it must have."""

    operation: str
    name: str
    must: str
    loop: Callable[[Any, int], int]
    make: Callable[[], object]


def _record_by_key(users: KeyedPools[BudgetPool], calls: int) -> int:
    keys = list(islice(cycle(KEYS), calls))
    start = perf_counter_ns()
    for key in keys:
        users[key].record(tokens=1200, usd=0.0036)
    return perf_counter_ns() - start


def _async_block(pool: BudgetPool, calls: int) -> int:
    async def main() -> int:
        areserve = pool.areserve
        start = perf_counter_ns()
        for _ in range(calls):
            async with areserve(tokens=1500, usd=0.0045) as reservation:
                reservation.commit(tokens=1200, usd=0.0036)
        return perf_counter_ns() - start

    return asyncio.run(main())


def _scopes(count: int, window: Window | None = None) -> BudgetPool:
    """Return the lowest of so many pools, each a child of the one before; the lowest has the window."""
    pool = None
    for _ in range(count - 1):
        pool = large_pool(pool)
    return large_pool(pool, window)


def _with_threshold() -> BudgetPool:
    pool = large_pool()
    pool.on_threshold(0.8, lambda _: None)
    return pool


def _with_subscriber() -> BudgetPool:
    pool = large_pool()
    pool.subscribe(lambda _: None)
    return pool


def _users(window: Window | None = None) -> KeyedPools[BudgetPool]:
    """Return pools by key, none of which anybody holds, each with counters of the same length."""
    users = large_pool().keyed(TOKEN_CAP, USD_CAP, window=window)
    for key in KEYS:
        users[key].record(tokens=2 * 10**9, usd=2.0)
    return users


def _run_below_a_join() -> BudgetPool:
    """Return the budget of one run, which counts against a user, a project and the total of both."""
    total = large_pool()
    joined = BudgetPool.join(large_pool(total), large_pool(total))
    run = joined.child(usd_cap=USD_CAP)
    run.record(tokens=10**10, usd=1000.0)
    return run


CASES = [
    Case("record", "3 scopes", "1.8", record, partial(_scopes, 3)),
    Case("record", "3 scopes and a day", "2.2", record, lambda: _scopes(3, Window.daily())),
    Case("record", "a day", "2.0", record, lambda: _scopes(1, Window.daily())),
    Case("record", "a threshold", "1.3", record, _with_threshold),
    Case("record", "users[key], not held", "9", _record_by_key, _users),
    Case("record", "users[key] with a day, not held", "9", _record_by_key, lambda: _users(Window.daily())),
    Case("record", "5 scopes", "8.5", record, partial(_scopes, 5)),
    Case("record", "a subscriber", "10.5", record, _with_subscriber),
    Case("with reserve + commit", "3 scopes", "1.8", with_block, partial(_scopes, 3)),
    Case("with reserve + commit", "3 scopes and a day", "2.0", with_block, lambda: _scopes(3, Window.daily())),
    Case("with reserve + commit", "a day", "1.9", with_block, lambda: _scopes(1, Window.daily())),
    Case("with reserve + commit", "a threshold", "1.3", with_block, _with_threshold),
    Case("with reserve + commit", "a run below a join", "5.5", with_block, _run_below_a_join),
    Case("with reserve + commit", "async with areserve", "2.2", _async_block, large_pool),
]


def run(options: Options) -> list[Table]:
    """Time each case beside a lone pool of its own."""
    calls = 200 if options.tiny else 20_000
    rows = []
    for case in CASES:
        contenders = {
            LONE: timing(SPENDING[case.operation], large_pool(), calls),
            case.name: timing(case.loop, case.make(), calls),
        }
        rows += against_first(case.operation, contenders, calls, options.repeats, {case.name: case.must})
    return [
        Table("Scopes: time against a lone pool's same operation, smaller is better", AGAINST_HEADER, rows),
        _beside_a_waiter(calls, options.repeats),
    ]


def _beside_a_waiter(calls: int, repeats: int) -> Table:
    """Time one user's operations while a thread waits for another user's budget, and while nobody does."""
    rows = []
    with ExitStack() as stack:
        bobs = {
            "nobody waits": stack.enter_context(_bob(somebody_waits=False)),
            "one waits for ann's": stack.enter_context(_bob(somebody_waits=True)),
        }
        for operation, loop in SPENDING.items():
            contenders = {name: timing(loop, bob, calls) for name, bob in bobs.items()}
            must = dict.fromkeys(bobs, "flat")
            rows += against_first(f"{operation} on bob's pool", contenders, calls, repeats, must)
    return Table("Scopes: time while somebody waits for another user's budget, 1.00 is flat", AGAINST_HEADER, rows)


@contextmanager
def _bob(*, somebody_waits: bool) -> Iterator[BudgetPool]:
    """Lend the pool of bob, whose sibling ann has too little room for a thread that may wait there."""
    total = BudgetPool()
    ann, bob = total.child(token_cap=1500), large_pool(total)
    with ann.reserve(tokens=1000):
        thread = Thread(target=_wait, args=[ann], daemon=True)
        if somebody_waits:
            thread.start()
            while _has_room(ann):
                assert thread.is_alive()
                sleep(0.001)
        yield bob
        assert thread.is_alive() is somebody_waits  # or this measured something else
    if somebody_waits:
        thread.join()


def _wait(pool: BudgetPool) -> None:
    pool.reserve(tokens=1500, timeout=None).release()


def _has_room(pool: BudgetPool) -> bool:
    """Whether one token is to be had: it is not once somebody waits, since nobody overtakes."""
    try:
        pool.try_reserve(tokens=1).release()
    except BudgetExceeded:
        return False
    return True
