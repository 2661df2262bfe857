"""Interrupted and dropped: nothing leaks and no spend is lost, wherever Ctrl-C cuts an operation. Engine in memory."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

import pytest

import front
from front import collected, numbers, raising, unreachable, until
from memory_store import MemoryPool
from points import Points, handled
from token_budget import BudgetExceeded, BudgetOverrun, ReservationClosed
from token_budget.contract import BudgetUnavailable
from token_budget.stores import _family, _joined, _owed, _pool, _reservation
from token_budget.stores._errors import StoreError

opened = front.opened
FINALISERS = {"__del__", "_leave_to_worker", "_owe", "_shown"}


@pytest.fixture
def quiet() -> Iterator[None]:
    """Say nothing of reservations that are dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield


# ---------------------------------------------------------------- Ctrl-C


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.usefixtures("quiet")
def test_ctrl_c_around_the_step_of_a_reserve_leaves_nothing_held(opened: Any, moment: str) -> None:
    pool = opened(token_cap=100)
    with raising(pool, KeyboardInterrupt, "reserve", moment), pytest.raises(KeyboardInterrupt):
        pool.reserve(tokens=60)
    collected(pool)
    assert numbers(pool) == (0, 0, 0)
    pool.reserve(tokens=100).release()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.usefixtures("quiet")
def test_an_error_of_a_signal_handler_in_a_reserve_leaves_nothing_held(opened: Any, moment: str) -> None:
    pool = opened(token_cap=100)
    with raising(pool, ZeroDivisionError, "reserve", moment), pytest.raises(ZeroDivisionError):
        pool.reserve(tokens=60)
    collected(pool)
    assert numbers(pool) == (0, 0, 0)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_ctrl_c_around_the_step_of_a_commit_loses_no_spend(opened: Any, moment: str) -> None:
    pool = opened(token_cap=100)
    with (
        raising(pool, KeyboardInterrupt, "commit", moment),
        pytest.raises(KeyboardInterrupt),
        pool.reserve(tokens=60) as reservation,
    ):
        reservation.commit(tokens=40)
    assert not reservation.completed  # leaving the block gave nothing back
    reservation.commit(tokens=40)
    assert numbers(pool) == (40, 0, 0)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.usefixtures("quiet")
def test_ctrl_c_around_the_step_of_a_release_gives_back(opened: Any, moment: str) -> None:
    pool = opened(token_cap=100)
    with raising(pool, KeyboardInterrupt, "release", moment), pytest.raises(KeyboardInterrupt), pool.reserve(tokens=60):
        pass
    collected(pool)
    assert numbers(pool) == (0, 0, 0)


@pytest.fixture
def frozen() -> Iterator[None]:
    """Let a collection visit only what a test made, and handle Ctrl-C as a program does.

    Ctrl-C that arrives as a finaliser begins is lost: Python ignores it.
    """
    lost: list[Any] = []  # only types: a kept exception would keep the frames of the operation alive
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hook, sys.unraisablehook = sys.unraisablehook, lambda item: lost.append(item.exc_type)
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()
    sys.unraisablehook = hook
    signal.signal(signal.SIGINT, before)
    assert set(lost) <= {KeyboardInterrupt}


def codes_of(*modules: Any) -> list[CodeType]:
    """Return the code of all functions of modules, but for what finalisers run: Python ignores what is raised there."""
    things: list[Any] = []
    for module in modules:
        things += [thing for thing in vars(module).values() if getattr(thing, "__module__", "") == module.__name__]
    found = []
    for thing in things:  # it grows meanwhile
        if isinstance(thing, type):
            things += [getattr(inner, "fget", None) or inner for inner in vars(thing).values()]
        elif isinstance(thing, FunctionType) and thing.__name__ not in FINALISERS:
            found.append(thing.__code__)
    return found


def interrupted_everywhere(pool: MemoryPool, operation: Callable[[], object], check: Callable[[int], None]) -> None:
    """Do an operation with Ctrl-C before each of its instructions in turn, and check after each.

    The engine's own instructions are left out: that its steps are atomic is its own matter.
    """
    points = Points(codes_of(_family, _pool, _reservation, _joined))
    with points.watching():
        assert handled(operation, points, -1) == "done"  # threads and caches are there from now on
        assert handled(operation, points, -1) == "done"
        total, ends = points.count, set()
        assert total > 100
        for at in range(total):
            ends.add(handled(operation, points, at))
            collected(pool)
            check(at)
        assert "interrupted" in ends


@pytest.mark.usefixtures("quiet", "frozen")
@pytest.mark.parametrize("shape", ["alone", "child", "join"])
def test_ctrl_c_before_any_instruction_of_a_call_leaks_nothing_and_counts_no_half(opened: Any, shape: str) -> None:
    root = opened(token_cap=10**9)
    run = root.child(name="run")
    pool = {"alone": root, "child": run, "join": MemoryPool.join(run, root.child(name="atlas"))}[shape]

    def operation() -> None:
        with pool.reserve(tokens=60) as reservation:
            reservation.commit(tokens=40)

    def check(number: int) -> None:
        used, reserved, in_flight = numbers(root)
        assert (used % 40, reserved, in_flight) == (0, 0, 0), number
        assert numbers(pool)[1:] == (0, 0), number

    interrupted_everywhere(root, operation, check)
    assert not root.budget.held


@pytest.mark.usefixtures("quiet", "frozen")
def test_ctrl_c_before_any_instruction_of_a_block_that_is_left_unsettled_gives_all_back(
    opened: Any, full: bool
) -> None:
    pool = opened(token_cap=100)

    def operation() -> None:
        with pool.reserve(tokens=60):
            pass

    def check(number: int) -> None:
        assert numbers(pool) == (0, 0, 0), number

    interrupted_everywhere(pool, operation, check)


@pytest.mark.usefixtures("quiet", "frozen")
def test_ctrl_c_before_any_instruction_of_a_refused_call_leaves_nothing(opened: Any) -> None:
    pool = opened(token_cap=100)
    held = pool.reserve(tokens=60)

    def operation() -> None:
        with pytest.raises(BudgetExceeded):
            pool.reserve(tokens=60)

    def check(number: int) -> None:
        assert (numbers(pool), pool.budget.tickets) == ((0, 60, 1), {}), number

    interrupted_everywhere(pool, operation, check)
    held.release()


# ---------------------------------------------------------------- dropped


def test_a_dropped_reservation_is_given_back_with_a_warning_and_an_event(opened: Any) -> None:
    pool = opened(token_cap=100)
    heard: list[Any] = []
    reservation = pool.reserve(tokens=60, usd=0.5)
    pool.subscribe(
        lambda event: heard.append((event.kind, event.pool, event.tokens, event.usd, event.snapshot.in_flight))
    )
    with pytest.warns(
        ResourceWarning, match=r"tokens 60 \| usd 0.5 \| in flight> was dropped: commit\(\) or release\(\)"
    ):
        del reservation
    collected(pool)
    assert numbers(pool) == (0, 0, 0)
    assert heard == [("drop", "total", 60, 0.5, 0)]


def test_a_settled_or_refused_reservation_is_dropped_in_silence(opened: Any) -> None:
    pool = opened(token_cap=100)
    pool.reserve(tokens=60).commit()
    pool.reserve(tokens=1).release()
    with pytest.raises(BudgetExceeded):
        pool.reserve(tokens=60)
    steps = len(pool.engine.steps)
    collected(pool)
    assert len(pool.engine.steps) == steps  # nothing is left to be cancelled


@pytest.mark.usefixtures("quiet")
def test_the_next_operation_pays_what_is_owed_before_the_worker_does(opened: Any) -> None:
    pool = opened(token_cap=100)
    operations: list[Callable[[], object]] = [
        lambda: pool.record(tokens=100) or pool.reset(),
        lambda: pool.reserve(tokens=100).release(),
        lambda: numbers(pool) == (0, 0, 0) or pytest.fail("it is held"),
        lambda: pool.statistics().reservations == 0 or pytest.fail("it is held"),
    ]
    pool._family.hand.drop = lambda *_: None  # the worker does nothing
    for operation in operations:
        reservation = pool.reserve(tokens=100)
        del reservation
        operation()
    assert not pool._handle.owed


@pytest.mark.usefixtures("quiet")
def test_an_operation_pays_some_of_much_that_is_owed(opened: Any) -> None:
    pool = opened(token_cap=100)
    reservations = [pool.reserve(tokens=1) for _ in range(40)]
    pool._family.hand.drop = lambda *_: None  # the worker does nothing
    reservations.clear()
    assert len(pool._handle.owed) == 40
    in_flight = pool.snapshot().in_flight
    assert 0 < in_flight < 40
    while pool._handle.owed:
        pool.snapshot()
    assert numbers(pool) == (0, 0, 0)


@pytest.mark.usefixtures("quiet")
def test_what_is_owed_and_cannot_be_paid_is_logged_once_and_hinders_nobody(opened: Any, caplog: Any) -> None:
    pool = opened(token_cap=100)
    reservation = pool.reserve(tokens=1)
    with raising(pool, StoreError, "cancel", "before"):
        del reservation
        collected(pool)
    assert caplog.text.count("a reservation in pool 'total' that was dropped could not be settled") == 1
    pool.record(tokens=1)


@pytest.mark.parametrize("owing", ["cancel", "commit"])
@pytest.mark.usefixtures("quiet")
def test_what_two_pay_at_the_same_moment_is_told_once(opened: Any, owing: str, caplog: Any) -> None:
    pool = opened(token_cap=100)
    heard: list[str] = []
    pool._family.hand.drop = lambda *_: None
    reservation = pool.reserve(tokens=1)
    if owing == "commit":
        with unreachable(pool), pytest.raises(BudgetUnavailable):
            reservation.commit()
    pool.subscribe(lambda event: heard.append(event.kind))
    del reservation
    (debt,) = pool._handle.owed
    cancel = pool.engine.cancel
    pool.engine.cancel = lambda *arguments: cancel(*arguments) or True  # a repeat has the same answer

    def hook(step: str, moment: str) -> None:
        if (step, moment) == (owing, "before"):
            pool.engine.hook = lambda step, moment: None
            _owed.pay(pool._handle.owed, debt)  # another thread

    pool.engine.hook = hook
    _owed.pay(pool._handle.owed, debt)
    assert not pool._handle.owed
    _owed.pay(pool._handle.owed, debt)
    assert pool.engine.steps.count(owing) == 2
    assert heard == (["drop"] if owing == "cancel" else [])
    assert caplog.text.count("is recorded") == (owing == "commit")
    assert numbers(pool) == ((owing == "commit") * 1, 0, 0)


def test_what_was_owed_before_a_fork_is_the_parents(opened: Any) -> None:
    """What a forked child finds, without a fork: its family has another epoch."""
    pool = opened(token_cap=100)
    reservation = pool.reserve(tokens=60)
    pool._family.hand.drop = lambda *_: None
    reservation._leave_to_worker("released", "release")
    pool._family.epoch += 1
    assert numbers(pool) == (0, 60, 1)
    assert not pool._handle.owed
    pool.engine.die()


@pytest.mark.parametrize("shape", ["child", "join"])
@pytest.mark.usefixtures("quiet")
def test_a_commit_of_a_reservation_that_the_collector_dropped_first_is_counted(opened: Any, shape: str) -> None:
    root = opened(token_cap=100)
    pool = root.child(token_cap=50, name="run")
    if shape == "join":
        pool = MemoryPool.join(pool, name="run")
    heard: list[Any] = []

    def call(reservation: Any) -> Iterator[None]:
        try:
            yield
        finally:
            try:
                reservation.commit(tokens=60, usd=0.5)
            except BudgetOverrun as error:
                heard.append(error.pool)
            with pytest.raises(ReservationClosed, match="committed before"):
                reservation.commit()

    held: list[Any] = [pool.reserve(tokens=5)]
    pool.subscribe(lambda event: heard.append((event.kind, event.tokens)))
    held[0] = running = call(held[0])
    cycle: list[Any] = [running]
    cycle.append(cycle)
    next(running)
    del held, running, cycle
    collected(root)
    assert numbers(root) == (60, 0, 0)
    assert numbers(pool) == (60, 0, 0)
    assert sorted(map(str, heard)) == ["('commit', 60)", "('drop', 5)", "('overrun', 60)", "run"]


def test_a_dropped_reservation_that_another_thread_commits_is_committed_once(opened: Any) -> None:
    pool = opened(token_cap=100)
    reservation = pool.reserve(tokens=5)
    reservation._leave_to_worker("dropped", None)
    lock = reservation._lock

    class Late:
        """The lock of a reservation, which another thread has held to commit."""

        def __enter__(self) -> None:
            reservation._lock = lock
            reservation.commit(tokens=5)

        def __exit__(self, *_: object) -> None:
            pass

    reservation._lock = Late()
    with pytest.raises(ReservationClosed, match="committed before"):
        reservation.commit(tokens=6)
    assert numbers(pool) == (5, 0, 0)


def test_what_is_dropped_while_the_store_does_not_answer_is_given_back_later(opened: Any) -> None:
    pool = opened(token_cap=100)
    reservation = pool.reserve(tokens=60)
    with unreachable(pool) as raised:
        with pytest.warns(ResourceWarning):
            del reservation
        until(lambda: "cancel" in raised)
    until(lambda: numbers(pool) == (0, 0, 0))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_commit_without_an_answer_is_repeated_after_its_reservation_is_dropped(
    opened: Any, moment: str, caplog: Any
) -> None:
    pool = opened(token_cap=100)
    with unreachable(pool, "commit", moment=moment) as raised:
        with pytest.raises(BudgetUnavailable), pool.reserve(tokens=60) as reservation:
            reservation.commit(tokens=40, usd=0.5)
        assert not reservation.completed
        assert "release" not in pool.engine.steps
        del reservation
        until(lambda: len(raised) > 1)
    until(lambda: numbers(pool) == (40, 0, 0))
    until(lambda: "a commit of 40 tokens and 0.5 USD in pool 'total', which the store had not answered" in caplog.text)
    assert "cancel" not in pool.engine.steps


def test_leaving_a_block_while_the_store_does_not_answer_hides_no_error_and_gives_back_later(
    opened: Any, caplog: Any
) -> None:
    pool = opened(token_cap=100)
    with unreachable(pool):
        with pytest.raises(KeyError), held(pool):
            raise KeyError
        with held(pool) as reservation:
            pass
        assert reservation.completed
    assert "the store does not answer: <StoreReservation in 'total' tokens 40 | usd 0 | in flight> is given back" in (
        caplog.text
    )
    until(lambda: numbers(pool) == (0, 0, 0))


def held(pool: MemoryPool) -> Any:
    """Return a reservation that was made although the store does not answer now."""
    hook = pool.engine.hook
    pool.engine.hook = lambda step, moment: None
    reservation = pool.reserve(tokens=40)
    pool.engine.hook = hook
    return reservation


# ---------------------------------------------------------------- tasks


def test_the_async_twins_do_what_the_methods_do(opened: Any) -> None:
    pool = opened(token_cap=100, usd_cap=1)

    async def main() -> None:
        await pool.arecord(tokens=10)
        async with pool.areserve(tokens=20, usd=0.5) as reservation:
            await reservation.acommit(tokens=15, usd=0.25)
        async with await pool.areserve(tokens=20) as reservation:
            pass
        assert reservation.completed
        with pytest.raises(ReservationClosed):
            await reservation.acommit()
        await reservation.arelease()
        released = await pool.areserve(tokens=20)
        await released.arelease()
        with pytest.raises(BudgetExceeded):
            await pool.arecord(tokens=100)
        with pytest.raises(BudgetExceeded):
            await pool.areserve(tokens=100, timeout=0)
        for bad in ({"tokens": -1}, {"usd": "1"}):
            with pytest.raises((TypeError, ValueError)):
                await pool.arecord(**bad)
        shown = await pool.asnapshot()
        assert (shown.tokens_used, shown.usd_used, shown.in_flight) == (25, 0.25, 0)
        assert (await pool.asnapshot(tree=True)).children == ()

    asyncio.run(main())


def test_the_async_twins_run_in_trio(opened: Any) -> None:
    trio = pytest.importorskip("trio")
    pool = opened(token_cap=100)

    async def main() -> None:
        async with pool.areserve(tokens=20) as reservation:
            await reservation.acommit(tokens=15)
        await pool.arecord(tokens=1)
        assert (await pool.asnapshot()).tokens_used == 16

    trio.run(main)


def test_a_task_that_is_cancelled_in_its_commit_has_committed(opened: Any) -> None:
    pool = opened(token_cap=100)
    go = threading.Event()

    async def call(begun: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()

        def hook(step: str, moment: str) -> None:
            if (step, moment) == ("commit", "before"):
                loop.call_soon_threadsafe(begun.set)
                assert go.wait(front.LONG)

        async with pool.areserve(tokens=60) as reservation:
            pool.engine.hook = hook
            await reservation.acommit(tokens=40)

    async def main() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(call(begun))
        await begun.wait()
        task.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert numbers(pool) == (40, 0, 0)


def test_an_async_commit_that_the_worker_refuses_without_a_try_is_not_given_back(opened: Any) -> None:
    pool = opened(token_cap=100)

    async def main() -> Any:
        reservation = await pool.areserve(tokens=60)
        with unreachable(pool):
            with pytest.raises(BudgetUnavailable):
                async with reservation:
                    calls = [pool.arecord(tokens=1), reservation.acommit(tokens=40)]
                    first, second = await asyncio.gather(*calls, return_exceptions=True)
                    assert isinstance(first, BudgetUnavailable)
                    raise second
            assert not reservation.completed
        return reservation

    reservation = asyncio.run(main())
    reservation.commit(tokens=40)
    assert numbers(pool) == (40, 0, 0)


def test_leaving_an_async_block_while_the_store_does_not_answer_gives_back_later(opened: Any) -> None:
    pool = opened(token_cap=100)

    async def main() -> None:
        with unreachable(pool, "release"):
            async with pool.areserve(tokens=60) as reservation:
                pass
            assert reservation.completed

    asyncio.run(main())
    until(lambda: numbers(pool) == (0, 0, 0))


# ---------------------------------------------------------------- forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_reservation_that_was_made_before_a_fork_is_closed_in_the_child(opened: Any) -> None:
    pool = opened(token_cap=100)
    joined = MemoryPool.join(pool.child(name="run"))
    reservation = joined.reserve(tokens=60)

    def child() -> None:
        assert reservation.completed
        assert "closed by a fork" in repr(reservation)
        with pytest.raises(ReservationClosed, match="it was in flight at a fork; the parent holds it"):
            reservation.commit()
        with pytest.raises(ReservationClosed, match="the parent holds it"):
            reservation.hand_over()
        reservation.release()
        assert numbers(joined) == (0, 0, 0)
        before = len(pool.engine.steps)
        pool.record(tokens=1)
        mine = joined.reserve(tokens=2)
        mine.commit()
        assert numbers(joined) == (2, 0, 0)
        assert not {"commit", "cancel", "release"} & {*pool.engine.steps[before:-1]} - {"commit"}

    in_a_forked_child(child)
    reservation.commit(tokens=50)
    assert numbers(pool) == (50, 0, 0)


def test_a_copy_of_another_epoch_holds_nothing(opened: Any) -> None:
    """What a forked child finds, without a fork: its family has another epoch."""
    pool = opened(token_cap=100)
    joined = MemoryPool.join(pool.child(name="run"))
    joined.record(tokens=5)
    reservation = joined.reserve(tokens=60)
    pool._family.epoch += 1
    with pytest.raises(ReservationClosed, match="the parent holds it"):
        reservation.commit()
    assert numbers(joined) == (0, 0, 0)
    pool._family.epoch -= 1
    reservation.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_forked_child_drops_of_its_parents_is_not_cancelled(opened: Any) -> None:
    pool = opened(token_cap=100)
    kept = [pool.reserve(tokens=60)]

    def child() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kept.clear()
            gc.collect()
        assert pool._family.hand.finish(front.LONG)
        assert "cancel" not in pool.engine.steps

    in_a_forked_child(child)
    kept[0].release()


def in_a_forked_child(body: Callable[[], None]) -> None:
    """Run a body in a forked child, and fail if it raises there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks in processes with threads
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            body()
            status = 0
        except BaseException:  # noqa: BLE001 - all that a child can say
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert status == 0, "see what the child printed"
