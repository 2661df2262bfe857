"""Proof by faults: ``python tests/stores/faults [--seconds 60] [NAME...]``.

Processes spend from one budget while something is killed, stopped, emptied, filled or replaced. Then each is asked what
it was told, and the store must say exactly that; see `fault_audit`. It prints a table of counts, and exits 0 only if
nothing in it is unexplained. ``--seconds`` is how long the soak takes; the other faults scale with it.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import fault_crew
import faults_of_redis
import faults_of_sqlite

HEAD = ("fault", "store", "workers", "kills", "settled", "refused", "held", "unexplained", "longest wait")
LINE = "{:<40} {:<7} {:>7} {:>6} {:>8} {:>8} {:>5} {:>12} {:>13}"


def all_faults() -> dict[str, tuple[str, Callable[..., Any], tuple[int, ...]]]:
    """Return (title, function, numbers of workers) by name."""
    return {
        **faults_of_sqlite.FAULTS,
        **faults_of_redis.FAULTS,
        "sqlite-soak": ("soak, random kills", faults_of_sqlite.soak, (8,)),
        "redis-soak": ("soak, random kills", faults_of_redis.soak, (8,)),
    }


def row(name: str, title: str, outcome: Any) -> list[Any]:
    """Return the cells of a row, and below them what is unexplained and what is to be said."""
    store = name.partition("-")[0]
    count = len(outcome.unexplained)
    cells = [title, store, outcome.workers, outcome.kills, outcome.settled, outcome.unavailable, outcome.held, count]
    return [*cells, f"{outcome.longest * 1e3:.0f} ms", outcome.unexplained, outcome.note]


def run(name: str, seconds: float, *, brief: bool) -> list[list[Any]]:
    """Run a fault with each number of workers, and return its rows. One that was skipped has a reason in its place."""
    title, function, numbers = all_faults()[name]
    rows = []
    for workers in numbers[:1] if brief else numbers:
        step = partial(function, seconds) if name.endswith("-soak") else partial(function, seconds / 60)
        try:
            outcome = step(workers)
        except TimeoutError as error:
            outcome = fault_crew.Outcome(workers, 0, 0, 0, [f"it did not come about: {error}"], 0, 0)
        if isinstance(outcome, str) and outcome.startswith("["):  # it ran in another process
            rows += json.loads(outcome)
        elif isinstance(outcome, str):
            wrong = [outcome] if outcome.startswith("failed") else []
            rows.append([title, name.partition("-")[0], workers, 0, 0, 0, 0, len(wrong), "", wrong, outcome])
        else:
            rows.append(row(name, title, outcome))
    return rows


def main() -> int:
    """Run the faults that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(all_faults()))
    asked = parser.parse_args()
    if asked.list:
        print("\n".join(all_faults()))
        return 0
    if unknown := set(asked.names) - set(all_faults()):
        parser.error(f"there is no fault {', '.join(sorted(unknown))}")
    logging.getLogger("token_budget").addHandler(logging.NullHandler())
    rows: list[list[Any]] = []
    if not asked.json:
        print(LINE.format(*HEAD), flush=True)
    for name in asked.names or all_faults():
        for found in run(name, asked.seconds, brief=asked.seconds < 30):
            rows.append(found)
            if not asked.json:
                print(LINE.format(*map(str, found[:9])), flush=True)
                for line in (*found[9], *filter(None, found[10:])):
                    print(f"    {line}", flush=True)
    if asked.json:
        print(json.dumps(rows))
    return int(any(found[7] or found[6] for found in rows))
