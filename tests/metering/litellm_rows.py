"""Every kind of call of the real LiteLLM, refused or let through: prints a row for each. A program for test_litellm.py.

LiteLLM keeps threads, caches and event loops for the whole process, so it gets one of its own.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for prices

from token_budget import BudgetPool
from token_budget.adapters.litellm import install
from token_budget.cli._provider import Provider
from token_budget.metering import Meter, budget_run, refusal

litellm: Any = importlib.import_module("litellm")
SAID = [{"role": "user", "content": "Say hello."}]
CHAT, CLAUDE, GEMINI = "openai/house-small", "anthropic/claude-house", "gemini/gemini-house"
TEXT, EMBED = "text-completion-openai/house-small", "openai/house-embed"
PRICES = dict.fromkeys(("house-small", "claude-house", "gemini-house", "house-embed"), (1, 4))

Row = dict[str, Any]


def calls(url: str) -> dict[str, Callable[[], Any]]:
    """Return the calls by name."""
    openai = {"api_base": f"{url}/v1", "api_key": "test"}
    others = {"api_base": url, "api_key": "test"}

    async def drained(stream: Awaitable[Any]) -> list[Any]:
        return [piece async for piece in await stream]

    found: dict[str, Callable[[], Any]] = {}
    for vendor, model, where in (("openai", CHAT, openai), ("anthropic", CLAUDE, others), ("gemini", GEMINI, others)):
        options = {"model": model, "messages": SAID, "max_tokens": 50, **where}
        chat, achat = partial(litellm.completion, **options), partial(litellm.acompletion, **options)
        found[f"{vendor} chat"] = chat
        found[f"{vendor} stream"] = lambda chat=chat: list(chat(stream=True))  # type: ignore[misc]
        found[f"a{vendor} chat"] = achat
        found[f"a{vendor} stream"] = lambda achat=achat: drained(achat(stream=True))  # type: ignore[misc]
    asked = {"model": CHAT, "input": "Say hello.", "max_output_tokens": 50, **openai}
    found["responses"] = lambda: litellm.responses(**asked)
    found["responses stream"] = lambda: list(litellm.responses(stream=True, **asked))
    found["aresponses"] = lambda: litellm.aresponses(**asked)
    found["aresponses stream"] = lambda: drained(litellm.aresponses(stream=True, **asked))
    found["embedding"] = lambda: litellm.embedding(EMBED, ["hello"], **openai)
    found["aembedding"] = lambda: litellm.aembedding(EMBED, ["hello"], **openai)
    text = {"model": TEXT, "prompt": "Say hello.", "max_tokens": 50, **openai}
    found["text"] = lambda: litellm.text_completion(**text)
    found["atext"] = lambda: litellm.atext_completion(**text)
    return found


async def outcome(call: Callable[[], Any]) -> str:
    """Return "answered", or the type of the error."""
    try:
        answer = call()
        if asyncio.iscoroutine(answer):
            await answer
    except Exception as error:  # noqa: BLE001 - whatever LiteLLM raises is what is asked
        found = refusal(error)
        return type(error).__name__ if found is error or found is None else f"{type(error).__name__} (refusal inside)"
    return "answered"


async def row(name: str, call: Callable[[], Any], provider: Provider, usd_cap: float) -> Row:
    before, (billed_in, billed_out) = len(provider.requests), provider.billed
    meter = Meter(BudgetPool(usd_cap=usd_cap), PRICES, timeout=0)
    with budget_run(name, meter=meter) as run:
        how = await outcome(call)
    snapshot, report = meter.pool.snapshot(), run.report()
    after_in, after_out = provider.billed
    return {
        "outcome": how,
        "requests": len(provider.requests) - before,
        "billed": [after_in - billed_in, after_out - billed_out],
        "counted": [report["input_tokens"], report["output_tokens"]],
        "reserved": snapshot.usd_reserved_nanos,
    }


async def handled(provider: Provider) -> str:
    """Ask another model because the first was refused, and let the provider turn that one away."""
    call = calls(provider.url)["openai chat"]
    try:
        with budget_run("small", usd_cap=0.000001, meter=Meter(None, PRICES, timeout=0)):
            call()
    except Exception:  # noqa: BLE001
        provider.script("400")
        return await outcome(call)
    return "let through"


async def main() -> None:
    rows: dict[str, dict[str, Row]] = {}
    with Provider() as provider:
        for state in ("plain", "installed"):
            undo = install() if state == "installed" else None
            table = rows[state] = {}
            for name, call in calls(provider.url).items():
                if state == "installed" or name.startswith("openai"):
                    table[f"{name}: refused"] = await row(name, call, provider, 0.0000001)
                if state == "installed" and "text" not in name:  # the fake provider has no text completions
                    table[f"{name}: answered"] = await row(name, call, provider, 1)
        late = await handled(provider)
        errors = [repr(error) for error in provider.errors]
    assert undo is not None
    undo()
    json.dump({**rows, "handled": late, "errors": errors}, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
