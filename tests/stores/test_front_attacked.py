"""Faults of the front that an attack with fresh eyes has found: outages that calls pass in, opening, closing."""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from front import LONG, until
from memory_store import MemoryBudget, MemoryPool, MemoryStore
from pools_of_all_kinds import in_a_thread
from support import run_program
from token_budget.contract import BudgetUnavailable
from token_budget.stores import RedisBudgetPool, SQLiteBudgetPool, _hand, _outage, open_pool
from token_budget.stores._family import StoreFamily
from token_budget.stores._outage import Allowing

AWAY = BudgetUnavailable("no server")
PATHS = [str(folder) for folder in Path(__file__).parents[:2]]


class Allowed(MemoryPool):
    """A pool whose calls pass in an outage. The steps in `failing` raise what stands there."""

    def __init__(self) -> None:
        self.budget = MemoryBudget()
        self.failing: dict[str, BaseException] = {}
        self.store = MemoryStore("total", self.budget)
        self.store.hook = self._hook
        self.allowing = Allowing(self.store)
        family = StoreFamily.of(self.store.location, lambda: self.allowing, timeout=LONG)
        self._open(family, "total", 100, None, None)

    def _hook(self, step: str, moment: str) -> None:
        if step in self.failing and moment == "before":
            raise self.failing[step]

    def used(self) -> int:
        """Return the tokens used, as the store has them."""
        return self.budget.rows["total"].used[0]


@pytest.fixture
def pool() -> Iterator[Allowed]:
    pool = Allowed()
    yield pool
    pool.failing.clear()
    pool.close()


# ---------------------------------------------------------------- on_unavailable="allow"


def test_a_process_that_ends_in_an_outage_logs_what_is_lost() -> None:
    program = """
import sys, threading
sys.path[:0] = {paths!r}
from test_front_attacked import AWAY, Allowed
pool = Allowed()
pool.failing = dict.fromkeys(["reserve", "record", "read"], AWAY)
pool.record(tokens=1_000, usd=3)
held = pool.reserve(tokens=1)
{more}
"""
    ended = run_program(program.format(paths=PATHS, more=""), "-W", "ignore")
    assert "is not recorded: tokens 1,000 | usd 3, and 1 calls in flight" in ended.stderr
    hung = """
inside, ask = threading.Event(), pool.allowing._store.record
def hang(chain, tokens, nanos, **options):
    if tokens:
        inside.set()
        threading.Event().wait()
    return ask(chain, tokens, nanos, **options)
pool.allowing._store.record = hang
pool.failing.clear()
assert inside.wait(30)
"""
    ended = run_program(program.format(paths=PATHS, more=hung), "-W", "ignore")
    assert "is not recorded: tokens 1,000 | usd 3, and 1 calls in flight" in ended.stderr
    back = "pool.failing.clear()\nheld.release()\n"
    ended = run_program(program.format(paths=PATHS, more=back), "-W", "ignore")
    assert "answers again" in ended.stderr
    assert "is not recorded" not in ended.stderr


def test_a_store_that_can_be_read_and_not_written_is_not_back(pool: Allowed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hand, "_AGAIN", 0.01)
    monkeypatch.setattr(_outage, "_PROBE", 0.01)
    asked: list[None] = []

    def hook(step: str, moment: str) -> None:
        if step in {"reserve", "record", "cancel"}:
            asked.append(None)
            raise AWAY

    pool.store.hook = hook
    held = pool.reserve(tokens=1)  # nothing is to be recorded
    until(lambda: len(asked) > 5)
    assert pool.allowing.passing
    pool.store.hook = pool._hook
    until(lambda: not pool.allowing.passing)
    assert pool.used() == 0
    held.release()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a clock")], ids=["interrupted", "unexpected"])
def test_what_is_interrupted_as_it_is_recorded_is_kept(
    pool: Allowed, error: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool.allowing.worried = lambda: None  # the worker is not due
    pool.failing = {"record": AWAY}
    pool.record(tokens=4)
    record = pool.store.record

    def recorded(chain: Any, tokens: int, nanos: int, **options: Any) -> Any:
        if tokens:
            raise error
        return record(chain, tokens, nanos, **options)

    pool.failing.clear()
    monkeypatch.setattr(pool.store, "record", recorded)
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            pool.allowing.catch_up()
    else:
        pool.allowing.catch_up()
        assert "does not record what passed: a clock" in caplog.text
    monkeypatch.undo()
    assert pool.used() == 0
    pool.allowing.catch_up()
    assert pool.used() == 4


def test_letting_go_that_is_interrupted_logs_what_is_lost_and_lets_the_store_go(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = Allowed()
    pool.allowing.worried = lambda: None
    pool.failing = {"record": AWAY}
    pool.record(tokens=4)
    pool.failing = {"record": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        pool.close()
    assert "is not recorded: tokens 4" in caplog.text
    assert pool.store.went


# ---------------------------------------------------------------- opening and closing


def test_an_opening_waits_for_the_closing_of_the_same_location_and_its_time_out_bounds_that() -> None:
    old, new = MemoryStore("total", location="memory:waits"), MemoryStore("total", location="memory:waits")
    inside, go_on, order = threading.Event(), threading.Event(), []

    def let_go() -> None:
        inside.set()
        assert go_on.wait(LONG)
        order.append("let go")

    old.let_go = let_go  # type: ignore[method-assign]
    family = StoreFamily.of("memory:waits", lambda: old, timeout=LONG)
    closing = in_a_thread(family.let_go)
    assert inside.wait(LONG)
    with pytest.raises(
        BudgetUnavailable, match=r"memory:waits: another thread has been opening or closing it for 0.01"
    ):
        StoreFamily.of("memory:waits", lambda: new, timeout=0.01)

    def make() -> MemoryStore:
        order.append("made")
        return new

    opening = in_a_thread(lambda: StoreFamily.of("memory:waits", make, timeout=LONG))
    go_on.set()
    closing.result()
    opened = opening.result()
    assert order == ["let go", "made"]
    opened.let_go()


def test_a_location_is_opened_and_closed_while_another_is_made() -> None:
    inside, go_on = threading.Event(), threading.Event()
    stuck, other = MemoryStore("total"), MemoryStore("total")

    def make() -> MemoryStore:
        inside.set()
        assert go_on.wait(LONG)
        return stuck

    opening = in_a_thread(lambda: StoreFamily.of(stuck.location, make))
    assert inside.wait(LONG)
    StoreFamily.of(other.location, lambda: other).let_go()
    assert other.went
    assert not go_on.is_set()
    go_on.set()
    opening.result().let_go()


def test_closing_waits_for_the_worker_as_long_as_a_step_may_take() -> None:
    store = MemoryStore("total")
    family = StoreFamily.of(store.location, lambda: store, timeout=0.05)
    waited: list[float] = []
    family.hand.stop = waited.append  # type: ignore[method-assign, assignment]
    family.let_go()
    assert waited == [0.05]
    store = MemoryStore("total")
    family = StoreFamily.of(store.location, lambda: store, timeout=60)
    family.hand.stop = waited.append  # type: ignore[method-assign, assignment]
    family.let_go()
    assert waited == [0.05, 5]


def test_an_opening_that_the_store_does_not_answer_does_not_wait_for_it_again(caplog: pytest.LogCaptureFixture) -> None:
    go_on = threading.Event()
    threads: list[threading.Thread] = []

    class Away(MemoryStore):
        def open(self, *arguments: Any, **options: Any) -> Any:
            raise AWAY

        def let_go(self) -> None:
            threads.append(threading.current_thread())
            assert go_on.wait(LONG)
            super().let_go()

    class Pool(MemoryPool):
        def __init__(self, store: MemoryStore) -> None:
            family = StoreFamily.of("memory:again", lambda: store, timeout=LONG)
            self._open(family, "total", None, None, None)

    store, back = Away("total"), MemoryStore("total")
    with pytest.raises(BudgetUnavailable):
        Pool(store)
    opening = in_a_thread(lambda: Pool(back))
    until(lambda: bool(threads))
    assert threads[0] is not threading.current_thread()
    assert not opening.done
    go_on.set()
    pool = opening.result()
    assert store.went
    pool.close()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_store_whose_opening_or_closing_is_interrupted_is_let_go() -> None:
    store = MemoryStore("total")
    family = StoreFamily.of(store.location, lambda: store)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    family.hand.stop = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        family.let_go()
    assert store.went
    later = MemoryStore("total", location=store.location)
    StoreFamily.of(store.location, lambda: later).let_go()  # its turn was given back
    assert later.went


# ---------------------------------------------------------------- arguments


def test_bad_arguments_of_an_opening_are_told_with_what_is_taken(tmp_path: Path) -> None:
    path, bad_manner, bad_text = tmp_path / "budget.db", cast("Any", []), cast("Any", "no")
    where = f"sqlite:{path}#n"
    for bad in (f"sqlite:{path}#%FF", f"memory:#{'%80'}"):
        with pytest.raises(ValueError, match="the name after the # cannot be read: each % in it begins an escape"):
            open_pool(bad)
    with pytest.raises(ValueError, match='caps must be "code"'):
        open_pool(where, caps=bad_manner)
    client = importlib.import_module("redis").Redis(port=1)  # nobody listens there
    for opening in (
        partial(open_pool, where),
        partial(SQLiteBudgetPool, path, name="n"),
        partial(RedisBudgetPool, client, name="n"),
    ):
        with pytest.raises(ValueError, match='on_unavailable must be "refuse" or "allow"'):
            opening(on_unavailable=bad_manner)
        with pytest.raises(TypeError, match="create must be True or False, not str"):
            opening(create=bad_text)
    with pytest.raises(TypeError, match="create must be True or False, not str"):
        open_pool("memory:#n", create=bad_text)
    assert not path.exists()


def test_that_a_budget_was_made_is_logged_with_its_location_and_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = (tmp_path / "budget.db").resolve()
    with caplog.at_level(logging.INFO, "token_budget"):
        for _ in range(2):
            SQLiteBudgetPool(path, name="nightly").close()
    made = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert made == [f"sqlite:{path}#nightly: made the budget 'nightly', with nothing used"]


def test_the_longest_lease_is_told_as_it_is() -> None:
    pool = MemoryPool(token_cap=10)
    held = pool.reserve(tokens=1)
    with pytest.raises(ValueError, match="at most 366 days"):
        held.hand_over(lease=366 * 86_400 + 1)
    held.hand_over(lease=366 * 86_400)
    pool.close()
