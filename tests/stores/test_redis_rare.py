"""The Redis engine where two things happen at once that seldom do: what a step meets that was not so when it began.

Each is made by what happens between two scripts of a step, and none is waited for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from redis_stores import Budget, Process
from token_budget import PoolClosed, Window
from token_budget._arguments import UNCHANGED
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError, StoreLost
from token_budget.stores._store import DONE, GRANTED, LEFT, REFUSED, UNKNOWN, News
from token_budget.stores.redis import _mending
from token_budget.stores.redis._process import Step
from token_budget.stores.redis._scopes import _LOOKS


@pytest.fixture
def budget() -> Iterator[Budget]:
    budget = Budget(tokens=100)
    yield budget
    budget.close()


def hold(process: Process, amount: int, chain: Any = None) -> Any:
    key = process.engine.new_key()
    assert process.engine.reserve(chain or (process.root,), key, amount, 0).kind == GRANTED
    return key


def once(process: Process, name: str, do: Callable[[], object], *, after: bool = False) -> None:
    """Let something happen before the next script of a name is sent, or after it was run."""

    def meet(other: str) -> None:
        if other == name:
            process.wire.heal()
            do()

    setattr(process.wire, "after" if after else "before", meet)


@contextlib.contextmanager
def another_thread(process: Process) -> Iterator[None]:
    """Do what is in the block as another thread of the process would, while a step is under way."""
    running = process.engine._process.running
    mine = dict(running)
    running.clear()
    try:
        yield
    finally:
        running.update(mine)


# ---------------------------------------------------------------- a step that was stopped, and is overtaken


def overtake(process: Process) -> None:
    """Let a step that is under way have been stopped for so long that it counts as ended, and others end meanwhile."""
    steps = process.engine._process.under_way
    steps.update(dict.fromkeys(steps, -1e9))
    with another_thread(process):
        process.engine.tend()
        assert process.engine.claim_threshold(process.root, process.numbers().era, 5)


STOPPED: dict[str, tuple[str, Callable[[Process, Any, Any, Any], object]]] = {
    "reserve": ("reserve", lambda one, chain, held, waits: one.engine.reserve(chain, one.engine.new_key(), 5, 0)),
    "record": ("record", lambda one, chain, held, waits: one.engine.record(chain, 5, 0)),
    "force": ("record", lambda one, chain, held, waits: one.engine.record(chain, 5, 0, force=True)),
    "commit": ("commit", lambda one, chain, held, waits: one.engine.commit(chain, held, (7, 0), (5, 0))),
    "release": ("commit", lambda one, chain, held, waits: one.engine.release(chain, held, (7, 0))),
    "cancel": ("cancel", lambda one, chain, held, waits: one.engine.cancel(chain, held, (7, 0))),
    "leave": ("leave", lambda one, chain, held, waits: one.engine.leave(chain, waits)),
    "hand over": ("hand", lambda one, chain, held, waits: one.engine.hand_over(chain, held, (7, 0), 60)),
    "reset": ("reset", lambda one, chain, held, waits: one.engine.reset(chain[0])),
    "caps": ("caps", lambda one, chain, held, waits: one.engine.set_caps(chain[0], 50, UNCHANGED, UNCHANGED)),
    "close": ("close", lambda one, chain, held, waits: one.engine.close(chain[0])),
}


@pytest.mark.parametrize("what", STOPPED)
def test_a_step_that_was_stopped_and_overtaken_changes_nothing_and_may_be_done_anew(budget: Budget, what: str) -> None:
    one = budget.process()
    chain, waits = one.child("kid", tokens=60), one.engine.new_key()
    one.engine.record(chain, 1, 0)
    held = hold(one, 7, chain)
    if what == "leave":
        assert one.engine.reserve(chain, waits, 55, 0, wait=True).kind == REFUSED
    before = [one.numbers(scope)._replace(told=()) for scope in chain]
    name, step = STOPPED[what]
    once(one, name, lambda: overtake(one))
    with pytest.raises(BudgetUnavailable, match="was stopped for long"):
        step(one, chain, held, waits)
    one.engine.tend()
    assert [one.numbers(scope)._replace(told=()) for scope in chain] == before
    step(one, chain, held, waits)
    after = [one.numbers(scope)._replace(told=()) for scope in chain]
    assert (after == before) is (what == "hand over")


@pytest.mark.parametrize("what", ["record", "caps"])
def test_a_step_that_was_cancelled_as_one_that_nobody_knows_changes_nothing(budget: Budget, what: str) -> None:
    one = budget.process()
    one.engine.record((one.root,), 1, 0)
    process = one.engine._process
    before = one.numbers()

    def cancelled() -> None:
        assert budget.raw.hset(budget.keys.owner(process.owner), str(next(reversed(process.under_way))), "=x") == 1

    once(one, what, cancelled)
    with pytest.raises(BudgetUnavailable, match="was stopped for long"):
        if what == "record":
            one.engine.record((one.root,), 5, 0)
        else:
            one.engine.set_caps(one.root, 50, UNCHANGED, UNCHANGED)
    assert one.numbers() == before


def test_the_answer_of_a_step_under_way_is_not_taken_for_one_that_nobody_knows(budget: Budget) -> None:
    one = budget.process()
    process, era, copies = one.engine._process, one.numbers().era, []
    for _ in range(9):  # which nobody knows, so that the process looks
        budget.raw.hset(budget.keys.owner(process.owner), str(next(process.numbers)), "=c done x 1 0 1 0")

    def looked_twice() -> None:
        with another_thread(one):
            for _ in range(2):
                process.renew_at = 0.0
                one.engine.tend()
        copies.append(one.wire.again("told"))

    once(one, "told", looked_twice, after=True)
    assert one.engine.claim_threshold(one.root, era, 7)
    assert copies == [["done", 1]]
    assert [name for name, _ in one.wire.sent].count("cancel") == 9  # it has looked, and cancelled the others


# ---------------------------------------------------------------- what is given up


@pytest.mark.parametrize("lost", ["scope", "server"])
def test_what_cannot_be_cancelled_holds_up_no_other_step(budget: Budget, lost: str) -> None:
    one = budget.process()
    chain = one.child("kid")
    one.wire.lose("reserve", done=True)
    with pytest.raises(BudgetUnavailable):
        one.engine.reserve(chain, one.engine.new_key(), 5, 0)

    def refused() -> None:
        raise StoreError("the server forbids it")

    if lost == "scope":
        assert budget.raw.delete(budget.keys.scope(chain[0].path)) == 1
    else:
        once(one, "cancel", refused)
    assert one.engine.record((one.root,), 3, 0).kind == DONE
    assert not one.engine._process.given_up
    assert one.used() == (3, 5)


def test_a_record_that_was_given_up_is_undone_once_a_clock_that_has_failed_tells_the_time_again(budget: Budget) -> None:
    fails = [False]

    def clock() -> float:
        if fails[0]:
            raise OSError("no clock")
        return 5.0

    one, two = budget.process(), budget.process()
    window = Window.parse("every 10s", clock=clock)
    ann = one.key(one.group(tokens=50, window=window), "ann")
    one.engine.record(ann, 1, 0)
    one.wire.lose("record", done=True)
    with pytest.raises(BudgetUnavailable):
        one.engine.record(ann, 4, 0)
    assert two.engine.forget(two.key(two.group(), "ann")[0])
    fails[0] = True
    assert one.engine.record((one.root,), 10, 0).kind == DONE  # no other step is kept from being done
    assert one.used() == (15, 0)
    fails[0] = False
    one.engine.tend()
    assert one.used() == (11, 0)
    assert one.used(ann[0]) == (0, 0)  # it is another scope than the one in which that was counted


# ---------------------------------------------------------------- claims


def test_a_claim_that_has_left_the_line_may_be_reserved_again(budget: Budget) -> None:
    one = budget.process()
    held, key = hold(one, 100), one.engine.new_key()
    assert one.engine.reserve((one.root,), key, 9, 0, wait=True).kind == REFUSED
    assert one.engine.leave((one.root,), key).kind == LEFT
    one.engine.release((one.root,), held, (100, 0))
    before = one.engine.id_of(key)
    assert one.engine.reserve((one.root,), key, 9, 0).kind == GRANTED
    assert one.engine.id_of(key) != before  # a copy of the first still takes nothing
    assert one.engine.commit((one.root,), key, (9, 0), (8, 0)).kind == DONE
    assert one.used() == (8, 0)


def test_settling_finds_a_claim_that_is_handed_over_meanwhile(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    key = hold(one, 9)
    once(two, "commit", lambda: one.engine.hand_over((one.root,), key, (9, 0), 60))
    answer, paths = two.engine.settle(one.engine.id_of(key), 4, 0)
    assert (answer.kind, answer.counted, paths) == (DONE, (9, 0), (one.root.path,))
    assert two.used() == (4, 0)


@pytest.mark.parametrize("granted", [False, True])
def test_who_leaves_the_line_after_its_process_was_declared_dead_holds_nothing(budget: Budget, granted: bool) -> None:
    one, two = budget.process(), budget.process()
    held, key = hold(two, 100), one.engine.new_key()
    assert one.engine.reserve((one.root,), key, 9, 0, wait=True).kind == REFUSED
    if granted:  # and nobody has heard it
        two.engine.release((two.root,), held, (100, 0))
        assert one.wire.again("reserve")[0] == "granted"
    owner = one.engine._process.owner
    budget.kill(one)
    two.engine.expired()
    assert two.used() == ((9, 0) if granted else (0, 100))
    answer = one.engine.leave((one.root,), key)
    assert (answer.kind, answer.rows[0].tokens_claimed) == (LEFT, 0 if granted else 100)
    assert one.engine._process.owner != owner
    assert two.engine.expired() == []


def test_handing_over_a_claim_of_a_process_whose_hash_was_deleted_says_what_is_lost(budget: Budget) -> None:
    one = budget.process()
    key = hold(one, 30)
    assert budget.raw.delete(budget.keys.owner(one.engine._process.owner)) == 1
    with pytest.raises(StoreLost, match="has lost what this process holds"):
        one.engine.hand_over((one.root,), key, (30, 0), 60)


def test_a_settled_claim_cannot_be_handed_over_and_its_process_goes_on_as_itself(budget: Budget) -> None:
    one = budget.process()
    key, owner = hold(one, 30), one.engine._process.owner
    one.engine.commit((one.root,), key, (30, 0), (3, 0))
    with pytest.raises(LookupError, match="is not open"):
        one.engine.hand_over((one.root,), key, (30, 0), 60)
    assert one.engine._process.owner == owner
    assert one.used() == (3, 0)


def test_a_claim_shows_its_id(budget: Budget) -> None:
    one = budget.process()
    key = one.engine.new_key()
    assert repr(key) == f"<Claim {one.engine.id_of(key)}>"


# ---------------------------------------------------------------- scopes that are gone


@pytest.mark.parametrize("how", ["lost", "closed"])
@pytest.mark.parametrize("what", ["caps", "told", "close", "reset"])
def test_a_named_scope_that_is_gone_is_lost_unless_it_was_closed(budget: Budget, what: str, how: str) -> None:
    one = budget.process()
    kid = one.child("kid", tokens=9)[0]
    if how == "closed":
        one.engine.close(kid)
    assert budget.raw.delete(budget.keys.scope(kid.path)) == 1  # a week later, if it was closed
    steps: dict[str, Callable[[], object]] = {
        "caps": lambda: one.engine.set_caps(kid, 5, UNCHANGED, UNCHANGED),
        "told": lambda: one.engine.claim_threshold(kid, 1, 5),
        "close": lambda: one.engine.close(kid),
        "reset": lambda: one.engine.reset(kid),
    }
    with pytest.raises(PoolClosed if how == "closed" else StoreLost, match="kid"):
        steps[what]()


def test_a_threshold_of_a_key_that_was_forgotten_is_of_no_era_of_the_new_one(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    ann = one.key(one.group(tokens=9), "ann")
    one.engine.record(ann, 9, 0)
    era = one.numbers(ann[0]).era
    assert two.engine.forget(two.key(two.group(), "ann")[0])
    assert not one.engine.claim_threshold(ann[0], era, 10**9)
    assert one.engine.claim_threshold(ann[0], one.numbers(ann[0]).era, 10**9)


def test_a_threshold_is_told_by_a_process_that_was_declared_dead_as_another(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    one.engine.record((one.root,), 1, 0)
    owner = one.engine._process.owner
    budget.kill(one)
    era = two.numbers().era
    assert one.engine.claim_threshold(one.root, era, 5)
    assert one.engine._process.owner != owner
    assert not two.engine.claim_threshold(two.root, era, 5)


def test_caps_of_a_key_that_is_forgotten_meanwhile_are_set_and_gone_with_it(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    ann, theirs = one.key(one.group(tokens=9), "ann"), two.key(two.group(), "ann")
    one.engine.record(ann, 9, 0)
    assert one.engine.claim_threshold(ann[0], one.numbers(ann[0]).era, 10**9)
    once(one, "caps", lambda: two.engine.forget(theirs[0]), after=True)
    one.engine.set_caps(ann[0], 20, UNCHANGED, UNCHANGED)
    assert not one.engine.knows(ann[0])
    assert [name for name, _ in one.wire.sent].count("told") == 1  # nothing is left to be armed


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("below", ["root", "key"])
def test_keys_whose_group_is_gone_are_lost_to_who_sets_its_caps(budget: Budget, below: str, when: str) -> None:
    one = budget.process()
    above = None if below == "root" else one.key(one.group("user"), "ann")[0]
    if above is not None:
        one.engine.record(Process.chain(above), 1, 0)
    group = one.group("step", above, tokens=9)

    def gone() -> None:
        assert budget.raw.delete(f"{budget.keys.root}:g:{group.path}") == 1

    once(one, "caps", gone, after=when == "after")
    with pytest.raises(StoreLost, match="has lost the keys"):
        one.engine.set_group(group, 5, UNCHANGED, UNCHANGED)
    assert [name for name, _ in one.wire.sent].count("caps") == 1


def test_a_root_that_is_deleted_while_it_is_opened_is_not_made_where_it_must_not_be(budget: Budget) -> None:
    budget.process()
    one = budget.process(opened=False)
    once(one, "open", lambda: budget.raw.delete(budget.keys.root, budget.keys.names))
    with pytest.raises(StoreLost, match="create=False"):
        one.open(create=False)
    assert not budget.raw.exists(budget.keys.root)


def test_a_named_scope_that_the_store_has_as_a_keys_is_an_error(budget: Budget) -> None:
    one = budget.process()
    chain = one.child("kid")
    revision = budget.row(chain[0].path)["g"]
    budget.raw.hset(budget.keys.scope(chain[0].path), mapping={"v": 3, "g": f"{revision}1"})
    with pytest.raises(StoreError, match="is no key's"):
        one.engine.record(chain, 1, 0)
    assert one.used() == (0, 0)


def test_a_tree_that_others_change_all_the_time_leaves_half_of_the_time_for_what_is_after_it(
    budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = budget.process(), budget.process()
    ann, looks = two.key(two.group(), "ann"), []

    def more(name: str) -> None:
        if name == "read":
            looks.append(name)
            two.engine.reset(ann[0])

    one.wire.after = more
    one.engine.tree(one.root)
    assert len(looks) == 1 + _LOOKS  # of the leases, and of the rows
    monkeypatch.setattr(Step, "left", lambda _: 14.0)  # of 30 seconds
    looks.clear()
    one.engine.tree(one.root)
    assert len(looks) == 2


# ---------------------------------------------------------------- periods


def test_a_period_that_ended_is_told_by_who_opens_with_another_window(budget: Budget) -> None:
    now = [5.0]
    one, two = budget.process(), budget.process()
    chain = one.child("kid", tokens=9, window=Window.parse("every 10s", clock=lambda: now[0]))
    one.engine.record(chain, 4, 0)
    theirs = two.child("kid", window=chain[0].window)
    now[0] = 15.0
    two.open(theirs[0], window=Window.parse("every 7s", clock=lambda: now[0]), how="mine")
    assert list(two.engine.news) == [News("roll-over", theirs[0].path)]
    assert (two.used(theirs[0]), two.numbers(theirs[0]).start) == ((0, 0), 14.0)


def test_a_period_that_ended_is_told_by_who_sets_another_window(budget: Budget) -> None:
    now = [5.0]
    one = budget.process()
    chain = one.child("kid", tokens=9, window=Window.parse("every 10s", clock=lambda: now[0]))
    one.engine.record(chain, 4, 0)
    one.engine.news.clear()
    for moment, left, news in ((8.0, 4, []), (15.0, 0, [News("roll-over", chain[0].path)])):
        now[0] = moment
        window = Window.parse("every 10s" if left == 0 else "every 9s", clock=lambda: now[0])
        one.engine.set_caps(chain[0], UNCHANGED, UNCHANGED, window)
        assert (one.used(chain[0]), list(one.engine.news)) == ((left, 0), news)


@pytest.mark.parametrize(("moment", "left"), [(8.0, 4), (15.0, 0)])
def test_a_key_is_shown_as_its_next_step_finds_it_after_another_window_of_its_group(
    budget: Budget, moment: float, left: int
) -> None:
    now = [5.0]
    one = budget.process()
    group = one.group(tokens=9, window=Window.parse("every 10s", clock=lambda: now[0]))
    ann = one.key(group, "ann")
    one.engine.record(ann, 4, 0)
    one.engine.news.clear()
    now[0] = moment
    one.engine.set_group(group, UNCHANGED, UNCHANGED, Window.parse("every 7s", clock=lambda: now[0]))
    shown = one.numbers(ann[0])
    assert (shown.tokens_claimed, shown.start) == (left, moment // 7 * 7)
    assert list(one.engine.news) == []  # a look changes nothing
    one.engine.record(ann, 0, 0)
    assert one.numbers(ann[0])._replace(era=0) == shown._replace(era=0)
    assert list(one.engine.news) == ([] if left else [News("roll-over", ann[0].path)])


def test_a_period_does_not_end_in_a_key_that_is_forgotten_meanwhile(budget: Budget) -> None:
    now = [5.0]
    one, two = budget.process(), budget.process()
    ann = one.key(one.group(tokens=9, window=Window.parse("every 10s", clock=lambda: now[0])), "ann")
    theirs = two.key(two.group(), "ann")
    one.engine.record(ann, 4, 0)
    now[0] = 15.0
    once(one, "read", lambda: two.engine.forget(theirs[0]))
    assert one.engine.record(ann, 1, 0).kind == DONE
    assert one.used(ann[0]) == (1, 0)
    assert "roll-over" not in [item.kind for item in one.engine.news]


def test_a_scope_that_is_lost_as_its_period_ends_has_its_clock_still_when_it_is_restored(budget: Budget) -> None:
    now = [5.0]
    one = budget.process()
    chain = one.child("kid", tokens=9, window=Window.parse("every 10s", clock=lambda: now[0]))
    one.engine.record(chain, 4, 0)
    saved = budget.row(chain[0].path)
    now[0] = 15.0
    once(one, "read", lambda: budget.raw.delete(budget.keys.scope(chain[0].path)))
    with pytest.raises(StoreLost, match="kid"):
        one.engine.record(chain, 1, 0)
    budget.raw.hset(budget.keys.scope(chain[0].path), mapping=saved)
    assert one.engine.record(chain, 1, 0).kind == DONE
    assert (one.used(chain[0]), one.numbers(chain[0]).start) == ((1, 0), 10.0)


def test_a_period_does_not_end_in_a_scope_that_has_no_window_any_more(budget: Budget) -> None:
    now = [5.0]
    one, two = budget.process(), budget.process()
    chain = one.child("kid", tokens=9, window=Window.parse("every 10s", clock=lambda: now[0]))
    one.engine.record(chain, 4, 0)
    theirs = two.child("kid", window=chain[0].window)[0]
    now[0] = 15.0

    def no_window() -> None:
        now[0] = 5.0  # as the other process's clock says: the period is not over
        two.engine.set_caps(theirs, UNCHANGED, UNCHANGED, None)
        now[0] = 15.0

    once(one, "read", no_window)
    assert one.engine.record(chain, 1, 0).kind == DONE
    assert one.used(chain[0]) == (5, 0)
    assert "roll-over" not in [item.kind for item in one.engine.news]


def test_a_period_that_ends_while_it_is_begun_is_that_of_the_servers_time(budget: Budget) -> None:
    one = budget.process()
    window = Window.every(timedelta(days=1))
    kid = one.child("kid", tokens=9, window=window)[0]
    now = float(budget.raw.time()[0])
    start, end = window.period(now - 5 * 86400)
    budget.raw.hset(budget.keys.scope(kid.path), mapping={"s": str(int(start)), "e": str(int(end))})
    with one.engine._process.step() as step:
        _mending.roll(step, kid, end + 1)  # what the clock said then; four days have gone since
    row = one.numbers(kid)
    assert row.start <= now < row.end
    assert [item.kind for item in one.engine.news].count("roll-over") == 1


# ---------------------------------------------------------------- the dead, the line, other threads


def test_an_answer_with_no_entries_is_not_the_end_of_what_a_dead_process_has(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    hold(one, 30)
    budget.kill(one)
    asked: list[Any] = []

    def command(*words: Any, **options: Any) -> Any:
        if words[0] == "HSCAN":
            asked.append(words[2])
            if len(asked) == 1:
                return ["64", []]  # as of a large hash of which most was deleted
            words = (*words[:2], "0", *words[3:])
        return two.wire.client.command(*words, **options)

    two.wire.command = command  # type: ignore[attr-defined]
    assert two.used() == (30, 0)
    assert asked[:2] == ["0", "64"]


def test_a_step_whose_lease_another_thread_asks_for_ends_in_time(budget: Budget) -> None:
    one = budget.process()
    process = one.engine._process
    process.new_owner()
    with process.registering:
        sent = len(one.wire.sent)
        with pytest.raises(BudgetUnavailable, match="another thread waits"), process.step(0.01) as step:
            step.register()
        assert len(one.wire.sent) == sent
    assert one.engine.record((one.root,), 1, 0).kind == DONE


def test_a_watch_whose_channel_is_closed_meanwhile_lets_all_try_again(budget: Budget) -> None:
    one = budget.process()
    hold(one, 100)
    key = one.engine.new_key()
    one.engine.reserve((one.root,), key, 1, 0, wait=True)
    once(one, "look", one.engine._watcher.close)
    assert one.engine.watch([((one.root,), key, 1, 0)], 3600.0) is None


def test_a_watch_of_few_lets_them_try_again_at_once_where_their_process_was_declared_dead(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    hold(two, 100)
    key = one.engine.new_key()
    one.engine.reserve((one.root,), key, 1, 0, wait=True)
    heads = [((one.root,), key, 1, 0)]
    one.engine.watch(heads, 0.01)
    budget.kill(one)
    two.engine.expired()
    one.engine._watcher._beaten = -1e9
    assert one.engine.watch(heads, 3600.0) is None
    assert one.engine.reserve((one.root,), key, 1, 0, wait=True).ticket > 0
    assert two.numbers().waiting == 1


def test_an_id_of_nothing_is_unknown(budget: Budget) -> None:
    one = budget.process()
    assert one.engine.settle(one.engine.id_of(one.engine.new_key()), 3, 0)[0].kind == UNKNOWN
    assert one.used() == (0, 0)
