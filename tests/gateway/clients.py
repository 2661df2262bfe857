"""Runs a real client through ``token-budget run`` before the fake provider, and gathers what each side says of it."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import token_budget
from token_budget.cli._provider import RATES, Provider

PROGRAMS = Path(__file__).parent / "programs"
PATIENCE = 100.0  # seconds until a client that hangs is ended
# What a client gets of this machine. No key of the user's and no address of a real provider is among it.
_KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "SYSTEMROOT",
    "COMSPEC",
    "PATHEXT",
    "TEMP",
    "TMP",
    "PYTHONDONTWRITEBYTECODE",
)
_KEYS = ("OPENAI", "ANTHROPIC", "GEMINI", "GROQ", "MISTRAL")


@dataclass(frozen=True)
class Said:
    """One line of JSON that a program printed."""

    call: str
    text: Any
    at: float  # seconds of the program's clock; of ours, when its line came, where it tells none
    status: int | None = None


@dataclass(frozen=True)
class Ran:
    """How a client ran."""

    code: int
    said: tuple[Said, ...]
    pieces: tuple[tuple[float, str], ...]  # its standard output as it came, with our clock
    errors: str  # its standard error, and that of `token-budget run`; "" where they are among the pieces
    report: Mapping[str, Any]

    @property
    def output(self) -> str:
        """Its whole standard output."""
        return "".join(text for _, text in self.pieces)

    def calls(self, beginning: str = "") -> dict[str, list[Said]]:
        """Return what was said, by the name of the call."""
        found: dict[str, list[Said]] = {}
        for line in self.said:
            if line.call.startswith(beginning):
                found.setdefault(line.call, []).append(line)
        return found


def prices() -> list[str]:
    """Return the options that give the provider's models the prices by which it bills."""
    found = []
    for model, rate in RATES.items():
        numbers = (Decimal(each) / 1000 for each in (rate.input, rate.output, rate.cached))
        found += ["--price", f"{model}={','.join(map(str, numbers))}"]
    return found


def addresses(url: str) -> dict[str, str]:
    """Return the environment of a user whose clients call the provider at ``url``, each by the variable it reads."""
    return {f"{name}_API_KEY": "sk-of-the-user" for name in _KEYS} | {
        "OPENAI_BASE_URL": f"{url}/v1",
        "ANTHROPIC_BASE_URL": url,
        "GOOGLE_GEMINI_BASE_URL": url,
        "GROQ_BASE_URL": url,
        "MISTRAL_API_BASE": f"{url}/v1",
    }


def environment(provider: Provider, **more: str) -> dict[str, str]:
    """Return the environment in which a client is run."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    path = str(Path(token_budget.__file__).parent.parent)
    return {**kept, **addresses(provider.url), "PYTHONPATH": path, **more}


def run_client(
    command: Sequence[str],
    provider: Provider,
    *options: str,
    usd: str = "1",
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    one_output: bool = False,
) -> Ran:
    """Run a command under ``token-budget run`` with a budget, until it ends.

    A stream of the provider's that stalls is released as soon as the client has printed its first chunk (a line whose
    call begins with "stall"), and not before: a stream that is kept back anywhere on its way never comes to its end.

    Args:
        command: the client.
        provider: what it calls.
        options: more options of ``token-budget run``.
        usd: the budget.
        environ: the whole environment; None for `environment`.
        folder: where it runs; None: here.
        one_output: whether its standard error goes where its standard output goes.
    """
    with tempfile.TemporaryDirectory() as beside, Path(beside, "errors").open("w+b") as errors:
        report = Path(beside, "report.json")
        run = [sys.executable, "-m", "token_budget", "run", "--usd", usd, *prices(), "--progress", "off"]
        run += ["--report", str(report), *options, "--", *command]
        said: list[Said] = []
        pieces: list[tuple[float, str]] = []
        to = subprocess.STDOUT if one_output else errors
        stalls = _Stalls(provider)
        given = environment(provider) if environ is None else dict(environ)
        with started(run, given, to, folder) as process, stalls:
            for line in _lines(process, pieces):
                if (told := _said(line)) is not None:
                    said.append(told)
                    stalls.saw(told.call)
        errors.seek(0)
        text = errors.read().decode(errors="replace")
        found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
        return Ran(process.returncode, tuple(said), tuple(pieces), text, found)


def _lines(process: subprocess.Popen[bytes], pieces: list[tuple[float, str]]) -> Iterator[str]:
    """Go through the lines of a process's output as they come, and note each piece when it comes."""
    assert process.stdout is not None
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    rest = ""
    while piece := os.read(process.stdout.fileno(), 65_536):
        text = decoder.decode(piece)
        pieces.append((time.monotonic(), text))
        *lines, rest = (rest + text).split("\n")
        yield from lines


@contextlib.contextmanager
def started(
    command: Sequence[str], environ: Mapping[str, str], errors: Any, folder: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in a session of its own, and end all of it where it outlasts `PATIENCE` or the block fails."""
    process = subprocess.Popen(
        command,
        env=environ,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=os.name == "posix",
    )

    def end() -> None:
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()

    timer = threading.Timer(PATIENCE, end)
    timer.start()
    try:
        yield process
        process.wait()
    except BaseException:
        end()
        process.wait()
        raise
    finally:
        timer.cancel()
        timer.join()
        if process.stdout is not None:
            process.stdout.close()


class _Stalls:
    """Releases what stalls, from the first line of a stream on until its third: then it has gone on."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._seen: dict[str, int] = {}
        self._releasing = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def saw(self, call: str) -> None:
        if call.startswith("stall"):
            self._seen[call] = self._seen.get(call, 0) + 1
            (self._releasing.set if self._seen[call] < 3 else self._releasing.clear)()

    def _work(self) -> None:
        while not self._ended.wait(0.02):
            if self._releasing.is_set():  # again and again: the provider may not have come to where it stalls
                self._provider.release()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def _said(line: str) -> Said | None:
    try:
        told = json.loads(line)
        return Said(told["call"], told["text"], told.get("at", time.monotonic()), told.get("status"))
    except (ValueError, TypeError, KeyError):
        return None
