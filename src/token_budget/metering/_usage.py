"""Usage: the tokens that one answer was billed for, in OpenTelemetry's names.

What always holds: ``input_tokens`` includes what was read from and written to a cache and what was audio;
``output_tokens`` includes reasoning and audio. Every count is a plain int, at least 0.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from token_budget._money import MAX_TOKENS, to_tokens
from token_budget.metering._answers import find
from token_budget.metering._counts import Counts, add


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The tokens of one answer, or of several added up.

    It is immutable, and safe to share between threads.

    Attributes:
        input_tokens: All input, with what a cache gave or took.
        output_tokens: All output, with reasoning.
        cache_read_input_tokens: Of the input: what was read from a cache.
        cache_creation_input_tokens: Of the input: what was written to a cache.
        cache_creation_1h_input_tokens: Of what was written to a cache: what is kept for an hour.
        reasoning_output_tokens: Of the output: reasoning.
        audio_input_tokens: Of the input: audio.
        audio_output_tokens: Of the output: audio.
        web_search_requests: Searches that the provider made, which are no tokens and are billed one by one.
        image_generation_input_tokens: Of the input: what a tool that makes images took, at its own model's price.
        image_generation_output_tokens: Of the output: the images that it made, at that price.

    Raises:
        TypeError: a count is no integer, or a bool.
        ValueError: a count is negative, or above 10**18.

    Example:
        >>> from token_budget.metering import Usage
        >>> usage = Usage.from_response({"usage": {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}})
        >>> usage.input_tokens, usage.output_tokens, (usage + usage).total_tokens
        (20, 5, 50)
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_creation_1h_input_tokens: int = 0
    reasoning_output_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0
    web_search_requests: int = 0
    image_generation_input_tokens: int = 0
    image_generation_output_tokens: int = 0

    def __post_init__(self) -> None:
        """Turn every count into a plain int, or refuse it."""
        for name, set_count in _SETTERS.items():
            count = getattr(self, name)
            if type(count) is not int or not 0 <= count <= MAX_TOKENS:
                set_count(self, to_tokens(count, name))

    @classmethod
    def from_response(cls, x: object, *, provider: str | None = None) -> Usage:
        """Return the usage of an answer. It does not block, and sends nothing.

        Args:
            x: The answer of a provider as parsed JSON or as an SDK's object, the usage inside it, the list of a
                stream's events, or the result of LangChain, LiteLLM, pydantic-ai or openai-agents.
            provider: Who answered, where the answer alone does not tell. Today that is ``"x-ai"``, which counts
                reasoning beside the output, for an answer without a total.

        Raises:
            UnknownUsage: there is no usage that is known, or its counts are no counts. The error names the keys seen.
        """
        return x if isinstance(x, Usage) else made(find(x, provider).counts)

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: object) -> Usage:
        """Return both usages together. A count ends at 10**18, the most that a usage holds."""
        if not isinstance(other, Usage):
            return NotImplemented
        one, more = counts_of(self), counts_of(other)
        return made(tuple(min(count, MAX_TOKENS) for count in add(one, more)))  # type: ignore[arg-type]

    def __radd__(self, other: object) -> Usage:
        """Let ``sum(usages)`` start at its 0."""
        return self if type(other) is int and other == 0 else NotImplemented

    def to_dict(self) -> dict[str, int]:
        """Return the counts by name, ready for JSON; ``Usage(**usage.to_dict())`` is the same again."""
        return {name: getattr(self, name) for name in _SETTERS}


# The fields' own setters: the class refuses assignment, and this is the quick way past it.
_SETTERS: dict[str, Any] = {field.name: Usage.__dict__[field.name].__set__ for field in fields(Usage)}
_new = object.__new__
_set_0, _set_1, _set_2, _set_3, _set_4, _set_5, _set_6, _set_7, _set_8, _set_9, _set_10 = _SETTERS.values()


def made(counts: Counts) -> Usage:
    """Return the usage of counts that are known to be good. Unrolled: every metered answer passes here."""
    usage = _new(Usage)
    n_0, n_1, n_2, n_3, n_4, n_5, n_6, n_7, n_8, n_9, n_10 = counts
    _set_0(usage, n_0)
    _set_1(usage, n_1)
    _set_2(usage, n_2)
    _set_3(usage, n_3)
    _set_4(usage, n_4)
    _set_5(usage, n_5)
    _set_6(usage, n_6)
    _set_7(usage, n_7)
    _set_8(usage, n_8)
    _set_9(usage, n_9)
    _set_10(usage, n_10)
    return usage


def counts_of(usage: Usage) -> Counts:
    """Return the counts of a usage, in the order of its fields."""
    return tuple(getattr(usage, name) for name in _SETTERS)


def without_images(usage: Usage) -> Usage:
    """Return what is left of a usage without what a tool that makes images used."""
    taken, made_of = usage.image_generation_input_tokens, usage.image_generation_output_tokens
    return replace(
        usage,
        input_tokens=max(usage.input_tokens - taken, 0),
        output_tokens=max(usage.output_tokens - made_of, 0),
        image_generation_input_tokens=0,
        image_generation_output_tokens=0,
    )
