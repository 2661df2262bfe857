"""open_pool: a pool from text, ``sqlite:budget.db#nightly``, so that a setting says where a budget is kept.

The text of a Redis store may hold a password. No message here shows any part of such a text but its scheme.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, SupportsIndex
from urllib.parse import SplitResult, quote, unquote, urlsplit

from token_budget import BudgetPool, Window
from token_budget._arguments import UNCHANGED, checked_caps, checked_window
from token_budget._money import shown_type, usd_text
from token_budget.contract import Amount, BudgetUnavailable, Pool
from token_budget.stores._errors import StoreLost
from token_budget.stores._governed import checked_create
from token_budget.stores._names import decoded, required_name
from token_budget.stores.redis.pool import RedisBudgetPool
from token_budget.stores.sqlite.pool import SQLiteBudgetPool

Caps = Literal["code", "mine", "stored"]

FORMS = "sqlite:budget.db#nightly, redis://host:6379/0#nightly or memory:#nightly"
INSTALL = "pip install 'token-budget-pool[redis]'"
_CLIENTS = ("redis", "valkey")  # the modules that speak to a server, and the names of their schemes
_SENTINEL_PORT = 26379

_log = logging.getLogger("token_budget")
_in_process: dict[str, BudgetPool] = {}  # by name; a pool that was closed is replaced when its name is asked for
_lock = threading.RLock()  # a signal handler may open a pool, too


class Place(NamedTuple):
    """Where a budget is kept."""

    kind: str  # "sqlite", "redis" or "memory"
    scheme: str  # as written: "rediss", "valkey+cluster"
    target: str  # the path of the file, or the URL of the server with a password in it; "" in memory
    name: str | None


# ---------------------------------------------------------------- reading the text


def place_of(where: Any) -> Place:
    """Read the text of a store; the name may be left out.

    Raises:
        TypeError: it is no text.
        ValueError: it names no store that there is, or not as it should.
    """
    if not isinstance(where, str):
        raise TypeError(f"a store is told by a str such as {FORMS}, not {shown_type(where)}")
    target, mark, fragment = where.strip().rpartition("#")
    if not mark:
        target, fragment = fragment, ""
    scheme, colon, rest = target.partition(":")
    scheme = scheme.lower()
    try:
        name = decoded(fragment) or None
    except UnicodeDecodeError:
        raise ValueError(
            "the name after the # cannot be read: each % in it begins an escape of a byte of UTF-8 (%23 is #, "
            "Z%C3%BCrich is Zürich), and % itself is written %25"
        ) from None
    if colon and scheme == "sqlite":
        return Place("sqlite", scheme, _checked_path(rest), name)
    if colon and scheme == "memory":
        if rest:
            raise ValueError('a budget in memory has only a name: write "memory:#nightly"')
        return Place("memory", scheme, "", name)
    if colon and (scheme == "unix" or _server_of(scheme) is not None):
        if "#" in rest or "@" in fragment:
            raise ValueError(_odd(scheme, "in it or in the name, # is written %23 and @ is written %40"))
        return Place("redis", scheme, target, name)
    raise ValueError(
        f"a store is told by text such as {FORMS}; this one does not begin with sqlite:, redis://, rediss://, "
        "valkey://, valkeys://, unix:// or memory:"
    )


def named(where: str, name: str | None, what: str) -> str:
    """Return the text of a store with a name: its own, or the one that is given; `what` is what messages call that.

    Raises:
        TypeError, ValueError: as `place_of`; and where there are two names, or none.
    """
    own = place_of(where).name
    if own is None and name is None:
        raise ValueError(f"the budget has no name: write it after a #, or set {what}")
    if name is None or own == name:
        return where
    if own is not None:
        raise ValueError(f"the store's text names the budget {own!r} and {what} says {name!r}: leave one of them out")
    return f"{where.strip().removesuffix('#')}#{_escaped(name)}"


def _escaped(name: str) -> str:
    return quote(name, safe="", errors="surrogatepass")


def _checked_path(path: str) -> str:
    if path.startswith("//"):
        raise ValueError(
            "after sqlite: stands the path of a file, without slashes before it: sqlite:budget.db#nightly, or "
            "sqlite:/srv/budget.db#nightly"
        )
    if path == ":memory:":
        raise ValueError('a database in memory has no file that could be shared: write "memory:#nightly"')
    if not path:
        raise ValueError("after sqlite: stands the path of a file: sqlite:budget.db#nightly")
    return path


def _server_of(scheme: str) -> tuple[str, str, str] | None:
    """Return (module, the scheme for one server, how the servers are found) of a scheme that a server has."""
    base, _, how = scheme.partition("+")
    module = base if base in _CLIENTS else base.removesuffix("s")
    return (module, base, how) if module in _CLIENTS and how in {"", "cluster", "sentinel"} else None


def _odd(scheme: str, why: str) -> str:
    return f"the text after {scheme}: is no URL of a server: {why} (it is not shown, since it may hold a password)"


# ---------------------------------------------------------------- opening


def open_pool(
    where: str,
    token_cap: SupportsIndex | None = None,
    usd_cap: Amount | None = None,
    *,
    window: Window | None = None,
    caps: Caps = "code",
    create: bool = True,
    timeout: float = 5,
    on_unavailable: Literal["refuse", "allow"] = "refuse",
    durable: bool = True,
    lease: float = 600,
) -> Pool:
    """Return a pool of the budget that a text tells of, and make the budget if there is none yet.

    The text is one of these; the name stands after the last ``#``, and in it ``%`` begins an escape (``%23`` is #):

    * ``sqlite:budget.db#nightly``, ``sqlite:/srv/budget.db#nightly``: a `SQLiteBudgetPool`
    * ``redis://user:password@host:6379/0#nightly``, ``rediss://`` (TLS), ``valkey://``, ``valkeys://``, ``unix://`` and
      a socket's path: a `RedisBudgetPool`. What stands before the name is the URL that redis-py and valkey-py read.
    * ``redis+cluster://host:7000#nightly``, and ``redis+sentinel://host:26379,host2/service/0#nightly``
    * ``memory:#nightly``: a `BudgetPool` of this process, the same one for every caller until it is closed

    Asking twice for the same store and name gives pools of the same budget. For other ways to reach a server, make the
    client yourself and give it to `RedisBudgetPool`.

    Args:
        where: the text.
        token_cap: as `BudgetPool`; None takes what is stored.
        usd_cap: as `BudgetPool`; None takes what is stored.
        window: as `BudgetPool`; None takes what is stored.
        caps: what holds where the store has other caps, or another window: see `SQLiteBudgetPool`.
        create: whether a budget that does not exist is made.
        timeout: seconds that a call may take before it raises BudgetUnavailable. Not used in memory.
        on_unavailable: as `SQLiteBudgetPool`. Not used in memory.
        durable: as `SQLiteBudgetPool`, the only one that uses it.
        lease: as `RedisBudgetPool`, the only one that uses it.

    Raises:
        TypeError, ValueError: bad text, caps or window. A password is never shown.
        ImportError: the client of the server is not installed.
        BudgetUnavailable, StoreLost, StoreMismatch, StoreError: as the pools of the stores.

    Example:
        >>> pool = open_pool("memory:#nightly", usd_cap=50)
        >>> pool is open_pool("memory:#nightly")
        True
    """
    place = place_of(where)
    if caps not in ("code", "mine", "stored"):
        raise ValueError('caps must be "code", "mine" or "stored"')
    name = required_name(place.name, f"the budget of a store ({place.kind}:...#nightly)")
    if place.kind == "memory":
        return _of_this_process(name, token_cap, usd_cap, window, caps=caps, create=create)
    given: Any = {"token_cap": token_cap, "usd_cap": usd_cap, "window": window}
    given |= {"timeout": timeout, "caps": caps, "create": create, "on_unavailable": on_unavailable}
    if place.kind == "sqlite":
        return SQLiteBudgetPool(place.target, name=name, durable=durable, **given)
    return RedisBudgetPool(client_of(place, timeout), name=name, lease=lease, **given)


def open_of_environment(where: str, arguments: Mapping[str, Any], prefix: str, *, require_cap: bool) -> Pool:
    """Return the pool that `BudgetPool.from_env` makes where the variable of the store is set.

    Without a cap among the arguments the budget must be in the store already, and have a cap, unless ``require_cap`` is
    false.
    """
    given = dict(arguments)
    try:
        where = named(where, given.pop("name"), f"{prefix}NAME")
    except ValueError as error:
        raise ValueError(f"{prefix}STORE: {error}") from None
    if not require_cap or given["token_cap"] is not None or given["usd_cap"] is not None:
        return open_pool(where, **given)
    missing = f"neither {prefix}TOKEN_CAP nor {prefix}USD_CAP is set"
    try:
        pool = open_pool(where, **given, create=False)
    except StoreLost as error:
        raise StoreLost(f"{error}; and {missing}, so that it cannot be made") from None
    stored = pool.snapshot()
    if stored.token_cap is stored.usd_cap_nanos is None:
        pool.close()
        raise ValueError(
            f"{missing}, and the store has no cap for {pool.name!r}, so that it would refuse nothing. Set one of them, "
            "or pass require_cap=False for a pool without caps"
        )
    return pool


# ---------------------------------------------------------------- in memory


def _of_this_process(name: str, token_cap: Any, usd_cap: Any, window: Any, *, caps: Caps, create: bool) -> BudgetPool:
    tokens, nanos = checked_caps(token_cap, usd_cap)
    checked_window(window)
    checked_create(create)
    with _lock:
        pool = _in_process.get(name)
        if pool is None or pool.closed:
            if not create:
                raise StoreLost(f"this process has no budget {name!r} in memory, and create=False makes none")
            pool = _in_process[name] = BudgetPool(token_cap, usd_cap, name=name, window=window)
            return pool
    stored, stored_window = pool.snapshot(), pool._account.window
    changed: dict[str, Any] = {}
    shown = []
    if tokens not in {None, stored.token_cap}:
        changed["token_cap"] = token_cap
        shown.append(f"token_cap {stored.token_cap} is now {tokens}")
    if nanos is not None and nanos != stored.usd_cap_nanos:
        before = None if stored.usd_cap_nanos is None else usd_text(stored.usd_cap_nanos)
        changed["usd_cap"] = usd_cap
        shown.append(f"usd_cap {before} is now {usd_text(nanos)}")
    if window is not None and window != stored_window:
        changed["window"] = window
        shown.append(f"window {stored_window} is now {window}")
    if changed and caps != "stored":
        pool.set_caps(**{"token_cap": UNCHANGED, "usd_cap": UNCHANGED, "window": UNCHANGED, **changed})
        _log.warning("memory:#%s was opened with other values: %s", _escaped(name), ", ".join(shown))
    return pool


# ---------------------------------------------------------------- clients of servers


def client_of(place: Place, timeout: float) -> Any:
    """Return the client of a server. It connects when it is used; that of a cluster asks for its nodes at once.

    Raises:
        ValueError: the text is no URL of a server.
        ImportError: the client is not installed.
        BudgetUnavailable: no node of a cluster answers.
    """
    url = _checked_url(place)
    wanted, base, how = _server_of(place.scheme) or ("redis", "unix", "")
    module = _module(wanted)
    own = module.__name__
    if base != "unix":  # redis-py and valkey-py read the same URLs, each by schemes of its own name
        base = own + base.removeprefix(wanted)
    plain = f"{base}:{place.target.partition(':')[2]}"
    limits = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    try:
        if how == "sentinel":
            return _master(module, url, {**limits, "ssl": base != own})
        client = getattr(module, f"{own.capitalize()}Cluster" if how else own.capitalize())
        return client.from_url(plain, **limits)
    except (TypeError, ValueError):
        raise ValueError(_odd(place.scheme, f"{own}-py does not take it")) from None
    except Exception as error:
        errors = module.exceptions
        known = [getattr(errors, f"{own.capitalize()}{what}", OSError) for what in ("Error", "ClusterException")]
        if not isinstance(error, (OSError, *known)):
            raise
        reason = type(error).__name__
        raise BudgetUnavailable(f"no node of the cluster at {_shown(url)} could be asked ({reason})") from None


def _module(wanted: str) -> Any:
    """Return redis-py or valkey-py, the one that the scheme names if both are installed."""
    for name in sorted(_CLIENTS, key=lambda name: name != wanted):
        if find_spec(name) is not None:
            return import_module(name)
    raise ImportError(f"neither redis-py nor valkey-py is installed: {INSTALL}")


def _checked_url(place: Place) -> SplitResult:
    """Return the parts of a URL, refusing what a client would take for something else than what is meant."""
    scheme = place.scheme
    if not place.target.partition(":")[2].startswith("//"):
        raise ValueError(_odd(scheme, "it begins with two slashes"))
    try:
        url = urlsplit(place.target)
        if not scheme.endswith("+sentinel"):
            _ = url.port
    except ValueError:
        raise ValueError(_odd(scheme, "host or port cannot be read; in a password / is %2F, @ is %40")) from None
    if "@" in url.path + url.query:
        raise ValueError(_odd(scheme, "in a password / is written %2F, ? is %3F, @ is %40"))
    if scheme == "unix":
        if url.path in {"", "/"}:
            raise ValueError(_odd(scheme, "the path of a socket is missing: unix:///run/redis.sock#nightly"))
    elif not scheme.endswith("+sentinel") and url.path not in {"", "/"} and not url.path[1:].isdecimal():
        raise ValueError(_odd(scheme, "after the host stands the database, a number; the budget's name follows a #"))
    return url


def _master(module: Any, url: SplitResult, settings: dict[str, Any]) -> Any:
    """Return the client of the server that the sentinels call the master of a service."""
    service, _, database = url.path.strip("/").partition("/")
    if not service or url.query or (database and not database.isdecimal()):
        raise ValueError
    hosts = [urlsplit(f"//{host}") for host in url.netloc.rpartition("@")[2].split(",")]
    addresses = [(host.hostname or "localhost", host.port or _SENTINEL_PORT) for host in hosts]
    login = {"username": url.username, "password": url.password}
    settings |= {key: unquote(text) for key, text in login.items() if text}
    return module.Sentinel(addresses, db=int(database or 0), **settings).master_for(unquote(service))


def _shown(url: SplitResult) -> str:
    return url.netloc.rpartition("@")[2]
