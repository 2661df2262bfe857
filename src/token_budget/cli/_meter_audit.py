"""The books of the meter demo, and the audit that compares them with those of the provider.

The provider prices with a table of its own and in its own integers. A part of the demo has one pool, one meter and one
provider, so that nothing else is in its books.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from token_budget.cli._audit import Amount, Check, Line
from token_budget.cli._meter_calls import BROKEN, LIMIT, Job, Outcome, outcome_of
from token_budget.cli._provider_shapes import TEXT

if TYPE_CHECKING:
    from token_budget import BudgetPool, BudgetSnapshot
    from token_budget.cli._provider import Provider
    from token_budget.metering import CallRecord, Meter

_BETWEEN_LOOKS = 0.001  # seconds
_SHOWN = 3  # calls that a check which fails names


class Ended(NamedTuple):
    """How a call ended."""

    job: Job
    outcome: Outcome
    error: Exception | None
    sent: int  # requests of this call that had come to the provider by then
    text: str | None  # of its answer

    @property
    def odd(self) -> bool:
        """Whether it should have ended otherwise."""
        if self.outcome is Outcome.ANSWERED and self.text != TEXT:
            return True
        return self.outcome not in {self.job.ends, Outcome.REFUSED}


class Books:
    """What is noted of one part: by the callers, by the meter, and by a thread that looks at the pool all the time."""

    def __init__(self, provider: Provider, meter: Meter, pool: BudgetPool) -> None:
        self.provider = provider
        self.pool = pool
        self.ended: list[Ended] = []
        self.records: list[CallRecord] = []
        self.peak: int = 0  # nanodollars, used and reserved
        self.looks: int = 0
        self.report: dict[str, Any] | None = None  # of the run, if there is one
        meter.subscribe(self.records.append)

    def make(self, call: Callable[[Job], str], job: Job) -> None:
        """Make a call, and note how it ends."""
        try:
            text = call(job)
        except Exception as error:  # noqa: BLE001 - whatever it is: the audit says whether it was to be
            self._note(job, error)
        else:
            self._note(job, None, text)

    async def amake(self, call: Callable[[Job], Awaitable[str]], job: Job) -> None:
        """Do the same in a task."""
        try:
            text = await call(job)
        except Exception as error:  # noqa: BLE001 - as in `make`
            self._note(job, error)
        else:
            self._note(job, None, text)

    def _note(self, job: Job, error: Exception | None, text: str | None = None) -> None:
        self.ended.append(Ended(job, outcome_of(error), error, self._sent(job), text))

    def _sent(self, job: Job) -> int:
        return self.provider.requests.count(job.path)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at the pool all the time, from a thread of its own."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(_BETWEEN_LOOKS):
                self.look()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            self.look()

    def look(self) -> None:
        """Look at the pool once."""
        snapshot = self.pool.snapshot()
        self.peak = max(self.peak, snapshot.usd_used_nanos + snapshot.usd_reserved_nanos)
        self.looks += 1

    # ---------------------------------------------------------------- once all is over

    def lines(self) -> dict[str, Line]:
        """Return the lines of the report, by a short key."""
        final, bills = self.pool.snapshot(), list(self.provider.bills)
        told = {
            "settled": "answered and settled",
            "charged": "broke, charged in full",
            "released": "turned away, released",
            "refused": "refused, never sent",
        }
        lines = {key: self._of(title, key) for key, title in told.items()}
        used = Amount(final.tokens_used, final.usd_used_nanos)
        billed = Amount(sum(self.provider.billed), self.provider.billed_nanos)
        return {
            **lines,
            "counted": Line("counted by the pool", None, used),
            "billed": Line("billed by the provider", len(bills), billed),
        }

    def _of(self, title: str, status: str) -> Line:
        records = [record for record in self.records if record.status == status]
        amount = Amount(sum(record.tokens for record in records), sum(record.usd_nanos for record in records))
        return Line(title, len(records), amount)

    def checks(self, calls: int) -> list[Check]:
        """Return what must hold, and whether it does. The provider is closed: its books change no more.

        Args:
            calls: how many calls were to be made.
        """
        final, lines = self.pool.snapshot(), self.lines()
        counted, billed = final.usd_used_nanos, self.provider.billed_nanos
        checks = [
            Check(
                "what was counted is at least what was billed",
                counted >= billed,
                f"{counted:,} nanodollars counted, {billed:,} billed",
            ),
            self._equal_where_nothing_broke(lines["settled"]),
            self._dear_where_one_broke(lines["charged"]),
            self._free_where_turned_away(lines["released"]),
            _equal(
                "the pool counts what the meter told",
                Amount(final.tokens_used, final.usd_used_nanos),
                Amount(*map(sum, zip(lines["settled"].amount, lines["charged"].amount, strict=True))),
            ),
            self._nothing_left(final),
            self._never_above(final),
            self._as_planned(calls),
            self._nothing_sent_after_a_refusal(lines),
            self._refused_for_want_of_room(final),
        ]
        return checks if self.report is None else [*checks, self._report_agrees(self.report, final)]

    def _equal_where_nothing_broke(self, settled: Line) -> Check:
        whole = [bill for bill in self.provider.bills if not bill.faults & BROKEN]
        billed = Amount(
            sum(bill.input_tokens + bill.output_tokens for bill in whole), sum(bill.nanos for bill in whole)
        )
        return _equal("where no call broke, both are equal", settled.amount, billed)

    def _dear_where_one_broke(self, charged: Line) -> Check:
        broken = [bill for bill in self.provider.bills if bill.faults & BROKEN]
        tokens, nanos = (
            sum(bill.input_tokens + bill.output_tokens for bill in broken),
            sum(bill.nanos for bill in broken),
        )
        limited = all(record.usage.output_tokens == LIMIT for record in self.records if record.status == "charged")
        enough = charged.amount.tokens >= tokens and charged.amount.nanos >= nanos
        return Check(
            "where one broke, it is charged in full",
            (charged.calls or 0) >= len(broken) and enough and limited,
            f"{charged.calls:,} charged {charged.amount.nanos:,} nanodollars, {len(broken):,} billed {nanos:,}",
        )

    def _free_where_turned_away(self, released: Line) -> Check:
        turned_away = len(self.provider.requests) - len(self.provider.bills)
        return Check(
            "where one was turned away, nothing is counted",
            (released.calls or 0) >= turned_away and released.amount == Amount(0, 0),
            f"{released.calls:,} released, {turned_away:,} turned away",
        )

    def _nothing_left(self, final: BudgetSnapshot) -> Check:
        left = (final.in_flight, final.usd_reserved_nanos)
        return Check("nothing is reserved at the end", left == (0, 0), f"{left[0]:,} calls, {left[1]:,} nanodollars")

    def _never_above(self, final: BudgetSnapshot) -> Check:
        cap = final.usd_cap_nanos or 0
        return Check(
            "used and reserved were never above the cap",
            0 <= self.peak <= cap,
            f"at most {self.peak:,} of {cap:,} nanodollars in {self.looks:,} looks",
        )

    def _as_planned(self, calls: int) -> Check:
        odd = [one for one in self.ended if one.odd]
        each_once = sorted(one.job.number for one in self.ended) == list(range(calls))
        of = Counter(one.outcome for one in self.ended)
        detail = f"{calls:,} = " + " + ".join(f"{of[outcome]:,} {outcome.value}" for outcome in Outcome)
        for one in odd[:_SHOWN]:
            job, came = one.job, one.error or one.text
            detail += f"; call {job.number} ({job.fault or 'no fault'}) {one.outcome.value}: {came!r}"
        for error in self.provider.errors[:_SHOWN]:
            detail += f"; the provider failed: {error!r}"
        right = each_once and not odd and not self.provider.errors
        return Check("every call ended once, and as it should", right, detail)

    def _nothing_sent_after_a_refusal(self, lines: dict[str, Line]) -> Check:
        refused = [one for one in self.ended if one.outcome is Outcome.REFUSED]
        later = sum(self._sent(one.job) - one.sent for one in refused)
        requests, admitted = len(self.provider.requests), len(self.records) - (lines["refused"].calls or 0)
        return Check(
            "no request was sent without room, or after a refusal",
            later == 0 and requests <= admitted and len(refused) == lines["refused"].calls,
            f"{requests:,} requests, {admitted:,} had room; {len(refused):,} calls refused, {later:,} requests after",
        )

    def _refused_for_want_of_room(self, final: BudgetSnapshot) -> Check:
        """Find calls that were refused though there was room: what is used grows, so what fits at the end did then."""
        refused, cap = [one.job for one in self.ended if one.outcome is Outcome.REFUSED], final.usd_cap_nanos or 0
        wrongly = sum(self.peak + job.most <= cap for job in refused)
        return Check(
            "a call was refused only where it did not fit",
            wrongly == 0,
            f"{len(refused):,} refused, {wrongly:,} of them with room",
        )

    def _report_agrees(self, report: dict[str, Any], final: BudgetSnapshot) -> Check:
        refused = sum(one.outcome is Outcome.REFUSED for one in self.ended)
        return Check(
            "the run's own report says the same",
            (report["usd_nanos"], report["tokens"], report["refused"])
            == (final.usd_used_nanos, final.tokens_used, refused),
            f"{report['call_count']:,} calls, {report['usd_nanos']:,} nanodollars, {report['refused']:,} refused",
        )


def _equal(name: str, ours: Amount, theirs: Amount) -> Check:
    return Check(
        name,
        ours == theirs,
        f"{ours.tokens:,} and {theirs.tokens:,} tokens, {ours.nanos:,} and {theirs.nanos:,} nanodollars",
    )
