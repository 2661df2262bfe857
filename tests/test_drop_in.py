"""A program written for the PyPI package token-budget-py 0.1.0 runs unchanged.

Each test is such a program, written against that package's documented behaviour. The tests for faults of that package
are in the files of the promises that the faults break.
"""

from __future__ import annotations

import dataclasses
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest

import token_budget
from token_budget import BudgetExceeded, BudgetPool, BudgetSnapshot, Reservation


def test_caps_by_position_or_keyword_and_either_left_out() -> None:
    for pool in (BudgetPool(1000, 1.5), BudgetPool(token_cap=1000, usd_cap=1.5)):
        snapshot = pool.snapshot()
        assert (snapshot.token_cap, snapshot.usd_cap) == (1000, 1.5)
    assert BudgetPool(500_000).snapshot().usd_remaining is None
    assert BudgetPool(usd_cap=5.0).snapshot().tokens_remaining is None


def test_record_then_read_the_fields() -> None:
    pool = BudgetPool(token_cap=1_000_000, usd_cap=10.0)
    pool.record(tokens=1200, usd=0.0036)
    snapshot = pool.snapshot()
    assert isinstance(snapshot, BudgetSnapshot)
    assert (snapshot.tokens_used, snapshot.usd_used) == (1200, 0.0036)
    assert (snapshot.tokens_remaining, snapshot.usd_remaining) == (998_800, 9.9964)
    assert set(dataclasses.asdict(snapshot)) >= {
        "tokens_used", "usd_used", "token_cap", "usd_cap", "tokens_remaining", "usd_remaining",
    }  # fmt: skip


def test_a_refusal_is_caught_and_read() -> None:
    pool = BudgetPool(token_cap=100)
    pool.record(tokens=80)
    with pytest.raises(BudgetExceeded) as raised:
        pool.record(tokens=30)
    assert (raised.value.axis, raised.value.attempted, raised.value.cap) == ("tokens", 110, 100)
    assert str(raised.value).startswith("budget exceeded on tokens: attempted 110 > cap 100")
    pool = BudgetPool(usd_cap=1.0)
    pool.record(usd=0.9)
    with pytest.raises(BudgetExceeded) as raised:
        pool.try_reserve(usd=0.5)
    assert (raised.value.axis, raised.value.attempted, raised.value.cap) == ("usd", 1.4, 1.0)


def test_two_phases_by_block() -> None:
    pool = BudgetPool(token_cap=10_000, usd_cap=1.0)
    with pool.reserve(tokens=2000, usd=0.012) as reservation:
        assert isinstance(reservation, Reservation)
        assert (reservation.reserved_tokens, reservation.reserved_usd) == (2000, 0.012)
        reservation.commit(tokens=1500, usd=0.008)
    assert reservation.completed
    with pytest.raises(ValueError, match="the call failed"), pool.reserve(tokens=2000):
        raise ValueError("the call failed")
    assert pool.snapshot().tokens_used == 1500
    assert pool.snapshot().tokens_remaining == 8500


def test_two_phases_by_hand() -> None:
    pool = BudgetPool(token_cap=100)
    reservation = pool.try_reserve(tokens=80)
    with pytest.raises(BudgetExceeded):
        pool.try_reserve(tokens=30)
    reservation.release()
    reservation.release()
    pool.try_reserve(tokens=30).commit()
    assert pool.snapshot().tokens_used == 30


def test_a_second_commit_is_a_runtime_error() -> None:
    reservation = BudgetPool().try_reserve(tokens=1)
    reservation.commit()
    with pytest.raises(RuntimeError, match=r"already|before"):
        reservation.commit()


def test_a_commit_past_the_cap_is_caught_as_budget_exceeded() -> None:
    pool = BudgetPool(token_cap=100)
    with pytest.raises(BudgetExceeded), pool.reserve(tokens=10) as reservation:
        reservation.commit(tokens=130)
    assert reservation.completed


def test_reset_zeroes() -> None:
    pool = BudgetPool(100, 1.0)
    pool.record(tokens=50, usd=0.5)
    pool.reset()
    assert (pool.snapshot().tokens_used, pool.snapshot().usd_used) == (0, 0.0)


@pytest.mark.parametrize("bad", [{"tokens": -1}, {"usd": -0.01}])
def test_negative_amounts_and_caps_are_value_errors(bad: dict[str, Any]) -> None:
    pool = BudgetPool()
    with pool.reserve() as reservation:
        for call in (pool.record, pool.try_reserve, reservation.commit):
            with pytest.raises(ValueError, match="must not be negative"):
                call(**bad)
    with pytest.raises(ValueError, match="must not be negative"):
        BudgetPool(-1)
    with pytest.raises(ValueError, match="must not be negative"):
        BudgetPool(usd_cap=-1.0)


def test_a_fan_out() -> None:
    pool = BudgetPool(token_cap=1000)

    def worker(_: int) -> bool:
        try:
            pool.record(tokens=10)
        except BudgetExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as workers:
        assert sum(workers.map(worker, range(200))) == 100


def test_reservations_go_on_an_exit_stack() -> None:
    pool = BudgetPool(token_cap=100)
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(pool.reserve(tokens=20))
        assert pool.snapshot().tokens_remaining == 0
    assert pool.snapshot().tokens_remaining == 100


def test_the_names_that_the_package_exported() -> None:
    for name in ("BudgetExceeded", "BudgetPool", "BudgetSnapshot", "Reservation", "__version__"):
        assert name in token_budget.__all__
        assert hasattr(token_budget, name)


def test_the_module_that_the_classes_were_in() -> None:
    from token_budget import pool

    assert pool.BudgetPool is BudgetPool
    assert {*pool.__all__} == {"BudgetExceeded", "BudgetPool", "BudgetSnapshot", "Reservation"}


def test_the_message_is_the_first_argument_of_the_error() -> None:
    with pytest.raises(BudgetExceeded) as raised:
        BudgetPool(token_cap=1).record(tokens=2)
    assert raised.value.args[0].startswith("budget exceeded on tokens: attempted 2 > cap 1")


def test_a_pool_takes_attributes_and_doubles() -> None:
    pool: Any = BudgetPool()
    pool.label = "x"
    with mock.patch.object(pool, "record") as record:
        pool.record(tokens=1)
    record.assert_called_once_with(tokens=1)
    assert pool.snapshot().tokens_used == 0


def test_doubles_of_its_error_and_snapshot() -> None:
    assert BudgetExceeded("usd", 1.4, 1.0).attempted == 1.4
    double = BudgetSnapshot(
        tokens_used=10, usd_used=0.1, token_cap=100, usd_cap=1.0, tokens_remaining=90, usd_remaining=0.9
    )
    assert (double.tokens_remaining, double.usd_remaining) == (90, 0.9)


def test_the_error_is_made_by_position_or_keyword_and_can_be_pickled() -> None:
    for error in (BudgetExceeded("tokens", 110, 100), BudgetExceeded(axis="tokens", attempted=110, cap=100)):
        again = pickle.loads(pickle.dumps(error))
        for one in (error, again):
            assert (one.axis, one.attempted, one.cap) == ("tokens", 110, 100)
            assert one.args[0].startswith("budget exceeded on tokens: attempted 110 > cap 100")
