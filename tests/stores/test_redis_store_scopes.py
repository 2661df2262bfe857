"""The Redis engine's scopes: opening and mismatches, windows by the server's clock, groups, lost and foreign stores."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from redis_stores import LONG, Budget
from token_budget import PoolClosed, Window
from token_budget._arguments import UNCHANGED
from token_budget.stores._errors import StoreError, StoreLost, StoreMismatch
from token_budget.stores._store import DONE, GRANTED, LATE, REFUSED, News, Scope

USD = 10**9


@pytest.fixture
def budget() -> Iterator[Budget]:
    budget = Budget()
    yield budget
    budget.close()


# ---------------------------------------------------------------- opening


def test_the_first_process_makes_the_root_and_tells_so_once(budget: Budget) -> None:
    one, two = budget.process(opened=False), budget.process(opened=False)
    opened = one.open(tokens=5, nanos=7)
    assert (opened.created, opened.changed) == (True, ())
    assert (opened.row.token_cap, opened.row.nano_cap, opened.row.tokens_claimed) == (5, 7, 0)
    assert list(one.engine.news) == [News("created", one.root.path)]
    opened = two.open(tokens=5, nanos=7)
    assert (opened.created, opened.changed, list(two.engine.news)) == (False, (), [])
    assert one.child("kid") is not None
    assert list(one.engine.news) == [News("created", one.root.path)]


def test_a_first_opening_whose_answer_is_lost_counts_as_one(budget: Budget) -> None:
    one = budget.process(opened=False)
    first: list[Any] = []

    def twice(name: str) -> None:
        if name == "open" and not first:
            first.append(one.wire.sent[-1][1]())

    one.wire.before = twice
    assert one.open(tokens=5).created
    assert list(one.engine.news) == [News("created", one.root.path)]


def test_what_the_code_says_holds_unless_a_living_process_says_otherwise(budget: Budget) -> None:
    one = budget.process(opened=False)
    one.open(tokens=5, nanos=2 * USD, window=Window.daily("UTC"))
    assert one.open(tokens=6).changed == (("token_cap", 5, 6),)
    two = budget.process(opened=False)
    assert two.open().changed == ()  # who gives nothing objects to nothing
    for terms, texts in (
        ({"tokens": 7}, ("token_cap 7", "has 6", "says 6")),
        ({"nanos": 3 * USD // 2}, ("usd_cap 1.5 USD", "has 2 USD")),
        ({"window": Window.weekly("UTC")}, ("window weekly UTC", "has daily UTC")),
    ):
        with pytest.raises(StoreMismatch) as caught:
            two.open(**terms)
        for text in (*texts, one.engine._process.who, 'caps="mine"', 'caps="stored"', "set_caps()"):
            assert text in str(caught.value)
    row = two.numbers()
    assert (row.token_cap, row.nano_cap, str(two.root.window)) == (6, 2 * USD, "daily UTC")
    assert two.open(tokens=7, how="stored").changed == ()
    assert two.open(tokens=7, window=Window.weekly("UTC"), how="mine").changed == (
        ("token_cap", 6, 7),
        ("window", "daily UTC", "weekly UTC"),
    )
    with pytest.raises(StoreMismatch, match="says 7"):
        one.open(tokens=8)


@pytest.mark.parametrize("ended", ["let go", "killed"])
def test_what_a_process_gave_ends_with_it(budget: Budget, ended: str) -> None:
    one, two = budget.process(opened=False), budget.process(opened=False)
    one.open(tokens=5)
    with pytest.raises(StoreMismatch):
        two.open(tokens=6)
    if ended == "killed":
        budget.kill(one)
    else:
        one.engine.let_go()
    assert two.open(tokens=6).changed == (("token_cap", 5, 6),)
    assert budget.raw.hkeys(budget.keys.given(one.root.path)) == [two.engine._process.owner]


def test_set_caps_counts_as_given(budget: Budget) -> None:
    one, two = budget.process(opened=False), budget.process(opened=False)
    one.open(tokens=5)
    two.open()
    two.engine.set_caps(two.root, None, 9, UNCHANGED)
    with pytest.raises(StoreMismatch, match="says no cap"):
        one.open(tokens=6)
    with pytest.raises(StoreMismatch, match=r"0\.000000009 USD"):
        one.open(nanos=8)
    assert one.open(tokens=5, how="stored").row.token_cap is None


def test_openings_at_once_leave_one_that_holds(budget: Budget) -> None:
    one, two = budget.process(opened=False), budget.process(opened=False)
    met: list[Any] = []

    def other(name: str) -> None:
        if name == "open" and not met:
            met.append(two.open(tokens=6))

    one.wire.before = other
    with pytest.raises(StoreMismatch):
        one.open(tokens=5)
    assert met[0].created
    assert two.numbers().token_cap == 6


def test_a_child_is_made_once_below_what_is_open(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    chain = one.child("kid", tokens=5)
    deep = one.child("deep", chain[0], nanos=3)
    assert two.child("deep", two.child("kid")[0])[0].path == deep[0].path
    assert [row.token_cap for row in one.engine.read(deep)] == [None, 5, None]
    one.engine.close(chain[0])
    with pytest.raises(PoolClosed, match="kid"):
        two.child("other", two.child("kid")[0])
    assert two.child("kid")[0].closed
    with pytest.raises(PoolClosed):
        two.group(above=two.child("kid")[0])


def test_a_closed_child_is_deleted_after_a_week_and_its_name_is_free(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    chain, theirs = one.child("kid"), two.child("kid")
    name = budget.keys.scope(chain[0].path)
    key = one.engine.new_key()
    one.engine.reserve(chain, key, 1, 0)
    one.engine.close(chain[0])
    assert budget.raw.ttl(name) == -1
    one.engine.commit(chain, key, (1, 0), (1, 0))
    assert 6 * 86400 < budget.raw.ttl(name) <= 7 * 86400
    budget.raw.delete(name)
    with pytest.raises(PoolClosed, match="kid"):
        two.engine.record(theirs, 1, 0)
    assert [path for path, _, _ in two.engine.tree(two.root)] == [two.root.path]
    new = Scope("kid", chain[0].path, one.root)
    assert one.open(new).created
    assert two.engine.record(theirs, 1, 0).kind == DONE
    assert two.used(theirs[0]) == (1, 0)


# ---------------------------------------------------------------- a store that is not what it was


def test_nothing_is_made_where_nothing_must_be(budget: Budget) -> None:
    one = budget.process(opened=False)
    with pytest.raises(StoreLost, match="create=False"):
        one.open(create=False)
    assert list(budget.raw.scan_iter(f"{budget.keys.root}*")) == []
    budget.process()
    assert not one.open(create=False).created


def steps_of(process: Any, chain: Any, user: Any) -> Any:
    engine = process.engine
    yield "reserve", lambda: engine.reserve(chain, engine.new_key(), 1, 0)
    yield "key", lambda: engine.reserve(user, engine.new_key(), 1, 0)
    yield "record", lambda: engine.record(chain, 1, 0)
    yield "read", lambda: engine.read(chain)
    yield "tree", lambda: engine.tree(process.root)
    yield "reset", lambda: engine.reset(chain[0])
    yield "caps", lambda: engine.set_caps(chain[0], 1, None, UNCHANGED)
    yield "group", lambda: engine.set_group(user[0].group, 1, None, UNCHANGED)
    yield "open", lambda: process.open()
    yield "child", lambda: process.child("kid")


@pytest.mark.parametrize("again", [False, True])
def test_an_emptied_store_refuses_everything(budget: Budget, again: bool) -> None:
    one, two = budget.process(), budget.process(opened=False)
    chain, user = one.child("kid"), one.key(one.group(), "ann")
    key = one.engine.new_key()
    one.engine.reserve(chain, key, 1, 0)
    one.engine.record(user, 1, 0)
    budget.raw.delete(*budget.raw.scan_iter(f"{budget.keys.root}*"))
    if again:  # somebody begins anew, on purpose
        assert two.open().created
    for name, step in steps_of(one, chain, user):
        with pytest.raises(StoreLost):
            step()
            pytest.fail(name)
    with pytest.raises(StoreLost):
        one.engine.commit(chain, key, (1, 0), (1, 0))
    one.engine.tend()
    one.engine.let_go()
    if again:
        assert two.used() == (0, 0)
    else:
        assert not budget.raw.exists(budget.keys.root)


@pytest.mark.parametrize("what", ["root", "kid", "group"])
def test_one_key_of_the_server_that_is_gone_is_no_fresh_budget(budget: Budget, what: str) -> None:
    one, two = budget.process(), budget.process()
    chain, user = one.child("kid"), one.key(one.group(), "ann")
    one.engine.record((user[0], *chain), 1, 0)
    gone = {"root": one.root.path, "kid": chain[0].path}.get(what)
    name = budget.keys.scope(gone) if gone else f"{budget.keys.root}:g:{user[0].group.path}"  # type: ignore[union-attr]
    assert budget.raw.delete(name) == 1
    with pytest.raises(StoreLost):
        one.engine.record((user[0], *chain), 1, 0)
    with pytest.raises(StoreLost):
        two.engine.read((user[0], *chain))
    for process in (two, budget.process(opened=False)):
        if what == "root":
            with pytest.raises(StoreLost):
                process.open()
        else:
            process.open()
            with pytest.raises(StoreLost):
                process.child("kid") if what == "kid" else process.group()


def test_data_of_others_under_our_keys_is_left_alone(budget: Budget) -> None:
    one = budget.process(opened=False)
    budget.raw.hset(budget.keys.root, "field", "value")
    with pytest.raises(StoreError, match="no budget of this package"):
        one.open()
    assert budget.raw.hgetall(budget.keys.root) == {"field": "value"}
    budget.raw.delete(budget.keys.root)
    budget.raw.set(budget.keys.root, "text")
    with pytest.raises(StoreError):
        one.open()
    assert budget.raw.get(budget.keys.root) == "text"
    budget.raw.delete(budget.keys.root)
    one.open()
    budget.raw.hset(budget.keys.scope(f"{one.root.path}/kid"), "field", "value")
    with pytest.raises(StoreError, match="no budget of this package"):
        one.child("kid")


def test_a_later_layout_is_refused(budget: Budget) -> None:
    one, two = budget.process(), budget.process(opened=False)
    budget.raw.hset(budget.keys.root, "V", 2)
    with pytest.raises(StoreError, match=r"later version .* \(layout 2\)"):
        two.open()
    assert one.engine.record((one.root,), 1, 0).kind == DONE


# ---------------------------------------------------------------- windows by the server's clock


def test_periods_are_those_of_the_servers_clock(budget: Budget) -> None:
    one = budget.process(opened=False)
    window = Window.every(timedelta(milliseconds=200))
    row = one.open(tokens=5, window=window).row
    now = sum(part / scale for part, scale in zip(budget.raw.time(), (1, 10**6), strict=True))
    assert row.start - 0.2 <= now
    assert row.end == pytest.approx(row.start + 0.2)
    rolled = 0
    deadline = time.monotonic() + 30
    while rolled < 3:
        assert time.monotonic() < deadline
        key = one.engine.new_key()
        answer = one.engine.reserve((one.root,), key, 5, 0)
        if answer.kind == GRANTED:
            one.engine.commit((one.root,), key, (5, 0), (5, 0))
        rolled = sum(item.kind == "roll-over" for item in one.engine.news)
    assert one.numbers().tokens_claimed <= 5


def test_a_client_whose_clock_is_wrong_takes_the_servers_period(budget: Budget, monkeypatch: Any) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    one = budget.process(opened=False)
    row = one.open(window=Window.daily()).row
    now = float(budget.raw.time()[0])
    assert row.start <= now < row.end
    one.engine.reset(one.root)
    one.engine.set_caps(one.root, 5, 6, Window.weekly())
    row = one.numbers()
    assert row.start <= now < row.end
    user = one.key(one.group(window=Window.daily()), "ann")
    one.engine.record(user, 1, 0)
    assert one.numbers(user[0]).start <= now < one.numbers(user[0]).end


def test_many_processes_roll_over_a_period_once(budget: Budget) -> None:
    now = [0.0]
    window = Window.parse("every 10s", clock=lambda: now[0])
    processes = [budget.process(opened=False) for _ in range(3)]
    for process in processes:
        process.open(tokens=9, window=window)
        process.engine.record((process.root,), 3, 0)
    era = processes[0].numbers().era
    now[0] = 25.0
    met: list[int] = []

    def others(name: str) -> None:
        if name == "roll" and not met:
            met.append(1)
            processes[1].engine.record((processes[1].root,), 4, 0)

    processes[0].wire.before = others
    assert processes[0].numbers().tokens_claimed == 0  # shown as it will be
    processes[0].engine.record((processes[0].root,), 1, 0)
    processes[2].engine.record((processes[2].root,), 2, 0)
    row = processes[2].numbers()
    assert (row.tokens_claimed, row.start, row.era > era) == (7, 20.0, True)
    assert [[item.kind for item in process.engine.news].count("roll-over") for process in processes] == [0, 1, 0]


def test_a_clock_that_goes_back_reopens_no_period_but_a_reset_takes_it(budget: Budget) -> None:
    now = [25.0]
    one = budget.process(opened=False)
    one.open(tokens=9, window=Window.parse("every 10s", clock=lambda: now[0]))
    one.engine.record((one.root,), 3, 0)
    now[0] = 5.0
    assert one.engine.record((one.root,), 3, 0).kind == DONE
    assert (one.numbers().start, one.used()) == (20.0, (6, 0))
    one.engine.reset(one.root)
    assert (one.numbers().start, one.used()) == (0.0, (0, 0))


def test_a_process_learns_of_a_window_that_another_has_set_and_keeps_its_clock(budget: Budget) -> None:
    now = [5.0]
    one, two = budget.process(opened=False), budget.process(opened=False)
    one.open(tokens=9, window=Window.parse("every 10s", clock=lambda: now[0]))
    two.open(window=Window.parse("every 10s", clock=lambda: now[0]))
    two.engine.set_caps(two.root, 20, UNCHANGED, Window.parse("every 2s", clock=lambda: now[0]))
    assert one.engine.record((one.root,), 15, 0).kind == DONE
    assert str(one.root.window) == "every 2s"
    now[0] = 7.0
    assert one.engine.record((one.root,), 15, 0).kind == DONE
    assert one.numbers().start == 6.0


@pytest.mark.parametrize("given", ["by set_caps", "at opening"])
def test_a_thread_that_reads_a_window_before_its_giver_goes_on_has_its_clock(budget: Budget, given: str) -> None:
    now = [25.0]
    one = budget.process(opened=False)
    one.open(tokens=9)
    window = Window.parse("every 10s", clock=lambda: now[0])

    def read_by_another_thread(name: str) -> None:
        if name in {"caps", "open"}:
            thread = threading.Thread(target=lambda: one.engine.record((one.root,), 3, 0))
            thread.start()
            thread.join(LONG)

    one.wire.before = one.wire.after = read_by_another_thread
    if given == "by set_caps":
        one.engine.set_caps(one.root, UNCHANGED, UNCHANGED, window)
    else:
        one.open(window=window)
    one.wire.heal()
    assert (one.numbers().start, one.used()) == (20.0, (6, 0))
    now[0] = 35.0
    assert (one.numbers().start, one.used()) == (30.0, (0, 0))
    assert one.engine.record((one.root,), 3, 0).kind == DONE
    assert (one.numbers().start, one.used()) == (30.0, (3, 0))


def test_a_window_that_is_not_taken_leaves_the_clock_as_it_was(budget: Budget) -> None:
    now = [25.0]
    one, two = budget.process(opened=False), budget.process(opened=False)
    one.open(tokens=9, window=Window.parse("every 10s", clock=lambda: now[0]))
    with pytest.raises(StoreMismatch):
        two.open(window=Window.parse("every 20s", clock=lambda: 1e9))
    assert two.root.given is None
    two.open(window=Window.parse("every 10s", clock=lambda: now[0]))
    one.engine.set_caps(one.root, UNCHANGED, UNCHANGED, Window.parse("every 2s", clock=lambda: now[0]))
    assert two.engine.record((two.root,), 3, 0).kind == DONE
    now[0] = 27.0
    assert (two.numbers().start, two.used()) == (26.0, (0, 0))


def test_a_clock_that_fails_changes_nothing_and_keeps_nothing_from_coming_back(budget: Budget) -> None:
    fails = [False]

    def clock() -> float:
        if fails[0]:
            raise OSError("no clock")
        return 5.0

    one = budget.process(opened=False)
    one.open(tokens=9, window=Window.parse("every 10s", clock=clock))
    key, other, waiting = (one.engine.new_key() for _ in range(3))
    for claim in (key, other):
        one.engine.reserve((one.root,), claim, 4, 0)
    one.engine.reserve((one.root,), waiting, 4, 0, wait=True)
    fails[0] = True
    with pytest.raises(OSError, match="no clock"):
        one.engine.record((one.root,), 1, 0)
    with pytest.raises(OSError, match="no clock"):
        one.engine.reserve((one.root,), one.engine.new_key(), 1, 0)
    with pytest.raises(OSError, match="no clock"):
        one.engine.commit((one.root,), key, (4, 0), (4, 0))
    assert one.engine.release((one.root,), key, (4, 0)).kind == DONE
    assert one.engine.cancel((one.root,), other, (4, 0)) is True
    one.engine.leave((one.root,), waiting)
    fails[0] = False
    row = one.numbers()
    assert (row.tokens_claimed, row.waiting) == (0, 0)


def test_a_window_that_this_system_cannot_read_is_an_error(budget: Budget) -> None:
    one, two = budget.process(opened=False), budget.process(opened=False)
    one.open(window=Window.daily())
    two.open()
    revision = budget.row(one.root.path)["g"]
    budget.raw.hset(budget.keys.root, mapping={"W": "daily Mars/Phobos", "g": f"{revision}1"})
    for process in (one, two):
        with pytest.raises(StoreError, match="Mars/Phobos"):
            process.engine.record((process.root,), 1, 0)


# ---------------------------------------------------------------- groups and keys


def test_a_groups_new_values_reach_all_keys_but_those_with_values_of_their_own(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    group, theirs = one.group(tokens=5, nanos=9), two.group()
    ann, bob = one.key(group, "ann"), two.key(theirs, "bob")
    one.engine.record(ann, 5, 0)
    two.engine.record(bob, 5, 0)
    two.engine.set_caps(bob[0], 6, UNCHANGED, UNCHANGED)
    two.engine.set_group(theirs, 8, 7, UNCHANGED)
    assert (group.token_cap, theirs.token_cap) == (5, 8)
    assert (one.numbers(ann[0]).token_cap, one.numbers(bob[0]).token_cap) == (8, 6)
    assert one.engine.record(ann, 3, 0).kind == DONE
    assert one.engine.record(ann, 1, 0).kind == REFUSED
    assert two.engine.record(bob, 1, 7).kind == DONE
    assert two.engine.record(bob, 1, 0).kind == REFUSED
    assert two.engine.record(bob, 0, 1).kind == REFUSED
    assert group.token_cap == 8


def test_the_keys_of_a_group_are_those_that_spent_oldest_first(budget: Budget) -> None:
    one = budget.process()
    group, other = one.group(tokens=5), one.group("user2")
    for key in ("zoe", "ann", "m/x: *"):
        one.engine.record(one.key(group, key), 1, 0)
    one.engine.record(one.key(other, "eve"), 1, 0)
    one.child("kid", one.key(group, "ann")[0])
    assert one.engine.keys(group) == ["zoe", "ann", "m/x: *"]
    assert not one.engine.knows(one.key(group, "eve")[0])
    assert one.engine.forget(one.key(group, "zoe")[0])
    assert not one.engine.forget(one.key(group, "zoe")[0])
    assert one.engine.keys(group) == ["ann", "m/x: *"]


def test_a_key_in_use_is_not_forgotten(budget: Budget) -> None:
    one = budget.process()
    chain = one.key(one.group(tokens=5), "ann")
    held, waiting = one.engine.new_key(), one.engine.new_key()
    one.engine.reserve(chain, held, 5, 0)
    one.engine.reserve(chain, waiting, 5, 0, wait=True)
    with pytest.raises(ValueError, match="in flight"):
        one.engine.forget(chain[0])
    one.engine.release(chain, held, (5, 0))
    with pytest.raises(ValueError, match="wait for room"):
        one.engine.forget(chain[0])
    one.engine.leave(chain, waiting)
    assert one.engine.forget(chain[0])


def test_a_key_that_was_closed_and_forgotten_is_open_again(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    chain, theirs = one.key(one.group(tokens=5), "ann"), two.key(two.group(), "ann")
    two.engine.record(theirs, 1, 0)
    one.engine.close(chain[0])
    with pytest.raises(PoolClosed):
        two.engine.record(theirs, 1, 0)
    assert one.engine.forget(chain[0])
    assert two.engine.record(theirs, 1, 0).kind == DONE
    assert not theirs[0].closed


# ---------------------------------------------------------------- trees and thresholds


@pytest.mark.parametrize("late", [1, 50])
def test_a_key_that_is_made_while_a_tree_looks_for_names_is_in_the_tree_unless_it_never_ends(
    budget: Budget, monkeypatch: pytest.MonkeyPatch, late: int
) -> None:
    one, two = budget.process(), budget.process()
    group, client = two.group(), one.engine._process.client
    ann = two.key(group, "ann")
    two.engine.record(ann, 1, 0)
    keys = [two.key(group, f"{number}") for number in range(late)]
    left, scan = [*keys], client.scan

    def scanned(*words: Any, **options: Any) -> list[str]:
        found: list[str] = scan(*words, **options)
        if left:
            two.engine.record(left.pop(), 1, 0)
        return found

    monkeypatch.setattr(client, "scan", scanned)
    rows = {path: row.tokens_claimed for path, _, row in one.engine.tree(one.root)}
    assert rows[ann[0].path] == 1
    assert (rows[one.root.path] == len(rows) - 1) is (late == 1)


def test_a_tree_shows_parents_first_and_else_the_oldest_first(budget: Budget) -> None:
    one = budget.process()
    b, a = one.child("b"), one.child("a")
    deep = one.child("deep", b[0])
    group = one.group(tokens=5)
    for key in ("y", "x"):
        one.engine.record(one.key(group, key), 1, 0)
    below = one.child("job", one.key(group, "x")[0])
    one.engine.record(below, 2, 0)
    rows = one.engine.tree(one.root)
    assert [(name, row.tokens_claimed) for _, name, row in rows] == [
        (one.root.name, 4), ("b", 0), ("deep", 0), ("a", 0), ("user:y", 1), ("user:x", 3), ("job", 2),
    ]  # fmt: skip
    assert [name for _, name, _ in one.engine.tree(b[0])] == ["b", "deep"]
    assert [name for _, name, _ in one.engine.tree(a[0])] == ["a"]
    assert [name for _, name, _ in one.engine.tree(below[1])] == ["user:x", "job"]
    assert deep[0].path == rows[2][0]
    budget.raw.delete(budget.keys.scope(below[1].path))  # the key has expired, and what is below it has not
    assert [name for _, name, _ in one.engine.tree(one.root)][-2:] == ["user:x", "job"]


def test_a_threshold_is_told_once_an_era_and_again_after_more_room(budget: Budget) -> None:
    one, two = budget.process(opened=False), budget.process(opened=False)
    one.open(tokens=10)
    two.open()
    half, full = 5 * 10**8, 10**9
    one.engine.record((one.root,), 5, 0)
    era = one.numbers().era
    told = [process.engine.claim_threshold(process.root, era, half) for process in (one, two, one)]
    assert told == [True, False, False]
    assert one.wire.again("told") == ["done", 0]
    two.engine.record((two.root,), 5, 0)
    assert two.engine.claim_threshold(two.root, era, full)
    assert sorted(one.numbers().told) == [half, full]
    one.engine.set_caps(one.root, 15, UNCHANGED, UNCHANGED)
    assert one.numbers().told == (half,)
    assert two.open(tokens=30, how="mine").row.told == ()
    assert one.engine.claim_threshold(one.root, era, half)
    one.engine.reset(one.root)
    assert one.numbers().told == ()
    assert not one.engine.claim_threshold(one.root, era, full)
    assert one.engine.claim_threshold(one.root, one.numbers().era, full)


def test_both_caps_are_set_before_thresholds_are_armed(budget: Budget) -> None:
    one = budget.process(opened=False)
    one.open(tokens=10, nanos=20)
    one.engine.record((one.root,), 10, 14)
    assert one.engine.claim_threshold(one.root, one.numbers().era, 10**9)
    one.engine.set_caps(one.root, None, 14, UNCHANGED)
    assert one.numbers().told == (10**9,)  # one axis or the other is at its cap all the time


def test_a_threshold_whose_answer_is_lost_is_told_all_the_same(budget: Budget) -> None:
    one = budget.process(opened=False)
    one.open(tokens=10)
    first: list[Any] = []

    def twice(name: str) -> None:
        if name == "told" and not first:
            first.append(one.wire.sent[-1][1]())

    one.wire.before = twice
    assert one.engine.claim_threshold(one.root, one.numbers().era, 7)
    assert first == [["done", 1]]


def test_a_change_is_seen_by_the_next_step_of_every_process(budget: Budget) -> None:
    one, two = budget.process(opened=False), budget.process(opened=False)
    one.open(tokens=10)
    two.open()
    for cap, fits in ((5, True), (4, False), (None, True), (9, False), (10, True)):
        two.engine.reset(two.root)
        two.engine.record((two.root,), 1, 0, force=True)
        one.engine.set_caps(one.root, cap, UNCHANGED, UNCHANGED)
        if cap in {9, 10}:
            one.engine.record((one.root,), 5, 0)
        assert (two.engine.record((two.root,), 4, 0).kind == DONE) is fits
        assert two.numbers().token_cap == cap


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("how", ["release", "leave"])
def test_what_gives_back_shows_the_period_that_it_is_now_if_the_clock_tells(
    budget: Budget, how: str, fails: bool
) -> None:
    now = [0.0]

    def clock() -> float:
        if now[0] > 100:
            raise OSError("no clock")
        return now[0]

    one = budget.process(opened=False)
    one.open(tokens=9, window=Window.parse("every 10s", clock=clock))
    key, other = one.engine.new_key(), one.engine.new_key()
    one.engine.record((one.root,), 3, 0)
    one.engine.reserve((one.root,), key, 5, 0)
    one.engine.reserve((one.root,), other, 5, 0, wait=True)
    now[0] = 1000.0 if fails else 12.0
    if how == "release":
        answer = one.engine.release((one.root,), key, (5, 0), rows=True)
    else:
        answer = one.engine.leave((one.root,), other)
    left = 0 if how == "release" else 5
    assert (answer.rows[0].tokens_claimed, answer.rows[0].start) == ((3 + left, 0.0) if fails else (left, 10.0))


def test_what_is_below_a_key_goes_with_it_and_its_names_are_free(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    group = one.group(tokens=50)
    ann = one.key(group, "ann")
    job = one.child("job", ann[0], tokens=5)
    step = one.key(one.group("step", ann[0], tokens=3), "1")
    for chain in (job, step):
        one.engine.record(chain, 2, 0)
    kept = [name for name in budget.raw.scan_iter(f"{budget.keys.root}:*") if "ann" not in name]
    assert one.engine.forget(ann[0])
    left = list(budget.raw.scan_iter(f"{budget.keys.root}:*"))
    assert sorted(left) == sorted(kept)
    with pytest.raises(PoolClosed, match="job"):
        one.engine.record(job, 1, 0)
    row = one.numbers(job[0])
    assert (row.closed, row.tokens_claimed) == (True, 0)
    assert [name for _, name, _ in one.engine.tree(job[0])] == ["job"]
    assert one.used() == (4, 0)
    fresh = two.child("job", two.key(two.group(), "ann")[0])
    assert two.engine.record(fresh, 5, 0).kind == DONE
    assert two.used(fresh[0]) == (5, 0)


def test_what_has_happened_counts_also_in_a_scope_that_was_closed_and_deleted(budget: Budget) -> None:
    one, two = budget.process(), budget.process()
    ann = one.key(one.group(tokens=50), "ann")
    job = one.child("job", ann[0])
    late, given_up = one.engine.new_key(), one.engine.new_key()
    for key in (late, given_up):
        one.engine.reserve(job, key, 5, 0)
    budget.kill(one)
    two.engine.expired()
    assert two.engine.forget(two.key(two.group(), "ann")[0])
    assert one.engine.commit(job, late, (5, 0), (7, 0)).kind == LATE
    assert one.engine.release(job, given_up, (5, 0)).kind == LATE
    assert one.engine.record(job, 3, 0, force=True).kind == DONE
    assert [one.used(scope) for scope in job] == [(5, 0), (5, 0), (10, 0)]  # above the charge, and what was forced
    with pytest.raises(PoolClosed):
        one.engine.record(job, 1, 0)
    assert 0 < budget.raw.ttl(budget.keys.scope(job[0].path)) <= 7 * 86400
    fresh = two.child("job", two.key(two.group(), "ann")[0])  # its name is free all the same
    assert not fresh[0].closed
    assert two.engine.record(fresh, 1, 0).kind == DONE
