"""The fake provider's calls of tools: which tool the model calls, and what of an answer says so, in each format.

What always holds: a model calls a tool only where one is offered and its result is not in the conversation yet, so that
a program which hands results back comes to an end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

ARGUMENTS = ('{"city": ', '"Paris"}')  # as they are streamed
_WHOLE = "".join(ARGUMENTS)
_ID = "call_1"


def tool_of(body: Mapping[str, Any]) -> str | None:
    """Return the first tool that a request offers; None if there is none, or if it brings a result already."""
    if any(_is_result(each) for each in _objects([body.get(key) for key in ("messages", "input", "contents")])):
        return None
    return next((name for tool in body.get("tools") or () for name in _names(tool)), None)


def _names(tool: Mapping[str, Any]) -> Iterator[str]:
    declared = tool.get("functionDeclarations") or [tool.get("function") or tool]
    for each in declared:
        if isinstance(each.get("name"), str):
            yield each["name"]


def _is_result(each: Mapping[str, Any]) -> bool:
    given = each.get("role") == "tool" or each.get("type") in {"tool_result", "function_call_output"}
    return given or "functionResponse" in each


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _objects(each)


# ---------------------------------------------------------------- in each format


def chat_call(name: str, arguments: str = _WHOLE) -> dict[str, Any]:
    """Return OpenAI's call of a tool, as ``chat/completions`` has it."""
    return {"id": _ID, "type": "function", "function": {"name": name, "arguments": arguments}}


def chat_deltas(name: str) -> list[dict[str, Any]]:
    """Return the same as the deltas of a stream."""
    begun = {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **chat_call(name, "")}]}
    more = [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in ARGUMENTS]
    return [begun, *more]


def response_item(name: str, arguments: str = _WHOLE, status: str = "completed") -> dict[str, Any]:
    """Return OpenAI's call of a tool, as ``responses`` has it."""
    call = {"type": "function_call", "id": "item-1", "call_id": _ID, "name": name}
    return {**call, "arguments": arguments, "status": status}


def response_events(name: str) -> list[dict[str, Any]]:
    """Return the same as the events of a stream."""
    at = {"item_id": "item-1", "output_index": 0}
    begun = response_item(name, "", "in_progress")
    return [
        {"type": "response.output_item.added", "output_index": 0, "item": begun},
        *({"type": "response.function_call_arguments.delta", **at, "delta": piece} for piece in ARGUMENTS),
        {"type": "response.function_call_arguments.done", **at, "name": name, "arguments": _WHOLE},
        {"type": "response.output_item.done", "output_index": 0, "item": response_item(name)},
    ]


def tool_use(name: str) -> dict[str, Any]:
    """Return Anthropic's call of a tool."""
    return {"type": "tool_use", "id": "toolu_1", "name": name, "input": json.loads(_WHOLE)}


def tool_use_events(name: str) -> list[dict[str, Any]]:
    """Return the same as the events of a stream."""
    pieces = [{"type": "input_json_delta", "partial_json": piece} for piece in ARGUMENTS]
    return [
        {"type": "content_block_start", "index": 0, "content_block": {**tool_use(name), "input": {}}},
        *({"type": "content_block_delta", "index": 0, "delta": piece} for piece in pieces),
        {"type": "content_block_stop", "index": 0},
    ]


def function_call(name: str) -> dict[str, Any]:
    """Return Gemini's call of a tool, which comes whole in a stream too."""
    return {"functionCall": {"name": name, "args": json.loads(_WHOLE)}}
