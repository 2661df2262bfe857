"""Many threads and tasks, three SDKs, and a provider that turns away, hangs, breaks and lies: the cap holds."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from matrix import calls, rows
from token_budget import BudgetExceeded, BudgetPool
from token_budget.cli._provider import Provider
from token_budget.metering import Meter, refusal

pytestmark = pytest.mark.filterwarnings("ignore")

THREADS, CALLS_OF_A_THREAD = 48, 5
TASKS, CALLS_OF_A_TASK = 200, 2
FAULTS = ["", "", "", "[429-once]", "[500]", "[hang]", "[reset]", "[cut]", "[no-usage]", "[gzip]"]
SDKS = ["openai", "anthropic", "google-genai"]


class Load:
    """The calls of one test, and what became of them."""

    def __init__(self, usd_cap: float, *, timeout: float, faults: list[str]) -> None:
        self.pool = BudgetPool(usd_cap=usd_cap)
        self.meter = Meter(self.pool, rows.PRICES, timeout=timeout)
        self.faults = faults
        self.refused = self.failed = self.answered = 0
        self.peak = 0
        self._lock = threading.Lock()

    def client(self, name: str, url: str, *, is_async: bool) -> Any:
        """Return a wrapped client whose calls give up soon and are tried again once."""
        module = pytest.importorskip(rows.SDKS[name].module)
        client = rows.SDKS[name].make(module, url, is_async)
        self.meter.wrap(client)
        if hasattr(client, "with_options"):
            patience = 0.5 if "[hang]" in self.faults else 60
            client = client.with_options(timeout=patience, max_retries=1)
        return client

    async def call(self, name: str, client: Any, number: int) -> None:
        """Make one call, of a kind and with a fault that its number says."""
        dice = random.Random(number)
        fault = dice.choice(self.faults)
        text = f"{'' if fault == '[hang]' and name == 'google-genai' else fault} {number}"
        streamed = dice.random() < 0.4
        try:
            await self._one(name, client, text, streamed=streamed, early=dice.random() < 0.1 and "[cut]" in self.faults)
        except Exception as error:  # noqa: BLE001 - SDKs have errors of their own
            with self._lock:
                if refusal(error) is None:
                    self.failed += 1
                else:
                    assert type(error) in {BudgetExceeded, *BudgetExceeded.__subclasses__()}
                    self.refused += 1
        else:
            with self._lock:
                self.answered += 1

    async def _one(self, name: str, client: Any, text: str, *, streamed: bool, early: bool) -> None:
        most = 1 if early else None
        asked = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": text}]}
        if name == "google-genai":
            make = client.models.generate_content_stream if streamed else client.models.generate_content
            made = make(model="m", contents=text, config={"max_output_tokens": 50})
        else:
            where = client.messages if name == "anthropic" else client.chat.completions
            made = where.create(**asked, **({"stream": True} if streamed else {}))
        await (calls.pieces(made, most) if streamed else calls.maybe(made))

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Sample what is used and held, as fast as one thread can."""
        over = threading.Event()

        def sample() -> None:
            while not over.wait(0.001):
                snapshot = self.pool.snapshot()
                self.peak = max(self.peak, snapshot.usd_used_nanos + snapshot.usd_reserved_nanos)

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def run(self, url: str) -> None:
        """Make all calls: those of the threads and those of the tasks at the same time."""
        clients = {name: self.client(name, url, is_async=False) for name in SDKS}

        def work(index: int) -> None:
            for turn in range(CALLS_OF_A_THREAD):
                name = SDKS[(index + turn) % len(SDKS)]
                call = functools.partial(self.call, name, clients[name], index * 100 + turn)
                rows.drive(call, is_async=False)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(THREADS)]
        for thread in threads:
            thread.start()
        asyncio.run(self._tasks(url))
        for thread in threads:
            thread.join()
        for client in clients.values():
            rows.drive(functools.partial(rows.closed, client, is_async=False), is_async=False)

    async def _tasks(self, url: str) -> None:
        whole = {name: self.client(name, url, is_async=True) for name in SDKS}

        async def work(index: int) -> None:
            for turn in range(CALLS_OF_A_TASK):
                name = SDKS[(index + turn) % len(SDKS)]
                client = rows.SDKS[name].twin(whole[name])
                await self.call(name, client, 100_000 + index * 100 + turn)

        await asyncio.gather(*(work(index) for index in range(TASKS)))
        for client in whole.values():
            await rows.closed(client, is_async=True)


CALLS = THREADS * CALLS_OF_A_THREAD + TASKS * CALLS_OF_A_TASK


def test_under_load_the_cap_holds_and_nothing_stays_open() -> None:
    load = Load(0.03, timeout=1, faults=FAULTS)
    with Provider() as provider, load.watched():
        load.run(provider.url)
    snapshot = load.pool.snapshot()
    assert load.refused + load.failed + load.answered == CALLS
    assert min(load.refused, load.failed, load.answered) > 0
    assert 0 < load.peak <= 30_000_000
    assert (snapshot.in_flight, snapshot.usd_reserved_nanos) == (0, 0)
    assert snapshot.usd_used_nanos >= provider.billed_nanos


def test_where_nothing_breaks_what_is_counted_is_what_was_billed() -> None:
    load = Load(0.03, timeout=60, faults=["", "[429-once]", "[gzip]"])
    with Provider() as provider, load.watched():
        load.run(provider.url)
    snapshot = load.pool.snapshot()
    assert (load.refused, snapshot.in_flight) == (0, 0)
    assert load.peak <= 30_000_000
    assert snapshot.usd_used_nanos == provider.billed_nanos
