"""Each lock is needed: if any one is removed, the interleavings fail. No mutation tool removes locks."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest

import scenarios
import token_budget
from planting import ROOMS, SOURCE, planted, room, text_of, watched
from scheduler import ModelLock, Scenario, Watch, explore

TAKING = re.compile(r"for \w+ in (?:family\.(?:locked|spending)|takes):\n")


def locked_functions() -> list[str]:
    """Return the name (``_module.Class.method``) of every function that takes the lock, which it does by a loop."""
    found = []
    for name in ROOMS:
        tree = ast.parse((SOURCE / f"{name}.py").read_text(encoding="utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        owners: list[tuple[str, Any]] = [("", tree), *[(f"{node.name}.", node) for node in classes]]
        found += [
            f"{name}.{owner}{node.name}"
            for owner, parent in owners
            for node in parent.body
            if isinstance(node, ast.FunctionDef) and TAKING.search(text_of(f"{name}.{owner}{node.name}"))
        ]
    return found


def without_lock(name: str) -> Any:
    """Return a copy of the package in which one function takes no lock."""
    source = text_of(name)
    (taking,) = TAKING.finditer(source)
    (release,) = set(re.findall(r"[\w.]*lock\.release\(\)\n", source))
    return planted({name: ((taking[0], re.sub(r" in .*:", " in (True,):", taking[0])), (release, "pass\n"))})


def likely(name: str, module: Any) -> list[Scenario]:
    """Return scenarios that should fail without the lock."""
    if name.endswith("_five"):
        return scenarios.deep_pairs(module)
    if name.startswith("_keyed"):
        return scenarios.keys(module)
    if name.startswith(("_straight", "_family")):
        return [*scenarios.nested_pairs(module), *scenarios.waits(module)]
    return [*scenarios.pairs(module), *scenarios.children(module), *scenarios.waits(module)]


@pytest.mark.usefixtures("model")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # from an error in a finaliser
@pytest.mark.parametrize("name", locked_functions())
def test_no_lock_can_be_removed(name: str) -> None:
    module = without_lock(name)
    room(module, "_family")._new_lock = room(module, "_bells")._new_lock = ModelLock
    watch = Watch(watched(module))
    for scenario in likely(name, module):
        try:
            explore(scenario, watch, preemptions=1)
        except AssertionError as error:
            print(f"{name} without its lock fails: {error}")
            return
    pytest.fail(f"{name} works without its lock, under every schedule of every pair")


def test_the_list_of_operations_that_take_the_lock_is_complete() -> None:
    assert set(locked_functions()) == {
        *(f"_straight.{name}" for name in ("record", "reserve", "settle")),
        *(f"_straight._{name}_five" for name in ("record", "reserve", "settle")),
        *("_pool.BudgetPool.record", "_pool.BudgetPool.reserve", "_governed.Governed.snapshot"),
        *("_reservation.Reservation.commit", "_reservation.Reservation.release"),
        *("_keyed.KeyedPools._remembered", "_family.Family.run"),
    }


def test_the_package_under_test_is_the_one_that_is_copied() -> None:
    assert token_budget.__file__ == str(SOURCE / "__init__.py")
