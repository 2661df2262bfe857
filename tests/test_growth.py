"""The time of operations grows at most in proportion to the scopes, keys or levels. The tests count steps, not time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import pytest

from shapes import Clock, waiting
from token_budget import BudgetPool, Reservation, Window, _ledger


def steps_of(operation: Callable[[], object]) -> int:
    """Return how many lines of Python an operation runs. Each turn of a loop counts, even in a comprehension."""
    count = 0

    def look(_frame: object, _event: str, _argument: object) -> Any:
        nonlocal count
        count += 1
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        operation()
    finally:
        sys.settrace(before)
    return count


def each(things: Iterable[Any], operation: Callable[[Any], object]) -> None:
    for thing in things:
        operation(thing)


def grows_in_proportion(measure: Callable[[int], int]) -> None:
    """Fail if four times the size takes more than six times the steps."""
    measure(10)
    small, large = measure(300), measure(1200)
    assert large < 6 * small, (small, large)


def served(scopes: int) -> int:
    total = BudgetPool(token_cap=scopes)
    pools = [total.child(token_cap=1) for _ in range(scopes)]
    held = total.reserve(tokens=scopes)
    waiters = [waiting(pool, tokens=1) for pool in pools]
    count = steps_of(held.release)
    assert {waiter.state for waiter in waiters} == {"granted"}
    for waiter in waiters:
        waiter.reservation.release()
    return count


def served_in_their_own_scopes(scopes: int) -> int:
    """Each waiter waits in a scope of its own, and each hand-over makes the pool look at the lines above too."""
    total = BudgetPool()
    pools = [total.child(token_cap=1) for _ in range(scopes)]
    helds = [pool.reserve(tokens=1) for pool in pools]
    waiters = [waiting(pool, tokens=1) for pool in pools]
    count = steps_of(lambda: each(helds, Reservation.release))
    assert {waiter.state for waiter in waiters} == {"granted"}
    for waiter in waiters:
        waiter.reservation.release()
    return count


def served_by_a_roll_over(scopes: int) -> int:
    clock = Clock()
    window = Window.every(timedelta(seconds=10), clock=clock)
    total = BudgetPool(token_cap=scopes, window=window)
    pools = [total.child(token_cap=1) for _ in range(scopes)]
    total.record(tokens=scopes)
    waiters = [waiting(pool, tokens=1, timeout=60) for pool in pools]
    clock.now += 10
    count = steps_of(total.snapshot)
    assert {waiter.state for waiter in waiters} == {"granted"}
    for waiter in waiters:
        waiter.reservation.release()
    return count


def withdrawn(scopes: int) -> int:
    total = BudgetPool(token_cap=1)
    held = total.reserve(tokens=1)
    waiters = [waiting(total.child(), tokens=1) for _ in range(scopes)]
    count = steps_of(lambda: each(waiters, _ledger.abandon))
    assert total.statistics().waiters == 0
    held.release()
    return count


def groups_made(groups: int) -> int:
    total = BudgetPool()
    kept: list[Any] = []
    count = steps_of(lambda: kept.extend([total.keyed(token_cap=1) for _ in range(groups)]))
    count += steps_of(lambda: each(kept, lambda group: group["a"].record(tokens=1)))
    assert len(kept) == groups
    return count


def groups_made_and_dropped(groups: int) -> int:
    total = BudgetPool()
    return steps_of(lambda: each(range(groups), lambda _: total.keyed(token_cap=1)["a"].record(tokens=1)))


def children_made(children: int) -> int:
    total = BudgetPool()
    kept: list[Any] = []
    return steps_of(lambda: kept.extend([total.child(token_cap=1) for _ in range(children)]))


def keys_made(keys: int) -> int:
    users = BudgetPool().keyed(token_cap=1)
    return steps_of(lambda: each(range(keys), lambda key: users[key].record(tokens=1)))


def tree_of_a_chain(levels: int) -> int:
    kept = [BudgetPool(token_cap=10)]
    for _ in range(levels // 10):
        kept.append(kept[-1].child())
    return steps_of(lambda: kept[0].snapshot(tree=True))


@pytest.mark.parametrize(
    "measure",
    [
        served,
        served_in_their_own_scopes,
        served_by_a_roll_over,
        withdrawn,
        groups_made,
        groups_made_and_dropped,
        children_made,
        keys_made,
        tree_of_a_chain,
    ],
)
def test_four_times_the_size_takes_about_four_times_the_steps(measure: Callable[[int], int]) -> None:
    grows_in_proportion(measure)


def test_a_tree_may_be_of_any_depth() -> None:
    root = pool = BudgetPool(token_cap=10)
    for _ in range(1200):
        pool = pool.child()
    pool.record(tokens=1)
    snapshot = root.snapshot(tree=True)
    depth = 0
    while snapshot.children:
        assert snapshot.tokens_used == 1
        (snapshot,) = snapshot.children
        depth += 1
    assert depth == 1200
    assert pool.snapshot(tree=True).tokens_used == 1
    assert root.statistics().children == 1
    assert repr(root)
