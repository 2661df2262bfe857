"""What changes a scope itself: opening, caps and windows, reset, closing, keys and groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from token_budget._arguments import UNCHANGED
from token_budget._money import usd_text
from token_budget._window import Window
from token_budget.stores._errors import StoreLost, StoreMismatch
from token_budget.stores._names import decoded
from token_budget.stores._store import Group, News, Opened, Scope
from token_budget.stores.sqlite._owners import give, prepare, tidy
from token_budget.stores.sqlite._rows import OWN, Row, limit
from token_budget.stores.sqlite._schema import FAR, NO_CAP
from token_budget.stores.sqlite._scopes import (
    above,
    find,
    group_of,
    group_part_of,
    know,
    made,
    may_be_gone,
    new_key,
    part_of,
    pool_closed,
    refuse_closed,
    require,
    rows_of,
)
from token_budget.stores.sqlite._step import Step, lost

_OTHERS = """
    SELECT value, who FROM gave JOIN owner ON owner.id = gave.owner
    WHERE place = ? AND what = ? AND gave.owner != ? AND value IS NOT ? LIMIT 1
"""
_MAKE_GROUP = """
    INSERT INTO keyed (parent, name, token_cap, nano_cap, window)
    VALUES (?, ?, ?, ?, (SELECT id FROM window WHERE text = ?))
"""
_SET_GROUP = {
    "token_cap": "UPDATE keyed SET token_cap = ? WHERE id = ?",
    "nano_cap": "UPDATE keyed SET nano_cap = ? WHERE id = ?",
}
_WINDOW_OF_GROUP = "UPDATE keyed SET window = (SELECT id FROM window WHERE text = ?), starts = ?, ends = ? WHERE id = ?"
# A cap of all keys that have none of their own (`OWN`); the room moves with it. A limit of no cap is a parameter.
_SET_KEYS = {
    "token_cap": """
        UPDATE scope SET token_room = token_room - ifnull(token_cap, ?) + ?, token_cap = ?
        WHERE parent = ? AND own & 1 = 0
    """,
    "nano_cap": """
        UPDATE scope SET nano_room = nano_room - ifnull(nano_cap, ?) + ?, nano_cap = ?
        WHERE parent = ? AND own & 2 = 0
    """,
}
_KEYS_BEGIN_ANEW = """
    UPDATE scope SET token_room = ifnull(token_cap, ?) - token_held, nano_room = ifnull(nano_cap, ?) - nano_held,
                     era = era + 1, told = NULL
    WHERE parent = ? AND own & 4 = 0 AND ends <= ?
"""
_WINDOW_OF_KEYS = """
    UPDATE scope SET window = (SELECT id FROM window WHERE text = ?), starts = ?, ends = ?
    WHERE parent = ? AND own & 4 = 0
"""
_KEYS = "SELECT name FROM scope WHERE parent = ? ORDER BY id"


# ---------------------------------------------------------------------- opening


def open_scope(
    step: Step,
    scope: Scope,
    token_cap: int | None,
    nano_cap: int | None,
    window: Window | None,
    how: str,
    *,
    create: bool,
) -> Opened:
    """See `Store.open`, of a scope."""
    given = {"token_cap": token_cap, "nano_cap": nano_cap, "window": text_of(window)}
    prepare(step)
    tidy(step)
    _require_above(step, above(scope))
    before = scope.window
    scope.window = window or before  # so that the row is read by this clock
    try:
        row = find(step, scope)
        created = row is None
        changed: tuple[tuple[str, Any, Any], ...] = ()
        if row is None and scope.group is None:
            row = _new(step, scope, given, window, create=create)
        else:
            row = made(step, scope, row or require(step, scope))
            changed = _settle(step, row.id, scope.name, _values(row), given, how)
            if changed:
                _change(step, scope, row, {what: value for what, _, value in changed}, window)
    except BaseException:
        scope.window = before
        raise
    if window is not None:
        step.ledger.clocks[row.id] = window.clock
        scope.window = window
    elif before is not None:
        step.ledger.know_clock(row.id, before)
    know(step, scope, row)
    return Opened(row.numbers(), created, changed)


def _require_above(step: Step, chain: Sequence[Scope]) -> None:
    rows = rows_of(step, chain)
    refuse_closed(chain, rows)
    for scope, row in reversed(list(zip(chain, rows, strict=True))):
        made(step, scope, row)


def _new(step: Step, scope: Scope, given: dict[str, Any], window: Window | None, *, create: bool) -> Row:
    """Make a scope that the file does not have."""
    if scope.handle is not None and not may_be_gone(scope):
        raise lost(step.ledger, None if scope.above is None else scope.path)
    if not create:
        raise StoreLost(
            f"there is no budget {scope.name!r} in {step.ledger.location}, and create=False says that there must be: "
            "the file was emptied or replaced, or the name is another one"
        )
    parent = 0 if scope.above is None else scope.above.handle[0]
    row = Row(parent, part_of(scope), given["token_cap"], given["nano_cap"])
    row.window = given["window"]
    row.begin_period(window)
    step.make(row)
    for what, value in given.items():
        if value is not None:
            give(step, row.id, what, value)
    if scope.above is None:
        step.news.append(News("created", scope.path))
    return row


def open_group(
    step: Step, group: Group, token_cap: int | None, nano_cap: int | None, window: Window | None, how: str
) -> Opened:
    """See `Store.open`, of a group."""
    given = {"token_cap": token_cap, "nano_cap": nano_cap, "window": text_of(window)}
    prepare(step)
    _require_above(step, [group.above, *above(group.above)])
    before = group.window
    group.window = window or before
    try:
        found = group_of(step, group)
        created = found is None
        changed: tuple[tuple[str, Any, Any], ...] = ()
        if found is None:
            if window is not None:
                step.know_window(str(window))
            parent = group.above.handle[0]
            step.write(_MAKE_GROUP, (parent, group_part_of(group), token_cap, nano_cap, given["window"]))
            place = _row_of_group(step, group).parent
            for what, value in given.items():
                if value is not None:
                    give(step, place, what, value)
        else:
            place = -found.id
            stored = {"token_cap": found.token_cap, "nano_cap": found.nano_cap, "window": found.window}
            changed = _settle(step, place, f"{group.name or ''}:", stored, given, how)
            if changed:
                _change_group(step, group, place, {what: value for what, _, value in changed}, window)
    except BaseException:
        group.window = before
        raise
    if window is not None:
        step.ledger.clocks[place] = window.clock
        group.window = window
    return Opened(_row_of_group(step, group).numbers(), created, changed)


def _settle(
    step: Step, place: int, name: str, stored: dict[str, Any], given: dict[str, Any], how: str
) -> tuple[tuple[str, Any, Any], ...]:
    """Decide which of the given values replace stored ones, and remember what this process gave."""
    changed = []
    for what, value in given.items():
        if value is None or how == "stored":
            continue
        if stored[what] != value:
            other = step.execute(_OTHERS, (place, what, step.owner, value)).fetchone() if how == "code" else None
            if other is not None:
                raise _mismatch(name, what, value, stored[what], other)
            changed.append((what, stored[what], value))
        give(step, place, what, value)
    return tuple(changed)


def _mismatch(name: str, what: str, mine: Any, stored: Any, other: tuple[Any, str]) -> StoreMismatch:
    argument = "usd_cap" if what == "nano_cap" else what
    return StoreMismatch(
        f"pool {name!r}: this process gives {argument} {_shown(what, mine)}, and a living process "
        f"({other[1]}) has given {_shown(what, other[0])}; the store has {_shown(what, stored)}. Give the same "
        f'everywhere. Or caps="mine" overrides it, caps="stored" takes what the store has, and set_caps() changes it '
        "for everybody"
    )


def _shown(what: str, value: Any) -> str:
    if value is None:
        return "none"
    if what == "window":
        return repr(value)
    return f"{value:,}" if what == "token_cap" else f"{usd_text(value)} USD"


# ---------------------------------------------------------------------- caps and windows


def set_caps(step: Step, scope: Scope, values: dict[str, Any], window: Any) -> None:
    """See `Store.set_caps`. ``values`` has what is to change; ``window`` is the window itself, or UNCHANGED."""
    prepare(step)
    row = made(step, scope, require(step, scope))
    if row.closed:
        raise pool_closed(scope)
    _change(step, scope, row, values, window)
    if scope.group is None:
        for what, value in values.items():
            give(step, row.id, what, value)
    if window is not UNCHANGED:
        scope.window = window
        if window is not None:
            step.ledger.clocks[row.id] = window.clock
    know(step, scope, row)


def set_group(step: Step, group: Group, values: dict[str, Any], window: Any) -> None:
    """See `Store.set_group`. The arguments are those of `set_caps`."""
    prepare(step)
    place = _row_of_group(step, group).parent
    _change_group(step, group, place, values, window)
    for what, value in values.items():
        give(step, place, what, value)
    if window is not UNCHANGED:
        group.window = window
    _row_of_group(step, group)


def text_of(window: Window | None) -> str | None:
    """Return the text of a window.

    Raises:
        ValueError: no other process could read it back.
    """
    if window is None:
        return None
    text = str(window)
    try:
        same = Window.parse(text, clock=window.clock) == window
    except ValueError:
        same = False
    if not same:
        raise ValueError(f"the window {text[:60]!r} has a time zone that text cannot name, and a store keeps text")
    return text


def _values(row: Row) -> dict[str, Any]:
    return {"token_cap": row.token_cap, "nano_cap": row.nano_cap, "window": row.window}


def _change(step: Step, scope: Scope, row: Row, values: dict[str, Any], window: Window | None) -> None:
    """Set values of a scope. Those of a key are its own from now on."""
    if values.get("window") is not None:
        step.know_window(values["window"])
    row.change(values, window)
    if scope.group is not None:
        for what in values:
            row.own |= OWN[what]


def _change_group(step: Step, group: Group, place: int, values: dict[str, Any], window: Window | None) -> None:
    """Set values of a group, and of all its keys that have none of their own."""
    step.renew()  # the statements below change rows that may have been read
    for what, value in values.items():
        if what == "window":
            _change_window(step, group, place, value, window)
        else:
            step.write(_SET_GROUP[what], (value, -place))
            step.write(_SET_KEYS[what], (NO_CAP, limit(value), value, place))
    told = step.execute("SELECT id FROM scope WHERE parent = ? AND told IS NOT NULL", (place,)).fetchall()
    for row in step.rows(scope_id for (scope_id,) in told):
        row.arm()


def _change_window(step: Step, group: Group, place: int, text: str | None, window: Window | None) -> None:
    if text is not None:
        step.know_window(text)
    if group.window is not None:  # the keys whose period is over by the old window begin anew
        step.write(_KEYS_BEGIN_ANEW, (NO_CAP, NO_CAP, place, group.window.now()))
    if window is not None:
        step.ledger.clocks[place] = window.clock  # before a key is read by it
    start, end = (None, FAR) if window is None else window.period(window.now())
    step.write(_WINDOW_OF_GROUP, (text, start, None if window is None else end, -place))
    step.write(_WINDOW_OF_KEYS, (text, start, end, place))


def _row_of_group(step: Step, group: Group) -> Row:
    """Return what a key of a group begins with."""
    found = group_of(step, group)
    if found is None:
        raise lost(step.ledger, group.path)
    return new_key(step, found, "")


# ---------------------------------------------------------------------- the life of a scope


def reset(step: Step, scope: Scope) -> None:
    """See `Store.reset`."""
    prepare(step)
    row = require(step, scope)
    row.begin_anew()  # of a key that the file does not have, nothing is written
    row.begin_period(step.window_of(row))


def close(step: Step, scope: Scope) -> None:
    """See `Store.close`."""
    row = made(step, scope, require(step, scope))
    row.closed = row.closed or max(1, int(step.time))
    scope.closed = True


def forget(step: Step, scope: Scope) -> bool:
    """See `Store.forget`."""
    prepare(step)
    row = find(step, scope)
    if row is None:
        return False
    if row.in_flight:
        raise ValueError(
            f"key {decoded(part_of(scope))!r} has {row.in_flight} in flight: let them settle first, or close() its pool"
        )
    _delete(step, row.id)
    return True


def _delete(step: Step, scope_id: int) -> None:
    """Delete a scope and all below it."""
    found = [scope_id]
    for one in found:  # it grows meanwhile
        groups = step.execute("SELECT id FROM keyed WHERE parent = ?", (one,)).fetchall()
        for parent in [one, *(-group for (group,) in groups)]:
            found += [below for (below,) in step.execute("SELECT id FROM scope WHERE parent = ?", (parent,)).fetchall()]
    for one in reversed(found):
        step.write("DELETE FROM keyed WHERE parent = ?", (one,))
        step.delete(one)


def claim_threshold(step: Step, scope: Scope, era: int, parts: int) -> bool:
    """See `Store.claim_threshold`."""
    row = find(step, scope)
    if row is None or row.era != era or parts in row.told:
        return False
    row.told = (*row.told, parts)
    return True


def keys(step: Step, group: Group) -> list[str]:
    """See `Store.keys`."""
    found = group_of(step, group)
    if found is None:
        return []  # the key above it was forgotten
    return [decoded(name) for (name,) in step.execute(_KEYS, (-found.id,)).fetchall()]
