"""Faults that an attack on keys, settings and subclasses found.

Each test constructs a case that the attack met by chance, and fails if the fault comes back.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from shapes import Clock
from support import caught, run_together
from token_budget import (
    BudgetEvent,
    BudgetExceeded,
    BudgetPool,
    Window,
    _group,
    _settings,
)

SPAN = timedelta(seconds=100)


def in_a_thread(body: Callable[[], object]) -> None:
    run_together(body)


class HookedClock(Clock):
    """A clock whose next reading first runs a hook. The hook runs only once."""

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self.hook: Callable[[], object] = lambda: None

    def __call__(self) -> float:
        hook, self.hook = self.hook, lambda: None
        hook()
        return self.now


# ------------------------------------------------------------------ settings that change while something is made


class HookedKey:
    """A key that runs a hook in another thread at its second look-up. The first look-up finds that the key is new."""

    def __init__(self, hook: Callable[[], object]) -> None:
        self.left, self.hook = 2, hook

    def __hash__(self) -> int:
        self.left -= 1
        if self.left == 0:
            in_a_thread(self.hook)
        return 5

    def __eq__(self, other: object) -> bool:
        return self is other


def test_a_key_that_is_made_while_the_groups_caps_change_has_the_new_caps() -> None:
    users = BudgetPool().keyed(token_cap=1000)
    key = HookedKey(lambda: users.set_caps(token_cap=10))
    assert users[key].snapshot().token_cap == 10
    assert key.left < 0


@pytest.mark.parametrize("news", ["caps", "window", "no window"])
def test_a_key_that_is_made_while_the_groups_settings_change_has_the_new_ones(news: str) -> None:
    clock = HookedClock(150.0)
    users = BudgetPool().keyed(token_cap=1000, window=Window.every(SPAN, clock=clock))
    known = users["known"]
    longer = Window.every(10 * SPAN, clock=clock)
    settings: dict[str, Any] = {"caps": {"token_cap": 10}, "window": {"window": longer}, "no window": {"window": None}}
    clock.hook = lambda: in_a_thread(lambda: users.set_caps(**settings[news]))
    made = users["new"].snapshot()
    expected = known.snapshot()
    assert (made.token_cap, made.window_start, made.resets_at) == (
        expected.token_cap,
        expected.window_start,
        expected.resets_at,
    )
    users["new"].record(tokens=expected.token_cap or 0)
    clock.now = 1050.0
    assert users["new"].snapshot().tokens_used == (1000 if news == "no window" else 0)


def test_a_keys_own_caps_hold_if_it_is_forgotten_while_another_thread_makes_it() -> None:
    clock = HookedClock(150.0)
    users = BudgetPool().keyed(token_cap=1000, window=Window.every(SPAN, clock=clock))

    def meanwhile() -> None:
        users["ann"].set_caps(token_cap=7)
        gc.collect()
        for number in range(20):
            users[number]
        assert "ann" not in users

    clock.hook = lambda: in_a_thread(meanwhile)
    assert users["ann"].snapshot().token_cap == 7


def test_a_key_that_gets_a_window_of_its_own_leaves_the_period_of_the_other_keys_alone() -> None:
    clock = Clock(10.0)
    users = BudgetPool().keyed(token_cap=100, window=Window.every(SPAN, clock=clock))
    users["ann"].set_caps(window=Window.every(SPAN / 4, clock=clock))
    end = users["bob"].snapshot().resets_at
    assert end is not None
    assert end.timestamp() == 100.0


MADE: dict[str, Callable[[BudgetPool, BudgetPool], BudgetPool]] = {
    "child": lambda pool, _: pool.child(),
    "key of a new group": lambda pool, _: pool.keyed()["key"],
    "join": lambda pool, other: BudgetPool.join(pool, other),
}


@pytest.mark.parametrize("made", MADE)
def test_a_pool_that_is_made_while_one_above_gets_a_window_rolls_over(
    made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(10.0)
    pool = BudgetPool(token_cap=100)
    other = pool.child()
    real = _settings.adopt

    def adopt(*arguments: Any) -> None:
        monkeypatch.setattr(_settings, "adopt", real)
        in_a_thread(lambda: pool.set_caps(window=Window.every(SPAN, clock=clock)))
        real(*arguments)

    monkeypatch.setattr(_settings, "adopt", adopt)
    below = MADE[made](pool, other)
    assert _settings.adopt is real
    below.record(tokens=100)
    assert caught(BudgetExceeded, below.record, tokens=1)
    clock.now = 150.0
    below.record(tokens=100)


def test_a_handle_that_is_made_while_its_group_gets_a_window_rolls_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(10.0)
    users = BudgetPool().keyed(token_cap=100)
    users["ann"].record(tokens=1)
    users["ann"].reset()
    real = _group.Group._handle_of

    def handle_of(group: _group.Group, account: Any) -> Any:
        monkeypatch.setattr(_group.Group, "_handle_of", real)
        handle = real(group, account)
        in_a_thread(lambda: users.set_caps(window=Window.every(SPAN, clock=clock)))
        return handle

    gc.collect()
    monkeypatch.setattr(_group.Group, "_handle_of", handle_of)
    ann = users["ann"]
    assert _group.Group._handle_of is real
    ann.record(tokens=100)
    clock.now = 150.0
    ann.record(tokens=100)
    assert users["ann"] is ann


# ------------------------------------------------------------------ subclasses


class Equal(BudgetPool):
    """A pool whose class defines `__eq__` and so has no hash."""

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]


class Frozen(BudgetPool):
    """A pool whose attributes cannot be set after it is made."""

    def __init__(self, *caps: Any, **settings: Any) -> None:
        super().__init__(*caps, **settings)
        object.__setattr__(self, "done", True)

    def __setattr__(self, name: str, value: object) -> None:
        if getattr(self, "done", False):
            raise AttributeError(name)
        super().__setattr__(name, value)


@pytest.mark.parametrize("kind", [Equal, Frozen])
def test_a_subclass_without_a_hash_or_with_a_setattr_of_its_own_works_like_any_pool(kind: type[BudgetPool]) -> None:
    clock = Clock(10.0)
    pool = kind(10)
    heard: list[BudgetEvent] = []
    end = pool.subscribe(heard.append)
    pool.set_caps(window=Window.every(SPAN, clock=clock))
    child = pool.child(name="child")
    child.record(tokens=10)
    assert repr(pool) == f"<{kind.__name__} tokens 10 / 10 (100%) | 0 in flight>"
    assert pool.statistics().children == 1
    assert [one.name for one in pool.snapshot(tree=True).children] == ["child"]
    clock.now = 150.0
    pool.record(tokens=10)
    end()
    assert [event.kind for event in heard] == ["record", "roll-over", "record"]


# ------------------------------------------------------------------ keys


def test_a_listener_of_a_forgotten_key_is_not_kept_after_it_has_ended() -> None:
    class Heard:
        def __call__(self, event: BudgetEvent) -> None:
            pass

    users = BudgetPool().keyed()
    listeners = [Heard() for _ in range(20)]
    kept = [weakref.ref(one) for one in listeners]
    ends = [users[number].subscribe(one) for number, one in enumerate(listeners)]
    listeners.clear()
    gc.collect()
    for number in range(100, 200):
        users[number]
    assert not any(number in users for number in range(20))
    assert all(one() is not None for one in kept)  # the listeners come back with their keys
    for end in ends:
        end()
    del ends, end
    gc.collect()
    assert [one() for one in kept] == [None] * 20
    assert users._own == {}


class Grumpy:
    """A key whose hash begins to raise."""

    bad = False

    def __hash__(self) -> int:
        if self.bad:
            raise OSError("gone")
        return 5


def test_a_key_whose_hash_begins_to_raise_does_not_affect_other_keys() -> None:
    users = BudgetPool().keyed(token_cap=10)
    grumpy = Grumpy()
    users[grumpy].record(tokens=1)
    grumpy.bad = True
    for number in range(50):
        users[number].record(tokens=1)
    with pytest.raises(OSError, match="gone"):
        users[grumpy]
