"""A window that is set, changed or removed while the pool runs: the periods change, and usage is kept."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from shapes import SHAPES, WAYS, Clock
from support import caught, counters
from token_budget import BudgetExceeded, BudgetPool, PoolClosed, Window

DAY = 86_400
NOW = 20_000.0 * DAY + DAY / 4


def hourly(clock: Clock) -> Window:
    return Window.every(timedelta(hours=1), clock=clock)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_window_set_on_a_running_pool_keeps_the_usage_until_its_period_ends(shape: str, way: str) -> None:
    clock = Clock(NOW + 60)
    asked, pool = SHAPES[shape](token_cap=10)
    WAYS[way](asked, tokens=4)
    pool.set_caps(window=hourly(clock))
    snapshot = pool.snapshot()
    assert (snapshot.tokens_used, snapshot.token_cap) == (4, 10)
    assert snapshot.resets_at == datetime.fromtimestamp(NOW + 3600, timezone.utc)
    WAYS[way](asked, tokens=6)
    assert caught(BudgetExceeded, WAYS[way], pool=asked, tokens=1)
    clock.now = NOW + 3600
    WAYS[way](asked, tokens=10)  # the straight runs of the pools below notice it too
    assert caught(BudgetExceeded, WAYS[way], pool=asked, tokens=1)
    clock.now += 3600
    WAYS[way](asked, tokens=10)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_second_window_replaces_the_first(shape: str, way: str) -> None:
    clock, other = Clock(NOW), Clock(NOW)
    asked, pool = SHAPES[shape](token_cap=10, window=hourly(clock))
    WAYS[way](asked, tokens=4)
    pool.set_caps(window=Window.daily(clock=other))
    clock.now += 7200  # the replaced clock no longer matters
    assert caught(BudgetExceeded, WAYS[way], pool=asked, tokens=7)
    other.now += DAY
    WAYS[way](asked, tokens=10)
    assert pool.snapshot().resets_at == datetime.fromtimestamp(20_002 * DAY, timezone.utc)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_none_removes_the_window(shape: str, way: str) -> None:
    clock = Clock(NOW)
    asked, pool = SHAPES[shape](token_cap=10, window=hourly(clock))
    WAYS[way](asked, tokens=4)
    pool.set_caps(window=None)
    clock.now += 3600
    assert caught(BudgetExceeded, WAYS[way], pool=asked, tokens=7)
    WAYS[way](asked, tokens=6)
    assert pool.snapshot().resets_at is None
    pool.set_caps(window=hourly(clock))
    assert pool.snapshot().tokens_used == 10
    clock.now += 3600
    WAYS[way](asked, tokens=10)


@pytest.mark.parametrize("shape", SHAPES)
def test_caps_and_window_change_together_or_not_at_all(shape: str) -> None:
    clock = Clock(NOW)
    _asked, pool = SHAPES[shape](token_cap=10)
    pool.set_caps(token_cap=20, usd_cap=1, window=hourly(clock))
    assert (pool.snapshot().token_cap, pool.snapshot().usd_cap) == (20, 1)
    bad: list[dict[str, Any]] = [
        {"token_cap": 5, "window": "daily"},
        {"token_cap": -1, "window": None},
        {"usd_cap": float("nan"), "window": None},
    ]
    for arguments in bad:
        with pytest.raises((TypeError, ValueError)):
            pool.set_caps(**arguments)
    assert pool.snapshot().token_cap == 20
    assert pool.snapshot().resets_at is not None
    pool.close()
    assert caught(PoolClosed, pool.set_caps, window=None)
    assert pool.snapshot().resets_at is not None


def test_a_period_that_is_over_ends_before_the_window_is_changed() -> None:
    clock = Clock(NOW)
    pool = BudgetPool(token_cap=10, window=hourly(clock))
    pool.record(tokens=10)
    clock.now += 3600
    pool.set_caps(window=Window.daily(clock=clock))
    assert pool.snapshot().tokens_used == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_calls_in_flight_keep_what_they_hold_and_count_in_the_period_of_their_commit(shape: str) -> None:
    clock = Clock(NOW)
    asked, pool = SHAPES[shape](token_cap=10)
    first, second = asked.reserve(tokens=4), asked.reserve(tokens=3)
    pool.set_caps(window=hourly(clock))
    first.commit()
    assert counters(pool) == (4, 3, 0, 0, 1)
    clock.now += 3600
    second.commit()
    assert counters(pool) == (3, 0, 0, 0, 0)


def _parent(total: BudgetPool) -> list[BudgetPool]:
    user, project = total.child(name="user"), total.child(name="project")
    users = total.keyed(name="users")
    return [
        total,
        user,
        user.child(),
        user.child().child().child().child().child(),
        users["held"],
        users["held"].child(),
        BudgetPool.join(user, project),
        BudgetPool.join(users["held"], project),
    ]


@pytest.mark.parametrize("before", [None, "every 1h", "weekly"])
def test_a_window_of_a_parent_reaches_every_pool_below_it(before: str | None) -> None:
    clock = Clock(NOW)
    total = BudgetPool(token_cap=100, window=None if before is None else Window.parse(before))
    pools = _parent(total)
    users = total.keyed()
    users["forgotten handle"].record(tokens=1)
    gc.collect()
    total.set_caps(window=hourly(clock))
    pools += [users["forgotten handle"], users["new"], total.child()]
    for pool in pools:
        total.record(tokens=total.snapshot().tokens_remaining or 0)
        assert caught(BudgetExceeded, pool.record, tokens=1)
        clock.now += 3600
        pool.record(tokens=50)
        pool.reserve(tokens=50).commit()
        assert caught(BudgetExceeded, pool.reserve, tokens=1)
    total.set_caps(window=None)
    clock.now += 3600
    for pool in pools:
        assert caught(BudgetExceeded, pool.record, tokens=1)


def test_a_window_of_a_child_reaches_the_joins_and_children_below_it_and_no_other_pool() -> None:
    clock = Clock(NOW)
    total = BudgetPool(token_cap=1000)
    user, project = total.child(token_cap=10, name="user"), total.child(token_cap=10, name="project")
    run, join = user.child(), BudgetPool.join(user, project)
    user.set_caps(window=hourly(clock))
    for pool in (user, run, join):
        user.record(tokens=user.snapshot().tokens_remaining or 0)
        clock.now += 3600
        pool.record(tokens=5)
    project.record(tokens=5)
    clock.now += 3600
    assert caught(BudgetExceeded, project.record, tokens=1)
    assert project.snapshot().resets_at is None


def test_a_keys_own_window_and_the_groups_window_are_independent() -> None:
    """A window that is set on a key's pool belongs to that key. A change of the group's window leaves it alone."""
    clock = Clock(NOW)
    users = BudgetPool().keyed(token_cap=10, window=Window.daily(clock=clock))
    ann, ben = users["ann"], users["ben"]
    ann.set_caps(window=hourly(clock))
    for pool in (ann, ben):
        pool.record(tokens=10)
    clock.now += 3600
    ann.record(tokens=10)
    assert caught(BudgetExceeded, ben.record, tokens=1)
    users.set_caps(window=None)
    clock.now += 3600
    ann.record(tokens=10)
    clock.now += DAY
    assert caught(BudgetExceeded, ben.record, tokens=1)
    assert caught(BudgetExceeded, users["ben"].record, tokens=1)


# ---------------------------------------------------------------- the async twins


@pytest.mark.parametrize("shape", SHAPES)
def test_the_async_twins_do_the_same_as_the_sync_methods_and_never_suspend(shape: str) -> None:
    asked, pool = SHAPES[shape](token_cap=10, usd_cap=1)

    def at_once(make: Callable[[], Any]) -> Any:
        with pytest.raises(StopIteration) as ended:
            make().send(None)
        return ended.value.value

    at_once(lambda: asked.arecord(tokens=4, usd=0.5))
    assert at_once(asked.asnapshot) == asked.snapshot()
    assert at_once(lambda: pool.asnapshot(tree=True)) == pool.snapshot(tree=True)
    reservation = asked.reserve(tokens=4)
    at_once(lambda: reservation.acommit(tokens=2, usd=0.25))
    assert counters(pool) == (6, 0, 750_000_000, 0, 0)
    reservation = asked.reserve(tokens=4)
    at_once(reservation.arelease)
    assert reservation.completed

    async def main() -> None:
        with pytest.raises(BudgetExceeded):
            await asked.arecord(tokens=5)
        with pytest.raises(BudgetExceeded):
            await asked.arecord(tokens=5, force=True)
        async with asked.areserve() as held:
            await held.acommit()

    asyncio.run(main())
    assert counters(pool) == (11, 0, 750_000_000, 0, 0)
