"""The long way of what changes a pool itself: reset, caps, window, closing, listeners, new members, detaching.

Each operation has the two parts that `_ledger.py` tells of.
"""

from __future__ import annotations

from token_budget._account import Account, Subscription, Threshold, Watch, current
from token_budget._arguments import UNCHANGED
from token_budget._family import PAY
from token_budget._ledger import operate, spend, untimed
from token_budget._line import closed
from token_budget._money import UNBOUNDED
from token_budget._periods import begin_anew, begin_period
from token_budget._scope import accounts_of, home_of, rebindable, scopes_of, ways

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from token_budget._change import Change
    from token_budget._family import Family, Register
    from token_budget._scope import Chain, Scope
    from token_budget._window import Window

    Failure = Callable[[], Exception] | None


def reset(scope: Scope) -> None:
    """See `BudgetPool.reset`."""
    spend(scope, _reset)


def _reset(change: Change, _family: Family, chain: Chain) -> None:
    begin_anew(change, chain[0])
    change.note("reset", chain, chain[0].terms[2])


# ---------------------------------------------------------------------- caps and windows


def set_caps(scope: Scope, token_cap: Any, nano_cap: Any, window: Any) -> None:
    """See `BudgetPool.set_caps`; an argument may be UNCHANGED."""
    reading = reading_of(window)
    spend(scope, _set_caps, token_cap, nano_cap, window, reading)


def reading_of(window: Any) -> tuple[Any, Any, Any]:
    """Return what time it is by a window, which may be None or UNCHANGED, and its period: its start and its end."""
    if window is None or window is UNCHANGED:
        return None, None, None
    now = window.now()
    return now, *window.period(now)


def _set_caps(
    change: Change,
    family: Family,
    chain: Chain,
    token_cap: Any,
    nano_cap: Any,
    window: Any,
    reading: tuple[Any, Any, Any],
) -> Failure:
    account = chain[0]
    if account.closed:
        return closed(account)
    news = {"token_cap": token_cap, "nano_cap": nano_cap, "window": window}
    change.set(account, "own", account.own.union(name for name, value in news.items() if value is not UNCHANGED))
    give_caps(change, account, token_cap, nano_cap)
    if window is not UNCHANGED:
        change.set(account, "calendar", None)
        give_window(change, family, [account], window, reading)
    return None


def give_caps(change: Change, account: Account, token_cap: Any, nano_cap: Any) -> None:
    """Note the caps of an account, each of which may be UNCHANGED."""
    token_limit, nano_limit = account.token_limit, account.nano_limit
    if token_cap is not UNCHANGED:
        token_limit = UNBOUNDED if token_cap is None else token_cap
    if nano_cap is not UNCHANGED:
        nano_limit = UNBOUNDED if nano_cap is None else nano_cap
    watch = _armed_again(account, token_limit, nano_limit)
    change.gate(account, token_limit=token_limit, nano_limit=nano_limit, watch=watch)
    change.terms(account, *account.terms[3:])
    if account.line is not None:
        change.stirred.append(account)


def give_window(
    change: Change, family: Family, accounts: Iterable[Account], window: Window | None, reading: tuple[Any, Any, Any]
) -> None:
    """Note the window of accounts and the period that it is now. Let all know that count against one or wait for it."""
    now, *period = reading
    placed = dict.fromkeys(accounts, (window, *current((period[0], period[1]))))
    for account in placed:
        change.keep(account.window)
        change.set(account, "window", window)
        lives = {}
        for waiter in () if account.line is None else account.line.waiting():
            lives[waiter] = waiter.seeing(account, window, now, waiter.left())
            change.set(waiter, "lives_until", lives[waiter])
            change.debts.append(waiter)  # it has to sleep until another moment
        begin_period(change, account, (period[0], period[1]), lives)
    for scope in scopes_of(family):
        if rebindable(scope) and not placed.keys().isdisjoint(scope._chain):
            change.keep(scope._times)
            for name, value in ways(family, scope._chain, placed).items():
                change.set(scope, name, value)


def _armed_again(account: Account, token_limit: int, nano_limit: int) -> Watch | None:
    """Return the listeners with every threshold armed whose share of the new limits is above what is used."""
    watch = account.watch
    if watch is None:
        return None
    numbers = account.numbers()
    return watch.with_armed(
        tuple(
            threshold
            for threshold in watch.thresholds
            if threshold in watch.armed or not threshold.reached(numbers, token_limit, nano_limit)
        )
    )


def close(scope: Scope) -> None:
    """See `BudgetPool.close`."""
    operate(scope, _close)


def _close(change: Change, _family: Family, chain: Chain) -> None:
    closing(change, chain[0])


def closing(change: Change, account: Account) -> None:
    """Note that an account is closed."""
    change.gate(account, closed=True)
    if account.line is not None:
        change.stirred.append(account)


# ---------------------------------------------------------------------- listeners


def subscribe(scope: Scope, subscriptions: tuple[Any, ...], thresholds: tuple[Threshold, ...]) -> None:
    """See `BudgetPool.subscribe` and `on_threshold`."""
    operate(scope, _subscribe, subscriptions, thresholds)


def _subscribe(
    change: Change, family: Family, chain: Chain, subscriptions: tuple[Any, ...], thresholds: tuple[Threshold, ...]
) -> None:
    _listen(change, family, chain[0], with_listeners(chain[0].watch, subscriptions, thresholds))


def with_listeners(watch: Watch | None, subscriptions: tuple[Any, ...], thresholds: tuple[Threshold, ...]) -> Watch:
    """Return the listeners with these added."""
    old = watch or Watch((), (), ())
    return Watch((*old.subscribers, *subscriptions), (*old.thresholds, *thresholds), (*old.armed, *thresholds))


def unsubscribe(scope: Scope, item: Subscription | Threshold) -> None:
    """Forget a subscription or threshold; nothing if it is not there."""
    untimed(scope, _unsubscribe, item)


def _unsubscribe(change: Change, family: Family, chain: Chain, item: Subscription | Threshold) -> None:
    change.set(item, "heard", False)  # noqa: FBT003 - the value that is stored
    if chain[0].watch is not None:
        _listen(change, family, chain[0], without_listener(chain[0].watch, item))


def _listen(change: Change, family: Family, account: Account, watch: Watch | None) -> None:
    """Note who listens to an account. The first pool tries no straight run in vain while it has subscribers."""
    change.gate(account, watch=watch)
    first = family.first()
    if first is not None and account is family.root and rebindable(first):
        change.set(first, "_home", home_of(family, first._few, watch))


def without_listener(watch: Watch, item: object) -> Watch | None:
    """Return the listeners without this one; None if nobody is left."""
    subscribers = tuple(one for one in watch.subscribers if one is not item)
    thresholds = tuple(one for one in watch.thresholds if one is not item)
    armed = tuple(one for one in watch.armed if one is not item)
    return Watch(subscribers, thresholds, armed) if subscribers or thresholds else None


# ---------------------------------------------------------------------- members and copies


def adopt(scope: Scope, account: Account | None, register: Register, thing: object, bound: Scope) -> None:
    """Let one more pool, or a group of keyed ones, be of the family, if no scope of the chain is closed.

    `bound` is bound to its accounts again, since a window above may have changed since it was.
    """
    spend(scope, _adopt, account, register, thing, bound)


def _adopt(
    change: Change,
    family: Family,
    chain: Chain,
    account: Account | None,
    register: Register,
    thing: object,
    bound: Scope,
) -> Failure:
    for one in chain:
        if one.closed:
            return closed(one)
    if account is not None:
        change.set(family, "made", family.made + 1)
        change.set(account, "number", family.made + 1)
    for name, value in ways(family, bound._chain).items():
        change.set(bound, name, value)
    register.add(thing)
    return None


def detach(scope: Scope) -> None:
    """See `BudgetPool.detach`."""
    family = scope._family
    family.check_fork()
    family.torn = False  # it speaks of an operation of the budget that this was a copy of
    family.run(family.locked, PAY, family.change, _detach, (family, scope))


def _detach(change: Change, family: Family, scope: Scope) -> None:
    if family.spending is family.locked:
        return
    change.set(family, "opened", object())
    for account in accounts_of(scope):
        tokens, held, nanos, nanos_held, _ = account.numbers()
        change.numbers(account, (tokens - held, 0, nanos - nanos_held, 0, 0))
    change.set(family, "spending", family.locked)
