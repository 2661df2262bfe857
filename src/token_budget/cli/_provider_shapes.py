"""How the fake provider answers: the formats of OpenAI, Anthropic and Gemini, as JSON and as streams.

What always holds: an answer and its usage follow from the request alone, so that the same request costs the same each
time; and what is billed is less than what a meter holds for it, since the counts are low and keep to the output limit.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from token_budget.cli._provider_tools import (
    chat_call,
    chat_deltas,
    function_call,
    response_events,
    response_item,
    tool_of,
    tool_use,
    tool_use_events,
)

WORDS = ("The", " sky", " is", " blue", ".")
TEXT = "".join(WORDS)
_LEAST_CACHED = 256  # input tokens from which on half of the input comes from a cache
_EVENTS = "text/event-stream"
_JSON = "application/json"


@dataclass(frozen=True)
class Count:
    """What a request costs in tokens. Input includes cached, output includes reasoning."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True)
class Asked:
    """One request, as the shapes see it."""

    path: str  # without the query
    query: str
    user_agent: str
    body: Mapping[str, Any]
    count: Count
    faults: frozenset[str]

    @property
    def model(self) -> str:
        """The model that is asked."""
        return model_of(self.path, self.body)

    @property
    def tool(self) -> str | None:
        """The tool that the model calls in place of an answer."""
        return tool_of(self.body) if "call-tool" in self.faults else None

    def told(self, usage: dict[str, Any], key: str = "usage") -> dict[str, Any]:
        """Return the usage as it is told, which a fault may keep back, or turn into a lie."""
        if "no-usage" in self.faults:
            return {}
        if "null-usage" in self.faults:
            return {key: None}
        if "negative" in self.faults:
            return {key: _changed(usage, lambda count: -1 - count)}
        if "huge" in self.faults:
            return {key: _changed(usage, lambda count: count + 10**15)}
        return {key: usage}


@dataclass(frozen=True)
class Answer:
    """One answer: its body, in the pieces in which it is streamed."""

    pieces: list[bytes]
    content_type: str = _JSON
    streamed: bool = False


Shape = Callable[[Asked], Answer]


def model_of(path: str, body: Mapping[str, Any]) -> str:
    """Return the model that a request asks: it stands in the path (``models/NAME:VERB``) or in the body."""
    last = path.rpartition("/models/")[2]
    return last.partition(":")[0] if ":" in last and "/" not in last else str(body.get("model", ""))


def count(body: Mapping[str, Any], *, made: bool) -> Count:
    """Return what a request costs: a token for five bytes of its texts, and up to 13 of output if any is ``made``."""
    texts = list(_texts(body))
    size = sum(len(text.encode(errors="replace")) for text in texts)
    given = 4 + size // 5
    if not made:
        return Count(given, 0, 0, 0)
    cached = given // 2 if given >= _LEAST_CACHED else 0
    output = min(2 + zlib.crc32("\n".join(texts).encode(errors="replace")) % 12, _limit(body))
    return Count(given, cached, output, output // 4)


def _texts(value: Any) -> Iterator[str]:
    """Go through the texts of what is asked: in ``messages``, ``system``, ``input``, ``prompt``, ``contents`` ..."""
    for key in ("messages", "system", "input", "inputs", "instructions", "prompt", "contents", "content", "requests"):
        if key in value:
            yield from _strings(value[key])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in {"role", "type", "model"}:
                yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _limit(body: Mapping[str, Any]) -> int:
    """Return how many tokens the output may have."""
    config = body.get("generationConfig")
    limits = [body.get(name) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")]
    limits.append(config.get("maxOutputTokens") if isinstance(config, Mapping) else None)
    return min((limit for limit in limits if isinstance(limit, int)), default=4096)


def _changed(usage: dict[str, Any], change: Callable[[int], int]) -> dict[str, Any]:
    return {key: _changed(each, change) if isinstance(each, dict) else change(each) for key, each in usage.items()}


def _json(data: Any) -> Answer:
    return Answer([json.dumps(data).encode()])


def _sse(events: list[dict[str, Any]], *, named: bool = False, done: bool = False) -> Answer:
    pieces = [
        (f"event: {event['type']}\n" if named else "").encode() + b"data: " + json.dumps(event).encode() + b"\n\n"
        for event in events
    ]
    return Answer([*pieces, b"data: [DONE]\n\n"] if done else pieces, _EVENTS, streamed=True)


# ---------------------------------------------------------------- OpenAI


def _openai_usage(asked: Asked) -> dict[str, Any]:
    counted = asked.count
    return {
        "prompt_tokens": counted.input_tokens,
        "completion_tokens": counted.output_tokens,
        "total_tokens": counted.input_tokens + counted.output_tokens,
        "prompt_tokens_details": {"cached_tokens": counted.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": counted.reasoning_tokens},
    }


def chat(asked: Asked) -> Answer:
    """Answer ``chat/completions``. A stream tells its usage in a chunk of its own, and only if that is asked for."""
    usage, base = _openai_usage(asked), {"id": "chat-1", "created": 1, "model": asked.model}
    groq, tool = asked.path.startswith("/openai/"), asked.tool
    if groq:
        base["service_tier"] = "on_demand"
    reason = "tool_calls" if tool else "stop"
    if not asked.body.get("stream"):
        said: dict[str, Any] = {"content": None, "tool_calls": [chat_call(tool)]} if tool else {"content": TEXT}
        choice = {"index": 0, "finish_reason": reason, "logprobs": None, "message": {"role": "assistant", **said}}
        return _json({**base, "object": "chat.completion", "choices": [choice], **asked.told(usage)})
    base["object"] = "chat.completion.chunk"
    including = bool((asked.body.get("stream_options") or {}).get("include_usage"))
    null: dict[str, Any] = {"usage": None} if including else {}
    deltas = chat_deltas(tool) if tool else [{"role": "assistant", "content": word} for word in WORDS]
    words = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    end: dict[str, Any] = {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}], **null}
    if groq:
        end["x_groq"] = {"id": "1", **asked.told(usage)}
    if "mistral" in asked.user_agent:  # which tells it unasked
        end |= asked.told(usage)
    chunks = [*({**base, "choices": [word], **null} for word in words), end]
    if including and "no-usage" not in asked.faults:
        chunks.append({**base, "choices": [], **asked.told(usage)})
    return _sse(chunks, done=True)


def completions(asked: Asked) -> Answer:
    """Answer the older ``completions``."""
    base = {"id": "text-1", "object": "text_completion", "created": 1, "model": asked.model}
    choice = {"index": 0, "finish_reason": "stop", "logprobs": None, "text": TEXT}
    if not asked.body.get("stream"):
        return _json({**base, "choices": [choice], **asked.told(_openai_usage(asked))})
    chunks = [{**base, "choices": [{**choice, "text": word, "finish_reason": None}]} for word in WORDS]
    if (asked.body.get("stream_options") or {}).get("include_usage"):
        chunks.append({**base, "choices": [], **asked.told(_openai_usage(asked))})
    return _sse(chunks, done=True)


_PLAIN: dict[str, Any] = {"instructions": None, "metadata": {}, "parallel_tool_calls": True, "tool_choice": "auto"}
_PLAIN |= {"tools": [], "temperature": 1, "top_p": 1}  # what the SDK wants to see in each response


def responses(asked: Asked) -> Answer:
    """Answer ``responses``."""
    counted = asked.count
    usage: dict[str, Any] = {
        "input_tokens": counted.input_tokens,
        "output_tokens": counted.output_tokens,
        "total_tokens": counted.input_tokens + counted.output_tokens,
        "input_tokens_details": {"cached_tokens": counted.cached_tokens},
        "output_tokens_details": {"reasoning_tokens": counted.reasoning_tokens},
    }
    tool, part = asked.tool, {"type": "output_text", "text": TEXT, "annotations": []}
    item = {"id": "item-1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    whole: dict[str, Any] = {
        "id": "response-1",
        "object": "response",
        "created_at": 1,
        "model": asked.model,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "output": [response_item(tool) if tool else item],
        **_PLAIN,
    }
    if not asked.body.get("stream"):
        return _json({**whole, **asked.told(usage)})
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        *(response_events(tool) if tool else _text_events(item, part)),
        {"type": "response.completed", "response": {**whole, **asked.told(usage)}},
    ]
    return _sse([{**event, "sequence_number": number} for number, event in enumerate(events)], named=True)


def _text_events(item: dict[str, Any], part: dict[str, Any]) -> list[dict[str, Any]]:
    at = {"item_id": "item-1", "output_index": 0, "content_index": 0}
    return [
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
        {"type": "response.content_part.added", **at, "part": {**part, "text": ""}},
        *({"type": "response.output_text.delta", **at, "delta": word, "logprobs": []} for word in WORDS),
        {"type": "response.output_text.done", **at, "text": TEXT, "logprobs": []},
        {"type": "response.content_part.done", **at, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
    ]


def embeddings(asked: Asked) -> Answer:
    """Answer ``embeddings``: two numbers for each input, as a list or in base64."""
    given = asked.body.get("input", asked.body.get("inputs"))
    vector: Any = "AAAAPwAAgD4=" if asked.body.get("encoding_format") == "base64" else [0.5, 0.25]
    several = len(given) if isinstance(given, list) and given and not isinstance(given[0], int) else 1
    data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(several)]
    usage = {"prompt_tokens": asked.count.input_tokens, "total_tokens": asked.count.input_tokens}
    if "mistral" in asked.user_agent:  # whose SDK wants it
        usage["completion_tokens"] = 0
    return _json({"id": "e-1", "object": "list", "model": asked.model, "data": data, **asked.told(usage)})


def moderations(asked: Asked) -> Answer:
    """Answer ``moderations``, which cost nothing."""
    return _json({"id": "m-1", "model": asked.model, "results": []})


def input_tokens(asked: Asked) -> Answer:
    """Answer Anthropic's ``count_tokens`` and OpenAI's ``responses/input_tokens``."""
    return _json({"object": "response.input_tokens", "input_tokens": asked.count.input_tokens})


# ---------------------------------------------------------------- Anthropic


def messages(asked: Asked) -> Answer:
    """Answer Anthropic's ``messages``. A stream tells the input first, and the output at its end."""
    counted = asked.count
    begun: dict[str, Any] = {
        "input_tokens": counted.input_tokens - counted.cached_tokens,
        "cache_read_input_tokens": counted.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": counted.output_tokens,
    }
    message: dict[str, Any] = {"id": "msg-1", "type": "message", "role": "assistant", "model": asked.model}
    tool = asked.tool
    reason = "tool_use" if tool else "end_turn"
    if not asked.body.get("stream"):
        content = [tool_use(tool) if tool else {"type": "text", "text": TEXT}]
        end = {"content": content, "stop_reason": reason, "stop_sequence": None}
        return _json({**message, **end, **asked.told(begun)})
    start = {**message, "content": [], "stop_reason": None, "stop_sequence": None}
    words = [{"type": "text_delta", "text": word} for word in WORDS]
    text = [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": word} for word in words),
        {"type": "content_block_stop", "index": 0},
    ]
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**start, **asked.told({**begun, "output_tokens": 1})}},
        *(tool_use_events(tool) if tool else text),
        {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": None},
            **asked.told({"output_tokens": counted.output_tokens}),
        },
        {"type": "message_stop"},
    ]
    return _sse(events, named=True)


# ---------------------------------------------------------------- Gemini


def generate(asked: Asked) -> Answer:
    """Answer ``generateContent``, and ``streamGenerateContent`` as events (``alt=sse``) or as one array."""
    counted, tool = asked.count, asked.tool

    def chunk(part: dict[str, Any], written: int, **end: Any) -> dict[str, Any]:
        usage = {
            "promptTokenCount": counted.input_tokens,
            "cachedContentTokenCount": counted.cached_tokens,
            "candidatesTokenCount": written,
            "thoughtsTokenCount": counted.reasoning_tokens,
            "totalTokenCount": counted.input_tokens + written + counted.reasoning_tokens,
        }
        candidate = {"content": {"role": "model", "parts": [part]}, "index": 0, **end}
        return {"candidates": [candidate], "modelVersion": asked.model, **asked.told(usage, "usageMetadata")}

    written = counted.output_tokens - counted.reasoning_tokens
    if not asked.path.endswith(":streamGenerateContent"):
        return _json(chunk(function_call(tool) if tool else {"text": TEXT}, written, finishReason="STOP"))
    parts = [function_call(tool)] if tool else [{"text": word} for word in WORDS]
    chunks = [chunk(part, min(number, written)) for number, part in enumerate(parts, 1)]
    chunks.append(chunk({"text": ""}, written, finishReason="STOP"))
    if "alt=sse" in asked.query.split("&"):
        return _sse(chunks)
    items = [json.dumps(each).encode() for each in chunks]
    pieces = [b"[" + items[0], *(b",\r\n" + item for item in items[1:]), b"]"]
    return Answer(pieces, streamed=True)


def embed(asked: Asked) -> Answer:
    """Answer Gemini's ways to embed, which tell no usage."""
    values = {"values": [0.5, 0.25]}
    return _json({"embeddings": [values for _ in asked.body.get("requests", [0])], "embedding": values})


def count_tokens(asked: Asked) -> Answer:
    """Answer Gemini's ``countTokens``."""
    return _json({"totalTokens": asked.count.input_tokens})


# ---------------------------------------------------------------- which is which


@dataclass(frozen=True)
class Route:
    """How a path is answered, and what is billed for it."""

    shape: Shape
    made: bool = True  # it writes output
    billed: bool = True


_ROUTES = {
    "/chat/completions": Route(chat),
    "/completions": Route(completions),
    "/responses": Route(responses),
    "/embeddings": Route(embeddings, made=False),
    "/moderations": Route(moderations, made=False, billed=False),
    "/responses/input_tokens": Route(input_tokens, made=False, billed=False),
    "/messages/count_tokens": Route(input_tokens, made=False, billed=False),
    "/messages": Route(messages),
    ":generateContent": Route(generate),
    ":streamGenerateContent": Route(generate),
    ":embedContent": Route(embed, made=False),
    ":batchEmbedContents": Route(embed, made=False),
    ":countTokens": Route(count_tokens, made=False, billed=False),
}


def route(path: str) -> Route | None:
    """Return how a path (without its query) is answered; None if it is none that is known."""
    return next((found for end, found in _ROUTES.items() if path.endswith(end)), None)


def models(names: list[str]) -> Answer:
    """Return the list of models in the words of all three."""
    data = [
        {"id": name, "object": "model", "type": "model", "created": 1, "owned_by": "token-budget"}
        | {"display_name": name, "created_at": "2026-01-01T00:00:00Z"}
        for name in names
    ]
    google = [{"name": f"models/{name}", "displayName": name} for name in names]
    return _json({"object": "list", "data": data, "has_more": False, "models": google})
