"""A run as lines of text: what ``token-budget status run`` prints, and what the display ``rich`` draws."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from fractions import Fraction
from typing import Any

from token_budget._money import NANOS_PER_USD
from token_budget._snapshot import BudgetSnapshot
from token_budget.cli._display import filled
from token_budget.cli._run_status import RunStatus
from token_budget.cli._run_text import amount, made, pure, seconds
from token_budget.cli._store_tree import tree_lines

_MODELS = 10  # the dearest are shown


def run_lines(status: RunStatus, now: datetime, depth: int | None = None) -> list[str]:
    """Return the lines of a run: its bars, its calls, its models, and the budgets of the pool it spends from."""
    own = _own(status)
    lines = [*tree_lines(own, now)]
    calls = ", ".join([made(status.calls), f"{status.refused:,} refused", seconds(status.seconds)])
    lines.append(f"  calls  {calls}")
    if status.cap_reached is not None:
        lines += filled(f"cap reached: {pure(status.cap_reached)}", first="  ", then="    ").split("\n")
    models = sorted(status.by_model.items(), key=lambda item: -_number(item[1], "usd_nanos"))
    for model, sums in models[:_MODELS]:
        spent = amount(_number(sums, "usd_nanos"), _number(sums, "tokens"))
        text = f"{pure(model)}: {made(_number(sums, 'call_count'))}, {spent}"
        lines += filled(text, first="  ", then="    ").split("\n")
    if len(models) > _MODELS:
        lines.append(f"  ... and {len(models) - _MODELS:,} more models")
    if status.pool is not None:
        whole = snapshot_of(status.pool)
        if whole.children or _numbers(whole) != _numbers(own):  # else it is the run's own, and says the same again
            lines += ["pool", *tree_lines(whole, now, depth)]
    return lines


def _numbers(one: BudgetSnapshot) -> tuple[int | None, ...]:
    return (
        *(one.tokens_used, one.tokens_reserved, one.token_cap),
        *(one.usd_used_nanos, one.usd_reserved_nanos, one.usd_cap_nanos),
    )


def _number(sums: Any, key: str) -> int:
    value = sums.get(key) if isinstance(sums, Mapping) else None
    return value if isinstance(value, int) else 0


def _own(status: RunStatus) -> BudgetSnapshot:
    cap = status.usd_cap_nanos
    return BudgetSnapshot(
        status.tokens,
        _usd(status.usd_nanos),
        status.token_cap,
        None if cap is None else _usd(cap),
        tokens_reserved=status.held_tokens,
        usd_reserved=_usd(status.held_usd_nanos),
        in_flight=status.in_flight,
        name=pure(status.command) or "?",
    )


def _usd(nanos: int) -> Fraction:
    return Fraction(nanos, NANOS_PER_USD)


def snapshot_of(told: Mapping[str, Any]) -> BudgetSnapshot:
    """Return the snapshot that `BudgetSnapshot.to_dict` made a dict of.

    Raises:
        ValueError: it is none.
    """
    try:
        return _snapshot_of(told)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"this is no snapshot of a budget: {error}") from error


def _snapshot_of(told: Mapping[str, Any]) -> BudgetSnapshot:
    whole: list[tuple[Mapping[str, Any], list[BudgetSnapshot]]] = [(told, [])]
    owners: list[list[BudgetSnapshot]] = [[]]
    for one, mine in whole:  # it grows meanwhile: a family may be deeper than Python recurses
        whole += [(child, []) for child in one["children"]]
        owners += [mine for _ in one["children"]]
    for (one, mine), owner in zip(reversed(whole), reversed(owners), strict=True):
        owner.append(_flat(one, tuple(reversed(mine))))
    return owners[0][0]


def _flat(told: Mapping[str, Any], children: tuple[BudgetSnapshot, ...]) -> BudgetSnapshot:
    cap = told["usd_cap_nanos"]
    start, end = told["window_start"], told["resets_at"]
    return BudgetSnapshot(
        told["tokens_used"],
        _usd(told["usd_used_nanos"]),
        told["token_cap"],
        None if cap is None else _usd(cap),
        tokens_reserved=told["tokens_reserved"],
        usd_reserved=_usd(told["usd_reserved_nanos"]),
        in_flight=told["in_flight"],
        name=told["name"],
        window_start=None if start is None else datetime.fromisoformat(start),
        resets_at=None if end is None else datetime.fromisoformat(end),
        children=children,
    )
