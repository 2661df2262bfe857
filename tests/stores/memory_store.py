"""An engine in memory: what `Store` says, as plainly as possible, in dicts behind one lock.

It is the engine of the front's own tests, and a model for those of the real ones. A `MemoryBudget` is what a file or a
server keeps. Each `MemoryStore` on it stands for one process, which may die (`die`), and a `MemoryPool` opens one. A
hook of a store is called before and after each step, and may raise: an answer that gets lost, a server that cannot be
reached, Ctrl-C.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from token_budget import PoolClosed, Window
from token_budget._arguments import UNCHANGED
from token_budget.stores._errors import StoreError, StoreLost, StoreMismatch
from token_budget.stores._family import StoreFamily
from token_budget.stores._names import name_at
from token_budget.stores._pool import StorePool, checked_opening
from token_budget.stores._store import (
    DONE,
    GRANTED,
    LATE,
    LEFT,
    REFUSED,
    REPEAT,
    SETTLED,
    UNKNOWN,
    Answer,
    Charged,
    Group,
    News,
    Numbers,
    Opened,
    Scope,
)

MOST = 8 * 10**18
NAMES = ("token_cap", "nano_cap", "window")


@dataclass
class Row:
    """One scope."""

    path: str
    token_cap: int | None
    nano_cap: int | None
    window: Window | None
    made: int
    used: list[int] = field(default_factory=lambda: [0, 0])
    held: list[int] = field(default_factory=lambda: [0, 0])
    in_flight: int = 0
    start: float | None = None
    end: float | None = None
    era: int = 0
    closed: bool = False
    told: tuple[int, ...] = ()
    own: set[str] = field(default_factory=set)  # what was set on a key itself
    group: str | None = None

    def __post_init__(self) -> None:
        self.enter_period()

    def enter_period(self) -> None:
        self.start, self.end = (None, None) if self.window is None else self.window.period(self.window.now())

    def over(self) -> bool:
        """Whether its period has ended."""
        return self.window is not None and self.end is not None and self.window.now() >= self.end

    def caps(self) -> tuple[int | None, int | None]:
        return self.token_cap, self.nano_cap

    def begin_anew(self) -> None:
        self.used, self.told, self.era = [0, 0], (), self.era + 1


@dataclass
class Template:
    """What holds for the keys of a group."""

    token_cap: int | None
    nano_cap: int | None
    window: Window | None


@dataclass
class Claim:
    """What is held, or was charged."""

    owner: int
    paths: tuple[str, ...]
    amount: tuple[int, int]
    eras: dict[str, int] = field(default_factory=dict)
    at: float = 0.0
    who: str = ""


@dataclass
class Ticket:
    """One that waits."""

    number: int
    owner: int
    at: str  # the path of the scope


class MemoryBudget:
    """What all processes share."""

    def __init__(self, *, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.clock = clock  # when something was charged
        self.changed = threading.Condition(threading.RLock())
        self.rows: dict[str, Row] = {}
        self.templates: dict[str, Template] = {}
        self.held: dict[Any, Claim] = {}
        self.charged: dict[Any, Claim] = {}
        self.ended: dict[Any, tuple[str, tuple[int, int]]] = {}  # by commit, settle or release, and what was counted
        self.cancelled: set[Any] = set()
        self.tickets: dict[Any, Ticket] = {}
        self.given: dict[int, dict[tuple[str, str], Any]] = {}  # by owner: what it says of caps and windows
        self.numbers = itertools.count(1)

    def lose(self) -> None:
        """Forget everything, as a server that is started empty."""
        with self.changed:
            for one in (self.rows, self.templates, self.held, self.charged, self.ended, self.tickets):
                one.clear()
            self.changed.notify_all()

    def die(self, owner: int, news: deque[News]) -> None:
        """Charge what an owner held in full, and end its waiting."""
        with self.changed:
            for key in [key for key, claim in self.held.items() if claim.owner == owner]:
                claim = self.held.pop(key)
                claim.eras = {path: self.rows[path].era for path in claim.paths}
                claim.at, claim.who = self.clock(), f"host:{owner}:0"
                for path in claim.paths:
                    row = self.rows[path]
                    row.in_flight -= 1
                    for axis in (0, 1):
                        row.held[axis] -= claim.amount[axis]
                        row.used[axis] += claim.amount[axis]
                self.charged[key] = claim
                news.append(News("expired", claim.paths[0], claim.paths, *claim.amount))
            for key in [key for key, ticket in self.tickets.items() if ticket.owner == owner]:
                del self.tickets[key]
            self.given.pop(owner, None)
            self.changed.notify_all()


class MemoryStore:
    """One process's engine."""

    def __init__(self, name: str, budget: MemoryBudget | None = None, location: str | None = None) -> None:
        self.budget = budget or MemoryBudget()
        self.name = name
        self.location = location or f"memory:{id(self.budget)}#{name}"
        self.news: deque[News] = deque()
        self.hook: Callable[[str, str], object] = lambda step, moment: None
        self.steps: list[str] = []  # what was done, for tests
        self.owner = next(self.budget.numbers)
        self.went = False  # whether `let_go` was called

    @contextmanager
    def _step(self, name: str) -> Iterator[MemoryBudget]:
        self.hook(name, "before")
        with self.budget.changed:
            self.steps.append(name)
            yield self.budget
            self.budget.changed.notify_all()
        self.hook(name, "after")

    # ------------------------------------------------------------------ scopes

    def open(
        self,
        scope: Scope | Group,
        token_cap: int | None,
        nano_cap: int | None,
        window: Window | None,
        how: str,
        *,
        create: bool = True,
    ) -> Opened:
        given = dict(zip(NAMES, (token_cap, nano_cap, window), strict=True))
        with self._step("open") as budget:
            above = scope.above
            while above is not None:
                if self._row(above).closed:
                    raise PoolClosed(f"pool {above.name!r} is closed")
                above = above.above
            places: dict[str, Any] = budget.templates if isinstance(scope, Group) else budget.rows
            stored = places.get(scope.path)
            created = stored is None
            if stored is None:
                if scope.above is None and not create:
                    raise StoreLost(f"there is no pool {self.name!r}")
                stored = (
                    Template(token_cap, nano_cap, window)
                    if isinstance(scope, Group)
                    else self._made(scope.path, token_cap, nano_cap, window)
                )
                places[scope.path] = stored
                if scope.above is None:
                    self.news.append(News("created", scope.path))
            changed = [] if created or how == "stored" else self._differences(scope.path, stored, given, how)
            if how != "stored":
                self._say(scope.path, {what: value for what, value in given.items() if value is not None})
            news = {what: value for what, _, value in changed}
            if isinstance(stored, Row):
                self._set(stored, news)
            else:
                self._set_group(stored, scope.path, news)
            self._show(scope, stored)
            row = self._numbers(stored) if isinstance(stored, Row) else self._template_row(stored)
            return Opened(row, created, tuple((what, _text(before), _text(value)) for what, before, value in changed))

    def _differences(self, path: str, stored: Any, given: dict[str, Any], how: str) -> list[tuple[str, Any, Any]]:
        changed = []
        for what, value in given.items():
            before = getattr(stored, what)
            if value is None or str(value) == str(before):
                continue
            for owner, others in self.budget.given.items():
                if how == "code" and owner != self.owner and (path, what) in others:
                    theirs = others[path, what]
                    if str(theirs) != str(value):
                        raise StoreMismatch(f"{what} is {before}, and {value} here; process {owner} says {theirs}")
            changed.append((what, before, value))
        return changed

    def set_caps(self, scope: Scope, token_cap: Any, nano_cap: Any, window: Any) -> None:
        with self._step("set_caps"):
            row = self._row(scope)
            if row.closed:
                raise PoolClosed(f"pool {scope.name!r} is closed")
            news = _news(token_cap, nano_cap, window)
            self._set(row, news)
            self._say(scope.path, news)
            if row.group is not None:
                row.own.update(news)
            scope.window = row.window

    def set_group(self, group: Group, token_cap: Any, nano_cap: Any, window: Any) -> None:
        with self._step("set_group") as budget:
            news = _news(token_cap, nano_cap, window)
            self._say(group.path, news)
            self._set_group(budget.templates[group.path], group.path, news)
            self._show(group, budget.templates[group.path])

    def _say(self, path: str, news: dict[str, Any]) -> None:
        """Note what this process gave."""
        self.budget.given.setdefault(self.owner, {}).update({(path, what): value for what, value in news.items()})

    def _set_group(self, template: Template, path: str, news: dict[str, Any]) -> None:
        for what, value in news.items():
            setattr(template, what, value)
        for row in self.budget.rows.values():
            if row.group == path:
                self._set(row, {what: value for what, value in news.items() if what not in row.own})

    def _set(self, row: Row, news: dict[str, Any]) -> None:
        if "window" in news:
            self._begin_due(row)  # what was used in a period that is over is not kept in another window
        for what, value in news.items():
            setattr(row, what, value)
        if "window" in news:
            row.enter_period()
        row.told = tuple(parts for parts in row.told if self._reached(row, parts))

    @staticmethod
    def _reached(row: Row, parts: int) -> bool:
        return any(
            cap is not None and used * 10**9 >= cap * parts for used, cap in zip(row.used, row.caps(), strict=True)
        )

    @staticmethod
    def _show(scope: Scope | Group, stored: Any) -> None:
        """Let the front know what was read."""
        scope.window = stored.window
        if isinstance(scope, Group):
            scope.token_cap, scope.nano_cap = stored.token_cap, stored.nano_cap
        else:
            scope.closed = stored.closed

    def reset(self, scope: Scope) -> None:
        with self._step("reset"):
            row = self._row(scope)
            row.begin_anew()
            row.enter_period()

    def close(self, scope: Scope) -> None:
        with self._step("close"):
            self._row(scope).closed = scope.closed = True

    def forget(self, scope: Scope) -> bool:
        with self._step("forget") as budget:
            row = budget.rows.get(scope.path)
            if row is None:
                return False
            if row.in_flight:
                raise ValueError(f"{row.in_flight} calls are in flight")
            del budget.rows[scope.path]
            scope.closed = False
            return True

    def keys(self, group: Group) -> list[str]:
        with self._step("keys") as budget:
            rows = [row for row in budget.rows.values() if row.group == group.path]
            prefix = "" if group.name is None else f"{group.name}:"
            return [name_at(row.path).removeprefix(prefix) for row in sorted(rows, key=lambda row: row.made)]

    def knows(self, scope: Scope) -> bool:
        with self._step("knows") as budget:
            return scope.path in budget.rows

    # ------------------------------------------------------------------ spending

    def new_key(self) -> Any:
        return self.owner, next(self.budget.numbers)

    def id_of(self, key: Any) -> str:
        return f"{key[0]}-{key[1]}"

    def reserve(
        self, chain: Sequence[Scope], key: Any, tokens: int, nanos: int, *, wait: bool = False, rows: bool = False
    ) -> Answer:
        with self._step("reserve") as budget:
            known = self._roll_over(chain)
            ticket = budget.tickets.get(key)
            at = self._blocker(known, (tokens, nanos), ticket)
            if at is None and key not in budget.cancelled:
                budget.tickets.pop(key, None)
                self._add(known, (tokens, nanos), (tokens, nanos), 1)
                budget.held[key] = Claim(self.owner, tuple(row.path for row in known), (tokens, nanos))
                return self._answer(GRANTED, chain, known, rows=rows)
            self._check_open(chain, known)
            index = at or 0
            if wait and key not in budget.cancelled:
                number = next(budget.numbers) if ticket is None else ticket.number
                ticket = budget.tickets[key] = Ticket(number, self.owner, known[index].path)
            shown = tuple(map(self._numbers, known))
            return Answer(REFUSED, shown, index, ticket=ticket.number if wait and ticket is not None else 0)

    def record(
        self, chain: Sequence[Scope], tokens: int, nanos: int, *, force: bool = False, rows: bool = False
    ) -> Answer:
        with self._step("record"):
            known = self._roll_over(chain)
            if not force:
                at = self._blocker(known, (tokens, nanos), None)
                if at is not None:
                    self._check_open(chain, known)
                    return Answer(REFUSED, tuple(map(self._numbers, known)), at)
            self._add(known, (tokens, nanos), (0, 0), 0)
            return self._answer(DONE, chain, known, rows=rows)

    def commit(
        self, chain: Sequence[Scope], key: Any, held: tuple[int, int], amount: tuple[int, int], *, rows: bool = False
    ) -> Answer:
        with self._step("commit") as budget:
            known = self._roll_over(chain)
            if key in budget.ended:
                how, counted = budget.ended[key]
                kind = SETTLED if how == "settle" else REPEAT
                return self._answer(kind, chain, known, rows=rows, counted=counted)
            kind = self._end(key, known, amount, "commit")
            if kind == UNKNOWN:
                self._add(known, amount, (0, 0), 0)
                budget.ended[key] = "commit", amount
            return self._answer(kind, chain, known, rows=rows)

    def release(self, chain: Sequence[Scope], key: Any, held: tuple[int, int], *, rows: bool = False) -> Answer:
        with self._step("release") as budget:
            known = self._roll_over(chain)
            if key in budget.ended:
                return self._answer(DONE if budget.ended[key][0] == "release" else SETTLED, chain, known, rows=rows)
            return self._answer(self._end(key, known, (0, 0), "release"), chain, known, rows=rows)

    def cancel(self, chain: Sequence[Scope], key: Any, held: tuple[int, int]) -> bool:
        with self._step("cancel") as budget:
            budget.cancelled.add(key)
            budget.tickets.pop(key, None)
            if key not in budget.held:
                return False
            self._end(key, self._roll_over(chain), (0, 0), "release")
            return True

    def leave(self, chain: Sequence[Scope], key: Any) -> Answer:
        with self._step("leave") as budget:
            known = self._roll_over(chain)
            if key in budget.held:
                return self._answer(GRANTED, chain, known, rows=True)
            ticket = budget.tickets.pop(key, None)
            paths = [row.path for row in known]
            at = paths.index(ticket.at) if ticket is not None and ticket.at in paths else 0
            return Answer(LEFT, tuple(map(self._numbers, known)), at)

    def watch(self, heads: Sequence[tuple[Sequence[Scope], Any, int, int]], seconds: float) -> None:
        self.hook("watch", "before")
        with self.budget.changed:
            self.budget.changed.wait(seconds)

    def _end(self, key: Any, known: list[Row], amount: tuple[int, int], how: str) -> str:
        """End a claim that is held or was charged. Say which."""
        budget = self.budget
        claim = budget.held.get(key)
        if claim is not None:
            held = claim.amount
            self._add(known, (amount[0] - held[0], amount[1] - held[1]), (-held[0], -held[1]), -1)
            del budget.held[key]
            budget.ended[key] = how, amount
            return DONE
        claim = budget.charged.pop(key, None)
        if claim is None:
            return UNKNOWN
        for row in known:
            for axis in (0, 1):
                more = amount[axis] - claim.amount[axis]
                row.used[axis] += more if row.era == claim.eras.get(row.path) else max(0, more)
        budget.ended[key] = how, amount
        return LATE

    # ------------------------------------------------------------------ looking

    def read(self, chain: Sequence[Scope]) -> tuple[Numbers, ...]:
        with self._step("read"):
            return tuple(self._numbers(self._row(scope)) for scope in chain)

    def tree(self, scope: Scope) -> list[tuple[str, str, Numbers]]:
        with self._step("tree") as budget:
            self._row(scope)
            rows = sorted(budget.rows.values(), key=lambda row: row.made)
            below = [row for row in rows if row.path == scope.path or row.path.startswith(f"{scope.path}/")]
            return [(row.path, name_at(row.path), self._numbers(row)) for row in below]

    def claim_threshold(self, scope: Scope, era: int, parts: int) -> bool:
        with self._step("claim_threshold"):
            row = self._row(scope)
            if row.era != era or parts in row.told:
                return False
            row.told += (parts,)
            return True

    # ------------------------------------------------------------------ claims that outlive their holder

    def expired(self) -> list[Charged]:
        with self._step("expired") as budget:
            return [
                Charged(self.id_of(key), *claim.amount, claim.who, claim.at, claim.paths)
                for key, claim in budget.charged.items()
            ]

    def settle(self, claim_id: str, tokens: int, nanos: int) -> tuple[Answer, tuple[str, ...]]:
        with self._step("settle") as budget:
            keys = [*budget.held, *budget.charged, *budget.ended]
            key = next((key for key in keys if self.id_of(key) == claim_id), None)
            if key is None:
                return Answer(UNKNOWN), ()
            if key in budget.ended:
                return Answer(REPEAT, counted=budget.ended[key][1]), ()
            claim = budget.held.get(key) or budget.charged[key]
            known = [budget.rows[path] for path in claim.paths]
            for row in known:
                self._begin_due(row)
            kind = self._end(key, known, (tokens, nanos), "settle")
            return self._answer(kind, (), known, rows=False, counted=claim.amount), claim.paths

    def hand_over(self, chain: Sequence[Scope], key: Any, held: tuple[int, int], lease: float) -> Any:
        with self._step("hand_over") as budget:
            if key not in budget.held:
                raise LookupError(key)
            new = 0, next(budget.numbers)
            budget.held[new] = budget.held.pop(key)
            budget.held[new].owner = 0
            return new

    # ------------------------------------------------------------------ the process

    def tend(self) -> float:
        return float("inf")

    def let_go(self) -> None:
        self.went = True
        self.die()

    def die(self) -> None:
        """End as a process that is killed. The next step is a new process's."""
        self.budget.die(self.owner, self.news)
        self.owner = next(self.budget.numbers)

    def forked(self) -> None:
        self.budget.changed = threading.Condition(threading.RLock())
        self.owner = next(self.budget.numbers)

    # ------------------------------------------------------------------ rows

    def _made(self, path: str, token_cap: int | None, nano_cap: int | None, window: Window | None) -> Row:
        return Row(path, token_cap, nano_cap, window, next(self.budget.numbers))

    def _row(self, scope: Scope) -> Row:
        """Return the row of a scope; that of a key is made."""
        row = self.budget.rows.get(scope.path)
        if row is None:
            if scope.group is None or scope.group.path not in self.budget.templates:
                raise StoreLost(f"the store has lost pool {scope.name!r}")
            template = self.budget.templates[scope.group.path]
            row = self._made(scope.path, template.token_cap, template.nano_cap, template.window)
            row.group = scope.group.path
            self.budget.rows[scope.path] = row
        self._show(scope, row)
        return row

    def _roll_over(self, chain: Sequence[Scope]) -> list[Row]:
        """Return the rows of a chain, in the periods that it is now."""
        rows = [self._row(scope) for scope in chain]
        for row in rows:
            self._begin_due(row)
        return rows

    def _begin_due(self, row: Row) -> None:
        if row.over():
            row.begin_anew()
            row.enter_period()
            self.news.append(News("roll-over", row.path))

    def _blocker(self, rows: list[Row], amount: tuple[int, int], ticket: Ticket | None) -> int | None:
        for index, row in enumerate(rows):
            sums = [row.used[axis] + row.held[axis] + amount[axis] for axis in (0, 1)]
            caps = zip(amount, sums, row.caps(), strict=True)
            if row.closed or any(asked and cap is not None and after > cap for asked, after, cap in caps):
                return index
            waiting = [one.number for one in self.budget.tickets.values() if one.at == row.path]
            if waiting and (ticket is None or min(waiting) < ticket.number):
                return index
        return None

    @staticmethod
    def _check_open(chain: Sequence[Scope], rows: list[Row]) -> None:
        for scope, row in zip(chain, rows, strict=True):
            if row.closed:
                raise PoolClosed(f"pool {scope.name!r} is closed")

    @staticmethod
    def _add(rows: list[Row], claimed: tuple[int, int], held: tuple[int, int], calls: int) -> None:
        for row in rows:
            for axis in (0, 1):
                if row.used[axis] + row.held[axis] + claimed[axis] > MOST:
                    raise StoreError("more than a store can count")
        for row in rows:
            row.in_flight += calls
            for axis in (0, 1):
                row.held[axis] += held[axis]
                row.used[axis] += claimed[axis] - held[axis]

    def _answer(
        self, kind: str, chain: Sequence[Scope], rows_of: list[Row], *, rows: bool, counted: tuple[int, int] = (0, 0)
    ) -> Answer:
        shown = tuple(map(self._numbers, rows_of))
        over = any(
            cap is not None and claimed > cap
            for one in shown
            for claimed, cap in ((one.tokens_claimed, one.token_cap), (one.nanos_claimed, one.nano_cap))
        )
        return Answer(kind, shown if rows or over else (), 0, counted)

    def _numbers(self, row: Row) -> Numbers:
        waiting = sum(ticket.at == row.path for ticket in self.budget.tickets.values())
        used, start, end, era, told = row.used, row.start, row.end, row.era, row.told
        if row.over() and row.window is not None:
            used, era, told = [0, 0], era + 1, ()
            start, end = row.window.period(row.window.now())
        return Numbers(
            row.token_cap,
            row.nano_cap,
            used[0] + row.held[0],
            row.held[0],
            used[1] + row.held[1],
            row.held[1],
            row.in_flight,
            start,
            end,
            era,
            waiting,
            row.closed,
            told,
        )

    @staticmethod
    def _template_row(template: Template) -> Numbers:
        return Numbers(template.token_cap, template.nano_cap, 0, 0, 0, 0, 0, None, None, 0, 0, False)


class MemoryPool(StorePool):
    """A pool in memory. ``process`` names the process that opens it: each has an engine of its own on the budget."""

    def __init__(
        self,
        budget: MemoryBudget | None = None,
        *,
        name: str = "total",
        token_cap: int | None = None,
        usd_cap: Any = None,
        window: Window | None = None,
        caps: Any = "code",
        create: bool = True,
        process: str = "one",
    ) -> None:
        checked_opening(name, token_cap, usd_cap, window, caps)
        self.budget = budget or MemoryBudget()
        location = f"memory:{id(self.budget)}.{process}#{name}"
        family = StoreFamily.of(location, lambda: MemoryStore(name, self.budget, location))
        self._open(family, name, token_cap, usd_cap, window, caps, create)

    @property
    def engine(self) -> MemoryStore:
        """The engine of its process."""
        store: Any = self._family.store
        assert isinstance(store, MemoryStore)
        return store


def _news(token_cap: Any, nano_cap: Any, window: Any) -> dict[str, Any]:
    """Return what is to be changed."""
    values = zip(NAMES, (token_cap, nano_cap, window), strict=True)
    return {what: value for what, value in values if value is not UNCHANGED}


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, Window) else value
