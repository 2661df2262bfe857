"""Waiting for room: who waits, in which order, and how each is woken.

A `Waiter` is one request that did not fit, of a thread or of a task. It waits at one scope at a time: the first of its
chain that has no room for it, or where somebody older waits. At each scope only the oldest is looked at (`Line`), so
nobody is overtaken, and a caller that waits at one scope never blocks callers that do not need that scope. When room
comes the family gives it to the waiter under its lock, and rings the waiter's bell afterwards: a woken waiter has its
room already.

The family's lock guards everything here except the bells. A bell may be rung by anyone, more than once. Whatever a
waiter or a line is to become is noted in a `Change` and made with it; only entries that can never count again are
removed from the heaps at once.
"""

from __future__ import annotations

import time
from heapq import heapify, heappop, heappush

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# What becomes of a waiter. Each ends in one of the last three, and stays in it.
NEW = "new"  # it has not joined a line
WAITING = "waiting"
GRANTED = "granted"  # its reservation is in flight
REFUSED = "refused"  # it can no longer fit, even if everything in flight comes back
WITHDRAWN = "withdrawn"  # it timed out, or was cancelled or interrupted


class Waiter:
    """One request that waits: what it asks for, of which scopes, and the reservation that it is to have.

    It is also what is owed to its thread or task once it was granted or refused: the ring of its bell (`_pay`).
    """

    __slots__ = (
        "at",
        "bell",
        "deadline",
        "give_back",
        "lives_until",
        "nanos",
        "refusal",
        "reservation",
        "scope",
        "state",
        "ticket",
        "tokens",
    )
    _teller = None  # anybody may pay

    def __init__(self, reservation: Any, bell: Any, timeout: float | None, give_back: Callable[..., None]) -> None:
        self.reservation = reservation
        self.scope = scope = reservation._pool
        self.tokens: int = reservation._tokens
        self.nanos: int = reservation._nanos
        self.bell = bell
        self.give_back = give_back  # returns the room of one whose bell nobody can hear any more
        self.deadline = None if timeout is None else time.monotonic() + timeout
        # For each account of the chain, its window and the latest reading of that one's clock that the waiter lives to
        # see.
        self.lives_until: dict[Any, tuple[Any, float]] = {}
        for account in scope._chain:
            window = account.window
            if window is not None:
                self.lives_until = self.seeing(account, window, window.now(), timeout)
        self.state = NEW
        self.ticket = 0  # the order of arrival
        self.at: Any = None  # the account at which it waits for room
        self.refusal: Callable[[], Exception] | None = None  # makes the error of one that got nothing

    def left(self) -> float | None:
        """Return how many seconds it will wait yet; None without end."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def seeing(self, account: Any, window: Any, now: float | None, left: float | None) -> dict[Any, tuple[Any, float]]:
        """Return what `lives_until` is with another window of one account, by whose clock it is `now`."""
        lives = {one: seen for one, seen in self.lives_until.items() if one is not account}
        if left is not None and now is not None:
            lives[account] = window, now + left
        return lives

    def patient(self, account: Any) -> bool:
        """Return whether it lives to see the end of an account's period."""
        window, moment = self.lives_until.get(account, (None, 0.0))
        return window is not None and window is account.window and bool(account.period_end <= moment)

    def _pay(self, takes: Any) -> None:
        """Ring. Where nobody can hear it any more, give its room back."""
        if not self.bell.ring():
            self.give_back(self, takes)

    def _paid(self) -> bool:
        """Return whether it has no room that nobody can use."""
        held = self.reservation
        return self.state is not GRANTED or held is None or held.completed or not self.bell.deaf()


def drop_first(heap: list[Any], entry: Any) -> None:
    """Remove an entry from the front of a heap, unless a handler of this thread has removed it meanwhile.

    CPython 3.10 lets a handler in between a comparison and what it decides.
    """
    removed = heappop(heap) if heap else entry
    if removed is not entry:
        heappush(heap, removed)


def _waiting_first(heap: list[tuple[int, int, Waiter]]) -> Waiter | None:
    """Return the waiter of the first entry of a heap that still waits."""
    while heap:
        entry = heap[0]
        if entry[2].state is WAITING:
            return entry[2]
        drop_first(heap, entry)
    return None


class Largest:
    """The waiters of one kind that ask for most, on each axis, in time that does not grow with their number."""

    __slots__ = ("by_nanos", "by_tokens")

    def __init__(self, waiters: list[Waiter] | None = None) -> None:
        self.by_tokens: list[tuple[int, int, Waiter]] = [(-one.tokens, one.ticket, one) for one in waiters or ()]
        self.by_nanos: list[tuple[int, int, Waiter]] = [(-one.nanos, one.ticket, one) for one in waiters or ()]
        heapify(self.by_tokens)
        heapify(self.by_nanos)

    def top(self) -> tuple[Waiter, Waiter] | None:
        """Return who asks for most tokens and who asks for most dollars; None if nobody is here."""
        by_tokens, by_nanos = _waiting_first(self.by_tokens), _waiting_first(self.by_nanos)
        return None if by_tokens is None or by_nanos is None else (by_tokens, by_nanos)

    def waiting(self) -> list[Waiter]:
        """Return all that still wait."""
        return [entry[2] for entry in self.by_tokens if entry[2].state is WAITING]


class Line:
    """Those who wait and need one scope: the oldest of those who wait for room in it, and the largest of all.

    An entry counts while its waiter waits and, in `parked`, waits at this very scope. Others stay in the heaps until
    they come to the front, or until half of a heap is such.
    """

    __slots__ = ("gone", "later", "now", "parked")

    def __init__(self) -> None:
        self.parked: list[tuple[int, Waiter]] = []  # by ticket: who waits for room in this scope
        self.now = Largest()  # who needs room in this period
        self.later = Largest()  # who lives to see the next
        self.gone = 0  # how many have left since the heaps were last cleaned; a rough count will do

    def head(self, account: object) -> Waiter | None:
        """Return the oldest of those who wait for room in this scope, the one of this account."""
        entries = self.parked
        while entries:
            entry = entries[0]
            waiter = entry[1]
            if waiter.state is WAITING and waiter.at is account and waiter.ticket == entry[0]:
                return waiter
            drop_first(entries, entry)
        return None

    def deaf(self, account: object) -> bool:
        """Return whether the oldest that waits for room in this scope can hear nothing any more."""
        head = self.head(account)
        return head is not None and head.bell.deaf()

    def kind(self, waiter: Waiter, account: object) -> Largest:
        """Return where a waiter belongs."""
        return self.later if waiter.patient(account) else self.now

    def demand(self) -> tuple[int, int] | None:
        """Return the most that one of them asks for on each axis; None if nobody waits."""
        tops = [top for top in (self.now.top(), self.later.top()) if top is not None]
        if not tops:
            return None
        return max(top[0].tokens for top in tops), max(top[1].nanos for top in tops)

    def crowded(self) -> bool:
        """Return whether the heaps hold so many that left that cleaning them costs each that left a constant time."""
        return self.gone > (len(self.now.by_tokens) + len(self.later.by_tokens)) // 2 + 8

    def waiting(self) -> list[Waiter]:
        """Return all that wait and need this scope, wherever they wait."""
        return [*self.now.waiting(), *self.later.waiting()]
