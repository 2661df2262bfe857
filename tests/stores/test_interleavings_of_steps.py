"""Every order of the steps of some processes, with a death or a lost answer at each of them, against a naive ledger.

And faults that are planted in the scripts and in the SQL, each of which a scenario must find.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interleavings import step_scenarios as scenarios
from interleavings.step_faults import SCRIPTS, SQLITE, edit_of
from interleavings.step_orders import Chooser, explore
from interleavings.step_runs import Scenario, found_by, orders
from interleavings.step_worlds import RedisWorld, SQLiteWorld, World
from redis_server import Server

FOUND_BY_REDIS = {
    "no undo of a reserve that is done half": scenarios.LAST_ROOM,
    "no look whether a reserve is a repeat": scenarios.LAST_ROOM,
    "no look whether a record is a repeat": scenarios.RESET,
    "no look whether a commit is a repeat": scenarios.LAST_ROOM,
    "no look at a scope's marker": scenarios.CLOSING,
    "a dead holder's claim is released": scenarios.BURY,
    "a reserve after its cancel takes room": scenarios.LAST_ROOM,
    "who waits is overtaken": scenarios.OVERTAKE,
    "a cancelled record is not undone": scenarios.RESET,
    "a charge is not corrected by a late commit": scenarios.SETTLE,
    "a claim that is handed over is charged with its holder": scenarios.HAND,
}
FOUND_BY_SQLITE = {
    "no guard of the room in the UPDATE": scenarios.LAST_ROOM,
    "no test of waiters in a reserve": scenarios.OVERTAKE,
    "no test of waiters in a record": scenarios.OVERTAKE,
    "no test of the period in a record": scenarios.CLOCK,
    "the hold in a transaction of its own": scenarios.LAST_ROOM,
    "a dead holder's claim is released": scenarios.BURY,
    "a late commit counts twice": scenarios.LATE,
    "no memory of commits whose answer was lost": scenarios.LAST_ROOM,
    "a later ticket goes first": scenarios.WAITERS,
    "what is settled from elsewhere is not noted": scenarios.SETTLE,
    "a cancel does nothing": scenarios.CANCEL,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as one:
        yield one


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    one: World
    if request.param == "redis":
        one = RedisWorld(request.getfixturevalue("server"))
    else:
        one = SQLiteWorld(tmp_path_factory.mktemp("interleavings"))
    yield one
    one.close()


@pytest.mark.parametrize("scenario", scenarios.ALL, ids=lambda one: one.name)
def test_every_order_of_steps_fits_some_order_of_calls(scenario: Scenario, world: World) -> None:
    count = orders(scenario, world)
    print(f"{scenario.name}, {world.kind}: {count} orders")
    assert count > 1


@pytest.mark.parametrize("fault", FOUND_BY_REDIS)
def test_a_fault_that_is_planted_in_a_script_is_found(fault: str, server: Server) -> None:
    edit, edited = edit_of(fault)
    world = RedisWorld(server, edit)
    try:
        found = found_by([FOUND_BY_REDIS[fault]], world)
    finally:
        world.close()
    assert len(edited) == len(SCRIPTS[fault])  # the texts were there to be edited
    assert found
    print(fault, *found.values(), sep="\n")


@pytest.mark.parametrize("fault", FOUND_BY_SQLITE)
def test_a_fault_that_is_planted_in_the_transactions_is_found(fault: str, tmp_path: Path) -> None:
    world = SQLiteWorld(tmp_path)
    try:
        with SQLITE[fault]():
            found = found_by([FOUND_BY_SQLITE[fault]], world)
    finally:
        world.close()
    assert found
    print(fault, *found.values(), sep="\n")


def test_every_planted_fault_is_looked_for() -> None:
    assert set(FOUND_BY_REDIS) == set(SCRIPTS)
    assert set(FOUND_BY_SQLITE) == set(SQLITE)


def test_all_orders_are_made_and_each_once() -> None:
    made: list[Any] = []

    def merge(chooser: Chooser) -> bool:
        left, order = {"a": 3, "b": 2, "c": 1}, ""
        while names := [name for name, steps in left.items() if steps]:
            name = names[chooser.choose(len(names))]
            left[name] -= 1
            order += name
        made.append(order)
        return True

    for _ in explore(merge):
        pass
    assert sorted(made) == sorted({"".join(order) for order in itertools.permutations("aaabbc")})
