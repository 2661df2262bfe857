"""`_snapshot`: fields, one-line text, value semantics."""

from __future__ import annotations

import dataclasses
import pickle
import pprint

import pytest

from token_budget import BudgetOverrun, BudgetPool, BudgetSnapshot


def busy() -> BudgetSnapshot:
    pool = BudgetPool(token_cap=10_000, usd_cap=0.5, name="run")
    pool.record(tokens=1200, usd=0.0036)
    with pool.reserve(tokens=300, usd=0.0009):
        return pool.snapshot()


def test_the_fields() -> None:
    snapshot = busy()
    assert (snapshot.tokens_used, snapshot.tokens_reserved, snapshot.tokens_remaining) == (1200, 300, 8500)
    assert (snapshot.usd_used, snapshot.usd_reserved, snapshot.usd_remaining) == (0.0036, 0.0009, 0.4955)
    assert (snapshot.usd_used_nanos, snapshot.usd_reserved_nanos) == (3_600_000, 900_000)
    assert (snapshot.usd_cap_nanos, snapshot.usd_remaining_nanos) == (500_000_000, 495_500_000)
    assert (snapshot.token_cap, snapshot.usd_cap, snapshot.in_flight, snapshot.name) == (10_000, 0.5, 1, "run")


def test_without_caps_there_is_no_remaining() -> None:
    snapshot = BudgetPool().snapshot()
    assert (snapshot.token_cap, snapshot.usd_cap, snapshot.usd_cap_nanos) == (None, None, None)
    assert (snapshot.tokens_remaining, snapshot.usd_remaining, snapshot.usd_remaining_nanos) == (None, None, None)


def test_after_an_overrun_remaining_is_negative() -> None:
    pool = BudgetPool(token_cap=10, usd_cap=0.1)
    with pytest.raises(BudgetOverrun):
        pool.record(tokens=15, usd=0.25, force=True)
    snapshot = pool.snapshot()
    assert (snapshot.tokens_remaining, snapshot.usd_remaining) == (-5, -0.15)
    assert str(snapshot) == "tokens 15 / 10 (150%) | usd 0.2500 / 0.1000 (250%) | 0 in flight"
    assert BudgetSnapshot(15, 0.25, 10, 0.1, -5, -0.15) == snapshot
    assert dataclasses.replace(snapshot) == snapshot  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("snapshot", "text"),
    [
        (busy(), "run: tokens 1,200 + 300 held / 10,000 (15%) | usd 0.0036 + 0.0009 held / 0.5000 (0%) | 1 in flight"),
        (BudgetPool().snapshot(), "tokens 0 | usd 0.0000 | 0 in flight"),
        (BudgetPool(token_cap=0).snapshot(), "tokens 0 / 0 (100%) | usd 0.0000 | 0 in flight"),
    ],
)
def test_the_text_is_one_line_for_a_display(snapshot: BudgetSnapshot, text: str) -> None:
    assert str(snapshot) == text
    assert repr(snapshot) == f"<BudgetSnapshot {text}>"


def test_it_is_a_value() -> None:
    assert busy() == busy()
    assert hash(busy()) == hash(busy()) != hash(BudgetPool().snapshot())
    assert busy() != BudgetPool().snapshot()
    assert busy() != "run"
    assert pickle.loads(pickle.dumps(busy())) == busy()
    with pytest.raises(AttributeError):
        busy().tokens_used = 5  # type: ignore[misc]


def test_one_made_by_hand_equals_one_that_a_pool_made() -> None:
    made = BudgetSnapshot(1200, 0.0036, 10_000, 0.5, 8500, 0.4955, in_flight=1, name="run")
    assert made == busy()
    assert made == BudgetSnapshot(
        tokens_used=1200, usd_used=0.0036, token_cap=10_000, usd_cap=0.5, tokens_reserved=300, usd_reserved=0.0009,
        in_flight=1, name="run",
    )  # fmt: skip
    assert BudgetSnapshot() == BudgetPool().snapshot()
    assert BudgetSnapshot(token_cap=10, tokens_reserved=4).tokens_remaining == 6


def test_one_made_by_hand_must_add_up() -> None:
    with pytest.raises(ValueError, match=r"^tokens_used \+ tokens_remaining must not be more than the cap$"):
        BudgetSnapshot(tokens_used=5, token_cap=10, tokens_remaining=6)
    assert BudgetSnapshot(token_cap=10, tokens_remaining=6, tokens_reserved=5).tokens_remaining == 5
    assert BudgetSnapshot(token_cap=10, tokens_remaining=0).tokens_reserved == 10
    assert BudgetSnapshot(tokens_remaining=5).tokens_reserved == 0


@pytest.mark.parametrize("prefix", ["tokens", "usd"])
@pytest.mark.parametrize("part", ["used", "reserved", "remaining", "cap"])
def test_what_one_is_made_of_by_hand_is_checked_and_named(prefix: str, part: str) -> None:
    parameter = "token_cap" if (prefix, part) == ("tokens", "cap") else f"{prefix}_{part}"
    cap = {"token_cap": 10, "usd_cap": 10} if part == "remaining" else {}
    with pytest.raises(TypeError, match=f"^{prefix}_{part} must be an? "):
        BudgetSnapshot(**{**cap, parameter: True})  # type: ignore[arg-type]


def test_the_rest_of_what_one_is_made_of_is_checked_and_named() -> None:
    with pytest.raises(TypeError, match="^in_flight must be an integer, not str"):
        BudgetSnapshot(in_flight="1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^name must be a str, not int"):
        BudgetSnapshot(name=1)  # type: ignore[arg-type]


def test_the_text_stays_one_line_whatever_the_name() -> None:
    assert str(BudgetPool(name="a\nb\x1b[2J").snapshot()).startswith(r"'a\nb\x1b[2J': tokens 0")


def test_it_prints_matches_and_goes_through_replace_as_a_dataclass_does() -> None:
    pool = BudgetPool(usd_cap=10**9)
    pool.record(usd=6_401_000.1)
    pool.record(tokens=10**18)
    pool.record(tokens=10**18)
    snapshot = pool.snapshot()
    assert pprint.pformat({"a": snapshot}, width=20).count("\n") == 0
    assert dataclasses.replace(busy(), tokens_used=5).tokens_remaining == 9695  # type: ignore[type-var]
    assert snapshot.__dataclass_params__.frozen
    match busy():
        case BudgetSnapshot(used, _, cap):
            assert (used, cap) == (1200, 10_000)
        case _:
            pytest.fail("no match")


def test_dataclass_tools_work_on_it_as_on_token_budget_pys() -> None:
    assert dataclasses.asdict(busy()) == {  # type: ignore[call-overload]
        "tokens_used": 1200,
        "usd_used": 0.0036,
        "token_cap": 10_000,
        "usd_cap": 0.5,
        "tokens_remaining": 8500,
        "usd_remaining": 0.4955,
        "tokens_reserved": 300,
        "usd_reserved": 0.0009,
        "in_flight": 1,
        "name": "run",
        "window_start": None,
        "resets_at": None,
        "children": (),
    }
    assert dataclasses.replace(busy(), name="other").name == "other"  # type: ignore[type-var]
