"""Requests: from the body of a request to the most that it can cost, and the two changes that the meter makes to a body.

What always holds: what cannot be read or bounded is refused (`Unmetered`), and never held for too little; a change keeps
every other part of a body. Nothing here blocks, and nothing of a body is kept or shown but the names of its fields.

What a provider adds by itself is not in a body, so it is held by a guess: a conversation that continues on the server 8,000
tokens, a cache that is named 32,000, each use of a hosted tool 8,000. What it really was is known from the answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn

from token_budget.metering._ask import Ask
from token_budget.metering._estimate import pieces_tokens, text_tokens
from token_budget.metering._media import AUDIO_A_SECOND, KEYS, Media, audio_seconds, take
from token_budget.metering._refusals import Unmetered
from token_budget.metering._routes import Route
from token_budget.metering._usage import Usage

CONVERSATION = 8_000  # tokens held for what the server remembers
CACHE = 32_000  # tokens held for a cache that the request names
TOOL_USE = 8_000  # tokens held for what one use of a hosted tool reads
SEARCHES = 3  # uses held for a hosted tool that has no `max_uses`
_LARGEST = 10**12  # tokens: no model writes more

_A_MESSAGE = 4
_TOOLS = 500
_START = 8

# where a shape says how much may be written: paths of fields, the first of which is written to
_LIMITS: dict[str, tuple[tuple[str, ...], ...]] = {
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
    "bedrock-converse": (("inferenceConfig", "maxTokens"),),
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
_CHOICES: tuple[tuple[str, ...], ...] = (
    ("n",),
    ("best_of",),
    ("generationConfig", "candidateCount"),
    ("generationConfig", "candidate_count"),
    ("generation_config", "candidate_count"),
    ("generation_config", "candidateCount"),
)
_SILENT = frozenset(
    {"openai-embeddings", "gemini-embed", "vertex-predict", "ollama-embed", "cohere-embed"}
)  # no output
_UNCAPPED = frozenset({"openai-compact", "bedrock-invoke"})  # output, and no field of ours to limit it
_MESSAGES = ("messages", "input", "contents", "chat_history", "requests")
# A request to a path that other services have too is one to a model if it has all of one set of these.
_MARKS: dict[str, tuple[frozenset[str], ...]] = {
    "openai-completions": (frozenset({"model"}), frozenset({"prompt"})),
    "openai-responses": (frozenset({"model"}), frozenset({"input"}), frozenset({"prompt"})),
    "openai-embeddings": (frozenset({"model"}), frozenset({"input"})),
    "anthropic-messages": (frozenset({"model"}), frozenset({"messages"})),
    "anthropic-complete": (frozenset({"model"}), frozenset({"prompt"})),
    "cohere-chat": (frozenset({"model", "messages"}),),
}
_MODEL_ONLY = (frozenset({"model"}),)
_BILLED_STREAMS = frozenset({"mistral", "groq", "x-ai", "perplexity", "together", "fireworks"})  # usage unasked


def read(
    route: Route,
    headers: Mapping[str, str],
    body: bytes,
    *,
    estimate: Literal["typical", "bytes"] = "typical",
    default_output: int = 4096,
) -> Ask | None:
    """Return what a metered request asks for and the most that it can cost.

    Args:
        route: where it goes (`token_budget.metering._routes.route`).
        headers: its headers; names are looked up in lower case.
        body: the whole body, as it is sent.
        estimate: ``"bytes"`` holds a token for each byte of text, which no tokenizer of bytes can pass.
        default_output: tokens held for each answer where the request sets no limit.

    Returns:
        None if the path is one that other web services have too and the body is for none of the models: pass it on.

    Raises:
        Unmetered: The body cannot be read, or says how much may be written in a way that bounds nothing.
    """
    retried = headers.get("x-stainless-retry-count", "0") not in {"", "0"}
    if route.shape == "transcription":
        return _recording(route, headers, body, retried=retried)
    fields = _parsed(body)
    if route.vague and not any(mark <= fields.keys() for mark in _MARKS.get(route.shape, _MODEL_ONLY)):
        return None
    named = fields.get("model")
    model = route.model or (named if isinstance(named, str) else None)
    tokens, audio = _input(fields, body, model, estimate)
    uses = _tool_uses(fields)
    tokens += _unseen(fields) + sum(uses) * TOOL_USE
    limited, output = _output(route, fields, default_output)
    choices = _choices(route, fields)
    output *= choices
    cached, hour = _cache(body)
    return Ask(
        operation=route.operation,
        provider=route.provider,
        model=model,
        worst=Usage(
            input_tokens=tokens,
            output_tokens=output,
            cache_creation_input_tokens=tokens if cached else 0,
            cache_creation_1h_input_tokens=tokens if hour else 0,
            audio_input_tokens=audio,
            audio_output_tokens=output if _speaks(fields) else 0,
            web_search_requests=uses[0],
        ),
        limited=limited,
        choices=choices,
        stream=route.stream or _streams(route, fields),
        service_tier=_tier(fields),
        retried=retried,
        body=body,
    )


def with_output_limit(route: Route, body: bytes, limit: int) -> bytes:
    """Return the body with at most ``limit`` tokens of output an answer; a smaller limit that it has already stays.

    A shape without such a field (embeddings, transcriptions, a model of Bedrock's whose own format it is) comes back as it is.

    Raises:
        Unmetered: The body cannot be read, or cannot be written again.
    """
    if route.shape not in _LIMITS or route.shape in _UNCAPPED:
        return body
    fields = _parsed(body)
    paths = _LIMITS[route.shape]
    there = [path for path in paths if _at(fields, path) is not None]
    if not there:
        chosen = _field(route, fields, paths)
        for path in paths:
            _remove(fields, path)
        _set(fields, chosen, limit)
        return _written(fields)
    changed = False
    for path in there:
        count = _count(_at(fields, path), path[-1])
        if count < 0 or count > limit:
            _set(fields, path, limit)
            changed = True
    return _written(fields) if changed else body


def with_stream_usage(route: Route, _host: str, body: bytes) -> bytes | None:
    """Return the body asking for the usage at the end of a stream; None if there is nothing to ask for.

    Who reads the answer must take the extra chunk out again. Providers that send usage unasked are left alone.

    Raises:
        Unmetered: The body cannot be read, or cannot be written again.
    """
    if route.shape not in {"openai-chat", "openai-completions"} or route.provider in _BILLED_STREAMS:
        return None
    fields = _parsed(body)
    options = fields.get("stream_options")
    if not _streams(route, fields) or not isinstance(options, dict | None):
        return None
    if options is not None and options.get("include_usage") is True:
        return None
    fields["stream_options"] = {**(options or {}), "include_usage": True}
    return _written(fields)


# ---------------------------------------------------------------- JSON


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_decode: Callable[[str], Any] = json.JSONDecoder(parse_constant=_constant).decode


def _parsed(body: bytes) -> dict[str, Any]:
    """Return the object that a body is."""
    try:
        fields = _decode(body.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise Unmetered(
            f"the body of the request is no JSON that can be read ({type(error).__name__}: {error})"
        ) from None
    if not isinstance(fields, dict):
        raise Unmetered(f"the body of the request is a JSON {type(fields).__name__}, not an object")
    return fields


def _written(fields: dict[str, Any]) -> bytes:
    """Return the bytes of a body."""
    try:
        try:
            return json.dumps(fields, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can say
            return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise Unmetered(f"the body of the request cannot be written again ({type(error).__name__}: {error})") from None


def _at(fields: dict[str, Any], path: tuple[str, ...]) -> Any:
    """Return the value at a path of names; None if there is none."""
    value: Any = fields
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def _set(fields: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    for name in path[:-1]:
        inner = fields.get(name)
        if not isinstance(inner, dict):
            inner = fields[name] = {}
        fields = inner
    fields[path[-1]] = value


def _remove(fields: dict[str, Any], path: tuple[str, ...]) -> None:
    """Remove a field that is null."""
    holder = _at(fields, path[:-1])
    if isinstance(holder, dict):
        holder.pop(path[-1], None)


def _count(value: object, name: str) -> int:
    """Return a number of tokens or answers; -1 if it sets no limit."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Unmetered(f"{name} of the request is a {type(value).__name__}, not a whole number, so it bounds nothing")
    if value > _LARGEST:
        raise Unmetered(f"{name} of the request is larger than 10**12, so it bounds nothing")
    return max(value, -1)


# ---------------------------------------------------------------- the input


def _input(fields: dict[str, Any], body: bytes, model: str | None, estimate: str) -> tuple[int, int]:
    """Return the tokens of all that the body holds, and how many of them are audio."""
    found = Media()
    pieces: list[str] = []
    ids = _token_ids(fields)
    stack: list[Any] = [value for name, value in fields.items() if not (ids and name in {"input", "prompt"})]
    pieces.extend(fields)
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            pieces.append(node)
        elif isinstance(node, dict):
            pieces.extend(node)
            stack.extend(node.values() if KEYS.isdisjoint(node) else take(node, model, found))
        elif isinstance(node, list):
            stack.extend(node)
        else:
            pieces.append(str(node))
    messages = sum(len(value) for name in _MESSAGES if isinstance(value := fields.get(name), list))
    extra = _START + messages * _A_MESSAGE + found.tokens + ids
    extra += _TOOLS if fields.get("tools") or fields.get("functions") or fields.get("toolConfig") else 0
    if estimate == "bytes":
        return len(body) - found.characters + extra, found.audio
    return pieces_tokens(pieces, model) + extra, found.audio


def _token_ids(fields: dict[str, Any]) -> int:
    """Return how many tokens the input is if it is given as numbers of tokens, or lists of them; 0 if it is text."""
    total = 0
    for name in ("input", "prompt"):
        value = fields.get(name)
        if isinstance(value, list) and value and isinstance(value[0], int):
            total += len(value)
        elif isinstance(value, list) and value and all(isinstance(one, list) for one in value):
            total += sum(map(len, value))
    return total


def _unseen(fields: dict[str, Any]) -> int:
    """Return the tokens held for what the server adds from what it keeps."""
    tokens = CONVERSATION if fields.get("previous_response_id") or fields.get("conversation") else 0
    return tokens + (CACHE if fields.get("cachedContent") or fields.get("cached_content") else 0)


def _tool_uses(fields: dict[str, Any]) -> tuple[int, int]:
    """Return how often the provider's own tools may run: web searches, and others."""
    searches = SEARCHES if fields.get("web_search_options") or fields.get("search_parameters") else 0
    searches += SEARCHES if isinstance(fields.get("plugins"), list) else 0
    others = 0
    tools = fields.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if not isinstance(tool, dict):
            continue
        most = tool.get("max_uses")
        uses = most if type(most) is int and 0 <= most <= 1000 else SEARCHES
        kind = tool.get("type")
        if (isinstance(kind, str) and kind.startswith("web_search")) or not _SEARCH_TOOLS.isdisjoint(tool):
            searches += uses
        elif (isinstance(kind, str) and kind.startswith(_HOSTED)) or not _HOSTED_TOOLS.isdisjoint(tool):
            others += uses
    return searches, others


_SEARCH_TOOLS = frozenset({"googleSearch", "google_search", "googleSearchRetrieval", "google_search_retrieval"})
_HOSTED_TOOLS = frozenset({"urlContext", "url_context", "codeExecution", "code_execution", "fileSearch", "file_search"})
_HOSTED = ("web_fetch", "code_execution", "file_search", "code_interpreter", "mcp", "x_search", "tool_search")


def _cache(body: bytes) -> tuple[bool, bool]:
    """Return whether the body marks what a cache shall keep, and whether for an hour."""
    cached = b'"cache_control"' in body or b'"cachePoint"' in body
    return cached, cached and b'"1h"' in body


# ---------------------------------------------------------------- the output


def _output(route: Route, fields: dict[str, Any], default: int) -> tuple[bool, int]:
    """Return whether the request limits each answer, and the most tokens of one."""
    if route.shape in _SILENT:
        return True, 0
    limits = []
    for path in _LIMITS.get(route.shape, ()):
        value = _at(fields, path)
        if value is not None:
            limits.append(_count(value, path[-1]))
    if not limits or min(limits) < 0:
        return route.shape in _UNCAPPED, default
    return True, max(limits) or default  # what 0 means, differs


def _choices(route: Route, fields: dict[str, Any]) -> int:
    """Return how many answers the request asks for."""
    choices = 1
    for path in _CHOICES:
        value = _at(fields, path)
        if value is not None:
            choices = max(choices, _count(value, path[-1]))
    prompt = fields.get("prompt")
    if route.shape == "openai-completions" and isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        choices *= len(prompt)
    return choices


def _field(route: Route, fields: dict[str, Any], paths: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """Return the field for the limit of a body that has none."""
    if route.shape == "openai-chat":
        name = str(route.model or fields.get("model") or "").lower().rpartition("/")[2].removeprefix("ft:")
        return paths[1] if _reasons(name) else paths[0]
    if "generation_config" in fields:
        return paths[2]
    return paths[0]


def _reasons(name: str) -> bool:
    """Return whether OpenAI's model of that name refuses ``max_tokens``: all since o1."""
    if name.startswith(("gpt-3", "gpt-4", "gpt-oss", "gpt-35")):
        return False
    return name.startswith(("gpt-", "codex")) or (name[:1] == "o" and name[1:2].isdigit())


def _speaks(fields: dict[str, Any]) -> bool:
    """Return whether the answer may be audio."""
    wanted = fields.get("modalities") or _at(fields, ("generationConfig", "responseModalities")) or ()
    return isinstance(wanted, list) and any(str(one).lower() == "audio" for one in wanted)


def _streams(route: Route, fields: dict[str, Any]) -> bool:
    stream = fields.get("stream")
    return stream is True or (stream is None and route.shape in {"ollama-chat", "ollama-generate"})


def _tier(fields: dict[str, Any]) -> str | None:
    tier = fields.get("service_tier")
    return tier if isinstance(tier, str) else None


# ---------------------------------------------------------------- recordings


def _recording(route: Route, headers: Mapping[str, str], body: bytes, *, retried: bool) -> Ask:
    """Return what a form with a recording asks for."""
    texts, size = _form(headers.get("content-type", ""), body)
    seconds = audio_seconds(size, "")
    audio = seconds * AUDIO_A_SECOND
    model = texts.get("model")
    tokens = audio + text_tokens(texts.get("prompt", ""), model) + _START
    return Ask(
        operation=route.operation,
        provider=route.provider,
        model=model or route.model,
        worst=Usage(input_tokens=tokens, output_tokens=200 + seconds * 8, audio_input_tokens=audio),
        stream=texts.get("stream") == "true",
        retried=retried,
        body=body,
    )


def _form(content_type: str, body: bytes) -> tuple[dict[str, str], int]:
    """Return the fields of a form (multipart/form-data), and the bytes of its files."""
    _, found, rest = content_type.partition("boundary=")
    boundary = rest.split(";")[0].strip().strip('"').encode()
    if not found or not boundary or b"--" + boundary not in body:
        raise Unmetered("the body of the request is no form that can be read")
    texts: dict[str, str] = {}
    size = 0
    for part in body.split(b"--" + boundary)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        content = content.removesuffix(b"\r\n")
        name = head.partition(b' name="')[2].partition(b'"')[0].decode("utf-8", "replace")
        if b"filename" in head:
            size += len(content)
        else:
            texts[name] = content.decode("utf-8", "replace")
    return texts, size
