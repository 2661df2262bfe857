"""Terminals to look at: programs run in tmux, and their screens are read. Nothing here sleeps for a fixed time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

import token_budget

TMUX = shutil.which("tmux")
_DEADLINE = 20.0
_ENDED = "[end]"
_HERE = Path(__file__).parent
_AFTER = f'trap : INT; "$@"; printf "{_ENDED}"; exec cat'  # the shell writes where the command left the cursor


class Pane:
    """A terminal with a program in it."""

    def __init__(self, tmux: Tmux, name: str, looks: Path, errors: Path) -> None:
        self._tmux = tmux
        self.name = name
        self._looks = looks
        self._errors = errors

    @property
    def text(self) -> str:
        """What the terminal shows."""
        return self._tmux("capture-pane", "-p", "-t", self.name)

    @property
    def rows(self) -> list[str]:
        """The rows of the terminal, without the spaces at their ends."""
        return self.text.split("\n")[:-1]

    @property
    def screen(self) -> tuple[str, str]:
        """All that a user sees, with colours, cursor, scroll region, and whether it is the second screen."""
        state = self.ask("#{cursor_x},#{cursor_y} #{scroll_region_upper}-#{scroll_region_lower} #{alternate_on}")
        return self._tmux("capture-pane", "-p", "-e", "-t", self.name), f"{state} {self.ask('#{cursor_flag}')}"

    @property
    def looks(self) -> int:
        """How often the display has looked."""
        try:
            return int(self._looks.read_text(encoding="utf-8") or 0)
        except OSError:
            return 0

    @property
    def ended(self) -> bool:
        """Whether the program has ended."""
        return _ENDED in self.text

    @property
    def errors(self) -> str:
        """What was written to standard error, where that is a file."""
        return self._errors.read_text(encoding="utf-8")

    def ask(self, what: str) -> str:
        """Return what tmux knows of the terminal, such as ``#{pane_title}``."""
        return self._tmux("display-message", "-p", "-t", self.name, what).rstrip("\n")

    def keys(self, *keys: str) -> None:
        """Press these keys."""
        self._tmux("send-keys", "-t", self.name, *keys)

    def resize(self, columns: int, rows: int) -> None:
        """Make the terminal larger or smaller."""
        self._tmux("resize-window", "-t", self.name, "-x", str(columns), "-y", str(rows))

    def wait(self, until: Callable[[], object]) -> None:
        """Wait until it is so."""
        wait(until, lambda: f"{self.name}:\n{self.text}")


def wait(until: Callable[[], object], shown: Callable[[], str]) -> None:
    """Wait until it is so; fail with what is shown if that takes too long."""
    deadline = time.monotonic() + _DEADLINE
    while not until():
        assert time.monotonic() < deadline, shown()
        time.sleep(0.02)


def wait_looks(*panes: Pane) -> None:
    """Wait until each display has looked three times more: it has then shown at least two of them."""
    before = [pane.looks for pane in panes]
    for pane, looks in zip(panes, before, strict=True):
        pane.wait(lambda pane=pane, looks=looks: pane.looks >= looks + 3)  # type: ignore[misc]


class Tmux:
    """A server of tmux of its own, without anybody's settings."""

    def __init__(self, folder: Path) -> None:
        assert TMUX is not None
        self._folder = folder
        self._command = [TMUX, "-u", "-L", "test", "-f", os.devnull]
        ours = [str(Path(token_budget.__file__).parent.parent), str(_HERE), str(_HERE.parent)]
        path = os.pathsep.join([*ours, *filter(None, [os.environ.get("PYTHONPATH")])])
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self._environ = {**kept, "LC_ALL": "C.UTF-8", "SHELL": "/bin/sh", "TMUX_TMPDIR": str(folder)}
        self._environ |= {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "TERM": "screen"}
        self._begin = ["start-server", ";", "set-option", "-g", "status", "off", ";"]
        self._begin += ["set-option", "-s", "escape-time", "0", ";"]

    def __call__(self, *command: str) -> str:
        done = subprocess.run(
            [*self._command, *command], env=self._environ, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout

    def pane(
        self, mode: str, command: list[str], *, name: str, rows: int = 24, every: float = 0.1, errors: bool = False
    ) -> Pane:
        """Run a command under a display of this mode, in 80 columns; with ``errors``, standard error is a file."""
        looks, kept = self._folder / f"{name}.looks", self._folder / f"{name}.errors"
        program = [sys.executable, str(_HERE / "shown_child.py"), mode, str(every), str(looks), *command]
        shell = ["/bin/sh", "-c", _AFTER if not errors else f'exec 2>"{kept}"; {_AFTER}', "sh", *program]
        self(*self._begin, "new-session", "-d", "-s", name, "-x", "80", "-y", str(rows), *shell)
        self._begin = []
        return Pane(self, name, looks, kept)


@contextmanager
def tmux() -> Iterator[Tmux]:
    """Start a server, and end it with all that runs in it. Skip the test where there is no tmux."""
    if TMUX is None:
        pytest.skip("tmux is not installed")
    folder = Path(tempfile.mkdtemp(prefix="tb"))  # the path of a socket must be short
    one = Tmux(folder)
    try:
        yield one
    finally:
        subprocess.run([*one._command, "kill-server"], env=one._environ, capture_output=True, check=False, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def assert_same(panes: Mapping[str, Pane], reference: Pane) -> None:
    """Wait until these terminals show what the reference shows, all of it; fail with both screens if they do not."""
    for mode, pane in panes.items():
        wait(
            lambda pane=pane: pane.screen == reference.screen,  # type: ignore[misc]
            lambda mode=mode, pane=pane: f"{mode}:\n{pane.screen}\nalone:\n{reference.screen}",  # type: ignore[misc]
        )
