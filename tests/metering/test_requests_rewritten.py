"""The two changes that the meter makes to a body: a limit of the output, and the question for a stream's usage."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from token_budget.metering._refusals import Unmetered
from token_budget.metering._requests import read, with_output_limit, with_stream_usage
from token_budget.metering._routes import Route, route

OPENAI = "api.openai.com"
CHAT = route("POST", OPENAI, "/v1/chat/completions")
COMPLETIONS = route("POST", OPENAI, "/v1/completions")
RESPONSES = route("POST", OPENAI, "/v1/responses")
MESSAGES = route("POST", "api.anthropic.com", "/v1/messages")
COMPLETE = route("POST", "api.anthropic.com", "/v1/complete")
GEMINI = route("POST", "generativelanguage.googleapis.com", "/v1beta/models/gemini-2.5-pro:generateContent")
BEDROCK = "bedrock-runtime.us-east-1.amazonaws.com"
CONVERSE = route("POST", BEDROCK, "/model/amazon.nova-pro-v1:0/converse")
INVOKE = route("POST", BEDROCK, "/model/meta.llama3/invoke")
OLLAMA = route("POST", "localhost", "/api/chat")
GENERATE = route("POST", "localhost", "/api/generate")
COHERE = route("POST", "api.cohere.com", "/v2/chat")
AZURE = route("POST", "x.openai.azure.com", "/openai/deployments/o3-mine/chat/completions")
VLLM = route("POST", "10.0.0.7", "/v1/chat/completions")


def limited(where: Route, body: dict[str, Any], limit: int = 100) -> Any:
    raw = json.dumps(body).encode()
    return json.loads(with_output_limit(where, raw, limit))


# ---------------------------------------------------------------- a limit of the output


@pytest.mark.parametrize(
    ("where", "body", "after"),
    [
        (CHAT, {"model": "gpt-4o"}, {"max_tokens": 100}),
        (CHAT, {"model": "gpt-3.5-turbo"}, {"max_tokens": 100}),
        (CHAT, {"model": "ft:gpt-4o-mini:me"}, {"max_tokens": 100}),
        (CHAT, {"model": "o3-mini"}, {"max_completion_tokens": 100}),
        (CHAT, {"model": "ft:o4-mini:me"}, {"max_completion_tokens": 100}),
        (CHAT, {"model": "gpt-5.4-nano"}, {"max_completion_tokens": 100}),
        (CHAT, {"model": "codex-mini-latest"}, {"max_completion_tokens": 100}),
        (VLLM, {"model": "openai/gpt-oss-120b"}, {"max_tokens": 100}),
        (VLLM, {"model": "openai/GPT-5"}, {"max_completion_tokens": 100}),
        (VLLM, {"model": "meta-llama/Llama-3"}, {"max_tokens": 100}),
        (VLLM, {"model": "olmo-2"}, {"max_tokens": 100}),
        (VLLM, {"messages": []}, {"max_tokens": 100}),
        (AZURE, {"model": "gpt-4o"}, {"max_completion_tokens": 100}),
        (COMPLETIONS, {"model": "m", "prompt": "x"}, {"max_tokens": 100}),
        (RESPONSES, {"model": "gpt-5"}, {"max_output_tokens": 100}),
        (MESSAGES, {"model": "claude"}, {"max_tokens": 100}),
        (MESSAGES, {"model": "claude", "generation_config": {}}, {"max_tokens": 100}),
        (COMPLETE, {"model": "claude"}, {"max_tokens_to_sample": 100}),
        (COHERE, {"model": "command-a"}, {"max_tokens": 100}),
        (GEMINI, {"contents": []}, {"generationConfig": {"maxOutputTokens": 100}}),
        (GEMINI, {"generation_config": {"topK": 3}}, {"generation_config": {"topK": 3, "max_output_tokens": 100}}),
        (CONVERSE, {"messages": []}, {"inferenceConfig": {"maxTokens": 100}}),
        (OLLAMA, {"model": "m"}, {"options": {"num_predict": 100}}),
        (GENERATE, {"model": "m", "options": {"seed": 1}}, {"options": {"seed": 1, "num_predict": 100}}),
        (COMPLETIONS, {}, {"max_tokens": 100}),
    ],
)
def test_the_limit_goes_into_the_field_of_the_shape(where: Route, body: dict[str, Any], after: dict[str, Any]) -> None:
    assert limited(where, body) == {**body, **after}


@pytest.mark.parametrize(
    ("where", "body", "after"),
    [
        (CHAT, {"model": "gpt-4o", "max_tokens": None}, {"model": "gpt-4o", "max_tokens": 100}),
        (CHAT, {"model": "o3", "max_tokens": None}, {"model": "o3", "max_completion_tokens": 100}),
        (CHAT, {"model": "gpt-4o", "max_completion_tokens": None}, {"model": "gpt-4o", "max_tokens": 100}),
        (GEMINI, {"generationConfig": None}, {"generationConfig": {"maxOutputTokens": 100}}),
        (GEMINI, {"generationConfig": {"maxOutputTokens": None}}, {"generationConfig": {"maxOutputTokens": 100}}),
        (OLLAMA, {"options": None}, {"options": {"num_predict": 100}}),
    ],
)
def test_a_null_is_overridden(where: Route, body: dict[str, Any], after: dict[str, Any]) -> None:
    assert limited(where, body) == after


@pytest.mark.parametrize(
    ("where", "body", "after"),
    [
        (CHAT, {"max_tokens": 101}, {"max_tokens": 100}),
        (CHAT, {"max_completion_tokens": 10**6}, {"max_completion_tokens": 100}),
        (CHAT, {"max_tokens": 7, "max_completion_tokens": 101}, {"max_tokens": 7, "max_completion_tokens": 100}),
        (CHAT, {"max_tokens": -1}, {"max_tokens": 100}),
        (OLLAMA, {"options": {"num_predict": -2}}, {"options": {"num_predict": 100}}),
    ],
)
def test_a_larger_limit_is_lowered(where: Route, body: dict[str, Any], after: dict[str, Any]) -> None:
    assert limited(where, body) == after


@pytest.mark.parametrize(
    ("where", "body"),
    [
        (CHAT, b'{ "max_tokens": 100 }'),
        (CHAT, b'{ "max_completion_tokens" : 3, "max_tokens": null}'),
        (CHAT, b'{"max_tokens": 0}'),
        (route("POST", OPENAI, "/v1/embeddings"), b'{"input": "x"}'),
        (route("POST", OPENAI, "/v1/responses/compact"), b'{"input": "x"}'),
        (route("POST", OPENAI, "/v1/audio/transcriptions"), b"--form"),
        (INVOKE, b'{"prompt": "x"}'),
    ],
)
def test_a_body_that_needs_no_change_is_the_same_object(where: Route, body: bytes) -> None:
    assert with_output_limit(where, body, 100) is body


@pytest.mark.parametrize(
    ("where", "raw", "why"),
    [
        (CHAT, b"[]", "not an object"),
        (CHAT, b'{"max_tokens": "12"}', "max_tokens of the request is a str"),
        (GEMINI, b'{"generationConfig": [1]}', "generationConfig of the request is a list"),
        (GEMINI, b'{"a": 1e400}', "cannot be written again"),
    ],
)
def test_a_body_that_cannot_be_changed_is_refused(where: Route, raw: bytes, why: str) -> None:
    with pytest.raises(Unmetered, match=why):
        with_output_limit(where, raw, 100)


def test_every_byte_stays_where_the_field_is_new() -> None:
    raw = b' {"x": 1e400, "y":\t0.10000000000000000001, "z": "\\u00e9\\ud800 \xc3\xa9", "model": "gpt-4o"} \n'
    assert with_output_limit(CHAT, raw, 100) == raw.rstrip()[:-1] + b',"max_tokens":100}'


def test_half_of_a_pair_is_written_as_it_came() -> None:
    raw = b'{"z": "\\ud800 \xc3\xa9", "max_tokens": null, "model": "gpt-4o"}'
    after = with_output_limit(CHAT, raw, 100)
    assert json.loads(after) == {"z": "\ud800 \u00e9", "model": "gpt-4o", "max_tokens": 100}


def test_text_is_written_in_utf_8_and_without_blanks() -> None:
    raw = '{"messages": ["日本"], "max_tokens": null}'.encode()
    assert with_output_limit(VLLM, raw, 9) == '{"messages":["日本"],"max_tokens":9}'.encode()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["max_tokens", "max_completion_tokens", "generationConfig", "options", "model", "stream"])
LIMITS = st.none() | st.integers(-3, 300)
BODIES = st.dictionaries(st.text(max_size=6) | NAMES, VALUES | LIMITS, max_size=6)


@settings(max_examples=60)
@given(
    where=st.sampled_from([CHAT, MESSAGES, GEMINI, OLLAMA, RESPONSES, CONVERSE]),
    body=BODIES,
    limit=st.integers(1, 200),
    ascii_only=st.booleans(),
)
def test_after_it_the_output_is_bounded_and_all_else_is_the_same(
    where: Route, body: dict[str, Any], limit: int, ascii_only: bool
) -> None:
    raw = json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        after = with_output_limit(where, raw, limit)
    except Unmetered:
        return
    found = read(where, {}, after, default_output=limit)
    if found is not None:
        assert found.limited
        assert found.worst.output_tokens <= limit * found.choices
    assert with_output_limit(where, after, limit) == after
    ours = {
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "generationConfig",
        "options",
        "inferenceConfig",
    }
    kept = {name: value for name, value in json.loads(after).items() if name not in ours}
    assert kept == {name: value for name, value in body.items() if name not in ours}


# ---------------------------------------------------------------- the usage of a stream


def asking(where: Route, body: dict[str, Any], **options: Any) -> Any:
    after = with_stream_usage(where, "host", json.dumps(body).encode(), **options)
    return None if after is None else json.loads(after)


@pytest.mark.parametrize("where", [CHAT, COMPLETIONS, VLLM, AZURE])
@pytest.mark.parametrize(
    ("options", "after"),
    [
        ({}, {"include_usage": True}),
        ({"stream_options": None}, {"include_usage": True}),
        ({"stream_options": {}}, {"include_usage": True}),
        ({"stream_options": {"include_usage": False, "x": 1}}, {"include_usage": True, "x": 1}),
        ({"stream_options": {"include_usage": None}}, {"include_usage": True}),
    ],
)
def test_a_stream_is_asked_for_its_usage(where: Route, options: dict[str, Any], after: dict[str, Any]) -> None:
    body = {"model": "m", "stream": True, "messages": [{"content": "\u00e9"}], **options}
    assert asking(where, body) == {**body, "stream_options": after}


@pytest.mark.parametrize(
    ("where", "body"),
    [
        (CHAT, {"messages": []}),
        (CHAT, {"stream": False}),
        (CHAT, {"stream": None}),
        (CHAT, {"stream": "true"}),
        (CHAT, {"stream": True, "stream_options": {"include_usage": True}}),
        (CHAT, {"stream": True, "stream_options": "all"}),
        (RESPONSES, {"stream": True}),
        (MESSAGES, {"stream": True}),
        (OLLAMA, {"stream": True}),
        (route("POST", "api.mistral.ai", "/v1/chat/completions"), {"stream": True}),
        (route("POST", "api.groq.com", "/openai/v1/chat/completions"), {"stream": True}),
        (route("POST", "api.x.ai", "/v1/chat/completions"), {"stream": True}),
    ],
)
def test_nothing_is_asked_where_it_is_not_needed(where: Route, body: dict[str, Any]) -> None:
    assert asking(where, body) is None


def test_an_old_api_of_azure_is_not_asked() -> None:
    body = {"stream": True}
    assert asking(AZURE, body, api_version="2024-06-01") is None
    assert asking(AZURE, body, api_version="2024-10-21") is not None
    assert asking(AZURE, body, api_version="preview") is not None
    assert asking(CHAT, body, api_version="2024-06-01") is not None


def test_the_question_is_added_at_the_end_and_every_byte_stays() -> None:
    raw = b'{"x": 1e400, "stream": true, "z": "\\ud800"}\n'
    after = with_stream_usage(CHAT, OPENAI, raw)
    assert after == raw.rstrip()[:-1] + b',"stream_options":{"include_usage": true}}'


def test_a_body_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(Unmetered):
        with_stream_usage(CHAT, OPENAI, b"{")
