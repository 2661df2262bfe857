"""The listener: messages wake it, and it heals itself without ever raising."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from redis_clients import client_of, each_package, new_key
from redis_server import Server, cluster_of, new_name, one_node_cluster, shared, wait_until
from scripted_redis import ScriptedRedis
from test_redis_client_faults import scripted_client
from token_budget.stores.redis import _listener
from token_budget.stores.redis._client import Client
from token_budget.stores.redis._listener import Listener
from token_budget.stores.redis._routes import slot_of
from token_budget.stores.redis._wire import command

LONG = 60.0


class Waiting:
    """A thread that waits once."""

    def __init__(self, listener: Listener, seconds: float = LONG) -> None:
        self.said: bool | None = None
        self._thread = threading.Thread(target=self._wait, args=(listener, seconds))
        self._thread.start()

    def _wait(self, listener: Listener, seconds: float) -> None:
        self.said = listener.wait(seconds)

    def end(self) -> bool | None:
        self._thread.join(LONG)
        assert not self._thread.is_alive()
        return self.said


def closed_until_it_ends(listener: Listener, waiting: Waiting) -> None:
    """Close it, again if that came before the wait had begun."""

    def ended() -> bool:
        listener.close()
        return not waiting._thread.is_alive()

    wait_until(ended)
    assert waiting.end() is False


@pytest.fixture
def listener() -> Iterator[Listener]:
    heard = client_of().listener(new_name("channel"))
    yield heard
    heard.close()


def publish(listener: Listener, server: Server | None = None) -> int:
    return int((server or shared()).client().publish(listener._channel, "room"))


def test_the_first_wait_subscribes_and_says_that_something_may_have_been_missed(listener: Listener) -> None:
    assert listener.wait(LONG)
    assert publish(listener) == 1


def test_a_message_ends_a_wait(listener: Listener) -> None:
    listener.wait(LONG)
    waiting = Waiting(listener)
    assert publish(listener) == 1
    assert waiting.end() is True


def test_without_a_message_the_wait_ends_with_its_time(listener: Listener) -> None:
    listener.wait(LONG)
    assert listener.wait(0.01) is False
    assert listener.wait(0) is False


def test_a_message_that_came_between_two_waits_is_heard_and_many_are_heard_as_one(listener: Listener) -> None:
    listener.wait(LONG)
    for _ in range(100):
        publish(listener)
    assert listener.wait(LONG)
    wait_until(lambda: not listener.wait(0.01))  # all of them, after a few looks at most
    assert listener.wait(0.01) is False


@each_package
def test_scripts_wake_it_by_the_word_that_the_client_says(package: str) -> None:
    client = client_of(package=package)
    channel = f"{client._key}:room"
    heard = client.listener(channel)
    heard.wait(LONG)
    waiting = Waiting(heard)
    script = client.script("return redis.call(ARGV[1], ARGV[2], 'room')")
    client.run(script, (client._key,), (client.publish, channel))
    assert waiting.end() is True
    heard.close()


@each_package
def test_a_lost_connection_is_made_anew_and_told(package: str) -> None:
    with Server() as server:
        heard = client_of(server, package=package).listener("room")
        heard.wait(LONG)
        waiting = Waiting(heard)
        assert server.client().client_kill_filter(_type="pubsub") == 1
        assert waiting.end() is True  # messages may have been missed
        assert publish(heard, server) == 1
        assert heard.wait(LONG) is True
        heard.close()


def test_a_server_that_is_gone_is_waited_for_and_nothing_is_raised() -> None:
    with Server() as server:
        heard = client_of(server).listener("room")
        heard.wait(LONG)
        server.kill()
        assert heard.wait(0.2) is False
        assert heard.wait(0.2) is False
        waiting = Waiting(heard)
        server.start()
        assert waiting.end() is True
        assert publish(heard, server) == 1
        assert heard.wait(LONG) is True
        heard.close()


def test_a_server_that_says_nothing_for_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a host vanished from the network: nothing closes the connection."""
    monkeypatch.setattr(_listener, "_QUIET", 0.05)
    monkeypatch.setattr(_listener, "_PATIENCE", 0.05)

    def answer(words: list[str]) -> bytes | None:
        return b"*3\r\n$9\r\nsubscribe\r\n$4\r\nroom\r\n:1\r\n" if words[0] == "SUBSCRIBE" else None

    server = ScriptedRedis(lambda words: b"+OK\r\n" if words[0] == "CLIENT" else answer(words))
    heard = scripted_client(server).listener("room")
    for connections in (1, 2, 3):
        assert heard.wait(LONG) is True
        assert server.connections == connections
    assert server.count("PING") == 2
    heard.close()
    server.close()


def pings(server: Server) -> int:
    """Return how often a server was asked for a sign of life."""
    return int(server.info("commandstats").get("cmdstat_ping", "calls=0").partition(",")[0].removeprefix("calls="))


def test_a_server_that_gives_a_sign_of_life_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody has waited for long, and its sign was not looked at."""
    monkeypatch.setattr(_listener, "_QUIET", 0.02)
    monkeypatch.setattr(_listener, "_PATIENCE", LONG)
    with Server() as server:
        heard = client_of(server).listener("room")
        heard.wait(LONG)
        wire = heard._wire
        assert wire is not None
        before = pings(server)
        wait_until(lambda: heard.wait(0.05) or pings(server) > before + 2)
        assert heard._wire is wire
        wire.send(command("PING"), time.monotonic() + LONG)
        assert select.select([wire._socket], [], [], LONG)[0]
        heard._pinged = time.monotonic() - 2 * LONG
        assert heard.wait(0) is False
        assert heard._wire is wire
        heard.close()


def test_another_thread_ends_the_wait(listener: Listener) -> None:
    listener.wait(LONG)
    waiting = Waiting(listener)
    closed_until_it_ends(listener, waiting)
    assert listener.wait(LONG) is True  # it may be used again


def test_another_thread_ends_the_wait_for_a_server_that_is_gone() -> None:
    with Server() as server:
        heard = client_of(server).listener("room")
        server.kill()
        waiting = Waiting(heard)
        wait_until(lambda: heard._failures > 2)
        closed_until_it_ends(heard, waiting)


def test_who_may_not_subscribe_looks_now_and_then_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with Server("--user", "ann", "on", ">p4ss", "~*", "resetchannels", "+@all") as server:
        heard = client_of(server, username="ann", password="p4ss").listener("room")
        with caplog.at_level(logging.WARNING, logger="token_budget"):
            assert heard.wait(0.05) is False
            wait_until(lambda: heard.wait(0.05) or heard._failures > 3)
        assert [record.name for record in caplog.records] == ["token_budget"]
        assert "does not let this process subscribe to room" in caplog.text
        assert "NOPERM" in caplog.text
        assert "p4ss" not in caplog.text
        heard.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_listens_over_a_connection_of_its_own() -> None:
    with Server() as server:
        heard = client_of(server).listener("room")
        heard.wait(LONG)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                subscribed = heard.wait(LONG)
                os.write(writing, b"!")
                status = 0 if subscribed and heard.wait(LONG) else 1
            finally:
                os._exit(status)
        assert os.read(reading, 1) == b"!"
        assert publish(heard, server) == 2
        assert os.waitpid(pid, 0)[1] == 0
        assert heard.wait(LONG) is True
        assert publish(heard, server) == 1
        assert heard.wait(LONG) is True
        heard.close()
        os.close(reading)
        os.close(writing)


# ---------------------------------------------------------------------- a cluster


@each_package
def test_in_a_cluster_messages_stay_at_the_node_of_the_budget(package: str) -> None:
    with one_node_cluster() as server:
        client = Client(server.cluster_client(package), key=new_key(), timeout=LONG)
        client.check()
        channel = f"{client._key}:room"
        heard = client.listener(channel)
        assert heard.wait(LONG)
        waiting = Waiting(heard)
        script = client.script("return redis.call(ARGV[1], KEYS[2], 'room')")
        assert client.run(script, (client._key, channel), (client.publish,)) == 1
        assert waiting.end() is True
        heard.close()


@each_package
def test_a_listener_follows_a_slot_to_another_node(package: str) -> None:
    nodes = cluster_of(2)
    try:
        client = Client(nodes[0].cluster_client(package), key="tb:{a}", timeout=LONG)
        client.check()
        heard = client.listener("tb:{a}:room")
        assert heard.wait(LONG)
        slot = str(slot_of("a"))
        source = nodes[slot_of("a") * 2 // 16384]
        target = next(node for node in nodes if node is not source)
        waiting = Waiting(heard)
        ids = target.ask("CLUSTER", "MYID").split(b"\r\n")[1].decode()
        for node in (target, source):
            assert node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids) == b"+OK\r\n"
        assert waiting.end() is True
        wait_until(lambda: target.ask("SPUBLISH", "tb:{a}:room", "room") == b":1\r\n")
        assert heard.wait(LONG) is True
        heard.close()
    finally:
        for node in nodes:
            node.close()


def test_a_server_that_ends_the_subscription_is_asked_anew() -> None:
    said = [b"*3\r\n$9\r\nsubscribe\r\n$4\r\nroom\r\n:1\r\n", b"-ERR no more of this\r\n"]
    server = ScriptedRedis(lambda words: said if words[0] == "SUBSCRIBE" else b"+OK\r\n")
    heard = scripted_client(server).listener("room")
    assert heard.wait(LONG) is True
    assert heard.wait(LONG) is True
    assert server.connections == 2
    heard.close()
    server.close()


def test_a_listener_that_is_closed_while_it_connects_keeps_no_connection() -> None:
    client = client_of()
    heard = client.listener(new_name())
    connect = client.connect

    def closing(until: float) -> Any:
        heard.close()
        return connect(until)

    client.connect = closing  # type: ignore[method-assign]
    heard.wait(LONG)
    assert heard._wire is None


def test_a_fork_is_noticed_also_where_nobody_tells_of_it(listener: Listener) -> None:
    listener.wait(LONG)
    wire = listener._wire
    listener._pid = -1
    assert listener.wait(LONG) is True
    assert listener._wire is not wire


def test_a_message_that_never_ends_does_not_hold_the_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_listener, "_PATIENCE", 0.1)
    parts: list[bytes | Callable[[], Any]] = [b"*3\r\n$9\r\nsubscribe\r\n$4\r\nroom\r\n:1\r\n", b"*3\r\n$7\r\nmess"]
    server = ScriptedRedis(lambda words: parts if words[0] == "SUBSCRIBE" else b"+OK\r\n")  # type: ignore[arg-type, return-value]
    heard = scripted_client(server).listener("room")
    assert heard.wait(LONG) is True
    assert heard.wait(LONG) is True  # it was given up, and subscribed anew
    assert server.connections == 2
    heard.close()
    server.close()
