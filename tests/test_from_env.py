"""Pools from the environment: a pool without any cap is an error, unless the caller asks for it."""

from __future__ import annotations

import pytest

from token_budget import BudgetPool


@pytest.mark.parametrize(
    ("prefix", "environ", "near"),
    [
        ("MYAPP_BUDGET", {"MYAPP_BUDGET_USD_CAP": "5"}, ["MYAPP_BUDGET_USD_CAP"]),  # a forgotten underscore
        ("MYAPP_BUDGET", {"MYAPP_BUDGET_TOKEN_CAP": "5", "HOME": "/"}, ["MYAPP_BUDGET_TOKEN_CAP"]),
        ("MYAPP_BUDGET_", {"MYAPP_BUDGETUSD_CAP": "5"}, ["MYAPP_BUDGETUSD_CAP"]),
        ("TOKEN_BUDGET_", {"TOKEN_BUDGET_USD_CAPS": "5"}, ["TOKEN_BUDGET_USD_CAPS"]),
        ("TOKEN_BUDGET_", {"TOKENBUDGET_USD_CAP": "5"}, ["TOKENBUDGET_USD_CAP"]),
        ("TOKEN_BUDGET_", {"token_budget_usd_cap": "5"}, ["token_budget_usd_cap"]),
        ("TOKEN_BUDGET_", {"TOKEN_BUDGET_USDCAP": "5"}, ["TOKEN_BUDGET_USDCAP"]),
        ("TOKEN_BUDGET_", {"TOKEN_BUGDET_TOKEN_CAP": "5"}, ["TOKEN_BUGDET_TOKEN_CAP"]),
        ("", {"USD_CAPS": "5", "TOKENCAP": "6"}, ["USD_CAPS", "TOKENCAP"]),
        ("token_budget_", {"TOKEN_BUDGET_USD_CAP": "5"}, ["TOKEN_BUDGET_USD_CAP"]),
    ],
)
def test_the_error_lists_a_similar_name_beside_the_expected_ones(
    prefix: str, environ: dict[str, str], near: list[str]
) -> None:
    with pytest.raises(ValueError, match="no cap") as refused:
        BudgetPool.from_env(prefix, environ=environ)
    text = str(refused.value)
    for name in (f"{prefix}TOKEN_CAP", f"{prefix}USD_CAP", *near, "require_cap=False"):
        assert name in text


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"PATH": "/bin", "HOME": "/root", "LANG": "C"},
        {"TOKEN_BUDGET_USD_CAP": "", "TOKEN_BUDGET_TOKEN_CAP": "  "},
        {"TOKEN_BUDGET_NAME": "batch", "TOKEN_BUDGET_WINDOW": "daily"},
    ],
)
def test_without_similar_names_the_error_lists_none(environ: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="no cap") as refused:
        BudgetPool.from_env(environ=environ)
    text = str(refused.value)
    assert "TOKEN_BUDGET_TOKEN_CAP" in text
    assert "TOKEN_BUDGET_USD_CAP" in text
    for name in ("PATH", "HOME", "LANG"):
        assert name not in text
    pool = BudgetPool.from_env(environ=environ, require_cap=False)
    snapshot = pool.snapshot()
    assert (snapshot.token_cap, snapshot.usd_cap) == (None, None)


@pytest.mark.parametrize("name", ["TOKEN_CAP", "USD_CAP"])
@pytest.mark.parametrize("require_cap", [True, False])
def test_one_cap_is_enough_even_a_cap_of_zero(name: str, require_cap: bool) -> None:
    for value in ("5", "0", "1_000"):
        pool = BudgetPool.from_env("X_", environ={f"X_{name}": value}, require_cap=require_cap)
        snapshot = pool.snapshot()
        assert [snapshot.token_cap, snapshot.usd_cap].count(None) == 1


def test_the_error_never_shows_the_value_of_another_variable() -> None:
    environ = {"MYAPP_BUDGET_USD_CAP": "secret-value", "MYAPP_BUDGET_TOKEN": "secret-token"}
    with pytest.raises(ValueError, match="no cap") as refused:
        BudgetPool.from_env("MYAPP_BUDGET", environ=environ)
    assert "secret" not in str(refused.value)


def test_the_real_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKEN_BUDGET_USD_CAP", raising=False)
    monkeypatch.delenv("TOKEN_BUDGET_TOKEN_CAP", raising=False)
    monkeypatch.setenv("TOKEN_BUDGETUSD_CAP", "5")
    with pytest.raises(ValueError, match="TOKEN_BUDGETUSD_CAP"):
        BudgetPool.from_env()
    monkeypatch.setenv("TOKEN_BUDGET_USD_CAP", "5")
    assert BudgetPool.from_env().snapshot().usd_cap == 5
