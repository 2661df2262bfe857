"""What the demo shows: its progress and its report, in lines that fit a terminal of 80 columns.

Progress is one line that is redrawn on a terminal, and a plain line every half second elsewhere.
"""

from __future__ import annotations

import os
import shutil
import textwrap
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from token_budget import BudgetSnapshot
    from token_budget.cli._audit import Audit, Caps, Check, Line
    from token_budget.cli._contrast import CheckThenSpend

COLUMNS = 79  # a line of 80 wraps on some terminals of 80 columns
_BAR = 10  # characters between the brackets
_OVERRUN = (
    "An overrun is a simulated answer that cost more than its reservation and passed a cap: it is billed all the same, "
    "so the pool counts it in full."
)
_CLEAR_TO_END = "\x1b[K"
_SECONDS_BETWEEN_LINES = 0.5


class Progress(Protocol):
    """Shows progress. One thread calls it many times a second."""

    def show(self, text: str, *, milestone: bool = False) -> None:
        """Show the text, unless the last one was shown a moment ago; a milestone is always shown."""

    def close(self) -> None:
        """Leave the stream at the start of a line."""


class RedrawnLine:
    """One line of a terminal, drawn over itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn = False

    def show(self, text: str, *, milestone: bool = False) -> None:  # noqa: ARG002 - every text is drawn
        """Draw the text, cut to the width that the terminal has now: a wrapped line cannot be redrawn."""
        self._stream.write(f"\r{text[: _columns(self._stream) - 1]}{_CLEAR_TO_END}")
        self._stream.flush()
        self._drawn = True

    def close(self) -> None:
        """Keep the last text and go to the next line."""
        if self._drawn:
            self._stream.write("\n")
            self._stream.flush()
            self._drawn = False


class PlainLines:
    """Lines for a pipe or a file: milestones, and otherwise at most one line every half second."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._next_at = clock() + _SECONDS_BETWEEN_LINES

    def show(self, text: str, *, milestone: bool = False) -> None:
        """Write the text, if it is a milestone or half a second has passed."""
        now = self._clock()
        if milestone or now >= self._next_at:
            self._stream.write(f"{text}\n")
            self._stream.flush()  # the reader of a pipe sees it now
            self._next_at = now + _SECONDS_BETWEEN_LINES

    def close(self) -> None:
        """Do nothing: every line has ended."""


class NoProgress:
    """Shows nothing."""

    def show(self, text: str, *, milestone: bool = False) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def progress_on(stream: TextIO, *, only_terminal: bool = False) -> Progress:
    """Return the kind of progress that suits the stream; with ``only_terminal``, none where it is not a terminal."""
    if stream.isatty():
        return RedrawnLine(stream)
    return NoProgress() if only_terminal else PlainLines(stream)


def _columns(stream: TextIO) -> int:
    """Return the width of this terminal, which may be another one than that of standard output."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # the stream has no descriptor, or it is not a terminal's
        columns = 0
    return columns or shutil.get_terminal_size().columns


def status(phase: str, ended: int, calls: int, snapshot: BudgetSnapshot) -> str:
    """Return one line: how many calls have ended, and how full each axis of the budget is."""
    tokens = _axis_text(
        "tokens", snapshot.tokens_used, snapshot.tokens_reserved, snapshot.token_cap, f"{snapshot.tokens_used:,}"
    )
    nanos = snapshot.usd_used_nanos
    usd = _axis_text("usd", nanos, snapshot.usd_reserved_nanos, snapshot.usd_cap_nanos, f"{nanos / 10**9:,.4f}")
    in_flight = f"{snapshot.in_flight:>5,} in flight"
    total = f"{calls:,}"
    text = f"{phase} {ended:>{len(total)},}/{total} {tokens} {usd}"
    return f"{text} {in_flight}" if len(text) + 1 + len(in_flight) <= COLUMNS else text


def _axis_text(name: str, used: int, reserved: int, cap: int | None, amount: str) -> str:
    """Return a bar and the percentage of the cap that is used and reserved, or the amount where there is no cap."""
    if cap is None:
        return f"{name} {amount}"
    claimed = used + reserved
    percent = 100 * claimed // cap if cap else 100
    used_part = min(_BAR * used // cap, _BAR) if cap else _BAR
    claimed_part = min(_BAR * claimed // cap, _BAR) if cap else _BAR
    bar = "#" * used_part + "=" * (claimed_part - used_part)
    return f"{name} [{bar:-<{_BAR}}] {percent:>3}%"


def filled(text: str, *, first: str = "", then: str = "") -> str:
    """Break a text into lines that fit the terminal. Words are never broken, so that a path can be copied."""
    return textwrap.fill(
        text, COLUMNS, initial_indent=first, subsequent_indent=then, break_long_words=False, break_on_hyphens=False
    )


def report(audit: Audit, *, elapsed: float, interrupted: bool) -> str:
    """Return the audit as text for people."""
    title = f"audit after {elapsed:.1f} s"
    rows = [row(title, "calls", "tokens", "USD")]
    rows += [line_text(line) for line in audit.lines.values()]
    rows += [row("  most in flight at once", f"{audit.most_in_flight:,}", "", "").rstrip(), ""]
    rows += [filled(_OVERRUN), "", "checks"]
    rows += [check_text(check) for check in audit.checks]
    failed = sum(not check.ok for check in audit.checks)
    verdict = (
        f"FAILED in {failed} of {len(audit.checks)} checks" if failed else f"agrees in all {len(audit.checks)} checks"
    )
    so_far = "Stopped by Ctrl-C. So far the" if interrupted else "The"
    return "\n".join([*rows, "", f"{so_far} audit {verdict}."])


def contrast_text(contrast: CheckThenSpend, caps: Caps) -> str:
    """Return what the same calls cost without reservations, as text for people."""
    tokens, usd = f"{contrast.tokens:,} tokens", f"{contrast.usd:,.4f} USD"
    if caps.tokens:
        tokens += f" ({100 * contrast.tokens // caps.tokens}% of the cap)"
    if caps.usd:
        usd += f" ({int(100 * contrast.usd / caps.usd)}% of the cap)"
    return filled(f"Check-then-spend, without reservations, would have spent {tokens} and {usd} with the same calls.")


def row(title: str, calls: str, tokens: str, usd: str) -> str:
    """Return one row of a table of amounts."""
    return f"{title:<26} {calls:>9} {tokens:>19} {usd:>21}"


def line_text(line: Line) -> str:
    """Return one line of an audit, as a row."""
    calls = "" if line.calls is None else f"{line.calls:,}"
    return row(f"  {line.title}", calls, f"{line.amount.tokens:,}", usd_text(line.amount.nanos))


def check_text(check: Check) -> str:
    """Return one check, as lines."""
    mark = "ok" if check.ok else "FAILED"
    return filled(f"{check.name}: {check.detail}", first=f"  {mark:<7} ", then=" " * 10)


def usd_text(nanos: int) -> str:
    """Return nanodollars as dollars, with every digit."""
    whole, part = divmod(nanos, 10**9)
    return f"{whole:,}.{part:09}"
