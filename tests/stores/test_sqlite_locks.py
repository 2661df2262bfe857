"""Who is in a budget's file, and what is left behind: threads, processes, signals, Ctrl-C anywhere."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sqlite3
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from points import Points, handled
from sqlite_files import add, close_all, count, end_of, opened, other, started, whole
from support import run_together
from token_budget.contract import BudgetUnavailable
from token_budget.stores.sqlite import _alive, _connection, _file, _lock, _registry
from token_budget.stores.sqlite._connection import Connection
from token_budget.stores.sqlite._lock import attempt, byte_lock, poll

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="these tests fork"),
    # From 3.12 on, Python warns about forks beside other threads. These tests make such forks on purpose.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
LINUX = sys.platform == "linux"
SHORT = 0.2  # seconds, for time-outs that are to end


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A path in a folder of its own; what the test left open there is closed."""
    yield tmp_path / "budget.db"
    close_all()


# A process that goes into a transaction, says so, and stays there until it is told to go on.
STAYS = """
connection = opened(path)
def stay(execute):
    add(execute)
    said("inside")
    wait()
connection.run(30, True, stay)
said("out")
wait()
"""


# ---------------------------------------------------------------- one at a time


def test_processes_are_in_a_transaction_one_at_a_time(path: Path) -> None:
    program = """
connection = opened(path)
said("ready"); wait()
for _ in range(200): connection.run(60, False, add)
"""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(other(program, path)) for _ in range(4)]
        for process in processes:
            process.hears("ready")
        for process in processes:
            process.goes_on()
        for process in processes:
            process.ends()
    connection = opened(path)
    assert connection.look(30, count) == 800
    whole(connection)


def test_threads_are_in_a_transaction_one_at_a_time(path: Path, racing: None) -> None:
    connection = opened(path)

    def work() -> None:
        for _ in range(200):
            connection.run(60, False, add)

    run_together(*[work] * 4)
    assert connection.look(30, count) == 800
    whole(connection)


def test_syncs_of_several_threads_run_at_once(path: Path) -> None:
    connection = opened(path)
    both = threading.Barrier(2)
    connection._file.sync = lambda: both.wait(timeout=60)
    run_together(*[lambda: connection.run(60, True, add)] * 2)
    assert connection.look(30, count) == 2


def test_a_look_waits_for_no_other_process(path: Path) -> None:
    connection = opened(path)
    with other(STAYS, path) as process:
        process.hears("inside")
        assert connection.look(SHORT, count) == 0
        process.goes_on()
        process.hears("out")
        assert connection.look(SHORT, count) == 1


def test_a_look_sees_one_moment(path: Path) -> None:
    connection = opened(path)
    with other("said('ready'); wait(); opened(path).run(30, True, add); said('done')", path) as process:
        process.hears("ready")

        def work(execute: Callable[..., Any]) -> tuple[int, int]:
            first = count(execute)
            process.goes_on()
            process.hears("done")
            return first, count(execute)

        assert connection.look(30, work) == (0, 0)
    assert connection.look(30, count) == 1


# ---------------------------------------------------------------- deadlines


@pytest.mark.skipif(not LINUX, reason="tells whether a process is stopped by /proc")
def test_a_stopped_process_inside_makes_the_store_unavailable_after_the_time_out(path: Path) -> None:
    connection = opened(path)
    with other(STAYS, path) as process:
        process.hears("inside")
        process.signal(signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(BudgetUnavailable, match=rf"process {process.process.pid} has the file lock.*stopped"):
            connection.run(SHORT, True, add)
        assert time.monotonic() - begun >= SHORT
        with pytest.raises(BudgetUnavailable, match="has the file lock"):
            connection.run(0, True, add)
        with other(f"Connection.of(path, timeout={SHORT})", path) as third:
            _out, errors = third.process.communicate(timeout=60)
        assert "BudgetUnavailable" in errors
        assert connection.look(SHORT, count) == 0
        process.signal(signal.SIGCONT)
        process.goes_on()
        process.hears("out")
        assert connection.run(30, True, add) == 2
    whole(connection)


def test_a_process_that_is_killed_inside_leaves_nothing_behind(path: Path) -> None:
    connection = opened(path)
    with other(STAYS, path) as process:
        process.hears("inside")
        process.dies()
        assert connection.run(30, True, add) == 1
    whole(connection)


def test_a_thread_that_stays_inside_makes_the_store_unavailable_for_others(path: Path) -> None:
    connection = opened(path)
    inside, go = threading.Event(), threading.Event()

    def stay(execute: Callable[..., Any]) -> None:
        inside.set()
        assert go.wait(60)
        add(execute)

    thread = threading.Thread(target=connection.run, args=(30, False, stay))
    thread.start()
    try:
        assert inside.wait(60)
        with pytest.raises(BudgetUnavailable, match="another thread"):
            connection.run(SHORT, True, add)
        with pytest.raises(BudgetUnavailable, match="another thread"):
            connection.look(SHORT, count)
    finally:
        go.set()
        thread.join()
    assert connection.run(30, True, add) == 2


@pytest.mark.parametrize("begin", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_a_strangers_transaction_is_waited_for_until_the_time_out(path: Path, begin: str) -> None:
    connection = opened(path)
    stranger = sqlite3.connect(path, isolation_level=None)
    stranger.execute(begin)
    with pytest.raises(BudgetUnavailable, match="another program keeps it locked"):
        connection.run(SHORT, True, add)
    assert connection.look(SHORT, count) == 0
    timer = threading.Timer(SHORT, lambda: stranger.execute("COMMIT"))
    stranger.close()
    stranger = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    stranger.execute(begin)
    timer.start()
    assert connection.run(30, True, add) == 1
    timer.join()
    stranger.close()
    whole(connection)


def test_a_strangers_long_look_hinders_nobody(path: Path) -> None:
    connection = opened(path)
    with sqlite3.connect(path, isolation_level=None) as stranger:
        stranger.execute("BEGIN")
        assert stranger.execute("SELECT value FROM counter").fetchone() == (0,)
        for _ in range(1_200):
            connection.run(SHORT * 50, False, add)
        assert stranger.execute("SELECT value FROM counter").fetchone() == (0,)
    stranger.close()
    assert connection.look(30, count) == 1_200


def test_polling_ends_at_its_deadline_and_tries_once_at_least() -> None:
    tried: list[float] = []
    assert not poll(lambda: bool(tried.append(time.monotonic())), time.monotonic() - 1)  # type: ignore[func-returns-value]
    assert len(tried) == 1
    tried.clear()
    deadline = time.monotonic() + 0.05
    assert not poll(lambda: bool(tried.append(time.monotonic())), deadline)  # type: ignore[func-returns-value]
    assert len(tried) > 5
    assert time.monotonic() >= deadline
    assert poll(lambda: True, 0)


# ---------------------------------------------------------------- inside one's own call


def test_a_call_inside_a_call_of_the_same_thread_is_refused_and_harms_nothing(path: Path) -> None:
    connection = opened(path)

    def work(execute: Callable[..., Any]) -> int:
        add(execute)
        with pytest.raises(RuntimeError, match="in the middle of a call"):
            connection.run(30, True, add)
        with pytest.raises(RuntimeError, match="in the middle of a call"):
            connection.look(30, count)
        return add(execute)

    assert connection.run(30, True, work) == 2
    assert connection.look(30, count) == 2
    whole(connection)


def test_a_signal_handler_inside_a_call_is_refused_and_harms_nothing(path: Path) -> None:
    connection = opened(path)
    told: list[BaseException] = []

    def handler(_number: int, _frame: object) -> None:
        try:
            connection.run(30, True, add)
        except RuntimeError as error:
            told.append(error)

    def work(execute: Callable[..., Any]) -> int:
        signal.raise_signal(signal.SIGUSR1)
        return add(execute)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        assert connection.run(30, True, work) == 1
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(told) == 1
    assert connection.look(30, count) == 2


def test_a_call_on_another_file_inside_a_call_is_an_ordinary_one(path: Path) -> None:
    connection, second = opened(path), opened(path.parent / "second.db")
    assert connection.run(30, True, lambda execute: add(execute) + second.run(30, True, add)) == 2


# ---------------------------------------------------------------- the work ends its transaction itself


def test_work_may_roll_back_and_begin_again(path: Path) -> None:
    connection = opened(path)

    def work(execute: Callable[..., Any]) -> int:
        add(execute, 100)
        execute("ROLLBACK")
        execute("BEGIN IMMEDIATE")
        return add(execute)

    assert connection.run(30, True, work) == 1
    assert connection.look(30, count) == 1
    connection.run(30, True, lambda execute: add(execute, 100) and execute("ROLLBACK"))
    assert connection.look(30, count) == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, sqlite3.IntegrityError])
def test_work_that_raises_is_rolled_back(path: Path, error: type[BaseException]) -> None:
    connection = opened(path)

    def work(execute: Callable[..., Any]) -> None:
        add(execute)
        raise error("no")

    with pytest.raises(error):
        connection.run(30, True, work)
    assert connection.look(30, count) == 0
    whole(connection)


def test_a_statement_whose_rows_were_not_fetched_keeps_nothing_open(path: Path) -> None:
    connection = opened(path)
    connection.run(30, True, lambda execute: execute("INSERT INTO counter VALUES (2, 5), (3, 6)"))

    def select(execute: Callable[..., Any]) -> None:
        execute("SELECT * FROM counter")

    def add_and_select(execute: Callable[..., Any]) -> None:
        add(execute)
        select(execute)

    def fails(execute: Callable[..., Any]) -> None:
        add_and_select(execute)
        raise ValueError("no")

    connection.run(30, True, add_and_select)
    with pytest.raises(ValueError, match="no"):
        connection.run(30, True, fails)
    connection.look(30, select)
    with other("opened(path).run(30, True, add)", path) as process:
        process.ends()
    assert connection.run(30, True, add) == 3


# ---------------------------------------------------------------- Ctrl-C before any instruction

MODULES = (_connection, _file, _lock, _registry, _alive)


def codes_run_by(operation: Callable[[], object]) -> set[types.CodeType]:
    """Return the code of these modules that an operation runs."""
    found: set[types.CodeType] = set()
    names = {module.__name__ for module in MODULES}

    def look(frame: types.FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_globals.get("__name__") in names:
            found.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        operation()
    finally:
        sys.setprofile(before)
    return found


def every_interrupt(operation: Callable[[], Any], after: Callable[[str], None], step: int = 1) -> int:
    """Interrupt the operation before each instruction of ours in turn, and look what is left; return how often."""
    points = Points(codes_run_by(operation))
    handled(operation, points, -1)
    ended: list[str] = []
    total = points.count
    assert total > 100
    for at in range(0, total, step):
        outcome = handled(operation, points, at)
        ended.append(outcome)
        after(outcome)
    assert ended.count("interrupted") > len(ended) / 2
    return len(ended)


@pytest.fixture
def _no_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collections")
@pytest.mark.parametrize("durable", [True, False])
def test_ctrl_c_anywhere_in_a_transaction_leaves_it_whole_or_undone(path: Path, durable: bool) -> None:
    connection = opened(path)
    descriptor = os.open(f"{path}.probe", os.O_RDWR | os.O_CREAT)
    expected = [0]

    def operation() -> None:
        expected.append(connection.look(30, count))
        connection.run(30, durable, add)

    def after(outcome: str) -> None:
        assert not connection.mutex.locked()
        assert not connection.inside
        assert connection._database is not None
        assert not connection._database.in_transaction
        found = connection.look(30, count)
        assert found - expected[-1] in ({1} if outcome == "done" else {0, 1})

    every_interrupt(operation, after)
    os.close(descriptor)
    whole(connection)  # another process gets the file lock


@pytest.mark.usefixtures("_no_collections")
def test_after_ctrl_c_anywhere_the_file_lock_is_free_for_others(path: Path) -> None:
    connection = opened(path)
    here, there = os.pipe(), os.pipe()

    def tries() -> None:
        lock = byte_lock(os.open(f"{path}.lock", os.O_RDWR), 0)
        while os.read(here[0], 1) == b"?":
            free = attempt(lock)
            if free:
                lock.free()
            os.write(there[1], b"y" if free else b"n")

    child = started(tries)

    def after(_outcome: str) -> None:
        os.write(here[1], b"?")
        assert os.read(there[0], 1) == b"y"

    try:
        every_interrupt(lambda: connection.run(30, False, add), after)
    finally:
        os.write(here[1], b".")
        assert end_of(child) == 0


@pytest.mark.usefixtures("_no_collections")
def test_ctrl_c_anywhere_while_the_lock_is_waited_for_leaves_it_free(path: Path) -> None:
    connection = opened(path)
    with other("take = opened(path)._file.take; take(); said('has'); wait()", path) as process:
        process.hears("has")

        def operation() -> None:
            with pytest.raises(BudgetUnavailable):
                connection.run(0.0001, False, add)

        def after(_outcome: str) -> None:
            assert not connection.mutex.locked()
            assert not connection.inside

        every_interrupt(operation, after)
        process.goes_on()
        process.ends()
    whole(connection)
    assert connection.look(30, count) == 0


@pytest.mark.usefixtures("_no_collections")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # SQLite's connection may be dropped before it has a name
def test_ctrl_c_anywhere_while_a_file_is_opened_and_closed_leaves_it_fit_for_use(path: Path) -> None:
    connection = opened(path)
    connection.run(30, False, add)
    connection.let_go()

    def operation() -> None:
        connection = Connection.of(path, timeout=30)
        connection.let_go()

    def after(_outcome: str) -> None:
        close_all()

    every_interrupt(operation, after, step=3)
    gc.collect()
    with other("assert opened(path).run(30, True, add) == 2", path) as process:
        process.ends()
    connection = opened(path)
    assert connection.look(30, count) == 2
    whole(connection)
