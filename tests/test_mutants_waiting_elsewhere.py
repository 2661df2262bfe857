"""A waiter is refused at once if its request becomes hopeless, even at a scope other than the one where it waits."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from shapes import Clock, waiting
from token_budget import BudgetPool, Window
from token_budget._bells import LoopBell, TrioBell


@pytest.mark.parametrize("axis", ["tokens", "usd"])
def test_a_spend_that_leaves_a_waiter_no_room_elsewhere_refuses_the_waiter(axis: str) -> None:
    cap: dict[str, Any] = {"token_cap" if axis == "tokens" else "usd_cap": 100}
    fifty: dict[str, Any] = {axis: 50}
    one: dict[str, Any] = {axis: 1}
    total = BudgetPool()
    user, project = total.child(**cap), total.child(**cap)
    both = BudgetPool.join(user, project)
    held = user.reserve(**{axis: 80})
    waiter = waiting(both, **({"tokens": 50} if axis == "tokens" else {"nanos": 50 * 10**9}))
    project.record(**fifty)
    assert waiter.state == "waiting"  # 50 of 100 are left, and that is enough
    project.record(**one)
    assert waiter.state == "refused"
    held.release()


def test_after_a_roll_over_a_hopeless_waiter_with_a_short_time_out_is_refused_beside_a_patient_one() -> None:
    clock = Clock()
    pool = BudgetPool(token_cap=100, window=Window.every(timedelta(seconds=60), clock=clock))
    held = pool.reserve(tokens=100)
    patient = waiting(pool, tokens=90, timeout=10_000.0)
    clock.now += 60
    pool.snapshot()  # this begins the next period
    impatient = waiting(pool, tokens=20, timeout=1.0)
    held.commit(tokens=85)
    assert impatient.state == "refused"
    assert patient.state == "waiting"


def test_a_trio_bell_can_be_waited_for_again_after_it_rang() -> None:
    trio = pytest.importorskip("trio")

    async def hear() -> list[bool]:
        bell = TrioBell(trio)
        bell.ring()
        return [await bell.wait(10), await bell.wait(0)]

    assert trio.run(hear) == [True, False]


def test_an_asyncio_bell_can_be_waited_for_again_after_it_rang() -> None:
    async def hear() -> list[bool]:
        bell = LoopBell(asyncio.get_running_loop())
        bell.ring()
        return [await bell.wait(10), await bell.wait(0)]

    assert asyncio.run(hear()) == [True, False]


def test_a_waiter_is_woken_to_learn_of_a_window_that_its_scope_gets() -> None:
    pool = BudgetPool(token_cap=10)
    held = pool.reserve(tokens=10)
    waiter = waiting(pool, tokens=1, timeout=100.0)
    assert not waiter.patient(pool._account)
    pool.set_caps(window=Window.every(timedelta(seconds=60), clock=Clock()))
    assert waiter.bell.rung == 1
    assert waiter.patient(pool._account)
    held.release()
    waiter.reservation.release()
