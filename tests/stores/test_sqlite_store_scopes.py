"""The SQLite ledger's scopes: opening and its rules, caps, groups and their keys, closing, the tree."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sqlite_ledger import Ledger, audit, others, statement
from token_budget import PoolClosed, Window
from token_budget._arguments import UNCHANGED
from token_budget.stores._errors import StoreLost, StoreMismatch
from token_budget.stores._names import encoded

WEEK = 7 * 86_400


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "budget.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger(path)
    yield ledger
    audit(path)
    ledger.store.let_go()


# ---------------------------------------------------------------------- opening


def test_opening_makes_what_is_not_there_and_finds_what_is(ledger: Ledger) -> None:
    assert ledger.open("total", 10, 20) == (ledger.row(), True, ())
    assert ledger.news() == ["created total"]
    assert ledger.open("total", 10) == (ledger.row(), False, ())
    assert ledger.open("total/a", window=Window.every(dt.timedelta(hours=1))).created
    assert ledger.news() == []
    assert str(ledger.scope("total/a").window) == "every 1h"


def test_a_root_that_is_not_there_is_lost_where_it_must_not_be_made(ledger: Ledger) -> None:
    with pytest.raises(StoreLost, match="create=False"):
        ledger.open("total", create=False)
    assert statement(ledger.path, "SELECT count(*) FROM scope") == [(0,)]


def test_a_root_that_has_gone_is_lost(ledger: Ledger) -> None:
    ledger.open("total")
    ledger.open("total/a")
    statement(ledger.path, "DELETE FROM scope WHERE parent = 0")
    for step in (
        lambda: ledger.record("total", 1),
        lambda: ledger.reserve("total", 1),
        lambda: ledger.open("total"),
        lambda: ledger.row(),
        lambda: ledger.store.expired(),
        lambda: ledger.store.tree(ledger.scope("total")),
    ):
        with pytest.raises(StoreLost, match="no longer has the budget 'total'"):
            step()
    statement(ledger.path, "DELETE FROM scope")
    with pytest.raises(StoreLost, match="'total/a', which this process has opened"):
        ledger.record("total/a", 1, force=True)


def test_several_roots_share_a_file_and_nothing_else(ledger: Ledger, path: Path) -> None:
    other = Ledger(path, name="other")
    other.scopes["total"] = other.scope("other")
    other.open("other", 5)
    ledger.open("total", 10)
    ledger.hold("total", 7)
    key = other.store.new_key()
    chain = (other.scope("other"),)
    assert other.store.reserve(chain, key, 5, 0).kind == "granted"
    assert ledger.store.settle(other.store.id_of(key), 1, 0)[0].kind == "unknown"
    assert ledger.store.location != other.store.location
    other.store.let_go()
    assert ledger.held() == (7, 0, 1)
    assert ledger.store.expired() == []


@pytest.mark.parametrize("how", ["code", "mine", "stored"])
def test_what_is_given_replaces_what_is_stored_unless_it_is_not_to(ledger: Ledger, how: str) -> None:
    ledger.open("total", 10, 20)
    ledger.record("total", 4, 4)
    window = Window.every(dt.timedelta(days=1))
    opened = ledger.open("total", 30, None, window, how=how)
    if how == "stored":
        assert opened.changed == ()
        assert (opened.row.token_cap, opened.row.end) == (10, None)
    else:
        assert opened.changed == (("token_cap", 10, 30), ("window", None, "every 1d"))
        assert (opened.row.token_cap, opened.row.nano_cap, opened.row.tokens_claimed) == (30, 20, 4)
        assert ledger.scope("total").window is window
        assert ledger.record("total", 26).kind == "done"


def test_another_clock_is_kept_where_the_file_has_another_window(ledger: Ledger) -> None:
    now = [90_000.0]
    clock = lambda: now[0]  # noqa: E731
    ledger.open("total", 10, window=Window.every(dt.timedelta(hours=1), clock=clock))
    other = Window.every(dt.timedelta(days=1), clock=clock)
    assert ledger.open("total", window=other, how="stored").row.end == 93_600.0
    window = ledger.scope("total").window
    assert window is not None
    assert (str(window), window.clock) == ("every 1h", clock)


def test_a_mismatch_leaves_everything_as_it_was(ledger: Ledger) -> None:
    window = Window.every(dt.timedelta(hours=1))
    ledger.open("total", 10, 2 * 10**9, window)
    alive(ledger, "token_cap", 10)
    alive(ledger, "nano_cap", 2 * 10**9)
    alive(ledger, "window", "every 1h")
    for given, text in (
        ((5, None, None), "token_cap 5, and a living process .host:1:2. has given 10; the store has 10"),
        ((None, 10**9, None), "usd_cap 1 USD, .* has given 2 USD; the store has 2 USD"),
        ((None, None, Window.daily()), "window 'daily UTC', .* has given 'every 1h'; the store has 'every 1h'"),
    ):
        with pytest.raises(StoreMismatch, match=f'{text}.*caps="mine".*caps="stored".*set_caps'):
            ledger.open("total", *given)
    assert ledger.scope("total").window is window
    assert (ledger.row().token_cap, ledger.row().nano_cap) == (10, 2 * 10**9)


def test_who_gives_none_or_what_is_stored_meets_no_objection(ledger: Ledger) -> None:
    ledger.open("total", 10)
    alive(ledger, "token_cap", 10)
    assert ledger.open("total").changed == ()
    assert ledger.open("total", 10).changed == ()
    assert ledger.open("total", 7, how="stored").changed == ()
    assert ledger.open("total", 7, how="mine").changed == (("token_cap", 10, 7),)


def test_a_third_value_is_a_mismatch_too(ledger: Ledger) -> None:
    ledger.open("total", 10)
    alive(ledger, "token_cap", 8)  # and then somebody set 10
    with pytest.raises(StoreMismatch, match="has given 8; the store has 10"):
        ledger.open("total", 9)
    assert ledger.open("total", 8).changed == (("token_cap", 10, 8),)  # both say the same


def test_no_cap_that_somebody_set_is_a_value_too(ledger: Ledger) -> None:
    ledger.open("total", 10)
    alive(ledger, "token_cap", None)
    with pytest.raises(StoreMismatch, match="has given none; the store has 10"):
        ledger.open("total", 9)


def alive(ledger: Ledger, what: str, value: Any, place: int = 1) -> None:
    """Have another living process that has given a value for the root, or another place.

    Its byte is one that this process holds.
    """
    connection = ledger.store._ledger.connection
    assert connection.alive.take(77)
    boot = statement(ledger.path, "SELECT boot_id FROM owner")[0][0]
    statement(ledger.path, "INSERT OR IGNORE INTO owner VALUES (77, 'host:1:2', ?)", boot)
    statement(ledger.path, "INSERT OR REPLACE INTO gave VALUES (?, ?, 77, ?)", place, what, value)


def test_caps_that_are_set_count_as_given(ledger: Ledger) -> None:
    ledger.open("total", 10, 20)
    ledger.store.set_caps(ledger.scope("total"), None, UNCHANGED, UNCHANGED)
    assert statement(ledger.path, "SELECT what, value FROM gave ORDER BY what") == [
        ("nano_cap", 20),
        ("token_cap", None),
    ]
    assert ledger.row().token_cap is None
    ledger.record("total", 10**18)


def test_what_is_opened_below_a_closed_scope_is_refused(ledger: Ledger) -> None:
    ledger.open("total")
    ledger.open("total/a")
    ledger.store.close(ledger.scope("total/a"))
    for below in ("total/a/b", "total/a/u:"):
        with pytest.raises(PoolClosed, match="pool 'a' is closed"):
            ledger.open(below)
    assert ledger.open("total/a").row.closed
    with pytest.raises(PoolClosed):
        ledger.store.set_caps(ledger.scope("total/a"), 5, UNCHANGED, UNCHANGED)


def test_what_is_closed_below_a_closed_scope_is_deleted_after_a_week(ledger: Ledger) -> None:
    ledger.open("total")
    ledger.open("total/a")
    ledger.open("total/b")
    ledger.open("total/b/c")
    for name in ("total/a", "total/b", "total/b/c"):
        ledger.store.close(ledger.scope(name))
    later = ledger.store._ledger.clock() + WEEK + 10
    ledger.store._ledger.clock = lambda: later
    ledger.open("total")
    assert not ledger.store.knows(ledger.scope("total/b/c"))
    with pytest.raises(PoolClosed):
        ledger.record("total/b/c", 1)
    assert statement(ledger.path, "SELECT name FROM scope") == [("total",), ("a",), ("b",)]
    with pytest.raises(PoolClosed):
        ledger.open("total/b/c")


def test_names_of_all_kinds_are_found_again(ledger: Ledger, path: Path) -> None:
    ledger.open("total")
    names = ["a/b", "a:b", "%2F", "日本", "'; DROP TABLE scope; --", " ", "a" * 200, "\ud800", "e\u0301", "é", "\n"]
    for number, name in enumerate(names):
        ledger.open(f"total/{encoded(name)}", number)
    again = Ledger(path)
    again.open("total")
    assert [again.open(f"total/{encoded(name)}").row.token_cap for name in names] == list(range(len(names)))
    assert [name for _, name, _ in again.store.tree(again.scope("total"))[1:]] == names
    again.store.let_go()


# ---------------------------------------------------------------------- groups and keys


def test_a_key_is_made_in_the_step_that_first_uses_it(ledger: Ledger) -> None:
    ledger.open("total", 100)
    opened = ledger.open("total/u:", 10, 20)
    assert opened.created
    assert (opened.row.token_cap, opened.row.nano_cap) == (10, 20)
    ann = ledger.scope("total/u:ann")
    assert not ledger.store.knows(ann)
    assert ledger.row("total/u:ann").token_cap == 10
    assert ledger.reserve("total/u:ann", 11)[1].kind == "refused"
    assert ledger.store.keys(ledger.group("total/u:")) == []  # a refused step makes none
    ledger.hold("total/u:ann", 5)
    ledger.record("total/u:bob", 5)
    assert ledger.store.knows(ann)
    assert ledger.store.keys(ledger.group("total/u:")) == ["ann", "bob"]
    assert not ledger.open("total/u:").created


def test_groups_without_a_name_and_groups_below_keys(ledger: Ledger) -> None:
    ledger.open("total")
    ledger.open("total/:", 10)
    ledger.open("total/:x/runs:", 5)  # makes the key above it
    ledger.open("total/:x/child", 4)
    assert ledger.store.keys(ledger.group("total/:")) == ["x"]
    ledger.hold("total/:x/runs:1", 5)
    assert ledger.reserve("total/:x/runs:1", 1)[1].at == 0
    assert ledger.held("total/:x") == (5, 0, 1)
    assert [path for path, _, _ in ledger.store.tree(ledger.scope("total"))] == [
        "total", "total/:x", "total/:x/child", "total/:x/runs:1",
    ]  # fmt: skip


def test_caps_of_a_group_hold_for_all_keys_but_those_with_their_own(ledger: Ledger) -> None:
    ledger.open("total")
    ledger.open("total/u:", 10, 20)
    for key in "abc":
        ledger.record(f"total/u:{key}", 8, 8)
    ledger.store.set_caps(ledger.scope("total/u:b"), 15, UNCHANGED, UNCHANGED)
    ledger.store.set_group(ledger.group("total/u:"), 30, None, UNCHANGED)
    rows = [ledger.row(f"total/u:{key}") for key in "abcd"]
    assert [(row.token_cap, row.nano_cap) for row in rows] == [(30, None), (15, None), (30, None), (30, None)]
    assert [row.tokens_claimed for row in rows] == [8, 8, 8, 0]
    assert ledger.record("total/u:a", 22).kind == "done"
    assert ledger.record("total/u:a", 1).kind == "refused"
    assert ledger.record("total/u:b", 7, 10**9).kind == "done"
    assert ledger.open("total/u:", 12).changed == (("token_cap", 30, 12),)
    assert [ledger.row(f"total/u:{key}").token_cap for key in "abcd"] == [12, 15, 12, 12]
    assert statement(ledger.path, "SELECT what, value FROM gave WHERE place < 0 ORDER BY what") == [
        ("nano_cap", None), ("token_cap", 12),
    ]  # fmt: skip


def test_caps_of_a_group_arm_the_thresholds_of_its_keys_again(ledger: Ledger) -> None:
    ledger.open("total")
    ledger.open("total/u:", 10)
    ledger.record("total/u:a", 8)
    assert ledger.store.claim_threshold(ledger.scope("total/u:a"), 1, 8 * 10**8)
    ledger.store.set_group(ledger.group("total/u:"), 9, UNCHANGED, UNCHANGED)
    assert ledger.row("total/u:a").told == (8 * 10**8,)
    ledger.store.set_group(ledger.group("total/u:"), 11, UNCHANGED, UNCHANGED)
    assert ledger.row("total/u:a").told == ()


def test_a_window_of_a_group_holds_for_all_keys_but_those_with_their_own(ledger: Ledger) -> None:
    now = [600.0]

    def every(minutes: int) -> Window:
        return Window.every(dt.timedelta(minutes=minutes), clock=lambda: now[0])

    ledger.open("total")
    ledger.open("total/u:", 10, window=every(1))
    for key in "ab":
        ledger.record(f"total/u:{key}", 8)
    ledger.store.set_caps(ledger.scope("total/u:b"), UNCHANGED, UNCHANGED, every(10))
    now[0] = 660.0  # a's period is over, and nobody has looked
    ledger.store.set_group(ledger.group("total/u:"), UNCHANGED, UNCHANGED, every(60))
    assert [ledger.row(f"total/u:{key}").end for key in "abc"] == [3600.0, 1200.0, 3600.0]
    assert [ledger.used(f"total/u:{key}")[0] for key in "ab"] == [0, 8]
    ledger.record("total/u:a", 3)
    ledger.store.set_group(ledger.group("total/u:"), UNCHANGED, UNCHANGED, None)
    assert [ledger.row(f"total/u:{key}").end for key in "abc"] == [None, 1200.0, None]
    assert ledger.used("total/u:a") == (3, 0)
    assert ledger.group("total/u:").window is None


def test_a_key_that_is_opened_has_what_is_given_as_its_own(ledger: Ledger) -> None:
    ledger.open("total")
    ledger.open("total/u:", 10, 20)
    opened = ledger.open("total/u:ann", 5)
    assert opened.created
    assert opened.changed == (("token_cap", 10, 5),)
    ledger.store.set_group(ledger.group("total/u:"), 30, 40, UNCHANGED)
    assert (ledger.row("total/u:ann").token_cap, ledger.row("total/u:ann").nano_cap) == (5, 40)
    assert ledger.open("total/u:bob").changed == ()


def test_what_another_process_makes_of_a_group_is_noticed(ledger: Ledger, path: Path) -> None:
    ledger.open("total")
    ledger.open("total/u:", 10)
    with others(path) as [other]:
        other("open", "total")
        other("open", "total/u:", 20, None, Window.daily("UTC"), how="mine")
        ledger.record("total/u:ann", 15)
        assert str(ledger.group("total/u:").window) == "daily UTC"
        assert str(ledger.scope("total/u:ann").window) == "daily UTC"
        assert ledger.group("total/u:").token_cap == 20
        assert other("forget", "total/u:ann")
        assert not ledger.store.knows(ledger.scope("total/u:ann"))


def test_a_group_meets_the_same_objections_as_a_scope(ledger: Ledger) -> None:
    ledger.open("total")
    ledger.open("total/u:", 10)
    ledger.record("total/u:ann", 3)
    with others(ledger.path) as [other]:
        other("open", "total")
        with pytest.raises(StoreMismatch, match="pool 'u:': this process gives token_cap 5"):
            other("open", "total/u:", 5)
    assert ledger.group("total/u:").window is None
    hourly = Window.every(dt.timedelta(hours=1))
    assert ledger.open("total/u:", window=hourly).changed == (("window", None, "every 1h"),)
    assert ledger.group("total/u:").window is hourly
    assert ledger.row("total/u:ann").end is not None
    assert ledger.used("total/u:ann") == (3, 0)
    alive(ledger, "token_cap", 10, place=-1)
    with pytest.raises(StoreMismatch, match="pool 'u:'.*has given 10"):
        ledger.open("total/u:", 7, window=Window.daily())
    assert ledger.group("total/u:").window is hourly


def test_a_group_that_has_gone_is_lost(ledger: Ledger) -> None:
    ledger.open("total")
    ledger.open("total/u:", 10)
    statement(ledger.path, "DELETE FROM keyed")
    for step in (
        lambda: ledger.record("total/u:ann", 1),
        lambda: ledger.store.set_group(ledger.group("total/u:"), 5, UNCHANGED, UNCHANGED),
    ):
        with pytest.raises(StoreLost, match="total/u:"):
            step()


def test_a_first_window_of_a_group_brings_its_clock_for_keys_whose_thresholds_were_told(ledger: Ledger) -> None:
    hourly = Window.every(dt.timedelta(hours=1), clock=lambda: 3_600_000.0)
    ledger.open("total")
    ledger.open("total/u:", 10)
    ledger.record("total/u:a", 5)
    assert ledger.store.claim_threshold(ledger.scope("total/u:a"), 1, 5 * 10**8)
    ledger.store.set_group(ledger.group("total/u:"), UNCHANGED, UNCHANGED, hourly)
    assert ledger.used("total/u:a") == (5, 0)
    assert ledger.row("total/u:a").end == 3_603_600.0


def test_a_forgotten_key_begins_anew_and_takes_what_is_below_with_it(ledger: Ledger) -> None:
    ledger.open("total", 100)
    ledger.open("total/u:", 10)
    ann = ledger.scope("total/u:ann")
    assert not ledger.store.forget(ann)
    ledger.open("total/u:ann/runs:", 5)
    ledger.open("total/u:ann/child")
    key = ledger.hold("total/u:ann/runs:1", 2)
    with pytest.raises(ValueError, match="key 'ann' has 1 in flight"):
        ledger.store.forget(ann)
    ledger.commit("total/u:ann/runs:1", key, 2, 2)
    ledger.store.set_caps(ann, 7, UNCHANGED, UNCHANGED)
    assert ledger.store.forget(ann)
    assert statement(ledger.path, "SELECT name FROM scope") == [("total",)]
    assert ledger.row("total/u:ann").token_cap == 10
    assert ledger.used() == (2, 0)
    assert ledger.store.keys(ledger.group("total/u:ann/runs:")) == []
    with pytest.raises(PoolClosed):
        ledger.record("total/u:ann/child", 1)
    gone = ledger.row("total/u:ann/child")
    assert (gone.closed, gone.tokens_claimed, gone.token_cap) == (True, 0, None)
    assert ledger.store.tree(ledger.scope("total/u:ann/child")) == [("total/u:ann/child", "child", gone)]
    assert ledger.open("total/u:ann/child").created
    ledger.record("total/u:ann/child", 1)
    assert ledger.used("total/u:ann") == (1, 0)


def test_keys_whose_period_is_over_are_dropped_as_new_ones_are_made(ledger: Ledger) -> None:
    now = [600.0]
    minute = Window.every(dt.timedelta(minutes=1), clock=lambda: now[0])
    ledger.open("total")
    ledger.open("total/u:", 10, window=minute)
    for number in range(40):
        ledger.record(f"total/u:{number}", 1)
    ledger.hold("total/u:0", 1)  # these four are kept
    ledger.store.set_caps(ledger.scope("total/u:1"), 5, UNCHANGED, UNCHANGED)
    ledger.open("total/u:2/below")
    ledger.record("total/u:3", 9)
    assert ledger.reserve("total/u:3", 1, wait=True)[1].ticket
    now[0] = 660.0
    for number in range(100, 150):
        ledger.record(f"total/u:{number}", 1)
    kept = ledger.store.keys(ledger.group("total/u:"))
    assert kept == ["0", "1", "2", "3", *map(str, range(100, 150))]
    assert ledger.used() == (90 + 9, 0)
    assert ledger.record("total/u:7", 1).kind == "done"  # a handle of a key that was dropped
    assert ledger.used("total/u:7") == (1, 0)


def test_keys_without_a_window_are_kept(ledger: Ledger) -> None:
    ledger.open("total")
    ledger.open("total/u:", 10)
    for number in range(20):
        ledger.record(f"total/u:{number}", 1)
    assert len(ledger.store.keys(ledger.group("total/u:"))) == 20


def test_a_key_takes_at_most_120_bytes_in_the_file(ledger: Ledger) -> None:
    now = [1_790_000_000.0]
    ledger.open("total")
    ledger.open("total/user:", 200_000, 5 * 10**9, Window.daily("Europe/Berlin", clock=lambda: now[0]))
    count = 4000
    for number in range(count):
        ledger.record(f"total/user:user-{number:06}", 1_234, 5_678_901)
    pages = statement(ledger.path, "SELECT sum(pgsize) FROM dbstat WHERE name IN ('scope', 'sqlite_autoindex_scope_1')")
    assert pages[0][0] / count < 120


# ---------------------------------------------------------------------- the tree


def test_the_tree_shows_parents_first_and_else_the_oldest_first(ledger: Ledger) -> None:
    ledger.open("total", 100)
    for name in ("total/b", "total/a", "total/b/c"):
        ledger.open(name)
    ledger.open("total/a/u:", 5)
    ledger.record("total/a/u:x", 3)
    ledger.record("total/b/c", 2)
    tree = ledger.store.tree(ledger.scope("total"))
    assert [(path, name, row.tokens_claimed) for path, name, row in tree] == [
        ("total", "total", 5),
        ("total/b", "b", 2),
        ("total/a", "a", 3),
        ("total/b/c", "c", 2),
        ("total/a/u:x", "u:x", 3),
    ]
    assert [path for path, _, _ in ledger.store.tree(ledger.scope("total/a"))] == ["total/a", "total/a/u:x"]
    assert [path for path, _, _ in ledger.store.tree(ledger.scope("total/a/u:new"))] == ["total/a/u:new"]
