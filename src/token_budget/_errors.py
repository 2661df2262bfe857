"""What the pool raises beyond TypeError and ValueError.

Each error carries its numbers as the integers that the pool counts, as of the moment of the decision, and writes its
text only when somebody reads it: a refusal is an everyday answer, and most are caught and never printed.
"""

from __future__ import annotations

from token_budget._arguments import checked_name
from token_budget._money import UNBOUNDED, to_nanos, to_tokens, to_usd, usd_text

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from decimal import Decimal
    from fractions import Fraction
    from typing import Any, Literal


class BudgetExceeded(Exception):
    """A request did not fit under a cap. It changed nothing, on any axis.

    Amounts are tokens (int) or dollars (float), by ``axis``; beside each stands the exact integer of nanodollars
    (``attempted_nanos`` and so on; None on the token axis). The text is exact. Can be pickled.

    The pool makes it; the constructor is public for tests that play a pool. It takes what token-budget-py 0.1.0 took,
    and by keyword the parts of ``attempted``: what they leave open counts as used.

    Example:
        >>> from token_budget import BudgetExceeded, BudgetPool
        >>> pool = BudgetPool(token_cap=100, name="run")
        >>> pool.record(tokens=80)
        >>> try:
        ...     pool.record(tokens=30)
        ... except BudgetExceeded as error:
        ...     print(error.axis, error.attempted, error.cap, error.pool, error.exhausted)
        tokens 110 100 run True
    """

    # What was decided on, in integers of tokens or nanodollars. For one axis: (axis, requested, attempted, reserved,
    # cap, pool). For both: (pool, then requested, attempted, reserved, cap of the tokens, then of the dollars), of
    # which `_facts` tells the one that matters.
    _decision: tuple[Any, ...]

    def __init__(
        self,
        axis: Literal["tokens", "usd"],
        attempted: float | Decimal | Fraction,
        cap: float | Decimal | Fraction,
        *,
        requested: float | Decimal | Fraction = 0,
        reserved: float | Decimal | Fraction = 0,
        pool: str | None = None,
    ) -> None:
        super().__init__()
        if axis not in {"tokens", "usd"}:
            raise ValueError('axis must be "tokens" or "usd"')
        convert: Any = to_tokens if axis == "tokens" else to_nanos
        self._decision = (
            axis,
            convert(requested, "requested"),
            convert(attempted, "attempted"),
            convert(reserved, "reserved"),
            convert(cap, "cap"),
            checked_name(pool, "pool"),
        )

    @classmethod
    def _of(
        cls,
        axis: Literal["tokens", "usd"],
        requested: int,
        attempted: int,
        reserved: int,
        cap: int,
        pool: str | None,
        *_,
    ) -> BudgetExceeded:
        """Make the error from the pool's own integers: tokens, or nanodollars."""
        error = cls.__new__(cls)
        error._decision = (axis, requested, attempted, reserved, cap, pool)
        return error

    @classmethod
    def _refusal(cls, *decision: Any) -> BudgetExceeded:
        """Make the error from the pool's numbers on both axes; which of them to tell is found when somebody asks."""
        error = cls.__new__(cls)
        error._decision = decision
        return error

    @classmethod
    def _refusal_of(cls, numbers, period_end, retry_after):
        return cls._refusal(*numbers)

    @property
    def _facts(self) -> tuple[Literal["tokens", "usd"], int, int, int, int, str | None]:
        """Return (axis, requested, attempted, reserved, cap, pool) of the axis to tell, exhausted ones first."""
        decision: Any = self._decision
        if len(decision) == 6:
            return decision  # type: ignore[no-any-return]
        pool, tokens, nanos = decision[0], decision[1:5], decision[5:]
        exhausted = [attempted - reserved > cap for _requested, attempted, reserved, cap in (tokens, nanos)]
        full = [attempted > cap for _requested, attempted, _reserved, cap in (tokens, nanos)]
        # Neither is full where others wait for room: then an axis that has a cap, and that something is asked of.
        by_turn = not any(full) and tokens[3] != UNBOUNDED and (tokens[0] > 0 or nanos[3] == UNBOUNDED)
        if exhausted[0] or (full[0] and not exhausted[1]) or by_turn:
            return ("tokens", *tokens, pool)
        return ("usd", *nanos, pool)

    @property
    def axis(self) -> Literal["tokens", "usd"]:
        """The axis that had no room. Where neither had: the exhausted one, and of two such ``"tokens"``."""
        return self._facts[0]

    @property
    def requested(self) -> float:
        """What this call asked for."""
        return self._amount(self._facts[1])

    @property
    def used(self) -> float:
        """What was used before this call."""
        return self._amount(self._facts[2] - self._facts[3] - self._facts[1])

    @property
    def reserved(self) -> float:
        """What the other calls in flight held."""
        return self._amount(self._facts[3])

    @property
    def attempted(self) -> float:
        """What it would have come to: ``used + reserved + requested``."""
        return self._amount(self._facts[2])

    @property
    def cap(self) -> float:
        """The cap that it would have passed."""
        return self._amount(self._facts[4])

    @property
    def requested_nanos(self) -> int | None:
        """`requested` in nanodollars."""
        return self._nanos(self._facts[1])

    @property
    def used_nanos(self) -> int | None:
        """`used` in nanodollars."""
        return self._nanos(self._facts[2] - self._facts[3] - self._facts[1])

    @property
    def reserved_nanos(self) -> int | None:
        """`reserved` in nanodollars."""
        return self._nanos(self._facts[3])

    @property
    def attempted_nanos(self) -> int | None:
        """`attempted` in nanodollars."""
        return self._nanos(self._facts[2])

    @property
    def cap_nanos(self) -> int | None:
        """`cap` in nanodollars."""
        return self._nanos(self._facts[4])

    @property
    def pool(self) -> str | None:
        """The name of the pool that refused, None if it has none."""
        return self._facts[5]

    @property
    def exhausted(self) -> bool:
        """True: it would not fit even if all that is in flight came back. False: the pool is only busy."""
        _axis, _requested, attempted, reserved, cap, _pool = self._facts
        return attempted - reserved > cap

    @property
    def args(self) -> tuple[str]:  # type: ignore[override]
        """The text, as with token-budget-py; written when somebody reads it."""
        return (str(self),)

    def __str__(self) -> str:
        if self.exhausted:
            less = "ask for less, " if self._facts[1] else ""
            advice = f"exhausted: {less}reset() the pool or give it a larger cap"
        else:
            advice = "busy: it fits when calls in flight give back what they do not use"
            if self.attempted <= self.cap:
                advice = "busy: others wait for room, and it is their turn"
        return f"{self._numbers('budget exceeded')}; {advice}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self._decision), self.__dict__

    def _numbers(self, what: str) -> str:
        axis, requested, attempted, reserved, cap, pool = self._facts
        text = str if axis == "tokens" else usd_text
        where = f" in pool {pool!r}" if pool is not None else ""
        return (
            f"{what} on {axis}{where}: attempted {text(attempted)} {'>' if attempted > cap else '<='} cap {text(cap)} "
            f"({text(attempted - reserved - requested)} used, {text(reserved)} reserved, {text(requested)} requested)"
        )

    def _amount(self, units: int) -> float:
        return units if self._facts[0] == "tokens" else to_usd(units)

    def _nanos(self, units: int) -> int | None:
        return units if self._facts[0] == "usd" else None


class BudgetOverrun(BudgetExceeded):
    """A spend that had already happened took the pool over a cap. It **is recorded**; do not commit it again.

    Raised by a ``commit`` above its own reservation and by ``record(..., force=True)``. ``used`` and ``reserved`` are
    what was there before (without the reservation that is being committed), ``attempted`` is what there is now.
    """

    def __str__(self) -> str:
        return f"{self._numbers('budget overrun')}; the spend is recorded: do not commit it again"


class BudgetTimeout(BudgetExceeded, TimeoutError):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A reservation was waited for until its time-out, and no room came. Nothing was changed.

    Its numbers are those of the scope at which it waited, as of the moment at which it gave up.
    """

    def __str__(self) -> str:
        why = "no room came in time" if self.attempted > self.cap else "others were before it, and are still"
        return f"{self._numbers('budget timeout')}; {why}: wait longer, ask for less, or set larger caps"


class ReservationClosed(RuntimeError):
    """The reservation was committed or released before; the text says which. Nothing was changed."""


class PoolClosed(RuntimeError):
    """The pool, or one above it, was closed: it lets calls in flight settle, and begins none. Nothing was changed."""


class PoolForked(RuntimeError):
    """This copy of the pool came into a child process by ``os.fork()``, and refuses to spend the parent's budget again.

    Make a pool of the child's own, or call `BudgetPool.detach` to go on with this copy as a separate budget.
    ``snapshot()`` works without.
    """


def _restored(kind: type[BudgetExceeded], decision: tuple[Any, ...]) -> BudgetExceeded:
    error = kind.__new__(kind)
    error._decision = decision
    return error
