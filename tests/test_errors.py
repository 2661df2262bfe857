"""`_errors`: the numbers and the text of an error, and how it is copied and pickled."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from token_budget import (
    BudgetExceeded,
    BudgetOverrun,
    BudgetPool,
    BudgetTimeout,
    PoolClosed,
    PoolForked,
    ReservationClosed,
)
from token_budget._money import UNBOUNDED

KINDS = [BudgetExceeded, BudgetOverrun, BudgetTimeout]
NUMBERS = ("requested", "used", "reserved", "attempted", "cap")
NOON = datetime(2026, 3, 30, 12, tzinfo=timezone.utc)
ALL_PARTS = (
    "axis", "pool", "exhausted", "resets_at", "retry_after", *NUMBERS, *(f"{number}_nanos" for number in NUMBERS)
)  # fmt: skip


def refused(**amounts: float) -> BudgetExceeded:
    pool = BudgetPool(token_cap=100, usd_cap=1, name="run")
    pool.record(tokens=30, usd=0.3)
    with pool.reserve(tokens=20, usd=0.2), pytest.raises(BudgetExceeded) as raised:
        pool.record(**amounts)  # type: ignore[arg-type]
    return raised.value


def test_a_refusal_carries_its_numbers_on_the_token_axis() -> None:
    error = refused(tokens=60)
    assert (error.axis, error.pool) == ("tokens", "run")
    assert (error.requested, error.used, error.reserved, error.attempted, error.cap) == (60, 30, 20, 110, 100)
    nanos = (error.requested_nanos, error.used_nanos, error.reserved_nanos, error.attempted_nanos, error.cap_nanos)
    assert nanos == (None,) * 5
    assert str(error) == (
        "budget exceeded on tokens in pool 'run': attempted 110 > cap 100 (30 used, 20 reserved, 60 requested); "
        "busy: it fits once calls in flight give back enough; reserve() with a timeout waits for that"
    )


def test_a_refusal_carries_its_numbers_on_the_dollar_axis_exactly() -> None:
    error = refused(usd=0.700000001)
    assert (error.axis, error.requested, error.used, error.reserved) == ("usd", 0.700000001, 0.3, 0.2)
    assert (error.attempted, error.cap) == (1.200000001, 1.0)
    nanos = (error.requested_nanos, error.used_nanos, error.reserved_nanos, error.attempted_nanos, error.cap_nanos)
    assert nanos == (700_000_001, 300_000_000, 200_000_000, 1_200_000_001, 10**9)
    assert str(error) == (
        "budget exceeded on usd in pool 'run': attempted 1.200000001 > cap 1 (0.3 used, 0.2 reserved, "
        "0.700000001 requested); used up: ask for less, reset() the pool or give it a larger cap"
    )


@pytest.mark.parametrize(("tokens", "exhausted"), [(51, False), (70, False), (71, True)])
def test_exhausted_distinguishes_busy_from_never(tokens: int, exhausted: bool) -> None:
    assert refused(tokens=tokens).exhausted is exhausted


def test_a_pool_without_a_name_is_not_named() -> None:
    with pytest.raises(BudgetExceeded) as raised:
        BudgetPool(token_cap=0).record(tokens=1)
    assert raised.value.pool is None
    assert str(raised.value).startswith("budget exceeded on tokens: attempted 1 > cap 0 ")


def test_an_error_made_by_hand_takes_what_token_budget_py_took() -> None:
    error = BudgetExceeded("tokens", 110, 100)
    assert (error.axis, error.attempted, error.cap, error.used, error.reserved) == ("tokens", 110, 100, 110, 0)
    assert error.args == (str(error),)
    assert error.exhausted


def test_an_error_made_by_hand_is_checked() -> None:
    with pytest.raises(ValueError, match='^axis must be "tokens" or "usd"$'):
        BudgetExceeded("dollars", 1, 0)
    with pytest.raises(TypeError, match="attempted must be an integer"):
        BudgetExceeded("tokens", 1.5, 1)
    for argument in ("requested", "reserved"):
        with pytest.raises(ValueError, match=f"^{argument} must not be negative"):
            BudgetExceeded("usd", 1, 1, **{argument: -1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^cap must not be negative"):
        BudgetExceeded("usd", 1, -1)
    with pytest.raises(TypeError, match="^pool must be a str, not int"):
        BudgetExceeded("usd", 1, 1, pool=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^attempted must be an int, float, Decimal or Fraction, not NoneType"):
        BudgetExceeded("usd", cap=1)
    with pytest.raises(TypeError, match="^resets_at must be a datetime or None, not int"):
        BudgetExceeded("usd", 1, 1, resets_at=5)  # type: ignore[arg-type]
    wrong: Any
    for wrong in (True, "5"):
        with pytest.raises(TypeError, match="^retry_after must be a number of seconds or None, not"):
            BudgetExceeded("usd", 1, 1, retry_after=wrong)
    for wrong in (-1, float("nan"), float("inf"), 10**400):
        with pytest.raises(ValueError, match="^retry_after must be a finite number of seconds, from 0 on$"):
            BudgetExceeded("usd", 1, 1, retry_after=wrong)


@pytest.mark.parametrize("keyword", ["requested", "reserved", "pool", "resets_at", "retry_after"])
def test_an_error_made_from_a_text_takes_nothing_else(keyword: str) -> None:
    values: dict[str, Any] = {"pool": "run", "resets_at": NOON}
    with pytest.raises(ValueError, match="^axis must be"):
        BudgetExceeded("the text", **{keyword: values.get(keyword, 5)})
    with pytest.raises(TypeError):
        BudgetExceeded("tokens", **{keyword: values.get(keyword, 5)})


def test_if_one_axis_is_busy_and_the_other_exhausted_the_error_names_the_exhausted_one() -> None:
    pool = BudgetPool(token_cap=100, usd_cap=1)
    pool.record(usd=1)
    with pool.reserve(tokens=100), pytest.raises(BudgetExceeded) as raised:
        pool.reserve(tokens=50, usd=0.5)
    assert (raised.value.axis, raised.value.exhausted) == ("usd", True)
    pool = BudgetPool(token_cap=100, usd_cap=1)
    pool.record(tokens=100, usd=1)
    with pytest.raises(BudgetExceeded) as raised:
        pool.record(tokens=1, usd=1)
    assert raised.value.axis == "tokens"


def refusal(
    tokens: tuple[int, int, int, int] = (0, 0, 0, UNBOUNDED),
    nanos: tuple[int, int, int, int] = (0, 0, 0, UNBOUNDED),
    *when: Any,
    kind: type[BudgetExceeded] = BudgetExceeded,
) -> BudgetExceeded:
    """Return the error that a pool makes from (requested, attempted, reserved, cap) on each axis and its period."""
    return kind._refusal_of(("run", *tokens, *nanos), *when) if when else kind._refusal("run", *tokens, *nanos)


@pytest.mark.parametrize("when", [(), (None, 0.0)])
def test_the_error_never_names_an_axis_of_which_nothing_is_asked(when: tuple[Any, ...]) -> None:
    error = refusal((500, 500, 0, 10**6), (0, 10**9 + 1, 0, 10**9), *when)
    assert (error.axis, error.requested, error.exhausted) == ("tokens", 500, False)
    error = refusal((0, 20, 0, 10), (5, 8, 3, 7), *when)
    assert (error.axis, error.requested_nanos, error.exhausted) == ("usd", 5, False)


@pytest.mark.parametrize(
    ("tokens", "nanos", "axis"),
    [
        ((9, 19, 0, 10), (11, 11, 0, 10), "tokens"),  # both are exhausted, though one request exceeds the whole cap
        ((5, 12, 5, 10), (9, 19, 0, 10), "usd"),  # exhausted comes before busy
        ((5, 9, 0, 10), (5, 12, 5, 10), "usd"),  # busy comes before an axis with room
        ((5, 5, 0, UNBOUNDED), (5, 9, 0, 10), "usd"),  # others wait: the axis with a cap is named
        ((11, 11, 0, 10), (12, 12, 0, 10), "tokens"),
        ((5, 12, 0, 10), (5, 12, 0, 10), "tokens"),
        ((5, 12, 5, 10), (5, 12, 5, 10), "tokens"),
        ((5, 9, 0, 10), (5, 9, 0, 10), "tokens"),
        ((0, 0, 0, UNBOUNDED), (0, 9, 0, 10), "usd"),  # nothing is asked of either axis, and others wait
        ((0, 0, 0, 10), (0, 0, 0, 10), "tokens"),
    ],
)
def test_the_error_names_the_axis_that_hinders_most(
    tokens: tuple[int, int, int, int], nanos: tuple[int, int, int, int], axis: str
) -> None:
    assert refusal(tokens, nanos).axis == axis


def test_if_others_wait_on_the_other_axis_the_error_has_no_cap() -> None:
    error = refusal((0, 9, 0, 10), (5 * 10**8, 5 * 10**8, 0, UNBOUNDED))
    assert (error.axis, error.requested, error.cap, error.cap_nanos) == ("usd", 0.5, None, None)
    assert (error.exhausted, error.retry_after) == (False, 0.0)
    assert str(error) == (
        "budget exceeded on usd in pool 'run': attempted 0.5, no cap (0 used, 0 reserved, 0.5 requested); "
        "busy: others wait for room, and they come first; reserve() with a timeout waits in line"
    )


@pytest.mark.parametrize(
    ("numbers", "when", "advice"),
    [
        ((11, 11, 0, 10), (), "the request is larger than the whole cap: ask for less or raise the cap"),
        ((11, 11, 0, 10), (NOON.timestamp(), None), "the request is larger than the whole cap: ask for less or raise "
         "the cap"),
        ((5, 15, 0, 10), (), "used up: reset() the pool or give it a larger cap"),
        ((10, 15, 0, 10), (), "used up: ask for less, reset() the pool or give it a larger cap"),
        ((5, 12, 0, 10), (None, None), "used up: ask for less, reset() the pool or give it a larger cap"),
        ((5, 15, 0, 10), (NOON.timestamp(), 60.0), "used up until 2026-03-30T12:00:00+00:00, when a new period begins: "
         "wait until then or raise the cap"),
        ((5, 12, 0, 10), (NOON.timestamp(), 60.0), "used up until 2026-03-30T12:00:00+00:00, when a new period begins: "
         "ask for less, wait until then or raise the cap"),
        ((5, 15, 0, 10), (NOON.timestamp(), None), "used up until 2026-03-30T12:00:00+00:00, and the call "
         "does not fit even then: reset() the pools or raise their caps"),
        ((10, 15, 5, 10), (NOON.timestamp(), 0.0), "busy: it fits once calls in flight give back enough; reserve() "
         "with a timeout waits for that"),
        ((5, 10, 5, 10), (), "busy: others wait for room, and they come first; reserve() with a timeout waits in line"),
    ],
)  # fmt: skip
def test_the_text_distinguishes_three_refusals_and_says_what_helps(
    numbers: tuple[int, int, int, int], when: tuple[Any, ...], advice: str
) -> None:
    assert str(refusal(numbers, (0, 0, 0, 0), *when)).partition("; ")[2] == advice


@pytest.mark.parametrize(
    ("numbers", "when", "why"),
    [
        ((5, 12, 5, 10), (), "no room came in time"),
        ((5, 12, 0, 10), (), "no room came in time"),
        ((5, 12, 5, 10), (NOON.timestamp(), 0.0), "no room came in time"),
        ((5, 12, 0, 10), (NOON.timestamp(), 60.0), "used up until 2026-03-30T12:00:00+00:00"),
        ((5, 10, 0, 10), (NOON.timestamp(), 0.0), "others were before it, and no room came in time"),
        ((5, 5, 0, UNBOUNDED), (), "others were before it, and no room came in time"),
    ],
)
def test_the_text_of_a_timeout_says_why_no_room_came(
    numbers: tuple[int, int, int, int], when: tuple[Any, ...], why: str
) -> None:
    text = str(refusal(numbers, (0, 0, 0, 0), *when, kind=BudgetTimeout))
    assert text.startswith("budget timeout on tokens in pool 'run': attempted ")
    assert text.partition("; ")[2] == f"{why}: wait longer, ask for less, or set larger caps"


def test_the_text_of_an_overrun_says_that_the_spend_is_recorded() -> None:
    assert str(BudgetOverrun._of("usd", 5, 20, 10, 15, "run", NOON.timestamp(), 60.0)) == (
        "budget overrun on usd in pool 'run': attempted 0.00000002 > cap 0.000000015 "
        "(0.000000005 used, 0.00000001 reserved, 0.000000005 requested); the spend is recorded: do not commit it again"
    )


def test_without_a_window_retry_after_distinguishes_busy_from_never() -> None:
    busy, never = refused(tokens=60), refused(tokens=80)
    assert (busy.resets_at, busy.retry_after) == (None, 0.0)
    assert (never.resets_at, never.retry_after) == (None, None)
    assert (refusal((5, 10, 5, 10)).retry_after, refusal((5, 12, 0, 10)).retry_after) == (0.0, None)


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_window_the_error_says_when_and_in_how_many_seconds(kind: type[BudgetExceeded]) -> None:
    by_pool = refusal((5, 12, 0, 10), (0, 0, 0, 0), NOON.timestamp(), 90.5, kind=kind)
    of_one_axis = kind._of("tokens", 5, 12, 0, 10, "run", NOON.timestamp(), 90.5)
    berlin = NOON.astimezone(timezone(timedelta(hours=2)))
    by_hand = kind("tokens", 12, 10, requested=5, pool="run", resets_at=berlin, retry_after=90.5)
    for error in (by_pool, of_one_axis, by_hand):
        assert (error.resets_at, error.retry_after) == (NOON, 90.5)
        assert error.resets_at is not None
        assert error.resets_at.tzinfo is timezone.utc
        assert str(error) == str(by_pool)


def test_an_error_made_by_hand_says_whether_asking_again_helps() -> None:
    assert BudgetExceeded("tokens", 110, 100).retry_after is None
    assert BudgetExceeded("tokens", 110, 100, reserved=10).retry_after == 0.0
    assert BudgetExceeded("tokens", 110, 100, reserved=10, retry_after=5).retry_after == 5.0
    assert BudgetExceeded("tokens", 110, 100).resets_at is None
    assert BudgetOverrun._of("tokens", 5, 12, 0, 10, None).retry_after is None


# ---------------------------------------------------------------- behaviour of every exception


@pytest.mark.parametrize("kind", KINDS)
def test_args_can_be_set_and_are_shown(kind: type[BudgetExceeded]) -> None:
    error = kind._of("usd", 5, 20, 10, 15, "run")
    text = str(error)
    assert error.args == (text,)
    error.args = (f"while summarising: {error.args[0]}",)
    assert (str(error), error.args) == (f"while summarising: {text}", (f"while summarising: {text}",))
    assert repr(error) == f"<{kind.__name__}: while summarising: {text}>"
    assert (error.axis, error.requested_nanos, error.pool) == ("usd", 5, "run")
    error.args = ("one", 2)
    assert (str(error), error.args) == ("('one', 2)", ("one", 2))
    error.args = ()
    assert (str(error), error.args) == ("", ())
    with pytest.raises(TypeError):
        error.args = 5  # type: ignore[assignment]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_made_from_class_and_args_shows_the_text_and_has_no_numbers(kind: type[BudgetExceeded]) -> None:
    original = kind._of("usd", 5, 20, 10, 15, "run", NOON.timestamp(), 60.0)
    again = kind(*original.args)
    assert type(again) is kind
    assert (str(again), again.args) == (str(original), original.args)
    assert repr(again) == repr(original)
    assert {part: getattr(again, part) for part in ALL_PARTS} == dict.fromkeys(ALL_PARTS)
    assert isinstance(again, TimeoutError) is (kind is BudgetTimeout)
    again.args = ("other",)
    assert str(again) == "other"


@pytest.mark.parametrize(
    "make",
    [
        lambda kind: kind._of("usd", 5, 20, 10, 15, "run"),
        lambda kind: kind("usd", 2e-8, 1.5e-8, requested=5e-9, reserved=1e-8, pool="run"),
        lambda kind: refusal((0, 0, 0, UNBOUNDED), (5, 20, 10, 15), kind=kind),
        lambda kind: refusal((0, 0, 0, UNBOUNDED), (5, 20, 10, 15), NOON.timestamp(), 60.0, kind=kind),
        lambda kind: kind("a text"),
    ],
)
@pytest.mark.parametrize("args", [None, ("a", "b"), ()])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_survives_pickle_and_copy_whole(
    make: Callable[[Any], Any], args: Any, kind: type[BudgetExceeded], duplicate: Callable[[Any], Any]
) -> None:
    error = make(kind)
    vars(error)["request_id"] = "kept"
    if args is not None:
        error.args = args
    if sys.version_info >= (3, 11):
        error.add_note("a note")
    again = duplicate(error)
    assert type(again) is kind
    assert (vars(again)["request_id"], again.args, str(again)) == ("kept", error.args, str(error))
    assert getattr(again, "__notes__", None) == getattr(error, "__notes__", None)
    assert {part: getattr(again, part) for part in ALL_PARTS} == {part: getattr(error, part) for part in ALL_PARTS}


@pytest.mark.parametrize("make", [lambda: BudgetTimeout("no room"), lambda: BudgetTimeout("usd", 1.5, 1.0, pool="run")])
def test_a_timeout_is_a_timeout_error_without_the_fields_of_a_system_error(make: Callable[[], BudgetTimeout]) -> None:
    error = make()
    assert isinstance(error, TimeoutError)
    assert (error.errno, error.strerror, error.filename) == (None, None, None)
    error.args = (110, "a text")
    assert (error.errno, error.args, str(error)) == (None, (110, "a text"), "(110, 'a text')")


class Renamed(BudgetExceeded):
    """A user's subclass that has a constructor of its own and never calls ours."""

    def __init__(self, message: str) -> None:
        self.message = message


class Shouting(BudgetOverrun):
    """A user's subclass that builds its text from the inherited one, and from args."""

    def __str__(self) -> str:
        return f"{super().__str__().upper()} {len(self.args)}"


def test_subclasses_of_users_work_and_survive_pickle() -> None:
    error = Renamed("over")
    again = pickle.loads(pickle.dumps(error))
    for one in (error, again):
        assert (type(one), one.message, one.args, str(one)) == (Renamed, "over", ("over",), "over")
        assert (one.axis, one.cap) == (None, None)
    with pytest.raises(BudgetExceeded, match="BUDGET OVERRUN ON USD: .* 1$"):
        raise pickle.loads(pickle.dumps(Shouting("usd", 2, 1)))


def test_an_error_that_forwards_to_another_errors_attributes_has_its_numbers() -> None:
    class Wrapping(RuntimeError, BudgetExceeded):
        """What Ray raises in place of an error of a remote task."""

        def __init__(self, cause: BudgetExceeded) -> None:
            self.cause = cause
            self.args = (cause,)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.cause, name)

    error = Wrapping(BudgetExceeded._refusal("run", 60, 110, 20, 100, 0, 0, 0, UNBOUNDED))
    assert (error.axis, error.attempted, error.pool, error.retry_after) == ("tokens", 110, "run", 0.0)
    assert error.args == (error.cause,)
    assert str(error) == str(error.cause)


def test_the_repr_is_one_line() -> None:
    assert repr(refused(tokens=60)) == f"<BudgetExceeded: {refused(tokens=60)}>"


def test_the_kinds_are_caught_where_they_belong() -> None:
    assert issubclass(BudgetOverrun, BudgetExceeded)
    assert issubclass(BudgetTimeout, (BudgetExceeded, TimeoutError))
    assert all(issubclass(kind, RuntimeError) for kind in (ReservationClosed, PoolClosed, PoolForked))
    assert not issubclass(BudgetExceeded, RuntimeError)
