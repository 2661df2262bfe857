"""Many threads on one pool, each doing ``with reserve`` + commit: throughput, and the time of the slowest in a hundred.

Two runs for the two questions, since reading the clock around every operation costs as much as part of it. All threads
start at a barrier and make enough calls to overlap: one that is done within the 5 ms for which CPython lets a thread
keep the GIL never meets another.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from statistics import median
from threading import Barrier
from time import perf_counter_ns
from typing import TYPE_CHECKING, TypeVar

from benchmarks._measure import RATIO_HEADER, Options, Table, interleaved, own_copy, percentile, ratio_cells
from benchmarks.references import ONE_COUNTER, OURS, TOKEN_CAP, TWO_AXES, USD_CAP, Contender, Pool, load_reference

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

CALLS = {2: 40_000, 8: 10_000, 32: 10_000}
# What must hold against token-budget-py with 8 threads, and what we aim at.
THROUGHPUT_GOAL = "2.0 / 5"
P99_GOAL = "0.2 / 0.01"


def _spend(pool: Pool, calls: int, start: Barrier) -> tuple[int, int]:
    reserve = pool.reserve
    start.wait(timeout=60)
    begin = perf_counter_ns()
    for _ in range(calls):
        with reserve(tokens=1500, usd=0.0045) as reservation:
            reservation.commit(tokens=1200, usd=0.0036)
    return begin, perf_counter_ns()


def _spend_timed(pool: Pool, calls: int, start: Barrier) -> list[int]:
    reserve = pool.reserve
    took: list[int] = []
    start.wait(timeout=60)
    for _ in range(calls):
        begin = perf_counter_ns()
        with reserve(tokens=1500, usd=0.0045) as reservation:
            reservation.commit(tokens=1200, usd=0.0036)
        took.append(perf_counter_ns() - begin)
    return took


def run(options: Options) -> list[Table]:
    """Measure 2, 8 and 32 threads, a fresh pool and fresh threads for each run."""
    reference = load_reference(options.reference)
    references = [each for each in (reference, TWO_AXES, ONE_COUNTER) if each is not None]
    throughput: list[list[str]] = []
    latency: list[list[str]] = []
    for threads, full in CALLS.items():
        calls = 50 if options.tiny else full
        walls = {each.name: _wall_time(each, threads, calls) for each in (OURS, *references)}
        wall_times = interleaved(walls, options.repeats)
        p99s = {each.name: _p99(each, threads, calls) for each in (OURS, *references)}
        p99_times = interleaved(p99s, options.repeats)
        for each in references:
            ours, theirs = wall_times[OURS.name], wall_times[each.name]
            goal = THROUGHPUT_GOAL if threads == 8 and each is reference else ""
            ns = f"{median(theirs) / (threads * calls):.0f}"
            throughput.append([f"{threads} threads", each.name, *ratio_cells(theirs, ours), goal, ns])
            ours, theirs = p99_times[OURS.name], p99_times[each.name]
            goal = P99_GOAL if threads == 8 and each is reference else ""
            ns = f"{median(theirs):.0f}"
            latency.append([f"{threads} threads", each.name, *ratio_cells(ours, theirs), goal, ns])
    header = ["", "ours / theirs", *RATIO_HEADER, "must / aim", "theirs, ns"]
    return [
        Table("Threads on one pool: throughput of with reserve + commit, larger is better", header, throughput),
        Table("Threads on one pool: p99 time of with reserve + commit, smaller is better", header, latency),
    ]


def _wall_time(contender: Contender, threads: int, calls: int) -> Callable[[], float]:
    spend = own_copy(_spend)

    def measured() -> float:
        spans = _in_threads(spend, contender.make(TOKEN_CAP, USD_CAP), threads, calls)
        return max(end for _, end in spans) - min(begin for begin, _ in spans)

    return measured


def _p99(contender: Contender, threads: int, calls: int) -> Callable[[], float]:
    spend = own_copy(_spend_timed)

    def measured() -> float:
        took = _in_threads(spend, contender.make(TOKEN_CAP, USD_CAP), threads, calls)
        return percentile([each for thread in took for each in thread], 99)

    return measured


def _in_threads(body: Callable[[Pool, int, Barrier], Result], pool: Pool, threads: int, calls: int) -> list[Result]:
    start = Barrier(threads)
    with ThreadPoolExecutor(threads) as executor:
        return [each.result() for each in [executor.submit(body, pool, calls, start) for _ in range(threads)]]
