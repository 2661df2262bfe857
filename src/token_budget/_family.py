"""Family: the one lock of a pool and all its descendants, and the one place where it is taken over calls and loops.

Straight runs (`_pool.py`, `_reservation.py`, `_straight.py`) take the lock for a few loads and stores. Everything else
comes through `Family.run`.

What always holds:

* The family is whole before every instruction of Python (`_change.py`). A signal handler or finaliser whose own thread
  is inside an operation goes on with its own. The interrupted operation sees that `version` has moved, and decides
  anew.
* While the lock is free, no waiter fits at the scope where it is the oldest that waits, and nobody waits for what can
  never come (`_line.py`). Whatever changes an account with a line puts the account into `stirred`. An account that
  somebody waits for room in has no bounds left, so that an operation on it takes the long way, which serves what an
  interrupted one left stirred.
* What must happen without the lock (ring a bell, call back, release what was dropped) is published in `owed` together
  with the change that owes it. It leaves `owed` after it was done, and to do it twice has no effect the second time. So
  whoever comes next does what an interrupted operation left.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from heapq import heappush
from itertools import chain, repeat, starmap
from weakref import WeakValueDictionary, ref

from token_budget._account import NOTHING, Account
from token_budget._bells import ThreadBell
from token_budget._change import Change
from token_budget._errors import PoolForked
from token_budget._process import HERE
from token_budget._telling import teller
from token_budget._waiting import WITHDRAWN

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, NoReturn

    from token_budget._telling import Teller


def _new_lock() -> Any:
    """Return a lock for a family. Tests replace this function; the class is looked up late for gevent's patches.

    CPython 3.10 also delivers signals at taken conditional jumps, which the refusing branch of a straight run needs: a
    handler may then find the lock held by its own thread, between two operations of that thread as it were, and may
    enter.
    """
    return threading.RLock() if sys.version_info < (3, 11) else threading.Lock()


def taking(lock: Any) -> Iterator[object]:
    """Return an endless iterator whose every step takes the lock: the first of the package's two tricks.

    ``for _ in family.locked: try: ... finally: family.lock.release()``, left by ``return`` or ``break``, does what
    ``with lock:`` does. Every straight run is built on it, since `with` looks up and calls two methods and makes the
    whole of `record` a third slower (benchmarks/README.md).
    ``lock.acquire()`` before a ``try`` would be as fast and wrong: an exception delivered between the two (Ctrl-C, a
    cancelled thread) leaves the lock held for ever. Between a step of an iterator written in C and the ``try`` in the
    loop's body CPython delivers none.
    """
    return starmap(lock.acquire, repeat(()))


# Every family that is alive, for the hook that a forked child runs.
families: WeakValueDictionary[int, Family] = WeakValueDictionary()
PAY = True  # whoever comes out of `Family.run` pays what is owed
OWE = False  # or leaves that to its caller, who is paying already or must call nobody back


class Family:
    """The lock of a pool and all that descend from it."""

    __slots__ = (
        "__weakref__",
        "_publish",
        "_serve",
        "first",
        "groups",
        "lock",
        "locked",
        "made",
        "opened",
        "owed",
        "owner",
        "pending",
        "pid",
        "root",
        "scopes",
        "spending",
        "stirred",
        "torn",
        "version",
        "void",
    )

    def __init__(self, root: Account, serve: Callable[[Family, Account], bool]) -> None:
        # The lock guards every account of the family, the `_state` of every reservation, every line, and the fields
        # from `version` on. `locked` takes it for anyone, `spending` for whoever spends: the same, except in a forked
        # child.
        self.lock = _new_lock()
        self.locked = self.spending = taking(self.lock)
        self.owner = 0  # the thread that is inside `run`; read by anyone, who can only find itself
        self.opened = object()  # the `_state` of reservations in flight; `detach` makes a new one
        self.pid = os.getpid()  # of the process that may spend
        self.owed: deque[Any] = deque()  # filled by anyone in one step of C, a finaliser too
        # What straight runs look at first: true while somebody is inside `run`, or something is owed.
        self.pending: object = self.owed
        self.torn = False  # whether a handler forked in the middle of an operation that has not noticed yet
        self.version = 0  # counts changes
        self.stirred: deque[Account] = deque()  # accounts whose line is to be looked at before the lock is let go
        self.made = 0  # counts accounts and tickets
        self.root = root  # the account of the first pool; whoever waits anywhere is in its line
        self.first: Callable[[], Any] = _nobody  # a weak reference to the first pool
        self.void = Account(None, None, None, None)  # fills up a chain for straight runs; it has no caps
        self.scopes = Register()  # the pools, except those of keys
        self.groups = Register()  # the groups of keyed pools
        nowhere: deque[Any] = deque(maxlen=0)
        self._publish = nowhere.extend  # consumes an iterator in one call of C code
        self._serve = serve  # the rule of the lines (`_line.py`), which stands above this module
        families[id(self)] = self

    # ------------------------------------------------------------------ the one way in

    def run(self, takes: Iterator[object], pays: bool, work: Callable[..., Any], *arguments: Any) -> Any:  # noqa: C901, FBT001, PLR0912
        """Take the lock, do the work, serve the lines that it stirred, let go, pay what is owed. The only such place.

        A signal handler or finaliser whose own thread is inside goes on at once. ``takes`` takes the lock: `spending`,
        `locked`, or an iterator that may give up. ``pays`` is PAY or OWE.
        """
        me = threading.get_ident()
        if self.owner == me:
            return work(*arguments)
        if pays and self.owed:  # what was dropped has room to give
            self.pay()
        lock = self.lock  # whoever forks in here gets another
        try:
            for held in takes:
                try:
                    if held:  # it is not where a finaliser's patience ended
                        if lock is not self.lock:
                            self.refuse_torn()  # a handler forked while this thread waited for the lock
                        self.owner = me
                        self.pending = True
                        answer = work(*arguments)
                        while self.stirred:  # the last look, after which no handler comes in between
                            self.settle()
                        return answer
                    return None  # noqa: TRY300 - one straight way to the end
                except BaseException:  # noqa: PERF203 - the loop's body runs once
                    if held and self.stirred:
                        self.settle()
                    raise
                finally:
                    if held:
                        self.pending = self.owed
                        self.owner = 0
                        lock.release()
        finally:
            if pays and (self.owed or self.stirred):
                try:
                    self.pay()
                except BaseException:
                    self.pay()  # whoever was interrupted before or in the middle of paying goes on; then it is raised
                    raise

    def change(self, decide: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:  # noqa: C901
        """Decide, then publish. Whoever was interrupted by an operation of its own thread decides anew.

        The second of the package's two tricks: CPython delivers signals and switches threads after calls and at
        backward jumps. Between the comparison and the end of the call that publishes there is neither.
        """
        while True:
            version = self.version
            change = Change()
            try:
                answer = decide(change, *arguments)
            except Exception:
                if self.version == version or self.torn:
                    raise
                continue  # it met what an operation of its own thread changed meanwhile
            if not (change.stores or change.debts or change.stirred):
                if self.version == version:
                    return answer
                continue
            change.stores.append((self, "version", version + 1))
            made: Iterator[object] = starmap(setattr, change.stores)  # `object.__setattr__` would make a tuple in there
            if change.debts:
                made = chain(map(self.owed.append, change.debts), made)
            if change.stirred:
                made = chain(map(self.stirred.append, change.stirred), made)
            if change.pushes is not None:
                made = chain(starmap(heappush, change.pushes), made)
            if self.version == version:
                self._publish(made)
                return answer
            if self.torn:
                self.torn = False
                self.refuse_torn()

    def settle(self) -> None:
        """Look at the lines that were stirred, until none of them can be served."""
        stirred = self.stirred
        while stirred:
            try:
                account = stirred[0]
                while self._serve(self, account):
                    pass
                stirred.remove(account)  # after it was looked at: an interrupt leaves it
            except (IndexError, ValueError):  # noqa: PERF203 - a handler of this thread has looked at it meanwhile
                continue

    # ------------------------------------------------------------------ what is owed

    def pay(self) -> None:
        """Ring, release what was dropped, call back. An interrupt is raised after everything else was done."""
        mine = teller()
        before = mine.busy
        calls_back = self not in before  # else the call of this that runs further out goes on with what is to be told
        busy = mine.busy = (*before, self) if calls_back else before
        stopped: list[BaseException] = []
        try:  # around a call: on CPython 3.13 the end of a loop in here would not be covered
            self._pay(mine, calls_back, stopped)
        finally:  # no branch in here: CPython 3.10 would deliver an interrupt at its jump
            found = mine.busy
            mine.busy = (found, before)[calls_back]
        if calls_back and found is not busy:  # a callback switched to another greenlet, which is still calling back
            mine.busy = tuple(one for one in found if one is not self)
        if calls_back and self.owed and any(one._teller is mine.me for one in self.owed.copy()):
            self.pay()  # a handler of this thread came in at the last look
        if stopped:
            try:
                raise stopped[0]
            finally:
                stopped.clear()  # it holds this frame, and by that whatever the caller was making

    def _pay(self, mine: Teller, calls_back: bool, stopped: list[BaseException]) -> None:  # noqa: FBT001
        """Pay all that this thread may pay. Note the interrupts."""
        if self.stirred:  # by a handler that came in between the last look and the release of the lock (3.10)
            self.run(self.locked, OWE, int)
        failed: list[object] = []
        paid = True
        while paid and self.owed:
            paid = False
            for debt in self.owed.copy() if len(self.owed) < 2 else self.debts():
                whose = debt._teller
                if whose is not None and not (calls_back and (whose is mine.me or whose() is None)):
                    continue  # the thread that owes a callback makes it; for one that has ended, anybody does
                paid = True
                try:
                    debt._pay(self.locked)
                    try:  # noqa: SIM105 - this is quicker
                        self.owed.remove(debt)
                    except ValueError:  # another thread has already removed it
                        pass
                except BaseException as error:
                    if any(one is debt for one in failed):
                        raise  # for the second time: the next operation tries again
                    failed.append(debt)
                    stopped.append(error)

    def debts(self) -> Iterable[Any]:
        """Return what is owed: bells and what was dropped first, since a callback may take long or wait for them."""
        return sorted(self.owed.copy(), key=_is_told)  # the copy in one step of C, where no finaliser can add to it

    def pay_waiters(self) -> None:
        """Release what was dropped for those who wait, and ring for them. It calls nobody back.

        For finalisers, which may run where their thread holds another lock: so it waits for this one for a second at
        most, which is a thousand times what any straight run takes. Where somebody is inside, they look at what is owed
        when they leave. What listeners are to hear of it is told by whoever comes next, since this thread may never
        come here again.
        """
        while self.owner != threading.get_ident():
            debt = next(iter(self.debts()), None)
            if debt is None or debt._teller is not None:
                break
            seconds = 0.0 if self.owner else 1.0
            debt._pay(starmap(self.lock.acquire, ((True, seconds),)))
            if not debt._paid():
                break
            try:  # noqa: SIM105 - as above
                self.owed.remove(debt)
            except ValueError:  # another thread has already removed it
                pass
        mine = teller()
        tells = self in mine.busy or self.owner == threading.get_ident()  # this thread goes on here, further out
        for telling in () if tells else self.debts():
            if telling._teller is mine.me:
                telling._teller = _nobody

    # ------------------------------------------------------------------ forks

    def check_fork(self) -> None:
        """Notice a fork in C that ran none of Python's hooks."""
        if not HERE[0]:
            notice_fork()

    def refuse_torn(self) -> NoReturn:
        """End an operation in whose middle a signal handler forked, in the child."""
        raise PoolForked(_forked(self.root.terms[2]))

    def fork(self, *, alone: bool = False) -> None:
        """Refuse to spend, in a forked child: this copy's parent goes on spending the same budget.

        The lock is new, since a thread that is not in this process may hold the old one. The family is whole:
        ``os.fork()`` runs while the other threads wait for the GIL or, on builds without it, have been stopped; both
        only where a straight run has not begun or is over. Those who waited are refused. Threads are woken: a signal
        handler may fork while its own thread waits. Tasks are not: their event loop must not run in two processes, and
        a wake-up would go through a pipe that the parent shares. `alone`: no other thread has begun in this process.
        """
        lock = _new_lock()
        locked = taking(lock)
        name = self.root.terms[2]
        owed = deque([debt for debt in self.owed.copy() if debt._teller is None or debt._teller() is teller()])
        pid = os.getpid()
        spending = starmap(_refuse_forked, repeat((name,)))
        before, torn = self.lock, self.torn or self.owner == threading.get_ident()  # the hook runs twice
        # One straight run: whoever interrupts it finds all of the old or all of the new.
        self.lock = lock
        self.locked = locked
        self.spending = spending
        self.owner = 0
        self.owed = owed
        self.pending = owed
        self.torn = torn
        self.version += 1
        self.pid = pid
        if alone and not torn:  # else the operation that the handler interrupted lets go of it
            try:  # noqa: SIM105 - it may be free
                before.release()  # this thread may be waiting for one that is not in this process
            except RuntimeError:
                pass
        self.stirred.clear()
        line = self.root.line
        for waiter in line.waiting() if line is not None else ():
            waiter.refusal = lambda: PoolForked(_forked(name))
            waiter.state = WITHDRAWN
            if isinstance(waiter.bell, ThreadBell):
                waiter.bell.ring()
            for account in waiter.scope._chain:
                self.change(_no_line, (account,))


def _no_line(change: Change, account: Account) -> None:
    change.gate(account, demand=NOTHING)
    change.set(account, "line", None)


class Register:
    """Things of a family that are alive, in the order of making. To add one costs the same however many there are."""

    __slots__ = ("_alive", "_cleaning", "_refs")

    def __init__(self) -> None:
        self._cleaning = False
        self._refs: list[ref[Any]] = []
        self._alive = 0

    def add(self, thing: Any) -> None:
        """Know a thing for as long as it lives; twice does no harm."""
        self._refs.append(ref(thing))
        count = len(self._refs)
        if count > 2 * self._alive + 64 and not self._cleaning:
            self._cleaning = True  # a handler in here adds at the end, and leaves the cleaning to this one
            try:
                alive = [one for one in self._refs[:count] if one() is not None]
                self._refs[:count] = alive
                self._alive = len(alive)
            finally:
                self._cleaning = False

    def __iter__(self) -> Iterator[Any]:
        return iter({id(thing): thing for one in tuple(self._refs) if (thing := one()) is not None}.values())


def notice_fork() -> None:
    """Refuse to spend with every family that was made in another process. It may be repeated."""
    pid = os.getpid()
    for family in list(families.values()):
        if family.pid != pid:
            family.fork()
    HERE[0] = 1  # last, so that an operation that is interrupted here leaves the rest to the next one


_RUN = Family.run.__code__


def inside() -> bool:
    """Return whether this thread is inside an operation of any family.

    For finalisers. It looks at the frames of its own thread, so it takes as long however many pools there are.
    """
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not _RUN:
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None


def _nobody() -> None:
    pass


def _is_told(debt: Any) -> bool:
    return debt._teller is not None


def _refuse_forked(name: str | None) -> NoReturn:
    raise PoolForked(_forked(name))


def _forked(name: str | None) -> str:
    named = "" if name is None else f" {name!r}"
    return (
        f"this copy of pool{named} came by os.fork() from the process that owns the budget, and does not spend it a "
        "second time: record in that process, make a BudgetPool of this process's own, or call detach() to make this "
        "copy a separate budget (snapshot() works without). Many processes share one budget through the stores"
    )
