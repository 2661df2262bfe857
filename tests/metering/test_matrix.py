"""The matrix on what is installed here, and the sabotage that must turn it red. `python tests/matrix` runs the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from matrix import calls, rows
from token_budget import BudgetPool
from token_budget.metering import Meter, _send, _stream, _watch

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.filterwarnings("ignore")  # what SDKs and interrupted sockets have to say


def red(names: list[str], hookings: tuple[str, ...], *shapes: str) -> list[str]:
    """Run rows; return the wrong ones. There must be some to run, if the SDK is installed."""
    for name in names:
        pytest.importorskip(rows.SDKS[name].module)
    found = list(rows.run(names, hookings, frozenset(shapes)))
    assert found
    return [
        f"{row.shape} {'async' if row.is_async else 'sync'} {row.hooking}: {row.wrong}" for row in found if row.wrong
    ]


@pytest.mark.parametrize("hooking", ["wrap", "run"])
@pytest.mark.parametrize("name", list(rows.SDKS))
def test_every_call_shape_counts_what_the_provider_billed(name: str, hooking: str) -> None:
    assert red([name], (hooking,)) == []


# ---------------------------------------------------------------- sabotage


def test_without_release_on_an_error_status_the_matrix_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = _send._Call.judge

    def sabotaged(self: Any, response: Any) -> Any:
        outcome = judge(self, response)
        return "charge" if outcome == "release" else outcome

    monkeypatch.setattr(_send._Call, "judge", sabotaged)
    wrong = red(["openai"], ("wrap", "run"), "429, then an answer", "500", "chat")
    assert {line.partition(" ")[0] for line in wrong} == {"429,", "500"}
    assert len(wrong) == 8


def test_without_stripping_the_matrix_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    look = _watch.Watch._look

    def sabotaged(self: Any, lines: bytes) -> bytes:
        look(self, lines)
        return lines

    monkeypatch.setattr(_watch.Watch, "_look", sabotaged)
    wrong = red(["openai"], ("wrap", "run"), "streamed", "streamed gzip", "chat")
    assert len(wrong) == 8
    assert all("IndexError" in line for line in wrong)


def test_with_release_of_broken_streams_the_matrix_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    async def asabotaged(self: Any) -> None:
        await self._pending.arelease()

    monkeypatch.setattr(_stream._Body, "_broken", lambda self: self._pending.release())
    monkeypatch.setattr(_stream._Body, "_abroken", asabotaged)
    wrong = red(["openai"], ("wrap",), "cut", "closed early", "streamed without usage", "streamed")
    assert len(wrong) == 6


def test_with_refusals_that_are_raised_the_matrix_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    def sabotaged(_: Any, error: Exception) -> None:
        raise error

    monkeypatch.setattr(_send, "refuse", sabotaged)
    wrong = red(["anthropic"], ("run",), "messages", "count_tokens")
    assert len(wrong) == 2
    assert all("refusal arrives as APIConnectionError" in line for line in wrong)


def test_without_the_mark_a_call_counts_in_every_hook_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Meter(BudgetPool(usd_cap=1), rows.PRICES)
    with other.patch():
        assert red(["openai"], ("wrap",), "chat", "streamed") == []
        before = other.pool.snapshot().usd_used_nanos
        red(["openai"], ("wrap",), "chat")
        once = other.pool.snapshot().usd_used_nanos - before
        assert once > 0
        monkeypatch.setattr(_send._Call, "leave", lambda self: self.request)
        red(["openai"], ("wrap",), "chat")
        assert other.pool.snapshot().usd_used_nanos - before == once * 3


def test_a_row_says_what_is_wrong_with_its_books() -> None:
    shape = calls.Shape("any", calls.maybe)
    assert rows.judged(shape, 5, 5, 0) == ""
    assert rows.judged(shape, 5, 6, 0) == "counted 6, billed 5"
    assert rows.judged(shape, 5, 5, 1) == "1 still held"
    assert rows.judged(shape, 0, 0, 0) == "nothing was billed"
    for counts, counted, wrong in (("at least", 4, True), ("at least", 6, False), ("nothing", 1, True)):
        assert (
            bool(rows.judged(calls.Shape("any", calls.maybe, counts), 5 if counts != "nothing" else 0, counted, 0))
            is wrong
        )


# ---------------------------------------------------------------- the program


def test_the_program_prints_a_table_and_says_whether_a_row_is_wrong() -> None:
    pytest.importorskip("groq")
    command = [sys.executable, str(ROOT / "matrix"), "groq", "--python", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("| 0 |")
    unknown = subprocess.run([*command, "nobody"], capture_output=True, text=True, check=False, timeout=100)
    assert unknown.returncode == 2
