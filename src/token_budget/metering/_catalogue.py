"""The list of prices that genai-prices ships, read into rates of ours.

What always holds:

* genai-prices is imported when a price is asked for that no table knows, and never before.
* Prices of zero are not believed, and a model that is billed by what `Usage` does not count (minutes, characters,
  pages) has no price here.
* Tokens that `Usage` does not tell apart (those of images and video) cost what the dearest of them costs.
* Nothing of genai-prices' own arithmetic and caches is used: its caches keep every name that was ever asked for.
"""

from __future__ import annotations

import sys
from importlib import import_module

from token_budget.metering._rates import Timed, Unpriced, completed
from token_budget.metering._table import Line, Sheets, tier_name

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    import datetime  # noqa: ICN001  # as at run time, where `_lazy` gives the name its meaning
    from collections.abc import Callable, Iterator, Mapping
    from decimal import Decimal
    from fractions import Fraction
    from typing import Any

    from token_budget.metering._rates import Priced
else:
    from token_budget._lazy import datetime

# Our rates, and the prices of the list of which the dearest is taken.
_RATES = {
    "input": ("input_mtok", "input_text_mtok", "input_image_mtok", "input_video_mtok", "input_tool_mtok"),
    "output": ("output_mtok", "output_text_mtok", "output_image_mtok", "output_video_mtok", "output_citation_mtok"),
    "cache_read": ("cache_read_mtok", "cache_text_read_mtok", "cache_image_read_mtok", "cache_video_read_mtok"),
    "cache_write": ("cache_write_mtok", "cache_write_5m_mtok", "cache_text_write_mtok", "cache_image_write_mtok"),
    "cache_write_1h": ("cache_write_1h_mtok",),
    "audio_input": ("input_audio_mtok", "cache_audio_read_mtok"),
    "audio_output": ("output_audio_mtok",),
    "reasoning": ("output_reasoning_mtok",),
    "web_search": ("web_searches_kcount",),
    "request": ("requests_kcount",),
}
_OURS = {key: rate for rate, keys in _RATES.items() for key in keys}
_THOUSANDS = ("web_search", "request")  # the list says USD for a thousand of them
_UNCOUNTED = {"storage_searches_kcount", "social_searches_kcount", "code_executions_kcount"}  # of tools, by the way
_TIER_KEYS = ("service_tier", "speed", "processing")  # what the list knows as a tier; "batch" is a kind of processing
_SECONDS = 60  # how long a price holds that changes with the date or the time of day; its changes fall on full minutes


def load() -> Catalogue | str:
    """Import genai-prices and return its list, or why there is none. Takes up to a second the first time."""
    try:
        return Catalogue(import_module("genai_prices.data_snapshot"))
    except ImportError as error:
        newer = "" if sys.version_info >= (3, 11) else " (on Python 3.11 or newer)"
        detail = "" if error.name in {"genai_prices", "genai_prices.data_snapshot"} else f": {error}"
        return f"pip install 'token-budget-pool[prices]'{newer} brings a list of prices{detail}"


class Catalogue:
    """The list, as genai-prices has it at this moment."""

    __slots__ = ("_module", "_snapshot")

    def __init__(self, module: Any) -> None:
        self._module = module
        self._snapshot = module.get_snapshot()

    def find(self, provider: str | None, name: str) -> tuple[str, Any] | None:
        """Return the model of that (plain) name at a provider, or at whichever has it, and who that is."""
        providers = self._snapshot.providers
        if provider is not None:
            where = self._module.find_provider_by_id(providers, provider)
        else:
            where = next((each for each in providers if each.model_match and each.model_match.is_match(name)), None)
        if where is None:
            return None
        model = where.find_model(name, all_providers=providers)
        return None if model is None else (where.id, model)

    def priced(self, model: Any, tier: str, provider: str, clock: Callable[[], float]) -> Priced:
        """Return the rates of a model in a tier (as `tier_name` gives it), which follow the clock if they change."""

        def read(now: float) -> tuple[float, Priced]:
            return (now // _SECONDS + 1) * _SECONDS, self.priced_at(model, tier, provider, _moment(now))

        now = clock()
        found = self.priced_at(model, tier, provider, _moment(now))
        changes = any(_may_change(constraint, _moment(now)) for constraint in _constraints(model))
        return Timed(read, clock) if changes and not isinstance(found, Unpriced) else found

    def priced_at(self, model: Any, tier: str, provider: str, at: datetime.datetime) -> Priced:
        """Return the rates that hold at a moment."""
        standard = _sheets(model.get_prices(at))
        if isinstance(standard, str):
            return Unpriced(f"the list of prices has model {model.id!r:.120}, but {standard}")
        tiers = {}
        for name in _tiers(model, at):
            found = _sheets(model.get_prices(at, dict.fromkeys(_TIER_KEYS, name)))
            if isinstance(found, Sheets):
                tiers[tier_name(name)] = found
        return Line(standard, tiers).priced(tier, provider)

    def date(self) -> datetime.date | None:
        """Return a day that the list is not older than; None if it does not tell."""
        from pathlib import Path

        if self._snapshot.from_auto_update:
            day: datetime.date = self._snapshot.timestamp.date()
            return day
        try:
            installed = _moment(Path(self._module.__file__).stat().st_mtime).date()
        except OSError:  # in a bundle there are no files
            return None
        models = (model for provider in self._snapshot.providers for model in provider.models)
        starts = (getattr(constraint, "start_date", None) for model in models for constraint in _constraints(model))
        return max((start for start in starts if start is not None and start <= installed), default=None)


def _moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)


def _constraints(model: Any) -> Iterator[Any]:
    """Return what the model's prices depend on: dates and times of day."""
    prices = model.prices if isinstance(model.prices, list) else []
    for each in (*prices, *(model.price_variants or ())):
        if each.constraint is not None:
            yield each.constraint


def _may_change(constraint: Any, now: datetime.datetime) -> bool:
    start = getattr(constraint, "start_date", None)
    return start is None or start > now.date()


def _tiers(model: Any, at: datetime.datetime) -> set[str]:
    """Return the tiers for which the model has prices of their own at that moment."""
    return {
        value
        for variant in model.price_variants or ()
        if variant.constraint is None or variant.constraint.active(at)
        for key, value in variant.when.items()
        if key in _TIER_KEYS and len(variant.when) == 1 and tier_name(value) == value
    }


def _sheets(prices: Any) -> Sheets | str:
    """Return the rates that the list's prices say, or why they say none that `Usage` can be priced by."""
    said = {key: value for key, value in vars(prices).items() if value is not None and not key.startswith("_")}
    if strange := sorted(key for key in said if key not in _OURS and key not in _UNCOUNTED):
        return f"it is billed by what usage does not tell ({strange[0]})"
    if not any(key in said for key in _RATES["input"]):
        return "it has no price for input"
    starts = {tier.start for value in said.values() for tier in getattr(value, "tiers", ())}
    sheets = Sheets(_sheet(said, 0), {start: _sheet(said, start + 1) for start in starts})
    return "its price there is 0" if sheets.is_nothing() else sheets


def _sheet(said: Mapping[str, Any], tokens: int) -> dict[str, Fraction]:
    """Return all rates for a call of that many input tokens."""
    from fractions import Fraction

    rates: dict[str, Fraction] = {}
    for key, value in said.items():
        if key in _OURS:
            name = _OURS[key]
            price = Fraction(_price(value, tokens)) / (1000 if name in _THOUSANDS else 1)
            rates[name] = max(price, rates.get(name, price))
    return completed(rates)


def _price(value: Any, tokens: int) -> Decimal:
    """Return the price of the highest tier that begins below so many tokens."""
    price: Decimal = getattr(value, "base", value)
    for tier in getattr(value, "tiers", ()):
        if tokens > tier.start:
            price = tier.price
    return price
