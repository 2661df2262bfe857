"""Faults that an attack planted in the code and no other test noticed. Each test fails if its fault is planted."""

from __future__ import annotations

import pytest

from support import counters, forked
from token_budget import BudgetPool, PoolForked, ReservationClosed, _pool


def test_a_half_made_pool_does_not_keep_other_pools_from_refusing_in_a_child() -> None:
    half = BudgetPool.__new__(BudgetPool)
    with pytest.raises(ValueError, match="token_cap"):
        half.__init__(-1)  # type: ignore[misc]
    pool = BudgetPool(token_cap=1)
    _pool._after_fork_in_child()
    with pytest.raises(PoolForked):
        pool.record(tokens=1)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_forced_spend_first_gets_back_what_was_dropped() -> None:
    pool = BudgetPool(token_cap=10)
    pool.reserve(tokens=10)
    pool.record(tokens=10, force=True)  # no overrun
    assert counters(pool) == (10, 0, 0, 0, 0)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_commit_first_gets_back_dropped_dollars() -> None:
    pool = BudgetPool(usd_cap=10)
    mine = pool.reserve(usd=1)
    pool.reserve(usd=9)
    mine.commit(usd=10)  # no overrun
    assert counters(pool)[2:] == (10 * 10**9, 0, 0)


def test_a_childs_child_gets_a_lock_of_its_own() -> None:
    pool = BudgetPool(token_cap=10)
    forked(pool)
    held = pool._family.lock
    held.acquire()
    forked(pool)  # forked again, beside a thread that holds the first child's lock
    assert pool._family.lock is not held
    assert counters(pool) == (0, 0, 0, 0, 0)
    held.release()


def test_an_inherited_reservation_is_not_entered_after_a_detach() -> None:
    pool = BudgetPool(token_cap=10)
    inherited = pool.reserve(tokens=5)
    forked(pool)
    pool.detach()
    with pytest.raises(ReservationClosed), inherited:
        pytest.fail("the reservation was entered")


def test_a_settled_reservation_is_not_entered_by_async_with() -> None:
    settled = BudgetPool().reserve(tokens=5)
    settled.release()
    with pytest.raises(ReservationClosed):
        settled.__aenter__().send(None)
