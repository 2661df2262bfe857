"""A private copy of the settings that a user's client connects with.

The copy has its own connections and its own time-outs, so that a call's deadline holds whatever time-outs and retries
the client was made with, and the client's pool of connections is never exhausted or blocked by the budget. Everything
else is the client's own: the address, TLS, the login or the provider of credentials, the database, the client's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from token_budget._money import shown_type
from token_budget.stores.redis._wire import Wire, within_deadline

_WANTED = (
    "pass a client of redis-py or valkey-py: redis.Redis(...), valkey.Valkey(...), RedisCluster, ValkeyCluster, or "
    "what Sentinel(...).master_for(...) returns"
)
# Time-outs, retries, the protocol and the health check are ours. The rest of these belongs to the pool: a cache in the
# client, notices of maintenance (they lengthen time-outs), the Sentinel's part of a pool.
_NOT_COPIED = frozenset(
    {
        "socket_timeout",
        "socket_connect_timeout",
        "retry",
        "retry_on_timeout",
        "retry_on_error",
        "protocol",
        "health_check_interval",
        "decode_responses",
        "parser_class",
        "connection_pool",
        "cache",
        "cache_config",
        "event_dispatcher",
        "himport_registry",
        "maint_notifications_config",
        "maint_notifications_pool_handler",
        "maintenance_state",
        "maintenance_notification_hash",
        "orig_host_address",
        "orig_socket_timeout",
        "orig_socket_connect_timeout",
        "oss_cluster_maint_notifications_handler",
    }
)
_HOOKS = ("redis_connect_func", "valkey_connect_func")


def _of_a_package(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in {"redis", "valkey"}


class Settings:
    """What a connection of a client is made with."""

    __slots__ = ("_class", "_given")

    def __init__(self, pool: Any, *, hook: Callable[[Any], object] | None = None, addressed: bool = False) -> None:
        """Copy the settings of a pool of connections of redis-py or valkey-py.

        Args:
            pool: the pool.
            hook: what is called with a new connection in place of the pool's own hook, where ``addressed``.
            addressed: `connect` is given the address.

        Raises:
            ValueError: the pool or the class of its connections does things of its own, which a copy would not do.
        """
        for method in ("get_connection", "make_connection"):
            owner = next((kind for kind in type(pool).__mro__ if method in vars(kind)), None)
            if owner is None or not _of_a_package(owner):
                raise ValueError(
                    f"the client's pool of connections is {shown_type(pool)}, which makes them in its own way. The "
                    "budget needs connections of its own, whose time-outs it sets: pass a client with a ConnectionPool "
                    "of its package (a connection_class of one's own is fine)"
                )
        kind = pool.connection_class
        if addressed and kind.__name__.startswith("SentinelManaged"):  # it asks the Sentinels itself, and without limit
            kind = next(base for base in kind.__mro__ if not base.__name__.startswith("SentinelManaged"))
        given = {name: value for name, value in pool.connection_kwargs.items() if name not in _NOT_COPIED}
        if addressed:
            for name in ("host", "port", "path", *_HOOKS):
                given.pop(name, None)
            if hook is not None:
                given["redis_connect_func" if "redis" in kind.__module__ else "valkey_connect_func"] = hook
        self._class = within_deadline(kind)
        self._given = {**given, "protocol": 2}
        try:
            self._class(**self._given)  # it does not connect
        except Exception as error:
            raise ValueError(f"the client's settings cannot be used for a connection: {error}") from error

    @property
    def address(self) -> str:
        """Where it connects to, as the authority and path of a URL, without the login."""
        given = self._given
        if "path" in given:
            return f"{given['path']}?db={self.database}"
        return f"{given.get('host', 'localhost')}:{given.get('port', 6379)}/{self.database}"

    @property
    def database(self) -> int:
        """The number of the database."""
        return int(self._given.get("db") or 0)

    @property
    def scheme(self) -> str:
        """The scheme of the URL: redis, rediss with TLS, unix."""
        if "path" in self._given:
            return "unix"
        encrypted = any(base.__name__ == "SSLConnection" for base in self._class.__mro__)
        return "rediss" if encrypted else "redis"

    def connect(self, until: float, **address: Any) -> Wire:
        """Return a new connection, made and logged in by a moment.

        Raises:
            Exception: whatever the client's package, the operating system or a provider of credentials raises.
        """
        return Wire(self._class(**self._given, **address), until)
