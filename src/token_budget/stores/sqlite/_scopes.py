"""From the scopes of this process to the rows of the file.

A scope's ``handle`` is (id, id as text), a group's is its id, as they were last found. What has gone meanwhile (an idle
key is dropped) is looked for by its path; the row of a key that is not there is made after its group, in the step that
first changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from token_budget._errors import PoolClosed
from token_budget.stores._store import Group, Scope
from token_budget.stores.sqlite._rows import Row
from token_budget.stores.sqlite._step import Step, lost

_GROUP = """
    SELECT keyed.id, token_cap, nano_cap, window.text, starts, ends
    FROM keyed LEFT JOIN window ON window.id = keyed.window
    WHERE parent = ? AND name = ?
"""
_OLD_KEYS = """
    SELECT scope.id, name, text, ends, in_flight = 0 AND own = 0 AND waiters = 0 AND closed = 0
    FROM scope LEFT JOIN window ON window.id = scope.window
    WHERE parent = ? AND name > ?
    ORDER BY name LIMIT 2
"""
_BELOW = "SELECT 1 FROM scope WHERE parent = ? UNION ALL SELECT 1 FROM keyed WHERE parent = ? LIMIT 1"

_LATEST = "UPDATE keyed SET starts = ?, ends = ? WHERE id = ? AND (ends IS NULL OR ends < ?)"


class GroupRow(NamedTuple):
    """What the file has of a group."""

    id: int
    token_cap: int | None
    nano_cap: int | None
    window: str | None
    start: float | None  # of the latest period that a key was made in
    end: float | None


def find(step: Step, scope: Scope) -> Row | None:
    """Return the row of a scope; None if the file has none."""
    row = None
    if scope.handle is not None:
        row = _load(step, scope, scope.handle[0])
    if row is None:
        parent = parent_of(step, scope)  # None is no row's parent
        found = step.id_at(parent, part_of(scope))
        row = None if found is None else _load(step, scope, found)
    if row is not None:
        know(step, scope, row)
    return row


def _load(step: Step, scope: Scope, scope_id: int) -> Row | None:
    if scope.window is not None:
        step.ledger.know_clock(scope_id, scope.window)  # first: the row is rolled over as it is read
    return step.row(scope_id)


def require(step: Step, scope: Scope) -> Row:
    """Return the row of a scope; of a key that the file does not have, one that is not made yet (its id is 0).

    Raises:
        StoreLost: the file should have it.
        PoolClosed: it was deleted: it had been closed long ago, or the key above it was forgotten.
    """
    row = find(step, scope)
    if row is not None:
        return row
    group = None if scope.group is None else group_of(step, scope.group)
    if group is not None:
        row = new_key(step, group, part_of(scope))
        _know_window(step, scope, row)
        scope.closed = False
        return row
    if may_be_gone(scope):
        raise pool_closed(scope)
    raise lost(step.ledger, None if scope.above is None else scope.path)


def may_be_gone(scope: Scope) -> bool:
    """Return whether a scope may have been deleted: it is closed, or goes with a key that was forgotten."""
    return scope.closed or any(one.group is not None for one in above(scope))


def key_row(step: Step, parent: int, group: str, key: str) -> Row | None:
    """Return the row of a key, made if the file does not have it; None if it does not have the group."""
    found = _group_at(step, parent, group)
    if found is None:
        return None
    row = step.row_at(-found.id, key)
    if row is None:
        row = new_key(step, found, key)
        _make_key(step, row)
    return row


def _group_at(step: Step, parent: int, name: str) -> GroupRow | None:
    found = step.execute(_GROUP, (parent, name)).fetchone()
    return None if found is None else GroupRow(*found)


def new_key(step: Step, group: GroupRow, key: str) -> Row:
    """Return the row of a key that is not made yet."""
    row = Row(-group.id, key, group.token_cap, group.nano_cap)
    row.window = group.window
    window = step.window_of(row)
    now = None if window is None else window.now()
    if now is not None and group.start is not None and group.end is not None and now < group.end:
        row.start, row.end = group.start, group.end
    else:
        row.begin_period(window, now)
    return row


def _make_key(step: Step, row: Row) -> None:
    step.make(row)
    if row.window is not None:
        step.write(_LATEST, (row.start, row.end, -row.parent, row.end))
    drop_idle_keys(step, row)


def made(step: Step, scope: Scope, row: Row) -> Row:
    """Have the row of a scope in the file, and return it. Only that of a key may not be there."""
    if not row.id:
        _make_key(step, row)
        know(step, scope, row)
    return row


def rows_of(step: Step, chain: Sequence[Scope]) -> list[Row]:
    """Return the rows of a chain; those of keys may not be made yet."""
    return [require(step, scope) for scope in chain]


def refuse_closed(chain: Sequence[Scope], rows: Sequence[Row]) -> None:
    """Raise PoolClosed if a scope is closed."""
    for scope, row in zip(chain, rows, strict=True):
        if row.closed:
            raise pool_closed(scope)


def pool_closed(scope: Scope) -> PoolClosed:
    """Return the error of a closed scope."""
    return PoolClosed(f"pool {scope.name!r} is closed: spend from its parent, or from a new child of that")


# ---------------------------------------------------------------------- where they are


def part_of(scope: Scope) -> str:
    """Return the name of a scope in the file: the last part of its path, of a key without its group."""
    return scope.path.rpartition("/")[2].rpartition(":")[2]


def parent_of(step: Step, scope: Scope) -> int | None:
    """Return what the file has as the parent of a scope; None if it has none."""
    if scope.above is None:
        return 0
    if scope.group is not None:
        found = group_of(step, scope.group)
        return None if found is None else -found.id
    row = find(step, scope.above)
    return None if row is None else row.id


def group_of(step: Step, group: Group) -> GroupRow | None:
    """Return the id, both caps and the window of a group; None if the file does not have it."""
    parent = find(step, group.above)
    found = None if parent is None else _group_at(step, parent.id, group_part_of(group))
    if found is None:
        return None
    group.handle, group.token_cap, group.nano_cap = found[:3]
    ledger = step.ledger
    if group.window is not None:
        ledger.know_clock(-found.id, group.window)
    if (None if group.window is None else str(group.window)) != found.window:
        group.window = None if found.window is None else ledger.window(found.window, ledger.clock_at(-found.id))
    return found


def group_part_of(group: Group) -> str:
    """Return the name of a group in the file: what stands before the colon in the paths of its keys."""
    return group.path.rpartition("/")[2].partition(":")[0]


def above(scope: Scope) -> list[Scope]:
    """Return the scopes above one, the root last."""
    chain = []
    while scope.above is not None:
        scope = scope.above
        chain.append(scope)
    return chain


# ---------------------------------------------------------------------- what this process knows of them


def know(step: Step, scope: Scope, row: Row) -> None:
    """Note what the file says of a scope, for this process."""
    if scope.handle is None or scope.handle[0] != row.id:
        scope.handle = (row.id, str(row.id))
    scope.closed = bool(row.closed)
    _know_window(step, scope, row)


def _know_window(step: Step, scope: Scope, row: Row) -> None:
    """Have the window that the file has, with the clock that was injected in this process."""
    if (None if scope.window is None else str(scope.window)) != row.window:
        scope.window = step.window_of(row)


# ---------------------------------------------------------------------- keys that nobody needs


def drop_idle_keys(step: Step, newest: Row) -> None:
    """Look at two old keys of a group that gets a new one, and drop them if nothing is lost by that.

    So the keys of a group with a window are about as many as two periods need. Each process looks at all of them in
    turn, in the order of their names.
    """
    ledger, group = step.ledger, newest.parent
    found = step.execute(_OLD_KEYS, (group, ledger.cursors.get(group, newest.name))).fetchall()
    ledger.cursors[group] = found[-1][1] if len(found) == 2 else ""
    for scope_id, _, window, end, idle in found:
        if (
            idle
            and window is not None
            and not step.has(scope_id)
            and ledger.window(window, ledger.clock_at(scope_id, group)).now() >= end
            and step.execute(_BELOW, (scope_id, scope_id)).fetchone() is None
        ):
            step.delete(scope_id)
