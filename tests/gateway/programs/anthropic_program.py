"""A program with anthropic, as anyone writes it: ``python anthropic_program.py sync async refused unbounded``."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from anthropic import Anthropic, APIStatusError, AsyncAnthropic
from say import ENDLESS, QUESTION, WEATHER, say, weather

TOOLS: Any = [{"name": "weather", "description": "The weather of a city.", "input_schema": WEATHER}]


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "house-large", "messages": [{"role": "user", "content": text}], "max_tokens": 60, **more}


def sync() -> None:
    client = Anthropic()
    say("messages", client.messages.create(**asked(QUESTION)).content[0].text)
    for way in ("stall", "slow"):
        for event in client.messages.create(**asked(f"[{way}] {QUESTION}", stream=True)):
            say(f"{way} sync", event.delta.text if event.type == "content_block_delta" else None, event=event.type)
    with client.messages.stream(**asked(QUESTION)) as stream:
        say("stream helper", "".join(stream.text_stream))
    request = asked("[call-tool] What is the weather in Paris?", tools=TOOLS)
    while (message := client.messages.create(**request)).stop_reason == "tool_use":
        use = message.content[0]
        result = {"type": "tool_result", "tool_use_id": use.id, "content": weather(use.input)}
        request["messages"] += [
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": [result]},
        ]
    say("tool", message.content[0].text)
    say("count_tokens", client.messages.count_tokens(model="house-large", messages=request["messages"]).input_tokens)
    say("beta", client.beta.messages.create(**asked(QUESTION)).content[0].text)
    say("models", len(client.models.list().data))


async def a_sync() -> None:
    async with AsyncAnthropic() as client:
        answers = [client.messages.create(**asked(f"{QUESTION} {number}")) for number in range(8)]
        for answer in await asyncio.gather(*answers):
            say("messages", answer.content[0].text)
        for way in ("stall", "slow"):
            async for event in await client.messages.create(**asked(f"[{way}] {QUESTION}", stream=True)):
                say(f"{way} async", event.delta.text if event.type == "content_block_delta" else None, event=event.type)
        request = asked("[call-tool] What is the weather in Paris?", tools=TOOLS)
        async with client.messages.stream(**request) as stream:
            message = await stream.get_final_message()
        use = message.content[0]
        result = {"type": "tool_result", "tool_use_id": use.id, "content": weather(use.input)}
        request["messages"] += [
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": [result]},
        ]
        say("tool", (await client.messages.create(**request)).content[0].text)


def refused() -> None:
    client = Anthropic(timeout=60)  # without one it asks for a stream itself
    for call, more in {"messages": {}, "streamed": {"stream": True}}.items():
        try:
            client.messages.create(**asked(QUESTION, max_tokens=ENDLESS, **more))
        except APIStatusError as error:
            say(f"refused {call}", str(error), status=error.status_code)


def unbounded() -> None:
    client = Anthropic()
    request: Any = {"custom_id": "1", "params": asked(QUESTION)}
    calls: dict[str, Any] = {
        "batches": lambda: client.messages.batches.create(requests=[request]),
        "unknown model": lambda: client.messages.create(**asked(QUESTION, model="model-of-nobody")),
    }
    for call, make in calls.items():
        try:
            make()
        except APIStatusError as error:
            say(f"unbounded {call}", str(error), status=error.status_code)


if __name__ == "__main__":
    ways = {"sync": sync, "async": lambda: asyncio.run(a_sync()), "refused": refused, "unbounded": unbounded}
    for way in sys.argv[1:]:
        ways[way]()
