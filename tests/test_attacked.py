"""What an attack planted in the code and no other test saw: each fails with the fault that it is named after."""

from __future__ import annotations

import pytest

from support import counters, forked
from token_budget import BudgetPool, PoolForked, ReservationClosed, _pool


def test_a_pool_that_was_never_finished_does_not_keep_others_from_refusing_in_a_child() -> None:
    half = BudgetPool.__new__(BudgetPool)
    with pytest.raises(ValueError, match="token_cap"):
        half.__init__(-1)  # type: ignore[misc]
    pool = BudgetPool(token_cap=1)
    _pool._after_fork_in_child()
    with pytest.raises(PoolForked):
        pool.record(tokens=1)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_forced_spend_has_the_dropped_back_first() -> None:
    pool = BudgetPool(token_cap=10)
    pool.reserve(tokens=10)
    pool.record(tokens=10, force=True)  # no overrun
    assert counters(pool) == (10, 0, 0, 0, 0)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_commit_has_the_dropped_dollars_back_first() -> None:
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
        pytest.fail("it was entered")


def test_a_settled_reservation_is_not_entered_by_async_with() -> None:
    settled = BudgetPool().reserve(tokens=5)
    settled.release()
    with pytest.raises(ReservationClosed):
        settled.__aenter__().send(None)
