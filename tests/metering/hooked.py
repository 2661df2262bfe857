"""HTTP clients that answer by a script, in both libraries, sync and async, hooked in each way, and driven alike."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from token_budget import BudgetPool
from token_budget.metering import Meter, budget_run

LIBRARIES = [name for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]
PRICES = {"m": (1, 4), "dear": (10, 40)}
URL = "http://127.0.0.1:1/v1/chat/completions"
CHAT = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "Say hello."}]}
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
ANSWER = {"object": "chat.completion", "model": "m", "choices": [{"message": {"content": "Hello."}}], "usage": USAGE}
COST = 10 * 1000 + 5 * 4000  # nanodollars of USAGE

JSON = {"content-type": "application/json"}
EVENTS = {"content-type": "text/event-stream", "transfer-encoding": "chunked"}


def event(data: Any) -> bytes:
    """Return one server-sent event."""
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data, separators=(",", ":")).encode()) + b"\n\n"


def delta(text: str, **more: Any) -> dict[str, Any]:
    """Return a chunk of a chat."""
    return {
        "object": "chat.completion.chunk",
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": text}}],
        **more,
    }


TOLD = {"object": "chat.completion.chunk", "model": "m", "choices": [], "usage": USAGE}
DONE = event(b"[DONE]")


def stream_of(request: Any) -> list[bytes]:
    """Return the chunks of a chat as OpenAI streams it: with the usage if it is asked for."""
    asked = (json.loads(request.content).get("stream_options") or {}).get("include_usage")
    more: dict[str, Any] = {"usage": None} if asked else {}
    told = [event(TOLD)] if asked else []
    return [event(delta("Hel", **more)), event(delta("lo.", **more)), *told, DONE]


class Hang(BaseException):
    """Ends a body that has no end, as an interrupt does."""


@dataclass
class Reply:
    """What the provider does with one request."""

    status: int = 200
    body: Any = b""  # bytes; a list of chunks, in which an exception is raised; or a function of the request
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    error: BaseException | None = None  # raised in place of an answer
    loaded: bool = False  # the transport gives the body read, as httpx.MockTransport does


def answer(data: Any = ANSWER, **more: Any) -> Reply:
    """Return a reply whose body is JSON."""
    return Reply(body=json.dumps(data).encode(), **more)


def streamed(chunks: Any = stream_of, headers: dict[str, str] | None = None, **more: Any) -> Reply:
    """Return a reply whose body is a stream."""
    return Reply(body=chunks, headers={**EVENTS, **(headers or {})}, **more)


class Body:
    """A body of chunks, for both kinds of client; remembers whether it was closed."""

    def __init__(self, chunks: list[Any]) -> None:
        self.chunks = chunks
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.chunks:
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


class Door:
    """One hooked HTTP client before a provider that answers by a script."""

    def __init__(self, library: str, hooking: str, *, is_async: bool, **options: Any) -> None:
        self.library = importlib.import_module(library)
        self.hooking = hooking
        self.is_async = is_async
        self.pool = BudgetPool(usd_cap=options.pop("usd_cap", 1))
        self.meter = Meter(self.pool, PRICES, **{"timeout": 0, **options})
        self.records: list[Any] = []
        self.meter.subscribe(self.records.append)
        self.requests: list[Any] = []
        self.bodies: list[Body] = []
        self.script: list[Reply] = []
        self.client = self.make()
        if hooking == "wrap":
            self.meter.wrap(self.client)

    def make(self, **options: Any) -> Any:
        """Return a client whose transport is this script."""
        kind = self.library.AsyncClient if self.is_async else self.library.Client
        return kind(transport=self._transport(), **options)

    def _transport(self) -> Any:
        def handle(_: Any, request: Any) -> Any:
            return self._answer(request)

        async def ahandle(_: Any, request: Any) -> Any:
            return self._answer(request)

        if self.is_async:
            body: dict[str, Any] = {"handle_async_request": ahandle}
            return type("Script", (self.library.AsyncBaseTransport,), body)()
        return type("Script", (self.library.BaseTransport,), {"handle_request": handle})()

    def _answer(self, request: Any) -> Any:
        self.requests.append(request)
        reply = self.script.pop(0)
        if reply.error is not None:
            raise reply.error
        body = reply.body(request) if callable(reply.body) else reply.body
        if reply.loaded:
            content = b"".join(body) if isinstance(body, list) else body
            return self.library.Response(reply.status, headers=reply.headers, content=content)
        kind = self.library.AsyncByteStream if self.is_async else self.library.SyncByteStream
        made = type("ScriptedBody", (Body, kind), {})(body if isinstance(body, list) else [body])
        self.bodies.append(made)
        return self.library.Response(reply.status, headers=reply.headers, stream=made)

    def error(self, name: str, text: str = "planned") -> Exception:
        """Return an error of the library by its name."""
        found: Exception = getattr(self.library, name)(text)
        return found

    # ---------------------------------------------------------------- driving it

    def run(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run a coroutine function with the hook at work: in an event loop, or to its end for a sync client."""
        with self.hooked():
            if self.is_async:
                return asyncio.run(work())
            try:
                work().send(None)
            except StopIteration as stop:
                return stop.value
        raise AssertionError("a sync client waits for an event loop")

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Put the hook to work, if the client itself is not hooked."""
        with contextlib.ExitStack() as stack:
            if self.hooking == "run":
                stack.enter_context(budget_run("test", meter=self.meter))
            elif self.hooking == "patch":
                stack.enter_context(self.meter.patch())
            yield

    def send(self, *script: Reply, body: Any = CHAT, stream: bool = False, **options: Any) -> Any:
        """Send one request, which is answered by the script, and return the response."""
        self.script = list(script)
        return self.run(lambda: self.asend(body, stream=stream, **options))

    async def asend(self, body: Any = CHAT, *, stream: bool = False, request: Any = None, **options: Any) -> Any:
        """Send one request."""
        return await maybe(self.client.send(request or self.request(body, **options), stream=stream))

    def request(self, body: Any = CHAT, *, method: str = "POST", url: str = URL, **options: Any) -> Any:
        """Return a request."""
        if body is not None and not options:
            options["json"] = body
        return self.client.build_request(method, url, **options)

    def read(self, *script: Reply, body: Any = None, chunks: int | None = None, **options: Any) -> bytes:
        """Send one request whose answer is streamed, and return the bytes that it is read for."""
        self.script = list(script)
        return bytes(self.run(lambda: self.aread(body, chunks=chunks, **options)))

    async def aread(self, body: Any = None, *, chunks: int | None = None, **options: Any) -> bytes:
        """Read so many chunks of a stream, or all; then close it."""
        response = await self.asend({**CHAT, "stream": True} if body is None else body, stream=True, **options)
        got: list[bytes] = []
        try:
            parts = each(response.aiter_bytes() if self.is_async else response.iter_bytes())
            async with contextlib.aclosing(parts):
                while len(got) != chunks and (chunk := await anext(parts, None)) is not None:
                    got.append(chunk)
        finally:
            await maybe(response.aclose() if self.is_async else response.close())
        return b"".join(got)

    # ---------------------------------------------------------------- looking at it

    @property
    def spent(self) -> int:
        """The nanodollars that are used; nothing may be held any more."""
        snapshot = self.pool.snapshot()
        assert (snapshot.usd_reserved_nanos, snapshot.tokens_reserved, snapshot.in_flight) == (0, 0, 0)
        return snapshot.usd_used_nanos

    @property
    def worst(self) -> int:
        """The nanodollars of the worst case of the last call."""
        usage = self.records[-1].usage
        assert usage.output_tokens == 100
        return int(usage.input_tokens * 1000 + 100 * 4000)

    @property
    def statuses(self) -> list[str]:
        """How each call ended."""
        return [record.status for record in self.records]


async def maybe(value: Any) -> Any:
    """Return the value, or what it is awaited for."""
    return await value if inspect.isawaitable(value) else value


async def each(items: Any) -> AsyncGenerator[Any, None]:
    """Go through what is iterated over, sync or async; close it in the end."""
    if hasattr(items, "__aiter__"):
        try:
            async for item in items:
                yield item
        finally:
            await items.aclose()
    else:
        try:
            for item in items:
                yield item
        finally:
            items.close()
