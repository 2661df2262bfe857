"""Each lock is needed: without any one of them the interleavings fail. No mutation tool takes locks away."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

import pytest

import scenarios
from faults import edited, family_of, watched
from scheduler import ModelLock, Watch, explore
from token_budget import _family, _pool

TAKING = re.compile(r"for \w+ in (?:(\w+)\._?(?:locked|spending)|takes|starmap\(lock\.acquire, .*\)):\n")


def locked_functions() -> list[str]:
    """Return the name (``Class.method``) of every function that takes the lock, found by its loop."""
    return [
        f"{owner.name}.{function.name}"
        for module in (_pool, _family)
        for owner in ast.parse(inspect.getsource(module)).body
        if isinstance(owner, ast.ClassDef)
        for function in owner.body
        if isinstance(function, ast.FunctionDef)
        and TAKING.search(inspect.getsource(_member(owner.name, function.name)))
    ]


def without_lock(name: str) -> Any:
    source = inspect.getsource(_member(*name.split(".")))
    (taking,) = TAKING.finditer(source)
    (release,) = set(re.findall(r"[\w.]*lock\.release\(\)\n", source))
    loop = re.sub(r" in .*:", " in (True,):", taking[0])
    return edited(name, ((taking[0], loop), (release, "pass\n")))


def _member(owner: str, function: str) -> Any:
    member = getattr(getattr(_pool, owner, None) or getattr(_family, owner), function)
    return member.fget if isinstance(member, property) else member


@pytest.mark.usefixtures("model")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what goes wrong in a finaliser
@pytest.mark.parametrize("name", locked_functions())
def test_no_lock_can_be_taken_away(name: str) -> None:
    module = without_lock(name)
    family_of(module)._new_lock = ModelLock
    watch = Watch(watched(module))
    nested, waits = scenarios.nested_pairs(module), scenarios.waits(module)
    first = {"Family.record": nested, "Family.prod": waits, "Family._run": waits}.get(name, [])
    for scenario in [*first, *scenarios.pairs(module), *scenarios.children(module), *waits, *nested]:
        try:
            explore(scenario, watch, preemptions=1)
        except AssertionError as error:
            print(f"{name} without its lock fails: {error}")
            return
    pytest.fail(f"{name} works without its lock, under every schedule of every pair")


def test_every_operation_that_takes_the_lock_is_here() -> None:
    pool = {"record", "_add", "reserve", "snapshot", "reset"}
    assert set(locked_functions()) == {
        *(f"BudgetPool.{name}" for name in pool),
        *("Reservation.commit", "Reservation.release"),
        *("Family._run", "Family.record", "Family._quietly", "Family.prod"),
    }
