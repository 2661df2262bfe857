"""The big clients: where each comes from, how it is asked one question in print mode, and how its words are found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


class NotInstalled(Exception):
    """A client cannot be installed here: why."""


@dataclass(frozen=True)
class BigClient:
    """A client, as a user has it."""

    source: str  # "npm" or "pypi"
    package: str
    program: str  # below the folder in which it is installed
    arguments: Sequence[str]  # for one question; "QUESTION" stands for it
    word: str  # what a streamed word looks like in its output; "WORD" stands for it
    tools: bool = False  # it offers its models tools, and goes on with what they give
    tries: int = 1  # requests that it makes before it gives up, where the budget refuses the first
    environ: Mapping[str, str] = field(default_factory=dict)
    at_home: Mapping[str, str] = field(default_factory=dict)  # files of its home folder

    def command(self, folder: Path, question: str) -> list[str]:
        """Return the command that asks a question."""
        return [str(folder / self.program), *(question if part == "QUESTION" else part for part in self.arguments)]


_AIDER = ("--message", "QUESTION", "--no-git", "--yes", "--no-pretty", "--no-check-update", "--no-show-model-warnings")
_AS_IT_COMES = ("--output-format", "stream-json", "--verbose", "--include-partial-messages")
_KEYED = {"security": {"auth": {"selectedType": "gemini-api-key"}}}

CLIENTS: dict[str, BigClient] = {
    "claude": BigClient(
        "npm",
        "@anthropic-ai/claude-code",
        "node_modules/.bin/claude",
        ("-p", "QUESTION", "--model", "house-large", *_AS_IT_COMES),
        '"text_delta","text":"WORD"',
        tools=True,
    ),
    "codex": BigClient(
        "npm",
        "@openai/codex",
        "node_modules/.bin/codex",
        ("exec", "--skip-git-repo-check", "-m", "house-large", "QUESTION"),
        '"delta": "WORD"',
        tools=True,
        environ={"RUST_LOG": "codex_api=trace"},  # in print mode it tells what it streams nowhere else
    ),
    "gemini": BigClient(
        "npm",
        "@google/gemini-cli",
        "node_modules/.bin/gemini",
        ("-p", "QUESTION", "-m", "house-large", "--output-format", "stream-json", "--skip-trust"),
        '"content":"WORD","delta"',
        tools=True,
        # What a user chose at its first start. Without that it takes a base URL for a login, and then refuses it.
        at_home={".gemini/settings.json": json.dumps(_KEYED)},
    ),
    "aider openai": BigClient(
        "pypi", "aider-chat", "bin/aider", ("--model", "openai/house-small", *_AIDER), "WORD", tries=2
    ),
    "aider anthropic": BigClient(
        "pypi", "aider-chat", "bin/aider", ("--model", "anthropic/house-large", *_AIDER), "WORD", tries=2
    ),
}


def install(client: BigClient, below: Path, python: str | None) -> tuple[Path, str]:
    """Install a client if it is not there; return its folder and its version.

    Args:
        client: which one.
        below: the folder for all of them.
        python: the interpreter of those from PyPI; None: one that they have wheels for, up to 3.12, or this one.

    Raises:
        NotInstalled: why it cannot be.
    """
    folder = below / client.package.rpartition("/")[2]
    folder.mkdir(parents=True, exist_ok=True)
    by: Callable[[], str] = (
        (lambda: _from_npm(client.package, folder))
        if client.source == "npm"
        else (lambda: _from_pypi(client.package, folder, python))
    )
    if not (folder / "ready").exists():
        (folder / "ready").write_text(by(), encoding="utf-8")
    return folder, (folder / "ready").read_text(encoding="utf-8")


def _from_npm(package: str, folder: Path) -> str:
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise NotInstalled("node or npm is not on this machine")
    _done([npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--loglevel=error", package])
    found = json.loads((folder / "node_modules" / package / "package.json").read_text(encoding="utf-8"))
    return str(found["version"])


def _from_pypi(package: str, folder: Path, python: str | None) -> str:
    _done([python or _interpreter(), "-m", "venv", "--clear", str(folder)])
    inside = folder / "bin" / "python"
    _done([str(inside), "-m", "pip", "install", "-q", package])
    return _done([str(inside), "-c", f"import importlib.metadata as m; print(m.version({package!r}))"]).strip()


def _interpreter() -> str:
    """Return an interpreter from 3.10 to 3.12, which aider asks for."""
    if sys.version_info < (3, 13):
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    known = [shutil.which(f"python3.{minor}") for minor in (12, 11, 10)]
    found = [str(path) for minor in (12, 11, 10) for path in sorted(pyenv.glob(f"3.{minor}.*/bin/python"))]
    for python in [*filter(None, known), *found]:
        if subprocess.run([python, "-c", "import venv"], capture_output=True, check=False).returncode == 0:
            return python
    return sys.executable


def _done(command: Sequence[str]) -> str:
    """Run a command; return its output."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{Path(command[0]).name} took more than 15 minutes") from None
    if done.returncode:
        raise NotInstalled((done.stderr.strip().splitlines() or ["it failed and said nothing"])[-1][:200])
    return done.stdout
