"""The providers that clients know by name, and the variables in which their clients look for the address.

What stands after the base in a variable was read in the clients' own sources (2026-11), since they disagree:

- with ``/v1``: openai 3.57 for Python, openai 6.49 and @ai-sdk/openai 3.0 for npm (``OPENAI_BASE_URL``); LiteLLM 1.110
  takes that or ``OPENAI_API_BASE``, and aider 0.86 the second.
- bare: anthropic 2.14, its npm package and Claude Code 2.1 (they add ``/v1/messages``); groq 1.7 (``/openai/v1/...``);
  google-genai 3.6 and gemini-cli 0.61 (``/v1/...``, ``/v1beta/...``); together 3.1, cerebras-cloud-sdk 1.91 and
  fireworks-ai 1.2 (``/v1/...``); perplexityai 0.46, cohere; openai's ``AzureOpenAI`` (``/openai/...``).
- LiteLLM's ``*_API_BASE`` stand for the whole address before ``/chat/completions``, and of Gemini before ``/models``.
  For chats with Mistral it reads ``MISTRAL_AZURE_API_BASE``, on Azure or not.

What reaches its provider without us, since no variable moves it: mistralai's and OpenRouter's own SDKs, xai-sdk (gRPC),
@ai-sdk/google, -groq and -mistral, LiteLLM's Cohere; and Bedrock and Vertex, whose requests are signed for their host.
gemini-cli with a Google login goes past us too; in print mode it takes our address only where its settings say
that it logs in by an API key (``security.auth.selectedType``).
@ai-sdk/anthropic wants ``/v1`` in ``ANTHROPIC_BASE_URL``, against all others: it is answered 404.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dialect = Literal["openai", "anthropic", "gemini"]


@dataclass(frozen=True)
class Family:
    """A provider: its address, its keys, and the variables that its clients read.

    Each of ``variables`` stands beside what its clients expect in it after ``url``. Without ``url`` it is an upstream
    only if the environment sets one of them.
    """

    name: str
    url: str | None
    keys: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]
    dialect: Dialect = "openai"


FAMILIES: tuple[Family, ...] = (
    Family(
        "openai",
        "https://api.openai.com",
        ("OPENAI_API_KEY",),
        (("OPENAI_BASE_URL", "/v1"), ("OPENAI_API_BASE", "/v1")),
    ),
    Family(
        "anthropic",
        "https://api.anthropic.com",
        ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
        (("ANTHROPIC_BASE_URL", ""), ("ANTHROPIC_API_BASE", "")),
        "anthropic",
    ),
    Family(
        "gemini",
        "https://generativelanguage.googleapis.com",
        ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GENERATIVE_AI_API_KEY"),
        (("GOOGLE_GEMINI_BASE_URL", ""), ("GEMINI_API_BASE", "/v1beta")),
        "gemini",
    ),
    Family(
        "groq",
        "https://api.groq.com",
        ("GROQ_API_KEY",),
        (("GROQ_BASE_URL", ""), ("GROQ_API_BASE", "/openai/v1")),
    ),
    Family(
        "mistral",
        "https://api.mistral.ai",
        ("MISTRAL_API_KEY", "MISTRAL_AZURE_API_KEY"),
        (("MISTRAL_API_BASE", "/v1"), ("MISTRAL_AZURE_API_BASE", "/v1")),
    ),
    Family("deepseek", "https://api.deepseek.com", ("DEEPSEEK_API_KEY",), (("DEEPSEEK_API_BASE", "/beta"),)),
    Family("openrouter", "https://openrouter.ai", ("OPENROUTER_API_KEY",), (("OPENROUTER_API_BASE", "/api/v1"),)),
    Family("xai", "https://api.x.ai", ("XAI_API_KEY",), (("XAI_API_BASE", "/v1"),)),
    Family(
        "together",
        "https://api.together.ai",
        ("TOGETHER_API_KEY", "TOGETHERAI_API_KEY"),
        (("TOGETHER_BASE_URL", ""), ("TOGETHER_AI_API_BASE", "/v1")),
    ),
    Family(
        "fireworks",
        "https://api.fireworks.ai",
        ("FIREWORKS_API_KEY", "FIREWORKS_AI_API_KEY", "FIREWORKSAI_API_KEY"),
        (("FIREWORKS_BASE_URL", ""), ("FIREWORKS_API_BASE", "/inference/v1")),
    ),
    Family(
        "cerebras",
        "https://api.cerebras.ai",
        ("CEREBRAS_API_KEY",),
        (("CEREBRAS_BASE_URL", ""), ("CEREBRAS_API_BASE", "/v1")),
    ),
    Family(
        "perplexity",
        "https://api.perplexity.ai",
        ("PERPLEXITY_API_KEY", "PERPLEXITYAI_API_KEY"),
        (("PERPLEXITY_BASE_URL", ""), ("PERPLEXITY_API_BASE", "")),
    ),
    Family("moonshot", "https://api.moonshot.ai", ("MOONSHOT_API_KEY",), (("MOONSHOT_API_BASE", "/v1"),)),
    Family("cohere", "https://api.cohere.com", ("CO_API_KEY", "COHERE_API_KEY"), (("CO_API_URL", ""),)),
    Family(
        "azure",
        None,
        ("AZURE_OPENAI_API_KEY", "AZURE_API_KEY"),
        (("AZURE_OPENAI_ENDPOINT", ""), ("AZURE_API_BASE", "")),
    ),
    Family("vllm", None, ("HOSTED_VLLM_API_KEY",), (("HOSTED_VLLM_API_BASE", "/v1"),)),
    Family("litellm-proxy", None, ("LITELLM_PROXY_API_KEY",), (("LITELLM_PROXY_API_BASE", ""),)),
)
