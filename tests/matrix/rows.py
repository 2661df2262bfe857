"""Runs the shapes of the SDKs that are installed here: ``python -m matrix.rows`` prints a line of JSON for each row."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib
import importlib.metadata
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from matrix.calls import (
    EQUAL,
    NOTHING,
    Shape,
    anthropic_shapes,
    chat_shapes,
    google_shapes,
    maybe,
    mistral_shapes,
    openai_shapes,
)
from token_budget import BudgetExceeded, BudgetPool
from token_budget.cli._provider import OTHERS, Provider
from token_budget.metering import Meter, budget_run

HOOKINGS = ("wrap", "run")
PRICES = {"m": (1, 4, "0.1")}  # as the provider bills it
assert (OTHERS.input, OTHERS.output, OTHERS.cached) == (1000, 4000, 100)


@dataclass
class Sdk:
    """One SDK: how its client is made, and what it can do."""

    package: str
    module: str
    make: Callable[[Any, str, bool], Any]
    shapes: Callable[[Any], list[Shape]]
    twin: Callable[[Any], Any] = lambda client: client  # what the async calls go through


def _stainless(kind: str, base: str) -> Callable[[Any, str, bool], Any]:
    def make(module: Any, url: str, is_async: bool) -> Any:
        cls = getattr(module, f"{'Async' if is_async else ''}{kind}")
        return cls(api_key="x", base_url=url + base, max_retries=0)

    return make


def _google(module: Any, url: str, is_async: bool) -> Any:
    return module.Client(api_key="x", http_options={"base_url": url, "retry_options": {"attempts": 1}})


def _mistral(module: Any, url: str, is_async: bool) -> Any:
    client = module.Mistral(api_key="x", server_url=url)
    client.is_async = is_async
    return client


SDKS = {
    "openai": Sdk("openai", "openai", _stainless("OpenAI", "/v1"), openai_shapes),
    "anthropic": Sdk("anthropic", "anthropic", _stainless("Anthropic", ""), anthropic_shapes),
    "groq": Sdk("groq", "groq", _stainless("Groq", ""), lambda _: chat_shapes()),
    "google-genai": Sdk("google-genai", "google.genai", _google, google_shapes, lambda client: client.aio),
    "mistralai": Sdk("mistralai", "mistralai.client", _mistral, mistral_shapes),
}


@dataclass
class Row:
    """One shape, as it went."""

    sdk: str
    version: str
    shape: str
    is_async: bool
    hooking: str
    counts: str
    billed: int = 0  # nanodollars
    counted: int = 0
    wrong: str = ""  # why the row is red


def drive(work: Callable[[], Any], *, is_async: bool) -> Any:
    """Run a coroutine function, in an event loop or without."""
    if is_async:
        return asyncio.run(work())
    try:
        work().send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("a sync client waits for an event loop")


def run(names: list[str], hookings: tuple[str, ...] = HOOKINGS, only: frozenset[str] = frozenset()) -> Iterator[Row]:
    """Run every shape of these SDKs that is installed here."""
    with Provider() as provider:
        for name in names:
            sdk = SDKS[name]
            try:
                module = importlib.import_module(sdk.module)
            except ImportError:
                continue
            for is_async in (False, True):
                probe = sdk.make(module, provider.url, is_async)
                gc.collect()
                gc.freeze()  # what is collected after a call is of that call
                for shape in sdk.shapes(probe):
                    for hooking in hookings if not only or shape.name in only else ():
                        yield one(name, module, shape, hooking, provider, is_async=is_async)
                gc.unfreeze()


def one(name: str, module: Any, shape: Shape, hooking: str, provider: Provider, *, is_async: bool) -> Row:
    """Run one shape, with a budget and without."""
    sdk, pool = SDKS[name], BudgetPool(usd_cap=10)
    row = Row(name, importlib.metadata.version(sdk.package), shape.name, is_async, hooking, shape.counts)
    provider.bills.clear()
    try:
        called(sdk, module, shape, hooking, pool, provider, is_async=is_async)
    except Exception as error:  # noqa: BLE001 - the row says it
        row.wrong = "" if shape.fails else f"raised {type(error).__name__}: {str(error)[:200]}"
        del error
    else:
        row.wrong = "did not fail" if shape.fails else ""
    gc.collect()
    snapshot = pool.snapshot()
    row.billed, row.counted = provider.billed_nanos, snapshot.usd_used_nanos
    row.wrong = row.wrong or judged(shape, row.billed, row.counted, snapshot.in_flight)
    if not row.wrong and shape.spends:
        row.wrong = refused(sdk, module, shape, hooking, provider, is_async=is_async)
    return row


def judged(shape: Shape, billed: int, counted: int, in_flight: int) -> str:
    """Return what is wrong with the books."""
    if in_flight:
        return f"{in_flight} still held"
    if shape.counts == NOTHING:
        return "" if counted == billed == 0 else f"counted {counted}, billed {billed}, and nothing was to be"
    if not billed:
        return "nothing was billed"
    if counted != billed and (shape.counts == EQUAL or counted < billed):
        return f"counted {counted}, billed {billed}"
    return ""


def called(
    sdk: Sdk, module: Any, shape: Shape, hooking: str, pool: BudgetPool, provider: Provider, *, is_async: bool
) -> None:
    """Make one call of a shape."""
    meter = Meter(pool, PRICES, timeout=0)

    async def work() -> None:
        client = sdk.make(module, provider.url, is_async)
        if hooking == "wrap":
            meter.wrap(client)
        try:
            await shape.run(sdk.twin(client) if is_async else client)
        finally:
            await closed(client, is_async=is_async)

    with budget_run("matrix", meter=meter) if hooking == "run" else contextlib.nullcontext():
        drive(work, is_async=is_async)


async def closed(client: Any, *, is_async: bool) -> None:
    """Close the connections of a client, as far as it lets one."""
    where = client.aio if is_async and hasattr(client, "aio") else client
    for name in ("aclose", "close"):
        if hasattr(where, name):
            with contextlib.suppress(Exception):
                await maybe(getattr(where, name)())
            return


def refused(sdk: Sdk, module: Any, shape: Shape, hooking: str, provider: Provider, *, is_async: bool) -> str:
    """Make the same call without a budget; return what is wrong with its refusal."""
    sent = len(provider.requests)
    pool = BudgetPool(usd_cap=0)
    started = time.monotonic()
    try:
        called(sdk, module, shape, hooking, pool, provider, is_async=is_async)
    except BudgetExceeded as error:
        if type(error) is not BudgetExceeded:
            return f"the refusal is {type(error).__name__}"
    except Exception as error:  # noqa: BLE001 - the row says it
        return f"the refusal arrives as {type(error).__name__}: {str(error)[:100]}"
    else:
        return "it was not refused"
    if len(provider.requests) != sent:
        return f"{len(provider.requests) - sent} requests after the refusal"
    if time.monotonic() - started > 5:
        return "it was tried again"
    return ""


def main() -> None:
    """Run what is asked for; print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sdks", nargs="*", default=list(SDKS))
    parser.add_argument("--shape", action="append", default=[], help="only the shapes of these names")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for row in run(options.sdks or list(SDKS), only=frozenset(options.shape)):
        print(json.dumps(asdict(row)), flush=True)


if __name__ == "__main__":
    main()
