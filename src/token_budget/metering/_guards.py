"""Guards: signs of a loop in the calls of one run. They refuse the next call, before it is sent.

What always holds: a guard that is off costs nothing; no request is kept, only a digest of it, and only while
``repeats`` is on. The lock may be taken again by its own thread, so a finaliser that makes a call hangs on nothing;
and a forked child has its own. A call that was counted and never sent is given back (`withdraw`).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from itertools import pairwise
from typing import Any

from token_budget._money import shown_type
from token_budget.metering._ask import Ask
from token_budget.metering._refusals import LoopDetected
from token_budget.metering._report import locked

MINUTE = 60.0
_REMEMBERED = 1000  # different requests

Counted = tuple["float | None", "bytes | None"]  # of one call: when it began, the digest of its request


class Guards:
    """The guards of one run.

    Args:
        calls_per_minute: how many calls may begin in any 60 seconds.
        growth: (share, k): k calls in a row whose input grows from each to the next, and by the share in all.
        repeats: how often the same request may be sent; the SDK's own retries do not count.

    Raises:
        TypeError, ValueError: one of them is no such number.
    """

    __slots__ = (
        "__weakref__",
        "_inputs",
        "_lock",
        "_seen",
        "_times",
        "active",
        "calls_per_minute",
        "growth",
        "repeats",
    )

    def __init__(self, *, calls_per_minute: Any = None, growth: Any = None, repeats: Any = None) -> None:
        self.calls_per_minute: int | None = _count(calls_per_minute, "calls_per_minute", 1)
        self.growth: tuple[float, int] | None = None if growth is None else _growth(growth)
        self.repeats: int | None = _count(repeats, "repeats", 1)
        self.active: bool = not (calls_per_minute is None and growth is None and repeats is None)
        self._renew()
        if self.active:
            locked.add(self)
        self._times: deque[float] = deque(maxlen=self.calls_per_minute)
        self._inputs: deque[int] = deque(maxlen=2 if self.growth is None else self.growth[1])
        self._seen: dict[bytes, int] = {}

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def admit(self, ask: Ask) -> Counted:
        """Count a call that is about to be sent. Return what `withdraw` needs.

        Raises:
            LoopDetected: there are signs of a loop. The call is not counted.
        """
        began = None
        with self._lock:
            key = self._examine(ask)
            if self.calls_per_minute is not None:
                began = time.monotonic()
                self._times.append(began)
            if self.growth is not None and not ask.retried:
                self._inputs.append(ask.input_tokens)
            if key is not None:
                count = self._seen.pop(key, 0)  # the latest stand last
                self._seen[key] = count + 1
                if len(self._seen) > _REMEMBERED:
                    del self._seen[next(iter(self._seen))]
        return began, key

    def withdraw(self, ask: Ask, counted: Counted) -> None:
        """Take back what `admit` counted: the call was not sent."""
        began, key = counted
        with self._lock:
            if began is not None and began in self._times:
                self._times.remove(began)
            if self.growth is not None and not ask.retried and ask.input_tokens in self._inputs:
                self._inputs.reverse()  # the latest such call, whichever it was
                self._inputs.remove(ask.input_tokens)
                self._inputs.reverse()
            if key is not None and key in self._seen:
                self._seen[key] -= 1

    def look(self, ask: Ask) -> None:
        """Do what `admit` does, and count nothing."""
        with self._lock:
            self._examine(ask)

    def _examine(self, ask: Ask) -> bytes | None:
        """Raise where there are signs of a loop; return the digest of the request, if that is looked at."""
        allowed = self.calls_per_minute
        if allowed is not None and len(self._times) == allowed and time.monotonic() - self._times[0] < MINUTE:
            raise LoopDetected(f"loop: more than {allowed} calls in a minute (calls_per_minute={allowed})")
        if self.growth is not None and not ask.retried:
            self._examine_growth(ask.input_tokens, *self.growth)
        if self.repeats is None or ask.retried or not ask.body:
            return None
        key = _digest(ask)
        if self._seen.get(key, 0) >= self.repeats:
            raise LoopDetected(f"loop: the same request, {self.repeats + 1} times (repeats={self.repeats})")
        return key

    def _examine_growth(self, tokens: int, share: float, calls: int) -> None:
        inputs = [*self._inputs, tokens][-calls:]
        rises = all(later > earlier for earlier, later in pairwise(inputs))
        if len(inputs) == calls and rises and inputs[-1] >= inputs[0] * (1 + share):
            raise LoopDetected(
                f"loop: the input grew from {inputs[0]:,} to {tokens:,} tokens over {calls} calls in a row "
                f"(growth=({share:g}, {calls}))"
            )


def _digest(ask: Ask) -> bytes:
    from hashlib import blake2b

    digest = blake2b(ask.body, digest_size=16)
    digest.update(f"\0{ask.operation}\0{ask.provider}\0{ask.model}".encode())
    return digest.digest()


def _count(number: Any, name: str, fewest: int) -> int | None:
    if number is None:
        return None
    if type(number) is not int:
        raise TypeError(f"{name} must be an integer, not {shown_type(number)}")
    if number < fewest:
        raise ValueError(f"{name} must be at least {fewest}, got {number}")
    return number


def _growth(growth: Any) -> tuple[float, int]:
    if not isinstance(growth, (tuple, list)) or len(growth) != 2:
        raise TypeError("growth must be a pair (share, calls) such as (0.5, 4): 50 % over four calls in a row")
    share, calls = growth
    if type(share) not in {int, float}:
        raise TypeError(f"the share of growth must be a number, not {shown_type(share)}")
    if not 0 < share < float("inf"):
        raise ValueError(f"the share of growth must be above 0, got {share!r}")
    counted = _count(calls, "the number of calls of growth", 2)
    if counted is None:
        raise TypeError("the number of calls of growth must be an integer, not NoneType")
    return float(share), counted
