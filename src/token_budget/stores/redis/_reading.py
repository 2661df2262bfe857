"""Reading: what the store has of scopes, and what this process knows of them then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from token_budget._errors import PoolClosed
from token_budget._window import Window
from token_budget.stores._names import name_at
from token_budget.stores._store import Group, Numbers, Scope
from token_budget.stores.redis._process import Process, Step
from token_budget.stores.redis._rows import (
    NOTHING,
    GroupRow,
    Place,
    Row,
    begun,
    cap_of,
    learn_group,
    numbers_of,
    own_clock,
    place_of,
    reached,
    read_window,
    unused,
)


def keys_of(process: Process, chain: Sequence[Scope]) -> list[str]:
    """Return the keys of a chain as scripts take them."""
    keys: list[str] = []
    for scope in chain:
        handle = scope.handle
        keys += handle.keys if handle is not None else keys_of_new(process, scope)
    return keys


def keys_of_new(process: Process, scope: Scope) -> tuple[str, str, str]:
    """Return the keys of a scope that this process has not read yet, and remember it."""
    process.known[scope.path] = scope
    if scope.group is not None:
        process.known[scope.group.path] = scope.group
    return process.keys.of(scope)


def chain_at(process: Process, path: str) -> list[Scope]:
    """Return the scopes of a path, its own first and the root last, as this process knows them."""
    chain: list[Scope] = []
    parts = path.split("/")
    for end in range(1, len(parts) + 1):
        here = "/".join(parts[:end])
        scope = process.known.get(here)
        if scope is None:
            above = chain[-1] if chain else None
            head, colon, _ = here.rpartition(":")
            group = None
            if above is not None and colon and "/" not in here[len(head) :]:
                group = process.known.get(f"{head}:") or _group_at(process, above, f"{head}:")
            scope = Scope(name_at(here), here, above, group)
        chain.append(scope)
    return chain[::-1]


def _group_at(process: Process, above: Scope, path: str) -> Group:
    group = Group(above, None, path)
    process.known[path] = group
    return group


def scopes_at(process: Process, paths: str) -> list[Scope]:
    """Return the scopes of the paths of a claim."""
    return [chain_at(process, path)[0] for path in paths.split("|")]


# ---------------------------------------------------------------------- rows


class Reading(NamedTuple):
    """What the store has of some scopes, as of one moment."""

    now: float  # the server's time
    rows: list[Row]
    groups: list[GroupRow]  # of each, empty where it is no key


def read(step: Step, scopes: Sequence[Scope]) -> Reading:
    """Read scopes. Processes whose leases are over, and are not charged yet, count as living."""
    return reading_of(step.ask(step.process.scripts.read, keys_of(step.process, scopes), "x", ()))


def reading_of(answer: Sequence[Any]) -> Reading:
    """Return what the script said."""
    _, now, rows, groups = answer
    return Reading(float(now), [Row(*row) for row in rows], [GroupRow(*row) if row else GroupRow() for row in groups])


def read_row(step: Step, scope: Scope) -> Row:
    """Read one scope."""
    return read(step, (scope,)).rows[0]


def learn(step: Step, scope: Scope, row: Row) -> None:
    """Let this process know a scope as it was read: its window, its state, and what steps tell scripts of it."""
    scope.closed = row.state is not None
    group = scope.group
    if group is None or "W" in (row.own or ""):
        scope.window = read_window(row.window, scope)
    else:
        if row.version is not None and group.version != int(row.version):
            learn_group(group, read(step, (scope,)).groups[0])
        scope.window = group.window
    known: Place | None = scope.handle
    if known is None or known.words[0] != row.revision:
        keys = keys_of_new(step.process, scope)
        scope.handle = place_of(keys, row, scope.window)


def gone(step: Step, scope: Scope) -> Exception:
    """Return the error of a scope with a name that the store does not have."""
    process = step.process
    known = process.client.command("HGET", process.keys.names, scope.path, timeout=step.left())
    if known == "c":
        scope.closed = True
        return closed(scope)
    return process.lost(f"has lost pool {scope.name!r}")


def closed(scope: Scope) -> PoolClosed:
    """Return the error of a closed scope."""
    return PoolClosed(f"pool {scope.name!r} is closed: spend from its parent, or from a new child of that")


def numbers_at(step: Step, chain: Sequence[Scope], reading: Reading) -> tuple[Numbers, ...]:
    """Return the numbers of scopes that were read. One that was closed, and is deleted since, has none.

    Raises:
        StoreLost: one is not there that should be.
    """
    found = []
    for scope, row, group in zip(chain, reading.rows, reading.groups, strict=True):
        numbers = present(step.process, scope, row, group, reading.now)
        if numbers is None:
            error = gone(step, scope)
            if not isinstance(error, PoolClosed):
                raise error
            numbers = NOTHING
        found.append(numbers)
    return tuple(found)


def present(process: Process, scope: Scope, row: Row, above: GroupRow, now: float) -> Numbers | None:
    """Return the numbers of a scope as they are now, also where no step has brought them there; None if it is gone.

    A period that has ended is shown as if the next had begun, and a key's scope with its group's present values.
    """
    group, there = scope.group, row.is_of(process.generation)
    own = (row.own or "") if there else ""
    place: Place | None = scope.handle
    before = scope.window if place is None else place.window  # whose clock tells whether the period is over
    if group is not None:
        if above.generation != process.generation:
            raise process.lost(f"has lost the keys {group.path!r}")
        learn_group(group, above)
    elif not there:
        return None
    scope.closed = there and row.state is not None
    window = scope.window = read_window(row.window, scope) if group is None or "W" in own else group.window
    if not there:
        return unused(above, _period(window, now))
    numbers = numbers_of(row)
    changed = group is not None and row.version != above.version
    if changed:
        numbers = numbers._replace(
            token_cap=numbers.token_cap if "T" in own else cap_of(above.token_cap),
            nano_cap=numbers.nano_cap if "N" in own else cap_of(above.nano_cap),
        )
        numbers = numbers._replace(told=tuple(parts for parts in numbers.told if reached(numbers, parts)))
    version = int(row.version or 0)
    if changed and "W" not in own and int(above.window_version or 0) > version:
        period = _period(window, now)
        past = period is not None and bool(above.window_end) and period[0] >= float(above.window_end or 0)
        replaced = version < int(above.replaced or 0) and numbers.end is not None
        if past or version < int(above.anew or 0) or (replaced and float(above.reading or 0) >= (numbers.end or 0)):
            return begun(numbers, period)
        return numbers._replace(start=period and period[0], end=period and period[1])
    if numbers.end is not None and _now(before or window, now) >= numbers.end:
        return begun(numbers, _period(window, now))
    return numbers


def _now(window: Window | None, now: float) -> float:
    return window.now() if window is not None and own_clock(window) else now


def _period(window: Window | None, now: float) -> tuple[float, float] | None:
    return None if window is None else window.period(_now(window, now))
