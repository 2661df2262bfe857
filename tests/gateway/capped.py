"""Tools for the tests of `token-budget run`: real programs under it, in this process or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from token_budget.cli import main
from token_budget.cli._provider import Provider

HERE = str(Path(__file__).parent)
PRICES = ("--price", "house-small=0.15,0.6,0.075")
CALL = 4_800  # nanodollars that `caller.call()` costs: 4 tokens of input at 150, 7 of output at 600
HELD = 17_400  # what it holds: 64 tokens of input, 13 of output
USES = f"import sys\nsys.path.insert(0, {HERE!r})\nfrom caller import at_once, call, got, opened\n"


def cap_for(calls: int) -> str:
    """Return the dollars that pay for so many such calls, one after the other, and for no more."""
    return f"0.{HELD + (calls - 1) * CALL:09}"


class Ran(NamedTuple):
    """What became of a run."""

    code: int
    out: str
    err: str
    report: dict[str, Any]


def clean_environment(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let no variable of the machine lead elsewhere, and no run see those of others."""
    for name in list(os.environ):
        if name.endswith(("_BASE_URL", "_API_BASE", "_API_KEY")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.chdir(folder)


def python(program: str) -> list[str]:
    """Return the command of a program that has the functions of `caller`."""
    return [sys.executable, "-S", "-c", USES + program]


def words(provider: Provider | None, report: Path, *options: str, program: list[str] | str) -> list[str]:
    """Return the arguments of ``token-budget``: a run whose upstream ``openai`` is the provider."""
    upstream = [] if provider is None else ["--upstream", f"openai={provider.url}"]
    command = python(program) if isinstance(program, str) else program
    return ["run", *options, *upstream, *PRICES, "--report", str(report), "--", *command]


class Runner:
    """Runs programs under ``token-budget run``, against one provider."""

    def __init__(self, provider: Provider, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.provider = provider
        self.folder = folder
        self._capfd = capfd
        self._reports = 0

    def here(self, *options: str, program: list[str] | str) -> Ran:
        """Run it in this process."""
        path = self._report()
        self._capfd.readouterr()
        code = main(words(self.provider, path, *options, program=program))
        out, err = self._capfd.readouterr()
        return Ran(code, out, err, json.loads(path.read_text()) if path.exists() else {})

    def refused(self, *options: str, program: list[str] | str = "open('started', 'w')") -> str:
        """Return why a run is not started: the exit status is 2."""
        self._capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main(words(self.provider, self._report(), *options, program=program))
        assert exit_.value.code == 2
        return self._capfd.readouterr().err

    def apart(self, *options: str, program: list[str] | str, **variables: str) -> tuple[Path, subprocess.Popen[str]]:
        """Start it in a process of its own; return its report's file, and the process."""
        path = self._report()
        return path, started(words(self.provider, path, *options, program=program), variables)

    def ran_apart(self, *options: str, program: list[str] | str, **variables: str) -> Ran:
        """Run it in a process of its own, and wait for it."""
        path, process = self.apart(*options, program=program, **variables)
        return outcome(path, process)

    def _report(self) -> Path:
        self._reports += 1
        return self.folder / f"report-{self._reports}.json"


def started(arguments: list[str], variables: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start ``token-budget`` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "token_budget", *arguments],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(path: Path, process: subprocess.Popen[str]) -> Ran:
    """Wait for such a process."""
    with process:
        out, err = process.communicate(timeout=60)
    return Ran(process.returncode, out, err, json.loads(path.read_text()) if path.exists() else {})


def settles(wanted: Callable[[], object], seconds: float = 30) -> None:
    """Wait until it is true; fail if it does not become true."""
    import time

    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.01)
