"""LiteLLM: a refusal comes back as itself, and not inside of an error of LiteLLM's own.

LiteLLM's calls are metered without this: they go through httpx. But LiteLLM takes what its SDKs raise for an error of
the provider (InternalServerError, APIConnectionError), with the refusal in its chain, where
`token_budget.metering.refusal` finds it. `install` puts a thin function over each of LiteLLM's eight that unwraps it.

What always holds: only errors with a refusal in their chain are changed, and no answer is.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

from token_budget.metering import refusal

FUNCTIONS = (
    "completion",
    "acompletion",
    "text_completion",
    "atext_completion",
    "embedding",
    "aembedding",
    "responses",
    "aresponses",
)

_OURS = "_token_budget_original"
_lock = threading.Lock()
_streams: dict[type, type] = {}


def install() -> Callable[[], None]:
    """Make LiteLLM's functions raise refusals as themselves, streams too; return how to undo it.

    Call it once, before ``from litellm import completion``: a function that was imported by name stays as it was.
    Installing twice does nothing. LiteLLM's Router and ``batch_completion`` call these functions, so they raise
    refusals, or return them, too; a Router with ``num_retries`` first tries again, without sending anything.

    Raises:
        ImportError: LiteLLM is not installed; the error has the line that installs it.

    Example::

        from token_budget.adapters.litellm import install

        install()
    """
    from importlib import import_module

    try:
        litellm = import_module("litellm")
    except ImportError as error:
        raise ImportError("LiteLLM is not installed: pip install litellm") from error
    with _lock:
        originals = {name: getattr(litellm, name) for name in FUNCTIONS}
        put = {name: _unwrapping(original) for name, original in originals.items() if not hasattr(original, _OURS)}
        for name, function in put.items():
            setattr(litellm, name, function)

    def undo() -> None:
        with _lock:
            for name, function in put.items():
                if getattr(litellm, name) is function:  # else somebody has put something over it
                    setattr(litellm, name, getattr(function, _OURS))

    return undo


def _unwrapping(original: Any) -> Any:
    """Return a function that does what the original does, and raises refusals as themselves."""
    from inspect import iscoroutinefunction

    @wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        return _unwrapping_stream(_call(original, *args, **kwargs))

    @wraps(original)
    async def afunction(*args: Any, **kwargs: Any) -> Any:
        return _unwrapping_stream(await _await(original, *args, **kwargs))

    made: Any = afunction if iscoroutinefunction(original) else function
    setattr(made, _OURS, original)
    return made


def _unwrapping_stream(answer: Any) -> Any:
    """Return an answer; where it is a stream of LiteLLM's, as one that raises refusals as themselves.

    Gemini's requests leave at the first piece, so a refusal comes there.
    """
    kind = type(answer)
    if kind.__module__.partition(".")[0] == "litellm" and (hasattr(kind, "__next__") or hasattr(kind, "__anext__")):
        answer.__class__ = _stream_class(kind)
    return answer


def _stream_class(kind: Any) -> type:
    """Return the subclass of a class of streams that raises refusals as themselves; it is made once."""
    with _lock:
        made = _streams.get(kind)
        if made is None:
            body: dict[str, Any] = {"__module__": kind.__module__, "__doc__": kind.__doc__}
            if hasattr(kind, "__next__"):
                body["__next__"] = lambda self: _call(kind.__next__, self)
            if hasattr(kind, "__anext__"):
                body["__anext__"] = lambda self: _await(kind.__anext__, self)
            made = _streams[kind] = type(kind.__name__, (kind,), body)
            _streams[made] = made
        return made


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    handled = sys.exc_info()[1]
    try:
        return function(*args, **kwargs)
    except Exception as error:
        found = _refusal(error, handled)
        if found is None:
            raise
    raise found  # outside of the handler: its context is not LiteLLM's error, in whose chain it stands


async def _await(function: Any, *args: Any, **kwargs: Any) -> Any:
    handled = sys.exc_info()[1]
    try:
        return await function(*args, **kwargs)
    except Exception as error:
        found = _refusal(error, handled)
        if found is None:
            raise
    raise found


def _refusal(error: Exception, handled: BaseException | None) -> Exception | None:
    """Return the refusal inside of an error; None if there is none, or if it is older than the call.

    A call that is made while a refusal is being handled (by asking a cheaper model) has that one in its errors' chain.
    """
    found = refusal(error)
    return None if found is refusal(handled) else found
