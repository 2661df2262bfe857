"""P1, P2 and P7 over several scopes: children, joins and keys, closing, and the whole tree at one moment."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from support import caught, counters, forked, run_together, waiters
from token_budget import BudgetExceeded, BudgetOverrun, BudgetPool, BudgetSnapshot, PoolClosed, PoolForked, Window

NANOS = 10**9


def names(snapshot: BudgetSnapshot) -> Any:
    return (snapshot.name, [names(child) for child in snapshot.children])


def family() -> tuple[BudgetPool, BudgetPool, BudgetPool]:
    total = BudgetPool(token_cap=1000, usd_cap=10, name="total")
    project = total.child(token_cap=500, usd_cap=5, name="project")
    user = project.child(token_cap=100, usd_cap=1, name="user")
    return total, project, user


# ---------------------------------------------------------------- children


def test_an_operation_of_a_child_counts_in_every_scope_above_at_once() -> None:
    total, project, user = family()
    user.record(tokens=10, usd=0.1)
    with user.reserve(tokens=20, usd=0.2) as reservation:
        for pool in (total, project, user):
            assert counters(pool) == (10, 20, NANOS // 10, NANOS // 5, 1)
        reservation.commit(tokens=5, usd=0.05)
    project.record(tokens=100)
    assert counters(user) == (15, 0, 150_000_000, 0, 0)
    assert counters(project) == counters(total) == (115, 0, 150_000_000, 0, 0)


@pytest.mark.parametrize(
    ("full", "tokens", "usd", "name", "axis"),
    [
        ("user", 101, 0, "user", "tokens"),
        ("user", 0, 1.01, "user", "usd"),
        ("project", 60, 0, "project", "tokens"),
        ("total", 50, 0, "total", "tokens"),
    ],
)
@pytest.mark.parametrize("operation", ["record", "reserve"])
def test_a_refusal_names_the_scope_and_changes_none(
    operation: str, full: str, tokens: int, usd: float, name: str, axis: str
) -> None:
    total, project, user = family()
    if full == "project":
        project.record(tokens=450)
    if full == "total":
        total.record(tokens=960)
    before = [counters(pool) for pool in (total, project, user)]
    with pytest.raises(BudgetExceeded, match=f"on {axis} in pool '{name}': attempted") as raised:
        getattr(user, operation)(tokens=tokens, usd=usd)
    assert (raised.value.pool, raised.value.axis) == (name, axis)
    assert raised.value.attempted > raised.value.cap
    assert [counters(pool) for pool in (total, project, user)] == before


def test_the_error_names_an_exhausted_scope_before_a_busy_one() -> None:
    total, _, user = family()
    held = user.reserve(tokens=100)
    total.record(tokens=850)
    with pytest.raises(BudgetExceeded) as raised:
        user.record(tokens=100)
    assert (raised.value.pool, raised.value.exhausted) == ("user", False)
    total.record(tokens=50)
    with pytest.raises(BudgetExceeded) as raised:
        user.record(tokens=101)
    assert (raised.value.pool, raised.value.exhausted) == ("user", True)
    with pytest.raises(BudgetExceeded) as raised:
        total.record(tokens=101)
    assert (raised.value.pool, raised.value.exhausted) == ("total", True)
    held.release()


def test_an_overrun_counts_everywhere_and_names_the_first_scope_that_is_passed() -> None:
    total, project, user = family()
    project.set_caps(token_cap=None)
    held = user.reserve(tokens=50)
    with pytest.raises(BudgetOverrun) as raised:
        held.commit(tokens=120)
    assert (raised.value.pool, raised.value.attempted, raised.value.cap) == ("user", 120, 100)
    with pytest.raises(BudgetOverrun) as raised:
        project.record(tokens=900, force=True)
    assert raised.value.pool == "total"
    with pytest.raises(BudgetOverrun, match="on usd in pool 'user'"):
        user.record(usd=1.5, force=True)
    for pool in (total, project):
        assert counters(pool) == (1020, 0, 1_500_000_000, 0, 0)


def test_a_reset_changes_only_its_own_scope() -> None:
    total, project, user = family()
    user.record(tokens=90)
    user.reset()
    assert [counters(pool)[0] for pool in (user, project, total)] == [0, 90, 90]
    total.reset()
    assert [counters(pool)[0] for pool in (user, project, total)] == [0, 90, 0]


def test_a_deep_chain_works_like_a_short_one() -> None:
    pools = [BudgetPool(token_cap=100)]
    for depth in range(6):
        pools.append(pools[-1].child(token_cap=100 - depth))
    pools[-1].record(tokens=50)
    assert caught(BudgetExceeded, pools[-1].record, tokens=46)
    with pools[-1].reserve(tokens=45):
        assert {counters(pool)[:2] for pool in pools} == {(50, 45)}
    assert {counters(pool)[:2] for pool in pools} == {(50, 0)}
    assert caught(BudgetOverrun, pools[-1].record, tokens=100, force=True)
    assert {counters(pool)[0] for pool in pools} == {150}


@pytest.mark.usefixtures("racing")
def test_children_of_many_threads_never_oversell_their_parent() -> None:
    total = BudgetPool(token_cap=1000)
    children = [total.child(token_cap=400) for _ in range(4)]

    def spend(child: BudgetPool) -> int:
        return sum(not caught(BudgetExceeded, child.record, tokens=1) for _ in range(600))

    counts = run_together(*[lambda child=child: spend(child) for child in children])
    assert sum(counts) == 1000
    assert counters(total)[0] == 1000
    assert [counters(child)[0] for child in children] == counts
    assert max(counts) <= 400


def test_a_dropped_reservation_of_a_child_comes_back_everywhere() -> None:
    total, _, user = family()
    with pytest.warns(ResourceWarning):
        user.reserve(tokens=30)
    assert counters(total) == (0, 0, 0, 0, 0)
    assert counters(user) == (0, 0, 0, 0, 0)


def test_bad_arguments_of_a_child_are_refused() -> None:
    total = BudgetPool()
    for arguments in ({"token_cap": -1}, {"usd_cap": float("nan")}, {"name": 5}, {"window": "daily"}):
        with pytest.raises((TypeError, ValueError)):
            total.child(**arguments)


def test_a_child_that_is_no_longer_held_leaves_the_tree_and_its_spend_stays_above() -> None:
    total = BudgetPool(name="total")
    child = total.child(name="child")
    child.record(tokens=5)
    assert [below.name for below in total.snapshot(tree=True).children] == ["child"]
    del child
    gc.collect()
    assert total.snapshot(tree=True).children == ()
    assert counters(total)[0] == 5


# ---------------------------------------------------------------- closing


def test_a_closed_child_begins_nothing_and_lets_calls_in_flight_settle() -> None:
    total, project, user = family()
    with user.child(name="run") as run:
        held = run.reserve(tokens=10)
        other = run.reserve(tokens=10)
    for operation in (run.record, run.reserve, run.try_reserve):
        with pytest.raises(PoolClosed, match="pool 'run' is closed: spend from its parent"):
            operation(tokens=1)
    run.record(tokens=2, force=True)  # the money was spent, so it is counted
    assert run.closed
    assert not user.closed
    with pytest.raises(PoolClosed):
        run.set_caps(token_cap=5)
    with pytest.raises(PoolClosed):
        run.child()
    held.commit(tokens=7)
    other.release()
    run.close()
    assert counters(run) == counters(user) == counters(project) == counters(total) == (9, 0, 0, 0, 0)
    assert run.snapshot().token_cap is None


def test_an_overrun_of_a_closed_child_is_raised_too() -> None:
    run = BudgetPool().child(token_cap=10, name="run")
    held = run.reserve(tokens=10)
    run.close()
    with pytest.raises(BudgetOverrun) as raised:
        held.commit(tokens=15)
    assert (raised.value.pool, raised.value.cap, raised.value.attempted) == ("run", 10, 15)


def test_closing_a_scope_closes_what_is_below_it() -> None:
    total, project, user = family()
    project.close()
    with pytest.raises(PoolClosed, match="'project'"):
        user.record(tokens=1)
    total.record(tokens=1)
    total.close()
    with pytest.raises(PoolClosed, match="'total'"):
        total.record(tokens=1)


def test_a_pool_that_stands_alone_can_be_closed() -> None:
    pool = BudgetPool(token_cap=10)
    held = pool.reserve(tokens=5)
    pool.close()
    with pytest.raises(PoolClosed, match="^pool is closed"):
        pool.record(tokens=1)
    pool.record(tokens=1, force=True)
    with pytest.raises(PoolClosed):
        pool.reserve(tokens=1)
    held.commit(tokens=3)
    assert counters(pool) == (4, 0, 0, 0, 0)


# ---------------------------------------------------------------- joins


def test_a_join_counts_each_account_once() -> None:
    total, project, user = family()
    other = total.child(token_cap=50, name="other")
    joined = BudgetPool.join(user, other, project, name="both")
    with joined.reserve(tokens=30) as reservation:
        for pool in (joined, user, other, project, total):
            assert counters(pool)[:2] == (0, 30)
        reservation.commit(tokens=20)
    for pool in (joined, user, other, project, total):
        assert counters(pool) == (20, 0, 0, 0, 0)
    with pytest.raises(BudgetExceeded) as raised:
        joined.record(tokens=40)
    assert raised.value.pool == "other"
    assert joined.name == "both"
    twice = BudgetPool.join(total, total)
    twice.record(tokens=1)
    assert (counters(twice)[0], counters(total)[0]) == (1, 21)


def test_only_pools_of_one_family_are_joined() -> None:
    with pytest.raises(ValueError, match=r"descend from one pool: make them with child\(\) or keyed\(\)$"):
        BudgetPool.join(BudgetPool(), BudgetPool())
    with pytest.raises(ValueError, match="join needs at least one pool"):
        BudgetPool.join()
    with pytest.raises(TypeError, match="join takes pools, not int$"):
        BudgetPool.join(BudgetPool(), 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"join takes pools, not list: write join\(\*pools\)$"):
        BudgetPool.join([BudgetPool()])  # type: ignore[arg-type]


# ---------------------------------------------------------------- keys


def test_each_key_has_its_own_budget_and_all_keys_share_the_parents_budget() -> None:
    total = BudgetPool(usd_cap=5, name="total")
    users = total.keyed(usd_cap=2)
    users["ann"].record(usd=1.5)
    users["bob"].record(usd=2)
    with pytest.raises(BudgetExceeded) as raised:
        users["ann"].record(usd=1)
    assert raised.value.pool == "ann"
    users["cyd"].record(usd=1)
    with pytest.raises(BudgetExceeded) as raised:
        users["cyd"].record(usd=1)
    assert raised.value.pool == "total"
    assert counters(total)[2] == 4_500_000_000
    assert sorted(map(str, users)) == ["ann", "bob", "cyd"]
    assert len(users) == 3
    assert "ann" in users
    assert "dan" not in users
    assert repr(users) == "<KeyedPools 3 keys>"
    assert repr(total.keyed(name="user")) == "<KeyedPools user 0 keys>"
    assert total.keyed(name="user")[7].name == "user:7"


def test_a_key_keeps_its_budget_even_if_nobody_holds_its_pool() -> None:
    users = BudgetPool().keyed(token_cap=10)
    users["ann"].record(tokens=6)
    gc.collect()
    assert caught(BudgetExceeded, users["ann"].record, tokens=5)
    held = users["ann"].reserve(tokens=4)
    assert users["ann"] is held._pool
    held.commit()
    assert counters(users["ann"]) == (10, 0, 0, 0, 0)


@pytest.mark.usefixtures("racing")
def test_a_key_is_made_at_most_once_under_races() -> None:
    for _ in range(30):
        users = BudgetPool().keyed(token_cap=10)
        spent = run_together(*[lambda users=users: not caught(BudgetExceeded, users["x"].record, tokens=3)] * 6)
        assert sum(spent) == 3
        assert counters(users["x"])[0] == 9


def test_two_threads_that_make_a_key_at_the_same_moment_get_one_pool() -> None:
    """The race is constructed: both threads have made a pool for the key before either registers it."""
    users = BudgetPool().keyed(token_cap=10)
    barrier = threading.Barrier(2)

    class Key:
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Key)

        def __hash__(self) -> int:
            return 1

        def __str__(self) -> str:
            barrier.wait(10)  # after the lookup that finds nothing, before the registration
            return "key"

    one, other = run_together(lambda: users[Key()], lambda: users[Key()])
    assert one is other
    assert len(users) == 1


def test_keys_are_forgotten_when_that_loses_nothing() -> None:
    now = [0.0]
    window = Window.every(timedelta(days=1), clock=lambda: now[0])
    users = BudgetPool().keyed(token_cap=10, window=window)
    for index in range(100):
        users[index].record(tokens=1)
    assert len(users) == 100  # all are used in this period
    kept = users["kept"]
    held = users["held"].reserve(tokens=5)
    users["watched"].subscribe(lambda _event: None)
    now[0] = 86400.0
    for index in range(100, 200):
        users[index].record(tokens=1)
    assert len(users) <= 103  # each new key checks two old ones
    assert {"held", "kept"} <= set(users)
    assert "watched" not in users
    assert users["kept"] is kept
    held.commit(tokens=5)
    assert counters(users["held"])[0] == 5


def test_keys_without_a_window_are_kept_while_anything_is_used() -> None:
    users = BudgetPool().keyed()
    for index in range(100):
        users[index].record(tokens=index % 2)
    users["last"].record(tokens=1)
    for index in range(100, 200):
        users[index].record(tokens=1)
    assert {index for index in users if isinstance(index, int) and index < 100} == set(range(1, 100, 2))


def test_a_key_is_not_forgotten_while_a_pool_below_it_or_a_join_counts_against_it() -> None:
    users = BudgetPool().keyed(token_cap=10)
    joined, below = BudgetPool.join(users["ann"]), users["bob"].child()
    for index in range(20):
        users[index]
    gc.collect()
    joined.record(tokens=10)
    below.record(tokens=10)
    assert caught(BudgetExceeded, users["ann"].record, tokens=1)
    assert caught(BudgetExceeded, users["bob"].record, tokens=1)


def test_settings_of_a_keys_own_pool_outlive_its_periods_but_closing_does_not() -> None:
    now = [0.0]
    clock = lambda: now[0]  # noqa: E731
    users = BudgetPool().keyed(token_cap=10, usd_cap=1, window=Window.every(timedelta(days=1), clock=clock))
    heard: list[tuple[str, str | None, int]] = []
    users["small"].set_caps(token_cap=1)
    users["weekly"].set_caps(window=Window.every(timedelta(days=7), clock=clock))
    users["watched"].subscribe(lambda event: heard.append((event.kind, event.pool, event.tokens)))
    users["alarmed"].on_threshold(0.5, lambda event: heard.append((event.kind, event.pool, event.tokens)))
    users["banned"].close()
    for key in ("small", "watched", "alarmed", "weekly"):
        users[key].record(tokens=1)
    heard.clear()
    now[0] = 86400.0 * 8
    for index in range(20):
        users[index].record(tokens=1)
    assert set(users) == set(range(20))
    assert caught(BudgetExceeded, users["small"].record, tokens=2)
    assert caught(BudgetExceeded, users["small"].record, usd=2)  # the other cap is the group's
    users["watched"].record(tokens=10)
    users["alarmed"].record(tokens=5)
    assert heard == [("record", "watched", 10), ("threshold", "alarmed", 0)]
    snapshot = users["weekly"].snapshot()
    assert snapshot.resets_at is not None
    assert snapshot.resets_at.timestamp() == 86400.0 * 14
    users["banned"].record(tokens=1)


def test_del_forgets_a_key_and_what_was_set_on_it_unless_calls_are_in_flight() -> None:
    users = BudgetPool().keyed(token_cap=10)
    old = users["ann"]
    old.set_caps(token_cap=100)
    old.record(tokens=50)
    held = old.reserve(tokens=5)
    with pytest.raises(ValueError, match="key 'ann' has 1 in flight: let them settle first"):
        del users["ann"]
    assert counters(users["ann"]) == (50, 5, 0, 0, 1)
    held.release()
    del users["ann"]
    assert "ann" not in users
    assert old.closed
    assert caught(PoolClosed, old.record, tokens=1)
    assert users["ann"] is not old
    assert caught(BudgetExceeded, users["ann"].record, tokens=11)
    users["ann"].record(tokens=10)
    with pytest.raises(KeyError, match="bob"):
        del users["bob"]
    with pytest.raises(TypeError):
        del users[[]]  # type: ignore[arg-type]


def test_looking_at_a_group_makes_no_key() -> None:
    users = BudgetPool().keyed(token_cap=10)
    assert users.get("ann") is None
    other = BudgetPool()
    assert users.get("ann", other) is other
    assert (users.keys(), users.values(), users.items(), len(users)) == ([], [], [], 0)
    assert users  # even while it is empty, so `users or other` is users
    ann, bob = users["ann"], users["bob"]
    assert users.get("ann") is ann
    assert (users.keys(), users.values(), users.items()) == (["ann", "bob"], [ann, bob], [("ann", ann), ("bob", bob)])


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_group_of_keys_is_not_copied(duplicate: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="would be a second budget for each key"):
        duplicate(BudgetPool().keyed())


def test_new_caps_of_a_group_hold_for_every_key_except_where_a_key_has_its_own() -> None:
    now = [0.0]
    day = Window.every(timedelta(days=1), clock=lambda: now[0])
    users = BudgetPool().keyed(token_cap=10, usd_cap=1)
    ann, own = users["ann"], users["own"]
    own.set_caps(token_cap=5, window=None)
    own.record(tokens=4)
    ann.record(tokens=9)
    users.set_caps(token_cap=20, window=day)
    assert (ann.snapshot().token_cap, ann.snapshot().usd_cap, ann.snapshot().tokens_used) == (20, 1.0, 9)
    assert (own.snapshot().token_cap, own.snapshot().resets_at) == (5, None)
    assert users["new"].snapshot().token_cap == 20
    now[0] = 86400.0
    assert (counters(ann)[0], counters(own)[0], counters(users["new"])[0]) == (0, 4, 0)
    for pool in (ann, users["new"]):
        assert pool.snapshot().resets_at.timestamp() == 2 * 86400  # type: ignore[union-attr]
    users.set_caps(window=None, usd_cap=None)
    ann.record(tokens=20, usd=5)
    now[0] = 3 * 86400.0
    assert counters(ann)[0] == 20
    assert caught(BudgetExceeded, own.record, tokens=2)
    for bad in ({"token_cap": -1}, {"window": "daily"}, {"usd_cap": True}):
        with pytest.raises((TypeError, ValueError)):
            users.set_caps(**bad)
    assert ann.snapshot().token_cap == 20


def test_another_window_of_a_group_keeps_no_usage_of_a_period_that_is_over() -> None:
    now = [0.0]
    clock = lambda: now[0]  # noqa: E731
    users = BudgetPool().keyed(token_cap=10, window=Window.every(timedelta(seconds=10), clock=clock))
    pool = BudgetPool(token_cap=10, window=Window.every(timedelta(seconds=10), clock=clock))
    for one in (users["a"], pool):
        one.record(tokens=9)
    now[0] = 15.0
    other = Window.every(timedelta(seconds=25), clock=clock)
    users.set_caps(window=other)
    pool.set_caps(window=other)
    assert counters(pool)[0] == counters(users["a"])[0] == 0


def test_a_clock_that_steps_back_reopens_no_period_for_a_new_key() -> None:
    now = [5.0]
    users = BudgetPool().keyed(token_cap=10, window=Window.every(timedelta(seconds=10), clock=lambda: now[0]))
    users["a"].record(tokens=1)
    now[0] = 11.0
    users["a"].record(tokens=1)
    now[0] = 9.0
    users["b"].record(tokens=10)
    now[0] = 11.0
    assert caught(BudgetExceeded, users["b"].record, tokens=10)


def test_larger_caps_of_a_group_serve_waiters() -> None:
    users = BudgetPool().keyed(token_cap=10)
    held = users["ann"].reserve(tokens=10)
    waiting = threading.Thread(target=lambda: users["ann"].reserve(tokens=10, timeout=None).release())
    waiting.start()
    while not waiters(users["ann"]):
        pass
    users.set_caps(token_cap=20)
    waiting.join(30)
    assert not waiting.is_alive()
    held.release()


def test_listeners_of_a_group_hear_of_every_key_until_they_unsubscribe() -> None:
    now = [0.0]
    window = Window.every(timedelta(days=1), clock=lambda: now[0])
    users = BudgetPool().keyed(token_cap=10, window=window)
    heard: list[tuple[str, str | None, int]] = []
    users["early"].record(tokens=1)
    ends = [
        users.subscribe(lambda event: heard.append((event.kind, event.pool, event.tokens))),
        users.on_threshold(0.8, lambda event: heard.append((event.kind, event.pool, event.snapshot.tokens_used))),
    ]
    users["early"].record(tokens=7)
    users["late"].record(tokens=2)
    early = [("record", "early", 7), ("threshold", "early", 8)]
    assert heard == [*early, ("record", "late", 2)]
    heard.clear()
    now[0] = 86400.0
    for index in range(20):  # the keys are forgotten, but the listeners stay
        users[index]
    assert "early" not in users
    heard.clear()
    users["early"].record(tokens=8)
    assert heard == [("record", "early", 8), ("threshold", "early", 8)]
    heard.clear()
    for end in (*ends, *ends):
        end()
    users["early"].record(tokens=1)
    users["last"].record(tokens=10)
    assert heard == []
    for add in (users.subscribe, partial(users.on_threshold, 0.5)):
        with pytest.raises(TypeError, match="callback must be a function"):
            add(5)  # type: ignore[arg-type]


def test_a_key_without_a_window_stays_closed_and_keeps_its_own_caps() -> None:
    users = BudgetPool().keyed(token_cap=10)
    users["banned"].close()
    users["small"].set_caps(token_cap=1)
    for index in range(20):
        users[index]
    gc.collect()
    assert caught(PoolClosed, users["banned"].record, tokens=1)
    assert caught(BudgetExceeded, users["small"].record, tokens=2)
    assert len(users) < 20


def test_the_tree_shows_pools_that_only_their_children_hold() -> None:
    root = BudgetPool(name="root")
    leaf = root.child(name="mid").child(name="leaf")
    held = leaf.reserve(tokens=5)
    gc.collect()
    assert names(root.snapshot(tree=True)) == ("root", [("mid", [("leaf", [])])])
    forked(root)
    root.detach()
    assert held.completed
    assert root.snapshot(tree=True).children[0].tokens_reserved == 0


def test_the_family_does_not_remember_pools_that_are_gone() -> None:
    total = BudgetPool()
    for _ in range(1000):
        total.child()
    assert len(total._family.scopes._refs) < 200


def test_a_tree_of_a_thousand_levels_is_shown() -> None:
    pool = root = BudgetPool(token_cap=10, name="0")
    for level in range(1, 1200):
        pool = pool.child(name=str(level))
    pool.record(tokens=3)
    shown, depth = root.snapshot(tree=True), 1
    while shown.children:
        (shown,) = shown.children
        depth += 1
    assert (depth, shown.name, shown.tokens_used) == (1200, "1199", 3)


def test_statistics_count_children_keys_waiters_and_subscribers() -> None:
    total = BudgetPool(token_cap=10, name="total")
    assert total.statistics() == (0, 0, 0, 0)
    users, child = total.keyed(), total.child()
    ann, grandchild = users["ann"], child.child()
    ends = [total.subscribe(lambda _event: None), total.on_threshold(0.5, lambda _event: None)]
    held = child.reserve(tokens=10)
    waiting = threading.Thread(target=lambda: child.reserve(tokens=1, timeout=None).release())
    waiting.start()
    while not waiters(total):
        pass
    statistics = total.statistics()
    assert (statistics.reservations, statistics.waiters, statistics.children, statistics.subscribers) == (1, 1, 2, 2)
    assert (child.statistics(), grandchild.statistics(), ann.statistics()) == ((1, 1, 1, 0), (0,) * 4, (0,) * 4)
    assert repr(total).endswith("| 1 in flight | 1 waiting>")
    held.release()
    waiting.join(30)
    for end in ends:
        end()
    assert total.statistics() == (0, 0, 2, 0)
    child.close()
    assert repr(child).endswith("| closed>")
    assert repr(BudgetPool.__new__(BudgetPool)) == "<BudgetPool, half made>"


def test_hostile_keys_harm_only_themselves() -> None:
    class Text(str):
        __slots__ = ()

        def __getitem__(self, _item: object) -> Any:
            return 42

    class Key:
        def __str__(self) -> str:
            return Text("key")

    users = BudgetPool().keyed()
    assert users[Key()].name == "key"


def test_a_key_must_be_hashable() -> None:
    with pytest.raises(TypeError):
        BudgetPool().keyed()[[]]  # type: ignore[index]


# ---------------------------------------------------------------- the tree


def test_the_whole_tree_is_seen_as_of_one_moment() -> None:
    total, project, user = family()
    users = project.keyed(name="key")
    users["ann"].record(tokens=5)
    user.record(tokens=7)
    joined = BudgetPool.join(user, users["ann"])
    joined.record(tokens=1)
    gc.collect()
    tree = total.snapshot(tree=True)
    assert names(tree) == ("total", [("project", [("user", []), ("key:ann", [])])])
    assert tree.tokens_used == 13
    assert [child.tokens_used for child in tree.children[0].children] == [8, 6]
    assert names(project.snapshot(tree=True))[0] == "project"
    assert project.snapshot().children == ()
    assert BudgetPool(name="alone").snapshot(tree=True).children == ()


@pytest.mark.usefixtures("racing")
def test_a_tree_snapshot_never_sees_half_a_spend() -> None:
    total = BudgetPool()
    children = [total.child() for _ in range(3)]
    going = True

    def spend(child: BudgetPool) -> None:
        while going:
            with child.reserve(tokens=3) as reservation:
                reservation.commit(tokens=2)

    def look() -> None:
        nonlocal going
        for _ in range(300):
            tree = total.snapshot(tree=True)
            assert tree.tokens_used == sum(child.tokens_used for child in tree.children)
            assert tree.in_flight == sum(child.in_flight for child in tree.children)
        going = False

    run_together(look, *[lambda child=child: spend(child) for child in children])


# ---------------------------------------------------------------- forks


def test_a_forked_family_refuses_in_every_scope_until_it_is_detached() -> None:
    total, project, user = family()
    users = total.keyed()
    users["ann"].record(tokens=1)
    mine, key = user.reserve(tokens=10), users["ann"].reserve(tokens=3)
    forked(total)
    for pool in (total, project, user, users["ann"]):
        with pytest.raises(PoolForked):
            pool.record(tokens=1)
        with pytest.raises(PoolForked):
            pool.reset()
    with pytest.raises(PoolForked):
        total.child()
    with pytest.raises(PoolForked):
        mine.commit()
    assert counters(total) == (1, 13, 0, 0, 2)
    user.detach()
    for reservation in (mine, key):
        assert reservation.completed
        reservation.release()
    assert counters(total) == (1, 0, 0, 0, 0)
    assert counters(user) == (0, 0, 0, 0, 0)
    user.record(tokens=5)
    with total.child().reserve(tokens=5):
        assert counters(total) == (6, 5, 0, 0, 1)
