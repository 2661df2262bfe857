"""The naive ledger: a second implementation of a budget, as plain as possible, to check the pool against.

It shares no code and no representation with the package: money is a Fraction of dollars, every spend is kept in a list,
every held amount in a dict, and each answer is a fresh sum. It is slow, single-threaded and obvious.

An axis refuses nothing if nothing is asked of it. An alarm goes off at the first operation that finds usage at or above
its share of a cap. It is armed again by a reset, by a new period, and by new caps if usage is below the share of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

NANO = Fraction(1, 10**9)


def grid(usd: float | Decimal | Fraction) -> Fraction:
    """Return an amount on the grid of nanodollars: Python's own exact half-even rounding of a Fraction."""
    return round(Fraction(usd) / NANO) * NANO


Amount = tuple[int, Fraction]


@dataclass
class Alarm:
    """A listener that is notified when usage reaches a share of a cap."""

    name: int
    share: Fraction
    armed: bool = True


@dataclass
class Ledger:
    """A budget of (tokens, dollars)."""

    token_cap: int | None
    usd_cap: Fraction | None
    spent: list[Amount] = field(default_factory=list)
    held: dict[int, Amount] = field(default_factory=dict)
    alarms: list[Alarm] = field(default_factory=list)

    def used(self) -> Amount:
        return sum(t for t, _ in self.spent), sum((u for _, u in self.spent), Fraction(0))

    def reserved(self) -> Amount:
        return sum(t for t, _ in self.held.values()), sum((u for _, u in self.held.values()), Fraction(0))

    def over(self, amount: Amount) -> str | None:
        """Return the axis on which the amount does not fit, or None if it fits.

        An axis that could not take the amount even if all reservations came back takes precedence over a full one.
        """
        for held in ((0, Fraction(0)), self.reserved()):
            tokens = self.used()[0] + held[0] + amount[0]
            usd = self.used()[1] + held[1] + amount[1]
            if amount[0] > 0 and self.token_cap is not None and tokens > self.token_cap:
                return "tokens"
            if amount[1] > 0 and self.usd_cap is not None and usd > self.usd_cap:
                return "usd"
        return None

    def overrun(self, above: Amount) -> str | None:
        """Return the first axis that is over its cap because of `above`, what was spent beyond any reservation."""
        tokens = self.used()[0] + self.reserved()[0]
        usd = self.used()[1] + self.reserved()[1]
        if above[0] > 0 and self.token_cap is not None and tokens > self.token_cap:
            return "tokens"
        if above[1] > 0 and self.usd_cap is not None and usd > self.usd_cap:
            return "usd"
        return None

    def reached(self, alarm: Alarm) -> bool:
        """Return whether usage has reached the share of a cap."""
        tokens, usd = self.used()
        return (self.token_cap is not None and tokens >= self.token_cap * alarm.share) or (
            self.usd_cap is not None and usd >= self.usd_cap * alarm.share
        )

    def told(self) -> list[int]:
        """Return the alarms that an operation sets off now."""
        found = [alarm for alarm in self.alarms if alarm.armed and self.reached(alarm)]
        for alarm in found:
            alarm.armed = False
        return [alarm.name for alarm in found]

    def begin_anew(self) -> None:
        """Set usage to zero and arm all alarms."""
        self.spent.clear()
        for alarm in self.alarms:
            alarm.armed = True

    def set_caps(self, token_cap: int | None, usd_cap: Fraction | None) -> None:
        """Set other caps. This arms the alarms whose share is above current usage."""
        self.token_cap, self.usd_cap = token_cap, usd_cap
        for alarm in self.alarms:
            alarm.armed = alarm.armed or not self.reached(alarm)
