"""``token-budget meter-demo``: both clients, what it prints, that each of its checks can fail, and Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from support import run_program
from token_budget import BudgetExceeded, BudgetPool
from token_budget.cli import _meter_calls, _provider, main, meter_demo
from token_budget.cli._meter_audit import Books
from token_budget.cli._meter_calls import LIMIT, PRICES, Job, Outcome, TurnedAway, cost, outcome_of, plan
from token_budget.cli._provider import RATES, Provider, Rate
from token_budget.metering import Meter, Prices, Usage

STANDARD = ["meter-demo", "--client", "standard", "--calls", "40"]
JOB = Job(number=0, model="house-small", prompt="hello", fault=None, stream=False)
OTHER = Job(number=1, model="house-small", prompt="x", fault=None, stream=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the provider answer sooner."""
    monkeypatch.setattr(meter_demo, "_LATENCY", 0.01)


def shown(capsys: pytest.CaptureFixture[str], *options: str, status: int = 0) -> Any:
    """Run the demo and return its JSON."""
    assert main([*STANDARD, "--json", *options]) == status
    return json.loads(capsys.readouterr().out)


# ---------------------------------------------------------------- both clients


def test_the_books_agree_with_the_standard_library_alone(capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(capsys)
    assert (told["agrees"], told["client"], told["options"]["calls"]) == (True, "standard", 40)
    assert list(told["parts"]) == ["threads", "tasks"]
    for part in told["parts"].values():
        audit = part["audit"]
        assert 0 < part["peak_usd_nanos"] <= part["cap_usd_nanos"]
        assert audit["billed"]["usd_nanos"] <= audit["counted"]["usd_nanos"] <= part["cap_usd_nanos"]
        assert audit["settled"]["calls"] > 0
        assert all(check["ok"] for check in part["checks"])
    assert [len(part["checks"]) for part in told["parts"].values()] == [10, 11]


def test_the_books_agree_with_the_openai_sdk(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai")
    told = shown(capsys, "--client", "auto", "--usd-cap", "1")
    assert (told["agrees"], told["client"].partition(" ")[0]) == (True, "openai")
    for part in told["parts"].values():
        audit = part["audit"]
        assert audit["refused"]["calls"] == 0
        assert audit["settled"]["calls"] == 32
        assert audit["charged"]["calls"] == 6
        assert audit["released"]["calls"] == 6 + 2 * 3
    assert main(["meter-demo", "--client", "openai", "--calls", "2"]) == 0
    assert "\n  client   openai " in capsys.readouterr().out


@pytest.mark.parametrize("cap", ["0", "0.0001", "1"])
def test_whatever_the_cap_is(capsys: pytest.CaptureFixture[str], cap: str) -> None:
    told = shown(capsys, "--usd-cap", cap)
    refused = [part["audit"]["refused"]["calls"] for part in told["parts"].values()]
    assert told["agrees"]
    if cap == "0":
        assert refused == [40, 40]
    elif cap == "1":  # all calls come to their own ends
        assert refused == [0, 0]
        for part in told["parts"].values():
            assert [part["audit"][key]["calls"] for key in ("settled", "charged", "released")] == [32, 6, 12]
    else:
        assert 0 < min(refused) <= max(refused) < 40


def test_it_prints_both_halves_and_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*STANDARD, "--seed", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("token_budget meter-demo: 40 calls at once in threads, then in tasks, seed 2\n  client   of ")
    assert "\n40 threads, meter.call() around each request\n" in out
    assert "\n40 tasks, meter.call() in budget_run()\n" in out
    assert "\n  run 'tasks': " in out
    assert out.count("\n  ok      ") == 21
    assert out.endswith(" s: the books agree in all of 21 checks.\n")
    assert all(len(line) < 80 for line in out.splitlines())


def test_the_sdk_is_taken_if_it_is_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(meter_demo, "_installed", lambda: False)
    assert main(["meter-demo", "--client", "openai"]) == 2
    assert capsys.readouterr().err == (
        "token-budget meter-demo: error: the openai SDK is not installed: pip install openai\n"
    )
    assert main(["meter-demo", "--calls", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["client"] == "standard"


@pytest.mark.parametrize("options", [["--calls", "0"], ["--calls", "1001"], ["--usd-cap", "-1"], ["--client", "x"]])
def test_bad_options_are_told(capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["meter-demo", *options])
    assert exit_.value.code == 2
    assert "usage: token-budget meter-demo " in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such limit")
def test_a_low_limit_of_open_files_is_raised_meanwhile() -> None:
    program = """
import resource, sys
from token_budget.cli import main
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
status = main(["meter-demo", "--client", "standard", "--calls", "100", "--usd-cap", "1", "--json"])
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (64, hard)
sys.exit(status)
"""
    done = run_program(program, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["parts"]["threads"]["requests_at_once"] > 40


ENDLESS = -1


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "got"),
    [
        (512, 4096, 256, 512),
        (512, 4096, 513, 513),
        (512, 4096, 10**9, 4096),
        (512, ENDLESS, 10**9, 10**9),
        (ENDLESS, ENDLESS, 10**9, ENDLESS),
    ],
)
def test_the_limit_is_raised_to_what_is_needed_and_never_above_the_hard_one(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, wanted: int, got: int
) -> None:
    limits = [(soft, hard)]
    double = SimpleNamespace(
        RLIMIT_NOFILE=7,
        RLIM_INFINITY=ENDLESS,
        getrlimit=lambda _: limits[-1],
        setrlimit=lambda _, pair: limits.append(pair),
    )
    monkeypatch.setitem(sys.modules, "resource", double)
    with meter_demo._open_files(wanted):
        assert limits[-1] == (got, hard)
    assert limits[-1] == (soft, hard)


def test_where_there_is_no_such_limit_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    with meter_demo._open_files(10**9):
        pass


def test_sockets_that_cannot_be_had_end_it_with_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(_provider, "_Server", fail)
    assert main([*STANDARD, "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "token-budget meter-demo: error: [Errno 24] Too many open files\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no signal of POSIX")
def test_ctrl_c_ends_it_soon() -> None:
    command = [sys.executable, "-m", "token_budget", "meter-demo", "--client", "standard", "--calls", "1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        program.stdout.readline()
        time.sleep(0.5)
        program.send_signal(signal.SIGINT)
        _, complaints = program.communicate(timeout=30)
    assert program.returncode == 130
    assert complaints == ""


# ---------------------------------------------------------------- the calls


def test_the_same_seed_plans_the_same_calls() -> None:
    jobs = plan(200, Random(7))
    assert jobs == plan(200, Random(7)) != plan(200, Random(8))
    assert [job.number for job in jobs] == list(range(200))
    assert sum(job.fault == "hang" for job in jobs) == 10
    assert {job.fault for job in jobs} == {None, "gzip", "429-once", "500", "cut", "no-usage", "hang"}
    assert cost(jobs) == sum(cost([job]) for job in jobs) > 0


def test_the_two_tables_of_prices_say_the_same() -> None:
    prices = Prices(PRICES)
    usage = Usage(input_tokens=1_000_000, output_tokens=1_000_000, cache_read_input_tokens=400_000)
    for model in PRICES:
        rate = RATES[model]
        expected = 600_000 * rate.input + 400_000 * rate.cached + 1_000_000 * rate.output
        assert prices.nanos(model, usage) == expected


def test_how_a_call_ended_is_told_by_its_error() -> None:
    refused = BudgetExceeded("planned")
    wrapped = ConnectionError("planned")
    wrapped.__cause__ = refused
    assert [outcome_of(error) for error in (None, refused, wrapped, TurnedAway(500, 0), OSError())] == [
        Outcome.ANSWERED,
        Outcome.REFUSED,
        Outcome.REFUSED,
        Outcome.FAILED,
        Outcome.BROKEN,
    ]


# ---------------------------------------------------------------- what makes the audit fail


def test_a_provider_that_bills_more_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dearer = {name: Rate(rate.input * 9, rate.output * 9, rate.cached) for name, rate in RATES.items()}
    monkeypatch.setattr(_provider.Provider.__init__, "__defaults__", (dearer,))
    assert main(STANDARD) == 1
    out = capsys.readouterr().out
    assert re.search(r": the books DO NOT AGREE in [4-6] of 21 checks\.\n$", out)
    assert "\n  FAILED  what was counted is at least what was billed: " in out
    assert "\n  FAILED  where no call broke, both are equal: " in out
    assert shown(capsys, status=1)["agrees"] is False


def test_a_client_that_takes_broken_calls_for_unsent_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    post = _meter_calls.post

    def forgiving(url: str, job: Job) -> Any:
        try:
            return post(url, job)
        except OSError as error:
            raise TurnedAway(503, 0) from error

    monkeypatch.setattr(_meter_calls, "post", forgiving)
    failed = {
        check["name"]
        for part in shown(capsys, "--usd-cap", "1", status=1)["parts"].values()
        for check in part["checks"]
        if not check["ok"]
    }
    assert "every call ended once, and as it should" in failed


@contextlib.contextmanager
def books() -> Iterator[Books]:
    """Give the books of one call that went well."""
    pool = BudgetPool(usd_cap=1)
    meter = Meter(pool, PRICES)
    with Provider() as provider:
        made = Books(provider, meter, pool)
        with _meter_calls.standard_client(provider.url, meter) as call:
            made.make(call, JOB)
        made.look()
        yield made


def failed(made: Books, calls: int = 1) -> list[str]:
    return [check.name for check in made.checks(calls) if not check.ok]


def _spent(made: Books) -> None:
    made.pool.record(usd=0.1)


def _peak(made: Books) -> None:
    made.peak = 10**9 + 1


def _bug(made: Books) -> None:
    made.make(lambda _: json.loads("{"), OTHER)


def _twice(made: Books) -> None:
    made.ended.append(made.ended[0])


def _refused_with_room(made: Books) -> None:
    def refuse(job: Job) -> str:
        raise BudgetExceeded("planned")

    made.make(refuse, OTHER)
    made.records.append(SimpleNamespace(status="refused", tokens=0, usd_nanos=0))  # type: ignore[arg-type]


def _refused(made: Books) -> None:
    _refused_with_room(made)
    made.peak = 10**9 - OTHER.most + 1


def _changed(made: Books) -> None:
    made.make(lambda _: "The sky is green.", OTHER)


def _failed(made: Books) -> None:
    made.provider.errors.append(IndexError())


def _charged_less(made: Books) -> None:
    usage = Usage(input_tokens=10_000, output_tokens=LIMIT - 1)
    made.records.append(SimpleNamespace(status="charged", tokens=0, usd_nanos=0, usage=usage))  # type: ignore[arg-type]


def _sent_later(made: Books) -> None:
    _refused(made)
    made.provider.requests.append(made.ended[1].job.path)


def _without_room(made: Books) -> None:
    made.provider.requests.append("/v1/chat/completions?call=9")


def _swallowed(made: Books) -> None:
    made.records.append(SimpleNamespace(status="refused", tokens=0, usd_nanos=0))  # type: ignore[arg-type]


def _report(made: Books) -> None:
    final = made.pool.snapshot()
    made.report = {"usd_nanos": final.usd_used_nanos, "tokens": final.tokens_used, "refused": 1, "call_count": 1}


def _broken(made: Books) -> None:
    made.provider.bills.append(replace(made.provider.bills[0], faults=frozenset({"cut"})))
    made.provider.requests.append("/v1/chat/completions?call=9")
    made.records.append(SimpleNamespace(status="released", tokens=0, usd_nanos=0))  # type: ignore[arg-type]


COUNTED = "what was counted is at least what was billed"
BROKE = "where one broke, it is charged in full"
AWAY = "where one was turned away, nothing is counted"
SENT = "no request was sent without room, or after a refusal"
ENDED = "every call ended once, and as it should"
ROOM = "a call was refused only where it did not fit"


@pytest.mark.parametrize(
    ("spoil", "calls", "names"),
    [
        (lambda _: None, 1, []),
        (_refused, 2, []),
        (_refused_with_room, 2, [ROOM]),
        (_changed, 2, [ENDED]),
        (_failed, 1, [ENDED]),
        (_charged_less, 1, [BROKE]),
        (_spent, 1, ["the pool counts what the meter told"]),
        (_peak, 1, ["used and reserved were never above the cap"]),
        (_bug, 2, [ENDED]),
        (_twice, 2, [ENDED]),
        (lambda _: None, 2, [ENDED]),
        (_broken, 1, [COUNTED, BROKE]),
        (_sent_later, 2, [AWAY, SENT]),
        (_without_room, 1, [AWAY, SENT]),
        (_swallowed, 1, [SENT]),
        (_report, 1, ["the run's own report says the same"]),
    ],
)
def test_each_check_can_fail(spoil: Callable[[Books], None], calls: int, names: list[str]) -> None:
    with books() as made:
        spoil(made)
        assert failed(made, calls) == names


def test_what_is_still_held_is_found() -> None:
    with books() as made, made.pool.reserve(usd=0.1):
        assert failed(made) == ["nothing is reserved at the end"]


def test_a_call_that_ends_oddly_is_named() -> None:
    with books() as made:
        _bug(made)
        (check,) = [check for check in made.checks(2) if not check.ok]
    assert "; call 1 (no fault) broken: JSONDecodeError(" in check.detail


def test_the_peak_is_seen_while_calls_are_in_flight() -> None:
    with books() as made, made.watched(), made.pool.reserve(usd=0.5):
        time.sleep(0.1)
    assert made.peak >= 500_000_000
    assert made.looks > 2
