"""The rule of the lines: who has to wait, who joins, who is served, who leaves. For whoever is inside `Family.run`.

While the lock is free, no waiter fits at the scope where it is the oldest that waits, and nobody waits for what can
never come. Whatever changes an account with a line stirs it (`Change.stirred`), and `serve` restores the rule.

A request that does not fit is told apart by what would help (`Hopeless`): room that calls in flight give back, the next
period, or nothing. An axis of which nothing is asked refuses nothing.
"""

from __future__ import annotations

from heapq import heapify

from token_budget._account import ALWAYS, EVERYTHING, NOTHING, Account
from token_budget._errors import BudgetExceeded, BudgetTimeout, PoolClosed
from token_budget._waiting import GRANTED, REFUSED, WAITING, WITHDRAWN, Largest, Line, Waiter

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from token_budget._change import Change
    from token_budget._family import Family

    Chain = tuple[Account, ...]


# ---------------------------------------------------------------------- who fits


def blocker(chain: Chain, tokens: int, nanos: int, ticket: int | None = None) -> Account | None:
    """Return the first scope that is closed, has no room for a request, or where somebody older waits for room."""
    for account in chain:
        if (
            account.closed
            or (tokens and account.tokens_claimed + tokens > account.token_limit)
            or (nanos and account.nanos_claimed + nanos > account.nano_limit)
        ):
            return account
        if account.line is not None:
            head = account.line.head(account)
            if head is not None and (ticket is None or head.ticket < ticket):
                return account
    return None


def fits(account: Account, tokens: int, nanos: int, tokens_there: int, nanos_there: int) -> bool:
    """Return whether a request fits in a scope beside these amounts."""
    return (not tokens or tokens_there + tokens <= account.token_limit) and (
        not nanos or nanos_there + nanos <= account.nano_limit
    )


def exhausted(account: Account, tokens: int, nanos: int) -> bool:
    """Return whether a request would not fit in this period even if everything in flight came back."""
    tokens_used = account.tokens_claimed - account.tokens_reserved
    nanos_used = account.nanos_claimed - account.nanos_reserved
    return not fits(account, tokens, nanos, tokens_used, nanos_used)


def hopeless(chain: Chain, tokens: int, nanos: int, waiter: Waiter | None = None) -> bool:
    """Return whether to wait is in vain: a scope never has room, or not before the waiter gives up."""
    return any(
        account.closed
        or (
            exhausted(account, tokens, nanos)
            and (waiter is None or not waiter.patient(account) or not fits(account, tokens, nanos, 0, 0))
        )
        for account in chain
    )


# ---------------------------------------------------------------------- refusing


def refusal(
    chain: Iterable[Account], at: Account, tokens: int, nanos: int, kind: type[BudgetExceeded] = BudgetExceeded
) -> Callable[[], Exception]:
    """Return what makes the error, with the numbers as they are now; the error is made without the lock.

    It names the first scope that is closed, else the first that is exhausted, else the one where the request waits.
    """
    empty = [account for account in chain if account.closed or exhausted(account, tokens, nanos)]
    account = next((one for one in empty if one.closed), empty[0] if empty else at)
    if account.closed:
        return closed(account)
    numbers = (
        account.terms[2],
        tokens, account.tokens_claimed + tokens, account.tokens_reserved, account.token_limit,
        nanos, account.nanos_claimed + nanos, account.nanos_reserved, account.nano_limit,
    )  # fmt: skip
    never = any(one.window is None or not fits(one, tokens, nanos, 0, 0) for one in empty)
    windows = [(one.period_end, one.window) for one in empty or [at] if one.window is not None]
    if not windows:
        return lambda: kind._refusal_of(numbers, None, None if never else 0.0)
    end, window = max(windows, key=lambda item: item[0])

    def error() -> Exception:
        seconds = None if never else max(0.0, end - window.now()) if empty else 0.0
        return kind._refusal_of(numbers, end, seconds)

    return error


def closed(account: Account) -> Callable[[], Exception]:
    """Return what makes the error of a closed pool."""
    name = account.terms[2]
    return lambda: PoolClosed(
        f"pool{'' if name is None else f' {name!r}'} is closed: spend from its parent, or from a new child of that"
    )


# ---------------------------------------------------------------------- joining and leaving


def join(change: Change, family: Family, chain: Chain, waiter: Waiter, at: Account) -> None:
    """Let one wait, for room in one scope of its chain."""
    ticket = family.made + 1
    change.set(family, "made", ticket)
    for account in chain:
        line = account.line or Line()
        largest = line.kind(waiter, account)
        change.push(largest.by_tokens, (-waiter.tokens, ticket, waiter))
        change.push(largest.by_nanos, (-waiter.nanos, ticket, waiter))
        if account is at:
            change.push(line.parked, (ticket, waiter))
            demand = EVERYTHING
        else:
            demand = max(account.demand[0], waiter.tokens), max(account.demand[1], waiter.nanos)
        _need(change, account, line, demand)
    change.set(waiter, "at", at)
    change.set(waiter, "ticket", ticket)
    change.set(waiter, "state", WAITING)


def end(change: Change, waiter: Waiter, outcome: str) -> None:
    """End a waiter's waiting. Who waits behind it may have its turn now, and lines may be empty."""
    change.set(waiter, "state", outcome)
    change.stirred += waiter.scope._chain
    if outcome is not WITHDRAWN:
        change.debts.append(waiter)
    for account in waiter.scope._chain:
        line: Any = account.line  # there while it waits
        line.gone += 1
        if line.crowded():
            _clean(change, line, waiter)


def withdraw(change: Change, waiter: Waiter) -> None:
    """End the waiting of one whose time is up, unless it has ended."""
    if waiter.state is WAITING:
        tokens, nanos, chain = waiter.tokens, waiter.nanos, waiter.scope._chain
        waiter.refusal = refusal(chain, waiter.at, tokens, nanos, BudgetTimeout)
        change.note("refusal", chain, chain[0].terms[2], tokens, nanos)
        end(change, waiter, WITHDRAWN)


def renew(change: Change, account: Account, period_end: float, lives: dict[Waiter, dict[Any, Any]]) -> None:
    """Sort those who wait anew, as a scope's period changes: who lives to see its end, and who does not.

    `lives` has what some of them will have in `Waiter.lives_until`.
    """
    line = account.line
    if line is not None:
        change.keep(line.now, line.later)
        now: list[Waiter] = []
        later: list[Waiter] = []
        for waiter in line.waiting():
            _, moment = lives.get(waiter, waiter.lives_until).get(account, (None, ALWAYS))
            (later if moment >= period_end else now).append(waiter)
        change.set(line, "now", Largest(now))
        change.set(line, "later", Largest(later))
        change.stirred.append(account)


# ---------------------------------------------------------------------- serving


def serve(family: Family, account: Account) -> bool:
    """Do the next thing that is due in an account's line. Return whether there may be more."""
    return family.change(_serve, (family, account))  # type: ignore[no-any-return]


def _serve(change: Change, family: Family, account: Account) -> bool:
    line = account.line
    if line is None:
        return False
    demand = line.demand()
    if demand is None:
        _need(change, account, None, NOTHING)
        return False
    waiter = _in_vain(account, line)
    if waiter is not None:
        tokens, nanos, chain = waiter.tokens, waiter.nanos, waiter.scope._chain
        waiter.refusal = refusal(chain, account, tokens, nanos)
        change.note("refusal", chain, chain[0].terms[2], tokens, nanos)
        end(change, waiter, REFUSED)
        return True
    head = line.head(account)
    if head is None:
        _need(change, account, line, demand)
        return False
    if head.bell.deaf():
        end(change, head, WITHDRAWN)
        return True
    return _serve_head(change, family, account, head)


def _serve_head(change: Change, family: Family, account: Account, head: Waiter) -> bool:
    """Let the oldest that waits for room in a scope have it, or wait where it is blocked now."""
    tokens, nanos, chain = head.tokens, head.nanos, head.scope._chain
    at = blocker(chain, tokens, nanos, head.ticket)
    if at is account:
        return False
    if at is not None:
        line: Any = at.line
        change.push(line.parked, (head.ticket, head))
        change.set(head, "at", at)
        _need(change, at, line, EVERYTHING)
        return True
    change.hold(chain, tokens, tokens, nanos, nanos, 1)
    change.set(head.reservation, "_state", family.opened)
    change.note("reserve", chain, chain[0].terms[2], tokens, nanos)
    end(change, head, GRANTED)
    return True


def _in_vain(account: Account, line: Line) -> Waiter | None:
    """Return one that waits for what this scope can never give it, wherever it waits."""
    for top in (line.now.top(), line.later.top()):
        for waiter in top or ():
            if hopeless((account,), waiter.tokens, waiter.nanos, waiter):
                return waiter
    return None


def _need(change: Change, account: Account, line: Line | None, demand: tuple[int, int]) -> None:
    """Set the line of a scope, and the most that one of those who wait asks for."""
    if account.line is not line:
        change.keep(account.line)
        change.set(account, "line", line)
    if account.demand != demand:
        change.gate(account, demand=demand)


def _clean(change: Change, line: Line, leaving: Waiter) -> None:
    """Drop the entries of those who left."""
    change.keep(line.parked, line.now, line.later)
    change.set(line, "gone", 0)
    parked = [entry for entry in line.parked if entry[1].state is WAITING and entry[1] is not leaving]
    heapify(parked)
    change.set(line, "parked", parked)
    for name in ("now", "later"):
        change.set(line, name, Largest([one for one in getattr(line, name).waiting() if one is not leaving]))
