"""RunStatus: what a run has spent, holds and refused, as of one moment. The display, the summary and `status` show it.

It has no secret: neither the gateway's, nor a key, nor the arguments of the command, which may be a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

_OPTIONAL = frozenset({"pid", "usd_cap_nanos", "token_cap", "cap_reached", "pool"})
_DEFAULTED = frozenset({"cap_reached", "by_model", "pool"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """A run as of one moment. Amounts are exact integers: tokens, and nanodollars (1 USD = 10**9).

    Attributes:
        command: the name of the program, without its arguments.
        pid: the process id of the child; None until it is started.
        seconds: since the run began; once it has ended, how long it took.
        usd_nanos: the dollars that were spent.
        tokens: the tokens that were spent.
        held_usd_nanos: the dollars that calls in flight hold.
        held_tokens: the tokens that calls in flight hold.
        in_flight: the calls that are neither settled nor released.
        calls: the calls that were made.
        refused: the calls that were refused before they were sent.
        usd_cap_nanos: the cap on the run's own dollars; None if it has none.
        token_cap: the cap on the run's own tokens; None if it has none.
        cap_reached: the cap that refused a call because it is used up, as text; None if none did.
        by_model: the sums of each model, as `Run.report` gives them.
        pool: the snapshot of the whole pool, by `BudgetSnapshot.to_dict`; None where there is none.
    """

    command: str
    pid: int | None
    seconds: float
    usd_nanos: int
    tokens: int
    held_usd_nanos: int
    held_tokens: int
    in_flight: int
    calls: int
    refused: int
    usd_cap_nanos: int | None
    token_cap: int | None
    cap_reached: str | None = None
    by_model: dict[str, Any] = field(default_factory=dict)
    pool: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> RunStatus:
        """Return the status that `to_dict` made a dict of. Keys that are not known, of a newer version, are left out.

        Raises:
            ValueError: a field is missing, or is of another type.
        """
        values: dict[str, Any] = {}
        for one in fields(cls):
            if one.name not in told:
                if one.name in _DEFAULTED:
                    continue
                raise ValueError(f"the status of a run has no {one.name!r}")
            value = told[one.name]
            if not (value is None and one.name in _OPTIONAL) and not _fits(value, one.name):
                raise ValueError(f"the status of a run has a {type(value).__name__} as {one.name!r}")
            values[one.name] = value
        return cls(**values)


def _fits(value: object, name: str) -> bool:
    if name in {"command", "cap_reached"}:
        return isinstance(value, str)
    if name in {"by_model", "pool"}:
        return isinstance(value, dict)
    return isinstance(value, (int, float) if name == "seconds" else int) and not isinstance(value, bool)
