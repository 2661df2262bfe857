"""Change: everything that one operation does to the family, noted first and then made by one call.

An operation of the long way looks, computes and notes. Nothing is changed until `Family.change` consumes the notes in a
single call of C code, in which CPython delivers no signal, switches no thread and starts no collection. So the family
is whole before every instruction of Python: an operation that is interrupted has changed nothing or everything, and a
signal handler or finaliser that finds its own thread inside goes on with an operation of its own. What has to be told
or woken afterwards is part of the change (`debts`), and so are the lines that must be looked at (`stirred`): no
interrupt can lose either.

A store in that call frees what it replaces, and no finaliser may run there. `keep` holds what is replaced and may hold
a caller's objects, until the change is made.
"""

from __future__ import annotations

from itertools import repeat

from token_budget._account import NUMBERS, Account, shown
from token_budget._events import BudgetEvent, set_facts
from token_budget._money import UNBOUNDED
from token_budget._snapshot import BudgetSnapshot
from token_budget._telling import tell

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from token_budget._events import Kind

_new = object.__new__
_DECIDING = ("watch", "demand", "closed", "token_limit", "nano_limit")
_BOUNDS = ("token_bound", "nano_bound", "gated")


class Change:
    """What one operation does. ``after`` has the numbers of each account that it changes."""

    __slots__ = ("_kept", "_states", "after", "debts", "pushes", "stirred", "stores")

    def __init__(self) -> None:
        self.after: dict[Account, tuple[int, ...]] = {}
        self.stores: list[tuple[Any, str, Any]] = []  # the attributes to set
        self.debts: list[Any] = []  # what is owed once the lock is free: see `Family.pay`
        self.stirred: list[Account] = []  # accounts whose line must be looked at before the lock is let go
        # What few changes need is made when it is needed.
        self.pushes: list[tuple[list[Any], tuple[Any, ...]]] | None = None  # the entries to push into heaps
        self._states: dict[Account, dict[str, Any]] | None = None  # what will decide the bounds, where that changes
        self._kept: list[object] | None = None

    # ------------------------------------------------------------------ what is changed

    def set(self, thing: object, name: str, value: object) -> None:
        """Store an attribute. What it replaces must be of ours: else `keep` it."""
        self.stores.append((thing, name, value))

    def keep(self, *things: object) -> None:
        """Hold what is replaced and may hold a caller's objects, until the change is made."""
        if self._kept is None:
            self._kept = []
        self._kept += things

    def push(self, heap: list[Any], entry: tuple[Any, ...]) -> None:
        """Push an entry into a heap. Entries begin with integers that differ, so that comparing them runs no Python."""
        if self.pushes is None:
            self.pushes = []
        self.pushes.append((heap, entry))

    def add(self, accounts: Iterable[Account], tokens: int, nanos: int) -> None:
        """Add to what each of the accounts has claimed."""
        after, stores = self.after, self.stores
        for account in accounts:
            claimed, nanos_claimed = account.tokens_claimed + tokens, account.nanos_claimed + nanos
            after[account] = claimed, account.tokens_reserved, nanos_claimed, account.nanos_reserved, account.in_flight
            stores += (account, "tokens_claimed", claimed), (account, "nanos_claimed", nanos_claimed)
            if account.line is not None:
                self.stirred.append(account)

    def hold(
        self, accounts: Iterable[Account], tokens: int, held: int, nanos: int, nanos_held: int, calls: int
    ) -> None:
        """Add to what each of the accounts has claimed, holds of it, and has in flight."""
        for account in accounts:
            numbers = (
                account.tokens_claimed + tokens,
                account.tokens_reserved + held,
                account.nanos_claimed + nanos,
                account.nanos_reserved + nanos_held,
                account.in_flight + calls,
            )
            self.numbers(account, numbers)

    def numbers(self, account: Account, numbers: tuple[int, ...]) -> None:
        """Set all numbers of an account."""
        self.after[account] = numbers
        self.stores += zip(repeat(account), NUMBERS, numbers)
        if account.line is not None:
            self.stirred.append(account)

    def terms(self, account: Account, start: float | None, end: float | None) -> None:
        """Set what people are shown of an account: its caps as this change leaves them, and its period."""
        state = self.state(account)
        limits = state["token_limit"], state["nano_limit"]
        caps = [None if limit == UNBOUNDED else limit for limit in limits]
        self.set(account, "terms", (*caps, account.terms[2], start, end))

    def state(self, account: Account) -> dict[str, Any]:
        """Return what decides the bounds of an account, as it will be."""
        known = None if self._states is None else self._states.get(account)
        return known or {name: getattr(account, name) for name in _DECIDING}

    def gate(self, account: Account, **news: Any) -> None:
        """Set what decides the bounds of an account (`Account.bounds`), and the bounds with it."""
        state = {**self.state(account), **news}
        if self._states is None:
            self._states = {}
        self._states[account] = state
        for name, value in news.items():
            self.keep(getattr(account, name))
            self.set(account, name, value)
        for name, value in zip(_BOUNDS, account.bounds(**state), strict=True):
            self.set(account, name, value)

    # ------------------------------------------------------------------ what is told

    def note(self, kind: Kind, accounts: Iterable[Account], pool: str | None, tokens: int = 0, nanos: int = 0) -> None:
        """Owe an event to those who listen to these accounts, and look at the thresholds."""
        for account in accounts:
            watch = account.watch if self._states is None else self.state(account)["watch"]
            if watch is not None:
                if watch.subscribers:
                    snapshot = _new(BudgetSnapshot)  # as `shown` and `BudgetEvent._of` do, for half of the time
                    snapshot._state = (*(self.after.get(account) or account.numbers()), account.terms, ())  # type: ignore[assignment]
                    event = _new(BudgetEvent)
                    set_facts(event, (kind, pool, tokens, nanos, snapshot))
                    tell(self.debts, watch.subscribers, event)
                if watch.armed:
                    self.thresholds(account)

    def thresholds(self, account: Account) -> None:
        """Owe it to those whose threshold is reached to hear of it, and disarm it."""
        state = self.state(account)
        watch, limits = state["watch"], (state["token_limit"], state["nano_limit"])
        numbers = self.after.get(account) or account.numbers()
        reached = [one for one in watch.armed if one.reached(numbers, *limits)]
        if reached:
            event = BudgetEvent._of("threshold", account.terms[2], 0, 0, shown(numbers, account.terms))
            tell(self.debts, reached, event)
            self.gate(account, watch=watch.with_armed(tuple(one for one in watch.armed if one not in reached)))
