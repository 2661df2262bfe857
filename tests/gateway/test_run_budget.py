"""The budget of a run: which scope its caps are of, what is charged, and what is seen without waiting for a store."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from token_budget import BudgetExceeded, BudgetPool, BudgetSnapshot
from token_budget.cli import _parser, _run_budget
from token_budget.cli._run_budget import RunBudget, open_budget
from token_budget.cli._run_options import MISMATCH, UNAVAILABLE, USAGE, CannotStartError, checked
from token_budget.contract import BudgetUnavailable
from token_budget.metering import RunStopped
from token_budget.stores import StoreError, StoreLost, StoreMismatch, StorePool, open_pool


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'b.db'}#team"


def opened(*words: str) -> RunBudget:
    """Open the budget of a command line."""
    options: Any = _parser("run").parse_args(["run", *words, "x"])
    return open_budget(checked(options))


@contextmanager
def looking(store: str) -> Iterator[StorePool]:
    """Open the store's budget as somebody else would."""
    with open_pool(store) as pool:
        assert isinstance(pool, StorePool)
        yield pool


def caps(snapshot: BudgetSnapshot) -> tuple[int | None, float | None, bool]:
    return snapshot.token_cap, snapshot.usd_cap, snapshot.resets_at is not None


def spend(budget: RunBudget, usd: float) -> None:
    """Spend through the run, as a call does."""
    charge = budget.run._charge(None)
    charge.reserve(10, round(usd * 10**9), 0).commit(10, round(usd * 10**9))


# ---------------------------------------------------------------- whose the caps are


@pytest.mark.parametrize("per", [[], ["--per", "day"]])
def test_without_a_pool_the_caps_are_the_runs(per: list[str]) -> None:
    with opened("--usd", "5", "--tokens", "100", *per) as budget:
        assert caps(budget.pool.snapshot()) == (100, 5.0, bool(per))
        assert (budget.usd_cap_nanos, budget.token_cap) == ((None, None) if per else (5 * 10**9, 100))
        assert budget.pool.name == budget.run.name == "run"
        spend(budget, 1)
        assert budget.pool.snapshot().usd_used == budget.run.pool.snapshot().usd_used == 1


def test_a_job_without_a_pool_is_the_runs_name() -> None:
    with opened("--usd", "5", "--job", "nightly", "--user", "ann") as budget:
        assert (budget.pool.name, budget.run.name, budget.run.user) == ("nightly", "nightly", "ann")


@pytest.mark.parametrize(
    ("words", "pool", "job", "user"),
    [
        ("--usd 5 --per day", (None, 5.0, True), None, None),
        ("--usd 5 --job j --per day", (None, None, False), (None, 5.0, True), None),
        ("--usd 5 --user ann", (None, 5.0, False), None, (None, None, False)),
        ("--usd 5 --user ann --user-usd 2 --per day", (None, 5.0, True), None, (None, 2.0, True)),
        ("--user ann --user-usd 2 --per day", (None, None, False), None, (None, 2.0, True)),
        ("--tokens 70 --job j --user ann --user-usd 2", (None, None, False), (70, None, False), (None, 2.0, False)),
    ],
)
def test_in_a_pool_the_caps_and_the_period_belong_to_the_job_or_else_the_pool_and_to_the_user(
    store: str, words: str, pool: Any, job: Any, user: Any
) -> None:
    with opened("--pool", store, *words.split()) as budget:
        spend(budget, 1)
        found = [budget.pool, *budget.scopes]
        assert [caps(one.snapshot()) for one in found] == [one for one in (pool, job, user) if one is not None]
        assert [one.snapshot().usd_used for one in found] == [1] * len(found)
        assert budget.run.pool.snapshot().usd_used == 1
        told = budget.look_at_last()
        assert told is not None
        assert [child["name"] for child in told["children"]] == [one.name for one in budget.scopes]
        assert budget.shared


def test_a_period_without_a_cap_is_the_pools(store: str) -> None:
    opened("--pool", store, "--usd", "5").close()
    with opened("--pool", store, "--per", "every 5h") as budget:
        assert caps(budget.pool.snapshot()) == (None, 5.0, True)


def test_the_caps_of_a_job_bound_a_run_alone_only_if_nobody_else_has_spent_of_them(store: str) -> None:
    words = ("--pool", store, "--job", "j", "--usd", "5")
    with opened(*words) as first:
        assert (first.usd_cap_nanos, first.token_cap) == (5 * 10**9, None)
        spend(first, 1)
    with opened(*words) as second:
        assert (second.usd_cap_nanos, second.token_cap) == (None, None)


def test_every_scope_refuses_and_is_named(store: str) -> None:
    with opened("--pool", store, "--job", "j", "--usd", "5", "--user", "ann", "--user-usd", "2") as budget:
        with pytest.raises(BudgetExceeded) as user:
            spend(budget, 3)
        with pytest.raises(BudgetExceeded) as job:
            budget.scopes[0].record(usd=6)
        assert budget.cap_of(user.value) == "usd of user 'user:ann'"
        assert budget.cap_of(job.value) == "usd of job 'j'"
        budget.pool.set_caps(token_cap=5)
        with pytest.raises(BudgetExceeded) as pool:
            spend(budget, 1)
        assert budget.cap_of(pool.value) == "tokens of pool 'team'"
        other = BudgetPool(usd_cap=0, name="other")
        with pytest.raises(BudgetExceeded) as strange:
            other.record(usd=1)
        assert budget.cap_of(strange.value) == "usd of budget 'other'"
    with opened("--usd", "1") as budget, pytest.raises(BudgetExceeded) as own:
        spend(budget, 3)
    assert budget.cap_of(own.value) == "usd of the run"


def test_options_reach_the_meter_and_the_guards() -> None:
    words = "--usd 5 --price m=1,4 --default-output 7 --broken seen --allow-unmetered --wait 3 --cap-output"
    for said, meant in (("no", False), ("yes", True), ("fit", "fit")):
        with opened(*words.split(), said, "--calls-per-minute", "9", "--growth", "0.5,4", "--repeats", "2") as budget:
            terms, guards = budget.meter._terms, budget.run._guards
            assert (terms.default_output, terms.broken, terms.timeout, terms.cap_output) == (7, "seen", 3.0, meant)
            assert budget.meter.unmetered == "allow"
            assert not terms.lenient
            assert budget.meter.quote("m", 10**6, 10**6) == 5
            assert (guards.calls_per_minute, guards.growth, guards.repeats) == (9, (0.5, 4), 2)
    with opened("--usd", "5") as budget:
        assert budget.meter.unmetered == "refuse"
        assert not budget.run._guards.active


# ---------------------------------------------------------------- the end


def test_a_budget_that_is_closed_refuses_and_is_let_go(store: str) -> None:
    with opened("--pool", store, "--usd", "5") as budget:
        spend(budget, 1)
    with pytest.raises(RunStopped):
        budget.run._check_open()
    assert budget.pool.closed
    with looking(store) as pool:
        assert (pool.snapshot().usd_used, pool.snapshot().in_flight) == (1, 0)


def test_a_store_that_fails_as_it_is_let_go_raises_nothing(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = opened("--pool", store, "--usd", "5")
    close = budget.pool.close

    def failing(_: object) -> None:
        close()
        raise BudgetUnavailable("too late")

    monkeypatch.setattr(StorePool, "close", failing)
    budget.close()
    assert budget.run.ended


# ---------------------------------------------------------------- what is seen


def test_the_whole_is_told_without_waiting_for_the_store(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened("--pool", store, "--usd", "5") as budget:
        asked, answers, done = threading.Event(), threading.Event(), threading.Event()
        snapshot, let_go = StorePool.snapshot, budget._look_and_let_go

        def slow(pool: StorePool) -> BudgetSnapshot:
            asked.set()
            assert answers.wait(30)
            return snapshot(pool)

        def look_and_let_go() -> None:
            let_go()
            done.set()

        monkeypatch.setattr(StorePool, "snapshot", slow)
        monkeypatch.setattr(budget, "_look_and_let_go", look_and_let_go)
        assert budget.whole() is None
        assert asked.wait(30)
        assert budget.whole() is None  # one thread looks; no other is started
        answers.set()
        assert done.wait(30)
        told = budget.whole()
        assert told is not None
        assert told["usd_cap"] == 5
        last = budget.look_at_last()  # waits for whoever looks
        assert last == told


@pytest.mark.parametrize("error", [BudgetUnavailable("away"), StoreError("odd"), StoreLost("gone")])
def test_a_store_that_cannot_answer_is_shown_as_it_was_seen_last(
    store: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def away(_: object) -> BudgetSnapshot:
        raise error

    with opened("--pool", store, "--usd", "5") as budget:
        before = budget.look_at_last()
        monkeypatch.setattr(StorePool, "snapshot", away)
        assert budget.look_at_last() == before is not None


def test_a_budget_of_this_process_is_told_as_of_now() -> None:
    with opened("--usd", "5") as budget:
        spend(budget, 1)
        told = budget.whole()
        assert told is not None
        assert (told["usd_used"], told["children"]) == (1, [])


# ---------------------------------------------------------------- what cannot be opened


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (StoreMismatch("5 here, 7 there"), MISMATCH, "give the same caps"),
        (ImportError("pip install redis"), USAGE, "--pool: pip install redis"),
        (ValueError("odd"), USAGE, "--pool: odd"),
        (StoreLost("it is gone"), UNAVAILABLE, "it is gone"),
        (BudgetUnavailable("away"), UNAVAILABLE, "away"),
        (StoreError("no database"), UNAVAILABLE, "no database"),
    ],
)
def test_a_budget_that_cannot_be_opened_says_why(
    store: str, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, said: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("token_budget.stores.open_pool", fails)
    with pytest.raises(CannotStartError, match=said) as told:
        opened("--pool", store, "--usd", "5")
    assert told.value.status == status


def test_a_pool_that_is_not_there_is_made_only_with_a_cap(store: str) -> None:
    with pytest.raises(CannotStartError, match="say --usd or --tokens") as told:
        opened("--pool", store)
    assert told.value.status == USAGE
    with pytest.raises(StoreLost):
        open_pool(store, create=False)
    opened("--pool", store, "--tokens", "5").close()
    with opened("--pool", store) as budget:
        assert budget.pool.snapshot().token_cap == 5


@pytest.mark.parametrize("where", ["_scopes", "_run_of"])
def test_what_was_opened_is_let_go_where_the_rest_fails(
    store: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    pools: list[StorePool] = []

    def kept(*words: Any, **named: Any) -> Any:
        pools.append(real(*words, **named))
        return pools[-1]

    def fails(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    real: Any = open_pool
    monkeypatch.setattr("token_budget.stores.open_pool", kept)
    if where == "_scopes":
        monkeypatch.setattr(StorePool, "child", fails)
    else:
        monkeypatch.setattr(_run_budget, where, fails)
    with pytest.raises(KeyboardInterrupt):
        opened("--pool", store, "--job", "j", "--usd", "5")
    assert [pool.closed for pool in pools] == [True]
