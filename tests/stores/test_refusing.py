"""From rows to errors, apart from any engine: the rows are made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from token_budget import BudgetOverrun, BudgetTimeout, PoolClosed, Window
from token_budget.stores._refusing import exhausted, fits, hopeless, overrun, refusal, snapshot_of
from token_budget.stores._store import Numbers, Scope

NOW = 1000.0
FREE = Numbers(100, 100, 0, 0, 0, 0, 0, None, None, 0, 0, closed=False)


def scopes(*names: str, clock: Any = lambda: NOW) -> list[Scope]:
    """Return scopes of these names, the root last, each with a window."""
    made = [Scope(name, name) for name in names]
    for scope in made:
        scope.window = Window.parse("every 1h", clock=clock)
    return made


def row(tokens: int = 0, held: int = 0, **others: Any) -> Numbers:
    return FREE._replace(tokens_claimed=tokens, tokens_held=held, **others)


def test_a_request_fits_beside_what_is_there_and_an_axis_of_which_nothing_is_asked_refuses_nothing() -> None:
    assert fits(FREE, 100, 100, 0, 0)
    assert not fits(FREE, 100, 0, 1, 0)
    assert not fits(FREE, 0, 100, 0, 1)
    assert fits(FREE, 0, 100, 1000, 0)
    assert fits(FREE._replace(token_cap=None, nano_cap=None), 10**18, 10**18, 10**18, 10**18)


def test_what_is_held_may_come_back_and_what_is_used_may_not() -> None:
    assert not exhausted(row(100, 100), 100, 0)
    assert not exhausted(row(100, 50), 50, 0)
    assert exhausted(row(100, 49), 50, 0)
    assert exhausted(row(100, 0, nanos_claimed=100), 0, 1)


@pytest.mark.parametrize(
    ("rows", "tokens", "latest", "vain"),
    [
        ([row(), row(100, 100)], 100, {}, False),  # busy
        ([row(), row(100, 0)], 1, {}, True),  # used up, and there is no next period
        ([row(), row()], 101, {}, True),  # larger than the cap
        ([row(), row(closed=True)], 1, {}, True),
        ([row(100, 0, start=0.0, end=3600.0), row()], 1, {}, True),  # it waits for no new period
        ([row(100, 0, start=0.0, end=3600.0), row()], 1, {"run": 3599.0}, True),  # it gives up before
        ([row(100, 0, start=0.0, end=3600.0), row()], 1, {"run": 3600.0}, False),
        ([row(100, 0, start=0.0, end=3600.0), row()], 101, {"run": 3600.0}, True),  # it never fits
        ([row(100, 0), row()], 1, {"run": 3600.0}, True),  # the window is gone
        ([row(100, 0, start=0.0, end=3600.0)] * 2, 1, {"run": 3600.0}, True),  # the other scope stays used up
    ],
)
def test_to_wait_is_in_vain_where_a_scope_has_no_room_before_the_waiter_gives_up(
    rows: list[Numbers], tokens: int, latest: dict[str, float], vain: bool
) -> None:
    chain = scopes("run", "total")
    seen = {scope: latest[scope.name] for scope in chain if scope.name in latest}
    assert hopeless(chain, rows, tokens, 0, seen) is vain


def test_a_refusal_names_what_is_closed_before_what_is_used_up_before_what_is_full() -> None:
    chain = scopes("run", "atlas", "total")
    full, used = row(100, 100), row(100, 0)
    error = refusal(chain, [full, used, row(closed=True)], 0, 1, 0)
    assert isinstance(error, PoolClosed)
    assert "'total' is closed: spend from its parent" in str(error)
    assert refusal(chain, [full, used, row()], 0, 1, 0).pool == "atlas"  # type: ignore[attr-defined]
    busy: Any = refusal(chain, [full, row(), row()], 0, 1, 0, BudgetTimeout)
    assert (type(busy), busy.pool, busy.exhausted, busy.retry_after) == (BudgetTimeout, "run", False, 0.0)


def test_a_refusal_says_when_the_last_period_of_those_that_are_used_up_ends() -> None:
    chain = scopes("run", "atlas", "total")
    ending = [row(100, 0, start=0.0, end=end) for end in (1600.0, 3600.0)]
    error: Any = refusal(chain, [*ending, row()], 0, 1, 0)
    assert (error.pool, error.resets_at.timestamp(), error.retry_after) == ("run", 3600.0, 2600.0)
    never: Any = refusal(chain, [*ending, row(100, 0)], 0, 1, 0)
    assert (never.resets_at.timestamp(), never.retry_after) == (3600.0, None)
    too_large: Any = refusal(chain, [*ending, row()], 0, 101, 0)
    assert too_large.retry_after is None


def test_a_clock_that_fails_hides_no_error() -> None:
    def broken() -> float:
        raise OSError

    chain = scopes("total", clock=broken)
    error: Any = refusal(chain, [row(100, 0, start=0.0, end=3600.0)], 0, 1, 0)
    assert (error.pool, error.retry_after) == ("total", None)
    chain[0].window = None
    error = refusal(chain, [row(100, 0, start=0.0, end=3600.0)], 0, 1, 0)
    assert error.retry_after is None


def test_an_overrun_is_of_the_first_scope_and_axis_that_what_is_new_took_over_a_cap() -> None:
    chain = scopes("run", "total")
    over = row(150, 20, nanos_claimed=120, start=0.0, end=3600.0)
    error = overrun(chain, [row(), over], 50, 10, 30, 10)
    assert isinstance(error, BudgetOverrun)
    assert (error.axis, error.pool, error.requested, error.used, error.reserved) == ("tokens", "total", 50, 80, 20)
    assert (error.attempted, error.cap, error.retry_after) == (150, 100, 2600.0)
    dollars = overrun(chain, [row(), over], 50, 0, 30, 10)
    assert dollars is not None
    assert (dollars.axis, dollars.requested_nanos, dollars.attempted_nanos) == ("usd", 30, 120)
    assert overrun(chain, [row(), over], 50, 0, 30, -1) is None
    assert overrun(chain, [row(), over._replace(token_cap=None, nano_cap=None)], 50, 10, 30, 10) is None


def test_a_snapshot_has_the_numbers_of_its_row() -> None:
    shown = snapshot_of(
        Scope("run", "run"), row(50, 20, nanos_claimed=7, nanos_held=3, in_flight=2, start=0.0, end=3600.0)
    )
    assert (shown.name, shown.tokens_used, shown.tokens_reserved, shown.in_flight) == ("run", 30, 20, 2)
    assert (shown.usd_used_nanos, shown.usd_reserved_nanos, shown.token_cap) == (4, 3, 100)
    assert shown.resets_at is not None
    assert shown.resets_at.timestamp() == 3600.0
    parent = snapshot_of(None, row(), (shown,))
    assert (parent.name, parent.children, parent.resets_at) == (None, (shown,), None)
