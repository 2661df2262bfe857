"""Faults that an attack on forks, deleted keys and callbacks found.

Each test constructs a case that the attack met, and fails if the fault comes back.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from weakref import ref

import pytest

from shapes import Clock
from support import caught, waiters
from test_forks import end_of
from token_budget import BudgetPool, PoolForked, Window, _ledger, _line
from token_budget._telling import Telling, teller

DAY = timedelta(days=1)


def chain_of_six(token_cap: int) -> BudgetPool:
    """Return the lowest of six pools. Its operations take the long way."""
    pool = BudgetPool(token_cap=token_cap)
    for _ in range(5):
        pool = pool.child()
    return pool


# ---------------------------------------------------------------- a signal handler that forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("when", ["before it is published", "after it was published"])
@pytest.mark.parametrize("name", ["record", "reserve"])
def test_an_operation_whose_signal_handler_forks_is_refused_in_the_child(
    monkeypatch: pytest.MonkeyPatch, when: str, name: str
) -> None:
    pool = chain_of_six(10)
    family = pool._family
    children: list[int] = []
    decide, change = _line.blocker, type(family).change

    def forking_decide(*arguments: Any) -> Any:
        if when.startswith("before") and not children:  # it may be called again
            children.append(os.fork())
        return decide(*arguments)

    def forking_change(*arguments: Any) -> Any:
        answer = change(*arguments)
        if when.startswith("after") and not children:
            children.append(os.fork())
        return answer

    refused = False
    with monkeypatch.context() as patch:
        patch.setattr(_ledger, "blocker", forking_decide)
        patch.setattr(type(family), "change", forking_change)
        try:
            refused = caught(PoolForked, getattr(pool, name), tokens=7)
        finally:
            if children[0] == 0:
                os._exit(0 if refused else 1)
    assert not refused
    assert end_of(children[0]) == 0
    assert pool._account.tokens_claimed in {0, 7}  # the reservation was dropped in here, the record was not
    pool.record(tokens=1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_after_a_fork_inside_an_operation_a_detached_copy_works(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = chain_of_six(10)
    children: list[int] = []
    change = type(pool._family).change

    def forking(*arguments: Any) -> Any:
        answer = change(*arguments)
        if not children:
            children.append(os.fork())
        return answer

    done = False
    with monkeypatch.context() as patch:
        patch.setattr(type(pool._family), "change", forking)
        try:
            caught(PoolForked, pool.record, tokens=1)
            if children[0] == 0:
                patch.undo()
                pool.detach()
                pool.reserve(tokens=5).commit()
                done = pool.snapshot().tokens_used == 6
        finally:
            if children[0] == 0:
                os._exit(0 if done else 1)
    assert end_of(children[0]) == 0


def test_an_operation_during_which_the_process_turned_into_a_fork_is_refused_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The same as above in this process, where coverage and mutation tools look too.
    pool = chain_of_six(10)
    family = pool._family
    change = type(family).change

    def forking(*arguments: Any) -> Any:
        answer = change(*arguments)
        family.fork()
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(type(family), "change", forking)
        assert caught(PoolForked, pool.record, tokens=1)
    assert not family.torn
    pool.detach()
    pool.record(tokens=1)


# ---------------------------------------------------------------- the pools of deleted keys


def test_a_spend_that_is_forced_on_the_pool_of_a_deleted_key_counts_in_the_period_that_it_is() -> None:
    clock = Clock(0.0)
    total = BudgetPool(usd_cap=100)
    users = total.keyed(usd_cap=10)
    ann = users["ann"]
    del users["ann"]
    total.set_caps(window=Window.every(DAY, clock=clock))
    total.record(usd=5)
    clock.now += DAY.total_seconds()
    ann.record(usd=1, force=True)
    assert total.snapshot().usd_used == 1


def test_a_listener_of_all_keys_that_has_ended_hears_nothing_from_the_pool_of_a_deleted_key() -> None:
    users = BudgetPool(usd_cap=100).keyed(usd_cap=10)
    heard: list[object] = []
    endings = [users.subscribe(heard.append), users.on_threshold(0.5, heard.append)]
    ann = users["ann"]
    del users["ann"]
    for end in endings:
        end()
    ann.record(usd=6, force=True)
    assert heard == []


def test_a_subscription_on_a_key_that_was_forgotten_and_came_back_can_be_ended() -> None:
    clock = Clock(0.0)
    users = BudgetPool().keyed(token_cap=10, window=Window.every(DAY, clock=clock))
    heard: list[object] = []
    end = users["ann"].subscribe(heard.append)
    users["ann"].record(tokens=1)
    gc.collect()
    clock.now += DAY.total_seconds()
    for other in range(5):
        users[other]
    assert "ann" not in users
    ann = users["ann"]
    assert ann.statistics().subscribers == 1
    heard.clear()
    end()
    assert ann.statistics().subscribers == 0
    ann.record(tokens=1)
    assert heard == []


# ---------------------------------------------------------------- callbacks


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_events_of_a_drop_for_a_waiter_are_told_by_whoever_comes_next() -> None:
    pool = BudgetPool(token_cap=10)
    heard: list[tuple[str, int]] = []
    pool.subscribe(lambda event: heard.append((event.kind, threading.get_ident())))
    telling: Any = Telling(len, ("",))  # what another thread, which lives, has still to tell
    telling._teller = ref(pool)
    held = [pool.reserve(tokens=10)]
    with ThreadPoolExecutor(1) as workers:
        waiting = workers.submit(lambda: pool.reserve(tokens=10, timeout=60).release())
        while not waiters(pool):
            pass
        pool._family.owed.append(telling)
        held.clear()  # the finaliser gives the room to the waiter; this thread does nothing more with the pool
        waiting.result(60)
        other = workers.submit(threading.get_ident).result()
    assert [kind for kind, _ in heard] == ["reserve", "drop", "reserve", "release"]
    assert {thread for _, thread in heard[1:]} == {other}
    assert list(pool._family.owed) == [telling]


def test_what_a_finaliser_has_to_tell_is_left_to_others_also_where_a_later_debt_cannot_be_paid() -> None:
    class Stuck:
        """Waits for a lock that it does not get."""

        _teller = None

        def _pay(self, _takes: object) -> None:
            pass

        def _paid(self) -> bool:
            return False

    pool = BudgetPool(token_cap=10)
    heard: list[str] = []
    telling: Any = Telling(heard.append, ("told",))
    telling._teller = teller().me
    pool._family.owed += (telling, Stuck())
    pool._family.pay_waiters()
    pool._family.owed.pop()
    with ThreadPoolExecutor(1) as workers:
        workers.submit(pool.snapshot).result(60)
        workers.submit(pool.reset).result(60)
    assert heard == ["told"]


def test_a_callback_that_raises_stop_iteration_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def stops(_event: object) -> None:
        raise StopIteration

    pool = BudgetPool(token_cap=10)
    pool.subscribe(stops)
    with caplog.at_level(logging.ERROR, "token_budget"):
        pool.record(tokens=1)
    (logged,) = caplog.records
    assert "a subscriber raised on" in logged.getMessage()


def test_callbacks_that_switch_greenlets_leave_no_pool_untold() -> None:
    greenlet: Any = pytest.importorskip("greenlet")
    pools = [BudgetPool(token_cap=1000), BudgetPool(token_cap=1000)]
    heard: list[BudgetPool] = []
    main = greenlet.getcurrent()

    def switching(pool: BudgetPool) -> Callable[[object], None]:
        def callback(_event: object) -> None:
            heard.append(pool)
            main.switch()

        return callback

    endings = [pool.subscribe(switching(pool)) for pool in pools]
    calls = [greenlet.greenlet(lambda pool=pool: pool.record(tokens=1)) for pool in pools]
    for call in (*calls, *calls):  # each is in its callback while the other begins, and they end in this order too
        call.switch()
    for end in endings:
        end()
    for pool in pools:
        pool.subscribe(lambda _event, pool=pool: heard.append(pool))  # type: ignore[misc]
        pool.record(tokens=1)
    assert heard == [*pools, *pools]
