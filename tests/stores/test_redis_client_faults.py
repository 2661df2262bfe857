"""The Redis client when things go wrong: what is asked again, what is final, and that every call ends in its time."""

from __future__ import annotations

import datetime as dt
import importlib
import ipaddress
import itertools
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redis_clients import COUNT, PACKAGES, client_of, count, counted, each_package, new_key
from redis_server import HOST, Server, new_name, replica_of, shared, wait_until
from scripted_redis import ScriptedRedis, scripted
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError, StoreLost
from token_budget.stores.redis._client import Client

ONE = b":1\r\n"


def scripted_client(
    server: ScriptedRedis, *, timeout: float = 60, package: str = PACKAGES[0], **settings: Any
) -> Client:
    """Return a `Client` of a scripted server."""
    module = importlib.import_module(package)
    kind = module.Redis if package == "redis" else module.Valkey
    return Client(kind(host=HOST, port=server.port, **settings), key="tb:{x}", timeout=timeout)


# ---------------------------------------------------------------------- what the server says

# Servers before 7 wrap the error of a command in a script.
WRAPPED = "ERR Error running script (call to f_0123): @user_script:1: @user_script: 1: -{} "


@pytest.mark.parametrize(
    ("said", "kind", "told"),
    [
        ("NOPERM No permissions to access a key", StoreError, r"forbids this user what a budget needs.*tb:\{x\}\*"),
        ("WRONGTYPE Operation against a key", StoreError, r"other data in keys that begin with tb:\{x\}"),
        ("MISCONF Errors writing to the AOF file", BudgetUnavailable, "cannot save to its disk"),
        ("OOM command not allowed when used memory", BudgetUnavailable, "no memory left"),
        (WRAPPED.format("OOM") + "command not allowed", BudgetUnavailable, "no memory left"),
        (WRAPPED.format("MISCONF") + "Errors writing", BudgetUnavailable, "cannot save to its disk"),
        (WRAPPED.format("WRONGTYPE") + "Operation", StoreError, "other data in keys"),
        ("NOAUTH Authentication required.", StoreError, "asks for a login"),
        ("WRONGPASS invalid username-password pair", StoreError, "refuses the client's username or password"),
        ("MOVED 3999 127.0.0.1:6381", StoreError, "a node of a cluster: pass a RedisCluster"),
        ("ASK 3999 127.0.0.1:6381", StoreError, "a node of a cluster: pass a RedisCluster"),
        ("CROSSSLOT Keys in request don't hash to the same slot", StoreError, "a node of a cluster"),
        ("ERR unknown command 'EVALSHA'", StoreError, "refuses what a budget needs: ERR unknown command"),
        ("DENIED Redis is running in protected mode", StoreError, "refuses what a budget needs: DENIED"),
        ("this is no code", StoreError, "ERR this is no code"),
    ],
)
def test_what_is_final_is_told_at_once(said: str, kind: type[Exception], told: str) -> None:
    with scripted(lambda words: f"-{said}\r\n".encode()) as server:
        client = scripted_client(server)
        for asked in (1, 2):
            with pytest.raises(kind, match=told) as caught:
                client.run(client.script(COUNT), ("tb:{x}",))
            assert type(caught.value) is kind
            assert str(caught.value).startswith(f"redis://{HOST}:{server.port}/0 ")
            assert server.count("EVALSHA") == asked
        assert server.connections == (2 if said.startswith(("NOAUTH", "WRONGPASS")) else 1)


@pytest.mark.parametrize(
    "said",
    [
        "LOADING Redis is loading the dataset in memory",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "CLUSTERDOWN The cluster is down",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "NOREPLICAS Not enough good replicas to write.",
        "READONLY You can't write against a read only replica.",
        "ERR max number of clients reached",
        "ERR Error running script (call to f_0123): @user_script:1: Script killed by user with SCRIPT KILL...",
        WRAPPED.format("READONLY") + "You can't write against a read only replica.",
        "NOSCRIPT No matching script.",
    ],
)
def test_what_passes_is_asked_again(said: str) -> None:
    with scripted(lambda words: ONE if server.count("EVALSHA") > 4 else f"-{said}\r\n".encode()) as server:
        client = scripted_client(server)
        assert client.run(client.script(COUNT), ("tb:{x}",)) == 1


@pytest.mark.parametrize("said", ["LOADING not yet", "READONLY You can't write", "CLUSTERDOWN Hash slot not served"])
def test_what_does_not_pass_in_time_is_unavailable(said: str) -> None:
    with scripted(lambda words: f"-{said}\r\n".encode()) as server:
        with pytest.raises(
            BudgetUnavailable, match=f"not answered within 0.2 seconds; the last error: {said}"
        ) as caught:
            scripted_client(server, timeout=0.2).command("GET", "x")
        assert not isinstance(caught.value, StoreLost)
        with pytest.raises(BudgetUnavailable, match=r"within 0\.1 seconds"):
            scripted_client(server).command("GET", "x", timeout=0.1)


def test_a_refusal_after_a_lost_answer_does_not_say_that_nothing_was_done() -> None:
    """What was sent first may be done yet: callers give up such a step by its id, and not one that was refused."""

    def answer(words: list[str]) -> bytes | None:
        if server.connections > 1:
            return b"-NOPERM No permissions\r\n"
        server.hang_up()
        return None

    with scripted(answer) as server:
        with pytest.raises(BudgetUnavailable, match="forbids this user"):
            scripted_client(server).command("GET", "x")
        with pytest.raises(StoreError, match="forbids this user"):
            scripted_client(server).command("GET", "x")


def test_a_password_that_the_server_repeats_is_not_shown() -> None:
    def answer(words: list[str]) -> bytes:
        return f"-ERR unknown command 'AUTH', with args beginning with: '{words[-1]}' \r\n".encode()

    for package in PACKAGES:
        with scripted(answer) as server:
            client = scripted_client(server, package=package, password="s3cret")
            with pytest.raises(StoreError, match="unknown command 'AUTH'$") as caught:
                client.command("GET", "x")
            told: BaseException | None = caught.value
            while told is not None:
                assert "s3cret" not in str(told)
                told = told.__cause__ or told.__context__


@each_package
def test_a_login_that_ends_while_a_connection_lives_is_renewed_by_a_new_connection(package: str) -> None:
    def answer(words: list[str]) -> bytes:
        if words[0] == "AUTH":
            return b"+OK\r\n"
        return ONE if server.connections > 1 or server.count("GET") < 2 else b"-NOAUTH Authentication required.\r\n"

    with scripted(answer) as server:
        client = scripted_client(server, package=package, password="s3cret")
        assert client.command("GET", "x") == 1
        assert client.command("GET", "x") == 1
        assert server.connections == 2


@each_package
def test_a_database_that_the_server_has_not_is_final(package: str) -> None:
    client = client_of(package=package, db=99)
    with pytest.raises(StoreError, match="DB index is out of range"):
        client.command("PING")


# ---------------------------------------------------------------------- time


def test_a_server_that_never_answers_is_unavailable() -> None:
    with scripted(lambda words: None) as server:
        client = scripted_client(server, timeout=0.3)
        for _ in range(2):
            with pytest.raises(BudgetUnavailable, match=r"within 0\.3 seconds"):
                client.command("GET", "x")
        assert server.count("GET") > 2  # it was asked again over new connections


@each_package
def test_a_server_that_never_ends_its_greeting_is_unavailable(package: str) -> None:
    for stuck in ("AUTH", "CLIENT"):
        server = ScriptedRedis(lambda words, stuck=stuck: None if words[0] == stuck else b"+OK\r\n")  # type: ignore[misc]
        settings: dict[str, Any] = {"socket_timeout": None, "password": "s3cret", "client_name": "worker"}
        with pytest.raises(BudgetUnavailable, match=r"within 0\.3 seconds"):
            scripted_client(server, timeout=0.3, package=package, **settings).command("GET", "x")
        server.close()


@pytest.mark.parametrize("answer", [b"$1000000\r\n", b"*1000000\r\n", b"+"])
def test_a_server_that_never_comes_to_an_end_is_unavailable(answer: bytes) -> None:
    """Each piece comes sooner than any time-out of one read."""
    ended = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield answer
        while not ended.is_set():
            yield b":1\r\n" if answer.startswith(b"*") else b"x"

    def slowly() -> None:
        ended.wait(0.01)

    with scripted(lambda words: pieces(), between=slowly) as server:  # type: ignore[arg-type, return-value]
        with pytest.raises(BudgetUnavailable, match=r"within 0\.3 seconds"):
            scripted_client(server, timeout=0.3).command("GET", "x")
        ended.set()


@each_package
def test_the_clients_own_time_outs_and_retries_play_no_part(package: str) -> None:
    retrying = importlib.import_module(f"{package}.retry").Retry(
        importlib.import_module(f"{package}.backoff").NoBackoff(), 1000
    )
    with scripted(lambda words: None) as server:
        client = scripted_client(server, timeout=0.3, package=package, socket_timeout=None, retry=retrying)
        with pytest.raises(BudgetUnavailable):
            client.command("GET", "x")
    # And a time-out that is shorter than the server needs cuts nothing short.
    client = client_of(package=package, socket_timeout=0.000_001, socket_connect_timeout=0.000_001)
    assert count(client, "1") == 1


def test_a_time_out_of_any_length_will_do() -> None:
    for timeout in (1e9, 9e9, float("inf"), threading.TIMEOUT_MAX):
        client = client_of(timeout=timeout)
        assert count(client, "1") == 1
        assert client.command("BLPOP", f"{client._key}:list", "0.01") is None
    with Server() as server:
        client = client_of(server, timeout=0)
        server.kill()
        with pytest.raises(BudgetUnavailable):
            count(client, "1")


def test_nobody_listens_there() -> None:
    with Server() as server:
        client = client_of(server, timeout=0.2)
        server.kill()
        with pytest.raises(BudgetUnavailable, match=f"redis://{HOST}:{server.port}/0 has not answered.*refused"):
            client.command("PING")


def test_what_answers_speaks_another_protocol() -> None:
    another = "does not speak the protocol of Redis"
    with scripted(lambda words: b"HTTP/1.1 400 Bad Request\r\n\r\n") as server:
        with pytest.raises(BudgetUnavailable, match=another):
            scripted_client(server, timeout=0.2).command("GET", "x")
        assert server.count("GET") > 1


# ---------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 with its key, which nobody has signed but itself."""
    x509 = pytest.importorskip("cryptography.x509")
    module = importlib.import_module
    hashes = module("cryptography.hazmat.primitives.hashes")
    forms = module("cryptography.hazmat.primitives.serialization")
    key = module("cryptography.hazmat.primitives.asymmetric.ec").generate_private_key(
        module("cryptography.hazmat.primitives.asymmetric.ec").SECP256R1()
    )
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = dt.datetime.now(dt.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path: Path = tmp_path_factory.mktemp("tls") / "server.pem"
    secret = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    path.write_bytes(secret + made.public_bytes(forms.Encoding.PEM))
    return path


@each_package
def test_tls_is_the_clients(package: str, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    big = b"$1000000\r\n" + b"x" * 1_000_000 + b"\r\n"
    with scripted(lambda words: big if words[0] == "GET" else ONE, context=context) as server:
        trusting = scripted_client(server, package=package, ssl=True, ssl_ca_certs=str(certificate))
        assert trusting.location == f"rediss://{HOST}:{server.port}/0"
        assert trusting.run(trusting.script(COUNT), ("tb:{x}",)) == 1
        assert trusting.command("GET", "x") == "x" * 1_000_000
        strict = scripted_client(server, package=package, ssl=True)
        with pytest.raises(
            StoreError, match="a certificate that the client does not trust: .*certificate verify failed"
        ):
            strict.command("GET", "x")


@each_package
def test_a_handshake_of_tls_that_never_ends_is_unavailable(package: str) -> None:
    with socket.create_server((HOST, 0)) as listening:
        kind = importlib.import_module(package)
        theirs = (kind.Redis if package == "redis" else kind.Valkey)(
            host=HOST, port=listening.getsockname()[1], ssl=True
        )
        with pytest.raises(BudgetUnavailable, match=r"within 0\.3 seconds"):
            Client(theirs, key="tb:{x}", timeout=0.3).command("GET", "x")


# ---------------------------------------------------------------------- real servers that refuse


def test_keys_of_others_are_a_store_error_and_stay() -> None:
    client = client_of()
    client.command("SET", client._key, "theirs")
    with pytest.raises(StoreError, match="other data in keys"):
        count(client, "1")
    assert client.command("GET", client._key) == "theirs"


def test_a_server_without_memory_is_unavailable_and_has_counted_nothing() -> None:
    with Server() as server:
        client = client_of(server)
        assert count(client, "1") == 1
        server.client().config_set("maxmemory", "100kb")
        with pytest.raises(BudgetUnavailable, match="no memory left"):
            count(client, "2")
        assert counted(client) == 1


def test_a_server_that_cannot_save_is_unavailable_and_has_counted_nothing() -> None:
    with Server() as server:
        client = client_of(server)
        assert count(client, "1") == 1
        admin = server.client()
        admin.config_set("save", "3600 1")
        shutil.rmtree(server.folder)
        admin.execute_command("BGSAVE")
        wait_until(lambda: server.info("persistence")["rdb_last_bgsave_status"] == "err")
        with pytest.raises(BudgetUnavailable, match="cannot save to its disk"):
            count(client, "2")
        assert counted(client) == 1
        server.folder.mkdir()


def test_a_user_without_the_rights_is_told_which_they_are() -> None:
    with Server("--user", "ann", "on", ">p4ss", "~other:*", "&*", "+@all") as server:
        client = client_of(server, username="ann", password="p4ss")
        with pytest.raises(StoreError, match="forbids this user what a budget needs") as caught:
            count(client, "1")
        assert f"{client._key}*" in str(caught.value)
        assert "p4ss" not in str(caught.value)


def test_who_is_busy_with_a_script_of_others_is_waited_for() -> None:
    with Server("--lua-time-limit", "1") as server:
        client = client_of(server)
        count(client, "1")
        others = threading.Thread(target=_endless, args=(server.client(socket_timeout=60),))
        others.start()
        wait_until(lambda: server.ask("PING").startswith(b"-BUSY"))
        waiting = threading.Thread(target=count, args=(client, "2"))
        waiting.start()
        with pytest.raises(BudgetUnavailable, match="busy"):
            count(client, "3", timeout=0.2)
        server.ask("SCRIPT", "KILL")
        others.join()
        waiting.join()
        assert counted(client) == 2


def _endless(client: Any) -> None:
    with pytest.raises(Exception, match="killed"):
        client.eval("while true do end", 0)


# ---------------------------------------------------------------------- real servers that go away


def test_connections_that_the_server_closed_while_they_were_idle_are_replaced_unnoticed() -> None:
    client = client_of(client_name=(name := new_name()), timeout=30)
    threads = [threading.Thread(target=count, args=(client, f"{number}")) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    admin = shared().client()
    for entry in admin.client_list():
        if entry["name"] == name:
            admin.client_kill_filter(_id=entry["id"])
    assert count(client, "8") == 9
    assert len(client._idle) == 1


class Counting:
    """Threads that count operations, each under an id of its own, and sum up what they were told."""

    def __init__(self, client: Client, threads: int = 6) -> None:
        self.told = [0] * threads
        self.unanswered: list[list[str]] = [[] for _ in range(threads)]
        self.errors: list[BaseException] = []
        self._client = client
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._count, args=(number,)) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def _count(self, number: int) -> None:
        for step in itertools.count():
            if self._ended.is_set():
                return
            operation = f"{number}-{step}"
            try:
                count(self._client, operation)
            except BudgetUnavailable:
                self.unanswered[number].append(operation)
            except BaseException as error:  # noqa: BLE001 - it is looked at in the end
                self.errors.append(error)
                return
            else:
                self.told[number] += 1

    def wait_for(self, more: int) -> None:
        """Wait until so many more were counted by each thread."""
        goals = [told + more for told in self.told]
        wait_until(lambda: self.errors or all(told >= goal for told, goal in zip(self.told, goals, strict=True)))

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


def test_a_server_paused_for_a_second_counts_each_operation_once() -> None:
    with Server() as server:
        client = client_of(server, timeout=1.2)  # an attempt gets 0.4 s: all are asked again
        counting = Counting(client)
        counting.wait_for(20)
        with server.paused():
            threading.Event().wait(1)
        counting.wait_for(20)
        counting.end()
        assert not counting.errors
        for operation in itertools.chain(*counting.unanswered):  # safe to repeat
            count(client, operation)
        assert counted(client) == sum(counting.told) + sum(map(len, counting.unanswered))


def test_a_server_paused_for_5_seconds_is_unavailable_in_time_and_counts_each_operation_once() -> None:
    with Server() as server:
        client = client_of(server, timeout=1)
        counting = Counting(client)
        counting.wait_for(20)
        with server.paused():
            threading.Event().wait(5)
            wait_until(lambda: all(counting.unanswered))
        counting.wait_for(20)
        counting.end()
        assert not counting.errors
        for operation in itertools.chain(*counting.unanswered):
            count(client, operation)
        assert counted(client) == sum(counting.told) + sum(map(len, counting.unanswered))


def test_a_server_killed_and_started_again_has_all_that_was_told() -> None:
    # With "everysec" it has not always: the server answers before it writes while an earlier fsync is under way.
    with Server(persistence="always") as server:
        client = client_of(server, timeout=30)
        counting = Counting(client)
        for _ in range(3):
            counting.wait_for(20)
            server.kill()
            server.start()
        counting.wait_for(20)
        counting.end()
        assert not counting.errors
        assert not any(counting.unanswered)
        assert counted(client) == sum(counting.told)


def test_a_server_that_came_back_empty_gets_its_scripts_again() -> None:
    with Server() as server:
        client = client_of(server)
        assert count(client, "1", 5) == 5
        server.restart(empty=True)
        assert count(client, "2", 7) == 7


@each_package
def test_connections_killed_in_a_loop_cost_nothing_but_time(package: str) -> None:
    with Server() as server:
        client = client_of(server, package=package, timeout=60)
        counting = Counting(client)
        admin = server.client()
        kills = 0
        for _ in range(60):
            counting.wait_for(2)
            kills += admin.client_kill_filter(_type="normal", skipme=True)
        counting.end()
        assert kills > 100
        assert not counting.errors
        assert not any(counting.unanswered)
        assert counted(client) == sum(counting.told)


# ---------------------------------------------------------------------- a master that becomes a replica


def test_a_replica_is_unavailable_and_says_that_it_is_read_only() -> None:
    with Server() as master, replica_of(master) as replica:
        client = client_of(replica, timeout=0.3)
        with pytest.raises(BudgetUnavailable, match="READONLY"):
            count(client, "1")


def test_a_replica_that_is_promoted_in_time_counts() -> None:
    with Server() as master, replica_of(master) as replica:
        client = client_of(replica)
        waiting = threading.Thread(target=count, args=(client, "1"))
        waiting.start()
        wait_until(lambda: int(replica.info("stats")["total_error_replies"]) > 2)  # it has been refused
        replica.ask("REPLICAOF", "NO", "ONE")
        waiting.join()
        assert counted(client) == 1


def test_a_name_that_leads_to_another_server_is_looked_up_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the endpoints of managed services at a failover. Nothing is lost, and no error reaches a caller."""
    with Server() as old, replica_of(old) as new:
        real, ports = socket.getaddrinfo, [old.port]

        def look_up(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
            ours = host == "budget.example"
            return real(HOST if ours else host, ports[-1] if ours else port, *rest, **more)

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        theirs = importlib.import_module("redis").Redis(host="budget.example", port=1)
        client = Client(theirs, key=new_key(), timeout=60)
        counting = Counting(client)
        counting.wait_for(20)
        # It stops the writes until the replica has all of them, and turns the roles. Connections stay.
        assert old.ask("FAILOVER", "TO", HOST, str(new.port)) == b"+OK\r\n"
        wait_until(lambda: new.info("replication").get("role") == "master")
        ports.append(new.port)
        counting.wait_for(20)
        counting.end()
        assert not counting.errors
        assert counted(client) == sum(counting.told)
        assert client.command("INFO", "server").count(f"tcp_port:{new.port}") == 1
