"""A run that is going on: its status, its private file, and ``token-budget status run``."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runs import SECRET, Answering, Terminal, a_status, answering
from token_budget import BudgetPool, BudgetSnapshot, Window
from token_budget.cli import _run_files, main, store_status
from token_budget.cli._run_files import publish, running
from token_budget.cli._run_rich import RichScreen
from token_budget.cli._run_status import RunStatus
from token_budget.cli._run_view import run_lines, snapshot_of
from token_budget.contract import BudgetUnavailable

URL = f"http://127.0.0.1:1/{SECRET}"
NOW = datetime(2026, 11, 27, 14, 0, tzinfo=timezone.utc)
posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no owners and modes")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is XDG_RUNTIME_DIR; that for temporary files is another one."""
    own, temporary = tmp_path / "runtime", tmp_path / "tmp"
    own.mkdir(0o700)
    temporary.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(own))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.delenv("TOKEN_BUDGET_STORE", raising=False)
    monkeypatch.delenv("TOKEN_BUDGET_NAME", raising=False)
    return own


@pytest.fixture
def gateway() -> Iterator[Answering]:
    with answering() as told:
        yield told


def the_file(runtime: Path) -> Path:
    (path,) = (runtime / "token-budget").iterdir()
    return path


def rewrite(path: Path, **changes: Any) -> None:
    told = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**told, **changes}), encoding="utf-8")


# ---------------------------------------------------------------- the status


def test_a_status_goes_through_json_and_back() -> None:
    status = a_status(
        usd_nanos=10**18 + 1,
        by_model={"gpt-5": {"usd_nanos": 7}},
        pool=BudgetPool(usd_cap=5).snapshot().to_dict(),
        cap_reached="usd of pool 'nightly'",
    )
    assert RunStatus.from_dict(json.loads(json.dumps(status.to_dict()))) == status
    assert RunStatus.from_dict(a_status(pid=None, usd_cap_nanos=None).to_dict()).pid is None


def test_a_status_of_another_version_is_read() -> None:
    told = a_status().to_dict()
    for name in ("cap_reached", "by_model", "pool"):
        del told[name]
    assert RunStatus.from_dict({**told, "new": 1}) == a_status()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("command", 5),
        ("pid", "5"),
        ("calls", None),
        ("calls", True),
        ("calls", 1.5),
        ("usd_nanos", "1"),
        ("seconds", "1"),
        ("seconds", True),
        ("by_model", []),
        ("pool", "x"),
        ("cap_reached", 1),
    ],
)
def test_what_is_no_status_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        RunStatus.from_dict({**a_status().to_dict(), name: value})
    with pytest.raises(ValueError, match="no 'calls'"):
        RunStatus.from_dict({"command": "x", "pid": 1, **dict.fromkeys(list(a_status().to_dict())[2:8], 0)})


# ---------------------------------------------------------------- the file


def test_the_file_is_there_while_the_run_goes_on(runtime: Path) -> None:
    file = publish(URL, "claude")
    assert file is not None
    (one,) = running()
    assert (one.pid, one.command, one.url, one.lives) == (os.getpid(), "claude", URL, True)
    assert SECRET not in repr(one)
    assert SECRET not in repr(file)
    file.remove()
    file.remove()
    assert running() == []
    assert list((runtime / "token-budget").iterdir()) == []


@posix
def test_the_file_is_its_users_alone(runtime: Path) -> None:
    before = os.umask(0)
    try:
        publish(URL, "claude")
    finally:
        os.umask(before)
    assert stat.S_IMODE(the_file(runtime).stat().st_mode) == 0o600
    assert stat.S_IMODE((runtime / "token-budget").stat().st_mode) == 0o700


@posix
@pytest.mark.parametrize("own", ["", "relative", "/nowhere/at/all"])
def test_without_a_runtime_folder_it_stands_among_the_temporary_files(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, own: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", own)
    publish(URL, "claude")
    folder = runtime.parent / "tmp" / f"token-budget-{os.geteuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))  # `status` runs in a session that has one
    assert [one.command for one in running()] == ["claude"]


def plant_link(folder: Path, elsewhere: Path) -> None:
    elsewhere.mkdir(0o700)
    folder.symlink_to(elsewhere)


def plant_open_folder(folder: Path, _: Path) -> None:
    folder.mkdir(0o700)
    folder.chmod(0o710)


def plant_file(folder: Path, _: Path) -> None:
    folder.write_text("", encoding="utf-8")


@posix
@pytest.mark.parametrize("plant", [plant_link, plant_open_folder, plant_file])
def test_a_folder_that_others_may_enter_is_not_used(
    runtime: Path, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    for folder in (runtime / "token-budget", tmp_path / "tmp" / f"token-budget-{os.geteuid()}"):
        plant(folder, folder.with_name("elsewhere"))
    assert publish(URL, "claude") is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes()]
    assert running() == []


@posix
def test_a_folder_of_another_user_is_not_used(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(URL, "claude")
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)  # the folders that are made from here on are another user's
    assert publish(URL, "claude") is None
    assert running() == []


@posix
def test_what_takes_the_folders_place_later_gets_nothing(runtime: Path, tmp_path: Path) -> None:
    theirs, kept = tmp_path / "theirs", tmp_path / "kept"
    theirs.mkdir()
    path = runtime / "token-budget"
    with _run_files._opened(path, make=True) as folder:
        path.rename(kept)
        path.symlink_to(theirs)
        folder.write("run-1-0123456789abcdef.json", b"{}")
        assert folder.names() == ["run-1-0123456789abcdef.json"]
        assert folder.read("run-1-0123456789abcdef.json") == b"{}"
        folder.remove("run-1-0123456789abcdef.json")
    assert list(theirs.iterdir()) == []
    assert list(kept.iterdir()) == []


@pytest.fixture
def anybodys(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder for temporary files that every user may write, as /tmp is."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o1777)
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


@posix
def test_another_user_can_neither_read_the_file_nor_plant_a_folder(anybodys: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may act as another user")

    def as_another(*command: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(command, user=65534, group=65534, extra_groups=[], check=False, capture_output=True)

    planted = anybodys / "token-budget-0"
    assert as_another("mkdir", "-m", "700", str(planted)).returncode == 0
    assert publish(URL, "claude") is None
    planted.rmdir()
    assert publish(URL, "claude") is not None
    (path,) = planted.iterdir()
    assert as_another("cat", str(path)).stdout == as_another("ls", str(planted)).stdout == b""
    assert SECRET in path.read_text(encoding="utf-8")


@posix
@pytest.mark.parametrize("kind", ["readable", "fifo", "link", "garbage", "list", "other keys", "no json name"])
def test_what_is_not_the_file_of_a_run_is_passed_over(runtime: Path, kind: str) -> None:
    publish(URL, "claude")
    path = the_file(runtime)
    if kind == "readable":
        path.chmod(0o640)
    elif kind == "fifo":
        path.unlink()
        os.mkfifo(path, 0o600)
    elif kind == "link":
        path.symlink_to(path.rename(runtime / "real"))
    elif kind == "no json name":
        path.rename(path.with_suffix(".txt"))
    else:
        texts = {"garbage": "{", "list": "[]", "other keys": '{"pid": "1"}'}
        path.write_text(texts[kind], encoding="utf-8")
    before = sorted(runtime.rglob("*"))
    assert running() == []
    assert sorted(runtime.rglob("*")) == before


@linux
def test_the_file_of_a_dead_process_is_removed(runtime: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    publish(URL, "claude")
    rewrite(the_file(runtime), pid=dead.pid)
    (one,) = [_run_files._read(the_file(runtime).read_bytes())]
    assert not one.lives
    assert running() == []
    assert list((runtime / "token-budget").iterdir()) == []


@linux
def test_a_process_id_that_is_used_again_is_noticed(runtime: Path) -> None:
    publish(URL, "claude")
    boot, space, start = _run_files._read(the_file(runtime).read_bytes()).started.split()
    rewrite(the_file(runtime), started=f"{boot} {space} {int(start) - 1}")
    assert running() == []
    assert list((runtime / "token-budget").iterdir()) == []


@linux
def test_after_the_system_was_started_anew_no_run_of_before_is_shown(runtime: Path) -> None:
    publish(URL, "claude")
    _, space, start = _run_files._read(the_file(runtime).read_bytes()).started.split()
    rewrite(the_file(runtime), started=f"another-boot {space} {start}")
    assert running() == []
    assert list((runtime / "token-budget").iterdir()) == []


@linux
def test_the_run_of_another_container_is_left_alone(runtime: Path) -> None:
    publish(URL, "claude")
    boot, space, start = _run_files._read(the_file(runtime).read_bytes()).started.split()
    rewrite(the_file(runtime), started=f"{boot} {int(space) + 1} {start}")
    assert running() == []
    assert the_file(runtime).exists()


@linux
def test_a_zombie_is_no_run(runtime: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert _run_files._started(ended.pid) is None


@linux
def test_a_system_that_names_no_boot_is_taken_as_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_run_files, "_BOOT", tmp_path / "none")
    started = _run_files._started(os.getpid())
    assert started is not None
    assert started.startswith("? ? ")
    assert _run_files._lives(os.getpid(), started) is True
    assert _run_files._lives(os.getpid(), "") is False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_does_not_remove_the_file(runtime: Path) -> None:
    file = publish(URL, "claude")
    assert file is not None
    child = os.fork()
    if child == 0:
        file.remove()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert len(running()) == 1
    file._pid += 1  # what the child sees
    file.remove()
    assert len(running()) == 1


# ---------------------------------------------------------------- other systems


class NoSuchProcess(Exception):
    pass


def played_psutil(start: float | None) -> SimpleNamespace:
    def process(pid: int) -> SimpleNamespace:
        if start is None:
            raise NoSuchProcess
        return SimpleNamespace(create_time=lambda: start)

    return SimpleNamespace(Process=process, Error=NoSuchProcess)


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_elsewhere_psutil_tells_when_a_process_was_started(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setenv("LOCALAPPDATA", str(runtime))
    modules: dict[str, Any] = {"psutil": played_psutil(1.5)}
    monkeypatch.setattr(_run_files, "import_module", lambda name: modules[name])
    file = publish(URL, "claude")
    assert file is not None
    assert [one.started for one in running()] == ["1.5"]
    modules["psutil"] = played_psutil(2.5)
    assert running() == []
    file = publish(URL, "claude")
    assert len(running()) == 1
    modules["psutil"] = played_psutil(None)
    assert running() == []
    assert not list(runtime.rglob("*.json"))


def test_without_psutil_a_run_is_believed_to_go_on(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(_run_files, "import_module", missing)
    publish(URL, "claude")
    (one,) = running()
    assert one.lives


def test_a_terminal_that_does_not_say_its_size_is_drawn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "9")
    terminal = Terminal()
    screen = RichScreen(terminal, lambda: None)
    screen.show(["x" * 30, "[##--] 95%"])
    screen.close()
    assert f"{'x' * 20}\n[\x1b[31m##\x1b[0m--] 95%" in terminal.getvalue()


def test_on_windows_the_file_stands_in_the_users_own_folder(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_run_files, "import_module", lambda _: played_psutil(1.5))
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    file = publish(URL, "claude")
    assert file is not None
    (path,) = runtime.parent.rglob("*.json")
    assert path.parent == runtime.parent / "tmp" / "token-budget-runs"
    assert [one.command for one in running()] == ["claude"]
    file.remove()
    assert not path.exists()


# ---------------------------------------------------------------- asking the gateway


def test_the_gateway_is_asked(runtime: Path, gateway: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    gateway.answers(a_status(calls=3))
    publish(gateway.url, "claude")
    (one,) = running()
    assert one.ask() == a_status(calls=3)
    assert gateway.paths == [f"/{SECRET}/_status"]


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (404, b"{}", "answers with status 404"),
        (200, b"{", "gives no status of a run"),
        (200, b"[]", "gives no status of a run: the status of a run has no 'command'"),
        (200, b"\xff", "gives no status of a run"),
    ],
)
def test_another_answer_is_no_status(runtime: Path, gateway: Answering, status: int, body: bytes, says: str) -> None:
    gateway.status, gateway.body = status, body
    publish(gateway.url, "claude")
    with pytest.raises(BudgetUnavailable, match=says) as caught:
        running()[0].ask()
    assert SECRET not in str(caught.value)


def test_a_gateway_that_is_gone_is_told_without_its_secret(runtime: Path, gateway: Answering) -> None:
    publish(f"http://127.0.0.1:1/{SECRET}", "claude")
    with pytest.raises(BudgetUnavailable) as caught:
        running()[0].ask()
    assert str(caught.value) == f"run {os.getpid()} does not answer (ConnectionRefusedError)"
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "url",
    [
        f"http://example.com:80/{SECRET}",
        f"http://127.0.0.1:80/{SECRET}/../x",
        "http://127.0.0.1:80",
        f"https://127.0.0.1:80/{SECRET}",
        f"http://127.0.0.1:80@example.com/{SECRET}",
    ],
)
def test_only_a_gateway_on_this_machine_is_asked(runtime: Path, url: str) -> None:
    publish(url, "claude")
    with pytest.raises(BudgetUnavailable, match="does not say where its gateway is"):
        running()[0].ask()


# ---------------------------------------------------------------- token-budget status run


def shown(capsys: pytest.CaptureFixture[str], *command: str, status: int = 0) -> str:
    assert main(["status", *command]) == status
    captured = capsys.readouterr()
    assert captured.err == ""
    assert SECRET not in captured.out
    return captured.out


def complaint(capsys: pytest.CaptureFixture[str], *command: str, status: int = 1) -> str:
    if status == 2:
        with pytest.raises(SystemExit) as exit_:
            main(["status", *command])
        assert exit_.value.code == 2
    else:
        assert main(["status", *command]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert SECRET not in captured.err
    return " ".join(captured.err.split())


def spent() -> RunStatus:
    pool = BudgetPool(usd_cap=50, name="nightly", window=Window.daily("UTC"))
    pool.record(usd=20, tokens=7)
    job = pool.child(name="job", usd_cap=5)
    job.record(usd=1)
    by_model = {
        "gpt-5": {"call_count": 2, "tokens": 1_500, "usd_nanos": 10**9},
        "claude\x1b[2J": {"call_count": 1, "tokens": 0, "usd_nanos": 2 * 10**9},
    }
    return a_status(
        usd_nanos=3 * 10**9,
        tokens=1_500,
        held_usd_nanos=10**9,
        held_tokens=500,
        in_flight=1,
        calls=3,
        refused=2,
        by_model=by_model,
        cap_reached="usd of job",
        pool=pool.snapshot(tree=True).to_dict(),
    )


@pytest.fixture
def going_on(runtime: Path, gateway: Answering) -> Answering:
    """Let a run be going on, with these numbers."""
    gateway.answers(spent())
    publish(gateway.url, "claude")
    return gateway


def test_a_run_is_shown_with_its_pool(capsys: pytest.CaptureFixture[str], going_on: Answering) -> None:
    head, *lines = shown(capsys, "run").splitlines()
    assert head.startswith(f"run:{os.getpid()} at 20")
    pool = lines.index("pool")
    assert lines[:pool] == [
        "claude: 1 in flight",
        "  tokens                              1,500 used + 500 held, no cap",
        "  usd    [############====----]   80% 3 used + 1 held of 5",
        "  calls  3 calls, 2 refused, 41.2 s",
        "  cap reached: usd of job",
        "  claude?[2J: 1 call, $2.00",
        "  gpt-5: 2 calls, $1.00 and 1,500 tokens",
    ]
    assert lines[pool + 1].startswith("nightly: 0 in flight, resets 20")
    assert lines[pool + 3 :] == [
        "  usd    [########------------]   42% 21 used of 50",
        "  job",
        "    usd    [####----------------]   20% 1 used of 5",
    ]


def test_without_a_store_the_only_run_is_shown(capsys: pytest.CaptureFixture[str], going_on: Answering) -> None:
    assert "3 used + 1 held of 5" in shown(capsys)


def test_a_store_of_the_environment_comes_before_a_run(
    capsys: pytest.CaptureFixture[str], going_on: Answering, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOKEN_BUDGET_STORE", f"sqlite:{tmp_path / 'none.db'}#n")
    assert "none.db" in complaint(capsys)
    assert "3 used + 1 held of 5" in shown(capsys, "run")


def test_a_run_is_told_by_its_process_id_or_its_childs(capsys: pytest.CaptureFixture[str], going_on: Answering) -> None:
    assert shown(capsys, f"run:{os.getpid()}").startswith(f"run:{os.getpid()} ")
    assert shown(capsys, "run:4712").startswith(f"run:{os.getpid()} ")
    assert complaint(capsys, "run:4713").endswith("error: no run of yours with the process id 4713 is going on")
    going_on.status = 500
    assert complaint(capsys, "run:4712").endswith("error: no run of yours with the process id 4712 is going on")


def test_without_a_run_there_is_nothing_to_show(capsys: pytest.CaptureFixture[str], runtime: Path) -> None:
    assert complaint(capsys, "run") == "token-budget status: error: no run of yours is going on"
    assert "which store? Say it, or set TOKEN_BUDGET_STORE" in complaint(capsys, status=2)
    assert "a store is told by text such as" in complaint(capsys, "run:x", status=2)


def test_of_several_runs_one_must_be_named(
    capsys: pytest.CaptureFixture[str], going_on: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = os.getppid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: parent)
        publish(URL, "evil\x1b[2J")
    both = sorted([(os.getpid(), "claude"), (parent, "evil?[2J")])
    names = ", ".join(f"run:{pid} ({command})" for pid, command in both)
    assert complaint(capsys, "run").endswith(f"several runs are going on, say which: {names}")
    assert complaint(capsys, status=2).endswith(f"which store or run? These runs are going on: {names}")
    assert "3 used + 1 held of 5" in shown(capsys, f"run:{os.getpid()}")
    assert "3 used + 1 held of 5" in shown(capsys, "run:4712")


@pytest.mark.parametrize(("depth", "children"), [(None, 1), ("0", 0)])
def test_a_run_as_json_is_exact(
    capsys: pytest.CaptureFixture[str], going_on: Answering, depth: str | None, children: int
) -> None:
    told = json.loads(shown(capsys, "run", "--json", *(["--depth", depth] if depth else [])))
    assert told["run"] == os.getpid()
    assert datetime.fromisoformat(told["at"]).tzinfo is not None
    assert len(told["status"]["pool"].pop("children")) == children
    expected = spent().to_dict()
    del expected["pool"]["children"]
    for key in ("window_start", "resets_at"):
        assert told["status"]["pool"].pop(key)[:2] == expected["pool"].pop(key)[:2]
    assert told["status"] == expected


def test_a_run_that_ends_while_it_is_asked_is_told(
    capsys: pytest.CaptureFixture[str], going_on: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on.status = 404
    assert complaint(capsys, "run").endswith(f"error: run {os.getpid()} answers with status 404")
    monkeypatch.setattr(_run_files.Running, "lives", False)
    assert complaint(capsys, "run").endswith(f"error: run {os.getpid()} has ended")


@pytest.mark.parametrize("as_json", [False, True])
def test_watching_goes_on_through_an_outage_until_the_run_has_ended(
    capsys: pytest.CaptureFixture[str], going_on: Answering, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    waited: list[float] = []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        going_on.status = 503
        if len(waited) == 2:
            monkeypatch.setattr(_run_files.Running, "lives", False)

    monkeypatch.setattr(store_status, "_pause", pause)
    out = shown(capsys, "run", "--watch", *(["--json"] if as_json else []))
    assert waited == [1.0, 1.0]
    if as_json:
        first, second, third = map(json.loads, out.splitlines())
        assert first["status"]["calls"] == 3
        assert second["unavailable"] == f"run {os.getpid()} answers with status 503"
        assert third["ended"] == f"run {os.getpid()} has ended"
    else:
        assert "3 used + 1 held of 5" in out
        assert out.endswith(f"UTC: run {os.getpid()} answers with status 503\nrun {os.getpid()} has ended\n")


# ---------------------------------------------------------------- drawn by rich


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Return a terminal of 60 columns and 12 rows that is standard output, and on which rich draws."""
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(store_status, "_size", lambda _: os.terminal_size((60, 12)))
    return Terminal()


def looks(monkeypatch: pytest.MonkeyPatch, terminal: Terminal, *steps: Callable[[], object]) -> list[float]:
    """Let `status --watch` do these steps in place of waiting; then comes Ctrl-C. Return how long it would wait."""
    monkeypatch.setattr(sys, "stdout", terminal)  # not in the fixture: pytest puts its own in place before each test
    waited: list[float] = []
    left = list(steps)

    def pause(seconds: float) -> None:
        waited.append(seconds)
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    monkeypatch.setattr(store_status, "_pause", pause)
    return waited


def test_rich_draws_what_is_printed_elsewhere(
    going_on: Answering, drawn: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = looks(monkeypatch, drawn, lambda: going_on.answers(a_status(calls=77)))
    assert main(["status", "run", "--watch"]) == 130
    text = drawn.getvalue()
    assert waited == [0.25, 0.25]
    assert "\x1b[33m############====\x1b[0m----]   80% 3 used + 1 held of 5" in text
    assert "... and 4 lines; --depth leaves some out" in text
    assert "77 calls" in text
    assert text.endswith("\x1b[?25h")  # the cursor is shown again
    assert SECRET not in text


@pytest.mark.parametrize(("interval", "waits"), [("0", 0.25), ("0.1", 0.25), ("2", 2.0)])
def test_rich_draws_at_most_four_times_a_second(
    going_on: Answering, drawn: Terminal, monkeypatch: pytest.MonkeyPatch, interval: str, waits: float
) -> None:
    waited = looks(monkeypatch, drawn)
    assert main(["status", "run", "--watch", "--interval", interval]) == 130
    assert waited == [waits]


def test_rich_begins_anew_when_the_terminal_has_another_size(
    going_on: Answering, drawn: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def narrow() -> None:
        monkeypatch.setattr(store_status, "_size", lambda _: os.terminal_size((20, 30)))

    looks(monkeypatch, drawn, narrow)
    assert main(["status", "run", "--watch"]) == 130
    before, after = drawn.getvalue().split("\x1b[2J")
    assert "3 used" in before
    assert "3 used" not in after  # cut at column 20
    assert "  claude?[2J: 1 call" in after


def test_without_colour_rich_draws_none(going_on: Answering, drawn: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    looks(monkeypatch, drawn)
    assert main(["status", "run", "--watch"]) == 130
    assert "[############====----]   80%" in drawn.getvalue()


@pytest.mark.parametrize("kind", ["dumb", "", "unknown"])
def test_on_a_dumb_terminal_rich_does_not_draw(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from token_budget.cli._run_rich import can_draw

    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    assert can_draw()
    monkeypatch.setenv("TERM", kind)
    assert not can_draw()


def test_where_rich_is_not_installed_it_does_not_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    from token_budget.cli._run_rich import can_draw

    monkeypatch.setenv("TERM", "xterm")
    for played in (None, SimpleNamespace(__spec__=None)):
        monkeypatch.setitem(sys.modules, "rich", played)
        assert not can_draw()
    monkeypatch.setattr("token_budget.cli._run_rich.find_spec", lambda _: None)
    assert not can_draw()


# ---------------------------------------------------------------- the lines


def test_many_models_are_cut(going_on: Answering) -> None:
    models = {f"model-{number}": {"usd_nanos": number} for number in range(13)}
    lines = run_lines(a_status(by_model={**models, "odd": "x"}), NOW)
    assert lines[-11] == "  model-12: 0 calls, $0.000000012"
    assert lines[-1] == "  ... and 4 more models"


def test_a_pool_that_says_what_the_run_says_is_not_shown_again() -> None:
    with BudgetPool(usd_cap=5, name="run") as pool:
        pool.record(usd=2)
        status = a_status(usd_nanos=2 * 10**9, pool=pool.snapshot().to_dict())
        assert "pool" not in run_lines(status, NOW)
        pool.record(usd=1)
        other = a_status(usd_nanos=2 * 10**9, pool=pool.snapshot().to_dict())
        assert "pool" in run_lines(other, NOW)
        with pool.child(name="job"):
            parted = a_status(usd_nanos=3 * 10**9, pool=pool.snapshot(tree=True).to_dict())
            assert "pool" in run_lines(parted, NOW)


def test_a_snapshot_comes_back_from_json_as_it_was() -> None:
    pool = BudgetPool(token_cap=100, usd_cap=0.1, name="all", window=Window.daily("UTC"))
    first, second = pool.child(name="a", usd_cap=3), pool.child(name="b")
    deep = first.child(name="deep")
    deep.record(usd=0.1, tokens=3)
    held = second.reserve(tokens=5)
    snapshot = pool.snapshot(tree=True)
    held.release()
    again = snapshot_of(json.loads(json.dumps(snapshot.to_dict())))
    assert again == snapshot
    assert [child.name for child in again.children] == ["a", "b"]
    assert again.children[0].children[0].tokens_used == 3


def test_a_deep_snapshot_is_read_without_recursion() -> None:
    deep = BudgetSnapshot(name="leaf")
    for _ in range(3_000):
        deep = BudgetSnapshot(name="x", children=(deep,))
    read = snapshot_of(deep.to_dict())
    for _ in range(3_000):
        (read,) = read.children
    assert read.name == "leaf"


@pytest.mark.parametrize("told", [{}, {"children": 5}, {"children": [5]}, {"children": [], "usd_cap_nanos": "x"}])
def test_what_is_no_snapshot_is_refused(told: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no snapshot of a budget"):
        snapshot_of(told)
