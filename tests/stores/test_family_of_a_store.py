"""The family of a store: one for each location and process, its scopes, forks, and the end of the interpreter."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from memory_store import MemoryBudget, MemoryPool, MemoryStore
from pools_of_all_kinds import LONG, counters, in_a_thread, until
from support import run_program
from test_forks import fork_in_c, in_child
from token_budget import ReservationClosed
from token_budget.contract import BudgetUnavailable
from token_budget.stores import _family
from token_budget.stores._errors import StoreLost
from token_budget.stores._family import StoreFamily, Turn
from token_budget.stores._outage import Allowing
from token_budget.stores._store import Group, News

forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
beside_threads = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
# The fork, and whether Python can start threads in the child.
FORKS = [pytest.param(lambda: os.fork(), True, id="os.fork"), pytest.param(fork_in_c, False, id="in C")]


def family_of(store: MemoryStore, **options: Any) -> StoreFamily:
    return StoreFamily.of(store.location, lambda: store, **options)


def as_in_a_child(monkeypatch: pytest.MonkeyPatch, family: StoreFamily) -> None:
    """Let this process look like a child that a server in C has forked, which has this family alone.

    So what a child does first runs here, where it is measured and its state can be seen. No thread of the family runs.
    """
    for name in ("_opening", "_turns"):  # they are replaced
        monkeypatch.setattr(_family, name, getattr(_family, name))
    monkeypatch.setattr(_family, "_alive", WeakSet([family]))
    _family.HERE[0] = 0


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


def test_a_family_that_cannot_be_made_lets_its_store_go(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    store = MemoryStore("total")
    with monkeypatch.context() as patched:
        patched.setattr(_family, "Hand", interrupted)
        with pytest.raises(KeyboardInterrupt):
            family_of(store)
    assert store.went
    other = MemoryStore("total", location=store.location)
    family = family_of(other)
    assert family.store is other
    family.let_go()


class InTurn:
    """A thread that has the turn of a location, and does something in it when the last handle is given back."""

    def __init__(self, family: StoreFamily, then: Any) -> None:
        self.family, self.then, self.inside = family, then, threading.Event()
        self.call = in_a_thread(lambda: Turn.of(family.location).within(LONG, self.work))
        assert self.inside.wait(LONG)

    def work(self) -> None:
        self.inside.set()
        until(lambda: self.family.handles == 0)
        self.then()


def test_a_store_is_let_go_although_another_thread_keeps_the_turn() -> None:
    store, go_on = MemoryStore("total"), threading.Event()
    family = family_of(store, timeout=0.01)
    keeping = InTurn(family, lambda: go_on.wait(LONG))
    family.let_go()
    assert store.went
    go_on.set()
    keeping.call.result()


def test_a_location_that_is_opened_again_before_the_last_handle_has_had_its_turn_is_not_let_go() -> None:
    store = MemoryStore("total")
    family = family_of(store, timeout=LONG)
    opening = InTurn(family, lambda: family_of(store, timeout=LONG))
    family.let_go()
    opening.call.result()
    assert not store.went
    assert family_of(store, timeout=LONG) is family
    family.let_go()
    family.let_go()
    assert store.went


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


@pytest.mark.parametrize("entry", ["of", "here", "ask"])
def test_whatever_is_called_first_in_a_child_begins_anew_before_it_does_anything(
    monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    pool = MemoryPool(token_cap=10)
    family, store = pool._family, pool.engine
    held = pool.reserve(tokens=4)
    store.news.append(News("roll-over", "total"))  # the parent tells it
    heard: list[str] = []
    pool.subscribe(lambda event: heard.append(event.kind))
    before = [_family._opening, _family._turns, family.lock, family.hand._queue, family.line._places, store.owner]
    as_in_a_child(monkeypatch, family)
    epochs: list[int] = []
    calls: dict[str, Any] = {
        "of": lambda: StoreFamily.of(family.location, lambda: pytest.fail("there is a store")).let_go(),
        "here": lambda: epochs.append(family.here()),
        "ask": lambda: family.ask(lambda: epochs.append(family.epoch)),
    }
    calls[entry]()
    assert epochs == ([] if entry == "of" else [1])
    after = [_family._opening, _family._turns, family.lock, family.hand._queue, family.line._places, store.owner]
    assert not any(one is other for one, other in zip(before, after, strict=True))
    assert (family.epoch, list(store.news), heard) == (1, [], [])
    with pytest.raises(ReservationClosed, match="fork"):
        held.commit()
    _family.notice_fork()
    assert family.here() == 1  # it was noticed
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


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Do what is done at the end of the interpreter, for one family."""

    def ending(family: StoreFamily) -> None:
        monkeypatch.setattr(_family, "_families", {family.location: family})
        _family._at_exit()
        monkeypatch.undo()

    return ending


def test_at_the_end_the_worker_gives_back_what_was_dropped_and_no_more(
    ending: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=4)
    with pytest.warns(ResourceWarning):
        del held
    ending(pool._family)
    assert not pool.budget.held
    assert not pool.engine.went  # a file knows by its locks that this process has ended
    assert not caplog.records
    pool.close()


def test_at_the_end_a_worker_that_hangs_is_waited_for_a_moment_and_the_log_says_what_becomes_of_it(
    ending: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_family, "_EXITING", 0.01)
    pool = MemoryPool(token_cap=10)
    go_on = threading.Event()
    pool._family.hand.drop(go_on.wait)
    began = time.monotonic()
    ending(pool._family)
    assert time.monotonic() - began >= 0.01
    assert "the worker had no time for all that was dropped: it is charged" in caplog.text
    go_on.set()
    pool.close()


def test_at_the_end_a_holder_that_lives_by_a_lease_lets_go_of_its_store(ending: Any) -> None:
    class Leased(MemoryStore):
        leased = True

    store = Leased("total")
    family = family_of(store)
    ending(family)
    assert store.went
    family.let_go()


@pytest.mark.parametrize("back", [True, False])
def test_at_the_end_what_passed_in_an_outage_is_recorded_or_the_log_says_that_it_is_lost(
    ending: Any, caplog: pytest.LogCaptureFixture, *, back: bool
) -> None:
    store = MemoryStore("total")
    allowing = Allowing(store)
    family = StoreFamily.of(store.location, lambda: allowing)
    family.ask(allowing.open, family.root, 10, None, None, "code")
    allowing.worried = lambda: None  # the worker is not due

    def away(step: str, moment: str) -> None:
        raise BudgetUnavailable("no server")

    store.hook = away
    allowing.record((family.root,), 3, 0)
    if back:
        store.hook = lambda step, moment: None
    ending(family)
    assert store.budget.rows["total"].used[0] == (3 if back else 0)
    assert ("answers again" in caplog.text) == back
    assert ("is not recorded: tokens 3" in caplog.text) != back
    store.hook = lambda step, moment: None
    family.let_go()


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
