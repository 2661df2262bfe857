"""`Meter.check` says what would happen to a call, raises nothing, and leaves no trace."""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from meters import StorePool, ask, meter_of, used
from token_budget import BudgetExceeded, BudgetPool, Window
from token_budget.metering import BudgetUnavailable, Decision, Meter, Prices, budget_run


def check(meter: Meter, model: str = "small", **more: Any) -> Decision:
    return meter.check(model, **{"input_tokens": 1000, "max_output_tokens": 500, **more})


def test_a_call_that_fits_is_allowed_and_nothing_is_held() -> None:
    pool = BudgetPool(usd_cap=1, token_cap=10_000)
    pool.record(usd=0.25, tokens=100)
    before = pool.snapshot()
    decision = check(meter_of(pool))
    assert decision
    assert decision == Decision(
        allowed=True, usd_nanos=3_000_000, remaining_usd_nanos=750_000_000, remaining_tokens=9_900
    )
    assert (decision.usd, decision.remaining_usd) == (0.003, 0.75)
    assert pool.snapshot() == before


def test_what_is_left_is_the_least_of_all_pools() -> None:
    total = BudgetPool(usd_cap=1)
    user, project = total.child(usd_cap=0.5, token_cap=9000), total.child(token_cap=5000)
    decision = check(meter_of(project), pool=user)
    assert (decision.remaining_usd, decision.remaining_tokens) == (0.5, 5000)
    with budget_run("job", usd_cap=0.25, meter=meter_of(project)) as run:
        decision = check(run.meter, pool=user)
    assert (decision.remaining_usd, decision.remaining_tokens) == (0.25, 5000)
    assert check(meter_of()).remaining_usd is None


@pytest.mark.parametrize("axis", ["usd", "token"])
def test_a_call_that_does_not_fit_is_not_and_the_pool_is_named(axis: str) -> None:
    total = BudgetPool(name="total")
    tight = total.child(name="tight", **{f"{axis}_cap": {"usd": 0.0029, "token": 1499}[axis]})  # type: ignore[arg-type]
    below = tight.child(name="below")
    decision = check(meter_of(below))
    assert not decision
    assert (decision.reason, decision.pool) == ("budget_exceeded", "tight")
    assert (decision.retry_after, decision.resets_at) == (None, None)
    tight.set_caps(**{f"{axis}_cap": {"usd": 0.003, "token": 1500}[axis]})  # type: ignore[arg-type]
    assert check(meter_of(below))


def test_an_overrun_shows_as_less_than_nothing() -> None:
    pool = BudgetPool(usd_cap=1, token_cap=0)
    with pytest.raises(BudgetExceeded):
        pool.record(usd=2, tokens=5, force=True)
    decision = check(meter_of(pool))
    assert (decision.remaining_usd, decision.remaining_tokens) == (-1.0, -5)


def test_a_pool_that_is_only_busy_says_so() -> None:
    pool = BudgetPool(usd_cap=0.004, name="busy")
    pool.record(usd=0.001)  # what is left once nothing is in flight is just enough
    held = pool.reserve(usd=0.003)
    decision = check(meter_of(pool))
    assert (decision.allowed, decision.reason, decision.pool, decision.retry_after) == (
        False,
        "budget_exceeded",
        "busy",
        0.0,
    )
    held.commit()
    assert check(meter_of(pool)).retry_after is None


def test_a_window_says_when_it_fits_again() -> None:
    pool = BudgetPool(usd_cap=0.004, window=Window.every(timedelta(hours=1)), name="hourly")
    pool.record(usd=0.003)
    decision = check(meter_of(pool))
    assert decision.resets_at == pool.snapshot().resets_at
    assert decision.resets_at is not None
    assert decision.retry_after is not None
    left = (decision.resets_at - datetime.now(timezone.utc)).total_seconds()
    assert abs(decision.retry_after - left) < 5
    decision = check(meter_of(pool), input_tokens=10_000)  # never fits
    assert (decision.retry_after, decision.resets_at) == (None, pool.snapshot().resets_at)


def test_of_several_that_refuse_the_one_with_the_longest_wait_is_named() -> None:
    total = BudgetPool(usd_cap=0.0055, window=Window.every(timedelta(hours=1)), name="hourly")
    busy = total.child(usd_cap=0.003, name="busy")
    total.record(usd=0.003)
    held = busy.reserve(usd=0.001)
    assert check(meter_of(busy)).pool == "hourly"
    spent = total.child(usd_cap=0.001, name="spent")
    assert check(meter_of(spent)).pool == "spent"
    held.release()


def test_what_costs_nothing_is_refused_by_no_axis_that_is_full() -> None:
    pool = BudgetPool(usd_cap=0)
    with pytest.raises(BudgetExceeded):
        pool.record(usd=1, force=True)
    assert check(meter_of(pool), "free-one")
    pool = BudgetPool(token_cap=0)
    assert not check(meter_of(pool), "free-one")


def test_an_unknown_model_has_no_price() -> None:
    decision = check(meter_of(BudgetPool()), "unheard-of")
    assert (decision.allowed, decision.reason, decision.usd) == (False, "unknown_model", None)
    fallback = Meter(BudgetPool(), Prices(fallback=(30, 180), catalogue=False))
    assert check(fallback, "unheard-of").usd == 0.12


def test_a_blocked_model_is_told() -> None:
    meter = meter_of(policies=({"plan": "free"}, ["small"]))
    assert check(meter, context={"plan": "free"}).reason == "model_blocked"
    assert check(meter, context={"plan": "paid"})
    assert check(meter)
    with budget_run("job", meter=meter, context={"plan": "free"}):
        assert check(meter).reason == "model_blocked"


def test_a_stopped_run_and_a_closed_pool_are_told() -> None:
    pool = BudgetPool()
    meter = meter_of(pool)
    with budget_run("job", meter=meter) as run:
        assert check(meter)
        run.stop()
        decision = check(meter)
        assert (decision.allowed, decision.reason) == (False, "stopped")
    pool.close()
    decision = check(meter)
    assert (decision.allowed, decision.reason, decision.usd) == (False, "stopped", 0.003)
    total = BudgetPool()
    user, project = total.child(), total.child()
    user.close()
    assert check(meter_of(project), pool=user).reason == "stopped"


def test_a_guard_that_would_refuse_is_told_and_counts_nothing() -> None:
    meter = meter_of(BudgetPool())
    with budget_run("job", meter=meter, calls_per_minute=1) as run:
        for _ in range(3):
            assert check(meter)
        meter._begin(ask(), run)
        decision = check(meter)
        assert (decision.allowed, decision.reason, decision.usd) == (False, "loop", 0.003)
        with budget_run("inner", meter=meter):
            assert check(meter).reason == "loop"
        assert run.report()["refused"] == 0


@pytest.mark.parametrize("down", [BudgetUnavailable("gone"), ConnectionError("gone")])
def test_a_pool_that_cannot_answer_is_told(down: Exception) -> None:
    store = StorePool(BudgetPool())
    store.down = down
    decision = check(meter_of(store))
    assert (decision.allowed, decision.reason, decision.usd) == (False, "unreachable", 0.003)
    decision = check(meter_of(store, on_error="allow"))
    assert (decision.allowed, decision.reason) == (True, "unreachable")


def test_the_worst_case_is_what_would_be_held() -> None:
    pool = BudgetPool(usd_cap=0.0091)
    assert not meter_of(pool).check("small", input_tokens=1000)
    decision = meter_of(pool, cap_output="fit").check("small", input_tokens=1000)
    assert (decision.allowed, decision.usd_nanos) == (True, 9_100_000)
    assert not meter_of(pool, cap_output="fit").check("small", input_tokens=1000, max_output_tokens=4096)


def test_a_decision_is_ready_for_json() -> None:
    pool = BudgetPool(usd_cap=0.002, name="day", window=Window.daily("UTC"))
    shown = json.loads(json.dumps(check(meter_of(pool)).to_dict()))
    snapshot = pool.snapshot()
    assert snapshot.resets_at is not None
    assert shown == {
        "allowed": False,
        "reason": "budget_exceeded",
        "usd": 0.003,
        "usd_nanos": 3_000_000,
        "remaining_usd": 0.002,
        "remaining_usd_nanos": 2_000_000,
        "remaining_tokens": None,
        "pool": "day",
        "resets_at": snapshot.resets_at.isoformat(),
        "retry_after": None,
    }
    shown = json.loads(json.dumps(Decision(allowed=True).to_dict()))
    assert shown["usd"] is shown["remaining_usd"] is shown["resets_at"] is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_in_a_forked_child_nothing_is_allowed() -> None:
    pool = BudgetPool(usd_cap=1)
    child = os.fork()
    if child == 0:  # pragma: no cover - runs in the child
        os._exit(0 if check(meter_of(pool)).reason == "stopped" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert used(pool) == (0, 0, 0)
