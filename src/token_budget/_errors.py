"""The errors that a pool raises, beyond TypeError and ValueError.

Refusals are frequent, and most of them are caught and never printed. So an error only stores the integers of the
decision when it is made; its axis, its amounts and its text are computed when somebody reads them.
"""

from __future__ import annotations

from sys import float_info

from token_budget._arguments import checked_name
from token_budget._money import UNBOUNDED, shown_type, to_nanos, to_tokens, to_usd, usd_text
from token_budget._snapshot import to_timestamp
from token_budget._window import to_datetime

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    import datetime  # noqa: ICN001 - as at run time, where `_lazy` gives the name its meaning
    import decimal
    import fractions
    import typing
else:
    from token_budget._lazy import datetime, decimal, fractions, typing

_own_args: typing.Any = BaseException.__dict__["args"]  # what `args` of every exception reads and writes


class BudgetExceeded(Exception):
    """A request did not fit under a cap. Nothing was changed, on any axis.

    Amounts are tokens (int) or dollars (float), depending on ``axis``. Beside each stands the exact integer of
    nanodollars (``attempted_nanos`` and so on), which is None on the token axis.

    The pool makes it. The constructor is public for tests that play a pool: it takes what token-budget-py 0.1.0 took,
    and by keyword the parts of ``attempted``; what they leave open counts as used. Like any exception it can be pickled
    and copied, takes notes, and can be made again from its ``args``: an error that is made from one text shows that
    text, and its axis, pool and numbers are None.

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

    # One of three tuples of integers (tokens or nanodollars), or nothing in an error that was made from a text:
    # - a refusal by a pool without a window: (pool, then requested, attempted, reserved, cap of the tokens, then of the
    #   dollars);
    # - any other refusal: the same, then the end of the period (POSIX timestamp or None) and `retry_after`;
    # - one axis: (axis, requested, attempted, reserved, cap, pool), then the same two.
    # A cap of `UNBOUNDED` is no cap.
    _decision: tuple[typing.Any, ...]
    _args_were_set: bool = False

    def __init__(
        self,
        axis: str,
        attempted: float | decimal.Decimal | fractions.Fraction | None = None,
        cap: float | decimal.Decimal | fractions.Fraction | None = None,
        *,
        requested: float | decimal.Decimal | fractions.Fraction = 0,
        reserved: float | decimal.Decimal | fractions.Fraction = 0,
        pool: str | None = None,
        resets_at: datetime.datetime | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Make the error from the numbers of one axis, or from one text.

        ``retry_after`` is in seconds; if it is left out, it is 0.0 for a busy pool and None for an exhausted one.

        Raises:
            TypeError, ValueError: axis is neither "tokens" nor "usd", or a number is no such amount.
        """
        others = (requested, reserved, pool, resets_at, retry_after)
        if attempted is None and cap is None and others == (0, 0, None, None, None):
            super().__init__(axis)
            return
        super().__init__()
        if axis not in {"tokens", "usd"}:
            raise ValueError('axis must be "tokens" or "usd"')
        convert: typing.Any = to_tokens if axis == "tokens" else to_nanos
        asked = convert(requested, "requested")
        after = convert(attempted, "attempted")
        held = convert(reserved, "reserved")
        bound = convert(cap, "cap")
        seconds = _checked_seconds(retry_after)
        if seconds is None and after - held <= bound:
            seconds = 0.0
        period_end = to_timestamp(resets_at, "resets_at")
        self._decision = (axis, asked, after, held, bound, checked_name(pool, "pool"), period_end, seconds)

    @classmethod
    def _of(
        cls,
        axis: str,
        requested: int,
        attempted: int,
        reserved: int,
        cap: int,
        pool: str | None,
        period_end: float | None = None,
        retry_after: float | None = None,
    ) -> BudgetExceeded:
        """Make the error of one axis, from the pool's own integers."""
        error = cls.__new__(cls)
        error._decision = (axis, requested, attempted, reserved, cap, pool, period_end, retry_after)
        return error

    @classmethod
    def _refusal(cls, *decision: typing.Any) -> BudgetExceeded:
        """Make the error of a pool without a window, from its numbers on both axes."""
        error = cls.__new__(cls)
        error._decision = decision
        return error

    @classmethod
    def _refusal_of(
        cls, numbers: tuple[typing.Any, ...], period_end: float | None, retry_after: float | None
    ) -> BudgetExceeded:
        """Make the error of any pool, from its numbers on both axes, its period's end and what `retry_after` says."""
        error = cls.__new__(cls)
        error._decision = (*numbers, period_end, retry_after)
        return error

    @property
    def axis(self) -> typing.Literal["tokens", "usd"] | typing.Any:  # noqa: F821, UP037 - ruff does not know `_lazy`
        """The axis that had no room, always one that the call asked for.

        Where neither had: the exhausted one, and of two such ``"tokens"``.
        """
        return self._facts[0]

    @property
    def requested(self) -> float | typing.Any:
        """What this call asked for."""
        return self._amount(self._facts[1])

    @property
    def used(self) -> float | typing.Any:
        """What was used before this call."""
        return self._amount(self._facts[2])

    @property
    def reserved(self) -> float | typing.Any:
        """What the other calls in flight held."""
        return self._amount(self._facts[3])

    @property
    def attempted(self) -> float | typing.Any:
        """What it would have come to: ``used + reserved + requested``."""
        return self._amount(self._facts[4])

    @property
    def cap(self) -> float | typing.Any:
        """The cap that it would have passed.

        None in one case: the axis has no cap, and the call was refused because others wait for room on the other axis.
        """
        return self._amount(self._facts[5])

    @property
    def requested_nanos(self) -> int | None:
        """`requested` in nanodollars."""
        return self._nanos(self._facts[1])

    @property
    def used_nanos(self) -> int | None:
        """`used` in nanodollars."""
        return self._nanos(self._facts[2])

    @property
    def reserved_nanos(self) -> int | None:
        """`reserved` in nanodollars."""
        return self._nanos(self._facts[3])

    @property
    def attempted_nanos(self) -> int | None:
        """`attempted` in nanodollars."""
        return self._nanos(self._facts[4])

    @property
    def cap_nanos(self) -> int | None:
        """`cap` in nanodollars."""
        return self._nanos(self._facts[5])

    @property
    def pool(self) -> str | None:
        """The name of the pool that refused, None if it has none."""
        return self._facts[6]  # type: ignore[no-any-return]

    @property
    def exhausted(self) -> bool | typing.Any:
        """True: it would not fit even if all that is in flight came back. False: the pool is only busy."""
        _axis, requested, used, _reserved, _attempted, cap, _pool = self._facts
        if requested is None:
            return None
        asked = requested > 0 or len(self._decision) == 8  # an error of one axis is about that axis in any case
        return asked and cap is not None and used + requested > cap

    @property
    def resets_at(self) -> datetime.datetime | None:
        """When the scope that refused starts a new period, in UTC; None without a window."""
        return to_datetime(self._period[0])

    @property
    def retry_after(self) -> float | None:
        """Seconds, as of the refusal, until asking again can help.

        0.0 if the pool is only busy; None if the request never fits.
        """
        return self._period[1]

    @property
    def args(self) -> tuple[typing.Any, ...]:
        """The text, as with token-budget-py, unless other args were set: what is set is what ``str()`` shows."""
        if self._made_from_args:
            return _own_args.__get__(self)  # type: ignore[no-any-return]
        return (self._text(),)

    @args.setter
    def args(self, value: tuple[typing.Any, ...]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        _own_args.__set__(self, value)
        self._args_were_set = True

    def __str__(self) -> str:
        return super().__str__() if self._made_from_args else self._text()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"

    def __reduce__(self) -> tuple[typing.Any, ...]:
        return _restored, (type(self), _own_args.__get__(self)), self.__dict__

    @property
    def _made_from_args(self) -> bool:
        return self._args_were_set or self._stored is None

    @property
    def _stored(self) -> tuple[typing.Any, ...] | None:
        # A subclass may never call this class's `__init__`, or hand on the attributes of an error that it wraps.
        return getattr(self, "_decision", None)

    @property
    def _facts(self) -> tuple[typing.Any, ...]:
        """Return (axis, requested, used, reserved, attempted, cap, pool) of the axis that the error tells."""
        decision = self._stored
        if decision is None:
            return (None,) * 7
        if len(decision) == 8:
            axis, requested, attempted, reserved, cap, pool = decision[:6]
        else:
            pool = decision[0]
            # Of equal weights `max` takes the first: tokens.
            axis, requested, attempted, reserved, cap = max(
                ("tokens", *decision[1:5]), ("usd", *decision[5:9]), key=_weight
            )
        used = attempted - reserved - requested
        return axis, requested, used, reserved, attempted, None if cap == UNBOUNDED else cap, pool

    @property
    def _period(self) -> tuple[float | None, float | None]:
        """Return the end of the period as a POSIX timestamp, and `retry_after`."""
        decision = self._stored
        if decision is None:
            return None, None
        if len(decision) == 9:
            return None, None if self.exhausted else 0.0
        return decision[-2:]

    def _text(self) -> str:
        return f"{self._numbers('budget exceeded')}; {self._advice()}"

    def _advice(self) -> str:
        """Say which of the three refusals it is, and what helps."""
        _axis, requested, used, _reserved, attempted, cap, _pool = self._facts
        if cap is None or attempted <= cap:
            return "busy: others wait for room, and they come first; reserve() with a timeout waits in line"
        if not self.exhausted:
            return "busy: it fits once calls in flight give back enough; reserve() with a timeout waits for that"
        if requested > cap:
            return "the request is larger than the whole cap: ask for less or raise the cap"
        less = "ask for less, " if used < cap else ""
        if self.resets_at is None:
            return f"used up: {less}reset() the pool or give it a larger cap"
        until = f"used up until {self.resets_at.isoformat()}"
        if self.retry_after is None:  # for the sake of the other axis, or of another scope that refuses
            return f"{until}, and the call does not fit even then: {less}reset() the pools or raise their caps"
        return f"{until}, when a new period begins: {less}wait until then or raise the cap"

    def _numbers(self, what: str) -> str:
        axis, requested, used, reserved, attempted, cap, pool = self._facts
        text = str if axis == "tokens" else usd_text
        where = f" in pool {pool!r}" if pool is not None else ""
        limit = ", no cap" if cap is None else f" {'>' if attempted > cap else '<='} cap {text(cap)}"
        return (
            f"{what} on {axis}{where}: attempted {text(attempted)}{limit} "
            f"({text(used)} used, {text(reserved)} reserved, {text(requested)} requested)"
        )

    def _amount(self, units: int | None) -> float | None:
        return units if units is None or self._facts[0] == "tokens" else to_usd(units)

    def _nanos(self, units: int | None) -> int | None:
        return units if self._facts[0] == "usd" else None


class BudgetOverrun(BudgetExceeded):
    """A spend that had already happened took the pool over a cap. It **is recorded**; do not commit it again.

    Raised by a ``commit`` above its own reservation and by ``record(..., force=True)``. ``used`` and ``reserved`` are
    what was there before (without the reservation that is being committed), ``attempted`` is what there is now.
    """

    def _text(self) -> str:
        return f"{self._numbers('budget overrun')}; the spend is recorded: do not commit it again"


class BudgetTimeout(BudgetExceeded, TimeoutError):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A call waited for room, and none came before its time-out. Nothing was changed.

    Its numbers are those of the scope at which it waited, as of the moment at which it gave up.
    """

    def _text(self) -> str:
        _axis, _requested, _used, _reserved, attempted, cap, _pool = self._facts
        if cap is None or attempted <= cap:
            why = "others were before it, and no room came in time"
        elif self.exhausted and self.resets_at is not None:
            why = f"used up until {self.resets_at.isoformat()}"
        else:
            why = "no room came in time"
        return f"{self._numbers('budget timeout')}; {why}: wait longer, ask for less, or set larger caps"


class ReservationClosed(RuntimeError):
    """The reservation was committed or released before; the text says which. Nothing was changed."""


class PoolClosed(RuntimeError):
    """The pool, or one above it, was closed: calls in flight can still settle, new ones are refused.

    Nothing was changed.
    """


class PoolForked(RuntimeError):
    """A child process made by ``os.fork()`` holds a copy of the pool, and the copy refuses to spend the same budget.

    Make a pool in the child, or call `BudgetPool.detach` to go on with this copy as a separate budget. ``snapshot()``
    works without either.
    """


def _weight(axis: tuple[typing.Any, ...]) -> tuple[bool, ...]:
    """Rank one axis of a refusal: asked for, exhausted, full, capped."""
    _name, requested, attempted, reserved, cap = axis
    return requested > 0, attempted - reserved > cap, attempted > cap, cap != UNBOUNDED


def _checked_seconds(seconds: typing.Any) -> float | None:
    if seconds is None:
        return None
    kind = type(seconds)
    if issubclass(kind, bool) or not issubclass(kind, (int, float)):
        raise TypeError(f"retry_after must be a number of seconds or None, not {shown_type(seconds)}")
    number = int.__index__(seconds) if issubclass(kind, int) else float.__float__(seconds)
    if not 0 <= number <= float_info.max:
        raise ValueError("retry_after must be a finite number of seconds, from 0 on")
    return float(number)


def _restored(kind: type[BudgetExceeded], args: tuple[typing.Any, ...]) -> BudgetExceeded:
    error = kind.__new__(kind)
    _own_args.__set__(error, args)
    return error
