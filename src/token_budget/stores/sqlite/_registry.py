"""The connections of this process, one a file, and what a fork does to them.

A child of ``os.fork`` has copies of its parent's connections. SQLite forbids to use them, and to close them. So no fork
of Python's happens in the middle of a transaction, and the child puts them away (`Registry.forked`). It opens its own,
which shares SQLite's picture of the file in this process, at its first use.
"""

from __future__ import annotations

import atexit
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import starmap
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, TypeVar

from token_budget._process import page
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import Nested, StoreLost
from token_budget.stores.sqlite._faults import ours
from token_budget.stores.sqlite._file import Identity, identity

T = TypeVar("T")
PATIENCE = 5.0  # seconds that a fork and the closing of a file wait for who is inside
NESTED = "this thread is in the middle of a call to the same store (in a signal handler or finaliser): call it later"


class Registered(Protocol):
    """A connection, as far as the registry knows it."""

    path: str
    users: int
    mutex: Any  # the lock of whoever is inside
    inside: int  # which thread is inside

    @property
    def identity(self) -> Identity:
        """Device and inode of the file."""
        ...

    def shut(self, seconds: float) -> bool:
        """Close the file. False if a thread stays inside for so long."""
        ...

    def forked(self, *, clean: bool) -> None:
        """In the child: put the parent's connection away. ``clean``: nobody was inside."""
        ...


class Registry:
    """The connections of this process."""

    def __init__(self) -> None:
        self.connections: dict[Identity, Any] = {}
        # A page of our own: the core's pools set theirs when they have noticed a fork.
        self.here: Any = page()
        self.here[0] = 1
        self._noticing = threading.RLock()
        self._taken: list[Any] = []  # the locks that a fork of Python's own has taken
        self._renew()
        atexit.register(self.shut)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._after_fork_in_child
            )

    def _renew(self) -> None:
        self._gate: Any = threading.Lock()  # guards `connections`, their `users`, their first opening, their closing
        self._inside = 0

    # ------------------------------------------------------------------ finding, opening, closing

    def get(self, path: str, timeout: float, opened: Callable[[], Registered]) -> Any:
        """Return the connection to a file, with one user more; where there is none, the one that ``opened`` makes."""
        return self._within(timeout, path, self._get, path, opened)

    def let_go(self, connection: Registered) -> None:
        """End one use of a connection, the last one of which closes it. Where a thread stays inside, it stays open."""
        self._within(PATIENCE, connection.path, self._let_go, connection)

    def _within(self, timeout: float, path: str, work: Callable[..., T], *arguments: Any) -> T:
        self.notice_fork()
        me = threading.get_ident()
        if self._inside == me:
            raise Nested(NESTED)
        gate = self._gate
        for held in starmap(gate.acquire, ((True, timeout),)):  # see `Connection.run`
            try:
                if not held:
                    break
                self._inside = me
                return work(*arguments)
            except (sqlite3.DatabaseError, OSError) as error:
                fault = ours(error, path)
                if fault is error:
                    raise
                raise fault from error
            finally:
                try:
                    if held:
                        self._inside = 0
                finally:
                    if held:
                        gate.release()
        raise BudgetUnavailable(f"{path}: another thread of this process is opening or closing a file for too long")

    def _get(self, path: str, opened: Callable[[], Registered]) -> Registered:
        connection: Registered | None = None
        with suppress(FileNotFoundError):
            connection = self.connections.get(identity(Path(path).stat()))
        if connection is None:
            if any(other.path == path for other in self.connections.values()):
                raise StoreLost(
                    f"{path} was deleted or replaced while this process had it open. Restore it, or close its pools"
                )
            connection = opened()
            try:
                self.connections[connection.identity] = connection
            except BaseException:
                connection.shut(PATIENCE)
                raise
        connection.users += 1
        return connection

    def _let_go(self, connection: Registered) -> None:
        connection.users -= 1
        if connection.users <= 0 and connection.shut(PATIENCE):
            self.connections = {key: other for key, other in self.connections.items() if other is not connection}

    def shut(self) -> None:
        """At the interpreter's end: close all, so that the logs are empty afterwards."""
        self.notice_fork()
        for connection in list(self.connections.values()):
            connection.shut(1.0)

    # ------------------------------------------------------------------ forks

    def notice_fork(self) -> None:
        """In a forked child: put the parent's connections away. Blocks on nothing."""
        if self.here[0]:
            return
        for held in starmap(self._noticing.acquire, ((True, 1.0),)):  # else the parent was noticing when it forked
            try:
                if not self.here[0]:
                    for connection in list(self.connections.values()):
                        connection.forked(clean=connection.mutex in self._taken)
                    self._renew()
                    self.here[0] = 1
                return
            finally:
                if held:
                    self._noticing.release()

    def _before_fork(self) -> None:
        """Keep all threads out of SQLite meanwhile: a child could not end what they are in the middle of."""
        deadline = monotonic() + PATIENCE
        self._take(self._gate, self._inside, deadline)
        for connection in list(self.connections.values()):  # as they are under the gate: none is opened meanwhile
            self._take(connection.mutex, connection.inside, deadline)

    def _take(self, lock: Any, inside: int, deadline: float) -> None:
        if inside != threading.get_ident() and lock.acquire(timeout=max(0.0, deadline - monotonic())):
            self._taken.append(lock)

    def _after_fork(self) -> None:
        while self._taken:
            self._taken.pop().release()

    def _after_fork_in_child(self) -> None:
        self.notice_fork()
        self._taken.clear()
