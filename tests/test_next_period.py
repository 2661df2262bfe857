"""A request with a finite time-out waits for the next period too, if that begins in time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from shapes import SHAPES, Clock, waiting
from support import counters
from token_budget import BudgetExceeded, BudgetPool, BudgetTimeout, Window

PERIOD = timedelta(seconds=1)


def used_up(shape: str, cap: int = 10, length: timedelta = PERIOD) -> tuple[BudgetPool, BudgetPool, Clock]:
    clock = Clock(1_000_000.25)  # a quarter of a second into the period
    asked, pool = SHAPES[shape](token_cap=cap, window=Window.every(length, clock=clock))
    asked.record(tokens=cap)
    return asked, pool, clock


async def _ask(pool: BudgetPool, **arguments: Any) -> None:
    (await pool.areserve(**arguments)).release()


ASKING: dict[str, Callable[..., object]] = {
    "thread": lambda pool, **arguments: pool.reserve(**arguments).release(),
    "task": lambda pool, **arguments: asyncio.run(_ask(pool, **arguments)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_request_whose_timeout_reaches_the_next_period_waits_and_is_served_then(shape: str) -> None:
    asked, pool, clock = used_up(shape)
    first, second, third = (waiting(asked, tokens=tokens, timeout=5) for tokens in (6, 4, 2))
    clock.now = 1_000_000.75
    pool.snapshot()
    assert {waiter.state for waiter in (first, second, third)} == {"waiting"}
    clock.now = 1_000_001.0
    pool.snapshot()  # any operation ends the period
    assert [waiter.state for waiter in (first, second, third)] == ["granted", "granted", "waiting"]
    first.reservation.commit()
    second.reservation.commit()
    assert third.state == "waiting"
    clock.now = 1_000_002.0
    pool.snapshot()
    assert third.state == "granted"
    third.reservation.release()


@pytest.mark.parametrize("asking", ASKING)
@pytest.mark.parametrize("shape", SHAPES)
def test_threads_and_tasks_wake_at_the_periods_end_by_themselves(shape: str, asking: str) -> None:
    asked, pool = SHAPES[shape](token_cap=10, window=Window.every(timedelta(milliseconds=50)))
    for _ in range(4):
        ASKING[asking](asked, tokens=10, timeout=30)
        pool.record(tokens=pool.snapshot().tokens_remaining or 0)
    assert pool.snapshot().in_flight == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_the_sleep_of_a_thread_ends_at_the_periods_end(shape: str) -> None:
    from token_budget._sleep import Sleeps

    asked, pool, clock = used_up(shape)
    waiter = waiting(asked, tokens=1, timeout=5)
    sleeps = Sleeps(waiter, 5)
    assert sleeps.next() == 0.75
    assert not sleeps.over
    clock.now = 1_000_000.5
    assert sleeps.next() == 0.5
    clock.now = 1_000_001
    pool.snapshot()
    waiter.reservation.release()


def test_tasks_wait_through_periods_while_another_task_moves_the_clock() -> None:
    asked, _pool, clock = used_up("child", length=timedelta(milliseconds=20))
    served: list[float] = []

    async def worker() -> None:
        async with asked.areserve(tokens=10, timeout=60) as reservation:
            served.append(clock.now)
            reservation.commit()

    async def main() -> None:
        tasks = [asyncio.create_task(worker()) for _ in range(5)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0.001)
            clock.now += 0.005
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert len(served) == 5
    assert len({int(now * 50 + 1e-6) for now in served}) == 5  # each task in its own period


@pytest.mark.parametrize("asking", ASKING)
@pytest.mark.parametrize("timeout", [0.5, 0, None])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_request_with_a_shorter_timeout_is_refused_at_once(shape: str, timeout: float | None, asking: str) -> None:
    asked, pool, _clock = used_up(shape)
    with pytest.raises(BudgetExceeded) as refused:
        ASKING[asking](asked, tokens=1, timeout=timeout)
    assert not isinstance(refused.value, BudgetTimeout)
    assert refused.value.exhausted
    assert refused.value.retry_after == 0.75
    assert counters(pool) == (10, 0, 0, 0, 0)


@pytest.mark.parametrize("asking", ASKING)
@pytest.mark.parametrize("timeout", [5, 0, None, 1e9])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_request_above_the_whole_cap_is_refused_at_once(shape: str, timeout: float | None, asking: str) -> None:
    asked, _pool, _clock = used_up(shape)
    with pytest.raises(BudgetExceeded) as refused:
        ASKING[asking](asked, tokens=11, timeout=timeout)
    assert not isinstance(refused.value, BudgetTimeout)
    assert refused.value.retry_after is None


def test_a_request_waits_for_several_scopes_if_the_next_period_of_each_begins_in_time() -> None:
    clock = Clock(1_000_000.25)

    def every(seconds: float) -> Window:
        return Window.every(timedelta(seconds=seconds), clock=clock)

    total = BudgetPool(token_cap=10, window=every(4), name="total")
    team = total.child(token_cap=5, window=every(1), name="team")
    asked = team.child()
    total.record(tokens=5)
    team.record(tokens=5)
    for timeout in (0.5, 2, 3.7):  # these end before the last of the next periods begins
        with pytest.raises(BudgetExceeded) as refused:
            asked.reserve(tokens=1, timeout=timeout)
        assert refused.value.retry_after == 3.75
    waiter = waiting(asked, tokens=1, timeout=3.8)
    clock.now = 1_000_001
    asked.snapshot()
    assert waiter.state == "waiting"
    clock.now = 1_000_004
    asked.snapshot()
    assert waiter.state == "granted"
    waiter.reservation.release()


def test_a_used_up_scope_without_a_window_refuses_at_once() -> None:
    total = BudgetPool(token_cap=10)
    asked = total.child(token_cap=10, window=Window.every(PERIOD, clock=Clock()))
    asked.record(tokens=10)
    with pytest.raises(BudgetExceeded) as refused:
        asked.reserve(tokens=1, timeout=60)
    assert refused.value.retry_after is None


def test_a_waiter_for_a_call_in_flight_is_refused_when_room_can_no_longer_come_in_time() -> None:
    asked, pool, clock = used_up("child")
    clock.now = 1_000_001
    held = asked.reserve(tokens=10)
    patient, without_end, short = (waiting(asked, tokens=4, timeout=one) for one in (5, None, 0.5))
    held.commit()  # now this second's budget is used up
    assert (patient.state, without_end.state, short.state) == ("waiting", "refused", "refused")
    clock.now = 1_000_002
    pool.snapshot()
    assert patient.state == "granted"
    patient.reservation.release()


@pytest.mark.parametrize("asking", ASKING)
def test_a_wait_times_out_if_the_windows_clock_stands_still(asking: str) -> None:
    asked, pool, _clock = used_up("alone", length=timedelta(milliseconds=2))
    with pytest.raises(BudgetTimeout) as late:
        ASKING[asking](asked, tokens=1, timeout=0.05)
    assert late.value.exhausted
    assert pool.statistics().waiters == 0


def test_a_window_that_is_set_during_a_wait_counts_from_then_on() -> None:
    clock = Clock(1_000_000.25)
    pool = BudgetPool(token_cap=10)
    held = pool.reserve(tokens=10)
    waiter = waiting(pool, tokens=10, timeout=5)
    pool.set_caps(window=Window.every(PERIOD, clock=clock))
    held.release()
    assert waiter.state == "granted"
    waiter.reservation.commit()
    clock.now += 1
    assert pool.snapshot().tokens_used == 0


def test_requests_to_a_budget_of_tokens_per_minute_queue_instead_of_failing() -> None:
    pool = BudgetPool(token_cap=10, window=Window.every(timedelta(milliseconds=20)))
    done: list[int] = []

    def call() -> None:
        with pool.reserve(tokens=5, timeout=60) as reservation:
            reservation.commit()
        done.append(1)

    threads = [threading.Thread(target=call, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 8
