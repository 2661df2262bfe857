"""Real clients from PyPI through ``token-budget run``: programs that know nothing of budgets, before a fake provider.

Each client's program runs once: all its calls, sync and async, then some that no budget pays for. What each test looks
at is one side of what it said, of the run's report, and of the provider's books.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from clients import PROGRAMS, Ran, run_client
from token_budget.cli._provider import Bill, Provider
from token_budget.cli._provider_shapes import TEXT, WORDS

pytest.importorskip("aiohttp")
pytest.importorskip("psutil")
pytest.importorskip("truststore")

PACE = 0.1  # seconds between two pieces of a slow stream


@dataclass(frozen=True)
class Client:
    """A client, and what its program says."""

    module: str
    program: str
    slow: int  # streams that are slow
    stalls: int  # streams that stall
    refused: int  # calls that no budget pays for
    status: int = 402


CLIENTS = {
    "openai": Client("openai", "openai_program.py", 4, 3, 2),
    "anthropic": Client("anthropic", "anthropic_program.py", 2, 2, 2),
    "google-genai": Client("google.genai", "google_program.py", 2, 2, 2),
    "groq": Client("groq", "groq_program.py", 2, 2, 2),
    "mistralai": Client("mistralai.client", "mistral_program.py", 2, 2, 2),
    "litellm": Client("litellm", "litellm_program.py", 5, 4, 5),
}


@dataclass(frozen=True)
class Proof:
    """A client that has run, and the books of its provider."""

    client: Client
    ran: Ran
    bills: list[Bill]
    requests: list[str]


def installed(module: str) -> bool:
    """Return whether a client can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False


@pytest.fixture(scope="module", params=CLIENTS)
def proof(request: pytest.FixtureRequest) -> Iterator[Proof]:
    client = CLIENTS[request.param]
    if not installed(client.module):  # without importing it: that takes seconds
        pytest.skip(f"{request.param} is not installed")
    with Provider(pace=PACE) as provider:
        command = [sys.executable, str(PROGRAMS / client.program), "sync", "async", "refused"]
        ran = run_client(command, provider)
        assert ran.code == 0, ran.errors
        provider.close()
        assert provider.errors == []
        yield Proof(client, ran, provider.bills, provider.requests)


def test_what_is_metered_is_what_the_provider_billed_to_the_nanodollar(proof: Proof) -> None:
    report, bills = proof.ran.report, proof.bills
    assert report["spent"]["usd_nanos"] == sum(bill.nanos for bill in bills) > 0
    assert report["spent"]["tokens"] == sum(bill.input_tokens + bill.output_tokens for bill in bills)
    assert report["held"] == {"usd": 0, "usd_nanos": 0, "tokens": 0}
    assert report["calls"] == len(bills) > 8
    assert set(report["by_model"]) == {bill.model for bill in bills}
    for model, part in report["by_model"].items():
        assert part["usd_nanos"] == sum(bill.nanos for bill in bills if bill.model == model)
    assert report["exit_code"] == 0


def test_every_answer_reaches_the_program_unchanged(proof: Proof) -> None:
    texts = [said.text for said in proof.ran.said if not said.call.startswith(("slow", "stall", "refused"))]
    assert len(texts) >= 8
    assert {text for text in texts if isinstance(text, str)} == {TEXT}
    assert all(vector == [0.5, 0.25] for text in texts if isinstance(text, list) for vector in text)
    assert "tool" in proof.ran.calls()  # the model called a tool and was given its result


def test_a_stream_arrives_chunk_by_chunk_as_the_provider_sends_it(proof: Proof) -> None:
    streams = proof.ran.calls("slow")
    assert len(streams) == proof.client.slow
    for call, chunks in streams.items():
        words = [chunk for chunk in chunks if chunk.text]
        assert [word.text for word in words] == list(WORDS), call
        assert words[-1].at - words[0].at > PACE, call  # they were sent 4 * PACE apart


def test_the_first_chunk_is_there_before_the_provider_sends_the_last(proof: Proof) -> None:
    streams = proof.ran.calls("stall")  # nothing lets such a stream go on but what the program prints of its beginning
    assert len(streams) == proof.client.stalls
    for call, chunks in streams.items():
        assert "".join(chunk.text or "" for chunk in chunks) == TEXT, call


def test_a_refusal_ends_in_one_request_and_the_provider_sees_none(proof: Proof) -> None:
    refusals = proof.ran.calls("refused")
    assert len(refusals) == proof.client.refused
    assert proof.ran.report["refused"] == proof.client.refused
    assert len(proof.requests) - len(proof.bills) == sum(path.endswith(FREE) for path in proof.requests)
    for call, (said,) in refusals.items():
        assert said.status == proof.client.status, call
        assert "budget" in said.text, call


FREE = ("/models", "/count_tokens", ":countTokens")
