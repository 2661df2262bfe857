"""Hostile numbers, and objects that only look like numbers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any


class Evil:
    """Raises from every method that a careless check or message would call."""

    def _never(self, *_: object) -> Any:
        raise AssertionError("code of the caller's class was run")

    __repr__ = __str__ = __format__ = __bool__ = __hash__ = __eq__ = _never
    __lt__ = __le__ = __gt__ = __ge__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _never
    __neg__ = __abs__ = __round__ = __trunc__ = __floor__ = _never


class EvilInt(Evil, int):
    """An int whose every operator is hostile."""

    __index__ = __int__ = __float__ = Evil._never


class EvilFloat(Evil, float):
    """A float whose every operator is hostile."""

    __float__ = __int__ = as_integer_ratio = is_integer = Evil._never


class LyingFloat(float):
    """A float that claims to be smaller than it is."""

    def __float__(self) -> float:
        return 0.0

    def as_integer_ratio(self) -> tuple[int, int]:
        return (0, 1)

    __mul__ = __rmul__ = __round__ = lambda self, *_: 0


class LyingInt(int):
    """An int that claims to be smaller than it is."""

    def __index__(self) -> int:
        return 0

    __int__ = __index__
    __mul__ = __rmul__ = __add__ = __radd__ = lambda self, *_: 0


class OnlyFloat:
    def __float__(self) -> float:
        return 1.0


class OnlyInt:
    def __int__(self) -> int:
        return 1


class Index:
    def __init__(self, value: object) -> None:
        self.value = value

    def __index__(self) -> Any:
        return self.value


class Claims:
    """Claims to be an int."""

    __class__ = int  # type: ignore[assignment]


class BadRational(Fraction):
    @property
    def denominator(self) -> int:
        return 0


class NegativeRational(Fraction):
    @property
    def denominator(self) -> int:
        return -1
