"""Requests: from a request to the most that it can cost, and the two changes that the meter makes to a body.

What always holds: what cannot be read or bounded is refused (`Unmetered`) and never held for too little; a change keeps
every other field of a body. Nothing here blocks, and of a body nothing but names of fields is shown in an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from token_budget.metering._answers import IN_THE_US
from token_budget.metering._ask import Ask
from token_budget.metering._body import LARGEST, Path, drop, parsed, put, value_at, whole, with_field, written
from token_budget.metering._estimate import text_tokens
from token_budget.metering._images import NO_IMAGES, held
from token_budget.metering._input import Input, caches_unasked
from token_budget.metering._media import AUDIO_A_SECOND, audio_seconds
from token_budget.metering._refusals import Unmetered
from token_budget.metering._routes import Route
from token_budget.metering._usage import Usage, made

# Where a request says how much may be written, by its shape.
_LIMITS: dict[str, tuple[Path, ...]] = {
    "openai-chat": (("max_tokens",), ("max_completion_tokens",)),
    "openai-completions": (("max_tokens",),),
    "openai-responses": (("max_output_tokens",),),
    "anthropic-messages": (("max_tokens",),),
    "anthropic-complete": (("max_tokens_to_sample",),),
    "cohere-chat": (("max_tokens",),),
    "gemini-generate": (
        ("generationConfig", "maxOutputTokens"),
        ("generationConfig", "max_output_tokens"),
        ("generation_config", "max_output_tokens"),
        ("generation_config", "maxOutputTokens"),
    ),
    "bedrock-converse": (("inferenceConfig", "maxTokens"), ("additionalModelRequestFields", "max_tokens")),
    "bedrock-invoke": (
        ("max_tokens",),
        ("max_gen_len",),
        ("maxTokenCount",),
        ("inferenceConfig", "maxTokens"),
        ("inferenceConfig", "max_new_tokens"),
        ("textGenerationConfig", "maxTokenCount"),
    ),
    "ollama-chat": (("options", "num_predict"),),
    "ollama-generate": (("options", "num_predict"),),
}
_CANDIDATES: tuple[Path, ...] = (
    ("generationConfig", "candidateCount"),
    ("generationConfig", "candidate_count"),
    ("generation_config", "candidate_count"),
    ("generation_config", "candidateCount"),
)
_MODALITIES: tuple[Path, ...] = (
    ("modalities",),
    ("generationConfig", "responseModalities"),
    ("generationConfig", "response_modalities"),
    ("generation_config", "response_modalities"),
    ("generation_config", "responseModalities"),
)
_SPEAKING = frozenset({"modalities", "generationConfig", "generation_config"})
_CHOICES: dict[str, tuple[Path, ...]] = {
    "openai-chat": (("n",), ("best_of",)),
    "openai-completions": (("n",), ("best_of",)),
    "gemini-generate": _CANDIDATES,
}
_SILENT = frozenset(
    {"openai-embeddings", "gemini-embed", "vertex-predict", "ollama-embed", "cohere-embed"}
)  # no output
_UNCAPPED = frozenset({"openai-compact", "bedrock-invoke"})  # output, and no field of ours to limit it
# A request to a path that other services have too is one to a model if it has all of one set of these.
_MARKS: dict[str, tuple[frozenset[str], ...]] = {
    "openai-completions": (frozenset({"model"}), frozenset({"prompt"})),
    "openai-responses": (frozenset({"model"}), frozenset({"input"}), frozenset({"prompt"})),
    "openai-embeddings": (frozenset({"model"}), frozenset({"input"})),
    "anthropic-messages": (frozenset({"model"}), frozenset({"messages"})),
    "anthropic-complete": (frozenset({"model"}), frozenset({"prompt"})),
    "cohere-chat": (frozenset({"model", "messages"}),),
}
_CACHING = frozenset({"openai-chat", "openai-responses", "openai-compact"})
# Where a request names models that answer if the first does not: OpenRouter's, and that of LiteLLM's proxy.
_OTHERS = frozenset({"models", "fallbacks"})
_MODEL_ONLY = (frozenset({"model"}),)
_BILLED_STREAMS = frozenset({"mistral", "groq", "x-ai", "perplexity", "together", "fireworks"})  # usage unasked


def read(
    route: Route,
    headers: Mapping[str, str],
    body: bytes,
    *,
    estimate: Literal["typical", "bytes"] = "typical",
    default_output: int = 4096,
    fields: dict[str, Any] | None = None,
) -> Ask | None:
    """Return what a metered request asks for and the most that it can cost.

    Args:
        route: where it goes (`token_budget.metering._routes.route`).
        headers: its headers; names are looked up in lower case.
        body: the whole body, as it is sent.
        estimate: ``"bytes"`` holds a token for each byte of the body, which no tokenizer of bytes can pass. Media, and
            what the provider adds, are estimates with both.
        default_output: tokens held for each answer where the request sets no limit.
        fields: the object that the body is, if it is parsed already.

    Returns:
        None if the path is one that other web services have too and the body is for none of the models: pass it on.

    Raises:
        Unmetered: The body cannot be read, or says how much may be written in a way that bounds nothing.
    """
    retried = headers.get("x-stainless-retry-count", "0") not in {"", "0"}
    if route.shape == "transcription":
        return _recording(route, headers, body, retried=retried)
    if route.vague and body.lstrip()[:1] != b"{":
        return None
    fields = parsed(body) if fields is None else fields
    if route.vague and not any(mark <= fields.keys() for mark in _MARKS.get(route.shape, _MODEL_ONLY)):
        return None
    named = fields.get("model")
    model = route.model or (named if isinstance(named, str) else None)
    given = Input(fields, body, model, estimate)
    choices = _choices(route, fields)
    limited, output = _output(route, fields, default_output)
    output = _checked(output * choices)
    written_to_cache = given.cached or (route.shape in _CACHING and caches_unasked(fields, model))
    images = held(fields) if "tools" in fields and route.shape == "openai-responses" else NO_IMAGES
    return Ask(
        operation=route.operation,
        provider=route.provider,
        model=model,
        worst=made(
            (
                given.tokens + images.input,
                output + images.output,
                0,
                given.tokens if written_to_cache else 0,
                given.tokens if given.hour else 0,
                0,
                given.audio,
                output if not _SPEAKING.isdisjoint(fields) and _speaks(fields) else 0,
                given.searches,
                images.input,
                images.output,
            )
        ),
        limited=limited,
        choices=choices,
        stream=route.stream or _streams(route, fields),
        service_tier=_tier(fields),
        untold_searches=given.untold_searches,
        retried=retried,
        image_model=images.model,
        others=() if _OTHERS.isdisjoint(fields) else _others(fields),
        body=body,
    )


def is_json(route: Route, body: bytes) -> bool:
    """Return whether `read` parses such a body: a form is none, and no body that is for other web services."""
    return route.shape != "transcription" and not (route.vague and body.lstrip()[:1] != b"{")


def with_output_limit(route: Route, body: bytes, limit: int, fields: dict[str, Any] | None = None) -> bytes:
    """Return the body with at most ``limit`` tokens of output an answer; a smaller limit that it has already stays.

    ``fields`` is the object that the body is, if it is parsed already; it is changed with it.

    A shape without such a field (embeddings, transcriptions, Bedrock's ``invoke`` of other models than Claude) comes
    back as it is.

    Raises:
        Unmetered: The body cannot be read, or cannot be written again.
    """
    if route.shape not in _LIMITS or route.shape in _UNCAPPED:
        return body
    fields = parsed(body) if fields is None else fields
    paths = _LIMITS[route.shape]
    there = [path for path in paths if value_at(fields, path) is not None]
    if not there:
        chosen = _field(route, fields)
        if len(chosen) == 1 and not any(path[0] in fields for path in paths):
            return with_field(body, fields, chosen[0], limit)
        for path in paths:  # those that are null
            drop(fields, path)
        put(fields, chosen, limit)
        return written(fields)
    above = [path for path in there if not 0 <= whole(value_at(fields, path), path[-1]) <= limit]
    for path in above:
        put(fields, path, limit)
    return written(fields) if above else body


def with_stream_usage(
    route: Route,
    _host: str,
    body: bytes,
    *,
    api_version: str | None = None,
    fields: dict[str, Any] | None = None,
) -> bytes | None:
    """Return the body asking for the usage at the end of a stream; None if there is nothing to ask for.

    ``fields`` is the object that the body is, if it is parsed already; it is changed with it.

    Who reads the answer must take the extra chunk out again. Providers that send usage unasked are left alone, and so
    is Azure where the URL says an ``api_version`` that refuses the question.

    Raises:
        Unmetered: The body cannot be read, or cannot be written again.
    """
    if route.shape not in {"openai-chat", "openai-completions"} or route.provider in _BILLED_STREAMS:
        return None
    if route.provider == "azure" and api_version is not None and api_version < "2024-09-01":
        return None
    fields = parsed(body) if fields is None else fields
    options = fields.get("stream_options")
    if not _streams(route, fields) or not isinstance(options, dict | None):
        return None
    if options is not None and options.get("include_usage") is True:
        return None
    return with_field(body, fields, "stream_options", {**(options or {}), "include_usage": True})


# ---------------------------------------------------------------- the output


def _output(route: Route, fields: dict[str, Any], default: int) -> tuple[bool, int]:
    """Return whether the request limits each answer, and the most tokens of one."""
    if route.shape == "vertex-predict":
        _embeds(fields)
    if route.shape in _SILENT:
        return True, 0
    limits = []
    for path in _LIMITS.get(route.shape, ()):
        value = value_at(fields, path)
        if value is not None:
            limits.append(whole(value, path[-1]))
    predicted = 0
    if fields.get("prediction"):  # what the answer rejects of it is billed beside the answer
        predicted = text_tokens(written({"prediction": fields["prediction"]}), route.model)
    if not limits or min(limits) < 0:
        return route.shape in _UNCAPPED, default + predicted
    return True, (max(limits) or default) + predicted  # servers differ in what 0 means


def _checked(output: int) -> int:
    if output > LARGEST:
        raise Unmetered("the request asks for more than 10**12 tokens of output")
    return output


def _embeds(fields: dict[str, Any]) -> None:
    """Refuse what is no embedding: images and films are asked for at the same path, by a prompt."""
    instances = fields.get("instances")
    for one in instances if isinstance(instances, list) else ():
        if isinstance(one, dict) and "prompt" in one:
            raise Unmetered("images and films cannot be bounded before they are made")


def _choices(route: Route, fields: dict[str, Any]) -> int:
    """Return how many answers the request asks for."""
    choices = 1
    for path in _CHOICES.get(route.shape, ()):
        value = value_at(fields, path)
        if value is not None:
            choices = max(choices, whole(value, path[-1]))
    prompt = fields.get("prompt")
    if route.shape == "openai-completions" and isinstance(prompt, list) and not set(map(type, prompt)) <= {int}:
        choices *= len(prompt)  # each of several prompts is answered
    return choices


def _field(route: Route, fields: dict[str, Any]) -> Path:
    """Return the field for the limit of a body that has none."""
    paths = _LIMITS[route.shape]
    if route.shape == "openai-chat":
        name = str(route.model or fields.get("model")).lower().rpartition("/")[2].removeprefix("ft:")
        return paths[1] if _reasons(name) else paths[0]
    if route.shape == "gemini-generate" and "generation_config" in fields:
        return paths[2]
    return paths[0]


def _reasons(name: str) -> bool:
    """Return whether OpenAI's model of that name refuses ``max_tokens``: all since o1."""
    if name.startswith(("gpt-3", "gpt-4", "gpt-oss", "gpt-35")):
        return False
    return name.startswith(("gpt-", "codex")) or (name[:1] == "o" and name[1:2].isdigit())


def _speaks(fields: dict[str, Any]) -> bool:
    """Return whether the answer may be audio."""
    said = (value_at(fields, path) for path in _MODALITIES)
    return any(str(one).lower() == "audio" for wanted in said if isinstance(wanted, list) for one in wanted)


def _tier(fields: dict[str, Any]) -> str | None:
    """Return the service tier that is asked for, as answers tell it: Anthropic's fast mode and place are in it too."""
    tier = fields.get("service_tier") or fields.get("serviceTier")
    tier = tier.get("type") if isinstance(tier, dict) else tier  # Bedrock's
    tier = "fast" if fields.get("speed") == "fast" else tier if isinstance(tier, str) else None
    return (tier or "standard") + IN_THE_US if fields.get("inference_geo") == "us" else tier


def _others(fields: dict[str, Any]) -> tuple[str, ...]:
    """Return the models that may answer in place of the one that is asked for."""
    listed = [one for name in _OTHERS if isinstance(found := fields.get(name), list) for one in found]
    named = [one.get("model") if isinstance(one, dict) else one for one in listed]
    return tuple(sorted({one for one in named if isinstance(one, str) and one}))


def _streams(route: Route, fields: dict[str, Any]) -> bool:
    stream = fields.get("stream")
    return stream is True or (stream is None and route.shape in {"ollama-chat", "ollama-generate"})


# ---------------------------------------------------------------- recordings


def _recording(route: Route, headers: Mapping[str, str], body: bytes, *, retried: bool) -> Ask:
    """Return what a form with a recording asks for."""
    texts, files = _form(headers.get("content-type", ""), body)
    seconds = sum(audio_seconds(size, form) for form, size in files)
    audio = seconds * AUDIO_A_SECOND
    model = route.model or texts.get("model")
    return Ask(
        operation=route.operation,
        provider=route.provider,
        model=model,
        worst=Usage(
            input_tokens=audio + text_tokens(texts.get("prompt", ""), model) + 8,
            output_tokens=200 + seconds * 8,  # nobody speaks faster
            audio_input_tokens=audio,
        ),
        stream=texts.get("stream") == "true",
        retried=retried,
        body=body,
    )


def _form(content_type: str, body: bytes) -> tuple[dict[str, str], list[tuple[str, int]]]:
    """Return the fields of a form (multipart/form-data), and the formats and sizes of its files."""
    boundary = content_type.partition("boundary=")[2].split(";")[0].strip().strip('"').encode()
    if not boundary or b"--" + boundary not in body:
        raise Unmetered("the body of the request is no form that can be read")
    texts: dict[str, str] = {}
    files: list[tuple[str, int]] = []
    for part in body.split(b"--" + boundary)[1:]:
        head, _, content = part.partition(b"\r\n\r\n")
        content = content.removesuffix(b"\r\n")
        file = head.partition(b'filename="')[2].partition(b'"')[0].decode("utf-8", "replace")
        if b"filename" in head:
            files.append((file.rpartition(".")[2], len(content)))
        else:
            name = head.partition(b' name="')[2].partition(b'"')[0].decode("utf-8", "replace")
            texts[name] = content.decode("utf-8", "replace")
    return texts, files
