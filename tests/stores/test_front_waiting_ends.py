"""Waiting that is cut short: cancelled tasks, interrupted threads, loops that are gone, forks; and the awaitable."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from memory_store import MemoryPool, MemoryStore
from pools_of_all_kinds import LONG, in_a_thread, until
from test_forks import end_of, in_child
from token_budget import BudgetExceeded, BudgetTimeout, PoolForked
from token_budget._bells import ThreadBell
from token_budget.contract import BudgetUnavailable
from token_budget.stores import _waiting
from token_budget.stores._store import GRANTED, Answer
from waiting_tools import Blocked, close, in_line, processes, waits

forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
beside_threads = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


async def soon(condition: Callable[[], bool]) -> None:
    """Let the loop run until something holds."""
    async with asyncio_timeout():
        while not condition():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.001)


class asyncio_timeout:  # noqa: N801 - asyncio.timeout is for 3.11
    """Fail where a block of a task takes longer than it ever should."""

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.timer = asyncio.get_running_loop().call_later(LONG, task.cancel)

    async def __aexit__(self, *_: object) -> None:
        self.timer.cancel()


# ---------------------------------------------------------------- cancelled tasks


def test_a_task_that_is_cancelled_in_line_leaves_it_and_the_next_has_its_turn() -> None:
    pool = MemoryPool(token_cap=10)

    async def main() -> None:
        held = await pool.areserve(tokens=5)
        large = asyncio.ensure_future(_take(pool, tokens=6))
        await soon(lambda: pool._family.line.count(pool._family.root) == 1)
        small = asyncio.ensure_future(_take(pool, tokens=5))
        await soon(lambda: pool._family.line.count(pool._family.root) == 2)
        large.cancel()
        with pytest.raises(asyncio.CancelledError):
            await large
        (await small).release()
        await held.arelease()

    asyncio.run(main())
    close(pool)


async def _take(pool: MemoryPool, **arguments: Any) -> Any:
    return await pool.areserve(**arguments)


@pytest.mark.parametrize("room", [False, True], ids=["no room", "room"])
def test_a_task_that_is_cancelled_while_it_is_being_tried_gives_back_what_it_gets(*, room: bool) -> None:
    pool = MemoryPool(token_cap=10)

    async def main() -> None:
        held = await pool.areserve(tokens=10)
        task = asyncio.ensure_future(_take(pool, tokens=10))
        await soon(lambda: pool._family.line.count(pool._family.root) == 1)
        blocked = Blocked(pool, "reserve")
        pool._family.line.stir()
        await soon(blocked.inside.is_set)
        if room:
            held.release()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        blocked.end()
        if not room:
            await held.arelease()
        await soon(lambda: not pool.budget.held and not pool.budget.tickets)

    asyncio.run(main())
    close(pool)


@pytest.mark.parametrize("number", [1, 2], ids=["first attempt", "second attempt"])
def test_a_task_that_is_cancelled_as_it_arrives_holds_nothing_and_waits_for_nothing(number: int) -> None:
    pool = MemoryPool(token_cap=10)

    async def main() -> None:
        held = await pool.areserve(tokens=10 if number == 2 else 1)
        count = 0

        def when() -> bool:
            nonlocal count
            count += 1
            return count == number

        blocked = Blocked(pool, "reserve", when=when)
        task = asyncio.ensure_future(_take(pool, tokens=5))
        await soon(blocked.inside.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        blocked.end()
        await held.arelease()
        assert await asyncio.to_thread(pool._family.hand.finish, LONG)
        await soon(lambda: not pool.budget.held and not pool.budget.tickets)

    asyncio.run(main())
    close(pool)


def test_a_task_that_is_cancelled_before_its_turn_at_the_worker_asks_the_store_nothing() -> None:
    pool = MemoryPool(token_cap=10)
    opened = threading.Event()
    pool._family.hand.drop(opened.wait)

    async def main() -> None:
        task = asyncio.ensure_future(_take(pool, tokens=5))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    opened.set()
    assert pool._family.hand.finish(LONG)
    assert pool.engine.steps == ["open"]
    close(pool)


def test_a_task_that_is_cancelled_right_after_it_was_granted_gives_back() -> None:
    pool = MemoryPool(token_cap=10)

    async def main() -> None:
        held = await pool.areserve(tokens=10)
        task = asyncio.ensure_future(_take(pool, tokens=10))
        await soon(lambda: pool._family.line.count(pool._family.root) == 1)
        held.release()
        until(lambda: bool(pool.budget.held))  # the loop does not run meanwhile: the task has not heard of it
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    close(pool)


def test_a_task_of_trio_that_is_cancelled_leaves_the_line() -> None:
    trio = pytest.importorskip("trio")
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=10)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_take_ten, pool)
            with trio.fail_after(LONG):
                while pool._family.line.count(pool._family.root) != 1:
                    await trio.sleep(0.001)
            nursery.cancel_scope.cancel()

    trio.run(main)
    held.release()
    close(pool)


async def _take_ten(pool: MemoryPool) -> None:
    await pool.areserve(tokens=10)


def test_a_task_whose_time_is_up_is_told_and_leaves() -> None:
    pool = MemoryPool(token_cap=10)

    async def main() -> None:
        async with pool.areserve(tokens=10):
            with pytest.raises(BudgetTimeout):
                await pool.areserve(tokens=1, timeout=0.05)
            with pytest.raises(BudgetExceeded) as error:
                await pool.areserve(tokens=1, timeout=0)
            assert type(error.value) is BudgetExceeded

    asyncio.run(main())
    close(pool)


# ---------------------------------------------------------------- loops that are gone


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_room_of_a_task_whose_loop_is_closed_goes_to_the_next() -> None:
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=10)
    loop = asyncio.new_event_loop()
    task = loop.create_task(_take(pool, tokens=10))
    loop.run_until_complete(soon(lambda: pool._family.line.count(pool._family.root) == 1))
    loop.close()
    call = waits(pool, 2, tokens=10)
    held.release()
    call.result().release()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    del task
    gc.collect()
    close(pool)


def test_a_coroutine_that_is_closed_while_it_waits_leaves_the_line() -> None:
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=10)

    async def main() -> None:
        taking = pool.areserve(tokens=1)
        taking.send(None)  # waits for the worker
        await soon(lambda: pool._family.line.count(pool._family.root) == 1)
        taking.close()

    asyncio.run(main())
    held.release()
    close(pool)


# ---------------------------------------------------------------- interrupted threads


class Interrupt:
    """Raises KeyboardInterrupt at the nth time that a step comes to a moment, in this thread."""

    def __init__(self, pool: MemoryPool, step: str, moment: str, number: int) -> None:
        self.at, self.left, self.me = (step, moment), number, threading.get_ident()
        pool.engine.hook = self

    def __call__(self, step: str, moment: str) -> None:
        if (step, moment) == self.at and threading.get_ident() == self.me:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("room", [False, True], ids=["no room", "room"])
def test_a_thread_that_is_interrupted_as_it_takes_its_ticket_holds_nothing(moment: str, *, room: bool) -> None:
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=10)
    interrupt = Interrupt(pool, "reserve", moment, 2)
    if room:  # it comes between the two attempts

        def hook(step: str, at: str) -> None:
            if (step, at) == ("reserve", "after") and not held.completed:
                held.release()
            interrupt(step, at)

        pool.engine.hook = hook
    with pytest.raises(KeyboardInterrupt):
        pool.reserve(tokens=5, timeout=LONG)
    pool.engine.hook = lambda step, at: None
    held.release()
    close(pool)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_thread_that_is_interrupted_as_it_gives_up_holds_nothing(moment: str) -> None:
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=10)
    Interrupt(pool, "leave", moment, 1)
    with pytest.raises(KeyboardInterrupt):
        pool.reserve(tokens=5, timeout=0.05)
    pool.engine.hook = lambda step, at: None
    assert not pool.budget.tickets  # it has waited for the worker
    held.release()
    close(pool)


@pytest.mark.parametrize("granted", [False, True], ids=["waiting", "granted"])
def test_a_thread_that_is_interrupted_in_its_sleep_holds_nothing(
    monkeypatch: pytest.MonkeyPatch, *, granted: bool
) -> None:
    pool, there = processes(2, token_cap=10)
    held = there.reserve(tokens=10)

    class Bell(ThreadBell):
        def wait(self, timeout: float | None) -> bool:
            if threading.current_thread() is not threading.main_thread():
                return super().wait(timeout)
            in_line(pool, 1)
            if granted:
                held.release()
                until(lambda: pool._family.line.count(pool._family.root) == 0)
            raise KeyboardInterrupt

    monkeypatch.setattr(_waiting, "ThreadBell", Bell)
    with pytest.raises(KeyboardInterrupt):
        pool.reserve(tokens=5, timeout=LONG)
    assert not pool.budget.tickets
    held.release()
    close(pool, there)


# ---------------------------------------------------------------- forks


@forking
@beside_threads
def test_in_a_forked_child_nobody_waits() -> None:
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=10)
    calls = [waits(pool, number, tokens=1) for number in (1, 2)]

    def child() -> None:
        line = pool._family.line
        assert line.count(pool._family.root) == 0
        pool.budget.tickets.clear()  # the child's copy of the budget in memory has those of the parent
        pool.set_caps(token_cap=30)
        mine = pool.reserve(tokens=20)
        threading.Timer(0.1, mine.release).start()
        pool.reserve(tokens=20, timeout=LONG).release()

    in_child(child)
    held.release()
    for call in calls:
        call.result().release()
    close(pool)


@forking
@beside_threads
def test_a_thread_that_forks_in_a_handler_while_it_waits_is_told_so_in_the_child() -> None:
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=10)
    children: list[int] = []

    begun = False

    def handler(*_: object) -> None:
        nonlocal begun
        if not begun:  # once, also where a second signal comes in the middle of the fork
            begun = True
            children.append(os.fork())
            if children[0]:
                held.release()

    def interrupt() -> None:
        in_line(pool, 1)
        while not children:  # a signal that comes just before a thread sleeps wakes it only with the next
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.01)

    before = signal.signal(signal.SIGUSR1, handler)
    call = in_a_thread(interrupt)
    try:
        try:
            reservation = pool.reserve(tokens=10, timeout=LONG)
        except PoolForked:
            os._exit(7)
        if children == [0]:
            os._exit(1)
    finally:
        if children == [0]:
            os._exit(2)
        signal.signal(signal.SIGUSR1, before)
    call.result()
    reservation.release()
    assert end_of(children[0]) == 7
    close(pool)


# ---------------------------------------------------------------- an answer that got lost


def test_who_leaves_and_hears_that_it_was_granted_has_its_reservation() -> None:
    class Granting(MemoryStore):
        """Grants at the end of the wait; as a store does whose answer to the last try got lost."""

        granted: Any = None

        def leave(self, chain: Any, key: Any) -> Answer:
            answer = super().leave(chain, key)
            answer = super().reserve(chain, key, 1, 0) if answer.kind != GRANTED else answer
            self.granted = key
            return answer

        def reserve(self, chain: Any, key: Any, *arguments: Any, **options: Any) -> Answer:
            return Answer(GRANTED) if key == self.granted else super().reserve(chain, key, *arguments, **options)

    made = MemoryPool(token_cap=10)
    pool = MemoryPool(made.budget, process="another")
    store = Granting("total", made.budget)
    pool._family.store = store
    held = made.reserve(tokens=10)
    call = waits(pool, 1, tokens=1, timeout=0.3)
    made.budget.rows["total"].token_cap = 11  # nobody is told
    pool._family.line._places.all()[0].ends = []
    reservation = call.result()
    assert not reservation.completed
    reservation.release()
    held.release()
    close(pool, made)


# ---------------------------------------------------------------- the awaitable


@pytest.fixture
def pool() -> Iterator[MemoryPool]:
    pool = MemoryPool(token_cap=10)
    yield pool
    pool.close()


def test_areserve_that_nobody_awaits_is_told(pool: MemoryPool) -> None:
    with pytest.warns(RuntimeWarning, match=r"<areserve\(\) of 'total'> was never awaited"):
        pool.areserve(tokens=1)


def test_areserve_is_used_once(pool: MemoryPool) -> None:
    async def main() -> None:
        taking = pool.areserve(tokens=1)
        reservation = await taking
        with pytest.raises(RuntimeError, match="awaited or entered once"):
            await taking
        await reservation.arelease()

    asyncio.run(main())


def test_areserve_is_a_coroutine_as_tasks_take_it(pool: MemoryPool) -> None:
    async def main() -> None:
        task = asyncio.create_task(pool.areserve(tokens=1))
        (await task).release()
        taking = pool.areserve(tokens=1)
        assert asyncio.iscoroutine(taking)
        assert taking.__name__ == "areserve"
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            pickle.dumps(taking)
        with pytest.raises(ZeroDivisionError):
            taking.throw(ZeroDivisionError())
        taking = pool.areserve(tokens=1)
        taking.close()

    asyncio.run(main())


def test_a_block_of_areserve_gives_back_what_was_not_committed(pool: MemoryPool) -> None:
    async def main() -> None:
        async with pool.areserve(tokens=4) as reservation:
            assert pool.snapshot().tokens_reserved == 4
        assert reservation.completed
        async with pool.areserve(tokens=4) as reservation:
            await reservation.acommit(tokens=3)

    asyncio.run(main())
    snapshot = pool.snapshot()
    assert (snapshot.tokens_used, snapshot.tokens_reserved) == (3, 0)


def test_areserve_on_a_store_that_does_not_answer_raises_and_holds_nothing(pool: MemoryPool) -> None:
    def away(step: str, moment: str) -> None:
        raise BudgetUnavailable("no server")

    pool.engine.hook = away
    with pytest.raises(BudgetUnavailable):
        asyncio.run(_take(pool, tokens=1))
    pool.engine.hook = lambda step, moment: None
    pool._family.hand.finish(LONG)
    assert pool.snapshot().in_flight == 0
    assert "cancel" not in pool.engine.steps  # nothing was changed, so nothing is to be given back
