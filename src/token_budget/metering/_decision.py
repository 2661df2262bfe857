"""Decision: what `Meter.check` answers. Policies: which models the meter denies to whom."""

from __future__ import annotations

import datetime  # noqa: ICN001 - annotations resolve at run time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from token_budget._money import shown_type, to_usd
from token_budget._snapshot import BudgetSnapshot
from token_budget.metering._names import names, plain

Reason = Literal["budget_exceeded", "model_blocked", "unknown_model", "loop", "stopped", "unreachable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a call would be let through now, and why not. ``bool()`` of it is ``allowed``.

    Dollars are floats; beside each stands the exact integer of nanodollars, as in a snapshot. What is None is unknown,
    or has no bound.
    """

    allowed: bool
    reason: Reason | None = None  # "unreachable" also beside allowed=True, with `on_error="allow"`
    usd_nanos: int | None = None  # the worst case of the call
    remaining_usd_nanos: int | None = None  # the least of all pools that the call counts against
    remaining_tokens: int | None = None
    pool: str | None = None  # the name of the pool that has no room
    resets_at: datetime.datetime | None = None  # when that pool begins a new period, in UTC
    retry_after: float | None = None  # seconds; 0.0: the pool is only busy; None: asking again cannot help

    def __bool__(self) -> bool:
        return self.allowed

    @property
    def usd(self) -> float | None:
        """The worst case of the call in dollars; None if there is no price."""
        return None if self.usd_nanos is None else to_usd(self.usd_nanos)

    @property
    def remaining_usd(self) -> float | None:
        """The least that is left in any pool that the call counts against; None if none has a cap in dollars."""
        return None if self.remaining_usd_nanos is None else to_usd(self.remaining_usd_nanos)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a dict that is ready for JSON."""
        return {
            "allowed": self.allowed,
            "reason": self.reason,
            "usd": self.usd,
            "usd_nanos": self.usd_nanos,
            "remaining_usd": self.remaining_usd,
            "remaining_usd_nanos": self.remaining_usd_nanos,
            "remaining_tokens": self.remaining_tokens,
            "pool": self.pool,
            "resets_at": None if self.resets_at is None else self.resets_at.isoformat(),
            "retry_after": self.retry_after,
        }


def least(numbers: Iterable[int | None]) -> int | None:
    """Return the least of the numbers that are there."""
    return min((number for number in numbers if number is not None), default=None)


def weigh(snapshots: list[BudgetSnapshot], tokens: int, nanos: int) -> Decision:
    """Return whether an amount would fit in all of these scopes."""
    left: dict[str, Any] = {
        "usd_nanos": nanos,
        "remaining_usd_nanos": least(one.usd_remaining_nanos for one in snapshots),
        "remaining_tokens": least(one.tokens_remaining for one in snapshots),
    }
    full = [(one, wait) for one in snapshots if (wait := _wait(one, tokens, nanos)) is not _FITS]
    if not full:
        return Decision(allowed=True, **left)
    # The scope that keeps the caller waiting longest is the one to name.
    scope, wait = max(full, key=lambda pair: float("inf") if pair[1] is None else pair[1])
    return Decision(
        allowed=False,
        reason="budget_exceeded",
        pool=scope.name,
        resets_at=scope.resets_at,
        retry_after=wait,
        **left,
    )


_FITS = -1.0


def _wait(scope: BudgetSnapshot, tokens: int, nanos: int) -> float | None:
    """Return in how many seconds an amount may fit; None for never, -1.0 for now."""
    axes = [
        (tokens, scope.tokens_used, scope.tokens_reserved, scope.token_cap),
        (nanos, scope.usd_used_nanos, scope.usd_reserved_nanos, scope.usd_cap_nanos),
    ]
    # What is asked, what is free once nothing is in flight, what is free now, what is free in a new period.
    asked = [
        (units, cap - used, cap - used - held, cap) for units, used, held, cap in axes if units and cap is not None
    ]
    if all(units <= now for units, _, now, _ in asked):
        return _FITS
    if all(units <= later for units, later, _, _ in asked):
        return 0.0
    if scope.resets_at is None or any(units > whole for units, _, _, whole in asked):
        return None
    return max(0.0, (scope.resets_at - datetime.datetime.now(datetime.timezone.utc)).total_seconds())


class Policies:
    """Which models are denied to whom: pairs of what the context must say and of patterns of model names."""

    __slots__ = ("_pairs",)

    def __init__(self, policies: Any) -> None:
        """Take one pair or several.

        Raises:
            TypeError: it is none of both.
        """
        several = policies if isinstance(policies, (tuple, list)) and not _is_pair(policies) else (policies,)
        self._pairs = tuple(_checked(pair) for pair in several)

    def __bool__(self) -> bool:
        return bool(self._pairs)

    def denies(self, model: str | None, context: Mapping[str, Any]) -> str | None:
        """Return the pattern that denies a model in this context; None if there is none."""
        from fnmatch import fnmatchcase

        meant = _names(model)
        for wanted, denied in self._pairs:
            if all(key in context and _says(context[key], value) for key, value in wanted.items()):
                for pattern in denied:
                    if any(fnmatchcase(name, pattern) for name in meant):
                        return pattern
        return None


def _says(said: Any, wanted: Any) -> bool:
    several = wanted if isinstance(wanted, (list, tuple, set, frozenset)) else (wanted,)
    return any(said == one for one in several)


def _names(model: str | None) -> set[str]:
    """Return a model's name with and without what stands before it: ``openai/gpt-5``, ``us.anthropic.claude-...``."""
    name = plain(model or "")
    found = {name, *(meant for _, meant in names(name, None))}
    return found | {one.rpartition("/")[2].removeprefix("ft:") for one in found}


def _checked(pair: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    if not _is_pair(pair):
        raise TypeError(
            'policies are pairs such as ({"plan": "free"}, ["gpt-5*"]): what the context says, and patterns of the '
            f"models that are denied then; not {shown_type(pair)}"
        )
    return dict(pair[0]), tuple(plain(pattern) for pattern in pair[1])


def _is_pair(pair: Any) -> bool:
    return (
        isinstance(pair, (tuple, list))
        and len(pair) == 2
        and isinstance(pair[0], Mapping)
        and isinstance(pair[1], (tuple, list, set, frozenset))
        and all(isinstance(pattern, str) for pattern in pair[1])
    )
