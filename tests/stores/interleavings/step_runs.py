"""One run of a scenario: the clients' programs in one order of their steps, then the check of what they heard."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from interleavings.step_model import (
    CALLS,
    FOREVER,
    TAKEN_BACK,
    Call,
    Event,
    Op,
    State,
    chain_of,
    events_of,
    fits,
)
from interleavings.step_orders import Actor, Chooser, Died, explore
from interleavings.step_worlds import Process, World
from token_budget import PoolClosed, Window
from token_budget._arguments import UNCHANGED
from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreMismatch
from token_budget.stores._store import GRANTED, REFUSED, REPEAT, Answer

_NUMBERS = itertools.count(1)
_BEAT = 2.0  # a run that took longer may have lost who waits: a process that does not beat for 3.5 s is passed over
_ENDING = frozenset({"commit", "release", "hand_over"})  # what a program leaves out where its claim was not granted


@dataclass(frozen=True)
class Scenario:
    """What some clients do at once."""

    name: str
    caps: dict[str, int]  # of the scopes that are open; "" is the root
    # By client: "A" is a process with one thread, "A2" another thread of it. "clock" turns the clock, "reaper A"
    # declares A dead, which lives.
    programs: dict[str, tuple[Op, ...]]
    setup: tuple[tuple[str, Op], ...] = ()  # (process, call), one after the other, before the programs
    windows: tuple[str, ...] = ()  # the scopes with a window; the clock turns it with ("turn",) of the setup or "clock"
    groups: dict[str, int] = field(default_factory=dict)
    late_opened: tuple[str, ...] = ()  # scopes that programs open
    calls: bool = False  # whether something may come between the beginning of a call and its first step
    over: bool = False  # whether more may be claimed than a cap
    split: bool = True  # whether all that is spent is spent in one child
    again: bool = False  # whether a reserve that had no answer is repeated at once, before the store is tended
    # The clients whose steps may go wrong, and how: None is all, () is none. In SQLite, where a call is one step, it is
    # all, unless it is none.
    faulty: tuple[str, ...] | None = None
    faults: tuple[str, ...] | None = None

    @property
    def processes(self) -> list[str]:
        names = [name for name in self.programs if name[0].isupper()]
        return sorted({name[0] for name in [*names, *[process for process, _ in self.setup if process]]})


class Unfit(AssertionError):
    """What clients heard, or what is stored, fits no order of their calls."""


class Run:
    """One run."""

    def __init__(self, scenario: Scenario, world: World, chooser: Chooser) -> None:
        self.scenario = scenario
        self.world = world
        self.chooser = chooser
        self.now = 0
        self.clock = [0.0]
        world.clear()
        self.calls: list[Call] = []
        self.others: list[Event] = []
        self.late: list[Callable[[], Any]] = []
        self.faults = 1
        self.again: set[str] = set()  # clients whose present call has sent a step twice: it shows the numbers of later
        self.log: list[str] = []
        self.chains: dict[str, tuple[str, int, Process]] = {}  # of claims: chain, tokens, holder
        self.granted: set[str] = set()
        self.state = State(windows=frozenset(scenario.windows), groups=scenario.groups)
        self.names = [*scenario.caps, *scenario.late_opened]
        self.names += sorted({op[1] for program in scenario.programs.values() for op in program if ":" in str(op[1:2])})
        self.observer, self.processes = self._processes()
        for name, program in [*scenario.programs.items(), *[(process, (op,)) for process, op in scenario.setup]]:
            for kind, *words in program:
                if kind in {"reserve", "wait"}:
                    holder = self.processes[name[0]]
                    self.chains[words[0]] = words[1], words[2], holder
                    holder.keys.setdefault(words[0], holder.store.new_key())
        for process, op in scenario.setup:
            self._set_up(process, op)

    # ------------------------------------------------------------------ before

    def _processes(self) -> tuple[Process, dict[str, Process]]:
        budget = f"r{next(_NUMBERS)}"
        scenario, world = self.scenario, self.world
        window = Window.every(timedelta(seconds=10), clock=lambda: self.clock[0])
        observer = world.process(budget, 0)
        for name, cap in scenario.caps.items():
            one = window if name in scenario.windows else None
            observer.store.open(observer.scope(name), cap, None, one, "mine")
            self.state.make(name, cap)
        for name, cap in scenario.groups.items():
            observer.store.open(observer.group(name), cap, None, None, "mine")
        processes = {}
        for number, name in enumerate(scenario.processes, 1):
            process = processes[name] = world.process(budget, number)
            for place in scenario.caps:
                one = window if place in scenario.windows else None
                if one is not None or not place:
                    process.store.open(process.scope(place), None, None, one, "stored")
            for group in scenario.groups:
                process.store.open(process.group(group), None, None, None, "stored")
            for place in scenario.caps:  # so that it knows where they are, and the first step of a call is the call's
                process.store.record(process.chain(chain_of(place)), 0, 0)
        return observer, processes

    def _set_up(self, process: str, op: Op) -> None:
        if op[0] == "turn":
            self.clock[0] += 10
            self.state.turn_clock()
            return
        if op[0] == "kill":  # it is charged by the next call of the setup, or by the programs
            self._befall(f"reaper {op[1]}")
            return
        if op[0] == "expired":
            for event in self.others:
                event.apply(self.state)
            self.others.clear()
        call = Call(-1, process, op)
        said, rows = self._do(self.processes[process], op)
        assert said in CALLS[op[0]](self.state, call, *op[1:]), (op, said, rows)

    # ------------------------------------------------------------------ calls

    def _do(self, process: Process, op: Op) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Make a call. Return what was answered, and the rows, as the model has them."""
        kind, *arguments = op
        return getattr(self, f"_{kind}")(process, *arguments)  # type: ignore[no-any-return]

    def _reserve(self, process: Process, name: str, chain: str, tokens: int, *, wait: bool = False) -> Any:
        key = process.keys[name]
        try:
            answer = process.store.reserve(process.chain(chain_of(chain)), key, tokens, 0, wait=wait, rows=True)
        except PoolClosed:
            return ("closed",), ()
        if answer.kind == GRANTED:
            self.granted.add(name)
        return _said(answer)

    def _wait(self, process: Process, name: str, chain: str, tokens: int) -> Any:
        return self._reserve(process, name, chain, tokens, wait=True)

    def _record(self, process: Process, chain: str, tokens: int) -> Any:
        return _said(process.store.record(process.chain(chain_of(chain)), tokens, 0, rows=True))

    def _claim(self, process: Process, name: str) -> tuple[Any, Any, tuple[int, int]]:
        chain, tokens, _ = self.chains[name]
        return process.chain(chain_of(chain)), process.keys[name], (tokens, 0)

    def _commit(self, process: Process, name: str, tokens: int) -> Any:
        return _said(process.store.commit(*self._claim(process, name), (tokens, 0)))

    def _release(self, process: Process, name: str) -> Any:
        return _said(process.store.release(*self._claim(process, name)))

    def _cancel(self, process: Process, name: str) -> Any:
        return ("cancelled", process.store.cancel(*self._claim(process, name))), ()

    def _leave(self, process: Process, name: str) -> Any:
        answer = process.store.leave(*self._claim(process, name)[:2])
        if answer.kind == GRANTED:
            self.granted.add(name)
        return (answer.kind,), ()

    def _settle(self, process: Process, name: str, tokens: int) -> Any:
        holder = self.chains[name][2]
        answer, _ = process.store.settle(holder.store.id_of(holder.keys[name]), tokens, 0)
        return _said(answer)

    def _hand_over(self, process: Process, name: str) -> Any:
        try:
            process.keys[name] = process.store.hand_over(*self._claim(process, name), 3600.0)
        except LookupError:
            return ("not open",), ()
        return ("handed",), ()

    @staticmethod
    def _reset(process: Process, name: str) -> Any:
        process.store.reset(process.scope(name))
        return ("ok",), ()

    @staticmethod
    def _close(process: Process, name: str) -> Any:
        process.store.close(process.scope(name))
        return ("ok",), ()

    @staticmethod
    def _set_caps(process: Process, name: str, cap: int) -> Any:
        process.store.set_caps(process.scope(name), cap, UNCHANGED, UNCHANGED)
        return ("ok",), ()

    @staticmethod
    def _open(process: Process, name: str, cap: int) -> Any:
        try:
            opened = process.store.open(process.scope(name), cap, None, None, "code")
        except StoreMismatch:
            return ("mismatch",), ()
        return ("opened", opened.created, opened.row.token_cap), ()

    @staticmethod
    def _expired(process: Process) -> Any:
        return ("expired", *sorted(one.tokens for one in process.store.expired())), ()

    # ------------------------------------------------------------------ a client

    def _tick(self) -> int:
        self.now += 1
        return self.now

    def _left_out(self, process: Process, op: Op) -> bool:
        if op[0] in {"wait", "leave"}:
            return op[1] in self.granted
        return op[0] in _ENDING and op[1] not in self.granted

    def _client(self, actor: Actor) -> None:
        """Follow the program of one client. In its thread."""
        process = self.processes[actor.process]
        for op in self.scenario.programs[actor.name]:
            if not self._left_out(process, op):
                failed: list[Call] = []
                while not self._attempt(actor, process, op, failed):
                    pass

    def _attempt(self, actor: Actor, process: Process, op: Op, failed: list[Call]) -> bool:
        """Make a call once. Return whether it is done with."""
        call = Call(len(self.calls), actor.process, op)
        self.calls.append(call)

        def begin() -> None:
            if call.start == FOREVER:
                call.start = self.now

        actor.on_step = begin
        try:
            if self.scenario.calls:
                actor.gate(lambda: None)
            call.said, call.rows = self._do(process, op)
        except Died:
            call.end = self._tick()
            raise
        except BudgetUnavailable:
            call.undone = op[0] in TAKEN_BACK
            if not call.undone or (self.scenario.again and op[0] != "record"):
                failed.append(call)
                return False
            process.store.tend()
            call.end = self._tick()
            return True
        self._heard(actor, call)
        for one in failed:
            one.end = call.end
        if failed and call.op[0] in TAKEN_BACK:
            process.store.tend()
        return True

    def _heard(self, actor: Actor, call: Call) -> None:
        """Note that a call was answered."""
        if actor.name in self.again:
            self.again.remove(actor.name)
            call.rows = ()
            if call.op[0] == "wait":  # the first one may have taken a ticket, with which the second one was granted
                self.calls.append(Call(len(self.calls), actor.process, call.op, call.start, self.now + 1))
        call.end = self._tick()
        call.start = min(call.start, call.end)

    # ------------------------------------------------------------------ the order

    def go(self) -> None:
        """Make all steps, as the chooser says, and check the history."""
        actors = {name: Actor(name, name[0], self._client) for name in self.scenario.programs if name[0].isupper()}
        others = [name for name in self.scenario.programs if not name[0].isupper()]
        for actor in actors.values():
            actor.late = self.late.append
            actor.begin()
        try:
            while options := self._options(actors, others):
                who, how = options[self.chooser.choose(len(options))]
                self.log.append(f"{self._tick()}: {who} {how}")
                if who in others:
                    others.remove(who)
                    self._befall(who)
                elif who == "wire":
                    self.late.pop(int(how))()
                else:
                    self.faults -= how != "goes on"
                    if how == "is sent again":
                        self.again.add(who)
                    actors[who].go(how)
                    if how.startswith("dies"):
                        self._died(actors[who].process, actors)
                self._audit()
        finally:
            for actor in actors.values():
                actor.dead = True
                while not actor.ended:
                    actor.go("dies before")
        self._check()

    def _options(self, actors: dict[str, Actor], others: list[str]) -> list[tuple[str, str]]:
        living = {name: actor for name, actor in actors.items() if not actor.ended}
        options = [(name, "goes on") for name in [*living, *others]]
        options += [("wire", str(index)) for index in range(len(self.late))]
        if self.faults:
            clients, kinds = self.scenario.faulty, self.scenario.faults
            if self.world.kind == "sqlite" and clients != ():
                clients = kinds = None
            for name, actor in living.items():
                if actor.pending is not None and (clients is None or name in clients):
                    options += [(name, fault) for fault in actor.pending.faults if kinds is None or fault in kinds]
        return options

    def _befall(self, what: str) -> None:
        if what == "clock":
            self.clock[0] += 10
            self._must(lambda state: state.turn_clock(), self.now)
        else:
            process = what.rpartition(" ")[2]
            self.processes[process].die()
            self._must(lambda state: state.charge(process), FOREVER)

    def _died(self, process: str, actors: dict[str, Actor]) -> None:
        self.processes[process].die()
        for actor in actors.values():
            if actor.process == process and not actor.ended:
                actor.dead = True
                actor.go("dies before")

        def give_no_more(state: State) -> None:
            state.gave = {place: value for place, value in state.gave.items() if place[1] != process}

        self._tick()
        self._must(give_no_more, self.now)
        self._must(lambda state: state.charge(process), FOREVER)

    def _must(self, change: Callable[[State], None], end: int) -> None:
        def apply(state: State) -> bool:
            change(state)
            return True

        self.others.append(Event(self.now, end, True, apply))

    # ------------------------------------------------------------------ what must hold

    def _audit(self) -> None:
        """Check what holds after every step: what is held is the sum of the claims, and no cap is passed."""
        found = self.world.audit(self.observer, self.names)
        for name, (used, held, _, _) in found.items():
            cap = self.scenario.caps.get(name)
            if cap is not None and not self.scenario.over and used + held > cap:
                raise Unfit(f"{used} used and {held} held of {cap} at {name!r}\n{self}")
        if self.scenario.split:
            for column, what in enumerate(("used", "held", "in flight")):
                parts = sum(row[column] for name, row in found.items() if name)
                if parts != found[""][column]:
                    raise Unfit(f"{what}: {found[''][column]} at the root, {parts} below\n{self}")

    def _check(self) -> None:
        """Check that the history fits some order of the calls, with the numbers in the end."""
        store, names = self.observer.store, list(self.names)
        for name in self.scenario.late_opened:
            if store.open(self.observer.scope(name), None, None, None, "stored").created:
                names.remove(name)
        rows = store.read(self.observer.chain(names))
        charged = sorted(one.tokens for one in store.expired())
        after = store.read(self.observer.chain(names))
        if [_numbers(row) for row in rows] != [_numbers(row) for row in after]:
            raise Unfit(f"the dead are not shown as charged: {rows} and then {after}\n{self}")

        def final(state: State) -> bool:
            state.meet([name for name in names if ":" in name])
            return (
                names == [name for name in self.names if name in state.scopes]
                and all(_numbers(row) == state.numbers(name) for name, row in zip(names, after, strict=True))
                and all(row.waiting == state.waiting(name) for name, row in zip(names, after, strict=True))
                and charged == state.charged()
            )

        calls = [call for call in self.calls if call.start != FOREVER]
        if not fits(self.state, events_of(calls, self.others), final):
            numbers = {name: (*_numbers(row), row.waiting) for name, row in zip(names, after, strict=True)}
            raise Unfit(f"no order of the calls fits: in the end {numbers}, charged {charged}\n{self}")

    def __str__(self) -> str:
        calls = "\n".join(map(str, self.calls))
        return f"{self.scenario.name}, {self.world.kind}, choices {self.chooser.taken}\n{calls}\n" + "\n".join(self.log)


def _numbers(row: Any) -> tuple[Any, ...]:
    return row.token_cap, row.tokens_claimed, row.tokens_held, row.in_flight


def _said(answer: Answer) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    said: tuple[Any, ...] = (answer.kind,)
    if answer.kind == REFUSED:
        said = (answer.kind, answer.at)
    elif answer.kind == REPEAT:
        said = (answer.kind, answer.counted[0])
    return said, tuple(map(_numbers, answer.rows))


def orders(scenario: Scenario, world: World) -> int:
    """Make a run of every order of a scenario's steps. Return how many there are."""

    def one(chooser: Chooser) -> bool:
        began = time.monotonic()
        try:
            Run(scenario, world, chooser).go()
        except Unfit:
            if time.monotonic() - began < _BEAT:
                raise
        return time.monotonic() - began < _BEAT

    return sum(1 for _ in explore(one))


def found_by(scenarios: Sequence[Scenario], world: World) -> dict[str, str]:
    """Return which scenarios fail, and how: for planted faults."""
    found = {}
    for scenario in scenarios:
        try:
            orders(scenario, world)
        except Exception as error:  # noqa: BLE001 - a fault may show in any way
            found[scenario.name] = f"{type(error).__name__}: {error}"
    return found
