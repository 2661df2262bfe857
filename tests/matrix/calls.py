"""The call shapes of each SDK. One coroutine function a shape: the sync client runs through it without ever waiting."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

MODEL = "m"
EQUAL = "equal"  # counted == billed
AT_LEAST = "at least"  # billed and not told: counted >= billed
NOTHING = "nothing"  # nothing is billed, nothing is counted

Run = Callable[[Any], Coroutine[Any, Any, Any]]


@dataclass(frozen=True)
class Shape:
    """One kind of call."""

    name: str
    run: Run
    counts: str = EQUAL
    fails: bool = False  # the SDK raises, which is part of the shape
    spends: bool = True  # it is refused where there is no budget


async def maybe(value: Any) -> Any:
    """Return the value, or what it is awaited for."""
    return await value if inspect.isawaitable(value) else value


@contextlib.asynccontextmanager
async def entered(manager: Any) -> AsyncIterator[Any]:
    """Enter a context manager, sync or async."""
    manager = await maybe(manager)
    if hasattr(manager, "__aenter__"):
        async with manager as value:
            yield value
    else:
        with manager as value:
            yield value


async def pieces(items: Any, most: int | None = None) -> list[Any]:
    """Read so many items of a stream, sync or async, or all; then close it."""
    items = await maybe(items)
    got: list[Any] = []
    try:
        if hasattr(items, "__aiter__"):
            iterator = items.__aiter__()
            while len(got) != most:
                try:
                    got.append(await iterator.__anext__())
                except StopAsyncIteration:
                    break
            if hasattr(iterator, "aclose"):
                await iterator.aclose()
        else:
            sync = iter(items)
            while len(got) != most:
                try:
                    got.append(next(sync))
                except StopIteration:
                    break
            if hasattr(sync, "close"):
                sync.close()
    finally:
        for name in ("aclose", "close"):
            if hasattr(items, name):
                await maybe(getattr(items, name)())
                break
    return got


# ---------------------------------------------------------------- openai and what speaks like it


def _chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 50, **more}


def openai_shapes(client: Any) -> list[Shape]:
    """Return the shapes of a client of openai."""
    shapes = chat_shapes()
    shapes += [
        Shape("embeddings", lambda c: maybe(c.embeddings.create(model=MODEL, input="hello", encoding_format="float"))),
        Shape("embeddings base64", lambda c: maybe(c.embeddings.create(model=MODEL, input=["hello", "you"]))),
        Shape("completions", lambda c: maybe(c.completions.create(model=MODEL, prompt="hello", max_tokens=50))),
        Shape("models", lambda c: _listed(c.models.list()), NOTHING, spends=False),
        Shape("moderations", lambda c: maybe(c.moderations.create(input="hello")), NOTHING, spends=False),
    ]
    if _has(client, "chat.completions.parse"):
        shapes.append(Shape("parse", lambda c: maybe(c.chat.completions.parse(**_chat("hello")))))
        shapes.append(Shape("stream helper", lambda c: _helper(c.chat.completions.stream(**_chat("hello")))))
    if _has(client, "responses"):
        asked = {"model": MODEL, "input": "hello", "max_output_tokens": 50}
        shapes += [
            Shape("responses", lambda c: maybe(c.responses.create(**asked))),
            Shape("responses parse", lambda c: maybe(c.responses.parse(**asked))),
            Shape("responses streamed", lambda c: pieces(c.responses.create(**asked, stream=True))),
            Shape("responses helper", lambda c: _helper(c.responses.stream(**asked))),
            Shape("responses raw", lambda c: _raw(c.responses.with_raw_response.create(**asked))),
            Shape(
                "responses cut",
                lambda c: pieces(c.responses.create(**{**asked, "input": "[cut]"}, stream=True)),
                AT_LEAST,
                fails=True,
            ),
        ]
    return shapes


def chat_shapes() -> list[Shape]:
    """Return the shapes of a chat in the manner of openai: also those of groq."""

    def create(c: Any, text: str = "hello", **more: Any) -> Any:
        return c.chat.completions.create(**_chat(text, **more))

    return [
        Shape("chat", lambda c: maybe(create(c))),
        Shape("gzip", lambda c: maybe(create(c, "[gzip]"))),
        Shape("raw", lambda c: _raw(c.chat.completions.with_raw_response.create(**_chat("hello")))),
        Shape("opened", lambda c: _opened(c.chat.completions.with_streaming_response.create(**_chat("hello")))),
        Shape("with_options", lambda c: maybe(create(c.with_options(timeout=20)))),
        Shape("429, then an answer", lambda c: maybe(create(c.with_options(max_retries=2), "[429-once]"))),
        Shape("500", lambda c: maybe(create(c, "[500]")), NOTHING, fails=True),
        Shape("no usage", lambda c: maybe(create(c, "[no-usage]")), AT_LEAST),
        Shape("null usage", lambda c: maybe(create(c, "[null-usage]")), AT_LEAST),
        Shape("lies", lambda c: maybe(create(c, "[negative]")), AT_LEAST),
        Shape("huge lies", lambda c: maybe(create(c, "[huge]")), AT_LEAST),
        Shape("truncated", lambda c: maybe(create(c, "[truncated]")), AT_LEAST, fails=True),
        Shape("reset", lambda c: maybe(create(c, "[reset]")), AT_LEAST, fails=True),
        Shape("reset in the answer", lambda c: maybe(create(c, "[reset-mid]")), AT_LEAST, fails=True),
        Shape("timed out", lambda c: maybe(create(c.with_options(timeout=0.15), "[hang]")), AT_LEAST, fails=True),
        Shape("streamed", lambda c: _texts(create(c, stream=True))),
        Shape("streamed gzip", lambda c: _texts(create(c, "[gzip]", stream=True))),
        Shape(
            "streamed raw",
            lambda c: _raw_stream(c.chat.completions.with_raw_response.create(**_chat("x", stream=True))),
        ),
        Shape("streamed 500", lambda c: pieces(create(c, "[500]", stream=True)), NOTHING, fails=True),
        Shape("streamed without usage", lambda c: pieces(create(c, "[no-usage]", stream=True)), AT_LEAST),
        Shape("streamed lies", lambda c: pieces(create(c, "[huge]", stream=True)), AT_LEAST),
        Shape("cut", lambda c: pieces(create(c, "[cut]", stream=True)), AT_LEAST, fails=True),
        Shape(
            "stalled",
            lambda c: pieces(create(c.with_options(timeout=0.15), "[stall]", stream=True)),
            AT_LEAST,
            fails=True,
        ),
        Shape("closed early", lambda c: pieces(create(c, stream=True), 1), AT_LEAST),
        Shape("never read", lambda c: pieces(create(c, stream=True), 0), AT_LEAST),
    ]


async def _texts(stream: Any) -> None:
    """Read a stream as most programs do: the chunk that we asked for may not reach them."""
    for chunk in await pieces(stream):
        assert chunk.choices[0].delta is not None


async def _raw(call: Any) -> Any:
    response = await maybe(call)
    return await maybe(response.parse())


async def _raw_stream(call: Any) -> Any:
    return await _texts(await _raw(call))


async def _opened(manager: Any) -> Any:
    async with entered(manager) as response:
        return await maybe(response.parse())


async def _helper(manager: Any) -> Any:
    async with entered(manager) as stream:
        return await pieces(stream)


async def _listed(page: Any) -> Any:
    return await maybe(page)


def _has(client: Any, path: str) -> bool:
    for name in path.split("."):
        client = getattr(client, name, None)
    return client is not None


# ---------------------------------------------------------------- anthropic


def anthropic_shapes(_: Any) -> list[Shape]:
    """Return the shapes of a client of anthropic."""

    def create(c: Any, text: str = "hello", **more: Any) -> Any:
        return c.messages.create(**_chat(text, **more))

    asked = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    return [
        Shape("messages", lambda c: maybe(create(c))),
        Shape("gzip", lambda c: maybe(create(c, "[gzip]"))),
        Shape("raw", lambda c: _raw(c.messages.with_raw_response.create(**_chat("hello")))),
        Shape("opened", lambda c: _opened(c.messages.with_streaming_response.create(**_chat("hello")))),
        Shape("with_options", lambda c: maybe(create(c.with_options(timeout=20)))),
        Shape("beta", lambda c: maybe(c.beta.messages.create(**_chat("hello")))),
        Shape("count_tokens", lambda c: maybe(c.messages.count_tokens(**asked)), NOTHING, spends=False),
        Shape("429, then an answer", lambda c: maybe(create(c.with_options(max_retries=2), "[429-once]"))),
        Shape("500", lambda c: maybe(create(c, "[500]")), NOTHING, fails=True),
        Shape("no usage", lambda c: maybe(create(c, "[no-usage]")), AT_LEAST),
        Shape("lies", lambda c: maybe(create(c, "[negative]")), AT_LEAST),
        Shape("huge lies", lambda c: maybe(create(c, "[huge]")), AT_LEAST),
        Shape("truncated", lambda c: maybe(create(c, "[truncated]")), AT_LEAST, fails=True),
        Shape("reset", lambda c: maybe(create(c, "[reset]")), AT_LEAST, fails=True),
        Shape("reset in the answer", lambda c: maybe(create(c, "[reset-mid]")), AT_LEAST, fails=True),
        Shape("timed out", lambda c: maybe(create(c.with_options(timeout=0.15), "[hang]")), AT_LEAST, fails=True),
        Shape("streamed", lambda c: pieces(create(c, stream=True))),
        Shape("streamed gzip", lambda c: pieces(create(c, "[gzip]", stream=True))),
        Shape("stream helper", lambda c: _helper(c.messages.stream(**_chat("hello")))),
        Shape("streamed 500", lambda c: pieces(create(c, "[500]", stream=True)), NOTHING, fails=True),
        Shape("streamed lies", lambda c: pieces(create(c, "[huge]", stream=True)), AT_LEAST),
        Shape("cut", lambda c: pieces(create(c, "[cut]", stream=True)), AT_LEAST, fails=True),
        Shape(
            "stalled",
            lambda c: pieces(create(c.with_options(timeout=0.15), "[stall]", stream=True)),
            AT_LEAST,
            fails=True,
        ),
        Shape("closed early", lambda c: pieces(create(c, stream=True), 1), AT_LEAST),
        Shape("never read", lambda c: pieces(create(c, stream=True), 0), AT_LEAST),
    ]


# ---------------------------------------------------------------- google-genai


def google_shapes(_: Any) -> list[Shape]:
    """Return the shapes of google-genai: ``c`` is the client, or its ``aio``."""
    config = {"max_output_tokens": 50}

    def create(c: Any, text: str = "hello") -> Any:
        return c.models.generate_content(model=MODEL, contents=text, config=config)

    def stream(c: Any, text: str = "hello") -> Any:
        return c.models.generate_content_stream(model=MODEL, contents=text, config=config)

    async def talked(c: Any) -> Any:
        chat = c.chats.create(model=MODEL, config=config)
        return await maybe(chat.send_message("hello"))

    return [
        Shape("generate", lambda c: maybe(create(c))),
        Shape("gzip", lambda c: maybe(create(c, "[gzip]"))),
        Shape("chat", talked),
        Shape("embed", lambda c: maybe(c.models.embed_content(model=MODEL, contents="hello")), AT_LEAST),
        Shape(
            "count_tokens", lambda c: maybe(c.models.count_tokens(model=MODEL, contents="hi")), NOTHING, spends=False
        ),
        Shape("500", lambda c: maybe(create(c, "[500]")), NOTHING, fails=True),
        Shape("no usage", lambda c: maybe(create(c, "[no-usage]")), AT_LEAST),
        Shape("reset", lambda c: maybe(create(c, "[reset]")), AT_LEAST, fails=True),
        Shape("streamed", lambda c: pieces(stream(c))),
        Shape("streamed gzip", lambda c: pieces(stream(c, "[gzip]"))),
        Shape("streamed 500", lambda c: pieces(stream(c, "[500]")), NOTHING, fails=True),
        Shape("cut", lambda c: pieces(stream(c, "[cut]")), AT_LEAST, fails=True),
        Shape("closed early", lambda c: pieces(stream(c), 1), AT_LEAST),
    ]


# ---------------------------------------------------------------- mistralai


def mistral_shapes(client: Any) -> list[Shape]:
    """Return the shapes of mistralai, whose methods have async twins on the same client."""

    def of(name: str) -> Any:
        return lambda c, **asked: getattr(c.chat, f"{name}_async" if client.is_async else name)(**asked)

    complete, stream = of("complete"), of("stream")

    def embed(c: Any) -> Any:
        method = c.embeddings.create_async if client.is_async else c.embeddings.create
        return method(model=MODEL, inputs="hello")

    return [
        Shape("chat", lambda c: maybe(complete(c, **_chat("hello")))),
        Shape("gzip", lambda c: maybe(complete(c, **_chat("[gzip]")))),
        Shape("embeddings", lambda c: maybe(embed(c))),
        Shape("500", lambda c: maybe(complete(c, **_chat("[500]"))), NOTHING, fails=True),
        Shape("no usage", lambda c: maybe(complete(c, **_chat("[null-usage]"))), AT_LEAST, fails=True),
        Shape("reset", lambda c: maybe(complete(c, **_chat("[reset]"))), AT_LEAST, fails=True),
        Shape("streamed", lambda c: pieces(stream(c, **_chat("hello")))),
        Shape("streamed gzip", lambda c: pieces(stream(c, **_chat("[gzip]")))),
        Shape("streamed 500", lambda c: pieces(stream(c, **_chat("[500]"))), NOTHING, fails=True),
        Shape("cut", lambda c: pieces(stream(c, **_chat("[cut]"))), AT_LEAST, fails=True),
    ]
