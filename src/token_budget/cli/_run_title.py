"""Faces that leave the child's screen alone: the terminal's title, and plain lines for a file or a pipe.

A face shows a status. One thread calls it: `show` now and then, and `close` once, at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from token_budget.cli._run_status import RunStatus
from token_budget.cli._run_terminal import Output
from token_budget.cli._run_text import axes, line, percent, title

_PUSH, _POP = "\x1b[22;0t", "\x1b[23;0t"  # xterm's stack of titles
_LINE_EVERY = 30.0
_MARKS = (50, 80, 95)  # percent of a cap
_LAST = 1.0  # seconds to wait for a terminal that is stuck, before its title is left as it is


class Face(Protocol):
    """Shows a status."""

    def show(self, status: RunStatus) -> None:
        """Show it."""

    def close(self) -> None:
        """Leave the stream as it was."""


class Title:
    """The terminal's title. It is written only when it changes, and only while the terminal shows this job.

    A shell that is the child, and gives the terminal to jobs of its own, keeps its title.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._shown = ""
        self._pushed = False

    def show(self, status: RunStatus) -> None:
        """Set the title, if it says another thing than before."""
        text = title(status)
        if text == self._shown or not self._output.is_ours:
            return
        if self._output.write(f"{'' if self._pushed else _PUSH}\x1b]0;{text}\x07"):
            self._shown, self._pushed = text, True

    def close(self) -> None:
        """Bring back the title that was there before, where the terminal keeps it."""
        if self._pushed:
            self._output.write(_POP, _LAST)


class Plain:
    """A line every 30 s, and one when 50, 80 and 95 % of a cap are used, once for each."""

    def __init__(self, output: Output, clock: Callable[[], float] = time.monotonic) -> None:
        self._output = output
        self._clock = clock
        self._next_at = clock() + _LINE_EVERY
        self._told: dict[str, int] = {}  # the highest mark of each axis

    def show(self, status: RunStatus) -> None:
        """Write a line, if it is time for one or a mark is passed."""
        now = self._clock()
        passed = {
            axis: max((mark for mark in _MARKS if percent(used, cap) >= mark), default=0)
            for axis, used, cap in axes(status)
            if cap is not None
        }
        if now < self._next_at and all(mark <= self._told.get(axis, 0) for axis, mark in passed.items()):
            return
        if self._output.write(f"{line(status)}\n"):
            self._told = {axis: max(mark, self._told.get(axis, 0)) for axis, mark in passed.items()}
            self._next_at = now + _LINE_EVERY

    def close(self) -> None:
        """Do nothing: every line has ended."""
