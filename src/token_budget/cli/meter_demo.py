"""``token-budget meter-demo``: two hundred calls at once to a fake provider, metered, and an audit of both books.

First in threads, with a client that is wrapped (`Meter.wrap`); then in tasks, with a client that knows nothing of a
budget, in a run (`budget_run`). The provider is a real HTTP server on loopback that turns calls away, breaks off, hangs
and leaves usage out. `_meter_calls` makes the calls, `_meter_audit` compares the books.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from token_budget import BudgetPool
from token_budget.cli._display import check_text, filled, line_text, row, usd_text
from token_budget.cli._options import real, whole

if TYPE_CHECKING:
    from token_budget.cli._audit import Check, Line
    from token_budget.cli._meter_audit import Books
    from token_budget.cli._meter_calls import Job

_CALLS = 200
_MOST_CALLS = 1_000  # all at once, each in a thread of its own
_MOST_USD_CAP = 10**9
_FILES, _FILES_OF_A_CALL = 128, 4  # sockets at both ends, and those of the call before that are not closed yet
_LATENCY = 0.1  # seconds that the provider takes for an answer, so that many calls are in flight
_SHARE = 0.9  # the default cap is this share of what the calls cost, so that the budget ends before they do

_AUTO: Final = "auto"
_Client: TypeAlias = Literal["auto", "openai", "standard"]


class Options(argparse.Namespace):
    """The parsed options."""

    calls: int
    seed: int
    usd_cap: float | None
    client: _Client
    json: bool


class Part(NamedTuple):
    """One half of the demo, after it."""

    key: str
    title: str
    lines: dict[str, Line]
    peak: int  # nanodollars, used and reserved
    cap: int  # nanodollars
    at_once: int  # requests
    checks: list[Check]
    summary: str | None  # of the run, if there was one


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``meter-demo`` and its options."""
    parser = commands.add_parser(
        "meter-demo",
        help="metered calls to a fake provider, which fails, breaks and hangs, and an audit of both books",
        description="Many calls at once to a fake provider on loopback: in threads with a wrapped client, then in "
        "tasks in a run. Some are turned away and tried again, some break off, some hang. At the end the provider's "
        "bills are compared with what was counted. Exit status: 0 the books agree; 1 they do not, or the output cannot "
        "be written; 2 bad options, or no SDK where one is asked for; 130 ended by Ctrl-C.",
    )
    add = parser.add_argument
    add("--calls", type=whole(1, _MOST_CALLS), default=_CALLS, metavar="N", help="calls at once, in each half (200)")
    add("--seed", type=int, default=1, metavar="N", help="the same seed gives the same calls (1)")
    share = "in each half; by default nine tenths of what its calls cost, rounded"
    add("--usd-cap", type=real(0, _MOST_USD_CAP), metavar="USD", help=f"dollars, {share}")
    clients = ("auto", "openai", "standard")
    told = "the openai SDK, or a client of the standard library (auto: the SDK, if it is installed)"
    add("--client", choices=clients, default=_AUTO, help=told)
    add("--json", action="store_true", help="print one JSON object at the end, and nothing else")
    parser.set_defaults(run=run, parser=parser)


def run(options: Options) -> int:
    """Run the demo and return the exit status: 0 only if the books agree."""
    sdk = options.client == "openai" or (options.client == "auto" and _installed())
    if sdk and not _installed():
        sys.stderr.write("token-budget meter-demo: error: the openai SDK is not installed: pip install openai\n")
        return 2
    random, started = Random(options.seed), time.perf_counter()
    parts = []
    if not options.json:
        _say(_header(options, sdk=sdk))
    for half in (_threads, _tasks):
        try:
            with _open_files(_FILES_OF_A_CALL * options.calls + _FILES):
                part = half(options, random, sdk=sdk)
        except OSError as error:  # of a socket; what is written is written outside of here
            sys.stderr.write(f"token-budget meter-demo: error: {error}\n")
            return 1
        parts.append(part)
        if not options.json:
            _say(_shown(part))
    checks = [check for part in parts for check in part.checks]
    elapsed, failed = time.perf_counter() - started, sum(not check.ok for check in checks)
    if options.json:
        json.dump(_as_json(options, parts, sdk=sdk, elapsed=elapsed), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        verdict = f"DO NOT AGREE in {failed}" if failed else "agree in all"
        _say(f"\nAfter {elapsed:.1f} s: the books {verdict} of {len(checks)} checks.")
    return 1 if failed else 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()  # the reader of a pipe sees it now


def _installed() -> bool:
    return importlib.util.find_spec("openai") is not None


@contextmanager
def _open_files(most: int) -> Iterator[None]:
    """Let the process have so many files and sockets open, as far as the system lets it."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        yield
        return
    soft, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < most:
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    with suppress(OSError, ValueError):  # some systems have a lower limit of their own
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# ---------------------------------------------------------------- the two halves


def _threads(options: Options, random: Random, *, sdk: bool) -> Part:
    """Make the calls in threads, with a client that counts against a pool."""
    from token_budget.cli import _meter_calls
    from token_budget.metering import Meter

    client = _meter_calls.openai_client if sdk else _meter_calls.standard_client
    jobs = _meter_calls.plan(options.calls, random)
    pool = BudgetPool(usd_cap=_cap(options, jobs), name="threads")
    meter = Meter(pool, _meter_calls.PRICES)
    with _books(meter, pool) as books, client(books.provider.url, meter) as call, books.watched():
        begin = threading.Event()

        def work(job: Job) -> None:
            begin.wait()
            books.make(call, job)

        threads = [threading.Thread(target=work, args=(job,), daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        begin.set()
        for thread in threads:
            thread.join()
    how = "a client in meter.wrap()" if sdk else "meter.call() around each request"
    return _part("threads", f"{len(jobs):,} threads, {how}", books, len(jobs))


def _tasks(options: Options, random: Random, *, sdk: bool) -> Part:
    """Make the calls in tasks, in a run: no client is told of a budget."""
    from token_budget.cli import _meter_calls
    from token_budget.metering import Meter, budget_run

    client = _meter_calls.openai_async_client if sdk else _meter_calls.standard_async_client
    jobs = _meter_calls.plan(options.calls, random)
    meter = Meter(prices=_meter_calls.PRICES)

    async def tasks() -> tuple[Books, str]:
        async with budget_run("tasks", usd_cap=_cap(options, jobs), meter=meter) as run:
            with _books(meter, run.pool) as books, books.watched():
                async with client(books.provider.url, meter) as call:
                    await asyncio.gather(*(books.amake(call, job) for job in jobs))
        books.report = run.report()
        return books, run.summary()

    books, summary = asyncio.run(tasks())
    how = "a plain client in budget_run()" if sdk else "meter.call() in budget_run()"
    return _part("tasks", f"{len(jobs):,} tasks, {how}", books, len(jobs), summary)


def _cap(options: Options, jobs: list[Job]) -> float:
    from token_budget.cli._meter_calls import cost

    return float(f"{_SHARE * cost(jobs) / 10**9:.2g}") if options.usd_cap is None else options.usd_cap


@contextmanager
def _books(meter: Any, pool: BudgetPool) -> Iterator[Books]:
    """Give the books of a half, with a provider that is closed when it is over: then its books change no more."""
    from token_budget.cli._meter_audit import Books
    from token_budget.cli._provider import Provider

    with Provider(latency=_LATENCY) as provider:
        yield Books(provider, meter, pool)


def _part(key: str, title: str, books: Books, calls: int, summary: str | None = None) -> Part:
    cap, at_once = books.pool.snapshot().usd_cap_nanos or 0, books.provider.most_at_once
    return Part(key, title, books.lines(), books.peak, cap, at_once, books.checks(calls), summary)


# ---------------------------------------------------------------- what is shown


def _header(options: Options, *, sdk: bool) -> str:
    from token_budget.cli._meter_calls import PRICES

    title = f"token_budget meter-demo: {options.calls:,} calls at once in threads, then in tasks, seed {options.seed}"
    rates = "; ".join(f"{model} {given} in, {made} out" for model, (given, made, _) in PRICES.items())
    client = f"openai {_version()}" if sdk else "of the standard library (with the openai SDK installed: the SDK)"
    rows = {
        "client": client,
        "prices": f"USD for a million tokens: {rates}",
        "faults": "429, then an answer; 500; cut streams; answers without usage; gzip; answers that hang",
    }
    return "\n".join(
        [filled(title, then="  "), *(filled(text, first=f"  {name:<8} ", then=" " * 11) for name, text in rows.items())]
    )


def _version() -> str:
    from importlib.metadata import version

    return version("openai")


def _shown(part: Part) -> str:
    """Return one half as text for people."""
    lines = ["", filled(part.title), row("", "calls", "tokens", "USD"), *map(line_text, part.lines.values())]
    lines.append(row("  most used and reserved", "", "", usd_text(part.peak)))
    lines.append(row("  cap", "", "", usd_text(part.cap)))
    lines.append(row("  most requests at once", f"{part.at_once:,}", "", "").rstrip())
    if part.summary is not None:
        lines.append(filled(part.summary, first="  ", then="    "))
    return "\n".join([*lines, *map(check_text, part.checks)])


def _as_json(options: Options, parts: list[Part], *, sdk: bool, elapsed: float) -> dict[str, Any]:
    ignored = {"command", "run", "parser"}  # the parser's own
    return {
        "agrees": all(check.ok for part in parts for check in part.checks),
        "client": f"openai {_version()}" if sdk else "standard",
        "elapsed_seconds": round(elapsed, 3),
        "options": {name: value for name, value in vars(options).items() if name not in ignored},
        "parts": {
            part.key: {
                "cap_usd_nanos": part.cap,
                "peak_usd_nanos": part.peak,
                "requests_at_once": part.at_once,
                "audit": {
                    key: {"calls": line.calls, "tokens": line.amount.tokens, "usd_nanos": line.amount.nanos}
                    for key, line in part.lines.items()
                },
                "checks": [check._asdict() for check in part.checks],
            }
            for part in parts
        },
    }
