"""Where token-budget-py 0.1.0 kept its classes, for programs that import them from there. Import `token_budget`."""

from token_budget import BudgetExceeded, BudgetPool, BudgetSnapshot, Reservation

__all__ = ["BudgetExceeded", "BudgetPool", "BudgetSnapshot", "Reservation"]
