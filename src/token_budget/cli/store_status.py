"""``token-budget status STORE|run``: what is used, held and left of a budget in a store, or by a run that is going on.

Both give what they have as of now, as JSON and as lines. One path shows that, once or again and again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, NamedTuple, Protocol

from token_budget.cli._display import filled
from token_budget.cli._options import real, whole
from token_budget.cli._store_commands import STATUSES, Options, add_options, failed, store_of_environment, with_pool
from token_budget.cli._store_tree import tree_lines
from token_budget.contract import BudgetUnavailable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from typing import Any, TextIO

    from token_budget import BudgetSnapshot
    from token_budget.cli._run_files import Running
    from token_budget.stores import StorePool

_DEEPEST = 1_000
_EVERY, _EVERY_BY_RICH = 1.0, 0.25  # seconds: four times a second is as much as an eye follows
_pause = time.sleep
_CLEAR, _HOME, _CLEAR_LINE, _CLEAR_TO_END = "\x1b[2J\x1b[H", "\x1b[H", "\x1b[K", "\x1b[J"
_RUN = re.compile(r"run(?::(\d{1,9}))?")


class StatusOptions(Options):
    """The parsed options."""

    watch: bool
    interval: float | None
    depth: int | None


class Status(NamedTuple):
    """What the store says as of one moment."""

    at: datetime
    store: str
    tree: BudgetSnapshot
    depth: int | None
    expired: int  # calls that are charged in full: their process died, or a lease ended


class Shown(NamedTuple):
    """What is shown of one moment: as JSON, and as lines."""

    told: dict[str, Any]
    lines: list[str]


class RunOver(BudgetUnavailable):
    """The run that is looked at has ended."""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``status`` and its options."""
    parser = commands.add_parser(
        "status",
        help="what is used, held and left of a budget in a store, or by a run",
        description="Show a budget in a store with all budgets below it: what is used, what calls in flight hold, and "
        "when it resets. Or show a run of yours that is going on: run, or run:PID where there are several. Where no "
        f"store is named, the only run is shown. The command changes nothing, and makes no budget. {STATUSES}",
    )
    add_options(parser, ", run, run:PID")
    add = parser.add_argument
    add("--watch", action="store_true", help="again and again, in place on a terminal, until Ctrl-C")
    add("--interval", type=real(0, 86_400), metavar="S", help="seconds between two looks (1; 0.25 where rich draws)")
    add("--depth", type=whole(0, _DEEPEST), metavar="N", help="levels below the budget to show (all)")
    parser.set_defaults(run=run, parser=parser)


def run(options: StatusOptions) -> int:
    """Show it, and return the exit status."""
    try:
        one = _run_of(options)
    except BudgetUnavailable as error:
        return failed(options, error)
    if one is None:
        return with_pool(options, lambda pool: _show(options, lambda: _look_at_store(options, pool), _store_lost()))
    try:
        return _show(options, lambda: _look_at_run(options, one), RunOver)
    except RunOver as error:
        if not options.watch:
            return failed(options, error)
        told = {"at": _now().isoformat(), "ended": str(error)}
        sys.stdout.write(f"{json.dumps(told) if options.json else error}\n")
        return 0
    except BudgetUnavailable as error:
        return failed(options, error)


def _store_lost() -> type[BudgetUnavailable]:
    from token_budget.stores import StoreLost

    return StoreLost


def _show(options: StatusOptions, look: Callable[[], Shown], end: type[BudgetUnavailable]) -> int:
    if options.watch:
        return _watch(options, look, end)
    told, lines = look()
    text = json.dumps(told, indent=2) if options.json else "\n".join(lines)
    sys.stdout.write(f"{text}\n")
    return 0


def _watch(options: StatusOptions, look: Callable[[], Shown], end: type[BudgetUnavailable]) -> int:
    """Show it until Ctrl-C, or until what ends it. An outage is shown, and the store or the run is asked again."""
    screen = _JsonLines(sys.stdout) if options.json else _screen(sys.stdout)
    every = screen.every if options.interval is None else max(options.interval, screen.least)
    try:
        while True:
            try:
                shown = look()
            except end:
                raise
            except BudgetUnavailable as error:
                now = _now()
                shown = Shown({"at": now.isoformat(), "unavailable": str(error)}, [f"{_shown(now)}: {error}"])
            screen.show(shown)
            _pause(every)
    finally:
        screen.close()


# ---------------------------------------------------------------- a run


def _run_of(options: StatusOptions) -> Running | None:
    """Return the run to show; None for a store.

    Raises:
        BudgetUnavailable: there is no such run, or there are several.
    """
    from token_budget.cli._run_files import running

    chosen = _RUN.fullmatch("run" if options.store is None else options.store)
    if chosen is None or (options.store is None and store_of_environment()):
        return None
    found = running()
    if options.store is None:
        if len(found) > 1:
            options.parser.error(f"which store or run? These runs are going on: {_names(found)}")
        return found[0] if found else None
    if chosen[1] is not None:
        return _with_pid(found, int(chosen[1]))
    if not found:
        raise BudgetUnavailable("no run of yours is going on")
    if len(found) > 1:
        raise BudgetUnavailable(f"several runs are going on, say which: {_names(found)}")
    return found[0]


def _with_pid(found: Sequence[Running], pid: int) -> Running:
    """Return the run of this process id, which may be that of the run or of its child."""
    for one in found:
        if one.pid == pid:
            return one
    for one in found:
        with suppress(BudgetUnavailable):
            if one.ask().pid == pid:
                return one
    raise BudgetUnavailable(f"no run of yours with the process id {pid} is going on")


def _names(found: Sequence[Running]) -> str:
    return ", ".join(f"run:{one.pid} ({_pure(one.command)})" for one in found)


def _pure(text: str) -> str:
    from token_budget.cli._run_text import pure

    return pure(text)


def _look_at_run(options: StatusOptions, one: Running) -> Shown:
    from token_budget.cli._run_view import run_lines

    try:
        status = one.ask()
    except BudgetUnavailable:
        if not one.lives:
            raise RunOver(f"run {one.pid} has ended") from None
        raise
    now = _now()
    told = status.to_dict()
    if status.pool is not None:
        told["pool"] = _cut(status.pool, options.depth)
    lines = [f"run:{one.pid} at {_shown(now)}", *run_lines(status, now, options.depth)]
    return Shown({"at": now.isoformat(), "run": one.pid, "status": told}, lines)


# ---------------------------------------------------------------- a store


def _look_at_store(options: StatusOptions, pool: StorePool) -> Shown:
    tree = pool.snapshot(tree=options.depth != 0)
    status = Status(_now(), pool._family.location, tree, options.depth, len(pool.expired()))
    return Shown(_as_json(status), _lines(status))


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _shown(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _lines(status: Status) -> list[str]:
    lines = [f"{status.store} at {_shown(status.at)}", *tree_lines(status.tree, status.at, status.depth)]
    if status.expired:
        calls = "1 call is" if status.expired == 1 else f"{status.expired:,} calls are"
        text = f"{calls} charged in full, and not settled since: see token-budget expired"
        lines += filled(text).split("\n")
    return lines


def _as_json(status: Status) -> dict[str, Any]:
    budget = _cut(status.tree.to_dict(), status.depth)
    return {"at": status.at.isoformat(), "store": status.store, "expired": status.expired, "budget": budget}


def _cut(budget: dict[str, Any], depth: int | None) -> dict[str, Any]:
    """Leave out what lies deeper."""
    level = [budget]
    for _ in range(_DEEPEST if depth is None else depth):
        level = [child for one in level for child in one["children"]]
    for one in level:
        one["children"] = []
    return budget


# ---------------------------------------------------------------- showing it again and again


def _size(terminal: TextIO) -> os.terminal_size:
    size = os.get_terminal_size(terminal.fileno())
    return size if all(size) else shutil.get_terminal_size()  # some terminals do not say how large they are


def _fitted(lines: list[str], rows: int) -> list[str]:
    """Return as many lines as a terminal has, one row less."""
    if len(lines) >= rows > 2:
        return [*lines[: rows - 2], f"... and {len(lines) - rows + 2:,} lines; --depth leaves some out"]
    return lines


class _Shows(Protocol):
    every: float  # seconds between two looks, if the user says nothing
    least: float  # and if the user says less

    def show(self, shown: Shown) -> None:
        """Show it after the last one, or in its place."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def _screen(stream: TextIO) -> _Shows:
    """Return what suits the stream: rich draws on a terminal, where it is installed."""
    from token_budget.cli._run_rich import can_draw

    return _ByRich(stream) if stream.isatty() and can_draw() else _Screen(stream)


class _JsonLines:
    """Shows an object a line."""

    every, least = _EVERY, 0.0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, shown: Shown) -> None:
        """Write it."""
        self._stream.write(f"{json.dumps(shown.told)}\n")
        self._stream.flush()

    def close(self) -> None:
        """Do nothing: every line has ended."""


class _ByRich:
    """Shows lines in place, drawn by rich at most four times a second."""

    every = least = _EVERY_BY_RICH

    def __init__(self, stream: TextIO) -> None:
        from token_budget.cli._run_rich import RichScreen

        self._stream = stream
        self._screen = RichScreen(stream, lambda: _size(stream))

    def show(self, shown: Shown) -> None:
        """Show these lines in place of the last ones."""
        self._screen.show(_fitted(shown.lines, _size(self._stream).lines))

    def close(self) -> None:
        """Show the cursor again, below the last lines."""
        self._screen.close()


class _Screen:
    """Shows lines again and again: in place on a terminal, else one below the other with an empty line between."""

    every, least = _EVERY, 0.0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._begun = False

    def show(self, shown: Shown) -> None:
        """Show these lines in place of the last ones. A terminal shows as many as it has."""
        lines = shown.lines
        if self._terminal:
            columns, rows = _size(self._stream)
            begin = _HOME if self._begun else _CLEAR
            fitted = "".join(f"{line[: columns - 1]}{_CLEAR_LINE}\n" for line in _fitted(lines, rows))
            text = begin + fitted + _CLEAR_TO_END
        else:
            text = ("\n" if self._begun else "") + "".join(f"{line}\n" for line in lines)
        self._begun = True
        self._stream.write(text)
        self._stream.flush()

    def close(self) -> None:
        """Do nothing: every line has ended."""
