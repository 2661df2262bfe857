"""``token-budget status STORE``: what is used, held and left of a budget in a store, and of those below it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, NamedTuple

from token_budget.cli._display import filled
from token_budget.cli._options import real, whole
from token_budget.cli._store_commands import STATUSES, Options, add_options, with_pool
from token_budget.cli._store_tree import tree_lines
from token_budget.contract import BudgetUnavailable

if TYPE_CHECKING:
    import argparse
    from typing import Any, TextIO

    from token_budget import BudgetSnapshot
    from token_budget.stores import StorePool

_DEEPEST = 1_000
_pause = time.sleep
_CLEAR, _HOME, _CLEAR_LINE, _CLEAR_TO_END = "\x1b[2J\x1b[H", "\x1b[H", "\x1b[K", "\x1b[J"


class StatusOptions(Options):
    """The parsed options."""

    watch: bool
    interval: float
    depth: int | None


class Status(NamedTuple):
    """What the store says as of one moment."""

    at: datetime
    store: str
    tree: BudgetSnapshot
    depth: int | None
    expired: int  # calls that are charged in full: their process died, or a lease ended


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``status`` and its options."""
    parser = commands.add_parser(
        "status",
        help="what is used, held and left of a budget in SQLite or Redis",
        description="Show a budget in a store with all budgets below it: what is used, what calls in flight hold, and "
        f"when it resets. It changes nothing, and makes no budget. {STATUSES}",
    )
    add_options(parser)
    add = parser.add_argument
    add("--watch", action="store_true", help="again and again, in place on a terminal, until Ctrl-C")
    add("--interval", type=real(0, 86_400), default=1.0, metavar="S", help="seconds between two looks (1)")
    add("--depth", type=whole(0, _DEEPEST), metavar="N", help="levels below the budget to show (all)")
    parser.set_defaults(run=run, parser=parser)


def run(options: StatusOptions) -> int:
    """Show it, and return the exit status."""
    return with_pool(options, lambda pool: _watch(options, pool) if options.watch else _once(options, pool))


def _once(options: StatusOptions, pool: StorePool) -> int:
    status = _look(options, pool)
    text = json.dumps(_as_json(status), indent=2) if options.json else "\n".join(_lines(status))
    sys.stdout.write(f"{text}\n")
    return 0


def _watch(options: StatusOptions, pool: StorePool) -> int:
    """Show it until Ctrl-C or until the store is lost. An outage is shown, and the store is asked again."""
    from token_budget.stores import StoreLost

    screen = _Screen(sys.stdout)
    while True:
        try:
            status = _look(options, pool)
        except StoreLost:
            raise
        except BudgetUnavailable as error:
            now = _now()
            text, lines = {"at": now.isoformat(), "unavailable": str(error)}, [f"{_shown(now)}: {error}"]
        else:
            text, lines = _as_json(status), _lines(status)
        if options.json:
            sys.stdout.write(f"{json.dumps(text)}\n")
            sys.stdout.flush()
        else:
            screen.show(lines)
        _pause(options.interval)


def _look(options: StatusOptions, pool: StorePool) -> Status:
    tree = pool.snapshot(tree=options.depth != 0)
    return Status(_now(), pool._family.location, tree, options.depth, len(pool.expired()))


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
    budget = status.tree.to_dict()
    level = [budget]
    for _ in range(_DEEPEST if status.depth is None else status.depth):
        level = [child for one in level for child in one["children"]]
    for one in level:
        one["children"] = []
    return {"at": status.at.isoformat(), "store": status.store, "expired": status.expired, "budget": budget}


def _size(terminal: TextIO) -> os.terminal_size:
    size = os.get_terminal_size(terminal.fileno())
    return size if all(size) else shutil.get_terminal_size()  # some terminals do not say how large they are


class _Screen:
    """Shows lines again and again: in place on a terminal, else one below the other with an empty line between."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._begun = False

    def show(self, lines: list[str]) -> None:
        """Show these lines in place of the last ones. A terminal shows as many as it has."""
        if self._terminal:
            columns, rows = _size(self._stream)
            if len(lines) >= rows > 2:
                lines = [*lines[: rows - 2], f"... and {len(lines) - rows + 2:,} lines; --depth leaves some out"]
            begin = _HOME if self._begun else _CLEAR
            text = begin + "".join(f"{line[: columns - 1]}{_CLEAR_LINE}\n" for line in lines) + _CLEAR_TO_END
        else:
            text = ("\n" if self._begun else "") + "".join(f"{line}\n" for line in lines)
        self._begun = True
        self._stream.write(text)
        self._stream.flush()
