"""Places: who waits in this process, for room in which scope, in which order. Data alone: no step of a store.

A waiter stands at one place at a time: the scope that refused it. The store's tickets give the order. One step of the
store at a time is done for a waiter, by whoever has taken it (`take`): it is BUSY then, and `by` says whose it is.

The lock guards all of it. It is held for a few instructions, never during a step of the store, a callback, or a call of
a window's clock, which is a user's.
"""

from __future__ import annotations

import itertools
import time
from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from threading import RLock, get_ident
from typing import Any

from token_budget.stores._refusing import exhausted, hopeless
from token_budget.stores._store import Answer, Numbers, Scope

# The states of a waiter. It ends in one of the last three.
WAITING = "waiting"
BUSY = "busy"  # somebody does a step of the store for it
HELD = "held"  # its reservation is open
REFUSED = "refused"  # with an error
GONE = "gone"  # nobody waits for it any more

LOOK = 0.25  # seconds until the oldest of few places try again whatever the store says: messages get lost
_SOON = 0.005  # seconds until one tries again whose period has ended by its clock, and has not in the store


class Waiter:
    """One request that waits, of a thread or of a task."""

    __slots__ = (
        "again",
        "asked",
        "at",
        "bell",
        "by",
        "chain",
        "deadline",
        "ends",
        "error",
        "late",
        "latest",
        "looked",
        "nanos",
        "order",
        "pool",
        "reservation",
        "since",
        "state",
        "tokens",
        "windows",
    )

    def __init__(self, reservation: Any, bell: Any, timeout: float | None) -> None:
        self.reservation = reservation
        self.pool = pool = reservation._pool
        self.chain: tuple[Scope, ...] = pool._chain
        self.tokens: int = reservation._tokens
        self.nanos: int = reservation._nanos
        self.bell = bell
        self.since = time.monotonic()
        self.deadline = None if timeout is None else self.since + timeout
        self.latest: dict[Scope, float] = {}  # see `hopeless`
        self.windows: dict[Scope, Any] = {}  # those that `latest` is about
        self.state = BUSY
        self.by = get_ident()
        self.asked = False  # whether the store was asked for it
        self.at: Scope | None = None  # where it waits for room; None before and after
        self.order = 0  # its ticket
        self.ends: list[tuple[Scope, float]] = []  # of the periods, as of the last refusal
        self.looked = 0.0  # when it last tried
        self.again = False  # whether room may have come back since the step that is under way began
        self.late = False  # whether its time is up
        self.error: BaseException | None = None

    def left(self) -> float | None:
        """Return how many seconds it will wait yet; None without end."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def outcome(self) -> None:
        """Return if its reservation is open, else raise what it got instead."""
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame

    def lives_until(self) -> dict[Scope, float]:
        """Return the latest reading of each window's clock that it lives to see, by scope.

        It is reckoned once for each window, so that a clock that stands still in a test shortens nothing.
        """
        left = self.left()
        if left is not None:
            for scope in self.chain:
                window = scope.window
                if window is None:
                    self.latest.pop(scope, None)
                elif self.windows.get(scope) is not window:
                    self.latest[scope] = window.now() + left
                    self.windows[scope] = window
        return self.latest

    def in_vain(self, chain: Sequence[Scope], rows: Sequence[Numbers]) -> bool:
        """Return whether it waits for what can never come, by the rows of some of its scopes."""
        return hopeless(chain, rows, self.tokens, self.nanos, self.lives_until())

    def due(self, now: float) -> float:
        """Return in how many seconds a period ends that it may wait for; at most `LOOK`."""
        seconds = LOOK
        for scope, end in self.ends:
            if scope.window is not None:
                try:
                    left = end - scope.window.now()
                except Exception:  # noqa: BLE001, S112 - a user's clock: the next try raises what it raises
                    continue
                # Where the store's clock is behind this one, it tries again after as long as the period is over.
                seconds = min(seconds, left if left > 0 else max(_SOON, -left) - (now - self.looked))
        return seconds


class Needs:
    """Those who wait and need one scope, and no less than each of them asks for."""

    __slots__ = ("looked", "nanos", "row", "seen", "tokens", "waiters")

    def __init__(self, row: Numbers) -> None:
        self.waiters: dict[Waiter, None] = {}
        self.tokens = 0
        self.nanos = 0
        self.row = row  # as last seen
        self.looked = time.monotonic()  # when that was
        self.seen: tuple[Any, ...] | None = None  # what of that row decides who waits in vain; all were asked by it


class Places:
    """All who wait in this process for room in the scopes of one root."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.needs: dict[Scope, Needs] = {}  # empty while nobody waits
        self.heads: list[tuple[Sequence[Scope], Any, int, int]] = []  # what `Store.watch` reads anew at each look
        self._waiting: dict[Scope, list[Waiter]] = {}  # who waits for room in a scope, oldest first
        self._arrivals = itertools.count(1)  # for stores without tickets

    def all(self) -> list[Waiter]:
        """Return all who wait."""
        with self.lock:
            return [waiter for waiting in self._waiting.values() for waiter in waiting]

    def oldest(self) -> list[tuple[Scope, Waiter]]:
        """Return each place with the oldest who waits there."""
        with self.lock:
            return [(place, waiting[0]) for place, waiting in self._waiting.items()]

    def is_oldest(self, waiter: Waiter) -> bool:
        """Return whether nobody older waits where it does."""
        with self.lock:
            return waiter.at in self._waiting and self._waiting[waiter.at][0] is waiter

    def count(self, scope: Scope) -> int:
        """Return how many wait and need a scope."""
        needs = self.needs.get(scope)
        return 0 if needs is None else len(needs.waiters)

    def crowded(self, chain: Sequence[Scope], tokens: int, nanos: int) -> bool:
        """Return whether others wait in all scopes of a chain, and to wait there would not be in vain, as last seen."""
        if not self.needs:
            return False
        found = [self.needs.get(scope) for scope in chain]
        return all(one is not None and not one.row.closed and not exhausted(one.row, tokens, nanos) for one in found)

    # ------------------------------------------------------------------ states

    def take(self, waiter: Waiter) -> bool:
        """Let this thread do the steps of one that waits. Return False if another does, or it has ended."""
        with self.lock:
            if waiter.state is not WAITING:
                return False
            waiter.state, waiter.by, waiter.again = BUSY, get_ident(), False
            return True

    def take_oldest(self, place: Scope) -> Waiter | None:
        """Take the oldest who waits at a place. Where another thread has it, that one is to let it try again."""
        with self.lock:
            waiting = self._waiting.get(place)
            if not waiting:
                return None
            waiting[0].again = True
            return waiting[0] if self.take(waiting[0]) else None

    def begin(self, waiter: Waiter) -> bool:
        """Let this thread do the steps of one that has just arrived, unless it is gone."""
        with self.lock:
            if waiter.state is not BUSY:
                return False
            waiter.by, waiter.asked = get_ident(), True
            return True

    def end(self, waiter: Waiter, state: str, error: BaseException | None = None) -> Scope | None:
        """End one that this thread has taken. It stays GONE if it is. Return where it waited."""
        with self.lock:
            place = waiter.at
            self._remove(waiter)
            if waiter.state is BUSY:
                waiter.state, waiter.error = state, error
            return place

    def leave(self, waiter: Waiter) -> tuple[bool, Scope | None]:
        """Note that nobody waits for one any more.

        Return whether the caller is to give back its claim (if another thread has taken it, that one does), and where
        it waited.
        """
        with self.lock:
            state, place = waiter.state, waiter.at
            if state in {REFUSED, GONE}:
                return False, None
            waiter.state = GONE
            self._remove(waiter)
            return waiter.asked and (state is not BUSY or waiter.by == get_ident()), place

    # ------------------------------------------------------------------ places

    def put(self, waiter: Waiter, answer: Answer) -> tuple[bool, bool]:
        """Let one that this thread has taken wait where it was refused.

        Return whether it waits (it may be gone), and whether the oldest where it was may have room now: there is
        another, or room may have come since.
        """
        place = waiter.chain[answer.at]
        ends = [(scope, row.end) for scope, row in zip(waiter.chain, answer.rows, strict=True) if row.end is not None]
        with self.lock:
            if waiter.state is not BUSY:
                return False, True
            order = answer.ticket or waiter.order or next(self._arrivals)
            moved = waiter.at is not place or waiter.order != order
            if moved:
                self._remove(waiter)
                waiter.at, waiter.order = place, order
                insort(self._waiting.setdefault(place, []), waiter, key=lambda one: one.order)
                self._need(waiter, answer.rows)
                self._renew_heads()
            waiter.ends, waiter.looked, waiter.state = ends, time.monotonic(), WAITING
            return True, moved or waiter.again

    def _need(self, waiter: Waiter, rows: Sequence[Numbers]) -> None:
        for scope, row in zip(waiter.chain, rows, strict=True):
            needs = self.needs.get(scope)
            if needs is None:
                needs = self.needs[scope] = Needs(row)
            needs.waiters[waiter] = None
            needs.tokens = max(needs.tokens, waiter.tokens)
            needs.nanos = max(needs.nanos, waiter.nanos)

    def _remove(self, waiter: Waiter) -> None:
        place, waiter.at = waiter.at, None
        if place is None:
            return
        waiting = self._waiting.get(place, [])
        if waiter in waiting:
            waiting.remove(waiter)
        if not waiting:
            self._waiting.pop(place, None)
        for scope in waiter.chain:
            needs = self.needs.get(scope)
            if needs is not None:
                needs.waiters.pop(waiter, None)
                if not needs.waiters:
                    del self.needs[scope]
        self._renew_heads()

    def _renew_heads(self) -> None:
        oldest = [waiting[0] for waiting in self._waiting.values()]
        self.heads[:] = [(one.chain, one.reservation._key, one.tokens, one.nanos) for one in oldest]

    # ------------------------------------------------------------------ who waits in vain

    def in_vain(self, chain: Sequence[Scope], rows: Sequence[Numbers]) -> list[Waiter]:
        """Return those who wait for what can never come, by rows that were just seen, wherever they wait.

        It asks each only where the largest request would not fit, and what decides that has changed.
        """
        found: list[Waiter] = []
        for scope, row in zip(chain, rows, strict=True):
            needs = self.needs.get(scope)
            if needs is None:
                continue
            needs.row, needs.looked = row, time.monotonic()
            used = row.tokens_claimed - row.tokens_held, row.nanos_claimed - row.nanos_held
            seen = (row.token_cap, row.nano_cap, *used, row.end, row.closed, scope.window)
            if seen != needs.seen and (row.closed or exhausted(row, needs.tokens, needs.nanos)):
                with self.lock:
                    waiters = list(needs.waiters)
                    needs.tokens = max((one.tokens for one in waiters), default=0)
                    needs.nanos = max((one.nanos for one in waiters), default=0)
                    needs.seen = seen
                found += [one for one in waiters if _answers(one.in_vain, (scope,), (row,))]
        return found

    def unseen(self, now: float, seconds: float) -> Iterable[tuple[Scope, ...]]:
        """Yield chains whose rows show all scopes that were not seen for so many seconds."""
        for needs in list(self.needs.values()):
            if now - needs.looked >= seconds:
                needs.looked = now  # before the store is asked: also if it does not answer
                for waiter in list(needs.waiters)[:1]:
                    yield waiter.chain


def _answers(question: Callable[..., bool], *arguments: Any) -> bool:
    """Return the answer, and False where a user's clock raises: the waiter's next try raises it."""
    try:
        return question(*arguments)
    except Exception:  # noqa: BLE001
        return False
