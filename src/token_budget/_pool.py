"""The pool: one lock, what it guards, and the operations of a pool that stands alone (for the rest: `_family.py`).

Every operation has one shape: convert the amounts; take the lock; decide; change everything in one run of stores; let
go; only then raise. Between the taking of the lock and its release there is no call, no loop and no new container.
CPython switches threads, delivers signals and pending exceptions, and starts the garbage collector at such places only.
So no exception can cut a change in half, no signal handler or finaliser of a thread can find the lock held by that same
thread, and no thread loses the processor while it holds the lock. That serves speed and robustness; mutual exclusion
itself comes from the lock alone, and holds on builds without the GIL too. (On CPython 3.10 a taken jump is such a place
as well: see `_family._new_lock`. And a tracer or profiler written in Python is code that runs anywhere: under one,
signal handlers that use the pool may find the lock held.)

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
import time
import warnings
from weakref import WeakValueDictionary

from token_budget._arguments import checked_name
from token_budget._errors import BudgetExceeded, BudgetOverrun, ReservationClosed
from token_budget._family import CLOSED, COMMITTED, RELEASED, Account, Family, Threshold
from token_budget._money import to_nanos, to_tokens, to_usd, usd_text
from token_budget._snapshot import BudgetSnapshot
from token_budget._waiting import GRANTED, LoopBell, ThreadBell, Waiter
from token_budget._window import Window

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from decimal import Decimal
    from fractions import Fraction
    from types import TracebackType
    from typing import Any, NoReturn, SupportsIndex

    from token_budget._events import BudgetEvent
    from token_budget._family import Chain
    from token_budget._keyed import KeyedPools

_new = object.__new__
_COMMON_TOKENS = 10**9  # amounts up to this are checked inline, which is quickest for ints of one digit of CPython's
_UNCHANGED: Any = type("Unchanged", (), {"__repr__": lambda _: "..."})()  # stands for a cap that is left as it is


class BudgetPool(Account):
    """A budget of tokens and dollars that any number of threads and tasks spend from at once, and never oversell.

    Ask before you spend (`reserve`), then say what it really cost (`Reservation.commit`) or give it back (leave the
    ``with`` block). `record` does both at once for a cost that is known. What does not fit raises `BudgetExceeded` and
    changes nothing. Amounts are keyword-only: ``tokens`` is an integer up to 10**18, ``usd`` an int, float, Decimal or
    Fraction up to 10**9, rounded half to even to nanodollars and counted exactly.

    No method waits for room unless it is told to (`reserve` with a timeout, `areserve`); for the lock all wait no
    longer than a few additions take, so all may be called from an event loop. Those of a pool that stands alone may be
    called from a signal handler or a finaliser. With children, a window, waiters or subscribers, one that interrupts an
    operation of its own thread may call `snapshot`; a release, a commit or a forced record is done at the end of that
    operation; the rest raises RuntimeError there. A pool cannot be copied or pickled; in a forked child it refuses to
    spend until `detach`.

    Args:
        token_cap: the most tokens that may be used and reserved together; None for no cap.
        usd_cap: the same in dollars.
        name: what errors and displays call the pool, at most 200 characters.
        window: the periods at whose end what is used is set back to 0; None for one that never ends. The first
            operation after the end does it; calls in flight keep what they hold, and count when they commit.

    Raises:
        TypeError: a cap is no number of its kind (bool and text are none), the name no text, the window no `Window`.
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
        "_chain",
        "_family",
        "_lock",
        "_locked",
        "_nano_bound",
        "_open",
        "_parents",
        "_pending",
        "_spending",
        "_three",
        "_token_bound",
    )

    def __init__(
        self,
        token_cap: SupportsIndex | None = None,
        usd_cap: float | Decimal | Fraction | None = None,
        *,
        name: str | None = None,
        window: Window | None = None,
    ) -> None:
        self._open_account(*_caps(token_cap, usd_cap), checked_name(name), _checked_window(window))
        self._parents: tuple[BudgetPool, ...] = ()
        self._family = family = Family()
        family.windowed = window is not None
        # The scopes that an operation counts against, this one's first and the family's first pool last; empty stands
        # for this pool alone, which would else hold itself and wait for the collector.
        self._chain: Chain = ()
        self._three: Chain | None = ()  # a chain of two or three, for `Family.record`; None for a longer one
        # A reservation is in flight while its `_state` is this very object. `detach` makes a new one.
        self._open = family.opened

        # Copies of what the family has, for the operations that this pool does by itself. The lock guards the account,
        # the bounds and the `_state` of every reservation. `_locked` takes it for anyone, `_spending` for whoever
        # spends: the same, but in a forked child.
        self._lock = family.lock
        self._locked = family.locked
        self._spending = family.spending
        # This pool does an operation by itself if `_pending` is empty. Else the family does it: something dropped is to
        # be released first, or there is more to it than this account (`Family.regate`), or someone is inside the
        # family's longer way. Where there is more to it the bounds are below 0, for those who looked before.
        self._pending: object = family.dropped
        self._token_bound = self._token_limit
        self._nano_bound = self._nano_limit
        if window is not None:
            family.regate(self)
            self._pending = family.idle
        _pools[id(self)] = self

    @classmethod
    def _below(cls, account: Account, chain: Chain, parents: tuple[BudgetPool, ...]) -> BudgetPool:
        """Make a pool that counts against an account of its own and all of a chain."""
        pool = BudgetPool.__new__(BudgetPool)
        pool._parents = parents  # they live as long as it does: the tree shows them, and no key of theirs is forgotten
        pool._family = family = parents[0]._family
        pool._open = family.opened
        pool._pending = True
        pool._bind(account, chain)
        return pool

    def _bind(self, account: Account, chain: Chain) -> None:
        """Let it count against an account and a chain."""
        self._name = account._name
        self._chain = (account, *chain)
        self._three = (account, *chain, self._family.void)[:3] if len(chain) < 3 else None

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
            PoolClosed: without ``force``: this pool or one above it is closed.
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
        if self._pending:
            return self._record(tokens, nanos, force=force)
        for _ in self._spending:
            try:
                tokens_after = self._tokens_claimed + tokens
                nanos_after = self._nanos_claimed + nanos
                if tokens_after <= self._token_bound and nanos_after <= self._nano_bound:
                    self._tokens_claimed = tokens_after
                    self._nanos_claimed = nanos_after
                    return None
                tokens_reserved = self._tokens_reserved
                nanos_reserved = self._nanos_reserved
                token_bound = self._token_bound
                nano_bound = self._nano_bound
            finally:
                self._lock.release()
            break
        if token_bound < 0:
            return self._record(tokens, nanos, force=force)
        if force:
            return self._add(tokens, nanos)
        raise BudgetExceeded._refusal(
            self._name,
            tokens, tokens_after, tokens_reserved, token_bound,
            nanos, nanos_after, nanos_reserved, nano_bound,
        )  # fmt: skip

    def reserve(
        self,
        *,
        tokens: SupportsIndex = 0,
        usd: float | Decimal | Fraction = 0,
        timeout: float | None = 0,
    ) -> Reservation:
        """Hold an amount for a call that is about to be made, if it fits under both caps.

        Waits only if it is told to (a thread; tasks use `areserve`). Use the answer as ``with pool.reserve(...) as
        reservation:`` (or ``async with``), and `Reservation.commit` in the block; leaving it without gives the amount
        back. Or keep it and settle it anywhere else, from any thread, exactly once.

        Args:
            tokens: the most tokens that the call may use: its input and the largest output asked for.
            usd: the most dollars that it may cost.
            timeout: how many seconds to wait for room, first come, first served; 0 does not wait, None waits on. Within
                one pool a large request that waits holds up smaller ones that come after it.

        Raises:
            BudgetExceeded: it does not fit; with a timeout: it would not, even if all that is in flight came back.
                Nothing was changed.
            BudgetTimeout: no room came in time; nothing was changed.
            TypeError, ValueError: bad amounts (see the class) or a bad timeout; nothing was changed.
            PoolClosed: this pool or one above it is closed.
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
        if timeout:
            timeout = _checked_timeout(timeout)
        # The reservation exists before its capacity is taken: from the taking on, whoever is interrupted drops an
        # object that gives it back. Its slots are filled here, `_state` last, since calling an `__init__` costs more.
        reservation = Reservation()
        reservation._pool = self
        reservation._tokens = tokens
        reservation._nanos = nanos
        reservation._state = None
        if self._pending:
            return self._reserve(reservation, timeout)
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
        if timeout != 0 or token_bound < 0:
            return self._reserve(reservation, timeout)
        raise BudgetExceeded._refusal(
            self._name,
            tokens, tokens_after, tokens_reserved, token_bound,
            nanos, nanos_after, nanos_reserved, nano_bound,
        )  # fmt: skip

    try_reserve = reserve  # what token-budget-py calls it; a call of its own would cost a tenth

    def areserve(
        self,
        *,
        tokens: SupportsIndex = 0,
        usd: float | Decimal | Fraction = 0,
        timeout: float | None = None,
    ) -> AsyncReserve:
        """Hold an amount, and let this asyncio task wait for room: ``await`` the answer, or use it as ``async with``.

        Tasks and threads wait in one line. A task that is cancelled while it waits gets nothing, or gives it back. Room
        may come from a commit in any thread or event loop.

        Args:
            tokens: as `reserve`.
            usd: as `reserve`.
            timeout: as `reserve`; None waits on.

        Raises:
            What `reserve` does: for bad arguments at once, else when it is awaited.

        Example:
            >>> import asyncio
            >>> async def main():
            ...     pool = BudgetPool(token_cap=1000)
            ...     async def call():
            ...         async with pool.areserve(tokens=800) as reservation:
            ...             reservation.commit(tokens=150)
            ...     await asyncio.gather(call(), call())  # the second waits until the first has committed
            ...     return pool.snapshot().tokens_used
            >>> asyncio.run(main())
            300
        """
        reservation = Reservation()
        reservation._pool = self
        reservation._tokens = to_tokens(tokens)
        reservation._nanos = to_nanos(usd)
        reservation._state = None
        return AsyncReserve(reservation, _checked_timeout(timeout))

    def _reserve(self, reservation: Reservation, timeout: float | None) -> Reservation:
        """Take what the reservation is for by the family's way, and let the thread wait if need be."""
        family = self._family
        timeout = _checked_timeout(timeout)  # also what is no number, and false
        if timeout == 0:
            family.reserve(reservation, None)
            return reservation
        bell = ThreadBell()
        waiter = Waiter(self._scopes(), reservation, bell)
        try:
            family.reserve(reservation, waiter)
            if waiter.ticket:
                sleeps = _Sleeps(family, waiter, timeout)
                while True:
                    seconds, last = sleeps.next()
                    if bell.wait(seconds) or last:
                        break
                    family.look_again(waiter.chain)
                family.withdraw(waiter)
        except BaseException:
            _abandon(family, waiter)
            raise
        return _outcome(waiter)

    # ------------------------------------------------------------------ looking and managing

    @property
    def name(self) -> str | None:
        """The name that it was given."""
        return self._name

    @property
    def closed(self) -> bool:
        """True once it, or a pool above it, was closed."""
        return any(account._token_limit == CLOSED for account in self._scopes())

    def snapshot(self, tree: bool = False) -> BudgetSnapshot:  # noqa: FBT001, FBT002 - keyword-only is dearer to call
        """Return every number as of one moment. Works in a forked child too.

        Args:
            tree: with all child pools (and theirs) as ``children``, as of the same moment. What this takes grows with
                the number of pools of the family.

        Example:
            >>> pool = BudgetPool(token_cap=1000, name="batch")
            >>> pool.record(tokens=250)
            >>> print(pool.snapshot())
            batch: tokens 250 / 1,000 (25%) | usd 0.0000 | 0 in flight
        """
        if tree:
            return self._family.tree(self._scopes())
        if self._pending:
            return self._family.snapshot(self._scopes())
        snapshot = _new(BudgetSnapshot)
        for _ in self._locked:
            try:
                tokens_claimed = self._tokens_claimed
                tokens_reserved = self._tokens_reserved
                nanos_claimed = self._nanos_claimed
                nanos_reserved = self._nanos_reserved
                in_flight = self._in_flight
                terms = self._terms
            finally:
                self._lock.release()
            break
        snapshot._state = (tokens_claimed, tokens_reserved, nanos_claimed, nanos_reserved, in_flight, terms, ())
        return snapshot

    def reset(self) -> None:
        """Set what is used back to 0 on both axes.

        Calls in flight keep what they hold, and what they commit later counts as used after the reset.

        Raises:
            PoolForked: in a forked child, before `detach`.
        """
        if self._pending:
            return self._family.reset(self._scopes())
        for _ in self._spending:
            try:
                barred = self._token_bound < 0
                if not barred:
                    self._tokens_claimed = self._tokens_reserved
                    self._nanos_claimed = self._nanos_reserved
            finally:
                self._lock.release()
            break
        return self._family.reset(self._scopes()) if barred else None

    def set_caps(
        self,
        *,
        token_cap: SupportsIndex | None = _UNCHANGED,
        usd_cap: float | Decimal | Fraction | None = _UNCHANGED,
    ) -> None:
        """Change caps while calls are in flight. What is left out stays; None means no cap.

        Larger caps serve those who wait, at once. Smaller ones may be below what is used and reserved: then remaining
        is negative, nothing new fits, and calls in flight keep what they hold.

        Raises:
            TypeError, ValueError: a bad cap (see the class); nothing was changed.
            PoolClosed: the pool is closed.
            PoolForked: in a forked child, before `detach`.

        Example:
            >>> pool = BudgetPool(token_cap=1000)
            >>> pool.set_caps(token_cap=2000)
            >>> pool.snapshot().token_cap
            2000
        """
        caps: dict[str, int | None] = {}
        if token_cap is not _UNCHANGED:
            caps["tokens"] = _cap(token_cap, to_tokens, "token_cap")
        if usd_cap is not _UNCHANGED:
            caps["usd"] = _cap(usd_cap, to_nanos, "usd_cap")
        self._family.set_caps(self._scopes(), caps)

    def detach(self) -> None:
        """After ``os.fork()``, in the child: make this copy, with all pools above and below it, a budget of its own.

        It keeps its caps and what was used up to the fork. The calls that were in flight are the parent's: this copy
        holds nothing for them, and their reservations count as closed here. Parent and child together can now spend
        up to both caps. In the process that made the pool, or a second time, it does nothing.

        Example:
            >>> pool = BudgetPool(token_cap=1000)
            >>> pool.detach()  # this process made the pool: nothing happens
        """
        self._family.detach(self._scopes())

    # ------------------------------------------------------------------ scopes

    def child(
        self,
        token_cap: SupportsIndex | None = None,
        usd_cap: float | Decimal | Fraction | None = None,
        *,
        name: str | None = None,
        window: Window | None = None,
    ) -> BudgetPool:
        """Return a new pool below this one: what it spends counts against it, this one, and all above, or none.

        A refusal names the scope that had no room (`BudgetExceeded.pool`). Use it as ``with pool.child(...) as run:``
        or `close` it. Arguments and errors are those of the class.

        Raises:
            PoolClosed: this pool or one above it is closed.
            PoolForked: in a forked child, before `detach`.

        Example:
            >>> day = BudgetPool(usd_cap=10, name="day")
            >>> with day.child(usd_cap=1, name="run") as run:
            ...     run.record(usd=0.25)
            >>> day.snapshot().usd_used
            0.25
        """
        account = Account()
        account._open_account(*_caps(token_cap, usd_cap), checked_name(name), _checked_window(window))
        above = self._scopes()
        account._parent = above[0]
        pool = self._below(account, above, (self,))
        self._family.adopt(pool._chain, pool)
        return pool

    @staticmethod
    def join(*pools: BudgetPool, name: str | None = None) -> BudgetPool:
        """Return a pool without caps of its own that counts against all of these and what is above them, each once.

        For a call that belongs to a user, a project and the whole at the same moment. All must descend from one pool.
        It stands in no tree. Under a join, one who waits for one of the scopes may find that another has been filled
        meanwhile by those who do not need the first.

        Raises:
            TypeError: something is no pool.
            ValueError: no pools, or pools that do not descend from one.

        Example:
            >>> total = BudgetPool(usd_cap=100)
            >>> user, project = total.child(usd_cap=1, name="ann"), total.child(usd_cap=5, name="atlas")
            >>> BudgetPool.join(user, project).record(usd=0.5)
            >>> user.snapshot().usd_used, project.snapshot().usd_used, total.snapshot().usd_used
            (0.5, 0.5, 0.5)
        """
        for pool in pools:
            if not isinstance(pool, BudgetPool):
                raise TypeError(f"only pools can be joined, not {type(pool).__name__}")
        if not pools or any(pool._family is not pools[0]._family for pool in pools):
            raise ValueError("join at least one pool, and only pools that descend from one: make them with child()")
        scopes = {id(account): account for pool in pools for account in pool._scopes()[:-1]}.values()
        account = Account()
        account._open_account(None, None, checked_name(name), None)
        joined = BudgetPool._below(account, (*scopes, pools[0]._scopes()[-1]), pools)
        joined._family.adopt(joined._chain, joined)
        return joined

    def keyed(
        self,
        token_cap: SupportsIndex | None = None,
        usd_cap: float | Decimal | Fraction | None = None,
        *,
        name: str | None = None,
        window: Window | None = None,
    ) -> KeyedPools:
        """Return child pools by key, each with these caps and this window: for users, projects or runs.

        Arguments and errors are those of the class. The name of a key's pool is the key, after this name and a colon if
        one is given.

        Example:
            >>> pool = BudgetPool(usd_cap=1000)
            >>> users = pool.keyed(usd_cap=10)
            >>> users["user-123"].record(usd=4)
            >>> users["user-123"].snapshot().usd_remaining
            6.0
        """
        from token_budget._keyed import KeyedPools

        caps = _caps(token_cap, usd_cap)
        return KeyedPools(self, caps, checked_name(name), _checked_window(window))

    def close(self) -> None:
        """Refuse new operations, here and below, with PoolClosed, and let those in flight settle.

        What happened already is counted all the same: ``record(..., force=True)`` works. What is spent stays in the
        pools above. Those who wait here are refused. Closing twice does nothing. It is for good: make another.
        """
        self._family.close(self._scopes())

    def __enter__(self) -> BudgetPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    # ------------------------------------------------------------------ events

    def subscribe(self, callback: Callable[[BudgetEvent], object]) -> Callable[[], None]:
        """Call back with a `BudgetEvent` for everything that happens to this pool, and return how to end it.

        That is all that is done on this pool and the pools below it. The callback runs in the thread that did it, after
        the lock is free, in order for one thread; it may use the pool. What it raises is logged (logger
        ``token_budget``). While somebody is subscribed, operations take longer.

        Raises:
            TypeError: it cannot be called.

        Example:
            >>> pool = BudgetPool(token_cap=1000, name="run")
            >>> unsubscribe = pool.subscribe(lambda event: print(event.kind, event.tokens, event.snapshot))
            >>> pool.record(tokens=250)
            record 250 run: tokens 250 / 1,000 (25%) | usd 0.0000 | 0 in flight
            >>> unsubscribe()
        """
        if not callable(callback):
            raise TypeError("callback must be a function of one argument, the event")
        chain, subscription = self._scopes(), (callback,)
        self._family.subscribe(chain, subscription)
        return lambda: self._family.unsubscribe(chain, subscription)

    def on_threshold(
        self, share: float | Decimal | Fraction, callback: Callable[[BudgetEvent], object]
    ) -> Callable[[], None]:
        """Call back once when used + reserved comes to a share of a cap, and return how to end it.

        Once in each period of the pool's window: `reset` and the end of a period arm it anew. It looks after each
        operation; a pool that is past the share already calls back after the next. The rest is as with `subscribe`; the
        event's kind is ``"threshold"``.

        Args:
            share: of the cap, above 0: 0.8 is 80 %.
            callback: gets the event.

        Raises:
            TypeError: the share is no number, or the callback cannot be called.
            ValueError: the share is not above 0, above 10 (80 is 8,000 %), or not finite.

        Example:
            >>> pool = BudgetPool(usd_cap=10, name="day")
            >>> _ = pool.on_threshold(0.8, lambda event: print("80 %:", event.snapshot))
            >>> pool.record(usd=8.5)
            80 %: day: tokens 0 | usd 8.5000 / 10.0000 (85%) | 0 in flight
        """
        nanos = to_nanos(share, "share")
        if not 0 < nanos <= 10**10:
            raise ValueError("share must be above 0 and at most 10 (1,000 %): 0.8 is 80 %")
        if not callable(callback):
            raise TypeError("callback must be a function of one argument, the event")
        threshold = Threshold(nanos, callback)
        chain = self._scopes()
        self._family.watch(chain, threshold)
        return lambda: self._family.unsubscribe(chain, threshold)

    # ------------------------------------------------------------------ from the environment

    @classmethod
    def from_env(cls, prefix: str = "TOKEN_BUDGET_", *, environ: Mapping[str, str] | None = None) -> BudgetPool:
        """Make a pool of what environment variables say.

        They are called ``TOKEN_CAP``, ``USD_CAP``, ``NAME`` and ``WINDOW``, after the prefix. What is not set, or
        empty, is left out. Caps are plain decimal numbers (``1_000_000``, ``12.50``), the window is what `Window.parse`
        reads (``daily Europe/Berlin``).

        Args:
            prefix: what the names begin with.
            environ: where to look; ``os.environ`` if it is left out.

        Raises:
            ValueError: a variable says nothing that can be read; the error names it.

        Example:
            >>> BudgetPool.from_env(environ={"TOKEN_BUDGET_USD_CAP": "12.50", "TOKEN_BUDGET_NAME": "batch"})
            <BudgetPool batch: tokens 0 | usd 0.0000 / 12.5000 (0%) | 0 in flight>
        """
        from decimal import Decimal

        found = os.environ if environ is None else environ

        def read(name: str, convert: Callable[[str], Any], wanted: str) -> Any:
            text = found.get(prefix + name, "").strip()
            if not text:
                return None
            try:
                return convert(text)
            except (ArithmeticError, ValueError) as error:
                detail = f": {error}" if "zone" in str(error) else ""
                raise ValueError(f"{prefix}{name} must be {wanted}, got {text[:60]!r}{detail}") from None

        def usd(text: str) -> Decimal:
            value = Decimal(text)
            to_nanos(value)
            return value

        return cls(
            read("TOKEN_CAP", lambda text: to_tokens(int(text)), "a whole number of tokens, at most 10**18"),
            read("USD_CAP", usd, "a number of dollars, at most 10**9"),
            name=read("NAME", checked_name, "at most 200 characters"),
            window=read("WINDOW", Window.parse, "a window: daily, weekly or monthly and a time zone, or every 5h"),
        )

    def __repr__(self) -> str:
        return f"<BudgetPool {self.snapshot()}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            "a BudgetPool cannot be copied or pickled: the copy would be a second budget. Pass the pool itself to "
            "threads and tasks; let one process own it, and send the others' spends to that process to be recorded"
        )

    # ------------------------------------------------------------------ inside

    def _scopes(self) -> Chain:
        """Return the accounts that an operation counts against, this pool's own first."""
        return self._chain or (self,)

    def _after_fork_in_child(self) -> None:
        self._family.fork(self)

    def _record(self, tokens: int, nanos: int, *, force: bool) -> None:
        """Record by the family's way; what was spent already, inside of an operation of this thread, at its end."""
        family = self._family
        if force and family.owner == threading.get_ident():
            spend = Reservation()
            spend._pool, spend._tokens, spend._nanos, spend._state = self, 0, 0, None
            family.record_late(self._scopes(), spend, tokens, nanos)
        else:
            family.record(self, tokens, nanos, force)

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
                if token_bound >= 0:
                    self._tokens_claimed = tokens_after
                    self._nanos_claimed = nanos_after
            finally:
                self._lock.release()
            break
        if token_bound < 0:
            return self._record(tokens, nanos, force=True)
        if tokens and tokens_after > token_bound:
            raise BudgetOverrun._of("tokens", tokens, tokens_after, tokens_reserved, token_bound, self._name)
        if nanos and nanos_after > nano_bound:
            raise BudgetOverrun._of("usd", nanos, nanos_after, nanos_reserved, nano_bound, self._name)
        return None


class AsyncReserve:
    """What ``BudgetPool.areserve`` returns: await it for a `Reservation`, or enter it with ``async with``. Once."""

    __slots__ = ("_reservation", "_timeout", "_used")

    def __init__(self, reservation: Reservation, timeout: float | None) -> None:
        self._reservation = reservation
        self._timeout = timeout
        self._used = False

    def __await__(self) -> Generator[Any, Any, Reservation]:
        return self._take().__await__()

    async def __aenter__(self) -> Reservation:
        return await self._take()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release, unless it was settled in the block; never suspends."""
        self._reservation.__exit__(kind, error, traceback)

    async def _take(self) -> Reservation:
        import asyncio

        if self._used:
            raise RuntimeError("areserve() is awaited or entered once: call it again for another reservation")
        self._used = True
        reservation = self._reservation
        family = reservation._pool._family
        if self._timeout == 0:
            family.reserve(reservation, None)
            return reservation
        bell = LoopBell(asyncio.get_running_loop())
        waiter = Waiter(reservation._pool._scopes(), reservation, bell)
        try:
            family.reserve(reservation, waiter)
            if waiter.ticket:
                sleeps = _Sleeps(family, waiter, self._timeout)
                while True:
                    seconds, last = sleeps.next()
                    if await bell.wait(seconds) or last:
                        break
                    family.look_again(waiter.chain)
                family.withdraw(waiter)
        except BaseException:  # cancelled, interrupted, or the loop is gone
            _abandon(family, waiter)
            raise
        return _outcome(waiter)

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("what areserve() returns cannot be copied or pickled: call areserve() again")


class Reservation:
    """Capacity held for one call. ``BudgetPool.reserve`` makes it; it ends committed or released, exactly once.

    Use it as ``with`` or ``async with``, or settle it by hand, from any thread. One that is dropped unsettled is
    released at the pool's next operation, or at once if somebody waits, with a ResourceWarning (which says where it was
    made, under tracemalloc).

    Two limits of Python: Ctrl-C that arrives just as the block is left, before ``__exit__`` has given it back, leaves
    it in flight until the last reference to it is gone. And Ctrl-C that arrives just as an unsettled one is dropped is
    lost in its finaliser, and with it the capacity.
    """

    # What never changes, and the state, which the pool's lock guards: None before the capacity is taken; the pool's
    # `_open` while it is held; then COMMITTED, RELEASED or DROPPED.
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
        if pool._pending:
            return pool._family.commit(self, tokens, nanos)
        for _ in pool._spending:
            try:
                token_bound = pool._token_bound
                settled = self._state is not pool._open or token_bound < 0
                if not settled:
                    tokens_after = pool._tokens_claimed - held_tokens + tokens
                    nanos_after = pool._nanos_claimed - held_nanos + nanos
                    tokens_reserved = pool._tokens_reserved - held_tokens
                    nanos_reserved = pool._nanos_reserved - held_nanos
                    in_flight = pool._in_flight - 1
                    nano_bound = pool._nano_bound
                    pool._tokens_claimed = tokens_after
                    pool._nanos_claimed = nanos_after
                    pool._tokens_reserved = tokens_reserved
                    pool._nanos_reserved = nanos_reserved
                    pool._in_flight = in_flight
                    self._state = COMMITTED
            finally:
                pool._lock.release()
            break
        if settled:
            return pool._family.commit(self, tokens, nanos)
        if tokens > held_tokens and tokens_after > token_bound:
            raise BudgetOverrun._of("tokens", tokens, tokens_after, tokens_reserved, token_bound, pool._name)
        if nanos > held_nanos and nanos_after > nano_bound:
            raise BudgetOverrun._of("usd", nanos, nanos_after, nanos_reserved, nano_bound, pool._name)
        return None

    def release(self) -> None:
        """Give back what is reserved: the call was not made. Does nothing when it is settled already.

        Works in a forked child, on that child's copy.
        """
        pool = self._pool
        if pool._pending:
            return pool._family.release(self)
        held_tokens = self._tokens
        held_nanos = self._nanos
        for _ in pool._locked:
            try:
                barred = pool._token_bound < 0
                if self._state is pool._open and not barred:
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
                    self._state = RELEASED
            finally:
                pool._lock.release()
            break
        return pool._family.release(self) if barred else None

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
        """Hand what was never settled to the pool. Runs anywhere, so it does not rely on getting the lock."""
        try:
            pool = self._pool
            dropped = self._state is pool._open
        except AttributeError:  # whoever was making it was interrupted
            return
        if dropped:
            pool._family.dropped.append(self)
            if pool._family.waiters:
                pool._family.prod(pool._scopes()[-1])
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


def _cap(cap: Any, convert: Callable[[Any, str], int], name: str) -> int | None:
    if cap is None:
        return None
    try:
        return convert(cap, name)
    except ValueError as error:
        raise ValueError(f"{error}; None means no cap") from None


def _caps(token_cap: Any, usd_cap: Any) -> tuple[int | None, int | None]:
    return _cap(token_cap, to_tokens, "token_cap"), _cap(usd_cap, to_nanos, "usd_cap")


def _checked_window(window: Any) -> Window | None:
    if window is not None and not isinstance(window, Window):
        raise TypeError(f"window must be a Window (Window.daily() and so on), not {type(window).__name__}")
    return window


def _checked_timeout(timeout: Any) -> float | None:
    """Return a number of seconds, or None for no end.

    Raises:
        TypeError: it is no int or float.
        ValueError: it is NaN or negative.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, not {type(timeout).__name__}")
    if not timeout >= 0:
        raise ValueError(f"timeout must be a number of seconds from 0 on, got {timeout!r}")
    return min(timeout, threading.TIMEOUT_MAX)


class _Sleeps:
    """How long to sleep at a time while waiting: until the time-out, or until a period of the scopes ends before it."""

    __slots__ = ("_deadline", "_family", "_waiter")

    def __init__(self, family: Family, waiter: Waiter, timeout: float | None) -> None:
        self._family = family
        self._waiter = waiter
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def next(self) -> tuple[float | None, bool]:
        """Return the seconds of the next sleep, None for one without end, and whether it is the last."""
        reset = self._family.until_reset(self._waiter.chain) if self._family.windowed else None
        if self._deadline is None:
            return reset, reset is None
        left = min(max(0.0, self._deadline - time.monotonic()), threading.TIMEOUT_MAX)
        return (left, True) if reset is None or left <= reset else (reset, False)


def _abandon(family: Family, waiter: Waiter) -> None:
    """Leave the line; twice, for whoever is interrupted a second time in the first."""
    try:
        family.abandon(waiter)
    except BaseException:
        family.abandon(waiter)
        raise


def _outcome(waiter: Waiter) -> Reservation:
    """Return the reservation of a waiter that got it, at once or later, or raise what it got instead."""
    if waiter.ticket == 0 or waiter.state is GRANTED:
        reservation: Reservation = waiter.reservation
        waiter.reservation = None  # it may stay in a line for a while, and must not keep what is dropped
        return reservation
    refusal: Any = waiter.refusal
    raise refusal()


# Every pool that is alive and the first of its family, for the hook that a forked child runs.
_pools: WeakValueDictionary[int, BudgetPool] = WeakValueDictionary()


def _after_fork_in_child() -> None:  # pragma: no cover - runs in forked children, which are not measured
    for pool in list(_pools.values()):
        pool._after_fork_in_child()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    # Twice, and it may be repeated: CPython drops an exception that ends a hook, and Ctrl-C may end one of them.
    os.register_at_fork(after_in_child=_after_fork_in_child)
    os.register_at_fork(after_in_child=_after_fork_in_child)
