"""BudgetEvent: what a pool tells its subscribers."""

from __future__ import annotations

from token_budget._money import to_tokens, to_usd, usd_text
from token_budget._snapshot import BudgetSnapshot, pydantic_schema

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    import typing
else:
    from token_budget._lazy import typing

# In quotes, so that `typing` is imported only for those who ask for the annotations.
Kind: typing.TypeAlias = """typing.Literal[
    "record", "reserve", "commit", "release", "refusal", "overrun", "drop", "reset", "roll-over", "threshold",
    "expired", "created"
]"""
_FIELDS = ("kind", "pool", "tokens", "usd", "usd_nanos", "snapshot")
_new = object.__new__


class BudgetEvent:
    """One thing that happened to a pool. It never changes.

    ``kind`` is ``"record"``, ``"reserve"``, ``"commit"``, ``"release"``, ``"refusal"`` (what was asked for did not fit,
    or no room came in time), ``"overrun"`` (follows the record or commit that passed a cap), ``"drop"`` (a reservation
    was garbage-collected unsettled and is released), ``"reset"``, ``"roll-over"`` or ``"threshold"``. The pools
    of a store also tell ``"expired"`` (the holder of a reservation died, or its lease ended: it is charged in full) and
    ``"created"`` (the store had no budget of that name).

    ``pool`` is the name of the pool that the call was made on, which may be a child of the one subscribed to; for
    ``"roll-over"``, ``"threshold"`` and ``"expired"`` it is the pool that it happened to. ``snapshot`` shows the pool
    subscribed to, right after. ``tokens`` and ``usd`` are what the call recorded, reserved, committed, gave back or was
    refused; they are 0 for ``"reset"``, ``"roll-over"``, ``"threshold"`` and ``"created"``.

    Can be pickled; `to_dict` is ready for JSON, and pydantic and FastAPI take the class as a type.
    """

    __slots__ = ("_facts",)
    _facts: tuple[Kind, str | None, int, int, BudgetSnapshot]

    def __init__(self, *_: typing.Any) -> None:
        raise TypeError("a pool makes its events: see BudgetPool.subscribe")

    @classmethod
    def _of(cls, kind: Kind, pool: str | None, tokens: int, nanos: int, snapshot: BudgetSnapshot) -> BudgetEvent:
        event = _new(cls)
        set_facts(event, (kind, pool, tokens, nanos, snapshot))
        return event

    def __setattr__(self, name: str, value: object) -> typing.NoReturn:
        raise AttributeError("a BudgetEvent never changes")

    def __delattr__(self, name: str) -> typing.NoReturn:
        raise AttributeError("a BudgetEvent never changes")

    @property
    def kind(self) -> Kind:
        """What happened."""
        return self._facts[0]

    @property
    def pool(self) -> str | None:
        """The name of the pool that the call was made on, None if it has none."""
        return self._facts[1]

    @property
    def tokens(self) -> int:
        """The tokens of the call."""
        return self._facts[2]

    @property
    def usd(self) -> float:
        """The dollars of the call."""
        return to_usd(self._facts[3])

    @property
    def usd_nanos(self) -> int:
        """`usd` in nanodollars."""
        return self._facts[3]

    @property
    def snapshot(self) -> BudgetSnapshot:
        """The pool subscribed to, right after."""
        return self._facts[4]

    def to_dict(self) -> dict[str, typing.Any]:
        """Return all fields as a dict that is ready for JSON; ``snapshot`` as its own `BudgetSnapshot.to_dict`."""
        return {**_read(self), "snapshot": self.snapshot.to_dict()}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: typing.Any, handler: typing.Any) -> dict[str, typing.Any]:
        """Tell pydantic the fields."""
        return pydantic_schema(cls, handler, _FIELDS, {}, {*_FIELDS} - {"usd"}, _read, cls._made)

    @classmethod
    def _made(cls, fields: dict[str, typing.Any]) -> BudgetEvent:
        tokens, nanos = to_tokens(fields["tokens"]), to_tokens(fields["usd_nanos"], "usd_nanos")
        return cls._of(fields["kind"], fields["pool"], tokens, nanos, fields["snapshot"])

    def __reduce__(self) -> tuple[typing.Any, ...]:
        return type(self)._of, self._facts

    def __eq__(self, other: object) -> bool:
        return self._facts == other._facts if isinstance(other, BudgetEvent) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._facts)

    def __repr__(self) -> str:
        kind, pool, tokens, nanos, snapshot = self._facts
        where = "" if pool is None else f" in {pool!r}"
        return f"<BudgetEvent {kind}{where} tokens {tokens:,} | usd {usd_text(nanos)} | after: {snapshot}>"


set_facts = BudgetEvent.__dict__["_facts"].__set__  # the slot's own way in: `__setattr__` is closed


def _read(event: BudgetEvent) -> dict[str, typing.Any]:
    return {name: getattr(event, name) for name in _FIELDS}
