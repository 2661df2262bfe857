"""The budgets of a store as text: a tree with a bar for each axis, in lines that fit a terminal of 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from token_budget._money import usd_text
from token_budget.cli._display import filled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from token_budget import BudgetSnapshot

_BAR = 20  # characters between the brackets
_DEEPEST = 8  # levels that are indented: a deeper one stands below the last


def tree_lines(snapshot: BudgetSnapshot, now: datetime, depth: int | None = None) -> Iterator[str]:
    """Give the lines of a budget and of those below it, up to so many levels."""
    below = [(snapshot, 0)]
    while below:  # not by recursion: a tree may be deeper than Python recurses
        one, level = below.pop()
        indent = "  " * min(level, _DEEPEST)
        in_flight = [f"{one.in_flight:,} in flight"] if one.in_flight or not level else []
        about = ", ".join([*in_flight, *_reset(one, now)])
        yield from _lines(f"{shown_name(one)}{': ' if about else ''}{about}", indent, indent + "  ")
        for axis, text in _axes(one):
            yield from _lines(text, f"{indent}  {axis:<6} ", f"{indent}  {'':<{_BAR + 16}}")
        if level != depth:
            below += [(child, level + 1) for child in reversed(one.children)]


def amounts(tokens: int, nanos: int) -> str:
    """Return tokens and dollars as text."""
    return f"{tokens:,} {'token' if tokens == 1 else 'tokens'} and {usd_text(nanos)} USD"


def shown_name(snapshot: BudgetSnapshot) -> str:
    """Return the name of a budget; one that would change what a terminal shows is quoted."""
    name = str(snapshot.name)
    return name if name.isprintable() else repr(name)


def span(seconds: float) -> str:
    """Return a time in its two largest units: ``9 h 40 min``."""
    whole = max(0, int(seconds))
    units = ("d", whole // 86_400), ("h", whole // 3_600 % 24), ("min", whole // 60 % 60), ("s", whole % 60)
    first = next((index for index, (_, count) in enumerate(units) if count), 3)
    return " ".join(f"{count} {unit}" for unit, count in units[first : first + 2] if count) or "0 s"


def _reset(one: BudgetSnapshot, now: datetime) -> list[str]:
    if one.resets_at is None:
        return []
    seconds = (one.resets_at - now).total_seconds()
    return [f"resets {one.resets_at:%Y-%m-%d %H:%M:%S} UTC (in {span(seconds)})"]


def _axes(one: BudgetSnapshot) -> Iterator[tuple[str, str]]:
    tokens = (one.tokens_used, one.tokens_reserved, one.token_cap)
    nanos = (one.usd_used_nanos, one.usd_reserved_nanos, one.usd_cap_nanos)
    # As in the text of a snapshot: where one axis alone is capped, the other is shown if something was spent on it.
    if tokens[2] is not None or nanos[2] is None or any(tokens[:2]):
        yield "tokens", _axis(*tokens, "{:,}".format)
    if nanos[2] is not None or tokens[2] is None or any(nanos[:2]):
        yield "usd", _axis(*nanos, usd_text)


def _axis(used: int, held: int, cap: int | None, shown: Callable[[int], str]) -> str:
    amount = f"{shown(used)} used" + (f" + {shown(held)} held" if held else "")
    if cap is None:
        return f"{'':<{_BAR + 8}} {amount}, no cap"
    claimed = used + held
    percent = 100 * claimed // cap if cap else 100
    full = [min(_BAR * part // cap, _BAR) if cap else _BAR for part in (used, claimed)]
    bar = "#" * full[0] + "=" * (full[1] - full[0])
    return f"[{bar:-<{_BAR}}] {percent:>4}% {amount} of {shown(cap)}"


def _lines(text: str, first: str, then: str) -> list[str]:
    return filled(text, first=first, then=then).split("\n")
