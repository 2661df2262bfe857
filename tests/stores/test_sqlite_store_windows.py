"""The SQLite ledger over time: periods that end, and claims that are corrected in a later one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pytest

from sqlite_ledger import Ledger, audit, places_of, statement
from token_budget import Window
from token_budget._arguments import UNCHANGED
from token_budget.stores._errors import StoreError
from token_budget.stores.sqlite._owners import charge
from token_budget.stores.sqlite._step import Step

MINUTE = dt.timedelta(minutes=1)


@pytest.fixture
def now() -> list[float]:
    return [600.0]


@pytest.fixture
def window(now: list[float]) -> Window:
    return Window.every(MINUTE, clock=lambda: now[0])


@pytest.fixture
def ledger(tmp_path: Path, window: Window) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "budget.db")
    ledger.open("total", 100)
    ledger.open("total/a", 50, window=window)
    ledger.news()
    yield ledger
    audit(ledger.path)
    ledger.store.let_go()


def die(ledger: Ledger, key: int) -> None:
    """Charge a claim in full, as of a holder that died."""

    def work(step: Step) -> None:
        found = step.execute("SELECT chain, tokens, nanos FROM hold WHERE id = ?", (key,)).fetchone()
        chain, tokens, nanos = found
        charge(step, key, chain, tokens, nanos, "host:1:2")

    ledger.store._step(work)


def test_a_period_that_is_over_begins_anew_with_what_is_held(ledger: Ledger, now: list[float]) -> None:
    ledger.record("total/a", 30)
    ledger.hold("total/a", 10)
    now[0] = 660.0
    assert (ledger.row("total/a").start, ledger.row("total/a").end, ledger.row("total/a").era) == (660.0, 720.0, 2)
    assert ledger.news() == []  # it was only shown
    assert ledger.record("total/a", 40).kind == "done"
    assert ledger.news() == ["roll-over total/a"]
    assert ledger.used("total/a") == (40, 0)
    assert ledger.used() == (70, 0)
    assert ledger.record("total/a", 1).kind == "refused"


def test_what_is_committed_after_the_period_counts_in_the_new_one(ledger: Ledger, now: list[float]) -> None:
    key = ledger.hold("total/a", 10)
    now[0] = 660.0
    assert ledger.commit("total/a", key, 10, 12).kind == "done"
    assert ledger.news() == ["roll-over total/a"]
    assert ledger.used("total/a") == (12, 0)


def test_a_release_after_the_period_needs_no_clock(ledger: Ledger, now: list[float]) -> None:
    first, second = ledger.hold("total/a", 10), ledger.hold("total/a", 5)
    ledger.scope("total/a").window = Window.every(MINUTE, clock=broken)
    assert ledger.store.release(ledger.chain("total/a"), first, (10, 0)).kind == "done"
    assert ledger.store.cancel(ledger.chain("total/a"), second, (5, 0))
    ledger.scope("total/a").window = Window.every(MINUTE, clock=lambda: now[0])
    assert ledger.held("total/a") == (0, 0, 0)


def test_a_clock_that_raises_changes_nothing(ledger: Ledger, window: Window) -> None:
    key = ledger.hold("total/a", 10)
    ledger.scope("total/a").window = Window.every(MINUTE, clock=broken)
    for step in (
        lambda: ledger.reserve("total/a", 1),
        lambda: ledger.record("total/a", 1),
        lambda: ledger.commit("total/a", key, 10, 5),
    ):
        with pytest.raises(ZeroDivisionError):
            step()
    ledger.scope("total/a").window = window
    assert ledger.held("total/a") == (10, 0, 1)
    assert ledger.used("total/a") == (0, 0)


def broken() -> float:
    raise ZeroDivisionError


def test_a_clock_that_goes_back_reopens_no_period(ledger: Ledger, now: list[float]) -> None:
    now[0] = 660.0
    ledger.record("total/a", 50)
    for earlier in (659.0, 600.0, 0.0):
        now[0] = earlier
        assert ledger.record("total/a", 1).kind == "refused"
        assert (ledger.row("total/a").start, ledger.row("total/a").era) == (660.0, 2)


def test_a_clock_that_goes_back_reopens_no_period_of_a_key_that_was_dropped(
    ledger: Ledger, now: list[float], window: Window
) -> None:
    ledger.open("total/u:", 10, window=window)
    ledger.record("total/u:ann", 10)
    now[0] = 660.0
    ledger.record("total/u:bob", 1)
    ledger.record("total/u:cid", 1)
    assert not ledger.store.knows(ledger.scope("total/u:ann"))
    now[0] = 600.0
    assert ledger.row("total/u:ann").start == 660.0
    assert ledger.record("total/u:ann", 10).kind == "done"
    assert ledger.record("total/u:ann", 1).kind == "refused"
    assert (ledger.row("total/u:ann").start, ledger.row("total/u:new").end) == (660.0, 720.0)
    now[0] = 720.0
    assert ledger.row("total/u:new").start == 720.0


def test_reset_takes_the_period_of_the_clock(ledger: Ledger, now: list[float]) -> None:
    now[0] = 6000.0
    ledger.record("total/a", 50)
    ledger.hold("total", 7)
    now[0] = 600.0
    ledger.store.reset(ledger.scope("total/a"))
    row = ledger.row("total/a")
    assert (row.start, row.end, row.era, row.tokens_claimed) == (600.0, 660.0, 3, 0)
    ledger.store.reset(ledger.scope("total"))
    assert (ledger.used(), ledger.held(), ledger.row().era) == ((0, 0), (7, 0, 1), 2)


def test_a_window_that_another_process_sets_is_noticed(ledger: Ledger, tmp_path: Path) -> None:
    """As if another process had set it: nothing in this one knows of it."""
    ledger.record("total", 100)
    statement(ledger.path, "INSERT INTO window (text) VALUES ('every 1h')")
    window = "(SELECT id FROM window WHERE text = 'every 1h')"
    statement(ledger.path, f"UPDATE scope SET window = {window}, starts = 0, ends = 3600 WHERE id = 1")
    assert ledger.record("total", 5).kind == "done"
    assert str(ledger.scope("total").window) == "every 1h"
    assert ledger.used() == (5, 0)


def test_a_window_that_cannot_be_read_here_is_an_error_that_names_it(ledger: Ledger) -> None:
    statement(ledger.path, "INSERT INTO window (text) VALUES ('daily Atlantis/Main')")
    statement(ledger.path, "UPDATE scope SET window = (SELECT max(id) FROM window), ends = 5 WHERE id = 1")
    with pytest.raises(StoreError, match="Atlantis"):
        ledger.record("total", 5)


def test_a_new_window_keeps_what_is_used_and_its_end_holds_from_then_on(
    ledger: Ledger, now: list[float], window: Window
) -> None:
    ledger.record("total/a", 30)
    hourly = Window.every(dt.timedelta(hours=1), clock=window.clock)
    ledger.store.set_caps(ledger.scope("total/a"), UNCHANGED, UNCHANGED, hourly)
    assert ledger.scope("total/a").window is hourly
    assert (ledger.row("total/a").end, ledger.used("total/a")) == (3600.0, (30, 0))
    now[0] = 3600.0
    assert ledger.used("total/a") == (0, 0)
    ledger.store.set_caps(ledger.scope("total/a"), UNCHANGED, UNCHANGED, None)
    assert ledger.scope("total/a").window is None
    row = ledger.row("total/a")
    assert (row.start, row.end) == (None, None)


def test_a_window_that_text_cannot_name_is_refused(ledger: Ledger) -> None:
    class Odd(dt.tzinfo):
        def utcoffset(self, when: dt.datetime | None) -> dt.timedelta:
            return dt.timedelta(hours=1)

        def dst(self, when: dt.datetime | None) -> dt.timedelta:
            return dt.timedelta(0)

        def tzname(self, when: dt.datetime | None) -> str:
            return "odd"

    with pytest.raises(ValueError, match="store keeps text"):
        ledger.open("total/b", window=Window.daily(Odd()))
    with pytest.raises(ValueError, match="store keeps text"):
        ledger.store.set_caps(ledger.scope("total/a"), UNCHANGED, UNCHANGED, Window.daily(Odd()))


# ---------------------------------------------------------------------- charged, and corrected late


def test_in_the_era_of_the_charge_a_late_commit_corrects_both_ways(ledger: Ledger) -> None:
    for amount in (4, 15):
        before = ledger.used()[0]
        key = ledger.hold("total/a", 10)
        die(ledger, key)
        assert ledger.used() == (before + 10, 0)
        assert ledger.held() == (0, 0, 0)
        assert ledger.commit("total/a", key, 10, amount).kind == "late"
        assert ledger.used() == ledger.used("total/a") == (before + amount, 0)
        assert ledger.store.expired() == []
        assert ledger.commit("total/a", key, 10, amount).kind == "repeat"


@pytest.mark.parametrize(("amount", "new"), [(4, 0), (10, 0), (13, 3)])
def test_in_a_later_era_only_what_is_above_the_charge_is_new(
    ledger: Ledger, now: list[float], amount: int, new: int
) -> None:
    key = ledger.hold("total/a", 10)
    die(ledger, key)
    now[0] = 660.0
    assert ledger.commit("total/a", key, 10, amount).kind == "late"
    assert ledger.used("total/a") == (new, 0)
    assert ledger.used() == (amount, 0)  # the root has no window: it is in the era of the charge


def test_a_reset_between_is_another_era(ledger: Ledger) -> None:
    key = ledger.hold("total/a", 10)
    die(ledger, key)
    ledger.store.reset(ledger.scope("total"))
    assert ledger.store.release(ledger.chain("total/a"), key, (10, 0)).kind == "late"
    assert ledger.used("total/a") == ledger.used() == (0, 0)


def test_the_charge_counts_in_the_period_in_which_it_is_made(ledger: Ledger, now: list[float]) -> None:
    key = ledger.hold("total/a", 10)
    now[0] = 660.0
    die(ledger, key)
    assert ledger.used("total/a") == (10, 0)
    assert [place[0][1] for place in places_of(ledger.path)] == [2]
    assert ledger.news() == ["expired total/a", "roll-over total/a"]


def test_a_late_commit_for_a_key_that_was_dropped_since_makes_it_anew(
    ledger: Ledger, now: list[float], window: Window
) -> None:
    ledger.open("total/u:", 50, window=window)
    key = ledger.hold("total/u:ann", 10)
    die(ledger, key)
    now[0] = 660.0
    assert ledger.store.forget(ledger.scope("total/u:ann"))
    assert ledger.commit("total/u:ann", key, 10, 12).kind == "late"
    assert ledger.used("total/u:ann") == (2, 0)
    assert ledger.used() == (12, 0)


def test_a_late_commit_counts_what_is_new_where_a_scope_is_gone_for_good(ledger: Ledger) -> None:
    ledger.open("total/u:", 50)
    ledger.open("total/u:ann/child")
    key = ledger.hold("total/u:ann/child", 10)
    die(ledger, key)
    ledger.store.forget(ledger.scope("total/u:ann"))
    answer, paths = ledger.store.settle(ledger.store.id_of(key), 12, 0)
    assert (answer.kind, paths) == ("late", ("total/u:ann", "total"))
    assert ledger.used("total/u:ann") == (2, 0)
    assert ledger.used() == (12, 0)


def test_a_late_commit_counts_in_the_root_where_the_whole_group_is_gone(ledger: Ledger) -> None:
    ledger.open("total/u:", 50)
    ledger.open("total/u:ann/runs:")
    key = ledger.hold("total/u:ann/runs:1", 10)
    die(ledger, key)
    ledger.store.forget(ledger.scope("total/u:ann"))
    answer, paths = ledger.store.settle(ledger.store.id_of(key), 12, 0)
    assert (answer.kind, paths) == ("late", ("total/u:ann", "total"))


# ---------------------------------------------------------------------- thresholds


def test_a_threshold_is_told_once_an_era(ledger: Ledger, now: list[float]) -> None:
    a = ledger.scope("total/a")
    half, most = 5 * 10**8, 8 * 10**8
    ledger.record("total/a", 45)
    assert [ledger.store.claim_threshold(a, 1, parts) for parts in (half, half, most, most)] == [
        True,
        False,
        True,
        False,
    ]
    assert ledger.row("total/a").told == (half, most)
    assert not ledger.store.claim_threshold(a, 2, half)
    now[0] = 660.0
    assert not ledger.store.claim_threshold(a, 1, half)  # that era is over
    assert ledger.store.claim_threshold(a, 2, half)
    ledger.store.reset(a)
    assert ledger.row("total/a").told == ()
    assert ledger.store.claim_threshold(a, 3, half)


def test_caps_that_leave_less_than_the_share_used_arm_a_threshold_again(ledger: Ledger) -> None:
    a, half = ledger.scope("total/a"), 5 * 10**8
    ledger.record("total/a", 25)
    ledger.store.claim_threshold(a, 1, half)
    ledger.store.set_caps(a, 50, UNCHANGED, UNCHANGED)
    assert ledger.row("total/a").told == (half,)
    ledger.store.set_caps(a, 51, UNCHANGED, UNCHANGED)
    assert ledger.row("total/a").told == ()
    assert ledger.store.claim_threshold(a, 1, half)
    ledger.open("total/a", 100)
    assert ledger.row("total/a").told == ()


def test_a_threshold_is_armed_by_the_caps_after_all_changes(ledger: Ledger) -> None:
    """Reached on the tokens before and on the dollars after, it stays told."""
    half = 5 * 10**8
    ledger.open("total/u:", 50)
    for path in ("total/a", "total/u:ann"):
        ledger.record(path, 25, 10)
        assert ledger.store.claim_threshold(ledger.scope(path), 1, half)
    ledger.store.set_caps(ledger.scope("total/a"), None, 20, UNCHANGED)
    ledger.store.set_group(ledger.group("total/u:"), None, 20, UNCHANGED)
    for path in ("total/a", "total/u:ann"):
        assert ledger.row(path).told == (half,)
    ledger.store.set_caps(ledger.scope("total/a"), None, 21, UNCHANGED)
    ledger.store.set_group(ledger.group("total/u:"), None, 21, UNCHANGED)
    for path in ("total/a", "total/u:ann"):
        assert ledger.row(path).told == ()


def test_a_threshold_of_a_key_that_is_gone_is_not_told(ledger: Ledger) -> None:
    ledger.open("total/u:", 10)
    assert not ledger.store.claim_threshold(ledger.scope("total/u:ann"), 1, 10**8)
