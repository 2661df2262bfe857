"""The slow path: each step that spends, over scopes in any state. The fast path (`_fast.py`) comes here if it misses.

What makes it miss: a scope that is full, closed, over a cap, or where somebody waits; a period that is over; a key that
is new; a process that the file does not know; a claim that is not open any more. Here each of them is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from token_budget._errors import PoolClosed
from token_budget.stores._names import name_at
from token_budget.stores._store import (
    DONE,
    GRANTED,
    LATE,
    REFUSED,
    REPEAT,
    SETTLED,
    UNKNOWN,
    Answer,
    Numbers,
    Scope,
)
from token_budget.stores.sqlite._claims import ELSEWHERE, HERE, correct, note_settled, settled
from token_budget.stores.sqlite._owners import as_charged, drop_ticket, prepare
from token_budget.stores.sqlite._rows import BELOW, Row
from token_budget.stores.sqlite._scopes import made, refuse_closed, require, rows_of
from token_budget.stores.sqlite._step import Step, ids_of
from token_budget.stores.sqlite._waiters import blocker, park, ticket_of

HOLD = "INSERT OR IGNORE INTO hold (id, owner, chain, tokens, nanos) SELECT ?, id, ?, ?, ? FROM owner WHERE id = ?"
UNHOLD = "DELETE FROM hold WHERE id = ?"
# What a claim held comes back. It looks at no clock and no cap: it always may.
GIVE_BACK = """
    UPDATE scope SET token_room = token_room + ?, nano_room = nano_room + ?, token_held = token_held - ?,
                     nano_held = nano_held - ?, in_flight = in_flight - 1
    WHERE id = ?
"""

Pair = tuple[int, int]


def reserve(
    step: Step,
    chain: Sequence[Scope],
    key: int,
    amount: Pair,
    *,
    wait: bool,
    wanted: bool,
    cancelled: bool,
    again: bool = False,
) -> Answer:
    """See `Store.reserve`. ``again``: what it may hold is not known to be on the disk, and is written once more."""
    tokens, nanos = amount
    prepare(step)
    if again:
        _give_back(step, key)
    rows = rows_of(step, chain)
    refuse_closed(chain, rows)
    if step.execute("SELECT 1 FROM hold WHERE id = ?", (key,)).fetchone() is not None:
        return Answer(GRANTED, _numbers(rows, wanted=wanted))  # a repeat
    ticket = ticket_of(step, key)
    at = blocker(step, rows, tokens, nanos, None if ticket is None else ticket[0])
    if cancelled:
        return Answer(REFUSED, _numbers(rows), at or 0)
    if at is not None:
        number = park(step, made(step, chain[at], rows[at]), key, ticket) if wait else 0
        return Answer(REFUSED, _numbers(rows), at, ticket=number)
    if ticket is not None:
        drop_ticket(step, *ticket)
    for scope, row in zip(chain, rows, strict=True):
        made(step, scope, row).hold(tokens, nanos)
    step.write(HOLD, (key, ",".join(str(row.id) for row in rows), tokens, nanos, step.owner))
    return Answer(GRANTED, _numbers(rows, wanted=wanted))


def record(step: Step, chain: Sequence[Scope], amount: Pair, *, force: bool, wanted: bool) -> Answer:
    """See `Store.record`."""
    prepare(step)
    rows = _rows_left(step, chain) if force else rows_of(step, chain)
    if not force:
        at = blocker(step, rows, *amount, None)
        if at is not None:
            return Answer(REFUSED, _numbers(rows), at)
    _spend(step, chain, rows, amount)
    return Answer(DONE, _numbers(rows, wanted=wanted))


def _spend(step: Step, chain: Sequence[Scope], rows: Sequence[Row], amount: Pair) -> None:
    for scope, row in zip(chain, rows, strict=True):
        if row.id or not row.closed:  # else it is gone, and what has happened counts in those that are left
            made(step, scope, row)
        row.tokens += amount[0]
        row.nanos += amount[1]


def commit(
    step: Step, chain: Sequence[Scope], key: int, held: Pair, amount: Pair, *, wanted: bool, counted: Pair | None
) -> Answer:
    """See `Store.commit`. ``counted``: what this process remembers to have counted for the claim."""
    if step.write(UNHOLD, (key,)):
        rows = rows_of(step, chain)
        for row in rows:
            row.end_claim(held, amount)
        return Answer(DONE, _numbers(rows, wanted=wanted))
    if correct(step, key, amount, HERE) is not None:
        return Answer(LATE, _numbers(_rows_left(step, chain), wanted=wanted))
    before = settled(step, key)
    if before is not None:
        kind = SETTLED if before[3] == ELSEWHERE else REPEAT
        return Answer(kind, _numbers(_rows_left(step, chain), wanted=wanted), counted=before[2])
    if counted is not None:
        return Answer(REPEAT, _numbers(_rows_left(step, chain), wanted=wanted), counted=counted)
    prepare(step)
    rows = _rows_left(step, chain)
    _spend(step, chain, rows, amount)
    note_settled(step, key, rows[-1].id, [row.id for row in rows], amount, HERE)
    return Answer(UNKNOWN, _numbers(rows, wanted=wanted))


def release(step: Step, chain: Sequence[Scope], key: int, *, wanted: bool, counted: Pair | None) -> Answer:
    """See `Store.release`."""
    if _give_back(step, key):
        kind = DONE
    elif correct(step, key, (0, 0), HERE) is not None:
        kind = LATE
    elif _is_settled_elsewhere(step, key):
        kind = SETTLED
    else:
        kind = DONE if counted == (0, 0) else UNKNOWN
    return Answer(kind, _numbers(_rows_left(step, chain)) if wanted else ())


def _is_settled_elsewhere(step: Step, key: int) -> bool:
    before = settled(step, key)
    return before is not None and before[3] == ELSEWHERE


def cancel(step: Step, key: int) -> bool:
    """See `Store.cancel`."""
    ticket = ticket_of(step, key)
    if ticket is not None:
        drop_ticket(step, *ticket)
    return _give_back(step, key) or correct(step, key, (0, 0), HERE) is not None


def _give_back(step: Step, key: int) -> bool:
    """Give back what a claim holds. Return whether it is open."""
    found = step.execute("SELECT chain, tokens, nanos FROM hold WHERE id = ?", (key,)).fetchone()
    if found is None:
        return False
    chain, tokens, nanos = found
    step.renew()  # the statements below change rows that may have been read
    step.write(UNHOLD, (key,))
    step.write("DELETE FROM lease WHERE id = ?", (key,))
    for scope in ids_of(chain):
        step.write(GIVE_BACK, (tokens, nanos, tokens, nanos, scope))
    return True


def take_back(step: Step, places: Sequence[tuple[int, float | None, int | None]], amount: Pair) -> None:
    """Undo a record whose caller was told that it was not done. Places: the scopes, their clocks and eras then."""
    for scope, now, era in places:
        row = step.row(scope)
        if row is None or (now is not None and row.start is not None and row.start > now):
            continue  # it is gone with its period
        if era is not None and row.era != era:
            continue  # it is gone with what was reset
        row.tokens = max(row.tokens_held, row.tokens - amount[0])
        row.nanos = max(row.nanos_held, row.nanos - amount[1])


# ---------------------------------------------------------------------- looking


def read(step: Step, chain: Sequence[Scope]) -> tuple[tuple[Numbers, ...], bool]:
    """See `Store.read`. Return also whether the dead hold something, or wait."""
    rows, taken = _rows_left(step, chain), as_charged(step)
    return tuple(_shown(row, taken) for row in rows), bool(taken)


def tree(step: Step, scope: Scope) -> tuple[list[tuple[str, str, Numbers]], bool]:
    """See `Store.tree`. Return also what `read` does."""
    top, taken = _seen(step, scope), as_charged(step)
    with_scopes = {one for (one,) in step.execute("SELECT DISTINCT parent FROM scope WHERE parent > 0").fetchall()}
    with_groups = {one for (one,) in step.execute("SELECT DISTINCT parent FROM keyed").fetchall()}
    found = [(scope.path, top)]
    for path, row in found:  # it grows meanwhile
        parents = [(row.id, "/")] if row.id in with_scopes else []
        if row.id in with_groups:
            groups = step.execute("SELECT id, name FROM keyed WHERE parent = ?", (row.id,)).fetchall()
            parents += [(-group, f"/{name}:") for group, name in groups]
        for parent, between in parents:
            below = [step.read(one) for one in step.execute(BELOW, (parent,)).fetchall()]
            found += [(f"{path}{between}{one.name}", one) for one in below]
    found.sort(key=lambda item: item[1].id)  # a scope is made after the one above it
    return [(path, name_at(path), _shown(row, taken)) for path, row in found], bool(taken)


def _rows_left(step: Step, chain: Sequence[Scope]) -> list[Row]:
    """Return the rows of a chain, for what is done also where some of its scopes were deleted."""
    return [_seen(step, scope) for scope in chain]


def _seen(step: Step, scope: Scope) -> Row:
    """Return the row of a scope; an empty and closed one where it was deleted: a closed pool can be looked at."""
    try:
        return require(step, scope)
    except PoolClosed:
        row = Row(0, "", None, None)
        row.closed = 1
        return row


def _shown(row: Row, taken: dict[int, list[int]]) -> Numbers:
    """Return a row as it will be once the dead are charged."""
    if row.id in taken:
        tokens, nanos, claims, waiters = taken[row.id]
        row.tokens_held -= tokens
        row.nanos_held -= nanos
        row.in_flight -= claims
        row.waiters -= waiters
    return row.numbers()


def _numbers(rows: Sequence[Row], *, wanted: bool = True) -> tuple[Numbers, ...]:
    """Return the rows as the front has them: where they are wanted, or a scope is over a cap."""
    return tuple(row.numbers() for row in rows) if wanted or any(row.over() for row in rows) else ()


def numbers_of(step: Step, chain: Sequence[Scope]) -> tuple[Numbers, ...]:
    """Return the rows of a chain after what the fast path has done."""
    return _numbers(rows_of(step, chain))
