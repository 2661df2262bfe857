"""SQLiteBudgetPool: what is given when it is opened, and the main job over several processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sqlite_ledger import Ledger, others, statement
from token_budget import BudgetExceeded, BudgetOverrun, PoolClosed
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError, StoreLost, StoreMismatch
from token_budget.stores.sqlite.pool import SQLiteBudgetPool


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "budget.db"


@pytest.fixture
def opened(path: Path) -> Iterator[Any]:
    made: list[SQLiteBudgetPool] = []

    def open_one(**options: Any) -> SQLiteBudgetPool:
        made.append(SQLiteBudgetPool(options.pop("path", path), **{"name": "total", "durable": False, **options}))
        return made[-1]

    yield open_one
    for pool in made:
        pool.close()


def test_the_main_job(opened: Any, path: Path) -> None:
    pool = opened(usd_cap=50)
    users = pool.keyed(usd_cap=10, name="user")
    with users["ann"].reserve(usd=0.012) as reservation:
        assert " " not in reservation.id
        reservation.commit(usd=0.0099)
    assert pool.snapshot().usd_used == 0.0099
    assert users["ann"].snapshot().usd_used == 0.0099
    with others(path) as [other]:
        other("open", "total")
        other("open", "total/user:")
        assert other("row", "total/user:ann").nanos_claimed == 9_900_000


def test_two_pools_of_one_process_are_one_budget(opened: Any, path: Path, tmp_path: Path) -> None:
    pool = opened(token_cap=10)
    (tmp_path / "link").symlink_to(tmp_path)
    again = opened(path=str(tmp_path / "link" / "budget.db"))
    again.record(tokens=4)
    pool.record(tokens=6)
    with pytest.raises(BudgetExceeded):
        again.record(tokens=1)
    assert pool._family is again._family
    assert pool._family.location == f"sqlite:{path.resolve()}#total"


def test_the_name_stands_in_the_location_as_a_url_has_it(opened: Any, path: Path) -> None:
    pool = opened(name="a b#c/%é")
    assert pool._family.location == f"sqlite:{path.resolve()}#a%20b%23c%2F%25%C3%A9"
    assert pool.snapshot().name == "a b#c/%é"


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"name": None}, ValueError, "needs a name"),
        ({"name": ""}, ValueError, "needs a name"),
        ({"name": 5}, TypeError, "name must be a str"),
        ({"token_cap": -1}, ValueError, "token_cap"),
        ({"usd_cap": "5"}, TypeError, "usd_cap"),
        ({"window": "daily"}, TypeError, "window"),
        ({"timeout": 0}, ValueError, "above 0"),
        ({"timeout": None}, TypeError, "a number of seconds, not NoneType"),
        ({"timeout": -1}, ValueError, "timeout"),
        ({"timeout": "5"}, TypeError, "timeout"),
        ({"caps": "yours"}, ValueError, "caps must be"),
        ({"on_unavailable": "pass"}, ValueError, "on_unavailable must be"),
        ({"path": ":memory:"}, ValueError, "BudgetPool"),
        ({"path": ""}, ValueError, "path"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_made(
    opened: Any, path: Path, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        opened(**options)
    assert not path.exists()


def test_another_timeout_in_the_same_process_is_refused(opened: Any) -> None:
    opened()
    for options in ({"timeout": 1}, {"durable": True}, {"on_unavailable": "allow"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            opened(**options)


def test_no_budget_is_made_where_it_must_be_there(opened: Any, path: Path) -> None:
    with pytest.raises(StoreLost):
        opened(create=False)
    assert not path.exists()
    opened()
    with pytest.raises(StoreLost, match="create=False"):
        opened(name="other", create=False)
    assert opened(create=False).snapshot().tokens_used == 0


def test_a_file_of_somebody_else_is_an_error_and_stays_as_it_is(opened: Any, path: Path) -> None:
    path.write_text("dear diary")
    with pytest.raises(StoreError):
        opened()
    assert path.read_text() == "dear diary"


def test_what_the_code_changes_in_the_store_is_logged(opened: Any, caplog: pytest.LogCaptureFixture) -> None:
    opened(usd_cap=50).close()
    with caplog.at_level(logging.WARNING, "token_budget"):
        assert opened(usd_cap=60).snapshot().usd_cap == 60
    assert any("50" in record.getMessage() and "60" in record.getMessage() for record in caplog.records)


def test_caps_of_another_living_process(opened: Any, path: Path) -> None:
    opened(usd_cap=50)
    with others(path) as [other]:
        with pytest.raises(StoreMismatch, match="usd_cap 40 USD.*50 USD"):
            other("open", "total", None, 40 * 10**9)
        other("open", "total", None, 40 * 10**9, how="mine")
        with pytest.raises(StoreMismatch):
            opened(usd_cap=50)
        assert opened(usd_cap=50, caps="stored").snapshot().usd_cap == 40
        with pytest.raises(StoreMismatch):
            opened().child(name="a", usd_cap=1) and other("open", "total/a", None, 2 * 10**9)


def test_a_dead_process_is_listed_and_corrected(opened: Any, path: Path) -> None:
    pool = opened(token_cap=100)
    told: list[str] = []
    pool.subscribe(lambda event: told.append(f"{event.kind} {event.tokens}"))
    with others(path) as [other]:
        other("open", "total")
        other("hold", "total", 60)
        pid = other.pid
        other.kill()
    with pytest.raises(BudgetExceeded) as caught:
        pool.reserve(tokens=50)
    assert caught.value.exhausted
    assert told == ["expired 60", "refusal 50"]
    [expired] = pool.expired()
    assert (expired.tokens, expired.pools, expired.who.split(":")[1]) == (60, ("total",), str(pid))
    pool.settle(expired.id, tokens=20)
    pool.settle(expired.id, tokens=20)
    assert (pool.snapshot().tokens_used, pool.expired()) == (20, [])
    with pytest.raises(LookupError):
        pool.settle("0" * 16, tokens=1)


def test_a_reservation_that_was_handed_over_is_settled_by_another_process(opened: Any, path: Path) -> None:
    pool = opened(token_cap=100)
    reservation = pool.reserve(tokens=60).hand_over(lease=60)
    with others(path) as [other]:
        other("open", "total")
        answer, paths = other("store.settle", reservation.id, 45, 0)
        assert (answer.kind, paths) == ("done", ("total",))
    assert pool.snapshot().tokens_used == 45
    with pytest.raises(BudgetOverrun):
        pool.settle(pool.reserve(tokens=5).hand_over().id, tokens=99)


def test_a_closed_pool_lets_go_and_the_budget_goes_on(opened: Any, path: Path) -> None:
    pool = opened(token_cap=10)
    reservation = pool.reserve(tokens=4)
    pool.close()
    with pytest.raises(PoolClosed):
        pool.record(tokens=1)
    assert statement(path, "SELECT count(*) FROM hold") == [(0,)]
    reservation.commit(tokens=1)  # late: it was charged in full
    assert opened().snapshot().tokens_used == 1


def test_durable_steps_are_on_the_disk_before_they_answer(opened: Any, path: Path, monkeypatch: Any) -> None:
    from token_budget.stores.sqlite._connection import Connection

    synced: list[str] = []
    sync = Connection._sync

    def noted(self: Connection) -> None:
        synced.append("sync")
        sync(self)

    monkeypatch.setattr(Connection, "_sync", noted)
    pool = opened(token_cap=10, durable=True)
    before = len(synced)
    with pool.reserve(tokens=1) as reservation:
        reservation.commit()
    pool.record(tokens=1)
    assert len(synced) == before + 3
    with pytest.raises(BudgetExceeded):
        pool.record(tokens=100)
    pool.snapshot()
    assert len(synced) == before + 3  # there was nothing to sync
    quick = opened(name="other")
    before = len(synced)
    quick.record(tokens=1)
    assert len(synced) == before


def test_calls_pass_while_the_file_cannot_be_used_and_are_recorded_when_it_is_back(
    opened: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = opened(token_cap=10, on_unavailable="allow", timeout=1)
    refusing = opened(token_cap=10, name="other")
    store = pool._family.store._store

    def unavailable(*_: Any) -> Any:
        raise BudgetUnavailable("the disk is away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_run", unavailable)
        patch.setattr(store, "_look", unavailable)
        patch.setattr(refusing._family.store, "_run", unavailable)
        pool.record(tokens=20)
        with pool.reserve(tokens=5) as reservation:
            reservation.commit(tokens=3)
        with pytest.raises(BudgetUnavailable):
            refusing.record(tokens=1)
    from sqlite_ledger import until

    def recorded() -> bool:
        pool._family.store.tend()
        return statement(path, "SELECT token_cap - token_room FROM scope WHERE name = 'total'") == [(23,)]

    until(recorded)


def test_the_ledger_is_a_store(path: Path) -> None:
    from token_budget.stores._store import Store

    ledger = Ledger(path)
    _: Store = ledger.store
    public = {name for name in dir(Store) if not name.startswith("_")}
    assert public <= set(dir(ledger.store)) | set(vars(ledger.store))
    ledger.store.let_go()
