"""P10 on every kind of pool: first come, first served; who waits in vain is refused at once, who leaves holds nothing.

No test sleeps to let something happen. It waits until so many are in line, makes room for one, and takes that one's
result: whoever were served in its place would have the room, and it would get none.
"""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import pools_of_all_kinds as all_kinds
from pools_of_all_kinds import IN_EVERY_WAY, OF_TASKS, SHAPES, Call, Do, Kind, counters, in_line, shaped
from shapes import Clock
from token_budget import BudgetExceeded, BudgetOverrun, BudgetTimeout, PoolClosed, ReservationClosed, Window
from token_budget.contract import Pool

kind, do = all_kinds.kind, all_kinds.do
PERIOD = timedelta(seconds=100)
START = 1_000_000.0  # the beginning of such a period


def waits(kind: Kind, do: Do, pool: Pool, count: int, **arguments: Any) -> Call:
    """Let one wait, and return when it is in line with so many in all."""
    call = do.wait(pool, **arguments)
    in_line(kind, pool, count)
    return call


# ---------------------------------------------------------------- the order


@IN_EVERY_WAY
def test_those_who_wait_are_served_in_the_order_of_arrival(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10)
    held = do.reserve(pool, tokens=10)
    calls = [waits(kind, do, pool, count, tokens=10) for count in (1, 2, 3, 4, 5)]
    for index, call in enumerate(calls):
        do.release(held)
        held = call.result()
        assert not any(later.done for later in calls[index + 1 :])
    do.commit(held, tokens=7)
    assert counters(pool) == (7, 0, 0, 0, 0)
    assert kind.waiting(pool) == 0


def test_a_small_request_does_not_overtake_a_large_one_that_came_before(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10)
    held = [do.reserve(pool, tokens=5) for _ in range(2)]
    large = waits(kind, do, pool, 1, tokens=10)
    small = waits(kind, do, pool, 2, tokens=1)
    do.release(held[0])  # 5 are free: the small one would fit, and then the large one never would
    for method in ("record", "reserve"):
        with pytest.raises(BudgetExceeded, match="others wait for room, and they come first") as refused:
            do.call(pool, method, tokens=1)
        assert (refused.value.exhausted, refused.value.attempted) == (False, 6)
        assert refused.value.retry_after == 0.0
    do.release(held[1])
    reservation = large.result()
    assert not small.done
    do.commit(reservation, tokens=1)
    do.release(small.result())
    assert counters(pool) == (1, 0, 0, 0, 0)


def test_a_newcomer_that_may_wait_goes_to_the_end_of_the_line(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10)
    held = do.reserve(pool, tokens=5)
    large = waits(kind, do, pool, 1, tokens=8)
    with pytest.raises(BudgetTimeout) as late:
        do.reserve(pool, tokens=1, timeout=0.001)
    assert (late.value.attempted, late.value.cap) == (6, 10)
    small = waits(kind, do, pool, 2, tokens=1)
    do.release(held)
    do.release(large.result())
    do.release(small.result())
    do.record(pool, tokens=10)


def test_a_forced_record_is_counted_while_others_wait(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10)
    held = do.reserve(pool, tokens=5)
    waiter = waits(kind, do, pool, 1, tokens=8)
    do.record(pool, tokens=1, force=True)
    do.release(held)
    do.release(waiter.result())
    assert counters(pool) == (1, 0, 0, 0, 0)


def test_who_waits_for_one_scope_does_not_hold_up_those_who_do_not_need_it(kind: Kind, do: Do) -> None:
    total = kind.pool(token_cap=100)
    ann, bob = total.child(token_cap=10, name="ann"), total.child(token_cap=50, name="bob")
    held = do.reserve(ann, tokens=10)
    waiter = waits(kind, do, ann, 1, tokens=5)
    do.record(bob, tokens=40)
    do.record(total, tokens=50)
    with pytest.raises(BudgetExceeded):
        do.record(ann)
    do.release(held)
    do.release(waiter.result())


def test_children_wait_in_one_line_at_their_parent(kind: Kind, do: Do) -> None:
    total = kind.pool(token_cap=10)
    ann, bob = total.child(name="ann"), total.child(name="bob")
    held = [do.reserve(ann, tokens=5), do.reserve(bob, tokens=5)]
    first = waits(kind, do, bob, 1, tokens=10)
    second = waits(kind, do, ann, 2, tokens=4)
    third = waits(kind, do, total, 3, tokens=7)
    do.release(held[0])
    do.release(held[1])
    reservation = first.result()
    do.release(reservation)
    reservation = second.result()
    assert not third.done
    do.release(reservation)
    do.release(third.result())


def test_a_waiter_that_gets_room_below_keeps_its_place_in_the_line_above(kind: Kind, do: Do) -> None:
    total = kind.pool(token_cap=10)
    ann, bob = total.child(token_cap=5, name="ann"), total.child(name="bob")
    below, above = do.reserve(ann, tokens=5), do.reserve(total, tokens=5)
    first = waits(kind, do, ann, 1, tokens=4)  # waits for room in ann's scope
    second = waits(kind, do, bob, 2, tokens=5)  # waits for room in the total
    ann.set_caps(token_cap=10)  # now ann's scope has room, and the total has none
    all_kinds.until(lambda: total.statistics().waiters == 2)  # in a store it goes there in a moment
    do.release(above)
    reservation = first.result()
    assert not second.done
    do.release(below)
    do.release(second.result())
    do.release(reservation)


def test_a_waiter_that_gets_room_below_waits_behind_an_older_one_above(kind: Kind, do: Do) -> None:
    total = kind.pool(token_cap=20)
    ann = total.child(token_cap=5, name="ann")
    above, below = do.reserve(total, tokens=10), do.reserve(ann, tokens=5)
    first = waits(kind, do, total, 1, tokens=15)  # 5 are free
    second = waits(kind, do, ann, 2, tokens=3)
    ann.set_caps(token_cap=8)  # now 3 would fit in both, and then the older one never would
    with pytest.raises(BudgetExceeded):
        do.record(total, tokens=1)
    do.release(above)
    reservation = first.result()
    assert not second.done
    do.release(reservation)
    do.release(second.result())
    do.release(below)


def test_threads_and_tasks_wait_in_one_line(kind: Kind, do: Do) -> None:
    pool, threads = kind.pool(token_cap=10), all_kinds.Do()
    held = do.reserve(pool, tokens=10)
    calls = []
    for count in range(1, 5):
        calls.append(waits(kind, threads if count % 2 else do, pool, count, tokens=10))
    for index, call in enumerate(calls):
        do.release(held)
        held = call.result()
        assert not any(later.done for later in calls[index + 1 :])
    do.release(held)


def test_many_that_share_room_for_a_few_are_all_served_in_order(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=4)
    held = do.reserve(pool, tokens=4)
    calls = [waits(kind, do, pool, count, tokens=4, timeout=60) for count in range(1, 21)]
    for call in calls:
        do.release(held)
        held = call.result()
    do.release(held)
    assert counters(pool) == (0, 0, 0, 0, 0)


# ---------------------------------------------------------------- what makes room


@pytest.mark.parametrize(
    "free",
    [
        lambda do, pool, held: do.release(held.pop()),
        lambda do, pool, held: do.commit(held.pop(), tokens=0),
        lambda do, pool, held: do.entered(held.pop()).__enter__().release(),
        lambda do, pool, held: pool.set_caps(token_cap=100),
        lambda do, pool, held: pool.set_caps(token_cap=None),
        lambda do, pool, held: (do.commit(held.pop(), tokens=3), pool.reset()),
        lambda do, pool, held: held.clear(),
    ],
    ids=["release", "commit", "leave", "larger cap", "no cap", "reset", "drop"],
)
@pytest.mark.parametrize("shape", ["alone", "child", "join", "keyed"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_whatever_makes_room_serves_who_waits(kind: Kind, do: Do, shape: str, free: Callable[..., Any]) -> None:
    asked, pool = shaped(kind, shape, token_cap=10)
    do.record(asked, tokens=1)
    held = [do.reserve(asked, tokens=5)]
    filler = do.reserve(asked, tokens=4)
    waiter = waits(kind, do, asked, 1, tokens=5)
    free(do, pool, held)
    do.release(waiter.result())
    do.release(filler)
    while held:
        do.release(held.pop())
    assert counters(pool)[1] == 0


def test_larger_caps_of_a_group_serve_who_waits(kind: Kind, do: Do) -> None:
    users = kind.pool().keyed(token_cap=10, name="user")
    held = do.reserve(users["ann"], tokens=10)
    waiter = waits(kind, do, users["ann"], 1, tokens=10)
    users.set_caps(token_cap=20)
    do.release(waiter.result())
    do.release(held)


# ---------------------------------------------------------------- in vain


@IN_EVERY_WAY
@pytest.mark.parametrize("timeout", [None, 3600])
def test_what_can_never_fit_is_refused_at_once(kind: Kind, do: Do, timeout: float | None) -> None:
    pool = kind.pool(token_cap=10, usd_cap=1)
    do.record(pool, tokens=3)
    with do.block(pool, tokens=5):
        for amounts in ({"tokens": 8}, {"usd": 1.5}, {"tokens": 1, "usd": 1.1}):
            with pytest.raises(BudgetExceeded) as refused:
                do.reserve(pool, timeout=timeout, **amounts)
            assert refused.value.exhausted
            assert not isinstance(refused.value, BudgetTimeout)
    assert kind.waiting(pool) == 0


@pytest.mark.parametrize(
    ("happens", "error"),
    [
        (lambda do, pool, held: do.record(pool, tokens=5, force=True), BudgetExceeded),
        (lambda do, pool, held: do.commit(held[0]), BudgetExceeded),
        (lambda do, pool, held: pool.set_caps(token_cap=7), BudgetExceeded),
        (lambda do, pool, held: pool.set_caps(usd_cap=0), BudgetExceeded),
        (lambda do, pool, held: pool.close(), PoolClosed),
    ],
    ids=["force", "commit", "token cap", "usd cap", "close"],
)
@pytest.mark.parametrize("above", [False, True], ids=["itself", "above"])
def test_a_waiter_is_refused_as_soon_as_it_waits_in_vain(
    kind: Kind, do: Do, happens: Callable[..., Any], error: type[Exception], *, above: bool
) -> None:
    """Also if it waits behind another, or at another scope than the one that is now too small."""
    total = kind.pool(name="total").child(token_cap=10, usd_cap=1, name="middle")
    child = total.child(token_cap=10, name="child") if above else total
    held = [do.reserve(child, tokens=5) for _ in range(2)]
    small = waits(kind, do, child, 1, tokens=1)
    large = waits(kind, do, child, 2, tokens=8, usd=0.5)
    try:
        happens(do, total, held)
    except BudgetOverrun:
        pass
    refused = large.error()
    assert type(refused) is error
    if isinstance(refused, BudgetExceeded):
        assert refused.exhausted
        assert refused.pool in {"middle", "child"}
    for reservation in held:
        do.release(reservation)
    if small.error() is None:
        do.release(small.result())
    assert counters(total)[1] == 0
    assert kind.waiting(total) == 0


@pytest.mark.parametrize("finite", [False, True])
def test_who_waits_is_refused_when_its_key_or_scope_is_closed(kind: Kind, do: Do, *, finite: bool) -> None:
    users = kind.pool().keyed(token_cap=10, name="user")
    ann, timeout = users["ann"], 3600 if finite else None
    held = do.reserve(ann, tokens=10)
    waiter = waits(kind, do, ann, 1, tokens=1, timeout=timeout)
    ann.close()
    assert isinstance(waiter.error(), PoolClosed)
    do.commit(held)
    assert counters(ann)[:2] == (10, 0)


# ---------------------------------------------------------------- giving up


@IN_EVERY_WAY
@pytest.mark.parametrize("shape", ["alone", "join"])
def test_who_waits_in_vain_until_its_time_is_up_holds_nothing(kind: Kind, do: Do, shape: str) -> None:
    asked, pool = shaped(kind, shape, token_cap=10)
    with do.block(asked, tokens=10):
        with pytest.raises(BudgetTimeout):
            do.reserve(asked, tokens=1, timeout=0.01)
        assert kind.waiting(asked) == 0
    assert counters(pool) == (0, 0, 0, 0, 0)
    do.record(asked, tokens=10)


def test_the_room_of_one_that_gave_up_goes_to_the_next(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10)
    with do.block(pool, tokens=5):
        large = do.wait(pool, tokens=8, timeout=0.3)
        all_kinds.until(lambda: kind.waiting(pool) == 1 or large.done)
        small = do.wait(pool, tokens=2, timeout=60)
        assert isinstance(large.error(), BudgetTimeout)
        do.release(small.result())
    assert counters(pool) == (0, 0, 0, 0, 0)


@OF_TASKS
def test_a_task_that_is_cancelled_while_it_waits_gets_nothing_and_lets_the_next_one_go_on(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10)
    held = do.reserve(pool, tokens=5)
    large = waits(kind, do, pool, 1, tokens=8)
    small = waits(kind, do, pool, 2, tokens=3)
    large.cancel()
    assert isinstance(large.error(), asyncio.CancelledError)
    do.release(small.result())
    do.release(held)
    in_line(kind, pool, 0)
    assert counters(pool) == (0, 0, 0, 0, 0)


@OF_TASKS
def test_a_task_that_is_cancelled_as_it_is_served_gives_back_or_has_it(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10)
    for _ in range(10):
        held = do.reserve(pool, tokens=10)
        waiter = waits(kind, do, pool, 1, tokens=10)
        releasing = do.begin(held, "release")
        waiter.cancel()
        releasing.result()
        if waiter.error() is None:
            assert counters(pool)[1] == 10
            do.release(waiter.result())
        all_kinds.until(lambda: counters(pool) == (0, 0, 0, 0, 0))


@OF_TASKS
def test_cancelled_calls_that_do_not_wait_lose_nothing_and_leak_nothing(kind: Kind, do: Do) -> None:
    """A commit that was begun is counted, whether or not somebody still waits for its answer."""
    pool, held = kind.pool(token_cap=1000), []
    for _ in range(20):
        held.append(do.reserve(pool, tokens=10))
        committing = do.begin(held[-1], "commit", tokens=7)
        reserving = do.begin(pool, "reserve", tokens=5, timeout=0)
        for call in (committing, reserving):
            call.cancel()
        if reserving.error() is None:
            do.release(reserving.result())
    for reservation in held:  # a call that was cancelled before it began has done nothing
        with contextlib.suppress(ReservationClosed):
            do.commit(reservation, tokens=7)
    all_kinds.until(lambda: counters(pool) == (140, 0, 0, 0, 0))


# ---------------------------------------------------------------- the next period


def used_up(kind: Kind, do: Do, shape: str, cap: int = 10) -> tuple[Pool, Pool, Clock]:
    clock = Clock(START + 25)
    asked, pool = shaped(kind, shape, token_cap=cap, window=Window.every(PERIOD, clock=clock))
    do.record(asked, tokens=cap)
    return asked, pool, clock


@pytest.mark.parametrize("shape", SHAPES)
def test_a_time_out_that_reaches_the_next_period_waits_for_it(kind: Kind, do: Do, shape: str) -> None:
    asked, pool, clock = used_up(kind, do, shape)
    calls = [waits(kind, do, asked, count, tokens=tokens, timeout=500) for count, tokens in ((1, 6), (2, 4), (3, 2))]
    clock.now = START + 75
    pool.snapshot()
    assert not any(call.done for call in calls)
    clock.now = START + 100
    pool.snapshot()  # any operation ends the period in process
    for call in calls[:2]:
        do.commit(call.result())
    assert not calls[2].done
    clock.now = START + 200
    pool.snapshot()
    do.release(calls[2].result())


@pytest.mark.parametrize("timeout", [50, 0, None])
def test_a_shorter_time_out_is_refused_at_once(kind: Kind, do: Do, timeout: float | None) -> None:
    asked, pool, _clock = used_up(kind, do, "child")
    with pytest.raises(BudgetExceeded) as refused:
        do.reserve(asked, tokens=1, timeout=timeout)
    assert not isinstance(refused.value, BudgetTimeout)
    assert (refused.value.exhausted, refused.value.retry_after) == (True, 75.0)
    assert counters(pool) == (10, 0, 0, 0, 0)


@pytest.mark.parametrize("timeout", [500, 0, None, 1e9])
def test_what_is_above_the_whole_cap_waits_for_no_period(kind: Kind, do: Do, timeout: float | None) -> None:
    asked, _pool, _clock = used_up(kind, do, "child")
    with pytest.raises(BudgetExceeded) as refused:
        do.reserve(asked, tokens=11, timeout=timeout)
    assert not isinstance(refused.value, BudgetTimeout)
    assert refused.value.retry_after is None


def test_it_waits_for_several_scopes_if_the_next_period_of_each_begins_in_time(kind: Kind, do: Do) -> None:
    clock = Clock(START + 25)
    total = kind.pool(token_cap=10, window=Window.every(4 * PERIOD, clock=clock), name="total")
    team = total.child(token_cap=5, window=Window.every(PERIOD, clock=clock), name="team")
    asked = team.child(name="asked")
    end = total.snapshot().resets_at
    assert end is not None
    left = end.timestamp() - clock.now
    do.record(total, tokens=5)
    do.record(team, tokens=5)
    for timeout in (50, 150, left - 1):  # these end before the last of the next periods begins
        with pytest.raises(BudgetExceeded) as refused:
            do.reserve(asked, tokens=1, timeout=timeout)
        assert refused.value.retry_after == left
    waiter = waits(kind, do, asked, 1, tokens=1, timeout=left + 5)
    clock.now = START + 100
    asked.snapshot()
    clock.now = end.timestamp()
    asked.snapshot()
    do.release(waiter.result())


def test_a_used_up_scope_without_a_window_refuses_at_once(kind: Kind, do: Do) -> None:
    total = kind.pool(token_cap=10)
    asked = total.child(token_cap=10, name="asked", window=Window.every(PERIOD, clock=Clock(START)))
    do.record(asked, tokens=10)
    with pytest.raises(BudgetExceeded) as refused:
        do.reserve(asked, tokens=1, timeout=3600)
    assert refused.value.retry_after is None


def test_who_waits_for_a_call_in_flight_is_refused_when_room_can_no_longer_come_in_time(kind: Kind, do: Do) -> None:
    clock = Clock(START + 25)
    pool = kind.pool(token_cap=10, window=Window.every(PERIOD, clock=clock))
    held = do.reserve(pool, tokens=10)
    patient, without_end, short = (
        waits(kind, do, pool, count, tokens=4, timeout=timeout) for count, timeout in ((1, 500), (2, None), (3, 50))
    )
    do.commit(held)  # now this period's budget is used up
    for call in (without_end, short):
        assert type(call.error()) is BudgetExceeded
    clock.now = START + 100
    pool.snapshot()
    do.release(patient.result())


def test_a_window_that_is_set_while_somebody_waits_counts_from_then_on(kind: Kind, do: Do) -> None:
    clock = Clock(START + 25)
    pool = kind.pool(token_cap=10)
    held = do.reserve(pool, tokens=10)
    waiter = waits(kind, do, pool, 1, tokens=10, timeout=500)
    pool.set_caps(window=Window.every(PERIOD, clock=clock))
    do.release(held)
    do.commit(waiter.result())
    clock.now += 100
    assert counters(pool)[0] == 0


@pytest.mark.parametrize("shape", ["alone", "child"])
def test_who_waits_by_the_real_clock_wakes_at_the_periods_end(kind: Kind, do: Do, shape: str) -> None:
    asked, pool = shaped(kind, shape, token_cap=10, window=Window.every(timedelta(milliseconds=50)))
    for _ in range(3):
        do.release(do.reserve(asked, tokens=10, timeout=60))
        do.record(pool, tokens=pool.snapshot().tokens_remaining or 0)
    assert counters(pool)[4] == 0


# ---------------------------------------------------------------- what is told to whoever waits wrongly


def test_a_thread_that_is_about_to_wait_in_a_running_event_loop_is_warned(kind: Kind) -> None:
    pool = kind.pool(token_cap=10)

    async def main() -> None:
        held = pool.reserve(tokens=10)
        with pytest.warns(RuntimeWarning, match="areserve"), pytest.raises(BudgetTimeout):
            pool.reserve(tokens=1, timeout=0.001)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(BudgetExceeded):
                pool.reserve(tokens=1)
        held.release()

    asyncio.run(main())


def test_an_areserve_that_nobody_awaits_is_told_by_a_warning_and_holds_nothing(kind: Kind) -> None:
    pool = kind.pool(token_cap=10)
    with pytest.warns(RuntimeWarning, match="never awaited") as seen:
        pool.areserve(tokens=10)
    assert len(seen) == 1
    pool.record(tokens=10)


def test_an_areserve_is_a_coroutine_that_is_used_once(kind: Kind) -> None:
    pool = kind.pool(token_cap=10)

    async def main() -> None:
        calls: list[Any] = [pool.areserve(tokens=5) for _ in range(3)]
        tasks = [asyncio.create_task(call) for call in calls]
        first, second = await tasks[0], await tasks[1]
        first.release()
        (await tasks[2]).release()
        second.release()
        call: Any = pool.areserve(tokens=1)
        async with call as reservation:
            reservation.commit()
        with pytest.raises(RuntimeError, match="once"):
            await call

    asyncio.run(main())
    assert counters(pool) == (1, 0, 0, 0, 0)


def test_areserve_keeps_the_order_of_its_calls(kind: Kind) -> None:
    pool = kind.pool(token_cap=100)
    order: list[int] = []

    async def call(number: int) -> None:
        async with pool.areserve(tokens=100, timeout=60):
            order.append(number)

    async def main() -> None:
        await asyncio.gather(*[call(number) for number in range(20)])

    asyncio.run(main())
    assert order == list(range(20))
