"""What an attack on the SQLite engine has found: each test plays one way in, and fails without its mend."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import pytest

from sqlite_files import add, close_all, count, opened, other, quiet
from sqlite_ledger import Ledger, others, statement, until
from token_budget import PoolClosed, Window
from token_budget.stores import StoreError, StoreLost, StoreMismatch
from token_budget.stores.sqlite import _waiters
from token_budget.stores.sqlite._connection import Connection, Unsynced
from token_budget.stores.sqlite._owners import dead
from token_budget.stores.sqlite._step import Step


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "budget.db"


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_all()


def test_files_that_were_replaced_are_noticed_though_the_folders_time_was_put_back(path: Path) -> None:
    connection = opened(path)
    quiet(connection)
    before = path.parent.stat()
    for name in ("", "-wal"):
        shutil.copy2(f"{path}{name}", f"{path}.copy")
        Path(f"{path}.copy").rename(f"{path}{name}")
    os.utime(path.parent, ns=(before.st_atime_ns, before.st_mtime_ns))  # as tar and rsync do
    with pytest.raises(StoreLost, match="replaced"):
        connection.run(30, True, add)
    with pytest.raises(StoreLost, match="replaced"):
        connection.look(30, count)


def _killed_in_the_middle(path: Path, last: str = "") -> None:
    """Count 5 in another process, which then dies by kill -9."""
    program = "c = opened(path)\nc.run(30, True, add, 5)\n" + last + "\nsaid('done'); wait()"
    with other(program, path) as process:
        process.hears("done")


@pytest.mark.parametrize("names", [("-wal",), ("-wal", "-shm")])
def test_a_log_that_was_deleted_after_a_kill_is_lost_money_and_no_fresh_budget(
    path: Path, names: tuple[str, ...]
) -> None:
    _killed_in_the_middle(path)
    for name in names:
        Path(f"{path}{name}").unlink()
    for _ in range(2):
        with pytest.raises(StoreLost, match="log .*was deleted"):
            Connection.of(path, timeout=30)


def test_an_older_copy_is_noticed_though_nobody_had_the_file_open(path: Path) -> None:
    opened(path).let_go()
    shutil.copy2(path, f"{path}.older")
    connection = opened(path)
    connection.run(30, True, add, 5)
    connection.let_go()
    Path(f"{path}.older").rename(path)
    with pytest.raises(StoreLost, match="older copy"):
        Connection.of(path, timeout=30)
    Path(f"{path}.alive").unlink()  # who restored it says so, and goes on
    assert opened(path).look(30, count) == 0


def test_the_log_may_be_gone_where_all_of_it_is_in_the_file(path: Path) -> None:
    _killed_in_the_middle(path)
    with closing(sqlite3.connect(path)) as stranger:  # the last one out: it brings the log home, and deletes it
        assert stranger.execute("SELECT value FROM counter").fetchone() == (5,)
    assert not Path(f"{path}-wal").exists()
    assert opened(path).look(30, count) == 5


def test_what_a_power_cut_leaves_of_the_number_of_openings_keeps_nobody_out(path: Path) -> None:
    opened(path).let_go()
    Path(f"{path}.alive").write_bytes(b"\0" * 20)
    opened(path).let_go()
    assert int(Path(f"{path}.alive").read_bytes()) == 2


def test_a_closed_key_is_not_dropped_with_its_period(path: Path) -> None:
    now = [0.5]
    window = Window.every(timedelta(seconds=1), clock=lambda: now[0])
    ledger = Ledger(path)
    ledger.open("total")
    ledger.open("total/u:", 5, window=window)
    ledger.record("total/u:ann", 5)
    ledger.store.close(ledger.scope("total/u:ann"))
    now[0] = 10.5
    for number in range(6):  # each new key looks at two old ones
        ledger.record(f"total/u:{number}", 1)
    assert ledger.row("total/u:ann").closed
    with pytest.raises(PoolClosed):
        ledger.reserve("total/u:ann", 1)


def test_what_is_closed_is_closed_for_good_while_the_scope_above_it_is_open(path: Path) -> None:
    ledger = Ledger(path)
    ledger.open("total")
    ledger.open("total/a", 5)
    ledger.open("total/u:", 5)
    ledger.record("total/u:ann", 5)
    for name in ("total/a", "total/u:ann"):
        ledger.store.close(ledger.scope(name))
    later = ledger.store._ledger.clock() + 8 * 86_400
    ledger.store._ledger.clock = lambda: later
    ledger.open("total")  # it tidies
    for name in ("total/a", "total/u:ann"):
        with pytest.raises(PoolClosed):
            ledger.reserve(name, 1)
        assert not ledger.open(name).created


def test_a_waiter_whose_process_is_stopped_is_passed_over_and_keeps_its_ticket(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(_waiters, "uptime", lambda: now[0])
    ledger = Ledger(path)
    ledger.open("total", 10)
    held = ledger.hold("total", 10)
    stopped, answer = ledger.reserve("total", 1, wait=True)
    assert answer.kind == "refused"
    heads = [(ledger.chain("total"), stopped, 1, 0)]
    now[0] += 3.9
    assert ledger.store.watch(heads, 0) == []  # it lives, and shows it
    ledger.store.release(ledger.chain("total"), held, (10, 0))
    now[0] += 3.9
    assert ledger.reserve("total", 1)[1].kind == "refused"
    now[0] += 0.2  # longer than it shows a sign of life
    key, answer = ledger.reserve("total", 1, wait=True)
    assert answer.kind == "granted"
    assert ledger.record("total", 9).kind == "done"
    younger, answer = ledger.reserve("total", 1, wait=True)
    assert answer.ticket == 2
    assert list(ledger.store.watch(heads, 0) or ()) == []  # it is back
    ledger.store.release(ledger.chain("total"), key, (1, 0))
    assert ledger.reserve("total", 1, key=younger, wait=True)[1].kind == "refused"
    assert ledger.reserve("total", 1, key=stopped, wait=True)[1].kind == "granted"


def test_who_waits_behind_a_stopped_process_is_told_once_that_is_passed_over(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(_waiters, "uptime", lambda: now[0])
    ledger = Ledger(path)
    ledger.open("total", 10)
    held = ledger.hold("total", 10)
    ledger.reserve("total", 1, wait=True)
    statement(path, "UPDATE waiter SET owner = 7")  # another process has it, which shows no sign of life
    second, _ = ledger.reserve("total", 1, wait=True)
    ledger.store.release(ledger.chain("total"), held, (10, 0))
    heads = [(ledger.chain("total"), second, 1, 0)]
    assert ledger.store.watch(heads, 0) == []
    now[0] += 4.1
    assert ledger.store.watch(heads, 30) == [second]
    assert ledger.reserve("total", 1, key=second, wait=True)[1].kind == "granted"


def _failing() -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_a_record_that_was_not_synced_is_not_undone_in_what_was_counted_after_a_reset(path: Path) -> None:
    ledger = Ledger(path, durable=True)
    ledger.open("total", 10)
    with patch.object(ledger.store._ledger.connection._file, "sync", _failing), pytest.raises(Unsynced):
        ledger.record("total", 6)
    assert ledger.used() == (6, 0)
    ledger.store.reset(ledger.scope("total"))
    ledger.record("total", 8)
    ledger.store.tend()
    assert ledger.used() == (8, 0)


def test_a_record_that_was_not_synced_is_not_undone_in_a_later_period(path: Path) -> None:
    now = [0.5]
    ledger = Ledger(path, durable=True)
    ledger.open("total", 10, window=Window.every(timedelta(seconds=1), clock=lambda: now[0]))
    with (
        patch.object(ledger.store._ledger.connection._file, "sync", _failing),
        patch.object(ledger.store, "_seen", side_effect=StoreError("away")),  # so that the period alone tells
        pytest.raises(Unsynced),
    ):
        ledger.record("total", 6)
    now[0] = 1.5
    ledger.record("total", 8)
    ledger.store.tend()
    assert ledger.used() == (8, 0)


def test_a_record_that_was_not_synced_is_undone_where_its_period_goes_on(path: Path) -> None:
    now = [0.5]
    ledger = Ledger(path, durable=True)
    ledger.open("total", 10, window=Window.every(timedelta(seconds=1), clock=lambda: now[0]))
    with patch.object(ledger.store._ledger.connection._file, "sync", _failing), pytest.raises(Unsynced):
        ledger.record("total", 6)
    now[0] = 0.7
    ledger.record("total", 1)
    ledger.store.tend()
    assert ledger.used() == (1, 0)


def test_pools_deeper_than_pythons_stack_are_named_and_deleted(path: Path) -> None:
    ledger = Ledger(path)
    ledger.open("total")
    ledger.open("total/u:")
    ledger.record("total/u:ann", 1)
    with closing(sqlite3.connect(path)) as stranger, stranger:
        ((parent,),) = stranger.execute("SELECT id FROM scope WHERE name = 'ann'").fetchall()
        columns = "token_room, nano_room, token_held, nano_held, in_flight, ends, era, waiters, closed, own"
        sql = f"INSERT INTO scope (parent, name, {columns}) SELECT ?, 'c', {columns} FROM scope WHERE name = 'ann'"
        for _ in range(2000):
            parent = stranger.execute(sql, (parent,)).lastrowid or 0

    def path_of_deepest(step: Step) -> str:
        return step.path(step.rows([parent])[0])

    assert ledger.store._seen(path_of_deepest) == "total/u:ann" + "/c" * 2000
    assert ledger.forget("total/u:ann")
    assert statement(path, "SELECT name FROM scope") == [("total",)]


_HOLDS = """
from sqlite_ledger import Ledger
ledger = Ledger(path)
ledger.open("total")
ledger.hold("total", 6)
said("holds"); wait()
"""


@pytest.mark.parametrize("look", ["read", "tree"])
def test_who_looks_charges_the_dead_so_that_they_count_in_one_period_only(path: Path, look: str) -> None:
    now = [0.5]
    ledger = Ledger(path)
    ledger.open("total", 10, window=Window.every(timedelta(seconds=3), clock=lambda: now[0]))
    assert ledger.news() == ["created total"]
    with other(_HOLDS, path) as process:
        process.hears("holds")
        statement(path, "UPDATE scope SET token_room = 4, starts = 0, ends = 3")  # the other has another clock
    if look == "read":
        assert (ledger.used(), ledger.held()) == ((6, 0), (0, 0, 0))
    else:
        ((_, _, row),) = ledger.store.tree(ledger.scope("total"))
        assert (row.tokens_claimed, row.tokens_held) == (6, 0)
    assert ledger.news() == ["expired total"]
    now[0] = 3.5
    assert ledger.used() == (0, 0)


_FORKS = """
from sqlite_ledger import Ledger
ledger = Ledger(path)
ledger.open("total", 10)
ledger.open("total/u:", 5)
if os.fork():
    os._exit(0)
try:
    ledger.store.forked()
    ledger.record("total", 1)
    said("spends"); wait()
finally:
    os._exit(0)
"""


def test_a_forked_child_stands_by_the_caps_that_its_parent_gave(path: Path) -> None:
    with other(_FORKS, path) as process:
        process.hears("spends")
        process.process.wait(60)  # the parent is gone, the child goes on
        ledger = Ledger(path)
        with pytest.raises(StoreMismatch, match="has given 10"):
            ledger.open("total", 1000)
        ledger.open("total")
        with pytest.raises(StoreMismatch, match="has given 5"):
            ledger.open("total/u:", 1000)
        process.goes_on()
        until(lambda: bool(ledger.store._seen(dead)))
    assert ledger.open("total", 1000).changed == (("token_cap", 10, 1000),)


def test_what_was_not_given_in_the_end_is_not_given_by_a_child(path: Path) -> None:
    ledger = Ledger(path)
    with others(path) as [another]:
        another("open", "total", 10, 20)
        with pytest.raises(StoreMismatch):
            ledger.open("total", 10, 30)
    assert ledger.store._ledger.gave == {}


@pytest.mark.parametrize("left", ["-wal", "-shm"])
def test_a_log_without_its_file_is_a_budget_that_was_deleted(path: Path, left: str) -> None:
    Path(f"{path}{left}").write_bytes(b"")
    with pytest.raises(StoreLost, match=f"was deleted: .*budget.db{left} is still there. Restore it, or delete"):
        Connection.of(path, timeout=30)
    assert not path.exists()
    Path(f"{path}{left}").unlink()
    opened(path)


def test_what_was_not_synced_says_that_it_is_done(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(path, durable=True)
    ledger.open("total", 10)
    ledger.open("total/a", 10)
    key = ledger.hold("total/a", 3)
    ledger.record("total/a", 4)
    with patch.object(ledger.store._ledger.connection._file, "sync", _failing):
        with pytest.raises(Unsynced, match="is done"):
            ledger.set_caps("total/a", 20, 30)
        with pytest.raises(Unsynced, match="is done"):
            ledger.store.reset(ledger.scope("total/a"))
        with pytest.raises(Unsynced, match="is done"):
            ledger.store.close(ledger.scope("total/a"))
        assert ledger.hand("total/a", key, 3600) == key
    row = ledger.row("total/a")
    assert (row.token_cap, row.nano_cap, row.tokens_claimed, row.closed) == (20, 30, 3, True)
    assert statement(path, "SELECT owner FROM hold") == [(0,)]
    assert [f"{ledger.store.id_of(key)} is handed over" in record.getMessage() for record in caplog.records] == [True]
    assert len(ledger.store._ledger.gave) == 3, "what was given is noted, though it was not synced"


def _belongs_to(path: str | Path, user: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a file look as another user's."""
    inode, fstat, of_path = Path(path).stat().st_ino, os.fstat, Path.stat

    def changed(found: os.stat_result) -> os.stat_result:
        if found.st_ino != inode:
            return found
        return os.stat_result((*found[:4], user, *found[5:10]), {"st_mtime_ns": found.st_mtime_ns})

    monkeypatch.setattr(os, "fstat", lambda descriptor: changed(fstat(descriptor)))
    monkeypatch.setattr(Path, "stat", lambda self, **how: changed(of_path(self, **how)))


@pytest.mark.parametrize("name", [".lock", ".alive"])
def test_a_lock_file_of_a_user_who_has_no_part_in_the_budget_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    opened(path).let_go()
    _belongs_to(f"{path}{name}", os.geteuid() + 7, monkeypatch)
    with pytest.raises(StoreError, match=rf"{name} belongs to user {os.geteuid() + 7}"):
        Connection.of(path, timeout=30)
    _belongs_to(path, os.geteuid() + 7, monkeypatch)  # the owner of the budget may
    opened(path)


def test_a_lock_file_that_another_user_made_before_the_budget_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(f"{path}.lock").write_text("")
    _belongs_to(f"{path}.lock", os.geteuid() + 7, monkeypatch)
    with pytest.raises(StoreError, match="belongs to user"):
        Connection.of(path, timeout=30)
    assert not path.exists()


def test_a_budget_of_another_user_is_refused_where_everybody_makes_files(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(path).let_go()
    _belongs_to(path, os.geteuid() + 7, monkeypatch)
    opened(path).let_go()
    path.parent.chmod(0o1777)
    with pytest.raises(StoreError, match=f"belongs to user {os.geteuid() + 7}, in a folder where everybody"):
        Connection.of(path, timeout=30)
    monkeypatch.undo()
    opened(path)  # it is ours
