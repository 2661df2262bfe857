"""What an attack on the core found. Each test constructs what the attack met by luck, and fails with its fault."""

from __future__ import annotations

import asyncio
import gc
import threading
import types
import warnings
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from shapes import Clock, waiting
from support import caught, counters, run_together, waiters
from token_budget import (
    BudgetEvent,
    BudgetExceeded,
    BudgetPool,
    BudgetTimeout,
    KeyedPools,
    Reservation,
    Window,
    _group,
    _settings,
    _sleep,
    _waiting,
)
from token_budget._line import serve
from token_budget._waiting import WAITING, WITHDRAWN, Largest, Line, ThreadBell

SPAN = timedelta(seconds=100)


def in_a_thread(body: Callable[[], object]) -> None:
    run_together(body)


class HookedClock(Clock):
    """A clock whose next reading first runs a hook, once."""

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self.hook: Callable[[], object] = lambda: None

    def __call__(self) -> float:
        hook, self.hook = self.hook, lambda: None
        hook()
        return self.now


# ------------------------------------------------------------------ settings that change while something is made


class HookedKey:
    """A key that runs a hook while it is looked up without the lock: at the look-up of this number."""

    def __init__(self, users: KeyedPools[BudgetPool], at: int, hook: Callable[[], object]) -> None:
        self.users, self.left, self.hook = users, at, hook

    def __hash__(self) -> int:
        self.left -= 1
        if self.left == 0 and self.users._model._family.owner == 0:
            in_a_thread(self.hook)
        return 5

    def __eq__(self, other: object) -> bool:
        return self is other


@pytest.mark.parametrize("lookup", [1, 2, 3])
def test_a_key_that_is_made_while_the_caps_of_all_change_has_the_new_caps(lookup: int) -> None:
    users = BudgetPool().keyed(token_cap=1000)
    key = HookedKey(users, lookup, lambda: users.set_caps(token_cap=10))
    pool = users[key]
    changed = users["other"].snapshot().token_cap
    assert pool.snapshot().token_cap == changed
    assert changed == (10 if lookup < 3 else 1000)  # the third look-up is under the lock, where nothing can change


@pytest.mark.parametrize("news", ["caps", "window", "no window"])
def test_a_key_that_is_made_while_the_settings_of_all_change_has_the_new_ones(news: str) -> None:
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


def test_a_key_that_gets_caps_of_its_own_and_is_forgotten_while_another_thread_makes_it_has_them() -> None:
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


def _keyed(pool: BudgetPool) -> BudgetPool:
    return pool.keyed()["key"]


MADE: dict[str, Callable[[BudgetPool], BudgetPool]] = {
    "child": lambda pool: pool.child(),
    "key of a new group": _keyed,
    "join": lambda pool: BudgetPool.join(pool, pool.child()),
}


@pytest.mark.parametrize("made", MADE)
def test_a_pool_that_is_made_while_one_above_gets_a_window_rolls_over(
    made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(10.0)
    pool = BudgetPool(token_cap=100)
    real = _settings.adopt

    def adopt(*arguments: Any) -> None:
        monkeypatch.setattr(_settings, "adopt", real)
        in_a_thread(lambda: pool.set_caps(window=Window.every(SPAN, clock=clock)))
        real(*arguments)

    monkeypatch.setattr(_settings, "adopt", adopt)
    below = MADE[made](pool)
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


# ------------------------------------------------------------------ interrupts, rings and callbacks


class Interrupt(BaseException):
    pass


def interrupted(*_: object) -> None:
    raise Interrupt


def test_a_thread_that_is_interrupted_as_it_gets_its_room_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = BudgetPool(token_cap=1000)
    holder = pool.reserve(tokens=1000)
    behind: list[Any] = []

    def wait(_bell: ThreadBell, _timeout: float | None) -> bool:
        behind.append(waiting(pool, tokens=1000))
        holder.release()
        assert pool.snapshot().tokens_reserved == 600
        return True

    monkeypatch.setattr(ThreadBell, "wait", wait)
    monkeypatch.setattr(_sleep, "outcome", interrupted)
    with pytest.raises(Interrupt):
        pool.reserve(tokens=600, timeout=None)
    assert behind[0].state == "granted"
    assert counters(pool) == (0, 1000, 0, 0, 1)
    behind[0].reservation.release()


def test_a_task_that_is_interrupted_as_it_gets_its_room_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = BudgetPool(token_cap=1000)
    holder = pool.reserve(tokens=1000)

    async def ask() -> Any:
        task = asyncio.ensure_future(pool.areserve(tokens=600))
        await asyncio.sleep(0)
        behind = waiting(pool, tokens=1000)
        holder.release()
        assert pool.snapshot().tokens_reserved == 600
        with pytest.raises(Interrupt):
            await task
        return behind

    monkeypatch.setattr(_sleep, "outcome", interrupted)
    behind = asyncio.run(ask())
    assert behind.state == "granted"
    behind.reservation.release()


def test_who_was_granted_room_is_woken_before_anybody_is_called_back() -> None:
    pool = BudgetPool(token_cap=100)
    holder = pool.reserve(tokens=100)
    waiter = waiting(pool, tokens=50)
    heard: list[tuple[str, int]] = []
    pool.subscribe(lambda event: heard.append((event.kind, waiter.bell.rung)))
    holder.release()
    assert heard == [("release", 1), ("reserve", 1)]
    waiter.reservation.release()


class Grumpy:
    """A key whose hash begins to raise."""

    bad = False

    def __hash__(self) -> int:
        if self.bad:
            raise OSError("gone")
        return 5


def test_a_key_whose_hash_begins_to_raise_troubles_nobody_else() -> None:
    users = BudgetPool().keyed(token_cap=10)
    grumpy = Grumpy()
    users[grumpy].record(tokens=1)
    grumpy.bad = True
    for number in range(50):
        users[number].record(tokens=1)
    with pytest.raises(OSError, match="gone"):
        users[grumpy]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_drop_inside_an_operation_of_its_own_thread_warns_once_the_lock_is_free() -> None:
    pool = BudgetPool(token_cap=10)
    users = pool.keyed()
    family = pool._family
    held = [pool.reserve(tokens=5)]
    told: list[tuple[str, int]] = []

    class Key:
        def __hash__(self) -> int:
            if family.owner == threading.get_ident():
                held.clear()
            return 5

    def show(message: Any, *_: Any, **__: Any) -> None:
        told.append((str(message), family.owner))

    with warnings.catch_warnings():
        warnings.simplefilter("always", ResourceWarning)
        warnings.showwarning = show
        users[Key()]
    assert held == []
    assert [owner for _, owner in told] == [0]
    assert told[0][0].startswith("<Reservation tokens 5 | usd 0 | in flight> was dropped")
    assert counters(pool) == (0, 0, 0, 0, 0)


class Cycle:
    def __init__(self, held: Reservation) -> None:
        self.me, self.held = self, held


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_collection_that_drops_more_while_much_is_owed_breaks_nothing() -> None:
    """Up to 3.11 any allocation may collect: each of the first sixty of an operation does here."""
    pool = BudgetPool(token_cap=10**9)
    before = gc.get_threshold()
    gc.disable()
    gc.collect()
    gc.freeze()  # else each collection looks at everything that the other tests have loaded
    try:
        for allocation in range(60):
            gc.collect()
            for _ in range(3):
                Cycle(pool.reserve(tokens=1))
            held = [pool.reserve(tokens=1) for _ in range(30)]
            del held
            gc.set_threshold(max(1, gc.get_count()[0] + allocation))
            gc.enable()
            pool.record(tokens=1)
            gc.disable()
            gc.set_threshold(*before)
            gc.collect()
            assert counters(pool) == (allocation + 1, 0, 0, 0, 0)
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
        gc.enable()


# ------------------------------------------------------------------ subclasses


class Equal(BudgetPool):
    """Its `__eq__` takes the hash from it."""

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]


class Frozen(BudgetPool):
    """Nothing of it can be set once it is made."""

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


# ------------------------------------------------------------------ those who wait and new windows


@pytest.mark.parametrize("before", [None, 10_000, 200])
@pytest.mark.parametrize("whose", ["pool", "group"])
def test_who_waits_learns_of_a_window_that_its_scope_gets(before: int | None, whose: str) -> None:
    clock = Clock(0.0)
    window = None if before is None else Window.every(timedelta(seconds=before), clock=clock)
    users = BudgetPool().keyed(token_cap=100, window=window)
    pool = users["ann"]
    held = pool.reserve(tokens=60)
    pool.record(tokens=40)
    patient, hasty = waiting(pool, tokens=40, timeout=150), waiting(pool, tokens=50, timeout=50)
    (pool if whose == "pool" else users).set_caps(window=Window.every(SPAN, clock=clock))
    assert patient.bell.rung == hasty.bell.rung == 1  # each has to sleep until another moment
    held.commit()
    assert (patient.state, hasty.state) == ("waiting", "refused")
    clock.now = 100.0
    pool.snapshot()
    assert patient.state == "granted"
    patient.reservation.release()


def test_who_waits_for_a_period_that_no_longer_ends_is_refused() -> None:
    clock = Clock(0.0)
    pool = BudgetPool(token_cap=100, window=Window.every(SPAN, clock=clock))
    pool.record(tokens=100)
    waiter = waiting(pool, tokens=1, timeout=150)
    pool.set_caps(window=None)
    assert waiter.state == "refused"


def test_a_thread_that_waits_sleeps_until_the_end_of_the_new_period(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(0.0)
    pool = BudgetPool(token_cap=100, window=Window.every(100 * SPAN, clock=clock))
    held = pool.reserve(tokens=60)
    pool.record(tokens=40)
    slept: list[float | None] = []

    def wait(bell: ThreadBell, timeout: float | None) -> bool:
        slept.append(timeout)
        if len(slept) == 1:
            pool.set_caps(window=Window.every(SPAN, clock=clock))
            held.commit()
            return bool(bell._lock.acquire(blocking=False))
        assert len(slept) == 2
        clock.now += timeout or 0.0
        return False

    monkeypatch.setattr(ThreadBell, "wait", wait)
    pool.reserve(tokens=40, timeout=500).release()
    assert slept == [pytest.approx(500, abs=60), 100.0]


# ------------------------------------------------------------------ handlers that serve the lines


def test_a_line_that_a_handler_has_emptied_and_removed_is_served_without_an_error() -> None:
    pool = BudgetPool(token_cap=10)
    family, account = pool._family, pool._account
    assert account.line is None
    assert not serve(family, account)
    family.stirred.extend([account, account])
    family.settle()
    assert not family.stirred


def test_what_a_handler_has_looked_at_meanwhile_needs_no_look() -> None:
    pool = BudgetPool(token_cap=10)
    child = pool.child()
    family = pool._family
    real, looked = family._serve, []

    def serve_all(_family: Any, account: Any) -> bool:
        looked.append(account)
        family._serve = real
        family.settle()  # as an operation of a handler does
        return False

    family.stirred.extend([pool._account, child._account])
    family._serve = serve_all
    family.settle()
    assert looked == [pool._account]
    assert not family.stirred


class Stale:
    """One that has left. A handler comes just as its state is looked at."""

    tokens = nanos = 9
    ticket = 1
    handler: Callable[[], object] | None = None

    @property
    def state(self) -> str:
        handler, self.handler = self.handler, None
        if handler is not None:
            handler()
        return WITHDRAWN


def test_a_handler_that_drops_the_entry_of_one_that_left_costs_nobody_else_the_turn() -> None:
    account = object()
    live: Any = types.SimpleNamespace(state=WAITING, ticket=2, tokens=5, nanos=5, at=account)
    stale: Any = Stale()
    largest = Largest([stale, live])
    stale.handler = largest.top
    assert largest.top() == (live, live)
    line = Line()
    line.parked = [(1, stale), (2, live)]
    stale.handler = lambda: line.head(account)
    assert line.head(account) is live
    assert line.parked == [(2, live)]


# ------------------------------------------------------------------ clocks that stand still


def test_a_time_out_ends_where_the_monotonic_clock_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: Any = types.SimpleNamespace(monotonic=lambda: 5.0)
    monkeypatch.setattr(_sleep, "time", frozen)
    monkeypatch.setattr(_waiting, "time", frozen)
    pool = BudgetPool(token_cap=100, window=Window.every(SPAN, clock=Clock(99.0)))
    pool.record(tokens=100)
    slept: list[float | None] = []

    def wait(_bell: ThreadBell, timeout: float | None) -> bool:
        slept.append(timeout)
        assert len(slept) < 10, "it sleeps for ever"
        return False

    monkeypatch.setattr(ThreadBell, "wait", wait)
    with pytest.raises(BudgetTimeout):
        pool.reserve(tokens=50, timeout=3.5)
    assert slept == [1.0, 1.0, 1.0, 0.5]


def test_a_time_out_ends_under_freezegun() -> None:
    freezegun = pytest.importorskip("freezegun")
    with freezegun.freeze_time("2024-01-01 23:59:59.990"):
        pool = BudgetPool(token_cap=100, window=Window.daily())
        pool.record(tokens=100)
        with pytest.raises(BudgetTimeout):
            pool.reserve(tokens=50, timeout=0.03)
        assert waiters(pool) == []


# ------------------------------------------------------------------ what is kept of forgotten keys


def test_a_listener_of_a_forgotten_key_is_not_kept_once_it_has_ended() -> None:
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
    assert all(one() is not None for one in kept)  # they come back with their keys
    for end in ends:
        end()
    del ends, end
    gc.collect()
    assert [one() for one in kept] == [None] * 20
    assert users._own == {}
