"""Scope: what an operation counts against. A pool is one. Claim: what is held of a scope. A reservation is one."""

from __future__ import annotations

from token_budget._account import Account
from token_budget._family import Family
from token_budget._window import system_time

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    import typing
    from collections.abc import Callable
    from typing import Any

    from token_budget._account import Watch
    from token_budget._window import Window

    Chain = tuple[Account, ...]
    Times = tuple[Callable[[], float] | None, float, float]
    Place = tuple[Window | None, float, float]
    Placed = dict[Account, Place]
else:
    from token_budget._lazy import typing


class Away:
    """Stands where a pool that does not stand alone would find its family: its operations go to `_straight.py`."""

    __slots__ = ()
    pending = True


AWAY = Away()


class Scope:
    """A chain of accounts, its own first and the family's first last, and the shortest way to change them.

    ``_few`` tells the way: None where the account stands alone and has no window (a straight run in the pool's own
    methods); three accounts (`_straight.py`; the family's `void` fills up), with two more in ``_more`` where the chain
    has four or five; or () where only the long way serves.
    """

    __slots__ = ("_account", "_chain", "_family", "_few", "_home", "_more", "_times")
    _account: Account
    _chain: tuple[Account, ...]
    _family: Family
    _home: typing.Any  # the family, for a pool that stands alone without a window or subscribers; AWAY for the rest
    _few: tuple[Account, ...] | None
    _more: tuple[Account, ...] | None
    # (clock, since, until): while ``since <= clock() < until`` no period of the chain ends or is too far ahead. None
    # stands for no window in the chain, and a clock of None for the system's. One value, so that it is read whole; a
    # straight run may rely on it, since whatever makes it too late makes `since` too late as well.
    _times: tuple[typing.Any, float, float] | None

    def _bind(self, family: Family, chain: Chain) -> None:
        """Count against these accounts from now on."""
        self._family = family
        self._account = chain[0]
        self._chain = chain
        for name, value in ways(family, chain).items():
            object.__setattr__(self, name, value)  # a subclass may have a `__setattr__` of its own


def ways(family: Family, chain: Chain, placed: Placed | None = None) -> dict[str, Any]:
    """Return what a scope of these accounts has in `_few`, `_more`, `_times` and `_home`.

    `placed` has the window and the times of accounts that are about to get others: (window, since, period end).
    """
    times, watch = times_of(chain, placed), chain[0].watch
    windows = [_placed(account, placed)[0] for account in chain]
    clocks = [window.clock for window in windows if window is not None]
    filled = (*chain, *(family.void,) * 4)
    few: Chain | None = filled[:3]
    more = filled[3:5] if len(chain) > 3 else None
    if len(chain) > 5 or any(clock is not clocks[0] and clock != clocks[0] for clock in clocks):
        few, more = (), None  # too many, or no one clock tells
    elif len(chain) == 1 and times is None:
        few = None
    return {"_few": few, "_more": more, "_times": times, "_home": home_of(family, few, watch)}


def home_of(family: Family, few: Chain | None, watch: Watch | None) -> Any:
    """Return where a pool's own straight runs find the family: AWAY where they serve nothing."""
    return AWAY if few is not None or (watch is not None and watch.subscribers) else family


def times_of(chain: Chain, placed: Placed | None = None) -> Times | None:
    """Return what a scope of these accounts has in `_times`."""
    places = [_placed(account, placed) for account in chain]
    windows = [window for window, _, _ in places if window is not None]
    if not windows:
        return None
    clock = windows[0].clock
    since, until = max(since for _, since, _ in places), min(end for _, _, end in places)
    return None if clock is system_time else clock, since, until


def _placed(account: Account, placed: Placed | None) -> Place:
    found = None if placed is None else placed.get(account)
    return found or (account.window, account.since, account.period_end)


class Claim:
    """An amount, the scope that it is held of, and its state.

    The state is None at first, the family's `opened` while the amount is held, and then how that ended.
    """

    __slots__ = ("_nanos", "_pool", "_state", "_tokens")
    _teller = None  # as something that is owed (`Family.pay`), anybody may pay it
    _pool: Scope
    _tokens: int
    _nanos: int
    _state: object


def scopes_of(family: Family) -> list[Scope]:
    """Return all pools of the family that are alive, those of keys too, and what pools of keys are made after."""
    found = [*family.scopes]
    for group in family.groups:
        found += group._scopes()
    return found


def accounts_of(scope: Scope) -> list[Account]:
    """Return the accounts of all pools of the family that are alive, and of all keys; the first pool's comes first."""
    family = scope._family
    found = dict.fromkeys([family.root, *scope._chain])
    for pool in family.scopes:
        found.update(dict.fromkeys(pool._chain))
    for group in family.groups:
        found.update(dict.fromkeys(group._accounts()))
    return list(found)
