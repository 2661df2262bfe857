"""The child of `token-budget run`: the user's program, under us, as if we were not there.

It is started in our process group, on our terminal, with our standard input and output and all else that we inherited.
Nothing stands between it and the terminal, so job control, `/dev/tty` and the size of the window are its own.

    with _run_signals.kept_from_threads():  # all threads that are started before the child; no processes
        gateway.start()
    child = Child(command, environ)
    child.start()
    code = child.wait()  # the child has ended, and all that it started
    gateway.close()
    sys.exit(child.finish(code))

From `start` to `finish` no signal raises KeyboardInterrupt or ends us: the child decides. After `wait` a first signal
changes nothing and a second ends us, so that a close that hangs can be left.

If we are killed by SIGKILL, the child lives on and its calls fail, since nobody listens at the gateway's address. Linux
could end the child then (PR_SET_PDEATHSIG), but not what the child started, and it would end an editor with unsaved
work; so we do not ask for that.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from token_budget.cli import _run_signals
from token_budget.cli._run_tree import Ended, Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

NOT_FOUND = 127
NOT_EXECUTABLE = 126
KILLED = 128  # and the signal's number
OWN_END = 0.25  # seconds in which what the child left behind may end by itself
SETTLED = 0.1  # seconds that the child must be stopped, and we not, before we stop as well
PAUSED = 1.0  # a pause of SETTLED seconds that took longer: we were stopped ourselves
WINDOWS = sys.platform == "win32"
_FIRST = Path("/proc/self/environ")


def exit_code_of(error: Exception) -> int:
    """Return the exit status for a program that could not be started: 127 if it was not found, else 126."""
    return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


def end_by_interrupt() -> None:
    """End this process by SIGINT, upon which a shell stops its loop. It returns on Windows, and in a container's first.

    Nothing of Python's runs any more; what is buffered is written before.
    """
    if WINDOWS:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    os.kill(os.getpid(), signal.SIGINT)


def inherited(environ: Mapping[str, str], first: Path = _FIRST) -> dict[str, str]:
    """Return the environment as this process got it: where the locale is C, Python sets LC_CTYPE for itself.

    Args:
        environ: the environment as it is now.
        first: a file that says what it was when this process began, each variable ended by a zero.
    """
    if environ.get("LC_CTYPE") in {"C.UTF-8", "C.utf8", "UTF-8"}:
        with suppress(OSError):  # as on macOS
            if not any(one.startswith(b"LC_CTYPE=") for one in first.read_bytes().split(b"\0")):
                return {name: value for name, value in environ.items() if name != "LC_CTYPE"}
    return dict(environ)


def left_behind(ended: Ended) -> str | None:
    """Return the line for processes that outlived the child, None if there were none."""
    parts = []
    if ended.ended:
        parts.append(f"ended {ended.ended} {_processes(ended.ended)} that the program left behind")
    if ended.left:
        pids = ", ".join(map(str, ended.left))
        parts.append(f"could not end {len(ended.left)} {_processes(len(ended.left))} (pid {pids})")
    return "; ".join(parts) or None


def _processes(count: int) -> str:
    return "process" if count == 1 else "processes"


class Child:
    """One run of a program.

    `start`, `wait` and `finish` are called by the main thread, in this order. `end` may be called by any thread.

    Args:
        command: the program and its arguments. The program is looked for in the PATH of `environ`.
        environ: all environment variables of the program.

    Attributes:
        left: what became of the processes that the program left behind; set when `wait` returns.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], *, tree: Tree | None = None) -> None:
        self._command = list(command)
        self._environ = dict(environ)
        self._tree = Tree() if tree is None else tree
        self._signals: _run_signals.Signals | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        self._watcher: threading.Thread | None = None
        self._lock = threading.Lock()  # over what follows, and over sending a signal: a reaped child is sent none
        self._status: int | None = None  # as Popen's returncode
        self._wake: tuple[int, int] | None = None
        self._end_asked = False
        self.left: Ended = Ended()

    def __repr__(self) -> str:
        return f"<Child {self._command[0]!r}, pid {self.pid}>"

    @property
    def pid(self) -> int | None:
        """The child's process id; None before `start`, and if a signal came so early that nothing was started."""
        return None if self._popen is None else self._popen.pid

    def start(self) -> None:
        """Start the program. If a signal asks us to end just before, it is not started, and `wait` says so.

        Raises:
            OSError: it cannot be started; `exit_code_of` gives the exit status. All is as before the call.
            RuntimeError: there is no thread to watch over it, so it was killed as soon as it was started.
        """
        reading, writing = os.pipe()
        if not WINDOWS:  # there `set_wakeup_fd` takes it as it is
            os.set_blocking(writing, False)
        self._wake = reading, writing
        self._signals = _run_signals.Signals(self._forward, writing)
        try:
            self._tree.open()
            self._signals.install()
            if (number := self._signals.ending()) is not None:
                self._status = -number
                return
            self._popen = start(self._command, self._environ)
            self._tree.started(self._popen.pid)
            self._signals.listen()
            self._watcher = threading.Thread(target=self._watch, name="token-budget child", daemon=True)
            self._watcher.start()
        except BaseException:
            if self._popen is not None:  # no thread could be started
                self._popen.kill()
                self._popen.wait()
                self._tree.end(hurry=lambda: True)
            self.close()
            raise

    def wait(self) -> int:
        """Wait until the program has ended, and end what it left behind; return the exit status for us to end with.

        That is the program's own; 128 + n if signal n ended it. Blocks. Reaps orphans meanwhile, and does what `end`
        asked.
        """
        assert self._wake is not None  # noqa: S101 - `start` was called
        assert self._signals is not None  # noqa: S101
        while self._status is None:
            os.read(self._wake[0], 4096)
            self._signals.take()
            self._tree.reap()
            if self._end_asked:
                self._end_asked = False
                self._tree.end(hurry=self._impatient)
        if self._watcher is not None:
            self._watcher.join()
            self.left = self._tree.end(wait=OWN_END, hurry=self._impatient)
        self._signals.stop()
        return self._status if self._status >= 0 else KILLED - self._status

    def end(self) -> None:
        """Ask that the program and all its descendants are ended. Callable in any thread; `wait` does the work."""
        self._end_asked = True
        self._rouse()

    def finish(self, code: int) -> int:
        """Bring back signals and all else that `start` changed; end us by SIGINT if that ended the program.

        A shell stops its loop only if SIGINT ended the command in it. Call it last: nothing runs after it then.

        Args:
            code: the exit status that we are about to end with; returned unless we are ended.
        """
        self.close()
        if self._status == -signal.SIGINT and code == KILLED + signal.SIGINT:
            end_by_interrupt()
        return code

    def close(self) -> None:
        """Bring back signals and all else that `start` changed. A child that still runs goes on. Idempotent."""
        if self._signals is not None:
            self._signals.restore()
        self._tree.close()
        with self._lock:
            wake, self._wake = self._wake, None
        for end in wake or ():
            os.close(end)

    def _impatient(self) -> bool:
        return self._signals is not None and self._signals.impatient

    def _rouse(self) -> None:
        with self._lock:
            if self._wake is not None:
                with suppress(BlockingIOError):  # full: then `wait` wakes as well
                    os.write(self._wake[1], b"\0")

    def _forward(self, number: int) -> None:
        with self._lock:
            if self._status is None and self._popen is not None:
                with suppress(
                    PermissionError
                ):  # a program of another user, as sudo's: the terminal reaches it, we do not
                    os.kill(self._popen.pid, number)
            elif self._signals is not None and number in _run_signals.ENDING:
                self._signals.impatient = True

    def _watch(self) -> None:
        """Wait for the child's end in a thread. The lock is held as it is reaped: no signal meets another process."""
        assert self._popen is not None  # noqa: S101 - `start` started it
        if hasattr(os, "waitid"):
            with suppress(ChildProcessError):  # somebody reaped it; Popen then says 0
                wait_for_end(self._popen.pid)
        else:  # Windows, and macOS before 3.13
            self._popen.wait()
        with self._lock:
            self._status = self._popen.wait()
        self._rouse()


def wait_for_end(
    pid: int, *, clock: Callable[[], float] = time.monotonic, pause: Callable[[float], object] = time.sleep
) -> None:
    """Block until the child has ended, and leave it to be reaped. Where it alone stops, as a shell's job, stop as well.

    A program may stop itself and not its group. Its shell then waits for us, who go on, and the terminal hangs.
    """
    while True:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
        if found is None or found.si_code != os.CLD_STOPPED:
            return
        begun = clock() - PAUSED
        while clock() - begun >= PAUSED:  # Ctrl-Z and `fg` reach us and it one after the other
            begun = clock()
            pause(SETTLED)
        if os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG) is not None:
            _stop_with(pid)


def _stop_with(pid: int) -> None:
    """Stop as well, if our shell then takes the terminal back; return when it has continued us."""
    ours = os.getpgrp()
    try:
        its = os.getpgid(pid)
    except ProcessLookupError:  # killed meanwhile
        return
    if _run_signals.in_foreground(ours, its) and _run_signals.started_by_a_shell_with_jobs():
        signal.pthread_kill(
            threading.get_ident(), signal.SIGSTOP
        )  # this thread goes no further; `os.kill` would let it
        if its != ours:  # as a shell that is the child: ours continued our group alone
            os.kill(pid, signal.SIGCONT)


def start(command: Sequence[str], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program as a shell would: what we inherited is inherited, and a script without `#!` is run by `sh`."""
    command = list(command)
    if WINDOWS:  # npm's programs are `.cmd` files, which only a search by PATHEXT finds
        command[0] = shutil.which(command[0], path=environ.get("PATH")) or command[0]
    try:
        return subprocess.Popen(command, env=environ, close_fds=False)  # noqa: S603 - it is the user's own command
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
    script = shutil.which(command[0], path=environ.get("PATH")) or command[0]
    return subprocess.Popen(["/bin/sh", script, *command[1:]], env=environ, close_fds=False)  # noqa: S603
