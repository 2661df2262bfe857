"""What a client's run under ``token-budget run`` must have come to, whatever the client's language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from clients import Ran
from token_budget.cli._provider import Bill
from token_budget.cli._provider_shapes import TEXT, WORDS

PACE = 0.1  # seconds between two pieces of a slow stream
FREE = ("/models", "/count_tokens", ":countTokens")


@dataclass(frozen=True)
class Expected:
    """What a client's program does."""

    slow: int  # streams that are slow
    stalls: int  # streams that stall
    refused: int  # calls that no budget pays for
    tool: bool = True
    unbounded: Mapping[str, int] = field(default_factory=dict)  # calls whose cost nobody can bound, and their status


@dataclass(frozen=True)
class Proof:
    """A client that has run, and the books of its provider."""

    expected: Expected
    ran: Ran
    bills: list[Bill]
    requests: list[str]

    def metered_as_billed(self) -> None:
        """Check the run's report against the provider's books, to the nanodollar."""
        report, bills = self.ran.report, self.bills
        assert report["spent"]["usd_nanos"] == sum(bill.nanos for bill in bills) > 0
        assert report["spent"]["tokens"] == sum(bill.input_tokens + bill.output_tokens for bill in bills)
        assert report["held"] == {"usd": 0, "usd_nanos": 0, "tokens": 0}
        assert report["calls"] == len(bills) > 2
        assert set(report["by_model"]) == {bill.model for bill in bills}
        for model, part in report["by_model"].items():
            assert part["usd_nanos"] == sum(bill.nanos for bill in bills if bill.model == model)
        assert report["exit_code"] == 0

    def answers_unchanged(self) -> None:
        """Check what the program was told, tools and vectors too."""
        texts = [
            said.text for said in self.ran.said if not said.call.startswith(("slow", "stall", "refused", "unbounded"))
        ]
        assert len(texts) >= 8
        assert {text for text in texts if isinstance(text, str)} == {TEXT}
        assert all(vector == [0.5, 0.25] for text in texts if isinstance(text, list) for vector in text)
        assert ("tool" in self.ran.calls()) is self.expected.tool

    def chunk_by_chunk(self) -> None:
        """Check that slow streams came word by word, and took their time."""
        streams = self.ran.calls("slow")
        assert len(streams) == self.expected.slow
        for call, chunks in streams.items():
            words = [chunk for chunk in chunks if chunk.text]
            assert [word.text for word in words] == list(WORDS), call
            assert words[-1].at - words[0].at > PACE, call  # they were sent 4 * PACE apart

    def first_before_last(self) -> None:
        """Check streams that nothing lets go on but what the program prints of their beginning."""
        streams = self.ran.calls("stall")
        assert len(streams) == self.expected.stalls
        for call, chunks in streams.items():
            assert "".join(chunk.text or "" for chunk in chunks) == TEXT, call

    def refused_in_one_request(self) -> None:
        """Check that each refused call was one request, which the provider did not see."""
        refusals = self.ran.calls("refused")
        assert len(refusals) == self.expected.refused
        assert self.ran.report["refused"] == self.expected.refused + len(self.expected.unbounded)
        assert len(self.requests) - len(self.bills) == sum(path.endswith(FREE) for path in self.requests)
        for call, (said,) in refusals.items():
            assert said.status == 402, call
            assert "budget" in said.text, call

    def unbounded_in_one_request(self) -> None:
        """Check that what cannot be bounded was refused, each in one request, which the provider did not see."""
        statuses = {
            call.removeprefix("unbounded "): said.status for call, (said,) in self.ran.calls("unbounded").items()
        }
        assert statuses == self.expected.unbounded
        known = ("/completions", "/responses", "/embeddings", "/messages", "Content", "alt=sse", *FREE)
        assert [path for path in self.requests if not path.endswith(known)] == []
