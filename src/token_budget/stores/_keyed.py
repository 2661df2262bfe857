"""StoreKeyedPools: a child pool of a store for each key (user, project, run)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, NoReturn, SupportsIndex, TypeVar
from weakref import WeakValueDictionary

from token_budget._arguments import UNCHANGED, checked_cap
from token_budget._events import BudgetEvent
from token_budget._money import to_nanos, to_tokens
from token_budget._window import Window
from token_budget.contract import Amount
from token_budget.stores._governed import Governed, stored_window
from token_budget.stores._listening import on_threshold, subscribe
from token_budget.stores._names import checked_key
from token_budget.stores._refusing import pool_closed
from token_budget.stores._store import Group, Scope

KeyPool = TypeVar("KeyPool", bound=Governed)


class StoreKeyedPools(Generic[KeyPool]):
    """Child pools of one parent by key, all with the same caps: ``users["ann"].reserve(...)``.

    ``keyed`` makes it. Keys are str, since all processes must find the same key in the store. To look a pool up asks no
    store: the store makes the key when something is first spent there.

    A key is forgotten by the store when that loses nothing: no call is in flight, and nothing is used or its period is
    over.
    """

    __slots__ = ("__weakref__", "_group", "_make", "_parent", "_pools")

    def __init__(self, parent: Governed, group: Group, make: Callable[[Scope], KeyPool]) -> None:
        self._parent: Governed = parent
        self._group: Group = group
        self._make: Callable[[Scope], KeyPool] = make
        self._pools: WeakValueDictionary[str, KeyPool] = WeakValueDictionary()

    # ------------------------------------------------------------------ looking up

    def __getitem__(self, key: str) -> KeyPool:
        """Return the pool of a key. It asks no store.

        Raises:
            TypeError: the key is no str.
            ValueError: it is empty, or has more than 200 characters.
        """
        pool = self._pools.get(key) if type(key) is str else None
        if pool is None:
            text = checked_key(key)
            pool = self._pools.setdefault(text, self._make(self._scope(text)))
        return pool

    def get(self, key: str, default: Any = None) -> KeyPool | Any:
        """Return the pool of a key that the store knows, else the default. It makes no key."""
        known = key in self
        return self[key] if known else default

    def items(self) -> list[tuple[str, KeyPool]]:
        """Return the keys that the store knows, each with its pool."""
        return [(key, self[key]) for key in self.keys()]

    def values(self) -> list[KeyPool]:
        """Return the pools of the keys that the store knows."""
        return [self[key] for key in self.keys()]

    def keys(self) -> list[str]:
        """Return the keys that the store knows."""
        family = self._parent._family
        return family.ask(family.store.keys, self._group)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys that the store knows as it begins."""
        return iter(self.keys())

    def __len__(self) -> int:
        """Return how many keys the store knows."""
        return len(self.keys())

    def __bool__(self) -> bool:
        """Return True, also while the store knows no key."""
        return True

    def __contains__(self, key: object) -> bool:
        """Return whether the store knows a key."""
        try:
            text = checked_key(key)
        except (TypeError, ValueError):
            return False
        family = self._parent._family
        return family.ask(family.store.knows, self._scope(text))

    def __delitem__(self, key: str) -> None:
        """Have the store forget a key, for all processes. It begins anew when something is next spent there.

        Raises:
            KeyError: the store does not know the key.
            ValueError: calls are in flight there; nothing was changed.
        """
        try:
            text = checked_key(key)
        except (TypeError, ValueError):
            raise KeyError(key) from None
        family = self._parent._family
        if not family.ask(family.store.forget, self._scope(text)):
            raise KeyError(key)

    # ------------------------------------------------------------------ for all keys

    def set_caps(
        self,
        *,
        token_cap: SupportsIndex | None = UNCHANGED,
        usd_cap: Amount | None = UNCHANGED,
        window: Window | None = UNCHANGED,
    ) -> None:
        """Change the caps or the window of every key, those to come included, except where a key has its own.

        It holds for all processes. Arguments and errors are those of the pool's `set_caps`. What was set on a key's own
        pool stays.
        """
        tokens = token_cap if token_cap is UNCHANGED else checked_cap(token_cap, to_tokens, "token_cap")
        nanos = usd_cap if usd_cap is UNCHANGED else checked_cap(usd_cap, to_nanos, "usd_cap")
        given = window if window is UNCHANGED else stored_window(window)
        parent = self._parent
        if parent._handle.closed:
            raise pool_closed(parent._name)
        parent._family.ask(parent._family.store.set_group, self._group, tokens, nanos, given)
        parent._family.line.stir()

    def subscribe(self, callback: Callable[[BudgetEvent], object]) -> Callable[[], None]:
        """Call back for everything that this process does to the pool of any key, and return how to end it."""
        return subscribe(self._parent._family, self._group, callback)

    def on_threshold(self, share: Amount, callback: Callable[[BudgetEvent], object]) -> Callable[[], None]:
        """Call back once in each key's period when what the key used comes to a share of a cap.

        It is the pool's `on_threshold` on every key, those to come included; it returns how to end it. ``event.pool``
        is the name of the key's pool.
        """
        return on_threshold(self._parent._family, self._group, share, callback)

    def _scope(self, key: str) -> Scope:
        return self._parent._family.key(self._group, key)

    def __repr__(self) -> str:
        try:
            name, parent = self._group.name, self._parent
        except AttributeError:
            return "<StoreKeyedPools, half made>"
        return f"<StoreKeyedPools{'' if name is None else f' {name!r}'} of {parent!r}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("StoreKeyedPools cannot be copied or pickled: let each process call keyed() by the same line")
