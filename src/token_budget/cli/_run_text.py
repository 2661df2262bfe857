"""A run's numbers as text: for the terminal's title, for the lines of its progress, and for its summary."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from token_budget._money import usd_text
from token_budget.cli._run_status import RunStatus

TITLE = 100  # characters of the longest title


def pure(text: str) -> str:
    """Return the text without what a terminal would obey: control characters, ends of lines, marks of direction."""
    return "".join(character if character.isprintable() else "?" for character in text)


def dollars(nanos: int) -> str:
    """Return dollars: two decimals of whole cents, every digit below a tenth of a cent, and else four decimals."""
    if nanos % 10**7 == 0:
        return f"${nanos // 10**9:,}.{nanos % 10**9 // 10**7:02}"
    if nanos < 10**6:
        return f"${usd_text(nanos)}"
    whole, part = divmod((nanos + 50_000) // 100_000, 10**4)
    return f"${whole:,}.{part:04}"


def amount(nanos: int, tokens: int) -> str:
    """Return dollars and tokens, the tokens only where there are some."""
    return " and ".join([dollars(nanos), *([counted(tokens)] if tokens else [])])


def counted(tokens: int) -> str:
    """Return the number of tokens."""
    return f"{tokens:,} {'token' if tokens == 1 else 'tokens'}"


def made(calls: int) -> str:
    """Return the number of calls."""
    return f"{calls:,} {'call' if calls == 1 else 'calls'}"


def capped(shown: str, cap: int | None, show: Callable[[int], str]) -> str:
    """Return what was spent and, where there is one, the cap."""
    return shown if cap is None else f"{shown} of {show(cap)}"


def seconds(elapsed: float) -> str:
    """Return a time."""
    return f"{elapsed:.1f} s" if elapsed < 100 else f"{elapsed:,.0f} s"


def axes(status: RunStatus) -> Iterator[tuple[str, int, int | None]]:
    """Give (what, used, cap) of each axis: of the run's own caps, or of the whole pool's where it has none."""
    if status.pool is not None and status.usd_cap_nanos is None and status.token_cap is None:
        whole = status.pool
        yield "usd", int(whole.get("usd_used_nanos") or 0), whole.get("usd_cap_nanos")
        yield "tokens", int(whole.get("tokens_used") or 0), whole.get("token_cap")
    else:
        yield "usd", status.usd_nanos, status.usd_cap_nanos
        yield "tokens", status.tokens, status.token_cap


def percent(used: int, cap: int) -> int:
    """Return what share of the cap is used, in whole percent."""
    return 100 * used // cap if cap else 100


def spent(status: RunStatus) -> str:
    """Return what is used of the caps, what is in flight, and what was refused: it changes only when they do."""
    parts = []
    for axis, used, cap in axes(status):
        if cap is None and (axis == "tokens" or status.token_cap is not None):
            continue
        shown = dollars if axis == "usd" else counted
        share = "" if cap is None else f" ({percent(used, cap)}%)"
        parts.append(f"{capped(shown(used), cap, shown)}{share}")
    if status.in_flight:
        parts.append(f"{status.in_flight:,} in flight")
    if status.refused:
        parts.append(f"{status.refused:,} refused")
    return ", ".join(parts)


def title(status: RunStatus) -> str:
    """Return the terminal's title: the program and what is spent."""
    text = spent(status)
    return f"{pure(status.command)[: max(TITLE - len(text) - 2, 8)]}: {text}"[:TITLE]


def line(status: RunStatus) -> str:
    """Return one line of progress."""
    return f"token-budget: {spent(status)}, {made(status.calls)}, {seconds(status.seconds)}"
