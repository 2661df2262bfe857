"""What the same calls cost without reservations, for comparison.

The usual code checks the budget before a call and adds the cost after it. Calls that run at the same time all pass the
check against the same sum, because none of them has been added yet.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

from token_budget.cli._workload import Fate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from token_budget.cli._audit import Caps
    from token_budget.cli._workload import Call


class CheckThenSpend:
    """A budget as programs keep it without reservations: two sums, a check before a call and an addition after it.

    The calls are the same, in the same order, by the same number of workers, and their durations and fates are the
    same. Time is simulated: a worker takes its next call at the moment at which its last one ends, and a refused call
    takes no time. The check is the one that the pool makes: a call passes if its estimate fits under both caps beside
    what is spent. The only difference is that the estimate is not held while the call is in flight.
    """

    def __init__(self, caps: Caps, workers: int) -> None:
        self.tokens: int = 0
        self.usd: float = 0.0
        self._caps = caps
        self._workers = workers
        self._in_flight: list[tuple[float, int, int, float]] = []  # a heap: end, number, tokens, dollars

    def spend(self, calls: Iterable[Call]) -> None:
        """Make these calls and wait until the last of them has ended."""
        now = 0.0
        for call in calls:
            if len(self._in_flight) == self._workers:
                now = self._end_one()
            if self._passes(call):
                heappush(self._in_flight, (now + _duration(call), call.number, *call.bill))
        while self._in_flight:
            self._end_one()

    def _passes(self, call: Call) -> bool:
        token_cap, usd_cap = self._caps.tokens, self._caps.usd
        return (token_cap is None or self.tokens + call.reserved_tokens <= token_cap) and (
            usd_cap is None or self.usd + call.reserved_usd <= usd_cap
        )

    def _end_one(self) -> float:
        """Add the cost of the call that ends first, and return when that is."""
        end, _, tokens, usd = heappop(self._in_flight)
        self.tokens += tokens
        self.usd += usd
        return end


def _duration(call: Call) -> float:
    if call.fate is Fate.UNSENT:
        return call.connect_seconds
    if call.fate is Fate.CANCELLED:
        return call.connect_seconds / 2
    return call.connect_seconds + call.answer_seconds
