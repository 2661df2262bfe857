"""Faults of SQLite: the processes of one host over one file."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from fault_crew import BudgetUnavailable, Crew, Outcome, StoreError, wait_until

from token_budget.stores.sqlite._schema import VERSION

STORE = "sqlite:FOLDER/budget.db#total"
_ROOM = "TOKEN_BUDGET_FAULTS_ROOM"  # the small file system, in the process that runs in a namespace of its own


def kills(scale: float, workers: int) -> Outcome:
    """Kill -9 at random points."""
    with Crew(STORE, workers) as crew:
        for _ in range(max(6, round(200 * scale))):
            crew.kill_at_random()
        return crew.finish()


def soak(seconds: float, workers: int) -> Outcome:
    """Go on for a while, with a kill now and then."""
    with Crew(STORE, workers) as crew:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            crew.kill_at_random()
            time.sleep(crew.random.uniform(0, 1))
        return crew.finish()


# ---------------------------------------------------------------------- who has the lock is stopped


def _locked_by(path: str, pids: set[int]) -> int:
    """Return which of these processes has a lock on a file, as the kernel says; 0: none."""
    inode = os.stat(path).st_ino  # noqa: PTH116
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        words = line.split()
        if "->" not in words and "WRITE" in words and int(words[5].split(":")[2]) == inode and int(words[4]) in pids:
            return int(words[4])
    return 0


@contextmanager
def _lock_holder_stopped(crew: Crew) -> Iterator[int]:
    """Stop all workers at once, until one of them has the file lock; let the others go on."""
    path = f"{crew.folder}/budget.db.lock"
    pids = {crew.processes[key].pid for key in crew.living}
    holder = 0

    def stopped() -> bool:
        nonlocal holder
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        for pid in pids:
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        holder = _locked_by(path, pids)
        for pid in pids - {holder}:
            os.kill(pid, signal.SIGCONT)
        return bool(holder)

    wait_until(stopped, "no worker was in the lock")
    try:
        yield holder
    finally:
        os.kill(holder, signal.SIGCONT)


def stopped_holder(scale: float, workers: int) -> Outcome:
    """SIGSTOP to the process that has the file lock: it lives, so that all others are refused until it goes on."""
    with Crew(STORE, workers, timeout=0.5) as crew:
        for _ in range(max(1, round(5 * scale))):
            with _lock_holder_stopped(crew):
                begun = time.monotonic()
                try:
                    crew.pool.child(name="bystander").record(usd=1)
                    crew.findings.append("the lock was stepped over")
                except BudgetUnavailable:
                    crew.findings += [] if time.monotonic() - begun < 30 else ["the deadline was not kept"]
                crew.wait_for_refusals()
            time.sleep(0.3)
        return crew.finish()


def stopped_and_killed(scale: float, workers: int) -> Outcome:
    """SIGSTOP to the process that has the file lock, then kill -9: the lock is free at once, and it is charged."""
    with Crew(STORE, workers, timeout=5) as crew:
        for _ in range(max(2, round(20 * scale))):
            with suppress(ProcessLookupError), _lock_holder_stopped(crew) as holder:
                key = next(key for key in crew.living if crew.processes[key].pid == holder)
                crew.restart(key)
        return crew.finish()


# ---------------------------------------------------------------------- the disk is full


def disk_full(scale: float, workers: int) -> Outcome | str:
    """Fill a small file system, and make room again. It is mounted in a namespace of this process's own."""
    room = os.environ.get(_ROOM)
    if room is None:
        return _in_a_small_room("sqlite-disk-full", scale * 60)
    with Crew(f"sqlite:{room}/budget.db#total", workers, timeout=1) as crew:
        ballast = Path(room, "ballast")
        for _ in range(max(1, round(4 * scale))):
            with closing(sqlite3.connect(Path(room, "budget.db"), isolation_level=None)) as reader:
                reader.execute("BEGIN")
                reader.execute("SELECT * FROM sqlite_master").fetchall()  # as long as it reads, the log can only grow
                _fill(ballast)
                crew.wait_for_refusals(partial(_fill, ballast))
                crew.pool.snapshot()  # works
                time.sleep(0.2)
                crew.restart(crew.random.choice(crew.living))  # and who dies now is charged when there is room
                ballast.unlink()
            time.sleep(0.5)
        return crew.finish()


def _fill(ballast: Path) -> None:
    with suppress(OSError), ballast.open("ab", buffering=0) as file:
        while file.write(bytes(1024)):
            pass


def _in_a_small_room(name: str, seconds: float) -> str:
    """Run this fault alone in a mount namespace with a file system of 3 MB, and return its line of JSON."""
    room = subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip()
    inside = 'mount -t tmpfs -o size=3m tmpfs "$0" && exec "$@"'
    program = str(Path(__file__).parent)
    words = ["unshare", *([] if os.getuid() == 0 else ["-r"]), "-m", "sh", "-c", inside, room]
    try:
        tried = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
        if tried.returncode:
            return f"skipped: no mount namespace here ({tried.stderr.strip()})"
        ended = subprocess.run(
            [*words, sys.executable, program, "--json", "--seconds", str(seconds), name],
            capture_output=True,
            text=True,
            env={**os.environ, _ROOM: room},
            check=False,
        )
        return ended.stdout if ended.returncode in {0, 1} and ended.stdout else f"failed: {ended.stderr[-2_000:]}"
    except FileNotFoundError as error:
        return f"skipped: {error}"
    finally:
        Path(room).rmdir()


# ---------------------------------------------------------------------- clocks, forks


class SteppedClock:
    """A file that says by how many seconds the workers' wall clock is ahead."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.step(0)

    def step(self, seconds: int) -> None:
        """Step it, for all processes at once."""
        fresh = self._path.with_suffix(".new")
        fresh.write_text(str(seconds), encoding="ascii")
        fresh.rename(self._path)

    def time(self) -> float:
        """Return what the workers' clock says."""
        return time.time() + int(self._path.read_text(encoding="ascii"))


def clock_steps(scale: float, workers: int, store: str = STORE) -> Outcome:
    """Step the wall clock of all processes by an hour to and fro: nobody who lives is charged, nobody waits longer."""
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    clock = SteppedClock(folder / "clock")
    try:
        with Crew(store, workers, clock=str(folder / "clock")) as crew:
            for seconds in (3_600, 0, -3_600, 7_200) * max(1, round(4 * scale)):
                clock.step(seconds)
                time.sleep(0.2)
                crew.findings += [f"{one.who} lives, and is charged" for one in crew.pool.expired()]
            crew.kill_at_random()  # and one who dies is charged all the same
            return crew.finish()
    finally:
        shutil.rmtree(folder)


def window_steps(scale: float, workers: int) -> Outcome:
    """Step the clock of a window by an hour: a new period. Step it back: no period is opened again."""
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    clock = SteppedClock(folder / "clock")
    try:
        with Crew(STORE, workers, clock=str(folder / "clock"), window=True, own_clock=clock.time) as crew:
            for seconds in (3_600, 0) * max(1, round(3 * scale)):
                _step_a_window(crew, clock, seconds)
            crew.stop()
            before = sum(child.usd_used_nanos for child in crew.pool.snapshot(tree=True).children)
            clock.step(7_200)
            crew.findings += ["a new period begins with something used"] if crew.pool.snapshot().usd_used_nanos else []
            crew.go_on()
            time.sleep(max(0.5, 2 * scale))
            outcome = crew.finish()
            since = sum(child.usd_used_nanos for child in crew.tree.children) - before
            if crew.tree.usd_used_nanos != since:
                outcome.unexplained.append(f"{since} in the last period, and the root has {crew.tree.usd_used_nanos}")
            return outcome
    finally:
        shutil.rmtree(folder)


def _step_a_window(crew: Crew, clock: SteppedClock, seconds: int) -> None:
    """Step it while all run; check that the period did not go back, and that it counts what is spent from then on."""
    before = crew.pool.snapshot()
    clock.step(seconds)
    time.sleep(0.3)
    after = crew.pool.snapshot()
    assert before.window_start is not None
    assert after.window_start is not None
    if after.window_start < before.window_start:
        crew.findings.append(f"the period of {after.window_start} was opened again")
    if seconds <= 0 and after.usd_used_nanos < before.usd_used_nanos:
        crew.findings.append("a clock that went back took away what was spent")


def forks(scale: float, workers: int) -> Outcome:
    """Fork in the middle of a call: both go on, and a parent that is killed is dead though its child lives."""
    with Crew(STORE, workers, fork=True) as crew:
        wait_until(lambda: sum(bool(life.child) for life in crew.last().values()) == workers, "not all fork")
        time.sleep(max(0.3, 5 * scale))
        for key in crew.living[: workers // 2]:
            crew.kill(key)
        time.sleep(max(0.3, 2 * scale))
        outcome = crew.finish()
        with closing(sqlite3.connect(crew.folder / "budget.db")) as database:
            said = database.execute("PRAGMA integrity_check").fetchone()
        outcome.unexplained.extend([] if said == ("ok",) else [f"integrity_check says {said}"])
        return outcome


# ---------------------------------------------------------------------- somebody else has his hands in the file


def newer_schema(scale: float, workers: int) -> Outcome:
    """Another version raises the format of the file under running processes, and takes it back."""
    with Crew(STORE, workers) as crew:
        for _ in range(max(1, round(4 * scale))):
            _set_version(crew, VERSION + 1)
            time.sleep(0.2)
            crew.refuses_newcomers(StoreError, create=True)
            _set_version(crew, VERSION)
            time.sleep(0.2)
        crew.kill_at_random()
        return crew.finish()


def _set_version(crew: Crew, version: int) -> None:
    with closing(sqlite3.connect(crew.folder / "budget.db", timeout=20)) as database:
        database.execute(f"PRAGMA user_version = {version}")


def deleted(_scale: float, workers: int) -> Outcome:
    """Delete the file under running processes: all refuse, and no newcomer gets a fresh budget."""
    with Crew(STORE, workers) as crew:
        crew.stop_watching()
        (crew.folder / "budget.db").unlink()
        since = time.monotonic_ns()
        outcome = crew.lost(since)
        crew.refuses_newcomers(create=True)
        return outcome


def replaced(_scale: float, workers: int) -> Outcome:
    """Put a copy in the place of the file under running processes: all refuse."""
    with Crew(STORE, workers) as crew:
        crew.stop_watching()
        path = crew.folder / "budget.db"
        shutil.copy(path, crew.folder / "copy.db")
        (crew.folder / "copy.db").rename(path)
        return crew.lost(time.monotonic_ns())


def stranger(scale: float, workers: int) -> Outcome:
    """A sqlite3 shell has a write transaction open for longer than the deadline."""
    with Crew(STORE, workers, timeout=0.5) as crew:
        for _ in range(max(1, round(5 * scale))):
            with closing(sqlite3.connect(crew.folder / "budget.db", timeout=20, isolation_level=None)) as database:
                database.execute("BEGIN IMMEDIATE")
                crew.wait_for_refusals()
                database.execute("ROLLBACK")
            time.sleep(0.3)
        return crew.finish()


FAULTS: dict[str, tuple[str, Callable[..., Any], tuple[int, ...]]] = {
    "sqlite-kills": ("kill -9 at random points", kills, (4, 8)),
    "sqlite-stopped-holder": ("lock holder stopped", stopped_holder, (4,)),
    "sqlite-stopped-and-killed": ("lock holder killed in the lock", stopped_and_killed, (4,)),
    "sqlite-disk-full": ("disk full", disk_full, (3,)),
    "sqlite-clock": ("wall clock stepped an hour", clock_steps, (3,)),
    "sqlite-window": ("a window's clock stepped an hour", window_steps, (3,)),
    "sqlite-fork": ("fork with open connections", forks, (4,)),
    "sqlite-newer-schema": ("format raised while in use", newer_schema, (3,)),
    "sqlite-deleted": ("file deleted", deleted, (3,)),
    "sqlite-replaced": ("file replaced by a copy", replaced, (3,)),
    "sqlite-stranger": ("a stranger in a write transaction", stranger, (3,)),
}
