"""P4: a reservation ends committed or released, never both and never twice, however threads race."""

from __future__ import annotations

import pytest

from support import caught, counters, run_together
from token_budget import BudgetOverrun, BudgetPool, Reservation, ReservationClosed


def test_a_second_commit_is_refused_and_says_what_ended_it() -> None:
    pool = BudgetPool(name="run")
    reservation = pool.reserve(tokens=5)
    reservation.commit()
    with pytest.raises(
        ReservationClosed,
        match=r"cannot commit .*5.*it was committed before; a call .* by record\(\.\.\., force=True\)$",
    ):
        reservation.commit()
    assert counters(pool) == (5, 0, 0, 0, 0)


def test_a_commit_after_release_is_refused_and_says_what_ended_it() -> None:
    pool = BudgetPool()
    reservation = pool.reserve(tokens=5)
    reservation.release()
    with pytest.raises(ReservationClosed, match="it was released before"):
        reservation.commit(tokens=3)
    assert counters(pool) == (0, 0, 0, 0, 0)


def test_release_after_either_end_does_nothing() -> None:
    pool = BudgetPool()
    committed, released = pool.reserve(tokens=5), pool.reserve(tokens=7)
    committed.commit()
    released.release()
    committed.release()
    released.release()
    assert counters(pool) == (5, 0, 0, 0, 0)


def test_a_commit_that_overran_cannot_be_repeated() -> None:
    pool = BudgetPool(token_cap=5)
    reservation = pool.reserve(tokens=5)
    assert caught(BudgetOverrun, reservation.commit, tokens=9)
    assert caught(ReservationClosed, reservation.commit, tokens=9)
    assert counters(pool) == (9, 0, 0, 0, 0)


def test_a_settled_reservation_cannot_be_entered_again() -> None:
    pool = BudgetPool()
    reservation = pool.reserve(tokens=5)
    with reservation:
        pass
    with pytest.raises(ReservationClosed, match="cannot enter"), reservation:
        pytest.fail("the block ran without holding anything")


def test_a_bad_amount_leaves_the_reservation_open() -> None:
    pool = BudgetPool()
    reservation = pool.reserve(tokens=5)
    with pytest.raises(ValueError, match="negative"):
        reservation.commit(tokens=-1)
    assert not reservation.completed
    reservation.commit(tokens=4)
    assert counters(pool) == (4, 0, 0, 0, 0)


@pytest.mark.usefixtures("racing")
def test_of_racing_commits_one_counts() -> None:
    for _ in range(300):
        pool = BudgetPool(token_cap=100)
        reservation = pool.reserve(tokens=10)
        refused = run_together(*[lambda r=reservation: caught(ReservationClosed, r.commit, tokens=7)] * 4)
        assert sorted(refused) == [False, True, True, True]
        assert counters(pool) == (7, 0, 0, 0, 0)


@pytest.mark.usefixtures("racing")
def test_of_a_racing_commit_and_release_one_counts() -> None:
    for _ in range(300):
        pool = BudgetPool(token_cap=100)
        reservation = pool.reserve(tokens=10)

        def commit(reservation: Reservation = reservation) -> bool:
            return not caught(ReservationClosed, reservation.commit)

        committed, *_ = run_together(commit, reservation.release, reservation.release)
        assert counters(pool) == (10 if committed else 0, 0, 0, 0, 0)


@pytest.mark.usefixtures("racing")
def test_a_racing_reset_and_release_never_make_a_counter_negative() -> None:
    for _ in range(300):
        pool = BudgetPool(token_cap=100)
        pool.record(tokens=20)
        first, second = pool.reserve(tokens=10), pool.reserve(tokens=30)
        run_together(pool.reset, first.release, second.commit, pool.reset)
        used, *rest = counters(pool)
        assert used in {0, 30}
        assert rest == [0, 0, 0, 0]
