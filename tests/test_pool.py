"""`_pool`: what belongs to no promise, such as texts, sizes and subclasses."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from support import HookedLock, counters
from token_budget import BudgetPool, BudgetSnapshot, Reservation, _family


def test_the_repr_of_a_pool_is_one_line_of_one_moment() -> None:
    pool = BudgetPool(token_cap=1000, usd_cap=1, name="run")
    pool.record(tokens=250, usd=0.1)
    assert repr(pool) == ("<BudgetPool run: tokens 250 / 1,000 (25%) | usd 0.1000 / 1.0000 (10%) | 0 in flight>")


def test_the_repr_of_a_reservation_is_one_line() -> None:
    pool, nameless = BudgetPool(name="run"), BudgetPool()
    reservation, other = pool.reserve(tokens=1500, usd=0.0045), nameless.reserve()
    assert repr(reservation) == "<Reservation in 'run' tokens 1,500 | usd 0.0045 | in flight>"
    assert repr(other) == "<Reservation tokens 0 | usd 0 | in flight>"
    reservation.commit()
    other.release()
    assert repr(reservation) == "<Reservation in 'run' tokens 1,500 | usd 0.0045 | committed>"
    assert repr(other) == "<Reservation tokens 0 | usd 0 | released>"


def test_a_reservation_has_the_amounts_that_it_holds() -> None:
    pool = BudgetPool()
    with pool.reserve(tokens=5, usd=0.1) as reservation:
        held = (reservation.reserved_tokens, reservation.reserved_usd, reservation.reserved_usd_nanos)
        assert held == (5, 0.1, 100_000_000)
        assert reservation.completed is False
    assert reservation.completed is True
    assert reservation.reserved_tokens == 5


def test_a_pool_is_a_pool_for_subclasses_too() -> None:
    class Counting(BudgetPool):
        __hash__ = None  # type: ignore[assignment]

    pool = Counting(token_cap=10)
    pool.record(tokens=4)
    assert isinstance(pool.snapshot(), BudgetSnapshot)
    assert counters(pool)[0] == 4


def test_a_pool_has_a_name() -> None:
    assert BudgetPool(name="run").name == "run"
    assert BudgetPool().name is None


def test_an_open_reservation_takes_at_most_200_bytes() -> None:
    pool = BudgetPool(token_cap=10**12, usd_cap=10**6)
    reservations: list[Reservation | None] = [None] * 1000
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for index in range(1000):
            reservations[index] = pool.reserve(tokens=100_000 + index, usd=0.0123)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / 1000 <= 200
    for reservation in reservations:
        assert reservation is not None
        reservation.release()


@pytest.mark.parametrize(
    "operation", ["record", "reserve", "commit", "release", "snapshot", "reset", "detach", "force"]
)
def test_every_operation_takes_the_lock_once_and_releases_it(monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    lock = HookedLock()
    monkeypatch.setattr(_family, "_new_lock", lambda: lock)
    pool = BudgetPool(token_cap=10)
    reservation = pool.reserve(tokens=1)
    operations: dict[str, Any] = {
        "record": lambda: pool.record(tokens=1),
        "reserve": lambda: pool.reserve(tokens=1).release(),
        "commit": reservation.commit,
        "release": reservation.release,
        "snapshot": pool.snapshot,
        "reset": pool.reset,
        "detach": pool.detach,
        "force": lambda: pool.record(tokens=1, force=True),
    }
    taken: list[bool] = []
    lock.hook = lambda: taken.append(lock._lock.locked())
    operations[operation]()
    assert taken == [True] * {"reserve": 2}.get(operation, 1)
    assert not lock._lock.locked()
    lock.hook = lambda: None
    reservation.release()
