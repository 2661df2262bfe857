"""P10 for asyncio tasks: every await may take longer than usual, and every task may be cancelled at every await.

detangle runs each scenario under thousands of different schedules on a simulated loop, with an injected cancellation at
each await. After each step the pool must be consistent, and no task may wait when it is its turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from scenarios import wake_complete
from support import counters
from token_budget import BudgetExceeded, BudgetPool, _ledger

detangle = pytest.importorskip("detangle")

Scenario = Callable[[], Coroutine[Any, Any, None]]


def watched(*pools: BudgetPool) -> None:
    """Check after every step that the counters are consistent and that the head of each line has no room."""
    family, accounts = pools[0]._family, [pool._account for pool in pools]

    def consistent() -> bool:
        assert not family.stirred
        wake_complete(family, accounts)
        return all(0 <= account.tokens_reserved <= account.tokens_claimed for account in accounts)

    detangle.invariant(consistent, "whenever the lock is released, the head of the line does not fit")


async def ended(*calls: Awaitable[Any]) -> None:
    """Run tasks that may be cancelled at any await. Only cancellations and refusals may end them early."""
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(call) for call in calls]
    for task in tasks:
        detangle.inject_cancellation(task, points=4)
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert outcome is None or isinstance(outcome, (asyncio.CancelledError, BudgetExceeded)), outcome


def all_is_back(*pools: BudgetPool) -> None:
    for pool in pools:
        assert counters(pool)[1:] == (0, 0, 0, 0)
        assert pool._account.line is None
    assert pools[0]._family.root.line is None
    assert not pools[0]._family.owed


async def call(pool: BudgetPool, tokens: int, timeout: float | None = None) -> None:
    async with pool.areserve(tokens=tokens, timeout=timeout) as reservation:
        await asyncio.sleep(0)
        reservation.commit(tokens=0)


async def in_line() -> None:
    """Four tasks compete for room for one."""
    pool = BudgetPool(token_cap=10)
    watched(pool)
    await ended(*[call(pool, 6) for _ in range(4)])
    all_is_back(pool)


async def with_time_outs() -> None:
    """Time-outs race with grants and cancellations."""
    pool = BudgetPool(token_cap=10)
    watched(pool)
    await ended(call(pool, 6), call(pool, 6, 0.001), call(pool, 5, 0.001), call(pool, 4))
    all_is_back(pool)


async def over_scopes() -> None:
    """Users below a whole: each task waits at the scope that blocks it, and then moves up."""
    total = BudgetPool(token_cap=10)
    ann, bob = total.child(token_cap=6), total.child(token_cap=8)
    watched(ann, bob, total)
    await ended(call(ann, 5), call(ann, 3), call(bob, 7), call(total, 4))
    all_is_back(ann, bob, total)


async def while_caps_change() -> None:
    """Caps fall and rise, with spends in between: some waiters are refused as hopeless, and some are served."""
    pool = BudgetPool(token_cap=10)
    watched(pool)

    async def manage() -> None:
        await asyncio.sleep(0)
        pool.set_caps(token_cap=5)
        await asyncio.sleep(0)
        pool.set_caps(token_cap=12)
        await asyncio.sleep(0)
        pool.reset()

    await ended(call(pool, 9), call(pool, 4), call(pool, 7), manage())
    all_is_back(pool)


async def given_up_from_outside() -> None:
    """`asyncio.wait_for` around a wait, as programs write it, with a time-out at the worst moment."""
    pool = BudgetPool(token_cap=10)
    watched(pool)

    async def impatient() -> None:
        try:
            reservation = await detangle.maybe_timeout(pool.areserve(tokens=7))
        except TimeoutError:
            return
        reservation.release()

    await ended(impatient(), impatient(), call(pool, 6))
    all_is_back(pool)


async def told_of_it() -> None:
    """A subscriber gets each event once, whether a task is cancelled, granted or refused."""
    pool = BudgetPool(token_cap=10)
    watched(pool)
    told: list[Any] = []
    pool.subscribe(told.append)
    await ended(call(pool, 6), call(pool, 6, 0.001), call(pool, 5))
    all_is_back(pool)
    kinds = [event.kind for event in told]
    assert kinds.count("reserve") == kinds.count("commit") + kinds.count("release") + kinds.count("drop")


async def beside_one_who_waits() -> None:
    """A task that waits for one user's budget never blocks calls of another user."""
    total = BudgetPool(token_cap=30)
    ann, bob = total.child(token_cap=6), total.child(token_cap=8)
    watched(ann, bob, total)

    async def go_on() -> None:
        for _ in range(3):
            bob.reserve(tokens=8).release()
            await asyncio.sleep(0)

    await ended(call(ann, 5), call(ann, 3), go_on())
    all_is_back(ann, bob, total)


SCENARIOS = [in_line, with_time_outs, over_scopes, while_caps_change, given_up_from_outside, told_of_it]
SCENARIOS += [beside_one_who_waits]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # from a task that is cancelled before it has begun
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_under_every_schedule_and_cancellation(scenario: Scenario, full: bool, explored: dict[str, int]) -> None:
    runs = 20_000 if full else 2_000
    statistics = detangle.explore(scenario, runs=runs)
    assert statistics.runs >= runs or statistics.exhausted
    explored[f"tasks: {scenario.__name__}"] = statistics.runs


@pytest.mark.filterwarnings("ignore")
def test_a_waiter_that_keeps_what_it_was_granted_when_cancelled_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Break the code on purpose: a grant that races with a cancellation is not given back."""
    kept: list[Any] = []

    def forgetful(waiter: Any) -> None:
        kept.append(waiter.reservation)  # so that no finaliser gives it back
        _ledger.leave(waiter)

    monkeypatch.setattr(_ledger, "abandon", forgetful)
    with pytest.raises(detangle.BugFound):
        detangle.explore(in_line, runs=2000)
    for reservation in kept:
        reservation.release()
