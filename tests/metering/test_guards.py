"""Guards refuse the next call where the last ones look like a loop."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from meters import ask, meter_of
from token_budget import BudgetExceeded, BudgetPool
from token_budget.metering import LoopDetected, Meter, Run, budget_run
from token_budget.metering._guards import Guards

if TYPE_CHECKING:
    from token_budget.metering._ask import Ask


def admitted(guards: Guards, *asks: Ask) -> list[bool]:
    """Return for each call whether it was let through."""
    answers = []
    for one in asks:
        try:
            guards.admit(one)
        except LoopDetected:
            answers.append(False)
        else:
            answers.append(True)
    return answers


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_so_many_calls_may_begin_in_any_minute(clock: list[float]) -> None:
    guards = Guards(calls_per_minute=3)
    assert guards.active
    for _ in range(3):
        guards.admit(ask())
        clock[0] += 10
    with pytest.raises(LoopDetected, match=r"more than 3 calls in a minute \(calls_per_minute=3\)"):
        guards.admit(ask())
    clock[0] = 1059.9
    assert admitted(guards, ask()) == [False]  # what is refused does not count
    clock[0] = 1060
    assert admitted(guards, ask(), ask()) == [True, False]
    clock[0] = 1070
    assert admitted(guards, ask(), ask()) == [True, False]


def inputs(*tokens: int, **more: Any) -> list[Ask]:
    return [ask(one, **more) for one in tokens]


def test_input_that_grows_by_the_share_over_calls_in_a_row_is_a_loop() -> None:
    assert admitted(Guards(growth=(0.5, 3)), *inputs(100, 120, 150)) == [True, True, False]
    assert admitted(Guards(growth=(0.5, 3)), *inputs(100, 120, 149)) == [True, True, True]
    assert admitted(Guards(growth=(0.5, 2)), *inputs(100, 150)) == [True, False]
    assert admitted(Guards(growth=(1, 4)), *inputs(100, 150, 199, 250, 299)) == [True, True, True, False, False]
    assert Guards(growth=(0.5, 3)).active


def test_input_that_does_not_grow_each_time_is_none() -> None:
    assert admitted(Guards(growth=(0.5, 3)), *inputs(100, 100, 1000)) == [True, True, True]
    assert admitted(Guards(growth=(0.5, 3)), *inputs(100, 200, 190, 250, 251)) == [True] * 5
    assert all(admitted(Guards(growth=(0.5, 3)), *inputs(*[100, 1000] * 10)))


def test_a_loop_of_growth_is_over_with_a_smaller_input() -> None:
    guards = Guards(growth=(0.5, 3))
    assert admitted(guards, *inputs(100, 130, 160, 170, 110, 120, 170)) == [True, True, False, False, True, True, False]
    with pytest.raises(LoopDetected, match="grew from 110 to 1,700 tokens over 3 calls in a row"):
        guards.admit(ask(1700))


def test_retries_of_the_sdk_count_for_no_growth() -> None:
    guards = Guards(growth=(0.5, 3))
    assert admitted(guards, *inputs(100), *inputs(120, retried=True), *inputs(150)) == [True, True, True]
    assert admitted(guards, *inputs(1000, retried=True)) == [True]
    assert admitted(guards, *inputs(1000)) == [False]


def test_the_same_request_may_be_sent_so_often() -> None:
    guards = Guards(repeats=2)
    same = ask(body=b"same")
    assert admitted(guards, same, ask(body=b"other"), same) == [True, True, True]
    with pytest.raises(LoopDetected, match=r"the same request, 3 times \(repeats=2\)"):
        guards.admit(same)
    assert admitted(guards, ask(body=b"other")) == [True]


def test_a_request_is_the_same_only_of_the_same_model_and_operation() -> None:
    guards = Guards(repeats=1)
    first = ask(body=b"same")
    embedding = ask(body=b"same")
    embedding.operation = "embeddings"
    elsewhere = ask(body=b"same")
    elsewhere.provider = "azure"
    assert admitted(guards, first, ask(body=b"same", model="large"), embedding, elsewhere) == [True] * 4
    assert admitted(guards, first, ask(body=b"same", model="large"), embedding, elsewhere) == [False] * 4


def test_retries_of_the_sdk_and_calls_without_a_body_are_no_repeats() -> None:
    guards = Guards(repeats=1)
    assert admitted(guards, ask(body=b"same"), ask(body=b"same", retried=True), ask(), ask()) == [True] * 4
    assert admitted(guards, ask(body=b"same")) == [False]


def test_no_body_is_kept_and_no_more_than_the_latest_digests() -> None:
    guards = Guards(repeats=1)
    for number in range(1500):
        guards.admit(ask(body=b"%d" % number))
    assert len(guards._seen) == 1000
    assert all(len(key) == 16 for key in guards._seen)
    assert admitted(guards, ask(body=b"1499"), ask(body=b"0")) == [False, True]


def test_the_latest_repeat_is_remembered_longest() -> None:
    guards = Guards(repeats=2)
    guards.admit(ask(body=b"same"))
    for number in range(999):
        guards.admit(ask(body=b"%d" % number))
    guards.admit(ask(body=b"same"))
    for number in range(999):
        guards.admit(ask(body=b"%d, again" % number))
    assert admitted(guards, ask(body=b"same")) == [False]


def test_looking_counts_nothing() -> None:
    guards = Guards(calls_per_minute=1, growth=(0.5, 2), repeats=1)
    for _ in range(3):
        guards.look(ask(body=b"same"))
    guards.admit(ask(body=b"same"))
    with pytest.raises(LoopDetected):
        guards.look(ask(body=b"other"))


def test_guards_that_are_off_are_not_active() -> None:
    assert not Guards().active
    assert admitted(Guards(), *inputs(1, 10, 100, 1000, body=b"same")) == [True] * 4


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"calls_per_minute": 0}, ValueError),
        ({"calls_per_minute": 1.5}, TypeError),
        ({"calls_per_minute": True}, TypeError),
        ({"repeats": 0}, ValueError),
        ({"repeats": "3"}, TypeError),
        ({"growth": 0.5}, TypeError),
        ({"growth": (0.5,)}, TypeError),
        ({"growth": (0.5, 3, 4)}, TypeError),
        ({"growth": (0, 3)}, ValueError),
        ({"growth": (float("nan"), 3)}, ValueError),
        ({"growth": (float("inf"), 3)}, ValueError),
        ({"growth": ("half", 3)}, TypeError),
        ({"growth": (True, 3)}, TypeError),
        ({"growth": (0.5, 1)}, ValueError),
        ({"growth": (0.5, 2.5)}, TypeError),
        ({"growth": (0.5, None)}, TypeError),
    ],
)
def test_bad_guards_raise_as_the_run_is_described(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        budget_run("job", **arguments)


# ---------------------------------------------------------------- in runs


def test_a_loop_is_refused_before_anything_is_held_and_reported() -> None:
    pool = BudgetPool()
    meter = meter_of(pool)
    with budget_run("job", meter=meter, repeats=1) as run:
        meter._begin(ask(body=b"same"), run)
        with pytest.raises(LoopDetected):
            meter._begin(ask(body=b"same"), run)
        assert json.loads(json.dumps(run.report()))["refused"] == 1
    assert pool.snapshot().in_flight == 0


def test_the_guards_of_the_outer_run_hold_for_the_inner_one() -> None:
    meter = meter_of()
    with budget_run("outer", meter=meter, calls_per_minute=2), budget_run("inner", calls_per_minute=5) as inner:
        meter._begin(ask(), inner)
        meter._begin(ask(), inner)
        with pytest.raises(LoopDetected, match="calls_per_minute=2"):
            meter._begin(ask(), inner)
        assert len(inner._guards._times) == 2  # what the outer run refused, the inner one does not count


def test_what_the_inner_run_refuses_the_outer_one_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int | None] = []
    admit = Guards.admit

    def counting(guards: Guards, call: Ask) -> Any:
        counted.append(guards.calls_per_minute)
        return admit(guards, call)

    monkeypatch.setattr(Guards, "admit", counting)
    meter = meter_of()
    with (
        budget_run("outer", meter=meter, calls_per_minute=2) as outer,
        budget_run("inner", calls_per_minute=1) as inner,
    ):
        meter._begin(ask(), inner)
        for _ in range(5):
            with pytest.raises(LoopDetected, match="calls_per_minute=1"):
                meter._begin(ask(), inner)
        meter._begin(ask(), outer)
    assert counted == [2, 1, 2]  # also not for a moment


def test_what_another_thread_s_call_in_between_makes_refused_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = meter_of()
    with (
        budget_run("outer", meter=meter, calls_per_minute=2) as outer,
        budget_run("inner", calls_per_minute=1) as inner,
    ):
        meter._begin(ask(), inner)
        monkeypatch.setattr(Guards, "look", lambda *_: None)  # as it was before the other's call
        with pytest.raises(LoopDetected, match="calls_per_minute=1"):
            meter._begin(ask(), inner)
        assert len(outer._guards._times) == 1


@pytest.mark.parametrize("guard", [{"repeats": 1}, {"calls_per_minute": 2}])
def test_a_call_that_the_pool_refuses_is_not_counted(guard: dict[str, Any]) -> None:
    meter = meter_of(BudgetPool(usd_cap=0.004), timeout=0)
    with budget_run("job", meter=meter, **guard) as run:
        blocker = meter._begin(ask(100, 900, body=b"other"), run)
        blocker.hold()
        for _ in range(3):
            refused = meter._begin(ask(1000, body=b"same"), run)
            with pytest.raises(BudgetExceeded):
                refused.hold()
            asyncio.run(refused_too(meter, run))
        blocker.release()
        meter._begin(ask(1000, body=b"same"), run).hold()
        with pytest.raises(LoopDetected):
            meter._begin(ask(1000, body=b"same"), run)


def test_input_that_was_never_sent_grows_nothing() -> None:
    meter = meter_of(BudgetPool(usd_cap=0.004), timeout=0)
    with budget_run("job", meter=meter, growth=(0.5, 3)) as run:
        blocker = meter._begin(ask(100, 900), run)
        blocker.hold()
        for tokens in (500, 600, 700):
            with pytest.raises(BudgetExceeded):
                meter._begin(ask(tokens), run).hold()
        assert list(run._guards._inputs) == [100]


async def refused_too(meter: Meter, run: Run) -> None:
    with pytest.raises(BudgetExceeded):
        await meter._begin(ask(1000, body=b"same"), run).ahold()


def test_a_call_that_is_cancelled_while_it_waits_for_room_is_not_counted_and_not_refused() -> None:
    meter = meter_of(BudgetPool(usd_cap=0.004), timeout=None)

    async def main() -> None:
        with budget_run("job", meter=meter, calls_per_minute=2) as run:
            blocker = meter._begin(ask(), run)
            blocker.hold()
            for _ in range(3):
                waiting = asyncio.create_task(meter._begin(ask(), run).ahold())
                await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            assert len(run._guards._times) == 1
            assert run.report()["refused"] == 0
            blocker.release()

    asyncio.run(main())


def test_what_was_counted_is_given_back_and_nothing_else() -> None:
    guards = Guards(repeats=1, growth=(0.5, 3), calls_per_minute=5)
    counted = guards.admit(ask(100, body=b"same"))
    guards.withdraw(ask(100, body=b"same"), counted)
    assert (len(guards._times), len(guards._inputs)) == (0, 0)
    retried = ask(100, body=b"same", retried=True)
    guards.withdraw(retried, guards.admit(retried))
    assert len(guards._times) == 0
    counted = guards.admit(ask(100, body=b"kept"))
    guards._seen.clear()  # as by a thousand other requests
    guards.withdraw(ask(100, body=b"kept"), counted)


def test_each_entering_of_a_block_has_guards_of_its_own() -> None:
    meter = meter_of()
    block = budget_run("job", meter=meter, repeats=1)
    for _ in range(2):
        with block as run:
            meter._begin(ask(body=b"same"), run)


def test_calls_by_hand_are_guarded_too() -> None:
    meter = meter_of(BudgetPool())
    with budget_run("job", meter=meter, growth=(0.5, 3)):
        for tokens in (1000, 1200):
            with meter.call("small", input_tokens=tokens) as call:
                call.release()
        with pytest.raises(LoopDetected), meter.call("small", input_tokens=1600):
            pass
