"""What a pool is to the layers above the core: the core's own `BudgetPool`, the pools of a store, a user's double.

`Pool` is the whole API, which the core's pool and those of the stores keep. `Spendable` is the part of it that a
`Meter` uses; a double that has this part will do. The meaning of each method is `BudgetPool`'s.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from decimal import Decimal
from fractions import Fraction
from types import TracebackType
from typing import Any, Protocol, SupportsIndex, TypeVar

from token_budget._arguments import UNCHANGED
from token_budget._events import BudgetEvent
from token_budget._snapshot import BudgetSnapshot, PoolStatistics
from token_budget._window import Window

Amount = float | Decimal | Fraction
Self = TypeVar("Self")


class BudgetUnavailable(RuntimeError):
    """The pool cannot answer: what keeps its numbers (a database, a server) cannot be reached. It is no refusal.

    ``Meter(on_error="allow")`` lets calls pass that meet this error.
    """


class HeldAmount(Protocol):
    """What one call holds, until it is committed or released: `Reservation`, or a store's."""

    @property
    def completed(self) -> bool:
        """Whether it is committed or released."""
        ...

    def commit(self, *, tokens: SupportsIndex | None = None, usd: Amount | None = None) -> None:
        """Record the real cost. Raises BudgetOverrun after it has recorded a cost that passes a cap."""
        ...

    def release(self) -> None:
        """Give back what is held. Does nothing if it is settled already."""
        ...

    async def acommit(self, *, tokens: SupportsIndex | None = None, usd: Amount | None = None) -> None:
        """Do what `commit` does, without blocking the event loop."""
        ...

    async def arelease(self) -> None:
        """Do what `release` does, without blocking the event loop."""
        ...


class Reserved(HeldAmount, Protocol):
    """What `Pool.reserve` returns: held until it is committed or released, at the latest as its block is left."""

    @property
    def reserved_tokens(self) -> int:
        """The tokens that were reserved, also after settling."""
        ...

    @property
    def reserved_usd(self) -> float:
        """The dollars that were reserved, also after settling."""
        ...

    @property
    def reserved_usd_nanos(self) -> int:
        """`reserved_usd` in nanodollars."""
        ...

    def __enter__(self: Self) -> Self:
        """Return itself."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release, unless it was settled in the block."""
        ...

    async def __aenter__(self: Self) -> Self:
        """Return itself."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release, unless it was settled in the block."""
        ...


class Reserving(Protocol):
    """What `Pool.areserve` returns: await it, or enter it by ``async with``."""

    def __await__(self) -> Generator[Any, Any, Reserved]:
        """Wait for room and return the reservation."""
        ...

    async def __aenter__(self) -> Reserved:
        """Wait for room and return the reservation."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release, unless it was settled in the block."""
        ...


class Spendable(Protocol):
    """A budget of tokens and dollars, as far as one who spends from it needs to know: what a `Meter` takes."""

    @property
    def name(self) -> str | None:
        """The name that refusals show."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it refuses new work."""
        ...

    def record(self, *, tokens: SupportsIndex = 0, usd: Amount = 0, force: bool = False) -> None:
        """Add a spend, or refuse it. With ``force`` it is added in any case, and BudgetOverrun raised after."""
        ...

    def reserve(self, *, tokens: SupportsIndex = 0, usd: Amount = 0, timeout: float | None = 0) -> HeldAmount:
        """Hold an amount, or raise BudgetExceeded. It waits for room up to ``timeout`` seconds."""
        ...

    def areserve(
        self, *, tokens: SupportsIndex = 0, usd: Amount = 0, timeout: float | None = None
    ) -> Awaitable[HeldAmount]:
        """Do what `reserve` does; the task waits, and not the thread."""
        ...

    async def arecord(self, *, tokens: SupportsIndex = 0, usd: Amount = 0, force: bool = False) -> None:
        """Do what `record` does, without blocking the event loop."""
        ...

    def snapshot(self) -> BudgetSnapshot:
        """Return the numbers of one moment."""
        ...

    def close(self) -> None:
        """Refuse new work for good. Calls in flight still settle."""
        ...


class Keys(Protocol):
    """Child pools by key: what `Pool.keyed` returns."""

    def __getitem__(self, key: Any) -> Pool:
        """Return the pool of a key; made when it is first asked for."""
        ...

    def __contains__(self, key: object) -> bool:
        """Return whether a key is remembered."""
        ...

    def __len__(self) -> int:
        """Return how many keys are remembered."""
        ...

    def __delitem__(self, key: Any) -> None:
        """Forget a key. Raises KeyError; ValueError while calls are in flight there."""
        ...

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the pool of a key that is remembered, else the default."""
        ...

    def keys(self) -> list[Any]:
        """Return the keys that are remembered."""
        ...

    def set_caps(
        self,
        *,
        token_cap: SupportsIndex | None = UNCHANGED,
        usd_cap: Amount | None = UNCHANGED,
        window: Window | None = UNCHANGED,
    ) -> None:
        """Change the caps or the window of every key that has none of its own."""
        ...

    def subscribe(self, callback: Callable[[BudgetEvent], object]) -> Callable[[], None]:
        """Call back for everything that happens to any key's pool; return how to end it."""
        ...

    def on_threshold(self, share: Amount, callback: Callable[[BudgetEvent], object]) -> Callable[[], None]:
        """Call back when what a key used comes to a share of a cap; return how to end it."""
        ...


class Pool(Spendable, Protocol):
    """A budget of tokens and dollars: the whole API, in process and in the stores."""

    def reserve(self, *, tokens: SupportsIndex = 0, usd: Amount = 0, timeout: float | None = 0) -> Reserved:
        """Hold an amount, or raise BudgetExceeded. It waits for room up to ``timeout`` seconds."""
        ...

    def areserve(self, *, tokens: SupportsIndex = 0, usd: Amount = 0, timeout: float | None = None) -> Reserving:
        """Do what `reserve` does; the task waits, and not the thread."""
        ...

    def try_reserve(self, *, tokens: SupportsIndex = 0, usd: Amount = 0) -> Reserved:
        """Hold an amount, or raise BudgetExceeded; never wait."""
        ...

    def snapshot(self, tree: bool = False) -> BudgetSnapshot:  # noqa: FBT001, FBT002 - as `BudgetPool.snapshot`
        """Return the numbers of one moment; ``tree``: with all pools below as ``children``."""
        ...

    async def asnapshot(self, tree: bool = False) -> BudgetSnapshot:  # noqa: FBT001, FBT002
        """Do what `snapshot` does, without blocking the event loop."""
        ...

    def statistics(self) -> PoolStatistics:
        """Return how many reservations, waiters, children and subscribers the pool has."""
        ...

    def reset(self) -> None:
        """Set what is used back to 0. Calls in flight keep what they hold."""
        ...

    def set_caps(
        self,
        *,
        token_cap: SupportsIndex | None = UNCHANGED,
        usd_cap: Amount | None = UNCHANGED,
        window: Window | None = UNCHANGED,
    ) -> None:
        """Change caps or the window while calls are in flight. What is left out stays; None is no cap, no window."""
        ...

    def child(
        self,
        token_cap: SupportsIndex | None = None,
        usd_cap: Amount | None = None,
        *,
        name: Any = None,
        window: Window | None = None,
    ) -> Pool:
        """Return a pool below this one. The pools of a store require a name."""
        ...

    def keyed(
        self,
        token_cap: SupportsIndex | None = None,
        usd_cap: Amount | None = None,
        *,
        name: str | None = None,
        window: Window | None = None,
    ) -> Keys:
        """Return child pools by key."""
        ...

    @staticmethod
    def join(*pools: Any, name: str | None = None) -> Pool:
        """Return a pool that counts against all of these, each scope once."""
        ...

    def detach(self) -> None:
        """After a fork, in the child: make this copy a budget of its own. The pools of a store need no such call."""
        ...

    def subscribe(self, callback: Callable[[BudgetEvent], object]) -> Callable[[], None]:
        """Call back for everything that happens to this pool and those below; return how to end it."""
        ...

    def on_threshold(self, share: Amount, callback: Callable[[BudgetEvent], object]) -> Callable[[], None]:
        """Call back once when what is used comes to a share of a cap; return how to end it."""
        ...

    def __enter__(self: Self) -> Self:
        """Return itself."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        ...
