"""Faults for real, each briefly: the whole run, with 200 kills and longer faults, is ``python tests/stores/faults``.

Each fault is a program of its own, two of them at a time: they wait for leases and time-outs more than they compute.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

PROGRAM = str(Path(__file__).with_name("faults"))
BRIEF, SOAK = 2, 10  # seconds that they are told; a fault takes 2 to 8 in all
NAMES = (
    "sqlite-soak",
    "redis-soak",
    "sqlite-kills",
    "sqlite-stopped-holder",
    "sqlite-stopped-and-killed",
    "sqlite-disk-full",
    "sqlite-clock",
    "sqlite-window",
    "sqlite-fork",
    "sqlite-newer-schema",
    "sqlite-deleted",
    "sqlite-replaced",
    "sqlite-stranger",
    "redis-kills",
    "redis-stopped-holder",
    "redis-restarted",
    "redis-restarted-empty",
    "redis-flushall",
    "redis-root-gone",
    "redis-scope-gone",
    "redis-owners-gone",
    "redis-paused",
    "redis-paused-long",
    "redis-client-kill",
    "redis-memory-full",
    "redis-promoted",
    "redis-promoted-behind",
    "redis-clock",
    "redis-fork",
)


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, PROGRAM, *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """Start those that were selected, two at a time and in their order."""
    items = [item for item in request.session.items if item.path == request.path]
    chosen = {name for name in NAMES if any(item.name.endswith(f"[{name}]") for item in items)}
    with ThreadPoolExecutor(2) as pool:
        started = {
            name: pool.submit(_run, "--json", "--seconds", str(SOAK if name.endswith("soak") else BRIEF), name)
            for name in NAMES
            if name in chosen
        }
        yield started
        for future in started.values():
            future.cancel()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_the_store_has_exactly_what_each_process_was_told(name: str, running: dict[str, Future[Any]]) -> None:
    ended = running[name].result()
    assert ended.returncode in {0, 1}, ended.stderr
    rows = json.loads(ended.stdout)
    for *_, settled, _, held, count, longest, unexplained, note in rows:
        if note.startswith("skipped"):
            pytest.skip(note)
        assert not unexplained, longest
        assert count == held == 0
        assert settled, "nothing was settled, so nothing was tried"


def test_every_fault_is_tried_here() -> None:
    assert sorted(_run("--list").stdout.split()) == sorted(NAMES)
