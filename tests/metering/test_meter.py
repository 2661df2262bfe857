"""A meter holds the worst case before a call, settles what it cost once, and raises nothing after the answer."""

from __future__ import annotations

import asyncio
import doctest
import gc
import importlib
import threading
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from meters import StoreHeld, StorePool, answer, ask, meter_of, prices, used
from support import run_together
from token_budget import BudgetExceeded, BudgetOverrun, BudgetPool, BudgetTimeout, PoolClosed, Window
from token_budget.metering import (
    BudgetUnavailable,
    CallRecord,
    Meter,
    ModelBlocked,
    Prices,
    UnknownModel,
    UnknownUsage,
    Usage,
    budget_run,
)
from token_budget.metering._charge import Charge
from token_budget.metering._pending import Pending
from token_budget.metering._shapes import Reading

WORST = 3_000_000  # nanodollars of `ask()`: 1,000 tokens of input, 500 of output


def held(meter: Meter, asked: Any = None, **more: Any) -> Pending:
    pending = meter._begin(asked if asked is not None else ask(), None, **more)
    pending.hold()
    return pending


def reading(
    input_tokens: int = 800, output_tokens: int = 100, model: str | None = "small", tier: str | None = None
) -> Reading:
    return Reading(Usage(input_tokens=input_tokens, output_tokens=output_tokens), model, tier)


# ---------------------------------------------------------------- holding and settling


def test_the_worst_case_is_held_and_the_real_cost_committed() -> None:
    pool = BudgetPool(usd_cap=1)
    pending = meter_of(pool)._begin(ask(), None)
    assert used(pool) == (0, 0, 0)
    assert (pending.nanos, pending.tokens) == (WORST, 1500)
    assert not pending.open
    pending.hold()
    assert pending.open
    snapshot = pool.snapshot()
    assert (snapshot.tokens_reserved, snapshot.usd_reserved_nanos) == (1500, WORST)
    pending.settle(reading())
    assert used(pool) == (900, 1_200_000, 0)
    assert (pending.status, pending.overrun, pending.open) == ("settled", None, False)


def test_tasks_hold_and_settle_on_a_store_without_blocking() -> None:
    store = StorePool(BudgetPool())
    meter = meter_of(store, broken="seen")

    async def main() -> None:
        for settle in ("asettle", "acharge", "arelease", "aseen"):
            pending = meter._begin(ask(), None)
            await pending.ahold()
            arguments = {"asettle": (reading(),), "aseen": (44,)}.get(settle, ())
            await getattr(pending, settle)(*arguments)
            await getattr(pending, settle)(*arguments)  # the second time nothing happens
            assert (
                pending.status
                == {"asettle": "settled", "acharge": "charged", "arelease": "released", "aseen": "seen"}[settle]
            )

    asyncio.run(main())
    assert store.suspended == 8
    assert used(store.inner) == (900 + 1500 + 1300, 1_200_000 + WORST + 2_200_000, 0)


def test_what_is_charged_is_the_worst_case_and_what_is_released_nothing() -> None:
    pool = BudgetPool(usd_cap=1)
    meter = meter_of(pool)
    held(meter).charge()
    assert used(pool) == (1500, WORST, 0)
    held(meter).release()
    assert used(pool) == (1500, WORST, 0)


def test_the_first_to_settle_wins() -> None:
    pool = BudgetPool(usd_cap=1)
    meter = meter_of(pool)
    for first, cost in (("settle", 1_200_000), ("charge", WORST), ("release", 0)):
        before = used(pool)[1]
        pending = held(meter)
        getattr(pending, first)(*([reading()] if first == "settle" else []))
        status = pending.status
        pending.settle(reading(1, 1))
        pending.charge()
        pending.seen(0)
        pending.release()
        assert (used(pool)[1] - before, pending.status) == (cost, status)


def test_threads_that_settle_one_call_settle_it_once(racing: None) -> None:
    pool = BudgetPool()
    meter = meter_of(pool)
    records: list[CallRecord] = []
    meter.subscribe(records.append)
    for _ in range(50):
        pending = held(meter)
        run_together(lambda p=pending: p.settle(reading()), lambda p=pending: p.settle(reading()))  # type: ignore[misc]
    assert used(pool) == (50 * 900, 50 * 1_200_000, 0)
    assert len(records) == 50


def test_nothing_happens_to_a_call_that_holds_nothing() -> None:
    pool = BudgetPool(usd_cap=1)
    pending = meter_of(pool)._begin(ask(), None)
    pending.settle(reading())
    pending.charge()
    pending.release()
    assert pending.status is None
    assert used(pool) == (0, 0, 0)


def test_a_call_that_is_dropped_is_charged_in_full() -> None:
    pool = BudgetPool(usd_cap=1)
    meter = meter_of(pool)
    held(meter)
    gc.collect()
    assert used(pool) == (1500, WORST, 0)
    circle: list[Any] = [held(meter)]
    circle.append(circle)
    del circle
    gc.collect()
    assert used(pool) == (3000, 2 * WORST, 0)


def test_a_call_that_was_not_finished_being_made_is_dropped_in_silence() -> None:
    Pending.__new__(Pending).__del__()


class Interrupted(StorePool):
    """A pool of a store in which the first commit is interrupted, before or after it is done."""

    def __init__(self, pool: BudgetPool, error: BaseException, *, done: bool) -> None:
        super().__init__(pool)
        self.error: BaseException | None = error
        self.done = done

    def reserve(self, **amounts: Any) -> Any:
        return InterruptedHeld(self, self.inner.reserve(**amounts))


class InterruptedHeld(StoreHeld):
    _store: Interrupted

    def commit(self, **amounts: Any) -> None:
        error, self._store.error = self._store.error, None
        if error is not None and not self._store.done:
            raise error
        super().commit(**amounts)
        if error is not None:
            raise error

    async def acommit(self, **amounts: Any) -> None:
        self.commit(**amounts)


@pytest.mark.parametrize("settle", ["settle", "asettle"])
@pytest.mark.parametrize(("done", "cost"), [(False, WORST), (True, 1_200_000)])
def test_a_commit_that_is_interrupted_is_made_up_for_once(done: bool, cost: int, settle: str) -> None:
    store, pool = Interrupted(BudgetPool(), KeyboardInterrupt(), done=done), BudgetPool()
    charge = Charge([store])
    charge.pools = (store, pool)
    meter = meter_of()
    meter._terms.charge = charge
    pending = held(meter)
    with pytest.raises(KeyboardInterrupt):
        if settle == "settle":
            pending.settle(reading())
        else:
            asyncio.run(pending.asettle(reading()))
    assert pending.open
    del pending
    gc.collect()
    assert used(store.inner)[1:] == (cost, 0)
    assert used(pool)[1:] == (WORST, 0)


def test_a_commit_that_is_interrupted_after_it_is_done_leaves_nothing_open() -> None:
    store = Interrupted(BudgetPool(), KeyboardInterrupt(), done=True)
    pending = held(meter_of(store))
    with pytest.raises(KeyboardInterrupt):
        pending.settle(reading())
    assert not pending.open
    assert used(store.inner) == (900, 1_200_000, 0)


@pytest.mark.parametrize("settle", ["settle", "asettle"])
def test_an_interrupt_while_an_answer_is_priced_loses_nothing(settle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = BudgetPool()
    meter = meter_of(pool)
    pending = held(meter)

    def interrupted(*_: Any, **__: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Prices, "_cost", interrupted)
        with pytest.raises(KeyboardInterrupt):
            if settle == "settle":
                pending.settle(reading())
            else:
                asyncio.run(pending.asettle(reading()))
    assert pending.open
    assert used(pool) == (0, 0, 1)
    pending.settle(reading())
    assert used(pool) == (900, 1_200_000, 0)


def test_an_interrupt_between_the_claim_and_the_commit_loses_nothing() -> None:
    pool = BudgetPool()
    meter = meter_of(pool)
    pending = held(meter)
    assert pending._take("settled") is not None  # and here its thread is interrupted
    assert not pending.open
    pending.charge()
    assert used(pool) == (0, 0, 1)
    del pending
    gc.collect()
    assert used(pool) == (1500, WORST, 0)


def test_an_interrupt_after_the_commit_is_neither_charged_nor_told_again() -> None:
    pool = BudgetPool()
    meter = meter_of(pool)
    told: list[CallRecord] = []
    meter.subscribe(told.append)
    pending = held(meter)
    held_now = pending._take("settled")
    assert held_now is not None
    held_now.commit(900, 1_200_000)  # and here its thread is interrupted
    del pending
    gc.collect()
    assert used(pool) == (900, 1_200_000, 0)
    assert told == []


def test_an_interrupt_of_the_finaliser_itself_charges_all_the_same() -> None:
    store = Interrupted(BudgetPool(), KeyboardInterrupt(), done=False)
    pending = held(meter_of(store))
    with pytest.raises(KeyboardInterrupt):
        pending.__del__()
    assert used(store.inner) == (1500, WORST, 0)
    assert not pending.open


def test_two_pools_of_one_call_are_charged_and_their_total_once() -> None:
    total = BudgetPool(usd_cap=1)
    user, project = total.child(), total.child()
    held(meter_of(project), pools=(user,)).settle(reading())
    assert used(total) == used(user) == used(project) == (900, 1_200_000, 0)


def test_a_meter_without_a_pool_prices_and_holds_nothing() -> None:
    meter = meter_of()
    records: list[CallRecord] = []
    meter.subscribe(records.append)
    held(meter).settle(reading())
    assert records[0].usd == Decimal("0.0012")
    assert meter.pool is None


# ---------------------------------------------------------------- refusals


def test_what_does_not_fit_is_refused_before_it_is_sent() -> None:
    pool = BudgetPool(usd_cap=0.005)
    meter = meter_of(pool, timeout=0)
    first = held(meter)
    with pytest.raises(BudgetExceeded) as caught:
        held(meter)
    assert not caught.value.exhausted
    first.charge()
    with pytest.raises(BudgetExceeded) as caught:
        held(meter)
    assert caught.value.exhausted


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(UnknownModel):
        meter_of()._begin(ask(model="unheard-of"), None)
    with pytest.raises(UnknownModel):
        meter_of()._begin(ask(model=None), None)


def test_a_closed_pool_refuses() -> None:
    total = BudgetPool()
    user, project = total.child(), total.child()
    meter = meter_of(project)
    user.close()
    with pytest.raises(PoolClosed):
        meter._begin(ask(), None, pools=(user,))
    project.close()
    with pytest.raises(PoolClosed):
        held(meter)


def test_a_call_waits_for_room_that_others_hold() -> None:
    pool = BudgetPool(usd_cap=0.005)
    meter = meter_of(pool)
    first = held(meter)
    threading.Timer(0.05, first.release).start()
    held(meter).release()
    first = held(meter)

    async def main() -> None:
        asyncio.get_running_loop().call_later(0.05, first.release)
        pending = meter._begin(ask(), None)
        await pending.ahold()
        pending.release()

    asyncio.run(main())


def test_it_waits_no_longer_than_it_is_told_to() -> None:
    pool = BudgetPool(usd_cap=0.005)
    first = held(meter_of(pool))
    with pytest.raises(BudgetTimeout):
        held(meter_of(pool, timeout=0.02))
    with pytest.raises(BudgetExceeded) as caught:
        held(meter_of(pool, timeout=0))
    assert not isinstance(caught.value, BudgetTimeout)

    async def main() -> None:
        with pytest.raises(BudgetTimeout):
            await meter_of(pool, timeout=0.02)._begin(ask(), None).ahold()

    asyncio.run(main())
    first.release()


def test_what_is_used_up_is_refused_at_once_unless_the_next_period_begins_in_time() -> None:
    pool = BudgetPool(usd_cap=0.003)
    pool.record(usd=0.003)
    with pytest.raises(BudgetExceeded):
        held(meter_of(pool, timeout=None))
    pool = BudgetPool(usd_cap=0.003, window=Window.every(timedelta(seconds=1)))
    pool.record(usd=0.003)
    held(meter_of(pool)).release()


# ---------------------------------------------------------------- after the answer


def test_an_overrun_is_recorded_and_the_next_call_refused() -> None:
    pool = BudgetPool(usd_cap=0.005)
    meter = meter_of(pool)
    pending = held(meter)
    pending.settle(reading(800, 2000))
    assert isinstance(pending.overrun, BudgetOverrun)
    assert used(pool)[1] == 8_800_000
    with pytest.raises(BudgetExceeded):
        held(meter)


def test_the_answer_s_model_and_tier_price_it() -> None:
    pool = BudgetPool()
    meter = meter_of(pool)
    held(meter).settle(reading(model="large"))
    assert used(pool)[1] == 12_000_000
    held(meter).settle(reading(tier="priority"))
    assert used(pool)[1] == 12_000_000 + 2 * 1_200_000


def test_the_request_s_model_and_tier_price_it_where_the_answer_has_none_that_is_known() -> None:
    pool = BudgetPool()
    meter = meter_of(pool)
    held(meter).settle(reading(model="unheard-of"))
    held(meter).settle(reading(model=None))
    assert used(pool)[1] == 2 * 1_200_000
    held(meter, ask(service_tier="priority")).settle(reading())
    assert used(pool)[1] == 4 * 1_200_000


def test_a_fallback_is_no_price_of_the_answer_s_own() -> None:
    pool = BudgetPool()
    own = Prices({"small": (1, 4), "large": (10, 40)}, fallback=(30, 180), catalogue=False)
    held(Meter(pool, own)).settle(reading(model="elsewhere"))
    assert used(pool)[1] == 1_200_000
    meter = Meter(pool, own)
    pending = held(meter, ask(model="deployment"))
    pending.settle(reading(model="large"))
    assert used(pool)[1] == 1_200_000 + 12_000_000


class Listed(Prices):
    """Prices whose list knows every model, at the fallback's price."""

    def knows(self, model: str | None, provider: str | None = None) -> bool:
        return True


@pytest.mark.parametrize(
    ("asked", "answered", "cost"),
    [
        ("small", "Small-2026-01-01", 1),  # has no line of its own, and is the user's "small"
        ("small", "small-2026-02", 2),
        ("small", "gpt-9", 1),  # whatever answers there
        ("small", None, 1),
        ("my-small", "small-2026-01-01", 1),
        ("my-small", "small-2026-02", 2),
        ("openai/small", "small-2026-01-01", 1),
        ("openai/my-small", "openai/small-2026-01-01", 1),
        ("deployed-eu", "gpt-9", 3),
        ("deployed-eu", "other-1", 4),
        ("other-mini", "other-1", 6),  # the pattern for both is not what the user says of the first
        ("other-mini", "other-mini-2026", 6),
        ("gpt-8", "gpt-9", 5),
        ("gpt-8", "small", 1),
    ],
)
def test_the_user_s_own_line_for_what_was_asked_prices_the_answer(asked: str, answered: str | None, cost: int) -> None:
    table = {
        "small": (1, 4),
        "small-2026-02": (2, 8),
        "deployed-*": (3, 12),
        "other-*": (4, 16),
        "other-mini": (6, 24),
    }
    own = Listed(table, aliases={"my-small": "small", "openai/my-small": "small"}, fallback=(5, 20), catalogue=False)
    pool = BudgetPool()
    held(Meter(pool, own), ask(model=asked)).settle(reading(model=answered))
    assert used(pool)[1] == cost * 1_200_000


def test_without_a_table_the_answer_s_model_prices_it() -> None:
    pool = BudgetPool()
    held(Meter(pool, Listed(fallback=(5, 20), catalogue=False)), ask(model="a")).settle(reading(model="b"))
    assert used(pool)[1] == 5 * 1_200_000


def test_what_is_denied_is_denied_by_its_aliases_too() -> None:
    own = Prices({"gpt-5": (1, 4), "small": (1, 4)}, aliases={"smart": "gpt-5", "tiny": "small"}, catalogue=False)
    for denied in (["gpt-5*"], ["smart"]):
        meter = Meter(BudgetPool(), own, policies=({}, denied))
        with pytest.raises(ModelBlocked, match="model 'smart'"):
            held(meter, ask(model="smart"))
        held(meter, ask(model="tiny")).release()


class Shapeless:
    """A reading that is none."""


@pytest.mark.parametrize("bad", [None, Shapeless(), Reading(None, None, None)])  # type: ignore[arg-type]
def test_an_answer_that_cannot_be_read_is_charged_in_full(bad: Any, caplog: pytest.LogCaptureFixture) -> None:
    pool = BudgetPool()
    pending = held(meter_of(pool))
    pending.settle(bad)
    assert used(pool) == (1500, WORST, 0)
    assert pending.status == "charged"
    assert "an answer of model 'small' cannot be priced" in caplog.text


def test_an_answer_that_nobody_can_price_is_charged_in_full() -> None:
    pool = BudgetPool()
    meter = meter_of(pool)
    pending = held(meter)
    meter._terms.prices = Prices(catalogue=False)
    pending.settle(reading())
    assert used(pool) == (1500, WORST, 0)
    assert pending.status == "charged"


def test_a_broken_stream_is_charged_in_full_or_for_what_was_seen() -> None:
    pool = BudgetPool()
    held(meter_of(pool)).seen(44)
    assert used(pool) == (1500, WORST, 0)
    meter = meter_of(pool, broken="seen")
    pending = held(meter)
    pending.seen(44)  # with the 256 that may be under way: 300
    assert used(pool) == (1500 + 1300, WORST + 2_200_000, 0)
    assert pending.status == "seen"
    pending = held(meter)
    pending.seen(244)  # with the 256: as much as the worst case
    assert pending.status == "charged"
    assert used(pool)[1] == 2 * WORST + 2_200_000
    pending = held(meter)
    pending.release()
    pending.seen(0)
    assert used(pool)[1] == 2 * WORST + 2_200_000


def test_a_broken_stream_of_a_task_is_charged_likewise() -> None:
    pool = BudgetPool()

    async def main() -> None:
        pending = held(meter_of(pool))
        await pending.aseen(44)
        assert pending.status == "charged"

    asyncio.run(main())
    assert used(pool) == (1500, WORST, 0)


# ---------------------------------------------------------------- pools that cannot answer


@pytest.mark.parametrize("down", [BudgetUnavailable("gone"), ConnectionError("gone")])
def test_an_outage_blocks_calls_or_lets_them_pass(down: Exception, caplog: pytest.LogCaptureFixture) -> None:
    store = StorePool(BudgetPool())
    store.down = down
    with pytest.raises(BudgetUnavailable):
        held(meter_of(store))
    meter = meter_of(store, on_error="allow")
    pending = held(meter)
    assert "the call passes" in caplog.text
    pending.settle(reading())
    store.down = None
    pending = held(meter)
    pending.settle(reading())
    assert used(store.inner) == (900, 1_200_000, 0)


def test_a_refusal_is_never_let_pass() -> None:
    store = StorePool(BudgetPool(usd_cap=0.001))
    meter = meter_of(store, on_error="allow")
    with pytest.raises(BudgetExceeded):
        held(meter)
    busy = store.reserve(usd=0.0005)
    store.inner.set_caps(usd_cap=0.003)
    with pytest.raises(BudgetTimeout):
        held(meter_of(store, on_error="allow", timeout=0.01))
    busy.release()


# ---------------------------------------------------------------- limits of the output


@pytest.mark.parametrize("cap_output", [True, "fit"])
def test_a_limit_is_only_for_requests_that_have_none(cap_output: Any) -> None:
    meter = meter_of(BudgetPool(usd_cap=1), cap_output=cap_output)
    assert meter._begin(ask(), None).output_limit is None
    assert meter._begin(ask(output_tokens=0, limited=False), None).output_limit is None  # it writes nothing
    assert meter._begin(ask(output_tokens=4096, limited=False), None).output_limit == 4096
    assert meter_of()._begin(ask(output_tokens=4096, limited=False), None).output_limit is None


def fitted(pool: Any, **more: Any) -> Pending:
    meter = meter_of(pool, cap_output="fit", timeout=0)
    pending = meter._begin(ask(output_tokens=4096 * more.get("choices", 1), limited=False, **more), None)
    pending.hold()
    return pending


def test_what_the_budget_still_pays_for_is_the_limit() -> None:
    pending = fitted(BudgetPool(usd_cap=0.0091))  # 1,000 in: 0.001; 0.0081 is 2,025 tokens
    assert (pending.output_limit, pending.nanos, pending.tokens) == (2025, 9_100_000, 3025)
    pending.release()
    pending = fitted(BudgetPool(token_cap=1800))
    assert (pending.output_limit, pending.tokens) == (800, 1800)
    pending.release()
    pending = fitted(BudgetPool(usd_cap=0.0091), choices=2)
    assert (pending.output_limit, pending.tokens) == (1012, 1000 + 2024)
    pending.release()
    total = BudgetPool(usd_cap=0.0091)
    pending = fitted(total.child(usd_cap=1).child())  # the least of all scopes
    assert pending.output_limit == 2025
    pending.release()


def test_a_limit_is_never_below_256_nor_above_the_default() -> None:
    pending = fitted(BudgetPool(usd_cap=0.002024))
    assert (pending.output_limit, pending.nanos) == (256, 2_024_000)
    pending.release()
    with pytest.raises(BudgetExceeded):
        fitted(BudgetPool(usd_cap=0.002023))
    pending = fitted(BudgetPool())
    assert pending.output_limit == 4096
    pending.release()
    meter = meter_of(BudgetPool(usd_cap=0.0001), cap_output="fit", default_output=100)
    assert meter._begin(ask(output_tokens=100, limited=False), None).output_limit == 100


# ---------------------------------------------------------------- policies

FREE = ({"plan": "free"}, ["LARGE*", "us.*"])


@pytest.mark.parametrize("policies", [FREE, [FREE], ([{"plan": ["free", "trial"]}, ("large*",)],)])
def test_a_policy_denies_models_where_the_context_says_so(policies: Any) -> None:
    meter = meter_of(policies=policies)
    with pytest.raises(ModelBlocked, match="large"), meter.call("large", input_tokens=1, context={"plan": "free"}):
        pass
    for context, model in (({"plan": "paid"}, "large"), ({}, "large"), (None, "large"), ({"plan": "free"}, "small")):
        with meter.call(model, input_tokens=1, context=context) as call:
            call.release()


@pytest.mark.parametrize(
    "model",
    [
        "large",
        "openai/large",
        "ft:large:me",
        "models/large",
        "azure/large",
        "openrouter/openai/large",
        "Large-2025-01-01",
    ],
)
def test_a_policy_sees_through_what_stands_before_a_name(model: str) -> None:
    meter = Meter(prices=Prices(fallback=(1, 1), catalogue=False), policies=({}, ["large*"]))
    with pytest.raises(ModelBlocked):
        meter._begin(ask(model=model), None)


def test_a_pattern_may_name_the_prefix_and_the_context_may_say_anything() -> None:
    meter = Meter(prices=Prices(fallback=(1, 1), catalogue=False), policies=({"plan": {"free", "trial"}}, ["openai/*"]))
    with budget_run("job", meter=meter, context={"plan": "trial"}) as run, pytest.raises(ModelBlocked):
        meter._begin(ask(model="openai/large"), run)
    with budget_run("job", meter=meter, context={"plan": ["free"]}) as run:  # unhashable, and none of the two
        meter._begin(ask(model="openai/large"), run)


def test_a_bedrock_id_is_seen_through_too() -> None:
    meter = Meter(prices=Prices(fallback=(1, 1), catalogue=False), policies=({}, ["claude-opus-*"]))
    with pytest.raises(ModelBlocked):
        meter._begin(ask(model="us.anthropic.claude-opus-4-20250514-v1:0"), None)


def test_a_run_says_the_context_of_its_calls() -> None:
    meter = meter_of(policies=[FREE, ({"user": "bob"}, ["small"])])
    with budget_run("outer", meter=meter, context={"plan": "free"}), budget_run("inner", user="ann") as run:
        with pytest.raises(ModelBlocked):
            meter._begin(ask(model="large"), run)
        meter._begin(ask(), run)
        with meter.call("large", input_tokens=1, context={"plan": "paid"}) as call:  # the call's own word counts
            call.release()
    with budget_run("bob's", user="bob", meter=meter) as run, pytest.raises(ModelBlocked):
        meter._begin(ask(), run)


# ---------------------------------------------------------------- listening


def test_each_call_is_told_as_it_ended() -> None:
    pool = BudgetPool(usd_cap=1, token_cap=3900)
    meter = meter_of(pool, timeout=0)
    records: list[CallRecord] = []
    unsubscribe = meter.subscribe(records.append)
    held(meter).settle(reading(model="large"))
    held(meter).charge()
    held(meter).release()
    with pytest.raises(BudgetExceeded):
        held(meter, ask(2000))
    unsubscribe()
    held(meter, ask(1, 1)).charge()
    assert [(one.status, one.model, one.usd_nanos, one.tokens, one.error) for one in records] == [
        ("settled", "large", 12_000_000, 900, None),
        ("charged", "small", WORST, 1500, None),
        ("released", "small", 0, 0, None),
        ("refused", "small", 0, 0, "BudgetExceeded"),
    ]
    assert {(one.operation, one.provider, one.run, one.user) for one in records} == {("chat", "openai", None, None)}
    assert all(0 <= one.seconds < 5 for one in records)


def test_a_refusal_before_the_pool_is_told_too() -> None:
    meter = meter_of()
    records: list[CallRecord] = []
    meter.subscribe(records.append)
    with pytest.raises(UnknownModel):
        meter._begin(ask(model="unheard-of"), None)
    meter._refused(ask(), None, ModelBlocked("no"))
    assert [(one.status, one.model, one.error) for one in records] == [
        ("refused", "unheard-of", "UnknownModel"),
        ("refused", "small", "ModelBlocked"),
    ]


def test_a_listener_that_raises_stops_neither_the_call_nor_the_others(caplog: pytest.LogCaptureFixture) -> None:
    meter = meter_of(BudgetPool())
    heard: list[CallRecord] = []

    def fail(_record: CallRecord) -> None:
        raise RuntimeError("listener")

    meter.subscribe(fail)
    end = meter.subscribe(heard.append)
    meter.subscribe(heard.append)
    held(meter).charge()
    assert "a subscriber of the meter raised" in caplog.text
    assert len(heard) == 2
    end()
    end()
    held(meter).charge()
    assert len(heard) == 3


def test_a_listener_has_to_be_an_ordinary_function() -> None:
    async def listen(_record: CallRecord) -> None: ...

    with pytest.raises(TypeError):
        meter_of().subscribe(listen)


# ---------------------------------------------------------------- record


def test_what_was_spent_is_recorded_in_every_pool() -> None:
    total = BudgetPool()
    users = total.keyed()
    meter = meter_of(total)
    with budget_run("job", meter=meter) as run:
        assert meter.record("small", answer(), pool=users["ann"]) is None
        assert meter.record("small", input_tokens=800, output_tokens=100) is None
        assert meter.record("small", Usage(input_tokens=800), pool=users["ann"]) is None
        assert meter.record("small", usd=Decimal("0.5")) is None
        assert meter.record("unheard-of", input_tokens=1, usd=1) is None
    assert used(users["ann"]) == (1700, 2_000_000, 0)
    assert used(total) == used(run.pool) == (2601, 3_200_000 + 1_500_000_000, 0)
    assert run.report()["call_count"] == 5


def test_a_task_records_without_blocking_on_a_store() -> None:
    store, pool = StorePool(BudgetPool(usd_cap=0.001)), BudgetPool()
    meter = meter_of(pool)

    async def main() -> None:
        async with budget_run("job", meter=meter) as run:
            overrun = await meter.arecord("small", answer(), pool=store)
            assert isinstance(overrun, BudgetOverrun)
            with pytest.raises(UnknownModel):
                await meter.arecord("unheard-of", answer(), pool=store)
            store.down = BudgetUnavailable("gone")
            with pytest.raises(BudgetUnavailable):
                await meter.arecord("small", answer(), pool=store)
            assert await meter_of(on_error="allow").arecord("small", answer(), pool=store) is None
            assert run.report()["call_count"] == 4

    asyncio.run(main())
    assert store.suspended == 4
    assert used(store.inner) == (1800, 1_200_000, 0)
    assert used(pool)[:2] == (3600, 3_600_000)


def test_an_overrun_is_returned_and_recorded() -> None:
    pool = BudgetPool(usd_cap=0.001)
    overrun = meter_of(pool).record("small", answer())
    assert isinstance(overrun, BudgetOverrun)
    assert used(pool) == (900, 1_200_000, 0)


def test_the_tokens_of_an_unknown_model_are_recorded_before_it_is_refused() -> None:
    pool = BudgetPool()
    meter = meter_of(pool)
    with budget_run("job", meter=meter) as run, pytest.raises(UnknownModel):
        meter.record("unheard-of", answer())
    assert used(pool) == (900, 0, 0)
    assert run.report()["tokens"] == 900


def test_an_answer_without_usage_is_refused_and_its_dollars_recorded() -> None:
    pool = BudgetPool()
    meter = meter_of(pool)
    with pytest.raises(UnknownUsage):
        meter.record("small", {"hello": "world"})
    assert used(pool) == (0, 0, 0)
    with pytest.raises(UnknownUsage):
        meter.record("small", {"hello": "world"}, usd=0.25)
    assert used(pool) == (0, 250_000_000, 0)


def test_a_closed_or_stopped_budget_records_what_happened() -> None:
    total = BudgetPool()
    user, project = total.child(), total.child()
    meter = meter_of(project)
    with budget_run("job", pool=user, meter=meter) as run:
        run.stop()
        meter.record("small", answer())
    project.close()
    meter.record("small", answer())
    assert used(project) == used(total) == (1800, 2_400_000, 0)
    assert used(user) == used(run.pool) == (900, 1_200_000, 0)


def test_an_outage_is_raised_once_all_other_pools_know() -> None:
    store, pool = StorePool(BudgetPool()), BudgetPool()
    store.down = BudgetUnavailable("gone")
    with budget_run("job", meter=meter_of(pool)) as run:
        with pytest.raises(BudgetUnavailable):
            run.meter.record("small", answer(), pool=store)
        assert meter_of(pool, on_error="allow").record("small", answer(), pool=store) is None
    assert used(pool) == (1800, 2_400_000, 0)
    assert run.report()["call_count"] == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, TypeError),
        ({"answer": answer(), "input_tokens": 1}, TypeError),
        ({"input_tokens": -1}, ValueError),
        ({"output_tokens": 1.5}, TypeError),
        ({"usd": -1}, ValueError),
        ({"usd": "1"}, TypeError),
        ({"input_tokens": 1, "pool": "ann"}, TypeError),
    ],
)
def test_bad_arguments_record_nothing(arguments: dict[str, Any], error: type[Exception]) -> None:
    pool = BudgetPool()
    with pytest.raises(error):
        meter_of(pool).record("small", **arguments)
    with pytest.raises(TypeError):
        meter_of(pool).record(None, answer())  # type: ignore[arg-type]
    assert used(pool) == (0, 0, 0)


# ---------------------------------------------------------------- the rest


def test_a_quote_is_what_the_prices_say() -> None:
    assert meter_of().quote("small", 1000, 500) == Decimal("0.003")
    assert meter_of().quote("large", 1000) == Decimal("0.01")
    assert meter_of().quote("small", 1000, 500, service_tier="priority") == Decimal("0.006")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"pool": 3}, TypeError),
        ({"prices": 3}, TypeError),
        ({"default_output": 1.5}, TypeError),
        ({"default_output": -1}, ValueError),
        ({"cap_output": "yes"}, ValueError),
        ({"cap_output": 1}, ValueError),
        ({"broken": "half"}, ValueError),
        ({"broken": None}, ValueError),
        ({"unmetered": "maybe"}, ValueError),
        ({"on_error": True}, ValueError),
        ({"estimate": "exact"}, ValueError),
        ({"timeout": "30"}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"policies": 3}, TypeError),
        ({"policies": None}, TypeError),
        ({"policies": [({"plan": "free"}, "gpt-5*")]}, TypeError),
        ({"policies": ({"plan": "free"}, [5])}, TypeError),
        ({"policies": {"plan": "free"}}, TypeError),
        ({"policies": "gpt-5"}, TypeError),
    ],
)
def test_bad_arguments_of_a_meter_raise_at_once(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Meter(**arguments)


def test_a_meter_shows_what_it_was_told() -> None:
    pool = BudgetPool(usd_cap=1, name="day")
    meter = Meter(pool, {"small": (1, 4)}, default_output=100, unmetered="allow", estimate="bytes", timeout=None)
    assert meter.pool is pool
    assert meter.prices.quote("small", 10**6) == 1
    assert (meter.default_output, meter.unmetered, meter.estimate) == (100, "allow", "bytes")
    assert "day" in repr(meter)
    own = prices()
    assert Meter(prices=own).prices is own
    assert isinstance(Meter().prices, Prices)


@pytest.mark.parametrize("module", ["_meter", "_block"])
def test_the_examples_of_the_docstrings_run(module: str) -> None:
    found = doctest.testmod(importlib.import_module(f"token_budget.metering.{module}"))
    assert found.attempted > 0
    assert found.failed == 0
