"""RedisBudgetPool: one budget for the processes of many hosts, in Redis or Valkey."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, SupportsIndex

from token_budget._window import Window
from token_budget.contract import Amount
from token_budget.stores._family import StoreFamily
from token_budget.stores._governed import checked_manner, checked_seconds
from token_budget.stores._outage import Allowing
from token_budget.stores._pool import Caps, StorePool, checked_opening
from token_budget.stores._store import Store
from token_budget.stores.redis._client import Client
from token_budget.stores.redis._keys import location_of, root_key
from token_budget.stores.redis._store import RedisStore

_SHORTEST = 1.0  # seconds of a lease: a third of it is the time between renewals


class RedisBudgetPool(StorePool):
    """A budget of tokens and dollars in Redis or Valkey, for the processes of many hosts.

    Each process opens it by the same line. What one of them spends or holds counts for all, and no two of them ever
    spend the same room. A process that was not heard of for the length of its lease counts as dead: what it held is
    charged in full and listed by `expired`.

    The server must not evict keys (``maxmemory-policy noeviction``, which is its default), and what it loses is not
    known to anybody: let it keep an append-only file. With ``appendfsync everysec`` a crash may take the last seconds,
    with ``always`` nothing.

    Args:
        client: ``redis.Redis(...)``, ``valkey.Valkey(...)``, ``RedisCluster``, ``ValkeyCluster``, or what
            ``Sentinel(...).master_for(...)`` returns. The pool copies its settings and makes connections of its own,
            one for each thread that asks at the same time; ``timeout`` holds in place of the client's time-outs and
            retries. Methods that are awaited use it too, in a thread: there is no need for a client of asyncio.
        name: which budget of the server's database it is. Its keys begin with ``tb:{name}``.
        token_cap: the most tokens. None: what the store has; no cap where it has none.
        usd_cap: the most dollars; None as for ``token_cap``.
        window: the period after which it starts to count anew, by the server's clock; None as for ``token_cap``.
        timeout: how many seconds a step may take, above 0. After that it raises BudgetUnavailable.
        lease: seconds until a process that says nothing counts as dead, at least 1. It is renewed at a third of it.
        caps: what holds where the store has another cap or window than the one that is given. ``"code"``: the given one
            from now on, for everybody, unless another living process has given another (then StoreMismatch).
            ``"mine"``: the given one in any case. ``"stored"``: the one that the store has.
        create: False raises StoreLost where the store has no such budget, so that an emptied server is no fresh budget.
        on_unavailable: ``"refuse"`` raises BudgetUnavailable while the server cannot be used. ``"allow"`` lets calls
            pass then, counts them in this process, and records them when the server is back.

    Raises:
        TypeError: a bad argument; a client for asyncio.
        ValueError: a bad argument; a client whose settings cannot be copied, or that reads from replicas; or this
            process has the budget open with another ``timeout``, ``lease`` or ``on_unavailable``.
        StoreMismatch: see ``caps``.
        StoreLost: the store has no such budget, and ``create`` is false; or it has lost some of it.
        StoreError: the server evicts keys, refuses the login, or has other data under the budget's keys.
        BudgetUnavailable: the server cannot be used now.

    Example:
        >>> import redis  # doctest: +SKIP
        >>> from token_budget.stores import RedisBudgetPool
        >>> total = RedisBudgetPool(redis.Redis(), name="total", usd_cap=500)  # doctest: +SKIP
        >>> users = total.keyed(usd_cap=10, name="user")  # doctest: +SKIP
        >>> with users["ann"].reserve(usd=0.012, timeout=30) as reservation:  # doctest: +SKIP
        ...     reservation.commit(usd=0.0099)
    """

    __slots__ = ()

    def __init__(
        self,
        client: Any,
        token_cap: SupportsIndex | None = None,
        usd_cap: Amount | None = None,
        *,
        name: str,
        window: Window | None = None,
        timeout: float = 5,
        lease: float = 600,
        caps: Caps = "code",
        create: bool = True,
        on_unavailable: Literal["refuse", "allow"] = "refuse",
    ) -> None:
        """Open it; see the class."""
        checked_opening(name, token_cap, usd_cap, window, caps)
        seconds = checked_manner(timeout, on_unavailable, create)
        living = checked_seconds(lease, "lease", _SHORTEST)
        plain = str.__str__(name)
        own = Client(client, key=root_key(plain), timeout=seconds)
        make = partial(_made, own, plain, living, on_unavailable)
        options: dict[str, Any] = {"timeout": seconds, "lease": living, "on_unavailable": on_unavailable}
        family = StoreFamily.of(location_of(own, plain), make, **options)
        self._open(family, plain, token_cap, usd_cap, window, caps, create)


def _made(client: Client, name: str, lease: float, on_unavailable: str) -> Store:
    store: Store = RedisStore(client, name=name, lease=lease)
    return Allowing(store) if on_unavailable == "allow" else store
