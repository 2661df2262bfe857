"""Charge: all pools that one call counts against, and what it holds of them.

What always holds: a scope is charged once, however many of the pools stand below it. The pools of one family, of the
core or of a store, are reserved in one step (`join`); those of different families one after the other, in an order that
is the same for all calls of the process, and all or none. `Held.commit` and `Held.release` raise nothing: they come
after the answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from token_budget._errors import BudgetExceeded, BudgetOverrun, PoolClosed, PoolForked, ReservationClosed
from token_budget._group import Group
from token_budget._money import MAX_TOKENS, MAX_USD, NANOS_PER_USD, usd_text
from token_budget._pool import BudgetPool
from token_budget._snapshot import BudgetSnapshot
from token_budget.contract import BudgetUnavailable, HeldAmount, Spendable

if TYPE_CHECKING:
    import logging
    from fractions import Fraction

MAX_NANOS = MAX_USD * NANOS_PER_USD
_EXACT_AS_FLOAT = 1 << 50  # nanodollars below this come out of a float as they went in
REFUSALS = (BudgetExceeded, PoolClosed, PoolForked)


def logger() -> logging.Logger:
    """Return the package's logger, which is silent until the program configures logging."""
    import logging

    log = logging.getLogger("token_budget")
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    return log


def to_dollars(nanos: int) -> float | Fraction:
    """Return nanodollars as dollars that a pool turns into the same nanodollars again."""
    if nanos < _EXACT_AS_FLOAT:
        return nanos / NANOS_PER_USD
    from fractions import Fraction

    return Fraction(nanos, NANOS_PER_USD)


class Charge:
    """The pools of a call, as they are reserved."""

    __slots__ = ("pools",)

    def __init__(self, pools: Iterable[Spendable], *, to_record: bool = False) -> None:
        """Join what can be joined. What is made ``to_record`` alone takes pools that are closed.

        Raises:
            PoolClosed: pools of one family have to be joined, and one of them is closed.
        """
        families: dict[int, list[Any]] = {}
        ordered: dict[int, Spendable] = {}
        pool: Any
        for pool in pools:
            if hasattr(type(pool), "_to_record"):  # of the core or of a store
                families.setdefault(id(pool._family), []).append(pool)
            else:
                ordered[id(pool)] = pool
        for number, members in families.items():
            ordered[number] = _as_one(members, to_record=to_record)
        self.pools: tuple[Spendable, ...] = tuple(ordered[number] for number in sorted(ordered))

    def reserve(self, tokens: int, nanos: int, timeout: float | None, *, lenient: bool = False) -> Held:
        """Hold an amount of every pool, or of none; wait up to ``timeout`` seconds in all.

        A ``lenient`` charge passes over a pool that cannot answer; what the call costs is recorded there afterwards.

        Raises:
            BudgetExceeded, PoolClosed, PoolForked: one of the pools refuses.
            BudgetUnavailable: one of the pools cannot answer.
        """
        tokens, nanos = min(tokens, MAX_TOKENS), min(nanos, MAX_NANOS)
        held, usd = Held(tokens, nanos), to_dollars(nanos)
        deadline = _deadline(timeout) if len(self.pools) > 1 else None
        try:
            for pool in self.pools:
                if held.parts and deadline is not None:
                    timeout = max(0.0, deadline - time.monotonic())
                try:
                    held.parts.append((pool, pool.reserve(tokens=tokens, usd=usd, timeout=timeout)))
                except REFUSALS:
                    raise
                except (BudgetUnavailable, OSError) as error:
                    _unreachable(pool, error, lenient=lenient)
                    held.parts.append((pool, None))
        except BaseException:
            held.release()
            raise
        return held

    async def areserve(self, tokens: int, nanos: int, timeout: float | None, *, lenient: bool = False) -> Held:
        """Do what `reserve` does; the task waits, and not the thread."""
        tokens, nanos = min(tokens, MAX_TOKENS), min(nanos, MAX_NANOS)
        held, usd = Held(tokens, nanos), to_dollars(nanos)
        deadline = _deadline(timeout) if len(self.pools) > 1 else None
        try:
            for pool in self.pools:
                if held.parts and deadline is not None:
                    timeout = max(0.0, deadline - time.monotonic())
                try:
                    held.parts.append((pool, await pool.areserve(tokens=tokens, usd=usd, timeout=timeout)))
                except REFUSALS:
                    raise
                except (BudgetUnavailable, OSError) as error:
                    _unreachable(pool, error, lenient=lenient)
                    held.parts.append((pool, None))
        except BaseException:
            await held.arelease()
            raise
        return held

    def record(self, tokens: int, nanos: int, *, lenient: bool = False) -> BudgetOverrun | None:
        """Add a spend that has happened to every pool, whatever the others say. Return the first overrun.

        Raises:
            PoolForked: in a forked child.
            BudgetUnavailable: a pool cannot answer (if it is not ``lenient``).
        """
        tokens, usd, told = min(tokens, MAX_TOKENS), to_dollars(min(nanos, MAX_NANOS)), _Told()
        for pool in self.pools:
            try:
                pool.record(tokens=tokens, usd=usd, force=True)
            except Exception as error:  # noqa: BLE001, PERF203 - every pool is told, whatever the others say
                told.hear(pool, error)
        return told.outcome(lenient=lenient)

    async def arecord(self, tokens: int, nanos: int, *, lenient: bool = False) -> BudgetOverrun | None:
        """Do what `record` does, without blocking the event loop."""
        tokens, usd, told = min(tokens, MAX_TOKENS), to_dollars(min(nanos, MAX_NANOS)), _Told()
        for pool in self.pools:
            try:
                await pool.arecord(tokens=tokens, usd=usd, force=True)
            except Exception as error:  # noqa: BLE001, PERF203
                told.hear(pool, error)
        return told.outcome(lenient=lenient)

    def snapshots(self) -> list[BudgetSnapshot]:
        """Return a snapshot of every scope that a call counts against: the pools and what is above them."""
        return [pool.snapshot() for pool in self._scopes()]

    def closed(self) -> bool:
        """Return whether one of the pools is closed.

        Raises:
            PoolForked: in a forked child.
        """
        for pool in self.pools:
            if isinstance(pool, BudgetPool):
                _check_fork(pool)
        return any(pool.closed for pool in self.pools)

    def _scopes(self) -> list[Any]:
        """Return the pools and all above them, each once, the lowest first."""
        found: dict[int, Any] = {}
        pending: list[Any] = list(self.pools)
        for scope in pending:  # it grows meanwhile
            if id(scope) not in found:
                found[id(scope)] = scope
                above = getattr(scope, "_parents", ())
                pending += [above._parent] if isinstance(above, Group) else above
        return list(found.values())


class _Told:
    """What pools say to a spend that has happened."""

    __slots__ = ("_failure", "_overrun")

    def __init__(self) -> None:
        self._overrun: BudgetOverrun | None = None
        self._failure: tuple[Spendable, Exception] | None = None

    def hear(self, pool: Spendable, error: Exception) -> None:
        """Keep the first overrun, and the first failure."""
        if isinstance(error, BudgetOverrun):
            self._overrun = self._overrun or error.with_traceback(None)
        else:
            self._failure = self._failure or (pool, error)

    def outcome(self, *, lenient: bool) -> BudgetOverrun | None:
        """Return the overrun, or raise the failure."""
        if self._failure is not None:
            pool, error = self._failure
            if not isinstance(error, (BudgetUnavailable, OSError)):
                raise error
            _unreachable(pool, error, lenient=lenient)
        return self._overrun


class Held:
    """What a call holds of each of its pools: None of a pool that could not answer."""

    __slots__ = ("claims", "nanos", "parts", "tokens")

    def __init__(self, tokens: int, nanos: int) -> None:
        self.tokens: int = tokens
        self.nanos: int = nanos
        self.parts: list[tuple[Spendable, HeldAmount | None]] = []
        self.claims: list[bool] = [True]  # whoever pops it settles the call

    def commit(self, tokens: int, nanos: int) -> BudgetOverrun | None:
        """Record the real cost in every pool. Return the first overrun; raise nothing."""
        tokens, usd = min(tokens, MAX_TOKENS), to_dollars(min(nanos, MAX_NANOS))
        first = None
        for pool, part in [*self.parts]:
            overrun = None
            try:
                if part is None:
                    pool.record(tokens=tokens, usd=usd, force=True)
                else:
                    part.commit(tokens=tokens, usd=usd)
            except BudgetOverrun as error:
                overrun = error.with_traceback(None)
            except ReservationClosed:  # its pool has settled it: in a forked child, or as a lease that ended
                pass
            except Exception as error:  # noqa: BLE001 - whatever a store raises: the answer is there
                _lost(pool, tokens, usd, error)
            if part is None:
                self.parts.remove((pool, part))  # it is told, and not again if the next one is interrupted
            first = first or overrun
        return first

    async def acommit(self, tokens: int, nanos: int) -> BudgetOverrun | None:
        """Do what `commit` does, without blocking the event loop."""
        tokens, usd = min(tokens, MAX_TOKENS), to_dollars(min(nanos, MAX_NANOS))
        first = None
        for pool, part in [*self.parts]:
            overrun = None
            try:
                if part is None:
                    await pool.arecord(tokens=tokens, usd=usd, force=True)
                else:
                    await part.acommit(tokens=tokens, usd=usd)
            except BudgetOverrun as error:
                overrun = error.with_traceback(None)
            except ReservationClosed:
                pass
            except Exception as error:  # noqa: BLE001
                _lost(pool, tokens, usd, error)
            if part is None:
                self.parts.remove((pool, part))  # it is told, and not again if the next one is interrupted
            first = first or overrun
        return first

    def release(self) -> None:
        """Give everything back; raise nothing."""
        for pool, part in self.parts:
            try:
                if part is not None:
                    part.release()
            except Exception as error:  # noqa: BLE001, PERF203 - as `commit`
                _kept(pool, error)

    async def arelease(self) -> None:
        """Do what `release` does, without blocking the event loop."""
        for pool, part in self.parts:
            try:
                if part is not None:
                    await part.arelease()
            except Exception as error:  # noqa: BLE001, PERF203
                _kept(pool, error)


def _as_one(pools: list[Any], *, to_record: bool) -> Spendable:
    """Return one pool that counts against all of these, which are of one family."""
    longest = max(pools, key=lambda pool: len(pool._chain))
    rest = [pool for pool in pools if not set(pool._chain) <= set(longest._chain)]
    if not rest:
        return longest  # type: ignore[no-any-return]
    join = longest._to_record if to_record else longest.join
    return join(longest, *rest)  # type: ignore[no-any-return]


def _check_fork(pool: BudgetPool) -> None:
    """Raise PoolForked in a forked child."""
    family = pool._family
    family.check_fork()
    if family.spending is not family.locked:  # it refuses, and raises
        next(family.spending)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _unreachable(pool: Spendable, error: Exception, *, lenient: bool) -> None:
    """Let the call pass, or raise."""
    if not lenient:
        if isinstance(error, BudgetUnavailable):
            raise error
        raise BudgetUnavailable(f"pool {pool.name!r} cannot answer: {error}") from error
    logger().warning("pool %r cannot answer (%s); the call passes", pool.name, type(error).__name__)


def _lost(pool: Spendable, tokens: int, usd: Any, error: Exception) -> None:
    if isinstance(error, PoolForked):  # a copy of a call of the parent's, which settles it
        return
    nanos = round(usd * NANOS_PER_USD)
    logger().error(
        "a spend of %d tokens and %s USD is not recorded in pool %r: %s",
        tokens,
        usd_text(nanos),
        pool.name,
        type(error).__name__,
    )


def _kept(pool: Spendable, error: Exception) -> None:
    logger().error("what a call held of pool %r is not given back: %s", pool.name, type(error).__name__)
