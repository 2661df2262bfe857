"""The hand: one thread, its jobs in order, what is awaited, what is dropped, what is due."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from memory_store import MemoryStore
from pools_of_all_kinds import LONG, until
from token_budget.contract import BudgetUnavailable
from token_budget.stores import _hand
from token_budget.stores._errors import StoreLost
from token_budget.stores._hand import Hand

NEVER = float("inf")


class Tended(MemoryStore):
    """A store that notes when it is tended, and says what it is told to."""

    def __init__(self) -> None:
        super().__init__("total")
        self.tended = 0
        self.answers: Iterator[Any] = itertools.repeat(NEVER)

    def tend(self) -> float:
        self.tended += 1
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return float(answer)


@pytest.fixture
def store() -> Tended:
    return Tended()


@pytest.fixture
def hand(store: Tended) -> Iterator[Hand]:
    hand = Hand(store)
    yield hand
    hand.stop(LONG)
    until(lambda: hand.thread is None)


class Gate:
    """A job that holds up the thread until it is opened."""

    def __init__(self, hand: Hand) -> None:
        self.inside, self.opened = threading.Event(), threading.Event()
        hand.drop(self)
        assert self.inside.wait(LONG)

    def __call__(self) -> None:
        self.inside.set()
        assert self.opened.wait(LONG)


LOOPS: list[Any] = ["asyncio", "trio"]


def run(loop: str, main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine function in an event loop."""
    if loop == "asyncio":
        return asyncio.run(main())  # type: ignore[arg-type]
    return pytest.importorskip("trio").run(main)


# ---------------------------------------------------------------- order


def test_jobs_are_done_one_after_another_in_the_order_in_which_they_were_given(hand: Hand) -> None:
    done: list[int] = []
    gate = Gate(hand)
    for number in range(100):
        hand.drop(done.append, number)
    assert done == []
    gate.opened.set()
    assert hand.finish(LONG)
    assert done == list(range(100))


def test_there_is_one_thread_however_many_begin_together(hand: Hand) -> None:
    threads: set[int] = set()
    start = threading.Barrier(8)

    def give() -> None:
        start.wait(LONG)
        hand.drop(lambda: threads.add(threading.get_ident()))

    givers = [threading.Thread(target=give) for _ in range(8)]
    for giver in givers:
        giver.start()
    for giver in givers:
        giver.join(LONG)
    assert hand.finish(LONG)
    assert len(threads) == 1


def test_nothing_is_started_before_there_is_something_to_do(hand: Hand) -> None:
    assert hand.finish(LONG)
    hand.stop(LONG)
    assert hand.thread is None


def test_a_hand_that_was_stopped_starts_again_for_what_it_is_given_later(hand: Hand) -> None:
    done: list[int] = []
    hand.drop(done.append, 1)
    hand.stop(LONG)
    until(lambda: hand.thread is None)
    hand.drop(done.append, 2)
    assert hand.finish(LONG)
    assert done == [1, 2]


def test_what_is_given_after_the_order_to_stop_and_before_the_thread_ends_is_done(hand: Hand) -> None:
    done: list[int] = []
    gate = Gate(hand)
    hand.stop(0)
    hand.drop(done.append, 1)  # the thread runs yet, so none is started
    gate.opened.set()
    until(lambda: done == [1])


# ---------------------------------------------------------------- what a task awaits


@pytest.mark.parametrize("loop", LOOPS)
def test_a_task_gets_what_a_job_returns_or_raises(hand: Hand, loop: str) -> None:
    async def main() -> None:
        assert await hand.off_loop(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await hand.off_loop(divmod, 7, 0)
        assert await hand.off_loop(threading.get_ident) == hand.thread

    run(loop, main)


def test_an_event_loop_goes_on_while_a_job_is_done(hand: Hand) -> None:
    async def main() -> None:
        opened = threading.Event()
        job = asyncio.ensure_future(hand.off_loop(opened.wait, LONG))
        await asyncio.sleep(0)
        opened.set()  # nobody could, if the loop were blocked
        assert await job is True

    asyncio.run(main())


def test_a_task_of_asyncio_that_is_cancelled_waits_for_the_end_of_what_it_began(hand: Hand) -> None:
    done: list[str] = []

    async def main() -> None:
        gate = Gate(hand)
        task = asyncio.ensure_future(hand.off_loop(done.append, "commit"))
        for _ in range(3):  # however often it is cancelled
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done == ["commit"]

    asyncio.run(main())


def test_a_task_of_trio_that_is_cancelled_waits_for_the_end_of_what_it_began(hand: Hand) -> None:
    trio = pytest.importorskip("trio")
    done: list[str] = []

    async def main() -> None:
        gate = Gate(hand)
        with trio.CancelScope() as scope:
            scope.cancel()
            trio.lowlevel.current_trio_token().run_sync_soon(gate.opened.set)
            await hand.off_loop(done.append, "commit")
        assert scope.cancelled_caught
        assert done == ["commit"]

    trio.run(main)


def test_a_coroutine_that_is_closed_while_it_waits_loses_nothing_that_was_begun(hand: Hand) -> None:
    done: list[str] = []

    async def main() -> None:
        gate = Gate(hand)
        coroutine = hand.off_loop(done.append, "commit")
        coroutine.send(None)
        coroutine.close()
        gate.opened.set()

    asyncio.run(main())
    assert hand.finish(LONG)
    assert done == ["commit"]


def test_what_waited_behind_a_job_that_took_its_time_to_fail_gets_its_answer(
    hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that each of a hundred calls ends within about one time-out, and not the last within a hundred."""
    monkeypatch.setattr(_hand, "_LONG", 0.01)
    tried: list[int] = []

    def fail(number: int) -> None:
        tried.append(number)
        time.sleep(0.05)  # the store's time-out
        raise BudgetUnavailable("no server")

    async def main() -> list[Any]:
        return await asyncio.gather(*[hand.off_loop(fail, number) for number in range(50)], return_exceptions=True)

    errors = asyncio.run(main())
    assert [str(error) for error in errors] == ["no server"] * 50
    assert len({id(error) for error in errors}) == 50
    assert tried[0] == 0
    assert len(tried) < 50

    async def next_one() -> None:
        await hand.off_loop(tried.append, -1)  # who comes later tries

    asyncio.run(next_one())
    assert tried[-1] == -1


# ---------------------------------------------------------------- what is dropped


def test_what_is_dropped_is_repeated_in_order_until_the_store_answers(
    hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hand, "_AGAIN", 0.01)
    done: list[str] = []
    tried: list[str] = []
    away = True

    def give_back(name: str) -> None:
        tried.append(name)
        if away:
            raise BudgetUnavailable("no server")
        done.append(name)

    for name in "abc":
        hand.drop(give_back, name)
    hand.drop(done.append, "another")
    until(lambda: done == ["another"])
    until(lambda: tried.count("a") >= 3)
    assert tried[:5] == ["a", "b", "c", "a", "a"]  # the oldest alone finds out whether the store is back
    away = False
    until(lambda: len(done) == 4)
    assert done == ["another", "a", "b", "c"]


@pytest.mark.parametrize("error", [StoreLost("it is another"), LookupError("a bug")])
def test_what_is_dropped_and_can_never_be_done_is_logged(
    hand: Hand, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise error

    hand.drop(fail)
    assert hand.finish(LONG)
    assert "what was dropped could not be given back" in caplog.text
    assert str(error) in caplog.text


def test_a_finaliser_can_drop_something_inside_of_a_lock_that_starting_a_thread_takes(hand: Hand) -> None:
    """`Thread.start` waits for the new thread, which takes this lock; a finaliser may interrupt its holder."""
    done = threading.Event()
    with threading._active_limbo_lock:  # type: ignore[attr-defined]
        hand.drop(done.set)
    assert done.wait(LONG)


def test_where_no_thread_can_be_started_what_is_dropped_waits_for_one(
    hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def fail(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr("_thread.start_new_thread", fail)
        hand.drop(done.append, 1)
        assert not hand.finish(LONG)
        with pytest.raises(RuntimeError, match="can't start"):
            asyncio.run(hand.off_loop(done.append, 2))
    assert done == []
    hand.drop(done.append, 3)
    assert hand.finish(LONG)
    assert done == [1, 3]


def test_the_thread_itself_does_not_wait_for_its_own_end(hand: Hand) -> None:
    finished: list[bool] = []
    hand.drop(lambda: finished.append(hand.finish(LONG)))
    assert hand.finish(LONG)
    assert finished == [True]


# ---------------------------------------------------------------- what is due


def test_a_store_with_nothing_to_tend_starts_no_thread(hand: Hand, store: Tended) -> None:
    hand.begin()
    assert hand.begun
    assert (store.tended, hand.thread) == (1, None)


def test_a_store_is_tended_when_it_said(hand: Hand, store: Tended) -> None:
    store.answers = iter([0.001, 0.001, NEVER])
    hand.begin()
    until(lambda: store.tended == 3)


def test_a_store_that_fails_to_be_tended_is_tended_again(
    hand: Hand, store: Tended, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hand, "_AGAIN", 0.001)
    store.answers = iter([0.0, ValueError("a bug"), NEVER])
    hand.begin()
    until(lambda: store.tended == 3)
    assert "tending the store failed" in caplog.text


def test_a_store_is_tended_soon_and_not_more_often_than_once_a_second(hand: Hand, store: Tended) -> None:
    hand.tend_soon()
    until(lambda: store.tended == 1)
    hand.finish(LONG)
    for _ in range(10):
        hand.tend_soon()
    hand.finish(LONG)
    assert store.tended == 1
    assert hand._due < NEVER


# ---------------------------------------------------------------- failures, and those who queue behind them


def unavailable() -> None:
    raise BudgetUnavailable("it does not answer")


async def behind_a_failure(hand: Hand, first: Callable[[], object]) -> list[object]:
    """Return what two calls get: one that was queued while the first failed, and one after that."""

    async def call(function: Callable[[], object]) -> object:
        try:
            return await hand.off_loop(function)
        except BudgetUnavailable as error:
            return str(error)

    gate = Gate(hand)
    failing = asyncio.ensure_future(call(first))
    queued = asyncio.ensure_future(call(lambda: "done"))
    await asyncio.sleep(0)
    gate.opened.set()
    assert await failing == "it does not answer"
    return [await queued, await call(lambda: "done")]


def test_who_queued_behind_a_time_out_gets_its_answer_and_who_comes_later_is_tried(
    hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hand, "_LONG", 0.0)
    assert asyncio.run(behind_a_failure(hand, unavailable)) == ["it does not answer", "done"]


def test_a_quick_refusal_is_nobody_elses_answer(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hand, "_LONG", 3600.0)
    assert asyncio.run(behind_a_failure(hand, unavailable)) == ["done", "done"]


def test_a_store_that_lets_calls_pass_is_asked_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hand, "_LONG", 0.0)
    store: Any = Tended()
    store.passing = True
    hand = Hand(store)
    assert asyncio.run(behind_a_failure(hand, unavailable)) == ["done", "done"]
    hand.stop(LONG)
    until(lambda: hand.thread is None)
