"""Clients of other languages through ``token-budget run``: npm's openai and @anthropic-ai/sdk, fetch of node, curl."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import PROGRAMS, environment, run_client
from node_packages import NotToBeHad, node_packages
from proofs import PACE, Expected, Proof
from token_budget.cli._provider import Provider
from token_budget.cli._provider_shapes import TEXT, WORDS

for library in ("aiohttp", "psutil", "truststore"):
    pytest.importorskip(library)

CLIENTS = {
    "openai": ("openai_program.cjs", Expected(slow=2, stalls=2, refused=2)),
    "@anthropic-ai/sdk": ("anthropic_program.cjs", Expected(slow=1, stalls=1, refused=2)),
    "fetch": ("fetch_program.cjs", Expected(slow=1, stalls=1, refused=1, tool=False)),
}


PACKAGED = ("openai", "@anthropic-ai/sdk")


def packages() -> str:
    """Return where the packages from npm are, or skip the test where they are not to be had."""
    try:
        return str(node_packages())
    except NotToBeHad as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module", params=CLIENTS)
def proof(request: pytest.FixtureRequest) -> Iterator[Proof]:
    program, expected = CLIENTS[request.param]
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    path = packages() if request.param in PACKAGED else ""
    with Provider(pace=PACE) as provider:
        environ = environment(provider, NODE_PATH=path)
        ran = run_client(["node", str(PROGRAMS / program)], provider, environ=environ)
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


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_a_budget_that_is_kept_in_a_file_counts_what_the_provider_billed_in_two_runs(tmp_path: Path) -> None:
    pool = f"sqlite:{tmp_path / 'budget.db'}#team"
    with Provider(pace=PACE) as provider:
        for _ in range(2):
            ran = run_client(["node", str(PROGRAMS / "fetch_program.cjs")], provider, "--pool", pool)
            assert ran.code == 0, ran.errors
            assert ran.report["refused"] == 1
        bills = [bill.nanos for bill in provider.bills]
        half = len(bills) // 2
        assert ran.report["spent"]["usd_nanos"] == sum(bills[half:]) == sum(bills[:half]) > 0
        assert ran.report["pool"]["usd_used_nanos"] == sum(bills)
        assert ran.report["pool"]["usd_reserved_nanos"] == 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.skipif(sys.platform == "win32", reason="the script is one of sh")
def test_a_script_with_curl_streams_and_spends_until_it_is_told_that_there_is_no_more() -> None:
    with Provider(pace=PACE) as provider:
        ran = run_client(["sh", str(PROGRAMS / "curl_program.sh")], provider, usd="0.0001")
        assert ran.code == 0, ran.errors
        slow, stalled = ran.calls("slow")["slow chat"], ran.calls("stall")["stall chat"]
        assert [said.text for said in slow] == list(WORDS)
        assert slow[-1].at - slow[0].at > PACE
        assert "".join(said.text for said in stalled) == TEXT
        statuses = [said.text for said in ran.calls()["asked"]]
        assert statuses[:-1] == ["200"] * (len(provider.bills) - 2)
        assert len(statuses) > 2
        assert statuses[-1] == "402"
        assert '"type":"invalid_request_error"' in ran.output.replace(" ", "")  # 400: the same body was just refused
        assert ran.report["refused"] == 2
        assert ran.report["spent"]["usd_nanos"] == provider.billed_nanos <= 100_000
        assert ran.report["held"]["usd_nanos"] == 0
        assert len(provider.requests) == len(provider.bills) == ran.report["calls"]
