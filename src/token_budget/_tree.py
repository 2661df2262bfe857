"""Looking: one pool's numbers, or those of a whole tree as of one moment, and how many there are of what."""

from __future__ import annotations

from token_budget._account import Account
from token_budget._family import PAY
from token_budget._ledger import operate
from token_budget._periods import due, roll_over
from token_budget._scope import Scope, accounts_of

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from typing import Any

    from token_budget._snapshot import BudgetSnapshot


def snapshot(scope: Scope) -> BudgetSnapshot:
    """See `BudgetPool.snapshot`."""
    return operate(scope, _shown)  # type: ignore[no-any-return]


def _shown(_change: object, _family: object, chain: tuple[Account, ...]) -> BudgetSnapshot:
    return chain[0].shown()


def tree(scope: Scope) -> BudgetSnapshot:
    """See `BudgetPool.snapshot`, with all pools below it."""
    family = scope._family
    ended = due(family.run(family.locked, PAY, accounts_of, scope))
    return family.run(family.locked, PAY, _tree, scope, ended)  # type: ignore[no-any-return]


def _tree(scope: Scope, ended: Any) -> BudgetSnapshot:
    roll_over(scope, ended)
    while True:  # once more where a handler of this thread came in between: all is to be as of one moment
        version = scope._family.version
        shown = _shown_tree(scope)
        if version == scope._family.version:
            return shown


def _shown_tree(scope: Scope) -> BudgetSnapshot:
    below: dict[Account | None, list[Account]] = {}
    for account in accounts_of(scope):
        below.setdefault(account.parent, []).append(account)
    # Parents before children, then shown from the last to the first: a tree may be as deep as it likes.
    order = [scope._account]
    for account in order:
        order += below.get(account, ())
    done: dict[Account, BudgetSnapshot] = {}
    for account in reversed(order):
        children = sorted(below.get(account, ()), key=lambda child: child.number)
        done[account] = account.shown(children=tuple([done.pop(child) for child in children]))
    return done[scope._account]


def statistics(scope: Scope) -> tuple[int, int, int, int]:
    """See `BudgetPool.statistics`."""
    family = scope._family
    return family.run(family.locked, PAY, _statistics, scope)  # type: ignore[no-any-return]


def _statistics(scope: Scope) -> tuple[int, int, int, int]:
    account = scope._account
    line, watch = account.line, account.watch
    waiters = 0 if line is None else len(line.waiting())
    children = sum(one.parent is account for one in accounts_of(scope))
    listeners = 0 if watch is None else len(watch.subscribers) + len(watch.thresholds)
    return account.in_flight, waiters, children, listeners
