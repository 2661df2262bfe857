"""The hand: the one worker thread of a family, which does steps of the store off event loops and off finalisers.

The thread is a daemon that starts when it is first needed, and does its jobs one after another in the order in which
they were given. So `areserve` keeps the order of its calls. A job that a finaliser gives is repeated until the store
answers. A job that a task awaits is not. So that many of them end within about one time-out of the store, all that were
queued before a job that ran into the time-out ended get that job's answer. A failure within 0.1 s was no time-out, and
a store that lets calls pass (`Allowing`) is to hear of each call: the jobs behind such a failure are tried.
"""

from __future__ import annotations

import _thread
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from token_budget._bells import ThreadBell, TrioBell, task_bell
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreLost
from token_budget.stores._store import Store

T = TypeVar("T")

_NEVER = float("inf")
_LONG = 0.1  # seconds: an answer of BudgetUnavailable that took less was no time-out
_AGAIN = 1.0  # seconds until what the store did not answer is tried again, and between two calls of `tend_soon`
_logger = logging.getLogger("token_budget")

_ITSELF = (
    "a callback that a pool calls in its worker thread cannot await one of the pool's methods there, which that thread "
    "would have to do: use the one that blocks, as record() for arecord()"
)


class Hand:
    """The worker thread of one family.

    Whoever takes the one item of `_idle` starts the thread, which gives the item back as it ends: so there is at most
    one thread, and a finaliser can start it without a lock.
    """

    begun: bool  # whether the store is tended as of the first grant of this process

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lets_pass = hasattr(store, "passing")  # an `Allowing`
        self.forked()

    def forked(self) -> None:
        """Begin anew, without a thread and without jobs: at first, and in a forked child."""
        self.begun = False
        self._queue: SimpleQueue[Job | None] = SimpleQueue()  # None only wakes the thread
        self._idle: list[None] = [None]
        self.thread: int | None = None  # the thread's identity while it runs
        self._again: deque[Job] = deque()  # what finalisers gave and the store did not answer
        self._again_at = _NEVER
        self._due = _NEVER  # when `Store.tend` is to be called next
        self._tended = -_NEVER
        # Of the last job, if that ran into the store's time-out: its error, and when that came.
        self._failure: tuple[BudgetUnavailable, float] | None = None
        self._failed = False  # whether the store did not answer the last job

    # ------------------------------------------------------------------ giving it something to do

    def begin(self) -> None:
        """See what the store has to tend, and start the thread if there is anything.

        For whoever was just granted the first claim of this process: ``if not hand.begun: hand.begin()``.
        """
        self.begun = True
        seconds = self._store.tend()
        if seconds < _NEVER:
            self._due = min(self._due, time.monotonic() + seconds)
            self._wake()

    def tend_soon(self) -> None:
        """Let the thread call `Store.tend` soon: a step has met BudgetUnavailable."""
        soon = max(time.monotonic(), self._tended + _AGAIN)
        if soon < self._due:
            self._due = soon
            self._wake()

    def drop(self, function: Callable[..., object], *arguments: Any) -> None:
        """Let the thread call a function, until the store answers. Nobody gets what it returns or raises.

        It takes no lock: a finaliser or a signal handler may call it at any point.
        """
        self._queue.put(Job(function, arguments, None))
        try:
            self._start()
        except RuntimeError:  # the interpreter ends, or the system gives no more threads
            _logger.debug("no thread could be started", exc_info=True)

    def job(self, function: Callable[..., Any], *arguments: Any) -> Job:
        """Let the thread call a function for the task that runs, which awaits `Job.over`.

        Raises:
            RuntimeError: the task runs in the thread itself, in an event loop of a callback: it would wait for ever.
        """
        if self.thread == threading.get_ident():
            raise RuntimeError(_ITSELF)
        self._start()
        job = Job(function, arguments, task_bell())
        self._queue.put(job)
        return job

    async def off_loop(self, function: Callable[..., T], *arguments: Any) -> T:
        """Let the thread call a function, and await what it returns or raises, in a task of asyncio or trio.

        Also where the task is cancelled it waits for the end, so that nothing is lost that was begun; then it raises
        the cancellation.
        """
        result: T = await self.job(function, *arguments).over()
        return result

    def finish(self, seconds: float, last: Callable[[], object] | None = None) -> bool:
        """Wait until the thread has done all that it was given, and ``last``, if that is given.

        Return whether that took no longer than allowed.
        """
        if self.thread == threading.get_ident() or (last is None and self._idle and self._queue.empty()):
            return True
        job = Job(last or _nothing, (), ThreadBell())
        try:
            self._start()
        except RuntimeError:  # the interpreter ends, or the system gives no more threads
            return False
        self._queue.put(job)
        return bool(job.bell.wait(seconds))

    def stop(self, seconds: float) -> None:
        """End the thread after what it was given; wait for that for so many seconds at most.

        It starts again for whatever it is given later.
        """
        self._due = _NEVER
        self.finish(seconds)
        if not self._idle:
            self._queue.put(_STOP)

    # ------------------------------------------------------------------ the thread

    def _wake(self) -> None:
        self._start()
        self._queue.put(None)

    def _start(self) -> None:
        """Start the thread unless it runs."""
        try:
            self._idle.pop()
        except IndexError:
            return
        try:
            start_thread(self._work, f"token_budget {self._store.name}")
        except BaseException:
            self._idle.append(None)
            raise

    def _work(self) -> None:
        self.thread = threading.get_ident()
        while self._step():
            pass
        self.thread = None
        self._idle.append(None)
        if not self._queue.empty():  # it was given more meanwhile
            self._start()

    def _step(self) -> bool:
        """Do the next job, or what is due. Return whether to go on."""
        seconds = min(self._due, self._again_at) - time.monotonic()
        try:
            job = self._queue.get(timeout=None if seconds == _NEVER else min(max(0.0, seconds), threading.TIMEOUT_MAX))
        except Empty:
            job = None
        if job is _STOP:
            return False
        if job is not None:
            self._do(job)
        now = time.monotonic()
        if now >= self._again_at:
            self._do_again()
        if now >= self._due:
            self._tend()
        return True

    def _do(self, job: Job) -> None:
        """Do a job. One that was queued before another ended with the time-out gets the answer of that one."""
        if job.bell is not None and self._failure is not None and job.since <= self._failure[1]:
            job.end(None, BudgetUnavailable(*self._failure[0].args))
            return
        self._failed, error = self._run(job)
        if job.bell is None and self._failed:
            self._again.append(job)
            self._again_at = min(self._again_at, time.monotonic() + _AGAIN)
        elif job.bell is None and error is not None:
            _logger.error("what was dropped could not be given back", exc_info=error)

    def _run(self, job: Job) -> tuple[bool, BaseException | None]:
        """Call the function of a job. Return whether the store did not answer, and what it raised."""
        began = time.monotonic()
        result, error = None, None
        try:
            result = job.function(*job.arguments)
        except BaseException as raised:  # noqa: BLE001 - it is raised again in the task that awaits it
            error = raised
        ended = time.monotonic()
        failure = error if isinstance(error, BudgetUnavailable) and not isinstance(error, StoreLost) else None
        # A quick refusal is tried again, and a store that lets calls pass tells each of them so.
        waited = failure is not None and ended - began >= _LONG and not self._lets_pass
        self._failure = (failure, ended) if waited and failure is not None else None
        if job.bell is not None:
            job.end(result, error)
        return failure is not None, error

    def _do_again(self) -> None:
        """Try again what the store did not answer, oldest first, up to the first that it does not answer again."""
        self._again_at = _NEVER
        for _ in range(len(self._again)):
            self._do(self._again.popleft())
            if self._failed:
                self._again.rotate(1)  # the one that failed is the oldest
                return

    def _tend(self) -> None:
        self._due = _NEVER
        try:
            seconds = self._store.tend()
        except Exception:
            _logger.exception("tending the store failed")
            seconds = _AGAIN
        self._tended = time.monotonic()
        self._due = min(self._due, self._tended + seconds)


class Job:
    """One call that the thread makes; with a bell, for a task (or a thread) that waits for its end."""

    __slots__ = ("arguments", "bell", "done", "error", "function", "result", "since")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], bell: Any) -> None:
        self.function = function
        self.arguments = arguments
        self.bell = bell
        self.since = time.monotonic()
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None

    def end(self, result: Any, error: BaseException | None) -> None:
        """Wake who waits for the end."""
        self.result, self.error = result, error
        self.function, self.arguments = _nothing, ()  # what it was called with may be waited for by its finaliser
        self.done = True
        self.bell.ring()

    async def over(self, *, patient: bool = True) -> Any:
        """Wait for the end; return or raise what the call did.

        A task that is cancelled waits on, and then raises the cancellation, unless it is not ``patient``.
        """
        cancellation: BaseException | None = None
        try:
            while not self.done:
                try:
                    await _wait(self.bell, shielded=cancellation is not None)
                except _cancelled(self.bell) as raised:  # noqa: PERF203
                    if not patient:
                        raise
                    cancellation = raised
            if cancellation is not None:
                raise cancellation
            if self.error is not None:
                raise self.error
            return self.result
        finally:
            cancellation = self.error = None  # the traceback holds this frame, and by that what the call was about


async def _wait(bell: Any, *, shielded: bool) -> None:
    if shielded and isinstance(bell, TrioBell):
        with bell._trio.CancelScope(shield=True):
            await bell.wait(None)
    else:
        await bell.wait(None)


def _cancelled(bell: Any) -> type[BaseException]:
    """Return what is raised in a task that is cancelled."""
    if isinstance(bell, TrioBell):
        return bell._trio.Cancelled  # type: ignore[no-any-return]
    import asyncio

    return asyncio.CancelledError


def _nothing() -> None:
    pass


def start_thread(body: Callable[[], object], name: str) -> None:
    """Start a daemon thread, and take no lock and wait for nothing, as `Thread.start` does.

    So a finaliser may call it at any point, and a child that is forked in a signal handler meanwhile hangs on nothing.
    """
    _thread.start_new_thread(_start_named, (body, name))


def _start_named(body: Callable[[], object], name: str) -> None:  # pragma: no cover - tracers do not see this thread
    try:
        threading.Thread(target=body, name=name, daemon=True).start()
    except RuntimeError:  # CPython 3.12 starts none as the interpreter ends: this one does it, without a name
        body()


_STOP = Job(_nothing, (), None)
