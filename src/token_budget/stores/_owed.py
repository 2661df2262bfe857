"""Owed: what the finalisers of reservations left to be done, by the family's worker or by the next operation.

A finaliser runs anywhere, also in the middle of a step of the store. So it only notes what is owed, and tells the
worker. Until it is paid, operations of this process pay it first: they find the room that was dropped before them. Two
may pay at the same moment, since the steps may be repeated.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from token_budget._money import usd_text
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import Nested, StoreLost
from token_budget.stores._listening import heard
from token_budget.stores._store import Answer

_MOST = 16  # so many are paid by one operation, at most: the worker does the rest
_logger = logging.getLogger("token_budget")
_owed: WeakKeyDictionary[Any, deque[Debt]] = WeakKeyDictionary()  # by family


class Debt:
    """One claim that nobody holds any more: it is to be cancelled, or committed again."""

    __slots__ = ("amount", "epoch", "held", "key", "kind", "paid", "pool", "untold")

    def __init__(
        self, pool: Any, epoch: int, key: Any, held: tuple[int, int], kind: str | None, amount: tuple[int, int] | None
    ) -> None:
        self.pool = pool
        self.epoch = epoch  # what was owed before a fork is the parent's
        self.key = key
        self.held = held
        self.kind = kind  # the event that tells of it; None for one that was never told to be held
        self.amount = amount  # of a commit that the store has not answered; None: cancel
        self.paid = False
        self.untold = [True]  # whoever pops it tells of it, since a step that is repeated has the same answer

    def pay(self) -> None:
        """Do the step, and tell of it. It may be repeated."""
        pool, family = self.pool, self.pool._family
        if family.here() != self.epoch:
            return
        if self.amount is not None:
            self._commit(self.amount)
            return
        held = family.ask(family.store.cancel, pool._chain, self.key, self.held)
        if pool._own is not None:
            pool._own.settle(self.key, 0, 0)
        if not held:
            return
        if self.kind is not None and self._first() and family.listeners and heard(pool._heard):
            pool._tell(self.kind, *self.held)
        family.line.stir(pool._chain)

    def _commit(self, amount: tuple[int, int]) -> None:
        pool, family = self.pool, self.pool._family
        answer: Answer = family.ask(family.store.commit, pool._chain, self.key, self.held, amount)
        if pool._own is not None:
            pool._own.settle(self.key, *amount)
        family.line.stir(pool._chain)
        if self._first():
            _logger.warning(
                "a commit of %s tokens and %s USD in pool %r, which the store had not answered, is recorded (%s)",
                amount[0],
                usd_text(amount[1]),
                pool._name,
                answer.kind,
            )

    def _first(self) -> bool:
        """Return whether nobody has told of it."""
        try:
            return self.untold.pop()
        except IndexError:
            return False


def owed_of(family: Any) -> deque[Debt]:
    """Return what is owed to a family, oldest first."""
    return _owed.setdefault(family, deque())


def owe(owed: deque[Debt], debt: Debt) -> None:
    """Note a debt, and let the worker pay it. It takes no lock: it may be called at any point of any thread."""
    owed.append(debt)
    debt.pool._family.hand.drop(pay, owed, debt)


def pay(owed: deque[Debt], debt: Debt) -> None:
    """Pay a debt, unless it is paid. Raises BudgetUnavailable where the store does not answer: it is owed still.

    So it is where Nested is raised: a call in the middle of another one of its thread cannot ask. A store that has lost
    the claim's scope can never be paid: that is logged, and holds up nobody else.
    """
    if not debt.paid:
        try:
            debt.pay()
        except StoreLost as error:
            spent = debt.amount or (0, 0)
            _logger.error(  # noqa: TRY400 - the text says it all
                "a reservation in pool %r that was dropped could not be settled (not recorded: tokens %d | usd %s): %s",
                debt.pool._name,
                spent[0],
                usd_text(spent[1]),
                error,
            )
        except (BudgetUnavailable, Nested):
            raise
        except Exception:
            _logger.exception("a reservation in pool %r that was dropped could not be settled", debt.pool._name)
        debt.paid = True
    with suppress(ValueError):  # another thread has paid it as well
        owed.remove(debt)


def catch_up(owed: deque[Debt]) -> None:
    """Pay what is owed, some of it if it is much. Raises what `pay` does."""
    for _ in range(_MOST):
        try:
            debt = owed[0]
        except IndexError:  # all is paid
            return
        pay(owed, debt)
