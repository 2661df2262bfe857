"""The mends of what earlier attacks on the stores had found, attacked in turn: how they work together."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import pytest

from front import LONG, numbers, until
from pools_of_all_kinds import in_a_thread
from redis_server import new_name
from redis_stores import Budget, the_server
from sqlite_files import end_of, path_in_folder, started
from test_front_attacked import AWAY, Allowed
from token_budget import BudgetEvent, PoolClosed, Window
from token_budget._arguments import UNCHANGED
from token_budget.contract import BudgetUnavailable
from token_budget.stores import RedisBudgetPool, SQLiteBudgetPool, _outage
from token_budget.stores._store import DONE, GRANTED, REPEAT, UNKNOWN
from token_budget.stores.redis._process import Claim
from token_budget.stores.sqlite._connection import Connection, Unsynced, _registry
from token_budget.stores.sqlite._step import Step

path = pytest.fixture(path_in_folder)


@pytest.fixture
def pool() -> Iterator[Allowed]:
    pool = Allowed()
    pool.allowing.worried = lambda: None  # the tests ask whether it is back, and no worker
    yield pool
    pool.failing.clear()
    pool.close()


@pytest.fixture
def budget() -> Iterator[Budget]:
    budget = Budget()
    yield budget
    budget.close()


# ---------------------------------------------------------------- on_unavailable="allow"


def test_what_the_store_refuses_to_record_after_an_outage_holds_up_nothing_else(pool: Allowed) -> None:
    gone, other = pool.child(name="gone"), pool.child(name="other")
    held = pool.reserve(tokens=5)
    pool.failing["record"] = pool.failing["commit"] = pool.failing["release"] = AWAY
    other.record(tokens=10)
    gone.record(tokens=20)
    held.commit(tokens=4)
    pool.failing.clear()
    del pool.budget.rows["total/gone"]
    assert pool.allowing.catch_up() == _outage._REFUSED
    assert (pool.used(), pool.budget.rows["total/other"].used[0]) == (14, 10)
    assert list(pool.allowing._spent) == [gone._chain]  # it is tried again, in case that it comes back
    assert pool.allowing._doing == []


def test_a_store_that_refuses_what_passed_is_tended_all_the_same(
    pool: Allowed, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = pool.child(name="gone")
    pool.failing["record"] = AWAY
    gone.record(tokens=20)
    pool.failing.clear()
    del pool.budget.rows["total/gone"]
    monkeypatch.setattr(pool.store, "tend", lambda: 7.0)  # as a lease is renewed there
    assert pool.allowing.catch_up() == 7.0


def test_what_is_refused_is_tried_again_though_the_log_that_tells_of_it_fails(
    pool: Allowed, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(record: logging.LogRecord) -> None:
        if "does not record" in record.msg:
            raise OSError("the disk of the log is full")

    gone = pool.child(name="gone")
    pool.failing["record"] = AWAY
    gone.record(tokens=20)
    pool.failing.clear()
    row = pool.budget.rows.pop("total/gone")
    with monkeypatch.context() as patch:
        patch.setattr(caplog.handler, "emit", fails)
        with pytest.raises(OSError, match="full"):
            pool.allowing.catch_up()
    assert not pool.allowing.passing
    pool.budget.rows["total/gone"] = row
    pool.allowing.catch_up()
    assert pool.used() == 20


def test_a_call_whose_ticket_cannot_be_given_up_passes_though_it_would_wait_in_vain(pool: Allowed) -> None:
    held = pool.reserve(tokens=100)
    waits = in_a_thread(lambda: pool.reserve(tokens=10, timeout=LONG))
    until(lambda: pool._family.line.count(pool._family.root) == 1)
    me = threading.get_ident()

    def hook(step: str, moment: str) -> None:
        if step == "reserve" and moment == "before" and threading.get_ident() == me:
            pool.budget.rows["total"].used[0] = 60  # by another process, as this one is about to take a ticket
        if step == "leave":
            raise AWAY

    pool.store.hook = hook
    passed = pool.reserve(tokens=50, timeout=LONG)
    assert pool.allowing.passing
    passed.commit(tokens=45)
    pool.store.hook = pool._hook
    held.release()
    waits.result().release()
    pool.allowing.catch_up()
    assert pool.used() == 105
    assert pool.budget.tickets == {}


# ---------------------------------------------------------------- forks


class Watched:
    """A lock that says when the main thread is about to take it, and when it has it."""

    def __init__(self, asks: Callable[[], object], has: Callable[[], object] = lambda: None) -> None:
        self._lock = threading.Lock()
        self._asks, self._has = asks, has
        self.release, self.locked = self._lock.release, self._lock.locked

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT002 - as the real one
        mine = threading.current_thread() is threading.main_thread()
        if mine:
            self._asks()
        if not self._lock.acquire(blocking, timeout):
            return False
        if mine:
            self._has()
        return True


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_waits_for_the_first_transaction_of_a_file_that_is_opened_as_it_begins(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forks, inside, goes_on = threading.Event(), threading.Event(), threading.Event()
    gate = Watched(forks.set, lambda: inside.wait(LONG))
    monkeypatch.setattr(_registry, "_gate", gate)
    made: list[Connection] = []

    def opens() -> None:
        connection = Connection.of(path, timeout=LONG)
        made.append(connection)
        connection.mutex = Watched(goes_on.set)
        connection.run(LONG, False, works)

    def works(_execute: Any) -> None:
        inside.set()
        assert goes_on.wait(LONG)

    real = Connection._new

    def new(*arguments: Any, **settings: Any) -> Connection:
        assert forks.wait(LONG)  # the fork waits for this opening
        return real(*arguments, **settings)

    monkeypatch.setattr(Connection, "_new", new)
    opening = in_a_thread(opens)
    until(gate.locked)
    child = started(lambda: made[0].look(LONG, lambda execute: execute("SELECT 1").fetchone()))
    goes_on.set()
    opening.result()
    assert end_of(child) == 0


def test_what_another_thread_has_just_given_does_not_keep_a_child_from_being_known(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = SQLiteBudgetPool(path, 1_000, name="total")
    store: Any = pool._family.store
    ledger, write = store._ledger, Step.write

    def written(step: Step, *arguments: Any) -> int:
        changed = write(step, *arguments)
        ledger.gave[len(ledger.gave) + 1, "token_cap"] = 10  # by a thread that has opened a child
        return changed

    monkeypatch.setattr(Step, "write", written)
    ledger.registered = None  # as in a child that was forked
    pool.reset()
    assert ledger.registered


# ---------------------------------------------------------------- the worker thread


@pytest.mark.parametrize("method", ["arecord", "areserve"])
def test_a_callback_in_the_worker_thread_that_awaits_that_thread_is_told_and_stops_it_not(
    pool: Allowed, method: str
) -> None:
    async def asks(**amount: int) -> None:
        await getattr(pool, method)(**amount)

    told: list[str] = []

    def callback(event: BudgetEvent) -> None:
        if event.tokens == 5:
            with pytest.raises(RuntimeError, match="use the one that blocks"):
                asyncio.run(asks(tokens=1))
            pool.record(tokens=1)
        told.append(event.kind)

    pool.subscribe(callback)
    asyncio.run(pool.arecord(tokens=5))
    asyncio.run(pool.arecord(tokens=2))
    assert told == ["record", "record", "record"]
    assert pool.used() == 8


# ---------------------------------------------------------------- SQLite: what is gone


def below_a_key(path: Path) -> tuple[SQLiteBudgetPool, Any]:
    """Return a pool, and a pool below the key "ann" of its users."""
    pool = SQLiteBudgetPool(path, 1_000, name="total")
    return pool, pool.keyed(name="user")["ann"].child(name="run")


def test_what_has_happened_counts_though_the_key_above_was_forgotten(path: Path) -> None:
    pool, run = below_a_key(path)
    users = pool.keyed(name="user")
    run.record(tokens=1)
    del users["ann"]
    run.record(tokens=5, force=True)
    assert numbers(pool) == (6, 0, 0)
    assert numbers(users["ann"]) == (5, 0, 0)  # it has begun anew
    store, chain, key = run._family.store, run._chain, run._family.store.new_key()
    for kind in (UNKNOWN, REPEAT):  # of a claim that the file has lost
        assert store.commit(chain, key, (3, 0), (4, 0), rows=True).kind == kind
    assert numbers(pool) == (10, 0, 0)
    assert run.snapshot().tokens_used == 0  # nothing is kept of it
    with pytest.raises(PoolClosed):
        run.record(tokens=1)


def test_a_late_settlement_corrects_a_charge_though_the_key_above_was_forgotten(path: Path) -> None:
    pool, run = below_a_key(path)
    committed, released = run.reserve(tokens=50), run.reserve(tokens=50)
    pool.close()
    with SQLiteBudgetPool(path, name="total") as again:
        assert numbers(again) == (100, 0, 0)
        del again.keyed(name="user")["ann"]
        told: list[str] = []
        run.subscribe(lambda event: told.append(event.kind))
        committed.commit(tokens=60)
        released.release()
        assert numbers(again) == (60, 0, 0)
        assert again.expired() == []
        assert told[-2:] == ["commit", "release"]


# ---------------------------------------------------------------- what was dropped


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_a_call_inside_another_of_its_thread_loses_nothing_that_was_dropped(
    path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    inside: list[BaseException] = []

    def clock() -> float:
        if armed:
            with pytest.warns(ResourceWarning):
                armed.clear()  # which drops a reservation
            with pytest.raises(RuntimeError, match="signal handler") as caught:
                pool.reserve(tokens=1)  # as a signal handler does that comes here
            inside.append(caught.value)
        return 0.0

    armed: list[Any] = []
    window = Window.daily(clock=clock)
    pool: Any
    if store == "sqlite":
        pool = SQLiteBudgetPool(path, 100, name="total", window=window)
    else:
        pool = RedisBudgetPool(the_server().client(), name=new_name(), token_cap=100, window=window)
    with pool:
        held = [pool.reserve(tokens=100)]
        with monkeypatch.context() as patch:
            patch.setattr(pool._family.hand, "drop", lambda *_: None)  # the worker is busy
            armed.append(held.pop())
            pool.snapshot()
        assert len(inside) == 1
        pool.record(tokens=100)


def test_two_threads_may_cancel_at_once_also_where_many_keys_are_remembered(path: Path) -> None:
    class Keys(OrderedDict[int, None]):
        """The keys of a store, another thread of which cancels one as this one looks which is the oldest."""

        def __iter__(self) -> Iterator[int]:
            found = super().__iter__()
            self[-1] = None
            return found

    with SQLiteBudgetPool(path, 100, name="total") as pool:
        store: Any = pool._family.store
        key = store.new_key()
        assert store.reserve(pool._chain, key, 100, 0).kind == GRANTED
        store._cancelled = Keys.fromkeys(range(5_000))
        assert store.cancel(pool._chain, key, (100, 0))
        assert (0 in store._cancelled, key in store._cancelled) == (False, True)
        pool.record(tokens=100)


# ---------------------------------------------------------------- closing


def test_a_commit_that_meets_the_closing_of_its_pool_in_another_thread_is_counted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, late = Connection.run, threading.local()
    on_its_way, closed = threading.Event(), threading.Event()

    def running(connection: Connection, *arguments: Any) -> Any:
        if hasattr(late, "waits"):
            on_its_way.set()
            assert closed.wait(LONG)
        return run(connection, *arguments)

    monkeypatch.setattr(Connection, "run", running)
    pool = SQLiteBudgetPool(path, 1_000, name="total")

    def commits() -> None:
        with pool.reserve(tokens=50) as held:
            late.waits = True
            held.commit(tokens=40)

    committed = in_a_thread(commits)
    assert on_its_way.wait(LONG)
    pool.close()
    closed.set()
    committed.result()
    assert numbers(pool) == (40, 0, 0)  # the file is opened once more for that, too
    with SQLiteBudgetPool(path, name="total") as again:
        assert numbers(again) == (40, 0, 0)


def test_what_was_not_synced_is_undone_before_the_pool_is_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SQLiteBudgetPool(path, 1_000, name="total")
    pool.record(tokens=1)
    store, chain = pool._family.store, pool._chain
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "_sync", not_synced)
        with pytest.raises(BudgetUnavailable):
            store.record(chain, 30, 0)
        with pytest.raises(BudgetUnavailable):
            store.reserve(chain, store.new_key(), 40, 0)
    assert numbers(pool) == (31, 40, 1)
    pool.close()
    with SQLiteBudgetPool(path, name="total") as again:
        again.record(tokens=50)
        for _ in range(2):
            assert (numbers(again), again.expired()) == ((51, 0, 0), [])
            store.tend()  # it is undone once


def not_synced(_connection: Connection) -> None:
    raise Unsynced("the disk fails")


def test_what_was_given_up_is_cancelled_before_the_process_lets_go(budget: Budget) -> None:
    one, other = budget.process(), budget.process()
    one.wire.lose("record", done=True)
    with pytest.raises(BudgetUnavailable):
        one.engine.record((one.root,), 30, 0)
    one.wire.lose("reserve", done=True)
    with pytest.raises(BudgetUnavailable):
        one.engine.reserve((one.root,), one.engine.new_key(), 40, 0)
    one.engine.let_go()
    assert (other.used(), other.engine.expired()) == ((0, 0), [])


def test_a_claim_that_another_thread_makes_as_the_lease_is_renewed_fails_no_step(budget: Budget) -> None:
    one = budget.process()
    process = one.engine._process

    class Claims(WeakValueDictionary[int, Claim]):
        """The claims of a process, whose other threads make one at each that is looked at."""

        def __iter__(self) -> Iterator[int]:
            for number in super().__iter__():
                others.append(one.engine.new_key())
                yield number

    others = [one.engine.new_key() for _ in range(3)]
    process.claims = Claims(dict(process.claims.items()))
    budget.raw.hset(budget.keys.owner(process.owner), mapping={str(10**6 + step): "=x" for step in range(9)})
    process.renew_at = float("-inf")
    assert one.engine.record((one.root,), 1, 0).kind == DONE


# ---------------------------------------------------------------- Redis: what is repeated


@pytest.mark.parametrize("step", ["record", "commit"])
def test_a_step_that_is_sent_again_after_its_scope_was_deleted_has_its_answer(
    budget: Budget, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    one, other = budget.process(), budget.process()
    chain, theirs = one.key(one.group(), "ann"), other.key(other.group(), "ann")
    kid = one.child("kid", chain[0], window=Window.daily())
    one.engine.record(kid, 1, 0)
    claim, run = one.engine.new_key(), one.wire.client.run
    assert one.engine.reserve(kid, claim, 5, 0).kind == GRANTED

    def deleted_meanwhile(script: Any, *arguments: Any, **settings: Any) -> Any:
        answer = run(script, *arguments, **settings)
        if one.wire.names[script] != step:
            return answer
        monkeypatch.undo()
        if step == "record":
            other.engine.settle(claim.id, 5, 0)
        assert other.engine.forget(theirs[0])
        return run(script, *arguments, **settings)  # since that answer was lost

    monkeypatch.setattr(one.wire.client, "run", deleted_meanwhile)
    if step == "record":
        assert one.engine.record(kid, 4, 0).kind == DONE
    else:
        assert one.engine.commit(kid, claim, (5, 0), (4, 0), rows=True).rows[0].closed
    assert one.used() == other.used() == (10 if step == "record" else 5, 0)
    assert one.engine.record(kid, 1, 0, force=True).kind == DONE  # it is read again


# ---------------------------------------------------------------- Redis: a group's terms


@pytest.mark.parametrize("before", [None, Window.daily()], ids=["without", "daily"])
@pytest.mark.parametrize("after", [None, Window.weekly()], ids=["without", "weekly"])
def test_a_key_is_reset_in_the_period_of_the_window_that_its_group_has_now(
    budget: Budget, before: Window | None, after: Window | None
) -> None:
    one = budget.process()
    users = one.group(tokens=10, window=before)
    chain = one.key(users, "ann")
    one.engine.record(chain, 10, 0)
    one.engine.set_group(users, UNCHANGED, UNCHANGED, after)
    one.engine.reset(chain[0])
    row = one.numbers(chain[0])
    assert (row.tokens_claimed, (row.start, row.end)) == (0, after.period(row.start) if after else (None, None))
    assert (budget.raw.pttl(budget.keys.scope(chain[0].path)) == -1) == (after is None)
    assert one.engine.record(chain, 10, 0).kind == DONE


@pytest.mark.parametrize("given", ["by set_caps", "at opening"])
def test_a_clock_that_was_not_given_in_the_end_is_the_clock_of_no_other_window(budget: Budget, given: str) -> None:
    one, other = budget.process(), budget.process(opened=False)
    one.engine.set_caps(one.root, UNCHANGED, UNCHANGED, Window.daily())
    other.open()
    window = Window.weekly(clock=lambda: 1e9)

    def read_by_another_thread_and_lost(name: str) -> None:
        if name in {"caps", "open"}:
            in_a_thread(other.numbers).result()
            raise BudgetUnavailable("the tests lose it")

    other.wire.before = read_by_another_thread_and_lost
    with pytest.raises(BudgetUnavailable):
        if given == "by set_caps":
            other.engine.set_caps(other.root, UNCHANGED, UNCHANGED, window)
        else:
            other.open(window=window)
    other.wire.heal()
    assert other.root.window == Window.daily()
    one.engine.set_caps(one.root, 10, UNCHANGED, UNCHANGED)
    assert other.engine.record((other.root,), 3, 0).kind == DONE
    assert other.root.window == Window.daily()


# ---------------------------------------------------------------- Redis: what expires


def test_a_closed_key_does_not_expire_since_it_would_begin_anew(budget: Budget) -> None:
    one = budget.process()
    users = one.group(tokens=10, window=Window.daily())
    chain = one.key(users, "ann")
    held, name = one.engine.new_key(), budget.keys.scope(chain[0].path)
    assert one.engine.reserve(chain, held, 10, 0).kind == GRANTED
    one.engine.close(chain[0])
    one.engine.set_group(users, UNCHANGED, UNCHANGED, Window.weekly())
    assert one.engine.commit(chain, held, (10, 0), (10, 0)).kind == DONE
    assert budget.raw.pttl(name) == -1
    idle = one.key(users, "bob")
    one.engine.record(idle, 10, 0)
    one.engine.close(idle[0])
    assert budget.raw.pttl(budget.keys.scope(idle[0].path)) == -1


def test_a_closed_child_does_not_expire_where_such_keys_are_evicted_before(budget: Budget) -> None:
    one = budget.process()
    one.wire.volatile = True
    chain = one.child("job", tokens=10)
    held = one.engine.new_key()
    assert one.engine.reserve(chain, held, 10, 0).kind == GRANTED
    one.engine.close(chain[0])
    assert one.engine.commit(chain, held, (10, 0), (10, 0)).kind == DONE
    assert budget.raw.pttl(budget.keys.scope(chain[0].path)) == -1
