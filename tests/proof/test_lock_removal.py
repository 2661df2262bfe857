"""Each lock is needed: without any one of them the interleavings fail. No mutation tool takes locks away."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pytest

import scenarios
from faults import edited
from scheduler import ModelLock, Watch, explore, functions_of
from token_budget import _pool


def locked_functions() -> list[str]:
    """Return the name (``Class.method``) of every function in `_pool.py` that takes the lock, found by its loop."""
    return [
        f"{owner.name}.{function.name}"
        for owner in ast.parse(inspect.getsource(_pool)).body
        if isinstance(owner, ast.ClassDef)
        for function in owner.body
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.For)
        and isinstance(node.iter, ast.Attribute)
        and node.iter.attr in {"_locked", "_spending"}
    ]


def without_lock(name: str) -> Any:
    owner = "pool" if name.startswith("Reservation.") else "self"
    (taking,) = [
        f"for _ in {owner}.{attribute}:\n"
        for attribute in ("_locked", "_spending")
        if f"for _ in {owner}.{attribute}:\n" in inspect.getsource(_member(name))
    ]
    edits = ((taking, "for _ in (None,):\n"), (f"{owner}._lock.release()\n", "pass\n"))
    return edited(name, edits)


def _member(name: str) -> Any:
    owner, _, function = name.partition(".")
    return getattr(getattr(_pool, owner), function)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("name", locked_functions())
def test_no_lock_can_be_taken_away(name: str) -> None:
    module = without_lock(name)
    module._new_lock = ModelLock
    watch = Watch(functions_of(module))
    for scenario in [*scenarios.pairs(module), *scenarios.children(module)]:
        try:
            explore(scenario, watch, preemptions=1)
        except AssertionError as error:
            print(f"{name} without its lock fails: {error}")
            return
    pytest.fail(f"{name} works without its lock, under every schedule of every pair")


def test_every_operation_that_takes_the_lock_is_here() -> None:
    names = {name.partition(".")[2] for name in locked_functions()}
    assert names == {"record", "_add", "reserve", "snapshot", "reset", "detach", "commit", "release"}
