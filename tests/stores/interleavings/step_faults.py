"""Faults that are planted, to see that the scenarios find them: edited scripts, replaced SQL and functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from token_budget.stores.sqlite import _claims, _fast, _owners, _slow, _waiters

# name: (the script, or what it includes; the text; what it becomes). Every script that has the text is edited.
SCRIPTS: dict[str, tuple[tuple[str, str], ...]] = {
    "no undo of a reserve that is done half": (
        ("    for i = 1, at - 1 do\n", "    for i = 1, 0 do\n"),
    ),
    "no look whether a reserve is a repeat": (
        ("    return {'granted', rows()}\n  end\n  ticket, place =", "    ticket = 0\n  end\n  ticket, place ="),
    ),
    "no look whether a record is a repeat": (
        ("if entry then\n  if match(entry, '^=[xX]') then", "if false then\n  if match(entry, '^=[xX]') then"),
    ),
    "no look whether a commit is a repeat": (
        ("      if by and by ~= 'r' then return {'repeat', was, nanos_was, rows()} end\n", ""),
        ("      if name == op or by == 'r' and mode == 'r' then return {what, before, nanos_before, rows()} end\n", ""),
    ),
    "no look at a scope's marker": (
        ("    if s[1] ~= ARGV[6 + 4 * i] then return nil, {'changed', i} end\n", ""),
    ),
    "a dead holder's claim is released": (
        ("if tokens ~= '0' then call('HINCRBY', key, 'p', tokens) end\n          if nanos",
         "if tokens ~= '0' then call('HINCRBY', key, 't', tokens) end\n          if nanos"),
    ),
    "a reserve after its cancel takes room": (
        ("if entry then\n  ticket, place = match(entry,",
         "if entry and not match(entry, '^=x') then\n  ticket, place = match(entry,"),
        ("if tonumber(ARGV[3]) < tonumber(known[2]) then return {'stale'} end\nlocal entry, ticket",
         "local entry, ticket"),
    ),
    "who waits is overtaken": (
        ("    if waits[i] then\n      local first, older = lines().head(i)\n",
         "    if false then\n      local first, older\n"),
    ),
    "a cancelled record is not undone": (
        ("    held = 1\n", "    if kind == '=n' then return {0} end\n    held = 1\n"),
    ),
    "a charge is not corrected by a late commit": (
        ("      did = 'late'\n", "      did = 'late'\n      tokens = match(entry, '^!(%d+)')\n"),
    ),
    "a claim that is handed over is charged with its holder": (
        ("call('HSET', own, n, '=h ' .. ARGV[5])\n", ""),
    ),
}  # fmt: skip


def edit_of(name: str) -> tuple[Callable[[str], str], set[int]]:
    """Return what edits the text of scripts, and which of the fault's texts it has found so far."""
    found: set[int] = set()

    def edit(source: str) -> str:
        for number, (text, other) in enumerate(SCRIPTS[name]):
            if text in source:
                found.add(number)
                source = source.replace(text, other)
        return source

    return edit, found


# ---------------------------------------------------------------------- SQLite


def _changed(sql: str, text: str, other: str) -> str:
    assert text in sql
    return sql.replace(text, other)


def _without_guard() -> Any:
    return patch.object(_fast, "_RESERVE", _changed(_fast._RESERVE, "token_room >= ? AND", "(1 OR ?) AND"))


def _without_waiters() -> Any:
    return patch.object(_fast, "_RESERVE", _changed(_fast._RESERVE, "waiters = 0 AND", ""))


def _record_without_waiters() -> Any:
    return patch.object(_fast, "_RECORD", _changed(_fast._RECORD, "waiters = 0 AND", ""))


def _commit_without_period() -> Any:
    return patch.object(_fast, "_RECORD", _changed(_fast._RECORD, "ends > ?", "(1 OR ?)"))


@contextmanager
def _hold_in_its_own_transaction() -> Iterator[None]:
    """The room is taken by one transaction, and the hold is written by another one."""
    held: list[Any] = []
    take_whole, reserve_whole = _fast.FastPath._reserve, _fast.FastPath.reserve

    def take(self: Any, execute: Any, *arguments: Any) -> Any:
        def without(sql: str, parameters: Any = ()) -> Any:
            if sql != _slow.HOLD:
                return execute(sql, parameters)
            held.append(parameters)
            return execute("UPDATE owner SET who = who WHERE id = ?", (parameters[-1],))

        return take_whole(self, without, *arguments)

    def reserve(self: Any, *arguments: Any, **options: Any) -> Any:
        answer = reserve_whole(self, *arguments, **options)
        while held:
            parameters = held.pop()
            self._run(30, False, lambda execute: execute(_slow.HOLD, parameters).rowcount)  # noqa: B023 - at once
        return answer

    with patch.object(_fast.FastPath, "_reserve", take), patch.object(_fast.FastPath, "reserve", reserve):
        yield


def _released() -> Any:
    def charge(step: Any, claim: int, chain: str, tokens: int, nanos: int, name: str) -> None:
        _slow._give_back(step, claim)

    return patch.object(_owners, "charge", charge)


def _late_twice() -> Any:
    correct = _claims.correct

    def twice(step: Any, claim: int, amount: Any, how: int, of: Any = None) -> Any:
        found = correct(step, claim, amount, how, of)
        if found is not None:
            for row in found[0]:
                row.tokens += amount[0]
        return found

    return patch.object(_slow, "correct", twice)


def _no_memory_of_commits() -> Any:
    return patch.object(_fast.FastPath, "_remembered", lambda self, key: None)


def _any_ticket_first() -> Any:
    return patch.object(_waiters, "_older", lambda step, scope, ticket: ticket is None)


def _settled_without_note() -> Any:
    return patch.object(_claims, "note_settled", lambda *arguments: None)


def _cancelled_forgotten() -> Any:
    return patch.object(_slow, "cancel", lambda step, key: False)


SQLITE: dict[str, Callable[[], Any]] = {
    "no guard of the room in the UPDATE": _without_guard,
    "no test of waiters in a reserve": _without_waiters,
    "no test of waiters in a record": _record_without_waiters,
    "no test of the period in a record": _commit_without_period,
    "the hold in a transaction of its own": _hold_in_its_own_transaction,
    "a dead holder's claim is released": _released,
    "a late commit counts twice": _late_twice,
    "no memory of commits whose answer was lost": _no_memory_of_commits,
    "a later ticket goes first": _any_ticket_first,
    "what is settled from elsewhere is not noted": _settled_without_note,
    "a cancel does nothing": _cancelled_forgotten,
}
