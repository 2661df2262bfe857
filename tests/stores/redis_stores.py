"""Engines of the Redis store for the tests: processes that share a budget on a real server, and what may go wrong."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis_server import Server, new_name, one_node_cluster, shared
from token_budget import Window
from token_budget.contract import BudgetUnavailable
from token_budget.stores._names import path_of
from token_budget.stores._store import Group, Scope
from token_budget.stores.redis._client import Client
from token_budget.stores.redis._keys import Keys, root_key
from token_budget.stores.redis._store import RedisStore

LONG = 30.0
CLUSTERED = os.environ.get("REDIS_STORE") == "cluster"  # the same tests over a cluster of one node


@functools.cache
def the_server() -> Server:
    """Return the server of these tests."""
    return one_node_cluster() if CLUSTERED else shared()


class Wire:
    """A client between an engine and the server that can lose what is sent, or what is answered."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.before: Callable[[str], None] = lambda name: None  # called before a script is sent
        self.after: Callable[[str], None] = lambda name: None  # called once it was run; it may raise
        self.sent: list[tuple[str, Callable[[], Any]]] = []  # all scripts, and how to send each once more
        self.names: dict[Any, str] = {}
        self.volatile = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def script(self, source: str) -> Any:
        script = self.client.script(source)
        self.names[script] = source.split(":", 1)[0].removeprefix("-- ")
        return script

    def run(self, script: Any, keys: Sequence[str], args: Sequence[Any] = (), *, timeout: float | None = None) -> Any:
        name = self.names[script]
        self.sent.append((name, lambda: self.client.run(script, keys, args)))
        self.before(name)
        answer = self.client.run(script, keys, args, timeout=timeout)
        self.after(name)
        return answer

    def lose(self, name: str, *, done: bool) -> None:
        """Let the next script of a name meet a server that does not answer: after it has done it, or before."""

        def fail(other: str) -> None:
            if other == name:
                self.heal()
                raise BudgetUnavailable("the tests lose it")

        if done:
            self.after = fail
        else:
            self.before = fail

    def heal(self) -> None:
        self.before = self.after = lambda name: None

    def again(self, name: str) -> Any:
        """Send the last script of a name once more, as a copy that was late on the wire."""
        return next(send for other, send in reversed(self.sent) if other == name)()


class Budget:
    """One budget on a server, and the processes that use it."""

    def __init__(self, server: Server | None = None, name: str | None = None, **caps: Any) -> None:
        self.server = server or the_server()
        self.name = name or new_name()
        self.raw: Any = self.server.client(decode_responses=True)
        self.keys = Keys(self.name)
        self.made: list[Process] = []
        self.caps = caps

    def client(self) -> Any:
        return self.server.cluster_client() if CLUSTERED else self.server.client()

    def process(self, *, lease: float = 600, opened: bool = True, timeout: float = LONG) -> Process:
        """Return an engine of its own, as another process has it; its root is open."""
        process = Process(self, lease, timeout)
        self.made.append(process)
        if opened:
            process.open(**self.caps)
        return process

    def row(self, path: str) -> dict[str, str]:
        found: dict[str, str] = self.raw.hgetall(self.keys.scope(path))
        return found

    def kill(self, process: Process) -> None:
        """Let the lease of a process be over."""
        assert self.raw.zadd(self.keys.leases, {process.engine._process.owner: 1}, xx=True, ch=True) == 1

    def own(self, process: Process) -> dict[str, str]:
        """Return what the store has of a process, but for who it is."""
        found: dict[str, str] = self.raw.hgetall(self.keys.owner(process.engine._process.owner))
        return {number: entry for number, entry in found.items() if number.isdecimal()}

    def close(self) -> None:
        for process in self.made:
            process.engine._watcher.close()
            process.wire.client.close()
        self.raw.close()


class Process:
    """One process's engine."""

    def __init__(self, budget: Budget, lease: float, timeout: float) -> None:
        self.budget = budget
        self.wire = Wire(Client(budget.client(), key=root_key(budget.name), timeout=timeout))
        self.engine = RedisStore(self.wire, name=budget.name, lease=lease)
        self.root = Scope(budget.name, path_of(None, budget.name))

    def open(
        self,
        scope: Any = None,
        tokens: int | None = None,
        nanos: int | None = None,
        window: Window | None = None,
        how: str = "code",
        *,
        create: bool = True,
    ) -> Any:
        return self.engine.open(self.root if scope is None else scope, tokens, nanos, window, how, create=create)

    def child(self, name: str, above: Scope | None = None, **terms: Any) -> tuple[Scope, ...]:
        """Open a scope below the root or another; return its chain."""
        parent = above or self.root
        scope = Scope(name, path_of(parent.path, name), parent)
        self.open(scope, **terms)
        return self.chain(scope)

    def group(self, name: str = "user", above: Scope | None = None, **terms: Any) -> Group:
        parent = above or self.root
        group = Group(parent, name, path_of(parent.path, name, ""))
        self.open(group, **terms)
        return group

    def key(self, group: Group, key: str) -> tuple[Scope, ...]:
        """Return the chain of a key."""
        path = path_of(group.above.path, group.name or "", key)
        return self.chain(Scope(f"{group.name}:{key}", path, group.above, group))

    @staticmethod
    def chain(scope: Scope) -> tuple[Scope, ...]:
        chain = [scope]
        while chain[-1].above is not None:
            chain.append(chain[-1].above)
        return tuple(chain)

    def numbers(self, scope: Scope | None = None) -> Any:
        return self.engine.read((scope or self.root,))[0]

    def used(self, scope: Scope | None = None) -> tuple[int, int]:
        """Return the tokens used and held."""
        row = self.numbers(scope)
        return row.tokens_claimed - row.tokens_held, row.tokens_held


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)
