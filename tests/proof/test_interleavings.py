"""P1 to P7 under every schedule: each outcome is that of some serial order, and the pool is consistent at every step.

Without `--full`: every pair of operations with at most one preemption, and a random sample of the rest. With it: pairs,
sequences and triples, every schedule with at most two preemptions; of scopes and waiting, whose operations are five
times as long, every schedule with at most one, and for the longest those that come first.
"""

from __future__ import annotations

import sysconfig

import pytest

import scenarios
from faults import watched
from scheduler import Scenario, Watch, explore, sample
from token_budget import _pool

FULL_MINIMUM = 150_000
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
PAIRS = [*scenarios.pairs(_pool), *scenarios.children(_pool)]
SEQUENCES, TRIPLES = scenarios.sequences(_pool), scenarios.triples(_pool)
NESTED, WAITS, QUEUES = scenarios.nested_pairs(_pool), scenarios.waits(_pool), scenarios.queues(_pool)


def names(items: list[Scenario]) -> list[str]:
    return [item.name for item in items]


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch(watched(_pool))


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("pair", PAIRS, ids=names(PAIRS))
def test_every_pair_of_operations(pair: Scenario, watch: Watch, full: bool, explored: dict[str, int]) -> None:
    explored[pair.name] = explore(pair, watch, preemptions=2 if full else 1)
    assert explored[pair.name] >= 2


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("sequence", SEQUENCES, ids=names(SEQUENCES))
def test_sequences_of_operations(sequence: Scenario, watch: Watch, full: bool, explored: dict[str, int]) -> None:
    skip_drops(sequence)
    explored[sequence.name] = explore(sequence, watch, preemptions=2, limit=None if full else 150)
    assert explored[sequence.name] >= 150


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("triple", TRIPLES, ids=names(TRIPLES))
def test_every_triple_of_operations(triple: Scenario, watch: Watch, full: bool, explored: dict[str, int]) -> None:
    if full:
        explored[triple.name] = explore(triple, watch, preemptions=2)
    else:
        explored[triple.name] = sample(triple, watch, runs=20)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("pair", NESTED, ids=names(NESTED))
def test_every_pair_of_operations_on_nested_scopes(
    pair: Scenario, watch: Watch, full: bool, explored: dict[str, int]
) -> None:
    skip_drops(pair)
    explored[pair.name] = explore(pair, watch, preemptions=1) if full else sample(pair, watch, runs=15)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("waiting", WAITS, ids=names(WAITS))
def test_whatever_ends_a_waiting(waiting: Scenario, watch: Watch, full: bool, explored: dict[str, int]) -> None:
    skip_drops(waiting)
    limit = 20_000 if full else 150
    explored[waiting.name] = explore(waiting, watch, preemptions=2 if full else 1, limit=limit)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("queue", QUEUES, ids=names(QUEUES))
def test_two_that_wait(queue: Scenario, watch: Watch, full: bool, explored: dict[str, int]) -> None:
    explored[queue.name] = sample(queue, watch, runs=200, length=300)
    if full:
        explored[queue.name] += explore(queue, watch, preemptions=1, limit=20_000)


def skip_drops(scenario: Scenario) -> None:
    if FREE_THREADED and "drop" in scenario.name:
        pytest.skip("without the GIL an object that another thread made is finalised some time after its drop")


def test_the_full_run_explores_as_many_schedules_as_promised(full: bool, explored: dict[str, int]) -> None:
    if full and len(explored) == sum(map(len, (PAIRS, SEQUENCES, TRIPLES, NESTED, WAITS, QUEUES))):
        assert sum(explored.values()) >= FULL_MINIMUM


def test_the_scenarios_cover_every_operation_with_every_other() -> None:
    count = len(scenarios.OPERATIONS)
    assert len(scenarios.pairs(_pool)) == count * (count + 1) // 2 + count
    assert {operation.__name__ for operation in scenarios.OPERATIONS} >= {
        *("record", "reserve", "commit", "release", "leave", "snapshot", "reset", "drop"),
    }
