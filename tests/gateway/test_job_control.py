"""A run in a terminal: the keys reach the child once, and a shell's job control works as without us."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("psutil")
if sys.platform != "linux":
    pytest.skip("the terminals of these tests are Linux's", allow_module_level=True)

import fcntl

import psutil  # type: ignore[import-untyped]

from ran_programs import LISTENER, UNDER, state, until
from token_budget.cli import _run_signals
from token_budget.cli._run_child import PAUSED, SETTLED, wait_for_end

INTERACTIVE = {"sh": [], "dash": [], "bash": ["--norc", "--noprofile", "--noediting"]}
# Those that are installed, each once: `sh` is often one of the others.
SHELLS = {
    os.path.realpath(path): [name, *options, "-i"]
    for name, options in INTERACTIVE.items()
    if (path := shutil.which(name))
}

# Stops itself alone when it is told to, in its own group if it has an argument; says when it was continued.
STOPPER = """
import os, signal, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
def front():
    if sys.argv[1:]:
        os.tcsetpgrp(0, os.getpgrp())
if sys.argv[1:]:
    os.setpgid(0, 0)
    front()
os.write(1, f"ready {os.getpid()}\\n".encode())
while line := sys.stdin.readline():
    os.kill(os.getpid(), signal.SIGSTOP)
    front()
    os.write(1, b"continued\\n")
sys.exit(9)
"""


class Terminal:
    """A pseudo-terminal with a program on it that leads the session."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.master, self.slave = os.openpty()
        slave = self.slave  # kept open: before the program opens it, the master would say that nobody is there
        settings = termios.tcgetattr(slave)
        settings[3] &= ~termios.ECHO  # what is typed must not look like what is said
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        # The leader of a session that opens a terminal has it as its own from then on.
        opening = ["/bin/sh", "-c", 'exec 0<>"$0" >&0 2>&0; exec "$@"', os.ttyname(slave), *command]
        environ = {**os.environ, "PS1": "", "ENV": "", "HISTFILE": "", "TERM": "dumb"}
        self.process = subprocess.Popen(opening, cwd=folder, start_new_session=True, env=environ)
        self.said = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, pattern: str) -> re.Match[str]:
        """Read until the pattern has been said since the last `expect`; forget what was said up to it."""
        deadline = time.monotonic() + 60
        while (found := re.search(pattern, self.said)) is None:
            assert select.select([self.master], [], [], deadline - time.monotonic())[0], self.said
            self.said += os.read(self.master, 4096).decode().replace("\r\n", "\n")
        self.said = self.said[found.end() :]
        return found

    def close(self) -> None:
        everyone = [psutil.Process(self.process.pid)] if psutil.pid_exists(self.process.pid) else []
        everyone += [child for one in everyone for child in one.children(recursive=True)]
        for one in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@contextmanager
def terminal(command: list[str], folder: Path) -> Iterator[Terminal]:
    for name, program in (("under", UNDER), ("listener", LISTENER), ("stopper", STOPPER)):
        file = folder / name
        file.write_text(f"#!{sys.executable} -{'' if name == 'under' else 'S'}B\n{program}")
        file.chmod(0o755)
    made = Terminal(command, folder)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(params=SHELLS.values(), ids=[command[0] for command in SHELLS.values()])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    with terminal(request.param, tmp_path) as made:
        yield made


def started(shell: Terminal, command: str) -> tuple[int, int]:
    """Type a command; return the process ids of the child and of us, when the child is ready."""
    shell.type(f"{command}\n")
    child = int(shell.expect(r"ready (\d+)\n")[1])
    return child, psutil.Process(child).ppid()


def both(one: int, other: int, *, stopped: bool) -> Callable[[], bool]:
    return lambda: (state(one) == "stopped") is (state(other) == "stopped") is stopped


# ---------------------------------------------------------------- keys


KEYS: dict[str, Callable[[Terminal], None]] = {
    "SIGINT": lambda shell: shell.type("\x03"),
    "SIGQUIT": lambda shell: shell.type("\x1c"),
    "SIGWINCH": lambda shell: shell.resize(30, 90),
}


def test_what_the_terminal_sends_reaches_the_child_exactly_once(shell: Terminal) -> None:
    _, us = started(shell, "./under ./listener")
    for name, press in KEYS.items():
        press(shell)
        shell.expect(f"{name}\n")
        os.kill(us, signal.SIGUSR1)  # forwarded by the same thread, and so after what it would have forwarded before
        shell.expect("^SIGUSR1\n")
    os.kill(us, signal.SIGINT)
    shell.expect("^SIGINT\n")
    shell.type("\x04echo status $?\n")
    shell.expect("^status 9\n")


def test_ctrl_c_ends_the_loop_of_a_shell_around_us(shell: Terminal) -> None:
    shell.type("for i in 1 2 3; do ./under /bin/sh -c 'echo start''ed; exec sleep 1000'; done\n")
    shell.expect("started\n")
    shell.type("\x03")
    shell.type("echo aft''er\n")
    shell.expect("after\n")
    assert "started" not in shell.said


def test_a_child_that_lives_through_ctrl_c_lets_the_loop_go_on(shell: Terminal) -> None:
    shell.type("for i in 1 2; do ./under ./listener; done\n")
    for _ in range(2):
        shell.expect(r"ready \d+\n")
        shell.type("\x03")
        shell.expect("SIGINT\n")
        shell.type("\x04")
    shell.type("echo aft''er\n")
    shell.expect("after\n")


# ---------------------------------------------------------------- job control


def test_ctrl_z_stops_us_both_and_fg_continues_us_both(shell: Terminal) -> None:
    child, us = started(shell, "./under ./listener")
    for _ in range(2):
        shell.type("\x1a")
        until(both(child, us, stopped=True))
        shell.type("echo shell''-is-back\n")
        shell.expect("shell-is-back\n")
        shell.type("fg\n")
        shell.expect("SIGCONT\n")
        until(both(child, us, stopped=False))
        shell.type("word\n")
        shell.expect("read word\n")
    assert "SIGCONT" not in shell.said
    shell.type("\x04echo status $?\n")
    shell.expect("status 9\n")


def test_a_stopped_run_that_is_continued_in_the_background_is_ended_by_kill(shell: Terminal) -> None:
    child, us = started(shell, "./under /bin/sh -c 'echo ready $$; exec sleep 1000'")
    shell.type("\x1a")
    until(both(child, us, stopped=True))
    shell.type("bg\n")
    until(both(child, us, stopped=False))
    shell.type("kill %1; wait %1; echo status $?\n")
    shell.expect("status 143\n")
    assert {state(child), state(us)} <= {"gone", "zombie"}


@pytest.mark.parametrize("group", ["", " own-group"])
def test_a_child_that_stops_itself_alone_gives_the_terminal_back_to_the_shell(shell: Terminal, group: str) -> None:
    child, us = started(shell, f"./under ./stopper{group}")
    for _ in range(2):
        shell.type("stop\n")
        until(both(child, us, stopped=True))
        shell.type("echo shell''-is-back\n")
        shell.expect("shell-is-back\n")
        shell.type("fg\n")
        shell.expect("continued\n")
    shell.type("\x04echo status $?\n")
    shell.expect("status 9\n")


def test_the_child_reads_and_writes_the_terminal_itself(shell: Terminal) -> None:
    shell.resize(33, 99)
    shell.type("./under /bin/sh -c 'read -r word </dev/tty; echo got $word $(stty size) >/dev/tty'\n")
    shell.type("this\n")
    shell.expect("got this 33 99\n")


def test_a_terminal_that_hangs_up_ends_the_child_and_us(shell: Terminal) -> None:
    child, us = started(shell, "./under /bin/sh -c 'echo ready $$; exec sleep 1000'")
    master, shell.master = shell.master, os.open(os.devnull, os.O_RDONLY)
    os.close(master)
    until(lambda: {state(child), state(us)} <= {"gone", "zombie"})


def test_a_terminal_that_hangs_up_tells_the_child_of_a_run_that_leads_the_session(tmp_path: Path) -> None:
    code = "trap 'echo hung >hung; exit 7' HUP; echo ready $$; while :; do sleep 0.05; done"
    with terminal(["./under", "/bin/sh", "-c", code], tmp_path) as alone:
        alone.expect(r"ready (\d+)\n")
        master, alone.master = alone.master, os.open(os.devnull, os.O_RDONLY)
        os.close(master)
        assert alone.process.wait(60) == 7
    assert (tmp_path / "hung").exists()


@pytest.mark.skipif(shutil.which("tmux") is None or shutil.which("bash") is None, reason="tmux or bash is missing")
def test_keys_and_jobs_in_tmux(tmp_path: Path) -> None:
    def tmux(*arguments: str) -> str:
        command = ["tmux", "-S", str(tmp_path / "socket"), "-f", "/dev/null", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environ, cwd=tmp_path).stdout

    def shows(*words: str) -> Callable[[], bool]:
        expected.extend(words)
        said = re.compile(r"ready|SIG\w+|Stopped|back|read word|status \d+")
        return lambda: said.findall(tmux("capture-pane", "-p")) == expected

    environ = {**os.environ, "PS1": "", "TERM": "xterm"}
    expected: list[str] = []
    with terminal(["true"], tmp_path):
        pass  # for its programs
    tmux("new-session", "-d", "-x", "80", "-y", "24", "bash --norc --noprofile")
    try:
        tmux("send-keys", "./under ./listener", "Enter")
        until(shows("ready"))
        tmux("send-keys", "C-c")
        until(shows("SIGINT"))
        tmux("send-keys", "C-z")
        until(shows("Stopped"))
        tmux("send-keys", "echo ba''ck", "Enter")
        until(shows("back"))
        tmux("send-keys", "fg", "Enter")
        until(shows("SIGCONT"))
        tmux("send-keys", "word", "Enter")
        until(shows("read word"))
        tmux("send-keys", "C-d")
        tmux("send-keys", "echo status $?", "Enter")
        until(shows("status 9"))
    finally:
        tmux("kill-server")


# ---------------------------------------------------------------- the child's stop, in this process


class Stops:
    """A child that stops itself once and then exits; what is sent to us and to it is noted."""

    def __init__(self, patch: pytest.MonkeyPatch, *, group: int | None = None) -> None:
        self.process = subprocess.Popen(["/bin/sh", "-c", "kill -STOP $$; exit 4"])
        self.sent: list[tuple[str, int]] = []
        self.pauses = 0
        self.now = 0.0
        self.real = os.kill
        patch.setattr(os, "kill", self.kill)
        patch.setattr(signal, "pthread_kill", self.stop)
        patch.setattr(_run_signals, "started_by_a_shell_with_jobs", lambda: True)
        patch.setattr(_run_signals, "in_foreground", lambda *groups: True)
        if group is not None:
            patch.setattr(os, "getpgid", lambda pid: group)

    def stop(self, thread: int, number: int) -> None:
        assert thread == threading.get_ident()
        self.sent.append(("us", number))
        if os.getpgid(self.process.pid) == os.getpgrp():
            self.real(self.process.pid, signal.SIGCONT)  # as the shell does, to the group

    def kill(self, pid: int, number: int) -> None:
        self.sent.append(("child", number))
        self.real(pid, number)

    def pause(self, seconds: float) -> None:
        assert seconds == SETTLED
        self.pauses += 1
        self.now += seconds

    def wait(self, pause: Callable[[float], object] | None = None) -> int:
        wait_for_end(self.process.pid, clock=lambda: self.now, pause=pause or self.pause)
        return self.process.wait()


def test_we_stop_with_a_child_of_our_group_and_the_shell_continues_both(monkeypatch: pytest.MonkeyPatch) -> None:
    stops = Stops(monkeypatch)
    assert stops.wait() == 4
    assert stops.sent == [("us", signal.SIGSTOP)]
    assert stops.pauses == 1


def test_a_child_of_another_group_is_continued_by_us(monkeypatch: pytest.MonkeyPatch) -> None:
    stops = Stops(monkeypatch, group=1)
    assert stops.wait() == 4
    assert stops.sent == [("us", signal.SIGSTOP), ("child", signal.SIGCONT)]


def test_a_child_that_is_continued_at_once_does_not_stop_us(monkeypatch: pytest.MonkeyPatch) -> None:
    stops = Stops(monkeypatch)
    assert stops.wait(lambda seconds: stops.real(stops.process.pid, signal.SIGCONT)) == 4
    assert stops.sent == []


def test_a_pause_in_which_we_were_stopped_ourselves_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def pause(seconds: float) -> None:  # Ctrl-Z stopped both, and `fg` continues us first
        stops.pause(seconds)
        if stops.pauses == 1:
            stops.now += PAUSED
        else:
            stops.real(stops.process.pid, signal.SIGCONT)

    stops = Stops(monkeypatch)
    assert stops.wait(pause) == 4
    assert (stops.sent, stops.pauses) == ([], 2)


@pytest.mark.parametrize("name", ["in_foreground", "started_by_a_shell_with_jobs"])
def test_we_go_on_where_no_shell_waits_for_the_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()

    def answer(*groups: int) -> bool:
        asked.set()
        return False

    stops = Stops(monkeypatch)
    monkeypatch.setattr(_run_signals, name, answer)

    def go_on() -> None:
        assert asked.wait(60)
        stops.real(stops.process.pid, signal.SIGCONT)

    thread = threading.Thread(target=go_on)
    thread.start()
    assert stops.wait() == 4
    thread.join()
    assert stops.sent == []


def test_a_child_that_is_killed_while_it_is_stopped_does_not_stop_us(monkeypatch: pytest.MonkeyPatch) -> None:
    def getpgid(pid: int) -> int:
        stops.real(pid, signal.SIGKILL)
        raise ProcessLookupError

    stops = Stops(monkeypatch)
    monkeypatch.setattr(os, "getpgid", getpgid)
    assert stops.wait() == -signal.SIGKILL
    assert stops.sent == []
