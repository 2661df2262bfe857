"""Pools with windows: usage starts again exactly once at the end of each period, in any thread and by any clock."""

from __future__ import annotations

import asyncio
import math
import threading
from datetime import datetime, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from calendars import DAY, HOUR, START, Clock, Period, at, earlier, naive, needs_zones
from support import caught, run_together
from token_budget import (
    BudgetEvent,
    BudgetExceeded,
    BudgetOverrun,
    BudgetPool,
    BudgetSnapshot,
    PoolClosed,
    Reservation,
    Window,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def hourly(clock: Callable[[], float]) -> Window:
    return Window.every(timedelta(hours=1), clock=clock)


def roll_overs(pool: BudgetPool) -> list[BudgetEvent]:
    """Return the list to which each roll-over of the pool will be added."""
    events: list[BudgetEvent] = []

    def hear(event: BudgetEvent) -> None:
        if event.kind == "roll-over":
            events.append(event)

    pool.subscribe(hear)
    return events


@pytest.mark.parametrize("window", ["daily", Window, timedelta(hours=1), 5, {"every": 5}, lambda: 0.0])
def test_a_window_of_another_type_is_a_type_error_that_says_how_to_make_one(window: Any) -> None:
    pool = BudgetPool()
    for make in (BudgetPool, pool.child, pool.keyed):
        with pytest.raises(TypeError, match=r"window must be a Window \(Window\.daily\(\) and so on\), not"):
            make(window=window)
    assert pool.snapshot(tree=True).children == ()


def test_without_a_window_a_snapshot_has_no_period() -> None:
    pool = BudgetPool(usd_cap=10)
    assert (pool.snapshot().window_start, pool.snapshot().resets_at) == (None, None)


@needs_zones
def test_a_snapshot_has_its_period_as_aware_utc_datetimes() -> None:
    clock = Clock(START)
    pool = BudgetPool(usd_cap=10, window=Window.daily("Europe/Berlin", clock=clock))
    snapshot = pool.snapshot()
    assert snapshot.window_start == datetime(2026, 3, 28, 23, tzinfo=timezone.utc)
    assert snapshot.resets_at == datetime(2026, 3, 29, 22, tzinfo=timezone.utc)
    for moment in (snapshot.window_start, snapshot.resets_at):
        assert moment is not None
        assert moment.tzinfo is timezone.utc


@needs_zones
def test_the_cap_holds_through_the_day_and_is_available_again_the_next_day() -> None:
    clock = Clock(START)
    pool = BudgetPool(usd_cap=10, window=Window.daily("Europe/Berlin", clock=clock))
    pool.record(usd=10)
    clock.now = earlier(at("2026-03-29T22:00"))
    with pytest.raises(BudgetExceeded):
        pool.record(usd=1)
    clock.now = at("2026-03-29T22:00")
    pool.record(usd=10)
    with pytest.raises(BudgetExceeded):
        pool.record(usd=1)


OPERATIONS: dict[str, Callable[[BudgetPool], object]] = {
    "record": lambda pool: pool.record(),
    "record by force": lambda pool: pool.record(force=True),
    "a record that is refused": lambda pool: caught(BudgetExceeded, pool.record, tokens=11),
    "reserve": lambda pool: pool.reserve().release(),
    "try_reserve": lambda pool: pool.try_reserve().release(),
    "snapshot": lambda pool: pool.snapshot(),
    "tree": lambda pool: pool.snapshot(tree=True),
    "repr": repr,
    "set_caps": lambda pool: pool.set_caps(usd_cap=3),
    "close": lambda pool: pool.close(),
    "subscribe": lambda pool: pool.subscribe(print),
    "child": lambda pool: pool.child(),
    "a child's record": lambda pool: pool.child().record(),
    "a key's record": lambda pool: pool.keyed()["key"].record(),
    "a join's record": lambda pool: BudgetPool.join(pool).record(),
}


@pytest.mark.parametrize("operation", list(OPERATIONS.values()), ids=list(OPERATIONS))
def test_any_operation_at_the_end_of_the_period_rolls_the_pool_over(operation: Callable[[BudgetPool], object]) -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    events = roll_overs(pool)
    pool.record(tokens=7, usd=0.5)
    clock.now = earlier(START + HOUR)
    operation(BudgetPool(10, window=hourly(clock)))  # another pool does not affect this one
    assert pool.snapshot().tokens_used == 7
    assert events == []
    clock.now = START + HOUR
    operation(pool)
    assert len(events) == 1
    after = events[0].snapshot
    assert (after.tokens_used, after.usd_used, after.in_flight) == (0, 0, 0)
    assert after.window_start == datetime(2026, 3, 29, 13, tzinfo=timezone.utc)
    assert after.resets_at == datetime(2026, 3, 29, 14, tzinfo=timezone.utc)
    assert (events[0].tokens, events[0].usd, events[0].pool) == (0, 0, None)
    assert (pool.snapshot().tokens_used, pool.snapshot().window_start) == (0, after.window_start)
    assert len(events) == 1


@pytest.mark.parametrize("operation", list(OPERATIONS.values()), ids=list(OPERATIONS))
def test_the_first_operation_may_come_after_the_period(operation: Callable[[BudgetPool], object]) -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    clock.now = START + HOUR
    operation(pool)
    clock.now = START  # so that the snapshot below does not roll it over
    assert pool.snapshot().window_start == datetime.fromtimestamp(START + HOUR, timezone.utc)


def test_nothing_rolls_over_until_the_next_operation_and_then_it_skips_to_the_present_period() -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    events = roll_overs(pool)
    pool.record(tokens=7)
    clock.now = START + 1000.5 * HOUR
    assert events == []
    assert pool.snapshot().tokens_used == 0
    assert len(events) == 1
    assert pool.snapshot().window_start == datetime.fromtimestamp(START + 1000 * HOUR, timezone.utc)


def test_a_call_with_bad_arguments_does_not_roll_over() -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    events = roll_overs(pool)
    clock.now = START + HOUR
    with pytest.raises(ValueError, match="tokens"):
        pool.record(tokens=-1)
    assert events == []


def test_reservations_in_flight_keep_what_they_hold_and_count_in_the_period_of_their_commit() -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    committed, dearer, released = pool.reserve(tokens=3), pool.reserve(tokens=2), pool.reserve(tokens=4)
    pool.record(tokens=1)
    clock.now = START + HOUR
    snapshot = pool.snapshot()
    assert (snapshot.tokens_used, snapshot.tokens_reserved, snapshot.in_flight) == (0, 9, 3)
    with pytest.raises(BudgetExceeded):
        pool.record(tokens=2)
    pool.record(tokens=1)
    committed.commit(tokens=2)
    clock.now = START + 2 * HOUR
    with pytest.raises(BudgetOverrun):
        dearer.commit(tokens=7)  # another 4 are held
    snapshot = pool.snapshot()
    assert (snapshot.tokens_used, snapshot.tokens_reserved, snapshot.in_flight) == (7, 4, 1)
    clock.now = START + 3 * HOUR
    released.release()
    snapshot = pool.snapshot()
    assert (snapshot.tokens_used, snapshot.tokens_reserved, snapshot.in_flight) == (0, 0, 0)


def test_an_overrun_ends_with_its_period() -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    with pytest.raises(BudgetOverrun):
        pool.record(tokens=50, force=True)
    clock.now = START + HOUR
    assert pool.snapshot().tokens_remaining == 10


def test_a_clock_that_steps_back_by_less_than_a_period_changes_nothing_and_reopens_nothing() -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    events = roll_overs(pool)
    pool.record(tokens=5)
    clock.now = START + HOUR
    pool.record(tokens=3)
    before = pool.snapshot()
    for back in (1, HOUR - 1, HOUR):  # at most to the start of the period before
        clock.now = START + HOUR - back
        assert pool.snapshot() == before
        with pytest.raises(BudgetExceeded):
            pool.record(tokens=8)
    pool.record(tokens=1)
    clock.now = earlier(START + 2 * HOUR)  # still the same period, as if the clock had never been wrong
    assert pool.snapshot().tokens_used == 4
    assert len(events) == 1
    clock.now = START + 2 * HOUR
    assert pool.snapshot().tokens_used == 0
    assert len(events) == 2


@pytest.mark.parametrize("back", [HOUR + 1, 2 * HOUR, 24 * HOUR, 10**9])
def test_a_clock_that_steps_back_by_more_than_a_period_sets_the_period_and_usage_is_kept(back: int) -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    events = roll_overs(pool)
    clock.now = START + HOUR
    pool.record(tokens=3)
    clock.now = START + HOUR - back
    snapshot = pool.snapshot()
    assert snapshot.tokens_used == 3
    start = clock.now // HOUR * HOUR
    assert snapshot.window_start == datetime.fromtimestamp(start, timezone.utc)
    assert snapshot.resets_at == datetime.fromtimestamp(start + HOUR, timezone.utc)
    assert len(events) == 1  # no period has ended since
    clock.now = start + HOUR
    assert pool.snapshot().tokens_used == 0
    assert len(events) == 2


def test_the_pool_follows_a_clock_that_leaps_ahead_and_comes_back() -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    clock.now = START + 50 * HOUR
    pool.record(tokens=3)
    clock.now = START
    assert pool.snapshot().tokens_used == 3  # usage is kept
    pool.record(tokens=7)
    for hour in range(1, 51):
        clock.now = START + hour * HOUR
        assert pool.snapshot().tokens_used == 0  # each period of the right clock begins
        pool.record(tokens=10)


def test_neither_reset_nor_new_caps_move_the_period() -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    clock.now = START + 1800
    pool.record(tokens=5)
    pool.reset()
    pool.set_caps(token_cap=20, usd_cap=1)
    snapshot = pool.snapshot()
    assert (snapshot.tokens_used, snapshot.token_cap) == (0, 20)
    assert snapshot.window_start == datetime.fromtimestamp(START, timezone.utc)
    pool.record(tokens=20)
    clock.now = START + HOUR
    assert pool.snapshot().tokens_remaining == 20


def test_a_closed_pool_shows_its_new_period_and_stays_closed() -> None:
    clock = Clock(START)
    total = BudgetPool(100)
    pool = total.child(10, window=hourly(clock))
    held = pool.reserve(tokens=2)
    pool.record(tokens=5)
    pool.close()
    clock.now = START + HOUR
    held.commit()
    assert (pool.snapshot().tokens_used, total.snapshot().tokens_used) == (2, 7)
    with pytest.raises(PoolClosed):
        pool.record(tokens=1)


def test_a_threshold_calls_back_once_in_each_period() -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    calls: list[BudgetEvent] = []
    pool.on_threshold(0.5, calls.append)
    for hour in range(3):
        clock.now = START + hour * HOUR
        for _ in range(9):
            pool.record(tokens=1)
        assert len(calls) == hour + 1
    held = pool.reserve(tokens=1)
    clock.now -= HOUR
    held.commit()
    assert len(calls) == 3


def test_a_waiter_gets_the_room_that_the_end_of_the_period_makes() -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))

    async def main() -> BudgetSnapshot:
        held = pool.reserve(tokens=4)
        pool.record(tokens=5)
        waiting = asyncio.ensure_future(wait())
        await asyncio.sleep(0)  # the task asks and waits
        assert not waiting.done()
        clock.now = START + HOUR
        assert pool.snapshot().tokens_reserved == 9
        given = await waiting
        snapshot = pool.snapshot()
        held.release()
        given.release()
        return snapshot

    async def wait() -> Reservation:
        return await pool.areserve(tokens=5, timeout=30)

    snapshot = asyncio.run(main())
    assert (snapshot.tokens_used, snapshot.tokens_reserved, snapshot.in_flight) == (0, 9, 2)


def test_a_window_can_be_shared_because_it_holds_no_state() -> None:
    clock = Clock(START)
    window = hourly(clock)
    early, other = BudgetPool(10, window=window), BudgetPool(10, window=window)
    early.record(tokens=1)
    other.record(tokens=2)
    clock.now = START + HOUR
    assert early.snapshot().tokens_used == 0
    late = BudgetPool(10, window=window)
    clock.now = START
    assert (other.snapshot().tokens_used, early.snapshot().tokens_used, late.snapshot().tokens_used) == (2, 0, 0)
    assert other.snapshot().window_start != early.snapshot().window_start == late.snapshot().window_start


def test_parents_and_children_each_end_their_own_periods() -> None:
    clock = Clock(at("2026-07-15T12:00"))
    month = BudgetPool(100, window=Window.monthly(clock=clock))
    day = month.child(10, window=Window.daily(clock=clock))
    run = day.child(5)
    run.record(tokens=5)
    clock.now += DAY
    assert [pool.snapshot().tokens_used for pool in (run, day, month)] == [5, 0, 5]
    with pytest.raises(BudgetExceeded):
        run.record(tokens=1)
    day.record(tokens=10)
    assert [pool.snapshot().tokens_used for pool in (run, day, month)] == [5, 10, 15]
    clock.now = at("2026-08-01T00:00")
    assert [pool.snapshot().tokens_used for pool in (run, day, month)] == [5, 0, 0]


def test_an_operation_rolls_over_its_pool_and_those_above_and_a_tree_snapshot_rolls_over_all() -> None:
    clock = Clock(START)
    total = BudgetPool(window=hourly(clock))
    child = total.child(window=hourly(clock))
    below = child.child(window=hourly(clock))
    key = child.keyed(window=hourly(clock))["key"]
    rolled = [roll_overs(pool) for pool in (total, child, below, key)]
    below.record(tokens=1)
    key.record(tokens=1)
    clock.now += HOUR
    total.record()
    assert list(map(len, rolled)) == [1, 0, 0, 0]
    below.record()
    assert list(map(len, rolled)) == [1, 1, 1, 0]
    clock.now += HOUR
    tree = total.snapshot(tree=True)
    assert list(map(len, rolled)) == [2, 2, 2, 1]
    shown = [tree, *tree.children, *tree.children[0].children]
    assert [one.tokens_used for one in shown] == [0, 0, 0, 0]
    assert {one.window_start for one in shown} == {datetime.fromtimestamp(START + 2 * HOUR, timezone.utc)}


def test_a_join_rolls_over_each_scope_that_it_counts_against() -> None:
    clock = Clock(START)
    total = BudgetPool()
    hour, two = (total.child(10, window=Window.every(timedelta(hours=n), clock=clock)) for n in (1, 2))
    both = BudgetPool.join(hour, two)
    both.record(tokens=10)
    assert both.snapshot().window_start is None
    clock.now += HOUR
    with pytest.raises(BudgetExceeded):
        both.record(tokens=1)
    assert (hour.snapshot().tokens_used, two.snapshot().tokens_used, total.snapshot().tokens_used) == (0, 10, 10)
    clock.now += HOUR
    both.record(tokens=1)
    assert (hour.snapshot().tokens_used, two.snapshot().tokens_used, total.snapshot().tokens_used) == (1, 1, 11)


def test_each_key_has_periods_of_its_own_budget() -> None:
    clock = Clock(START)
    users = BudgetPool().keyed(usd_cap=1, window=hourly(clock))
    users["ann"].record(usd=1)
    users["bob"].record(usd=0.5)
    with pytest.raises(BudgetExceeded):
        users["ann"].record(usd=0.5)
    clock.now += HOUR
    assert users["bob"].snapshot().usd_used == 0
    users["ann"].record(usd=1)
    assert users["ann"].snapshot().resets_at == datetime.fromtimestamp(START + 2 * HOUR, timezone.utc)


def test_a_clock_that_steps_back_does_not_let_a_key_spend_one_period_twice() -> None:
    clock = Clock(START)
    users = BudgetPool().keyed(usd_cap=1, window=hourly(clock))
    users["ann"].record(usd=1)
    clock.now += HOUR
    users["bob"].record(usd=1)
    users["cid"].record(usd=1)
    assert "ann" not in users  # forgotten: her period is over
    clock.now -= HOUR
    users["ann"].record(usd=1)  # she spends the budget of the second period, not that of the first again
    assert users["ann"].snapshot().window_start == users["bob"].snapshot().window_start
    for now in (clock.now, clock.now + HOUR):
        clock.now = now
        with pytest.raises(BudgetExceeded):
            users["ann"].record(usd=1)


def test_if_a_clock_raises_the_operation_raises_and_changes_nothing() -> None:
    clock = Clock(START)
    broken = False

    def read() -> float:
        if broken:
            raise OSError("the clock is broken")
        return clock.now

    pool = BudgetPool(10, window=hourly(read))
    held = pool.reserve(tokens=2)
    pool.record(tokens=5)
    before = pool.snapshot()
    broken = True
    for operation in (pool.record, pool.reserve, pool.snapshot, held.commit, pool.child, pool.reset):
        with pytest.raises(OSError, match="the clock is broken"):
            operation()
    broken = False
    assert pool.snapshot() == before
    held.commit()
    assert pool.snapshot().tokens_used == 7


@pytest.mark.parametrize("now", [math.nan, math.inf, -math.inf, None, "now"])
def test_a_pool_cannot_be_made_with_a_clock_that_returns_no_time(now: Any) -> None:
    for window in (Window.daily(clock=lambda: now), hourly(lambda: now)):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            BudgetPool(window=window)


@pytest.mark.parametrize("now", [math.nan, math.inf, -math.inf, 1e300, None, "now"])
def test_a_clock_that_stops_returning_a_time_ends_no_period(now: Any) -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=Window.daily(clock=clock))
    events = roll_overs(pool)
    pool.record(tokens=5)
    clock.now = now
    try:
        pool.record(tokens=0)
    except (TypeError, ValueError, OverflowError):
        pass
    clock.now = START
    assert pool.snapshot().tokens_used == 5
    assert events == []


# ------------------------------------------------------------------ threads


class Gate(tzinfo):
    """UTC, but each thread that computes a new period, after it has seen the end of the last one, calls `enter`."""

    def __init__(self) -> None:
        self.enter: Callable[[], object] = lambda: None

    def utcoffset(self, dt: datetime | None) -> timedelta:
        self.enter()
        return timedelta(0)

    def dst(self, dt: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, dt: datetime | None) -> str:
        return "Gate"


def once_each(action: Callable[[], object]) -> Callable[[], None]:
    """Return a function that runs the action at the first call of each thread."""
    seen: set[int] = set()

    def call() -> None:
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            action()

    return call


class Slow:
    """Runs a body in a thread, and holds the thread at its first call of `stop` until `finish`."""

    def __init__(self, body: Callable[[], object]) -> None:
        self._inside, self._go = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=body, daemon=True)
        self.results: list[BaseException] = []

    def stop(self) -> None:
        if threading.get_ident() == self._thread.ident and not self._inside.is_set():
            self._inside.set()
            assert self._go.wait(30)

    def start(self) -> None:
        self._thread.start()
        assert self._inside.wait(30)

    def finish(self) -> None:
        self._go.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


def test_two_threads_that_have_both_seen_the_end_roll_the_pool_over_once() -> None:
    clock, gate = Clock(START), Gate()
    pool = BudgetPool(10, window=Window.daily(gate, clock=clock))
    events = roll_overs(pool)
    pool.record(tokens=5)
    clock.now += DAY
    barrier = threading.Barrier(2)
    gate.enter = once_each(lambda: barrier.wait(30))
    run_together(lambda: pool.record(tokens=1), lambda: pool.record(tokens=2))
    assert pool.snapshot().tokens_used == 3
    assert len(events) == 1


@pytest.mark.usefixtures("racing")
def test_threads_that_read_the_end_from_the_clock_at_one_moment_roll_the_pool_over_once() -> None:
    barrier = threading.Barrier(4)
    meet: Callable[[], object] = lambda: None  # noqa: E731
    clock = Clock(START)

    def read() -> float:
        now = clock.now
        meet()
        return now

    pool = BudgetPool(100, window=hourly(read))
    events = roll_overs(pool)
    for hour in range(1, 51):
        pool.record(tokens=50)
        clock.now += HOUR
        meet = once_each(lambda: barrier.wait(30))
        run_together(lambda: pool.record(tokens=1), *[lambda: pool.record(tokens=2)] * 2, pool.snapshot)
        meet = lambda: None  # noqa: E731
        assert pool.snapshot().tokens_used == 5
        assert len(events) == hour


def test_a_thread_that_read_the_clock_before_the_end_spends_in_the_period_that_another_has_begun() -> None:
    clock = Clock(START)
    slow = Slow(lambda: pool.record(tokens=4))

    def read() -> float:
        now = clock.now
        slow.stop()
        return now

    pool = BudgetPool(10, window=hourly(read))
    events = roll_overs(pool)
    pool.record(tokens=7)
    slow.start()
    clock.now += HOUR
    pool.record(tokens=1)
    slow.finish()
    assert pool.snapshot().tokens_used == 5
    assert len(events) == 1


@pytest.mark.parametrize("days", [1, 2])
def test_a_thread_that_is_late_with_a_period_does_not_end_it_again_nor_go_back_to_it(days: int) -> None:
    clock, gate = Clock(START), Gate()
    pool = BudgetPool(10, window=Window.daily(gate, clock=clock))
    events = roll_overs(pool)
    pool.record(tokens=7)
    slow = Slow(lambda: pool.record(tokens=4))
    gate.enter = slow.stop
    clock.now = START + DAY
    slow.start()  # it has seen the end of the first day
    clock.now = START + days * DAY
    pool.record(tokens=1)
    before = pool.snapshot()
    slow.finish()
    after = pool.snapshot()
    assert (before.tokens_used, after.tokens_used) == (1, 5)
    assert after.window_start == before.window_start == datetime(2026, 3, 29 + days, tzinfo=timezone.utc)
    assert len(events) == 1


@pytest.mark.usefixtures("racing")
def test_threads_over_many_periods_lose_no_spend_and_see_each_period_begin_once() -> None:
    clock, tick = Clock(START), threading.Lock()
    total = BudgetPool(window=hourly(clock))
    pool = total.child(window=Window.every(timedelta(hours=3), clock=clock))
    told: list[BudgetEvent] = []
    pool.subscribe(told.append)
    of_total = roll_overs(total)

    def spend() -> None:
        for _ in range(150):
            with tick:
                clock.now += 1000
            with pool.reserve(tokens=2) as reservation:
                reservation.commit(tokens=1)

    run_together(*[spend] * 4)
    used: dict[datetime | None, int] = {}  # by period, since events of two threads may come in either order
    for event in told:
        start = event.snapshot.window_start
        used[start] = max(used.get(start, 0), event.snapshot.tokens_used)
    assert sum(used.values()) == 600
    # A period without an operation is skipped. Each other period, except the first, began exactly once.
    begun = [event.snapshot.window_start for event in told if event.kind == "roll-over"]
    assert len(begun) == len(set(begun)) > 1
    assert set(begun) == set(used) - {datetime.fromtimestamp(START, timezone.utc)}
    of_total_begun = [event.snapshot.window_start for event in of_total]
    assert len(of_total_begun) == len(set(of_total_begun)) > 1
    assert total.snapshot().window_start in of_total_begun
    assert (pool.snapshot().in_flight, total.snapshot().in_flight) == (0, 0)


# ------------------------------------------------------------------ pools against the naive model

TEXTS = (
    "daily", "daily Europe/Berlin", "daily America/St_Johns", "daily Pacific/Apia", "daily Asia/Beirut",
    "weekly America/Havana", "weekly Pacific/Apia", "monthly Asia/Dhaka", "every 5h", "every 90m", "every 3d",
)  # fmt: skip
CHANGES = ("2006-10-29T02:31", "2009-12-31T17:00", "2011-12-30T10:00", "2025-03-30T01:00", "2025-10-25T21:00")
CAP = 20
jumps = st.one_of(
    st.integers(-3 * DAY, 3 * DAY), st.integers(-HOUR, HOUR), st.sampled_from([0, 0.5, 60, -60, HOUR, DAY, -DAY])
)


class Scope:
    """The plainest model of a pool with a window: a period, the amount used in it, and the amounts held."""

    def __init__(self, text: str | None, now: float) -> None:
        self.naive: Callable[[float], Period] = naive(text) if text else lambda _: (-math.inf, math.inf)
        self.period = self.naive(now)
        self.used = 0
        self.held: dict[int, int] = {}
        self.rolled = 0

    def see(self, now: float) -> None:
        start, end = self.period
        if now >= end:
            self.used = 0
            self.rolled += 1
            self.period = self.naive(now)
        elif now < start - (end - start):  # the clock was wrong before
            self.period = self.naive(now)


class PoolsAgainstNaiveWindows(RuleBasedStateMachine):
    """A family of pools with windows of all kinds and a clock that jumps. Each rule acts on the pools and the model."""

    @initialize(
        texts=st.lists(st.none() | st.sampled_from(TEXTS), min_size=4, max_size=4),
        start=st.sampled_from(CHANGES),
        jump=jumps,
    )
    def start(self, texts: list[str | None], start: str, jump: float) -> None:
        self.clock = Clock(at(start) + jump)
        windows = [None if text is None else Window.parse(text, clock=self.clock) for text in texts]
        root = BudgetPool(CAP, window=windows[0])
        left, right = root.child(CAP, window=windows[1]), root.child(CAP, window=windows[2])
        key = left.keyed(CAP, window=windows[3])["key"]
        self.pools = [root, left, right, key, BudgetPool.join(left, right)]
        self.scopes = [Scope(text, self.clock.now) for text in [*texts, None]]
        self.chains = [[0], [1, 0], [2, 0], [3, 1, 0], [4, 1, 2, 0]]
        self.rolled = [roll_overs(pool) for pool in self.pools]
        self.open: dict[int, tuple[int, Reservation]] = {}
        self.asked: list[int] = []

    def see(self, which: int) -> list[Scope]:
        """Tell the model of an operation on a pool, and return the scopes that it counts against."""
        self.asked = self.chains[which]
        chain = [self.scopes[index] for index in self.asked]
        for scope in chain:
            scope.see(self.clock.now)
        return chain

    @rule(by=jumps)
    def jump(self, by: float) -> None:
        self.clock.now += by

    @rule(which=st.integers(0, 4), end=st.booleans(), by=st.sampled_from([-1, -1 / 1024, 0, 0, 0, 1]))
    def land(self, which: int, end: bool, by: float) -> None:
        moment = self.scopes[which].period[end]
        if math.isfinite(moment):
            self.clock.now = moment + by

    @rule(which=st.integers(0, 4), tokens=st.integers(0, 8), hold=st.booleans())
    def spend(self, which: int, tokens: int, hold: bool) -> None:
        pool, chain = self.pools[which], self.see(which)
        ask = pool.reserve if hold else pool.record
        if any(scope.used + sum(scope.held.values()) + tokens > CAP for scope in chain if scope is not self.scopes[4]):
            with pytest.raises(BudgetExceeded):
                ask(tokens=tokens)
            return
        made = ask(tokens=tokens)
        if made is not None:
            self.open[id(made)] = (which, made)
        for scope in chain:
            if made is None:
                scope.used += tokens
            else:
                scope.held[id(made)] = tokens

    @precondition(lambda self: self.open)
    @rule(data=st.data(), tokens=st.none() | st.integers(0, 8))
    def settle(self, data: st.DataObject, tokens: int | None) -> None:
        which, reservation = self.open.pop(data.draw(st.sampled_from(list(self.open))))
        if tokens is None:
            reservation.release()
        elif caught(BudgetOverrun, reservation.commit, tokens=tokens):
            assert tokens > reservation.reserved_tokens
        for scope in self.see(which):
            del scope.held[id(reservation)]
            if tokens is not None:
                scope.used += tokens

    @rule(which=st.integers(0, 4), reset=st.booleans())
    def look(self, which: int, reset: bool) -> None:
        chain = self.see(which)
        if reset:
            self.pools[which].reset()
            chain[0].used = 0

    @invariant()
    def same(self) -> None:
        """Compare the pools of the last operation. Reading other pools would end their periods."""
        for index in getattr(self, "asked", ()):
            self.see(index)
            snapshot, scope = self.pools[index].snapshot(), self.scopes[index]
            assert (snapshot.tokens_used, snapshot.tokens_reserved) == (scope.used, sum(scope.held.values()))
            start, end = scope.period
            if math.isfinite(end):
                assert snapshot.window_start == datetime.fromtimestamp(start, timezone.utc)
                assert snapshot.resets_at == datetime.fromtimestamp(end, timezone.utc)
        self.asked = []
        if hasattr(self, "rolled"):
            assert [len(events) for events in self.rolled] == [scope.rolled for scope in self.scopes]

    def teardown(self) -> None:
        for _, reservation in getattr(self, "open", {}).values():
            reservation.release()


TestPoolsAgainstNaiveWindows = needs_zones(PoolsAgainstNaiveWindows.TestCase)
TestPoolsAgainstNaiveWindows.settings = hypothesis.settings(max_examples=hypothesis.settings().max_examples // 5)
