"""The fuzz targets hold on random bytes; with atheris they are searched (see `fuzz.py`)."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

import fuzz
from token_budget import _money


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_target_holds_on_random_bytes(name: str, full: bool) -> None:
    source = random.Random(name)
    for _ in range(100_000 if full else 3000):
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
