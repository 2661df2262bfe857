"""The Redis engine between any two scripts: another process's whole step, a lost script, a lost answer.

A step is one script or a few. Before each of them another process does any step; what both answer, and the numbers that
are left, are those of one order or the other. And each script is lost once, before it is done and after: then the step
counts once or, where it was given up, not at all.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from redis_stores import Budget, Process
from token_budget import PoolClosed, Window
from token_budget._arguments import UNCHANGED
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError, StoreMismatch
from token_budget.stores._store import DONE, LATE, REPEAT, SETTLED, UNKNOWN, Answer

Step = Callable[["Scene", int], object]


class Scene:
    """A budget in which most things can happen: processes that hold, a key, periods that have ended, a death."""

    def __init__(self) -> None:
        self.now = 5.0
        self.budget = Budget(tokens=20)
        window = Window.parse("every 10s", clock=lambda: self.now)
        self.all: list[Process] = [self.budget.process() for _ in range(3)]
        self.kids = [one.child("kid", tokens=12, window=window) for one in self.all]
        groups = [one.group(tokens=9, window=window) for one in self.all]
        self.anns = [one.key(group, "ann") for one, group in zip(self.all, groups, strict=True)]
        self.joins = [(ann[0], *kid) for ann, kid in zip(self.anns, self.kids, strict=True)]
        self.keys = [one.engine.new_key() for one in self.all]
        for one, join, key in zip(self.all, self.joins, self.keys, strict=True):
            assert one.engine.reserve(join, key, 2, 1).kind == "granted"
        self.ids = [one.engine.id_of(key) for one, key in zip(self.all, self.keys, strict=True)]
        self.all[0].engine.record(self.kids[0], 3, 0)

    def before(self) -> None:
        """Let time pass and a process die: what the next steps have to mend first."""
        self.now = 17.0
        self.budget.kill(self.all[2])
        self.all[1].engine.set_group(self.anns[1][0].group, 8, UNCHANGED, UNCHANGED)  # type: ignore[arg-type]

    def left(self) -> Any:
        """Return the numbers that are left, without eras."""
        rows = self.all[0].engine.read(self.joins[0])
        return [row._replace(era=0) for row in rows]


@contextmanager
def scene() -> Iterator[Scene]:
    made = Scene()
    try:
        made.before()
        yield made
    finally:
        made.budget.close()


def reserve(scene: Scene, who: int) -> object:
    one = scene.all[who].engine
    return one.reserve(scene.joins[who], one.new_key(), 4, 1)


STEPS: dict[str, Step] = {
    "reserve": reserve,
    "record": lambda scene, who: scene.all[who].engine.record(scene.joins[who], 5, 0),
    "force": lambda scene, who: scene.all[who].engine.record(scene.joins[who], 7, 2, force=True),
    "commit": lambda scene, who: scene.all[who].engine.commit(scene.joins[who], scene.keys[who], (2, 1), (3, 0)),
    "release": lambda scene, who: scene.all[who].engine.release(scene.joins[who], scene.keys[who], (2, 1)),
    "cancel": lambda scene, who: scene.all[who].engine.cancel(scene.joins[who], scene.keys[who], (2, 1)),
    "settle": lambda scene, who: scene.all[who].engine.settle(scene.ids[1 - who], 1, 1)[0],
    "correct": lambda scene, who: scene.all[who].engine.settle(scene.ids[2], 1, 1)[0],
    "reset": lambda scene, who: scene.all[who].engine.reset(scene.joins[who][1]),
    "caps": lambda scene, who: scene.all[who].engine.set_caps(scene.joins[who][1], 9, UNCHANGED, UNCHANGED),
    "close": lambda scene, who: scene.all[who].engine.close(scene.joins[who][1]),
    "read": lambda scene, who: [row._replace(era=0) for row in scene.all[who].engine.read(scene.joins[who])],
}


def outcome(scene: Scene, step: Step, who: int) -> Any:
    try:
        said = step(scene, who)
    except (PoolClosed, StoreMismatch, StoreError, ValueError) as error:
        return type(error)
    return (said.kind, said.at, said.counted) if isinstance(said, Answer) else said


@functools.cache
def in_order(first: str, second: str, *, turned: bool, charged: bool) -> Any:
    """Do two steps one after the other, the first by the other process if they are turned.

    The dead are charged by whoever meets them: perhaps before both.
    """
    with scene() as made:
        if charged:
            made.all[1].engine.expired()
        said = [(turned, outcome(made, STEPS[first], int(turned)))]
        said.append((not turned, outcome(made, STEPS[second], int(not turned))))
        return sorted(said, key=lambda item: item[0]), made.left()


def interposed(first: Step, second: Step, before: int) -> Any:
    """Do a step, and another process's step before one of its scripts. None if it has not so many."""
    with scene() as made:
        wire, count, others = made.all[0].wire, [0], []

        def other(_: str) -> None:
            count[0] += 1
            if count[0] == before:
                others.append((True, outcome(made, second, 1)))

        wire.before = other
        mine = outcome(made, first, 0)
        wire.heal()
        return None if not others else ([(False, mine), *others], made.left())


@pytest.mark.parametrize("second", ["reserve", "record", "commit", "settle", "correct", "reset", "close"])
@pytest.mark.parametrize("first", STEPS)
def test_another_step_between_any_two_scripts_leaves_what_one_order_of_both_does(first: str, second: str) -> None:
    orders = [in_order(first, second, turned=False, charged=charged) for charged in (False, True)]
    orders += [in_order(second, first, turned=True, charged=charged) for charged in (False, True)]
    before = 1
    while True:
        found = interposed(STEPS[first], STEPS[second], before)
        if found is None:
            break
        assert found in orders, f"{second} before script {before} of {first}"
        before += 1
    assert before > 1


def failing_at(script: int) -> Callable[[str], None]:
    count = itertools.count(1)

    def fail(_: str) -> None:
        if next(count) == script:
            raise BudgetUnavailable("the tests lose it")

    return fail


REPEATABLE = {"commit", "release", "cancel", "settle", "correct"}
CHANGES = {"reset", "caps", "close"}  # which may have been done, and are repeated safely


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("name", [name for name in STEPS if name != "read"])
def test_a_script_that_is_lost_leaves_a_step_done_once_or_not_at_all(name: str, done: bool) -> None:
    with scene() as made:
        made.all[0].engine.read(made.joins[0])
        not_done = made.left()
        outcome(made, STEPS[name], 0)
        done_once = made.left()
    lost = 0
    while True:
        lost += 1
        with scene() as made:
            wire = made.all[0].wire
            setattr(wire, "after" if done else "before", failing_at(lost))
            try:
                STEPS[name](made, 0)
            except BudgetUnavailable:
                pass
            else:
                break  # it has not so many scripts
            finally:
                wire.heal()
            if name in REPEATABLE:
                said: Any = STEPS[name](made, 0)
                assert said in {True, False} or said.kind in {DONE, LATE, REPEAT, SETTLED, UNKNOWN}
                assert made.left() == done_once
            else:
                made.all[0].engine.tend()
                allowed = [not_done, done_once] if name in CHANGES else [not_done]
                assert made.left() in allowed, f"script {lost}"
                outcome(made, STEPS[name], 0)
                assert made.left() == done_once
    assert lost > 1
