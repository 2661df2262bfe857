"""Refusals: an axis refuses only if something is asked of it, and each refusal says when to ask again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from shapes import SHAPES, WAYS, Clock, waiting
from support import counters
from token_budget import BudgetExceeded, BudgetOverrun, BudgetPool, BudgetTimeout, Window

# ---------------------------------------------------------------- an axis of which nothing is asked


def overrun(pool: BudgetPool) -> None:
    with pytest.raises(BudgetOverrun):
        pool.record(usd=1.000001, force=True)


def exactly_full(pool: BudgetPool) -> None:
    pool.record(usd=1)


def capped_below_what_is_used(pool: BudgetPool) -> None:
    pool.record(usd=0.5)
    pool.set_caps(usd_cap=0.25)


def overrun_of_what_is_held(pool: BudgetPool) -> None:
    pool.reserve(usd=0.5).commit(usd=0.9)
    pool.set_caps(usd_cap=0)


FULL = [overrun, exactly_full, capped_below_what_is_used, overrun_of_what_is_held]


@pytest.mark.parametrize("watched", [False, True], ids=["", "watched"])
@pytest.mark.parametrize("fill", FULL)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_axis_of_which_nothing_is_asked_refuses_nothing(
    shape: str, way: str, fill: Callable[[BudgetPool], None], watched: bool
) -> None:
    asked, pool = SHAPES[shape](token_cap=1000, usd_cap=1)
    if watched:
        pool.subscribe(lambda _event: None)
        pool.on_threshold(2, lambda _event: None)
    fill(pool)
    nanos = counters(pool)[2]
    WAYS[way](asked, tokens=500)
    assert counters(pool) == (500, 0, nanos, 0, 0)
    WAYS[way](asked)  # a call that costs nothing at all passes
    with pytest.raises(BudgetExceeded) as refused:
        WAYS[way](asked, tokens=1, usd=0.000000001)
    assert refused.value.axis == "usd"
    with pytest.raises(BudgetExceeded) as refused:
        WAYS[way](asked, tokens=501)
    assert (refused.value.axis, refused.value.requested, refused.value.attempted) == ("tokens", 501, 1001)
    assert counters(pool) == (500, 0, nanos, 0, 0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_call_that_asks_for_no_tokens_passes_an_overrun_of_tokens(shape: str, way: str) -> None:
    asked, pool = SHAPES[shape](token_cap=10, usd_cap=1)
    with pytest.raises(BudgetOverrun):
        pool.record(tokens=11, force=True)
    WAYS[way](asked, usd=0.75)
    assert counters(pool) == (11, 0, 750_000_000, 0, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_overrun_does_not_block_a_waiter_that_asks_nothing_of_that_axis(shape: str) -> None:
    asked, pool = SHAPES[shape](token_cap=10, usd_cap=1)
    held = asked.reserve(tokens=10)
    first, second = waiting(asked, tokens=4), waiting(asked, tokens=6)
    with pytest.raises(BudgetOverrun):
        pool.record(usd=2, force=True)
    held.release()
    assert (first.state, second.state) == ("granted", "granted")
    assert counters(pool) == (0, 10, 2_000_000_000, 0, 2)
    first.reservation.commit()
    second.reservation.release()


@pytest.mark.parametrize("shape", SHAPES)
def test_an_overrun_of_tokens_does_not_block_a_waiter_that_asks_only_for_dollars(shape: str) -> None:
    asked, pool = SHAPES[shape](token_cap=10, usd_cap=1)
    held = asked.reserve(usd=1)
    waiter = waiting(asked, nanos=1)
    with pytest.raises(BudgetOverrun):
        pool.record(tokens=11, force=True)
    assert waiter.state == "waiting"
    second = waiting(asked, nanos=1)
    held.release()
    assert (waiter.state, second.state) == ("granted", "granted")
    waiter.reservation.release()
    second.reservation.release()


@pytest.mark.parametrize("shape", SHAPES)
def test_an_overrun_refuses_at_once_a_waiter_that_asks_something_of_that_axis(shape: str) -> None:
    asked, pool = SHAPES[shape](token_cap=10, usd_cap=1)
    held = asked.reserve(tokens=10)
    both, tokens = waiting(asked, tokens=4, nanos=1), waiting(asked, tokens=6)
    with pytest.raises(BudgetOverrun):
        pool.record(usd=2, force=True)
    assert (both.state, tokens.state) == ("refused", "waiting")
    held.release()
    assert tokens.state == "granted"
    tokens.reservation.release()


def test_a_scope_has_one_line_whatever_is_asked() -> None:
    pool = BudgetPool(token_cap=10, usd_cap=1)
    held = pool.reserve(usd=1)
    first = waiting(pool, nanos=1)
    with pytest.raises(BudgetExceeded) as refused:
        pool.reserve(tokens=1)
    assert not refused.value.exhausted
    held.release()
    assert first.state == "granted"
    pool.record(tokens=1)
    first.reservation.release()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_overrun_of_a_forced_record_names_the_axis_that_it_passed(shape: str) -> None:
    asked, pool = SHAPES[shape](token_cap=10, usd_cap=1)
    heard: list[str] = []
    with pytest.raises(BudgetOverrun) as raised:
        asked.record(usd=2, tokens=1, force=True)
    assert raised.value.axis == "usd"
    pool.subscribe(lambda event: heard.append(event.kind))
    asked.record(tokens=9, force=True)  # fits: another call passed the dollar cap before
    assert heard == ["record"]
    with pytest.raises(BudgetOverrun) as raised:
        asked.record(tokens=1, force=True)
    assert (raised.value.axis, raised.value.attempted, raised.value.requested) == ("tokens", 11, 1)
    with pytest.raises(BudgetOverrun) as raised:
        asked.record(usd=0.5, force=True)
    assert (raised.value.axis, raised.value.attempted, raised.value.requested) == ("usd", 2.5, 0.5)
    assert heard == ["record", "record", "overrun", "record", "overrun"]
    assert counters(pool) == (11, 0, 2_500_000_000, 0, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_overrun_of_a_commit_names_the_axis_that_it_passed(shape: str) -> None:
    asked, pool = SHAPES[shape](token_cap=10, usd_cap=1)
    with pytest.raises(BudgetOverrun):
        pool.record(usd=2, force=True)
    asked.reserve(tokens=4).commit()
    with pytest.raises(BudgetOverrun) as raised:
        asked.reserve(tokens=4).commit(tokens=8)
    assert (raised.value.axis, raised.value.attempted) == ("tokens", 12)


# ---------------------------------------------------------------- when asking again can help

DAY = 86_400
NOW = 20_000.0 * DAY + DAY / 4  # six in the morning
MIDNIGHT = datetime.fromtimestamp(20_001 * DAY, timezone.utc)


def daily(clock: Clock) -> Window:
    return Window.daily(clock=clock)


def refusal_of(pool: BudgetPool, way: str = "record", **amounts: Any) -> BudgetExceeded:
    with pytest.raises(BudgetExceeded) as refused:
        WAYS[way](pool, **amounts)
    return refused.value


def says(error: BudgetExceeded, resets_at: datetime | None, retry_after: float | None) -> None:
    assert error.resets_at == resets_at
    assert error.retry_after == retry_after


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_used_up_pool_says_when_the_period_ends(shape: str, way: str) -> None:
    clock = Clock(NOW)
    asked, pool = SHAPES[shape](token_cap=10, window=daily(clock))
    pool.record(tokens=10)
    error = refusal_of(asked, way, tokens=1)
    says(error, MIDNIGHT, DAY * 3 / 4)
    assert error.exhausted


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_request_above_the_whole_cap_never_fits(shape: str, way: str) -> None:
    asked, _pool = SHAPES[shape](token_cap=10, window=daily(Clock(NOW)))
    says(refusal_of(asked, way, tokens=11), MIDNIGHT, None)


@pytest.mark.parametrize("way", ["record", "reserve"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_busy_pool_says_to_ask_again_at_once(shape: str, way: str) -> None:
    asked, _pool = SHAPES[shape](token_cap=10, window=daily(Clock(NOW)))
    with asked.reserve(tokens=10):
        error = refusal_of(asked, way, tokens=1)
    says(error, MIDNIGHT, 0.0)
    assert not error.exhausted


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_without_a_window_nothing_resets(shape: str, way: str) -> None:
    asked, pool = SHAPES[shape](token_cap=10)
    pool.record(tokens=10)
    says(refusal_of(asked, way, tokens=1), None, None)


def test_a_busy_pool_without_a_window_says_to_ask_again_at_once() -> None:
    for shape in SHAPES.values():
        asked, _pool = shape(token_cap=10)
        with asked.reserve(tokens=10):
            says(refusal_of(asked, tokens=1), None, 0.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_of_a_time_out_says_when_to_ask_again_too(shape: str) -> None:
    asked, _pool = SHAPES[shape](token_cap=10, window=daily(Clock(NOW)))
    with asked.reserve(tokens=10), pytest.raises(BudgetTimeout) as thread:
        asked.reserve(tokens=1, timeout=0.001)
    says(thread.value, MIDNIGHT, 0.0)

    async def ask() -> None:
        await asked.areserve(tokens=1, timeout=0.001)

    with asked.reserve(tokens=10), pytest.raises(BudgetTimeout) as task:
        asyncio.run(ask())
    says(task.value, MIDNIGHT, 0.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_overrun_says_when_its_scope_resets(shape: str) -> None:
    asked, _pool = SHAPES[shape](token_cap=10, window=daily(Clock(NOW)))
    with pytest.raises(BudgetOverrun) as raised:
        asked.record(tokens=11, force=True)
    says(raised.value, MIDNIGHT, DAY * 3 / 4)


@pytest.mark.parametrize("way", WAYS)
def test_if_several_scopes_refuse_the_latest_end_counts(way: str) -> None:
    clock = Clock(NOW)
    total = BudgetPool(token_cap=10, window=Window.every(timedelta(days=7), clock=clock), name="total")
    hour = total.child(token_cap=5, window=Window.every(timedelta(hours=1), clock=clock), name="hour")
    end = total._account.period_end
    hour.record(tokens=5)
    # Only the hour refuses.
    says(refusal_of(hour, way, tokens=5), hour.snapshot().resets_at, hour._account.period_end - NOW)
    total.record(tokens=5)
    says(refusal_of(hour, way, tokens=5), total.snapshot().resets_at, end - NOW)
    asked = hour.child().child()  # the asked pool has no window of its own
    says(refusal_of(asked, way, tokens=5), total.snapshot().resets_at, end - NOW)


@pytest.mark.parametrize("way", WAYS)
def test_if_a_scope_without_a_window_refuses_asking_again_never_helps(way: str) -> None:
    total = BudgetPool(token_cap=5)
    day = total.child(token_cap=5, window=daily(Clock(NOW)))
    day.record(tokens=5)
    assert refusal_of(day, way, tokens=1).retry_after is None


@pytest.mark.parametrize("way", WAYS)
def test_a_busy_scope_beside_a_used_up_one_does_not_change_the_answer(way: str) -> None:
    total = BudgetPool(token_cap=10)
    day = total.child(token_cap=5, window=daily(Clock(NOW)))
    day.record(tokens=5)
    with total.reserve(tokens=5):
        says(refusal_of(day, way, tokens=1), MIDNIGHT, DAY * 3 / 4)


def test_if_the_request_never_fits_in_one_scope_asking_again_never_helps() -> None:
    total = BudgetPool(token_cap=10, window=daily(Clock(NOW)))
    day = total.child(token_cap=5, window=daily(Clock(NOW)))
    total.record(tokens=10)
    assert refusal_of(day, tokens=6).retry_after is None


def test_retry_after_counts_from_the_moment_of_the_refusal() -> None:
    clock = Clock(NOW)
    pool = BudgetPool(usd_cap=1, window=daily(clock))
    pool.record(usd=1)
    clock.now += DAY / 4
    error = refusal_of(pool, usd=1)
    assert error.retry_after == DAY / 2
    clock.now += DAY / 4
    assert error.retry_after == DAY / 2
    assert refusal_of(pool, usd=1).retry_after == DAY / 4
