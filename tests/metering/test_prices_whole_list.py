"""The whole list of genai-prices against its own arithmetic. It runs where the package is installed."""

from __future__ import annotations

import datetime as dt
from decimal import ROUND_CEILING, Decimal, localcontext
from importlib import import_module
from typing import Any

import pytest

from support import run_program
from token_budget.metering._prices import Prices
from token_budget.metering._refusals import UnknownModel
from token_budget.metering._usage import Usage

genai_prices = pytest.importorskip("genai_prices")

NOW = dt.datetime(2026, 11, 27, 3, 30, tzinfo=dt.timezone.utc)
LATER = dt.datetime(2027, 1, 1, 7, tzinfo=dt.timezone.utc)

USAGES = [
    Usage(input_tokens=12_345, output_tokens=678),
    Usage(
        input_tokens=1_300_001,
        output_tokens=999,
        cache_read_input_tokens=100_001,
        cache_creation_input_tokens=777,
        cache_creation_1h_input_tokens=55,
        reasoning_output_tokens=101,
    ),
    Usage(input_tokens=1, audio_input_tokens=1, output_tokens=3, audio_output_tokens=2, web_search_requests=7),
]
UNTOLD = ("image", "video")  # tokens that our usage does not tell apart from text
UNCOUNTED = ("hours", "mchars", "pages", "pixels", "messages")


def whole_list() -> list[tuple[Any, Any]]:
    snapshots = import_module("genai_prices.data_snapshot")
    return [(seller, model) for seller in snapshots.get_snapshot().providers for model in seller.models]


def said(model: Any, at: dt.datetime) -> dict[str, Any]:
    return {key: value for key, value in vars(model.get_prices(at)).items() if value is not None}


def fitting(usage: Usage, prices: dict[str, Any]) -> Usage:
    """Return the usage without counts for which the list has no price: there we ask more than it does."""
    wanted = {
        "cache_creation_input_tokens": "cache_write_mtok",
        "cache_creation_1h_input_tokens": "cache_write_1h_mtok",
        "web_search_requests": "web_searches_kcount",
    }
    counts = {name: getattr(usage, name) for name in usage.__slots__}
    for name, key in wanted.items():
        counts[name] = counts[name] if key in prices else 0
    return Usage(**counts)


def theirs(model: str, seller: str, usage: Usage, at: dt.datetime, context: Any = None) -> Decimal | None:
    """Return what genai-prices says, rounded up to nanodollars; None if it does not know the model by its name."""
    counts = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_input_tokens,
        cache_write_tokens=usage.cache_creation_input_tokens,
        cache_write_1h_tokens=usage.cache_creation_1h_input_tokens,
        input_audio_tokens=usage.audio_input_tokens,
        output_audio_tokens=usage.audio_output_tokens,
        output_reasoning_tokens=usage.reasoning_output_tokens,
        web_searches=usage.web_search_requests,
    )
    try:
        found = genai_prices.calc_price(
            counts, model, provider_id=seller, genai_request_timestamp=at, price_context=context
        )
    except LookupError:
        return None
    with localcontext() as digits:
        digits.prec = 60
        exact: Decimal = found.total_price
        return exact.quantize(Decimal("1e-9"), ROUND_CEILING)


@pytest.mark.parametrize("at", [NOW, LATER], ids=["now", "later"])
def test_every_price_of_the_list_is_what_genai_prices_asks(at: dt.datetime) -> None:
    prices, equal, unknown, zero, dearer = Prices(), 0, 0, 0, 0
    for seller, model in whole_list():
        keys = said(model, at)
        for usage in (fitting(each, keys) for each in USAGES):
            expected = theirs(model.id, seller.id, usage, at)
            if expected is None:
                continue
            try:
                cost = prices.cost(model.id, usage, provider=seller.id, at=at)
            except UnknownModel:
                cost = None
            nothing = not any(
                getattr(value, "base", value) for key, value in keys.items() if "input" in key or "output" in key
            )
            if nothing or "input_mtok" not in keys:
                assert cost is None or cost > 0 or usage.input_tokens == 0, f"{model.id} is free by accident"
                zero += 1
            elif model.id.startswith("ft:") or any(word in key for key in keys for word in UNCOUNTED):
                assert cost is None, f"{seller.id} {model.id} is billed by what we do not count"
                unknown += 1
            elif any(word in key for key in keys for word in UNTOLD):
                assert cost is not None, model.id
                assert cost >= expected, model.id
                dearer += 1
            else:
                assert cost == expected, f"{seller.id} {model.id} {usage}"
                equal += 1
    assert equal > 5000, "the list, or the names in it, are not what this test takes them for"
    assert dearer < 150
    assert unknown < 50
    assert zero < 1000


def test_every_tier_of_the_list_is_what_genai_prices_asks() -> None:
    prices, equal = Prices(), 0
    for seller, model in whole_list():
        keys = said(model, NOW)
        if "input_mtok" not in keys or any(word in key for key in keys for word in (*UNTOLD, *UNCOUNTED)):
            continue
        variants = () if model.id.startswith("ft:") else model.price_variants or ()
        for variant in variants:
            active = variant.constraint is None or variant.constraint.active(NOW)
            ((key, tier), *_) = variant.when.items()
            if not active or key not in {"service_tier", "speed", "processing"}:
                continue
            for usage in (fitting(each, keys) for each in USAGES[:2]):
                expected = theirs(model.id, seller.id, usage, NOW, variant.when)
                if expected is None:
                    continue
                cost = prices.cost(model.id, usage, provider=seller.id, service_tier=tier, at=NOW)
                assert cost == expected, f"{seller.id} {model.id} {tier}"
                equal += 1
    assert equal > 200


@pytest.mark.parametrize(
    ("name", "provider", "twin", "twin_provider"),
    [
        ("openai/gpt-5", None, "gpt-5", "openai"),
        ("openai:gpt-5", None, "gpt-5", "openai"),
        ("azure/gpt-4o", None, "gpt-4o", "azure"),
        ("gpt-5-2025-08-07", "openai", "gpt-5", "openai"),
        ("gpt-4o", "nobody", "gpt-4o", "openai"),
        ("text-embedding-3-small", None, "text-embedding-3-small", "openai"),
        ("chatgpt-4o-latest", None, "chatgpt-4o-latest", "openai"),
        ("models/gemini-2.5-pro", "google", "gemini-2.5-pro", "google"),
        ("vertex_ai/gemini-2.5-pro", None, "gemini-2.5-pro", "google"),
        ("projects/p/locations/l/publishers/google/models/gemini-2.5-pro", None, "gemini-2.5-pro", "google"),
        ("groq/llama-3.3-70b-versatile", None, "llama-3.3-70b-versatile", "groq"),
        ("openrouter/openai/gpt-5", None, "openai/gpt-5", "openrouter"),
        ("claude-opus-4-1@20250805", None, "claude-opus-4-1", "anthropic"),
        (
            "arn:aws:bedrock:us-east-1:1:inference-profile/us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            "aws",
            "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            "aws",
        ),
        (
            "bedrock/converse/us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            None,
            "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            "aws",
        ),
    ],
)
def test_names_of_vendors_clouds_and_frameworks_are_found(
    name: str, provider: str | None, twin: str, twin_provider: str
) -> None:
    expected = theirs(twin, twin_provider, USAGES[0], NOW)
    assert expected
    assert Prices().cost(name, USAGES[0], provider=provider, at=NOW) == expected


@pytest.mark.parametrize(
    "name",
    [
        "whisper-1",
        "tts-1",
        "ft:gpt-4o-mini-2024-07-18:org::id",
        "ft:gpt-3.5-turbo-0125:org::id",
        "nobody-made-this",
        "azure/my-deployment",
        "arn:aws:bedrock:us-east-1:1:application-inference-profile/abc",
        "",
    ],
)
def test_what_has_no_price_there_is_refused(name: str) -> None:
    with pytest.raises(UnknownModel):
        Prices().quote(name, 1000)


def test_the_date_of_the_list_is_a_day_of_the_past() -> None:
    day = Prices().data_date
    assert day is not None
    assert dt.date(2026, 1, 1) < day <= dt.datetime.now(dt.timezone.utc).date()


def test_genai_prices_is_imported_at_the_first_unknown_model_and_its_caches_stay_empty() -> None:
    program = """
import sys
from token_budget.metering._prices import Prices
prices = Prices({"m": (1, 1)})
prices.quote("m", 1)
assert "genai_prices" not in sys.modules
prices.quote("gpt-5", 1)
from genai_prices.data_snapshot import get_snapshot
for number in range(50):
    assert not prices.knows(f"gpt-{number}-no"), number
snapshot = get_snapshot()
assert not snapshot._lookup_cache and not snapshot._provider_cache and not snapshot._provider_misses
"""
    run_program(program)
