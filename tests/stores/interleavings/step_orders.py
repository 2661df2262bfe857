"""Every order of the steps of some clients: a run follows one, and `explore` makes runs until it has had all.

Each client is a thread that stops before each of its steps, a transaction or a script; one thread runs at a time. What
comes next is a choice: which client goes on, and what happens to its step. So a run is given by its choices, and the
next run differs in the last choice that has an alternative left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from token_budget.contract import BudgetUnavailable

DEADLINE = 60.0  # seconds for what takes microseconds


class Died(BaseException):
    """The process of this thread was killed."""


class Chooser:
    """The choices of one run: those that are given, then always the first."""

    def __init__(self, given: Sequence[int] = ()) -> None:
        self.given = given
        self.taken: list[tuple[int, int]] = []  # the choice, of how many

    def choose(self, count: int) -> int:
        at = len(self.taken)
        index = self.given[at] if at < len(self.given) else 0
        assert index < count, "a run with the same choices went another way"
        self.taken.append((index, count))
        return index

    def following(self) -> list[int] | None:
        """Return the choices of the next run, None after the last."""
        taken = list(self.taken)
        while taken:
            index, count = taken.pop()
            if index + 1 < count:
                return [*[before for before, _ in taken], index + 1]
        return None


def explore(run: Callable[[Chooser], bool]) -> Iterator[Chooser]:
    """Make a run of every order. One that returns False (it was held up for too long to count) is made again."""
    given: list[int] | None = []
    while given is not None:
        chooser = Chooser(given)
        while not run(chooser):
            chooser = Chooser(given)
        yield chooser
        given = chooser.following()


@dataclass
class Pending:
    """A step that an actor is about to do."""

    perform: Callable[[], Any]
    faults: Sequence[str]


def lost(perform: Callable[[], Any]) -> Any:
    """Do a step, and lose its answer."""
    perform()
    raise BudgetUnavailable("it was done, and the answer was lost")


class Actor:
    """A thread of one client."""

    def __init__(self, name: str, process: str, body: Callable[[Actor], None]) -> None:
        self.name = name
        self.process = process
        self.pending: Pending | None = None
        self.error: BaseException | None = None
        self.ended = False
        self.on_step: Callable[[], None] = lambda: None  # called when a step begins
        self.late: Callable[[Callable[[], Any]], None] = lambda perform: None  # called with a step that is under way
        self._body = body
        self._mine = threading.Lock()  # both are taken: who waits takes them, and the other one releases
        self._main = threading.Lock()
        self._mine.acquire()
        self._main.acquire()
        self._how = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.dead = False

    def _run(self) -> None:
        _now.actor = self
        try:
            self._body(self)
        except Died:
            pass
        except BaseException as error:  # noqa: BLE001 - it is raised where the run is
            self.error = error
        self.ended = True
        self._main.release()

    def begin(self) -> None:
        self._thread.start()
        self._wait()

    def _wait(self) -> None:
        assert self._main.acquire(timeout=DEADLINE), f"{self.name} does not come to its next step"

    def go(self, how: str) -> None:
        """Let it do its step, and go on to the next one."""
        self._how = how
        self._mine.release()
        self._wait()
        if self.ended:
            self._thread.join()
        if self.error is not None:
            raise self.error

    def gate(
        self,
        perform: Callable[[], Any],
        faults: Sequence[str] = (),
        lose: Callable[[], Any] | None = None,
    ) -> Any:
        """Stop before a step; then do it as it is chosen. Called by its own thread."""
        while True:
            if self.dead:
                raise Died
            self.pending = Pending(perform, faults)
            self._main.release()
            self._mine.acquire()
            self.pending = None
            how, self._how = self._how, ""
            if how == "dies before":
                raise Died
            self.on_step()
            if how == "is late":
                self.late(perform)
                raise BudgetUnavailable("the request is still under way")
            if how == "fails":
                raise BudgetUnavailable("the step was not done")
            if how == "is lost":
                return lost(perform) if lose is None else lose()
            answer = perform()
            if how == "dies after":
                raise Died
            if how == "is sent again":
                faults = ()
                continue
            return answer


class _Now(threading.local):
    actor: Actor | None = None


_now = _Now()


def acting() -> Actor | None:
    """Return the actor whose thread this is."""
    return _now.actor
