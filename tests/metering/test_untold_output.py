"""An answer that does not tell its output, or not all of it: what the model wrote is charged as it was held."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from hooked import CHAT, COST, DONE, LIBRARIES, TOLD, URL, USAGE, Door, Reply, answer, delta, event, streamed
from meters import ask, meter_of, used
from token_budget import BudgetPool
from token_budget.metering import UnknownUsage, Usage
from token_budget.metering._ask import Ask
from token_budget.metering._shapes import read
from token_budget.metering._watch import Watch
from token_budget.metering._written import text_bytes, wrote

needs_http = pytest.mark.skipif(not LIBRARIES, reason="needs httpx or httpx2")
DOORS = [
    pytest.param((library, hooking, is_async), id=f"{library}-{hooking}-{'async' if is_async else 'sync'}")
    for library in LIBRARIES or ["none"]
    for hooking in ("wrap", "run", "patch")
    for is_async in (False, True)
]
WORDS = "word " * 500
HELD = 10 * 1000 + 100 * 4000  # nanodollars of the input that is told and the output that is held
INPUT = 10 * 1000


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest) -> Door:
    library, hooking, is_async = request.param
    return Door(library, hooking, is_async=is_async)


def door_of(**options: Any) -> Door:
    return Door(LIBRARIES[0], "wrap", is_async=False, **options)


def usage_of(**output: Any) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": 10, **output}}


def said(message: Any, **more: Any) -> dict[str, Any]:
    return {"object": "chat.completion", "model": "m", "choices": [{"index": 0, "message": message}], **more}


# ---------------------------------------------------------------- answers

UNTOLD: list[dict[str, Any]] = [{}, {"completion_tokens": 0}, {"completion_tokens": None}]


@needs_http
@pytest.mark.parametrize("output", UNTOLD, ids=["absent", "0", "null"])
@pytest.mark.parametrize("loaded", [False, True], ids=["streamed", "loaded"])
def test_an_answer_that_tells_its_input_alone_is_charged_for_the_output_that_was_held(
    door: Door, output: dict[str, Any], loaded: bool
) -> None:
    body = json.dumps(said({"role": "assistant", "content": WORDS}, **usage_of(**output))).encode()
    assert door.send(Reply(body=body, loaded=loaded)).content == body
    assert door.spent == HELD
    assert door.statuses == ["charged"]
    assert door.records[0].usage == Usage(input_tokens=10, output_tokens=100)


WRITTEN: dict[str, Any] = {
    "text": said({"role": "assistant", "content": "Hello."}),
    "text of the first API": {"choices": [{"text": "Hello.", "index": 0}]},
    "a refusal": said({"content": None, "refusal": "No."}),
    "reasoning": said({"content": "", "reasoning_content": "Hm."}),
    "a call of a tool": said({"content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}),
    "a call of a function": said({"content": None, "function_call": {"name": "f", "arguments": ""}}),
    "audio": said({"content": None, "audio": {"data": "UklGRg=="}}),
    "Anthropic's text": {"type": "message", "content": [{"type": "text", "text": "Hello."}]},
    "Anthropic's tool": {"type": "message", "content": [{"type": "tool_use", "name": "f", "input": {}}]},
    "Anthropic's hidden thoughts": {"type": "message", "content": [{"type": "redacted_thinking", "data": "eA=="}]},
    "Anthropic's first API": {"completion": "Hello."},
    "OpenAI's response": {
        "object": "response",
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "Hello."}]}],
    },
    "OpenAI's tool": {"object": "response", "output": [{"type": "computer_call", "call_id": "c"}]},
    "OpenAI's hidden reasoning": {"object": "response", "output": [{"type": "reasoning", "encrypted_content": "eA"}]},
    "Gemini's text": {"candidates": [{"content": {"role": "model", "parts": [{"text": "Hello."}]}}]},
    "Gemini's tool": {"candidates": [{"content": {"parts": [{"functionCall": {"name": "f"}}]}}]},
    "Gemini's code": {"candidates": [{"content": {"parts": [{"executableCode": {"language": "PYTHON"}}]}}]},
    "Gemini's image": {"candidates": [{"content": {"parts": [{"inlineData": {"data": "eA=="}}]}}]},
    "Bedrock's text": {"output": {"message": {"content": [{"text": "Hello."}]}}},
    "Bedrock's tool": {"output": {"message": {"content": [{"toolUse": {"name": "f"}}]}}},
    "Llama of Bedrock": {"generation": "Hello."},
    "Titan of Bedrock": {"results": [{"outputText": "Hello."}]},
    "Ollama's chat": {"message": {"role": "assistant", "content": "Hello."}},
    "Ollama's text": {"response": "Hello.", "context": [1, 2, 3]},
    "Cohere's plan": {"message": {"tool_plan": "I look.", "content": []}},
    "a list of events": [{"choices": [{"delta": {"content": "Hello."}}]}],
    "an SDK's object": SimpleNamespace(choices=(SimpleNamespace(message=SimpleNamespace(content="Hello.")),)),
    "Gemini's SDK": SimpleNamespace(inline_data=SimpleNamespace(mime_type="image/png", data=b"x")),
}
EMPTY: dict[str, Any] = {
    "a blocked prompt": {"promptFeedback": {"blockReason": "SAFETY", "safetyRatings": [{"category": "A"}]}},
    "a blocked answer": {"candidates": [{"finishReason": "SAFETY", "content": {"role": "model"}, "index": 0}]},
    "an empty message": said({"role": "assistant", "content": "", "refusal": None, "tool_calls": []}),
    "an empty refusal": said({"role": "assistant", "content": None, "refusal": ""}),
    "an empty block": {"type": "message", "role": "assistant", "content": [{"type": "text", "text": ""}]},
    "no blocks": {"type": "message", "role": "assistant", "content": [], "stop_reason": "refusal"},
    "embeddings": {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.1, -0.2]}]},
    "embeddings with their texts": {"object": "list", "data": [{"text": "Hello.", "embedding": [0.1]}]},
    "numbers, which are not gone through": {"embeddings": [[0.1, {"text": "Hello."}]]},
    "embeddings of two texts": {"embeddings": [[0.1], [0.2]], "texts": ["a", "b"]},
    "an error": {"choices": [], "error": {"code": 502, "message": "No answer.", "type": "upstream"}},
    "counting": {"input_tokens": 10, "object": "response.input_tokens"},
    "what was asked": {
        "object": "response",
        "status": "incomplete",
        "output": [],
        "instructions": [{"type": "message", "content": [{"type": "input_text", "text": "Be brief."}]}],
        "input": [{"content": "Hello."}],
        "metadata": {"text": "mine"},
        "prompt": {"variables": {"text": "mine"}},
        "reasoning": {"effort": "low", "summary": None},
        "text": {"format": {"type": "json_schema", "schema": {"default": {"text": "mine"}}}},
        "tool_choice": {"type": "function_call"},
        "tools": [{"type": "function", "parameters": {"default": {"content": "mine"}}}],
    },
    "nothing": None,
}


@needs_http
def test_an_answer_that_tells_all_costs_what_it_tells(door: Door) -> None:
    door.send(answer())
    assert door.spent == COST
    assert door.statuses == ["settled"]


@pytest.mark.parametrize("answer", WRITTEN.values(), ids=WRITTEN)
def test_whatever_a_model_writes_is_found(answer: Any) -> None:
    assert wrote(answer)


@pytest.mark.parametrize("answer", EMPTY.values(), ids=EMPTY)
def test_an_answer_without_output_has_nothing_written_in_it(answer: Any) -> None:
    assert not wrote(answer)


@pytest.mark.parametrize("answer", EMPTY.values(), ids=EMPTY)
def test_an_answer_that_has_no_output_costs_its_input(answer: Any) -> None:
    reading = read({**(answer or {}), "usage": {"input_tokens": 10, "output_tokens": 0}})
    assert not reading.untold
    pool = BudgetPool(usd_cap=1)
    with meter_of(pool).call("small", input_tokens=1000, max_output_tokens=500) as call:
        call.settle({**(answer or {}), "usage": {"input_tokens": 10, "output_tokens": 0}})
    assert used(pool) == (10, 10_000, 0)


def test_objects_that_refer_to_each_other_end() -> None:
    one, other = SimpleNamespace(content=""), SimpleNamespace(content="")
    one.next, other.next = other, one
    assert not wrote(one)
    other.content = "Hello."
    assert wrote(one)


def test_a_call_by_hand_is_charged_for_an_output_that_its_answer_does_not_tell() -> None:
    answer = {"text": WORDS, "usage": {"input_tokens": 10}}
    pool = BudgetPool(usd_cap=1)
    meter = meter_of(pool)
    with meter.call("small", input_tokens=1000, max_output_tokens=500) as call:
        call.settle(answer)
    assert used(pool) == (510, 10 * 1000 + 500 * 4000, 0)

    async def main() -> None:
        async with meter.call("small", input_tokens=1000, max_output_tokens=500) as call:
            await call.asettle(answer)

    asyncio.run(main())
    assert used(pool) == (1020, 2 * (10 * 1000 + 500 * 4000), 0)


def test_a_usage_alone_says_all() -> None:
    pool = BudgetPool(usd_cap=1)
    for told in (Usage(input_tokens=10), {"input_tokens": 10}):
        with meter_of(pool).call("small", input_tokens=1000, max_output_tokens=500) as call:
            call.settle(told)
    assert used(pool) == (20, 20_000, 0)


def test_what_was_held_for_speech_is_charged_as_speech_and_images_beside_what_was_held() -> None:
    asked: Ask = ask()
    asked.worst = Usage(
        input_tokens=1000, output_tokens=800, audio_output_tokens=500, image_generation_output_tokens=300
    )
    told = Usage(input_tokens=10, output_tokens=700, image_generation_output_tokens=700)
    filled = asked.filled(told, untold=True)
    assert filled == Usage(
        input_tokens=10, output_tokens=1200, audio_output_tokens=500, image_generation_output_tokens=700
    )
    assert asked.filled(told, untold=False) is told
    told = Usage(input_tokens=10, output_tokens=5000, audio_output_tokens=4000)  # and more was written since
    assert asked.filled(told, untold=True) == told


def test_images_alone_are_no_output_of_the_model_itself() -> None:
    call = {"type": "image_generation_call", "status": "completed", "quality": "low", "size": "1024x1024"}
    text = {"type": "message", "content": [{"type": "output_text", "text": "Here."}]}
    told = {"object": "response", "model": "m", "output": [call, text], "usage": {"input_tokens": 10}}
    reading = read(told)
    assert reading.usage.output_tokens == reading.usage.image_generation_output_tokens > 0
    assert reading.untold


# ---------------------------------------------------------------- streams

MESSAGES = "http://127.0.0.1:1/v1/messages"
GENERATE = "http://127.0.0.1:1/v1beta/models/m:streamGenerateContent?alt=sse"
GENERATED = {"contents": [{"parts": [{"text": "hi"}]}], "generationConfig": {"maxOutputTokens": 100}}
ASKING = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
ONE = event({**delta("x"), "usage": {"prompt_tokens": 10, "completion_tokens": 1}})
ZEROS = event({**delta("y"), "usage": {"prompt_tokens": 0, "completion_tokens": 0}})
FIRST = event({**TOLD, "usage": {"prompt_tokens": 10, "completion_tokens": 0}})
TEXTS = [event(delta("Hel")), event(delta("lo."))]
FINISH = {**delta(""), "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
LAST = event(FINISH)


def of_anthropic(*between: dict[str, Any], delta: dict[str, Any] | None = None) -> list[bytes]:
    """Return the events of a message whose ``message_delta`` tells that usage, or none."""
    start = {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 10, "output_tokens": 1}}}
    ending = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    told = ending if delta is None else {**ending, "usage": delta}
    return [*map(event, (start, *between, told)), event({"type": "message_stop"})]


BLOCK = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
PIECE = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello."}}
TOOL = {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "name": "f", "input": {}}}


def of_gemini(text: str, *, finish: bool = False, **usage: int) -> bytes:
    candidate = {"content": {"parts": [{"text": text}]}, **({"finishReason": "STOP"} if finish else {})}
    told = {"usageMetadata": {"promptTokenCount": 10, **usage}} if usage else {}
    return event({"candidates": [candidate], "modelVersion": "m", **told})


NONE: Any = {"candidatesTokenCount": 0}
CHATS: dict[str, list[bytes]] = {
    "told at first, with an end": [FIRST, *TEXTS, LAST, DONE],
    "told at first, framed": [FIRST, *TEXTS, LAST],
    "told at first, and again": [FIRST, *TEXTS, LAST, FIRST, DONE],
    "told at the end": [*TEXTS, LAST, FIRST, DONE],
    "told with the end": [*TEXTS, event({**FINISH, "usage": {"prompt_tokens": 10}}), DONE],
    "with every chunk": [event({**delta("x"), "usage": {"prompt_tokens": 10}})] * 3 + [DONE],
    "some, and then more text": [ONE, *TEXTS, DONE],
    "some, and then text with zeros": [ONE, ZEROS, DONE],
    "some, and then none": [*TEXTS, event({**TOLD, "usage": USAGE}), FIRST, DONE],
    "and what cannot be read": [FIRST, b'data: {"choices":[{"delta":{"content":"Hel\n\n', DONE],
    "and what is too deep": [FIRST, b"data: " + b'{"a":' * 100_000 + b"\n\n", DONE],
}
OTHERS: dict[str, tuple[str, Any, list[bytes]]] = {
    "no usage in the delta": (MESSAGES, CHAT, of_anthropic(BLOCK, PIECE)),
    "a 0 in the delta": (MESSAGES, CHAT, of_anthropic(BLOCK, PIECE, delta={"output_tokens": 0})),
    "the input in the delta": (MESSAGES, CHAT, of_anthropic(BLOCK, PIECE, delta={"input_tokens": 10})),
    "a tool": (MESSAGES, CHAT, of_anthropic(TOOL, delta={"output_tokens": 0})),
    "Gemini, framed": (GENERATE, GENERATED, [of_gemini("Hel", **NONE), of_gemini("lo.", **NONE)]),
    "Gemini, with an end": (GENERATE, GENERATED, [of_gemini("Hello."), of_gemini("", finish=True, **NONE)]),
    "Gemini, then none": (GENERATE, GENERATED, [of_gemini("Hel", **NONE), of_gemini("", **NONE)]),
    "Gemini, text and then none": (GENERATE, GENERATED, [of_gemini("Hello."), of_gemini("", **NONE)]),
    "Gemini, then text": (GENERATE, GENERATED, [of_gemini("Hel", candidatesTokenCount=1), of_gemini("lo.")]),
    "Gemini, then text at once": (GENERATE, GENERATED, [of_gemini("Hel", candidatesTokenCount=1) + of_gemini("lo.")]),
    "Gemini, then text without an end of line": (
        GENERATE,
        GENERATED,
        [of_gemini("Hel", candidatesTokenCount=1), of_gemini("lo.").rstrip()],
    ),
}


@needs_http
@pytest.mark.parametrize("chunks", CHATS.values(), ids=CHATS)
def test_a_stream_that_does_not_tell_its_output_after_it_is_charged_for_what_was_held(
    door: Door, chunks: list[bytes]
) -> None:
    for sent in (chunks, [b"".join(chunks)]):
        assert door.read(streamed(sent), body=ASKING) == b"".join(chunks)
    assert door.spent == HELD * 2
    assert door.statuses == ["charged"] * 2


@needs_http
@pytest.mark.parametrize(("url", "body", "chunks"), OTHERS.values(), ids=OTHERS)
def test_so_is_one_of_another_provider(door: Door, url: str, body: Any, chunks: list[bytes]) -> None:
    body = {**body, "stream": True} if body is CHAT else body
    assert door.read(streamed(chunks), json=body, url=url) == b"".join(chunks)
    assert door.spent == HELD


BLOCKED = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 10}}
TOLD_CHEAP: dict[str, tuple[str, Any, list[bytes], int]] = {
    "nothing": (URL, ASKING, [FIRST, event(delta("")), LAST, DONE], 0),
    "nothing, told at the end": (URL, ASKING, [event(delta("")), LAST, FIRST, DONE], 0),
    "all, told at first and at the end": (URL, ASKING, [FIRST, *TEXTS, LAST, event(TOLD), DONE], 5),
    "all, and an empty chunk": (URL, ASKING, [*TEXTS, event({**FINISH, "usage": USAGE}), event(delta("")), DONE], 5),
    "Anthropic's nothing": (MESSAGES, {**CHAT, "stream": True}, of_anthropic(BLOCK, delta={"output_tokens": 0}), 1),
    "Anthropic's one token": (MESSAGES, {**CHAT, "stream": True}, of_anthropic(PIECE, delta={"output_tokens": 1}), 1),
    "a prompt that Gemini blocked": (GENERATE, GENERATED, [event(BLOCKED)], 0),
    "Gemini's last chunk": (
        GENERATE,
        GENERATED,
        [of_gemini("Hel", **NONE), of_gemini("lo."), of_gemini("", candidatesTokenCount=5)],
        5,
    ),
}


@needs_http
@pytest.mark.parametrize(("url", "body", "chunks", "output"), TOLD_CHEAP.values(), ids=TOLD_CHEAP)
def test_a_stream_that_tells_all_costs_what_it_tells(
    door: Door, url: str, body: Any, chunks: list[bytes], output: int
) -> None:
    for sent in (chunks, [b"".join(chunks)]):
        assert door.read(streamed(sent), json=body, url=url) == b"".join(chunks)
    assert door.spent == 2 * (INPUT + output * 4000)
    assert door.statuses == ["settled"] * 2


# ---------------------------------------------------------------- broken streams

LONG = [event(delta("word " * 100))] * 5
CUTS: dict[str, tuple[list[bytes], int]] = {
    "told at first": ([FIRST, *LONG], 2500),
    "told with the end": ([*LONG, event({**FINISH, "usage": {"prompt_tokens": 10}})], 2500),
    "some told, and then more": ([event({**TOLD, "usage": USAGE}), *LONG], 5 + 2500),
    "all told": ([*LONG, event({**delta("x"), "usage": USAGE})], 5),
}


@needs_http
@pytest.mark.parametrize(("chunks", "output"), CUTS.values(), ids=CUTS)
def test_a_stream_that_is_cut_is_charged_for_what_was_seen_where_its_usage_does_not_count_it(
    chunks: list[bytes], output: int
) -> None:
    for broken, expected in (("seen", output + 256), ("full", 4000)):
        door = door_of(broken=broken)
        with pytest.raises(door.library.ReadError):
            door.read(streamed([*chunks, door.error("ReadError")]), body={**ASKING, "max_tokens": 4000})
        assert door.records[0].usage.output_tokens == expected
        assert door.statuses == [{"full": "charged"}.get(broken, broken)]


@needs_http
def test_a_stream_that_is_cut_after_it_told_that_it_has_no_output_costs_its_input(door: Door) -> None:
    with pytest.raises(door.library.ReadError):
        door.read(streamed([event({**FINISH, "usage": {"prompt_tokens": 10}}), door.error("ReadError")]), body=ASKING)
    assert door.spent == INPUT


@pytest.mark.parametrize("name", ["refusal", "response", "completion", "tool_plan"])
def test_text_is_counted_whatever_a_provider_calls_it(name: str) -> None:
    line = json.dumps({"usage": None, "done": False, name: "Hello."}).encode() + b"\n"
    watch = Watch(content_type=b"application/x-ndjson", counting=True)
    watch.feed(line)
    assert watch.seen() == text_bytes({"a": [{name: "Hello."}]}) == 6


def test_what_is_no_event_is_nothing_that_a_model_wrote() -> None:
    watch = Watch(shape="openai-chat", content_type=b"text/event-stream")
    watch.feed(event({**TOLD, "usage": USAGE}) + b': {"text": "still at it"}\nid: {"text": 1}\ndata: [DONE]\n\n')
    assert watch.ready is not None
    assert not watch.ready.untold


# ---------------------------------------------------------------- what the user wrote

TOLD_BY_USER = {
    "input_tokens": 1,
    "output_tokens": 1,
    "prompt_tokens": 1,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}
QUEUED: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "status": "queued",
    "model": "m",
    "output": [],
    "usage": None,
}
WRITTEN_BY_USER: dict[str, Any] = {
    "metadata": {**QUEUED, "metadata": TOLD_BY_USER},
    "metadata of a response in an event": {"type": "response.queued", "response": {**QUEUED, "metadata": TOLD_BY_USER}},
    "metadata beside the output alone": {"output": [], "metadata": TOLD_BY_USER},
    "metadata beside the model alone": {"model": "m", "metadata": TOLD_BY_USER},
    "metadata of a chat": said({"content": "Hello."}, metadata=TOLD_BY_USER),
    "metadata of a chunk": {**delta("Hello."), "usage": None, "metadata": TOLD_BY_USER},
    "format": {**QUEUED, "text": {"format": {"type": "json_schema", "schema": TOLD_BY_USER}}},
    "instructions": {**QUEUED, "instructions": [TOLD_BY_USER], "prompt": {"variables": TOLD_BY_USER}},
    "tools": {**QUEUED, "tools": [TOLD_BY_USER], "tool_choice": TOLD_BY_USER},
    "arguments": {**QUEUED, "output": [{"type": "function_call", "arguments": TOLD_BY_USER, **TOLD_BY_USER}]},
    "arguments of Anthropic": {"type": "message", "content": [{"type": "tool_use", "input": TOLD_BY_USER}]},
    "arguments of Gemini": {"candidates": [{"content": {"parts": [{"functionCall": {"args": TOLD_BY_USER}}]}}]},
    "arguments of Ollama": {"message": {"tool_calls": [{"function": {"arguments": TOLD_BY_USER}}]}},
    "a parsed answer": {**said({"content": "{}", "parsed": TOLD_BY_USER}), "output_parsed": TOLD_BY_USER},
    "labels": {"labels": TOLD_BY_USER, "candidates": [{"content": {"parts": [{"text": "Hello."}]}}]},
}


@pytest.mark.parametrize("answer", WRITTEN_BY_USER.values(), ids=WRITTEN_BY_USER)
def test_what_the_user_or_the_model_wrote_is_no_usage(answer: Any) -> None:
    with pytest.raises(UnknownUsage):
        read(answer)


@needs_http
def test_the_metadata_of_a_response_that_is_made_in_the_background_is_not_its_price(door: Door) -> None:
    url = "http://127.0.0.1:1/v1/responses"
    body = {"model": "m", "input": "hi", "background": True, "max_output_tokens": 100, "metadata": TOLD_BY_USER}
    queued = {**QUEUED, "background": True, "metadata": TOLD_BY_USER}
    door.send(Reply(body=json.dumps(queued).encode()), json=body, url=url)
    created = event({"type": "response.created", "response": queued})
    door.read(streamed([created, DONE]), json={**body, "stream": True}, url=url)
    assert door.statuses == ["charged"] * 2
    assert [record.usage.output_tokens for record in door.records] == [100] * 2


def test_a_usage_in_the_metadata_of_bedrocks_stream_counts() -> None:
    assert read({"metadata": {"usage": {"inputTokens": 10, "outputTokens": 5}, "metrics": {}}}).usage.output_tokens == 5
