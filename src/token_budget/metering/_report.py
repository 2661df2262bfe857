"""What a run has spent: CallRecord, told after each call, and Ledger, the sums of one run.

What always holds: the sums are exact integers over all calls; of the calls themselves the latest 1,000 are kept. An
entry may come from any thread, from a finaliser or a signal handler, also one that interrupts the ledger itself: it is
put on a deque, which is one step, and whoever has the ledger books it. A forked child has locks of its own.

One thing does not hold: an interrupt that raises (Ctrl-C) in the few microseconds in which a call is booked may leave
that call out of the report, or out of some of its sums. The pool, which keeps the cap, has it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol
from weakref import WeakSet

from token_budget._money import to_usd, usd_text
from token_budget.metering._usage import Usage

if TYPE_CHECKING:
    from decimal import Decimal

KEPT = 1000
NOT_MADE = frozenset({"refused", "released"})

Status = Literal["settled", "charged", "seen", "released", "refused"]


class Locked(Protocol):
    """What has a lock, which another thread may hold as the process forks. In the child nobody would let go of it."""

    def _renew(self) -> None:
        """Take a new lock."""


locked: WeakSet[Locked] = WeakSet()  # everything that is alive


def renew_locks() -> None:
    """Do so in a forked child."""
    for one in list(locked):
        one._renew()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=renew_locks)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One call, as it ended.

    ``status`` is "settled" (the usage of the answer), "charged" (the worst case, in full, or of the output alone, where
    the answer does not tell that), "seen" (what was seen of a broken stream), "released" (nothing was sent, or the
    provider refused it) or "refused" (before it was sent).
    """

    operation: str
    provider: str | None
    model: str | None
    usage: Usage
    usd_nanos: int
    seconds: float  # from the moment at which the call had its room
    status: Status
    run: str | None = None
    user: str | None = None
    error: str | None = None  # the type of the refusal

    @property
    def usd(self) -> Decimal:
        """What it cost, in dollars, exactly."""
        from decimal import Decimal

        return Decimal(usd_text(self.usd_nanos))  # exact, whatever the decimal context

    @property
    def tokens(self) -> int:
        """Input and output together."""
        return self.usage.input_tokens + self.usage.output_tokens


# The fields' own setters: the class refuses assignment, and this takes a third of the time of its `__init__`.
_SETTERS: tuple[Any, ...] = tuple(CallRecord.__dict__[field.name].__set__ for field in fields(CallRecord))


def recorded(*values: object) -> CallRecord:
    """Return the record of these values, which stand in the order of its fields."""
    record = object.__new__(CallRecord)
    for set_value, value in zip(_SETTERS, values, strict=True):
        set_value(record, value)
    return record


class Sums:
    """Calls, tokens and nanodollars."""

    __slots__ = ("calls", "input_tokens", "nanos", "output_tokens")

    def __init__(self) -> None:
        self.calls = self.input_tokens = self.output_tokens = self.nanos = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the sums, ready for JSON."""
        return {
            "call_count": self.calls,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "tokens": self.input_tokens + self.output_tokens,
            "usd": to_usd(self.nanos),
            "usd_nanos": self.nanos,
        }


class Ledger:
    """The calls of one run."""

    __slots__ = ("__weakref__", "_calls", "_dearest", "_entries", "_lock", "_models", "_refused", "_total")

    def __init__(self) -> None:
        self._entries: deque[CallRecord] = deque()  # what is not booked yet
        self._renew()
        locked.add(self)
        self._total = Sums()
        self._models: dict[str, Sums] = {}
        self._calls: deque[tuple[CallRecord, int]] = deque(maxlen=KEPT)  # each with the nanodollars spent until then
        self._dearest: tuple[CallRecord, int] | None = None
        self._refused = 0

    def _renew(self) -> None:
        self._lock: Any = threading.RLock()  # it is taken once, and knows whose it is

    def add(self, record: CallRecord) -> None:
        """Count a call. It waits for nobody."""
        self._entries.append(record)
        while self._entries and self._booked_if_free():
            pass

    def report(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        lock = self._lock
        mine = lock._is_owned()  # inside of `_book`: a finaliser or a signal handler
        try:
            if not mine:
                lock.acquire()
                self._book()
            return {
                **self._total.to_dict(),
                "refused": self._refused,
                "by_model": {model: sums.to_dict() for model, sums in list(self._models.items())},
                "most_expensive": None if self._dearest is None else _shown(*self._dearest),
                "calls": [_shown(*call) for call in list(self._calls)],
            }
        finally:
            try:  # twice, as in `_booked_if_free`
                if not mine and lock._is_owned():
                    lock.release()
            finally:
                if not mine and lock._is_owned():
                    lock.release()

    def _booked_if_free(self) -> bool:
        """Book what there is, unless somebody is at it: another thread, or this one further out. Whoever is books it.

        An interrupt may come as any call returns. So whether the lock is held is asked of the lock, and twice.
        """
        lock = self._lock
        if lock._is_owned():
            return False
        try:
            free = bool(lock.acquire(blocking=False))
            if free:
                self._book()
            return free
        finally:
            try:
                if lock._is_owned():
                    lock.release()
            finally:
                if lock._is_owned():
                    lock.release()

    def _book(self) -> None:
        while self._entries:
            self._take(self._entries.popleft())

    def _take(self, record: CallRecord) -> None:
        if record.status in NOT_MADE:
            self._refused += record.status == "refused"
            return
        usage, model = record.usage, record.model or "unknown"
        sums = self._models.get(model)
        if sums is None:
            model = model if len(self._models) < KEPT else "others"
            sums = self._models.setdefault(model, Sums())
        for one in (self._total, sums):
            one.calls += 1
            one.input_tokens += usage.input_tokens
            one.output_tokens += usage.output_tokens
            one.nanos += record.usd_nanos
        call = (record, self._total.nanos)
        self._calls.append(call)
        if self._dearest is None or record.usd_nanos > self._dearest[0].usd_nanos:
            self._dearest = call


def _shown(record: CallRecord, running: int) -> dict[str, Any]:
    """Return one call of a report."""
    return {
        "model": record.model,
        "input_tokens": record.usage.input_tokens,
        "output_tokens": record.usage.output_tokens,
        "usd": to_usd(record.usd_nanos),
        "usd_nanos": record.usd_nanos,
        "running_usd": to_usd(running),
        "status": record.status,
    }


def dollars(nanos: int) -> str:
    """Return dollars for a line of text: four decimals of small amounts, two of round ones."""
    if nanos % 10**7 == 0:
        return f"${nanos / 10**9:,.2f}"
    return f"${nanos / 10**9:,.4f}" if nanos >= 10**6 else f"${usd_text(nanos)}"
