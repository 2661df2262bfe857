"""The scheduler itself: it runs every schedule, repeats a given schedule, and notices every fault."""

from __future__ import annotations

import random
import types
from typing import Any

import pytest

from scheduler import (
    Deadlock,
    DepthFirst,
    ModelLock,
    RandomPriorities,
    Run,
    Scenario,
    Watch,
    explore,
    functions_of,
    replay,
    sample,
    steps_of,
)


class Cell:
    """Two numbers that threads change without a lock."""

    def __init__(self) -> None:
        self.value = 0
        self.lock, self.other = ModelLock(), ModelLock()

    def add(self) -> None:
        self.value = self.value + 1

    def add_locked(self) -> None:
        with self.lock:
            self.value = self.value + 1

    def lock_both(self) -> None:
        with self.lock, self.other:
            pass

    def lock_both_backwards(self) -> None:
        with self.other, self.lock:
            pass


HERE = types.SimpleNamespace(__name__=__name__, Cell=Cell)


def watch() -> Watch:
    return Watch(functions_of(HERE))  # type: ignore[arg-type]


def scenario(*bodies: Any) -> Scenario:
    return Scenario("cell", Cell, [[body] for body in bodies], lambda cell: cell.value)


def test_a_lost_update_is_found_and_its_schedule_repeats_it() -> None:
    lost = scenario(Cell.add, Cell.add)
    with pytest.raises(AssertionError, match="is no serial outcome; schedule") as raised:
        explore(lost, watch(), preemptions=1)
    schedule = [int(part) for part in str(raised.value).rpartition("[")[2].rstrip("]").split(", ")]
    for _ in range(3):
        assert replay(lost, watch(), schedule) == ([[None], [None]], 1)


def test_without_a_preemption_nothing_is_lost_and_each_order_is_seen_once() -> None:
    assert explore(scenario(Cell.add, Cell.add), watch(), preemptions=0) == 2
    assert explore(scenario(Cell.add, Cell.add, Cell.add), watch(), preemptions=0) == 6


def test_the_number_of_schedules_is_the_number_that_counting_gives() -> None:
    # Each body has two steps (a read and a write), and a thread can be preempted before either. Counted by hand, with
    # one preemption: the first thread (2 choices) runs to its end, or is preempted at one of its 2 steps and the other
    # thread runs to its end.
    def count(bound: int) -> int:
        policy, runs = DepthFirst(bound), 0
        scene, eyes = scenario(Cell.add, Cell.add), watch()
        with eyes:
            while True:
                scene.run(policy, eyes)
                runs += 1
                if not policy.advance():
                    return runs

    assert count(0) == 2
    assert count(1) == 2 + 2 * 2
    # With two preemptions: after the first at step i, the other thread may be preempted at one of its 2 steps.
    assert count(2) == 2 + 2 * 2 + 2 * 2 * 2


def test_with_a_lock_every_schedule_gives_the_right_sum() -> None:
    assert explore(scenario(Cell.add_locked, Cell.add_locked), watch(), preemptions=3) > 10
    assert sample(scenario(*[Cell.add_locked] * 4), watch(), runs=50) == 50


def test_a_deadlock_is_found() -> None:
    with pytest.raises(AssertionError, match="all threads wait for a lock") as raised:
        explore(scenario(Cell.lock_both, Cell.lock_both_backwards), watch(), preemptions=1)
    assert isinstance(raised.value.__cause__, Deadlock)


def test_random_priorities_find_the_lost_update_too() -> None:
    with pytest.raises(AssertionError, match="no serial outcome"):
        sample(scenario(Cell.add, Cell.add), watch(), runs=200, length=6)


def test_the_same_seed_gives_the_same_schedules() -> None:
    def schedules(seed: int) -> list[list[int]]:
        source = random.Random(seed)
        scene, eyes, seen = scenario(Cell.add_locked, Cell.add_locked), watch(), []
        with eyes:
            for _ in range(20):
                policy = RandomPriorities(source, {source.randrange(8)})
                seen.append(scene.run(policy, eyes)[1])
        return seen

    assert schedules(1) == schedules(1)
    assert schedules(1) != schedules(2)


def test_a_failing_check_names_the_schedule() -> None:
    def check(cell: Cell) -> None:
        assert cell.value < 2, "two is too much"

    scene = Scenario("cell", Cell, [[Cell.add_locked], [Cell.add_locked]], lambda cell: cell.value, check)
    with pytest.raises(AssertionError, match="two is too much.*under schedule"):
        explore(scene, watch())


def test_an_exception_of_an_operation_is_reported() -> None:
    def fail(_cell: Cell) -> None:
        raise ZeroDivisionError

    scene = Scenario("cell", Cell, [[Cell.add], [Cell.add]], lambda cell: cell.value)
    scene.bodies = [[fail], [Cell.add]]
    scene.serial_outcomes = list  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        explore(scene, watch())


def test_every_step_of_the_watched_code_is_seen() -> None:
    # Some versions of CPython lose opcode events of sys.settrace. The scheduler would not try the races at lost steps.
    expected = len(steps_of(Cell.add.__code__))
    assert expected == 2
    eyes, cell = watch(), Cell()
    with eyes:
        Run(lambda enabled, _me: enabled[0], eyes, lambda: None).execute([cell.add, cell.add])
    assert eyes.count == 2 * expected
    assert cell.value == 2


def test_nothing_is_watched_after_the_exploration() -> None:
    eyes, cell = watch(), Cell()
    with eyes:
        pass
    cell.add()
    assert eyes.count == 0
