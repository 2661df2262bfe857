"""Refusals say in full what is wrong, and a number counts by its own exact value."""

from __future__ import annotations

import copy
import numbers
from typing import Any

import pytest

from token_budget import BudgetEvent, BudgetPool


def test_copying_a_group_says_why_it_cannot_be() -> None:
    with pytest.raises(TypeError, match=r"^KeyedPools cannot be copied or pickled: the copy would be a second budget"):
        copy.copy(BudgetPool().keyed())


def test_an_event_says_that_it_never_changes() -> None:
    seen: list[BudgetEvent] = []
    pool = BudgetPool()
    pool.subscribe(seen.append)
    pool.record(tokens=1)
    with pytest.raises(AttributeError, match=r"^a BudgetEvent never changes$"):
        seen[0].tokens = 2  # type: ignore[misc]


def test_names_that_are_similar_to_a_cap_are_listed_with_commas() -> None:
    with pytest.raises(ValueError, match=r" Similar names are set: X_TOKENS_CAP, XTOKEN_CAP\. "):
        BudgetPool.from_env(prefix="X_", environ={"X_TOKENS_CAP": "1", "XTOKEN_CAP": "1"})


def test_a_registered_number_that_is_wider_than_a_float_counts_by_its_exact_ratio() -> None:
    class Wide:
        def as_integer_ratio(self) -> tuple[int, int]:
            return 10**18 - 1, 10**9

        def __float__(self) -> float:
            return 1e9

    numbers.Real.register(Wide)
    amount: Any = Wide()
    pool = BudgetPool()
    pool.record(usd=amount)
    assert pool.snapshot().usd_used_nanos == 10**18 - 1


def test_the_error_of_a_bad_setting_begins_with_its_name() -> None:
    bad: Any = "daily"
    with pytest.raises(TypeError, match=r"^window must be a Window \(Window\.daily\(\) and so on\), not str$"):
        BudgetPool(window=bad)
    with pytest.raises(ValueError, match=r"^share must be above 0 and at most 10 \(1,000 %\): 0\.8 is 80 %$"):
        BudgetPool().on_threshold(80, print)
    with pytest.raises(TypeError, match=r"^a pool makes its events: see BudgetPool\.subscribe$"):
        BudgetEvent()


def test_a_registered_number_that_is_not_finite_is_refused_by_name() -> None:
    class Endless:
        def as_integer_ratio(self) -> tuple[int, int]:
            raise OverflowError

    numbers.Real.register(Endless)
    amount: Any = Endless()
    with pytest.raises(ValueError, match=r"^usd must be finite, got a Endless that is not$"):
        BudgetPool().record(usd=amount)


def test_new_caps_are_refused_by_their_names() -> None:
    bad: Any = "many"
    pool = BudgetPool()
    with pytest.raises(TypeError, match=r"^token_cap must"):
        pool.set_caps(token_cap=bad)
    with pytest.raises(TypeError, match=r"^usd_cap must"):
        pool.set_caps(usd_cap=bad)


def test_no_more_than_five_similar_names_are_listed() -> None:
    environ = {f"{letter}_TOKEN_CAP": "1" for letter in "ABCDEFG"}
    with pytest.raises(ValueError, match="Similar names are set") as raised:
        BudgetPool.from_env(prefix="X_", environ=environ)
    assert str(raised.value).count("_TOKEN_CAP") == 5 + 1


def test_arguments_are_refused_by_their_names() -> None:
    bad: Any = "many"
    with pytest.raises(TypeError, match=r"^token_cap must"):
        BudgetPool(token_cap=bad)
    with pytest.raises(TypeError, match=r"^usd_cap must"):
        BudgetPool().keyed().set_caps(usd_cap=bad)
    with pytest.raises(TypeError, match=r"^timeout must be a number of seconds or None, not str$"):
        BudgetPool().reserve(timeout=bad)
    with pytest.raises(ValueError, match=r"^timeout must be a number of seconds from 0 on, got -1\.0$"):
        BudgetPool().reserve(timeout=-1.0)


def test_a_share_of_ten_times_the_cap_is_accepted() -> None:
    BudgetPool().on_threshold(10, print)()


def test_awaiting_one_request_twice_says_what_to_do() -> None:
    request = BudgetPool().areserve()
    request.close()
    with pytest.raises(RuntimeError, match=r"^areserve\(\) is awaited or entered once: call it again"):
        request.close()
        request.__await__()
