"""The body of an answer on its way to the caller: it settles its call at the event that tells the usage.

What always holds: the call is settled before the caller gets the bytes that end the answer. A body that is left after
the end of its text is settled by what it told until then. One that is broken off, cut or never read is charged in full
(or what was seen of it, with ``broken="seen"``); one that is collected is charged in full by its call's own finaliser.
Settling raises nothing, so what the caller sees is what the transport gave or raised.

`peek` looks at the beginning of an answer that is an error. The caller gets it all the same.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from token_budget.metering._pending import Pending
from token_budget.metering._refused import library_of
from token_budget.metering._watch import Watch

PEEKED = 1 << 16  # bytes of an answer that are looked at before its caller gets it


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


def peek(response: Any) -> bytes:
    """Return the first bytes of an answer, unpacked. Whatever goes wrong reaches the caller when it reads them."""
    content: bytes | None = getattr(response, "_content", None)
    if content is not None:
        return content
    body = response.stream = body_class(library_of(type(response)), is_async=False, peeked=True)(response.stream)
    return unpacked(response.headers, body.peek(), PEEKED)


async def apeek(response: Any) -> bytes:
    """Do what `peek` does, with the answer to an async client."""
    content: bytes | None = getattr(response, "_content", None)
    if content is not None:
        return content
    body = response.stream = body_class(library_of(type(response)), is_async=True, peeked=True)(response.stream)
    return unpacked(response.headers, await body.peek(), PEEKED)


def unpacked(headers: Any, body: bytes, most: int) -> bytes:
    """Return a body as it was before gzip or deflate; as it is, if it is not packed so, or damaged, or too long.

    Args:
        headers: its headers; names are looked up in lower case.
        body: the bytes, or their beginning.
        most: how many bytes are unpacked.
    """
    if headers.get("content-encoding", "").strip().lower() not in {"gzip", "deflate"}:
        return body
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        plain = inflater.decompress(body, most)
    except zlib.error:
        return body
    return body if inflater.unconsumed_tail else plain


def body_class(library: Any, *, is_async: bool, peeked: bool = False) -> Any:
    """Return the class of the bodies of a library, httpx or httpx2, made once."""
    base = library.AsyncByteStream if is_async else library.SyncByteStream
    ours = _KINDS[is_async, peeked]
    key = f"{library.__name__} {ours.__name__}"
    made = _CLASSES.get(key)
    if made is None or not issubclass(made, base):  # the library may have been loaded anew
        made = _CLASSES[key] = type(ours.__name__.strip("_"), (ours, base), {})
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
        """Settle what did not come to its end. Does nothing if the call is settled."""
        pending, told = self._pending, self._watch.told
        if pending.open:
            if told is not None:
                pending.settle(told)
            elif pending.terms.broken == "seen":
                pending.seen(self._watch.seen())
            else:
                pending.charge()

    async def _abroken(self) -> None:
        pending, told = self._pending, self._watch.told
        if pending.open:
            if told is not None:
                await pending.asettle(told)
            elif pending.terms.broken == "seen":
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


class _Peeked:
    """A body whose beginning was looked at."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._begun: list[bytes] = []
        self._rest: Any = None
        self._error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inner"], name)


class _SyncPeeked(_Peeked):
    def peek(self) -> bytes:
        self._rest, size = iter(self._inner), 0
        try:
            for chunk in self._rest:
                self._begun.append(chunk)
                size += len(chunk)
                if size >= PEEKED:
                    break
        except Exception as error:  # noqa: BLE001 - the caller's, who reads the answer
            self._error = error
        return b"".join(self._begun)

    def __iter__(self) -> Iterator[bytes]:
        yield from self._begun
        if self._error is not None:
            raise self._error
        yield from self._rest

    def close(self) -> None:
        self._inner.close()


class _AsyncPeeked(_Peeked):
    async def peek(self) -> bytes:
        self._rest, size = self._inner.__aiter__(), 0
        try:
            async for chunk in self._rest:
                self._begun.append(chunk)
                size += len(chunk)
                if size >= PEEKED:
                    break
        except Exception as error:  # noqa: BLE001
            self._error = error
        return b"".join(self._begun)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._begun:
            yield chunk
        if self._error is not None:
            raise self._error
        async for chunk in self._rest:
            yield chunk

    async def aclose(self) -> None:
        try:
            if hasattr(self._rest, "aclose"):
                await self._rest.aclose()
        finally:
            await self._inner.aclose()


_KINDS: dict[tuple[bool, bool], type] = {
    (False, False): _SyncBody,
    (True, False): _AsyncBody,
    (False, True): _SyncPeeked,
    (True, True): _AsyncPeeked,
}
