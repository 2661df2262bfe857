"""How these programs print: a line of JSON for each thing that happens, at once."""

from __future__ import annotations

import json
import time
from typing import Any

QUESTION = "Why is the sky blue?"
ENDLESS = 10**9  # tokens of output, which no budget pays for
WEATHER: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def say(call: str, text: object, **more: object) -> None:
    """Print what a call gave."""
    print(json.dumps({"call": call, "text": text, "at": time.monotonic(), **more}), flush=True)


def weather(arguments: Any) -> str:
    """Be the tool that the model calls."""
    given = json.loads(arguments) if isinstance(arguments, str) else dict(arguments)
    return f"It rains in {given['city']}."
