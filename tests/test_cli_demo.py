"""`token-budget demo`, run as people run it: the audit, the exit status, the output, Ctrl-C."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import runpy
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

import token_budget
from support import run_together
from token_budget import BudgetPool, Reservation
from token_budget.cli import _display, main
from token_budget.cli._audit import Caps, Outcome, audit
from token_budget.cli._display import NoProgress, PlainLines, RedrawnLine, progress_on
from token_budget.cli._fanout import FanOut
from token_budget.cli._workload import Call, Fate, Prices, Workload, plan, simulated_sizes
from token_budget.cli.demo import _one_ctrl_c

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(token_budget.__file__).parents[1])}
COMMAND = [sys.executable, "-m", "token_budget", "demo"]


def run_json(capsys: pytest.CaptureFixture[str], *options: str, status: int = 0) -> dict[str, Any]:
    """Run the demo without sleeping; return the one object that it prints."""
    assert main(["demo", "--speed", "max", "--json", *options]) == status
    captured = capsys.readouterr()
    assert captured.err == ""
    result: dict[str, Any] = json.loads(captured.out)
    return result


# ---------------------------------------------------------------------- the audit


def test_a_run_ends_with_an_audit_that_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys)
    assert result["agrees"] is True
    assert result["interrupted"] is False
    assert [check["ok"] for check in result["checks"]] == [True] * 7
    assert result["audit"]["spent_by_pool"]["tokens"] == result["audit"]["spent_by_ledger"]["tokens"]
    assert result["audit"]["spent_by_pool"]["usd_nanos"] == result["audit"]["spent_by_ledger"]["usd_nanos"]
    assert result["caps"]["usd_nanos"] == round(result["caps"]["usd"] * 1e9)
    assert result["options"]["speed"] == "max"


def test_a_default_run_shows_every_way_in_which_a_call_ends(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run_json(capsys)["audit"]
    for key in ("reserved", "refused", "finished", "longer_than_reserved", "failed_unbilled", "failed_billed"):
        assert lines[key]["calls"] > 0, key
    assert lines["cancelled"]["calls"] > 0
    assert lines["not_started"]["calls"] == 0
    ends = ("finished", "refused", "failed_unbilled", "failed_billed", "cancelled")
    assert sum(lines[key]["calls"] for key in ends) == 200


def test_answers_longer_than_reserved_overrun_the_cap_and_the_audit_knows(capsys: pytest.CaptureFixture[str]) -> None:
    # One worker, so that a seed decides; some of these overrun.
    overruns = 0
    for seed in range(5):
        result = run_json(capsys, "--workers", "1", "--seed", str(seed), "--usd-cap", "none")
        overruns += result["audit"]["overruns"]["calls"]
        if result["audit"]["overruns"]["calls"]:
            assert result["audit"]["spent_by_pool"]["tokens"] > result["caps"]["tokens"]
    assert overruns > 0


def test_one_worker_and_a_seed_decide_everything(capsys: pytest.CaptureFixture[str]) -> None:
    def run(seed: str) -> object:
        result = run_json(capsys, "--workers", "1", "--seed", seed)
        return [result["audit"], result["caps"], result["most_in_flight"]]

    assert run("7") == run("7")
    assert run("7") != run("8")


@pytest.mark.parametrize("calls", [0, 1, 2, 3, 4])
def test_few_calls_are_enough(capsys: pytest.CaptureFixture[str], calls: int) -> None:
    assert run_json(capsys, "--calls", str(calls))["agrees"]


def test_caps_and_prices_are_options(capsys: pytest.CaptureFixture[str]) -> None:
    unbounded = run_json(capsys, "--token-cap", "none", "--usd-cap", "none")
    assert unbounded["caps"] == {"tokens": None, "usd": None, "usd_nanos": None}
    assert unbounded["audit"]["refused"]["calls"] == 0
    closed = run_json(capsys, "--token-cap", "0", "--usd-cap", "auto")
    assert closed["audit"]["refused"]["calls"] == 200
    free = run_json(capsys, "--input-price", "0", "--output-price", "0", "--token-cap", "none")
    assert free["audit"]["spent_by_pool"]["usd_nanos"] == 0
    assert free["caps"]["usd"] == 0
    priced = run_json(capsys, "--usd-cap", "0.3", "--token-cap", "1000000")
    assert priced["caps"] == {"tokens": 1_000_000, "usd": 0.3, "usd_nanos": 300_000_000}
    assert priced["audit"]["refused"]["calls"] > 0


@pytest.fixture
def pool_that_loses_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Reservation.commit

    def commit_too_little(self: Reservation, *, tokens: int, usd: float) -> None:
        commit(self, tokens=tokens - 1, usd=usd)

    monkeypatch.setattr(Reservation, "commit", commit_too_little)


@pytest.mark.usefixtures("pool_that_loses_a_token")
@pytest.mark.parametrize("calls", ["2", "1"], ids=["in a thread", "in a task"])
def test_the_audit_fails_when_the_pool_loses_a_token(capsys: pytest.CaptureFixture[str], calls: str) -> None:
    result = run_json(capsys, "--calls", calls, "--token-cap", "none", "--usd-cap", "none", status=1)
    assert result["agrees"] is False
    assert [check["name"] for check in result["checks"] if not check["ok"]] == ["tokens used are what the ledger says"]


@pytest.mark.usefixtures("pool_that_loses_a_token")
def test_a_failed_audit_is_said_to_people_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--speed", "max", "--calls", "2", "--token-cap", "none", "--usd-cap", "none"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^  FAILED  tokens used are what the ledger says ", out, re.MULTILINE)
    assert out.endswith("\nThe audit FAILED in 1 of 7 checks.\n")


@pytest.mark.parametrize("calls", ["2", "1"], ids=["in a thread", "in a task"])
def test_a_worker_that_breaks_is_not_hidden(monkeypatch: pytest.MonkeyPatch, calls: str) -> None:
    def break_down(self: Reservation, **_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Reservation, "commit", break_down)
    with pytest.raises(ZeroDivisionError):
        main(["demo", "--speed", "max", "--calls", calls, "--token-cap", "none", "--usd-cap", "none"])


# ---------------------------------------------------------------------- traces


def test_a_trace_gives_the_sizes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    random = Random(1)
    rows = [(random.randrange(5000), random.randrange(300)) for _ in range(400)]
    csv = tmp_path / "trace.csv"
    csv.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"t,{a},{b}\n" for a, b in rows))
    lines = tmp_path / "trace.jsonl"
    lines.write_text("".join(json.dumps({"input": a, "out": b}) + "\n" for a, b in rows))
    from_csv = run_json(capsys, "--trace", str(csv), "--workers", "1")
    from_lines = run_json(
        capsys, "--trace", str(lines), "--workers", "1", "--input-column", "input", "--output-column", "out"
    )
    assert from_csv["audit"] == from_lines["audit"]
    assert from_csv["audit"]["refused"]["calls"] > 0
    assert from_csv["audit"]["longer_than_reserved"]["calls"] > 0
    total = sum(a + b for a, b in rows)
    assert 0.8 * total < from_csv["audit"]["spent_by_pool"]["tokens"] < total
    first = run_json(capsys, "--trace", str(csv), "--calls", "3", "--token-cap", "none", "--usd-cap", "none")
    assert sum(first["audit"][key]["calls"] for key in ("finished", "failed_billed", "failed_unbilled")) == 3


def test_a_bad_trace_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("input_tokens,output_tokens\n1,2\n1,many\n")
    assert main(["demo", "--trace", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"token-budget demo: error: {path}: line 3: output tokens must be")


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "0"], "argument --workers: must be a whole number from 1 to 1,000, not '0'"),
        (["--workers", "1001"], "argument --workers: must be"),
        (["--workers", "1.5"], "argument --workers: must be"),
        (["--calls", "-1"], "argument --calls: must be a whole number from 0 to 1,000,000, not '-1'"),
        (["--token-cap", "1.5"], "argument --token-cap: must be a whole number"),
        (["--token-cap", "-1"], "argument --token-cap: must be"),
        (["--usd-cap", "nan"], "argument --usd-cap: must be a number from 0 to 1,000,000,000, not 'nan'"),
        (["--usd-cap", "inf"], "argument --usd-cap: must be"),
        (["--usd-cap", "much"], "argument --usd-cap: must be"),
        (["--input-price", "inf"], "argument --input-price: must be"),
        (["--output-price", "-0.1"], "argument --output-price: must be"),
        (["--speed", "0"], "argument --speed: must be a number above 0, or max, not '0'"),
        (["--speed", "nan"], "argument --speed: must be"),
        (["--speed", "inf"], "argument --speed: must be"),
        (["--speed", "fast"], "argument --speed: must be"),
        (["--seed", "one"], "argument --seed: invalid int value: 'one'"),
    ],
)
def test_bad_options_are_refused_by_name(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["demo", *options])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_the_version_is_told_and_a_command_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"token-budget {token_budget.__version__}\n"
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 2


# ---------------------------------------------------------------------- what people see


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_a_header_plain_lines_and_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--speed", "20", "--calls", "40"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("token_budget demo: 40 calls, simulated, seed 1\n  caps     ")
    assert "\r" not in out
    assert "\x1b" not in out
    assert re.search(r"^threads 20/40 calls, 0 refused \| demo: tokens .* \| usd .* \| 0 in flight$", out, re.MULTILINE)
    assert re.search(r"^asyncio 40/40 calls, \d+ refused \| demo: tokens ", out, re.MULTILINE)
    assert re.search(r"^audit after \d+\.\d s +calls +tokens +USD$", out, re.MULTILINE)
    table = out[out.index("  reserved  ") : out.index("  most in flight")].splitlines()
    assert len(table) == 11
    assert {len(line) for line in table} == {len(table[0])}
    assert out.endswith("\nThe audit agrees in all 7 checks.\n")


def test_the_header_tells_what_was_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("input_tokens,output_tokens\n1,2\n")
    assert main(["demo", "--speed", "max", "--trace", str(path), "--token-cap", "none", "--usd-cap", "none"]) == 0
    out = capsys.readouterr().out
    assert f"1 calls, sizes from {str(path)!r}, seed 1\n" in out
    assert "  caps     no token cap, no USD cap\n" in out
    assert "as fast as it goes" in out


def test_a_terminal_gets_one_line_drawn_over_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["demo", "--speed", "20", "--calls", "40"]) == 0
    drawn = [line for line in terminal.getvalue().split("\n") if "\r" in line]
    assert len(drawn) == 1
    texts = drawn[0].split("\r")[1:]
    assert len(texts) > 2
    assert all(text.endswith("\x1b[K") and len(text) - len("\x1b[K") <= 59 for text in texts)
    assert texts[0].startswith("threads ")
    assert texts[-1].startswith("asyncio 40/40 calls, ")


def test_json_leaves_progress_to_a_terminal_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["demo", "--speed", "max", "--calls", "10", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["agrees"] is True
    assert terminal.getvalue().startswith("\rthreads ")
    assert terminal.getvalue().endswith("\x1b[K\n")


def test_progress_suits_the_stream() -> None:
    assert type(progress_on(Terminal())) is RedrawnLine
    assert type(progress_on(Terminal(), only_terminal=True)) is RedrawnLine
    assert type(progress_on(io.StringIO())) is PlainLines
    assert type(progress_on(io.StringIO(), only_terminal=True)) is NoProgress


def test_nothing_drawn_leaves_nothing_to_end() -> None:
    terminal = Terminal()
    RedrawnLine(terminal).close()
    assert terminal.getvalue() == ""


def test_plain_lines_come_each_half_second_and_at_milestones() -> None:
    now = 100.0
    stream = io.StringIO()
    lines = PlainLines(stream, clock=lambda: now)
    lines.show("too soon")
    now = 100.5
    lines.show("first")
    now = 100.9
    lines.show("too soon")
    lines.show("milestone", milestone=True)
    now = 101.3
    lines.show("too soon")
    now = 101.4
    lines.show("second")
    lines.close()
    assert stream.getvalue() == "first\nmilestone\nsecond\n"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals")
def test_a_line_is_cut_to_the_width_of_its_own_terminal() -> None:
    import fcntl
    import termios

    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    with os.fdopen(master, "rb", buffering=0) as reader, os.fdopen(slave, "w") as terminal:
        RedrawnLine(terminal).show("x" * 100)
        assert reader.read(1000) == b"\r" + b"x" * 39 + b"\x1b[K"
    assert _display._columns(io.StringIO()) > 0


# ---------------------------------------------------------------------- Ctrl-C


class CtrlC(NoProgress):
    """Progress that interrupts once a phase is under way, as Python does to the main thread."""

    def __init__(self, phase: str) -> None:
        self._phase = phase

    def show(self, text: str, *, milestone: bool = False) -> None:
        if text.startswith(self._phase) and " 0 in flight" not in text:
            raise KeyboardInterrupt


@pytest.mark.parametrize("phase", ["threads", "asyncio"])
def test_ctrl_c_ends_the_calls_in_flight_and_begins_no_more(phase: str) -> None:
    random = Random(3)
    workload = plan(simulated_sizes(40, random), Prices(3.0, 15.0), random)
    quick = [replace(call, connect_seconds=0.0, answer_seconds=0.0) for call in workload.in_threads]
    if phase == "asyncio":
        workload = Workload(quick, workload.in_tasks)
    fan_out = FanOut(BudgetPool(), workers=4, speed=0.2)
    assert fan_out.run(workload, CtrlC(phase)) is True
    result = audit(fan_out.ledger, fan_out.pool.snapshot(), Caps(None, None), calls=40, interrupted=True)
    assert result.agrees
    begun = len(fan_out.ledger.begun)
    assert fan_out.ledger.count(Outcome.CANCELLED) > 0
    assert result.lines["not_started"].calls == 40 - begun
    assert begun < 40
    assert (begun > 20) is (phase == "asyncio")


@pytest.mark.parametrize("phase", ["threads", "asyncio"])
def test_a_call_that_ctrl_c_cuts_after_it_was_sent_counts_as_much_as_was_reserved(phase: str) -> None:
    call = Call(0, 150, 0.0015, 120, 0.0012, connect_seconds=0, answer_seconds=60, fate=Fate.ANSWERED)
    fan_out = FanOut(BudgetPool(), workers=1, speed=1.0)
    workload = Workload([call], []) if phase == "threads" else Workload([], [call])
    assert fan_out.run(workload, CtrlC(phase)) is True
    assert fan_out.ledger.count(Outcome.CANCELLED) == 1
    snapshot = fan_out.pool.snapshot()
    assert (snapshot.tokens_used, snapshot.usd_used_nanos, snapshot.in_flight) == (150, 1_500_000, 0)


def test_ctrl_c_before_the_run_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("token_budget.cli.demo.plan", interrupt)
    assert main(["demo"]) == 130


@pytest.fixture
def sigint_not_ignored() -> Iterator[None]:
    """A child inherits an ignored SIGINT, as of a job in a shell's background; any handler becomes the default."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint_not_ignored")
def test_a_second_ctrl_c_counts_only_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("token_budget.cli.demo.time.monotonic", lambda: now)
    with _one_ctrl_c():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        now = 100.9
        signal.raise_signal(signal.SIGINT)
        now = 101.1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_is_left_to_a_program_that_handles_it_itself() -> None:
    def handle(*_: object) -> None:
        pass

    before = signal.signal(signal.SIGINT, handle)
    with _one_ctrl_c():
        assert signal.getsignal(signal.SIGINT) is handle
    signal.signal(signal.SIGINT, before)


def test_it_runs_in_any_thread(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_together(lambda: main(["demo", "--speed", "max", "--calls", "4", "--json"])) == [0]
    assert json.loads(capsys.readouterr().out)["agrees"] is True


@pytest.mark.skipif(sys.platform == "win32", reason="no process can send Ctrl-C to one other")
@pytest.mark.usefixtures("sigint_not_ignored")
@pytest.mark.parametrize(("phase", "calls"), [("threads", "2000"), ("asyncio", "1")])
def test_ctrl_c_ends_a_program_with_the_audit_so_far(phase: str, calls: str) -> None:
    command = [*COMMAND, "--speed", "0.02", "--calls", calls, "--token-cap", "none", "--usd-cap", "none"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        watchdog = threading.Timer(30, program.kill)
        watchdog.start()
        assert program.stdout is not None
        for line in program.stdout:
            if line.startswith(phase):
                break
        program.send_signal(signal.SIGINT)
        program.send_signal(signal.SIGINT)  # as of a launcher that passes on what the terminal has sent to all
        out, err = program.communicate()
        watchdog.cancel()
    assert program.returncode == 130
    assert err == ""
    assert "Traceback" not in out
    assert out.endswith("\nStopped by Ctrl-C. So far the audit agrees in all 7 checks.\n")


# ---------------------------------------------------------------------- the program


def test_python_m_token_budget_runs_it() -> None:
    done = subprocess.run(
        [*COMMAND, "--speed", "max", "--json"], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["agrees"] is True


def test_the_module_runs_only_when_it_is_the_program(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = importlib.import_module("token_budget.__main__")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys, "argv", ["token-budget", "demo", "--speed", "max", "--calls", "4", "--json"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(program.__file__), run_name="__main__")
    assert exit_.value.code == 0


def test_a_reader_that_goes_away_ends_it_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        assert main(["demo", "--speed", "max", "--calls", "4"]) == 1
