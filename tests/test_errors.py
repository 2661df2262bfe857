"""`_errors`: what an error carries, says, and survives."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from token_budget import BudgetExceeded, BudgetOverrun, BudgetPool, PoolForked, ReservationClosed


def refused(**amounts: float) -> BudgetExceeded:
    pool = BudgetPool(token_cap=100, usd_cap=1, name="run")
    pool.record(tokens=30, usd=0.3)
    with pool.reserve(tokens=20, usd=0.2), pytest.raises(BudgetExceeded) as raised:
        pool.record(**amounts)  # type: ignore[arg-type]
    return raised.value


def test_a_refusal_carries_its_numbers_on_the_token_axis() -> None:
    error = refused(tokens=60)
    assert (error.axis, error.pool) == ("tokens", "run")
    assert (error.requested, error.used, error.reserved, error.attempted, error.cap) == (60, 30, 20, 110, 100)
    nanos = (error.requested_nanos, error.used_nanos, error.reserved_nanos, error.attempted_nanos, error.cap_nanos)
    assert nanos == (None,) * 5
    assert str(error) == (
        "budget exceeded on tokens in pool 'run': attempted 110 > cap 100 (30 used, 20 reserved, 60 requested); "
        "busy: it fits when calls in flight give back what they do not use"
    )


def test_a_refusal_carries_its_numbers_on_the_dollar_axis_exactly() -> None:
    error = refused(usd=0.700000001)
    assert (error.axis, error.requested, error.used, error.reserved) == ("usd", 0.700000001, 0.3, 0.2)
    assert (error.attempted, error.cap) == (1.200000001, 1.0)
    nanos = (error.requested_nanos, error.used_nanos, error.reserved_nanos, error.attempted_nanos, error.cap_nanos)
    assert nanos == (700_000_001, 300_000_000, 200_000_000, 1_200_000_001, 10**9)
    assert str(error) == (
        "budget exceeded on usd in pool 'run': attempted 1.200000001 > cap 1 (0.3 used, 0.2 reserved, "
        "0.700000001 requested); exhausted: ask for less, reset() the pool or give it a larger cap"
    )


@pytest.mark.parametrize(("tokens", "exhausted"), [(51, False), (70, False), (71, True)])
def test_exhausted_tells_busy_from_never(tokens: int, exhausted: bool) -> None:
    assert refused(tokens=tokens).exhausted is exhausted


def test_a_pool_without_a_name_is_not_named() -> None:
    with pytest.raises(BudgetExceeded) as raised:
        BudgetPool(token_cap=0).record(tokens=1)
    assert raised.value.pool is None
    assert str(raised.value).startswith("budget exceeded on tokens: attempted 1 > cap 0 ")


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize("kind", [BudgetExceeded, BudgetOverrun])
def test_an_error_survives_pickle_and_copy_whole(kind: type[BudgetExceeded], duplicate: Callable[[Any], Any]) -> None:
    made_by_pool = kind._of("usd", 5, 20, 10, 15, "run")
    made_by_hand = kind("usd", 2e-8, 1.5e-8, requested=5e-9, reserved=1e-8, pool="run")
    assert made_by_hand.args == (str(made_by_hand),)
    for error in (made_by_pool, made_by_hand):
        error.note = "kept"  # type: ignore[attr-defined]
        again = duplicate(error)
        assert type(again) is kind
        assert str(again) == str(made_by_pool)
        assert again.args == error.args
        assert (vars(again)["note"], again.used_nanos, again.pool) == ("kept", 5, "run")


def test_an_error_made_by_hand_takes_what_token_budget_py_took() -> None:
    error = BudgetExceeded("tokens", 110, 100)
    assert (error.axis, error.attempted, error.cap, error.used, error.reserved) == ("tokens", 110, 100, 110, 0)
    assert error.args == (str(error),)
    assert error.exhausted


def test_an_error_made_by_hand_is_checked() -> None:
    with pytest.raises(ValueError, match='^axis must be "tokens" or "usd"$'):
        BudgetExceeded("dollars", 1, 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="attempted must be an integer"):
        BudgetExceeded("tokens", 1.5, 1)
    for argument in ("requested", "reserved"):
        with pytest.raises(ValueError, match=f"^{argument} must not be negative"):
            BudgetExceeded("usd", 1, 1, **{argument: -1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^cap must not be negative"):
        BudgetExceeded("usd", 1, -1)
    with pytest.raises(TypeError, match="^pool must be a str, not int"):
        BudgetExceeded("usd", 1, 1, pool=5)  # type: ignore[arg-type]


def test_where_one_axis_is_busy_and_the_other_exhausted_it_is_the_exhausted_one_that_is_told() -> None:
    pool = BudgetPool(token_cap=100, usd_cap=1)
    pool.record(usd=1)
    with pool.reserve(tokens=100), pytest.raises(BudgetExceeded) as raised:
        pool.reserve(tokens=50, usd=0.5)
    assert (raised.value.axis, raised.value.exhausted) == ("usd", True)
    pool = BudgetPool(token_cap=100, usd_cap=1)
    pool.record(tokens=100, usd=1)
    with pytest.raises(BudgetExceeded) as raised:
        pool.record(tokens=1, usd=1)
    assert raised.value.axis == "tokens"


def test_what_asks_for_nothing_is_not_told_to_ask_for_less() -> None:
    pool = BudgetPool(token_cap=10)
    with pytest.raises(BudgetOverrun):
        pool.record(tokens=20, force=True)
    with pytest.raises(BudgetExceeded, match=r"0 requested\); exhausted: reset\(\) the pool or give it a larger cap$"):
        pool.record(usd=1)


def test_the_repr_is_one_line() -> None:
    assert repr(refused(tokens=60)) == f"<BudgetExceeded: {refused(tokens=60)}>"


def test_the_kinds_are_caught_where_they_belong() -> None:
    assert issubclass(BudgetOverrun, BudgetExceeded)
    assert issubclass(ReservationClosed, RuntimeError)
    assert issubclass(PoolForked, RuntimeError)
    assert not issubclass(BudgetExceeded, RuntimeError)
