"""P6 and P9 on every kind of pool: money is exact at any size, and bad input is refused and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

import pools_of_all_kinds as all_kinds
import strategies
from hostile import EvilFloat, EvilInt, LyingFloat, LyingInt
from ledger import grid
from pools_of_all_kinds import IN_STORES, NANOS, Do, Kind, counters
from test_p9_bad_input import TOKENS, USD
from token_budget import BudgetExceeded, BudgetOverrun, BudgetTimeout, Window
from token_budget.contract import Pool

kind, do = all_kinds.kind, all_kinds.do
NANO = Decimal("0.000000001")
LARGEST = 10**18  # tokens, and nanodollars: the largest amount and the largest cap


# ---------------------------------------------------------------- exact


@pytest.mark.parametrize("tenth", [0.1, Decimal("0.1"), Fraction(1, 10)], ids=["float", "Decimal", "Fraction"])
@pytest.mark.parametrize("way", all_kinds.WAYS)
def test_three_times_a_tenth_fills_three_tenths_and_not_one_nanodollar_more_fits(
    kind: Kind, do: Do, way: str, tenth: Any
) -> None:
    pool = kind.pool(usd_cap=0.3)
    for _ in range(3):
        all_kinds.spend(do, way, pool, usd=tenth)
    snapshot = do.snapshot(pool)
    assert (snapshot.usd_used, snapshot.usd_remaining, snapshot.usd_remaining_nanos) == (0.3, 0.0, 0)
    with pytest.raises(BudgetExceeded) as refused:
        all_kinds.spend(do, way, pool, usd=NANO)
    assert (refused.value.attempted_nanos, refused.value.cap_nanos) == (300_000_001, 300_000_000)


def test_a_thousand_small_spends_come_to_their_sum(kind: Kind, do: Do) -> None:
    pool = kind.pool(usd_cap=0.001)
    for _ in range(200):
        do.record(pool, usd=0.000001)
    for _ in range(100):
        do.commit(do.reserve(pool, usd=0.000008))
    assert do.snapshot(pool).usd_remaining_nanos == 0
    with pytest.raises(BudgetExceeded):
        do.record(pool, usd=NANO)


@pytest.mark.parametrize("below", [False, True], ids=["alone", "child"])
def test_the_largest_cap_is_filled_to_the_last_nanodollar_and_the_last_token(
    kind: Kind, do: Do, *, below: bool
) -> None:
    pool = kind.pool(token_cap=LARGEST, usd_cap=10**9)
    asked = pool.child(token_cap=LARGEST, usd_cap=10**9, name="asked") if below else pool
    almost = Decimal(10**9) - 3 * NANO
    with do.block(asked, tokens=LARGEST - 3, usd=almost) as reservation:
        assert counters(pool) == (0, LARGEST - 3, 0, LARGEST - 3, 1)
        with pytest.raises(BudgetExceeded):
            do.record(asked, tokens=4)
        do.commit(reservation)
    do.record(asked, tokens=1, usd=NANO)
    do.record(asked, tokens=2, usd=2 * NANO)
    for axis, amount in (("tokens", 1), ("usd", NANO)):
        with pytest.raises(BudgetExceeded) as refused:
            do.record(asked, **{axis: amount})
        assert (refused.value.axis, refused.value.requested) == (axis, float(amount) if axis == "usd" else 1)
    assert refused.value.attempted_nanos == LARGEST + 1
    assert counters(pool) == counters(asked) == (LARGEST, 0, LARGEST, 0, 0)
    snapshot = do.snapshot(pool)
    assert (snapshot.tokens_remaining, snapshot.usd_remaining_nanos) == (0, 0)


def test_what_is_forced_beyond_the_largest_cap_is_counted_exactly(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=LARGEST, usd_cap=10**9)
    for times in (1, 2, 3):
        try:
            do.record(pool, tokens=LARGEST - times, usd=Decimal(10**9) - times * NANO, force=True)
        except BudgetOverrun as overrun:
            assert (overrun.axis, overrun.attempted) == ("tokens", times * LARGEST - times * (times + 1) // 2)
    assert counters(pool) == (3 * LARGEST - 6, 0, 3 * LARGEST - 6, 0, 0)
    pool.reset()
    assert counters(pool) == (0, 0, 0, 0, 0)


@IN_STORES
def test_what_no_store_can_count_is_an_error_that_changes_nothing(kind: Kind, do: Do) -> None:
    """A pool in process counts without bound. A store counts to 8 * 10**18 beyond its cap."""
    from token_budget.stores import StoreError

    pool = kind.pool(token_cap=1, usd_cap=1)
    child = pool.child(name="child")
    held, counted = do.reserve(child, tokens=1, usd=1), 0
    with pytest.raises(StoreError):
        for _ in range(12):
            with pytest.raises(BudgetOverrun):
                do.record(pool, tokens=LARGEST, usd=10**9, force=True)
            counted += LARGEST
    assert counted >= 7 * LARGEST
    assert counters(pool) == (counted, 1, counted, NANOS, 1)
    assert counters(child) == (0, 1, 0, NANOS, 1)
    do.commit(held)
    pool.reset()
    do.record(pool, tokens=1, usd=1)


def test_half_a_nanodollar_is_rounded_to_even(kind: Kind, do: Do) -> None:
    pool = kind.pool(usd_cap=1)
    for halves in (1, 3, 5):
        do.record(pool, usd=Fraction(halves, 2 * 10**9))
    assert counters(pool)[2] == 0 + 2 + 2


@hypothesis.settings(max_examples=25, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(
    caps=st.tuples(strategies.token_caps, strategies.usd_caps),
    amounts=st.lists(st.tuples(strategies.tokens, strategies.usd), max_size=6),
)
def test_any_amounts_are_counted_as_exact_arithmetic_counts_them(
    kind: Kind, caps: tuple[Any, Any], amounts: list[tuple[int, Any]]
) -> None:
    pool = kind.pool(*caps)
    used = [0, 0]
    limits = [caps[0], None if caps[1] is None else int(grid(caps[1]) * 10**9)]
    for tokens, usd in amounts:
        asked = [tokens, int(grid(usd) * 10**9)]
        fits = all(
            not more or limit is None or there + more <= limit
            for there, more, limit in zip(used, asked, limits, strict=True)
        )
        try:
            pool.record(tokens=tokens, usd=usd)
        except BudgetExceeded:
            assert not fits
        else:
            assert fits
            used = [there + more for there, more in zip(used, asked, strict=True)]
        assert counters(pool) == (used[0], 0, used[1], 0, 0)
    kind.end()


# ---------------------------------------------------------------- bad input

OPERATIONS: dict[str, Callable[[Do, Pool, Any, dict[str, Any]], object]] = {
    "record": lambda do, pool, _held, amounts: do.record(pool, **amounts),
    "record by force": lambda do, pool, _held, amounts: do.record(pool, force=True, **amounts),
    "reserve": lambda do, pool, _held, amounts: do.reserve(pool, **amounts),
    "reserve, waiting": lambda do, pool, _held, amounts: do.reserve(pool, timeout=1, **amounts),
    "commit": lambda do, _pool, held, amounts: do.commit(held, **amounts),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("axis", "table"), [("tokens", TOKENS), ("usd", USD)], ids=["tokens", "usd"])
def test_bad_amounts_are_refused_and_change_nothing(
    kind: Kind, do: Do, operation: str, axis: str, table: list[Any]
) -> None:
    pool = kind.pool(token_cap=100, usd_cap=10)
    do.record(pool, tokens=10, usd=1)
    held = do.reserve(pool, tokens=5, usd=0.5)
    other: dict[str, Any] = {"usd": 0.1} if axis == "tokens" else {"tokens": 1}
    for value in table if operation == "commit" else [None, *table]:
        with pytest.raises((TypeError, ValueError)) as raised:
            OPERATIONS[operation](do, pool, held, {axis: value, **other})
        assert str(raised.value).startswith(axis)
        assert len(str(raised.value)) < 200
    assert counters(pool) == (10, 5, NANOS, NANOS // 2, 1)
    assert (pool.snapshot().token_cap, pool.snapshot().usd_cap) == (100, 10)
    do.commit(held)
    assert counters(pool) == (15, 0, NANOS * 3 // 2, 0, 0)


@pytest.mark.parametrize(("axis", "table"), [("token_cap", TOKENS), ("usd_cap", USD)], ids=["tokens", "usd"])
def test_bad_caps_are_refused_and_make_and_change_nothing(kind: Kind, axis: str, table: list[Any]) -> None:
    pool = kind.pool(token_cap=100, usd_cap=10, name="total")
    users = pool.keyed(token_cap=5, name="user")
    users["ann"].record(tokens=1)
    making: list[Callable[..., object]] = [
        lambda **caps: kind.pool(name="bad", **caps),
        lambda **caps: pool.child(name="bad", **caps),
        lambda **caps: pool.keyed(name="bad", **caps),
        pool.set_caps,
        users["ann"].set_caps,
        users.set_caps,
    ]
    for value in table:
        for make in making:
            with pytest.raises((TypeError, ValueError)) as raised:
                make(**{axis: value})
            assert str(raised.value).startswith(axis)
            assert isinstance(raised.value, TypeError) or str(raised.value).endswith("; None means no cap")
    tree = pool.snapshot(tree=True)
    assert (tree.token_cap, tree.usd_cap) == (100, 10)
    assert [(child.name, child.token_cap, child.usd_cap) for child in tree.children] == [("user:ann", 5, None)]


@pytest.mark.parametrize("timeout", [-1, -0.1, float("nan"), "1", True, 1j, b"1", object()])
def test_a_bad_time_out_is_refused_and_holds_nothing(kind: Kind, do: Do, timeout: Any) -> None:
    pool = kind.pool(token_cap=10)
    with pytest.raises((TypeError, ValueError), match="timeout must be a number of seconds"):
        do.reserve(pool, tokens=1, timeout=timeout)
    assert counters(pool) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("window", ["daily", Window, 5, {"every": 5}, lambda: 0.0])
def test_a_window_of_another_type_is_refused(kind: Kind, window: Any) -> None:
    pool = kind.pool(name="total")
    makers: list[Callable[..., object]] = [kind.pool, pool.child, pool.keyed]
    for make in makers:
        with pytest.raises(TypeError, match=r"window must be a Window \(Window\.daily\(\) and so on\), not"):
            make(name="bad", window=window)
    with pytest.raises(TypeError, match="window must be a Window"):
        pool.set_caps(window=window)
    assert pool.snapshot(tree=True).children == ()


@pytest.mark.parametrize("name", [5, b"x", ["x"], "x" * 201])
def test_a_bad_name_is_refused(kind: Kind, name: Any) -> None:
    pool = kind.pool(name="total")
    makers: list[Callable[..., object]] = [
        kind.open,
        pool.child,
        pool.keyed,
        lambda name: type(pool).join(pool, name=name),
    ]
    for make in makers:
        with pytest.raises((TypeError, ValueError), match="name must "):
            make(name=name)
    assert pool.snapshot(tree=True).children == ()


@pytest.mark.parametrize("share", [0, -0.5, float("nan"), float("inf"), "0.8", True, None, 80, 1e-10])
def test_a_bad_share_is_refused(kind: Kind, share: Any) -> None:
    pool = kind.pool(token_cap=10)
    for watched in (pool, pool.keyed(name="user")):
        with pytest.raises((TypeError, ValueError), match="share"):
            watched.on_threshold(share, print)
    assert pool.statistics().subscribers == 0


def test_hostile_subclasses_with_a_good_value_count_as_that_value(kind: Kind, do: Do) -> None:
    pool = kind.pool()
    do.record(pool, tokens=EvilInt(5), usd=EvilFloat(0.5))
    do.record(pool, tokens=LyingInt(5), usd=LyingFloat(0.5))
    with do.block(pool, usd=LyingInt(2)) as reservation:
        do.commit(reservation, tokens=EvilInt(1))
    assert counters(pool) == (11, 0, 3 * NANOS, 0, 0)


@pytest.mark.parametrize("method", ["record", "reserve", "try_reserve", "areserve"])
def test_amounts_are_keyword_only(kind: Kind, method: str) -> None:
    with pytest.raises(TypeError):
        getattr(kind.pool(), method)(5)


def test_what_waits_is_not_begun_by_bad_arguments(kind: Kind, do: Do) -> None:
    pool = kind.pool(token_cap=10)
    with do.block(pool, tokens=10):
        with pytest.raises(ValueError, match="tokens"):
            do.reserve(pool, tokens=-1, timeout=60)
        with pytest.raises(BudgetTimeout):
            do.reserve(pool, tokens=1, timeout=0.001)
        assert pool.statistics().waiters == 0
