"""The Redis client where the master moves: Sentinel, and the nodes of a cluster."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from redis_clients import COUNT, count, counted, each_package, new_key
from redis_server import HOST, Server, cluster_of, one_node_cluster, replica_of, sentinel_of, shared, wait_until
from scripted_redis import scripted
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError
from token_budget.stores.redis._client import Client
from token_budget.stores.redis._routes import slot_of

# ---------------------------------------------------------------------- Sentinel


class Watched:
    """A master, its replica, and a Sentinel that watches them."""

    def __init__(self, *settings: str) -> None:
        self.master = Server(*settings)
        self.replica = replica_of(self.master)
        self.sentinel = sentinel_of(self.master)

    def close(self) -> None:
        for server in (self.sentinel, self.replica, self.master):
            server.close()

    def wait_for_promotion(self) -> None:
        wait_until(lambda: self.replica.info("replication").get("role") == "master")

    def wait_for_a_copy_of(self, client: Client) -> None:
        wait_until(lambda: self.replica.ask("HGET", client._key, "n") == self.master.ask("HGET", client._key, "n"))


@pytest.fixture
def watched() -> Iterator[Watched]:
    trio = Watched()
    yield trio
    trio.close()


@each_package
@pytest.mark.parametrize("settings", [{}, {"decode_responses": True, "protocol": 3, "db": 2}])
def test_the_master_is_found_by_the_sentinel(watched: Watched, package: str, settings: dict[str, Any]) -> None:
    client = Client(watched.sentinel.sentinel_client(package, **settings), key=new_key())
    client.check()
    assert count(client, "1") == 1
    assert client.location == f"redis+sentinel://{HOST}:{watched.sentinel.port}/total/{settings.get('db', 0)}"
    assert watched.master.client(db=settings.get("db", 0)).hget(client._key, "n") == b"1"


@each_package
def test_a_killed_master_is_followed_by_the_promoted_replica(watched: Watched, package: str) -> None:
    client = Client(watched.sentinel.sentinel_client(package), key=new_key(), timeout=60)
    assert count(client, "1", 5) == 5
    watched.wait_for_a_copy_of(client)
    watched.master.kill()
    assert count(client, "2", 7) == 12
    assert watched.replica.ask("HGET", client._key, "n") == b"$2\r\n12\r\n"


@each_package
def test_a_stopped_master_is_followed_by_the_promoted_replica(watched: Watched, package: str) -> None:
    """Its connections stay open, and nothing comes over them: as where a host vanishes from the network."""
    client = Client(watched.sentinel.sentinel_client(package), key=new_key(), timeout=6)
    assert count(client, "1", 5) == 5
    watched.wait_for_a_copy_of(client)
    with watched.master.paused():
        watched.wait_for_promotion()
        assert count(client, "2", 7) == 12
    assert count(client, "3") == 13  # it is back, and nobody counts there


@each_package
def test_sentinels_that_are_gone_are_passed_over_and_the_one_that_answers_is_asked_first(
    watched: Watched, package: str
) -> None:
    module = importlib.import_module(f"{package}.sentinel")
    with Server() as gone, Server() as deaf:
        gone.kill()
        addresses = [(HOST, gone.port), (HOST, deaf.port), (HOST, watched.sentinel.port)]
        client = Client(module.Sentinel(addresses).master_for("total"), key=new_key(), timeout=3)
        with deaf.paused():
            assert count(client, "1") == 1
            client.close()
            assert count(client, "2") == 2
        route: Any = client._route
        assert route._sentinels[0].address == f"{HOST}:{watched.sentinel.port}/0"


def test_no_sentinel_no_master_and_too_few_sentinels_are_unavailable(watched: Watched) -> None:
    kind = importlib.import_module("redis.sentinel").Sentinel
    at = [(HOST, watched.sentinel.port)]
    for manager, service, told in (
        (kind(at), "nightly", "no Sentinel names a master of 'nightly'.*does not know the service"),
        (kind(at, min_other_sentinels=2), "total", "sees fewer than 2 other Sentinels"),
        (kind([(HOST, 1)]), "total", "no Sentinel names a master of 'total'.*refused"),
    ):
        client = Client(manager.master_for(service), key=new_key(), timeout=0.3)
        with pytest.raises(BudgetUnavailable, match=told):
            count(client, "1")


def test_a_master_that_has_become_a_replica_is_not_believed_before_the_sentinel_knows() -> None:
    kind = importlib.import_module("redis.sentinel").Sentinel

    with Server() as other, replica_of(other) as replica:
        port = str(replica.port)
        said = f"*2\r\n$9\r\n{HOST}\r\n${len(port)}\r\n{port}\r\n".encode()
        with scripted(lambda words: said) as sentinel:
            client = Client(kind([(HOST, sentinel.port)]).master_for("total"), key=new_key(), timeout=0.3)
            with pytest.raises(BudgetUnavailable, match="which the Sentinels name, is no master now"):
                client.command("GET", client._key)


def test_a_user_who_may_not_ask_for_the_role_is_let_pass() -> None:
    rights = ("--user", "default", "on", "nopass", "~*", "&*", "+@all", "-role")
    with Server(*rights) as master, sentinel_of(master) as sentinel:
        assert count(Client(sentinel.sentinel_client(), key=new_key(), timeout=60), "1") == 1


def test_a_sentinel_that_sees_enough_others_is_believed() -> None:
    with Server() as master, sentinel_of(master) as one, sentinel_of(master) as other:
        wait_until(lambda: "sentinels=2" in one.info("sentinel")["master0"])
        manager = importlib.import_module("redis.sentinel").Sentinel(
            [(HOST, one.port), (HOST, other.port)], min_other_sentinels=1
        )
        assert count(Client(manager.master_for("total"), key=new_key(), timeout=60), "1") == 1


@each_package
def test_a_client_of_replicas_is_refused(watched: Watched, package: str) -> None:
    module = importlib.import_module(f"{package}.sentinel")
    replicas = module.Sentinel([(HOST, watched.sentinel.port)]).slave_for("total")
    with pytest.raises(ValueError, match=r"reads from replicas \(slave_for\)"):
        Client(replicas, key=new_key())


@each_package
def test_the_login_of_the_master_and_that_of_the_sentinel_are_told_apart(package: str) -> None:
    with Server("--requirepass", "s3cret") as master:
        sentinel = Server("requirepass watcher", "sentinel auth-pass total s3cret", sentinel=("total", master.port))
        with sentinel:
            client = Client(
                sentinel.sentinel_client(package, password="s3cret", sentinel_kwargs={"password": "watcher"}),
                key=new_key(),
            )
            assert count(client, "1") == 1


# ---------------------------------------------------------------------- a cluster


@each_package
@pytest.mark.filterwarnings("ignore:.*read_from_replicas:DeprecationWarning")
@pytest.mark.parametrize("settings", [{}, {"decode_responses": True, "protocol": 3, "read_from_replicas": True}])
def test_a_cluster_of_one_node(package: str, settings: dict[str, Any]) -> None:
    with one_node_cluster() as server:
        client = Client(server.cluster_client(package, **settings), key=new_key(), timeout=60)
        client.check()
        assert client.location == f"redis+cluster://{HOST}:{server.port}"
        assert count(client, "1", 5) == 5
        assert (
            client.scan(f"{client._key}*") == sorted([client._key, f"{client._key}:ids"])
            or len(client.scan(f"{client._key}*")) == 2
        )
        server.restart()  # it was in memory; the cluster is down for a while, and the scripts are gone
        assert count(client, "2", 7) == 7


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Server]]:
    servers = cluster_of(3)
    yield servers
    for server in servers:
        server.close()


@each_package
def test_each_budget_is_at_the_node_that_has_its_slot(nodes: list[Server], package: str) -> None:
    theirs = nodes[0].cluster_client(package)
    seen = set()
    for number in range(12):
        client = Client(theirs, key=new_key(), timeout=60)
        assert count(client, "1", number) == number
        port = client.command("INFO", "server").partition("tcp_port:")[2].partition("\r\n")[0]
        slot = slot_of(client._key)
        owner = next(index for index in range(3) if 16_384 * index // 3 <= slot < 16_384 * (index + 1) // 3)
        assert nodes[owner].port == int(port)
        seen.add(port)
    assert len(seen) > 1


@pytest.mark.parametrize("key", ["123456789", "foo", "{foo}.bar", "a{}b", "{a}{b}", "}{", "tb:{tötal}:s:a", "tb:{x}}y"])
def test_the_slot_of_a_key_is_the_servers(nodes: list[Server], key: str) -> None:
    assert slot_of(key) == int(nodes[0].ask("CLUSTER", "KEYSLOT", key)[1:])


@each_package
def test_a_slot_that_moves_while_scripts_run_is_followed(nodes: list[Server], package: str) -> None:
    """MIGRATING and IMPORTING (ASK), keys that move one by one (TRYAGAIN), the new owner (MOVED)."""
    client = Client(nodes[0].cluster_client(package), key=new_key(), timeout=60)
    assert count(client, "1") == 1
    slot = str(slot_of(client._key))
    port = client.command("INFO", "server").partition("tcp_port:")[2].partition("\r\n")[0]
    source = next(node for node in nodes if node.port == int(port))
    target = next(node for node in nodes if node is not source)
    ids = {node: node.ask("CLUSTER", "MYID").split(b"\r\n")[1].decode() for node in (source, target)}
    assert target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source]) == b"+OK\r\n"
    assert source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target]) == b"+OK\r\n"
    assert count(client, "2") == 2  # both keys are where they were
    assert source.ask("MIGRATE", HOST, str(target.port), client._key, "0", "5000") == b"+OK\r\n"
    with pytest.raises(BudgetUnavailable, match="TRYAGAIN"):
        count(client, "3", timeout=0.3)
    assert source.ask("MIGRATE", HOST, str(target.port), f"{client._key}:ids", "0", "5000") == b"+OK\r\n"
    target.ask("SCRIPT", "FLUSH")
    assert count(client, "3") == 3  # at the target, which is asked by ASKING
    assert client.command("HGET", client._key, "n") == "3"
    for node in (target, source):
        assert node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[target]) == b"+OK\r\n"
    assert count(client, "4") == 4
    assert client.command("INFO", "server").count(f"tcp_port:{target.port}") == 1


@each_package
def test_a_node_that_died_is_followed_by_its_replica(package: str) -> None:
    nodes = cluster_of(2)
    replica = Server("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf")
    try:
        client = Client(nodes[0].cluster_client(package), key="tb:{b}", timeout=60)
        master = nodes[slot_of("b") * 2 // 16384]
        assert count(client, "1", 5) == 5
        replica.ask("CLUSTER", "MEET", HOST, str(master.port))
        master_id = master.ask("CLUSTER", "MYID").split(b"\r\n")[1].decode()
        wait_until(lambda: replica.ask("CLUSTER", "REPLICATE", master_id) == b"+OK\r\n")
        wait_until(lambda: replica.info("replication").get("master_link_status") == "up")
        wait_until(lambda: all(str(replica.port).encode() in node.ask("CLUSTER", "SLOTS") for node in nodes))
        master.kill()
        waiting = threading.Thread(target=count, args=(client, "2", 7))
        waiting.start()
        assert replica.ask("CLUSTER", "FAILOVER", "TAKEOVER") == b"+OK\r\n"
        waiting.join()
        assert counted(client) == 12
        assert client.command("INFO", "server").count(f"tcp_port:{replica.port}") == 1
    finally:
        for server in (*nodes, replica):
            server.close()


def test_a_slot_that_no_node_has_is_unavailable() -> None:
    with one_node_cluster() as server:
        client = Client(server.cluster_client(), key="tb:{a}", timeout=0.5)
        server.ask("CLUSTER", "DELSLOTS", str(slot_of("a")))
        with pytest.raises(BudgetUnavailable, match=f"it knows no node that has slot {slot_of('a')}|CLUSTERDOWN"):
            count(client, "1")
        route: Any = client._route
        with pytest.raises(ConnectionError, match=f"it knows no node that has slot {slot_of('a')}"):
            route._asked(float("inf"))


def test_a_cluster_before_version_7_publishes_to_all_nodes(
    nodes: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(nodes[0].cluster_client(), key=new_key())
    assert client.publish == "SPUBLISH"
    monkeypatch.setattr(client, "command", lambda *words: "# Server\r\nredis_version:6.2.14\r\n")
    client.check()
    assert client.publish == "PUBLISH"


def test_a_clusters_client_that_knows_no_node_or_is_of_no_known_package_is_refused(nodes: list[Server]) -> None:
    theirs = nodes[0].cluster_client()
    theirs.get_nodes = list
    with pytest.raises(ValueError, match="knows no node"):
        Client(theirs, key=new_key())

    class Stranger:
        nodes_manager = None

        def get_nodes(self) -> list[object]:
            return [object()]

    with pytest.raises(TypeError, match="Stranger is no cluster's client that is known: pass a client of redis-py"):
        Client(Stranger(), key=new_key())


@each_package
def test_addresses_are_those_that_the_client_maps_them_to(nodes: list[Server], package: str) -> None:
    asked = []

    def remap(address: tuple[str, int]) -> tuple[str, int]:
        asked.append(address)
        return HOST, address[1]

    client = Client(nodes[0].cluster_client(package, address_remap=remap), key=new_key(), timeout=60)
    asked.clear()
    assert count(client, "1") == 1
    assert asked


@each_package
def test_a_hook_of_the_user_is_called_for_each_connection(nodes: list[Server], package: str) -> None:
    called: list[object] = []
    theirs = nodes[0].cluster_client(package, **{f"{package}_connect_func": called.append})
    called.clear()
    assert count(Client(theirs, key=new_key(), timeout=60), "1") == 1
    assert called


def test_a_plain_client_of_a_clusters_node_is_told_what_to_pass(nodes: list[Server]) -> None:
    told = []
    for number in range(60):
        client = Client(nodes[0].client(), key=f"tb:{{{number}}}", timeout=60)
        try:
            count(client, "1")
        except StoreError as error:
            told.append(str(error))
    assert told
    assert all("is a node of a cluster: pass a RedisCluster or a ValkeyCluster" in text for text in told)


@each_package
def test_a_cluster_that_is_gone_is_unavailable(package: str) -> None:
    with one_node_cluster() as server:
        client = Client(server.cluster_client(package), key=new_key(), timeout=0.3)
        assert count(client, "1") == 1
        server.kill()
        with pytest.raises(BudgetUnavailable, match=r"no node of the cluster can be asked|refused"):
            count(client, "2")


def test_scripts_of_others_on_the_same_server_are_left_alone() -> None:
    theirs = shared().client()
    sha = theirs.script_load(COUNT + " -- theirs")
    count(Client(theirs, key=new_key()), "1")
    assert theirs.script_exists(sha) == [True]
