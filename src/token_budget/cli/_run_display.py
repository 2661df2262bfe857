"""What a run shows while its child lives: the terminal's title, lines, or nothing.

What always holds: a display never disturbs the child or the run. It reads `look()` and nothing else, in a thread of its
own, so that no call waits for it. Whatever happens to the stream (closed, full, hung up), the child does not notice.
Standard output is the child's alone. No mode but ``line`` and ``rich`` moves the cursor or changes the screen.
"""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from typing import TextIO

from token_budget.cli._run_line import Line
from token_budget.cli._run_rich import RichScreen, is_there
from token_budget.cli._run_signals import kept_from_threads
from token_budget.cli._run_status import RunStatus
from token_budget.cli._run_terminal import Output, is_dumb, unstopped
from token_budget.cli._run_title import Face, Plain, Title
from token_budget.cli._run_view import run_lines

MODES = ("auto", "line", "rich", "plain", "off")
_TERMINAL = "CONOUT$" if sys.platform == "win32" else "/dev/tty"
_SHARED = (
    "--progress rich needs a terminal of its own, and the command writes to this one: send both of its outputs "
    "elsewhere (> out.txt 2> errors.txt), or watch from another terminal: token-budget status --watch run"
)
_NO_RICH = "--progress rich needs rich: pip install 'token-budget-pool[cli]'"
_DUMB = "--progress rich needs a terminal that obeys, and TERM says that this one does not; try --progress plain"
_NO_TERMINAL = "--progress rich needs a terminal to draw on, and there is none; try --progress plain"


class Display:
    """A display that runs between `start` and `close`. Both may be called again, and neither raises."""

    def __init__(self, make: Callable[[], Face | None], look: Callable[[], RunStatus], every: float = 1.0) -> None:
        """Prepare it.

        Args:
            make: returns what shows the status, or None; called when the display is started, in its thread.
            look: returns the status.
            every: seconds between two looks.
        """
        self._make = make
        self._look = look
        self._every = every
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to show the run. Call it when the child is started; its thread is a daemon."""
        if self._thread is None and not self._ended.is_set():
            thread = threading.Thread(target=self._run, name="token-budget display", daemon=True)
            # Without a thread of the system's the run goes on unseen. Signals are for the thread that waits for them.
            with suppress(RuntimeError), kept_from_threads():
                thread.start()
                self._thread = thread
                atexit.register(self.close)  # an error in the run must not leave the terminal with a region

    def close(self, wait: float = 2.0) -> None:
        """Stop, and leave the terminal as it was. It blocks for ``wait`` seconds at most: the terminal may be stuck."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(wait)
        atexit.unregister(self.close)

    def _run(self) -> None:
        with suppress(Exception):
            face = self._make()
            if face is None:
                return
            try:
                while True:
                    self._show(face)
                    if self._ended.wait(self._every):
                        return
            finally:
                face.close()

    def _show(self, face: Face) -> None:
        with suppress(Exception):  # a pool that is out of reach, a terminal of a kind that nobody thought of
            face.show(self._look())


class _OnRich:
    """The run's lines on a terminal of their own."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._output = Output(terminal)
        self._screen: RichScreen | None = None

    def show(self, status: RunStatus) -> None:
        """Draw them, while the terminal shows this job."""
        if not self._output.is_ours:
            return
        with unstopped():
            if self._screen is None:
                self._screen = RichScreen(self._terminal, lambda: self._output.size)
            self._screen.show(run_lines(status, datetime.now(timezone.utc)))

    def close(self) -> None:
        """Leave the last ones on the screen."""
        try:
            if self._screen is not None:
                with unstopped():
                    self._screen.close()
        finally:
            self._terminal.close()


def display(
    mode: str,
    look: Callable[[], RunStatus],
    *,
    stderr: TextIO | None,
    stdout: TextIO | None,
    every: float = 1.0,
) -> Display:
    """Return the display of this mode. It touches no stream before `Display.start`.

    ``auto`` sets the title where standard error is a terminal, and is ``plain`` elsewhere. ``line`` is ``plain`` where
    standard error is no terminal, or one that obeys nothing (TERM=dumb).

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
    if mode not in MODES:
        raise ValueError(f"--progress is one of {', '.join(MODES)}, not {mode!r}")
    output = Output(stderr)
    if mode == "rich":
        return Display(_rich(output, Output(stdout)), look, every)
    return Display(lambda: _face(mode, output), look, every)


def _face(mode: str, output: Output) -> Face | None:
    if mode == "off" or output.is_broken:
        return None
    if mode == "plain" or not output.is_terminal:
        return Plain(output)
    if is_dumb():
        return Plain(output) if mode == "line" else None
    return Line(output) if mode == "line" else Title(output)


def _rich(stderr: Output, stdout: Output) -> Callable[[], Face]:
    if stderr.is_terminal or stdout.is_terminal:
        raise ValueError(_SHARED)
    if not is_there():
        raise ValueError(_NO_RICH)
    if is_dumb():
        raise ValueError(_DUMB)
    try:
        terminal = open(_TERMINAL, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - closed with the face
    except OSError as error:
        raise ValueError(_NO_TERMINAL) from error
    terminal.close()
    return lambda: _OnRich(open(_TERMINAL, "w", encoding="utf-8"))  # noqa: PTH123
