"""What `import token_budget` adds to a bare interpreter: its time, and the modules it takes from elsewhere (none).

The time is what ``-X importtime`` reports for the package and all that it imports, in an interpreter of its own with
``-I -S``: without site, which imports `os` and whatever installed packages ask it to, nothing is there already.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import token_budget
from benchmarks._measure import RATIO_HEADER, Options, Table, interleaved, ratio_cells
from benchmarks.references import OURS, REFERENCE, load_reference

if TYPE_CHECKING:
    from collections.abc import Callable

MILLISECONDS_GOAL = "12"


def run(options: Options) -> list[Table]:
    """Import in interpreters of their own, one after another."""
    package_folder = Path(token_budget.__file__).parent.parent
    imports = {OURS.name: (package_folder, "token_budget")}
    if load_reference(options.reference) is not None:
        imports[REFERENCE] = (options.reference, "token_budget")
    imports["json (standard library)"] = (package_folder, "json")
    costs = interleaved({name: _importing(*which) for name, which in imports.items()}, options.repeats)

    ours, *references = costs
    rows = [[f"import {ours}", each, *ratio_cells(costs[ours], costs[each]), _ms(costs[each])] for each in references]
    return [
        Table("Import: time, smaller is better", ["", "ours / theirs", *RATIO_HEADER, "theirs, ms"], rows),
        Table(
            "Import: what it comes to",
            ["", "found", "must"],
            [
                ["median ms above a bare interpreter", _ms(costs[ours]), MILLISECONDS_GOAL],
                ["modules outside the standard library", ", ".join(foreign_modules(package_folder)) or "none", "none"],
            ],
        ),
    ]


def _importing(folder: Path, module: str) -> Callable[[], float]:
    """Return a function that gives the microseconds of one import."""

    def measured() -> float:
        report = interpreter("-S", "-X", "importtime", "-c", program_with(folder, f"import {module}")).stderr
        lines = [line.split("|") for line in report.splitlines()]
        return next(float(line[1]) for line in reversed(lines) if line[-1].strip() == module)

    return measured


def foreign_modules(folder: Path, module: str = "token_budget") -> list[str]:
    """Return what an import brings in from elsewhere, where it may use what is installed."""
    program = f"before = set(sys.modules); import {module}; print(*set(sys.modules) - before)"
    imported = {name.partition(".")[0] for name in interpreter("-c", program_with(folder, program)).stdout.split()}
    return sorted(imported - sys.stdlib_module_names - {"token_budget"})


def program_with(folder: Path, statements: str) -> str:
    """Return a program that finds its modules in the folder first."""
    return f"import sys; sys.path.insert(0, {str(folder.resolve())!r}); {statements}"


def interpreter(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an interpreter of its own, which looks neither at the environment nor into the current folder."""
    return subprocess.run([sys.executable, "-I", *arguments], check=True, capture_output=True, text=True)


def _ms(microseconds: list[float]) -> str:
    return f"{median(microseconds) / 1000:.1f}"
