"""``token-budget stores-demo --join``: a process that spends from a budget that others spend from too."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from token_budget.cli import _stores_join, main
from token_budget.cli._stores_join import join

COMMAND = [sys.executable, "-m", "token_budget", "stores-demo", "--join"]


def test_two_processes_spend_from_one_budget_until_it_is_used_up(tmp_path: Path) -> None:
    path = str(tmp_path / "budget.db")
    with (
        subprocess.Popen([*COMMAND, path], stdout=subprocess.PIPE, text=True) as first,
        subprocess.Popen([*COMMAND, path], stdout=subprocess.PIPE, text=True) as second,
    ):
        outputs = [first.communicate(timeout=100)[0], second.communicate(timeout=100)[0]]
    assert (first.returncode, second.returncode) == (0, 0)
    calls = [int(re.findall(r"process \d+: (\d+) calls\. budget exceeded", output)[0]) for output in outputs]
    assert all(calls)
    assert sum(calls) == 49 or sum(calls) == 50  # the last that fits is held at 0.012 and costs 0.0099


def test_it_goes_on_where_a_budget_was_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "budget.db")
    join(path, sleep=lambda _: None)
    first = capsys.readouterr().out
    assert "50 calls. budget exceeded on usd in pool 'demo'" in first
    assert f"begin again: token-budget reset 'sqlite:{path}#demo'" in first
    join(f"sqlite:{path}#demo", sleep=lambda _: None)
    assert ": 0 calls. budget exceeded" in capsys.readouterr().out


def test_the_command_ends_with_0_when_the_budget_is_used_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_stores_join, "_TAKES", 0.0)
    assert main(["stores-demo", "--join", str(tmp_path / "budget.db")]) == 0
    assert "50 calls. budget exceeded" in capsys.readouterr().out


@pytest.mark.parametrize("others", [["--store", "sqlite"], ["--url", "redis://host/0"], ["--json"]])
def test_what_says_another_place_is_refused(others: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["stores-demo", "--join", "budget.db", *others])
    assert "--join says where the budget is" in capsys.readouterr().err


def test_a_text_that_says_no_place_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stores-demo", "--join", "nowhere://x#y"]) == 2
    assert "--join: " in capsys.readouterr().err


def test_a_store_that_cannot_keep_it_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "budget.db"
    path.write_text("a text, and no budget\n" * 100)
    assert main(["stores-demo", "--join", str(path)]) == 1
    assert "stores-demo: error:" in capsys.readouterr().err
