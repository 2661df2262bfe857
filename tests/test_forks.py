"""Forks in the middle of the parent's work, and forks that Python does not see."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from shapes import SHAPES
from token_budget import BudgetPool, PoolForked, _family, _ledger, _pool, _process

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    # From 3.12 on, Python warns about forks beside other threads. These tests make such forks on purpose.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def fork_in_c() -> int:
    """Fork like a server in C that runs none of Python's hooks."""
    return int(ctypes.PyDLL(None).fork())


def end_of(child: int) -> int:
    """Return the exit status of a child. A negative number is the signal that ended it. A hanging child is killed."""
    deadline = time.monotonic() + 30
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def in_child(body: Callable[[], None], fork: Callable[[], int] | None = None) -> None:
    """Run the body in a forked child. Fail if it raises or hangs there."""
    child = (fork or os.fork)()
    if child == 0:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - told by the exit code
            os.write(2, f"in the child: {error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    assert end_of(child) == 0


# ---------------------------------------------------------------- while another thread calls back


@pytest.mark.parametrize("shape", SHAPES)
def test_subscribers_of_a_child_forked_while_another_thread_calls_back_hear_again_after_detach(shape: str) -> None:
    asked, pool = SHAPES[shape](token_cap=10)
    heard: list[str] = []
    inside, let_go = threading.Event(), threading.Event()

    def tell(event: Any) -> None:
        heard.append(event.kind)
        if threading.current_thread() is thread:
            inside.set()
            assert let_go.wait(30)

    pool.subscribe(tell)
    pool.on_threshold(0.5, tell)
    second: list[str] = []
    pool.subscribe(lambda event: second.append(event.kind))
    thread = threading.Thread(target=asked.record, kwargs={"tokens": 1})
    thread.start()
    assert inside.wait(30)

    def child() -> None:
        heard.clear()
        pool.detach()
        asked.record(tokens=6)
        assert sorted(heard) == ["record", "threshold"], heard
        assert second == ["record"]  # the child's own event; the parent delivers the other thread's
        assert not pool._family.owed  # the child does not keep the other thread's event
        asked.reserve(tokens=1).release()
        assert sorted(heard) == ["record", "release", "reserve", "threshold"], heard

    try:
        in_child(child)
    finally:
        let_go.set()
        thread.join()
    assert heard == second == ["record"]
    asked.record(tokens=1)  # the parent still works
    assert heard == ["record", "record"]


def test_after_a_fork_inside_a_callback_both_processes_call_the_other_subscribers() -> None:
    pool = BudgetPool(token_cap=10)
    heard: list[str] = []
    children: list[int] = []

    def fork(_event: object) -> None:
        if not children:
            children.append(os.fork())

    pool.subscribe(fork)
    pool.subscribe(lambda event: heard.append(event.kind))
    pool.record(tokens=1)
    if children == [0]:
        try:
            pool.detach()
            pool.record(tokens=1)
            os._exit(0 if heard.count("record") == 2 else 1)
        finally:
            os._exit(2)
    assert end_of(children[0]) == 0
    assert heard == ["record"]


# ---------------------------------------------------------------- in a signal handler, while its thread waits


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals need the main thread")
@pytest.mark.parametrize("timeout", [None, 600.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_child_forked_by_a_signal_handler_in_a_wait_raises_and_the_parent_goes_on(
    shape: str, timeout: float | None
) -> None:
    asked, pool = SHAPES[shape](token_cap=10)
    held = asked.reserve(tokens=10)
    main, parent = threading.get_ident(), os.getpid()
    children: list[int] = []
    ended: list[int] = []

    begun = False

    def handler(_number: int, _frame: object) -> None:
        nonlocal begun
        if not begun:  # once, also where a second signal comes in the middle of the fork
            begun = True
            children.append(os.fork())

    def drive() -> None:
        while pool.statistics().waiters == 0:
            time.sleep(0.001)
        while not children:  # a signal that comes just before a thread sleeps wakes it only with the next
            signal.pthread_kill(main, signal.SIGUSR1)
            time.sleep(0.01)
        ended.append(end_of(children[0]))
        held.release()

    before = signal.signal(signal.SIGUSR1, handler)
    driver = threading.Thread(target=drive)
    driver.start()
    try:
        got = asked.reserve(tokens=4, timeout=timeout)
    except PoolForked:
        if os.getpid() != parent:
            os._exit(7)
        raise
    finally:
        if os.getpid() != parent:
            os._exit(1)
        driver.join()
        signal.signal(signal.SIGUSR1, before)
    assert ended == [7]
    got.commit()
    assert asked.snapshot().in_flight == 0
    assert pool.snapshot().tokens_used == 4


# ---------------------------------------------------------------- forks in C, which run no hooks of Python

NOTICES: dict[str, Callable[[BudgetPool, BudgetPool], object]] = {
    "a refused record": lambda asked, _pool: asked.record(tokens=10),
    "a refused reserve": lambda asked, _pool: asked.reserve(tokens=10),
    "a refused areserve": lambda asked, _pool: asyncio.run(_ask(asked, 0)),
    "a thread that would wait": lambda asked, _pool: asked.reserve(tokens=10, timeout=600),
    "a task that would wait": lambda asked, _pool: asyncio.run(_ask(asked, None)),
    "a child": lambda asked, _pool: asked.child(),
    "a group of keys": lambda asked, _pool: asked.keyed(),
    "a join": lambda asked, pool: BudgetPool.join(asked, pool),
}


async def _ask(pool: BudgetPool, timeout: float | None) -> None:
    await pool.areserve(tokens=10, timeout=timeout)


@pytest.mark.parametrize("notices", NOTICES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_fork_in_c_is_noticed_by(notices: str, shape: str) -> None:
    asked, pool = SHAPES[shape](token_cap=10)
    held = asked.reserve(tokens=5)

    def child() -> None:
        with pytest.raises(PoolForked):
            NOTICES[notices](asked, pool)
        for spend in (asked.record, asked.reserve, pool.record):  # from then on nothing can be spent
            with pytest.raises(PoolForked):
                spend()
        assert asked.snapshot().tokens_used == 0
        pool.detach()
        asked.record(tokens=10)

    in_child(child, fork_in_c)
    held.commit()  # the parent is not affected
    assert pool.snapshot().tokens_used == 5


def test_a_spend_with_a_subscriber_notices_a_fork_in_c() -> None:
    pool = BudgetPool(token_cap=10)
    heard: list[object] = []
    pool.subscribe(heard.append)

    def child() -> None:
        with pytest.raises(PoolForked):
            pool.record(tokens=1)
        assert heard == []
        assert pool.snapshot().tokens_used == 0

    in_child(child, fork_in_c)


def test_every_pool_notices_a_fork_in_c_once_one_has_noticed_it() -> None:
    noticing, pool = BudgetPool(token_cap=1), BudgetPool(token_cap=10)

    def child() -> None:
        made_here = BudgetPool(token_cap=1)
        with pytest.raises(PoolForked):
            noticing.record(tokens=2)
        with pytest.raises(PoolForked):
            pool.record(tokens=1)  # it fits
        made_here.record(tokens=1)
        noticing.detach()

        def grandchild() -> None:
            with pytest.raises(PoolForked):
                made_here.record(tokens=1)
            with pytest.raises(PoolForked):
                noticing.record(tokens=1)

        in_child(grandchild, fork_in_c)
        noticing.record(tokens=1)

    in_child(child, fork_in_c)
    pool.record(tokens=10)


def without_mmap(*_: object, **__: object) -> Any:
    raise TypeError("mmap() has no flags on this system")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_fork_in_c_is_noticed_where_no_page_tells_of_it(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmap.mmap", without_mmap)
    here = _process.page()
    assert isinstance(here, _process.AskedEachTime)
    assert not here[0]
    here[0] = 1
    assert here[0]
    for module in (_family, _ledger, _pool):
        monkeypatch.setattr(module, "HERE", here)
    asked, pool = SHAPES[shape](token_cap=10)

    def child() -> None:
        assert not here[0]
        with pytest.raises(PoolForked):
            asked.record(tokens=11)
        with pytest.raises(PoolForked):
            pool.record(tokens=1)

    in_child(child, fork_in_c)
    asked.record(tokens=10)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_copy_made_by_a_fork_in_c_can_be_detached_before_the_fork_is_noticed(shape: str) -> None:
    asked, pool = SHAPES[shape](token_cap=10)
    pool.record(tokens=1)
    held = asked.reserve(tokens=9)

    def child() -> None:
        pool.detach()
        assert held.completed
        asked.record(tokens=9)
        assert pool.snapshot().tokens_used == 10
        assert pool.snapshot().in_flight == 0

    in_child(child, fork_in_c)
    held.release()
