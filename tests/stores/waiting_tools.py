"""Tools for the tests of waiting: one budget as several processes have it, and waiting until so many wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from memory_store import MemoryBudget, MemoryPool
from pools_of_all_kinds import LONG, Call, in_a_thread, until


def processes(count: int, **settings: Any) -> list[MemoryPool]:
    """Return the same pool as several processes have it: each has an engine, a worker and a line of its own."""
    budget = MemoryBudget()
    return [MemoryPool(budget, process=str(number), **settings) for number in range(count)]


def close(*pools: MemoryPool) -> None:
    """Close pools, and see that nobody waits and nothing is held any more."""
    budget = pools[0].budget
    until(lambda: not budget.tickets and not budget.held)  # a worker may have to give back
    for pool in pools:
        assert not pool._family.line.count(pool._family.root)
        pool.close()


def waits(pool: Any, count: int, *, timeout: float | None = None, **amounts: Any) -> Call:
    """Let a thread wait for room, and return when so many wait in its process."""
    call = in_a_thread(lambda: pool.reserve(timeout=timeout, **amounts))
    in_line(pool, count)
    return call


def in_line(pool: Any, count: int) -> None:
    """Block until so many of the process of a pool wait, and have their tickets."""
    root = pool._family.root
    until(lambda: pool._family.line.count(root) == count)


class Blocked:
    """Holds up a step of a store before it begins, in all threads but this one, until it is let go on."""

    def __init__(self, pool: Any, step: str, *, when: Callable[[], bool] = lambda: True) -> None:
        self.inside, self.go_on, self.me = threading.Event(), threading.Event(), threading.get_ident()
        self.step, self.when, self.engine = step, when, pool.engine
        self.engine.hook = self

    def __call__(self, step: str, moment: str) -> None:
        if step == self.step and moment == "before" and threading.get_ident() != self.me and self.when():
            self.inside.set()
            assert self.go_on.wait(LONG)

    def end(self) -> None:
        """Let it go on, and hold up nothing any more."""
        self.engine.hook = lambda step, moment: None
        self.go_on.set()
