"""The ledger that the demo's workers keep beside the pool, and the audit that holds the two against each other.

The ledger shares nothing with the pool: it counts in its own integers and converts dollars by its own rule. Workers
take no lock for it: each call has a tally that only its worker writes, and handing it in is one append.
"""

from __future__ import annotations

import asyncio
import enum
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from token_budget import BudgetExceeded, BudgetOverrun

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from token_budget import BudgetSnapshot
    from token_budget.cli._workload import Call


class CutShort(Exception):
    """Ctrl-C came while a thread made this call. A task gets a CancelledError instead."""


class Outcome(enum.Enum):
    """How a call ended: exactly one of these."""

    FINISHED = "finished"
    REFUSED = "refused"
    UNSENT = "failed unbilled"
    TIMED_OUT = "failed billed"
    CANCELLED = "cancelled"


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
class Tally:
    """What the worker of one call notes about it."""

    asked: Amount  # what it wants reserved
    admitted: bool = False
    billed: Amount | None = None  # None: it was never sent
    overran: bool = False

    def bill(self, tokens: int, usd: float) -> None:
        """Note what the call costs. The worker does so before it tells the pool: it is a fact whatever that says."""
        self.billed = Amount.of(tokens, usd)

    @property
    def excess(self) -> Amount:
        """What the call cost above what was reserved for it."""
        return NOTHING if self.billed is None else self.billed.above(self.asked)


class Ledger:
    """The notes of all workers. Each method may be called from any of them at any time."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.tallies: dict[Outcome, list[Tally]] = {outcome: [] for outcome in Outcome}
        self.samples: list[BudgetSnapshot] = []

    @contextmanager
    def book(self, call: Call) -> Iterator[Tally]:
        """Keep the tally of one call. Here stands what each error of a call means.

        An error that is none of these is a bug: it passes, and leaves a call that the audit finds unaccounted for.
        """
        self.begun.append(call.number)
        tally = Tally(Amount.of(call.reserved_tokens, call.reserved_usd))
        try:
            yield tally
            self._end(call, tally, Outcome.FINISHED)
        except BudgetOverrun:  # the answer is there and paid for; the budget is over
            tally.overran = True
            self._end(call, tally, Outcome.FINISHED)
        except BudgetExceeded:
            self._end(call, tally, Outcome.REFUSED)
        except ConnectionRefusedError:
            self._end(call, tally, Outcome.UNSENT)
        except TimeoutError:
            self._end(call, tally, Outcome.TIMED_OUT)
        except (asyncio.CancelledError, CutShort):
            self._end(call, tally, Outcome.CANCELLED)
            raise

    def _end(self, call: Call, tally: Tally, outcome: Outcome) -> None:
        self.tallies[outcome].append(tally)
        self.ended.append(call.number)

    def count(self, outcome: Outcome) -> int:
        """Return how many calls ended so, up to now."""
        return len(self.tallies[outcome])


class Caps(NamedTuple):
    """The caps of the pool, None where there is none: whole tokens, and dollars as they were passed."""

    tokens: int | None
    usd: float | None

    @property
    def nanos(self) -> int | None:
        """The cap on dollars in exact nanodollars."""
        return None if self.usd is None else Amount.of(0, self.usd).nanos


class Line(NamedTuple):
    """A line of the report: so many calls, None where nobody knows, and what they come to."""

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


def audit(ledger: Ledger, final: BudgetSnapshot, caps: Caps, *, calls: int, interrupted: bool) -> Audit:
    """Hold the ledger against the pool.

    Args:
        ledger: what the workers noted; they have all ended.
        final: the pool after the last of them.
        caps: what the pool was made with.
        calls: how many calls there were to make.
        interrupted: whether Ctrl-C came, so that some calls may never have begun.
    """
    tallies = list(chain.from_iterable(ledger.tallies.values()))
    spent = _sum(_billed(tallies))
    overran = _sum(tally.excess for tally in tallies if tally.overran)
    samples = [*ledger.samples, final]
    checks = [
        _equal("tokens used are what the ledger says", final.tokens_used, spent.tokens),
        _equal("nanodollars used are what the ledger says", final.usd_used_nanos, spent.nanos),
        _nothing_left(final),
        _all_accounted_for(ledger, calls, interrupted=interrupted),
        _sums_hold(samples, caps),
        _never_above("token cap", [s.tokens_used + s.tokens_reserved for s in samples], caps.tokens, overran.tokens),
        _never_above("USD cap", [s.usd_used_nanos + s.usd_reserved_nanos for s in samples], caps.nanos, overran.nanos),
    ]
    lines = _lines(ledger, tallies, final, not_started=calls - len(ledger.begun))
    return Audit(lines, checks, max(sample.in_flight for sample in samples))


def _lines(ledger: Ledger, tallies: list[Tally], final: BudgetSnapshot, not_started: int) -> dict[str, Line]:
    reserved = [tally.asked for tally in tallies if tally.admitted]
    longer = [excess for tally in tallies if (excess := tally.excess) != NOTHING]
    overran = [tally.excess for tally in tallies if tally.overran]
    billed = _billed(tallies)
    refused = [tally.asked for tally in ledger.tallies[Outcome.REFUSED]]

    def ended(outcome: Outcome) -> Line:
        return Line(outcome.value, ledger.count(outcome), _sum(_billed(ledger.tallies[outcome])))

    return {
        "reserved": Line("reserved", len(reserved), _sum(reserved)),
        "refused": Line("refused (asked for)", len(refused), _sum(refused)),
        "finished": ended(Outcome.FINISHED),
        "longer_than_reserved": Line("  longer than reserved, by", len(longer), _sum(longer)),
        "overruns": Line("  and so above a cap, by", len(overran), _sum(overran)),
        "failed_unbilled": ended(Outcome.UNSENT),
        "failed_billed": ended(Outcome.TIMED_OUT),
        "cancelled": ended(Outcome.CANCELLED),
        "not_started": Line("not started", not_started, NOTHING),
        "spent_by_ledger": Line("spent, says the ledger", len(billed), _sum(billed)),
        "spent_by_pool": Line("spent, says the pool", None, Amount(final.tokens_used, final.usd_used_nanos)),
    }


def _billed(tallies: Iterable[Tally]) -> list[Amount]:
    return [tally.billed for tally in tallies if tally.billed is not None]


def _sum(amounts: Iterable[Amount]) -> Amount:
    tokens = nanos = 0
    for amount in amounts:
        tokens += amount.tokens
        nanos += amount.nanos
    return Amount(tokens, nanos)


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
    begun = sorted(ledger.begun)
    each_once = begun == sorted(ledger.ended) == sorted(set(begun) & set(range(calls)))
    none_left_out = interrupted or len(begun) == calls
    counts = " + ".join(f"{ledger.count(outcome):,} {outcome.value}" for outcome in Outcome)
    detail = f"{calls:,} = {counts} + {calls - len(begun):,} not started"
    return Check("every call ended exactly once", each_once and none_left_out, detail)


def _sums_hold(samples: list[BudgetSnapshot], caps: Caps) -> Check:
    broken = sum(
        not (
            _adds_up(sample.tokens_used, sample.tokens_reserved, sample.tokens_remaining, caps.tokens)
            and _adds_up(sample.usd_used_nanos, sample.usd_reserved_nanos, sample.usd_remaining_nanos, caps.nanos)
        )
        for sample in samples
    )
    detail = f"{len(samples):,} snapshots, {broken:,} of them wrong"
    return Check("used + reserved + remaining is the cap in every snapshot", not broken, detail)


def _adds_up(used: int, reserved: int, remaining: int | None, cap: int | None) -> bool:
    if used < 0 or reserved < 0:
        return False
    if cap is None or remaining is None:
        return cap is remaining
    return used + reserved + remaining == cap


def _never_above(what: str, claimed: list[int], cap: int | None, overran: int) -> Check:
    """Check one axis: what is used and reserved may pass the cap only by what overruns are known to have cost."""
    name = f"never above the {what} but by overruns"
    if cap is None:
        return Check(name, ok=True, detail="no cap")
    excess = max(0, max(claimed) - cap)
    return Check(name, excess <= overran, f"at most {excess:,} above, {overran:,} of overruns")
