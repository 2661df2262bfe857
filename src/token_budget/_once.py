"""Once: the coroutine that `areserve` returns, of a pool in process and of a pool in a store. It is used once."""

from __future__ import annotations

import warnings
from collections.abc import Coroutine, Generator

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    import types
    import typing
    from typing import Any, TypeVar

    Held = TypeVar("Held")
else:
    from token_budget._lazy import types, typing

    Any = Held = object  # what annotations resolve to


class Once(Coroutine[Any, Any, Held]):
    """A coroutine: await it for a reservation, or enter it with ``async with``.

    Like any coroutine it can be made a task, and one that nobody awaits is told by a RuntimeWarning.
    """

    __slots__ = ("_coroutine", "_reservation", "_timeout")
    _take: typing.ClassVar[typing.Any]  # the coroutine function, of the reservation and the timeout

    def __init__(self, reservation: Held, timeout: float | None) -> None:
        self._reservation: Any = reservation
        self._timeout = timeout
        self._coroutine: Any = None

    def __await__(self) -> Generator[typing.Any, typing.Any, Held]:
        """Wait for room and return the reservation."""
        return self._begun().__await__()  # type: ignore[no-any-return]

    def send(self, value: typing.Any) -> typing.Any:
        """Go on, as with any coroutine."""
        return (self._coroutine or self._begun()).send(value)

    def throw(self, *error: typing.Any) -> typing.Any:
        """Raise an error inside, as with any coroutine."""
        try:
            return (self._coroutine or self._begun()).throw(*error)
        finally:
            del error  # its traceback holds this frame, and by that the reservation until a collection

    def close(self) -> None:
        """End it, as with any coroutine."""
        (self._coroutine or self._begun()).close()

    async def __aenter__(self) -> Held:
        """Wait for room and return the reservation."""
        return await self._begun()  # type: ignore[no-any-return]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
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

    def __reduce_ex__(self, protocol: typing.SupportsIndex) -> typing.NoReturn:
        raise TypeError("what areserve() returns cannot be copied or pickled: call areserve() again")

    def _begun(self) -> Any:
        if self._coroutine is not None:
            raise RuntimeError("areserve() is awaited or entered once: call it again for another reservation")
        # A function and no method: the coroutine must not hold this object, so that it ends as its last user drops it.
        self._coroutine = coroutine = self._take(self._reservation, self._timeout)
        return coroutine
