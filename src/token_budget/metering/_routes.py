"""Routes: which requests spend on a model, by their method, host and path alone.

What always holds: a path that is not listed here is ``unknown`` and passes untouched, whatever its host: a test client
of a web framework is an httpx client too. The path decides what a request is, so that proxies, gateways and servers of
one's own are metered like the vendor; the host says only who is paid.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

Kind = Literal["metered", "free", "unmetered", "unknown"]


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes.

    ``metered``: its body is read and its cost is held. ``free``: it costs nothing by the token. ``unmetered``: it
    spends in a way that nobody can bound before. ``unknown``: not on the list.
    """

    kind: Kind
    operation: str = ""  # OpenTelemetry's `gen_ai.operation.name`; of an unmetered one, the tail of its path
    provider: str | None = None  # who is paid, by genai-prices' id; None: the host is not a vendor's
    shape: str = ""  # how its body is read
    model: str | None = None  # the model that the path names
    stream: bool = False  # the path itself asks for a stream
    vague: bool = False  # other web services have such a path too: its body decides


FREE = Route("free")
UNKNOWN = Route("unknown")

_SPENDING = frozenset({"POST", "PUT", "PATCH"})

_HOSTS = {
    "api.anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "google",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral",
    "codestral.mistral.ai": "mistral",
    "api.deepseek.com": "deepseek",
    "api.x.ai": "x-ai",
    "openrouter.ai": "openrouter",
    "api.openrouter.ai": "openrouter",
    "api.cohere.com": "cohere",
    "api.cohere.ai": "cohere",
    "api.together.xyz": "together",
    "api.together.ai": "together",
    "api.fireworks.ai": "fireworks",
    "api.perplexity.ai": "perplexity",
    "api.cerebras.ai": "cerebras",
    "api.moonshot.ai": "moonshotai",
    "api.moonshot.cn": "moonshotai",
    "api.novita.ai": "novita",
    "api.voyageai.com": "voyageai",
    "api.z.ai": "zai",
    "open.bigmodel.cn": "zhipuai",
    "api.minimax.io": "minimax",
    "api.githubcopilot.com": "github-copilot",
}
_DOMAINS = (
    (".openai.azure.com", "azure"),
    (".cognitiveservices.azure.com", "azure"),
    (".services.ai.azure.com", "azure"),
    (".azure-api.net", "azure"),
    ("aiplatform.googleapis.com", "google"),
    (".api.x.ai", "x-ai"),
    (".anthropic.com", "anthropic"),
)

# tail of the path -> shape, operation, whether other services have such a path too
_METERED = {
    "chat/completions": ("openai-chat", "chat", False),
    "completions": ("openai-completions", "text_completion", True),
    "fim/completions": ("openai-completions", "text_completion", False),
    "responses": ("openai-responses", "chat", True),
    "responses/compact": ("openai-compact", "chat", False),
    "embeddings": ("openai-embeddings", "embeddings", True),
    "messages": ("anthropic-messages", "chat", True),
    "complete": ("anthropic-complete", "text_completion", True),
    "api/chat": ("ollama-chat", "chat", True),
    "api/generate": ("ollama-generate", "text_completion", True),
    "api/embed": ("ollama-embed", "embeddings", True),
    "api/embeddings": ("ollama-embed", "embeddings", True),
    "v2/chat": ("cohere-chat", "chat", True),
    "v2/embed": ("cohere-embed", "embeddings", True),
    "audio/transcriptions": ("transcription", "transcription", False),
    "audio/translations": ("transcription", "transcription", False),
}
_VERSIONED = frozenset({"completions", "responses", "embeddings", "messages", "complete"})  # after a version alone
_FREE = frozenset({"models", "files", "uploads", "moderations", "messages/count_tokens", "responses/input_tokens"})
_UNMETERED = frozenset(
    {
        "batches",
        "messages/batches",
        "batch/jobs",
        "videos",
        "videos/generations",
        "videos/edits",
        "videos/extensions",
        "images/generations",
        "images/edits",
        "images/variations",
        "audio/speech",
        "fine_tuning/jobs",
        "fine-tunes",
        "realtime/sessions",
        "realtime/client_secrets",
        "realtime/transcription_sessions",
        "realtime/translations",
        "realtime/calls",
        "live/sessions",
        "threads/runs",
        "chatkit/sessions",
        "agents/sessions",
        "agents/completions",
        "interactions",
        "ocr",
        "rerank",
    }
)
# The ends of unmetered paths, "*" for an id: those that follow a version at any host, and those of one vendor.
_UNMETERED_BY_ID: tuple[tuple[str, ...], ...] = (
    ("videos", "*", "remix"),
    ("fine_tuning", "jobs", "*", "resume"),
    ("engines", "*", "completions"),
    ("threads", "*", "runs"),
    ("threads", "*", "runs", "*", "submit_tool_outputs"),
    ("evals", "*", "runs"),
)
_MANAGED: dict[str, tuple[tuple[str, ...], ...]] = {
    "anthropic": (("sessions",), ("sessions", "*", "events")),
    "cohere": (("v1", "chat"), ("v1", "embed"), ("v1", "generate"), ("v1", "summarize")),
    "google": (("cachedContents",),),
    "mistral": (("conversations",), ("conversations", "*"), ("conversations", "*", "restart")),
    "perplexity": (("search",),),
    "voyageai": (("multimodalembeddings",), ("contextualizedembeddings",)),
}

# the verb after the colon of a Google path -> shape, operation
_VERBS = {
    "generateContent": ("gemini-generate", "generate_content"),
    "streamGenerateContent": ("gemini-generate", "generate_content"),
    "embedContent": ("gemini-embed", "embeddings"),
    "batchEmbedContents": ("gemini-embed", "embeddings"),
    "predict": ("vertex-predict", "embeddings"),
}
_VERBS_UNMETERED = frozenset(
    {
        "predictLongRunning",
        "batchGenerateContent",
        "asyncBatchEmbedContent",
        "generateAnswer",
        "streamingPredict",
        "serverStreamingPredict",
    }
)
_BEDROCK = {
    "invoke": ("bedrock-invoke", False),
    "invoke-with-response-stream": ("bedrock-invoke", True),
    "converse": ("bedrock-converse", False),
    "converse-stream": ("bedrock-converse", True),
}


def route(method: str, host: str, path: str) -> Route:
    """Return what a request is, by its method, its host (without the port) and its path (without the query)."""
    if method not in _SPENDING:
        return FREE if method in {"GET", "HEAD", "DELETE", "OPTIONS"} else UNKNOWN
    return _known(host, path) if len(host) + len(path) < 512 else _find(host, path)  # a long path is not kept


def provider_of(host: str) -> str | None:
    """Return who is paid for what is sent to a host; None if the host is not a vendor's."""
    host = host.lower().rstrip(".")
    if host == "api.openai.com" or host.endswith(".api.openai.com"):
        return "openai"
    if "bedrock" in host and host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        return "aws"
    found = _HOSTS.get(host)
    return found or next((provider for domain, provider in _DOMAINS if host.endswith(domain)), None)


def _find(host: str, path: str) -> Route:
    if "%" in path:  # rarely: a client's own path is decoded
        from urllib.parse import unquote

        path = unquote(path)
    parts = [part for part in path.split("/") if part]
    if not parts:
        return UNKNOWN
    provider = provider_of(host)
    if ":" in parts[-1]:
        name, _, verb = parts[-1].rpartition(":")
        if found := _google(provider, parts, name, verb):
            return found
    if parts[0] == "model" and len(parts) > 2:
        return _bedrock(provider, "/".join(parts[1:-1]), parts[-1])
    for size in (2, 1):
        tail = "/".join(parts[-size:])
        if len(parts) >= size and (found := _by_tail(provider, parts[:-size], tail)):
            return found
    return _by_end(provider, parts)


_known = functools.lru_cache(maxsize=1024)(_find)


def _by_end(provider: str | None, parts: list[str]) -> Route:
    """Return the route of a path with ids in it, and of what one vendor alone has."""
    managed = [end for end in _MANAGED.get(provider or "", ()) if _ends_in(parts, end)]
    ends = managed or [
        end
        for end in _UNMETERED_BY_ID
        if _ends_in(parts, end) and _is_version(parts[: -len(end)][-1:], known=provider is not None)
    ]
    return Route("unmetered", "/".join(name for name in ends[0] if name != "*"), provider) if ends else UNKNOWN


def _ends_in(parts: list[str], end: tuple[str, ...]) -> bool:
    tail = parts[-len(end) :]
    return len(tail) == len(end) and all(name in {"*", part} for name, part in zip(end, tail, strict=True))


def _by_tail(provider: str | None, before: list[str], tail: str) -> Route | None:
    """Return the route of a path that ends in ``tail``; None if it is not on the list."""
    deployed = len(before) >= 2 and before[-2] == "deployments"
    versioned = deployed or _is_version(before[-1:], known=provider is not None)
    if tail in _METERED and (versioned or tail not in _VERSIONED):
        shape, operation, vague = _METERED[tail]
        model = before[-1] if deployed else None
        payee = provider or ("azure" if deployed else None)
        return Route("metered", operation, payee, shape, model, vague=vague and payee is None)
    if tail in _UNMETERED and (versioned or "/" in tail):
        return Route("unmetered", tail, provider)
    return Route("free", tail, provider) if tail in _FREE and versioned else None


def _is_version(before: list[str], *, known: bool) -> bool:
    """Return whether an API starts after this part: ``v1``, ``v1beta``, ``openai``; a vendor's may at its root."""
    if not before:
        return known
    part = before[0]
    return (part[0] == "v" and part[1:2].isdigit()) or part in {"openai", "anthropic"} or (known and part == "beta")


def _google(provider: str | None, parts: list[str], name: str, verb: str) -> Route | None:
    """Return the route of ``models/NAME:VERB``; None if it is not Google's."""
    if len(parts) < 2 or parts[-2] not in {"models", "tunedModels", "endpoints"}:
        return None
    if verb in {"countTokens", "computeTokens"} or name == "count-tokens":
        return Route("free", verb, provider)
    if verb in _VERBS_UNMETERED:
        return Route("unmetered", verb, provider)
    if verb in {"rawPredict", "streamRawPredict"}:
        shape = "anthropic-messages" if "anthropic" in parts else "openai-chat"
        return Route("metered", "chat", provider, shape, name, stream=verb[0] == "s")
    if verb not in _VERBS:
        return None
    shape, operation = _VERBS[verb]
    return Route("metered", operation, provider, shape, name, stream=verb[0] == "s")


def _bedrock(provider: str | None, model: str, verb: str) -> Route:
    """Return the route of ``/model/ID/VERB``."""
    if verb == "count-tokens":
        return Route("free", verb, provider)
    if verb not in _BEDROCK:
        return UNKNOWN
    shape, stream = _BEDROCK[verb]
    if shape == "bedrock-invoke" and "anthropic" in model:
        shape = "anthropic-messages"
    return Route("metered", "chat", provider, shape, model, stream)
