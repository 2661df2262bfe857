"""Routes: where the master is that has a budget. A fixed address, what Sentinels say, or a node of a cluster."""

from __future__ import annotations

import binascii
import time
from typing import Any, Protocol

from token_budget._money import shown_type
from token_budget.stores.redis._settings import _WANTED, Settings
from token_budget.stores.redis._wire import Refusal, Wire, command

Address = tuple[str, int]
_SLOTS = command("CLUSTER", "SLOTS")
_ROLE = command("ROLE")


class Route(Protocol):
    """Where the master is that has a budget. All methods may be called from any thread."""

    location: str  # a URL without a login
    clustered: bool

    def connect(self, until: float) -> Wire:
        """Connect to the master, as far as it is known, by a moment. Raises whatever goes wrong, of any class."""
        ...

    def redirected(self, refusal: Refusal, until: float) -> Wire:
        """Connect to the node that the server names for one command (ASK)."""
        ...

    def lost(self, refusal: Refusal | None = None) -> None:
        """Take note that the master did not answer, or said that it is none: look for it at the next `connect`."""
        ...


class _OneServer:
    """What has no other nodes."""

    clustered: bool = False

    def redirected(self, refusal: Refusal, until: float) -> Wire:  # noqa: ARG002 - as `Route` has it
        """Raise the refusal."""
        raise refusal

    def lost(self, refusal: Refusal | None = None) -> None:
        """Nothing is kept from one `connect` to the next."""


class FixedRoute(_OneServer):
    """The address of the client."""

    def __init__(self, pool: Any) -> None:
        self._settings = Settings(pool)
        self.location: str = f"{self._settings.scheme}://{self._settings.address}"

    def connect(self, until: float) -> Wire:
        """Connect. A name is looked up each time, so that a failover by DNS is followed."""
        return self._settings.connect(until)


class SentinelRoute(_OneServer):
    """The master of a service, as the first Sentinel says that answers. They are asked at each `connect`."""

    def __init__(self, pool: Any) -> None:
        if not pool.is_master:
            raise ValueError("the client reads from replicas (slave_for): pass what Sentinel.master_for returns")
        manager = pool.sentinel_manager
        self._service: str = pool.service_name
        self._settings = Settings(pool, addressed=True)
        self._sentinels = [Settings(sentinel.connection_pool) for sentinel in manager.sentinels]
        self._others: int = manager.min_other_sentinels
        self._forced: str | None = getattr(manager, "_force_master_ip", None)
        first = min(settings.address for settings in self._sentinels).partition("/")[0]
        settings = self._settings
        self.location: str = f"{settings.scheme}+sentinel://{first}/{self._service}/{settings.database}"

    def connect(self, until: float) -> Wire:
        """Ask the Sentinels, connect to the master, and make sure that it knows that it is one."""
        host, port = self._master(until)
        wire = self._settings.connect(until, host=host, port=port)
        try:
            role = wire.ask(_ROLE, until)
        except Refusal:  # the user may not ask: the first write will tell
            return wire
        if role[0] != "master":
            wire.close()
            raise ConnectionError(f"{host}:{port}, which the Sentinels name, is no master now")
        return wire

    def _master(self, until: float) -> Address:
        errors = []
        for index, sentinel in enumerate(list(self._sentinels)):
            share = (until - time.monotonic()) / (len(self._sentinels) - index)
            try:
                address = self._answer_of(sentinel, time.monotonic() + share)
            except Exception as error:  # noqa: BLE001 - of the package's own classes
                errors.append(f"{sentinel.address.partition('/')[0]}: {error}")
                continue
            if index:  # the one that answers is asked first from now on
                self._sentinels = [sentinel, *(other for other in self._sentinels if other is not sentinel)]
            return address
        raise ConnectionError(f"no Sentinel names a master of {self._service!r} ({'; '.join(errors)})")

    def _answer_of(self, sentinel: Settings, until: float) -> Address:
        wire = sentinel.connect(until)
        try:
            found = wire.ask(command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service), until)
            if found is None:
                raise ConnectionError("it does not know the service")
            if self._others:
                state = wire.ask(command("SENTINEL", "MASTER", self._service), until)
                known = dict(zip(state[::2], state[1::2], strict=True))
                if int(known["num-other-sentinels"]) < self._others:
                    raise ConnectionError(f"it sees fewer than {self._others} other Sentinels")
        finally:
            wire.close()
        return self._forced or found[0], int(found[1])


class ClusterRoute:
    """The node of a cluster that has the slot of a key. All keys of a budget have the same hash tag, so one slot."""

    clustered: bool = True

    def __init__(self, client: Any, key: str) -> None:
        nodes = list(client.get_nodes())
        if not nodes:
            raise ValueError("the client knows no node of its cluster")
        user_hook = getattr(client, "user_on_connect_func", None)

        def hook(connection: Any) -> None:
            connection.on_connect()
            user_hook(connection)  # type: ignore[misc]

        self._settings = Settings(_pool_of(client, nodes[0]), hook=user_hook and hook, addressed=True)
        self._remap = client.nodes_manager.remap_host_port
        self._nodes: list[Address] = sorted((node.host, int(node.port)) for node in nodes)
        self._slot = slot_of(key)
        self._owner: Address | None = None  # None: to be asked for
        host, port = self._nodes[0]
        self.location: str = f"{self._settings.scheme}+cluster://{host}:{port}"

    def connect(self, until: float) -> Wire:
        """Connect to the node that has the slot; ask the nodes which one it is where that is not known."""
        host, port = self._owner or self._asked(until)
        return self._settings.connect(until, host=host, port=port)

    def redirected(self, refusal: Refusal, until: float) -> Wire:
        """Connect to the node to which the slot is on its way."""
        host, port = self._named_by(refusal)
        return self._settings.connect(until, host=host, port=port)

    def lost(self, refusal: Refusal | None = None) -> None:
        """Follow MOVED to the node that it names; after anything else ask the nodes."""
        if refusal is not None and refusal.code == "MOVED":
            self._owner = self._named_by(refusal)
        else:
            self._owner = None

    def _named_by(self, refusal: Refusal) -> Address:
        """Return the address in a MOVED or an ASK: ``slot host:port``. No host means the one that answered."""
        host, _, port = refusal.text.split(" ")[1].rpartition(":")
        owner = self._owner or self._nodes[0]
        return self._remap(host or owner[0], int(port))  # type: ignore[no-any-return]

    def _asked(self, until: float) -> Address:
        errors = []
        nodes = self._nodes
        for index, (host, port) in enumerate(nodes):
            share = (until - time.monotonic()) / (len(nodes) - index)
            try:
                wire = self._settings.connect(time.monotonic() + share, host=host, port=port)
                try:
                    slots = wire.ask(_SLOTS, time.monotonic() + share)
                finally:
                    wire.close()
            except Exception as error:  # noqa: BLE001 - of the package's own classes
                errors.append(f"{host}:{port}: {error}")
                continue
            masters = [(first, last, self._remap(at[0] or host, at[1])) for first, last, at, *_ in slots]
            owners: list[Address] = [address for first, last, address in masters if first <= self._slot <= last]
            if not owners:
                errors.append(f"{host}:{port}: it knows no node that has slot {self._slot}")
                continue
            # The one that answers is asked first the next time; nodes that are not in its list, last.
            known = [address for _, _, address in masters if address != (host, port)]
            self._nodes = list(dict.fromkeys([(host, port), *known, *nodes]))
            self._owner = owners[0]
            return owners[0]
        raise ConnectionError(f"no node of the cluster can be asked ({'; '.join(errors)})")


def _pool_of(client: Any, node: Any) -> Any:
    for package in ("redis", "valkey"):
        get = getattr(client, f"get_{package}_connection", None)
        if get is not None:
            return get(node).connection_pool
    raise TypeError(f"{shown_type(client)} is no cluster's client that is known: {_WANTED}")


def slot_of(key: str) -> int:
    """Return the slot of a key in a cluster: of what stands between its first braces, if there is something."""
    begin = key.find("{") + 1
    end = key.find("}", begin) if begin else -1
    hashed = key[begin:end] if end > begin else key
    return binascii.crc_hqx(hashed.encode(), 0) % 16_384


def route_of(client: Any, key: str) -> Route:
    """Return the route to the master that has a key.

    Raises:
        TypeError: the client is none of redis-py or valkey-py, one for asyncio, or a pipeline.
        ValueError: its settings cannot be copied, or it reads from replicas.
    """
    if any(".asyncio" in kind.__module__ for kind in type(client).__mro__):
        raise TypeError(
            f"{shown_type(client)} is a client for asyncio. Pass the client of the same settings that blocks: the "
            "pool's asynchronous methods (areserve, acommit, ...) use it in a thread, and block no event loop"
        )
    if hasattr(client, "command_stack"):
        raise TypeError("a pipeline is no client: pass the client that made it")
    if hasattr(client, "nodes_manager"):
        return ClusterRoute(client, key)
    pool = getattr(client, "connection_pool", None)
    if hasattr(pool, "sentinel_manager"):
        return SentinelRoute(pool)
    if not hasattr(pool, "connection_kwargs"):
        raise TypeError(f"{shown_type(client)} is no client that is known: {_WANTED}")
    return FixedRoute(pool)
