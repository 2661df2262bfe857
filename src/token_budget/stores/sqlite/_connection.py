"""Connection: this process's one way into one SQLite file, and the only place that takes its locks.

What always holds:

* One connection a process and file, found by device and inode. A forked child makes its own, and neither uses nor
  closes the parent's.
* Every transaction that writes runs in `run`: under the mutex of the threads, then under the file lock of the
  processes. Checkpoints run there too (before 3.51.3, SQLite can damage a file whose log one connection resets while
  another one writes).
* Nothing is left behind. Whatever ends `run` (an error, Ctrl-C before any instruction), the transaction is undone or
  whole, both locks are free, and the next call finds a clean state.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import starmap
from time import monotonic
from typing import Any, TypeVar

from token_budget._errors import PoolForked
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import Nested, StoreError
from token_budget.stores.sqlite._alive import Alive
from token_budget.stores.sqlite._faults import is_busy, ours
from token_budget.stores.sqlite._file import BudgetFile, Identity, resolved, time_of_change, uri
from token_budget.stores.sqlite._lock import HELD, poll
from token_budget.stores.sqlite._registry import NESTED, Registry

T = TypeVar("T")
# `work(execute, *arguments)`. `execute(sql, parameters=())` is the `execute` of the connection's ONE cursor and returns
# this cursor: fetch what one statement found before the next one is executed (`fetchone`, `fetchall`). A new cursor a
# statement costs 0.25 us, a tenth of a small update.
Execute = Callable[..., Any]

_CHECKPOINT_PAGES = 1000  # of 1 KB: the longest stall of a checkpoint was 6 ms
_LOG_BYTES = 4 << 20  # what the log shrinks to after a long reader made it grow
_TORN = (
    "this process was forked in the middle of a transaction of another thread, by something that runs none of Python's"
    " hooks (such as uWSGI without lazy-apps), so that SQLite's locks are torn in it: fork before the pool is used"
)
_inherited: list[object] = []  # what a parent had open


class Closed(StoreError):
    """Nobody in this process uses the connection any more, and nothing was done."""


class Unsynced(BudgetUnavailable):
    """The transaction is committed and seen by everybody, but it is not known to have reached the disk."""

    answer: Any = None  # what `work` returned


class Connection:
    """This process's connection to one file. `of` makes it."""

    def __init__(self, path: str) -> None:
        self.path: str = path  # absolute, without symbolic links
        # What this process is called in the file: a random number of 62 bits, at least 1. New in a forked child.
        self.owner: int = 0
        # Each is called with a new owner as soon as there is one (after a fork: at the child's first use), by the
        # thread that found it, under the mutex. It must not use the connection.
        self.on_new_owner: list[Callable[[int], None]] = []
        self.users: int = 0
        self._file = BudgetFile(path)
        self._database: sqlite3.Connection | None = None  # None: not open, or not yet in this child
        self._execute: Execute = _not_open
        self._torn = False  # whether this is a child in which SQLite's locks on it are torn
        self._renew_mutex()

    def _renew_mutex(self) -> None:
        self.mutex: Any = threading.Lock()  # looked up late for gevent's patches
        self.inside: int = 0  # the thread that is; written under the mutex. Who reads it can only find itself

    @property
    def identity(self) -> Identity:
        """Device and inode of the file."""
        return self._file.identity

    @property
    def alive(self) -> Alive:
        """Which of the owners live. For ``work``, inside `run` or `look`."""
        return self._file.alive

    # ------------------------------------------------------------------ the ways in

    @staticmethod
    def of(path: str | os.PathLike[str], *, timeout: float, create: bool = True) -> Connection:
        """Return this process's connection to a file; make the file where there is none and ``create`` is true.

        Each call is one user of the connection, until that one calls `let_go`.

        Raises:
            StoreLost: there is no file and ``create`` is false, or there has been one; or it was replaced or emptied.
            StoreError: it cannot keep a budget: it is another's, corrupt, of a newer version, not writable, on a
                network file system, a folder.
            BudgetUnavailable: it cannot be opened now: the lock was not free for ``timeout`` seconds, the disk is full.
            RuntimeError: this thread is inside `of` already (a signal handler, a finaliser).
        """
        real, deadline = resolved(path), monotonic() + timeout
        connection: Connection = _registry.get(real, timeout, partial(Connection._new, real, deadline, create=create))
        return connection

    @staticmethod
    def _new(path: str, deadline: float, *, create: bool) -> Connection:
        connection = Connection(path)
        connection._open(deadline, create=create)
        return connection

    def look(self, timeout: float, work: Callable[..., T], *arguments: Any) -> T:
        """Return ``work(execute, *arguments)``, run in one BEGIN .. ROLLBACK: a consistent read, without the file lock.

        It waits for no other process. ``work`` must not write. Raises what `run` raises.
        """
        return self.run(timeout, None, work, *arguments)

    def run(self, timeout: float, durable: bool | None, work: Callable[..., T], *arguments: Any) -> T:  # noqa: C901, FBT001, PLR0912
        """Return ``work(execute, *arguments)``, run in one BEGIN IMMEDIATE .. COMMIT, under both locks.

        ``durable``: it returns when the transaction is on the disk. (None is `look`.) Where ``work`` raises, everything
        is rolled back. ``work`` may end the transaction by ``execute("ROLLBACK")`` (then nothing is committed, nothing
        synced) and may go on with ``execute("BEGIN IMMEDIATE")``, still under the locks: what is open when it returns
        is committed. `owner` is up to date and its byte is locked whenever ``work`` runs; the owner's row is the
        ledger's to write.

        Raises:
            BudgetUnavailable: a lock was not free for ``timeout`` seconds, the disk is full, input or output failed.
                Nothing was changed. `Unsynced`: all was changed, but is not known to be on the disk.
            StoreLost: the file was deleted or replaced.
            StoreError: it is corrupt, read-only, or not ours.
            RuntimeError: this thread is inside `run` or `look` already (a signal handler, a finaliser).
        """
        if not _here[0]:
            _registry.notice_fork()
        me = threading.get_ident()
        if self.inside == me:
            raise Nested(NESTED)
        deadline = monotonic() + timeout
        mutex, file, mine = self.mutex, self._file, False
        try:
            # A step of an iterator in C, then `try`: no Ctrl-C comes between them (`_family.taking` of the core). Each
            # `finally` makes one call in C, after which the next one is certain to come, and begins with `try`: at the
            # beginning of another one CPython 3.10 delivers what came while the exception was raised.
            for held in starmap(mutex.acquire, ((True, timeout),)):
                try:
                    if not held:
                        break
                    self.inside = me
                    answer, unsynced = self._transact(mutex, deadline, durable, work, arguments)
                finally:
                    try:
                        mine = held and self.mutex is mutex  # else this is a child that a signal handler forked here
                        if mine and self._database is not None and self._database.in_transaction:
                            self._execute("ROLLBACK")
                    finally:
                        try:
                            if mine:
                                file.free()
                        finally:
                            if mine:
                                self.inside = 0
                                mutex.release()
                if unsynced:
                    try:
                        self._sync()
                    except Unsynced as error:
                        error.answer = answer
                        raise
                return answer
        except (sqlite3.DatabaseError, OSError) as error:
            fault = ours(error, self.path)
            if fault is error:
                raise
            raise fault from error
        raise BudgetUnavailable(f"{self.path}: another thread of this process is in it for too long")

    def _transact(
        self, mutex: Any, deadline: float, durable: Any, work: Callable[..., T], arguments: tuple[Any, ...]
    ) -> tuple[T, bool]:
        """Do the work in one transaction. Return its answer, and whether it has still to be synced."""
        file, database = self._file, self._database
        if database is None:
            database = self._open(deadline)
        execute = self._execute
        if durable is not None:
            try:
                file.take()
            except OSError as error:
                self._wait_for_lock(error, deadline)
        if time_of_change(os.stat(file.folder)) != file.changed:  # noqa: PTH116 - a Path takes a microsecond more
            file.check()
        if durable is None:
            self._begin_to_read(deadline)
        else:
            try:
                execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                self._wait_to_begin(error, deadline)
        answer = work(execute, *arguments)
        if not _here[0]:
            _registry.notice_fork()
        if self.mutex is not mutex:
            raise PoolForked(f"{self.path}: a signal handler forked in the middle of this call: call again")
        if durable is None or not database.in_transaction:
            return answer, False
        execute("COMMIT")
        return answer, durable

    # ------------------------------------------------------------------ what is rare in them

    def _wait_for_lock(self, error: OSError, deadline: float) -> None:
        if error.errno not in HELD:
            raise error
        if not poll(self._file.try_lock, deadline):
            raise BudgetUnavailable(self._file.locked_by()) from None

    def _wait_to_begin(self, error: sqlite3.OperationalError, deadline: float) -> None:
        """Wait for a transaction of a stranger, who does not take our lock (a sqlite3 shell)."""
        if not is_busy(error):
            raise error
        if not poll(partial(self._is_done, "BEGIN IMMEDIATE"), deadline):
            raise BudgetUnavailable(f"{self.path}: another program keeps it locked in a transaction") from error

    def _begin_to_read(self, deadline: float) -> None:
        """Begin to read; a stranger who recovers the log or closes the file may be in the way."""
        self._execute("BEGIN")
        if not poll(partial(self._is_done, "SELECT 1 FROM sqlite_master LIMIT 1"), deadline):
            raise BudgetUnavailable(f"{self.path}: another program keeps it locked")

    def _is_done(self, statement: str, parameters: tuple[int, ...] = ()) -> bool:
        try:
            self._execute(statement, parameters).fetchall()
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            return False
        return True

    def _sync(self) -> None:
        try:
            self._file.sync()
        except OSError as error:
            raise Unsynced(
                f"{self.path}: the transaction is done, but it is not known to be on the disk ({error.strerror})"
            ) from error

    def new_owner(self) -> int:
        """Make this process a new owner, where it was declared dead while it lives. For ``work``, inside `run`."""
        before, owner = self.owner, 0
        while not owner or not self.alive.take(owner):
            owner = secrets.randbits(62)
        self.owner = owner
        self.alive.give(before)
        for callback in self.on_new_owner:
            callback(owner)
        return owner

    # ------------------------------------------------------------------ opening and closing

    def _open(self, deadline: float, *, create: bool = False) -> sqlite3.Connection:
        """Open what is not open in this process. A forked child has the parent's descriptors already."""
        if self._torn:
            raise StoreError(f"{self.path}: {_TORN}")
        if not self.users and any(self.identity):
            raise Closed(f"{self.path} was closed in this process: make a new pool")
        opened: list[sqlite3.Connection] = []
        inherited = self._file.is_open
        try:
            self._file.open(deadline, partial(self._connect, opened, deadline), create=create)
            self.new_owner()
        except BaseException:
            for database in opened:
                database.close()
            if not inherited:
                self._file.close()
            raise
        self._database = opened[0]
        return opened[0]

    def _connect(self, opened: list[sqlite3.Connection], deadline: float) -> Callable[[int], int]:
        """Open SQLite's connection, under the file lock. Return what counts an opening.

        SQLite's own waiting is off, since Ctrl-C could not end it.
        """
        database = sqlite3.connect(
            uri(self.path, "mode=rw"), timeout=0, isolation_level=None, check_same_thread=False, uri=True
        )
        opened.append(database)
        self._execute = database.cursor().execute
        if not poll(partial(self._is_done, "PRAGMA journal_mode = WAL"), deadline):
            raise BudgetUnavailable(f"{self.path}: another program keeps it locked")
        if self._execute("PRAGMA journal_mode").fetchone() != ("wal",):
            raise StoreError(f"{self.path}: this SQLite cannot use a write-ahead log here")
        self._execute("PRAGMA synchronous = NORMAL")  # what is durable is synced outside the lock
        self._execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}").fetchall()
        self._execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}").fetchall()
        self._execute("SELECT count(*) FROM sqlite_master").fetchall()
        return partial(self._count_opening, deadline)

    def _count_opening(self, deadline: float, known: int) -> int:
        """Count an opening in the file, where it has counted the known ones; return how many it has counted."""
        counting = "UPDATE opening SET number = number + 1 WHERE number >= ?"
        if not poll(partial(self._is_done, counting, (known,)), deadline):
            raise BudgetUnavailable(f"{self.path}: another program keeps it locked")
        return int(self._execute("SELECT number FROM opening").fetchone()[0])

    def let_go(self) -> None:
        """End one use. The last one closes the file: the owner then counts as dead. It never raises for the file."""
        with suppress(BudgetUnavailable):  # a thread stays inside for too long: the connection stays open
            _registry.let_go(self)

    def shut(self, seconds: float) -> bool:
        """Close the file; a later use opens it again. False if a thread stays inside for so long."""
        deadline = monotonic() + seconds
        mutex = self.mutex
        for held in starmap(mutex.acquire, ((True, seconds),)):
            try:
                if not held:
                    break
                self.inside = threading.get_ident()
                self._close(deadline)
                return True
            finally:
                try:
                    if held:
                        self.inside = 0
                finally:
                    if held:
                        mutex.release()
        return False

    def _close(self, deadline: float) -> None:
        database, self._database = self._database, None
        if database is None:
            return
        try:
            with suppress(OSError, sqlite3.Error):
                if poll(self._file.try_lock, deadline):  # so that a copy of budget.db alone has everything
                    self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            self._execute = _not_open
            try:
                database.close()
            finally:
                self._file.close()

    # ------------------------------------------------------------------ forks

    def forked(self, *, clean: bool) -> None:
        """In the child: put the parent's connection away."""
        database = self._database
        if database is not None:
            if not clean and self.mutex.locked() and database.in_transaction:
                self._torn = True
            _inherited.append((database, self._execute))
            self._database, self._execute = None, _not_open
            self._file.forked()
            self.owner = 0
        self._renew_mutex()


def _not_open(*_arguments: Any) -> Any:
    raise RuntimeError("this connection is not open")


_registry = Registry()
_here = _registry.here


def notice_forks() -> None:
    """In a forked child: forget the parent's connections. Blocks on nothing. `run` and `look` do it by themselves."""
    _registry.notice_fork()
