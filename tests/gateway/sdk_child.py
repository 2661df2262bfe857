"""A program that calls a provider by a real SDK. The tests start it; they read what it prints.

``python sdk_child.py NAME``: stdin has a JSON list of ``[environment, call]``. For each it puts the variables into its
environment, makes one call that it expects to fail, and prints ``[class, bases, message]`` of the error as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

MESSAGES: Any = [{"role": "user", "content": "hello"}]


def call_openai(call: str) -> None:
    import openai

    with openai.OpenAI() as client:
        if call == "responses":
            client.responses.create(model="m", input="hello")
        elif call == "stream":
            list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True))
        elif call == "embeddings":
            client.embeddings.create(model="m", input="hello")
        else:
            client.chat.completions.create(model="m", messages=MESSAGES)


def call_anthropic(call: str) -> None:
    import anthropic

    with anthropic.Anthropic() as client:
        if call == "stream":
            with client.messages.stream(model="m", max_tokens=9, messages=MESSAGES) as stream:
                stream.until_done()
        else:
            client.messages.create(model="m", max_tokens=9, messages=MESSAGES)


def call_genai(call: str) -> None:
    from google import genai

    client = genai.Client()
    try:
        if call == "stream":
            list(client.models.generate_content_stream(model="m", contents="hello"))
        else:
            client.models.generate_content(model="m", contents="hello")
    finally:
        client.close()


def call_groq(call: str) -> None:
    import groq

    with groq.Groq() as client:
        client.chat.completions.create(model="m", messages=MESSAGES)


def call_mistral(call: str) -> None:
    from mistralai.client import Mistral

    with Mistral(api_key="k", server_url=os.environ["MISTRAL_URL"]) as client:
        client.chat.complete(model="m", messages=MESSAGES)


def call_litellm(call: str) -> None:
    import litellm

    litellm.suppress_debug_info = True
    litellm.completion(model=call, messages=MESSAGES)


CALLS = {
    "openai": call_openai,
    "anthropic": call_anthropic,
    "genai": call_genai,
    "groq": call_groq,
    "mistral": call_mistral,
    "litellm": call_litellm,
}


def main() -> None:
    before = dict(os.environ)
    for environment, call in json.load(sys.stdin):
        os.environ.clear()
        os.environ.update(before)
        os.environ.update(environment)
        try:
            CALLS[sys.argv[1]](call)
        except Exception as error:  # noqa: BLE001 - it is what the test looks at
            said = [type(error).__name__, [base.__name__ for base in type(error).__mro__], str(error)]
        else:
            said = ["", [], "no error"]
        print("\n" + json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
