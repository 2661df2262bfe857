"""The family's way: code that runs inside of it in the same thread, exceptions there, and those who came too late."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from support import HookedLock, caught, counters
from token_budget import (
    BudgetExceeded,
    BudgetOverrun,
    BudgetPool,
    Reservation,
    ReservationClosed,
    _family,
    _waiting,
)


class Inside:
    """A key whose hash runs something; hashed under the family's lock, as a finaliser might run there."""

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
def test_what_spends_says_that_it_is_inside(operation: str) -> None:
    pool = BudgetPool(token_cap=10)
    child = pool.child()
    held = child.reserve(tokens=1)

    def act() -> None:
        function = getattr(child, operation)
        with pytest.raises(RuntimeError, match="inside this pool already.* but may not spend anew"):
            function()

    run_inside(pool, act)
    assert counters(pool) == (0, 1, 0, 0, 1)
    held.commit()
    assert counters(pool) == counters(child) == (1, 0, 0, 0, 0)


def test_what_was_spent_already_is_counted_at_the_end_of_the_operation_that_it_came_inside_of() -> None:
    """P3 in finalisers: the collector may run the one that commits anywhere."""
    pool = BudgetPool(token_cap=10, name="total")
    child = pool.child(name="child")
    heard: list[tuple[str, int]] = []
    child.subscribe(lambda event: heard.append((event.kind, event.tokens)))
    held = child.reserve(tokens=5)

    def act() -> None:
        held.commit(tokens=4)
        held.commit(tokens=4)  # settled by then, and not counted again
        child.record(tokens=3, force=True)
        child.record(tokens=30, force=True)  # over the cap: it is recorded, and an event tells it
        assert counters(pool) == (0, 5, 0, 0, 1)

    run_inside(pool, act)
    assert counters(pool) == counters(child) == (37, 0, 0, 0, 0)
    child.snapshot()
    kinds = [("reserve", 5), ("commit", 4), ("record", 3), ("record", 30), ("overrun", 30)]
    assert heard == kinds
    assert not pool._family.late


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("below", [False, True])
def test_a_commit_counts_also_after_the_collector_finalised_the_reservation(below: bool) -> None:
    pool = BudgetPool(token_cap=10)
    held = (pool.child() if below else pool).reserve(tokens=5)
    held.__del__()  # as in a cycle of garbage, of which another finaliser commits
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
def test_what_is_released_inside_is_back_at_the_end_of_the_operation(drop: bool) -> None:
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
        assert counters(pool)[1] == 10

    run_inside(pool, act)
    assert got.wait(30)  # the operation that it interrupted did it, and served who waits
    waiting.join(30)
    assert counters(pool) == (0, 0, 0, 0, 0)


def test_an_exception_inside_leaves_everything_as_it_was() -> None:
    pool = BudgetPool(token_cap=10)

    def act() -> None:
        raise KeyboardInterrupt

    users = pool.keyed()
    with pytest.raises(KeyboardInterrupt):
        users[Inside(pool, act)]
    assert pool._family.owner == 0
    assert len(users) == 0
    pool.record(tokens=10)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_exception_while_something_dropped_is_released_is_made_good_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = BudgetPool(token_cap=10)
    pool.subscribe(lambda _event: None)
    pool.reserve(tokens=10)

    def note(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(_family.Family, "_note", note)
    with pytest.raises(KeyboardInterrupt):
        pool.snapshot()
    assert counters(pool) == (0, 0, 0, 0, 0)


def test_a_change_that_was_published_is_made_once_whoever_finishes_it() -> None:
    """The journal: an interrupt between the publishing and the making of a change, and half way through the making."""
    for made in range(4):
        pool = BudgetPool(token_cap=10)
        child = pool.child().child()
        family, chain = pool._family, child._scopes()
        child.record(tokens=1)
        family.marks += 1
        family.journal = (family.marks, chain, 2, 0, 2, 0, 0, None, None, None, "")
        for account in chain[:made]:
            account._tokens_claimed += 2
            account._nanos_claimed += 2
            account._mark = family.marks
        child.snapshot()  # whoever comes next
        assert {(account._tokens_claimed, account._nanos_claimed) for account in chain} == {(3, 2)}
        assert family.journal is None


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # nobody got the reservation
def test_what_two_interrupts_left_published_counts_before_the_next_spend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second interrupt comes in the mending of the first: the change is published, and nobody has made it yet."""
    apply, left = _family.Family._apply, [KeyboardInterrupt, KeyboardInterrupt]

    def interrupted(self: _family.Family) -> None:
        if left:
            raise left.pop()
        apply(self)

    root = BudgetPool(token_cap=100)
    child = root.child()
    monkeypatch.setattr(_family.Family, "_apply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        child.reserve(tokens=60)
    assert root._family.journal is not None
    assert caught(BudgetExceeded, child.record, tokens=100)
    assert counters(root) == counters(child) == (0, 0, 0, 0, 0)  # and then nobody held it


# ---------------------------------------------------------------- those who came too late


@pytest.mark.parametrize("operation", ["record", "force", "reserve", "commit", "release", "reset"])
def test_who_began_before_the_pool_was_in_a_family_goes_the_familys_way(
    monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """The race, constructed: between its look at `_pending` and the lock another thread subscribes."""
    lock = HookedLock()
    monkeypatch.setattr(_family, "_new_lock", lambda: lock)
    pool = BudgetPool(token_cap=10)
    pool.record(tokens=2)
    held = pool.reserve(tokens=3)
    heard: list[str] = []
    family = pool._family

    def subscribe() -> None:
        lock.hook = lambda: None
        family._subscribe((pool,), ((lambda event: heard.append(event.kind),),), ())
        pool._pending = family.idle

    def at_the_next() -> None:
        lock.hook = subscribe

    # A forced spend takes the lock twice: it looks first whether it fits.
    lock.hook = at_the_next if operation == "force" else subscribe
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


def test_a_drop_that_finds_somebody_inside_is_left_to_them() -> None:
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
        del held[0]  # waits for no lock
    assert not got.is_set()
    leave.set()
    inside.join(30)
    assert got.wait(30)
    waiting.join(30)
    held[0].release()
    assert counters(pool) == (0, 0, 0, 0, 0)


def test_a_drop_is_released_once_also_when_another_thread_was_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = BudgetPool(token_cap=10)
    first, family = pool.reserve(tokens=4), pool._family
    release = _family.Family._release

    def faster(self: _family.Family, *arguments: Any) -> None:
        release(self, *arguments)
        self.dropped.clear()

    monkeypatch.setattr(_family.Family, "_release", faster)
    family.dropped.append(first)
    family.prod(pool)
    family.prod(pool)  # nothing is left to do
    assert counters(pool) == (0, 0, 0, 0, 0)


def test_what_came_too_early_is_recorded_once_also_when_another_thread_was_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = BudgetPool(token_cap=10)
    record = _family.Family._record_late

    def faster(self: _family.Family, *arguments: Any) -> None:
        record(self, *arguments)
        self.late.clear()

    monkeypatch.setattr(_family.Family, "_record_late", faster)
    run_inside(pool, lambda: pool.record(tokens=3, force=True))
    assert counters(pool) == (3, 0, 0, 0, 0)


# ---------------------------------------------------------------- bells and lines


def test_a_bell_may_be_rung_twice() -> None:
    bell = _waiting.ThreadBell()
    assert bell.ring()
    assert bell.ring()
    bell.wait(None)


def test_entries_of_one_waiter_may_stand_in_any_order() -> None:
    pool = BudgetPool()
    waiter = _waiting.Waiter((pool,), pool.reserve(), _waiting.ThreadBell())
    queue = _waiting.Queue()
    for _ in range(3):  # as after an interrupt between the entering and the note of it
        queue.park(waiter, pool)
    assert queue.head(pool) is waiter
    waiter.state = _waiting.WITHDRAWN
    assert queue.head(pool) is None
    waiter.reservation.release()
