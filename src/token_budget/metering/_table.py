"""Lines of a price table: the rates of one model in all its service tiers, and how a user writes them.

What always holds:

* A step begins above its number of input tokens and prices the whole call.
* A tier of which nothing is known is priced at the dearest one that is known.
* What is served in the US alone, as Anthropic says it (``fast@us``), costs 1.1 times what its tier does.
* Priority costs twice the standard and flex half of it, where neither the line nor the list says otherwise. Flex is
  half the price only at the providers that say so; elsewhere it costs what the standard does, as a batch does.
"""

from __future__ import annotations

from token_budget._money import shown_type
from token_budget.metering._answers import IN_THE_US
from token_budget.metering._rates import Dearest, Free, Rates, amount, is_nothing, sheet, times

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Mapping
    from fractions import Fraction
    from typing import Any

FREE = "free"
STANDARD = "standard"
UNKNOWN_TIER = "?"
_STANDARDS = {"", "auto", "default", "on_demand", "standard", "standard_only"}
_FLEX_IS_HALF = {None, "aws", "azure", "google", "openai"}  # Groq's costs the same as its standard
_LONGEST_TIER = 64
_LARGEST_STEP = 10**12


def tier_name(tier: object) -> str:
    """Return the tier as lines know it: ``standard``, a name in lower case, or ``?`` for what can be no name."""
    if tier is None:
        return STANDARD
    if not isinstance(tier, str) or len(tier) > _LONGEST_TIER:
        return UNKNOWN_TIER
    name, sign, place = tier.strip().lower().partition("@")
    return (STANDARD if name in _STANDARDS else name) + sign + place


class Sheets:
    """The rates of one model in one tier: those of short calls, and those of each step, the highest first."""

    __slots__ = ("base", "steps")

    def __init__(self, base: Mapping[str, Fraction], steps: Mapping[int, Mapping[str, Fraction]]) -> None:
        self.base = base
        self.steps = sorted(steps.items(), reverse=True)

    def times(self, factor: Fraction) -> Sheets:
        """Return the same with all token rates multiplied."""
        return Sheets(times(self.base, factor), {start: times(step, factor) for start, step in self.steps})

    def rates(self) -> Rates:
        """Return them as integers."""
        return Rates(self.base, tuple((start, Rates(step)) for start, step in self.steps))

    def is_nothing(self) -> bool:
        """Tell whether the tokens of some call cost nothing by them."""
        return any(is_nothing(each) for each in (self.base, *(step for _, step in self.steps)))


class Line:
    """The rates of one model: the standard ones, and those of the tiers that have their own."""

    __slots__ = ("standard", "tiers")

    def __init__(self, standard: Sheets, tiers: Mapping[str, Sheets]) -> None:
        self.standard = standard
        self.tiers = tiers

    def priced(self, tier: str, provider: str | None) -> Rates | Dearest:
        """Return the rates of a tier (as `tier_name` gives it) at a provider."""
        if tier == STANDARD:
            return self.standard.rates()
        if tier in self.tiers:
            return self.tiers[tier].rates()
        if tier.endswith(IN_THE_US):
            return self._in_the_us().priced(tier.removesuffix(IN_THE_US), provider)
        factors = _factors(provider)
        if tier in factors:
            return self.standard.times(factors[tier]).rates()
        known = [self.standard, *self.tiers.values()]
        known += [self.standard.times(factor) for name, factor in factors.items() if name not in self.tiers]
        return Dearest(tuple(each.rates() for each in known))

    def _in_the_us(self) -> Line:
        from fractions import Fraction

        more = Fraction(11, 10)
        return Line(self.standard.times(more), {name: sheets.times(more) for name, sheets in self.tiers.items()})


def _factors(provider: str | None) -> dict[str, Fraction]:
    from fractions import Fraction

    flex = Fraction(1, 2) if provider in _FLEX_IS_HALF else Fraction(1)
    return {"priority": Fraction(2), "flex": flex, "batch": Fraction(1)}


# ---------------------------------------------------------------- what a user writes


def line(given: Any, who: str) -> Line | Free:
    """Return the line that a user writes: ``"free"``, a tuple, or a dict that may have ``steps`` and ``tiers``.

    Raises:
        TypeError: it is none of these, or one of its values is no number.
        ValueError: a rate is refused (see `sheet`), tokens would cost nothing, or a step or tier is none.
    """
    from collections.abc import Mapping

    if isinstance(given, str):
        if given.strip().lower() != FREE:
            raise ValueError(f'{who} must be a tuple, a dict or "free"')
        return Free()
    tiers: Mapping[Any, Any] = {}
    if isinstance(given, Mapping):
        given = dict(given)
        tiers = _mapping(given.pop("tiers", {}), f"{who}: tiers")
    standard = _sheets(given, who)
    found = {}
    for name, value in tiers.items():
        tier = tier_name(name)
        if tier in {STANDARD, UNKNOWN_TIER}:
            raise ValueError(
                f"{who}: tiers has the key {name!r:.60}, which is no name of a tier beside the standard one"
            )
        found[tier] = _tier(value, standard, f"{who}: tier {tier}")
    return Line(standard, found)


def _tier(given: Any, standard: Sheets, who: str) -> Sheets:
    """Return the rates of a tier: a factor of the standard ones, or rates of its own."""
    from collections.abc import Mapping

    if isinstance(given, (Mapping, tuple, list)):
        return _sheets(given, who, standard.base)
    factor = amount(given, who)
    if not factor:
        raise ValueError(f"{who} must be above 0")
    return standard.times(factor)


def _sheets(given: Any, who: str, inherit: Mapping[str, Fraction] | None = None) -> Sheets:
    from collections.abc import Mapping

    steps: Mapping[Any, Any] = {}
    if isinstance(given, Mapping):
        given = dict(given)
        steps = _mapping(given.pop("steps", {}), f"{who}: steps")
    base = sheet(given, who, inherit=inherit)
    starts = {_start(key, who): value for key, value in steps.items()}
    if len(starts) < len(steps):
        raise ValueError(f"{who}: one step is given twice")
    sheets = Sheets(
        base, {start: sheet(value, f"{who}: step {start}", inherit=base) for start, value in starts.items()}
    )
    if sheets.is_nothing():
        raise ValueError(f'{who}: rates of 0 are refused; write "free" for a model that costs nothing')
    return sheets


def _start(key: Any, who: str) -> int:
    """Return the number of input tokens above which a step begins; JSON and TOML write it as text."""
    if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= _LONGEST_TIER:
        key = int(key)
    if isinstance(key, bool) or not isinstance(key, int):
        raise TypeError(f"{who}: a step begins at a whole number of input tokens, not {shown_type(key)}")
    if not 0 < key <= _LARGEST_STEP:
        raise ValueError(f"{who}: a step begins above 1 to 10**12 input tokens")
    return int(key)


def _mapping(given: Any, who: str) -> Mapping[Any, Any]:
    from collections.abc import Mapping

    if not isinstance(given, Mapping):
        raise TypeError(f"{who} must be a dict, not {shown_type(given)}")
    return given
