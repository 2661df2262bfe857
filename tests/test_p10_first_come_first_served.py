"""P10: waiters are served in the order of arrival, and a request that can never fit is refused at once.

The tests use tasks of one event loop to make every order deterministic: they let all tasks run until nothing more
happens, and then take the next step. Where a test uses threads, it waits until they are in line.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from support import caught, counters, forked, line_of, run_together, takes_the_short_way, waiters
from token_budget import (
    BudgetExceeded,
    BudgetPool,
    BudgetTimeout,
    PoolClosed,
    PoolForked,
    Reservation,
    ReservationClosed,
    Window,
    _bells,
    _ledger,
    _sleep,
)


async def settle() -> None:
    """Let every task run until nothing more happens."""
    for _ in range(6):
        await asyncio.sleep(0)


def in_line(pool: BudgetPool, count: int) -> None:
    """Block until this many callers wait. Threads need this, because they take a while to start."""
    deadline = time.monotonic() + 20
    while len(waiters(pool)) != count:
        assert time.monotonic() < deadline, f"{len(waiters(pool))} wait, not {count}"
        time.sleep(0)


class Line:
    """Tasks that wait for reservations, by name, and the order in which they got them."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.tasks: dict[str, asyncio.Task[Reservation]] = {}

    async def wait(self, name: str, pool: BudgetPool, tokens: int, timeout: float | None = None) -> None:
        async def call() -> Reservation:
            reservation = await pool.areserve(tokens=tokens, timeout=timeout)
            self.order.append(name)
            return reservation

        self.tasks[name] = asyncio.create_task(call())
        await settle()

    async def give_back(self, *names: str) -> None:
        for name in names:
            (await self.tasks.pop(name)).release()
            await settle()


def run(main: Callable[[Line], Awaitable[None]]) -> None:
    asyncio.run(main(Line()))  # type: ignore[arg-type]


# ---------------------------------------------------------------- the order


def test_waiters_are_served_in_the_order_of_arrival() -> None:
    async def main(line: Line) -> None:
        pool = BudgetPool(token_cap=10)
        held = [pool.reserve(tokens=5) for _ in range(2)]
        for name, tokens in {"a": 8, "b": 1, "c": 5}.items():
            await line.wait(name, pool, tokens)
        held[0].release()
        await settle()
        assert line.order == []  # 5 are free: b and c would fit, but a is first
        held[1].commit(tokens=1)
        await settle()
        assert line.order == ["a", "b"]
        await line.give_back("a")
        assert line.order == ["a", "b", "c"]
        await line.give_back("b", "c")
        assert counters(pool) == (1, 0, 0, 0, 0)

    run(main)


def test_a_newcomer_does_not_overtake_a_waiter() -> None:
    async def main(line: Line) -> None:
        pool = BudgetPool(token_cap=10, name="run")
        held = pool.reserve(tokens=5)
        await line.wait("large", pool, 8)
        for operation in (pool.record, pool.reserve, pool.try_reserve):
            with pytest.raises(BudgetExceeded, match="attempted 6 <= cap 10 .*: others wait for room, and") as raised:
                operation(tokens=1)
            assert not raised.value.exhausted
        with pytest.raises(BudgetTimeout):
            await pool.areserve(tokens=1, timeout=0.001)
        await line.wait("small", pool, 1)
        assert line.order == []
        held.release()
        await settle()
        assert line.order == ["large", "small"]
        await line.give_back("large", "small")
        pool.record(tokens=10)

    run(main)


def test_a_forced_record_is_counted_even_while_others_wait() -> None:
    async def main(line: Line) -> None:
        pool = BudgetPool(token_cap=10)
        held = pool.reserve(tokens=5)
        await line.wait("a", pool, 8)
        pool.record(tokens=1, force=True)
        held.release()
        await line.give_back("a")
        assert counters(pool)[0] == 1

    run(main)


def test_threads_and_tasks_stand_in_one_line() -> None:
    pool = BudgetPool(token_cap=10)
    held = pool.reserve(tokens=10)
    order: list[str] = []

    def thread(name: str) -> threading.Thread:
        def wait() -> None:
            with pool.reserve(tokens=10, timeout=30):
                order.append(name)

        made = threading.Thread(target=wait)
        made.start()
        return made

    async def task(name: str) -> None:
        async with pool.areserve(tokens=10):
            order.append(name)

    async def main() -> None:
        first = thread("thread 1")
        in_line(pool, 1)
        tasks = [asyncio.create_task(task("task 2"))]
        await settle()
        third = thread("thread 3")
        in_line(pool, 3)
        tasks.append(asyncio.create_task(task("task 4")))
        await settle()
        held.release()
        await asyncio.gather(*tasks)
        for one in (first, third):
            one.join(30)

    asyncio.run(main())
    assert order == ["thread 1", "task 2", "thread 3", "task 4"]
    assert counters(pool) == (0, 0, 0, 0, 0)
    pool.record(tokens=10)


def test_a_caller_that_waits_for_a_full_scope_never_blocks_callers_that_do_not_need_that_scope() -> None:
    async def main(line: Line) -> None:
        total = BudgetPool(token_cap=100, name="total")
        ann, bob = total.child(token_cap=10, name="ann"), total.child(token_cap=50, name="bob")
        held = ann.reserve(tokens=10)
        await line.wait("ann", ann, 5)
        with bob.reserve(tokens=50), total.reserve(tokens=40):
            await line.wait("bob", bob, 1)  # waits for room in bob's own scope
            assert caught(BudgetExceeded, ann.record, tokens=0)
        await settle()
        assert line.order == ["bob"]
        held.release()
        await line.give_back("ann", "bob")

    run(main)


def test_waiters_at_a_parent_are_served_by_age_whichever_child_they_came_from() -> None:
    async def main(line: Line) -> None:
        total = BudgetPool(token_cap=10)
        ann, bob = total.child(), total.child()
        held = [ann.reserve(tokens=5), bob.reserve(tokens=5)]
        await line.wait("bob 1", bob, 6)
        await line.wait("ann 2", ann, 5)
        await line.wait("total 3", total, 1)
        held[0].release()
        await settle()
        assert line.order == []  # 5 are free, but bob is first and needs 6
        held[1].release()
        await settle()
        assert line.order == ["bob 1"]
        await line.give_back("bob 1")
        assert line.order == ["bob 1", "ann 2", "total 3"]
        await line.give_back("ann 2", "total 3")

    run(main)


def test_a_waiter_that_gets_room_below_takes_its_old_place_in_the_line_above() -> None:
    async def main(line: Line) -> None:
        total = BudgetPool(token_cap=10)
        ann, bob = total.child(token_cap=5), total.child()
        below, above = ann.reserve(tokens=5), total.reserve(tokens=5)
        await line.wait("ann 1", ann, 5)  # waits for room in ann's scope
        await line.wait("bob 2", bob, 6)  # waits for room in the total
        await line.wait("bob 3", bob, 1)
        ann.set_caps(token_cap=10)  # now ann's scope has room, but the total has none
        await settle()
        assert line.order == []
        above.release()
        await settle()
        assert line.order == ["ann 1"]
        below.release()
        await settle()
        assert line.order == ["ann 1"]  # bob 2 needs 6
        await line.give_back("ann 1")
        assert line.order == ["ann 1", "bob 2", "bob 3"]
        await line.give_back("bob 2", "bob 3")

    run(main)


def test_a_waiter_that_gets_room_below_still_waits_behind_an_older_one_above() -> None:
    async def main(line: Line) -> None:
        total = BudgetPool(token_cap=20)
        ann = total.child(token_cap=5)
        above, below = total.reserve(tokens=10), ann.reserve(tokens=5)
        await line.wait("total 1", total, 6)  # 5 are free
        await line.wait("ann 2", ann, 3)  # waits for room in ann's scope
        ann.set_caps(token_cap=8)  # now ann 2 would fit, but the older waiter does not
        await settle()
        assert line.order == []
        assert caught(BudgetExceeded, total.record, tokens=1)
        above.release()
        await settle()
        assert line.order == ["total 1", "ann 2"]
        await line.give_back("total 1", "ann 2")
        below.release()

    run(main)


def test_two_hundred_tasks_that_share_room_for_twenty_are_served_in_order() -> None:
    pool = BudgetPool(token_cap=20 * 500)
    order: list[int] = []
    most = 0

    async def call(index: int) -> None:
        nonlocal most
        async with pool.areserve(tokens=500) as reservation:
            order.append(index)
            most = max(most, pool.snapshot().in_flight)
            await asyncio.sleep(0)
            reservation.commit(tokens=0)

    async def main() -> None:
        await asyncio.gather(*[call(index) for index in range(200)])

    asyncio.run(main())
    assert order == list(range(200))
    assert most == 20


def test_room_given_to_a_waiter_is_its_own_before_it_wakes() -> None:
    """Direct hand-off: no other caller can take the room between the release and the wake-up."""

    async def main(line: Line) -> None:
        pool = BudgetPool(token_cap=10)
        held = pool.reserve(tokens=10)
        await line.wait("a", pool, 10)
        held.release()
        assert counters(pool) == (0, 10, 0, 0, 1)  # the task has not run yet
        assert caught(BudgetExceeded, pool.record, tokens=1)
        await line.give_back("a")

    run(main)


# ---------------------------------------------------------------- operations that make room


@pytest.mark.parametrize(
    "free",
    [
        lambda pool, held: held.release(),
        lambda pool, held: held.commit(tokens=0),
        lambda pool, held: held.__exit__(None, None, None),
        lambda pool, held: pool.set_caps(token_cap=100),
        lambda pool, held: (held.commit(tokens=3), pool.reset()),
    ],
    ids=["release", "commit", "leave", "set_caps", "reset"],
)
@pytest.mark.parametrize("below", [False, True])
def test_whatever_frees_room_hands_it_over(free: Callable[[BudgetPool, Reservation], Any], below: bool) -> None:
    async def main(line: Line) -> None:
        pool = BudgetPool(token_cap=10)
        child = pool.child() if below else pool
        pool.record(tokens=1)
        held, filler = pool.reserve(tokens=5), pool.reserve(tokens=4)
        await line.wait("a", child, 5)
        free(pool, held)
        await settle()
        filler.release()
        await settle()
        assert line.order == ["a"]
        await line.give_back("a")
        held.release()

    run(main)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_dropped_reservation_serves_a_waiter_at_once() -> None:
    pool = BudgetPool(token_cap=10)
    held = [pool.reserve(tokens=10)]
    got = threading.Event()

    def wait() -> None:
        with pool.reserve(tokens=10, timeout=30):
            got.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    in_line(pool, 1)
    held.clear()
    gc.collect()
    assert got.wait(30)
    waiting.join(30)
    assert counters(pool) == (0, 0, 0, 0, 0)


def test_room_may_come_from_another_thread_or_another_event_loop() -> None:
    pool = BudgetPool(token_cap=10)
    held = [pool.reserve(tokens=5), pool.reserve(tokens=5)]

    async def wait() -> None:
        async with pool.areserve(tokens=10, timeout=30):
            pass

    async def free() -> None:
        held.pop().commit(tokens=0)

    waiting = threading.Thread(target=lambda: asyncio.run(wait()))
    waiting.start()
    in_line(pool, 1)
    held.pop().release()
    asyncio.run(free())
    waiting.join(30)
    assert not waiting.is_alive()
    assert counters(pool) == (0, 0, 0, 0, 0)


# ---------------------------------------------------------------- requests that can never fit


def test_a_request_that_cannot_fit_even_if_everything_in_flight_came_back_is_refused_at_once() -> None:
    pool = BudgetPool(token_cap=10, usd_cap=1)
    pool.record(tokens=3)
    with pool.reserve(tokens=5):
        for arguments in ({"tokens": 8}, {"usd": 1.5}):
            with pytest.raises(BudgetExceeded) as raised:
                pool.reserve(timeout=None, **arguments)
            assert raised.value.exhausted
            assert not isinstance(raised.value, BudgetTimeout)
    assert not waiters(pool)
    assert takes_the_short_way(pool)  # nobody waits


@pytest.mark.parametrize(
    ("happens", "error"),
    [
        (lambda pool, held: caught(BudgetExceeded, pool.record, tokens=5, force=True), BudgetExceeded),
        (lambda pool, held: held[0].commit(), BudgetExceeded),
        (lambda pool, held: pool.set_caps(token_cap=7), BudgetExceeded),
        (lambda pool, held: pool.set_caps(usd_cap=0), BudgetExceeded),
        (lambda pool, held: pool.close(), PoolClosed),
    ],
    ids=["force", "commit", "token cap", "usd cap", "close"],
)
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("above", [False, True])
def test_a_waiter_is_refused_as_soon_as_its_request_can_no_longer_fit(
    happens: Callable[[BudgetPool, list[Reservation]], Any], error: type[Exception], second: bool, above: bool
) -> None:
    """This also holds if it waits behind another waiter, or at a scope other than the one that is now too small."""

    async def main(line: Line) -> None:
        total = BudgetPool(token_cap=10, usd_cap=1, name="total")
        child = total.child(token_cap=10, name="child")
        pool = total if above else child
        held = [child.reserve(tokens=5), child.reserve(tokens=5)]
        if second:
            await line.wait("small", child, 1)
        task = asyncio.create_task(child.areserve(tokens=8, usd=0.5))
        await settle()
        happens(pool, held)
        await settle()
        assert task.done()
        refused = task.exception()
        assert type(refused) is error
        if isinstance(refused, BudgetExceeded):
            assert refused.exhausted
        for reservation in held:
            reservation.release()
        await settle()
        for waiting in line.tasks.values():
            if waiting.exception() is None:
                waiting.result().release()
        assert counters(child)[1] == 0
        assert not waiters(total)

    run(main)


def test_when_the_head_of_the_line_is_refused_the_next_waiter_is_served() -> None:
    async def main(line: Line) -> None:
        pool = BudgetPool(token_cap=10)
        held = [pool.reserve(tokens=4), pool.reserve(tokens=4)]
        large = asyncio.create_task(pool.areserve(tokens=9))
        await settle()
        await line.wait("small", pool, 2)
        assert line.order == []
        held[0].commit(tokens=3)
        await settle()
        assert isinstance(large.exception(), BudgetExceeded)
        assert line.order == ["small"]
        held[1].release()
        await line.give_back("small")

    run(main)


# ---------------------------------------------------------------- time-outs


def test_a_time_out_says_where_it_waited_and_changes_nothing() -> None:
    total = BudgetPool(token_cap=10, name="total")
    child = total.child(token_cap=8, name="child")
    with total.reserve(tokens=6):
        with pytest.raises(BudgetTimeout) as raised:
            child.reserve(tokens=5, timeout=0.001)
        error = raised.value
        assert isinstance(error, TimeoutError)
        assert isinstance(error, BudgetExceeded)
        assert (error.pool, error.axis, error.attempted, error.cap, error.exhausted) == (
            "total",
            "tokens",
            11,
            10,
            False,
        )
        assert str(error) == (
            "budget timeout on tokens in pool 'total': attempted 11 > cap 10 (0 used, 6 reserved, 5 requested); "
            "no room came in time: wait longer, ask for less, or set larger caps"
        )
        assert counters(total) == (0, 6, 0, 0, 1)
    assert not waiters(total)


def test_a_task_times_out_as_a_thread_does_and_the_next_is_served() -> None:
    async def main(line: Line) -> None:
        pool = BudgetPool(token_cap=10)
        held = pool.reserve(tokens=5)
        await line.wait("small", pool, 6, timeout=0.001)
        await line.wait("next", pool, 5)
        with pytest.raises(BudgetTimeout):
            await line.tasks.pop("small")
        await settle()
        assert line.order == ["next"]
        held.release()
        await line.give_back("next")
        assert caught(BudgetExceeded, pool.reserve, tokens=11, timeout=1)
        with pytest.raises(BudgetExceeded):
            await pool.areserve(tokens=11)
        blocked = pool.reserve(tokens=10)
        with pytest.raises(BudgetExceeded) as raised:
            await pool.areserve(tokens=1, timeout=0)
        assert not isinstance(raised.value, BudgetTimeout)
        blocked.release()
        async with pool.areserve(tokens=1, timeout=0) as reservation:
            reservation.commit()
        assert counters(pool) == (1, 0, 0, 0, 0)

    run(main)


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), "1", True, False, [], {}, 1j, 0j, "", b""])
def test_a_bad_timeout_is_refused_before_anything(timeout: Any) -> None:
    pool = BudgetPool(token_cap=10)
    with pytest.raises((TypeError, ValueError), match="timeout must be a number of seconds"):
        pool.areserve(tokens=1, timeout=timeout)
    with pytest.raises((TypeError, ValueError), match="timeout must be a number of seconds"):
        pool.reserve(tokens=1, timeout=timeout)
    assert counters(pool) == (0, 0, 0, 0, 0)


def test_a_timeout_may_be_longer_than_any_clock() -> None:
    pool = BudgetPool(token_cap=10)
    held = pool.reserve(tokens=10)
    waiting = threading.Thread(target=lambda: pool.reserve(tokens=10, timeout=1e300).release())
    waiting.start()
    in_line(pool, 1)
    held.release()
    waiting.join(30)
    assert not waiting.is_alive()


def test_bad_amounts_are_refused_before_waiting() -> None:
    pool = BudgetPool(token_cap=10)
    for arguments in ({"tokens": -1}, {"usd": float("nan")}, {"tokens": "5"}):
        with pytest.raises((TypeError, ValueError)):
            pool.areserve(**arguments)


# ---------------------------------------------------------------- the next period


def test_a_request_with_a_finite_timeout_waits_for_the_next_period_if_that_begins_in_time() -> None:
    """Requests to a budget of tokens per minute queue instead of failing."""

    async def main(line: Line) -> None:
        now = [0.0]
        minute = Window.every(timedelta(minutes=1), clock=lambda: now[0])
        pool = BudgetPool(token_cap=10, window=minute)
        pool.record(tokens=8)
        for timeout in (0, 59, None):
            with pytest.raises(BudgetExceeded) as raised:
                await pool.areserve(tokens=5, timeout=timeout)
            assert raised.value.exhausted
            assert not isinstance(raised.value, BudgetTimeout)
        assert caught(BudgetExceeded, pool.record, tokens=5)
        with pytest.raises(BudgetExceeded):  # above the cap: no period has room for it
            await pool.areserve(tokens=11, timeout=1000)
        await line.wait("first", pool, 7, timeout=60)
        await line.wait("second", pool, 2, timeout=60)
        await line.wait("third", pool, 4, timeout=60)
        assert line.order == []
        now[0] = 60.0
        pool.snapshot()
        await settle()
        assert line.order == ["first", "second"]
        await line.give_back("first", "second")
        assert line.order[2:] == ["third"]
        await line.give_back("third")

    run(main)


def test_a_request_waits_only_if_the_next_period_of_every_scope_that_refuses_begins_in_time() -> None:
    async def main(line: Line) -> None:
        now = [0.0]
        clock = lambda: now[0]  # noqa: E731
        total = BudgetPool(token_cap=10, window=Window.every(timedelta(seconds=60), clock=clock))
        child = total.child(token_cap=10, window=Window.every(timedelta(seconds=10), clock=clock))
        child.record(tokens=10)
        with pytest.raises(BudgetExceeded) as raised:
            await child.areserve(tokens=1, timeout=30)  # the total's period ends too late
        assert raised.value.exhausted
        await line.wait("a", child, 1, timeout=60)
        now[0] = 10.0
        total.snapshot()
        await settle()
        assert line.order == []
        total.set_caps(token_cap=5)
        total.set_caps(token_cap=0)  # now no period of the total has room
        with pytest.raises(BudgetExceeded):
            await line.tasks.pop("a")

    run(main)


def test_a_waiter_for_the_next_period_times_out_if_that_does_not_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_sleep, "_SHORTEST", 0.0)
    now = [0.0]
    pool = BudgetPool(token_cap=10, window=Window.every(timedelta(seconds=0.001), clock=lambda: now[0]))
    pool.record(tokens=10)
    with pytest.raises(BudgetTimeout) as raised:  # the window's clock stands still
        pool.reserve(tokens=1, timeout=0.002)
    assert raised.value.exhausted
    assert not waiters(pool)
    assert takes_the_short_way(pool)


# ---------------------------------------------------------------- cancellations, dead loops, interrupts


def test_a_cancelled_waiter_leaves_the_line_and_the_next_is_served() -> None:
    async def main(line: Line) -> None:
        pool = BudgetPool(token_cap=10)
        held = pool.reserve(tokens=5)
        await line.wait("large", pool, 8)
        await line.wait("small", pool, 5)
        line.tasks["large"].cancel()
        await settle()
        assert line.tasks.pop("large").cancelled()
        assert line.order == ["small"]
        held.release()
        await line.give_back("small")
        assert counters(pool) == (0, 0, 0, 0, 0)

    run(main)


def test_a_cancellation_that_races_with_the_grant_gives_it_back() -> None:
    async def main(line: Line) -> None:
        pool = BudgetPool(token_cap=10)
        held = pool.reserve(tokens=10)
        await line.wait("first", pool, 10)
        await line.wait("next", pool, 10)
        held.release()  # granted to the first, whose task has not run yet
        line.tasks["first"].cancel()
        await settle()
        assert line.tasks.pop("first").cancelled()
        assert line.order == ["next"]
        await line.give_back("next")
        assert counters(pool) == (0, 0, 0, 0, 0)

    run(main)


@pytest.mark.parametrize("just_now", [False, True])
def test_waiters_of_a_closed_loop_do_not_block_the_next_waiter(monkeypatch: pytest.MonkeyPatch, just_now: bool) -> None:
    """With `just_now`, the loop is closed after the check for a closed loop and before the bell rings."""
    if just_now:
        monkeypatch.setattr(_bells.LoopBell, "deaf", lambda _bell: False)
    pool = BudgetPool(token_cap=10)
    held = pool.reserve(tokens=10)
    loop = asyncio.new_event_loop()
    dead = [loop.create_task(pool.areserve(tokens=10)) for _ in range(50)]
    loop.run_until_complete(asyncio.sleep(0))
    assert len(waiters(pool)) == 50
    loop.close()
    with_room = threading.Thread(target=lambda: pool.reserve(tokens=10, timeout=30).release())
    with_room.start()
    in_line(pool, 51 if just_now else 1)  # the next caller finds that the loop is closed
    held.release()  # with `just_now`, the room is offered to fifty dead waiters, one after the other
    with_room.join(30)
    assert not with_room.is_alive()
    assert counters(pool) == (0, 0, 0, 0, 0)
    for task in dead:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    del dead, task
    gc.collect()
    assert counters(pool) == (0, 0, 0, 0, 0)


def test_a_waiter_of_a_closed_loop_does_not_block_a_request_that_fits() -> None:
    pool = BudgetPool(token_cap=100)
    held = pool.reserve(tokens=50)
    loop = asyncio.new_event_loop()
    task = loop.create_task(pool.areserve(tokens=60))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    pool.reserve(tokens=10).release()
    assert not waiters(pool)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    held.release()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_dropping_a_granted_reservation_serves_the_next_waiter() -> None:
    """The line must not keep a reservation alive after all callers have dropped it."""

    async def main(line: Line) -> None:
        pool = BudgetPool(token_cap=10)
        held = pool.reserve(tokens=10)
        await line.wait("a", pool, 4)
        await line.wait("b", pool, 8)
        held.release()
        await settle()
        assert line.order == ["a"]
        line.tasks.pop("a")
        gc.collect()
        await settle()
        assert line.order == ["a", "b"]
        await line.give_back("b")

    run(main)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_many_drops_from_many_threads_serve_a_waiter() -> None:
    for _ in range(5):
        pool = BudgetPool(token_cap=300)
        held = [[pool.reserve(tokens=1) for _ in range(100)] for _ in range(3)]
        waiting = threading.Thread(target=lambda pool=pool: pool.reserve(tokens=300, timeout=60).release())
        waiting.start()
        in_line(pool, 1)
        run_together(*[one.clear for one in held])
        waiting.join(10)
        assert not waiting.is_alive()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_waiter_is_served_at_the_end_of_a_period_even_without_other_operations(asynchronous: bool) -> None:
    now = [0.0]
    window = Window.every(timedelta(seconds=1), clock=lambda: now[0])
    pool = BudgetPool().child(token_cap=100, window=window)
    pool.record(tokens=50)
    held = pool.reserve(tokens=30)
    now[0] = 0.99999  # the waiter sleeps until the period's end, and then reads a clock that shows it

    def later() -> None:
        now[0] = 1.0

    async def wait() -> Reservation:
        return await pool.areserve(tokens=40, timeout=30)

    timer = threading.Timer(0.005, later)
    timer.start()
    got = asyncio.run(wait()) if asynchronous else pool.reserve(tokens=40, timeout=30)
    assert counters(pool) == (0, 70, 0, 0, 2)
    for reservation in (got, held):
        reservation.release()
    timer.join()


def test_a_bell_that_rings_just_as_the_timeout_ends_is_heard() -> None:
    """The race is constructed: the timer has woken the task, and the bell rings before the task runs."""

    async def main(_line: Line) -> None:
        bell = _bells.LoopBell(asyncio.get_running_loop())
        waiting = asyncio.ensure_future(bell.wait(1000))
        await settle()
        bell._wake()  # what the timer does
        bell._ring()
        assert await waiting
        other = _bells.LoopBell(asyncio.get_running_loop())
        assert not await other.wait(0)
        other._ring()
        assert await other.wait(None)

    run(main)


def test_a_late_bell_takes_no_room_back_from_a_task_of_a_loop_that_has_closed() -> None:
    """The race is constructed: the task took its room before the bell rang, and the loop has closed since."""
    pool = BudgetPool(token_cap=10)
    held = pool.reserve(tokens=10)
    loop = asyncio.new_event_loop()
    task = loop.create_task(pool.areserve(tokens=10))
    loop.run_until_complete(asyncio.sleep(0))
    (waiter,) = waiters(pool)
    held.release()
    got = loop.run_until_complete(task)
    loop.close()
    pool._family.owed.append(waiter)  # as if the granting thread rang the bell only now
    pool.snapshot()
    assert not pool._family.owed
    assert counters(pool) == (0, 10, 0, 0, 1)
    got.release()


def test_a_loop_that_closes_between_two_reads_of_the_line_does_not_break_a_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main(line: Line) -> None:
        pool = BudgetPool(token_cap=10, name="run")
        held = pool.reserve(tokens=5)
        await line.wait("a", pool, 8)
        answers = iter([False])
        monkeypatch.setattr(_bells.LoopBell, "deaf", lambda _bell: next(answers, True))
        with pytest.raises(BudgetExceeded, match="others wait for room"):
            pool.record(tokens=1)
        monkeypatch.undo()
        line.tasks["a"].cancel()
        await settle()
        held.release()

    run(main)


def test_two_interrupts_in_a_row_leave_no_waiter_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = BudgetPool(token_cap=10)
    held = pool.reserve(tokens=10)
    abandon = _ledger.abandon
    interrupts = [KeyboardInterrupt]

    def interrupted(waiter: Any) -> None:
        if interrupts:
            raise interrupts.pop()
        abandon(waiter)

    def wait(_self: object, _timeout: float | None) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(_ledger, "abandon", interrupted)
    monkeypatch.setattr(_bells.ThreadBell, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        pool.reserve(tokens=1, timeout=None)
    assert not waiters(pool)
    held.release()


def test_a_waiter_in_a_forked_child_gets_pool_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(line: Line) -> None:
        pool = BudgetPool(token_cap=10, name="run")
        held = pool.reserve(tokens=10)
        await line.wait("a", pool, 5, timeout=1000)
        forked(pool)
        loop = asyncio.get_running_loop()
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + 1000)
        with pytest.raises(PoolForked, match="'run'"):
            await line.tasks.pop("a")
        held.release()

    run(main)


def test_an_areserve_is_not_copied() -> None:
    asked = BudgetPool().areserve()
    with pytest.raises(TypeError, match="call areserve"):
        copy.copy(asked)
    asked.close()


def test_a_refusal_because_others_wait_names_the_axis_that_is_asked_for() -> None:
    async def main(line: Line) -> None:
        pool = BudgetPool(usd_cap=1)
        held = pool.reserve(usd=0.5)
        task = asyncio.ensure_future(pool.areserve(usd=0.8))
        await settle()
        with pytest.raises(BudgetExceeded, match="on tokens: attempted 10, no cap .*others wait for room") as raised:
            pool.record(tokens=10)
        assert (raised.value.axis, raised.value.cap, raised.value.exhausted) == ("tokens", None, False)
        with pytest.raises(BudgetExceeded, match="on usd: attempted 0.6 <= cap 1 .*others wait for room"):
            pool.record(usd=0.1)
        with pytest.raises(BudgetTimeout, match="on usd: attempted 0.6 <= cap 1 .*; others were before it, and"):
            await pool.areserve(usd=0.1, timeout=0.001)
        held.release()
        (await task).release()

    run(main)


def test_a_waiter_that_is_collected_with_its_loop_leaves_the_line() -> None:
    pool = BudgetPool(token_cap=10)
    held = pool.reserve(tokens=10)
    waiting = pool.areserve(tokens=10)

    async def start() -> None:
        task = asyncio.ensure_future(waiting)
        await settle()
        task._log_destroy_pending = False  # type: ignore[attr-defined]

    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    assert len(waiters(pool)) == 1
    loop.close()
    waiting.close()
    assert not waiters(pool)
    held.release()
    pool.record(tokens=10)


def test_an_interrupted_thread_leaves_the_line_and_the_next_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = BudgetPool(token_cap=10)
    held = pool.reserve(tokens=5)

    class Interrupted(_bells.ThreadBell):
        def wait(self, timeout: float | None) -> bool:
            following.start()
            in_line(pool, 2)
            raise KeyboardInterrupt

    following = threading.Thread(target=lambda: pool.reserve(tokens=5, timeout=30).release())
    bell = _bells.ThreadBell
    monkeypatch.setattr(_sleep, "ThreadBell", Interrupted)
    original = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        monkeypatch.setattr(_sleep, "ThreadBell", bell)
        original(thread)

    monkeypatch.setattr(following, "start", lambda: start(following))
    with pytest.raises(KeyboardInterrupt):
        pool.reserve(tokens=8, timeout=None)
    following.join(30)
    assert not following.is_alive()
    held.release()
    assert counters(pool) == (0, 0, 0, 0, 0)


def test_an_areserve_is_a_coroutine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It works in tasks, in task groups and from other threads, and warns if it is never awaited."""

    async def main(_line: Line) -> None:
        pool = BudgetPool(token_cap=10, name="run")
        asked = pool.areserve(tokens=10)
        assert isinstance(asked, Coroutine)
        assert asyncio.iscoroutine(asked)
        held = await asyncio.create_task(asked)
        loop = asyncio.get_running_loop()
        later = await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(pool.areserve(tokens=4), loop))
        gathered = asyncio.gather(pool.areserve(tokens=3), pool.areserve(tokens=3))
        limited = asyncio.create_task(asyncio.wait_for(pool.areserve(tokens=1), 1000))
        await settle()
        assert len(waiters(pool)) == 4
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + 1000)
        with pytest.raises(asyncio.TimeoutError):
            await limited
        held.release()
        for one in (*await gathered, await asyncio.wrap_future(later)):
            one.release()
        if hasattr(asyncio, "TaskGroup"):
            async with asyncio.TaskGroup() as group:
                task = group.create_task(pool.areserve(tokens=10))
            task.result().release()
        assert counters(pool) == (0, 0, 0, 0, 0)

    run(main)
    pool = BudgetPool(token_cap=10, name="run")
    with pytest.warns(RuntimeWarning, match=r"^<areserve\(\) of 'run'> was never awaited$"):
        pool.areserve(tokens=1)
    assert counters(pool) == (0, 0, 0, 0, 0)
    pool.areserve(tokens=1).close()  # closing it on purpose gives no warning


def test_a_warning_comes_before_a_wait_in_a_thread_whose_event_loop_is_running() -> None:
    async def main(_line: Line) -> None:
        pool = BudgetPool(token_cap=10)
        held = pool.reserve(tokens=6, timeout=60)  # no wait, so no warning
        assert caught(BudgetExceeded, pool.reserve, tokens=5)
        assert caught(BudgetExceeded, pool.reserve, tokens=11, timeout=60)
        with pytest.warns(RuntimeWarning, match=r"about to wait .* event loop is running.*areserve") as seen:
            assert caught(BudgetTimeout, pool.reserve, tokens=5, timeout=0.001)
        assert [warning.filename for warning in seen] == [caught.__code__.co_filename]
        with pytest.raises(RuntimeWarning):  # raised as an error, the warning prevents the wait
            pool.reserve(tokens=5, timeout=None)
        assert not waiters(pool)
        held.release()
        assert counters(pool) == (0, 0, 0, 0, 0)

    run(main)


def test_tasks_of_trio_wait_in_the_same_line_as_threads() -> None:
    trio = pytest.importorskip("trio")
    pytest.importorskip("trio.testing")
    pool = BudgetPool(token_cap=10)
    held = pool.reserve(tokens=10)
    order: list[str] = []

    async def task(name: str, tokens: int) -> None:
        async with pool.areserve(tokens=tokens):
            order.append(name)

    def wait() -> None:
        with pool.reserve(tokens=10, timeout=30):
            order.append("thread")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task, "first", 10)
            await trio.testing.wait_all_tasks_blocked()
            thread = threading.Thread(target=wait)
            thread.start()
            in_line(pool, 2)
            with trio.CancelScope() as scope:
                nursery.start_soon(task, "last", 5)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(BudgetTimeout):
                    await pool.areserve(tokens=1, timeout=0.001)
                scope.cancel()
                await pool.areserve(tokens=1)
            assert scope.cancelled_caught
            assert len(waiters(pool)) == 3
            held.release()
        thread.join(30)

    trio.run(main)
    assert order == ["first", "thread", "last"]
    assert counters(pool) == (0, 0, 0, 0, 0)


def test_an_areserve_can_be_used_only_once() -> None:
    async def main(_line: Line) -> None:
        pool = BudgetPool(token_cap=10)
        asked = pool.areserve(tokens=1)
        (await asked).release()
        with pytest.raises(RuntimeError, match="awaited or entered once"):
            await asked
        with pytest.raises(ReservationClosed):
            async with pool.areserve(tokens=1) as reservation:
                reservation.commit()
                reservation.commit()
        assert counters(pool) == (1, 0, 0, 0, 0)

    run(main)


def test_an_areserve_that_must_wait_outside_an_event_loop_raises_and_holds_nothing() -> None:
    pool = BudgetPool(token_cap=10)
    with pool.reserve(tokens=10), pytest.raises(RuntimeError, match="no running event loop"):
        pool.areserve(tokens=1).send(None)
    assert counters(pool) == (0, 0, 0, 0, 0)


# ---------------------------------------------------------------- forks, leftovers


def test_a_forked_child_has_no_waiters() -> None:
    async def main(line: Line) -> None:
        pool = BudgetPool(token_cap=10)
        child = pool.child()
        held = pool.reserve(tokens=10)
        await line.wait("a", child, 5)
        forked(pool)
        assert not waiters(pool)
        with pytest.raises(PoolForked):
            pool.reserve(tokens=1, timeout=1)
        pool.detach()
        pool.record(tokens=10)
        line.tasks["a"].cancel()
        await settle()
        held.release()
        assert counters(pool) == (10, 0, 0, 0, 0)

    run(main)


def test_no_memory_is_kept_for_waiters_that_timed_out() -> None:
    async def main(_line: Line) -> None:
        pool = BudgetPool(token_cap=10)
        child = pool.child()
        held = pool.reserve(tokens=10)
        first = asyncio.create_task(child.areserve(tokens=10))
        await settle()
        for _ in range(500):
            with pytest.raises(BudgetTimeout):
                await child.areserve(tokens=1, timeout=1e-9)
        line: Any = line_of(pool)
        assert len(waiters(pool)) == 1
        for one in (line.now, line.later):
            assert max(len(line.parked), len(one.by_tokens), len(one.by_nanos)) <= 20
        held.release()
        (await first).release()
        assert line_of(pool) is line_of(child) is None
        assert not pool._family.owed

    run(main)


@pytest.mark.usefixtures("racing")
def test_many_waiting_threads_are_all_served() -> None:
    pool = BudgetPool(token_cap=30, usd_cap=3)
    children = [pool.child(token_cap=20) for _ in range(3)]

    def work(index: int) -> None:
        for turn in range(60):
            with children[index % 3].reserve(tokens=7 + turn % 9, usd=0.5, timeout=60) as reservation:
                if turn % 3:
                    reservation.commit(tokens=0, usd=0)

    run_together(*[lambda index=index: work(index) for index in range(9)])
    assert counters(pool) == (0, 0, 0, 0, 0)
    assert not waiters(pool)
    assert all(line_of(one) is None for one in (pool, *children))


def test_a_pool_takes_straight_runs_again_when_the_last_waiter_is_gone() -> None:
    async def main(line: Line) -> None:
        pool = BudgetPool(token_cap=10)
        assert takes_the_short_way(pool)
        held = pool.reserve(tokens=10)
        await line.wait("a", pool, 10)
        assert not takes_the_short_way(pool)
        held.release()
        await line.give_back("a")
        assert takes_the_short_way(pool)

    run(main)
