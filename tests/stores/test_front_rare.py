"""What only a race, an interruption or a fault brings about in the line of those who wait: each is constructed here.

`without_a_watcher` keeps the watcher's thread from starting, so that nobody tries but the test.
"""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta
from typing import Any

import pytest

from memory_store import MemoryBudget, MemoryPool, MemoryStore
from pools_of_all_kinds import LONG, Call, until
from shapes import Clock
from test_family_of_a_store import as_in_a_child
from token_budget import PoolClosed, PoolForked, Window
from token_budget._bells import ThreadBell
from token_budget.contract import BudgetUnavailable
from token_budget.stores import _places, _pool, _waiting
from token_budget.stores._errors import StoreError
from token_budget.stores._family import StoreFamily
from token_budget.stores._governed import checked_seconds
from token_budget.stores._listening import tell_news
from token_budget.stores._places import LOOK
from token_budget.stores._store import News
from waiting_tools import close, in_line, processes, waits

HOUR = 3600.0


def without_a_watcher(pool: MemoryPool) -> Any:
    """Let the line of a pool believe that it has a watcher. Return the line."""
    line = pool._family.line
    line._watcher = ThreadBell()
    return line


# ---------------------------------------------------------------- one who waits


def test_a_thread_whose_handler_forks_while_it_waits_is_woken_in_the_child_and_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=10)
    line, family = without_a_watcher(pool), pool._family
    rung: list[bool] = []

    class Bell(ThreadBell):
        def wait(self, timeout: float | None) -> bool:
            if not rung:  # the first is of the one who waits; later ones are of the hand's `finish`
                family.hand.stop(LONG)
                until(lambda: bool(family.hand._idle))
                as_in_a_child(monkeypatch, family)
                family.here()
            rung.append(super().wait(timeout))
            return rung[-1]

    monkeypatch.setattr(_waiting, "ThreadBell", Bell)
    with pytest.raises(PoolForked, match="forked while a call waited for room here: reserve again"):
        pool.reserve(tokens=1, timeout=LONG)
    assert rung == [True]
    assert not line._places.needs
    assert (line._watcher, line._watching) == (None, None)
    del held
    pool.close()


def test_a_task_that_waits_is_not_woken_in_a_child_whose_loop_is_the_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=10)
    line, hand = without_a_watcher(pool), pool._family.hand

    class Bell:
        def ring(self) -> None:
            pytest.fail("it writes to a pipe of the parent's loop")

    async def take() -> None:
        await pool.areserve(tokens=1)

    async def main() -> None:
        task = asyncio.ensure_future(take())
        await asyncio.sleep(0)  # it has given its job
        assert hand.finish(LONG)
        (waiter,) = line._places.all()
        hand.stop(LONG)
        until(lambda: bool(hand._idle))
        waiter.bell, bell = Bell(), waiter.bell
        as_in_a_child(monkeypatch, pool._family)
        pool._family.here()
        waiter.bell = bell
        assert not line._places.needs
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    del held
    pool.close()


@pytest.mark.parametrize("step", ["insort", "Needs"])
def test_a_thread_that_is_interrupted_as_it_takes_its_place_leaves_nobody_in_line(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=10)
    line = without_a_watcher(pool)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_places, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.reserve(tokens=1, timeout=LONG)
    assert (line._places.needs, line._places._waiting, line._places.heads) == ({}, {}, [])
    assert not pool.budget.tickets
    held.release()
    close(pool)


def test_who_is_being_tried_as_this_process_lets_go_is_refused_by_whoever_tries_it() -> None:
    pool, there = processes(2, token_cap=10)
    held = there.reserve(tokens=10)
    line = without_a_watcher(pool)
    call, waiter = waiting(pool)
    assert line._places.take(waiter)
    pool.close()
    assert (call.done, waiter.state) == (False, _places.BUSY)
    line._try(waiter)
    assert isinstance(call.error(), PoolClosed)
    until(lambda: not there.budget.tickets)
    held.release()
    close(there)


def test_who_is_gone_when_its_try_fails_ends_nobody_elses_waiting_and_its_ticket_is_given_back() -> None:
    pool, there = processes(2, token_cap=10)
    held = there.reserve(tokens=10)
    line = without_a_watcher(pool)
    call, waiter = waiting(pool)
    assert line._places.take(waiter)

    def leave() -> None:
        assert not line.abandon(waiter)  # this thread has it, and gives back

    leaver = threading.Thread(target=leave)
    leaver.start()
    leaver.join(LONG)
    stirred: list[Any] = []
    line.stir = stirred.append
    pool.engine.hook = raiser(StoreError("no login"), "reserve")
    line._try(waiter)
    pool.engine.hook = lambda step, moment: None
    assert waiter.state is _places.GONE
    assert stirred == []  # the one who left has stirred
    assert call.result() is not None  # its thread was woken
    until(lambda: not there.budget.tickets)
    del line.stir
    held.release()
    close(pool, there)


def waiting(pool: MemoryPool) -> tuple[Call, Any]:
    """Let a thread wait for room, asleep, with nobody about to try it. Return its call and what waits."""
    call = waits(pool, 1, tokens=1, timeout=LONG)
    (waiter,) = pool._family.line._places.all()
    until(lambda: not pool._family.line._stirring and bool(pool._family.hand.thread))  # it has stirred, as the oldest
    assert pool._family.hand.finish(LONG)
    return call, waiter


def raiser(error: Exception, step: str) -> Any:
    """Return a hook that raises before a step."""

    def hook(name: str, moment: str) -> None:
        if (name, moment) == (step, "before"):
            raise error

    return hook


# ---------------------------------------------------------------- clocks of users


def broken() -> float:
    raise ZeroDivisionError("a bug of the clock")


def test_the_next_try_is_after_a_look_at_most_where_a_window_is_gone_or_its_clock_fails() -> None:
    clock = Clock(HOUR)
    pool = MemoryPool(token_cap=10, window=Window.every(timedelta(hours=1), clock=clock))
    held = pool.reserve(tokens=10)
    without_a_watcher(pool)
    call, waiter = waiting(pool)
    scope, window = pool._family.root, pool._family.root.window
    clock.now = 2 * HOUR - LOOK / 2
    assert waiter.due(waiter.looked) == pytest.approx(LOOK / 2)
    for one in (None, Window.every(timedelta(hours=1), clock=broken)):
        scope.window = one
        assert waiter.due(waiter.looked) == LOOK
    scope.window = window
    held.release()
    call.result().release()
    close(pool)


def test_a_clock_that_fails_as_somebody_else_looks_ends_no_waiting() -> None:
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=10)
    line = without_a_watcher(pool)
    call, waiter = waiting(pool)
    scope = pool._family.root
    (row,) = pool.engine.read((scope,))
    scope.window = Window.every(timedelta(hours=1), clock=broken)
    used_up = row._replace(tokens_held=0)
    assert line._places.in_vain((scope,), (used_up,)) == []
    scope.window = None
    assert line._places.in_vain((scope,), (used_up,)) == [waiter]  # what such a row means to it
    held.release()
    call.result().release()
    close(pool)


# ---------------------------------------------------------------- the watcher


def test_who_waits_where_no_watcher_can_be_started_is_told_and_the_next_starts_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, there = processes(2, token_cap=10)
    held = there.reserve(tokens=10)

    def fail(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(_waiting, "start_thread", fail)
        with pytest.raises(RuntimeError, match="can't start"):
            pool.reserve(tokens=1, timeout=LONG)
    assert pool._family.line._watcher is None
    assert not pool._family.line.count(pool._family.root)
    assert not pool.budget.tickets
    call = waits(pool, 1, tokens=1)
    held.release()  # only a watcher hears of that
    call.result().release()
    close(pool, there)


def test_who_arrives_as_the_watcher_is_about_to_end_is_watched() -> None:
    pool, there = processes(2, token_cap=10)
    held = there.reserve(tokens=10)
    line = without_a_watcher(pool)  # so the one who arrives rings it, as if a moment too late
    calls: list[Call] = []

    class Bell(ThreadBell):
        def wait(self, timeout: float | None) -> bool:
            assert timeout is not None
            if not calls:
                calls.append(waiting(pool)[0])
            elif timeout == _waiting._PACE:  # of a round of this watcher
                held.release()
            return False

    line._watch(Bell())
    assert held.completed
    calls[0].result().release()
    assert (line._watcher, line._watching) == (None, None)
    close(pool, there)


@pytest.fixture
def crowd() -> Any:
    """Let five wait at places of their own, which nobody has seen for long. Yield the pool."""
    pool = MemoryPool(token_cap=100)
    users = pool.keyed(1, name="user")
    names = ["ann", "bob", "cid", "dan", "eve"]
    held = [users[name].reserve(tokens=1) for name in names]
    line = without_a_watcher(pool)
    calls = [waits(users[name], number, tokens=1) for number, name in enumerate(names, start=1)]
    until(lambda: not line._stirring)
    assert pool._family.hand.finish(LONG)
    for scope, needs in line._places.needs.items():
        needs.looked = time.monotonic() if scope is pool._family.root else 0.0
    pool.engine.steps.clear()
    yield pool
    for reservation in held:
        reservation.release()
    for call in calls:
        call.result().release()
    close(pool)


def test_so_many_rows_are_read_at_a_time_and_the_rest_next_time(
    crowd: MemoryPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_waiting, "_READS", 2)
    read = []
    for _ in range(4):
        crowd._family.line._look_at_others(time.monotonic())
        read.append(crowd.engine.steps.count("read"))
    assert read == [2, 4, 5, 5]


@pytest.mark.parametrize("error", [BudgetUnavailable("no server"), StoreError("no login")])
def test_a_row_that_cannot_be_read_ends_the_look_and_is_not_read_again_at_once(
    crowd: MemoryPool, error: Exception
) -> None:
    line, asked = crowd._family.line, []

    def fail(step: str, moment: str) -> None:
        if (step, moment) == ("read", "before"):
            asked.append(step)
            raise error

    crowd.engine.hook = fail
    now = time.monotonic()
    for number in range(1, 6):
        line._look_at_others(now)
        assert len(asked) == number
    line._look_at_others(now)  # all were tried a moment ago
    assert len(asked) == 5
    crowd.engine.hook = lambda step, moment: None
    in_line(crowd, 5)  # nobody was refused for it


# ---------------------------------------------------------------- opening, news, arguments


def test_an_opening_that_is_interrupted_before_the_store_is_asked_gives_its_handle_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    budget = MemoryBudget()
    store = MemoryStore("total", budget)
    monkeypatch.setattr(_pool, "owed_of", interrupted)
    pool = MemoryPool.__new__(MemoryPool)
    with pytest.raises(KeyboardInterrupt):
        pool._open(StoreFamily.of(store.location, lambda: store), "total", 10, None, None)
    assert store.went
    assert store.steps == []


def test_news_that_another_thread_takes_at_the_same_moment_are_told_by_that_one() -> None:
    class Raced(type(MemoryStore("total").news)):  # type: ignore[misc]
        """Between the look and the taking, the other thread takes it."""

        def popleft(self) -> Any:
            self.clear()
            return super().popleft()

    pool = MemoryPool()
    kinds: list[str] = []
    pool.subscribe(lambda event: kinds.append(event.kind))
    pool.engine.news = Raced([News("roll-over", "total")])
    tell_news(pool._family)
    assert kinds == []
    pool.close()


@pytest.mark.parametrize("value", [None, True, "5", [5]])
def test_seconds_that_are_no_number_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="lease must be a number of seconds, not "):
        checked_seconds(value, "lease")


@pytest.mark.parametrize(("value", "least", "taken"), [(0, 0.0, "above 0"), (4.9, 5.0, "from 5 on")])
def test_seconds_that_are_too_few_are_refused_with_what_is_taken(value: float, least: float, taken: str) -> None:
    with pytest.raises(ValueError, match=f"lease must be a number of seconds {taken}"):
        checked_seconds(value, "lease", least)
    assert checked_seconds(5, "lease", least) == 5.0
