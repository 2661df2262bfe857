"""The Redis engine where processes die: charged in full, listed, corrected; leases, handing over, letting go, forks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from redis_stores import Budget, Process, wait
from token_budget import Window
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreLost
from token_budget.stores._store import DONE, GRANTED, LATE, LEFT, REFUSED, REPEAT, SETTLED, UNKNOWN, News


@pytest.fixture
def budget() -> Iterator[Budget]:
    budget = Budget(tokens=100)
    yield budget
    budget.close()


def holding(process: Process, *amounts: int, chain: Any = None) -> list[Any]:
    keys = []
    for amount in amounts:
        keys.append(process.engine.new_key())
        assert process.engine.reserve(chain or (process.root,), keys[-1], amount, 0).kind == GRANTED
    return keys


def die(budget: Budget, process: Process, other: Process) -> None:
    """Let a process be declared dead, and charged by another one."""
    budget.kill(process)
    other.engine.expired()


# ---------------------------------------------------------------- death


@pytest.mark.parametrize("by", ["read", "tree", "refusal", "tend", "expired", "forget"])
def test_what_a_dead_process_held_is_charged_in_full_by_whoever_meets_it(budget: Budget, by: str) -> None:
    one, two = budget.process(), budget.process()
    chain, theirs = one.child("kid"), two.child("kid")
    user = two.key(two.group(), "ann")
    holding(one, 30, 20, chain=chain)
    two.engine.record(user, 0, 0)
    budget.kill(one)
    if by == "refusal":
        answer = two.engine.reserve(theirs, two.engine.new_key(), 60, 0)
        assert (answer.kind, answer.at) == (REFUSED, 1)
        assert (answer.rows[1].tokens_claimed, answer.rows[1].tokens_held) == (50, 0)
    elif by == "tend":
        two.engine._process.renew_at = 0.0
        two.engine.tend()
    elif by == "forget":
        two.engine.forget(user[0])
    elif by == "tree":
        assert {row.tokens_held for _, _, row in two.engine.tree(two.root)} == {0}
    elif by == "read":
        assert two.used() == (50, 0)
    else:
        two.engine.expired()
    assert int(budget.row(two.root.path)["p"]) == int(budget.row(theirs[0].path)["p"]) == 50
    assert two.numbers().in_flight == 0
    paths = (chain[0].path, one.root.path)
    assert sorted(two.engine.news) == [News("expired", paths[0], paths, amount, 0) for amount in (20, 30)]
    assert not budget.raw.exists(budget.keys.owner(one.engine._process.owner))


def test_what_was_charged_is_listed_with_who_and_when_until_it_is_corrected(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    before = float(".".join(map(str, budget.raw.time())))
    keys = holding(one, 30, 20)
    name = one.engine.id_of(keys[0])
    die(budget, one, two)
    listed = two.engine.expired()
    assert sorted((charge.id, charge.tokens) for charge in listed) == sorted(
        (one.engine.id_of(key), amount) for key, amount in zip(keys, (30, 20), strict=True)
    )
    assert {charge.paths for charge in listed} == {(one.root.path,)}
    host, pid, start = listed[0].who.rsplit(":", 2)
    assert (bool(host), int(pid), int(start) > 0) == (True, os.getpid(), True)
    assert before - 1 <= listed[0].at <= float(budget.raw.time()[0]) + 1
    assert " " not in name
    answer, paths = two.engine.settle(name, 12, 5)
    assert (answer.kind, answer.counted, paths) == (LATE, (30, 0), (one.root.path,))
    assert [charge.tokens for charge in two.engine.expired()] == [20]
    assert two.used() == (32, 0)
    assert 6 * 86400 < budget.raw.ttl(f"{budget.keys.owner(keys[0].owner)}:x") <= 7 * 86400


def test_many_claims_are_charged_some_hundred_at_a_time(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    one.engine.set_caps(one.root, None, None, None)
    holding(one, *[1] * 1234)
    budget.kill(one)
    assert two.used() == (1234, 0)
    assert len(two.engine.expired()) == len(two.engine.news) == 1234
    batches = [name for name, _ in two.wire.sent if name == "expire"]
    assert len(batches) >= 3


def test_a_charging_that_was_cut_short_is_finished_by_the_next(budget: Budget) -> None:
    one, two, three = (budget.process() for _ in range(3))
    one.engine.set_caps(one.root, None, None, None)
    keys = holding(one, *[1] * 1100)
    budget.kill(one)
    two.wire.lose("expire", done=True)  # the first batch was done
    with pytest.raises(BudgetUnavailable):
        two.used()
    assert 0 < int(budget.row(one.root.path)["p"]) < 1100
    answer = one.engine.commit((one.root,), keys[0], (1, 0), (1, 0))  # meanwhile its process goes on
    assert answer.kind in {DONE, LATE, UNKNOWN}
    assert one.engine.reserve((one.root,), one.engine.new_key(), 5, 0).kind == GRANTED
    assert three.used() == (1100, 5)
    assert two.used() == (1100, 5)


def test_a_living_process_is_not_charged_by_one_that_thought_it_dead(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    keys = holding(one, 30)

    def renewed(name: str) -> None:
        if name == "expire":
            two.wire.heal()
            one.engine._process.renew_at = 0.0
            one.engine.tend()

    budget.kill(one)
    two.wire.before = renewed
    assert two.used() == (0, 30)
    assert one.engine.commit((one.root,), keys[0], (30, 0), (3, 0)).kind == DONE


def test_what_is_charged_counts_in_the_period_in_which_it_is_noticed(budget: Budget) -> None:
    now = [0.0]
    window = Window.parse("every 10s", clock=lambda: now[0])
    one, two = budget.process(), budget.process()
    chain, theirs = one.child("kid", window=window), two.child("kid", window=window)
    holding(one, 30, chain=chain)
    now[0] = 15.0
    die(budget, one, two)
    row = two.numbers(theirs[0])
    assert (row.tokens_claimed, row.tokens_held, row.start) == (30, 0, 10.0)
    assert [item.kind for item in two.engine.news] == ["roll-over", "expired"]


# ---------------------------------------------------------------- late commits


@pytest.mark.parametrize("how", ["commit", "settle"])
@pytest.mark.parametrize("cost", [0, 10, 30, 45])
@pytest.mark.parametrize("later", [False, True])
def test_a_late_commit_corrects_the_charge_within_its_era(budget: Budget, how: str, cost: int, later: bool) -> None:
    now = [0.0]
    window = Window.parse("every 10s", clock=lambda: now[0])
    one, two = budget.process(), budget.process()
    chain, theirs = one.child("kid", window=window), two.child("kid", window=window)
    [key] = holding(one, 30, chain=chain)
    die(budget, one, two)
    if later:
        now[0] = 11.0
    for _ in range(2):  # and a repeat counts once
        if how == "commit":
            answer = one.engine.commit(chain, key, (30, 0), (cost, 0))
        else:
            answer, _ = two.engine.settle(one.engine.id_of(key), cost, 0)
    assert (answer.kind, answer.counted) == (REPEAT, (cost, 0))
    assert two.used() == (cost, 0)  # the root has no periods
    assert two.used(theirs[0]) == (max(0, cost - 30) if later else cost, 0)
    assert two.engine.expired() == []


def test_a_late_release_gives_the_charge_back(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    released, cancelled = holding(one, 30, 20)
    die(budget, one, two)
    assert one.engine.release((one.root,), released, (30, 0)).kind == LATE
    assert one.engine.cancel((one.root,), cancelled, (20, 0)) is True
    assert two.used() == (0, 0)
    assert two.engine.expired() == []


def test_a_process_that_was_declared_dead_goes_on_as_another(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    [old] = holding(one, 30)
    waiting = one.engine.new_key()
    assert one.engine.reserve((one.root,), waiting, 90, 0, wait=True).kind == REFUSED
    before, name = one.engine._process.owner, one.engine.id_of(waiting)
    die(budget, one, two)
    assert two.numbers().waiting == 0
    assert one.engine.record((one.root,), 1, 0).kind == DONE
    assert one.engine._process.owner != before
    [new] = holding(one, 2)
    assert one.engine.reserve((one.root,), waiting, 90, 0, wait=True).kind == REFUSED
    assert one.engine.id_of(waiting) != name
    assert one.engine.leave((one.root,), waiting).kind == LEFT
    assert one.engine.commit((one.root,), old, (30, 0), (3, 0)).kind == LATE
    assert one.engine.commit((one.root,), new, (2, 0), (2, 0)).kind == DONE
    assert two.used() == (6, 0)


def test_a_step_that_was_done_before_its_process_was_declared_dead_counts_once(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    key, held = one.engine.new_key(), holding(one, 7)[0]

    def die_after(name: str) -> None:
        if name in {"reserve", "record", "commit"}:
            one.wire.heal()
            die(budget, one, two)
            assert one.wire.again(name)[0] in {"done", "owner", "late"}  # the copy that the client sends again
            raise BudgetUnavailable("and its answer is lost")

    one.wire.after = die_after
    with pytest.raises(BudgetUnavailable):
        one.engine.record((one.root,), 5, 0)
    assert two.used() == (12, 0)  # with 7 that were charged
    one.engine.tend()
    assert two.used() == (7, 0)  # given up: undone
    one.engine.commit((one.root,), held, (7, 0), (1, 0))

    one.engine.record((one.root,), 0, 0)  # as another owner
    one.wire.after = die_after
    with pytest.raises(BudgetUnavailable):
        one.engine.reserve((one.root,), key, 5, 0)
    assert two.used() == (6, 0)
    assert one.engine.reserve((one.root,), key, 5, 0).kind == GRANTED
    assert two.used() == (1, 5)

    one.wire.after = die_after
    with pytest.raises(BudgetUnavailable):
        one.engine.commit((one.root,), key, (5, 0), (4, 0))
    answer = one.engine.commit((one.root,), key, (5, 0), (4, 0))
    assert (answer.kind, answer.counted) == (REPEAT, (4, 0))
    assert two.used() == (5, 0)


def test_a_reserve_that_is_granted_and_charged_before_it_is_heard_is_made_anew(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    one.engine.record((one.root,), 0, 0)
    chain, key = (one.root,), one.engine.new_key()
    first = True

    def die_before(name: str) -> None:
        nonlocal first
        if name == "reserve" and first:
            first = False
            one.wire.sent[-1][1]()  # an attempt whose answer is lost
            die(budget, one, two)

    one.wire.before = die_before
    assert one.engine.reserve(chain, key, 5, 0).kind == GRANTED
    assert two.used() == (0, 5)
    assert two.engine.expired() == []


def test_a_claim_that_the_store_has_lost_is_counted_by_its_commit(budget: Budget) -> None:
    one = budget.process()
    [key] = holding(one, 5)
    budget.raw.hdel(budget.keys.owner(key.owner), str(key.number))  # a failover to a replica that was behind
    answer = one.engine.commit((one.root,), key, (5, 0), (4, 0), rows=True)
    assert (answer.kind, answer.rows[0].tokens_claimed) == (UNKNOWN, 9)
    assert one.engine.commit((one.root,), key, (5, 0), (4, 0)).kind == REPEAT
    assert one.engine.release((one.root,), one.engine.new_key(), (1, 0)).kind == UNKNOWN
    assert one.engine.settle("0123456789-7", 3, 0) == (one.engine.settle("no id", 3, 0))
    assert one.engine.settle("0123456789-7", 3, 0)[0].kind == UNKNOWN
    assert one.numbers().tokens_claimed == 9


# ---------------------------------------------------------------- settling from elsewhere, handing over


def test_any_process_settles_a_living_claim_by_its_id_and_its_holder_is_told(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    chain = one.child("kid")
    first, second, third = holding(one, 30, 20, 10, chain=chain)
    answer, paths = two.engine.settle(one.engine.id_of(first), 12, 0)
    assert (answer.kind, answer.counted, paths) == (DONE, (30, 0), (chain[0].path, one.root.path))
    copy = two.wire.again("commit")
    assert copy[:3] == ["done", "30", "0"]
    assert two.engine.settle(one.engine.id_of(first), 99, 0)[0].counted == (12, 0)
    answer = one.engine.commit(chain, first, (30, 0), (5, 0))
    assert (answer.kind, answer.counted) == (SETTLED, (12, 0))
    two.engine.settle(one.engine.id_of(second), 1, 0)
    assert one.engine.release(chain, second, (20, 0)).kind == SETTLED
    one.engine.commit(chain, third, (10, 0), (3, 0))
    assert two.engine.settle(one.engine.id_of(third), 9, 0)[0].kind == REPEAT  # while its mark is there
    assert one.used() == (16, 0)
    assert one.numbers(chain[0]).in_flight == 0


def test_who_waits_cannot_be_settled(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    holding(one, 100)
    key = one.engine.new_key()
    one.engine.reserve((one.root,), key, 5, 0, wait=True)
    assert two.engine.settle(one.engine.id_of(key), 5, 0)[0].kind == UNKNOWN
    with pytest.raises(RuntimeError, match="waits"):
        one.engine.commit((one.root,), key, (5, 0), (5, 0))


def test_a_claim_that_is_handed_over_outlives_its_process(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    chain = one.child("kid")
    [key] = holding(one, 30, chain=chain)
    new = one.engine.hand_over(chain, key, (30, 0), 3600)
    assert one.engine.id_of(new) != one.engine.id_of(key)
    one.engine.let_go()
    assert two.used() == (0, 30)
    assert two.engine.settle(one.engine.id_of(new), 12, 0)[0].kind == DONE
    assert two.used() == (12, 0)
    answer = two.engine.settle(one.engine.id_of(new), 12, 0)[0]
    assert (answer.kind, answer.counted) == (REPEAT, (12, 0))
    assert not budget.raw.exists(budget.keys.owner(new.owner))
    assert budget.raw.zscore(budget.keys.leases, new.owner) is None


def test_a_claim_that_was_handed_over_is_charged_at_the_end_of_its_lease(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    [key] = holding(one, 30)
    new = one.engine.hand_over((one.root,), key, (30, 0), 0.05)
    wait(lambda: two.used() == (30, 0))
    [charge] = two.engine.expired()
    assert (charge.id, charge.tokens, charge.who) == (one.engine.id_of(new), 30, one.engine._process.who)
    assert two.engine.settle(charge.id, 50, 0)[0].kind == LATE
    assert two.used() == (50, 0)


@pytest.mark.parametrize("done", [False, True])
def test_a_handing_over_without_an_answer_leaves_a_claim_that_can_be_settled(budget: Budget, done: bool) -> None:
    one = budget.process()
    for settle in ("commit", "release", "cancel", "settle", "again"):
        [key] = holding(one, 30)
        one.wire.lose("hand", done=done)
        with pytest.raises(BudgetUnavailable):
            one.engine.hand_over((one.root,), key, (30, 0), 60)
        if settle == "commit":
            assert one.engine.commit((one.root,), key, (30, 0), (1, 0)).kind == DONE
        elif settle == "release":
            assert one.engine.release((one.root,), key, (30, 0)).kind == DONE
        elif settle == "cancel":
            assert one.engine.cancel((one.root,), key, (30, 0)) is True
        elif settle == "settle":
            assert one.engine.settle(one.engine.id_of(key), 2, 0)[0].kind == DONE
        else:
            again = one.engine.hand_over((one.root,), key, (30, 0), 60)
            assert one.engine.settle(one.engine.id_of(again), 3, 0)[0].kind == DONE
        assert one.used()[1] == 0
    assert one.used() == (6, 0)


def test_only_an_open_claim_can_be_handed_over(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    settled, charged = holding(one, 1, 2)
    one.engine.commit((one.root,), settled, (1, 0), (1, 0))
    die(budget, one, two)
    for key in (settled, charged, one.engine.new_key()):
        with pytest.raises(LookupError):
            one.engine.hand_over((one.root,), key, (1, 0), 60)


# ---------------------------------------------------------------- the lease


def test_a_lease_is_renewed_by_tending_and_by_steps(budget: Budget) -> None:
    one, two = budget.process(lease=30), budget.process(lease=30)
    for process, step in ((one, one.engine.tend), (two, lambda: two.engine.record((two.root,), 0, 0))):
        holding(process, 1)
        owner = process.engine._process.owner
        budget.raw.zadd(budget.keys.leases, {owner: 2**40})
        step()
        assert budget.raw.zscore(budget.keys.leases, owner) == 2**40  # it is not due yet
        process.engine._process.renew_at = -1000.0
        step()
        assert abs(budget.raw.zscore(budget.keys.leases, owner) - float(budget.raw.time()[0]) - 30) < 20
        assert 0 < process.engine.tend() <= 10


def test_tending_says_when_it_has_something_to_do_and_raises_nothing(budget: Budget) -> None:
    one = budget.process(opened=False)
    assert one.engine.tend() == float("inf")
    one.open()
    holding(one, 5)
    one.wire.lose("reserve", done=True)
    with pytest.raises(BudgetUnavailable):
        one.engine.reserve((one.root,), one.engine.new_key(), 5, 0)
    one.wire.lose("cancel", done=False)
    assert one.engine.tend() == 1.0
    assert one.engine.tend() > 100
    assert one.used() == (0, 5)


def test_a_tended_process_that_was_declared_dead_has_a_lease_again(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    holding(one, 5)
    die(budget, one, two)
    one.engine._process.renew_at = 0.0
    one.engine.tend()
    assert budget.raw.zscore(budget.keys.leases, one.engine._process.owner) is not None
    assert two.used() == (5, 0)


def test_entries_that_nobody_in_the_process_knows_are_cancelled_at_the_second_look(budget: Budget) -> None:
    one = budget.process()
    kept = holding(one, 3)
    for key in holding(one, 5, 6):
        one.engine._process.claims.pop(key.number)
    number = str(next(one.engine._process.numbers))
    budget.raw.hset(budget.keys.owner(one.engine._process.owner), number, "=c done x 1 0 1 0")
    for used in ((0, 14), (0, 3)):
        one.engine._process.renew_at = 0.0
        one.engine.tend()
        assert one.used() == used
    for _ in range(2):
        one.engine._process.renew_at = 0.0
        one.engine.tend()
    assert set(budget.own(one)) == {str(kept[0].number)}


def test_letting_go_charges_what_is_open_and_ends_waiting(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    holding(one, 95)
    waiting = one.engine.new_key()
    one.engine.reserve((one.root,), waiting, 20, 0, wait=True)
    one.engine.let_go()
    assert [item.kind for item in one.engine.news if item.kind != "created"] == ["expired"]
    row = two.numbers()
    assert (row.tokens_claimed, row.tokens_held, row.waiting) == (95, 0, 0)
    assert two.engine.reserve((two.root,), two.engine.new_key(), 5, 0).kind == GRANTED
    assert one.engine.record((one.root,), 0, 0).kind == DONE  # it may come back, as another owner
    one.engine.let_go()


def test_letting_go_of_a_store_that_does_not_answer_raises_nothing(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    holding(one, 5)
    one.wire.lose("expire", done=False)
    one.engine.let_go()
    assert two.used() == (0, 5)


def test_a_forked_child_is_a_process_of_its_own(budget: Budget) -> None:
    one = budget.process()
    [key] = holding(one, 5)
    before = one.engine._process.owner
    one.wire.client.close()  # a child leaves its parent's connections alone, and here both are one
    one.engine.forked()
    holding(one, 7)
    assert one.engine._process.owner != before
    assert one.used() == (0, 12)
    one.engine.let_go()
    assert one.used() == (7, 5)
    assert key.owner == before


def test_a_process_whose_hash_was_deleted_says_so_and_takes_nothing(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    [key] = holding(one, 30)
    assert budget.raw.delete(budget.keys.owner(one.engine._process.owner)) == 1
    for _ in range(2):
        with pytest.raises(StoreLost, match="has lost what this process holds"):
            one.engine.record((one.root,), 1, 0)
        with pytest.raises(StoreLost):
            one.engine.reserve((one.root,), one.engine.new_key(), 1, 0)
    assert one.engine.commit((one.root,), key, (30, 0), (3, 0)).kind == UNKNOWN  # it has happened, and counts
    assert two.engine.record((two.root,), 1, 0).kind == DONE
    assert two.used() == (4, 30)  # nobody knows what may be given back: it stays held
