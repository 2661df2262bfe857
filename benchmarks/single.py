"""One thread: what each operation costs, as our time / the reference's time. Smaller is better."""

from __future__ import annotations

import random
from itertools import cycle, islice
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING

from benchmarks._measure import RATIO_HEADER, Options, Table, interleaved, own_copy, ratio_cells
from benchmarks.references import ONE_COUNTER, OURS, TOKEN_CAP, TWO_AXES, USD_CAP, Contender, Pool, load_reference

if TYPE_CHECKING:
    from collections.abc import Callable

    Loop = Callable[[Pool, list[tuple[int, float]], type[Exception]], int]

# What must hold against token-budget-py, and what we aim at.
GOALS = {
    "record": "1.05 / 0.60",
    "record, amounts that vary": "1.05 / 0.60",
    "with reserve + commit": "0.55 / 0.38",
    "reserve + release": "0.90 / 0.65",
    "refused record": "0.60 / 0.32",
    "snapshot": "0.20 / 0.16",
}


def _record(pool: Pool, amounts: list[tuple[int, float]], _refusal: type[Exception]) -> int:
    record = pool.record
    start = perf_counter_ns()
    for _ in amounts:
        record(tokens=1200, usd=0.0036)
    return perf_counter_ns() - start


def _record_varying(pool: Pool, amounts: list[tuple[int, float]], _refusal: type[Exception]) -> int:
    record = pool.record
    start = perf_counter_ns()
    for tokens, usd in amounts:
        record(tokens=tokens, usd=usd)
    return perf_counter_ns() - start


def _with_block(pool: Pool, amounts: list[tuple[int, float]], _refusal: type[Exception]) -> int:
    reserve = pool.reserve
    start = perf_counter_ns()
    for _ in amounts:
        with reserve(tokens=1500, usd=0.0045) as reservation:
            reservation.commit(tokens=1200, usd=0.0036)
    return perf_counter_ns() - start


def _release(pool: Pool, amounts: list[tuple[int, float]], _refusal: type[Exception]) -> int:
    try_reserve = pool.try_reserve
    start = perf_counter_ns()
    for _ in amounts:
        try_reserve(tokens=1500, usd=0.0045).release()
    return perf_counter_ns() - start


def _refused(pool: Pool, amounts: list[tuple[int, float]], refusal: type[Exception]) -> int:
    record = pool.record
    record(tokens=TOKEN_CAP, usd=0.0036)
    refused = 0
    start = perf_counter_ns()
    for _ in amounts:
        try:
            record(tokens=1200, usd=0.0036)
        except refusal:  # noqa: PERF203 - its cost is the question
            refused += 1
    took = perf_counter_ns() - start
    assert refused == len(amounts)  # or this measured something else
    return took


def _snapshot(pool: Pool, amounts: list[tuple[int, float]], _refusal: type[Exception]) -> int:
    snapshot = pool.snapshot
    start = perf_counter_ns()
    for _ in amounts:
        snapshot()
    return perf_counter_ns() - start


LOOPS: dict[str, Loop] = {
    "record": _record,
    "record, amounts that vary": _record_varying,
    "with reserve + commit": _with_block,
    "reserve + release": _release,
    "refused record": _refused,
    "snapshot": _snapshot,
}


def run(options: Options) -> list[Table]:
    """Time every operation of ours and of the references, a fresh pool for each timing."""
    calls = 500 if options.tiny else 20_000
    reference = load_reference(options.reference)
    rows: list[list[str]] = []
    for operation, loop in LOOPS.items():
        references = [each for each in (reference, TWO_AXES, ONE_COUNTER) if each is not None]
        if loop is _refused:
            references.remove(ONE_COUNTER)  # it has no cap
        contenders = {each.name: timing(each, own_copy(loop), amounts(calls)) for each in (OURS, *references)}
        costs = interleaved(contenders, options.repeats)
        for each in references:
            goal = GOALS[operation] if each is reference else ""
            ns = f"{median(costs[each.name]) / calls:.0f}"
            rows.append([operation, each.name, *ratio_cells(costs[OURS.name], costs[each.name]), goal, ns])
    header = ["operation", "ours / theirs", *RATIO_HEADER, "must / aim", "theirs, ns"]
    return [Table("One thread: time, smaller is better", header, rows)]


def timing(contender: Contender, loop: Loop, amounts: list[tuple[int, float]]) -> Callable[[], float]:
    """Return what times the loop, each time on a fresh pool."""
    return lambda: loop(contender.make(TOKEN_CAP, USD_CAP), amounts, contender.refusal)


def amounts(calls: int) -> list[tuple[int, float]]:
    """Return (tokens, usd) of that many calls: 500 of realistic sizes at 3 USD a million tokens, over and over."""
    sizes = random.Random(1)  # noqa: S311 - not for secrets
    tokens = [min(int(sizes.lognormvariate(7.2, 1.1)) + 20, 100_000) for _ in range(500)]
    return list(islice(cycle([(count, count * 3e-6) for count in tokens]), calls))
