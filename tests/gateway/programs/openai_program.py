"""A program with openai, as anyone writes it: ``python openai_program.py sync async refused unbounded``."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from openai import APIStatusError, AsyncOpenAI, OpenAI
from say import ENDLESS, QUESTION, WEATHER, say, weather

FUNCTION = {"name": "weather", "description": "The weather of a city.", "parameters": WEATHER}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "house-small", "messages": [{"role": "user", "content": text}], "max_tokens": 60, **more}


def sync() -> None:
    client = OpenAI()
    say("chat", client.chat.completions.create(**asked(QUESTION)).choices[0].message.content)
    for way in ("stall", "slow"):
        for chunk in client.chat.completions.create(**asked(f"[{way}] {QUESTION}", stream=True)):
            say(f"{way} sync", chunk.choices[0].delta.content)
    counted = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**asked(QUESTION, **counted)))
    say("counted", chunks[-1].usage.total_tokens)
    request = asked("[call-tool] What is the weather in Paris?", tools=TOOLS)
    while (message := client.chat.completions.create(**request).choices[0].message).tool_calls:
        call = message.tool_calls[0]
        result = {"role": "tool", "tool_call_id": call.id, "content": weather(call.function.arguments)}
        request["messages"] += [message.model_dump(exclude_none=True), result]
    say("tool", message.content)
    say("responses", client.responses.create(model="house-large", input=QUESTION).output_text)
    for way in ("stall", "slow"):
        with client.responses.stream(model="house-large", input=f"[{way}] {QUESTION}") as stream:
            for event in stream:
                say(f"{way} responses sync", event.delta if event.type == "response.output_text.delta" else None)
    embedded = client.embeddings.create(model="house-embed", input=["The sky", "is blue"])
    say("embeddings", [each.embedding for each in embedded.data])
    say("models", len(client.models.list().data))


async def a_sync() -> None:
    async with AsyncOpenAI() as client:
        answers = [client.chat.completions.create(**asked(f"{QUESTION} {number}")) for number in range(8)]
        for answer in await asyncio.gather(*answers):
            say("chat", answer.choices[0].message.content)
        for way in ("stall", "slow"):
            async for chunk in await client.chat.completions.create(**asked(f"[{way}] {QUESTION}", stream=True)):
                say(f"{way} async", chunk.choices[0].delta.content)
        request = asked("[call-tool] What is the weather in Paris?", tools=TOOLS)
        async with client.chat.completions.stream(**request) as stream:
            message = (await stream.get_final_completion()).choices[0].message
        call = message.tool_calls[0]
        result = {"role": "tool", "tool_call_id": call.id, "content": weather(call.function.arguments)}
        request["messages"] += [{"role": "assistant", "tool_calls": [call.model_dump()]}, result]
        say("tool", (await client.chat.completions.create(**request)).choices[0].message.content)
        slow = {"model": "house-large", "input": f"[slow] {QUESTION}", "stream": True}
        async for event in await client.responses.create(**slow):
            say("slow responses async", event.delta if event.type == "response.output_text.delta" else None)
        embedded = await client.embeddings.create(model="house-embed", input="The sky", encoding_format="float")
        say("embeddings", [each.embedding for each in embedded.data])


def refused() -> None:
    client = OpenAI()
    for call, more in {"chat": {}, "streamed": {"stream": True}}.items():
        try:
            client.chat.completions.create(**asked(QUESTION, max_tokens=ENDLESS, **more))
        except APIStatusError as error:
            say(f"refused {call}", str(error), status=error.status_code)


def unbounded() -> None:
    client = OpenAI()
    calls: dict[str, Any] = {
        "images": lambda: client.images.generate(model="house-large", prompt=QUESTION),
        "speech": lambda: client.audio.speech.create(model="house-large", voice="alloy", input=QUESTION),
        "batches": lambda: client.batches.create(
            input_file_id="file-1", endpoint="/v1/chat/completions", completion_window="24h"
        ),
        "fine-tuning": lambda: client.fine_tuning.jobs.create(model="house-large", training_file="file-1"),
        "unknown model": lambda: client.chat.completions.create(**asked(QUESTION, model="model-of-nobody")),
        "unknown path": lambda: client.post("/chat/new-thing", body=asked(QUESTION), cast_to=object),
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
