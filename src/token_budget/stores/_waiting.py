"""Waiting for room: how each gets its turn, among all who wait in all processes.

Whoever does not fit takes a ticket in the store, and waits at one scope at a time: the first of its chain that has no
room for it, or where somebody older waits. The store lets nobody with a later ticket get room there before it. So the
order among processes is the store's. In this process only the oldest at each scope tries to get room, since the others
could not. Three see to it that it tries when room comes:

* The watcher, a thread that lives while anybody waits, has the store tell it (`Store.watch`), and lets every oldest one
  try now and then in any case. It also reads the rows of the others' scopes, at least once a second: who waits for
  what can never come is refused.
* What gives room back in this process calls `Line.stir`: then the family's hand lets the oldest there try at once.
* Whoever leaves stirs likewise, for the sake of the next.

Of a pool and a reservation (`_pool.py`, `_reservation.py`) this uses ``pool._attempt(reservation, wait=...)``, one
`Store.reserve`, which tells "reserve" when it is granted; ``pool._refused(answer, ...)``, which tells "refusal" and
returns the error; ``reservation._abandon()``, which notes that nothing is held; and ``reservation._leave_to_worker``,
which has the hand cancel the claim.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from itertools import islice
from threading import RLock, get_ident
from typing import Any

from token_budget._bells import ThreadBell, warn_in_an_event_loop
from token_budget._errors import BudgetExceeded, BudgetTimeout, PoolClosed, PoolForked
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError
from token_budget.stores._hand import start_thread
from token_budget.stores._places import BUSY, HELD, LOOK, REFUSED, WAITING, Places, Waiter
from token_budget.stores._store import GRANTED, Answer, Numbers, Scope

_OFTEN = 1.0  # seconds until everybody is looked at again; the watcher waits as long for new ones before it ends
_FEW = 8  # so many places, at most, try again after `LOOK`, more of them after `_OFTEN`
_PACE = 0.002  # seconds between rounds of the watcher in which nobody gets anything: a store may speak too early
_READS = 16  # rows that are read at a time, so that those who may get room do not wait for it
_MOMENT = 1.0  # seconds that an interrupted thread waits for the hand to give back
_logger = logging.getLogger("token_budget")

_SERVES = (
    "a callback that a pool calls in a thread of its own cannot wait for room: nobody would be served meanwhile. "
    "Reserve with timeout=0 there, or in another thread"
)


class Line:
    """Those who wait in this process for room in the scopes of one root."""

    def __init__(self, family: Any) -> None:
        self._family = family
        self._begin()

    def _begin(self) -> None:
        self._places = Places()
        self._stirred: deque[Sequence[Scope] | None] = deque()
        self._stirring = False  # whether the hand has been told
        self._watcher: ThreadBell | None = None  # wakes the watcher while nobody waits; None where there is none
        self._watching: int | None = None  # the watcher's thread

    # ------------------------------------------------------------------ what others call

    def wait(self, reservation: Any, timeout: float | None, answer: Answer) -> None:
        """Block until the reservation is granted. ``answer`` is the refusal of the first attempt; see `crowded`.

        Raises BudgetExceeded (to wait is in vain), BudgetTimeout, PoolClosed, BudgetUnavailable; the refusal is told.
        Warns (RuntimeWarning) in a thread whose event loop runs.
        """
        if self.serves():
            raise RuntimeError(_SERVES)
        waiter, epoch = Waiter(reservation, ThreadBell(), timeout), self._family.here()
        try:
            if self.arrive(waiter, answer):
                warn_in_an_event_loop(4)
                while waiter.state in {WAITING, BUSY} and epoch == self._family.epoch:
                    rung = waiter.bell.wait(None if waiter.late else waiter.left())
                    if (waiter.late or not rung) and epoch == self._family.epoch:
                        self.leave(waiter)
            if epoch != self._family.epoch:  # a handler of this thread forked
                waiter.error = PoolForked("this process was forked while a call waited for room here: reserve again")
            waiter.outcome()
        except BaseException:
            if self.abandon(waiter):
                self._family.hand.finish(_MOMENT)
            raise

    def stir(self, chain: Sequence[Scope] | None = None) -> None:
        """Let those who wait try: room may have come back in these scopes (None: anywhere).

        For what gives room back, after its step. It does not block, and costs next to nothing while nobody waits.
        """
        if self._places.needs:
            self._stirred.append(chain)
            if not self._stirring:
                self._stirring = True
                self._family.hand.drop(self._serve_stirred)

    def crowded(self, pool: Any, tokens: int, nanos: int) -> bool:
        """Return whether the first attempt of one that may wait is to take a ticket at once.

        Where others wait already, it is known that to wait is not in vain, and a first one without would only cost.
        """
        return self._places.crowded(pool._chain, tokens, nanos)

    def serves(self) -> bool:
        """Return whether this is a thread that serves those who wait."""
        return get_ident() in {self._watching, self._family.hand.thread}

    def count(self, scope: Scope) -> int:
        """Return how many wait in this process and need a scope."""
        return self._places.count(scope)

    def close(self) -> None:
        """Refuse all who wait: this process lets go of the store."""
        for waiter in self._places.all():
            if self._places.take(waiter):
                waiter.reservation._leave_to_worker("released", "release")
                closed = f"pool {waiter.pool.name!r} was closed in this process while a call waited for room in it"
                self._end(waiter, PoolClosed(closed))

    def forked(self) -> None:
        """In a forked child: nobody waits. A thread that forked in a signal handler, while it waited, is woken."""
        self._places.lock = RLock()  # another thread of the parent may have held the old one
        waiters = self._places.all()
        self._begin()
        for waiter in waiters:
            if isinstance(waiter.bell, ThreadBell):
                waiter.bell.ring()

    # ------------------------------------------------------------------ one who waits

    def arrive(self, waiter: Waiter, answer: Answer | None, *, wait: bool = True) -> bool:
        """Take a ticket and join the line. Return whether it has to wait: it may be granted now, or gone.

        ``answer`` is the refusal of the first attempt, None where it is yet to be made. Without ``wait`` there is no
        second.
        """
        if not self._places.begin(waiter):
            return False
        pool, reservation = waiter.pool, waiter.reservation
        try:
            refused: Any = answer
            if answer is None:
                crowded = wait and self.crowded(pool, waiter.tokens, waiter.nanos)
                refused = pool._attempt(reservation, wait=crowded)
            if refused.kind != GRANTED and not wait:
                raise self._refusal(waiter, refused, BudgetExceeded)
            if refused.kind != GRANTED and not refused.ticket:
                self._check(waiter, refused)  # before it takes a ticket: newcomers would be refused for its sake
                refused = pool._attempt(reservation, wait=True)
            if refused.kind != GRANTED:
                refused = self._check(waiter, refused)
            if refused.kind == GRANTED:
                self._grant(waiter)
                return False
        except (BudgetExceeded, PoolClosed, BudgetUnavailable, StoreError):
            # It holds nothing. A ticket that could not be given up is passed over.
            self._places.end(waiter, REFUSED)
            raise
        if not self._places.put(waiter, refused)[0]:
            self._give_back(waiter)
            return False
        self._wake_watcher()
        if self._places.is_oldest(waiter):  # room that came between the refusal and now has stirred nobody
            self.stir(waiter.chain)
        return True

    def _check(self, waiter: Waiter, answer: Answer) -> Any:
        """Return a refusal, if to wait is not in vain by its rows; else raise, unless the call passes in an outage."""
        if waiter.in_vain(waiter.chain, answer.rows):
            answer = self._give_up_ticket(waiter) if answer.ticket else answer
            if answer.kind != GRANTED:
                raise self._refusal(waiter, answer, BudgetExceeded)
        return answer

    def leave(self, waiter: Waiter) -> None:
        """End the waiting of one whose time is up; nothing if it has ended. Who has taken it rings its bell."""
        waiter.late = True
        if self._places.take(waiter):
            self._leave(waiter, BudgetTimeout)

    def _leave(self, waiter: Waiter, kind: type[BudgetExceeded]) -> None:
        """End the waiting of one that this thread has taken, with a refusal."""
        error: BaseException | None = None
        try:
            answer = self._give_up_ticket(waiter)
            if answer.kind != GRANTED:
                error = self._refusal(waiter, answer, kind)
        except Exception as raised:  # noqa: BLE001 - it is raised where it waits
            waiter.reservation._leave_to_worker("released", "release")
            error = raised
        if error is None:
            self._grant(waiter)
        else:
            self._end(waiter, error)

    def abandon(self, waiter: Waiter) -> bool:
        """Note that nobody waits for it any more. Return whether the hand has something to give back.

        It does no step of the store itself: a finaliser may call it.
        """
        mine, place = self._places.leave(waiter)
        if mine:
            self._give_back(waiter)
        if place is not None:
            self.stir((place,))
        return mine

    def _give_back(self, waiter: Waiter) -> None:
        """Have the hand cancel the claim of one that is gone."""
        waiter.reservation._leave_to_worker("released", "release")

    def _give_up_ticket(self, waiter: Waiter) -> Any:
        answer = self._family.ask(self._family.store.leave, waiter.chain, waiter.reservation._key)
        if answer.kind == GRANTED:  # and nobody has heard of it: the next attempt hears
            answer = waiter.pool._attempt(waiter.reservation)
        return answer

    def _refusal(self, waiter: Waiter, answer: Answer, kind: type[BudgetExceeded]) -> Exception:
        """Tell a refusal, and return its error; the reservation holds nothing."""
        waiter.reservation._abandon()
        error: Exception = waiter.pool._refused(answer, waiter.tokens, waiter.nanos, kind)
        return error

    def _end(self, waiter: Waiter, error: BaseException) -> None:
        """End the waiting of one that this thread has taken, with an error."""
        place = self._places.end(waiter, REFUSED, error)
        waiter.bell.ring()
        if place is not None:
            self.stir((place,))

    def _grant(self, waiter: Waiter) -> None:
        """End the waiting of one that this thread has taken and that has got its room."""
        self._places.end(waiter, HELD)
        if waiter.state is not HELD:
            self._give_back(waiter)
        elif not waiter.bell.ring():  # its loop is closed: nobody is there to use it
            self.abandon(waiter)

    # ------------------------------------------------------------------ letting others have room

    def _serve_stirred(self) -> None:
        """Let the oldest try wherever room may have come back. The hand does it."""
        self._stirring = False
        places: dict[Scope, None] = {}
        while self._stirred:
            chain = self._stirred.popleft()
            places.update(dict.fromkeys([place for place, _ in self._places.oldest()] if chain is None else chain))
        self._serve(places)

    def _serve(self, places: Iterable[Scope]) -> bool:
        """Let the oldest at these places try, and those after them. Return whether anybody has got something."""
        served = False
        for place in places:
            while (waiter := self._places.take_oldest(place)) is not None:
                again, ended = self._try(waiter)
                served = served or ended
                if not again:
                    break
        return served

    def _try(self, waiter: Waiter) -> tuple[bool, bool]:
        """Let one try that this thread has taken. Return whether the oldest there may try now, and whether it ended."""
        began = time.monotonic()
        try:
            answer = waiter.pool._attempt(waiter.reservation, wait=True)
            in_vain = answer.kind != GRANTED and waiter.in_vain(waiter.chain, answer.rows)
        except BudgetUnavailable as error:
            self._fail(waiter, began, error)
            return False, True
        except Exception as error:  # noqa: BLE001 - a closed pool, a user's clock: it is raised where it waits
            waiter.reservation._leave_to_worker("released", "release")
            self._end(waiter, error)
            return True, True
        if answer.kind == GRANTED:
            self._grant(waiter)
            return True, True
        if in_vain:
            self._leave(waiter, BudgetExceeded)
            return True, True
        waits, again = self._places.put(waiter, answer)
        if not waits:
            self._give_back(waiter)
        elif waiter.late:
            waiter.bell.ring()
        self._look(waiter.chain, answer.rows)
        return again, not waits

    def _fail(self, waiter: Waiter, began: float, error: BudgetUnavailable) -> None:
        """End the waiting of all who came before a try that the store did not answer within its time."""
        others = [one for one in self._places.all() if one.since < began and self._places.take(one)]
        for one in (waiter, *others):
            one.reservation._leave_to_worker("released", "release")  # its ticket, once the store is back
            self._end(one, type(error)(*error.args))

    def _look(self, chain: Sequence[Scope], rows: Sequence[Numbers]) -> None:
        """Refuse who waits in vain by rows that were just seen."""
        for waiter in self._places.in_vain(chain, rows):
            if self._places.take(waiter):
                self._leave(waiter, BudgetExceeded)

    # ------------------------------------------------------------------ the watcher

    def _wake_watcher(self) -> None:
        new = ThreadBell()
        with self._places.lock:
            bell = self._watcher
            if bell is None:
                self._watcher = new
        if bell is not None:
            bell.ring()
            return
        try:
            start_thread(partial(self._watch, new), f"token_budget {self._family.store.name} waiting")
        except BaseException:
            self._watcher = None
            raise

    def _watch(self, bell: ThreadBell) -> None:
        """What the watcher's thread does, until nobody waits."""
        self._watching = get_ident()
        may_fit: Collection[Any] | None = None
        while True:
            if self._places.needs:
                try:
                    may_fit = self._round(may_fit, bell)
                except Exception:
                    _logger.exception("the thread that watches for room goes on after an error")
                    bell.wait(LOOK)
            elif not bell.wait(_OFTEN):
                with self._places.lock:
                    if not self._places.needs:
                        self._watcher = self._watching = None
                        return

    def _round(self, may_fit: Collection[Any] | None, bell: ThreadBell) -> Collection[Any] | None:
        """Let those try who may fit (None: all) or are due; then have the store tell who may fit."""
        now = time.monotonic()
        oldest = self._places.oldest()
        patience = LOOK if len(oldest) <= _FEW else _OFTEN
        to_try = [
            place
            for place, one in oldest
            if may_fit is None or one.reservation._key in may_fit or now - one.looked >= patience or one.due(now) <= 0
        ]
        served = self._serve(to_try)
        self._look_at_others(now)
        if to_try and not served:
            bell.wait(_PACE)
        now = time.monotonic()
        seconds = min([one.due(now) for _, one in self._places.oldest()], default=0.0)
        if seconds <= 0:
            return ()
        try:
            said: Collection[Any] | None = self._family.quietly(self._family.store.watch, self._places.heads, seconds)
        except (BudgetUnavailable, StoreError):  # who tries next meets it too, and is told
            return None
        return () if said is None and time.monotonic() - now >= seconds else said

    def _look_at_others(self, now: float) -> None:
        """Read the rows of scopes that were not seen for a while, for those who are nowhere the oldest."""
        for chain in islice(self._places.unseen(now, _OFTEN), _READS):
            try:
                rows = self._family.ask(self._family.store.read, chain)
            except (BudgetUnavailable, StoreError):  # who tries next meets it too, and is told
                return
            self._look(chain, rows)


# ---------------------------------------------------------------------- tasks
