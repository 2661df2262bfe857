"""P8: no deadlock in finalisers, signal handlers and forked children; no second budget by fork, copy or pickle."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from support import HookedLock, caught, counters, forked
from token_budget import (
    BudgetExceeded,
    BudgetPool,
    PoolForked,
    Reservation,
    ReservationClosed,
    _family,
    _pool,
    _process,
)

if TYPE_CHECKING:
    from collections.abc import Callable

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
# From 3.12 on, CPython warns that a fork beside threads may deadlock. These tests check that the pool does not.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[BudgetPool, HookedLock]]:
    """Make pools whose lock runs a hook inside the critical section."""

    def make(token_cap: int) -> tuple[BudgetPool, HookedLock]:
        lock = HookedLock()
        with monkeypatch.context() as patch:
            patch.setattr(_family, "_new_lock", lambda: lock)
            return BudgetPool(token_cap), lock

    return make


# ---------------------------------------------------------------- finalisers


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("operation", ["record", "reserve", "snapshot", "reset", "commit", "release"])
def test_a_collection_inside_the_critical_section_hangs_nothing_and_loses_nothing(
    hooked: Callable[..., tuple[BudgetPool, HookedLock]], operation: str
) -> None:
    pool, lock = hooked(token_cap=100)
    mine = pool.reserve(tokens=10)
    operations: dict[str, Any] = {
        "record": lambda: pool.record(tokens=10),
        "reserve": lambda: pool.reserve(tokens=10).release(),
        "snapshot": pool.snapshot,
        "reset": pool.reset,
        "commit": mine.commit,
        "release": mine.release,
    }
    garbage: list[object] = [pool.reserve(tokens=20), pool.reserve(tokens=30)]
    garbage.append(garbage)
    del garbage
    collected = []
    lock.hook = lambda: collected.append(gc.collect())
    operations[operation]()
    assert collected
    lock.hook = lambda: None
    mine.release()
    pool.reset()
    assert counters(pool) == (0, 0, 0, 0, 0)


# ---------------------------------------------------------------- signals


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timer")
@pytest.mark.parametrize("depth", [0, 2, 5])
def test_a_signal_handler_may_use_the_pool_at_any_moment(depth: int) -> None:
    pool = BudgetPool(token_cap=None if depth else 1000)
    for level in range(depth):
        pool = pool.child(token_cap=1000 if level == depth - 1 else None)
    handled = []

    def handler(_number: int, _frame: object) -> None:
        snapshot = pool.snapshot()
        assert snapshot.tokens_used + snapshot.tokens_reserved + (snapshot.tokens_remaining or 0) == 1000
        pool.record(tokens=0)
        pool.reserve(tokens=1).release()
        handled.append(snapshot)
        signal.setitimer(signal.ITIMER_REAL, 0.0003)  # only now, so that a slow machine also runs other code

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    try:
        while len(handled) < 300:
            with pool.reserve(tokens=10, usd=0.1) as reservation:
                reservation.commit(tokens=5)
            pool.snapshot()
            caught(Exception, pool.record, tokens=10_000)
            pool.reset()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert counters(pool) == (0, 0, 0, 0, 0)


# ---------------------------------------------------------------- fork


def in_child(body: Callable[[], None]) -> None:
    """Run the body in a forked child. Fail if it raises or does not end within ten seconds."""
    child = os.fork()
    if child == 0:  # pragma: no cover - the child's lines are not measured
        try:
            signal.alarm(10)
            body()
        except BaseException as error:  # noqa: BLE001
            os.write(2, f"in the child: {error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + 20
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        assert time.monotonic() < deadline, "the child hangs"
        time.sleep(0.005)
    assert status == 0


@needs_fork
@forks
def test_a_child_forked_while_another_thread_holds_the_lock_does_not_hang_and_refuses_to_spend() -> None:
    pool = BudgetPool(token_cap=100, name="shared")
    pool.record(tokens=10)
    reservation = pool.reserve(tokens=20)
    held, let_go = threading.Event(), threading.Event()

    def hold_the_lock() -> None:
        with pool._family.lock:
            held.set()
            let_go.wait(30)

    thread = threading.Thread(target=hold_the_lock)
    thread.start()
    assert held.wait(30)

    def child() -> None:
        assert counters(pool) == (10, 20, 0, 0, 1)
        for spend in (pool.record, pool.reserve, pool.try_reserve, pool.reset, reservation.commit):
            for _ in range(2):  # it keeps refusing
                with pytest.raises(PoolForked, match=r"pool 'shared' .*os.fork.*BudgetPool.*detach\(\)"):
                    spend()
        with pytest.raises(PoolForked):
            pool.record(tokens=1, force=True)
        reservation.release()  # leaving a block in the child does this; it changes only the child's copy
        assert counters(pool) == (10, 0, 0, 0, 0)

    try:
        in_child(child)
    finally:
        let_go.set()
        thread.join()
    assert counters(pool) == (10, 20, 0, 0, 1)
    reservation.commit()
    assert counters(pool) == (30, 0, 0, 0, 0)


@needs_fork
@forks
def test_a_detached_copy_is_a_budget_of_its_own_without_the_parents_calls_in_flight() -> None:
    pool = BudgetPool(token_cap=100)
    pool.record(tokens=10)
    inherited = pool.reserve(tokens=50)

    def child() -> None:
        pool.detach()
        assert counters(pool) == (10, 0, 0, 0, 0)
        with pytest.raises(ReservationClosed, match="in flight at a fork"):
            inherited.commit()
        inherited.release()
        assert inherited.completed
        assert "closed by a fork" in repr(inherited)
        mine = pool.reserve(tokens=90)
        pool.detach()  # a second detach does nothing
        mine.commit()
        assert counters(pool) == (100, 0, 0, 0, 0)

        def grandchild() -> None:
            with pytest.raises(PoolForked):
                pool.record()

        in_child(grandchild)

    in_child(child)
    inherited.commit()
    assert counters(pool) == (60, 0, 0, 0, 0)


@needs_fork
@forks
def test_a_child_forked_while_another_thread_calls_back_gets_its_own_events_after_a_detach() -> None:
    pool = BudgetPool(token_cap=100)
    inside, let_go = threading.Event(), threading.Event()
    heard: list[int] = []

    def hear(event: Any) -> None:
        heard.append(event.tokens)
        if event.tokens == 1:
            inside.set()
            let_go.wait(30)

    pool.subscribe(hear)
    thread = threading.Thread(target=lambda: pool.record(tokens=1))
    thread.start()
    assert inside.wait(30)

    def child() -> None:
        pool.detach()
        heard.clear()
        pool.record(tokens=2)
        pool.record(tokens=3)
        assert heard == [2, 3]  # without the event that the parent's thread is delivering

    try:
        in_child(child)
    finally:
        let_go.set()
        thread.join()
    assert heard == [1]


@needs_fork
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timer")
@forks
def test_if_a_waiting_threads_handler_forks_the_wait_is_refused_in_the_child_and_goes_on_in_the_parent() -> None:
    pool = BudgetPool(token_cap=10, name="run")
    held = pool.reserve(tokens=10)
    children: list[int] = []
    begun = False

    def handler(_number: int, _frame: object) -> None:
        nonlocal begun
        if begun:  # a second signal came in the middle of the fork
            return
        begun = True
        children.append(os.fork())
        if children[0] == 0:  # pragma: no cover
            signal.alarm(10)
        else:
            signal.setitimer(signal.ITIMER_REAL, 0)
            held.release()

    before = signal.signal(signal.SIGALRM, handler)
    try:
        # Again and again: a signal that comes just before a thread sleeps wakes it only with the next.
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        try:
            pool.reserve(tokens=10, timeout=None).release()
            refused = False
        except PoolForked:  # pragma: no cover
            refused = True
        if children == [0]:  # pragma: no cover
            os._exit(0 if refused else 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not refused
    assert os.waitpid(children[0], 0)[1] == 0
    assert counters(pool) == (0, 0, 0, 0, 0)


def forked_in_c(pool: BudgetPool, patch: pytest.MonkeyPatch) -> None:
    """Let the process look like a fork that ran none of Python's hooks, to this pool's family alone."""
    patch.setattr(os, "getpid", lambda: -1)
    patch.setattr(_family, "families", {0: pool._family, 1: BudgetPool()._family})  # the second is of this process
    _process.HERE[0] = 0  # the first operation that notices sets it again


@pytest.mark.parametrize("below", [False, True])
def test_a_fork_that_ran_no_hook_is_noticed_by_a_refusal_a_wait_a_new_child_and_a_detach(
    monkeypatch: pytest.MonkeyPatch, below: bool
) -> None:
    """Without ``--py-call-osafterfork``, uwsgi forks in C, and Python's hooks never run."""
    looks: list[Callable[[BudgetPool], object]] = [
        lambda pool: pool.record(tokens=11),
        lambda pool: pool.reserve(tokens=11),
        lambda pool: pool.reserve(tokens=11, timeout=5),
        lambda pool: pool.child(),
        lambda pool: pool.keyed(),
    ]
    for look in looks:
        total = BudgetPool(token_cap=10)
        pool = total.child() if below else total
        with monkeypatch.context() as patch:
            forked_in_c(total, patch)
            for _ in range(2):
                with pytest.raises(PoolForked):
                    look(pool)
            with pytest.raises(PoolForked):
                pool.record(tokens=1)
            pool.detach()
            pool.record(tokens=1)
    pool = BudgetPool(token_cap=10)
    inherited = pool.reserve(tokens=10)
    forked_in_c(pool, monkeypatch)
    pool.detach()
    assert inherited.completed
    assert counters(pool) == (0, 0, 0, 0, 0)


def test_what_a_child_sees_without_a_fork() -> None:
    # The same as above, but in this process, where coverage and mutation tools can observe it.
    pool = BudgetPool(token_cap=100, usd_cap=100, name="shared")
    pool.record(tokens=10, usd=20)
    inherited = pool.reserve(tokens=50, usd=30)
    forked(pool)
    with pytest.raises(PoolForked) as raised:
        pool.record()
    assert str(raised.value) == (
        "this copy of pool 'shared' came by os.fork() from the process that owns the budget, and does not spend it a "
        "second time: record in that process, make a BudgetPool of this process's own, or call detach() to make this "
        "copy a separate budget (snapshot() works without). Many processes share one budget through the stores"
    )
    assert counters(pool) == (10, 50, 20 * 10**9, 30 * 10**9, 1)
    pool.detach()
    assert counters(pool) == (10, 0, 20 * 10**9, 0, 0)
    assert inherited.completed
    with pytest.raises(ReservationClosed, match="in flight at a fork; the parent holds it$"):
        inherited.commit()
    assert repr(inherited) == "<Reservation in 'shared' tokens 50 | usd 30 | closed by a fork>"
    assert caught(BudgetExceeded, pool.reserve, tokens=91)
    assert counters(pool) == (10, 0, 20 * 10**9, 0, 0)
    with pool.reserve(tokens=90) as mine:
        assert not mine.completed
        mine.commit()
    assert counters(pool) == (100, 0, 20 * 10**9, 0, 0)


def test_every_pool_of_the_process_refuses_in_the_child() -> None:
    pools = [BudgetPool(token_cap=1), BudgetPool(token_cap=2)]
    _pool._after_fork_in_child()  # os.fork() calls this in the child
    for pool in pools:
        with pytest.raises(PoolForked):
            pool.record(tokens=1)


def test_a_forked_pool_without_a_name_is_not_named() -> None:
    pool = BudgetPool()
    forked(pool)
    with pytest.raises(PoolForked, match=r"^this copy of pool came by os\.fork\(\) from"):
        pool.reserve()


def test_detaching_in_the_process_that_made_the_pool_does_nothing() -> None:
    pool = BudgetPool(token_cap=100)
    with pool.reserve(tokens=40) as reservation:
        pool.detach()
        assert counters(pool) == (0, 40, 0, 0, 1)
        reservation.commit()
    assert counters(pool) == (40, 0, 0, 0, 0)


@needs_fork
@forks
def test_pools_made_in_the_child_work() -> None:
    in_child(lambda: BudgetPool(token_cap=1).record(tokens=1))


# ---------------------------------------------------------------- copies


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps, lambda thing: pickle.dumps(thing, 0)])
def test_copies_and_pickles_are_refused_with_what_to_do_instead(duplicate: Callable[[object], object]) -> None:
    pool = BudgetPool(token_cap=10)
    with pytest.raises(
        TypeError,
        match=r"^a BudgetPool cannot .* would be a second budget\. Pass the pool itself to .* that owns the pool$",
    ):
        duplicate(pool)
    with (
        pool.reserve(tokens=5) as reservation,
        pytest.raises(
            TypeError, match=r"^a Reservation cannot .* settled twice\. Settle this one, in the process that made it$"
        ),
    ):
        duplicate(reservation)
    assert counters(pool) == (0, 0, 0, 0, 0)


# ---------------------------------------------------------------- event loops


def test_one_pool_serves_threads_and_event_loops_at_once() -> None:
    pool = BudgetPool(token_cap=10**6)

    async def task() -> None:
        for _ in range(50):
            async with pool.reserve(tokens=10) as reservation:
                await asyncio.sleep(0)
                reservation.commit(tokens=7)

    async def tasks() -> None:
        await asyncio.gather(*[task() for _ in range(20)])

    threads = [threading.Thread(target=lambda: asyncio.run(tasks())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counters(pool) == (3 * 20 * 50 * 7, 0, 0, 0, 0)


def test_a_reservation_may_be_settled_in_another_thread() -> None:
    pool = BudgetPool()
    taken: list[Reservation] = []
    first = threading.Thread(target=lambda: taken.append(pool.reserve(tokens=5)))
    first.start()
    first.join()
    second = threading.Thread(target=lambda: taken.pop().commit(tokens=4))
    second.start()
    second.join()
    assert counters(pool) == (4, 0, 0, 0, 0)
