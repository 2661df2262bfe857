"""What the pools of a store raise beyond what every pool raises."""

from __future__ import annotations

from token_budget.contract import BudgetUnavailable


class StoreLost(BudgetUnavailable):
    """The store no longer has what this budget has counted: it was emptied, deleted, replaced or is an older copy.

    It never grants a fresh budget in silence. Restore the store, or begin anew on purpose with a pool of another name.
    ``create=False`` raises it too where there is no budget of that name.
    """


class StoreError(Exception):
    """The store cannot keep this budget, and repeating the call does not help. Nothing was changed.

    It is no file of ours, corrupt, of a newer version, not writable, on a network file system; or a server that evicts
    keys, refuses the login, or has other data under our keys. The text says which, and what to do.
    """


class Nested(RuntimeError):
    """The thread is in the middle of a call to the same store: in a signal handler or finaliser. Nothing was done."""


class StoreMismatch(ValueError):
    """Another living process has opened the same pool with other caps or another window. Nothing was changed.

    The text has both values, who the other process is, and the ways out: ``caps="mine"`` overrides, ``caps="stored"``
    takes what the store has, and `set_caps` changes it for everybody.
    """
