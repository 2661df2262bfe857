"""What an operation costs while 1, 1,000 and 100,000 reservations are open, against the same with 1. Flat is 1.00."""

from __future__ import annotations

from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING

from benchmarks._measure import RATIO_HEADER, Options, Table, interleaved, own_copy, ratio_cells
from benchmarks.references import OURS, Held, Pool

if TYPE_CHECKING:
    from collections.abc import Callable

    Loop = Callable[[Pool, int], int]


def _record(pool: Pool, calls: int) -> int:
    record = pool.record
    start = perf_counter_ns()
    for _ in range(calls):
        record(tokens=1200, usd=0.0036)
    return perf_counter_ns() - start


def _release(pool: Pool, calls: int) -> int:
    try_reserve = pool.try_reserve
    start = perf_counter_ns()
    for _ in range(calls):
        try_reserve(tokens=1500, usd=0.0045).release()
    return perf_counter_ns() - start


def _snapshot(pool: Pool, calls: int) -> int:
    snapshot = pool.snapshot
    start = perf_counter_ns()
    for _ in range(calls):
        snapshot()
    return perf_counter_ns() - start


LOOPS: dict[str, Loop] = {"record": _record, "reserve + release": _release, "snapshot": _snapshot}


def run(options: Options) -> list[Table]:
    """Time each operation on three pools that differ in their open reservations."""
    calls = 200 if options.tiny else 20_000
    counts = (1, 10, 100) if options.tiny else (1, 1_000, 100_000)
    rows: list[list[str]] = []
    for operation, loop in LOOPS.items():
        pools = {f"{count:,} open": _pool(count) for count in counts}
        alone, *crowded = pools
        contenders = {name: _timing(own_copy(loop), pool, calls) for name, (pool, _) in pools.items()}
        costs = interleaved(contenders, options.repeats)
        for name in crowded:
            ns = f"{median(costs[alone]) / calls:.0f}"
            rows.append([operation, f"{name} / {alone}", *ratio_cells(costs[name], costs[alone]), ns])
        for _, reservations in pools.values():
            for reservation in reservations:
                reservation.release()
    header = ["operation", "compared", *RATIO_HEADER, f"{alone}, ns"]
    return [Table("Growth: time as reservations are open, 1.00 is flat", header, rows)]


def _pool(count: int) -> tuple[Pool, list[Held]]:
    """Return a pool with that many open reservations.

    It starts from a spend that gives the counters of all pools the same length, which arithmetic on int depends on.
    """
    pool = OURS.make(10**12, 10.0**6)
    pool.record(tokens=10**10, usd=1000.0)
    return pool, [pool.try_reserve(tokens=1500, usd=0.0045) for _ in range(count)]


def _timing(loop: Loop, pool: Pool, calls: int) -> Callable[[], float]:
    return lambda: loop(pool, calls)
