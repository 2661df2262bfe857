"""P5 and P8 at every bytecode: an interrupt, a collection or a signal handler before each instruction of an operation.

After each: nothing is lost, nothing leaks, nothing is settled twice, the lock is free and the pool goes on working.
Each operation is done on a pool that stands alone, and on one below two others with a window and subscribers, which
does it by the family's way. Without `--full` interrupts are tried before every instruction of the first and every fifth
of the second, the rest before every fifth and every 61st.
"""

from __future__ import annotations

import gc
import signal
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from points import Points, handled
from scheduler import functions_of
from support import counters
from token_budget import (
    BudgetExceeded,
    BudgetPool,
    PoolForked,
    Reservation,
    ReservationClosed,
    Window,
    _errors,
    _events,
    _family,
    _keyed,
    _money,
    _pool,
    _snapshot,
    _waiting,
)

# What is in flight before each operation, and what the operation may leave: (tokens used) by how it ended.
BEFORE = 10
HELD = 20


class HandLock:
    """Stands for the lock of a waiting thread's bell: to wait on it lets `world.meanwhile` happen."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def __init__(self) -> None:
        self.made = self.rung = False

    def acquire(self, timeout: float = -1) -> bool:
        assert timeout == -1 or 4 < timeout <= 3600  # without end, or what is left
        if self.made and not self.rung:
            HandLock.meanwhile()
        self.made = True
        return self.rung

    def release(self) -> None:
        if self.rung:
            raise RuntimeError
        self.rung = True


class World:
    """A pool that has used 10 of 100 and holds 20 for `held`."""

    def __init__(self) -> None:
        self.root = self.pool = self.make()
        self.pool.record(tokens=BEFORE, usd=BEFORE)
        self.held: Reservation | None = self.pool.reserve(tokens=HELD, usd=HELD)
        self.second = False  # whether `behind` is waited for
        self.behind: list[Any] = []

    def make(self) -> BudgetPool:
        return BudgetPool(token_cap=100, usd_cap=100)

    def prepare(self, name: str) -> None:
        """Do what must be done before the operation."""
        HandLock.meanwhile = staticmethod(lambda: None)
        if name.startswith("wait"):
            self.filler = self.pool.reserve(tokens=60, usd=60)
        if name == "wait_granted":
            HandLock.meanwhile = staticmethod(self.filler.release)
        if name == "wait_in_front":
            HandLock.meanwhile = staticmethod(self.wait_behind)
        if name in {"detach", "fork"}:
            self.filler = self.pool.reserve(tokens=HELD, usd=HELD)
        if name == "detach":
            self.root._after_fork_in_child()
        if name == "settled":
            assert self.held is not None
            self.held.release()

    def finish(self) -> None:
        """Undo what the operation was done among."""
        for waiter in self.behind:
            assert waiter.state is _waiting.GRANTED, "the next in line was not served"
            waiter.reservation.release()
        if hasattr(self, "filler"):
            self.filler.release()

    def wait_behind(self) -> None:
        """Let another wait, who would fit and is behind."""
        reservation = Reservation()
        reservation._pool, reservation._tokens, reservation._nanos, reservation._state = self.pool, 5, 5 * 10**9, None
        waiter = _waiting.Waiter(self.pool._scopes(), reservation, _waiting.ThreadBell())
        self.pool._family.reserve(reservation, waiter)
        assert waiter.ticket, "it was served before its turn"
        self.behind.append(waiter)

    def record(self) -> None:
        self.pool.record(tokens=5, usd=5)

    def record_refused(self) -> None:
        self.pool.record(tokens=500, usd=0.5)

    def record_forced(self) -> None:
        self.pool.record(tokens=5, usd=500, force=True)

    def record_floats(self) -> None:
        self.pool.record(tokens=5, usd=5.0)

    def reserve(self) -> None:
        self.pool.reserve(tokens=30, usd=30).release()

    def reserve_refused(self) -> None:
        self.pool.reserve(tokens=5, usd=300)

    def commit(self) -> None:
        assert self.held is not None
        self.held.commit(tokens=15, usd=15)

    def commit_over(self) -> None:
        assert self.held is not None
        self.held.commit(tokens=150, usd=150)

    def commit_default(self) -> None:
        assert self.held is not None
        self.held.commit()

    def release(self) -> None:
        assert self.held is not None
        self.held.release()

    def block(self) -> None:
        with self.pool.reserve(tokens=30, usd=30) as reservation:
            reservation.commit(tokens=25, usd=25)

    def block_left(self) -> None:
        with self.pool.reserve(tokens=30, usd=30):
            pass

    def block_failed(self) -> None:
        with self.pool.reserve(tokens=30, usd=30):
            raise ValueError

    def async_block(self) -> None:
        async def call() -> None:
            async with self.pool.reserve(tokens=30, usd=30) as reservation:
                reservation.commit(tokens=25, usd=25)

        coroutine = call()
        try:
            coroutine.send(None)
        except StopIteration:
            pass
        finally:
            coroutine.close()

    def block_named(self) -> None:
        self.kept = self.pool.reserve(tokens=30, usd=30)
        try:
            with self.kept as reservation:
                reservation.commit(tokens=25, usd=25)
        finally:  # the name outlives the block, and so whoever interrupts __exit__ leaves it in flight
            self.kept.release()

    def settled(self) -> None:
        assert self.held is not None
        try:
            with self.held:
                pytest.fail("it was entered")
        except ReservationClosed:
            self.held.commit()

    def wait_granted(self) -> None:
        self.pool.reserve(tokens=30, usd=30, timeout=None).release()

    def wait_timed_out(self) -> None:
        self.pool.reserve(tokens=30, usd=30, timeout=5)

    def wait_in_front(self) -> None:
        self.pool.reserve(tokens=30, usd=30, timeout=5)

    def set_caps(self) -> None:
        self.pool.set_caps(token_cap=100, usd_cap=100)

    def fork(self) -> None:
        _pool._after_fork_in_child()
        _pool._after_fork_in_child()

    def detach(self) -> None:
        self.pool.detach()

    def snapshot(self) -> None:
        self.pool.snapshot()

    def reset(self) -> None:
        self.pool.reset()

    def reclaim(self) -> None:
        self.held = None  # dropped outside of what is watched
        self.pool.record(tokens=5, usd=5)


class Below(World):
    """The same on a pool below two others, one of which has a window, with subscribers on all."""

    def make(self) -> BudgetPool:
        root = BudgetPool(token_cap=100, usd_cap=100, window=Window.every(timedelta(hours=1), clock=lambda: 0.0))
        project = root.child(token_cap=100, usd_cap=100)
        pool = project.child(token_cap=100, usd_cap=100)
        for scope in (root, project, pool):
            scope.subscribe(lambda _event: None)
        root.on_threshold(0.5, lambda _event: None)
        self.above = [root, project]
        return pool

    def __init__(self) -> None:
        super().__init__()
        self.root = self.above[0]

    def finish(self) -> None:
        super().finish()
        if self.held is not None:
            self.held.release()
        expected = counters(self.pool)
        for scope in self.above:
            if not self.was_reset:
                assert counters(scope) == expected, "half a change"
            scope.reset()

    was_reset = False

    def reset(self) -> None:
        self.was_reset = True
        super().reset()


WORLDS: dict[str, type[World]] = {"alone": World, "below": Below}

# Operation: what may be used after it, in tokens, beside the 10 that are used before it.
OPERATIONS: dict[str, set[int]] = {
    "record": {BEFORE, BEFORE + 5},
    "record_refused": {BEFORE},
    "record_forced": {BEFORE, BEFORE + 5},
    "record_floats": {BEFORE, BEFORE + 5},
    "reserve": {BEFORE},
    "reserve_refused": {BEFORE},
    "commit": {BEFORE, BEFORE + 15},
    "commit_over": {BEFORE, BEFORE + 150},
    "commit_default": {BEFORE, BEFORE + HELD},
    "release": {BEFORE},
    "block": {BEFORE, BEFORE + 25},
    "block_left": {BEFORE},
    "block_failed": {BEFORE},
    "block_named": {BEFORE, BEFORE + 25},
    "settled": {BEFORE},
    "wait_granted": {BEFORE},
    "wait_timed_out": {BEFORE},
    "wait_in_front": {BEFORE},
    "set_caps": {BEFORE},
    "fork": {BEFORE},
    "detach": {BEFORE},
    "async_block": {BEFORE, BEFORE + 25},
    "snapshot": {BEFORE},
    "reset": {0, BEFORE},
    "reclaim": {BEFORE, BEFORE + 5},
}
FINISHED = {"commit": BEFORE + 15, "commit_over": BEFORE + 150, "commit_default": BEFORE + HELD, "reset": 0}
REFUSED = {
    *("record_refused", "record_forced", "reserve_refused", "commit_over", "block_failed", "settled"),
    *("wait_timed_out", "wait_in_front"),
}
WATCHED = functions_of(_pool, _family, _keyed, _waiting, _events, _money, _errors, _snapshot)


def codes_of(name: str) -> list[types.CodeType]:
    own = getattr(World, name).__code__
    inner = [constant for constant in own.co_consts if isinstance(constant, types.CodeType)]
    # `reclaim` drops a reservation itself. An interrupt that is pending at that very moment is delivered at the entry
    # of `__del__`, where Python code cannot catch it: the one point that is left out, and tests/README.md says so.
    return [*WATCHED, *inner] if name == "reclaim" else [*WATCHED, own, *inner]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Collections only where a test asks for one; drops without their warning; Ctrl-C as in a program."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(_waiting, "_new_lock", HandLock)
    gc.disable()
    gc.collect()
    gc.freeze()  # a collection then looks at what the test made, and not at all of pytest
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
    gc.unfreeze()
    gc.enable()
    signal.signal(signal.SIGINT, before)


def is_free(pool: Any) -> bool:
    """Tell whether nobody holds the lock; where it is an RLock, taking it in this thread would not tell."""
    return repr(pool._family.lock).startswith("<unlocked")


def check(world: World, name: str, ended: str) -> None:
    """Hold the promises after an operation that ended somehow."""
    pool = world.pool
    assert is_free(pool), "the lock is held"
    if name in {"fork", "detach"}:
        check_forked(world, name, ended)
    world.finish()
    if world.held is not None and not world.held.completed:
        world.held.release()
    used, reserved, nanos_used, nanos_reserved, in_flight = counters(pool)
    assert (reserved, nanos_reserved, in_flight) == (0, 0, 0), "something leaked"
    assert used in OPERATIONS[name]
    if name != "record_forced":
        assert nanos_used == used * 10**9, "half a change"
    if ended == "done" and name in FINISHED:
        assert used == FINISHED[name], "a spend was lost"
    pool.reset()
    pool.record(tokens=100, usd=100)


def check_forked(world: World, name: str, ended: str) -> None:
    """Hold that the copy refuses or was detached, one of the two, and detach it."""
    try:
        world.pool.record(tokens=0)
        assert ended != "done" or name == "detach", "the child spends its parent's budget"
    except PoolForked:
        assert ended != "done" or name == "fork"
    world.pool.detach()
    if world.pool._family.spending is world.pool._family.locked and counters(world.pool)[4]:
        world.root._after_fork_in_child()  # interrupted before the hook had begun
        world.pool.detach()
    assert counters(world.pool)[1:] == (0, BEFORE * 10**9, 0, 0), "the parent's calls hold something here"


def prepared(kind: str, name: str, *, littered: bool = False) -> World:
    world = WORLDS[kind]()
    if littered:
        garbage(world.pool)
    world.prepare(name)
    return world


def count(kind: str, name: str, points: Points) -> int:
    """Return how many instructions the operation has."""
    world = prepared(kind, name)
    ended = handled(getattr(world, name), points, -1)
    assert ended == ("refused" if name in REFUSED else "done")
    if name == "fork":
        world.pool.detach()
    return points.count


def every_point(kind: str, name: str, points: Points, step: int) -> set[str]:
    """Run the operation once for each `step`-th of its instructions, with the action there; return how it ended."""
    points.codes = set(codes_of(name))
    ends = set()
    total = count(kind, name, points)
    assert total > 20
    for at in range(0, total, step):
        world = prepared(kind, name)
        ended = handled(getattr(world, name), points, at)
        assert points.count > at
        try:
            check(world, name, ended)
        except AssertionError as error:
            raise AssertionError(f"{name}, {ended}, at instruction {at} of {total}: {error}") from error
        ends.add(ended)
    return ends


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("kind", WORLDS)
def test_an_interrupt_before_any_instruction_breaks_nothing(kind: str, name: str, full: bool) -> None:
    unraisable: list[Any] = []
    before, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        assert "interrupted" in every_point(kind, name, Points([]), 1 if full or kind == "alone" else 5)
    finally:
        sys.unraisablehook = before
    # Delivered where Python code cannot raise it on (in a finaliser), or a coroutine that was made and never awaited.
    assert {item.exc_type for item in unraisable} <= {KeyboardInterrupt, RuntimeWarning}
    unraisable.clear()


def test_a_change_in_two_halves_would_be_noticed() -> None:
    """Break it on purpose: with a call between two stores, some interrupt cuts the change in half."""
    from faults import edited

    halves = edited(
        "BudgetPool.record",
        (("self._tokens_claimed = tokens_after\n", "self._tokens_claimed = tokens_after; len('')\n"),),
    )
    points = Points(functions_of(halves))
    seen = set()
    for at in range(200):
        pool = halves.BudgetPool()
        handled(lambda pool=pool: pool.record(tokens=5, usd=5), points, at)  # type: ignore[misc]
        seen.add((pool._tokens_claimed, pool._nanos_claimed))
    assert (5, 0) in seen


def test_a_lock_taken_by_a_call_before_the_try_would_be_noticed() -> None:
    """Break it on purpose: the plain spelling leaves the lock held at some interrupt."""
    from faults import edited

    plain = edited("BudgetPool.snapshot", (("for _ in self._locked:\n", "self._lock.acquire()\nfor _ in (None,):\n"),))
    points = Points(functions_of(plain))
    left_held = 0
    for at in range(200):
        pool = plain.BudgetPool()
        handled(pool.snapshot, points, at)
        left_held += not is_free(pool)
    assert left_held


# ---------------------------------------------------------------- signal handlers


def handler_that(world_of: list[World], does: str) -> Callable[..., None]:
    def handler(_number: int, _frame: object) -> None:
        world_of[1:] = []  # it was run
        pool = world_of[0].pool
        if does == "snapshot":
            snapshot = pool.snapshot()
            assert snapshot.tokens_used * 10**9 == snapshot.usd_used_nanos or snapshot.usd_used_nanos > 500 * 10**9
        try:
            if does == "record":
                pool.record(tokens=0, usd=0)
            elif does == "reserve":
                pool.reserve(tokens=1, usd=1).release()
            elif does == "drop":
                pool.reserve(tokens=1, usd=1)
            elif does == "release" and world_of[0].held is not None:
                world_of[0].held.release()
        except (BudgetExceeded, PoolForked):
            pass  # an overrun before, others that wait, or a copy
        except RuntimeError as error:
            assert "inside this pool already" in str(error)

    return handler


@pytest.mark.parametrize("does", ["snapshot", "record", "reserve", "drop", "release"])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("kind", WORLDS)
def test_a_signal_handler_before_any_instruction_may_use_the_pool(kind: str, name: str, does: str, full: bool) -> None:
    points = Points(codes_of(name))
    total = count(kind, name, points)
    for at in range(0, total, 1 if full else 5 if kind == "alone" else 61):
        world = prepared(kind, name)
        running = [world, world]
        signal.signal(signal.SIGINT, handler_that(running, does))
        ended = handled(getattr(world, name), points, at)
        assert len(running) == 1, "the handler was not run"
        check(world, name, ended if does == "snapshot" else "interrupted")


# ---------------------------------------------------------------- finalisers


def garbage(pool: BudgetPool) -> None:
    """Leave two reservations in a cycle that only the collector can free."""
    cycle: list[Any] = [pool.reserve(tokens=1, usd=1), pool.reserve(tokens=1, usd=1)]
    cycle.append(cycle)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("kind", WORLDS)
def test_a_collection_before_any_instruction_frees_what_garbage_held(kind: str, name: str, full: bool) -> None:
    points = Points(codes_of(name), act=gc.collect)
    total = count(kind, name, points)
    for at in range(0, total, 1 if full else 5 if kind == "alone" else 61):
        world = prepared(kind, name, littered=True)
        ended = handled(getattr(world, name), points, at)
        assert ended in {"done", "refused"}
        check(world, name, ended)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("kind", WORLDS)
def test_a_collection_at_every_allocation_hangs_nothing(kind: str, name: str) -> None:
    thresholds = gc.get_threshold()
    gc.enable()
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(20):
            world = prepared(kind, name, littered=True)
            try:
                getattr(world, name)()
            except (BudgetExceeded, ValueError, ReservationClosed):
                pass
            gc.collect()
            check(world, name, "interrupted")
    finally:
        gc.set_threshold(*thresholds)
        gc.disable()
