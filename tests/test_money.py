"""`_money`: the conversions, against Python's own exact arithmetic."""

from __future__ import annotations

import decimal
import numbers
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import strategies
from ledger import grid
from token_budget import _money


@given(strategies.usd)
@example(2.5e-9)  # the float is above the tie, but its product with 1e9 is the tie
@example(0.5e-9)
@example(1.5e-9)
@example(1000.0)
@example(999.9999999995)
@example(1000.0000000005)
@example(1e9)
@example(5e-324)
@example(Decimal("0.0000000025"))
@example(Fraction(5, 2 * 10**9))
@example(Fraction(3, 2 * 10**9))
def test_dollars_become_the_nearest_nanodollar_ties_to_even(amount: Any) -> None:
    nanos = _money.to_nanos(amount)
    assert type(nanos) is int
    assert nanos == grid(amount) * 10**9


@given(st.integers(0, 2 * 10**9), st.sampled_from([-1, 0, 1]))
def test_floats_beside_a_tie_round_to_their_own_side(halves: int, step: int) -> None:
    # The floats of ties and their neighbours, where a rounded product would round the wrong way.
    amount = halves * 0.5e-9
    amount += step * amount * 2**-52
    assert _money.to_nanos(amount) == grid(amount) * 10**9


def test_the_callers_decimal_context_does_not_matter() -> None:
    with decimal.localcontext() as context:
        context.prec = 2
        context.rounding = decimal.ROUND_UP
        context.traps[decimal.Inexact] = True
        context.traps[decimal.Subnormal] = True
        assert _money.to_nanos(Decimal("123.4567891234")) == 123_456_789_123
        assert _money.to_nanos(Decimal("1e-999999")) == 0


def test_the_default_decimal_context_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decimal.DefaultContext, "prec", 2)
    monkeypatch.setattr(decimal.DefaultContext, "rounding", decimal.ROUND_UP)
    monkeypatch.setitem(decimal.DefaultContext.traps, decimal.Inexact, True)
    assert _money.to_nanos(Decimal("123.4567891234")) == 123_456_789_123


def test_a_type_that_is_registered_as_a_real_number_counts_by_its_float() -> None:
    class Quarter:
        def __float__(self) -> float:
            return 0.25

    numbers.Real.register(Quarter)
    assert _money.to_nanos(Quarter()) == 250_000_000  # type: ignore[arg-type]


@given(strategies.tokens)
def test_tokens_keep_their_value(count: int) -> None:
    assert _money.to_tokens(count) == count


def test_amounts_at_the_limits_are_accepted() -> None:
    assert _money.to_tokens(10**18) == 10**18
    for most in (10**9, 1e9, Decimal(10**9), Fraction(10**9)):
        assert _money.to_nanos(most) == 10**18


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (0, "0"),
        (1, "0.000000001"),
        (3 * 10**8, "0.3"),
        (10**9, "1"),
        (10**10, "10"),
        (-1_500_000_000, "-1.5"),
        (-1, "-0.000000001"),
    ],
)
def test_the_text_of_dollars_is_exact_and_short(nanos: int, text: str) -> None:
    assert _money.usd_text(nanos) == text
    assert Decimal(text) * 10**9 == nanos


@given(st.integers(-(10**20), 10**20))
def test_dollars_come_back_as_the_nearest_float(nanos: int) -> None:
    assert _money.to_usd(nanos) == float(Fraction(nanos, 10**9))
