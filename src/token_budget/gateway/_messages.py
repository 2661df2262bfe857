"""What a person reads where a call was refused: which budget, its numbers, what to do. In words of the command line."""

from __future__ import annotations

from collections.abc import Callable

from token_budget._errors import BudgetExceeded, BudgetTimeout, PoolClosed, PoolForked
from token_budget._money import usd_text
from token_budget.contract import BudgetUnavailable
from token_budget.metering._refusals import Refusal, UnknownModel, Unmetered


def message_of(error: Exception) -> str:
    """Return what a client is told about a request that was not forwarded: one line of plain English.

    Of an error that is neither a meter's nor a pool's, only the type is told: its text may quote the request.
    """
    told = next((tell(error) for kind, tell in _TOLD if isinstance(error, kind)), None)
    return f"token-budget: {told or f'the call could not be metered ({type(error).__name__}). Nothing was sent.'}"


def _of_budget(error: BudgetExceeded) -> str:
    """Say which budget has no room, and why, by the error's own numbers."""
    if error.axis is None:  # it was made from a text, by a pool of the user's own
        return f"{_text(error)}. Nothing was sent."
    where = "the budget" if error.pool is None else f"budget {error.pool!r}"
    if error.cap is None:  # the axis that was asked for has no cap, but calls wait in line for another
        return f"other calls wait for room in {where}, and they come first. Nothing was sent. Make fewer calls at once."
    asked, cap = _amount(error, "requested"), _amount(error, "cap")
    used, held = _amount(error, "used", unit=""), _amount(error, "reserved", unit="")
    spent = f"{used} of {cap} spent, {held} held by calls in flight, and this call can cost up to {asked}"
    if not error.exhausted:
        waited = " in time" if isinstance(error, BudgetTimeout) else ""
        return (
            f"{where} has no room{waited}: {spent}. Nothing was sent. Make fewer calls at once, limit their output, "
            "wait longer (--wait) or raise the cap."
        )
    if error.requested > error.cap:
        return (
            f"this call can cost up to {asked}, more than all of {where} ({cap}). Nothing was sent. Limit its output "
            "(max_tokens) or raise the cap."
        )
    left = "is used up" if error.used >= error.cap else "has not enough left"
    resets_at = error.resets_at
    until = "" if resets_at is None else f"wait until {resets_at:%Y-%m-%d %H:%M} UTC, when it starts anew, or "
    return f"{where} {left}: {spent}. Nothing was sent. To go on, {until}raise the cap."


def _of_unmetered(error: Exception) -> str:
    return (
        f"{_text(error)}. Nothing was sent, since no cap would hold. --allow-unmetered lets such calls pass, uncounted."
    )


def _of_unknown(error: Exception) -> str:
    missing = _text(error).partition(": give it")[0]
    return f"{missing}. Nothing was sent. Give it a price: --price MODEL=INPUT,OUTPUT, in dollars for a million tokens."


def _of_closed(error: Exception) -> str:
    return f"{_text(error)}. Nothing was sent: the run is ending."


def _of_refusal(error: Exception) -> str:
    return f"{_text(error)}. Nothing was sent."


def _of_outage(error: Exception) -> str:
    return f"the store of the budget does not answer ({_text(error)}). Nothing was sent."


_TOLD: tuple[tuple[type[Exception], Callable[..., str]], ...] = (
    (BudgetExceeded, _of_budget),
    (Unmetered, _of_unmetered),
    (UnknownModel, _of_unknown),
    (PoolClosed, _of_closed),
    (PoolForked, _of_closed),
    (Refusal, _of_refusal),
    (BudgetUnavailable, _of_outage),
)


def _text(error: Exception) -> str:
    return str(error).rstrip(".")


def _amount(error: BudgetExceeded, field: str, unit: str = " tokens") -> str:
    """Return one number of an error as people write it: ``$0.25``, ``2,000 tokens``."""
    if error.axis == "tokens":
        return f"{getattr(error, field):,}{unit}"
    return f"${usd_text(getattr(error, f'{field}_nanos'))}"
