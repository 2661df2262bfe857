"""Runs the matrix: ``python tests/matrix`` for all generations, ``python tests/matrix openai-1 genai-1`` for some.

Each generation gets an environment of its own in ``.venvs/matrix``, with its SDK from the package index, and runs every
call shape there. It prints a table; it exits 0 only if no row is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


@dataclass(frozen=True)
class Generation:
    """One generation of an SDK."""

    sdk: str
    requirement: str


GENERATIONS = {
    "openai-new": Generation("openai", "openai"),
    "openai-2": Generation("openai", "openai>=2,<3"),
    "openai-1": Generation("openai", "openai==1.109.*"),
    "anthropic-new": Generation("anthropic", "anthropic"),
    "anthropic-1": Generation("anthropic", "anthropic>=1,<2"),
    "anthropic-0": Generation("anthropic", "anthropic==0.125.*"),
    "genai-new": Generation("google-genai", "google-genai"),
    "genai-1": Generation("google-genai", "google-genai>=1,<2"),
    "groq": Generation("groq", "groq"),
    "mistral": Generation("mistralai", "mistralai"),
}


def environment(name: str, requirement: str) -> Path:
    """Return the interpreter of the generation's environment, which is made if it is not there."""
    folder = ROOT / ".venvs" / "matrix" / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = folder / "ready"
    if not ready.exists() or ready.read_text() != requirement:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", requirement], check=True)
        ready.write_text(requirement)
    return python


def rows_of(generation: Generation, python: Path) -> list[dict[str, Any]]:
    """Run all shapes of a generation; return its rows."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    command = [str(python), "-m", "matrix.rows", generation.sdk]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise SystemExit(f"{generation.requirement}: the shapes could not be run")
    return [json.loads(line) for line in done.stdout.splitlines()]


def line(name: str, rows: list[dict[str, Any]]) -> str:
    """Return the line of the table for a generation."""
    kinds = Counter(row["counts"] for row in rows)
    version = next((f"{row['sdk']} {row['version']}" for row in rows), name)
    http = f"{kinds['equal']} | {kinds['at least']} | {kinds['nothing']}"
    return f"| {version} | {len(rows)} | {http} | {sum(bool(row['wrong']) for row in rows)} |"


def main() -> int:
    """Run what is asked for; return how many rows are wrong, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generations", nargs="*", help=f"some of {', '.join(GENERATIONS)}; all, if none is named")
    parser.add_argument("--python", type=Path, help="run in this environment, and make none")
    options = parser.parse_args()
    unknown = set(options.generations) - set(GENERATIONS)
    if unknown:
        parser.error(f"no generation is named {', '.join(sorted(unknown))}")
    wrong = []
    print("| generation | rows | counted == billed | counted >= billed | nothing | wrong |\n|---|---|---|---|---|---|")
    for name in options.generations or GENERATIONS:
        generation = GENERATIONS[name]
        rows = rows_of(generation, options.python or environment(name, generation.requirement))
        print(line(name, rows), flush=True)
        wrong += [row for row in rows if row["wrong"]] or ([] if rows else [{"sdk": name, "wrong": "no row was run"}])
    for row in wrong:
        print(row)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
