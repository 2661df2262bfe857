"""What `token-budget run` costs: calls through its gateway, chunks of a stream, its start, its memory.

The gateway is the command itself, in a process of its own, and so are the provider and a plain proxy: aiohttp with the
gateway's own settings, which meters nothing. The provider answers at once, so that no share is flattered by the time
that a model takes. Contenders alternate; a figure is the median over the repeats. On a machine that is not quiet
believe ratios, and the CPU's time.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks._gateway_clients import Connection, async_rate, threads_rate
from benchmarks._measure import Options, Table, number, percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

SERVERS = str(Path(__file__).with_name("_gateway_servers.py"))
SOURCE = str(Path(__file__).resolve().parent.parent / "src")
AT_ONCE = 32
LIBRARIES = ("aiohttp", "click", "genai_prices", "psutil", "truststore")
INSTALL = "python -m pip install 'token-budget-pool[cli]' openai"
DIRECT, PROXY, GATEWAY = "direct", "plain proxy", "gateway"
RUN = ("-m", "token_budget", "run", "--progress", "off", "--usd", "1000000")
CHILD = ("-c", "pass")
MEASURED = ("measure", GATEWAY, PROXY, "gateway / plain proxy", "quartiles of that", "must / aim")
FOUND = ("measure", "found", "quartiles", "must")


class Place(NamedTuple):
    """Where a contender is reached, and which process it is."""

    base: str
    pid: int


def run(options: Options) -> Iterator[Table]:
    """Measure the gateway."""
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        print(f"Without the gateway, since {' and '.join(missing)} {are} not installed here: {INSTALL}\n")
        return
    with tempfile.TemporaryDirectory(prefix="gateway-") as folder, ExitStack() as stack:
        environ = _environment(folder, tiny=options.tiny)
        provider = stack.enter_context(_process((SERVERS, "provider"), environ))
        proxy = stack.enter_context(_process((SERVERS, "proxy", provider.base), environ))
        told = {**environ, "OPENAI_BASE_URL": provider.base}
        gateway = stack.enter_context(
            _process((*RUN, "--require-metered", "--", sys.executable, SERVERS, "child"), told)
        )
        places = {DIRECT: provider, PROXY: proxy, GATEWAY: gateway}
        if find_spec("openai") is None:
            print(f"Without openai, which is not installed here: {INSTALL}\n")
        else:
            yield _rates(options, places)
        yield _one_call(options, places)
        yield _chunks(options, places)
        yield _memory(options, places)
        yield _start(options, environ)


def _environment(folder: str, *, tiny: bool) -> dict[str, str]:
    """Return the environment of the processes: modules are compiled once, also where this process keeps none."""
    path = [SOURCE, *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "XDG_RUNTIME_DIR": folder}
    if not tiny:
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        environ["PYTHONPYCACHEPREFIX"] = folder
    return environ


@contextmanager
def _process(command: Sequence[str], environ: Mapping[str, str]) -> Iterator[Place]:
    """Run a process that says where it is reached, and let it end."""
    started = subprocess.Popen(
        [sys.executable, *command], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert started.stdout is not None
        base = started.stdout.readline().strip()
        if not base:
            raise RuntimeError(f"{command} does not start")
        yield Place(base, started.pid)
        started.communicate(timeout=60)
        if started.returncode:
            raise RuntimeError(f"{command} ended with {started.returncode}")
    finally:
        if started.poll() is None:
            started.kill()
            started.communicate()


# ---------------------------------------------------------------------- calls


def _rates(options: Options, places: Mapping[str, Place]) -> Table:
    """Measure the share of the direct rate that a client keeps.

    The share by the CPU's time is of that of all processes that take part, the client's own too: what the rate would
    be if they had one core together, and it for themselves.
    """
    openai: Any = importlib.import_module("openai")
    at_once = 4 if options.tiny else AT_ONCE
    calls = at_once if options.tiny else 10 * at_once
    kinds: dict[str, tuple[Callable[..., float], int, str]] = {
        "AsyncOpenAI": (async_rate, 0, "0.70"),
        "OpenAI in 32 threads": (threads_rate, 0, ""),
        "AsyncOpenAI, the provider takes 50 ms": (async_rate, 50, ""),
    }
    rows = []
    for kind, (rate, delay, must) in kinds.items():
        found: dict[str, list[float]] = {name: [] for name in places}
        spent: dict[str, list[float]] = {name: [] for name in places}
        order = list(places)
        for _ in range(options.repeats):
            for name in order:
                taking_part = {places[DIRECT].pid, places[name].pid}
                before = time.process_time() + sum(map(_cpu, taking_part))
                found[name].append(rate(openai, places[name].base, calls, at_once, delay))
                spent[name].append(time.process_time() + sum(map(_cpu, taking_part)) - before)
            order.append(order.pop(0))
        direct = statistics.median(found[DIRECT])
        for name in (GATEWAY, PROXY):
            shares = [ours / theirs for ours, theirs in zip(found[name], found[DIRECT], strict=True)]
            by_cpu = [theirs / ours for ours, theirs in zip(spent[name], spent[DIRECT], strict=True)]
            goal = must if name == GATEWAY else ""
            rows.append([kind, f"{name} / direct", *_cells(shares), *_cells(by_cpu), goal, f"{direct:,.0f}"])
    share, by_cpu_too = "share of the rate", "by the CPU's time"
    header = ("client", "compared", share, "quartiles", by_cpu_too, "quartiles of it", "must", "direct, calls a second")
    return Table(f"Gateway: {AT_ONCE} calls at once, 4 KB, by openai; larger is better", header, rows)


def _one_call(options: Options, places: Mapping[str, Place]) -> Table:
    """Measure what a call takes more than a direct one, and the CPU's time of whoever passes it on."""
    calls = 8 if options.tiny else 50
    more: dict[str, dict[int, list[float]]] = {name: {50: [], 99: []} for name in (GATEWAY, PROXY)}
    cpu: dict[str, list[float]] = {name: [] for name in (GATEWAY, PROXY)}
    with ExitStack() as stack:
        connections = {name: stack.enter_context(Connection(place.base)) for name, place in places.items()}
        for connection in connections.values():
            for _ in range(calls):
                connection.call()
        for _ in range(options.repeats):
            took: dict[str, list[int]] = {name: [] for name in places}
            spent = dict.fromkeys(places, 0.0)
            for _ in range(4):
                for name, connection in connections.items():
                    before = _cpu(places[name].pid)
                    took[name] += [connection.call() for _ in range(calls)]
                    spent[name] += _cpu(places[name].pid) - before
            for name, found in more.items():
                for percent, values in found.items():
                    values.append((percentile(took[name], percent) - percentile(took[DIRECT], percent)) / 1e6)
                cpu[name].append(spent[name] * 1e3 / len(took[name]))
    rows = [
        ["ms more, p50", *_against(more[GATEWAY][50], more[PROXY][50]), "1.5 ms, 3 times / 2 times"],
        ["ms more, p99", *_against(more[GATEWAY][99], more[PROXY][99]), "5 ms"],
        ["ms of the CPU", *_against(cpu[GATEWAY], cpu[PROXY]), ""],
    ]
    return Table("Gateway: a call of 4 KB on one keep-alive connection, smaller is better", MEASURED, rows)


def _chunks(options: Options, places: Mapping[str, Place]) -> Table:
    """Measure how much older a chunk of a stream is when it comes."""
    streams = 1 if options.tiny else 3
    gap = 1 if options.tiny else None
    more: dict[str, dict[int, list[float]]] = {name: {50: [], 99: []} for name in (GATEWAY, PROXY)}
    for _ in range(options.repeats):
        ages: dict[str, list[int]] = {name: [] for name in places}
        for _ in range(streams):
            for name, place in places.items():
                with Connection(place.base, stream=True, gap=gap) as connection:
                    connection.ask()
                    ages[name] += connection.late()
        for name, found in more.items():
            for percent, values in found.items():
                values.append((percentile(ages[name], percent) - percentile(ages[DIRECT], percent)) / 1e6)
    rows = [
        ["ms later, p50", *_against(more[GATEWAY][50], more[PROXY][50]), "1 ms"],
        ["ms later, p99", *_against(more[GATEWAY][99], more[PROXY][99]), ""],
    ]
    return Table("Gateway: a chunk of a stream of 100, 10 ms apart, smaller is better", MEASURED, rows)


# ---------------------------------------------------------------------- memory and start


def _memory(options: Options, places: Mapping[str, Place]) -> Table:
    """Measure what the processes keep while 32 streams are open."""
    gap = 1 if options.tiny else None
    kept: dict[str, list[float]] = {GATEWAY: [], PROXY: []}
    for _ in range(1 if options.tiny else 3):
        for name, found in kept.items():
            with ExitStack() as stack:
                base = places[name].base
                open_ones = [stack.enter_context(Connection(base, stream=True, gap=gap)) for _ in range(AT_ONCE)]
                for one in open_ones:
                    one.ask()
                open_ones[0].late()  # the first has come to its end, the others are near it
                found.append(_process_of(places[name].pid).memory_info().rss / 1e6)
                for one in open_ones[1:]:
                    one.late()
    rows = [["MB of memory (RSS)", *_against(kept[GATEWAY], kept[PROXY]), "80 MB"]]
    return Table(f"Gateway: {AT_ONCE} streams are open, after all calls above; smaller is better", MEASURED, rows)


def _start(options: Options, environ: Mapping[str, str]) -> Table:
    """Measure how much longer a program takes with `run` in front of it."""
    child = [sys.executable, *CHILD]
    commands = {
        "alone": child,
        "run": [sys.executable, *RUN, "--", *child],
        "aiohttp": [sys.executable, "-c", "import aiohttp.web"],
    }
    took: dict[str, list[float]] = {name: [] for name in commands}
    spent: dict[str, list[float]] = {name: [] for name in commands}
    warm_up = 0 if options.tiny else 1  # compiles the modules
    for repeat in range(options.repeats + warm_up):
        for name, command in commands.items():
            seconds, cpu = _timed(command, environ)
            if repeat >= warm_up:
                took[name].append(seconds)
                spent[name].append(cpu)
    rows = []
    for what, goal, costs in (("", "0.6", took), (" of the CPU", "", spent)):
        ours = [a - b for a, b in zip(costs["run"], costs["alone"], strict=True)]
        theirs = [a - b for a, b in zip(costs["aiohttp"], costs["alone"], strict=True)]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True) if b]
        rows.append([f"s{what} more than the program alone", *_cells(ours), goal])
        rows.append([f"the same{what}, / what `import aiohttp.web` takes", *_cells(ratios), ""])
    return Table("Gateway: start and end of `token-budget run -- python -c pass`, smaller is better", FOUND, rows)


def _timed(command: Sequence[str], environ: Mapping[str, str]) -> tuple[float, float]:
    """Run a command; return its seconds, and those of the CPU for it and its children."""
    before, begun = os.times(), time.perf_counter()
    done = subprocess.run(
        command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    seconds, after = time.perf_counter() - begun, os.times()
    if done.returncode:
        raise RuntimeError(f"{json.dumps(list(command))} ended with {done.returncode}: {done.stderr!r}")
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, spent


def _process_of(pid: int) -> Any:
    return importlib.import_module("psutil").Process(pid)


def _cpu(pid: int) -> float:
    times = _process_of(pid).cpu_times()
    return float(times.user + times.system)


# ---------------------------------------------------------------------- cells


def _cells(values: Sequence[float]) -> list[str]:
    first, median, third = statistics.quantiles(values if len(values) > 1 else [*values] * 2, n=4, method="inclusive")
    return [number(median), f"{number(first)}..{number(third)}"]


def _against(ours: Sequence[float], theirs: Sequence[float]) -> list[str]:
    """Return the cells of both, and of the ratio in each repeat."""
    both = [number(statistics.median(values)) for values in (ours, theirs)]
    return [*both, *_cells([a / b for a, b in zip(ours, theirs, strict=True) if b])]
