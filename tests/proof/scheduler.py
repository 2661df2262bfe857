"""A deterministic scheduler: real threads, one step at a time, every schedule.

`explore` runs a scenario again and again, each time under another schedule, until it has seen every schedule with at
most `preemptions` switches away from a thread that could have gone on. A *step* is a place where another thread's work
can make a difference: before every instruction of the watched code that reads or writes an attribute or an item, and
before and after every operation of the lock. One call of C code is one step, however much it changes: `Family.change`
publishes a change that way. Between two steps a thread runs alone, so the same choices always give the same run. A
failure prints its schedule, and `replay` repeats it.

How it works. The threads are real, and all but one wait for their baton. At each step, the running thread asks the
policy which thread continues, and hands the baton over itself. The interpreter reports the steps inside the watched
code. From CPython 3.12 on, it does so through `sys.monitoring`: the callback sees every instruction and disables those
that are no step. Before 3.12, it does so through `sys.settrace` with opcode events (on 3.12.1 and 3.13.0 settrace loses
some). Lock steps come from `ModelLock`, which the code under test gets in place of `threading.Lock`.
"""

from __future__ import annotations

import dis
import random
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Policy = Callable[[Sequence[int], "int | None"], int]

_STEP_OPERATIONS = {
    "LOAD_ATTR",
    "STORE_ATTR",
    "DELETE_ATTR",
    "LOAD_METHOD",
    "BINARY_SUBSCR",
    "STORE_SUBSCR",
    "BINARY_OP",
}
_ITEM_OPERATORS = {"[]"}  # BINARY_SUBSCR became a BINARY_OP in 3.14


class Deadlock(AssertionError):
    """Every remaining thread waits for a lock."""


class _Abandoned(BaseException):
    """Ends the threads of a failed run. The code under test does not catch it: it catches Exception at most."""


# ---------------------------------------------------------------- which instructions are steps


def functions_of(*modules: types.ModuleType) -> list[types.CodeType]:
    """Return the code of every function and method that the modules define, and of all functions nested in them."""
    found: list[types.CodeType] = []
    for module in modules:
        for thing in vars(module).values():
            if getattr(thing, "__module__", None) != module.__name__:
                continue
            for member in vars(thing).values() if isinstance(thing, type) else [thing]:
                function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                if isinstance(function, types.FunctionType):
                    found.append(function.__code__)
    for code in found:  # comprehensions are functions of their own before CPython 3.12
        found += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return list(dict.fromkeys(found))


def steps_of(code: types.CodeType) -> set[int]:
    """Return the offsets of the instructions that touch memory which threads may share."""
    return {
        instruction.offset
        for instruction in dis.get_instructions(code)
        if instruction.opname in _STEP_OPERATIONS
        and (instruction.opname != "BINARY_OP" or instruction.argrepr in _ITEM_OPERATORS)
    }


class Watch:
    """Calls a function before each step of the watched code, in every thread that entered `watching`."""

    def __init__(self, codes: Iterable[types.CodeType]) -> None:
        self.steps = {code: steps_of(code) for code in codes}
        self.count = 0
        self._callback: dict[int, Callable[[], object]] = {}

    def enter(self, callback: Callable[[], object]) -> None:
        """Start calling back in this thread."""
        self._callback[threading.get_ident()] = callback
        if sys.version_info < (3, 12):
            sys.settrace(self._trace)

    def leave(self) -> None:
        """Stop calling back in this thread."""
        if sys.version_info < (3, 12):
            sys.settrace(None)
        self._callback.pop(threading.get_ident(), None)

    def __enter__(self) -> Watch:
        if sys.version_info >= (3, 12):
            monitoring = sys.monitoring
            monitoring.use_tool_id(monitoring.DEBUGGER_ID, "scheduler")
            monitoring.register_callback(monitoring.DEBUGGER_ID, monitoring.events.INSTRUCTION, self._instruction)
            for code in self.steps:
                monitoring.set_local_events(monitoring.DEBUGGER_ID, code, monitoring.events.INSTRUCTION)
        return self

    def __exit__(self, *_: object) -> None:
        if sys.version_info >= (3, 12):
            monitoring = sys.monitoring
            for code in self.steps:
                monitoring.set_local_events(monitoring.DEBUGGER_ID, code, monitoring.events.NO_EVENTS)
            monitoring.register_callback(monitoring.DEBUGGER_ID, monitoring.events.INSTRUCTION, None)
            monitoring.free_tool_id(monitoring.DEBUGGER_ID)

    def _instruction(self, code: types.CodeType, offset: int) -> object:
        if sys.version_info >= (3, 12) and offset not in self.steps[code]:
            return sys.monitoring.DISABLE
        callback = self._callback.get(threading.get_ident())
        if callback is not None:
            self.count += 1
            callback()
        return None

    def _trace(self, frame: types.FrameType, event: str, _argument: object) -> Any:
        steps = self.steps.get(frame.f_code)
        if steps is None:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and frame.f_lasti in steps:
            self.count += 1
            self._callback[threading.get_ident()]()
        return self._trace


# ---------------------------------------------------------------- one run


class ModelLock:
    """A lock whose waits the scheduler sees. Outside of a run it is a plain lock."""

    def __init__(self) -> None:
        self.holder: int | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT002
        run = Run.active
        if run is None or run.me() is None:
            if not blocking:
                taken, self.holder = self.holder is None, self.holder or -1
                return taken
            assert self.holder is None, "the lock is held between two runs"
            self.holder = -1
            return True
        run.step()
        while self.holder is not None:
            if not blocking or not run.wait_for(self, may_time_out=timeout >= 0):
                return False
        self.holder = run.me()
        return True

    def release(self) -> None:
        if self.holder is None:
            raise RuntimeError("release unlocked lock")  # as the real one does
        self.holder = None
        if Run.active is not None:
            Run.active.step()

    def locked(self) -> bool:
        return self.holder is not None

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()


class Run:
    """One execution of some bodies under one policy."""

    active: Run | None = None

    def __init__(self, policy: Policy, watch: Watch, check: Callable[[], object]) -> None:
        self.policy = policy
        self.watch = watch
        self.check = check
        self.schedule: list[int] = []
        self.results: list[Any] = []
        self.failure: BaseException | None = None
        self._index: dict[int, int] = {}
        self._waiting: dict[int, ModelLock] = {}
        self._impatient: set[int] = set()
        self._done: set[int] = set()
        self._batons: list[Any] = []
        self._over = threading.Lock()
        self._inside = False

    def me(self) -> int | None:
        return self._index.get(threading.get_ident())

    def execute(self, bodies: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run the bodies to their end and return their results. Raise what a check or a body raised."""
        self.results = [None] * len(bodies)
        self._batons = [threading.Lock() for _ in bodies]
        for baton in self._batons:
            baton.acquire()
        self._over.acquire()
        threads = [threading.Thread(target=self._thread, args=item, daemon=True) for item in enumerate(bodies)]
        Run.active = self
        try:
            for thread in threads:
                thread.start()
            self._batons[self._choose(None)].release()
            assert self._over.acquire(timeout=60), f"a run hangs; schedule {self.schedule}"
            for thread in threads:
                thread.join()
        finally:
            Run.active = None
        if self.failure is not None:
            raise self.failure
        return self.results

    def step(self) -> None:
        """Let the policy choose the next thread. The running thread calls this before a step that others may notice."""
        me = self.me()
        if me is None or self._inside:  # a thread outside of the run, or the check below
            return
        self._checked()
        self._hand_over(me, self._choose(me))

    def wait_for(self, lock: ModelLock, *, may_time_out: bool) -> bool:
        """Wait until the lock may be free. Return False on a time-out, which may come at any step.

        Neither a longer wait nor a time-out counts as a preemption: both are choices of the policy.
        """
        me = self.me()
        assert me is not None
        self._waiting[me] = lock
        if may_time_out:
            self._impatient.add(me)
        if not self._enabled():
            self._fail(Deadlock(f"all threads wait for a lock; schedule {self.schedule}"))
            raise _Abandoned
        self._hand_over(me, self._choose(None))
        del self._waiting[me]
        self._impatient.discard(me)
        return lock.holder is None

    def _enabled(self) -> list[int]:
        return [
            index
            for index in range(len(self._batons))
            if index not in self._done
            and (index not in self._waiting or index in self._impatient or self._waiting[index].holder is None)
        ]

    def _choose(self, me: int | None) -> int:
        enabled = self._enabled()
        if len(enabled) == 1:
            return enabled[0]
        chosen = self.policy(enabled, me)
        self.schedule.append(chosen)
        return chosen

    def _hand_over(self, me: int, chosen: int) -> None:
        if chosen != me:
            self._batons[chosen].release()
            self._batons[me].acquire()
        if self.failure is not None:
            raise _Abandoned

    def _checked(self) -> None:
        self._inside = True
        try:
            self.check()
        except BaseException as error:  # noqa: BLE001 - reported by `execute`
            self._fail(error)
            raise _Abandoned from None
        finally:
            self._inside = False

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error

    def _thread(self, index: int, body: Callable[[], Any]) -> None:
        self._batons[index].acquire()
        self._index[threading.get_ident()] = index
        self.watch.enter(self.step)
        try:
            if self.failure is None:
                self.results[index] = body()
        except _Abandoned:
            pass
        except BaseException as error:  # noqa: BLE001 - reported by `execute`
            self._fail(error)
        finally:
            self.watch.leave()
            del self._index[threading.get_ident()]
            self._done.add(index)
            self._next(index)

    def _next(self, _index: int) -> None:
        left = [index for index in range(len(self._batons)) if index not in self._done]
        if not left:
            self._over.release()
        elif self.failure is not None:
            self._batons[left[0]].release()
        elif not self._enabled():
            self._fail(Deadlock(f"all threads wait for a lock; schedule {self.schedule}"))
            self._batons[left[0]].release()
        else:
            self._batons[self._choose(None)].release()


# ---------------------------------------------------------------- policies


@dataclass
class DepthFirst:
    """Every schedule with at most `preemptions` preemptions, one after the other."""

    preemptions: int
    path: list[list[int]] = field(
        default_factory=list
    )  # for each choice of the run, the threads left to try; the last is the chosen one
    depth: int = 0
    spent: int = 0

    def __call__(self, enabled: Sequence[int], me: int | None) -> int:
        can_go_on = me in enabled
        if self.depth == len(self.path):
            others = [index for index in enabled if index != me]
            if not can_go_on:
                self.path.append(others[::-1])
            elif self.spent < self.preemptions:
                self.path.append([*others[::-1], me])  # type: ignore[list-item]
            else:
                self.path.append([me])  # type: ignore[list-item]
        chosen = self.path[self.depth][-1]
        self.depth += 1
        self.spent += can_go_on and chosen != me
        return chosen

    def advance(self) -> bool:
        """Go to the next schedule, and return whether there is one."""
        self.depth = self.spent = 0
        while self.path:
            self.path[-1].pop()
            if self.path[-1]:
                return True
            self.path.pop()
        return False


@dataclass
class RandomPriorities:
    """Each thread has a priority. At a few random steps, the running thread gets the lowest priority ("PCT").

    This finds a fault that needs d ordered switches with a known probability, in runs too long to try every schedule.
    Source: Burckhardt et al., A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs, ASPLOS 2010.
    """

    random: random.Random
    changes: set[int]
    priorities: dict[int, float] = field(default_factory=dict)
    depth: int = 0

    def __call__(self, enabled: Sequence[int], me: int | None) -> int:
        if self.depth in self.changes and me is not None:
            self.priorities[me] = -self.depth
        self.depth += 1
        for index in enabled:
            self.priorities.setdefault(index, self.random.random())
        return max(enabled, key=lambda index: self.priorities[index])


def replaying(schedule: Sequence[int]) -> Policy:
    """Return a policy that repeats a printed schedule. After its end, the running thread continues."""
    left = iter(schedule)

    def policy(enabled: Sequence[int], me: int | None) -> int:
        chosen = next(left, me if me in enabled else enabled[0])
        assert chosen in enabled, "the schedule does not belong to this program"
        return chosen  # type: ignore[return-value]

    return policy


# ---------------------------------------------------------------- exploring


@dataclass
class Scenario:
    """What to run: `setup` makes a fresh world, each body is a list of operations on it, and `final` reads the outcome.

    An operation returns a comparable value. `check` is called with the world at every step.
    """

    name: str
    setup: Callable[[], Any]
    bodies: Sequence[Sequence[Callable[[Any], Any]]]
    final: Callable[[Any], Any]
    check: Callable[[Any], object] = lambda _world: None
    # Whether each operation takes effect at one moment. A wait begins at one moment and ends at another.
    serial: bool = True

    def run(self, policy: Policy, watch: Watch) -> tuple[Any, list[int]]:
        """Run once and return (outcome, schedule)."""
        world = self.setup()
        run = Run(policy, watch, lambda: self.check(world))

        def body(operations: Sequence[Callable[[Any], Any]]) -> Callable[[], list[Any]]:
            return lambda: [operation(world) for operation in operations]

        try:
            results = run.execute([body(operations) for operations in self.bodies])
        except BaseException as error:
            raise AssertionError(f"{self.name}: {error!r} under schedule {run.schedule}") from error
        return (results, self.final(world)), run.schedule

    def serial_outcomes(self) -> list[Any]:
        """Return the outcome of every serial order of the operations."""
        outcomes: list[Any] = []
        for order in _merges([len(body) for body in self.bodies]):
            world = self.setup()
            results: list[list[Any]] = [[] for _ in self.bodies]
            for index in order:
                results[index].append(self.bodies[index][len(results[index])](world))
            outcomes.append((results, self.final(world)))
        return outcomes


def _merges(lengths: list[int]) -> Iterator[list[int]]:
    if not any(lengths):
        yield []
    for index, length in enumerate(lengths):
        if length:
            rest = [*lengths[:index], length - 1, *lengths[index + 1 :]]
            yield from ([index, *order] for order in _merges(rest))


def explore(scenario: Scenario, watch: Watch, preemptions: int = 2, limit: int | None = None) -> int:
    """Run every schedule (at most `limit`) and return their number. Each outcome must be that of some serial order.

    Raises AssertionError with the schedule on the first outcome that no serial order has, on a failed check, on a
    deadlock, and on an exception that escapes from an operation.
    """
    serial = scenario.serial_outcomes() if scenario.serial else None
    policy = DepthFirst(preemptions)
    count = 0
    with watch:
        while True:
            outcome, schedule = scenario.run(policy, watch)
            count += 1
            assert serial is None or outcome in serial, (
                f"{scenario.name}: {outcome} is no serial outcome; schedule {schedule}"
            )
            if not policy.advance() or count == limit:
                return count


def sample(scenario: Scenario, watch: Watch, runs: int, seed: int = 0, changes: int = 3, length: int = 120) -> int:
    """Run under `runs` schedules with random priorities, for scenarios with too many schedules to try them all."""
    serial = scenario.serial_outcomes() if scenario.serial else None
    source = random.Random(seed)
    with watch:
        for _ in range(runs):
            policy = RandomPriorities(source, {source.randrange(length) for _ in range(changes)})
            outcome, schedule = scenario.run(policy, watch)
            assert serial is None or outcome in serial, (
                f"{scenario.name}: {outcome} is no serial outcome; schedule {schedule}"
            )
    return runs


def replay(scenario: Scenario, watch: Watch, schedule: Sequence[int]) -> Any:
    """Run once under a printed schedule, and return the outcome."""
    with watch:
        return scenario.run(replaying(schedule), watch)[0]
