"""The tree of processes that a child starts: find all of it, end all of it, reap what we adopted.

A process that outlives its parent is adopted by the nearest ancestor that asked for that. On Linux we ask, so that a
double fork, `setsid` and `nohup` stay in the tree; what is adopted must be reaped by us, or it stays a zombie. macOS
and Windows have no such wish: there a process whose parent has ended is not found any more.

While a tree lives, our process starts no process beside the child: it would be taken for one that was adopted.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 2.0  # seconds from SIGTERM to SIGKILL
GIVEN_UP = 5.0  # seconds after SIGKILL; a process that hangs in the kernel may not end before
STEP = 0.02  # seconds between two looks
PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
PR_GET_CHILD_SUBREAPER = 37
LINUX = sys.platform == "linux"


@dataclass(frozen=True)
class Ended:
    """What became of a tree.

    Attributes:
        ended: how many processes were ended.
        left: the ids of those that could not be ended, since they belong to another user or hang in the kernel.
    """

    ended: int = 0
    left: tuple[int, ...] = ()


def subreaper(*, wanted: bool) -> bool | None:
    """Say whether we adopt descendants whose parent has ended; return what was said before, None if nothing can be."""
    if not LINUX:
        return None
    try:
        import ctypes

        prctl = ctypes.CDLL(None, use_errno=True).prctl
        former = ctypes.c_int()
        asked = prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(former), 0, 0, 0)
        said = prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(wanted), 0, 0, 0)
    except (ImportError, OSError, AttributeError):  # an interpreter without ctypes, a libc without prctl
        return None
    return None if asked or said else bool(former.value)


def _next_zombie() -> int | None:
    """Return the id of a child that has ended and waits to be reaped, 0 if there is none; None without any child."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return 0 if found is None else found.si_pid


class Tree:
    """The descendants of one child.

    `open` is called before the child is started, `close` when it and its tree have ended. One thread uses it at a time.

    Args:
        clock: seconds, monotonic.
        pause: waits that many seconds between two looks at the processes.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, pause: Callable[[float], object] = time.sleep
    ) -> None:
        self._clock = clock
        self._pause = pause
        self._adopts = False
        self._former: bool | None = None
        self._child: Any = None  # the psutil.Process, where we do not adopt
        self._pid = 0
        self._owned: set[int] = set()  # children that are reaped elsewhere: the child, and those from before
        self._others: set[Any] = set()  # psutil.Process: children from before, as of a shell that was replaced by us

    def open(self) -> None:
        """Adopt orphans from now on, and remember which children there are already: they are no part of the tree."""
        self._former = subreaper(wanted=True)
        self._adopts = self._former is not None
        if not self._adopts or _next_zombie() is not None:
            import psutil  # type: ignore[import-untyped]

            self._others = set(psutil.Process().children())
            self._owned = {process.pid for process in self._others}

    def started(self, pid: int) -> None:
        """Say which process is the child."""
        self._owned.add(pid)
        self._pid = pid
        if not self._adopts:
            import psutil

            with suppress(psutil.Error):  # it has ended already
                self._child = psutil.Process(pid)

    def reap(self) -> None:
        """Reap the adopted processes that have ended. Never the child, nor children from before. Does not block."""
        while self._adopts and (pid := _next_zombie()):
            if pid == self._pid and not self._others:  # it is about to be reaped, and then the others are seen
                return
            if pid in self._owned:  # it hides those behind it
                self._reap_others()
                return
            _reap(pid)

    def _reap_others(self) -> None:
        import psutil

        for process in psutil.Process().children():
            with suppress(psutil.Error):
                if process.pid not in self._owned and process.status() == psutil.STATUS_ZOMBIE:
                    _reap(process.pid)

    def end(self, *, wait: float = 0.0, hurry: Callable[[], bool] = bool) -> Ended:
        """End the child and all its descendants: SIGTERM and SIGCONT, after 2 s SIGKILL, until none is left. Blocks.

        A process that one look missed, since it was just being started, is found by the next. psutil compares the times
        at which processes started, so that a process that got the id of one that ended is not signalled.

        Args:
            wait: seconds in which processes may end by themselves first; they do not count as ended.
            hurry: as soon as it returns True, nothing is waited for any more: SIGKILL.
        """
        begun = self._clock()
        told: dict[Any, int] = {}  # process: the last signal it was sent
        while members := self._living(told):
            seconds = self._clock() - begun - wait
            if seconds >= PATIENCE + GIVEN_UP or all(told.get(process, 0) < 0 for process in members):
                break
            if seconds >= 0 or hurry():
                kill = seconds >= PATIENCE or hurry()
                for process in members:
                    self._tell(process, told, kill=kill)
            self._pause(STEP)
        ended = sum(number > 0 and process not in members for process, number in told.items())
        return Ended(ended, tuple(sorted(process.pid for process in members)))

    def _living(self, told: dict[Any, int]) -> list[Any]:
        """Return the living processes of the tree, and those of `told` that still live."""
        self.reap()
        if self._adopts and not told and not self._others and _next_zombie() is None:
            return []  # the usual end; psutil is not even imported
        import psutil

        me = psutil.Process()
        if self._adopts:
            found = me.children(recursive=True)
        else:
            found = [] if self._child is None else [self._child, *_children(self._child)]
        strangers = set(self._others)
        if strangers:  # parents stand before their children
            pids = {process.pid for process in strangers}
            for process in found:
                with suppress(psutil.Error):
                    if process.ppid() in pids:
                        strangers.add(process)
                        pids.add(process.pid)
        every = dict.fromkeys([*found, *told])
        return [process for process in every if process not in strangers and _lives(process)]

    def _tell(self, process: Any, told: dict[Any, int], *, kill: bool) -> None:
        import psutil

        number = getattr(signal, "SIGKILL", signal.SIGTERM) if kill else signal.SIGTERM
        if abs(told.get(process, 0)) == number:
            return
        try:
            process.send_signal(number)
            if not kill and hasattr(signal, "SIGCONT"):
                process.send_signal(signal.SIGCONT)  # one that is stopped does not see SIGTERM
            told[process] = number
        except psutil.AccessDenied:
            told[process] = -number
        except psutil.Error:  # it has ended by itself
            pass

    def close(self) -> None:
        """Adopt no more, if we did not before. Idempotent."""
        if self._former is False:
            subreaper(wanted=False)
        self._former = None


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _children(process: Any) -> list[Any]:
    import psutil

    try:
        children: list[Any] = process.children(recursive=True)
    except psutil.Error:
        return []
    return children


def _lives(process: Any) -> bool:
    import psutil

    try:
        if not process.is_running():
            return False
        # What we can reap is reaped before. A zombie that is ours still has threads, without its main thread.
        return bool(process.status() != psutil.STATUS_ZOMBIE or process.ppid() == os.getpid())
    except psutil.Error:
        return False
