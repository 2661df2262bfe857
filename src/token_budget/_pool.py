"""The pool: one lock, what it guards, and the operations.

Every operation has one shape: convert the amounts; take the lock; decide; change everything in one run of stores; let
go; only then raise. Between the taking of the lock and its release there is no call, no loop and no new container.
CPython switches threads, delivers signals and pending exceptions, and starts the garbage collector at such places only.
So no exception can cut a change in half, no signal handler or finaliser of a thread can find the lock held by that same
thread, and no thread loses the processor while it holds the lock. That serves speed and robustness; mutual exclusion
itself comes from the lock alone, and holds on builds without the GIL too. (On CPython 3.10 a taken jump is such a place
as well: see `_new_lock`. And a tracer or profiler written in Python is code that runs anywhere: under one, signal
handlers that use the pool may find the lock held.)

What always holds while the lock is free, on each axis:

* ``0 <= reserved <= claimed``: claimed is used + reserved.
* ``reserved`` is the sum over the reservations whose state is the pool's ``_open``, and ``in_flight`` is their number.
* ``claimed <= bound``, but for spends that had happened already (an overrun).
"""

# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false
# pyright cannot know that the body of `for _ in self._locked` runs exactly once, nor that what it computes is therefore
# no "Unbound" in the comparison after it; mypy checks the operators here.

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections import deque
from itertools import repeat, starmap
from weakref import WeakValueDictionary

from token_budget._errors import BudgetExceeded, BudgetOverrun, PoolForked, ReservationClosed, checked_name
from token_budget._money import to_nanos, to_tokens, to_usd, usd_text
from token_budget._snapshot import BudgetSnapshot

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from decimal import Decimal
    from fractions import Fraction
    from types import TracebackType
    from typing import Any, NoReturn, SupportsIndex

_new = object.__new__
_UNBOUNDED = 1 << 256  # stands for "no cap": 10**59 spends of the largest amount would not reach it
_COMMON_TOKENS = 10**9  # amounts up to this are checked inline, which is quickest for ints of one digit of CPython's

# The seam through which tests put a lock of their own. CPython 3.10 also delivers signals at taken conditional jumps,
# which the refusing branch of an operation needs: a handler may then find the lock held by its own thread, between two
# operations of that thread as it were, and may enter.
_new_lock: Callable[[], Any] = threading.RLock if sys.version_info < (3, 11) else threading.Lock


def _taking(lock: Any) -> Iterator[object]:
    """Return an endless iterator whose every step takes the lock: the one trick of this module.

    ``for _ in self._locked: try: ... finally: self._lock.release()``, then ``break``, does what ``with lock:`` does.
    Every operation here is built on it, for `with` looks up and calls two methods and makes the whole of `record` a
    third slower (benchmarks/README.md).
    ``lock.acquire()`` before a ``try`` would be as fast and wrong: an exception delivered between the two (Ctrl-C, a
    cancelled thread) leaves the lock held for ever. Between a step of an iterator written in C and the ``try`` in the
    loop's body CPython delivers none. The body runs once: it ends in ``return`` or ``break``.
    """
    return starmap(lock.acquire, repeat(()))


class BudgetPool:
    """A budget of tokens and dollars that any number of threads and tasks spend from at once, and never oversell.

    Ask before you spend (`reserve`), then say what it really cost (`Reservation.commit`) or give it back (leave the
    ``with`` block). `record` does both at once for a cost that is known. What does not fit raises `BudgetExceeded` and
    changes nothing. Amounts are keyword-only: ``tokens`` is an integer up to 10**18, ``usd`` an int, float, Decimal or
    Fraction up to 10**9, rounded half to even to nanodollars and counted exactly.

    No method waits for anything but the lock, which is never held longer than a few additions take: all may be called
    from an event loop. All may be called from a signal handler or a finaliser. A pool cannot be copied or pickled; in
    a forked child it refuses to spend until `detach`.

    Args:
        token_cap: the most tokens that may be used and reserved together; None for no cap.
        usd_cap: the same in dollars.
        name: what errors and displays call the pool, at most 200 characters.

    Raises:
        TypeError: a cap is no number of its kind (bool and text are none), or the name is no text.
        ValueError: a cap is negative, NaN, infinite or too large, or the name is too long.

    Example:
        >>> from token_budget import BudgetPool
        >>> pool = BudgetPool(token_cap=10_000, usd_cap=0.50)
        >>> with pool.reserve(tokens=2_000, usd=0.012) as reservation:
        ...     # call the model here
        ...     reservation.commit(tokens=1_650, usd=0.0099)
        >>> pool.snapshot().tokens_remaining
        8350
    """

    __slots__ = (
        "__dict__",  # for users: subclasses' attributes, doubles in tests
        "__weakref__",
        "_dropped",
        "_in_flight",
        "_lock",
        "_locked",
        "_name",
        "_nano_bound",
        "_nanos_claimed",
        "_nanos_reserved",
        "_open",
        "_spending",
        "_terms",
        "_token_bound",
        "_tokens_claimed",
        "_tokens_reserved",
    )

    def __init__(
        self,
        token_cap: SupportsIndex | None = None,
        usd_cap: float | Decimal | Fraction | None = None,
        *,
        name: str | None = None,
    ) -> None:
        # The terms are what people are shown, the bounds what amounts are compared with.
        token_bound = _cap(token_cap, to_tokens, "token_cap")
        nano_bound = _cap(usd_cap, to_nanos, "usd_cap")
        self._name = checked_name(name)
        self._terms = (token_bound, nano_bound, self._name)
        self._token_bound = _UNBOUNDED if token_bound is None else token_bound
        self._nano_bound = _UNBOUNDED if nano_bound is None else nano_bound

        # The lock guards the five counters below, and the `_state` of every reservation of this pool. `_locked` takes
        # it for anyone, `_spending` for whoever spends: the same, but in a forked child.
        self._lock = _new_lock()
        self._locked = _taking(self._lock)
        self._spending = self._locked
        self._tokens_claimed = 0
        self._tokens_reserved = 0
        self._nanos_claimed = 0
        self._nanos_reserved = 0
        self._in_flight = 0

        # A reservation is in flight while its `_state` is this very object. `detach` makes a new one.
        self._open = object()
        # Reservations that were collected unsettled wait here to be released: their finaliser may run anywhere, also
        # where its own thread holds the lock, so it only appends, which is one step. Every operation that answers
        # from the counters empties it first.
        self._dropped: deque[Reservation] = deque()
        _pools[id(self)] = self

    # ------------------------------------------------------------------ spending

    def record(self, *, tokens: SupportsIndex = 0, usd: float | Decimal | Fraction = 0, force: bool = False) -> None:
        """Add a spend, if it fits under both caps.

        Args:
            tokens: how many tokens.
            usd: how many dollars.
            force: the spend has happened already: add it also when it passes a cap, and raise after.

        Raises:
            BudgetExceeded: it does not fit; nothing was changed.
            BudgetOverrun: with ``force``: it was added and a cap is passed.
            TypeError, ValueError: bad amounts (see the class); nothing was changed.
            PoolForked: in a forked child, before `detach`.

        Example:
            >>> pool = BudgetPool(usd_cap=0.3)
            >>> for _ in range(3):
            ...     pool.record(usd=0.1)
            >>> pool.snapshot().usd_remaining
            0.0
        """
        if type(tokens) is not int or not 0 <= tokens <= _COMMON_TOKENS:
            tokens = to_tokens(tokens)
        nanos = to_nanos(usd)
        if self._dropped:
            self._reclaim()
        for _ in self._spending:
            try:
                tokens_after = self._tokens_claimed + tokens
                nanos_after = self._nanos_claimed + nanos
                if tokens_after <= self._token_bound and nanos_after <= self._nano_bound:
                    self._tokens_claimed = tokens_after
                    self._nanos_claimed = nanos_after
                    return
                tokens_reserved = self._tokens_reserved
                nanos_reserved = self._nanos_reserved
                token_bound = self._token_bound
                nano_bound = self._nano_bound
            finally:
                self._lock.release()
            break
        if force:
            self._add(tokens, nanos)
        else:
            raise BudgetExceeded._refusal(
                self._name,
                tokens, tokens_after, tokens_reserved, token_bound,
                nanos, nanos_after, nanos_reserved, nano_bound,
            )  # fmt: skip

    def reserve(self, *, tokens: SupportsIndex = 0, usd: float | Decimal | Fraction = 0) -> Reservation:
        """Hold an amount for a call that is about to be made, if it fits under both caps.

        Never waits. Use the answer as ``with pool.reserve(...) as reservation:`` (or ``async with``), and
        `Reservation.commit` in the block; leaving it without gives the amount back. Or keep it and settle it anywhere
        else, from any thread, exactly once.

        Args:
            tokens: the most tokens that the call may use: its input and the largest output asked for.
            usd: the most dollars that it may cost.

        Raises:
            BudgetExceeded: it does not fit; nothing was changed.
            TypeError, ValueError: bad amounts (see the class); nothing was changed.
            PoolForked: in a forked child, before `detach`.

        Example:
            >>> pool = BudgetPool(token_cap=1000)
            >>> with pool.reserve(tokens=800):
            ...     pool.snapshot().tokens_remaining  # no commit: as after a failed call
            200
            >>> pool.snapshot().tokens_remaining
            1000
        """
        if type(tokens) is not int or not 0 <= tokens <= _COMMON_TOKENS:
            tokens = to_tokens(tokens)
        nanos = to_nanos(usd)
        if self._dropped:
            self._reclaim()
        # The reservation exists before its capacity is taken: from the taking on, whoever is interrupted drops an
        # object that gives it back. Its slots are filled here, `_state` last, since calling an `__init__` costs more.
        reservation = Reservation()
        reservation._pool = self
        reservation._tokens = tokens
        reservation._nanos = nanos
        reservation._state = None
        for _ in self._spending:
            try:
                tokens_after = self._tokens_claimed + tokens
                nanos_after = self._nanos_claimed + nanos
                if tokens_after <= self._token_bound and nanos_after <= self._nano_bound:
                    tokens_held = self._tokens_reserved + tokens
                    nanos_held = self._nanos_reserved + nanos
                    in_flight = self._in_flight + 1
                    self._tokens_claimed = tokens_after
                    self._nanos_claimed = nanos_after
                    self._tokens_reserved = tokens_held
                    self._nanos_reserved = nanos_held
                    self._in_flight = in_flight
                    reservation._state = self._open
                    return reservation
                tokens_reserved = self._tokens_reserved
                nanos_reserved = self._nanos_reserved
                token_bound = self._token_bound
                nano_bound = self._nano_bound
            finally:
                self._lock.release()
            break
        raise BudgetExceeded._refusal(
            self._name,
            tokens, tokens_after, tokens_reserved, token_bound,
            nanos, nanos_after, nanos_reserved, nano_bound,
        )  # fmt: skip

    try_reserve = reserve

    # ------------------------------------------------------------------ looking and managing

    @property
    def name(self) -> str | None:
        """The name that it was given."""
        return self._name

    def snapshot(self) -> BudgetSnapshot:
        """Return every number as of one moment. Works in a forked child too.

        Example:
            >>> pool = BudgetPool(token_cap=1000, name="batch")
            >>> pool.record(tokens=250)
            >>> print(pool.snapshot())
            batch: tokens 250 / 1,000 (25%) | usd 0.0000 | 0 in flight
        """
        if self._dropped:
            self._reclaim()
        snapshot = _new(BudgetSnapshot)
        for _ in self._locked:
            try:
                tokens_claimed = self._tokens_claimed
                tokens_reserved = self._tokens_reserved
                nanos_claimed = self._nanos_claimed
                nanos_reserved = self._nanos_reserved
                in_flight = self._in_flight
            finally:
                self._lock.release()
            break
        snapshot._state = (tokens_claimed, tokens_reserved, nanos_claimed, nanos_reserved, in_flight, self._terms)
        return snapshot

    def reset(self) -> None:
        """Set what is used back to 0 on both axes.

        Calls in flight keep what they hold, and what they commit later counts as used after the reset.

        Raises:
            PoolForked: in a forked child, before `detach`.
        """
        if self._dropped:
            self._reclaim()
        for _ in self._spending:
            try:
                self._tokens_claimed = self._tokens_reserved
                self._nanos_claimed = self._nanos_reserved
            finally:
                self._lock.release()
            break

    def detach(self) -> None:
        """After ``os.fork()``, in the child: make this copy a budget of its own.

        It keeps its caps and what was used up to the fork. The calls that were in flight are the parent's: this copy
        holds nothing for them, and their reservations count as closed here. Parent and child together can now spend
        up to both caps. In the process that made the pool, or a second time, it does nothing.

        Example:
            >>> pool = BudgetPool(token_cap=1000)
            >>> pool.detach()  # this process made the pool: nothing happens
        """
        opened = object()
        for _ in self._locked:
            try:
                if self._spending is not self._locked:
                    tokens_used = self._tokens_claimed - self._tokens_reserved
                    nanos_used = self._nanos_claimed - self._nanos_reserved
                    self._tokens_claimed = tokens_used
                    self._nanos_claimed = nanos_used
                    self._tokens_reserved = 0
                    self._nanos_reserved = 0
                    self._in_flight = 0
                    self._open = opened
                    self._spending = self._locked
            finally:
                self._lock.release()
            break

    def __repr__(self) -> str:
        return f"<BudgetPool {self.snapshot()}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            "a BudgetPool cannot be copied or pickled: the copy would be a second budget. Pass the pool itself to "
            "threads and tasks; let one process own it, and send the others' spends to that process to be recorded"
        )

    # ------------------------------------------------------------------ inside

    def _after_fork_in_child(self) -> None:
        """Refuse to spend: this copy's parent goes on spending the same budget.

        The lock is new, since a thread that is not in this process may hold the old one. The counters are whole:
        ``os.fork()`` runs while the other threads wait for the GIL or, on builds without it, have been stopped, both
        only where an operation is not in the middle of its stores.
        """
        self._lock = _new_lock()
        self._locked = _taking(self._lock)
        self._spending = starmap(_refuse_forked, repeat((self._name,)))

    def _add(self, tokens: int, nanos: int) -> None:
        """Add a spend that happened already, then raise BudgetOverrun if a cap is passed."""
        for _ in self._spending:
            try:
                tokens_after = self._tokens_claimed + tokens
                nanos_after = self._nanos_claimed + nanos
                tokens_reserved = self._tokens_reserved
                nanos_reserved = self._nanos_reserved
                token_bound = self._token_bound
                nano_bound = self._nano_bound
                self._tokens_claimed = tokens_after
                self._nanos_claimed = nanos_after
            finally:
                self._lock.release()
            break
        if tokens and tokens_after > token_bound:
            raise BudgetOverrun._of("tokens", tokens, tokens_after, tokens_reserved, token_bound, self._name)
        if nanos and nanos_after > nano_bound:
            raise BudgetOverrun._of("usd", nanos, nanos_after, nanos_reserved, nano_bound, self._name)

    def _reclaim(self) -> None:
        """Release what was dropped. Several threads may do it at once, and any may be interrupted anywhere.

        A reservation leaves the list only after its release, which is done once whoever asks.
        """
        dropped = self._dropped
        while dropped:
            try:
                reservation = dropped[0]
                reservation.release()
                dropped.remove(reservation)
            except (IndexError, ValueError):  # noqa: PERF203 - another thread was faster: look again
                continue


class Reservation:
    """Capacity held for one call. ``BudgetPool.reserve`` makes it; it ends committed or released, exactly once.

    Use it as ``with`` or ``async with``, or settle it by hand, from any thread. One that is dropped unsettled is
    released at the pool's next operation, with a ResourceWarning (which says where it was made, under tracemalloc).

    Two limits of Python: Ctrl-C that arrives just as the block is left, before ``__exit__`` has begun, leaves it in
    flight until the last reference to it is gone. And Ctrl-C that arrives just as an unsettled one is dropped is lost
    in its finaliser, and with it the capacity.
    """

    # What never changes, and the state, which the pool's lock guards: None before the capacity is taken; the pool's
    # `_open` while it is held; then _COMMITTED or _RELEASED.
    __slots__ = ("_nanos", "_pool", "_state", "_tokens")
    _pool: BudgetPool
    _tokens: int
    _nanos: int
    _state: object

    def commit(self, *, tokens: SupportsIndex | None = None, usd: float | Decimal | Fraction | None = None) -> None:
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
        elif type(tokens) is not int or not 0 <= tokens <= _COMMON_TOKENS:
            tokens = to_tokens(tokens)
        nanos = held_nanos if usd is None else to_nanos(usd)
        if pool._dropped:
            pool._reclaim()
        for _ in pool._spending:
            try:
                settled = self._state is not pool._open
                if not settled:
                    tokens_after = pool._tokens_claimed - held_tokens + tokens
                    nanos_after = pool._nanos_claimed - held_nanos + nanos
                    tokens_reserved = pool._tokens_reserved - held_tokens
                    nanos_reserved = pool._nanos_reserved - held_nanos
                    in_flight = pool._in_flight - 1
                    token_bound = pool._token_bound
                    nano_bound = pool._nano_bound
                    pool._tokens_claimed = tokens_after
                    pool._nanos_claimed = nanos_after
                    pool._tokens_reserved = tokens_reserved
                    pool._nanos_reserved = nanos_reserved
                    pool._in_flight = in_flight
                    self._state = _COMMITTED
            finally:
                pool._lock.release()
            break
        if settled:
            raise self._closed("commit")
        if tokens > held_tokens and tokens_after > token_bound:
            raise BudgetOverrun._of("tokens", tokens, tokens_after, tokens_reserved, token_bound, pool._name)
        if nanos > held_nanos and nanos_after > nano_bound:
            raise BudgetOverrun._of("usd", nanos, nanos_after, nanos_reserved, nano_bound, pool._name)

    def release(self) -> None:
        """Give back what is reserved: the call was not made. Does nothing when it is settled already.

        Works in a forked child, on that child's copy.
        """
        pool = self._pool
        held_tokens = self._tokens
        held_nanos = self._nanos
        for _ in pool._locked:
            try:
                if self._state is pool._open:
                    tokens_claimed = pool._tokens_claimed - held_tokens
                    nanos_claimed = pool._nanos_claimed - held_nanos
                    tokens_reserved = pool._tokens_reserved - held_tokens
                    nanos_reserved = pool._nanos_reserved - held_nanos
                    in_flight = pool._in_flight - 1
                    pool._tokens_claimed = tokens_claimed
                    pool._nanos_claimed = nanos_claimed
                    pool._tokens_reserved = tokens_reserved
                    pool._nanos_reserved = nanos_reserved
                    pool._in_flight = in_flight
                    self._state = _RELEASED
            finally:
                pool._lock.release()
            break

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
        return self._state is not self._pool._open

    def __enter__(self) -> Reservation:
        """Return itself. Raises ReservationClosed where it holds nothing any more."""
        if self._state is not self._pool._open:
            raise self._closed("enter")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release, unless it was settled in the block."""
        if self._state is self._pool._open:
            self.release()

    async def __aenter__(self) -> Reservation:
        """Do what ``__enter__`` does; never suspends."""
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Do what ``__exit__`` does; never suspends."""
        if self._state is self._pool._open:
            self.release()

    def __del__(self) -> None:
        """Hand what was never settled to the pool. Runs anywhere, so it takes no lock."""
        try:
            pool = self._pool
            dropped = self._state is pool._open
        except AttributeError:  # whoever was making it was interrupted
            return
        if dropped:
            pool._dropped.append(self)
            if not sys.is_finalizing():  # pragma: no branch - the end of the interpreter is not measured
                warnings.warn(f"{self!r} was dropped: commit() or release() it", ResourceWarning, 2, source=self)

    def __repr__(self) -> str:
        state = self._state
        status = "in flight" if state is self._pool._open else state if isinstance(state, str) else "closed by a fork"
        where = "" if self._pool._name is None else f" in {self._pool._name!r}"
        return f"<Reservation{where} tokens {self._tokens:,} | usd {usd_text(self._nanos)} | {status}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            "a Reservation cannot be copied or pickled: it would be settled twice. Settle this one, in the process "
            "that made it"
        )

    def _closed(self, attempt: str) -> ReservationClosed:
        state = self._state
        if not isinstance(state, str):
            return ReservationClosed(f"cannot {attempt} {self!r}: it was in flight at a fork; the parent holds it")
        advice = "; a call that was billed after that is counted by record(..., force=True)"
        return ReservationClosed(f"cannot {attempt} {self!r}: it was {state} before{advice}")


_COMMITTED = "committed"
_RELEASED = "released"


def _cap(cap: Any, convert: Callable[[Any, str], int], name: str) -> int | None:
    if cap is None:
        return None
    try:
        return convert(cap, name)
    except ValueError as error:
        raise ValueError(f"{error}; None means no cap") from None


def _refuse_forked(name: str | None) -> NoReturn:
    named = "" if name is None else f" {name!r}"
    raise PoolForked(
        f"this copy of pool{named} came by os.fork() from the process that owns the budget, and does not spend it a "
        "second time: record in that process, make a BudgetPool of this process's own, or call detach() to make this "
        "copy a separate budget (snapshot() works without)"
    )


# Every pool that is alive, for the hook that a forked child runs.
_pools: WeakValueDictionary[int, BudgetPool] = WeakValueDictionary()


def _after_fork_in_child() -> None:  # pragma: no cover - runs in forked children, which are not measured
    for pool in list(_pools.values()):
        pool._after_fork_in_child()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
