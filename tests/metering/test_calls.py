"""A call by hand: held while its block runs, charged in full unless it is settled, counted once."""

from __future__ import annotations

import asyncio
import string
import threading
import types
from collections import UserString, deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from meters import StorePool, answer, meter_of, used
from token_budget import BudgetExceeded, BudgetOverrun, BudgetPool
from token_budget.metering import Call, Meter, UnknownModel, Usage
from token_budget.metering._call import texts
from token_budget.metering._run import _metering_off, metering_is_off

WORST = 3_000_000  # 1,000 tokens of input and 500 of output of "small"


def call_of(pool: Any, **settings: Any) -> Call:
    return meter_of(pool, **settings).call("small", input_tokens=1000, max_output_tokens=500)


@pytest.mark.parametrize(
    "given",
    [
        Usage(input_tokens=800, output_tokens=100),
        {"usage": {"prompt_tokens": 800, "completion_tokens": 100}},
        {"model": "small-unheard-of", "usage": {"input_tokens": 800, "output_tokens": 100}},
    ],
)
def test_a_call_is_held_in_its_block_and_settled_by_its_answer(given: Any) -> None:
    pool = BudgetPool(usd_cap=1)
    call = call_of(pool)
    assert (call.model, call.max_output_tokens, call.usd, call.overrun) == ("small", 500, None, None)
    assert used(pool) == (0, 0, 0)
    with call as entered:
        assert entered is call
        assert pool.snapshot().usd_reserved_nanos == WORST
        assert call.usd == 0.003
        assert call.settle(given) is None
        assert used(pool) == (900, 1_200_000, 0)
    assert used(pool) == (900, 1_200_000, 0)


def test_tasks_do_the_same_and_block_on_no_store() -> None:
    store = StorePool(BudgetPool(usd_cap=1))

    async def main() -> None:
        async with call_of(store) as call:
            assert await call.asettle(answer()) is None
        async with call_of(store) as call:
            assert await call.asettle({"no": "usage"}) is None
        async with call_of(store):
            pass
        async with call_of(store) as call:
            call.settle(answer())

    asyncio.run(main())
    assert store.suspended == 7
    assert used(store.inner) == (900 * 2 + 1500 * 2, 2 * 1_200_000 + 2 * WORST, 0)


def test_a_block_that_is_left_without_settling_is_charged_in_full() -> None:
    pool = BudgetPool(usd_cap=1)
    kept = [call_of(pool) for _ in range(4)]  # so that it is the leaving, and no finaliser, that charges them
    with kept[0]:
        pass
    assert used(pool) == (1500, WORST, 0)
    with pytest.raises(ZeroDivisionError), kept[1]:
        raise ZeroDivisionError
    assert used(pool) == (3000, 2 * WORST, 0)

    async def main() -> None:
        async with kept[2]:
            pass
        with pytest.raises(ZeroDivisionError):
            async with kept[3]:
                raise ZeroDivisionError

    asyncio.run(main())
    assert used(pool) == (6000, 4 * WORST, 0)


def test_a_task_that_is_cancelled_in_the_block_is_charged_in_full() -> None:
    pool = BudgetPool(usd_cap=1)

    async def work() -> None:
        async with call_of(pool):
            await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert used(pool) == (1500, WORST, 0)


def test_release_says_that_nothing_was_sent() -> None:
    pool = BudgetPool(usd_cap=1)
    with pytest.raises(ZeroDivisionError), call_of(pool) as call:
        call.release()
        call.settle(answer())  # the first word counts
        raise ZeroDivisionError
    assert used(pool) == (0, 0, 0)


def test_an_overrun_is_returned_and_raises_nothing() -> None:
    pool = BudgetPool(usd_cap=0.004)
    with call_of(pool) as call:
        overrun = call.settle(answer(output_tokens=2000))
    assert isinstance(overrun, BudgetOverrun)
    assert call.overrun is overrun
    assert used(pool)[1] == 8_800_000
    with pytest.raises(BudgetExceeded), call_of(pool):
        pass


@pytest.mark.parametrize("given", [None, "text", {"usage": None}, {"usage": {"prompt_tokens": -5}}, object(), 10**30])
def test_an_answer_without_usage_is_charged_in_full(given: Any, caplog: pytest.LogCaptureFixture) -> None:
    pool = BudgetPool(usd_cap=1)
    with call_of(pool) as call:
        assert call.settle(given) is None
    assert used(pool) == (1500, WORST, 0)
    assert "charged in full" in caplog.text


def test_a_hostile_answer_is_charged_in_full_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    class Hostile:
        def __getattribute__(self, name: str) -> Any:
            raise ZeroDivisionError("secret prompt")

    pool = BudgetPool(usd_cap=1)
    with call_of(pool) as call:
        assert call.settle(Hostile()) is None
    assert used(pool) == (1500, WORST, 0)
    assert "secret" not in caplog.text


def test_refusals_come_as_the_block_is_entered() -> None:
    pool = BudgetPool(usd_cap=0.001)
    call = call_of(pool, timeout=0)
    with pytest.raises(BudgetExceeded):
        call.__enter__()
    with pytest.raises(BudgetExceeded):
        asyncio.run(call.__aenter__())
    assert not metering_is_off()
    pool.set_caps(usd_cap=1)
    with call:  # it was never entered
        call.release()
    unknown = meter_of(pool).call("unheard-of", input_tokens=1)
    with pytest.raises(UnknownModel), unknown:
        pass


def test_a_block_is_entered_once() -> None:
    pool = BudgetPool()
    call = call_of(pool)
    with pytest.raises(RuntimeError, match="holds nothing yet"):
        call.settle(answer())
    with pytest.raises(RuntimeError, match="holds nothing yet"):
        call.release()
    with pytest.raises(RuntimeError):
        asyncio.run(call.asettle(answer()))
    with call:
        call.release()
    with pytest.raises(RuntimeError, match="entered once"):
        call.__enter__()


def test_without_a_limit_the_meter_s_default_is_held() -> None:
    meter = meter_of(BudgetPool(), default_output=700)
    with meter.call("small", input_tokens=1000) as call:
        assert (call.max_output_tokens, call.usd) == (700, 0.0038)
        call.release()
    with meter.call("small", input_tokens=1000, max_output_tokens=0) as call:
        assert (call.max_output_tokens, call.usd) == (0, 0.001)
        call.release()


def test_the_limit_may_be_what_the_budget_still_pays_for() -> None:
    meter = meter_of(BudgetPool(usd_cap=0.0091), cap_output="fit")
    with meter.call("small", input_tokens=1000) as call:
        assert call.max_output_tokens == 2025
        call.release()


def test_a_call_counts_against_a_pool_of_its_own_too() -> None:
    total = BudgetPool()
    users = total.keyed(usd_cap=0.0035)
    meter = meter_of(total, timeout=0)
    with meter.call("small", input_tokens=1000, max_output_tokens=500, pool=users["ann"]) as call:
        call.settle(answer())
    assert used(users["ann"]) == used(total) == (900, 1_200_000, 0)
    with pytest.raises(BudgetExceeded) as caught:
        meter.call("small", input_tokens=1000, max_output_tokens=500, pool=users["ann"]).__enter__()
    assert caught.value.pool == "ann"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"model": None}, TypeError),
        ({"input_tokens": "5"}, TypeError),
        ({"input_tokens": True}, TypeError),
        ({"input_tokens": -5}, ValueError),
        ({"max_output_tokens": 1.5}, TypeError),
        ({"pool": "ann"}, TypeError),
        ({"context": "free"}, TypeError),
    ],
)
def test_bad_arguments_raise_at_once(arguments: dict[str, Any], error: type[Exception]) -> None:
    given: Any = {"model": "small", "input_tokens": 5, **arguments}
    with pytest.raises(error):
        meter_of().call(**given)
    with pytest.raises(error):
        meter_of().check(**given)


# ---------------------------------------------------------------- the hooks are off inside


def test_the_hooks_are_off_until_the_call_is_settled() -> None:
    for end in ("settle", "release"):
        with call_of(BudgetPool()) as call:
            assert metering_is_off()
            assert _metering_off.get()
            getattr(call, end)(*([answer()] if end == "settle" else []))
            assert not metering_is_off()
        assert _metering_off.get() is None
    with call_of(BudgetPool()):
        pass
    assert not metering_is_off()


def test_a_block_inside_a_block_gives_back_the_outer_one_s_word() -> None:
    with call_of(BudgetPool()):
        with call_of(BudgetPool()):
            pass
        assert metering_is_off()


def test_a_task_that_outlives_the_block_is_metered_again() -> None:
    seen: list[bool] = []

    async def later(done: asyncio.Event) -> None:
        seen.append(metering_is_off())
        await done.wait()
        seen.append(metering_is_off())

    async def main() -> None:
        done = asyncio.Event()
        async with call_of(BudgetPool()) as call:
            task = asyncio.create_task(later(done))
            await asyncio.sleep(0)
            await call.asettle(answer())
        done.set()
        await task

    asyncio.run(main())
    assert seen == [True, False]


def test_a_block_that_is_left_in_another_context_raises_nothing() -> None:
    pool = BudgetPool()

    async def stream() -> AsyncGenerator[int, None]:
        async with call_of(pool):
            yield 1

    async def main() -> None:
        generator = stream()
        await asyncio.create_task(anext(generator))
        assert not metering_is_off()
        await asyncio.create_task(generator.aclose())

    asyncio.run(main())
    assert used(pool) == (1500, WORST, 0)


# ---------------------------------------------------------------- decorated functions


def test_a_decorated_function_is_metered_by_its_answer() -> None:
    pool = BudgetPool()
    meter = meter_of(pool)

    @meter.metered("small", input_tokens=1000, max_output_tokens=500)
    def work(text: str, *, fail: bool = False) -> dict[str, Any]:
        """Work."""
        assert metering_is_off()
        assert pool.snapshot().usd_reserved_nanos == WORST
        if fail:
            raise ValueError(text)
        return answer()

    assert work("hello") == answer()
    assert used(pool) == (900, 1_200_000, 0)
    assert (work.__name__, work.__doc__) == ("work", "Work.")
    with pytest.raises(ValueError, match="hello"):
        work("hello", fail=True)
    assert used(pool) == (2400, 1_200_000 + WORST, 0)


def test_a_decorated_coroutine_function_too() -> None:
    store = StorePool(BudgetPool())

    @meter_of(store).metered("small", input_tokens=1000, max_output_tokens=500)
    async def work() -> dict[str, Any]:
        await asyncio.sleep(0)
        return answer()

    assert asyncio.run(work()) == answer()
    assert store.suspended == 2
    assert used(store.inner) == (900, 1_200_000, 0)


def test_each_argument_may_be_told_by_those_of_the_call() -> None:
    total = BudgetPool()
    users = total.keyed()
    meter = meter_of(total)

    @meter.metered(
        lambda user, size: f"{size}",
        input_tokens=lambda user, size: len(user) * 100,
        max_output_tokens=lambda user, size: 50,
        pool=lambda user, size: users[user],
    )
    def work(user: str, size: str) -> None:
        """Return nothing that is an answer."""

    work("ann", "large")
    assert used(users["ann"]) == used(total) == (350, 300 * 10_000 + 50 * 40_000, 0)


@pytest.mark.parametrize(("estimate", "tokens"), [("bytes", 27), ("typical", 11)])
def test_the_text_of_the_arguments_is_the_input_if_nothing_else_is_said(estimate: Any, tokens: int) -> None:
    pool = BudgetPool()

    @meter_of(pool, estimate=estimate).metered("small", max_output_tokens=0)
    def work(prompt: str, number: int, *, messages: Any) -> None:
        assert pool.snapshot().tokens_reserved == tokens

    work("a prompt", 5, messages=[{"role": b"text"}])


class Message:
    """A message as frameworks have them."""

    def __init__(self, content: Any, **more: Any) -> None:
        self.content = content
        self._cache = "private " * 1000
        self.__dict__.update(more)


@dataclass
class Agent:
    history: list[Any]
    model: type = Message
    lock: Any = field(default_factory=threading.Lock)


def test_text_in_the_fields_of_objects_counts() -> None:
    parts = [Message("b"), types.SimpleNamespace(text="c"), {"d"}, frozenset("e"), deque("f")]
    agent = Agent(
        [Message(parts), b"g", iter(["no"]), print, Message, Path("no"), UserString("h"), string.Template("i")]
    )
    found = texts(((agent,), {"key": Message("a")}))
    assert sorted(found) == ["a", "b", "c", "d", "e", "f", "g", "h", "i", "key"]
    deep: Any = "too deep"
    for depth in range(5, 0, -1):
        deep = Message(deep, name=str(depth))
    assert texts(deep) == ["1", "2", "3", "4"]


def test_arguments_that_refer_to_themselves_end() -> None:
    root: dict[str, Any] = {"text": "hi", "children": []}
    root["children"] += [{"parent": root}, Message("there", parent=root)]
    assert sorted(texts(root)) == ["children", "hi", "parent", "text", "there"]


def test_a_decorated_function_is_held_for_the_output_that_nothing_limits() -> None:
    pool = BudgetPool(usd_cap=0.02)

    @Meter(pool, {"small": (1, 4)}, cap_output="fit", timeout=0).metered("small", input_tokens=0)
    def work() -> dict[str, Any]:
        assert pool.snapshot().tokens_reserved == 4096
        with pytest.raises(BudgetExceeded):
            work()
        return answer(0, 4096)

    work()
    assert used(pool)[0] == 4096


def test_what_is_no_function_cannot_be_metered() -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def asynchronous() -> AsyncIterator[int]:
        yield 1

    for wrong in (generator, asynchronous, 5):
        with pytest.raises(TypeError):
            meter_of().metered("small", input_tokens=1)(wrong)  # type: ignore[type-var]


def test_an_object_that_can_be_called_is_metered_as_what_it_is() -> None:
    class Model:
        async def __call__(self) -> dict[str, Any]:
            return answer()

    pool = BudgetPool()
    model: Any = Model()
    assert asyncio.run(meter_of(pool).metered("small", input_tokens=1000)(model)()) == answer()
    assert used(pool) == (900, 1_200_000, 0)


# ---------------------------------------------------------------- together


def test_calls_of_many_threads_never_pass_the_cap() -> None:
    pool = BudgetPool(usd_cap=0.05)
    meter = meter_of(pool, timeout=0)
    refused = []
    lock = threading.Lock()

    def work() -> None:
        for number in range(20):
            try:
                with meter.call("small", input_tokens=1000, max_output_tokens=500) as call:
                    snapshot = pool.snapshot()
                    assert snapshot.usd_used_nanos + snapshot.usd_reserved_nanos <= 50_000_000
                    if number % 3:
                        call.settle(answer())
            except BudgetExceeded as error:
                with lock:
                    refused.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert refused
    assert used(pool)[1] <= 50_000_000
    assert used(pool)[2] == 0


def test_calls_of_many_tasks_wait_for_each_other() -> None:
    pool = BudgetPool(usd_cap=0.03)
    meter = meter_of(pool)

    async def work() -> None:
        async with meter.call("small", input_tokens=1000, max_output_tokens=500) as call:
            await asyncio.sleep(0.001)
            await call.asettle(Usage(input_tokens=100, output_tokens=25))

    async def main() -> None:
        await asyncio.gather(*(work() for _ in range(100)))

    asyncio.run(main())
    assert used(pool) == (12_500, 20_000_000, 0)
