"""Event loops: areserve() returns a coroutine, a wait in a loop's thread warns, trio tasks wait in the same line."""

from __future__ import annotations

import asyncio
import collections.abc
import gc
import inspect
import sys
import threading
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from shapes import SHAPES
from support import caught, counters
from token_budget import BudgetExceeded, BudgetPool, BudgetTimeout, Reservation

# ---------------------------------------------------------------- a coroutine


def test_areserve_returns_a_coroutine() -> None:
    pool = BudgetPool(token_cap=10)
    waiting = pool.areserve(tokens=1)
    assert isinstance(waiting, collections.abc.Coroutine)
    assert asyncio.iscoroutine(waiting)
    assert inspect.isawaitable(waiting)
    waiting.close()


async def create_task(pool: BudgetPool, **amounts: Any) -> Reservation:
    return await asyncio.create_task(pool.areserve(**amounts))


async def group(pool: BudgetPool, **amounts: Any) -> Reservation:
    if sys.version_info < (3, 11):
        return await pool.areserve(**amounts)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(pool.areserve(**amounts))
    return task.result()


async def gather(pool: BudgetPool, **amounts: Any) -> Reservation:
    (reservation,) = await asyncio.gather(pool.areserve(**amounts))
    return reservation


async def wait_for(pool: BudgetPool, **amounts: Any) -> Reservation:
    return await asyncio.wait_for(pool.areserve(**amounts), 60)


async def ensure_future(pool: BudgetPool, **amounts: Any) -> Reservation:
    return await asyncio.ensure_future(pool.areserve(**amounts))


async def shield(pool: BudgetPool, **amounts: Any) -> Reservation:
    return await asyncio.shield(pool.areserve(**amounts))


async def plain(pool: BudgetPool, **amounts: Any) -> Reservation:
    return await pool.areserve(**amounts)


async def threadsafe(pool: BudgetPool, **amounts: Any) -> Reservation:
    loop = asyncio.get_running_loop()

    def other_thread() -> Reservation:
        return asyncio.run_coroutine_threadsafe(pool.areserve(**amounts), loop).result(60)

    return await loop.run_in_executor(None, other_thread)


async def in_line(pool: BudgetPool, waiters: int) -> None:
    """Let the other tasks run until this many wait."""
    while pool.statistics().waiters < waiters:  # noqa: ASYNC110 - the pool tells of nobody who joins the line
        await asyncio.sleep(0)


AWAITING = [create_task, group, gather, wait_for, ensure_future, shield, plain, threadsafe]


@pytest.mark.parametrize("waits", [False, True], ids=["room", "waits"])
@pytest.mark.parametrize("awaiting", AWAITING)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_areserve_works_like_any_coroutine(shape: str, awaiting: Callable[..., Any], waits: bool) -> None:
    asked, pool = SHAPES[shape](token_cap=10)

    async def main() -> None:
        held = asked.reserve(tokens=10 if waits else 0)
        task = asyncio.create_task(awaiting(asked, tokens=4, timeout=None))
        if waits:
            await in_line(pool, 1)
        held.release()
        with await task as reservation:
            reservation.commit(tokens=3)

    asyncio.run(main())
    assert counters(pool) == (3, 0, 0, 0, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_areserve_runs_as_the_main_coroutine_of_a_loop(shape: str) -> None:
    asked, pool = SHAPES[shape](token_cap=10)
    with asyncio.run(asked.areserve(tokens=4)) as reservation:
        reservation.commit()
    assert counters(pool) == (4, 0, 0, 0, 0)
    with pytest.raises(BudgetExceeded):
        asyncio.run(asked.areserve(tokens=11))


@pytest.mark.parametrize("shape", SHAPES)
def test_an_areserve_that_nobody_awaits_warns_and_takes_nothing(shape: str) -> None:
    asked, pool = SHAPES[shape](token_cap=10, name="daily")
    with pytest.warns(RuntimeWarning, match=r"areserve\(\).*was never awaited"):
        asked.areserve(tokens=4)
    assert counters(pool) == (0, 0, 0, 0, 0)


def test_an_areserve_that_was_awaited_entered_or_closed_gives_no_warning() -> None:
    pool = BudgetPool(token_cap=10)

    async def main() -> None:
        (await pool.areserve(tokens=1)).release()
        async with pool.areserve(tokens=1):
            pass
        pool.areserve(tokens=1).close()
        with pytest.raises(BudgetExceeded):
            await pool.areserve(tokens=11)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())
        with pytest.raises(TypeError):
            pool.areserve(tokens="1")  # type: ignore[arg-type]
        gc.collect()
    assert counters(pool) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("first", ["await", "enter", "task", "close"])
@pytest.mark.parametrize("second", ["await", "enter", "task"])
def test_an_areserve_can_be_used_only_once(first: str, second: str) -> None:
    pool = BudgetPool(token_cap=10)

    async def use(how: str, waiting: Any) -> None:
        if how == "await":
            await waiting
        elif how == "enter":
            await waiting.__aenter__()
        elif how == "task":
            await asyncio.create_task(waiting)
        else:
            waiting.close()

    async def main() -> None:
        waiting = pool.areserve(tokens=1)
        await use(first, waiting)
        with pytest.raises(RuntimeError, match=r"areserve\(\)|cannot reuse already awaited coroutine"):
            await use(second, waiting)
        assert pool.snapshot().in_flight == (first != "close")
        await waiting.__aexit__(None, None, None)

    asyncio.run(main())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_cancelled_task_of_an_areserve_leaves_the_line(shape: str) -> None:
    asked, pool = SHAPES[shape](token_cap=10)

    async def main() -> None:
        held = asked.reserve(tokens=10)
        first = asyncio.create_task(asked.areserve(tokens=10))
        second = asyncio.create_task(asked.areserve(tokens=4))
        await in_line(pool, 2)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert pool.statistics().waiters == 1
        held.release()
        (await second).release()

    asyncio.run(main())
    assert counters(pool) == (0, 0, 0, 0, 0)


# ---------------------------------------------------------------- a thread that waits in a running loop


@pytest.mark.parametrize("timeout", [0.001, None])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_thread_about_to_wait_in_a_running_loop_is_warned_before_it_waits(shape: str, timeout: float | None) -> None:
    asked, pool = SHAPES[shape](token_cap=10)
    seen: list[tuple[int, str]] = []

    async def main() -> None:
        held = asked.reserve(tokens=10)

        def note(message: Any, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
            assert category is RuntimeWarning
            assert "areserve" in str(message)
            seen.append((pool.statistics().waiters, filename))
            held.release()  # before the wait: otherwise this would hang with timeout=None

        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            asked.reserve(tokens=1, timeout=timeout).release()

    asyncio.run(main())
    assert [filename for _, filename in seen] == [__file__]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_warning_that_is_an_error_changes_nothing(shape: str) -> None:
    asked, pool = SHAPES[shape](token_cap=10)

    async def main() -> None:
        with asked.reserve(tokens=10), warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(RuntimeWarning, match="areserve"):
                asked.reserve(tokens=1, timeout=60)
        assert pool.statistics().waiters == 0

    asyncio.run(main())
    assert counters(pool) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_warning_comes_without_a_wait_or_a_running_loop_in_this_thread(shape: str) -> None:
    asked, pool = SHAPES[shape](token_cap=10)

    async def main() -> None:
        asked.reserve(tokens=1, timeout=60).release()
        held = asked.reserve(tokens=10)
        with pytest.raises(BudgetExceeded):
            asked.reserve(tokens=1)
        with pytest.raises(BudgetExceeded):
            asked.reserve(tokens=11, timeout=60)
        with pytest.raises(BudgetTimeout):
            await asyncio.get_running_loop().run_in_executor(None, lambda: asked.reserve(tokens=1, timeout=0.001))
        held.release()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())
        with asked.reserve(tokens=10), pytest.raises(BudgetTimeout):
            asked.reserve(tokens=1, timeout=0.001)
    assert counters(pool) == (0, 0, 0, 0, 0)


# ---------------------------------------------------------------- trio


@pytest.mark.parametrize("shape", SHAPES)
def test_trio_tasks_threads_and_asyncio_tasks_wait_in_one_line(shape: str) -> None:
    trio = pytest.importorskip("trio")
    asked, pool = SHAPES[shape](token_cap=10)
    held = asked.reserve(tokens=10)
    order: list[str] = []

    def wait_in_line(number: int) -> None:
        while pool.statistics().waiters < number:
            pass

    async def in_asyncio(name: str) -> None:
        async with asked.areserve(tokens=10):
            order.append(name)

    def thread(name: str) -> None:
        with asked.reserve(tokens=10, timeout=60):
            order.append(name)

    async def in_trio(name: str) -> None:
        async with asked.areserve(tokens=10, timeout=60):
            order.append(name)

    bodies: list[tuple[str, Callable[[str], object]]] = [
        ("trio 1", lambda name: trio.run(in_trio, name)),
        ("thread 2", thread),
        ("asyncio 3", lambda name: asyncio.run(in_asyncio(name))),
        ("trio 4", lambda name: trio.run(in_trio, name)),
        ("thread 5", thread),
    ]
    threads = []
    for number, (name, body) in enumerate(bodies, 1):
        threads.append(threading.Thread(target=body, args=(name,), daemon=True))
        threads[-1].start()
        wait_in_line(number)
    held.release()
    for one in threads:
        one.join(30)
    assert order == [name for name, _ in bodies]
    assert counters(pool) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_under_trio_another_task_can_give_room(shape: str) -> None:
    trio = pytest.importorskip("trio")
    asked, pool = SHAPES[shape](token_cap=10)

    async def main() -> None:
        held = await asked.areserve(tokens=10)

        async def wait() -> None:
            async with asked.areserve(tokens=4) as reservation:
                reservation.commit()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            while not pool.statistics().waiters:
                await trio.lowlevel.checkpoint()
            held.commit(tokens=1)

    trio.run(main)
    assert counters(pool) == (5, 0, 0, 0, 0)


def test_a_thread_may_wait_while_another_thread_is_importing_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trio", ModuleType("trio"))  # as it stands there before its body has run
    pool = BudgetPool(token_cap=10)
    with pool.reserve(tokens=10):
        assert caught(BudgetTimeout, pool.reserve, tokens=1, timeout=0.001)


def test_a_thread_that_is_about_to_wait_inside_a_trio_task_is_warned() -> None:
    trio = pytest.importorskip("trio")
    pool = BudgetPool(token_cap=10)

    async def main() -> None:
        with pool.reserve(tokens=10), pytest.warns(RuntimeWarning, match="areserve"):
            assert caught(BudgetTimeout, pool.reserve, tokens=1, timeout=0.001)

    trio.run(main)


@pytest.mark.parametrize("shape", SHAPES)
def test_cancelled_and_late_trio_tasks_leave_the_line(shape: str) -> None:
    trio = pytest.importorskip("trio")
    asked, pool = SHAPES[shape](token_cap=10)

    async def main() -> None:
        held = asked.reserve(tokens=10)
        with pytest.raises(BudgetTimeout):
            await asked.areserve(tokens=4, timeout=0.001)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: asked.areserve(tokens=4))
            while not pool.statistics().waiters:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert pool.statistics().waiters == 0
        with trio.move_on_after(0.001) as scope:
            await asked.areserve(tokens=4)
        assert scope.cancelled_caught
        held.release()

    trio.run(main)
    assert counters(pool) == (0, 0, 0, 0, 0)


def test_the_package_does_not_import_trio_by_itself() -> None:
    import subprocess

    program = """
import asyncio, sys
from token_budget import BudgetPool
async def main():
    pool = BudgetPool(token_cap=1)
    held = pool.reserve(tokens=1)
    asyncio.get_running_loop().call_soon(held.release)
    (await pool.areserve(tokens=1)).release()
asyncio.run(main())
assert "trio" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""


def test_what_areserve_returns_leaves_the_line_as_its_last_user_drops_it_without_a_collection() -> None:
    pool = BudgetPool(token_cap=10)
    held = pool.reserve(tokens=10)

    async def main() -> tuple[int, int]:
        asked = pool.areserve(tokens=5)
        asked.send(None)
        waiting = pool.statistics().waiters
        del asked
        return waiting, pool.statistics().waiters

    gc.disable()
    try:
        assert asyncio.run(main()) == (1, 0)
    finally:
        gc.enable()
    held.release()
