"""`cli._audit`: what the ledger notes, and that each check can fail."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from functools import partial

import pytest

from support import run_together
from token_budget import BudgetExceeded, BudgetOverrun, BudgetSnapshot
from token_budget.cli._audit import Amount, Audit, Caps, CutShort, Ledger, Outcome, audit
from token_budget.cli._workload import Call, Fate

CAPS = Caps(1000, 1.0)
FINAL = BudgetSnapshot(120, 0.0012, 1000, 1.0)


def make_call(number: int = 0) -> Call:
    return Call(number, 150, 0.0015, 120, 0.0012, connect_seconds=0, answer_seconds=0, fate=Fate.ANSWERED)


def book_finished(ledger: Ledger, number: int = 0, tokens: int = 120, usd: float = 0.0012) -> None:
    with ledger.book(make_call(number)) as tally:
        tally.admitted = True
        tally.bill(tokens, usd)


def failed(result: Audit) -> list[str]:
    return [check.name for check in result.checks if not check.ok]


def audit_of(
    final: BudgetSnapshot = FINAL, *, caps: Caps = CAPS, calls: int = 1, sample: BudgetSnapshot = FINAL
) -> Audit:
    """Audit a run of one finished call in which one number may be wrong."""
    ledger = Ledger(caps)
    book_finished(ledger)
    ledger.look(sample)
    return audit(ledger, final, calls=calls, interrupted=False)


# ---------------------------------------------------------------------- the ledger


@pytest.mark.parametrize(
    ("usd", "nanos"),
    [
        (0.1, 10**8),
        (2.5e-9, 3),  # this float lies above the tie, as does the next one
        (0.5e-9, 1),
        (2**-10 + 2**-10 * 1e-9, 976563),  # a little more than 976562.5
        (2**-10, 976562),  # a tie goes to the even neighbour
        (1e9, 10**18),
        (5e-324, 0),
    ],
)
def test_dollars_are_counted_exactly(usd: float, nanos: int) -> None:
    assert Amount.of(7, usd) == (7, nanos)


@pytest.mark.parametrize(
    ("error", "outcome", "overran"),
    [
        (BudgetExceeded("tokens", 2, 1), Outcome.REFUSED, False),
        (BudgetOverrun("tokens", 2, 1), Outcome.FINISHED, True),
        (ConnectionRefusedError(), Outcome.UNSENT, False),
        (TimeoutError(), Outcome.TIMED_OUT, False),
    ],
)
def test_the_error_of_a_call_decides_how_it_is_booked(error: Exception, outcome: Outcome, *, overran: bool) -> None:
    ledger = Ledger(CAPS)
    with ledger.book(make_call(7)):
        raise error
    assert [ledger.count(kind) for kind in Outcome] == [int(kind is outcome) for kind in Outcome]
    (page,) = ledger.pages
    assert page.sums["overruns"].calls == overran
    assert list(page.begun) == list(page.ended) == [7]
    assert ledger.ended() == 1


@pytest.mark.parametrize("error", [asyncio.CancelledError, CutShort])
def test_a_cancelled_call_is_booked_and_the_cancellation_is_passed_on(error: type[BaseException]) -> None:
    ledger = Ledger(CAPS)
    with pytest.raises(error), ledger.book(make_call()):
        raise error
    assert ledger.count(Outcome.CANCELLED) == 1


def test_an_unknown_error_is_passed_on_and_the_audit_reports_a_call_that_never_ended() -> None:
    ledger = Ledger(CAPS)
    with pytest.raises(ZeroDivisionError), ledger.book(make_call()):
        raise ZeroDivisionError
    result = audit(ledger, BudgetSnapshot(0, 0, 1000, 1.0), calls=1, interrupted=False)
    assert failed(result) == ["every call ended exactly once"]


def test_the_excess_is_what_was_billed_above_what_was_reserved() -> None:
    ledger = Ledger(CAPS)
    with ledger.book(make_call()) as tally:
        assert tally.excess == (0, 0)
        tally.bill(120, 0.0012)
        assert tally.excess == (0, 0)
        tally.bill(151, 0.002)
        assert tally.excess == (1, 500_000)


def test_each_thread_writes_to_a_page_of_its_own_and_the_audit_adds_them_up() -> None:
    ledger = Ledger(CAPS)

    def work(number: int) -> None:
        book_finished(ledger, number, tokens=number, usd=0.0)
        ledger.look(BudgetSnapshot(number, 0, 1000, 1.0, in_flight=number))

    run_together(*(partial(work, number) for number in range(4)))
    assert sorted(list(page.begun) for page in ledger.pages) == [[0], [1], [2], [3]]
    result = audit(ledger, BudgetSnapshot(6, 0, 1000, 1.0), calls=4, interrupted=False)
    assert failed(result) == []
    assert result.lines["finished"][1:] == (4, (6, 0))
    assert result.most_in_flight == 3
    assert result.checks[4].detail == "5 snapshots, 0 of them wrong"


# ---------------------------------------------------------------------- the audit


def test_an_honest_run_agrees() -> None:
    result = audit_of()
    assert result.agrees
    assert failed(result) == []
    assert result.lines["finished"] == ("finished", 1, (120, 1_200_000))
    assert result.lines["reserved"][1:] == (1, (150, 1_500_000))
    assert result.lines["spent_by_ledger"].amount == result.lines["spent_by_pool"].amount


def test_without_caps_no_amount_is_too_large() -> None:
    result = audit_of(BudgetSnapshot(120, 0.0012), caps=Caps(None, None), sample=BudgetSnapshot(10**17, 10**8))
    assert result.agrees


@pytest.mark.parametrize(
    ("tell", "check"),
    [
        (lambda: audit_of(BudgetSnapshot(121, 0.0012, 1000, 1.0)), "tokens used are what the ledger says"),
        (lambda: audit_of(BudgetSnapshot(120, 0.001200001, 1000, 1.0)), "nanodollars used are what the ledger says"),
        (
            lambda: audit_of(BudgetSnapshot(120, 0.0012, 1000, 1.0, tokens_reserved=1)),
            "nothing is reserved or in flight at the end",
        ),
        (
            lambda: audit_of(BudgetSnapshot(120, 0.0012, 1000, 1.0, usd_reserved=1e-9)),
            "nothing is reserved or in flight at the end",
        ),
        (
            lambda: audit_of(BudgetSnapshot(120, 0.0012, 1000, 1.0, in_flight=1)),
            "nothing is reserved or in flight at the end",
        ),
        (lambda: audit_of(calls=2), "every call ended exactly once"),
        (lambda: audit_of(calls=0), "every call ended exactly once"),
        (
            lambda: audit_of(sample=BudgetSnapshot(120, 0.0012, 1001, 1.0)),
            "used + reserved + remaining is the cap in every snapshot",
        ),
        (
            lambda: audit_of(sample=BudgetSnapshot(120, 0.0012, None, 1.0)),
            "used + reserved + remaining is the cap in every snapshot",
        ),
        (
            lambda: audit_of(sample=BudgetSnapshot(120, 0.0012, 1000, 1.000000001)),
            "used + reserved + remaining is the cap in every snapshot",
        ),
        (lambda: audit_of(sample=BudgetSnapshot(1001, 0, 1000, 1.0)), "never above the token cap except by overruns"),
        (
            lambda: audit_of(sample=BudgetSnapshot(600, 0, 1000, 1.0, tokens_reserved=401)),
            "never above the token cap except by overruns",
        ),
        (
            lambda: audit_of(sample=BudgetSnapshot(0, 1.000000001, 1000, 1.0)),
            "never above the USD cap except by overruns",
        ),
    ],
)
def test_each_check_can_fail(tell: Callable[[], Audit], check: str) -> None:
    result = tell()
    assert failed(result) == [check]
    assert not result.agrees


def test_a_negative_amount_fails_the_audit() -> None:
    broken = BudgetSnapshot(120, 0.0012, 1000, 1.0)
    broken._state = (-1, 0, *broken._state[2:])
    assert failed(audit_of(sample=broken)) == ["used + reserved + remaining is the cap in every snapshot"]


def test_the_cap_may_be_exceeded_by_what_overruns_cost_and_no_more() -> None:
    def overrun_run(claimed: int) -> Audit:
        ledger = Ledger(Caps(160, 1.0))
        with ledger.book(make_call()) as tally:  # 150 reserved, 170 billed
            tally.admitted = True
            tally.bill(170, 0.0012)
            raise BudgetOverrun("tokens", 170, 160)
        ledger.look(BudgetSnapshot(claimed, 0, 160, 1.0))
        return audit(ledger, BudgetSnapshot(170, 0.0012, 160, 1.0), calls=1, interrupted=False)

    assert overrun_run(180).agrees
    assert overrun_run(180).lines["overruns"][1:] == (1, (20, 0))
    assert failed(overrun_run(181)) == ["never above the token cap except by overruns"]


def test_after_ctrl_c_some_calls_never_begin_but_none_is_lost_or_counted_twice() -> None:
    def stopped_run(*begun: int, ended: tuple[int, ...]) -> Audit:
        ledger = Ledger(CAPS)
        for number in ended:
            with ledger.book(make_call(number)):
                raise TimeoutError
        ledger.page().begun = array("q", begun)
        return audit(ledger, BudgetSnapshot(0, 0, 1000, 1.0), calls=5, interrupted=True)

    assert stopped_run(ended=()).agrees
    assert stopped_run(2, 0, ended=(0, 2)).agrees
    assert stopped_run(2, 0, ended=(0, 2)).lines["not_started"].calls == 3
    assert not stopped_run(0, 2, ended=(0,)).agrees
    assert not stopped_run(0, 0, ended=(0, 0)).agrees
    assert not stopped_run(0, ended=(1,)).agrees
    assert not stopped_run(5, ended=(5,)).agrees
