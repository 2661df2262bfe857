"""A request to the last pool of a chain counts in every account above and is bounded by each, at any depth."""

from __future__ import annotations

from typing import Any

import pytest

from token_budget import BudgetExceeded, BudgetOverrun, BudgetPool

AXES = ("tokens", "usd")


def numbers(pool: BudgetPool) -> tuple[object, ...]:
    shown = pool.snapshot()
    return shown.tokens_used, shown.tokens_reserved, shown.usd_used, shown.usd_reserved, shown.in_flight


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("depth", "capped"), [(depth, capped) for depth in range(1, 7) for capped in range(depth)])
def test_a_cap_anywhere_in_a_chain_bounds_each_operation_and_all_count_the_same(
    depth: int, capped: int, axis: str
) -> None:
    pools: list[BudgetPool] = []
    for level in range(depth):
        cap: dict[str, Any] = {f"{'token' if axis == 'tokens' else 'usd'}_cap": 10} if level == capped else {}
        pools.append(pools[-1].child(**cap) if pools else BudgetPool(**cap))
    pool, other = pools[-1], AXES[axis == "tokens"]

    def amounts(here: int, there: int) -> dict[str, Any]:
        return {axis: here, other: there}

    def expect(*expected: float) -> None:
        """Expect (used, reserved) on this axis, the same on the other axis, and the number of calls in flight."""
        used, reserved, other_used, other_reserved, calls = expected
        there = (used, reserved), (other_used, other_reserved)
        tokens, usd = there if axis == "tokens" else there[::-1]
        assert [numbers(one) for one in pools] == [(*tokens, *usd, calls)] * depth

    pool.record(**amounts(3, 30))
    expect(3, 0, 30, 0, 0)
    held = pool.reserve(**amounts(4, 40))
    expect(3, 4, 30, 40, 1)
    with pytest.raises(BudgetExceeded):
        pool.record(**amounts(4, 1))
    with pytest.raises(BudgetExceeded):
        pool.reserve(**amounts(4, 1))
    expect(3, 4, 30, 40, 1)
    pool.reserve(**amounts(3, 5)).release()
    expect(3, 4, 30, 40, 1)
    pool.reserve(**amounts(3, 5)).commit(**{axis: 1, other: 50})
    expect(4, 4, 80, 40, 1)
    pool.record(**amounts(2, 0))
    expect(6, 4, 80, 40, 1)
    with pytest.raises(BudgetOverrun):
        held.commit(**amounts(5, 1))
    expect(11, 0, 81, 0, 0)
