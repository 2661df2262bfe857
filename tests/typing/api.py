"""Typical calls, for the type checkers to read. Nobody runs this file."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal

from typing_extensions import assert_type

from token_budget import (
    BudgetEvent,
    BudgetExceeded,
    BudgetOverrun,
    BudgetPool,
    BudgetSnapshot,
    KeyedPools,
    PoolForked,
    Reservation,
    ReservationClosed,
    Window,
)

pool = BudgetPool()
pool = BudgetPool(1000, 0.5)
pool = BudgetPool(token_cap=1000, usd_cap=Decimal("0.5"), name="run")
pool.record(tokens=5, usd=Fraction(1, 3), force=True)
assert_type(pool.reserve(tokens=5), Reservation)
assert_type(pool.try_reserve(tokens=5, usd=1), Reservation)
assert_type(pool.snapshot(), BudgetSnapshot)
pool.reset()
pool.detach()

with pool.reserve(tokens=5) as reservation:
    assert_type(reservation, Reservation)
    reservation.commit()
    reservation.commit(tokens=4, usd=Decimal("0.1"))
    reservation.release()
    assert_type(reservation.completed, bool)
    assert_type(reservation.reserved_tokens, int)
    assert_type(reservation.reserved_usd, float)


async def use() -> None:
    async with pool.reserve(usd=0.1) as held:
        assert_type(held, Reservation)


snapshot = pool.snapshot()
assert_type(snapshot.tokens_remaining, "int | None")
assert_type(snapshot.usd_used, float)
assert_type(snapshot.usd_used_nanos, int)

try:
    pool.record(tokens=1)
except BudgetOverrun as overrun:
    assert_type(overrun.attempted, float | Any)
except BudgetExceeded as exceeded:
    assert_type(exceeded.axis, Literal["tokens", "usd"] | Any)
    assert_type(exceeded.retry_after, "float | None")
    assert_type(exceeded.resets_at, "datetime | None")
    assert_type(exceeded.pool, "str | None")
except (PoolForked, ReservationClosed) as closed:
    assert_type(str(closed), str)

pool.record(5)  # type: ignore[call-arg]
pool.record(tokens="5")  # type: ignore[arg-type]
pool.record(tokens=1.5)  # type: ignore[arg-type]
pool.record(usd="5")  # type: ignore[arg-type]


async def scopes_and_waiting() -> None:
    day = Window.daily("Europe/Berlin")
    total = BudgetPool(usd_cap=Decimal("12.5"), window=day)
    users: KeyedPools[BudgetPool] = total.keyed(usd_cap=1, name="user")
    with total.child(token_cap=1000, name="run") as run:
        call: BudgetPool = BudgetPool.join(users["ann"], run)
        reservation: Reservation = await call.areserve(tokens=5, timeout=1.5)
        reservation.release()
        async with call.areserve(usd=0.1) as other:
            other.commit(tokens=3)
        call.reserve(tokens=1, timeout=None).release()
    unsubscribe: Callable[[], None] = total.subscribe(heard)
    unsubscribe()
    total.on_threshold(0.8, heard)
    total.set_caps(token_cap=None)
    children: tuple[BudgetSnapshot, ...] = total.snapshot(tree=True).children
    resets_at: datetime | None = children[0].resets_at
    print(resets_at)


def heard(event: BudgetEvent) -> None:
    kind: str = event.kind
    used: int = event.snapshot.tokens_used
    print(kind, used)
