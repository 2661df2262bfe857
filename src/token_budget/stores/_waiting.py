"""Waiting for room: who waits in this process, in which order, and how each gets its turn among all processes.

It expects of a pool and a reservation (`_pool.py`, `_reservation.py`):

* ``pool._attempt(reservation, wait=...) -> Answer``: one `Store.reserve`. Granted: the reservation is open, and the
  listeners are told "reserve". Refused: nothing else; the caller tells "refusal".
* ``reservation._abandon() -> None``: no I/O, it only sets the state of one that nobody will have to released.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator, Sequence
from typing import Any

from token_budget.stores._store import Answer, Scope


class Line:
    """Those who wait in this process for room in the scopes of one root."""

    def __init__(self, family: Any) -> None:
        raise NotImplementedError

    def wait(self, reservation: Any, timeout: float | None, answer: Answer) -> None:
        """Block until the reservation is granted. ``answer`` is the refusal of the first attempt, without a ticket.

        Raises BudgetExceeded (to wait is in vain), BudgetTimeout, PoolClosed, BudgetUnavailable; the refusal is told.
        Warns (RuntimeWarning) in a thread whose event loop runs.
        """
        raise NotImplementedError

    def stir(self, chain: Sequence[Scope] | None = None) -> None:
        """Look at those who wait, now: room may have come back in these scopes (None: anywhere).

        For commit, release, reset, set_caps, close: after the step, with no lock held. It does not block, and costs
        next to nothing while nobody waits.
        """
        raise NotImplementedError

    def count(self, scope: Scope) -> int:
        """Return how many wait in this process and need a scope, for `statistics`."""
        raise NotImplementedError

    def forked(self) -> None:
        """In a forked child: nobody waits."""
        raise NotImplementedError


class AsyncStoreReserve(Coroutine[Any, Any, Any]):
    """What ``areserve`` returns: a coroutine. Await it for a reservation, or enter it with ``async with``."""

    def __init__(self, reservation: Any, timeout: float | None) -> None:
        raise NotImplementedError

    def __await__(self) -> Generator[Any, Any, Any]:
        """Wait for room and return the reservation."""
        raise NotImplementedError

    def send(self, value: Any) -> Any:
        """Go on, as with any coroutine."""
        raise NotImplementedError

    def throw(self, *error: Any) -> Any:
        """Raise an error inside, as with any coroutine."""
        raise NotImplementedError
