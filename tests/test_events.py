"""Events: one for each thing that happens, after it and in order. Thresholds, and what callbacks may do."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import pickle
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

from support import caught, counters, takes_the_short_way
from token_budget import BudgetEvent, BudgetExceeded, BudgetOverrun, BudgetPool, BudgetTimeout, Window

NANOS = 10**9


class Heard:
    """A subscriber that keeps its events."""

    def __init__(self) -> None:
        self.events: list[BudgetEvent] = []

    def __call__(self, event: BudgetEvent) -> None:
        self.events.append(event)

    def take(self) -> list[tuple[str, str | None, int, int]]:
        """Return (kind, pool, tokens, used and reserved after it) of each event since the last call."""
        taken: list[tuple[str, str | None, int, int]] = [
            (event.kind, event.pool, event.tokens, event.snapshot.tokens_used + event.snapshot.tokens_reserved)
            for event in self.events
        ]
        self.events.clear()
        return taken


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_there_is_one_event_for_each_thing_that_happens() -> None:
    pool, heard = BudgetPool(token_cap=100, name="run"), Heard()
    pool.subscribe(heard)
    pool.record(tokens=10)
    assert heard.take() == [("record", "run", 10, 10)]
    held = pool.reserve(tokens=20)
    assert heard.take() == [("reserve", "run", 20, 30)]
    held.commit(tokens=5)
    assert heard.take() == [("commit", "run", 5, 15)]
    with pool.reserve(tokens=3):
        pass
    assert heard.take() == [("reserve", "run", 3, 18), ("release", "run", 3, 15)]
    assert caught(BudgetExceeded, pool.record, tokens=86)
    assert heard.take() == [("refusal", "run", 86, 15)]
    assert caught(BudgetOverrun, pool.record, tokens=86, force=True)
    assert heard.take() == [("record", "run", 86, 101), ("overrun", "run", 86, 101)]
    pool.reset()
    assert heard.take() == [("reset", "run", 0, 0)]
    held = pool.reserve(tokens=1)
    assert caught(BudgetOverrun, held.commit, tokens=200)
    assert heard.take()[1:] == [("commit", "run", 200, 200), ("overrun", "run", 200, 200)]
    pool.set_caps(token_cap=1000)
    held = pool.reserve(tokens=9)
    del held
    gc.collect()
    pool.snapshot()
    assert heard.take() == [("reserve", "run", 9, 209), ("drop", "run", 9, 200)]


def test_an_operation_that_changes_nothing_makes_no_event() -> None:
    pool, heard = BudgetPool(token_cap=100), Heard()
    held = pool.reserve(tokens=1)
    pool.subscribe(heard)
    pool.snapshot()
    held.release()
    held.release()
    assert caught(ValueError, pool.record, tokens=-1)
    assert caught(RuntimeError, held.commit)
    assert [kind for kind, *_ in heard.take()] == ["release"]


def test_an_event_has_exact_amounts_and_never_changes() -> None:
    pool, heard = BudgetPool(usd_cap=1, name="run"), Heard()
    pool.subscribe(heard)
    pool.record(tokens=1200, usd=0.1)
    (event,) = heard.events
    assert (event.usd, event.usd_nanos, event.snapshot.usd_used_nanos) == (0.1, NANOS // 10, NANOS // 10)
    with pytest.raises(AttributeError, match="never changes"):
        event.kind = "reset"  # type: ignore[misc]
    with pytest.raises(TypeError, match="a pool makes its events"):
        BudgetEvent()
    assert repr(event) == (
        "<BudgetEvent record in 'run' tokens 1,200 | usd 0.1 | "
        "after: run: tokens 1,200 | usd 0.1000 / 1.0000 (10%) | 0 in flight>"
    )
    pool.record(tokens=1200, usd=0.1)
    assert event != heard.events[1]
    assert event != 5
    assert len({event, heard.events[0], heard.events[1]}) == 2
    nameless, other = BudgetPool(), Heard()
    nameless.subscribe(other)
    nameless.record()
    assert repr(other.events[0]).startswith("<BudgetEvent record tokens 0")


def test_a_subscriber_hears_of_its_own_pool_and_of_those_below() -> None:
    total, above, below = BudgetPool(token_cap=100, name="total"), Heard(), Heard()
    child = total.child(token_cap=10, name="child")
    total.subscribe(above)
    child.subscribe(below)
    total.record(tokens=50)
    assert (above.take(), below.take()) == ([("record", "total", 50, 50)], [])
    child.record(tokens=4)
    assert (above.take(), below.take()) == ([("record", "child", 4, 54)], [("record", "child", 4, 4)])
    assert caught(BudgetExceeded, child.record, tokens=7)
    assert (above.take(), below.take()) == ([("refusal", "child", 7, 54)], [("refusal", "child", 7, 4)])


def test_after_unsubscribing_a_subscriber_hears_nothing_and_the_pool_takes_straight_runs_again() -> None:
    pool, heard, other = BudgetPool(token_cap=100), Heard(), Heard()
    ends = [pool.subscribe(heard), pool.subscribe(heard), pool.subscribe(other)]
    pool.record(tokens=1)
    assert (len(heard.take()), len(other.take())) == (2, 1)
    ends[0]()
    pool.record(tokens=1)
    assert (len(heard.take()), len(other.take())) == (1, 1)
    for end in [*ends, *ends]:
        end()
    pool.record(tokens=1)
    assert (heard.take(), other.take()) == ([], [])
    assert takes_the_short_way(pool)


def test_in_a_family_others_still_hear_when_one_unsubscribes() -> None:
    total, heard, other = BudgetPool(), Heard(), Heard()
    child = total.child()
    end = child.subscribe(heard)
    total.subscribe(other)
    end()
    child.record(tokens=1)
    assert (heard.take(), len(other.take())) == ([], 1)


def test_a_callback_that_raises_is_logged_and_does_not_disturb_others(caplog: pytest.LogCaptureFixture) -> None:
    pool, heard = BudgetPool(token_cap=100), Heard()

    def bad(_event: BudgetEvent) -> None:
        raise ValueError("the subscriber's own")

    pool.subscribe(bad)
    pool.subscribe(heard)
    with caplog.at_level(logging.ERROR, logger="token_budget"):
        pool.record(tokens=5)
    assert [record.name for record in caplog.records] == ["token_budget"]
    assert "the subscriber's own" in caplog.text
    assert len(heard.take()) == 1
    assert counters(pool)[0] == 5


def test_a_callback_may_use_the_pool() -> None:
    pool = BudgetPool(token_cap=100)
    seen = []

    def spend(event: BudgetEvent) -> None:
        seen.append((event.kind, event.tokens))
        if event.kind == "record" and event.tokens == 5:
            with pool.reserve(tokens=7) as reservation:
                reservation.commit()
            pool.snapshot(tree=True)
            pool.child().record(tokens=1)

    pool.subscribe(spend)
    pool.record(tokens=5)
    assert seen == [("record", 5), ("reserve", 7), ("commit", 7), ("record", 1)]
    assert counters(pool) == (13, 0, 0, 0, 0)


def test_events_that_a_callback_causes_come_after_the_event_that_caused_them() -> None:
    pool, heard = BudgetPool(token_cap=100), Heard()

    def spend(event: BudgetEvent) -> None:
        if event.tokens == 1:
            pool.record(tokens=2)

    pool.subscribe(spend)
    pool.subscribe(heard)
    pool.record(tokens=1)
    assert [tokens for _, _, tokens, _ in heard.take()] == [1, 2]
    assert not pool._family.owed


def test_if_a_callback_is_interrupted_the_other_callbacks_run_before_the_interrupt_is_raised() -> None:
    pool, heard = BudgetPool(token_cap=100), Heard()

    def interrupted(_event: BudgetEvent) -> None:
        raise asyncio.CancelledError

    pool.subscribe(interrupted)
    pool.subscribe(heard)
    with pytest.raises(asyncio.CancelledError):
        pool.record(tokens=1)
    assert len(heard.take()) == 1
    assert not pool._family.owed


def test_an_event_can_be_pickled_and_copied() -> None:
    pool, heard = BudgetPool(token_cap=100, name="run"), Heard()
    pool.subscribe(heard)
    pool.record(tokens=1)
    (event,) = heard.events
    assert pickle.loads(pickle.dumps(event)) == copy.deepcopy(event) == copy.copy(event) == event


def test_ending_one_subscription_twice_ends_no_other() -> None:
    pool, heard = BudgetPool(token_cap=100), Heard()
    end, _ = pool.subscribe(heard), pool.subscribe(heard)
    end()
    end()
    pool.record(tokens=1)
    assert len(heard.take()) == 1


def test_if_a_cap_is_lowered_past_a_threshold_the_next_operation_fires_it() -> None:
    pool, heard = BudgetPool(token_cap=100), Heard()
    pool.on_threshold(0.8, heard)
    pool.record(tokens=50)
    pool.set_caps(token_cap=60)
    assert heard.take() == []
    pool.record()
    pool.record()
    assert heard.take() == [("threshold", None, 0, 50)]


def test_events_come_after_the_lock_is_free() -> None:
    pool = BudgetPool(token_cap=100)
    elsewhere: list[int] = []

    def look(_event: BudgetEvent) -> None:
        thread = threading.Thread(target=lambda: elsewhere.append(pool.snapshot().tokens_used))
        thread.start()
        thread.join(10)
        assert not thread.is_alive()

    pool.subscribe(look)
    pool.record(tokens=5)
    assert elsewhere == [5]


def test_a_callback_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="callback must be a function"):
        BudgetPool().subscribe(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="callback must be a function"):
        BudgetPool().on_threshold(0.5, "x")  # type: ignore[arg-type]


def test_subscribers_hear_when_a_waiter_gets_its_reservation_or_is_refused() -> None:
    pool, heard = BudgetPool(token_cap=10, name="run"), Heard()
    pool.subscribe(heard)

    async def main() -> None:
        held = pool.reserve(tokens=10)
        with pytest.raises(BudgetTimeout):
            await pool.areserve(tokens=2, timeout=0.001)
        large, small = (asyncio.create_task(pool.areserve(tokens=n)) for n in (9, 3))
        for _ in range(4):
            await asyncio.sleep(0)
        assert heard.take() == [("reserve", "run", 10, 10), ("refusal", "run", 2, 10)]
        held.commit(tokens=3)
        assert heard.take() == [("commit", "run", 3, 3), ("refusal", "run", 9, 3), ("reserve", "run", 3, 6)]
        with pytest.raises(BudgetExceeded):
            await large
        (await small).release()

    asyncio.run(main())


# ---------------------------------------------------------------- windows and thresholds


def test_the_event_of_a_roll_over_comes_before_the_event_that_caused_it() -> None:
    now = [0.0]
    pool = BudgetPool(token_cap=100, name="hour", window=Window.every(timedelta(hours=1), clock=lambda: now[0]))
    child, heard = pool.child(name="child"), Heard()
    pool.subscribe(heard)
    child.record(tokens=60)
    now[0] = 3600.0
    child.record(tokens=70)
    assert heard.take() == [("record", "child", 60, 60), ("roll-over", "hour", 0, 0), ("record", "child", 70, 70)]


def test_a_threshold_fires_once_until_it_is_armed_again() -> None:
    now = [0.0]
    window = Window.every(timedelta(hours=1), clock=lambda: now[0])
    pool, heard, other = BudgetPool(token_cap=100, usd_cap=1, name="hour", window=window), Heard(), Heard()
    pool.on_threshold(0.8, heard)
    end = pool.on_threshold(Decimal("0.5"), other)
    pool.record(tokens=50)
    assert (heard.take(), other.take()) == ([], [("threshold", "hour", 0, 50)])
    pool.record(tokens=30)
    assert heard.take() == [("threshold", "hour", 0, 80)]
    pool.record(usd=0.9)
    pool.record(tokens=10)
    assert heard.take() == other.take() == []
    now[0] = 3600.0
    pool.record(tokens=79)
    assert (heard.take(), other.take()) == ([], [("threshold", "hour", 0, 79)])
    pool.record(usd=0.8)
    assert heard.take() == [("threshold", "hour", 0, 79)]
    pool.reset()
    end()
    pool.record(tokens=100)
    assert (heard.take(), other.take()) == ([("threshold", "hour", 0, 100)], [])


@pytest.mark.parametrize("below", [False, True])
def test_a_threshold_counts_what_is_used_and_not_what_is_held(below: bool) -> None:
    total, heard = BudgetPool(token_cap=100, name="total"), Heard()
    total.on_threshold(0.8, heard)
    pool = total.child() if below else total
    with pool.reserve(tokens=100):
        pass
    pool.reserve(tokens=95).commit(tokens=5)
    held = pool.reserve(tokens=90)
    assert heard.take() == []
    held.commit(tokens=75)
    assert heard.take() == [("threshold", "total", 0, 80)]


def test_a_larger_cap_whose_share_is_above_usage_arms_a_threshold_again() -> None:
    pool, heard = BudgetPool(token_cap=100, usd_cap=1), Heard()
    pool.on_threshold(0.8, heard)
    pool.record(tokens=90)
    assert heard.take() == [("threshold", None, 0, 90)]
    pool.set_caps(token_cap=110)  # 90 is still above 88
    pool.record(tokens=1)
    assert heard.take() == []
    pool.set_caps(token_cap=200)
    pool.record(tokens=68)
    assert heard.take() == []
    pool.record(tokens=1)
    assert heard.take() == [("threshold", None, 0, 160)]
    pool.set_caps(token_cap=None)
    pool.record(usd=0.8)
    assert heard.take() == [("threshold", None, 0, 160)]


@pytest.mark.parametrize("below", [False, True])
def test_a_refusal_fires_a_threshold_above_the_cap_too(below: bool) -> None:
    total = BudgetPool(token_cap=100)
    pool = total.child() if below else total
    heard: list[object] = []
    assert caught(BudgetExceeded, pool.record, tokens=160, force=True)
    total.on_threshold(1.5, heard.append)
    assert caught(BudgetExceeded, pool.record, tokens=1)
    assert len(heard) == 1


@pytest.mark.parametrize("watch", ["subscribe", "on_threshold"])
def test_a_coroutine_function_is_refused_as_a_callback(watch: str) -> None:
    """Nobody would await the coroutine that it returns. This covers partials and objects with an async ``__call__``."""

    async def hear(_event: BudgetEvent) -> None:
        pytest.fail("the coroutine ran")

    async def hear_all(_event: BudgetEvent) -> AsyncIterator[int]:
        yield 1

    class Hears:
        async def __call__(self, _event: BudgetEvent) -> None:
            pytest.fail("the coroutine ran")

        async def method(self, _event: BudgetEvent) -> None:
            pytest.fail("the coroutine ran")

    pool = BudgetPool(token_cap=10)
    add = pool.subscribe if watch == "subscribe" else partial(pool.on_threshold, 0.5)
    for callback in (hear, hear_all, partial(hear), partial(partial(hear)), Hears(), partial(Hears()), Hears().method):
        with pytest.raises(TypeError, match="callback must be an ordinary function: a coroutine function returns"):
            add(callback)
    assert takes_the_short_way(pool)


def test_a_threshold_counts_what_is_spent_through_children_too() -> None:
    total, heard = BudgetPool(usd_cap=10, name="total"), Heard()
    total.on_threshold(0.8, heard)
    child = total.child(usd_cap=9)
    child.record(usd=7.9)
    assert heard.take() == []
    child.record(usd=0.1)
    assert [kind for kind, *_ in heard.take()] == ["threshold"]


@pytest.mark.parametrize("share", [0, -0.5, float("nan"), float("inf"), "0.8", True, None, 80, 1e-10])
def test_a_bad_share_is_refused(share: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="share"):
        BudgetPool().on_threshold(share, print)


def test_a_pool_without_caps_has_no_shares() -> None:
    pool, heard = BudgetPool(), Heard()
    pool.on_threshold(0.1, heard)
    pool.record(tokens=10**9, usd=10**6)
    assert heard.take() == []
    pool.set_caps(usd_cap=10**7)
    pool.record()
    assert [kind for kind, *_ in heard.take()] == ["threshold"]
