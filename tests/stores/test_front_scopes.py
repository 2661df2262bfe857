"""Opening, children, keys, joins and closing of the pools of a store. The engine is in memory."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from typing import Any
from weakref import ref

import pytest

import front
from front import numbers, unreachable
from memory_store import MemoryBudget, MemoryPool, MemoryStore
from token_budget import BudgetExceeded, BudgetPool, PoolClosed, Window
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreLost, StoreMismatch
from token_budget.stores._family import StoreFamily
from token_budget.stores._keyed import StoreKeyedPools
from token_budget.stores._pool import StorePool

opened = front.opened


class Odd(tzinfo):
    """A time zone that no text names."""

    def __repr__(self) -> str:
        return "Odd()"  # the same in every process, as the name of a test must be

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def dst(self, moment: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, moment: datetime | None) -> str:
        return "odd"


# ---------------------------------------------------------------- opening


def test_processes_that_say_the_same_line_share_one_budget(opened: Any) -> None:
    budget = MemoryBudget()
    one, two = opened(budget, token_cap=100), opened(budget, token_cap=100, process="two")
    one.record(tokens=60)
    with pytest.raises(BudgetExceeded):
        two.record(tokens=60)
    assert numbers(two) == (60, 0, 0)


def test_what_the_code_says_holds_and_is_logged_where_it_changes_what_is_stored(opened: Any, caplog: Any) -> None:
    budget = MemoryBudget()
    opened(budget, token_cap=100, usd_cap=1, window=Window.daily(), process="one").close()
    assert not caplog.records
    pool = opened(budget, token_cap=200, usd_cap=1.5, window=Window.monthly(), process="two")
    texts = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text.partition("the store had ")[2].partition(" from now")[0] for text in texts] == [
        "token_cap 100, and has 200",
        "usd_cap 1, and has 1.5",
        "window daily UTC, and has monthly UTC",
    ]
    shown = pool.snapshot()
    assert (shown.token_cap, shown.usd_cap) == (200, 1.5)


def test_what_is_not_given_is_what_is_stored(opened: Any, caplog: Any) -> None:
    budget = MemoryBudget()
    opened(budget, token_cap=100, usd_cap=1, process="one")
    shown = opened(budget, process="two").snapshot()
    assert (shown.token_cap, shown.usd_cap) == (100, 1)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_two_living_processes_that_say_different_caps_are_told(opened: Any) -> None:
    budget = MemoryBudget()
    opened(budget, token_cap=100, process="one")
    with pytest.raises(StoreMismatch):
        opened(budget, token_cap=200, process="two")
    assert opened(budget, token_cap=200, caps="stored", process="two").snapshot().token_cap == 100
    assert opened(budget, token_cap=200, caps="mine", process="three").snapshot().token_cap == 200
    run = opened(budget, caps="mine", process="three").child(5, name="run")  # `caps` holds for what is below, too
    assert opened(budget, caps="mine", process="two").child(6, name="run").name == "run"
    assert run.snapshot().token_cap == 6


def test_a_budget_that_must_exist_is_not_made() -> None:
    budget = MemoryBudget()
    with pytest.raises(StoreLost):
        MemoryPool(budget, token_cap=100, create=False)
    assert budget.rows == {}


@pytest.mark.parametrize(
    "bad",
    [
        {"name": None},
        {"name": ""},
        {"name": 5},
        {"name": "x" * 201},
        {"token_cap": -1},
        {"token_cap": 0.5},
        {"usd_cap": "1"},
        {"window": "daily"},
        {"window": Window.daily(Odd())},
        {"caps": "yours"},
        {"caps": None},
    ],
    ids=str,
)
def test_bad_arguments_touch_no_store(bad: dict[str, Any]) -> None:
    budget = MemoryBudget()
    with pytest.raises((TypeError, ValueError)):
        MemoryPool(budget, **bad)
    assert budget.rows == {}


def test_arguments_are_checked_again_by_the_opening_itself_which_gives_its_handle_back() -> None:
    budget = MemoryBudget()
    family = StoreFamily.of("memory:checked#total", lambda: MemoryStore("total", budget, "memory:checked#total"))
    pool: Any = StorePool.__new__(StorePool)
    with pytest.raises(ValueError, match="caps must be"):
        pool._open(family, "total", 1, None, None, "yours")
    assert family.handles == 0
    with pytest.raises(TypeError, match="open a pool of a store with"):
        StorePool()


def test_an_opening_that_fails_lets_the_store_go() -> None:
    budget = MemoryBudget()
    families: list[Any] = []
    of = StoreFamily.of

    class Noted(MemoryPool):
        def _open(self, family: Any, *arguments: Any, **options: Any) -> None:
            families.append(family)
            super()._open(family, *arguments, **options)

    with pytest.raises(StoreLost):
        Noted(budget, create=False)
    assert families[0].store.went
    assert of == StoreFamily.of


def test_pools_of_one_root_in_one_process_share_its_engine(opened: Any) -> None:
    budget = MemoryBudget()
    one, two = opened(budget, token_cap=100), opened(budget)
    assert one._family is two._family
    one.close()
    two.record(tokens=10)
    assert not two.engine.went
    two.close()
    two.close()
    assert two.engine.went


# ---------------------------------------------------------------- children


def test_a_child_is_the_same_for_all_who_ask(opened: Any) -> None:
    budget = MemoryBudget()
    here, there = opened(budget, token_cap=100), opened(budget, process="two")
    here.child(50, name="run").record(tokens=30)
    again = there.child(name="run")
    with pytest.raises(BudgetExceeded) as error:
        again.record(tokens=30)
    assert error.value.pool == "run"
    assert (numbers(again), numbers(there)) == ((30, 0, 0), (30, 0, 0))
    deep = again.child(name="run").child(name="a/b:c%")
    deep.record(tokens=1)
    assert (deep.name, numbers(here)) == ("a/b:c%", (31, 0, 0))


def test_a_child_has_a_name(opened: Any) -> None:
    pool = opened()
    with pytest.raises(ValueError, match="a child of a store's pool needs a name: all processes find it in the store"):
        pool.child(5)
    with pytest.raises(TypeError):
        pool.child(name=5)


def test_below_a_closed_pool_nothing_is_made(opened: Any) -> None:
    budget = MemoryBudget()
    here, there = opened(budget), opened(budget, process="two")
    mine, theirs = here.child(name="run"), there.child(name="run")
    with mine:
        pass
    assert mine.closed
    for pool in (mine, theirs):
        with pytest.raises(PoolClosed):
            pool.child(name="below")
        with pytest.raises(PoolClosed):
            pool.keyed(name="below")
    with pytest.raises(PoolClosed):
        mine.set_caps(token_cap=5)
    closed = there.child(name="run")  # it is found, and says that it is closed
    assert closed.closed
    with pytest.raises(PoolClosed):
        closed.record(tokens=1)


def test_the_window_of_a_store_is_one_that_text_can_name(opened: Any) -> None:
    pool, odd = opened(), Window.daily(Odd())
    users = pool.keyed(name="user")
    calls: list[Callable[[], object]] = [
        lambda: pool.set_caps(window=odd),
        lambda: pool.child(name="run", window=odd),
        lambda: pool.keyed(window=odd),
        lambda: users.set_caps(window=odd),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="known to this program alone"):
            call()


# ---------------------------------------------------------------- snapshots and statistics


def test_a_snapshot_of_a_tree_has_all_below_as_of_one_moment(opened: Any) -> None:
    pool = opened(token_cap=100, name="total")
    run = pool.child(name="run")
    users = run.keyed(token_cap=5, name="user")
    users["ann"].record(tokens=1)
    pool.child(name="other").record(tokens=2)
    users["bob"].record(tokens=3)
    shown = pool.snapshot(tree=True)
    assert [child.name for child in shown.children] == ["run", "other"]
    assert [(child.name, child.tokens_used) for child in shown.children[0].children] == [
        ("user:ann", 1),
        ("user:bob", 3),
    ]
    assert pool.snapshot().children == ()
    assert run.snapshot(tree=True) == shown.children[0]
    deepest = pool
    for level in range(300):
        deepest = deepest.child(name=str(level))
    assert len(str(pool.snapshot(tree=True).to_dict())) > 300


def test_statistics_count_what_the_store_has_and_who_listens_here(opened: Any) -> None:
    budget = MemoryBudget()
    here, there = opened(budget, token_cap=100), opened(budget, process="two")
    run = here.child(name="run")
    here.keyed(name="user")["ann"].record()
    run.child(name="below")
    held = there.child(name="run").reserve(tokens=1)
    key = there.engine.new_key()
    there.engine.reserve(there._chain, key, 100, 0, wait=True)
    here.subscribe(lambda event: None)
    here.on_threshold(0.5, lambda event: None)
    assert here.statistics() == (1, 1, 2, 2)
    assert run.statistics() == (1, 0, 1, 0)
    joined = MemoryPool.join(run)
    joined.subscribe(lambda event: None)
    mine = joined.reserve(tokens=2) if there.engine.leave(there._chain, key) else None
    assert joined.statistics() == (1, 0, 0, 1)
    held.release()
    assert mine is not None
    mine.release()


# ---------------------------------------------------------------- keys


def test_keys_are_the_same_for_all_processes(opened: Any) -> None:
    budget = MemoryBudget()
    here, there = opened(budget, token_cap=100), opened(budget, process="two")
    mine, theirs = here.keyed(10, name="user"), there.keyed(name="user")
    assert "ann" not in theirs
    assert theirs.get("ann") is None
    mine["ann"].record(tokens=8)
    with pytest.raises(BudgetExceeded) as error:
        theirs["ann"].record(tokens=8)
    assert error.value.pool == "user:ann"
    theirs["bob"].record(tokens=1)
    assert "ann" in theirs
    assert theirs.get("ann") is theirs["ann"]
    assert (mine.keys(), list(mine), len(mine), bool(mine)) == (["ann", "bob"], ["ann", "bob"], 2, True)
    assert [(key, pool.name) for key, pool in mine.items()] == [("ann", "user:ann"), ("bob", "user:bob")]
    assert [numbers(pool) for pool in mine.values()] == [(8, 0, 0), (1, 0, 0)]
    assert repr(mine).startswith("<StoreKeyedPools 'user' of <MemoryPool 'total' in memory:")


def test_looking_a_key_up_asks_no_store(opened: Any) -> None:
    users = opened().keyed(name="user")
    with unreachable(users._parent):
        pool = users["ann"]
        assert users["ann"] is pool
        assert pool.name == "user:ann"
        assert not pool.closed


def test_a_key_is_text(opened: Any) -> None:
    users = opened().keyed()
    bad: Any
    for bad in (1, None, b"ann", ("ann",)):
        with pytest.raises(TypeError, match="must be a str"):
            users[bad]
        assert bad not in users
        with pytest.raises(KeyError):
            del users[bad]
    for bad in ("", "x" * 201):
        with pytest.raises(ValueError, match="key"):
            users[bad]

    class Text(str):
        __slots__ = ()

    assert users[Text("ann")] is users["ann"]
    assert users["ann"].name == "ann"


def test_groups_of_keys_and_children_do_not_meet(opened: Any) -> None:
    pool = opened()
    made = [pool.keyed()["ann"], pool.keyed(name="user")["ann"], pool.child(name="ann"), pool.child(name="user:ann")]
    for number, one in enumerate(made):
        one.record(tokens=number + 1)
    assert [one.snapshot().tokens_used for one in made] == [1, 2, 3, 4]


def test_caps_of_all_keys_leave_those_of_one_alone(opened: Any) -> None:
    users = opened().keyed(10, name="user")
    users["ann"].set_caps(token_cap=99)
    users["bob"].record()
    users.set_caps(token_cap=20, usd_cap=1, window=Window.daily())
    shown = [users[key].snapshot() for key in ("ann", "bob", "new")]
    assert [one.token_cap for one in shown] == [99, 20, 20]
    assert [one.usd_cap for one in shown] == [1, 1, 1]
    for bad in ({"token_cap": -1}, {"usd_cap": "1"}, {"window": "daily"}):
        with pytest.raises((TypeError, ValueError)):
            users.set_caps(**bad)


def test_a_key_that_is_deleted_begins_anew(opened: Any) -> None:
    users = opened().keyed(10, name="user")
    reservation = users["ann"].reserve(tokens=5)
    with pytest.raises(ValueError, match="in flight"):
        del users["ann"]
    reservation.commit()
    del users["ann"]
    assert "ann" not in users
    with pytest.raises(KeyError):
        del users["ann"]
    assert numbers(users["ann"]) == (0, 0, 0)


def test_who_listens_to_all_keys_hears_of_each(opened: Any) -> None:
    users = opened().keyed(10, name="user")
    heard: list[Any] = []
    ends = [users.subscribe(lambda event: heard.append((event.kind, event.pool)))]
    ends.append(users.on_threshold(0.5, lambda event: heard.append((event.kind, event.pool))))
    users["ann"].record(tokens=5)
    assert heard == [("record", "user:ann"), ("threshold", "user:ann")]
    for end in ends:
        end()
    users["bob"].record(tokens=5)
    assert len(heard) == 2


def test_a_keys_pool_is_forgotten_with_its_last_holder(opened: Any) -> None:
    pool = opened()
    users = pool.keyed(name="user")
    ann = users["ann"]
    assert ann._parents == (pool,)
    seen = ref(ann)
    del ann
    gc.collect()
    assert seen() is None


# ---------------------------------------------------------------- joins


def test_a_join_counts_against_each_scope_once_and_shows_its_own(opened: Any) -> None:
    pool = opened(token_cap=100, name="total")
    user, project = pool.child(50, name="ann"), pool.child(40, name="atlas").child(name="run")
    both, other = MemoryPool.join(user, project, name="both"), MemoryPool.join(project, user)
    held = both.reserve(tokens=10, usd=0.5)
    both.record(tokens=5)
    assert numbers(both) == (5, 10, 1)
    assert both.snapshot().usd_reserved == 0.5
    assert [numbers(one) for one in (user, project, pool)] == [(5, 10, 1)] * 3
    held.commit(tokens=7)
    assert numbers(both) == (12, 0, 0)
    assert numbers(other) == (0, 0, 0)
    assert (both.name, other.name) == ("both", None)
    assert other.snapshot().name is None
    both.reset()
    assert (numbers(both), numbers(user)) == ((0, 0, 0), (12, 0, 0))
    with pytest.raises(BudgetExceeded) as error:
        both.record(tokens=30)
    assert error.value.pool == "atlas"


def test_a_join_has_nothing_of_its_own_in_the_store(opened: Any) -> None:
    pool = opened()
    both = MemoryPool.join(pool.child(name="ann"), pool.child(name="atlas"), name="both")
    for call in (
        lambda: both.child(name="run"),
        lambda: both.keyed(name="run"),
        lambda: both.set_caps(token_cap=5),
    ):
        with pytest.raises(ValueError, match="is not for a join: it has no scope of its own in the store"):
            call()
    assert [child.name for child in pool.snapshot(tree=True).children] == ["ann", "atlas"]
    assert both.snapshot(tree=True) == both.snapshot()


def test_what_becomes_of_claims_shows_in_their_join(opened: Any) -> None:
    pool = opened(token_cap=100)
    both = MemoryPool.join(pool.child(name="ann"), pool.child(name="atlas"))
    both.reserve(tokens=10).release()
    both.reserve(tokens=10).hand_over()
    assert numbers(both) == (0, 0, 0)
    settled, tried = both.reserve(tokens=10), both.reserve(tokens=20)
    pool.settle(settled.id, tokens=3)
    settled.release()
    with unreachable(pool, moment="after"), pytest.raises(BudgetUnavailable):
        tried.commit(tokens=6)
    assert numbers(both) == (0, 20, 1)
    tried.release()
    assert numbers(both) == (6, 0, 0)


def test_a_join_tells_those_who_listen_to_it(opened: Any) -> None:
    pool = opened(token_cap=100)
    both = MemoryPool.join(pool.child(name="ann"), name="both")
    heard: list[Any] = []
    both.subscribe(
        lambda event: heard.append((event.kind, event.pool, event.snapshot.tokens_used, event.snapshot.name))
    )
    both.reserve(tokens=10).commit()
    with pytest.raises(BudgetExceeded):
        both.record(tokens=100)
    both.reset()
    both.close()
    with pytest.raises(PoolClosed, match="'both' is closed"):
        both.record(tokens=1)
    kinds = [("reserve", 0), ("commit", 10), ("refusal", 10), ("reset", 0), ("refusal", 0)]
    assert heard == [(kind, "both", used, "both") for kind, used in kinds]
    assert both.closed
    assert not pool.closed


def test_join_takes_open_pools_of_one_root(opened: Any) -> None:
    one, two = opened(), opened(name="other")
    with pytest.raises(ValueError, match="at least one"):
        MemoryPool.join()
    with pytest.raises(ValueError, match="of one root"):
        MemoryPool.join(one, two)
    with pytest.raises(TypeError, match=r"not list: write join\(\*pools\)"):
        MemoryPool.join([one])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not BudgetPool"):
        MemoryPool.join(one, BudgetPool())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name"):
        MemoryPool.join(one, name=5)  # type: ignore[arg-type]
    closed = one.child(name="run")
    closed.close()
    with pytest.raises(PoolClosed, match="'run'"):
        MemoryPool.join(one, closed)
    to_record = MemoryPool._to_record(one, closed)
    to_record.record(tokens=1, force=True)
    assert numbers(closed) == (1, 0, 0)


# ---------------------------------------------------------------- closing, and pools as objects


def test_closing_the_pool_that_was_opened_ends_it_and_all_below_in_this_process_alone(opened: Any) -> None:
    budget = MemoryBudget()
    here, again, there = opened(budget, token_cap=100), opened(budget), opened(budget, process="two")
    run, ann = here.child(name="run"), here.keyed(name="user")["ann"]
    both = MemoryPool.join(run, ann)
    users = here.keyed(name="user")
    held = run.reserve(tokens=10)
    with here:
        pass
    for pool in (here, run, ann, both):
        assert pool.closed
        for method in (pool.record, pool.reserve):
            with pytest.raises(PoolClosed, match="'total' was closed in this process: open it again"):
                method(tokens=1)
    for call in (lambda: here.child(name="x"), here.keyed, lambda: MemoryPool.join(here), lambda: here.set_caps()):
        with pytest.raises(PoolClosed):
            call()
    with pytest.raises(PoolClosed):
        users.set_caps()
    held.commit(tokens=9)
    here.record(tokens=1, force=True)  # what has happened is counted
    assert not again.closed
    assert not there.closed
    again.child(name="run").record(tokens=1)
    assert numbers(there) == (11, 0, 0)


def test_closing_a_child_or_a_key_ends_it_for_all(opened: Any) -> None:
    budget = MemoryBudget()
    here, there = opened(budget), opened(budget, process="two")
    for mine, theirs in (
        (here.child(name="run"), there.child(name="run")),
        (here.keyed(name="user")["ann"], there.keyed(name="user")["ann"]),
    ):
        mine.record(tokens=1)
        mine.close()
        mine.close()
        with pytest.raises(PoolClosed):
            theirs.record(tokens=1)
    there.record(tokens=1)


def test_a_pool_is_shown_without_asking_the_store_and_never_copied(opened: Any) -> None:
    pool = opened(name="nightly")
    with unreachable(pool):
        assert repr(pool) == f"<MemoryPool 'nightly' in {pool._family.location}>"
    joined = MemoryPool.join(pool)
    joined.close()
    assert repr(joined) == f"<StorePool in {pool._family.location} | closed>"
    for thing in (pool, pool.keyed()):
        with pytest.raises(TypeError, match="by the same line"):
            pickle.dumps(thing)
        with pytest.raises(TypeError, match="cannot be copied"):
            copy.copy(thing)
    assert repr(StorePool.__new__(StorePool)) == "<StorePool, half made>"
    assert repr(StoreKeyedPools.__new__(StoreKeyedPools)) == "<StoreKeyedPools, half made>"
    pool.detach()
    pool.record(tokens=1)


def test_a_pool_keeps_those_above_it_alive(opened: Any) -> None:
    pool = opened()
    run = pool.child(name="run")
    joined = MemoryPool.join(run, pool)
    assert (pool._parents, run._parents, joined._parents) == ((), (pool,), (run, pool))
