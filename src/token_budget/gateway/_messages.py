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
    amount: Callable[[int | float | None], str] = _tokens if error.axis == "tokens" else _dollars
    used, held, asked, cap = (
        amount(value)
        for value in (
            (error.used, error.reserved, error.requested, error.cap)
            if error.axis == "tokens"
            else (error.used_nanos, error.reserved_nanos, error.requested_nanos, error.cap_nanos)
        )
    )
    spent = f"{used} of {cap} spent, {held} held by calls in flight, and this call can cost up to {asked}"
    if not error.exhausted:
        waited = " in time" if isinstance(error, BudgetTimeout) else ""
        return (
            f"{where} has no room{waited}: {spent}. Nothing was sent. Make fewer calls at once, limit their output, "
            "wait longer (--wait) or raise the cap."
        )
    if error.cap is not None and error.requested > error.cap:
        return (
            f"this call can cost up to {asked}, more than all of {where} ({cap}). Nothing was sent. Limit its output "
            "(max_tokens) or raise the cap."
        )
    left = "is used up" if error.cap is not None and error.used >= error.cap else "has not enough left"
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


def _dollars(nanos: float | None) -> str:
    return "any amount" if nanos is None else f"${usd_text(int(nanos))}"


def _tokens(tokens: float | None) -> str:
    return "any number of tokens" if tokens is None else f"{int(tokens):,} tokens"
