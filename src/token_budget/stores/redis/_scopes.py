"""Scopes: opening, caps and windows, resetting, closing, forgetting; and reading the numbers of many."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from token_budget._arguments import UNCHANGED
from token_budget._money import usd_text
from token_budget._window import Window
from token_budget.stores._errors import StoreError, StoreLost, StoreMismatch
from token_budget.stores._names import decoded, name_at
from token_budget.stores._store import Group, News, Numbers, Opened, Scope
from token_budget.stores.redis._claims import begin
from token_budget.stores.redis._keys import escaped
from token_budget.stores.redis._mending import (
    arm,
    in_period,
    make,
    mark_of,
    meet,
    mend,
    numbers_now,
    tell_threshold,
)
from token_budget.stores.redis._process import Process, Step
from token_budget.stores.redis._reading import chain_at, closed, keys_of, present, read, read_row
from token_budget.stores.redis._rows import GroupRow, clock_of, learn_group, reading, unused

_WHAT = {"T": "token_cap", "N": "nano_cap", "W": "window"}
_AT_ONCE = 5_000  # scopes that one script reads: a tree of more is read in several
# At a tree: a scope that was made between the search for names and the read is not in it yet. After half of the step's
# time there is no other look.
_LOOKS = 10


def _above(scope: Scope | Group) -> list[Scope]:
    """Return the scopes above, the nearest first."""
    chain: list[Scope] = []
    above = scope.above
    while above is not None:
        chain.append(above)
        above = above.above
    return chain


def _keys_of_any(process: Process, scope: Scope | Group) -> list[str]:
    if isinstance(scope, Scope):
        return keys_of(process, (scope,))
    process.known[scope.path] = scope
    return [*process.keys.of_group(scope)]


@contextmanager
def _giving(window: Window | None, scope: Scope | Group) -> Iterator[None]:
    """Know a window that is about to be given, before another thread can read it in the store: its clock is there."""
    before = scope.given
    if window is not None:
        scope.given = window
    try:
        yield
    except BaseException:
        scope.given = before
        raise


def _once(
    step: Step, window: Window | None, send: Callable[[str, str], list[Any]], mended: Sequence[Scope]
) -> list[Any]:
    """Send a script that is done once, in a window's present period, until nothing has to be done before it.

    `mended` are the scopes that its answers speak of. What is given up is kept from being done later.
    """
    process = step.process
    owner = process.owner
    try:
        while True:
            answer = in_period(window, send)
            if answer[0] == "owner":
                step.not_known(owner)
                begin(step)
                owner = process.owner
            elif answer[0] in {"ended", "gone", "old", "stale"}:
                mend(step, mended, answer)
            else:
                break
    except BaseException:
        step.give_up((), owner, step.number)
        raise
    step.done(owner=owner)
    if answer[0] == "cancelled":
        raise step.stale()
    return answer


# ---------------------------------------------------------------------- opening


def open_scope(
    process: Process,
    scope: Scope | Group,
    values: tuple[int | None, int | None, Window | None],
    how: str,
    *,
    create: bool,
) -> Opened:
    """See `Store.open`."""
    tokens, nanos, window = values
    above, is_group = _above(scope), isinstance(scope, Group)
    words = ("" if tokens is None else tokens, "" if nanos is None else nanos, str(window or ""), how)
    proposed = str(secrets.randbelow(2**31 - 10) + 10)
    given, names = process.keys.given(scope.path), process.keys.names
    present = reading(scope) if isinstance(scope, Scope) else clock_of(scope.window)
    keys = [*_keys_of_any(process, scope), given, names, *[process.keys.scope(one.path) for one in above]]
    with process.step() as step, _giving(window, scope):
        if not process.generation:
            process.client.check()
            if not create and process.client.command("EXISTS", process.keys.root, timeout=step.left()) == 0:
                raise _nothing(process)
        begin(step)

        def send(start: str, end: str) -> list[Any]:
            more = [mark_of(window), start, end, "x" if create else "", scope.path, "x" if is_group else "", proposed]
            return step.ask(
                process.scripts.open, keys, step.number, words, [*more, process.owner, process.who, present]
            )

        spoken_of = (scope if isinstance(scope, Scope) else above[0], *above)
        answer = _once(step, window, send, spoken_of)
        if answer[0] != "opened":
            raise _refusal(process, scope, spoken_of, answer)
        return _opened(step, scope, window, answer)


def _opened(step: Step, scope: Scope | Group, window: Window | None, answer: list[Any]) -> Opened:
    """Learn what a scope is like that was opened."""
    process = step.process
    _, made, generation, anew, *flat = answer
    if made and not process.generation:
        process.news.append(News("created", scope.path))
    process.generation = generation
    if anew:
        process.news.append(News("roll-over", scope.path))
    changed = tuple((_WHAT[what], _value(what, old), _value(what, new)) for what, old, new in _threes(flat))
    if window is not None:
        scope.window = window  # its clock stays, whatever window the store has
    if isinstance(scope, Group):
        row = _read_group(step, scope)
        return Opened(unused(row, None), bool(made), changed)
    if changed:
        arm(step, scope)
    return Opened(numbers_now(step, (scope,))[0], bool(made), changed)


def _threes(flat: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    return zip(flat[::3], flat[1::3], flat[2::3], strict=True)


def _value(what: str, text: str) -> Any:
    """Return a cap or a window's text as the front shows it."""
    if not text:
        return None
    return text if what == "W" else int(text)


def _nothing(process: Process) -> StoreLost:
    return StoreLost(
        f"{process.client.location} has no pool {decoded(process.keys.path)!r}, and create=False: open it once "
        "without, or look whether this is the right server and database"
    )


def _refusal(process: Process, scope: Scope | Group, spoken_of: Sequence[Scope], answer: list[Any]) -> Exception:
    """Return the error of a scope that could not be opened."""
    kind, name = answer[0], scope.name or f"the keys {scope.path!r}"
    if kind == "closed":
        spoken_of[answer[1] - 1].closed = True
        return closed(spoken_of[answer[1] - 1])
    if kind == "none":
        return _nothing(process)
    if kind == "lost":
        return process.lost(f"has lost pool {name!r}")
    if kind == "mismatch":
        return _mismatch(name, *answer[1:])
    if kind == "newer":
        return StoreError(
            f"pool {name!r} in {process.client.location} was made by a later version of this package (layout "
            f"{answer[1]}): install that one"
        )
    return StoreError(
        f"{process.client.location} has something under {process.keys.root!r} that is no budget of this package: use "
        "another name, or another database"
    )


def _mismatch(name: str, what: str, stored: str, given: str, theirs: str, who: str) -> StoreMismatch:
    def said(text: str) -> str:
        if text in {"", "none"}:
            return "no window" if what == "W" else "no cap"
        return f"{usd_text(int(text))} USD" if what == "N" else text

    argument = {"T": "token_cap", "N": "usd_cap", "W": "window"}[what]
    return StoreMismatch(
        f"pool {name!r}: this code says {argument} {said(given)}, and the store has {said(stored)}; the process {who}, "
        f'which lives, says {said(theirs)}. Let both say the same, or open it with caps="mine" to override that, or '
        'with caps="stored" to take what is there; set_caps() changes it for everybody'
    )


# ---------------------------------------------------------------------- changing


def set_caps(process: Process, scope: Scope | Group, token_cap: Any, nano_cap: Any, window: Any) -> None:
    """See `Store.set_caps` and `Store.set_group`."""
    words = [_cap_word(token_cap), _cap_word(nano_cap), "" if window is UNCHANGED else str(window or "none")]
    words.append("g" if isinstance(scope, Group) else "k" if scope.group is not None else "")
    keys = [*_keys_of_any(process, scope), process.keys.given(scope.path)]
    given = None if window is UNCHANGED else window
    with process.step() as step, _giving(given, scope):
        begin(step)

        def send(start: str, end: str) -> list[Any]:
            present = reading(scope) if isinstance(scope, Scope) else clock_of(scope.window)
            more = [mark_of(given), start, end, present, "", "", "", process.owner, process.who]
            answer = step.ask(process.scripts.caps, keys, step.number, words, more)
            if answer[0] == "gone" and isinstance(scope, Group):
                raise _lost_keys(process, scope)
            return answer

        mended = [scope if isinstance(scope, Scope) else scope.above]
        answer = _once(step, given, send, mended)
        if answer[0] == "closed":
            mended[0].closed = True
            raise closed(mended[0])
        if given is not None:
            scope.window = given
        if answer[1]:
            process.news.append(News("roll-over", scope.path))
        if isinstance(scope, Group):
            _read_group(step, scope)
        else:
            arm(step, scope)


def _cap_word(cap: Any) -> str | int:
    return "" if cap is UNCHANGED else "none" if cap is None else int(cap)


def reset(process: Process, scope: Scope) -> None:
    """See `Store.reset`."""
    keys = keys_of(process, (scope,))
    with process.step() as step:
        begin(step)
        while True:
            revision, _, _, version = meet(step, scope).words
            if scope.group is not None and version != str(scope.group.version):
                make(step, scope)  # by the old window it would be in no period of the present one
                continue
            window = scope.window

            def send(start: str, end: str) -> list[Any]:
                words = (mark_of(window), start, end, revision)  # noqa: B023 - it is called before the next round
                return step.ask(process.scripts.reset, keys, step.number, words)

            if _once(step, window, send, (scope,))[0] == "done":
                break
        meet(step, scope)


def close(process: Process, scope: Scope) -> None:
    """See `Store.close`."""
    keys = [*keys_of(process, (scope,)), process.keys.names, process.keys.given(scope.path)]
    words = (scope.path if scope.group is None else "", process.volatile_mark, "", "")
    with process.step() as step:
        begin(step)
        _once(step, None, lambda *_: step.ask(process.scripts.close, keys, step.number, words), (scope,))
    scope.closed = True


def forget(process: Process, scope: Scope) -> bool:
    """See `Store.forget`. What is below the key is deleted with it."""
    own, names = keys_of(process, (scope,)), process.keys.names
    with process.step() as step:
        begin(step)
        numbers_now(step, ())  # which charges what the dead have in flight there
        below, named = _paths_below(step, scope)
        parts = [part for path in below if path != scope.path for part in process.keys.parts(path)]
        groups = [part for path in named if path.endswith(":") for part in process.keys.group_parts(path)]
        keys = [*own, names, *parts, *groups]
        answer = _once(
            step,
            None,
            lambda *_: step.ask(process.scripts.forget, keys, step.number, ("", "", "", ""), named),
            (scope,),
        )
    if answer[0] == "busy":
        raise ValueError(
            f"cannot forget {scope.name!r}: calls are in flight there, or wait for room: {answer[1]} in flight, "
            f"{answer[2]} waiting"
        )
    scope.closed = False
    return bool(answer[1])


def claim_threshold(process: Process, scope: Scope, era: int, parts: int) -> bool:
    """See `Store.claim_threshold`."""
    with process.step() as step:
        begin(step)
        return tell_threshold(step, scope, str(era), str(parts), ())


# ---------------------------------------------------------------------- looking


def read_chain(process: Process, chain: Sequence[Scope]) -> tuple[Numbers, ...]:
    """See `Store.read`."""
    with process.step() as step:
        return numbers_now(step, chain)


def _read_group(step: Step, group: Group) -> GroupRow:
    process = step.process
    key = process.keys.of_group(group)[0]
    row = GroupRow(*process.client.command("HMGET", key, *"gvTNWyEbqr", timeout=step.left()))
    if row.generation != process.generation:
        raise _lost_keys(process, group)
    learn_group(group, row)
    return row


def _lost_keys(process: Process, group: Group) -> StoreLost:
    return process.lost(f"has lost the keys {group.path!r}")


def keys(process: Process, group: Group) -> list[str]:
    """See `Store.keys`."""
    start = process.keys.scope(group.path)
    with process.step() as step:
        found = process.client.scan(f"{escaped(start)}*", timeout=step.left())
        paths = [key for key in found if "/" not in key[len(start) :]]
        numbers: list[str] = []
        for first in range(0, len(paths), _AT_ONCE):
            numbers += step.ask(process.scripts.numbers, paths[first : first + _AT_ONCE], 0, ("", "", "", ""))
        step.check_root()
    there = sorted((int(number), key[len(start) :]) for number, key in zip(numbers, paths, strict=True) if number)
    return [decoded(key) for _, key in there]


def knows(process: Process, scope: Scope) -> bool:
    """See `Store.knows`."""
    with process.step() as step:
        known = read_row(step, scope).is_of(process.generation)
        if not known:
            step.check_root()
        return known


def tree(process: Process, scope: Scope) -> list[tuple[str, str, Numbers]]:
    """See `Store.tree`."""
    with process.step() as step:
        numbers_now(step, ())  # which charges those whose leases are over
        looks = 0
        while True:
            looks += 1
            made = _last_made(step)
            found, order = _rows_below(step, scope)
            if looks == _LOOKS or step.late or _last_made(step) == made:
                break
        if scope.path not in found:
            found[scope.path], order[scope.path] = numbers_now(step, (scope,))[0], 0
    below: dict[str, list[str]] = {}
    for path in found:
        below.setdefault(path.rpartition("/")[0], []).append(path)
    in_order, left = [], [scope.path]
    while left:
        path = left.pop()
        in_order.append((path, name_at(path), found[path]))
        left += sorted(below.get(path, ()), key=lambda one: order[one], reverse=True)
    return in_order


def _last_made(step: Step) -> Any:
    """Return the last number given in the whole budget: another one since a scope was made, or a period began."""
    process = step.process
    return process.client.command("HGET", process.keys.root, "u", timeout=step.left())


def _rows_below(step: Step, scope: Scope) -> tuple[dict[str, Numbers], dict[str, int]]:
    """Return the numbers of a scope and all below it by their paths, and the order in which they were made."""
    process = step.process
    paths, _ = _paths_below(step, scope)
    found: dict[str, Numbers] = {}
    order: dict[str, int] = {}
    for first in range(0, len(paths), _AT_ONCE):
        scopes = [chain_at(process, path)[0] for path in paths[first : first + _AT_ONCE]]
        now, rows, groups = read(step, scopes)
        for one, row, above in zip(scopes, rows, groups, strict=True):
            numbers = present(process, one, row, above, now)
            if numbers is not None:
                found[one.path] = numbers
                order[one.path] = int(row.number) if row.is_of(process.generation) else 1 << 62  # the youngest
    return found, order


def _paths_below(step: Step, scope: Scope) -> tuple[list[str], list[str]]:
    """Return the paths of a scope and all below it, in any order; and those of scopes and groups that have a name."""
    process, start = step.process, f"{scope.path}/"
    names = process.client.command("HKEYS", process.keys.names, timeout=step.left())
    named = [path for path in names if path.startswith(start)]
    paths = {scope.path, *[path for path in named if not path.endswith(":")]}
    if any(path.endswith(":") for path in named):  # a group, whose keys are found by the names of their scopes alone
        prefix = f"{process.keys.root}:s:"
        for key in process.client.scan(f"{escaped(prefix + start)}*", timeout=step.left()):
            paths.add(key[len(prefix) :])
    for path in [*paths]:  # a key's scope that has expired, with scopes below that have not
        while len(path) > len(scope.path):
            paths.add(path)
            path = path.rpartition("/")[0]  # noqa: PLW2901
    return [*paths], named
