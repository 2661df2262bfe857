"""Promises of comments and messages that no other test checks."""

from __future__ import annotations

import gc
import logging
from datetime import timedelta

import pytest

from shapes import Clock, waiting
from token_budget import BudgetExceeded, BudgetPool, PoolClosed
from token_budget._family import Register
from token_budget._window import Window


class Thing:
    pass


def test_a_register_forgets_dead_objects_and_rarely_checks_if_all_live() -> None:
    register = Register()
    for _ in range(1000):
        register.add(Thing())
    assert len(register._refs) <= 66
    assert list(register) == []
    things = [Thing() for _ in range(1000)]
    for thing in things:
        register.add(thing)
    assert list(register) == things
    assert register._alive >= 300  # so the next check is far away


def test_a_fork_wakes_no_task_through_an_event_loop_that_it_shares_with_its_parent() -> None:
    pool = BudgetPool(token_cap=10)
    held = pool.reserve(tokens=10)
    waiter = waiting(pool, tokens=1)
    pool._family.fork()
    assert waiter.state == "withdrawn"
    assert waiter.bell.rung == 0
    held.release()


def test_an_error_of_a_subscriber_is_logged_with_the_event(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_event: object) -> None:
        raise KeyError("mine")

    pool = BudgetPool(token_cap=10)
    pool.subscribe(broken)
    with caplog.at_level(logging.ERROR, logger="token_budget"):
        pool.record(tokens=1)
    assert caplog.messages[0].startswith("a subscriber raised on ")
    assert "record" in caplog.messages[0]


def test_a_join_of_nothing_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"^join needs at least one pool$"):
        BudgetPool.join()


def test_an_operation_reads_a_clock_once_however_many_scopes_share_it() -> None:
    clock = Clock()
    read = 0

    def reading() -> float:
        nonlocal read
        read += 1
        return clock()

    window = Window.every(timedelta(seconds=60), clock=reading)
    pool = BudgetPool(window=window)
    for _ in range(6):
        pool = pool.child(window=window)
    read = 0
    pool.record(tokens=1)
    assert read == 1


def test_a_clock_that_steps_back_by_one_period_does_not_change_the_period() -> None:
    clock = Clock()
    pool = BudgetPool(token_cap=10, window=Window.every(timedelta(seconds=60), clock=clock))
    before = pool._account.terms[3:]
    start = pool._account.terms[3]
    clock.now = start - 60
    pool.snapshot()
    assert pool._account.terms[3:] == before
    clock.now = start - 60.5
    pool.snapshot()
    assert pool._account.terms[3:] != before


def test_a_join_over_two_trees_says_how_to_make_one() -> None:
    with pytest.raises(ValueError, match=r"^join takes pools that descend from one pool: make them with child\(\)"):
        BudgetPool.join(BudgetPool(), BudgetPool())


def test_the_warning_of_a_drop_shows_the_reservation_and_says_what_to_do() -> None:
    pool = BudgetPool(name="day")
    reservation = pool.reserve(tokens=3)
    shown = repr(reservation)
    with pytest.warns(ResourceWarning) as caught:
        del reservation

    assert str(caught[0].message) == f"{shown} was dropped: commit() or release() it"


def test_a_closed_pool_above_is_named_before_an_exhausted_one_below() -> None:
    above = BudgetPool(name="above")
    below = above.child(token_cap=1, name="below")
    above.close()
    with pytest.raises(PoolClosed, match="'above'"):
        below.reserve(tokens=2)


def test_the_settings_of_a_forgotten_key_go_when_its_last_listener_ends() -> None:
    clock = Clock()
    users = BudgetPool().keyed(token_cap=10, window=Window.every(timedelta(seconds=60), clock=clock))
    unsubscribe = users["ann"].on_threshold(0.5, print)
    users["ann"].record(tokens=1)
    clock.now += 60
    for key in range(8):
        users[key].record(tokens=1)  # each new key looks for keys to forget
    assert "ann" not in users
    assert "ann" in users._own
    unsubscribe()
    assert users._own == {}


def test_both_caps_of_a_key_come_back_with_it() -> None:
    clock = Clock()
    users = BudgetPool().keyed(token_cap=10, usd_cap=10, window=Window.every(timedelta(seconds=60), clock=clock))
    users["ann"].set_caps(token_cap=3, usd_cap=4)
    users["ann"].record(tokens=1)
    clock.now += 60
    for key in range(8):
        users[key].record(tokens=1)
    assert "ann" not in users
    assert (users["ann"].snapshot().token_cap, users["ann"].snapshot().usd_cap) == (3, 4)


def test_scopes_with_different_clocks_each_follow_their_own() -> None:
    outer, inner = Clock(), Clock()
    length = timedelta(seconds=60)
    above = BudgetPool(token_cap=100, window=Window.every(length, clock=outer))
    below = above.child(window=Window.every(length, clock=inner))
    below.record(tokens=6)
    outer.now += 60
    below.record(tokens=6)
    assert (above.snapshot().tokens_used, below.snapshot().tokens_used) == (6, 12)


def test_ending_a_subscription_to_a_group_that_is_gone_raises_nothing() -> None:
    total = BudgetPool()
    users = total.keyed()
    stop = users.subscribe(print)
    stop_one = users["ann"].subscribe(print)
    del users
    gc.collect()
    stop()
    stop_one()
    assert total.snapshot().in_flight == 0


def test_a_keys_own_window_decides_no_period_of_other_keys() -> None:
    clock = Clock()
    users = BudgetPool().keyed(token_cap=10, window=Window.every(timedelta(seconds=60), clock=clock))
    users["ann"].set_caps(window=Window.every(timedelta(hours=1), clock=clock))
    start, end = users["ben"]._account.terms[3:]
    assert end - start == 60


def test_an_exhausted_pool_is_named_before_a_busy_one() -> None:
    above = BudgetPool(token_cap=10, name="above")
    below = above.child(token_cap=5, name="below")
    above.record(tokens=8)
    held = below.reserve(tokens=2)
    with pytest.raises(BudgetExceeded) as refused:
        below.reserve(tokens=4)
    assert refused.value.pool == "above"
    held.release()
