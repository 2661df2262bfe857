"""StoreReservation: what one call holds in a store, until it commits or releases it.

What always holds of one:

* Its key exists before the store is asked to hold anything. So whoever is interrupted leaves an object that knows what
  it may hold, and the finaliser has the family's worker cancel that.
* Its lock is held while it is settled. So it is settled once in this process, whatever threads race, and it is open
  again where the store could not answer.
* Once a commit was tried, the amount is never given back by leaving the block or by dropping the reservation: the store
  may have counted it, and the call was made. It is committed again instead, which counts once.
"""

from __future__ import annotations

import logging
import sys
import warnings
from threading import RLock
from types import TracebackType
from typing import Any, NoReturn, SupportsIndex

from token_budget._errors import ReservationClosed
from token_budget._money import shown_type, to_nanos, to_tokens, to_usd, usd_text
from token_budget.contract import Amount, BudgetUnavailable
from token_budget.stores._errors import StoreError
from token_budget.stores._listening import heard, tell_news
from token_budget.stores._owed import Debt, owe
from token_budget.stores._refusing import overrun
from token_budget.stores._store import DONE, LATE, REPEAT, SETTLED, UNKNOWN, Answer

# The states.
NEW = "new"  # it holds nothing
ASKED = "asked for"  # a reserve is under way or was interrupted, or it waits: it may hold something
OPEN = "in flight"
COMMITTED = "committed"
RELEASED = "released"
HANDED = "handed over"  # it lives on in the store, on its own
ELSEWHERE = "settled elsewhere"  # by `settle`
DROPPED = "dropped"  # released because nobody held it any more

COMMON_TOKENS = 10**9  # amounts up to this are checked inline

_LONGEST_LEASE = 366 * 86_400.0

_new = object.__new__
_logger = logging.getLogger("token_budget")


class StoreReservation:
    """Capacity held for one call in a store. ``reserve`` makes it; it ends committed or released, exactly once.

    Use it as ``with`` or ``async with``, or settle it by hand, from any thread. One that is dropped unsettled is given
    back by a worker thread, with a ResourceWarning. One that is open when its process ends, however that ends, is
    charged in full and listed by ``pool.expired()``: the provider may bill the call.
    """

    __slots__ = ("__weakref__", "_epoch", "_key", "_lock", "_nanos", "_pool", "_state", "_tokens", "_tried")
    _pool: Any
    _key: Any  # what identifies it to the store
    _tokens: int
    _nanos: int
    _state: str
    _epoch: int  # of the family, as it was made: another one says that this is a copy in a forked child
    _lock: Any
    _tried: tuple[int, int] | None  # the amounts of a commit that the store may have counted, and has not answered

    def __init__(self) -> None:
        raise TypeError("a StoreReservation is made by reserve(), try_reserve() or areserve()")

    # ------------------------------------------------------------------ settling

    def commit(self, *, tokens: SupportsIndex | None = None, usd: Amount | None = None) -> None:
        """Record the real cost and give back the rest. With no amounts: it cost what was reserved.

        The real cost is recorded whatever it is. Call it also for a call that failed after it was sent, with what the
        provider bills for it. It blocks for one step of the store; in an event loop use `acommit`.

        Raises:
            BudgetOverrun: the cost is above the reservation and passes a cap. It **is recorded**.
            ReservationClosed: committed or released before, or by ``settle`` elsewhere; nothing was changed.
            BudgetUnavailable: the store does not answer. The cost may be recorded or not, and the reservation is still
                open: repeat the same commit, it counts once. If nobody does, it is repeated after the reservation is
                dropped, until the process ends.
            TypeError, ValueError: bad amounts; nothing was changed, the reservation is still open.
        """
        self._commit(*self._amounts(tokens, usd))

    async def acommit(self, *, tokens: SupportsIndex | None = None, usd: Amount | None = None) -> None:
        """Do what `commit` does, in the family's worker thread. A task that is cancelled here has committed."""
        amount = self._amounts(tokens, usd)
        tried, self._tried = self._tried, amount  # already: the worker may refuse it without a try
        try:
            await self._pool._family.hand.off_loop(self._commit, *amount)
        except StoreError:
            self._tried = tried
            raise

    def release(self) -> None:
        """Give back what is reserved: the call was not made. Does nothing when it is settled already.

        It blocks for one step of the store; in an event loop use `arelease`.

        Raises:
            BudgetUnavailable: the store does not answer. The reservation is still open, and may be released again.
        """
        pool, tokens, nanos = self._pool, self._tokens, self._nanos
        family = pool._family
        if not self._is_open(family.here()):  # before the lock, which another thread may have held at a fork
            return
        listened = family.listeners and heard(pool._heard)
        with self._lock:
            if self._state is not OPEN:
                return
            answer: Answer = family.quietly(
                family.store.release, pool._chain, self._key, (tokens, nanos), rows=bool(listened)
            )
            state, counted = RELEASED, (0, 0)
            if answer.kind == SETTLED:
                state = ELSEWHERE
                if self._tried is not None:  # a commit that got no answer had been done
                    state, counted = COMMITTED, self._tried
            if pool._own is not None:  # before the state: it may be repeated
                pool._own.settle(self._key, *counted)
            self._state = state
        if family.store.news:
            tell_news(family)
        if answer.kind != DONE:
            _log_odd(self, answer.kind, "release")
        if listened and answer.kind in {DONE, LATE}:
            pool._tell("release", tokens, nanos, answer.rows)
        family.line.stir(pool._chain)  # after it is told, so that listeners hear of it before what it makes room for

    async def arelease(self) -> None:
        """Do what `release` does, in the family's worker thread."""
        if not self.completed:
            await self._pool._family.hand.off_loop(self.release)

    def hand_over(self, lease: float = 3600) -> StoreReservation:
        """Give it a life of its own in the store, and return it with its new `id`.

        Any process settles it with ``pool.settle(reservation.id, ...)``. It outlives this process. After ``lease``
        seconds it is charged in full and listed by ``pool.expired()``; a `settle` after that corrects it. Here it can
        be committed and released no more.

        Raises:
            TypeError, ValueError: the lease is no number of seconds above 0; nothing was changed.
            ReservationClosed: it is settled, the store has charged it in full already, or a commit got no answer.
            BudgetUnavailable: the store does not answer; nothing was changed.

        Example:
            >>> reservation = pool.reserve(usd=0.5).hand_over(lease=3600)  # doctest: +SKIP
            >>> queue.put(reservation.id)  # doctest: +SKIP
        """
        seconds, pool = _checked_lease(lease), self._pool
        family = pool._family
        if not self._is_open(family.here()):
            raise self._closed("hand over")
        with self._lock:
            if self._state is not OPEN:
                raise self._closed("hand over")
            if self._tried is not None:
                raise ReservationClosed(f"cannot hand over {self!r}: a commit of it got no answer, so repeat that")
            held = (self._tokens, self._nanos)
            try:
                key = family.quietly(family.store.hand_over, pool._chain, self._key, held, seconds)
            except LookupError:
                raise ReservationClosed(
                    f"cannot hand over {self!r}: the store has charged it in full; pool.expired() lists it"
                ) from None
            if pool._own is not None:
                pool._own.settle(self._key, 0, 0)
            self._key, self._state = key, HANDED
        if family.store.news:
            tell_news(family)
        return self

    def _commit(self, tokens: int, nanos: int) -> None:
        pool, amount = self._pool, (tokens, nanos)
        family = pool._family
        if not self._is_open(family.here()):  # before the lock, which another thread may have held at a fork
            if self._state is DROPPED and self._epoch == family.epoch:
                self._commit_dropped(tokens, nanos)
                return
            raise self._closed("commit")
        listened = family.listeners and heard(pool._heard)
        with self._lock:
            if self._state is not OPEN:
                raise self._closed("commit")
            before, self._tried = self._tried, amount
            held = (self._tokens, self._nanos)
            try:
                answer: Answer = family.quietly(
                    family.store.commit, pool._chain, self._key, held, amount, rows=bool(listened)
                )
            except StoreError:
                self._tried = before  # nothing was changed
                raise
            kind = answer.kind
            counted = answer.counted if kind in {REPEAT, SETTLED} else amount
            if pool._own is not None:  # before the state: it may be repeated
                pool._own.settle(self._key, *counted)
            self._state = ELSEWHERE if kind == SETTLED else COMMITTED
            if kind == SETTLED or counted != amount:
                raise self._counted(answer)
        if family.store.news:
            tell_news(family)
        if kind != DONE:
            _log_odd(self, kind, "commit")
        if answer.rows or listened:
            held = (0, 0) if kind == UNKNOWN else (self._tokens, self._nanos)
            self._after_commit(answer, tokens, nanos, held, listened=bool(listened))
        else:
            family.line.stir(pool._chain)

    def _commit_dropped(self, tokens: int, nanos: int) -> None:
        """Count a cost where the collector finalised the reservation before what commits it: a generator, say."""
        pool, family = self._pool, self._pool._family
        listened = family.listeners and heard(pool._heard)
        with self._lock:
            if self._state is not DROPPED:
                raise self._closed("commit")
            answer: Answer = family.quietly(
                family.store.record, pool._chain, tokens, nanos, force=True, rows=bool(listened)
            )
            self._state = COMMITTED
        if pool._own is not None:
            pool._own.spend(tokens, nanos)
        self._after_commit(answer, tokens, nanos, (0, 0), listened=bool(listened))

    def _after_commit(self, answer: Answer, tokens: int, nanos: int, held: tuple[int, int], *, listened: bool) -> None:
        """Tell who listens, and raise if what is above ``held`` took a scope over a cap."""
        pool = self._pool
        more = tokens - held[0], nanos - held[1]
        error = overrun(pool._chain, answer.rows, tokens, more[0], nanos, more[1]) if answer.rows else None
        if listened:
            pool._tell("commit", tokens, nanos, answer.rows)
            if error is not None:
                pool._tell("overrun", tokens, nanos, answer.rows)
        pool._family.line.stir(pool._chain)
        if error is not None:
            raise error

    def _amounts(self, tokens: SupportsIndex | None, usd: Amount | None) -> tuple[int, int]:
        if tokens is None:
            tokens = self._tokens
        elif type(tokens) is not int or not 0 <= tokens <= COMMON_TOKENS:
            tokens = to_tokens(tokens)
        return tokens, self._nanos if usd is None else to_nanos(usd)

    # ------------------------------------------------------------------ looking

    @property
    def id(self) -> str:
        """Text without spaces that names it in the store: what ``pool.settle`` takes, in any process."""
        return self._pool._family.store.id_of(self._key)  # type: ignore[no-any-return]

    @property
    def reserved_tokens(self) -> int:
        """The tokens that were reserved, also after settling."""
        return self._tokens

    @property
    def reserved_usd(self) -> float:
        """The dollars that were reserved, also after settling."""
        return to_usd(self._nanos)

    @property
    def reserved_usd_nanos(self) -> int:
        """`reserved_usd` in nanodollars, exactly."""
        return self._nanos

    @property
    def completed(self) -> bool:
        """True once it is committed or released, as far as this process knows, or handed over."""
        return not self._is_open(self._pool._family.epoch)

    def _is_open(self, epoch: int) -> bool:
        """Return whether it holds its amount. In a forked child, which has another epoch, the parent's hold nothing."""
        return self._state is OPEN and self._epoch == epoch

    # ------------------------------------------------------------------ as a block

    def __enter__(self) -> StoreReservation:
        """Return itself. Raises ReservationClosed where it holds nothing any more."""
        if not self._is_open(self._pool._family.epoch):
            raise self._closed("enter")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release, unless it was settled in the block, or a commit was tried there that the store did not answer.

        Where the store does not answer, the family's worker gives it back later.
        """
        if self._state is OPEN and self._tried is None:
            try:
                self.release()
            except BudgetUnavailable:
                self._release_later()

    async def __aenter__(self) -> StoreReservation:
        """Do what ``__enter__`` does; never suspends."""
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Do what ``__exit__`` does, in the family's worker thread."""
        if self._state is OPEN and self._tried is None:
            try:
                await self.arelease()
            except BudgetUnavailable:
                self._release_later()

    # ------------------------------------------------------------------ interrupted and dropped

    def _abandon(self) -> None:
        """Note that it holds nothing, of one whose waiting was cut short: who calls this cancels the claim."""
        if self._pool._own is not None:
            self._pool._own.settle(self._key, 0, 0)
        self._state = RELEASED

    def _release_later(self) -> None:
        _logger.warning("the store does not answer: %r is given back when it does", self)
        self._leave_to_worker(RELEASED, "release")

    def _leave_to_worker(self, state: str, kind: str | None) -> None:
        """Have the claim cancelled, and that be told, soon. It may be called at any point of any thread."""
        self._owe(kind, None)
        self._state = state

    def _owe(self, kind: str | None, amount: tuple[int, int] | None) -> None:
        held = (self._tokens, self._nanos)
        owe(self._pool._handle.owed, Debt(self._pool, self._epoch, self._key, held, kind, amount))

    def __del__(self) -> None:
        """Hand what was never settled to the worker. It runs anywhere, so it takes no lock and asks no store."""
        try:
            state, tried, pool, epoch = self._state, self._tried, self._pool, self._epoch
            family = pool._family
        except AttributeError:  # whoever was making it was interrupted
            return
        if state not in {OPEN, ASKED} or epoch != family.epoch:
            return
        if tried is not None:
            self._owe(None, tried)
            return
        if state is OPEN:
            self._leave_to_worker(DROPPED, "drop")
        else:
            self._leave_to_worker(NEW, None)
        if state is OPEN and not sys.is_finalizing():
            warnings.warn(f"{self._shown(OPEN)} was dropped: commit() or release() it", ResourceWarning, 2, source=self)

    # ------------------------------------------------------------------ as an object

    def __repr__(self) -> str:
        try:
            state = self._state
            forked = state is OPEN and self._epoch != self._pool._family.epoch
        except AttributeError:
            return "<StoreReservation, half made>"
        return self._shown("closed by a fork" if forked else state)

    def _shown(self, status: str) -> str:
        where = "" if self._pool._name is None else f" in {self._pool._name!r}"
        return f"<StoreReservation{where} tokens {self._tokens:,} | usd {usd_text(self._nanos)} | {status}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            "a StoreReservation cannot be copied or pickled: it would be settled twice. hand_over() it, pass its id to "
            "another process, and settle(id, ...) it there"
        )

    def _closed(self, attempt: str) -> ReservationClosed:
        state = self._state
        if state is OPEN:
            return ReservationClosed(f"cannot {attempt} {self!r}: it was in flight at a fork; the parent holds it")
        if state is HANDED:
            return ReservationClosed(f"cannot {attempt} {self!r}: settle it with pool.settle({self.id!r}, ...)")
        advice = "; a call that was billed after that is counted by record(..., force=True)"
        return ReservationClosed(f"cannot {attempt} {self!r}: it was {state} before{advice}")

    def _counted(self, answer: Answer) -> ReservationClosed:
        tokens, nanos = answer.counted
        how = "by settle()" if answer.kind == SETTLED else "by an earlier commit that got no answer"
        return ReservationClosed(
            f"cannot commit {self!r}: tokens {tokens:,} | usd {usd_text(nanos)} were counted for it {how}"
        )


def new_reservation(pool: Any, tokens: int, nanos: int) -> StoreReservation:
    """Return a reservation that holds nothing yet."""
    reservation = _new(StoreReservation)
    family = pool._family
    reservation._pool = pool
    reservation._tokens = tokens
    reservation._nanos = nanos
    reservation._tried = None
    reservation._epoch = family.here()
    reservation._key = family.store.new_key()
    reservation._lock = RLock()
    reservation._state = NEW
    return reservation


def _log_odd(reservation: StoreReservation, kind: str, attempt: str) -> None:
    """Log the answer to a commit or release that says that something has happened to the claim before."""
    if kind == LATE:
        _logger.warning(
            "the %s of %r came late: it had been charged in full, and is corrected now", attempt, reservation
        )
    elif kind == UNKNOWN and attempt == "commit":
        _logger.warning("the store had lost %r: its cost is counted all the same", reservation)
    elif kind == UNKNOWN:
        _logger.warning("the store does not know %r: there was nothing to give back", reservation)


def _checked_lease(lease: Any) -> float:
    kind = type(lease)
    if issubclass(kind, bool) or not issubclass(kind, (int, float)):
        raise TypeError(f"lease must be a number of seconds, not {shown_type(lease)}")
    seconds = float(int.__index__(lease)) if issubclass(kind, int) else float.__float__(lease)
    if not 0 < seconds <= _LONGEST_LEASE:
        raise ValueError("lease must be a number of seconds above 0 and at most 366 days")
    return seconds
