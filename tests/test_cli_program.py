"""The command line as a program: usage, exit statuses, output that cannot be written, and memory."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
import tracemalloc
from pathlib import Path
from random import Random

import pytest

from token_budget import BudgetPool
from token_budget.cli import demo, main
from token_budget.cli._audit import Caps, audit
from token_budget.cli._display import NoProgress
from token_budget.cli._fanout import FanOut
from token_budget.cli._workload import Prices, Workload, plan, simulated_sizes

PROGRAM = [sys.executable, "-m", "token_budget"]
DEMO = ["demo", "--speed", "max", "--calls", "4"]
METER_DEMO = ["meter-demo", "--client", "standard", "--calls", "2"]


def test_python_m_token_budget_runs_a_command() -> None:
    done = subprocess.run([*PROGRAM, "demo", "--speed", "max", "--json"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["agrees"] is True


def test_the_module_runs_only_when_it_is_the_program(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = importlib.import_module("token_budget.__main__")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys, "argv", ["token-budget", *DEMO, "--json"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(program.__file__), run_name="__main__")
    assert exit_.value.code == 0


# ---------------------------------------------------------------------- usage


@pytest.mark.parametrize("command", ["demo", "scopes", "meter-demo"])
@pytest.mark.parametrize("unknown", ["--bogus", "bogus"])
def test_an_unknown_option_shows_the_usage_of_its_command(
    capsys: pytest.CaptureFixture[str], command: str, unknown: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, unknown])
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"usage: token-budget {command} [-h]")
    assert captured.err.endswith(f"token-budget {command}: error: unrecognized arguments: {unknown}\n")


# ---------------------------------------------------------------------- output that cannot be written


def test_a_reader_that_goes_away_ends_the_program_without_a_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        assert main(DEMO) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX is used")
@pytest.mark.parametrize("command", ["demo --speed max", "demo --speed max --json", "scopes", "meter-demo --calls 2"])
def test_head_ends_a_program_without_a_message(command: str) -> None:
    # `head` exits before the first line. Output that is buffered until the end must not fail later either.
    line = f'{{ sleep 0.2; "$0" -m token_budget {command}; echo "status $?" >&2; }} | head -n 0'
    done = subprocess.run(["sh", "-c", line, sys.executable], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "status 1\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize(
    "command", [DEMO, [*DEMO, "--json"], ["scopes"], METER_DEMO], ids=["demo", "json", "scopes", "meter"]
)
@pytest.mark.parametrize("buffered", [True, False])
def test_a_full_disk_gives_one_line_on_standard_error(command: list[str], *, buffered: bool) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, *command], env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "token-budget: error: cannot write to standard output: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_is_reported_by_the_exit_status_of_main(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(DEMO) == 1
    assert capsys.readouterr().err.startswith("token-budget: error: cannot write to standard output: ")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX is used")
@pytest.mark.parametrize("command", ["demo", "scopes", "demo --json", "meter-demo"])
def test_a_closed_standard_output_gives_one_line_on_standard_error(command: str) -> None:
    line = f'"$0" -m token_budget {command} >&-'
    done = subprocess.run(["sh", "-c", line, sys.executable], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "token-budget: error: cannot write to standard output: it is closed\n"


def test_without_any_output_there_is_only_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(DEMO) == 1


def test_an_error_of_the_simulated_model_is_not_mistaken_for_an_output_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TimeoutError("timed out after it was sent: billed")

    monkeypatch.setattr(demo, "audit", fail)
    with pytest.raises(TimeoutError):
        main(DEMO)


# ---------------------------------------------------------------------- memory


@pytest.mark.parametrize("phase", ["threads", "asyncio"])
def test_memory_grows_by_a_few_bytes_a_call(phase: str) -> None:
    def peak(calls: int) -> int:
        """Return the most memory that planning, a run and its audit hold at once."""
        random = Random(1)
        tracemalloc.start()
        workload = plan(simulated_sizes(calls, random), calls, Prices(3.0, 15.0), random)
        one_phase = Workload(workload.in_threads, []) if phase == "threads" else Workload([], workload.in_tasks)
        fan_out = FanOut(BudgetPool(), Caps(None, None), workers=4, speed=float("inf"))
        fan_out.run(one_phase, NoProgress())
        audit(fan_out.ledger, fan_out.pool.snapshot(), calls=calls, interrupted=True)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(100)  # for what is imported and cached at first use
    few, many = peak(1000), peak(5000)
    assert (many - few) / 4000 < 200
