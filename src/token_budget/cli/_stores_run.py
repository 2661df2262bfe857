"""The processes of ``token-budget stores-demo``: starting them, hearing what they tell, killing one of them.

Each worker tells its steps through a pipe. What it has written stays there when it is killed, so its page in the ledger
is complete but for the answer to its last step.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import token_budget
from token_budget.cli._audit import Amount, Seen
from token_budget.cli._display import status
from token_budget.cli._stores_audit import Charge, Found, Page
from token_budget.cli._stores_worker import plan
from token_budget.contract import BudgetUnavailable

if TYPE_CHECKING:
    from typing import Any

    from token_budget.cli._audit import Caps
    from token_budget.cli._display import Progress
    from token_budget.stores import StorePool

VICTIM = 1  # the number of the process that is killed
_PROGRAM = "import sys; from token_budget.cli._stores_worker import main; sys.exit(main(sys.stdin, 1))"
_WORKER = [sys.executable, "-c", _PROGRAM]
_SECONDS_TO_START = 60.0
_SECONDS_TO_CHARGE = 60.0  # after the lease of a process that was killed
_BETWEEN_LOOKS = 0.05


class Settings(NamedTuple):
    """What all processes are told."""

    store: str  # what `open_pool` takes; it may hold a password, so that it is no argument of a command
    caps: Caps
    processes: int
    calls: int  # of each
    seed: int
    lease: float  # seconds after which a server knows that a process is dead

    def of_worker(self, number: int) -> str:
        """Return what one process is told, as a line of JSON."""
        caps = {"token_cap": self.caps.tokens, "usd_cap": self.caps.usd}
        told = {"store": self.store, "caps": caps, "number": number, "calls": self.calls, "seed": self.seed}
        return json.dumps({**told, "lease": self.lease}) + "\n"


class Worker:
    """One process, and the page of what it was told."""

    def __init__(self, settings: Settings, number: int) -> None:
        bills = [Amount(*call.cost) for call in plan(settings.seed, number, settings.calls)]
        self.page: Page = Page(number, bills)
        self._settings = settings.of_worker(number)
        self._killed = False
        self._ready = threading.Event()
        self._heard = threading.Thread(target=self._listen, name=f"worker {number}")

    def start(self) -> None:
        """Start the process: it opens its pool and waits. Where it cannot start, its page says why."""
        path = [str(Path(token_budget.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own program, by this interpreter
                _WORKER,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,  # what an ended process was not told must not be written again when its pipe is closed
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        except OSError as error:
            self.page.error = f"could not be started: {error}"
            return
        self.page.pid = self._process.pid
        self._heard.start()
        self._tell(self._settings)

    def begin(self) -> None:
        """Let it make its calls, once it is ready; end it if it does not get ready."""
        if self.page.error is not None:
            return
        if self._ready.wait(_SECONDS_TO_START):
            self._tell("go\n")
        else:
            self.page.error = f"was not ready after {_SECONDS_TO_START:g} seconds"
            self.close()

    @property
    def ended(self) -> bool:
        """Whether it has ended, and all that it told is on its page."""
        return not self._heard.is_alive()

    def kill(self) -> None:
        """End it at once, as ``kill -9`` does."""
        self._killed = True
        self._process.kill()

    def close(self) -> None:
        """End it if it still runs, and close its pipes."""
        if self.page.pid:
            self._process.kill()
            self._heard.join()

    def _to_be_killed(self) -> bool:
        """Whether this is the victim, and in the middle: it holds a call, or it makes its last one."""
        page = self.page
        begun = page.number == VICTIM and not self._killed and page.calls > len(page.bills) // 2
        return begun and page.open is not None and (page.open.held or page.calls == len(page.bills))

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        with suppress(OSError, ValueError):  # it has ended, and its page says why
            self._process.stdin.write(line.encode())

    def _listen(self) -> None:
        try:
            with self._process as process:
                self._hear(process.stdout)
            self.page.killed = self._killed and process.returncode != 0
            if process.returncode and not self._killed and self.page.error is None:
                self.page.error = f"ended with exit status {process.returncode}"
        finally:
            self._ready.set()

    def _hear(self, told: Any) -> None:
        with io.BufferedReader(told) as lines:
            for raw in lines:
                line = raw.decode()
                if not line.endswith("\n"):
                    break  # killed while it wrote: it has not told this
                self.page.note(line)
                if line == "ready\n":
                    self._ready.set()
                if self._to_be_killed():
                    self.kill()


class Run:
    """All processes, and the parent's own look at the budget."""

    def __init__(self, settings: Settings, pool: StorePool) -> None:
        self.pages: list[Page] = []
        self._settings = settings
        self._pool = pool
        self._seen = Seen()
        self._workers = [Worker(settings, number) for number in range(1, settings.processes + 1)]
        self.pages = [worker.page for worker in self._workers]

    def go(self, progress: Progress) -> None:
        """Start the processes, let them begin together, and watch until they have ended."""
        try:
            for worker in self._workers:
                worker.start()
            for worker in self._workers:
                worker.begin()
            ended = False
            while not ended:
                time.sleep(_BETWEEN_LOOKS)
                ended = all(worker.ended for worker in self._workers)
                self._look(progress, milestone=ended)
        finally:
            for worker in self._workers:
                worker.close()
            progress.close()

    def found(self) -> Found:
        """Wait until what the killed process held is charged; return what the store says, then and settled by hand."""
        deadline = time.monotonic() + self._settings.lease + _SECONDS_TO_CHARGE
        while self._pool.snapshot().in_flight and time.monotonic() < deadline:
            time.sleep(_BETWEEN_LOOKS)
        charges = [Charge(one.id, Amount(one.tokens, one.usd_nanos), _pid(one.who)) for one in self._pool.expired()]
        tree = self._pool.snapshot(tree=True)
        bills = {page.pid: page.open.bill for page in self.pages if page.open is not None}
        for charge in charges:
            if charge.pid in bills:
                tokens, nanos = bills[charge.pid]
                self._pool.settle(charge.id, tokens=tokens, usd=nanos / 10**9)
        return Found(tree, charges, self._pool.snapshot(tree=True), self._seen)

    def _look(self, progress: Progress, *, milestone: bool = False) -> None:
        try:
            snapshot = self._pool.snapshot()
        except BudgetUnavailable:  # it is busy: the next look will do
            return
        self._seen.look(snapshot, self._settings.caps)
        calls = self._settings.processes * self._settings.calls
        ended = sum(page.calls - (page.open is not None) for page in self.pages)
        progress.show(status("running", ended, calls, snapshot), milestone=milestone)


def _pid(who: Any) -> int:
    """Return the process id of a holder, "host:pid:start"."""
    return int(who.rsplit(":", 2)[1])
