"""Thresholds count usage, fire exactly once, and are armed again when there is something new to report."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from shapes import SHAPES, WAYS, Clock
from support import run_together
from token_budget import BudgetOverrun, BudgetPool, Window

DAY = 86_400


def watched(shape: str, share: float = 0.8, **settings: Any) -> tuple[BudgetPool, BudgetPool, list[Any]]:
    """Return the pool to ask, the pool with the threshold, and a list of the usage at each time that it fired."""
    asked, pool = SHAPES[shape](**settings)
    told: list[Any] = []
    pool.on_threshold(share, lambda event: told.append(event.snapshot.usd_used or event.snapshot.tokens_used))
    return asked, pool, told


@pytest.mark.parametrize("shape", SHAPES)
def test_a_large_hold_that_costs_little_does_not_fire_a_threshold(shape: str) -> None:
    asked, _pool, told = watched(shape, usd_cap=100)
    held = asked.reserve(usd=85)
    with asked.reserve(usd=15):
        pass
    held.commit(usd=1)
    assert told == []
    for _ in range(90):
        asked.record(usd=1)
    assert told == [80]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_threshold_fires_once_when_usage_reaches_the_share(shape: str, way: str) -> None:
    asked, _pool, told = watched(shape, token_cap=10)
    for used in range(1, 11):
        WAYS[way](asked, tokens=1)
        assert told == ([] if used < 8 else [8])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_hold_does_not_make_a_threshold_fire_earlier(shape: str) -> None:
    asked, pool, told = watched(shape, token_cap=10)
    asked.record(tokens=7)
    with asked.reserve(tokens=3) as reservation:
        assert told == []
        reservation.commit(tokens=0)
    assert told == []
    with pytest.raises(BudgetOverrun):
        asked.record(tokens=4, force=True)
    assert told == [11]
    assert pool.snapshot().tokens_used == 11


@pytest.mark.parametrize("shape", SHAPES)
def test_a_raised_cap_arms_a_threshold_again(shape: str) -> None:
    asked, pool, told = watched(shape, usd_cap=10)
    asked.record(usd=8.5)
    assert told == [8.5]
    pool.set_caps(usd_cap=20)
    for _ in range(11):
        asked.record(usd=1)
    assert told == [8.5, 16.5]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_raised_cap_whose_share_is_below_usage_does_not_arm_a_threshold(shape: str) -> None:
    asked, pool, told = watched(shape, usd_cap=10)
    asked.record(usd=9)
    pool.set_caps(usd_cap=11)
    asked.record(usd=1)
    assert told == [9]
    pool.set_caps(usd_cap=None)  # without a cap there is no share of it
    asked.record(usd=1)
    pool.set_caps(usd_cap=13)
    asked.record()
    assert told == [9, 11]


@pytest.mark.parametrize(
    "operation",
    [
        lambda asked, _pool: asked.record(),
        lambda asked, _pool: asked.record(usd=0.01),
        lambda asked, _pool: asked.reserve(usd=0.01).release(),
        lambda _asked, pool: pool.record(),
    ],
    ids=["nothing", "record", "reserve", "itself"],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_if_a_cap_is_lowered_past_a_threshold_it_fires_by_the_next_operation(
    shape: str, operation: Callable[[BudgetPool, BudgetPool], object]
) -> None:
    asked, pool, told = watched(shape, usd_cap=100)
    asked.record(usd=9)
    pool.set_caps(usd_cap=10)
    operation(asked, pool)
    assert [round(used, 1) for used in told] == [9]
    asked.record(usd=0.5)
    assert len(told) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_threshold_that_is_added_when_it_is_already_passed_fires_by_the_next_operation(shape: str) -> None:
    asked, pool = SHAPES[shape](token_cap=10)
    asked.record(tokens=9)
    told: list[Any] = []
    pool.on_threshold(0.8, told.append)
    asked.record()
    asked.record()
    assert len(told) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_reset_and_roll_over_arm_a_threshold(shape: str) -> None:
    clock = Clock(20_000.5 * DAY)
    asked, pool, told = watched(shape, token_cap=10, window=Window.daily(clock=clock))
    asked.record(tokens=8)
    pool.reset()
    asked.record(tokens=7)
    assert told == [8]
    asked.record(tokens=2)
    assert told == [8, 9]
    clock.now += DAY
    asked.record(tokens=10)
    assert told == [8, 9, 10]
    asked.record()
    assert told == [8, 9, 10]


@pytest.mark.parametrize("shape", SHAPES)
def test_after_a_reset_commits_of_calls_in_flight_count_for_a_threshold(shape: str) -> None:
    asked, pool, told = watched(shape, token_cap=10)
    held = asked.reserve(tokens=9)
    pool.reset()
    held.commit()
    assert told == [9]


@pytest.mark.parametrize("shape", SHAPES)
def test_each_of_several_thresholds_fires_in_turn(shape: str) -> None:
    asked, pool = SHAPES[shape](token_cap=100, usd_cap=1)
    told: list[float] = []
    for share in (0.5, 0.8, 1, 1.5):
        pool.on_threshold(share, lambda _event, share=share: told.append(share))  # type: ignore[misc]
    asked.record(tokens=49)
    assert told == []
    asked.record(usd=0.85)
    assert told == [0.5, 0.8]
    asked.record(tokens=51)
    assert told == [0.5, 0.8, 1]
    with pytest.raises(BudgetOverrun):
        asked.record(tokens=50, force=True)
    assert told == [0.5, 0.8, 1, 1.5]
    asked.record()
    assert told == [0.5, 0.8, 1, 1.5]


@pytest.mark.usefixtures("racing")
@pytest.mark.parametrize("shape", SHAPES)
def test_if_many_threads_pass_a_threshold_together_it_fires_once(shape: str) -> None:
    asked, pool, told = watched(shape, 0.5, token_cap=400)

    def spend() -> None:
        for _ in range(50):
            asked.record(tokens=1)

    run_together(*[spend] * 8)
    assert len(told) == 1
    assert told[0] >= 200
    assert pool.snapshot().tokens_used == 400


# ---------------------------------------------------------------- async callbacks, which nobody would await


async def _coroutine(_event: object) -> None: ...


async def _generator(_event: object) -> Any:
    yield


class _Called:
    async def __call__(self, _event: object) -> None: ...

    async def method(self, _event: object) -> None: ...

    @staticmethod
    async def static(_event: object) -> None: ...

    @classmethod
    async def of_class(cls, _event: object) -> None: ...


class _CalledGenerator:
    async def __call__(self, _event: object) -> Any:
        yield


ASYNC: dict[str, Any] = {
    "a coroutine function": _coroutine,
    "a partial": partial(_coroutine),
    "a partial of a partial": partial(partial(_coroutine)),
    "an object": _Called(),
    "a partial of an object": partial(_Called()),
    "a method": _Called().method,
    "a partial of a method": partial(_Called().method),
    "a static method": _Called.static,
    "a class method": _Called.of_class,
    "an async generator function": _generator,
    "a partial of an async generator function": partial(_generator),
    "an object that is an async generator function": _CalledGenerator(),
    "an async lambda's equal": _Called().__call__,
}
LISTENING: dict[str, Callable[[Any, Any], object]] = {
    "subscribe": lambda pool, callback: pool.subscribe(callback),
    "on_threshold": lambda pool, callback: pool.on_threshold(0.5, callback),
}


@pytest.mark.parametrize("listening", LISTENING)
@pytest.mark.parametrize("callback", ASYNC)
def test_an_async_callback_is_refused(callback: str, listening: str) -> None:
    pool = BudgetPool(token_cap=10)
    group = pool.keyed(token_cap=10)
    for target in (pool, pool.child(), group["ann"], group):
        with pytest.raises(TypeError, match="coroutine function"):
            LISTENING[listening](target, ASYNC[callback])
    assert pool.statistics().subscribers == 0
    assert group["ann"].statistics().subscribers == group["new"].statistics().subscribers == 0


@pytest.mark.parametrize("listening", LISTENING)
def test_ordinary_callables_of_every_kind_are_accepted(listening: str) -> None:
    heard: list[object] = []

    class Hears:
        def __call__(self, event: object) -> None:
            heard.append(event)

    pool = BudgetPool(token_cap=10)
    for callback in (heard.append, partial(heard.append), Hears(), Hears().__call__, lambda event: heard.append(event)):
        LISTENING[listening](pool, callback)
    pool.record(tokens=5)
    assert len(heard) == 5
