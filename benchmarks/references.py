"""What the pool is compared with: token-budget-py 0.1.0 and two floors.

The floors do what no pool can do with less, in plain Python under `with lock`, and none of the rest: no validation, no
exact money, no check that a reservation is settled once, nothing for one that is dropped.
"""

# ruff: noqa: D102, D105, D107 - the methods are those of BudgetPool and Reservation

from __future__ import annotations

import sys
import threading
from importlib.util import module_from_spec, spec_from_file_location
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import token_budget

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

REFERENCE = "token-budget-py 0.1.0"
INSTALL = "python -m pip install --no-deps --target benchmarks/.reference token-budget-py==0.1.0"
TOKEN_CAP = 10**9
USD_CAP = 10_000.0


class Held(Protocol):
    """A reservation, as far as the benchmarks use it."""

    def commit(self, *, tokens: int, usd: float) -> None: ...
    def release(self) -> None: ...


class Pool(Protocol):
    """A pool, as far as the benchmarks use it."""

    def record(self, *, tokens: int, usd: float) -> None: ...
    def reserve(self, *, tokens: int, usd: float) -> AbstractContextManager[Held]: ...
    def try_reserve(self, *, tokens: int, usd: float) -> Held: ...
    def snapshot(self) -> object: ...


class Contender(NamedTuple):
    """A kind of pool: how to make one from its two caps, and what it raises when it refuses."""

    name: str
    make: Callable[[int, float], Pool]
    refusal: type[Exception]


class Refused(Exception):
    """The two-axes floor has no room."""


class OneCounter:
    """One counter under a lock: nothing that threads share costs less. It has no cap."""

    __slots__ = ("count", "lock")

    def __init__(self, token_cap: int, usd_cap: float) -> None:  # noqa: ARG002
        self.lock = threading.Lock()
        self.count = 0

    def record(self, *, tokens: int, usd: float) -> None:  # noqa: ARG002
        with self.lock:
            self.count += tokens

    def reserve(self, *, tokens: int, usd: float) -> OneCount:  # noqa: ARG002
        with self.lock:
            self.count += tokens
        return OneCount(self, tokens)

    try_reserve = reserve

    def snapshot(self) -> int:
        with self.lock:
            return self.count


class OneCount:
    """What OneCounter holds for a call."""

    __slots__ = ("done", "pool", "tokens")

    def __init__(self, pool: OneCounter, tokens: int) -> None:
        self.pool = pool
        self.tokens = tokens
        self.done = False

    def commit(self, *, tokens: int, usd: float) -> None:  # noqa: ARG002
        pool = self.pool
        with pool.lock:
            pool.count += tokens - self.tokens
            self.done = True

    def release(self) -> None:
        pool = self.pool
        with pool.lock:
            pool.count -= self.tokens
            self.done = True

    def __enter__(self) -> OneCount:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.done:
            self.release()


class TwoAxes:
    """Two adds and two compares under a lock."""

    __slots__ = ("lock", "token_cap", "tokens", "usd", "usd_cap")

    def __init__(self, token_cap: int, usd_cap: float) -> None:
        self.lock = threading.Lock()
        self.tokens = 0
        self.usd = 0.0
        self.token_cap = token_cap
        self.usd_cap = usd_cap

    def record(self, *, tokens: int, usd: float) -> None:
        with self.lock:
            tokens_after = self.tokens + tokens
            usd_after = self.usd + usd
            if tokens_after > self.token_cap or usd_after > self.usd_cap:
                raise Refused
            self.tokens = tokens_after
            self.usd = usd_after

    def reserve(self, *, tokens: int, usd: float) -> TwoAmounts:
        with self.lock:
            tokens_after = self.tokens + tokens
            usd_after = self.usd + usd
            if tokens_after > self.token_cap or usd_after > self.usd_cap:
                raise Refused
            self.tokens = tokens_after
            self.usd = usd_after
        return TwoAmounts(self, tokens, usd)

    try_reserve = reserve

    def snapshot(self) -> tuple[int, float]:
        with self.lock:
            return self.tokens, self.usd


class TwoAmounts:
    """What TwoAxes holds for a call."""

    __slots__ = ("done", "pool", "tokens", "usd")

    def __init__(self, pool: TwoAxes, tokens: int, usd: float) -> None:
        self.pool = pool
        self.tokens = tokens
        self.usd = usd
        self.done = False

    def commit(self, *, tokens: int, usd: float) -> None:
        pool = self.pool
        with pool.lock:
            tokens_after = pool.tokens + tokens - self.tokens
            usd_after = pool.usd + usd - self.usd
            if tokens_after > pool.token_cap or usd_after > pool.usd_cap:
                raise Refused
            pool.tokens = tokens_after
            pool.usd = usd_after
            self.done = True

    def release(self) -> None:
        pool = self.pool
        with pool.lock:
            pool.tokens -= self.tokens
            pool.usd -= self.usd
            self.done = True

    def __enter__(self) -> TwoAmounts:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.done:
            self.release()


OURS = Contender("token_budget", token_budget.BudgetPool, token_budget.BudgetExceeded)
TWO_AXES = Contender("two adds, two compares", TwoAxes, Refused)
ONE_COUNTER = Contender("one counter", OneCounter, Refused)


def load_reference(folder: Path) -> Contender | None:
    """Return token-budget-py from the folder that it was installed to, or None if it is not there.

    Its import name is ours, so its one module is loaded under another.
    """
    path = folder / "token_budget" / "pool.py"
    if not path.exists():
        return None
    name = "_token_budget_py"
    if name not in sys.modules:
        spec = spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module_from_spec(spec)  # where its dataclass looks for it
        spec.loader.exec_module(sys.modules[name])
    module: Any = sys.modules[name]
    return Contender(REFERENCE, module.BudgetPool, module.BudgetExceeded)
