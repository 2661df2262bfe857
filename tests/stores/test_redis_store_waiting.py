"""The Redis engine's lines: tickets in the order of arrival over all processes, who is passed over, who is woken."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from redis_stores import CLUSTERED, Budget, Process, wait
from token_budget import Window
from token_budget._arguments import UNCHANGED
from token_budget.stores._store import DONE, GRANTED, LEFT, REFUSED


@pytest.fixture
def budget() -> Iterator[Budget]:
    budget = Budget(tokens=10)
    yield budget
    budget.close()


def full(process: Process, amount: int = 10) -> Any:
    key = process.engine.new_key()
    assert process.engine.reserve((process.root,), key, amount, 0).kind == GRANTED
    return key


def queue(process: Process, tokens: int, chain: Any = None) -> Any:
    """Let a claim wait; return it."""
    key = process.engine.new_key()
    assert process.engine.reserve(chain or (process.root,), key, tokens, 0, wait=True).kind == REFUSED
    return key


def tries(process: Process, key: Any, tokens: int, chain: Any = None) -> Any:
    return process.engine.reserve(chain or (process.root,), key, tokens, 0, wait=True)


def line(budget: Budget, path: str) -> list[str]:
    found: list[str] = budget.raw.zrange(f"{budget.keys.root}:w:{path}", 0, -1)
    assert len(found) == int(budget.row(path)["w"])
    return found


def silent(budget: Budget, *processes: Process) -> None:
    """Let processes have beaten last longer ago than any that lives."""
    for process in processes:
        budget.raw.zadd(budget.keys.beats, {process.engine._process.owner: 1})


# ---------------------------------------------------------------- tickets


def test_room_goes_to_the_oldest_whatever_its_process(budget: Budget) -> None:
    one, two, three = (budget.process() for _ in range(3))
    held = full(one)
    first, second, third = queue(two, 4), queue(one, 4), queue(three, 1)
    assert [row.waiting for row in one.engine.read((one.root,))] == [3]
    one.engine.release((one.root,), held, (10, 0))
    for answer in (tries(three, third, 1), tries(one, second, 4)):
        assert (answer.kind, answer.at) == (REFUSED, 0)
    assert one.engine.reserve((one.root,), one.engine.new_key(), 1, 0).kind == REFUSED  # nor a newcomer
    assert one.engine.record((one.root,), 1, 0).kind == REFUSED
    assert one.engine.record((one.root,), 1, 0, force=True).kind == DONE
    assert tries(two, first, 4).kind == GRANTED
    assert tries(three, third, 1).kind == REFUSED
    assert tries(one, second, 4).kind == GRANTED
    assert tries(three, third, 1).kind == GRANTED
    assert one.numbers().waiting == 0
    assert one.engine.record((one.root,), 0, 0).kind == DONE


def test_tickets_grow_in_the_order_of_arrival_and_are_kept(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    full(one)
    keys = [one.engine.new_key(), two.engine.new_key(), one.engine.new_key()]
    tickets = [tries(process, key, 5).ticket for process, key in zip((one, two, one), keys, strict=True)]
    assert 0 < tickets[0] < tickets[1] < tickets[2]
    assert tries(two, keys[1], 5).ticket == tickets[1]
    assert one.engine.reserve((one.root,), one.engine.new_key(), 5, 0).ticket == 0
    assert one.wire.again("reserve")[0] == "refused"
    assert len(line(budget, one.root.path)) == 3


def test_a_copy_of_a_step_that_took_a_ticket_takes_no_other(budget: Budget) -> None:
    one = budget.process()
    full(one)
    queue(one, 5)
    before = budget.row(one.root.path)
    assert one.wire.again("reserve")[0] == "refused"
    assert budget.row(one.root.path) == before


def test_who_moves_on_to_wait_at_another_scope_keeps_its_place_in_the_order(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    chain = one.child("kid", tokens=5)
    theirs = two.child("kid")
    other = two.child("other")
    small, large = one.engine.new_key(), full(one, 6)
    assert one.engine.reserve(chain, small, 4, 0).kind == GRANTED
    first = queue(one, 5, chain)
    assert tries(one, first, 5, chain).at == 0
    second = queue(two, 4, other)
    assert tries(two, second, 4, other).at == 1
    one.engine.release(chain, small, (4, 0))
    answer = tries(one, first, 5, chain)
    assert (answer.kind, answer.at) == (REFUSED, 1)  # there is room in its own scope now, and not in the root
    assert [row.waiting for row in one.engine.read(chain)] == [0, 2]
    assert two.engine.record(theirs, 0, 0).kind == REFUSED
    assert tries(two, second, 4, other).kind == REFUSED  # the first is older
    one.engine.release((one.root,), large, (6, 0))
    assert tries(two, second, 4, other).kind == REFUSED
    assert tries(one, first, 5, chain).kind == GRANTED
    assert tries(two, second, 4, other).kind == GRANTED
    assert two.numbers().waiting == 0


def test_who_waits_for_one_scope_holds_up_nobody_who_does_not_need_it(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    chain, other = one.child("kid", tokens=5), two.child("other", tokens=5)
    assert one.engine.reserve(chain, one.engine.new_key(), 5, 0).kind == GRANTED
    queue(one, 1, chain)
    assert two.engine.reserve(other, two.engine.new_key(), 5, 0).kind == GRANTED
    assert two.engine.record((two.root,), 0, 0).kind == DONE


def test_leaving_gives_the_next_its_turn(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    held = full(one, 9)
    first, second = queue(one, 5), queue(two, 1)
    answer = one.engine.leave((one.root,), first)
    assert (answer.kind, answer.at, answer.rows[0].tokens_claimed) == (LEFT, 0, 9)
    assert tries(two, second, 1).kind == GRANTED
    assert one.engine.leave((one.root,), held).kind == GRANTED
    assert one.engine.leave((one.root,), one.engine.new_key()).kind == LEFT
    assert one.numbers().waiting == 0


def test_what_cancels_one_who_waits_takes_it_out_of_the_line(budget: Budget) -> None:
    one = budget.process()
    full(one)
    keys = [queue(one, 1), queue(one, 1)]
    assert one.engine.cancel((one.root,), keys[0], (1, 0)) is False
    assert line(budget, one.root.path) == [one.engine.id_of(keys[1])]
    assert tries(one, keys[0], 1).kind == REFUSED
    assert line(budget, one.root.path) == [one.engine.id_of(keys[1])]


# ---------------------------------------------------------------- who is passed over


@pytest.mark.parametrize("by", ["waiter", "newcomer", "record"])
def test_one_whose_process_has_stopped_beating_is_passed_over(budget: Budget, by: str) -> None:
    one, two = budget.process(), budget.process()
    held = full(one)
    first = queue(one, 4)
    second = queue(two, 4)
    one.engine.release((one.root,), held, (10, 0))
    assert tries(two, second, 4).kind == REFUSED
    silent(budget, one)
    if by == "waiter":
        assert tries(two, second, 4).kind == GRANTED
    else:
        silent(budget, two)
        if by == "newcomer":
            assert two.engine.reserve((two.root,), two.engine.new_key(), 4, 0).kind == GRANTED
        else:
            assert two.engine.record((two.root,), 4, 0).kind == DONE
        assert tries(two, second, 4).kind == GRANTED
    assert budget.row(one.root.path)["w"] == "0"
    full(two, 10 - two.numbers().tokens_claimed)
    assert tries(one, first, 4).kind == REFUSED  # it comes back with its old ticket
    assert line(budget, one.root.path) == [one.engine.id_of(first)]


def test_one_who_was_passed_over_comes_back_before_those_who_came_later(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    held = full(one)
    first, second = queue(one, 4), queue(two, 10)
    silent(budget, one)
    one.engine.release((one.root,), held, (3, 0))
    assert tries(one, first, 4).kind == GRANTED
    assert tries(two, second, 10).kind == REFUSED


def test_a_beat_from_a_server_whose_clock_was_ahead_counts_as_none(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    held = full(one)
    queue(one, 4)
    one.engine.release((one.root,), held, (10, 0))
    budget.raw.zadd(budget.keys.beats, {one.engine._process.owner: 2**40})
    assert two.engine.record((two.root,), 1, 0).kind == DONE


def test_a_count_of_waiters_without_any_is_mended(budget: Budget) -> None:
    one = budget.process()
    budget.raw.hset(budget.keys.root, "w", 3)
    assert one.engine.record((one.root,), 1, 0).kind == DONE
    assert one.numbers().waiting == 0


def test_a_key_that_is_made_anew_knows_who_waits_there(budget: Budget) -> None:
    one = budget.process()
    chain = one.key(one.group(tokens=5, window=Window.daily()), "ann")
    one.engine.record(chain, 5, 0)
    key = queue(one, 1, chain)
    budget.raw.delete(budget.keys.scope(chain[0].path))
    assert one.engine.record(chain, 1, 0).kind == REFUSED
    assert one.numbers(chain[0]).waiting == 1
    assert tries(one, key, 1, chain).kind == GRANTED
    assert one.numbers(chain[0]).waiting == 0


# ---------------------------------------------------------------- who is woken


def messages(budget: Budget, *processes: Process) -> Any:
    """Return what hears the messages to these processes, and one that `told` sends."""
    pubsub: Any = budget.raw.pubsub(ignore_subscribe_messages=True)
    channels = [budget.keys.channel(name) for name in ("end", *(one.engine._process.owner for one in processes))]
    (pubsub.ssubscribe if CLUSTERED else pubsub.subscribe)(*channels)
    while pubsub.get_message(timeout=0.05):
        pass
    assert told(budget, pubsub) == []
    return pubsub


def told(budget: Budget, pubsub: Any) -> list[str]:
    """Return the owners that were told anything since the last call."""
    (budget.raw.spublish if CLUSTERED else budget.raw.publish)(budget.keys.channel("end"), "")
    owners: list[str] = []
    while True:
        message = pubsub.get_message(timeout=30)
        if message is not None:
            owner = message["channel"].rpartition(":")[2]
            if owner == "end":
                return owners
            owners.append(owner)


def test_nobody_is_told_anything_while_nobody_waits(budget: Budget) -> None:
    one = budget.process()
    pubsub = messages(budget, one)
    one.engine.release((one.root,), full(one), (10, 0))
    one.engine.record((one.root,), 1, 0)
    one.engine.reset(one.root)
    assert told(budget, pubsub) == []
    pubsub.close()


def test_whatever_may_give_room_tells_the_process_of_the_first_who_waits(budget: Budget) -> None:
    now = [0.0]
    one, two, three = (budget.process() for _ in range(3))
    window = Window.parse("every 10s", clock=lambda: now[0])
    for process in (one, two, three):
        process.open(window=window)
    pubsub = messages(budget, one, two, three)
    owner, other = two.engine._process.owner, three.engine._process.owner
    held = [full(one, 2) for _ in range(5)]
    first, second = queue(two, 8), queue(three, 1)

    def after(step: Any) -> list[str]:
        step()
        return sorted(set(told(budget, pubsub)))

    assert after(lambda: one.engine.record((one.root,), 1, 0)) == []
    assert after(lambda: one.engine.release((one.root,), held[0], (2, 0))) == [owner]
    assert after(lambda: one.engine.commit((one.root,), held[1], (2, 0), (1, 0))) == [owner]
    assert after(lambda: one.engine.cancel((one.root,), held[2], (2, 0))) == [owner]
    assert after(lambda: one.engine.settle(one.engine.id_of(held[3]), 1, 0)) == [owner]
    assert after(lambda: one.engine.set_caps(one.root, 9, UNCHANGED, UNCHANGED)) == [owner]
    assert after(lambda: one.engine.reset(one.root)) == [owner]
    now[0] = 15.0
    assert after(lambda: one.engine.record((one.root,), 0, 0, force=True)) == [owner]
    assert after(lambda: tries(two, first, 8)) == []  # 2 are held, of 9
    assert after(lambda: one.engine.release((one.root,), held[4], (2, 0))) == [owner]
    assert after(lambda: tries(two, first, 8)) == [other]  # it is granted, and the next may have its turn
    assert after(lambda: tries(three, second, 1)) == []
    pubsub.close()


def test_a_watch_returns_when_room_comes(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    held = full(one)
    key = queue(two, 4)
    heads = [((two.root,), key, 4, 0)]
    returned = threading.Event()
    rounds: list[Any] = []

    def watcher() -> None:
        while tries(two, key, 4).kind != GRANTED:
            rounds.append(two.engine.watch(heads, 20.0))
        returned.set()

    thread = threading.Thread(target=watcher)
    thread.start()
    wait(lambda: rounds)  # the first tells that it listens now
    one.engine.release((one.root,), held, (10, 0))
    assert returned.wait(15.0)  # a message, for nobody looks before 20 seconds are over
    thread.join()


def test_a_watch_that_hears_nothing_ends_in_time_and_has_beaten(budget: Budget) -> None:
    one = budget.process()
    full(one)
    heads = [((one.root,), queue(one, 4), 4, 0)]
    one.engine.watch(heads, 0.01)
    one.engine._watcher._beaten = -1000.0
    silent(budget, one)
    assert not one.engine.watch(heads, 0.01)
    assert budget.raw.zscore(budget.keys.beats, one.engine._process.owner) > 1


def test_of_many_who_wait_a_watch_returns_those_for_whom_something_has_changed(budget: Budget) -> None:
    now = [0.0]
    one, two = budget.process(opened=False), budget.process(opened=False)
    one.open()
    two.open()
    window = Window.parse("every 10s", clock=lambda: now[0])
    group, theirs = one.group(tokens=5), two.group()
    clocked = one.child("clocked", tokens=5, window=window)
    chains = [*[one.key(group, f"k{number}") for number in range(9)], clocked]
    heads: list[Any] = []
    holds: list[Any] = []
    for chain in chains:
        holds.append(one.engine.new_key())
        one.engine.reserve(chain, holds[-1], 5, 0)
        heads.append((chain, queue(one, 1, chain), 1, 0))
    keys = [key for _, key, _, _ in heads]

    def changed() -> set[int]:
        found = one.engine.watch(heads, 0.01)
        return set() if not found else {keys.index(key) for key in found}

    assert changed() == set(range(10))  # all, at the first look
    assert changed() == set()
    two.engine.settle(one.engine.id_of(holds[3]), 5, 0)  # changes the root too, which all need
    assert changed() == set(range(10))
    two.engine.set_caps(two.key(theirs, "k4")[0], 9, UNCHANGED, UNCHANGED)
    assert changed() == {4}
    one.engine.leave(chains[5], keys[5])
    assert changed() == {5}
    now[0] = 12.0
    assert changed() == {9}
    two.engine.set_group(theirs, 50, UNCHANGED, UNCHANGED)
    assert changed() == set(range(9))
    assert changed() == set()


def test_a_watch_of_a_process_that_was_declared_dead_lets_all_try_again(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    full(two)
    keys = [queue(one, 1) for _ in range(6)]
    heads = [((one.root,), key, 1, 0) for key in keys]
    one.engine.watch(heads, 0.01)
    budget.kill(one)
    two.engine.expired()
    assert two.numbers().waiting == 0
    assert one.engine.watch(heads, 0.01) == keys
    one.engine.watch(heads, 0.01)
    assert [tries(one, key, 1).ticket > 0 for key in keys] == [True] * 6
    assert two.numbers().waiting == 6
