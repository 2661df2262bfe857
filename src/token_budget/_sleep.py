"""Sleeping for room: a thread's way and a task's. Both decide in `_ledger.reserve`, and only sleep differently."""

from __future__ import annotations

import threading
import time

from token_budget import _ledger, _straight
from token_budget._bells import ThreadBell, task_bell, warn_in_an_event_loop
from token_budget._errors import BudgetExceeded
from token_budget._once import Once
from token_budget._reservation import Reservation
from token_budget._waiting import GRANTED, NEW, WAITING, Waiter

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from typing import Any

_LONGEST = 86_400.0  # seconds of one sleep; who wakes looks again, so windows of centuries overflow nothing
_SHORTEST = 0.001


def reserve(reservation: Reservation, timeout: float | None) -> Reservation:
    """Take what the reservation is for, and let the thread wait if need be."""
    family = reservation._pool._family
    inside = family.owner == threading.get_ident()
    if timeout == 0 or inside:
        return _without_waiting(reservation, inside=inside and timeout != 0)
    bell = ThreadBell()
    waiter = Waiter(reservation, bell, timeout, _ledger.give_back)
    try:
        _ledger.reserve(reservation, waiter)
        if waiter.state is not NEW:
            warn_in_an_event_loop(4)
            rung, sleeps = False, Sleeps(waiter, timeout)
            while waiter.state is WAITING:
                rung = bell.wait(sleeps.next(rung=rung))
                if sleeps.over and not rung:
                    _ledger.leave(waiter)
                elif waiter.state is WAITING:  # a period has ended, or a scope has got another window
                    _ledger.look(waiter.scope)
        return outcome(waiter)
    except BaseException:
        abandon(waiter)
        raise


def _without_waiting(reservation: Reservation, *, inside: bool) -> Reservation:
    """Take what the reservation is for, or raise."""
    try:
        _ledger.reserve(reservation, None)
    except BudgetExceeded as error:
        if inside and not error.exhausted:
            raise RuntimeError(
                "a signal handler or finaliser that interrupts an operation of this pool cannot wait for room in it: "
                "the room may have to come from that operation. Reserve with timeout=0 there, or later"
            ) from error
        raise
    return reservation


class Sleeps:
    """How long to sleep at a time: until the time-out, or until a period of the scopes ends, and a day at most."""

    __slots__ = ("_left", "_told", "_waiter", "over")

    def __init__(self, waiter: Waiter, timeout: float | None) -> None:
        self._waiter = waiter
        self._left = timeout  # less all that was slept, for clocks that stand still in a test
        self._told = 0.0
        self.over = False  # whether the sleep that was told last is the last one

    def next(self, *, rung: bool = False) -> float | None:
        """Return the seconds of the next sleep, None for one without end. `rung`: the last was cut short."""
        ends = [(one.period_end, one.window) for one in self._waiter.scope._chain if one.window is not None]
        look = min((min(max(_SHORTEST, end - window.now()), _LONGEST) for end, window in ends), default=None)
        if self._left is None or self._waiter.deadline is None:
            return look
        if not rung:
            self._left -= self._told
        left = max(0.0, min(self._left, self._waiter.deadline - time.monotonic(), threading.TIMEOUT_MAX))
        self.over = look is None or left <= look
        self._told = left if look is None else min(left, look)
        return self._told


def abandon(waiter: Waiter) -> None:
    """Leave the line, or give back; twice, for whoever is interrupted a second time in the first."""
    if waiter.state is WAITING or waiter.state is GRANTED:
        try:
            _ledger.abandon(waiter)
        except BaseException:
            _ledger.abandon(waiter)
            raise


def outcome(waiter: Waiter) -> Reservation:
    """Return the reservation of a waiter that got it, at once or later, or raise what it got instead."""
    if waiter.state is NEW or waiter.state is GRANTED:
        reservation: Reservation = waiter.reservation
        waiter.reservation = None  # the waiter may stay in a line for a while, and must not keep what is dropped
        return reservation
    refusal: Any = waiter.refusal
    raise refusal()


async def _take(reservation: Reservation, timeout: float | None) -> Reservation:
    """Take what the reservation is for, and let the task wait if need be."""
    if _straight.reserve(reservation._pool, reservation, reservation._tokens, reservation._nanos):
        return reservation
    if timeout == 0:
        _ledger.reserve(reservation, None)
        return reservation
    bell = task_bell()
    waiter = Waiter(reservation, bell, timeout, _ledger.give_back)
    try:
        _ledger.reserve(reservation, waiter)
        if waiter.state is not NEW:
            rung, sleeps = False, Sleeps(waiter, timeout)
            while waiter.state is WAITING:
                rung = await bell.wait(sleeps.next(rung=rung))
                if sleeps.over and not rung:
                    _ledger.leave(waiter)
                elif waiter.state is WAITING:  # a period has ended, or a scope has got another window
                    _ledger.look(waiter.scope)
        return outcome(waiter)
    except BaseException:  # cancelled, interrupted, or the loop is gone
        abandon(waiter)
        raise


class AsyncReserve(Once[Reservation]):
    """What ``BudgetPool.areserve`` returns: a coroutine. Await it for a `Reservation`, or enter it with ``async with``.

    It is used once. Like any coroutine it can be made a task, and one that nobody awaits is told by a RuntimeWarning.
    """

    __slots__ = ()
    _take = staticmethod(_take)
