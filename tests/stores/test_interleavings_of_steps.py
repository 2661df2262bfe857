from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from interleavings.step_runs import orders
from interleavings.step_scenarios import ALL
from interleavings.step_worlds import RedisWorld, SQLiteWorld, World
from redis_server import Server


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


@pytest.mark.parametrize("scenario", ALL, ids=lambda one: one.name)
def test_every_order_of_steps_is_some_order_of_calls(scenario, world) -> None:
    count = orders(scenario, world)
    print(f"{count} orders")
