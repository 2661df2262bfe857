"""KeyedPools: a child pool for each key (user, project, run), made when it is first asked for."""

from __future__ import annotations

from collections import deque
from weakref import ref

from token_budget._family import CLOSED, Account

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator
    from typing import Any

    from token_budget._family import Chain
    from token_budget._pool import BudgetPool
    from token_budget._window import Window

_LOOK_AT = 2  # how many old keys each new one pays to look at


class KeyAccount(Account):
    """What one key has claimed. It outlives the pool that callers hold, which is made anew when it is asked for."""

    __slots__ = ("_pool_ref",)
    _pool_ref: ref[BudgetPool]


class KeyedPools:
    """Child pools of one parent by key, all with the same caps: ``users["user-123"].reserve(...)``.

    ``BudgetPool.keyed`` makes it. Any hashable key will do; its text is the pool's name. The same key gives the same
    budget, whoever asks and whenever. A key is forgotten when that loses nothing: nothing is in flight, nothing is used
    or its period is over, its caps are those of the others, nobody subscribed, and nobody holds its pool or one below.
    Looking up may be done from any thread and blocks for nothing but the lock.
    """

    __slots__ = ("__weakref__", "_accounts", "_caps", "_latest", "_name", "_parent", "_rota", "_window")

    def __init__(
        self, parent: BudgetPool, caps: tuple[int | None, int | None], name: str | None, window: Window | None
    ) -> None:
        self._parent = parent
        self._caps = caps
        self._name = name
        self._window = window
        # The family's lock guards all three. A key is in the rota when it is in the accounts.
        self._accounts: dict[Hashable, KeyAccount] = {}
        self._latest: tuple[float, float] | None = None  # the latest period that any key was in
        self._rota: deque[Hashable] = deque()
        parent._family.adopt(parent._scopes(), None, self)

    def __getitem__(self, key: Hashable) -> BudgetPool:
        """Return the pool of a key.

        Raises:
            TypeError: the key is not hashable.
        """
        account = self._accounts.get(key)
        if account is not None:
            pool = account._pool_ref()
            if pool is not None:  # and so it is not forgotten meanwhile
                return pool
        account = KeyAccount()
        text = str.__str__(str(key))[:200]
        name = text if self._name is None else f"{self._name}:{text}"[:200]
        account._open_account(*self._caps, name, self._window)
        family, above = self._parent._family, self._parent._scopes()
        account._parent = above[0]
        pool = self._parent._below(account, above, (self._parent,))
        return family.run(family.locked, above, self._enter, key, pool)  # type: ignore[no-any-return]

    def _enter(self, chain: Chain, key: Hashable, pool: BudgetPool) -> BudgetPool:
        family = self._parent._family
        known = self._accounts.get(key)
        if known is not None:
            held = known._pool_ref()
            if held is not None:
                return held
            pool._bind(known, chain)
            known._pool_ref = ref(pool)
        else:
            account: Any = pool._scopes()[0]
            account._pool_ref = ref(pool)
            family.marks = account._number = family.marks + 1
            self._not_before_the_latest(account)
            self._rota.append(key)
            self._accounts[key] = account
            for _ in range(_LOOK_AT):
                self._look_at_next(account)
        family.register(pool)
        return pool

    def _not_before_the_latest(self, account: KeyAccount) -> None:
        """Open an account in the latest period that there was: a clock that steps back reopens none."""
        start, end = account._terms[3:]
        if start is None or end is None:
            return
        if self._latest is None or end > self._latest[1]:
            self._latest = (start, end)
        else:
            account._terms = (*account._terms[:3], *self._latest)
            account._period_end = self._latest[1]

    def _look_at_next(self, newest: KeyAccount) -> None:
        """Look at the key whose turn it is, and forget it if nothing is lost by that."""
        key = self._rota[0]
        account = self._accounts.get(key)
        if (
            account is not None
            and account._pool_ref() is None
            and account._in_flight == 0
            and account._watch is None
            and account._terms[:2] == self._caps
            and account._token_limit != CLOSED
        ):
            period_start = newest._terms[3]
            if account._tokens_claimed == account._nanos_claimed == 0 or (
                period_start is not None and period_start >= account._period_end
            ):
                del self._accounts[key]
        if key in self._accounts:
            self._rota.append(key)
        self._rota.popleft()

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._accounts)

    def __iter__(self) -> Iterator[Hashable]:
        """The keys that are remembered."""
        return iter(list(self._accounts))

    def __contains__(self, key: object) -> bool:
        return key in self._accounts

    def __repr__(self) -> str:
        named = "" if self._name is None else f" {self._name}"
        return f"<KeyedPools{named} {len(self)} keys>"
