"""Prices against exact arithmetic: whatever a table says and an answer counts, the cost is the true sum, rounded up."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal, localcontext
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from token_budget.metering._prices import Prices
from token_budget.metering._usage import Usage

NANO = Decimal("1e-9")

decimals = st.decimals(0, 1000, places=9) | st.decimals(0, "0.01", places=18) | st.integers(0, 10**6).map(Decimal)
above_zero = decimals.filter(bool)
forms = st.sampled_from([lambda d: d, str, lambda d: int(d) if d == int(d) else d])


@st.composite
def sheets(draw: st.DrawFn) -> dict[str, Decimal]:
    """Return rates of which tokens cost something, some of them not given."""
    rates = {"input": draw(above_zero), "output": draw(decimals)}
    optional = ["cache_read", "cache_write", "cache_write_1h", "audio_input", "audio_output", "reasoning"]
    for name in draw(st.sets(st.sampled_from([*optional, "web_search", "request"]))):
        rates[name] = draw(decimals)
    return rates


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """Return the usage of one answer, in which the parts fit into the whole."""
    counts = st.integers(0, 10) | st.integers(0, 300_000) | st.integers(0, 10**12)
    parts = [draw(counts) for _ in range(5)]
    fresh, read, written, hour, heard = parts
    told, thought, said = draw(counts), draw(counts), draw(counts)
    return Usage(
        input_tokens=fresh + read + written + hour + heard,
        output_tokens=told + thought + said,
        cache_read_input_tokens=read,
        cache_creation_input_tokens=written + hour,
        cache_creation_1h_input_tokens=hour,
        audio_input_tokens=heard,
        reasoning_output_tokens=thought,
        audio_output_tokens=said,
        web_search_requests=draw(st.integers(0, 100)),
    )


def true_cost(rates: dict[str, Decimal], usage: Usage, factor: Decimal, fees: dict[str, Decimal]) -> Decimal:
    """Return what the promises say, by another way than the code's: part by part, in dollars."""
    write = rates.get("cache_write", rates["input"] * Decimal("1.25"))
    hour, written = usage.cache_creation_1h_input_tokens, usage.cache_creation_input_tokens
    read, heard = usage.cache_read_input_tokens, usage.audio_input_tokens
    thought, said = usage.reasoning_output_tokens, usage.audio_output_tokens
    bill = [
        (usage.input_tokens - read - written - heard, rates["input"]),
        (read, rates.get("cache_read", rates["input"])),
        (written - hour, write),
        (hour, rates.get("cache_write_1h", write * Decimal("1.6"))),
        (heard, rates.get("audio_input", rates["input"])),
        (usage.output_tokens - thought - said, rates["output"]),
        (thought, rates.get("reasoning", rates["output"])),
        (said, rates.get("audio_output", rates["output"])),
    ]
    tokens = sum((count * rate / 1_000_000 for count, rate in bill), Decimal(0))
    search = rates.get("web_search", fees.get("web_search", Decimal("0.01")))
    return tokens * factor + usage.web_search_requests * search + rates.get("request", fees.get("request", Decimal(0)))


def written(rates: dict[str, Decimal], form: Any) -> dict[str, Any]:
    return {name: form(rate) for name, rate in rates.items()}


@given(
    sheets(),
    st.dictionaries(st.integers(1, 600_000), sheets(), max_size=3),
    usages(),
    st.sampled_from([(None, "1"), ("priority", "2"), ("flex", "0.5"), ("scale", "1.3")]),
    forms,
)
def test_a_cost_is_the_exact_sum_rounded_up_once(
    rates: dict[str, Decimal],
    steps: dict[int, dict[str, Decimal]],
    usage: Usage,
    tier: tuple[str | None, str],
    form: Any,
) -> None:
    line = {
        **written(rates, form),
        "steps": {start: written(step, form) for start, step in steps.items()},
        "tiers": {"scale": "1.3"},
    }
    cost = Prices({"m": line}, catalogue=False).cost("m", usage, service_tier=tier[0])
    begun = [start for start in steps if usage.input_tokens > start]
    holds = steps[max(begun)] if begun else rates
    with localcontext() as context:
        context.prec = 200
        exact = true_cost(holds, usage, Decimal(tier[1]), rates)
        assert cost == exact.quantize(NANO, ROUND_CEILING)


@given(st.floats(0, 1e6, allow_subnormal=False).filter(lambda rate: rate == 0 or rate > 1e-12), st.integers(0, 10**12))
def test_a_float_is_the_number_of_its_repr(rate: float, tokens: int) -> None:
    cost = Prices({"m": (rate, 1)}, catalogue=False).quote("m", tokens)
    with localcontext() as context:
        context.prec = 200
        assert cost == (Decimal(repr(rate)) * tokens / 1_000_000).quantize(NANO, ROUND_CEILING)


@given(sheets(), usages(), st.integers(0, 10**6))
def test_more_tokens_of_any_kind_never_cost_less(rates: dict[str, Decimal], usage: Usage, more: int) -> None:
    prices = Prices({"m": dict(rates)}, catalogue=False)
    before = prices.nanos("m", usage)
    for name in ("input_tokens", "output_tokens", "web_search_requests"):
        counts = {**{field: getattr(usage, field) for field in usage.__slots__}, name: getattr(usage, name) + more}
        assert prices.nanos("m", Usage(**counts)) >= before


@given(sheets(), usages(), st.integers(0, 10**9))
def test_parts_that_overlap_are_never_too_cheap(rates: dict[str, Decimal], usage: Usage, both: int) -> None:
    """Audio that was read from a cache counts as audio and as read: at least what either alone would cost."""
    prices = Prices({"m": dict(rates)}, catalogue=False)
    tokens = {"input_tokens": usage.input_tokens + both}
    overlap = prices.nanos("m", Usage(**tokens, cache_read_input_tokens=both, audio_input_tokens=both))
    other = max(usage.input_tokens - both, 0)
    heard = rates.get("audio_input", rates["input"])
    read = rates.get("cache_read", rates["input"])
    with localcontext() as context:
        context.prec = 200
        exact = (max(heard, read) * both + rates["input"] * other) / 1_000_000
    assert Decimal(overlap) * NANO >= exact


def test_the_same_amounts_in_any_form_are_one_price() -> None:
    usage = Usage(input_tokens=123_457, output_tokens=891)
    lines = [("0.15", "0.6"), (0.15, 0.6), (Decimal("0.150"), Decimal("0.60")), {"input": "0.15", "output": 0.6}]
    costs = {Prices({"m": line}, catalogue=False).nanos("m", usage) for line in lines}
    assert costs == {19_053_150}
