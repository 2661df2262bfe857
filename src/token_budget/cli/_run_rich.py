"""Lines that stay in place on a terminal, drawn by rich whenever they are shown.

For a terminal that nobody else writes to: rich moves the cursor over its own last lines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, TextIO

from token_budget.cli._run_terminal import is_dumb

_BAR = re.compile(r"\[(#*)(=*)-*\] +(\d+)%")
_SHARES = ((95, "red"), (80, "yellow"), (0, "green"))


class RichScreen:
    """Shows lines again and again, in place."""

    def __init__(self, stream: TextIO, size: Callable[[], os.terminal_size | None]) -> None:
        """Begin to draw on this terminal.

        Args:
            stream: the terminal.
            size: returns its size now; None if that is not known.

        Raises:
            ImportError: rich is not installed.
        """
        from rich.console import Console

        self._console = Console(file=stream, force_terminal=True, highlight=False)
        self._size = size
        self._last = size()
        self._live = self._begin()

    def show(self, lines: Sequence[str]) -> None:
        """Show these lines in place of the last ones. A terminal shows as many as it has."""
        size = self._size()
        if size != self._last:  # the terminal has wrapped the last lines anew: nobody knows where they are
            self._last = size
            self._live.stop()
            self._console.clear()
            self._live = self._begin()
        self._live.update(_text(lines), refresh=True)

    def close(self) -> None:
        """Leave the last lines on the screen, and the cursor below them."""
        self._live.stop()

    def _begin(self) -> Any:
        from rich.live import Live

        if self._last is not None:
            self._console.size = (self._last.columns, self._last.lines)
        live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        live.start()
        return live


def is_there() -> bool:
    """Return whether rich is installed."""
    try:
        return find_spec("rich") is not None
    except ValueError:  # something of that name was put there by hand
        return False


def can_draw() -> bool:
    """Return whether rich is installed, and the terminal obeys it."""
    return is_there() and not is_dumb()


def _text(lines: Sequence[str]) -> Any:
    """Return the lines as rich's text: each cut to the width, and its bar in the colour of its share."""
    from rich.text import Text

    text = Text(no_wrap=True, overflow="crop")
    for number, line in enumerate(lines):
        start = len(text) + (number > 0)
        text.append(f"{chr(10) if number else ''}{line}")
        bar = _BAR.search(line)
        if bar is not None:
            colour = next(colour for share, colour in _SHARES if int(bar[3]) >= share)
            text.stylize(colour, start + bar.start(1), start + bar.end(2))
    return text
