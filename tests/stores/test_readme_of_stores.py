"""The page of the stores: its programs run as written, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import token_budget
from redis_server import new_name, shared
from support import run_program
from token_budget.cli import main

PAGE = (Path(token_budget.__file__).parent / "stores" / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_of_the_page_runs_as_written(program: str, tmp_path: Path) -> None:
    server = f"redis.Redis(port={shared().port}, socket_timeout=2)"
    program = program.replace("redis.Redis(socket_timeout=2)", server).replace('"total"', f'"{new_name()}"')
    done = run_program(f"import os\nos.chdir({str(tmp_path)!r})\n{program}", "-W", "error")
    assert done.stderr == ""


def test_the_page_has_a_program_for_each_store_and_for_handing_over() -> None:
    words = ("SQLiteBudgetPool", "RedisBudgetPool", "hand_over")
    assert all(word in program for word, program in zip(words, PROGRAMS, strict=True))


@pytest.mark.parametrize("command", sorted(set(re.findall(r"token-budget ([a-z-]+)", PAGE))))
def test_a_command_of_the_page_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"token-budget {command}" in capsys.readouterr().out
