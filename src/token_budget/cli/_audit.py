"""The ledger that the demo's workers keep beside the pool, and the audit that compares the two.

The ledger shares no code with the pool: it counts in its own integers and converts dollars by its own rule. It needs no
lock: each thread writes to a page of its own, and the pages are added up after the run. A page keeps sums, so that the
memory of a run does not grow with its calls, except for 16 bytes a call that show that each call ended exactly once.
"""

from __future__ import annotations

import asyncio
import enum
import threading
from array import array
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from token_budget import BudgetExceeded, BudgetOverrun

if TYPE_CHECKING:
    from collections.abc import Iterator

    from token_budget import BudgetSnapshot
    from token_budget.cli._workload import Call


class CutShort(Exception):
    """Ctrl-C came while a thread made this call. A task gets a CancelledError instead."""


class Outcome(enum.Enum):
    """How a call ended: exactly one of these. The value is the key of its line in the report."""

    FINISHED = "finished"
    REFUSED = "refused"
    UNSENT = "failed_unbilled"
    TIMED_OUT = "failed_billed"
    CANCELLED = "cancelled"


# The lines of the report that sum up calls, by key, in the order in which they are shown.
_TITLES: Final = {
    "reserved": "reserved",
    "refused": "refused (asked for)",
    "finished": "finished",
    "longer_than_reserved": "  cost above reservation",
    "overruns": "  of these, overruns",
    "failed_unbilled": "failed unbilled",
    "failed_billed": "failed billed",
    "cancelled": "cancelled",
    "not_started": "not started",
    "spent_by_ledger": "spent, says the ledger",
}


class Amount(NamedTuple):
    """Tokens, and dollars as exact nanodollars."""

    tokens: int
    nanos: int

    @classmethod
    def of(cls, tokens: int, usd: float) -> Amount:
        """Convert dollars: the exact value of the float, rounded once, half to even."""
        return cls(tokens, round(Fraction(usd) * 10**9))

    def above(self, other: Amount) -> Amount:
        """Return by how much this is more than the other, on each axis."""
        return Amount(max(0, self.tokens - other.tokens), max(0, self.nanos - other.nanos))


NOTHING = Amount(0, 0)


@dataclass(slots=True)
class Sum:
    """A number of calls, and the sum of their amounts."""

    calls: int = 0
    tokens: int = 0
    nanos: int = 0

    def add(self, amount: Amount, calls: int = 1) -> None:
        """Add the amount of one call, or of several."""
        self.calls += calls
        self.tokens += amount.tokens
        self.nanos += amount.nanos


@dataclass(slots=True)
class Tally:
    """What the worker of one call notes about it."""

    asked: Amount  # what it wants reserved
    admitted: bool = False
    billed: Amount | None = None  # None: it was never sent
    overran: bool = False

    def bill(self, tokens: int, usd: float) -> None:
        """Note what the call costs. The worker does so before it tells the pool: the cost is a fact either way."""
        self.billed = Amount.of(tokens, usd)

    @property
    def excess(self) -> Amount:
        """What the call cost above what was reserved for it."""
        return NOTHING if self.billed is None else self.billed.above(self.asked)


@dataclass
class Seen:
    """What the snapshots of the pool showed."""

    snapshots: int = 0
    broken: int = 0  # snapshots in which used + reserved + remaining is not the cap
    most_tokens: int = 0  # used and reserved
    most_nanos: int = 0
    most_in_flight: int = 0

    def look(self, snapshot: BudgetSnapshot, caps: Caps) -> None:
        """Examine one snapshot."""
        tokens, nanos = snapshot.tokens_used, snapshot.usd_used_nanos
        tokens_reserved, nanos_reserved = snapshot.tokens_reserved, snapshot.usd_reserved_nanos
        self.snapshots += 1
        self.broken += not (
            _adds_up(tokens, tokens_reserved, snapshot.tokens_remaining, caps.tokens)
            and _adds_up(nanos, nanos_reserved, snapshot.usd_remaining_nanos, caps.nanos)
        )
        self.most_tokens = max(self.most_tokens, tokens + tokens_reserved)
        self.most_nanos = max(self.most_nanos, nanos + nanos_reserved)
        self.most_in_flight = max(self.most_in_flight, snapshot.in_flight)

    def add(self, other: Seen) -> None:
        """Add what another thread saw."""
        self.snapshots += other.snapshots
        self.broken += other.broken
        self.most_tokens = max(self.most_tokens, other.most_tokens)
        self.most_nanos = max(self.most_nanos, other.most_nanos)
        self.most_in_flight = max(self.most_in_flight, other.most_in_flight)


@dataclass
class Page:
    """The notes of one thread."""

    begun: array[int] = field(default_factory=lambda: array("q"))  # numbers of calls
    ended: array[int] = field(default_factory=lambda: array("q"))
    sums: dict[str, Sum] = field(default_factory=lambda: {key: Sum() for key in _TITLES})
    seen: Seen = field(default_factory=Seen)

    def end(self, number: int, tally: Tally, outcome: Outcome) -> None:
        """Note how a call ended and what it cost."""
        amount = tally.asked if outcome is Outcome.REFUSED else tally.billed or NOTHING
        self.sums[outcome.value].add(amount)
        if tally.admitted:
            self.sums["reserved"].add(tally.asked)
        if tally.billed is not None:
            self.sums["spent_by_ledger"].add(tally.billed)
        if tally.excess != NOTHING:
            self.sums["longer_than_reserved"].add(tally.excess)
        if tally.overran:
            self.sums["overruns"].add(tally.excess)
        self.ended.append(number)


class Ledger:
    """The notes of all workers. Each method may be called from any thread at any time."""

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self.pages: list[Page] = []
        self._of_thread = threading.local()

    def page(self) -> Page:
        """Return the page of this thread."""
        page: Page | None = getattr(self._of_thread, "page", None)
        if page is None:
            page = self._of_thread.page = Page()
            self.pages.append(page)
        return page

    @contextmanager
    def book(self, call: Call) -> Iterator[Tally]:
        """Keep the tally of one call. This is where each error of a call gets its meaning.

        Any other error is a bug: it is passed on, and the audit reports a call that never ended.
        """
        page = self.page()
        page.begun.append(call.number)
        tally = Tally(Amount.of(call.reserved_tokens, call.reserved_usd))
        try:
            yield tally
            page.end(call.number, tally, Outcome.FINISHED)
        except BudgetOverrun:  # the answer is there and is paid for; the budget is spent
            tally.overran = True
            page.end(call.number, tally, Outcome.FINISHED)
        except BudgetExceeded:
            page.end(call.number, tally, Outcome.REFUSED)
        except ConnectionRefusedError:
            page.end(call.number, tally, Outcome.UNSENT)
        except TimeoutError:
            page.end(call.number, tally, Outcome.TIMED_OUT)
        except (asyncio.CancelledError, CutShort):
            page.end(call.number, tally, Outcome.CANCELLED)
            raise

    def look(self, snapshot: BudgetSnapshot) -> None:
        """Examine a snapshot of the pool."""
        self.page().seen.look(snapshot, self.caps)

    def ended(self) -> int:
        """Return how many calls have ended up to now."""
        return sum(len(page.ended) for page in self.pages)

    def count(self, outcome: Outcome) -> int:
        """Return how many calls have ended in this way up to now."""
        return sum(page.sums[outcome.value].calls for page in self.pages)


class Caps:
    """The caps of the pool, None where there is none: tokens, dollars as they were passed, and exact nanodollars."""

    def __init__(self, tokens: int | None, usd: float | None) -> None:
        self.tokens = tokens
        self.usd = usd
        self.nanos = None if usd is None else Amount.of(0, usd).nanos


class Line(NamedTuple):
    """A line of the report: how many calls (None where that is unknown), and the sum of their amounts."""

    title: str
    calls: int | None
    amount: Amount


class Check(NamedTuple):
    """One promise, whether it was kept, and the numbers that show it."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Audit:
    """The result: the lines of the report by a short key, and the checks."""

    lines: dict[str, Line]
    checks: list[Check]
    most_in_flight: int

    @property
    def agrees(self) -> bool:
        """Whether every promise was kept."""
        return all(check.ok for check in self.checks)


def audit(ledger: Ledger, final: BudgetSnapshot, *, calls: int, interrupted: bool) -> Audit:
    """Compare the pool with the ledger.

    Args:
        ledger: what the workers noted; they have all ended.
        final: the pool after the last of them.
        calls: how many calls were planned.
        interrupted: whether Ctrl-C came, so that some calls may never have begun.
    """
    sums = {key: Sum() for key in _TITLES}
    seen = Seen()
    seen.look(final, ledger.caps)
    for page in ledger.pages:
        seen.add(page.seen)
        for key, of_page in page.sums.items():
            sums[key].add(Amount(of_page.tokens, of_page.nanos), of_page.calls)
    sums["not_started"].calls = calls - sum(len(page.begun) for page in ledger.pages)
    spent, overran = sums["spent_by_ledger"], sums["overruns"]
    checks = [
        _equal("tokens used are what the ledger says", final.tokens_used, spent.tokens),
        _equal("nanodollars used are what the ledger says", final.usd_used_nanos, spent.nanos),
        _nothing_left(final),
        _all_accounted_for(ledger, calls, interrupted=interrupted),
        Check(
            "used + reserved + remaining is the cap in every snapshot",
            not seen.broken,
            f"{seen.snapshots:,} snapshots, {seen.broken:,} of them wrong",
        ),
        _never_above("token cap", seen.most_tokens, ledger.caps.tokens, overran.tokens),
        _never_above("USD cap", seen.most_nanos, ledger.caps.nanos, overran.nanos),
    ]
    lines = {key: Line(_TITLES[key], sum_.calls, Amount(sum_.tokens, sum_.nanos)) for key, sum_ in sums.items()}
    by_pool = Line("spent, says the pool", None, Amount(final.tokens_used, final.usd_used_nanos))
    return Audit({**lines, "spent_by_pool": by_pool}, checks, seen.most_in_flight)


def _equal(name: str, pool: int, ledger: int) -> Check:
    return Check(name, pool == ledger, f"{pool:,} in the pool, {ledger:,} in the ledger")


def _nothing_left(final: BudgetSnapshot) -> Check:
    left = (final.tokens_reserved, final.usd_reserved_nanos, final.in_flight)
    return Check(
        "nothing is reserved or in flight at the end",
        left == (0, 0, 0),
        f"{left[0]:,} tokens, {left[1]:,} nanodollars, {left[2]:,} in flight",
    )


def _all_accounted_for(ledger: Ledger, calls: int, *, interrupted: bool) -> Check:
    begun = sorted(chain.from_iterable(page.begun for page in ledger.pages))
    ended = sorted(chain.from_iterable(page.ended for page in ledger.pages))
    planned = not begun or (begun[0] >= 0 and begun[-1] < calls)
    each_once = begun == ended and all(one < next_ for one, next_ in pairwise(begun))
    complete = interrupted or len(begun) == calls
    counts = " + ".join(f"{ledger.count(outcome):,} {outcome.value.replace('_', ' ')}" for outcome in Outcome)
    detail = f"{calls:,} = {counts} + {calls - len(begun):,} not started"
    return Check("every call ended exactly once", planned and each_once and complete, detail)


def _adds_up(used: int, reserved: int, remaining: int | None, cap: int | None) -> bool:
    if used < 0 or reserved < 0:
        return False
    if cap is None or remaining is None:
        return cap is remaining
    return used + reserved + remaining == cap


def _never_above(what: str, most: int, cap: int | None, overran: int) -> Check:
    """Check one axis: what is used and reserved exceeds the cap by no more than the known overruns cost."""
    name = f"never above the {what} except by overruns"
    if cap is None:
        return Check(name, ok=True, detail="no cap")
    excess = max(0, most - cap)
    return Check(name, excess <= overran, f"at most {excess:,} above, overruns cost {overran:,}")
