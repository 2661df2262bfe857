"""The fuzz targets pass on random bytes. With atheris they are searched further (see `fuzz.py`)."""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest

import fuzz
from token_budget import _change, _ledger, _line, _money, _periods

COUNTS = {"amounts": 3000, "operations": 2000, "families": 300}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::RuntimeWarning")  # from a task that never began
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_target_holds_on_random_bytes(name: str, full: bool) -> None:
    source = random.Random(name)
    for _ in range(100_000 if full else COUNTS[name]):
        fuzz.TARGETS[name](source.randbytes(source.randrange(400)))


@pytest.mark.parametrize(
    ("name", "broken"),
    [("amounts", lambda usd, _name="usd": round(float(usd) * 1e9)), ("operations", lambda _usd, _name="usd": 0)],
)
def test_a_target_notices_a_wrong_conversion(
    monkeypatch: pytest.MonkeyPatch, name: str, broken: Callable[..., int]
) -> None:
    from token_budget import _pool

    monkeypatch.setattr(_money, "to_nanos", broken)
    monkeypatch.setattr(_pool, "to_nanos", broken)
    with pytest.raises((AssertionError, ValueError, OverflowError)):
        test_a_target_holds_on_random_bytes(name, full=False)


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [
        (_line, "hopeless", lambda *_: False),
        (_ledger, "blocker", lambda *_: None),
        (_periods, "begin_anew", lambda *_: None),
        (_change, "tell", lambda *_: None),
    ],
)
def test_families_notice_a_broken_rule(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, broken: Callable[..., Any]
) -> None:
    monkeypatch.setattr(module, name, broken)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((AssertionError, KeyError)):
            test_a_target_holds_on_random_bytes("families", full=False)
        gc.collect()
