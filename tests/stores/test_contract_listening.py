"""Subscribers and thresholds on every kind of pool: each event once, after it, in order; what callbacks may do."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

import pools_of_all_kinds as all_kinds
from pools_of_all_kinds import NANOS, SHAPES, Do, Kind, counters, shaped, until
from shapes import Clock
from test_thresholds import ASYNC
from token_budget import BudgetEvent, BudgetExceeded, BudgetOverrun, BudgetTimeout, PoolClosed, Window
from token_budget.contract import Pool

kind, do = all_kinds.kind, all_kinds.do
HOUR = 3600.0


class Heard:
    """A subscriber that keeps its events."""

    def __init__(self) -> None:
        self.events: list[BudgetEvent] = []

    def __call__(self, event: BudgetEvent) -> None:
        self.events.append(event)

    def take(self) -> list[tuple[str, int, int]]:
        """Return (kind, tokens, used and reserved after it) of each event since the last call."""
        taken: list[tuple[str, int, int]] = [
            (event.kind, event.tokens, event.snapshot.tokens_used + event.snapshot.tokens_reserved)
            for event in self.events
        ]
        self.events.clear()
        return taken


def watched(kind: Kind, shape: str, share: Any = 0.8, **settings: Any) -> tuple[Pool, Pool, list[Any]]:
    """Return the pool to ask, the pool with the threshold, and a list of the usage at each time that it is told."""
    asked, pool = shaped(kind, shape, **settings)
    told: list[Any] = []
    pool.on_threshold(share, lambda event: told.append(event.snapshot.usd_used or event.snapshot.tokens_used))
    return asked, pool, told


# ---------------------------------------------------------------- events


def test_there_is_one_event_for_each_thing_that_happens(kind: Kind, do: Do) -> None:
    pool, heard = kind.pool(token_cap=100), Heard()
    pool.subscribe(heard)
    do.record(pool, tokens=10)
    assert heard.take() == [("record", 10, 10)]
    held = do.reserve(pool, tokens=20)
    assert heard.take() == [("reserve", 20, 30)]
    do.commit(held, tokens=5)
    assert heard.take() == [("commit", 5, 15)]
    with do.block(pool, tokens=3):
        pass
    assert heard.take() == [("reserve", 3, 18), ("release", 3, 15)]
    with pytest.raises(BudgetExceeded):
        do.record(pool, tokens=86)
    with pytest.raises(BudgetExceeded):
        do.reserve(pool, tokens=87)
    assert heard.take() == [("refusal", 86, 15), ("refusal", 87, 15)]
    with pytest.raises(BudgetOverrun):
        do.record(pool, tokens=86, force=True)
    assert heard.take() == [("record", 86, 101), ("overrun", 86, 101)]
    pool.reset()
    assert heard.take() == [("reset", 0, 0)]
    held = do.reserve(pool, tokens=1)
    with pytest.raises(BudgetOverrun):
        do.commit(held, tokens=200)
    assert heard.take()[1:] == [("commit", 200, 200), ("overrun", 200, 200)]


def test_what_changes_nothing_makes_no_event(kind: Kind, do: Do) -> None:
    pool, heard = kind.pool(token_cap=100), Heard()
    held = do.reserve(pool, tokens=1)
    pool.subscribe(heard)
    do.snapshot(pool)
    do.snapshot(pool, tree=True)
    do.release(held)
    do.release(held)
    with pytest.raises(ValueError, match="tokens"):
        do.record(pool, tokens=-1)
    with pytest.raises(RuntimeError):
        do.commit(held)
    assert [what for what, *_ in heard.take()] == ["release"]


def test_an_event_has_exact_amounts_and_never_changes(kind: Kind, do: Do) -> None:
    pool, heard = kind.pool(usd_cap=1), Heard()
    pool.subscribe(heard)
    do.record(pool, tokens=1200, usd=0.1)
    (event,) = heard.events
    assert (event.kind, event.pool, event.tokens, event.usd, event.usd_nanos) == (
        "record", pool.name, 1200, 0.1, NANOS // 10,
    )  # fmt: skip
    assert (event.snapshot.name, event.snapshot.usd_used_nanos) == (pool.name, NANOS // 10)
    with pytest.raises(AttributeError, match="never changes"):
        event.kind = "reset"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(event)) == copy.deepcopy(event) == event


def test_a_subscriber_hears_of_its_own_pool_and_of_those_below(kind: Kind, do: Do) -> None:
    total, above, below = kind.pool(token_cap=100, name="total"), Heard(), Heard()
    child = total.child(token_cap=10, name="child")
    total.subscribe(above)
    child.subscribe(below)
    do.record(total, tokens=50)
    assert (above.take(), below.take()) == ([("record", 50, 50)], [])
    do.record(child, tokens=4)
    assert {event.pool for event in above.events} == {"child"}
    assert (above.take(), below.take()) == ([("record", 4, 54)], [("record", 4, 4)])
    with pytest.raises(BudgetExceeded):
        do.record(child, tokens=7)
    assert (above.take(), below.take()) == ([("refusal", 7, 54)], [("refusal", 7, 4)])
    child.reset()
    assert (above.take(), below.take()) == ([("reset", 0, 54)], [("reset", 0, 0)])


def test_a_subscriber_hears_what_is_done_by_a_join_or_a_key(kind: Kind, do: Do) -> None:
    total, heard = kind.pool(name="total"), Heard()
    users, project = total.keyed(name="user"), total.child(name="project")
    project.subscribe(heard)
    do.record(type(total).join(users["ann"], project, name="call"), tokens=5)
    do.record(users["ann"], tokens=1)
    assert [event.pool for event in heard.events] == ["call"]
    assert heard.take() == [("record", 5, 5)]


def test_after_unsubscribing_a_subscriber_hears_nothing(kind: Kind, do: Do) -> None:
    pool, heard, other = kind.pool(token_cap=100), Heard(), Heard()
    ends = [pool.subscribe(heard), pool.subscribe(heard), pool.subscribe(other)]
    do.record(pool, tokens=1)
    assert (len(heard.take()), len(other.take())) == (2, 1)
    ends[0]()
    ends[0]()
    do.record(pool, tokens=1)
    assert (len(heard.take()), len(other.take())) == (1, 1)
    for end in ends:
        end()
    do.record(pool, tokens=1)
    assert (heard.take(), other.take()) == ([], [])
    assert pool.statistics().subscribers == 0


def test_a_roll_over_is_told_before_what_caused_it(kind: Kind, do: Do) -> None:
    clock = Clock(0.0)
    window = Window.every(timedelta(hours=1), clock=clock)
    pool = kind.pool(token_cap=100, name="hour", window=window)
    child, heard = pool.child(name="child"), Heard()
    pool.subscribe(heard)
    do.record(child, tokens=60)
    clock.now = HOUR
    do.record(child, tokens=70)
    assert [(event.kind, event.pool) for event in heard.events] == [
        ("record", "child"),
        ("roll-over", pool.name),
        ("record", "child"),
    ]
    rolled = heard.events[1].snapshot
    assert rolled.window_start is not None
    assert rolled.window_start.timestamp() == HOUR
    if not kind.stored:  # the steps of a store roll over and record at once, and the pool is read after
        assert rolled.tokens_used == 0
    assert heard.take()[2] == ("record", 70, 70)


def test_a_subscriber_hears_when_a_waiter_is_served_refused_or_gives_up(kind: Kind, do: Do) -> None:
    pool, heard = kind.pool(token_cap=10), Heard()
    held = do.reserve(pool, tokens=10)
    pool.subscribe(heard)
    with pytest.raises(BudgetTimeout):
        do.reserve(pool, tokens=2, timeout=0.001)
    assert heard.take() == [("refusal", 2, 10)]
    large = do.wait(pool, tokens=9)
    all_kinds.in_line(kind, pool, 1)
    small = do.wait(pool, tokens=3)
    all_kinds.in_line(kind, pool, 2)
    assert heard.take() == []
    do.commit(held, tokens=3)
    assert isinstance(large.error(), BudgetExceeded)
    do.release(small.result())
    until(lambda: len(heard.events) == 4)
    expected = [("commit", 3, 3), ("refusal", 9, 3), ("reserve", 3, 6), ("release", 3, 3)]
    if kind.stored:  # other threads serve who waits, and only the events of one thread have an order
        assert sorted(one[:2] for one in heard.take()) == sorted(one[:2] for one in expected)
    else:
        assert heard.take() == expected


# ---------------------------------------------------------------- what callbacks may do


def test_a_callback_that_raises_is_logged_and_disturbs_nobody(
    kind: Kind, do: Do, caplog: pytest.LogCaptureFixture
) -> None:
    pool, heard = kind.pool(token_cap=100), Heard()

    def bad(_event: BudgetEvent) -> None:
        raise ValueError("the subscriber's own")

    pool.subscribe(bad)
    pool.subscribe(heard)
    with caplog.at_level(logging.ERROR, logger="token_budget"):
        do.record(pool, tokens=5)
    assert "the subscriber's own" in caplog.text
    assert heard.take() == [("record", 5, 5)]
    assert counters(pool) == (5, 0, 0, 0, 0)


def test_a_callback_may_use_the_pool(kind: Kind, do: Do) -> None:
    pool: Any = kind.pool(token_cap=100)
    seen = []

    def spend(event: BudgetEvent) -> None:
        seen.append((event.kind, event.tokens))
        if event.kind == "record" and event.tokens == 5:
            with pool.reserve(tokens=7) as reservation:
                reservation.commit()
            pool.snapshot(tree=True)
            pool.child(name="child").record(tokens=1)
            pool.keyed(name="user")["ann"].record(tokens=2)
            pool.set_caps(token_cap=50)

    pool.subscribe(spend)
    do.record(pool, tokens=5)
    assert seen == [("record", 5), ("reserve", 7), ("commit", 7), ("record", 1), ("record", 2)]
    assert counters(pool) == (15, 0, 0, 0, 0)
    assert do.snapshot(pool).token_cap == 50


def test_what_a_callback_causes_is_told_after_what_caused_it(kind: Kind, do: Do) -> None:
    pool, heard = kind.pool(token_cap=100), Heard()

    def spend(event: BudgetEvent) -> None:
        if event.tokens == 1:
            pool.record(tokens=2)

    pool.subscribe(spend)
    pool.subscribe(heard)
    do.record(pool, tokens=1)
    assert [tokens for _, tokens, _ in heard.take()] == [1, 2]


def test_no_lock_is_held_while_a_callback_runs(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=100)
    elsewhere: list[int] = []

    def look(event: BudgetEvent) -> None:
        if event.tokens == 5:
            spending = all_kinds.in_a_thread(lambda: pool.record(tokens=1))
            spending.result()
            elsewhere.append(pool.snapshot().tokens_used)

    pool.subscribe(look)
    do.record(pool, tokens=5)
    assert elsewhere == [6]


def test_while_a_callback_blocks_others_spend(kind: Kind, do: Do) -> None:
    """Also those of an event loop: their steps do not queue behind a callback of another call."""
    pool, inside, go_on = kind.pool(token_cap=100), threading.Event(), threading.Event()

    def block(event: BudgetEvent) -> None:
        if event.tokens == 1:
            inside.set()
            assert go_on.wait(all_kinds.LONG)

    pool.subscribe(block)
    blocked = all_kinds.in_a_thread(lambda: pool.record(tokens=1))
    assert inside.wait(all_kinds.LONG)
    do.record(pool, tokens=2)
    do.commit(do.reserve(pool, tokens=3))
    go_on.set()
    blocked.result()
    assert counters(pool) == (6, 0, 0, 0, 0)


@pytest.mark.parametrize("callback", ["a coroutine function", "a partial", "an object", "a method"])
def test_an_async_callback_is_refused(kind: Kind, callback: str) -> None:
    pool = kind.pool(token_cap=10)
    users = pool.keyed(name="user")
    for target in (pool, pool.child(name="child"), users["ann"], users):
        for add in (target.subscribe, partial(target.on_threshold, 0.5)):
            with pytest.raises(TypeError, match="coroutine function"):
                add(ASYNC[callback])
            with pytest.raises(TypeError, match="callback must be a function"):
                add(5)  # type: ignore[arg-type]
    assert pool.statistics().subscribers == 0


# ---------------------------------------------------------------- thresholds


@pytest.mark.parametrize("way", all_kinds.WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_threshold_is_told_once_when_what_is_used_comes_to_the_share(
    kind: Kind, do: Do, shape: str, way: str
) -> None:
    asked, _pool, told = watched(kind, shape, token_cap=5)
    for used in range(1, 6):
        all_kinds.spend(do, way, asked, tokens=1)
        assert told == ([] if used < 4 else [4])


def test_what_is_held_does_not_count_for_a_threshold(kind: Kind, do: Do) -> None:
    asked, pool, told = watched(kind, "child", token_cap=10)
    do.record(asked, tokens=7)
    with do.block(asked, tokens=3) as reservation:
        assert told == []
        do.commit(reservation, tokens=0)
    assert told == []
    with pytest.raises(BudgetOverrun):
        do.record(asked, tokens=4, force=True)
    assert told == [11]
    assert counters(pool)[0] == 11


def test_a_threshold_event_names_the_pool_that_it_happened_to(kind: Kind, do: Do) -> None:
    total, heard = kind.pool(usd_cap=10, name="total"), Heard()
    total.on_threshold(Decimal("0.8"), heard)
    child = total.child(usd_cap=9, name="child")
    do.record(child, usd=7.9)
    assert heard.events == []
    do.record(child, usd=0.1)
    (event,) = heard.events
    assert (event.kind, event.pool, event.tokens, event.usd) == ("threshold", total.name, 0, 0.0)
    assert (event.snapshot.name, event.snapshot.usd_used) == (total.name, 8.0)


@pytest.mark.parametrize("shape", ["alone", "join", "keyed"])
def test_a_reset_and_a_roll_over_arm_a_threshold_again(kind: Kind, do: Do, shape: str) -> None:
    clock = Clock(1000 * HOUR)
    window = Window.every(timedelta(hours=1), clock=clock)
    asked, pool, told = watched(kind, shape, token_cap=10, window=window)
    do.record(asked, tokens=8)
    pool.reset()
    do.record(asked, tokens=7)
    assert told == [8]
    do.record(asked, tokens=2)
    assert told == [8, 9]
    clock.now += HOUR
    do.record(asked, tokens=10)
    assert told == [8, 9, 10]
    do.record(asked)
    assert told == [8, 9, 10]


@pytest.mark.parametrize("shape", ["alone", "join", "keyed"])
def test_a_larger_cap_arms_a_threshold_again_if_its_share_is_above_what_is_used(kind: Kind, do: Do, shape: str) -> None:
    asked, pool, told = watched(kind, shape, usd_cap=10)
    do.record(asked, usd=9)
    pool.set_caps(usd_cap=11)
    do.record(asked, usd=1)
    assert told == [9]
    pool.set_caps(usd_cap=20)
    do.record(asked, usd=5)
    assert told == [9]
    do.record(asked, usd=1)
    assert told == [9, 16]
    pool.set_caps(usd_cap=None)  # without a cap there is no share of it
    do.record(asked, usd=1)
    pool.set_caps(usd_cap=18)
    do.record(asked)
    assert told == [9, 16, 17]


def test_a_threshold_that_is_passed_already_is_told_by_the_next_operation(kind: Kind, do: Do) -> None:
    asked, pool = shaped(kind, "child", token_cap=100)
    do.record(asked, tokens=50)
    told: list[int] = []
    pool.on_threshold(0.5, lambda event: told.append(event.snapshot.tokens_used))
    do.record(asked)
    do.record(asked)
    assert told == [50]
    pool.on_threshold(0.8, lambda event: told.append(event.snapshot.tokens_used))
    pool.set_caps(token_cap=60)
    assert told == [50]
    do.release(do.reserve(asked))
    do.record(pool)
    assert told == [50, 50]


def test_of_several_thresholds_each_is_told_in_turn(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=100, usd_cap=1)
    told: list[float] = []
    for share in (0.5, 0.8, 1, 1.5):
        pool.on_threshold(share, lambda _event, share=share: told.append(share))  # type: ignore[misc]
    do.record(pool, tokens=49)
    assert told == []
    do.record(pool, usd=0.85)
    assert told == [0.5, 0.8]
    do.record(pool, tokens=51)
    with pytest.raises(BudgetOverrun):
        do.record(pool, tokens=50, force=True)
    assert told == [0.5, 0.8, 1, 1.5]
    do.record(pool)
    assert told == [0.5, 0.8, 1, 1.5]


def test_two_who_watch_one_share_are_both_told(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10)
    told: list[str] = []
    end = pool.on_threshold(0.5, lambda _event: told.append("one"))
    pool.on_threshold(0.5, lambda _event: told.append("other"))
    do.record(pool, tokens=5)
    assert told == ["one", "other"]
    pool.reset()
    end()
    do.record(pool, tokens=5)
    assert told == ["one", "other", "other"]


def test_a_refusal_tells_a_threshold_too(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=100)
    with pytest.raises(BudgetExceeded):
        do.record(pool, tokens=160, force=True)
    heard: list[object] = []
    pool.on_threshold(1.5, heard.append)
    with pytest.raises(BudgetExceeded):
        do.record(pool, tokens=1)
    assert len(heard) == 1


def test_after_a_reset_commits_of_calls_in_flight_count_for_a_threshold(kind: Kind, do: Do) -> None:
    asked, pool, told = watched(kind, "child", token_cap=10)
    held = do.reserve(asked, tokens=9)
    pool.reset()
    do.commit(held)
    assert told == [9]


@pytest.mark.usefixtures("racing")
@pytest.mark.parametrize("shape", ["alone", "join"])
def test_if_many_pass_a_threshold_together_it_is_told_once(kind: Kind, do: Do, shape: str) -> None:
    asked, pool, told = watched(kind, shape, 0.5, token_cap=40)
    calls: list[Any] = [(asked, "record", {"tokens": 1})] * 40
    assert do.together(*calls) == [None] * 40
    assert len(told) == 1
    assert told[0] >= 20
    assert counters(pool)[0] == 40


def test_listeners_of_a_group_hear_of_every_key_until_they_unsubscribe(kind: Kind, do: Do) -> None:
    users = kind.pool().keyed(token_cap=10, name="user")
    heard: list[tuple[str, str | None, int]] = []
    do.record(users["early"], tokens=1)
    ends = [
        users.subscribe(lambda event: heard.append((event.kind, event.pool, event.tokens))),
        users.on_threshold(0.8, lambda event: heard.append((event.kind, event.pool, event.snapshot.tokens_used))),
    ]
    do.record(users["early"], tokens=7)
    do.record(users["late"], tokens=2)
    assert heard == [("record", "user:early", 7), ("threshold", "user:early", 8), ("record", "user:late", 2)]
    heard.clear()
    for end in (*ends, *ends):
        end()
    do.record(users["early"], tokens=1)
    do.record(users["last"], tokens=10)
    assert heard == []


def test_another_window_for_all_keys_keeps_what_they_used_though_a_threshold_was_told(kind: Kind, do: Do) -> None:
    users = kind.pool().keyed(token_cap=10, name="user")
    told: list[int] = []
    users.on_threshold(0.5, lambda event: told.append(event.snapshot.tokens_used))
    do.record(users["ann"], tokens=5)
    clock = Clock(1000 * HOUR)
    users.set_caps(token_cap=8, window=Window.every(timedelta(hours=1), clock=clock))
    snapshot = do.snapshot(users["ann"])
    assert snapshot.resets_at is not None
    assert (snapshot.tokens_used, snapshot.resets_at.timestamp()) == (5, 1001 * HOUR)
    do.record(users["ann"], tokens=1)
    assert told == [5]
    clock.now += HOUR
    do.record(users["ann"], tokens=4)
    assert told == [5, 4]


def test_two_caps_that_change_in_one_call_arm_no_threshold_in_between(kind: Kind, do: Do) -> None:
    asked, pool, told = watched(kind, "child", 1, token_cap=10, usd_cap=10)
    do.record(asked, tokens=10, usd=1)
    assert told == [1]
    pool.set_caps(token_cap=None, usd_cap=0.5)  # what is used is above the share of a cap before and after
    do.record(asked)
    assert told == [1]


def test_listeners_of_one_key_hear_of_that_key_alone(kind: Kind, do: Do) -> None:
    users, heard = kind.pool().keyed(token_cap=10, name="user"), Heard()
    users["ann"].subscribe(heard)
    users["ann"].on_threshold(0.5, heard)
    do.record(users["bob"], tokens=9)
    do.record(users["ann"], tokens=5)
    assert heard.take() == [("record", 5, 5), ("threshold", 0, 5)]


def test_a_closed_pool_tells_of_what_is_still_counted(kind: Kind, do: Do) -> None:
    run, heard = kind.pool().child(token_cap=10, name="run"), Heard()
    held = do.reserve(run, tokens=5)
    run.subscribe(heard)
    run.close()
    with pytest.raises(PoolClosed):
        do.record(run, tokens=1)
    do.record(run, tokens=2, force=True)
    do.commit(held)
    assert [event for event in heard.take() if event[0] != "refusal"] == [("record", 2, 7), ("commit", 5, 7)]
