"""What a fork does to a budget's file: the child has a connection of its own, and nobody loses anything."""

from __future__ import annotations

import ctypes
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sqlite_files import NAMES, add, close_all, count, end_of, in_child, opened, other, started, until, whole
from token_budget import PoolForked
from token_budget.stores._errors import StoreError, StoreLost
from token_budget.stores.sqlite._connection import Connection, notice_forks

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


def fork_in_c() -> int:
    """Fork like a server in C that runs none of Python's hooks."""
    return int(ctypes.PyDLL(None).fork())


@pytest.mark.parametrize("fork", [os.fork, pytest.param(fork_in_c, marks=pytest.mark.skipif(not LINUX, reason="in C"))])
def test_a_forked_child_and_its_parent_go_on_with_one_budget(path: Path, fork: Callable[[], int]) -> None:
    connection = opened(path)
    connection.run(30, True, add)
    owner = connection.owner

    def child() -> None:
        for _ in range(200):
            connection.run(60, False, add)
        assert connection.owner != owner
        assert connection.alive.lives(owner)
        assert connection.alive.lives(connection.owner)

    children = [started(child, fork) for _ in range(2)]
    for _ in range(200):
        connection.run(60, False, add)
    assert [end_of(made) for made in children] == [0, 0]
    assert connection.owner == owner
    assert connection.look(30, count) == 601
    whole(connection)


def test_a_child_neither_uses_nor_closes_the_connection_of_its_parent(path: Path) -> None:
    connection = opened(path)
    parents = connection._database

    def child() -> None:
        assert connection._database is None
        connection.run(30, True, add)
        assert connection._database is not parents
        assert parents is not None
        assert parents.execute("SELECT 1").fetchone() == (1,)  # it is not closed (to use it is only right here)
        connection.let_go()
        assert parents.execute("SELECT 1").fetchone() == (1,)

    in_child(child)
    assert connection.run(30, True, add) == 2
    whole(connection)


@pytest.mark.skipif(not LINUX, reason="elsewhere the child has no lock of its own")
@pytest.mark.parametrize("end", ["let_go", "killed"])
@pytest.mark.parametrize("fork", ["os.fork()", "ctypes.PyDLL(None).fork()"])
def test_a_child_outlives_its_parent_and_shares_the_file_with_newcomers(path: Path, fork: str, end: str) -> None:
    # SQLite in the child takes no locks of its own on the file, since it believes the parent's to be this process's.
    # So a parent that closes the file would delete the log under the child, but for the locks that both share.
    program = f"""
import contextlib
import ctypes
connection = opened(path)
parent = connection.owner
if {fork} == 0:
    connection.run(30, True, add)
    said("child")
    wait()
    assert not connection.alive.lives(parent)
    connection.run(30, True, add)
    said("done")
    wait()
    os._exit(0)
time.sleep(0) if {end == "killed"} else connection.let_go()
os.waitpid(-1, 0)
"""
    with other(program, path) as process:
        process.hears("child")
        if end == "killed":
            process.process.kill()
            process.process.wait()
        else:
            until(lambda: alone(path))
        connection = opened(path)
        assert connection.run(30, True, add) == 2
        connection.let_go()
        path.read_bytes()
        sqlite3.connect(path).close()
        assert all(Path(f"{path}{name}").exists() for name in NAMES)
        process.goes_on()
        process.hears("done")
        with other("assert opened(path).run(30, True, add) == 4", path) as newcomer:
            newcomer.ends()
        process.goes_on()
    assert opened(path).look(30, count) == 4
    whole(opened(path))


@pytest.mark.skipif(not LINUX, reason="elsewhere the child has no lock of its own")
def test_a_child_that_closed_the_file_may_open_it_again_whatever_happened_meanwhile(path: Path) -> None:
    # SQLite in the child keeps the parent's picture of the shared memory for as long as the child lives.
    program = """
connection = opened(path)
if os.fork() == 0:
    connection.run(30, True, add)
    connection.let_go()
    said("closed")
    wait()
    connection = opened(path)
    connection.run(30, True, add)
    said("again")
    wait()
    os._exit(0)
connection.let_go()
os.waitpid(-1, 0)
"""
    with other(program, path) as process:
        process.hears("closed")
        until(lambda: alone(path, 0))
        with other("sqlite3.connect(path).execute('SELECT value FROM counter').connection.close()", path) as stranger:
            stranger.ends()
        connection = opened(path)
        for _ in range(10):
            connection.run(30, True, add)
        process.goes_on()
        process.hears("again")
        assert connection.run(30, True, add) == 13
        process.goes_on()
    whole(connection)


def alone(path: Path, many: int = 1) -> bool:
    """Return whether only so many processes have a byte in `.alive`."""
    inode = Path(f"{path}.alive").stat().st_ino
    return sum(f":{inode} " in line for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()) == many


def test_a_fork_waits_for_threads_that_are_inside(path: Path) -> None:
    connection = opened(path)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            connection.run(60, False, add)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            in_child(lambda: connection.run(60, True, add))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    whole(connection)


def test_a_child_forked_inside_a_transaction_does_not_end_it(path: Path) -> None:
    connection = opened(path)
    children: list[int] = []

    def work(execute: Callable[..., Any]) -> int:
        value = add(execute)
        children.append(os.fork())
        return value

    answer: object = None
    try:
        answer = connection.run(30, True, work)
    except BaseException as error:  # noqa: BLE001 - nothing may leave here in the child, which would go on as pytest
        answer = type(error)
    if children == [0]:
        code = 1
        try:
            assert answer is PoolForked
            with pytest.raises(StoreError, match="forked in the middle of a transaction"):
                connection.run(30, True, add)
            code = 0
        finally:
            os._exit(code)
    assert answer == 1
    assert end_of(children[0]) == 0
    assert connection.run(30, True, add) == 2
    whole(connection)


@pytest.mark.skipif(not LINUX, reason="forks in C")
def test_a_child_forked_in_c_while_a_thread_is_inside_is_refused_at_once(path: Path) -> None:
    connection = opened(path)
    inside, go = threading.Event(), threading.Event()

    def stay(execute: Callable[..., Any]) -> None:
        add(execute)
        inside.set()
        assert go.wait(60)

    def refused() -> None:
        begun = time.monotonic()
        for _ in range(2):
            with pytest.raises(StoreError, match="forked in the middle of a transaction"):
                connection.run(30, True, add)
        assert time.monotonic() - begun < 30

    thread = threading.Thread(target=connection.run, args=(30, False, stay))
    thread.start()
    try:
        assert inside.wait(60)
        in_child(refused, fork_in_c)
    finally:
        go.set()
        thread.join()
    assert connection.run(30, True, add) == 2


def test_a_child_that_uses_nothing_keeps_nobody_out(path: Path) -> None:
    program = """
connection = opened(path)
if os.fork() == 0:
    said("child"); time.sleep(3600)
def stay(execute):
    add(execute); said("inside"); wait()
wait()
connection.run(30, True, stay)
"""
    with other(program, path) as process:
        process.hears("child")
        process.goes_on()
        process.hears("inside")
        group = process.process.pid
        children = Path(f"/proc/{group}/task/{group}/children").read_text(encoding="ascii").split() if LINUX else []
        process.process.kill()
        process.process.wait()
        try:
            assert opened(path).run(30, True, add) == 1
        finally:
            for child in children:
                os.kill(int(child), signal.SIGKILL)


def test_a_child_notices_a_deleted_file(path: Path) -> None:
    connection = opened(path)
    path.unlink()

    def child() -> None:
        with pytest.raises(StoreLost):
            connection.run(30, True, add)
        with pytest.raises(StoreLost):
            Connection.of(path, timeout=30)

    in_child(child)


def test_children_of_children_are_each_their_own(path: Path) -> None:
    connection = opened(path)
    owner = connection.owner

    def child() -> None:
        connection.run(30, True, add)
        mine = connection.owner

        def grandchild() -> None:
            connection.run(30, True, add)
            assert len({owner, mine, connection.owner}) == 3
            assert all(map(connection.alive.lives, (owner, mine, connection.owner)))

        in_child(grandchild)
        connection.run(30, True, add)
        assert connection.owner == mine

    in_child(child)
    assert connection.look(30, count) == 3


def test_noticing_a_fork_twice_is_once(path: Path) -> None:
    connection = opened(path)

    def child() -> None:
        notice_forks()
        connection.run(30, True, add)
        owner, database = connection.owner, connection._database
        notice_forks()
        connection.run(30, True, add)
        assert (connection.owner, connection._database) == (owner, database)

    in_child(child)
