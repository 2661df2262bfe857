"""P6: dollars are counted exactly, in nanodollars."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies
from ledger import grid
from support import caught, counters
from token_budget import BudgetExceeded, BudgetPool


@pytest.mark.parametrize("kind", [float, Decimal, Fraction])
def test_three_times_a_tenth_fills_three_tenths_and_not_a_nanodollar_more_fits(kind: type) -> None:
    tenth, cap = (0.1, 0.3) if kind is float else (kind("0.1"), kind("0.3"))
    pool = BudgetPool(usd_cap=cap)
    for _ in range(3):
        pool.record(usd=tenth)
    assert pool.snapshot().usd_remaining == 0
    assert caught(BudgetExceeded, pool.record, usd=1e-9)


def test_a_million_times_a_millionth_is_one() -> None:
    pool = BudgetPool(usd_cap=1)
    for _ in range(10**6):
        pool.record(usd=0.000001)
    assert pool.snapshot().usd_used == 1.0
    assert caught(BudgetExceeded, pool.record, usd=1e-9)


def test_a_nanodollar_counts_beside_a_billion_dollars() -> None:
    pool = BudgetPool()
    pool.record(usd=10**9)
    pool.record(usd=1e-9)
    assert pool.snapshot().usd_used_nanos == 10**18 + 1


@given(st.lists(strategies.usd, max_size=20))
def test_the_sum_is_the_sum_of_the_rounded_amounts(amounts: list[float]) -> None:
    pool = BudgetPool()
    for amount in amounts:
        pool.record(usd=amount)
    assert counters(pool)[2] == sum((grid(amount) for amount in amounts), Fraction(0)) * 10**9


@given(strategies.usd)
def test_reserving_and_releasing_any_amount_leaves_nothing(amount: float) -> None:
    pool = BudgetPool(usd_cap=10**9)
    pool.reserve(usd=amount).release()
    assert counters(pool) == (0, 0, 0, 0, 0)
