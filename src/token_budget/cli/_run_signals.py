"""Signals of `token-budget run`: what is sent to us alone reaches the child once, what it has already does not.

Ctrl-C goes to every process of the terminal's foreground group, so the child has it without us. `kill PID`, a
service manager and a CI runner signal us alone, and the child learns of it only from us. The kernel tells the two
apart: a signal that the terminal sent has ``si_code == SI_KERNEL``. A handler of Python does not get that number;
`sigwaitinfo` does. It needs the signals blocked in every thread, and a process that is started inherits what is
blocked. So the order is:

1. `Signals.install`: handlers. A handler is not inherited; an ignored signal is, and stays as we found it (`nohup`).
2. The child is started.
3. `Signals.listen`: the signals are blocked, and a thread waits for them.
4. `Signals.stop`, when the child has ended: the handlers again. A first signal changes nothing, a second ends us.
5. `Signals.restore`: all as before step 1.

Threads that exist before step 3 are started within `kept_from_threads()`. A signal that one of them gets all the same
is handled as on macOS, which has no `sigwaitinfo`: by a handler, and it counts as the terminal's where our group is in
the terminal's foreground.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

SI_KERNEL = 0x80  # <asm-generic/siginfo.h>: the kernel sent it, as the terminal's driver does
WAITING: Callable[[Any], Any] | None = getattr(signal, "sigwaitinfo", None)
WINDOWS = sys.platform == "win32"
_AGAIN = 0.5  # seconds until the listening thread is told once more to end


def _numbers(*names: str) -> frozenset[int]:
    return frozenset(int(getattr(signal, name)) for name in names if hasattr(signal, name))


ENDING = _numbers("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGBREAK")  # they ask a program to end
FORWARDED = ENDING | _numbers("SIGUSR1", "SIGUSR2", "SIGWINCH")
CHILD = _numbers("SIGCHLD")  # a child has ended or stopped; an orphan that we adopted too


@contextmanager
def kept_from_threads() -> Iterator[None]:
    """Block the signals while the block runs, so that threads started in it never get one.

    Start no process in it: a process inherits what is blocked.
    """
    if WINDOWS:
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | CHILD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def in_foreground(*groups: int) -> bool:
    """Return whether the terminal's keys signal one of these process groups: ours, if none is given.

    False without a terminal.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) in (groups or (os.getpgrp(),))
    except OSError:  # hung up in between
        return False
    finally:
        os.close(terminal)


def started_by_a_shell_with_jobs() -> bool:
    """Return whether our parent is in our session and in another group: it is told when we stop and can continue us."""
    try:
        parent = os.getppid()
        return os.getsid(parent) == os.getsid(0) and os.getpgid(parent) != os.getpgrp()
    except OSError:  # the parent has just ended, or its session may not be asked for
        return False


def sent_by_terminal(number: int, *, code: int | None) -> bool:
    """Return whether the child has the signal already, since the terminal sent it to our whole group.

    Args:
        number: the signal.
        code: its ``si_code``; None if it is not known.
    """
    if WINDOWS:  # the console tells all of its processes, and nothing else can be sent
        return True
    if code is None:
        return number in _numbers("SIGINT", "SIGQUIT", "SIGWINCH") and in_foreground()
    if code != SI_KERNEL:
        return False
    # Of a terminal that hangs up only the leader of the session is told.
    return number not in _numbers("SIGHUP") or os.getsid(0) != os.getpid()


class Signals:
    """The signals of one run. `install`, `listen`, `take`, `stop` and `restore` are called by the main thread.

    Python lets no other thread set handlers: there all of it does nothing, and signals do what they did before.

    Args:
        forward: called with each signal that the child must be sent; by the listening thread or the main thread.
        wake: the non-blocking end of a pipe, to which a byte is written for each signal.
        waiting: `signal.sigwaitinfo`, or None where there is none.

    Attributes:
        impatient: a signal asked us to end after the child had ended; the next one will end us.
    """

    def __init__(
        self,
        forward: Callable[[int], None],
        wake: int,
        *,
        waiting: Callable[[Any], Any] | None = WAITING,
    ) -> None:
        self._forward = forward
        self._wake = wake
        self._waiting = waiting
        self._heard: deque[int] = deque()  # by a handler, not looked at yet
        self._former: dict[int, Any] = {}
        self._former_wake = -1
        self._former_mask: set[int] | None = None
        self._thread: threading.Thread | None = None
        self._over = False
        self.impatient = False

    def install(self) -> None:
        """Handle the signals, except those that are ignored. The child must be started after this."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._former_wake = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in sorted(FORWARDED | CHILD):
            former = signal.getsignal(number)
            # With SIGCHLD ignored, the kernel would throw the child's exit status away. None: a handler in C.
            if former is not None and (former is not signal.SIG_IGN or number in CHILD):
                self._former[number] = former
                signal.signal(number, self._handle)

    def ending(self) -> int | None:
        """Return a signal that came since `install` and asks us to end, or None."""
        return next((number for number in self._heard if number in ENDING), None)

    def listen(self) -> None:
        """Wait for signals in a thread, now that the child runs; forward those that came before.

        A child of that age hardly has a handler: either the signal has ended it, or it came before there was a child.
        """
        if self._waiting is not None and self._former:
            self._former_mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._former)
            self._thread = threading.Thread(target=self._listen, name="token-budget signals", daemon=True)
            self._thread.start()
        while self._heard:
            self._pass_on(self._heard.popleft())

    def take(self) -> None:
        """Forward what handlers heard: all signals without `sigwaitinfo`, else those of threads that block none."""
        while self._heard:
            number = self._heard.popleft()
            if not sent_by_terminal(number, code=None):
                self._pass_on(number)

    def stop(self) -> None:
        """End the thread: the child has ended. From now on the first signal is only noted, and the second ends us."""
        if self._thread is not None and self._thread.ident is not None:
            while self._thread.is_alive():  # once is enough, but where a kernel merges it with a child's, not taken yet
                signal.pthread_kill(self._thread.ident, signal.SIGCHLD)
                self._thread.join(_AGAIN)
            self._thread = None
        self._over = True
        if self._former_mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._former_mask)
            self._former_mask = None

    def restore(self) -> None:
        """Bring back the handlers that `install` found. Idempotent."""
        self.stop()
        if self._former:
            for number, former in self._former.items():
                signal.signal(number, former)
            self._former = {}
            signal.set_wakeup_fd(self._former_wake)

    def _listen(self) -> None:
        assert self._waiting is not None  # noqa: S101 - `listen` looked
        while True:
            info = self._waiting(self._former)
            if info.si_signo in CHILD:
                if info.si_code <= 0 and info.si_pid == os.getpid():  # not the kernel, but `stop`
                    return
                with suppress(BlockingIOError):  # full: then it wakes as well
                    os.write(self._wake, b"\0")
            elif not sent_by_terminal(info.si_signo, code=info.si_code):
                self._pass_on(info.si_signo)

    def _pass_on(self, number: int) -> None:
        if number not in CHILD and not WINDOWS:  # `os.kill` ends a program there, whatever the signal
            self._forward(number)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self._over:
            self._heard.append(number)
        elif number in ENDING and self.impatient:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif number in ENDING:
            self.impatient = True
