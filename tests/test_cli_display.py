"""What the commands print: progress on a terminal and elsewhere, and the report. No line is wider than a terminal."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from token_budget import BudgetSnapshot
from token_budget.cli import _display, main
from token_budget.cli._audit import Caps
from token_budget.cli._contrast import CheckThenSpend
from token_budget.cli._display import (
    NoProgress,
    PlainLines,
    RedrawnLine,
    contrast_text,
    progress_on,
    status,
)

WIDEST = 79  # a line of 80 characters wraps on some 80-column terminals


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def open_terminal(columns: int) -> tuple[int, int]:
    """Return the two ends of a pseudo-terminal of that width."""
    import fcntl
    import termios

    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    return master, slave


needs_terminals = pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals")


# ---------------------------------------------------------------------- one line of progress


@pytest.mark.parametrize(
    ("snapshot", "text"),
    [
        (
            BudgetSnapshot(300, 0.0015, 1000, 0.003, tokens_reserved=259, usd_reserved=0.0001, in_flight=3),
            "tokens [###==-----]  55% usd [#####-----]  53%     3 in flight",
        ),
        (BudgetSnapshot(0, 0, 1000, 0.003), "tokens [----------]   0% usd [----------]   0%     0 in flight"),
        (BudgetSnapshot(1000, 0.0047, 1000, 0.003), "tokens [##########] 100% usd [##########] 156%     0 in flight"),
        (BudgetSnapshot(0, 0, 0, 0), "tokens [##########] 100% usd [##########] 100%     0 in flight"),
        (BudgetSnapshot(12_345, 0.5), "tokens 12,345 usd 0.5000     0 in flight"),
    ],
    ids=["in flight", "empty", "overrun", "no budget", "no caps"],
)
def test_progress_shows_a_bar_and_a_percentage_for_each_capped_axis(snapshot: BudgetSnapshot, text: str) -> None:
    assert status("threads", 7, 200, snapshot) == f"threads   7/200 {text}"


def test_a_million_calls_leave_room_for_both_axes_but_not_for_the_calls_in_flight() -> None:
    text = status("threads", 999_999, 1_000_000, BudgetSnapshot(1, 1, 1, 1, in_flight=1000))
    assert text == "threads   999,999/1,000,000 tokens [##########] 100% usd [##########] 100%"


# ---------------------------------------------------------------------- where progress is shown


def test_a_terminal_gets_one_redrawn_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["demo", "--speed", "20", "--calls", "40"]) == 0
    drawn = [line for line in terminal.getvalue().split("\n") if "\r" in line]
    assert len(drawn) == 1
    texts = drawn[0].split("\r")[1:]
    assert len(texts) > 2
    assert all(text.endswith("\x1b[K") and len(text) - len("\x1b[K") <= 59 for text in texts)
    assert texts[0].startswith("threads ")
    assert texts[-1].startswith("asyncio 40/40 ")


def test_json_shows_progress_only_on_a_terminal_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["demo", "--speed", "max", "--calls", "10", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["agrees"] is True
    assert terminal.getvalue().startswith("\rthreads ")
    assert terminal.getvalue().endswith("\x1b[K\n")


def test_planning_and_comparing_many_calls_show_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("token_budget.cli.demo._BETWEEN_LOOKS", 4)
    assert main(["demo", "--speed", "max", "--calls", "10", "--json"]) == 0
    assert terminal.getvalue().startswith("\rplanning 4/10 calls\x1b[K\rplanning 8/10 calls\x1b[K\rpricing 4/10")
    assert terminal.getvalue().endswith("\rcheck-then-spend 4/5 calls\x1b[K\rcheck-then-spend 4/5 calls\x1b[K\n")
    assert json.loads(capsys.readouterr().out)["agrees"] is True


def test_progress_suits_the_stream() -> None:
    assert type(progress_on(Terminal())) is RedrawnLine
    assert type(progress_on(Terminal(), only_terminal=True)) is RedrawnLine
    assert type(progress_on(io.StringIO())) is PlainLines
    assert type(progress_on(io.StringIO(), only_terminal=True)) is NoProgress


def test_closing_ends_the_line_once_and_only_if_something_was_drawn() -> None:
    terminal = Terminal()
    line = RedrawnLine(terminal)
    line.close()
    assert terminal.getvalue() == ""
    line.show("text")
    line.close()
    line.close()
    assert terminal.getvalue() == "\rtext\x1b[K\n"


def test_plain_lines_come_every_half_second_and_at_milestones() -> None:
    now = 100.0
    stream = io.StringIO()
    lines = PlainLines(stream, clock=lambda: now)
    lines.show("too soon")
    now = 100.5
    lines.show("first")
    now = 100.9
    lines.show("too soon")
    lines.show("milestone", milestone=True)
    now = 101.3
    lines.show("too soon")
    now = 101.4
    lines.show("second")
    lines.close()
    assert stream.getvalue() == "first\nmilestone\nsecond\n"


@needs_terminals
def test_a_line_is_cut_to_the_width_of_its_own_terminal() -> None:
    master, slave = open_terminal(40)
    with os.fdopen(master, "rb", buffering=0) as reader, os.fdopen(slave, "w") as terminal:
        RedrawnLine(terminal).show("x" * 100)
        assert reader.read(1000) == b"\r" + b"x" * 39 + b"\x1b[K"
    assert _display._columns(io.StringIO()) > 0


# ---------------------------------------------------------------------- the report


def test_a_pipe_gets_a_header_plain_lines_and_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--speed", "20", "--calls", "40"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("token_budget demo: 40 calls, simulated, seed 1\n  caps     ")
    assert "\r" not in out
    assert "\x1b" not in out
    assert re.search(r"^threads 20/40 tokens \[.{10}\] +\d+% usd \[.{10}\] +\d+% +0 in flight$", out, re.MULTILINE)
    assert re.search(r"^asyncio 40/40 tokens \[.{10}\] +\d+% usd \[.{10}\] +\d+% +0 in flight$", out, re.MULTILINE)
    assert re.search(r"^audit after \d+\.\d s +calls +tokens +USD$", out, re.MULTILINE)
    table = out[out.index("  reserved  ") : out.index("  most in flight")].splitlines()
    assert len(table) == 11
    assert {len(line) for line in table} == {len(table[0])}
    assert "\nThe audit agrees in all 7 checks.\n" in out


def test_the_header_shows_what_was_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("input_tokens,output_tokens\n1,2\n")
    assert main(["demo", "--speed", "max", "--trace", str(path), "--token-cap", "none", "--usd-cap", "none"]) == 0
    out = capsys.readouterr().out
    assert "1 calls, sizes from" in out
    assert str(path) in out
    assert "  caps     no token cap, no USD cap\n" in out
    assert "as fast as possible" in out


def test_the_report_says_in_one_sentence_what_an_overrun_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--speed", "max", "--calls", "4"]) == 0
    sentence = (
        "An overrun is a simulated answer that cost more than its reservation and passed a cap: it is billed all the "
        "same, so the pool counts it in full."
    )
    assert sentence in " ".join(capsys.readouterr().out.split())


def test_the_last_line_is_what_check_then_spend_costs(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["demo", "--speed", "max", "--calls", "40"]
    assert main([*options, "--json"]) == 0
    contrast = json.loads(capsys.readouterr().out)["check_then_spend"]
    assert main(options) == 0
    last = " ".join(capsys.readouterr().out.partition("checks.\n")[2].split())
    assert last.startswith(f"Check-then-spend, without reservations, would have spent {contrast['tokens']:,} tokens (")
    assert f" {contrast['usd']:,.4f} USD (" in last
    assert last.endswith(" with the same calls.")


def test_check_then_spend_is_shown_beside_the_caps_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    contrast = CheckThenSpend(Caps(None, None), 1)
    contrast.tokens, contrast.usd = 1100, 2.58
    text = "Check-then-spend, without reservations, would have spent {} and {} with the same calls."
    shown = {
        Caps(1000, 2.0): ("1,100 tokens (110% of the cap)", "2.5800 USD (129% of the cap)"),
        Caps(1000, None): ("1,100 tokens (110% of the cap)", "2.5800 USD"),
        Caps(0, 2.0): ("1,100 tokens", "2.5800 USD (129% of the cap)"),
    }
    for caps, amounts in shown.items():
        assert contrast_text(contrast, caps).replace("\n", " ") == text.format(*amounts)
    assert main(["demo", "--speed", "max", "--calls", "4", "--token-cap", "none", "--usd-cap", "none"]) == 0
    assert capsys.readouterr().out.endswith("\nThe audit agrees in all 7 checks.\n")


# ---------------------------------------------------------------------- width


LARGE = ["--calls", "2000", "--workers", "200", "--input-price", "1000", "--output-price", "5000"]


@pytest.mark.parametrize("options", [[], LARGE, ["--token-cap", "none"]], ids=["default", "large", "one cap"])
def test_no_line_is_wider_than_a_terminal_of_80_columns(capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    assert main(["demo", "--speed", "max", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 30
    assert [line for line in lines if len(line) > WIDEST] == []


@needs_terminals
def test_nothing_wraps_on_a_terminal_of_80_columns() -> None:
    master, slave = open_terminal(80)
    command = [sys.executable, "-m", "token_budget", "demo", "--speed", "20"]
    with subprocess.Popen(command, stdout=slave, stderr=slave) as program:
        os.close(slave)
        output = b""
        try:
            while part := os.read(master, 65536):
                output += part
        except OSError:  # Linux raises this at the end of a pseudo-terminal
            pass
        os.close(master)
    assert program.returncode == 0
    lines = re.split(r"[\r\n]+", output.decode().replace("\x1b[K", ""))
    assert any(re.fullmatch(r"asyncio 200/200 tokens \[.{10}\] +\d+% usd \[.{10}\] +\d+% .*", line) for line in lines)
    assert any(line.startswith("Check-then-spend, ") for line in lines)
    assert [line for line in lines if len(line) > WIDEST] == []
