"""Images: what OpenAI's tool ``image_generation`` uses, which is billed beside the answer, at an image model's prices.

What always holds: what the answer tells is counted as it is told; what it leaves open is read as the dearest that it
can be. What a request holds is a guess, for only the answer tells how many images were made, and of what size: one
image, of the size and quality that the tool asks for. Where it asks for none, that is the best quality and 1.6 million
pixels, the most that ``auto`` was seen to choose. Its input is 8,000 tokens, as for any tool of the provider's. A
request that forbids tools holds nothing.

Where the figures stand, as read on 2026-11-27:

* Prices: OpenAI's pages of its models and of pricing, and LiteLLM's list.
* The default model: ``types/responses/tool.py`` of openai 3.57.
* Tokens of an image of the models before gpt-image-2, and 100 for each partial image: OpenAI's guide "Image
  generation"; for gpt-image-1-mini its prices by size, which are more than the guide's tokens cost.
* For later models the guide has a calculator in place of a table. Its formula is in the post 1382699 of
  community.openai.com, and gives what the calculator and LiteLLM's prices by size say, for gpt-image-2.5 too.
* gpt-image-2.6: docs.laozhang.ai measured 3 to 4 times the tokens of 2.5 in low and medium quality, the same in high,
  and 5,800 where an image of 1024x1024 may have the quality that its prompt asks for.
* The size of ``auto``, 1254x1254: icebear0828/codex-proxy, pull request 703. An input of 7,918 tokens, most of them an
  image that was edited: Wei-Shaw/sub2api, issue 4644 and its tests.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from token_budget.metering._counts import Table, collect
from token_budget.metering._names import MAX_NAME, plain
from token_budget.metering._objects import fields

CALL = "image_generation_call"
DEFAULT = "gpt-image-2.6-sunburst"
DEAREST = "gpt-image-1"  # in every price
UNKNOWN = "?"  # the name of a model that may be any
INPUT = 8_000  # tokens that one image is made of
_PROMPT = 1_000  # of them, where no image is edited
_PARTIAL = 100
_MOST_PARTIALS = 3
_LONGEST = 64  # characters of a quality or a size

_SINCE_2 = {"input": 5, "cache_read": "1.25", "image_input": 8, "image_cache_read": 2, "output": 30}
_SINCE_1_5 = {**_SINCE_2, "output": 10, "image_output": 32}
# USD for a million tokens. The name of a snapshot begins with that of its model.
LINES: dict[str, dict[str, Any]] = {
    "gpt-image-1-mini": {
        "input": 2,
        "cache_read": "0.2",
        "image_input": "2.5",
        "image_cache_read": "0.25",
        "output": 8,
    },
    "gpt-image-1.5": _SINCE_1_5,
    DEAREST: {"input": 5, "cache_read": "1.25", "image_input": 10, "image_cache_read": "2.5", "output": 40},
    "gpt-image-2": _SINCE_2,
    "gpt-image-2.5-flare": _SINCE_2,
    "gpt-image-2.5-sunburst": _SINCE_2,
    "gpt-image-2.6-flare": _SINCE_2,
    "gpt-image-2.6-sunburst": _SINCE_2,
    "chatgpt-image-latest": _SINCE_1_5,
}

# Tokens of an image of 1024x1024, 1024x1536 and 1536x1024.
_SIZES = ("1024x1024", "1024x1536", "1536x1024")
_FIXED = {"low": (272, 408, 400), "medium": (1_056, 1_584, 1_568), "high": (4_160, 6_240, 6_208)}
_MINI = {"low": (625, 750, 750), "medium": (1_375, 1_875, 1_875), "high": (4_500, 6_500, 6_500)}
_OF_FIXED_SIZE = ("gpt-image-1", "chatgpt-image")
# Of the models since: how many parts the longer side has.
_AXES = {
    "gpt-image-2": {"low": 16, "medium": 48},
    "gpt-image-2.5": {"low": 16, "medium": 24, "high": 48, "xhigh": 64},
    "gpt-image-2.6": {"low": 36, "medium": 48, "high": 48, "xhigh": 64},
}
_DEAREST_AXES = {"low": 36, "medium": 48}
_MOST_PARTS = 96
_MOST_PIXELS = 8_294_400
_LARGEST = "2880x2880"  # of these pixels the square has the most tokens
_AUTO = "1254x1254"
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")

_Found = TypeVar("_Found")


class Images(NamedTuple):
    """The tokens that the images of one answer took and made. What was read from a cache is a part of the input."""

    model: str | None  # None: the answer does not tell
    text_input: int = 0
    image_input: int = 0
    text_read: int = 0
    image_read: int = 0
    text_output: int = 0
    image_output: int = 0

    @property
    def input(self) -> int:
        """All that they took."""
        return self.text_input + self.image_input

    @property
    def output(self) -> int:
        """All that was made."""
        return self.text_output + self.image_output


NO_IMAGES = Images(None)


# ---------------------------------------------------------------- requests


def held(request: Mapping[str, Any]) -> Images:
    """Return what is held for the image that a request with tools may make."""
    tool = _tool(request.get("tools"))
    if tool is None or request.get("max_tool_calls") == 0 or request.get("tool_choice") == "none":
        return NO_IMAGES
    model, size = _text(tool.get("model")), _text(tool.get("size"))
    if tool.get("output_format") == "gif":  # several pictures in one
        size = _LARGEST
    output = output_tokens(model, tool.get("quality"), _AUTO if size in {None, "auto"} else size)
    return Images(model, image_input=INPUT, image_output=output + _partials(tool))


def output_tokens(model: str | None, quality: object, size: object) -> int:
    """Return the tokens of one image: the most that it can have, where its model, quality or size is not known."""
    name = plain((model or "")[:MAX_NAME]).rpartition("/")[2]
    return _output_tokens(name, (_text(quality) or "")[:_LONGEST], (_text(size) or "")[:_LONGEST])


@functools.lru_cache(maxsize=256)
def _output_tokens(model: str, quality: str, size: str) -> int:
    table = _MINI if model.startswith("gpt-image-1-mini") else _FIXED
    tokens = table.get(quality, table["high"])
    fixed = tokens[_SIZES.index(size)] if size in _SIZES else max(tokens)
    if model.startswith(_OF_FIXED_SIZE):
        return fixed
    axes = of_family(_AXES, model)
    parts = (axes or _DEAREST_AXES).get(quality, _MOST_PARTS)
    sides = (_SIZE.fullmatch(size) or _SIZE.fullmatch(_LARGEST)).groups()  # type: ignore[union-attr]
    short, long = sorted(map(int, sides))
    across = max(1, (2 * parts * short + long) // (2 * long))  # however narrow it is
    grid = -(-parts * across * (2_000_000 + min(short * long, _MOST_PIXELS)) // 4_000_000)
    return grid if axes else max(grid, fixed)


def of_family(table: Mapping[str, _Found], model: str) -> _Found | None:
    """Return what a table has for a model, by the name of its family or of which it is a snapshot."""
    return next((found for name, found in table.items() if f"{model}-".startswith(f"{name}-")), None)


# ---------------------------------------------------------------- answers

_TOLD: Table = {
    "input_tokens": 0,
    "input_tokens_details": {"text_tokens": 1, "image_tokens": 2},
    "output_tokens": 3,
    "output_tokens_details": {"text_tokens": 4, "image_tokens": 5},
    "cached_tokens": 6,
    "cached_tokens_details": {"cached_text_tokens": 7, "cached_image_tokens": 8},
    "total_tokens": 9,
}


def is_made(call: Mapping[Any, Any]) -> bool:
    """Return whether an item of an answer is an image that was made: some servers say so by its result alone."""
    status = call.get("status")
    return call.get("type") == CALL and (status == "completed" or (status != "failed" and bool(call.get("result"))))


def brief(call: Mapping[Any, Any]) -> dict[str, Any]:
    """Return an item of an image that was made without the image: what its tokens are known by."""
    told = {name: (_text(call.get(name)) or "")[:_LONGEST] for name in ("action", "quality", "size", "output_format")}
    return {"type": CALL, "status": "completed", **told}


def used(answer: Mapping[Any, Any], usage: object, made: list[Mapping[Any, Any]]) -> Images | None:
    """Return what the images of an answer used; None if none was made.

    Args:
        answer: The answer around it, which may repeat the tool that it was asked with.
        usage: What its ``tool_usage.image_gen`` tells, if there is one. Calls whose usage is not known are not in it.
        made: The images in its output (`is_made`). They count where the usage tells of no output.

    Raises:
        UnknownUsage: a count is none.
    """
    found = _told(fields(usage) or {})
    if not made and not any(found[1:]):
        return None
    tool = _tool(answer.get("tools")) or {}
    model = _text(tool.get("model"))
    if found.output or not made:
        return found._replace(model=model)
    return Images(
        model,
        text_input=_PROMPT * len(made),
        image_input=INPUT * sum(one.get("action") == "edit" for one in made),
        image_output=sum(_output_of(one, model) + _partials(tool) for one in made),
    )


def _told(usage: Mapping[Any, Any]) -> Images:
    """Return what a usage tells: what it does not call text is an image, and a cache holds as much text as it can."""
    n = [0] * 10
    collect(usage, _TOLD, n)
    taken = max(n[0], n[1] + n[2])
    made = max(n[3], n[4] + n[5], n[9] - taken)
    read = min(max(n[6], n[7] + n[8]), taken)
    text_read = min(read - min(n[8], read, taken - n[1]), n[1])
    return Images(None, n[1], taken - n[1], text_read, read - text_read, n[4], made - n[4])


def _output_of(call: Mapping[Any, Any], model: str | None) -> int:
    size = _LARGEST if call.get("output_format") == "gif" else call.get("size")
    return output_tokens(model, call.get("quality"), size)


# ---------------------------------------------------------------- both


def _tool(tools: object) -> Mapping[Any, Any] | None:
    """Return the tool that makes images, among the tools of a request or of the answer that repeats them."""
    for one in tools if isinstance(tools, (list, tuple)) else ():
        tool = one if type(one) is dict else fields(one) or {}
        if tool.get("type") == "image_generation":
            return tool
    return None


def _partials(tool: Mapping[Any, Any]) -> int:
    """Return the tokens of the images that are sent before each is finished."""
    count = tool.get("partial_images")
    return _PARTIAL * (min(max(count, 0), _MOST_PARTIALS) if type(count) is int else 0)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
