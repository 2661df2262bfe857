"""What a run has to say beside its summary: warnings and errors, each at a time when it disturbs nobody.

While the child lives, the terminal is its alone: what is logged then is said when it has ended. What other packages log
may quote a request, so of that only the text is said that stands in their code.
"""

from __future__ import annotations

import logging
import sys
import threading

from token_budget.cli import _run_terminal
from token_budget.cli._run_text import pure

PROGRAM = "token-budget"
KEPT = 20  # different notes; what comes after them is counted
PATIENCE = 2.0  # seconds that a line waits for a standard error that is full


def say(text: str) -> bool:
    """Write lines to standard error, without what a terminal would obey. Return whether they are written.

    It raises nothing and stops nobody, and soon gives up where nobody reads: that is not the child's business.
    """
    shown = "\n".join(map(pure, text.split("\n")))
    return _run_terminal.say(sys.stderr, f"{PROGRAM}: {shown}", PATIENCE)


class Notes(logging.Handler):
    """Takes what this process logs from WARNING on, between `open` and `close`; any thread may log.

    A note is said at once, and between `hush` and `tell` later. The same note is said once.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._guard = threading.Lock()
        self._quiet = False
        self._notes: dict[str, int] = {}
        self._more = 0

    def open(self) -> None:
        """Take what is logged from now on."""
        logging.getLogger().addHandler(self)

    def hush(self) -> None:
        """Keep what comes until `tell`."""
        self._quiet = True

    def tell(self) -> None:
        """Say what was kept, and from now on each note at once. Nothing is said twice.

        Where nobody reads, one note is waited for, and not each of them.
        """
        with self._guard:
            self._quiet = False
            notes, more, self._notes, self._more = self._notes, self._more, {}, 0
        for note, count in notes.items():
            if not say(note if count == 1 else f"{note} ({count:,} times)"):
                return
        if more:
            say(f"... and {more:,} more warnings")

    def close(self) -> None:
        """Take no more, and say what was kept."""
        logging.getLogger().removeHandler(self)
        self.tell()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Say or keep one record."""
        note = _text(record)
        with self._guard:
            if self._quiet:
                if note in self._notes or len(self._notes) < KEPT:
                    self._notes[note] = self._notes.get(note, 0) + 1
                else:
                    self._more += 1
                return
        say(note)


def _text(record: logging.LogRecord) -> str:
    level = record.levelname.lower()
    if record.name.partition(".")[0] == "token_budget":
        return f"{level}: {record.getMessage()}"
    lines = str(record.msg).splitlines() or [""]
    error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
    return f"{level}: {record.name}: {lines[0]}{f' ({error})' if error else ''}"
