"""KeyedPools: a child pool for each key (user, project, run), made when it is first asked for."""

# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false
# pyright cannot know that the body of `for _ in family.locked` runs exactly once; mypy checks the operators here.

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from weakref import ref

from token_budget._account import Subscription, Threshold
from token_budget._arguments import UNCHANGED, checked_callback, checked_cap, checked_share, checked_window
from token_budget._events import BudgetEvent
from token_budget._family import PAY
from token_budget._group import Group, nobody
from token_budget._money import to_nanos, to_tokens
from token_budget._scope import Scope
from token_budget._window import Window

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    import decimal
    import fractions
    import typing
    from typing import Generic, TypeVar

    Pool = TypeVar("Pool", bound=Scope)
else:
    from token_budget._lazy import Generic, decimal, fractions, typing

    Pool = Scope  # what annotations resolve to


class KeyedPools(Group, Generic[Pool]):
    """Child pools of one parent by key, all with the same caps: ``users["user-123"].reserve(...)``.

    ``BudgetPool.keyed`` makes it. Any hashable key will do; its text is the pool's name. Keys that are equal are one
    key, as in a dict (``1`` and ``1.0``). Keys that differ are two budgets, also where their names read the same
    (``1`` and ``"1"``). The same key gives the same budget, whoever asks and whenever.

    A key is forgotten when that loses nothing: nothing is in flight, nothing is used or its period is over, and nobody
    holds its pool or one below. Caps, a window and listeners that were set on a key's own pool are remembered beyond
    that, until ``del users[key]``. A closed key is forgotten after its period's end, and is open when it is asked for
    again.

    Looking up may be done from any thread and blocks for nothing but the lock. A key's ``__hash__`` and ``__eq__`` may
    be called while the lock is held: they must not block or take a lock.
    """

    __slots__ = ()

    # ------------------------------------------------------------------ looking up

    def __getitem__(self, key: Hashable) -> Pool:
        """Return the pool of a key.

        Raises:
            TypeError: the key is not hashable.
        """
        pool = self._remembered(key)
        return pool if pool is not None else self._first(key)  # type: ignore[no-any-return]

    def get(self, key: Hashable, default: Pool | None = None) -> Pool | None:
        """Return the pool of a key that is remembered, else the default. It makes no key."""
        pool = self._remembered(key)
        return pool if pool is not None else default

    def items(self) -> list[tuple[Hashable, Pool]]:
        """Return the keys that are remembered, each with its pool. It makes no key."""
        return [(key, pool) for key in self if (pool := self.get(key)) is not None]

    def values(self) -> list[Pool]:
        """Return the pools of the keys that are remembered. It makes no key."""
        return [pool for _, pool in self.items()]

    def keys(self) -> list[Hashable]:
        """Return the keys that are remembered."""
        return [account.key for account in self._accounts()]

    def __iter__(self) -> Iterator[Hashable]:
        """Iterate over the keys that are remembered as it begins."""
        return iter(self.keys())

    def __len__(self) -> int:
        """Return how many keys are remembered."""
        return len(self._by_key)

    def __bool__(self) -> bool:
        """Return True, also while no key is remembered."""
        return True

    def __contains__(self, key: object) -> bool:
        """Return whether a key is remembered."""
        account = self._by_key.get(key)
        return account is not None and account.handle is not nobody

    def __delitem__(self, key: Hashable) -> None:
        """Forget a key and close its pool. The key begins anew when it is asked for again.

        Raises:
            KeyError: the key is not remembered.
            ValueError: calls are in flight there; nothing was changed.
        """
        family = self._model._family
        family.run(family.spending, PAY, self._forget, key)

    # ------------------------------------------------------------------ for all keys

    def subscribe(self, callback: Callable[[BudgetEvent], object]) -> Callable[[], None]:
        """Call back for everything that happens to the pool of any key, and return how to end it.

        It is `BudgetPool.subscribe` on every key's pool, those to come included. It keeps no key from being forgotten.
        """
        subscription = Subscription(checked_callback(callback))
        self._listen((subscription,), ())
        return self._ignoring(subscription)

    def on_threshold(
        self, share: float | decimal.Decimal | fractions.Fraction, callback: Callable[[BudgetEvent], object]
    ) -> Callable[[], None]:
        """Call back once in each key's period when what the key used comes to a share of a cap.

        It is `BudgetPool.on_threshold` on every key's pool, those to come included; it returns how to end it. It keeps
        no key from being forgotten. ``event.pool`` is the name of the key's pool.
        """
        threshold = Threshold(checked_share(share), checked_callback(callback))
        self._listen((), (threshold,))
        return self._ignoring(threshold)

    def set_caps(
        self,
        *,
        token_cap: typing.SupportsIndex | None = UNCHANGED,
        usd_cap: float | decimal.Decimal | fractions.Fraction | None = UNCHANGED,
        window: Window | None = UNCHANGED,
    ) -> None:
        """Change the caps or the window of every key, those to come included, except where a key has its own.

        Arguments and errors are those of `BudgetPool.set_caps`. What was set on a key's own pool stays. What this takes
        grows with the number of keys.
        """
        tokens = token_cap if token_cap is UNCHANGED else checked_cap(token_cap, to_tokens, "token_cap")
        nanos = usd_cap if usd_cap is UNCHANGED else checked_cap(usd_cap, to_nanos, "usd_cap")
        if window is not UNCHANGED:
            checked_window(window)
        self._set_caps(tokens, nanos, window)

    def _remembered(self, key: Hashable) -> typing.Any:
        """Return the pool of a key, by a straight run where nobody holds it; None if the key is not remembered."""
        account = self._by_key.get(key)
        if account is None:
            return None
        seen = account.handle
        pool = seen()
        if pool is not None or seen is nobody:
            return pool
        family = self._model._family
        if not family.pending:
            model, times, window = self._model, self._model._times, account.window
            pool = self._handle_of(account)
            handle = ref(pool)
            for _ in family.locked:
                try:
                    if account.handle is seen and model._times is times and account.window is window:
                        account.handle = handle
                        return pool
                finally:
                    family.lock.release()
                break
        return family.run(family.locked, PAY, family.change, self._hand_out, (account,))

    def _ignoring(self, item: Subscription | Threshold) -> Callable[[], None]:
        """Return how to end a subscription. Whoever keeps it does not keep the group."""
        group = ref(self)

        def unsubscribe() -> None:
            mine = group()
            if mine is not None:
                mine._ignore(item)

        return unsubscribe

    def __repr__(self) -> str:
        try:
            named = "" if self._name is None else f" {self._name}"
            return f"<KeyedPools{named} {len(self)} keys>"
        except AttributeError:
            return "<KeyedPools, half made>"

    def __reduce_ex__(self, protocol: typing.SupportsIndex) -> typing.NoReturn:
        raise TypeError(
            "KeyedPools cannot be copied or pickled: the copy would be a second budget for each key. Pass the object "
            "itself"
        )
