"""SQLiteStore: the engine over one file. Its fast path here; all rare states in `_slow.py` and its neighbours.

The fast path of a step is one guarded UPDATE a scope, by its id. Whatever is rare makes one of them change no row: then
the transaction is undone, and the slow path looks why, under the same lock. So the guards are the whole of the rule:

* A reserve or record needs room on both axes, a period that is not over, nobody who waits, and an open scope.
* A commit needs a period that is not over, and leaves no scope over a cap.
* A hold needs the row of this process among the owners: a process that was declared dead has none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import Any
from urllib.parse import quote

from token_budget._arguments import UNCHANGED
from token_budget._window import Window
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError
from token_budget.stores._names import encoded
from token_budget.stores._store import (
    DONE,
    GRANTED,
    UNKNOWN,
    Answer,
    Charged,
    Group,
    News,
    Numbers,
    Opened,
    Scope,
)
from token_budget.stores.sqlite import _claims, _owners, _settings, _slow, _waiters
from token_budget.stores.sqlite._connection import Connection, Execute, Unsynced, notice_forks
from token_budget.stores.sqlite._schema import FAR
from token_budget.stores.sqlite._scopes import find
from token_budget.stores.sqlite._slow import GIVE_BACK, HOLD, UNHOLD
from token_budget.stores.sqlite._step import Ledger, Outcome, Step

_RESERVE = """
    UPDATE scope SET token_room = token_room - ?, nano_room = nano_room - ?, token_held = token_held + ?,
                     nano_held = nano_held + ?, in_flight = in_flight + 1
    WHERE id = ? AND token_room >= ? AND nano_room >= ? AND ends > ? AND waiters = 0 AND closed = 0
"""
_RECORD = """
    UPDATE scope SET token_room = token_room - ?, nano_room = nano_room - ?
    WHERE id = ? AND token_room >= ? AND nano_room >= ? AND ends > ? AND waiters = 0 AND closed = 0
"""
_COMMIT = """
    UPDATE scope SET token_room = token_room - ?, nano_room = nano_room - ?, token_held = token_held - ?,
                     nano_held = nano_held - ?, in_flight = in_flight - 1
    WHERE id = ? AND token_room >= ? AND nano_room >= ? AND ends > ?
"""
# The time for a scope that has no window, as far as this process knows: before the end of a period that never ends, and
# after that of any other, so that a window that another process has set is noticed.
_NO_CLOCK = FAR - 1
_REMEMBERED = 4096  # how many of the latest commits of this process are remembered, at least
_DONE = Answer(DONE)
_GRANTED = Answer(GRANTED)

Pair = tuple[int, int]


class SQLiteStore:
    """One root in one SQLite file, as this process has it: the `Store` of `SQLiteBudgetPool`."""

    name: str
    location: str
    news: deque[News]

    def __init__(
        self, path: str, *, name: str, durable: bool = True, timeout: float = 5.0, create: bool = True
    ) -> None:
        self._timeout = timeout
        self._durable = durable
        connection = Connection.of(path, timeout=timeout, create=create)
        self.name = name
        self.location = location_of(connection.path, name)
        self.news = deque()
        self._ledger = Ledger(connection, encoded(name), self.location)
        self._run: Callable[..., Any] = connection.run
        self._look: Callable[..., Any] = connection.look
        self._begin()

    def _begin(self) -> None:
        """Begin as a process that has done nothing yet."""
        self._random = Random()  # noqa: S311 - of its own: a program that seeds the module's would repeat keys
        self._watch = _waiters.Watch(self._ledger)
        # What commits and releases of this process have counted, so that a repeat counts once: the latest ones, in two
        # generations, and all that ended with an error, whose caller cannot know whether they were done.
        self._counted: dict[int, Pair] = {}
        self._counted_before: dict[int, Pair] = {}
        self._unanswered: dict[int, Pair] = {}
        self._cancelled: dict[int, None] = {}  # keys that were cancelled before they held anything
        self._owed: deque[tuple[Any, ...]] = deque()  # steps that undo what was not to be done; see `tend`

    # ------------------------------------------------------------------ how steps run

    def _slowly(self, execute: Execute, work: Callable[..., Any], *arguments: Any, **options: Any) -> Outcome:
        """Take the slow path, in a transaction that has changed nothing yet."""
        step = Step(self._ledger, execute)
        return step.outcome(work(step, *arguments, **options))

    def _anew(self, execute: Execute) -> None:
        """Undo what the fast path has done before it missed."""
        execute("ROLLBACK")
        execute("BEGIN IMMEDIATE")

    def _ended(self, outcome: Outcome) -> Any:
        """Note what holds after a committed step of the slow path. Return its answer."""
        self._ledger.registered = outcome.registered
        self.news.extend(outcome.news)
        return outcome.answer

    def _step(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Do one step by the slow path alone, and return its answer."""

        def whole(execute: Execute) -> Outcome:
            return self._slowly(execute, work, *arguments, **options)

        return self._ended(self._run(self._timeout, self._durable, whole))

    def _seen(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Look, and change nothing."""

        def whole(execute: Execute) -> Any:
            return work(Step(self._ledger, execute), *arguments)

        return self._look(self._timeout, whole)

    # ------------------------------------------------------------------ spending

    def new_key(self) -> int:
        """See `Store.new_key`."""
        return self._random.getrandbits(63)

    def id_of(self, key: int) -> str:
        """See `Store.id_of`."""
        return _claims.id_of(key)

    def reserve(
        self, chain: Sequence[Scope], key: int, tokens: int, nanos: int, *, wait: bool = False, rows: bool = False
    ) -> Answer:
        """See `Store.reserve`."""
        try:
            answer = self._run(self._timeout, self._durable, self._reserve, chain, key, tokens, nanos, wait, rows)
        except Unsynced:
            self._owed.append((_slow.cancel, key))
            raise
        return answer if answer.__class__ is Answer else self._ended(answer)

    def _reserve(
        self,
        execute: Execute,
        chain: Sequence[Scope],
        key: int,
        tokens: int,
        nanos: int,
        wait: bool,  # noqa: FBT001
        rows: bool,  # noqa: FBT001
    ) -> Answer | Outcome:
        ids = []
        if key not in self._cancelled:
            for scope in chain:
                if scope.handle is None:
                    break
                scope_id, text = scope.handle
                window = scope.window
                now = _NO_CLOCK if window is None else window.clock()
                if execute(_RESERVE, (tokens, nanos, tokens, nanos, scope_id, tokens, nanos, now)).rowcount != 1:
                    break
                ids.append(text)
            else:
                if execute(HOLD, (key, ",".join(ids), tokens, nanos, self._ledger.connection.owner)).rowcount == 1:
                    return Answer(GRANTED, _slow.numbers_of(Step(self._ledger, execute), chain)) if rows else _GRANTED
            self._anew(execute)
        cancelled = key in self._cancelled
        amount = (tokens, nanos)
        return self._slowly(execute, _slow.reserve, chain, key, amount, wait=wait, wanted=rows, cancelled=cancelled)

    def record(
        self, chain: Sequence[Scope], tokens: int, nanos: int, *, force: bool = False, rows: bool = False
    ) -> Answer:
        """See `Store.record`."""
        try:
            answer = self._run(self._timeout, self._durable, self._record, chain, tokens, nanos, force, rows)
        except Unsynced:
            self._owed.append((_slow.take_back, [scope.handle[0] for scope in chain], (tokens, nanos)))
            raise
        return answer if answer.__class__ is Answer else self._ended(answer)

    def _record(
        self,
        execute: Execute,
        chain: Sequence[Scope],
        tokens: int,
        nanos: int,
        force: bool,  # noqa: FBT001
        rows: bool,  # noqa: FBT001
    ) -> Answer | Outcome:
        for scope in chain:
            if scope.handle is None:
                break
            window = scope.window
            now = _NO_CLOCK if window is None else window.clock()
            if execute(_RECORD, (tokens, nanos, scope.handle[0], tokens, nanos, now)).rowcount != 1:
                break
        else:
            return Answer(DONE, _slow.numbers_of(Step(self._ledger, execute), chain)) if rows else _DONE
        self._anew(execute)
        return self._slowly(execute, _slow.record, chain, (tokens, nanos), force=force, wanted=rows)

    def commit(self, chain: Sequence[Scope], key: int, held: Pair, amount: Pair, *, rows: bool = False) -> Answer:
        """See `Store.commit`."""
        try:
            answer = self._run(self._timeout, self._durable, self._commit, chain, key, held, amount, rows)
        except BaseException:
            self._unanswer(key)
            raise
        return answer if answer.__class__ is Answer else self._ended(answer)

    def _commit(
        self,
        execute: Execute,
        chain: Sequence[Scope],
        key: int,
        held: Pair,
        amount: Pair,
        rows: bool,  # noqa: FBT001
    ) -> Answer | Outcome:
        if execute(UNHOLD, (key,)).rowcount == 1:
            held_tokens, held_nanos = held
            tokens, nanos = amount[0] - held_tokens, amount[1] - held_nanos
            for scope in chain:
                window = scope.window
                now = _NO_CLOCK if window is None else window.clock()
                changes = (tokens, nanos, held_tokens, held_nanos, scope.handle[0], tokens, nanos, now)
                if execute(_COMMIT, changes).rowcount != 1:
                    break
            else:
                self._remember(key, amount)
                return Answer(DONE, _slow.numbers_of(Step(self._ledger, execute), chain)) if rows else _DONE
            self._anew(execute)
        counted = self._remembered(key)
        outcome = self._slowly(execute, _slow.commit, chain, key, held, amount, wanted=rows, counted=counted)
        if outcome.answer.kind == DONE:
            self._remember(key, amount)
        return outcome

    def release(self, chain: Sequence[Scope], key: int, held: Pair, *, rows: bool = False) -> Answer:
        """See `Store.release`."""
        try:
            answer = self._run(self._timeout, self._durable, self._release, chain, key, held, rows)
        except BaseException:
            self._unanswer(key)
            raise
        return answer if answer.__class__ is Answer else self._ended(answer)

    def _release(
        self,
        execute: Execute,
        chain: Sequence[Scope],
        key: int,
        held: Pair,
        rows: bool,  # noqa: FBT001
    ) -> Answer | Outcome:
        if execute(UNHOLD, (key,)).rowcount == 1:
            tokens, nanos = held
            for scope in chain:
                if execute(GIVE_BACK, (tokens, nanos, tokens, nanos, scope.handle[0])).rowcount != 1:
                    break
            else:
                self._remember(key, (0, 0))
                return Answer(DONE, _slow.numbers_of(Step(self._ledger, execute), chain)) if rows else _DONE
            self._anew(execute)
        counted = self._remembered(key)
        outcome = self._slowly(execute, _slow.release, chain, key, wanted=rows, counted=counted)
        if outcome.answer.kind == DONE:
            self._remember(key, (0, 0))
        return outcome

    def cancel(self, chain: Sequence[Scope], key: int, held: Pair) -> bool:  # noqa: ARG002 - the file knows both
        """See `Store.cancel`."""
        if len(self._cancelled) >= _REMEMBERED:
            self._cancelled.pop(next(iter(self._cancelled)), None)
        self._cancelled[key] = None
        return bool(self._step(_slow.cancel, key))

    # ------------------------------------------------------------------ what was counted here

    def _remembered(self, key: int) -> Pair | None:
        return self._counted.get(key) or self._counted_before.get(key) or self._unanswered.get(key)

    def _remember(self, key: int, amount: Pair) -> None:
        counted = self._counted
        if len(counted) >= _REMEMBERED:
            self._counted_before, self._counted = counted, {}
            counted = self._counted
        counted[key] = amount

    def _unanswer(self, key: int) -> None:
        """Remember for good what was counted for a claim whose holder was not told so."""
        amount = self._counted.get(key)
        if amount is not None:
            self._unanswered[key] = amount

    # ------------------------------------------------------------------ waiting

    def leave(self, chain: Sequence[Scope], key: int) -> Answer:
        """See `Store.leave`."""
        answer: Answer = self._step(_waiters.leave, chain, key)
        return answer

    def watch(self, heads: Sequence[tuple[Sequence[Scope], Any, int, int]], seconds: float) -> Collection[Any] | None:
        """See `Store.watch`."""

        def look(work: Callable[..., Any], *arguments: Any) -> Any:
            return self._look(self._timeout, work, *arguments)

        return _waiters.watch(look, self._watch, heads, seconds)

    # ------------------------------------------------------------------ looking

    def read(self, chain: Sequence[Scope]) -> tuple[Numbers, ...]:
        """See `Store.read`."""
        rows: tuple[Numbers, ...] = self._seen(_slow.read, chain)
        return rows

    def tree(self, scope: Scope) -> list[tuple[str, str, Numbers]]:
        """See `Store.tree`."""
        rows: list[tuple[str, str, Numbers]] = self._seen(_slow.tree, scope)
        return rows

    def claim_threshold(self, scope: Scope, era: int, parts: int) -> bool:
        """See `Store.claim_threshold`."""
        return bool(self._step(_settings.claim_threshold, scope, era, parts))

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
        """See `Store.open`."""
        opened: Opened
        if isinstance(scope, Group):
            opened = self._step(_settings.open_group, scope, token_cap, nano_cap, window, how)
        else:
            opened = self._step(_settings.open_scope, scope, token_cap, nano_cap, window, how, create=create)
        return opened

    def set_caps(self, scope: Scope, token_cap: Any, nano_cap: Any, window: Any) -> None:
        """See `Store.set_caps`."""
        self._step(_settings.set_caps, scope, _given(token_cap, nano_cap, window), window)

    def set_group(self, group: Group, token_cap: Any, nano_cap: Any, window: Any) -> None:
        """See `Store.set_group`."""
        self._step(_settings.set_group, group, _given(token_cap, nano_cap, window), window)

    def reset(self, scope: Scope) -> None:
        """See `Store.reset`."""
        self._step(_settings.reset, scope)

    def close(self, scope: Scope) -> None:
        """See `Store.close`."""
        self._step(_settings.close, scope)

    def forget(self, scope: Scope) -> bool:
        """See `Store.forget`."""
        return bool(self._step(_settings.forget, scope))

    def keys(self, group: Group) -> list[str]:
        """See `Store.keys`."""
        keys: list[str] = self._seen(_settings.keys, group)
        return keys

    def knows(self, scope: Scope) -> bool:
        """See `Store.knows`."""
        return self._seen(find, scope) is not None

    # ------------------------------------------------------------------ claims that outlive their holder

    def expired(self) -> list[Charged]:
        """See `Store.expired`."""
        found: list[Charged] = self._step(_claims.expired)
        return found

    def settle(self, claim_id: str, tokens: int, nanos: int) -> tuple[Answer, tuple[str, ...]]:
        """See `Store.settle`."""
        claim = _claims.claim_of(claim_id)
        if claim is None:
            return Answer(UNKNOWN), ()
        answer: tuple[Answer, tuple[str, ...]] = self._step(_claims.settle, claim, (tokens, nanos))
        return answer

    def hand_over(self, chain: Sequence[Scope], key: int, held: Pair, lease: float) -> int:  # noqa: ARG002
        """See `Store.hand_over`."""
        self._step(_claims.hand_over, key, lease)
        return key

    # ------------------------------------------------------------------ the process

    def tend(self) -> float:
        """See `Store.tend`. The kernel knows who lives, so there is nothing to renew."""
        while self._owed:
            owed = self._owed[0]
            try:
                self._step(*owed)
            except BudgetUnavailable:
                return 1.0
            except StoreError:
                pass
            if self._owed and self._owed[0] is owed:
                self._owed.popleft()
        return float("inf")

    def let_go(self) -> None:
        """See `Store.let_go`. A claim that is settled after that is corrected: the file is opened once more for it."""
        connection = self._ledger.connection
        try:
            self._step(_owners.let_go)
        finally:
            self._run, self._look = self._run_again, self._look_again
            self._ledger.registered = None
            connection.let_go()

    def _run_again(self, *arguments: Any) -> Any:
        return self._again(Connection.run, arguments)

    def _look_again(self, *arguments: Any) -> Any:
        return self._again(Connection.look, arguments)

    def _again(self, how: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        connection = Connection.of(self._ledger.connection.path, timeout=self._timeout, create=False)
        try:
            self._ledger.connection = connection
            return how(connection, *arguments)
        finally:
            connection.let_go()

    def forked(self) -> None:
        """See `Store.forked`."""
        notice_forks()
        self._ledger.registered = None
        self._begin()


def _given(token_cap: Any, nano_cap: Any, window: Any) -> dict[str, Any]:
    """Return the values that are not UNCHANGED, a window as its text."""
    values = {"token_cap": token_cap, "nano_cap": nano_cap, "window": window}
    given = {what: value for what, value in values.items() if value is not UNCHANGED}
    if "window" in given:
        given["window"] = _settings.text_of(window)
    return given


def location_of(path: str, name: str) -> str:
    """Return the text of a root in a file, as `open_pool` takes it."""
    return f"sqlite:{path}#{quote(name, safe='', errors='surrogatepass')}"
