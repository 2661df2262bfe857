"""Settling: what the hooks and the gateway do with what a call holds, once it is known what it cost."""

from __future__ import annotations

from typing import Literal

from token_budget.metering._pending import Pending
from token_budget.metering._shapes import Reading

# By what its answer says, in full, not at all, or by the tokens of output that were seen of a broken stream.
Outcome = Reading | Literal["charge", "release"] | int


def settle(pending: Pending, outcome: Outcome) -> None:
    """Settle a call, unless it is settled. Raise nothing."""
    if outcome == "charge":
        pending.charge()
    elif outcome == "release":
        pending.release()
    elif isinstance(outcome, int):
        pending.seen(outcome)
    else:
        pending.settle(outcome)


async def asettle(pending: Pending, outcome: Outcome) -> None:
    """Do what `settle` does, without blocking the event loop."""
    if outcome == "charge":
        await pending.acharge()
    elif outcome == "release":
        await pending.arelease()
    elif isinstance(outcome, int):
        await pending.aseen(outcome)
    else:
        await pending.asettle(outcome)
