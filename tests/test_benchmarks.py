"""Each benchmark runs at its tiny size and prints every row it should, with and without the reference installed.

No test checks a time, since that depends on what else the machine does. The memory of a reservation is checked.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = "token-budget-py 0.1.0"
TWO_AXES = "two adds, two compares"
ONE_COUNTER = "one counter"

# A stand-in that is loaded the way the reference is, since tests install nothing.
STAND_IN = """
from benchmarks.references import Refused as BudgetExceeded
from benchmarks.references import TwoAxes as BudgetPool
"""

# Appended to the core of another checkout. Each copy that has recorded reports at exit which modules it imported then.
TELL_TALE = """
import atexit
recorded = set()
record = BudgetPool.record
def telling(self, **amounts):
    from token_budget import _money
    recorded.add(f"recorded with {_money.__file__}")
    record(self, **amounts)
BudgetPool.record = telling
atexit.register(lambda: print(*recorded))
"""

OPERATIONS = [
    "record",
    "record, amounts that vary",
    "with reserve + commit",
    "reserve + release",
    "refused record",
    "snapshot",
]
SPENDING = ["record", "with reserve + commit"]
GROWTH = [*SPENDING, "reserve + release", "snapshot"]
BY_KEY = [
    "look up a pool that nobody holds, record",
    "look up a pool that is held, record",
    "record, pool held",
]
GIVING_UP = ["join the line, give up", "give up, the newest", "give up, the oldest"]
WAITING = [*GIVING_UP, "hand-over by a release", "a release that lets all in, for each", "tasks in turn"]
# The limit of each, as a ratio to the same operation of a lone pool.
SCOPES = {
    ("record", "3 scopes"): "1.8",
    ("record", "3 scopes and a day"): "2.2",
    ("record", "a day"): "2.0",
    ("record", "a threshold"): "1.3",
    ("record", "users[key], not held"): "9",
    ("record", "users[key] with a day, not held"): "9",
    ("record", "5 scopes"): "8.5",
    ("record", "a subscriber"): "10.5",
    ("with reserve + commit", "3 scopes"): "1.8",
    ("with reserve + commit", "3 scopes and a day"): "2.0",
    ("with reserve + commit", "a day"): "1.9",
    ("with reserve + commit", "a threshold"): "1.3",
    ("with reserve + commit", "a run below a join"): "5.5",
    ("with reserve + commit", "async with areserve"): "2.2",
}
LIBRARIES = ["httpx2", "httpx"]
UNUSED = "raise ImportError"  # a library that looks as if it were not installed
THREADS = ["2 threads", "8 threads", "32 threads"]

Row = dict[str, str]


@pytest.fixture(params=["with the reference", "without the reference"])
def reference(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the folder in which the benchmarks look for the reference."""
    if request.param == "with the reference":
        package = tmp_path / "token_budget"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "pool.py").write_text(STAND_IN, encoding="utf-8")
    return tmp_path


def test_single_has_every_operation_against_every_reference(reference: Path) -> None:
    (rows,) = tables("single", reference)
    expected = {(operation, each) for operation in OPERATIONS for each in references(reference)}
    assert keys(rows, "operation", "ours / theirs") == expected - {("refused record", ONE_COUNTER)}
    assert_ratios(rows)
    goals = {row["operation"]: row["must / aim"] for row in rows if row["ours / theirs"] == REFERENCE}
    assert all("/" in goal for goal in goals.values())
    assert bool(goals) == is_installed(reference)


def test_threads_has_every_number_of_threads_twice(reference: Path) -> None:
    throughput, latency = tables("threads", reference)
    for rows in (throughput, latency):
        assert keys(rows, "", "ours / theirs") == {(each, name) for each in THREADS for name in references(reference)}
        assert_ratios(rows)


def test_scopes_compares_each_case_with_a_lone_pool_and_states_the_limits(tmp_path: Path) -> None:
    cases, beside = tables("scopes", tmp_path)
    must = {(row["operation"], row["compared"].removesuffix(" / a lone pool")): row["must"] for row in cases}
    assert must == SCOPES
    compared = "one waits for ann's / nobody waits"
    assert keys(beside, "operation", "compared", "must") == {
        (f"{each} on bob's pool", compared, "flat") for each in SPENDING
    }
    for rows in (cases, beside):
        assert_ratios(rows)


def test_against_compares_a_lone_pool_with_another_checkout_and_that_with_itself(tmp_path: Path) -> None:
    there = tmp_path.resolve() / "src" / "token_budget"
    shutil.copytree(ROOT / "src" / "token_budget", there)
    with (there / "_pool.py").open("a", encoding="utf-8") as pool:
        pool.write(TELL_TALE)
    output = printed("--against", tmp_path, str(tmp_path))
    (rows,) = tables_in(output)
    assert (
        output.count(f"recorded with {there / '_money.py'}\n") == 2
    )  # both copies come from the other checkout, not from this one
    must = {"there again / there": "", "here / there": "1.03"}
    assert keys(rows, "operation", "compared", "must") == {
        (each, *pair) for each in OPERATIONS for pair in must.items()
    }
    assert_ratios(rows)


def test_against_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks", "--against", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "it has no src/token_budget" in done.stderr


def test_growth_compares_each_kind_with_the_smallest(tmp_path: Path) -> None:
    deep, crowded, keyed = tables("growth", tmp_path)
    pools = ["depth 1, with a child", "depth 2", "depth 3", "depth 5"]
    assert keys(deep, "operation", "compared") == {(each, f"{pool} / depth 1") for each in SPENDING for pool in pools}
    assert {(row["operation"], row["compared"], row["must"]) for row in deep if row["must"]} == {
        ("record", "depth 3 / depth 1", "1.8"),
        ("record", "depth 5 / depth 1", "8.5"),
        ("with reserve + commit", "depth 3 / depth 1", "1.8"),
    }
    expected = {(operation, f"{count} open / 1 open") for operation in GROWTH for count in (10, 100)}
    assert keys(crowded, "operation", "compared") == expected
    expected = {(operation, f"{count} keys / 1 key") for operation in BY_KEY for count in (10, 100)}
    assert keys(keyed, "operation", "compared") == expected
    for rows in (deep, crowded, keyed):
        assert_ratios(rows)


def test_waiting_compares_long_lines_with_a_line_of_one(tmp_path: Path) -> None:
    line, beside = tables("waiting", tmp_path)
    expected = {(operation, f"{count} waiting / 1 waiting") for operation in WAITING for count in (5, 20)}
    assert keys(line, "operation", "compared") == expected
    must = {(row["operation"], row["compared"], row["must"]) for row in line if row["must"]}
    assert must == {(operation, "20 waiting / 1 waiting", "2") for operation in GIVING_UP}
    expected = {(operation, f"{count} waiting / 1 waiting") for operation in SPENDING for count in (0, 5, 20)}
    assert keys(beside, "operation", "compared") == expected
    for rows in (line, beside):
        assert_ratios(rows)


def test_the_memory_of_a_reservation_is_bounded_and_is_freed_with_it(reference: Path) -> None:
    (rows,) = tables("memory", reference)
    names = {"token_budget", *references(reference)} - {ONE_COUNTER}
    whats = ["an open reservation", "a finished call"]
    assert keys(rows, "what is kept", "by") == {(what, name) for what in whats for name in names} | {
        ("a key", "token_budget")
    }
    ratios = [row["ours / theirs"] for row in rows if row["by"] != "token_budget" and row["what is kept"] == whats[0]]
    assert all(is_positive(ratio) for ratio in ratios)
    kept = {row["what is kept"]: float(row["bytes each"]) for row in rows if row["by"] == "token_budget"}
    assert 0 < kept["an open reservation"] <= 200
    assert kept["a finished call"] < 1


def test_import_takes_nothing_from_outside_the_standard_library(reference: Path) -> None:
    times, found = tables("import_time", reference)
    against = {"json (standard library)"} | ({REFERENCE} if is_installed(reference) else set())
    assert keys(times, "", "ours / theirs") == {("import token_budget", each) for each in against}
    assert_ratios(times)
    results = {row[""]: row["found"] for row in found}
    assert is_positive(results["median ms above a bare interpreter"])
    assert results["modules outside the standard library"] == "none"


@pytest.fixture(params=["what is installed", "nothing installed"])
def libraries(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return which of openai, httpx2 and httpx the benchmarks find."""
    if request.param == "what is installed":
        return [name for name in ("openai", *LIBRARIES) if find_spec(name) is not None]
    for name in ("openai", *LIBRARIES):
        (tmp_path / f"{name}.py").write_text(UNUSED, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return []


def test_metering_compares_calls_chunks_and_requests_with_and_without_us(tmp_path: Path, libraries: list[str]) -> None:
    output = printed("metering", tmp_path)
    *compared, imports, found = tables_in(output)
    bare = [name for name in LIBRARIES if name in libraries]
    sdk = [name for name in libraries if name == "openai"]
    ours = "metered / without us"
    calls = {(f"chat.completions.create of {name}", ours, "120 / 80") for name in sdk}
    calls |= {(f"post of {name}", ours, "75 / 60") for name in bare}
    calls |= {(f"post of {name}", "metered / a hook that does nothing", "") for name in bare}
    calls |= {(f"post of {name}", "a hook that does nothing / without us", "") for name in bare}
    chunks = {(f"a chunk, by {name}", ours, "2") for name in sdk}
    chunks |= {
        (f"a chunk, by {name}, the usage asked for by {asker}", ours, "2")
        for name in bare
        for asker in ("us", "the caller")
    }
    patched = "through the class patch / without us"
    passing = {(f"get of {name}", patched, "") for name in bare}
    passing |= {(f"send that does nothing, of {name}", patched, "1") for name in bare}
    expected = [each for each in (calls, chunks, passing) if each]
    assert [without_versions(rows) for rows in compared] == expected
    for rows in compared:
        assert_ratios(rows)
        assert all(math.isfinite(float(row["us more"])) for row in rows)
    for name in ("openai", *LIBRARIES):
        assert (f"Without {name}, which is not installed here" in output) == (name not in libraries)

    against = {"import token_budget", *(f"import {name}" for name in sdk)}
    assert keys(imports, "compared") == {(f"import token_budget.metering / {each}",) for each in against}
    assert_ratios(imports)
    results = {row[""]: row["found"] for row in found}
    assert is_positive(results["median ms above the core"])
    assert results["modules outside the standard library"] == "none"


GATEWAY_LIBRARIES = ["aiohttp", "click", "genai_prices", "psutil", "truststore"]


def test_gateway_measures_the_command_beside_a_plain_proxy_and_beside_no_proxy(tmp_path: Path) -> None:
    for name in GATEWAY_LIBRARIES:
        pytest.importorskip(name)
    output = printed("gateway", tmp_path)
    *rates_by_openai, calls, chunks, memory, start = tables_in(output)
    clients = ["AsyncOpenAI", "OpenAI in 32 threads", "AsyncOpenAI, the provider takes 50 ms"]
    if find_spec("openai") is None:
        assert "Without openai, which is not installed here" in output
        clients = []
    rates = [row for rows in rates_by_openai for row in rows]
    assert keys(rates, "client", "compared", "must") == {
        (client, f"{name} / direct", "0.70" if (client, name) == (clients[0], "gateway") else "")
        for client in clients
        for name in ("gateway", "plain proxy")
    }
    assert all(is_positive(row[each]) for row in rates for each in ("share of the rate", "by the CPU's time"))
    measured = [keys(rows, "measure", "must / aim") for rows in (calls, chunks, memory)]
    assert measured == [
        {
            ("ms more, p50", "1.5 ms, 3 times / 2 times"),
            ("ms more, p99", "5 ms"),
            ("ms of the CPU", ""),
        },
        {("ms later, p50", "1 ms"), ("ms later, p99", "")},
        {("MB of memory (RSS)", "80 MB")},
    ]
    for row in (*calls, *chunks, *memory):  # what one takes more than another can be less than nothing, in a few calls
        assert all(math.isfinite(float(row[each])) for each in ("gateway", "plain proxy", "gateway / plain proxy"))
    assert all(is_positive(row[each]) for row in memory for each in ("gateway", "plain proxy"))
    against = "what `import aiohttp.web` takes"
    assert keys(start, "measure", "must") == {
        ("s more than the program alone", "0.6"),
        (f"the same, / {against}", ""),
        ("s of the CPU more than the program alone", ""),
        (f"the same of the CPU, / {against}", ""),
    }
    assert all(is_positive(row["found"]) for row in start)


@pytest.mark.parametrize("missing", GATEWAY_LIBRARIES)
def test_gateway_says_which_library_is_missing_and_measures_nothing(
    tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in GATEWAY_LIBRARIES:
        pytest.importorskip(name)
    hidden = f"import sys\nsys.modules[{missing!r}] = None\n"
    (tmp_path / "sitecustomize.py").write_text(hidden, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    output = printed("gateway", tmp_path)
    assert f"Without the gateway, since {missing} is not installed here" in output
    assert "token-budget-pool[cli]" in output
    assert tables_in(output) == []


def test_without_the_reference_it_says_how_to_install_it(tmp_path: Path) -> None:
    assert f"pip install --no-deps --target benchmarks/.reference {REFERENCE.replace(' ', '==')}" in printed(
        "memory", tmp_path
    )


def test_an_unknown_name_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks", "nothing"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no benchmark nothing" in done.stderr


def is_installed(reference: Path) -> bool:
    return (reference / "token_budget").exists()


def references(reference: Path) -> list[str]:
    """Return the titles of what our pool is compared with."""
    return [*([REFERENCE] if is_installed(reference) else []), TWO_AXES, ONE_COUNTER]


def printed(name: str, reference: Path, *more: str) -> str:
    """Run a benchmark as a user does, and return what it prints."""
    command = [sys.executable, "benchmarks", name, *more, "--size", "tiny", "--reference", str(reference)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def tables(name: str, reference: Path) -> list[list[Row]]:
    """Return the tables that a benchmark prints."""
    return tables_in(printed(name, reference))


def tables_in(output: str) -> list[list[Row]]:
    """Return each table of the output, each row by its column's title."""
    found = []
    for block in output.split("\n## ")[1:]:
        lines = [line for line in block.splitlines() if line.startswith("|")]
        header, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
        found.append([dict(zip(header, row, strict=True)) for row in rows])
    return found


def keys(rows: list[Row], *columns: str) -> set[tuple[str, ...]]:
    """Return the entries of those columns, which name a row."""
    found = [tuple(row[column] for column in columns) for row in rows]
    assert len(found) == len(set(found))
    return set(found)


def without_versions(rows: list[Row]) -> set[tuple[str, ...]]:
    """Return what names the rows of metering, and their goals, without the versions of the libraries."""
    found = keys(rows, "operation", "compared", "must / aim, us")
    return {(re.sub(r" \d[\w.]*", "", operation), *more) for operation, *more in found}


def assert_ratios(rows: list[Row]) -> None:
    """Check that every ratio of every row is a positive number, and that each spread ascends."""
    assert rows
    for row in rows:
        assert is_positive(row["median"])
        assert is_positive(row["best"])
        for spread in (row["quartiles"], row["range"]):
            low, high = spread.split("..")
            assert is_positive(low)
            assert is_positive(high)
            assert float(low) <= float(high)


def is_positive(text: str) -> bool:
    return 0 < float(text) < math.inf
