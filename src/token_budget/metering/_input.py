"""Input: the tokens of all that a request holds, and a guess of what its provider adds.

What always holds: every string, key and number of a body is counted, but for media, which are counted by their kind.
The arguments and results of tools reach a model as text, so there nothing counts as media, whatever it looks like. The
body is walked without recursion, and what has more pieces than anybody sends is counted whole, as text.

What a provider adds by itself is not in a body, so a guess is held for it: 8,000 tokens for a conversation or a prompt
that the provider keeps, 32,000 for a cache that the request names, 8,000 for each use of a tool that runs on the
provider's side. What it really was is known from the answer. For the images that a tool makes see `_images`.
"""

from __future__ import annotations

import functools
from typing import Any

from token_budget.metering._estimate import pieces_tokens
from token_budget.metering._media import KEYS, Media, take
from token_budget.metering._names import MAX_NAME

CONVERSATION = 8_000
CACHE = 32_000
TOOL_USE = 8_000
USES = 3  # of a tool on the provider's side that has no `max_uses`
_MOST_USES = 1000
_MOST_PIECES = 200_000  # looked at one by one, in about a tenth of a second

_MARKS = frozenset({"cache_control", "cachePoint", "prompt_cache_breakpoint"})  # of what a cache shall keep
_A_MESSAGE = 4
_TOOLS = 500  # what a provider writes around tools
_START = 8
# Fields by which a provider adds to the input. Most requests have none of them: one look tells.
_ADDING = frozenset(
    {"tools", "functions", "toolConfig", "prompt", "previous_response_id", "conversation"}
    | {"cachedContent", "cached_content"}
)
_MESSAGES = ("messages", "input", "contents", "chat_history", "requests")

_SEARCH_TOOLS = frozenset({"googleSearch", "google_search", "googleSearchRetrieval", "google_search_retrieval"})
_HOSTED_TOOLS = frozenset({"urlContext", "url_context", "codeExecution", "code_execution", "fileSearch", "file_search"})
_SEARCHING = ("search-preview", "search-api", ":online")  # in a model's name: it searches by itself
_HOSTED = ("web_fetch", "code_execution", "file_search", "code_interpreter", "mcp", "x_search", "tool_search")


_TEXTUAL = frozenset({"input", "args", "response", "json"})
_OF_TOOLS = ("input", "args", "response")  # beside a name: Anthropic, Bedrock, Gemini


@functools.lru_cache(maxsize=256)
def _writes_cache(model: str) -> bool:
    """Return whether a model of OpenAI's writes its input to a cache without being asked, for a fee: since gpt-5.6.

    What is kept is as long as the name, so the caller cuts it.
    """
    major, _, minor = model.lower().rpartition("/")[2].removeprefix("gpt-").partition("-")[0].partition(".")
    return (
        "gpt-" in model.lower()
        and major.isdecimal()
        and (int(major[:9]), int(minor[:9]) if minor.isdecimal() else 0) >= (5, 6)
    )


def caches_unasked(fields: dict[str, Any], model: str | None) -> bool:
    """Return whether the input may be billed as written to a cache although nothing in it is marked."""
    if model is None or not _writes_cache(model[:MAX_NAME]):
        return False
    options = fields.get("prompt_cache_options")
    return not (isinstance(options, dict) and options.get("mode") == "explicit")


class Input:
    """What one body brings to a model."""

    __slots__ = ("audio", "cached", "hour", "searches", "tokens", "untold_searches")

    def __init__(self, fields: dict[str, Any], body: bytes, model: str | None, estimate: str) -> None:
        media = Media()
        ids = {name: count for name in ("input", "prompt") if (count := _token_ids(fields.get(name)))}
        texts = {name: value for name, value in fields.items() if name not in ids} if ids else fields
        pieces = collected(texts, model, media)
        if pieces is None:
            media = Media()
            pieces = [body.decode()]
            self.cached = any(mark in pieces[0] for mark in _MARKS)
            self.hour = self.cached and "1h" in pieces[0]
        else:
            self.cached = not _MARKS.isdisjoint(pieces)
            self.hour = self.cached and "1h" in pieces
        self.audio = media.audio
        self.searches, others = _tool_uses(fields) if "tools" in fields else (0, 0)
        self.untold_searches = _untold_searches(fields, model)
        self.searches += self.untold_searches
        tokens = len(body) - media.characters if estimate == "bytes" else pieces_tokens(pieces, model)
        tokens += sum(ids.values()) + media.tokens + (self.searches + others) * TOOL_USE
        self.tokens = tokens + _around(fields)


def collected(value: object, model: str | None, media: Media) -> list[str] | None:
    """Return all keys, strings and numbers inside a value of JSON, but for media, which are added to ``media``.

    None if there are too many to look at one by one: then all of the body is text, its media too.
    """
    pieces: list[str] = []
    add, add_all = pieces.append, pieces.extend
    stack: list[Any] = [value]
    push_all, pop = stack.extend, stack.pop
    of_tools: list[Any] = []
    media_keys = KEYS
    while stack or of_tools:
        if not stack:  # all else is read: what is left is text
            push_all(of_tools)
            of_tools, media_keys = [], frozenset()
        node = pop()
        kind = type(node)
        if kind is str:
            add(node)
        elif kind is dict:
            add_all(node)
            if len(pieces) > _MOST_PIECES:
                return None
            if not _TEXTUAL.isdisjoint(node) and (name := _of_a_tool(node)):
                of_tools.append(node[name])
                node = {key: inner for key, inner in node.items() if key != name}
            push_all(node.values() if media_keys.isdisjoint(node) else take(node, model, media))
        elif kind is list:
            if len(node) + len(pieces) > _MOST_PIECES:
                return None
            push_all(node)
        else:
            add(str(node))
    return pieces


def _of_a_tool(node: dict[str, Any]) -> str | None:
    """Return the field of an object that holds the arguments or the result of a tool; None if there is none."""
    if "name" in node:
        return next((name for name in _OF_TOOLS if isinstance(node.get(name), dict)), None)
    return "json" if isinstance(node.get("json"), dict) else None  # Bedrock's results


def _token_ids(value: object) -> int:
    """Return how many tokens an input is that is given as ids of tokens, or as lists of them; 0 if it is text."""
    if not isinstance(value, list):
        return 0
    kinds = set(map(type, value))
    if kinds == {int}:
        return len(value)
    if kinds == {list} and all(set(map(type, one)) <= {int} for one in value):
        return sum(map(len, value))
    return 0


def _around(fields: dict[str, Any]) -> int:
    """Return the tokens that the provider adds: around messages and tools, and from what it keeps."""
    tokens = _START
    for name in _MESSAGES:
        value = fields.get(name)
        if isinstance(value, list):
            tokens += len(value) * _A_MESSAGE
    if _ADDING.isdisjoint(fields):
        return tokens
    if fields.get("tools") or fields.get("functions") or fields.get("toolConfig"):
        tokens += _TOOLS
    if fields.get("previous_response_id") or fields.get("conversation") or isinstance(fields.get("prompt"), dict):
        tokens += CONVERSATION
    if fields.get("cachedContent") or fields.get("cached_content"):
        tokens += CACHE
    return tokens


def _tool_uses(fields: dict[str, Any]) -> tuple[int, int]:
    """Return how often tools on the provider's side may run, of which answers tell: web searches, and others."""
    searches = others = 0
    usual = _times(fields.get("max_tool_calls"), USES)
    tools = fields.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if not isinstance(tool, dict):
            continue
        kind, uses = tool.get("type"), _times(tool.get("max_uses"), usual)
        name = kind if isinstance(kind, str) else ""
        if name.startswith("web_search") or not _SEARCH_TOOLS.isdisjoint(tool):
            searches += uses
        elif name.startswith(_HOSTED) or not _HOSTED_TOOLS.isdisjoint(tool):
            others += uses
    return searches, others


def _times(most: object, usual: int) -> int:
    """Return how often a tool may run by the limit of a request, if it has one that is a number."""
    return min(most, _MOST_USES) if type(most) is int and most >= 0 else usual


@functools.lru_cache(maxsize=256)
def _searches_itself(model: str) -> bool:
    """Return whether a model searches the web unasked, by its name."""
    return any(part in model for part in _SEARCHING)


def _untold_searches(fields: dict[str, Any], model: str | None) -> int:
    """Return the web searches that a request asks for by other ways than a tool: few answers tell of those."""
    parameters = fields.get("search_parameters")
    asked = (
        fields.get("web_search_options") is not None  # an empty object asks too
        or (parameters is not None and not (isinstance(parameters, dict) and parameters.get("mode") == "off"))
        or fields.get("plugins")
        or _searches_itself((model or "")[:MAX_NAME])
    )
    return USES if asked else 0
