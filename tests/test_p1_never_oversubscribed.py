"""P1: at every instant and on each axis used + reserved <= cap, except for spends that had already happened."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from support import caught, counters, run_together
from token_budget import BudgetExceeded, BudgetOverrun, BudgetPool


@pytest.mark.usefixtures("racing")
def test_racing_records_fill_the_cap_and_not_one_token_more() -> None:
    pool = BudgetPool(token_cap=1000, usd_cap=1)

    def spend() -> int:
        return sum(not caught(BudgetExceeded, pool.record, tokens=3, usd=0.003) for _ in range(200))

    admitted = run_together(*[spend] * 8)
    assert sum(admitted) == 333
    assert counters(pool) == (999, 0, 999_000_000, 0, 0)


@pytest.mark.usefixtures("racing")
def test_racing_reservations_never_hold_more_than_the_cap() -> None:
    pool = BudgetPool(token_cap=100)
    seen_over = []

    def hold_and_settle() -> int:
        admitted = 0
        for turn in range(300):
            try:
                with pool.reserve(tokens=40) as reservation:
                    admitted += 1
                    snapshot = pool.snapshot()
                    if snapshot.tokens_used + snapshot.tokens_reserved > 100 or snapshot.in_flight > 2:
                        seen_over.append(snapshot)
                    if turn % 3 == 0:
                        reservation.commit(tokens=0)
            except BudgetExceeded as error:
                assert not error.exhausted
        return admitted

    assert sum(run_together(*[hold_and_settle] * 8)) > 0
    assert not seen_over
    assert counters(pool) == (0, 0, 0, 0, 0)


def test_in_a_thread_fan_out_exactly_the_calls_that_fit_are_admitted() -> None:
    pool = BudgetPool(token_cap=1000)

    def call(size: int) -> bool:
        try:
            with pool.reserve(tokens=size) as reservation:
                reservation.commit(tokens=size - 1)
        except BudgetExceeded:
            return False
        return True

    with ThreadPoolExecutor(16) as workers:
        done = list(workers.map(call, [11] * 200))
    assert done.count(True) == 99  # 99 calls used 990, and 11 more do not fit
    assert counters(pool)[0] == 990


def test_a_thousand_tasks_started_at_once_cannot_all_pass_the_check() -> None:
    pool = BudgetPool(token_cap=2500)
    called = []

    async def call(number: int) -> None:
        with pool.reserve(tokens=100) as reservation:
            called.append(number)
            await asyncio.sleep(0)
            reservation.commit(tokens=100)

    async def main() -> list[BaseException | None]:
        return await asyncio.gather(*map(call, range(1000)), return_exceptions=True)

    results = asyncio.run(main())
    assert len(called) == 25
    assert [type(result) for result in results].count(BudgetExceeded) == 975
    assert counters(pool) == (2500, 0, 0, 0, 0)


def test_only_a_spend_that_happened_may_pass_the_cap_and_then_nothing_fits() -> None:
    pool = BudgetPool(token_cap=10)
    with pytest.raises(BudgetOverrun):
        pool.record(tokens=11, force=True)
    for call in (pool.record, pool.reserve, pool.try_reserve):
        assert caught(BudgetExceeded, call, tokens=1)
        assert caught(BudgetExceeded, call, tokens=1, usd=1)
    assert pool.snapshot().tokens_remaining == -1


@pytest.mark.parametrize("below", [False, True])
def test_an_axis_of_which_nothing_is_asked_refuses_nothing(below: bool) -> None:
    for full, free in (("tokens", "usd"), ("usd", "tokens")):
        total = BudgetPool(token_cap=10, usd_cap=10)
        pool = total.child() if below else total
        assert caught(BudgetOverrun, pool.record, **{full: 11}, force=True)
        pool.record(**{free: 1})  # type: ignore[arg-type]
        with pool.reserve(**{free: 2}) as reservation:
            reservation.commit()
        pool.record(tokens=0, usd=0)
        with pytest.raises(BudgetOverrun) as raised:  # the error names the axis that this spend takes over its cap
            pool.record(force=True, **{free: 8})
        assert raised.value.axis == free
        assert caught(BudgetExceeded, pool.record, **{full: 1})


@pytest.mark.parametrize("axis", ["tokens", "usd"])
def test_the_last_unit_fits_and_one_more_does_not(axis: str) -> None:
    pool = BudgetPool(token_cap=10**18, usd_cap=10**9)
    whole, unit = {"tokens": (10**18, 1), "usd": (10**9, 1e-9)}[axis]
    pool.record(**{axis: whole})  # type: ignore[arg-type]
    assert caught(BudgetExceeded, pool.record, **{axis: unit})


def test_without_a_cap_everything_fits() -> None:
    pool = BudgetPool()
    for _ in range(5):
        pool.record(tokens=10**18, usd=10**9)
    assert counters(pool) == (5 * 10**18, 0, 5 * 10**18, 0, 0)


def test_a_cap_of_zero_admits_only_zero() -> None:
    pool = BudgetPool(token_cap=0, usd_cap=0)
    pool.record()
    assert caught(BudgetExceeded, pool.record, tokens=1)
    assert caught(BudgetExceeded, pool.record, usd=1e-9)
