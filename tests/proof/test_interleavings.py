"""P1 to P7 and P10 under every schedule: each outcome is that of a serial order, and pools are consistent at each step.

Without `--full`, the tests run every pair of operations with at most one preemption, and a random sample of the rest.
With `--full`, they run every schedule with at most two preemptions. On one pool, a preemption may come at any step.
With scopes, listeners, keys and waiters, two preemptions come only at steps where other threads may notice them: long
operations mostly decide and note under the lock (`planting.DECIDING`), and a switch there is like a switch before it.
A single preemption is tried at those steps too.
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
# The longest scenarios with three threads have millions of schedules. `--full` stops after this many of each.
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
    """Watches only the steps that other threads may notice: see the module's docstring."""
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
def test_each_event_that_ends_a_wait(
    waiting: Scenario, watch: Watch, noticed: Watch, full: bool, explored: dict[str, int]
) -> None:
    every_schedule(waiting, (watch, noticed), explored, full=full, runs=25)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("queue", QUEUES, ids=names(QUEUES))
def test_two_threads_that_wait(
    queue: Scenario, watch: Watch, noticed: Watch, full: bool, explored: dict[str, int]
) -> None:
    every_schedule(queue, (watch, noticed), explored, full=full, runs=40)


def every_schedule(
    scenario: Scenario, watches: tuple[Watch, Watch], explored: dict[str, int], *, full: bool, runs: int
) -> None:
    """Explore with two preemptions where other threads may notice them and with one anywhere, or sample a few."""
    skip_drops(scenario)
    everything, noticed = watches
    count = sample(scenario, everything, runs=runs, length=400)
    if full:
        count += explore(scenario, everything, preemptions=1, limit=LONGEST)
        count += explore(scenario, noticed, preemptions=2, limit=LONGEST)
    explored[scenario.name] = count


def skip_drops(scenario: Scenario) -> None:
    if FREE_THREADED and "drop" in scenario.name:
        pytest.skip("without the GIL, an object that another thread made is finalised some time after its drop")


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
