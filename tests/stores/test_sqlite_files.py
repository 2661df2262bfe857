"""A budget's files: made for their owner alone, never taken for a fresh budget, and left as they are where not ours."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import sqlite3
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from sqlite_files import (
    FORKING,
    LINUX,
    NAMES,
    add,
    as_nobody,
    contents,
    count,
    folder_of_everybody,
    in_child,
    modes,
    opened,
    other,
    path_in_folder,
    quiet,
    until,
    with_mounts,
)
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError, StoreLost
from token_budget.stores.sqlite import _connection, _file, _schema
from token_budget.stores.sqlite._connection import Connection, Unsynced
from token_budget.stores.sqlite._faults import TEXTS, code_of, ours

pytestmark = FORKING
path, open_folder = pytest.fixture(path_in_folder), pytest.fixture(folder_of_everybody)


# ---------------------------------------------------------------- how files are made


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o177, 0o777])
def test_all_files_are_their_owners_alone_whatever_the_umask(open_folder: Path, umask: int) -> None:
    path = open_folder / "budget.db"

    def make() -> None:
        os.umask(umask)
        connection = opened(path)
        assert connection.run(30, True, add) == 1
        assert modes(path) == {0o600}

    as_nobody(make)
    assert modes(path) == {0o600}
    assert sorted(contents(open_folder)) == sorted(f"budget.db{name}" for name in NAMES)


def test_files_beside_a_budget_that_a_group_may_write_are_the_groups_too(path: Path) -> None:
    opened(path).let_go()
    for name in NAMES[1:]:
        Path(f"{path}{name}").unlink()
    path.chmod(0o660)
    opened(path)
    assert modes(path) == {0o660}


def test_a_file_whose_maker_has_not_yet_given_it_its_mode_is_opened_all_the_same(open_folder: Path) -> None:
    path = open_folder / "budget.db"

    def make() -> None:
        os.close(os.open(f"{path}.lock", os.O_CREAT, 0))
        opened(path)
        assert modes(path) == {0o600}

    as_nobody(make)


def test_a_budget_is_a_database_of_ours_with_small_pages_and_a_log(path: Path) -> None:
    connection = opened(path)
    for pragma, value in [
        ("application_id", _schema.APPLICATION_ID),
        ("user_version", _schema.VERSION),
        ("page_size", _schema.PAGE_SIZE),
        ("journal_mode", "wal"),
        ("synchronous", 1),
        ("wal_autocheckpoint", 1000),
    ]:
        assert connection.look(30, lambda execute, pragma=pragma: execute(f"PRAGMA {pragma}").fetchone()) == (value,)


@pytest.mark.parametrize("at", range(1, 8))
def test_a_budget_whose_making_ends_anywhere_is_made_whole_by_the_next(
    path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    def step(*_arguments: object) -> None:
        nonlocal steps
        steps += 1
        if steps == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_schema, "create", ended(_schema.create, step))
        patch.setattr(_file, "_set_mode", ended(_file._set_mode, step))
        patch.setattr(_file, "sync_folder", ended(_file.sync_folder, step))
        patch.setattr(Path, "rename", ended(Path.rename, step))
        try:
            connection = Connection.of(path, timeout=30)
        except KeyboardInterrupt:
            assert steps == at
            assert not path.exists() or path.stat().st_size > 0
            assert not Path(f"{path}.unfinished").exists()
        else:
            assert at > steps >= 6
            connection.let_go()
    assert opened(path).run(30, True, add) == 1


def ended(function: Any, step: Any) -> Any:
    """Return a function that takes a step before and after it does what the given one does."""

    def does(*arguments: Any) -> Any:
        step()
        answer = function(*arguments)
        step()
        return answer

    return does


def test_what_a_maker_that_was_killed_left_behind_is_taken_away(path: Path) -> None:
    Path(f"{path}.unfinished").write_bytes(b"half a budget")
    Path(f"{path}.unfinished-journal").write_bytes(b"half a journal")
    assert opened(path).run(30, True, add) == 1
    assert sorted(contents(path.parent)) == sorted(f"budget.db{name}" for name in NAMES)


def test_many_processes_that_open_a_new_path_at_once_share_one_budget(path: Path) -> None:
    program = "said('ready'); wait(); connection = opened(path); connection.run(30, True, add); connection.let_go()"
    with other(program, path) as first, other(program, path) as second, other(program, path) as third:
        for process in (first, second, third):
            process.hears("ready")
        for process in (first, second, third):
            process.goes_on()
        for process in (first, second, third):
            process.ends()
    assert opened(path).look(30, count) == 3


def test_after_the_last_one_closed_the_budget_is_whole_in_its_one_file(path: Path, tmp_path: Path) -> None:
    connection = opened(path)
    connection.run(30, False, add)
    connection.let_go()
    assert Path(f"{path}-wal").stat().st_size == 0
    copied = tmp_path / "copied.db"
    shutil.copy(path, copied)
    assert opened(copied).look(30, count) == 1


def test_at_the_interpreters_end_files_are_closed(path: Path) -> None:
    with other("opened(path).run(30, False, add)", path) as process:
        process.ends()
    assert Path(f"{path}-wal").stat().st_size == 0
    assert opened(path).look(30, count) == 1


def test_the_log_does_not_grow_for_ever(path: Path) -> None:
    connection = opened(path)
    for _ in range(3_000):
        connection.run(30, False, add)
    assert Path(f"{path}-wal").stat().st_size < 1_100 * (_schema.PAGE_SIZE + 24)
    assert connection.look(30, count) == 3_000


# ---------------------------------------------------------------- paths


def test_all_paths_to_a_file_are_one_connection(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = opened(path)
    monkeypatch.chdir(path.parent)
    (tmp_path / "link.db").symlink_to(path)
    (tmp_path / "link").symlink_to(path.parent)
    for way in ("budget.db", "../folder/./budget.db", tmp_path / "link.db", tmp_path / "link" / "budget.db", str(path)):
        assert Connection.of(way, timeout=30) is connection
    assert Connection.of(os.fsencode(path), timeout=30) is connection  # type: ignore[arg-type]
    assert sorted(contents(path.parent)) == sorted(f"budget.db{name}" for name in NAMES)


def test_a_relative_path_stays_where_it_was(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    connection = opened("budget.db")
    monkeypatch.chdir(tmp_path)
    assert connection.run(30, True, add) == 1
    assert connection.path == str(path.resolve())


def test_a_link_to_nothing_makes_the_file_that_it_points_to(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(path)
    opened(tmp_path / "link.db")
    assert sorted(contents(path.parent)) == sorted(f"budget.db{name}" for name in NAMES)


@pytest.mark.skipif(not LINUX, reason="needs mounts")
def test_a_folder_that_is_mounted_twice_has_one_connection(tmp_path: Path) -> None:
    with_mounts(
        """
os.makedirs(path + "/a"); os.makedirs(path + "/b")
mount("--bind", path + "/a", path + "/b")
assert opened(path + "/a/budget.db") is opened(path + "/b/budget.db")
""",
        tmp_path,
    )


@pytest.mark.parametrize("name", ["a b.db", "50%?#&.db", "größe.db", os.fsdecode(b"\xff.db"), "db", "x" * 200])
def test_any_name_of_a_file_will_do(path: Path, name: str) -> None:
    connection = opened(path.parent / name)
    assert connection.run(30, True, add) == 1
    assert connection.path == str(path.parent.resolve() / name)


@pytest.mark.parametrize("bad", ["", ":memory:", "a\0b"])
def test_what_is_no_path_is_a_value_error(bad: str) -> None:
    with pytest.raises(ValueError, match="path|memory"):
        Connection.of(bad, timeout=30)


def test_a_path_of_another_type_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        Connection.of(3, timeout=30)  # type: ignore[arg-type]


# ---------------------------------------------------------------- never a fresh budget in silence


def test_without_create_nothing_is_made(path: Path) -> None:
    with pytest.raises(StoreLost, match="no budget in .*create=False"):
        Connection.of(path, timeout=30, create=False)
    with pytest.raises(StoreLost):
        Connection.of(path.parent / "none" / "budget.db", timeout=30, create=False)
    assert not contents(path.parent)
    opened(path).let_go()
    assert opened(path, create=False).run(30, True, add) == 1


@pytest.mark.parametrize("how", ["deleted", "replaced"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_was_deleted_or_replaced_is_noticed_by_whoever_has_it_open(path: Path, name: str, how: str) -> None:
    connection = opened(path)
    quiet(connection)
    file = Path(f"{path}{name}")
    copy = file.read_bytes()
    if how == "deleted":
        file.unlink()
    else:
        Path(f"{path}.copy").write_bytes(copy)
        Path(f"{path}.copy").rename(file)
    for _ in range(2):
        with pytest.raises(StoreLost, match=f"{file.name} was {how}"):
            connection.run(30, True, add)
        with pytest.raises(StoreLost, match=f"{file.name} was {how}"):
            connection.look(30, count)


@pytest.mark.parametrize(("changed", "grain"), [(5_010_000_001, 0.05), (5_010_000_000, 3.0)])
def test_a_change_within_the_grain_of_the_folders_time_is_noticed_too(
    path: Path, monkeypatch: pytest.MonkeyPatch, changed: int, grain: float
) -> None:
    now = [100.0]
    monkeypatch.setattr(_file, "monotonic", lambda: now[0])
    for module in (_file, _connection):
        monkeypatch.setattr(module, "time_of_change", lambda _found: changed)  # all changes get the same time
    connection = opened(path)
    now[0] += grain
    assert connection.look(30, count) == 0
    assert connection._file.changed is None, "the folder has just changed: another change may get the same time"
    path.rename(f"{path}.away")
    with pytest.raises(StoreLost, match="deleted"):
        connection.run(30, True, add)
    Path(f"{path}.away").rename(path)
    now[0] += 0.001
    assert connection.look(30, count) == 0
    assert connection._file.changed == changed, "another change would get another time by now"


def test_in_a_folder_where_nothing_changes_no_file_is_looked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = opened(path)
    quiet(connection)
    looked: list[str] = []

    def looks(file: str) -> os.stat_result:
        looked.append(file)
        return os.lstat(file)

    monkeypatch.setattr(_file, "_lstat", looks)
    assert connection.run(30, True, add) == 1
    assert connection.look(30, count) == 1
    assert not looked
    (path.parent / "other").write_text("")
    assert connection.look(30, count) == 1
    assert sorted(looked) == sorted(f"{path}{name}" for name in NAMES)


def test_a_clock_of_the_system_that_was_put_back_makes_no_call_slower(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hence = 3_600 * 10**9  # the files are of the hour to come
    for module in (_file, _connection):
        monkeypatch.setattr(module, "time_of_change", lambda found: found.st_ctime_ns + hence)
    connection = opened(path)
    until(lambda: connection.look(30, count) == 0 and connection._file.changed is not None)


def test_other_files_in_the_folder_may_come_and_go(path: Path) -> None:
    connection = opened(path)
    quiet(connection)
    for number in range(3):
        (path.parent / "other").write_text("")
        assert connection.run(30, True, add) == number + 1
        (path.parent / "other").unlink()
    assert connection.look(30, count) == 3


def test_a_folder_that_was_moved_away_is_noticed(path: Path, tmp_path: Path) -> None:
    connection = opened(path)
    quiet(connection)
    path.parent.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreLost):
        connection.run(30, True, add)
    path.parent.mkdir()
    with pytest.raises(StoreLost):
        connection.run(30, True, add)


def test_nobody_gets_a_fresh_budget_in_the_place_of_one_that_was_deleted(path: Path) -> None:
    connection = opened(path)
    path.unlink()
    with pytest.raises(StoreLost, match="deleted or replaced while this process"):
        Connection.of(path, timeout=30)
    program = """
try:
    Connection.of(path, timeout=30)
except Exception as error:
    said(type(error).__name__)
"""
    with other(program, path) as process:
        process.hears("StoreLost")
        process.ends()
    connection.let_go()
    with pytest.raises(StoreLost, match="was deleted: .*alive is still there.*begin anew"):
        Connection.of(path, timeout=30)
    for name in NAMES[1:]:
        Path(f"{path}{name}").unlink(missing_ok=True)
    assert opened(path).look(30, count) == 0


def test_a_file_that_was_put_back_is_used_again(path: Path) -> None:
    connection = opened(path)
    connection.run(30, True, add)
    path.rename(f"{path}.away")
    with pytest.raises(StoreLost):
        connection.run(30, True, add)
    Path(f"{path}.away").rename(path)
    assert connection.run(30, True, add) == 2


def test_an_emptied_file_is_lost_and_stays_empty(path: Path) -> None:
    opened(path).let_go()
    path.write_bytes(b"")
    with pytest.raises(StoreLost, match="is empty"):
        Connection.of(path, timeout=30)
    assert path.read_bytes() == b""


@pytest.mark.skipif(not LINUX, reason="elsewhere SQLite's locks are lost with any descriptor")
def test_no_stranger_deletes_the_log_of_a_budget_in_use(path: Path) -> None:
    connection = opened(path)
    connection.run(30, False, add)
    path.read_bytes()  # by this SQLite's own locks on the file are lost, and a stranger thinks to be the last one
    stranger = """
database = sqlite3.connect(path)
print(database.execute("SELECT value FROM counter").fetchone(), file=sys.stderr)
database.close()
"""
    with other(stranger, path) as process:
        process.ends()
    assert connection.run(30, False, add) == 2
    assert {file.name for file in path.parent.iterdir()} == {f"budget.db{name}" for name in NAMES}
    with other("assert opened(path).run(30, True, add) == 3", path) as process:
        process.ends()
    assert connection.look(30, count) == 3


# ---------------------------------------------------------------- full disks and broken ones


def fill(execute: Any) -> None:
    add(execute)
    execute("INSERT INTO counter SELECT NULL, randomblob(200000)")


def test_a_full_disk_is_unavailable_with_everything_rolled_back(path: Path) -> None:
    connection = opened(path)
    connection.run(30, True, add)
    (pages,) = connection.look(30, lambda execute: execute("PRAGMA page_count").fetchone())
    connection._execute(f"PRAGMA max_page_count = {pages}")  # to SQLite it is the same as a disk without room
    with pytest.raises(BudgetUnavailable, match="disk is full"):
        connection.run(30, True, fill)
    assert connection.look(30, count) == 1
    assert connection.run(30, True, add) == 2
    connection._execute("PRAGMA max_page_count = 1000000")
    connection.run(30, True, fill)
    assert connection.look(30, count) == 3
    assert connection.look(30, lambda execute: execute("PRAGMA integrity_check").fetchall()) == [("ok",)]


@pytest.mark.skipif(not LINUX, reason="needs mounts")
def test_on_a_disk_that_is_really_full_it_is_the_same_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with_mounts(
        """
from token_budget.contract import BudgetUnavailable
mount("-t", "tmpfs", "-o", "size=1m", "none", path)
connection = opened(path + "/budget.db")
def full(execute):
    add(execute)
    execute("INSERT INTO counter SELECT NULL, randomblob(100000)")
told = refused = 0
for _ in range(30):
    try:
        connection.run(30, True, full)
        told += 1
    except BudgetUnavailable as error:
        assert "full" in str(error) or "No space" in str(error), error
        refused += 1
assert told and refused, (told, refused)
assert connection.look(30, count) == told
for command in ("run", "of"):
    try:
        if command == "run":
            connection.run(30, True, full)
        else:
            opened(path + "/second.db")
        raise AssertionError("there is no room")
    except BudgetUnavailable:
        pass
assert "second.db" not in os.listdir(path), os.listdir(path)
mount("-o", "remount,size=8m", path)
assert connection.run(30, True, add) == told + 1
assert connection.look(30, lambda execute: execute("PRAGMA integrity_check").fetchall()) == [("ok",)]
assert opened(path + "/second.db").look(30, count) == 0
""",
        tmp_path,
    )


def test_a_file_that_goes_corrupt_while_it_is_open_is_a_store_error(path: Path) -> None:
    connection = opened(path)
    for _ in range(5):
        connection.run(30, False, fill)
    connection._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection._execute("PRAGMA cache_size = 0")
    with path.open("r+b") as file:
        file.seek(1024)
        file.write(b"\xa5" * (path.stat().st_size - 1024))
    with pytest.raises(StoreError, match="corrupt"):
        connection.run(30, True, lambda execute: execute("SELECT sum(length(value)) FROM counter").fetchall())
    assert not connection.mutex.locked()
    assert not connection._database.in_transaction  # type: ignore[union-attr]


@pytest.mark.parametrize("durable", [True, False])
def test_what_is_durable_is_synced_after_the_locks_were_let_go_and_before_it_returns(path: Path, durable: bool) -> None:
    connection = opened(path)
    steps: list[str] = []
    sync = connection._file.sync
    assert os.fstat(sync.args[0]).st_ino == Path(f"{path}-wal").stat().st_ino  # type: ignore[attr-defined]

    def syncs() -> None:
        with other("said(str(opened(path).run(30, False, add)))", path) as process:
            process.hears("2")  # the lock is free, and what was committed is seen
        steps.append("synced")
        sync()

    connection._file.sync = syncs

    def work(execute: Any) -> int:
        steps.append("worked")
        return add(execute)

    assert connection.run(30, durable, work) == 1
    assert steps == (["worked", "synced"] if durable else ["worked"])


def test_what_was_rolled_back_or_only_read_is_not_synced(path: Path) -> None:
    connection = opened(path)

    def fails() -> None:
        raise AssertionError("there is nothing to sync")

    connection._file.sync = fails
    connection.run(30, True, lambda execute: add(execute) and execute("ROLLBACK"))
    connection.look(30, count)
    assert connection.look(30, count) == 0


def test_a_disk_that_fails_to_sync_is_told_apart_from_a_transaction_that_failed(path: Path) -> None:
    connection = opened(path)

    def fails() -> None:
        raise OSError(errno.EIO, "Input/output error")

    sync, connection._file.sync = connection._file.sync, fails
    with pytest.raises(Unsynced, match="not known to be on the disk"):
        connection.run(30, True, add)
    assert connection.look(30, count) == 1
    connection._file.sync = sync
    assert connection.run(30, True, add) == 2


def test_without_descriptors_to_open_a_file_with_it_is_unavailable_and_later_opens(path: Path) -> None:
    def exhausted() -> None:
        import resource

        taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(64)]  # they fill the gaps
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        for free in range(40):
            try:
                connection = Connection.of(path, timeout=30)
                break
            except BudgetUnavailable as error:
                assert "Too many open files" in str(error) or "cannot be opened" in str(error), error
                resource.setrlimit(
                    resource.RLIMIT_NOFILE, (max(taken) + 1 + free, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
                )
        assert free >= 5
        connection.let_go()
        assert opened(path).run(30, True, add) == 1

    in_child(exhausted)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 has no code to compare with")
def test_the_texts_that_stand_for_codes_on_python_3_10_are_sqlites(path: Path) -> None:
    database = sqlite3.connect(path, isolation_level=None, timeout=0)
    database.execute("CREATE TABLE t (a)")
    second = sqlite3.connect(path, isolation_level=None, timeout=0)
    second.execute("BEGIN IMMEDIATE")
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    (path.parent / "text").write_text("x" * 5000)
    text = sqlite3.connect(path.parent / "text")
    none = sqlite3.connect(":memory:", isolation_level=None)
    none.execute("CREATE TABLE t (a)")
    none.execute("PRAGMA max_page_count = 1")
    for connection, statement in [
        (database, "BEGIN IMMEDIATE"),
        (reader, "INSERT INTO t VALUES (1)"),
        (text, "SELECT * FROM sqlite_master"),
        (none, "INSERT INTO t VALUES (zeroblob(100000))"),
        (database, "no statement"),
    ]:
        with pytest.raises(sqlite3.DatabaseError) as caught:
            connection.execute(statement)
        assert TEXTS.get(str(caught.value), 1) == caught.value.sqlite_errorcode & 0xFF == code_of(caught.value) & 0xFF
    for each in (database, second, reader, text, none):
        each.close()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), BudgetUnavailable),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), BudgetUnavailable),
        (OSError(errno.EIO, "Input/output error"), BudgetUnavailable),
        (OSError(errno.ENOLCK, "No locks available"), StoreError),
        (OSError(errno.EROFS, "Read-only file system"), StoreError),
        (OSError(errno.ENOENT, "No such file or directory"), StoreLost),
        (sqlite3.OperationalError("disk I/O error"), BudgetUnavailable),
        (sqlite3.OperationalError("database or disk is full"), BudgetUnavailable),
        (sqlite3.OperationalError("attempt to write a readonly database"), StoreError),
        (sqlite3.DatabaseError("database disk image is malformed"), StoreError),
        (sqlite3.OperationalError("no such table: scope"), StoreError),
    ],
)
def test_each_fault_says_whether_to_try_again(error: Exception, kind: type[Exception]) -> None:
    fault = ours(error, "/srv/budget.db")
    assert type(fault) is kind
    assert "/srv/budget.db" in str(fault)


@pytest.mark.parametrize(
    "error", [sqlite3.IntegrityError("CHECK"), sqlite3.ProgrammingError("wrong"), ValueError("x"), KeyError("y")]
)
def test_what_is_no_fault_of_the_file_passes_as_it_is(path: Path, error: Exception) -> None:
    connection = opened(path)

    def fails(execute: Any) -> None:
        add(execute)
        raise error

    with pytest.raises(type(error)) as caught:
        connection.run(30, True, fails)
    assert caught.value is error
    assert connection.look(30, count) == 0


# ---------------------------------------------------------------- the end of uses


def test_a_connection_is_open_until_its_last_user_let_go(path: Path) -> None:
    connection = opened(path)
    assert Connection.of(path, timeout=30) is connection
    connection.let_go()
    assert connection.run(30, True, add) == 1
    connection.let_go()
    with pytest.raises(StoreError, match="closed in this process"):
        connection.run(30, True, add)
    again = opened(path)
    assert again is not connection
    assert again.run(30, True, add) == 2


def test_opening_and_closing_leaves_no_descriptor_open(path: Path) -> None:
    def descriptors() -> int:
        gc.collect()
        return len(list(Path("/dev/fd").iterdir()))

    opened(path).let_go()
    before = descriptors()
    for _ in range(5):
        opened(path).let_go()
    Path(f"{path}.bad").write_text("no budget" * 100)
    for _ in range(5):
        with pytest.raises(StoreError):
            Connection.of(f"{path}.bad", timeout=30)
    assert descriptors() == before


def test_an_opening_that_is_interrupted_in_any_of_its_steps_leaves_no_descriptor_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(path).let_go()
    before = len(list(Path("/dev/fd").iterdir()))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for of, name in [(Connection, "_connect"), (_file.BudgetFile, "check"), (Connection, "new_owner")]:
        with monkeypatch.context() as patch:
            patch.setattr(of, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                Connection.of(path, timeout=30)
        assert len(list(Path("/dev/fd").iterdir())) == before
    assert opened(path).run(30, True, add) == 1


def test_threads_that_open_and_close_one_path_meet_each_other_or_nobody(path: Path) -> None:
    opened(path).let_go()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(40):
                connection = Connection.of(path, timeout=30)
                connection.run(30, False, add)
                connection.let_go()
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert opened(path).look(30, count) == 160
