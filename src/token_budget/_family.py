"""Family: the one lock of a pool and all its descendants, and every operation that is more than a straight run.

`BudgetPool` does the common thing, an operation on a pool that stands alone, in a few lines of its own. Everything else
comes here: operations that count against several scopes, waiting, windows, events, and what was dropped.

Here the lock is held over loops and calls, where CPython may deliver an exception or run a signal handler. Two rules
keep that harmless:

* **The journal.** An operation only looks and computes until it has decided. Then it publishes its whole change by one
  store, `journal = ...`, and only then makes it (`_apply`): every account once, told by its `mark`, which is stored in
  the same straight run as its numbers. Whoever is interrupted before the store has changed nothing. Whoever is
  interrupted after it leaves the journal to be finished: at once by its own `except`, or by who takes the lock next.
* **The owner.** A signal handler or a finaliser of the thread that holds the lock finds its own thread in `owner`, and
  does not wait for itself: a snapshot is read as it stands (every account is whole at every moment); a release, a
  commit and a forced record are left to the end of the operation that it interrupted (`dropped`, `late`); what would
  spend anew raises RuntimeError.

While the lock is free: `journal` is None; no waiter fits at the scope where it is the oldest that waits ("whenever the
lock is let go, the head of the queue does not fit"); and none waits for what can never come. An operation that changes
an account names it in `touched`, and `_serve` restores the rule before the lock is let go.
"""

# pyright: reportPossiblyUnboundVariable=false
# pyright cannot know that the body of `for _ in self.locked` runs exactly once.

from __future__ import annotations

import sys
import threading
from collections import deque
from itertools import repeat, starmap
from threading import get_ident
from weakref import ref

from token_budget._errors import BudgetExceeded, BudgetOverrun, BudgetTimeout, PoolClosed, PoolForked
from token_budget._events import BudgetEvent
from token_budget._money import UNBOUNDED
from token_budget._snapshot import BudgetSnapshot
from token_budget._waiting import GRANTED, REFUSED, WAITING, WITHDRAWN, Queue, Waiter

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, NoReturn

    from token_budget._events import Kind
    from token_budget._keyed import KeyedPools
    from token_budget._pool import BudgetPool, Reservation
    from token_budget._window import Window

    Chain = tuple["Account", ...]
    Callback = Callable[[BudgetEvent], object]

_new = object.__new__
CLOSED = -1  # stands for the cap of a closed pool: nothing fits
NEVER = float("inf")
COMMITTED = "committed"
RELEASED = "released"
DROPPED = "dropped"  # released because nobody held it any more

# The seam through which tests put a lock of their own. CPython 3.10 also delivers signals at taken conditional jumps,
# which the refusing branch of an operation needs: a handler may then find the lock held by its own thread, between two
# operations of that thread as it were, and may enter.
_new_lock: Callable[[], Any] = threading.RLock if sys.version_info < (3, 11) else threading.Lock


def taking(lock: Any) -> Iterator[object]:
    """Return an endless iterator whose every step takes the lock: the one trick of the package.

    ``for _ in self._locked: try: ... finally: self._lock.release()``, then ``break``, does what ``with lock:`` does.
    Every operation is built on it, for `with` looks up and calls two methods and makes the whole of `record` a third
    slower (benchmarks/README.md).
    ``lock.acquire()`` before a ``try`` would be as fast and wrong: an exception delivered between the two (Ctrl-C, a
    cancelled thread) leaves the lock held for ever. Between a step of an iterator written in C and the ``try`` in the
    loop's body CPython delivers none. The body runs once: it ends in ``return`` or ``break``.
    """
    return starmap(lock.acquire, repeat(()))


class Account:
    """What one scope may claim and has claimed. Its family's lock guards all of it.

    On each axis ``0 <= reserved <= claimed``, where claimed is used + reserved, and ``claimed <= limit``, but for
    spends that had happened already.
    """

    __slots__ = (
        "_epoch",
        "_in_flight",
        "_mark",
        "_name",
        "_nano_limit",
        "_nanos_claimed",
        "_nanos_reserved",
        "_number",
        "_parent",
        "_period_end",
        "_queue",
        "_terms",
        "_token_limit",
        "_tokens_claimed",
        "_tokens_reserved",
        "_watch",
        "_window",
    )

    def _open_account(
        self, token_cap: int | None, nano_cap: int | None, name: str | None, window: Window | None
    ) -> None:
        start, end = (None, None) if window is None else window.period(window.clock())
        # The terms are what people are shown, the limits what amounts are compared with.
        self._terms = (token_cap, nano_cap, name, start, end)
        self._name = name
        self._token_limit = UNBOUNDED if token_cap is None else token_cap
        self._nano_limit = UNBOUNDED if nano_cap is None else nano_cap
        self._window = window
        self._period_end: float = NEVER if end is None else end
        self._tokens_claimed = 0
        self._tokens_reserved = 0
        self._nanos_claimed = 0
        self._nanos_reserved = 0
        self._in_flight = 0
        self._mark = 0  # of the last change that was made here
        self._epoch = 0  # counts resets and roll-overs: a threshold fires once in each
        self._number = 0  # the order of making, for the tree
        self._parent: Account | None = None  # the scope above, in the tree
        self._queue: Queue | None = None  # who waits for room, None while nobody does
        self._watch: Watch | None = None  # who wants to hear, None while nobody does

    def _shown(self, children: tuple[BudgetSnapshot, ...] = ()) -> BudgetSnapshot:
        """Return a snapshot. For whoever holds the lock, or is a signal handler of its thread."""
        snapshot = _new(BudgetSnapshot)
        snapshot._state = (
            self._tokens_claimed,
            self._tokens_reserved,
            self._nanos_claimed,
            self._nanos_reserved,
            self._in_flight,
            self._terms,
            children,
        )
        return snapshot


class Threshold:
    """A share of the caps, in parts of 10**9, at which to call back, once in each epoch of the account."""

    __slots__ = ("callback", "fired", "share")

    def __init__(self, share: int, callback: Callback) -> None:
        self.share = share
        self.callback = callback
        self.fired = -1  # the epoch in which it fired last

    def reached(self, account: Account) -> bool:
        """Whether what is claimed has come to the share of a cap."""
        token_cap, nano_cap = account._terms[:2]
        return (token_cap is not None and account._tokens_claimed * 10**9 >= token_cap * self.share) or (
            nano_cap is not None and account._nanos_claimed * 10**9 >= nano_cap * self.share
        )


class Watch:
    """Who wants to hear of one account. Both tuples are replaced, never changed."""

    __slots__ = ("subscribers", "thresholds")

    def __init__(self) -> None:
        self.subscribers: tuple[tuple[Callback], ...] = ()  # each a subscription of its own
        self.thresholds: tuple[Threshold, ...] = ()


class Family:
    """The lock of a pool and all that descend from it."""

    __slots__ = (
        "alone",
        "dropped",
        "granted",
        "groups",
        "handles",
        "idle",
        "journal",
        "late",
        "living",
        "lock",
        "locked",
        "marks",
        "news",
        "opened",
        "owner",
        "quiet",
        "spending",
        "telling",
        "touched",
        "void",
        "waiters",
        "watched",
        "windowed",
    )

    def __init__(self) -> None:
        # The lock guards every account of the family, the `_state` of every reservation, and the fields below it.
        # `locked` takes it for anyone, `spending` for whoever spends: the same, but in a forked child.
        self.lock = _new_lock()
        self.locked = taking(self.lock)
        self.spending = self.locked
        self.opened = object()  # the `_state` of reservations that are in flight; `detach` makes a new one
        self.owner = 0  # the thread that is inside, where one is; read by anyone, who can only find itself
        self.void = Account()  # fills up a chain of two to three
        self.void._open_account(None, None, None, None)
        self.marks = 0  # counts changes, waiters and accounts
        self.journal: tuple[Any, ...] | None = None
        self.touched: Chain = ()
        self.waiters: dict[int, Waiter] = {}
        self.news: list[tuple[Callback, BudgetEvent]] = []  # what is to be told once the lock is free
        self.quiet = True  # nobody waits or listens, and there is no window
        self.alone = True  # whether there is but one pool
        self.watched = False  # whether anybody ever subscribed
        self.windowed = False  # whether any account has a window
        self.handles: list[ref[BudgetPool]] = []  # the pools but the first, those that are gone included for a while
        self.groups: list[ref[KeyedPools]] = []  # the groups of keyed pools, likewise
        self.living = 0  # how many handles there were when they were last looked through
        # Filled by anyone in one step each, and emptied by whoever comes next. Reservations that were collected
        # unsettled wait to be released: their finaliser may run anywhere, also where its own thread holds the lock.
        # And waiters that were given room wait for their bells.
        self.dropped: deque[Reservation] = deque()
        # What a finaliser or signal handler recorded inside of an operation of its own thread: (chain, a reservation
        # that tells whether it is done, tokens, nanodollars).
        self.late: deque[tuple[Chain, Reservation, int, int]] = deque()
        self.idle: object = self.dropped  # what the first pool's `_pending` is while nobody is inside: see `regate`
        self.granted: deque[Waiter] = deque()
        # Of each thread that is calling back, what it has still to tell; touched by that thread alone.
        self.telling: dict[int, deque[tuple[Callback, BudgetEvent]]] = {}

    # ------------------------------------------------------------------ the one way in

    def run(self, takes: Iterator[object], chain: Chain, decide: Callable[..., Any], *arguments: Any) -> Any:
        """Take the lock, roll over, decide, let go; then ring bells and call back. Return what `decide` does."""
        due = self._due(chain) if self.windowed else ()
        return self._run(due, takes, chain, decide, *arguments)

    def _run(self, due: Any, takes: Iterator[object], chain: Chain, decide: Callable[..., Any], *arguments: Any) -> Any:
        me = get_ident()
        if self.owner == me:
            raise RuntimeError(
                "this thread is inside this pool already, or one of its family: a signal handler, finaliser or trace "
                "function that interrupts an operation of a pool with scopes, windows, waiters or subscribers may call "
                "snapshot(), release(), commit() and record(force=True), but may not spend anew: do it later"
            )
        news: Any = ()
        try:
            if self.dropped or self.late:
                self._reclaim()
            lock = self.lock
            root: Any = chain[-1]
            for _ in takes:
                try:
                    self.owner = me
                    root._pending = True  # its own operations do not look for an owner
                    if self.journal is not None or self.touched:
                        self._finish()
                    if due:
                        self._roll_over(due)
                    answer = decide(chain, *arguments)
                    if self.touched:
                        self._finish()
                    if self.news:
                        news, self.news = self.news, []
                    return answer  # noqa: TRY300 - one straight way to the end
                except BaseException:  # noqa: PERF203 - the loop's body runs once
                    self._finish()
                    raise
                finally:
                    root._pending = self.idle if self.journal is None and not self.touched else True
                    self.owner = 0
                    lock.release()
        finally:
            if self.granted or self.dropped or self.late or news:
                self._after(news)

    def _after(self, news: Iterable[tuple[Callback, BudgetEvent]]) -> None:
        """Do what must be done without the lock: wake, release what was dropped meanwhile, call back."""
        try:
            self._ring()
            self._reclaim()
        finally:
            self._ring()  # also when an interrupt came in between
            if news:
                self._tell(news)

    def _tell(self, news: Iterable[tuple[Callback, BudgetEvent]]) -> None:
        """Call back. What a callback causes in turn is told after what caused it has been told to all."""
        me = get_ident()
        waiting = self.telling.get(me)
        if waiting is not None:  # inside of a callback: whoever called that goes on with these
            waiting.extend(news)
            return
        self.telling[me] = waiting = deque(news)
        stopped: BaseException | None = None
        try:
            while waiting:
                callback, event = waiting.popleft()
                try:
                    callback(event)
                except Exception:
                    import logging

                    logging.getLogger("token_budget").exception("a subscriber raised on %r", event)
                except BaseException as error:  # noqa: BLE001 - Ctrl-C, a cancellation: the others hear it first
                    stopped = stopped or error
        finally:
            del self.telling[me]
        if stopped is not None:
            try:
                raise stopped
            finally:
                stopped = None  # it holds this frame, and by that whatever the caller was making

    def _ring(self) -> None:
        """Wake those who were given room or refused. One who cannot hear it any more gives its room back."""
        granted = self.granted
        while granted:
            try:
                waiter = granted[0]
                if not waiter.bell.ring():
                    self._quietly(self._abandon, waiter.chain, waiter)
                granted.remove(waiter)
            except (IndexError, ValueError):  # noqa: PERF203 - another thread was faster: look again
                continue

    def _reclaim(self) -> None:
        """Record what came too early, release what was dropped.

        Several threads may do it at once, and any may be interrupted anywhere: each leaves its list only after it is
        done, which is done once whoever asks.
        """
        while self.late:
            try:
                spend = self.late[0]
                self._quietly(self._record_late, spend[0], *spend[1:])
                self.late.remove(spend)
            except (IndexError, ValueError):  # noqa: PERF203 - another thread was faster: look again
                continue
        dropped = self.dropped
        while dropped:
            try:
                reservation = dropped[0]
                self._quietly(self._release, reservation._pool._scopes(), reservation, "drop")
                dropped.remove(reservation)
            except (IndexError, ValueError):  # noqa: PERF203 - another thread was faster: look again
                continue

    def _quietly(self, decide: Callable[..., Any], chain: Chain, *arguments: Any) -> None:
        """Do something under the lock, and leave bells and callbacks to the caller and to who comes next."""
        me = get_ident()
        lock = self.lock
        root: Any = chain[-1]
        for _ in self.locked:
            try:
                self.owner = me
                root._pending = True
                self._finish()
                decide(chain, *arguments)
                self._finish()
            except BaseException:
                self._finish()
                raise
            finally:
                root._pending = self.idle if self.journal is None and not self.touched else True
                self.owner = 0
                lock.release()
            break

    def prod(self, root: Any) -> None:
        """Release what was dropped for those who wait; if somebody is inside, they do it when they leave.

        For finalisers, which may run where their thread holds another lock: so it waits for this one for a second at
        most, which is a thousand times what any straight run takes. It calls no subscriber.
        """
        me = get_ident()
        while self.dropped and self.owner != me:
            lock = self.lock
            for free in starmap(lock.acquire, ((True, 1.0 if self.owner == 0 else 0.0),)):
                try:
                    if free:
                        self.owner = me
                        root._pending = True
                        self._finish()
                        while self.dropped:
                            reservation = self.dropped[0]
                            self._release(reservation._pool._scopes(), reservation, "drop")
                            self._finish()
                            self.dropped.remove(reservation)
                except (IndexError, ValueError):  # noqa: PERF203 - `_reclaim`, in another thread, was faster
                    pass
                finally:
                    if free:
                        root._pending = self.idle if self.journal is None and not self.touched else True
                        self.owner = 0
                        lock.release()
            if not free:
                break
        self._ring()

    # ------------------------------------------------------------------ changes

    def _publish(
        self,
        chain: Chain,
        tokens: int,
        tokens_held: int,
        nanos: int,
        nanos_held: int,
        calls: int,
        reservation: Reservation | None = None,
        state: object = None,
        waiter: Waiter | None = None,
        outcome: str = "",
    ) -> None:
        """Make a change: add to each account of the chain, and set the states that go with it."""
        if self.waiters:
            self._touch(chain)
        self.marks = mark = self.marks + 1
        self.journal = (
            mark, chain, tokens, tokens_held, nanos, nanos_held, calls, reservation, state, waiter, outcome,
        )  # fmt: skip
        self._apply()

    def _touch(self, accounts: Chain) -> None:
        """Note that these have changed, each once."""
        touched = self.touched
        self.touched = (*touched, *[account for account in accounts if account not in touched]) if touched else accounts

    def _apply(self) -> None:
        """Make the change that the journal holds; whatever of it is made already stays as it is."""
        journal = self.journal
        if journal is None:
            return
        mark, chain, tokens, tokens_held, nanos, nanos_held, calls, reservation, state, waiter, outcome = journal
        for account in chain:
            if account._mark != mark:
                tokens_claimed = account._tokens_claimed + tokens
                nanos_claimed = account._nanos_claimed + nanos
                tokens_reserved = account._tokens_reserved + tokens_held
                nanos_reserved = account._nanos_reserved + nanos_held
                in_flight = account._in_flight + calls
                account._tokens_claimed = tokens_claimed
                account._nanos_claimed = nanos_claimed
                account._tokens_reserved = tokens_reserved
                account._nanos_reserved = nanos_reserved
                account._in_flight = in_flight
                account._mark = mark
        if reservation is not None:
            reservation._state = state
        if waiter is not None:
            waiter.state = outcome
            if outcome is not WITHDRAWN:
                self.granted.append(waiter)
            self._forget(waiter)
        self.journal = None

    def _finish(self) -> None:
        """Leave nothing half done: the change that is published is made, and the rule of the queues holds."""
        self._apply()
        while self.touched:
            self._serve(self.touched[0])
            self.touched = self.touched[1:]

    # ------------------------------------------------------------------ spending

    def record(self, pool: BudgetPool, tokens: int, nanos: int, force: bool) -> None:  # noqa: FBT001
        """See `BudgetPool.record`.

        Over up to three scopes (a user's, a project's, the whole) it is a straight run like that of a pool alone, where
        nobody waits or listens and no window is in the family: a third of what `run` takes (benchmarks/README.md).
        """
        if pool._three is not None and self.quiet and not (force or self.owner or self.dropped):
            first, second, third = pool._three or (pool, self.void, self.void)
            for _ in self.spending:
                try:
                    first_tokens = first._tokens_claimed + tokens
                    first_nanos = first._nanos_claimed + nanos
                    second_tokens = second._tokens_claimed + tokens
                    second_nanos = second._nanos_claimed + nanos
                    third_tokens = third._tokens_claimed + tokens
                    third_nanos = third._nanos_claimed + nanos
                    if (
                        first_tokens <= first._token_limit
                        and first_nanos <= first._nano_limit
                        and second_tokens <= second._token_limit
                        and second_nanos <= second._nano_limit
                        and third_tokens <= third._token_limit
                        and third_nanos <= third._nano_limit
                        and self.quiet
                        and self.journal is None
                    ):
                        first._tokens_claimed = first_tokens
                        first._nanos_claimed = first_nanos
                        second._tokens_claimed = second_tokens
                        second._nanos_claimed = second_nanos
                        third._tokens_claimed = third_tokens
                        third._nanos_claimed = third_nanos
                        return
                finally:
                    self.lock.release()
                break
        error = self.run(self.spending, pool._scopes(), self._record, tokens, nanos, force)
        if error is not None:
            raise error()

    def _record(self, chain: Chain, tokens: int, nanos: int, force: bool) -> Callable[[], Exception] | None:  # noqa: FBT001
        blocker = None if force else self._blocker(chain, tokens, nanos)
        if blocker is not None:
            return self._refuse(chain, tokens, nanos, blocker)
        self._publish(chain, tokens, 0, nanos, 0, 0)
        if self.watched:
            self._note("record", chain, tokens, nanos)
        return self._overrun(chain, tokens, tokens, nanos, nanos) if force else None

    def reserve(self, reservation: Reservation, waiter: Waiter | None) -> None:
        """Take what the reservation is for, or let the waiter wait for it, or raise."""
        error = self.run(self.spending, reservation._pool._scopes(), self._reserve, reservation, waiter)
        if error is not None:
            raise error()

    def _reserve(self, chain: Chain, reservation: Reservation, waiter: Waiter | None) -> Callable[[], Exception] | None:
        tokens, nanos = reservation._tokens, reservation._nanos
        blocker = self._blocker(chain, tokens, nanos)
        if blocker is None:
            self._publish(chain, tokens, tokens, nanos, nanos, 1, reservation, reservation._pool._open)
            if self.watched:
                self._note("reserve", chain, tokens, nanos)
            return None
        if waiter is None or self._hopeless(chain, tokens, nanos):
            return self._refuse(chain, tokens, nanos, blocker)
        self.marks = waiter.ticket = self.marks + 1
        self.waiters[waiter.ticket] = waiter
        self.regate(chain[-1])
        for account in chain:
            if account._queue is None:
                account._queue = Queue()
            account._queue.join(waiter)
        queue: Any = blocker._queue
        queue.park(waiter, blocker)
        return None

    def commit(self, reservation: Reservation, tokens: int, nanos: int) -> None:
        """See `Reservation.commit`. Inside of an operation of this thread, it is done at that operation's end."""
        if self.owner == get_ident():
            self.late.append((reservation._pool._scopes(), reservation, tokens, nanos))
            return
        error = self.run(self.spending, reservation._pool._scopes(), self._commit, reservation, tokens, nanos)
        if error is not None:
            raise error()

    def _commit(
        self, chain: Chain, reservation: Reservation, tokens: int, nanos: int
    ) -> Callable[[], Exception] | None:
        if reservation._state is reservation._pool._open:
            held_tokens, held_nanos, calls = reservation._tokens, reservation._nanos, 1
        elif reservation._state is DROPPED:
            # The collector finalised it before the one that commits it (a generator, say): what it held is back, and
            # what the call cost is counted all the same.
            held_tokens = held_nanos = calls = 0
        else:
            return lambda: reservation._closed("commit")
        more_tokens, more_nanos = tokens - held_tokens, nanos - held_nanos
        self._publish(chain, more_tokens, -held_tokens, more_nanos, -held_nanos, -calls, reservation, COMMITTED)
        if self.watched:
            self._note("commit", chain, tokens, nanos)
        return self._overrun(chain, tokens, more_tokens, nanos, more_nanos)

    def record_late(self, chain: Chain, spend: Reservation, tokens: int, nanos: int) -> None:
        """Record, at the end of the operation that this thread is inside of, what was spent already."""
        self.late.append((chain, spend, tokens, nanos))

    def _record_late(self, chain: Chain, spend: Reservation, tokens: int, nanos: int) -> None:
        if spend._state is not None:  # a reservation's commit
            self._commit(chain, spend, tokens, nanos)
            return
        self._publish(chain, tokens, 0, nanos, 0, 0, spend, COMMITTED)
        if self.watched:
            self._note("record", chain, tokens, nanos)
        self._overrun(chain, tokens, tokens, nanos, nanos)

    def release(self, reservation: Reservation) -> None:
        """See `Reservation.release`. In a signal handler inside of an operation, it is done at the operation's end."""
        if self.owner == get_ident():
            self.dropped.append(reservation)
            return
        # Without a look at the clock: what gives back works also where the clock does not.
        self._run((), self.locked, reservation._pool._scopes(), self._release, reservation, "release")

    def _release(self, chain: Chain, reservation: Reservation, kind: Kind) -> None:
        if reservation._state is reservation._pool._open:
            tokens, nanos = reservation._tokens, reservation._nanos
            state = DROPPED if kind == "drop" else RELEASED
            self._publish(chain, -tokens, -tokens, -nanos, -nanos, -1, reservation, state)
            if self.watched:
                self._note(kind, chain, tokens, nanos)

    # ------------------------------------------------------------------ refusing

    def _refuse(self, chain: Chain, tokens: int, nanos: int, blocker: Account) -> Callable[[], Exception]:
        """Return what makes the error of a request that does not fit.

        It names the first scope that is exhausted, else its blocker: the first without room or at which others wait.
        """
        if self.watched:
            self._note("refusal", chain, tokens, nanos)
        return self._refusal(self._hopeless(chain, tokens, nanos) or blocker, tokens, nanos)

    def _refusal(
        self, account: Account, tokens: int, nanos: int, kind: type[BudgetExceeded] = BudgetExceeded
    ) -> Callable[[], Exception]:
        if account._token_limit == CLOSED:
            return self._closed(account)
        name = account._name
        tokens_after, tokens_reserved = account._tokens_claimed + tokens, account._tokens_reserved
        nanos_after, nanos_reserved = account._nanos_claimed + nanos, account._nanos_reserved
        token_limit, nano_limit = account._token_limit, account._nano_limit
        return lambda: kind._refusal(
            name,
            tokens, tokens_after, tokens_reserved, token_limit,
            nanos, nanos_after, nanos_reserved, nano_limit,
        )  # fmt: skip

    def _closed(self, account: Account) -> Callable[[], Exception]:
        name = account._name
        return lambda: PoolClosed(
            f"pool{'' if name is None else f' {name!r}'} is closed: spend from its parent, or from a new child of that"
        )

    def _overrun(
        self, chain: Chain, tokens: int, more_tokens: int, nanos: int, more_nanos: int
    ) -> Callable[[], Exception] | None:
        """Return what makes the error of a spend that was added and took a scope over a cap."""
        for account in chain:
            token_cap, nano_cap = account._terms[:2]  # of a closed pool too
            claimed, reserved = account._tokens_claimed, account._tokens_reserved
            if more_tokens > 0 and token_cap is not None and claimed > token_cap:
                facts: tuple[Any, ...] = ("tokens", tokens, claimed, reserved, token_cap, account._name)
                break
            claimed, reserved = account._nanos_claimed, account._nanos_reserved
            if more_nanos > 0 and nano_cap is not None and claimed > nano_cap:
                facts = ("usd", nanos, claimed, reserved, nano_cap, account._name)
                break
        else:
            return None
        if self.watched:
            self._note("overrun", chain, tokens, nanos)
        return lambda: BudgetOverrun._of(*facts)

    # ------------------------------------------------------------------ waiting

    def _blocker(self, chain: Chain, tokens: int, nanos: int, ticket: int | None = None) -> Account | None:
        """Return the first scope that has no room for a request, or at which somebody older waits."""
        for account in chain:
            if (
                account._tokens_claimed + tokens > account._token_limit
                or account._nanos_claimed + nanos > account._nano_limit
            ):
                return account
            if account._queue is not None:
                head = self._head(account)
                if head is not None and (ticket is None or head.ticket < ticket):
                    return account
        return None

    def _head(self, account: Account) -> Waiter | None:
        """Return the oldest that waits at a scope, and send away those before it whose event loop is closed."""
        while account._queue is not None:
            head = account._queue.head(account)
            if head is None or not head.bell.deaf():
                return head
            self._end(head, WITHDRAWN)
        return None

    def _hopeless(self, chain: Chain, tokens: int, nanos: int) -> Account | None:
        """Return the first scope in which a request would not fit even if all that is in flight came back."""
        for account in chain:
            if (
                account._tokens_claimed - account._tokens_reserved + tokens > account._token_limit
                or account._nanos_claimed - account._nanos_reserved + nanos > account._nano_limit
            ):
                return account
        return None

    def _serve(self, account: Account) -> None:
        """Refuse who waits for what can never come, and hand the room of this scope to those whose turn it is."""
        while (queue := account._queue) is not None:
            tokens_used = account._tokens_claimed - account._tokens_reserved
            nanos_used = account._nanos_claimed - account._nanos_reserved
            waiter = queue.hopeless(account._token_limit - tokens_used, account._nano_limit - nanos_used)
            if waiter is not None:
                waiter.refusal = self._refusal(account, waiter.tokens, waiter.nanos)
                if self.watched:
                    self._note("refusal", waiter.chain, waiter.tokens, waiter.nanos)
                self._end(waiter, REFUSED)
                continue
            waiter = self._head(account)
            if waiter is None:
                return
            scope = self._blocker(waiter.chain, waiter.tokens, waiter.nanos, waiter.ticket)
            if scope is account:
                return
            if scope is None:
                tokens, nanos, reservation = waiter.tokens, waiter.nanos, waiter.reservation
                self._publish(
                    waiter.chain, tokens, tokens, nanos, nanos, 1,
                    reservation, reservation._pool._open, waiter, GRANTED,
                )  # fmt: skip
                if self.watched:
                    self._note("reserve", waiter.chain, tokens, nanos)
            else:
                line: Any = scope._queue
                line.park(waiter, scope)

    def _end(self, waiter: Waiter, outcome: str) -> None:
        """End a waiter that gets nothing; who waits behind it may have its turn now."""
        if waiter.at is not None:
            self._touch((waiter.at,))
        self.journal = (0, (), 0, 0, 0, 0, 0, None, None, waiter, outcome)
        self._apply()

    def _forget(self, waiter: Waiter) -> None:
        for account in waiter.chain:
            queue = account._queue
            if queue is not None:
                queue.leave(waiter)
                if not queue.members:
                    account._queue = None
        self.waiters.pop(waiter.ticket, None)
        self.regate(waiter.chain[-1])

    def withdraw(self, waiter: Waiter) -> None:
        """End the waiting, unless it has ended."""
        self._run((), self.locked, waiter.chain, self._withdraw, waiter)

    def _withdraw(self, chain: Chain, waiter: Waiter) -> None:
        if waiter.state is WAITING:
            if waiter.at is not None:
                waiter.refusal = self._refusal(waiter.at, waiter.tokens, waiter.nanos, BudgetTimeout)
                if self.watched:
                    self._note("refusal", chain, waiter.tokens, waiter.nanos)
            self._end(waiter, WITHDRAWN)

    def abandon(self, waiter: Waiter) -> None:
        """End the waiting of one that nobody waits for any more, and give back what it was given."""
        self._run((), self.locked, waiter.chain, self._abandon, waiter)

    def _abandon(self, chain: Chain, waiter: Waiter) -> None:
        self._withdraw(chain, waiter)
        self._finish()
        if waiter.reservation is not None:  # else it has been handed over, and is its new holder's to settle
            self._release(chain, waiter.reservation, "release")

    def _bar(self, root: Any) -> None:
        """Let the first pool do none of its operations by itself."""
        self.idle = True
        root._token_bound = root._nano_bound = CLOSED

    def regate(self, root: Any) -> None:
        """Let the first pool do its operations by itself where it stands alone and nobody waits or listens."""
        self.quiet = not (self.waiters or self.watched or self.windowed)
        if self.alone and self.quiet:
            root._token_bound = root._token_limit
            root._nano_bound = root._nano_limit
            self.idle = self.dropped
        else:
            self._bar(root)

    # ------------------------------------------------------------------ windows

    def _due(self, chain: Iterable[Account]) -> list[tuple[Account, float, float]]:
        """Return the accounts whose period has ended, with the period that it is now. Without the lock."""
        due = []
        times: dict[int, float] = {}  # each clock is read once: scopes that share one are in one period
        for account in chain:
            window = account._window
            if window is not None:
                clock = window.clock
                now = times[id(clock)] if id(clock) in times else times.setdefault(id(clock), clock())
                if now >= account._period_end:
                    due.append((account, *window.period(now)))
        return due

    def until_reset(self, chain: Chain) -> float | None:
        """Return in how many seconds the next period of the scopes begins; None if none does."""
        ends = [(account._period_end, account._window) for account in chain if account._window is not None]
        return min((max(0.001, end - window.clock()) for end, window in ends if window is not None), default=None)

    def look_again(self, chain: Chain) -> None:
        """Roll over what is due, and serve those who wait."""
        self.run(self.locked, chain, self._nothing)

    def _nothing(self, _chain: Chain) -> None:
        pass

    def _roll_over(self, due: list[tuple[Account, float, float]]) -> None:
        for account, start, end in due:
            if start >= account._period_end:  # else another thread was faster
                terms = (*account._terms[:3], start, end)
                epoch = account._epoch + 1
                if self.waiters:
                    self._touch((account,))
                account._tokens_claimed = account._tokens_reserved
                account._nanos_claimed = account._nanos_reserved
                account._epoch = epoch
                account._terms = terms
                account._period_end = end
                if self.watched:
                    self._note("roll-over", (account,), 0, 0)
        if self.touched:
            self._finish()

    # ------------------------------------------------------------------ looking and managing

    def snapshot(self, chain: Chain) -> BudgetSnapshot:
        """Return one pool's numbers."""
        if self.owner == get_ident():
            return chain[0]._shown()
        return self.run(self.locked, chain, self._snapshot)  # type: ignore[no-any-return]

    def _snapshot(self, chain: Chain) -> BudgetSnapshot:
        return chain[0]._shown()

    def reset(self, chain: Chain) -> None:
        """See `BudgetPool.reset`."""
        self.run(self.spending, chain, self._reset)

    def _reset(self, chain: Chain) -> None:
        account = chain[0]
        epoch = account._epoch + 1
        if self.waiters:
            self._touch((account,))
        account._tokens_claimed = account._tokens_reserved
        account._nanos_claimed = account._nanos_reserved
        account._epoch = epoch
        if self.watched:
            self._note("reset", chain, 0, 0)

    def _note(self, kind: Kind, chain: Chain, tokens: int, nanos: int) -> None:
        """Put down what subscribers of the chain are to hear."""
        for account in chain:
            watch = account._watch
            if watch is None:
                continue
            snapshot = account._shown()
            if watch.subscribers:
                event = BudgetEvent._of(kind, chain[0]._name, tokens, nanos, snapshot)
                self.news.extend([(callback, event) for (callback,) in watch.subscribers])
            self._look_at_thresholds(account, watch)

    def _look_at_thresholds(self, account: Account, watch: Watch) -> None:
        for threshold in watch.thresholds:
            if threshold.fired != account._epoch and threshold.reached(account):
                threshold.fired = account._epoch
                event = BudgetEvent._of("threshold", account._name, 0, 0, account._shown())
                self.news.append((threshold.callback, event))

    def subscribe(self, chain: Chain, subscription: tuple[Callback]) -> None:
        """See `BudgetPool.subscribe`."""
        self.run(self.locked, chain, self._subscribe, (subscription,), ())

    def watch(self, chain: Chain, threshold: Threshold) -> None:
        """See `BudgetPool.on_threshold`."""
        self.run(self.locked, chain, self._subscribe, (), (threshold,))

    def _subscribe(
        self, chain: Chain, callbacks: tuple[tuple[Callback], ...], thresholds: tuple[Threshold, ...]
    ) -> None:
        account = chain[0]
        watch = Watch()
        watch.subscribers, watch.thresholds = callbacks, thresholds
        if account._watch is not None:
            watch.subscribers = (*account._watch.subscribers, *callbacks)
            watch.thresholds = (*account._watch.thresholds, *thresholds)
        self.watched = True
        account._watch = watch
        self.regate(chain[-1])

    def unsubscribe(self, chain: Chain, item: object) -> None:
        """Forget a subscription or threshold; nothing if it is not there."""
        self.run(self.locked, chain, self._unsubscribe, item)

    def _unsubscribe(self, chain: Chain, item: object) -> None:
        account = chain[0]
        if account._watch is None:
            return
        watch = Watch()
        watch.subscribers = _without(account._watch.subscribers, item)
        watch.thresholds = _without(account._watch.thresholds, item)
        account._watch = watch if watch.subscribers or watch.thresholds else None
        if self.alone:
            self.watched = account._watch is not None
        self.regate(chain[-1])

    def set_caps(self, chain: Chain, caps: dict[str, int | None]) -> None:
        """See `BudgetPool.set_caps`."""
        error = self.run(self.spending, chain, self._set_caps, caps)
        if error is not None:
            raise error()

    def _set_caps(self, chain: Chain, caps: dict[str, int | None]) -> Callable[[], Exception] | None:
        account, root = chain[0], chain[-1]
        if account._token_limit == CLOSED:
            return self._closed(account)
        token_cap, nano_cap, *others = account._terms
        token_cap, nano_cap = caps.get("tokens", token_cap), caps.get("usd", nano_cap)
        terms: Any = (token_cap, nano_cap, *others)
        token_limit = UNBOUNDED if token_cap is None else token_cap
        nano_limit = UNBOUNDED if nano_cap is None else nano_cap
        self._bar(root)  # until the pool's own bounds are those of the account again
        if self.waiters:
            self.touched = chain
        account._terms = terms
        account._token_limit = token_limit
        account._nano_limit = nano_limit
        self.regate(root)
        if account._watch is not None:
            self._look_at_thresholds(account, account._watch)
        return None

    def close(self, chain: Chain) -> None:
        """See `BudgetPool.close`."""
        self.run(self.locked, chain, self._close)

    def _close(self, chain: Chain) -> None:
        account = chain[0]
        self._bar(chain[-1])
        if self.waiters:
            self.touched = chain
        account._token_limit = account._nano_limit = CLOSED
        self.regate(chain[-1])

    def adopt(self, chain: Chain, pool: BudgetPool | None, group: KeyedPools | None = None) -> None:
        """Let one more pool, or a group of keyed ones, be of the family."""
        error = self.run(self.spending, chain, self._adopt, pool, group)
        if error is not None:
            raise error()

    def _adopt(self, chain: Chain, pool: BudgetPool | None, group: KeyedPools | None) -> Callable[[], Exception] | None:
        for account in chain:
            if account._token_limit == CLOSED:
                return self._closed(account)
        self.alone = False
        if pool is not None:
            self.marks = chain[0]._number = self.marks + 1
            self.register(pool)
            self.windowed = self.windowed or chain[0]._window is not None
        if group is not None:
            self.groups = [*[one for one in self.groups if one() is not None], ref(group)]
            self.windowed = self.windowed or group._window is not None
        self.regate(chain[-1])
        return None

    def register(self, pool: BudgetPool) -> None:
        """Know a pool for as long as it lives. With the lock held."""
        self.handles.append(ref(pool))
        if len(self.handles) > 2 * self.living + 64:
            handles = [one for one in self.handles if one() is not None]
            self.living = len(handles)
            self.handles = handles

    def tree(self, chain: Chain) -> BudgetSnapshot:
        """Return one pool's numbers with those of all its descendants, as of one moment."""
        if self.owner == get_ident():
            return self._tree(chain, chain[0])
        everyone = self.run(self.locked, chain, self._accounts)
        return self.run(self.locked, everyone, self._tree, chain[0])  # type: ignore[no-any-return]

    def _tree(self, chain: Chain, top: Account) -> BudgetSnapshot:
        below: dict[int, list[Account]] = {}
        for account in self._accounts(chain[-1:]):
            if account._parent is not None:
                below.setdefault(id(account._parent), []).append(account)

        def snapshot(account: Account) -> BudgetSnapshot:
            children = sorted(below.get(id(account), ()), key=lambda child: child._number)
            return account._shown(tuple(map(snapshot, children)))

        return snapshot(top)

    def _pools(self) -> list[BudgetPool]:
        return [pool for one in self.handles if (pool := one()) is not None]

    def _accounts(self, chain: Chain) -> Chain:
        """Return the accounts of all pools of the family that are alive, and of all keys; the first pool's last."""
        groups = [group for one in self.groups if (group := one()) is not None]
        of_keys = [account for group in groups for account in group._accounts.values()]
        found = [*[pool._scopes()[0] for pool in self._pools()], *of_keys, *chain[:-1]]
        return (*{id(account): account for account in found if account is not chain[-1]}.values(), chain[-1])

    # ------------------------------------------------------------------ forks

    def fork(self, root: Any) -> None:
        """Refuse to spend, in a forked child: this copy's parent goes on spending the same budget.

        The lock is new, since a thread that is not in this process may hold the old one. Every account is whole, or the
        journal makes it so: ``os.fork()`` runs while the other threads wait for the GIL or, on builds without it, have
        been stopped, both only where a straight run of stores has not begun or is over.
        Those who waited are threads that are not in this process, or tasks of a loop that must not run in two.
        """
        lock = _new_lock()
        locked = taking(lock)
        spending = starmap(_refuse_forked, repeat((root._name,)))
        # One straight run: whoever interrupts it finds all of the old or all of the new.
        self.owner = 0
        self.lock = root._lock = lock
        self.locked = root._locked = locked
        self.spending = root._spending = spending
        self._apply()
        for waiter in self.waiters.values():
            waiter.refusal = lambda: PoolForked(_forked(root._name))
            waiter.state = WITHDRAWN
            for account in waiter.chain:
                account._queue = None
        self.waiters = {}
        self.touched = ()
        self.news = []
        self.granted.clear()
        self.regate(root)
        root._pending = self.idle

    def detach(self, chain: Chain) -> None:
        """See `BudgetPool.detach`."""
        self.run(self.locked, chain[-1:], self._detach)

    def _detach(self, chain: Chain) -> None:
        root: Any = chain[0]
        if self.spending is self.locked:
            return
        self.opened = opened = object()
        pools: list[Any] = [*self._pools(), root]
        for pool in pools:  # the first pool last, for whoever is interrupted and calls again
            account = pool._scopes()[0]
            tokens_used = account._tokens_claimed - account._tokens_reserved
            nanos_used = account._nanos_claimed - account._nanos_reserved
            account._tokens_claimed = tokens_used
            account._nanos_claimed = nanos_used
            account._tokens_reserved = 0
            account._nanos_reserved = 0
            account._in_flight = 0
            pool._open = opened
        self.spending = self.locked
        root._spending = self.locked
        self.regate(chain[-1])


def _without(items: tuple[Any, ...], item: object) -> tuple[Any, ...]:
    """Return the items without the first that is this one."""
    for index, one in enumerate(items):
        if one is item:
            return items[:index] + items[index + 1 :]
    return items


def _refuse_forked(name: str | None) -> NoReturn:
    raise PoolForked(_forked(name))


def _forked(name: str | None) -> str:
    named = "" if name is None else f" {name!r}"
    return (
        f"this copy of pool{named} came by os.fork() from the process that owns the budget, and does not spend it a "
        "second time: record in that process, make a BudgetPool of this process's own, or call detach() to make this "
        "copy a separate budget (snapshot() works without)"
    )
