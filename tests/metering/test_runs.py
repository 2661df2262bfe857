"""A run caps one job, in tasks and where it is handed over in threads; what outlives it is refused."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import signal
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from meters import StorePool, answer, ask, meter_of, used
from support import run_together
from token_budget import BudgetExceeded, BudgetPool, PoolClosed, PoolForked
from token_budget.metering import (
    CallRecord,
    Meter,
    Prices,
    Run,
    RunStopped,
    UnknownModel,
    Usage,
    _run,
    budget_run,
    current_run,
)
from token_budget.metering._report import renew_locks
from token_budget.metering._run import _for_all

WORST = 3_000_000


def spend(meter: Meter) -> None:
    """Make one call, through whatever run is current."""
    with meter.call("small", input_tokens=1000, max_output_tokens=500) as call:
        call.settle(answer())


# ---------------------------------------------------------------- what a run is


def test_a_run_is_a_child_of_the_meter_s_pool() -> None:
    pool = BudgetPool(usd_cap=1)
    meter = meter_of(pool, timeout=0)
    with budget_run("job", usd_cap=0.004, meter=meter) as run:
        assert current_run() is run
        assert (run.name, run.user, run.meter, run.stopped, run.ended) == ("job", None, meter, False, False)
        spend(meter)
        with pytest.raises(BudgetExceeded) as caught:
            spend(meter)
        assert caught.value.pool == "job"
    assert current_run() is None
    assert run.ended
    assert not run.stopped
    assert used(pool) == used(run.pool) == (900, 1_200_000, 0)
    assert not pool.closed


def test_it_is_a_child_of_the_pool_that_is_named() -> None:
    total = BudgetPool()
    project, meters_own = total.child(), total.child()
    meter = meter_of(meters_own)
    with budget_run("job", pool=project, meter=meter):
        spend(meter)
    assert used(project) == used(meters_own) == used(total) == (900, 1_200_000, 0)
    assert not project.closed


def test_without_any_pool_it_has_one_of_its_own() -> None:
    meter = meter_of()
    with budget_run("job", token_cap=1600, meter=meter) as run:
        spend(meter)
        with pytest.raises(BudgetExceeded):
            spend(meter)
    assert used(run.pool) == (900, 1_200_000, 0)
    with budget_run("default") as run:
        assert run.meter.pool is None
        assert budget_run("other")._new(None).meter is run.meter  # one price table for all of them


def test_a_meter_of_another_family_is_charged_beside() -> None:
    pool, other = BudgetPool(), BudgetPool()
    meter = meter_of(other)
    with budget_run("job", pool=pool, meter=meter) as run:
        spend(meter)
        spend(meter_of())
    assert used(pool) == used(run.pool) == (1800, 2_400_000, 0)
    assert used(other) == (900, 1_200_000, 0)


def test_a_user_s_pool_is_charged_too_and_a_user_s_name_only_shown() -> None:
    total = BudgetPool()
    users = total.keyed(name="users")
    meter = meter_of(total)
    with budget_run("job", meter=meter, user=users["ann"]) as run:
        spend(meter)
        assert run.user == "users:ann"
    assert used(users["ann"]) == used(total) == used(run.pool) == (900, 1_200_000, 0)
    assert not users["ann"].closed
    with budget_run("job", meter=meter, user="bob") as run:
        assert run.user == run.report()["user"] == "bob"


def test_a_store_s_pool_is_charged_beside_a_budget_of_the_run_s_own() -> None:
    store = StorePool(BudgetPool())
    meter = meter_of()
    with budget_run("job", pool=store, usd_cap=1, meter=meter) as run:
        spend(meter)
    assert used(store.inner) == used(run.pool) == (900, 1_200_000, 0)
    assert not store.closed


def test_tasks_belong_to_it_and_to_no_other() -> None:
    meter = meter_of()

    async def job(name: str, calls: int) -> dict[str, Any]:
        async with budget_run(name, meter=meter) as run:
            await asyncio.gather(*(asyncio.to_thread(spend, meter) for _ in range(calls)))
            return run.report()

    async def main() -> list[dict[str, Any]]:
        return [*await asyncio.gather(job("a", 3), job("b", 5))]

    reports = asyncio.run(main())
    assert [(one["name"], one["call_count"]) for one in reports] == [("a", 3), ("b", 5)]


# ---------------------------------------------------------------- runs in runs


def test_a_run_in_a_run_charges_and_reports_to_both() -> None:
    pool = BudgetPool()
    meter = meter_of(pool, timeout=0)
    records: list[CallRecord] = []
    meter.subscribe(records.append)
    with budget_run("outer", usd_cap=0.005, meter=meter) as outer:
        with budget_run("inner", usd_cap=1, user="ann") as inner:
            assert inner.meter is meter
            assert current_run() is inner
            spend(meter)
            assert inner.around == (inner, outer)
            spend(meter)
            with pytest.raises(BudgetExceeded) as caught:
                spend(meter)
            assert caught.value.pool == "outer"
        assert current_run() is outer
        assert not outer.ended
    assert used(inner.pool) == used(outer.pool) == used(pool) == (1800, 2_400_000, 0)
    for report in (inner.report(), outer.report()):
        assert (report["call_count"], report["refused"], report["usd_nanos"]) == (2, 1, 2_400_000)
    assert [(one.run, one.user) for one in records] == [("inner", "ann")] * 3


def test_a_run_in_a_run_on_another_pool_still_charges_both() -> None:
    total = BudgetPool()
    a, b = total.child(), total.child()
    meter = meter_of(total)
    with budget_run("outer", pool=a, meter=meter), budget_run("inner", pool=b):
        spend(meter)
    assert used(a) == used(b) == used(total) == (900, 1_200_000, 0)


def test_the_context_of_the_outer_run_holds_in_the_inner_one() -> None:
    with (
        budget_run("outer", user="ann", context={"plan": "free", "team": 5}),
        budget_run("inner", context={"team": 6}) as run,
    ):
        assert run._context == {"user": "ann", "plan": "free", "team": 6}


def test_a_block_may_be_entered_again_and_inside_of_itself() -> None:
    meter = meter_of()
    block = budget_run("job", usd_cap=0.004, meter=meter)
    runs: list[Run] = []
    for _ in range(2):
        with block as run:
            runs.append(run)
            spend(meter)
    with block as outer, block as inner:
        runs += [outer, inner]
        spend(meter)
        assert inner.around == (inner, outer)
    assert current_run() is None
    assert len(set(runs)) == 4
    assert all(run.ended for run in runs)
    assert [run.report()["call_count"] for run in runs] == [1, 1, 1, 1]


def test_tasks_that_share_a_block_end_their_own_run() -> None:
    block = budget_run("job", meter=meter_of())

    async def job(seconds: float) -> bool:
        async with block as run:
            await asyncio.sleep(seconds)
            return run.ended

    async def main() -> list[bool]:
        return [*await asyncio.gather(job(0.03), job(0.01), job(0.02))]

    assert asyncio.run(main()) == [False, False, False]
    assert block._open == []


# ---------------------------------------------------------------- stopping


def test_a_stopped_run_refuses_the_next_call() -> None:
    pool = BudgetPool()
    meter = meter_of(pool)
    with budget_run("job", meter=meter) as run:
        with meter.call("small", input_tokens=1000, max_output_tokens=500) as call:
            run.stop("enough")
            run.stop("again")
            call.settle(answer())  # what is in flight settles
        with pytest.raises(RunStopped, match="run 'job' was stopped: enough"):
            spend(meter)
        assert run.stopped
        assert run.stop_reason == "enough"
        report = run.report()
    assert (report["stopped"], report["stop_reason"], report["call_count"], report["refused"]) == (True, "enough", 1, 1)
    assert not pool.closed
    assert used(pool) == (900, 1_200_000, 0)
    assert run.summary().endswith(", 1 refused, stopped: enough")


def test_a_stopped_outer_run_stops_the_inner_one() -> None:
    meter = meter_of()
    with budget_run("outer", meter=meter) as outer, budget_run("inner"):
        outer.stop()
        with pytest.raises(RunStopped, match="'outer' was stopped: stopped"):
            spend(meter)
        with pytest.raises(RunStopped), budget_run("innermost"):
            pass
        with pytest.raises(TypeError):
            outer.stop(5)  # type: ignore[arg-type]


def test_a_call_that_waits_for_room_is_refused_as_the_run_stops() -> None:
    pool = BudgetPool(usd_cap=0.004)
    meter = meter_of(pool)
    busy = pool.reserve(usd=0.003)
    with budget_run("job", meter=meter) as run:
        threading.Timer(0.05, run.stop, ["from elsewhere"]).start()
        with pytest.raises(RunStopped, match="from elsewhere") as caught:
            spend(meter)
        assert isinstance(caught.value.__cause__, PoolClosed)
        assert run.report()["refused"] == 1

    async def main() -> None:
        async with budget_run("job", meter=meter) as run:
            asyncio.get_running_loop().call_later(0.05, run.stop)
            with pytest.raises(RunStopped):
                async with meter.call("small", input_tokens=1000, max_output_tokens=500):
                    pass

    asyncio.run(main())
    busy.release()


def test_a_pool_that_somebody_closes_is_no_stopped_run() -> None:
    pool = BudgetPool()
    meter = meter_of(pool)
    with budget_run("job", meter=meter) as run:
        pool.close()
        with pytest.raises(PoolClosed):
            spend(meter)
        assert run.report()["refused"] == 1
    with pytest.raises(PoolClosed), budget_run("job", meter=meter):
        pass
    total = BudgetPool()
    user, project = total.child(), total.child()
    with budget_run("job", pool=project, user=user, meter=meter_of()) as run:
        user.close()
        with pytest.raises(PoolClosed):
            spend(run.meter)


def test_a_run_that_ends_while_a_call_is_examined_says_so() -> None:
    total = BudgetPool()
    user, project = total.child(), total.child()
    with budget_run("job", pool=project, user=user, meter=meter_of()) as run:
        run.pool.close()  # as `stop` has done, when it comes between the looks
        asked = ask()
        run._check_open()
        run._stopped = "just now"
        with pytest.raises(RunStopped, match="just now"):
            run.meter._begin(asked, run)


def test_the_pool_of_a_run_that_stops_between_examining_and_charging_is_no_user_s_error() -> None:
    total = BudgetPool()
    user, project = total.child(), total.child()

    class Stopping(Prices):
        """Prices in whose look-up another thread stops the run."""

        def _most(self, *_arguments: object, **_more: object) -> int:
            run.stop("meanwhile")
            return 1000

    meter = Meter(prices=Stopping())
    with budget_run("job", pool=project, user=user, meter=meter) as run, pytest.raises(RunStopped, match="meanwhile"):
        meter._begin(ask(), run)


# ---------------------------------------------------------------- ending


def test_a_task_that_outlives_the_run_is_refused() -> None:
    meter = meter_of(BudgetPool())

    async def late(gate: asyncio.Event) -> None:
        await gate.wait()
        spend(meter)

    async def main() -> None:
        gate = asyncio.Event()
        async with budget_run("job", meter=meter):
            task = asyncio.create_task(late(gate))
        gate.set()
        with pytest.raises(RunStopped, match="run 'job' has ended"):
            await task

    asyncio.run(main())


def test_a_call_that_waits_as_the_run_ends_is_refused() -> None:
    pool = BudgetPool(usd_cap=0.004)
    meter = meter_of(pool)
    busy = pool.reserve(usd=0.003)

    async def wait() -> None:
        async with meter.call("small", input_tokens=1000, max_output_tokens=500):
            pass

    async def main() -> None:
        async with budget_run("job", meter=meter):
            task = asyncio.create_task(wait())
            await asyncio.sleep(0.02)
        with pytest.raises(RunStopped, match="has ended"):
            await task

    asyncio.run(main())
    busy.release()


def test_what_is_in_flight_as_the_run_ends_settles() -> None:
    meter = meter_of(BudgetPool())
    with budget_run("job", meter=meter) as run:
        pending = meter._begin(ask(), run)
        pending.hold()
    pending.charge()
    assert used(run.pool) == (1500, WORST, 0)
    assert run.report()["usd_nanos"] == WORST


def test_a_report_stands_still_once_the_run_has_ended() -> None:
    with budget_run("job") as run:
        assert run.report()["seconds"] < run.report()["seconds"]
    assert run.report()["seconds"] == run.report()["seconds"]


def test_an_error_in_the_block_passes_and_ends_the_run() -> None:
    with pytest.raises(ZeroDivisionError), budget_run("job") as run:
        raise ZeroDivisionError
    assert run.ended
    assert current_run() is None


def test_a_generator_leaks_its_run_and_may_end_it_anywhere() -> None:
    def generator() -> Generator[Run, None, None]:
        with budget_run("leaky") as run:
            yield run

    opened = generator()
    run = next(opened)
    assert current_run() is run  # it leaks, as the docs say
    contextvars.copy_context().run(opened.close)
    assert run.ended
    contextvars.Context().run(lambda: None)

    async def asynchronous() -> AsyncGenerator[Run, None]:
        async with budget_run("leaky") as run:
            yield run

    async def main() -> None:
        opened = asynchronous()
        run: Run = await asyncio.create_task(anext(opened))
        await asyncio.create_task(opened.aclose())
        assert run.ended

    contextvars.Context().run(asyncio.run, main())


@pytest.fixture(autouse=True)
def _in_a_context_of_its_own() -> Iterator[None]:
    from token_budget.metering._run import _current

    token = _current.set(None)
    yield
    with contextlib.suppress(ValueError):
        _current.reset(token)
    _current.set(None)
    assert _for_all == []


def test_a_run_that_leaks_into_a_block_ends_with_it_here() -> None:
    def generator() -> Generator[Run, None, None]:
        with budget_run("leaky") as run:
            yield run

    with budget_run("outer") as outer:
        opened = generator()
        inner = next(opened)
        assert current_run() is inner
        assert inner.around == (inner, outer)
    assert current_run() is inner  # it is open, and refuses, since the run around it has ended
    with pytest.raises(RunStopped, match="'outer' has ended"):
        inner._check_open()
    opened.close()
    assert current_run() is None


def test_leaving_twice_or_a_block_that_was_never_entered_does_nothing() -> None:
    block = budget_run("job")
    block.__exit__(None, None, None)
    run = block.__enter__()
    block.__exit__(None, None, None)
    block.__exit__(None, None, None)
    assert run.ended


# ---------------------------------------------------------------- threads


def test_a_thread_belongs_to_no_run_unless_it_is_handed_over() -> None:
    meter = meter_of(BudgetPool())
    with budget_run("job", meter=meter) as run, ThreadPoolExecutor(4) as executor:
        executor.submit(spend, meter).result()
        assert run.report()["call_count"] == 0
        list(executor.map(run.bind(spend), [meter] * 10))
        assert run.report()["call_count"] == 10
        assert executor.submit(current_run).result() is None
    with pytest.raises(RunStopped):
        run.bind(spend)(meter)


def test_what_is_bound_keeps_its_name_arguments_and_errors() -> None:
    with budget_run("job") as run:

        @run.bind
        def function(a: int, *, b: int) -> tuple[int, int, Run | None]:
            """Do it."""
            return a, b, current_run()

        @run.bind
        async def coroutine(a: int) -> tuple[int, Run | None]:
            await asyncio.sleep(0)
            return a, current_run()

        class Callable:
            async def __call__(self) -> Run | None:
                await asyncio.sleep(0)
                return current_run()

        outside = contextvars.Context()
        assert outside.run(function, 1, b=2) == (1, 2, run)
        assert outside.run(current_run) is None
        assert (function.__name__, function.__doc__) == ("function", "Do it.")
        assert outside.run(asyncio.run, coroutine(5)) == (5, run)
        assert outside.run(asyncio.run, run.bind(Callable())()) is run
        assert outside.run(run.bind(partial(current_run))) is run
        with pytest.raises(ZeroDivisionError):
            outside.run(run.bind(lambda: 1 // 0))
        assert outside.run(current_run) is None


def test_what_runs_later_cannot_be_bound() -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def asynchronous() -> AsyncIterator[int]:
        yield 1

    with budget_run("job") as run:
        for wrong in (generator, asynchronous, 5, None):
            with pytest.raises(TypeError):
                run.bind(wrong)  # type: ignore[arg-type]


def in_thread(function: Any, *arguments: Any) -> Any:
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function, *arguments).result()


def test_a_run_for_all_threads_takes_those_without_a_run_of_their_own() -> None:
    meter = meter_of(BudgetPool())
    with budget_run("script", meter=meter, threads=True) as run:
        assert in_thread(current_run) is run
        in_thread(spend, meter)

        def own() -> Run | None:
            with budget_run("own", meter=meter_of()) as inner:
                assert inner.around == (inner, run)
                return current_run()

        assert in_thread(own).name == "own"
    assert in_thread(current_run) is None
    assert run.report()["call_count"] == 1


def test_one_run_for_all_threads_may_stand_inside_another() -> None:
    with budget_run("outer", threads=True) as outer:
        with budget_run("inner", threads=True) as inner:
            assert in_thread(current_run) is inner
        assert in_thread(current_run) is outer


def test_another_thread_s_run_for_all_threads_takes_over_none_of_their_workers() -> None:
    def another() -> str:
        try:
            with budget_run("another", threads=True):
                return "begun"
        except RuntimeError as error:
            return str(error)

    with budget_run("outer", threads=True) as outer:
        assert in_thread(another).startswith("run 'outer' takes all threads (threads=True) until it ends")
        assert in_thread(current_run) is outer
        assert in_thread(outer.bind(another)) == "begun"  # that thread belongs to it, and stands inside
    assert in_thread(another) == "begun"


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("threads", [False, True])
def test_a_run_whose_beginning_is_interrupted_is_ended(
    done: bool, threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pool = Run._open, BudgetPool()
    begun: list[Run] = []

    def interrupted(run: Run, **more: Any) -> Any:
        begun.append(run)
        if done:
            whole(run, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "_open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        budget_run("job", pool=pool, threads=threads).__enter__()
    monkeypatch.undo()
    assert current_run() is None
    assert begun[0].ended
    assert begun[0].pool.closed
    assert not _for_all


@pytest.mark.parametrize("threads", [False, True])
def test_a_block_that_is_dropped_ends_what_it_began(threads: bool) -> None:
    block = budget_run("job", threads=threads)
    outer, inner = block.__enter__(), block.__enter__()
    assert current_run() is inner
    del block  # as by an interrupt on the way into `__exit__`
    gc.collect()
    assert outer.ended
    assert inner.ended
    assert current_run() is None
    assert not _for_all
    with pytest.raises(TypeError):
        budget_run(name=5)  # type: ignore[arg-type]  # it has begun nothing


def test_a_run_whose_end_is_interrupted_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, interrupts = Run._end, [KeyboardInterrupt()]

    def end(run: Run, before: Run | None) -> None:
        if interrupts:
            raise interrupts.pop()
        whole(run, before)

    monkeypatch.setattr(Run, "_end", end)
    block = budget_run("job")
    with pytest.raises(KeyboardInterrupt), block as run:
        pass
    assert run.ended
    assert current_run() is None
    assert block._open == []


def test_an_interrupt_while_a_run_ends_leaves_no_step_undone() -> None:
    class Interrupted(BudgetPool):
        def close(self) -> None:
            assert current_run() is None, "a signal handler here may begin a run"
            super().close()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), budget_run("job", threads=True) as run:
        run._pool = Interrupted()
    assert run.ended
    assert current_run() is None
    assert not _for_all


def test_a_run_with_a_meter_for_each_request_keeps_only_some_of_their_pools() -> None:
    total = BudgetPool()
    with budget_run("server", pool=total) as run:
        for _ in range(500):
            spend(meter_of(total.child()))
        assert len(run._charges) <= 64
        assert total.statistics().children <= 70
    assert used(total)[1] == 500 * 1_200_000


def test_locks_that_other_threads_hold_as_the_process_forks_are_new_in_the_child() -> None:
    meter = meter_of(BudgetPool())
    with budget_run("job", meter=meter, calls_per_minute=100) as run:
        taken, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            with run._guards._lock, run._ledger._lock, meter._listening, _run._opening:
                taken.set()
                go_on.wait(60)

        holder = threading.Thread(target=hold)
        holder.start()
        assert taken.wait(10)
        locks = run._guards._lock, run._ledger._lock, meter._listening, _run._opening
        renew_locks()  # what a fork does in the child
        _run._renew_lock()
        try:
            heard: list[CallRecord] = []

            def work() -> None:
                meter.subscribe(heard.append)
                with budget_run("inside", threads=True):
                    spend(meter)

            worker = threading.Thread(target=run.bind(work), daemon=True)
            worker.start()
            worker.join(10)
            assert not worker.is_alive()
            assert run.report()["call_count"] == len(heard) == 1
        finally:
            go_on.set()
            holder.join(10)
        assert not set(map(id, locks)) & set(map(id, (run._guards._lock, run._ledger._lock, meter._listening)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork beside threads, which is what this is about
def test_a_forked_child_refuses_and_hangs_on_no_lock() -> None:
    meter = meter_of(BudgetPool())
    with budget_run("job", meter=meter, calls_per_minute=100) as run:
        taken, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            with run._guards._lock, run._ledger._lock, meter._listening, _run._opening:
                taken.set()
                go_on.wait(30)

        holder = threading.Thread(target=hold)
        holder.start()
        assert taken.wait(10)
        child = os.fork()
        if child == 0:  # pragma: no cover - runs in the child
            code = 1
            try:
                signal.alarm(10)  # it ends a child that hangs
                run.report()
                try:
                    spend(meter)
                except PoolForked:
                    code = 0
            finally:
                os._exit(code)
        try:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        finally:
            go_on.set()
            holder.join(10)


def test_two_runs_for_all_threads_that_overlap_are_refused() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with budget_run("first", threads=True):
            begun.set()
            go_on.wait(10)

    with budget_run("beside", meter=meter_of(BudgetPool(name="meter"))) as beside:
        thread = threading.Thread(target=hold)
        thread.start()
        assert begun.wait(10)
        with pytest.raises(RuntimeError, match="run 'first' takes all threads"):
            budget_run("second", threads=True).__enter__()
        assert current_run() is beside
        go_on.set()
        thread.join(10)
        with budget_run("second", threads=True) as run:
            assert in_thread(current_run) is run


def test_a_run_for_all_that_ends_as_it_is_looked_for_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ending(list[Run]):
        def __bool__(self) -> bool:
            return True

    monkeypatch.setattr("token_budget.metering._run._for_all", Ending())
    assert current_run() is None
    monkeypatch.undo()


# ---------------------------------------------------------------- arguments, and how it looks


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": 5}, TypeError),
        ({"name": None}, TypeError),
        ({"name": "n" * 201}, ValueError),
        ({"usd_cap": "1"}, TypeError),
        ({"usd_cap": -1}, ValueError),
        ({"token_cap": 1.5}, TypeError),
        ({"pool": "day"}, TypeError),
        ({"meter": BudgetPool()}, TypeError),
        ({"user": 5}, TypeError),
        ({"context": "free"}, TypeError),
        ({"threads": 1}, TypeError),
    ],
)
def test_bad_arguments_raise_at_once(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        budget_run(**{"name": "job", **arguments})


def test_a_summary_is_one_line() -> None:
    meter = meter_of()
    with budget_run("auth-refactor", usd_cap=2.00, meter=meter) as run:
        spend(meter)
        spend(meter)
    line = run.summary()
    assert line.startswith("run 'auth-refactor': 2 calls in 0.")
    assert line.endswith("s, $0.0024 of $2.00")
    with budget_run("job", token_cap=5000, meter=meter) as run:
        spend(meter)
        assert ": 1 call in " in run.summary()
        assert run.summary().endswith("s, $0.0012, 900 of 5,000 tokens")
    with budget_run("job", meter=meter) as run, contextlib.suppress(UnknownModel):
        meter._begin(ask(model="unheard-of"), run)
    assert run.summary().endswith("s, $0.00, 1 refused")


def test_a_run_shows_its_state() -> None:
    with budget_run("job") as run:
        assert repr(run).startswith("<Run 'job' open | job: ")
    assert "ended" in repr(run)
    with budget_run("job") as run:
        run.stop()
        assert "stopped" in repr(run)


def test_a_run_is_gone_with_its_last_reference() -> None:
    import weakref

    meter = meter_of(BudgetPool())
    with budget_run("job", meter=meter) as run:
        spend(meter)
    gone, pool = weakref.ref(run), weakref.ref(run.pool)
    gc.disable()
    try:
        del run
        assert gone() is None
        assert pool() is None
    finally:
        gc.enable()


def test_usage_is_booked_to_the_current_run_by_record() -> None:
    meter = meter_of(BudgetPool())
    with budget_run("outer", meter=meter) as outer, budget_run("inner") as inner:
        meter.record("small", Usage(input_tokens=10))
    assert outer.report()["usd_nanos"] == inner.report()["usd_nanos"] == 10_000


def test_a_run_that_is_ended_by_a_finaliser_hangs_on_no_lock() -> None:
    from token_budget.metering._run import _opening

    block = budget_run("job", threads=True)
    run = block.__enter__()

    def work() -> None:
        with _opening:  # where a collection may find a generator that holds a run
            block.__exit__(None, None, None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert run.ended


def test_a_run_begins_also_where_an_interrupt_left_the_lock_of_the_hook_taken() -> None:
    pytest.importorskip("httpx")
    from token_budget.metering import _clients

    _clients.patch_classes()
    begun: list[str] = []

    def begin() -> None:
        with budget_run("job", meter=meter_of()) as run:
            begun.append(run.name)

    with _clients._lock:
        thread = threading.Thread(target=begin, daemon=True)
        thread.start()
        thread.join(10)
        assert begun == ["job"]
        with _clients._lock:  # as in a signal handler
            pass


def test_reports_and_pools_agree_whatever_threads_do(racing: None) -> None:
    pool = BudgetPool(usd_cap=0.4)
    meter = meter_of(pool, timeout=0)
    told: list[CallRecord] = []
    meter.subscribe(told.append)
    with budget_run("outer", meter=meter) as outer, budget_run("inner", usd_cap=0.3) as inner:

        def work(number: int) -> None:
            bound = inner if number % 2 else outer
            for turn in range(40):
                try:
                    pending = meter._begin(ask(), bound)
                    pending.hold()
                except (BudgetExceeded, RunStopped):
                    continue
                kind = (number + turn) % 4
                if kind == 0:
                    pending.charge()
                elif kind == 1:
                    pending.release()
                elif kind == 2:
                    pending.settle(None)
                else:
                    del pending  # the finaliser charges it
                if number == 1 and turn == 30:
                    inner.stop("enough")

        run_together(*(partial(work, number) for number in range(6)))
        reports = outer.report(), inner.report()
    assert used(pool) == used(outer.pool)
    assert used(pool)[1] <= 400_000_000
    assert used(pool)[2] == 0
    for run, report in zip((outer, inner), reports, strict=True):
        assert (report["tokens"], report["usd_nanos"]) == used(run.pool)[:2]
    assert len(told) == 6 * 40
    assert reports[0]["refused"] == sum(one.status == "refused" for one in told)
    assert reports[0]["usd_nanos"] == sum(one.usd_nanos for one in told)
