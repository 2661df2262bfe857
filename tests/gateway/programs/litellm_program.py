"""A program with litellm, as anyone writes it: ``python litellm_program.py [sync] [async] [refused]``."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # litellm asks the network for its prices otherwise
import litellm
from say import ENDLESS, QUESTION, WEATHER, say, weather

litellm.suppress_debug_info = True
FUNCTION = {"name": "weather", "description": "The weather of a city.", "parameters": WEATHER}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]
MODELS = (
    "openai/house-small",
    "anthropic/house-large",
    "gemini/house-large",
    "groq/house-small",
    "mistral/house-small",
)


def asked(model: str, text: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 60, **more}


def sync() -> None:
    for model in MODELS:
        say(f"chat {model}", litellm.completion(**asked(model, QUESTION)).choices[0].message.content)
        list(litellm.completion(**asked(model, QUESTION, stream=True)))  # the first one loads much
        for chunk in litellm.completion(**asked(model, f"[slow] {QUESTION}", stream=True)):
            say(f"slow sync {model}", chunk.choices[0].delta.content)
    request = asked(MODELS[1], "[call-tool] What is the weather in Paris?", tools=TOOLS)
    while (message := litellm.completion(**request).choices[0].message).tool_calls:
        call = message.tool_calls[0]
        result = {"role": "tool", "tool_call_id": call.id, "content": weather(call.function.arguments)}
        request["messages"] += [message.model_dump(exclude_none=True), result]
    say("tool", message.content)
    embedded = litellm.embedding(model="openai/house-embed", input=["The sky", "is blue"])
    say("embeddings", [each["embedding"] for each in embedded.data])
    say("responses", litellm.responses(model="openai/house-large", input=QUESTION).output[0].content[0].text)


async def a_sync() -> None:
    for answer in await asyncio.gather(*(litellm.acompletion(**asked(model, QUESTION)) for model in MODELS)):
        say("chat", answer.choices[0].message.content)
    for model in MODELS:
        if model.startswith("anthropic"):  # of the first events litellm shows none
            continue
        async for chunk in await litellm.acompletion(**asked(model, f"[stall] {QUESTION}", stream=True)):
            say(f"stall async {model}", chunk.choices[0].delta.content)


def refused() -> None:
    for model in MODELS:
        try:
            litellm.completion(**asked(model, QUESTION, max_tokens=ENDLESS))
        except Exception as error:  # noqa: BLE001 - its classes have no one base
            say(f"refused {model}", str(error), status=getattr(error, "status_code", None))


if __name__ == "__main__":
    ways = {"sync": sync, "async": lambda: asyncio.run(a_sync()), "refused": refused}
    for way in sys.argv[1:]:
        ways[way]()
