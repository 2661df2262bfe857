"""The bytes that an open reservation holds, its own integers included, and what a finished call leaves behind.

And those of a key of ``pool.keyed(...)`` that has spent, whose pool nobody holds: its text and its counters included.
"""

from __future__ import annotations

import gc
import tracemalloc

from benchmarks._measure import Options, Table, number
from benchmarks.references import OURS, TOKEN_CAP, TWO_AXES, USD_CAP, Contender, Held, load_reference
from token_budget import BudgetPool

BYTES_GOAL = "200"


def run(options: Options) -> list[Table]:
    """Count what tracemalloc sees; it counts the same every time, so once is enough."""
    count = 2_000 if options.tiny else 100_000
    reference = load_reference(options.reference)
    references = [each for each in (reference, TWO_AXES) if each is not None]
    rows: list[list[str]] = []
    tracemalloc.start()
    for what, measure in {"an open reservation": _open, "a finished call": _finished}.items():
        ours = measure(OURS, count)
        rows.append([what, OURS.name, f"{ours:.2f}", "", BYTES_GOAL if measure is _open else "0"])
        for each in references:
            theirs = measure(each, count)
            ratio = number(ours / theirs) if measure is _open else ""
            rows.append([what, each.name, f"{theirs:.2f}", ratio, ""])
    rows.append(["a key", OURS.name, f"{_key(count):.2f}", "", ""])
    tracemalloc.stop()
    header = ["what is kept", "by", "bytes each", "ours / theirs", "must"]
    return [Table(f"Memory: over {count:,} of each, smaller is better", header, rows)]


def _open(contender: Contender, count: int) -> float:
    """Hold that many reservations, whose amounts nobody else holds."""
    pool = contender.make(TOKEN_CAP, USD_CAP)
    reservations: list[Held | None] = [None] * count
    before = _bytes_in_use()
    for index in range(count):
        tokens = 1_000 + index % 1_000
        reservations[index] = pool.try_reserve(tokens=tokens, usd=tokens * 3e-6)
    kept = _bytes_in_use() - before
    for reservation in reservations:
        if reservation is not None:
            reservation.release()
    return kept / count


def _key(count: int) -> float:
    """Let that many keys spend, and hold none of their pools."""
    users = BudgetPool(TOKEN_CAP, USD_CAP).keyed(TOKEN_CAP, USD_CAP)
    users["user"].record(tokens=1)
    before = _bytes_in_use()
    for index in range(count):
        tokens = 1_000 + index % 1_000
        users[f"user-{index}"].record(tokens=tokens, usd=tokens * 3e-6)
    kept = _bytes_in_use() - before
    assert len(users) == count + 1
    return kept / count


def _finished(contender: Contender, count: int) -> float:
    """Spend twice that often, and count from the middle: CPython keeps caches of its own for code that ran a while."""
    pool = contender.make(TOKEN_CAP, USD_CAP)
    used = []
    for _ in range(2):
        for index in range(count):
            with pool.reserve(tokens=1500, usd=0.0045) as reservation:
                reservation.commit(tokens=1_000 + index % 1_000, usd=0.0036)
        used.append(_bytes_in_use())
    return (used[1] - used[0]) / count


def _bytes_in_use() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
