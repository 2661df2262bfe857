"""The Redis client: answers, scripts, and a copy of the user's settings that keeps its own time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from redis_clients import COUNT, PACKAGES, client_of, count, counted, each_package, new_key
from redis_server import HOST, Server, new_name, shared, wait_until
from scripted_redis import scripted
from token_budget.contract import BudgetUnavailable
from token_budget.stores import _errors
from token_budget.stores.redis._client import Client
from token_budget.stores.redis._wire import Refusal, command, packed

StoreError = _errors.StoreError
ECHO = "return {KEYS, ARGV, 12, false, {'ok', -1}, redis.status_reply('fine')}"


# ---------------------------------------------------------------------- answers


@each_package
@pytest.mark.parametrize(
    "settings", [{}, {"decode_responses": True}, {"protocol": 3}, {"protocol": 3, "decode_responses": True}]
)
def test_answers_are_the_same_whatever_the_client_decodes_and_whichever_protocol_it_speaks(
    package: str, settings: dict[str, Any]
) -> None:
    client = client_of(package=package, **settings)
    key = client._key
    assert client.run(client.script(ECHO), (key, f"{key}:z"), ("a b", 7, "")) == [
        [key, f"{key}:z"],
        ["a b", "7", ""],
        12,
        None,
        ["ok", -1],
        "fine",
    ]
    client.command("HSET", key, "one", 1, "two", 2)
    assert client.command("HGETALL", key) == ["one", "1", "two", "2"]
    assert client.command("HGET", key, "three") is None
    assert client.command("PING") == "PONG"


def test_integers_of_64_bits_text_of_any_kind_and_a_megabyte_come_back_as_they_were_sent() -> None:
    client = client_of()
    key = client._key
    for text in (
        str(-(2**63)),
        str(2**63 - 1),
        "ünï \U0001f4b0",
        "\r\n$5\r\n",
        "x" * 1_000_003,
        "é" * 500_000,
        "\udc80",
    ):
        assert client.run(client.script("return {ARGV[1], #ARGV[1]}"), (key,), (text,)) == [
            text,
            len(text.encode(errors="surrogateescape")),
        ]
    assert client.command("HINCRBY", key, "n", -(2**63)) == -(2**63)


def test_an_answer_of_many_parts_is_read_whole() -> None:
    client = client_of()
    key = client._key
    expected = [[str(number), number, [None, "x" * (number % 90)]] for number in range(1, 30_001)]
    source = (
        "local all = {} for i = 1, 30000 do all[i] = {tostring(i), i, {false, string.rep('x', i % 90)}} end return all"
    )
    assert client.run(client.script(source), (key,)) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_an_answer_that_comes_in_pieces_is_read_whole(size: int) -> None:
    whole = b"*5\r\n$4\r\nab\r\n\r\n:-12\r\n*-1\r\n*2\r\n$0\r\n\r\n$-1\r\n+fine\r\n"
    pieces = [whole[begin : begin + size] for begin in range(0, len(whole), size)]
    with scripted(lambda words: pieces) as server:
        client = Client(_plain(server.port), key="tb:{x}", timeout=30)
        for _ in range(2):  # nothing is left over
            assert client.command("GET", "tb:{x}") == ["ab\r\n", -12, None, ["", None], "fine"]
        assert server.connections == 1


def test_a_script_is_given_to_the_server_when_it_does_not_know_it() -> None:
    client = client_of()
    assert count(client, "1") == 1
    shared().client().script_flush()
    assert count(client, "2") == 2
    threads = [threading.Thread(target=count, args=(client, f"t{number}")) for number in range(8)]
    shared().client().script_flush()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted(client) == 10


def test_a_known_script_is_sent_by_its_hash_alone() -> None:
    def answer(words: list[str]) -> bytes:
        if words[0] == "EVALSHA" and not server.count("SCRIPT", "LOAD"):
            return b"-NOSCRIPT No matching script. Please use EVAL.\r\n"
        return b":1\r\n"

    with scripted(answer) as server:
        client = Client(_plain(server.port), key="tb:{x}", timeout=30)
        script = client.script(COUNT)
        for _ in range(5):
            assert client.run(script, ("tb:{x}",)) == 1
        assert server.count("SCRIPT", "LOAD") == 1
        assert server.count("EVALSHA", script.sha) == 6
        assert server.count("EVAL") == 0


def test_scan_finds_each_key_of_a_pattern_once() -> None:
    client = client_of()
    key = client._key
    for number in range(2_500):
        client.command("SET", f"{key}:s:{number}", number)
    client.command("SET", new_key(), "of another")
    assert sorted(client.scan(f"{key}:s:*")) == sorted(f"{key}:s:{number}" for number in range(2_500))
    assert client.scan(f"{key}:none:*") == []


def test_a_scan_begins_anew_where_another_server_took_over() -> None:
    steps = iter(
        [
            b"*2\r\n$2\r\n17\r\n*1\r\n$1\r\na\r\n",
            None,  # the connection is lost here
            b"*2\r\n$2\r\n99\r\n*1\r\n$1\r\nb\r\n",  # the cursor 17 is nothing to this one, nor is its answer
            b"*2\r\n$1\r\n5\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n",
            b"*2\r\n$1\r\n0\r\n*1\r\n$1\r\nc\r\n",
        ]
    )

    def answer(words: list[str]) -> bytes | None:
        reply = next(steps)
        if reply is None:
            server.hang_up()
        return reply

    with scripted(answer) as server:
        assert Client(_plain(server.port), key="tb:{x}", timeout=30).scan("*") == ["a", "b", "c"]
        assert [words[1] for words in server.asked if words[0] == "SCAN"] == ["0", "17", "17", "0", "5"]


def test_words_are_packed_as_bytes() -> None:
    assert packed(("GET", "é", 12)) == b"$3\r\nGET\r\n$2\r\n\xc3\xa9\r\n$2\r\n12\r\n"
    assert command("PING") == b"*1\r\n$4\r\nPING\r\n"


# ---------------------------------------------------------------------- the copy of the settings


def _plain(port: int, package: str = PACKAGES[0], **settings: Any) -> Any:
    module = importlib.import_module(package)
    return (module.Redis if package == "redis" else module.Valkey)(host=HOST, port=port, **settings)


@each_package
def test_the_budget_has_connections_of_its_own(package: str) -> None:
    theirs = shared().client(package, max_connections=1, client_name="theirs")
    client = Client(theirs, key=new_key())
    before = theirs.connection_pool
    assert count(client, "1") == 1
    assert theirs.connection_pool is before
    assert theirs.ping()  # its only connection is free
    theirs.close()
    assert count(client, "2") == 2


@each_package
def test_the_clients_database_name_and_login_are_the_budgets(package: str) -> None:
    with Server("--requirepass", "s3cret", "--user", "ann", "on", ">p4ss", "~*", "&*", "+@all") as server:
        theirs = server.client(package, username="ann", password="p4ss", db=3, client_name="worker-7")
        client = Client(theirs, key=new_key())
        assert count(client, "1") == 1
        assert theirs.hget(client._key, "n") == b"1"
        assert client.command("ACL", "WHOAMI") == "ann"
        assert "db=3" in client.command("CLIENT", "INFO")
        assert "name=worker-7" in client.command("CLIENT", "INFO")
        assert client.location == f"redis://{HOST}:{server.port}/3"
        bare = Client(server.client(package, password="s3cret"), key=new_key())
        assert count(bare, "1") == 1


@each_package
def test_a_url_a_unix_socket_and_a_pool_of_ones_own_will_do(package: str, tmp_path: Path) -> None:
    module = importlib.import_module(package)
    kind = module.Redis if package == "redis" else module.Valkey
    path = str(tmp_path / "sock") if len(str(tmp_path)) < 90 else f"/tmp/{new_name()}.sock"
    with Server("--unixsocket", path) as server:
        by_path = Client(kind(unix_socket_path=path), key=new_key())
        assert (count(by_path, "1"), by_path.location) == (1, f"unix://{path}?db=0")
        scheme = package
        by_url = Client(kind.from_url(f"{scheme}://{HOST}:{server.port}/2"), key=new_key())
        assert (count(by_url, "1"), by_url.location) == (1, f"redis://{HOST}:{server.port}/2")
        pool = module.BlockingConnectionPool(host=HOST, port=server.port, max_connections=1, timeout=1)
        assert count(Client(kind(connection_pool=pool), key=new_key()), "1") == 1
        single = kind(host=HOST, port=server.port, single_connection_client=True)
        assert count(Client(single, key=new_key()), "1") == 1
        single.close()


@each_package
def test_a_provider_of_credentials_and_a_hook_are_asked_at_each_connection(package: str) -> None:
    module = importlib.import_module(package)
    asked = []

    class Provider(module.CredentialProvider):  # type: ignore[name-defined, misc]
        def get_credentials(self) -> tuple[str, str]:
            asked.append(1)
            return "default", "s3cret"

    with Server("--requirepass", "s3cret") as server:
        client = Client(server.client(package, credential_provider=Provider()), key=new_key())
        assert count(client, "1") == 1
        client.close()
        assert count(client, "2") == 2
        assert len(asked) == 2


def test_a_client_with_a_cache_in_the_process_reads_what_the_server_has() -> None:
    try:
        from redis.cache import CacheConfig
    except ImportError:
        pytest.skip("this release of redis-py has no cache in the client")
    client = client_of(package="redis", protocol=3, cache_config=CacheConfig())
    other = shared().client()
    client.command("SET", client._key, "1")
    assert client.command("GET", client._key) == "1"
    other.set(client._key, "2")
    assert client.command("GET", client._key) == "2"


@each_package
def test_a_connection_class_of_ones_own_is_used(package: str) -> None:
    module = importlib.import_module(f"{package}.connection")
    made = []

    class Tunnel(module.Connection):  # type: ignore[name-defined, misc]
        def _connect(self) -> Any:
            made.append((self.host, self.port))
            return super()._connect()

    pool = module.ConnectionPool(connection_class=Tunnel, host=HOST, port=shared().port)
    top = importlib.import_module(package)
    theirs = (top.Redis if package == "redis" else top.Valkey)(connection_pool=pool)
    assert count(Client(theirs, key=new_key()), "1") == 1
    assert made == [(HOST, shared().port)]


@each_package
def test_a_pool_that_makes_its_connections_in_its_own_way_is_refused(package: str) -> None:
    module = importlib.import_module(f"{package}.connection")

    class Pool(module.ConnectionPool):  # type: ignore[name-defined, misc]
        def get_connection(self, *args: Any, **settings: Any) -> Any:
            return super().get_connection(*args, **settings)

    top = importlib.import_module(package)
    theirs = (top.Redis if package == "redis" else top.Valkey)(connection_pool=Pool(host=HOST, port=1))
    with pytest.raises(ValueError, match="pool of connections is Pool.*pass a client with a ConnectionPool"):
        Client(theirs, key="tb:{x}")


def test_settings_that_no_connection_takes_are_told_at_once() -> None:
    module = importlib.import_module("redis.connection")
    pool = module.ConnectionPool(host=HOST, port=1, no_such_setting=1)
    theirs = importlib.import_module("redis").Redis(connection_pool=pool)
    with pytest.raises(ValueError, match="cannot be used for a connection: .*no_such_setting"):
        Client(theirs, key="tb:{x}")


@each_package
def test_an_asyncio_client_is_refused_by_words_that_say_what_to_pass(package: str) -> None:
    module = importlib.import_module(f"{package}.asyncio")
    kinds = (module.Redis, module.RedisCluster) if package == "redis" else (module.Valkey, module.ValkeyCluster)

    async def made() -> list[Any]:
        return [kind(host=HOST, port=1) for kind in kinds]

    for theirs in asyncio.run(made()):
        with pytest.raises(TypeError, match=r"client for asyncio.*areserve"):
            Client(theirs, key="tb:{x}")


@pytest.mark.parametrize("stranger", [None, "redis://localhost", object(), {"host": "x"}])
def test_what_is_no_client_is_refused_by_words_that_say_what_to_pass(stranger: Any) -> None:
    with pytest.raises(TypeError, match=r"no client that is known: pass a client of redis-py or valkey-py"):
        Client(stranger, key="tb:{x}")


@each_package
def test_a_pipeline_is_refused(package: str) -> None:
    with pytest.raises(TypeError, match="pipeline"):
        Client(shared().client(package).pipeline(), key="tb:{x}")


def test_a_client_whose_constructor_does_something_is_not_constructed_again() -> None:
    made = []

    class Starts(importlib.import_module("redis").Redis):  # type: ignore[misc]
        def __init__(self) -> None:
            made.append(1)
            super().__init__(host=HOST, port=shared().port)

    assert count(Client(Starts(), key=new_key()), "1") == 1
    assert made == [1]


# ---------------------------------------------------------------------- opening


def test_a_server_of_noeviction_and_volatile_eviction_passes_the_check() -> None:
    client = client_of()
    client.check()
    assert not client.volatile
    with Server("--maxmemory-policy", "volatile-lru") as server:
        client = client_of(server)
        client.check()
        assert not client.volatile  # there is no limit at which it would evict
        server.client().config_set("maxmemory", "1gb")
        client.check()
        assert client.volatile


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
def test_a_server_that_evicts_any_key_is_refused_also_where_it_forbids_config(policy: str) -> None:
    settings = ("--maxmemory-policy", policy, "--user", "default", "on", "nopass", "~*", "&*", "+@all", "-config")
    with Server(*settings) as server, pytest.raises(StoreError, match=f"{policy}.*noeviction"):
        client_of(server).check()


def test_a_user_who_may_not_ask_for_the_policy_is_told_what_it_needs() -> None:
    settings = ("--user", "default", "on", "nopass", "~*", "&*", "+@all", "-info")
    with Server(*settings) as server, pytest.raises(StoreError, match=r"forbids this user.*info"):
        client_of(server).check()


@pytest.mark.parametrize(
    ("version", "fine"), [("5.0.14", False), ("6.0.16", True), ("7.2.4", True), ("", True), ("255.0", True)]
)
def test_a_server_that_is_too_old_is_refused(version: str, fine: bool) -> None:
    text = f"# Server\r\nredis_version:{version}\r\n".encode()
    with scripted(lambda words: b"$%d\r\n%b\r\n" % (len(text), text)) as server:
        client = Client(_plain(server.port), key="tb:{x}", timeout=30)
        if fine:
            client.check()
        else:
            with pytest.raises(StoreError, match=r"Redis 5\.0\.14, and a budget needs 6\.0"):
                client.check()


# ---------------------------------------------------------------------- threads, forks, collection


def test_threads_have_a_connection_each_while_they_ask_and_few_are_kept() -> None:
    client = client_of()
    script = client.script(COUNT)
    key = client._key

    def ask(number: int) -> None:
        for step in range(20):
            client.run(script, (key, f"{key}:ids"), (f"{number}-{step}", 1))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted(client) == 2_000
    assert len(client._idle) <= 64


def test_closed_connections_are_made_anew() -> None:
    client = client_of(client_name=(name := new_name()))
    assert count(client, "1") == 1
    client.close()
    wait_until(lambda: name not in shared().client().execute_command("CLIENT", "LIST").decode())
    assert count(client, "2") == 2


def test_a_client_that_nobody_has_leaves_no_connection() -> None:
    client = client_of(client_name=(name := new_name()))
    count(client, "1")
    del client
    gc.collect()
    wait_until(lambda: all(name != entry["name"] for entry in shared().client().client_list()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_uses_connections_of_its_own_and_harms_not_its_parents() -> None:
    client = client_of()
    assert count(client, "parent 1") == 1
    mine = client.command("CLIENT", "ID")
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)

    def child() -> None:
        its = client.command("CLIENT", "ID")
        client.close()
        for number in range(200):
            count(client, f"child {number}")
        sending.send(its)

    process = context.Process(target=child)
    process.start()
    for number in range(200):
        count(client, f"parent {number + 2}")
    its = receiving.recv()
    process.join()
    assert process.exitcode == 0
    assert its != mine
    assert client.command("CLIENT", "ID") == mine
    assert counted(client) == 401


def test_a_fork_is_noticed_also_where_nobody_tells_of_it() -> None:
    client = client_of()
    assert count(client, "1") == 1
    before = client.command("CLIENT", "ID")
    client.forked()
    assert client.command("CLIENT", "ID") != before
    before = client.command("CLIENT", "ID")
    client._pid = -1
    assert client.command("CLIENT", "ID") != before
    assert client.command("CLIENT", "ID") == client.command("CLIENT", "ID")


def test_a_connection_of_before_that_comes_back_late_is_closed() -> None:
    client = client_of()
    wire = client._take(float("inf"))
    client.close()
    client._idle.append(wire)  # as a thread does that looked at the generation just before
    assert count(client, "1") == 1
    with pytest.raises(OSError, match="."):
        wire.ask(command("PING"), float("inf"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_forked_while_a_thread_asks_begins_with_nothing_of_it() -> None:
    with Server() as server:
        client = client_of(server)
        count(client, "1")
        asking = threading.Thread(target=client.command, args=("BLPOP", f"{client._key}:list", 0))
        asking.start()
        wait_until(lambda: server.info("clients")["blocked_clients"] == "1")
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = 0 if count(client, "child") == 2 else 1
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        client2 = client_of(server)
        client2.command("RPUSH", f"{client._key}:list", "go")
        asking.join()
        assert count(client, "3") == 3


def test_errors_leave_no_cycles_that_would_keep_connections() -> None:
    gc.collect()
    gc.disable()
    try:
        with scripted(lambda words: b"-NOPERM no\r\n" if words[-1] == "final" else b"-LOADING later\r\n") as server:
            client = Client(_plain(server.port), key="tb:{x}", timeout=0.1)
            for word in ("final", "later"):
                with contextlib.suppress(StoreError, BudgetUnavailable):
                    client.command("GET", word)
            gone = weakref.ref(client)
            del client
            assert gone() is None
    finally:
        gc.enable()


def test_an_interrupted_call_throws_its_connection_away() -> None:
    main, interrupted = threading.get_ident(), threading.Event()
    answers = iter([b":1\r\n", KeyboardInterrupt, b":2\r\n", b":3\r\n"])

    def interrupt(_number: int, _frame: object) -> None:
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    def answer(words: list[str]) -> bytes | None:
        reply = next(answers)
        if isinstance(reply, bytes):
            return reply
        while not interrupted.wait(0.01):  # a signal that comes just before a thread sleeps wakes it only with the next
            signal.pthread_kill(main, signal.SIGUSR1)
        return None

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with scripted(answer) as server:
            client = Client(_plain(server.port), key="tb:{x}", timeout=60)
            assert client.command("GET", "x") == 1
            with pytest.raises(KeyboardInterrupt):
                client.command("GET", "x")
            assert client.command("GET", "x") == 2
            assert server.connections == 2
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_package_is_imported_by_nobody_but_the_user() -> None:
    code = "import sys, token_budget.stores.redis.pool; print(sorted({'redis', 'valkey'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_errors_name_the_place_and_no_password() -> None:
    with Server("--requirepass", "s3cret") as server:
        logins: list[dict[str, Any]] = [{}, {"password": "wr0ng"}, {"username": "eve", "password": "wr0ng"}]
        for settings in logins:
            client = client_of(server, **settings)
            with pytest.raises(StoreError, match=f"^redis://{HOST}:{server.port}/0 ") as caught:
                client.command("PING")
            told: BaseException | None = caught.value
            while told is not None:
                assert "wr0ng" not in str(told)
                told = told.__cause__ or told.__context__
        client = client_of(server, password="s3cret", timeout=0.3)
        server.kill()
        with pytest.raises(BudgetUnavailable) as unavailable:
            client.command("PING")
        assert "s3cret" not in str(unavailable.value)
        server.start()


def test_a_refusal_shows_what_the_server_said() -> None:
    assert str(Refusal("OOM", "command not allowed")) == "OOM command not allowed"
