"""Line: the terminal's last row, kept out of what scrolls. For children that only print.

The rows above it are the terminal's scroll region, so the child's lines scroll there. A child that draws a screen of
its own (vim, less) draws over the line, or sets a region of its own. Where a child's text ends at the last column, many
terminals forget that the next character belongs on the next line when the cursor is saved and brought back. A job that
is stopped (Ctrl-Z) or killed (SIGKILL) leaves the region to the shell; ``tput reset`` or ``fg`` mends it.
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
_LAST = 1.0  # seconds to wait for a terminal that is stuck, before it is left as it is


class Line:
    """The last row of a terminal.

    Region and row are made anew at every look: the terminal may have another size now, another program may have reset
    the region while this job was stopped, and the child may have cleared the screen.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._drawn = False

    def show(self, status: RunStatus) -> None:
        """Draw it, while the terminal shows this job."""
        size = self._output.size
        if size is None or size.lines < _FEWEST_ROWS or not self._output.is_ours:
            return
        # A cursor in the last row goes up by one, and what stands there with it. Any other stays.
        region = f"{_SAVE}{_WHOLE}{_RESTORE}{_DOWN}{_SAVE}\x1b[1;{size.lines - 1}r{_RESTORE}{_UP}"
        text = line(status)[: size.columns - 1]
        drawn = self._output.write(f"{region}{_SAVE}{_PLAIN}\x1b[{size.lines};1H{_EMPTY}{text}{_RESTORE}")
        self._drawn = self._drawn or drawn

    def close(self) -> None:
        """Give the row back, empty. The cursor stays where the child left it."""
        size = self._output.size
        if self._drawn and size is not None:
            self._output.write(f"{_SAVE}{_WHOLE}{_PLAIN}\x1b[{size.lines};1H{_EMPTY}{_RESTORE}", _LAST)
