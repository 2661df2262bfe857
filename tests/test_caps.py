"""Caps that change while calls are in flight, and pools made from environment variables."""

from __future__ import annotations

import pytest

from support import caught, counters, forked
from token_budget import BudgetExceeded, BudgetPool, PoolForked


def test_raised_caps_let_more_in_and_lowered_ones_refuse_the_next() -> None:
    pool = BudgetPool(token_cap=10, usd_cap=1)
    held = pool.reserve(tokens=8)
    pool.set_caps(token_cap=5)
    snapshot = pool.snapshot()
    assert (snapshot.token_cap, snapshot.tokens_remaining, snapshot.usd_cap) == (5, -3, 1.0)
    with pytest.raises(BudgetExceeded) as raised:
        pool.record(tokens=1)
    assert (raised.value.attempted, raised.value.cap) == (9, 5)
    held.commit(tokens=8)  # a commit of what was reserved is no overrun
    assert counters(pool) == (8, 0, 0, 0, 0)
    pool.set_caps(token_cap=20)
    pool.record(tokens=12)
    pool.set_caps(token_cap=None, usd_cap=2)
    pool.record(tokens=10**6, usd=2)
    assert pool.snapshot().token_cap is None
    assert caught(BudgetExceeded, pool.record, usd=0.1)
    pool.set_caps()
    assert pool.snapshot().usd_cap == 2.0


@pytest.mark.parametrize("caps", [{"token_cap": -1}, {"token_cap": 1.5}, {"usd_cap": float("nan")}, {"usd_cap": "1"}])
def test_bad_caps_change_nothing(caps: dict[str, object]) -> None:
    pool = BudgetPool(token_cap=10, usd_cap=1)
    with pytest.raises((TypeError, ValueError)):
        pool.set_caps(**caps)  # type: ignore[arg-type]
    assert (pool.snapshot().token_cap, pool.snapshot().usd_cap) == (10, 1.0)


def test_caps_of_a_child_and_its_parent_change_independently() -> None:
    total = BudgetPool(token_cap=10, name="total")
    child = total.child(token_cap=5, name="child")
    child.set_caps(token_cap=50)
    with pytest.raises(BudgetExceeded) as raised:
        child.record(tokens=11)
    assert raised.value.pool == "total"
    total.set_caps(token_cap=100)
    child.record(tokens=11)


def test_a_forked_copy_does_not_change_its_caps() -> None:
    pool = BudgetPool(token_cap=10)
    forked(pool)
    with pytest.raises(PoolForked):
        pool.set_caps(token_cap=20)
    pool.detach()
    pool.set_caps(token_cap=20)
    pool.record(tokens=20)


# ---------------------------------------------------------------- from the environment


def test_a_pool_has_the_settings_of_the_environment() -> None:
    environ = {
        "TOKEN_BUDGET_TOKEN_CAP": "1_000",
        "TOKEN_BUDGET_USD_CAP": " 12.50 ",
        "TOKEN_BUDGET_NAME": "batch",
        "TOKEN_BUDGET_WINDOW": "every 5h",
    }
    snapshot = BudgetPool.from_env(environ=environ).snapshot()
    assert (snapshot.token_cap, snapshot.usd_cap_nanos, snapshot.name) == (1000, 12_500_000_000, "batch")
    assert snapshot.resets_at is not None
    assert snapshot.window_start is not None
    assert (snapshot.resets_at - snapshot.window_start).total_seconds() == 5 * 3600


def test_a_variable_that_is_not_set_leaves_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_USD_CAP", "3")
    monkeypatch.setenv("MY_NAME", "")
    snapshot = BudgetPool.from_env("MY_").snapshot()
    assert (snapshot.token_cap, snapshot.usd_cap, snapshot.name, snapshot.resets_at) == (None, 3.0, None, None)


def test_an_environment_without_a_cap_is_refused_and_the_error_lists_the_names_and_near_misses() -> None:
    environ = {"MYAPP_BUDGET_USD_CAP": "5", "HOME": "/home/ann"}
    with pytest.raises(ValueError, match="neither MYAPP_BUDGETTOKEN_CAP nor MYAPP_BUDGETUSD_CAP is set") as raised:
        BudgetPool.from_env("MYAPP_BUDGET", environ=environ)
    assert "Similar names are set: MYAPP_BUDGET_USD_CAP." in str(raised.value)
    with pytest.raises(ValueError, match="require_cap=False"):
        BudgetPool.from_env(environ={})
    pool = BudgetPool.from_env(environ={"TOKEN_BUDGET_NAME": "free"}, require_cap=False)
    assert (pool.name, pool.snapshot().token_cap, pool.snapshot().usd_cap) == ("free", None, None)


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("TOKEN_CAP", "many", r"^X_TOKEN_CAP must be a whole number of tokens, at most 10\*\*18, got 'many'$"),
        ("TOKEN_CAP", "1.5", "X_TOKEN_CAP must be a whole number"),
        ("TOKEN_CAP", "-1", "X_TOKEN_CAP must be a whole number"),
        ("USD_CAP", "NaN", r"X_USD_CAP must be a number of dollars, at most 10\*\*9, got 'NaN'$"),
        ("USD_CAP", "ten", "X_USD_CAP must be a number of dollars"),
        ("USD_CAP", "1e400", "X_USD_CAP must be a number of dollars"),
        ("NAME", "n" * 201, "X_NAME must be at most 200 characters, got 'n{60}'$"),
        ("WINDOW", "daily Europe/Berln", "X_WINDOW must be .*: there is no time zone 'Europe/Berln'"),
        ("WINDOW", "hourly", "X_WINDOW must be a window: daily, weekly or monthly and a time zone, or every 5h, got"),
    ],
)
def test_the_error_of_a_bad_value_names_its_variable(name: str, text: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        BudgetPool.from_env("X_", environ={f"X_{name}": text})
