"""What ``token-budget stores-demo --join`` runs: one process that spends from a budget, as long as there is some left.

Whoever starts it in two terminals sees both processes spend from one budget.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from token_budget._errors import BudgetExceeded

if TYPE_CHECKING:
    from collections.abc import Callable

_HELD, _COST = 0.012, 0.0099  # dollars of one call: the most that it can cost, and what it costs
_CAP = 0.5  # dollars: enough for 50 calls
_TAKES = 0.3  # seconds of a call


def join(where: str, *, sleep: Callable[[float], object] = time.sleep) -> None:
    """Spend from a budget until it is used up, and say after each call how far it is.

    Args:
        where: what `open_pool` takes, or the path of an SQLite file.
        sleep: what a call does; tests pass their own.

    Raises:
        ValueError: the text says no place.
        BudgetUnavailable, StoreError: as `open_pool`.
    """
    from token_budget.stores import open_pool

    text = where if "#" in where else f"sqlite:{where}#demo"
    pool = open_pool(text, usd_cap=_CAP, caps="stored")
    calls = 0
    try:
        while True:
            with pool.reserve(usd=_HELD, timeout=60) as reservation:
                sleep(_TAKES)
                reservation.commit(usd=_COST)
            calls += 1
            print(f"process {os.getpid()}: {calls} calls, ${calls * _COST:.4f} | all: {pool.snapshot()}", flush=True)
    except BudgetExceeded as error:
        print(f"process {os.getpid()}: {calls} calls. {error}")
        print(f"begin again: token-budget reset '{text}'")
    finally:
        pool.close()
