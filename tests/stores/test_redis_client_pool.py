"""RedisBudgetPool: opening it with any client, its arguments, and its ends, on real servers."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from redis_clients import each_package
from redis_server import HOST, Server, new_name, one_node_cluster, replica_of, sentinel_of, shared
from token_budget import BudgetExceeded, Window
from token_budget.contract import BudgetUnavailable, Pool
from token_budget.stores._errors import StoreError, StoreLost
from token_budget.stores.redis.pool import RedisBudgetPool


@pytest.fixture
def opened() -> Iterator[list[RedisBudgetPool]]:
    """Pools that are closed in the end."""
    pools: list[RedisBudgetPool] = []
    yield pools
    for pool in pools:
        pool.close()


def spend(pool: Any) -> None:
    """Use 3 tokens and 0.25 dollars of a pool with caps of 10 and 1, and be refused more."""
    with pool.reserve(tokens=4, usd=0.5) as reservation:
        with pytest.raises(BudgetExceeded):
            pool.reserve(tokens=7)
        reservation.commit(tokens=3, usd=0.25)
    snapshot = pool.snapshot()
    assert (snapshot.tokens_used, snapshot.usd_used) == (3, Decimal("0.25"))


@each_package
@pytest.mark.parametrize(
    "settings", [{}, {"decode_responses": True}, {"protocol": 3}, {"protocol": 3, "decode_responses": True}]
)
def test_a_client_of_any_package_and_settings(
    package: str, settings: dict[str, Any], opened: list[RedisBudgetPool]
) -> None:
    pool = RedisBudgetPool(shared().client(package, **settings), 10, 1, name=new_name())
    opened.append(pool)
    _: Pool = pool
    spend(pool)


@each_package
def test_a_client_that_a_sentinel_made(package: str) -> None:
    with Server() as master, replica_of(master), sentinel_of(master) as sentinel:
        pool = RedisBudgetPool(sentinel.sentinel_client(package), 10, 1, name="total")
        spend(pool)
        assert pool._family.location == f"redis+sentinel://{HOST}:{sentinel.port}/total/0#total"
        pool.close()


@each_package
def test_a_client_of_a_cluster(package: str) -> None:
    with one_node_cluster() as server:
        pool = RedisBudgetPool(server.cluster_client(package), 10, 1, name="total", timeout=30)
        spend(pool)
        users = pool.keyed(5, name="user")
        users["ann"].record(tokens=2)
        assert pool.snapshot(tree=True).children[0].tokens_used == 2
        pool.close()


def test_pools_of_one_name_and_server_share_what_this_process_has_of_it(opened: list[RedisBudgetPool]) -> None:
    name = new_name()
    opened.extend(RedisBudgetPool(shared().client(), 10, name=name) for _ in range(2))
    assert opened[0]._family is opened[1]._family
    opened[0].record(tokens=7)
    assert opened[1].snapshot().tokens_used == 7


def test_the_password_is_nowhere_to_be_seen(opened: list[RedisBudgetPool], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), Server("--requirepass", "s3cret") as server:
        client = importlib.import_module("redis").Redis.from_url(f"redis://:s3cret@{HOST}:{server.port}/1")
        pool = RedisBudgetPool(client, 10, name="total", timeout=0.3)
        reservation = pool.reserve(tokens=1)
        assert pool._family.location == f"redis://{HOST}:{server.port}/1#total"
        server.kill()
        with pytest.raises(BudgetUnavailable) as caught:
            pool.record(tokens=1)
        seen = f"{caught.value!r} {pool!r} {reservation!r} {pool._family.location} {caplog.text}"
        assert "s3cret" not in seen
        with pytest.raises(BudgetUnavailable):
            reservation.release()
        server.start()
        reservation.release()
        pool.close()


def test_an_asyncio_client_is_a_type_error_before_anything_is_sent() -> None:
    async def made() -> Any:
        return importlib.import_module("redis.asyncio").Redis(host=HOST, port=1)

    with pytest.raises(TypeError, match=r"client for asyncio.*block no event loop"):
        RedisBudgetPool(asyncio.run(made()), name="total")


@pytest.mark.parametrize(
    ("given", "kind", "told"),
    [
        ({"name": ""}, ValueError, "needs a name"),
        ({"name": 7}, TypeError, "name"),
        ({"timeout": 0}, ValueError, "timeout must be a number of seconds above 0"),
        ({"timeout": None}, TypeError, "timeout must be a number of seconds, not NoneType"),
        ({"timeout": -1}, ValueError, "timeout"),
        ({"timeout": float("nan")}, ValueError, "timeout"),
        ({"timeout": True}, TypeError, "timeout must be a number of seconds, not bool"),
        ({"lease": 0.5}, ValueError, "lease must be a number of seconds from 1 on"),
        ({"lease": "600"}, TypeError, "lease must be a number of seconds, not str"),
        ({"caps": "theirs"}, ValueError, "caps must be"),
        ({"on_unavailable": "ignore"}, ValueError, 'on_unavailable must be "refuse" or "allow"'),
        ({"token_cap": -1}, ValueError, "token_cap"),
        ({"window": "daily"}, TypeError, "window"),
    ],
)
def test_a_bad_argument_is_told_before_anything_is_sent(
    given: dict[str, Any], kind: type[Exception], told: str
) -> None:
    client = importlib.import_module("redis").Redis(host=HOST, port=1)  # nobody listens there
    with pytest.raises(kind, match=told):
        RedisBudgetPool(client, **{"name": "total", **given})


def test_another_time_out_or_lease_in_the_same_process_is_refused(opened: list[RedisBudgetPool]) -> None:
    name = new_name()
    opened.append(RedisBudgetPool(shared().client(), name=name, timeout=5, lease=600))
    for other in ({"timeout": 6}, {"lease": 60}, {"on_unavailable": "allow"}):
        with pytest.raises(ValueError, match=next(iter(other))):
            RedisBudgetPool(shared().client(), name=name, **other)
    opened.append(RedisBudgetPool(shared().client(), name=name))


def test_a_server_that_evicts_is_refused_and_holds_nothing_of_it() -> None:
    with Server("--maxmemory-policy", "allkeys-lru") as server:
        with pytest.raises(StoreError, match="maxmemory-policy"):
            RedisBudgetPool(server.client(), name="total")
        assert server.client().dbsize() == 0


def test_without_create_there_must_be_such_a_budget() -> None:
    with pytest.raises(StoreLost):
        RedisBudgetPool(shared().client(), name=new_name(), create=False)


def test_a_window_goes_by_the_servers_clock(opened: list[RedisBudgetPool]) -> None:
    opened.append(RedisBudgetPool(shared().client(), 10, name=new_name(), window=Window.daily("Europe/Berlin")))
    opened[0].record(tokens=3)
    snapshot = opened[0].snapshot()
    assert snapshot.window_start is not None
    assert snapshot.resets_at is not None
    assert snapshot.resets_at.timestamp() > float(shared().client().time()[0])
    assert snapshot.window_start.timestamp() < float(shared().client().time()[0])


def test_a_server_that_is_gone_refuses_by_default_and_allows_where_told_to() -> None:
    with Server(persistence="always") as server:
        refusing = RedisBudgetPool(server.client(), 10, name="strict", timeout=0.3)
        allowing = RedisBudgetPool(server.client(), 10, name="lax", timeout=0.3, on_unavailable="allow")
        server.kill()
        with pytest.raises(
            BudgetUnavailable, match=f"redis://{HOST}:{server.port}/0 has not answered within 0.3 seconds"
        ):
            refusing.record(tokens=1)
        for _ in range(2):
            with allowing.reserve(tokens=3) as reservation:
                reservation.commit(tokens=2)
        server.start()
        refusing.record(tokens=1)
        assert refusing.snapshot().tokens_used == 1
        allowing.close()  # what was let pass is recorded
        again = RedisBudgetPool(server.client(), name="lax")
        assert again.snapshot().tokens_used == 4
        again.close()
        refusing.close()


def test_a_database_number_is_another_store() -> None:
    name = new_name()
    first = RedisBudgetPool(shared().client(db=0), 10, name=name)
    second = RedisBudgetPool(shared().client(db=1), 10, name=name)
    first.record(tokens=9)
    assert second.snapshot().tokens_used == 0
    assert first._family is not second._family
    first.close()
    second.close()
