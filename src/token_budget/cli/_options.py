"""What the commands' options take: numbers within bounds."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_Number = TypeVar("_Number", int, float)


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return what reads a whole number within these bounds."""
    return _bounded(int, "a whole number", least, most)


def real(least: int, most: int) -> Callable[[str], float]:
    """Return what reads a number within these bounds."""
    return _bounded(float, "a number", least, most)


def _bounded(convert: Callable[[str], _Number], what: str, least: int, most: int) -> Callable[[str], _Number]:
    def parse(text: str) -> _Number:
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:  # false for NaN as well
            raise argparse.ArgumentTypeError(f"must be {what} from {least} to {most:,}, not {text!r}")
        return value

    return parse
