"""Listening: who hears of what this process does to a scope, and thresholds, which one process tells for all.

Events are of this process: a step tells those who listen here to the scopes of its chain, in its own thread, after it,
with no lock held. What a callback causes in turn is told after what caused it has been told to all. A threshold is told
by whichever process has one of that share and finds it reached; the store keeps who was first (`claim_threshold`).

A pool that nobody listens to pays one attribute load: ``if family.listeners and heard(chain): ...``.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from token_budget._arguments import checked_callback, checked_share
from token_budget._events import BudgetEvent
from token_budget._money import usd_text
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError
from token_budget.stores._names import name_at
from token_budget.stores._refusing import snapshot_of
from token_budget.stores._store import Group, News, Numbers, Scope

_logger = logging.getLogger("token_budget")
_local = threading.local()


class Listener:
    """One who listens: to everything (share 0), or to a share of the caps in parts of 10**9."""

    __slots__ = ("callback", "heard", "share")

    def __init__(self, callback: Callable[[BudgetEvent], object], share: int = 0) -> None:
        self.callback = callback
        self.share = share
        self.heard = True  # False once it has ended: what is yet to be told is not

    def reached(self, row: Numbers) -> bool:
        """Return whether what is used has come to the share of a cap."""
        return _reached(row.tokens_claimed - row.tokens_held, row.token_cap, self.share) or _reached(
            row.nanos_claimed - row.nanos_held, row.nano_cap, self.share
        )


def _reached(used: int, cap: int | None, share: int) -> bool:
    return cap is not None and used * 10**9 >= cap * share


class Watch:
    """Who listens to one scope, or to the keys of one group. It is replaced, never changed."""

    __slots__ = ("subscribers", "thresholds")

    def __init__(self, subscribers: tuple[Listener, ...], thresholds: tuple[Listener, ...]) -> None:
        self.subscribers = subscribers
        self.thresholds = thresholds


# ---------------------------------------------------------------------- who listens


def subscribe(family: Any, watched: Scope | Group, callback: Callable[[BudgetEvent], object]) -> Callable[[], None]:
    """See `Pool.subscribe` and `Keys.subscribe`.

    Raises:
        TypeError: it cannot be called, or it is a coroutine function.
    """
    return _listen(family, watched, Listener(checked_callback(callback)))


def on_threshold(
    family: Any, watched: Scope | Group, share: Any, callback: Callable[[BudgetEvent], object]
) -> Callable[[], None]:
    """See `Pool.on_threshold` and `Keys.on_threshold`.

    Raises:
        TypeError, ValueError: as of `subscribe`, or it is no share above 0 and at most 10.
    """
    parts = checked_share(share)
    return _listen(family, watched, Listener(checked_callback(callback), parts))


def listeners_of(watched: Scope | Group) -> int:
    """Return how many subscribers and thresholds there are, for `statistics`."""
    watch = watched.watch
    return 0 if watch is None else len(watch.subscribers) + len(watch.thresholds)


def _listen(family: Any, watched: Scope | Group, listener: Listener) -> Callable[[], None]:
    """Add a listener, and return what removes it. The scope lives on meanwhile."""

    def unsubscribe() -> None:
        family.here()  # a forked child has a lock of its own
        with family.lock:
            watch = watched.watch
            if listener.heard and watch is not None:
                listener.heard = False
                family.listeners -= 1
                subscribers = tuple([one for one in watch.subscribers if one is not listener])
                thresholds = tuple([one for one in watch.thresholds if one is not listener])
                watched.watch = Watch(subscribers, thresholds) if subscribers or thresholds else None
                if watched.watch is None:
                    family.listened.discard(watched)

    family.here()
    with family.lock:
        watch = watched.watch or Watch((), ())
        if listener.share:
            watched.watch = Watch(watch.subscribers, (*watch.thresholds, listener))
        else:
            watched.watch = Watch((*watch.subscribers, listener), watch.thresholds)
        family.listened.add(watched)
        family.listeners += 1
    return unsubscribe


def _watches(scope: Scope) -> Iterator[Watch]:
    if scope.watch is not None:
        yield scope.watch
    if scope.group is not None and scope.group.watch is not None:
        yield scope.group.watch


def heard(chain: Sequence[Scope]) -> bool:
    """Return whether anybody in this process listens to a scope of the chain, or to its group."""
    return any(
        scope.watch is not None or (scope.group is not None and scope.group.watch is not None) for scope in chain
    )


# ---------------------------------------------------------------------- telling


def tell(
    family: Any,
    chain: Sequence[Scope],
    kind: str,
    pool: str | None,
    tokens: int,
    nanos: int,
    rows: Sequence[Numbers] = (),
) -> None:
    """Call back who listens to the chain, and whose threshold is reached, with no lock held.

    Without rows it reads those of the scopes that the store has. What callbacks raise is logged. If the store does not
    answer, nothing is told of what needs it.
    """
    if not rows:
        chain = [scope for scope in chain if scope.path]
        rows = _read(family, chain)
        if not rows:
            return
    owed: list[tuple[Listener, BudgetEvent]] = []
    for scope, row in zip(chain, rows, strict=True):
        for watch in _watches(scope):
            if watch.subscribers:
                event = _event(kind, pool, tokens, nanos, scope, row)
                owed += [(listener, event) for listener in watch.subscribers]
            if watch.thresholds:
                owed += _thresholds(family, watch, scope, row)
    if owed:
        _call_back(owed)


def tell_news(family: Any) -> None:
    """Empty `Store.news`: log what is to be known, and call back who listens."""
    news: deque[News] = family.store.news
    while news:
        try:
            item = news.popleft()
        except IndexError:  # another thread was quicker
            return
        _log(family, item)
        if family.listeners:
            _tell_news(family, item)


def _tell_news(family: Any, item: News) -> None:
    """Call back who listens to the scope of a roll-over or an opening, or to any of an expired claim."""
    owed: list[tuple[Listener, BudgetEvent]] = []
    for path in item.paths or (item.path,):
        scope = family.known(path)
        if scope is None or not heard((scope,)):
            continue
        for row in _read(family, (scope,)):
            event = _event(item.kind, name_at(item.path), item.tokens, item.nanos, scope, row)
            for watch in _watches(scope):
                owed += [(listener, event) for listener in watch.subscribers]
                if item.kind == "expired":  # what was charged may reach a share; what else a step did, it tells itself
                    owed += _thresholds(family, watch, scope, row)
    _call_back(owed)


def _event(kind: Any, pool: str | None, tokens: int, nanos: int, scope: Scope, row: Numbers) -> BudgetEvent:
    return BudgetEvent._of(kind, pool, tokens, nanos, snapshot_of(scope, row))


def _read(family: Any, chain: Sequence[Scope]) -> Sequence[Numbers]:
    """Return the rows of a chain; none if the store does not answer."""
    try:
        rows: Sequence[Numbers] = family.quietly(family.store.read, chain)
    except (BudgetUnavailable, StoreError) as error:
        _logger.debug("subscribers are not told: %s", error)
        return ()
    return rows


def _thresholds(family: Any, watch: Watch, scope: Scope, row: Numbers) -> list[tuple[Listener, BudgetEvent]]:
    """Return who is to be told that a share is reached: those of each share that this process is the first to tell."""
    owed: list[tuple[Listener, BudgetEvent]] = []
    for parts in {one.share: None for one in watch.thresholds if one.share not in row.told and one.reached(row)}:
        try:
            first = family.quietly(family.store.claim_threshold, scope, row.era, parts)
        except (BudgetUnavailable, StoreError) as error:
            _logger.debug("a threshold is told later: %s", error)
            continue
        if first:
            event = _event("threshold", scope.name, 0, 0, scope, row)
            owed += [(one, event) for one in watch.thresholds if one.share == parts]
    return owed


def _call_back(owed: list[tuple[Listener, BudgetEvent]]) -> None:
    """Call back, after all that this thread has yet to tell."""
    try:
        queue: deque[tuple[Listener, BudgetEvent]] = _local.queue
    except AttributeError:
        queue = _local.queue = deque()
        _local.telling = False
    queue.extend(owed)
    if _local.telling:  # a callback did it: whoever called that back goes on with these
        return
    _local.telling = True
    try:
        while queue:
            listener, event = queue.popleft()
            if listener.heard:
                try:
                    listener.callback(event)
                except Exception:
                    _logger.exception("a subscriber raised on %r", event)
    finally:
        _local.telling = False


def _log(family: Any, item: News) -> None:
    if item.kind == "expired":
        _logger.warning(
            "%s: a reservation in pool %r was not settled by its holder, which has ended, or not in time: tokens %s | "
            "usd %s are charged in full, and pool.expired() lists it",
            family.location,
            name_at(item.path),
            f"{item.tokens:,}",
            usd_text(item.nanos),
        )
    elif item.kind == "created":
        _logger.info("%s: made the budget %r, with nothing used", family.location, name_at(item.path))
