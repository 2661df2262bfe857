"""Tools of the front's tests: pools in memory, what their store says, faults of the store."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from memory_store import MemoryPool
from token_budget.contract import BudgetUnavailable

LONG = 30  # seconds: a deadline for what takes milliseconds
NANOS = 10**9


@pytest.fixture
def opened() -> Iterator[Callable[..., MemoryPool]]:
    """Open pools in memory, and close them after the test."""
    pools: list[MemoryPool] = []

    def opened(*arguments: Any, **settings: Any) -> MemoryPool:
        pools.append(MemoryPool(*arguments, **settings))
        return pools[-1]

    yield opened
    for pool in pools:
        pool.engine.hook = lambda step, moment: None
        pool.close()


@contextmanager
def unreachable(pool: MemoryPool, *steps: str, moment: str = "before") -> Iterator[list[str]]:
    """Let steps of a pool's store raise BudgetUnavailable, before or after they are done. Yield those that did."""
    raised: list[str] = []

    def hook(step: str, when: str) -> None:
        if when == moment and (not steps or step in steps):
            raised.append(step)
            raise BudgetUnavailable("the store does not answer")

    pool.engine.hook = hook
    try:
        yield raised
    finally:
        pool.engine.hook = lambda step, moment: None


@contextmanager
def raising(pool: MemoryPool, error: type[BaseException], step: str, moment: str) -> Iterator[None]:
    """Let one step of a pool's store raise an error, once, before or after it is done."""
    left = [error]

    def hook(name: str, when: str) -> None:
        if left and (name, when) == (step, moment):
            raise left.pop()

    pool.engine.hook = hook
    try:
        yield
    finally:
        pool.engine.hook = lambda step, moment: None


def numbers(pool: Any) -> tuple[int, int, int]:
    """Return (tokens used, tokens reserved, in flight)."""
    shown = pool.snapshot()
    return shown.tokens_used, shown.tokens_reserved, shown.in_flight


def until(condition: Callable[[], bool]) -> None:
    """Block until something holds that comes in a moment."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.001)


def collected(pool: Any) -> None:
    """Collect garbage, and wait until the worker has done what finalisers gave it."""
    gc.collect()
    assert pool._family.hand.finish(LONG)
