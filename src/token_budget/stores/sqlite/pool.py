"""SQLiteBudgetPool: one budget for all processes of one host, in one file."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, Literal, SupportsIndex

from token_budget._window import Window
from token_budget.contract import Amount
from token_budget.stores._family import StoreFamily
from token_budget.stores._governed import checked_manner
from token_budget.stores._outage import Allowing
from token_budget.stores._pool import Caps, StorePool, checked_opening
from token_budget.stores._store import Store
from token_budget.stores.sqlite._fast import location_of
from token_budget.stores.sqlite._file import resolved
from token_budget.stores.sqlite._store import SQLiteStore


class SQLiteBudgetPool(StorePool):
    """A budget of tokens and dollars in an SQLite file, for all processes of one host.

    Each process opens it by the same line. What one of them spends or holds counts for all, and no two of them ever
    spend the same room. A process that dies is noticed at once: what it held is charged in full and listed by
    `expired`. The file needs a local disk; for many hosts use `RedisBudgetPool`.

    Args:
        path: the file. It is made if there is none, readable by its owner alone. Beside it lie ``-wal`` and ``-shm``,
            which are SQLite's, and ``.lock`` and ``.alive``. To begin anew delete all of them.
        name: which budget of the file it is; a file may have several.
        token_cap: the most tokens. None: what the file has; no cap where it has none.
        usd_cap: the most dollars; None as for ``token_cap``.
        window: the period after which it starts to count anew; None as for ``token_cap``.
        durable: whether a step answers when it is on the disk. With False a power cut may lose the last seconds; the
            end of the process, however it ends, loses nothing either way.
        timeout: how many seconds a step may take, above 0. After that it raises BudgetUnavailable.
        caps: what holds where the file has another cap or window than the one that is given. ``"code"``: the given one
            from now on, for everybody, unless another living process has given another (then StoreMismatch).
            ``"mine"``: the given one in any case. ``"stored"``: the one that the file has.
        create: False raises StoreLost where the file has no such budget, so that an emptied disk is no fresh budget.
        on_unavailable: ``"refuse"`` raises BudgetUnavailable while the file cannot be used. ``"allow"`` lets calls pass
            then, counts them in this process, and records them when the file is back.

    Raises:
        TypeError, ValueError: a bad argument; or this process has the budget open with another ``durable``, ``timeout``
            or ``on_unavailable``.
        StoreMismatch: see ``caps``.
        StoreLost: there is no such budget, and ``create`` is false; or there was one, and it was deleted.
        StoreError: the file cannot keep a budget: it is another program's, corrupt, of a newer version, not writable.
        BudgetUnavailable: the file cannot be used now.

    Example:
        >>> from token_budget.stores import SQLiteBudgetPool
        >>> pool = SQLiteBudgetPool("budget.db", name="nightly", usd_cap=50)  # doctest: +SKIP
        >>> with pool.reserve(usd=0.012) as reservation:  # doctest: +SKIP
        ...     reservation.commit(usd=0.0099)
    """

    __slots__ = ()

    def __init__(
        self,
        path: str | os.PathLike[str],
        token_cap: SupportsIndex | None = None,
        usd_cap: Amount | None = None,
        *,
        name: str,
        window: Window | None = None,
        durable: bool = True,
        timeout: float = 5,
        caps: Caps = "code",
        create: bool = True,
        on_unavailable: Literal["refuse", "allow"] = "refuse",
    ) -> None:
        """Open it; see the class."""
        checked_opening(name, token_cap, usd_cap, window, caps)
        seconds = checked_manner(timeout, on_unavailable, create)
        real = resolved(path)
        options: dict[str, Any] = {"durable": bool(durable), "timeout": seconds}
        make = partial(_made, real, on_unavailable, name=str.__str__(name), create=create, **options)
        family = StoreFamily.of(location_of(real, name), make, **options, on_unavailable=on_unavailable)
        self._open(family, name, token_cap, usd_cap, window, caps, create)


def _made(path: str, on_unavailable: str, **options: Any) -> Store:
    store: Store = SQLiteStore(path, **options)
    return Allowing(store) if on_unavailable == "allow" else store
