"""What was dropped of a pool that the store has lost: it is logged, and holds up no other pool of the process."""

from __future__ import annotations

import logging

import pytest

from memory_store import MemoryPool
from pools_of_all_kinds import until
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreLost


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_lost_scope_holds_up_no_other_pool(caplog: pytest.LogCaptureFixture) -> None:
    pool = MemoryPool(token_cap=100)

    def lose(step: str, moment: str) -> None:
        if step == "cancel" and moment == "before":
            raise StoreLost("the store has lost pool 'a'")

    held = pool.reserve(tokens=1)
    pool.engine.hook = lose
    with caplog.at_level(logging.ERROR, "token_budget"):
        del held
        pool.record(tokens=2)
        until(lambda: "could not be settled" in caplog.text)
    pool.record(tokens=3)
    assert pool.snapshot().tokens_used == 5
    pool.engine.hook = lambda *_: None
    pool.close()


def test_the_amount_of_a_commit_that_can_never_be_recorded_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    pool = MemoryPool(token_cap=100)
    errors: list[BudgetUnavailable] = [BudgetUnavailable("no answer"), StoreLost("it is lost")]

    def fail(step: str, moment: str) -> None:
        if step == "commit" and moment == "before":
            raise errors.pop(0) if len(errors) > 1 else errors[0]

    held = pool.reserve(tokens=9)
    pool.engine.hook = fail
    with pytest.raises(BudgetUnavailable):
        held.commit(tokens=7, usd=0.25)
    with caplog.at_level(logging.ERROR, "token_budget"):
        del held
        until(lambda: "not recorded: tokens 7 | usd 0.25" in caplog.text)
    pool.record(tokens=3)
    pool.engine.hook = lambda *_: None
    pool.close()
