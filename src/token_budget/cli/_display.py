"""What the demo shows: progress (a redrawn line on a terminal, now and then a plain line elsewhere) and the report."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from token_budget.cli._audit import Audit, Check, Line

_CLEAR_TO_END = "\x1b[K"
_SECONDS_BETWEEN_LINES = 0.5


class Progress(Protocol):
    """What shows progress. Called many times a second, by one thread."""

    def show(self, text: str, *, milestone: bool = False) -> None:
        """Show the text, if it is time; a milestone is shown in any case."""

    def close(self) -> None:
        """Leave the stream at the start of a line."""


class RedrawnLine:
    """One line of a terminal, drawn over itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn = False

    def show(self, text: str, *, milestone: bool = False) -> None:  # noqa: ARG002 - every text is drawn
        """Draw the text, cut to the width that the terminal has now: a line that wraps could not be drawn over."""
        self._stream.write(f"\r{text[: _columns(self._stream) - 1]}{_CLEAR_TO_END}")
        self._stream.flush()
        self._drawn = True

    def close(self) -> None:
        """Keep what was drawn last and go to the next line."""
        if self._drawn:
            self._stream.write("\n")
            self._stream.flush()


class PlainLines:
    """Lines for a pipe or a file, at most one each half second besides milestones."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._next_at = clock() + _SECONDS_BETWEEN_LINES

    def show(self, text: str, *, milestone: bool = False) -> None:
        """Write the text, if it is time."""
        now = self._clock()
        if milestone or now >= self._next_at:
            self._stream.write(f"{text}\n")
            self._stream.flush()  # whoever reads the pipe wants to see it now
            self._next_at = now + _SECONDS_BETWEEN_LINES

    def close(self) -> None:
        """Do nothing: every line is ended."""


class NoProgress:
    """Shows nothing."""

    def show(self, text: str, *, milestone: bool = False) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def progress_on(stream: TextIO, *, only_terminal: bool = False) -> Progress:
    """Return what suits the stream; with ``only_terminal``, nothing where it is no terminal."""
    if stream.isatty():
        return RedrawnLine(stream)
    return NoProgress() if only_terminal else PlainLines(stream)


def _columns(stream: TextIO) -> int:
    """Return the width of this terminal, which need not be the one on standard output."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # a stream that has no descriptor, or none of a terminal
        columns = 0
    return columns or shutil.get_terminal_size().columns


def report(audit: Audit, *, elapsed: float, interrupted: bool) -> str:
    """Return the audit as text for people."""
    title = f"audit after {elapsed:.1f} s"
    rows = [f"{title:<30} {'calls':>9} {'tokens':>15} {'USD':>19}"]
    rows += [_line_text(line) for line in audit.lines.values()]
    width = max(len(check.name) for check in audit.checks)
    rows += [f"  most in flight at once       {audit.most_in_flight:>9,}", "", "checks"]
    rows += [_check_text(check, width) for check in audit.checks]
    failed = sum(not check.ok for check in audit.checks)
    verdict = (
        f"FAILED in {failed} of {len(audit.checks)} checks" if failed else f"agrees in all {len(audit.checks)} checks"
    )
    so_far = "Stopped by Ctrl-C. So far the" if interrupted else "The"
    return "\n".join([*rows, "", f"{so_far} audit {verdict}."])


def _line_text(line: Line) -> str:
    calls = "" if line.calls is None else f"{line.calls:,}"
    return f"  {line.title:<28} {calls:>9} {line.amount.tokens:>15,} {_usd_text(line.amount.nanos):>19}"


def _check_text(check: Check, width: int) -> str:
    return f"  {'ok' if check.ok else 'FAILED':<7} {check.name:<{width}}  {check.detail}"


def _usd_text(nanos: int) -> str:
    """Return nanodollars as dollars, with every digit."""
    whole, part = divmod(nanos, 10**9)
    return f"{whole:,}.{part:09}"
