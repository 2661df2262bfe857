"""SQLiteStore: the engine over one file. The steps that spend are in `_fast.py`; here are all others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any

from token_budget._arguments import UNCHANGED
from token_budget._window import Window
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError
from token_budget.stores._store import UNKNOWN, Answer, Charged, Group, Numbers, Opened, Scope
from token_budget.stores.sqlite import _claims, _owners, _settings, _slow, _waiters
from token_budget.stores.sqlite._connection import Unsynced, notice_forks
from token_budget.stores.sqlite._fast import FastPath, Pair
from token_budget.stores.sqlite._scopes import find
from token_budget.stores.sqlite._step import Step

_logger = logging.getLogger("token_budget")


class SQLiteStore(FastPath):
    """One root in one SQLite file, as this process has it: the `Store` of `SQLiteBudgetPool`."""

    def _begin(self) -> None:
        super()._begin()
        self._watch: _waiters.Watch = _waiters.Watch(self._ledger)

    # ------------------------------------------------------------------ waiting

    def leave(self, chain: Sequence[Scope], key: int) -> Answer:
        """See `Store.leave`."""
        answer: Answer = self._step(_waiters.leave, chain, key)
        return answer

    def watch(self, heads: Sequence[tuple[Sequence[Scope], Any, int, int]], seconds: float) -> Collection[Any] | None:
        """See `Store.watch`."""

        def look(work: Callable[..., Any], *arguments: Any) -> Any:
            return self._look(self._timeout, work, *arguments)

        def live() -> None:
            durable = False  # a sign of life is of no use after a power cut
            self._run(self._timeout, durable, _waiters.show_life, self._ledger.connection)

        return _waiters.watch(look, live, self._watch, heads, seconds)

    # ------------------------------------------------------------------ looking

    def read(self, chain: Sequence[Scope]) -> tuple[Numbers, ...]:
        """See `Store.read`."""
        rows: tuple[Numbers, ...] = self._charged_first(_slow.read, chain)
        return rows

    def tree(self, scope: Scope) -> list[tuple[str, str, Numbers]]:
        """See `Store.tree`."""
        rows: list[tuple[str, str, Numbers]] = self._charged_first(_slow.tree, scope)
        return rows

    def _charged_first(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Look, after the dead are charged: what is shown of them counts in the period in which it was seen first."""
        found, taken = self._seen(work, *arguments)
        if not taken:
            return found
        with suppress(BudgetUnavailable):  # a look does not fail because of a lock, and shows the same all the same
            self._step(_owners.sweep)
            found, _ = self._seen(work, *arguments)
        return found

    def claim_threshold(self, scope: Scope, era: int, parts: int) -> bool:
        """See `Store.claim_threshold`."""
        return bool(self._step(_settings.claim_threshold, scope, era, parts))

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
        opened: Opened
        if isinstance(scope, Group):
            opened = self._step(_settings.open_group, scope, token_cap, nano_cap, window, how)
        else:
            opened = self._step(_settings.open_scope, scope, token_cap, nano_cap, window, how, create=create)
        return opened

    def set_caps(self, scope: Scope, token_cap: Any, nano_cap: Any, window: Any) -> None:
        """See `Store.set_caps`."""
        self._step(_settings.set_caps, scope, _given(token_cap, nano_cap, window), window)

    def set_group(self, group: Group, token_cap: Any, nano_cap: Any, window: Any) -> None:
        """See `Store.set_group`."""
        self._step(_settings.set_group, group, _given(token_cap, nano_cap, window), window)

    def reset(self, scope: Scope) -> None:
        """See `Store.reset`."""
        self._step(_settings.reset, scope)

    def close(self, scope: Scope) -> None:
        """See `Store.close`."""
        self._step(_settings.close, scope)

    def forget(self, scope: Scope) -> bool:
        """See `Store.forget`."""
        return bool(self._step(_settings.forget, scope))

    def keys(self, group: Group) -> list[str]:
        """See `Store.keys`."""
        keys: list[str] = self._seen(_settings.keys, group)
        return keys

    def knows(self, scope: Scope) -> bool:
        """See `Store.knows`."""
        return self._seen(find, scope) is not None

    # ------------------------------------------------------------------ claims that outlive their holder

    def expired(self) -> list[Charged]:
        """See `Store.expired`."""
        found: list[Charged] = self._step(_claims.expired)
        return found

    def settle(self, claim_id: str, tokens: int, nanos: int) -> tuple[Answer, tuple[str, ...]]:
        """See `Store.settle`."""
        claim = _claims.claim_of(claim_id)
        if claim is None:
            return Answer(UNKNOWN), ()
        answer: tuple[Answer, tuple[str, ...]] = self._step(_claims.settle, claim, (tokens, nanos))
        return answer

    def hand_over(self, chain: Sequence[Scope], key: int, held: Pair, lease: float) -> int:  # noqa: ARG002
        """See `Store.hand_over`."""
        try:
            self._step(_claims.hand_over, key, lease)
        except Unsynced as error:  # the holder must let go of it all the same: its lease runs
            _logger.warning("%s is handed over: %s", self.id_of(key), error)
        return key

    # ------------------------------------------------------------------ the process

    def tend(self) -> float:
        """See `Store.tend`. The kernel knows who lives, so there is nothing to renew."""
        while self._owed:
            owed = self._owed.popleft()
            try:
                self._step(*owed)
            except (Unsynced, StoreError):
                pass  # it is done, but not known to be on the disk; or it never can be
            except BudgetUnavailable:
                self._owed.appendleft(owed)
                return 1.0
            self._paid(owed)
        return float("inf")

    def let_go(self) -> None:
        """See `Store.let_go`. A claim that is settled after that is corrected: the file is opened once more for it."""
        connection = self._ledger.connection
        try:
            self._step(self._leave)
        finally:
            self._ledger.registered = None
            self._ledger.gave.clear()
            connection.let_go()

    def _leave(self, step: Step) -> None:
        while self._owed:  # what was not to be done is undone before it is charged
            undo, *arguments = self._owed.popleft()
            undo(step, *arguments)
        _owners.let_go(step)

    def forked(self) -> None:
        """See `Store.forked`."""
        notice_forks()
        self._ledger.registered = None
        self._begin()


def _given(token_cap: Any, nano_cap: Any, window: Any) -> dict[str, Any]:
    """Return the values that are not UNCHANGED, a window as its text."""
    values = {"token_cap": token_cap, "nano_cap": nano_cap, "window": window}
    given = {what: value for what, value in values.items() if value is not UNCHANGED}
    if "window" in given:
        given["window"] = _settings.text_of(window)
    return given
