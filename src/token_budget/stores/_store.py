"""Store: what a pool of this layer asks of an engine (SQLite, Redis), and the data that both sides pass.

The front (`_pool.py` and its neighbours) checks arguments, decides what a refusal means, waits, tells listeners. An
engine keeps the numbers. Each method of an engine is one atomic step: a transaction, or a script. It may be called from
any thread, blocks for at most the store's ``timeout``, and then raises `BudgetUnavailable`. A call that raises has
changed nothing and will change nothing later, except that `commit`, `release` and `settle` may have been done: they may
be repeated safely.

Amounts are plain integers, at least 0: tokens and nanodollars. A chain is a tuple of scopes, a pool's own first and the
root last; a join has several branches, each scope once, the root last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

from token_budget._window import Window

# What an `Answer` says.
GRANTED = "granted"  # reserve: the claim holds its amount
REFUSED = "refused"  # reserve, record: no room, or somebody older waits; with the rows of the chain, and where
DONE = "done"  # record, commit, release, settle: counted
LATE = "late"  # commit, release, settle: the claim had been charged in full, and is corrected now
REPEAT = "repeat"  # commit, settle: it was counted before, with the amounts in `counted`; nothing was changed
SETTLED = "settled"  # commit, release: `settle` was called for the claim elsewhere; nothing was changed
UNKNOWN = "unknown"  # settle: no such id. commit: the store had lost the claim, and has counted the amount all the same
LEFT = "left"  # leave: it waits no more and holds nothing


class Group:
    """The keys of one `keyed` group: a template for scopes that are made when a key is first used."""

    __slots__ = (
        *("__weakref__", "above", "given", "handle", "name", "nano_cap", "path"),
        *("token_cap", "version", "watch", "window"),
    )

    def __init__(self, above: Scope, name: str | None, path: str) -> None:
        self.above: Scope = above
        self.name: str | None = name
        self.path: str = path  # of the template: the parent's, then the group's name and a colon
        self.token_cap: int | None = None  # the caps and the window as this process last read them
        self.nano_cap: int | None = None
        self.window: Window | None = None
        self.given: Window | None = None  # the engine's own, as `Scope.given`
        self.version: int = 0  # the engine's own
        self.handle: Any = None  # the engine's own
        self.watch: Any = None  # the front's: who listens in this process


class Scope:
    """One scope, as this process knows it. Its numbers are in the store."""

    __slots__ = ("__weakref__", "above", "closed", "given", "group", "handle", "name", "path", "watch", "window")

    def __init__(self, name: str, path: str, above: Scope | None = None, group: Group | None = None) -> None:
        self.name: str = name  # what errors and snapshots show: "total", "user:ann"
        self.path: str = path  # "total/user:ann": the names from the root on, percent-encoded (see `path_of`)
        self.above: Scope | None = above
        self.group: Group | None = group  # where it is a key's scope
        self.closed: bool = False  # as last read; the engine sets it
        # As last read; the engine replaces it where the store has another text, and keeps an injected clock.
        self.window: Window | None = None
        self.given: Window | None = None  # the engine's own: the last window that this process gave, or is giving
        self.handle: Any = None  # the engine's own: what finds the scope in the store. None until it was looked for
        self.watch: Any = None  # the front's: who listens in this process


class Numbers(NamedTuple):
    """What the store has of one scope as of one moment. A period that has ended is shown as if it had rolled over."""

    token_cap: int | None
    nano_cap: int | None
    tokens_claimed: int  # used + held
    tokens_held: int
    nanos_claimed: int
    nanos_held: int
    in_flight: int
    start: float | None  # of the period, as POSIX timestamps
    end: float | None
    era: int  # grows with each new period and reset
    waiting: int  # how many wait for room in this scope
    closed: bool
    told: tuple[int, ...] = ()  # the thresholds (parts of 10**9) that were told in this era


class Answer(NamedTuple):
    """What a step did."""

    kind: str
    # One for each scope of the chain, right after the step (after a refusal: as it was refused). Given where they were
    # asked for, with every refusal, and where a step leaves any scope of the chain above a cap.
    rows: tuple[Numbers, ...] = ()
    at: int = 0  # REFUSED: the index in the chain of the first scope that is closed, full, or where somebody waits
    counted: tuple[int, int] = (0, 0)  # REPEAT: what was counted, tokens and nanodollars; of `settle`: see there
    ticket: int = 0  # REFUSED with `wait`: the claim's ticket. Tickets grow in the order of arrival over all processes


class Opened(NamedTuple):
    """What `Store.open` found or made."""

    row: Numbers
    created: bool
    # The values that the code changed in the store, and None or this: ((what, stored, given), ...), for the log. `what`
    # is "token_cap", "nano_cap" or "window"; the values are integers, text, or None.
    changed: tuple[tuple[str, Any, Any], ...] = ()


class Charged(NamedTuple):
    """A claim whose holder died, or whose lease ended: it was charged in full."""

    id: str
    tokens: int
    nanos: int
    who: str  # "host:pid:start time", the holder
    at: float  # when it was charged, POSIX
    paths: tuple[str, ...]  # the scopes that it was charged to


class News(NamedTuple):
    """Something that an engine did on the way, for the listeners in this process."""

    kind: str  # "expired", "roll-over", "created"
    path: str  # the scope: of "expired" the first of the claim's chain
    paths: tuple[str, ...] = ()  # "expired": all of the claim's chain
    tokens: int = 0
    nanos: int = 0


class Store(Protocol):
    """An engine, opened for one root in one process."""

    name: str  # of the root
    location: str  # what `open_pool` takes: "sqlite:/srv/budget.db#nightly"; no password
    news: deque[News]  # filled by the steps, emptied by the front

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
        """Make a scope or a group's template, or find it and settle what holds: its caps and window.

        None is "not given": what is stored stays. A given value that the store has differently: with ``how="code"`` it
        replaces the stored one, unless another living process has given a third value or the stored one itself (then
        StoreMismatch); ``"mine"`` replaces it in any case; ``"stored"`` keeps the stored one. The engine remembers for
        each living process what it gave.

        Raises:
            StoreMismatch: see above.
            StoreLost: the store has no such root and ``create`` is false; or it should have the scope, and has not.
            PoolClosed: a scope above is closed. A closed scope itself is found, with a row that says so.
        """
        ...

    def set_caps(self, scope: Scope, token_cap: Any, nano_cap: Any, window: Any) -> None:
        """Set what is not `_arguments.UNCHANGED`; None is no cap, no window. Counts as what this process gave.

        On a key's scope the values become the key's own. Raises PoolClosed if the scope is closed.
        """
        ...

    def set_group(self, group: Group, token_cap: Any, nano_cap: Any, window: Any) -> None:
        """Do the same for a group's template and all its keys, except for values that are a key's own."""
        ...

    def reset(self, scope: Scope) -> None:
        """Set what is used to 0, and the period to the one that the clock is in. What is held stays."""
        ...

    def close(self, scope: Scope) -> None:
        """End a scope for everybody: what begins something there or below is refused. Claims in flight still settle."""
        ...

    def forget(self, scope: Scope) -> bool:
        """Delete a key's scope. False if the store has none. Raises ValueError while claims are in flight there."""
        ...

    def keys(self, group: Group) -> list[str]:
        """Return the keys of a group that the store has."""
        ...

    def knows(self, scope: Scope) -> bool:
        """Return whether the store has a key's scope."""
        ...

    # ------------------------------------------------------------------ spending

    def new_key(self) -> Any:
        """Return what identifies a new claim to this engine, without any input or output."""
        ...

    def id_of(self, key: Any) -> str:
        """Return the text of a claim's key, without spaces: what `settle` takes in any process."""
        ...

    def reserve(
        self, chain: Sequence[Scope], key: Any, tokens: int, nanos: int, *, wait: bool = False, rows: bool = False
    ) -> Answer:
        """Hold an amount in every scope of the chain, or in none: GRANTED or REFUSED.

        ``wait``: a claim that is refused takes a ticket at the scope that refuses it, or keeps the one it has (it keeps
        its place in the order of arrival when it moves on to wait at another scope of its chain). Nobody with a later
        ticket, and nobody without one, gets room in that scope before it. Its tickets end with `leave`, with GRANTED,
        and with the process. Scopes of keys that do not exist yet are made. Raises PoolClosed if a scope is closed.
        """
        ...

    def record(
        self, chain: Sequence[Scope], tokens: int, nanos: int, *, force: bool = False, rows: bool = False
    ) -> Answer:
        """Add to what is used: DONE or REFUSED. ``force``: in any case, also in closed scopes."""
        ...

    def commit(
        self, chain: Sequence[Scope], key: Any, held: tuple[int, int], amount: tuple[int, int], *, rows: bool = False
    ) -> Answer:
        """Settle a claim with what it cost: DONE, LATE, REPEAT, SETTLED or UNKNOWN. ``held``: what it was made with."""
        ...

    def release(self, chain: Sequence[Scope], key: Any, held: tuple[int, int], *, rows: bool = False) -> Answer:
        """Give back what a claim holds: DONE, LATE (it was charged in full, and now is not), SETTLED or UNKNOWN."""
        ...

    def cancel(self, chain: Sequence[Scope], key: Any, held: tuple[int, int]) -> bool:
        """Make sure that a claim holds nothing and waits for nothing, whatever became of it. Return whether it held.

        For those that were interrupted or dropped. A `reserve` of the same key that arrives later takes nothing.
        """
        ...

    def leave(self, chain: Sequence[Scope], key: Any) -> Answer:
        """Give up a ticket: LEFT, with the rows and ``at``. If the claim was granted meanwhile, nothing: GRANTED."""
        ...

    def watch(self, heads: Sequence[tuple[Sequence[Scope], Any, int, int]], seconds: float) -> Collection[Any] | None:
        """Block until a claim of these (chain, key, tokens, nanos) may fit, or for so many seconds.

        Return the keys of those that may fit; None where it does not know, and all are to be tried. It may return early
        for no reason. Other threads replace what is in ``heads`` meanwhile: it is read anew at each look. `watch` also
        shows other processes that those who wait here are alive.
        """
        ...

    # ------------------------------------------------------------------ looking

    def read(self, chain: Sequence[Scope]) -> tuple[Numbers, ...]:
        """Return the rows of a chain as of one moment. Dead holders are shown as charged."""
        ...

    def tree(self, scope: Scope) -> list[tuple[str, str, Numbers]]:
        """Return (path, name, row) of a scope and all below it as of one moment, parents first, else oldest first."""
        ...

    def claim_threshold(self, scope: Scope, era: int, parts: int) -> bool:
        """Note that a threshold was told in an era. True for the first that says so in any process, else False."""
        ...

    # ------------------------------------------------------------------ claims that outlive their holder

    def expired(self) -> list[Charged]:
        """Return what was charged in full and not corrected, of the whole root, oldest first. Kept for 7 days."""
        ...

    def settle(self, claim_id: str, tokens: int, nanos: int) -> tuple[Answer, tuple[str, ...]]:
        """Settle any claim by its id, of whatever process: DONE, LATE, REPEAT or UNKNOWN; and the paths of its chain.

        The rows, where there are some, belong to those paths. With DONE and LATE, ``counted`` is what the claim held or
        was charged: what is above it is new, and may be an overrun.
        """
        ...

    def hand_over(self, chain: Sequence[Scope], key: Any, held: tuple[int, int], lease: float) -> Any:
        """Give an open claim a life of its own, of at most ``lease`` seconds. Return its new key.

        Raises LookupError if it is not open.
        """
        ...

    # ------------------------------------------------------------------ the process

    def tend(self) -> float:
        """Do what is due now and then (renew leases, cancel what was given up). Return in how many seconds again.

        That is infinity where nothing is due. It is called after the first grant of a process, then by the family's
        worker thread, and soon after a step raised BudgetUnavailable; it never raises BudgetUnavailable itself.
        """
        ...

    def let_go(self) -> None:
        """End this process's part. Claims that are still open are charged in full, as of a holder that died."""
        ...

    def forked(self) -> None:
        """In a forked child, before its first use: forget the parent's connections, locks and claims; block on nothing.

        The child becomes a holder of its own at its next step.
        """
        ...
