"""One process of a fault: it spends from a shared budget, and logs what it asks and what it is told.

It is started with its settings as JSON in its only argument. Each line of its log is written in one call before or
after a step, so that what it has written outlives it at whatever point it is killed:

    b KEY           begins; its scope in the store is the key KEY
    r NANOS         asks to reserve, with the tokens of one slot
    g | x | u       granted; refused; the store was unavailable
    c NANOS         asks to commit at this cost, less than what it reserved
    d               the commit is done
    l, v            asks to release; released
    p NANOS, q      asks to record; recorded (or x, u)
    !               the store is lost; it ends
    e TEXT          an error that nobody expects; it ends
    z               it was told to stop, and holds nothing

Each line begins with the monotonic clock in nanoseconds, which is one for all processes of the host.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import time
import warnings
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

SLOT = 10  # tokens that each reservation holds, and gives back when it is settled
FEWEST, MOST = 1_000, 100_000  # nanodollars of a call
STEPS = (("child", "slots"), ("keyed", "life"))  # from the root to the group of the workers' scopes
_TRIES = 1_000  # a commit without an answer may be repeated


class Log:
    """The file that one process writes."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(self, *words: object) -> None:
        """Write a line in one call."""
        os.write(self._file, " ".join(map(str, (time.monotonic_ns(), *words, "\n"))).encode())


def usd(nanos: int) -> Decimal:
    """Return an amount in dollars, exactly."""
    return Decimal(nanos).scaleb(-9)


def step_the_clock(path: str) -> None:
    """Make `time.time` of this process run ahead by the seconds that a file says, before anything has looked it up."""
    real, real_ns = time.time, time.time_ns

    def ahead() -> int:
        return int(Path(path).read_text(encoding="ascii") or 0)

    time.time = lambda: real() + ahead()
    time.time_ns = lambda: real_ns() + ahead() * 10**9


def opened(settings: dict[str, Any]) -> Any:
    """Open the budget, however long the store is away."""
    from token_budget import Window
    from token_budget.contract import BudgetUnavailable
    from token_budget.stores import StoreLost, open_pool

    window = Window.every(timedelta(hours=1), clock=lambda: time.time()) if settings.get("window") else None
    options: dict[str, Any] = {"timeout": settings["timeout"], "lease": settings["lease"], "window": window}
    for _ in range(_TRIES):
        try:
            return open_pool(settings["store"], caps="stored", create=False, **options)
        except StoreLost:
            raise
        except BudgetUnavailable:
            time.sleep(0.05)
    raise TimeoutError("the store does not come back")


class Worker:
    """What one process does until it is told to stop."""

    def __init__(self, settings: dict[str, Any], key: str) -> None:
        self.settings = settings
        self.key = key
        self.log = Log(f"{settings['folder']}/{key}.log")
        self.log.say("b", key)
        self.random = Random(f"{settings['seed']}/{key}")
        self.held: Any = None

    def run(self, root: Any) -> None:
        """Spend until it is told to stop; log what ends it."""
        from token_budget.stores import StoreLost

        try:
            if root is None:
                root = opened(self.settings)
            if self.settings["bystander"]:
                self.stand_by(root.child(name="bystander"))
            else:
                self.spend(root)
        except StoreLost:
            self.log.say("!")
        except Exception as error:  # noqa: BLE001 - the audit reports it
            self.log.say("e", type(error).__name__, ascii(str(error)))
        else:
            root.close()  # it cancels what was given up without an answer
            self.log.say("z")

    def told_to_stop(self) -> bool:
        """Return whether the parent wants it to end."""
        return os.path.exists(self.settings["stop"])  # noqa: PTH110 - once a step

    def stand_by(self, mine: Any) -> None:
        """Record a little, again and again: nobody who is killed or waits has to do with this scope."""
        while not self.told_to_stop():
            self.record(mine, 1)
            time.sleep(0.002)

    def spend(self, root: Any) -> None:
        """Make calls; fork once in the middle of one where the settings say so."""
        mine = root.child(name="slots").keyed(name="life")[self.key]
        while not self.told_to_stop():
            if self.random.random() < 0.15:
                self.record(mine, self.random.randrange(FEWEST, MOST))
            else:
                self.call(mine, root)

    def record(self, mine: Any, nanos: int) -> None:
        """Record at once."""
        from token_budget import BudgetExceeded
        from token_budget.contract import BudgetUnavailable
        from token_budget.stores import StoreLost

        self.log.say("p", nanos)
        try:
            mine.record(usd=usd(nanos))
        except BudgetExceeded:
            self.log.say("x")
        except StoreLost:
            raise
        except BudgetUnavailable:
            self.log.say("u")
        else:
            self.log.say("q")

    def call(self, mine: Any, root: Any) -> None:
        """Reserve, waiting in half of the calls; hold it for a moment; commit less, or release."""
        from token_budget import BudgetExceeded
        from token_budget.contract import BudgetUnavailable
        from token_budget.stores import StoreLost

        most = self.random.randrange(FEWEST, MOST)
        self.log.say("r", most)
        try:
            held = mine.reserve(tokens=SLOT, usd=usd(most), timeout=self.random.choice((0, 20)))
        except BudgetExceeded:
            self.log.say("x")
            return
        except StoreLost:
            raise
        except BudgetUnavailable:
            self.log.say("u")
            return
        self.log.say("g")
        if self.settings.get("fork"):
            self.settings["fork"] = False
            self.fork(root)
        time.sleep(self.random.choice((0, 0, 0.001, 0.003)))
        if self.random.random() < 0.15:
            self.log.say("l")
            repeated(held.release)
            self.log.say("v")
            return
        cost = self.random.randrange(FEWEST // 2, most)
        self.log.say("c", cost)
        repeated(held.commit, tokens=0, usd=usd(cost))
        self.log.say("d")

    def fork(self, root: Any) -> None:
        """Fork, once: the child opens nothing, and goes on with what its parent has open, in a scope of its own."""
        if os.fork():
            return
        try:
            signal.alarm(self.settings["longest"])
            child = Worker(self.settings, f"{self.key}f")
            child.log.say("f", os.getpid())
            child.run(root)
        finally:
            os._exit(0)


def repeated(step: Any, **amounts: Any) -> None:
    """Settle, and repeat it as long as there is no answer: it counts once."""
    from token_budget.contract import BudgetUnavailable
    from token_budget.stores import StoreLost

    for _ in range(_TRIES):
        try:
            step(**amounts)
        except StoreLost:
            raise
        except BudgetUnavailable:
            time.sleep(0.02)
        else:
            return
    raise TimeoutError("the store does not come back")


def main() -> None:
    """Read the settings and work."""
    settings = json.loads(sys.argv[1])
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with who started it
    signal.alarm(settings["longest"])
    if os.getppid() != settings["parent"]:
        return
    if settings.get("clock"):
        step_the_clock(settings["clock"])
    warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: that is what is tried here
    logging.getLogger("token_budget").addHandler(logging.NullHandler())
    Worker(settings, settings["key"]).run(None)


if __name__ == "__main__":
    main()
