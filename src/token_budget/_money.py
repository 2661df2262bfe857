"""Amounts: every conversion between what callers pass and the integers that the pool counts.

Tokens are counted as int, dollars as integer nanodollars (1 USD = 10**9; the grid of ``google.type.Money``). What
always holds:

* What comes out is a plain ``int``, at least 0, never a subclass: no operator of a caller's class runs in the pool.
* Dollars are rounded once, half to even, from the exact value of what was passed (a float is its exact binary value).
* What is refused raises TypeError or ValueError, in a message of bounded length that runs no ``__repr__`` or
  ``__format__`` of a caller's class.
* Nothing here takes a lock, and the pool calls nothing here while it holds its own.
"""

from __future__ import annotations

import operator
from math import isfinite

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from decimal import Decimal
    from fractions import Fraction
    from typing import Any, SupportsIndex

NANOS_PER_USD = 10**9
MAX_TOKENS = 10**18
UNBOUNDED = 1 << 256  # stands for "no cap": 10**59 spends of the largest amount would not reach it
MAX_USD = 10**9
_SHOWN_CHARACTERS = 60
_class_name = type.__dict__[
    "__name__"
].__get__  # a metaclass may define a `__name__` of its own; this one is the type's


def to_tokens(tokens: SupportsIndex, name: str = "tokens") -> int:
    """Return ``tokens`` as a plain int from 0 to 10**18; ``name`` is what messages call it.

    Raises:
        TypeError: it is a bool, or not an integer (``operator.index`` decides, so numpy integers are).
        ValueError: it is negative or above 10**18.
    """
    if issubclass(type(tokens), bool):
        raise TypeError(f"{name} must be an integer, not bool")
    try:
        count = operator.index(tokens)  # a plain int, also of a subclass of int, whose own methods it does not call
    except TypeError:
        advice = "; round it first" if issubclass(type(tokens), float) else ""
        raise TypeError(f"{name} must be an integer, not {shown_type(tokens)}{advice}") from None
    if count < 0:
        raise ValueError(f"{name} must not be negative, got {_shown_int(count)}")
    if count > MAX_TOKENS:
        raise ValueError(f"{name} must be at most 10**18, got {_shown_int(count)}")
    return count


def to_nanos(usd: float | Decimal | Fraction, name: str = "usd") -> int:
    """Return ``usd`` dollars as integer nanodollars, rounded half to even; ``name`` is what messages call it.

    Takes int, float, Decimal, Fraction, and what subclasses them or registers as ``numbers.Real`` (numpy scalars).

    Raises:
        TypeError: it is a bool, or no such number (text, None, an object that only defines ``__float__``).
        ValueError: it is NaN, infinite, negative or above 10**9 USD.
    """
    # The common cases, for which nothing is called but two methods in C (`round(x)` would cost three times as much as
    # `x.__round__()`). Up to 1000 USD the product is below 2**40, so it is off by at most 2**-14: it rounds as the
    # exact value does, unless it lies that close to a tie.
    if type(usd) is float and 0.0 <= usd <= 1000.0:
        scaled = usd * 1e9
        if scaled.is_integer():
            return scaled.__trunc__()
        nanos = scaled.__round__()
        if -0.4999 < scaled - nanos < 0.4999:
            return nanos
    elif type(usd) is int and 0 <= usd <= MAX_USD:
        return usd * NANOS_PER_USD
    numerator, denominator = _ratio(usd, name)
    if numerator < 0:
        raise ValueError(f"{name} must not be negative{_shown_number(usd)}")
    if numerator > MAX_USD * denominator:
        raise ValueError(f"{name} must be at most 10**9 USD{_shown_number(usd)}")
    nanos, rest = divmod(numerator * NANOS_PER_USD, denominator)
    twice = 2 * rest
    return nanos + (twice > denominator or (twice == denominator and nanos % 2 == 1))


def to_usd(nanos: int) -> float:
    """Return the float nearest to that many nanodollars, in dollars."""
    return nanos / NANOS_PER_USD


def usd_text(nanos: int) -> str:
    """Return the exact decimal text of that many nanodollars, in dollars: ``0.3``, ``-1.000000001``, ``12``."""
    whole, part = divmod(abs(nanos), NANOS_PER_USD)
    sign = "-" if nanos < 0 else ""
    return f"{sign}{whole}.{part:09}".rstrip("0").rstrip(".")


def shown_type(value: object) -> str:
    """Return the name of the value's type for a message: bounded, and no code of that type is run."""
    return str.__str__(_class_name(type(value)))[:_SHOWN_CHARACTERS]


def _ratio(usd: Any, name: str) -> tuple[int, int]:
    """Return the exact value of a number as numerator and denominator (above 0), or raise as `to_nanos` says.

    The methods of the built-in classes are called through the class, so that no subclass can change the value.
    """
    kind = type(usd)
    if issubclass(kind, float):
        value = float.__float__(usd)
        if not isfinite(value):
            raise ValueError(f"{name} must be finite, got {value!r}")
        return value.as_integer_ratio()
    if issubclass(kind, int) and not issubclass(kind, bool):
        return int.__index__(usd), 1

    # Whoever passes one of these has imported its module already; the package itself does without them.
    from decimal import Decimal
    from numbers import Real

    if issubclass(kind, Decimal):
        return _decimal_ratio(usd, name)
    if issubclass(kind, Real) and not issubclass(kind, bool):
        try:
            numerator, denominator = map(operator.index, _foreign_ratio(usd))
        except (OverflowError, ValueError):  # infinite, NaN
            raise ValueError(f"{name} must be finite, got a {shown_type(usd)} that is not") from None
        except TypeError:  # registered as a number, and none (numpy.timedelta64)
            pass
        else:
            if denominator <= 0:
                raise ValueError(f"{name} must have a denominator above 0")
            return numerator, denominator
    raise TypeError(f"{name} must be an int, float, Decimal or Fraction, not {shown_type(usd)}")


def _foreign_ratio(usd: Any) -> tuple[Any, Any]:
    """Return the ratio of something that is registered as a number, as it says itself."""
    from numbers import Rational

    if isinstance(usd, Rational):
        return usd.numerator, usd.denominator
    if hasattr(type(usd), "as_integer_ratio"):  # it may be wider than a float (numpy.longdouble)
        return usd.as_integer_ratio()  # type: ignore[no-any-return]
    return float(usd).as_integer_ratio()


def _decimal_ratio(usd: Decimal, name: str) -> tuple[int, int]:
    """Return a ratio that ends as the same nanodollars, in a time that the exponent cannot raise.

    The exact ratio of ``Decimal("1e999999999")`` has a billion digits; the comparison and ``quantize``, which rounds
    the exact value once, look at the exponent first. The caller's decimal context plays no part.
    """
    from decimal import ROUND_HALF_EVEN, Context, Decimal

    if not Decimal.is_finite(usd):
        raise ValueError(f"{name} must be finite, got a Decimal that is not")
    if Decimal.__lt__(usd, Decimal(0)):
        return -1, 1
    if Decimal.__gt__(usd, Decimal(MAX_USD)):
        return MAX_USD + 1, 1
    context = Context(prec=30, rounding=ROUND_HALF_EVEN, traps=[])
    return int(Decimal.quantize(usd, Decimal("1e-9"), context=context).scaleb(9, context)), NANOS_PER_USD


def _shown_int(value: int) -> str:
    return str(value) if value.bit_length() <= 128 else f"an integer of {value.bit_length()} bits"


def _shown_number(value: Any) -> str:
    """Return ", got ..." for the numbers whose text is short and ours; nothing for the rest."""
    kind = type(value)
    if issubclass(kind, int):
        return f", got {_shown_int(int.__index__(value))}"
    if issubclass(kind, float):
        return f", got {float.__repr__(value)}"
    return ""
