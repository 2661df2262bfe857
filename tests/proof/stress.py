"""Races at full speed between threads that run in parallel, for CPython built without the GIL.

    python tests/proof/stress.py --seconds 30          each race for that long, on every free-threaded CPython found
    python tests/proof/stress.py --here --seconds 30   on the interpreter that runs this, whatever it is

The scheduler explores every interleaving of a few operations. This program looks for faults that the scheduler's model
of memory cannot show. It exits 0 if every race passed, or if there is no free-threaded CPython (and says so).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from support import caught, counters, run_together  # noqa: E402 - after the path to it
from token_budget import BudgetExceeded, BudgetPool, BudgetTimeout, PoolClosed, ReservationClosed  # noqa: E402

THREADS = 4
PROBE = (
    "import sys, sysconfig; sys.exit(not (sysconfig.get_config_var('Py_GIL_DISABLED') and not sys._is_gil_enabled()))"
)


def oversubscription() -> None:
    """Threads fill a cap: the pool admits exactly as much as fits."""
    pool = BudgetPool(token_cap=1000, usd_cap=1)
    admitted = run_together(
        *[lambda: sum(not caught(BudgetExceeded, pool.record, tokens=3, usd=0.003) for _ in range(200))] * THREADS
    )
    assert sum(admitted) == 333
    assert counters(pool) == (999, 0, 999_000_000, 0, 0)


def double_commit() -> None:
    """Threads commit one reservation: exactly one commit counts."""
    pool = BudgetPool(token_cap=10**6)
    reservations = [pool.reserve(tokens=10) for _ in range(100)]

    def commit() -> int:
        return sum(not caught(ReservationClosed, reservation.commit, tokens=7) for reservation in reservations)

    assert sum(run_together(*[commit] * THREADS)) == 100
    assert counters(pool) == (700, 0, 0, 0, 0)


def commit_against_release() -> None:
    """A commit and a release of one reservation race: exactly one of them counts."""
    pool = BudgetPool(token_cap=10**6)
    reservations = [pool.reserve(tokens=10) for _ in range(100)]

    def commit() -> int:
        return sum(not caught(ReservationClosed, reservation.commit) for reservation in reservations)

    def release() -> None:
        for reservation in reversed(reservations):
            reservation.release()

    committed, *_ = run_together(commit, release, release)
    assert counters(pool) == (10 * committed, 0, 0, 0, 0)


def reset_against_release() -> None:
    """Resets race with reservations and releases: no counter goes negative, and nothing stays held."""
    pool = BudgetPool(token_cap=10**6, usd_cap=10**6)

    def spend() -> None:
        for turn in range(100):
            with pool.reserve(tokens=3, usd=3) as reservation:
                if turn % 2:
                    reservation.commit(tokens=2, usd=2)

    def reset() -> None:
        for _ in range(100):
            pool.reset()
            counters(pool)

    run_together(spend, spend, reset)
    used, reserved, nanos, nanos_reserved, in_flight = counters(pool)
    assert nanos == used * 10**9
    assert (reserved, nanos_reserved, in_flight) == (0, 0, 0)


def snapshots() -> None:
    """Threads take snapshots while others write: each snapshot shows one moment."""
    pool = BudgetPool(token_cap=10**9, usd_cap=10**9)
    going = True

    def write() -> None:
        for _ in range(200):
            with pool.reserve(tokens=7, usd=7) as reservation:
                reservation.commit(tokens=3, usd=3)

    def read() -> None:
        while going:
            snapshot = pool.snapshot()
            assert snapshot.tokens_reserved == 7 * snapshot.in_flight
            assert snapshot.usd_used_nanos == snapshot.tokens_used * 10**9
            assert snapshot.usd_reserved_nanos == snapshot.tokens_reserved * 10**9

    def write_and_stop() -> None:
        nonlocal going
        write()
        going = False

    run_together(write, write, write_and_stop, read)


def drops() -> None:
    """Several threads drop and reclaim reservations: all capacity comes back."""
    pool = BudgetPool(token_cap=10**6)

    def drop() -> None:
        for _ in range(200):
            caught(BudgetExceeded, pool.reserve, tokens=7)

    run_together(*[drop] * THREADS)
    gc.collect()
    assert counters(pool) == (0, 0, 0, 0, 0)


def forks() -> None:
    """A process forks while threads spend: the child's copy is consistent and refuses to spend.

    This race does not run without the GIL. There CPython 3.13 guards each object by its own mutex and does not free
    those mutexes in a forked child. A mutex that another thread was just acquiring stays locked for ever, and the child
    hangs in its first store to that object, in any program (seen in `PyMember_SetOne`, called from our hook).
    """
    if not hasattr(os, "fork") or not _has_gil():
        return
    pool = BudgetPool(token_cap=10**9, usd_cap=10**9)
    going = True

    def spend() -> None:
        while going:
            with pool.reserve(tokens=7, usd=7) as reservation:
                reservation.commit(tokens=3, usd=3)

    def fork() -> None:
        nonlocal going
        try:
            for _ in range(10):
                child = os.fork()
                if child == 0:
                    try:
                        used, reserved, nanos, nanos_reserved, in_flight = counters(pool)
                        whole = nanos == used * 10**9 and nanos_reserved == reserved * 10**9 == 7 * in_flight * 10**9
                        pool.detach()
                        pool.record(tokens=1)
                        os._exit(not whole)
                    except BaseException:  # noqa: BLE001
                        os._exit(2)
                assert os.waitpid(child, 0)[1] == 0, "the child found half a change, or could not continue"
        finally:
            going = False

    run_together(spend, spend, fork)


def scopes() -> None:
    """Children of one pool spend, and keys are made: the whole never oversells, and the tree shows one moment."""
    total = BudgetPool(token_cap=2000, usd_cap=2000)
    users = total.keyed(token_cap=900)
    children = [total.child(token_cap=700) for _ in range(2)]
    spent = [0] * THREADS

    def spend(index: int) -> None:
        for turn in range(150):
            pool = users[turn % 3] if turn % 2 else children[index % 2]
            try:
                with pool.reserve(tokens=5, usd=5) as reservation:
                    reservation.commit(tokens=3, usd=3)
                spent[index] += 3
                pool.record(tokens=1, usd=1)
                spent[index] += 1
            except BudgetExceeded:
                pass

    def look() -> None:
        for _ in range(50):
            tree = total.snapshot(tree=True)
            assert tree.tokens_used == sum(child.tokens_used for child in tree.children) <= 2000
            assert tree.usd_used_nanos == tree.tokens_used * 10**9

    run_together(look, *[lambda index=index: spend(index) for index in range(THREADS)])
    assert counters(total) == (sum(spent), 0, sum(spent) * 10**9, 0, 0)


def five_scopes() -> None:
    """Threads spend in two chains of five and below a join: each change is made in all scopes or in none."""
    total = BudgetPool(token_cap=3000, usd_cap=3000)
    chains = []
    for _ in range(2):
        pool = total
        for level in range(4):
            pool = pool.child(token_cap=2000 - 100 * level)
        chains.append(pool)
    run = BudgetPool.join(total.child(), total.child()).child(token_cap=1500)
    pools = [*chains, run, chains[0]]
    spent = [0] * THREADS

    def spend(index: int) -> None:
        for turn in range(150):
            try:
                with pools[index].reserve(tokens=5, usd=5) as reservation:
                    if turn % 3:
                        reservation.commit(tokens=3, usd=3)
                        spent[index] += 3
                pools[index].record(tokens=1, usd=1)
                spent[index] += 1
            except BudgetExceeded:
                pass

    def look() -> None:
        for _ in range(50):
            tree = total.snapshot(tree=True)
            assert tree.usd_used_nanos == tree.tokens_used * 10**9
            while tree.children and tree.children[0].children:
                below = tree.children[0]
                assert below.tokens_used >= below.children[0].tokens_used
                tree = below

    run_together(look, *[lambda index=index: spend(index) for index in range(THREADS)])
    assert counters(total) == (sum(spent), 0, sum(spent) * 10**9, 0, 0)
    assert counters(run)[0] == spent[2]
    assert counters(chains[0])[0] == spent[0] + spent[3]


def subscribers() -> None:
    """Threads spend below subscribers and thresholds: each event and each threshold is delivered once."""
    total = BudgetPool(token_cap=2000)
    users = [total.child() for _ in range(2)]
    told: list[int] = []
    reached: list[str | None] = []
    total.subscribe(lambda event: told.append(event.tokens) if event.kind == "record" else None)
    for share in (0.1, 0.2, 0.5, 0.9):
        total.on_threshold(share, lambda event: reached.append(event.kind))

    def spend(index: int) -> int:
        return sum(not caught(BudgetExceeded, users[index % 2].record, tokens=7) for _ in range(150))

    admitted = run_together(*[lambda index=index: spend(index) for index in range(THREADS)])
    assert sum(admitted) == 285
    assert told == [7] * 285
    assert reached == ["threshold"] * 4
    assert not total._family.owed


def one_waits_for_a_user() -> None:
    """One thread waits for a user's budget, while others spend, wait, look up keys and delete them."""
    total = BudgetPool(token_cap=10**6)
    ann, bob = total.child(token_cap=10), total.child(token_cap=10**6)
    users = total.keyed(token_cap=10**6)
    holder = ann.reserve(tokens=8)

    def wait() -> None:
        ann.reserve(tokens=5, timeout=None).release()

    def spend() -> None:
        for _ in range(200):
            with bob.reserve(tokens=3) as reservation:
                reservation.commit(tokens=1)

    def keys() -> None:
        for turn in range(200):
            try:
                users[turn % 3].record(tokens=1)
                if turn % 10 == 0:
                    del users[turn % 3]
            except (KeyError, PoolClosed):
                pass

    def end() -> None:
        spend()
        holder.release()

    run_together(wait, spend, keys, keys, end)
    assert counters(bob)[0] == 400
    assert counters(total)[1] == 0
    assert total._family.root.line is None


def waiting() -> None:
    """Threads wait for room in scopes that others fill and free: each is served or times out. Nothing stays held."""
    total = BudgetPool(token_cap=20)
    children = [total.child(token_cap=12) for _ in range(2)]

    def work(index: int) -> None:
        for turn in range(40):
            try:
                with children[index % 2].reserve(tokens=3 + turn % 8, timeout=0.0005 if turn % 5 == 0 else 60) as held:
                    if turn % 3:
                        held.commit(tokens=0)
            except BudgetTimeout:
                pass

    run_together(*[lambda index=index: work(index) for index in range(THREADS)])
    assert counters(total) == (0, 0, 0, 0, 0)
    assert total._family.root.line is None
    assert total._account.line is None


def tasks_and_threads() -> None:
    """Event loops in several threads, and plain threads, wait in one line."""
    pool = BudgetPool(token_cap=10)

    async def task(turn: int) -> None:
        async with pool.areserve(tokens=2 + turn % 7) as reservation:
            await asyncio.sleep(0)
            reservation.commit(tokens=0)

    async def gathered() -> None:
        await asyncio.gather(*[task(turn) for turn in range(40)])

    def loop() -> None:
        asyncio.run(gathered())

    def thread() -> None:
        for turn in range(40):
            with pool.reserve(tokens=2 + turn % 7, timeout=60):
                pass

    run_together(loop, loop, thread, thread)
    assert counters(pool) == (0, 0, 0, 0, 0)
    assert pool._family.root.line is None


RACES: list[Callable[[], None]] = [
    oversubscription,
    double_commit,
    commit_against_release,
    reset_against_release,
    snapshots,
    drops,
    scopes,
    five_scopes,
    subscribers,
    one_waits_for_a_user,
    waiting,
    tasks_and_threads,
    forks,
]


def _has_gil() -> bool:
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def stress(seconds: float) -> None:
    """Run each race repeatedly for that many seconds."""
    warnings.simplefilter("ignore")
    gil = _has_gil()
    print(f"CPython {sys.version.split()[0]}, GIL {'on' if gil else 'off'}, {os.cpu_count()} processors", flush=True)
    for race in RACES:
        if race is forks and not gil:
            print(
                "  forks: LEFT OUT without the GIL, where CPython itself may hang a forked child (see there)",
                flush=True,
            )
            continue
        rounds, end = 0, time.monotonic() + seconds
        while time.monotonic() < end or not rounds:
            race()
            rounds += 1
        print(f"  {race.__name__}: {rounds} rounds in {seconds:g} s, every one held", flush=True)
    assert threading.active_count() == 1


def free_threaded() -> list[str]:
    """Return the free-threaded CPythons of this machine."""
    names = ["python3.13t", "python3.14t", "python3.15t", "python3t"]
    folders = [*os.environ.get("PATH", "").split(os.pathsep), *map(str, Path("/opt").glob("*/bin"))]
    folders += map(str, (Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions").glob("*t/bin"))
    candidates = [sys.executable, *(str(Path(folder) / name) for folder in folders for name in [*names, "python3"])]
    found: dict[tuple[int, int], str] = {}
    for path in map(Path, candidates):
        if path.exists() and os.access(path, os.X_OK):
            file = (path.stat().st_dev, path.stat().st_ino)
            if file not in found and _is_free_threaded(str(path)):
                found[file] = str(path)
    return list(found.values())


def _is_free_threaded(path: str) -> bool:
    return subprocess.run([path, "-c", PROBE], capture_output=True, check=False).returncode == 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="for each race (30)")
    parser.add_argument("--here", action="store_true", help="on this interpreter, whether it has a GIL or not")
    options: Any = parser.parse_args(arguments)
    if options.here:
        stress(options.seconds)
        return 0
    found = free_threaded()
    if not found:
        print("no free-threaded CPython was found on this machine: nothing was stressed")
        return 0
    command = [__file__, "--here", "--seconds", str(options.seconds)]
    return max(subprocess.run([python, *command], check=False).returncode for python in found)


if __name__ == "__main__":
    sys.exit(main())
