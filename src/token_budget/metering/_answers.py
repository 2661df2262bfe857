"""Answers: where in an answer its usage stands, and how the usages of a stream's events follow each other.

What always holds: only known names are followed, and only so deep, so that nothing that a prompt or a model wrote is
taken for a usage. Of two usages of one answer the larger counts; those of several answers are added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from token_budget.metering._counts import (
    COUNT_NAMES,
    IMAGES_IN,
    IMAGES_OUT,
    INPUT,
    NOTHING,
    OUTPUT,
    READ,
    SEARCHES,
    WRITE,
    Counts,
    UnknownUsage,
    add,
    counts,
    larger,
    names,
    tool_searches,
)
from token_budget.metering._images import CALL, Images, is_made, used
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
    # First the sums over a run, before the answers that they are the sums of.
    "_state",  # pydantic-ai's results, whose `usage` was a method before 2.0
    "context_wrapper",  # openai-agents
    "raw_responses",
    "message",  # Anthropic's message_start, LangChain's generation
    "response",  # OpenAI's response.completed, a batch's line
    "interaction",  # the stream events of Gemini's interactions
    "metadata",  # Bedrock's stream
    "meta",  # Cohere
    "delta",  # Cohere's stream
    "data",  # the stream events of Mistral's SDK
    "result",  # Cloudflare, the results of Anthropic's batches
    "body",  # a batch's line
    "messages",  # LangGraph's state
    "generations",  # LangChain's LLMResult
    "llm_output",
    "response_metadata",
)
_MODEL = ("model", "modelVersion", "model_version", "model_name", "modelId", "model_id")
_TIER = ("service_tier", "serviceTier")
IN_THE_US = "@us"  # after the name of a tier: Anthropic served it in the US alone (`inference_geo`), for 1.1 times
_TIER_INSIDE = ("usage", "usageMetadata", "usage_metadata", "response_metadata")
_OTHER_USAGE = frozenset(_USAGE) - {"usage"}
_AROUND_NAMES = frozenset(_AROUND)
_ANSWERS = frozenset({"object", "model", "output"})  # beside one of these, ``metadata`` is what the user wrote
_PROPERTIES = frozenset((*_USAGE, *_AROUND, *_MODEL, *_TIER))
_GROUNDED_AT_ONCE = ("gemini-1", "gemini-2")  # billed once for a prompt, and not for each of its searches
_SEARCH = "web_search_call"
_CALLS = (_SEARCH, CALL)  # items of an OpenAI response that are billed by themselves
_DEEPEST = 6
_WHOLE_TYPES = ("message", "ai", "AIMessageChunk")  # LangChain's chunks are parts of a sum
_WHOLE_OBJECTS = ("chat.completion", "response", "list")


class Found(NamedTuple):
    """What stands in an answer."""

    counts: Counts
    model: str | None
    service_tier: str | None
    images: tuple[Images, ...] = ()  # what is counted as images, and by which model they were made


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
    if found is None:
        return so_far
    delta = (fields(event) or {}).get("type") == "message_delta"
    if so_far is None:
        return None if delta and not found.counts[INPUT] else found
    later = _overlay(found.counts, so_far.counts) if delta else found.counts
    if so_far.counts[SEARCHES] > later[SEARCHES]:  # Gemini tells them in one of the events
        later = _with_searches(later, so_far.counts[SEARCHES])
    return Found(later, found.model or so_far.model, found.service_tier or so_far.service_tier, found.images)


def _with_searches(found: Counts, searches: int) -> Counts:
    return (*found[:SEARCHES], searches, *found[SEARCHES + 1 :])  # type: ignore[return-value]


def _overlay(later: Counts, earlier: Counts) -> Counts:
    """Return the earlier counts with those of a ``message_delta`` over them. A 0 there says that nothing is said."""
    told = [one or other for one, other in zip(later, earlier, strict=True)]
    fresh = later[INPUT] - later[READ] - later[WRITE] or earlier[INPUT] - earlier[READ] - earlier[WRITE]
    told[INPUT] = fresh + told[READ] + told[WRITE]
    return tuple(told)  # type: ignore[return-value]


# ---------------------------------------------------------------- one answer


def _look(x: object, provider: str | None, depth: int) -> Found | None:
    view = x if type(x) is dict else fields(x, _PROPERTIES)
    if depth > _DEEPEST:
        return None
    if view is None:
        return _look_through(x, provider, depth) if isinstance(x, (list, tuple)) else None
    here = _here(view, provider)
    if here[INPUT] or here[OUTPUT]:
        return _amended(view, Found(here, _model(view), _tier(view)))
    if _AROUND_NAMES.isdisjoint(view):
        return None
    for name in _AROUND:
        inner = view.get(name)
        if inner is None or isinstance(inner, str) or (name == "metadata" and not _ANSWERS.isdisjoint(view)):
            continue
        found = _generations(inner, provider, depth + 1) if name == "generations" else _look(inner, provider, depth + 1)
        if found is not None:
            return Found(found.counts, found.model or _model(view), found.service_tier or _tier(view), found.images)
    return None


def _here(view: Mapping[Any, Any], provider: str | None) -> Counts:
    """Return the counts that stand in this object itself, or right below it in one of the names for a usage."""
    usage = view.get("usage")
    if type(usage) is dict and _OTHER_USAGE.isdisjoint(view):
        return counts(usage, provider)
    best: Counts | None = None
    if usage is not None or not _OTHER_USAGE.isdisjoint(view):
        for name in _USAGE:
            value = view.get(name)
            inner = None if value is None else fields(value)
            if inner is not None:
                found = counts((fields(inner.get("usage")) or {}) if name == "x_groq" else inner, provider)
                best = found if best is None else larger(best, found)
    if best is None:
        return NOTHING if COUNT_NAMES.isdisjoint(view) else counts(view, provider)
    return best


def _amended(view: Mapping[Any, Any], found: Found) -> Found:
    """Return what was found with what only the answer around the usage tells."""
    counted = found.counts
    if view.get("object") == "list" and not counted[INPUT]:
        # Embeddings have no output: a total alone, as Voyage tells it, is input.
        return found._replace(counts=(counted[OUTPUT], 0, *counted[READ:]))  # type: ignore[arg-type]
    output, candidates, tools = view.get("output"), view.get("candidates"), view.get("tool_usage")
    if output is candidates is tools is None:
        return found
    searches, calls, told = 0, [], fields(tools) or {}
    if isinstance(output, list):
        calls = [call for item in output if (call := fields(item) or {}).get("type") in _CALLS]
        searches = sum(map(_is_search, calls))
    elif isinstance(candidates, list):
        searches = sum(map(_queries, candidates))
        if (found.model or "").startswith(_GROUNDED_AT_ONCE):
            searches = min(searches, 1)
    if tools is not None:
        searches = counted[SEARCHES] + tool_searches(told)
    if searches > counted[SEARCHES]:
        found = found._replace(counts=_with_searches(counted, searches))
    images = used(view, told.get("image_gen"), [*filter(is_made, calls)]) if calls or told else None
    return found if images is None else _with_images(found, images)


def _with_images(found: Found, images: Images) -> Found:
    counted, taken, made = list(found.counts), images.input, images.output
    for row, count in ((INPUT, taken), (OUTPUT, made), (IMAGES_IN, taken), (IMAGES_OUT, made)):
        counted[row] += count
    return found._replace(counts=tuple(counted), images=(images,))  # type: ignore[arg-type]


def _queries(candidate: object) -> int:
    """Return how often Gemini searched for a candidate."""
    view = fields(candidate) or {}
    grounding = fields(view.get("groundingMetadata") or view.get("grounding_metadata")) or {}
    queries = grounding.get("webSearchQueries") or grounding.get("web_search_queries")
    return len(queries) if isinstance(queries, list) else 0


def _is_search(call: Mapping[Any, Any]) -> bool:
    """Tell whether an item of an OpenAI response is a search: opening a page that was found costs nothing."""
    action = fields(call.get("action")) or {}
    return call["type"] == _SEARCH and bool(action.get("type", "search") == "search")


def _model(view: Mapping[Any, Any]) -> str | None:
    for key in _MODEL:
        value = view.get(key)
        if isinstance(value, str) and value:
            return str(value)
    inner = fields(view.get("response_metadata"))
    return None if inner is None else _model(inner)


def _tier(view: Mapping[Any, Any]) -> str | None:
    """Return the tier. Anthropic tells its fast mode and the place beside a tier that says ``standard``."""
    tier = "fast" if view.get("speed") == "fast" else _named_tier(view)
    if view.get("inference_geo") == "us":
        return (tier or "standard") + IN_THE_US
    if tier is None:
        for key in _TIER_INSIDE:
            inner = fields(view.get(key))
            if inner is not None and (found := _tier(inner)) is not None:
                return found
    return tier


def _named_tier(view: Mapping[Any, Any]) -> str | None:
    for key in _TIER:
        value = view.get(key)
        if isinstance(value, str) and value:
            return str(value)
        if value is not None and isinstance(tier := (fields(value) or {}).get("type"), str):  # Bedrock
            return str(tier)
    return None


# ---------------------------------------------------------------- several


def _look_through(items: Iterable[object], provider: str | None, depth: int) -> Found | None:
    """Return what a list tells: the last of a stream's events, the sum of whole answers."""
    total: Found | None = None
    stream: Found | None = None
    cut, answer = False, None
    for item in items:
        kind = _kind(item)
        if kind == "whole":
            total = _sum(total, _look(item, provider, depth + 1))
        else:
            before, answer = answer, _gemini_answer(item) or answer
            if before not in {None, answer}:
                total, stream = _sum(total, stream), None
            stream = follow(item, stream, provider)
            cut = kind == "message_start" or (cut and kind != "message_delta")
    # Whole answers without any input are LangChain's chunks of a stream whose start told no usage.
    return None if cut or (total is not None and not total.counts[INPUT]) else _sum(total, stream)


def _kind(item: object) -> object:
    """Return "whole" for an answer of its own and for a part that is to be added; else the type of the event."""
    view = fields(item) or {}
    kind = view.get("type")
    whole = (
        kind in _WHOLE_TYPES
        or view.get("object") in _WHOLE_OBJECTS
        or view.get("kind") == "response"  # pydantic-ai
        or ("response_id" in view and "output" in view)  # openai-agents
        or ("stopReason" in view and "output" in view)  # Bedrock
        or ("finish_reason" in view and "message" in view)  # Cohere
        or (view.get("done") is True and "prompt_eval_count" in view)  # Ollama
        or ("web_search_requests" in view and "reasoning_output_tokens" in view)  # our own
    )
    return "whole" if whole else kind


def _gemini_answer(item: object) -> object:
    """Return the id of the answer that an event of Gemini's is a part of; None where there is none."""
    view = fields(item) or {}
    if "usageMetadata" not in view and "usage_metadata" not in view:
        return None
    return view.get("responseId") or view.get("response_id")


def _sum(one: Found | None, other: Found | None) -> Found | None:
    if one is None or other is None:
        return one or other
    images = one.images + other.images
    return Found(
        add(one.counts, other.counts), other.model or one.model, other.service_tier or one.service_tier, images
    )


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
