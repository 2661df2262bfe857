"""The long way: every operation that spends and is more than a straight run, over any number of scopes and listeners.

Each operation has two parts: a function that a pool or reservation calls, and what it decides under the lock, which
only looks and notes a `Change`. `spend` and `operate` do the rest, always the same: the clocks, the lock, the periods
that have ended, the decision and its publishing, the lines, and then without the lock what is owed.
"""

from __future__ import annotations

from token_budget._account import Account
from token_budget._errors import BudgetOverrun
from token_budget._family import OWE, PAY, notice_fork
from token_budget._line import blocker, end, hopeless, join, refusal, withdraw
from token_budget._periods import due, roll_over, seconds_to
from token_budget._process import HERE
from token_budget._waiting import GRANTED, WAITING, WITHDRAWN, Waiter

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from token_budget._change import Change
    from token_budget._events import Kind
    from token_budget._family import Family
    from token_budget._scope import Chain, Claim, Scope

    Failure = Callable[[], Exception] | None

COMMITTED = "committed"
RELEASED = "released"
DROPPED = "dropped"  # released because nobody held it any more


def spend(scope: Scope, decide: Callable[..., Failure], *arguments: Any) -> None:
    """Do one operation that a forked child must not do, in the periods that it is now. Raise what it decides on."""
    family = scope._family
    if not HERE[0]:  # `Family.check_fork`, without the call
        notice_fork()
    lock = family.lock
    if scope._times is None and family.root.line is None:  # without a window, and nobody waits
        failure = family.run(family.spending, PAY, family.change, decide, (family, scope._chain, *arguments))
    else:
        failure = family.run(family.spending, PAY, decided, scope, due(scope._chain), decide, arguments)
    if lock is not family.lock and family.torn:
        family.torn = False
        family.refuse_torn()  # a handler forked in the middle: the parent's call goes on, and this copy must not
    if failure is not None:
        raise failure()


def operate(scope: Scope, decide: Callable[..., Any], *arguments: Any) -> Any:
    """Do one operation that a forked child may do, in the periods that it is now. Return what it decides."""
    family = scope._family
    family.check_fork()
    ended = due(scope._chain) if scope._times is not None else ()
    return family.run(family.locked, PAY, decided, scope, ended, decide, arguments)


def untimed(scope: Scope, decide: Callable[..., Any], *arguments: Any) -> None:
    """Do one operation without a look at the clock: what gives back works also where the clock does not."""
    scope._family.run(scope._family.locked, PAY, decided, scope, (), decide, arguments)


def decided(scope: Scope, ended: Any, decide: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Under the lock: roll over, serve what an interrupted operation left, decide."""
    family, chain = scope._family, scope._chain
    if ended or scope._times is not None:
        roll_over(scope, ended)
    if family.root.line is not None:  # somebody waits somewhere
        for account in chain:
            line = account.line
            if line is not None and line.deaf(account):
                family.stirred.append(account)
    if family.stirred:
        family.settle()
    return family.change(decide, (family, chain, *arguments))


# ---------------------------------------------------------------------- spending


def record(scope: Scope, tokens: int, nanos: int, force: bool) -> None:  # noqa: FBT001
    """See `BudgetPool.record`."""
    spend(scope, _record, tokens, nanos, force)


def _record(change: Change, _family: Family, chain: Chain, tokens: int, nanos: int, force: bool) -> Failure:  # noqa: FBT001
    if not force:
        at = blocker(chain, tokens, nanos)
        if at is not None:
            return _refuse(change, chain, tokens, nanos, at)
    change.add(chain, tokens, nanos)
    change.note("record", chain, chain[0].terms[2], tokens, nanos)
    return _overrun(change, chain, tokens, tokens, nanos, nanos) if force else None


def reserve(claim: Claim, waiter: Waiter | None) -> None:
    """Take what a claim is for, or let the waiter wait for it, or raise."""
    spend(claim._pool, _reserve, claim, waiter)


def _reserve(change: Change, family: Family, chain: Chain, claim: Claim, waiter: Waiter | None) -> Failure:
    tokens, nanos = claim._tokens, claim._nanos
    at = blocker(chain, tokens, nanos)
    if at is None:
        change.hold(chain, tokens, tokens, nanos, nanos, 1)
        change.set(claim, "_state", family.opened)
        change.note("reserve", chain, chain[0].terms[2], tokens, nanos)
        return None
    if waiter is None or hopeless(chain, tokens, nanos, waiter):
        return _refuse(change, chain, tokens, nanos, at)
    join(change, family, chain, waiter, at)
    return None


def commit(claim: Claim, tokens: int, nanos: int, closed: Callable[[], Exception]) -> None:
    """See `Reservation.commit`. `closed` makes the error of one that is settled."""
    spend(claim._pool, _commit, claim, tokens, nanos, closed)


def _commit(
    change: Change, family: Family, chain: Chain, claim: Claim, tokens: int, nanos: int, closed: Callable[[], Exception]
) -> Failure:
    if claim._state is family.opened:
        held_tokens, held_nanos, calls = claim._tokens, claim._nanos, 1
    elif claim._state is DROPPED:
        # The collector finalised it before the one that commits it (a generator, say): what it held is back, and what
        # the call cost is counted all the same.
        held_tokens = held_nanos = calls = 0
    else:
        return closed
    more_tokens, more_nanos = tokens - held_tokens, nanos - held_nanos
    change.hold(chain, more_tokens, -held_tokens, more_nanos, -held_nanos, -calls)
    change.set(claim, "_state", COMMITTED)
    change.note("commit", chain, chain[0].terms[2], tokens, nanos)
    return _overrun(change, chain, tokens, more_tokens, nanos, more_nanos)


def release(claim: Claim) -> None:
    """See `Reservation.release`."""
    untimed(claim._pool, _release, claim, RELEASED)


def drop(claim: Claim, takes: Iterator[object]) -> None:
    """Release one that was collected unsettled; leave what is owed to the caller."""
    scope = claim._pool
    scope._family.run(takes, OWE, decided, scope, (), _release, (claim, DROPPED))


def _release(change: Change, family: Family, chain: Chain, claim: Claim, state: str) -> None:
    if claim._state is family.opened:
        change.hold(chain, -claim._tokens, -claim._tokens, -claim._nanos, -claim._nanos, -1)
        change.set(claim, "_state", state)
        kind: Kind = "drop" if state is DROPPED else "release"
        change.note(kind, chain, chain[0].terms[2], claim._tokens, claim._nanos)


def _refuse(change: Change, chain: Chain, tokens: int, nanos: int, at: Account) -> Failure:
    change.note("refusal", chain, chain[0].terms[2], tokens, nanos)
    return refusal(chain, at, tokens, nanos)


def _overrun(change: Change, chain: Chain, tokens: int, more_tokens: int, nanos: int, more_nanos: int) -> Failure:
    """Return what makes the error of a spend that takes a scope over a cap."""
    for account in chain:
        name, period_end = account.terms[2], account.terms[4]
        claimed, reserved, nanos_claimed, nanos_reserved, _ = change.after[account]
        if more_tokens > 0 and claimed > account.token_limit:
            facts: tuple[Any, ...] = ("tokens", tokens, claimed, reserved, account.token_limit, name, period_end)
            break
        if more_nanos > 0 and nanos_claimed > account.nano_limit:
            facts = ("usd", nanos, nanos_claimed, nanos_reserved, account.nano_limit, name, period_end)
            break
    else:
        return None
    change.note("overrun", chain, chain[0].terms[2], tokens, nanos)
    window = account.window
    made: Any = BudgetOverrun._of
    return lambda: made(*facts, None if window is None else seconds_to(window, facts[6]))


# ---------------------------------------------------------------------- waiting


def leave(waiter: Waiter) -> None:
    """End the waiting of one whose time is up."""
    untimed(waiter.scope, _leave, waiter)


def _leave(change: Change, _family: Family, _chain: Chain, waiter: Waiter) -> None:
    withdraw(change, waiter)


def abandon(waiter: Waiter) -> None:
    """End the waiting of one that nobody waits for any more, and give back what it was given."""
    untimed(waiter.scope, _abandon, waiter)


def give_back(waiter: Waiter, takes: Iterator[object]) -> None:
    """Do the same for one whose bell nobody hears; leave what is owed to the caller."""
    waiter.scope._family.run(takes, OWE, decided, waiter.scope, (), _abandon, (waiter,))


def _abandon(change: Change, family: Family, chain: Chain, waiter: Waiter) -> None:
    if waiter.state is WAITING:
        end(change, waiter, WITHDRAWN)
    elif waiter.state is GRANTED and waiter.reservation is not None:  # else its new holder settles it
        _release(change, family, chain, waiter.reservation, RELEASED)


def look(scope: Scope) -> None:
    """Roll over what is due, and serve those who wait."""
    operate(scope, _nothing)


def _nothing(*_: Any) -> None:
    pass
