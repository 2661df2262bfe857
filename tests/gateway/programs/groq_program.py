"""A program with groq, as anyone writes it: ``python groq_program.py [sync] [async] [refused]``."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from groq import APIStatusError, AsyncGroq, Groq
from say import ENDLESS, QUESTION, WEATHER, say, weather

FUNCTION = {"name": "weather", "description": "The weather of a city.", "parameters": WEATHER}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "house-small", "messages": [{"role": "user", "content": text}], "max_tokens": 60, **more}


def sync() -> None:
    client = Groq()
    say("chat", client.chat.completions.create(**asked(QUESTION)).choices[0].message.content)
    for way in ("stall", "slow"):
        for chunk in client.chat.completions.create(**asked(f"[{way}] {QUESTION}", stream=True)):
            say(f"{way} sync", chunk.choices[0].delta.content)
    request = asked("[call-tool] What is the weather in Paris?", tools=TOOLS)
    while (message := client.chat.completions.create(**request).choices[0].message).tool_calls:
        call = message.tool_calls[0]
        result = {"role": "tool", "tool_call_id": call.id, "content": weather(call.function.arguments)}
        request["messages"] += [message.model_dump(exclude_none=True), result]
    say("tool", message.content)


async def a_sync() -> None:
    async with AsyncGroq() as client:
        answers = [client.chat.completions.create(**asked(f"{QUESTION} {number}")) for number in range(8)]
        for answer in await asyncio.gather(*answers):
            say("chat", answer.choices[0].message.content)
        for way in ("stall", "slow"):
            async for chunk in await client.chat.completions.create(**asked(f"[{way}] {QUESTION}", stream=True)):
                say(f"{way} async", chunk.choices[0].delta.content)


def refused() -> None:
    client = Groq()
    for call, more in {"chat": {}, "streamed": {"stream": True}}.items():
        try:
            client.chat.completions.create(**asked(QUESTION, max_tokens=ENDLESS, **more))
        except APIStatusError as error:
            say(f"refused {call}", str(error), status=error.status_code)


if __name__ == "__main__":
    ways = {"sync": sync, "async": lambda: asyncio.run(a_sync()), "refused": refused}
    for way in sys.argv[1:]:
        ways[way]()
