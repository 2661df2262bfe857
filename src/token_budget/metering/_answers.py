"""Answers: where in an answer its usage stands, and how the usages of a stream's events follow each other.

What always holds: only known names are followed, and only so deep, so that nothing that a prompt or a model wrote is
taken for a usage. Of two usages of one answer the larger counts; those of several answers are added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from token_budget.metering._counts import (
    INPUT,
    OUTPUT,
    READ,
    WRITE,
    Counts,
    UnknownUsage,
    add,
    counts,
    larger,
    names,
)
from token_budget.metering._objects import fields

_USAGE = (
    "usage",
    "usageMetadata",
    "usage_metadata",
    "token_usage",
    "tokenUsage",
    "x_groq",  # holds a usage of its own, beside the usage of newer answers
    "amazon-bedrock-invocationMetrics",
)
_AROUND = (
    "message",  # Anthropic's message_start, LangChain's generation
    "response",  # OpenAI's response.completed, a batch's line
    "metadata",  # Bedrock's stream
    "meta",  # Cohere
    "delta",  # Cohere's stream
    "data",  # the stream events of Mistral's SDK
    "result",  # Cloudflare, the results of Anthropic's batches
    "body",  # a batch's line
    "context_wrapper",  # openai-agents: the sum of a run
    "messages",  # LangGraph's state
    "raw_responses",
    "generations",  # LangChain's LLMResult
    "llm_output",
    "response_metadata",
)
_MODEL = ("model", "modelVersion", "model_version", "model_name", "modelId", "model_id")
_TIER = ("service_tier", "serviceTier")
_PROPERTIES = frozenset((*_USAGE, *_AROUND, *_MODEL, *_TIER))
_DEEPEST = 6
_WHOLE_TYPES = ("message", "ai", "AIMessageChunk")
_WHOLE_OBJECTS = ("chat.completion", "response", "list")


class Found(NamedTuple):
    """What stands in an answer."""

    counts: Counts
    model: str | None
    service_tier: str | None


def find(x: object, provider: str | None = None) -> Found:
    """Return what stands in an answer, in the list of a stream's events, or in a list of answers.

    Raises:
        UnknownUsage: there is no usage that is known, or its counts are no counts.
    """
    found = _look(x, provider, 0)
    if found is None:
        raise _unknown(x)
    return found


def follow(event: object, so_far: Found | None, provider: str | None = None) -> Found | None:
    """Return what is known of an answer after one more event of its stream.

    The counts of a stream are running sums, so a later usage takes the place of an earlier one. Anthropic's
    ``message_delta`` tells some of them, which take the place of the same ones of ``message_start``.

    Raises:
        UnknownUsage: the event's counts are no counts.
    """
    found = _look(event, provider, 0)
    if found is None or so_far is None:
        return found or so_far
    view = fields(event, _PROPERTIES) or {}
    later = _overlay(view, found.counts, so_far.counts) if view.get("type") == "message_delta" else found.counts
    return Found(later, found.model or so_far.model, found.service_tier or so_far.service_tier)


def _overlay(event: Mapping[Any, Any], later: Counts, earlier: Counts) -> Counts:
    """Return the earlier counts with those of a ``message_delta`` over them. A 0 there says that nothing is said."""
    told = list(map(_either, later, earlier))
    fresh = later[INPUT] - later[READ] - later[WRITE] or earlier[INPUT] - earlier[READ] - earlier[WRITE]
    told[INPUT] = fresh + told[READ] + told[WRITE]
    return tuple(told)  # type: ignore[return-value]


def _either(later: int, earlier: int) -> int:
    return later or earlier


# ---------------------------------------------------------------- one answer


def _look(x: object, provider: str | None, depth: int) -> Found | None:
    if isinstance(x, (list, tuple)) and not hasattr(x, "_fields"):
        return _look_through(x, provider, depth)
    view = fields(x, _PROPERTIES)
    if view is None or depth > _DEEPEST:
        return None
    here = _here(view, provider)
    if here is not None:
        here = _amended(view, here)
        return Found(here, _model(view), _tier(view)) if here[INPUT] or here[OUTPUT] else None
    for name in _AROUND:
        inner = view.get(name)
        if inner is None or isinstance(inner, str):
            continue
        found = _generations(inner, provider, depth + 1) if name == "generations" else _look(inner, provider, depth + 1)
        if found is not None:
            return Found(found.counts, found.model or _model(view), found.service_tier or _tier(view))
    return None


def _here(view: Mapping[Any, Any], provider: str | None) -> Counts | None:
    """Return the counts that stand in this object itself, or right below it in one of the names for a usage."""
    best: Counts | None = None
    for name in _USAGE:
        value = view.get(name)
        if value is None:
            continue
        usage = fields(value)
        if usage is None:
            continue
        if name == "x_groq":
            usage = fields(usage.get("usage")) or {}
        best = larger(best, counts(usage, provider))
    return counts(view, provider) if best is None else best


def _amended(view: Mapping[Any, Any], found: Counts) -> Counts:
    """Return the counts with what only the answer around the usage tells."""
    told = list(found)
    if view.get("object") == "list" and not told[INPUT]:
        # Embeddings have no output: a total alone, as Voyage tells it, is input.
        told[INPUT], told[OUTPUT] = told[OUTPUT], 0
    output = view.get("output")
    if isinstance(output, list):
        told[8] = max(told[8], sum(map(_is_search, output)))
    return tuple(told)  # type: ignore[return-value]


def _is_search(item: object) -> bool:
    """Tell whether an item of an OpenAI response is a search: opening a page that was found costs nothing."""
    view = fields(item) or {}
    if view.get("type") != "web_search_call":
        return False
    return (fields(view.get("action")) or {}).get("type", "search") == "search"


def _model(view: Mapping[Any, Any]) -> str | None:
    return _text(view, _MODEL) or _text(fields(view.get("response_metadata")) or {}, _MODEL)


def _tier(view: Mapping[Any, Any]) -> str | None:
    for place in (view, fields(view.get("usage")), fields(view.get("response_metadata"))):
        if place is not None and (tier := _text(place, _TIER)) is not None:
            return tier
    return _text(fields(view.get("serviceTier")) or {}, ("type",))  # Bedrock


def _text(view: Mapping[Any, Any], keys: Iterable[str]) -> str | None:
    for key in keys:
        value = view.get(key)
        if isinstance(value, str) and value:
            return str(value)
    return None


# ---------------------------------------------------------------- several


def _look_through(items: Iterable[object], provider: str | None, depth: int) -> Found | None:
    """Return what a list tells: the last of a stream's events, the sum of whole answers."""
    total: Found | None = None
    stream: Found | None = None
    for item in items:
        if _is_whole(item):
            total = _sum(total, _look(item, provider, depth + 1))
        else:
            stream = follow(item, stream, provider)
    return _sum(total, stream)


def _is_whole(item: object) -> bool:
    """Tell whether an item of a list is an answer of its own (or, of LangChain's chunks, a part that is to be added)."""
    view = fields(item) or {}
    return (
        view.get("type") in _WHOLE_TYPES
        or view.get("object") in _WHOLE_OBJECTS
        or view.get("kind") == "response"  # pydantic-ai
        or "response_id" in view  # openai-agents
    )


def _sum(one: Found | None, other: Found | None) -> Found | None:
    if one is None or other is None:
        return one or other
    return Found(add(one.counts, other.counts), other.model or one.model, other.service_tier or one.service_tier)


def _generations(prompts: object, provider: str | None, depth: int) -> Found | None:
    """Return the sum over prompts. Each of the choices for one prompt carries the usage of all of them."""
    total: Found | None = None
    for choices in prompts if isinstance(prompts, list) else ():
        best: Found | None = None
        for choice in choices if isinstance(choices, list) else [choices]:
            found = _look(choice, provider, depth + 1)
            if found is not None and (best is None or larger(best.counts, found.counts) is not best.counts):
                best = found
        total = _sum(total, best)
    return total


# ---------------------------------------------------------------- none


def _unknown(x: object) -> UnknownUsage:
    view = fields(x, _PROPERTIES)
    if view is None:
        if isinstance(x, (list, tuple)):
            last = fields(x[-1], _PROPERTIES) if x else None
            keys = names(last or {})
            return UnknownUsage(f"no usage in a list of {len(x)}; the last has the keys {', '.join(keys) or '-'}", keys)
        return UnknownUsage(f"no usage in a {type(x).__name__}: it has no keys")
    keys = names(view)
    inner = [f"{name} has {', '.join(names(fields(view[name]) or {})) or 'no keys'}" for name in _USAGE if name in view]
    return UnknownUsage("; ".join([f"no usage with a count in the keys {', '.join(keys) or '-'}", *inner]), keys)
