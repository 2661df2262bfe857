"""A program with mistralai, as anyone writes it: ``python mistral_program.py [sync] [async] [refused]``.

The SDK reads no variable for its address: a program that can be moved reads one itself, here the one of litellm.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from mistralai.client import Mistral
from mistralai.client.errors import MistralError
from say import ENDLESS, QUESTION, WEATHER, say, weather

FUNCTION = {"name": "weather", "description": "The weather of a city.", "parameters": WEATHER}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "house-small", "messages": [{"role": "user", "content": text}], "max_tokens": 60, **more}


def client() -> Any:
    return Mistral(api_key=os.environ["MISTRAL_API_KEY"], server_url=os.environ["MISTRAL_API_BASE"].removesuffix("/v1"))


def sync() -> None:
    with client() as mistral:
        say("chat", mistral.chat.complete(**asked(QUESTION)).choices[0].message.content)
        for way in ("stall", "slow"):
            for event in mistral.chat.stream(**asked(f"[{way}] {QUESTION}")):
                say(f"{way} sync", event.data.choices[0].delta.content or None)
        request = asked("[call-tool] What is the weather in Paris?", tools=TOOLS)
        while (message := mistral.chat.complete(**request).choices[0].message).tool_calls:
            call = message.tool_calls[0]
            result = {"role": "tool", "tool_call_id": call.id, "content": weather(call.function.arguments)}
            request["messages"] += [message, result]
        say("tool", message.content)
        embedded = mistral.embeddings.create(model="house-embed", inputs=["The sky", "is blue"])
        say("embeddings", [each.embedding for each in embedded.data])


async def a_sync() -> None:
    async with client() as mistral:
        answers = [mistral.chat.complete_async(**asked(f"{QUESTION} {number}")) for number in range(8)]
        for answer in await asyncio.gather(*answers):
            say("chat", answer.choices[0].message.content)
        for way in ("stall", "slow"):
            async for event in await mistral.chat.stream_async(**asked(f"[{way}] {QUESTION}")):
                say(f"{way} async", event.data.choices[0].delta.content or None)


def refused() -> None:
    with client() as mistral:
        for call, method in {"chat": mistral.chat.complete, "streamed": mistral.chat.stream}.items():
            try:
                method(**asked(QUESTION, max_tokens=ENDLESS))
            except MistralError as error:
                say(f"refused {call}", error.message, status=error.status_code)


if __name__ == "__main__":
    ways = {"sync": sync, "async": lambda: asyncio.run(a_sync()), "refused": refused}
    for way in sys.argv[1:]:
        ways[way]()
