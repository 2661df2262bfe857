"""P2, P3 and P4 on every kind of pool: what fits is counted once, in every scope, and what does not changes none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import pools_of_all_kinds as all_kinds
from pools_of_all_kinds import IN_EVERY_WAY, NANOS, OF_TASKS, SHAPES, Do, Kind, counters, shaped
from token_budget import BudgetExceeded, BudgetOverrun, PoolClosed, ReservationClosed

kind, do = all_kinds.kind, all_kinds.do


# ---------------------------------------------------------------- record


@IN_EVERY_WAY
def test_a_record_adds_to_what_is_used(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=100, usd_cap=1)
    do.record(pool, tokens=10, usd=0.25)
    do.record(pool, tokens=90)
    do.record(pool, usd=0.75)
    do.record(pool)
    assert counters(pool) == (100, 0, NANOS, 0, 0)


@pytest.mark.parametrize("amounts", [{"tokens": 91}, {"usd": 0.8}, {"tokens": 91, "usd": 0.1}, {"tokens": 1, "usd": 5}])
def test_a_record_that_does_not_fit_on_one_axis_changes_neither(kind: Kind, do: Do, amounts: dict[str, Any]) -> None:
    pool = kind.pool(token_cap=100, usd_cap=1)
    do.record(pool, tokens=10, usd=0.25)
    with pytest.raises(BudgetExceeded):
        do.record(pool, **amounts)
    assert counters(pool) == (10, 0, NANOS // 4, 0, 0)


@IN_EVERY_WAY
def test_a_forced_record_is_counted_and_then_an_overrun_is_raised(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=100, usd_cap=1)
    do.record(pool, tokens=10, force=True)
    with pytest.raises(BudgetOverrun) as raised:
        do.record(pool, tokens=100, usd=0.5, force=True)
    error = raised.value
    assert (error.pool, error.axis, error.used, error.requested, error.attempted) == (pool.name, "tokens", 10, 100, 110)
    assert error.cap == 100
    assert counters(pool) == (110, 0, NANOS // 2, 0, 0)
    snapshot = do.snapshot(pool)
    assert (snapshot.tokens_remaining, snapshot.usd_remaining) == (-10, 0.5)


def test_an_axis_of_which_nothing_is_asked_refuses_nothing(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10, usd_cap=1)
    with pytest.raises(BudgetOverrun):
        do.record(pool, tokens=11, force=True)
    do.record(pool, usd=0.25)
    do.record(pool, usd=0.25, force=True)
    with do.block(pool, usd=0.25) as reservation:
        do.commit(reservation, usd=0.5)
    assert counters(pool) == (11, 0, NANOS, 0, 0)


# ---------------------------------------------------------------- reserve, and each way to settle


@IN_EVERY_WAY
def test_a_reservation_holds_what_was_asked_for_until_it_is_released(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=100, usd_cap=1)
    do.record(pool, tokens=10)
    reservation = do.reserve(pool, tokens=60, usd=0.75)
    assert counters(pool) == (10, 60, 0, NANOS * 3 // 4, 1)
    assert (reservation.reserved_tokens, reservation.reserved_usd) == (60, 0.75)
    assert reservation.reserved_usd_nanos == NANOS * 3 // 4
    assert not reservation.completed
    with pytest.raises(BudgetExceeded):
        do.record(pool, tokens=31)
    with pytest.raises(BudgetExceeded):
        do.reserve(pool, usd=0.26)
    assert counters(pool) == (10, 60, 0, NANOS * 3 // 4, 1)
    do.release(reservation)
    assert reservation.completed
    assert counters(pool) == (10, 0, 0, 0, 0)


def test_try_reserve_holds_or_refuses(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10)
    reservation = pool.try_reserve(tokens=10)
    with pytest.raises(BudgetExceeded):
        pool.try_reserve(tokens=1)
    do.commit(reservation, tokens=3)
    pool.try_reserve(tokens=7).release()
    assert counters(pool) == (3, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("cost", "used"),
    [
        ({}, (60, 500_000_000)),
        ({"tokens": 20, "usd": 0.1}, (20, 100_000_000)),
        ({"tokens": 60, "usd": 0.5}, (60, 500_000_000)),
        ({"tokens": 80, "usd": 0.75}, (80, 750_000_000)),
        ({"tokens": 0, "usd": 0}, (0, 0)),
        ({"tokens": 7}, (7, 500_000_000)),
        ({"usd": 0.000000001}, (60, 1)),
    ],
    ids=["no amounts", "less", "exactly", "more, and it fits", "nothing", "tokens alone", "one nanodollar"],
)
def test_a_commit_counts_what_it_cost(kind: Kind, do: Do, cost: dict[str, Any], used: tuple[int, int]) -> None:
    pool = kind.pool(token_cap=100, usd_cap=1)
    do.commit(do.reserve(pool, tokens=60, usd=0.5), **cost)
    assert counters(pool) == (used[0], 0, used[1], 0, 0)


@IN_EVERY_WAY
@pytest.mark.parametrize("axis", ["tokens", "usd"])
def test_a_commit_above_the_cap_is_counted_and_then_an_overrun_is_raised(kind: Kind, do: Do, axis: str) -> None:
    pool = kind.pool(token_cap=100, usd_cap=100)
    do.record(pool, tokens=30, usd=30)
    other = do.reserve(pool, tokens=10, usd=10)
    reservation = do.reserve(pool, tokens=20, usd=20)
    with pytest.raises(BudgetOverrun) as raised:
        do.commit(reservation, **{axis: 200})
    error = raised.value
    assert (error.pool, error.axis, error.cap, error.requested) == (pool.name, axis, 100, 200)
    assert (error.used, error.reserved, error.attempted) == (30, 10, 240)
    assert reservation.completed
    tokens, dollars = (230, 50) if axis == "tokens" else (50, 230)
    assert counters(pool) == (tokens, 10, dollars * NANOS, 10 * NANOS, 1)
    do.release(other)


def test_a_commit_of_less_than_was_reserved_raises_no_overrun_though_the_cap_is_passed(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=100)
    reservation = do.reserve(pool, tokens=60)
    with pytest.raises(BudgetOverrun):
        do.record(pool, tokens=200, force=True)
    do.commit(reservation, tokens=60)
    assert counters(pool) == (260, 0, 0, 0, 0)


@IN_EVERY_WAY
def test_leaving_the_block_gives_back_what_was_not_committed(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10)
    with do.block(pool, tokens=10, usd=1) as reservation:
        assert counters(pool) == (0, 10, 0, NANOS, 1)
    assert reservation.completed
    assert counters(pool) == (0, 0, 0, 0, 0)
    with do.block(pool, tokens=10) as reservation:
        do.commit(reservation, tokens=4)
    assert counters(pool) == (4, 0, 0, 0, 0)


def test_a_reservation_that_is_held_already_can_be_entered(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10)
    reservation = do.reserve(pool, tokens=10)
    with do.entered(reservation) as entered:
        assert entered is reservation
        assert counters(pool)[1] == 10
    assert counters(pool) == (0, 0, 0, 0, 0)
    with pytest.raises(ReservationClosed), do.entered(reservation):
        pytest.fail("it was entered")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_an_error_in_the_block_gives_back_and_passes_on(kind: Kind, do: Do, error: type[BaseException]) -> None:
    pool = kind.pool(token_cap=10)
    with pytest.raises(error), do.block(pool, tokens=10):
        raise error
    assert counters(pool) == (0, 0, 0, 0, 0)


@OF_TASKS
def test_a_task_that_is_cancelled_in_its_block_gives_back(kind: Kind, do: Do) -> None:
    pool, entered = kind.pool(token_cap=10), []

    class Task:
        async def areserve(self, timeout: float) -> None:
            async with pool.areserve(tokens=10, timeout=timeout):
                entered.append(counters(pool))
                await self.forever()

        async def forever(self) -> None:
            if do.name == "asyncio":
                await asyncio.Event().wait()
            else:
                trio: Any = pytest.importorskip("trio")
                await trio.sleep_forever()

    call = do.begin(Task(), "reserve", timeout=0)
    all_kinds.until(lambda: bool(entered))
    call.cancel()
    assert isinstance(call.error(), asyncio.CancelledError)
    assert entered == [(0, 10, 0, 0, 1)]
    assert counters(pool) == (0, 0, 0, 0, 0)


# ---------------------------------------------------------------- settled once


@IN_EVERY_WAY
def test_a_reservation_is_settled_once(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=100)
    committed, released = do.reserve(pool, tokens=10), do.reserve(pool, tokens=20)
    do.commit(committed, tokens=5)
    do.release(released)
    for reservation, state in ((committed, "committed"), (released, "released")):
        with pytest.raises(ReservationClosed, match=f"it was {state} before"):
            do.commit(reservation, tokens=50)
        do.release(reservation)
        assert reservation.completed
    assert counters(pool) == (5, 0, 0, 0, 0)


@pytest.mark.usefixtures("racing")
def test_a_reservation_that_many_settle_at_one_moment_is_settled_once(kind: Kind, do: Do) -> None:
    pool, used = kind.pool(token_cap=100), 0
    for _ in range(5):
        reservation = do.reserve(pool, tokens=10)
        calls: list[Any] = [(reservation, "commit", {"tokens": tokens}) for tokens in (1, 2, 3, 4)]
        calls += [(reservation, "release", {})] * 2
        answers = do.together(*calls)
        counted = [tokens for tokens, answer in zip((1, 2, 3, 4), answers, strict=False) if answer is None]
        assert len(counted) <= 1
        assert all(isinstance(answer, ReservationClosed) for answer in answers[:4] if answer is not None)
        assert answers[4:] == [None, None]
        used += sum(counted)
        assert counters(pool) == (used, 0, 0, 0, 0)


def test_a_commit_with_bad_amounts_leaves_the_reservation_open(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10)
    reservation = do.reserve(pool, tokens=10)
    with pytest.raises(ValueError, match="tokens must not be negative"):
        do.commit(reservation, tokens=-1)
    assert not reservation.completed
    do.commit(reservation)
    assert counters(pool) == (10, 0, 0, 0, 0)


def test_a_reservation_shows_what_it_is_and_is_not_copied(kind: Kind, do: Do) -> None:
    import copy
    import pickle

    pool = kind.pool(token_cap=10_000)
    reservation = do.reserve(pool, tokens=1234, usd=0.5)
    assert pool.name
    for part in (pool.name, "1,234", "0.5", "in flight"):
        assert part in repr(reservation)
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        for thing in (pool, reservation):
            with pytest.raises(TypeError, match="cannot be copied or pickled"):
                duplicate(thing)
    do.commit(reservation)
    assert "committed" in repr(reservation)


# ---------------------------------------------------------------- several scopes, all or nothing


@pytest.mark.parametrize("shape", SHAPES)
def test_a_spend_counts_in_every_scope_of_the_chain(kind: Kind, do: Do, shape: str) -> None:
    asked, pool = shaped(kind, shape, token_cap=100, usd_cap=10)
    do.record(asked, tokens=10, usd=1)
    with do.block(asked, tokens=20, usd=2) as reservation:
        assert counters(asked) == counters(pool) == (10, 20, NANOS, 2 * NANOS, 1)
        do.commit(reservation, tokens=5, usd=0.5)
    assert counters(asked) == counters(pool) == (15, 0, NANOS * 3 // 2, 0, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_does_not_fit_in_one_scope_changes_none(kind: Kind, do: Do, shape: str) -> None:
    asked, pool = shaped(kind, shape, token_cap=100, usd_cap=10)
    held = do.reserve(asked, tokens=50, usd=5)
    for amounts in ({"tokens": 51}, {"usd": 5.1}, {"tokens": 51, "usd": 1}, {"tokens": 1, "usd": 5.1}):
        for way in all_kinds.WAYS[:2]:
            with pytest.raises(BudgetExceeded) as refused:
                all_kinds.spend(do, way, asked, **amounts)
            assert refused.value.pool == pool.name
            assert not refused.value.exhausted
    assert counters(asked) == counters(pool) == (0, 50, 0, 5 * NANOS, 1)
    do.release(held)
    assert counters(asked) == counters(pool) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("full", ["total", "project", "user"])
def test_a_refusal_names_the_scope_that_has_no_room_wherever_it_is(kind: Kind, do: Do, full: str) -> None:
    total = kind.pool(token_cap=1000, name="total")
    project = total.child(token_cap=500, name="project")
    user = project.child(token_cap=100, name="user")
    pools = {"total": total, "project": project, "user": user}
    do.record(pools[full], tokens={"total": 960, "project": 460, "user": 60}[full])
    before = [counters(pool) for pool in (total, project, user)]
    for method in ("record", "reserve"):
        with pytest.raises(BudgetExceeded) as refused:
            do.call(user, method, tokens=41)
        assert (refused.value.pool, refused.value.axis) == (pools[full].name, "tokens")
        assert refused.value.attempted == refused.value.cap + 1
    assert [counters(pool) for pool in (total, project, user)] == before
    do.record(user, tokens=40)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_overrun_counts_everywhere_and_names_the_first_scope_that_it_passes(kind: Kind, do: Do, shape: str) -> None:
    asked, pool = shaped(kind, shape, token_cap=100)
    reservation = do.reserve(asked, tokens=50)
    with pytest.raises(BudgetOverrun) as raised:
        do.commit(reservation, tokens=120)
    assert (raised.value.pool, raised.value.attempted, raised.value.cap) == (pool.name, 120, 100)
    with pytest.raises(BudgetOverrun) as raised:
        do.record(asked, tokens=1, force=True)
    assert (raised.value.pool, raised.value.attempted, raised.value.used) == (pool.name, 121, 120)
    assert counters(asked) == counters(pool) == (121, 0, 0, 0, 0)


def test_an_overrun_of_a_commit_below_a_closed_scope_is_counted_too(kind: Kind, do: Do) -> None:
    total = kind.pool(token_cap=100)
    run = total.child(token_cap=10, name="run")
    held = do.reserve(run, tokens=10)
    run.close()
    with pytest.raises(PoolClosed):
        do.record(run, tokens=1)
    with pytest.raises(BudgetOverrun) as raised:
        do.commit(held, tokens=15)
    assert (raised.value.pool, raised.value.attempted) == ("run", 15)
    assert counters(total) == (15, 0, 0, 0, 0)
