"""The family of a store: one for each location and process, its scopes, forks, and the end of the interpreter."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from memory_store import MemoryBudget, MemoryPool, MemoryStore
from pools_of_all_kinds import LONG, counters, in_a_thread
from support import run_program
from test_forks import fork_in_c, in_child
from token_budget import ReservationClosed
from token_budget.contract import BudgetUnavailable
from token_budget.stores import _family
from token_budget.stores._errors import StoreLost
from token_budget.stores._family import StoreFamily
from token_budget.stores._store import Group, News

forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
beside_threads = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
# The fork, and whether Python can start threads in the child.
FORKS = [pytest.param(lambda: os.fork(), True, id="os.fork"), pytest.param(fork_in_c, False, id="in C")]


def family_of(store: MemoryStore, **options: Any) -> StoreFamily:
    return StoreFamily.of(store.location, lambda: store, **options)


# ---------------------------------------------------------------- one for each location


def test_who_asks_twice_for_a_location_gets_one_family_and_the_last_to_let_go_lets_the_store_go() -> None:
    store = MemoryStore("total")
    family = family_of(store)
    assert StoreFamily.of(store.location, lambda: pytest.fail("there is a store")) is family
    family.let_go()
    assert not store.went
    family.let_go()
    assert store.went
    other = MemoryStore("total", location=store.location)
    again = family_of(other)
    assert again is not family
    assert again.store is other
    again.let_go()


def test_locations_have_families_of_their_own() -> None:
    families = [family_of(MemoryStore("total")) for _ in range(2)]
    assert families[0] is not families[1]
    assert families[0].root is not families[1].root
    for family in families:
        family.let_go()


def test_a_second_opening_with_other_options_is_refused_with_both() -> None:
    store = MemoryStore("total")
    family = family_of(store, timeout=5, durable=True)
    with pytest.raises(ValueError, match=r"open with timeout=5, not timeout=1: say the same, or close that pool first"):
        family_of(store, timeout=1, durable=True)
    assert family_of(store, durable=True, timeout=5) is family
    family.let_go()
    assert not store.went
    family.let_go()
    assert store.went


def test_a_store_that_cannot_be_made_leaves_no_family() -> None:
    def fail() -> MemoryStore:
        raise BudgetUnavailable("no server")

    store = MemoryStore("total")
    with pytest.raises(BudgetUnavailable):
        StoreFamily.of(store.location, fail)
    family = family_of(store)
    assert family.store is store
    family.let_go()


def test_of_two_stores_that_are_made_for_a_location_at_once_the_second_is_let_go() -> None:
    inner, outer = MemoryStore("total", location="memory:one"), MemoryStore("total", location="memory:one")

    def make() -> MemoryStore:
        family_of(inner)  # as a finaliser does that opens the pool while another opening is under way
        return outer

    family = StoreFamily.of("memory:one", make)
    assert family.store is inner
    assert outer.went
    family.let_go()
    assert not inner.went
    family.let_go()


def test_threads_that_open_one_location_together_share_one_family() -> None:
    budget, start = MemoryBudget(), threading.Barrier(8)

    def open_it() -> StoreFamily:
        start.wait(LONG)
        return StoreFamily.of("memory:raced", lambda: MemoryStore("total", budget))

    families = {call.result() for call in [in_a_thread(open_it) for _ in range(8)]}
    assert len(families) == 1
    family = families.pop()
    for _ in range(8):
        family.let_go()
    assert isinstance(family.store, MemoryStore)
    assert family.store.went


def test_letting_go_without_an_answer_of_the_store_is_logged_and_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    class Away(MemoryStore):
        def let_go(self) -> None:
            raise BudgetUnavailable("the server is away")

    family = family_of(Away("total"))
    family.let_go()
    assert "was let go without an answer of the store: the server is away" in caplog.text


# ---------------------------------------------------------------- scopes


def test_a_path_has_one_scope_and_one_group() -> None:
    family = family_of(MemoryStore("total"))
    atlas = family.scope("atlas", family.root)
    assert family.scope("atlas", family.root) is atlas
    assert (atlas.path, atlas.name, atlas.above) == ("total/atlas", "atlas", family.root)
    users = family.group(atlas, "user")
    assert family.group(atlas, "user") is users
    assert isinstance(users, Group)
    ann = family.key(users, "ann")
    assert family.key(users, "ann") is ann
    assert (ann.path, ann.name, ann.above, ann.group) == ("total/atlas/user:ann", "user:ann", atlas, users)
    nameless = family.key(family.group(atlas, None), "a/b")
    assert (nameless.path, nameless.name) == ("total/atlas/:a%2Fb", "a/b")
    assert family.known("total/atlas/user:ann") is ann
    assert family.known("total/atlas/user:bob") is family.key(users, "bob")
    assert family.known("total/atlas/project:bob") is None
    assert family.known("total/a:b/c") is None
    family.let_go()


def test_a_scope_that_nobody_uses_is_forgotten_unless_somebody_listens_to_it() -> None:
    pool = MemoryPool()
    users = pool.keyed(name="user")
    family = pool._family
    ann = users["ann"]
    unsubscribe = ann.subscribe(lambda event: None)
    users["bob"].record(tokens=1)
    del ann
    gc.collect()
    assert "total/user:ann" in family._scopes
    assert "total/user:bob" not in family._scopes
    unsubscribe()
    del unsubscribe  # it keeps the scope, not the pool
    gc.collect()
    assert "total/user:ann" not in family._scopes
    pool.close()


# ---------------------------------------------------------------- steps


def test_a_step_passes_on_the_news_or_leaves_them_to_the_caller() -> None:
    pool = MemoryPool()
    heard: list[str] = []
    pool.subscribe(lambda event: heard.append(event.kind))
    family, store = pool._family, pool.engine
    store.news.append(News("roll-over", "total"))
    family.quietly(store.read, (family.root,))
    assert heard == []
    family.ask(store.read, (family.root,))
    assert heard == ["roll-over"]
    pool.close()


def test_after_a_step_that_the_store_did_not_answer_the_worker_tends_it() -> None:
    pool = MemoryPool()
    store, tended = pool.engine, threading.Event()
    store.tend = lambda: tended.set() or float("inf")  # type: ignore[method-assign, func-returns-value]

    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(StoreLost):
        pool._family.ask(fail, StoreLost("it is another"))
    with pytest.raises(BudgetUnavailable):
        pool._family.ask(fail, BudgetUnavailable("no server"))
    assert tended.wait(LONG)
    pool.close()


# ---------------------------------------------------------------- forks


@forking
@beside_threads
@pytest.mark.parametrize(("fork", "threads"), FORKS)
def test_a_forked_child_begins_with_free_locks_and_no_threads_whatever_the_parent_was_doing(
    fork: Any, *, threads: bool
) -> None:
    """The engine in memory is copied by a fork, so the child's own numbers show what it did."""
    pool = MemoryPool(token_cap=10)
    family = pool._family
    held = pool.reserve(tokens=4)
    inside, let_go = threading.Event(), threading.Event()

    def hold_all_locks() -> None:
        with _family._opening, family.lock, family.line._places.lock:
            inside.set()
            assert let_go.wait(LONG)

    call, waiting = in_a_thread(hold_all_locks), in_a_thread(lambda: family.hand.finish(LONG))
    assert inside.wait(LONG)
    family.hand.drop(let_go.wait)  # the worker is in the middle of a job, too
    epoch = family.epoch

    def child() -> None:
        assert family.here() == epoch + 1
        assert held.completed
        with pytest.raises(ReservationClosed, match="fork"):
            held.commit()
        assert family.line.count(family.root) == 0
        assert not family.hand.begun
        reservation = pool.reserve(tokens=5, timeout=0.5)
        if threads:
            asyncio.run(reservation.acommit(tokens=2))
        else:
            reservation.commit(tokens=2)
        pool.subscribe(lambda event: None)()
        assert MemoryPool(pool.budget, process="another").snapshot().tokens_used == 2
        family.let_go()

    try:
        in_child(child, fork)
    finally:
        let_go.set()
    call.result()
    waiting.result()
    assert family.here() == epoch
    held.commit(tokens=1)
    assert counters(pool)[:2] == (1, 0)
    pool.close()


@forking
def test_a_fork_that_the_child_has_noticed_is_noticed_once() -> None:
    pool = MemoryPool()
    family = pool._family

    def child() -> None:
        epoch = family.here()
        assert epoch == 1
        _family.notice_fork()
        pool.record(tokens=1)
        assert family.here() == epoch

    in_child(child)
    assert family.here() == 0
    pool.close()


@forking
def test_a_family_that_was_let_go_notices_a_fork_too() -> None:
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=4)
    pool.close()

    def child() -> None:
        with pytest.raises(ReservationClosed):
            held.commit()

    in_child(child)
    held.release()


# ---------------------------------------------------------------- the end of the interpreter

PROGRAM = """
import sys, threading
sys.path[:0] = {paths!r}
from memory_store import MemoryPool
pool = MemoryPool(token_cap=10)
pool.engine.hook = lambda step, moment: print(step, moment, flush=True)
"""
PATHS = [str(folder) for folder in Path(__file__).parents[:2]]


def test_what_was_dropped_is_given_back_before_the_interpreter_ends() -> None:
    program = PROGRAM.format(paths=PATHS) + "held = pool.reserve(tokens=4)\ndel held\n"
    assert "cancel after" in run_program(program, "-W", "ignore").stdout.splitlines()


def test_the_interpreter_ends_although_the_store_hangs_and_somebody_waits() -> None:
    program = (
        PROGRAM.format(paths=PATHS)
        + """
held = pool.reserve(tokens=10)
threading.Thread(target=pool.reserve, kwargs={"tokens": 1, "timeout": None}, daemon=True).start()
while not pool._family.line.count(pool._family.root):
    pass
pool.engine.hook = lambda step, moment: threading.Event().wait()
del held
print("the end", flush=True)
"""
    )
    ended = run_program(program, "-W", "ignore")
    assert "the end" in ended.stdout
    assert "had no time for all that was dropped" in ended.stderr
