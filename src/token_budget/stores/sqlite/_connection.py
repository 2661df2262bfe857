"""Connection: this process's one way into one SQLite file, and the only place that takes its locks.

What always holds:

* One connection a process and file, found by device and inode. A forked child makes its own.
* Every transaction that writes runs in `run`: under the mutex of the threads, then under the file lock of the
  processes. Checkpoints and closes run there too.
* Nothing is left behind. Whatever ends `run` (an error, Ctrl-C before any instruction), the transaction is undone or
  whole, both locks are free, and the next call finds a clean state.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from token_budget.contract import BudgetUnavailable
from token_budget.stores.sqlite._alive import Alive

T = TypeVar("T")
# `work(execute, *arguments)`. `execute(sql, parameters=())` is the `execute` of the connection's ONE cursor and returns
# this cursor: fetch what one statement found before the next one is executed (`fetchone`, `fetchall`).
Execute = Callable[..., Any]


class Unsynced(BudgetUnavailable):
    """The transaction is committed and seen by everybody, but it is not known to have reached the disk."""


class Connection:
    """This process's connection to one file."""

    path: str  # absolute, without symbolic links
    owner: int  # what this process is called in the file: a random number of 62 bits, at least 1; new in a forked child
    alive: Alive
    # Each is called with the new owner as soon as there is one (after a fork: at the child's first use), by the thread
    # that found it, under the mutex and before its transaction. It must not use the connection.
    on_new_owner: list[Callable[[int], None]]

    @staticmethod
    def of(path: str | os.PathLike[str], *, timeout: float, create: bool = True) -> Connection:
        """Return this process's connection to a file; make the file where there is none and ``create`` is true.

        Each call is one user of the connection, until that one calls `let_go`.

        Raises:
            StoreLost: there is no file and ``create`` is false, or there has been one; or it was replaced or emptied.
            StoreError: it cannot keep a budget: it is another's, corrupt, of a newer version, not writable, on a
                network file system, a folder.
            BudgetUnavailable: it cannot be opened now: the lock was not free for ``timeout`` seconds, the disk is full.
        """
        raise NotImplementedError

    def run(self, timeout: float, durable: bool, work: Callable[..., T], *arguments: Any) -> T:
        """Return ``work(execute, *arguments)``, run in one BEGIN IMMEDIATE .. COMMIT, under both locks.

        ``durable``: it returns when the transaction is on the disk. Where ``work`` raises, everything is rolled back.
        ``work`` may end the transaction by ``execute("ROLLBACK")`` (then nothing is committed, nothing synced) and may
        go on with ``execute("BEGIN IMMEDIATE")``, still under the locks: `run` commits what is open when it returns.
        `owner` is up to date and its byte is locked whenever ``work`` runs; the owner's row is the ledger's to write.

        Raises:
            BudgetUnavailable: a lock was not free for ``timeout`` seconds, the disk is full, input or output failed.
                Nothing was changed. `Unsynced`: all was changed, but is not known to be on the disk.
            StoreLost: the file was deleted or replaced.
            StoreError: it is corrupt, read-only, or not ours.
            RuntimeError: this thread is inside `run` or `look` already (a signal handler, a finaliser).
        """
        raise NotImplementedError

    def look(self, timeout: float, work: Callable[..., T], *arguments: Any) -> T:
        """Return ``work(execute, *arguments)``, run in one BEGIN .. ROLLBACK: a consistent read, without the file lock.

        It waits for no other process. ``work`` must not write. Raises what `run` raises.
        """
        raise NotImplementedError

    def new_owner(self) -> int:
        """Make this process a new owner, where it was declared dead while it lives. For ``work``, inside `run`."""
        raise NotImplementedError

    def let_go(self) -> None:
        """End one use. The last one closes the file: the owner then counts as dead. It never raises for the file."""
        raise NotImplementedError


def notice_forks() -> None:
    """In a forked child: forget the parent's connections. Blocks on nothing. `run` and `look` do it by themselves."""
    raise NotImplementedError
