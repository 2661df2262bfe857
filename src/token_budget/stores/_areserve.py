"""AsyncStoreReserve: what ``areserve`` of a store's pool returns, and how its task takes its turn.

A task asks the store by way of the family's hand, and waits in the same line as threads do.
"""

from __future__ import annotations

import warnings
from collections.abc import Coroutine, Generator
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, SupportsIndex

from token_budget.stores._hand import task_bell
from token_budget.stores._places import BUSY, WAITING, Waiter


class AsyncStoreReserve(Coroutine[Any, Any, Any]):
    """What ``areserve`` returns: a coroutine. Await it for a reservation, or enter it with ``async with``.

    It is used once. Like any coroutine it can be made a task, and one that nobody awaits is told by a RuntimeWarning.
    """

    __slots__ = ("_coroutine", "_reservation", "_timeout")

    def __init__(self, reservation: Any, timeout: float | None) -> None:
        self._reservation = reservation
        self._timeout = timeout
        self._coroutine: Any = None

    def __await__(self) -> Generator[Any, Any, Any]:
        """Wait for room and return the reservation."""
        return self._begun().__await__()  # type: ignore[no-any-return]

    def send(self, value: Any) -> Any:
        """Go on, as with any coroutine."""
        return (self._coroutine or self._begun()).send(value)

    def throw(self, *error: Any) -> Any:
        """Raise an error inside, as with any coroutine."""
        try:
            return (self._coroutine or self._begun()).throw(*error)
        finally:
            del error  # its traceback holds this frame, and by that the reservation until a collection

    def close(self) -> None:
        """End it, as with any coroutine."""
        (self._coroutine or self._begun()).close()

    async def __aenter__(self) -> Any:
        """Wait for room and return the reservation."""
        return await self._begun()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release, unless it was settled in the block."""
        await self._reservation.__aexit__(kind, error, traceback)

    def __del__(self) -> None:
        """Warn as a coroutine does that nobody awaited."""
        if getattr(self, "_coroutine", self) is None:  # it was made, and never begun
            warnings.warn(f"{self!r} was never awaited", RuntimeWarning, 2)

    @property
    def __name__(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What tasks show of it, as of any coroutine."""
        return "areserve"

    def __repr__(self) -> str:
        name = self._reservation._pool.name
        return f"<areserve(){'' if name is None else f' of {name!r}'}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("what areserve() returns cannot be copied or pickled: call areserve() again")

    def _begun(self) -> Any:
        if self._coroutine is not None:
            raise RuntimeError("areserve() is awaited or entered once: call it again for another reservation")
        self._coroutine = coroutine = _take(self._reservation, self._timeout)
        return coroutine


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
