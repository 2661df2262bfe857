"""Waiting for room in a store: the order over processes, and each way in which waiting ends.

Several processes are several engines on one budget in memory, each with a worker, a watcher and a line of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from memory_store import MemoryPool, MemoryStore
from pools_of_all_kinds import LONG, Call, counters, in_a_thread, until
from shapes import Clock
from token_budget import BudgetExceeded, BudgetTimeout, PoolClosed, Window
from token_budget.contract import BudgetUnavailable
from token_budget.stores import _hand, _waiting
from token_budget.stores._errors import StoreError, StoreLost
from token_budget.stores._family import StoreFamily
from token_budget.stores._store import Answer, Scope
from waiting_tools import Blocked, close, processes, waits

HOUR = 3600.0


def on(pool: MemoryPool, store: MemoryStore) -> MemoryPool:
    """Return the pool of a family of its own on another kind of store, on the same budget."""
    other = MemoryPool.__new__(MemoryPool)
    other.budget = pool.budget
    other._open(StoreFamily.of(store.location, lambda: store), "total", None, None, None)
    return other


# ---------------------------------------------------------------- the order


def test_those_who_wait_in_several_processes_are_served_in_the_order_of_arrival() -> None:
    pools = processes(3, token_cap=1)
    held = pools[0].reserve(tokens=1)
    calls = [waits(pools[number % 3], number // 3 + 1, tokens=1) for number in range(12)]
    for number, call in enumerate(calls):
        held.release()
        held = call.result()
        assert not any(later.done for later in calls[number + 1 :])
    held.release()
    close(*pools)


def test_a_newcomer_of_another_process_does_not_overtake() -> None:
    here, there = processes(2, token_cap=10)
    held = here.reserve(tokens=5)
    large = waits(here, 1, tokens=8)
    with pytest.raises(BudgetExceeded, match="others wait for room"):
        there.reserve(tokens=1)
    small = waits(there, 1, tokens=1)
    held.release()
    large.result().release()
    small.result().release()
    close(here, there)


def test_areserve_keeps_the_order_of_its_calls() -> None:
    pool = MemoryPool(token_cap=10)
    granted: list[int] = []
    pool.subscribe(lambda event: granted.append(event.tokens) if event.kind == "reserve" else None)

    async def call(tokens: int) -> None:
        async with pool.areserve(tokens=tokens):
            pass

    async def main() -> None:
        held = await pool.areserve(tokens=10)
        calls = [asyncio.ensure_future(call(tokens)) for tokens in range(1, 10)]
        await asyncio.sleep(0)
        await held.arelease()
        await asyncio.gather(*calls)

    asyncio.run(main())
    assert granted == [10, *range(1, 10)]
    close(pool)


def test_who_moves_on_to_wait_at_another_scope_keeps_its_place_in_the_order() -> None:
    here, there = processes(2, token_cap=10)
    ann = here.child(4, name="ann")
    held_below, held_above = ann.reserve(tokens=4), here.reserve(tokens=5)
    first = waits(ann, 1, tokens=4)
    with pytest.raises(BudgetExceeded, match="'ann'"):
        ann.reserve(tokens=1)
    second = waits(there, 1, tokens=5)
    ann.set_caps(token_cap=8)  # now it waits at the total, where the second waits already
    until(lambda: len({ticket.at for ticket in here.budget.tickets.values()}) == 1)
    held_above.release()
    reservation = first.result()
    assert not second.done
    held_below.release()
    second.result().release()
    reservation.release()
    close(here, there)


def test_a_store_without_tickets_is_served_in_the_order_in_which_this_process_was_asked() -> None:
    class Ticketless(MemoryStore):
        def reserve(self, *arguments: Any, **options: Any) -> Answer:
            return super().reserve(*arguments, **options)._replace(ticket=0)

    made = MemoryPool(token_cap=1)
    pool = on(made, Ticketless("total", made.budget))
    held = pool.reserve(tokens=1)
    calls = [waits(pool, number, tokens=1) for number in (1, 2, 3)]
    for call in calls:
        held.release()
        held = call.result()
    held.release()
    close(pool, made)


def test_only_the_oldest_at_each_scope_tries_to_get_room() -> None:
    pool = MemoryPool(token_cap=10)
    held = [pool.reserve(tokens=5) for _ in range(2)]
    calls = [waits(pool, number, tokens=6) for number in (1, 2, 3)]
    asked: list[Any] = []
    reserve = pool.engine.reserve

    def note(chain: Sequence[Scope], key: Any, *arguments: Any, **options: Any) -> Answer:
        asked.append(key)
        return reserve(chain, key, *arguments, **options)

    pool.engine.reserve = note  # type: ignore[method-assign]
    held[0].release()
    until(lambda: len(asked) >= 5)
    oldest = min(pool.budget.tickets, key=lambda key: pool.budget.tickets[key].number)
    assert set(asked) == {oldest}
    held[1].release()
    for call in calls:
        call.result().release()
    close(pool)


# ---------------------------------------------------------------- how room comes


def test_room_that_comes_back_in_this_process_is_handed_on_whatever_the_store_says_to_the_watcher() -> None:
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=10)
    blocked = Blocked(pool, "watch")
    call = waits(pool, 1, tokens=10)
    assert blocked.inside.wait(LONG)
    held.release()
    held = call.result()
    again = waits(pool, 1, tokens=10)
    pool.set_caps(token_cap=20)
    again.result().release()
    held.commit()
    held = pool.reserve(tokens=10)
    call = waits(pool, 1, tokens=10)
    pool.reset()  # what the commit used
    held.release()
    call.result().release()
    blocked.end()
    close(pool)


def test_room_that_comes_back_in_another_process_is_handed_on() -> None:
    here, there = processes(2, token_cap=10)
    held = there.reserve(tokens=10)
    call = waits(here, 1, tokens=10)
    held.release()
    call.result().release()
    close(here, there)


def test_a_store_may_say_who_may_fit() -> None:
    class Telling(MemoryStore):
        def watch(self, heads: Any, seconds: float) -> Collection[Any] | None:  # type: ignore[override]
            super().watch(heads, seconds)
            return [head[1] for head in heads if head[2] <= self.free()]

        def free(self) -> int:
            (row,) = [row for row in self.budget.rows.values() if row.path == "total"]
            return 10 - row.used[0] - row.held[0]

    made = MemoryPool(token_cap=10)
    pool = on(made, Telling("total", made.budget))
    for _ in range(3):
        held = made.reserve(tokens=10)
        call = waits(pool, 1, tokens=4)
        held.release()
        call.result().release()
    close(pool, made)


def test_those_who_wait_at_many_scopes_are_all_served() -> None:
    here, there = processes(2, token_cap=100)
    users, theirs = here.keyed(2, name="user"), there.keyed(2, name="user")
    names = [f"user {number}" for number in range(20)]
    held = [theirs[name].reserve(tokens=2) for name in names]
    calls = [waits(users[name], number, tokens=1) for number, name in enumerate(names, start=1)]
    for reservation in held:
        reservation.release()
    for call in calls:
        call.result().release()
    close(here, there)


def test_who_comes_between_two_attempts_leaves_the_second_to_decide() -> None:
    """Room that comes between the attempt without a ticket and the one with it is taken at once."""
    pool = MemoryPool(token_cap=10)
    held, count = pool.reserve(tokens=10), 0

    def hook(step: str, moment: str) -> None:
        nonlocal count
        count += step == "reserve" and moment == "before"
        if count == 2 and step == "reserve" and moment == "before":
            held.release()

    pool.engine.hook = hook
    pool.reserve(tokens=10, timeout=LONG).release()
    assert count == 2
    close(pool)


def test_the_watcher_ends_when_nobody_waits_and_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_waiting, "_OFTEN", 0.01)
    pool = MemoryPool(token_cap=10)
    line = pool._family.line
    for _ in range(3):
        held = pool.reserve(tokens=10)
        call = waits(pool, 1, tokens=10)
        assert line._watcher is not None
        held.release()
        call.result().release()
        until(lambda: line._watcher is None)
    close(pool)


# ---------------------------------------------------------------- time-outs


def test_a_time_out_is_told_with_the_numbers_as_of_giving_up() -> None:
    here, there = processes(2, token_cap=10)
    kinds: list[str] = []
    here.subscribe(lambda event: kinds.append(event.kind))
    held = there.reserve(tokens=8)
    call = waits(here, 1, tokens=4, timeout=0.3)
    there.record(tokens=2, force=True)
    error = call.error()
    assert isinstance(error, BudgetTimeout)
    assert (error.used, error.reserved, error.attempted) == (2, 8, 14)
    assert kinds == ["refusal"]
    held.release()
    close(here, there)


@pytest.mark.parametrize("room", [False, True], ids=["no room", "room"])
def test_whose_time_is_up_while_it_is_being_tried_gets_what_comes_of_that(*, room: bool) -> None:
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=10)
    line = pool._family.line
    call = waits(pool, 1, tokens=10, timeout=0.2)
    waiter = line._places.all()[0]
    blocked = Blocked(pool, "reserve")
    line.stir()
    assert blocked.inside.wait(LONG)  # the hand tries, or the watcher
    until(lambda: waiter.late)  # and the thread that waits would leave
    if room:
        held.release()
    blocked.end()
    if room:
        call.result().release()
    else:
        assert isinstance(call.error(), BudgetTimeout)
        held.release()
    close(pool)


def test_a_time_out_that_the_store_does_not_answer_is_unavailable_and_the_ticket_is_given_up_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_hand, "_AGAIN", 0.01)
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=10)
    call = waits(pool, 1, tokens=1, timeout=0.2)

    def away(step: str, moment: str) -> None:
        if step in {"leave", "cancel"}:
            raise BudgetUnavailable("no server")

    pool.engine.hook = away
    assert isinstance(call.error(), BudgetUnavailable)
    assert len(pool.budget.tickets) == 1
    pool.engine.hook = lambda step, moment: None
    until(lambda: not pool.budget.tickets)
    held.release()
    close(pool)


# ---------------------------------------------------------------- in vain


def test_who_would_wait_in_vain_takes_no_ticket() -> None:
    pool = MemoryPool(token_cap=10)
    steps = pool.engine.steps
    steps.clear()
    with pytest.raises(BudgetExceeded) as error:
        pool.reserve(tokens=11, timeout=LONG)
    assert error.value.exhausted
    assert steps == ["reserve"]
    with pytest.raises(BudgetExceeded):
        asyncio.run(_reserved(pool, tokens=11))
    assert steps == ["reserve"] * 2
    close(pool)


async def _reserved(pool: MemoryPool, **arguments: Any) -> Any:
    return await pool.areserve(**arguments)


def test_where_others_wait_the_first_attempt_takes_the_ticket_unless_it_is_known_to_be_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=10)
    line = pool._family.line
    assert not line.crowded(pool, 1, 0)
    call = waits(pool, 1, tokens=1)
    assert line.crowded(pool, 10, 0)
    assert not line.crowded(pool, 11, 0)
    assert not line.crowded(pool.child(name="run"), 1, 0)  # nobody has seen the run's row

    tries: list[bool] = []  # of the task: whether each takes a ticket
    reserve = pool.engine.reserve

    def noted(chain: Any, key: Any, tokens: int, nanos: int, *, wait: bool = False, rows: bool = False) -> Any:
        if tokens == 2:
            tries.append(wait)
        return reserve(chain, key, tokens, nanos, wait=wait, rows=rows)

    monkeypatch.setattr(pool.engine, "reserve", noted)

    async def main() -> None:
        task = asyncio.ensure_future(_reserved(pool, tokens=2))
        while line.count(pool._family.root) < 2:  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(main())
    assert tries[0]
    held.release()
    call.result().release()
    close(pool)


def test_who_is_found_to_wait_in_vain_as_it_takes_its_ticket_gives_it_up() -> None:
    pool = MemoryPool(token_cap=10)
    held, count = pool.reserve(tokens=4), 0

    def hook(step: str, moment: str) -> None:
        nonlocal count
        count += step == "reserve" and moment == "before"
        if count == 2 and step == "reserve" and moment == "before":
            pool.record(tokens=5)

    pool.engine.hook = hook
    with pytest.raises(BudgetExceeded) as error:
        pool.reserve(tokens=8, timeout=LONG)
    assert type(error.value) is BudgetExceeded
    assert error.value.used == 5
    held.release()
    close(pool)


@pytest.mark.parametrize("first", [True, False], ids=["the oldest", "another"])
def test_who_has_come_to_wait_in_vain_is_refused(*, first: bool) -> None:
    here, there = processes(2, token_cap=101)
    run, total = here.child(10, name="run"), here
    theirs = there.child(name="run")
    held = there.reserve(tokens=100)
    before = None if first else waits(total, 1, tokens=50)
    call = waits(run, 1 if first else 2, tokens=10)  # at the total
    theirs.record(tokens=1, force=True)  # now 10 never fit in the run
    error = call.error()
    assert type(error) is BudgetExceeded
    assert (error.pool, error.exhausted) == ("run", True)
    held.release()
    if before is not None:
        before.result().release()
    close(here, there)


@pytest.mark.parametrize("first", [True, False], ids=["the oldest", "another"])
def test_who_waits_for_a_pool_that_another_process_closes_is_refused(*, first: bool) -> None:
    here, there = processes(2, token_cap=100)
    run, theirs = here.child(name="run"), there.child(name="run")
    held = there.reserve(tokens=100)
    before = None if first else waits(here, 1, tokens=50)
    call = waits(run, 1 if first else 2, tokens=10)
    theirs.close()
    assert isinstance(call.error(), PoolClosed)
    held.release()
    if before is not None:
        before.result().release()
    close(here, there)


def test_who_waits_for_a_pool_that_this_process_lets_go_is_refused() -> None:
    pool, there = processes(2, token_cap=10)
    held = there.reserve(tokens=10)
    call = waits(pool, 1, tokens=1)
    pool.close()
    assert isinstance(call.error(), PoolClosed)
    until(lambda: not there.budget.tickets)
    held.release()
    close(there)


# ---------------------------------------------------------------- periods


def test_a_finite_time_out_waits_for_the_next_period_and_an_endless_one_does_not() -> None:
    clock = Clock(HOUR)
    pool = MemoryPool(token_cap=10, window=Window.every(timedelta(hours=1), clock=clock))
    pool.record(tokens=10)
    with pytest.raises(BudgetExceeded):
        pool.reserve(tokens=1, timeout=None)
    with pytest.raises(BudgetExceeded):
        pool.reserve(tokens=1, timeout=HOUR - 1)
    calls = [waits(pool, number, tokens=1, timeout=HOUR + 1) for number in (1, 2)]
    clock.now += HOUR
    for call in calls:
        call.result().release()
    close(pool)


def test_who_waits_tries_again_while_the_clock_of_the_store_is_behind_its_own() -> None:
    theirs = Clock(HOUR + 3599.0)

    class Behind(MemoryStore):
        """Its periods are by its own clock, as those of a server."""

        def _roll_over(self, chain: Any) -> Any:
            rows = [self._row(scope) for scope in chain]
            for row in rows:
                if row.end is not None and theirs.now >= row.end:
                    row.begin_anew()
                    row.start, row.end = row.end, row.end + HOUR
            return rows

    clock = Clock(HOUR + 3599.0)
    window = Window.every(timedelta(hours=1), clock=clock)
    made = MemoryPool(token_cap=10, window=window)
    pool = on(made, Behind("total", made.budget))
    pool.record(tokens=10)
    call = waits(pool, 1, tokens=1, timeout=LONG)
    clock.now += 2
    count = pool.engine.steps.count("reserve")
    until(lambda: pool.engine.steps.count("reserve") >= count + 5)
    assert not call.done
    theirs.now += 2
    call.result().release()
    close(pool, made)


def test_what_the_clock_of_a_window_raises_is_raised_where_it_is_waited_for() -> None:
    clock = Clock(HOUR)
    broken = False

    def read() -> float:
        if broken:
            raise ZeroDivisionError("a bug of the clock")
        return clock.now

    pool = MemoryPool(token_cap=10, window=Window.every(timedelta(hours=1), clock=read))
    held = pool.reserve(tokens=10)
    call = waits(pool, 1, tokens=1, timeout=LONG)
    broken = True
    assert isinstance(call.error(), ZeroDivisionError)
    broken = False
    held.release()
    until(lambda: not pool.budget.tickets)
    close(pool)


def test_another_window_is_what_one_waits_for_from_then_on() -> None:
    clock = Clock(HOUR)
    pool = MemoryPool(token_cap=10, window=Window.every(timedelta(hours=2), clock=clock))
    pool.record(tokens=10)
    call = waits(pool, 1, tokens=1, timeout=2 * HOUR)
    pool.set_caps(window=Window.every(timedelta(hours=24), clock=clock))
    assert isinstance(call.error(), BudgetExceeded)
    close(pool)


# ---------------------------------------------------------------- a store that does not answer


def test_those_who_wait_when_the_store_does_not_answer_are_told_and_their_tickets_are_given_up_when_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_hand, "_AGAIN", 0.01)
    pool, there = processes(2, token_cap=10)
    held = there.reserve(tokens=10)
    calls = [waits(pool, number, tokens=number) for number in (1, 2, 3)]
    tried = 0

    def away(step: str, moment: str) -> None:
        nonlocal tried
        tried += step == "reserve"
        raise BudgetUnavailable("no server")

    pool.engine.hook = away
    errors = [call.error() for call in calls]
    assert [(type(error), str(error)) for error in errors] == [(BudgetUnavailable, "no server")] * 3
    assert len({id(error) for error in errors}) == 3
    assert tried == 1  # it takes the store's time-out: not one after another for each
    assert len(there.budget.tickets) == 3
    pool.engine.hook = lambda step, moment: None
    until(lambda: not there.budget.tickets)
    held.release()
    close(pool, there)


def test_those_who_wait_when_the_store_is_lost_are_told_so(caplog: pytest.LogCaptureFixture) -> None:
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=10)
    calls = [waits(pool, number, tokens=number) for number in (1, 2)]
    pool.budget.lose()
    errors = [call.error() for call in calls]
    assert {type(error) for error in errors} == {StoreLost}
    with pytest.raises(StoreLost):
        held.release()
    pool._family.hand.finish(LONG)
    held._abandon()
    pool.close()


@pytest.mark.parametrize("error", [BudgetUnavailable("no server"), StoreError("no login"), ValueError("a bug")])
def test_a_watch_that_fails_holds_up_nobody(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    pool, there = processes(2, token_cap=10)
    held, failed = there.reserve(tokens=10), 0

    def fail(step: str, moment: str) -> None:
        nonlocal failed
        if step == "watch":
            failed += 1
            raise error

    pool.engine.hook = fail
    call = waits(pool, 1, tokens=10)
    until(lambda: failed >= 2)
    held.release()  # nobody tells this process but its own looks
    call.result().release()
    close(pool, there)
    assert ("goes on after an error" in caplog.text) == isinstance(error, ValueError)


# ---------------------------------------------------------------- callbacks


def test_a_callback_in_a_thread_that_serves_others_must_not_wait(caplog: pytest.LogCaptureFixture) -> None:
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=10)
    threads: list[str] = []

    def wait_for_room(event: Any) -> None:
        if event.kind == "reserve":
            threads.append(threading.current_thread().name)
            pool.reserve(tokens=10, timeout=LONG)

    pool.subscribe(wait_for_room)
    call = waits(pool, 1, tokens=10)
    held.release()
    call.result().release()
    assert all(name.startswith("token_budget total") for name in threads)
    assert "a callback that a pool calls in a thread of its own cannot wait for room" in caplog.text
    close(pool)


def test_each_grant_is_told_once_and_before_the_one_who_waited_goes_on() -> None:
    pool = MemoryPool(token_cap=10)
    kinds: list[str] = []
    held = pool.reserve(tokens=10)
    pool.subscribe(lambda event: kinds.append(event.kind))
    call = waits(pool, 1, tokens=10)
    held.release()
    reservation = call.result()
    assert kinds == ["release", "reserve"]
    reservation.release()
    close(pool)


# ---------------------------------------------------------------- all at once


def test_many_threads_and_tasks_in_several_processes_wait_and_nothing_is_oversold_or_left(racing: None) -> None:
    pools = processes(3, token_cap=3)
    going, most = 0, 0
    lock = threading.Lock()

    def count(more: int) -> None:
        nonlocal going, most
        with lock:
            going += more
            most = max(most, going)

    def spend(pool: MemoryPool) -> None:
        for _ in range(15):
            with pool.reserve(tokens=1, timeout=None):
                count(1)
                count(-1)

    async def spend_too(pool: MemoryPool) -> None:
        for _ in range(15):
            async with pool.areserve(tokens=1):
                count(1)
                await asyncio.sleep(0)
                count(-1)

    async def tasks(pool: MemoryPool) -> None:
        await asyncio.gather(*[spend_too(pool) for _ in range(3)])

    calls: list[Call] = []
    for pool in pools:
        calls += [in_a_thread(partial(spend, pool)) for _ in range(3)]
        calls.append(in_a_thread(partial(asyncio.run, tasks(pool))))
    for call in calls:
        call.result()
    assert most <= 3
    assert counters(pools[0]) == (0, 0, 0, 0, 0)
    close(*pools)
