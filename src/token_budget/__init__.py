"""A budget lock for concurrent LLM work: one pool of tokens and dollars that a hundred threads or tasks spend from.

from token_budget import BudgetExceeded, BudgetPool

pool = BudgetPool(token_cap=1_000_000, usd_cap=10.0)
with pool.reserve(tokens=2_000, usd=0.012) as reservation:  # raises BudgetExceeded where it does not fit
    answer = call_model()
    reservation.commit(tokens=answer.total_tokens, usd=answer.cost)
"""

from token_budget._errors import (
    BudgetExceeded,
    BudgetOverrun,
    BudgetTimeout,
    PoolClosed,
    PoolForked,
    ReservationClosed,
)
from token_budget._events import BudgetEvent
from token_budget._keyed import KeyedPools
from token_budget._pool import BudgetPool
from token_budget._reservation import Reservation
from token_budget._sleep import AsyncReserve
from token_budget._snapshot import BudgetSnapshot, PoolStatistics
from token_budget._window import Window

__version__ = "0.1.0"

__all__ = [
    "AsyncReserve",
    "BudgetEvent",
    "BudgetExceeded",
    "BudgetOverrun",
    "BudgetPool",
    "BudgetSnapshot",
    "BudgetTimeout",
    "KeyedPools",
    "PoolClosed",
    "PoolForked",
    "PoolStatistics",
    "Reservation",
    "ReservationClosed",
    "Window",
    "__version__",
]
