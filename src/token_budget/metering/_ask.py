"""Ask: what the meter knows about a request before it is sent."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from token_budget.metering._images import Images
from token_budget.metering._usage import Usage


@dataclass(slots=True)
class Ask:
    """One request to a model: for whom it is priced, and the most that it can cost.

    ``worst`` is an estimate of the input (or its true bound, with ``estimate="bytes"``) and the most output that the
    request allows; without a limit in the request, that is the meter's ``default_output``.
    """

    operation: str  # OpenTelemetry's `gen_ai.operation.name`: chat, text_completion, embeddings, generate_content, ...
    provider: str | None  # who serves it: openai, anthropic, google, groq, ...; None: unknown
    model: str | None
    worst: Usage
    limited: bool = True  # whether the request itself limits its output
    choices: int = 1  # how many answers it asks for (`n`, `candidateCount`)
    stream: bool = False
    service_tier: str | None = None
    untold_searches: int = 0  # web searches that it asks for in a way in which answers do not tell of them
    retried: bool = False  # the SDK sends it again (`x-stainless-retry-count`)
    others: tuple[str, ...] = ()  # models that may answer in its place, and are then paid for
    image_model: str | None = None  # which one its tool that makes images asks for
    body: bytes = field(default=b"", repr=False)  # for the guard against repeats; never kept after the call

    @property
    def input_tokens(self) -> int:
        """The most that the model itself reads: its input without that of an image."""
        return self.worst.input_tokens - self.worst.image_generation_input_tokens

    def filled(self, usage: Usage, *, untold: bool) -> Usage:
        """Return a usage with what the answer does not tell, as it was held.

        Args:
            usage: what it tells.
            untold: whether the model wrote what that does not count.
        """
        worst = self.worst
        if not usage.input_tokens:  # it tells the output alone
            usage = replace(usage, input_tokens=self.input_tokens)
        if untold:
            text = worst.output_tokens - worst.image_generation_output_tokens
            output = max(usage.output_tokens, text + usage.image_generation_output_tokens)
            spoken = max(usage.audio_output_tokens, worst.audio_output_tokens)
            usage = replace(usage, output_tokens=output, audio_output_tokens=spoken)
        return usage

    def images(self, told: tuple[Images, ...]) -> tuple[Images, ...]:
        """Return the images that an answer tells of, as made by the model that was asked for."""
        return tuple(one._replace(model=self.image_model or one.model) for one in told)
