"""P7: a snapshot shows all numbers as of one instant, so used + reserved + remaining == cap in it."""

from __future__ import annotations

import pytest

from support import counters, run_together
from token_budget import BudgetExceeded, BudgetPool, BudgetSnapshot


@pytest.mark.usefixtures("racing")
def test_snapshots_read_while_eight_threads_write_are_each_one_moment() -> None:
    # Every spend moves both axes by the same number, every reservation holds that much of both, and every call in
    # flight holds 7. A snapshot that mixes two moments would violate this.
    pool = BudgetPool(token_cap=10_000, usd_cap=10_000)

    def write() -> None:
        for turn in range(150):
            try:
                with pool.reserve(tokens=7, usd=7) as reservation:
                    if turn % 2:
                        reservation.commit(tokens=3, usd=3)
                pool.record(tokens=1, usd=1)
                if turn % 50 == 0:
                    pool.reset()
            except BudgetExceeded:  # pragma: no cover - the caps are far away
                raise AssertionError from None

    def read() -> list[BudgetSnapshot]:
        return [pool.snapshot() for _ in range(2000)]

    results = run_together(*[write] * 8, read)
    for snapshot in results[-1]:
        assert snapshot.tokens_used + snapshot.tokens_reserved + snapshot.tokens_remaining == 10_000
        assert snapshot.usd_used_nanos == snapshot.tokens_used * 10**9
        assert snapshot.usd_reserved_nanos == snapshot.tokens_reserved * 10**9
        assert snapshot.tokens_reserved == 7 * snapshot.in_flight
        assert 0 <= snapshot.in_flight <= 8
    assert counters(pool)[1] == 0


def test_a_snapshot_does_not_change_with_the_pool() -> None:
    pool = BudgetPool(token_cap=10)
    before = pool.snapshot()
    pool.record(tokens=4)
    assert before.tokens_used == 0
    assert pool.snapshot().tokens_used == 4


def test_in_every_snapshot_the_parts_add_up_to_the_cap() -> None:
    pool = BudgetPool(token_cap=10, usd_cap=0.1)
    held = pool.reserve(tokens=3, usd=0.03)
    pool.record(tokens=5, usd=0.05)
    snapshot = pool.snapshot()
    assert (snapshot.tokens_used, snapshot.tokens_reserved, snapshot.tokens_remaining) == (5, 3, 2)
    assert (snapshot.usd_used, snapshot.usd_reserved, snapshot.usd_remaining) == (0.05, 0.03, 0.02)
    held.release()
