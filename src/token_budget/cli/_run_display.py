"""What a run shows while its child lives: the terminal's title, lines, or nothing.

What always holds: a display never disturbs the child or the run. It reads `look()` and nothing else, in a thread of its
own, so that no call waits for it. Whatever happens to the stream (closed, full, hung up), the child does not notice.
Standard output is the child's alone. No mode but ``line`` and ``rich`` moves the cursor or changes the screen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from token_budget.cli._run_status import RunStatus

MODES = ("auto", "line", "rich", "plain", "off")


class Display:
    """A display that runs between `start` and `close`. Both may be called again, and neither raises."""

    def start(self) -> None:
        """Begin to show the run. Call it when the child is started; its thread is a daemon."""

    def close(self, wait: float = 1.0) -> None:
        """Stop, and leave the terminal as it was. It blocks for at most ``wait`` seconds, where the terminal is stuck."""


def display(
    mode: str,
    look: Callable[[], RunStatus],
    *,
    stderr: TextIO | None,
    stdout: TextIO | None,
    every: float = 1.0,
) -> Display:
    """Return the display of this mode. It touches no stream before `Display.start`.

    Args:
        mode: one of `MODES`.
        look: returns the status of the run; called in the display's thread, and must not wait for a call.
        stderr: the standard error of this process and of the child; None if it is closed.
        stdout: their standard output, which is never written; None if it is closed.
        every: seconds between two looks.

    Raises:
        ValueError: ``rich`` on a terminal that the child shares, or where there is no terminal or no rich; the text
            says what to do. Nothing may be started then.
    """
    raise NotImplementedError
