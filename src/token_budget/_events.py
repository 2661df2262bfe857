"""BudgetEvent: what a pool tells those who subscribed to it."""

from __future__ import annotations

from token_budget._money import to_usd, usd_text

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from typing import Any, Literal, NoReturn

    from token_budget._snapshot import BudgetSnapshot

    Kind = Literal[
        "record",
        "reserve",
        "commit",
        "release",
        "refusal",
        "overrun",
        "drop",
        "reset",
        "roll-over",
        "threshold",
    ]


class BudgetEvent:
    """One thing that happened to a pool. It never changes.

    ``kind`` is ``"record"``, ``"reserve"``, ``"commit"``, ``"release"``, ``"refusal"`` (what was asked for did not fit,
    or was waited for in vain), ``"overrun"`` (follows the record or commit that passed a cap), ``"drop"`` (a
    reservation was collected unsettled and is released), ``"reset"``, ``"roll-over"`` or ``"threshold"``.

    ``pool`` is the name of the pool that the call was made on, which may be a child of the one subscribed to (for
    ``"roll-over"`` and ``"threshold"`` of the one that it happened to);
    ``snapshot`` shows the one subscribed to, right after. ``tokens`` and ``usd`` are what the call recorded, reserved,
    committed, gave back or was refused; 0 for the last three kinds.
    """

    __slots__ = ("_facts",)
    _facts: tuple[Kind, str | None, int, int, BudgetSnapshot]

    def __init__(self, *_: Any) -> None:
        raise TypeError("a pool makes its events: see BudgetPool.subscribe")

    @classmethod
    def _of(cls, kind: Kind, pool: str | None, tokens: int, nanos: int, snapshot: BudgetSnapshot) -> BudgetEvent:
        event = cls.__new__(cls)
        object.__setattr__(event, "_facts", (kind, pool, tokens, nanos, snapshot))
        return event

    def __setattr__(self, name: str, value: object) -> NoReturn:
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

    def __reduce__(self) -> tuple[Any, ...]:
        return BudgetEvent._of, self._facts

    def __eq__(self, other: object) -> bool:
        return self._facts == other._facts if isinstance(other, BudgetEvent) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._facts)

    def __repr__(self) -> str:
        kind, pool, tokens, nanos, snapshot = self._facts
        where = "" if pool is None else f" in {pool!r}"
        return f"<BudgetEvent {kind}{where} tokens {tokens:,} | usd {usd_text(nanos)} | after: {snapshot}>"
