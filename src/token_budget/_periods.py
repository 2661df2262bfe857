"""Periods: when one has ended, and how the next begins.

A pool rolls over at the first operation after its period's end. The clocks are read before the lock is taken, and what
they say is compared with the accounts again under the lock, since another thread may have rolled over meanwhile.
"""

from __future__ import annotations

from token_budget._account import Account, current, shown
from token_budget._events import BudgetEvent
from token_budget._line import renew
from token_budget._scope import rebindable, times_of
from token_budget._telling import tell

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from token_budget._change import Change
    from token_budget._scope import Scope
    from token_budget._waiting import Waiter
    from token_budget._window import Window

    Due = tuple[Account, Window, tuple[Any, ...], float, tuple[float, float]]


def due(accounts: Iterable[Account]) -> list[Due]:
    """Return the accounts that are in another period now, each with its clock's reading and that period.

    What an account was in is read before the clock. So a reading that is behind it says that the clock has stepped
    back, and not that this thread was slow.
    """
    seen = [(account, account.window, account.terms) for account in accounts if account.window is not None]
    found = []
    readings: dict[int, float] = {}  # each clock is read once: scopes that share one are in one period
    for account, window, terms in seen:
        key = id(window.clock)
        now = readings[key] if key in readings else readings.setdefault(key, window.now())
        since, end = current(terms[3:])
        if not since <= now < end:
            found.append((account, window, terms, now, window.period(now)))
    return found


def roll_over(scope: Scope, ended: Iterable[Due]) -> None:
    """Begin the periods that were found due, and let the scope know the times of its periods."""
    if ended:
        scope._family.change(begin_due, (ended,))
    scope._family.change(_know_times, (scope,))


def _know_times(change: Change, scope: Scope) -> None:
    times = times_of(scope._chain)
    if times != scope._times and rebindable(scope):
        change.keep(scope._times)
        change.set(scope, "_times", times)


def begin_due(change: Change, ended: Iterable[Due]) -> None:
    """Begin the periods that were found due, where another thread has not begun them meanwhile."""
    for account, window, terms, now, period in ended:
        if account.window is not window:
            continue  # it has another since, whose clock says nothing here
        if now >= account.period_end:
            begin_anew(change, account)
            begin_period(change, account, period)
            _tell(change, account, period)
        elif now < account.since and account.terms is terms:
            begin_period(change, account, period)  # the clock was wrong before: take its period, keep what is used
        else:
            continue
        if account.calendar is not None:
            change.set(account.calendar, "latest", period)


def begin_anew(change: Change, account: Account) -> None:
    """Set what is used to 0 and arm all thresholds."""
    tokens, nanos = account.tokens_reserved, account.nanos_reserved
    change.numbers(account, (tokens, tokens, nanos, nanos, account.in_flight))
    watch = account.watch
    if watch is not None:
        change.gate(account, watch=watch.with_armed(watch.thresholds))


def begin_period(
    change: Change, account: Account, period: tuple[Any, Any], lives: dict[Waiter, dict[Any, Any]] | None = None
) -> None:
    """Let an account be in a period; (None, None) stands for one that never ends. `lives`: see `renew`."""
    since, end = current(period)
    change.terms(account, *period)
    change.set(account, "since", since)
    change.set(account, "period_end", end)
    renew(change, account, end, {} if lives is None else lives)


def _tell(change: Change, account: Account, period: tuple[float, float]) -> None:
    watch = account.watch
    if watch is not None and watch.subscribers:
        terms = (*account.terms[:3], *period)
        event = BudgetEvent._of("roll-over", account.terms[2], 0, 0, shown(change.after[account], terms))
        tell(change.debts, watch.subscribers, event)


def seconds_to(window: Window, end: float) -> float | None:
    """Return in how many seconds a period ends; None where the window's clock fails, which must hide no error."""
    try:
        return max(0.0, end - window.now())
    except Exception:  # noqa: BLE001 - a caller's clock
        return None
