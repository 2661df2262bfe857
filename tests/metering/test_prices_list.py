"""The list of genai-prices, played by a small one: what is read of it, when, and what is not believed."""

from __future__ import annotations

import datetime as dt
import sys
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from token_budget.metering import _catalogue
from token_budget.metering._prices import Prices
from token_budget.metering._refusals import UnknownModel
from token_budget.metering._usage import Usage

MILLION = 1_000_000
IN = Usage(input_tokens=MILLION)
OUT = Usage(output_tokens=MILLION)
DAY = 86_400.0
NOW = dt.datetime(2026, 6, 15, 12, tzinfo=dt.timezone.utc)


def sheet(**prices: Any) -> SimpleNamespace:
    """Return what genai-prices calls a ModelPrice."""
    return SimpleNamespace(
        **{key: Decimal(value) if isinstance(value, (int, str)) else value for key, value in prices.items()}
    )


def tiered(base: str, **tiers: str) -> SimpleNamespace:
    steps = [SimpleNamespace(start=int(start[1:]), price=Decimal(price)) for start, price in tiers.items()]
    return SimpleNamespace(base=Decimal(base), tiers=steps)


@dataclass
class FromDay:
    start_date: dt.date

    def active(self, at: dt.datetime) -> bool:
        return at.date() >= self.start_date


@dataclass
class Daily:
    start: dt.time
    end: dt.time

    def active(self, at: dt.datetime) -> bool:
        return self.start <= at.time() < self.end


@dataclass
class Model:
    id: str
    prices: Any
    price_variants: Any = None

    def get_prices(self, at: dt.datetime, context: Any = None) -> Any:
        assert at.tzinfo is not None, "a moment that is handed to the list is a moment everywhere"
        found = self.prices
        if isinstance(found, list):
            found = [each.prices for each in found if each.constraint is None or each.constraint.active(at)][-1]
        merged = dict(vars(found))
        for variant in self.price_variants or ():
            active = variant.constraint is None or variant.constraint.active(at)
            if context and active and all(context.get(key) == value for key, value in variant.when.items()):
                merged.update(vars(variant.prices))
        return SimpleNamespace(**merged)


def when(prices: Any, constraint: Any = None, **context: str) -> Any:
    return SimpleNamespace(prices=prices, constraint=constraint, when=context)


@dataclass
class Seller:
    id: str
    models: list[Model]
    model_match: Any = None
    asked: list[str] = field(default_factory=list)

    def find_model(self, name: str, *, all_providers: Any) -> Model | None:
        assert self in all_providers
        self.asked.append(name)
        return next((model for model in self.models if model.id == name), None)


class Starts:
    def __init__(self, start: str) -> None:
        self.start = start

    def is_match(self, name: str) -> bool:
        return name.startswith(self.start)


class Clock:
    def __init__(self) -> None:
        self.now = NOW.timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def market(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """Put a list in genai-prices' place; `sell` adds a model to it."""
    sellers: list[Seller] = [Seller("openai", [], Starts("gpt")), Seller("groq", []), Seller("odd", [], None)]
    module: Any = ModuleType("genai_prices.data_snapshot")
    module.__file__ = str(tmp_path / "data_snapshot.py")
    Path(module.__file__).touch()
    found = SimpleNamespace(providers=sellers, from_auto_update=False, timestamp=dt.datetime(2026, 7, 1, 5))  # noqa: DTZ001
    module.get_snapshot = lambda: found
    module.find_provider_by_id = lambda all_sellers, name: next((each for each in all_sellers if each.id == name), None)
    package: Any = ModuleType("genai_prices")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "genai_prices", package)
    monkeypatch.setitem(sys.modules, "genai_prices.data_snapshot", module)

    def sell(name: str, prices: Any, *variants: Any, seller: str = "openai") -> None:
        where = next(each for each in sellers if each.id == seller)
        where.models.append(Model(name, prices, list(variants) or None))

    return SimpleNamespace(sell=sell, snapshot=found, module=module, sellers=sellers)


def price(model: str, usage: Usage = IN, **arguments: Any) -> Decimal:
    return Prices().cost(model, usage, **arguments)


# ---------------------------------------------------------------- what is read


def test_the_list_prices_what_no_line_does(market: Any) -> None:
    market.sell("gpt-a", sheet(input_mtok=2, output_mtok=8, cache_read_mtok=1, cache_write_mtok=3))
    prices = Prices({"gpt-b": (5, 5)})
    assert (
        prices.cost("GPT-a", IN) == prices.cost("openai/gpt-a", IN) == prices.cost("gpt-a", IN, provider="OpenAI") == 2
    )
    assert prices.cost("gpt-a", OUT) == 8
    assert prices.cost("gpt-a", Usage(input_tokens=MILLION, cache_read_input_tokens=MILLION)) == 1
    assert prices.cost("gpt-a", Usage(input_tokens=MILLION, cache_creation_input_tokens=MILLION)) == 3
    assert prices.cost("gpt-b", IN) == 5
    assert prices.knows("gpt-a")
    assert prices.knows("gpt-a", "openai")


def test_a_line_of_the_table_comes_before_the_list(market: Any) -> None:
    market.sell("gpt-a", sheet(input_mtok=2, output_mtok=8))
    prices = Prices({"gpt-a": (1, 1)})
    assert prices.quote("gpt-a", MILLION) == prices.quote("openai/gpt-a", MILLION) == 1
    assert Prices({"gpt-*": (1, 1)}).quote("gpt-a", MILLION) == 1
    assert Prices(aliases={"mine": "gpt-a"}).quote("mine", MILLION) == 2


def test_the_list_is_not_asked_for_what_a_line_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> Any:
        raise AssertionError("imported")

    monkeypatch.setattr("token_budget.metering._prices.load", never)
    prices = Prices({"m*": (1, 1), "f": "free"})
    assert prices.quote("m", 1) > prices.quote("f", 1) == 0
    assert prices.knows("m")
    with pytest.raises(UnknownModel, match="fine-tuned"):
        prices.quote("ft:x", 1)
    with pytest.raises(AssertionError, match="imported"):
        prices.quote("x", 1)


def test_the_list_is_read_once(market: Any) -> None:
    market.sell("gpt-a", sheet(input_mtok=2, output_mtok=8))
    prices = Prices()
    for _ in range(3):
        assert prices.quote("gpt-a", MILLION) == 2
        assert not prices.knows("gpt-b")
        with pytest.raises(UnknownModel):
            prices.quote("gpt-b", 1)
    asked = market.sellers[0].asked
    assert asked.count("gpt-a") == 1
    assert asked.count("gpt-b") == 2, "once to know it, once to price it"


def test_who_serves_it_is_asked_first_and_then_whoever_has_that_name(market: Any) -> None:
    market.sell("gpt-a", sheet(input_mtok=2, output_mtok=8))
    market.sell("gpt-a", sheet(input_mtok=1, output_mtok=1), seller="groq")
    prices = Prices()
    assert prices.quote("gpt-a", MILLION, provider="groq") == 1
    assert prices.quote("groq/gpt-a", MILLION) == 1
    assert prices.quote("gpt-a", MILLION) == prices.quote("gpt-a", MILLION, provider="nobody") == 2
    assert prices.quote("openai/gpt-a", MILLION, provider="odd") == 2
    assert not prices.knows("llama")


def test_steps_are_read_of_all_prices_together(market: Any) -> None:
    market.sell(
        "gpt-a",
        sheet(input_mtok=tiered("1", _100="2", _1000="4"), output_mtok=tiered("8", _1000="16"), cache_read_mtok="0.5"),
    )
    for tokens, rate, out in ((100, 1, 8), (101, 2, 8), (1000, 2, 8), (1001, 4, 16)):
        usage = Usage(input_tokens=tokens, output_tokens=MILLION)
        assert price("gpt-a", usage) == Decimal(tokens * rate) / MILLION + out
    usage = Usage(input_tokens=MILLION, cache_read_input_tokens=MILLION)
    assert price("gpt-a", usage) == Decimal("0.5")


def test_tokens_that_usage_does_not_tell_apart_cost_the_dearest(market: Any) -> None:
    market.sell(
        "gpt-a", sheet(input_image_mtok=10, input_mtok=5, output_mtok=3, output_image_mtok=40, output_text_mtok=7)
    )
    assert price("gpt-a", IN) == 10
    assert price("gpt-a", OUT) == 40


def test_audio_reasoning_searches_and_requests_are_read(market: Any) -> None:
    market.sell(
        "gpt-a",
        sheet(
            input_mtok=1,
            output_mtok=2,
            input_audio_mtok=10,
            cache_audio_read_mtok="0.5",
            output_audio_mtok=20,
            output_reasoning_mtok=3,
            web_searches_kcount=25,
            requests_kcount=12,
            storage_searches_kcount="2.5",
            cache_write_mtok=None,
            _hidden=5,
        ),
    )
    fee = Decimal("0.012")
    assert price("gpt-a", Usage()) == fee
    assert price("gpt-a", Usage(web_search_requests=2)) == fee + Decimal("0.05")
    assert price("gpt-a", Usage(input_tokens=MILLION, audio_input_tokens=MILLION)) == 10 + fee
    assert price("gpt-a", Usage(output_tokens=MILLION, audio_output_tokens=MILLION)) == 20 + fee
    assert price("gpt-a", Usage(output_tokens=MILLION, reasoning_output_tokens=MILLION)) == 3 + fee
    assert price("gpt-a", Usage(input_tokens=MILLION, cache_creation_input_tokens=MILLION)) == Decimal("1.25") + fee


@pytest.mark.parametrize(
    ("prices", "words"),
    [
        (sheet(), "no price for input"),
        (sheet(output_mtok=1), "no price for input"),
        (sheet(input_mtok=0, output_mtok=0), "is 0"),
        (sheet(input_mtok=0), "is 0"),
        (sheet(input_mtok=tiered("1", _100="0"), output_mtok=tiered("1", _100="0")), "is 0"),
        (sheet(input_mtok=1, output_mtok=1, audio_hours=1), r"usage does not tell \(audio_hours\)"),
        (sheet(input_mtok=1, something_new=1), r"usage does not tell \(something_new\)"),
    ],
)
def test_a_price_by_accident_is_not_believed(market: Any, prices: Any, words: str) -> None:
    market.sell("gpt-a", prices)
    with pytest.raises(UnknownModel, match=f"'gpt-a', but .*{words}.*: give it a line"):
        price("gpt-a")
    assert not Prices().knows("gpt-a")
    assert Prices(fallback=(9, 9)).quote("gpt-a", MILLION) == 9


def test_a_price_that_is_not_believed_is_looked_for_elsewhere(market: Any) -> None:
    market.sell("gpt-a", sheet(), seller="groq")
    market.sell("gpt-a", sheet(input_mtok=2))
    assert price("gpt-a", provider="groq") == 2
    assert price("gpt-a", OUT, provider="groq") == 0


def test_a_fine_tuned_model_is_not_priced_by_the_list(market: Any) -> None:
    market.sell("ft:gpt-a", sheet(input_mtok=2, output_mtok=8))
    with pytest.raises(UnknownModel, match="no list has the prices of fine-tuned"):
        price("ft:gpt-a", provider="openai")


# ---------------------------------------------------------------- tiers


def test_tiers_of_the_list_come_before_the_usual_factors(market: Any) -> None:
    market.sell(
        "gpt-a",
        sheet(input_mtok=10, output_mtok=10, web_searches_kcount=1000),
        when(sheet(input_mtok=25, output_mtok=25), service_tier="priority"),
        when(sheet(input_mtok=30), speed="fast"),
        when(sheet(input_mtok=4, output_mtok=4), processing="batch"),
        when(sheet(input_mtok=1), service_tier="default"),
        when(sheet(input_mtok=1), route="elsewhere"),
        when(sheet(input_mtok=99), service_tier="double", route="elsewhere"),
    )
    found = {
        tier: price("gpt-a", service_tier=tier)
        for tier in ("default", "priority", "fast", "batch", "flex", "auto", "elsewhere")
    }
    assert found == {"default": 10, "priority": 25, "fast": 30, "batch": 4, "flex": 5, "auto": 10, "elsewhere": 30}
    assert price("gpt-a", OUT, service_tier="?") == 25
    assert price("gpt-a", service_tier="double") == 30, "it is known at one route alone, so here it is not"
    assert price("gpt-a", Usage(web_search_requests=1), service_tier="fast") == 1


def test_a_tier_whose_price_is_not_believed_has_the_usual_factor(market: Any) -> None:
    market.sell("gpt-a", sheet(input_mtok=10), when(sheet(input_mtok=0), service_tier="flex"))
    assert price("gpt-a", service_tier="flex") == 5


def test_flex_is_no_cheaper_at_who_does_not_say_so(market: Any) -> None:
    market.sell("gpt-a", sheet(input_mtok=10), seller="groq")
    assert price("gpt-a", provider="groq", service_tier="flex") == 10
    assert price("gpt-a", provider="groq", service_tier="priority") == 20


def test_a_tier_may_begin_on_a_day(market: Any, clock: Clock) -> None:
    tomorrow = FromDay(NOW.date() + dt.timedelta(days=1))
    market.sell("gpt-a", sheet(input_mtok=10), when(sheet(input_mtok=30), tomorrow, service_tier="priority"))
    prices = Prices(clock=clock)
    assert prices.cost("gpt-a", IN, service_tier="priority") == 20
    clock.now += DAY
    assert prices.cost("gpt-a", IN, service_tier="priority") == 30


# ---------------------------------------------------------------- dates and times of day


def changing(*prices: Any) -> list[Any]:
    return list(prices)


def test_a_price_changes_on_its_day_without_a_new_start(market: Any, clock: Clock) -> None:
    day = NOW.date() + dt.timedelta(days=1)
    market.sell("gpt-a", changing(when(sheet(input_mtok=1)), when(sheet(input_mtok=3), FromDay(day))))
    prices = Prices(clock=clock)
    assert prices.nanos("gpt-a", IN) == 10**9
    clock.now = dt.datetime(2026, 6, 15, 23, 59, 59, 999_000, tzinfo=dt.timezone.utc).timestamp()
    assert prices.nanos("gpt-a", IN) == 10**9
    clock.now = dt.datetime(2026, 6, 16, tzinfo=dt.timezone.utc).timestamp()
    assert prices.nanos("gpt-a", IN) == 3 * 10**9
    clock.now -= DAY
    assert prices.nanos("gpt-a", IN) == 10**9, "a clock that steps back"


def test_a_price_of_the_day_follows_the_clock(market: Any, clock: Clock) -> None:
    night = Daily(dt.time(16, 30), dt.time(23))
    market.sell("gpt-a", changing(when(sheet(input_mtok=4)), when(sheet(input_mtok=1), night)))
    prices = Prices(clock=clock)
    found = []
    for hour, minute in ((12, 0), (16, 29), (16, 30), (22, 59), (23, 0)):
        clock.now = NOW.replace(hour=hour, minute=minute).timestamp()
        found.append(prices.nanos("gpt-a", IN) // 10**9)
    assert found == [4, 4, 1, 1, 4]


def test_prices_that_change_are_read_once_a_minute(market: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    market.sell(
        "gpt-a", changing(when(sheet(input_mtok=4)), when(sheet(input_mtok=1), Daily(dt.time(16), dt.time(23))))
    )
    read: list[dt.datetime] = []
    original = Model.get_prices

    def reading(model: Model, at: dt.datetime, context: Any = None) -> Any:
        read.append(at)
        return original(model, at, context)

    monkeypatch.setattr(Model, "get_prices", reading)
    prices = Prices(clock=clock)
    prices.nanos("gpt-a", IN)
    before = len(read)
    for _ in range(50):
        clock.now += 1
        prices.nanos("gpt-a", IN)
    assert len(read) == before
    clock.now += 10
    prices.nanos("gpt-a", IN)
    assert len(read) == before + 1


def test_prices_whose_days_are_past_are_not_read_again(
    market: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    market.sell("gpt-a", changing(when(sheet(input_mtok=4)), when(sheet(input_mtok=1), FromDay(dt.date(2026, 6, 15)))))
    prices = Prices(clock=clock)
    assert prices.nanos("gpt-a", IN) == 10**9
    monkeypatch.setattr(Model, "get_prices", lambda *_: pytest.fail("read again"))
    clock.now += 100 * DAY
    assert prices.nanos("gpt-a", IN) == 10**9


def test_a_moment_may_be_asked_for(market: Any, clock: Clock) -> None:
    market.sell("gpt-a", changing(when(sheet(input_mtok=4)), when(sheet(input_mtok=1), FromDay(dt.date(2026, 6, 1)))))
    prices = Prices(clock=clock)
    assert prices.cost("gpt-a", IN) == 1
    assert prices.cost("gpt-a", IN, at=dt.datetime(2026, 5, 31, 23, 59)) == 4  # noqa: DTZ001  # in UTC
    east = dt.timezone(dt.timedelta(hours=2))
    assert prices.quote("gpt-a", MILLION, at=dt.datetime(2026, 6, 1, 1, 59, tzinfo=dt.timezone.utc)) == 1
    assert prices.quote("gpt-a", MILLION, at=NOW, service_tier="priority") == 2
    assert prices.quote("gpt-a", MILLION, at=dt.datetime(2026, 6, 1, 12, tzinfo=east)) == 1
    with pytest.raises(UnknownModel):
        prices.quote("gpt-b", 1, at=NOW)


def test_a_price_that_ends_is_refused_from_then_on(market: Any, clock: Clock) -> None:
    later = FromDay(NOW.date() + dt.timedelta(days=1))
    market.sell("gpt-a", changing(when(sheet(input_mtok=4)), when(sheet(input_mtok=0), later)))
    market.sell("gpt-b", changing(when(sheet(input_mtok=0)), when(sheet(input_mtok=4), later)))
    prices = Prices(clock=clock)
    assert prices.nanos("gpt-a", IN) == 4 * 10**9
    with pytest.raises(UnknownModel):
        prices.nanos("gpt-b", IN)
    clock.now += DAY
    with pytest.raises(UnknownModel, match="is 0"):
        prices.nanos("gpt-a", IN)


# ---------------------------------------------------------------- whether it is there, and its date


@pytest.mark.parametrize("missing", ["genai_prices", "genai_prices.data_snapshot"])
def test_without_the_package_the_refusal_says_how_to_get_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "genai_prices":
        monkeypatch.delitem(sys.modules, "genai_prices.data_snapshot", raising=False)
    else:
        package: Any = ModuleType("genai_prices")
        package.__path__ = []
        monkeypatch.setitem(sys.modules, "genai_prices", package)
    monkeypatch.setitem(sys.modules, missing, None)
    prices = Prices({"m": (1, 1)})
    assert prices.quote("m", MILLION) == 1
    with pytest.raises(UnknownModel, match=r"pip install 'token-budget-pool\[prices\]'.* brings a list of prices$"):
        prices.quote("gpt-a", 1)
    assert not prices.knows("gpt-a")
    assert prices.data_date is None
    assert Prices(fallback=(2, 2)).quote("gpt-a", MILLION) == 2


def test_a_package_that_cannot_be_imported_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError(f"cannot import a part of {name}", name="pydantic")

    monkeypatch.setattr(_catalogue, "import_module", broken)
    with pytest.raises(UnknownModel, match=r"list of prices: cannot import a part of genai_prices"):
        Prices().quote("gpt-a", 1)


def test_an_old_python_is_told_which_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "genai_prices.data_snapshot", raising=False)  # of an earlier test
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    assert "(on Python 3.11 or newer)" in str(_catalogue.load())
    monkeypatch.setattr(sys, "version_info", (3, 11, 0))
    assert "newer" not in str(_catalogue.load())


def test_the_date_of_the_list_is_the_latest_day_from_which_one_of_its_prices_holds(market: Any, tmp_path: Path) -> None:
    import os

    file = Path(market.module.__file__)
    os.utime(file, (NOW.timestamp(), NOW.timestamp()))
    assert Prices().data_date is None
    days = [dt.date(2026, 5, 1), dt.date(2026, 6, 15), dt.date(2026, 6, 16), dt.date(2027, 1, 1)]
    prices = [when(sheet(input_mtok=1)), *(when(sheet(input_mtok=1), FromDay(day)) for day in days[:1])]
    market.sell("gpt-a", prices)
    market.sell(
        "gpt-b", sheet(input_mtok=1), *(when(sheet(input_mtok=2), FromDay(day), processing="batch") for day in days)
    )
    market.sell("gpt-c", [when(sheet(input_mtok=1), Daily(dt.time(1), dt.time(2)))])
    assert Prices().data_date == dt.date(2026, 6, 15), "what begins after it was installed was only announced"
    file.unlink()
    assert Prices().data_date is None, "a bundle has no files"
    assert tmp_path.exists()


def test_a_list_that_was_brought_up_to_date_has_that_date(market: Any) -> None:
    market.snapshot.from_auto_update = True
    assert Prices().data_date == dt.date(2026, 7, 1)
