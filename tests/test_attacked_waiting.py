"""Faults that an attack on lines, the lock and clocks found.

Each test constructs a case that the attack met by chance, and fails if the fault comes back.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import types
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from shapes import Clock, waiting
from support import counters, run_program
from token_budget import (
    BudgetPool,
    BudgetTimeout,
    Reservation,
    Window,
    _sleep,
    _waiting,
)
from token_budget._bells import ThreadBell
from token_budget._line import serve
from token_budget._waiting import WAITING, WITHDRAWN, Largest, Line

SPAN = timedelta(seconds=100)


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


def test_a_granted_waiter_is_woken_before_any_callback_runs() -> None:
    pool = BudgetPool(token_cap=100)
    holder = pool.reserve(tokens=100)
    waiter = waiting(pool, tokens=50)
    heard: list[tuple[str, int]] = []
    pool.subscribe(lambda event: heard.append((event.kind, waiter.bell.rung)))
    holder.release()
    assert heard == [("release", 1), ("reserve", 1)]
    waiter.reservation.release()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_drop_inside_an_operation_of_the_same_thread_warns_after_the_lock_is_free() -> None:
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
    """Up to CPython 3.11, any allocation may collect. Here each of an operation's first sixty allocations does."""
    pool = BudgetPool(token_cap=10**9)
    before = gc.get_threshold()
    gc.disable()
    gc.collect()
    gc.freeze()  # otherwise each collection visits everything that the other tests have loaded
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


# ------------------------------------------------------------------ waiters and new windows


@pytest.mark.parametrize("before", [None, 10_000, 200])
@pytest.mark.parametrize("whose", ["pool", "group"])
def test_a_waiter_learns_of_a_window_that_its_scope_gets(before: int | None, whose: str) -> None:
    clock = Clock(0.0)
    window = None if before is None else Window.every(timedelta(seconds=before), clock=clock)
    users = BudgetPool().keyed(token_cap=100, window=window)
    pool = users["ann"]
    held = pool.reserve(tokens=60)
    pool.record(tokens=40)
    patient, hasty = waiting(pool, tokens=40, timeout=150), waiting(pool, tokens=50, timeout=50)
    (pool if whose == "pool" else users).set_caps(window=Window.every(SPAN, clock=clock))
    assert patient.bell.rung == hasty.bell.rung == 1  # each must now sleep until another moment
    held.commit()
    assert (patient.state, hasty.state) == ("waiting", "refused")
    clock.now = 100.0
    pool.snapshot()
    assert patient.state == "granted"
    patient.reservation.release()


def test_a_waiter_for_the_end_of_a_period_is_refused_if_the_window_is_removed() -> None:
    clock = Clock(0.0)
    pool = BudgetPool(token_cap=100, window=Window.every(SPAN, clock=clock))
    pool.record(tokens=100)
    waiter = waiting(pool, tokens=1, timeout=150)
    pool.set_caps(window=None)
    assert waiter.state == "refused"


def test_a_waiting_thread_sleeps_until_the_end_of_the_new_period(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_line_that_a_handler_has_served_meanwhile_is_not_served_again() -> None:
    pool = BudgetPool(token_cap=10)
    child = pool.child()
    family = pool._family
    real, looked = family._serve, []

    def serve_all(_family: Any, account: Any) -> bool:
        looked.append(account)
        family._serve = real
        family.settle()  # as an operation in a handler does
        return False

    family.stirred.extend([pool._account, child._account])
    family._serve = serve_all
    family.settle()
    assert looked == [pool._account]
    assert not family.stirred


class Stale:
    """A waiter that has left the line. A handler runs just as its state is read."""

    tokens = nanos = 9
    ticket = 1
    handler: Callable[[], object] | None = None

    @property
    def state(self) -> str:
        handler, self.handler = self.handler, None
        if handler is not None:
            handler()
        return WITHDRAWN


def test_a_handler_that_drops_the_entry_of_a_waiter_that_left_costs_no_other_waiter_its_turn() -> None:
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


def test_a_wait_times_out_even_if_the_monotonic_clock_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: Any = types.SimpleNamespace(monotonic=lambda: 5.0)
    monkeypatch.setattr(_sleep, "time", frozen)
    monkeypatch.setattr(_waiting, "time", frozen)
    pool = BudgetPool(token_cap=100, window=Window.every(SPAN, clock=Clock(99.0)))
    pool.record(tokens=100)
    slept: list[float | None] = []

    def wait(_bell: ThreadBell, timeout: float | None) -> bool:
        slept.append(timeout)
        assert len(slept) < 10, "the thread sleeps for ever"
        return False

    monkeypatch.setattr(ThreadBell, "wait", wait)
    with pytest.raises(BudgetTimeout):
        pool.reserve(tokens=50, timeout=3.5)
    assert slept == [1.0, 1.0, 1.0, 0.5]


def test_a_wait_times_out_under_freezegun() -> None:
    pytest.importorskip("freezegun")
    run_program("""
import freezegun
from token_budget import BudgetPool, BudgetTimeout, Window

with freezegun.freeze_time("2024-01-01 23:59:59.990"):  # of its own process: it visits every module that is loaded
    pool = BudgetPool(token_cap=100, window=Window.daily())
    pool.record(tokens=100)
    try:
        pool.reserve(tokens=50, timeout=0.03)
    except BudgetTimeout:
        assert pool.statistics().waiters == 0
    else:
        raise AssertionError("it did not time out")
""")
