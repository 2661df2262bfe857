"""Family: one root of one store, as this process has it; what all pools of that root share.

A process has one family for each location, so that it has one engine, one worker thread and one line of waiters for it.
A family lives while anybody has a handle of it (`StoreFamily.of` gives one, `let_go` takes it back).

A forked child has copies. Before their first step there `notice_fork` makes new locks and threads, empties the line,
and lets the engine forget what is the parent's. The `epoch` tells the parent's reservations from the child's.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from itertools import starmap
from threading import Lock, RLock, get_ident
from typing import Any, TypeVar
from weakref import WeakSet, WeakValueDictionary

from token_budget._process import page
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreLost
from token_budget.stores._hand import Hand
from token_budget.stores._listening import tell_news
from token_budget.stores._names import name_at, path_of
from token_budget.stores._outage import Allowing
from token_budget.stores._store import Group, Scope, Store
from token_budget.stores._waiting import Line

T = TypeVar("T")

_CLOSING = 5.0  # seconds that `let_go` waits for what the worker has yet to do, at most; see `StoreFamily.patience`
_EXITING = 1.0  # seconds that all families together may take at the end of the interpreter
_logger = logging.getLogger("token_budget")
_families: dict[str, StoreFamily] = {}  # by location; guarded by `_opening`
_alive: WeakSet[StoreFamily] = WeakSet()  # those that nobody has a handle of may have reservations yet
_turns: WeakValueDictionary[str, Turn] = WeakValueDictionary()  # by location; guarded by `_opening`
_opening = RLock()  # held for a few instructions, never while a store is asked
HERE = page()  # a page of its own: whoever finds the core's page empty marks that one
HERE[0] = 1


class Turn:
    """The right to open or close one location: one thread has it at a time, and may take it again.

    So an opening waits for the closing of the same location, which would charge what the new pool holds, and for no
    other. Signal handlers and finalisers open and close too: they run in the middle of a turn of their own thread.
    """

    __slots__ = ("__weakref__", "_lock", "_thread")

    def __init__(self) -> None:
        self._lock = Lock()
        self._thread: int | None = None

    @classmethod
    def of(cls, location: str) -> Turn:
        """Return the one of a location; it lives while anybody uses it."""
        with _opening:
            return _turns.setdefault(location, cls())

    def within(self, seconds: float, work: Callable[[], T]) -> T:
        """Call a function in a turn of this thread. Raises TimeoutError if another thread keeps it for so long."""
        me = get_ident()
        if self._thread == me:
            return work()
        # No exception of a signal handler comes between the lock and the `try`: a loop takes its item in one step.
        for held in starmap(self._lock.acquire, ((True, seconds),)):
            try:
                if not held:
                    break
                self._thread = me
                return work()
            finally:
                if self._thread == me:  # else it was passed on, or not had
                    self.give_back()
        raise TimeoutError

    def pass_on(self) -> None:
        """Leave it to another thread, which gives it back."""
        self._thread = None

    def give_back(self) -> None:
        """End it."""
        try:
            self._thread = None
        finally:
            self._lock.release()


class StoreFamily:
    """One root of one store in this process."""

    store: Store
    location: str
    hand: Hand
    line: Line
    root: Scope
    epoch: int  # grows when this process is found to be a forked child: claims of an older epoch are the parent's
    listeners: int  # how many subscribers and thresholds there are: pools without any pay one attribute load

    def __init__(self, location: str, store: Store, options: dict[str, Any]) -> None:
        self.location = location
        self.store = store
        self.options = options
        self.handles = 0  # guarded by `_opening`
        self.epoch = 0
        self.listeners = 0
        self.lock = RLock()  # guards what follows, and who listens; held for a few instructions
        self._scopes: WeakValueDictionary[str, Scope] = WeakValueDictionary()
        self._groups: WeakValueDictionary[str, Group] = WeakValueDictionary()
        self.listened: set[Scope | Group] = set()  # those that somebody listens to live on
        self.root = self.scope(store.name)
        self.hand = Hand(store)
        self.line = Line(self)
        if isinstance(store, Allowing):
            store.worried = self.hand.tend_soon
        _alive.add(self)

    # ------------------------------------------------------------------ handles

    @classmethod
    def of(cls, location: str, make_store: Callable[[], Store], **options: Any) -> StoreFamily:
        """Return the family of a location, with one handle more; `let_go` gives the handle back.

        It makes a family of a new store if this process has none of that location. ``options`` are what was asked for
        beside the location (timeout=5, ...).

        An opening of a location that another thread opens or closes waits for that, for the time-out at most.

        Raises:
            ValueError: the family of this process has other options.
            BudgetUnavailable: another thread opens or closes it, and does not come to an end.
        """
        if not HERE[0]:
            notice_fork()
        seconds = float(options.get("timeout", _CLOSING))
        try:
            return Turn.of(location).within(seconds, partial(cls._taken, location, make_store, options))
        except TimeoutError:
            known = f"{location}: another thread has been opening or closing it for {seconds:g} s"
            raise BudgetUnavailable(known) from None

    @classmethod
    def _taken(cls, location: str, make_store: Callable[[], Store], options: dict[str, Any]) -> StoreFamily:
        family = _families.get(location) or cls._made(location, make_store, options)
        if family.options != options:
            raise ValueError(_differs(location, family.options, options))
        with _opening:
            family.handles += 1
        return family

    @classmethod
    def _made(cls, location: str, make_store: Callable[[], Store], options: dict[str, Any]) -> StoreFamily:
        """Make the family of a new store."""
        store = make_store()
        try:
            family = _families.get(location)  # a finaliser of this thread may have made one meanwhile
            if family is None:
                family = _families[location] = cls(location, store, options)
        except BaseException:
            store.let_go()
            raise
        if family.store is not store:
            store.let_go()
        return family

    @property
    def patience(self) -> float:
        """How many seconds `let_go` waits for the worker: what a step may take."""
        return min(_CLOSING, float(self.options.get("timeout", _CLOSING)))

    def let_go(self, *, wait: bool = True) -> None:
        """Give one handle back. With the last one the worker does what it has yet to do, and the store lets go.

        Without ``wait`` the worker lets go of the store: for who has waited for that store in vain already.
        """
        self.here()
        with _opening:
            self.handles -= 1
            if self.handles > 0:
                return
        turn = Turn.of(self.location)
        try:
            turn.within(self.patience, partial(self._end, turn if not wait else None))
        except TimeoutError:
            self._end()

    def _end(self, turn: Turn | None = None) -> None:
        """Let go of the store, unless this location was opened or let go meanwhile. A turn is passed to the worker."""
        with _opening:
            if self.handles > 0 or _families.get(self.location) is not self:
                return
            del _families[self.location]
        try:
            self.line.close()
            if turn is None:
                self.hand.stop(self.patience)
        finally:  # also if it is interrupted: nobody else lets go
            if turn is None:
                self._let_store_go()
            else:
                turn.pass_on()
                self.hand.drop(self._end_later, turn)
                self.hand.stop(0)

    def _end_later(self, turn: Turn) -> None:
        try:
            self._let_store_go()
        finally:
            turn.give_back()

    def _let_store_go(self) -> None:
        try:
            self.store.let_go()
        except BudgetUnavailable as error:
            _logger.warning("%s was let go without an answer of the store: %s", self.location, error)

    # ------------------------------------------------------------------ scopes

    def scope(self, name: str, above: Scope | None = None) -> Scope:
        """Return the one `Scope` of a name below another (None: the root). It is not opened in the store."""
        path = path_of(None if above is None else above.path, name)
        return self._scopes.get(path) or self._one(Scope(name, path, above))

    def key(self, group: Group, key: str) -> Scope:
        """Return the one `Scope` of a key of a group."""
        path = path_of(group.above.path, group.name or "", key)
        return self._scopes.get(path) or self._one(Scope(name_at(path), path, group.above, group))

    def group(self, above: Scope, name: str | None) -> Group:
        """Return the one `Group` of a name below a scope. It is not opened in the store."""
        path = path_of(above.path, name or "", "")
        with self.lock:
            return self._groups.setdefault(path, Group(above, name, path))

    def known(self, path: str) -> Scope | None:
        """Return the scope of a path if this process has it, or has its group; else None."""
        scope = self._scopes.get(path)
        if scope is None:
            head, colon, key = path.rpartition(":")
            group = self._groups.get(f"{head}:") if colon and "/" not in key else None
            if group is not None:
                scope = self._one(Scope(name_at(path), path, group.above, group))
        return scope

    def _one(self, scope: Scope) -> Scope:
        with self.lock:
            return self._scopes.setdefault(scope.path, scope)

    # ------------------------------------------------------------------ steps of the store

    def here(self) -> int:
        """Notice a fork. Return the epoch."""
        if not HERE[0]:
            notice_fork()
        return self.epoch

    def ask(self, step: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Do one step of the store, with no lock held: notice a fork before, and pass on the news after."""
        result = self.quietly(step, *arguments, **options)
        if self.store.news:
            tell_news(self)
        return result

    def quietly(self, step: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Do the same and leave the news to the caller, who holds a lock."""
        if not HERE[0]:
            notice_fork()
        try:
            return step(*arguments, **options)
        except StoreLost:
            raise
        except BudgetUnavailable:
            self.hand.tend_soon()
            raise

    # ------------------------------------------------------------------ forks

    def forked(self) -> None:
        """In a forked child, before its first step: begin anew."""
        self.epoch += 1
        self.lock = RLock()
        self.hand.forked()
        self.line.forked()
        self.store.forked()
        self.store.news.clear()  # the parent tells its own


def notice_fork() -> None:
    """Let every family begin anew, if this is a forked child that has not done so."""
    if not HERE[0]:
        _begin_anew()


def _begin_anew() -> None:
    global _opening, _turns  # other threads of the parent may have held them
    _opening, _turns = RLock(), WeakValueDictionary()
    for family in list(_alive):
        family.forked()
    HERE[0] = 1  # last, so that the next step does again what was interrupted here


def _at_exit() -> None:
    """Let the workers do what they were given, for a moment: what was dropped is given back, not charged."""
    deadline = time.monotonic() + _EXITING
    for family in list(_families.values()):
        store: Any = family.store
        if not family.hand.finish(max(0.0, deadline - time.monotonic())):
            _logger.warning("%s: the worker had no time for all that was dropped: it is charged", family.location)
        if isinstance(store, Allowing):
            family.hand.finish(max(0.0, deadline - time.monotonic()), store.catch_up)
            store.note_lost()
            store = store._store
        if getattr(store, "leased", False):  # else it would count as living until its lease ends
            family.hand.finish(max(0.0, deadline - time.monotonic()), store.let_go)


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows
    os.register_at_fork(after_in_child=_begin_anew)
atexit.register(_at_exit)


def _differs(location: str, known: dict[str, Any], given: dict[str, Any]) -> str:
    differing = [name for name in {**known, **given} if known.get(name) != given.get(name)]
    here = ", ".join(f"{name}={known.get(name)!r}" for name in differing)
    asked = ", ".join(f"{name}={given.get(name)!r}" for name in differing)
    return f"this process has {location} open with {here}, not {asked}: say the same, or close that pool first"
