"""on_unavailable="allow": calls pass while the store does not answer, and what they cost is recorded when it does."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from memory_store import MemoryBudget, MemoryPool, MemoryStore
from pools_of_all_kinds import LONG, in_a_thread, until
from test_forks import in_child
from token_budget import BudgetExceeded, PoolClosed
from token_budget.contract import BudgetUnavailable
from token_budget.stores import _hand, _outage
from token_budget.stores._errors import StoreError, StoreLost
from token_budget.stores._family import StoreFamily
from token_budget.stores._outage import Allowing
from token_budget.stores._store import Store
from waiting_tools import in_line

STEPS_OF_A_CALL = {"reserve", "record", "commit", "release", "cancel", "leave"}


class Allowed(MemoryPool):
    """A pool whose calls pass in an outage. `away` is what its store raises, if anything."""

    def __init__(self, budget: MemoryBudget | None = None, **settings: Any) -> None:
        self.budget = budget or MemoryBudget()
        self.away: Exception | None = None
        self.store = MemoryStore("total", self.budget, f"memory:{id(self)}#total")
        self.store.hook = self._hook
        self.allowing = Allowing(self.store)
        family = StoreFamily.of(self.store.location, lambda: self.allowing, on_unavailable="allow")
        self._open(family, "total", settings.get("token_cap"), settings.get("usd_cap"), None)

    def _hook(self, step: str, moment: str) -> None:
        if self.away is not None and moment == "before":
            raise self.away

    def come_back(self) -> None:
        """Let the store answer again, and wait until the pool has noticed."""
        self.away = None
        until(lambda: not self.allowing.passing)

    def numbers(self) -> tuple[int, int, int]:
        """Return the tokens used, the tokens held and the calls in flight, as the store has them."""
        row = self.budget.rows["total"]
        return row.used[0], row.held[0], row.in_flight


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again after a moment."""
    monkeypatch.setattr(_hand, "_AGAIN", 0.01)
    monkeypatch.setattr(_outage, "_PROBE", 0.01)
    monkeypatch.setattr(_outage, "_REFUSED", 0.01)


@pytest.fixture
def pool() -> Iterator[Allowed]:
    pool = Allowed(token_cap=10)
    yield pool
    pool.away = None
    pool.close()


AWAY = BudgetUnavailable("no server")


def test_it_is_a_store(pool: Allowed) -> None:
    store: Store = pool.allowing
    assert (store.name, store.location, store.news) == ("total", pool.store.location, pool.store.news)


def test_while_the_store_answers_it_decides(pool: Allowed) -> None:
    held = pool.reserve(tokens=4)
    with pytest.raises(BudgetExceeded):
        pool.reserve(tokens=7)
    held.commit(tokens=3)
    pool.record(tokens=1)
    assert pool.numbers() == (4, 0, 0)
    assert pool.snapshot().tokens_used == 4
    assert not pool.allowing.passing


def test_calls_pass_in_an_outage_and_each_is_recorded_once_when_the_store_is_back(pool: Allowed) -> None:
    pool.away = AWAY
    for _ in range(3):
        pool.reserve(tokens=100).commit(tokens=7)
    pool.record(tokens=20)
    with pool.reserve(tokens=1000):
        pass  # nothing was spent
    pool.reserve(tokens=5).release()
    assert pool.numbers() == (0, 0, 0)
    pool.come_back()
    assert pool.numbers() == (41, 0, 0)
    with pytest.raises(BudgetExceeded):
        pool.record(tokens=1)


def test_after_the_first_failure_calls_do_not_ask_the_store(pool: Allowed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_outage, "_PROBE", LONG)  # a call that takes long would look whether the store is back
    asked: list[str] = []

    def hook(step: str, moment: str) -> None:
        if threading.current_thread() is threading.main_thread():  # the worker asks, too
            asked.append(step)
        raise AWAY

    pool.store.hook = hook
    reservation = pool.reserve(tokens=1)
    assert asked == ["reserve"]
    reservation.commit()
    pool.record(tokens=1)
    pool.reserve(tokens=1).release()
    with pytest.raises(BudgetUnavailable, match="does not answer: an outage began"):
        pool.snapshot()
    assert asked == ["reserve"]
    pool.store.hook = pool._hook
    monkeypatch.setattr(_outage, "_PROBE", 0.01)


def test_what_was_held_before_an_outage_is_settled_after_it(pool: Allowed) -> None:
    committed, released, dropped = (pool.reserve(tokens=3) for _ in range(3))
    pool.away = AWAY
    committed.commit(tokens=2)
    released.release()
    with pytest.warns(ResourceWarning):
        del dropped
    assert pool.numbers() == (0, 9, 3)
    pool._family.hand.finish(LONG)
    pool.come_back()
    assert pool.numbers() == (2, 0, 0)


def test_what_passed_and_is_in_flight_when_the_store_is_back_is_recorded_when_it_is_settled(pool: Allowed) -> None:
    pool.away = AWAY
    committed, released = pool.reserve(tokens=30), pool.reserve(tokens=3)
    pool.come_back()
    assert pool.numbers() == (0, 0, 0)
    committed.commit(tokens=25)
    released.release()
    assert pool.numbers() == (25, 0, 0)


def test_a_commit_of_what_passed_counts_in_the_next_outage_too(pool: Allowed) -> None:
    pool.away = AWAY
    held = pool.reserve(tokens=30)
    pool.come_back()
    pool.away = AWAY
    held.commit(tokens=25)
    pool.come_back()
    assert pool.numbers() == (25, 0, 0)


def test_an_outage_is_logged_as_it_begins_and_as_it_ends_with_what_passed(
    pool: Allowed, caplog: pytest.LogCaptureFixture
) -> None:
    pool.away = AWAY
    for _ in range(3):
        pool.reserve(tokens=1_000, usd=1).commit(tokens=500, usd=0.5)
    pool.come_back()
    until(lambda: len(caplog.records) > 1)  # the worker logs it after that
    texts = [record.getMessage() for record in caplog.records]
    where = pool.store.location
    assert texts[0] == f"{where} does not answer, and calls pass without a budget until it does: no server"
    assert texts[1].startswith(f"{where} answers again: 3 calls passed in ")
    assert texts[1].endswith("and what they cost is recorded: tokens 1,500 | usd 1.5")
    assert len(texts) == 2


def test_who_waits_when_an_outage_begins_passes_and_leaves_the_line(pool: Allowed) -> None:
    other = MemoryPool(pool.budget, process="another")
    held = other.reserve(tokens=10)
    calls = [in_a_thread(lambda: pool.reserve(tokens=4, timeout=None)) for _ in range(3)]
    in_line(pool, 3)
    assert len(pool.budget.tickets) == 3
    pool.away = AWAY
    reservations = [call.result() for call in calls]
    assert len(pool.budget.tickets) == 3
    pool.come_back()
    assert not pool.budget.tickets
    for reservation in reservations:
        reservation.commit(tokens=2)
    held.release()
    assert pool.numbers() == (6, 0, 0)
    other.close()


def test_who_gives_up_waiting_as_an_outage_begins_passes(pool: Allowed) -> None:
    other = MemoryPool(pool.budget, process="another")
    held = other.reserve(tokens=10)
    blocked = threading.Event()

    def hook(step: str, moment: str) -> None:
        if step == "leave" and moment == "before":
            raise AWAY
        if step == "watch" and moment == "before":
            blocked.wait(LONG)

    pool.store.hook = hook
    reservation = pool.reserve(tokens=4, timeout=0.1)
    assert not reservation.completed
    blocked.set()
    pool.come_back()
    until(lambda: not pool.budget.tickets)
    reservation.commit()
    held.release()
    assert pool.numbers() == (4, 0, 0)
    other.close()
    pool.store.hook = pool._hook


def test_tasks_pass_too(pool: Allowed) -> None:
    pool.away = AWAY

    async def main() -> None:
        async with pool.areserve(tokens=100) as reservation:
            await reservation.acommit(tokens=20)
        await pool.arecord(tokens=1)

    asyncio.run(main())
    pool.come_back()
    assert pool.numbers() == (21, 0, 0)


def test_a_store_that_fails_again_as_it_records_is_asked_again_and_counts_once(pool: Allowed) -> None:
    children = [pool.child(name=name) for name in "abc"]
    held = children[0].reserve(tokens=1)
    pool.away = AWAY
    for child in children:
        child.record(tokens=2)
    held.commit()
    done: list[str] = []
    failing = iter([False, True, False, True, True, *[False] * 100])
    record = pool.store.record

    def recorded(chain: Any, tokens: int, nanos: int, **options: Any) -> Any:
        return record(chain, tokens, nanos, **options) if tokens else pool.store.read(chain)  # it asks by such a one

    pool.store.record = recorded  # type: ignore[method-assign]

    def hook(step: str, moment: str) -> None:
        if step in STEPS_OF_A_CALL and moment == "before":
            if next(failing):
                raise AWAY
            done.append(step)

    pool.store.hook = hook
    pool.away = None
    until(lambda: not pool.allowing.passing)
    assert sorted(done) == ["commit", "record", "record", "record"]
    assert pool.numbers() == (7, 0, 0)
    pool.store.hook = pool._hook


def test_what_passes_while_the_rest_is_recorded_is_recorded_too(pool: Allowed) -> None:
    pool.away = AWAY
    pool.record(tokens=1)
    inside, go_on = threading.Event(), threading.Event()

    def hook(step: str, moment: str) -> None:
        if step == "record" and moment == "before" and not inside.is_set():
            inside.set()
            assert go_on.wait(LONG)

    pool.store.hook = hook
    assert inside.wait(LONG)
    assert pool.allowing.passing
    pool.record(tokens=2)
    go_on.set()
    until(lambda: not pool.allowing.passing)
    assert pool.numbers() == (3, 0, 0)
    pool.store.hook = pool._hook


# ---------------------------------------------------------------- races and faults, without the worker


@pytest.fixture
def alone(pool: Allowed) -> Allowed:
    """Return a pool whose worker does nothing by itself: the test calls `catch_up`."""
    pool.allowing.worried = lambda: None
    return pool


def test_two_calls_that_fail_together_begin_one_outage(alone: Allowed, caplog: pytest.LogCaptureFixture) -> None:
    together = threading.Barrier(2)

    def hook(step: str, moment: str) -> None:
        together.wait(LONG)  # both were asked before either has failed
        raise AWAY

    alone.store.hook = hook
    for call in [in_a_thread(lambda: alone.record(tokens=1)) for _ in range(2)]:
        call.result()
    alone.store.hook = alone._hook
    alone.allowing.catch_up()
    assert caplog.text.count("calls pass without a budget until it does") == 1
    assert "answers again: 2 calls passed" in caplog.text
    assert alone.numbers() == (2, 0, 0)


def test_a_commit_that_is_noted_after_its_outage_has_ended_is_repeated_and_ends_no_other(
    alone: Allowed, caplog: pytest.LogCaptureFixture
) -> None:
    held = alone.reserve(tokens=5)

    def tend() -> None:
        alone.away = None
        alone.allowing.catch_up()

    alone.allowing.worried = tend  # between the failure and the note, and again after it
    alone.away = AWAY
    held.commit(tokens=3)
    assert alone.numbers() == (3, 0, 0)
    assert caplog.text.count("answers again") == 1


def test_what_is_to_be_repeated_keeps_its_order_where_the_store_fails_again(alone: Allowed) -> None:
    calls = [alone.reserve(tokens=2) for _ in range(2)]
    alone.away = AWAY
    for held in calls:
        held.commit(tokens=1)
    alone.away = None
    alone.store.hook = lambda step, moment: fail(AWAY) if step == "commit" else None
    alone.allowing.catch_up()
    assert [arguments[1] for _, arguments in alone.allowing._owed] == [held._key for held in calls]
    assert (alone.allowing.passing, alone.numbers()) == (True, (0, 4, 2))
    alone.store.hook = alone._hook
    alone.allowing.catch_up()
    assert (alone.allowing.passing, alone.numbers()) == (False, (2, 0, 0))


def fail(error: Exception) -> None:
    raise error


def test_a_store_that_goes_on_to_refuse_what_passed_is_logged_once(
    alone: Allowed, caplog: pytest.LogCaptureFixture
) -> None:
    alone.away = AWAY
    alone.record(tokens=4)
    alone.away = StoreError("no login")
    for _ in range(3):
        assert alone.allowing.catch_up() == _outage._REFUSED
    assert caplog.text.count("does not record what passed: no login") == 1
    alone.away = None
    alone.allowing.catch_up()
    assert alone.numbers() == (4, 0, 0)


def test_the_amounts_of_those_who_wait_are_kept_until_they_are_granted_or_give_up(alone: Allowed) -> None:
    held, chain, amount = alone.reserve(tokens=10), alone._chain, (1, 0)
    keys = [alone.allowing.new_key() for _ in range(2)]
    for key in keys:
        assert alone.allowing.reserve(chain, key, *amount, wait=True).kind == "refused"
    assert alone.allowing._tickets == dict.fromkeys(keys, amount)
    held.release()
    assert alone.allowing.reserve(chain, keys[0], *amount, wait=True).kind == "granted"
    assert alone.allowing._tickets == {keys[1]: amount}
    assert alone.allowing.leave(chain, keys[1]).kind == "left"
    assert alone.allowing._tickets == {}
    alone.allowing.release(chain, keys[0], amount)
    assert not alone.budget.tickets


def test_a_call_that_passed_and_is_dropped_holds_nothing_and_is_not_given_back_to_the_store(alone: Allowed) -> None:
    alone.away = BudgetUnavailable("no server")
    held = alone.reserve(tokens=5)
    alone.away = None  # its frames have the reservation; what was logged has not
    key = held._key
    with pytest.warns(ResourceWarning):
        del held
    alone._family.hand.finish(LONG)
    assert (alone.allowing._held, list(alone.allowing._owed)) == ({}, [])
    alone.allowing.catch_up()
    assert key not in alone.budget.cancelled


def test_in_an_outage_nobody_waits_for_the_store_to_tell_of_room(alone: Allowed) -> None:
    alone.away = AWAY
    alone.record(tokens=1)
    asked: list[str] = []
    alone.store.hook = lambda step, moment: asked.append(step)
    assert alone.allowing.watch([], 3600) is None
    assert asked == []
    alone.store.hook = alone._hook


def test_a_claim_is_handed_over_and_settled_by_its_id(alone: Allowed) -> None:
    held = alone.reserve(tokens=5)
    held.hand_over(lease=60)
    assert held.id == alone.store.id_of(held._key)
    alone.settle(held.id, tokens=3)
    assert alone.numbers() == (3, 0, 0)


def test_a_child_begins_without_what_passed(alone: Allowed) -> None:
    alone.away = AWAY
    alone.record(tokens=4)
    held = alone.reserve(tokens=2)
    owner, lock = alone.store.owner, alone.allowing._lock
    alone.allowing.forked()
    assert alone.store.owner != owner
    assert alone.allowing._lock is not lock  # a thread of the parent may have held it
    assert not alone.allowing.passing
    alone.away = None
    alone.allowing.catch_up()
    assert alone.numbers() == (0, 0, 0)
    held._abandon()


# ---------------------------------------------------------------- what is not allowed


def test_a_store_that_has_lost_the_budget_is_never_passed_by(pool: Allowed) -> None:
    pool.away = StoreLost("it is another")
    held = None
    with pytest.raises(StoreLost):
        held = pool.reserve(tokens=1)
    assert held is None
    with pytest.raises(StoreLost):
        pool.record(tokens=1)
    with pytest.raises(StoreLost):
        asyncio.run(pool.arecord(tokens=1))
    assert not pool.allowing.passing


@pytest.mark.parametrize("step", ["commit", "release", "cancel", "leave", "watch"])
def test_no_step_passes_a_lost_store_by(pool: Allowed, step: str) -> None:
    pool.away = StoreLost("it is another")
    held, chain = (1, 0), pool._chain
    arguments: Any = {
        "commit": (chain, 1, held, held),
        "release": (chain, 1, held),
        "cancel": (chain, 1, held),
        "leave": (chain, 1),
        "watch": ([], 0.0),
    }[step]
    with pytest.raises(StoreLost):
        getattr(pool.allowing, step)(*arguments)


@pytest.mark.parametrize("error", [StoreLost("it is another"), StoreError("no login")])
def test_an_outage_ends_where_the_store_answers_whatever_it_says_and_what_passed_is_kept(
    pool: Allowed, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    pool.away = AWAY
    held = pool.reserve(tokens=3)
    pool.record(tokens=4)
    pool.away = error
    until(lambda: not pool.allowing.passing)
    with pytest.raises(type(error)):
        pool.record(tokens=1)
    with pytest.raises(type(error)):
        held.commit()
    until(lambda: f"answers, and does not record what passed: {error}" in caplog.text)  # the worker says so after that
    pool.away = None  # it was restored
    until(lambda: pool.numbers() == (4, 0, 0))
    held.commit()
    assert pool.numbers() == (7, 0, 0)
    assert caplog.text.count("does not record") == 1
    until(lambda: "answers again" in caplog.text)  # the worker says so after it has recorded


def test_a_closed_pool_stays_closed_in_an_outage(pool: Allowed) -> None:
    run = pool.child(name="run")
    run.close()
    pool.away = AWAY
    with pytest.raises(PoolClosed):
        run.reserve(tokens=1)
    with pytest.raises(PoolClosed):
        run.record(tokens=1)
    run.record(tokens=1, force=True)
    pool.come_back()
    assert pool.numbers() == (1, 0, 0)


def test_what_reads_or_changes_a_pool_does_not_pass(pool: Allowed) -> None:
    users = pool.keyed(name="user")
    pool.away = AWAY
    passed = pool.reserve(tokens=1)
    calls: list[Any] = [
        pool.snapshot,
        lambda: pool.snapshot(tree=True),
        pool.reset,
        lambda: pool.set_caps(token_cap=5),
        lambda: pool.child(name="another"),
        lambda: pool.keyed(name="another"),
        lambda: users.set_caps(token_cap=1),
        users.keys,
        lambda: "ann" in users,
        lambda: users.__delitem__("ann"),
        pool.expired,
        lambda: pool.settle("1-1", tokens=1),
        passed.hand_over,
    ]
    for call in calls:
        with pytest.raises(BudgetUnavailable):
            call()
    passed.commit()
    pool.come_back()
    assert pool.numbers() == (1, 0, 0)


def test_a_pool_cannot_be_opened_in_an_outage_and_begins_none() -> None:
    store = MemoryStore("total")
    allowing = Allowing(store)

    def away(step: str, moment: str) -> None:
        raise AWAY

    store.hook = away
    family = StoreFamily.of(store.location, lambda: allowing)
    with pytest.raises(BudgetUnavailable):
        allowing.open(family.root, None, None, None, "code")
    assert not allowing.passing
    family.let_go()


def test_a_subscriber_of_a_pool_in_an_outage_is_not_told_and_hinders_nothing(pool: Allowed) -> None:
    kinds: list[str] = []
    pool.subscribe(lambda event: kinds.append(event.kind))
    pool.on_threshold(0.5, lambda event: kinds.append(event.kind))
    pool.away = AWAY
    pool.reserve(tokens=10).commit()
    assert kinds == []
    pool.come_back()
    with pytest.raises(BudgetExceeded):
        pool.record(tokens=1)
    assert kinds == ["refusal", "threshold"]


# ---------------------------------------------------------------- the end


def test_letting_go_records_what_passed_if_the_store_is_back_and_logs_what_is_lost_if_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    budget = MemoryBudget()
    pools = [Allowed(budget), Allowed(budget)]
    for pool in pools:
        pool.away = AWAY
        pool.record(tokens=1_000, usd=0.5)
    held = pools[1].reserve(tokens=1)
    pools[0].away = None
    for pool in pools:
        pool.close()
    assert budget.rows["total"].used[0] == 1_000
    lost = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(lost) == 1
    assert "is not recorded: tokens 1,000 | usd 0.5, and 1 calls in flight" in lost[0]
    held._abandon()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_leaves_what_passed_to_the_parent(pool: Allowed) -> None:
    pool.away = AWAY
    pool.record(tokens=1)

    def child() -> None:
        pool.away = None
        pool.record(tokens=2)
        assert not pool.allowing.passing
        assert pool.numbers() == (2, 0, 0)

    in_child(child)
    pool.come_back()
    assert pool.numbers() == (1, 0, 0)
