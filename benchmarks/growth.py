"""What an operation costs as a family of pools grows: deeper, with more open reservations, with more keys.

Each table compares with the smallest of its kind in the same run. Flat is 1.00.
"""

from __future__ import annotations

import gc
from time import perf_counter_ns
from typing import TYPE_CHECKING

from benchmarks._measure import AGAINST_HEADER, Options, Table, against_first
from benchmarks._operations import LOOPS, SPENDING, TOKEN_CAP, USD_CAP, large_pool, record, timing

if TYPE_CHECKING:
    from token_budget import BudgetPool, KeyedPools, Reservation

DEPTHS = (2, 3, 5)
# What must hold against a pool that stands alone.
DEPTH_GOALS = {"record": {"depth 3": "1.8", "depth 5": "8.5"}, "with reserve + commit": {"depth 3": "1.8"}}


def _record_by_key(users: KeyedPools[BudgetPool], calls: int) -> int:
    start = perf_counter_ns()
    for _ in range(calls):
        users["user-0"].record(tokens=1200, usd=0.0036)
    return perf_counter_ns() - start


def run(options: Options) -> list[Table]:
    """Measure each kind of growth."""
    calls = 200 if options.tiny else 20_000
    return [_depth(calls, options.repeats), _open(calls, options), _keys(calls, options)]


def _depth(calls: int, repeats: int) -> Table:
    """Time pools that count against one scope (they stand alone), two, three and five."""
    parent = large_pool()
    child = parent.child(TOKEN_CAP, USD_CAP)
    pools = {"depth 1": large_pool(), "depth 1, with a child": parent}
    for depth in DEPTHS:
        pool = large_pool()
        for _ in range(depth - 1):
            pool = large_pool(pool)
        pools[f"depth {depth}"] = pool
    rows = []
    for operation, loop in SPENDING.items():
        contenders = {name: timing(loop, pool, calls) for name, pool in pools.items()}
        rows += against_first(operation, contenders, calls, repeats, DEPTH_GOALS[operation])
    child.close()
    return Table("Growth: time as pools are children of children, depth 1 stands alone", AGAINST_HEADER, rows)


def _open(calls: int, options: Options) -> Table:
    """Time pools that differ in their open reservations."""
    counts = (1, 10, 100) if options.tiny else (1, 1_000, 1_000_000)
    pools = {f"{count:,} open": _crowded_pool(count) for count in counts}
    gc.freeze()  # or each of the collections between the timings looks through all of them
    rows = []
    for operation, loop in LOOPS.items():
        contenders = {name: timing(loop, pool, calls) for name, (pool, _) in pools.items()}
        rows += against_first(operation, contenders, calls, options.repeats)
    gc.unfreeze()
    for _, reservations in pools.values():
        for reservation in reservations:
            reservation.release()
    return Table("Growth: time as reservations are open, 1.00 is flat", AGAINST_HEADER, rows)


def _keys(calls: int, options: Options) -> Table:
    """Time the pool of one key among many, that the caller holds and that is made anew for each call."""
    counts = (1, 10, 100) if options.tiny else (1, 1_000, 1_000_000)
    groups = {f"{count:,} key{'' if count == 1 else 's'}": _users(count) for count in counts}
    gc.freeze()
    asked = {name: timing(_record_by_key, users, calls) for name, users in groups.items()}
    rows = against_first("look up a pool that nobody holds, record", asked, calls, options.repeats)
    pools = {name: users["user-0"] for name, users in groups.items()}
    rows += against_first("look up a pool that is held, record", asked, calls, options.repeats)
    held = {name: timing(record, pool, calls) for name, pool in pools.items()}
    rows += against_first("record, pool held", held, calls, options.repeats)
    gc.unfreeze()
    return Table("Growth: time as there are keys, 1.00 is flat", AGAINST_HEADER, rows)


def _crowded_pool(count: int) -> tuple[BudgetPool, list[Reservation]]:
    """Return a pool with that many open reservations, the first so large that also what is held has the same length."""
    pool = large_pool()
    large = pool.try_reserve(tokens=10**10, usd=1000.0)
    return pool, [large, *(pool.try_reserve(tokens=1500, usd=0.0045) for _ in range(count - 1))]


def _users(count: int) -> KeyedPools[BudgetPool]:
    """Return pools by that many keys, each of which has spent what makes it worth remembering."""
    users = large_pool().keyed(TOKEN_CAP, USD_CAP)
    for index in range(count):
        users[f"user-{index}"].record(tokens=10**10 if index == 0 else 1, usd=1000 if index == 0 else 0)
    return users
