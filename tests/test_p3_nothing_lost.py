"""P3: a committed amount is always in `used`, even if it passes the cap. The error comes after it is counted."""

from __future__ import annotations

import asyncio

import pytest

from support import counters
from token_budget import BudgetExceeded, BudgetOverrun, BudgetPool


@pytest.mark.parametrize(
    ("amounts", "axis", "used"),
    [
        ({"tokens": 101}, "tokens", (101, 100_000_000)),
        ({"usd": 1.1}, "usd", (50, 1_100_000_000)),
        ({"tokens": 101, "usd": 1.1}, "tokens", (101, 1_100_000_000)),
    ],
)
def test_a_commit_above_its_reservation_is_recorded_and_then_says_so(
    amounts: dict[str, float], axis: str, used: tuple[int, int]
) -> None:
    pool = BudgetPool(token_cap=100, usd_cap=1)
    reservation = pool.reserve(tokens=50, usd=0.1)
    with pytest.raises(BudgetOverrun, match="is recorded") as raised:
        reservation.commit(**amounts)  # type: ignore[arg-type]
    assert raised.value.axis == axis
    assert isinstance(raised.value, BudgetExceeded)
    assert reservation.completed
    assert counters(pool) == (used[0], 0, used[1], 0, 0)


def test_a_commit_above_its_reservation_but_under_the_cap_is_no_error() -> None:
    pool = BudgetPool(token_cap=100)
    pool.reserve(tokens=10).commit(tokens=100)
    assert counters(pool)[0] == 100


def test_a_commit_within_its_reservation_is_no_error_even_in_a_pool_that_others_overran() -> None:
    pool = BudgetPool(token_cap=100, usd_cap=1)
    mine = pool.reserve(tokens=10, usd=0.1)
    also_mine = pool.reserve(tokens=10, usd=0.1)
    with pytest.raises(BudgetOverrun):
        pool.record(tokens=1000, force=True)
    mine.commit()
    also_mine.commit(tokens=10, usd=0.5)  # above its reserved dollars, but the dollar cap is not overrun
    assert counters(pool) == (1020, 0, 600_000_000, 0, 0)


def test_a_commit_of_exactly_what_was_reserved_is_no_error_if_others_overran_the_dollars() -> None:
    pool = BudgetPool(usd_cap=1, name="run")
    mine, more = pool.reserve(usd=0.25), pool.reserve(usd=0.25)
    with pytest.raises(BudgetOverrun):
        pool.record(usd=5, force=True)
    mine.commit(usd=0.25)
    with pytest.raises(BudgetOverrun) as raised:
        more.commit(usd=0.5)
    assert (raised.value.axis, raised.value.pool) == ("usd", "run")


def test_an_overrun_has_the_numbers_before_and_after_the_spend() -> None:
    pool = BudgetPool(token_cap=100, name="run")
    pool.record(tokens=20)
    other = pool.reserve(tokens=30)
    mine = pool.reserve(tokens=40)
    with pytest.raises(BudgetOverrun) as raised:
        mine.commit(tokens=70)
    error = raised.value
    assert (error.used, error.reserved, error.requested, error.attempted, error.cap) == (20, 30, 70, 120, 100)
    assert (error.pool, error.exhausted) == ("run", False)
    assert str(error) == (
        "budget overrun on tokens in pool 'run': attempted 120 > cap 100 (20 used, 30 reserved, 70 requested); "
        "the spend is recorded: do not commit it again"
    )
    other.release()


def test_a_forced_record_is_added_whatever_the_cap_and_raises_only_past_it() -> None:
    pool = BudgetPool(token_cap=100, usd_cap=1, name="run")
    pool.record(tokens=100, usd=0.5, force=True)
    with pytest.raises(BudgetOverrun) as tokens:
        pool.record(tokens=5, usd=0, force=True)
    pool.record(usd=0.5, force=True)  # reaches the cap exactly, while the other axis is over its cap
    with pytest.raises(BudgetOverrun) as usd:
        pool.record(usd=0.5, force=True)
    assert (tokens.value.axis, usd.value.axis) == ("tokens", "usd")
    assert (tokens.value.pool, usd.value.pool) == ("run", "run")
    pool.record(force=True)  # nothing was spent, so nothing passed a cap
    assert counters(pool) == (105, 0, 1_500_000_000, 0, 0)


def test_a_spend_that_passes_the_cap_in_a_block_is_recorded_once() -> None:
    pool = BudgetPool(token_cap=10)
    with pytest.raises(BudgetOverrun), pool.reserve(tokens=10) as reservation:
        reservation.commit(tokens=15)
    assert counters(pool) == (15, 0, 0, 0, 0)


def test_a_call_that_failed_after_it_was_sent_is_committed_in_the_except() -> None:
    pool = BudgetPool(token_cap=100)
    with pytest.raises(TimeoutError), pool.reserve(tokens=50) as reservation:
        try:
            raise TimeoutError
        except TimeoutError:
            reservation.commit(tokens=40)
            raise
    assert counters(pool) == (40, 0, 0, 0, 0)


def test_a_call_in_flight_at_a_reset_counts_when_it_is_committed() -> None:
    pool = BudgetPool(token_cap=100, usd_cap=1)
    pool.record(tokens=30, usd=0.3)
    with pool.reserve(tokens=50, usd=0.5) as reservation:
        pool.reset()
        assert counters(pool) == (0, 50, 0, 500_000_000, 1)
        reservation.commit(tokens=45, usd=0.4)
    assert counters(pool) == (45, 0, 400_000_000, 0, 0)


def test_a_reset_after_an_overrun_starts_from_what_is_held() -> None:
    pool = BudgetPool(token_cap=10)
    held = pool.reserve(tokens=4)
    with pytest.raises(BudgetOverrun):
        pool.record(tokens=100, force=True)
    pool.reset()
    pool.record(tokens=6)
    held.release()
    assert counters(pool) == (6, 0, 0, 0, 0)


def test_a_commit_from_another_event_loop_counts() -> None:
    pool = BudgetPool(token_cap=10)

    async def take() -> object:
        return pool.reserve(tokens=4)

    async def settle(reservation: object) -> None:
        reservation.commit(tokens=3)  # type: ignore[attr-defined]

    asyncio.run(settle(asyncio.run(take())))
    assert counters(pool) == (3, 0, 0, 0, 0)
