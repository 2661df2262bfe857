"""The programs of both READMEs run as written, their tables are complete, and the docstrings' examples are true."""

from __future__ import annotations

import ast
import doctest
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Coroutine
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import token_budget
from token_budget.cli._provider import Provider

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "token_budget"
README = (ROOT / "README.md").read_text(encoding="utf-8")
INSIDE = (PACKAGE / "README.md").read_text(encoding="utf-8")


def programs(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


# The last lines that each program prints.
EXAMPLE = r"Hello\.\ntokens 1,650 / 10,000 \(16%\) \| usd 0\.0099 / 0\.5000 \(1%\) \| 0 in flight"
FAN_OUT = r"tokens 45,000 / 50,000 \(90%\) \| usd 0\.1350 / 0\.1500 \(90%\) \| 0 in flight"
GATHER = (
    r"budget exceeded on tokens: attempted 10500 > cap 10000 \(0 used, 10000 reserved, 500 requested\); busy: .*\n"
    r"20 of 1000 started: tokens 9,000 / 10,000 \(90%\) \| usd 0\.0220 / 0\.0500 \(44%\) \| 0 in flight"
)
PROGRESS = r"batch: tokens 5,000 / 10,000 \(50%\) \| 0 in flight"
FAILED = r"timed out: tokens 2,000 \| usd 0\.0060 / 1\.0000 \(0%\) \| 0 in flight"
SCOPES = (
    r"user:ann 20\d\d-\d\d-\d\d 2[23]:00:00\+00:00 budget exceeded on usd in pool 'user:ann': .* used up until .*\n"
    r"Retry-After: [1-9]\d*\n"
    r"\(<BudgetSnapshot atlas: .* usd 0\.0099 / 100\.0000 .*>, "
    r"<BudgetSnapshot user:ann: .* usd 0\.0099 / 10\.0000 .*>\)"
)
EVENTS = r"80 % is used: day: usd 8\.5000 / 10\.0000 \(85%\) \| 0 in flight"
FORK = r"child: usd 0\.5000 / 1\.0000 \(50%\) \| 0 in flight"
METERED = r"run 'answers': 1 call in \d+\.\d{3}s, \$0\.00\d+ of \$2\.00"
OUTPUTS = [EXAMPLE, METERED, FAN_OUT, GATHER, PROGRESS, SCOPES, EVENTS, FAILED, FORK]


def run(program: str, lines: int = 1, *, warns: str = "error", **variables: str) -> str:
    """Return the last lines that a program prints. A program that warns fails."""
    command = [sys.executable, "-W", warns, "-c", program]
    environment = os.environ | {"PYTHONPATH": str(Path(token_budget.__file__).parent.parent)} | variables
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment)
    assert done.stderr == ""
    return "\n".join(re.split(r"[\r\n]", done.stdout.rstrip())[-lines:])


@pytest.mark.parametrize(("program", "output"), list(zip([*programs(README), *programs(INSIDE)], OUTPUTS, strict=True)))
def test_a_program_of_the_readmes_runs_as_written(program: str, output: str) -> None:
    if output is not METERED:
        assert re.fullmatch(output, run(program, 1 + output.count(r"\n")))
        return
    pytest.importorskip("openai")
    pytest.importorskip("genai_prices")
    with Provider() as provider:  # where the SDK looks for it; what other packages warn of is their own business
        found = run(program, warns="default", OPENAI_BASE_URL=f"{provider.url}/v1", OPENAI_API_KEY="test")
        assert len(provider.bills) == 2
    assert re.fullmatch(output, found)


def test_the_fan_out_loses_no_call() -> None:
    assert re.fullmatch(FAN_OUT, run(programs(README)[2]))


def test_without_a_timeout_the_fan_out_loses_more_than_half_of_the_calls() -> None:
    program = programs(README)[2].replace(", timeout=60", "").replace("sleep(0.05)", "sleep(1)")
    all_at_once = 'list(workers.map(summarise, ["some text"] * 100))'
    assert all_at_once in program
    program = program.replace(all_at_once, 'calls = [workers.submit(summarise, "some text") for _ in range(100)]')
    count = "print(sum(call.exception() is None for call in calls), pool.snapshot().tokens_used)"
    done, tokens = map(int, run(f"{program}\n{count}").split()[-2:])
    assert tokens == 450 * done
    assert done < 50


def test_the_first_example_has_eight_lines() -> None:
    assert len(programs(README)[0].splitlines()) == 8


def test_the_readmes_stay_short() -> None:
    assert len(README.splitlines()) < 220
    assert len(INSIDE.splitlines()) <= 200


@pytest.mark.parametrize("start", ["PYTHONPATH=src python3 -m token_budget demo", "python3 -m venv "])
def test_the_commands_that_ci_takes_from_the_readme_stand_alone_on_one_line(start: str) -> None:
    found = [line for line in README.splitlines() if line.startswith(start)]
    assert len(found) == 1
    assert f"```sh\n{found[0]}\n```" in README


# Names that the table abbreviates: "the same with `usd`", "also with `_nanos`".
SHORT = {"usd_used", "usd_reserved", "usd_remaining", "usd_cap"}
# Members that only other modules of the core call. Users of the package do not.
INTERNAL = {"accounts", "scopes", "pay", "paid", "teller"}


@pytest.mark.parametrize("name", [name for name in token_budget.__all__ if name != "__version__"])
def test_the_table_of_the_api_has_every_public_name(name: str) -> None:
    known = set(re.findall(r"\w+", README.partition("## The API")[2]))
    thing = getattr(token_budget, name)
    inherited = {member for base in (BaseException, TimeoutError, tuple, Coroutine) for member in dir(base)}
    members = {member for member in dir(thing) if not member.startswith("_")} - inherited - INTERNAL
    assert name in known
    assert {member.removesuffix("_nanos") for member in members} <= known | SHORT


def rooms() -> list[str]:
    rows = re.findall(r"^\| (`.*?`) \|", INSIDE.partition("## The rooms")[2].partition("\n## ")[0], re.MULTILINE)
    return re.findall(r"`(\w+)`", " ".join(rows))


def test_the_table_of_rooms_has_every_module() -> None:
    modules = [name for _, name, _ in pkgutil.iter_modules([str(PACKAGE)]) if name != "__main__"]
    assert sorted(rooms()) == sorted(modules)


def test_a_room_imports_only_from_rooms_above_it_in_the_table() -> None:
    order = rooms()
    for room in order[: order.index("pool")]:
        tree = ast.parse((PACKAGE / f"{room}.py").read_text(encoding="utf-8"))
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        for node in imports:
            package, _, module = (node.module or "").partition(".")
            if package == "token_budget":
                for name in [module] if module else [alias.name for alias in node.names]:
                    assert order.index(name) < order.index(room), f"{room} imports {name}"


def modules() -> list[ModuleType]:
    names = [name for _, name, _ in pkgutil.iter_modules([str(PACKAGE)], "token_budget.")]
    return [token_budget, *[import_module(name) for name in names if name[-8:] != "__main__"]]


@pytest.mark.parametrize("module", [module for module in modules() if ">>> " in inspect.getsource(module)])
def test_the_examples_of_the_docstrings_are_true(module: ModuleType) -> None:
    tried = doctest.testmod(module, extraglobs=vars(token_budget) | {"module": module})
    assert tried.failed == 0
    assert tried.attempted > 0
