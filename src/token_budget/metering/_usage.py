"""Usage: the tokens that one answer was billed for, in OpenTelemetry's names.

What always holds: ``input_tokens`` includes what was read from and written to a cache and what was audio;
``output_tokens`` includes reasoning and audio. Every count is a plain int, at least 0.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The tokens of one answer, or of several added up."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_creation_1h_input_tokens: int = 0
    reasoning_output_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0
    web_search_requests: int = 0
