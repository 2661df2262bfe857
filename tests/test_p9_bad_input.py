"""P9: bad input is refused with a clear error, and changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from hostile import (
    BadRational,
    Claims,
    Evil,
    EvilFloat,
    EvilInt,
    Index,
    LyingFloat,
    LyingInt,
    NegativeRational,
    OnlyFloat,
    OnlyInt,
)
from support import counters
from token_budget import BudgetPool

LongName = type("A" * 10_000, (), {})
HUGE = 10**5000

BOTH: list[Any] = [
    "1",
    "",
    "nan",
    b"1",
    bytearray(b"1"),
    True,
    False,
    math.nan,
    -math.nan,
    math.inf,
    -math.inf,
    -1,
    -(10**18),
    -HUGE,
    HUGE,
    10**18 + 1,
    2**64,
    -0.5,
    -1e-300,
    1e300,
    Decimal("NaN"),
    Decimal("sNaN"),
    Decimal("Infinity"),
    Decimal("-Infinity"),
    Decimal("-0.1"),
    Decimal("1e999999999"),
    Decimal("-1e-999999999"),
    Fraction(-1, 3),
    Fraction(HUGE, 3),
    1j,
    complex(1, 0),
    [],
    [1],
    (1,),
    {},
    {1},
    range(1),
    object(),
    int,
    len,
    OnlyFloat(),
    OnlyInt(),
    Evil(),
    EvilInt(-5),
    EvilInt(HUGE),
    EvilFloat(-5.0),
    EvilFloat("nan"),
    EvilFloat("inf"),
    LyingInt(-3),
    LyingInt(HUGE),
    LyingFloat(-3.0),
    LyingFloat("nan"),
    Claims(),
    LongName(),
    Index("1"),
    NotImplemented,
    Ellipsis,
]
TOKENS = [*BOTH, 0.5, 1.0, 0.0, 1e18, Decimal(1), Fraction(1, 2), Fraction(2), Index(-1), Index(10**19), Index(1.5)]
USD = [
    *BOTH,
    10**9 + 1,
    1e9 + 1,
    1e10,
    Decimal("1000000000.000000001"),
    Index(1),
    BadRational(1, 2),
    NegativeRational(1),
]


@dataclass
class Operation:
    """One way to pass an amount, to a pool that holds 10 + 5 tokens and 1 + 0.5 dollars."""

    call: Callable[[BudgetPool, Any, dict[str, Any]], object]
    none_is_fine: bool = False


OPERATIONS = {
    "record": Operation(lambda pool, _held, amounts: pool.record(**amounts)),
    "record by force": Operation(lambda pool, _held, amounts: pool.record(force=True, **amounts)),
    "reserve": Operation(lambda pool, _held, amounts: pool.reserve(**amounts)),
    "try_reserve": Operation(lambda pool, _held, amounts: pool.try_reserve(**amounts)),
    "commit": Operation(lambda _pool, held, amounts: held.commit(**amounts), none_is_fine=True),
}


def test_the_tables_are_as_long_as_promised() -> None:
    assert min(len(TOKENS), len(USD)) >= 45


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("axis", "table"), [("tokens", TOKENS), ("usd", USD)])
def test_bad_amounts_are_refused_and_change_nothing(operation: str, axis: str, table: list[Any]) -> None:
    pool = BudgetPool(token_cap=100, usd_cap=10)
    pool.record(tokens=10, usd=1)
    held = pool.reserve(tokens=5, usd=0.5)
    bad = table if OPERATIONS[operation].none_is_fine else [None, *table]
    other: dict[str, Any] = {"usd": 0.1} if axis == "tokens" else {"tokens": 1}
    for value in bad:
        for amounts in ({axis: value}, {axis: value, **other}):
            with pytest.raises((TypeError, ValueError)) as raised:
                OPERATIONS[operation].call(pool, held, amounts)
            assert str(raised.value).startswith(axis)
            assert len(str(raised.value)) < 200
            assert counters(pool) == (10, 5, 10**9, 5 * 10**8, 1)
            assert (pool.snapshot().token_cap, pool.snapshot().usd_cap_nanos) == (100, 10**10)
    held.commit()
    assert counters(pool) == (15, 0, 15 * 10**8, 0, 0)


@pytest.mark.parametrize(("axis", "table"), [("token_cap", TOKENS), ("usd_cap", USD)])
def test_bad_caps_are_refused(axis: str, table: list[Any]) -> None:
    for value in table:
        with pytest.raises((TypeError, ValueError)) as raised:
            BudgetPool(**{axis: value})
        assert str(raised.value).startswith(axis)
        assert isinstance(raised.value, TypeError) or str(raised.value).endswith("; None means no cap")
        assert len(str(raised.value)) < 200


KINDS = [
    ("tokens", True, TypeError, "tokens must be an integer, not bool"),
    ("tokens", 1.5, TypeError, "tokens must be an integer, not float; round it first"),
    ("tokens", None, TypeError, "tokens must be an integer, not NoneType"),
    ("tokens", -1, ValueError, "tokens must not be negative, got -1"),
    ("tokens", 10**18 + 1, ValueError, "tokens must be at most 10**18, got 1000000000000000001"),
    ("tokens", 10**100, ValueError, "tokens must be at most 10**18, got an integer of 333 bits"),
    ("tokens", 2**127, ValueError, f"tokens must be at most 10**18, got {2**127}"),
    ("tokens", 2**128 - 1, ValueError, f"tokens must be at most 10**18, got {2**128 - 1}"),
    ("tokens", 2**128, ValueError, "tokens must be at most 10**18, got an integer of 129 bits"),
    ("usd", True, TypeError, "usd must be an int, float, Decimal or Fraction, not bool"),
    ("usd", "1", TypeError, "usd must be an int, float, Decimal or Fraction, not str"),
    ("usd", OnlyFloat(), TypeError, "usd must be an int, float, Decimal or Fraction, not OnlyFloat"),
    ("usd", LongName(), TypeError, "usd must be an int, float, Decimal or Fraction, not " + "A" * 60),
    ("usd", math.nan, ValueError, "usd must be finite, got nan"),
    ("usd", math.inf, ValueError, "usd must be finite, got inf"),
    ("usd", Decimal("sNaN"), ValueError, "usd must be finite, got a Decimal that is not"),
    ("usd", -0.5, ValueError, "usd must not be negative, got -0.5"),
    ("usd", EvilInt(-5), ValueError, "usd must not be negative, got -5"),
    ("usd", EvilFloat(-5.5), ValueError, "usd must not be negative, got -5.5"),
    ("usd", Fraction(-1, 3), ValueError, "usd must not be negative"),
    ("usd", 1e10, ValueError, "usd must be at most 10**9 USD, got 10000000000.0"),
    ("usd", 10**100, ValueError, "usd must be at most 10**9 USD, got an integer of 333 bits"),
    ("usd", BadRational(1, 2), ValueError, "usd must have a denominator above 0"),
]


@pytest.mark.parametrize(("axis", "value", "error", "message"), KINDS, ids=[kind[3] for kind in KINDS])
def test_the_error_has_its_type_and_says_what_is_wrong(
    axis: str, value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        BudgetPool().record(**{axis: value})
    assert str(raised.value) == message


def test_hostile_subclasses_with_a_good_value_count_as_that_value() -> None:
    pool = BudgetPool()
    pool.record(tokens=EvilInt(5), usd=EvilFloat(0.5))
    pool.record(tokens=LyingInt(5), usd=LyingFloat(0.5))
    pool.record(usd=LyingInt(2))
    assert counters(pool) == (10, 0, 3 * 10**9, 0, 0)


def test_minus_zero_is_zero() -> None:
    pool = BudgetPool(usd_cap=-0.0)
    for zero in (-0.0, Decimal("-0"), Fraction(0), -0):
        pool.record(usd=zero)
    assert counters(pool) == (0, 0, 0, 0, 0)
    assert str(pool.snapshot().usd_remaining) == "0.0"


def test_nan_cannot_switch_the_cap_off() -> None:
    pool = BudgetPool(usd_cap=1)
    with pytest.raises(ValueError, match="finite"):
        pool.record(usd=math.nan)
    with pytest.raises(ValueError, match="finite"):
        BudgetPool(usd_cap=math.nan)


@pytest.mark.parametrize("method", ["record", "reserve", "try_reserve"])
def test_amounts_are_keyword_only(method: str) -> None:
    with pytest.raises(TypeError):
        getattr(BudgetPool(), method)(5)


@pytest.mark.parametrize("name", [5, b"x", ["x"], Evil()])
def test_a_name_that_is_no_string_is_refused(name: Any) -> None:
    with pytest.raises(TypeError, match="name must be a str, not "):
        BudgetPool(name=name)


def test_a_name_is_bounded_and_no_code_of_its_class_is_run() -> None:
    class EvilName(Evil, str):
        __slots__ = ()

    assert BudgetPool(name=EvilName("run")).snapshot().name == "run"
    assert type(BudgetPool(name=EvilName("run")).snapshot().name) is str
    BudgetPool(name="x" * 200)
    with pytest.raises(ValueError, match="at most 200 characters, got 201"):
        BudgetPool(name="x" * 201)


def test_numpy_scalars_count_exactly() -> None:
    numpy = pytest.importorskip("numpy")
    pool = BudgetPool(token_cap=numpy.int64(1000))
    pool.record(tokens=numpy.int32(5), usd=numpy.float64(0.1))
    pool.record(tokens=numpy.uint8(5), usd=numpy.float32(0.5))
    pool.record(usd=numpy.int64(2))
    pool.record(usd=numpy.longdouble("0.25"))
    assert counters(pool) == (10, 0, 2_850_000_000, 0, 0)
    bad = {
        "usd must be an int, float, Decimal or Fraction, not bool": numpy.bool_(True),
        "usd must be finite, got a float32 that is not": numpy.float32("nan"),
        "usd must be finite, got a float16 that is not": numpy.float16("inf"),
        "usd must be at most 10**9 USD": numpy.longdouble("1e4000"),
        "usd must be an int, float, Decimal or Fraction, not ndarray": numpy.array(1.0),
        "usd must be an int, float, Decimal or Fraction, not timedelta64": numpy.timedelta64(5, "s"),
        "usd must not be negative": numpy.float16(-1),
    }
    for message, value in bad.items():
        with pytest.raises((TypeError, ValueError)) as raised:
            pool.record(usd=value)
        assert str(raised.value) == message.replace("not bool", f"not {type(numpy.bool_(True)).__name__}")
    assert counters(pool) == (10, 0, 2_850_000_000, 0, 0)
