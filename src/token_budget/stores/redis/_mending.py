"""Mending: what has to be done before a step can be: a period to roll over, a key's scope to make, a dead process.

A script that finds such a thing changes nothing and says so. `mend` does it, with a script of its own that compares
what was found, so that any number of processes may do it at once; then the step is done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from token_budget._errors import PoolClosed
from token_budget._window import Window
from token_budget.stores._errors import StoreError, StoreLost
from token_budget.stores._store import Group, News, Numbers, Scope
from token_budget.stores.redis._process import Process, Step
from token_budget.stores.redis._reading import (
    chain_at,
    gone,
    keys_of,
    learn,
    numbers_at,
    read,
    read_row,
    reading_of,
)
from token_budget.stores.redis._rows import (
    Place,
    learn_group,
    moment_text,
    numbers_of,
    own_clock,
    reached,
    reading,
)

_AT_ONCE = 500  # claims that one script charges: 10,000 in one held up everybody for 54 ms


def words_of(step: Step, chain: Sequence[Scope], *, timed: bool = True) -> list[str]:
    """Return what scripts that spend take of a chain: see ``_chain.lua``.

    A scope that was not read yet is read. A window with a clock of its own is asked here whether its period is over.
    """
    words: list[str] = []
    for scope in chain:
        place: Place = scope.handle or meet(step, scope)
        while timed and place.end is not None and place.window is not None:
            now = place.window.now()
            if now < place.end:
                break
            roll(step, scope, now)
            place = meet(step, scope)
        words += place.words
    return words


def clocks_tell(chain: Sequence[Scope]) -> bool:
    """Return whether the clocks of a chain's windows tell the time: what gives back is done also where one fails."""
    try:
        for scope in chain:
            reading(scope)
    except Exception:  # noqa: BLE001 - a caller's clock
        return False
    return True


def meet(step: Step, scope: Scope) -> Place:
    """Read a scope, and make it if it is a key's and not there. Return what steps tell scripts of it.

    One that was closed, and is deleted since, is made anew as a closed one if the step counts what has happened.

    Raises:
        StoreLost: it should be there, and is not.
        PoolClosed: it was closed, and is deleted since.
    """
    while True:
        row = read_row(step, scope)
        if row.is_of(step.process.generation):
            learn(step, scope, row)
            place: Place = scope.handle
            return place
        if scope.group is not None:
            make(step, scope)
            continue
        error = gone(step, scope)
        if not step.settles or not isinstance(error, PoolClosed):
            raise error
        step.ask(
            step.process.scripts.revive, [*keys_of(step.process, (scope,)), step.process.keys.names], scope.path, ()
        )


# ---------------------------------------------------------------------- mending


def mend(step: Step, chain: Sequence[Scope], answer: Sequence[Any]) -> None:
    """Do what a script found to be done first. Raise what it says of the store.

    Raises:
        StoreLost: a scope is not there that should be, or the leases are not.
        PoolClosed: a scope was closed, and is deleted since.
        StoreError: a counter would leave what can be counted.
        BudgetUnavailable: the step was taken for one that had ended.
    """
    kind = answer[0]
    if kind == "ended":
        roll(step, chain[answer[1] - 1], float(answer[2]))
        meet(step, chain[answer[1] - 1])
    elif kind == "expired":
        bury(step, answer[1])
    elif kind == "lost":
        raise lost_leases(step.process)
    elif kind == "changed":
        meet(step, chain[answer[1] - 1])
    elif kind == "old" or (kind == "gone" and chain[answer[1] - 1].group is not None):
        make(step, chain[answer[1] - 1])
    elif kind == "gone":
        raise gone(step, chain[answer[1] - 1])
    elif kind == "excess":
        raise too_much(chain[answer[1] - 1])
    else:  # stale; or cancelled, as a step that nobody here seemed to know
        raise step.stale()


def numbers_now(step: Step, chain: Sequence[Scope]) -> tuple[Numbers, ...]:
    """Return the numbers of scopes as of one moment. Processes whose leases are over are charged before.

    Where these are so many that it takes half of the step's time, the others are left for the next step, and what they
    hold is still shown as held.
    """
    process = step.process
    while True:
        answer = step.ask(process.scripts.read, keys_of(process, chain), step.some, ())
        if answer[0] == "lost":
            raise lost_leases(process)
        if answer[0] == "read":
            return numbers_at(step, chain, reading_of(answer))
        bury(step, answer[1])


def lost_leases(process: Process) -> StoreLost:
    """Return the error of a budget whose leases were deleted: nobody knows who is dead."""
    return process.lost("has lost who lives")


def too_much(scope: Scope) -> StoreError:
    """Return the error of a counter that would leave 64 bits."""
    return StoreError(
        f"pool {scope.name!r} would be overrun by more than a store can count (8 * 10**18 tokens or nanodollars): "
        "nothing was changed. Reset it, or use amounts that are real"
    )


def in_period(window: Window | None, send: Callable[[str, str], list[Any]]) -> list[Any]:
    """Send a script that takes a window's present period, and send it again for the server's time where that differs.

    The system's clock is only a guess: what counts is the server's, unless the window has a clock of its own.
    """
    now = None if window is None else window.now() if own_clock(window) else time.time()
    while True:
        if window is None or now is None:
            return send("", "")
        start, end = window.period(now)
        answer = send(moment_text(start), moment_text(end))
        if answer[0] != "now":
            return answer
        now = float(answer[1])


def mark_of(window: Window | None) -> str:
    """Return what tells scripts that a window has a clock of its own."""
    return "x" if own_clock(window) else ""


def roll(step: Step, scope: Scope, now: float) -> None:
    """Begin the next period of a scope whose period is over."""
    process = step.process
    row = read_row(step, scope)
    if not row.is_of(process.generation):
        return  # the step that is done again finds out
    learn(step, scope, row)
    window = scope.window
    if scope.group is not None and row.version != str(scope.group.version):
        make(step, scope)  # which ends the period, too
        return
    if row.end is None or window is None:
        return
    keys = keys_of(process, (scope,))
    while float(row.end) <= now:
        start, end = window.period(now)
        words = (moment_text(start), moment_text(end), mark_of(window), "")
        answer = step.ask(process.scripts.roll, keys, row.end, words)
        if answer[0] == "rolled":
            process.news.append(News("roll-over", scope.path))
        if answer[0] != "now":
            return
        now = float(answer[1])


def make(step: Step, scope: Scope) -> None:
    """Make the scope of a key, or let it follow its group's values."""
    process, group = step.process, scope.group
    if group is None:
        raise StoreError(f"pool {scope.name!r} is no key's, and the store takes it for one")
    while True:
        answer = in_period(group.window, lambda start, end: _send_make(step, scope, group, start, end))
        if answer[0] in {"made", "kept"}:
            break
        row = read(step, (scope,)).groups[0]
        if answer[0] == "lost" or row.generation != process.generation:  # of the group
            raise process.lost(f"has lost the keys {group.path!r}")
        learn_group(group, row)
    if answer[0] == "kept":
        if answer[1]:
            process.news.append(News("roll-over", scope.path))
        arm(step, scope)


def _send_make(step: Step, scope: Scope, group: Group, start: str, end: str) -> list[Any]:
    process, window = step.process, group.window
    keys = keys_of(process, (scope,))
    expires = "" if own_clock(window) or process.volatile else "k"
    words = (start, end, mark_of(window), expires)
    return step.ask(process.scripts.make, keys, group.version, words)


# ---------------------------------------------------------------------- thresholds


def arm(step: Step, scope: Scope) -> None:
    """Let thresholds be told again that new caps have left above what is used."""
    row = read_row(step, scope)
    if not row.is_of(step.process.generation):
        return
    learn(step, scope, row)
    numbers = numbers_of(row)
    again = [str(parts) for parts in numbers.told if not reached(numbers, parts)]
    if again:
        tell_threshold(step, scope, row.era, "", again)


def tell_threshold(step: Step, scope: Scope, era: str, parts: str, again: Sequence[str]) -> bool:
    """Note that a threshold was told in an era, or that others are armed. Return whether it was not told before."""
    process, keys = step.process, keys_of(step.process, (scope,))
    number = next(process.numbers)
    while True:
        step.register()
        answer = step.ask(process.scripts.told, keys, number, (era, parts, "", ""), again)
        if answer[0] == "done":
            step.done(number)
            return bool(answer[1])
        if answer[0] == "owner":
            step.not_known(process.owner)
        else:
            mend(step, (scope,), answer)


# ---------------------------------------------------------------------- leases


def bury(step: Step, owner: str, *, itself: bool = False) -> None:
    """Charge in full what a process holds whose lease is over, or which ends now.

    Of one that holds very much, what takes more than half of the step's time is left for the next step.
    """
    process = step.process
    hash_key = process.keys.owner(owner)
    while True:
        entries = _entries(step, hash_key)
        scopes: dict[str, int] = {}  # the position of each path
        words: list[str] = []
        facts: dict[str, News] = {}
        for number, entry in entries:
            kind, _, rest = entry.partition(" ")
            at = ""
            if kind[0] == "?":
                place_at, _, paths = rest.partition(" ")
                path = paths.split("|")[int(place_at) - 1]
                at = str(scopes.setdefault(path, len(scopes) + 1))
            elif kind[0] != "=":
                nanos, _, paths = rest.partition(" ")
                parts = paths.split("|")
                at = ",".join(str(scopes.setdefault(path, len(scopes) + 1)) for path in parts)
                facts[number] = News("expired", parts[0], tuple(parts), int(kind), int(nanos))
            words += (number, entry, at)
        chain = [chain_at(process, path)[0] for path in scopes]
        answer = step.ask(
            process.scripts.expire,
            keys_of(process, chain),
            owner,
            ("x" if itself else "", len(chain), process.volatile_mark, ""),
            [*[reading(scope) for scope in chain], *words],
            owner,
        )
        if answer[0] == "ended":
            roll(step, chain[answer[1] - 1], float(answer[2]))
            continue
        if answer[0] == "alive":
            return
        process.news.extend(facts[number] for number in answer[1])
        step.tire()
        if answer[0] == "end" or (step.some and not itself):
            return


def _entries(step: Step, hash_key: str) -> list[tuple[str, str]]:
    """Return some entries of a process's hash, all if they are few."""
    client, cursor = step.process.client, "0"
    while True:
        cursor, flat = client.command("HSCAN", hash_key, cursor, "COUNT", _AT_ONCE, timeout=step.left())
        pairs = zip(flat[::2], flat[1::2], strict=True)
        found = [(number, entry) for number, entry in pairs if number.isdecimal()]
        if found or cursor == "0":
            return found[:_AT_ONCE]
