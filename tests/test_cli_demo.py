"""`token-budget demo`: the audit and the exit status, traces, options, Ctrl-C."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import token_budget
from support import run_together
from token_budget import BudgetPool, Reservation
from token_budget.cli import main
from token_budget.cli._audit import Caps, Outcome, audit
from token_budget.cli._display import NoProgress
from token_budget.cli._fanout import FanOut
from token_budget.cli._workload import Call, Fate, Prices, Workload, plan, simulated_sizes
from token_budget.cli.demo import _one_ctrl_c

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


def test_a_default_run_has_calls_that_end_in_each_way(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run_json(capsys)["audit"]
    for key in ("reserved", "refused", "finished", "longer_than_reserved", "failed_unbilled", "failed_billed"):
        assert lines[key]["calls"] > 0, key
    assert lines["cancelled"]["calls"] > 0
    assert lines["not_started"]["calls"] == 0
    ends = ("finished", "refused", "failed_unbilled", "failed_billed", "cancelled")
    assert sum(lines[key]["calls"] for key in ends) == 200


def test_answers_longer_than_reserved_overrun_the_cap_and_the_audit_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    # With one worker the seed decides everything; some of these runs overrun the cap.
    overruns = 0
    for seed in range(5):
        result = run_json(capsys, "--workers", "1", "--seed", str(seed), "--usd-cap", "none")
        overruns += result["audit"]["overruns"]["calls"]
        if result["audit"]["overruns"]["calls"]:
            assert result["audit"]["spent_by_pool"]["tokens"] > result["caps"]["tokens"]
    assert overruns > 0


def test_with_one_worker_the_seed_decides_everything(capsys: pytest.CaptureFixture[str]) -> None:
    def run(seed: str) -> object:
        result = run_json(capsys, "--workers", "1", "--seed", seed)
        return [result["audit"], result["caps"], result["most_in_flight"]]

    assert run("7") == run("7")
    assert run("7") != run("8")


@pytest.mark.parametrize("calls", [0, 1, 2, 3, 4])
def test_a_run_may_have_very_few_calls(capsys: pytest.CaptureFixture[str], calls: int) -> None:
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
def test_a_failed_audit_is_also_printed_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--speed", "max", "--calls", "2", "--token-cap", "none", "--usd-cap", "none"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^  FAILED  tokens used are what the ledger says: ", out, re.MULTILINE)
    assert "\nThe audit FAILED in 1 of 7 checks.\n" in out


@pytest.mark.parametrize("calls", ["2", "1"], ids=["in a thread", "in a task"])
def test_an_error_in_a_worker_is_raised(monkeypatch: pytest.MonkeyPatch, calls: str) -> None:
    def break_down(self: Reservation, **_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Reservation, "commit", break_down)
    with pytest.raises(ZeroDivisionError):
        main(["demo", "--speed", "max", "--calls", calls, "--token-cap", "none", "--usd-cap", "none"])


# ---------------------------------------------------------------------- traces


def test_the_sizes_come_from_the_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
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


def test_a_bad_trace_gives_one_line_on_standard_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
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
def test_a_bad_value_is_refused_by_its_option(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["demo", *options])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_the_version_is_printed_and_a_command_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"token-budget {token_budget.__version__}\n"
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 2


# ---------------------------------------------------------------------- Ctrl-C


class CtrlC(NoProgress):
    """Progress that raises KeyboardInterrupt during a phase, as Python does in the main thread."""

    def __init__(self, phase: str) -> None:
        self._phase = phase

    def show(self, text: str, *, milestone: bool = False) -> None:
        if text.startswith(self._phase) and " 0 in flight" not in text:
            raise KeyboardInterrupt


@pytest.mark.parametrize("phase", ["threads", "asyncio"])
def test_ctrl_c_ends_the_calls_in_flight_and_begins_no_others(phase: str) -> None:
    random = Random(3)
    workload = plan(simulated_sizes(40, random), 40, Prices(3.0, 15.0), random)
    quick = [call._replace(connect_seconds=0.0, answer_seconds=0.0) for call in workload.in_threads]
    if phase == "asyncio":
        workload = Workload(quick, workload.in_tasks)
    fan_out = FanOut(BudgetPool(), Caps(None, None), workers=4, speed=0.2)
    assert fan_out.run(workload, CtrlC(phase)) is True
    result = audit(fan_out.ledger, fan_out.pool.snapshot(), calls=40, interrupted=True)
    assert result.agrees
    begun = sum(len(page.begun) for page in fan_out.ledger.pages)
    assert fan_out.ledger.count(Outcome.CANCELLED) > 0
    assert result.lines["not_started"].calls == 40 - begun
    assert begun < 40
    assert (begun > 20) is (phase == "asyncio")


@pytest.mark.parametrize("phase", ["threads", "asyncio"])
def test_a_call_that_ctrl_c_ends_after_it_was_sent_is_charged_what_was_reserved(phase: str) -> None:
    call = Call(0, 150, 0.0015, 120, 0.0012, connect_seconds=0, answer_seconds=60, fate=Fate.ANSWERED)
    fan_out = FanOut(BudgetPool(), Caps(None, None), workers=1, speed=1.0)
    workload = Workload([call], []) if phase == "threads" else Workload([], [call])
    assert fan_out.run(workload, CtrlC(phase)) is True
    assert fan_out.ledger.count(Outcome.CANCELLED) == 1
    snapshot = fan_out.pool.snapshot()
    assert (snapshot.tokens_used, snapshot.usd_used_nanos, snapshot.in_flight) == (150, 1_500_000, 0)


def test_ctrl_c_before_the_run_gives_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("token_budget.cli.demo.plan", interrupt)
    assert main(["demo"]) == 130


@pytest.fixture
def sigint_not_ignored() -> Iterator[None]:
    """Give children the default handler: a job in a shell's background ignores SIGINT, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint_not_ignored")
def test_a_second_ctrl_c_within_a_second_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_handler_of_ctrl_c_that_the_program_has_set_stays() -> None:
    def handle(*_: object) -> None:
        pass

    before = signal.signal(signal.SIGINT, handle)
    with _one_ctrl_c():
        assert signal.getsignal(signal.SIGINT) is handle
    signal.signal(signal.SIGINT, before)


def test_the_demo_runs_in_any_thread(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_together(lambda: main(["demo", "--speed", "max", "--calls", "4", "--json"])) == [0]
    assert json.loads(capsys.readouterr().out)["agrees"] is True


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send Ctrl-C to just one other process")
@pytest.mark.usefixtures("sigint_not_ignored")
@pytest.mark.parametrize(("phase", "calls"), [("threads", "2000"), ("asyncio", "1")])
def test_ctrl_c_ends_a_program_with_the_audit_so_far(phase: str, calls: str) -> None:
    command = [*COMMAND, "--speed", "0.02", "--calls", calls, "--token-cap", "none", "--usd-cap", "none"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        watchdog = threading.Timer(30, program.kill)
        watchdog.start()
        assert program.stdout is not None
        for line in program.stdout:
            if line.startswith(phase):
                break
        program.send_signal(signal.SIGINT)
        program.send_signal(signal.SIGINT)  # as a launcher that passes on the terminal's signal does
        out, err = program.communicate()
        watchdog.cancel()
    assert program.returncode == 130
    assert err == ""
    assert "Traceback" not in out
    assert out.endswith("\nStopped by Ctrl-C. So far the audit agrees in all 7 checks.\n")
