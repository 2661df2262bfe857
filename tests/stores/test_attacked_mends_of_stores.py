"""The mends of what earlier attacks on the stores had found, attacked in turn: how they work together."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from test_front_attacked import AWAY, Allowed
from token_budget.stores import _outage


@pytest.fixture
def pool() -> Iterator[Allowed]:
    pool = Allowed()
    pool.allowing.worried = lambda: None  # the tests ask whether it is back, and no worker
    yield pool
    pool.failing.clear()
    pool.close()


# ---------------------------------------------------------------- on_unavailable="allow"


def test_what_the_store_refuses_to_record_after_an_outage_holds_up_nothing_else(pool: Allowed) -> None:
    gone, other = pool.child(name="gone"), pool.child(name="other")
    held = pool.reserve(tokens=5)
    pool.failing["record"] = pool.failing["commit"] = pool.failing["release"] = AWAY
    other.record(tokens=10)
    gone.record(tokens=20)
    held.commit(tokens=4)
    pool.failing.clear()
    del pool.budget.rows["total/gone"]
    assert pool.allowing.catch_up() == _outage._REFUSED
    assert (pool.used(), pool.budget.rows["total/other"].used[0]) == (14, 10)
    assert list(pool.allowing._spent) == [gone._chain]  # it is tried again, in case that it comes back
    assert pool.allowing._doing == []


def test_a_store_that_refuses_what_passed_is_tended_all_the_same(
    pool: Allowed, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = pool.child(name="gone")
    pool.failing["record"] = AWAY
    gone.record(tokens=20)
    pool.failing.clear()
    del pool.budget.rows["total/gone"]
    monkeypatch.setattr(pool.store, "tend", lambda: 7.0)  # as a lease is renewed there
    assert pool.allowing.catch_up() == 7.0
