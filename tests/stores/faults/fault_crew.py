"""The processes of one fault, who watches them, and their audit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, NamedTuple

from fault_audit import Life, audited, life_of
from fault_worker import FEWEST, SLOT, usd

import token_budget
from token_budget import Window
from token_budget.contract import BudgetUnavailable
from token_budget.stores import StoreError, StoreLost, open_pool

_WORKER = str(Path(__file__).with_name("fault_worker.py"))
_PATIENCE = 60.0  # seconds for what comes about by itself; no fault takes nearly as long
_LONGEST = 600  # seconds after which a process ends by itself, whatever has become of everybody else


class Outcome(NamedTuple):
    """A row of the table."""

    workers: int
    kills: int
    settled: int  # steps that were answered: commits, releases, records
    held: int  # reservations that are still open at the end
    unexplained: list[str]
    longest: float  # seconds that a bystander waited for one record
    unavailable: int  # calls that were refused because the store could not be used
    note: str = ""


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Return when a condition holds."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)


class Crew:
    """Processes that spend from one budget: the workers, and a bystander that is never killed.

    The budget's root has a cap in dollars, and below it "slots", where all workers hold their reservations, has a cap
    in tokens that is too small for all of them at once. Each life of a worker has a scope of its own below that.
    """

    def __init__(self, store: str, workers: int, *, timeout: float = 5, lease: float = 1.0, **extra: Any) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="budget-faults-"))
        self.store = store.replace("FOLDER", str(self.folder))
        self.workers = workers
        self.kills = 0
        self.killed: set[str] = set()  # keys
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.random = Random(2026)
        self.findings: list[str] = []
        self.note = ""
        self.tree: Any = None  # of the end
        self.extra = extra
        self._timeout, self._lease = timeout, lease
        self._numbers: Counter[int] = Counter()
        self._charges: dict[str, tuple[str, int]] = {}  # what was listed: the key and the nanodollars, by id
        self._watching = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        clock = extra.get("own_clock", time.time)
        window = Window.every(timedelta(hours=1), clock=clock) if extra.get("window") else None
        options: dict[str, Any] = {"timeout": timeout, "lease": lease}
        self.pool: Any = open_pool(self.store, usd_cap=1_000_000, window=window, **options)
        self.slots = self.pool.child(name="slots", token_cap=SLOT * max(1, workers * 3 // 5))
        self.pool.child(name="bystander")

    # ------------------------------------------------------------------ life

    def __enter__(self) -> Crew:
        for number in range(self.workers):
            self.start(number)
        self.start(-1)
        wait_until(lambda: all(self.size(key) > 300 for key in self.processes), "the workers do not begin")
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watching.set()
        for process in self.processes.values():
            process.kill()
            process.wait()
        if self._watcher.ident is not None:
            self._watcher.join(_PATIENCE)
        with suppress(BudgetUnavailable):
            self.pool.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, number: int) -> str:
        """Start a worker, or its next life; -1 is the bystander."""
        key = f"{number}.{self._numbers[number]}" if number >= 0 else "bystander"  # which is one scope for all lives
        self._numbers[number] += 1
        settings = {
            "store": self.store,
            "folder": str(self.folder),
            "stop": str(self.folder / "stop"),
            "key": key,
            "seed": 11,
            "bystander": number < 0,
            "timeout": self._timeout,
            "lease": self._lease,
            "parent": os.getpid(),
            "longest": _LONGEST,
            **{name: value for name, value in self.extra.items() if name != "own_clock"},
        }
        source = str(Path(token_budget.__file__).parent.parent)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, *filter(None, sys.path)])}
        with (self.folder / f"{key}.err").open("wb") as errors:
            self.processes[key] = subprocess.Popen(
                [sys.executable, "-S", _WORKER, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=environment,
            )
        return key

    def size(self, key: str) -> int:
        """Return how much a process has logged."""
        try:
            return (self.folder / f"{key}.log").stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def living(self) -> list[str]:
        """The workers, without the bystander."""
        return [key for key in self.processes if key != "bystander" and key not in self.killed]

    def kill(self, key: str) -> None:
        """Kill -9."""
        process = self.processes[key]
        self.killed.add(key)
        self.kills += 1
        process.kill()
        process.wait()

    def kill_at_random(self) -> None:
        """Kill a worker that is in the middle of its calls, at any point, and start its next life."""
        busy: list[str] = []

        def found() -> bool:
            busy[:] = [key for key in self.living if self.size(key) > 100 + self.random.randrange(2_000)]
            return bool(busy)

        wait_until(found, "no worker gets on")
        time.sleep(self.random.uniform(0, 0.01))
        self.restart(self.random.choice(busy))

    def restart(self, key: str) -> None:
        """Kill a worker, and start its next life."""
        self.kill(key)
        self.start(int(key.partition(".")[0]))

    def refused(self) -> int:
        """Return how many calls have been refused because the store could not be used."""
        return sum(life.unavailable for life in self.last().values())

    def wait_for_refusals(self, meanwhile: Callable[[], object] = int) -> None:
        """Return when another call was refused; do something again and again until then."""
        before = self.refused()

        def refused() -> bool:
            meanwhile()
            return self.refused() > before

        wait_until(refused, "nobody is refused")

    def last(self) -> dict[str, Life]:
        """Return what all processes have logged."""
        return {path.stem: life_of(path) for path in sorted(self.folder.glob("*.log"))}

    # ------------------------------------------------------------------ watching

    def _watch(self) -> None:
        """Look at the whole tree again and again, and settle what dead processes have held: all but the dollars."""
        while not self._watching.is_set():
            with suppress(BudgetUnavailable):
                self.look()
            time.sleep(0.03)

    def look(self) -> Any:
        """Take a snapshot of all scopes as of one moment, and check it; correct what dead processes were charged."""
        tree = self.pool.snapshot(tree=True)
        found = list(_faults_of(tree))
        self.findings += found[: 10 - len(self.findings)] if found else []
        for one in self.pool.expired():
            key = one.pools[0].removeprefix("life:")
            if key in self.killed and one.id not in self._charges:
                self._charges[one.id] = key, one.usd_nanos
                self.pool.settle(one.id, tokens=0, usd=usd(one.usd_nanos))
        return tree

    # ------------------------------------------------------------------ the end

    def stop(self) -> None:
        """Tell all to end, and wait until they have."""
        (self.folder / "stop").touch()
        for key, process in self.processes.items():
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self.findings.append(f"{key}: does not end")
                process.send_signal(signal.SIGKILL)
                process.wait()
        children = [life for life in self.last().values() if life.child]
        with suppress(TimeoutError):
            wait_until(lambda: all(life.ended for life in self.last().values() if life.child), "forked children")
        for life in children:
            with suppress(ProcessLookupError):
                os.kill(life.child, signal.SIGKILL)

    def go_on(self) -> None:
        """Start a new life of each, after `stop`."""
        (self.folder / "stop").unlink()
        for number in (*range(self.workers), -1):
            self.start(number)

    def stop_watching(self) -> None:
        """Look no more: what is wrong from now on is meant to be."""
        self._watching.set()
        self._watcher.join(_PATIENCE)

    def finish(self, since: int | None = None) -> Outcome:
        """Stop all, wait until nothing is held, and audit.

        Args:
            since: from when on the store may have lost what it answered, up to now; None: it may lose nothing.
        """
        self.stop()
        with suppress(TimeoutError):
            wait_until(partial(self._nothing_held, lossy=since is not None), "reservations stay open")
        self.stop_watching()
        tree = self.tree = self.look()
        charged: Counter[str] = Counter()
        for key, nanos in self._charges.values():
            charged[key] += nanos
        for one in self.pool.expired():  # of those who live
            charged[one.pools[0].removeprefix("life:")] += one.usd_nanos
        used = {child.name.removeprefix("life:"): child.usd_used_nanos for child in _named(tree, "slots").children}
        used["bystander"] = _named(tree, "bystander").usd_used_nanos
        lives = self.last()
        if since is not None:
            self.note = f"{sum(life.told for life in lives.values()) - sum(used.values())} nanodollars lost"
        for key, life in lives.items():
            amounts = {"used": used.pop(key, 0), "charged": charged.pop(key, 0)}
            self.findings += audited(life, killed=key in self.killed, **amounts, since=since)
            if not life.ended and key not in self.killed:
                self.findings.append(f"{key}: step {life.step!r}, {self._last_words(key)}")
        self.findings += [f"{key}: nobody knows it, and it has {amount}" for key, amount in used.items() if amount]
        self.findings += [f"{key}: nobody knows it, and it is charged {amount}" for key, amount in charged.items()]
        if tree.tokens_used and since is None:
            self.findings.append(f"{tree.tokens_used} tokens are used, and nobody was told so")
        return self._outcome(lives, tree.in_flight)

    def _last_words(self, key: str) -> str:
        """Return how a process ended that has not said so."""
        errors = self.folder / f"{key}.err"
        said = errors.read_text(encoding="utf-8", errors="replace")[-1_000:] if errors.exists() else ""
        status = self.processes[key].returncode if key in self.processes else "of a forked child"
        return f"exit status {status}: {said}"

    def _nothing_held(self, *, lossy: bool) -> bool:
        with suppress(BudgetUnavailable):
            return not self.look().in_flight and (lossy or not self.pool.expired())
        return False

    def lost(self, since: int, *, but: tuple[str, ...] = ()) -> Outcome:
        """Wait until all have ended because the store is lost: nobody may have got anything that it asked for since.

        Those of ``but`` may go on, since they have nothing to do with what was lost.
        """
        those = [key for key in self.processes if key not in but and key not in self.killed]
        with suppress(TimeoutError):
            wait_until(lambda: all(self.processes[key].poll() is not None for key in those), "not all notice it")
        self.stop()
        lives = self.last()
        for key in those:
            life = lives[key]
            if life.ended != "!":
                self.findings.append(f"{key}: did not notice it ({life.ended or 'killed'})")
            late = sum(at > since for at in life.grants)
            if late:
                self.findings.append(f"{key}: was granted {late} times after the loss")
        return self._outcome(lives, 0)

    def refuses_newcomers(self, error: type[Exception] = StoreLost, *, create: bool) -> None:
        """Check that a process that opens the budget now is refused. It is a new one, since this one knows too much."""
        program = (
            "import sys\nfrom token_budget.stores import open_pool\n"
            f"try: open_pool({self.store!r}, usd_cap=1_000_000, create={create}, timeout=5)\n"
            "except Exception as error: print(type(error).__name__)\nelse: print('a fresh budget')\n"
        )
        source = str(Path(token_budget.__file__).parent.parent)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, *filter(None, sys.path)])}
        ended = subprocess.run(
            [sys.executable, "-S", "-c", program], capture_output=True, text=True, env=environment, check=False
        )
        said = ended.stdout.strip() or ended.stderr.strip()
        if said != error.__name__:
            self.findings.append(f"a newcomer was told {said!r} in place of {error.__name__}")

    def _outcome(self, lives: dict[str, Life], held: int) -> Outcome:
        settled = sum(life.settled for life in lives.values())
        unavailable = sum(life.unavailable for life in lives.values())
        longest = lives["bystander"].longest / 1e9
        return Outcome(self.workers, self.kills, settled, held, self.findings, longest, unavailable, self.note)


def _named(tree: Any, name: str) -> Any:
    return next(child for child in tree.children if child.name == name)


def _faults_of(tree: Any) -> Any:
    """Yield what is wrong in a snapshot of a tree as of one moment."""
    for above in (tree, *tree.children):
        if above.token_cap is not None and above.tokens_used + above.tokens_reserved > above.token_cap:
            yield f"{above.name}: {above.tokens_used} + {above.tokens_reserved} tokens, with a cap of {above.token_cap}"
        if above.name in {"total", "slots"}:
            for what in ("tokens_used", "tokens_reserved", "usd_used_nanos", "usd_reserved_nanos", "in_flight"):
                below = sum(getattr(child, what) for child in above.children)
                if getattr(above, what) != below and not (tree.window_start and what.endswith("used_nanos")):
                    yield f"{above.name}: {what} is {getattr(above, what)}, and the sum below is {below}"


__all__ = ["FEWEST", "BudgetUnavailable", "Crew", "Outcome", "StoreError", "StoreLost", "wait_until"]
