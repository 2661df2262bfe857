"""A call is charged to every pool that it counts against, to each account once, and to all of them or none."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
from collections.abc import Callable
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from meters import StorePool, used
from token_budget import BudgetExceeded, BudgetOverrun, BudgetPool, BudgetTimeout, PoolClosed, PoolForked
from token_budget.contract import BudgetUnavailable
from token_budget.metering import _charge
from token_budget.metering._charge import MAX_NANOS, Charge, Held, logger, to_dollars


def test_an_account_under_several_pools_is_charged_once() -> None:
    total = BudgetPool(usd_cap=10)
    user, project = total.child(), total.child()
    Charge([total, user, project]).reserve(10, 1000, 0).commit(7, 900)
    assert used(user) == used(project) == used(total) == (7, 900, 0)


def test_a_pool_below_all_others_is_charged_as_it_is() -> None:
    total = BudgetPool()
    run = total.child()
    inner = run.child()
    assert Charge([total, inner, run]).pools == (inner,)
    assert Charge([total, total]).pools == (total,)


def test_pools_of_two_families_are_both_held_and_both_committed() -> None:
    one, other = BudgetPool(), BudgetPool()
    held = Charge([one, other]).reserve(10, 1000, 0)
    assert used(one) == used(other) == (0, 0, 1)
    assert held.commit(7, 900) is None
    assert used(one) == used(other) == (7, 900, 0)


def test_the_order_of_families_is_the_same_for_all_calls() -> None:
    pools: list[Any] = [BudgetPool(), StorePool(BudgetPool()), BudgetPool()]
    assert Charge(pools).pools == Charge(reversed(pools)).pools


@pytest.mark.parametrize("first", [0, 1])
def test_a_refusal_of_one_family_leaves_nothing_held_in_the_other(first: int) -> None:
    pools = [BudgetPool(usd_cap=1), BudgetPool(usd_cap=1)]
    charge = Charge(pools)
    pools[first].record(usd=1)
    with pytest.raises(BudgetExceeded):
        charge.reserve(0, 10**9, 0)
    with pytest.raises(BudgetExceeded):
        asyncio.run(charge.areserve(0, 10**9, 0))
    assert [used(pool)[2] for pool in pools] == [0, 0]


class Slow:
    """A pool that takes a tenth of a second of an injected clock to answer, and notes how long it may take."""

    name, closed = "slow", False

    def __init__(self, clock: list[float], told: list[float | None]) -> None:
        self.inner, self.clock, self.told = BudgetPool(), clock, told

    def reserve(self, *, tokens: Any, usd: Any, timeout: float | None) -> Any:
        self.told.append(timeout)
        self.clock[0] += 0.1
        return self.inner.reserve(tokens=tokens, usd=usd)

    async def areserve(self, *, tokens: Any, usd: Any, timeout: float | None) -> Any:
        return self.reserve(tokens=tokens, usd=usd, timeout=timeout)


@pytest.mark.parametrize("way", ["a thread", "a task"])
def test_the_time_out_is_shared_by_all_families(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    clock, told = [0.0], list[float | None]()
    monkeypatch.setattr(_charge, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    pools: list[Any] = [Slow(clock, told) for _ in range(3)]
    charge = Charge(pools)
    held = charge.reserve(0, 10, 0.25) if way == "a thread" else asyncio.run(charge.areserve(0, 10, 0.25))
    held.release()
    assert told == [0.25, pytest.approx(0.15), pytest.approx(0.05)]


def test_without_a_time_out_two_families_are_waited_for() -> None:
    one, other = BudgetPool(usd_cap=1), BudgetPool(usd_cap=1)
    busy = [one.reserve(usd=1), other.reserve(usd=1)]
    for held in busy:
        threading.Timer(0.05, held.release).start()
    Charge([one, other]).reserve(0, 10**9, None).release()
    assert used(one) == used(other) == (0, 0, 0)


def test_a_commit_returns_the_first_overrun_and_records_everywhere() -> None:
    one, other = sorted([BudgetPool(usd_cap=1, name="a"), BudgetPool(usd_cap=1)], key=lambda pool: id(pool._family))
    held = Charge([one, other]).reserve(0, 10**9, 0)
    overrun = held.commit(0, 2 * 10**9)
    assert isinstance(overrun, BudgetOverrun)
    assert overrun.pool == one.name
    assert overrun.__traceback__ is None
    assert used(one) == used(other) == (0, 2 * 10**9, 0)


def test_what_its_pool_has_settled_is_not_counted_again() -> None:
    pool = BudgetPool(usd_cap=1)
    for _ in range(2):
        held = Charge([pool]).reserve(5, 10**6, 0)
        held.parts[0][1].commit(tokens=5)  # type: ignore[union-attr]  # as a store does with a lease that ended
        assert held.commit(7, 900) is None
        assert asyncio.run(held.acommit(7, 900)) is None
    assert used(pool) == (10, 2 * 10**6, 0)


def test_huge_amounts_are_held_and_booked_as_the_largest_there_is() -> None:
    pool = BudgetPool()
    Charge([pool]).reserve(10**30, 10**30, 0).commit(10**30, 10**30)
    assert used(pool) == (10**18, MAX_NANOS, 0)
    Charge([pool]).record(10**30, 10**30)
    assert used(pool) == (2 * 10**18, 2 * MAX_NANOS, 0)
    pool = BudgetPool()
    asyncio.run(_held_async(Charge([pool]), 10**30))
    assert used(pool) == (10**18, MAX_NANOS, 0)


async def _held_async(charge: Charge, amount: int) -> None:
    held = await charge.areserve(amount, amount, 0)
    await held.acommit(amount, amount)


@pytest.mark.parametrize("nanos", [0, 1, 999, 123_456_789_123, 2**50 - 1, 2**50, 2**50 + 1, 987_654_321_987_654_321])
def test_dollars_come_out_of_a_pool_as_the_nanodollars_that_went_in(nanos: int) -> None:
    pool = BudgetPool()
    pool.record(usd=to_dollars(nanos))
    assert used(pool)[1] == nanos


def test_a_spend_is_recorded_where_pools_are_closed() -> None:
    total = BudgetPool(usd_cap=1)
    user, project = total.child(name="user"), total.child()
    user.close()
    with pytest.raises(PoolClosed):
        Charge([user, project])
    assert Charge([user, project], to_record=True).record(7, 900) is None
    assert used(user) == used(project) == used(total) == (7, 900, 0)
    assert isinstance(Charge([user, project], to_record=True).record(0, 10**9), BudgetOverrun)


# ---------------------------------------------------------------- pools of a store


def test_a_pool_of_a_store_is_charged_beside() -> None:
    store, pool = StorePool(BudgetPool()), BudgetPool()
    held = Charge([pool, store]).reserve(10, 1000, 0)
    held.commit(7, 900)
    assert used(store.inner) == used(pool) == (7, 900, 0)
    Charge([pool, store]).reserve(10, 1000, 0).release()
    assert used(store.inner) == used(pool) == (7, 900, 0)


def test_tasks_do_not_block_on_a_store() -> None:
    store = StorePool(BudgetPool())

    async def main() -> None:
        await (await Charge([store]).areserve(10, 1000, 0)).acommit(7, 900)
        await (await Charge([store]).areserve(10, 1000, 0)).arelease()

    asyncio.run(main())
    assert store.suspended == 4
    assert used(store.inner) == (7, 900, 0)


@pytest.mark.parametrize("down", [BudgetUnavailable("gone"), ConnectionRefusedError("gone"), TimeoutError("gone")])
def test_a_pool_that_cannot_answer_holds_up_the_call_and_releases_the_others(down: Exception) -> None:
    store, pool = StorePool(BudgetPool(name="shared")), BudgetPool()
    store.down = down
    charge = Charge([pool, store])
    with pytest.raises(BudgetUnavailable, match="gone"):
        charge.reserve(10, 1000, 0)
    with pytest.raises(BudgetUnavailable, match="gone"):
        asyncio.run(charge.areserve(10, 1000, 0))
    assert used(pool) == (0, 0, 0)


def test_a_lenient_charge_passes_over_it_and_records_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    store, pool = StorePool(BudgetPool(name="shared")), BudgetPool()
    charge = Charge([pool, store])
    store.down = ConnectionRefusedError("gone")
    held = charge.reserve(10, 1000, 0, lenient=True)
    assert "'shared' cannot answer (ConnectionRefusedError); the call passes" in caplog.text
    assert used(pool) == (0, 0, 1)
    store.down = None
    held.commit(7, 900)
    assert used(store.inner) == used(pool) == (7, 900, 0)
    held = charge.reserve(10, 1000, 0)
    store.down = BudgetUnavailable("gone")
    caplog.clear()
    assert held.commit(7, 900) is None
    assert "a spend of 7 tokens and 0.0000009 USD is not recorded in pool 'shared': BudgetUnavailable" in caplog.text
    assert used(pool) == (14, 1800, 0)


def test_a_lenient_charge_of_tasks_does_the_same(caplog: pytest.LogCaptureFixture) -> None:
    store, pool = StorePool(BudgetPool(name="shared")), BudgetPool()

    async def main() -> None:
        charge = Charge([pool, store])
        store.down = BudgetUnavailable("gone")
        held = await charge.areserve(10, 1000, 0, lenient=True)
        store.down = None
        await held.acommit(7, 900)
        assert used(store.inner) == used(pool) == (7, 900, 0)
        held = await charge.areserve(10, 1000, 0)
        store.down = BudgetUnavailable("gone")
        await held.acommit(7, 900)
        assert "is not recorded in pool 'shared'" in caplog.text
        store.down = None
        held = await charge.areserve(10, 1000, 0)
        store.down = BudgetUnavailable("gone")
        await held.arelease()
        assert "of pool 'shared' is not given back: BudgetUnavailable" in caplog.text
        held = await charge.areserve(10, 1000, 0, lenient=True)
        await held.arelease()  # there is nothing to give back

    asyncio.run(main())
    assert used(pool) == (14, 1800, 0)


def test_a_store_that_comes_back_is_told_once_also_if_the_next_pool_is_interrupted() -> None:
    store, slow = StorePool(BudgetPool()), StorePool(BudgetPool())
    charge = Charge([])
    charge.pools = (store, slow)
    ways: list[Callable[[Held], object]] = [
        lambda held: held.commit(7, 900),
        lambda held: asyncio.run(held.acommit(7, 900)),
    ]
    for settle in ways:
        store.down = BudgetUnavailable("gone")
        held = charge.reserve(10, 1000, 0, lenient=True)
        store.down, slow.down = None, KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            settle(held)
        slow.down = None
        settle(held)
    assert used(store.inner) == (14, 1800, 0)


def test_a_task_s_commit_returns_the_overrun_too() -> None:
    store = StorePool(BudgetPool(usd_cap=1))

    async def main() -> object:
        return await (await Charge([store]).areserve(0, 10**9, 0)).acommit(0, 2 * 10**9)

    assert isinstance(asyncio.run(main()), BudgetOverrun)


def test_what_cannot_be_given_back_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    store, pool = StorePool(BudgetPool(name="shared")), BudgetPool()
    held = Charge([pool, store]).reserve(10, 1000, 0)
    store.down = BudgetUnavailable("gone")
    held.release()
    assert "what a call held of pool 'shared' is not given back: BudgetUnavailable" in caplog.text
    assert used(pool) == (0, 0, 0)
    Charge([pool, store]).reserve(10, 1000, 0, lenient=True).release()
    assert used(pool) == (0, 0, 0)


def test_a_refusal_is_no_outage_also_where_it_is_a_time_out() -> None:
    store = StorePool(BudgetPool(usd_cap=1))
    busy = store.reserve(usd=1)
    with pytest.raises(BudgetTimeout):  # which is an OSError
        Charge([store]).reserve(0, 1, 0.01, lenient=True)
    with pytest.raises(BudgetTimeout):
        asyncio.run(Charge([store]).areserve(0, 1, 0.01, lenient=True))
    busy.release()
    store.close()
    with pytest.raises(PoolClosed):
        Charge([store]).reserve(0, 1, 0, lenient=True)


def test_a_recorded_spend_reaches_the_other_pools_also_where_one_is_out_of_reach() -> None:
    store, one, other = StorePool(BudgetPool(name="shared")), BudgetPool(), BudgetPool(usd_cap=0)
    store.down = ConnectionRefusedError("gone")
    charge = Charge([one, store, other])
    with pytest.raises(BudgetUnavailable):
        charge.record(7, 900)
    assert used(one) == used(other) == (7, 900, 0)
    assert isinstance(charge.record(7, 900, lenient=True), BudgetOverrun)
    assert used(one) == used(other) == (14, 1800, 0)


# ---------------------------------------------------------------- looking


def test_the_snapshots_are_those_of_all_scopes() -> None:
    total = BudgetPool(name="total")
    users = total.keyed(name="users")
    project = total.child(name="project")
    run = project.child(name="run")
    store = StorePool(BudgetPool(name="store"))
    names = [one.name for one in Charge([run, users["ann"], store]).snapshots() if one.name is not None]
    assert sorted(names) == ["project", "run", "store", "total", "users:ann"]
    assert len(names) == 5


def test_closed_is_told() -> None:
    pool, store = BudgetPool(), StorePool(BudgetPool())
    charge = Charge([pool, store])
    assert not charge.closed()
    store.close()
    assert charge.closed()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork beside the threads of other tests
def test_a_forked_child_settles_nothing_of_its_parent_s() -> None:
    pool = BudgetPool(usd_cap=1)
    charge = Charge([pool])
    held = charge.reserve(10, 1000, 0)
    child = os.fork()
    if child == 0:  # pragma: no cover - runs in the child
        code = 1
        try:
            held.commit(7, 900)
            for forbidden in (lambda: charge.record(7, 900), charge.closed):
                try:
                    forbidden()
                except PoolForked:
                    continue
                os._exit(2)
            code = 0 if used(pool)[:2] == (0, 0) else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    held.commit(7, 900)
    assert used(pool) == (7, 900, 0)


def test_an_interrupt_between_two_families_gives_back_the_first() -> None:
    class Interrupted(StorePool):
        def reserve(self, **_amounts: Any) -> Any:
            raise KeyboardInterrupt

        async def areserve(self, **_amounts: Any) -> Any:
            raise asyncio.CancelledError

    pool = BudgetPool()
    charge = Charge([pool])
    charge.pools = (pool, Interrupted(BudgetPool()))
    with pytest.raises(KeyboardInterrupt):
        charge.reserve(10, 1000, 0)
    assert used(pool) == (0, 0, 0)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(charge.areserve(10, 1000, 0))
    gc.collect()
    assert used(pool) == (0, 0, 0)


def test_the_logger_is_silent_until_logging_is_configured(capfd: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("token_budget")
    handlers = log.handlers[:]
    log.handlers.clear()
    try:
        assert logger() is log
        assert any(isinstance(one, logging.NullHandler) for one in log.handlers)
        assert len(logger().handlers) == 1
    finally:
        log.handlers[:] = handlers
    assert capfd.readouterr().err == ""


def test_amounts_are_exact_decimals_in_messages() -> None:
    assert Decimal(str(to_dollars(10**9))) == 1
