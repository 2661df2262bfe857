"""The SQLite ledger in one process: what each step that spends does to the file, and what it answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sqlite_ledger import Ledger, audit, statement, tables
from token_budget import PoolClosed
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError
from token_budget.stores._store import Answer
from token_budget.stores.sqlite import _fast, _slow
from token_budget.stores.sqlite._connection import Connection, Unsynced
from token_budget.stores.sqlite._schema import CLAIMED_AT_MOST
from token_budget.stores.sqlite._scopes import rows_of
from token_budget.stores.sqlite._step import Step


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "budget.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger(path)
    ledger.open("total", 100, 1000)
    ledger.open("total/a", 50)
    ledger.open("total/b")
    yield ledger
    audit(path)
    ledger.store.let_go()


def is_slow(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the name of each step that takes the slow path from now on."""
    taken: list[str] = []
    slowly = _fast.FastPath._slowly

    def noted(self: Any, execute: Any, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        taken.append(work.__name__)
        return slowly(self, execute, work, *arguments, **options)

    monkeypatch.setattr(_fast.FastPath, "_slowly", noted)
    return taken


# ---------------------------------------------------------------------- reserve


def test_a_reserve_holds_in_every_scope_of_its_chain(ledger: Ledger) -> None:
    key, answer = ledger.reserve("total/a", 5, 7)
    assert answer == Answer("granted")
    assert ledger.held("total/a") == ledger.held() == (5, 7, 1)
    assert ledger.held("total/b") == (0, 0, 0)
    assert statement(ledger.path, "SELECT id, tokens, nanos FROM hold") == [(key, 5, 7)]


def test_the_common_steps_take_the_fast_path(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.record("total/a")  # this process is known from now on
    slow = is_slow(monkeypatch)
    key = ledger.hold("total/a", 5, 7)
    ledger.commit("total/a", key, (5, 7), (3, 3))
    ledger.record("total/a", 1)
    key = ledger.hold("total/a", 5, 7)
    ledger.store.release(ledger.chain("total/a"), key, (5, 7))
    assert slow == []
    assert ledger.used("total/a") == ledger.used() == (4, 3)


@pytest.mark.parametrize("rows", [False, True])
def test_a_refused_reserve_changes_nothing_and_shows_the_chain(ledger: Ledger, rows: bool) -> None:
    ledger.hold("total/b", 90, 0)
    before = tables(ledger.path)
    _, answer = ledger.reserve("total/a", 11, rows=rows)
    assert (answer.kind, answer.at, answer.ticket) == ("refused", 1, 0)
    assert [row.tokens_claimed for row in answer.rows] == [0, 90]
    assert tables(ledger.path) == before


def test_the_first_scope_of_the_chain_without_room_refuses(ledger: Ledger) -> None:
    ledger.hold("total/a", 50)
    ledger.hold("total/b", 50)
    assert ledger.reserve("total/a", 1)[1].at == 0
    assert ledger.reserve("total/b", 1)[1].at == 1


def test_an_axis_of_which_nothing_is_asked_refuses_nothing(ledger: Ledger) -> None:
    ledger.record("total/a", 0, 2000, force=True)  # the dollars are overrun
    key, answer = ledger.reserve("total/a", 5)
    assert answer.kind == "granted"
    assert ledger.commit("total/a", key, 5, 5).kind == "done"
    assert ledger.record("total/a", 5).kind == "done"
    assert ledger.reserve("total/a", 0, 1)[1].at == 1


@pytest.mark.parametrize("step", ["reserve", "record", "commit", "release"])
def test_rows_are_given_where_they_are_asked_for(ledger: Ledger, step: str) -> None:
    key = ledger.hold("total/a", 4)
    chain = ledger.chain("total/a")
    answer = {
        "reserve": lambda: ledger.store.reserve(chain, ledger.store.new_key(), 5, 0, rows=True),
        "record": lambda: ledger.store.record(chain, 5, 0, rows=True),
        "commit": lambda: ledger.store.commit(chain, key, (4, 0), (9, 0), rows=True),
        "release": lambda: ledger.store.release(chain, key, (4, 0), rows=True),
    }[step]()
    claimed = {"reserve": 9, "record": 9, "commit": 9, "release": 0}[step]
    assert [row.tokens_claimed for row in answer.rows] == [claimed, claimed]
    assert answer.rows == ledger.store.read(chain)


def test_a_reserve_with_the_same_key_is_a_repeat(ledger: Ledger) -> None:
    key = ledger.hold("total/a", 5)
    assert ledger.reserve("total/a", 5, key=key)[1].kind == "granted"
    assert ledger.held() == (5, 0, 1)


def test_a_scope_without_caps_is_never_full(ledger: Ledger) -> None:
    ledger.store.set_caps(ledger.scope("total"), None, None, None)
    for _ in range(8):
        ledger.hold("total/b", 10**18, 10**18)
    assert ledger.held() == (8 * 10**18, 8 * 10**18, 8)


def test_a_join_counts_each_scope_once(ledger: Ledger) -> None:
    key = ledger.hold("total/a total/b", 5)
    assert ledger.held("total/a") == ledger.held("total/b") == ledger.held() == (5, 0, 1)
    ledger.commit("total/a total/b", key, 5, 3)
    assert ledger.used("total/a") == ledger.used("total/b") == ledger.used() == (3, 0)


# ---------------------------------------------------------------------- commit, release, record


@pytest.mark.parametrize("amount", [0, 3, 5, 9])
def test_a_commit_counts_what_it_cost_in_place_of_what_it_held(ledger: Ledger, amount: int) -> None:
    key = ledger.hold("total/a", 5)
    assert ledger.commit("total/a", key, 5, amount) == Answer("done")
    assert ledger.used("total/a") == ledger.used() == (amount, 0)
    assert ledger.held() == (0, 0, 0)


def test_a_commit_that_passes_a_cap_is_counted_and_shows_the_chain(ledger: Ledger) -> None:
    key = ledger.hold("total/a", 5)
    answer = ledger.commit("total/a", key, 5, 60)
    assert answer.kind == "done"
    assert [row.tokens_claimed for row in answer.rows] == [60, 60]
    assert ledger.used() == (60, 0)


def test_a_repeated_commit_counts_once(ledger: Ledger) -> None:
    key = ledger.hold("total/a", 5)
    ledger.commit("total/a", key, 5, 3)
    assert ledger.commit("total/a", key, 5, 3) == Answer("repeat", counted=(3, 0))
    assert ledger.commit("total/a", key, 5, 4) == Answer("repeat", counted=(3, 0))
    assert ledger.used() == (3, 0)


def test_a_repeated_release_changes_nothing(ledger: Ledger) -> None:
    key = ledger.hold("total/a", 5)
    chain = ledger.chain("total/a")
    assert ledger.store.release(chain, key, (5, 0)) == Answer("done")
    assert ledger.store.release(chain, key, (5, 0)) == Answer("done")
    assert ledger.row().tokens_claimed == 0


def test_the_latest_commits_are_remembered_and_older_ones_given_up(ledger: Ledger) -> None:
    remembered = _fast._REMEMBERED
    ledger.store.set_caps(ledger.scope("total"), None, None, None)
    first = ledger.hold("total/b", 1)
    ledger.commit("total/b", first, 1, 1)
    for key in range(2 * remembered - 2):
        ledger.store._remember(-1 - key, (1, 0))
    assert ledger.commit("total/b", first, 1, 1).kind == "repeat"
    for key in range(2 * remembered):
        ledger.store._remember(-1 - key, (1, 0))
    assert len(ledger.store._counted) + len(ledger.store._counted_before) <= 2 * remembered
    assert ledger.store._remembered(first) is None


def test_a_commit_of_a_claim_that_the_store_has_lost_is_counted_once(ledger: Ledger) -> None:
    key = ledger.store.new_key()
    assert ledger.commit("total/a", key, 5, 3).kind == "unknown"
    assert ledger.commit("total/a", key, 5, 3) == Answer("repeat", counted=(3, 0))
    assert ledger.used("total/a") == ledger.used() == (3, 0)
    assert ledger.store.release(ledger.chain("total/a"), ledger.store.new_key(), (5, 0)).kind == "unknown"
    assert ledger.used() == (3, 0)


def test_a_forced_record_is_counted_in_full_closed_and_waited_for_scopes(ledger: Ledger) -> None:
    ledger.hold("total/a", 50)
    ledger.reserve("total/a", 1, wait=True)
    assert ledger.record("total/a", 1).kind == "refused"
    answer = ledger.record("total/a", 1, force=True)
    assert (answer.kind, [row.tokens_claimed for row in answer.rows]) == ("done", [51, 51])
    ledger.store.close(ledger.scope("total/a"))
    refused = ledger.record("total/a", 0)
    assert (refused.kind, refused.at, refused.rows[0].closed) == ("refused", 0, True)
    assert ledger.record("total/a", 1, force=True).kind == "done"
    assert ledger.used("total/a") == (2, 0)


def test_a_closed_scope_refuses_and_lets_claims_settle(ledger: Ledger) -> None:
    first, second = ledger.hold("total/a", 5), ledger.hold("total/a", 5)
    ledger.store.close(ledger.scope("total/a"))
    with pytest.raises(PoolClosed, match="pool 'a' is closed"):
        ledger.reserve("total/a", 1)
    assert ledger.scope("total/a").closed
    assert ledger.commit("total/a", first, 5, 6) == Answer("done")
    assert ledger.store.release(ledger.chain("total/a"), second, (5, 0)) == Answer("done")
    assert ledger.used("total/a") == (6, 0)


# ---------------------------------------------------------------------- limits


def test_numbers_beyond_what_the_file_can_keep_are_refused_and_change_nothing(ledger: Ledger) -> None:
    ledger.store.set_caps(ledger.scope("total"), None, None, None)
    for _ in range(9):
        ledger.record("total/b", 10**18, 10**18, force=True)
    assert ledger.used() == (CLAIMED_AT_MOST, CLAIMED_AT_MOST)
    before = tables(ledger.path)
    for amount in ((1, 0), (0, 1)):
        with pytest.raises(StoreError, match="more than 9,000,000,000,000,000,000"):
            ledger.record("total/b", *amount, force=True)
        with pytest.raises(StoreError):
            ledger.reserve("total/b", *amount)
    assert tables(ledger.path) == before
    ledger.store.set_caps(ledger.scope("total"), 0, 10**18, None)  # the rooms still are integers
    assert ledger.row().token_cap == 0
    ledger.store.reset(ledger.scope("total"))
    assert ledger.used() == (0, 0)


def test_a_cap_of_10_to_the_18_is_filled_to_the_last_nanodollar(ledger: Ledger) -> None:
    ledger.store.set_caps(ledger.scope("total"), None, 10**18, None)
    assert ledger.record("total/b", 0, 10**18 - 1).kind == "done"
    assert ledger.reserve("total/b", 0, 2)[1].kind == "refused"
    assert ledger.reserve("total/b", 0, 1)[1].kind == "granted"
    assert ledger.reserve("total/b", 0, 1)[1].kind == "refused"


# ---------------------------------------------------------------------- cancel


def test_a_cancelled_claim_holds_nothing_and_takes_nothing_later(ledger: Ledger) -> None:
    chain = ledger.chain("total/a")
    key = ledger.hold("total/a", 5)
    assert ledger.store.cancel(chain, key, (5, 0)) is True
    assert ledger.store.cancel(chain, key, (5, 0)) is False
    assert ledger.row().tokens_claimed == 0
    unheld = ledger.store.new_key()
    assert ledger.store.cancel(chain, unheld, (5, 0)) is False
    answer = ledger.reserve("total/a", 5, key=unheld)[1]
    assert answer.kind == "refused"
    assert len(answer.rows) == 2
    assert ledger.row().tokens_claimed == 0


def test_a_cancelled_claim_waits_for_nothing(ledger: Ledger) -> None:
    ledger.hold("total/a", 50)
    key, answer = ledger.reserve("total/a", 1, wait=True)
    assert answer.ticket
    assert ledger.row("total/a").waiting == 1
    assert ledger.store.cancel(ledger.chain("total/a"), key, (1, 0)) is False
    assert ledger.row("total/a").waiting == 0


def test_only_so_many_cancelled_keys_are_remembered(ledger: Ledger) -> None:
    for key in range(_fast._REMEMBERED + 10):
        ledger.store._cancelled[key] = None
    ledger.store.cancel(ledger.chain("total/a"), ledger.store.new_key(), (1, 0))
    assert len(ledger.store._cancelled) <= _fast._REMEMBERED + 10


# ---------------------------------------------------------------------- steps that end with an error


def test_a_reserve_that_did_not_reach_the_disk_is_cancelled(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.record("total/a", 3)
    unsynced(monkeypatch)
    ledger.store._durable = True
    with pytest.raises(Unsynced):
        ledger.reserve("total/a", 5)
    with pytest.raises(Unsynced):
        ledger.record("total/a", 7)
    assert ledger.row().tokens_claimed == 15
    with monkeypatch.context() as patch:
        patch.setattr(ledger.store, "_run", unavailable)
        assert ledger.store.tend() == 1.0
    assert ledger.store.tend() == float("inf")  # done, though it still does not reach the disk
    monkeypatch.undo()
    assert ledger.store.tend() == float("inf")
    assert ledger.row().tokens_claimed == 3


def test_a_reserve_that_did_not_reach_the_disk_is_written_again_when_it_is_repeated(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.store._durable = True
    unsynced(monkeypatch)
    with pytest.raises(Unsynced):
        ledger.reserve("total/a", 4, key=5)
    with pytest.raises(Unsynced):
        ledger.reserve("total/a", 4, key=5)  # it is written, and does not reach the disk, once more
    monkeypatch.undo()
    synced: list[bool] = []
    monkeypatch.setattr(Connection, "_sync", lambda _self: synced.append(True))
    key, answer = ledger.reserve("total/a", 4, key=5)
    assert answer.kind == "granted"
    assert synced == [True], "the claim is on the disk now"
    assert ledger.held("total/a") == ledger.held() == (4, 0, 1)
    assert ledger.store.tend() == float("inf")
    assert ledger.held() == (4, 0, 1), "it is cancelled no more"
    assert ledger.commit("total/a", key, 4, 3).kind == "done"


def test_a_refused_record_that_charged_the_dead_and_did_not_reach_the_disk_gives_nothing_back(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.store._durable = True
    ledger.record("total/a", 3)
    statement(ledger.path, "INSERT INTO owner VALUES (7, 'somebody who died', '')")
    unsynced(monkeypatch)
    with pytest.raises(Unsynced):
        ledger.record("total/a", 48)
    monkeypatch.undo()
    assert statement(ledger.path, "SELECT id FROM ended") == [(7,)]
    assert ledger.store.tend() == float("inf")
    assert ledger.used("total/a") == ledger.used() == (3, 0)


@pytest.mark.parametrize("error", [Unsynced("not on the disk"), KeyboardInterrupt()])
def test_a_commit_without_an_answer_counts_once_when_it_is_repeated(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    key = ledger.hold("total/a", 5)
    run = ledger.store._run

    def interrupted(*arguments: Any) -> Any:
        run(*arguments)
        raise error

    monkeypatch.setattr(ledger.store, "_run", interrupted)
    with pytest.raises(type(error)):
        ledger.commit("total/a", key, 5, 3)
    monkeypatch.undo()
    for other in range(3 * _fast._REMEMBERED):
        ledger.store._remember(-1 - other, (1, 0))
    assert ledger.commit("total/a", key, 5, 3) == Answer("repeat", counted=(3, 0))
    assert ledger.used() == (3, 0)


def test_a_commit_that_was_rolled_back_is_done_when_it_is_repeated(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ledger.hold("total/a", 5)
    work = ledger.store._commit

    def failing(*arguments: Any) -> Any:
        work(*arguments)
        raise ZeroDivisionError

    monkeypatch.setattr(ledger.store, "_commit", failing)
    with pytest.raises(ZeroDivisionError):
        ledger.commit("total/a", key, 5, 3)
    monkeypatch.undo()
    assert ledger.held() == (5, 0, 1)
    assert ledger.commit("total/a", key, 5, 4) == Answer("done")
    assert ledger.used() == (4, 0)


def unavailable(*_: Any) -> Any:
    raise BudgetUnavailable("away")


def test_what_can_never_be_undone_is_given_up(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupt(*_: Any) -> Any:
        raise StoreError("corrupt")

    ledger.store._owed.append((_slow.cancel, 5))
    monkeypatch.setattr(ledger.store, "_run", corrupt)
    assert ledger.store.tend() == float("inf")
    assert not ledger.store._owed


def test_a_release_without_an_answer_may_be_repeated(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    key, chain = ledger.hold("total/a", 5), ledger.chain("total/a")
    unsynced(monkeypatch)
    ledger.store._durable = True
    with pytest.raises(Unsynced):
        ledger.store.release(chain, key, (5, 0))
    monkeypatch.undo()
    assert ledger.store.release(chain, key, (5, 0)) == Answer("done")
    assert ledger.row().tokens_claimed == 0


@pytest.mark.parametrize("step", ["commit", "release"])
def test_a_claim_is_settled_by_scopes_that_were_not_looked_for_yet(ledger: Ledger, step: str) -> None:
    """Others of the same paths: their rows have to be found first."""
    key = ledger.hold("total/a", 5)
    ledger.scopes.clear()
    chain = ledger.chain("total/a")
    if step == "commit":
        assert ledger.store.commit(chain, key, (5, 0), (3, 0)) == Answer("done")
    else:
        assert ledger.store.release(chain, key, (5, 0)) == Answer("done")
    assert ledger.used() == ((3, 0) if step == "commit" else (0, 0))
    assert ledger.held() == (0, 0, 0)


def test_a_release_whose_scope_is_known_by_another_id_finds_it(ledger: Ledger) -> None:
    key = ledger.hold("total/a", 5)
    ledger.scope("total/a").handle = (99, "99")
    assert ledger.store.release(ledger.chain("total/a"), key, (5, 0)) == Answer("done")
    assert ledger.held("total/a") == (0, 0, 0)


def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every sync of the disk fail."""

    def fail(self: Connection) -> None:
        raise Unsynced("not on the disk")

    monkeypatch.setattr(Connection, "_sync", fail)


# ---------------------------------------------------------------------- the two paths


@pytest.mark.parametrize("seed", range(12))
def test_both_paths_leave_the_same_file_and_give_the_same_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The same steps once as they are, and once where no fast path ever succeeds."""
    done = []
    for kind in ("fast", "slow"):
        path = tmp_path / f"{kind}.db"
        if kind == "slow":
            for name in ("_RESERVE", "_RECORD", "_COMMIT"):
                monkeypatch.setattr(_fast, name, getattr(_fast, name) + " AND 0")
        ledger = Ledger(path)
        answers = random_steps(ledger, random.Random(seed))
        audit(path)
        kept = tables(path)
        done.append((answers, {name: kept[name] for name in ("scope", "keyed", "window", "expired")}))
        ledger.store.let_go()
    assert done[0] == done[1]


def random_steps(ledger: Ledger, chance: random.Random) -> list[Any]:
    """Do steps of all kinds and return their answers."""
    ledger.open("total", 60, 90)
    ledger.open("total/a", 40)
    ledger.open("total/b", None, 50)
    ledger.open("total/a/c")
    ledger.open("total/u:", 30)
    places = ["total", "total/a", "total/b", "total/a/c", "total/u:ann", "total/u:bob", "total/a total/b"]
    held: list[tuple[str, int, tuple[int, int]]] = []
    answers: list[Any] = []
    for _ in range(120):
        place, amount = chance.choice(places), (chance.randrange(12), chance.randrange(12))
        step, rows = (
            chance.choice(["reserve", "reserve", "record", "force", "settle", "settle", "caps", "reset"]),
            chance.random() < 0.3,
        )
        if step == "reserve":
            key, answer = ledger.reserve(place, *amount, rows=rows)
            if answer.kind == "granted":
                held.append((place, key, amount))
            answers.append(answer)
        elif step in {"record", "force"}:
            answers.append(ledger.record(place, *amount, force=step == "force", rows=rows))
        elif step == "settle" and held:
            where, key, before = held.pop(chance.randrange(len(held)))
            if chance.random() < 0.3:
                answers.append(ledger.store.release(ledger.chain(*where.split()), key, before, rows=rows))
            else:
                answers.append(ledger.commit(where, key, before, amount, rows=rows))
        elif step == "caps" and chance.random() < 0.2:
            ledger.store.set_caps(ledger.scope(place.split()[0]), chance.randrange(20, 90), None, None)
        elif step == "reset" and chance.random() < 0.2:
            ledger.store.reset(ledger.scope(place.split()[0]))
    for where, key, before in held:
        answers.append(ledger.commit(where, key, before, before))
    return answers


def test_a_step_that_changes_nothing_commits_nothing(ledger: Ledger) -> None:
    ledger.hold("total/a", 50)
    before = statement(ledger.path, "PRAGMA data_version")
    written = ledger.store._look(5.0, lambda execute: execute("SELECT total_changes()").fetchone())
    assert ledger.reserve("total/a", 1)[1].kind == "refused"
    assert ledger.store._look(5.0, lambda execute: execute("SELECT total_changes()").fetchone()) == written
    assert statement(ledger.path, "PRAGMA data_version") == before


def test_a_step_reads_each_row_once(ledger: Ledger) -> None:
    def work(execute: Any) -> bool:
        step = Step(ledger.store._ledger, execute)
        rows = rows_of(step, ledger.chain("total/a"))
        return rows[1] is step.row(rows[1].id)

    assert ledger.store._look(5.0, work)
