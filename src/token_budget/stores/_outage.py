"""Allowing: a store whose calls pass while it cannot be reached (``on_unavailable="allow"``).

The first step that meets BudgetUnavailable begins an outage. Until the store answers again, calls that spend are not
asked of it: they pass at once, without a cap, and are counted here. The family's worker asks at most once a second
whether the store is back, and then records what passed: each amount once, whatever the caps say.

What passed is in this process alone. If the process ends first it is lost, and the log says so. What reads the store,
opens a pool or changes one is refused at once in an outage. `StoreLost` is never allowed: a store that has lost its
numbers answers.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from threading import RLock
from typing import Any, TypeVar

from token_budget._errors import PoolClosed
from token_budget._money import usd_text
from token_budget._window import Window
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError, StoreLost
from token_budget.stores._store import (
    DONE,
    GRANTED,
    REFUSED,
    Answer,
    Charged,
    Group,
    News,
    Numbers,
    Opened,
    Scope,
    Store,
)

T = TypeVar("T")
Chain = Sequence[Scope]
Todo = tuple[Callable[..., object], tuple[Any, ...], dict[str, Any]]

_NEVER = float("inf")
_PROBE = 1.0  # seconds until the store is asked again whether it is back
_REFUSED = 10.0  # seconds until it is asked again to record what it has refused to
_logger = logging.getLogger("token_budget")


class Allowing:
    """An engine around another. The lock guards what passed; it is held for a few instructions."""

    name: str
    location: str
    news: deque[News]

    def __init__(self, store: Store) -> None:
        self._store = store
        self.name = store.name
        self.location = store.location
        self.news = store.news
        self.worried: Callable[[], object] = lambda: None  # the family has its worker call `tend` soon
        self._root: Scope | None = None  # what is written to, to see whether the store is back
        self._begin()

    def _begin(self) -> None:
        self._lock = RLock()
        self.passing = False  # whether there is an outage
        self._refused = False  # whether the store is back and has refused to record what passed
        self._tickets: dict[Any, tuple[int, int]] = {}  # the amounts of those who wait
        self._held: dict[Any, tuple[int, int]] = {}  # the claims that passed and are open
        self._spent: dict[tuple[Scope, ...], tuple[int, int]] = {}  # what passed and is to be recorded, by chain
        self._owed: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()  # what is to be repeated; all may be
        self._doing: list[Todo] = []  # what is being repeated or recorded now
        self._since = 0.0  # when the outage began
        self._calls = 0  # how many passed in it
        self._amount = (0, 0)  # what they cost

    # ------------------------------------------------------------------ outages

    def _ask(self, step: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Do a step of the store, unless there is an outage. One that is not answered begins an outage."""
        if self.passing:
            raise BudgetUnavailable(f"{self.location} does not answer: an outage began a while ago")
        try:
            return step(*arguments, **options)
        except StoreLost:
            raise
        except BudgetUnavailable as error:
            self._note_outage(error)
            raise

    def _note_outage(self, error: BudgetUnavailable) -> None:
        with self._lock:
            if self.passing:
                return
            self.passing = True
            self._since, self._calls, self._amount = time.monotonic(), 0, (0, 0)
        said = str(error)  # a handler that keeps the error would keep its frames, and by that the caller's reservation
        _logger.warning("%s does not answer, and calls pass without a budget until it does: %s", self.location, said)
        self.worried()

    def _pass(self, chain: Chain, key: Any, tokens: int, nanos: int) -> Answer:
        """Let a claim pass. If it waits in the store, its ticket is given up later."""
        _check_open(chain)
        with self._lock:
            self._held[key] = tokens, nanos
            self._calls += 1
            if self._tickets.pop(key, None) is not None:
                self._owed.append((self._store.cancel, (chain, key, (tokens, nanos))))
        return Answer(GRANTED)

    def _count(self, chain: Chain, tokens: int, nanos: int) -> Answer:
        """Count what passed and is to be recorded."""
        with self._lock:
            before = self._spent.get(tuple(chain), (0, 0))
            self._spent[tuple(chain)] = before[0] + tokens, before[1] + nanos
            self._amount = self._amount[0] + tokens, self._amount[1] + nanos
        self.worried()
        return Answer(DONE)

    def _owe(self, step: Callable[..., object], *arguments: Any) -> None:
        with self._lock:
            self._owed.append((step, arguments))
        self.worried()

    def tend(self) -> float:
        """See whether the store is back, and record what passed. See `Store.tend`."""
        if self.passing and time.monotonic() < self._since + _PROBE:  # the call that has just failed may tend, too
            return _PROBE
        return self.catch_up()

    def catch_up(self) -> float:
        """Do the same, also where an outage has just begun."""
        again = _NEVER
        if self.passing or self._owed or self._spent:
            again = self._record_all() if self._is_back() else _PROBE
            if again == _PROBE:
                return again
        return min(again, self._store.tend())

    def _is_back(self) -> bool:
        """Return whether the store answers a step that writes: one that can only be read would fail the next call."""
        try:
            with suppress(StoreError):
                if self.passing and self._root is not None:
                    self._store.record((self._root,), 0, 0, force=True)
        except BudgetUnavailable as error:
            return isinstance(error, StoreLost)  # which answers, and everybody is to hear what
        return True

    def _record_all(self) -> float:
        """Repeat and record what is to be. Return in how many seconds again. What is refused holds up nothing else."""
        refused: list[Todo] = []
        try:
            while True:
                with self._lock:
                    todo = self._next()
                    ended = todo is None and not refused and (self.passing or self._refused)
                    if todo is None and not refused:
                        self.passing = self._refused = False
                if todo is None:
                    if ended:
                        self._log_end()
                    return _REFUSED if refused else _NEVER
                if not self._record(todo, refused):
                    return _PROBE
        finally:
            for todo in reversed(refused):
                self._put_back(todo)

    def _record(self, todo: Todo, refused: list[Todo]) -> bool:
        """Repeat or record one thing, or note that it is refused. Return False if the store does not answer."""
        step, arguments, options = todo
        try:
            step(*arguments, **options)
        except Exception as error:  # noqa: BLE001
            if isinstance(error, BudgetUnavailable) and not isinstance(error, StoreLost):
                self._put_back(todo)
                return False
            refused.append(todo)  # first: what logs may raise
            self._note_refused(error)
        except BaseException:
            self._put_back(todo)
            raise
        else:
            with self._lock:
                self._doing.remove(todo)
        return True

    def _next(self) -> Todo | None:
        todo: Todo
        if self._owed:
            todo = *self._owed.popleft(), {}
        elif self._spent:
            chain, amount = self._spent.popitem()
            todo = self._store.record, (chain, *amount), {"force": True}
        else:
            return None
        self._doing.append(todo)
        return todo

    def _put_back(self, todo: Todo) -> None:
        step, arguments, options = todo
        with self._lock:
            self._doing.remove(todo)
            if not options:
                self._owed.appendleft((step, arguments))
                return
            chain, tokens, nanos = arguments
            before = self._spent.get(chain, (0, 0))
            self._spent[chain] = before[0] + tokens, before[1] + nanos

    def _log_end(self) -> None:
        passed = f"{self._calls} calls passed in {time.monotonic() - self._since:.0f} s"
        cost = f"tokens {self._amount[0]:,} | usd {usd_text(self._amount[1])}"
        _logger.warning("%s answers again: %s, and what they cost is recorded: %s", self.location, passed, cost)

    def _note_refused(self, error: Exception) -> None:
        """Note that the store answers, so that calls do not pass any more, and does not record what passed."""
        told, self.passing, self._refused = self._refused, False, True
        if not told:
            _logger.error("%s answers, and does not record what passed: %s", self.location, error)

    def note_lost(self) -> None:
        """Log what was not recorded, as this process lets go of the store or ends."""
        with self._lock:
            doing = [arguments[1:] for _, arguments, options in self._doing if options]
            owed = [*self._owed, *(todo[:2] for todo in self._doing if not todo[2])]
            amounts = [*self._spent.values(), *doing, *(arguments[3] for _, arguments in owed if len(arguments) == 4)]
            claims = len(self._held)
        if amounts or claims:
            cost = f"tokens {sum(one[0] for one in amounts):,} | usd {usd_text(sum(one[1] for one in amounts))}"
            said = "%s: what passed while it did not answer is not recorded: %s, and %d calls in flight"
            _logger.error(said, self.location, cost, claims)

    # ------------------------------------------------------------------ what passes

    def reserve(
        self, chain: Chain, key: Any, tokens: int, nanos: int, *, wait: bool = False, rows: bool = False
    ) -> Answer:
        """Hold an amount, or let it pass. A repeat of one that passed is granted."""
        if key in self._held:
            return Answer(GRANTED)
        try:
            answer = self._ask(self._store.reserve, chain, key, tokens, nanos, wait=wait, rows=rows)
        except StoreLost:
            raise
        except BudgetUnavailable:
            return self._pass(chain, key, tokens, nanos)
        if wait:
            with self._lock:
                if answer.kind == REFUSED:
                    self._tickets[key] = tokens, nanos
                else:
                    self._tickets.pop(key, None)
        return answer

    def record(self, chain: Chain, tokens: int, nanos: int, *, force: bool = False, rows: bool = False) -> Answer:
        """Record a spend, or let it pass."""
        try:
            return self._ask(self._store.record, chain, tokens, nanos, force=force, rows=rows)
        except StoreLost:
            raise
        except BudgetUnavailable:
            if not force:
                _check_open(chain)
            with self._lock:
                self._calls += 1
            return self._count(chain, tokens, nanos)

    def commit(
        self, chain: Chain, key: Any, held: tuple[int, int], amount: tuple[int, int], *, rows: bool = False
    ) -> Answer:
        """Settle a claim, now or when the store is back. One that passed is recorded whatever the caps say."""
        with self._lock:
            passed = self._held.pop(key, None)
        try:
            if passed is None:
                return self._ask(self._store.commit, chain, key, held, amount, rows=rows)
            return self._ask(self._store.record, chain, *amount, force=True, rows=rows)
        except BudgetUnavailable as error:
            if isinstance(error, StoreLost):
                self._hold_again(key, passed)
                raise
        except BaseException:
            self._hold_again(key, passed)
            raise
        if passed is not None:
            return self._count(chain, *amount)
        self._owe(self._store.commit, chain, key, held, amount)
        return Answer(DONE)

    def _hold_again(self, key: Any, passed: tuple[int, int] | None) -> None:
        if passed is not None:
            self._held[key] = passed

    def release(self, chain: Chain, key: Any, held: tuple[int, int], *, rows: bool = False) -> Answer:
        """Give back what a claim holds, now or when the store is back."""
        with self._lock:
            if self._held.pop(key, None) is not None:
                return Answer(DONE)
        try:
            return self._ask(self._store.release, chain, key, held, rows=rows)
        except StoreLost:
            raise
        except BudgetUnavailable:
            self._owe(self._store.release, chain, key, held)
            return Answer(DONE)

    def cancel(self, chain: Chain, key: Any, held: tuple[int, int]) -> bool:
        """Make sure that a claim holds nothing, now or when the store is back."""
        with self._lock:
            self._tickets.pop(key, None)
            if self._held.pop(key, None) is not None:
                return True
        try:
            return self._ask(self._store.cancel, chain, key, held)
        except StoreLost:
            raise
        except BudgetUnavailable:
            self._owe(self._store.cancel, chain, key, held)
            return False

    def leave(self, chain: Chain, key: Any) -> Answer:
        """Give up a ticket; in an outage its claim passes instead."""
        try:
            answer = self._ask(self._store.leave, chain, key)
        except StoreLost:
            raise
        except BudgetUnavailable:
            return self._pass(chain, key, *self._tickets.get(key, (0, 0)))
        with self._lock:
            self._tickets.pop(key, None)
        return answer

    def watch(self, heads: Sequence[tuple[Chain, Any, int, int]], seconds: float) -> Collection[Any] | None:
        """Block until a claim may fit; in an outage not at all: whoever tries passes."""
        try:
            return self._ask(self._store.watch, heads, seconds)
        except StoreLost:
            raise
        except BudgetUnavailable:
            return None

    # ------------------------------------------------------------------ what does not pass

    def open(
        self,
        scope: Scope | Group,
        token_cap: int | None,
        nano_cap: int | None,
        window: Window | None,
        how: str,
        *,
        create: bool = True,
    ) -> Opened:
        """Open a scope. Without the store nobody knows what holds, so an outage lets none be opened."""
        if isinstance(scope, Scope) and scope.above is None:
            self._root = scope
        if self.passing:
            raise BudgetUnavailable(f"{self.location} does not answer: no pool can be opened")
        return self._store.open(scope, token_cap, nano_cap, window, how, create=create)

    def set_caps(self, scope: Scope, token_cap: Any, nano_cap: Any, window: Any) -> None:
        """See `Store.set_caps`."""
        self._ask(self._store.set_caps, scope, token_cap, nano_cap, window)

    def set_group(self, group: Group, token_cap: Any, nano_cap: Any, window: Any) -> None:
        """See `Store.set_group`."""
        self._ask(self._store.set_group, group, token_cap, nano_cap, window)

    def reset(self, scope: Scope) -> None:
        """See `Store.reset`."""
        self._ask(self._store.reset, scope)

    def close(self, scope: Scope) -> None:
        """See `Store.close`."""
        self._ask(self._store.close, scope)

    def forget(self, scope: Scope) -> bool:
        """See `Store.forget`."""
        return self._ask(self._store.forget, scope)

    def keys(self, group: Group) -> list[str]:
        """See `Store.keys`."""
        return self._ask(self._store.keys, group)

    def knows(self, scope: Scope) -> bool:
        """See `Store.knows`."""
        return self._ask(self._store.knows, scope)

    def new_key(self) -> Any:
        """See `Store.new_key`."""
        return self._store.new_key()

    def id_of(self, key: Any) -> str:
        """See `Store.id_of`."""
        return self._store.id_of(key)

    def read(self, chain: Chain) -> tuple[Numbers, ...]:
        """See `Store.read`."""
        return self._ask(self._store.read, chain)

    def tree(self, scope: Scope) -> list[tuple[str, str, Numbers]]:
        """See `Store.tree`."""
        return self._ask(self._store.tree, scope)

    def claim_threshold(self, scope: Scope, era: int, parts: int) -> bool:
        """See `Store.claim_threshold`."""
        return self._ask(self._store.claim_threshold, scope, era, parts)

    def expired(self) -> list[Charged]:
        """See `Store.expired`."""
        return self._ask(self._store.expired)

    def settle(self, claim_id: str, tokens: int, nanos: int) -> tuple[Answer, tuple[str, ...]]:
        """See `Store.settle`."""
        return self._ask(self._store.settle, claim_id, tokens, nanos)

    def hand_over(self, chain: Chain, key: Any, held: tuple[int, int], lease: float) -> Any:
        """See `Store.hand_over`. A claim that passed is not in the store, and nobody else could settle it."""
        if key in self._held:
            raise BudgetUnavailable(f"{self.location} did not answer when this was reserved, so it is not there")
        return self._ask(self._store.hand_over, chain, key, held, lease)

    # ------------------------------------------------------------------ the process

    def let_go(self) -> None:
        """Try once more to record what passed, log what is lost, and let go of the store."""
        try:
            self.catch_up()
        finally:  # also if it is interrupted
            self.note_lost()
            self._store.let_go()

    def forked(self) -> None:
        """Leave what passed to the parent. See `Store.forked`."""
        self._begin()
        self._store.forked()


def _check_open(chain: Chain) -> None:
    for scope in chain:
        if scope.closed:
            raise PoolClosed(f"pool {scope.name!r} is closed: spend from its parent, or from a new child of that")
