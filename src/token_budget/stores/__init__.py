"""One budget for many processes (SQLite) and many hosts (Redis, Valkey), with the API of `BudgetPool`."""
