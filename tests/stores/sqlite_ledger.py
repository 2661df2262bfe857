"""Tools for the tests of the SQLite ledger: scopes by their paths, an audit of the file, and other processes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any
from unittest.mock import patch

from token_budget import Window
from token_budget._arguments import UNCHANGED
from token_budget.stores._names import name_at
from token_budget.stores._store import Answer, Group, Numbers, Opened, Scope
from token_budget.stores.sqlite._connection import Connection
from token_budget.stores.sqlite._store import SQLiteStore

LONG = 30  # seconds: a deadline for what takes milliseconds


class Ledger:
    """An `SQLiteStore`, whose scopes are found by their paths: "total/a", of a key "total/user:ann"."""

    def __init__(self, path: Path | str, **options: Any) -> None:
        self.path = Path(path)
        options.setdefault("name", "total")
        options.setdefault("durable", False)
        self.store = SQLiteStore(str(path), **options)
        self.scopes: dict[str, Scope] = {}
        self.groups: dict[str, Group] = {}

    def scope(self, path: str) -> Scope:
        """Return the one `Scope` of a path."""
        if path not in self.scopes:
            above, _, part = path.rpartition("/")
            group, colon, _ = part.partition(":")
            if colon:
                of = self.group(f"{above}/{group}:")
                self.scopes[path] = Scope(name_at(path), path, of.above, of)
            else:
                self.scopes[path] = Scope(name_at(path), path, self.scope(above) if above else None)
        return self.scopes[path]

    def group(self, path: str) -> Group:
        """Return the one `Group` of a path, "total/user:"."""
        if path not in self.groups:
            above, _, part = path.rpartition("/")
            self.groups[path] = Group(self.scope(above), part[:-1] or None, path)
        return self.groups[path]

    def chain(self, *paths: str) -> tuple[Scope, ...]:
        """Return the chain of a scope; of several, that of their join."""
        scopes: dict[Scope, None] = {}
        for path in paths:
            scope: Scope | None = self.scope(path)
            while scope is not None and scope.above is not None:
                scopes[scope] = None
                scope = scope.above
        return (*scopes, self.scope("total"))

    def open(
        self, path: str, tokens: int | None = None, nanos: int | None = None, window: Window | None = None, **how: Any
    ) -> Opened:
        """Open a scope or a group."""
        place: Scope | Group = self.group(path) if path.endswith(":") else self.scope(path)
        return self.store.open(place, tokens, nanos, window, how.pop("how", "code"), **how)

    def reserve(
        self, path: str, tokens: int = 0, nanos: int = 0, key: int | None = None, **how: Any
    ) -> tuple[int, Answer]:
        """Reserve with a new key, or with this one."""
        key = self.store.new_key() if key is None else key
        return key, self.store.reserve(self.chain(*path.split()), key, tokens, nanos, **how)

    def hold(self, path: str, tokens: int = 0, nanos: int = 0) -> int:
        """Reserve what fits, and return the key."""
        key, answer = self.reserve(path, tokens, nanos)
        assert answer.kind == "granted"
        return key

    def hold_alone(self, path: str, tokens: int) -> int:
        """Reserve in one scope, a root."""
        key = self.store.new_key()
        assert self.store.reserve((self.scope(path),), key, tokens, 0).kind == "granted"
        return key

    def commit(self, path: str, key: int, held: Any, amount: Any, **how: Any) -> Answer:
        """Commit; a single number is tokens."""
        return self.store.commit(self.chain(*path.split()), key, _pair(held), _pair(amount), **how)

    def record(self, path: str, tokens: int = 0, nanos: int = 0, **how: Any) -> Answer:
        """Record."""
        return self.store.record(self.chain(*path.split()), tokens, nanos, **how)

    def hand(self, path: str, key: int, lease: float) -> int:
        """Hand a claim over, and return its new key."""
        new: int = self.store.hand_over(self.chain(*path.split()), key, (0, 0), lease)
        return new

    def set_caps(self, path: str, tokens: Any, nanos: Any) -> None:
        """Set caps."""
        self.store.set_caps(self.scope(path), tokens, nanos, UNCHANGED)

    def forget(self, path: str) -> bool:
        """Forget a key."""
        return self.store.forget(self.scope(path))

    def spend(self, path: str, times: int, seed: int) -> int:
        """Reserve and commit so many times, where there is room, and return the sum."""
        chance, spent = random.Random(seed), 0
        for _ in range(times):
            amount = chance.randrange(1, 30)
            key, answer = self.reserve(path, amount)
            if answer.kind == "granted":
                cost = chance.randrange(2)
                assert self.commit(path, key, amount, cost).kind == "done"
                spent += cost
            else:
                assert answer.rows[answer.at].tokens_claimed + amount > (answer.rows[answer.at].token_cap or 0)
        return spent

    def spend_and_tell(self, path: str, times: int) -> Iterator[int]:
        """Reserve and commit 1 so many times; each is told once it is done."""
        for number in range(times):
            self.commit(path, self.hold(path, 1), 1, 1)
            yield number

    def row(self, path: str = "total") -> Numbers:
        """Return one scope's numbers."""
        return self.store.read((self.scope(path),))[0]

    def used(self, path: str = "total") -> tuple[int, int]:
        """Return what one scope has used."""
        row = self.row(path)
        return row.tokens_claimed - row.tokens_held, row.nanos_claimed - row.nanos_held

    def held(self, path: str = "total") -> tuple[int, int, int]:
        """Return what one scope holds, and how many are in flight."""
        row = self.row(path)
        return row.tokens_held, row.nanos_held, row.in_flight

    def news(self) -> list[str]:
        """Return the kinds and paths of what the store has to tell, and empty it."""
        told = [f"{item.kind} {item.path}" for item in self.store.news]
        self.store.news.clear()
        return told


def _pair(amount: Any) -> tuple[int, int]:
    return (amount, 0) if isinstance(amount, int) else amount


# ---------------------------------------------------------------------- the file


def audit(path: Path | str) -> None:
    """Check what always holds in the file between two transactions, from the tables alone."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute(
            "SELECT name FROM scope WHERE typeof(token_room) != 'integer' OR typeof(nano_room) != 'integer'"
            " OR typeof(token_held) != 'integer' OR typeof(nano_held) != 'integer'"
        ).fetchall() == []  # fmt: skip
        sums: dict[int, list[int]] = {}
        for chain, tokens, nanos in database.execute("SELECT chain, tokens, nanos FROM hold"):
            for part in chain.split(","):
                held = sums.setdefault(int(part), [0, 0, 0])
                held[0] += tokens
                held[1] += nanos
                held[2] += 1
        waiting = dict(database.execute("SELECT scope, count(*) FROM waiter GROUP BY scope"))
        scopes = database.execute("SELECT id, token_held, nano_held, in_flight, waiters FROM scope").fetchall()
        for scope, tokens, nanos, flying, waiters in scopes:
            assert [tokens, nanos, flying] == sums.pop(scope, [0, 0, 0])
            assert waiters == waiting.pop(scope, 0)
        assert not sums
        assert not waiting


def tables(path: Path | str) -> dict[str, list[tuple[Any, ...]]]:
    """Return all that the file has, but for what differs from run to run."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(database.execute(f"SELECT * FROM {name}").fetchall(), key=repr) for name in names}


def statement(path: Path | str, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Do one statement as a stranger."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        return database.execute(sql, parameters).fetchall()


# ---------------------------------------------------------------------- processes that are played


class Pretended:
    """Who lives, among processes that are played by this one."""

    def __init__(self, living: set[int]) -> None:
        self.living = living

    def take(self, owner: int) -> bool:
        """Let an owner live."""
        self.living.add(owner)
        return True

    def lives(self, owner: int) -> bool:
        """Return whether an owner lives."""
        return owner in self.living

    def give(self, owner: int) -> None:
        """Let an owner be dead."""
        self.living.discard(owner)


class Played(Ledger):
    """A ledger with a connection of its own, as another process has it. Who lives is what ``living`` says.

    The connections are closed together, when all are done: POSIX drops a process's locks when it closes a file.
    """

    def __init__(self, path: Path, living: set[int], **options: Any) -> None:
        connection = Connection(os.path.realpath(path))
        connection.users = 1
        connection._open(time.monotonic() + LONG, create=True)
        self.connection = connection
        played: Any = Pretended(living)
        connection._file.alive = played
        living.add(connection.owner)
        with patch.object(Connection, "of", staticmethod(lambda *_, **__: connection)):
            super().__init__(path, **options)

    def die(self) -> None:
        """End as by kill -9."""
        self.connection.alive.give(self.connection.owner)

    def close(self) -> None:
        """Close the files."""
        self.connection.shut(LONG)


# ---------------------------------------------------------------------- other processes


class Other:
    """Another process with its own `Ledger` of the same file. Its methods are called by name, one at a time."""

    def __init__(self, path: Path, **options: Any) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, str(path), options), daemon=True)
        self.process.start()
        theirs.close()
        assert self._answer() == "ready"

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process.pid is not None
        return self.process.pid

    def __call__(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of its ledger, and return what that returns or raise what it raises."""
        self.send(method, *arguments, **options)
        return self._answer()

    def send(self, method: str, *arguments: Any, **options: Any) -> None:
        """Have it call a method, and do not wait."""
        self.pipe.send((method, arguments, options))

    def _answer(self) -> Any:
        assert self.pipe.poll(LONG), "the other process does not answer"
        answer = self.pipe.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def kill(self) -> None:
        """End it as kill -9 does."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.join(LONG)

    def end(self) -> None:
        """End it, if it still runs."""
        if self.process.is_alive():
            self.kill()
        self.pipe.close()


@contextlib.contextmanager
def others(path: Path, count: int = 1, **options: Any) -> Iterator[list[Other]]:
    """Have other processes for a while."""
    made: list[Other] = []
    try:
        made += [Other(path, **options) for _ in range(count)]
        yield made
    finally:
        for other in made:
            other.end()


def _serve(pipe: Pipe, path: str, options: dict[str, Any]) -> None:
    ledger = Ledger(path, **options)
    pipe.send("ready")
    while True:
        try:
            method, arguments, named = pipe.recv()
            arguments = [UNCHANGED if one == "..." else one for one in arguments]
        except EOFError:
            return
        target: Any = ledger
        for part in method.split("."):
            target = getattr(target, part)
        try:
            answer = target(*arguments, **named)
            if method == "spend_and_tell":
                for one in answer:
                    pipe.send(one)
        except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
            answer = error
        pipe.send(answer)


def until(condition: Callable[[], bool]) -> None:
    """Block until something holds that comes in a moment."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.001)


def places_of(path: Path) -> list[Sequence[Any]]:
    """Return the scopes of each claim that was charged in full."""
    return [json.loads(places) for (places,) in statement(path, "SELECT places FROM expired ORDER BY number")]
