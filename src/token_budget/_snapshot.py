"""BudgetSnapshot: what a pool looked like at one moment.

A snapshot holds the pool's integers as they were read under its lock, and computes a field when it is asked for: taking
one is cheap enough for every frame of a display. It never changes, and is not connected to the pool.
"""

from __future__ import annotations

from collections import namedtuple

from token_budget._arguments import checked_name
from token_budget._money import to_nanos, to_tokens, to_usd

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from decimal import Decimal
    from fractions import Fraction
    from typing import Any

_FIELDS = (
    "tokens_used",
    "usd_used",
    "token_cap",
    "usd_cap",
    "tokens_remaining",
    "usd_remaining",
    "tokens_reserved",
    "usd_reserved",
    "in_flight",
    "name",
    "window_start",
    "resets_at",
    "children",
)


class _AsOfADataclass:
    """An attribute as a frozen dataclass of the same fields has it.

    With it ``dataclasses.asdict``, ``replace`` and the rest work as with token-budget-py, at no cost to the import.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> Any:
        from dataclasses import make_dataclass

        return getattr(make_dataclass(owner.__name__, _FIELDS, frozen=True), self.name)


class BudgetSnapshot:
    """One atomic view of a pool: on each axis ``used + reserved + remaining == cap``, exactly.

    Tokens are int, dollars float with the exact integer of nanodollars beside them. Two snapshots are equal when all
    their numbers are. ``str()`` is one line for a progress display. Can be pickled.

    ``BudgetPool.snapshot()`` makes it; the constructor is public for tests that play a pool. Remaining is computed; if
    it is given in place of reserved, it says what is reserved.

    Example:
        >>> from token_budget import BudgetPool
        >>> pool = BudgetPool(token_cap=10_000, usd_cap=0.5)
        >>> pool.record(tokens=1200, usd=0.0036)
        >>> print(pool.snapshot())
        tokens 1,200 / 10,000 (12%) | usd 0.0036 / 0.5000 (0%) | 0 in flight
    """

    # (tokens claimed, tokens reserved, nanos claimed, nanos reserved, in flight, terms, children); the terms are
    # (token cap, nano cap, name, start and end of the period as POSIX timestamps). Claimed is used + reserved, a cap is
    # None where the axis is unbounded, start and end are None without a window.
    __slots__ = ("_state",)
    _state: tuple[
        int,
        int,
        int,
        int,
        int,
        tuple[int | None, int | None, str | None, float | None, float | None],
        tuple[BudgetSnapshot, ...],
    ]
    __dataclass_fields__: _AsOfADataclass = _AsOfADataclass("__dataclass_fields__")
    __dataclass_params__: _AsOfADataclass = _AsOfADataclass("__dataclass_params__")
    __match_args__ = ("tokens_used", "usd_used", "token_cap", "usd_cap", "tokens_remaining", "usd_remaining")

    def __init__(
        self,
        tokens_used: int = 0,
        usd_used: float | Decimal | Fraction = 0,
        token_cap: int | None = None,
        usd_cap: float | Decimal | Fraction | None = None,
        tokens_remaining: int | None = None,
        usd_remaining: float | Decimal | Fraction | None = None,
        *,
        tokens_reserved: int | None = None,
        usd_reserved: float | Decimal | Fraction | None = None,
        in_flight: int = 0,
        name: str | None = None,
        window_start: datetime | None = None,
        resets_at: datetime | None = None,
        children: tuple[BudgetSnapshot, ...] = (),
    ) -> None:
        tokens, held, bound = _account("tokens", to_tokens, tokens_used, tokens_reserved, tokens_remaining, token_cap)
        nanos, nanos_held, nano_cap = _account("usd", to_nanos, usd_used, usd_reserved, usd_remaining, usd_cap)
        self._state = (
            tokens,
            held,
            nanos,
            nanos_held,
            to_tokens(in_flight, "in_flight"),
            (
                bound,
                nano_cap,
                checked_name(name),
                None if window_start is None else window_start.timestamp(),
                None if resets_at is None else resets_at.timestamp(),
            ),
            tuple(children),
        )

    @property
    def tokens_used(self) -> int:
        """Tokens committed or recorded."""
        return self._state[0] - self._state[1]

    @property
    def tokens_reserved(self) -> int:
        """Tokens held by reservations in flight."""
        return self._state[1]

    @property
    def token_cap(self) -> int | None:
        """The cap on tokens, None if there is none."""
        return self._state[5][0]

    @property
    def tokens_remaining(self) -> int | None:
        """``token_cap - tokens_used - tokens_reserved``: negative after an overrun, None without a cap."""
        cap = self._state[5][0]
        return None if cap is None else cap - self._state[0]

    @property
    def usd_used(self) -> float:
        """Dollars committed or recorded."""
        return to_usd(self.usd_used_nanos)

    @property
    def usd_reserved(self) -> float:
        """Dollars held by reservations in flight."""
        return to_usd(self.usd_reserved_nanos)

    @property
    def usd_cap(self) -> float | None:
        """The cap on dollars, None if there is none."""
        cap = self.usd_cap_nanos
        return None if cap is None else to_usd(cap)

    @property
    def usd_remaining(self) -> float | None:
        """``usd_cap - usd_used - usd_reserved``: negative after an overrun, None without a cap."""
        remaining = self.usd_remaining_nanos
        return None if remaining is None else to_usd(remaining)

    @property
    def usd_used_nanos(self) -> int:
        """`usd_used` in nanodollars."""
        return self._state[2] - self._state[3]

    @property
    def usd_reserved_nanos(self) -> int:
        """`usd_reserved` in nanodollars."""
        return self._state[3]

    @property
    def usd_cap_nanos(self) -> int | None:
        """`usd_cap` in nanodollars."""
        return self._state[5][1]

    @property
    def usd_remaining_nanos(self) -> int | None:
        """`usd_remaining` in nanodollars."""
        cap = self._state[5][1]
        return None if cap is None else cap - self._state[2]

    @property
    def in_flight(self) -> int:
        """Reservations that are neither committed nor released."""
        return self._state[4]

    @property
    def name(self) -> str | None:
        """The name of the pool, None if it has none."""
        return self._state[5][2]

    @property
    def window_start(self) -> datetime | None:
        """When the current period began, in UTC; None without a window."""
        return _moment(self._state[5][3])

    @property
    def resets_at(self) -> datetime | None:
        """When what is used is set back to 0, in UTC; None without a window."""
        return _moment(self._state[5][4])

    @property
    def children(self) -> tuple[BudgetSnapshot, ...]:
        """The child pools as of the same moment, oldest first: of ``snapshot(tree=True)``, else empty."""
        return self._state[6]

    def __str__(self) -> str:
        tokens_claimed, _, nanos_claimed, _, in_flight, (token_cap, nano_cap, name, _, _), _ = self._state
        title = "" if name is None else f"{name if name.isprintable() else repr(name)}: "
        tokens = _axis_text(self.tokens_used, self.tokens_reserved, token_cap, tokens_claimed, token_cap, ",")
        usd = _axis_text(self.usd_used, self.usd_reserved, self.usd_cap, nanos_claimed, nano_cap, ",.4f")
        return f"{title}tokens {tokens} | usd {usd} | {in_flight} in flight"

    def __repr__(self) -> str:
        return f"<BudgetSnapshot {self}>"

    def __eq__(self, other: object) -> bool:
        return self._state == other._state if isinstance(other, BudgetSnapshot) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._state)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self._state,)


class PoolStatistics(namedtuple("PoolStatistics", ("reservations", "waiters", "children", "subscribers"))):
    """How many there are of what: see ``BudgetPool.statistics``."""

    __slots__ = ()


def _moment(timestamp: float | None) -> datetime | None:
    if timestamp is None:
        return None
    from datetime import datetime, timezone

    try:
        return datetime.fromtimestamp(timestamp, timezone.utc)
    except (OverflowError, ValueError):  # a window of thousands of years
        return datetime(9999 if timestamp > 0 else 1, 1, 1, tzinfo=timezone.utc)


def _restored(state: Any) -> BudgetSnapshot:
    snapshot = BudgetSnapshot.__new__(BudgetSnapshot)
    snapshot._state = state
    return snapshot


def _account(
    axis: str, convert: Callable[..., int], used: Any, reserved: Any, remaining: Any, cap: Any
) -> tuple[int, int, int | None]:
    """Return (claimed, reserved, cap) of one axis in integers. Reserved, if left out, follows from remaining."""
    used_units = convert(used, f"{axis}_used")
    cap_units = None if cap is None else convert(cap, f"{axis}_cap")
    if reserved is not None:
        reserved_units = convert(reserved, f"{axis}_reserved")
    elif cap_units is None or remaining is None:
        reserved_units = 0
    else:
        sign = -1 if remaining < 0 else 1  # an overrun
        left = convert(remaining if sign == 1 else -remaining, f"{axis}_remaining")
        reserved_units = cap_units - used_units - sign * left
        if reserved_units < 0:
            raise ValueError(f"{axis}_used + {axis}_remaining must not be more than the cap")
    return used_units + reserved_units, reserved_units, cap_units


def _axis_text(
    used: float, reserved: float, cap: float | None, claimed_units: int, cap_units: int | None, spec: str
) -> str:
    held = f" + {reserved:{spec}} held" if reserved else ""
    if cap is None or cap_units is None:
        return f"{used:{spec}}{held}"
    percent = 100 * claimed_units // cap_units if cap_units else 100
    return f"{used:{spec}}{held} / {cap:{spec}} ({percent}%)"
