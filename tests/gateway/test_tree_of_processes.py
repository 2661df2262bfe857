"""The tree of a run's child: all of it is found and ended, none but it, and what we adopt is reaped."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psutil")
if sys.platform == "win32":
    pytest.skip("these programs are of a POSIX system", allow_module_level=True)

import psutil  # type: ignore[import-untyped]

from ran_programs import LINUX, line_of, outcome, pids_in, python, running, state, under, until
from token_budget.cli import _run_tree
from token_budget.cli._run_child import Child
from token_budget.cli._run_tree import GIVEN_UP, PATIENCE, Ended, Tree, subreaper

ADOPTING = pytest.mark.skipif(not LINUX, reason="only Linux lets a process adopt orphans")
# Shell code by which a process notes its id as a file in $FOLDER and stays; the shell's own variables stand for it.
CODE = {
    "NOTE": ': > "$FOLDER/$$"; exec sleep 1000',
    "STAY": "trap '' HUP INT QUIT TERM; : > \"$FOLDER/$$\"; while :; do sleep 1000; done",
    "STOP": ': > "$FOLDER/$$"; kill -STOP $$; exec sleep 1000',
    "PYTHON": sys.executable,
    "SESSION": "import os, subprocess; subprocess.Popen(['sh', '-c', os.environ['NOTE']], start_new_session=True)",
    # The main thread ends and another lives on: such a process looks like a zombie.
    "HEADLESS": "import ctypes, os, threading; from pathlib import Path\n"
    "threading.Thread(target=lambda: (os.read(*os.pipe()[:1], 1))).start()\n"
    "Path(os.environ['FOLDER'], str(os.getpid())).touch()\n"
    f"ctypes.CDLL(None).syscall({'93' if os.uname().machine == 'aarch64' else '60'}, 0)",
}
HIDDEN = {
    "in the background": 'sh -c "$NOTE" &',
    "deaf to SIGTERM": 'sh -c "$STAY" &',
    "setsid": 'setsid sh -c "$NOTE" &',
    "nohup": 'nohup sh -c "$NOTE" >/dev/null 2>&1 &',
    "a double fork": '(sh -c "$NOTE" &)',
    "a double fork with nohup and setsid, deaf": '(nohup setsid sh -c "$STAY" >/dev/null 2>&1 &)',
    "start_new_session": '"$PYTHON" -S -c "$SESSION"',
    "stopped": 'sh -c "$STOP" &',
    "without a main thread": '("$PYTHON" -S -c "$HEADLESS" &)',
}
FOREVER = "while :; do sleep 1000; done"


class Hasty:
    """A clock of which each pause takes a quarter of a second, until SIGKILL is due; then it stands still."""

    def __init__(self, end: float = PATIENCE + 1) -> None:
        self.now = 0.0
        self.end = end

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now = min(self.now + 0.25, self.end)
        time.sleep(seconds)


def hasty_tree(end: float = PATIENCE + 1) -> Tree:
    clock = Hasty(end)
    return Tree(clock=clock, pause=clock.pause)


@contextmanager
def started(code: str, folder: Path, tree: Tree | None = None) -> Iterator[Child]:
    """Start a shell's code under a Child in this process; what it noted in the folder is killed at the end."""
    environ = {**os.environ, **CODE, "FOLDER": str(folder)}
    child = Child(["/bin/sh", "-c", code], environ, tree=tree or hasty_tree())
    child.start()
    try:
        yield child
    finally:
        if child._status is None:
            child.end()
            child.wait()
        child.close()
        for pid in pids_in(folder):
            if state(pid) != "gone":
                os.kill(pid, signal.SIGKILL)


def end_when(child: Child, condition: Callable[[], object]) -> int:
    """Wait for the child; another thread asks for its end as soon as the condition holds."""

    def ask() -> None:
        until(condition)
        child.end()

    thread = threading.Thread(target=ask)
    thread.start()
    code = child.wait()
    thread.join()
    return code


# ---------------------------------------------------------------- all of it


@ADOPTING
@pytest.mark.parametrize("hidden", [pytest.param(code, id=name) for name, code in HIDDEN.items()])
def test_nothing_that_the_child_left_behind_is_left(hidden: str, tmp_path: Path) -> None:
    code = f'{hidden}\nuntil [ -n "$(ls "$FOLDER")" ]; do sleep 0.01; done; exit 5'
    with started(code, tmp_path) as child:
        assert child.wait() == 5
        assert child.left.ended >= 1
        assert child.left.left == ()
        (pid,) = pids_in(tmp_path)
        assert state(pid) == "gone"


@ADOPTING
@pytest.mark.parametrize("hidden", [pytest.param(code, id=name) for name, code in HIDDEN.items()])
def test_end_leaves_nothing_of_the_tree_while_the_child_runs(hidden: str, tmp_path: Path) -> None:
    reached = {"$STOP": "stopped", "$HEADLESS": "zombie"}
    wanted = next((status for name, status in reached.items() if name in hidden), None)

    def there() -> bool:
        pids = pids_in(tmp_path)
        return bool(pids) and (wanted is None or state(pids[0]) == wanted)

    with started(f"{hidden}\n{FOREVER}", tmp_path) as child:
        assert end_when(child, there) == 143
        (pid,) = pids_in(tmp_path)
        assert state(pid) == "gone"
        assert child.left == Ended()


def test_a_child_that_is_deaf_is_killed_after_two_seconds(tmp_path: Path) -> None:
    clock = Hasty()
    with started('exec sh -c "$STAY"', tmp_path, Tree(clock=clock, pause=clock.pause)) as child:
        assert end_when(child, lambda: pids_in(tmp_path)) == 137
        assert clock.now >= PATIENCE


def test_a_child_that_ends_at_sigterm_is_given_the_time_for_it(tmp_path: Path) -> None:
    code = 'trap \'echo > "$FOLDER/2"; exit 6\' TERM; : > "$FOLDER/1"; while :; do sleep 0.05; done'
    environ = {**os.environ, "FOLDER": str(tmp_path)}
    child = Child(["/bin/sh", "-c", code], environ, tree=hasty_tree(PATIENCE - 0.5))
    child.start()
    assert end_when(child, (tmp_path / "1").exists) == 6
    child.close()
    assert (tmp_path / "2").exists()


@ADOPTING
def test_processes_that_are_started_while_the_tree_is_ended_are_ended_too(tmp_path: Path) -> None:
    spawner = (
        "import os, signal, subprocess\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "for _ in range(200): subprocess.Popen(['sh', '-c', os.environ['NOTE']], start_new_session=True)\n"
        "signal.pause()"
    )
    child = Child(python(spawner), {**os.environ, **CODE, "FOLDER": str(tmp_path)}, tree=hasty_tree())
    child.start()
    assert end_when(child, lambda: len(pids_in(tmp_path)) >= 5) == 137
    child.close()
    assert {state(pid) for pid in pids_in(tmp_path)} == {"gone"}


@ADOPTING
def test_the_command_says_how_many_it_ended(tmp_path: Path) -> None:
    code = f'sh -c "$NOTE" & sh -c "$NOTE" & until [ "$(ls {tmp_path} | wc -l)" = 2 ]; do sleep 0.01; done; exit 3'
    environ = {**os.environ, **CODE, "FOLDER": str(tmp_path)}
    assert outcome("/bin/sh", "-c", code, env=environ) == (3, "", "ended 2 processes that the program left behind\n")


def test_what_ends_by_itself_in_time_is_neither_signalled_nor_counted(tmp_path: Path) -> None:
    def pause(seconds: float) -> None:  # a quarter of a second has not passed
        os.kill(pids_in(tmp_path)[0], signal.SIGKILL)
        until(lambda: state(pids_in(tmp_path)[0]) in {"zombie", "gone"})

    code = 'sh -c "$NOTE" & until [ -n "$(ls "$FOLDER")" ]; do sleep 0.01; done'
    with started(code, tmp_path, Tree(clock=lambda: 0.0, pause=pause)) as child:
        assert child.wait() == 0
        assert child.left == Ended()


# ---------------------------------------------------------------- none but it


def test_children_that_were_there_before_are_not_touched_and_not_reaped(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    ours.mkdir()
    other.mkdir()
    environ = {**os.environ, **CODE, "FOLDER": str(other)}
    ended = subprocess.Popen(["/bin/sh", "-c", "exit 3"])
    until(lambda: state(ended.pid) == "zombie")
    alive = subprocess.Popen(["/bin/sh", "-c", 'sh -c "$NOTE" & wait'], env=environ)
    try:
        until(lambda: pids_in(other))
        code = '(sh -c "$NOTE" &); until [ -n "$(ls "$FOLDER")" ]; do sleep 0.01; done; exit 5'
        with started(code, ours) as child:
            assert child.wait() == 5
            assert (child.left == Ended()) is not LINUX
        assert not {state(alive.pid), state(pids_in(other)[0])} & {"gone", "zombie"}
        assert ended.wait() == 3
    finally:
        ended.wait()
        os.kill(pids_in(other)[0], signal.SIGTERM)
        alive.wait()


def test_the_other_commands_of_a_pipeline_and_of_our_group_are_not_touched() -> None:
    script = 'sleep 1000 >/dev/null 2>&1 & other=$!; "$@" | { cat; echo sibling; }\n'
    script += "kill -0 $other && echo alive; kill $other"
    command = ["/bin/sh", "-c", script, "sh", *under("/bin/sh", "-c", "echo out; kill -TERM $$")]
    assert subprocess.run(command, capture_output=True, check=False, timeout=60).stdout == b"out\nsibling\nalive\n"


def test_children_of_a_shell_that_we_replaced_are_not_touched() -> None:
    script = 'sleep 1000 >/dev/null 2>&1 & echo $!; exec "$@"'
    with running(["/bin/sh", "-c", script, "sh", *under("true")]) as process:
        pid = int(line_of(process.stdout))
        assert process.wait(60) == 0
        assert state(pid) not in {"gone", "zombie"}
        os.kill(pid, signal.SIGKILL)


def test_a_process_that_got_the_id_of_one_that_ended_is_not_signalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = subprocess.Popen(["sleep", "1000"])
    process = psutil.Process(stranger.pid)
    reused = psutil.Process(stranger.pid)
    reused._create_time = reused.create_time() - 1000  # psutil knows a process by this
    reused._ident = (reused.pid, reused._create_time)
    assert reused != process
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive=False: [reused])
    tree = hasty_tree()
    tree._adopts = True
    try:
        assert tree.end() == Ended()
        assert state(stranger.pid) not in {"gone", "zombie"}
    finally:
        stranger.kill()
        stranger.wait()


# ---------------------------------------------------------------- what cannot be ended


@ADOPTING
def test_processes_of_another_user_are_left_at_once_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(process: Any, number: int) -> None:
        raise psutil.AccessDenied(process.pid)

    paused: list[float] = []
    tree = Tree(clock=lambda: 0.3 * len(paused), pause=paused.append)
    code = 'sh -c "$NOTE" & until [ -n "$(ls "$FOLDER")" ]; do sleep 0.01; done; exit 5'
    with started(code, tmp_path, tree) as child:
        with monkeypatch.context() as patch:
            patch.setattr(psutil.Process, "send_signal", refuse)
            assert child.wait() == 5
        assert child.left == Ended(0, tuple(pids_in(tmp_path)))
        assert len(paused) == 2  # it was told once


@ADOPTING
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give up its rights")
def test_a_process_that_we_have_no_right_to_end_is_named_on_standard_error() -> None:
    program = under()[2].replace("code =", "import psutil; os.setuid(65534); code =")
    command = [sys.executable, "-c", program, "/bin/sh", "-c", "sleep 1000 >&- 2>&- & echo $!; exit 3"]
    with running(command) as process:
        pid = int(line_of(process.stdout))
        assert line_of(process.stderr) == f"could not end 1 process (pid {pid})"
        os.kill(pid, signal.SIGKILL)
        assert process.wait(60) == 3


@ADOPTING
def test_a_process_that_hangs_in_the_kernel_is_left_after_five_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Hasty(1000)
    sent: list[int] = []
    code = 'sh -c "$NOTE" & until [ -n "$(ls "$FOLDER")" ]; do sleep 0.01; done; exit 5'
    with started(code, tmp_path, Tree(clock=clock, pause=clock.pause)) as child:
        with monkeypatch.context() as patch:
            patch.setattr(psutil.Process, "send_signal", lambda process, number: sent.append(number))
            assert child.wait() == 5
        assert child.left == Ended(0, tuple(pids_in(tmp_path)))
        assert sent == [signal.SIGTERM, signal.SIGCONT, signal.SIGKILL]
        assert PATIENCE + GIVEN_UP <= clock.now <= PATIENCE + GIVEN_UP + 1


@ADOPTING
def test_processes_that_end_while_they_are_looked_at_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(process: Any, number: int = 0) -> None:
        os.kill(process.pid, signal.SIGKILL)
        raise psutil.NoSuchProcess(process.pid)

    code = 'sh -c "$NOTE" & until [ -n "$(ls "$FOLDER")" ]; do sleep 0.01; done; exit 5'
    with started(code, tmp_path) as child:
        with monkeypatch.context() as patch:
            patch.setattr(psutil.Process, "send_signal", end)
            assert child.wait() == 5
        assert child.left == Ended()
        with monkeypatch.context() as patch:
            patch.setattr(psutil.Process, "is_running", end)
            with subprocess.Popen(["sleep", "1000"]) as process:
                assert not _run_tree._lives(psutil.Process(process.pid))


# ---------------------------------------------------------------- reaping


@ADOPTING
@pytest.mark.parametrize("hiding", [False, True])
def test_adopted_orphans_are_reaped_while_the_child_runs(hiding: bool) -> None:
    """A child from before that has ended and is reaped by nobody must not hide them."""
    orphans = "for _ in 1 2 3 4 5 6 7 8; do (sh -c : &); done; echo done; read line"
    before = "import os, sys\n"
    if hiding:
        before += "pid = os.posix_spawnp('true', ['true'], {})\nos.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)\n"
    before += "os.execv(sys.argv[1], sys.argv[1:])"
    with running(python(before, *under("/bin/sh", "-c", orphans))) as process:
        assert line_of(process.stdout) == "done"
        me = psutil.Process(process.pid)
        until(lambda: len(me.children()) == 1 + hiding)  # the shell, and the one that hides them
        assert [state(child.pid) for child in me.children()].count("zombie") == hiding


@ADOPTING
def test_reaping_steals_nothing_from_popen(tmp_path: Path) -> None:
    tree = Tree()
    with subprocess.Popen(["/bin/sh", "-c", "exit 7"]) as other:
        until(lambda: state(other.pid) == "zombie")
        tree.open()
        with subprocess.Popen(["/bin/sh", "-c", "exit 8"]) as process:
            tree.started(process.pid)
            until(lambda: state(process.pid) == "zombie")
            tree.reap()
            assert process.wait() == 8
        tree.reap()
        assert other.wait() == 7
    tree.reap()  # no child at all
    tree.close()
    _run_tree._reap(process.pid)  # somebody else has reaped it


# ---------------------------------------------------------------- adopting


@ADOPTING
def test_what_was_said_about_adopting_before_is_said_again() -> None:
    assert subreaper(wanted=False) is False
    tree = Tree()
    tree.open()
    assert subreaper(wanted=True) is True
    tree.close()
    assert subreaper(wanted=True) is False
    tree = Tree()
    tree.open()
    tree.close()
    tree.close()
    assert subreaper(wanted=False) is True


def test_where_nobody_can_adopt_the_tree_that_can_be_seen_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_run_tree, "LINUX", False)
    with started(f'sh -c "$STAY" & sh -c "$NOTE" & {FOREVER}', tmp_path) as child:
        assert end_when(child, lambda: len(pids_in(tmp_path)) == 2) == 143
        # The deaf one outlives its parent, and is found since it was seen before.
        until(lambda: {state(pid) for pid in pids_in(tmp_path)} <= {"gone", "zombie"})


def test_where_nobody_can_adopt_a_double_fork_escapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_run_tree, "LINUX", False)
    code = '(sh -c "$NOTE" &); until [ -n "$(ls "$FOLDER")" ]; do sleep 0.01; done; exit 5'
    with started(code, tmp_path) as child:
        assert child.wait() == 5
        assert child.left == Ended()
        assert state(pids_in(tmp_path)[0]) not in {"gone", "zombie"}


def test_where_nobody_can_adopt_a_child_that_has_ended_has_no_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_run_tree, "LINUX", False)
    tree = Tree()
    tree.open()
    with subprocess.Popen(["true"]) as process:
        process.wait()
        seen = psutil.Process()
        tree.started(process.pid)
        assert tree.end() == Ended()
        seen._gone = True
        seen._pid_reused = True
        assert _run_tree._children(seen) == []
    tree.reap()
    tree.close()


def test_a_system_that_cannot_adopt_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: Any, **options: Any) -> Any:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert subreaper(wanted=True) is None


@ADOPTING
def test_psutil_is_not_loaded_where_the_child_leaves_nothing_behind() -> None:
    program = under()[2].replace("sys.exit(child", "print('psutil' in sys.modules); sys.exit(child")
    done = subprocess.run(
        [sys.executable, "-c", program, "true"], capture_output=True, check=False, timeout=60, text=True
    )
    assert done.stdout == "False\n"
