"""FastPath: the steps that spend, each one guarded UPDATE a scope, by its id. All rare states are in `_slow.py`.

Whatever is rare makes an UPDATE change no row: then the transaction is undone, and the slow path looks why, under the
same lock. So the guards are the whole of the rule:

* A reserve or record needs room on both axes, a period that is not over, nobody who waits, and an open scope.
* A commit needs a period that is not over, and leaves no scope over a cap.
* A hold or record needs the row of this process among the owners. A process that was declared dead has none, nor has
  one that has an older copy of the file before it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any
from urllib.parse import quote

from token_budget.stores._names import encoded
from token_budget.stores._store import DONE, GRANTED, Answer, News, Scope
from token_budget.stores.sqlite import _slow
from token_budget.stores.sqlite._claims import id_of
from token_budget.stores.sqlite._connection import Closed, Connection, Execute, Unsynced
from token_budget.stores.sqlite._schema import FAR
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
        AND EXISTS (SELECT 1 FROM owner WHERE owner.id = ?)
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


class FastPath:
    """The part of `SQLiteStore` that spends."""

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
        self._begin()

    def _begin(self) -> None:
        """Begin as a process that has done nothing yet."""
        self._random = Random()  # noqa: S311 - of its own: a program that seeds the module's would repeat keys
        # What commits and releases of this process have counted, so that a repeat counts once: the latest ones, in two
        # generations, and all that ended with an error, whose caller cannot know whether they were done.
        self._counted: dict[int, Pair] = {}
        self._counted_before: dict[int, Pair] = {}
        self._unanswered: dict[int, Pair] = {}
        self._cancelled: OrderedDict[int, None] = OrderedDict()  # keys that were cancelled before they held anything
        self._owed: deque[tuple[Any, ...]] = deque()  # steps that undo what was not to be done; see `tend`
        # Claims that are to be cancelled, since their reserve is not known to be on the disk: which debt it is. One
        # that is reserved again before that is cancelled no more.
        self._unsynced: dict[int, object] = {}

    # ------------------------------------------------------------------ how steps run

    def _run(self, *arguments: Any) -> Any:
        try:
            return self._ledger.connection.run(*arguments)
        except Closed:  # also where another thread has closed the pool while this one was on its way
            return self._again(Connection.run, arguments)

    def _look(self, *arguments: Any) -> Any:
        try:
            return self._ledger.connection.look(*arguments)
        except Closed:
            return self._again(Connection.look, arguments)

    def _again(self, how: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Do a step after this process has let go of the file, which is opened once more for it."""
        connection = Connection.of(self._ledger.connection.path, timeout=self._timeout, create=False)
        try:
            self._ledger.connection = connection
            return how(connection, *arguments)
        finally:
            connection.let_go()

    def _slowly(self, execute: Execute, work: Callable[..., Any], *arguments: Any, **options: Any) -> Outcome:
        """Take the slow path, in a transaction that has changed nothing yet."""
        step = Step(self._ledger, execute)
        return step.outcome(work(step, *arguments, **options))

    def _anew(self, execute: Execute) -> None:
        """Undo what the fast path has changed before it missed."""
        execute("ROLLBACK")
        execute("BEGIN IMMEDIATE")

    def _ended(self, outcome: Outcome) -> Any:
        """Note what holds after a committed step of the slow path. Return its answer."""
        self._ledger.registered = outcome.registered
        self._ledger.gave.update(outcome.gave)
        self.news.extend(outcome.news)
        return outcome.answer

    def _step(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Do one step by the slow path alone, and return its answer."""

        def whole(execute: Execute) -> Outcome:
            return self._slowly(execute, work, *arguments, **options)

        try:
            outcome = self._run(self._timeout, self._durable, whole)
        except Unsynced as error:
            self._ended(error.answer)  # it is done all the same
            raise
        return self._ended(outcome)

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
        return id_of(key)

    def reserve(
        self, chain: Sequence[Scope], key: int, tokens: int, nanos: int, *, wait: bool = False, rows: bool = False
    ) -> Answer:
        """See `Store.reserve`."""
        again = key in self._unsynced
        try:
            answer = self._run(self._timeout, self._durable, self._reserve, chain, key, tokens, nanos, wait, rows)
        except BaseException as error:
            if again or isinstance(error, Unsynced):
                debt = self._unsynced[key] = object()
                self._owed.append((self._cancel_unsynced, key, debt))
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
        again = self._unsynced.pop(key, None) is not None
        if key not in self._cancelled and not again:
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
            if ids:
                self._anew(execute)
        cancelled = key in self._cancelled
        amount = (tokens, nanos)
        return self._slowly(
            execute, _slow.reserve, chain, key, amount, wait=wait, wanted=rows, cancelled=cancelled, again=again
        )

    def _cancel_unsynced(self, step: Step, key: int, debt: object) -> None:
        """Cancel a claim, if it was not reserved again since."""
        if self._unsynced.get(key) is debt:
            _slow.cancel(step, key)

    def _paid(self, owed: tuple[Any, ...]) -> None:
        """Forget the debt of a claim that is cancelled now."""
        if owed[0] == self._cancel_unsynced and self._unsynced.get(owed[1]) is owed[2]:
            del self._unsynced[owed[1]]

    def record(
        self, chain: Sequence[Scope], tokens: int, nanos: int, *, force: bool = False, rows: bool = False
    ) -> Answer:
        """See `Store.record`."""
        try:
            answer = self._run(self._timeout, self._durable, self._record, chain, tokens, nanos, force, rows)
        except Unsynced as error:
            done = error.answer.answer if isinstance(error.answer, Outcome) else error.answer
            if done.kind == DONE:  # one that was refused may have had something else to write
                self._owe_back(chain, (tokens, nanos))
            raise
        return answer if answer.__class__ is Answer else self._ended(answer)

    def _owe_back(self, chain: Sequence[Scope], amount: Pair) -> None:
        """Have a record undone whose caller is told that it was not done."""
        clocks = [None if scope.window is None else scope.window.now() for scope in chain]
        eras: Sequence[int | None] = [None] * len(chain)  # unknown: the periods alone tell then
        with suppress(Exception):
            eras = [row.era for row in self._seen(_slow.read, chain)[0]]
        places = [(scope.handle[0], now, era) for scope, now, era in zip(chain, clocks, eras, strict=True)]
        self._owed.append((_slow.take_back, places, amount))

    def _record(
        self,
        execute: Execute,
        chain: Sequence[Scope],
        tokens: int,
        nanos: int,
        force: bool,  # noqa: FBT001
        rows: bool,  # noqa: FBT001
    ) -> Answer | Outcome:
        owner = self._ledger.connection.owner
        for scope in chain:
            if scope.handle is None:
                break
            window = scope.window
            now = _NO_CLOCK if window is None else window.clock()
            if execute(_RECORD, (tokens, nanos, scope.handle[0], tokens, nanos, now, owner)).rowcount != 1:
                break
        else:
            return Answer(DONE, _slow.numbers_of(Step(self._ledger, execute), chain)) if rows else _DONE
        if scope is not chain[0]:
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
                if scope.handle is None:
                    break
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
                if scope.handle is None:
                    break
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
            self._cancelled.popitem(last=False)  # in one step: other threads cancel, too
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


def location_of(path: str, name: str) -> str:
    """Return the text of a root in a file, as `open_pool` takes it."""
    return f"sqlite:{path}#{quote(name, safe='', errors='surrogatepass')}"
