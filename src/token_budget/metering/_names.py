"""Names: what else one model may be called, and what a pattern of a user's table matches.

Requests name models as vendors, clouds and frameworks do: ``openai/gpt-5``, ``models/gemini-2.5-pro``,
``us.anthropic.claude-sonnet-4-5-20250929-v1:0``, an ARN, a Vertex path. What always holds:

* Names are compared in lower case, without blanks around them.
* A name is only ever made shorter, so that each is tried a few times at most.
* A model that somebody trained is not its base: `is_own` tells, and nothing here gives its base's name.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_NAME = 512  # characters; an ARN of an inference profile has 150

# What stands before a "/" or a ":", and the provider that it means (ids as in genai-prices).
PREFIXES = {
    "amazon": "aws",
    "amazon-bedrock": "aws",
    "anthropic": "anthropic",
    "aws": "aws",
    "azure": "azure",
    "azure-openai": "azure",
    "azure_ai": "azure",
    "azure_openai": "azure",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "cerebras": "cerebras",
    "cloudflare": "cloudflare",
    "cohere": "cohere",
    "cohere_chat": "cohere",
    "databricks": "databricks",
    "deepseek": "deepseek",
    "fireworks": "fireworks",
    "fireworks_ai": "fireworks",
    "gemini": "google",
    "google": "google",
    "google-gla": "google",
    "google-vertex": "google",
    "google_genai": "google",
    "google_vertexai": "google",
    "groq": "groq",
    "meta": "meta",
    "minimax": "minimax",
    "mistral": "mistral",
    "mistral_ai": "mistral",
    "mistralai": "mistral",
    "models": "google",
    "moonshot": "moonshotai",
    "moonshotai": "moonshotai",
    "novita": "novita",
    "openai": "openai",
    "openrouter": "openrouter",
    "perplexity": "perplexity",
    "together": "together",
    "together_ai": "together",
    "vertex": "google",
    "vertex_ai": "google",
    "vertex_ai_beta": "google",
    "voyage": "voyageai",
    "x-ai": "x-ai",
    "xai": "x-ai",
    "zai": "zai",
}
# Bedrock ids: [region.]vendor.model
_REGIONS = {"us", "us-gov", "eu", "apac", "ap", "au", "jp", "ca", "sa", "me", "af", "global"}
_VENDORS = {
    "ai21": None,
    "amazon": None,
    "anthropic": "anthropic",
    "cohere": "cohere",
    "deepseek": "deepseek",
    "google": "google",
    "meta": None,
    "minimax": "minimax",
    "mistral": "mistral",
    "moonshot": "moonshotai",
    "moonshotai": "moonshotai",
    "nvidia": None,
    "openai": "openai",
    "qwen": None,
    "stability": None,
    "writer": None,
    "zai": "zai",
}
# How names begin that tell who made the model, although the list does not take them for its own.
_MAKERS = {"text-embedding-": "openai", "chatgpt-": "openai", "codex-": "openai", "sonar": "perplexity"}
_OWN_MARKS = (":ft:", "/ft:", ":ft-", "tunedmodels/", "/endpoints/", "custom-model/", "provisioned-model/")
_ARNS = ("foundation-model", "inference-profile")  # those that end in the name of a model
_DEEPEST = 4  # prefixes that are taken off one name

Name = tuple["str | None", str]  # the provider, None: whichever; and what the model is called there


def plain(name: str) -> str:
    """Return the name as it is compared."""
    return name.strip().lower()


def is_own(name: str) -> bool:
    """Tell whether the name is that of a fine-tuned, custom or provisioned model, which has no public price."""
    return name.startswith("ft:") or any(mark in name for mark in _OWN_MARKS)


def provider_of(name: str, provider: str | None) -> str | None:
    """Return the provider that serves it: the one given, else the one that its name says; None if neither does."""
    if provider is not None:
        return provider
    return next((found for found, _ in names(name, None) if found is not None), None)


def names(name: str, provider: str | None) -> list[Name]:
    """Return all that a plain name may mean, in the order to try: by provider, prefix and cloud, as it is, by maker."""
    found: list[Name] = [] if provider is None else [(provider, name)]
    short = name
    for _ in range(_DEEPEST):
        where, short = _without_prefix(short)
        if where is None:
            break
        found.append((where, short))
    found += [] if is_own(name) else _of_bedrock(short)
    found += [(None, name), *((None, each) for _, each in found)]
    found += [(where, each.partition("@")[0]) for where, each in found if "@" in each]  # Vertex: claude-opus-4@20250514
    found += [(maker, short) for start, maker in _MAKERS.items() if short.startswith(start)]
    return list(dict.fromkeys(one for one in found if one[1]))


def _without_prefix(name: str) -> tuple[str | None, str]:
    if name.startswith("arn:"):
        kind, _, model = name.partition("/")
        return ("aws", model) if kind.rpartition(":")[2] in _ARNS else (None, name)
    if name.startswith(("projects/", "publishers/")) and "publishers/" in name:
        return "google", name.partition("publishers/")[2].replace("/models/", "/", 1)
    for sign in "/:":
        head, _, rest = name.partition(sign)
        if rest and head in PREFIXES:
            return PREFIXES[head], rest
    return None, name


def _of_bedrock(name: str) -> list[Name]:
    """Return the meanings of a Bedrock id; none if it is not one."""
    whole = name.rpartition("/")[2]  # LiteLLM: bedrock/converse/..., bedrock/us-east-1/...
    region, _, rest = whole.partition(".")
    short = rest if region in _REGIONS else whole
    vendor, _, model = short.partition(".")
    if not model or vendor not in _VENDORS:
        return []
    return [("aws", whole), ("aws", short), *([(_VENDORS[vendor], model)] if _VENDORS[vendor] else [])]


# ---------------------------------------------------------------- patterns


class Patterns:
    """Patterns with ``*`` and what each stands for: the most specific one that matches wins.

    That is the one with the most characters that are not ``*``; among equals, the one that stands first.
    """

    __slots__ = ("_ordered",)

    def __init__(self, patterns: Iterable[str]) -> None:
        ordered = sorted(patterns, key=lambda pattern: -len(pattern.replace("*", "")))
        self._ordered = [(pattern, pattern.split("*")) for pattern in ordered]

    def match(self, name: str) -> str | None:
        """Return the pattern that wins; None if none matches."""
        return next((pattern for pattern, parts in self._ordered if _matches(parts, name)), None)


def _matches(parts: list[str], name: str) -> bool:
    first, *middle, last = parts
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    start, end = len(first), len(name) - len(last)
    for part in middle:
        found = name.find(part, start, end)
        if found < 0:
            return False
        start = found + len(part)
    return True
