"""Waiting for room: who waits, in which order, and how they are woken.

A `Waiter` is one request that did not fit, of a thread or of a task. It waits at one scope at a time, the first of its
chain that has no room for it or where somebody older waits; there only the oldest is looked at (`Queue`), so nobody is
overtaken, and who waits at one scope holds up nobody who does not need that scope. When room comes the pool itself
gives it to the waiter, under its lock, and rings the waiter's bell afterwards: a woken waiter has its room already.

A family's lock guards everything here but the bells, which may be rung by anyone, more than once.
"""

from __future__ import annotations

import threading
from heapq import heapify, heappop, heappush

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Callable
    from typing import Any

# What becomes of a waiter. Each ends in one of the last three, and stays in it.
WAITING = "waiting"
GRANTED = "granted"  # its reservation is in flight
REFUSED = "refused"  # it could not fit any more, even if all that is in flight came back
WITHDRAWN = "withdrawn"  # it timed out, or was cancelled or interrupted

# The seam through which tests put a lock of their own.
_new_lock: Callable[[], Any] = threading.Lock


class ThreadBell:
    """Wakes a thread."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = _new_lock()
        self._lock.acquire()

    def deaf(self) -> bool:
        """Whether nobody can hear it any more."""
        return False

    def ring(self) -> bool:
        """Wake the thread; return whether there is anybody to hear it."""
        try:
            self._lock.release()
        except RuntimeError:  # it was rung before
            return True
        return True

    def wait(self, timeout: float | None) -> bool:
        """Block until it is rung, for at most so many seconds; return whether it was."""
        return bool(self._lock.acquire(timeout=-1 if timeout is None else timeout))


class LoopBell:
    """Wakes a task of an asyncio event loop, from any thread."""

    __slots__ = ("_future", "_loop", "_rung")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._future: Future[None] = loop.create_future()  # of the latest wait
        self._rung = False  # set and read in the loop's own thread, as the future is

    def deaf(self) -> bool:
        """Whether the loop is closed, and nobody can hear it any more."""
        return self._loop.is_closed()

    def ring(self) -> bool:
        """Wake the task; return whether there is a loop left to run it."""
        try:
            self._loop.call_soon_threadsafe(self._ring)
        except RuntimeError:  # the loop is closed
            return False
        return True

    async def wait(self, timeout: float | None) -> bool:
        """Suspend the task until it is rung, for at most so many seconds; return whether it was."""
        if not self._rung:
            self._future = self._loop.create_future()
            timer = None if timeout is None else self._loop.call_later(timeout, self._wake)
            try:
                await self._future
            finally:
                if timer is not None:
                    timer.cancel()
        return self._rung

    def _ring(self) -> None:
        self._rung = True
        self._wake()

    def _wake(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


class Waiter:
    """One request that waits: what it asks for, of which scopes, and the reservation that it is to have."""

    __slots__ = ("at", "bell", "chain", "nanos", "refusal", "reservation", "state", "ticket", "tokens")

    def __init__(self, chain: tuple[Any, ...], reservation: Any, bell: ThreadBell | LoopBell) -> None:
        self.chain = chain  # every scope that it counts against, its own first
        self.reservation = reservation
        self.tokens: int = reservation._tokens
        self.nanos: int = reservation._nanos
        self.bell: Any = bell
        self.state = WAITING
        self.ticket = 0  # the order of arrival
        self.at: Any = None  # the scope at which it waits for room
        self.refusal: Callable[[], Exception] | None = None  # makes the error of one that is REFUSED


class Queue:
    """Those who wait for one scope: the oldest of those who wait at it, and the largest of all that need it.

    Entries of waiters that left, or went to wait at another scope, stay in the heaps until they come to the front, or
    until half of a heap is such.
    """

    __slots__ = ("_at", "_by_nanos", "_by_tokens", "members")

    def __init__(self) -> None:
        self.members: dict[int, Waiter] = {}  # all that need the scope, by ticket, wherever they wait
        self._at: list[tuple[int, Waiter]] = []  # by ticket: those who wait at this scope
        self._by_tokens: list[tuple[int, int, Waiter]] = []  # all members, who asks for most first
        self._by_nanos: list[tuple[int, int, Waiter]] = []

    def join(self, waiter: Waiter) -> None:
        """Count one in that needs the scope."""
        self.members[waiter.ticket] = waiter
        heappush(self._by_tokens, (-waiter.tokens, waiter.ticket, waiter))
        heappush(self._by_nanos, (-waiter.nanos, waiter.ticket, waiter))

    def park(self, waiter: Waiter, scope: object) -> None:
        """Let one wait at this scope from now on."""
        heappush(self._at, (waiter.ticket, waiter))
        waiter.at = scope

    def head(self, scope: object) -> Waiter | None:
        """Return the oldest of those who wait at this scope."""
        entries = self._at
        while entries:
            waiter = entries[0][1]
            if waiter.state is WAITING and waiter.at is scope:
                return waiter
            heappop(entries)
        return None

    def hopeless(self, tokens_left: int, nanos_left: int) -> Waiter | None:
        """Return one that asks for more than will ever be left, wherever it waits."""
        for entries, left in ((self._by_tokens, tokens_left), (self._by_nanos, nanos_left)):
            while entries and entries[0][2].state is not WAITING:
                heappop(entries)
            if entries and -entries[0][0] > left:
                return entries[0][2]
        return None

    def leave(self, waiter: Waiter) -> None:
        """Count one out whose waiting is over; may be repeated."""
        self.members.pop(waiter.ticket, None)
        room = 2 * len(self.members) + 16
        if len(self._by_tokens) > room or len(self._at) > room:
            waiting = list(self.members.values())
            by_tokens = [(-one.tokens, one.ticket, one) for one in waiting]
            by_nanos = [(-one.nanos, one.ticket, one) for one in waiting]
            at = [entry for entry in self._at if entry[1].state is WAITING]
            heapify(by_tokens)
            heapify(by_nanos)
            heapify(at)
            self._by_tokens, self._by_nanos, self._at = by_tokens, by_nanos, at
