"""`_snapshot`: fields, one-line text, value semantics."""

from __future__ import annotations

import dataclasses
import json
import pickle
import pprint
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from token_budget import BudgetOverrun, BudgetPool, BudgetSnapshot, Window

NOON = datetime(2026, 3, 30, 12, tzinfo=timezone.utc)


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
    assert dataclasses.replace(snapshot) == snapshot


@pytest.mark.parametrize(
    ("snapshot", "text"),
    [
        (busy(), "run: tokens 1,200 + 300 held / 10,000 (15%) | usd 0.0036 + 0.0009 held / 0.5000 (0%) | 1 in flight"),
        (BudgetPool().snapshot(), "tokens 0 | usd 0.0000 | 0 in flight"),
        (BudgetSnapshot(5), "tokens 5 | usd 0.0000 | 0 in flight"),
        (BudgetSnapshot(usd_used=5), "tokens 0 | usd 5.0000 | 0 in flight"),
        # If only one axis has a cap, the other axis is shown only if something was spent on it.
        (BudgetPool(token_cap=0).snapshot(), "tokens 0 / 0 (100%) | 0 in flight"),
        (BudgetSnapshot(250, token_cap=1000, name="batch"), "batch: tokens 250 / 1,000 (25%) | 0 in flight"),
        (BudgetSnapshot(250, 0.5, 1000), "tokens 250 / 1,000 (25%) | usd 0.5000 | 0 in flight"),
        (BudgetSnapshot(token_cap=10, usd_reserved=0.5), "tokens 0 / 10 (0%) | usd 0.0000 + 0.5000 held | 0 in flight"),
        (BudgetSnapshot(usd_used=0.5, usd_cap=1), "usd 0.5000 / 1.0000 (50%) | 0 in flight"),
        (BudgetSnapshot(7, 0.5, usd_cap=1), "tokens 7 | usd 0.5000 / 1.0000 (50%) | 0 in flight"),
        (BudgetSnapshot(usd_cap=1, tokens_reserved=7), "tokens 0 + 7 held | usd 0.0000 / 1.0000 (0%) | 0 in flight"),
        (BudgetSnapshot(token_cap=0, usd_cap=0), "tokens 0 / 0 (100%) | usd 0.0000 / 0.0000 (100%) | 0 in flight"),
    ],
)
def test_the_text_is_one_line_for_a_display(snapshot: BudgetSnapshot, text: str) -> None:
    assert str(snapshot) == text
    assert repr(snapshot) == f"<BudgetSnapshot {text}>"


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        (0, "0.0000"),
        (1e-9, "0.000000001"),
        (0.00003, "0.00003"),
        (0.00005, "0.00005"),
        (0.0001, "0.0001"),
        (0.00012, "0.00012"),
        (0.000999999, "0.000999999"),
        (0.0009, "0.0009"),
        (0.001, "0.0010"),
        (0.001234, "0.0012"),
        (12.345678, "12.3457"),
        (1234.5, "1,234.5000"),
    ],
)
def test_an_amount_above_0_never_reads_as_0(usd: float, text: str) -> None:
    assert str(BudgetSnapshot(usd_used=usd)) == f"tokens 0 | usd {text} | 0 in flight"
    assert str(BudgetSnapshot(usd_cap=usd)) == f"usd 0.0000 / {text} ({0 if usd else 100}%) | 0 in flight"
    if usd:
        assert str(BudgetSnapshot(usd_reserved=usd)) == f"tokens 0 | usd 0.0000 + {text} held | 0 in flight"


def test_amounts_of_a_tiny_cap_are_shown_with_the_digits_that_they_need() -> None:
    pool = BudgetPool(usd_cap=0.00004)
    pool.record(usd=0.00003)
    assert str(pool.snapshot()) == "usd 0.00003 / 0.00004 (75%) | 0 in flight"


def test_a_snapshot_is_a_value() -> None:
    assert busy() == busy()
    assert hash(busy()) == hash(busy()) != hash(BudgetPool().snapshot())
    assert busy() != BudgetPool().snapshot()
    assert busy() != "run"
    assert pickle.loads(pickle.dumps(busy())) == busy()
    with pytest.raises(AttributeError):
        busy().tokens_used = 5  # type: ignore[misc]


class Marked(BudgetSnapshot):
    """A user's subclass."""


def test_a_subclass_of_a_snapshot_survives_pickle() -> None:
    snapshot = Marked(5, token_cap=10)
    again = pickle.loads(pickle.dumps(snapshot))
    assert (type(again), again, again.tokens_remaining) == (Marked, snapshot, 5)


def test_a_snapshot_made_by_hand_equals_one_that_a_pool_made() -> None:
    made = BudgetSnapshot(1200, 0.0036, 10_000, 0.5, 8500, 0.4955, in_flight=1, name="run")
    assert made == busy()
    assert made == BudgetSnapshot(
        tokens_used=1200, usd_used=0.0036, token_cap=10_000, usd_cap=0.5, tokens_reserved=300, usd_reserved=0.0009,
        in_flight=1, name="run",
    )  # fmt: skip
    assert BudgetSnapshot() == BudgetPool().snapshot()
    assert BudgetSnapshot(token_cap=10, tokens_reserved=4).tokens_remaining == 6


def test_a_snapshot_made_by_hand_must_add_up() -> None:
    with pytest.raises(ValueError, match=r"^tokens_used \+ tokens_remaining must not be more than the cap$"):
        BudgetSnapshot(tokens_used=5, token_cap=10, tokens_remaining=6)
    assert BudgetSnapshot(token_cap=10, tokens_remaining=6, tokens_reserved=5).tokens_remaining == 5
    assert BudgetSnapshot(token_cap=10, tokens_remaining=0).tokens_reserved == 10
    assert BudgetSnapshot(tokens_remaining=5).tokens_reserved == 0


@pytest.mark.parametrize("prefix", ["tokens", "usd"])
@pytest.mark.parametrize("part", ["used", "reserved", "remaining", "cap"])
def test_the_amounts_of_a_snapshot_made_by_hand_are_checked_and_named(prefix: str, part: str) -> None:
    parameter = "token_cap" if (prefix, part) == ("tokens", "cap") else f"{prefix}_{part}"
    cap = {"token_cap": 10, "usd_cap": 10} if part == "remaining" else {}
    with pytest.raises(TypeError, match=f"^{prefix}_{part} must be an? "):
        BudgetSnapshot(**{**cap, parameter: True})  # type: ignore[arg-type]


def test_the_other_fields_of_a_snapshot_made_by_hand_are_checked_and_named() -> None:
    with pytest.raises(TypeError, match="^in_flight must be an integer, not str"):
        BudgetSnapshot(in_flight="1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^name must be a str, not int"):
        BudgetSnapshot(name=1)  # type: ignore[arg-type]
    for argument in ("window_start", "resets_at"):
        with pytest.raises(TypeError, match=f"^{argument} must be a datetime or None, not float"):
            BudgetSnapshot(**{argument: 5.0})  # type: ignore[arg-type]


def test_times_are_converted_to_utc() -> None:
    berlin = timezone(timedelta(hours=2))
    snapshot = BudgetSnapshot(window_start=NOON.astimezone(berlin), resets_at=NOON)
    for moment in (snapshot.window_start, snapshot.resets_at):
        assert moment == NOON
        assert moment.tzinfo is timezone.utc


def test_the_text_stays_one_line_with_any_name() -> None:
    assert str(BudgetPool(name="a\nb\x1b[2J").snapshot()).startswith(r"'a\nb\x1b[2J': tokens 0")


def test_a_snapshot_prints_matches_and_is_replaced_like_a_dataclass() -> None:
    pool = BudgetPool(usd_cap=10**9)
    pool.record(usd=6_401_000.1)
    pool.record(tokens=10**18)
    pool.record(tokens=10**18)
    snapshot = pool.snapshot()
    assert pprint.pformat({"a": snapshot}, width=20).count("\n") == 0
    assert dataclasses.replace(busy(), tokens_used=5).tokens_remaining == 9695
    assert snapshot.__dataclass_params__.frozen
    match busy():
        case BudgetSnapshot(used, _, cap):
            assert (used, cap) == (1200, 10_000)
        case _:
            pytest.fail("no match")


def test_dataclass_tools_work_on_a_snapshot_as_on_token_budget_pys() -> None:
    assert dataclasses.asdict(busy()) == {
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
    assert dataclasses.replace(busy(), name="other").name == "other"
    assert all(map(dataclasses.is_dataclass, (BudgetSnapshot, busy())))
    assert [field.name for field in dataclasses.fields(BudgetSnapshot)] == [*dataclasses.asdict(busy())]
    family = BudgetSnapshot(5, children=(BudgetSnapshot(3),))
    assert dataclasses.asdict(family)["children"][0]["tokens_used"] == 3
    assert dataclasses.replace(family) == family


def test_to_dict_has_every_field_ready_for_json() -> None:
    clock = NOON.timestamp
    pool = BudgetPool(token_cap=10_000, usd_cap=0.5, name="run", window=Window.daily(clock=clock))
    pool.record(tokens=1200, usd=0.0036)
    child = pool.child(name="step")
    with child.reserve(tokens=300, usd=0.0009):
        fields = pool.snapshot(tree=True).to_dict()
    step: dict[str, Any] = {
        "tokens_used": 0,
        "usd_used": 0.0,
        "token_cap": None,
        "usd_cap": None,
        "tokens_remaining": None,
        "usd_remaining": None,
        "tokens_reserved": 300,
        "usd_reserved": 0.0009,
        "in_flight": 1,
        "name": "step",
        "window_start": None,
        "resets_at": None,
        "children": [],
        "usd_used_nanos": 0,
        "usd_reserved_nanos": 900_000,
        "usd_cap_nanos": None,
        "usd_remaining_nanos": None,
    }
    assert fields == {
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
        "window_start": "2026-03-30T00:00:00+00:00",
        "resets_at": "2026-03-31T00:00:00+00:00",
        "children": [step],
        "usd_used_nanos": 3_600_000,
        "usd_reserved_nanos": 900_000,
        "usd_cap_nanos": 500_000_000,
        "usd_remaining_nanos": 495_500_000,
    }
    assert json.loads(json.dumps(fields)) == fields


def test_to_dict_works_on_a_chain_deeper_than_the_recursion_limit() -> None:
    snapshot = BudgetSnapshot(0)
    for depth in range(1, 2000):
        snapshot = BudgetSnapshot(depth, children=(snapshot,))
    fields = snapshot.to_dict()
    depths = [fields["tokens_used"]]
    while fields["children"]:
        (fields,) = fields["children"]
        depths.append(fields["tokens_used"])
    assert depths == [*range(1999, -1, -1)]
