"""RedisStore: the engine of a budget in Redis or Valkey. A step is one script, but for what has to be mended first."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

from token_budget._window import Window
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError
from token_budget.stores._store import Answer, Charged, Group, News, Numbers, Opened, Scope
from token_budget.stores.redis import _claims, _scopes
from token_budget.stores.redis._keys import Keys, location_of
from token_budget.stores.redis._mending import bury
from token_budget.stores.redis._process import Claim, Process
from token_budget.stores.redis._watching import Heads, Watcher

_SOON = 1.0  # seconds until what the store did not answer is tried again
_logger = logging.getLogger("token_budget")


class RedisStore:
    """See `Store`. Claims are `Claim`; a scope's handle is its `Place`.

    ``lease``: seconds after which a process that was not heard of counts as dead, and what it holds is charged in full.
    It is renewed by `tend` at a third of it, and by operations.
    """

    name: str
    location: str
    news: deque[News]
    leased: bool = True  # a process that ends without a word counts as living until its lease ends

    def __init__(self, client: Any, *, name: str, lease: float = 600) -> None:
        """Make an engine over a client (`_client.Client`); nothing is sent."""
        self.name = name
        self.location = location_of(client, name)
        self._process = Process(client, Keys(name), lease)
        self._watcher = Watcher(self._process)
        self.news = self._process.news

    # ------------------------------------------------------------------ scopes

    def open(
        self,
        scope: Scope | Group,
        token_cap: int | None,
        nano_cap: int | None,
        window: Window | None,
        how: str,
        *,
        create: bool = True,
    ) -> Opened:
        """See `Store.open`."""
        return _scopes.open_scope(self._process, scope, (token_cap, nano_cap, window), how, create=create)

    def set_caps(self, scope: Scope, token_cap: Any, nano_cap: Any, window: Any) -> None:
        """See `Store.set_caps`."""
        _scopes.set_caps(self._process, scope, token_cap, nano_cap, window)

    def set_group(self, group: Group, token_cap: Any, nano_cap: Any, window: Any) -> None:
        """See `Store.set_group`."""
        _scopes.set_caps(self._process, group, token_cap, nano_cap, window)

    def reset(self, scope: Scope) -> None:
        """See `Store.reset`."""
        _scopes.reset(self._process, scope)

    def close(self, scope: Scope) -> None:
        """See `Store.close`."""
        _scopes.close(self._process, scope)

    def forget(self, scope: Scope) -> bool:
        """See `Store.forget`."""
        return _scopes.forget(self._process, scope)

    def keys(self, group: Group) -> list[str]:
        """See `Store.keys`."""
        return _scopes.keys(self._process, group)

    def knows(self, scope: Scope) -> bool:
        """See `Store.knows`."""
        return _scopes.knows(self._process, scope)

    # ------------------------------------------------------------------ spending

    def new_key(self) -> Claim:
        """See `Store.new_key`."""
        return self._process.new_claim()

    def id_of(self, key: Claim) -> str:
        """See `Store.id_of`."""
        return key.id

    def reserve(
        self, chain: Sequence[Scope], key: Claim, tokens: int, nanos: int, *, wait: bool = False, rows: bool = False
    ) -> Answer:
        """See `Store.reserve`."""
        return _claims.reserve(self._process, chain, key, tokens, nanos, wait=wait, rows=rows)

    def record(
        self, chain: Sequence[Scope], tokens: int, nanos: int, *, force: bool = False, rows: bool = False
    ) -> Answer:
        """See `Store.record`."""
        return _claims.record(self._process, chain, tokens, nanos, force=force, rows=rows)

    def commit(
        self,
        chain: Sequence[Scope],
        key: Claim,
        held: tuple[int, int],  # noqa: ARG002 - the store has it
        amount: tuple[int, int],
        *,
        rows: bool = False,
    ) -> Answer:
        """See `Store.commit`."""
        return _claims.commit(self._process, chain, key, amount, "c", rows=rows)

    def release(
        self,
        chain: Sequence[Scope],
        key: Claim,
        held: tuple[int, int],  # noqa: ARG002 - the store has it
        *,
        rows: bool = False,
    ) -> Answer:
        """See `Store.release`."""
        return _claims.commit(self._process, chain, key, (0, 0), "r", rows=rows)

    def cancel(self, chain: Sequence[Scope], key: Claim, held: tuple[int, int]) -> bool:  # noqa: ARG002 - as above
        """See `Store.cancel`."""
        return _claims.cancel(self._process, chain, key)

    def leave(self, chain: Sequence[Scope], key: Claim) -> Answer:
        """See `Store.leave`."""
        return _claims.leave(self._process, chain, key)

    def watch(self, heads: Heads, seconds: float) -> Collection[Any] | None:
        """See `Store.watch`."""
        return self._watcher.watch(heads, seconds)

    # ------------------------------------------------------------------ looking

    def read(self, chain: Sequence[Scope]) -> tuple[Numbers, ...]:
        """See `Store.read`."""
        return _scopes.read_chain(self._process, chain)

    def tree(self, scope: Scope) -> list[tuple[str, str, Numbers]]:
        """See `Store.tree`. A tree of more than 5,000 scopes is read in several steps."""
        return _scopes.tree(self._process, scope)

    def claim_threshold(self, scope: Scope, era: int, parts: int) -> bool:
        """See `Store.claim_threshold`."""
        return _scopes.claim_threshold(self._process, scope, era, parts)

    # ------------------------------------------------------------------ claims that outlive their holder

    def expired(self) -> list[Charged]:
        """See `Store.expired`."""
        return _claims.expired(self._process)

    def settle(self, claim_id: str, tokens: int, nanos: int) -> tuple[Answer, tuple[str, ...]]:
        """See `Store.settle`."""
        return _claims.settle(self._process, claim_id, tokens, nanos)

    def hand_over(
        self,
        chain: Sequence[Scope],
        key: Claim,
        held: tuple[int, int],  # noqa: ARG002 - as above
        lease: float,
    ) -> Claim:
        """See `Store.hand_over`."""
        return _claims.hand_over(self._process, chain, key, lease)

    # ------------------------------------------------------------------ the process

    def tend(self) -> float:
        """See `Store.tend`."""
        process = self._process
        if not process.generation:
            return float("inf")
        process.forget_stuck()
        try:
            with process.step() as step:
                if process.given_up:
                    _claims.cancel_given_up(step)
                if process.registered and process.due():
                    for owner in _claims.renew(step):
                        bury(step, owner)
        except (BudgetUnavailable, StoreError) as error:
            _logger.debug("the store is tended later: %s", error)
            return _SOON
        return process.seconds_to_renewal()

    def let_go(self) -> None:
        """See `Store.let_go`. Where the store does not answer, the lease ends by itself."""
        process = self._process
        owner, registered = process.owner, process.registered
        self._watcher.close()
        if registered:
            try:
                with process.step() as step:
                    _claims.cancel_given_up(step)
                    _claims.flush(step)
                    process.new_owner()
                    bury(step, owner, itself=True)
            except (BudgetUnavailable, StoreError) as error:
                _logger.debug("what this process held is charged at the end of its lease: %s", error)
                process.declared_dead(owner)
        process.client.close()

    def forked(self) -> None:
        """See `Store.forked`."""
        self._process.client.forked()
        self._process.begin()
        self._watcher.begin()
