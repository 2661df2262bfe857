"""Line: the terminal's last row, kept out of what scrolls. For children that only print.

The rows above it are the terminal's scroll region, so the child's lines scroll there. A child that draws a screen of
its own (vim, less) draws over the line, or sets a region of its own.
"""

from __future__ import annotations

from token_budget.cli._run_status import RunStatus
from token_budget.cli._run_terminal import Output
from token_budget.cli._run_text import line

_SAVE, _RESTORE = "\x1b7", "\x1b8"  # the cursor, with its colour
_DOWN, _UP = "\x1bD", "\x1b[A"  # down scrolls at the last row, and keeps the column
_WHOLE = "\x1b[r"  # the region is the whole screen; the cursor goes home
_PLAIN, _EMPTY = "\x1b[m", "\x1b[2K"
_FEWEST_ROWS = 3
_LAST = 1.0


class Line:
    """The last row of a terminal. It is drawn at every look, since the child may have cleared the screen."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._rows = 0  # of the terminal, when the region was set; 0 while there is none

    def show(self, status: RunStatus) -> None:
        """Draw it. After a change of the terminal's size, make a new region first."""
        size = self._output.size
        if size is None or size.lines < _FEWEST_ROWS or not self._output.is_ours:
            return
        region = "" if size.lines == self._rows else _region(size.lines, again=self._rows > 0)
        text = line(status)[: size.columns - 1]
        if self._output.write(f"{region}{_SAVE}{_PLAIN}\x1b[{size.lines};1H{_EMPTY}{text}{_RESTORE}"):
            self._rows = size.lines

    def close(self) -> None:
        """Give the row back, empty. The cursor stays where the child left it."""
        if self._rows:
            size = self._output.size
            row = self._rows if size is None else size.lines
            self._output.write(f"{_SAVE}{_WHOLE}{_PLAIN}\x1b[{row};1H{_EMPTY}{_RESTORE}", _LAST)
            self._rows = 0


def _region(rows: int, *, again: bool) -> str:
    """Return what makes the region all rows but the last. What stands in the last row scrolls up, with the cursor."""
    before = f"{_SAVE}{_WHOLE}{_RESTORE}" if again else ""
    return f"{before}{_DOWN}{_SAVE}\x1b[1;{rows - 1}r{_RESTORE}{_UP}"
