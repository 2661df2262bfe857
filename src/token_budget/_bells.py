"""Bells: how one who waits is woken, a thread or a task of asyncio or trio.

A bell may be rung by anyone, from any thread, more than once.
"""

from __future__ import annotations

import sys
import threading
import warnings

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from typing import Any


def _new_lock() -> Any:
    """Return the lock of a bell. Tests replace this function; the class is looked up late for gevent's patches."""
    return threading.Lock()


class ThreadBell:
    """Wakes a thread."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = _new_lock()
        self._lock.acquire()

    def deaf(self) -> bool:
        """Return whether nobody can hear it any more."""
        return False

    def ring(self) -> bool:
        """Wake the thread. Return whether there is anybody to hear it."""
        try:
            self._lock.release()
        except RuntimeError:  # it was rung before
            return True
        return True

    def wait(self, timeout: float | None) -> bool:
        """Block until it is rung, for at most so many seconds. Return whether it was."""
        return bool(self._lock.acquire(timeout=-1 if timeout is None else timeout))


class LoopBell:
    """Wakes a task of an asyncio event loop, from any thread."""

    __slots__ = ("_future", "_loop", "_rung")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._future: Future[None] = loop.create_future()  # of the latest wait
        self._rung = False  # set and read in the loop's own thread, as the future is

    def deaf(self) -> bool:
        """Return whether the loop is closed, so that nobody can hear it any more."""
        return self._loop.is_closed()

    def ring(self) -> bool:
        """Wake the task. Return whether there is a loop left to run it."""
        try:
            self._loop.call_soon_threadsafe(self._ring)
        except RuntimeError:  # the loop is closed
            return False
        return True

    async def wait(self, timeout: float | None) -> bool:
        """Suspend the task until it is rung, for at most so many seconds. Return whether it was."""
        if not self._rung:
            self._future = self._loop.create_future()
            timer = None if timeout is None else self._loop.call_later(timeout, self._wake)
            try:
                await self._future
            finally:
                if timer is not None:
                    timer.cancel()
        rung, self._rung = self._rung, False  # it may be waited for again
        return rung

    def _ring(self) -> None:
        self._rung = True
        self._wake()

    def _wake(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


class TrioBell:
    """Wakes a task of a trio run, from any thread."""

    __slots__ = ("_event", "_over", "_token", "_trio")

    def __init__(self, trio: Any) -> None:
        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()
        self._event = trio.Event()  # of the latest wait; set and read in trio's own thread
        self._over = False  # whether the run was found to have ended

    def deaf(self) -> bool:
        """Return whether the run was found to have ended. A run ends after its tasks, so a waiter leaves before it."""
        return self._over

    def ring(self) -> bool:
        """Wake the task. Return whether there is a run left to hear it."""
        try:
            self._token.run_sync_soon(self._ring)
        except self._trio.RunFinishedError:
            self._over = True
            return False
        return True

    async def wait(self, timeout: float | None) -> bool:
        """Suspend the task until it is rung, for at most so many seconds. Return whether it was."""
        with self._trio.move_on_after(float("inf") if timeout is None else timeout):
            await self._event.wait()
        rung = bool(self._event.is_set())
        if rung:
            self._event = self._trio.Event()  # it may be waited for again
        return rung

    def _ring(self) -> None:
        self._event.set()


# ---------------------------------------------------------------------- who waits: a task or a thread


def task_bell() -> Any:
    """Return a bell for the task that runs: of trio where trio runs it, else of asyncio."""
    trio = _running_trio()
    if trio is not None:
        return TrioBell(trio)
    import asyncio

    return LoopBell(asyncio.get_running_loop())


def warn_in_an_event_loop(stacklevel: int) -> None:
    """Warn if this thread, which is about to wait, runs an event loop."""
    if _running_trio() is not None or ("asyncio" in sys.modules and _asyncio_runs()):
        warnings.warn(
            "reserve(timeout=...) is about to wait in a thread whose event loop is running: no task of the loop "
            "runs meanwhile, and the one that would give room back may be among them. Use `async with "
            "pool.areserve(...)`, or wait in a thread of its own",
            RuntimeWarning,
            stacklevel=stacklevel,
        )


def _asyncio_runs() -> bool:
    import asyncio

    return asyncio._get_running_loop() is not None


def _running_trio() -> Any:
    """Return trio if it runs the task that is running, else None, also while another thread is importing it."""
    trio: Any = sys.modules.get("trio")
    in_trio_task = getattr(getattr(trio, "lowlevel", None), "in_trio_task", None)
    return trio if in_trio_task is not None and in_trio_task() else None
