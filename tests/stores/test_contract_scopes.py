"""Scopes on every kind of pool: children, keys, joins, the tree, closing, and where the kinds differ on purpose."""

from __future__ import annotations

import copy
import pickle
from datetime import timedelta
from typing import Any

import pytest

import pools_of_all_kinds as all_kinds
from pools_of_all_kinds import IN_PROCESS, IN_STORES, NANOS, Do, Kind, counters
from shapes import Clock
from token_budget import BudgetExceeded, BudgetOverrun, BudgetSnapshot, PoolClosed, Window

kind, do = all_kinds.kind, all_kinds.do
DAY = timedelta(days=1)


def names(snapshot: BudgetSnapshot) -> Any:
    return (snapshot.name, [names(child) for child in snapshot.children])


# ---------------------------------------------------------------- children


def test_a_deep_chain_works_like_a_short_one(kind: Kind, do: Do) -> None:
    pools = [kind.pool(token_cap=100)]
    for depth in range(6):
        pools.append(pools[-1].child(token_cap=100 - depth, name=f"level {depth}"))
    do.record(pools[-1], tokens=50)
    with pytest.raises(BudgetExceeded) as refused:
        do.record(pools[-1], tokens=46)
    assert refused.value.pool == "level 5"
    with do.block(pools[-1], tokens=45):
        assert {counters(pool)[:2] for pool in pools} == {(50, 45)}
    with pytest.raises(BudgetOverrun):
        do.record(pools[-1], tokens=100, force=True)
    assert {counters(pool)[:2] for pool in pools} == {(150, 0)}


@pytest.mark.parametrize("name", ["a/b:c%d", "{x}|,;", "ä ö 末 🐍", "line\nbreak\0", "x" * 200, " ", "\ud800"])
def test_any_text_names_a_scope(kind: Kind, do: Do, name: str) -> None:
    total = kind.pool(name="total")
    child, users = total.child(name=name), total.keyed(name="user")
    do.record(child, tokens=1)
    do.record(users[name], tokens=2)
    assert (child.name, users[name].name) == (name, f"user:{name}"[:205] if kind.stored else f"user:{name}"[:200])
    assert [below.name for below in do.snapshot(total, tree=True).children] == [child.name, users[name].name]
    assert users.keys() == [name]


@IN_PROCESS
def test_in_process_each_child_is_a_new_pool_with_or_without_a_name(kind: Kind) -> None:
    total = kind.pool()
    one, other = total.child(name="x"), total.child(name="x")
    one.record(tokens=1)
    assert (counters(one)[0], counters(other)[0], counters(total.child())[0]) == (1, 0, 0)


@IN_STORES
def test_in_a_store_children_of_one_name_are_one_scope_and_a_child_needs_a_name(kind: Kind, do: Do) -> None:
    total = kind.pool()
    one, other = total.child(token_cap=10, name="x"), total.child(name="x")
    do.record(one, tokens=4)
    assert counters(other)[0] == 4
    assert do.snapshot(other).token_cap == 10
    with pytest.raises(BudgetExceeded):
        do.record(other, tokens=7)
    with pytest.raises(ValueError, match="needs a name"):
        total.child()
    elsewhere = total.child(name="y").child(name="x")
    do.record(elsewhere, tokens=10)
    assert [counters(pool)[0] for pool in (one, elsewhere, total)] == [4, 10, 14]


@IN_STORES
def test_in_a_store_pools_of_one_name_are_one_budget(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10, usd_cap=1)
    assert pool.name
    other = kind.open(pool.name)
    do.record(pool, tokens=4)
    reservation = do.reserve(other, tokens=3)
    assert counters(pool) == counters(other) == (4, 3, 0, 0, 1)
    with pytest.raises(BudgetExceeded):
        do.record(pool, tokens=4)
    do.commit(reservation)
    assert (do.snapshot(other).token_cap, do.snapshot(other).usd_cap) == (10, 1)
    users, same = pool.keyed(token_cap=5, name="user"), other.keyed(name="user")
    do.record(users["ann"], tokens=2)
    assert counters(same["ann"])[0] == 2
    assert do.snapshot(same["ann"]).token_cap == 5
    with pytest.raises(ValueError, match="needs a name"):
        kind.open("")


# ---------------------------------------------------------------- closing


def test_a_closed_child_begins_nothing_and_lets_calls_in_flight_settle(kind: Kind, do: Do) -> None:
    total = kind.pool(token_cap=100, name="total")
    with total.child(token_cap=50, name="run") as run:
        held, other = do.reserve(run, tokens=10), do.reserve(run, tokens=10)
        below = run.child(name="below")
    assert (run.closed, below.closed, total.closed) == (True, True, False)
    for pool in (run, below):
        for method in ("record", "reserve"):
            with pytest.raises(PoolClosed, match="pool 'run' is closed"):
                do.call(pool, method, tokens=1)
        with pytest.raises(PoolClosed):
            pool.child(name="x")
        with pytest.raises(PoolClosed):
            pool.keyed(name="x")
    do.record(run, tokens=2, force=True)  # the money was spent, so it is counted
    do.commit(held, tokens=7)
    do.release(other)
    run.close()
    run.reset()
    assert counters(run)[1:] == (0, 0, 0, 0)
    assert counters(total) == (9, 0, 0, 0, 0)
    do.record(total, tokens=1)


@IN_PROCESS
def test_in_process_a_closed_pool_is_closed_for_good(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10)
    held = do.reserve(pool, tokens=5)
    pool.close()
    for method in ("record", "reserve"):
        with pytest.raises(PoolClosed):
            do.call(pool, method, tokens=1)
    do.commit(held, tokens=3)
    assert counters(pool) == (3, 0, 0, 0, 0)


@IN_STORES
def test_in_a_store_a_closed_child_is_closed_for_everybody(kind: Kind, do: Do) -> None:
    total = kind.pool(token_cap=100)
    assert total.name
    elsewhere = kind.open(total.name).child(name="run")
    total.child(name="run").close()
    with pytest.raises(PoolClosed):
        do.record(elsewhere, tokens=1)
    assert elsewhere.closed
    do.record(total, tokens=1)


@IN_STORES
def test_in_a_store_closing_the_opened_pool_lets_go_of_it_and_keeps_the_budget(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10)
    assert pool.name
    do.record(pool, tokens=4)
    with pool:
        pass
    assert pool.closed
    for method in ("record", "reserve"):
        with pytest.raises(PoolClosed):
            do.call(pool, method, tokens=1)
    again = kind.open(pool.name)
    assert not again.closed
    do.record(again, tokens=6)
    assert counters(again) == (10, 0, 0, 0, 0)


# ---------------------------------------------------------------- joins


def test_a_join_counts_each_scope_once(kind: Kind, do: Do) -> None:
    total = kind.pool(token_cap=100, name="total")
    project = total.child(token_cap=90, name="project")
    user = project.child(token_cap=80, name="user")
    other = total.child(token_cap=50, name="other")
    joined = type(total).join(user, other, project, name="both")
    with do.block(joined, tokens=30) as reservation:
        for pool in (joined, user, other, project, total):
            assert counters(pool)[:2] == (0, 30)
        do.commit(reservation, tokens=20)
    for pool in (joined, user, other, project, total):
        assert counters(pool) == (20, 0, 0, 0, 0)
    with pytest.raises(BudgetExceeded) as refused:
        do.record(joined, tokens=40)
    assert (refused.value.pool, joined.name) == ("other", "both")
    do.record(project, tokens=1)
    assert [counters(pool)[0] for pool in (joined, user, other, project, total)] == [20, 20, 20, 21, 21]
    twice = type(total).join(total, total)
    do.record(twice, tokens=1)
    assert counters(total)[0] == 22


def test_a_join_of_keys_and_children_refuses_if_one_of_them_is_closed(kind: Kind, do: Do) -> None:
    total = kind.pool(usd_cap=100, name="total")
    users, project = total.keyed(usd_cap=10, name="user"), total.child(usd_cap=50, name="atlas")
    call = type(total).join(users["ann"], project)
    do.record(call, usd=9)
    with pytest.raises(BudgetExceeded) as refused:
        do.record(call, usd=2)
    assert refused.value.pool == "user:ann"
    do.record(project, usd=40)
    with pytest.raises(BudgetExceeded) as refused:
        do.reserve(type(total).join(users["bob"], project), usd=2)
    assert refused.value.pool == "atlas"
    project.close()
    with pytest.raises(PoolClosed):
        do.record(call, usd=0.5)
    with pytest.raises(PoolClosed):
        type(total).join(users["ann"], project)
    assert [counters(pool)[2] // NANOS for pool in (users["ann"], users["bob"], project, total)] == [9, 0, 49, 49]


def test_only_pools_of_one_family_are_joined(kind: Kind) -> None:
    pool, other = kind.pool(), kind.pool()
    join: Any = type(pool).join
    with pytest.raises(ValueError, match="join"):
        join(pool, other)
    with pytest.raises(ValueError, match="at least one pool"):
        join()
    with pytest.raises(TypeError, match="join takes pools.*, not int"):
        join(pool, 5)
    with pytest.raises(TypeError, match=r"join takes pools.*, not list: write join\(\*pools\)"):
        join([pool])


# ---------------------------------------------------------------- keys


def test_each_key_has_its_own_budget_and_all_share_the_parents(kind: Kind, do: Do) -> None:
    total = kind.pool(usd_cap=5, name="total")
    users = total.keyed(usd_cap=2, name="user")
    do.record(users["ann"], usd=1.5)
    do.record(users["bob"], usd=2)
    with pytest.raises(BudgetExceeded) as refused:
        do.record(users["ann"], usd=1)
    assert refused.value.pool == "user:ann"
    do.record(users["cyd"], usd=1)
    with pytest.raises(BudgetExceeded) as refused:
        do.record(users["cyd"], usd=1)
    assert refused.value.pool == total.name
    assert sorted(users.keys()) == ["ann", "bob", "cyd"]
    assert (len(users), "ann" in users, "dan" in users) == (3, True, False)
    assert counters(total)[2] == 4_500_000_000


def test_looking_at_a_group_makes_no_key(kind: Kind) -> None:
    users = kind.pool().keyed(token_cap=10, name="user")
    assert users.get("ann") is None
    assert users.get("ann", 5) == 5
    assert (users.keys(), len(users), bool(users)) == ([], 0, True)
    users["ann"].record(tokens=1)
    ann: Any = users.get("ann")
    assert counters(ann)[0] == 1
    assert users.keys() == ["ann"]


def test_groups_without_a_name_call_their_keys_by_the_key(kind: Kind, do: Do) -> None:
    total = kind.pool(name="total")
    keys = total.keyed()
    do.record(keys["ann"], tokens=1)
    assert names(do.snapshot(total, tree=True)) == (total.name, [("ann", [])])


def test_a_key_keeps_its_budget_though_nobody_holds_its_pool(kind: Kind, do: Do) -> None:
    users = kind.pool().keyed(token_cap=10, name="user")
    do.record(users["ann"], tokens=6)
    with pytest.raises(BudgetExceeded):
        do.record(users["ann"], tokens=5)
    do.record(users["ann"], tokens=4)
    do.record(users["bob"], tokens=10)
    assert [counters(users[key])[0] for key in ("ann", "bob")] == [10, 10]


def test_a_keys_own_caps_stay_while_those_of_all_change(kind: Kind, do: Do) -> None:
    clock = Clock(0.0)
    day = Window.every(DAY, clock=clock)
    users = kind.pool().keyed(token_cap=10, usd_cap=1, name="user")
    ann, own = users["ann"], users["own"]
    own.set_caps(token_cap=5, window=None)
    do.record(own, tokens=4)
    do.record(ann, tokens=9)
    users.set_caps(token_cap=20, window=day)
    seen = [do.snapshot(users[key]) for key in ("ann", "own", "new")]
    assert [(one.token_cap, one.usd_cap, one.tokens_used) for one in seen] == [(20, 1, 9), (5, 1, 4), (20, 1, 0)]
    assert [one.resets_at and one.resets_at.timestamp() for one in seen] == [86_400, None, 86_400]
    with pytest.raises(BudgetExceeded) as refused:
        do.record(own, tokens=2)
    assert refused.value.pool == "user:own"
    clock.now = 86_400.0
    assert [counters(users[key])[0] for key in ("ann", "own", "new")] == [0, 4, 0]
    users.set_caps(window=None, usd_cap=None)
    do.record(ann, tokens=20, usd=5)
    clock.now = 3 * 86_400.0
    assert counters(ann)[0] == 20


def test_what_keys_have_used_stays_when_all_lose_their_window_or_get_a_longer_one(kind: Kind, do: Do) -> None:
    clock = Clock(0.0)
    for other in (None, Window.every(10 * DAY, clock=clock)):
        users = kind.pool().keyed(token_cap=10, window=Window.every(DAY, clock=clock), name="user")
        clock.now = 86_400.0 * 10
        do.record(users["ann"], tokens=9)
        users.set_caps(window=other)
        clock.now = 86_400.0 * 15
        assert counters(users["ann"])[0] == 9
        with pytest.raises(BudgetExceeded):
            do.record(users["ann"], tokens=2)
        do.record(users["ann"], tokens=1)


def test_what_keys_have_used_in_a_period_that_is_over_is_gone_with_another_window(kind: Kind, do: Do) -> None:
    clock = Clock(0.0)
    users = kind.pool().keyed(token_cap=10, window=Window.every(DAY, clock=clock), name="user")
    do.record(users["ann"], tokens=9)
    clock.now = 86_400.0
    users.set_caps(window=Window.every(10 * DAY, clock=clock))
    assert counters(users["ann"])[0] == 0
    do.record(users["ann"], tokens=10)


def test_a_deleted_key_begins_anew_and_one_in_flight_is_not_deleted(kind: Kind, do: Do) -> None:
    total = kind.pool(token_cap=1000)
    users = total.keyed(token_cap=10, name="user")
    users["ann"].set_caps(token_cap=100)
    do.record(users["ann"], tokens=50)
    held = do.reserve(users["ann"], tokens=5)
    with pytest.raises(ValueError, match=r"\b1\b.* in flight"):
        del users["ann"]
    assert counters(users["ann"]) == (50, 5, 0, 0, 1)
    do.release(held)
    del users["ann"]
    assert "ann" not in users
    assert counters(total)[0] == 50
    assert do.snapshot(users["ann"]).token_cap == 10
    do.record(users["ann"], tokens=10)
    with pytest.raises(BudgetExceeded):
        do.record(users["ann"], tokens=1)
    with pytest.raises(KeyError, match="bob"):
        del users["bob"]
    assert counters(total)[0] == 60


def test_a_child_of_a_deleted_key_is_closed_and_can_be_made_anew(kind: Kind, do: Do) -> None:
    total = kind.pool(token_cap=1000, name="total")
    users = total.keyed(token_cap=10, name="user")
    child = users["ann"].child(token_cap=5, name="child")
    do.record(child, tokens=2)
    del users["ann"]
    with pytest.raises(PoolClosed):
        do.record(child, tokens=1)
    do.snapshot(child)  # which works on a closed pool
    fresh = users["ann"].child(token_cap=5, name="child")
    do.record(fresh, tokens=5)
    assert [counters(pool)[0] for pool in (fresh, users["ann"], total)] == [5, 5, 7]


def test_what_is_used_below_a_key_outlives_the_keys_period(kind: Kind, do: Do) -> None:
    """Keys are forgotten when that loses nothing: each new one looks at some old ones."""
    clock = Clock(0.0)
    users = kind.pool().keyed(token_cap=10, window=Window.every(DAY, clock=clock), name="user")
    below = users["ann"].child(token_cap=5, name="below")
    do.record(below, tokens=4)
    held, own = do.reserve(users["bob"], tokens=3), users["own"]
    own.set_caps(token_cap=5)
    do.record(users["idle"], tokens=1)
    clock.now = 86_400.0
    for number in range(12):
        do.record(users[f"new {number}"], tokens=1)
    assert "bob" in users
    assert counters(users["bob"]) == (0, 3, 0, 0, 1)
    assert do.snapshot(users["own"]).token_cap == 5
    assert do.snapshot(users["idle"]).tokens_used == 0
    with pytest.raises(BudgetExceeded) as refused:
        do.record(below, tokens=2)
    assert refused.value.pool == "below"
    do.commit(held)
    assert counters(users["bob"])[0] == 3


def test_keys_that_nothing_speaks_for_are_forgotten(kind: Kind, do: Do) -> None:
    """In Redis by an expiry a day after their period, by the server's own clock: here they stay a while."""
    clock = Clock(0.0)
    users = kind.pool().keyed(token_cap=10, window=Window.every(DAY, clock=clock), name="user")
    for number in range(20):
        do.record(users[f"old {number}"], tokens=1)
    clock.now = 86_400.0
    for number in range(20):
        do.record(users[f"new {number}"], tokens=1)
    assert {f"new {number}" for number in range(20)} <= set(users.keys())
    if kind.name != "redis":
        assert len(users) <= 23


def test_a_closed_key_begins_nothing(kind: Kind, do: Do) -> None:
    users = kind.pool().keyed(token_cap=10, name="user")
    users["banned"].close()
    with pytest.raises(PoolClosed):
        do.record(users["banned"], tokens=1)
    do.record(users["ann"], tokens=1)


@IN_PROCESS
def test_in_process_any_hashable_key_will_do(kind: Kind) -> None:
    users = kind.pool().keyed(token_cap=10)
    users[1].record(tokens=1)
    assert [counters(users[key])[0] for key in (1, 1.0, "1")] == [1, 1, 0]


@IN_STORES
@pytest.mark.parametrize("key", [1, None, b"ann", ("ann",), object()])
def test_in_a_store_a_key_is_text_that_other_processes_find(kind: Kind, key: Any) -> None:
    users = kind.pool().keyed(token_cap=10)
    with pytest.raises(TypeError, match="must be a str"):
        users[key]
    for text in ("", "x" * 201):
        with pytest.raises(ValueError, match="key must"):
            users[text]
    assert (len(users), key in users, users.get("x" * 201)) == (0, False, None)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_group_of_keys_is_not_copied(kind: Kind, duplicate: Any) -> None:
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        duplicate(kind.pool().keyed(name="user"))


# ---------------------------------------------------------------- looking


def test_the_tree_has_every_scope_with_the_oldest_first(kind: Kind, do: Do) -> None:
    total = kind.pool(token_cap=1000, usd_cap=10, name="total")
    project = total.child(token_cap=500, name="project")
    users = project.keyed(token_cap=50, name="key")
    user = project.child(usd_cap=1, name="user")
    do.record(users["ann"], tokens=5)
    do.record(user, tokens=7)
    joined = type(total).join(user, users["ann"], name="joined")
    held = do.reserve(joined, tokens=1)
    other = total.child(name="other")
    tree = do.snapshot(total, tree=True)
    below: Any = [("project", [("user", []), ("key:ann", [])]), ("other", [])]
    assert names(tree) == (total.name, below)
    (shown, beside) = tree.children
    numbers = [(one.tokens_used, one.tokens_reserved, one.in_flight) for one in (tree, shown, *shown.children, beside)]
    assert numbers == [(12, 1, 1), (12, 1, 1), (7, 1, 1), (5, 1, 1), (0, 0, 0)]
    assert [(one.token_cap, one.usd_cap) for one in shown.children] == [(None, 1), (50, None)]
    assert names(do.snapshot(project, tree=True)) == below[0]
    assert do.snapshot(project).children == ()
    do.release(held)
    other.close()


def test_statistics_count_reservations_children_keys_and_subscribers(kind: Kind, do: Do) -> None:
    total = kind.pool(token_cap=10, name="total")
    assert total.statistics() == (0, 0, 0, 0)
    users, child = total.keyed(name="user"), total.child(name="child")
    ann, grandchild = users["ann"], child.child(name="grandchild")
    do.release(do.reserve(ann))  # a store makes a key's scope when it is first used
    ends = [total.subscribe(lambda _event: None), total.on_threshold(0.5, lambda _event: None)]
    held = do.reserve(grandchild, tokens=10)
    assert total.statistics() == (1, 0, 2, 2)
    assert (child.statistics(), grandchild.statistics(), ann.statistics()) == ((1, 0, 1, 0), (1, 0, 0, 0), (0,) * 4)
    assert kind.stored or "1 in flight" in repr(total)  # of a store's pool it asks no store
    do.release(held)
    for end in ends:
        end()
    assert total.statistics() == (0, 0, 2, 0)
    child.close()
    assert "closed" in repr(child)


def test_detach_changes_nothing_in_the_process_that_made_the_pool(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10)
    held = do.reserve(pool, tokens=5)
    pool.detach()
    assert counters(pool) == (0, 5, 0, 0, 1)
    do.commit(held)
    assert counters(pool) == (5, 0, 0, 0, 0)
