"""A refusal is found wherever a framework has put it, and the ways into the hooks lead there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meters import StorePool, meter_of
from token_budget import BudgetExceeded, BudgetPool, PoolClosed, PoolForked
from token_budget.metering import (
    LoopDetected,
    ModelBlocked,
    Refusal,
    RunStopped,
    UnknownModel,
    Unmetered,
    _clients,
    refusal,
)
from token_budget.metering._charge import Charge

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    "one",
    [
        BudgetExceeded("usd", 2, 1),
        PoolClosed("closed"),
        PoolForked("forked"),
        *(kind("no") for kind in (Refusal, Unmetered, ModelBlocked, RunStopped, LoopDetected, UnknownModel)),
    ],
)
def test_a_refusal_is_found_in_every_chain(one: Exception) -> None:
    assert refusal(one) is one
    caused, during = RuntimeError("caused"), RuntimeError("during")
    caused.__cause__ = during
    during.__context__ = one
    assert refusal(caused) is one
    assert refusal(None) is None
    group = Grouped("several", [ValueError(), caused])
    assert refusal(group) is one


class Grouped(Exception):
    """An exception group, also on Python 3.10."""

    def __init__(self, text: str, exceptions: list[Exception]) -> None:
        super().__init__(text)
        self.exceptions = tuple(exceptions)


@pytest.mark.parametrize("exceptions", [None, {"task": ValueError()}, 7, ["text", None], "text"])
def test_an_error_with_something_else_named_exceptions_is_looked_through(exceptions: Any) -> None:
    one, outer = RunStopped("no"), ValueError()
    outer.exceptions = exceptions  # type: ignore[attr-defined]
    assert refusal(outer) is None
    outer.__cause__ = one
    assert refusal(outer) is one


def test_a_chain_without_a_refusal_or_with_a_circle_has_none() -> None:
    first, second = ValueError(), KeyError()
    first.__context__ = second
    second.__cause__ = first
    assert refusal(first) is None
    assert refusal(OSError("gone")) is None


def test_the_refusals_are_of_one_kind_and_are_no_answers_of_a_pool() -> None:
    for kind in (Unmetered, ModelBlocked, RunStopped, LoopDetected, UnknownModel):
        assert issubclass(kind, Refusal)
    assert not issubclass(Refusal, BudgetExceeded)
    assert issubclass(UnknownModel, LookupError)


def test_a_meter_hands_clients_on_to_the_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = meter_of()
    told: list[Any] = []

    def hears(answer: object) -> Callable[..., object]:
        def hear(*given: object, **more: object) -> object:
            told.append((*given, more))
            return answer

        return hear

    client: Any = object()
    for name, answer in (("wrap", client), ("http_client", "client"), ("patch", "block")):
        monkeypatch.setattr(_clients, name, hears(answer))
    assert meter.wrap(client) is client
    assert meter.http_client(dict, timeout=5) == "client"
    block: Any = meter.patch()
    assert block == "block"
    assert told == [(meter, client, {}), (meter, dict, {"timeout": 5}), (meter, {})]


def test_what_a_forked_child_may_not_record_is_told() -> None:
    store = StorePool(BudgetPool())
    store.down = PoolForked("forked")
    with pytest.raises(PoolForked):
        Charge([store]).record(1, 1, lenient=True)


def test_a_forked_pool_settles_nothing_and_says_so_when_it_is_asked(caplog: pytest.LogCaptureFixture) -> None:
    pool = BudgetPool()
    charge = Charge([pool])
    held = charge.reserve(1, 1, 0)
    pool._family.fork()  # what a child does to its copy
    assert held.commit(1, 1) is None
    assert caplog.text == ""
    with pytest.raises(PoolForked):
        charge.closed()
    pool.detach()
    assert not charge.closed()
