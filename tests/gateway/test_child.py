"""The child of a run: how it is started, what it inherits, and the exit status that we end with."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psutil")
if sys.platform == "win32":
    pytest.skip("these programs are of a POSIX system", allow_module_level=True)

from ran_programs import LISTENER, line_of, outcome, python, ready, running, state, under, until
from token_budget.cli import _run_child, _run_signals
from token_budget.cli._run_child import Child, exit_code_of, left_behind
from token_budget.cli._run_tree import Ended, Tree


def code_of(*command: str, environ: dict[str, str] | None = None) -> int:
    """Run a command under a Child in this process."""
    child = Child(command, dict(os.environ) if environ is None else environ)
    child.start()
    try:
        return child.wait()
    finally:
        child.close()


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


# ---------------------------------------------------------------- exit status


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 65", 65),
        ("exit 130", 130),
        ("exit 255", 255),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
        ("kill -HUP $$", 129),
        ("kill -INT $$", 130),
        ("ulimit -c 0; kill -SEGV $$", 139),
        ("ulimit -c 0; kill -QUIT $$", 131),
    ],
)
def test_the_exit_status_is_the_childs_or_128_and_the_signal(program: str, code: int) -> None:
    assert code_of("/bin/sh", "-c", program) == code


def test_a_child_that_sigint_ended_ends_us_by_sigint() -> None:
    assert outcome("/bin/sh", "-c", "kill -INT $$")[0] == -signal.SIGINT


def test_a_child_that_exits_with_130_by_itself_does_not_end_us_by_a_signal() -> None:
    assert outcome("/bin/sh", "-c", "exit 130")[0] == 130


def test_another_exit_status_than_the_childs_is_kept_though_sigint_ended_the_child() -> None:
    child = Child(["/bin/sh", "-c", "kill -INT $$"], os.environ)
    child.start()
    assert child.wait() == 130
    assert child.finish(65) == 65


def test_finish_writes_out_what_is_buffered_before_it_ends_us() -> None:
    program = under()[2].replace("sys.exit(child", "sys.stdout.write('all of it'); sys.exit(child")
    command = [sys.executable, "-c", program, "/bin/sh", "-c", "kill -INT $$"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, b"all of it")


def test_finish_ends_us_also_where_sigint_was_blocked_and_streams_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[Any] = []
    former = signal.getsignal(signal.SIGINT)
    child = Child(["/bin/sh", "-c", "kill -INT $$"], os.environ)
    child.start()
    code = child.wait()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    monkeypatch.setattr(sys, "stdout", None)

    def kill(pid: int, number: int) -> None:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        killed.append((pid, number, signal.getsignal(number), signal.SIGINT in blocked))

    monkeypatch.setattr(os, "kill", kill)
    try:
        assert child.finish(code) == 130  # as in the first process of a container, which no signal ends
    finally:
        monkeypatch.undo()
        signal.signal(signal.SIGINT, former)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert killed == [(os.getpid(), signal.SIGINT, signal.SIG_DFL, False)]


def test_the_exit_status_is_known_also_where_we_were_told_to_ignore_the_ends_of_children() -> None:
    former = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert code_of("/bin/sh", "-c", "exit 7") == 7
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGCHLD, former)


def test_a_child_that_somebody_else_reaped_counts_as_ended() -> None:
    child = Child(["/bin/sh", "-c", "read line; exit 7"], os.environ)
    reading, writing = os.pipe()
    saved = os.dup(0)
    os.dup2(reading, 0)
    try:
        child.start()
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(reading)
    assert child.pid is not None
    os.close(writing)
    try:
        os.waitpid(child.pid, 0)
    except ChildProcessError:
        pass  # the watcher was first
    assert child.wait() in {0, 7}
    child.close()


def test_the_end_is_seen_where_waitid_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    child = Child(["/bin/sh", "-c", "exit 7"], os.environ, tree=Tree())
    monkeypatch.setattr(_run_child, "hasattr", lambda thing, name: name != "waitid", raising=False)
    child.start()
    assert child.wait() == 7
    child.close()


# ---------------------------------------------------------------- what cannot be started


def test_a_program_that_is_not_found_is_127_and_leaves_all_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM), open_files(), threading.active_count()
    child = Child(["no-such-program-anywhere"], os.environ)
    with pytest.raises(FileNotFoundError) as caught:
        child.start()
    assert exit_code_of(caught.value) == 127
    assert (signal.getsignal(signal.SIGTERM), open_files(), threading.active_count()) == before
    assert child.pid is None


def test_what_may_not_be_executed_is_126(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("#!/bin/sh\n")
    for command in (file, tmp_path):
        with pytest.raises(PermissionError) as caught:
            Child([str(command)], os.environ).start()
        assert exit_code_of(caught.value) == 126


def test_the_program_is_looked_for_in_the_path_that_it_gets(tmp_path: Path) -> None:
    program = tmp_path / "only-here"
    program.write_text("#!/bin/sh\nexit 5\n")
    program.chmod(0o755)
    assert code_of("only-here", environ={"PATH": str(tmp_path)}) == 5


def test_a_script_without_an_interpreter_line_is_run_by_sh(tmp_path: Path) -> None:
    program = tmp_path / "plain"
    program.write_text('exit "$1"\n')
    program.chmod(0o755)
    assert code_of("plain", "6", environ={"PATH": str(tmp_path)}) == 6
    assert code_of(str(program), "8") == 8


def test_windows_finds_programs_by_their_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(_run_child, "WINDOWS", True)
    monkeypatch.setattr(shutil, "which", lambda name, path: f"{path}/{name}.cmd")
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: started.append(command))
    _run_child.start(["claude", "-p"], {"PATH": "folder"})
    assert started == [["folder/claude.cmd", "-p"]]


def test_a_child_is_ended_where_no_thread_can_be_started_to_watch_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: Any) -> subprocess.Popen[bytes]:
        started.append(popen := real(*arguments))
        return popen

    def refuse(signals: _run_signals.Signals) -> None:
        raise RuntimeError("can't start new thread")

    real = _run_child.start
    monkeypatch.setattr(_run_child, "start", start)
    monkeypatch.setattr(_run_signals.Signals, "listen", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        Child(["sleep", "1000"], os.environ).start()
    assert started[0].returncode == -signal.SIGKILL


def test_an_error_before_the_child_is_started_leaves_all_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.E2BIG, "Argument list too long")

    monkeypatch.setattr(subprocess, "Popen", fail)
    child = Child(["sleep", "1000"], os.environ)
    with pytest.raises(OSError, match="Argument list too long") as caught:
        child.start()
    assert exit_code_of(caught.value) == 126
    child.close()


def test_on_windows_a_run_has_no_masks_and_no_death_by_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_run_child, "WINDOWS", True)
    monkeypatch.setattr(_run_child, "start", lambda *arguments: subprocess.Popen(["/bin/sh", "-c", "kill -INT $$"]))
    child = Child(["claude"], os.environ)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)  # this system's `set_wakeup_fd` asks for it
    with monkeypatch.context() as patch:
        pipes = iter([(reading, writing)])
        patch.setattr(os, "pipe", lambda real=os.pipe: next(pipes, None) or real())
        child.start()
    assert child.finish(child.wait()) == 130


def test_a_child_that_was_never_started_can_be_ended_and_closed() -> None:
    child = Child(["sleep", "1000"], os.environ)
    child.end()
    child.close()
    assert child.finish(0) == 0


# ---------------------------------------------------------------- what it inherits


def test_standard_input_and_output_pass_through_untouched() -> None:
    data = os.urandom(300_000)
    done = subprocess.run(under("cat"), input=data, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")


def test_the_child_inherits_other_files_as_from_a_shell() -> None:
    reading, writing = os.pipe()
    with running(under(*python(f"import os; os.write({writing}, b'through\\n')")), pass_fds=[writing]) as process:
        os.close(writing)
        assert os.read(reading, 100) == b"through\n"
        assert os.read(reading, 100) == b""  # neither it nor we hold it open after the end
        assert process.wait(60) == 0
    os.close(reading)


def test_the_child_inherits_none_of_our_own_files() -> None:
    before = outcome("/bin/sh", "-c", "ls /dev/fd | wc -l", given=b"")[1]
    direct = subprocess.run(["/bin/sh", "-c", "ls /dev/fd | wc -l"], input=b"", capture_output=True, check=False)
    assert before == direct.stdout.decode()


def test_the_child_is_in_our_group_and_session_and_gets_the_environment_that_was_given() -> None:
    program = "import os, sys; print(os.getpgrp(), os.getsid(0), os.getppid(), os.environ['TOLD'])"
    with running(under(*python(program)), env={**os.environ, "TOLD": "yes"}) as process:
        assert line_of(process.stdout).split() == [
            str(os.getpgid(process.pid)),
            str(os.getsid(process.pid)),
            str(process.pid),
            "yes",
        ]


def test_a_child_that_closes_its_standard_files_is_waited_for() -> None:
    assert outcome("/bin/sh", "-c", "exec <&- >&- 2>&-; exit 4") == (4, "", "")


def test_a_run_whose_own_standard_files_are_closed_works() -> None:
    command = ["/bin/sh", "-c", 'exec <&- >&- 2>&-; exec "$@"', "sh", *under("/bin/sh", "-c", "exit 4")]
    assert subprocess.run(command, check=False, timeout=60).returncode == 4


# ---------------------------------------------------------------- threads, many, asked to end


def test_a_hundred_children_one_after_the_other_leave_no_file_and_no_thread() -> None:
    code_of("true")
    before = open_files(), threading.active_count(), signal.getsignal(signal.SIGINT)
    assert [code_of("/bin/sh", "-c", f"exit {number}") for number in range(100)] == list(range(100))
    assert (open_files(), threading.active_count(), signal.getsignal(signal.SIGINT)) == before


def test_a_child_runs_also_in_a_thread_that_can_have_no_handlers() -> None:
    codes: list[int] = []
    handler = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: codes.append(code_of("/bin/sh", "-c", "exit 3")))
    thread.start()
    thread.join(60)
    assert codes == [3]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_end_is_asked_by_another_thread_and_ends_the_child_and_its_tree(tmp_path: Path) -> None:
    child = Child(
        ["/bin/sh", "-c", f"sleep 1000 & echo $! > {tmp_path}/pid; mv {tmp_path}/pid {tmp_path}/all; wait"], {}
    )
    child.start()

    def end() -> None:
        until((tmp_path / "all").exists)
        child.end()
        child.end()

    thread = threading.Thread(target=end)
    thread.start()
    assert child.wait() == 143
    thread.join()
    assert child.left == Ended()
    child.end()  # it has ended: nothing happens
    child.close()
    child.end()  # its pipe is closed
    assert state(int((tmp_path / "all").read_text())) == "gone"


def test_end_that_is_asked_before_wait_is_done_by_wait() -> None:
    child = Child(["sleep", "1000"], os.environ)
    child.start()
    child.end()
    for _ in range(100_000):  # a full pipe does not block who asks
        child.end()
    assert child.wait() == 143
    child.close()


def test_the_childs_repr_shows_no_arguments() -> None:
    child = Child(["claude", "--key", "sk-secret"], {"OPENAI_API_KEY": "sk-secret"})
    assert repr(child) == "<Child 'claude', pid None>"


@pytest.mark.parametrize(
    ("ended", "line"),
    [
        (Ended(), None),
        (Ended(1), "ended 1 process that the program left behind"),
        (Ended(3), "ended 3 processes that the program left behind"),
        (Ended(0, (7,)), "could not end 1 process (pid 7)"),
        (Ended(1, (7, 8)), "ended 1 process that the program left behind; could not end 2 processes (pid 7, 8)"),
    ],
)
def test_the_line_for_what_was_left_behind_says_how_many(ended: Ended, line: str | None) -> None:
    assert left_behind(ended) == line


def test_a_kill_of_us_leaves_the_child_alive_as_without_a_gateway() -> None:
    with running(under(*python(LISTENER))) as process:
        pid = ready(process)
        process.kill()
        process.wait(60)
        assert state(pid) != "gone"
        assert process.stdin is not None
        process.stdin.write(b"word\n")
        process.stdin.flush()
        assert line_of(process.stdout) == "read word"
        process.stdin.close()
        until(lambda: state(pid) in {"gone", "zombie"})
