"""Rows: what scripts answer of a scope, and what it means: numbers, caps, periods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from token_budget._window import Window, system_time
from token_budget.stores._errors import StoreError
from token_budget.stores._store import Group, Numbers, Scope

NONE = 8 * 10**18  # stands for no cap; more is never claimed


class Row(NamedTuple):
    """The fields of a scope's hash, in the order in which ``_rows.lua`` reads them; None where there is none."""

    revision: str | None  # "generation.number"
    waiting: str
    token_room: str
    nano_room: str
    tokens_used: str
    nanos_used: str
    in_flight: str
    end: str | None
    start: str | None
    era: str
    token_cap: str | None
    nano_cap: str | None
    window: str | None  # of a key's scope only its own
    state: str | None
    told: str | None
    version: str | None  # of the group, whose values it has; None: it is no key
    own: str | None  # which of T, N, W are a key's own
    expires: str | None
    number: str  # in the order in which scopes were made

    def is_of(self, generation: str) -> bool:
        """Return whether there is such a scope in a budget of this generation."""
        return self.revision is not None and self.revision.partition(".")[0] == generation


class GroupRow(NamedTuple):
    """The fields of a group's hash."""

    generation: str | None = None
    version: str | None = None
    token_cap: str | None = None
    nano_cap: str | None = None
    window: str | None = None
    window_version: str | None = None  # since which its window is what it is
    window_end: str | None = None  # of the period in which that was set; '' without a window
    anew: str | None = None  # keys of older versions have begun anew since
    replaced: str | None = None  # keys of older versions had the window that this version ended
    reading: str | None = None  # what the clock of that one said then


def moment_text(moment: float) -> str:
    """Return a moment as text that Lua and Python read back exactly."""
    whole = int(moment)
    return str(whole) if whole == moment else repr(float(moment))


def cap_of(text: str | None) -> int | None:
    """Return a cap of its text."""
    return None if text is None else int(text)


def numbers_of(row: Sequence[Any]) -> Numbers:
    """Return the numbers of a row, as it stands."""
    field = Row(*row)
    token_cap, nano_cap = cap_of(field.token_cap), cap_of(field.nano_cap)
    tokens_claimed = (NONE if token_cap is None else token_cap) - int(field.token_room)
    nanos_claimed = (NONE if nano_cap is None else nano_cap) - int(field.nano_room)
    return Numbers(
        token_cap,
        nano_cap,
        tokens_claimed,
        tokens_claimed - int(field.tokens_used),
        nanos_claimed,
        nanos_claimed - int(field.nanos_used),
        int(field.in_flight),
        None if field.start is None else float(field.start),
        None if field.end is None else float(field.end),
        int(field.era),
        int(field.waiting),
        field.state is not None,
        () if field.told is None else tuple(map(int, field.told.split(","))),
    )


def reached(numbers: Numbers, parts: int) -> bool:
    """Return whether what is used has come to a share of a cap, in parts of 10**9."""
    used = numbers.tokens_claimed - numbers.tokens_held
    nanos = numbers.nanos_claimed - numbers.nanos_held
    return (numbers.token_cap is not None and used * 10**9 >= numbers.token_cap * parts) or (
        numbers.nano_cap is not None and nanos * 10**9 >= numbers.nano_cap * parts
    )


def unused(group: GroupRow, period: tuple[float, float] | None) -> Numbers:
    """Return the numbers of a key's scope that was not made yet."""
    start, end = period or (None, None)
    token_cap, nano_cap = cap_of(group.token_cap), cap_of(group.nano_cap)
    return Numbers(token_cap, nano_cap, 0, 0, 0, 0, 0, start, end, 0, 0, closed=False)


# The numbers of a scope that was deleted.
NOTHING = unused(GroupRow(), None)._replace(closed=True)


def begun(numbers: Numbers, period: tuple[float, float] | None) -> Numbers:
    """Return the numbers as they are once their next period has begun."""
    start, end = period or (None, None)
    return numbers._replace(
        tokens_claimed=numbers.tokens_held,
        nanos_claimed=numbers.nanos_held,
        start=start,
        end=end,
        era=numbers.era + 1,
        told=(),
    )


# ---------------------------------------------------------------------- places


class Place(NamedTuple):
    """A scope as this process has read it: what steps that spend tell scripts of it. The handle of a `Scope`."""

    keys: tuple[str, str, str]  # its hash, its line, its group's hash or the root's
    words: tuple[str, str, str, str]  # see ``_chain.lua``
    era: str
    window: Window | None
    end: float | None  # of its period, if its window has a clock of its own, which is asked before each step


def place_of(keys: tuple[str, str, str], row: Row, window: Window | None) -> Place:
    """Return the place of a row."""
    end = row.end
    own = end is not None and own_clock(window)
    expires = row.expires or ""
    if expires == "k":
        expires = "" if end is None else str(int((float(end) + 86400) * 1000))
    words = (row.revision or "", "" if end is None or own else end, expires, row.version or "")
    return Place(keys, words, row.era, window, float(end) if own and end is not None else None)


# ---------------------------------------------------------------------- windows


def own_clock(window: Window | None) -> bool:
    """Return whether a window has a clock of its own: not the system's, for which the server's stands."""
    return window is not None and window.clock is not system_time


def window_of(scope: Scope) -> Window | None:
    """Return a scope's window as this process knows it, or its group's."""
    if scope.window is None and scope.group is not None:
        return scope.group.window
    return scope.window


def reading(scope: Scope) -> str:
    """Return what the clock of a scope's window says, as scripts take it: '' for the server's clock.

    The window is the one that the scope was read with. It may have another since.
    """
    place: Place | None = scope.handle
    return clock_of(window_of(scope) if place is None else place.window)


def clock_of(window: Window | None) -> str:
    """Return what a window's clock says, as scripts take it: '' for the server's clock."""
    if window is None or window.clock is system_time:
        return ""
    return repr(float(window.now()))


def read_window(text: str | None, of: Scope | Group) -> Window | None:
    """Return the window of a text, with the clock of the one of that text that was given in this process, or is known.

    Where there is neither, it has the clock of the last one that was given.

    Raises:
        StoreError: this system does not know it.
    """
    if text is None:
        return None
    for known in (of.given, of.window):
        if known is not None and str(known) == text:
            return known
    like = of.given or of.window
    try:
        return Window.parse(text, clock=None if like is None else like.clock)
    except ValueError as error:
        raise StoreError(f"the store has a window that this system cannot read, {text!r}: {error}") from None


def learn_group(group: Group, row: GroupRow) -> None:
    """Let a process know a group as it was read."""
    group.window = read_window(row.window, group)
    group.token_cap, group.nano_cap = cap_of(row.token_cap), cap_of(row.nano_cap)
    group.version = int(row.version or 0)
