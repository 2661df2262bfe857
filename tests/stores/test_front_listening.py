"""Listening to the pools of a store: what is told here and not elsewhere, news of the store, thresholds for all."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from memory_store import MemoryBudget, MemoryPool
from pools_of_all_kinds import LONG, in_a_thread
from shapes import Clock
from token_budget import BudgetEvent, PoolClosed, Window
from token_budget.contract import BudgetUnavailable
from token_budget.stores._listening import heard, listeners_of

HOUR = 3600.0


class Heard:
    """A subscriber that keeps its events."""

    def __init__(self) -> None:
        self.events: list[BudgetEvent] = []

    def __call__(self, event: BudgetEvent) -> None:
        self.events.append(event)

    def take(self) -> list[tuple[str, str | None, int]]:
        """Return (kind, pool, tokens) of each event since the last call."""
        taken = [(event.kind, event.pool, event.tokens) for event in self.events]
        self.events.clear()
        return [(str(kind), pool, tokens) for kind, pool, tokens in taken]


def processes(count: int, **settings: Any) -> list[MemoryPool]:
    """Return the same pool as several processes have it."""
    budget = MemoryBudget()
    return [MemoryPool(budget, process=str(number), **settings) for number in range(count)]


def close(*pools: MemoryPool) -> None:
    for pool in pools:
        pool.close()


# ---------------------------------------------------------------- who hears


def test_what_another_process_does_is_not_told_here() -> None:
    here, there = processes(2)
    listener = Heard()
    here.subscribe(listener)
    there.record(tokens=1)
    here.record(tokens=2)
    assert listener.take() == [("record", "total", 2)]
    close(here, there)


def test_a_pool_without_listeners_asks_for_no_rows() -> None:
    pool, other = processes(1)[0], MemoryPool()
    unsubscribe = other.subscribe(lambda event: None)
    assert not pool._family.listeners
    assert not heard(pool._chain)
    pool.reserve(tokens=1).commit()
    assert pool.engine.steps == ["open", "reserve", "commit"]
    unsubscribe()
    unsubscribe()  # twice does nothing
    assert not other._family.listeners
    close(pool, other)


def test_subscribers_and_thresholds_are_counted_for_the_statistics() -> None:
    pool = MemoryPool(token_cap=10)
    users = pool.keyed(name="user")
    ends = [pool.subscribe(Heard()), pool.on_threshold(0.5, Heard()), users.subscribe(Heard())]
    assert listeners_of(pool._chain[0]) == 2
    assert pool._family.listeners == 3
    assert heard(users["ann"]._chain[:1])
    for end in ends:
        end()
    assert listeners_of(pool._chain[0]) == 0
    assert not heard(users["ann"]._chain)
    pool.close()


def test_a_listener_that_has_ended_is_not_told_what_is_yet_to_be_told() -> None:
    pool = MemoryPool()
    second = Heard()
    pool.subscribe(lambda event: end())
    end = pool.subscribe(second)
    pool.record(tokens=1)
    assert second.take() == []
    pool.close()


def test_what_a_callback_causes_is_told_after_what_caused_it() -> None:
    pool = MemoryPool()
    first, second = Heard(), Heard()

    def spend_more(event: BudgetEvent) -> None:
        first(event)
        if event.tokens < 3:
            pool.record(tokens=event.tokens + 1)

    pool.subscribe(spend_more)
    pool.subscribe(second)
    pool.record(tokens=1)
    expected = [("record", "total", tokens) for tokens in (1, 2, 3)]
    assert first.take() == expected
    assert second.take() == expected
    pool.close()


def test_an_interrupt_in_a_callback_passes_and_the_next_event_tells_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = MemoryPool()
    others = Heard()

    def interrupted(event: BudgetEvent) -> None:
        if event.tokens == 1:
            raise KeyboardInterrupt
        raise ValueError("a bug of the callback")

    pool.subscribe(interrupted)
    pool.subscribe(others)
    with pytest.raises(KeyboardInterrupt):
        pool.record(tokens=1)
    pool.record(tokens=2)
    assert others.take() == [("record", "total", 1), ("record", "total", 2)]
    assert "a subscriber raised" in caplog.text
    pool.close()


def test_callbacks_run_with_no_lock_held() -> None:
    pool = MemoryPool(token_cap=10)
    results: list[Any] = []

    def use_it_in_another_thread(event: BudgetEvent) -> None:
        if event.kind in {"record", "commit", "release"}:
            results.append(in_a_thread(lambda: (pool.snapshot(), pool.subscribe(Heard())(), held.completed)).result())

    held = pool.reserve(tokens=1)
    pool.subscribe(use_it_in_another_thread)
    pool.record(tokens=1)
    held.commit()
    pool.reserve(tokens=1).release()
    assert len(results) == 3
    pool.close()


def test_if_the_store_does_not_answer_what_needs_it_is_not_told_and_nothing_is_raised() -> None:
    pool = MemoryPool()
    listener = Heard()
    pool.subscribe(listener)

    def away(step: str, moment: str) -> None:
        if step == "read":
            raise BudgetUnavailable("no server")

    run = pool.child(name="run")
    run.close()
    pool.engine.hook = away
    with pytest.raises(PoolClosed):
        run.record(tokens=1)  # its refusal has no rows: they are to be read
    assert listener.take() == []
    pool.engine.hook = lambda step, moment: None
    with pytest.raises(PoolClosed):
        run.record(tokens=2)
    assert listener.take() == [("refusal", "run", 2)]
    pool.close()


# ---------------------------------------------------------------- news


def test_a_holder_that_died_is_told_to_those_who_listen_to_what_it_is_charged_to(
    caplog: pytest.LogCaptureFixture,
) -> None:
    here, there = processes(2)
    run, other = here.child(name="run"), here.child(name="other")
    listeners = [Heard(), Heard(), Heard()]
    for pool, listener in zip((here, run, other), listeners, strict=True):
        pool.subscribe(listener)
    held = there.child(name="run").reserve(tokens=4, usd=0.5)
    here.budget.die(there.engine.owner, here.engine.news)  # as the next step of a store finds it
    here.snapshot()
    assert [listener.take() for listener in listeners] == [[("expired", "run", 4)], [("expired", "run", 4)], []]
    assert "tokens 4 | usd 0.5 are charged in full, and pool.expired() lists it" in caplog.text
    held.release()
    close(here, there)


def test_an_expired_claim_of_a_key_that_this_process_has_not_used_is_told_to_those_who_listen_to_its_group() -> None:
    here, there = processes(2)
    listener = Heard()
    here.keyed(name="user").subscribe(listener)
    held = there.keyed(name="user")["ann"].reserve(tokens=4)
    here.budget.die(there.engine.owner, here.engine.news)
    here.snapshot()
    assert listener.take() == [("expired", "user:ann", 4)]
    held.release()
    close(here, there)


def test_what_is_charged_for_a_dead_holder_reaches_a_threshold() -> None:
    here, there = processes(2, token_cap=10)
    told = Heard()
    here.on_threshold(0.5, told)
    held = there.reserve(tokens=6)
    here.budget.die(there.engine.owner, here.engine.news)
    here.snapshot()
    assert told.take() == [("threshold", "total", 0)]
    held.release()
    close(here, there)


def test_a_roll_over_is_told_before_the_step_that_found_it() -> None:
    clock = Clock(HOUR)
    pool = MemoryPool(window=Window.every(timedelta(hours=1), clock=clock))
    listener = Heard()
    pool.subscribe(listener)
    pool.record(tokens=1)
    clock.now += HOUR
    pool.record(tokens=2)
    assert listener.take() == [("record", "total", 1), ("roll-over", "total", 0), ("record", "total", 2)]
    pool.close()


def test_a_budget_that_is_made_is_logged_and_told_to_who_listens_already(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "token_budget")
    pool = MemoryPool()
    assert "made the budget 'total', with nothing used" in caplog.text
    listener = Heard()
    pool.subscribe(listener)
    pool.budget.lose()
    again = MemoryPool(pool.budget)  # in the same process
    assert listener.take() == [("created", "total", 0)]
    close(pool, again)


# ---------------------------------------------------------------- thresholds


def test_a_threshold_is_told_by_the_process_that_comes_to_it_and_once_in_a_period_for_all() -> None:
    clock = Clock(HOUR)
    window = Window.every(timedelta(hours=1), clock=clock)
    first, second = processes(2, token_cap=10, window=window)
    told = [Heard(), Heard()]
    for pool, listener in zip((first, second), told, strict=True):
        pool.on_threshold(0.8, listener)
    first.record(tokens=7)
    second.record(tokens=1)
    first.record(tokens=1)
    assert [one.take() for one in told] == [[], [("threshold", "total", 0)]]
    clock.now += HOUR
    first.record(tokens=9)
    second.record(tokens=1)
    assert [one.take() for one in told] == [[("threshold", "total", 0)], []]
    close(first, second)


def test_a_threshold_is_told_here_although_a_process_without_one_came_to_it() -> None:
    here, there = processes(2, token_cap=10)
    told = Heard()
    here.on_threshold(0.8, told)
    there.record(tokens=9)
    here.record()
    here.record()
    assert told.take() == [("threshold", "total", 0)]
    close(here, there)


def test_of_threads_that_pass_a_threshold_together_one_tells_it_to_all_who_listen_for_it() -> None:
    pools = processes(4, token_cap=100)
    told = [Heard(), Heard()]
    for listener in told:
        pools[0].on_threshold(0.5, listener)
        for pool in pools[1:]:
            pool.on_threshold(0.5, listener)
    start = threading.Barrier(8)

    def spend(pool: MemoryPool) -> None:
        start.wait(LONG)
        for _ in range(10):
            pool.record(tokens=1)

    for call in [in_a_thread(partial(spend, pool)) for pool in pools * 2]:
        call.result()
    assert [one.take() for one in told] == [[("threshold", "total", 0)]] * 2
    close(*pools)


def test_a_threshold_of_which_the_store_does_not_answer_is_told_by_the_next_step() -> None:
    pool = MemoryPool(token_cap=10)
    told = Heard()
    pool.on_threshold(0.5, told)
    away = True

    def hook(step: str, moment: str) -> None:
        if step == "claim_threshold" and moment == "before" and away:
            raise BudgetUnavailable("no server")

    pool.engine.hook = hook
    pool.record(tokens=6)
    assert told.take() == []
    away = False
    pool.record()
    assert told.take() == [("threshold", "total", 0)]
    pool.close()


def test_a_join_hears_of_what_it_does_and_has_no_threshold_to_come_to() -> None:
    pool = MemoryPool()
    both = MemoryPool.join(pool.child(name="a"), pool.child(name="b"), name="both")
    listener = Heard()
    both.subscribe(listener)
    both.on_threshold(0.5, listener)
    both.record(tokens=1)
    assert listener.take() == [("record", "both", 1)]
    both.close()
    pool.close()
