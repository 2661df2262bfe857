"""Written: what a model wrote into an answer, which is billed also where the answer does not tell how much it was.

What always holds: of an answer, nothing that repeats the request is taken for the model's. Found is how many bytes of
text there are (`text_bytes`), or whether there is anything (`wrote`): text, a call of a tool, audio, an image.
"""

from __future__ import annotations

import json
from typing import Any

from token_budget.metering._objects import fields

_TEXTS = frozenset(
    {
        "content",
        "text",
        "delta",
        "arguments",
        "partial_json",
        "thinking",
        "reasoning",
        "reasoning_content",
        "refusal",
        "response",  # Ollama
        "completion",  # Anthropic's first API
        "tool_plan",  # Cohere
    }
)
_WRITTEN = _TEXTS | {"data", "encrypted_content", "generation", "outputText"}  # audio, Bedrock's first API
_CALLS = frozenset({"tool_calls", "function_call", "functionCall", "toolUse", "executable_code", "executableCode"})
_CALLED = ("tool_use", "_call")  # ends of the types of calls, whose input may be empty
# What OpenAI's responses repeat of the request.
_ASKED = frozenset({"input", "instructions", "metadata", "prompt", "format", "tool_choice", "tools"})


def text_bytes(value: Any) -> int:
    """Return how many bytes of text the model wrote into one event."""
    total = 0
    for key, inner in value.items() if isinstance(value, dict) else ():
        if isinstance(inner, str):
            total += len(inner.encode(errors="replace")) if key in _TEXTS else 0
        elif isinstance(inner, dict):
            total += text_bytes(inner)
        elif isinstance(inner, list):
            total += sum(map(text_bytes, inner))
    return total


def wrote(answer: object) -> bool:
    """Return whether the model wrote anything into an answer, an event, or a list of them."""
    pending, seen = [answer], set()
    for one in pending:  # it grows meanwhile
        view = fields(one)
        if view is None and isinstance(one, (list, tuple)):
            pending += [] if one and isinstance(one[0], (int, float)) else one  # an embedding is long
        elif view and id(one) not in seen:  # objects of frameworks refer to each other
            seen.add(id(one))
            if view.get("object") == "list":  # embeddings, which are many, with their texts
                continue
            for name, inner in view.items():
                if isinstance(inner, (str, bytes)):
                    if inner and (name in _WRITTEN or (name == "type" and str(inner).endswith(_CALLED))):
                        return True
                elif name in _CALLS and inner:
                    return True
                elif name not in _ASKED:
                    pending.append(inner)
    return False


def wrote_in(lines: bytes) -> bool:
    """Return whether the model wrote anything into the events of these lines. What cannot be read may be anything."""
    for line in lines.splitlines():
        if line.lstrip().startswith((b"data:", b"{")) and (start := line.find(b"{")) >= 0:
            try:
                if wrote(json.loads(line[start:])):
                    return True
            except (ValueError, RecursionError):
                return True
    return False
