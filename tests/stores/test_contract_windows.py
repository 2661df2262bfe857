"""Windows, reset and caps on every kind of pool: periods by injected clocks, and changes while a pool is used."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import pools_of_all_kinds as all_kinds
from calendars import needs_zones
from pools_of_all_kinds import IN_PROCESS, IN_STORES, NANOS, Do, Kind, counters, shaped
from shapes import Clock
from token_budget import BudgetExceeded, BudgetOverrun, PoolClosed, Window

kind, do = all_kinds.kind, all_kinds.do
HOUR = 3600
START = 500_000.0 * HOUR  # the beginning of an hour
SHAPES = ["alone", "child", "join", "keyed"]


def hourly(clock: Clock) -> Window:
    return Window.every(timedelta(hours=1), clock=clock)


# ---------------------------------------------------------------- periods


@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_operation_after_the_end_of_a_period_begins_a_new_one(kind: Kind, do: Do, shape: str) -> None:
    clock = Clock(START)
    asked, pool = shaped(kind, shape, token_cap=10, usd_cap=1, window=hourly(clock))
    do.record(asked, tokens=10, usd=1)
    clock.now = math.nextafter(START + HOUR, 0)
    for amounts in ({"tokens": 1}, {"usd": 0.1}):
        with pytest.raises(BudgetExceeded):
            do.record(asked, **amounts)
    clock.now = START + HOUR
    do.record(asked, tokens=10, usd=0.25)
    with pytest.raises(BudgetExceeded):
        do.reserve(asked, tokens=1)
    assert counters(pool) == (10, 0, NANOS // 4, 0, 0)
    clock.now = START + 1000.5 * HOUR
    assert counters(pool) == (0, 0, 0, 0, 0)
    do.commit(do.reserve(asked, tokens=10), tokens=1)
    assert counters(pool) == (1, 0, 0, 0, 0)


def test_a_snapshot_shows_the_period_of_the_moment(kind: Kind, do: Do) -> None:
    clock = Clock(START)
    pool = kind.pool(token_cap=10, window=hourly(clock))
    assert (kind.pool().snapshot().window_start, kind.pool().snapshot().resets_at) == (None, None)
    do.record(pool, tokens=7)
    for hours in (0, 1, 24.5):
        clock.now = START + hours * HOUR
        for tree in (False, True):
            snapshot = do.snapshot(pool, tree=tree)
            start = START + hours // 1 * HOUR
            assert snapshot.window_start == datetime.fromtimestamp(start, timezone.utc)
            assert snapshot.resets_at == datetime.fromtimestamp(start + HOUR, timezone.utc)
            assert snapshot.tokens_used == (0 if hours else 7)


def test_calls_in_flight_keep_what_they_hold_and_count_in_the_period_of_their_commit(kind: Kind, do: Do) -> None:
    clock = Clock(START)
    total = kind.pool(token_cap=100)
    pool = total.child(token_cap=10, name="hour", window=hourly(clock))
    committed, dearer, released = [do.reserve(pool, tokens=tokens) for tokens in (3, 2, 4)]
    do.record(pool, tokens=1)
    clock.now = START + HOUR
    assert counters(pool) == (0, 9, 0, 0, 3)
    with pytest.raises(BudgetExceeded):
        do.record(pool, tokens=2)
    do.record(pool, tokens=1)
    do.commit(committed, tokens=2)
    clock.now = START + 2 * HOUR
    with pytest.raises(BudgetOverrun) as raised:
        do.commit(dearer, tokens=7)  # another 4 are held
    assert (raised.value.pool, raised.value.attempted) == ("hour", 11)
    assert counters(pool) == (7, 4, 0, 0, 1)
    clock.now = START + 3 * HOUR
    do.release(released)
    assert counters(pool) == (0, 0, 0, 0, 0)
    assert counters(total) == (11, 0, 0, 0, 0)


def test_an_overrun_ends_with_its_period(kind: Kind, do: Do) -> None:
    clock = Clock(START)
    pool = kind.pool(token_cap=10, window=hourly(clock))
    with pytest.raises(BudgetOverrun):
        do.record(pool, tokens=50, force=True)
    clock.now += HOUR
    do.record(pool, tokens=10)


def test_scopes_of_a_chain_have_their_own_periods(kind: Kind, do: Do) -> None:
    clock = Clock(START)
    total = kind.pool(token_cap=25, window=Window.every(timedelta(hours=5), clock=clock))
    hour = total.child(token_cap=10, name="hour", window=hourly(clock))
    for hours in range(2):
        clock.now = START + hours * HOUR
        do.record(hour, tokens=10)
    clock.now = START + 2 * HOUR
    with pytest.raises(BudgetExceeded) as refused:
        do.record(hour, tokens=6)
    assert refused.value.pool == total.name
    do.record(hour, tokens=5)
    assert (counters(hour)[0], counters(total)[0]) == (5, 25)
    clock.now = START + 5 * HOUR
    do.record(hour, tokens=10)
    assert (counters(hour)[0], counters(total)[0]) == (10, 10)


@needs_zones
def test_a_day_of_another_time_zone_begins_there(kind: Kind, do: Do) -> None:
    clock = Clock(datetime(2026, 3, 29, 21, 59, tzinfo=timezone.utc).timestamp())
    pool = kind.pool(usd_cap=10, window=Window.daily("Europe/Berlin", clock=clock))
    do.record(pool, usd=10)
    snapshot = do.snapshot(pool)
    assert snapshot.window_start == datetime(2026, 3, 28, 23, tzinfo=timezone.utc)
    assert snapshot.resets_at == datetime(2026, 3, 29, 22, tzinfo=timezone.utc)  # a day of 23 hours
    with pytest.raises(BudgetExceeded):
        do.record(pool, usd=1)
    clock.now += 60
    do.record(pool, usd=10)


@pytest.mark.parametrize("window", [None, Window.daily(), Window.monthly(day=15), Window.every(timedelta(hours=5))])
def test_a_window_by_the_real_clock_is_in_its_period(kind: Kind, do: Do, window: Window | None) -> None:
    pool = kind.pool(usd_cap=10, window=window)
    do.record(pool, usd=1)
    snapshot = do.snapshot(pool)
    assert (snapshot.window_start is None) == (snapshot.resets_at is None) == (window is None)
    if window is not None:
        assert snapshot.window_start <= datetime.now(timezone.utc) < snapshot.resets_at


def test_a_clock_that_goes_back_a_little_reopens_no_period(kind: Kind, do: Do) -> None:
    clock = Clock(START)
    pool = kind.pool(token_cap=10, window=hourly(clock))
    do.record(pool, tokens=5)
    clock.now = START + HOUR
    do.record(pool, tokens=3)
    for back in (1, HOUR - 1, HOUR):
        clock.now = START + HOUR - back
        assert counters(pool)[0] == 3
        with pytest.raises(BudgetExceeded):
            do.record(pool, tokens=8)
    do.record(pool, tokens=1)
    clock.now = math.nextafter(START + 2 * HOUR, 0)
    assert counters(pool)[0] == 4
    clock.now = START + 2 * HOUR
    assert counters(pool)[0] == 0


@IN_PROCESS
def test_in_process_a_pool_follows_a_clock_that_goes_back_by_more_than_a_period(kind: Kind, do: Do) -> None:
    clock = Clock(START + 50 * HOUR)
    pool = kind.pool(token_cap=10, window=hourly(clock))
    do.record(pool, tokens=3)
    clock.now = START
    assert counters(pool)[0] == 3
    clock.now = START + HOUR
    assert counters(pool)[0] == 0


@IN_STORES
def test_in_a_store_a_clock_that_goes_back_reopens_nothing_and_reset_takes_its_period(kind: Kind, do: Do) -> None:
    """One host of many may have a wrong clock: it must not give the others a fresh budget."""
    clock = Clock(START + 50 * HOUR)
    pool = kind.pool(token_cap=10, window=hourly(clock))
    do.record(pool, tokens=3)
    for now in (START, START + HOUR, START + 50.5 * HOUR):
        clock.now = now
        assert counters(pool)[0] == 3
        with pytest.raises(BudgetExceeded):
            do.record(pool, tokens=8)
    clock.now = START
    do.record(pool, tokens=1)
    assert do.snapshot(pool).window_start == datetime.fromtimestamp(START + 50 * HOUR, timezone.utc)
    pool.reset()
    snapshot = do.snapshot(pool)
    assert (snapshot.tokens_used, snapshot.window_start) == (0, datetime.fromtimestamp(START, timezone.utc))
    do.record(pool, tokens=10)
    clock.now = START + HOUR
    do.record(pool, tokens=10)


# ---------------------------------------------------------------- reset


@pytest.mark.parametrize("shape", SHAPES)
def test_a_reset_sets_what_is_used_to_0_and_calls_in_flight_keep_what_they_hold(kind: Kind, do: Do, shape: str) -> None:
    asked, pool = shaped(kind, shape, token_cap=10, usd_cap=1)
    do.record(asked, tokens=4, usd=0.5)
    held, other = do.reserve(asked, tokens=3, usd=0.25), do.reserve(asked, tokens=1)
    pool.reset()
    assert counters(pool) == (0, 4, 0, NANOS // 4, 2)
    do.commit(held, tokens=2)
    do.release(other)
    assert counters(pool) == (2, 0, NANOS // 4, 0, 0)


def test_a_reset_changes_only_its_own_scope_and_not_the_period(kind: Kind, do: Do) -> None:
    clock = Clock(START + 1800)
    total = kind.pool(token_cap=100, window=hourly(clock))
    user = total.child(token_cap=50, name="user")
    do.record(user, tokens=40)
    user.reset()
    assert [counters(pool)[0] for pool in (user, total)] == [0, 40]
    do.record(user, tokens=7)
    total.reset()
    assert [counters(pool)[0] for pool in (user, total)] == [7, 0]
    assert do.snapshot(total).window_start == datetime.fromtimestamp(START, timezone.utc)


# ---------------------------------------------------------------- caps


def test_caps_are_raised_and_lowered_while_the_pool_is_used(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10, usd_cap=1)
    do.record(pool, tokens=6)
    held = do.reserve(pool, tokens=4, usd=0.5)
    pool.set_caps(token_cap=20)
    do.record(pool, tokens=10)
    snapshot = do.snapshot(pool)
    assert (snapshot.token_cap, snapshot.usd_cap, snapshot.tokens_remaining) == (20, 1, 0)
    pool.set_caps(token_cap=5, usd_cap=0.75)
    snapshot = do.snapshot(pool)
    assert (snapshot.tokens_remaining, snapshot.usd_remaining) == (-15, 0.25)
    with pytest.raises(BudgetExceeded):
        do.record(pool, tokens=1)
    do.record(pool, usd=0.25)
    with pytest.raises(BudgetExceeded) as refused:
        do.record(pool, usd=0.01)
    assert (refused.value.cap, refused.value.cap_nanos) == (0.75, 750_000_000)
    do.commit(held)  # it keeps what it holds
    assert counters(pool) == (20, 0, 750_000_000, 0, 0)
    pool.set_caps(token_cap=0)
    with pytest.raises(BudgetExceeded):
        do.reserve(pool, tokens=1)


def test_no_cap_is_no_bound_and_what_is_left_out_stays(kind: Kind, do: Do) -> None:
    clock = Clock(START)
    pool = kind.pool(token_cap=10, usd_cap=1, window=hourly(clock))
    do.record(pool, tokens=9)
    pool.set_caps(token_cap=None)
    do.record(pool, tokens=10**18)
    snapshot = do.snapshot(pool)
    assert (snapshot.token_cap, snapshot.tokens_remaining, snapshot.usd_cap) == (None, None, 1)
    assert snapshot.resets_at is not None
    pool.set_caps()
    assert do.snapshot(pool) == snapshot
    pool.set_caps(token_cap=10**18 + 0)
    assert do.snapshot(pool).tokens_remaining == -9
    pool.set_caps(usd_cap=None, token_cap=None, window=None)
    snapshot = do.snapshot(pool)
    assert (snapshot.token_cap, snapshot.usd_cap, snapshot.resets_at) == (None, None, None)
    clock.now += 10 * HOUR
    assert counters(pool)[0] == 10**18 + 9


@pytest.mark.parametrize("shape", SHAPES)
def test_another_window_keeps_what_is_used_and_takes_the_period_of_its_clock(kind: Kind, do: Do, shape: str) -> None:
    clock = Clock(START + 600)
    asked, pool = shaped(kind, shape, token_cap=10)
    do.record(asked, tokens=6)
    pool.set_caps(window=hourly(clock))
    snapshot = do.snapshot(pool)
    assert (snapshot.tokens_used, snapshot.window_start) == (6, datetime.fromtimestamp(START, timezone.utc))
    clock.now = START + HOUR
    do.record(asked, tokens=10)
    pool.set_caps(window=Window.every(timedelta(hours=3), clock=clock))
    snapshot = do.snapshot(pool)
    start = (START + HOUR) // (3 * HOUR) * (3 * HOUR)
    assert (snapshot.tokens_used, snapshot.window_start) == (10, datetime.fromtimestamp(start, timezone.utc))
    pool.set_caps(window=None)
    clock.now += 1000 * HOUR
    assert counters(pool)[0] == 10


def test_another_window_keeps_nothing_of_a_period_that_is_over(kind: Kind, do: Do) -> None:
    clock = Clock(START)
    pool = kind.pool(token_cap=10, window=hourly(clock))
    do.record(pool, tokens=9)
    clock.now = START + 1.5 * HOUR
    pool.set_caps(window=Window.every(timedelta(hours=5), clock=clock))
    assert counters(pool)[0] == 0


def test_the_caps_of_a_scope_below_change_nothing_above(kind: Kind, do: Do) -> None:
    total = kind.pool(token_cap=100)
    user = total.child(token_cap=10, name="user")
    user.set_caps(token_cap=1000)
    with pytest.raises(BudgetExceeded) as refused:
        do.record(user, tokens=101)
    assert refused.value.pool == total.name
    assert (do.snapshot(total).token_cap, do.snapshot(user).token_cap) == (100, 1000)


@pytest.mark.parametrize("settings", [{"token_cap": 5}, {"window": None}, {}])
def test_a_closed_scope_takes_no_other_caps(kind: Kind, settings: dict[str, Any]) -> None:
    run = kind.pool(name="total").child(token_cap=10, name="run")
    run.close()
    with pytest.raises(PoolClosed):
        run.set_caps(**settings)
    assert run.snapshot().token_cap == 10
