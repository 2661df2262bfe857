"""The API as objects: annotations that resolve, texts of pools and reservations, statistics, and clear refusals."""

from __future__ import annotations

import asyncio
import collections.abc
import gc
import inspect
import subprocess
import sys
import typing
from dataclasses import FrozenInstanceError
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

import token_budget
from shapes import SHAPES, waiting
from token_budget import BudgetPool, KeyedPools, Reservation, Window

PUBLIC = [getattr(token_budget, name) for name in token_budget.__all__]


def _members() -> list[Any]:
    found = []
    for thing in PUBLIC:
        if not inspect.isclass(thing):
            continue
        found.append(pytest.param(thing, id=thing.__name__))
        for name in dir(thing):
            if name.startswith("_") and name not in {"__init__", "__enter__", "__exit__", "__aenter__", "__aexit__", "__getitem__", "__iter__", "__delitem__"}:  # fmt: skip # noqa: E501
                continue
            member = inspect.getattr_static(thing, name)
            member = getattr(member, "__func__", member)
            if isinstance(member, property):
                member = member.fget
            if inspect.isfunction(member) and member.__module__.startswith("token_budget"):
                found.append(pytest.param(member, id=f"{thing.__name__}.{name}"))
    return found


@pytest.mark.parametrize("member", _members())
def test_the_annotations_of_all_public_names_resolve(member: Any) -> None:
    hints = typing.get_type_hints(member)
    if inspect.isfunction(member):
        assert set(hints) >= {
            name
            for name, parameter in inspect.signature(member).parameters.items()
            if parameter.annotation is not parameter.empty
        }


def test_the_annotations_resolve_to_the_real_classes() -> None:
    hints = typing.get_type_hints(BudgetPool.reserve)
    assert hints["return"] is Reservation
    assert hints["timeout"] == float | None
    assert hints["usd"] == float | Decimal | Fraction
    assert hints["tokens"] is typing.SupportsIndex
    assert typing.get_type_hints(BudgetPool.areserve)["return"].__name__ == "AsyncReserve"
    assert typing.get_type_hints(BudgetPool.__init__)["window"] == Window | None
    assert issubclass(typing.get_type_hints(BudgetPool.areserve)["return"], collections.abc.Coroutine)


def test_importing_the_package_imports_nothing_that_only_annotations_name() -> None:
    program = "import sys; before = set(sys.modules); import token_budget; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"typing", "dataclasses", "decimal", "fractions", "asyncio", "datetime", "inspect", "trio"}


# ---------------------------------------------------------------- shown


def test_a_reservation_is_not_made_by_hand() -> None:
    with pytest.raises(TypeError, match=r"made by BudgetPool\.reserve\(\)"):
        Reservation()
    gc.collect()


@pytest.mark.parametrize("kind", [BudgetPool, Reservation, KeyedPools])
def test_a_half_made_object_has_a_repr(kind: Any) -> None:
    """Debuggers and tracebacks show objects while `__init__` runs or after it failed."""
    thing = kind.__new__(kind)
    assert type(thing).__name__ in repr(thing)
    del thing
    gc.collect()


def test_the_text_of_a_reservation_says_what_became_of_it() -> None:
    pool = BudgetPool(token_cap=10, name="daily")
    held = pool.reserve(tokens=4, usd=0.25)
    assert repr(held) == "<Reservation in 'daily' tokens 4 | usd 0.25 | in flight>"
    held.commit()
    assert repr(held) == "<Reservation in 'daily' tokens 4 | usd 0.25 | committed>"
    held = pool.reserve()
    held.release()
    assert repr(held) == "<Reservation in 'daily' tokens 0 | usd 0 | released>"


def test_the_text_of_an_account_shows_its_numbers() -> None:
    """For whoever looks into a pool; before CPython 3.14, also for the error of a deque that does not hold it."""
    pool = BudgetPool(token_cap=10, name="daily")
    pool.record(tokens=4)
    assert repr(pool._account) == f"<Account {pool.snapshot()}>"
    assert "4 / 10" in repr(pool._account)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_text_of_a_pool_says_who_waits_and_whether_it_is_closed(shape: str) -> None:
    asked, pool = SHAPES[shape](token_cap=10)
    held = asked.reserve(tokens=10)
    assert "waiting" not in repr(pool)
    waiters = [waiting(asked, tokens=1) for _ in range(3)]
    assert "3 waiting" in repr(pool)
    assert "1 in flight" in repr(pool)
    held.release()
    for waiter in waiters:
        waiter.reservation.release()
    assert "waiting" not in repr(pool)
    assert "closed" not in repr(pool)
    pool.close()
    assert "closed" in repr(pool)
    assert "closed" in repr(asked)


def test_the_repr_of_an_areserve_names_the_pool() -> None:
    pool = BudgetPool(token_cap=10, name="daily")
    one = pool.areserve(tokens=4)
    assert "areserve" in repr(one)
    assert "daily" in repr(one)
    one.close()

    async def main() -> None:
        task = asyncio.create_task(pool.areserve(tokens=4))
        assert "without __name__" not in repr(task)
        (await task).release()

    asyncio.run(main())


# ---------------------------------------------------------------- counted


def test_statistics_count_reservations_waiters_children_and_subscribers() -> None:
    total = BudgetPool(token_cap=10)
    assert _counts(total) == (0, 0, 0, 0)
    team = total.child(name="team")
    users = team.keyed(token_cap=10)
    for key in ("ann", "ben"):
        users[key].record(usd=1)
    unsubscribe = team.subscribe(lambda _event: None)
    team.on_threshold(0.5, lambda _event: None)
    held = users["ann"].reserve(tokens=10)
    waiters = [waiting(users["ann"], tokens=1), waiting(total, tokens=2)]
    assert _counts(total) == (1, 2, 1, 0)
    assert _counts(team) == (1, 1, 2, 2)
    assert _counts(users["ann"]) == (1, 1, 0, 0)
    assert _counts(users["ben"]) == (0, 0, 0, 0)
    unsubscribe()
    held.release()
    assert _counts(team) == (1, 0, 2, 1)  # the former waiter holds it now
    for waiter in waiters:
        waiter.reservation.release()
    assert _counts(total) == (0, 0, 1, 0)


def _counts(pool: BudgetPool) -> tuple[int, int, int, int]:
    found = pool.statistics()
    return found.reservations, found.waiters, found.children, found.subscribers


def test_statistics_never_change() -> None:
    pool = BudgetPool()
    found = pool.statistics()
    with pytest.raises((AttributeError, FrozenInstanceError)):
        found.waiters = 5  # type: ignore[misc]
    pool.reserve().release()
    assert found == pool.statistics()
    assert "waiters=0" in repr(found)


# ---------------------------------------------------------------- clear errors


@pytest.mark.parametrize("several", [list, tuple, set])
def test_joining_a_list_says_how_to_write_it(several: Any) -> None:
    total = BudgetPool()
    with pytest.raises(TypeError, match=rf"join takes pools, not {several.__name__}.*join\(\*pools\)"):
        BudgetPool.join(several([total.child(), total.child()]))


@pytest.mark.parametrize("thing", [None, "pool", 5, object(), BudgetPool])
def test_joining_an_object_that_is_no_pool_says_so(thing: Any) -> None:
    with pytest.raises(TypeError, match="join takes pools"):
        BudgetPool.join(BudgetPool(), thing)
