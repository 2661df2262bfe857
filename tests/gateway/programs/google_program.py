"""A program with google-genai, as anyone writes it: ``python google_program.py [sync] [async] [embed] [refused]``."""

from __future__ import annotations

import asyncio
import sys

from google import genai
from google.genai import errors, types
from say import ENDLESS, QUESTION, say, weather

LIMITED = types.GenerateContentConfig(max_output_tokens=60)
ENDLESSLY = types.GenerateContentConfig(max_output_tokens=ENDLESS)
MODEL = "house-large"


def tell_weather(city: str) -> str:
    """Return the weather of a city."""
    return weather({"city": city})


WITH_A_TOOL = types.GenerateContentConfig(max_output_tokens=60, tools=[tell_weather])


def sync() -> None:
    with genai.Client() as client:
        say("generate", client.models.generate_content(model=MODEL, contents=QUESTION, config=LIMITED).text)
        for way in ("stall", "slow"):
            asked = f"[{way}] {QUESTION}"
            for chunk in client.models.generate_content_stream(model=MODEL, contents=asked, config=LIMITED):
                say(f"{way} sync", chunk.text)
        asked = "[call-tool] What is the weather in Paris?"  # the SDK calls the function and hands its result back
        say("tool", client.models.generate_content(model=MODEL, contents=asked, config=WITH_A_TOOL).text)
        say("count_tokens", client.models.count_tokens(model=MODEL, contents=QUESTION).total_tokens)
        say("chat", client.chats.create(model=MODEL, config=LIMITED).send_message(QUESTION).text)


async def a_sync() -> None:
    async with genai.Client().aio as client:
        answers = [
            client.models.generate_content(model=MODEL, contents=f"{QUESTION} {number}", config=LIMITED)
            for number in range(8)
        ]
        for answer in await asyncio.gather(*answers):
            say("generate", answer.text)
        for way in ("stall", "slow"):
            asked = f"[{way}] {QUESTION}"
            chunks = await client.models.generate_content_stream(model=MODEL, contents=asked, config=LIMITED)
            async for chunk in chunks:
                say(f"{way} async", chunk.text)
        asked = "[call-tool] What is the weather in Paris?"
        answer = await client.models.generate_content(model=MODEL, contents=asked, config=WITH_A_TOOL)
        say("tool", answer.text)


def embed() -> None:
    with genai.Client() as client:
        embedded = client.models.embed_content(model="house-embed", contents=QUESTION)
        say("embed", [each.values for each in embedded.embeddings or ()])


def refused() -> None:
    with genai.Client() as client:
        try:
            client.models.generate_content(model=MODEL, contents=QUESTION, config=ENDLESSLY)
        except errors.APIError as error:
            say("refused generate", str(error), status=error.code)
        try:
            asked = f"{QUESTION} Tell me all."
            list(client.models.generate_content_stream(model=MODEL, contents=asked, config=ENDLESSLY))
        except errors.APIError as error:
            say("refused streamed", str(error), status=error.code)


if __name__ == "__main__":
    ways = {"sync": sync, "async": lambda: asyncio.run(a_sync()), "embed": embed, "refused": refused}
    for way in sys.argv[1:]:
        ways[way]()
