"""A meter over the pools of a store: a root is charged once for a call that counts against several pools below it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redis_server import new_name, shared
from token_budget import BudgetExceeded, BudgetOverrun, PoolClosed
from token_budget.metering import Meter, Usage, budget_run
from token_budget.metering._charge import Charge
from token_budget.stores import RedisBudgetPool, SQLiteBudgetPool

PRICES = {"m": {"input": 1, "output": 2}}  # dollars of a million tokens


@pytest.fixture(params=["sqlite", "redis"])
def total(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    pool: Any
    if request.param == "sqlite":
        pool = SQLiteBudgetPool(tmp_path / "budget.db", name="total", token_cap=1_000, usd_cap=1)
    else:
        pool = RedisBudgetPool(shared().client(), name=new_name(), token_cap=1_000, usd_cap=1)
    yield pool
    pool.close()


def tokens(*pools: Any) -> list[tuple[int, int]]:
    snapshots = [pool.snapshot() for pool in pools]
    return [(one.tokens_used, one.tokens_reserved) for one in snapshots]


def test_a_call_counts_once_in_the_root_of_the_pools_that_it_is_charged_to(total: Any) -> None:
    user, project = total.keyed(name="user")["ann"], total.child(name="atlas")
    held = Charge([user, project, total]).reserve(100, 10**6, 0)
    assert tokens(user, project, total) == [(0, 100)] * 3
    held.commit(70, 10**6)
    assert tokens(user, project, total) == [(70, 0)] * 3

    async def again() -> None:
        await (await Charge([user, project]).areserve(100, 10**6, 0)).acommit(30, 0)

    asyncio.run(again())
    assert tokens(user, project, total) == [(100, 0)] * 3


def test_a_call_that_does_not_fit_in_one_of_them_holds_nothing_of_the_others(total: Any) -> None:
    user, project = total.keyed(token_cap=50, name="user")["ann"], total.child(name="atlas")
    with pytest.raises(BudgetExceeded) as refused:
        Charge([project, user]).reserve(60, 0, 0)
    assert refused.value.pool == "user:ann"
    assert tokens(user, project, total) == [(0, 0)] * 3


def test_a_spend_is_recorded_where_pools_are_closed(total: Any) -> None:
    user, project = total.child(name="user"), total.child(name="atlas")
    user.close()
    with pytest.raises(PoolClosed):
        Charge([user, project])
    assert Charge([user, project], to_record=True).record(7, 0) is None
    assert tokens(user, project, total) == [(7, 0)] * 3
    assert isinstance(Charge([user, project], to_record=True).record(1_000, 0), BudgetOverrun)


def test_a_meter_and_a_run_take_the_pool_of_a_store(total: Any) -> None:
    meter = Meter(total, PRICES)
    with meter.call("m", input_tokens=100, max_output_tokens=100) as call:
        assert tokens(total) == [(0, 200)]
        call.settle(Usage(input_tokens=90, output_tokens=10))
    assert tokens(total) == [(100, 0)]
    with budget_run("job", pool=total, usd_cap=1, meter=meter) as run:
        with meter.call("m", input_tokens=10, max_output_tokens=10) as call:
            assert tokens(total) == [(100, 20)]  # once, though the meter and the run both have it
            call.settle(Usage(input_tokens=10, output_tokens=2))
        assert run.report()["usd"] == pytest.approx(14e-6)
    assert tokens(total) == [(112, 0)]
