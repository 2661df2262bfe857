"""Rates: what the tokens of one model cost, and what an answer cost at them.

What always holds:

* Rates are integers: nanodollars a token, times the ``scale`` of their `Rates`. Whatever a table says is kept exactly.
* A cost is the exact sum, rounded once, upwards, to whole nanodollars. No float stands between a table and a cost.
* What is not given is never cheaper than it can be. A read from a cache costs what input costs; a write to it 1.25
  times the input, and one that is kept for an hour 1.6 times the write: what the vendors ask who bill for writes.
* An image that is read costs what input costs, and one that is made what output costs, where they have no rates.
* Counts that overlap (audio that was read from a cache) are each priced at their own rate. That is never too little.
"""

from __future__ import annotations

from math import lcm

from token_budget._money import shown_type
from token_budget.metering._refusals import UnknownModel

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from fractions import Fraction
    from typing import Any

    from token_budget.metering._images import Images
    from token_budget.metering._usage import Usage

TOKEN_RATES = (
    "input",
    "output",
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "audio_input",
    "audio_output",
    "reasoning",
    "image_input",
    "image_cache_read",
    "image_output",
)
FEES = ("web_search", "request")
WEB_SEARCH_USD = "0.01"
MAX_DECIMALS = 30
MAX_RATE = 10**6  # USD for a million tokens, or USD for one search or request
_TUPLE = ("input", "output", "cache_read", "cache_write")
_SHOWN_CHARACTERS = 100


class Rates:
    """The rates of one model in one service tier, up to the first step of its context."""

    __slots__ = (
        "audio_input",
        "audio_output",
        "cache_read",
        "cache_write",
        "cache_write_1h",
        "image_cache_read",
        "image_input",
        "image_output",
        "input",
        "output",
        "reasoning",
        "request",
        "scale",
        "steps",
        "web_search",
    )

    def __init__(self, sheet: Mapping[str, Fraction], steps: tuple[tuple[int, Rates], ...] = ()) -> None:
        """Keep a whole sheet: USD for a million tokens, USD for a fee; ``steps`` with the highest first."""
        per_token = {name: sheet[name] * 1000 for name in TOKEN_RATES}
        per_token.update({name: sheet[name] * 10**9 for name in FEES})
        self.scale = lcm(*(rate.denominator for rate in per_token.values()))
        whole = {name: (rate * self.scale).numerator for name, rate in per_token.items()}
        self.input, self.output = whole["input"], whole["output"]
        self.cache_read, self.cache_write = whole["cache_read"], whole["cache_write"]
        self.cache_write_1h = whole["cache_write_1h"]
        self.audio_input, self.audio_output = whole["audio_input"], whole["audio_output"]
        self.reasoning = whole["reasoning"]
        self.image_input, self.image_output = whole["image_input"], whole["image_output"]
        self.image_cache_read = whole["image_cache_read"]
        self.web_search, self.request = whole["web_search"], whole["request"]
        self.steps = steps

    def nanos(self, usage: Usage) -> int:
        """Return the cost in nanodollars, rounded up."""
        tokens = usage.input_tokens
        for start, dearer in self.steps:
            if tokens > start:
                return dearer.nanos(usage)
        total = self.request
        read, written = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
        hour, heard = usage.cache_creation_1h_input_tokens, usage.audio_input_tokens
        if read or written or hour or heard:
            written = max(written, hour)
            total += read * self.cache_read + (written - hour) * self.cache_write
            total += hour * self.cache_write_1h + heard * self.audio_input
            tokens = max(tokens - read - written - heard, 0)
        rest = usage.output_tokens
        thought, spoken = usage.reasoning_output_tokens, usage.audio_output_tokens
        if thought or spoken:
            total += thought * self.reasoning + spoken * self.audio_output
            rest = max(rest - thought - spoken, 0)
        if usage.web_search_requests:
            total += usage.web_search_requests * self.web_search
        return -(-(total + tokens * self.input + rest * self.output) // self.scale)

    def most(self, usage: Usage) -> int:
        """Return the most that a call can cost of which this is the worst case, in nanodollars, rounded up.

        Only the answer tells whether a cache took the input, and how much of the output is reasoning or audio. Where
        these are not the dearest, what is dearer is taken.
        """
        for start, dearer in self.steps:
            if usage.input_tokens > start:
                return dearer.most(usage)
        usages = [usage]
        if usage.cache_creation_input_tokens and not self.input <= self.cache_write <= self.cache_write_1h:
            kept = usage.cache_creation_input_tokens
            usages = [
                with_counts(usage, cache_creation_input_tokens=written, cache_creation_1h_input_tokens=hour)
                for written, hour in ((0, 0), (kept, 0), (kept, usage.cache_creation_1h_input_tokens))
            ]
        if self.reasoning > self.output or usage.audio_output_tokens:
            usages += [
                with_counts(one, audio_output_tokens=0, reasoning_output_tokens=thought)
                for one in usages
                for thought in (0, one.output_tokens)
            ]
        return max(map(self.nanos, usages))

    def images(self, used: Images) -> int:
        """Return what images cost that this model made as a tool, in nanodollars, rounded up."""
        total = (used.text_input - used.text_read) * self.input + used.text_read * self.cache_read
        total += (used.image_input - used.image_read) * self.image_input + used.image_read * self.image_cache_read
        total += used.text_output * self.output + used.image_output * self.image_output
        return -(-total // self.scale)


class Dearest:
    """Several rates, of which it is not known which holds: the dearest one for each answer."""

    __slots__ = ("_choices",)

    def __init__(self, choices: tuple[Rates, ...]) -> None:
        self._choices = choices

    def nanos(self, usage: Usage) -> int:
        """Return the cost in nanodollars, rounded up."""
        return max([rates.nanos(usage) for rates in self._choices])

    def most(self, usage: Usage) -> int:
        """Do what `Rates.most` does."""
        return max([rates.most(usage) for rates in self._choices])

    def images(self, used: Images) -> int:
        """Do what `Rates.images` does."""
        return max([rates.images(used) for rates in self._choices])


class Free:
    """A model that its user says costs nothing."""

    __slots__ = ()

    def nanos(self, usage: Usage) -> int:  # noqa: ARG002  # as `Rates.nanos`
        """Return 0."""
        return 0

    most = nanos

    def images(self, used: Images) -> int:  # noqa: ARG002
        """Return 0."""
        return 0


class Unpriced:
    """A model without a price, and why there is none."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def nanos(self, usage: Usage) -> int:  # noqa: ARG002  # as `Rates.nanos`
        """Raise UnknownModel."""
        raise UnknownModel(self.reason)

    most = nanos

    def images(self, used: Images) -> int:  # noqa: ARG002
        """Raise UnknownModel."""
        raise UnknownModel(self.reason)


class Timed:
    """Rates that change with the date or the time of day: whichever hold when they are asked.

    ``read`` says what holds at a moment (seconds since 1970) and until when it does.
    """

    __slots__ = ("_clock", "_current", "_read")

    def __init__(self, read: Callable[[float], tuple[float, Priced]], clock: Callable[[], float]) -> None:
        self._read = read
        self._clock = clock
        self._current = self._at(clock())

    def _at(self, now: float) -> tuple[float, float, Priced]:
        return (now, *self._read(now))

    def nanos(self, usage: Usage) -> int:
        """Return the cost in nanodollars of a call now, rounded up."""
        return self._now().nanos(usage)

    def most(self, usage: Usage) -> int:
        """Do what `Rates.most` does."""
        return self._now().most(usage)

    def images(self, used: Images) -> int:
        """Do what `Rates.images` does."""
        return self._now().images(used)

    def _now(self) -> Priced:
        now = self._clock()
        since, until, rates = self._current  # replaced as a whole, so that no lock is needed
        if not since <= now < until:
            self._current = since, until, rates = self._at(now)
        return rates


def with_counts(usage: Usage, **counts: int) -> Usage:
    from dataclasses import replace

    return replace(usage, **counts)


Priced = Rates | Dearest | Free | Unpriced | Timed


# ---------------------------------------------------------------- what tables say


def sheet(given: Any, who: str, *, inherit: Mapping[str, Fraction] | None = None) -> dict[str, Fraction]:
    """Return all rates of a tuple or dict, exactly, those that are not given too.

    Args:
        given: ``(input, output[, cache_read[, cache_write]])`` or a dict of rates and fees.
        who: What messages call it.
        inherit: The sheet whose fees hold where ``given`` names none.

    Raises:
        TypeError: it is no such thing, or a rate is no number.
        ValueError: it names an unknown rate, lacks input or output, or a rate is negative, not finite or too large.
    """
    named = _named(given, who)
    known = {*TOKEN_RATES, *FEES}
    if strange := [name for name in named if name not in known]:
        raise ValueError(f"{who}: unknown {_shown(strange[0])}; it may have {', '.join((*TOKEN_RATES, *FEES))}")
    rates = {name: amount(value, f"{who}: {name}") for name, value in named.items()}
    if missing := [name for name in ("input", "output") if name not in rates]:
        raise ValueError(f"{who}: {missing[0]} is missing")
    return completed(rates, inherit)


def completed(rates: dict[str, Fraction], inherit: Mapping[str, Fraction] | None = None) -> dict[str, Fraction]:
    """Return the rates with those that are not given, by the rule of this module."""
    from fractions import Fraction

    whole = dict(rates)
    whole.setdefault("output", Fraction(0))
    whole.setdefault("cache_read", whole["input"])
    whole.setdefault("cache_write", whole["input"] * Fraction(5, 4))
    whole.setdefault("cache_write_1h", whole["cache_write"] * Fraction(8, 5))
    whole.setdefault("audio_input", whole["input"])
    whole.setdefault("audio_output", whole["output"])
    whole.setdefault("reasoning", whole["output"])
    whole.setdefault("image_cache_read", whole["image_input" if "image_input" in whole else "cache_read"])
    whole.setdefault("image_input", whole["input"])
    whole.setdefault("image_output", whole["output"])
    whole.setdefault("web_search", inherit["web_search"] if inherit else Fraction(WEB_SEARCH_USD))
    whole.setdefault("request", inherit["request"] if inherit else Fraction(0))
    return whole


def times(rates: Mapping[str, Fraction], factor: Fraction) -> dict[str, Fraction]:
    """Return the sheet with all token rates multiplied; fees stay."""
    return {name: rate * factor if name in TOKEN_RATES else rate for name, rate in rates.items()}


def is_nothing(rates: Mapping[str, Fraction]) -> bool:
    """Tell whether tokens cost nothing by this sheet: a price by accident, which nobody should believe."""
    return not (rates["input"] or rates["output"])


def amount(value: Any, who: str) -> Fraction:
    """Return the exact value of an int, str, Decimal or float (that of its repr).

    Raises:
        TypeError: it is a bool or none of these.
        ValueError: it is negative, not finite, too large, of more than 30 decimals, or no number.
    """
    from decimal import Decimal, InvalidOperation
    from fractions import Fraction

    if isinstance(value, bool) or not isinstance(value, (int, str, float, Decimal)):
        raise TypeError(f"{who} must be int, str, Decimal or float, not {shown_type(value)}")
    if isinstance(value, int):
        if not 0 <= value <= MAX_RATE:
            raise ValueError(f"{who} must be from 0 to {MAX_RATE}")
        return Fraction(int(value))
    try:
        number = Decimal(float.__repr__(value) if isinstance(value, float) else value)
    except InvalidOperation:
        raise ValueError(f"{who} must be a number, got {_shown(value)}") from None
    if not number.is_finite() or number < 0 or number > MAX_RATE:
        raise ValueError(f"{who} must be from 0 to {MAX_RATE}, got {_shown(value)}")
    exponent = number.as_tuple().exponent
    if int(exponent) < -MAX_DECIMALS:
        raise ValueError(f"{who} must have at most {MAX_DECIMALS} decimals, got {_shown(value)}")
    return Fraction(number)


def _named(given: Any, who: str) -> dict[str, Any]:
    from collections.abc import Mapping

    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, (tuple, list)):
        if not 2 <= len(given) <= len(_TUPLE):
            raise ValueError(f"{who} must be (input, output), and may go on with cache_read and cache_write")
        return dict(zip(_TUPLE, given, strict=False))
    raise TypeError(f"{who} must be a tuple or a dict, not {shown_type(given)}")


def _shown(value: object) -> str:
    return repr(value)[:_SHOWN_CHARACTERS]
