"""The workers of the demo: threads and asyncio tasks that make model calls under one pool.

`_call_in_thread` and `_call_in_task` show how a program uses the pool; the rest gives them their calls. All workers run
in threads other than the caller's, and so does asyncio's loop. The caller only watches: Python raises Ctrl-C in the
main thread, where it cannot interrupt a worker in the middle of its bookkeeping.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING

from token_budget.cli._audit import CutShort, Ledger
from token_budget.cli._display import status
from token_budget.cli._workload import Fate

if TYPE_CHECKING:
    from concurrent.futures import Future

    from token_budget import BudgetPool
    from token_budget.cli._audit import Caps, Tally
    from token_budget.cli._display import Progress
    from token_budget.cli._workload import Call, Calls, Workload

_LOOKS_A_SECOND = 20
_AWAKE = 16  # threads that run at once; the others wait for the model or for their turn


class Turns:
    """Lets some threads run at a time, and the others in the order in which they asked.

    A thousand threads that all ask for the interpreter's lock wake up every few milliseconds and leave little time for
    anything else. A thread that waits for its turn sleeps.
    """

    def __init__(self, at_once: int) -> None:
        self._lock = threading.Lock()
        self._free = at_once
        self._waiting: deque[threading.Lock] = deque()

    def begin(self) -> None:
        """Wait for a turn."""
        with self._lock:
            if self._free:
                self._free -= 1
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()

    def end(self) -> None:
        """Give the turn to the thread that has waited longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1


class FanOut:
    """One run: the pool, the ledger that is kept beside it, and the workers."""

    def __init__(self, pool: BudgetPool, caps: Caps, *, workers: int, speed: float) -> None:
        self.pool = pool
        self.ledger = Ledger(caps)
        self._workers = workers
        self._speed = speed
        self._stop = threading.Event()
        self._turns = Turns(_AWAKE)

    def run(self, workload: Workload, progress: Progress) -> bool:
        """Make the calls while this thread watches, and return whether Ctrl-C ended the run."""
        with ThreadPoolExecutor(1, "demo") as conductor:
            try:
                self._watch(
                    "threads", conductor.submit(self._spend_in_threads, workload.in_threads), workload, progress
                )
                self._watch("asyncio", conductor.submit(self._spend_in_tasks, workload.in_tasks), workload, progress)
            except KeyboardInterrupt:
                return True
            finally:
                # Leaving the block waits for the workers. Whatever happened here, they must end.
                self._stop.set()
                progress.close()
        return False

    def _watch(self, phase: str, spending: Future[None], workload: Workload, progress: Progress) -> None:
        """Show what the workers do until they have ended, and examine each snapshot for the audit."""
        done = False
        while not done:
            done = bool(wait([spending], timeout=1 / _LOOKS_A_SECOND).done)
            snapshot = self.pool.snapshot()
            self.ledger.look(snapshot)
            progress.show(status(phase, self.ledger.ended(), len(workload), snapshot), milestone=done)
        spending.result()  # an error here is a bug of the demo, and must be seen

    # ------------------------------------------------------------------ threads

    def _spend_in_threads(self, calls: Calls) -> None:
        # The workers take numbers from one deque: a million futures in an executor's queue would fill the memory, and
        # a lock around an iterator would make a thousand threads wait for each other.
        remaining = deque(range(len(calls)))
        with ThreadPoolExecutor(self._workers, "worker") as executor:
            workers = [executor.submit(self._work, calls, remaining) for _ in range(min(self._workers, len(calls)))]
            if any(worker.exception() for worker in wait(workers, return_when=FIRST_EXCEPTION).done):
                self._stop.set()
        for worker in workers:
            worker.result()

    def _work(self, calls: Calls, remaining: deque[int]) -> None:
        self._turns.begin()
        try:
            while not self._stop.is_set():
                try:
                    index = remaining.popleft()
                except IndexError:  # no call remains
                    return
                with suppress(CutShort):
                    self._call_in_thread(calls[index])
        finally:
            self._turns.end()

    def _call_in_thread(self, call: Call) -> None:
        with (
            self.ledger.book(call) as tally,
            self.pool.reserve(tokens=call.reserved_tokens, usd=call.reserved_usd) as reservation,
        ):
            self._admitted(tally)
            self._sleep(call.connect_seconds)
            call.connect()  # if it fails, nothing was spent: leaving the block releases the reservation
            try:
                self._sleep(call.answer_seconds)
                tokens, usd = call.answer()
            except (TimeoutError, CutShort):
                # The request was sent, so it is billed, and its cost is never known: count what was reserved.
                tally.bill(call.reserved_tokens, call.reserved_usd)
                reservation.commit()
                raise
            tally.bill(tokens, usd)
            reservation.commit(tokens=tokens, usd=usd)

    def _sleep(self, seconds: float) -> None:
        seconds = self._paced(seconds)
        self._turns.end()
        if seconds:
            stopped = self._stop.wait(seconds)
        else:
            time.sleep(0)  # lets other threads run between the steps of this call
            stopped = self._stop.is_set()
        self._turns.begin()
        if stopped:
            raise CutShort

    # ------------------------------------------------------------------ asyncio

    def _spend_in_tasks(self, calls: Calls) -> None:
        asyncio.run(self._spend_in_loop(calls))

    async def _spend_in_loop(self, calls: Calls) -> None:
        room = asyncio.Semaphore(self._workers)
        in_flight: set[asyncio.Task[None]] = set()
        errors: list[BaseException] = []

        def end(task: asyncio.Task[None]) -> None:
            in_flight.discard(task)
            room.release()
            error = None if task.cancelled() else task.exception()
            if error is not None:  # a bug of the demo, as in `_watch`
                errors.append(error)

        stopper = asyncio.create_task(self._cancel_when_stopped(in_flight))
        for call in calls:
            await room.acquire()
            if self._stop.is_set() or errors:
                break
            task = asyncio.create_task(self._call_in_task(call))
            in_flight.add(task)
            task.add_done_callback(end)
            if call.fate is Fate.CANCELLED:
                # Its caller gives up on it while it connects. Its first step is due before this, so it has begun.
                asyncio.get_running_loop().call_later(self._paced(call.connect_seconds) / 2, task.cancel)
        while in_flight:
            await asyncio.wait(in_flight)
        stopper.cancel()
        if errors:
            raise errors[0]

    async def _call_in_task(self, call: Call) -> None:
        with self.ledger.book(call) as tally:
            async with self.pool.reserve(tokens=call.reserved_tokens, usd=call.reserved_usd) as reservation:
                self._admitted(tally)
                await asyncio.sleep(self._paced(call.connect_seconds))
                call.connect()
                try:
                    await asyncio.sleep(self._paced(call.answer_seconds))
                    tokens, usd = call.answer()
                except (TimeoutError, asyncio.CancelledError):
                    tally.bill(call.reserved_tokens, call.reserved_usd)
                    reservation.commit()
                    raise
                tally.bill(tokens, usd)
                reservation.commit(tokens=tokens, usd=usd)

    async def _cancel_when_stopped(self, in_flight: set[asyncio.Task[None]]) -> None:
        """Cancel the calls in flight once the main thread stops the run."""
        while not self._stop.is_set():  # noqa: ASYNC110 - the event belongs to threads, asyncio cannot wait for it
            await asyncio.sleep(1 / _LOOKS_A_SECOND)
        for task in in_flight:
            task.cancel()

    # ------------------------------------------------------------------ both

    def _admitted(self, tally: Tally) -> None:
        """Note that the budget admitted a call, and examine the pool while the call is in flight."""
        tally.admitted = True
        self.ledger.look(self.pool.snapshot())

    def _paced(self, seconds: float) -> float:
        return min(seconds / self._speed, threading.TIMEOUT_MAX)
