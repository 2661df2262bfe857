"""What a run says beside its summary: at once, or when the program has ended, and never what a request has."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from token_budget.cli._run_notes import KEPT, Notes, say


@pytest.fixture
def notes() -> Iterator[Notes]:
    notes = Notes()
    notes.open()
    yield notes
    notes.close()


def log(text: str, *details: object, name: str = "token_budget", level: int = logging.WARNING) -> None:
    logging.getLogger(name).log(level, text, *details)


def test_a_warning_is_said_at_once_before_the_program_lives(notes: Notes, capsys: pytest.CaptureFixture[str]) -> None:
    log("the cap was %d", 5)
    log("not this", level=logging.INFO)
    assert capsys.readouterr().err == "token-budget: warning: the cap was 5\n"


def test_while_the_program_lives_nothing_is_said_and_afterwards_all_of_it_once(
    notes: Notes, capsys: pytest.CaptureFixture[str]
) -> None:
    notes.hush()
    for _ in range(3):
        log("away")
    log("lost", level=logging.ERROR, name="token_budget.stores")
    for number in range(KEPT):
        log("note %d", number)
    log("away")
    assert capsys.readouterr().err == ""
    notes.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "token-budget: warning: away (4 times)",
        "token-budget: error: lost",
        "token-budget: warning: note 0",
    ]
    assert len(lines) == KEPT + 1
    assert lines[-1] == "token-budget: ... and 2 more warnings"
    notes.close()
    log("after the end")
    assert "token-budget:" not in capsys.readouterr().err


def test_of_other_packages_only_the_text_of_their_code_is_said(
    notes: Notes, capsys: pytest.CaptureFixture[str]
) -> None:
    log("Error handling request from %s", "/s3cr3t/openai", name="aiohttp.server")
    log("lost\nfuture: <Task exception=OSError('s3cr3t')>", name="asyncio")
    log("", name="asyncio")
    try:
        raise ValueError("s3cr3t")
    except ValueError:
        logging.getLogger("aiohttp").exception("failed")
    assert capsys.readouterr().err.splitlines() == [
        "token-budget: warning: aiohttp.server: Error handling request from %s",
        "token-budget: warning: asyncio: lost",
        "token-budget: warning: asyncio: ",
        "token-budget: error: aiohttp: failed (ValueError)",
    ]


def test_a_standard_error_that_nobody_reads_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr(sys, "stderr", stream)
        say("nobody hears this")
