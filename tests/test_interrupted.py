"""One interrupt before any instruction: no waiter stays asleep, and each event is delivered exactly once."""

from __future__ import annotations

import gc
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from points import Points, handled
from shapes import SHAPES, waiting
from token_budget import BudgetPool, _family
from token_budget._waiting import Waiter

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # an interrupt may drop a reservation


@pytest.fixture(autouse=True)
def _no_collections() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def codes_run_by(operation: Callable[[], object]) -> set[types.CodeType]:
    """Return the code of the package that an operation runs."""
    found: set[types.CodeType] = set()

    def look(frame: types.FrameType, event: str, _argument: object) -> None:
        if event == "call" and "token_budget" in frame.f_globals.get("__name__", ""):
            found.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        operation()
    except Exception:  # noqa: BLE001 - a refusal
        pass
    finally:
        sys.setprofile(before)
    return found


def every_interrupt(
    make: Callable[[], Any], operation: Callable[[Any], object], step: int = 1
) -> Iterator[tuple[Any, str]]:
    """For each instruction, make a case, interrupt the operation on it there, and yield case and outcome.

    With a step of n, only every n-th instruction is tried.
    """
    case = make()
    points = Points(codes_run_by(lambda: operation(case)))
    case = make()
    handled(lambda: operation(case), points, -1)
    total = points.count
    assert total > 20
    ended = set()
    for at in range(0, total, step):
        case = make()
        outcome = handled(lambda case=case: operation(case), points, at)  # type: ignore[misc]
        ended.add(outcome)
        yield case, outcome
    assert "interrupted" in ended


class Held:
    """A pool of 10 tokens that a call holds, and a waiter that asks for 8 of them."""

    def __init__(self, shape: str) -> None:
        self.asked, self.capped = SHAPES[shape](token_cap=10)
        self.heard: list[Any] = []
        self.warned: list[Any] = []
        self.held = self.asked.reserve(tokens=10)
        self.waiter: Waiter = waiting(self.asked, tokens=8)

    def release(self) -> None:
        self.held.release()

    def commit(self) -> None:
        self.held.commit(tokens=1)

    def raise_the_cap(self) -> None:
        self.capped.set_caps(token_cap=20)


@pytest.mark.parametrize("shape", ["alone", "join", "keyed"])
@pytest.mark.parametrize("operation", ["release", "commit", "raise_the_cap"])
def test_one_interrupt_never_leaves_a_waiter_asleep(operation: str, shape: str, full: bool) -> None:
    step = 1 if full or (operation == "release" and shape == "alone") else 17
    for case, _outcome in every_interrupt(lambda: Held(shape), lambda case: getattr(case, operation)(), step):
        waiter = case.waiter
        # Check without an operation on the pool: it would wake the waiter, but a program might never do another one.
        account = case.capped._account
        if account.token_limit == 20 or case.held.completed:
            assert (waiter.state, bool(waiter.bell.rung)) == ("granted", True)
        else:
            assert waiter.state == "waiting"
            getattr(case, operation)()
            assert (waiter.state, bool(waiter.bell.rung)) == ("granted", True)
        waiter.reservation.release()
        case.held.release()


class Watched:
    """A pool of 10 tokens with a threshold at 8 and a subscriber. Both are C functions, which no interrupt reaches."""

    def __init__(self, shape: str) -> None:
        self.asked, self.capped = SHAPES[shape](token_cap=10)
        self.heard: list[Any] = []
        self.warned: list[Any] = []
        self.held = self.asked.reserve(tokens=8)
        self.capped.on_threshold(0.8, self.warned.append)
        self.capped.subscribe(self.heard.append)

    def record(self) -> None:
        self.held.release()
        self.asked.record(tokens=8)

    def commit(self) -> None:
        self.held.commit(tokens=8)

    def force(self) -> None:
        try:
            self.asked.record(tokens=8, force=True)
        except Exception:  # noqa: BLE001 - the overrun
            pass

    def refuse(self) -> None:
        try:
            self.asked.record(tokens=8)
        except Exception:  # noqa: BLE001 - the refusal
            pass


@pytest.mark.parametrize("shape", ["alone", "child", "join", "keyed"])
@pytest.mark.parametrize("operation", ["record", "commit", "force"])
def test_one_interrupt_never_loses_or_repeats_a_threshold_or_an_event(operation: str, shape: str, full: bool) -> None:
    kind = {"force": "record"}.get(operation, operation)
    step = 1 if full or (operation == "record" and shape == "alone") else 7
    for case, outcome in every_interrupt(lambda: Watched(shape), lambda case: getattr(case, operation)(), step):
        spent = case.asked.snapshot().tokens_used  # this operation delivers what is still owed
        assert spent in {0, 8}
        assert spent == 8 or outcome == "interrupted"
        expected = 1 if spent else 0
        assert len(case.warned) == expected
        assert [event.kind for event in case.heard].count(kind) == expected
        case.asked.snapshot()
        assert len(case.warned) == expected
        assert [event.kind for event in case.heard].count(kind) == expected
        case.held.release()


def test_one_interrupt_never_repeats_the_event_of_a_refusal() -> None:
    for case, _outcome in every_interrupt(lambda: Watched("alone"), lambda case: case.refuse()):
        case.asked.snapshot()
        assert [event.kind for event in case.heard] in ([], ["refusal"])
        case.held.release()


def test_the_next_operation_of_any_thread_delivers_events_that_an_ended_thread_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = BudgetPool(token_cap=10)
    heard: list[Any] = []
    pool.on_threshold(0.8, heard.append)
    pool.subscribe(heard.append)
    pay = _family.Family.pay
    ended: list[str] = []

    def interrupted(family: _family.Family) -> None:
        if threading.current_thread() is thread:
            raise KeyboardInterrupt  # at each attempt to deliver
        pay(family)

    def body() -> None:
        try:
            pool.record(tokens=9)
        except KeyboardInterrupt:
            ended.append("interrupted")

    monkeypatch.setattr(_family.Family, "pay", interrupted)
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert ended == ["interrupted"]
    assert heard == []
    pool.snapshot()
    assert sorted(event.kind for event in heard) == ["record", "threshold"]
    pool.record(tokens=1)
    assert sorted(event.kind for event in heard) == ["record", "record", "threshold"]


def test_an_interrupted_callback_is_not_called_again_and_the_other_callbacks_run() -> None:
    pool = BudgetPool(token_cap=10)
    called: list[str] = []

    def interrupted(_event: object) -> None:
        called.append("first")
        raise KeyboardInterrupt

    pool.subscribe(interrupted)
    pool.subscribe(lambda event: called.append(event.kind))
    with pytest.raises(KeyboardInterrupt):
        pool.record(tokens=1)
    assert called == ["first", "record"]
    pool.snapshot()
    assert called == ["first", "record"]
    with pytest.raises(KeyboardInterrupt):
        pool.record(tokens=1)  # the thread still gets events: the pool does not think that it is inside a callback
    assert called == ["first", "record", "first", "record"]
