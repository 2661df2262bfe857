"""What is rare in SQLite's files and locks, played in this process: faults, other systems, forks that Python misses."""

from __future__ import annotations

import atexit
import errno
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sqlite_files import add, close_all, count, opened, other, whole
from token_budget import PoolForked
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError, StoreLost
from token_budget.stores.sqlite import _alive, _connection, _file, _lock
from token_budget.stores.sqlite._connection import Connection, _registry, notice_forks
from token_budget.stores.sqlite._faults import MOVED, ours
from token_budget.stores.sqlite._registry import Registry

SHORT = 0.1  # seconds, for time-outs that are to end


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "budget.db"
    close_all()


# ---------------------------------------------------------------- forks, played by the page that they empty


def test_after_a_fork_the_next_call_opens_a_connection_and_an_owner_of_its_own(path: Path) -> None:
    connection = opened(path)
    before = connection._database, connection.owner, connection.mutex
    _registry.here[0] = 0
    assert connection.run(30, True, add) == 1
    assert _registry.here[0]
    assert before[0] is not connection._database
    assert before[1:] != (connection.owner, connection.mutex)
    assert before[0] is not None
    assert before[0].execute("SELECT 1").fetchone() == (1,), "the parent's is not closed"
    notice_forks()
    assert connection.run(30, True, add) == 2
    _registry._after_fork_in_child()
    whole(connection)
    before[0].close()


@pytest.mark.parametrize("how", ["run", "look"])
def test_a_fork_in_the_middle_of_a_call_ends_the_call_and_makes_the_file_unfit(path: Path, how: str) -> None:
    connection = opened(path)
    parents = connection._database
    assert parents is not None

    def forks(execute: Callable[..., Any]) -> None:
        if how == "run":
            add(execute)
        _registry.here[0] = 0

    with pytest.raises(PoolForked):
        if how == "run":
            connection.run(30, True, forks)
        else:
            connection.look(30, forks)
    assert parents.in_transaction, "the parent's transaction is the parent's"
    for _ in range(2):
        with pytest.raises(StoreError, match="forked in the middle of a transaction"):
            connection.run(30, True, add)
    parents.execute("ROLLBACK")
    parents.close()


def test_a_fork_right_after_the_commit_gives_both_the_answer_and_leaves_the_child_fit(path: Path) -> None:
    connection = opened(path)
    mutex, parents, execute = connection.mutex, connection._database, connection._execute

    def forks(statement: str, *parameters: Any) -> Any:
        answer = execute(statement, *parameters)
        if statement == "COMMIT":
            _registry.here[0] = 0
            notice_forks()
        return answer

    connection._execute = forks
    assert connection.run(30, False, add) == 1
    assert mutex.locked(), "it is the parent's to release"
    assert connection.run(30, True, add) == 2
    whole(connection)
    assert parents is not None
    parents.close()


def test_a_fork_while_a_file_is_closed_leaves_nothing_of_the_parents_to_put_away(path: Path) -> None:
    connection = opened(path)
    assert connection.shut(30)
    inherited = len(_connection._inherited)
    _registry.here[0] = 0
    assert connection.run(30, True, add) == 1
    assert len(_connection._inherited) == inherited
    whole(connection)


def test_a_child_that_cannot_open_the_file_in_time_opens_it_later(path: Path) -> None:
    connection = opened(path)
    parents, descriptors = connection._database, dict(connection._file._descriptors)
    with other("opened(path)._file.take(); said('has'); wait()", path) as process:
        process.hears("has")
        _registry.here[0] = 0
        with pytest.raises(BudgetUnavailable, match="has the file lock"):
            connection.run(SHORT, True, add)
        assert connection._file._descriptors == descriptors, "they keep the shared memory of the parent in being"
    assert connection.run(30, True, add) == 1
    whole(connection)
    assert parents is not None
    parents.close()


class Noticing:
    """Stands for the lock of the thread that notices a fork."""

    def __init__(self, *, free: bool, noticed: bool) -> None:
        self.free, self.noticed, self.released = free, noticed, 0

    def acquire(self, _blocking: bool, _seconds: float) -> bool:
        """Take it; another thread that had it before may have noticed the fork."""
        if self.noticed:
            _registry.here[0] = 1
        return self.free

    def release(self) -> None:
        """Free it."""
        self.released += 1


def test_a_fork_that_another_thread_has_noticed_meanwhile_is_noticed_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = opened(path)
    before = connection._database
    noticing = Noticing(free=True, noticed=True)
    monkeypatch.setattr(_registry, "_noticing", noticing)
    _registry.here[0] = 0
    notice_forks()
    assert connection._database is before
    assert noticing.released == 1


def test_a_fork_is_noticed_though_the_parent_was_noticing_one_when_it_forked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = opened(path)
    parents = connection._database
    noticing = Noticing(free=False, noticed=False)
    monkeypatch.setattr(_registry, "_noticing", noticing)
    _registry.here[0] = 0
    notice_forks()
    assert connection._database is None
    assert noticing.released == 0
    assert connection.run(30, True, add) == 1
    assert parents is not None
    parents.close()


# ---------------------------------------------------------------- who is in the way


def test_a_gate_that_stays_shut_is_unavailable_after_the_time_out(path: Path) -> None:
    with _registry._gate, pytest.raises(BudgetUnavailable, match="opening or closing"):
        Connection.of(path, timeout=SHORT)


def test_opening_inside_an_opening_of_the_same_thread_is_refused(path: Path) -> None:
    with pytest.raises(RuntimeError, match="in the middle"):
        _registry._within(30, str(path), lambda: Connection.of(path, timeout=30))


def test_a_file_whose_lock_another_process_keeps_cannot_be_opened_in_time(path: Path) -> None:
    with other("opened(path)._file.take(); said('has'); wait()", path) as process:
        process.hears("has")
        with pytest.raises(BudgetUnavailable, match="has the file lock"):
            Connection.of(path, timeout=SHORT)
    assert opened(path).run(30, True, add) == 1


def test_a_stranger_who_keeps_all_out_is_waited_for_when_a_file_is_opened(path: Path) -> None:
    opened(path).let_go()
    stranger = sqlite3.connect(path, isolation_level=None)
    assert stranger.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    stranger.execute("BEGIN EXCLUSIVE")
    with pytest.raises(BudgetUnavailable, match="keeps it locked"):
        Connection.of(path, timeout=SHORT)
    stranger.close()
    assert opened(path).run(30, True, add) == 1


def test_a_stranger_who_writes_for_too_long_makes_an_opening_unavailable(path: Path) -> None:
    opened(path).let_go()
    stranger = sqlite3.connect(path, isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")
    with pytest.raises(BudgetUnavailable, match="keeps it locked"):
        Connection.of(path, timeout=SHORT)
    stranger.execute("ROLLBACK")
    stranger.close()
    assert opened(path).run(30, True, add) == 1


def test_a_file_that_cannot_have_a_log_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(path).let_go()
    stranger = sqlite3.connect(path, isolation_level=None)
    stranger.execute("PRAGMA journal_mode = DELETE")
    stranger.close()
    monkeypatch.setattr(_connection, "poll", lambda _attempt, _deadline: True)  # as if the change had had no effect
    with pytest.raises(StoreError, match="write-ahead log"):
        Connection.of(path, timeout=30)


def failing(connection: Connection, word: str, text: str) -> Callable[..., Any]:
    """Return an `execute` that fails on the statements with a word."""
    execute = connection._execute

    def fails(statement: str, *parameters: Any) -> Any:
        if word in statement:
            raise sqlite3.OperationalError(text)
        return execute(statement, *parameters)

    return fails


@pytest.mark.parametrize("text", ["disk I/O error", "database is locked"])
def test_a_statement_that_begins_and_fails_is_unavailable_and_leaves_nothing(path: Path, text: str) -> None:
    connection = opened(path)
    execute = connection._execute
    for word in ("BEGIN IMMEDIATE", "sqlite_master"):
        connection._execute = failing(connection, word, text)
        with pytest.raises(BudgetUnavailable):
            if word == "sqlite_master":
                connection.look(SHORT, count)
            else:
                connection.run(SHORT, True, add)
        connection._execute = execute
    whole(connection)


def test_a_file_lock_that_fails_is_unavailable(path: Path) -> None:
    connection = opened(path)

    def fails() -> None:
        raise OSError(errno.EIO, "Input/output error")

    take, connection._file.take = connection._file.take, fails
    with pytest.raises(BudgetUnavailable, match="Input/output"):
        connection.run(30, True, add)
    connection._file.take = take
    assert connection.run(30, True, add) == 1


# ---------------------------------------------------------------- opening and closing


def test_a_file_stays_open_while_a_thread_is_inside(path: Path) -> None:
    connection = opened(path)
    with connection.mutex:
        assert not connection.shut(SHORT)
    assert connection.run(30, True, add) == 1


def test_a_file_is_closed_though_another_process_keeps_its_lock(path: Path) -> None:
    connection = opened(path)
    connection.run(30, True, add)
    with other("opened(path)._file.take(); said('has'); wait()", path) as process:
        process.hears("has")
        assert connection.shut(SHORT)
        assert connection._database is None
        assert not connection._file._descriptors
        assert Path(f"{path}-wal").stat().st_size > 0, "the log is not brought home without the lock"
    assert connection.run(30, True, add) == 2


def test_a_file_that_was_shut_at_the_interpreters_end_is_opened_by_a_later_use(path: Path) -> None:
    connection = opened(path)
    _registry.shut()
    assert connection._database is None
    with pytest.raises(RuntimeError, match="not open"):
        connection._execute("SELECT 1")
    assert connection.run(30, True, add) == 1
    assert connection.shut(30)
    assert connection.shut(30), "twice is once"


def test_a_connection_that_cannot_be_noted_is_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(dict[Any, Any]):
        def __setitem__(self, _key: object, _value: object) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_registry, "connections", Full())
        with pytest.raises(KeyboardInterrupt):
            Connection.of(path, timeout=30)
    assert opened(path).run(30, True, add) == 1


def test_what_is_no_fault_of_the_file_passes_the_registry_as_it_is(path: Path) -> None:
    error = sqlite3.IntegrityError("no")

    def fails() -> None:
        raise error

    with pytest.raises(sqlite3.IntegrityError) as caught:
        _registry._within(30, str(path), fails)
    assert caught.value is error


def test_a_pipe_in_the_place_of_a_file_of_ours_is_refused(path: Path) -> None:
    os.mkfifo(f"{path}.lock")
    with pytest.raises(StoreError, match=r"\.lock is no regular file"):
        Connection.of(path, timeout=30)


def test_without_rights_by_the_systems_word_a_file_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.access
    for refused, text in [(str(path), "read-only"), (f"{path}-wal", "no rights to write"), (str(path.parent), "make")]:

        def access(asked: Any, mode: int, refused: str = refused) -> bool:
            return str(asked) != refused and allowed(asked, mode)

        with monkeypatch.context() as patch:
            if refused != str(path.parent):
                opened(path).let_go()
            else:
                for file in list(path.parent.iterdir()):
                    file.unlink()
            patch.setattr(os, "access", access)
            with pytest.raises(StoreError, match=text):
                Connection.of(path, timeout=30)


def test_a_file_of_ours_without_a_mode_yet_is_given_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(f"{path}.lock")
    file.touch(0o000)
    open_file = os.open

    def refuses(name: Any, *arguments: Any) -> int:
        if name == str(file) and not file.stat().st_mode & 0o600:
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return open_file(name, *arguments)

    file.chmod(0o000)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuses)
        os.close(_file._opened(str(file), os.O_RDWR))
        file.chmod(0o000)
        patch.setattr(os, "geteuid", lambda: 4711)
        with pytest.raises(PermissionError):
            _file._opened(str(file), os.O_RDWR)


def test_a_file_that_is_mounted_alone_is_refused_by_the_table_of_mounts(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = path.parent / "mounts"
    mounts.write_text(f"short\n22 1 0:21 / / rw - ext4 x rw\n30 22 0:50 / {path.resolve()} rw - ext4 x rw\n")
    monkeypatch.setattr(_file, "MOUNTS", str(mounts))
    with pytest.raises(StoreError, match="Mount its folder"):
        Connection.of(path, timeout=30)


def test_a_lock_on_a_closed_file_is_an_error_and_no_answer(path: Path) -> None:
    descriptor = os.open(path.parent / "lock", os.O_RDWR | os.O_CREAT)
    lock = _lock.byte_lock(descriptor, 0)
    os.close(descriptor)
    with pytest.raises(OSError, match="descriptor"):
        lock.is_elsewhere()


def test_a_database_that_sqlite_knows_to_be_moved_is_lost() -> None:
    error: Any = sqlite3.OperationalError("attempt to write a readonly database")
    error.sqlite_errorcode = MOVED
    assert type(ours(error, "/srv/budget.db")) is StoreLost


# ---------------------------------------------------------------- other systems


def test_on_windows_there_are_no_modes_no_syncs_of_folders_and_no_proc(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_arguments: object) -> None:
        raise AssertionError("Windows does not have it")

    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        patch.setattr(os, "fchmod", fails)
        patch.setattr(os, "fsync", fails)
        _file._set_mode(0, 0o600)
        _file.sync_folder(str(path.parent))
        assert _alive._start.__wrapped__(1) > 0
    assert _lock._module("there is no such module") is None


def test_on_windows_nobody_looks_whose_the_files_are(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> int:
        raise AssertionError("Windows does not have it")

    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        patch.setattr(os, "geteuid", fails)
        os.close(_file.BudgetFile(str(path))._sibling(".lock"))


def test_where_no_process_forks_the_connections_are_closed_at_the_end_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_the_end: list[Callable[[], object]] = []
    with monkeypatch.context() as patch:
        patch.delattr(os, "register_at_fork")
        patch.setattr(atexit, "register", at_the_end.append)
        registry = Registry()
    connection = opened(path)
    registry.connections[connection.identity] = connection
    for each in at_the_end:
        each()
    assert connection._database is None


def test_without_the_clock_of_linux_another_one_counts_alike_in_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(time, "monotonic", lambda: 47.5)
    assert _alive.uptime() == 47.5


def test_on_macos_the_drive_is_told_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[int, int]] = []

    class Fcntl:
        F_FULLFSYNC = 51

        @staticmethod
        def fcntl(descriptor: int, what: int) -> None:
            called.append((descriptor, what))

    monkeypatch.setattr(_file, "fcntl", Fcntl)
    _file.syncing(7)()
    assert called == [(7, 51)]


def test_a_thread_that_waits_for_a_call_of_another_goes_on_when_it_ends(path: Path) -> None:
    connection = opened(path)
    connection.mutex.acquire()
    thread = threading.Thread(target=connection.run, args=(30, False, add))
    thread.start()
    connection.mutex.release()
    thread.join(30)
    assert connection.look(30, count) == 1
