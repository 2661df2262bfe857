"""Signals of a run: what is sent to us alone reaches the child once; what the terminal sent it has already."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("psutil")
if sys.platform == "win32":
    pytest.skip("these programs are of a POSIX system", allow_module_level=True)

from ran_programs import DEFAULTS, LINUX, LISTENER, UNDER, ended, line_of, python, ready, running, state, under, until
from token_budget.cli import _run_child, _run_signals
from token_budget.cli._run_child import Child
from token_budget.cli._run_signals import SI_KERNEL, Signals, kept_from_threads, sent_by_terminal

ASKED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH")


def number_of(name: str) -> int:
    return int(getattr(signal, name))


# ---------------------------------------------------------------- to us alone


def test_each_signal_that_is_sent_to_us_alone_reaches_the_child_once() -> None:
    with running(under(*python(LISTENER))) as process:
        ready(process)
        for name in ASKED:
            process.send_signal(number_of(name))
            assert line_of(process.stdout) == name
        assert ended(process) == ""


def test_a_child_that_a_forwarded_signal_ends_gives_us_its_exit_status() -> None:
    for name, status in (("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", -signal.SIGINT)):
        with running(under("/bin/sh", "-c", "echo ready; read line")) as process:
            assert line_of(process.stdout) == "ready"
            process.send_signal(number_of(name))
            assert process.wait(60) == status


def test_a_child_that_ignores_a_signal_runs_on_and_so_do_we() -> None:
    with running(under("/bin/sh", "-c", "trap '' TERM INT; echo ready; read line; echo $line; exit 3")) as process:
        assert line_of(process.stdout) == "ready"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.stdin is not None
        process.stdin.write(b"word\n")
        process.stdin.flush()
        assert line_of(process.stdout) == "word"
        assert process.wait(60) == 3


def test_what_nohup_ignores_stays_ignored_for_us_and_the_child() -> None:
    program = ["/bin/sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *under(*python(LISTENER))]
    with running(program, env={**os.environ, "IGNORED": "SIGHUP"}) as process:
        pid = ready(process)
        process.send_signal(signal.SIGHUP)
        os.kill(pid, signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert line_of(process.stdout) == "SIGTERM"
        assert ended(process) == ""


def test_the_child_starts_with_default_handlers_and_nothing_blocked() -> None:
    def masks(pid: int) -> dict[str, str]:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        return dict(line.split(":\t") for line in lines if line.startswith(("SigBlk", "SigIgn", "SigCgt")))

    if not LINUX:
        pytest.skip("no /proc")
    wait = ["/bin/cat"]
    with (
        running(under(*wait)) as process,
        running(python(DEFAULTS + "os.execv(sys.argv[1], sys.argv[1:])", *wait)) as direct,
    ):
        for one in (process, direct):
            assert one.stdin is not None
            one.stdin.write(b"line\n")
            one.stdin.flush()
            assert line_of(one.stdout) == "line"  # it has begun
        (child,) = _children_of(process.pid)
        expected = {name: mask for name, mask in masks(direct.pid).items() if name != "SigIgn"}
        assert {name: mask for name, mask in masks(child).items() if name != "SigIgn"} == expected
        ignored = int(masks(child)["SigIgn"], 16)
        assert not [name for name in ASKED if ignored >> number_of(name) - 1 & 1]


def _children_of(pid: int) -> list[int]:
    import psutil  # type: ignore[import-untyped]

    return [child.pid for child in psutil.Process(pid).children()]


def test_stopping_us_alone_and_continuing_us_leaves_the_child_untouched() -> None:
    with running(under(*python(LISTENER))) as process:
        pid = ready(process)
        process.send_signal(signal.SIGSTOP)  # SIGTSTP is lost on a group that no shell looks after
        until(lambda: state(process.pid) == "stopped")
        assert state(pid) != "stopped"
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGUSR1)
        assert line_of(process.stdout) == "SIGUSR1"
        assert ended(process) == ""


@pytest.mark.skipif(not LINUX, reason="only Linux can keep a signal from all threads and still tell who sent it")
def test_a_signal_that_a_thread_gets_all_the_same_is_forwarded() -> None:
    program = UNDER.replace("child.start()", "thread.start(); child.start()", 1).replace(
        "child = ",
        "import threading\nthread = threading.Thread(target=threading.Event().wait, daemon=True)\nchild = ",
        1,
    )
    with running([sys.executable, "-c", program, *python(LISTENER)]) as process:
        ready(process)
        for name in ASKED:
            process.send_signal(number_of(name))
            assert line_of(process.stdout) == name
        assert ended(process) == ""


# ---------------------------------------------------------------- in this process


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Start a Child that runs a shell's code; it is killed if the test did not end it."""
    started: list[Child] = []

    def start(code: str) -> Child:
        started.append(Child(["/bin/sh", "-c", code], {"PATH": os.environ["PATH"], "FOLDER": str(tmp_path)}))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        if one._status is None:
            one.end()
            one.wait()
        one.close()


def test_a_signal_before_the_program_is_started_keeps_it_from_being_started(tmp_path: Path) -> None:
    one = Child(["/bin/sh", "-c", f"touch {tmp_path}/started"], os.environ)
    real = Signals.install

    def install(signals: Signals) -> None:
        real(signals)
        os.kill(os.getpid(), signal.SIGUSR1)  # asks for nothing that we could do
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Signals, "install", install)
        one.start()
    assert one.pid is None
    assert one.wait() == 143
    assert one.finish(143) == 143
    assert not (tmp_path / "started").exists()


def test_a_signal_while_the_program_is_started_is_forwarded_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: Any) -> subprocess.Popen[bytes]:
        os.kill(os.getpid(), signal.SIGINT)
        popen = real(*arguments)
        os.kill(os.getpid(), signal.SIGCHLD)
        return popen

    real = _run_child.start
    monkeypatch.setattr(_run_child, "start", start)
    monkeypatch.setattr(_run_signals, "in_foreground", lambda *groups: True)
    one = Child(["sleep", "1000"], os.environ)
    one.start()
    assert one.wait() == 130
    one.close()


def test_a_signal_after_the_programs_end_is_noted_and_a_second_one_ends_us(
    child: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[tuple[int, int, Any]] = []
    one = child("exit 5")
    assert one.wait() == 5
    real = os.kill
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number, signal.getsignal(number))))
    real(os.getpid(), signal.SIGWINCH)
    real(os.getpid(), signal.SIGTERM)
    assert killed == []
    real(os.getpid(), signal.SIGWINCH)
    assert killed == []
    real(os.getpid(), signal.SIGINT)
    assert killed == [(os.getpid(), signal.SIGINT, signal.SIG_DFL)]


def test_two_signals_after_the_end_really_end_a_process() -> None:
    program = UNDER.replace("sys.exit(child.finish(code))", "print('waited', flush=True)\nwhile True: signal.pause()")
    with running([sys.executable, "-c", program, "true"]) as process:
        assert line_of(process.stdout) == "waited"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in {-signal.SIGINT, -signal.SIGTERM}  # sent together, either may come first


def test_a_signal_while_what_was_left_behind_is_ended_ends_it_at_once(child: Callable[..., Child]) -> None:
    one = child(
        "(trap '' TERM; echo > $FOLDER/ready; while :; do sleep 1000; done) & wait_for() { [ -e $FOLDER/ready ] || "
        "{ sleep 0.01; wait_for; }; }; wait_for; exit 5"
    )
    ticks: list[float] = []

    def pause(seconds: float) -> None:
        ticks.append(seconds)
        if one._tree._clock() - begun > 0.3 and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: one._signals is not None and one._signals.impatient)
        threading.Event().wait(seconds)

    sent: list[bool] = []
    begun = one._tree._clock()
    one._tree._pause = pause
    assert one.wait() == 5
    assert one.left.ended >= 1
    if sent:
        assert one._tree._clock() - begun < 60


def test_no_signal_is_sent_to_a_program_that_has_been_reaped(
    child: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = child("exit 0")
    one.wait()
    killed: list[Any] = []
    monkeypatch.setattr(os, "kill", lambda *arguments: killed.append(arguments))
    one._forward(signal.SIGUSR1)
    one._forward(signal.SIGTERM)
    assert killed == []
    assert one._signals is not None
    assert one._signals.impatient


def test_a_program_that_may_not_be_signalled_does_not_end_us(
    child: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    one = child("read line")
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", refuse)
        one._forward(signal.SIGTERM)


def test_close_brings_back_handlers_mask_and_wakeup_descriptor(child: Callable[..., Child]) -> None:
    def now() -> tuple[Any, ...]:
        former = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(former)
        handlers = [signal.getsignal(number) for number in sorted(signal.valid_signals())]
        return former, handlers, signal.pthread_sigmask(signal.SIG_BLOCK, [])

    def mine(number: int, frame: object) -> None: ...

    original = signal.signal(signal.SIGUSR2, mine)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        before = now()
        one = child("exit 0")
        assert now() != before
        one.wait()
        one.close()
        assert now() == before
        one.close()
        assert now() == before
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGUSR2, original)
        os.close(reading)
        os.close(writing)


def test_a_handler_that_is_not_pythons_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    signals = Signals(lambda number: None, -1)
    signals.install()
    assert signals._former == {}
    signals.restore()


# ---------------------------------------------------------------- without sigwaitinfo


class _Run:
    """Signals of this process without a child; what is forwarded is in `got`."""

    def __init__(self, waiting: Any = None) -> None:
        self.got: list[int] = []
        self.reading, writing = os.pipe()
        os.set_blocking(writing, False)
        self.writing = writing
        self.signals = Signals(self.got.append, writing, waiting=waiting)
        self.signals.install()

    def close(self) -> None:
        self.signals.restore()
        os.close(self.reading)
        os.close(self.writing)


@pytest.fixture
def run() -> Iterator[_Run]:
    made = _Run()
    yield made
    made.close()


@pytest.mark.parametrize("foreground", [True, False])
def test_without_sigwaitinfo_the_foreground_decides_what_came_from_the_terminal(
    run: _Run, foreground: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_run_signals, "in_foreground", lambda *groups: foreground)
    run.signals.listen()
    for name in (*ASKED, "SIGCHLD"):
        os.kill(os.getpid(), number_of(name))
    run.signals.take()
    expected = [name for name in ASKED if not foreground or name not in {"SIGINT", "SIGQUIT", "SIGWINCH"}]
    assert sorted(run.got) == sorted(map(number_of, expected))
    assert os.read(run.reading, 100) == bytes(map(number_of, (*ASKED, "SIGCHLD")))  # each wakes `wait`


def test_on_windows_nothing_is_forwarded_since_the_console_tells_all(
    run: _Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_run_signals, "WINDOWS", True)
    os.kill(os.getpid(), signal.SIGINT)
    run.signals.listen()
    os.kill(os.getpid(), signal.SIGINT)
    run.signals.take()
    assert run.got == []
    assert sent_by_terminal(signal.SIGINT, code=None)
    with kept_from_threads():
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_the_listening_thread_forwards_all_but_what_the_terminal_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = [(signal.SIGINT, SI_KERNEL), (signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGWINCH, SI_KERNEL)]
    infos = iter([SimpleNamespace(si_signo=number, si_code=code) for number, code in sent])
    done = threading.Event()

    def waiting(numbers: Any) -> Any:
        for info in infos:
            return info
        done.set()
        return signal.sigwaitinfo(numbers)

    one = _Run(waiting)
    one.signals.listen()
    assert done.wait(60)
    assert one.got == [signal.SIGINT, signal.SIGTERM]
    one.close()


def test_a_full_pipe_does_not_stop_the_listening_thread() -> None:
    infos = iter([SimpleNamespace(si_signo=signal.SIGCHLD, si_code=1, si_pid=0)])
    ready_to_end = threading.Event()

    def waiting(numbers: Any) -> Any:
        for info in infos:
            return info
        ready_to_end.set()
        return signal.sigwaitinfo(numbers)

    one = _Run(waiting)
    try:
        while True:
            os.write(one.writing, b"x" * 4096)
    except BlockingIOError:
        pass
    one.signals.listen()
    assert ready_to_end.wait(60)
    one.close()


def test_a_listening_thread_that_misses_the_signal_to_end_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    kill = signal.pthread_kill

    def missed_once(thread: int, number: int) -> None:
        told.append(number)
        if len(told) > 1:
            kill(thread, number)

    monkeypatch.setattr(signal, "pthread_kill", missed_once)
    monkeypatch.setattr(_run_signals, "_AGAIN", 0.01)
    one = _Run(signal.sigwaitinfo)
    one.signals.listen()
    one.close()  # a thread that nobody ends would hold it up for ever
    assert len(told) > 1


# ---------------------------------------------------------------- who sent it


def test_who_sent_a_signal_is_told_by_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIGINT", "SIGQUIT", "SIGWINCH"):
        assert sent_by_terminal(number_of(name), code=SI_KERNEL)
        assert not sent_by_terminal(number_of(name), code=0)
    # A terminal that hangs up tells the leader of the session alone, and the others when the leader has ended.
    monkeypatch.setattr(os, "getsid", lambda pid: os.getpid())
    assert not sent_by_terminal(signal.SIGHUP, code=SI_KERNEL)
    monkeypatch.setattr(os, "getsid", lambda pid: 1)
    assert sent_by_terminal(signal.SIGHUP, code=SI_KERNEL)


def test_threads_that_are_started_in_the_block_get_no_signal() -> None:
    masks: list[set[int]] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    thread = threading.Thread(target=lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
    with kept_from_threads():
        thread.start()
    thread.join()
    assert {number_of(name) for name in (*ASKED, "SIGCHLD")} <= masks[0]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_the_foreground_is_asked_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(writing)

    def hang_up(*arguments: Any) -> int:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda *arguments: os.dup(reading))
        patch.setattr(os, "tcgetpgrp", lambda terminal: os.getpgrp())
        assert _run_signals.in_foreground()
        assert _run_signals.in_foreground(1, os.getpgrp())
        assert not _run_signals.in_foreground(1)
        patch.setattr(os, "tcgetpgrp", hang_up)
        assert not _run_signals.in_foreground()
        patch.setattr(os, "open", hang_up)
        assert not _run_signals.in_foreground(1)
    os.close(reading)


def test_a_shell_with_jobs_is_in_our_session_and_another_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise ProcessLookupError

    for session, group, expected in ((7, 8, True), (7, os.getpgrp(), False), (6, 8, False)):
        monkeypatch.setattr(os, "getsid", {0: 7, os.getppid(): session}.__getitem__)
        monkeypatch.setattr(os, "getpgid", {os.getppid(): group}.__getitem__)
        assert _run_signals.started_by_a_shell_with_jobs() is expected
    monkeypatch.setattr(os, "getsid", refuse)
    assert not _run_signals.started_by_a_shell_with_jobs()
