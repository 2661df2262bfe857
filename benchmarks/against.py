"""What a lone pool costs here against another checkout of ours, both in one process: ``--against FOLDER``.

The other checkout is measured twice, as two packages of their own. The ratio between these two is 1.00 on an idle
machine. How far it is from 1.00 tells which differences mean nothing.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import token_budget
from benchmarks._measure import AGAINST_HEADER, Options, Table, against_first, own_copy
from benchmarks.references import Contender
from benchmarks.single import LOOPS, amounts, timing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from benchmarks.single import Loop

# The most that the other checkout's time may be multiplied by.
MUST = "1.03"


class Checkout(NamedTuple):
    """A copy of the package, with its modules by the names that they have while they run."""

    modules: dict[str, ModuleType]
    contender: Contender


def run(options: Options) -> list[Table]:
    """Time every operation of a pool that stands alone."""
    assert options.against is not None
    calls = 500 if options.tiny else 20_000
    checkouts = {
        "there": load(options.against / "src"),
        "there again": load(options.against / "src"),
        "here": load(Path(token_budget.__file__).parent.parent),
    }
    rows = []
    for operation, loop in LOOPS.items():
        contenders = {name: _timing(checkout, loop, calls) for name, checkout in checkouts.items()}
        rows += against_first(operation, contenders, calls, options.repeats, {"here": MUST})
    return [Table("A lone pool here against one of the other checkout: time, smaller is better", AGAINST_HEADER, rows)]


def load(folder: Path) -> Checkout:
    """Import the package from the folder that contains it, beside any that is there already."""
    modules: dict[str, ModuleType] = {}
    sys.path.insert(0, str(folder.resolve()))
    try:
        with _in_place(modules):
            package = importlib.import_module("token_budget")
    finally:
        sys.path.pop(0)
    assert Path(package.__file__ or "").parent.parent == folder.resolve()
    return Checkout(modules, Contender(str(folder), package.BudgetPool, package.BudgetExceeded))


@contextmanager
def _in_place(modules: dict[str, ModuleType]) -> Iterator[None]:
    """Let imports of the package find these modules, since some are made inside functions; collect what is imported."""
    others = _taken_out()
    sys.modules.update(modules)
    try:
        yield
    finally:
        modules.update(_taken_out())
        sys.modules.update(others)


def _taken_out() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] == "token_budget"]
    return {name: sys.modules.pop(name) for name in names}


def _timing(checkout: Checkout, loop: Loop, calls: int) -> Callable[[], float]:
    measure = timing(checkout.contender, own_copy(loop), amounts(calls))

    def measured() -> float:
        with _in_place(checkout.modules):
            return measure()

    return measured
