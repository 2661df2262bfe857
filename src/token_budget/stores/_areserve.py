"""AsyncStoreReserve: what ``areserve`` of a store's pool returns, and how its task takes its turn.

A task asks the store by way of the family's hand, and waits in the same line as threads do.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from token_budget._bells import task_bell
from token_budget._once import Once
from token_budget.stores._places import BUSY, WAITING, Waiter


async def _take(reservation: Any, timeout: float | None) -> Any:
    """Take what the reservation is for, by the hand, and let the task wait if need be."""
    family = reservation._pool._family
    line, hand = family.line, family.hand
    waiter = Waiter(reservation, task_bell(), timeout)
    try:
        await hand.job(partial(line.arrive, waiter, None, wait=timeout != 0)).over(patient=False)
        while waiter.state in {WAITING, BUSY}:
            rung = await waiter.bell.wait(None if waiter.late else waiter.left())
            if waiter.late or not rung:
                await hand.job(line.leave, waiter).over(patient=False)
        waiter.outcome()
    except BaseException:  # cancelled, interrupted, or the loop is gone
        line.abandon(waiter)
        raise
    return reservation


class AsyncStoreReserve(Once[Any]):
    """What ``areserve`` returns: a coroutine. Await it for a reservation, or enter it with ``async with``.

    It is used once. Like any coroutine it can be made a task, and one that nobody awaits is told by a RuntimeWarning.
    """

    __slots__ = ()
    _take = staticmethod(_take)
