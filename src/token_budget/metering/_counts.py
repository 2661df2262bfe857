"""Counts: the table of what providers and frameworks call their token counts, and what becomes of each.

A usage is read by the names that it has, never by who sent it: gateways speak each other's dialects. What always holds
of what comes out:

* The input includes what was read from and written to a cache and what was audio; the output includes reasoning.
* A count that stands under two names is counted once.
* A part that is larger than its whole was counted beside it, and is added. A total that is larger than input and output
  together says that output was left out. Both ways of reading round up, never down.
* A count that is negative, no integer or absurdly large is an error. One that is null is absent.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, TypeAlias

from token_budget.metering._objects import fields

MOST = 10**12  # tokens of one answer; what is larger is no count
_KEYS_SHOWN = 20
_LENGTH_SHOWN = 40

Counts: TypeAlias = tuple[int, int, int, int, int, int, int, int, int, int, int]
"""Input, output, read from a cache, written to it, of these for an hour, reasoning, audio in, audio out, searches, and
what a tool that makes images took and made."""

Table: TypeAlias = "dict[str, int | Table]"


class UnknownUsage(ValueError):
    """An answer has no usage that can be read. The message names the keys that were seen, and never a value.

    Attributes:
        keys: The names that stand at the top of the answer, or in the usage that cannot be read.
    """

    def __init__(self, message: str, keys: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.keys = keys


# The rows of the table of names. The first eleven are the places in `Counts`.
INPUT, OUTPUT, READ, WRITE, WRITE_1H, REASONING, AUDIO_IN, AUDIO_OUT, SEARCHES, IMAGES_IN, IMAGES_OUT = range(11)
_TOTAL = 11
_TOOL_INPUT = 12  # Gemini counts what its tools bring in beside the prompt
_THOUGHTS = 13  # and its thoughts beside the answer
_READ_BESIDE = 14  # Anthropic and Bedrock count cached input beside the input
_WRITE_BESIDE = 15
_WRITE_5M = 16
_REASONING_BESIDE = 17  # Perplexity counts reasoning and citations beside the output; others use the first name inside
_CITATIONS = 18
_UNMEASURED = 19  # pydantic-ai: how many answers told nothing
_OTHER_SEARCHES = 20  # xAI: those of X, beside those of the web
# Cohere bills less than it processes. Its SDK declares all of these as floats, and so turns the integers of its API
# into floats; from here on a float without a fraction is a count.
_MAYBE_FLOAT = 21
_BILLED_INPUT = 21
_BILLED_OUTPUT = 22
_PROCESSED_INPUT = 23
_PROCESSED_OUTPUT = 24
_CACHED = 25
_ROWS = 26
_NO_WRITES = [0] * (REASONING - WRITE)
_NO_MORE = [0] * (_ROWS - _TOOL_INPUT)

_KEPT: Table = {"ephemeral_1h_input_tokens": WRITE_1H, "ephemeral_5m_input_tokens": _WRITE_5M}
_INPUT_DETAILS: Table = {
    "cached_tokens": READ,
    "cache_read": READ,
    "cache_read_input_tokens": READ,  # Perplexity
    "priority_cache_read": READ,  # LangChain names the tier that it paid for
    "flex_cache_read": READ,
    "priority_cache_creation": WRITE,
    "flex_cache_creation": WRITE,
    "cache_write_tokens": WRITE,
    "cache_creation": WRITE,
    "cache_creation_tokens": WRITE,  # LiteLLM
    "cache_creation_token_details": _KEPT,
    **_KEPT,
    "audio_tokens": AUDIO_IN,
    "audio": AUDIO_IN,
}
_OUTPUT_DETAILS: Table = {
    "reasoning_tokens": REASONING,
    "reasoning": REASONING,
    "priority_reasoning": REASONING,
    "flex_reasoning": REASONING,
    "thinking_tokens": REASONING,  # Anthropic
    "audio_tokens": AUDIO_OUT,
    "audio": AUDIO_OUT,
}
_NAMES: Table = {
    # OpenAI chat, embeddings, and all who speak like it
    "prompt_tokens": INPUT,
    "completion_tokens": OUTPUT,
    "total_tokens": _TOTAL,
    "prompt_tokens_details": _INPUT_DETAILS,
    "completion_tokens_details": _OUTPUT_DETAILS,
    "prompt_cache_hit_tokens": READ,  # DeepSeek
    "cached_tokens": _CACHED,  # Moonshot, Cohere
    "cached_prompt_text_tokens": READ,  # xAI
    "reasoning_tokens": _REASONING_BESIDE,
    "citation_tokens": _CITATIONS,
    "num_search_queries": SEARCHES,
    "num_sources_used": SEARCHES,  # xAI bills each source
    "server_side_tool_usage_details": {"web_search_calls": SEARCHES, "x_search_calls": _OTHER_SEARCHES},
    "server_tool_use_details": {"web_search_requests": SEARCHES},  # OpenRouter
    "connector_tokens": _TOOL_INPUT,  # Mistral's conversations
    "connectors": {"web_search": SEARCHES},
    "tool_calls_details": {"search_web": {"invocation": SEARCHES}},
    # OpenAI responses and realtime, openai-agents, LangChain, pydantic-ai, Anthropic
    "input_tokens": INPUT,
    "output_tokens": OUTPUT,
    "input_tokens_details": _INPUT_DETAILS,
    "output_tokens_details": _OUTPUT_DETAILS,
    "input_token_details": _INPUT_DETAILS,
    "output_token_details": _OUTPUT_DETAILS,
    "cache_read_tokens": READ,
    "cache_write_tokens": WRITE,
    "cache_write_1h_tokens": WRITE_1H,
    "unmeasured_requests": _UNMEASURED,
    "input_audio_tokens": AUDIO_IN,
    "output_audio_tokens": AUDIO_OUT,
    "details": {"reasoning_tokens": REASONING, "thoughts_tokens": REASONING, "web_search_requests": SEARCHES},
    "cache_read_input_tokens": _READ_BESIDE,
    "cache_creation_input_tokens": _WRITE_BESIDE,
    "cache_creation": _KEPT,
    "server_tool_use": {"web_search_requests": SEARCHES},
    # Gemini, in JSON and in its SDK
    "promptTokenCount": INPUT,
    "prompt_token_count": INPUT,
    "candidatesTokenCount": OUTPUT,
    "candidates_token_count": OUTPUT,
    "responseTokenCount": OUTPUT,
    "response_token_count": OUTPUT,
    "totalTokenCount": _TOTAL,
    "total_token_count": _TOTAL,
    "toolUsePromptTokenCount": _TOOL_INPUT,
    "tool_use_prompt_token_count": _TOOL_INPUT,
    "thoughtsTokenCount": _THOUGHTS,
    "thoughts_token_count": _THOUGHTS,
    "cachedContentTokenCount": READ,
    "cached_content_token_count": READ,
    # Gemini's interactions: whether the output includes the thoughts, the total says
    "total_input_tokens": INPUT,
    "total_output_tokens": OUTPUT,
    "total_thought_tokens": REASONING,
    "total_cached_tokens": READ,
    "total_tool_use_tokens": _TOOL_INPUT,
    # Bedrock: Converse, and what it adds to the streams of InvokeModel
    "inputTokens": INPUT,
    "outputTokens": OUTPUT,
    "totalTokens": _TOTAL,
    "cacheReadInputTokens": _READ_BESIDE,
    "cacheWriteInputTokens": _WRITE_BESIDE,
    "inputTokenCount": INPUT,
    "outputTokenCount": OUTPUT,
    "generation_token_count": OUTPUT,
    "cacheReadInputTokenCount": _READ_BESIDE,
    "cacheWriteInputTokenCount": _WRITE_BESIDE,
    # Ollama
    "prompt_eval_count": INPUT,
    "eval_count": OUTPUT,
    # Cohere
    "tokens": {"input_tokens": _PROCESSED_INPUT, "output_tokens": _PROCESSED_OUTPUT},
    "billed_units": {"input_tokens": _BILLED_INPUT, "output_tokens": _BILLED_OUTPUT},
    # our own `Usage.to_dict`
    "cache_creation_1h_input_tokens": WRITE_1H,
    "output_reasoning_tokens": REASONING,  # pydantic-ai
    "reasoning_output_tokens": REASONING,
    "audio_input_tokens": AUDIO_IN,
    "audio_output_tokens": AUDIO_OUT,
    "web_search_requests": SEARCHES,
    "image_generation_input_tokens": IMAGES_IN,
    "image_generation_output_tokens": IMAGES_OUT,
}
COUNT_NAMES = frozenset(_NAMES)
NOTHING: Counts = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
# Beside one of these, `cache_read_input_tokens` is a part of the input: LiteLLM, Databricks, our own dict.
_CACHE_INSIDE = ("prompt_tokens", "reasoning_output_tokens", "cache_creation_1h_input_tokens", "audio_input_tokens")
_MODALITIES = {
    "promptTokensDetails": AUDIO_IN,
    "prompt_tokens_details": AUDIO_IN,
    "toolUsePromptTokensDetails": AUDIO_IN,
    "tool_use_prompt_tokens_details": AUDIO_IN,
    "candidatesTokensDetails": AUDIO_OUT,
    "candidates_tokens_details": AUDIO_OUT,
    "responseTokensDetails": AUDIO_OUT,
    "response_tokens_details": AUDIO_OUT,
    "input_tokens_by_modality": AUDIO_IN,
    "tool_use_tokens_by_modality": AUDIO_IN,
    "output_tokens_by_modality": AUDIO_OUT,
}
_MODALITY_COUNT: Table = {"tokenCount": INPUT, "token_count": INPUT, "tokens": INPUT}
_HAS_MODALITIES = frozenset(("promptTokenCount", "prompt_token_count", "total_input_tokens"))
_TOOLS: Table = {"web_search": {"num_requests": SEARCHES}}
# The iterations of an answer of Anthropic that are not in its sums.
_APART = ("compaction", "advisor_message")
_XAI = ("x-ai", "xai")


def counts(usage: Mapping[Any, Any], provider: str | None = None) -> Counts:
    """Return the counts of a usage; input and output are both 0 if it has none.

    Raises:
        UnknownUsage: a count is negative, no integer, or above 10**12.
    """
    n = [0] * _ROWS
    collect(usage, _NAMES, n)
    if not _HAS_MODALITIES.isdisjoint(usage):
        _collect_audio(usage, n)
    if n[_UNMEASURED]:
        keys = names(usage)
        raise UnknownUsage(f"some of the answers told no usage, in the sum with the keys {', '.join(keys)}", keys)
    if n[READ] > n[INPUT] or n[WRITE:REASONING] != _NO_WRITES or n[_TOOL_INPUT:] != _NO_MORE:
        _settle_billed(n)
        _settle_input(usage, n)
        _settle_output(usage, n)
    if n[REASONING] > n[OUTPUT] or (provider in _XAI and not n[_TOTAL] and "prompt_tokens" in usage):
        n[OUTPUT] += n[REASONING]
    if n[AUDIO_IN] > n[INPUT]:  # noqa: PLR1730 - as in `collect`
        n[INPUT] = n[AUDIO_IN]
    if n[AUDIO_OUT] > n[OUTPUT]:  # noqa: PLR1730
        n[OUTPUT] = n[AUDIO_OUT]
    if n[_TOTAL] > n[INPUT] + n[OUTPUT]:
        n[OUTPUT] = n[_TOTAL] - n[INPUT]
    iterations = usage.get("iterations")
    if iterations is not None:
        _add_iterations(iterations, n)
    return tuple(n[:_TOTAL])  # type: ignore[return-value]


def tool_searches(tools: Mapping[Any, Any]) -> int:
    """Return how often the tools of an OpenAI response searched, which its usage leaves out.

    Raises:
        UnknownUsage: as `counts`.
    """
    n = [0] * _ROWS
    collect(tools, _TOOLS, n)
    return n[SEARCHES]


def larger(one: Counts, other: Counts) -> Counts:
    """Return the one of two usages of the same answer that is larger in input and output together."""
    return other if other[INPUT] + other[OUTPUT] > one[INPUT] + one[OUTPUT] else one


def add(one: Counts, other: Counts) -> Counts:
    """Return the counts of two answers together."""
    return tuple(a + b for a, b in zip(one, other, strict=True))  # type: ignore[return-value]


def names(keys: Mapping[Any, Any]) -> tuple[str, ...]:
    """Return the keys as an error may show them: few, short, printable."""
    shown = [key[:_LENGTH_SHOWN] if isinstance(key, str) else type(key).__name__ for key in keys]
    return tuple(shown[:_KEYS_SHOWN])


def collect(usage: Mapping[Any, Any], table: Table, n: list[int]) -> None:
    """Put the counts of a usage into their rows, of two for one row the larger. Raise UnknownUsage as `counts`."""
    for key, value in usage.items():
        if value is None:
            continue
        row = table.get(key)
        if row is None:
            continue
        if isinstance(row, int):
            count = value if type(value) is int else _integer(value, key, row, usage)
            if not 0 <= count <= MOST:
                raise _no_count(key, usage)
            if count > n[row]:  # noqa: PLR1730 - `max` takes three times as long, ten times an answer
                n[row] = count
        else:
            inner = value if type(value) is dict else fields(value)
            if inner:
                collect(inner, row, n)


def _integer(value: object, key: str, row: int, usage: Mapping[Any, Any]) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and row >= _MAYBE_FLOAT and value.is_integer():
        return int(value)
    raise _no_count(key, usage)


def _no_count(key: str, usage: Mapping[Any, Any]) -> UnknownUsage:
    keys = names(usage)
    return UnknownUsage(f"{key!r} is no count of tokens, in a usage with the keys {', '.join(keys)}", keys)


def _collect_audio(usage: Mapping[Any, Any], n: list[int]) -> None:
    for key, row in _MODALITIES.items():
        parts = usage.get(key)
        for part in parts if isinstance(parts, (list, tuple)) else ():
            one = fields(part) or {}
            if one.get("modality") in {"AUDIO", "audio"}:
                count = [0] * _ROWS
                collect(one, _MODALITY_COUNT, count)
                n[row] += count[INPUT]


def _collect_hour(details: object, n: list[int]) -> None:
    """Count what Bedrock says is kept for an hour."""
    hour = 0
    for part in details if isinstance(details, (list, tuple)) else ():
        one = fields(part) or {}
        if one.get("ttl") == "1h":
            count = [0] * _ROWS
            collect(one, _NAMES, count)
            hour += count[INPUT]
    n[WRITE_1H] = max(n[WRITE_1H], hour)


def _add_iterations(iterations: object, n: list[int]) -> None:
    for iteration in iterations if isinstance(iterations, (list, tuple)) else ():
        one = fields(iteration) or {}
        if one.get("type") in _APART:
            n[:_TOTAL] = map(operator.add, n[:_TOTAL], counts(one))


def _settle_billed(n: list[int]) -> None:
    if n[_BILLED_INPUT] or n[_BILLED_OUTPUT]:
        n[INPUT], n[OUTPUT] = n[_BILLED_INPUT], n[_BILLED_OUTPUT]
        n[_CACHED] = 0  # of the processed, which can be more than the billed
    elif n[_PROCESSED_INPUT] or n[_PROCESSED_OUTPUT]:
        n[INPUT], n[OUTPUT] = n[_PROCESSED_INPUT], n[_PROCESSED_OUTPUT]


def _settle_input(usage: Mapping[Any, Any], n: list[int]) -> None:
    n[INPUT] += n[_TOOL_INPUT]
    if n[_WRITE_BESIDE] and (details := usage.get("cacheDetails")):
        _collect_hour(details, n)
    n[WRITE] = max(n[WRITE], n[_WRITE_BESIDE], n[WRITE_1H] + n[_WRITE_5M])
    n[READ] = max(n[READ], n[_READ_BESIDE], n[_CACHED])
    beside = n[_READ_BESIDE] or n[_WRITE_BESIDE]
    if n[READ] + n[WRITE] > n[INPUT] or (beside and not any(name in usage for name in _CACHE_INSIDE)):
        n[INPUT] += n[READ] + n[WRITE]


def _settle_output(usage: Mapping[Any, Any], n: list[int]) -> None:
    n[REASONING] = max(n[REASONING], n[_REASONING_BESIDE], n[_THOUGHTS])
    n[OUTPUT] += n[_THOUGHTS]
    n[SEARCHES] += n[_OTHER_SEARCHES]
    if "citation_tokens" in usage or "num_search_queries" in usage:
        n[OUTPUT] += n[_REASONING_BESIDE] + n[_CITATIONS]
