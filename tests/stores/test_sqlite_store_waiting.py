"""The SQLite ledger's waiters: tickets in the order of arrival, and the watch that tells when to try again."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from sqlite_ledger import LONG, Ledger, audit, others, statement, until
from token_budget import PoolClosed, Window
from token_budget._arguments import UNCHANGED
from token_budget.stores.sqlite import _waiters


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "budget.db")
    ledger.open("total", 100)
    ledger.open("total/a", 50)
    ledger.open("total/b", 50)
    yield ledger
    audit(ledger.path)
    ledger.store.let_go()


def wait(ledger: Ledger, path: str, tokens: int, key: int | None = None) -> tuple[int, int]:
    """Have a claim wait. Return its key and its ticket."""
    key, answer = ledger.reserve(path, tokens, key=key, wait=True)
    assert answer.kind == "refused"
    return key, answer.ticket


def test_nobody_overtakes_who_waits_for_room_that_both_need(ledger: Ledger) -> None:
    held = ledger.hold("total/a", 45)
    first, ticket = wait(ledger, "total/a", 10)
    second, later = wait(ledger, "total/a", 1)  # it would fit, and came later
    assert ticket < later
    assert ledger.reserve("total/a", 1)[1].kind == "refused"
    assert ledger.record("total/a", 1).kind == "refused"
    assert ledger.reserve("total/a", 1, key=second, wait=True)[1].ticket == later
    assert ledger.reserve("total/b", 5)[1].kind == "granted"  # who does not need that scope is not held up
    assert ledger.row("total/a").waiting == 2
    ledger.commit("total/a", held, 45, 0)
    assert ledger.reserve("total/a", 1, key=second, wait=True)[1].kind == "refused"
    assert ledger.reserve("total/a", 10, key=first, wait=True)[1].kind == "granted"
    assert ledger.reserve("total/a", 1, key=second, wait=True)[1].kind == "granted"
    assert ledger.row("total/a").waiting == 0


def test_a_waiter_keeps_its_ticket_when_it_moves_on(ledger: Ledger) -> None:
    in_a, in_b = ledger.hold("total/a", 50), ledger.hold("total/b", 50)
    moving, ticket = wait(ledger, "total/a", 10)
    newer, _ = wait(ledger, "total", 10)
    assert (ledger.row("total/a").waiting, ledger.row().waiting) == (1, 1)
    ledger.commit("total/a", in_a, 50, 0)  # room in both for one of them; the newer one is there already
    assert ledger.reserve("total", 10, key=newer, wait=True)[1].kind == "granted"
    ledger.hold("total", 40)
    key, answer = ledger.reserve("total/a", 10, key=moving, wait=True)
    assert (answer.kind, answer.at, answer.ticket) == ("refused", 1, ticket)
    assert (ledger.row("total/a").waiting, ledger.row().waiting) == (0, 1)
    last, _ = wait(ledger, "total", 10)
    ledger.commit("total/b", in_b, 50, 0)
    assert ledger.reserve("total", 10, key=last, wait=True)[1].kind == "refused"
    assert ledger.reserve("total/a", 10, key=key, wait=True)[1].kind == "granted"
    assert ledger.reserve("total", 10, key=last, wait=True)[1].kind == "granted"


def test_an_older_waiter_that_moves_on_goes_before_the_newer_ones_there(ledger: Ledger) -> None:
    ledger.hold("total/a", 50)
    ledger.hold("total", 50)
    older, _ = wait(ledger, "total/a", 10)
    newer, _ = wait(ledger, "total", 10)
    ledger.store.set_caps(ledger.scope("total/a"), 80, UNCHANGED, UNCHANGED)
    assert ledger.reserve("total/a", 10, key=older, wait=True)[1].at == 1
    ledger.store.set_caps(ledger.scope("total"), 115, UNCHANGED, UNCHANGED)
    assert ledger.reserve("total", 10, key=newer, wait=True)[1].kind == "refused"
    assert ledger.reserve("total/a", 10, key=older, wait=True)[1].kind == "granted"


def test_who_leaves_lets_the_next_one_go_on(ledger: Ledger) -> None:
    ledger.hold("total/a", 45)
    first, _ = wait(ledger, "total/a", 10)
    second, _ = wait(ledger, "total/a", 5)
    answer = ledger.store.leave(ledger.chain("total/a"), first)
    assert (answer.kind, answer.at, len(answer.rows), answer.rows[0].waiting) == ("left", 0, 2, 1)
    assert ledger.store.leave(ledger.chain("total/a"), first).kind == "left"  # once more changes nothing
    assert ledger.reserve("total/a", 5, key=second, wait=True)[1].kind == "granted"
    assert ledger.store.leave(ledger.chain("total/a"), second).kind == "granted"
    assert ledger.held("total/a") == (50, 0, 2)


def test_at_tells_where_one_that_leaves_has_waited(ledger: Ledger) -> None:
    ledger.hold("total", 100)
    key, _ = wait(ledger, "total/a", 10)
    assert ledger.store.leave(ledger.chain("total/a"), key).at == 1


def test_a_waiter_at_a_key_makes_the_key_and_goes_with_it(ledger: Ledger) -> None:
    ledger.open("total/u:", 5)
    key, _ = wait(ledger, "total/u:ann", 6)
    assert ledger.store.knows(ledger.scope("total/u:ann"))
    assert ledger.store.forget(ledger.scope("total/u:ann"))
    assert statement(ledger.path, "SELECT count(*) FROM waiter") == [(0,)]
    assert wait(ledger, "total/u:ann", 6, key)[0] == key
    assert ledger.store.leave(ledger.chain("total/u:ann"), key).kind == "left"


def test_a_waiter_whose_scope_is_closed_is_told_so_and_leaves(ledger: Ledger) -> None:
    ledger.hold("total/a", 50)
    key, _ = wait(ledger, "total/a", 1)
    ledger.store.close(ledger.scope("total/a"))
    with pytest.raises(PoolClosed):
        ledger.reserve("total/a", 1, key=key, wait=True)
    assert ledger.store.leave(ledger.chain("total/a"), key).rows[0].closed


def test_nothing_asked_waits_its_turn_too(ledger: Ledger) -> None:
    ledger.hold("total/a", 50)
    key, _ = wait(ledger, "total/a", 1)
    assert ledger.reserve("total/a", 0)[1].kind == "refused"
    ledger.store.leave(ledger.chain("total/a"), key)
    assert ledger.reserve("total/a", 0)[1].kind == "granted"


# ---------------------------------------------------------------------- watching


class Watching:
    """A thread that watches until somebody may fit. ``found`` is what the watch returned."""

    def __init__(self, ledger: Ledger, *heads: Any) -> None:
        self.heads = list(heads)
        self.found: Collection[Any] | None = ()
        self.looks = 0
        self.thread = threading.Thread(target=self.watch, args=(ledger,), daemon=True)
        self.thread.start()

    def watch(self, ledger: Ledger) -> None:
        while not self.found:
            self.found = ledger.store.watch(self.heads, 0.2)
            self.looks += 1
            if self.found is None:
                return

    def end(self) -> Collection[Any] | None:
        self.thread.join(LONG)
        assert not self.thread.is_alive()
        return self.found


def head(ledger: Ledger, path: str, key: int, tokens: int) -> Any:
    return (ledger.chain(path), key, tokens, 0)


def seen(watching: Watching) -> None:
    """Wait until a watch has looked thoroughly and found nobody."""
    looks = watching.looks
    until(lambda: watching.looks > looks + 1)
    assert watching.thread.is_alive()


@pytest.mark.parametrize("how", ["commit", "release", "cancel", "reset", "caps", "leave"])
def test_a_watch_ends_when_something_in_this_process_makes_room(ledger: Ledger, how: str) -> None:
    chain = ledger.chain("total/a")
    held = ledger.hold("total/a", 30)
    ledger.record("total/a", 15)
    first, _ = wait(ledger, "total/a", 20)
    second, _ = wait(ledger, "total/a", 5)
    watched = (second, 5) if how == "leave" else (first, 20)
    watching = Watching(ledger, head(ledger, "total/a", *watched))
    seen(watching)
    steps: dict[str, Callable[[], Any]] = {
        "commit": lambda: ledger.commit("total/a", held, 30, 0),
        "release": lambda: ledger.store.release(chain, held, (30, 0)),
        "cancel": lambda: ledger.store.cancel(chain, held, (30, 0)),
        "reset": lambda: ledger.store.reset(ledger.scope("total/a")),
        "caps": lambda: ledger.store.set_caps(ledger.scope("total/a"), 70, UNCHANGED, UNCHANGED),
        "leave": lambda: ledger.store.leave(chain, first),
    }
    steps[how]()
    assert watching.end() == [watched[0]]


def test_a_watch_ends_when_a_period_does(ledger: Ledger) -> None:
    now = [600.0]
    minute = Window.every(dt.timedelta(minutes=1), clock=lambda: now[0])
    ledger.open("total/c", 10, window=minute)
    ledger.record("total/c", 10)
    key, _ = wait(ledger, "total/c", 1)
    watching = Watching(ledger, head(ledger, "total/c", key, 1))
    assert watching.end() == [key]  # once: who waits for the next period may be in vain, which the front tells
    watching = Watching(ledger, head(ledger, "total/c", key, 1))
    seen(watching)
    now[0] = 660.0
    assert watching.end() == [key]
    assert ledger.reserve("total/c", 1, key=key, wait=True)[1].kind == "granted"


def test_a_watch_tells_who_has_come_to_wait_in_vain(ledger: Ledger) -> None:
    ledger.hold("total/a", 50)
    key, _ = wait(ledger, "total/a", 10)
    watching = Watching(ledger, head(ledger, "total/a", key, 10))
    seen(watching)
    ledger.store.set_caps(ledger.scope("total/a"), 5, UNCHANGED, UNCHANGED)
    assert watching.end() == [key]


def test_a_watch_tells_who_is_to_wait_elsewhere(ledger: Ledger) -> None:
    held = ledger.hold("total/a", 50)
    key, _ = wait(ledger, "total/a", 10)
    watching = Watching(ledger, head(ledger, "total/a", key, 10))
    seen(watching)
    ledger.hold("total", 50)
    ledger.store.set_caps(ledger.scope("total/a"), 70, UNCHANGED, UNCHANGED)
    assert watching.end() == [key]
    assert ledger.reserve("total/a", 10, key=key, wait=True)[1].at == 1
    ledger.commit("total/a", held, 50, 50)


def test_a_watch_reads_who_waits_anew_at_each_look(ledger: Ledger) -> None:
    ledger.hold("total/a", 50)
    first, _ = wait(ledger, "total/a", 10)
    watching = Watching(ledger, head(ledger, "total/a", first, 10))
    seen(watching)
    ledger.hold("total/b", 45)
    second, _ = wait(ledger, "total/b", 6)
    ledger.store.set_caps(ledger.scope("total/b"), 60, UNCHANGED, UNCHANGED)
    watching.heads[:] = [*watching.heads, head(ledger, "total/b", second, 5)]
    assert watching.end() == [second]


def test_a_watch_knows_nothing_of_a_scope_that_is_gone(ledger: Ledger) -> None:
    ledger.hold("total/a", 50)
    key, _ = wait(ledger, "total/a", 10)
    watching = Watching(ledger, head(ledger, "total/a", key, 10))
    seen(watching)
    ledger.store.close(ledger.scope("total/a"))
    assert watching.end() == [key]
    statement(ledger.path, "PRAGMA recursive_triggers")  # and a chain that cannot be read at all
    ledger.open("total/u:", 5)
    ledger.open("total/u:x/below")
    ledger.store.forget(ledger.scope("total/u:x"))
    assert Watching(ledger, head(ledger, "total/u:x/below", 5, 1)).end() is None
    ledger.store.leave(ledger.chain("total/a"), key)


def test_a_watch_ends_after_its_seconds(ledger: Ledger) -> None:
    ledger.hold("total/a", 50)
    key, _ = wait(ledger, "total/a", 10)
    heads = [head(ledger, "total/a", key, 10)]
    assert not ledger.store.watch(heads, 0.0)
    assert not ledger.store.watch(heads, 0.01)
    assert not ledger.store.watch([], 0.01)


def test_a_watch_looks_thoroughly_only_when_something_has_changed(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.hold("total/a", 50)
    key, _ = wait(ledger, "total/a", 10)
    state = _waiters.Watch(ledger.store._ledger)
    monkeypatch.setattr(ledger.store, "_watch", state)
    thorough: list[int] = []
    looked = _waiters.Watch._thorough

    def noted(self: _waiters.Watch, *arguments: Any) -> Any:
        thorough.append(self._looks)
        return looked(self, *arguments)

    monkeypatch.setattr(_waiters.Watch, "_thorough", noted)
    heads = [head(ledger, "total/a", key, 10)]
    for _ in range(_waiters._LOOK_ANYWAY + 1):
        ledger.store.watch(heads, 0)
    assert thorough == [1, _waiters._LOOK_ANYWAY]
    ledger.hold("total/b", 1)
    ledger.store.watch(heads, 0)
    assert len(thorough) == 3


# ---------------------------------------------------------------------- between processes


def test_tickets_are_in_the_order_of_arrival_over_processes(ledger: Ledger) -> None:
    held = ledger.hold("total/a", 50)
    with others(ledger.path) as [other]:
        other("open", "total")
        other("open", "total/a")
        theirs, answer = other("reserve", "total/a", 40, wait=True)
        mine, later = wait(ledger, "total/a", 40)
        assert answer.ticket < later
        assert ledger.reserve("total/a", 40, key=mine, wait=True)[1].kind == "refused"
        watching = Watching(ledger, head(ledger, "total/a", mine, 40))
        seen(watching)
        ledger.commit("total/a", held, 50, 0)
        assert ledger.reserve("total/a", 40, key=mine, wait=True)[1].kind == "refused"
        assert other("reserve", "total/a", 40, key=theirs, wait=True)[1].kind == "granted"
        assert watching.thread.is_alive()
        assert other("commit", "total/a", theirs, 40, 3).kind == "done"
        assert watching.end() == [mine]
        assert ledger.reserve("total/a", 40, key=mine, wait=True)[1].kind == "granted"


def test_a_waiter_that_died_is_passed_over(ledger: Ledger) -> None:
    held = ledger.hold("total/a", 50)
    with others(ledger.path) as [other]:
        other("open", "total")
        other("open", "total/a")
        other("reserve", "total/a", 10, wait=True)
        mine, _ = wait(ledger, "total/a", 20)
        ledger.commit("total/a", held, 50, 0)
        watching = Watching(ledger, head(ledger, "total/a", mine, 20))
        seen(watching)
        began = time.monotonic()
        other.kill()
        assert watching.end() is None  # all are to be tried
        assert time.monotonic() - began < LONG
        assert ledger.row("total/a").waiting == 1  # as it will be
        assert ledger.reserve("total/a", 20, key=mine, wait=True)[1].kind == "granted"
        assert statement(ledger.path, "SELECT count(*) FROM waiter") == [(0,)]
