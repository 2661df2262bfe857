"""The README's programs run as written, and the docstrings' examples are true."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

import token_budget
from support import run_program

README = Path(__file__).parent.parent / "README.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)

# The last line that each program prints.
FAN_OUT = (
    r"(\d+) done, (\d+) skipped: tokens ([\d,]+) / 20,000 \(\d+%\) \| usd 0\.0\d+ / 0\.1000 \(\d+%\) \| 0 in flight"
)
GATHER = r"20 of 1000 started: tokens 9,000 / 10,000 \(90%\) \| usd 0\.0220 / 0\.0500 \(44%\) \| 0 in flight"
PROGRESS = r"batch: tokens 5,000 / 10,000 \(50%\) \| 0 in flight\x1b\[K"
EXCEPT = r"0\.006"
SCOPES = (
    r"\(<BudgetSnapshot atlas: .* usd 0\.2599 / 100\.0000 .*>, "
    r"<BudgetSnapshot user:ann: .* usd 0\.0099 / 10\.0000 .*>\) 20\d\d-\d\d-\d\d 2[23]:00:00\+00:00"
)
WAITING = r"tokens 0 / 40,000 \(0%\) \| 0 in flight"
EVENTS = r"80 % is gone: day: usd 8\.5000 / 10\.0000 \(85%\) \| 0 in flight"
LAST_LINES = [FAN_OUT, GATHER, PROGRESS, SCOPES, WAITING, EVENTS, EXCEPT]


def run(program: str) -> str:
    done = run_program(program, "-W", "error")
    assert done.stderr == ""
    return re.split(r"[\r\n]", done.stdout.rstrip())[-1]


@pytest.mark.parametrize(("program", "last_line"), list(zip(PROGRAMS, LAST_LINES, strict=True)))
def test_a_program_of_the_readme_runs_as_written(program: str, last_line: str) -> None:
    assert re.fullmatch(last_line, run(program))


def test_the_fan_out_spends_the_budget_and_skips_the_rest() -> None:
    match = re.fullmatch(FAN_OUT, run(PROGRAMS[0]))
    assert match
    done, skipped, tokens = int(match[1]), int(match[2]), int(match[3].replace(",", ""))
    assert done + skipped == 100
    assert tokens == 990 * done <= 20_000
    assert skipped > 0


MODULES = sorted(path.stem for path in Path(token_budget.__file__).parent.glob("*.py") if path.stem != "__main__")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings_are_true(name: str) -> None:
    module = importlib.import_module(f"token_budget.{name}".removesuffix(".__init__"))
    names = vars(token_budget) | {"module": module}
    assert doctest.testmod(module, extraglobs=names).failed == 0
