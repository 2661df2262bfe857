"""The SQLite ledger among processes: those that die, fork, or say something else; claims that outlive their holder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sqlite_ledger import LONG, Ledger, audit, others, statement, tables, until
from token_budget.stores._errors import StoreLost, StoreMismatch
from token_budget.stores._store import Answer
from token_budget.stores.sqlite import _owners

WEEK = 7 * 86_400


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "budget.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger(path)
    ledger.open("total", 100)
    ledger.open("total/a", 50)
    yield ledger
    audit(path)
    ledger.store.let_go()


# ---------------------------------------------------------------------- holders that die


def test_a_dead_holder_is_charged_in_full_by_the_next_refused_step(ledger: Ledger) -> None:
    ledger.news()
    with others(ledger.path) as [other]:
        other("open", "total")
        other("open", "total/a")
        key = other("hold", "total/a", 30, 4)
        other("hold", "total", 20)
        pid = other.pid
        assert ledger.held() == (50, 4, 2)
        other.kill()
    assert ledger.reserve("total/a", 30)[1].rows[0].tokens_held == 0
    assert sorted(ledger.news()) == ["expired total", "expired total/a"]
    expired = {one.id: one for one in ledger.store.expired()}
    charged = expired[ledger.store.id_of(key)]
    assert (charged.tokens, charged.nanos, charged.paths) == (30, 4, ("total/a", "total"))
    assert charged.who.split(":")[1] == str(pid)
    assert abs(charged.at - ledger.store._ledger.clock()) < LONG
    assert len(expired) == 2
    assert statement(ledger.path, "SELECT count(*) FROM hold") == [(0,)]
    assert statement(ledger.path, "SELECT count(*) FROM owner") == [(1,)]


@pytest.mark.parametrize("step", ["refused", "expired", "open", "settle"])
def test_each_of_these_steps_charges_the_dead(ledger: Ledger, step: str) -> None:
    with others(ledger.path) as [other]:
        other("open", "total")
        other("hold", "total", 30)
        other.kill()
    steps: dict[str, Callable[[], Any]] = {
        "refused": lambda: ledger.reserve("total", 71),
        "expired": ledger.store.expired,
        "open": lambda: ledger.open("total"),
        "settle": lambda: ledger.store.settle("0" * 16, 0, 0),
    }
    steps[step]()
    assert statement(ledger.path, "SELECT count(*) FROM hold") == [(0,)]


def test_what_died_is_corrected_by_its_id(ledger: Ledger) -> None:
    with others(ledger.path) as [other]:
        other("open", "total")
        other("open", "total/a")
        key = other("hold", "total/a", 30)
        other.kill()
    name = ledger.store.id_of(key)
    assert ledger.store.settle(name, 12, 0) == (Answer("late", counted=(30, 0)), ("total/a", "total"))
    assert ledger.used("total/a") == ledger.used() == (12, 0)
    assert ledger.store.expired() == []
    assert ledger.store.settle(name, 12, 0) == (Answer("repeat", counted=(12, 0)), ("total/a", "total"))
    assert ledger.store.settle(name, 13, 0)[0].counted == (12, 0)
    assert ledger.used() == (12, 0)


def test_a_correction_that_passes_a_cap_is_counted_and_shows_the_chain(ledger: Ledger) -> None:
    with others(ledger.path) as [other]:
        other("open", "total")
        other("open", "total/a")
        key = other("hold", "total/a", 30)
        other.kill()
    answer, paths = ledger.store.settle(ledger.store.id_of(key), 70, 0)
    assert (answer.kind, [row.tokens_claimed for row in answer.rows]) == ("late", [70, 70])
    assert paths == ("total/a", "total")


def test_an_id_that_is_none_is_unknown(ledger: Ledger) -> None:
    key = ledger.hold("total/a", 1)
    ledger.commit("total/a", key, 1, 1)
    for name in ("", "nothing", "0" * 15, "z" * 16, "+" + "1" * 15, "-" + "1" * 15, "f" * 16, "1_0" + "0" * 13,
                 " " * 16, ledger.store.id_of(key), ledger.store.id_of(ledger.store.new_key())):  # fmt: skip
        assert ledger.store.settle(name, 1, 0) == (Answer("unknown"), ())
    assert ledger.used() == (1, 0)


def test_a_claim_of_a_living_process_is_settled_by_its_id(ledger: Ledger) -> None:
    key = ledger.hold("total/a", 30)
    assert ledger.store.settle(ledger.store.id_of(key), 12, 0)[0] == Answer("done", counted=(30, 0))
    assert ledger.commit("total/a", key, 30, 13) == Answer("settled", counted=(12, 0))
    assert ledger.store.release(ledger.chain("total/a"), key, (30, 0)).kind == "settled"
    assert not ledger.store.cancel(ledger.chain("total/a"), key, (30, 0))
    assert ledger.used() == (12, 0)
    assert ledger.held() == (0, 0, 0)


def test_what_was_charged_or_settled_is_kept_for_a_week(ledger: Ledger) -> None:
    with others(ledger.path) as [other]:
        other("open", "total")
        other("hold", "total", 30)
        key = other("hold", "total", 5)
        other.kill()
    ledger.store.settle(ledger.store.id_of(key), 3, 0)
    assert len(ledger.store.expired()) == 1
    now = ledger.store._ledger.clock()
    ledger.store._ledger.clock = lambda: now + WEEK + 10
    assert ledger.store.expired() == []
    ledger.open("total")
    for table in ("expired", "settled", "ended"):
        assert statement(ledger.path, f"SELECT count(*) FROM {table}") == [(0,)]
    assert ledger.used() == (33, 0)


# ---------------------------------------------------------------------- claims that are handed over


def test_a_claim_that_was_handed_over_outlives_its_process(ledger: Ledger) -> None:
    with others(ledger.path) as [other]:
        other("open", "total")
        other("open", "total/a")
        key = other("hold", "total/a", 30)
        handed = other("hand", "total/a", key, 3600)
        other.kill()
    assert ledger.reserve("total/a", 21)[1].kind == "refused"
    assert ledger.held("total/a") == (30, 0, 1)
    assert ledger.store.settle(ledger.store.id_of(handed), 7, 0)[0].kind == "done"
    assert ledger.used("total/a") == (7, 0)
    assert ledger.store.settle(ledger.store.id_of(handed), 7, 0)[0].kind == "repeat"
    assert ledger.store.expired() == []


def test_at_the_end_of_its_lease_it_is_charged_in_full(ledger: Ledger) -> None:
    key = ledger.hand("total/a", ledger.hold("total/a", 30), 60)
    now = ledger.store._ledger.clock()
    ledger.store._ledger.clock = lambda: now + 59
    assert ledger.held() == (30, 0, 1)
    assert ledger.store.expired() == []
    ledger.store._ledger.clock = lambda: now + 61
    assert (ledger.held(), ledger.used()) == ((0, 0, 0), (30, 0))
    [charged] = ledger.store.expired()
    assert charged.id == ledger.store.id_of(key)
    assert charged.who.split(":")[1] == str(os.getpid())
    assert ledger.store.settle(charged.id, 4, 0)[0].kind == "late"
    assert ledger.used() == (4, 0)
    assert statement(ledger.path, "SELECT count(*) FROM lease") == [(0,)]


def test_only_an_open_claim_can_be_handed_over(ledger: Ledger) -> None:
    key = ledger.hold("total/a", 30)
    ledger.commit("total/a", key, 30, 1)
    with pytest.raises(LookupError, match=ledger.store.id_of(key)):
        ledger.hand("total/a", key, 60)
    assert statement(ledger.path, "SELECT count(*) FROM lease") == [(0,)]


def test_the_lease_of_a_claim_that_was_settled_charges_nothing(ledger: Ledger) -> None:
    key = ledger.hand("total/a", ledger.hold("total/a", 30), 60)
    ledger.commit("total/a", key, 30, 2)  # by the fast path, which looks at no lease
    now = ledger.store._ledger.clock()
    ledger.store._ledger.clock = lambda: now + 61
    assert ledger.used() == (2, 0)
    assert ledger.store.expired() == []
    assert statement(ledger.path, "SELECT count(*) FROM lease") == [(0,)]


# ---------------------------------------------------------------------- letting go


def test_what_is_open_when_a_process_lets_go_is_charged_and_may_be_corrected(path: Path) -> None:
    ledger = Ledger(path)
    ledger.open("total", 100)
    ledger.open("total/a", 50)
    key, second = ledger.hold("total/a", 30), ledger.hold("total/a", 10)
    ledger.reserve("total/a", 30, wait=True)
    ledger.store.let_go()
    assert statement(path, "SELECT count(*) FROM waiter") == [(0,)]
    assert statement(path, "SELECT count(*) FROM gave") == [(0,)]
    charged = {one.id: one.tokens for one in ledger.store.expired()}
    assert charged == {ledger.store.id_of(key): 30, ledger.store.id_of(second): 10}
    assert ledger.commit("total/a", key, 30, 4).kind == "late"
    assert ledger.used() == (14, 0)
    assert ledger.store.release(ledger.chain("total/a"), second, (10, 0)).kind == "late"
    assert ledger.used() == (4, 0)
    audit(path)


def test_letting_go_of_one_root_leaves_the_others(ledger: Ledger, path: Path) -> None:
    other = Ledger(path, name="other")
    other.open("other", 10)
    key = other.store.new_key()
    other.store.reserve((other.scope("other"),), key, 5, 0)
    mine = ledger.hold("total/a", 3)
    waiting, _ = ledger.reserve("total/a", 50, wait=True)
    other.store.let_go()
    assert ledger.row("total/a").waiting == 1
    ledger.store.leave(ledger.chain("total/a"), waiting)
    assert ledger.commit("total/a", mine, 3, 3) == Answer("done")
    assert statement(path, "SELECT place FROM gave ORDER BY place") == [(1,), (2,)]
    assert ledger.store.expired() == []


# ---------------------------------------------------------------------- what others say


def test_another_living_process_that_gives_other_caps_is_a_mismatch(ledger: Ledger) -> None:
    with others(ledger.path) as [other]:
        with pytest.raises(StoreMismatch, match=f":{os.getpid()}:.*has given 100; the store has 100"):
            other("open", "total", 60)
        assert other("open", "total").changed == ()
        assert other("open", "total", 60, how="mine").changed == (("token_cap", 100, 60),)
        with pytest.raises(StoreMismatch, match=f":{other.pid}:"):
            ledger.open("total", 100)
        other.kill()
    assert ledger.open("total", 100).changed == (("token_cap", 60, 100),)


def test_windows_alike(ledger: Ledger) -> None:
    from token_budget import Window

    with others(ledger.path) as [other]:
        other("open", "total", None, None, Window.daily("UTC"))
        with pytest.raises(StoreMismatch, match="'monthly UTC'.*has given 'daily UTC'"):
            ledger.open("total", window=Window.monthly())
        assert ledger.row().end is not None
        ledger.record("total", 1)
        assert str(ledger.scope("total").window) == "daily UTC"


def test_caps_that_another_process_sets_hold_here_at_once(ledger: Ledger) -> None:
    ledger.record("total", 90)
    with others(ledger.path) as [other]:
        other("open", "total")
        other("set_caps", "total", 95, "...")
        assert ledger.record("total", 6).kind == "refused"
        other("set_caps", "total", 96, "...")
        assert ledger.record("total", 6).kind == "done"


# ---------------------------------------------------------------------- this process itself


def test_a_process_that_was_declared_dead_goes_on_as_another_owner(ledger: Ledger) -> None:
    key = ledger.hold("total/a", 30)
    before = ledger.store._ledger.connection.owner
    with others(ledger.path) as [other]:
        other("open", "total")
        ledger.store._ledger.connection.alive.give(before)  # as if something had closed the descriptor
        assert other("reserve", "total", 71)[1].kind == "refused"
        assert ledger.reserve("total/a", 5)[1].kind == "granted"
        assert ledger.store._ledger.connection.owner != before
        assert other("reserve", "total", 71)[1].kind == "refused"
        assert ledger.held() == (5, 0, 1)
        assert ledger.commit("total/a", key, 30, 2).kind == "late"
        assert ledger.used() == (2, 0)


def test_a_file_that_does_not_know_this_process_is_an_older_copy(ledger: Ledger, path: Path) -> None:
    ledger.hold("total/a", 5)
    statement(path, "DELETE FROM owner")
    for step in (
        lambda: ledger.reserve("total/a", 1),
        lambda: ledger.record("total/a", 1),
        lambda: ledger.commit("total/a", 5, 1, 1),
        ledger.row,
        ledger.store.expired,
    ):
        with pytest.raises(StoreLost, match="older copy"):
            step()


def test_an_older_copy_in_place_of_the_file_is_noticed(ledger: Ledger, path: Path, tmp_path: Path) -> None:
    """A process that came after the copy was made, and whose file is overwritten in place, so that its inode stays."""
    statement(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copyfile(path, tmp_path / "backup.db")
    with others(path) as [other]:
        other("open", "total")
        other("record", "total", 10)
        before = dict(tables(tmp_path / "backup.db"))
        with_owner = [row for row in tables(path)["owner"] if row not in before["owner"]]
        assert len(with_owner) == 1
        statement(path, "DELETE FROM owner WHERE id = ?", with_owner[0][0])
        with pytest.raises(StoreLost, match="older copy"):
            other("hold", "total", 1)


def test_a_forked_child_is_a_holder_of_its_own(ledger: Ledger) -> None:
    key = ledger.hold("total/a", 5)
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            ledger.store.forked()
            ledger.hold("total/a", 7)
            os.write(writing, b"held")
        finally:
            os._exit(0)
    os.close(writing)
    assert os.read(reading, 4) == b"held"
    os.close(reading)
    os.waitpid(pid, 0)
    assert ledger.held("total/a") == (5, 0, 1)  # the child's is charged
    assert ledger.used("total/a") == (7, 0)
    assert ledger.commit("total/a", key, 5, 5) == Answer("done")


def test_a_dead_holder_of_another_root_is_charged_and_told_there_alone(ledger: Ledger, path: Path) -> None:
    ledger.news()
    with others(path, name="other") as [other]:
        other("open", "other", 10)
        other("hold_alone", "other", 5)
        other.kill()
    assert ledger.store.expired() == []
    assert ledger.news() == []
    again = Ledger(path, name="other")
    again.open("other")
    assert [one.tokens for one in again.store.expired()] == [5]
    again.store.let_go()


def test_what_a_forked_process_knew_is_the_parents(ledger: Ledger) -> None:
    key = ledger.hold("total/a", 5)
    ledger.commit("total/a", key, 5, 5)
    ledger.store.forked()
    assert ledger.store._remembered(key) is None
    ledger.commit("total/a", ledger.hold("total/a", 5), 5, 1)
    assert ledger.used() == (6, 0)


def test_a_forked_child_makes_keys_of_its_own(ledger: Ledger) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            ledger.store.forked()
            os.write(writing, str(ledger.store.new_key()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    theirs = int(os.read(reading, 100))
    os.close(reading)
    os.waitpid(pid, 0)
    assert theirs != ledger.store.new_key()


def test_keys_do_not_repeat_where_a_program_seeds_the_random_module(ledger: Ledger) -> None:
    import random

    random.seed(1)
    first = ledger.store.new_key()
    random.seed(1)
    assert first != ledger.store.new_key()


# ---------------------------------------------------------------------- many at once


def test_processes_together_never_hold_more_than_the_cap_and_lose_nothing(ledger: Ledger) -> None:
    count, each = 4, 150
    with others(ledger.path, count) as processes:
        for other in processes:
            other("open", "total")
            other("open", "total/a")
        for number, other in enumerate(processes):
            other.send("spend", "total/a", each, number)
        told = [other._answer() for other in processes]
    assert sum(told) == ledger.used()[0] == ledger.used("total/a")[0]
    assert ledger.held() == (0, 0, 0)


def test_killed_at_any_point_each_one_is_charged_what_it_was_told_but_for_its_last_call(ledger: Ledger) -> None:
    ledger.store.set_caps(ledger.scope("total"), None, None, None)
    ledger.store.set_caps(ledger.scope("total/a"), None, None, None)
    told = 0
    for pause in (1, 40, 90):
        with others(ledger.path) as [other]:
            other("open", "total")
            other("open", "total/a")
            other.send("spend_and_tell", "total/a", 10_000)
            heard = [other._answer() for _ in range(pause)]
            other.kill()
            while other.pipe.poll():
                try:
                    heard.append(other.pipe.recv())
                except EOFError:
                    break
        told += len(heard)
        until(lambda: ledger.held() == (0, 0, 0))
        used = ledger.used()[0]
        assert told <= used <= told + 1
        told = used


def test_the_system_that_was_started_anew_ends_all_owners(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    with others(ledger.path) as [other]:
        other("open", "total")
        other("hold", "total", 30)
        assert ledger.held() == (30, 0, 1)
        monkeypatch.setattr(_owners, "boot_id", lambda: "another")
        assert ledger.held() == (0, 0, 0)
        monkeypatch.undo()
        assert ledger.used() == (30, 0)
