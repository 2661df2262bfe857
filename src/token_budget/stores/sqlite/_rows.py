"""Row: one scope inside a transaction of the slow path. It is read, changed in Python, and written back whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from token_budget._window import Window
from token_budget.stores._errors import StoreError
from token_budget.stores._names import name_at
from token_budget.stores._store import Numbers
from token_budget.stores.sqlite._schema import CLAIMED_AT_MOST, FAR, NO_CAP

OWN = {"token_cap": 1, "nano_cap": 2, "window": 4}  # the bits of `Row.own`

_SELECT = """
    SELECT scope.id, parent, name, token_cap, nano_cap, token_room, nano_room, token_held, nano_held, in_flight,
           window.text, starts, ends, era, waiters, closed, own, told
    FROM scope LEFT JOIN window ON window.id = scope.window
"""
BY_ID = f"{_SELECT} WHERE scope.id = ?"
BELOW = f"{_SELECT} WHERE parent = ?"
WRITE = """
    UPDATE scope SET token_cap = ?, nano_cap = ?, token_room = ?, nano_room = ?, token_held = ?, nano_held = ?,
                     in_flight = ?, window = (SELECT id FROM window WHERE text = ?), starts = ?, ends = ?, era = ?,
                     waiters = ?, closed = ?, own = ?, told = ?
    WHERE id = ?
"""
INSERT = """
    INSERT INTO scope (token_cap, nano_cap, token_room, nano_room, token_held, nano_held, in_flight, window, starts,
                       ends, era, waiters, closed, own, told, parent, name)
    VALUES (?, ?, ?, ?, ?, ?, ?, (SELECT id FROM window WHERE text = ?), ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


def limit(cap: int | None) -> int:
    """Return what a room is counted from."""
    return NO_CAP if cap is None else cap


class Row:
    """One scope. ``tokens`` and ``nanos`` are what is claimed: used + held."""

    __slots__ = (
        "closed",
        "end",
        "era",
        "id",
        "in_flight",
        "name",
        "nano_cap",
        "nanos",
        "nanos_held",
        "own",
        "parent",
        "start",
        "stored",
        "token_cap",
        "tokens",
        "tokens_held",
        "told",
        "waiters",
        "window",
    )

    def __init__(self, parent: int, name: str, token_cap: int | None, nano_cap: int | None) -> None:
        """Make the row of a scope that the file does not have yet."""
        self.id = 0  # until it is written
        self.parent = parent
        self.name = name
        self.token_cap = token_cap
        self.nano_cap = nano_cap
        self.tokens = self.nanos = self.tokens_held = self.nanos_held = self.in_flight = 0
        self.window: str | None = None
        self.start: float | None = None
        self.end: float = FAR
        self.era = 1
        self.waiters = 0
        self.closed = 0
        self.own = 0
        self.told: tuple[int, ...] = ()
        self.stored: tuple[Any, ...] = ()  # the values that the file has

    @classmethod
    def of(cls, found: tuple[Any, ...]) -> Row:
        """Make the row that the file has."""
        row = cls(*found[1:5])
        row.id = found[0]
        row.tokens, row.nanos = limit(row.token_cap) - found[5], limit(row.nano_cap) - found[6]
        row.tokens_held, row.nanos_held, row.in_flight = found[7:10]
        row.window, row.start, row.end, row.era, row.waiters, row.closed, row.own = found[10:17]
        row.told = tuple(map(int, found[17].split(","))) if found[17] else ()
        row.stored = row.values()
        return row

    def values(self) -> tuple[Any, ...]:
        """Return what the columns are to have, in the order of `WRITE` and `INSERT`.

        Raises:
            StoreError: the numbers are larger than the file can keep.
        """
        if self.tokens > CLAIMED_AT_MOST or self.nanos > CLAIMED_AT_MOST:
            raise StoreError(
                f"pool {name_at(self.name)!r} would count more than {CLAIMED_AT_MOST:,} tokens or nanodollars, which "
                "the file cannot keep. Nothing was changed. reset() it, or use a window"
            )
        return (
            self.token_cap, self.nano_cap, limit(self.token_cap) - self.tokens, limit(self.nano_cap) - self.nanos,
            self.tokens_held, self.nanos_held, self.in_flight, self.window, self.start, self.end, self.era,
            self.waiters, self.closed, self.own, ",".join(map(str, self.told)) if self.told else None,
        )  # fmt: skip

    # ------------------------------------------------------------------ what it says

    def fits(self, tokens: int, nanos: int) -> bool:
        """Return whether there is room. An axis of which nothing is asked refuses nothing."""
        return (not tokens or self.token_cap is None or self.tokens + tokens <= self.token_cap) and (
            not nanos or self.nano_cap is None or self.nanos + nanos <= self.nano_cap
        )

    def exhausted(self, tokens: int, nanos: int) -> bool:
        """Return whether an amount would not fit even if everything in flight came back."""
        return (
            bool(tokens) and self.token_cap is not None and self.tokens - self.tokens_held + tokens > self.token_cap
        ) or (bool(nanos) and self.nano_cap is not None and self.nanos - self.nanos_held + nanos > self.nano_cap)

    def over(self) -> bool:
        """Return whether more is claimed than a cap allows."""
        return (self.token_cap is not None and self.tokens > self.token_cap) or (
            self.nano_cap is not None and self.nanos > self.nano_cap
        )

    def numbers(self) -> Numbers:
        """Return what the front is told."""
        return Numbers(
            self.token_cap,
            self.nano_cap,
            self.tokens,
            self.tokens_held,
            self.nanos,
            self.nanos_held,
            self.in_flight,
            self.start,
            None if self.window is None else self.end,
            self.era,
            self.waiters,
            bool(self.closed),
            self.told,
        )

    # ------------------------------------------------------------------ what changes it

    def hold(self, tokens: int, nanos: int) -> None:
        """Hold what one more claim asks for."""
        self.tokens += tokens
        self.nanos += nanos
        self.tokens_held += tokens
        self.nanos_held += nanos
        self.in_flight += 1

    def end_claim(self, held: tuple[int, int], amount: tuple[int, int]) -> None:
        """Count what a claim cost, in place of what it held. With the same amount twice it is charged in full."""
        self.tokens_held -= held[0]
        self.nanos_held -= held[1]
        self.tokens += amount[0] - held[0]
        self.nanos += amount[1] - held[1]
        self.in_flight -= 1

    def begin_anew(self) -> None:
        """Set what is used to 0, in a new era. What is held stays."""
        self.tokens, self.nanos = self.tokens_held, self.nanos_held
        self.era += 1
        self.told = ()

    def begin_period(self, window: Window | None, now: float | None = None) -> None:
        """Be in the period of a window that a moment is in; the default is what its clock says."""
        if window is None:
            self.start, self.end = None, FAR
        else:
            self.start, self.end = window.period(window.now() if now is None else now)

    def change(self, values: Mapping[str, Any], window: Window | None) -> None:
        """Set caps ("token_cap", "nano_cap") and the text of a window ("window", with the window itself)."""
        for what, value in values.items():
            setattr(self, what, value)
        if "window" in values:
            self.begin_period(window)
        self.arm()

    def arm(self) -> None:
        """Arm again the thresholds whose share of the caps is above what is used."""
        self.told = tuple(parts for parts in self.told if self._reached(parts))

    def _reached(self, parts: int) -> bool:
        """Return whether what is used has come to a share of a cap, in parts of 10**9."""
        used = ((self.tokens - self.tokens_held, self.token_cap), (self.nanos - self.nanos_held, self.nano_cap))
        return any(cap is not None and amount * 10**9 >= cap * parts for amount, cap in used)
