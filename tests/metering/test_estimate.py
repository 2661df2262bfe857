"""The estimate of tokens: not under on what people send, linear in time, and held against real vocabularies."""

from __future__ import annotations

import base64
import functools
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimate_texts import OTHER_SCRIPTS, PROSE, kinds, other_kinds
from token_budget.metering import _estimate, _input, _media
from token_budget.metering._estimate import pieces_tokens, text_tokens, weights
from token_budget.metering._input import caches_unasked
from token_budget.metering._media import image_tokens

VOCABULARIES = ("o200k_base", "cl100k_base")


@functools.cache
def encoding(name: str) -> Any:
    return pytest.importorskip("bpe_openai").get_encoding(name)


# ---------------------------------------------------------------- against tokenizers


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("language", PROSE)
def test_it_is_never_a_tenth_under_in_ten_widespread_languages(language: str, vocabulary: str) -> None:
    count = encoding(vocabulary).encode
    for kind, text in kinds(language).items():
        assert text_tokens(text) >= 0.9 * len(count(text)), kind


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("language", OTHER_SCRIPTS)
def test_it_is_never_a_tenth_under_in_other_scripts(language: str, vocabulary: str) -> None:
    text = OTHER_SCRIPTS[language]
    assert text_tokens(text) >= 0.9 * len(encoding(vocabulary).encode(text))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("kind", other_kinds())
def test_it_is_never_a_tenth_under_on_kinds_that_no_rule_was_fitted_to(kind: str, vocabulary: str) -> None:
    text = other_kinds()[kind]
    assert text_tokens(text) >= 0.9 * len(encoding(vocabulary).encode(text))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_it_is_not_far_above_for_what_most_people_send(vocabulary: str) -> None:
    count = encoding(vocabulary).encode
    for kind, text in kinds("English").items():
        assert text_tokens(text) <= 2.2 * len(count(text)), kind


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_hexadecimal_and_base64_without_blanks_are_not_a_tenth_under(vocabulary: str) -> None:
    count = encoding(vocabulary).encode
    noise = bytes((number * 7919 + number // 3) % 251 for number in range(900))
    for text in (noise.hex(), base64.b64encode(noise).decode()):
        assert text_tokens(text) >= 0.9 * len(count(text))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@given(text=st.text(max_size=300))
def test_no_text_has_more_tokens_than_bytes(vocabulary: str, text: str) -> None:
    assert len(encoding(vocabulary).encode(text)) <= len(text.encode())


@given(text=st.text(max_size=300))
def test_no_text_is_less_than_a_twentieth_of_a_token_a_byte_and_none_more_than_two(text: str) -> None:
    size = len(text.encode())
    assert size / 20 <= text_tokens(text) <= size * 2.4 + 1


# ---------------------------------------------------------------- the rule itself


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("a " * 100, 45),  # 0.40 a letter, 0.05 a blank
        ("a" * 100, 75),  # without blanks: 0.75
        ("ab" * 10 + " ", 9),  # 20 letters to a blank are still words: 8.05
        ("ab" * 10 + "a ", 16),  # and more are not: 15.80
        ("1" * 100, 75),
        ("." * 100, 65),
        ("a 1 " * 10, 21),  # 0.80 more for a number after a blank: 4.00 + 7.50 + 1.00 + 8.00
        ("\n" * 100, 45),
        ("é" * 100, 140),
        ("ह" * 100, 240),
        ("\u1200" * 100, 290),  # Ethiopic
        ("Ա" * 100, 220),
        ("\ud800", 3),  # half a pair: 2.1
    ],
)
def test_each_kind_of_byte_has_its_weight(text: str, tokens: int) -> None:
    assert text_tokens(text) == tokens


def test_text_and_its_bytes_are_the_same() -> None:
    for text in PROSE.values():
        assert text_tokens(text) == text_tokens(text.encode())


def test_claude_counts_for_a_third_more() -> None:
    assert text_tokens("." * 100, "anthropic.claude-opus-4-5-v1:0") == text_tokens("." * 130)
    assert pieces_tokens(["." * 100], "Claude-Sonnet-4-5") == text_tokens("." * 130)


@pytest.mark.parametrize("model", ["mistral-large", "gemini-2.5-pro", "x-ai/grok-4", "codestral-latest", "gemma-3"])
def test_a_digit_is_a_token_where_the_vocabulary_says_so(model: str) -> None:
    assert text_tokens("7" * 100, model) == 100
    assert text_tokens("7" * 100, "gpt-5") == text_tokens("7" * 100, None) == 75


def test_what_is_known_of_models_is_bounded() -> None:
    for number in range(1000):
        weights(f"model-{number}")
        image_tokens(f"model-{number}")
    for cache in (_estimate._weights, _media._image_tokens, _input._writes_cache):
        assert cache.cache_info().currsize <= 256


def test_no_long_name_of_a_model_is_kept() -> None:
    long = "gpt-6" + "x" * 10**6
    tracemalloc.start()
    try:
        for number in range(50):
            weights(f"{long}{number}")
            image_tokens(f"{long}{number}", f"{long}{number}")
            caches_unasked({}, f"{long}{number}")
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 3 * 10**6


def test_what_stands_between_pieces_counts() -> None:
    assert pieces_tokens(["a"] * 101) > text_tokens("a" * 101)
    assert pieces_tokens([]) == 0
    assert pieces_tokens(["x" * 40]) == text_tokens("x" * 40)


def test_short_pieces_count_beside_a_long_one() -> None:
    long, short = PROSE["English"] * 20, ["short words of a message"] * 500
    assert pieces_tokens([long, *short]) >= text_tokens(long) + text_tokens(" ".join(short))


def test_a_blob_does_not_hide_behind_prose() -> None:
    blob, prose = "abcdefgh" * 1000, PROSE["English"] * 20
    assert pieces_tokens([prose, blob]) >= text_tokens(blob) + text_tokens(prose)


@given(pieces=st.lists(st.text(max_size=50), max_size=20), large=st.booleans())
def test_pieces_are_never_fewer_than_their_sum_without_words(pieces: list[str], large: bool) -> None:
    text = json.dumps(pieces, ensure_ascii=False)
    pieces = [*pieces, "z" * _estimate._SEPARATE] if large else pieces
    total = sum(len(piece.encode()) for piece in pieces)
    assert total / 20 <= pieces_tokens(pieces) <= 2 * (total + 2 * len(pieces)) + 1
    assert isinstance(text, str)


def test_fifty_megabytes_are_estimated() -> None:
    data = PROSE["English"].encode() * 90_000
    assert text_tokens(data) > len(data) / 5
