"""What all benchmarks share: the interleaved timing, the ratios and the table.

A ratio compares two contenders within one repeat, a moment apart in one process, so that what slows the machine slows
both. Each contender runs its own copy of the timed loop (`own_copy`): CPython specialises a function to the objects
that it meets, and one that meets three kinds of pool would be slow for all.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import statistics
import sys
import sysconfig
from types import FunctionType, MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    Loop = TypeVar("Loop", bound=Callable[..., Any])


class Options(NamedTuple):
    """How much to measure, and where the reference and the other checkout of ours are."""

    tiny: bool
    repeats: int
    reference: Path
    against: Path | None = None


class Table(NamedTuple):
    """What a benchmark found: rows of text under a title."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [self.header, ["-" * width for width in widths], *self.rows]
        cells = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
        return "\n".join([f"## {self.title}", "", *(f"| {' | '.join(line)} |" for line in cells)])


RATIO_HEADER = ("median", "best", "quartiles", "range")
AGAINST_HEADER = ("operation", "compared", *RATIO_HEADER, "must", "the second, ns")


def own_copy(loop: Loop) -> Loop:
    """Return a copy of the function with bytecode of its own, not yet specialised to anything."""
    copy: Any = FunctionType(loop.__code__.replace(), loop.__globals__, loop.__name__)
    copy.__kwdefaults__ = loop.__kwdefaults__
    return copy  # type: ignore[no-any-return]


def interleaved(contenders: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Return what each contender cost in each repeat.

    A contender sets up, measures and returns its own cost. The first round warms up and does not count; the order
    rotates, so that nobody always runs after the same neighbour.
    """
    costs: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for repeat in range(repeats + 1):
        for name in order:
            gc.collect()
            cost = contenders[name]()
            if repeat:
                costs[name].append(cost)
        order.append(order.pop(0))
    return costs


def against_first(
    operation: str,
    contenders: Mapping[str, Callable[[], float]],
    calls: int,
    repeats: int,
    must: Mapping[str, str] = MappingProxyType({}),
) -> list[list[str]]:
    """Time the contenders, and return a row for each but the first, under AGAINST_HEADER.

    All are compared with the first. `must` gives the largest ratio that a contender is allowed, by its name.
    """
    costs = interleaved(contenders, repeats)
    first, *others = costs
    ns = f"{statistics.median(costs[first]) / calls:.0f}"
    return [
        [operation, f"{each} / {first}", *ratio_cells(costs[each], costs[first]), must.get(each, ""), ns]
        for each in others
    ]


def ratio_cells(above: Sequence[float], below: Sequence[float]) -> list[str]:
    """Return the cells under RATIO_HEADER: of above / below in each repeat, and of the best (the smallest) of both."""
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    first, median, third = statistics.quantiles(ratios, n=4, method="inclusive")
    return [
        number(median),
        number(min(above) / min(below)),
        f"{number(first)}..{number(third)}",
        f"{number(ratios[0])}..{number(ratios[-1])}",
    ]


def number(value: float) -> str:
    """Return the number with three significant digits, without an exponent."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(digits, 0)}f}"


def percentile(values: Sequence[int], percent: int) -> int:
    """Return the smallest of the values that at least so many percent of them do not exceed."""
    return sorted(values)[max(math.ceil(len(values) * percent / 100) - 1, 0)]


def machine() -> str:
    """Return a line that says where these numbers come from, and how busy it was."""
    version = platform.python_version()
    gil = "without the GIL" if sysconfig.get_config_var("Py_GIL_DISABLED") else "with the GIL"
    busy = f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"
    return (
        f"{platform.python_implementation()} {version} {gil}, {sys.platform} {platform.machine()}, "
        f"{os.cpu_count()} cores, load {busy}"
    )
