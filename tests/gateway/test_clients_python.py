"""Real clients from PyPI through ``token-budget run``: programs that know nothing of budgets, before a fake provider.

Each client's program runs once: all its calls, sync and async, then some that no budget pays for. What each test looks
at is one side of what it said, of the run's report, and of the provider's books.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator

import pytest

from clients import PROGRAMS, run_client
from proofs import PACE, Expected, Proof
from token_budget.cli._provider import Provider

for library in ("aiohttp", "psutil", "truststore"):
    pytest.importorskip(library)

OPENAI = {"images": 403, "speech": 403, "batches": 403, "fine-tuning": 403, "unknown path": 403, "unknown model": 400}
ANTHROPIC = {"batches": 403, "unknown model": 400}
CLIENTS = {  # the module, its program, and what that does
    "openai": ("openai", "openai_program.py", Expected(slow=4, stalls=3, refused=2, unbounded=OPENAI)),
    "anthropic": ("anthropic", "anthropic_program.py", Expected(slow=2, stalls=2, refused=2, unbounded=ANTHROPIC)),
    "google-genai": ("google.genai", "google_program.py", Expected(slow=2, stalls=2, refused=2)),
    "groq": ("groq", "groq_program.py", Expected(slow=2, stalls=2, refused=2)),
    "mistralai": ("mistralai.client", "mistral_program.py", Expected(slow=2, stalls=2, refused=2)),
    "litellm": ("litellm", "litellm_program.py", Expected(slow=5, stalls=4, refused=5)),
}


def needed(module: str) -> None:
    """Skip the test where a client is not installed, without importing it: that takes seconds."""
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        found = False
    if not found:
        pytest.skip(f"could not import {module!r}")


@pytest.fixture(scope="module", params=CLIENTS)
def proof(request: pytest.FixtureRequest) -> Iterator[Proof]:
    module, program, expected = CLIENTS[request.param]
    needed(module)
    with Provider(pace=PACE) as provider:
        ways = ["sync", "async", "refused", *(["unbounded"] if expected.unbounded else [])]
        ran = run_client([sys.executable, str(PROGRAMS / program), *ways], provider)
        assert ran.code == 0, ran.errors
        provider.close()
        assert provider.errors == []
        yield Proof(expected, ran, provider.bills, provider.requests)


def test_what_is_metered_is_what_the_provider_billed_to_the_nanodollar(proof: Proof) -> None:
    proof.metered_as_billed()


def test_every_answer_reaches_the_program_unchanged(proof: Proof) -> None:
    proof.answers_unchanged()


def test_a_stream_arrives_chunk_by_chunk_as_the_provider_sends_it(proof: Proof) -> None:
    proof.chunk_by_chunk()


def test_the_first_chunk_is_there_before_the_provider_sends_the_last(proof: Proof) -> None:
    proof.first_before_last()


def test_a_refusal_ends_in_one_request_and_the_provider_sees_none(proof: Proof) -> None:
    proof.refused_in_one_request()


def test_what_cannot_be_bounded_is_refused_in_one_request_so_that_the_cap_has_no_hole(proof: Proof) -> None:
    proof.unbounded_in_one_request()


def test_what_tells_no_usage_is_charged_at_least_as_it_is_billed() -> None:
    needed("google.genai")  # Gemini's answers tell nothing of what embedding costs
    with Provider() as provider:
        ran = run_client([sys.executable, str(PROGRAMS / "google_program.py"), "embed"], provider)
        assert ran.code == 0, ran.errors
        assert [said.text for said in ran.said] == [[[0.5, 0.25]]]
        (bill,) = provider.bills
        assert ran.report["spent"]["usd_nanos"] >= bill.nanos > 0
        assert ran.report["held"]["usd_nanos"] == 0
