"""What is held is the most that a call can cost, also where rates are uneven or the answer tells less than all."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from meters import ask, used
from token_budget import BudgetPool
from token_budget.metering import Meter, Prices, UnknownModel, Usage
from token_budget.metering._rates import Timed
from token_budget.metering._shapes import Reading

KEPT = {"cache_creation_input_tokens": 1000}
HOUR = {**KEPT, "cache_creation_1h_input_tokens": 1000}


def most(line: Any, counts: dict[str, int], tier: str | None = None) -> int:
    """Return what is held for 1,000 tokens of input and 100 of output."""
    usage = Usage(input_tokens=1000, output_tokens=100, **counts)
    return Prices({"m": line}, catalogue=False)._most("m", usage, None, tier)


@pytest.mark.parametrize(
    ("line", "counts", "nanos"),
    [
        ((1, 4), {}, 1_400_000),
        ({"input": 1, "output": 4, "reasoning": 10}, {}, 2_000_000),  # all of it may be reasoning
        ({"input": 1, "output": 4, "reasoning": 3}, {}, 1_400_000),
        ({"input": 1, "output": 4, "audio_output": 3}, {"audio_output_tokens": 100}, 1_400_000),  # or no audio at all
        ({"input": 1, "output": 4, "audio_output": 9}, {"audio_output_tokens": 100}, 1_900_000),
        ((1, 4, 1, 2), KEPT, 2_400_000),
        ((1, 4, 1, "0.5"), KEPT, 1_400_000),  # where writing is cheap, nothing may be written
        ({"input": 1, "output": 4, "cache_write": 2, "cache_write_1h": 1}, HOUR, 2_400_000),
        ({"input": 1, "output": 4, "cache_write": 2, "cache_write_1h": 3}, HOUR, 3_400_000),
        ({"input": 3, "output": 4, "cache_write": 1, "cache_write_1h": 4}, HOUR, 4_400_000),
        ({"input": 1, "output": 1, "reasoning": 2, "cache_write": 0}, HOUR, 1_200_000),
        ({"input": 1, "output": 4, "steps": {500: {"input": 2, "output": 4, "reasoning": 5}}}, {}, 2_500_000),
        ({"input": 1, "output": 4, "steps": {5000: (2, 8)}}, {}, 1_400_000),
        ("free", HOUR, 0),
    ],
)
def test_what_is_dearest_is_held_whatever_a_cache_takes_or_is_thought(
    line: Any, counts: dict[str, int], nanos: int
) -> None:
    assert most(line, counts) == nanos


def test_a_tier_that_nobody_knows_is_held_at_the_dearest() -> None:
    line = {"input": 1, "output": 4, "tiers": {"fast": {"input": 1, "output": 4, "reasoning": 50}}}
    assert most(line, {}, "nobody-knows") == 6_000_000


def test_prices_that_change_are_held_at_what_they_are_now() -> None:
    now = [0.0]
    rates = [
        Prices({"m": {"input": 1, "output": 1, "reasoning": dear}})._own("m", None, "standard", None) for dear in (2, 3)
    ]
    timed = Timed(lambda at: (at + 10, rates[at >= 10]), lambda: now[0])
    usage = Usage(output_tokens=100)
    assert (timed.most(usage), timed.nanos(usage)) == (200_000, 100_000)
    now[0] = 10
    assert timed.most(usage) == 300_000


def test_what_has_no_price_is_refused_and_the_hold_and_the_fit_are_the_dearest() -> None:
    pool = BudgetPool(usd_cap=0.0101)
    meter = Meter(pool, Prices({"q": {"input": 1, "output": 1, "reasoning": 10}}, catalogue=False), timeout=0)
    with pytest.raises(UnknownModel):
        meter._begin(ask(model="unheard-of"), None)
    assert meter.check("q", input_tokens=100, max_output_tokens=1000).usd_nanos == 10_100_000
    pending = meter._begin(ask(100, 1000, model="q"), None)
    pending.hold()
    thought = Usage(input_tokens=100, output_tokens=1000, reasoning_output_tokens=1000)
    pending.settle(Reading(thought, "q", None))
    assert pending.overrun is None
    assert used(pool) == (1100, 10_100_000, 0)
    fitting = Meter(BudgetPool(usd_cap=0.01), meter.prices, cap_output="fit")
    assert fitting._begin(ask(0, 4096, model="q", limited=False), None).output_limit == 1000


def test_what_was_seen_of_a_stream_is_charged_at_the_dearest_and_never_above_the_hold() -> None:
    pool = BudgetPool()
    prices = Prices({"q": {"input": 1, "output": 1, "reasoning": 10}}, catalogue=False)
    meter = Meter(pool, prices, broken="seen")
    pending = meter._begin(ask(100, 1000, model="q"), None)
    pending.hold()
    pending.seen(44)
    assert used(pool) == (400, 3_100_000, 0)
    pending = meter._begin(ask(100, 1000, model="q"), None)
    pending.hold()
    meter._terms.prices = Prices(catalogue=False)  # as when its price has ended meanwhile
    pending.seen(44)
    assert used(pool) == (1500, 13_200_000, 0)


# ---------------------------------------------------------------- what answers do not tell


def test_searches_of_which_the_answer_tells_nothing_are_charged_as_they_were_held() -> None:
    pool = BudgetPool()
    meter = Meter(pool, Prices({"q": {"input": 1, "output": 4, "web_search": 1}}, catalogue=False))
    for told, searches in ((0, 3), (1, 1), (9, 9)):
        before = used(pool)[1]
        pending = meter._begin(ask(model="q", untold_searches=3), None)
        pending.hold()
        pending.settle(Reading(Usage(input_tokens=1000, web_search_requests=told), "q", None))
        assert used(pool)[1] - before == 1_000_000 + searches * 10**9


# ---------------------------------------------------------------- where it is served


@pytest.mark.parametrize(
    ("tier", "dollars"),
    [("standard@us", "3.3"), ("@us", "3.3"), ("auto@US", "3.3"), ("fast@us", "19.8"), ("own@us", "7"), ("fast", "18")],
)
def test_what_is_served_in_the_us_alone_costs_a_tenth_more(tier: str, dollars: str) -> None:
    prices = Prices({"m": {"input": 3, "output": 15, "web_search": 1, "tiers": {"fast": 6, "own@us": (7, 7)}}})
    assert str(prices.quote("m", 10**6, service_tier=tier)) == dollars
    fee = prices.cost("m", Usage(web_search_requests=1), service_tier=tier, at=dt.datetime.now(dt.timezone.utc))
    assert fee == 1  # of a search it is the same
