"""The scheduler finds every planted fault with at most one preemption, in under a second."""

from __future__ import annotations

import sys
import sysconfig
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import faults
import scenarios
from planting import room, watched
from scheduler import ModelLock, Scenario, Watch, explore, functions_of

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
REFERENCE = Path(__file__).parents[2] / "benchmarks" / ".reference" / "token_budget" / "pool.py"


def scenario_of(fault: faults.Fault, module: Any) -> Scenario:
    world = getattr(scenarios, fault.world)
    operations = [[getattr(scenarios, name)] for name in fault.found_by]
    made = scenarios.scenario(module, *operations, world=world, serial="wait" not in fault.found_by[0])
    if issubclass(world, scenarios.Keys):
        made.final = scenarios.one_pool_a_key
    return made


@pytest.mark.usefixtures("model")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # from an error in a finaliser
@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found_at_once(fault: faults.Fault) -> None:
    if FREE_THREADED and any("drop" in name for name in fault.found_by):
        pytest.skip("without the GIL, an object that another thread made is finalised some time after its drop")
    module = faults.planted(fault)
    room(module, "_family")._new_lock = room(module, "_bells")._new_lock = ModelLock
    started = time.perf_counter()
    with pytest.raises(AssertionError, match="schedule|stays|no serial|two budgets"):
        explore(scenario_of(fault, module), Watch(watched(module)), preemptions=1)
    print(f"found in {time.perf_counter() - started:.3f} s: {fault.name}")


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.name)
def test_the_same_scenario_passes_without_the_fault(fault: faults.Fault, model: Any, full: bool) -> None:
    if FREE_THREADED and any("drop" in name for name in fault.found_by):
        pytest.skip("without the GIL, an object that another thread made is finalised some time after its drop")
    assert explore(scenario_of(fault, model), Watch(watched(model)), preemptions=1, limit=None if full else 10) >= 2


def test_there_are_as_many_faults_as_promised() -> None:
    assert len(faults.FAULTS) >= 30


# ---------------------------------------------------------------- token-budget-py 0.1.0, whose races are known


@pytest.fixture
def reference() -> Any:
    if not REFERENCE.exists():
        pytest.skip("token-budget-py is not installed; see benchmarks/README.md")
    module = type(sys)("reference")
    sys.modules["reference"] = module
    source = REFERENCE.read_text(encoding="utf-8")
    exec(compile(source, "reference.py", "exec"), vars(module))
    module.threading = SimpleNamespace(Lock=ModelLock)  # type: ignore[attr-defined]
    return module


def reference_scenario(module: Any, *operations: Any) -> Scenario:
    def setup() -> Any:
        pool = module.BudgetPool(token_cap=100)
        return SimpleNamespace(pool=pool, held=pool.try_reserve(tokens=20))

    def final(world: Any) -> Any:
        assert world.pool._tokens_reserved >= 0, "a counter is negative"
        return (world.pool._tokens, world.pool._tokens_reserved)

    return Scenario("reference", setup, [[operation] for operation in operations], final)


def commit(world: Any) -> Any:
    return scenarios.answered(lambda: world.held.commit())


def release(world: Any) -> Any:
    return scenarios.answered(lambda: world.held.release())


def test_it_finds_that_token_budget_py_counts_a_racing_commit_twice(reference: Any) -> None:
    with pytest.raises(AssertionError, match="negative|no serial outcome"):
        explore(reference_scenario(reference, commit, commit), Watch(functions_of(reference)), preemptions=1)


def test_it_finds_that_token_budget_py_goes_negative_when_reset_and_release_race(reference: Any) -> None:
    def reset(world: Any) -> Any:
        # A release that begins after the reset goes negative in any order. A release under way must not.
        return world.pool.reset() if not world.held.completed else None

    with pytest.raises(AssertionError, match="negative"):
        explore(reference_scenario(reference, release, reset), Watch(functions_of(reference)), preemptions=1)
