"""Where aiohttp is installed, google-genai's async client prefers it: while it is metered, it goes through httpx."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest

from token_budget import BudgetExceeded, BudgetPool
from token_budget.cli._provider import Provider
from token_budget.metering import Meter, _clients, budget_run

PRICES = {"gemini-house": (1, 4)}


@pytest.fixture
def anew() -> Any:
    """The patch, as it is put on for the first time."""
    _clients._patch_google.cache_clear()
    yield
    _clients._patch_google.cache_clear()


class ApiClient:
    """Plays the class of google-genai."""

    def __init__(self, *, prefers: bool = True) -> None:
        self.prefers = prefers
        self.as_it_was_made = self._use_aiohttp()
        self._async_client_session_request_args: dict[str, Any] = {}

    def _use_aiohttp(self) -> bool:
        return self.prefers


def test_it_goes_through_httpx_while_it_is_metered(anew: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("google.genai._api_client")
    module.BaseApiClient = type("BaseApiClient", (ApiClient,), {"_use_aiohttp": ApiClient._use_aiohttp})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    meter = Meter(BudgetPool(usd_cap=1), PRICES)
    with budget_run("one", meter=meter):
        client = module.BaseApiClient()
        assert client.as_it_was_made is True
        assert client._use_aiohttp() is False
        assert module.BaseApiClient(prefers=False)._use_aiohttp() is False
    assert client._use_aiohttp() is True
    with meter.patch():
        assert client._use_aiohttp() is False
    assert client._use_aiohttp() is True


@pytest.mark.parametrize("missing", ["aiohttp", "google.genai"])
def test_where_one_of_both_is_not_installed_nothing_is_imported(
    anew: Any, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else object())
    monkeypatch.setitem(sys.modules, "google.genai._api_client", None)
    _clients._patch_google()


def test_where_there_is_no_package_google_nothing_is_imported(anew: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> Any:
        if name == "google.genai":
            raise ModuleNotFoundError(name)
        return object()

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setitem(sys.modules, "google.genai._api_client", None)
    _clients._patch_google()


def test_the_real_one_counts_in_a_run_what_is_billed_and_is_refused_before_it_sends() -> None:
    pytest.importorskip("aiohttp")
    genai = pytest.importorskip("google.genai")

    async def main(provider: Provider) -> tuple[int, int, int]:
        client = genai.Client(api_key="test", http_options={"base_url": provider.url})  # made outside of the run
        config = {"max_output_tokens": 50}

        async def ask() -> None:
            await client.aio.models.generate_content(model="gemini-house", contents="Hello", config=config)

        with budget_run("one", meter=Meter(prices=PRICES)) as run:
            await ask()
        with pytest.raises(BudgetExceeded), budget_run("two", usd_cap=0.000001, meter=Meter(prices=PRICES, timeout=0)):
            await ask()
        await client.aio.aclose()
        return run.report()["tokens"], sum(provider.billed), len(provider.requests)

    with Provider() as provider:
        counted, billed, requests = asyncio.run(main(provider))
    assert counted == billed > 0
    assert requests == 1
