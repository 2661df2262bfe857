"""One budget for many processes and many hosts: the API of `BudgetPool`, with the numbers in SQLite, Redis or Valkey.

from token_budget import Window
from token_budget.stores import SQLiteBudgetPool

pool = SQLiteBudgetPool("budget.db", name="nightly", usd_cap=50, window=Window.daily("Europe/Berlin"))
with pool.reserve(usd=0.012) as reservation:  # every process that says these lines spends from one budget
    reservation.commit(usd=0.0099)
"""

from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError, StoreLost, StoreMismatch
from token_budget.stores._keyed import StoreKeyedPools
from token_budget.stores._opening import open_pool
from token_budget.stores._pool import StorePool
from token_budget.stores._reservation import StoreReservation
from token_budget.stores.redis.pool import RedisBudgetPool
from token_budget.stores.sqlite.pool import SQLiteBudgetPool

__all__ = [
    "BudgetUnavailable",
    "RedisBudgetPool",
    "SQLiteBudgetPool",
    "StoreError",
    "StoreKeyedPools",
    "StoreLost",
    "StoreMismatch",
    "StorePool",
    "StoreReservation",
    "open_pool",
]
