"""The body of an answer on its way to the caller: it settles its call at the event that tells the usage.

What always holds: the call is settled before the caller gets the bytes that tell what it cost. A body that is broken
off, cut or never read is charged in full (or what was seen of it, with ``broken="seen"``); one that is collected is
charged in full by its call's own finaliser. Settling raises nothing, so what the caller sees is what the transport gave
or raised.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from token_budget.metering._pending import Pending
from token_budget.metering._refused import library_of
from token_budget.metering._watch import Watch


def watch_stream(response: Any, pending: Pending, watch: Watch) -> None:
    """Put a watch on the body of a response, which is not read yet."""
    library = library_of(type(response))
    body = body_class(library, is_async=not isinstance(response.stream, library.SyncByteStream))
    response.stream = body(response.stream, pending, watch, library)
    if watch.decodes:
        for name in ("content-encoding", "content-length"):
            response.headers.pop(name, None)
    elif watch.strip:
        response.headers.pop("content-length", None)


def body_class(library: Any, *, is_async: bool) -> Any:
    """Return the class of the bodies of a library, httpx or httpx2, made once."""
    base, ours = (library.AsyncByteStream, _AsyncBody) if is_async else (library.SyncByteStream, _SyncBody)
    key = f"{library.__name__} {ours.__name__}"
    made = _CLASSES.get(key)
    if made is None or not issubclass(made, base):  # the library may have been loaded anew
        made = _CLASSES[key] = type("MeteredBody", (ours, base), {})
    return made


_CLASSES: dict[str, Any] = {}


class _Body:
    """What the sync and the async body share."""

    def __init__(self, inner: Any, pending: Pending, watch: Watch, library: Any) -> None:
        self._inner = inner
        self._pending = pending
        self._watch = watch
        self._library = library

    def __getattr__(self, name: str) -> Any:
        """Return what the body below has to offer: httpx2 asks it how long the answer took."""
        return getattr(self.__dict__["_inner"], name)

    def _broken(self) -> None:
        """Charge what did not come to its end. Does nothing if the call is settled."""
        pending = self._pending
        if pending.open:
            if pending.terms.broken == "seen":
                pending.seen(self._watch.seen())
            else:
                pending.charge()

    async def _abroken(self) -> None:
        pending = self._pending
        if pending.open:
            if pending.terms.broken == "seen":
                await pending.aseen(self._watch.seen())
            else:
                await pending.acharge()


class _SyncBody(_Body):
    def __iter__(self) -> Iterator[bytes]:
        watch, pending = self._watch, self._pending
        feed = watch.feed
        try:
            for raw in self._inner:
                kept = feed(raw)
                if watch.ready is not None and pending.open:
                    pending.settle(watch.ready)
                if kept:
                    yield kept
            kept = watch.end()
            if watch.ready is not None:
                pending.settle(watch.ready)
            if kept:
                yield kept
        except zlib.error as error:
            raise self._library.DecodingError(str(error)) from error
        finally:
            self._broken()

    def close(self) -> None:
        try:
            self._broken()
        finally:
            self._inner.close()


class _AsyncBody(_Body):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        watch, pending = self._watch, self._pending
        source = self._inner.__aiter__()
        feed = watch.feed
        try:
            async for raw in source:
                kept = feed(raw)
                if watch.ready is not None and pending.open:
                    await pending.asettle(watch.ready)
                if kept:
                    yield kept
            kept = watch.end()
            if watch.ready is not None:
                await pending.asettle(watch.ready)
            if kept:
                yield kept
        except zlib.error as error:
            raise self._library.DecodingError(str(error)) from error
        finally:
            try:
                await self._abroken()
            finally:
                if hasattr(source, "aclose"):  # a generator
                    await source.aclose()

    async def aclose(self) -> None:
        try:
            await self._abroken()
        finally:
            await self._inner.aclose()
