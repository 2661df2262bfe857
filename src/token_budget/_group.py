"""Group: the keys of one parent, their accounts, and what holds for all of them. `KeyedPools` is its public face.

A key's account outlives the pool that callers hold, which is a light handle and is made anew when it is asked for. The
family's lock guards the accounts, the rota and the group's settings. An account is in the rota while it is known: each
new key pays for a look at two old ones, so that keys which nothing speaks for are forgotten.
"""

from __future__ import annotations

from collections import deque
from weakref import ref

from token_budget import _settings
from token_budget._account import Account, Calendar, Watch, current
from token_budget._arguments import UNCHANGED
from token_budget._family import PAY, Register
from token_budget._periods import begin_due, due
from token_budget._scope import Scope
from token_budget._window import Window, system_time

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    import typing
    from collections.abc import Hashable
    from typing import Any

    from token_budget._account import Subscription, Threshold
    from token_budget._change import Change
    from token_budget._family import Family
else:
    from token_budget._lazy import typing

_LOOK_AT = 2  # how many old keys each new one pays to look at


class Own:
    """What was set on the pool of one key itself: it is remembered when the key is forgotten."""

    __slots__ = ("names", "subscribers", "terms", "thresholds", "window")

    def __init__(self, account: Account, group: Watch | None) -> None:
        watch = account.watch or Watch((), (), ())
        everyone = group or Watch((), (), ())
        self.names = account.own  # of "token_cap", "nano_cap", "window"
        self.terms = account.terms
        self.window = account.window
        self.subscribers = tuple(one for one in watch.subscribers if one not in everyone.subscribers and one.heard)
        self.thresholds = tuple(one for one in watch.thresholds if one not in everyone.thresholds and one.heard)

    def __bool__(self) -> bool:
        return (
            bool(self.names) or any(one.heard for one in self.subscribers) or any(one.heard for one in self.thresholds)
        )

    def caps(self, token_cap: int | None, nano_cap: int | None) -> tuple[int | None, int | None]:
        """Return the caps of the key where these are the group's."""
        return (
            self.terms[0] if "token_cap" in self.names else token_cap,
            self.terms[1] if "nano_cap" in self.names else nano_cap,
        )


def nobody() -> None:
    """Stand for the handle of a key that is forgotten: its account counts no more, also where it is still listed."""


def _without_listener(change: Change, account: Account, item: object) -> None:
    if account.watch is not None:
        change.gate(account, watch=_settings.without_listener(account.watch, item))


def unheld() -> None:
    """Stand for the handle of a key whose first pool is about to be handed out."""


def _over(account: KeyAccount, window: Window | None, now: float) -> bool:
    """Return whether the period of a key is over. `now` is a reading of another window's clock."""
    own = account.window
    if own is None:
        return False
    if own.clock is system_time:
        return account.period_end <= system_time()
    return window is not None and own.clock is window.clock and account.period_end <= now


class KeyAccount(Account):
    """What one key has claimed."""

    __slots__ = ("handle", "key")
    handle: Any  # a weak reference to the pool that somebody may hold
    key: Any


class Group:
    """The accounts of all keys that are remembered, and the caps, window and listeners of all."""

    __slots__ = (
        "__weakref__",
        "_by_key",
        "_calendar",
        "_caps",
        "_chain",
        "_gone",
        "_kind",
        "_model",
        "_name",
        "_own",
        "_parent",
        "_rota",
        "_watch",
        "_window",
    )

    def __init__(
        self,
        kind: type[typing.Any],
        parent: Scope,
        caps: tuple[int | None, int | None],
        name: str | None,
        window: Window | None,
    ) -> None:
        self._kind = kind  # of the pools that it makes
        self._parent = parent
        self._chain = parent._chain
        self._name = name
        self._caps = caps
        self._window = window
        self._watch: Watch | None = None  # who listens to every key
        self._by_key: dict[Hashable, KeyAccount] = {}
        self._own: dict[Hashable, Own] = {}  # of keys that are forgotten
        self._gone = Register()  # the pools of deleted keys: a spend may still be forced there
        self._calendar = Calendar()  # of the keys that have the group's window
        self._rota: deque[KeyAccount] = deque()  # each of them once, and for a while some that are forgotten
        self._model = Scope()  # what handles are made after
        self._model._bind(parent._family, (Account(None, None, None, window), *parent._chain))
        _settings.adopt(parent, None, parent._family.groups, self, self._model)

    # ------------------------------------------------------------------ for the family

    def _accounts(self) -> list[KeyAccount]:
        """Return the accounts of all keys."""
        return [account for account in list(self._by_key.values()) if account.handle is not nobody]

    def _scopes(self) -> list[Scope]:
        """Return the pools of keys that are alive, and what they are made after."""
        handles = [account.handle() for account in self._accounts()]
        return [self._model, *[pool for pool in handles if pool is not None], *self._gone]

    # ------------------------------------------------------------------ keys that come and go

    def _handle_of(self, account: KeyAccount) -> Any:
        """Make a handle: a pool as `Scope._bind` would make it, after the model of all keys."""
        model = self._model
        times = model._times  # first: where it is still the same later, everything here was read of one state
        pool: Any = object.__new__(self._kind)
        pool._parents = self  # and by that all of its keys are in the tree
        if account.window is not self._window:
            pool._bind(model._family, (account, *self._chain))
            return pool
        pool._family = model._family
        pool._home = model._home
        pool._account = account
        pool._chain = (account, *self._chain)
        few = model._few
        pool._few = few and (account, *few[1:])
        pool._more = model._more
        if times is not None:
            since, until = account.since, account.period_end
            for above in self._chain:
                since, until = max(since, above.since), min(until, above.period_end)
            times = times[0], since, until
        pool._times = times
        return pool

    def _first(self, key: Hashable) -> Any:
        """Return the pool of a key by the long way: it may be the first time that it is asked for."""
        text = str.__str__(str(key))[:200]
        name = text if self._name is None else f"{self._name}:{text}"[:200]
        family, pool = self._model._family, None
        while pool is None:  # until nobody has changed the group's settings in between
            settings = self._settings(key)
            caps, window, own = settings
            if own is not None:
                caps = own.caps(*caps)
                window = own.window if "window" in own.names else window
            latest = self._calendar.latest  # read before the clock: see `_periods.due`
            now = 0.0 if window is None else window.now()
            period = None if window is None else self._period(window, latest, now)
            account = KeyAccount(caps[0], caps[1], name, window, period)
            account.key, account.handle, account.parent = key, nobody, self._chain[0]
            account.calendar = self._calendar if window is not None and window is settings[1] else None
            pool = family.run(family.locked, PAY, self._enter, account, settings, latest, now)
        return pool

    def _settings(self, key: Hashable) -> tuple[Any, ...]:
        """Return what decides how a key begins: the caps, the window, what was set on the key itself."""
        return self._caps, self._window, self._own.get(key)

    def _period(self, window: Window, latest: tuple[Any, Any] | None, now: float) -> tuple[float, float]:
        """Return the period of a new key: the latest that any was in, which a clock that steps back does not reopen."""
        if latest is not None and window is self._window:
            since, end = current(latest)
            if since <= now < end:
                return latest
        return window.period(now)

    def _enter(self, account: KeyAccount, settings: tuple[Any, ...], latest: Any, now: float) -> Any:
        """Under the lock: return the pool of the account's key, made with this account if the key is not known.

        Return None if the settings that the account was made by have changed.

        A signal handler of this thread may ask for the same key in between: who comes first has made it.
        """
        key, family = account.key, self._model._family
        known = self._by_key.get(key)
        if known is not None and known.handle is nobody:
            self._remove(known)  # an interrupted thread has forgotten it, and not removed it
            known = None
        if known is None:
            if any(new is not old for new, old in zip(self._settings(key), settings, strict=True)):
                return None
            family.change(self._welcome, (family, account, settings[2]))
            known = self._by_key.setdefault(key, account)
            if known is account:
                self._rota.append(account)
                if self._own.get(key) is settings[2]:
                    self._own.pop(key, None)
                if account.calendar is not None and account.calendar.latest is latest:
                    account.calendar.latest = account.terms[3:]
                for _ in range(_LOOK_AT):
                    self._look_at_next(account, now)
        return family.change(self._hand_out, (known,))

    def _hand_out(self, change: Change, account: KeyAccount) -> Any:
        """Return the pool of a key, a new one where nobody holds it; None if the key was forgotten meanwhile."""
        held = account.handle()
        if held is not None or account.handle is nobody:
            return held
        pool = self._handle_of(account)
        change.set(account, "handle", ref(pool))
        return pool

    def _welcome(self, change: Change, family: Family, account: KeyAccount, own: Own | None) -> None:
        change.set(account, "handle", unheld)
        change.set(family, "made", family.made + 1)
        change.set(account, "number", family.made + 1)
        watch = self._watch
        if own is not None:
            change.set(account, "own", own.names)
            subscribers = tuple(one for one in own.subscribers if one.heard)
            watch = _settings.with_listeners(watch, subscribers, tuple(one for one in own.thresholds if one.heard))
        if watch is not None:
            change.gate(account, watch=watch)

    def _look_at_next(self, newest: KeyAccount, now: float) -> None:
        """Look at the key whose turn it is, and forget it if nothing is lost by that."""
        if not self._rota:
            return
        account = self._rota.popleft()
        key = account.key
        try:
            listed = account.handle is not nobody and self._by_key.get(key) is account
        except Exception:  # noqa: BLE001 - a key whose hash or comparison fails is nobody else's trouble
            return
        if not listed:
            return
        if account is not newest:
            own = Own(account, self._watch)
            if own:
                self._own[key] = own  # before the key is forgotten, so that no interrupt loses it
            if self._model._family.change(self._fade, (account, newest.window, now)):
                own = Own(account, self._watch)  # once more: a handler of this thread may have set a cap in between
                if own:
                    self._own[key] = own
                self._remove(account)
                return
            self._own.pop(key, None)
        self._rota.append(account)

    def _tidy(self, key: Hashable, item: object) -> None:
        """Under the lock: forget what listened to a key and has ended, also where the key was forgotten since."""
        own, account = self._own.get(key), self._by_key.get(key)
        if own is not None and not own:
            self._own.pop(key, None)
        if account is not None:
            self._model._family.change(_without_listener, (account, item))

    def _fade(self, change: Change, account: KeyAccount, window: Window | None, now: float) -> bool:
        """Forget a key, unless something speaks for it. Return whether it is forgotten."""
        unused = account.tokens_claimed == account.nanos_claimed == 0 and not account.closed
        if (
            account.handle is unheld
            or account.handle() is not None
            or account.in_flight
            or not (unused or _over(account, window, now))
        ):
            return False
        change.set(account, "handle", nobody)
        return True

    def _remove(self, account: KeyAccount) -> None:
        """Remove the account of a key that is forgotten, unless a handler of this thread has made another meanwhile."""
        removed = self._by_key.pop(account.key, None)
        if removed is not None and removed is not account:
            self._by_key.setdefault(account.key, removed)

    def _forget(self, key: Hashable) -> None:
        """Under the lock: see `KeyedPools.__delitem__`."""
        account = self._by_key.get(key)
        if account is not None and account.handle is nobody:
            account = None
        if account is None and key not in self._own:
            raise KeyError(key)
        if account is not None:
            pool = account.handle()
            if pool is not None:
                self._gone.add(pool)
            self._model._family.change(self._close, (account,))
            self._remove(account)
        self._own.pop(key, None)

    def _close(self, change: Change, account: KeyAccount) -> None:
        if account.in_flight:
            raise ValueError(
                f"key {account.key!r} has {account.in_flight} in flight: let them settle first, or close() its pool"
            )
        _settings.closing(change, account)
        change.set(account, "handle", nobody)

    # ------------------------------------------------------------------ what holds for all keys

    def _set_caps(self, token_cap: Any, nano_cap: Any, window: Any) -> None:
        """See `KeyedPools.set_caps`; an argument may be UNCHANGED."""
        family, reading = self._model._family, _settings.reading_of(window)
        family.check_fork()
        ended = due([] if window is UNCHANGED else self._accounts())
        family.run(family.spending, PAY, self._change_caps, ended, (token_cap, nano_cap, window, reading))

    def _change_caps(self, ended: Any, arguments: tuple[Any, ...]) -> None:
        """Under the lock: let no key keep in another window what it used in a period that has ended."""
        family = self._model._family
        if ended:
            family.change(begin_due, (ended,))
        family.change(self._give_caps, arguments)

    def _give_caps(
        self, change: Change, token_cap: Any, nano_cap: Any, window: Any, reading: tuple[Any, Any, Any]
    ) -> None:
        caps = zip(self._caps, (token_cap, nano_cap), strict=True)
        change.set(self, "_caps", tuple(old if new is UNCHANGED else new for old, new in caps))
        accounts = [self._model._account, *self._accounts()]
        for account in accounts:
            tokens = UNCHANGED if "token_cap" in account.own else token_cap
            nanos = UNCHANGED if "nano_cap" in account.own else nano_cap
            _settings.give_caps(change, account, tokens, nanos)
        if window is not UNCHANGED:
            change.keep(self._window)
            change.set(self, "_window", window)
            change.set(self._calendar, "latest", None if window is None else reading[1:])
            others = [account for account in accounts if "window" not in account.own]
            for account in others:
                change.set(account, "calendar", None if window is None else self._calendar)
            _settings.give_window(change, self._model._family, others, window, reading)

    def _listen(self, subscribers: tuple[Any, ...], thresholds: tuple[Threshold, ...]) -> None:
        """See `KeyedPools.subscribe` and `on_threshold`."""
        family = self._model._family
        family.run(family.locked, PAY, family.change, self._with_listeners, (subscribers, thresholds))

    def _with_listeners(self, change: Change, subscribers: tuple[Any, ...], thresholds: tuple[Threshold, ...]) -> None:
        change.set(self, "_watch", _settings.with_listeners(self._watch, subscribers, thresholds))
        for account in self._accounts():
            change.gate(account, watch=_settings.with_listeners(account.watch, subscribers, thresholds))

    def _ignore(self, item: Subscription | Threshold) -> None:
        """Forget what listens to all keys; nothing if it is not there."""
        family = self._model._family
        family.run(family.locked, PAY, family.change, self._without_listener, (item,))

    def _without_listener(self, change: Change, item: Subscription | Threshold) -> None:
        change.set(item, "heard", False)  # noqa: FBT003 - for the pools of deleted keys
        if self._watch is not None:
            change.keep(self._watch)
            change.set(self, "_watch", _settings.without_listener(self._watch, item))
        for account in self._accounts():
            _without_listener(change, account, item)
