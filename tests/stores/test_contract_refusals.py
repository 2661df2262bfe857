"""What a refusal says on every kind of pool: axis, numbers, scope, the three kinds of refusal, when to ask again."""

from __future__ import annotations

import copy
import pickle
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import pools_of_all_kinds as all_kinds
from pools_of_all_kinds import NANOS, SHAPES, WAYS, Do, Kind, counters, shaped, spend
from shapes import Clock
from token_budget import BudgetExceeded, BudgetOverrun, BudgetTimeout, Window
from token_budget.contract import Pool

kind, do = all_kinds.kind, all_kinds.do
DAY = 86_400
NOW = 20_000.0 * DAY + DAY / 4  # six in the morning
MIDNIGHT = datetime.fromtimestamp(20_001 * DAY, timezone.utc)
TWO_WAYS = ["record", "reserve"]


def daily(clock: Clock) -> Window:
    return Window.daily(clock=clock)


def refusal_of(do: Do, pool: Pool, way: str = "record", **amounts: Any) -> BudgetExceeded:
    with pytest.raises(BudgetExceeded) as refused:
        spend(do, way, pool, **amounts)
    assert type(refused.value) is BudgetExceeded
    return refused.value


def says(error: BudgetExceeded, resets_at: datetime | None, retry_after: float | None) -> None:
    assert (error.resets_at, error.retry_after) == (resets_at, retry_after)


# ---------------------------------------------------------------- the numbers


@pytest.mark.parametrize("way", TWO_WAYS)
def test_a_refusal_has_the_numbers_of_its_axis(kind: Kind, do: Do, way: str) -> None:
    pool = kind.pool(token_cap=1000, usd_cap=2)
    do.record(pool, tokens=300, usd=0.5)
    with do.block(pool, tokens=200, usd=1):
        tokens = refusal_of(do, pool, way, tokens=501, usd=0.1)
        dollars = refusal_of(do, pool, way, tokens=1, usd=0.75)
    assert (tokens.axis, tokens.requested, tokens.used, tokens.reserved) == ("tokens", 501, 300, 200)
    assert (tokens.attempted, tokens.cap, tokens.pool, tokens.exhausted) == (1001, 1000, pool.name, False)
    assert (tokens.requested_nanos, tokens.cap_nanos) == (None, None)
    assert (dollars.axis, dollars.requested, dollars.used, dollars.reserved) == ("usd", 0.75, 0.5, 1.0)
    assert (dollars.attempted, dollars.cap, dollars.pool, dollars.exhausted) == (2.25, 2.0, pool.name, False)
    assert (dollars.attempted_nanos, dollars.used_nanos) == (2_250_000_000, NANOS // 2)
    assert f"on tokens in pool {pool.name!r}: attempted 1001 > cap 1000" in str(tokens)
    assert "(300 used, 200 reserved, 501 requested)" in str(tokens)


def test_an_error_can_be_pickled_and_copied(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10, window=daily(Clock(NOW)))
    error = refusal_of(do, pool, tokens=11)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert str(twin) == str(error)
        assert (twin.pool, twin.attempted, twin.resets_at) == (pool.name, 11, MIDNIGHT)


def test_of_two_axes_the_exhausted_one_is_named(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10, usd_cap=1)
    held = do.reserve(pool, tokens=10)
    do.record(pool, usd=1)
    assert refusal_of(do, pool, tokens=1, usd=0.5).axis == "usd"
    do.commit(held)
    assert refusal_of(do, pool, tokens=1, usd=0.5).axis == "tokens"


def test_an_exhausted_scope_is_named_before_a_busy_one(kind: Kind, do: Do) -> None:
    total = kind.pool(token_cap=1000, name="total")
    user = total.child(token_cap=100, name="user")
    held = do.reserve(user, tokens=100)
    busy = refusal_of(do, user, tokens=1)
    assert (busy.pool, busy.exhausted, busy.retry_after) == ("user", False, 0.0)
    do.record(total, tokens=850)
    both = refusal_of(do, user, tokens=100)  # the total is busy too
    assert (both.pool, both.exhausted) == ("user", False)
    do.record(total, tokens=50)
    exhausted = refusal_of(do, user, tokens=101)
    assert (exhausted.pool, exhausted.exhausted) == ("user", True)
    do.release(held)
    do.record(total, tokens=100)
    exhausted = refusal_of(do, user, tokens=1)
    assert (exhausted.pool, exhausted.exhausted) == (total.name, True)


def test_of_two_full_scopes_the_lower_one_is_named(kind: Kind, do: Do) -> None:
    total = kind.pool(token_cap=10)
    user = total.child(token_cap=10, name="user")
    do.record(user, tokens=10)
    assert refusal_of(do, user, tokens=1).pool == "user"
    user.reset()
    assert refusal_of(do, user, tokens=1).pool == total.name


# ---------------------------------------------------------------- three kinds of refusal


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_used_up_pool_says_when_the_period_ends(kind: Kind, do: Do, shape: str, way: str) -> None:
    asked, pool = shaped(kind, shape, token_cap=10, window=daily(Clock(NOW)))
    do.record(asked, tokens=10)
    error = refusal_of(do, asked, way, tokens=1)
    says(error, MIDNIGHT, DAY * 3 / 4)
    assert (error.pool, error.exhausted) == (pool.name, True)
    assert "used up until" in str(error)


@pytest.mark.parametrize("way", WAYS)
def test_a_request_above_the_whole_cap_never_fits(kind: Kind, do: Do, way: str) -> None:
    pool = kind.pool(token_cap=10, window=daily(Clock(NOW)))
    error = refusal_of(do, pool, way, tokens=11)
    says(error, MIDNIGHT, None)
    assert error.exhausted
    assert "larger than the whole cap" in str(error)


@pytest.mark.parametrize("way", TWO_WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_busy_pool_says_to_ask_again_at_once(kind: Kind, do: Do, shape: str, way: str) -> None:
    asked, _pool = shaped(kind, shape, token_cap=10, window=daily(Clock(NOW)))
    with do.block(asked, tokens=10):
        error = refusal_of(do, asked, way, tokens=1)
    says(error, MIDNIGHT, 0.0)
    assert not error.exhausted
    assert "busy" in str(error)


@pytest.mark.parametrize("way", WAYS)
def test_without_a_window_nothing_resets(kind: Kind, do: Do, way: str) -> None:
    pool = kind.pool(token_cap=10)
    do.record(pool, tokens=10)
    says(refusal_of(do, pool, way, tokens=1), None, None)
    pool.reset()
    with do.block(pool, tokens=10):
        says(refusal_of(do, pool, tokens=1), None, 0.0)


def test_the_error_of_a_time_out_has_the_same_numbers(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10, window=daily(Clock(NOW)))
    do.record(pool, tokens=2)
    with do.block(pool, tokens=5), pytest.raises(BudgetTimeout) as late:
        do.reserve(pool, tokens=4, timeout=0.02)
    error = late.value
    assert isinstance(error, TimeoutError)
    assert (error.axis, error.used, error.reserved, error.requested, error.cap) == ("tokens", 2, 5, 4, 10)
    assert (error.pool, error.exhausted) == (pool.name, False)
    says(error, MIDNIGHT, 0.0)
    assert counters(pool) == (2, 0, 0, 0, 0)


def test_an_overrun_says_when_its_scope_resets(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10, window=daily(Clock(NOW)))
    with pytest.raises(BudgetOverrun) as forced:
        do.record(pool, tokens=11, force=True)
    says(forced.value, MIDNIGHT, DAY * 3 / 4)
    pool.reset()
    reservation = do.reserve(pool, tokens=10)
    with pytest.raises(BudgetOverrun) as committed:
        do.commit(reservation, tokens=12)
    says(committed.value, MIDNIGHT, DAY * 3 / 4)
    assert "the spend is recorded" in str(committed.value)


# ---------------------------------------------------------------- several scopes


@pytest.mark.parametrize("way", WAYS)
def test_if_several_scopes_refuse_the_latest_end_counts(kind: Kind, do: Do, way: str) -> None:
    clock = Clock(NOW)
    total = kind.pool(token_cap=10, window=Window.every(timedelta(days=7), clock=clock), name="total")
    hour = total.child(token_cap=5, window=Window.every(timedelta(hours=1), clock=clock), name="hour")
    below = hour.child(name="below").child(name="below")
    end = total.snapshot().resets_at
    assert end is not None
    do.record(hour, tokens=5)
    says(refusal_of(do, hour, way, tokens=5), hour.snapshot().resets_at, 3600.0)  # only the hour refuses
    do.record(total, tokens=5)
    for asked in (hour, below):
        says(refusal_of(do, asked, way, tokens=5), end, end.timestamp() - NOW)


def test_if_a_scope_without_a_window_refuses_asking_again_never_helps(kind: Kind, do: Do) -> None:
    total = kind.pool(token_cap=5)
    day = total.child(token_cap=5, name="day", window=daily(Clock(NOW)))
    do.record(day, tokens=5)
    says(refusal_of(do, day, tokens=1), MIDNIGHT, None)


def test_a_busy_scope_beside_a_used_up_one_does_not_change_the_answer(kind: Kind, do: Do) -> None:
    total = kind.pool(token_cap=10)
    day = total.child(token_cap=5, name="day", window=daily(Clock(NOW)))
    do.record(day, tokens=5)
    with do.block(total, tokens=5):
        says(refusal_of(do, day, tokens=1), MIDNIGHT, DAY * 3 / 4)


def test_if_the_request_never_fits_in_one_scope_asking_again_never_helps(kind: Kind, do: Do) -> None:
    total = kind.pool(token_cap=10, window=daily(Clock(NOW)))
    day = total.child(token_cap=5, name="day", window=daily(Clock(NOW)))
    do.record(total, tokens=10)
    assert refusal_of(do, day, tokens=6).retry_after is None


def test_retry_after_counts_from_the_moment_of_the_refusal(kind: Kind, do: Do) -> None:
    clock = Clock(NOW)
    pool = kind.pool(usd_cap=1, window=daily(clock))
    do.record(pool, usd=1)
    clock.now += DAY / 4
    error = refusal_of(do, pool, usd=1)
    assert error.retry_after == DAY / 2
    clock.now += DAY / 4
    assert error.retry_after == DAY / 2
    assert refusal_of(do, pool, usd=1).retry_after == DAY / 4


def test_the_axis_that_refuses_decides_when_asking_again_helps(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10, usd_cap=1, window=daily(Clock(NOW)))
    do.record(pool, usd=1)
    with do.block(pool, tokens=10):
        says(refusal_of(do, pool, tokens=1, usd=0.5), MIDNIGHT, DAY * 3 / 4)
        says(refusal_of(do, pool, tokens=1), MIDNIGHT, 0.0)
        says(refusal_of(do, pool, tokens=1, usd=2), MIDNIGHT, None)
