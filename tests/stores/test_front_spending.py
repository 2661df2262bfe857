"""Spending from a pool of a store: what one process does, and what it is told. The engine is in memory."""

from __future__ import annotations

import asyncio
import copy
import pickle
from functools import partial
from typing import Any

import pytest

import front
from front import LONG, NANOS, numbers, unreachable, until
from memory_store import MemoryBudget, MemoryPool
from support import caught, run_together
from token_budget import (
    BudgetExceeded,
    BudgetOverrun,
    BudgetPool,
    BudgetTimeout,
    PoolClosed,
    ReservationClosed,
    Window,
)
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError
from token_budget.stores._reservation import StoreReservation
from token_budget.stores._store import UNKNOWN, News

opened = front.opened


# ---------------------------------------------------------------- a reservation


def test_a_reservation_holds_until_it_is_committed(opened: Any) -> None:
    pool = opened(token_cap=100, usd_cap=1)
    with pool.reserve(tokens=60, usd=0.5) as reservation:
        assert (reservation.reserved_tokens, reservation.reserved_usd) == (60, 0.5)
        assert reservation.reserved_usd_nanos == NANOS // 2
        assert not reservation.completed
        assert numbers(pool) == (0, 60, 1)
        reservation.commit(tokens=40, usd=0.25)
        assert reservation.completed
    assert numbers(pool) == (40, 0, 0)
    assert pool.snapshot().usd_used == 0.25


def test_leaving_the_block_without_a_commit_gives_back(opened: Any) -> None:
    pool = opened(token_cap=100)
    with pytest.raises(KeyError), pool.reserve(tokens=60):
        raise KeyError
    assert numbers(pool) == (0, 0, 0)


def test_a_commit_without_amounts_counts_what_was_reserved(opened: Any) -> None:
    pool = opened(token_cap=100, usd_cap=1)
    pool.reserve(tokens=60, usd=0.5).commit()
    pool.reserve(tokens=10, usd=0.25).commit(tokens=5)
    shown = pool.snapshot()
    assert (shown.tokens_used, shown.usd_used) == (65, 0.75)


def test_a_reservation_is_settled_once_and_says_how(opened: Any) -> None:
    pool = opened(token_cap=100)
    committed, released = pool.reserve(tokens=10), pool.reserve(tokens=10)
    committed.commit()
    released.release()
    released.release()
    committed.release()
    with pytest.raises(
        ReservationClosed, match="it was committed before; a call that was billed after that is counted"
    ):
        committed.commit()
    with pytest.raises(ReservationClosed, match="cannot enter .* it was released before"):
        released.__enter__()
    assert numbers(pool) == (10, 0, 0)


@pytest.mark.usefixtures("racing")
def test_threads_that_race_settle_a_reservation_once(opened: Any) -> None:
    pool = opened(token_cap=10_000)
    for _ in range(30):
        before = pool.snapshot().tokens_used
        reservation = pool.reserve(tokens=10)
        commits = [partial(caught, ReservationClosed, reservation.commit, tokens=amount) for amount in range(4)]
        *lost, _ = run_together(*commits, reservation.release)
        won = [amount for amount, closed in enumerate(lost) if not closed]
        assert len(won) <= 1  # none where the release came first
        assert numbers(pool) == (before + sum(won), 0, 0)


@pytest.mark.parametrize("call", ["commit", "release", "hand_over"])
def test_who_waits_for_another_thread_that_settles_finds_the_reservation_settled(opened: Any, call: str) -> None:
    pool = opened(token_cap=100)
    reservation = pool.reserve(tokens=10)
    lock = reservation._lock

    class Late:
        """The lock of a reservation, which another thread has held to commit."""

        def __enter__(self) -> None:
            reservation._lock = lock
            reservation.commit(tokens=5)

        def __exit__(self, *_: object) -> None:
            pass

    reservation._lock = Late()
    if call == "release":
        reservation.release()
    else:
        with pytest.raises(ReservationClosed, match="it was committed before"):
            getattr(reservation, call)()
    assert numbers(pool) == (5, 0, 0)


def test_bad_amounts_leave_a_reservation_open(opened: Any) -> None:
    pool = opened(token_cap=100)
    with pool.reserve(tokens=10) as reservation:
        for bad in (-1, 0.5, True, "1"):
            with pytest.raises((TypeError, ValueError)):
                reservation.commit(tokens=bad)
        assert not reservation.completed


def test_a_reservation_is_shown_and_never_copied(opened: Any) -> None:
    pool = opened(token_cap=10_000, name="nightly")
    with pool.reserve(tokens=1_000, usd=0.5) as reservation:
        assert repr(reservation) == "<StoreReservation in 'nightly' tokens 1,000 | usd 0.5 | in flight>"
        with pytest.raises(TypeError, match="hand_over"):
            pickle.dumps(reservation)
        with pytest.raises(TypeError, match="would be settled twice"):
            copy.copy(reservation)
    assert repr(reservation).endswith("| released>")
    assert repr(StoreReservation.__new__(StoreReservation)) == "<StoreReservation, half made>"
    with pytest.raises(TypeError, match="made by reserve"):
        StoreReservation()


def test_a_commit_above_what_was_reserved_is_recorded_and_raises_where_it_passes_a_cap(opened: Any) -> None:
    pool = opened(token_cap=100, name="total")
    child = pool.child(token_cap=50, name="run")
    child.reserve(tokens=10).commit(tokens=40)
    with pytest.raises(BudgetOverrun, match="recorded") as caught:
        child.reserve(tokens=5).commit(tokens=20)
    assert (caught.value.pool, caught.value.attempted, caught.value.used) == ("run", 60, 40)
    assert numbers(pool) == (60, 0, 0)
    child.record(tokens=0)  # an axis of which nothing is asked refuses nothing
    pool.reserve(tokens=10).commit(tokens=10)  # nor is a commit of what was held an overrun


def test_the_engine_is_asked_for_rows_only_where_somebody_listens(opened: Any) -> None:
    pool = opened(token_cap=100)
    seen: list[bool] = []
    store = pool._family.store
    reserve, commit, record = store.reserve, store.commit, store.record

    def watched(step: Any) -> Any:
        def called(*arguments: Any, rows: bool, **options: Any) -> Any:
            seen.append(rows)
            return step(*arguments, rows=rows, **options)

        return called

    store.reserve, store.commit, store.record = watched(reserve), watched(commit), watched(record)
    pool.reserve(tokens=1).commit()
    pool.record(tokens=1)
    assert seen == [False, False, False]
    unsubscribe = pool.subscribe(lambda event: None)
    pool.reserve(tokens=1).commit()
    pool.record(tokens=1)
    assert seen[3:] == [True, True, True]
    unsubscribe()
    pool.record(tokens=1)
    assert seen[6:] == [False]


# ---------------------------------------------------------------- a claim that its store has charged, lost or settled


def test_a_commit_that_comes_late_corrects_the_charge(opened: Any, caplog: Any) -> None:
    pool = opened(token_cap=100)
    reservation = pool.reserve(tokens=60)
    pool.engine.die()
    assert numbers(pool) == (60, 0, 0)
    (charged,) = pool.expired()
    assert charged.id == reservation.id
    reservation.commit(tokens=40)
    assert numbers(pool) == (40, 0, 0)
    assert pool.expired() == []
    assert "the commit of <StoreReservation in 'total' tokens 60 | usd 0 | committed> came late" in caplog.text


def test_a_release_that_comes_late_takes_the_charge_back(opened: Any, caplog: Any) -> None:
    pool = opened(token_cap=100)
    reservation = pool.reserve(tokens=60)
    pool.engine.die()
    reservation.release()
    assert numbers(pool) == (0, 0, 0)
    assert "the release of <StoreReservation in 'total' tokens 60 | usd 0 | released> came late" in caplog.text


def test_a_commit_of_a_claim_that_the_store_has_lost_is_counted_all_the_same(opened: Any, caplog: Any) -> None:
    pool = opened(token_cap=100)
    reservation = pool.reserve(tokens=60)
    lose_claims(pool)
    reservation.commit(tokens=50)
    assert pool.snapshot().tokens_used == 50
    assert "the store had lost <StoreReservation" in caplog.text
    assert "its cost is counted all the same" in caplog.text


def test_an_overrun_of_a_lost_claim_is_measured_by_the_whole_cost(opened: Any) -> None:
    pool = opened(token_cap=100)
    reservation = pool.reserve(tokens=60)
    lose_claims(pool)
    pool.record(tokens=80)
    with pytest.raises(BudgetOverrun):
        reservation.commit(tokens=50)
    assert pool.snapshot().tokens_used == 130


def test_a_release_of_a_claim_that_the_store_has_lost_is_logged(opened: Any, caplog: Any) -> None:
    pool = opened(token_cap=100)
    reservation = pool.reserve(tokens=60)
    lose_claims(pool)
    reservation.release()
    assert reservation.completed
    assert "there was nothing to give back" in caplog.text


def test_what_settle_has_settled_elsewhere_is_closed_here_and_says_what_was_counted(opened: Any) -> None:
    budget = MemoryBudget()
    here, there = opened(budget, token_cap=100), opened(budget, process="two")
    committed, released = here.reserve(tokens=60), here.reserve(tokens=20)
    there.settle(committed.id, tokens=30, usd=0.5)
    there.settle(released.id, tokens=1)
    with pytest.raises(ReservationClosed, match=r"tokens 30 \| usd 0.5 were counted for it by settle\(\)"):
        committed.commit(tokens=40)
    released.release()
    assert committed.completed
    assert repr(released).endswith("settled elsewhere>")
    with pytest.raises(ReservationClosed, match="it was settled elsewhere before"):
        released.commit()
    assert numbers(here) == (31, 0, 0)


def lose_claims(pool: MemoryPool) -> None:
    """Let the store forget all claims, and hold nothing."""
    budget = pool.budget
    budget.held.clear()
    for row in budget.rows.values():
        row.held, row.in_flight = [0, 0], 0


# ---------------------------------------------------------------- expired, settled by id, handed over


def test_expired_reservations_are_told_with_all_facts_oldest_first(opened: Any) -> None:
    now = [1000.0]
    budget = MemoryBudget(clock=lambda: now[0])
    pool = opened(budget, token_cap=100, name="total")
    run, other = pool.child(name="run"), pool.child(name="other")
    first, second = run.reserve(tokens=5, usd=0.25), other.reserve(tokens=6)
    pool.engine.die()
    one, two = pool.expired()
    assert (one.id, one.tokens, one.usd, one.usd_nanos) == (first.id, 5, 0.25, NANOS // 4)
    assert (one.at.timestamp(), one.at.tzinfo is not None, one.pools) == (1000.0, True, ("run", "total"))
    assert one.who.count(":") == 2
    assert " " not in one.id
    assert two.id == second.id
    assert [item.id for item in run.expired()] == [first.id]
    assert [item.id for item in MemoryPool.join(other, run).expired()] == []
    assert [item.id for item in MemoryPool.join(other).expired()] == [second.id]
    first.release()
    second.release()


def test_settle_corrects_what_was_charged_and_a_repeat_counts_once(opened: Any) -> None:
    budget = MemoryBudget()
    dead, pool = opened(budget, token_cap=100), opened(budget, process="two")
    reservation = dead.reserve(tokens=60)
    name = reservation.id
    dead.engine.die()
    pool.settle(name, tokens=45)
    pool.settle(name, tokens=45)
    assert numbers(pool) == (45, 0, 0)
    with pytest.raises(ReservationClosed, match=r"settled before: tokens 45 \| usd 0 were counted for it"):
        pool.settle(name, tokens=46)
    assert pool.expired() == []
    reservation.release()


def test_what_settle_counts_after_a_period_counts_in_the_next(opened: Any) -> None:
    now = [10.0]
    pool = opened(token_cap=100, window=Window.parse("every 1h", clock=lambda: now[0]))
    reservation = pool.reserve(tokens=60)
    now[0] += 3600
    pool.settle(reservation.id, tokens=45)
    assert numbers(pool) == (45, 0, 0)
    reservation.release()


def test_settle_raises_an_overrun_that_is_recorded_and_only_for_what_is_new(opened: Any) -> None:
    pool = opened(token_cap=100, name="total")
    run = pool.child(token_cap=50, name="run")
    first, second = run.reserve(tokens=30), run.reserve(tokens=20)
    with pytest.raises(BudgetOverrun) as error:
        pool.settle(first.id, tokens=45)
    assert (error.value.pool, error.value.attempted) == ("run", 65)
    pool.settle(second.id, tokens=20)  # it costs what it held: no overrun of its own
    first.release()
    second.release()


def test_an_overrun_by_settle_is_told_where_its_pools_are_known(opened: Any) -> None:
    budget = MemoryBudget()
    there, here = opened(budget, token_cap=100, name="total"), opened(budget, process="two", name="total")
    reservation = there.child(name="run").reserve(tokens=60)
    heard: list[Any] = []
    here.subscribe(lambda event: heard.append((event.kind, event.pool, event.tokens)))
    with pytest.raises(BudgetOverrun) as error:
        here.settle(reservation.id, tokens=110)
    assert error.value.pool == "total"
    assert heard == [("commit", "run", 110), ("overrun", "run", 110)]
    reservation.release()


def test_settle_knows_no_reservation_that_never_was(opened: Any) -> None:
    pool = opened(token_cap=100)
    with pytest.raises(LookupError, match="knows no reservation 'nothing'"):
        pool.settle("nothing", tokens=1)
    with pytest.raises(TypeError, match="id must be a str"):
        pool.settle(5)
    with pytest.raises(ValueError, match="negative"):
        pool.settle("nothing", tokens=-1)


def test_what_settle_counts_is_told_to_those_who_listen_here(opened: Any) -> None:
    budget = MemoryBudget()
    there, here = opened(budget, token_cap=100), opened(budget, process="two")
    reservation = there.child(name="run").reserve(tokens=60)
    heard: list[Any] = []
    run = here.child(name="run")
    run.subscribe(lambda event: heard.append((event.kind, event.pool, event.tokens, event.snapshot.tokens_used)))
    here.settle(reservation.id, tokens=10)
    assert heard == [("commit", "run", 10, 10)]
    reservation.release()


def test_a_reservation_that_is_handed_over_outlives_its_process(opened: Any) -> None:
    budget = MemoryBudget()
    web, job = opened(budget, token_cap=100), opened(budget, process="two")
    reservation = web.reserve(tokens=60)
    before = reservation.id
    assert reservation.hand_over(lease=60) is reservation
    assert reservation.completed
    assert reservation.id != before
    web.engine.die()
    assert numbers(job) == (0, 60, 1)
    with pytest.raises(ReservationClosed, match=r"pool\.settle\('0-"):
        reservation.commit()
    with pytest.raises(ReservationClosed, match="cannot hand over"):
        reservation.hand_over()
    with reservation_left_alone(reservation):
        reservation.release()
    job.settle(reservation.id, tokens=31)
    assert numbers(job) == (31, 0, 0)


class reservation_left_alone:  # noqa: N801 - reads as what it says
    """A block that changes nothing of a reservation that was handed over."""

    def __init__(self, reservation: Any) -> None:
        self.before, self.reservation = repr(reservation), reservation

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        assert repr(self.reservation) == self.before


def test_leaving_the_block_of_a_reservation_that_was_handed_over_keeps_it(opened: Any) -> None:
    pool = opened(token_cap=100)
    with pool.reserve(tokens=60) as reservation:
        reservation.hand_over()
    assert numbers(pool) == (0, 60, 1)
    pool.settle(reservation.id, tokens=60)


@pytest.mark.parametrize("call", ["commit", "release", "hand_over"])
def test_what_the_store_did_on_the_way_of_a_settlement_is_told_after_it(opened: Any, call: str) -> None:
    pool = opened(token_cap=100)
    heard: list[Any] = []
    reservation = pool.reserve(tokens=60)

    def hook(step: str, moment: str) -> None:
        if (step, moment) == (call, "after"):
            pool.engine.news.append(News("expired", "total", ("total",), 5, 6))

    pool.engine.hook = hook
    pool.subscribe(lambda event: heard.append((event.kind, event.tokens, event.usd_nanos, reservation.completed)))
    getattr(reservation, call)()
    assert heard[0] == ("expired", 5, 6, True)
    if call == "hand_over":
        pool.settle(reservation.id, tokens=1)


@pytest.mark.parametrize("lease", [0, -1, float("nan"), float("inf"), True, "60", None, 10**9])
def test_a_lease_is_a_number_of_seconds(opened: Any, lease: Any) -> None:
    pool = opened(token_cap=100)
    with pool.reserve(tokens=60) as reservation:
        with pytest.raises((TypeError, ValueError), match="lease"):
            reservation.hand_over(lease=lease)
        assert not reservation.completed


def test_a_claim_that_was_charged_cannot_be_handed_over(opened: Any) -> None:
    pool = opened(token_cap=100)
    reservation = pool.reserve(tokens=60)
    pool.engine.die()
    with pytest.raises(ReservationClosed, match="charged it in full"):
        reservation.hand_over()
    reservation.commit(tokens=1)  # it is still open here
    assert numbers(pool) == (1, 0, 0)


def test_a_claim_whose_commit_got_no_answer_cannot_be_handed_over(opened: Any) -> None:
    pool = opened(token_cap=100)
    reservation = pool.reserve(tokens=60)
    with unreachable(pool, moment="after"), pytest.raises(BudgetUnavailable):
        reservation.commit(tokens=50)
    with pytest.raises(ReservationClosed, match="a commit of it got no answer, so repeat that"):
        reservation.hand_over()
    reservation.commit(tokens=50)
    assert numbers(pool) == (50, 0, 0)


# ---------------------------------------------------------------- stores that do not answer


def test_a_reserve_that_the_store_does_not_answer_holds_nothing(opened: Any) -> None:
    pool = opened(token_cap=100)
    with unreachable(pool), pytest.raises(BudgetUnavailable):
        pool.reserve(tokens=60)
    assert numbers(pool) == (0, 0, 0)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_commit_without_an_answer_may_be_repeated_and_counts_once(opened: Any, moment: str) -> None:
    pool = opened(token_cap=100)
    reservation = pool.reserve(tokens=60)
    for _ in range(3):
        with unreachable(pool, moment=moment), pytest.raises(BudgetUnavailable):
            reservation.commit(tokens=50)
        assert not reservation.completed
    reservation.commit(tokens=50)
    assert reservation.completed
    assert numbers(pool) == (50, 0, 0)


def test_a_commit_of_other_amounts_than_those_that_were_counted_says_what_was_counted(opened: Any) -> None:
    pool = opened(token_cap=100)
    reservation = pool.reserve(tokens=60)
    with unreachable(pool, moment="after"), pytest.raises(BudgetUnavailable):
        reservation.commit(tokens=50)
    with pytest.raises(ReservationClosed, match=r"tokens 50 \| usd 0 were counted for it by an earlier commit"):
        reservation.commit(tokens=51)
    assert reservation.completed
    assert numbers(pool) == (50, 0, 0)


def test_an_overrun_is_raised_by_the_commit_that_gets_an_answer(opened: Any) -> None:
    pool = opened(token_cap=100)
    reservation = pool.reserve(tokens=60)
    with unreachable(pool, moment="after"), pytest.raises(BudgetUnavailable):
        reservation.commit(tokens=150)
    with pytest.raises(BudgetOverrun):
        reservation.commit(tokens=150)
    assert numbers(pool) == (150, 0, 0)


def test_a_release_without_an_answer_may_be_repeated(opened: Any) -> None:
    pool = opened(token_cap=100)
    reservation = pool.reserve(tokens=60)
    with unreachable(pool), pytest.raises(BudgetUnavailable):
        reservation.release()
    assert not reservation.completed
    reservation.release()
    assert numbers(pool) == (0, 0, 0)


def test_a_release_after_a_commit_that_was_done_without_an_answer_gives_nothing_back(opened: Any) -> None:
    pool = opened(token_cap=100)
    reservation = pool.reserve(tokens=60)
    with unreachable(pool, moment="after"), pytest.raises(BudgetUnavailable):
        reservation.commit(tokens=50)
    reservation.release()
    assert reservation.completed
    assert numbers(pool) == (50, 0, 0)


def test_what_a_store_cannot_count_is_refused_and_the_reservation_stays_open(opened: Any) -> None:
    pool = opened()
    for _ in range(7):
        pool.record(tokens=10**18)
    with pool.reserve(tokens=10**18) as reservation:
        for _ in range(2):
            with pytest.raises(StoreError):
                pool.record(tokens=10**18, force=True)
        pool.record(tokens=0)
    assert reservation.completed  # a commit that was never tried: leaving the block gives back
    assert pool.snapshot().tokens_used == 7 * 10**18


def test_a_commit_that_the_store_cannot_count_leaves_the_reservation_as_it_was(opened: Any) -> None:
    pool = opened()
    for _ in range(7):
        pool.record(tokens=10**18)
    with pool.reserve(tokens=1) as reservation:
        pool.record(tokens=10**18 - 1)
        with pytest.raises(StoreError):
            reservation.commit(tokens=10**18)
        with pytest.raises(StoreError):
            asyncio.run(reservation.acommit(tokens=10**18))
        assert not reservation.completed
    assert numbers(pool) == (8 * 10**18 - 1, 0, 0)


def test_a_record_that_the_store_does_not_answer_counts_nothing(opened: Any) -> None:
    pool = opened(token_cap=100)
    for force in (False, True):
        with unreachable(pool), pytest.raises(BudgetUnavailable):
            pool.record(tokens=60, force=force)
    assert numbers(pool) == (0, 0, 0)


# ---------------------------------------------------------------- refusals


def test_a_refusal_has_the_numbers_of_the_moment_and_changes_nothing(opened: Any) -> None:
    budget = MemoryBudget()
    here, there = opened(budget, token_cap=100, usd_cap=1), opened(budget, process="two")
    there.record(tokens=30)
    held = there.reserve(tokens=50)
    with pytest.raises(BudgetExceeded) as error:
        here.reserve(tokens=40, usd=0.5)
    seen = error.value
    assert (seen.axis, seen.pool, seen.requested, seen.used, seen.reserved, seen.cap) == (
        "tokens",
        "total",
        40,
        30,
        50,
        100,
    )
    assert (seen.exhausted, seen.retry_after) == (False, 0.0)
    assert pickle.loads(pickle.dumps(seen)).attempted == 120
    with pytest.raises(BudgetExceeded) as error:
        here.record(tokens=80)
    assert error.value.exhausted
    held.release()
    assert numbers(here) == (30, 0, 0)


def test_a_newcomer_is_refused_where_somebody_waits_though_it_would_fit(opened: Any) -> None:
    budget = MemoryBudget()
    here, there = opened(budget, token_cap=100), opened(budget, process="two")
    held, store, key = here.reserve(tokens=60), there.engine, there.engine.new_key()
    chain = there._chain
    store.reserve(chain, key, 50, 0, wait=True)
    with pytest.raises(BudgetExceeded, match="others wait for room, and they come first") as error:
        here.reserve(tokens=10)
    assert not error.value.exhausted
    store.cancel(chain, key, (50, 0))
    here.reserve(tokens=10).release()
    held.release()


def test_an_error_of_a_pool_in_a_store_is_that_of_the_core(opened: Any) -> None:
    core, pool = BudgetPool(10, 1, name="total"), opened(token_cap=10, usd_cap=1)
    for made in (core, pool):
        made.record(tokens=5)
    texts = []
    for made in (core, pool):
        with pytest.raises(BudgetExceeded) as error:
            made.reserve(tokens=6, usd=2)
        texts.append(str(error.value))
    assert texts[0] == texts[1]


def test_who_waits_in_a_join_and_gets_nothing_leaves_nothing(opened: Any) -> None:
    pool = opened(token_cap=100)
    joined = MemoryPool.join(pool.child(name="ann"), pool.child(name="atlas"))
    held = pool.reserve(tokens=60)
    with pytest.raises(BudgetTimeout):
        joined.reserve(tokens=60, timeout=0.01)
    assert (numbers(joined), numbers(pool)) == ((0, 0, 0), (0, 60, 1))
    assert pool.budget.tickets == {}
    held.release()


def test_who_waits_gets_the_room_that_another_process_gives_back(opened: Any) -> None:
    budget = MemoryBudget()
    here, there = opened(budget, token_cap=100), opened(budget, process="two")
    held = there.reserve(tokens=60)

    def release() -> None:
        until(lambda: bool(budget.tickets))
        held.release()

    reservation, _ = run_together(lambda: here.reserve(tokens=60, timeout=LONG), release)
    assert numbers(there) == (0, 60, 1)
    reservation.commit()


def test_bad_arguments_ask_no_store(opened: Any) -> None:
    pool = opened(token_cap=100)
    before = len(pool.engine.steps)
    bad: list[dict[str, Any]] = [{"tokens": -1}, {"tokens": 0.5}, {"usd": "1"}, {"usd": float("nan")}, {"tokens": True}]
    for amounts in bad:
        for method in (pool.record, pool.reserve, pool.try_reserve, pool.areserve):
            with pytest.raises((TypeError, ValueError)):
                method(**amounts)
    for timeout in (-1, float("nan"), "1", True):
        with pytest.raises((TypeError, ValueError), match="timeout"):
            pool.reserve(tokens=1, timeout=timeout)
    assert len(pool.engine.steps) == before


def test_a_closed_scope_of_another_process_refuses_here(opened: Any) -> None:
    budget = MemoryBudget()
    here, there = opened(budget, token_cap=100), opened(budget, process="two")
    mine, theirs = here.child(name="run"), there.child(name="run")
    held = mine.reserve(tokens=10)
    theirs.close()
    assert not mine.closed  # as this process last saw it
    heard: list[str] = []
    here.subscribe(lambda event: heard.append(event.kind))
    for method in (mine.record, mine.reserve):
        with pytest.raises(PoolClosed, match="'run'"):
            method(tokens=1)
    assert mine.closed
    assert heard == ["refusal", "refusal"]
    mine.record(tokens=1, force=True)  # it has happened
    held.commit(tokens=5)
    assert numbers(here) == (6, 0, 0)


def test_unknown_is_an_answer_of_settle_alone(opened: Any) -> None:
    pool = opened(token_cap=100)
    answer, paths = pool.engine.settle("nothing", 1, 1)
    assert (answer.kind, paths) == (UNKNOWN, ())
