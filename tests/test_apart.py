"""A waiter for one scope never slows operations that do not need that scope: they still take the straight runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from shapes import Clock, waiting
from support import caught
from token_budget import BudgetExceeded, BudgetPool, Window, _family

OPERATIONS: dict[str, Callable[[BudgetPool], object]] = {
    "record": lambda pool: pool.record(tokens=1, usd=0.001),
    "reserve and commit": lambda pool: pool.reserve(tokens=1).commit(),
    "reserve and commit less": lambda pool: pool.reserve(tokens=5).commit(tokens=1),
    "reserve and release": lambda pool: pool.reserve(tokens=1).release(),
    "block": lambda pool: pool.reserve(tokens=1).__enter__().__exit__(None, None, None),
    "waiting reserve": lambda pool: pool.reserve(tokens=1, timeout=60).release(),
    "areserve": lambda pool: asyncio.run(_block(pool)),
}


async def _block(pool: BudgetPool) -> None:
    async with pool.areserve(tokens=1) as reservation:
        await reservation.acommit()


@contextmanager
def long_ways() -> Iterator[list[Any]]:
    """Record every operation that takes the long way instead of a straight run."""
    taken: list[Any] = []
    run = _family.Family.run

    def noted(family: _family.Family, takes: Any, pays: Any, work: Any, *arguments: Any) -> Any:
        taken.append(arguments)
        return run(family, takes, pays, work, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_family.Family, "run", noted)
        yield taken


def _no_window(_clock: Clock) -> Window | None:
    return None


def _daily(clock: Clock) -> Window | None:
    return Window.every(timedelta(days=1), clock=clock)


Family = tuple[BudgetPool, BudgetPool, dict[str, BudgetPool]]


def family(window: Callable[[Clock], Window | None]) -> Family:
    """Return the pool of a user that gets waiters, a pool below it, and pools that do not need that user."""
    clock = Clock()
    total = BudgetPool(token_cap=10**6, usd_cap=1000, name="total", window=window(clock))
    users = total.keyed(token_cap=1000, usd_cap=10, name="users")
    projects = total.keyed(token_cap=10_000)
    ann, ben, atlas = users["ann"], users["ben"], projects["atlas"]
    others = {
        "another key": ben,
        "the shared parent": total,
        "below another key": ben.child(),
        "a join of another key and a project": BudgetPool.join(ben, atlas),
        "below such a join": BudgetPool.join(ben, atlas).child(),
        "a child of the parent": total.child(token_cap=1000),
    }
    return ann, ann.child(), others


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("window", [_no_window, _daily])
def test_a_waiter_for_one_users_budget_sends_no_operation_of_others_the_long_way(
    operation: str, window: Callable[[Clock], Window | None]
) -> None:
    ann, run, others = family(window)
    held = ann.reserve(tokens=1000)
    waiters = [waiting(pool, tokens=10, nanos=1000) for pool in (ann, run)]
    for name, pool in others.items():
        with long_ways() as taken:
            OPERATIONS[operation](pool)
        assert taken == [], name
    with long_ways() as taken:
        assert caught(BudgetExceeded, ann.reserve)  # an operation that needs ann's scope takes the long way
    assert taken
    held.release()
    for waiter in waiters:
        assert waiter.state == "granted"
        waiter.reservation.release()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_listeners_closing_and_overruns_of_one_user_do_not_slow_operations_of_others(operation: str) -> None:
    ann, run, others = family(_no_window)
    heard: list[object] = []
    ann.subscribe(heard.append)
    run.on_threshold(0.5, heard.append)
    with pytest.raises(Exception, match="overrun"):
        ann.record(tokens=2000, force=True)
    run.close()
    del heard[:]
    for name, pool in others.items():
        with long_ways() as taken:
            OPERATIONS[operation](pool)
        assert taken == [], name
    assert heard == []


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_threshold_that_is_far_away_sends_no_operation_the_long_way(operation: str) -> None:
    pool = BudgetPool(token_cap=1000, usd_cap=1)
    pool.on_threshold(0.8, lambda _event: None)
    below = pool.child(token_cap=1000)
    below.on_threshold(0.9, lambda _event: None)
    for asked in (pool, below):
        with long_ways() as taken:
            OPERATIONS[operation](asked)
        assert taken == []


@pytest.mark.parametrize("operation", OPERATIONS)
def test_when_the_last_waiter_has_left_all_operations_take_straight_runs_again(operation: str) -> None:
    ann, run, others = family(_no_window)
    held = ann.reserve(tokens=1000)
    waiter = waiting(run, tokens=10)
    held.release()
    waiter.reservation.release()
    for name, pool in {"ann": ann, "run": run, **others}.items():
        with long_ways() as taken:
            OPERATIONS[operation](pool)
        assert taken == [], name


def test_a_waiter_is_served_although_others_have_filled_the_parent() -> None:
    """Straight runs stop where a waiter for another scope would no longer fit: it may have to be served first."""
    total = BudgetPool(token_cap=100)
    ann, ben = total.child(token_cap=10), total.child()
    held = ann.reserve(tokens=10)
    waiter = waiting(ann, tokens=10)
    for _ in range(8):
        ben.record(tokens=10)
    ben.record(tokens=10)  # now the parent is full: a waiter for Ann's budget holds nothing of it
    held.release()
    assert waiter.state == "granted"
    waiter.reservation.release()
