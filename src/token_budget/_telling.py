"""Telling: a callback that is owed to a subscriber.

A telling is published together with the change that it tells of, so no interrupt can lose it, and it calls back exactly
once, however often it is tried. Each thread tells what it did itself, in order. What a callback causes in turn is told
after what caused it has been told to all. What a thread left that has ended, and what a finaliser did for a waiter, is
told by whoever comes next.
"""

from __future__ import annotations

import threading
from weakref import ref

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from token_budget._account import Subscription, Threshold
    from token_budget._events import BudgetEvent

_local = threading.local()


class Teller:
    """Stands for one thread while it lives: `me` is dead once the thread has ended."""

    __slots__ = ("__weakref__", "busy", "me")

    def __init__(self) -> None:
        self.busy: tuple[Any, ...] = ()  # the families that the thread is calling back for
        self.me = ref(self)


def teller() -> Teller:
    """Return the teller of this thread."""
    try:
        return _local.teller  # type: ignore[no-any-return]
    except AttributeError:
        _local.teller = mine = Teller()
        return mine


class Telling(map):  # type: ignore[type-arg]
    """One callback that is owed: a map of the callback over the one event. Its one step calls back, and uses it up."""

    __slots__ = ("_teller", "event")
    event: BudgetEvent
    _teller: ref[Teller]  # of the thread that is to call back

    def _pay(self, _takes: object) -> None:
        """Call back, unless it was done before. What the callback raises is logged, except for interrupts."""
        try:
            next(self)
        except Exception as error:
            if isinstance(error, StopIteration) and error.__traceback__.tb_next is None:  # type: ignore[union-attr]
                return  # this map is used up: it was done before
            import logging

            logging.getLogger("token_budget").exception("a subscriber raised on %r", self.event)


def tell(debts: list[Any], listeners: Iterable[Subscription | Threshold], event: BudgetEvent) -> None:
    """Add to the debts that this thread tells these listeners of an event."""
    try:
        me = _local.teller.me  # what `teller` returns: the call would cost a quarter of a lone pool's `record`
    except AttributeError:
        me = teller().me
    for one in listeners:
        if one.heard:
            telling = Telling(one.callback, (event,))
            telling.event = event
            telling._teller = me
            debts.append(telling)
