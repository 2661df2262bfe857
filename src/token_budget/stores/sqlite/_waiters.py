"""Waiters: who waits at which scope, in the order of arrival over all processes.

A waiter has one ticket and waits at one scope at a time, the first of its chain that has no room for it or where
somebody older waits. A scope where somebody waits has ``waiters > 0``, so that no fast path takes room there: nobody
overtakes.

A process that is stopped (Ctrl-Z, a debugger) lives, but takes nothing. So while it waits, each process gives a sign of
life once a second, and tickets of those who have given none for some seconds are passed over. They keep their place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from token_budget._errors import PoolClosed
from token_budget.stores._errors import StoreLost
from token_budget.stores._store import GRANTED, LEFT, Answer, Scope
from token_budget.stores.sqlite._alive import uptime
from token_budget.stores.sqlite._connection import Connection, Execute
from token_budget.stores.sqlite._owners import dead, drop_ticket, prepare
from token_budget.stores.sqlite._rows import Row
from token_budget.stores.sqlite._scopes import rows_of
from token_budget.stores.sqlite._step import Ledger, Step

Head = tuple[Sequence[Scope], Any, int, int]

_PAUSE = 0.002  # seconds between two looks of who waits
_SIGN = 1.0  # seconds between two signs of life of a process that waits
_SILENCE = 4.0  # seconds without one, after which its tickets are passed over
_LOOK_ANYWAY = 25  # looks after which one is thorough though nothing has changed: somebody may have died


def ticket_of(step: Step, claim: int) -> tuple[int, int] | None:
    """Return the ticket of a claim and the scope where it waits; None if it does not wait."""
    return step.execute(  # type: ignore[no-any-return]
        "SELECT ticket, scope FROM waiter WHERE claim = ?", (claim,)
    ).fetchone()


def blocker(step: Step, rows: Sequence[Row], tokens: int, nanos: int, ticket: int | None) -> int | None:
    """Return which is the first scope that is closed, has no room, or where somebody older waits; None if none is."""
    for at, row in enumerate(rows):
        if row.closed or not row.fits(tokens, nanos) or (row.waiters and _older(step, row.id, ticket)):
            return at
    return None


def _older(step: Step, scope: int, ticket: int | None) -> bool:
    """Return whether somebody waits there, and shows that it lives, who came before a ticket (None: has one at all)."""
    sql = "SELECT 1 FROM waiter WHERE scope = ? AND ticket < ifnull(?, ticket + 1) AND seen > ? LIMIT 1"
    return step.execute(sql, (scope, ticket, uptime() - _SILENCE)).fetchone() is not None


def park(step: Step, row: Row, claim: int, found: tuple[int, int] | None) -> int:
    """Have a claim wait at a scope, with the ticket that it has or a new one. Return the ticket."""
    if found is None:
        sql = "INSERT INTO waiter (claim, owner, scope, seen) VALUES (?, ?, ?, ?)"
        step.write(sql, (claim, step.owner, row.id, uptime()))
        row.waiters += 1
        return int(step.execute("SELECT ticket FROM waiter WHERE claim = ?", (claim,)).fetchone()[0])
    ticket, scope = found
    if scope != row.id:
        for before in step.rows([scope]):
            before.waiters -= 1
        row.waiters += 1
        step.write("UPDATE waiter SET scope = ? WHERE ticket = ?", (row.id, ticket))
    return ticket


def leave(step: Step, chain: Sequence[Scope], claim: int) -> Answer:
    """See `Store.leave`."""
    if step.execute("SELECT 1 FROM hold WHERE id = ?", (claim,)).fetchone() is not None:
        return Answer(GRANTED)
    prepare(step)
    rows = rows_of(step, chain)
    found = ticket_of(step, claim)
    at = 0
    if found is not None:
        at = next((index for index, row in enumerate(rows) if row.id == found[1]), 0)
        drop_ticket(step, *found)
    return Answer(LEFT, tuple(row.numbers() for row in rows), at)


# ---------------------------------------------------------------------- watching


class Watch:
    """What `Store.watch` knows from one look to the next, also from one call to the next.

    So who was told that it may fit, and did not, is told again only when something has changed, or after a while.
    """

    __slots__ = ("_ends", "_heads", "_ledger", "_looks", "_vain", "_version", "shown")

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.shown: float = 0.0  # when this process gave its latest sign of life
        self._version: Any = None
        self._heads: tuple[Head, ...] = ()
        self._looks = 0
        self._ends: list[tuple[Callable[[], float], float]] = []  # clocks, and the ends of the periods by them
        self._vain: frozenset[Any] = frozenset()  # those that this period has no room for, whatever comes back

    def look(self, execute: Execute, heads: Sequence[Head]) -> Collection[Any] | None:
        """Return the keys of those that are to try now; None if all are to. Cheap while nothing has changed."""
        version = (execute("PRAGMA data_version").fetchone(), execute("SELECT total_changes()").fetchone())
        asked = tuple(heads)
        self._looks += 1
        if (
            version == self._version
            and asked == self._heads
            and self._looks % _LOOK_ANYWAY
            and not any(clock() >= end for clock, end in self._ends)
        ):
            return ()
        self._version, self._heads = version, asked
        step = Step(self._ledger, execute)
        try:
            return self._thorough(step, asked)
        except (PoolClosed, StoreLost):
            return None  # who tries is told

    def _thorough(self, step: Step, heads: tuple[Head, ...]) -> Collection[Any] | None:
        if self._looks % _LOOK_ANYWAY == 0 and dead(step):
            return None
        may, vain = [], set()
        self._ends = []
        for chain, key, tokens, nanos in heads:
            found = ticket_of(step, key)
            if found is not None and _older(step, found[1], found[0]):
                continue  # in another process: most looks end here, and reading the rows would take ten times as long
            rows = rows_of(step, chain)
            at = None if found is None else blocker(step, rows, tokens, nanos, found[0])
            if any(row.exhausted(tokens, nanos) for row in rows):
                vain.add(key)
            if at is None or found is None or rows[at].closed or rows[at].id != found[1]:
                may.append(key)
            elif key in vain and key not in self._vain:
                may.append(key)  # the front tells whether it goes on waiting, for the next period
            for scope, row in zip(chain, rows, strict=True):
                if scope.window is not None and row.window is not None:
                    self._ends.append((scope.window.now, row.end))
        self._vain = frozenset(vain)
        return may


def show_life(execute: Execute, connection: Connection) -> None:
    """Show that this process lives, so that the tickets that it has are not passed over."""
    execute("UPDATE waiter SET seen = ? WHERE owner = ?", (uptime(), connection.owner))


def watch(
    look: Callable[..., Collection[Any] | None],
    live: Callable[[], object],
    state: Watch,
    heads: Sequence[Head],
    seconds: float,
) -> Collection[Any] | None:
    """See `Store.watch`. ``look(work, *arguments)`` is one look at the file, ``live()`` one sign of life."""
    deadline = time.monotonic() + seconds
    while True:
        if uptime() - state.shown >= _SIGN:
            live()
            state.shown = uptime()
        found = look(state.look, heads)
        left = deadline - time.monotonic()
        if found is None or found or left <= 0:
            return found
        time.sleep(min(_PAUSE, left))
