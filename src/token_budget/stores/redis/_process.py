"""Process: this process as one that holds, and the steps that it does.

A process is an *owner* in the store: a hash of what it holds, and a lease. An owner that was declared dead is never one
again. The process goes on as another owner, and its claims of before are settled as what they are: charged.

Every step has a number, which grows. A script that changes anything leaves its answer under a number in the owner's
hash, so that a copy of it, sent again after a lost answer, finds the answer and changes nothing. An answer that was
heard is deleted with a later step (`Process.heard`). What keeps a copy that arrives after that from being done is the
*low*: the lowest number of a step that is still under way here. Scripts keep the highest low that they saw, and refuse
steps below it as stale. So an answer may be deleted once the low has passed the step.

A step that was given up, after a time-out or an interrupt, may be done later all the same. It is noted, and cancelled
before the next step of the process or by `tend`.
"""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from threading import get_ident
from types import FrameType, TracebackType
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import Nested, StoreError, StoreLost
from token_budget.stores._store import News, Scope
from token_budget.stores.redis._keys import Keys
from token_budget.stores.redis._scripts import Scripts

_LEAST_HEARD, _MOST_HEARD = 8, 64  # answers that one step deletes: a few at a time cost less than each alone
_CROWD = 128  # answers that were heard, at which a step deletes some before it does anything else
_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz"


def new_owner() -> str:
    """Return an identity that no other process has."""
    number, text = secrets.randbits(51), ""
    for _ in range(10):
        number, rest = divmod(number, 36)
        text += _LETTERS[rest]
    return text


class Claim:
    """What identifies a reservation: a number of an owner, which may change until it is granted."""

    __slots__ = ("__weakref__", "asked", "cancelled", "counted", "number", "owner")

    def __init__(self, owner: str, number: int) -> None:
        self.owner: str = owner
        self.number: int = number
        self.asked: bool = False  # whether the store may know it
        self.cancelled: bool = False
        self.counted: tuple[int, int] | None = None  # by a commit whose answer was heard: its mark may be deleted since

    @property
    def id(self) -> str:
        """The text that finds it in any process."""
        return f"{self.owner}-{self.number}"

    def __repr__(self) -> str:
        return f"<Claim {self.id}>"


class GivenUp(NamedTuple):
    """A step that may be done later, and must take nothing then."""

    chain: tuple[Scope, ...]
    owner: str
    number: int


class Process:
    """What all steps of this process share."""

    def __init__(self, client: Any, keys: Keys, lease: float) -> None:
        self.client = client
        self.keys = keys
        self.scripts: Scripts = Scripts(client)
        self.lease: float = lease
        self.generation: str = ""  # of the root, once it was seen
        self.news: deque[News] = deque()
        # Every scope and group of this process by its path, so that one that is met by its path alone has its clock.
        self.known: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self.begin()

    def begin(self) -> None:
        """Begin as an owner that the store does not know, in a process in which no step is under way."""
        self.lock = threading.Lock()  # guards numbers, steps under way, answers that were heard; held for moments
        self.registering = threading.Lock()
        self.numbers = itertools.count(1)
        self.running: dict[int, FrameType] = {}  # by thread: the frame in which its step was begun
        self.under_way: dict[int, float] = {}  # steps by number, in their order: the deadline of each
        self.heard: deque[tuple[int, int]] = deque()  # (a step, the number that its answer stands under)
        self.given_up: deque[GivenUp] = deque()
        self.claims: WeakValueDictionary[int, Claim] = WeakValueDictionary()  # of this owner
        self.nonce: str = new_owner()
        self.pid: int = os.getpid()
        self.who: str = f"{socket.gethostname()}:{self.pid}:{int(time.time())}".replace("|", "_").replace(" ", "_")
        self.new_owner()

    def new_owner(self) -> None:
        """Be another owner from now on."""
        self.owner: str = new_owner()
        self.registered: bool = False
        self.renew_at: float = float("inf")
        self.strange: frozenset[str] = frozenset()  # entries that nobody here knew at the last look
        self.heard.clear()
        self.claims.clear()

    def new_claim(self) -> Claim:
        """Return a claim of this owner."""
        claim = Claim(self.owner, next(self.numbers))
        self.claims[claim.number] = claim
        return claim

    def rebind(self, claim: Claim) -> None:
        """Let a claim that was not granted be another one, of the present owner."""
        self.claims.pop(claim.number, None)
        claim.owner, claim.number = self.owner, next(self.numbers)
        self.claims[claim.number] = claim

    def declared_dead(self, owner: str) -> None:
        """Go on as another owner, if this one is the present one."""
        with self.lock:
            if self.owner == owner:
                self.new_owner()

    @property
    def volatile(self) -> bool:
        """Whether the server may evict keys that expire: then a key's scope must not, which may be in use."""
        return bool(self.client.volatile)

    @property
    def volatile_mark(self) -> str:
        """What tells scripts that: then what was charged must not expire, either."""
        return "v" if self.client.volatile else ""

    def step(self, timeout: float | None = None) -> Step:
        """Return a new step, to be entered."""
        return Step(self, self.client.timeout if timeout is None else timeout)

    def lost(self, what: str) -> StoreLost:
        """Return the error of a store that does not have what it should."""
        return StoreLost(
            f"{self.client.location} {what}: it was emptied, restarted without its data, replaced, or keys were "
            "deleted. What was spent is not known. Restore it, or begin anew with a pool of another name"
        )

    def due(self) -> bool:
        """Return whether the lease is to be renewed."""
        return time.monotonic() >= self.renew_at

    def seconds_to_renewal(self) -> float:
        """Return in how many seconds `tend` has something to do."""
        if not self.registered:
            return float("inf")
        return min(max(0.0, self.renew_at - time.monotonic()), self.lease / 3)

    def crowded(self) -> bool:
        """Return whether many answers can be deleted: this process does few steps that spend, with which they are."""
        if len(self.heard) < _CROWD:
            return False
        with self.lock:
            return bool(self.heard) and self.heard[0][0] < next(iter(self.under_way), 0)

    def forget_stuck(self) -> None:
        """Forget steps that an interrupt has kept from ending, so that they hold up the low no longer."""
        limit = time.monotonic() - 60
        with self.lock:
            for number in [number for number, deadline in self.under_way.items() if deadline < limit]:
                del self.under_way[number]


class Step:
    """One step of one thread: a context in which scripts are run, with one number and one deadline."""

    __slots__ = ("_ident", "deadline", "number", "process", "settles", "some", "timeout", "unsure")

    def __init__(self, process: Process, timeout: float) -> None:
        self.process: Process = process
        self.timeout: float = timeout
        self.deadline: float = time.monotonic() + timeout
        self.number: int = 0
        self.unsure: bool = False  # whether a script was sent whose answer did not come
        self.settles: bool = False  # whether it counts what has happened, also in scopes that were closed and deleted
        self.some: str = ""  # l where the charging of the dead has taken half of the time: the rest is left for later

    def __enter__(self) -> Step:
        process = self.process
        ident = self._ident = get_ident()
        frame = process.running.get(ident)
        if frame is not None and _is_running(frame):
            raise Nested(
                "a signal handler or finaliser asks the store while a step of the same thread is under way: let it "
                "put the work on a queue instead"
            )
        process.running[ident] = sys._getframe(1)
        with process.lock:
            self.number = next(process.numbers)
            process.under_way[self.number] = self.deadline
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        process = self.process
        with process.lock:
            process.under_way.pop(self.number, None)
        process.running.pop(self._ident, None)  # last: a signal handler in here is refused, and takes no lock

    def left(self) -> float:
        """Return how many seconds are left, at least 0."""
        return max(0.0, self.deadline - time.monotonic())

    @property
    def late(self) -> bool:
        """Whether half of its time is over."""
        return self.left() < self.timeout / 2

    def tire(self) -> None:
        """Note that the step has done work for others: after half of its time it leaves the rest of that for later."""
        if self.late:
            self.some = "l"

    def ask(
        self,
        script: Any,
        keys: Sequence[str],
        number: int | str,
        words: Sequence[str | int],
        readings: Sequence[str] = (),
        owner: str | None = None,
    ) -> list[Any]:
        """Run a script on keys beside the five of every step. Return its answer.

        Args:
            script: one of `Scripts`.
            keys: those of the scopes, and what else the script takes.
            number: ARGV 2, of a claim or of this step.
            words: ARGV 5 to 8.
            readings: ARGV 10 and on.
            owner: whose hashes are keys 1 and 2; None: this process's.
        """
        process = self.process
        names = process.keys
        heard: Sequence[tuple[int, int]] = ()
        with process.lock:
            low = next(iter(process.under_way), self.number)
            if owner is None:
                owner = process.owner
            if owner == process.owner and script in process.scripts.deleting:
                heard = self._heard(low, 1 if script is process.scripts.renew else _LEAST_HEARD)
        own = names.owner(owner)
        self.unsure = True
        try:
            answer = process.client.run(
                script,
                (own, f"{own}:x", names.leases, names.beats, names.root, *keys),
                (
                    process.generation, number, self.number, low, *words, process.client.publish, *readings,
                    *[under for _, under in heard],
                ),
                timeout=self.left(),
            )  # fmt: skip
        except BaseException as error:
            if isinstance(error, StoreError):
                self.unsure = False
            process.heard.extendleft(heard)
            raise
        self.unsure = False
        return answer  # type: ignore[no-any-return]

    def _heard(self, low: int, least: int) -> Sequence[tuple[int, int]]:
        """Take the answers that may be deleted now: no copy of their steps can be done any more."""
        heard = self.process.heard
        taken: list[tuple[int, int]] = []
        if len(heard) >= least:
            while heard and heard[0][0] < low and len(taken) < _MOST_HEARD:
                taken.append(heard.popleft())
        return taken

    def done(self, number: int | None = None, owner: str | None = None) -> None:
        """Note that the answer that stands under a number was heard; that of this step if there is no number."""
        if owner is None or owner == self.process.owner:
            self.process.heard.append((self.number, self.number if number is None else number))

    def give_up(self, chain: Sequence[Scope], owner: str, number: int) -> None:
        """Have what was sent under a number cancelled later, if its answer did not come."""
        if self.unsure:
            self.process.given_up.append(GivenUp(tuple(chain), owner, number))

    def register(self) -> None:
        """Let the store know this process, if it does not. Other threads that need it wait meanwhile."""
        process = self.process
        if process.registered:
            return
        if not process.registering.acquire(timeout=self.left()):
            raise BudgetUnavailable(f"{process.client.location} does not answer: another thread waits for it")
        try:
            while not process.registered:
                words = (repr(float(process.lease)), "", "", "")
                answer = self.ask(process.scripts.register, (), process.who, words)
                if answer[0] == "lost":
                    raise process.lost("has lost the pool")
                if answer[0] == "ended":  # before the answer came to a register that was sent more than once
                    process.declared_dead(process.owner)
                    continue
                process.renew_at = time.monotonic() + process.lease / 3
                process.registered = True
        finally:
            process.registering.release()

    def check_root(self) -> None:
        """Raise StoreLost if the root is not there, or of another generation: what was not found is lost with it."""
        process = self.process
        revision = process.client.command("HGET", process.keys.root, "g", timeout=self.left())
        if process.generation and (revision or "").partition(".")[0] != process.generation:
            raise process.lost("has lost the pool")

    def not_known(self, owner: str) -> None:
        """Let the process go on as another owner, after a script said that the store does not know this one.

        Raises:
            StoreLost: it was not declared dead, since it has its lease, which ends in the same step as its hash. So the
                hash was deleted or evicted, and with it what the process holds.
        """
        process = self.process
        ask, keys = process.client.command, process.keys
        known = process.owner != owner or ask("EXISTS", keys.owner(owner), timeout=self.left())
        if not known and ask("ZSCORE", keys.leases, owner, timeout=self.left()) is not None:
            raise process.lost("has lost what this process holds")
        process.declared_dead(owner)

    def stale(self) -> BudgetUnavailable:
        """Return the error of a step that the store takes for a copy of one that has ended."""
        return BudgetUnavailable(
            f"{self.process.client.location} has taken a step for one that had ended: this process was stopped for long"
        )


def _is_running(frame: FrameType) -> bool:
    """Return whether a frame is among the callers: it may be one whose end an interrupt has kept from being noted."""
    caller: FrameType | None = sys._getframe(2)
    while caller is not None:
        if caller is frame:
            return True
        caller = caller.f_back
    return False
