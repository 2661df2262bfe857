"""Operations that run code of the same thread inside them, interrupts inside operations, and races."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from heapq import heappush
from typing import Any

import pytest

from support import HookedLock, caught, counters, waiters
from token_budget import (
    BudgetEvent,
    BudgetExceeded,
    BudgetOverrun,
    BudgetPool,
    Reservation,
    ReservationClosed,
    _bells,
    _family,
    _ledger,
    _settings,
    _waiting,
)
from token_budget._account import Subscription


class Inside:
    """A key whose hash runs a function. It is hashed under the family's lock, where a finaliser might run too."""

    def __init__(self, pool: BudgetPool, act: Callable[[], object]) -> None:
        self.pool = pool
        self.act = act

    def __hash__(self) -> int:
        if self.pool._family.owner == threading.get_ident():
            act, self.act = self.act, lambda: None
            act()
        return 5

    def __str__(self) -> str:
        return "inside"


def run_inside(pool: BudgetPool, act: Callable[[], object]) -> None:
    done: list[object] = []
    pool.keyed()[Inside(pool, lambda: done.append(act()))]
    assert done


def test_a_snapshot_is_read_from_inside_an_operation_of_the_same_thread() -> None:
    pool = BudgetPool(token_cap=10, name="total")
    child = pool.child(name="child")
    child.record(tokens=4)
    seen: list[Any] = []
    run_inside(pool, lambda: seen.extend([pool.snapshot(), child.snapshot(), pool.snapshot(tree=True)]))
    assert [snapshot.tokens_used for snapshot in seen] == [4, 4, 4]
    assert [snapshot.name for snapshot in seen[2].children] == ["child"]


@pytest.mark.parametrize("operation", ["record", "reserve", "reset", "child", "set_caps"])
def test_an_operation_inside_another_of_the_same_thread_is_done_at_once(operation: str) -> None:
    """A signal handler or finaliser that interrupts an operation may do another."""
    pool = BudgetPool(token_cap=10, name="total")
    child = pool.child(token_cap=10)
    child.record(tokens=2)
    made: list[Any] = []
    operations: dict[str, Callable[[], object]] = {
        "record": lambda: child.record(tokens=3),
        "reserve": lambda: child.reserve(tokens=3),
        "reset": child.reset,
        "child": lambda: child.child(name="new"),
        "set_caps": lambda: child.set_caps(token_cap=20),
    }

    def act() -> None:
        made.extend([operations[operation](), child.snapshot(), child.snapshot(tree=True).children])

    run_inside(pool, act)
    answer, seen, children = made
    assert (seen.tokens_used, seen.tokens_reserved, seen.token_cap) == {
        "record": (5, 0, 10),
        "reserve": (2, 3, 10),
        "reset": (0, 0, 10),
        "child": (2, 0, 10),
        "set_caps": (2, 0, 20),
    }[operation]
    assert [one.name for one in children] == (["new"] if operation == "child" else [])
    assert child.snapshot() == seen
    if operation == "reserve":
        answer.release()


def test_no_wait_for_room_begins_inside_an_operation_of_the_same_thread() -> None:
    """The room might have to come from the very operation that is interrupted."""
    pool = BudgetPool(token_cap=10)
    with pool.reserve(tokens=10):

        def act() -> None:
            for timeout in (None, 5):
                with pytest.raises(RuntimeError, match=r"cannot wait for room in it.*Reserve with timeout=0"):
                    pool.reserve(tokens=1, timeout=timeout)
            assert caught(BudgetExceeded, pool.reserve, tokens=1)

        run_inside(pool, act)
        assert not waiters(pool)


@pytest.mark.parametrize("operation", ["record", "reserve", "commit"])
def test_an_operation_that_its_own_thread_interrupted_decides_again(
    monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    pool = BudgetPool(token_cap=10, name="total")
    child = pool.child().child()
    pool.subscribe(lambda _event: None)
    held = child.reserve(tokens=4)
    module, name = (_ledger, "_overrun") if operation == "commit" else (_ledger, "blocker")
    decide = getattr(module, name)

    def interrupted(*arguments: Any) -> object:
        """Decide, and then act as a handler may before the decision is published."""
        answer = decide(*arguments)
        monkeypatch.undo()
        pool.record(tokens=6)
        return answer

    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(BudgetExceeded) as raised:
        held.commit(tokens=5) if operation == "commit" else getattr(child, operation)(tokens=1)
    assert type(raised.value) is (BudgetOverrun if operation == "commit" else BudgetExceeded)
    assert raised.value.attempted == 11
    assert counters(pool) == ((11, 0, 0, 0, 0) if operation == "commit" else (6, 4, 0, 0, 1))
    held.release()


def test_a_spend_inside_an_operation_counts_at_once_and_its_event_comes_at_the_end() -> None:
    """P3 in finalisers: the collector may run a finaliser that commits anywhere."""
    pool = BudgetPool(token_cap=10, name="total")
    child = pool.child(name="child")
    heard: list[tuple[str, int]] = []
    child.subscribe(lambda event: heard.append((event.kind, event.tokens)))
    held = child.reserve(tokens=5)
    heard.clear()

    def act() -> None:
        held.commit(tokens=4)
        assert caught(ReservationClosed, held.commit, tokens=4)
        child.record(tokens=3, force=True)
        assert counters(pool) == (7, 0, 0, 0, 0)
        assert caught(BudgetOverrun, child.record, tokens=30, force=True)
        assert counters(pool) == (37, 0, 0, 0, 0)
        assert heard == []  # callbacks run only when the lock is free

    run_inside(pool, act)
    assert counters(pool) == counters(child) == (37, 0, 0, 0, 0)
    assert heard == [("commit", 4), ("record", 3), ("record", 30), ("overrun", 30)]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("below", [False, True])
def test_a_commit_counts_even_after_the_collector_finalised_the_reservation(below: bool) -> None:
    pool = BudgetPool(token_cap=10)
    held = (pool.child() if below else pool).reserve(tokens=5)
    held.__del__()  # as in a cycle of garbage, where another finaliser commits
    assert counters(pool) == (0, 0, 0, 0, 0)
    assert held.completed
    assert "dropped" in repr(held)
    held.release()
    held.commit(tokens=4)
    assert counters(pool) == (4, 0, 0, 0, 0)
    with pytest.raises(ReservationClosed):
        held.commit(tokens=4)
    other = pool.reserve(tokens=5)
    other.__del__()
    pool.snapshot()
    with pytest.raises(BudgetOverrun):
        other.commit(tokens=7)
    assert counters(pool) == (11, 0, 0, 0, 0)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("drop", [False, True])
def test_a_release_inside_an_operation_serves_a_waiter(drop: bool) -> None:
    pool = BudgetPool(token_cap=10)
    held: list[Reservation] = [pool.reserve(tokens=10)]
    got = threading.Event()

    def wait() -> None:
        with pool.reserve(tokens=10, timeout=30):
            got.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not waiters(pool):
        pass

    def act() -> None:
        if drop:
            held.clear()
            gc.collect()
        else:
            held[0].release()
            assert held[0].completed
        assert counters(pool)[1] == 10

    run_inside(pool, act)
    assert got.wait(30)  # the interrupted operation rings the bell as it ends
    waiting.join(30)
    assert counters(pool) == (0, 0, 0, 0, 0)


def test_an_exception_inside_an_operation_changes_nothing() -> None:
    pool = BudgetPool(token_cap=10)

    def act() -> None:
        raise KeyboardInterrupt

    users = pool.keyed()
    with pytest.raises(KeyboardInterrupt):
        users[Inside(pool, act)]
    assert pool._family.owner == 0
    assert len(users) == 0
    pool.record(tokens=10)


# ---------------------------------------------------------------- interrupts


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_drop_that_an_interrupt_cut_short_is_completed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = BudgetPool(token_cap=10)
    pool.subscribe(lambda _event: None)
    pool.reserve(tokens=10)

    def release(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(_ledger, "_release", release)
    with pytest.raises(KeyboardInterrupt):
        pool.snapshot()
    assert counters(pool) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("operation", ["record", "force", "reserve", "commit", "release"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_interrupt_before_a_change_is_published_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    pool = BudgetPool(token_cap=10, name="total")
    child = pool.child().child()
    heard: list[str] = []
    pool.subscribe(lambda event: heard.append(event.kind))
    held = child.reserve(tokens=4)
    heard.clear()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_family, "starmap", interrupted)  # it makes the iterator that publishes a change
    operations: dict[str, Callable[[], object]] = {
        "record": lambda: child.record(tokens=1),
        "force": lambda: child.record(tokens=1, force=True),
        "reserve": lambda: child.reserve(tokens=1),
        "commit": lambda: held.commit(tokens=1),
        "release": held.release,
    }
    with pytest.raises(KeyboardInterrupt):
        operations[operation]()
    monkeypatch.undo()
    assert counters(pool) == counters(child) == (0, 4, 0, 0, 1)
    assert heard == []
    held.commit()
    assert heard == ["commit"]


@pytest.mark.parametrize("told", ["subscriber", "threshold"])
def test_the_next_operation_delivers_once_an_event_that_two_interrupts_held_back(
    monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    """The second interrupt comes while the caller completes what the first one cut short."""
    pool = BudgetPool(token_cap=10)
    child = pool.child()
    heard: list[str] = []

    def hear(event: BudgetEvent) -> None:
        heard.append(event.kind)

    if told == "subscriber":
        pool.subscribe(hear)
    else:
        pool.on_threshold(0.5, hear)

    def interrupted(_self: _family.Family) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_family.Family, "pay", interrupted)
    with pytest.raises(KeyboardInterrupt):
        child.record(tokens=5)
    monkeypatch.undo()
    assert heard == []
    child.snapshot()
    child.snapshot()
    assert heard == ["record" if told == "subscriber" else "threshold"]
    assert counters(pool) == counters(child) == (5, 0, 0, 0, 0)


def test_the_next_operation_wakes_a_waiter_that_two_interrupts_left_asleep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = BudgetPool(token_cap=10)
    held = pool.reserve(tokens=10)
    waiting = threading.Thread(target=lambda: pool.reserve(tokens=10, timeout=None).release())
    waiting.start()
    while not waiters(pool):
        pass

    def interrupted(_self: _family.Family) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_family.Family, "pay", interrupted)
    with pytest.raises(KeyboardInterrupt):
        held.release()
    monkeypatch.undo()
    assert waiting.is_alive()
    pool.snapshot()
    waiting.join(30)
    assert not waiting.is_alive()
    assert counters(pool) == (0, 0, 0, 0, 0)


# ---------------------------------------------------------------- races


@pytest.mark.parametrize("operation", ["record", "force", "reserve", "commit", "release", "reset"])
@pytest.mark.parametrize("depth", [0, 2, 4])
def test_a_subscriber_that_arrives_before_an_operation_has_the_lock_gets_its_event(
    monkeypatch: pytest.MonkeyPatch, operation: str, depth: int
) -> None:
    """The race is constructed: another thread subscribes after the check for a nested operation, before the lock."""
    lock = HookedLock()
    monkeypatch.setattr(_family, "_new_lock", lambda: lock)
    pool = BudgetPool(token_cap=10)
    for _ in range(depth):
        pool = pool.child()
    pool.record(tokens=2)
    held = pool.reserve(tokens=3)
    heard: list[str] = []
    family = pool._family

    def subscribe() -> None:
        lock.hook = lambda: None
        subscription = Subscription(lambda event: heard.append(event.kind))
        family.change(_settings._subscribe, (family, pool._chain, (subscription,), ()))

    lock.hook = subscribe
    operations: dict[str, Any] = {
        "record": lambda: pool.record(tokens=1),
        "force": lambda: caught(BudgetExceeded, pool.record, tokens=20, force=True),
        "reserve": lambda: pool.reserve(tokens=1),
        "commit": lambda: held.commit(tokens=1),
        "release": held.release,
        "reset": pool.reset,
    }
    answer = operations[operation]()
    kinds = {"force": ["record", "overrun"]}.get(operation, [operation])
    assert heard == kinds
    for reservation in (held, answer):
        if isinstance(reservation, Reservation):
            reservation.release()
    assert counters(pool)[1] == 0


def test_a_drop_is_left_to_another_thread_that_is_inside_an_operation() -> None:
    pool = BudgetPool(token_cap=10)
    held = [pool.reserve(tokens=4), pool.reserve(tokens=6)]
    got = threading.Event()

    def wait() -> None:
        with pool.reserve(tokens=4, timeout=30):
            got.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not waiters(pool):
        pass
    entered, leave = threading.Event(), threading.Event()

    def stay_inside() -> None:
        def act() -> None:
            entered.set()
            assert leave.wait(30)

        run_inside(pool, act)

    inside = threading.Thread(target=stay_inside)
    inside.start()
    assert entered.wait(30)
    with pytest.warns(ResourceWarning):
        del held[0]  # this does not wait for the lock
    assert not got.is_set()
    leave.set()
    inside.join(30)
    assert got.wait(30)
    waiting.join(30)
    held[0].release()
    assert counters(pool) == (0, 0, 0, 0, 0)


def test_a_drop_is_released_only_once_if_another_thread_releases_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = BudgetPool(token_cap=10)
    first, second = pool.reserve(tokens=4), pool.reserve(tokens=3)
    drop = _ledger.drop

    def faster(*arguments: Any) -> None:
        drop(*arguments)
        pool._family.owed.clear()

    monkeypatch.setattr(_ledger, "drop", faster)
    pool._family.owed += (first, second, first)
    assert counters(pool) == (0, 0, 0, 0, 0)
    monkeypatch.undo()
    pool._family.owed += (second, first, second)  # as if the other thread were still at work on it
    assert counters(pool) == (0, 0, 0, 0, 0)
    assert not pool._family.owed


# ---------------------------------------------------------------- bells and lines


def test_a_bell_may_be_rung_twice() -> None:
    bell = _bells.ThreadBell()
    assert bell.ring()
    assert bell.ring()
    bell.wait(None)


def test_entries_of_one_waiter_may_stand_in_a_line_more_than_once() -> None:
    pool = BudgetPool()
    account = pool._account
    waiter = _waiting.Waiter(pool.reserve(), _bells.ThreadBell(), None, lambda *_: None)
    waiter.state, waiter.at, waiter.ticket = _waiting.WAITING, account, 1
    line = _waiting.Line()
    for _ in range(3):  # as if it came back to a scope that it had left for another
        heappush(line.parked, (1, waiter))
    assert line.head(account) is waiter
    waiter.state = _waiting.WITHDRAWN
    assert line.head(account) is None
    waiter.reservation.release()
