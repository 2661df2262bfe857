"""Shapes: what an answer says of its own price: its usage, the model that answered, the tier that served it.

What always holds: a reading is never a guess. What has no usage that is known raises `UnknownUsage`, or, as one event
of a stream, changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from token_budget.metering._answers import Found, find, follow
from token_budget.metering._counts import UnknownUsage
from token_budget.metering._images import Images
from token_budget.metering._usage import Usage, counts_of, made
from token_budget.metering._written import wrote

__all__ = ["Reading", "UnknownUsage", "read", "read_event"]


class Reading(NamedTuple):
    """What an answer says of its own price."""

    usage: Usage
    model: str | None
    service_tier: str | None
    images: tuple[Images, ...] = ()  # which of the usage is images, at the prices of which model
    untold: bool = False  # whether the model wrote what the usage does not count


def read(x: object, *, provider: str | None = None) -> Reading:
    """Return what an answer says of its own price.

    Args:
        x: What `Usage.from_response` takes.
        provider: As there.

    Raises:
        UnknownUsage: there is no usage that is known, or its counts are no counts.
    """
    if isinstance(x, Usage):
        return Reading(x, None, None)
    found = find(x, provider)
    usage = made(found.counts)
    return Reading(usage, found.model, found.service_tier, found.images, is_silent(usage) and wrote(x))


def is_silent(usage: Usage) -> bool:
    """Return whether a usage counts no output but images."""
    return usage.output_tokens == usage.image_generation_output_tokens


def read_event(event: object, so_far: Reading | None, *, provider: str | None = None) -> Reading | None:
    """Return the reading of a stream after one more of its events; None while no event has told a usage.

    Args:
        event: One event, parsed.
        so_far: What this function returned for the event before; None for the first.
        provider: As for `read`.

    Raises:
        UnknownUsage: the event's counts are no counts.
    """
    before = None if so_far is None else Found(counts_of(so_far.usage), *so_far[1:4])
    after = follow(event, before, provider)
    if after is before or after is None:
        return so_far
    return Reading(made(after.counts), after.model, after.service_tier, after.images)
