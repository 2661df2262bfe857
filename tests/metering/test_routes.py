"""Routes: what a request is, by its method, host and path; what is not on the list passes untouched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_budget.metering import _routes
from token_budget.metering._routes import Route, provider_of, route

OPENAI, ANTHROPIC, GOOGLE = "api.openai.com", "api.anthropic.com", "generativelanguage.googleapis.com"
AZURE, BEDROCK, VERTEX = (
    "mine.openai.azure.com",
    "bedrock-runtime.us-east-1.amazonaws.com",
    "us-east5-aiplatform.googleapis.com",
)
PROJECT = "/v1/projects/p/locations/us-east5"

METERED = [
    # host, path, shape, provider, model, operation
    (OPENAI, "/v1/chat/completions", "openai-chat", "openai", None, "chat"),
    ("eu.api.openai.com", "/v1/chat/completions/", "openai-chat", "openai", None, "chat"),
    (OPENAI, "/v1/completions", "openai-completions", "openai", None, "text_completion"),
    (OPENAI, "/v1/responses", "openai-responses", "openai", None, "chat"),
    (OPENAI, "/v1/responses/compact", "openai-compact", "openai", None, "chat"),
    (OPENAI, "/v1/embeddings", "openai-embeddings", "openai", None, "embeddings"),
    (OPENAI, "/v1/audio/transcriptions", "transcription", "openai", None, "transcription"),
    ("api.groq.com", "/openai/v1/audio/translations", "transcription", "groq", None, "transcription"),
    (AZURE, "/openai/deployments/my-gpt5/chat/completions", "openai-chat", "azure", "my-gpt5", "chat"),
    (AZURE, "/openai/deployments/e/embeddings", "openai-embeddings", "azure", "e", "embeddings"),
    ("gateway", "/openai/deployments/d/completions", "openai-completions", "azure", "d", "text_completion"),
    (AZURE, "/openai/deployments/w/audio/transcriptions", "transcription", "azure", "w", "transcription"),
    (AZURE, "/openai/responses", "openai-responses", "azure", None, "chat"),
    ("x.services.ai.azure.com", "/models/chat/completions", "openai-chat", "azure", None, "chat"),
    ("x.services.ai.azure.com", "/anthropic/v1/messages", "anthropic-messages", "azure", None, "chat"),
    ("api.groq.com", "/openai/v1/chat/completions", "openai-chat", "groq", None, "chat"),
    ("api.mistral.ai", "/v1/chat/completions", "openai-chat", "mistral", None, "chat"),
    ("codestral.mistral.ai", "/v1/fim/completions", "openai-completions", "mistral", None, "text_completion"),
    ("api.deepseek.com", "/chat/completions", "openai-chat", "deepseek", None, "chat"),
    ("api.deepseek.com", "/beta/completions", "openai-completions", "deepseek", None, "text_completion"),
    ("api.deepseek.com", "/completions", "openai-completions", "deepseek", None, "text_completion"),
    ("api.x.ai", "/v1/chat/completions", "openai-chat", "x-ai", None, "chat"),
    ("us-east-1.api.x.ai", "/v1/responses", "openai-responses", "x-ai", None, "chat"),
    ("openrouter.ai", "/api/v1/chat/completions", "openai-chat", "openrouter", None, "chat"),
    ("openrouter.ai", "/api/v1/embeddings", "openai-embeddings", "openrouter", None, "embeddings"),
    ("gpu-7.example.org", "/v1/chat/completions", "openai-chat", None, None, "chat"),
    ("10.0.0.7", "/any/prefix/chat/completions", "openai-chat", None, None, "chat"),
    (ANTHROPIC, "/v1/messages", "anthropic-messages", "anthropic", None, "chat"),
    (ANTHROPIC, "/v1/complete", "anthropic-complete", "anthropic", None, "text_completion"),
    (BEDROCK, "/model/anthropic.claude-3/invoke", "anthropic-messages", "aws", "anthropic.claude-3", "chat"),
    (BEDROCK, "/model/amazon.nova-pro-v1:0/invoke", "bedrock-invoke", "aws", "amazon.nova-pro-v1:0", "chat"),
    (
        BEDROCK,
        "/model/us.amazon.nova-pro-v1%3A0/converse",
        "bedrock-converse",
        "aws",
        "us.amazon.nova-pro-v1:0",
        "chat",
    ),
    (
        BEDROCK,
        "/model/arn:aws:b:us:1:profile/x/converse",
        "bedrock-converse",
        "aws",
        "arn:aws:b:us:1:profile/x",
        "chat",
    ),
    (
        VERTEX,
        f"{PROJECT}/publishers/anthropic/models/claude-opus-4-5@20251101:rawPredict",
        "anthropic-messages",
        "google",
        "claude-opus-4-5@20251101",
        "chat",
    ),
    (VERTEX, f"{PROJECT}/publishers/mistralai/models/m:rawPredict", "openai-chat", "google", "m", "chat"),
    (
        VERTEX,
        f"{PROJECT}/publishers/google/models/gemini-3:generateContent",
        "gemini-generate",
        "google",
        "gemini-3",
        "generate_content",
    ),
    (VERTEX, f"{PROJECT}/endpoints/77:generateContent", "gemini-generate", "google", "77", "generate_content"),
    (VERTEX, f"{PROJECT}/endpoints/openapi/chat/completions", "openai-chat", "google", None, "chat"),
    (VERTEX, f"{PROJECT}/publishers/google/models/e:predict", "vertex-predict", "google", "e", "embeddings"),
    (GOOGLE, "/v1beta/models/g:generateContent", "gemini-generate", "google", "g", "generate_content"),
    (GOOGLE, "/v1beta/tunedModels/t:generateContent", "gemini-generate", "google", "t", "generate_content"),
    (GOOGLE, "/v1beta/models/e:embedContent", "gemini-embed", "google", "e", "embeddings"),
    (GOOGLE, "/v1beta/models/e:batchEmbedContents", "gemini-embed", "google", "e", "embeddings"),
    (GOOGLE, "/v1beta/openai/chat/completions", "openai-chat", "google", None, "chat"),
    (GOOGLE, "/v1beta/openai/embeddings", "openai-embeddings", "google", None, "embeddings"),
    ("localhost", "/api/chat", "ollama-chat", None, None, "chat"),
    ("localhost", "/api/generate", "ollama-generate", None, None, "text_completion"),
    ("localhost", "/api/embed", "ollama-embed", None, None, "embeddings"),
    ("localhost", "/api/embeddings", "ollama-embed", None, None, "embeddings"),
    ("api.cohere.com", "/v2/chat", "cohere-chat", "cohere", None, "chat"),
    ("api.cohere.ai", "/v2/embed", "cohere-embed", "cohere", None, "embeddings"),
]

UNMETERED = [
    (OPENAI, "/v1/batches"),
    (OPENAI, "/v1/videos"),
    (OPENAI, "/v1/images/generations"),
    (OPENAI, "/v1/audio/speech"),
    (OPENAI, "/v1/fine_tuning/jobs"),
    (OPENAI, "/v1/realtime/sessions"),
    (OPENAI, "/v1/realtime/client_secrets"),
    (OPENAI, "/v1/threads/runs"),
    (OPENAI, "/v1/threads/t_1/runs"),
    (OPENAI, "/v1/threads/t_1/runs/r_1/submit_tool_outputs"),
    (OPENAI, "/v1/evals/e_1/runs"),
    (AZURE, "/openai/deployments/d/images/generations"),
    ("localhost", "/v1/batches"),
    (ANTHROPIC, "/v1/messages/batches"),
    (ANTHROPIC, "/v1/sessions"),
    ("api.mistral.ai", "/v1/conversations"),
    ("api.mistral.ai", "/v1/agents/completions"),
    ("api.mistral.ai", "/v1/batch/jobs"),
    ("api.mistral.ai", "/v1/conversations/c_1"),
    ("api.mistral.ai", "/v1/conversations/c_1/restart"),
    ("api.cohere.com", "/v1/chat"),
    ("api.cohere.com", "/v1/embed"),
    ("api.cohere.com", "/v1/generate"),
    (OPENAI, "/v1/videos/v_1/remix"),
    (AZURE, "/openai/v1/videos/v_1/remix"),
    ("gateway", "/v1/videos/v_1/remix"),
    (OPENAI, "/v1/fine_tuning/jobs/j_1/resume"),
    (OPENAI, "/v1/engines/gpt-3.5-turbo-instruct/completions"),
    (ANTHROPIC, "/v1/sessions/s_1/events"),
    (GOOGLE, "/v1beta/cachedContents"),
    (VERTEX, f"{PROJECT}/cachedContents"),
    (GOOGLE, "/v1beta/models/aqa:generateAnswer"),
    (VERTEX, f"{PROJECT}/publishers/google/models/g:serverStreamingPredict"),
    ("api.voyageai.com", "/v1/multimodalembeddings"),
    ("api.perplexity.ai", "/search"),
    (GOOGLE, "/v1beta/models/veo:predictLongRunning"),
    (GOOGLE, "/v1beta/models/g:batchGenerateContent"),
    (GOOGLE, "/v1beta/interactions"),
]

FREE = [
    (OPENAI, "/v1/files"),
    (OPENAI, "/v1/moderations"),
    (OPENAI, "/v1/models"),
    (OPENAI, "/v1/responses/input_tokens"),
    (ANTHROPIC, "/v1/messages/count_tokens"),
    (GOOGLE, "/v1beta/models/g:countTokens"),
    (VERTEX, f"{PROJECT}/publishers/google/models/g:computeTokens"),
    (VERTEX, f"{PROJECT}/publishers/anthropic/models/count-tokens:rawPredict"),
    (BEDROCK, "/model/anthropic.claude-3/count-tokens"),
]

UNKNOWN = [
    ("testserver", "/"),
    ("testserver", ""),
    ("testserver", "/chat"),
    ("testserver", "/v1/chat"),
    ("testserver", "/orders/7/messages"),
    ("testserver", "/messages"),
    ("testserver", "/responses"),
    ("testserver", "/survey/responses"),
    ("testserver", "/embeddings"),
    ("testserver", "/beta/completions"),
    ("testserver", "/videos"),
    ("testserver", "/files"),
    ("testserver", "/sessions"),
    ("testserver", "/v1/conversations"),
    ("testserver", "/jobs/7:cancel"),
    ("testserver", "/models/7:publish"),
    ("testserver", "/shop:generateContent"),
    ("testserver", "/model/7"),
    ("testserver", "/model/7/rename"),
    ("testserver", "/runs"),
    ("testserver", "/threads/7/runs"),
    ("testserver", "/videos/7/remix"),
    ("testserver", "/v1/conversations/7"),
    ("testserver", "/v1/embed"),
    ("testserver", "/search"),
    (OPENAI, "/v1/fine_tuning/jobs/j_1/cancel"),
    ("graph.example.org", "/v17.0/1234/messages"),
    (OPENAI, "/v1/threads/t_1/messages"),
    (OPENAI, "/v1/chat/completions/chatcmpl-1"),
    (OPENAI, "/v1/responses/resp_1/cancel"),
    (OPENAI, "/v1/vector_stores"),
    (GOOGLE, "/v1beta/batches/7:cancel"),
]


@pytest.mark.parametrize(("host", "path", "shape", "provider", "model", "operation"), METERED)
def test_what_spends_is_metered(
    host: str, path: str, shape: str, provider: str | None, model: str | None, operation: str
) -> None:
    found = route("POST", host, path)
    assert (found.kind, found.shape, found.provider, found.model) == ("metered", shape, provider, model)
    assert (found.operation, found.stream) == (operation, False)


@pytest.mark.parametrize(("host", "path"), UNMETERED)
def test_what_cannot_be_bounded_is_unmetered_and_named(host: str, path: str) -> None:
    found = route("POST", host, path)
    assert found.kind == "unmetered"
    assert found.operation
    assert found.provider == provider_of(host)


@pytest.mark.parametrize(("host", "path"), FREE)
def test_what_costs_nothing_by_the_token_is_free(host: str, path: str) -> None:
    assert route("POST", host, path).kind == "free"


@pytest.mark.parametrize(("host", "path"), UNKNOWN)
def test_what_is_not_on_the_list_is_unknown(host: str, path: str) -> None:
    assert route("POST", host, path) == Route("unknown")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/batches", "/anything"])
def test_reading_and_deleting_are_free(path: str) -> None:
    for method in ("GET", "HEAD", "DELETE", "OPTIONS"):
        assert route(method, OPENAI, path).kind == "free"
    assert route("TRACE", OPENAI, path).kind == "unknown"
    assert route("PUT", OPENAI, path) == route("POST", OPENAI, path)


@pytest.mark.parametrize(
    ("host", "path"),
    [
        (GOOGLE, "/v1beta/models/g:streamGenerateContent"),
        (VERTEX, f"{PROJECT}/publishers/anthropic/models/claude:streamRawPredict"),
        (BEDROCK, "/model/anthropic.claude-3/invoke-with-response-stream"),
        (BEDROCK, "/model/amazon.nova/converse-stream"),
    ],
)
def test_some_paths_ask_for_a_stream(host: str, path: str) -> None:
    found = route("POST", host, path)
    assert (found.kind, found.stream) == ("metered", True)


@pytest.mark.parametrize(
    ("host", "path", "vague"),
    [
        ("testserver", "/v1/messages", True),
        ("testserver", "/v1/responses", True),
        ("testserver", "/api/chat", True),
        ("testserver", "/v2/chat", True),
        ("testserver", "/v1/chat/completions", False),
        ("testserver", "/openai/deployments/d/completions", False),
        (ANTHROPIC, "/v1/messages", False),
        (OPENAI, "/v1/responses", False),
        ("api.cohere.com", "/v2/chat", False),
    ],
)
def test_a_path_that_others_have_too_is_vague_unless_the_host_is_a_vendors(host: str, path: str, vague: bool) -> None:
    assert route("POST", host, path).vague is vague


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("API.OpenAI.com", "openai"),
        ("api.openai.com.", "openai"),
        ("us.api.openai.com", "openai"),
        ("notapi.openai.com", None),
        ("api.openai.com.evil.example", None),
        ("aiplatform.googleapis.com", "google"),
        ("europe-west4-aiplatform.googleapis.com", "google"),
        ("storage.googleapis.com", None),
        ("vpce-1.bedrock-runtime.eu-west-1.vpce.amazonaws.com", "aws"),
        ("bedrock-runtime.cn-north-1.amazonaws.com.cn", "aws"),
        ("bedrock-runtime.amazonaws.com.evil.example", None),
        ("s3.amazonaws.com", None),
        ("me.cognitiveservices.azure.com", "azure"),
        ("", None),
    ],
)
def test_the_host_says_who_is_paid(host: str, provider: str | None) -> None:
    assert provider_of(host) == provider


@given(
    method=st.sampled_from(["POST", "GET", "PATCH", "", "post"]),
    host=st.text(max_size=30) | st.sampled_from([OPENAI, AZURE, BEDROCK]),
    path=st.text(max_size=60)
    | st.lists(st.sampled_from([":", "/", "models", "model", "v1", "%", "runs"])).map("".join),
)
def test_any_text_has_a_route(method: str, host: str, path: str) -> None:
    assert route(method, host, path).kind in {"metered", "free", "unmetered", "unknown"}


@given(parts=st.lists(st.text("abcdefgh-0123456789", min_size=1, max_size=8), max_size=6))
def test_no_path_of_other_words_is_metered(parts: list[str]) -> None:
    assert route("POST", "testserver", "/" + "/".join(parts)).kind == "unknown"


def test_routes_are_kept_in_bounded_memory() -> None:
    for number in range(3000):
        route("POST", "testserver", f"/orders/{number}/messages")
    assert _routes._known.cache_info().currsize <= 1024
    before = _routes._known.cache_info().currsize
    assert route("POST", OPENAI, "/" + "v" * 600 + "/chat/completions").shape == "openai-chat"
    assert route("POST", "v" * 600, "/v1/chat/completions").shape == "openai-chat"
    assert _routes._known.cache_info().currsize == before
