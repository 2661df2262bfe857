"""The stream of an answer: settled at the event that tells the usage, charged when it breaks, its bytes unchanged."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import zlib
from typing import Any

import pytest

from hooked import (
    CHAT,
    COST,
    DONE,
    EVENTS,
    LIBRARIES,
    TOLD,
    USAGE,
    Door,
    Hang,
    Reply,
    answer,
    delta,
    event,
    stream_of,
    streamed,
)
from token_budget.metering import Usage
from token_budget.metering._ask import Ask
from token_budget.metering._stream import watch_stream
from token_budget.metering._watch import Watch

needs_http = pytest.mark.skipif(not LIBRARIES, reason="needs httpx or httpx2")
KINDS = [
    pytest.param((library, is_async), id=f"{library}-{'async' if is_async else 'sync'}")
    for library in LIBRARIES or ["none"]
    for is_async in (False, True)
]
STREAM = {**CHAT, "stream": True}
ASKING = {**STREAM, "stream_options": {"include_usage": True}}
PLAIN = [event(delta("Hel")), event(delta("lo."))]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def door(kind: Any) -> Door:
    return Door(kind[0], "wrap", is_async=kind[1])


def made(kind: Any, **options: Any) -> Door:
    return Door(kind[0], "wrap", is_async=kind[1], **options)


# ---------------------------------------------------------------- whole streams

pytestmark = needs_http


def test_the_usage_that_we_asked_for_is_counted_and_left_out(door: Door) -> None:
    got = door.read(streamed())
    sent = stream_of(door.requests[0])
    assert sent[2] == event(TOLD)
    assert got == sent[0] + sent[1] + DONE
    assert door.spent == COST


def test_a_stream_may_end_without_an_end_of_line(door: Door) -> None:
    assert door.read(streamed([*PLAIN, event(TOLD), DONE[:-2]])) == b"".join([*PLAIN, DONE[:-2]])
    assert door.read(streamed([*PLAIN, event(TOLD)[:-2]])) == b"".join(PLAIN)
    assert door.read(streamed([*PLAIN, DONE[:-2]])) == b"".join([*PLAIN, DONE[:-2]])
    assert door.statuses == ["settled", "settled", "charged"]


def test_it_is_left_out_also_where_the_usage_was_told_before(door: Door) -> None:
    for told in (GROQ["chunks"][1], event({**delta(""), "usage": USAGE})):
        assert door.read(streamed([*PLAIN, told, event(TOLD), DONE])) == b"".join([*PLAIN, told, DONE])
        assert door.read(streamed([*PLAIN, told, DONE])) == b"".join([*PLAIN, told, DONE])
    assert door.spent == COST * 4


def test_the_usage_that_the_caller_asked_for_is_counted_and_stays(door: Door) -> None:
    got = door.read(streamed(), body=ASKING)
    assert got == b"".join(stream_of(door.requests[0]))
    assert door.spent == COST


def test_a_stream_that_is_read_as_a_whole_is_metered_too(door: Door) -> None:
    assert door.send(streamed(), body=STREAM).content == door.read(streamed())
    assert door.send(streamed(), body=ASKING).content == b"".join(stream_of(door.requests[2]))
    assert door.send(answer(), body=STREAM).json()["usage"] == USAGE
    assert door.spent == COST * 4


TOLD_AT_FIRST = {"model": "m", "usage": {"input_tokens": 10, "output_tokens": 1}}
ANTHROPIC: dict[str, Any] = {
    "url": "http://127.0.0.1:1/v1/messages",
    "body": STREAM,
    "chunks": [
        b"event: " + str(one["type"]).encode() + b"\n" + event(one)
        for one in (
            {"type": "message_start", "message": TOLD_AT_FIRST},
            {"type": "ping"},
            {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 2}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
            {"type": "message_stop"},
        )
    ],
    "final": 3,
}
RESPONSES: dict[str, Any] = {
    "url": "http://127.0.0.1:1/v1/responses",
    "body": {"model": "m", "input": "hi", "stream": True, "max_output_tokens": 100},
    "chunks": [
        event({"type": "response.created", "response": {"usage": None}}),
        event({"type": "response.output_text.delta", "delta": "Hello."}),
        event(
            {
                "type": "response.completed",
                "response": {"model": "m", "usage": {"input_tokens": 10, "output_tokens": 5}},
            }
        ),
    ],
    "final": 2,
}
GEMINI: dict[str, Any] = {
    "url": "http://127.0.0.1:1/v1beta/models/m:streamGenerateContent?alt=sse",
    "body": {"contents": [{"parts": [{"text": "hi"}]}], "generationConfig": {"maxOutputTokens": 100}},
    "chunks": [
        event(
            {
                "candidates": [{"content": {"parts": [{"text": text}]}, **end}],
                "modelVersion": "m",
                "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": count},
            }
        )
        for text, count, end in (("Hel", 2, {}), ("lo.", 4, {}), ("", 5, {"finishReason": "STOP"}))
    ],
    "final": 2,
}
GROQ: dict[str, Any] = {
    "url": "http://127.0.0.1:1/openai/v1/chat/completions",
    "body": ASKING,
    "chunks": [
        event(delta("Hello.")),
        event({**delta(""), "choices": [{"delta": {}, "finish_reason": "stop"}], "x_groq": {"usage": USAGE}}),
        DONE,
    ],
    "final": 1,
}
RUNNING = {  # what was used so far with every chunk, as vLLM tells it if asked to
    "url": "http://127.0.0.1:1/v1/chat/completions",
    "body": ASKING,
    "chunks": [
        *(event({**delta("x"), "usage": {"prompt_tokens": 10, "completion_tokens": n}}) for n in (1, 3)),
        event(TOLD),
        DONE,
    ],
    "final": 2,
}
OLLAMA = {
    "url": "http://127.0.0.1:1/api/chat",
    "body": {"model": "m", "messages": CHAT["messages"], "options": {"num_predict": 100}},
    "headers": {"content-type": "application/x-ndjson"},
    "chunks": [
        b'{"model":"m","message":{"content":"Hello."},"done":false}\n',
        b'{"model":"m","done":true,"prompt_eval_count":10,"eval_count":5}\n',
    ],
    "final": 1,
}
STREAMS = {
    "anthropic": ANTHROPIC,
    "responses": RESPONSES,
    "gemini": GEMINI,
    "groq": GROQ,
    "running": RUNNING,
    "ollama": OLLAMA,
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_each_kind_of_stream_is_settled_at_its_final_event(kind: Any, stream: Any) -> None:
    reply = streamed(stream["chunks"], stream.get("headers"))
    for chunks in range(len(stream["chunks"]) + 1):
        door = made(kind)
        got = door.read(reply, body=stream["body"], url=stream["url"], json=stream["body"], chunks=chunks)
        assert got == b"".join(stream["chunks"][:chunks])
        if chunks > stream["final"]:
            assert door.statuses == ["settled"]
            assert door.spent == COST
        else:
            assert door.statuses == ["charged"]
            assert door.spent == door.worst


def test_a_usage_so_far_is_the_usage_where_the_answer_comes_to_its_own_end(kind: Any) -> None:
    blocked = event(
        {
            "promptFeedback": {"blockReason": "SAFETY"},
            "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 5},
        }
    )
    framed = streamed([GEMINI["chunks"][0], blocked])
    door = made(kind)
    door.read(framed, json=GEMINI["body"], url=GEMINI["url"])
    assert door.spent == COST
    cut = Reply(body=framed.body, headers={"content-type": "text/event-stream"})  # its end is that of the connection
    door.read(cut, json=GEMINI["body"], url=GEMINI["url"])
    assert door.statuses == ["settled", "charged"]
    cut = streamed(ANTHROPIC["chunks"][:1])  # whole for the transport, and yet not for the provider
    door.read(cut, json=STREAM, url=ANTHROPIC["url"])
    assert door.statuses == ["settled", "charged", "charged"]


def test_with_more_than_one_choice_the_first_that_ends_is_not_the_end(door: Door) -> None:
    ends = [
        {
            "choices": [{"index": n, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 2 + n * 3},
        }
        for n in (0, 1)
    ]
    door.read(streamed([*map(event, ends), DONE]), body={**ASKING, "n": 2})
    assert door.spent == COST


def test_a_stop_event_settles_what_was_told_before(door: Door) -> None:
    start = event(
        {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 10, "output_tokens": 5}}}
    )
    delta = event({"type": "message_delta", "delta": None, "usage": {"output_tokens": 5}})
    door.read(streamed([start, delta, event({"type": "message_stop"})]), json=STREAM, url=ANTHROPIC["url"])
    assert door.spent == COST


def test_json_that_is_read_as_a_stream_is_settled_at_its_end(door: Door) -> None:
    body = answer().body
    assert door.read(Reply(body=[body[:9], body[9:]]), body=CHAT) == body
    assert door.spent == COST
    array = json.dumps(
        [{"usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": n}} for n in (1, 5)]
    ).encode()
    door.read(Reply(body=[array[:9], array[9:]]), json=GEMINI["body"], url=GEMINI["url"].partition("?")[0])
    assert door.spent == COST * 2
    door.read(Reply(body=[body[:9], body[9:]]), body=CHAT, chunks=1)
    door.read(Reply(body=[body[:-9]]), body=CHAT)
    assert door.statuses[2:] == ["charged"] * 2


@pytest.mark.parametrize(
    "lie",
    [
        {"prompt_tokens": -10, "completion_tokens": 5},
        {"prompt_tokens": 10**30, "completion_tokens": 5},
        "many",
        [1],
        {"prompt_tokens": "10", "completion_tokens": []},
        {},
    ],
)
def test_a_lie_in_a_stream_is_charged_in_full_and_nothing_is_raised(door: Door, lie: Any) -> None:
    chunks = [*PLAIN, event({**TOLD, "usage": lie}), DONE]
    assert door.read(streamed(chunks), body=ASKING) == b"".join(chunks)
    assert door.read(streamed(chunks)).startswith(b"".join(PLAIN))
    assert door.statuses == ["charged"] * 2


@pytest.mark.parametrize(
    "chunks",
    [
        [b"<html>", b"</html>"],
        [b""],
        [b'data: {"usage":{"prompt_tokens":10,\n\n'],
        [b'data: [{"usage":{"prompt_tokens":10}}]\n\n'],
        [b"data: " + b'{"usage":' * 100_000 + b"\n\n"],
        [b"\xff\xfe\x00\n\n"],
        [event({"error": {"message": "overloaded"}})],
        [b'data: {"choices":[1],"usage":{"prompt_tokens":10,"completion_tokens":5}}\n\n'],
    ],
)
def test_what_is_no_stream_of_events_is_charged_in_full_and_reaches_the_caller(door: Door, chunks: Any) -> None:
    assert door.read(streamed(chunks), body=ASKING) == b"".join(chunks)
    assert door.statuses == ["charged"]


def finished(**more: Any) -> bytes:
    """Return the chunk that ends the text of a chat."""
    return event({**delta("", **more), "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})


def used(output: int) -> dict[str, Any]:
    return {"prompt_tokens": 10, "completion_tokens": output, "total_tokens": 10 + output}


def test_a_usage_after_the_one_that_ends_a_stream_changes_nothing(door: Door) -> None:
    again = {**TOLD, "usage": used(9000)}
    door.read(streamed([*PLAIN, finished(), event(TOLD), event(again), DONE]), body=ASKING)
    assert door.spent == COST
    assert door.statuses == ["settled"]


EARLY = {
    "at first": [event({**TOLD, "usage": used(0)}), *PLAIN, finished()],
    "with every chunk": [event({**delta("Hello."), "usage": used(n)}) for n in (1, 2)] + [finished(usage=used(2))],
    "with the end of the text": [*PLAIN, finished(usage=used(2))],
    "that speaks of the end": [event(delta("data: [DONE]\n", usage=used(1))), *PLAIN, finished()],
}


@pytest.mark.parametrize("chunks", EARLY.values(), ids=EARLY)
@pytest.mark.parametrize("body", [STREAM, ASKING])
def test_an_early_usage_is_not_taken_for_the_last(door: Door, chunks: list[bytes], body: Any) -> None:
    door.read(streamed([*chunks, event(TOLD), DONE]), body=body)
    door.read(streamed([b"".join([*chunks, event(TOLD), DONE])]), body=body)
    assert door.spent == COST * 2
    with pytest.raises(door.library.ReadError):
        door.read(streamed([*chunks[:2], door.error("ReadError")]), body=body)
    assert door.statuses == ["settled", "settled", "charged"]


def test_a_usage_that_gemini_tells_after_the_end_of_the_text_counts(door: Door) -> None:
    last = event({"candidates": [], "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 9}})
    door.read(streamed([*GEMINI["chunks"], last]), json=GEMINI["body"], url=GEMINI["url"])
    assert door.spent == COST + 4 * 4000
    door.read(streamed([*GEMINI["chunks"], last]), json=GEMINI["body"], url=GEMINI["url"], chunks=4)
    door.read(
        streamed([b"".join(GEMINI["chunks"]), door.error("ReadError")]),
        json=GEMINI["body"],
        url=GEMINI["url"],
        chunks=1,
    )
    assert door.statuses == ["settled", "charged", "settled"]


@pytest.mark.parametrize("broken", ["full", "seen"])
def test_a_stream_that_is_left_after_its_usage_is_settled_by_it(kind: Any, broken: str) -> None:
    door = made(kind, broken=broken)
    body = {**ASKING, "max_tokens": 4000}
    for told in (event(TOLD), finished(usage=USAGE)):
        door.read(streamed([*PLAIN, told, DONE]), body=body, chunks=3)
        with pytest.raises(door.library.ReadError):
            door.read(streamed([*PLAIN, told, door.error("ReadError")]), body=body)
        cut = Reply(body=[*PLAIN, told], headers={"content-type": "text/event-stream"})
        door.read(cut, body=body)
    assert door.statuses == ["settled"] * 6
    for after in (b'data: {"choi', event(delta("more")), event(delta("more", usage=None))):
        with pytest.raises(door.library.ReadError):
            door.read(streamed([*PLAIN, event(TOLD), after, door.error("ReadError")]), body=body)
    assert door.statuses[6:] == [{"full": "charged"}.get(broken, broken)] * 3


# ---------------------------------------------------------------- broken streams


def test_a_broken_stream_is_charged_in_full_and_its_error_reaches_the_caller(door: Door) -> None:
    for error in (door.error("ReadTimeout"), door.error("RemoteProtocolError"), Hang(), asyncio.CancelledError()):
        with pytest.raises(type(error)):
            door.read(streamed([*PLAIN, error]))
        assert door.statuses[-1] == "charged"
    assert door.spent == sum(record.usd_nanos for record in door.records)
    assert all(body.closed for body in door.bodies)


def test_a_stream_that_breaks_after_its_usage_is_settled(door: Door) -> None:
    with pytest.raises(door.library.ReadError):
        door.read(streamed([*PLAIN, event(TOLD), door.error("ReadError")]))
    assert door.spent == COST


def test_a_stream_that_is_read_as_a_whole_and_breaks_is_closed(door: Door) -> None:
    with pytest.raises(door.library.ReadError):
        door.send(streamed([*PLAIN, door.error("ReadError")]), body=STREAM)
    assert door.statuses == ["charged"]
    assert door.bodies[0].closed


def test_a_stream_that_is_closed_early_or_never_read_is_charged_in_full(door: Door) -> None:
    for chunks in (0, 1):
        door.read(streamed(), chunks=chunks)
    assert door.statuses == ["charged"] * 2
    assert all(body.closed for body in door.bodies)


@pytest.mark.parametrize("started", [False, True])
def test_a_stream_that_is_collected_is_charged_in_full(kind: Any, started: bool) -> None:
    door = made(kind)
    door.script = [streamed()]

    async def work() -> None:
        response = await door.asend(STREAM, stream=True)
        if started:
            parts = response.aiter_raw() if kind[1] else response.iter_raw()
            await anext(parts) if kind[1] else next(parts)
            if kind[1]:
                await parts.aclose()
        del response

    door.run(work)
    gc.collect()
    assert door.statuses == ["charged"]
    assert door.spent == door.worst


def test_the_caller_gets_the_last_bytes_after_the_call_is_settled(door: Door) -> None:
    async def work() -> None:
        response = await door.asend(STREAM, stream=True)
        parts = response.aiter_raw() if door.is_async else response.iter_raw()
        seen = []
        while True:
            part = await anext(parts, None) if door.is_async else next(parts, None)
            if part is None:
                break
            seen.append(door.pool.snapshot().in_flight)
        assert seen == [1, 1, 0]

    door.script = [streamed()]
    door.run(work)


def test_how_long_the_answer_took_can_be_asked(door: Door) -> None:
    async def work() -> Any:
        response = await door.asend(STREAM, stream=True)
        if door.is_async:
            await response.aread()
        else:
            response.read()
        return response

    door.script = [streamed()]
    assert door.run(work).elapsed.total_seconds() >= 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_body_that_is_no_generator_is_read_too(library: str) -> None:
    door = Door(library, "wrap", is_async=True)
    chunks = [*PLAIN, event(TOLD)]

    class Body(door.library.AsyncByteStream):  # type: ignore[name-defined, misc]
        def __aiter__(self) -> Any:
            return Chunks()

    class Chunks:
        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> bytes:
            if not chunks:
                raise StopAsyncIteration
            return chunks.pop(0)

    async def work() -> bytes:
        response = door.library.Response(200, headers=EVENTS, stream=Body())
        pending = door.meter._begin(ask, None)
        await pending.ahold()
        watch_stream(response, pending, Watch(strip=True))
        return bytes(await response.aread())

    ask = Ask("chat", None, "m", Usage(input_tokens=1, output_tokens=1))
    assert door.run(work) == b"".join(PLAIN)
    assert door.spent == COST


# ---------------------------------------------------------------- broken="seen"


def test_what_was_seen_of_a_broken_stream_can_be_charged_instead(kind: Any) -> None:
    door = made(kind, broken="seen")
    body = {**STREAM, "max_tokens": 4000}
    with pytest.raises(door.library.ReadError):
        door.read(streamed([*PLAIN, door.error("ReadError")]), body=body)
    assert door.statuses == ["seen"]
    assert door.records[0].usage.output_tokens == len("Hello.") + 256
    door.read(streamed(), body=body, chunks=1)
    assert door.records[1].usage.output_tokens == len("Hel") + 256
    tool = {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": '{"a":1}'}}]}}]}
    door.read(streamed([event(tool), b"data: {no json\n\n", b": comment\n\n", DONE]), body=body)
    assert door.records[2].usage.output_tokens == 7 + len(b"data: {no json") + 256
    door.read(streamed(), body=body)
    assert door.statuses == ["seen"] * 3 + ["settled"]


def test_what_gemini_told_so_far_is_what_was_seen(kind: Any) -> None:
    door = made(kind, broken="seen")
    body = {"contents": [], "generationConfig": {"maxOutputTokens": 4000}}
    door.read(streamed(GEMINI["chunks"]), json=body, url=GEMINI["url"], chunks=2)
    assert door.records[0].usage.output_tokens == 4 + 256


# ---------------------------------------------------------------- codings


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


CODINGS: dict[str, Any] = {"gzip": gzip.compress, "deflate": zlib.compress, "raw": raw_deflate, "identity": bytes}


def packed(data: bytes, coding: str, size: int) -> list[Any]:
    content = CODINGS[coding](data)
    return [content[start : start + size] for start in range(0, len(content), size)]


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("size", [20, 10_000])
def test_a_packed_stream_is_read_and_stays_packed_unless_something_is_left_out(
    door: Door, coding: str, size: int
) -> None:
    headers = {"content-encoding": {"raw": "deflate"}.get(coding, coding)}
    whole = b"".join([*PLAIN, event(TOLD), DONE])
    assert door.read(streamed(packed(whole, coding, size), headers)) == whole.replace(event(TOLD), b"")
    assert door.read(streamed(packed(whole, coding, size), headers), body=ASKING) == whole
    assert door.spent == COST * 2


def test_a_packed_stream_that_is_damaged_is_the_library_s_own_error(door: Door) -> None:
    for body in (STREAM, ASKING):
        with pytest.raises(door.library.DecodingError):
            door.read(streamed([b"\x1f\x8b this is no gzip"], {"content-encoding": "gzip"}), body=body)
    assert door.statuses == ["charged"] * 2
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    half = packer.compress(b"".join(PLAIN)) + packer.flush(zlib.Z_SYNC_FLUSH)
    for body in (STREAM, ASKING):
        with pytest.raises(door.library.DecodingError):
            door.read(streamed([half, b"\xff" * 30], {"content-encoding": "gzip"}), body=body)
    assert door.statuses == ["charged"] * 4


@pytest.mark.parametrize("body", [STREAM, ASKING])
def test_what_follows_the_end_of_a_packed_stream_is_not_kept(door: Door, body: Any) -> None:
    whole = b"".join([*PLAIN, event(TOLD), DONE])
    trash = [b"x" * 100] * 3
    got = door.read(streamed([gzip.compress(whole), *trash], {"content-encoding": "gzip"}), body=body)
    assert got == whole.replace(event(TOLD), b"") if body is STREAM else whole
    assert door.spent == COST
    watch = Watch(encoding=b"gzip", strip=body is STREAM)
    watch.feed(gzip.compress(b"data: {}\n\n"))
    for _ in range(100):
        watch.feed(bytes(1000))
    assert len(watch._inflater.unused_data) == 0


def test_a_coding_that_cannot_be_read_is_charged_in_full(door: Door) -> None:
    headers = {"content-encoding": "nobody-knows"}
    assert door.read(streamed([*PLAIN, event(TOLD)], headers)) == b"".join([*PLAIN, event(TOLD)])
    assert door.statuses == ["charged"]
