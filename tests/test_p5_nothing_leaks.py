"""P5: if a call ends without a commit, for whatever reason, its capacity comes back."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import tracemalloc
import warnings
from typing import Any

import pytest

from support import caught, counters, run_program
from token_budget import BudgetExceeded, BudgetPool, Reservation, _ledger

NOTHING = (0, 0, 0, 0, 0)


def test_leaving_the_block_without_commit_releases() -> None:
    pool = BudgetPool(token_cap=10)
    with pool.reserve(tokens=10, usd=1) as reservation:
        assert counters(pool) == (0, 10, 0, 10**9, 1)
    assert reservation.completed
    assert counters(pool) == NOTHING


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exception_in_the_block_releases_and_passes_on(error: type[BaseException]) -> None:
    pool = BudgetPool(token_cap=10)
    with pytest.raises(error), pool.reserve(tokens=10):
        raise error
    assert counters(pool) == NOTHING


def test_ctrl_c_in_the_block_releases() -> None:
    pool = BudgetPool(token_cap=10)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), pool.reserve(tokens=10):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert counters(pool) == NOTHING


def test_leaving_an_async_block_without_commit_releases_and_with_commit_counts() -> None:
    pool = BudgetPool(token_cap=10)

    async def main() -> None:
        async with pool.reserve(tokens=4) as reservation:
            assert isinstance(reservation, Reservation)
        async with pool.reserve(tokens=6) as reservation:
            reservation.commit(tokens=5)

    asyncio.run(main())
    assert counters(pool) == (5, 0, 0, 0, 0)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_task_cancelled_inside_the_block_releases(asynchronous: bool) -> None:
    pool = BudgetPool(token_cap=10)

    async def call(entered: asyncio.Event) -> None:
        if asynchronous:
            async with pool.reserve(tokens=10):
                entered.set()
                await asyncio.sleep(3600)
        else:
            with pool.reserve(tokens=10):
                entered.set()
                await asyncio.sleep(3600)

    async def main() -> None:
        entered = asyncio.Event()
        task = asyncio.create_task(call(entered))
        await entered.wait()
        assert counters(pool) == (0, 10, 0, 0, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert counters(pool) == NOTHING


def test_a_dropped_reservation_comes_back_at_the_next_operation_with_a_warning() -> None:
    pool = BudgetPool(token_cap=10, name="run")
    with pytest.warns(ResourceWarning, match=r"<Reservation in 'run' tokens 10 .* was dropped: commit\(\) or release"):
        pool.reserve(tokens=10)
    pool.record(tokens=10)
    assert counters(pool) == (10, 0, 0, 0, 0)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("operation", ["record", "reserve", "try_reserve", "snapshot", "reset", "commit"])
def test_every_operation_that_reads_the_counters_first_gets_back_what_was_dropped(operation: str) -> None:
    pool = BudgetPool(token_cap=10)
    if operation == "commit":
        mine = pool.reserve(tokens=1)
        pool.reserve(tokens=9)
        mine.commit(tokens=10)  # this would be an overrun if the nine were still held
        assert counters(pool) == (10, 0, 0, 0, 0)
        return
    pool.reserve(tokens=10)
    arguments = {"record": {"tokens": 10}, "reserve": {"tokens": 10}, "try_reserve": {"tokens": 10}}
    answer = getattr(pool, operation)(**arguments.get(operation, {}))
    if operation == "snapshot":
        assert answer.tokens_remaining == 10
    if isinstance(answer, Reservation):
        answer.release()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_reservations_in_a_cycle_of_garbage_come_back() -> None:
    pool = BudgetPool(token_cap=10)
    cycle: list[object] = [pool.reserve(tokens=5), pool.reserve(tokens=5)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert counters(pool) == NOTHING


def test_the_warning_names_where_it_was_made_under_tracemalloc() -> None:
    tracemalloc.start(5)
    try:
        pool = BudgetPool()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            pool.reserve(tokens=1)
        (warning,) = seen
        # The frame of the drop. mutmut puts its own frames in between.
        assert warning.filename == __file__ or "MUTANT_UNDER_TEST" in os.environ
        traceback = tracemalloc.get_object_traceback(warning.source)
        assert traceback is not None
        assert any(frame.filename == __file__ for frame in traceback)
    finally:
        tracemalloc.stop()


def test_a_drop_is_handled_even_if_the_warning_is_an_error() -> None:
    pool = BudgetPool(token_cap=10)
    unraisable: list[sys.UnraisableHookArgs] = []
    before, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pool.reserve(tokens=10)
    finally:
        sys.unraisablehook = before
    assert [item.exc_type for item in unraisable] == [ResourceWarning]
    unraisable.clear()
    assert counters(pool) == NOTHING


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_reservation_interrupted_before_it_was_set_up_is_collected_without_a_warning() -> None:
    half = Reservation.__new__(Reservation)
    assert repr(half) == "<Reservation, half made>"
    del half
    with pytest.raises(TypeError, match=r"is made by BudgetPool.reserve\(\), try_reserve\(\) or areserve\(\)$"):
        Reservation()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_many_drops_in_many_threads_all_come_back() -> None:
    pool = BudgetPool(token_cap=100)

    def drop() -> None:
        for _ in range(500):
            caught(BudgetExceeded, pool.reserve, tokens=7)

    threads = [threading.Thread(target=drop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters(pool) == NOTHING


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_drops_are_released_only_once_if_another_thread_releases_them_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = BudgetPool(token_cap=10)
    for amount in (4, 3, 2):
        pool.reserve(tokens=amount)
    family = pool._family
    drop = _ledger.drop

    def faster(*_: object) -> None:
        """During the release of the first reservation, another thread releases that one and the next."""
        monkeypatch.undo()
        for reservation in list(family.owed)[:2]:
            drop(reservation, family.locked)
            family.owed.remove(reservation)

    monkeypatch.setattr(_ledger, "drop", faster)
    assert counters(pool) == NOTHING
    assert not family.owed


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_operation_does_nothing_if_another_thread_has_paid_the_last_debt(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = BudgetPool(token_cap=10)
    pool.reserve(tokens=4)
    family = pool._family
    pay = family.pay

    def faster(self: Any) -> None:
        """Between the check for debts and the payment, another thread pays all of them."""
        monkeypatch.undo()
        pay()
        self.pay()

    monkeypatch.setattr(type(family), "pay", faster)
    assert counters(pool) == NOTHING


@pytest.mark.parametrize("ending", ["pass", "import sys; sys.exit(0)", "pool = None"])
def test_the_end_of_the_interpreter_is_silent(ending: str) -> None:
    program = (
        "from token_budget import BudgetPool\n"
        "pool = BudgetPool(10)\n"
        "class Keeper:\n    pass\n"
        "keeper = Keeper(); keeper.held = pool.reserve(tokens=5); keeper.self = keeper\n"
        f"{ending}\n"
    )
    done = run_program(program, "-W", "error", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_memory_is_kept_for_finished_calls() -> None:
    # In a process of its own: the threads that other tests left behind allocate as well.
    done = run_program(
        "import tracemalloc\n"
        "from token_budget import BudgetPool\n"
        "pool = BudgetPool(token_cap=10**9, usd_cap=1000)\n"
        "def calls():\n"
        "    for _ in range(1000):\n"
        "        with pool.reserve(tokens=2000, usd=0.01) as reservation:\n"
        "            reservation.commit(tokens=1500, usd=0.005)\n"
        "        pool.reserve(tokens=1000).release()\n"
        "calls()\n"
        "calls()  # CPython 3.10 keeps a cache for each function from its 1,024th call on\n"
        "tracemalloc.start()\n"
        "before, _ = tracemalloc.get_traced_memory()\n"
        "calls()\n"
        "after, _ = tracemalloc.get_traced_memory()\n"
        "print(after - before, len(pool._family.owed))\n"
    )
    kept, owed = map(int, done.stdout.split())
    assert kept < 1000  # bytes, after two thousand calls
    assert owed == 0


def test_a_pool_that_is_no_longer_used_is_freed() -> None:
    from token_budget import _family

    gc.collect()
    before = len(_family.families)
    pool = BudgetPool()
    assert len(_family.families) == before + 1
    del pool
    assert len(_family.families) == before
