"""Usage of raw answers: `answers/*.json` holds answers, and of each the usage, the model and the tier expected.

The table is data, written from the providers' documentation; the tests are loops over it. genai-prices reads some of
the same shapes, when it is told who answered and in which dialect: where it is installed, it is the oracle of the
table. Where it is wrong, the case says why.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from token_budget.metering._shapes import Reading, UnknownUsage, read, read_event
from token_budget.metering._usage import Usage

ANSWERS = Path(__file__).parent / "answers"


def load(*files: str) -> list[Any]:
    """Return the cases of the files as parameters."""
    return [
        pytest.param(case, id=f"{file}: {case['name']}")
        for file in files
        for case in json.loads((ANSWERS / f"{file}.json").read_text(encoding="utf-8"))
    ]


KNOWN = load("openai", "compatible", "anthropic", "gemini", "others", "frameworks", "streams")
SUMS = {"LangChain, chunks that add up", "two whole answers"}  # parts of a sum, and not events of one stream
STREAMS = [case for case in load("streams") if case.values[0]["name"] not in SUMS]
UNKNOWN = load("unknown")


@pytest.mark.parametrize("case", KNOWN)
def test_an_answer_is_read_as_the_table_says(case: dict[str, Any]) -> None:
    reading = read(case["answer"], provider=case.get("provider"))
    assert reading[:3] == (Usage(**case["usage"]), case["model"], case["service_tier"])


@pytest.mark.parametrize("case", KNOWN)
def test_cached_tokens_and_reasoning_are_parts_of_the_sums(case: dict[str, Any]) -> None:
    usage = Usage.from_response(case["answer"], provider=case.get("provider"))
    assert usage.cache_read_input_tokens + usage.cache_creation_input_tokens <= usage.input_tokens
    assert usage.cache_creation_1h_input_tokens <= usage.cache_creation_input_tokens
    assert usage.reasoning_output_tokens <= usage.output_tokens
    assert usage.audio_input_tokens <= usage.input_tokens
    assert usage.audio_output_tokens <= usage.output_tokens


@pytest.mark.parametrize("case", KNOWN)
def test_reading_changes_nothing_in_the_answer(case: dict[str, Any]) -> None:
    before = json.dumps(case["answer"])
    read(case["answer"])
    assert json.dumps(case["answer"]) == before


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_cannot_be_read_names_the_keys_and_never_a_value(case: dict[str, Any]) -> None:
    with pytest.raises(UnknownUsage) as caught:
        Usage.from_response(case["answer"])
    assert list(caught.value.keys) == case["keys"]
    for key in case["keys"]:
        assert key in str(caught.value)
    assert "Bad Gateway" not in str(caught.value)


@pytest.mark.parametrize("case", STREAMS)
def test_a_stream_read_event_by_event_ends_at_the_usage_of_its_list(case: dict[str, Any]) -> None:
    so_far: Reading | None = None
    for event in case["answer"]:
        so_far = read_event(event, so_far)
    assert so_far == read(case["answer"])


# ---------------------------------------------------------------- genai-prices as the oracle

ORACLE = [case for case in KNOWN if "oracle" in case.values[0]]
THEIRS = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cache_read_tokens": "cache_read_input_tokens",
    "cache_write_tokens": "cache_creation_input_tokens",
    "cache_write_1h_tokens": "cache_creation_1h_input_tokens",
    "output_reasoning_tokens": "reasoning_output_tokens",
    "input_audio_tokens": "audio_input_tokens",
    "output_audio_tokens": "audio_output_tokens",
    "web_searches": "web_search_requests",
}


def by_the_oracle(case: dict[str, Any]) -> Usage:
    providers = pytest.importorskip("genai_prices.data").providers
    provider = next(one for one in providers if one.id == case["oracle"]["provider_id"])
    _, theirs = provider.extract_usage(case["answer"], api_flavor=case["oracle"]["api_flavor"])
    return Usage(**{ours: getattr(theirs, name, None) or 0 for name, ours in THEIRS.items()})


@pytest.mark.parametrize("case", ORACLE)
def test_genai_prices_reads_the_same(case: dict[str, Any]) -> None:
    theirs = by_the_oracle(case)
    if "oracle_is_wrong" in case:
        assert theirs != Usage(**case["usage"]), "it is mended: take the reason out of the table"
    else:
        assert theirs == Usage(**case["usage"])
