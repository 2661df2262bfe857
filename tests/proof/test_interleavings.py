"""P1 to P7 under every schedule: each outcome is that of some serial order, and the pool is consistent at every step.

Without `--full`: every pair of operations with at most one preemption, and a random sample of the triples. With it:
pairs, sequences and triples, every schedule with at most two preemptions.
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
    if FREE_THREADED and "drop" in sequence.name:
        pytest.skip("without the GIL an object that another thread made is finalised some time after its drop")
    explored[sequence.name] = explore(sequence, watch, preemptions=2, limit=None if full else 300)
    assert explored[sequence.name] >= 300


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("triple", TRIPLES, ids=names(TRIPLES))
def test_every_triple_of_operations(triple: Scenario, watch: Watch, full: bool, explored: dict[str, int]) -> None:
    if full:
        explored[triple.name] = explore(triple, watch, preemptions=2)
    else:
        explored[triple.name] = sample(triple, watch, runs=30)


def test_the_full_run_explores_as_many_schedules_as_promised(full: bool, explored: dict[str, int]) -> None:
    if full and len(explored) == len(PAIRS) + len(SEQUENCES) + len(TRIPLES):
        assert sum(explored.values()) >= FULL_MINIMUM


def test_the_scenarios_cover_every_operation_with_every_other() -> None:
    count = len(scenarios.OPERATIONS)
    assert len(scenarios.pairs(_pool)) == count * (count + 1) // 2
    assert {operation.__name__ for operation in scenarios.OPERATIONS} >= {
        *("record", "reserve", "commit", "release", "leave", "snapshot", "reset", "drop"),
    }
