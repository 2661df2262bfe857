"""Reservation: what one call holds, until it commits or releases it.

Its methods are the straight runs (`_straight.py`) of a pool that stands alone; everything else is handed on.
"""

# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false
# pyright cannot know that the body of `for _ in family.locked` runs exactly once; mypy checks the operators here.

from __future__ import annotations

import sys
import warnings

from token_budget import _ledger, _straight
from token_budget._errors import ReservationClosed
from token_budget._family import inside
from token_budget._ledger import COMMITTED, RELEASED
from token_budget._money import to_nanos, to_tokens, to_usd, usd_text
from token_budget._scope import Claim

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    import decimal
    import fractions
    import types
    import typing
    from typing import Any
else:
    from token_budget._lazy import decimal, fractions, types, typing

COMMON_TOKENS = 10**9  # amounts up to this are checked inline, which is quickest for ints of one digit of CPython's


class Reservation(Claim):
    """Capacity held for one call. ``BudgetPool.reserve`` makes it; it ends committed or released, exactly once.

    Use it as ``with`` or ``async with``, or settle it by hand, from any thread. One that is dropped unsettled is
    released at the pool's next operation, or at once if somebody waits, with a ResourceWarning (which says where it was
    made, under tracemalloc).

    Python limits this in two ways. Ctrl-C that arrives just as the block is left, before ``__exit__`` has given the
    amount back, leaves it in flight until the last reference to the reservation is gone. And Ctrl-C that arrives just
    as an unsettled one is dropped is lost in its finaliser, and with it the capacity.
    """

    __slots__ = ()

    def __init__(self) -> None:
        raise TypeError("a Reservation is made by BudgetPool.reserve(), try_reserve() or areserve()")

    def commit(
        self,
        *,
        tokens: typing.SupportsIndex | None = None,
        usd: float | decimal.Decimal | fractions.Fraction | None = None,
    ) -> None:
        """Record what the call really cost and give back the rest. With no amounts: it cost what was reserved.

        The real cost is recorded whatever it is. Call it also for a call that failed after it was sent, with what
        the provider bills for it: most bill a call that timed out.

        Raises:
            BudgetOverrun: the cost is above the reservation and passes a cap. It **is recorded**.
            ReservationClosed: committed or released before; nothing was changed.
            TypeError, ValueError: bad amounts (see `BudgetPool`); nothing was changed, the reservation is still open.
            PoolForked: in a forked child, before `BudgetPool.detach`.
        """
        pool = self._pool
        held_tokens = self._tokens
        held_nanos = self._nanos
        if tokens is None:
            tokens = held_tokens
        elif type(tokens) is not int or not 0 <= tokens <= COMMON_TOKENS:
            tokens = to_tokens(tokens)
        nanos = held_nanos if usd is None else to_nanos(usd)
        family = pool._home
        if family.pending:
            if _straight.settle(pool._family.spending, pool._times, self, tokens, nanos, COMMITTED):
                return None
        else:
            account = pool._account
            for _ in family.spending:
                try:
                    tokens_after = account.tokens_claimed - held_tokens + tokens
                    nanos_after = account.nanos_claimed - held_nanos + nanos
                    if (
                        self._state is family.opened
                        and tokens_after <= account.token_bound
                        and nanos_after <= account.nano_bound
                    ):
                        tokens_reserved = account.tokens_reserved - held_tokens
                        nanos_reserved = account.nanos_reserved - held_nanos
                        in_flight = account.in_flight - 1
                        account.tokens_claimed = tokens_after
                        account.nanos_claimed = nanos_after
                        account.tokens_reserved = tokens_reserved
                        account.nanos_reserved = nanos_reserved
                        account.in_flight = in_flight
                        self._state = COMMITTED
                        return None
                finally:
                    family.lock.release()
                break
        return _ledger.commit(self, tokens, nanos, self._closed_at_commit)

    def release(self) -> None:
        """Give back what is reserved: the call was not made. Does nothing when it is settled already.

        Works in a forked child, on that child's copy.
        """
        pool = self._pool
        family = pool._home
        if family.pending:
            if _straight.settle(pool._family.locked, None, self, 0, 0, RELEASED):
                return None
        else:
            account = pool._account
            for _ in family.locked:
                try:
                    tokens_after = account.tokens_claimed - self._tokens
                    nanos_after = account.nanos_claimed - self._nanos
                    if (
                        self._state is family.opened
                        and tokens_after <= account.token_bound
                        and nanos_after <= account.nano_bound
                    ):
                        tokens_reserved = account.tokens_reserved - self._tokens
                        nanos_reserved = account.nanos_reserved - self._nanos
                        in_flight = account.in_flight - 1
                        account.tokens_claimed = tokens_after
                        account.nanos_claimed = nanos_after
                        account.tokens_reserved = tokens_reserved
                        account.nanos_reserved = nanos_reserved
                        account.in_flight = in_flight
                        self._state = RELEASED
                        return None
                finally:
                    family.lock.release()
                break
        return _ledger.release(self)

    async def acommit(
        self,
        *,
        tokens: typing.SupportsIndex | None = None,
        usd: float | decimal.Decimal | fractions.Fraction | None = None,
    ) -> None:
        """Do what `commit` does. It never suspends; the pools of a store may."""
        self.commit(tokens=tokens, usd=usd)

    async def arelease(self) -> None:
        """Do what `release` does. It never suspends; the pools of a store may."""
        self.release()

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
        """True once it is committed or released."""
        return self._state is not self._pool._family.opened

    def __enter__(self) -> Reservation:
        """Return itself. Raises ReservationClosed where it holds nothing any more."""
        if self._state is not self._pool._family.opened:
            raise self._closed("enter")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
    ) -> None:
        """Release, unless it was settled in the block."""
        if self._state is self._pool._family.opened:
            self.release()

    async def __aenter__(self) -> Reservation:
        """Do what ``__enter__`` does; never suspends."""
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
    ) -> None:
        """Do what ``__exit__`` does; never suspends."""
        if self._state is self._pool._family.opened:
            self.release()

    def __del__(self) -> None:
        """Hand what was never settled to the pool. Runs anywhere, so it does not rely on getting the lock."""
        try:
            family = self._pool._family
            dropped = self._state is family.opened
        except AttributeError:  # whoever was making it was interrupted
            return
        if dropped:
            family.owed.append(self)
            if family.root.line is not None:
                family.pay_waiters()
            if inside():
                family.owed.append(_Warning(self))  # a warning may take a lock that somebody holds who waits for ours
            elif not sys.is_finalizing():  # pragma: no branch - the end of the interpreter is not measured
                _warn(self, repr(self))

    def __repr__(self) -> str:
        try:
            state, pool = self._state, self._pool
            family, name = pool._family, pool._account.terms[2]
        except AttributeError:
            return "<Reservation, half made>"
        status = "in flight" if state is family.opened else state if isinstance(state, str) else "closed by a fork"
        where = "" if name is None else f" in {name!r}"
        return f"<Reservation{where} tokens {self._tokens:,} | usd {usd_text(self._nanos)} | {status}>"

    def __reduce_ex__(self, protocol: typing.SupportsIndex) -> typing.NoReturn:
        raise TypeError(
            "a Reservation cannot be copied or pickled: it would be settled twice. Settle this one, in the process "
            "that made it"
        )

    def _pay(self, takes: typing.Any) -> None:
        """Release what was dropped: see `Family.pay`."""
        _ledger.drop(self, takes)

    def _paid(self) -> bool:
        """Return whether what was dropped is released."""
        return self.completed

    def _closed_at_commit(self) -> ReservationClosed:
        return self._closed("commit")

    def _closed(self, attempt: str) -> ReservationClosed:
        state = self._state
        if not isinstance(state, str):
            return ReservationClosed(f"cannot {attempt} {self!r}: it was in flight at a fork; the parent holds it")
        advice = "; a call that was billed after that is counted by record(..., force=True)"
        return ReservationClosed(f"cannot {attempt} {self!r}: it was {state} before{advice}")


class _Warning:
    """A warning of a reservation that was dropped inside an operation of its own thread.

    It is owed (`Family.pay`), and given as it leaves, without the lock: by its finaliser, so that it is given once, and
    that a warning which is made an error stops no operation.
    """

    __slots__ = ("_reservation", "_text")
    _teller = None  # anybody may pay it

    def __init__(self, reservation: Reservation) -> None:
        self._reservation = reservation
        self._text = repr(reservation)

    def _pay(self, _takes: object) -> None:
        pass

    def _paid(self) -> bool:
        return True

    def __del__(self) -> None:
        _warn(self._reservation, self._text)


def _warn(reservation: Reservation, text: str) -> None:
    warnings.warn(f"{text} was dropped: commit() or release() it", ResourceWarning, 3, source=reservation)


def new_reservation(pool: Any, tokens: int, nanos: int) -> Reservation:
    """Return a reservation that holds nothing yet."""
    reservation = Reservation.__new__(Reservation)
    reservation._pool = pool
    reservation._tokens = tokens
    reservation._nanos = nanos
    reservation._state = None
    return reservation
