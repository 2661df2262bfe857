"""A run's report is exact over all calls, keeps the latest thousand, and survives whoever interrupts it."""

from __future__ import annotations

import gc
import json
import threading
from decimal import Decimal, localcontext
from typing import Any

import pytest

from meters import answer, ask, meter_of
from support import run_together
from token_budget import BudgetExceeded, BudgetPool
from token_budget.metering import CallRecord, Usage, budget_run
from token_budget.metering import _report as module
from token_budget.metering._report import Ledger, dollars


def record(nanos: int = 1000, model: str | None = "small", status: Any = "settled") -> CallRecord:
    return CallRecord(
        operation="chat",
        provider=None,
        model=model,
        usage=Usage(input_tokens=20, output_tokens=5),
        usd_nanos=nanos,
        seconds=0.5,
        status=status,
    )


def test_a_report_says_what_a_run_has_spent() -> None:
    meter = meter_of(BudgetPool(), timeout=0)
    with budget_run("job", usd_cap=0.05, token_cap=20_000, meter=meter, user="ann") as run:
        for model, output in (("small", 100), ("large", 200), ("small", 300)):
            with meter.call(model, input_tokens=1000, max_output_tokens=500) as call:
                call.settle(answer(output_tokens=output))
        with meter.call("small", input_tokens=1000, max_output_tokens=500) as call:
            call.release()
        with pytest.raises(BudgetExceeded), meter.call("large", input_tokens=4000):
            pass
        report = json.loads(json.dumps(run.report()))
    calls = report.pop("calls")
    assert 0 < report.pop("seconds") < 5
    assert report == {
        "name": "job",
        "user": "ann",
        "usd_cap": 0.05,
        "token_cap": 20_000,
        "stopped": False,
        "stop_reason": None,
        "call_count": 3,
        "refused": 1,
        "input_tokens": 2400,
        "output_tokens": 600,
        "tokens": 3000,
        "usd": 0.0192,
        "usd_nanos": 19_200_000,
        "by_model": {
            "small": {
                "call_count": 2,
                "input_tokens": 1600,
                "output_tokens": 400,
                "tokens": 2000,
                "usd": 0.0032,
                "usd_nanos": 3_200_000,
            },
            "large": {
                "call_count": 1,
                "input_tokens": 800,
                "output_tokens": 200,
                "tokens": 1000,
                "usd": 0.016,
                "usd_nanos": 16_000_000,
            },
        },
        "most_expensive": calls[1],
    }
    assert calls[0] == {
        "model": "small",
        "input_tokens": 800,
        "output_tokens": 100,
        "usd": 0.0012,
        "usd_nanos": 1_200_000,
        "running_usd": 0.0012,
        "status": "settled",
    }
    assert [call["running_usd"] for call in calls] == [0.0012, 0.0172, 0.0192]


def test_what_is_charged_is_marked_and_what_is_released_or_refused_is_no_call() -> None:
    ledger = Ledger()
    for status in ("charged", "seen", "released", "refused"):
        ledger.add(record(status=status))
    report = ledger.report()
    assert [call["status"] for call in report["calls"]] == ["charged", "seen"]
    assert (report["call_count"], report["refused"], report["usd_nanos"]) == (2, 1, 2000)


def test_the_sums_are_exact_over_all_and_the_latest_thousand_are_kept() -> None:
    ledger = Ledger()
    for number in range(2500):
        ledger.add(record(number if number != 7 else 10**18))
    report = ledger.report()
    assert report["call_count"] == 2500
    assert report["usd_nanos"] == sum(range(2500)) - 7 + 10**18
    assert report["tokens"] == 2500 * 25
    assert [call["usd_nanos"] for call in report["calls"]] == list(range(1500, 2500))
    assert report["most_expensive"]["usd_nanos"] == 10**18


def test_the_first_of_equals_is_the_most_expensive() -> None:
    ledger = Ledger()
    ledger.add(record(5, "small"))
    ledger.add(record(5, "large"))
    assert ledger.report()["most_expensive"]["model"] == "small"
    assert Ledger().report()["most_expensive"] is None


def test_models_without_a_name_and_too_many_models_are_summed_up() -> None:
    ledger = Ledger()
    ledger.add(record(model=None))
    for number in range(1200):
        ledger.add(record(model=f"model-{number}"))
    models = ledger.report()["by_model"]
    assert len(models) == 1001
    assert models["unknown"]["call_count"] == 1
    assert models["others"]["call_count"] == 201
    assert sum(sums["call_count"] for sums in models.values()) == 1201


def test_a_report_is_a_copy() -> None:
    ledger = Ledger()
    ledger.add(record())
    report = ledger.report()
    report["calls"][0]["usd_nanos"] = 5
    report["most_expensive"]["usd_nanos"] = 5
    report["by_model"].clear()
    assert ledger.report()["calls"][0]["usd_nanos"] == ledger.report()["most_expensive"]["usd_nanos"] == 1000
    assert ledger.report()["by_model"]


def test_threads_lose_nothing(racing: None) -> None:
    ledger = Ledger()

    def add() -> None:
        for _ in range(500):
            ledger.add(record())

    def look() -> None:
        for _ in range(50):
            report = ledger.report()
            assert (
                report["usd_nanos"]
                == report["call_count"] * 1000
                == report["by_model"].get("small", {"usd_nanos": 0})["usd_nanos"]
            )

    run_together(add, add, look, add, look)
    assert ledger.report()["usd_nanos"] == 1500 * 1000


class _Interrupting(Ledger):
    """A ledger inside of whose booking a finaliser runs, as the collector may have it anywhere."""

    __slots__ = ("finalised",)

    def __init__(self) -> None:
        super().__init__()
        self.finalised: list[dict[str, Any]] = []

    def _take(self, record: CallRecord) -> None:
        if record.usd_nanos == 1000:
            _Dropped(self)  # is gone at once, and its finaliser runs here
        super()._take(record)


class _Dropped:
    def __init__(self, ledger: _Interrupting) -> None:
        self._ledger = ledger

    def __del__(self) -> None:
        self._ledger.add(record(7))
        self._ledger.finalised.append(self._ledger.report())


def test_a_finaliser_inside_of_a_ledger_neither_hangs_nor_is_lost() -> None:
    ledger = _Interrupting()

    def work() -> None:
        ledger.add(record(1000))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert [report["call_count"] for report in ledger.finalised] == [0]  # a look inside of the booking, before it
    report = ledger.report()
    assert (report["call_count"], report["usd_nanos"]) == (2, 1007)
    assert len(ledger._entries) == 0


def test_an_entry_that_finds_the_ledger_taken_waits_for_nobody() -> None:
    ledger = Ledger()
    with ledger._lock:
        thread = threading.Thread(target=ledger.add, args=(record(),), daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
        assert ledger._total.calls == 0
    assert ledger.report()["call_count"] == 1


class _Stopped(Ledger):
    """A ledger whose lock is taken, or let go, as an interrupt comes."""

    def __init__(self, moment: str) -> None:
        super().__init__()
        self.moment: str | None = moment
        self.whole = self._lock
        self._lock = self

    def _stop(self, moment: str) -> None:
        if self.moment == moment:
            self.moment = None
            raise KeyboardInterrupt

    def _is_owned(self) -> bool:
        return bool(self.whole._is_owned())

    def acquire(self, **how: Any) -> bool:
        self._stop("before")
        taken = self.whole.acquire(**how)
        self._stop("taken")
        return bool(taken)

    def release(self) -> None:
        self._stop("let go")
        self.whole.release()

    def _take(self, record: CallRecord) -> None:
        self._stop("booking")
        super()._take(record)


@pytest.mark.parametrize("moment", ["before", "taken", "booking", "let go"])
@pytest.mark.parametrize("what", ["add", "report"])
def test_an_interrupt_at_any_step_leaves_the_ledger_to_the_next(moment: str, what: str) -> None:
    ledger = _Stopped(moment)
    if what == "report":
        ledger._entries.append(record())
    with pytest.raises(KeyboardInterrupt):
        ledger.report() if what == "report" else ledger.add(record())
    worker = threading.Thread(target=ledger.add, args=(record(),), daemon=True)
    worker.start()
    worker.join(10)
    assert not worker.is_alive()
    assert len(ledger._entries) == 0
    assert ledger.report()["call_count"] == (1 if moment == "booking" else 2)


def test_a_call_that_is_dropped_inside_of_a_pool_s_operation_is_booked() -> None:
    """The collector may find a call that nobody settled while the same thread is in the pool, or in the ledger."""
    meter = meter_of(BudgetPool())
    with budget_run("job", meter=meter) as run:
        for _ in range(200):
            pending = meter._begin(ask(), run)
            pending.hold()
            circle: list[Any] = [pending]
            circle.append(circle)
            del pending, circle  # the collector finds it some time
        gc.collect()
        assert run.report()["call_count"] == 200
        assert run.pool.snapshot().usd_used_nanos == 200 * 3_000_000
        assert run.pool.snapshot().in_flight == 0


def test_a_record_shows_exact_dollars() -> None:
    assert record(1_234_567_891).usd == Decimal("1.234567891")
    with localcontext() as context:
        context.prec = 3
        assert str(record(10**30 + 1).usd) == "1000000000000000000000.000000001"
    assert record().tokens == 25


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (0, "$0.00"),
        (2_000_000_000, "$2.00"),
        (95_000_000, "$0.0950"),
        (12_345_600_000_000, "$12,345.60"),
        (1_000_000_000_000, "$1,000.00"),
        (12_345_678_900, "$12.3457"),
        (1234, "$0.000001234"),
    ],
)
def test_dollars_are_shown_shortly(nanos: int, text: str) -> None:
    assert dollars(nanos) == text


def test_how_many_calls_are_kept_is_said() -> None:
    assert module.KEPT == 1000
