"""P1, P5, P7 and P8 on every kind of pool: many at once oversell nothing, nothing leaks, a snapshot is one moment."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

import pools_of_all_kinds as all_kinds
from pools_of_all_kinds import IN_PROCESS, IN_STORES, NANOS, SHAPES, Do, Kind, counters, shaped, until
from support import caught, run_together
from test_forks import in_child
from token_budget import BudgetExceeded, BudgetOverrun, PoolForked, ReservationClosed
from token_budget.contract import Pool

kind, do = all_kinds.kind, all_kinds.do
NOTHING = (0, 0, 0, 0, 0)


# ---------------------------------------------------------------- never oversubscribed


@pytest.mark.usefixtures("racing")
@pytest.mark.parametrize("shape", ["alone", "deep", "join", "keyed"])
def test_many_at_once_fill_a_cap_exactly(kind: Kind, do: Do, shape: str) -> None:
    asked, pool = shaped(kind, shape, token_cap=30, usd_cap=3)
    calls: list[Any] = [
        (asked, "record", {"tokens": 1, "usd": 0.1}),
        (asked, "reserve", {"tokens": 1, "usd": 0.1}),
    ] * 25
    answers = do.together(*calls)
    refused = [answer for answer in answers if isinstance(answer, BudgetExceeded)]
    held = [answer for answer in answers if answer is not None and not isinstance(answer, BaseException)]
    recorded = answers.count(None)
    assert (len(refused), recorded + len(held)) == (20, 30)
    assert counters(pool) == (recorded, len(held), recorded * NANOS // 10, len(held) * NANOS // 10, len(held))
    do.together(*[(reservation, "commit", {}) for reservation in held])
    assert counters(pool) == counters(asked) == (30, 0, 3 * NANOS, 0, 0)


@pytest.mark.usefixtures("racing")
def test_children_of_many_threads_never_oversell_their_parent(kind: Kind) -> None:
    total = kind.pool(token_cap=100)
    children = [total.child(token_cap=40, name=f"child {number}") for number in range(4)]

    def spend(child: Pool) -> int:
        return sum(not caught(BudgetExceeded, child.record, tokens=1) for _ in range(45))

    counts = run_together(*[lambda child=child: spend(child) for child in children])
    assert sum(counts) == counters(total)[0] == 100
    assert [counters(child)[0] for child in children] == counts
    assert max(counts) <= 40


@pytest.mark.usefixtures("racing")
def test_what_was_told_to_many_threads_is_what_is_counted(kind: Kind) -> None:
    """Each thread adds up what it was told. Overruns are counted too."""
    total = kind.pool(token_cap=200, usd_cap=2)
    pools = [total.child(token_cap=80, name="a"), total.child(name="b"), total.keyed(token_cap=90, name="user")["c"]]

    def spend(number: int) -> tuple[int, int]:
        pool, tokens, nanos = pools[number % 3], 0, 0
        for turn in range(12):
            cost = (number * 7 + turn * 3) % 11
            try:
                reservation = pool.reserve(tokens=5, usd=0.01)
            except BudgetExceeded:
                continue
            if turn % 4 == 3:
                reservation.release()
                continue
            try:
                reservation.commit(tokens=cost, usd=0.001 * cost)
            except BudgetOverrun:
                pass
            tokens, nanos = tokens + cost, nanos + cost * 10**6
        return tokens, nanos

    told = run_together(*[lambda number=number: spend(number) for number in range(6)])
    expected = (sum(tokens for tokens, _ in told), 0, sum(nanos for _, nanos in told), 0, 0)
    assert counters(total) == expected
    below = [counters(pool) for pool in pools]
    assert tuple(map(sum, zip(*below, strict=True))) == expected


# ---------------------------------------------------------------- one moment


@pytest.mark.usefixtures("racing")
def test_a_snapshot_never_sees_half_a_spend(kind: Kind, do: Do) -> None:
    """Each spend is as many tokens as tenths of a dollar, in the pool and in the one above."""
    total = kind.pool(token_cap=10**6, usd_cap=10**5, name="total")
    children = [total.child(name=f"child {number}") for number in range(3)]
    joined = type(total).join(*children[:2], name="joined")
    going = True

    def spend(pool: Any) -> None:
        while going:
            with pool.reserve(tokens=3, usd=0.3) as reservation:
                reservation.commit(tokens=2, usd=0.2)

    def look() -> None:
        nonlocal going
        try:
            for _ in range(40):
                tree = do.snapshot(total, tree=True)
                for one in (tree, *tree.children):
                    assert one.usd_used_nanos == one.tokens_used * NANOS // 10
                    assert one.usd_reserved_nanos == one.tokens_reserved * NANOS // 10
                    assert one.tokens_reserved == 3 * one.in_flight
                first, second, third = tree.children
                assert max(first.in_flight, second.in_flight) + third.in_flight <= tree.in_flight
                assert tree.tokens_used + tree.tokens_reserved + tree.tokens_remaining == 10**6
        finally:
            going = False

    run_together(look, *[lambda pool=pool: spend(pool) for pool in (children[0], joined, children[2])])
    assert counters(total)[1:2] + counters(total)[3:] == (0, 0, 0)


@pytest.mark.usefixtures("racing")
def test_a_tree_never_sees_a_spend_in_one_scope_alone(kind: Kind, do: Do) -> None:
    total = kind.pool(name="total")
    children = [total.child(name=f"child {number}") for number in range(3)]
    going = True

    def spend(child: Any) -> None:
        while going:
            with child.reserve(tokens=3) as reservation:
                reservation.commit(tokens=2)

    def look() -> None:
        nonlocal going
        try:
            for _ in range(40):
                tree = do.snapshot(total, tree=True)
                assert tree.tokens_used == sum(child.tokens_used for child in tree.children)
                assert tree.in_flight == sum(child.in_flight for child in tree.children)
        finally:
            going = False

    run_together(look, *[lambda child=child: spend(child) for child in children])


# ---------------------------------------------------------------- nothing leaks


def drop(do: Do, pool: Pool, **amounts: Any) -> list[str]:
    """Reserve and drop, and return the warnings, when there is one. A loop may hold the reservation for a moment."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", ResourceWarning)
        do.reserve(pool, **amounts)
        until(lambda: bool(seen))
    return [str(one.message) for one in seen if one.category is ResourceWarning]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_reservation_that_is_dropped_comes_back_with_a_warning(kind: Kind, do: Do, shape: str) -> None:
    asked, pool = shaped(kind, shape, token_cap=10, usd_cap=1)
    (warning,) = drop(do, asked, tokens=7, usd=0.5)
    assert re.search(rf"Reservation in {asked.name!r} tokens 7 .* was dropped: commit\(\) or release", warning)
    until(lambda: counters(pool) == NOTHING)
    do.record(asked, tokens=10, usd=1)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("operation", ["record", "reserve", "snapshot"])
def test_the_next_operation_finds_what_was_dropped_before(kind: Kind, operation: str) -> None:
    pool = kind.pool(token_cap=10)
    for _ in range(5):
        pool.reserve(tokens=10)  # dropped at once
        if operation == "record":
            pool.record(tokens=10)
            pool.reset()
        elif operation == "reserve":
            pool.reserve(tokens=10).release()
        else:
            assert counters(pool) == NOTHING


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_reservations_in_a_cycle_of_garbage_come_back(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10)
    cycle: list[object] = [do.reserve(pool, tokens=5), do.reserve(pool, tokens=5)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    until(lambda: counters(pool) == NOTHING)


def test_a_drop_is_told_as_an_event(kind: Kind, do: Do) -> None:
    pool, heard = kind.pool(token_cap=10), []
    pool.subscribe(lambda event: heard.append((event.kind, event.tokens)))
    drop(do, pool, tokens=7)
    until(lambda: counters(pool) == NOTHING and len(heard) == 2)
    assert heard == [("reserve", 7), ("drop", 7)]


def test_a_drop_comes_back_though_the_warning_is_an_error(kind: Kind) -> None:
    pool = kind.pool(token_cap=10)
    unraisable: list[Any] = []
    before, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pool.reserve(tokens=10)
            until(lambda: bool(unraisable))
    finally:
        sys.unraisablehook = before
    assert issubclass(unraisable.pop().exc_type, ResourceWarning)
    until(lambda: counters(pool) == NOTHING)


def test_a_commit_in_the_end_of_a_generator_that_is_dropped_is_counted(kind: Kind) -> None:
    """A generator that is dropped between its yield and its end runs its ``finally`` as it is collected."""
    pool = kind.pool(token_cap=10)

    def call() -> Iterator[None]:
        reservation = pool.reserve(tokens=5)
        try:
            yield
        finally:
            reservation.commit(tokens=3)

    running = call()
    next(running)
    del running
    assert counters(pool) == (3, 0, 0, 0, 0)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_commit_after_the_collector_finalised_the_reservation_is_counted(kind: Kind) -> None:
    """Of a cycle of garbage the reservation is finalised first here, since it is older than what commits it."""
    pool = kind.pool(token_cap=10)

    def call(reservation: Any) -> Iterator[None]:
        try:
            yield
        finally:
            reservation.commit(tokens=3)

    held: list[Any] = [pool.reserve(tokens=5)]
    held[0] = running = call(held[0])
    cycle: list[Any] = [running]
    cycle.append(cycle)
    next(running)
    del held, running, cycle
    gc.collect()
    until(lambda: counters(pool) == (3, 0, 0, 0, 0))


def test_what_is_settled_while_it_is_dropped_is_settled_once(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=100)
    for _ in range(10):
        do.commit(do.reserve(pool, tokens=5), tokens=1)
        do.release(do.reserve(pool, tokens=5))
    assert counters(pool) == (10, 0, 0, 0, 0)


# ---------------------------------------------------------------- no deadlock


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system sends no signals to threads")
def test_a_signal_handler_may_look_and_never_hangs_or_changes_a_number(kind: Kind) -> None:
    """In a store a handler that interrupts a step of its own thread is refused, since the step has the connection."""
    pool: Any = kind.pool(token_cap=10**6)
    seen = {"answers": 0, "refusals": 0}
    main, going = threading.get_ident(), threading.Event()

    def look(_number: int, _frame: object) -> None:
        try:
            snapshot = pool.snapshot()
        except RuntimeError:
            seen["refusals"] += 1
        else:
            assert snapshot.tokens_used + snapshot.tokens_reserved <= 10**6
            seen["answers"] += 1

    def interrupt() -> None:
        while not going.wait(0.0003):
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, look)
    interrupting, turns = all_kinds.in_a_thread(interrupt), 0
    try:
        while sum(seen.values()) < 100:
            with pool.reserve(tokens=2) as reservation:
                reservation.commit(tokens=1)
            turns += 1
    finally:
        going.set()
        interrupting.result()
        signal.signal(signal.SIGUSR1, before)
    assert counters(pool) == (turns, 0, 0, 0, 0)
    assert kind.stored or not seen["refusals"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_finalisers_may_run_at_any_point_and_what_they_drop_comes_back(kind: Kind) -> None:
    """Collections come at every allocation, also inside an operation."""
    pool = kind.pool(token_cap=1000)
    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(20):
            cycle: list[object] = [pool.reserve(tokens=5)]
            cycle.append(cycle)
            del cycle
            pool.record(tokens=1)
    finally:
        gc.set_threshold(*before)
    gc.collect()
    until(lambda: counters(pool) == (20, 0, 0, 0, 0))


def test_a_call_that_waits_does_not_stop_the_calls_of_others(kind: Kind, do: Do) -> None:
    pool, other = kind.pool(token_cap=10), kind.pool(token_cap=10)
    held = do.reserve(pool, tokens=10)
    waiters = [do.wait(pool, tokens=1) for _ in range(3)]
    all_kinds.in_line(kind, pool, 3)
    do.record(other, tokens=1)
    assert counters(pool) == (0, 10, 0, 0, 1)
    do.snapshot(pool, tree=True)
    do.release(held)
    for waiter in waiters:
        do.release(waiter.result())


# ---------------------------------------------------------------- no second budget

forks = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def forking(test: Any) -> Any:
    for mark in forks:
        test = mark(test)
    return test


@forking
@IN_PROCESS
def test_in_process_a_forked_child_refuses_to_spend_the_budget_again(kind: Kind) -> None:
    pool = kind.pool(token_cap=10)
    pool.record(tokens=4)

    def child() -> None:
        with pytest.raises(PoolForked):
            pool.record(tokens=1)
        pool.detach()
        pool.record(tokens=6)

    in_child(child)
    assert counters(pool)[0] == 4


@forking
@IN_STORES
def test_in_a_store_a_forked_child_spends_from_the_same_budget(kind: Kind) -> None:
    pool: Any = kind.pool(token_cap=20)
    mine = pool.reserve(tokens=5)
    pool.record(tokens=4)

    def child() -> None:
        assert counters(pool) == (4, 5, 0, 0, 1)
        assert mine.completed  # it is the parent's
        with pytest.raises(ReservationClosed):
            mine.commit()
        mine.release()
        with pool.reserve(tokens=8) as reservation:
            assert counters(pool) == (4, 13, 0, 0, 2)
            with pytest.raises(BudgetExceeded):
                pool.record(tokens=4)
            reservation.commit(tokens=6)
        pool.detach()
        assert counters(pool) == (10, 5, 0, 0, 1)

    in_child(child)
    assert counters(pool) == (10, 5, 0, 0, 1)
    mine.commit(tokens=1)
    assert counters(pool) == (11, 0, 0, 0, 0)


@forking
@IN_STORES
def test_a_fork_beside_threads_that_spend_hangs_nobody_and_loses_nothing(kind: Kind) -> None:
    pool, going = kind.pool(), threading.Event()
    counts = [0, 0]

    def spend(number: int) -> None:
        while not going.is_set():
            pool.reserve(tokens=1).commit()
            counts[number] += 1

    threads = [threading.Thread(target=spend, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()

    def child() -> None:
        for _ in range(5):
            pool.record(tokens=1)

    try:
        for _ in range(5):
            in_child(child)
    finally:
        going.set()
        for thread in threads:
            thread.join(all_kinds.LONG)
    assert counters(pool) == (sum(counts) + 25, 0, 0, 0, 0)
