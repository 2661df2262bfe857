"""Small tools for several test files: start threads together, read a pool's counters, catch an error."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import token_budget
from token_budget import BudgetPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from token_budget._waiting import Line, Waiter


def run_together(*bodies: Callable[[], object]) -> list[Any]:
    """Run each body in a thread, all started at one moment; return their results, or raise the first error."""
    start = threading.Barrier(len(bodies))
    results: list[Any] = [None] * len(bodies)
    errors: list[BaseException] = []

    def run(index: int, body: Callable[[], object]) -> None:
        try:
            start.wait(timeout=30)
            results[index] = body()
        except BaseException as error:  # noqa: BLE001 - carried over to the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in enumerate(bodies)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
    return results


def run_program(program: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program in a new interpreter. It finds the package even where the package is not installed."""
    path = os.pathsep.join(filter(None, [str(Path(token_budget.__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, *options, "-c", program]
    environ = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=60, env=environ)


def caught(error: type[BaseException], function: Callable[..., object], **arguments: object) -> bool:
    """Call the function and return whether it raised that error."""
    try:
        function(**arguments)
    except error:
        return True
    return False


def counters(pool: BudgetPool) -> tuple[int, int, int, int, int]:
    """Return (tokens used, reserved, nanodollars used, reserved, in flight), each checked to be an int >= 0."""
    snapshot = pool.snapshot()
    numbers = (
        snapshot.tokens_used,
        snapshot.tokens_reserved,
        snapshot.usd_used_nanos,
        snapshot.usd_reserved_nanos,
        snapshot.in_flight,
    )
    for number in numbers:
        assert type(number) is int
        assert number >= 0
    if snapshot.token_cap is not None:
        assert type(snapshot.token_cap) is int
        assert snapshot.tokens_used + snapshot.tokens_reserved + (snapshot.tokens_remaining or 0) == snapshot.token_cap
    if snapshot.usd_cap_nanos is not None:
        assert type(snapshot.usd_cap_nanos) is int
        claimed = snapshot.usd_used_nanos + snapshot.usd_reserved_nanos
        assert claimed + (snapshot.usd_remaining_nanos or 0) == snapshot.usd_cap_nanos
    return numbers


# ---------------------------------------------------------------- what only the internals of the package know


def waiters(pool: BudgetPool) -> list[Waiter]:
    """Return all waiters in the family of a pool, without serving any of them."""
    line = pool._family.root.line
    return [] if line is None else line.waiting()


def line_of(pool: BudgetPool) -> Line | None:
    """Return the line of the waiters that need a pool, or None if nobody waits."""
    return pool._account.line


def takes_the_short_way(pool: BudgetPool) -> bool:
    """Return whether a pool's bounds equal its caps and its family owes nothing, so that straight runs serve it."""
    account, family = pool._account, pool._family
    bounds, limits = (account.token_bound, account.nano_bound), (account.token_limit, account.nano_limit)
    return bounds == limits and not account.gated and family.pending is family.owed and not family.owed


def forked(pool: BudgetPool) -> None:
    """Do to a pool's family, in this process, what a fork does to it in a child."""
    pool._family.fork()


class HookedLock:
    """A lock for `_family._new_lock` to return. It runs a hook inside each critical section."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.hook: Callable[[], object] = lambda: None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT002 - as the real one
        if not self._lock.acquire(blocking, timeout):
            return False
        self.hook()
        return True

    def release(self) -> None:
        self._lock.release()
