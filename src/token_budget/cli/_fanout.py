"""The workers of the demo: threads and asyncio tasks that make model calls under one pool.

`_call_in_thread` and `_call_in_task` are how a program uses the pool; the rest hands them their calls. All workers run
in threads other than the caller's, asyncio's loop too. The caller only watches, so that Ctrl-C, which Python raises in
the main thread, can hit no worker in the middle of its bookkeeping.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING

from token_budget.cli._audit import CutShort, Ledger, Outcome
from token_budget.cli._workload import Fate

if TYPE_CHECKING:
    from concurrent.futures import Future

    from token_budget import BudgetPool
    from token_budget.cli._audit import Tally
    from token_budget.cli._display import Progress
    from token_budget.cli._workload import Call, Workload

_LOOKS_A_SECOND = 20


class FanOut:
    """One run: the pool, the ledger that is kept beside it, and those who spend."""

    def __init__(self, pool: BudgetPool, *, workers: int, speed: float) -> None:
        self.pool = pool
        self.ledger = Ledger()
        self._workers = workers
        self._speed = speed
        self._stop = threading.Event()

    def run(self, workload: Workload, progress: Progress) -> bool:
        """Make the calls while this thread watches, and return whether Ctrl-C ended that."""
        with ThreadPoolExecutor(1, "demo") as conductor:
            try:
                self._watch(
                    "threads", conductor.submit(self._spend_in_threads, workload.in_threads), workload, progress
                )
                self._watch("asyncio", conductor.submit(self._spend_in_tasks, workload.in_tasks), workload, progress)
            except KeyboardInterrupt:
                return True
            finally:
                # However this thread comes here, the workers end: leaving the block waits for them.
                self._stop.set()
                progress.close()
        return False

    def _watch(self, phase: str, spending: Future[None], workload: Workload, progress: Progress) -> None:
        """Look at the pool until those who spend have ended; show what they do, and keep it for the audit."""
        done = False
        while not done:
            done = bool(wait([spending], timeout=1 / _LOOKS_A_SECOND).done)
            snapshot = self.pool.snapshot()
            self.ledger.samples.append(snapshot)
            ended, refused = len(self.ledger.ended), self.ledger.count(Outcome.REFUSED)
            counts = f"{ended:,}/{len(workload):,} calls, {refused:,} refused"
            progress.show(f"{phase} {counts} | {snapshot}", milestone=done)
        spending.result()  # a worker that broke is a bug of the demo, and is not hidden

    # ------------------------------------------------------------------ threads

    def _spend_in_threads(self, calls: list[Call]) -> None:
        with ThreadPoolExecutor(self._workers, "worker") as executor:
            for _ in executor.map(self._call_in_thread, calls):
                pass

    def _call_in_thread(self, call: Call) -> None:
        if self._stop.is_set():
            return
        with (
            suppress(CutShort),
            self.ledger.book(call) as tally,
            self.pool.reserve(tokens=call.reserved_tokens, usd=call.reserved_usd) as reservation,
        ):
            self._admitted(tally)
            self._sleep(call.connect_seconds)
            call.connect()  # where it fails, nothing was spent: leaving the block gives the reservation back
            try:
                self._sleep(call.answer_seconds)
                tokens, usd = call.answer()
            except (TimeoutError, CutShort):
                # It was sent, so it is billed, and nobody learns how much: count what was reserved.
                tally.bill(call.reserved_tokens, call.reserved_usd)
                reservation.commit()
                raise
            tally.bill(tokens, usd)
            reservation.commit(tokens=tokens, usd=usd)

    def _sleep(self, seconds: float) -> None:
        time.sleep(0)  # at full speed too, let other threads come in between
        if self._stop.wait(self._paced(seconds)):
            raise CutShort

    # ------------------------------------------------------------------ asyncio

    def _spend_in_tasks(self, calls: list[Call]) -> None:
        asyncio.run(self._spend_in_loop(calls))

    async def _spend_in_loop(self, calls: list[Call]) -> None:
        room = asyncio.Semaphore(self._workers)
        tasks: list[asyncio.Task[None]] = []
        stopper = asyncio.create_task(self._cancel_when_stopped(tasks))
        for call in calls:
            await room.acquire()
            if self._stop.is_set():
                break
            task = asyncio.create_task(self._call_in_task(call))
            task.add_done_callback(lambda _: room.release())
            if call.fate is Fate.CANCELLED:
                # Somebody gives up on it while it connects. Its first step is due before this, so it has begun.
                asyncio.get_running_loop().call_later(self._paced(call.connect_seconds) / 2, task.cancel)
            tasks.append(task)
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):  # a bug, as in `_watch`; a CancelledError is none of these
                raise result
        stopper.cancel()

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

    async def _cancel_when_stopped(self, tasks: list[asyncio.Task[None]]) -> None:
        """Cancel what is in flight, once the main thread says stop."""
        while not self._stop.is_set():  # noqa: ASYNC110 - an event of threads, which asyncio cannot wait for
            await asyncio.sleep(1 / _LOOKS_A_SECOND)
        for task in tasks:
            task.cancel()

    # ------------------------------------------------------------------ both

    def _admitted(self, tally: Tally) -> None:
        """Note that the budget admitted a call, and what the pool looks like from inside of it."""
        tally.admitted = True
        self.ledger.samples.append(self.pool.snapshot())

    def _paced(self, seconds: float) -> float:
        return min(seconds / self._speed, threading.TIMEOUT_MAX)
