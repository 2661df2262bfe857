"""P5 and P8 at every bytecode: an interrupt, a collection or a signal handler before each instruction of an operation.

After each: nothing is lost, nothing leaks, nothing is settled or delivered twice, the lock is free, and the pool still
works (`worlds.py`). Each operation runs on a pool that stands alone, on a pool below two others with a window and
subscribers, on the lowest pool of five, and on a pool that has a waiter. Without `--full`, the tests try some evenly
spread points of each operation. With `--full`, they try every point.
"""

from __future__ import annotations

import gc
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import repeat, starmap
from typing import Any

import pytest

import faults
import planting
import token_budget
from points import Points, handled
from token_budget import BudgetExceeded, PoolClosed, ReservationClosed, _bells
from worlds import (
    OPERATIONS,
    WORLDS,
    HandLock,
    World,
    attempt,
    check,
    codes_of,
    count,
    is_free,
    operations_of,
    prepared,
)

CASES = [(kind, name) for kind in WORLDS for name in operations_of(kind)]
CHOSEN = [  # for handlers and collections: operations that differ most
    *("record", "record_forced", "block", "commit", "commit_over", "release", "reset", "reclaim", "tree", "set_window"),
    *("wait_granted", "wait_in_front", "async_wait_cancelled", "key_made", "key_deleted", "close", "fork", "detach"),
]


@pytest.fixture(scope="module", autouse=True)
def frozen() -> Iterator[None]:
    """Let a collection visit only what a test made, not all of pytest."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Collect garbage only where a test asks for it, silence warnings of drops, handle Ctrl-C as a program does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(_bells, "_new_lock", HandLock)
    gc.disable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
        gc.freeze()
        yield
    gc.enable()
    signal.signal(signal.SIGINT, before)


def spread(total: int, points: int | None) -> range:
    """Return about this many of the points, evenly spread. None stands for all."""
    return range(0, total, 1 if points is None else max(1, total // points))


def every_point(kind: str, name: str, points: Points, tried: int | None, package: Any = token_budget) -> set[str]:
    """Run the operation once for each tried point, with the action there, and return the ways in which it ended."""
    ends = set()
    with points.watching():
        total = count(kind, name, points, package)
        assert total > 20
        for at in spread(total, tried):
            world = prepared(kind, name, package)
            ended = attempt(world, name, points, at)
            assert points.count > at
            try:
                check(world, name, ended)
            except AssertionError as error:
                raise AssertionError(f"{kind}: {name}, {ended}, at instruction {at} of {total}: {error}") from error
            ends.add(ended)
            del world
    return ends


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_an_interrupt_before_any_instruction_breaks_nothing(kind: str, name: str, full: bool) -> None:
    lost: list[Any] = []  # only types: a kept exception would keep the frames of the operation alive
    before, sys.unraisablehook = sys.unraisablehook, lambda item: lost.append(item.exc_type)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # from a coroutine that was never awaited
            assert "interrupted" in every_point(kind, name, Points(codes_of(name)), None if full else 30)
    finally:
        sys.unraisablehook = before
    # These were raised in a finaliser, from which no exception can propagate.
    assert set(lost) <= {KeyboardInterrupt, RuntimeWarning}


# ---------------------------------------------------------------- faults that these tests notice


def impatient(lock: Any) -> Iterator[object]:
    """Replace `_family.taking`: a thread that would deadlock with itself goes on and breaks something."""
    return starmap(lock.acquire, repeat((True, 0.01)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("fault", faults.INTERRUPTED, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found(fault: faults.Interrupted) -> None:
    if sys.version_info < (3, 11) and "inside" in fault.name:
        pytest.skip("on CPython 3.10 the lock is reentrant")
    package = faults.planted(fault)
    planting.room(package, "_bells")._new_lock = HandLock
    planting.room(package, "_family").taking = impatient
    kind, name = fault.case
    with pytest.raises((AssertionError, RuntimeError)) as found:
        if fault.does:
            every_handler(kind, name, fault.does, 300, package)
        else:
            every_point(kind, name, Points(codes_of(name, package)), 300, package)
    print(f"found: {fault.name}: {found.value}")


def used_after_a_window_died(package: Any) -> int:
    """Replace a window that records when it is finalised. The new window's clock is in another period."""

    class Dying(package.Window):  # type: ignore[misc]
        __slots__ = ()

        def __del__(self) -> None:
            pool.record(tokens=1)

    pool = package.BudgetPool(token_cap=100, window=Dying.every(timedelta(hours=1), clock=lambda: 0.0))
    pool.record(tokens=10)
    pool.set_caps(window=package.Window.every(timedelta(hours=1), clock=lambda: 10_000.0))
    return int(pool.snapshot().tokens_used)


def test_the_finaliser_of_a_replaced_object_sees_a_whole_change() -> None:
    assert used_after_a_window_died(token_budget) == 11
    assert used_after_a_window_died(planting.planted(faults.NOT_KEPT)) != 11


def test_a_change_in_two_halves_would_be_noticed() -> None:
    """Break the code on purpose: with a call between two stores, some interrupt cuts the change in half."""
    halves = planting.planted(
        {
            "_pool.BudgetPool.record": (
                ("account.tokens_claimed = tokens_after\n", "account.tokens_claimed = tokens_after; len('')\n"),
            )
        }
    )
    points = Points(planting.watched(halves))
    seen = set()
    with points.watching():
        for at in range(200):
            pool = halves.BudgetPool()
            handled(lambda pool=pool: pool.record(tokens=5, usd=5), points, at)  # type: ignore[misc]
            seen.add((pool._account.tokens_claimed, pool._account.nanos_claimed))
    assert (5, 0) in seen


def test_a_lock_taken_by_a_call_before_the_try_would_be_noticed() -> None:
    """Break the code on purpose: the plain way to take the lock leaves it held after some interrupt."""
    taken = "family.lock.acquire()\nfor _ in (None,):\n"
    plain = planting.planted({"_governed.Governed.snapshot": (("for _ in family.locked:\n", taken),)})
    points = Points(planting.watched(plain))
    left_held = 0
    with points.watching():
        for at in range(200):
            pool = plain.BudgetPool()
            handled(pool.snapshot, points, at)
            left_held += not is_free(pool)
    assert left_held


# ---------------------------------------------------------------- signal handlers


def spends(does: str, world: World) -> None:
    """Use the pool as a signal handler may, in the middle of an operation of the same thread."""
    pool, held = world.pool, world.held
    if does == "look":
        shown = pool.snapshot()
        assert shown.tokens_used * 10**9 == shown.usd_used_nanos or shown.usd_used_nanos > 500 * 10**9
        accounts = {account.numbers() for account in pool._chain}
        assert len(accounts) == 1 or world.name == "reset", "half a change"  # a reset changes one scope alone
    elif does == "record":
        pool.record(tokens=1, usd=1)
        world.extra += 1
    elif does == "force":
        try:
            pool.record(tokens=1, usd=1, force=True)
        finally:  # an overrun is recorded as well
            world.extra += 1
    elif does == "reserve and commit":
        pool.reserve(tokens=2, usd=2).commit(tokens=1, usd=1)
        world.extra += 1
    elif does == "drop":
        pool.reserve(tokens=1, usd=1)
    elif does == "release" and held is not None:
        held.release()
    elif does == "commit" and held is not None and not held.completed:
        try:
            held.commit(tokens=3, usd=3)
        except world.package.ReservationClosed:
            return
        except world.package.BudgetExceeded:
            pass
        world.extra += 3


def handler_that(world_of: list[World], does: str) -> Callable[..., None]:
    def handler(_number: int, _frame: object) -> None:
        (world,) = world_of
        world_of.clear()  # the handler has run
        package = world.package
        try:
            spends(does, world)
        except package.PoolForked:
            if does == "force":
                world.extra -= 1
        except (package.BudgetExceeded, package.PoolClosed):
            pass  # the pool was overrun before, others wait, or it is closed

    return handler


def every_handler(kind: str, name: str, does: str, tried: int | None, package: Any = token_budget) -> None:
    points = Points(codes_of(name, package))
    with points.watching():
        total = count(kind, name, points, package)
        for at in spread(total, tried):
            world = prepared(kind, name, package)
            running = [world]
            signal.signal(signal.SIGINT, handler_that(running, does))
            ended = attempt(world, name, points, at)
            assert not running, "the handler did not run"
            try:
                check(world, name, ended if does == "look" else "interrupted")
            except AssertionError as error:
                message = f"{kind}: {name}, {does} at instruction {at} of {total}: {error}"
                raise AssertionError(message) from error


HANDLERS = ["look", "record", "force", "reserve and commit", "drop", "release", "commit"]


@pytest.mark.parametrize("does", HANDLERS)
@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[1] in CHOSEN])
def test_a_signal_handler_before_any_instruction_may_use_the_pool(kind: str, name: str, does: str, full: bool) -> None:
    every_handler(kind, name, does, None if full else 4)


# ---------------------------------------------------------------- finalisers


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[1] in CHOSEN])
def test_a_collection_before_any_instruction_frees_what_garbage_held(kind: str, name: str, full: bool) -> None:
    # From 3.12 on, CPython collects only where it checks for signals, and so never under the lock in a straight run.
    points = Points(codes_of(name))
    with points.watching():
        total = count(kind, name, points)
        for at in spread(total, None if full else 8):
            signal.signal(signal.SIGINT, lambda *_: gc.collect() and None)
            world = prepared(kind, name, littered=True)
            ended = attempt(world, name, points, at)
            assert ended in {"done", "refused"}
            check(world, name, ended)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_collection_at_every_allocation_never_deadlocks(kind: str, name: str) -> None:
    thresholds = gc.get_threshold()
    gc.enable()
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(2):
            world = prepared(kind, name, littered=True)
            try:
                getattr(world, name)()
            except (BudgetExceeded, ValueError, ReservationClosed, PoolClosed):
                pass
            gc.collect()
            check(world, name, "interrupted")
    finally:
        gc.set_threshold(*thresholds)
        gc.disable()


def test_every_operation_has_a_case() -> None:
    assert {name for _, name in CASES} == set(OPERATIONS)
