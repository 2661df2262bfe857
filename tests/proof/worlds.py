"""Where interrupts, collections and handlers are tried: pools, an operation on them, and what must hold after it.

A `World` does one operation. `check` then checks the promises, however the operation ended: nothing is lost, nothing
leaks, nothing is settled or delivered twice, and waiters are woken. Owed work is done by the end of the next operation.
"""

from __future__ import annotations

import asyncio
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from typing import Any

import token_budget
from planting import ROOMS, room
from points import Points, handled
from scenarios import wake_complete
from scheduler import functions_of
from support import counters

BEFORE = 10  # used before each operation
HELD = 20  # held by the call in flight


class HandLock:
    """Replaces the lock of a waiting thread's bell. A wait for it calls `meanwhile` first."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def __init__(self) -> None:
        self.made = self.rung = False

    def acquire(self, timeout: float = -1) -> bool:
        assert timeout == -1 or timeout >= 0
        if self.made and not self.rung:
            HandLock.meanwhile()
        self.made = True
        return self.rung

    def release(self) -> None:
        if self.rung:
            raise RuntimeError
        self.rung = True


class HandLoop:
    """An event loop that runs nothing by itself. Time passes only when a test says so, and wake-ups run at once."""

    def __init__(self) -> None:
        self.timers: list[Any] = []

    def create_future(self) -> Any:
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def get_debug(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return False

    def call_soon(self, *_: Any, **__: Any) -> None:
        pass  # nobody adds a callback to the future

    def call_soon_threadsafe(self, callback: Callable[..., object]) -> None:
        callback()

    def call_later(self, _seconds: float, callback: Callable[[], object]) -> Any:
        self.timers.append(callback)
        return types.SimpleNamespace(cancel=lambda: None)

    def time_out(self) -> None:
        while self.timers:
            self.timers.pop()()


class World:
    """A pool that has used 10 of 100 and holds 20 for `held`."""

    without: set[str] = set()  # operations that make no sense here
    refuses: set[str] = set()  # operations that are refused only here

    def __init__(self, package: Any = token_budget) -> None:
        self.package = package
        self.ledger = room(package, "_ledger")
        self.waiting = room(package, "_waiting")
        self.extra = 0  # what handlers have spent
        self.behind: list[Any] = []
        self.filler: Any = None
        self.now = [0.0]
        self.above: list[Any] = []
        self.heard: dict[Any, list[Any]] = {}
        self.warned: list[Any] = []
        self.pool = self.make()
        self.root = self.above[0] if self.above else self.pool
        self.pool.record(tokens=BEFORE, usd=BEFORE)
        self.held: Any = self.pool.reserve(tokens=HELD, usd=HELD)

    def make(self) -> Any:
        return self.package.BudgetPool(token_cap=100, usd_cap=100)

    def window(self) -> Any:
        return self.package.Window.every(timedelta(hours=1), clock=lambda: self.now[0])

    def prepare(self, name: str) -> None:
        """Do what must be done before the operation."""
        self.name = name
        HandLock.meanwhile = staticmethod(lambda: None)
        if name.startswith(("wait", "async_wait")):
            self.filler = self.pool.reserve(tokens=60, usd=60)
        if name == "wait_granted":
            HandLock.meanwhile = staticmethod(self.filler.release)
        if name == "wait_in_front":
            HandLock.meanwhile = staticmethod(lambda: self.wait_behind(5))
        if name in {"detach", "fork"}:
            self.filler = self.pool.reserve(tokens=HELD, usd=HELD)
        if name == "detach":
            self.root._family.fork()
        if name == "settled":
            self.held.release()
        if name.startswith("key"):
            self.users = self.pool.keyed(token_cap=100, usd_cap=100)
            self.users["a"]

    def finish(self) -> None:
        """Undo the surroundings of the operation."""
        for waiter in self.behind:
            assert waiter.state is self.waiting.GRANTED, "the next in line was not served"
            assert waiter.bell._lock.rung, "the next in line was not woken"
            waiter.reservation.release()
        if self.filler is not None:
            self.filler.release()

    def wait_behind(self, tokens: int) -> None:
        """Put a waiter for that many tokens in line, behind those that wait already."""
        reservation = room(self.package, "_reservation").new_reservation(self.pool, tokens, tokens * 10**9)
        waiter = self.waiting.Waiter(
            reservation, room(self.package, "_bells").ThreadBell(), None, self.ledger.give_back
        )
        self.ledger.reserve(reservation, waiter)
        assert waiter.ticket, "it was served before its turn"
        self.behind.append(waiter)

    # ---------------------------------------------------------------- operations

    def record(self) -> None:
        self.pool.record(tokens=5, usd=5)

    def record_refused(self) -> None:
        self.pool.record(tokens=500, usd=0.5)

    def record_forced(self) -> None:
        self.pool.record(tokens=5, usd=500, force=True)

    def record_floats(self) -> None:
        self.pool.record(tokens=5, usd=5.0)

    def record_past_share(self) -> None:
        self.pool.record(tokens=45, usd=45)

    def reserve(self) -> None:
        self.pool.reserve(tokens=30, usd=30).release()

    def reserve_refused(self) -> None:
        self.pool.reserve(tokens=5, usd=300)

    def commit(self) -> None:
        self.held.commit(tokens=15, usd=15)

    def commit_over(self) -> None:
        self.held.commit(tokens=150, usd=150)

    def commit_default(self) -> None:
        self.held.commit()

    def release(self) -> None:
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

    def block_named(self) -> None:
        self.kept = self.pool.reserve(tokens=30, usd=30)
        try:
            with self.kept as reservation:
                reservation.commit(tokens=25, usd=25)
        finally:  # the name outlives the block, so an interrupt in __exit__ leaves it in flight
            self.kept.release()

    def settled(self) -> None:
        try:
            with self.held:
                raise AssertionError("a settled reservation was entered")
        except self.package.ReservationClosed:
            self.held.commit()

    def wait_granted(self) -> None:
        self.pool.reserve(tokens=30, usd=30, timeout=None).release()

    def wait_timed_out(self) -> None:
        self.pool.reserve(tokens=30, usd=30, timeout=5)

    def wait_in_front(self) -> None:
        self.pool.reserve(tokens=30, usd=30, timeout=5)

    def async_block(self) -> None:
        async def call() -> None:
            async with self.pool.areserve(tokens=30, usd=30) as reservation:
                reservation.commit(tokens=25, usd=25)

        stepped(call(), HandLoop())

    def async_wait_granted(self) -> None:
        async def call() -> None:
            (await self.pool.areserve(tokens=30, usd=30)).release()

        stepped(call(), HandLoop(), self.filler.release)

    def async_wait_timed_out(self) -> None:
        loop = HandLoop()
        stepped(self.pool.areserve(tokens=30, usd=30, timeout=5), loop, loop.time_out)

    def async_wait_cancelled(self) -> None:
        coroutine = self.pool.areserve(tokens=30, usd=30)
        try:
            asyncio._set_running_loop(HandLoop())  # type: ignore[arg-type]
            coroutine.send(None)
            self.filler.release()
            coroutine.throw(ValueError())
        except StopIteration as stop:  # a handler has made room, so it did not wait
            stop.value.release()
        finally:
            asyncio._set_running_loop(None)
            coroutine.close()

    def set_caps(self) -> None:
        self.pool.set_caps(token_cap=100, usd_cap=100)

    def set_window(self) -> None:
        self.pool.set_caps(window=self.window())

    def close(self) -> None:
        self.pool.close()

    def child(self) -> None:
        self.pool.child(token_cap=50)

    def subscribe(self) -> None:
        self.pool.subscribe(len)()

    def tree(self) -> None:
        self.root.snapshot(tree=True)

    def key_found(self) -> None:
        self.users["a"]

    def key_made(self) -> None:
        self.users["b"].record(tokens=5, usd=5)

    def key_deleted(self) -> None:
        del self.users["a"]

    def key_caps(self) -> None:
        self.users.set_caps(token_cap=90, window=self.window())

    def fork(self) -> None:
        room(self.package, "_pool")._after_fork_in_child()
        room(self.package, "_pool")._after_fork_in_child()

    def detach(self) -> None:
        self.pool.detach()

    def snapshot(self) -> None:
        self.pool.snapshot()

    def reset(self) -> None:
        self.pool.reset()

    def reclaim(self) -> None:
        self.held = None  # dropped outside of the watched code
        self.pool.record(tokens=5, usd=5)

    # ---------------------------------------------------------------- events

    def listen(self) -> None:
        """Subscribe to each scope and keep the events. The callbacks are C functions, which no interrupt reaches."""
        for scope in (self.pool, *self.above):
            self.heard[scope] = []
            scope.subscribe(self.heard[scope].append)
        (self.above or [self.pool])[0].on_threshold(0.5, self.warned.append)

    def told_once(self) -> None:
        """Check that each scope delivered every event exactly once."""
        for scope, events in self.heard.items():
            used = flying = over = due = 0
            armed = True
            for event in events:
                kind, tokens, nanos = event.kind, event.tokens, event.usd_nanos
                flying += {"reserve": 1, "commit": -1, "release": -1, "drop": -1}.get(kind, 0)
                if kind == "reset" and event.pool == scope.name:
                    used, armed = 0, True
                if kind in {"record", "commit"}:
                    used += tokens
                    over += passes(event)
                    if armed and (used >= 50 or nanos > 100 * 10**9):
                        due, armed = due + 1, False
            told = Counter(event.kind for event in events)
            shown = counters(scope)
            assert (used, flying) == (shown[0], shown[4]), f"an event was lost or delivered twice: {told}"
            assert told["overrun"] == over, f"an overrun was lost or delivered twice: {told}"
            assert told["refusal"] <= 3, "a refusal was delivered twice"  # by the operation, a handler and the check
            if scope is self.root:
                assert len(self.warned) == due, f"a threshold fired {len(self.warned)} times, not {due}"


def passes(event: Any) -> bool:
    """Return whether a spend passed a cap: a commit above its reservation, or a forced record."""
    if event.kind == "commit":
        return bool(event.tokens > 100)
    left = event.snapshot
    return bool((event.tokens and left.tokens_remaining < 0) or (event.usd_nanos and left.usd_remaining_nanos < 0))


@contextmanager
def running(loop: HandLoop) -> Iterator[None]:
    """Make this loop the running loop of this thread."""
    asyncio._set_running_loop(loop)  # type: ignore[arg-type]
    try:
        yield
    finally:
        asyncio._set_running_loop(None)


def stepped(coroutine: Any, loop: HandLoop, *meanwhile: Callable[[], object]) -> None:
    """Run a coroutine to its end. Each time that it waits, do the next of these steps."""
    left = iter(meanwhile)
    asyncio._set_running_loop(loop)  # type: ignore[arg-type]
    try:
        while True:
            coroutine.send(None)
            next(left)()
    except StopIteration:
        pass
    finally:
        asyncio._set_running_loop(None)
        coroutine.close()


class Below(World):
    """The same on a pool below two others, one of which has a window, with subscribers on all."""

    def make(self) -> Any:
        root = self.package.BudgetPool(token_cap=100, usd_cap=100, window=self.window(), name="root")
        project = root.child(token_cap=100, usd_cap=100, name="project")
        self.pool = project.child(token_cap=100, usd_cap=100, name="pool")
        self.above = [root, project]
        self.listen()
        return self.pool


class Deep(World):
    """The same on the lowest pool of five, where straight runs change five accounts. The first has a threshold."""

    def make(self) -> Any:
        pool = self.package.BudgetPool(token_cap=100, usd_cap=100)
        for _ in range(4):
            self.above.append(pool)
            pool = pool.child(token_cap=100, usd_cap=100)
        self.above[0].on_threshold(0.9, self.warned.append)
        return pool


class Lined(World):
    """The same on a pool with a subscriber and a waiter that asks for 75."""

    without = {"detach", "fork"}
    refuses = {"record", "record_floats", "record_past_share", "reserve", "key_made"}
    refuses |= {"block", "block_left", "block_named"}

    def __init__(self, package: Any = token_budget) -> None:
        super().__init__(package)
        self.wait_behind(75)

    def make(self) -> Any:
        self.pool = self.package.BudgetPool(token_cap=100, usd_cap=100)
        self.listen()
        return self.pool

    def finish(self) -> None:
        (waiter,) = self.behind
        ended = waiter.state is not self.waiting.WAITING
        if self.name in {"set_window", "key_caps"}:  # these wake the waiter to learn when the period ends
            assert waiter.bell._lock.rung >= ended, "a served waiter was not woken"
        else:
            assert waiter.bell._lock.rung == ended, "a served waiter was not woken, or an unserved waiter was"
        self.ledger.abandon(waiter)
        if self.filler is not None:
            self.filler.release()


WORLDS: dict[str, type[World]] = {"alone": World, "below": Below, "deep": Deep, "lined": Lined}

# Operation: what may be used after it, in tokens.
OPERATIONS: dict[str, set[int]] = {
    "record": {BEFORE, BEFORE + 5},
    "record_refused": {BEFORE},
    "record_forced": {BEFORE, BEFORE + 5},
    "record_floats": {BEFORE, BEFORE + 5},
    "record_past_share": {BEFORE, BEFORE + 45},
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
    "async_block": {BEFORE, BEFORE + 25},
    "async_wait_granted": {BEFORE},
    "async_wait_timed_out": {BEFORE},
    "async_wait_cancelled": {BEFORE},
    "set_caps": {BEFORE},
    "set_window": {BEFORE},
    "close": {BEFORE},
    "child": {BEFORE},
    "subscribe": {BEFORE},
    "tree": {BEFORE},
    "key_found": {BEFORE},
    "key_made": {BEFORE, BEFORE + 5},
    "key_deleted": {BEFORE},
    "key_caps": {BEFORE},
    "fork": {BEFORE},
    "detach": {BEFORE},
    "snapshot": {BEFORE},
    "reset": {0, BEFORE},
    "reclaim": {BEFORE, BEFORE + 5},
}
FINISHED = {
    "commit": BEFORE + 15,
    "commit_over": BEFORE + 150,
    "commit_default": BEFORE + HELD,
    "record": BEFORE + 5,
    "record_past_share": BEFORE + 45,
    "reset": 0,
}
REFUSED = {
    *("record_refused", "record_forced", "reserve_refused", "commit_over", "block_failed", "settled"),
    *("wait_timed_out", "wait_in_front", "async_wait_timed_out", "async_wait_cancelled"),
}
WAITING = {name for name in OPERATIONS if name.startswith(("wait", "async_wait"))}
WORDS = ("_events", "_money", "_errors", "_snapshot", "_window", "_arguments")


def operations_of(kind: str) -> list[str]:
    """Return the operations that make sense in a world."""
    return [
        name for name in OPERATIONS if name not in WORLDS[kind].without and (kind != "lined" or name not in WAITING)
    ]


@lru_cache(maxsize=2)
def _watched(package: Any) -> list[types.CodeType]:
    return functions_of(*[room(package, one) for one in (*ROOMS, *WORDS)])


def codes_of(name: str, package: Any = token_budget) -> list[types.CodeType]:
    """Return the code whose instructions count for an operation."""
    watched = _watched(package)
    own = getattr(World, name).__code__
    inner = [constant for constant in own.co_consts if isinstance(constant, types.CodeType)]
    # `reclaim` drops a reservation itself. An interrupt that is pending at that very moment is delivered at the entry
    # of `__del__`, where Python code cannot catch it. That one point is left out, as tests/README.md says.
    return [*watched, *inner] if name == "reclaim" else [*watched, own, *inner]


def prepared(kind: str, name: str, package: Any = token_budget, *, littered: bool = False) -> World:
    world = WORLDS[kind](package)
    if littered:
        garbage(world.pool)
    world.prepare(name)
    if name == "fork":  # the hook is to visit this family alone, so that it has as many instructions each time
        room(package, "_pool").families = {0: world.pool._family}
    return world


def garbage(pool: Any) -> None:
    """Leave two reservations in a cycle that only the collector can free."""
    with suppress(Exception):  # refused if others wait
        cycle: list[Any] = [pool.reserve(tokens=1, usd=1), pool.reserve(tokens=1, usd=1)]
        cycle.append(cycle)


def count(kind: str, name: str, points: Points, package: Any = token_budget) -> int:
    """Return how many instructions the operation has."""
    world = prepared(kind, name, package)
    ended = handled(getattr(world, name), points, -1)
    assert ended == ("refused" if name in REFUSED | WORLDS[kind].refuses else "done")
    check(world, name, ended)
    return points.count


def attempt(world: World, name: str, points: Points, at: int) -> str:
    """Run the operation with the action at one point, and return how it ended.

    The operation runs at the same stack depth as in `count`. The depth changes the number of instructions: the
    finaliser of a reservation visits each frame of its thread.
    """
    return handled(getattr(world, name), points, at)


def is_free(pool: Any) -> bool:
    """Return whether the lock is free. Trying to take it would not show this: an RLock lets its own thread in."""
    return repr(pool._family.lock).startswith("<unlocked")


def check(world: World, name: str, ended: str) -> None:
    """Check the promises after an operation, however it ended."""
    pool = world.pool
    family = pool._family
    assert is_free(pool), "the lock is held"
    assert family.owner == 0, "an operation is still marked as running"
    if name in {"fork", "detach"}:
        check_forked(world, name, ended)
        family = pool._family
    with suppress(Exception):  # the next operation; it may be refused
        pool.record(tokens=0)
    assert not family.owed, f"something stays owed: {list(family.owed)}"
    assert not family.stirred, "a line was not served"
    assert family.pending is family.owed, "the straight runs stay closed"
    wake_complete(family, {*pool._chain, family.root})
    check_keys(world, name, ended)
    world.finish()
    if world.held is not None and not world.held.completed:
        world.held.release()
    used, reserved, nanos_used, nanos_reserved, in_flight = counters(pool)
    assert (reserved, nanos_reserved, in_flight) == (0, 0, 0), "something leaked"
    assert used - world.extra in OPERATIONS[name] or (name == "reset" and used <= world.extra), "the sum is wrong"
    if name != "record_forced":
        assert nanos_used == used * 10**9, "half a change"
    if ended == "done" and name in FINISHED and name != "reset":
        assert used == FINISHED[name] + world.extra, "a spend was lost"
    if name not in {"fork", "detach"}:
        world.told_once()
    if name != "reset":
        for scope in world.above:
            assert counters(scope) == counters(pool), "half a change"
    assert family.root.line is None, "a line stays"
    check_usable(world)


def check_usable(world: World) -> None:
    """Check that the pool still works: it follows its window, if it has one, and keeps to its caps."""
    pool = world.pool
    for scope in (*world.above, pool):
        if scope._account.window is not None:
            world.now[0] += 7200
            scope.snapshot()
            assert counters(scope)[0] == 0, "a period never ends"
            world.now[0] -= 0.5
        scope.reset()
    if not pool.closed:
        pool.record(tokens=100, usd=100)
        with suppress(world.package.BudgetExceeded):
            pool.record(tokens=1)
            raise AssertionError("it oversells")


def check_keys(world: World, name: str, ended: str) -> None:
    """Check that a key has one budget, and that it works."""
    if not name.startswith("key"):
        return
    a, account = world.users["a"], world.users._by_key["a"]
    assert a._account is account
    assert world.users["a"] is a, "one key has two pools"
    assert not a.closed, "a key was deleted only in part"
    if name == "key_deleted" and ended == "done":
        assert len(world.users) == 1
    if name == "key_caps":
        caps = {pool.snapshot().token_cap for pool in (a, world.users["new"])}
        assert len(caps) == 1, "half a change of caps"
        assert caps <= ({90} if ended == "done" else {90, 100})
        assert (a._times is None) == all(one.window is None for one in a._chain), (
            "a key's pool does not know its window"
        )


def check_forked(world: World, name: str, ended: str) -> None:
    """Check that the copy either refuses or was detached, and detach it."""
    room(world.package, "_pool").families = room(world.package, "_family").families
    forked = world.package.PoolForked
    try:
        world.pool.record(tokens=0)
        assert ended != "done" or name == "detach", "the child spends its parent's budget"
    except forked:
        assert ended != "done" or name == "fork"
    world.pool.detach()
    if world.pool._family.spending is world.pool._family.locked and counters(world.pool)[4]:
        world.root._family.fork()  # the interrupt came before the fork hook had begun
        world.pool.detach()
    assert counters(world.pool)[1:] == (0, (BEFORE + world.extra) * 10**9, 0, 0), (
        "the parent's calls still hold something in the child"
    )
