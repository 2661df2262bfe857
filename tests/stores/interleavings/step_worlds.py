"""The two engines, as several processes have them that are played by one; each step stops at the gate of its actor."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from interleavings.step_orders import acting
from redis_server import Server
from sqlite_ledger import Played
from token_budget.stores._names import path_of
from token_budget.stores._store import Group, Scope
from token_budget.stores.redis._client import Client
from token_budget.stores.redis._keys import Keys
from token_budget.stores.redis._store import RedisStore
from token_budget.stores.sqlite._connection import Connection
from token_budget.stores.sqlite._store import SQLiteStore

Edit = Callable[[str], str]


class Process:
    """One process: an engine, and its scopes by their short names ("" the root, "a" a child, "u:ann" a key)."""

    def __init__(self, world: World, budget: str, store: Any, slot: Any) -> None:
        self.world = world
        self.store = store
        self.slot = slot
        self.root = Scope(budget, budget)
        self.scopes: dict[str, Scope] = {"": self.root}
        self.groups: dict[str, Group] = {}
        self.keys: dict[str, Any] = {}

    def scope(self, name: str) -> Scope:
        if name not in self.scopes:
            group, colon, key = name.partition(":")
            if colon:
                of = self.group(group)
                self.scopes[name] = Scope(name, path_of(self.root.path, group, key), self.root, of)
            else:
                self.scopes[name] = Scope(name, path_of(self.root.path, name), self.root)
        return self.scopes[name]

    def group(self, name: str) -> Group:
        if name not in self.groups:
            self.groups[name] = Group(self.root, name, path_of(self.root.path, name, ""))
        return self.groups[name]

    def chain(self, names: Sequence[str]) -> tuple[Scope, ...]:
        return tuple(map(self.scope, names))

    def die(self) -> None:
        """Be dead, for all others: as the kernel or the lease tells them."""
        self.world.declare_dead(self)


class World:
    """An engine's kind."""

    kind = ""
    faults: tuple[str, ...] = ()

    def process(self, budget: str, number: int) -> Process:
        raise NotImplementedError

    def declare_dead(self, process: Process) -> None:
        raise NotImplementedError

    def audit(self, process: Process, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return what is stored of scopes (used, held, in flight, waiting), after a check that it is consistent."""
        raise NotImplementedError

    def clear(self) -> None:
        """Begin with an empty store."""

    def close(self) -> None:
        """End all connections."""


def _gate(perform: Callable[[], Any], faults: Sequence[str], lose: Callable[[], Any] | None = None) -> Any:
    actor = acting()
    return perform() if actor is None else actor.gate(perform, faults, lose)


# ---------------------------------------------------------------------- Redis


class Line:
    """The client of one process, each of whose scripts and commands is a step."""

    volatile = False
    timeout = 30.0

    def __init__(self, client: Client, scripts: dict[str, Any], edit: Edit) -> None:
        self._client = client
        self._scripts = scripts
        self._edit = edit
        self.location = client.location
        self.publish = client.publish

    def script(self, source: str) -> Any:
        known = self._scripts.get(source)
        if known is None:
            known = self._scripts[source] = self._client.script(self._edit(source))
        return known

    def run(self, script: Any, keys: Sequence[str], args: Sequence[Any] = (), *, timeout: float | None = None) -> Any:
        keys, args = tuple(keys), tuple(args)
        return _gate(lambda: self._client.run(script, keys, args, timeout=30), RedisWorld.faults)

    def command(self, *words: str | int, timeout: float | None = None) -> Any:
        return _gate(lambda: self._client.command(*words, timeout=30), ())

    def check(self) -> None:
        """Nothing: the server is the tests' own."""

    def forked(self) -> None:
        raise AssertionError

    def close(self) -> None:
        """Nothing: other runs go on with the connection."""


# Compares what scopes have with the sum of what owners hold there, and returns what each has.
_AUDIT = """
local scopes, sums = tonumber(ARGV[1]), {}
for i = scopes * 2 + 1, #KEYS do
  local all = redis.call('HGETALL', KEYS[i])
  for f = 1, #all, 2 do
    local tokens, nanos, paths = string.match(all[f + 1], '^(%d+) (%d+) (.*)$')
    if tokens and string.match(all[f], '^%d+$') then
      for path in string.gmatch(paths, '[^|]+') do
        local sum = sums[path] or {0, 0}
        sums[path] = {sum[1] + tokens, sum[2] + 1}
      end
    end
  end
end
local answer = {}
for i = 1, scopes do
  local s = redis.call('HMGET', KEYS[i], 'T', 't', 'p', 'f', 'w')
  if s[2] then
    local sum, cap = sums[ARGV[1 + i]] or {0, 0}, s[1] or '8000000000000000000'
    local held = cap - s[2] - s[3]
    if s[1] and held ~= sum[1] then return 'held ' .. held .. ' of ' .. sum[1] .. ' at ' .. ARGV[1 + i] end
    if tonumber(s[4]) ~= sum[2] then return 'in flight ' .. s[4] .. ' of ' .. sum[2] .. ' at ' .. ARGV[1 + i] end
    local waiting = redis.call('ZCARD', KEYS[scopes + i])
    if tonumber(s[5]) ~= waiting then return 'waiting ' .. s[5] .. ' of ' .. waiting .. ' at ' .. ARGV[1 + i] end
    answer[i] = {s[3], sum[1], sum[2], waiting}
  else
    answer[i] = {0, 0, 0, 0}
  end
end
return answer
"""


class RedisWorld(World):
    """Processes on one server. ``edit`` changes the text of scripts: a planted fault."""

    kind = "redis"
    faults = ("dies before", "dies after", "is lost", "is late", "is sent again")

    def __init__(self, server: Server, edit: Edit = str) -> None:
        self._server = server
        self._edit = edit
        self._clients: dict[int, Client] = {}
        self._scripts: dict[str, Any] = {}
        self._owners: dict[str, list[str]] = {}
        self._lines: dict[str, list[RedisStore]] = {}

    def process(self, budget: str, number: int) -> Process:
        client = self._clients.get(number)
        if client is None:
            client = self._clients[number] = Client(self._server.client(), key="tb:{all}", timeout=30)
        store = RedisStore(Line(client, self._scripts, self._edit), name=budget)
        self._lines.setdefault(budget, []).append(store)
        return Process(self, budget, store, client)

    def declare_dead(self, process: Process) -> None:
        keys, owner = Keys(process.root.name), process.store._process.owner
        process.slot.command("ZADD", keys.leases, "XX", 1, owner)

    def audit(self, process: Process, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
        keys, client = Keys(process.root.name), process.slot
        paths = [process.scope(name).path for name in names]
        parts = [keys.parts(path) for path in paths]
        owners = client.command("ZRANGE", keys.leases, 0, -1)
        found = client.run(
            self._scripts.setdefault("audit", client.script(_AUDIT)),
            [*[one[0] for one in parts], *[one[1] for one in parts], *map(keys.owner, owners)],
            [len(names), *paths],
        )
        assert not isinstance(found, str), found
        return {name: tuple(map(int, row)) for name, row in zip(names, found, strict=True)}

    def clear(self) -> None:
        self._lines.clear()
        if self._clients:
            next(iter(self._clients.values())).command("FLUSHALL")

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


# ---------------------------------------------------------------------- SQLite

_TABLES = ("scope", "keyed", "owner", "ended", "gave", "hold", "lease", "expired", "settled", "waiter")


class _Unsynced:
    """A budget's file on a disk that fails when it is to be synced."""

    def __init__(self, file: Any) -> None:
        self._whole = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def sync(self) -> None:
        raise OSError(errno.EIO, "the disk fails")


class SQLiteWorld(World):
    """Processes on one file, each with a connection of its own."""

    kind = "sqlite"
    faults = ("dies before", "dies after", "is lost", "fails")

    def __init__(self, folder: Path) -> None:
        self._path = folder / "budget.db"
        self._living: set[int] = set()
        self._slots: dict[int, Played] = {}

    def _slot(self, number: int) -> Played:
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = Played(self._path, self._living)
            connection: Any = slot.connection
            whole = connection.run

            def run(timeout: float, durable: Any, work: Callable[..., Any], *arguments: Any) -> Any:
                def lose() -> Any:
                    with patch.object(connection, "_file", _Unsynced(connection._file)):
                        return whole(timeout, True, work, *arguments)

                faults = () if durable is None else self.faults
                return _gate(lambda: whole(timeout, durable, work, *arguments), faults, lose)

            connection.run = run
        return slot

    def process(self, budget: str, number: int) -> Process:
        connection = self._slot(number).connection
        with patch.object(Connection, "of", staticmethod(lambda *_, **__: connection)):
            store = SQLiteStore(str(self._path), name=budget, durable=False, timeout=30)
        connection.new_owner()
        return Process(self, budget, store, connection)

    def declare_dead(self, process: Process) -> None:
        self._living.discard(process.slot.owner)

    def audit(self, process: Process, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
        rows: dict[str, tuple[Any, ...]]
        rows, holds, waiting = process.slot.look(30, _tables)
        sums: dict[int, list[int]] = {}
        for chain, tokens in holds:
            for part in chain.split(","):
                held = sums.setdefault(int(part), [0, 0])
                held[0] += tokens
                held[1] += 1
        found: dict[str, tuple[int, ...]] = {}
        for name in names:
            part = process.root.name if not name else name.rpartition(":")[2]
            row = rows.get(part)
            if row is None:
                found[name] = (0, 0, 0, 0)
                continue
            number, cap, room, held_here, flying, waiters = row
            total = sums.get(number, [0, 0])
            assert [held_here, flying] == total, f"held {held_here} in {flying} of {total} at {name!r}"
            assert waiters == waiting.get(number, 0), f"waiting {waiters} at {name!r}"
            found[name] = ((1 << 62 if cap is None else cap) - room - held_here, held_here, flying, waiters)
        return found

    def clear(self) -> None:
        if self._slots:
            next(iter(self._slots.values())).connection.run(30, False, _empty)
        self._living.clear()

    def close(self) -> None:
        for slot in self._slots.values():
            slot.close()


def _tables(execute: Callable[..., Any]) -> Any:
    scopes = execute("SELECT name, id, token_cap, token_room, token_held, in_flight, waiters FROM scope").fetchall()
    holds = execute("SELECT chain, tokens FROM hold").fetchall()
    waiting = dict(execute("SELECT scope, count(*) FROM waiter GROUP BY scope").fetchall())
    return {name: rest for name, *rest in scopes}, holds, waiting


def _empty(execute: Callable[..., Any]) -> None:
    for table in _TABLES:
        execute(f"DELETE FROM {table}")
