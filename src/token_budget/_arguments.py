"""Checks of the arguments that callers pass beside amounts: names, caps, windows, time-outs, shares, callbacks.

Each returns what the pool keeps, or raises TypeError or ValueError in a message that says what is taken. None of them
takes a lock or runs code of a caller's class.
"""

from __future__ import annotations

import threading

from token_budget._money import shown_type, to_nanos, to_tokens
from token_budget._window import Window

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_NAME_CHARACTERS = 200
UNCHANGED: Any = type(
    "Unchanged", (), {"__repr__": lambda _: "..."}
)()  # the default of an argument that changes nothing


def checked_name(name: Any, argument: str = "name") -> str | None:
    """Return the name of a pool as a plain str, or None; messages call the argument `argument`.

    Raises:
        TypeError: it is no text.
        ValueError: it has more than 200 characters.
    """
    if name is None:
        return None
    if not issubclass(type(name), str):
        raise TypeError(f"{argument} must be a str, not {shown_type(name)}")
    text = str.__str__(name)  # a plain str, whatever the subclass
    if len(text) > _NAME_CHARACTERS:
        raise ValueError(f"{argument} must have at most {_NAME_CHARACTERS} characters, got {len(text)}")
    return text


def checked_cap(cap: Any, convert: Callable[[Any, str], int], argument: str) -> int | None:
    """Return a cap in tokens or nanodollars, as `convert` counts them, or None for no cap."""
    if cap is None:
        return None
    try:
        return convert(cap, argument)
    except ValueError as error:
        raise ValueError(f"{error}; None means no cap") from None


def checked_caps(token_cap: Any, usd_cap: Any) -> tuple[int | None, int | None]:
    """Return both caps, in tokens and in nanodollars."""
    return checked_cap(token_cap, to_tokens, "token_cap"), checked_cap(usd_cap, to_nanos, "usd_cap")


def checked_window(window: Any) -> Window | None:
    """Return a window, or None for none.

    Raises:
        TypeError: it is something else.
    """
    if window is not None and not isinstance(window, Window):
        raise TypeError(f"window must be a Window (Window.daily() and so on), not {shown_type(window)}")
    return window


def checked_timeout(timeout: Any) -> float | None:
    """Return a number of seconds, or None for no end.

    Raises:
        TypeError: it is no int or float.
        ValueError: it is NaN or negative.
    """
    if timeout is None:
        return None
    kind = type(timeout)
    if issubclass(kind, bool) or not issubclass(kind, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, not {shown_type(timeout)}")
    seconds = int.__index__(timeout) if issubclass(kind, int) else float.__float__(timeout)
    if not seconds >= 0:
        raise ValueError(f"timeout must be a number of seconds from 0 on, got {seconds!r}")
    return min(seconds, threading.TIMEOUT_MAX)


def checked_share(share: Any) -> int:
    """Return a share of a cap in parts of 10**9.

    Raises:
        TypeError: it is no number.
        ValueError: it is not above 0, above 10, or not finite.
    """
    parts = to_nanos(share, "share")
    if not 0 < parts <= 10**10:
        raise ValueError("share must be above 0 and at most 10 (1,000 %): 0.8 is 80 %")
    return parts


def checked_callback(callback: Any) -> Callable[[Any], object]:
    """Return a callback that takes an event.

    Raises:
        TypeError: it cannot be called, or it is a coroutine function, whose coroutine nobody would run.
    """
    from functools import partial
    from inspect import isasyncgenfunction, iscoroutinefunction

    if not callable(callback):
        raise TypeError("callback must be a function of one argument, the event")
    inner = callback
    while isinstance(inner, partial):
        inner = inner.func
    if any(iscoroutinefunction(one) or isasyncgenfunction(one) for one in (inner, type(inner).__call__)):
        raise TypeError(
            "callback must be an ordinary function: a coroutine function returns a coroutine that nobody would run. "
            "Let an ordinary one hand the event over, such as loop.call_soon_threadsafe(queue.put_nowait, event)"
        )
    return callback  # type: ignore[no-any-return]
