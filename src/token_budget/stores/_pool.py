"""StorePool: a budget that many processes spend from, with the API of `BudgetPool`. Its own methods spend.

Every operation has one shape: convert the amounts, do one step of the store, and then look at its answer: count in what
a join shows, tell listeners, raise. The store alone decides; this process keeps no number of a scope.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, SupportsIndex

from token_budget._arguments import checked_caps, checked_name, checked_timeout
from token_budget._errors import BudgetExceeded, PoolClosed, ReservationClosed
from token_budget._money import shown_type, to_nanos, to_tokens, usd_text
from token_budget._window import Window
from token_budget.contract import Amount, BudgetUnavailable
from token_budget.stores._areserve import AsyncStoreReserve
from token_budget.stores._errors import StoreError, StoreLost
from token_budget.stores._family import StoreFamily
from token_budget.stores._governed import Governed, Handle, stored_window
from token_budget.stores._joined import Joined
from token_budget.stores._keyed import StoreKeyedPools
from token_budget.stores._listening import heard, tell
from token_budget.stores._names import name_at, required_name
from token_budget.stores._owed import catch_up, owed_of
from token_budget.stores._refusing import overrun, pool_closed, refusal
from token_budget.stores._reservation import ASKED, COMMON_TOKENS, NEW, OPEN, StoreReservation, new_reservation
from token_budget.stores._store import GRANTED, REFUSED, REPEAT, UNKNOWN, Answer, Opened, Scope

Caps = Literal["code", "mine", "stored"]

_NO_WAIT = 0  # the default itself; any other zero is checked like the rest
_CAPS = ("code", "mine", "stored")
_logger = logging.getLogger("token_budget")


class StorePool(Governed):
    """A budget of tokens and dollars in a store, that many processes spend from at once and never oversell.

    `SQLiteBudgetPool` and `RedisBudgetPool` open one; `child`, `keyed` and `join` give further ones. The methods mean
    what those of `BudgetPool` mean. Each that asks the store blocks for at most the store's ``timeout``, and may raise
    BudgetUnavailable. The async twins run in one worker thread of the process and keep the order of their calls.
    """

    __slots__ = ()

    def __init__(self) -> None:
        raise TypeError("open a pool of a store with SQLiteBudgetPool, RedisBudgetPool or open_pool()")

    def _open(
        self,
        family: StoreFamily,
        name: Any,
        token_cap: Any,
        usd_cap: Any,
        window: Any,
        caps: Any = "code",
        create: Any = True,  # noqa: FBT002 - as the pools of the engines pass it on
    ) -> None:
        """Open the root of a family, which was just taken with a handle, and find or make it in the store.

        If that fails, the handle is given back.

        Raises:
            TypeError, ValueError: bad arguments: see `checked_opening`.
            StoreMismatch, StoreLost, StoreError, BudgetUnavailable: see `Store.open`.
        """
        handle = None
        try:
            handle = Handle(caps, owed_of(family))
            named, tokens, nanos, checked = checked_opening(name, token_cap, usd_cap, window, caps)
            self._bind(family, handle, (family.root,), ())
            opened = family.ask(family.store.open, family.root, tokens, nanos, checked, caps, create=bool(create))
        except BaseException as error:
            if handle is not None:
                handle.closed = True
            family.let_go(wait=isinstance(error, StoreLost) or not isinstance(error, BudgetUnavailable))
            raise
        log_opened(named, opened)

    @classmethod
    def _below(cls, parent: StorePool, scope: Scope) -> StorePool:
        """Make the pool of a scope below a pool."""
        pool = StorePool.__new__(StorePool)
        pool._bind(parent._family, parent._handle, (scope, *parent._chain), (parent,))
        return pool

    # ------------------------------------------------------------------ spending

    def record(self, *, tokens: SupportsIndex = 0, usd: Amount = 0, force: bool = False) -> None:
        """Add a spend, if it fits under all caps. It blocks for one step of the store.

        Args:
            tokens: how many tokens.
            usd: how many dollars.
            force: the spend has happened already: add it also when it passes a cap, and raise after.

        Raises:
            BudgetExceeded: it does not fit; nothing was changed.
            BudgetOverrun: with ``force``: it was added and a cap is passed.
            PoolClosed: without ``force``: this pool or one above it is closed.
            BudgetUnavailable: the store does not answer; nothing was changed.
            TypeError, ValueError: bad amounts; nothing was changed.
        """
        if type(tokens) is not int or not 0 <= tokens <= COMMON_TOKENS:
            tokens = to_tokens(tokens)
        self._record(tokens, to_nanos(usd), force)

    async def arecord(self, *, tokens: SupportsIndex = 0, usd: Amount = 0, force: bool = False) -> None:
        """Do what `record` does, in the family's worker thread."""
        await self._family.hand.off_loop(self._record, to_tokens(tokens), to_nanos(usd), force)

    def reserve(self, *, tokens: SupportsIndex = 0, usd: Amount = 0, timeout: float | None = 0) -> StoreReservation:
        """Hold an amount for a call that is about to be made, if it fits under all caps.

        It blocks for one step of the store, and waits for room only if it is told to (tasks use `areserve`). Use the
        answer as ``with pool.reserve(...) as reservation:``, or settle it anywhere else, exactly once. Who waits is
        served first come, first served, over all processes and hosts.

        Args:
            tokens: the most tokens that the call may use.
            usd: the most dollars that it may cost.
            timeout: how many seconds to wait for room; 0 does not wait. A number of seconds waits for room that calls
                in flight give back, and for the next period of a window if that begins in time. None waits without
                end, for calls in flight only.

        Raises:
            BudgetExceeded: it does not fit; with a timeout: it cannot fit while it would wait. Nothing was changed.
            BudgetTimeout: no room came in time; nothing was changed.
            PoolClosed: this pool or one above it is closed.
            BudgetUnavailable: the store does not answer; nothing is held.
            TypeError, ValueError: bad amounts or a bad timeout; nothing was changed.

        Warns:
            RuntimeWarning: it is about to wait in a thread whose event loop is running.
        """
        if type(tokens) is not int or not 0 <= tokens <= COMMON_TOKENS:
            tokens = to_tokens(tokens)
        nanos = to_nanos(usd)
        if timeout is not _NO_WAIT:
            timeout = checked_timeout(timeout)
        reservation = new_reservation(self, tokens, nanos)
        line = self._family.line
        ticket = timeout != 0 and line.crowded(self, tokens, nanos) and not line.serves()
        answer = self._attempt(reservation, wait=ticket)
        if answer.kind == GRANTED:
            return reservation
        if timeout == 0:
            raise self._refused(answer, tokens, nanos)
        line.wait(reservation, timeout, answer)
        return reservation

    try_reserve = reserve

    def areserve(
        self, *, tokens: SupportsIndex = 0, usd: Amount = 0, timeout: float | None = None
    ) -> AsyncStoreReserve:
        """Hold an amount, and let this task wait for room: ``await`` the answer, or use it as ``async with``.

        For asyncio and trio. The steps of the store run in the family's worker thread, in the order in which they were
        asked for. The rest is as `reserve`; bad arguments are raised at once, all else when it is awaited.
        """
        amounts = to_tokens(tokens), to_nanos(usd)
        return AsyncStoreReserve(new_reservation(self, *amounts), checked_timeout(timeout))

    def settle(self, id: str, *, tokens: SupportsIndex = 0, usd: Amount = 0) -> None:  # noqa: A002
        """Settle a reservation of any process by its ``id``, with what the call really cost.

        For one that was handed over, and to correct one that `expired` lists. A repeat of the same amounts counts once
        and raises nothing. It blocks for one step of the store.

        Raises:
            LookupError: the store knows no such reservation: it never was, or it was settled long ago.
            ReservationClosed: it was settled with other amounts, which the text tells; nothing was changed.
            BudgetOverrun: the cost passes a cap. It **is recorded**.
            BudgetUnavailable: the store does not answer; it may be recorded or not. Repeat it, it counts once.
            TypeError, ValueError: bad arguments; nothing was changed.
        """
        if not isinstance(id, str):
            raise TypeError(f"id must be a str, the id of a reservation, not {shown_type(id)}")
        count, nanos, family = to_tokens(tokens), to_nanos(usd), self._family
        answer, paths = family.ask(family.store.settle, str.__str__(id), count, nanos)
        if answer.kind == UNKNOWN:
            raise LookupError(f"the store knows no reservation {id[:100]!r}, or it was settled long ago")
        if answer.kind == REPEAT:
            if answer.counted != (count, nanos):
                before = f"tokens {answer.counted[0]:,} | usd {usd_text(answer.counted[1])}"
                raise ReservationClosed(f"reservation {id[:100]!r} was settled before: {before} were counted for it")
            return
        self._after_settle(answer, paths, count, nanos)

    # ------------------------------------------------------------------ scopes

    def child(
        self,
        token_cap: SupportsIndex | None = None,
        usd_cap: Amount | None = None,
        *,
        name: Any = None,
        window: Window | None = None,
    ) -> StorePool:
        """Return the pool of a name below this one: the same for every process that asks.

        What it spends counts against it, this one, and all above, or none. Caps and a window that are given hold from
        now on, as ``caps`` said at opening; those that are not given are what is stored. `close` ends it for all
        processes. It blocks for one step of the store.

        Raises:
            TypeError, ValueError: bad arguments, or no name: other processes find it by its name. Or this is a join.
            PoolClosed: this pool or one above it is closed.
            StoreMismatch: another living process gives other caps or another window.
            BudgetUnavailable: the store does not answer.
        """
        above, family = self._in_store("child"), self._family
        named = required_name(name, "a child of a store's pool")
        limits, checked = checked_caps(token_cap, usd_cap), stored_window(window)
        self._check_open()
        scope = family.scope(named, above)
        opened = family.ask(family.store.open, scope, *limits, checked, self._handle.how)
        log_opened(scope.name, opened)
        return self._below(self, scope)

    def keyed(
        self,
        token_cap: SupportsIndex | None = None,
        usd_cap: Amount | None = None,
        *,
        name: str | None = None,
        window: Window | None = None,
    ) -> StoreKeyedPools[StorePool]:
        """Return child pools by key, each with these caps and this window: for users, projects or runs.

        The caps hold for all keys of this name below this pool, in every process. Arguments and errors are those of
        `child`, except that the name may be left out. The name of a key's pool is the key, after this name and a colon
        if one is given.
        """
        above, family = self._in_store("keyed"), self._family
        named = None if name is None else required_name(name, "a group of keys")
        limits, checked = checked_caps(token_cap, usd_cap), stored_window(window)
        self._check_open()
        group = family.group(above, named)
        opened = family.ask(family.store.open, group, *limits, checked, self._handle.how)
        log_opened(f"{named or ''}: of {self._name}", opened)
        return StoreKeyedPools(self, group, lambda scope: self._below(self, scope))

    @staticmethod
    def join(*pools: StorePool, name: str | None = None) -> StorePool:
        """Return a pool without caps of its own that counts against all of these and what is above them, each once.

        All must be pools of one root in one store. The join has no scope of its own there: its snapshot shows what this
        object has used and holds, and it has no children.

        Raises:
            TypeError: something is no pool of a store.
            ValueError: no pools, or pools of several roots.
            PoolClosed: one of the pools, or one above it, is closed.
        """
        for pool in pools:
            if not isinstance(pool, StorePool):
                advice = ": write join(*pools)" if isinstance(pool, (list, tuple, set)) else ""
                raise TypeError(f"join takes pools of a store, not {type(pool).__name__}{advice}")
        if not pools:
            raise ValueError("join needs at least one pool")
        first = pools[0]
        if any(pool._family is not first._family for pool in pools):
            raise ValueError("join takes pools of one root in one store: make them with child() or keyed()")
        named = checked_name(name)
        for pool in pools:
            pool._check_open()
        return StorePool._to_record(*pools, name=named)

    @staticmethod
    def _to_record(*pools: StorePool, name: str | None = None) -> StorePool:
        """Join pools of one root. Some may be closed: then ``record(..., force=True)`` alone works."""
        first, joined = pools[0], StorePool.__new__(StorePool)
        scopes = dict.fromkeys(scope for pool in pools for scope in pool._chain[:-1])
        own = Joined(first._family, name)
        joined._bind(first._family, first._handle, (*scopes, first._chain[-1]), pools, own)
        return joined

    # ------------------------------------------------------------------ the steps

    def _record(self, tokens: int, nanos: int, force: bool) -> None:  # noqa: FBT001
        family, own = self._family, self._own
        if not force and (self._handle.closed or own is not None):
            self._refuse_here(tokens, nanos)
        if self._handle.owed:
            catch_up(self._handle.owed)
        listened = family.listeners and heard(self._heard)
        try:
            answer = family.ask(family.store.record, self._chain, tokens, nanos, force=bool(force), rows=bool(listened))
        except PoolClosed:
            self._tell_refusal(tokens, nanos)
            raise
        if answer.kind == REFUSED:
            raise self._refused(answer, tokens, nanos)
        if own is not None:
            own.spend(tokens, nanos)
        error = overrun(self._chain, answer.rows, tokens, tokens, nanos, nanos) if force and answer.rows else None
        if listened:
            self._tell("record", tokens, nanos, answer.rows)
            if error is not None:
                self._tell("overrun", tokens, nanos, answer.rows)
        if error is not None:
            raise error

    def _attempt(self, reservation: StoreReservation, *, wait: bool = False) -> Answer:
        """Ask the store once to hold what a reservation is for: it is open after GRANTED, and listeners are told.

        Whoever is interrupted meanwhile leaves it `ASKED`: then its finaliser has the claim cancelled.
        """
        family, before = self._family, reservation._state
        tokens, nanos = reservation._tokens, reservation._nanos
        if self._handle.closed or self._own is not None:
            self._refuse_here(tokens, nanos)
        if self._handle.owed and not wait:
            catch_up(self._handle.owed)
        listened = family.listeners and heard(self._heard)
        reservation._state = ASKED
        try:
            answer: Answer = family.ask(
                family.store.reserve, self._chain, reservation._key, tokens, nanos, wait=wait, rows=bool(listened)
            )
        except PoolClosed:
            reservation._state = before  # nothing was changed, as after the next two
            self._tell_refusal(tokens, nanos)
            raise
        except (BudgetUnavailable, StoreError):
            reservation._state = before
            raise
        if answer.kind == GRANTED:
            self._granted(reservation, answer, listened=bool(listened))
        elif not wait:
            reservation._state = NEW
        return answer

    def _granted(self, reservation: StoreReservation, answer: Answer, *, listened: bool) -> None:
        """Note that the store holds what a reservation is for, and tell listeners."""
        if self._own is not None:  # before the state: an open one is in its numbers
            self._own.hold(reservation._key, reservation._tokens, reservation._nanos)
        reservation._state = OPEN
        hand = self._family.hand
        if not hand.begun:
            hand.begin()
        if listened:
            self._tell("reserve", reservation._tokens, reservation._nanos, answer.rows)

    def _refused(
        self, answer: Answer, tokens: int, nanos: int, kind: type[BudgetExceeded] = BudgetExceeded
    ) -> Exception:
        """Tell listeners of a refusal, and return its error."""
        family = self._family
        if family.listeners and heard(self._heard):
            self._tell("refusal", tokens, nanos, answer.rows)
        return refusal(self._chain, answer.rows, answer.at, tokens, nanos, kind)

    def _tell_refusal(self, tokens: int, nanos: int) -> None:
        """Tell listeners of a refusal by a scope that is closed."""
        if self._family.listeners and heard(self._heard):
            self._tell("refusal", tokens, nanos)

    def _refuse_here(self, tokens: int, nanos: int) -> None:
        """Refuse a request where the pool was closed in this process alone."""
        try:
            self._check_here()
        except PoolClosed:
            if not self._handle.closed:  # else the store is let go, and is not asked for numbers to tell
                self._tell_refusal(tokens, nanos)
            raise

    def _check_open(self) -> None:
        """Raise PoolClosed where this process knows that something is closed."""
        self._check_here()
        for scope in self._chain:
            if scope.closed:
                raise pool_closed(scope.name)

    def _check_here(self) -> None:
        """Raise PoolClosed where the pool was closed in this process alone: an opened root, or a join."""
        if self._own is not None and self._own.scope.closed:
            raise pool_closed(self._name)
        if self._handle.closed:
            name = self._chain[-1].name
            raise PoolClosed(f"pool {name!r} was closed in this process: open it again to spend from it")

    def _after_settle(self, answer: Answer, paths: Sequence[str], tokens: int, nanos: int) -> None:
        """Tell who listens of what `settle` did, and raise if it took a scope over a cap."""
        family, held = self._family, answer.counted
        known = [family.known(path) for path in paths]
        chain = [scope or Scope(name_at(path), path) for scope, path in zip(known, paths, strict=True)]
        more = tokens - held[0], nanos - held[1]
        error = overrun(chain, answer.rows, tokens, more[0], nanos, more[1]) if answer.rows else None
        told = [scope for scope in known if scope is not None]
        if family.listeners and heard(told):
            tell(family, told, "commit", chain[0].name, tokens, nanos)
            if error is not None:
                tell(family, told, "overrun", chain[0].name, tokens, nanos)
        family.line.stir(chain)
        if error is not None:
            raise error


# ---------------------------------------------------------------------- opening


def checked_opening(
    name: Any, token_cap: Any, usd_cap: Any, window: Any, caps: Any
) -> tuple[str, int | None, int | None, Window | None]:
    """Return the name, the caps in tokens and nanodollars, and the window of a pool that is to be opened.

    For the pools of the engines, before they touch a file or a server.

    Raises:
        TypeError: one is of another type.
        ValueError: there is no name, or a value is none that a store takes.
    """
    if caps not in _CAPS:
        raise ValueError('caps must be "code", "mine" or "stored"')
    return required_name(name, "a pool of a store"), *checked_caps(token_cap, usd_cap), stored_window(window)


def log_opened(name: str, opened: Opened) -> None:
    """Log what the code has changed in the store by opening a pool."""
    for what, stored, given in opened.changed:
        shown = usd_text if what == "nano_cap" else str
        _logger.warning(
            "pool %r: the store had %s %s, and has %s from now on, for all processes: so says the code of this one",
            name,
            "usd_cap" if what == "nano_cap" else what,
            None if stored is None else shown(stored),
            None if given is None else shown(given),
        )
