"""Faults for real, each briefly: the whole run, with 200 kills and longer faults, is ``python tests/stores/faults``.

Each fault is a program of its own, two of them at a time: they wait for leases and time-outs more than they compute.
"""

from __future__ import annotations

import importlib.util
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


# ---------------------------------------------------------------- the audit itself

_SPEC = importlib.util.spec_from_file_location("fault_audit", Path(PROGRAM, "fault_audit.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
audit = importlib.util.module_from_spec(_SPEC)
sys.modules["fault_audit"] = audit  # where its dataclass looks its annotations up
_SPEC.loader.exec_module(audit)

BEGUN = "1 b 0.0\n2 r 500\n3 g\n4 c 300\n5 d\n6 p 40\n7 q\n8 r 70\n9 u\n"  # 340 in all


@pytest.mark.parametrize(
    ("rest", "fits"),
    [
        ("", {(340, 0)}),
        ("10 r 90\n", {(340, 0), (430, 90)}),
        ("10 r 90\n11 x\n", {(340, 0)}),
        ("10 r 90\n11 g\n", {(430, 90)}),
        ("10 r 90\n11 g\n12 c 20\n", {(360, 0), (430, 90)}),
        ("10 r 90\n11 g\n12 c 20\n13 d\n", {(360, 0)}),
        ("10 r 90\n11 g\n12 l\n", {(340, 0), (430, 90)}),
        ("10 p 90\n", {(340, 0), (430, 0)}),
    ],
)
def test_a_killed_process_has_one_of_the_two_sums_of_its_last_step(
    rest: str, fits: set[tuple[int, int]], tmp_path: Path
) -> None:
    (tmp_path / "log").write_text(BEGUN + rest, encoding="ascii")
    life = audit.life_of(tmp_path / "log")
    all_pairs = {(used, charged) for used in (0, 339, 340, 341, 360, 410, 430) for charged in (0, 20, 90)}
    assert {pair for pair in all_pairs if not audit.audited(life, killed=True, used=pair[0], charged=pair[1])} == fits


@pytest.mark.parametrize(("last", "used", "charged"), [("z", 339, 0), ("z", 341, 0), ("z", 340, 90), ("!", 340, 0)])
def test_a_process_that_ended_by_itself_has_what_it_was_told(
    last: str, used: int, charged: int, tmp_path: Path
) -> None:
    (tmp_path / "log").write_text(f"{BEGUN}10 {last}\n", encoding="ascii")
    life = audit.life_of(tmp_path / "log")
    assert audit.audited(life, killed=False, used=used, charged=charged)
    assert bool(audit.audited(life, killed=False, used=340, charged=0)) is (last != "z")
