"""Prices by a user's own table: what a line says, which line holds, what is refused. Nothing is installed for it."""

from __future__ import annotations

import datetime as dt
import gc
import inspect
import re
import sys
import threading
import tracemalloc
import typing
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import pytest

from token_budget.metering._prices import Prices
from token_budget.metering._refusals import Refusal, UnknownModel
from token_budget.metering._usage import Usage

MILLION = 1_000_000
IN = Usage(input_tokens=MILLION)
OUT = Usage(output_tokens=MILLION)


def own(table: Any = None, **arguments: Any) -> Prices:
    return Prices(table, catalogue=False, **arguments)


def price_of(line: Any, usage: Usage, **arguments: Any) -> Decimal:
    return own({"m": line}).cost("m", usage, **arguments)


# ---------------------------------------------------------------- what a line says


@pytest.mark.parametrize(
    "line", [(3, 15), [3, 15], ("3", "15"), (3.0, 15.0), (Decimal(3), Decimal("15.00")), {"input": 3, "output": 15}]
)
def test_rates_are_dollars_for_a_million_tokens_in_any_number_that_is_exact(line: Any) -> None:
    assert price_of(line, IN) == 3
    assert price_of(line, OUT) == 15
    assert price_of(line, Usage(input_tokens=1000, output_tokens=500)) == Decimal("0.0105")
    assert price_of(line, Usage()) == 0


def test_cost_and_quote_give_decimal_dollars_and_nanos_the_same_in_integers() -> None:
    prices = own({"gpt-4": (30, 60)})
    assert prices.quote("gpt-4", 1000, 500) == Decimal("0.06")
    assert str(prices.quote("gpt-4", 1000)) == "0.03"
    usage = Usage(input_tokens=1000, output_tokens=500)
    assert repr(prices.cost("gpt-4", usage)) == "Decimal('0.06')"
    nanos = prices.nanos("gpt-4", usage)
    assert type(nanos) is int
    assert nanos == 60_000_000


def test_a_float_counts_as_the_number_that_its_repr_shows() -> None:
    assert price_of((0.1, 0.3), Usage(input_tokens=3 * MILLION)) == Decimal("0.3")


def test_a_cost_does_not_depend_on_the_decimal_context_of_the_caller() -> None:
    with localcontext() as context:
        context.prec = 2
        prices = own({"m": ("1.23456789", "9.87654321")})
        cost = prices.cost("m", Usage(input_tokens=MILLION, output_tokens=MILLION))
    assert cost == Decimal("11.1111111")


def test_one_nanodollar_is_rounded_up_once_and_never_by_token() -> None:
    line = ("0.0001", "0.0001")  # a tenth of a nanodollar a token
    assert price_of(line, Usage(input_tokens=1)) == Decimal("1e-9")
    assert price_of(line, Usage(input_tokens=10)) == Decimal("1e-9")
    assert price_of(line, Usage(input_tokens=11)) == Decimal("2e-9")
    assert price_of(line, Usage(input_tokens=5, output_tokens=5)) == Decimal("1e-9"), (
        "the sum is rounded, not its parts"
    )


def test_rates_of_thirty_decimals_are_kept() -> None:
    line = ("0.000000000000000000000000000001", "1")
    assert price_of(line, Usage(output_tokens=1000)) == Decimal("0.001")
    assert price_of(line, Usage(input_tokens=1, output_tokens=1000)) == Decimal("0.001000001")


def test_caches_cost_what_the_line_says() -> None:
    line = (3, 15, "0.3", "3.75")
    assert price_of(line, Usage(input_tokens=MILLION, cache_read_input_tokens=MILLION)) == Decimal("0.3")
    assert price_of(line, Usage(input_tokens=MILLION, cache_creation_input_tokens=MILLION)) == Decimal("3.75")
    part = Usage(input_tokens=MILLION, cache_read_input_tokens=500_000, cache_creation_input_tokens=100_000)
    assert price_of(line, part) == Decimal("0.15") + Decimal("0.375") + Decimal("1.2")


def test_a_cache_without_a_rate_is_never_cheaper_than_it_can_be() -> None:
    line = (4, 15)
    assert price_of(line, Usage(input_tokens=MILLION, cache_read_input_tokens=MILLION)) == 4
    assert price_of(line, Usage(input_tokens=MILLION, cache_creation_input_tokens=MILLION)) == 5
    hour = Usage(input_tokens=MILLION, cache_creation_input_tokens=MILLION, cache_creation_1h_input_tokens=MILLION)
    assert price_of(line, hour) == 8
    assert price_of((4, 15, 1, 10), hour) == 16, "an hour costs 1.6 times the write that is given"
    assert price_of({"input": 4, "output": 15, "cache_write_1h": 9}, hour) == 9


def test_a_write_for_an_hour_counts_once() -> None:
    line = {"input": 1, "output": 1, "cache_read": 0, "cache_write": 2, "cache_write_1h": 4}
    both = Usage(input_tokens=MILLION, cache_creation_input_tokens=MILLION, cache_creation_1h_input_tokens=250_000)
    assert price_of(line, both) == Decimal("1.5") + 1
    alone = Usage(input_tokens=MILLION, cache_creation_1h_input_tokens=MILLION)
    assert price_of(line, alone) == 4, "an answer that names the hour alone"


def test_counts_that_do_not_fit_together_never_make_a_call_cheaper() -> None:
    line = (3, 15, "0.3")
    assert price_of(line, Usage(input_tokens=1, cache_read_input_tokens=MILLION)) == Decimal("0.3")
    assert price_of(line, Usage(output_tokens=1, reasoning_output_tokens=MILLION)) == 15


def test_audio_and_reasoning_cost_what_the_line_says_else_what_other_tokens_do() -> None:
    heard = Usage(input_tokens=MILLION, audio_input_tokens=500_000)
    said = Usage(output_tokens=MILLION, audio_output_tokens=250_000, reasoning_output_tokens=250_000)
    assert price_of((2, 8), heard) == 2
    assert price_of((2, 8), said) == 8
    line = {"input": 2, "output": 8, "audio_input": 40, "audio_output": 80, "reasoning": 4}
    assert price_of(line, heard) == 21
    assert price_of(line, said) == 20 + 1 + 4


def test_searches_and_requests_are_billed_one_by_one() -> None:
    searched = Usage(input_tokens=MILLION, web_search_requests=3)
    assert price_of((2, 8), searched) == Decimal("2.03"), "a cent each, if nothing is said"
    line = {"input": 2, "output": 8, "web_search": "0.025", "request": "0.5"}
    assert price_of(line, searched) == Decimal("2.575")
    assert price_of(line, Usage()) == Decimal("0.5")


def test_free_is_how_to_say_that_a_model_costs_nothing() -> None:
    prices = own({"llama": "free", "mine": " FREE "})
    assert prices.cost("llama", Usage(input_tokens=MILLION, web_search_requests=9), service_tier="priority") == 0
    assert prices.quote("mine", MILLION) == 0
    assert prices.knows("llama")


# ---------------------------------------------------------------- steps and tiers


STEPS = {
    "input": 1,
    "output": 2,
    "cache_read": "0.1",
    "web_search": "0.5",
    "request": "0.25",
    "steps": {200_000: {"input": 2, "output": 4}, "1000000": (8, 16, 1)},
}


@pytest.mark.parametrize(
    ("tokens", "rate"), [(1, 1), (200_000, 1), (200_001, 2), (MILLION, 2), (MILLION + 1, 8), (10**9, 8)]
)
def test_a_step_begins_above_its_number_and_prices_the_whole_call(tokens: int, rate: int) -> None:
    usage = Usage(input_tokens=tokens, output_tokens=MILLION)
    assert price_of(STEPS, usage) == Decimal(tokens * rate) / MILLION + 2 * rate + Decimal("0.25")


def test_a_step_has_rates_of_its_own_and_the_fees_of_its_line() -> None:
    usage = Usage(input_tokens=400_000, cache_read_input_tokens=400_000, web_search_requests=1)
    assert price_of(STEPS, usage) == Decimal("0.8") + Decimal("0.5") + Decimal("0.25")
    usage = Usage(input_tokens=2 * MILLION, cache_read_input_tokens=2 * MILLION)
    assert price_of(STEPS, usage) == 2 + Decimal("0.25")


@pytest.mark.parametrize("tier", [None, "", "auto", "default", "standard", "standard_only", "on_demand", " Auto "])
def test_a_standard_tier_has_many_names(tier: str | None) -> None:
    assert price_of({"input": 1, "output": 1, "tiers": {"odd": 9}}, IN, service_tier=tier) == 1


def test_priority_is_twice_and_flex_half_if_nothing_is_said() -> None:
    line = {"input": 1, "output": 4, "web_search": "0.5", "steps": {10: (2, 8)}}
    usage = Usage(input_tokens=10, output_tokens=MILLION, web_search_requests=1)
    assert price_of(line, usage, service_tier="priority") == Decimal("8.50002")
    assert price_of(line, usage, service_tier="Flex") == Decimal("2.500005")
    assert price_of(line, usage, service_tier="batch") == Decimal("4.50001")
    assert price_of(line, Usage(input_tokens=MILLION), service_tier="priority") == 4
    assert price_of(line, Usage(input_tokens=MILLION), service_tier="flex") == 1


@pytest.mark.parametrize(
    ("provider", "rate"), [(None, 1), ("openai", 1), ("Azure", 1), ("google", 1), ("aws", 1), ("groq", 2), ("other", 2)]
)
def test_flex_is_cheaper_only_where_providers_say_so(provider: str | None, rate: int) -> None:
    assert price_of((2, 8), IN, service_tier="flex", provider=provider) == rate
    assert own({"m": (2, 8)}).cost("groq/m", IN, service_tier="flex") == 2, "the name tells who serves it"
    assert own(fallback=(2, 8)).cost("m", IN, service_tier="flex", provider=provider) == rate


def test_a_line_may_say_what_its_tiers_cost() -> None:
    line = {
        "input": 4,
        "output": 8,
        "web_search": 1,
        "tiers": {"Priority": "1.75", "flex": {"input": 3, "output": 3}, "scale": (1, 1, 0)},
    }
    assert price_of(line, IN, service_tier="priority") == 7
    assert price_of(line, IN, service_tier="flex") == 3
    assert price_of(line, Usage(web_search_requests=1), service_tier="flex") == 1
    assert price_of(line, IN, service_tier="scale") == 1
    assert price_of(line, IN) == 4


def test_a_tier_may_have_steps() -> None:
    line = {"input": 4, "output": 8, "tiers": {"fast": {"input": 5, "output": 9, "steps": {10: (50, 90)}}}}
    assert price_of(line, IN, service_tier="fast") == 50
    assert price_of(line, Usage(input_tokens=10), service_tier="fast") == Decimal("0.00005")


@pytest.mark.parametrize("tier", ["nobody-knows", "x" * 65, "x" * 100_000])
def test_a_tier_that_nobody_knows_costs_what_the_dearest_known_one_does(tier: Any) -> None:
    line = {"input": 1, "output": 10, "tiers": {"fast": {"input": 5, "output": 1}, "priority": "1.5"}}
    assert price_of(line, IN, service_tier=tier) == 5
    assert price_of(line, OUT, service_tier=tier) == 15
    assert price_of((1, 10), IN, service_tier=tier) == 2


# ---------------------------------------------------------------- which line holds


def test_an_exact_name_wins_then_the_pattern_with_the_most_characters() -> None:
    prices = own({"*": (1, 1), "gpt-*": (2, 2), "gpt-5*": (3, 3), "gpt-5": (4, 4), "*-mini": (5, 5), "g*5*i": (6, 6)})
    found = {
        name: prices.quote(name, MILLION) for name in ("other", "gpt-4", "gpt-5.1", "gpt-5", "gpt-5-mini", "g-5-i")
    }
    assert found == {"other": 1, "gpt-4": 2, "gpt-5.1": 3, "gpt-5": 4, "gpt-5-mini": 3, "g-5-i": 6}


def test_of_patterns_that_are_as_long_the_first_wins() -> None:
    assert own({"a*": (1, 1), "*b": (2, 2)}).quote("ab", MILLION) == 1
    assert own({"*b": (2, 2), "a*": (1, 1)}).quote("ab", MILLION) == 2


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a*b*c", "a-b-c", True),
        ("a*b*c", "a-c-b", False),
        ("*x*x*", "x", False),
        ("*x*x*", "axbxc", True),
        ("a*bc*c", "abc", False),
        ("a**b", "ab", True),
        ("gpt-[45]*", "gpt-4", False),
        ("gpt-?*", "gpt-4", False),
        ("*", "anything", True),
    ],
)
def test_a_star_stands_for_any_characters_and_nothing_else_is_special(pattern: str, name: str, matches: bool) -> None:
    assert own({pattern: (1, 1)}).knows(name) is matches


def test_case_and_blanks_around_a_name_do_not_matter() -> None:
    prices = own({" GPT-5 ": (1, 1), "Claude*": (2, 2)}, aliases={"Mine": "Gpt-5"})
    assert prices.quote("gpt-5", MILLION) == prices.quote(" Gpt-5", MILLION) == prices.quote("MINE", MILLION) == 1
    assert prices.quote("CLAUDE-9", MILLION) == 2


def test_an_alias_gives_a_model_another_name_and_may_lead_to_an_alias() -> None:
    prices = own({"gpt-5": (1, 1), "gpt-4": (2, 2)}, aliases={"prod": "gpt-5", "live": "prod", "gpt-4": "gpt-5"})
    assert prices.quote("prod", MILLION) == prices.quote("live", MILLION) == 1
    assert prices.quote("gpt-4", MILLION) == 2, "a line of the table comes before an alias"
    assert not prices.knows("gpt-6")


def test_the_line_of_the_bare_name_holds_for_prefixed_names_that_have_none() -> None:
    prices = own({"gpt-5": (1, 1), "azure/gpt-5": (2, 2), "claude-*": (3, 3)}, aliases={"mine": "openai/gpt-5"})
    assert prices.quote("openai/gpt-5", MILLION) == prices.quote("mine", MILLION) == 1
    assert prices.quote("azure/gpt-5", MILLION) == 2
    assert prices.quote("us.anthropic.claude-sonnet-4-5-20250929-v1:0", MILLION) == 3


def test_a_fine_tuned_model_needs_a_line_of_its_own() -> None:
    prices = own({"gpt-4o": (1, 1), "ft:gpt-4o*": (2, 2)})
    assert prices.quote("ft:gpt-4o:org::id", MILLION) == prices.quote("openai/ft:gpt-4o:org::id", MILLION) == 2
    with pytest.raises(UnknownModel, match="fine-tuned"):
        prices.quote("ft:gpt-3.5:org::id", 1)
    custom = "arn:aws:bedrock:us-east-1:1:custom-model/anthropic.claude-x/abc"
    assert not own({"claude-x": (1, 1), "abc": (1, 1)}).knows(custom), "its base's line is not its own"


def test_the_table_is_read_once() -> None:
    line = {"input": 1, "output": 1, "steps": {10: {"input": 2, "output": 2}}}
    table: dict[str, Any] = {"m": line}
    prices = own(table)
    line["steps"].clear()  # type: ignore[attr-defined]
    line["input"] = 5
    table["n"] = (1, 1)
    assert prices.quote("m", MILLION) == 2
    assert not prices.knows("n")


# ---------------------------------------------------------------- the unknown


@pytest.mark.parametrize("model", ["gpt-5", "", "   ", None, "x" * 513, "x" * MILLION])
def test_a_model_without_a_price_is_refused_in_few_words(model: Any) -> None:
    prices = own({"m": (1, 1)})
    for _ in range(2):
        with pytest.raises(UnknownModel) as caught:
            prices.nanos(model, IN, provider="openai")
        assert isinstance(caught.value, (Refusal, LookupError))
        assert len(str(caught.value)) < 400
    assert not prices.knows(model)


def test_the_refusal_says_what_to_do() -> None:
    with pytest.raises(
        UnknownModel, match=r"model 'gpt-9' at 'openai': give it a line in Prices.*alias or a fallback$"
    ):
        own().quote("GPT-9", 1, provider="OpenAI")


def test_two_refusals_are_two_errors() -> None:
    prices = own()
    errors = []
    for _ in range(2):
        with pytest.raises(UnknownModel) as caught:
            prices.quote("x", 1)
        errors.append(caught.value)
    assert errors[0] is not errors[1]


@pytest.mark.parametrize(("fallback", "price"), [((30, 180), 30), ({"input": 5, "output": 1}, 5), ("free", 0)])
def test_a_fallback_prices_the_unknown_and_nothing_else(fallback: Any, price: int) -> None:
    prices = own({"m": (1, 1)}, fallback=fallback)
    assert prices.quote("m", MILLION) == 1
    for model in ("x", None, "y" * 1000, "ft:m"):
        assert prices.quote(model, MILLION) == price
        assert not prices.knows(model)
    assert prices.knows("m")


# ---------------------------------------------------------------- what is refused


class Pretender(float):
    def __repr__(self) -> str:
        return "1"


BAD_RATES = [
    (-1, ValueError),
    (-0.001, ValueError),
    ("-1e-9", ValueError),
    (Decimal(-1), ValueError),
    (float("nan"), ValueError),
    ("nan", ValueError),
    (Decimal("sNaN"), ValueError),
    (float("inf"), ValueError),
    ("Infinity", ValueError),
    (10**6 + 1, ValueError),
    (10**400, ValueError),
    (1e300, ValueError),
    ("1e7", ValueError),
    ("1e999999999999999999", ValueError),
    ("1e-31", ValueError),
    (5e-324, ValueError),
    ("1e-999999", ValueError),
    ("", ValueError),
    ("$3", ValueError),
    ("3 USD", ValueError),
    (True, TypeError),
    (False, TypeError),
    (None, TypeError),
    (b"3", TypeError),
    (Fraction(1, 3), TypeError),
    (3j, TypeError),
    ([3], TypeError),
]


@pytest.mark.parametrize(("bad", "error"), BAD_RATES, ids=repr)
@pytest.mark.parametrize(
    "line",
    [
        lambda bad: (bad, 1),
        lambda bad: (1, bad),
        lambda bad: (1, 1, bad),
        lambda bad: (1, 1, 1, bad),
        lambda bad: {"input": 1, "output": 1, "web_search": bad},
        lambda bad: {"input": 1, "output": 1, "steps": {5: (1, bad)}},
        lambda bad: {"input": 1, "output": 1, "tiers": {"flex": (bad, 1)}},
    ],
)
def test_a_rate_that_is_no_price_is_refused_with_the_name_of_the_model(line: Any, bad: Any, error: type) -> None:
    with pytest.raises(error, match="'my-model'") as caught:
        own({"my-model": line(bad)})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("bad", "error"), BAD_RATES[:23], ids=repr)
def test_a_factor_of_a_tier_is_checked_as_rates_are(bad: Any, error: type) -> None:
    with pytest.raises(error, match="'my-model'.*flex"):
        own({"my-model": {"input": 1, "output": 1, "tiers": {"flex": bad}}})


def test_the_largest_and_smallest_rates_hold() -> None:
    line = (10**6, "1e-30")
    assert price_of(line, Usage(input_tokens=1)) == 1
    assert price_of(line, Usage(output_tokens=10**18)) == Decimal("1e-9")
    assert price_of(("1000000.000", 1), Usage(input_tokens=10**18)) == 10**18


def test_a_number_of_a_subclass_counts_as_its_value() -> None:
    assert price_of((Pretender(2.5), 1), IN) == Decimal("2.5")


@pytest.mark.parametrize(
    "line",
    [
        (0, 0),
        (0, 0, 1, 1),
        ("0.000", 0.0),
        {"input": 0, "output": 0, "request": 1},
        {"input": 1, "output": 1, "steps": {10: (0, 0)}},
        {"input": 1, "output": 1, "tiers": {"flex": (0, 0)}},
    ],
)
def test_rates_of_zero_are_refused_because_free_is_how_to_say_it(line: Any) -> None:
    with pytest.raises(ValueError, match="'my-model'.*free"):
        own({"my-model": line})


def test_one_of_the_rates_may_be_zero() -> None:
    assert price_of((0, 1), IN) == 0
    assert price_of({"input": "0.02", "output": 0}, OUT) == 0


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ((1,), ValueError, "input, output"),
        ((), ValueError, "input, output"),
        ((1, 2, 3, 4, 5), ValueError, "input, output"),
        ("gratis", ValueError, "free"),
        ("3", ValueError, "free"),
        (3, TypeError, "tuple or a dict"),
        (None, TypeError, "tuple or a dict"),
        ({1, 2}, TypeError, "tuple or a dict"),
        ({"input": 1}, ValueError, "output is missing"),
        ({"output": 1}, ValueError, "input is missing"),
        ({}, ValueError, "input is missing"),
        ({"input": 1, "ouput": 1}, ValueError, "unknown 'ouput'"),
        ({"input": 1, "output": 1, "steps": 5}, TypeError, "steps must be a dict"),
        ({"input": 1, "output": 1, "steps": {"a": (1, 1)}}, TypeError, "whole number"),
        ({"input": 1, "output": 1, "steps": {"٣": (1, 1)}}, TypeError, "whole number"),
        ({"input": 1, "output": 1, "steps": {"9" * 5000: (1, 1)}}, TypeError, "whole number"),
        ({"input": 1, "output": 1, "steps": {1.5: (1, 1)}}, TypeError, "whole number"),
        ({"input": 1, "output": 1, "steps": {True: (1, 1)}}, TypeError, "whole number"),
        ({"input": 1, "output": 1, "steps": {0: (1, 1)}}, ValueError, "step begins"),
        ({"input": 1, "output": 1, "steps": {-5: (1, 1)}}, ValueError, "step begins"),
        ({"input": 1, "output": 1, "steps": {10**13: (1, 1)}}, ValueError, "step begins"),
        ({"input": 1, "output": 1, "steps": {5: (1, 1), "5": (2, 2)}}, ValueError, "twice"),
        (
            {"input": 1, "output": 1, "steps": {5: {"input": 1, "output": 1, "steps": {}}}},
            ValueError,
            "unknown 'steps'",
        ),
        ({"input": 1, "output": 1, "tiers": [1]}, TypeError, "tiers must be a dict"),
        ({"input": 1, "output": 1, "tiers": {"default": 1}}, ValueError, "no name of a tier"),
        ({"input": 1, "output": 1, "tiers": {3: 1}}, ValueError, "no name of a tier"),
        ({"input": 1, "output": 1, "tiers": {"?": 1}}, ValueError, "no name of a tier"),
        ({"input": 1, "output": 1, "tiers": {"flex": 0}}, ValueError, "above 0"),
        ({"input": 1, "output": 1, "tiers": {"flex": "free"}}, ValueError, "must be a number"),
    ],
)
def test_a_line_that_cannot_be_read_is_refused_with_the_name_of_the_model(line: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        own({"my-model": line})
    assert "'my-model'" in str(caught.value)
    with pytest.raises(error, match=words) if line is not None else pytest.raises(UnknownModel):
        own(fallback=line).quote("x", 1)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"table": [("m", (1, 1))]}, TypeError, "table must be a dict"),
        ({"table": {1: (1, 1)}}, TypeError, "key of table"),
        ({"table": {"": (1, 1)}}, ValueError, "key of table"),
        ({"table": {"  ": (1, 1)}}, ValueError, "key of table"),
        ({"table": {"x" * 513: (1, 1)}}, ValueError, "key of table"),
        ({"table": {"M": (1, 1), "m": (2, 2)}}, ValueError, "names 'm' twice"),
        ({"aliases": "m"}, TypeError, "aliases must be a dict"),
        ({"aliases": {"m": 3}}, TypeError, "alias 'm'"),
        ({"aliases": {None: "m"}}, TypeError, "key of aliases"),
        ({"aliases": {"a": "b", "b": "A"}}, ValueError, "circle"),
        ({"aliases": {"a": "a"}}, ValueError, "circle"),
    ],
)
def test_arguments_that_cannot_be_read_are_refused(arguments: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        Prices(**arguments)


@pytest.mark.parametrize(("tokens", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError), ("5", TypeError)])
def test_a_quote_takes_whole_tokens(tokens: Any, error: type) -> None:
    prices = own({"m": (1, 1)})
    with pytest.raises(error, match="input_tokens"):
        prices.quote("m", tokens)
    with pytest.raises(error, match="output_tokens"):
        prices.quote("m", 1, tokens)


# ---------------------------------------------------------------- kept answers


def test_names_without_end_take_no_memory_without_end() -> None:
    prices = own({"known-*": (1, 1)})

    def flood(start: int) -> None:
        for number in range(start, start + 1500):
            prices.nanos(f"known-{number}", IN, service_tier=f"{number}" if number % 20 == 0 else None)
            prices.knows(f"unknown-{number}")
            with pytest.raises(UnknownModel):
                prices.nanos(f"unknown-{number}" + "x" * 300 * (number % 3), IN, provider=f"host{number}" * 50)

    flood(0)
    gc.collect()
    tracemalloc.start()
    flood(5000)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    flood(10_000)
    flood(15_000)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after - before < 500_000
    assert prices.quote("known-1", MILLION) == 1


def test_names_of_any_length_take_no_memory() -> None:
    prices = own({"m": (1, 1)}, fallback=(1, 1))
    prices.nanos("m", IN)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(100):
        prices.nanos(f"{number}" + "x" * 100_000, IN)
        prices.nanos("m", IN, provider=f"{number}" + "x" * 100_000)
        prices.nanos("m", IN, service_tier=f"{number}" + "x" * 100_000)
        prices.knows(f"{number}" + "x" * 100_000)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after - before < 1_000_000


def test_what_is_asked_for_often_outlives_a_flood_of_other_names() -> None:
    looked_up: list[str] = []

    class Watched(Prices):
        def _own(self, model: Any, *rest: Any) -> Any:
            looked_up.append(model)
            return super()._own(model, *rest)

    prices = Watched({"*": (1, 1)}, catalogue=False)
    for number in range(3000):
        prices.nanos(f"other-{number}", IN)
        prices.nanos("often", IN)
    assert looked_up.count("often") == 1
    prices.nanos("other-2999", IN)
    assert looked_up.count("other-2999") == 1
    prices.nanos("other-0", IN)
    assert looked_up.count("other-0") == 2


def test_an_unknown_name_is_looked_up_once() -> None:
    looked_up: list[str] = []

    class Watched(Prices):
        def _own(self, model: Any, *rest: Any) -> Any:
            looked_up.append(model)
            return super()._own(model, *rest)

    prices = Watched({}, catalogue=False)
    for _ in range(5):
        assert not prices.knows("x")
        with pytest.raises(UnknownModel):
            prices.nanos("x", IN, provider="openai")
    assert looked_up == ["x", "x"], "once to know it, once to price it"


def test_threads_agree_while_names_are_forgotten() -> None:
    prices = own({"m*": (1, 1), "n*": (2, 2)})
    wrong: list[object] = []
    begin = threading.Barrier(4)

    def ask(seed: int) -> None:
        begin.wait()
        try:
            for number in range(4000):
                letter = "mn"[number % 2]
                if prices.nanos(f"{letter}{number * 7 % 3001}-{seed % 2}", IN) != (1 + number % 2) * 10**9:
                    wrong.append((letter, number))
        except BaseException as error:  # noqa: BLE001  # the test fails with it
            wrong.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert len(prices._young) <= 1024 + len(threads)


# ---------------------------------------------------------------- the module itself


def test_a_moment_does_not_change_what_a_table_says() -> None:
    prices = own({"m": (1, 1)}, fallback=(9, 9))
    for at in (dt.datetime(2020, 1, 1), dt.datetime(2030, 1, 1, tzinfo=dt.timezone.utc)):  # noqa: DTZ001
        assert prices.quote("m", MILLION, at=at) == 1
        assert prices.quote("x", MILLION, at=at) == 9


def test_without_the_list_its_data_has_no_date() -> None:
    assert own().data_date is None


def test_the_example_of_the_docstring_runs() -> None:
    found = re.findall(r"```python\n(.*?)```", inspect.getdoc(Prices) or "", re.DOTALL)
    assert len(found) == 1
    exec(found[0], {"Prices": Prices, "Decimal": Decimal})


@pytest.mark.parametrize("name", ["__init__", "cost", "quote", "nanos", "knows"])
def test_annotations_resolve(name: str) -> None:
    assert typing.get_type_hints(getattr(Prices, name))


def test_prices_take_no_other_attributes() -> None:
    with pytest.raises(AttributeError):
        own().tabel = {}  # type: ignore[attr-defined]


def test_the_kept_answers_about_two_names_are_bounded() -> None:
    prices = Prices({"m": (1, 2)}, catalogue=False)
    for number in range(3000):
        assert prices._governs("m", f"m-{number}")
        assert prices._governs("m", f"m-{number}")
    assert prices._governs("m", "x" * 600)
    assert len(prices._governed) <= 1024
    assert not any(len(answered) == 600 for _, answered in prices._governed)
