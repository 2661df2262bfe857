"""From the rows of a chain to what callers get: refusals, overruns, snapshots. They mean what the core's mean.

A request that does not fit is told apart by what would help: room that calls in flight give back (busy), the next
period (used up), or nothing. An axis of which nothing is asked refuses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from token_budget._errors import BudgetExceeded, BudgetOverrun, PoolClosed
from token_budget._money import UNBOUNDED
from token_budget._snapshot import BudgetSnapshot
from token_budget._window import Window
from token_budget.stores._store import Numbers, Scope

_new = object.__new__


def fits(row: Numbers, tokens: int, nanos: int, tokens_there: int, nanos_there: int) -> bool:
    """Return whether a request fits in a scope beside these amounts."""
    token_cap, nano_cap = row.token_cap, row.nano_cap
    return (not tokens or token_cap is None or tokens_there + tokens <= token_cap) and (
        not nanos or nano_cap is None or nanos_there + nanos <= nano_cap
    )


def exhausted(row: Numbers, tokens: int, nanos: int) -> bool:
    """Return whether a request would not fit in this period even if everything in flight came back."""
    tokens_used = row.tokens_claimed - row.tokens_held
    nanos_used = row.nanos_claimed - row.nanos_held
    return not fits(row, tokens, nanos, tokens_used, nanos_used)


def hopeless(
    chain: Sequence[Scope], rows: Sequence[Numbers], tokens: int, nanos: int, latest: Mapping[Scope, float]
) -> bool:
    """Return whether to wait is in vain: a scope never has room, or not before the waiter gives up.

    ``latest`` has, for scopes with a window, the latest reading of the window's clock that the waiter lives to see. It
    waits for no new period of the scopes that are missing there.
    """
    for scope, row in zip(chain, rows, strict=True):
        if row.closed:
            return True
        if exhausted(row, tokens, nanos):
            moment = latest.get(scope)
            if moment is None or row.end is None or moment < row.end or not fits(row, tokens, nanos, 0, 0):
                return True
    return False


def refusal(
    chain: Sequence[Scope],
    rows: Sequence[Numbers],
    at: int,
    tokens: int,
    nanos: int,
    kind: type[BudgetExceeded] = BudgetExceeded,
) -> Exception:
    """Return the error of a request that was refused, with the numbers of the rows.

    It names the first scope that is closed, else the first that is exhausted, else the one where the request waits.
    """
    for scope, row in zip(chain, rows, strict=True):
        if row.closed:
            return pool_closed(scope.name)
    empty = [index for index, row in enumerate(rows) if exhausted(row, tokens, nanos)]
    here = empty[0] if empty else at
    row = rows[here]
    numbers = (
        chain[here].name,
        tokens, row.tokens_claimed + tokens, row.tokens_held, _limit(row.token_cap),
        nanos, row.nanos_claimed + nanos, row.nanos_held, _limit(row.nano_cap),
    )  # fmt: skip
    never = any(rows[one].end is None or not fits(rows[one], tokens, nanos, 0, 0) for one in empty)
    ends = [(end, chain[one].window) for one in empty or [at] if (end := rows[one].end) is not None]
    if not ends:
        return kind._refusal_of(numbers, None, None if never else 0.0)
    end, window = max(ends, key=lambda item: item[0])
    seconds = None if never else _seconds_to(window, end) if empty else 0.0
    return kind._refusal_of(numbers, end, seconds)


def pool_closed(name: str | None) -> PoolClosed:
    """Return the error of a closed pool."""
    where = "" if name is None else f" {name!r}"
    return PoolClosed(f"pool{where} is closed: spend from its parent, or from a new child of that")


def overrun(
    chain: Sequence[Scope], rows: Sequence[Numbers], tokens: int, more_tokens: int, nanos: int, more_nanos: int
) -> BudgetOverrun | None:
    """Return the error of a spend that took a scope over a cap, by the rows right after it; None if it took none.

    ``tokens`` and ``nanos`` are the spend, ``more_tokens`` and ``more_nanos`` what of it is above what it had held.
    """
    for scope, row in zip(chain, rows, strict=True):
        facts: tuple[Any, ...]
        if more_tokens > 0 and row.token_cap is not None and row.tokens_claimed > row.token_cap:
            facts = ("tokens", tokens, row.tokens_claimed, row.tokens_held, row.token_cap)
        elif more_nanos > 0 and row.nano_cap is not None and row.nanos_claimed > row.nano_cap:
            facts = ("usd", nanos, row.nanos_claimed, row.nanos_held, row.nano_cap)
        else:
            continue
        seconds = None if row.end is None else _seconds_to(scope.window, row.end)
        made: Any = BudgetOverrun._of
        return made(*facts, scope.name, row.end, seconds)  # type: ignore[no-any-return]
    return None


def snapshot_of(name: Scope | str | None, row: Numbers, children: tuple[BudgetSnapshot, ...] = ()) -> BudgetSnapshot:
    """Return the snapshot of a scope, or of one of this name."""
    shown = name.name if isinstance(name, Scope) else name
    snapshot = _new(BudgetSnapshot)
    snapshot._state = (
        row.tokens_claimed,
        row.tokens_held,
        row.nanos_claimed,
        row.nanos_held,
        row.in_flight,
        (row.token_cap, row.nano_cap, shown, row.start, row.end),
        children,
    )
    return snapshot


def _limit(cap: int | None) -> int:
    return UNBOUNDED if cap is None else cap


def _seconds_to(window: Window | None, end: float) -> float | None:
    """Return in how many seconds a period ends; None where its clock fails, which must hide no error."""
    try:
        return None if window is None else max(0.0, end - window.now())
    except Exception:  # noqa: BLE001 - a caller's clock
        return None
