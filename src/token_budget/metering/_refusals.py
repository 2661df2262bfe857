"""Why a call was not sent, beyond BudgetExceeded; and how to find a refusal in a framework's chain of errors."""

from __future__ import annotations

from token_budget._errors import BudgetExceeded, PoolClosed, PoolForked


class Refusal(RuntimeError):
    """A call was refused before anything was sent. Nothing was charged."""


class Unmetered(Refusal):
    """The request spends in a way that the meter cannot bound (a batch, a video, a realtime session)."""


class ModelBlocked(Refusal):
    """A policy of the meter denies this model."""


class RunStopped(Refusal):
    """The run was stopped, or has ended."""


class LoopDetected(Refusal):
    """A guard of the run sees a loop."""


class UnknownModel(Refusal, LookupError):
    """There is no price for the model, so the call cannot be bounded."""


def refusal(error: BaseException | None) -> BudgetExceeded | Refusal | PoolClosed | PoolForked | None:
    """Return the refusal that ``error`` is, or that stands in its chain of causes; None if there is none.

    Frameworks wrap what an SDK raises. This looks through causes, contexts and exception groups.
    """
    pending: list[object] = [error]
    seen: set[int] = set()
    while pending:
        one = pending.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, (BudgetExceeded, Refusal, PoolClosed, PoolForked)):
            return one
        inner = getattr(one, "exceptions", ())  # of a group; libraries have errors with something else of that name
        pending += [one.__cause__, one.__context__, *(inner if isinstance(inner, (tuple, list)) else ())]
    return None
