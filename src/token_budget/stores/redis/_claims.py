"""Claims: reserve, record, commit, release, cancel, leave; settling by id, handing over, and what was charged."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from typing import Any

from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError, StoreLost
from token_budget.stores._store import (
    DONE,
    GRANTED,
    LATE,
    LEFT,
    REFUSED,
    REPEAT,
    SETTLED,
    UNKNOWN,
    Answer,
    Charged,
    Numbers,
    Scope,
)
from token_budget.stores.redis._mending import clocks_tell, lost_leases, meet, mend, numbers_now, words_of
from token_budget.stores.redis._process import Claim, GivenUp, Process, Step, new_owner
from token_budget.stores.redis._reading import closed, keys_of, learn, scopes_at
from token_budget.stores.redis._rows import NOTHING, Row, numbers_of

_ID = re.compile(r"([0-9a-z]{1,32})-([0-9]{1,18})")
_SAID = {"done": DONE, "late": LATE, "unknown": UNKNOWN, "repeat": REPEAT, "settled": SETTLED}
_AT_ONCE = 200  # processes whose charges one script reads
_logger = logging.getLogger("token_budget")


def shown(step: Step, chain: Sequence[Scope], rows: Sequence[Any]) -> tuple[Numbers, ...]:
    """Return the numbers of rows that a script answered, and learn from them.

    A step that is repeated may find scopes deleted since: of those nothing is learnt, and they show nothing.
    """
    found = []
    for scope, row in zip(chain, rows, strict=True):
        if row[0] is None:
            found.append(NOTHING)
        else:
            learn(step, scope, Row(*row))
            found.append(numbers_of(row))
    return tuple(found)


def paths_of(chain: Sequence[Scope]) -> str:
    """Return the paths of a chain, as claims have them."""
    return "|".join([scope.path for scope in chain])


def begin(step: Step) -> None:
    """Do what comes before any step that changes something: cancel what was given up, and have a lease."""
    process = step.process
    if process.given_up:
        cancel_given_up(step)
    if not process.registered:
        step.register()
    elif process.crowded() or time.monotonic() > process.renew_at + process.lease / 3:  # `tend` was not called in time
        renew(step)


# ---------------------------------------------------------------------- holding and adding


def reserve(
    process: Process, chain: Sequence[Scope], claim: Claim, tokens: int, nanos: int, *, wait: bool, rows: bool
) -> Answer:
    """See `Store.reserve`."""
    flags, paths = f"{'w' if wait else ''}{'r' if rows else ''}", paths_of(chain)
    with process.step() as step:
        begin(step)
        claim.asked = True
        if claim.owner != process.owner:
            process.rebind(claim)
        try:
            while not claim.cancelled:
                more = words_of(step, chain)
                check_open(step, chain)
                words = (tokens, nanos, flags + step.some, paths)
                answer = step.ask(
                    process.scripts.reserve, keys_of(process, chain), claim.number, words, more, claim.owner
                )
                kind = answer[0]
                if kind == "granted":
                    return Answer(GRANTED, shown(step, chain, answer[1]) if rows else ())
                if kind == "refused":
                    return Answer(REFUSED, shown(step, chain, answer[3]), answer[1] - 1, ticket=answer[2])
                if kind == "owner":
                    _start_over(step, chain, claim, answer)
                elif kind == "cancelled":
                    process.rebind(claim)
                else:
                    mend(step, chain, answer)
        except BaseException:
            step.give_up(chain, claim.owner, claim.number)
            if step.unsure:
                process.rebind(claim)
            raise
        return Answer(REFUSED, numbers_now(step, chain))


def check_open(step: Step, chain: Sequence[Scope]) -> None:
    """Raise PoolClosed if a scope is closed. One that was closed when it was read last is read again: it may be new."""
    for scope in chain:
        if scope.closed:
            meet(step, scope)
            if scope.closed:
                raise closed(scope)


def _start_over(step: Step, chain: Sequence[Scope], claim: Claim, answer: Sequence[Any]) -> None:
    """Let a claim of an owner that was declared dead be one of the present owner. What was charged comes back."""
    process = step.process
    if answer[1] is not None:
        cancel_number(step, chain, claim.owner, claim.number)
    step.not_known(claim.owner)
    step.register()
    process.rebind(claim)


def record(process: Process, chain: Sequence[Scope], tokens: int, nanos: int, *, force: bool, rows: bool) -> Answer:
    """See `Store.record`."""
    flags = f"{'f' if force else ''}{'r' if rows else ''}"
    with process.step() as step:
        begin(step)
        owner, step.settles = process.owner, force
        try:
            while True:
                more = words_of(step, chain)
                if not force:
                    check_open(step, chain)
                words = (tokens, nanos, flags + step.some, ",".join([scope.handle.era for scope in chain]))
                answer = step.ask(process.scripts.record, keys_of(process, chain), step.number, words, more, owner)
                kind = answer[0]
                if kind == "done":
                    step.done(owner=owner)
                    return Answer(DONE, shown(step, chain, answer[1]) if len(answer) > 1 else ())
                if kind == "refused":
                    return Answer(REFUSED, shown(step, chain, answer[2]), answer[1] - 1)
                if kind == "owner":  # nothing was done under it, and nothing will be
                    step.not_known(owner)
                    step.register()
                    owner = process.owner
                else:
                    mend(step, chain, answer)
        except BaseException:
            step.give_up(chain, owner, step.number)
            raise


# ---------------------------------------------------------------------- settling


def commit(
    process: Process, chain: Sequence[Scope], claim: Claim, amount: tuple[int, int], mode: str, *, rows: bool
) -> Answer:
    """Commit (mode c) or release (mode r) a claim: see `Store.commit` and `Store.release`."""
    if claim.counted is not None:
        return Answer(REPEAT if mode == "c" else SETTLED, counted=claim.counted)
    with process.step() as step:
        begin(step)
        step.settles = True
        while True:
            timed = mode == "c" or clocks_tell(chain)
            more = words_of(step, chain, timed=timed)
            mine = claim.owner == process.owner
            words = (
                *amount,
                f"{mode}{'m' if mine else ''}{'w' if rows else ''}{'t' if timed else ''}{process.volatile_mark}",
                f"{process.nonce}.{step.number}",
            )
            answer = step.ask(process.scripts.commit, keys_of(process, chain), claim.number, words, more, claim.owner)
            kind = answer[0]
            if kind in _SAID:
                if mine:
                    step.done(claim.number, claim.owner)
                if mode == "c":
                    claim.counted = amount if kind in {"done", "late", "unknown"} else (int(answer[1]), int(answer[2]))
                return _settled(step, chain, answer)
            if kind == "moved":  # by a `hand_over` that was given up
                step.done(claim.number, claim.owner)
                claim.owner, claim.number = answer[1], 1
            elif kind == "waiting":
                raise RuntimeError(f"claim {claim.id} waits for room: it holds nothing that could be settled")
            else:
                mend(step, chain, answer)


def _settled(step: Step, chain: Sequence[Scope], answer: Sequence[Any]) -> Answer:
    said, tokens, nanos = answer[:3]
    rows = shown(step, chain, answer[3]) if len(answer) > 3 else ()
    return Answer(_SAID[said], rows, counted=(int(tokens), int(nanos)))


def settle(process: Process, claim_id: str, tokens: int, nanos: int) -> tuple[Answer, tuple[str, ...]]:
    """See `Store.settle`."""
    match = _ID.fullmatch(claim_id)
    if match is None:
        return Answer(UNKNOWN), ()
    owner, number = match[1], str(int(match[2]))
    with process.step() as step:
        step.settles = True
        while True:
            own = process.keys.owner(owner)
            entry = _entry(step, own, number)
            if entry is None or entry[0] == "?":
                step.check_root()
                return Answer(UNKNOWN), ()
            if entry.startswith("=h "):
                owner, number = entry[3:], "1"
                continue
            chain = [] if entry[0] == "=" else scopes_at(process, entry.split(" ", 4 if entry[0] == "!" else 2)[-1])
            words = (tokens, nanos, f"st{process.volatile_mark}", f"{process.nonce}.{step.number}")
            more = words_of(step, chain)
            answer = step.ask(process.scripts.commit, keys_of(process, chain), number, words, more, owner)
            if answer[0] == "unknown":
                step.check_root()
            if answer[0] in _SAID:
                return _settled(step, chain, answer), tuple(scope.path for scope in chain)
            if answer[0] != "moved":
                mend(step, chain, answer)


def _entry(step: Step, own: str, number: str) -> str | None:
    """Return what the store has under a number of an owner."""
    client = step.process.client
    for key in (own, f"{own}:x", own):  # once more, since it may have become a charge in between
        entry: str | None = client.command("HGET", key, number, timeout=step.left())
        if entry is not None:
            return entry
    return None


def hand_over(process: Process, chain: Sequence[Scope], claim: Claim, lease: float) -> Claim:
    """See `Store.hand_over`."""
    heir = new_owner()
    with process.step() as step:
        begin(step)
        keys = [process.keys.owner(heir)]
        answer = step.ask(process.scripts.hand, keys, claim.number, (heir, repr(float(lease)), "", ""), (), claim.owner)
        if answer[0] == "moved":
            step.done(claim.number, claim.owner)
            return Claim(answer[1], 1)
        if answer[0] == "stale":
            raise step.stale()
        step.check_root()
        if answer[0] == "owner":
            step.not_known(claim.owner)
    raise LookupError(f"claim {claim.id} of {chain[0].name!r} is not open")


# ---------------------------------------------------------------------- giving up


def cancel(process: Process, chain: Sequence[Scope], claim: Claim) -> bool:
    """See `Store.cancel`."""
    claim.cancelled = True
    if not claim.asked:
        return False
    with process.step() as step:
        begin(step)
        held, claim.owner, claim.number = cancel_number(step, chain, claim.owner, claim.number)
    return held


def cancel_number(step: Step, chain: Sequence[Scope], owner: str, number: int) -> tuple[bool, str, int]:
    """Cancel a claim or a record. Return whether it held something, and what it is now."""
    step.settles, before = True, step.settles
    try:
        return _cancelled(step, chain, owner, number)
    finally:
        step.settles = before


def _cancelled(step: Step, chain: Sequence[Scope], owner: str, number: int) -> tuple[bool, str, int]:
    process = step.process
    while True:
        more = words_of(step, chain, timed=False)
        answer = step.ask(process.scripts.cancel, keys_of(process, chain), number, ("", "", "", ""), more, owner)
        if isinstance(answer[0], int):
            step.done(number, owner)
            return answer[0] == 1, owner, number
        if answer[0] == "moved":
            owner, number = answer[1], 1
        else:
            mend(step, chain, answer)


def cancel_given_up(step: Step) -> None:
    """Cancel all that this process has given up. What cannot be cancelled, since the store is lost, is forgotten."""
    process = step.process
    while True:
        try:
            item: GivenUp = process.given_up.popleft()
        except IndexError:  # that was all; other threads take some, too
            return
        try:
            cancel_number(step, item.chain, item.owner, item.number)
        except (StoreLost, StoreError) as error:
            _logger.debug("what was given up is not cancelled: %s", error)
        except BaseException as error:
            process.given_up.append(item)
            if isinstance(error, Exception) and not isinstance(error, BudgetUnavailable):
                return  # of a caller's clock; it must not keep other steps from being done
            raise


def leave(process: Process, chain: Sequence[Scope], claim: Claim) -> Answer:
    """See `Store.leave`."""
    with process.step() as step:
        begin(step)
        while True:
            if not claim.asked or claim.owner != process.owner:  # its tickets ended with its owner
                break
            timed = clocks_tell(chain)
            more, words = words_of(step, chain, timed=timed), ("", "", "t" if timed else "", "")
            answer = step.ask(process.scripts.leave, keys_of(process, chain), claim.number, words, more, claim.owner)
            if answer[0] == "granted":
                return Answer(GRANTED, shown(step, chain, answer[1]))
            if answer[0] == "left":
                step.done(claim.number, claim.owner)
                return Answer(LEFT, shown(step, chain, answer[2]), max(0, answer[1] - 1))
            if answer[0] == "owner":
                _start_over(step, chain, claim, answer)
                break
            mend(step, chain, answer)
        return Answer(LEFT, numbers_now(step, chain))


# ---------------------------------------------------------------------- what was charged


def expired(process: Process) -> list[Charged]:
    """See `Store.expired`."""
    client, keys = process.client, process.keys
    found = []
    with process.step() as step:
        numbers_now(step, ())  # which charges those whose leases are over
        owners = client.command("ZRANGE", keys.charges, 0, -1, timeout=step.left())
        pasts = [f"{keys.owner(owner)}:x" for owner in owners]
        hashes: list[list[str]] = []
        for first in range(0, len(pasts), _AT_ONCE):
            hashes += step.ask(process.scripts.charged, pasts[first : first + _AT_ONCE], 0, ("", "", "", ""))
        for owner, flat in zip(owners, hashes, strict=True):
            entries = dict(zip(flat[::2], flat[1::2], strict=True))
            who = entries.get("o", "?")
            for number, entry in entries.items():
                if entry[0] == "!":
                    tokens, nanos, at, _, paths = entry[1:].split(" ", 4)
                    facts = int(tokens), int(nanos), who, float(at), tuple(paths.split("|"))
                    found.append(Charged(f"{owner}-{number}", *facts))
        step.check_root()
    return sorted(found, key=lambda one: one.at)


# ---------------------------------------------------------------------- the lease


def renew(step: Step) -> list[str]:
    """Renew this process's lease. Return the processes whose leases are over."""
    process = step.process
    owner = process.owner
    answer = step.ask(process.scripts.renew, (), repr(float(process.lease)), ("", "", "", ""), (), owner)
    if answer[0] == "owner":
        step.not_known(owner)
        step.register()
        return []
    if answer[0] == "lost":
        raise lost_leases(process)
    process.renew_at = time.monotonic() + process.lease / 3
    if answer[1] > len(process.claims) + len(process.heard) + len(process.under_way):
        _drop_strange(step, owner)
    dead: list[str] = answer[2]
    return dead


def flush(step: Step) -> None:
    """Delete all answers that were heard, before this owner ends."""
    heard = step.process.heard
    before = len(heard) + 1
    while 0 < len(heard) < before:
        before = len(heard)
        renew(step)


def _drop_strange(step: Step, owner: str) -> None:
    """Cancel what this owner has in the store and nobody here knows, if it was there at the last look already."""
    process = step.process
    flat = process.client.command("HGETALL", process.keys.owner(owner), timeout=step.left())
    entries = {number: entry for number, entry in zip(flat[::2], flat[1::2], strict=True) if number.isdecimal()}
    claims, heard = process.claims.valuerefs(), list(process.heard)  # each in one step: other threads add some
    known = {str(one.key) for one in claims} | {str(under) for _, under in heard}
    with process.lock:
        low = next(iter(process.under_way), step.number)  # from there on an entry may be of a step that is under way
    strange = {number for number in entries.keys() - known if int(number) < low}
    for number in strange & process.strange:
        entry = entries[number]
        chain = [] if entry[0] == "=" else scopes_at(process, entry.split(" ", 2)[-1])
        cancel_number(step, chain, owner, int(number))
    process.strange = frozenset(strange - process.strange)
