"""Governed: what can be seen of a pool, and what changes the pool itself. Spending is in `_pool.py`."""

# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false
# pyright cannot know that the body of `for _ in family.locked` runs exactly once; mypy checks the operators here.

from __future__ import annotations

from collections.abc import Callable
from weakref import ref

from token_budget import _settings, _tree
from token_budget._account import Subscription, Threshold
from token_budget._arguments import UNCHANGED, checked_callback, checked_cap, checked_share, checked_window
from token_budget._events import BudgetEvent
from token_budget._family import PAY
from token_budget._group import Group, KeyAccount
from token_budget._money import to_nanos, to_tokens
from token_budget._scope import Scope
from token_budget._snapshot import BudgetSnapshot, PoolStatistics
from token_budget._window import Window

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    import decimal
    import fractions
    import types
    import typing
    from typing import TypeVar

    Self = TypeVar("Self", bound="Governed")
else:
    from token_budget._lazy import decimal, fractions, types, typing

    Self = Scope  # what annotations resolve to

_new = object.__new__


class Governed(Scope):
    """A scope that people look at and manage. `BudgetPool` is one that can be spent from as well."""

    __slots__ = ()

    # ------------------------------------------------------------------ looking

    @property
    def name(self) -> str | None:
        """The name that it was given."""
        return self._account.terms[2]  # type: ignore[no-any-return]

    @property
    def closed(self) -> bool:
        """True once it, or a pool above it, was closed."""
        return any(account.closed for account in self._chain)

    def snapshot(self, tree: bool = False) -> BudgetSnapshot:  # noqa: FBT001, FBT002 - keyword-only is dearer to call
        """Return every number as of one moment. Works in a forked child, and in a signal handler.

        Args:
            tree: with all child pools (and theirs) as ``children``, as of the same moment. What this takes grows with
                the number of pools of the family.

        Example:
            >>> from token_budget import BudgetPool
            >>> pool = BudgetPool(token_cap=1000, name="batch")
            >>> pool.record(tokens=250)
            >>> print(pool.snapshot())
            batch: tokens 250 / 1,000 (25%) | 0 in flight
        """
        if tree:
            return _tree.tree(self)
        family = self._home
        if family.pending:
            return _tree.snapshot(self)
        account = self._account
        snapshot = _new(BudgetSnapshot)
        for _ in family.locked:
            try:
                tokens_claimed = account.tokens_claimed
                tokens_reserved = account.tokens_reserved
                nanos_claimed = account.nanos_claimed
                nanos_reserved = account.nanos_reserved
                in_flight = account.in_flight
                terms = account.terms
            finally:
                family.lock.release()
            break
        snapshot._state = (tokens_claimed, tokens_reserved, nanos_claimed, nanos_reserved, in_flight, terms, ())
        return snapshot

    async def asnapshot(self, tree: bool = False) -> BudgetSnapshot:  # noqa: FBT001, FBT002
        """Do what `snapshot` does. It never suspends; the pools of a store may."""
        return self.snapshot(tree)

    def statistics(self) -> PoolStatistics:
        """Return how many reservations, waiters, children and subscribers the pool has, for debugging.

        ``reservations`` are in flight here or below; ``waiters`` wait for room here, or for room elsewhere and need
        this pool too; ``children`` are alive or keys that are remembered; ``subscribers`` are those of `subscribe` and
        `on_threshold`. What it takes grows with the number of pools of the family.

        Example:
            >>> from token_budget import BudgetPool
            >>> pool = BudgetPool(token_cap=1000)
            >>> reservation = pool.reserve(tokens=100)
            >>> pool.statistics()
            PoolStatistics(reservations=1, waiters=0, children=0, subscribers=0)
            >>> reservation.release()
        """
        return PoolStatistics(*_tree.statistics(self))

    # ------------------------------------------------------------------ changing it

    def reset(self) -> None:
        """Set what is used back to 0 on both axes.

        Calls in flight keep what they hold, and what they commit later counts as used after the reset.

        Raises:
            PoolForked: in a forked child, before `detach`.
        """
        _settings.reset(self)

    def set_caps(
        self,
        *,
        token_cap: typing.SupportsIndex | None = UNCHANGED,
        usd_cap: float | decimal.Decimal | fractions.Fraction | None = UNCHANGED,
        window: Window | None = UNCHANGED,
    ) -> None:
        """Change caps or the window while calls are in flight. What is left out stays; None means no cap, no window.

        Larger caps serve those who wait, at once. Smaller ones may be below what is used and reserved: then remaining
        is negative, nothing new fits, and calls in flight keep what they hold. With another window, what is used stays,
        and the period is the one that the window's clock is in now. To give a window takes time that grows with the
        number of pools of the family that are alive.

        Raises:
            TypeError, ValueError: a bad cap or window (see the class); nothing was changed.
            PoolClosed: the pool is closed.
            PoolForked: in a forked child, before `detach`.

        Example:
            >>> from token_budget import BudgetPool
            >>> pool = BudgetPool(token_cap=1000)
            >>> pool.set_caps(token_cap=2000)
            >>> pool.snapshot().token_cap
            2000
        """
        tokens = token_cap if token_cap is UNCHANGED else checked_cap(token_cap, to_tokens, "token_cap")
        nanos = usd_cap if usd_cap is UNCHANGED else checked_cap(usd_cap, to_nanos, "usd_cap")
        if window is not UNCHANGED:
            checked_window(window)
        _settings.set_caps(self, tokens, nanos, window)

    def close(self) -> None:
        """Refuse new operations, here and in all children, with PoolClosed, and let those in flight settle.

        What happened already is counted all the same: ``record(..., force=True)`` works. What is spent stays in the
        pools above. Those who wait here are refused. Closing twice does nothing. It is for good: make another pool.
        """
        _settings.close(self)

    def __enter__(self: Self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def detach(self) -> None:
        """After ``os.fork()``, in the child: make this copy, with all pools above and below it, a budget of its own.

        It keeps its caps and what was used up to the fork. The calls that were in flight are the parent's: this copy
        holds nothing for them, and their reservations count as closed here. Parent and child together can now spend
        up to both caps. In the process that made the pool, or a second time, it does nothing.

        Example:
            >>> from token_budget import BudgetPool
            >>> pool = BudgetPool(token_cap=1000)
            >>> pool.detach()  # this process made the pool: nothing happens
        """
        _settings.detach(self)

    # ------------------------------------------------------------------ listening

    def subscribe(self, callback: Callable[[BudgetEvent], object]) -> Callable[[], None]:
        """Call back with a `BudgetEvent` for everything that happens to this pool, and return how to end it.

        That is everything that is done on this pool and the pools below it. The callback runs in the thread that did
        it, after the lock is free, in order for one thread; it may use the pool. What it raises is logged (logger
        ``token_budget``). An event is told exactly once, also where an interrupt cuts the operation short: then the
        next operation tells it. While somebody is subscribed, operations take about ten times as long.

        Raises:
            TypeError: it cannot be called, or it is a coroutine function.

        Example:
            >>> from token_budget import BudgetPool
            >>> pool = BudgetPool(token_cap=1000, name="run")
            >>> unsubscribe = pool.subscribe(lambda event: print(event.kind, event.tokens, event.snapshot))
            >>> pool.record(tokens=250)
            record 250 run: tokens 250 / 1,000 (25%) | 0 in flight
            >>> unsubscribe()
        """
        subscription = Subscription(checked_callback(callback))
        _settings.subscribe(self, (subscription,), ())
        return self._ignoring(subscription)

    def on_threshold(
        self, share: float | decimal.Decimal | fractions.Fraction, callback: Callable[[BudgetEvent], object]
    ) -> Callable[[], None]:
        """Call back once when what is used comes to a share of a cap, and return how to end it.

        What is held by calls in flight does not count. It is told once; `reset`, the end of a period, and a larger cap
        that leaves what is used below the share arm it again. A pool that is past the share already calls back after
        the next operation, also where `set_caps` lowered a cap. The rest is as with `subscribe`; the event's kind is
        ``"threshold"``.

        Args:
            share: of the cap, above 0: 0.8 is 80 %.
            callback: gets the event.

        Raises:
            TypeError: the share is no number, or the callback cannot be called or is a coroutine function.
            ValueError: the share is not above 0, above 10 (80 is 8,000 %), or not finite.

        Example:
            >>> from token_budget import BudgetPool
            >>> pool = BudgetPool(usd_cap=10, name="day")
            >>> _ = pool.on_threshold(0.8, lambda event: print("80 %:", event.snapshot))
            >>> pool.record(usd=8.5)
            80 %: day: usd 8.5000 / 10.0000 (85%) | 0 in flight
        """
        threshold = Threshold(checked_share(share), checked_callback(callback))
        _settings.subscribe(self, (), (threshold,))
        return self._ignoring(threshold)

    def _ignoring(self, item: Subscription | Threshold) -> Callable[[], None]:
        """Return how to end a subscription. Whoever keeps it does not keep the pool."""
        scope, family = Scope(), self._family
        scope._bind(family, self._chain)
        account, parents = self._account, getattr(self, "_parents", None)
        group = ref(parents) if isinstance(parents, Group) else None

        def unsubscribe() -> None:
            _settings.unsubscribe(scope, item)
            mine = None if group is None else group()
            if mine is not None and isinstance(account, KeyAccount):
                family.run(family.locked, PAY, mine._tidy, account.key, item)

        return unsubscribe

    # ------------------------------------------------------------------ as an object

    def __repr__(self) -> str:
        try:
            shown, waiters = self.snapshot(), self.statistics().waiters
        except AttributeError:
            return f"<{type(self).__name__}, half made>"
        waiting = f" | {waiters} waiting" if waiters else ""
        closed = " | closed" if self.closed else ""
        return f"<{type(self).__name__} {shown}{waiting}{closed}>"

    def __reduce_ex__(self, protocol: typing.SupportsIndex) -> typing.NoReturn:
        raise TypeError(
            "a BudgetPool cannot be copied or pickled: the copy would be a second budget. Pass the pool itself to "
            "threads and tasks. Many processes share one budget through a store, or send their spends to the process "
            "that owns the pool"
        )
