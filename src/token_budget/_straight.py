"""Straight runs over up to five accounts, with or without windows that share a clock.

Each looks outside the lock whether somebody is inside, something is owed, or a period has ended; and under the lock
whether the outcome lies within every bound (`_account.py`). If so it makes the change, in one run of loads, additions,
comparisons and stores, and returns True. Else it has changed nothing and returns False, and the long way (`_ledger.py`)
finds out why.

CPython switches threads, delivers signals and pending exceptions, and starts the garbage collector at calls, at backward
jumps and where a container is made. There is none of these between the taking of the lock and its release. So no
exception can cut a change in half, no signal handler or finaliser can find the lock held by its own thread, and no
thread loses the processor while it holds the lock. That serves speed and robustness. Mutual exclusion itself comes from
the lock alone, and holds on builds without the GIL too. (On CPython 3.10 a taken jump is such a place as well: see
`_family._new_lock`. A tracer or profiler written in Python is code that runs anywhere: under one, signal handlers that
use the pool may find the lock held.)

The runs repeat each other because a call between them would be such a place, and costs a fifth.
"""

from __future__ import annotations

import time

from token_budget._errors import BudgetExceeded

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from typing import Any

    from token_budget._account import Account
    from token_budget._scope import Claim, Scope


def record(scope: Scope, tokens: int, nanos: int) -> bool:
    """Add a spend to each account."""
    family = scope._family
    few: Any = scope._few
    times = scope._times
    if family.pending or not few or (times and not times[1] <= (times[0] or time.time)() < times[2]):
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


def refusal(family: Any, account: Account, tokens: int, nanos: int) -> BudgetExceeded | None:
    """Return the refusal of a request by a pool that stands alone; None where only the long way can tell.

    Here a fork in C is noticed (`Family.check_fork`): what it costs is nothing beside an exception.
    """
    family.check_fork()
    for _ in family.spending:
        try:
            claimed = account.tokens_claimed + tokens
            nanos_claimed = account.nanos_claimed + nanos
            reserved = account.tokens_reserved
            nanos_reserved = account.nanos_reserved
            bound = account.token_bound
            nano_bound = account.nano_bound
            terms = account.terms
            gated = account.gated
        finally:
            family.lock.release()
        break
    if gated or not ((tokens and claimed > bound) or (nanos and nanos_claimed > nano_bound)):
        return None
    return BudgetExceeded._refusal(
        terms[2], tokens, claimed, reserved, bound, nanos, nanos_claimed, nanos_reserved, nano_bound
    )


# ---------------------------------------------------------------------- the same over five accounts, a line for two


def _record_five(family: Any, few: Any, more: Any, tokens: int, nanos: int) -> bool:
    one, two, three = few
    four, five = more
    for _ in family.spending:
        try:
            if (
                one.tokens_claimed + tokens <= one.token_bound and one.nanos_claimed + nanos <= one.nano_bound
                and two.tokens_claimed + tokens <= two.token_bound and two.nanos_claimed + nanos <= two.nano_bound
                and three.tokens_claimed + tokens <= three.token_bound and three.nanos_claimed + nanos <= three.nano_bound
                and four.tokens_claimed + tokens <= four.token_bound and four.nanos_claimed + nanos <= four.nano_bound
                and five.tokens_claimed + tokens <= five.token_bound and five.nanos_claimed + nanos <= five.nano_bound
            ):  # fmt: skip
                one.tokens_claimed += tokens
                one.nanos_claimed += nanos
                two.tokens_claimed += tokens
                two.nanos_claimed += nanos
                three.tokens_claimed += tokens
                three.nanos_claimed += nanos
                four.tokens_claimed += tokens
                four.nanos_claimed += nanos
                five.tokens_claimed += tokens
                five.nanos_claimed += nanos
                return True
        finally:
            family.lock.release()
        break
    return False


def _reserve_five(family: Any, few: Any, more: Any, claim: Claim, tokens: int, nanos: int) -> bool:
    one, two, three = few
    four, five = more
    for _ in family.spending:
        try:
            if (
                one.tokens_claimed + tokens <= one.token_bound and one.nanos_claimed + nanos <= one.nano_bound
                and two.tokens_claimed + tokens <= two.token_bound and two.nanos_claimed + nanos <= two.nano_bound
                and three.tokens_claimed + tokens <= three.token_bound and three.nanos_claimed + nanos <= three.nano_bound
                and four.tokens_claimed + tokens <= four.token_bound and four.nanos_claimed + nanos <= four.nano_bound
                and five.tokens_claimed + tokens <= five.token_bound and five.nanos_claimed + nanos <= five.nano_bound
            ):  # fmt: skip
                one.tokens_claimed += tokens
                one.tokens_reserved += tokens
                one.nanos_claimed += nanos
                one.nanos_reserved += nanos
                one.in_flight += 1
                two.tokens_claimed += tokens
                two.tokens_reserved += tokens
                two.nanos_claimed += nanos
                two.nanos_reserved += nanos
                two.in_flight += 1
                three.tokens_claimed += tokens
                three.tokens_reserved += tokens
                three.nanos_claimed += nanos
                three.nanos_reserved += nanos
                three.in_flight += 1
                four.tokens_claimed += tokens
                four.tokens_reserved += tokens
                four.nanos_claimed += nanos
                four.nanos_reserved += nanos
                four.in_flight += 1
                five.tokens_claimed += tokens
                five.tokens_reserved += tokens
                five.nanos_claimed += nanos
                five.nanos_reserved += nanos
                five.in_flight += 1
                claim._state = family.opened
                return True
        finally:
            family.lock.release()
        break
    return False


def _settle_five(takes: Any, claim: Claim, accounts: Any, tokens: int, nanos: int, state: str) -> bool:
    family = claim._pool._family
    (one, two, three), (four, five) = accounts
    held, nanos_held = claim._tokens, claim._nanos
    more, nanos_more = tokens - held, nanos - nanos_held
    for _ in takes:
        try:
            if claim._state is family.opened and (
                one.tokens_claimed + more <= one.token_bound and one.nanos_claimed + nanos_more <= one.nano_bound
                and two.tokens_claimed + more <= two.token_bound and two.nanos_claimed + nanos_more <= two.nano_bound
                and three.tokens_claimed + more <= three.token_bound and three.nanos_claimed + nanos_more <= three.nano_bound
                and four.tokens_claimed + more <= four.token_bound and four.nanos_claimed + nanos_more <= four.nano_bound
                and five.tokens_claimed + more <= five.token_bound and five.nanos_claimed + nanos_more <= five.nano_bound
            ):  # fmt: skip
                one.tokens_claimed += more
                one.tokens_reserved -= held
                one.nanos_claimed += nanos_more
                one.nanos_reserved -= nanos_held
                one.in_flight -= 1
                two.tokens_claimed += more
                two.tokens_reserved -= held
                two.nanos_claimed += nanos_more
                two.nanos_reserved -= nanos_held
                two.in_flight -= 1
                three.tokens_claimed += more
                three.tokens_reserved -= held
                three.nanos_claimed += nanos_more
                three.nanos_reserved -= nanos_held
                three.in_flight -= 1
                four.tokens_claimed += more
                four.tokens_reserved -= held
                four.nanos_claimed += nanos_more
                four.nanos_reserved -= nanos_held
                four.in_flight -= 1
                five.tokens_claimed += more
                five.tokens_reserved -= held
                five.nanos_claimed += nanos_more
                five.nanos_reserved -= nanos_held
                five.in_flight -= 1
                claim._state = state
                return True
        finally:
            family.lock.release()
        break
    return False
