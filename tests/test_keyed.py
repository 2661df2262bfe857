"""Pools by key: which keys are forgotten, what comes back with a key, deletion, and settings of all keys."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from shapes import Clock
from support import caught
from token_budget import BudgetExceeded, BudgetPool, KeyedPools, PoolClosed, Window

DAY = 86_400
Users = KeyedPools[BudgetPool]


class Kept:
    """A group of keys of 10 tokens a day, and its clock."""

    def __init__(self) -> None:
        self.clock = Clock(20_000.5 * DAY)
        self.total = BudgetPool(name="total")
        self.users: Users = self.total.keyed(token_cap=10, name="users", window=Window.daily(clock=self.clock))

    def forget(self, *keys: str) -> None:
        """Let a day pass, and look up so many new keys that every old key is checked."""
        self.clock.now += DAY
        gc.collect()
        for number in range(20):
            self.users[f"new {self.clock.now} {number}"].record(tokens=1)
        for key in keys:
            assert key not in self.users


@pytest.fixture
def kept() -> Kept:
    return Kept()


# ---------------------------------------------------------------- forgetting


def _closed(pool: BudgetPool) -> None:
    with pool:
        pool.record(tokens=3)


def _capped(pool: BudgetPool) -> None:
    pool.set_caps(token_cap=100)
    pool.record(tokens=3)


def _windowed(pool: BudgetPool) -> None:
    pool.set_caps(window=Window.every(timedelta(hours=1), clock=pool._account.window.clock))  # type: ignore[union-attr]
    pool.record(tokens=3)


def _watched(pool: BudgetPool) -> None:
    pool.subscribe(lambda _event: None)
    pool.on_threshold(0.5, lambda _event: None)
    pool.record(tokens=3)


@pytest.mark.parametrize("use", [_closed, _capped, _windowed, _watched, lambda pool: pool.record(tokens=3)])
def test_a_key_is_forgotten_after_its_period_after_any_operation(kept: Kept, use: Callable[[BudgetPool], None]) -> None:
    use(kept.users["ann"])
    assert "ann" in kept.users
    kept.forget("ann")


def test_many_runs_that_were_closed_are_not_kept(kept: Kept) -> None:
    for day in range(5):
        for run in range(100):
            with kept.users[f"{day} {run}"] as pool:
                pool.record(tokens=1)
        kept.clock.now += DAY
    assert len(kept.users) < 250


def test_a_closed_key_stays_closed_in_its_period_and_is_open_in_the_next(kept: Kept) -> None:
    _closed(kept.users["ann"])
    gc.collect()
    for number in range(20):
        kept.users[f"other {number}"].record(tokens=1)
    assert caught(PoolClosed, kept.users["ann"].record, tokens=1)
    kept.forget("ann")
    kept.users["ann"].record(tokens=10)
    assert kept.users["ann"].snapshot().tokens_used == 10


def test_caps_and_thresholds_of_a_key_come_back_with_it(kept: Kept) -> None:
    told: list[str] = []
    heard: list[str] = []
    kept.users["ann"].set_caps(token_cap=100, usd_cap=1)
    kept.users["ann"].on_threshold(0.5, lambda event: told.append(event.kind))
    unsubscribe = kept.users["ann"].subscribe(lambda event: heard.append(event.kind))
    for _ in range(3):
        kept.users["ann"].record(tokens=50)
        assert (told, heard) == (["threshold"], ["record"])
        told.clear()
        heard.clear()
        kept.forget("ann")
    assert kept.users["ann"].snapshot().token_cap == 100
    assert kept.users["ann"].snapshot().usd_cap == 1
    assert kept.users["ann"].statistics().subscribers == 2
    assert kept.users["ben"].snapshot().token_cap == 10
    del unsubscribe


def test_an_own_window_comes_back_with_its_key(kept: Kept) -> None:
    hourly = Window.every(timedelta(hours=1), clock=kept.clock)
    kept.users["ann"].set_caps(window=hourly)
    kept.users["ann"].record(tokens=10)
    kept.forget("ann")
    ann = kept.users["ann"]
    ann.record(tokens=10)
    kept.clock.now += 3600
    ann.record(tokens=10)


def test_a_key_without_a_window_comes_back_without_one(kept: Kept) -> None:
    kept.users["ann"].set_caps(window=None)
    kept.users["ann"].record(tokens=9)
    kept.clock.now += 10 * DAY
    gc.collect()
    for number in range(20):
        kept.users[f"other {number}"].record(tokens=1)
    assert caught(BudgetExceeded, kept.users["ann"].record, tokens=2)  # without a window, its usage never ends


def test_a_subscriber_that_ends_while_its_key_is_forgotten_gets_no_more_events(kept: Kept) -> None:
    heard: list[object] = []
    unsubscribe = kept.users["ann"].subscribe(heard.append)
    kept.users["ann"].record(tokens=1)
    assert len(heard) == 1
    del heard[:]
    kept.forget("ben")
    unsubscribe()
    heard.clear()  # events of the period that had ended
    kept.users["ann"].record(tokens=1)
    assert heard == []
    again = kept.users["ann"].subscribe(heard.append)
    kept.forget("ben")
    kept.users["ann"].record(tokens=1)  # the key was made again meanwhile
    assert len(heard) == 1
    again()
    kept.users["ann"].record(tokens=1)
    assert len(heard) == 1


# ---------------------------------------------------------------- deleting


def test_deleting_closes_the_pool_and_the_key_begins_anew(kept: Kept) -> None:
    ann = kept.users["ann"]
    below = ann.child()
    ann.set_caps(token_cap=100)
    ann.on_threshold(0.5, lambda _event: pytest.fail("a deleted pool called back"))
    ann.record(tokens=40)
    del kept.users["ann"]
    assert "ann" not in kept.users
    assert caught(PoolClosed, ann.record, tokens=1)
    assert caught(PoolClosed, below.record, tokens=1)
    again = kept.users["ann"]
    assert again is not ann
    assert again.snapshot().token_cap == 10
    again.record(tokens=10)
    assert again.snapshot().tokens_used == 10
    assert kept.total.snapshot().tokens_used == 50  # spends stay counted in the pools above
    assert caught(PoolClosed, ann.record, tokens=1)
    del kept.users["ann"]
    assert kept.total.snapshot().tokens_used == 50


def test_deleting_is_refused_while_calls_are_in_flight(kept: Kept) -> None:
    held = kept.users["ann"].reserve(tokens=4)
    with pytest.raises(ValueError, match="key 'ann' has 1 in flight: let them settle first"):
        del kept.users["ann"]
    assert "ann" in kept.users
    assert not kept.users["ann"].closed
    held.commit()
    del kept.users["ann"]


@pytest.mark.parametrize("key", ["nobody", 7, (1, 2)])
def test_deleting_an_unknown_key_is_a_key_error(kept: Kept, key: Any) -> None:
    kept.users["ann"].record(tokens=1)
    with pytest.raises(KeyError):
        del kept.users[key]
    del kept.users["ann"]
    with pytest.raises(KeyError):
        del kept.users["ann"]


def test_deleting_a_key_that_is_forgotten_forgets_its_settings_too(kept: Kept) -> None:
    kept.users["ann"].set_caps(token_cap=100)
    kept.forget("ann")
    del kept.users["ann"]
    assert kept.users["ann"].snapshot().token_cap == 10


def test_a_deleted_key_that_is_made_again_is_not_lost_in_the_rota(kept: Kept) -> None:
    for _ in range(5):
        kept.users["ann"].record(tokens=1)
        del kept.users["ann"]
    for number in range(50):
        kept.users[number].record(tokens=1)
    kept.users["ann"].record(tokens=1)
    gc.collect()
    for number in range(50, 100):
        kept.users[number].record(tokens=1)
    assert kept.users["ann"].snapshot().tokens_used == 1
    kept.forget("ann")


# ---------------------------------------------------------------- for all keys


def test_a_threshold_of_all_keys_fires_for_old_new_and_forgotten_keys(kept: Kept) -> None:
    told: list[str | None] = []
    kept.users["old"].record(tokens=1)
    unsubscribe = kept.users.on_threshold(0.8, lambda event: told.append(event.pool))
    kept.users["old"].record(tokens=7)
    kept.users["new"].record(tokens=9)
    kept.users["new"].record(tokens=1)
    assert told == ["users:old", "users:new"]
    kept.forget("old", "new")
    kept.users["old"].record(tokens=8)
    assert told == ["users:old", "users:new", "users:old"]
    unsubscribe()
    kept.users["new"].record(tokens=9)
    kept.users["newer"].record(tokens=9)
    assert told == ["users:old", "users:new", "users:old"]
    unsubscribe()


def test_subscribers_of_all_keys_hear_of_old_new_and_forgotten_keys_and_of_pools_below(kept: Kept) -> None:
    heard: list[tuple[str, str | None]] = []
    kept.users["old"].record(tokens=1)
    unsubscribe = kept.users.subscribe(lambda event: heard.append((event.kind, event.snapshot.name)))
    kept.users["old"].child().record(tokens=1)
    kept.users["new"].reserve(tokens=1).commit()
    assert heard == [("record", "users:old"), ("reserve", "users:new"), ("commit", "users:new")]
    kept.total.record(tokens=1)
    assert len(heard) == 3
    kept.forget("old", "new")
    del heard[:]
    kept.users["old"].record(tokens=1)
    assert heard == [("record", "users:old")]
    unsubscribe()
    kept.users["old"].record(tokens=1)
    kept.users["newer"].record(tokens=1)
    assert len(heard) == 1


def test_listeners_of_one_key_and_of_all_keys_get_each_event_once(kept: Kept) -> None:
    told: list[str] = []
    kept.users.on_threshold(0.5, lambda _event: told.append("all"))
    kept.users["ann"].on_threshold(0.5, lambda _event: told.append("ann"))
    for _ in range(2):
        kept.users["ann"].record(tokens=5)
        assert sorted(told) == ["all", "ann"]
        told.clear()
        kept.forget("ann")


def test_caps_of_all_keys_are_set_together_and_leave_a_keys_own_caps_alone(kept: Kept) -> None:
    kept.users["own"].set_caps(token_cap=5)
    kept.users["old"].record(tokens=10)
    kept.users.set_caps(token_cap=20, usd_cap=1)
    kept.users["old"].record(tokens=10)
    kept.users["new"].record(tokens=20)
    assert [kept.users[key].snapshot().token_cap for key in ("own", "old", "new")] == [5, 20, 20]
    assert [kept.users[key].snapshot().usd_cap for key in ("own", "old", "new")] == [1, 1, 1]
    kept.forget("own", "old")
    kept.users.set_caps(token_cap=None)
    assert [kept.users[key].snapshot().token_cap for key in ("own", "old", "new")] == [5, None, None]


def test_a_window_of_all_keys_leaves_a_keys_own_window_alone(kept: Kept) -> None:
    own = Window.every(timedelta(days=7), clock=kept.clock)
    kept.users["own"].set_caps(window=own)
    for key in ("own", "old"):
        kept.users[key].record(tokens=10)
    kept.users.set_caps(window=Window.every(timedelta(hours=1), clock=kept.clock))
    assert caught(BudgetExceeded, kept.users["old"].record, tokens=1)  # usage is kept
    kept.users["new"].record(tokens=10)
    kept.clock.now += 3600
    kept.users["old"].record(tokens=10)
    kept.users["new"].record(tokens=10)
    assert caught(BudgetExceeded, kept.users["own"].record, tokens=1)
    kept.users.set_caps(window=None)
    kept.clock.now += 8 * DAY
    assert caught(BudgetExceeded, kept.users["old"].record, tokens=1)


@pytest.mark.parametrize("group", [None, "daily", "another clock"])
def test_a_keys_own_window_ends_its_periods_whatever_the_groups_window_is(kept: Kept, group: str | None) -> None:
    clock = Clock(0.0)
    other = Clock(0.0)
    window = None if group is None else Window.daily(clock=clock if group == "daily" else other)
    users = BudgetPool().keyed(token_cap=10, window=window)
    users["own"].set_caps(window=Window.every(timedelta(hours=1), clock=clock))
    for hour in range(3):
        gc.collect()
        clock.now = hour * 3600.0
        users["own"].record(tokens=4)
        assert users["own"].snapshot().tokens_used == 4
        users["own"].record(tokens=6)
        assert caught(BudgetExceeded, users["own"].record, tokens=1)


# ---------------------------------------------------------------- as an object


def test_an_empty_group_is_true(kept: Kept) -> None:
    assert len(kept.users) == 0
    assert kept.users
    assert (kept.users or None) is kept.users


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_copy_would_be_a_second_budget_for_each_key(kept: Kept, duplicate: Callable[[Users], object]) -> None:
    kept.users["ann"].record(tokens=1)
    with pytest.raises(TypeError, match="second budget"):
        duplicate(kept.users)


def test_reading_a_group_makes_no_key(kept: Kept) -> None:
    assert kept.users.get("ann") is None
    other = BudgetPool()
    assert kept.users.get("ann", other) is other
    for looking in (kept.users.items, kept.users.values, kept.users.keys, kept.users.__iter__):
        assert list(looking()) == []
    assert "ann" not in kept.users
    ann, ben = kept.users["ann"], kept.users["ben"]
    assert kept.users.get("ann") is ann
    assert list(kept.users.items()) == [("ann", ann), ("ben", ben)]
    assert list(kept.users.values()) == [ann, ben]
    assert list(kept.users.keys()) == list(kept.users) == ["ann", "ben"]
    assert len(kept.users) == 2
    with pytest.raises(TypeError):
        kept.users.get([])  # type: ignore[arg-type]


def test_different_keys_are_two_budgets_even_if_their_names_read_the_same(kept: Kept) -> None:
    kept.users[1].record(tokens=10)
    kept.users["1"].record(tokens=10)
    assert kept.users[1].name == kept.users["1"].name == "users:1"
    assert caught(BudgetExceeded, kept.users[1].record, tokens=1)
