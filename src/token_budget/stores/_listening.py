"""Listening: who hears of what this process does to a scope, and thresholds, which one process tells for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from token_budget._events import BudgetEvent
from token_budget.stores._store import Group, Numbers, Scope

# A pool that nobody listens to pays one attribute load: `if family.listeners and heard(chain): ...`


def heard(chain: Sequence[Scope]) -> bool:
    """Return whether anybody in this process listens to a scope of the chain, or to its group."""
    raise NotImplementedError


def tell(
    family: Any,
    chain: Sequence[Scope],
    kind: str,
    pool: str | None,
    tokens: int,
    nanos: int,
    rows: Sequence[Numbers] = (),
) -> None:
    """Call back who listens to the chain, and whose threshold is reached. Without rows it reads them.

    With no lock held, in this thread, after the step. What callbacks raise is logged. Raises nothing of the store.
    """
    raise NotImplementedError


def pass_on_news(family: Any) -> None:
    """Empty `Store.news`: log what is to be known, and call back: `if family.store.news: pass_on_news(family)`."""
    raise NotImplementedError


def subscribe(family: Any, watched: Scope | Group, callback: Callable[[BudgetEvent], object]) -> Callable[[], None]:
    """See `Pool.subscribe` and `Keys.subscribe`. Checks the callback."""
    raise NotImplementedError


def on_threshold(
    family: Any, watched: Scope | Group, share: Any, callback: Callable[[BudgetEvent], object]
) -> Callable[[], None]:
    """See `Pool.on_threshold` and `Keys.on_threshold`. Checks the share and the callback."""
    raise NotImplementedError


def listeners_of(watched: Scope | Group) -> int:
    """Return how many subscribers and thresholds there are, for `statistics`."""
    raise NotImplementedError
