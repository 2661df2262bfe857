"""Ledger and Step: what the steps of one root share in this process, and one transaction of the slow path.

A step reads rows, changes them in Python and writes them back whole in the end (`Step.flush`). Each row is there once
in a step, in the period that it is in now: whoever asks for a row has it rolled over. A step that only looks is the
same, and never flushes; so what is shown is what would be done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from token_budget._window import Window, system_time
from token_budget.stores._errors import StoreError, StoreLost
from token_budget.stores._store import News
from token_budget.stores.sqlite._connection import Connection, Execute
from token_budget.stores.sqlite._rows import BY_ID, INSERT, WRITE, Row

KEPT = 7 * 86_400.0  # seconds for which what was charged, or settled elsewhere, is remembered


class Outcome(NamedTuple):
    """What a step of the slow path gives back: its answer, and what holds once the transaction is committed."""

    answer: Any
    news: Sequence[News]
    registered: int | None  # the owner whose row is in the file
    gave: Mapping[tuple[int, str], Any]  # what this process gave in it


class Ledger:
    """What the steps of one root share in this process."""

    __slots__ = ("clock", "clocks", "connection", "cursors", "gave", "location", "name", "registered", "windows")

    def __init__(self, connection: Connection, name: str, location: str) -> None:
        self.connection: Connection = connection
        self.name: str = name  # of the root, as part of a path
        self.location: str = location
        self.clock: Callable[[], float] = system_time  # of leases, and of when something was charged
        self.clocks: dict[int, Callable[[], float]] = {}  # the injected ones, by scope, or minus the group's id
        self.windows: dict[tuple[str, Any], Window] = {}  # by text and clock
        self.cursors: dict[int, str] = {}  # the key that was looked at last, by minus the group's id
        self.gave: dict[tuple[int, str], Any] = {}  # the caps and windows that this process gave, as the table has them
        self.registered: int | None = None  # the owner whose row this process has written

    def know_clock(self, place: int, window: Window) -> None:
        """Note the clock of a window, if it is an injected one."""
        if window.clock is not system_time:
            self.clocks[place] = window.clock

    def clock_at(self, scope_id: int, parent: int = 0) -> Callable[[], float]:
        """Return the clock of a scope, or of a key by its group: the injected one, else the system's."""
        return self.clocks.get(scope_id) or (self.clocks.get(parent) if parent < 0 else None) or system_time

    def window(self, text: str, clock: Callable[[], float]) -> Window:
        """Return the window of a text and a clock.

        Raises:
            StoreError: the file has a window that this version, or this system, cannot read.
        """
        known = self.windows.get((text, clock))
        if known is None:
            try:
                known = Window.parse(text, clock=clock)
            except (TypeError, ValueError) as error:
                raise StoreError(
                    f"{self.location} has the window {text!r}, which cannot be read here: {error}"
                ) from None
            self.windows[text, clock] = known
        return known


class Step:
    """One transaction. ``execute`` is the connection's; what one statement found is fetched before the next."""

    __slots__ = ("_by_id", "_paths", "_rolled", "_time", "execute", "gave", "ledger", "news", "registered", "wrote")

    def __init__(self, ledger: Ledger, execute: Execute) -> None:
        self.ledger: Ledger = ledger
        self.execute: Execute = execute
        self.news: list[News] = []
        self.gave: dict[tuple[int, str], Any] = {}
        self.wrote: bool = False
        self.registered: int | None = ledger.registered
        self._by_id: dict[int, Row | None] = {}
        self._rolled: list[Row] = []  # those in a new period, which `flush` tells
        self._paths: dict[int, tuple[int, str]] = {}  # parent and part of a scope, or of minus a group
        self._time: float | None = None

    def write(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Execute a statement that changes something, and return how many rows it changed."""
        changed: int = self.execute(sql, parameters).rowcount
        self.wrote = self.wrote or changed > 0
        return changed

    @property
    def time(self) -> float:
        """The time, the same for the whole step."""
        if self._time is None:
            self._time = self.ledger.clock()
        return self._time

    @property
    def owner(self) -> int:
        """This process, as the file knows it."""
        return self.ledger.connection.owner

    # ------------------------------------------------------------------ rows

    def row(self, scope_id: int) -> Row | None:
        """Return the row of an id, in its present period; None if there is none."""
        if scope_id in self._by_id:
            return self._by_id[scope_id]
        found = self.execute(BY_ID, (scope_id,)).fetchone()
        row = self._by_id[scope_id] = None if found is None else self.read(found)
        return row

    def rows(self, scope_ids: Iterable[int]) -> list[Row]:
        """Return the rows of those ids that the file has."""
        return [row for scope_id in scope_ids if (row := self.row(scope_id)) is not None]

    def read(self, found: tuple[Any, ...]) -> Row:
        """Return the row of what a statement has found, in its present period. It is not one that `flush` writes."""
        row = Row.of(found)
        self._roll_over(row)
        return row

    def id_at(self, parent: int | None, name: str) -> int | None:
        """Return the id of a name below a parent; None if there is none."""
        found = self.execute("SELECT id FROM scope WHERE parent = ? AND name = ?", (parent, name)).fetchone()
        return None if found is None else int(found[0])

    def row_at(self, parent: int, name: str) -> Row | None:
        """Return the row of a name below a parent, in its present period; None if there is none."""
        scope_id = self.id_at(parent, name)
        return None if scope_id is None else self.row(scope_id)

    def has(self, scope_id: int) -> bool:
        """Return whether the row of an id was asked for in this step."""
        return scope_id in self._by_id

    def make(self, row: Row) -> None:
        """Give a row that the file does not have yet an id."""
        if row.window is not None:
            self.know_window(row.window)
        row.stored = row.values()
        self.wrote = True
        row.id = self.execute(INSERT, (*row.stored, row.parent, row.name)).lastrowid
        self._by_id[row.id] = row

    def delete(self, scope_id: int) -> None:
        """Delete a row. Who waits there takes a new ticket when it tries again."""
        self.write("DELETE FROM scope WHERE id = ?", (scope_id,))
        self.write("DELETE FROM waiter WHERE scope = ?", (scope_id,))
        self.write("DELETE FROM gave WHERE place = ?", (scope_id,))
        self._by_id[scope_id] = None

    def flush(self) -> None:
        """Write back what has changed."""
        for row in self._by_id.values():
            if row is not None:
                values = row.values()
                if values != row.stored:
                    row.stored = values
                    self.write(WRITE, (*values, row.id))
        for row in self._rolled:
            if self._by_id.get(row.id) is row:
                self.news.append(News("roll-over", self.path(row)))
        self._rolled.clear()

    def outcome(self, answer: Any) -> Outcome:
        """Write back what has changed, and return what the step has done. If it changed nothing, it commits nothing."""
        self.flush()
        if not self.wrote:
            self.execute("ROLLBACK")
        return Outcome(answer, self.news, self.registered, self.gave)

    def renew(self) -> None:
        """Forget the rows, after a statement that has changed many at once."""
        self.flush()
        self._by_id.clear()

    # ------------------------------------------------------------------ periods

    def window_of(self, row: Row) -> Window | None:
        """Return the window of a row."""
        return None if row.window is None else self.ledger.window(row.window, self.ledger.clock_at(row.id, row.parent))

    def _roll_over(self, row: Row) -> None:
        """Begin a new period where the row's is over. A clock that went back begins none."""
        window = self.window_of(row)
        if window is None:
            return
        now = window.now()
        if not now < row.end:
            row.begin_anew()
            row.begin_period(window, now)
            self._rolled.append(row)

    def know_window(self, text: str) -> None:
        """Have the text of a window in the file."""
        self.write("INSERT OR IGNORE INTO window (text) VALUES (?)", (text,))

    # ------------------------------------------------------------------ paths

    def path(self, row: Row) -> str:
        """Return the path of a row."""
        return self.path_of(row.parent, row.name)

    def path_of(self, parent: int, name: str) -> str:
        """Return the path of a name below a parent."""
        parts = [name]  # the lowest first; in a loop, since a pool may be deeper than Python's stack
        while parent:
            known = self._paths.get(parent)
            if known is None:
                table = "scope" if parent > 0 else "keyed"
                sql = f"SELECT parent, name FROM {table} WHERE id = ?"  # noqa: S608
                above, part = self.execute(sql, (abs(parent),)).fetchone()
                known = self._paths[parent] = (above, f"{part}/" if parent > 0 else f"{part}:")
            parent = known[0]
            parts.append(known[1])
        return "".join(reversed(parts))

    def root(self) -> int:
        """Return the id of the root.

        Raises:
            StoreLost: the file has no such root any more.
        """
        found = self.id_at(0, self.ledger.name)
        if found is None:
            raise lost(self.ledger)
        return found


def lost(ledger: Ledger, path: str | None = None) -> StoreLost:
    """Return the error of a scope that the file should have."""
    what = f"the budget {ledger.name!r}" if path is None else f"{path!r}, which this process has opened"
    return StoreLost(
        f"{ledger.location} no longer has {what}: the file was replaced, or is an older copy. Restore it, or begin "
        "anew with a pool of another name"
    )


def ids_of(chain: str) -> list[int]:
    """Return the ids of a chain as the file has it."""
    return [int(part) for part in chain.split(",")]
