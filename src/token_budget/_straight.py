"""Straight runs over up to five accounts, with or without windows that share a clock.

Each looks outside the lock whether somebody is inside, something is owed, or a period has ended; and under the lock
whether the outcome lies within every bound (`_account.py`). If so it makes the change, in one run of loads, additions,
comparisons and stores, and returns True. Else it has changed nothing and returns False, and the long way (`_ledger.py`)
finds out why.

CPython switches threads, delivers signals and pending exceptions, and starts the garbage collector at calls, at
backward jumps and where a container is made. There is none of these between the taking of the lock and its release.
So no exception can cut a change in half, no signal handler or finaliser can find the lock held by its own thread, and
no thread loses the processor while it holds the lock. That serves speed and robustness. Mutual exclusion itself comes
from the lock alone, and holds on builds without the GIL too. (On CPython 3.10 a taken jump is such a place as well:
see `_family._new_lock`. A tracer or profiler written in Python is code that runs anywhere: under one, signal handlers
that use the pool may find the lock held.)

The runs repeat each other because a call between them would be such a place, and costs a fifth.
"""

# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false
# pyright cannot know that the body of `for _ in family.locked` runs exactly once; mypy checks the operators here.

from __future__ import annotations

import time

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from typing import Any

    from token_budget._scope import Claim, Scope


def record(scope: Scope, tokens: int, nanos: int) -> bool:
    """Add a spend to each account."""
    family = scope._family
    few: Any = scope._few
    times = scope._times
    if family.pending or (times and not times[1] <= (times[0] or time.time)() < times[2]):
        return False
    if scope._more is not None:
        return _record_five(family, few, scope._more, tokens, nanos)
    first, second, third = few
    for _ in family.spending:
        try:
            first_tokens = first.tokens_claimed + tokens
            first_nanos = first.nanos_claimed + nanos
            second_tokens = second.tokens_claimed + tokens
            second_nanos = second.nanos_claimed + nanos
            third_tokens = third.tokens_claimed + tokens
            third_nanos = third.nanos_claimed + nanos
            if (
                first_tokens <= first.token_bound
                and first_nanos <= first.nano_bound
                and second_tokens <= second.token_bound
                and second_nanos <= second.nano_bound
                and third_tokens <= third.token_bound
                and third_nanos <= third.nano_bound
            ):
                first.tokens_claimed = first_tokens
                first.nanos_claimed = first_nanos
                second.tokens_claimed = second_tokens
                second.nanos_claimed = second_nanos
                third.tokens_claimed = third_tokens
                third.nanos_claimed = third_nanos
                return True
        finally:
            family.lock.release()
        break
    return False


def reserve(scope: Scope, claim: Claim, tokens: int, nanos: int) -> bool:
    """Hold an amount of each account."""
    family = scope._family
    few: Any = scope._few or (scope._home is family and (scope._account, family.void, family.void))
    times = scope._times
    if family.pending or not few or (times and not times[1] <= (times[0] or time.time)() < times[2]):
        return False
    if scope._more is not None:
        return _reserve_five(family, few, scope._more, claim, tokens, nanos)
    first, second, third = few
    for _ in family.spending:
        try:
            if (
                first.tokens_claimed + tokens <= first.token_bound
                and first.nanos_claimed + nanos <= first.nano_bound
                and second.tokens_claimed + tokens <= second.token_bound
                and second.nanos_claimed + nanos <= second.nano_bound
                and third.tokens_claimed + tokens <= third.token_bound
                and third.nanos_claimed + nanos <= third.nano_bound
            ):
                first.tokens_claimed += tokens
                first.tokens_reserved += tokens
                first.nanos_claimed += nanos
                first.nanos_reserved += nanos
                first.in_flight += 1
                second.tokens_claimed += tokens
                second.tokens_reserved += tokens
                second.nanos_claimed += nanos
                second.nanos_reserved += nanos
                second.in_flight += 1
                third.tokens_claimed += tokens
                third.tokens_reserved += tokens
                third.nanos_claimed += nanos
                third.nanos_reserved += nanos
                third.in_flight += 1
                claim._state = family.opened
                return True
        finally:
            family.lock.release()
        break
    return False


def settle(takes: Any, times: Any, claim: Claim, tokens: int, nanos: int, state: str) -> bool:
    """Commit an amount, or release (commit nothing). A release gives no `times`: it works in whatever period it is."""
    scope = claim._pool
    family, few, more = scope._family, scope._few, scope._more
    if family.pending or not few or (times and not times[1] <= (times[0] or time.time)() < times[2]):
        return False
    if more is not None:
        return _settle_five(takes, claim, (few, more), tokens, nanos, state)
    first, second, third = few
    held_tokens, held_nanos = claim._tokens, claim._nanos
    more_tokens, more_nanos = tokens - held_tokens, nanos - held_nanos
    for _ in takes:
        try:
            if (
                claim._state is family.opened
                and first.tokens_claimed + more_tokens <= first.token_bound
                and first.nanos_claimed + more_nanos <= first.nano_bound
                and second.tokens_claimed + more_tokens <= second.token_bound
                and second.nanos_claimed + more_nanos <= second.nano_bound
                and third.tokens_claimed + more_tokens <= third.token_bound
                and third.nanos_claimed + more_nanos <= third.nano_bound
            ):
                first.tokens_claimed += more_tokens
                first.tokens_reserved -= held_tokens
                first.nanos_claimed += more_nanos
                first.nanos_reserved -= held_nanos
                first.in_flight -= 1
                second.tokens_claimed += more_tokens
                second.tokens_reserved -= held_tokens
                second.nanos_claimed += more_nanos
                second.nanos_reserved -= held_nanos
                second.in_flight -= 1
                third.tokens_claimed += more_tokens
                third.tokens_reserved -= held_tokens
                third.nanos_claimed += more_nanos
                third.nanos_reserved -= held_nanos
                third.in_flight -= 1
                claim._state = state
                return True
        finally:
            family.lock.release()
        break
    return False


# ---------------------------------------------------------------------- the same over five accounts, a line for two


def _record_five(family: Any, few: Any, more: Any, tokens: int, nanos: int) -> bool:
    a, b, c = few
    d, e = more
    for _ in family.spending:
        try:
            if (
                a.tokens_claimed + tokens <= a.token_bound and a.nanos_claimed + nanos <= a.nano_bound
                and b.tokens_claimed + tokens <= b.token_bound and b.nanos_claimed + nanos <= b.nano_bound
                and c.tokens_claimed + tokens <= c.token_bound and c.nanos_claimed + nanos <= c.nano_bound
                and d.tokens_claimed + tokens <= d.token_bound and d.nanos_claimed + nanos <= d.nano_bound
                and e.tokens_claimed + tokens <= e.token_bound and e.nanos_claimed + nanos <= e.nano_bound
            ):  # fmt: skip
                a.tokens_claimed += tokens
                a.nanos_claimed += nanos
                b.tokens_claimed += tokens
                b.nanos_claimed += nanos
                c.tokens_claimed += tokens
                c.nanos_claimed += nanos
                d.tokens_claimed += tokens
                d.nanos_claimed += nanos
                e.tokens_claimed += tokens
                e.nanos_claimed += nanos
                return True
        finally:
            family.lock.release()
        break
    return False


def _reserve_five(family: Any, few: Any, more: Any, claim: Claim, tokens: int, nanos: int) -> bool:
    a, b, c = few
    d, e = more
    for _ in family.spending:
        try:
            if (
                a.tokens_claimed + tokens <= a.token_bound and a.nanos_claimed + nanos <= a.nano_bound
                and b.tokens_claimed + tokens <= b.token_bound and b.nanos_claimed + nanos <= b.nano_bound
                and c.tokens_claimed + tokens <= c.token_bound and c.nanos_claimed + nanos <= c.nano_bound
                and d.tokens_claimed + tokens <= d.token_bound and d.nanos_claimed + nanos <= d.nano_bound
                and e.tokens_claimed + tokens <= e.token_bound and e.nanos_claimed + nanos <= e.nano_bound
            ):  # fmt: skip
                a.tokens_claimed += tokens
                a.tokens_reserved += tokens
                a.nanos_claimed += nanos
                a.nanos_reserved += nanos
                a.in_flight += 1
                b.tokens_claimed += tokens
                b.tokens_reserved += tokens
                b.nanos_claimed += nanos
                b.nanos_reserved += nanos
                b.in_flight += 1
                c.tokens_claimed += tokens
                c.tokens_reserved += tokens
                c.nanos_claimed += nanos
                c.nanos_reserved += nanos
                c.in_flight += 1
                d.tokens_claimed += tokens
                d.tokens_reserved += tokens
                d.nanos_claimed += nanos
                d.nanos_reserved += nanos
                d.in_flight += 1
                e.tokens_claimed += tokens
                e.tokens_reserved += tokens
                e.nanos_claimed += nanos
                e.nanos_reserved += nanos
                e.in_flight += 1
                claim._state = family.opened
                return True
        finally:
            family.lock.release()
        break
    return False


def _settle_five(takes: Any, claim: Claim, accounts: Any, tokens: int, nanos: int, state: str) -> bool:
    family = claim._pool._family
    (a, b, c), (d, e) = accounts
    held, nanos_held = claim._tokens, claim._nanos
    more, nanos_more = tokens - held, nanos - nanos_held
    for _ in takes:
        try:
            if claim._state is family.opened and (
                a.tokens_claimed + more <= a.token_bound and a.nanos_claimed + nanos_more <= a.nano_bound
                and b.tokens_claimed + more <= b.token_bound and b.nanos_claimed + nanos_more <= b.nano_bound
                and c.tokens_claimed + more <= c.token_bound and c.nanos_claimed + nanos_more <= c.nano_bound
                and d.tokens_claimed + more <= d.token_bound and d.nanos_claimed + nanos_more <= d.nano_bound
                and e.tokens_claimed + more <= e.token_bound and e.nanos_claimed + nanos_more <= e.nano_bound
            ):  # fmt: skip
                a.tokens_claimed += more
                a.tokens_reserved -= held
                a.nanos_claimed += nanos_more
                a.nanos_reserved -= nanos_held
                a.in_flight -= 1
                b.tokens_claimed += more
                b.tokens_reserved -= held
                b.nanos_claimed += nanos_more
                b.nanos_reserved -= nanos_held
                b.in_flight -= 1
                c.tokens_claimed += more
                c.tokens_reserved -= held
                c.nanos_claimed += nanos_more
                c.nanos_reserved -= nanos_held
                c.in_flight -= 1
                d.tokens_claimed += more
                d.tokens_reserved -= held
                d.nanos_claimed += nanos_more
                d.nanos_reserved -= nanos_held
                d.in_flight -= 1
                e.tokens_claimed += more
                e.tokens_reserved -= held
                e.nanos_claimed += nanos_more
                e.nanos_reserved -= nanos_held
                e.in_flight -= 1
                claim._state = state
                return True
        finally:
            family.lock.release()
        break
    return False
