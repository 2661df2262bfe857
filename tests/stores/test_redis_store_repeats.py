"""The Redis engine where answers are lost and copies come late: a step counts once, and what was given up not at all.

A `Wire` between the engine and the server loses a script before it is done, or its answer after, and sends copies of
what was sent before. So every order of the events is made, and none is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from redis_stores import Budget, Process
from token_budget import Window
from token_budget._arguments import UNCHANGED
from token_budget.contract import BudgetUnavailable
from token_budget.stores._store import DONE, GRANTED, LEFT, REFUSED, REPEAT, SETTLED, UNKNOWN


@pytest.fixture
def budget() -> Iterator[Budget]:
    budget = Budget(tokens=100)
    yield budget
    budget.close()


def state(budget: Budget, *processes: Process) -> Any:
    """Return all that the server has, but for what passes: who has beaten when, and whose lease ends when."""
    return {
        name: budget.raw.hgetall(name)
        for name in budget.raw.scan_iter(f"{budget.keys.root}*")
        if budget.raw.type(name) == "hash"
    }


# ---------------------------------------------------------------- copies


def test_a_copy_of_a_step_has_its_answer_and_changes_nothing(budget: Budget) -> None:
    one = budget.process()
    chain = one.child("kid", tokens=50)
    key = one.engine.new_key()
    for name, step in (
        ("reserve", lambda: one.engine.reserve(chain, key, 5, 1)),
        ("commit", lambda: one.engine.commit(chain, key, (5, 1), (4, 2))),
        ("record", lambda: one.engine.record(chain, 3, 1)),
        ("record", lambda: one.engine.record(chain, 3, 1, force=True)),
        ("reset", lambda: one.engine.reset(chain[0])),
        ("caps", lambda: one.engine.set_caps(chain[0], 40, UNCHANGED, UNCHANGED)),
        ("told", lambda: one.engine.claim_threshold(chain[0], one.numbers(chain[0]).era, 5)),
        ("close", lambda: one.engine.close(chain[0])),
    ):
        step()
        before = state(budget)
        answer = one.wire.again(name)
        assert answer[0] in {"granted", "done"}, name
        assert state(budget) == before


@pytest.mark.parametrize("steps", [1, 12])
def test_a_copy_that_comes_after_its_answer_was_deleted_is_refused(budget: Budget, steps: int) -> None:
    one = budget.process()
    chain = one.child("kid", tokens=50)
    key = one.engine.new_key()
    one.engine.reserve(chain, key, 5, 0)
    late = [next(send for name, send in reversed(one.wire.sent) if name == "reserve")]
    one.engine.commit(chain, key, (5, 0), (5, 0))
    late.append(next(send for name, send in reversed(one.wire.sent) if name == "commit"))
    one.engine.record(chain, 1, 0)
    late.append(next(send for name, send in reversed(one.wire.sent) if name == "record"))
    for _ in range(steps):  # the answers are deleted by later ones
        one.engine.record(chain, 0, 0)
    before = state(budget)
    answers = [send()[0] for send in late]
    assert answers == (["cancelled", "done", "done"] if steps == 1 else ["stale"] * 3)
    assert state(budget) == before
    assert one.used(chain[0]) == (6, 0)


def test_answers_are_kept_while_an_earlier_step_is_under_way(budget: Budget) -> None:
    one = budget.process()
    chain = one.child("kid")
    once: list[str] = []

    def meanwhile(name: str) -> None:
        if name == "record" and not once:
            once.append(name)
            process = one.engine._process
            outer = dict(process.running)
            process.running.clear()  # as if it were another thread
            for _ in range(20):
                one.engine.record(chain, 1, 0)
            process.running.update(outer)
            assert len(budget.own(one)) == 20

    one.wire.before = meanwhile
    one.engine.record(chain, 1, 0)
    one.wire.heal()
    for _ in range(20):
        one.engine.record(chain, 0, 0)
    assert len(budget.own(one)) < 10
    assert one.used() == (21, 0)


# ---------------------------------------------------------------- what is given up


@pytest.mark.parametrize("done", [False, True])
def test_a_reserve_that_was_given_up_holds_nothing(budget: Budget, done: bool) -> None:
    one, two = budget.process(), budget.process()
    chain, theirs = one.child("kid", tokens=50), two.child("kid")
    key = one.engine.new_key()
    one.wire.lose("reserve", done=done)
    with pytest.raises(BudgetUnavailable):
        one.engine.reserve(chain, key, 5, 0)
    assert two.used(theirs[0]) == (0, 5 if done else 0)
    assert one.engine.tend() <= 600
    assert two.used(theirs[0]) == two.used() == (0, 0)
    assert one.wire.again("reserve")[0] in {"cancelled", "stale"}  # done late
    assert two.used(theirs[0]) == (0, 0)
    assert one.engine.reserve(chain, key, 7, 0).kind == GRANTED  # and may be tried again
    assert two.used(theirs[0]) == (0, 7)
    assert one.engine.commit(chain, key, (7, 0), (6, 0)).kind == DONE
    assert two.used() == (6, 0)


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("force", [False, True])
def test_a_record_that_was_given_up_is_undone_before_the_next_step(budget: Budget, done: bool, force: bool) -> None:
    one = budget.process()
    chain = one.child("kid", tokens=10)
    one.wire.lose("record", done=done)
    with pytest.raises(BudgetUnavailable):
        one.engine.record(chain, 8, 0, force=force)
    assert one.used(chain[0]) == (8 if done else 0, 0)
    assert one.engine.record(chain, 10, 0).kind == DONE  # all of it is there again
    assert one.wire.again("cancel") == [1 if done else 0]
    assert one.used(chain[0]) == one.used() == (10, 0)


def test_a_record_is_undone_only_in_the_era_in_which_it_was_counted(budget: Budget) -> None:
    now = [0.0]
    one = budget.process()
    chain = one.child("kid", tokens=10, window=Window.parse("every 10s", clock=lambda: now[0]))
    one.wire.lose("record", done=True)
    with pytest.raises(BudgetUnavailable):
        one.engine.record(chain, 8, 0)
    now[0] = 11.0
    assert one.engine.reserve(chain, one.engine.new_key(), 3, 0).kind == GRANTED
    assert one.used(chain[0]) == (0, 3)  # the period in which it was counted is over
    assert one.used() == (0, 3)  # the root has no periods


@pytest.mark.parametrize("name", ["reset", "caps", "close", "forget", "open"])
def test_a_change_that_was_given_up_before_it_was_done_is_not_done_late(budget: Budget, name: str) -> None:
    one = budget.process()
    chain = one.child("kid", tokens=50)
    user = one.key(one.group(tokens=9), "ann")
    one.engine.record(chain, 5, 0)
    one.engine.record(user, 5, 0)
    steps: dict[str, Callable[[], object]] = {
        "reset": lambda: one.engine.reset(chain[0]),
        "caps": lambda: one.engine.set_caps(chain[0], 1, UNCHANGED, UNCHANGED),
        "close": lambda: one.engine.close(chain[0]),
        "forget": lambda: one.engine.forget(user[0]),
        "open": lambda: one.open(chain[0], tokens=7),
    }
    before = [one.numbers(scope) for scope in (chain[0], user[0])]
    one.wire.lose(name, done=False)
    with pytest.raises(BudgetUnavailable):
        steps[name]()
    one.engine.tend()
    assert one.wire.again(name)[0] in {"cancelled", "stale"}
    assert [one.numbers(scope) for scope in (chain[0], user[0])] == before
    steps[name]()
    assert [one.numbers(scope) for scope in (chain[0], user[0])] != before


def test_a_reset_whose_answer_was_lost_is_not_repeated_over_what_others_spend(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    one.engine.record((one.root,), 5, 0)
    one.wire.lose("reset", done=True)
    with pytest.raises(BudgetUnavailable):
        one.engine.reset(one.root)
    two.engine.record((two.root,), 7, 0)
    assert one.wire.again("reset") == ["done"]
    assert two.used() == (7, 0)


# ---------------------------------------------------------------- commit and release may be repeated


@pytest.mark.parametrize("done", [False, True])
def test_a_commit_without_an_answer_may_be_repeated_and_counts_once(budget: Budget, done: bool) -> None:
    one = budget.process()
    chain = one.child("kid", tokens=50)
    key = one.engine.new_key()
    one.engine.reserve(chain, key, 9, 0)
    one.wire.lose("commit", done=done)
    with pytest.raises(BudgetUnavailable):
        one.engine.commit(chain, key, (9, 0), (4, 0))
    for _ in range(12):
        one.engine.record(chain, 0, 0)  # its mark stays, since nobody has heard it
    answer = one.engine.commit(chain, key, (9, 0), (4, 0))
    assert (answer.kind, one.used()) == (REPEAT if done else DONE, (4, 0))
    if done:
        assert answer.counted == (4, 0)
    other = one.engine.commit(chain, key, (9, 0), (6, 0))
    assert (other.kind, other.counted, one.used()) == (REPEAT, (4, 0), (4, 0))
    assert one.engine.release(chain, key, (9, 0)).kind == SETTLED
    assert one.used() == (4, 0)


@pytest.mark.parametrize("done", [False, True])
def test_a_release_without_an_answer_may_be_repeated(budget: Budget, done: bool) -> None:
    one = budget.process()
    chain = one.child("kid", tokens=50)
    key = one.engine.new_key()
    one.engine.reserve(chain, key, 9, 0)
    one.wire.lose("commit", done=done)  # the script of both
    with pytest.raises(BudgetUnavailable):
        one.engine.release(chain, key, (9, 0))
    assert one.engine.release(chain, key, (9, 0)).kind == DONE
    assert one.used() == (0, 0)


def test_a_commit_after_a_release_or_a_cancel_counts_what_it_cost(budget: Budget) -> None:
    one = budget.process()
    chain = one.child("kid", tokens=50)
    for give_back in (one.engine.release, one.engine.cancel):
        for later in (0, 12):
            one.engine.reset(one.root)
            key = one.engine.new_key()
            one.engine.reserve(chain, key, 9, 0)
            give_back(chain, key, (9, 0))
            for _ in range(later):
                one.engine.record(chain, 0, 0)
            assert one.engine.commit(chain, key, (9, 0), (4, 0)).kind == UNKNOWN
            assert one.used() == (4, 0)


# ---------------------------------------------------------------- cancel


def test_cancel_gives_back_what_is_held_and_says_so_again(budget: Budget) -> None:
    one = budget.process()
    chain = one.child("kid", tokens=50)
    key = one.engine.new_key()
    one.engine.reserve(chain, key, 9, 2)
    assert one.engine.cancel(chain, key, (9, 2)) is True
    assert one.wire.again("cancel") == [1]
    assert one.engine.cancel(chain, key, (9, 2)) is True
    row = one.numbers(chain[0])
    assert (row.tokens_claimed, row.nanos_claimed, row.in_flight) == (0, 0, 0)
    for _ in range(12):
        one.engine.record(chain, 0, 0)
    assert one.engine.cancel(chain, key, (9, 2)) is False
    assert one.numbers(chain[0]).in_flight == 0


def test_a_reserve_after_its_cancel_takes_nothing(budget: Budget) -> None:
    one = budget.process()
    chain = one.child("kid", tokens=50)
    never, asked = one.engine.new_key(), one.engine.new_key()
    assert one.engine.cancel(chain, never, (5, 0)) is False
    one.wire.lose("reserve", done=False)
    with pytest.raises(BudgetUnavailable):
        one.engine.reserve(chain, asked, 5, 0)
    assert one.engine.cancel(chain, asked, (5, 0)) is False
    assert one.wire.again("reserve")[0] in {"cancelled", "stale"}
    for key in (never, asked):
        answer = one.engine.reserve(chain, key, 5, 0)
        assert (answer.kind, len(answer.rows)) == (REFUSED, 2)
    assert one.used() == (0, 0)


def test_a_cancel_without_an_answer_may_be_repeated(budget: Budget) -> None:
    one = budget.process()
    for done in (False, True):
        key = one.engine.new_key()
        one.engine.reserve((one.root,), key, 9, 0)
        one.wire.lose("cancel", done=done)
        with pytest.raises(BudgetUnavailable):
            one.engine.cancel((one.root,), key, (9, 0))
        assert one.engine.cancel((one.root,), key, (9, 0)) is True
        assert one.used() == (0, 0)


def test_a_copy_of_a_reserve_after_leaving_takes_nothing(budget: Budget) -> None:
    one = budget.process()
    key, first = one.engine.new_key(), one.engine.new_key()
    one.engine.reserve((one.root,), first, 100, 0)
    assert one.engine.reserve((one.root,), key, 9, 0, wait=True).kind == REFUSED
    assert one.engine.leave((one.root,), key).kind == LEFT
    one.engine.release((one.root,), first, (100, 0))
    assert one.wire.again("reserve")[0] == "cancelled"
    for _ in range(12):
        one.engine.record((one.root,), 0, 0)
    assert one.wire.again("reserve")[0] == "stale"
    row = one.numbers()
    assert (row.tokens_claimed, row.waiting) == (0, 0)


# ---------------------------------------------------------------- interrupts, signal handlers, finalisers


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", ["reserve", "record"])
def test_an_interrupted_step_takes_nothing(budget: Budget, moment: str, name: str) -> None:
    one = budget.process()
    chain = one.child("kid")
    key = one.engine.new_key()

    def interrupt(other: str) -> None:
        if other == name:
            one.wire.heal()
            raise Interrupted

    setattr(one.wire, moment, interrupt)
    with pytest.raises(Interrupted):
        if name == "reserve":
            one.engine.reserve(chain, key, 5, 0)
        else:
            one.engine.record(chain, 5, 0)
    one.engine.tend()
    assert one.wire.again(name)[0] in {"cancelled", "stale"}
    assert one.used() == (0, 0)


def test_a_step_inside_a_step_of_its_thread_is_an_error_and_harms_neither(budget: Budget) -> None:
    one = budget.process()
    chain = one.child("kid")
    met: list[str] = []

    def handler(name: str) -> None:
        if name == "record" and not met:
            try:
                one.engine.record(chain, 50, 0)
            except RuntimeError as error:
                met.append(str(error))

    one.wire.before = handler
    assert one.engine.record(chain, 5, 0).kind == DONE
    assert met
    assert "signal handler" in met[0]
    one.wire.heal()
    assert one.engine.record(chain, 1, 0).kind == DONE
    assert one.used() == (6, 0)


def test_a_thread_whose_step_an_interrupt_has_kept_from_ending_goes_on(budget: Budget) -> None:
    one = budget.process()
    chain = one.child("kid")
    process = one.engine._process

    def torn() -> None:
        process.step(10.0).__enter__()  # the interrupt came before its `with` block began

    torn()
    assert one.engine.record(chain, 1, 0).kind == DONE
    for _ in range(12):
        one.engine.record(chain, 1, 0)
    assert len(budget.own(one)) == 13  # nothing is deleted while it counts as under way
    process.under_way = dict.fromkeys(process.under_way, -1000.0)
    one.engine.tend()
    for _ in range(12):
        one.engine.record(chain, 1, 0)
    assert len(budget.own(one)) < 10
