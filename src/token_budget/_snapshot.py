"""BudgetSnapshot: what a pool looked like at one moment.

A snapshot holds the pool's integers as they were read under its lock, and computes a field when it is asked for: taking
one is cheap enough for every frame of a display. It never changes, and is not connected to the pool.
"""

from __future__ import annotations

from collections import namedtuple

from token_budget._arguments import checked_name
from token_budget._money import NANOS_PER_USD, shown_type, to_nanos, to_tokens, to_usd, usd_text
from token_budget._window import to_datetime

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    import datetime  # noqa: ICN001 - as at run time, where `_lazy` gives the name its meaning
    import decimal
    import fractions
    import typing
    from collections.abc import Callable
else:
    from token_budget._lazy import datetime, decimal, fractions, typing

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
_NANO_FIELDS = ("usd_used_nanos", "usd_reserved_nanos", "usd_cap_nanos", "usd_remaining_nanos")
_FEWEST_NANOS_OF_FOUR_DECIMALS = 10**6  # below it, four decimals would leave one digit of the amount, or none


class _AsOfADataclass:
    """An attribute as a frozen dataclass of the same fields has it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> typing.Any:
        from dataclasses import make_dataclass

        return getattr(make_dataclass(owner.__name__, _FIELDS, frozen=True), self.name)


def _as_of_a_dataclass(name: str) -> typing.Any:  # type checkers are to see the attribute, not what finds it
    return _AsOfADataclass(name)


class _LooksLikeADataclass:
    """Makes ``dataclasses.asdict``, ``replace`` and the rest work, as with token-budget-py, at no cost to the import.

    The attributes must be inherited. Readers in C (orjson) take a class that has them in its own ``__dict__`` for one
    whose fields are stored in the instance, and read memory that is not there.
    """

    __slots__ = ()
    __dataclass_fields__: typing.ClassVar[dict[str, typing.Any]] = _as_of_a_dataclass("__dataclass_fields__")
    __dataclass_params__: typing.ClassVar[typing.Any] = _as_of_a_dataclass("__dataclass_params__")


class BudgetSnapshot(_LooksLikeADataclass):
    """One atomic view of a pool: on each axis ``used + reserved + remaining == cap``, exactly.

    Tokens are int, dollars float with the exact integer of nanodollars beside them. Two snapshots are equal when all
    their numbers are. ``str()`` is one line for a progress display. Can be pickled; `to_dict` is ready for JSON, and
    pydantic and FastAPI take the class as a type.

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
    __match_args__ = ("tokens_used", "usd_used", "token_cap", "usd_cap", "tokens_remaining", "usd_remaining")

    def __init__(
        self,
        tokens_used: int = 0,
        usd_used: float | decimal.Decimal | fractions.Fraction = 0,
        token_cap: int | None = None,
        usd_cap: float | decimal.Decimal | fractions.Fraction | None = None,
        tokens_remaining: int | None = None,
        usd_remaining: float | decimal.Decimal | fractions.Fraction | None = None,
        *,
        tokens_reserved: int | None = None,
        usd_reserved: float | decimal.Decimal | fractions.Fraction | None = None,
        in_flight: int = 0,
        name: str | None = None,
        window_start: datetime.datetime | None = None,
        resets_at: datetime.datetime | None = None,
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
                to_timestamp(window_start, "window_start"),
                to_timestamp(resets_at, "resets_at"),
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
    def window_start(self) -> datetime.datetime | None:
        """When the current period began, in UTC; None without a window."""
        return to_datetime(self._state[5][3])

    @property
    def resets_at(self) -> datetime.datetime | None:
        """When what is used is set back to 0, in UTC; None without a window."""
        return to_datetime(self._state[5][4])

    @property
    def children(self) -> tuple[BudgetSnapshot, ...]:
        """The child pools as of the same moment, oldest first: of ``snapshot(tree=True)``, else empty."""
        return self._state[6]

    def to_dict(self) -> dict[str, typing.Any]:
        """Return all fields as a dict that is ready for JSON.

        Times are ISO 8601 text, ``children`` is a list of dicts, and beside each amount of dollars stands the exact
        integer (``usd_used_nanos`` and so on).

        Example:
            >>> import json
            >>> from token_budget import BudgetPool
            >>> text = json.dumps(BudgetPool(usd_cap=0.5).snapshot().to_dict())
            >>> json.loads(text)["usd_cap_nanos"]
            500000000
        """
        whole = [(self, self._flat())]
        for snapshot, fields in whole:  # it grows meanwhile: a family may be deeper than Python recurses
            below = [(child, child._flat()) for child in snapshot.children]
            fields["children"] = [flat for _, flat in below]
            whole += below
        return whole[0][1]

    def _flat(self) -> dict[str, typing.Any]:
        fields = _read(self)
        for name in ("window_start", "resets_at"):
            fields[name] = None if fields[name] is None else fields[name].isoformat()
        return fields

    @classmethod
    def __get_pydantic_core_schema__(cls, source: typing.Any, handler: typing.Any) -> dict[str, typing.Any]:
        """Tell pydantic the fields."""
        itself = {"type": "definition-ref", "schema_ref": reference(cls)}
        known = {"children": {"type": "list", "items_schema": itself}}
        return pydantic_schema(
            cls, handler, (*_FIELDS, *_NANO_FIELDS), known, {"tokens_used", "usd_used"}, _read, cls._made
        )

    @classmethod
    def _made(cls, fields: dict[str, typing.Any]) -> BudgetSnapshot:
        for name in _NANO_FIELDS:
            nanos = fields.pop(name, None)
            if nanos is not None:  # it is exact, as the float beside it may not be
                fields[name.removesuffix("_nanos")] = fractions.Fraction(nanos, NANOS_PER_USD)
        return cls(**fields)

    def __str__(self) -> str:
        token_cap, nano_cap, name, _, _ = self._state[5]
        title = "" if name is None else f"{name if name.isprintable() else repr(name)}: "
        shown = []
        # Where one axis alone is capped, the other is of interest only if something was spent on it.
        if token_cap is not None or nano_cap is None or self._state[0]:
            shown.append(f"tokens {_axis_text(self.tokens_used, self.tokens_reserved, token_cap, '{:,}'.format)}")
        if nano_cap is not None or token_cap is None or self._state[2]:
            shown.append(f"usd {_axis_text(self.usd_used_nanos, self.usd_reserved_nanos, nano_cap, _short_usd)}")
        return f"{title}{' | '.join(shown)} | {self.in_flight} in flight"

    def __repr__(self) -> str:
        return f"<BudgetSnapshot {self}>"

    def __eq__(self, other: object) -> bool:
        return self._state == other._state if isinstance(other, BudgetSnapshot) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._state)

    def __reduce__(self) -> tuple[typing.Any, ...]:
        return _restored, (type(self), self._state)


if TYPE_CHECKING:

    class _Statistics(typing.NamedTuple):
        reservations: int
        waiters: int
        children: int
        subscribers: int
else:
    _Statistics = namedtuple("_Statistics", ("reservations", "waiters", "children", "subscribers"))  # noqa: PYI024


class PoolStatistics(_Statistics):
    """How many reservations, waiters, children and subscribers a pool has: see ``BudgetPool.statistics``."""

    __slots__ = ()


def to_timestamp(moment: datetime.datetime | None, argument: str) -> float | None:
    """Return a moment as a POSIX timestamp; one without a time zone is local time, as everywhere in `datetime`."""
    if moment is None:
        return None
    if not isinstance(moment, datetime.datetime):
        raise TypeError(f"{argument} must be a datetime or None, not {shown_type(moment)}")
    return moment.timestamp()


def _restored(kind: type[BudgetSnapshot], state: typing.Any) -> BudgetSnapshot:
    snapshot = kind.__new__(kind)
    snapshot._state = state
    return snapshot


def _account(
    axis: str,
    convert: Callable[..., int],
    used: typing.Any,
    reserved: typing.Any,
    remaining: typing.Any,
    cap: typing.Any,
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


def _axis_text(used: int, reserved: int, cap: int | None, shown: Callable[[int], str]) -> str:
    held = f" + {shown(reserved)} held" if reserved else ""
    if cap is None:
        return f"{shown(used)}{held}"
    percent = 100 * (used + reserved) // cap if cap else 100
    return f"{shown(used)}{held} / {shown(cap)} ({percent}%)"


def _short_usd(nanos: int) -> str:
    """Return dollars with four decimals; exactly, where four decimals would be too few to tell a small amount."""
    if abs(nanos) < _FEWEST_NANOS_OF_FOUR_DECIMALS and nanos % 10**5:
        return usd_text(nanos)
    return f"{to_usd(nanos):,.4f}"


# ---------------------------------------------------------------- pydantic


def pydantic_schema(
    owner: type,
    handler: typing.Any,
    fields: tuple[str, ...],
    known: dict[str, typing.Any],
    required: set[str],
    read: Callable[[typing.Any], dict[str, typing.Any]],
    make: Callable[[dict[str, typing.Any]], typing.Any],
) -> dict[str, typing.Any]:
    """Return how pydantic takes and gives an `owner`: as a dict of its fields, each of the type of its property.

    A core schema of pydantic is a plain dict, so nothing has to be imported here.

    Args:
        owner: the class.
        handler: what pydantic hands to ``__get_pydantic_core_schema__``.
        fields: the names of all fields; each is a property of the class.
        known: the schemas of the fields that this function is not to look up.
        required: the fields that a dict must have to be taken.
        read: returns the fields of an instance.
        make: makes an instance of the fields.
    """
    types = {name: known.get(name) or handler.generate_schema(_type_of(owner, name)) for name in fields}

    def dict_of_fields(needed: typing.Iterable[str]) -> dict[str, typing.Any]:
        return {
            "type": "typed-dict",
            "fields": {
                name: {"type": "typed-dict-field", "schema": schema, "required": name in needed}
                for name, schema in types.items()
            },
        }

    def take(value: typing.Any, inner: Callable[[typing.Any], dict[str, typing.Any]]) -> typing.Any:
        return value if isinstance(value, owner) else make(inner(value))

    return {
        "type": "function-wrap",
        "function": {"type": "no-info", "function": take},
        "schema": dict_of_fields(required),
        "ref": reference(owner),
        "serialization": {"type": "function-plain", "function": read, "return_schema": dict_of_fields(fields)},
    }


def reference(owner: type) -> str:
    """Return the name of a class among the definitions of a schema; what stands before the colon is shown."""
    return f"{owner.__module__}.{owner.__qualname__}:{id(owner)}"


def _type_of(owner: type, name: str) -> typing.Any:
    return typing.get_type_hints(getattr(owner, name).fget)["return"]


def _read(snapshot: BudgetSnapshot) -> dict[str, typing.Any]:
    fields = {name: getattr(snapshot, name) for name in (*_FIELDS, *_NANO_FIELDS)}
    return {**fields, "children": [*snapshot.children]}
