"""The Redis engine against what was found by attacking it: keys that are lost, copies that come late, what grows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from redis_stores import Budget, Process
from token_budget.stores._errors import StoreLost
from token_budget.stores._store import GRANTED


@pytest.fixture
def budget() -> Iterator[Budget]:
    budget = Budget(tokens=100)
    yield budget
    budget.close()


def hold(process: Process, amount: int) -> Any:
    key = process.engine.new_key()
    assert process.engine.reserve((process.root,), key, amount, 0).kind == GRANTED
    return key


# ---------------------------------------------------------------- what is lost


@pytest.mark.parametrize("by", ["read", "expired", "reserve", "record", "renew", "register"])
def test_leases_that_were_deleted_are_a_lost_store_and_lock_no_money_in_silence(budget: Budget, by: str) -> None:
    dead, one = budget.process(), budget.process()
    hold(dead, 90)
    one.used()
    budget.raw.delete(budget.keys.leases)
    engine = one.engine
    with pytest.raises(StoreLost, match="who lives" if by != "register" else "has lost"):
        if by == "read":
            engine.read((one.root,))
        elif by == "expired":
            engine.expired()
        elif by == "reserve":
            engine.reserve((one.root,), engine.new_key(), 20, 0)
        elif by == "record":
            engine.record((one.root,), 20, 0)
        elif by == "renew":
            engine._process.renew_at = -1e9
            engine.record((one.root,), 1, 0)
        else:
            budget.process()


def test_leases_of_nobody_are_no_lost_store(budget: Budget) -> None:
    one = budget.process()
    one.engine.let_go()
    assert budget.process().used() == (0, 0)
