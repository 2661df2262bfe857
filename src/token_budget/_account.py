"""Account: what one scope has claimed, and the bounds within which a straight run may change it.

A family's lock guards every account of the family. While the lock is free, on each axis:

* ``0 <= reserved <= claimed``, where claimed is used + reserved.
* ``claimed <= limit``, except for spends that had happened already (an overrun) and caps that were lowered.
* ``bound <= limit``. An operation whose outcome lies within both bounds has nobody to tell, to wake or to refuse. The
  callers who wait, the subscribers, the next threshold and a closed pool are all folded into the bounds
  (`Account.bounds`). A bound may be lower than it needs to be: then the long way (`_ledger.py`) looks. A bound is never
  too high: the change that demands a lower bound lowers it.
"""

from __future__ import annotations

from token_budget._money import UNBOUNDED
from token_budget._snapshot import BudgetSnapshot

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from token_budget._waiting import Line
    from token_budget._window import Window

CLOSED = -1  # a bound that no outcome lies within
ALWAYS = float("-inf")
NEVER = float("inf")
NOTHING = (0, 0)  # the demand on a scope that nobody waits for
EVERYTHING = (2 * UNBOUNDED, 2 * UNBOUNDED)  # the demand on a scope that somebody waits for room in: no bound is left
NUMBERS = ("tokens_claimed", "tokens_reserved", "nanos_claimed", "nanos_reserved", "in_flight")
_new = object.__new__


class Account:
    """The numbers of one scope, its caps, its period, its line of waiters and its listeners."""

    __slots__ = (
        *NUMBERS,
        "__weakref__",
        "calendar",
        "closed",
        "demand",
        "gated",
        "line",
        "nano_bound",
        "nano_limit",
        "number",
        "own",
        "parent",
        "period_end",
        "since",
        "terms",
        "token_bound",
        "token_limit",
        "watch",
        "window",
    )

    def __init__(
        self,
        token_cap: int | None,
        nano_cap: int | None,
        name: str | None,
        window: Window | None,
        period: tuple[float, float] | None = None,
    ) -> None:
        if window is not None and period is None:
            period = window.period(window.now())
        self.tokens_claimed = self.tokens_reserved = self.nanos_claimed = self.nanos_reserved = self.in_flight = 0
        # What people are shown: both caps, the name, start and end of the period.
        self.terms: tuple[Any, ...] = (token_cap, nano_cap, name, *(period or (None, None)))
        # What amounts are compared with; `UNBOUNDED` stands for no cap.
        self.token_limit = self.token_bound = UNBOUNDED if token_cap is None else token_cap
        self.nano_limit = self.nano_bound = UNBOUNDED if nano_cap is None else nano_cap
        self.gated = False  # whether the bounds are below the limits, so that only the long way can refuse
        self.closed = False
        self.window = window
        self.since, self.period_end = current(period)
        self.calendar: Calendar | None = None  # shared with the accounts that are always in one period
        self.line: Line | None = None  # who waits and needs this scope; None while nobody does
        self.demand = NOTHING  # the most that one of them asks for, or EVERYTHING while one waits for room here
        self.watch: Watch | None = None  # who listens; None while nobody does
        self.number = 0  # the order of making
        self.own: frozenset[str] = frozenset()  # which of "token_cap", "nano_cap", "window" were set on it itself
        self.parent: Account | None = None  # the scope above, in the tree

    def numbers(self) -> tuple[int, int, int, int, int]:
        """Return the values of `NUMBERS`."""
        return self.tokens_claimed, self.tokens_reserved, self.nanos_claimed, self.nanos_reserved, self.in_flight

    def shown(self, children: tuple[BudgetSnapshot, ...] = ()) -> BudgetSnapshot:
        """Return a snapshot of the account as it is."""
        return shown(self.numbers(), self.terms, children)

    def bounds(
        self, *, watch: Watch | None, demand: tuple[int, int], closed: bool, token_limit: int, nano_limit: int
    ) -> tuple[int, int, bool]:
        """Return both bounds, and whether they are below the limits, for an account in this state."""
        if closed or (watch is not None and watch.subscribers):
            return CLOSED, CLOSED, True
        token_bound = token_limit - demand[0]
        nano_bound = nano_limit - demand[1]
        if watch is not None:
            for threshold in watch.armed:
                token_bound = min(token_bound, threshold.below(token_limit))
                nano_bound = min(nano_bound, threshold.below(nano_limit))
        gated = token_bound != token_limit or nano_bound != nano_limit
        if watch is not None and any(one.share > 10**9 for one in watch.armed):
            gated = True  # it may be reached by a spend that passed the cap, and then a refusal has it to tell
        return token_bound, nano_bound, gated

    def __repr__(self) -> str:
        return f"<Account {self.shown()}>"


def shown(
    numbers: tuple[int, ...], terms: tuple[Any, ...], children: tuple[BudgetSnapshot, ...] = ()
) -> BudgetSnapshot:
    """Return a snapshot of an account with these numbers and terms."""
    snapshot = _new(BudgetSnapshot)
    snapshot._state = (*numbers, terms, children)  # type: ignore[assignment]
    return snapshot


def current(period: tuple[Any, Any] | None) -> tuple[float, float]:
    """Return the clock readings that keep a period: ``since <= now < end``. No period keeps all.

    A clock that is less than a period behind has stepped back, and the period stays. One that is further behind was
    wrong before.
    """
    if period is None or period[1] is None:
        return ALWAYS, NEVER
    start, end = period
    return start - (end - start), end


class Calendar:
    """The latest period that any of some accounts was in. A new one begins in it, also where the clock steps back."""

    __slots__ = ("latest",)

    def __init__(self) -> None:
        self.latest: tuple[Any, Any] | None = None


class Threshold:
    """A share of the caps, in parts of 10**9, and whom to call when what is used comes to it."""

    __slots__ = ("callback", "heard", "share")

    def __init__(self, share: int, callback: Callable[..., object]) -> None:
        self.share = share
        self.callback = callback
        self.heard = True  # as of a `Subscription`

    def below(self, limit: int) -> int:
        """Return the largest amount that does not come to the share of a limit."""
        return limit if limit == UNBOUNDED else -(-limit * self.share // 10**9) - 1

    def reached(self, numbers: tuple[int, ...], token_limit: int, nano_limit: int) -> bool:
        """Return whether what is used, by these numbers, has come to the share of a limit."""
        tokens_claimed, tokens_reserved, nanos_claimed, nanos_reserved = numbers[:4]
        return tokens_claimed - tokens_reserved > self.below(
            token_limit
        ) or nanos_claimed - nanos_reserved > self.below(nano_limit)


class Subscription:
    """Somebody who wants to hear of everything; each is one of its own, also of the same callback."""

    __slots__ = ("callback", "heard")

    def __init__(self, callback: Callable[..., object]) -> None:
        self.callback = callback
        self.heard = True  # False once it has ended: a key that was forgotten may bring it back


class Watch:
    """Who listens to one account. It is replaced, never changed."""

    __slots__ = ("armed", "subscribers", "thresholds")

    def __init__(
        self,
        subscribers: tuple[Subscription, ...],
        thresholds: tuple[Threshold, ...],
        armed: tuple[Threshold, ...],
    ) -> None:
        self.subscribers = subscribers
        self.thresholds = thresholds
        self.armed = armed  # the thresholds that have still to be told in this period

    def with_armed(self, armed: tuple[Threshold, ...]) -> Watch:
        """Return the same listeners with these thresholds armed."""
        return Watch(self.subscribers, self.thresholds, armed)
