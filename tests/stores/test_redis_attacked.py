"""The Redis engine against what was found by attacking it: keys that are lost, copies that come late, what grows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from redis_stores import Budget, Process
from token_budget import Window
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreLost
from token_budget.stores._store import DONE, GRANTED, REFUSED, SETTLED
from token_budget.stores.redis._process import Step


@pytest.fixture
def budget() -> Iterator[Budget]:
    budget = Budget(tokens=100)
    yield budget
    budget.close()


def hold(process: Process, amount: int) -> Any:
    key = process.engine.new_key()
    assert process.engine.reserve((process.root,), key, amount, 0).kind == GRANTED
    return key


# ---------------------------------------------------------------- what is lost


@pytest.mark.parametrize("by", ["read", "expired", "reserve", "record", "renew", "register"])
def test_leases_that_were_deleted_are_a_lost_store_and_lock_no_money_in_silence(budget: Budget, by: str) -> None:
    dead, one = budget.process(), budget.process()
    hold(dead, 90)
    one.used()
    budget.raw.delete(budget.keys.leases)
    engine = one.engine
    with pytest.raises(StoreLost, match="who lives" if by != "register" else "has lost"):
        if by == "read":
            engine.read((one.root,))
        elif by == "expired":
            engine.expired()
        elif by == "reserve":
            engine.reserve((one.root,), engine.new_key(), 20, 0)
        elif by == "record":
            engine.record((one.root,), 20, 0)
        elif by == "renew":
            engine._process.renew_at = -1e9
            engine.record((one.root,), 1, 0)
        else:
            budget.process()


def test_leases_of_nobody_are_no_lost_store(budget: Budget) -> None:
    one = budget.process()
    one.engine.let_go()
    assert budget.process().used() == (0, 0)


def empty(budget: Budget, *, anew: bool) -> None:
    """Delete all that a budget has; another process may open it anew at once."""
    budget.raw.delete(*budget.raw.scan_iter(f"{budget.keys.root}*"))
    if anew:
        budget.process()


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("what", ["settle", "hand_over", "expired", "keys", "knows"])
def test_what_is_asked_of_an_emptied_store_is_lost_and_not_merely_unknown(
    budget: Budget, what: str, *, anew: bool
) -> None:
    one = budget.process()
    engine, chain = one.engine, one.key(group := one.group(), "ann")
    engine.record(chain, 1, 0)
    key = hold(one, 5)
    heir = engine.hand_over((one.root,), hold(one, 5), (5, 0), 60)
    empty(budget, anew=anew)
    with pytest.raises(StoreLost):
        if what == "settle":
            engine.settle(heir.id, 1, 0)
        elif what == "hand_over":
            engine.hand_over((one.root,), key, (5, 0), 60)
        elif what == "expired":
            engine.expired()
        elif what == "keys":
            engine.keys(group)
        else:
            engine.knows(chain[0])


# ---------------------------------------------------------------- what grows


def test_what_ended_processes_gave_is_forgotten_by_those_that_open(budget: Budget) -> None:
    living = budget.process()
    given = budget.keys.given(budget.keys.path)
    for _ in range(70):
        process = budget.process()
        process.engine.let_go()
        process.wire.client.close()
        assert budget.raw.hlen(given) <= 33
    assert budget.raw.hexists(given, living.engine._process.owner)


def test_a_closed_scope_keeps_nothing_of_what_processes_gave_for_it(budget: Budget) -> None:
    one = budget.process()
    kid = one.child("kid", tokens=5)[0]
    assert budget.raw.exists(budget.keys.given(kid.path))
    one.engine.close(kid)
    assert not budget.raw.exists(budget.keys.given(kid.path))
    one.open(kid, 7)
    assert not budget.raw.exists(budget.keys.given(kid.path))


def test_marks_of_settling_for_a_living_process_are_dropped_when_they_are_old(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    past = f"{budget.keys.owner(one.engine._process.owner)}:x"
    first = hold(one, 0)
    assert two.engine.settle(first.id, 0, 0)[0].kind == DONE
    text = budget.raw.hget(past, first.number)
    before, _, at = text.rpartition(" ")
    week = 7 * 86400
    budget.raw.hset(past, first.number, f"{before} {int(at) - week - 60}")
    second = hold(one, 0)
    for number in range(62):
        budget.raw.hset(past, f"9{number}", f"{before} {int(at) - week + 600}")
    assert two.engine.settle(second.id, 0, 0)[0].kind == DONE
    assert budget.raw.hlen(past) == 63
    assert not budget.raw.hexists(past, first.number)
    assert one.engine.commit((one.root,), second, (0, 0), (1, 0)).kind == SETTLED


def test_answers_to_a_process_that_never_spends_are_deleted_all_the_same(budget: Budget) -> None:
    one = budget.process()
    for cap in range(400):
        one.engine.set_caps(one.root, 1000 + cap, None, None)
        one.engine.claim_threshold(one.root, 0, cap)
    assert len(budget.own(one)) < 200
    assert len(one.engine._process.heard) < 200


# ---------------------------------------------------------------- many at once


def ended_leases(budget: Budget, one: Process, many: int) -> None:
    for _ in range(many):
        heir = one.engine.hand_over((one.root,), hold(one, 1), (1, 0), 60)
        budget.raw.zadd(budget.keys.leases, {heir.owner: 1})


def slow(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each charging take more than half of a step's time."""

    def late(name: str) -> None:
        if name == "expire":
            monkeypatch.setattr(Step, "left", lambda _: 14.0)

    process.wire.after = late


@pytest.mark.parametrize("by", ["read", "reserve", "record", "expired"])
def test_more_ended_leases_than_there_is_time_for_are_left_for_the_next_step(
    budget: Budget, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = budget.process(), budget.process()
    ended_leases(budget, one, 5)
    chain, engine = (two.root,), two.engine
    slow(two, monkeypatch)
    if by == "read":
        assert two.used() == (1, 4)
    elif by == "expired":
        assert len(engine.expired()) == 1
    elif by == "reserve":
        assert engine.reserve(chain, engine.new_key(), 99, 0).kind == REFUSED
    else:
        assert engine.record(chain, 99, 0).kind == REFUSED
    assert [name for name, _ in two.wire.sent].count("expire") == 1
    monkeypatch.undo()
    two.wire.heal()
    assert two.used() == (5, 0)
    assert len(engine.expired()) == 5


def test_what_was_charged_of_many_is_read_in_few_steps(budget: Budget, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = budget.process(), budget.process()
    one.engine.set_caps(one.root, None, None, None)
    ended_leases(budget, one, 300)
    assert two.used() == (300, 0)
    ask, asked = two.wire.client._ask, []

    def counting(*arguments: Any, **more: Any) -> Any:
        asked.append(arguments)
        return ask(*arguments, **more)

    monkeypatch.setattr(two.wire.client, "_ask", counting)
    assert len(two.engine.expired()) == 300
    assert 0 < len(asked) < 10


def test_an_error_tells_the_whole_time_out_of_a_step(budget: Budget) -> None:
    one = budget.process(timeout=3)
    with pytest.raises(BudgetUnavailable, match=r"within 0\.01 seconds, what was left of 3;"):
        one.wire.client.command("BLPOP", f"{budget.keys.root}:none", 30, timeout=0.01)


# ---------------------------------------------------------------- copies that come late


def test_a_claim_that_is_handed_over_again_after_a_lost_answer_has_the_new_lease(budget: Budget) -> None:
    one = budget.process()
    key = hold(one, 5)
    one.wire.lose("hand", done=True)
    with pytest.raises(BudgetUnavailable):
        one.engine.hand_over((one.root,), key, (5, 0), 1)
    copy = one.wire.sent[-1][1]
    heir = one.engine.hand_over((one.root,), key, (5, 0), 3600)
    now = budget.raw.time()[0]
    assert budget.raw.zscore(budget.keys.leases, heir.owner) > now + 3000
    assert copy() == ["stale"]
    assert budget.raw.zscore(budget.keys.leases, heir.owner) > now + 3000
    assert one.engine.settle(heir.id, 2, 0)[0].counted == (5, 0)


@pytest.mark.parametrize("how", ["let_go", "killed"])
def test_a_copy_of_register_brings_no_process_back_that_has_ended(budget: Budget, how: str) -> None:
    one, two = budget.process(), budget.process()
    one.engine.record((one.root,), 40, 0)
    register, record = (next(send for other, send in one.wire.sent if other == name) for name in ("register", "record"))
    owner = budget.keys.owner(one.engine._process.owner)
    if how == "let_go":
        one.engine.let_go()
    else:
        budget.kill(one)
    assert two.used() == (40, 0)
    assert register() == ["ended"]
    assert record()[0] in {"owner", "done"}  # done: it was not acknowledged, and its answer is kept
    assert two.used() == (40, 0)
    assert not budget.raw.exists(owner)


def test_a_process_that_ended_before_it_knew_that_it_is_registered_goes_on_as_another(budget: Budget) -> None:
    one, two = budget.process(opened=False), budget.process()

    def ended(name: str) -> None:
        if name == "register":
            one.wire.heal()
            budget.kill(one)
            two.used()
            raise BudgetUnavailable("the tests lose it")

    one.wire.after = ended
    with pytest.raises(BudgetUnavailable):
        one.open()
    first = one.engine._process.owner
    one.open()
    assert one.engine._process.owner != first
    assert one.engine.record((one.root,), 3, 0).kind == DONE


# ---------------------------------------------------------------- eviction


def test_what_was_charged_or_settled_has_no_expiry_where_such_keys_are_evicted_and_is_deleted_later(
    budget: Budget,
) -> None:
    one, two, three = (budget.process() for _ in range(3))
    for process in (one, two, three):
        process.wire.volatile = True
    charged, settled = hold(one, 5), hold(three, 5)
    budget.kill(one)
    assert [charge.id for charge in two.engine.expired()] == [charged.id]
    assert two.engine.settle(settled.id, 1, 0)[0].kind == DONE
    pasts = [f"{budget.keys.owner(claim.owner)}:x" for claim in (charged, settled)]
    assert [budget.raw.ttl(past) for past in pasts] == [-1, -1]
    assert [charge.id for charge in two.engine.expired()] == [charged.id]
    week = 7 * 86400 + 60
    for claim in (charged, settled):
        assert budget.raw.zincrby(budget.keys.charges, -week, claim.owner) > 0
    other = hold(three, 1)
    assert two.engine.settle(other.id, 1, 0)[0].kind == DONE
    assert [budget.raw.exists(past) for past in pasts] == [0, 1]  # the second has a new mark
    assert two.engine.expired() == []


@pytest.mark.parametrize("by", ["cancel", "commit", "release"])
def test_a_scope_whose_time_is_over_as_its_last_claim_ends_leaves_no_part_of_itself(budget: Budget, by: str) -> None:
    one = budget.process()
    chain, key = one.key(one.group(tokens=9, window=Window.parse("every 1h")), "ann"), one.engine.new_key()
    assert one.engine.reserve(chain, key, 5, 0).kind == GRANTED
    place = chain[0].handle
    words = list(place.words)
    assert int(words[2]) > 0  # when it expires, in milliseconds
    words[2] = "1"
    chain[0].handle = place._replace(words=tuple(words))
    if by == "cancel":
        assert one.engine.cancel(chain, key, (5, 0))
    elif by == "commit":
        assert one.engine.commit(chain, key, (5, 0), (2, 0)).kind == DONE
    else:
        assert one.engine.release(chain, key, (5, 0)).kind == DONE
    assert budget.row(chain[0].path) == {}
    assert one.numbers(one.root).tokens_held == 0
