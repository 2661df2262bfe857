"""Every kind of pool has the methods of the contract, with the same arguments and defaults."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from token_budget import BudgetPool, KeyedPools, Reservation
from token_budget.contract import HeldAmount, Keys, Pool
from token_budget.stores import RedisBudgetPool, SQLiteBudgetPool
from token_budget.stores._keyed import StoreKeyedPools
from token_budget.stores._reservation import StoreReservation

CLASSES: list[tuple[Any, Any]] = [
    (Pool, BudgetPool),
    (Pool, SQLiteBudgetPool),
    (Pool, RedisBudgetPool),
    (HeldAmount, Reservation),
    (HeldAmount, StoreReservation),
    (Keys, KeyedPools),
    (Keys, StoreKeyedPools),
]


def methods(protocol: Any) -> list[str]:
    found = {name for one in protocol.__mro__[:-2] for name in vars(one) if inspect.isfunction(vars(one)[name])}
    found |= {name for one in protocol.__mro__[:-2] for name in vars(one) if isinstance(vars(one)[name], staticmethod)}
    return sorted(name for name in found if name not in {"__init__", "__subclasshook__", "_no_init_or_replace_init"})


@pytest.mark.parametrize(("protocol", "made"), CLASSES, ids=[made.__name__ for _, made in CLASSES])
def test_a_class_has_the_methods_of_its_protocol_with_the_same_arguments(protocol: Any, made: Any) -> None:
    names = methods(protocol)
    assert len(names) >= 4
    for name in names:
        expected = inspect.signature(getattr(protocol, name)).parameters
        actual = inspect.signature(getattr(made, name)).parameters
        for argument, parameter in expected.items():
            assert argument in actual or parameter.kind is parameter.POSITIONAL_ONLY, f"{name}({argument})"
            mine = actual[argument]
            assert (mine.kind, mine.default) == (parameter.kind, parameter.default), f"{name}({argument})"
        further = [argument for argument in actual if argument not in expected]
        assert all(actual[argument].default is not inspect.Parameter.empty for argument in further), name


@pytest.mark.parametrize(("protocol", "made"), CLASSES, ids=[made.__name__ for _, made in CLASSES])
def test_a_class_has_the_properties_of_its_protocol(protocol: Any, made: Any) -> None:
    properties = [name for one in protocol.__mro__ for name, value in vars(one).items() if isinstance(value, property)]
    assert all(isinstance(inspect.getattr_static(made, name), property) for name in properties)


@pytest.mark.parametrize(("protocol", "made"), CLASSES, ids=[made.__name__ for _, made in CLASSES])
def test_each_public_method_says_what_it_does(protocol: Any, made: Any) -> None:
    assert all(inspect.getdoc(getattr(made, name)) for name in methods(protocol))
