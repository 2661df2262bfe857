"""``token-budget demo``: threads, then asyncio tasks, spend from one budget, and an audit says whether it held.

The model is simulated, the budget is real. `_workload` makes the calls, `_fanout` spends, `_display` shows it, `_audit`
compares the pool with the workers' own ledger, `_contrast` tells what the calls cost without a pool. This module has
the options and prints what comes before and after the run.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import threading
import time
from contextlib import contextmanager
from itertools import chain
from random import Random
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar

from token_budget import BudgetPool
from token_budget.cli._audit import Caps, audit
from token_budget.cli._contrast import CheckThenSpend
from token_budget.cli._display import contrast_text, filled, progress_on, report
from token_budget.cli._fanout import FanOut
from token_budget.cli._options import real, whole
from token_budget.cli._workload import (
    Prices,
    TraceError,
    estimated_sizes,
    plan,
    read_trace,
    simulated_sizes,
    total,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType
    from typing import Any

    from token_budget.cli._audit import Audit
    from token_budget.cli._display import Progress
    from token_budget.cli._workload import Workload

_CALLS = 200
_MOST_CALLS = 1_000_000
_SHARE = 0.9  # the default caps are this share of what all calls cost, so that the budget ends before the calls do
_MOST_WORKERS = 1000  # more threads would test the operating system, not the budget
_MOST_TOKEN_CAP = 10**18  # this and the next are the pool's own limits
_MOST_USD_CAP = 10**9
_MOST_PRICE = 10**6  # a dollar a token
_BETWEEN_LOOKS = 2_000  # calls that are planned between two looks at the progress

_AUTO: Final = "auto"
_Auto: TypeAlias = Literal["auto"]
_Number = TypeVar("_Number", int, float)
_Item = TypeVar("_Item")


class Options(argparse.Namespace):
    """The parsed options."""

    workers: int
    calls: int | None
    seed: int
    token_cap: int | _Auto | None
    usd_cap: float | _Auto | None
    input_price: float
    output_price: float
    speed: float
    trace: str | None
    input_column: str | None
    output_column: str | None
    json: bool


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``demo`` and its options."""
    parser = commands.add_parser(
        "demo",
        help="threads and asyncio tasks spend from one budget, live, and an audit says whether it held",
        description="Threads, then asyncio tasks, make simulated model calls under one budget of tokens and dollars. "
        "At the end the pool is checked against a ledger that the workers kept. Exit status: 0 the audit agrees; 1 it "
        "does not, or the output cannot be written; 2 bad options or a bad trace; 130 ended by Ctrl-C, and the audit "
        "of the calls up to then agrees.",
    )
    add = parser.add_argument
    add("--workers", type=whole(1, _MOST_WORKERS), default=16, metavar="N", help="calls at once (16)")
    add("--calls", type=whole(0, _MOST_CALLS), metavar="N", help="calls to make (200, or the whole trace)")
    add("--seed", type=int, default=1, metavar="N", help="the same seed gives the same calls (1)")
    caps = "or none; by default nine tenths of what the calls cost, rounded"
    add("--token-cap", type=_cap(whole(0, _MOST_TOKEN_CAP)), default=_AUTO, metavar="N", help=f"tokens, {caps}")
    add("--usd-cap", type=_cap(real(0, _MOST_USD_CAP)), default=_AUTO, metavar="USD", help=f"dollars, {caps}")
    price = real(0, _MOST_PRICE)
    add("--input-price", type=price, default=3.0, metavar="USD", help="per million input tokens (3)")
    add("--output-price", type=price, default=15.0, metavar="USD", help="per million output tokens (15)")
    add("--speed", type=_speed, default=1.0, metavar="X", help="10: ten times as fast; max: without sleeping (1)")
    add("--trace", metavar="FILE", help="take the sizes of real calls: CSV with a header, or JSON lines")
    add("--input-column", metavar="NAME", help="the trace's column of input tokens (the usual names are found)")
    add("--output-column", metavar="NAME", help="the trace's column of output tokens")
    add("--json", action="store_true", help="print one JSON object at the end, and nothing else")
    parser.set_defaults(run=run, parser=parser)


def run(options: Options) -> int:
    """Run the demo and return the exit status: 0 only if the audit agrees."""
    with _one_ctrl_c():
        return _run(options)


@contextmanager
def _one_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, but not again within a second, in which the run ends.

    A launcher may pass on a signal that the terminal has already sent to the whole group: then one Ctrl-C comes twice.
    """
    raised_at = -math.inf

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        nonlocal raised_at
        now = time.monotonic()
        if now - raised_at > 1:
            raised_at = now
            raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()  # only this thread may set handlers
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(options: Options) -> int:
    progress = progress_on(sys.stderr if options.json else sys.stdout, only_terminal=options.json)
    try:
        workload = _workload(options, progress)
    except TraceError as error:
        sys.stderr.write(f"token-budget demo: error: {error}\n")
        return 2
    caps = _caps(options, total(_watched("pricing", chain(*workload), len(workload), progress)))
    progress.close()
    if not options.json:
        sys.stdout.write(_header(options, workload, caps))
        sys.stdout.flush()
    fan_out = FanOut(BudgetPool(caps.tokens, caps.usd, name="demo"), caps, workers=options.workers, speed=options.speed)
    started = time.perf_counter()
    interrupted = fan_out.run(workload, progress)
    elapsed = time.perf_counter() - started
    result = audit(fan_out.ledger, fan_out.pool.snapshot(), calls=len(workload), interrupted=interrupted)
    if not options.json:
        sys.stdout.write(f"\n{report(result, elapsed=elapsed, interrupted=interrupted)}\n")
        sys.stdout.flush()
    contrast = None if interrupted else _contrast(options, workload, caps, progress)
    if options.json:
        shown = _as_json(options, caps, result, contrast, elapsed=elapsed, interrupted=interrupted)
        json.dump(shown, sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif contrast is not None:
        sys.stdout.write(f"{contrast_text(contrast, caps)}\n")
    if not result.agrees:
        return 1
    return 128 + signal.SIGINT if interrupted else 0


def _workload(options: Options, progress: Progress) -> Workload:
    random = Random(options.seed)
    if options.trace is None:
        calls = _CALLS if options.calls is None else options.calls
        sizes = simulated_sizes(calls, random)
    else:
        columns = {"input_column": options.input_column, "output_column": options.output_column}
        trace = read_trace(options.trace, limit=options.calls, **columns)
        calls, sizes = len(trace), estimated_sizes(trace)
    prices = Prices(options.input_price, options.output_price)
    return plan(_watched("planning", sizes, calls, progress), calls, prices, random)


def _watched(what: str, items: Iterable[_Item], count: int, progress: Progress) -> Iterator[_Item]:
    """Pass the items on and show how many: a million calls take a while to plan."""
    for number, item in enumerate(items):
        if number and number % _BETWEEN_LOOKS == 0:
            progress.show(f"{what} {number:,}/{count:,} calls")
        yield item


def _caps(options: Options, cost: tuple[int, float]) -> Caps:
    """Return the caps from the options; a cap that is left open is about nine tenths of the cost, a round number."""
    tokens, usd = cost
    token_cap, usd_cap = options.token_cap, options.usd_cap
    if token_cap == _AUTO:
        token_cap = min(int(float(f"{_SHARE * tokens:.2g}")), _MOST_TOKEN_CAP)
    if usd_cap == _AUTO:
        usd_cap = min(float(f"{_SHARE * usd:.2g}"), _MOST_USD_CAP)
    return Caps(token_cap, usd_cap)


def _contrast(options: Options, workload: Workload, caps: Caps, progress: Progress) -> CheckThenSpend | None:
    """Return what the calls cost without reservations; None where no cap can be passed."""
    if caps.tokens is None and caps.usd is None:
        return None
    contrast = CheckThenSpend(caps, options.workers)
    for calls in workload:  # the tasks begin after the last thread has ended, as in the run with the pool
        contrast.spend(_watched("check-then-spend", calls, len(calls), progress))
    progress.close()
    return contrast


def _header(options: Options, workload: Workload, caps: Caps) -> str:
    source = "simulated" if options.trace is None else f"sizes from {options.trace!r}"
    speed = "as fast as possible" if math.isinf(options.speed) else f"speed {options.speed:g}"
    tokens = "no token cap" if caps.tokens is None else f"{caps.tokens:,} tokens"
    usd = "no USD cap" if caps.usd is None else f"{caps.usd:,g} USD"
    rows = {
        "caps": f"{tokens}, {usd}",
        "prices": f"{options.input_price:g} USD per million input tokens, {options.output_price:g} per million output",
        "workers": f"{options.workers:,} threads, then as many asyncio tasks; {speed}",
        "bars": "# used, = reserved by calls in flight, - free",
    }
    title = filled(f"token_budget demo: {len(workload):,} calls, {source}, seed {options.seed}", then=" " * 11)
    lines = [filled(text, first=f"  {name:<8} ", then=" " * 11) for name, text in rows.items()]
    return "\n".join([title, *lines]) + "\n\n"


def _as_json(
    options: Options,
    caps: Caps,
    result: Audit,
    contrast: CheckThenSpend | None,
    *,
    elapsed: float,
    interrupted: bool,
) -> dict[str, Any]:
    ignored = {"command", "run", "parser"}  # the parser's own
    speed = "max" if math.isinf(options.speed) else options.speed  # JSON has no infinity
    return {
        "agrees": result.agrees,
        "interrupted": interrupted,
        "seed": options.seed,
        "elapsed_seconds": round(elapsed, 3),
        "options": {name: value for name, value in vars(options).items() if name not in ignored} | {"speed": speed},
        "caps": {"tokens": caps.tokens, "usd": caps.usd, "usd_nanos": caps.nanos},
        "audit": {
            key: {"calls": line.calls, "tokens": line.amount.tokens, "usd_nanos": line.amount.nanos}
            for key, line in result.lines.items()
        },
        "most_in_flight": result.most_in_flight,
        "checks": [check._asdict() for check in result.checks],
        "check_then_spend": None if contrast is None else {"tokens": contrast.tokens, "usd": contrast.usd},
    }


def _cap(parse: Callable[[str], _Number]) -> Callable[[str], _Number | _Auto | None]:
    def parse_cap(text: str) -> _Number | _Auto | None:
        if text == _AUTO:
            return _AUTO
        return None if text == "none" else parse(text)

    return parse_cap


def _speed(text: str) -> float:
    if text == "max":
        return math.inf
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not 0 < speed < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, or max, not {text!r}")
    return speed
