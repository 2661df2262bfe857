"""`token-budget run`: what does not fit is refused before it is forwarded, and the report is the provider's books."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capped import CALL, HELD, PRICES, Runner, cap_for, clean_environment, outcome, python
from support import run_program
from token_budget.cli import main, run
from token_budget.cli._provider import Provider
from token_budget.cli._run_options import MISMATCH, NO_GATEWAY, NO_REPORT, REQUIRED, UNAVAILABLE
from token_budget.metering import Meter
from token_budget.metering._prices import Prices

for _library in ("aiohttp", "psutil", "truststore"):
    pytest.importorskip(_library)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean_environment(monkeypatch, tmp_path)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider
        assert provider.errors == []


@pytest.fixture
def runner(provider: Provider, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Runner:
    return Runner(provider, tmp_path, capfd)


def test_codex_finds_its_provider_where_the_users_environment_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    codex = tmp_path / "codex"
    codex.write_text('#!/bin/sh\nfor part; do echo "$part"; done\n', encoding="ascii")
    codex.chmod(0o755)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/team")  # of another ending than the usual /v1
    assert main(["run", "--usd", "1", "--", str(codex)]) == 0
    (url,) = (line for line in capfd.readouterr().out.splitlines() if "base_url=" in line)
    assert url.endswith('/-/openai"')


def books_agree(report: dict[str, Any], provider: Provider) -> None:
    """Assert that what was spent is what was billed, to the nanodollar, and that nothing is held."""
    tokens = sum(provider.billed)
    assert (report["spent"]["usd_nanos"], report["spent"]["tokens"]) == (provider.billed_nanos, tokens)
    assert report["held"] == {"usd": 0.0, "usd_nanos": 0, "tokens": 0}
    assert (report["pool"]["in_flight"], report["pool"]["usd_reserved_nanos"]) == (0, 0)


# ---------------------------------------------------------------- spending


def test_a_call_that_fits_is_counted_to_the_nanodollar(runner: Runner, provider: Provider) -> None:
    ran = runner.here("--usd", "1", program="for _ in range(3): print(call()[0])")
    assert (ran.code, ran.out) == (0, "200\n200\n200\n")
    assert len(provider.bills) == 3
    assert provider.billed_nanos == 3 * CALL
    books_agree(ran.report, provider)
    assert (ran.report["calls"], ran.report["refused"], ran.report["exit_code"]) == (3, 0, 0)
    assert ran.report["by_model"]["house-small"]["usd_nanos"] == 3 * CALL
    assert 0 < ran.report["seconds"] < 60
    assert re.fullmatch(r"token-budget: \$0.0000144 of \$1.00 and 33 tokens spent, 3 calls, \d+\.\d s\n", ran.err)


def test_a_call_that_does_not_fit_never_leaves_this_machine(runner: Runner, provider: Provider) -> None:
    ran = runner.here("--usd", "0.000001", program="print(*call()); print(call()[0], call('Who?', stream=True)[0])")
    status, _, body = ran.out.partition(" ")
    first, second = body.splitlines()
    assert status == "402"
    assert json.loads(first)["error"]["code"] == "budget_exceeded"
    assert second == "400 402"  # the same body again, and another one
    assert provider.requests == []
    assert (ran.report["calls"], ran.report["refused"], ran.report["spent"]["usd_nanos"]) == (0, 3, 0)
    assert (ran.code, ran.report["exit_code"]) == (0, 0)
    assert ran.err.endswith("; cap reached: usd of the run\n")
    assert "warning" not in ran.err


def test_thirty_two_calls_at_once_on_a_cap_for_ten_are_ten(runner: Runner, provider: Provider) -> None:
    ran = runner.here("--usd", cap_for(10), program="print(*at_once(32))")
    statuses = ran.out.split()
    assert statuses.count("200") == len(provider.bills) == 10
    assert set(statuses) <= {"200", "400", "402"}
    books_agree(ran.report, provider)
    assert (ran.report["calls"], ran.report["refused"]) == (10, 22)


def test_without_waiting_calls_that_find_the_budget_busy_are_refused_at_once(
    runner: Runner, provider: Provider
) -> None:
    provider.latency = 0.5
    ran = runner.here("--usd", cap_for(2), "--wait", "0", program="print(*at_once(4))")
    assert ran.out.split().count("200") == 1
    books_agree(ran.report, provider)


def test_tokens_are_capped_too(runner: Runner, provider: Provider) -> None:
    ran = runner.here("--tokens", "88", program="for _ in range(3): print(call()[0])")
    assert ran.out.split() == ["200", "200", "402"]
    assert sum(provider.billed) == ran.report["spent"]["tokens"] == 22
    assert "cap reached: tokens of the run" in ran.err


def test_streams_are_counted_and_arrive_whole(runner: Runner, provider: Provider) -> None:
    ran = runner.here("--usd", "1", program="print(call(stream=True)[1])")
    assert ran.out.rstrip().endswith("data: [DONE]")
    assert '"usage": {' not in ran.out  # it was asked for by the gateway, not by the program
    books_agree(ran.report, provider)


def test_the_base_url_of_the_environment_becomes_the_upstream(
    runner: Runner, provider: Provider, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{provider.url}/company/v1")
    program = "import os\nprint(os.environ['OPENAI_BASE_URL'])\nprint(call()[0])"
    assert main(["run", "--usd", "1", *PRICES, "--", *python(program)]) == 0
    url, status = capfd.readouterr().out.split()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}/openai/v1", url)
    assert status == "200"
    assert provider.requests == ["/company/v1/chat/completions"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_is_capped(runner: Runner, provider: Provider) -> None:
    body = json.dumps({"model": "house-small", "max_tokens": 13, "messages": [{"role": "user", "content": "Why?"}]})
    script = (
        'for i in 1 2 3; do curl -sS -o answer.json -w "%{http_code} " -H "content-type: application/json" '
        f"-d '{body}' \"$OPENAI_BASE_URL/chat/completions\"; done"
    )
    ran = runner.here("--usd", cap_for(1), program=["sh", "-c", script])
    assert ran.out.split() == ["200", "402", "400"]
    books_agree(ran.report, provider)


def test_a_model_without_a_price_and_a_request_that_cannot_be_bounded_are_refused(
    runner: Runner, provider: Provider
) -> None:
    program = "print(call(model='nobodys-model')[0], call(path='/images/generations')[0])"
    ran = runner.here("--usd", "1", program=program)
    assert ran.out == "400 403\n"
    assert provider.requests == []
    assert ran.report["refused"] == 2
    ran = runner.here("--usd", "1", "--price", "nobodys-*=1,4", "--allow-unmetered", program=program)
    assert ran.out == "200 404\n"
    books_agree(ran.report, provider)


def test_the_output_can_be_capped_by_the_gateway(runner: Runner, provider: Provider) -> None:
    program = "print(call(tokens=None)[0])"
    assert runner.here("--usd", "0.0001", program=program).out == "402\n"
    assert runner.here("--usd", "0.0001", "--default-output", "20", program=program).out == "200\n"
    assert runner.here("--usd", "0.0002", "--cap-output", "fit", program=program).out == "200\n"
    assert (
        runner.here("--usd", "0.0001", "--cap-output", "yes", "--default-output", "3", program=program).out == "200\n"
    )
    assert [bill.output_tokens for bill in provider.bills] == [7, 7, 3]


# ---------------------------------------------------------------- what goes wrong at the provider


FAULTS = (
    "reset",
    "reset-mid",
    "cut",
    "no-usage",
    "null-usage",
    "negative",
    "huge",
    "html",
    "truncated",
    "slow",
    "gzip",
)
EXACT = {"slow", "gzip"}  # the usage arrives
ASK_WITH_EACH = """
for fault in sys.argv[2:]:
    print(fault, call(fault=fault, stream=sys.argv[1] == "stream")[0], got("/_status")["usd_nanos"])
print(call("Who?")[0])
"""


@pytest.mark.parametrize("how", ["whole", "stream"])
def test_nothing_is_held_and_nothing_is_free_whatever_the_provider_does(
    runner: Runner, provider: Provider, how: str
) -> None:
    provider.pace = 0.001
    ran = runner.here("--usd", "1", program=[*python(ASK_WITH_EACH), how, *FAULTS])
    *lines, after = ran.out.splitlines()
    before = 0
    for line, bill in zip(lines, provider.bills, strict=False):
        fault, _, spent = line.split()
        charged, before = int(spent) - before, int(spent)
        assert charged == bill.nanos if fault in EXACT else HELD <= charged < 1.2 * HELD, fault
    assert after == "200"
    assert ran.report["calls"] == len(provider.bills) == len(lines) + 1 == len(FAULTS) + 1
    assert (ran.report["held"]["usd_nanos"], ran.report["pool"]["in_flight"]) == (0, 0)


def test_a_status_of_an_error_costs_nothing(runner: Runner, provider: Provider) -> None:
    ran = runner.here("--usd", "1", program="print(call(fault='500')[0], call(fault='429')[0])")
    assert ran.out == "500 429\n"
    assert provider.bills == []
    assert (ran.report["spent"]["usd_nanos"], ran.report["held"]["usd_nanos"]) == (0, 0)
    assert "no call" not in ran.err


def test_a_program_that_gives_up_on_a_provider_that_hangs_is_charged_in_full(
    runner: Runner, provider: Provider
) -> None:
    ran = runner.here("--usd", "1", program="print(*call(fault='hang', timeout=0.2))")
    assert ran.out == "0 TimeoutError\n"
    assert ran.report["spent"]["usd_nanos"] == HELD
    assert ran.report["held"]["usd_nanos"] == 0


# ---------------------------------------------------------------- scopes


def test_runs_share_a_pool_and_its_caps_stay(runner: Runner, provider: Provider) -> None:
    pool = ("--pool", f"sqlite:{runner.folder / 'b.db'}#team")
    first = runner.here(*pool, "--usd", cap_for(1), program="print(call()[0])")
    second = runner.here(*pool, program="print(call('Who?')[0], call('When?')[0])")
    assert first.out == "200\n"
    assert second.out == "402 402\n"
    assert second.err.endswith("cap reached: usd of pool 'team'\n")
    assert (first.report["pool"]["name"], first.report["pool"]["usd_cap_nanos"]) == ("team", HELD)
    assert second.report["pool"]["usd_used_nanos"] == provider.billed_nanos == CALL
    assert second.report["spent"]["usd_nanos"] == 0
    assert first.report["spent"]["usd_nanos"] == CALL


def test_two_runs_at_once_never_oversell_their_pool(runner: Runner, provider: Provider) -> None:
    options = ("--pool", f"sqlite:{runner.folder / 'b.db'}#team", "--usd", cap_for(10))
    path, process = runner.apart(*options, program="print(*at_once(16))")
    here = runner.here(*options, program="print(*at_once(16))")
    apart = outcome(path, process)
    statuses = here.out.split() + apart.out.split()
    assert len(statuses) == 32
    assert statuses.count("200") == len(provider.bills) == 10
    assert sum(ran.report["spent"]["usd_nanos"] for ran in (here, apart)) == provider.billed_nanos
    latest = max((here.report["pool"], apart.report["pool"]), key=lambda pool: int(pool["usd_used_nanos"]))
    assert latest["usd_used_nanos"] == provider.billed_nanos
    assert (here.report["held"]["usd_nanos"], apart.report["held"]["usd_nanos"]) == (0, 0)


def test_a_job_is_a_budget_of_its_own_inside_the_pool(runner: Runner, provider: Provider) -> None:
    pool = ("--pool", f"sqlite:{runner.folder / 'b.db'}#team")
    runner.here(*pool, "--usd", "1", program="print(call()[0])")
    nightly = runner.here(*pool, "--job", "nightly", "--usd", cap_for(1), program="print(call()[0], call('Who?')[0])")
    assert nightly.out == "200 402\n"
    assert nightly.err.endswith("cap reached: usd of job 'nightly'\n")
    assert "of $0.0000174 and" in nightly.err
    assert nightly.report["pool"]["usd_cap_nanos"] == 10**9
    assert nightly.report["pool"]["usd_used_nanos"] == 2 * CALL
    assert [child["name"] for child in nightly.report["pool"]["children"]] == ["nightly"]
    assert nightly.report["pool"]["children"][0]["usd_used_nanos"] == CALL
    again = runner.here(*pool, "--job", "nightly", program="print(call()[0])")
    assert again.out == "402\n"
    assert "of $0.0000174 and" not in again.err


def test_a_pool_may_be_in_redis(runner: Runner, provider: Provider) -> None:
    from redis_server import new_name, shared

    store = f"redis://127.0.0.1:{shared().port}/0#{new_name()}"
    ran = runner.here("--pool", store, "--usd", cap_for(3), program="print(*at_once(8))")
    assert ran.out.split().count("200") == len(provider.bills) == 3
    assert runner.here("--pool", store, program="print(call()[0])").out == "402\n"
    books_agree(ran.report, provider)


def test_each_user_has_a_budget_beside_the_pools(runner: Runner, provider: Provider) -> None:
    pool = ("--pool", f"sqlite:{runner.folder / 'b.db'}#team", "--usd", "1", "--user-usd", cap_for(1))
    program = "print(call()[0], call('Who?')[0])"
    ann = runner.here(*pool, "--user", "ann", "--job", "x", program=program)
    bob = runner.here(*pool, "--user", "bob", "--job", "x", program=program)
    assert (ann.out, bob.out) == ("200 402\n", "200 402\n")
    assert ann.err.endswith("cap reached: usd of user 'user:ann'\n")
    assert [child["name"] for child in bob.report["pool"]["children"]] == ["x", "user:bob"]
    assert bob.report["pool"]["usd_used_nanos"] == provider.billed_nanos == 2 * CALL


def test_a_cap_for_a_period_begins_anew_with_it(runner: Runner) -> None:
    ran = runner.here("--usd", "1", "--per", "day", program="print(call()[0])")
    assert ran.report["pool"]["resets_at"] > ran.report["pool"]["window_start"]
    assert "of $1.00" not in ran.err  # it is the day's, and not the run's
    store = f"sqlite:{runner.folder / 'b.db'}#team"
    ran = runner.here("--pool", store, "--usd", "1", "--per", "every 5h", program="print(call()[0])")
    assert ran.report["pool"]["resets_at"] is not None


def test_a_run_in_a_run_spends_from_both(runner: Runner, provider: Provider) -> None:
    inner = [sys.executable, "-m", "token_budget", "run", "--usd", cap_for(1), *PRICES, "--progress", "off", "--"]
    ran = runner.here("--usd", cap_for(2), program=[*inner, *python("print(call()[0], call('Who?')[0])")])
    assert (ran.code, ran.out) == (0, "200 402\n")
    assert (ran.report["calls"], ran.report["refused"], len(provider.bills)) == (1, 0, 1)
    books_agree(ran.report, provider)


# ---------------------------------------------------------------- guards and the end


@pytest.mark.parametrize(
    ("guard", "program"),
    [
        (["--repeats", "2"], "for _ in range(4): print(call()[0])"),
        (["--calls-per-minute", "2"], "for _ in range(4): print(call(str(_))[0])"),
        (["--growth", "0.5,3"], "for _ in range(4): print(call('Why? ' * (1 + 99 * _))[0])"),
    ],
)
def test_loops_are_refused(runner: Runner, provider: Provider, guard: list[str], program: str) -> None:
    ran = runner.here("--usd", "1", *guard, program=program)
    assert ran.out.split()[:3] == ["200", "200", "402"]
    assert len(provider.bills) == 2
    assert "cap reached" not in ran.err


ENDLESS = """
import os, subprocess, time
away = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(os.getpid(), away.pid, flush=True)
call()
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what began a session of its own is found where we adopt it")
@pytest.mark.parametrize("cause", [["--usd", "0.000001"], ["--usd", "1", "--calls-per-minute", "1"]])
def test_on_exceeded_end_ends_the_whole_tree(runner: Runner, provider: Provider, cause: list[str]) -> None:
    program = ENDLESS.replace("call()", "call()\ncall()")
    ran = runner.here(*cause, "--on-exceeded", "end", program=program)
    assert ran.code == ran.report["exit_code"] == 128 + signal.SIGTERM
    for pid in map(int, ran.out.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert len(provider.bills) == ("--calls-per-minute" in cause)


@pytest.mark.parametrize(
    ("options", "program"),
    [
        (["--usd", "1"], "print(call(model='nobodys-model')[0])"),  # no refusal of the budget
        (["--usd", cap_for(2), "--wait", "0"], "print(max(at_once(2)))"),  # it is only busy
    ],
)
def test_on_exceeded_end_ends_nothing_that_the_budget_could_still_pay(
    runner: Runner, provider: Provider, options: list[str], program: str
) -> None:
    provider.latency = 0.5
    ran = runner.here(*options, "--on-exceeded", "end", program=program)
    assert (ran.code, ran.out[0], ran.report["refused"]) == (0, "4", 1)


def test_a_program_that_is_refused_goes_on_by_itself(runner: Runner) -> None:
    ran = runner.here("--usd", "0", program="print(call()[0])\nprint('and on')\nsys.exit(5)")
    assert (ran.code, ran.out) == (5, "402\nand on\n")


# ---------------------------------------------------------------- what is seen


def test_standard_output_is_the_programs_alone(runner: Runner, provider: Provider) -> None:
    ran = runner.ran_apart("--usd", "1", "--progress", "plain", program="print(call()[0])")
    assert ran.out == "200\n"
    assert ran.err.count("\n") == 1


def test_a_run_can_be_asked_while_it_goes_on(runner: Runner) -> None:
    store = f"sqlite:{runner.folder / 'b.db'}#team"
    ran = runner.here("--usd", "1", program="call(); print(__import__('json').dumps(got('/_status')))")
    told = json.loads(ran.out)
    assert (told["usd_nanos"], told["calls"], told["usd_cap_nanos"]) == (CALL, 1, 10**9)
    assert told["pool"]["usd_used_nanos"] == CALL
    assert told["pid"] > 0
    assert "call(" not in ran.out  # the arguments are the program's own affair
    program = "call()\nwhile not (told := got('/_status'))['pool']: pass\nprint(told['pool']['name'])"
    assert runner.here("--usd", "1", "--pool", store, program=program).out == "team\n"


def test_the_file_of_a_run_is_there_while_it_goes_on(runner: Runner) -> None:
    folder = runner.folder / "token-budget"
    ran = runner.here("--usd", "1", program=f"import os\nprint(len(os.listdir({str(folder)!r})), call()[0])")
    assert ran.out == "1 200\n"
    assert list(folder.iterdir()) == []


def test_a_run_that_has_no_place_for_its_file_goes_on(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_budget.cli._run_files.publish", lambda *_: None)
    assert runner.here("--usd", "1", program="print(call()[0])").out == "200\n"


@pytest.mark.skipif(sys.platform != "linux", reason="what its parent left is found where we adopt it")
def test_what_a_program_leaves_behind_is_ended_and_told(runner: Runner) -> None:
    ran = runner.here("--usd", "1", program=["sh", "-c", "sleep 600 > /dev/null & echo $!"])
    assert ran.code == 0
    assert "token-budget: ended 1 process that the program left behind\n" in ran.err
    with pytest.raises(ProcessLookupError):
        os.kill(int(ran.out), 0)


def test_the_list_of_prices_is_loaded_while_the_program_starts(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, ended = threading.Event(), threading.Event()
    monkeypatch.setattr(Prices, "data_date", property(lambda _: loaded.set()))
    monkeypatch.setattr(run, "_SHORT", 0)
    run._load_prices(Meter(), ended)
    assert loaded.is_set()
    loaded.clear()
    ended.set()
    run._load_prices(Meter(), ended)  # there is nobody left who needs it
    assert not loaded.is_set()
    os.mkfifo(runner.folder / "fifo")
    opener = threading.Thread(target=lambda: loaded.wait(30) and (runner.folder / "fifo").write_text("on"))
    opener.start()
    assert runner.here("--usd", "1", program="print(open('fifo').read())").out == "on\n"
    opener.join()


def test_a_run_without_a_metered_call_is_warned_of(runner: Runner, provider: Provider) -> None:
    ran = runner.here("--usd", "1", program="pass")
    assert ran.code == 0
    assert "warning: no call to a model came through the gateway" in ran.err
    assert "OPENAI_BASE_URL" in ran.err
    ran = runner.here("--usd", "1", "--progress", "off", program="got('/openai/v1/models')")
    assert ran.err.splitlines()[0].endswith("1 other requests were forwarded")
    assert len(ran.err.splitlines()) == 1
    assert provider.requests == ["/v1/models"]


def test_required_metering_is_an_exit_status_of_its_own(runner: Runner) -> None:
    assert runner.here("--usd", "1", "--require-metered", program="pass").code == REQUIRED
    assert runner.here("--usd", "1", "--require-metered", program="sys.exit(7)").code == 7
    assert runner.here("--usd", "1", "--require-metered", program="call()").code == 0
    assert runner.here("--usd", "0", "--require-metered", program="call()").code == 0
    ran = runner.here("--usd", "1", "--require-metered", program="pass")
    assert ran.report["exit_code"] == REQUIRED


def test_a_run_loads_no_library_that_it_does_not_use() -> None:
    program = (
        "import sys\nfrom token_budget.cli import main\n"
        "main(['run', '--usd', '1', '--progress', 'off', '--', sys.executable, '-S', '-c', 'pass'])\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, *sys.modules)"
    )
    loaded = set(run_program(program).stdout.split())
    assert "aiohttp" in loaded
    assert not loaded & {"click", "rich", "redis", "valkey", "sqlite3", "token_budget.stores", "token_budget.cli.demo"}


def test_a_fault_of_ours_leaves_signals_and_the_terminal_as_they_were(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from token_budget.cli._run_child import Child
    from token_budget.cli._run_display import Display

    wait, close, closed = Child.wait, Display.close, threading.Event()

    def failing(child: Child) -> int:
        wait(child)
        raise RuntimeError("a fault of ours")

    def closing(display: Display) -> None:
        closed.set()
        close(display)

    monkeypatch.setattr(Child, "wait", failing)
    monkeypatch.setattr(Display, "close", closing)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        runner.here("--usd", "1", program="pass")
    assert signal.getsignal(signal.SIGTERM) is before
    assert closed.is_set()
    assert list((runner.folder / "token-budget").iterdir()) == []


def test_progress_off_says_nothing(runner: Runner) -> None:
    assert runner.here("--usd", "1", "--progress", "off", program="call()").err == ""


# ---------------------------------------------------------------- exit statuses


@pytest.mark.parametrize(
    ("program", "code"),
    [
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "kill -9 $$"], 137),
        (["no-such-program"], 127),
        (["/dev/null"], 126),
    ],
)
def test_the_exit_status_is_the_programs(runner: Runner, program: list[str], code: int) -> None:
    ran = runner.here("--usd", "1", program=program)
    assert ran.code == ran.report["exit_code"] == code
    assert ("error: " in ran.err) == (code in {126, 127})
    assert ("warning: no call" in ran.err) == (code not in {126, 127})


def test_a_program_that_ctrl_c_ended_ends_us_by_it(runner: Runner) -> None:
    ran = runner.ran_apart("--usd", "1", program="import os, signal\nos.kill(os.getpid(), signal.SIGINT)")
    assert ran.code == -signal.SIGINT
    assert ran.report["exit_code"] == 130
    assert "spent" in ran.err


def test_a_missing_library_is_told_before_anything_starts(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None if name in {"psutil", "truststore"} else object())
    error = runner.refused("--usd", "1")
    assert "psutil and truststore must be installed: pip install 'token-budget-pool[cli]'" in error
    assert not (runner.folder / "started").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--usd", "1", "--upstream", "odd"], "NAME=URL"),
        (["--usd", "1", "--progress", "rich"], "--progress rich"),
        (["--pool", "sqlite:b.db"], "has no name"),
        (["--pool", "memory:#x", "--usd", "1"], "memory"),
        (["--pool", "odd#x", "--usd", "1"], "--pool"),
        (["--pool", "sqlite:b.db#new"], "--usd or --tokens"),
    ],
)
def test_what_is_wrong_with_the_options_starts_nothing(runner: Runner, options: list[str], why: str) -> None:
    assert why in runner.refused(*options)
    assert not (runner.folder / "started").exists()


def test_two_keys_of_one_provider_cannot_be_held(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-one")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "sk-two")
    error = runner.refused("--usd", "1", "--hold-keys")
    assert "--hold-keys" in error
    assert "sk-" not in error


def test_a_pool_without_a_cap_caps_nothing(runner: Runner) -> None:
    from token_budget.stores import open_pool

    store = f"sqlite:{runner.folder / 'b.db'}#team"
    with open_pool(store) as pool:
        assert pool.snapshot().usd_cap is None
    assert "no cap" in runner.refused("--pool", store)
    assert "no cap" in runner.refused("--pool", store, "--job", "nightly", "--user", "ann")
    assert (
        runner.here("--pool", store, "--job", "nightly", "--tokens", "500", program="print(call()[0])").out == "200\n"
    )
    assert runner.here("--pool", store, "--job", "nightly", program="print(call()[0])").code == 0


def test_a_store_that_keeps_no_budget_is_an_exit_status_of_its_own(runner: Runner) -> None:
    (runner.folder / "b.db").write_text("this is no database, and never was one" * 100)
    ran = runner.here("--pool", f"sqlite:{runner.folder / 'b.db'}#team", "--usd", "1", program="open('started', 'w')")
    assert (ran.code, ran.out, ran.report) == (UNAVAILABLE, "", {})
    assert ran.err.startswith("token-budget: error: ")
    assert not (runner.folder / "started").exists()


HOLDER = """
import sys
from token_budget.stores import open_pool
pool = open_pool(sys.argv[1], usd_cap=5)
print("open", flush=True)
sys.stdin.read()
"""


def test_other_caps_than_those_of_a_run_that_goes_on_are_an_exit_status_of_their_own(runner: Runner) -> None:
    store = f"sqlite:{runner.folder / 'b.db'}#team"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, store], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        ran = runner.here("--pool", store, "--usd", "7", program="open('started', 'w')")
        holder.communicate("")
    assert ran.code == MISMATCH
    assert "give the same caps" in ran.err
    assert not (runner.folder / "started").exists()


def test_caps_that_change_are_told_before_the_program_begins(runner: Runner) -> None:
    store = f"sqlite:{runner.folder / 'b.db'}#team"
    runner.here("--pool", store, "--usd", "7", program="pass")
    ran = runner.here("--pool", store, "--usd", "5", program="print('begins', file=sys.stderr)")
    assert re.match(r"token-budget: warning: pool 'team': .* usd_cap 7, and has 5 .*\nbegins\n", ran.err)


def test_a_gateway_that_cannot_listen_is_an_exit_status_of_its_own(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("token_budget.gateway.Gateway.start", start)
    ran = runner.here("--usd", "1", program="open('started', 'w')")
    assert (ran.code, ran.err) == (NO_GATEWAY, "token-budget: error: the gateway cannot listen: Too many open files\n")
    assert not (runner.folder / "started").exists()


def test_a_report_that_cannot_be_written_is_an_exit_status_of_its_own(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = runner.here("--usd", "1", "--report", "nowhere/r.json", program="open('started', 'w')")
    assert ran.code == 0  # the last --report is the one that holds: the runner's own
    monkeypatch.setattr(Runner, "_report", lambda _: runner.folder / "nowhere" / "r.json")
    (runner.folder / "started").unlink()
    ran = runner.here("--usd", "1", program="open('started', 'w')")
    assert ran.code == NO_REPORT
    assert not (runner.folder / "started").exists()
    monkeypatch.setattr(Runner, "_report", lambda _: runner.folder / "later" / "r.json")
    (runner.folder / "later").mkdir()
    ran = runner.here("--usd", "1", program="import os\ncall()\nos.rmdir('later')")
    assert (ran.code, ran.report) == (NO_REPORT, {})
    assert "--report" in ran.err


def test_a_store_that_is_lost_while_the_program_runs_refuses_its_calls_and_ends_nothing(
    runner: Runner, provider: Provider
) -> None:
    store = f"sqlite:{runner.folder / 'b.db'}#team"
    program = """
import os
print(call()[0])
for name in os.listdir("."):
    if name.startswith("b.db"):
        os.unlink(name)
print(call("Who?")[0])
"""
    ran = runner.here("--pool", store, "--usd", "1", "--on-exceeded", "end", program=program)
    assert (ran.code, ran.out) == (0, "200\n503\n")
    assert len(provider.bills) == 1
    assert ran.report["spent"]["usd_nanos"] == CALL
