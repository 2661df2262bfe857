"""The naive ledger: what a budget is, written a second time as plainly as possible, to check the pool against.

It shares no code and no representation with the package: money is a Fraction of dollars, every spend is kept in a list,
every held amount in a dict, and each answer is a fresh sum. Slow, single-threaded, obvious.
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
class Ledger:
    """A budget of (tokens, dollars)."""

    token_cap: int | None
    usd_cap: Fraction | None
    spent: list[Amount] = field(default_factory=list)
    held: dict[int, Amount] = field(default_factory=dict)

    def used(self) -> Amount:
        return sum(t for t, _ in self.spent), sum((u for _, u in self.spent), Fraction(0))

    def reserved(self) -> Amount:
        return sum(t for t, _ in self.held.values()), sum((u for _, u in self.held.values()), Fraction(0))

    def over(self, amount: Amount) -> str | None:
        """Return the axis on which the amount does not fit, None if it does.

        If one would not take it even if all came back, that one; else the first that is too full now.
        """
        for held in ((0, Fraction(0)), self.reserved()):
            tokens = self.used()[0] + held[0] + amount[0]
            usd = self.used()[1] + held[1] + amount[1]
            if self.token_cap is not None and tokens > self.token_cap:
                return "tokens"
            if self.usd_cap is not None and usd > self.usd_cap:
                return "usd"
        return None

    def overrun(self, above: Amount) -> str | None:
        """Return the first axis on which `above`, what was spent beyond any reservation, left the cap passed."""
        tokens = self.used()[0] + self.reserved()[0]
        usd = self.used()[1] + self.reserved()[1]
        if above[0] > 0 and self.token_cap is not None and tokens > self.token_cap:
            return "tokens"
        if above[1] > 0 and self.usd_cap is not None and usd > self.usd_cap:
            return "usd"
        return None
