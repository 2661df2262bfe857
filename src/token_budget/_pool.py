"""BudgetPool: the public class. Its own methods spend, and are the straight runs of a pool that stands alone.

Every operation has one shape: convert the amounts; take the lock; decide; change everything in one run of stores; let
go; only then raise, wake and call back. `_straight.py` says why there is no call, no loop and no new container between
the taking of the lock and its release. `_account.py` says what always holds, and what the bounds are.
"""

# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false
# pyright cannot know that the body of `for _ in family.locked` runs exactly once, nor that what it computes is
# therefore no "Unbound" in the comparison after it; mypy checks the operators here.

from __future__ import annotations

import os
from collections.abc import Mapping
from weakref import ref

from token_budget import _ledger, _settings, _sleep, _straight
from token_budget._account import Account
from token_budget._arguments import checked_caps, checked_name, checked_timeout, checked_window
from token_budget._errors import BudgetExceeded
from token_budget._family import Family, families
from token_budget._governed import Governed
from token_budget._keyed import KeyedPools
from token_budget._line import serve
from token_budget._money import to_nanos, to_tokens
from token_budget._process import HERE
from token_budget._reservation import COMMON_TOKENS, Reservation, new_reservation
from token_budget._sleep import AsyncReserve
from token_budget._window import Window

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    import decimal
    import fractions
    import typing
    from typing import Any

    from token_budget._scope import Chain
else:
    from token_budget._lazy import decimal, fractions, typing

_new = object.__new__
_NO_WAIT = 0  # the default itself; any other zero is checked like the rest


class BudgetPool(Governed):
    """A budget of tokens and dollars that any number of threads and tasks spend from at once, and never oversell.

    Ask before you spend (`reserve`), then say what it really cost (`Reservation.commit`) or give it back (leave the
    ``with`` block). `record` does both at once for a cost that is known. What does not fit raises `BudgetExceeded` and
    changes nothing. Amounts are keyword-only: ``tokens`` is an integer up to 10**18, ``usd`` an int, float, Decimal or
    Fraction up to 10**9, rounded half to even to nanodollars and counted exactly.

    No method waits for room unless it is told to (`reserve` with a timeout, `areserve`). For the lock all wait no
    longer than a few additions take, so all may be called from an event loop, a signal handler or a finaliser. A pool
    cannot be copied or pickled. In a forked child it refuses to spend until `detach`.

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

    __slots__ = ("__dict__", "__weakref__", "_parents")  # the first for users: attributes of subclasses, doubles

    def __init__(
        self,
        token_cap: typing.SupportsIndex | None = None,
        usd_cap: float | decimal.Decimal | fractions.Fraction | None = None,
        *,
        name: str | None = None,
        window: Window | None = None,
    ) -> None:
        account = Account(*checked_caps(token_cap, usd_cap), checked_name(name), checked_window(window))
        family = Family(account, serve)
        self._parents: Any = ()  # they live as long as it does: the tree shows them, and no key of theirs is forgotten
        self._bind(family, (account,))
        family.scopes.add(self)
        family.first = ref(self)

    @classmethod
    def _below(cls, account: Account, chain: Chain, parents: tuple[BudgetPool, ...]) -> BudgetPool:
        """Make a pool that counts against an account of its own and all of a chain."""
        pool = BudgetPool.__new__(BudgetPool)
        pool._parents = parents
        pool._bind(parents[0]._family, (account, *chain))
        _settings.adopt(pool, account, pool._family.scopes, pool, pool)
        return pool

    # ------------------------------------------------------------------ spending

    def record(
        self,
        *,
        tokens: typing.SupportsIndex = 0,
        usd: float | decimal.Decimal | fractions.Fraction = 0,
        force: bool = False,
    ) -> None:
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
        if type(tokens) is not int or not 0 <= tokens <= COMMON_TOKENS:
            tokens = to_tokens(tokens)
        nanos = to_nanos(usd)
        family = self._home
        if family.pending:
            done = self._few and _straight.record(self, tokens, nanos)
            return None if done else _ledger.record(self, tokens, nanos, force)
        account = self._account
        for _ in family.spending:
            try:
                tokens_after = account.tokens_claimed + tokens
                nanos_after = account.nanos_claimed + nanos
                if tokens_after <= account.token_bound and nanos_after <= account.nano_bound:
                    account.tokens_claimed = tokens_after
                    account.nanos_claimed = nanos_after
                    return None
                tokens_held = account.tokens_reserved
                nanos_held = account.nanos_reserved
                token_bound = account.token_bound
                nano_bound = account.nano_bound
                gated = account.gated
                name = account.terms[2]
            finally:
                family.lock.release()
            break
        over = (tokens and tokens_after > token_bound) or (nanos and nanos_after > nano_bound)
        if over and not (force or gated) and HERE[0]:
            raise BudgetExceeded._refusal(
                name, tokens, tokens_after, tokens_held, token_bound, nanos, nanos_after, nanos_held, nano_bound
            )
        return _ledger.record(self, tokens, nanos, force)

    async def arecord(
        self,
        *,
        tokens: typing.SupportsIndex = 0,
        usd: float | decimal.Decimal | fractions.Fraction = 0,
        force: bool = False,
    ) -> None:
        """Do what `record` does. It never suspends; the pools of a store may."""
        self.record(tokens=tokens, usd=usd, force=force)

    def reserve(
        self,
        *,
        tokens: typing.SupportsIndex = 0,
        usd: float | decimal.Decimal | fractions.Fraction = 0,
        timeout: float | None = 0,
    ) -> Reservation:
        """Hold an amount for a call that is about to be made, if it fits under both caps.

        Waits only if it is told to (a thread; tasks use `areserve`). Use the answer as ``with pool.reserve(...) as
        reservation:`` (or ``async with``), and `Reservation.commit` in the block; leaving it without gives the amount
        back. Or keep it and settle it anywhere else, from any thread, exactly once.

        Args:
            tokens: the most tokens that the call may use: its input and the largest output asked for.
            usd: the most dollars that it may cost.
            timeout: how many seconds to wait for room, first come, first served. 0 does not wait. A number of seconds
                waits for room that calls in flight give back, and for the next period of a window if that begins in
                time. None waits without end, for calls in flight only. Within one pool a large request that waits
                holds up smaller ones that come after it. A holder that waits for more from the same pool may wait for
                itself: give a time-out.

        Raises:
            BudgetExceeded: it does not fit; with a timeout: it cannot fit while it would wait. Nothing was changed.
            BudgetTimeout: no room came in time; nothing was changed.
            TypeError, ValueError: bad amounts (see the class) or a bad timeout; nothing was changed.
            PoolClosed: this pool or one above it is closed.
            PoolForked: in a forked child, before `detach`.

        Warns:
            RuntimeWarning: it is about to wait in a thread whose event loop is running.

        Example:
            >>> pool = BudgetPool(token_cap=1000)
            >>> with pool.reserve(tokens=800):
            ...     pool.snapshot().tokens_remaining  # no commit: as after a failed call
            200
            >>> pool.snapshot().tokens_remaining
            1000
        """
        if type(tokens) is not int or not 0 <= tokens <= COMMON_TOKENS:
            tokens = to_tokens(tokens)
        nanos = to_nanos(usd)
        if timeout is not _NO_WAIT:
            timeout = checked_timeout(timeout)
        # The reservation exists before its capacity is taken: from the taking on, whoever is interrupted drops an
        # object that gives it back. Its slots are filled here, `_state` last, since calling a function costs more.
        reservation = _new(Reservation)
        reservation._pool = self
        reservation._tokens = tokens
        reservation._nanos = nanos
        reservation._state = None
        family = self._home
        if family.pending:
            taken = self._few and _straight.reserve(self, reservation, tokens, nanos)
            return reservation if taken else _sleep.reserve(reservation, timeout)
        account = self._account
        for _ in family.spending:
            try:
                tokens_after = account.tokens_claimed + tokens
                nanos_after = account.nanos_claimed + nanos
                if tokens_after <= account.token_bound and nanos_after <= account.nano_bound:
                    tokens_held = account.tokens_reserved + tokens
                    nanos_held = account.nanos_reserved + nanos
                    in_flight = account.in_flight + 1
                    account.tokens_claimed = tokens_after
                    account.nanos_claimed = nanos_after
                    account.tokens_reserved = tokens_held
                    account.nanos_reserved = nanos_held
                    account.in_flight = in_flight
                    reservation._state = family.opened
                    return reservation
                tokens_held = account.tokens_reserved
                nanos_held = account.nanos_reserved
                token_bound = account.token_bound
                nano_bound = account.nano_bound
                gated = account.gated
                name = account.terms[2]
            finally:
                family.lock.release()
            break
        over = (tokens and tokens_after > token_bound) or (nanos and nanos_after > nano_bound)
        if over and not (timeout or timeout is None or gated) and HERE[0]:
            raise BudgetExceeded._refusal(
                name, tokens, tokens_after, tokens_held, token_bound, nanos, nanos_after, nanos_held, nano_bound
            )
        return _sleep.reserve(reservation, timeout)

    try_reserve = reserve  # what token-budget-py calls it; a call of its own would cost a tenth

    def areserve(
        self,
        *,
        tokens: typing.SupportsIndex = 0,
        usd: float | decimal.Decimal | fractions.Fraction = 0,
        timeout: float | None = None,
    ) -> AsyncReserve:
        """Hold an amount, and let this task wait for room: ``await`` the answer, or use it as ``async with``.

        For asyncio, and for trio where it is imported. Tasks and threads wait in one line. A task that is cancelled
        while it waits gets nothing, or gives it back. Room may come from a commit in any thread or event loop. The
        answer is a coroutine: ``asyncio.create_task`` and task groups take it.

        Args:
            tokens: as `reserve`.
            usd: as `reserve`.
            timeout: as `reserve`; None waits without end, for calls in flight only.

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
        amounts = to_tokens(tokens), to_nanos(usd)
        return AsyncReserve(new_reservation(self, *amounts), checked_timeout(timeout))

    # ------------------------------------------------------------------ scopes

    def child(
        self,
        token_cap: typing.SupportsIndex | None = None,
        usd_cap: float | decimal.Decimal | fractions.Fraction | None = None,
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
        account = Account(*checked_caps(token_cap, usd_cap), checked_name(name), checked_window(window))
        account.parent = self._account
        return self._below(account, self._chain, (self,))

    @staticmethod
    def join(*pools: BudgetPool, name: str | None = None) -> BudgetPool:
        """Return a pool without caps of its own that counts against all of these and what is above them, each once.

        For a call that belongs to a user, a project and the whole at the same moment. All must descend from one pool.
        It stands in no tree. A caller that waits under a join for one of the scopes may find that callers that do not
        need that scope have filled another meanwhile.

        Raises:
            TypeError: something is no pool.
            ValueError: no pools, or pools that do not descend from one.
            PoolClosed: one of the pools, or one above it, is closed.
            PoolForked: in a forked child, before `detach`.

        Example:
            >>> total = BudgetPool(usd_cap=100)
            >>> user, project = total.child(usd_cap=1, name="ann"), total.child(usd_cap=5, name="atlas")
            >>> BudgetPool.join(user, project).record(usd=0.5)
            >>> user.snapshot().usd_used, project.snapshot().usd_used, total.snapshot().usd_used
            (0.5, 0.5, 0.5)
        """
        for pool in pools:
            if not isinstance(pool, BudgetPool):
                advice = ": write join(*pools)" if isinstance(pool, (list, tuple, set)) else ""
                raise TypeError(f"join takes pools, not {type(pool).__name__}{advice}")
        if not pools:
            raise ValueError("join needs at least one pool")
        if any(pool._family is not pools[0]._family for pool in pools):
            raise ValueError("join takes pools that descend from one pool: make them with child() or keyed()")
        return BudgetPool._below(Account(None, None, checked_name(name), None), _union(pools), pools)

    @staticmethod
    def _to_record(*pools: BudgetPool) -> BudgetPool:
        """Join pools of one family for ``record(..., force=True)`` alone: some of them may be closed."""
        joined = BudgetPool.__new__(BudgetPool)
        joined._parents = pools
        joined._bind(pools[0]._family, (Account(None, None, None, None), *_union(pools)))
        return joined

    def keyed(
        self,
        token_cap: typing.SupportsIndex | None = None,
        usd_cap: float | decimal.Decimal | fractions.Fraction | None = None,
        *,
        name: str | None = None,
        window: Window | None = None,
    ) -> KeyedPools[BudgetPool]:
        """Return child pools by key, each with these caps and this window: for users, projects or runs.

        Arguments and errors are those of the class, and of `child`. The name of a key's pool is the key, after this
        name and a colon if one is given.

        Example:
            >>> pool = BudgetPool(usd_cap=1000)
            >>> users = pool.keyed(usd_cap=10)
            >>> users["user-123"].record(usd=4)
            >>> users["user-123"].snapshot().usd_remaining
            6.0
        """
        caps = checked_caps(token_cap, usd_cap)
        return KeyedPools(BudgetPool, self, caps, checked_name(name), checked_window(window))

    @classmethod
    def from_env(
        cls,
        prefix: str = "TOKEN_BUDGET_",
        *,
        environ: Mapping[str, str] | None = None,
        require_cap: bool = True,
    ) -> BudgetPool:
        """Make a pool of what environment variables say.

        They are called ``TOKEN_CAP``, ``USD_CAP``, ``NAME`` and ``WINDOW``, after the prefix. What is not set, or
        empty, is left out. Caps are plain decimal numbers (``1_000_000``, ``12.50``), the window is what `Window.parse`
        reads (``daily Europe/Berlin``). If ``STORE`` is set, the answer is the pool of a store, as
        `token_budget.stores.open_pool` makes it (``sqlite:budget.db#batch``): it needs a name, and no cap if it is
        there already and has one.

        Args:
            prefix: what the names begin with, the underscore included.
            environ: where to look; ``os.environ`` if it is left out.
            require_cap: whether a pool without any cap is refused.

        Raises:
            ValueError: a variable says nothing that can be read, or no cap was found; the error names the variables.
            TypeError: ``STORE`` is set, and this is a subclass.
            With ``STORE``: what `token_budget.stores.open_pool` raises.

        Example:
            >>> BudgetPool.from_env(environ={"TOKEN_BUDGET_USD_CAP": "12.50", "TOKEN_BUDGET_NAME": "batch"})
            <BudgetPool batch: usd 0.0000 / 12.5000 (0%) | 0 in flight>
        """
        from token_budget._environment import pool_of

        variables = os.environ if environ is None else environ
        return pool_of(cls, prefix, variables, require_cap=require_cap, in_stores=cls is BudgetPool)  # type: ignore[no-any-return]


def _union(pools: tuple[BudgetPool, ...]) -> Chain:
    """Return the accounts of all chains, each once, the family's root last."""
    accounts = dict.fromkeys(account for pool in pools for account in pool._chain[:-1])
    return (*accounts, pools[0]._chain[-1])


def _after_fork_in_child() -> None:  # pragma: no cover - runs in forked children, which are not measured
    for family in list(families.values()):
        family.fork(alone=True)
    HERE[0] = 1


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    # Twice, and it may be repeated: CPython drops an exception that ends a hook, and Ctrl-C may end one of them.
    os.register_at_fork(after_in_child=_after_fork_in_child)
    os.register_at_fork(after_in_child=_after_fork_in_child)
