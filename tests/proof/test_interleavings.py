"""P1 to P7 and P10 under every schedule: each outcome is that of a serial order, and every step finds whole pools.

Without `--full`: every pair of operations with at most one preemption, and a random sample of the rest. With it: every
schedule with at most two preemptions. Of one pool that is a preemption at any step. Of scopes, listeners, keys and
waiting it is one at any step where others may notice it: operations of many steps only look and note under the lock
(`planting.DECIDING`), and a switch there is like one before it. With at most one preemption those steps are tried too.
"""

from __future__ import annotations

import sysconfig
from typing import Any

import pytest

import scenarios
import token_budget
from planting import watched
from scheduler import Scenario, Watch, explore, sample

FULL_MINIMUM = 150_000
# The longest of those with three threads have millions of schedules. `--full` runs so many of each and says so.
LONGEST = 100_000
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
PAIRS = [*scenarios.pairs(token_budget), *scenarios.children(token_budget)]
SEQUENCES, TRIPLES = scenarios.sequences(token_budget), scenarios.triples(token_budget)
NESTED = [*scenarios.nested_pairs(token_budget), *scenarios.deep_pairs(token_budget)]
MANAGED = [*scenarios.listened(token_budget), *scenarios.windows(token_budget), *scenarios.keys(token_budget)]
WAITS, QUEUES = scenarios.waits(token_budget), scenarios.queues(token_budget)


def names(items: list[Scenario]) -> list[str]:
    return [item.name for item in items]


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch(watched(token_budget))


@pytest.fixture(scope="module")
def noticed() -> Watch:
    """What others may notice: see the module."""
    return Watch(watched(token_budget, deciding=False))


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("pair", PAIRS, ids=names(PAIRS))
def test_every_pair_of_operations(
    pair: Scenario, watch: Watch, noticed: Watch, full: bool, explored: dict[str, int]
) -> None:
    explored[pair.name] = explore(pair, noticed, preemptions=2 if full else 1)
    assert explored[pair.name] >= 2
    if full:
        explored[pair.name] += explore(pair, watch, preemptions=1)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("sequence", SEQUENCES, ids=names(SEQUENCES))
def test_sequences_of_operations(sequence: Scenario, noticed: Watch, full: bool, explored: dict[str, int]) -> None:
    skip_drops(sequence)
    explored[sequence.name] = explore(sequence, noticed, preemptions=2, limit=None if full else 100)
    assert explored[sequence.name] >= 100


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("triple", TRIPLES, ids=names(TRIPLES))
def test_every_triple_of_operations(triple: Scenario, noticed: Watch, full: bool, explored: dict[str, int]) -> None:
    if full:
        explored[triple.name] = explore(triple, noticed, preemptions=2, limit=LONGEST)
    else:
        explored[triple.name] = sample(triple, noticed, runs=6)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("pair", NESTED, ids=names(NESTED))
def test_every_pair_of_operations_on_nested_scopes(
    pair: Scenario, watch: Watch, noticed: Watch, full: bool, explored: dict[str, int]
) -> None:
    every_schedule(pair, (watch, noticed), explored, full=full, runs=6)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("pair", MANAGED, ids=names(MANAGED))
def test_listeners_windows_and_keys(
    pair: Scenario, watch: Watch, noticed: Watch, full: bool, explored: dict[str, int]
) -> None:
    every_schedule(pair, (watch, noticed), explored, full=full, runs=12)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("waiting", WAITS, ids=names(WAITS))
def test_whatever_ends_a_waiting(
    waiting: Scenario, watch: Watch, noticed: Watch, full: bool, explored: dict[str, int]
) -> None:
    every_schedule(waiting, (watch, noticed), explored, full=full, runs=25)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("queue", QUEUES, ids=names(QUEUES))
def test_two_that_wait(queue: Scenario, watch: Watch, noticed: Watch, full: bool, explored: dict[str, int]) -> None:
    every_schedule(queue, (watch, noticed), explored, full=full, runs=40)


def every_schedule(
    scenario: Scenario, watches: tuple[Watch, Watch], explored: dict[str, int], *, full: bool, runs: int
) -> None:
    """Explore with two preemptions where others may notice them and with one anywhere, or sample a few."""
    skip_drops(scenario)
    everything, noticed = watches
    count = sample(scenario, everything, runs=runs, length=400)
    if full:
        count += explore(scenario, everything, preemptions=1, limit=LONGEST)
        count += explore(scenario, noticed, preemptions=2, limit=LONGEST)
    explored[scenario.name] = count


def skip_drops(scenario: Scenario) -> None:
    if FREE_THREADED and "drop" in scenario.name:
        pytest.skip("without the GIL an object that another thread made is finalised some time after its drop")


def test_the_full_run_explores_as_many_schedules_as_promised(full: bool, explored: dict[str, int]) -> None:
    every: list[Any] = [PAIRS, SEQUENCES, TRIPLES, NESTED, MANAGED, WAITS, QUEUES]
    if full and len(explored) == sum(map(len, every)):
        assert sum(explored.values()) >= FULL_MINIMUM


def test_the_scenarios_cover_every_operation_with_every_other() -> None:
    count = len(scenarios.OPERATIONS)
    assert len(scenarios.pairs(token_budget)) == count * (count + 1) // 2 + count
    assert {operation.__name__ for operation in scenarios.OPERATIONS} >= {
        *("record", "reserve", "commit", "release", "leave", "snapshot", "reset", "drop"),
    }
