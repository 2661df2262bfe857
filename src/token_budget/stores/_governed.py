"""Governed: what can be seen of a pool of a store, and what changes the pool itself. Spending is in `_pool.py`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, SupportsIndex, TypeVar

from token_budget._arguments import UNCHANGED, checked_cap, checked_timeout, checked_window
from token_budget._events import BudgetEvent
from token_budget._money import shown_type, to_nanos, to_tokens, to_usd
from token_budget._snapshot import BudgetSnapshot, PoolStatistics
from token_budget._window import Window
from token_budget.contract import Amount
from token_budget.stores._family import StoreFamily
from token_budget.stores._joined import Joined
from token_budget.stores._listening import heard, listeners_of, on_threshold, subscribe, tell
from token_budget.stores._names import name_at
from token_budget.stores._owed import Debt, catch_up
from token_budget.stores._refusing import pool_closed, snapshot_of
from token_budget.stores._store import Numbers, Scope

Self = TypeVar("Self", bound="Governed")


class Expired(NamedTuple):
    """A reservation that was charged in full, since its process died or its lease ended: see ``pool.expired()``."""

    id: str  # what ``pool.settle`` takes
    tokens: int  # what was charged
    usd: float
    usd_nanos: int
    who: str  # "host:pid:start time" of the process that held it
    at: datetime  # when it was charged, in UTC
    pools: tuple[str, ...]  # the names of the scopes that it was charged to, its own first


class Handle:
    """One opening of a pool in this process. The pools below share it: they refuse new work once it is closed."""

    __slots__ = ("closed", "how", "owed")

    def __init__(self, how: str, owed: deque[Debt]) -> None:
        self.how: str = how  # what ``caps`` says: it holds for what is opened below, too
        self.owed: deque[Debt] = owed  # the family's: what operations pay first
        self.closed: bool = False


class Governed:
    """A pool of a store that people look at and manage. `StorePool` is one that can be spent from as well."""

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_chain",
        "_family",
        "_handle",
        "_heard",
        "_name",
        "_own",
        "_parents",
        "_scope",
    )
    _family: StoreFamily
    _scope: Scope | None  # its own; None of a join, which has none in the store
    _chain: tuple[Scope, ...]  # what an operation counts against: its own scope first, the root last
    _heard: tuple[Scope, ...]  # who may listen: the chain, and before it what stands for a join
    _own: Joined | None  # the numbers of a join
    _name: str | None
    _handle: Handle
    _parents: tuple[Any, ...]  # the pools above, which live as long as it does

    def _bind(
        self,
        family: StoreFamily,
        handle: Handle,
        chain: tuple[Scope, ...],
        parents: tuple[Any, ...],
        own: Joined | None = None,
    ) -> None:
        self._family = family
        self._handle = handle
        self._chain = chain
        self._parents = parents
        self._own = own
        if own is None:
            self._scope = chain[0]
            self._name = chain[0].name
            self._heard = chain
        else:
            self._scope = None
            self._name = own.scope.name
            self._heard = (own.scope, *chain)

    # ------------------------------------------------------------------ looking

    @property
    def name(self) -> str | None:
        """The name that it was given; None only of a join without one."""
        return self._name

    @property
    def closed(self) -> bool:
        """True once it, or a pool above it, was closed, as far as this process has seen. It asks no store."""
        return self._handle.closed or any(scope.closed for scope in self._heard)

    def snapshot(self, tree: bool = False) -> BudgetSnapshot:  # noqa: FBT001, FBT002 - as `BudgetPool.snapshot`
        """Return every number as of one moment of the store. It blocks for one step of the store.

        A join shows what this object itself has used and holds, and asks no store.

        Args:
            tree: with all pools below as ``children``, as of the same moment. What this takes grows with their number.

        Raises:
            BudgetUnavailable: the store does not answer.
        """
        if self._own is not None:
            return snapshot_of(self._name, self._own.row())
        family, scope = self._family, self._chain[0]
        if self._handle.owed:
            catch_up(self._handle.owed)
        if not tree:
            return snapshot_of(scope, family.ask(family.store.read, (scope,))[0])
        return _nested(family.ask(family.store.tree, scope))

    async def asnapshot(self, tree: bool = False) -> BudgetSnapshot:  # noqa: FBT001, FBT002
        """Do what `snapshot` does, in the family's worker thread."""
        return await self._family.hand.off_loop(self.snapshot, tree)

    def statistics(self) -> PoolStatistics:
        """Return how many reservations, waiters, children and subscribers the pool has, for debugging.

        ``reservations`` are in flight here or below, of all processes; ``waiters`` wait for room in this very scope, of
        all processes; ``children`` are the pools and keys right below that the store has; ``subscribers`` are those of
        this process. It asks the store for the whole tree below. Of a join the numbers are this object's own.
        """
        listeners = listeners_of(self._heard[0])
        if self._own is not None:
            return PoolStatistics(self._own.row().in_flight, 0, 0, listeners)
        family, scope = self._family, self._chain[0]
        if self._handle.owed:
            catch_up(self._handle.owed)
        rows = family.ask(family.store.tree, scope)
        depth = scope.path.count("/") + 1
        children = sum(path.count("/") == depth for path, _, _ in rows)
        return PoolStatistics(rows[0][2].in_flight, rows[0][2].waiting, children, listeners)

    def expired(self) -> list[Expired]:
        """Return the reservations of this pool that were charged in full, and not corrected since, oldest first.

        Those of pools below are among them. A process that dies, or a lease that ends, leaves its reservations so; the
        provider may have billed the calls. Correct one with `settle`. The store keeps them for 7 days.

        Raises:
            BudgetUnavailable: the store does not answer.
        """
        family = self._family
        mine = {scope.path for scope in self._chain}
        return [
            Expired(
                id=one.id,
                tokens=one.tokens,
                usd=to_usd(one.nanos),
                usd_nanos=one.nanos,
                who=one.who,
                at=datetime.fromtimestamp(one.at, timezone.utc),
                pools=tuple(name_at(path) for path in one.paths),
            )
            for one in family.ask(family.store.expired)
            if mine.issubset(one.paths)
        ]

    # ------------------------------------------------------------------ changing it

    def reset(self) -> None:
        """Set what is used back to 0 on both axes, for all processes.

        Calls in flight keep what they hold, and what they commit later counts as used after the reset. With a window,
        the period is the one that the clock is in. Of a join it sets back what the join itself shows.

        Raises:
            BudgetUnavailable: the store does not answer; it may be done or not. Repeat it: that does no harm, except
                that what was used between the two is set back too.
        """
        family = self._family
        if self._own is not None:
            self._own.reset()
        else:
            family.ask(family.store.reset, self._chain[0])
        if family.listeners and heard(self._heard):
            self._tell("reset", 0, 0)
        family.line.stir(self._chain)

    def set_caps(
        self,
        *,
        token_cap: SupportsIndex | None = UNCHANGED,
        usd_cap: Amount | None = UNCHANGED,
        window: Window | None = UNCHANGED,
    ) -> None:
        """Change caps or the window for all processes, while calls are in flight.

        What is left out stays; None means no cap, no window. Larger caps serve those who wait. Smaller ones may be
        below what is used and reserved: then remaining is negative, and nothing new fits.

        Raises:
            TypeError, ValueError: a bad cap or window, or this is a join, which has none of its own; nothing was
                changed.
            PoolClosed: the pool is closed.
            BudgetUnavailable: the store does not answer; it may be done or not. Repeat it, the result is the same.
        """
        tokens = token_cap if token_cap is UNCHANGED else checked_cap(token_cap, to_tokens, "token_cap")
        nanos = usd_cap if usd_cap is UNCHANGED else checked_cap(usd_cap, to_nanos, "usd_cap")
        given = window if window is UNCHANGED else stored_window(window)
        scope, family = self._in_store("set_caps"), self._family
        if self._handle.closed:
            raise pool_closed(self._name)
        family.ask(family.store.set_caps, scope, tokens, nanos, given)
        family.line.stir(self._chain)

    def close(self) -> None:
        """Refuse new operations with PoolClosed, and let those in flight settle. Closing twice does nothing.

        On a pool that `child` or a key gave, it ends that scope and all below for every process, for good. On the pool
        that was opened it ends this object and the pools that were made of it, in this process alone: the budget goes
        on. On a join it ends the join. What happened already is counted all the same: ``record(..., force=True)``.

        Raises:
            BudgetUnavailable: the store does not answer; a child may be closed or not. Repeat it, closing twice does
                nothing. The pool that was opened is let go in any case.
        """
        family, handle = self._family, self._handle
        if self._own is not None:
            self._own.scope.closed = True
        elif self._chain[0].above is not None:
            family.ask(family.store.close, self._chain[0])
            family.line.stir(self._chain)
        elif not handle.closed:
            handle.closed = True
            family.let_go()

    def __enter__(self: Self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def detach(self) -> None:
        """Do nothing. After a fork the child goes on with the same budget, as a process of its own."""

    # ------------------------------------------------------------------ listening

    def subscribe(self, callback: Callable[[BudgetEvent], object]) -> Callable[[], None]:
        """Call back with a `BudgetEvent` for everything that this process does to this pool and those below.

        What other processes do is not told. The callback runs in the thread that did it, which for `arecord`,
        `acommit` and the like is the family's worker. Returns how to end it. The rest is as `BudgetPool.subscribe`.

        Raises:
            TypeError: it cannot be called, or it is a coroutine function.
        """
        return subscribe(self._family, self._heard[0], callback)

    def on_threshold(self, share: Amount, callback: Callable[[BudgetEvent], object]) -> Callable[[], None]:
        """Call back when what is used comes to a share of a cap: in one process, once in a period for all.

        It is told where an operation finds that the share is reached, in whichever process that has such a threshold.
        `reset`, the end of a period, and a larger cap arm it again. Returns how to end it. The rest is as
        `BudgetPool.on_threshold`.

        Raises:
            TypeError: the share is no number, or the callback cannot be called or is a coroutine function.
            ValueError: the share is not above 0, above 10 (80 is 8,000 %), or not finite.
        """
        return on_threshold(self._family, self._heard[0], share, callback)

    def _tell(self, kind: str, tokens: int, nanos: int, rows: Sequence[Numbers] = ()) -> None:
        """Call back who listens. ``rows`` are those of the chain; without them the store is asked for them."""
        family, own, name = self._family, self._own, self._name
        if own is not None:
            tell(family, (own.scope,), kind, name, tokens, nanos, (own.row(),))
        tell(family, self._chain, kind, name, tokens, nanos, rows)

    def _in_store(self, what: str) -> Scope:
        """Return its scope. Raises ValueError for a join."""
        if self._scope is None:
            raise ValueError(
                f"{what}() is not for a join: it has no scope of its own in the store. Use the pools that it joins"
            )
        return self._scope

    # ------------------------------------------------------------------ as an object

    def __repr__(self) -> str:
        try:
            name = "" if self._name is None else f" {self._name!r}"
            return f"<{type(self).__name__}{name} in {self._family.location}{' | closed' if self.closed else ''}>"
        except AttributeError:
            return f"<{type(self).__name__}, half made>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            "a pool of a store cannot be copied or pickled: let each process open it by the same line. Threads, tasks "
            "and forked children use this one"
        )


def stored_window(window: Any) -> Window | None:
    """Return a window that the text in a store can name, or None for none.

    Raises:
        TypeError: it is something else.
        ValueError: its time zone is a tzinfo that text cannot name, so that no other process could read it.
    """
    checked = checked_window(window)
    if checked is not None and checked._identity[1] is not None:
        raise ValueError(
            f"the time zone of the window {str(checked)[:60]!r} is known to this program alone: the window of a store "
            'is kept as text, so name its zone ("Europe/Berlin", "UTC+02:00")'
        )
    return checked


def checked_seconds(value: Any, what: str, least: float = 0.0) -> float:
    """Return a number of seconds above 0, and not below the least.

    Raises:
        TypeError, ValueError: it is none; None is none either.
    """
    if issubclass(type(value), bool) or not issubclass(type(value), (int, float)):
        raise TypeError(f"{what} must be a number of seconds, not {shown_type(value)}")
    seconds = checked_timeout(value)
    if not seconds or seconds < least:
        raise ValueError(f"{what} must be a number of seconds " + (f"from {least:g} on" if least else "above 0"))
    return float(seconds)


def checked_manner(timeout: Any, on_unavailable: Any, create: Any) -> float:
    """Check what every pool of an engine is opened with beside caps. Return the time-out in seconds.

    Raises:
        TypeError, ValueError: one is bad; the text says what is taken.
    """
    seconds = checked_seconds(timeout, "timeout")
    if not isinstance(on_unavailable, str) or on_unavailable not in {"refuse", "allow"}:
        raise ValueError('on_unavailable must be "refuse" or "allow"')
    checked_create(create)
    return seconds


def checked_create(create: Any) -> None:
    """Raise TypeError unless it is True or False: a text such as "no" would count as True."""
    if not isinstance(create, bool):
        raise TypeError(f"create must be True or False, not {shown_type(create)}")


def _nested(rows: Sequence[tuple[str, str, Numbers]]) -> BudgetSnapshot:
    """Return the snapshot of a tree from its rows, parents first, siblings oldest first."""
    below: dict[str, list[BudgetSnapshot]] = {}
    for path, name, row in reversed(rows[1:]):  # children before their parents
        children = tuple(reversed(below.pop(path, ())))
        below.setdefault(path.rpartition("/")[0], []).append(snapshot_of(name, row, children))
    path, name, row = rows[0]
    return snapshot_of(name, row, tuple(reversed(below.pop(path, ()))))
