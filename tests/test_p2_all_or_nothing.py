"""P2: a refused call changes nothing, on any axis."""

from __future__ import annotations

import pytest

from support import caught, counters
from token_budget import BudgetExceeded, BudgetPool

REFUSED = [
    pytest.param({"tokens": 41, "usd": 0.1}, "tokens", id="tokens do not fit, dollars do"),
    pytest.param({"tokens": 1, "usd": 0.41}, "usd", id="dollars do not fit, tokens do"),
    pytest.param({"tokens": 41, "usd": 0.41}, "tokens", id="neither fits"),
]


@pytest.mark.parametrize(("amounts", "axis"), REFUSED)
@pytest.mark.parametrize("method", ["record", "reserve", "try_reserve"])
def test_a_refusal_changes_no_axis(method: str, amounts: dict[str, float], axis: str) -> None:
    pool = BudgetPool(token_cap=100, usd_cap=1, name="run")
    pool.record(tokens=30, usd=0.3)
    with pool.reserve(tokens=30, usd=0.3):
        before = counters(pool)
        with pytest.raises(BudgetExceeded) as raised:
            getattr(pool, method)(**amounts)
        assert (raised.value.axis, raised.value.pool) == (axis, "run")
        assert counters(pool) == before == (30, 30, 300_000_000, 300_000_000, 1)


def test_a_refused_reservation_leaves_nothing_behind_when_it_is_collected() -> None:
    pool = BudgetPool(token_cap=10)
    for _ in range(100):
        assert caught(BudgetExceeded, pool.reserve, tokens=11)
    assert counters(pool) == (0, 0, 0, 0, 0)
    pool.record(tokens=10)
