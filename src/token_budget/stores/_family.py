"""Family: one root of one store, as this process has it; what all pools of that root share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from token_budget.stores._hand import Hand
from token_budget.stores._store import Group, Scope, Store
from token_budget.stores._waiting import Line

T = TypeVar("T")


class StoreFamily:
    """One root of one store in this process."""

    store: Store
    location: str
    hand: Hand
    line: Line
    root: Scope
    epoch: int  # grows when this process is found to be a forked child: claims of an older epoch are the parent's
    listeners: int  # how many subscribers and thresholds there are, so that pools without pay one attribute load

    @classmethod
    def of(cls, location: str, make_store: Callable[[], Store], **options: Any) -> StoreFamily:
        """Return the family of a location, with one handle more; `let_go` gives the handle back.

        It makes a family of a new store if this process has none of that location. ``options`` are what the caller was
        given beside (timeout=5, ...): where the family has others, ValueError says both.
        """
        raise NotImplementedError

    def let_go(self) -> None:
        """Give one handle back. With the last one the hand ends, and the store lets go."""
        raise NotImplementedError

    def scope(self, name: str, above: Scope | None = None) -> Scope:
        """Return the one `Scope` of a name below another (None: the root). It is not opened in the store."""
        raise NotImplementedError

    def key(self, group: Group, key: str) -> Scope:
        """Return the one `Scope` of a key of a group."""
        raise NotImplementedError

    def group(self, above: Scope, name: str | None) -> Group:
        """Return the one `Group` of a name below a scope. It is not opened in the store."""
        raise NotImplementedError

    def ask(self, step: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Do one step of the store: notice a fork before, see to an outage and pass on the news after.

        All steps of the front go through here: ``family.ask(family.store.record, chain, tokens, nanos, force=force)``.
        """
        raise NotImplementedError
