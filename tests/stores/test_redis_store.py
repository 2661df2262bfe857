"""The Redis engine: what each step does, against an engine in memory that does it plainly, and by the numbers stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from memory_store import MemoryBudget, MemoryStore
from redis_stores import Budget
from token_budget import PoolClosed, Window
from token_budget._arguments import UNCHANGED
from token_budget.stores._errors import StoreError
from token_budget.stores._names import path_of
from token_budget.stores._store import DONE, GRANTED, REFUSED, Answer, Group, Scope

HUGE = 10**18


@pytest.fixture
def budget() -> Iterator[Budget]:
    budget = Budget()
    yield budget
    budget.close()


# ---------------------------------------------------------------- the engine in memory is the model

NAMES = ("tokens_claimed", "tokens_held", "nanos_claimed", "nanos_held", "in_flight", "token_cap", "nano_cap")
SHOWN = (*NAMES, "start", "end", "waiting", "closed")
AMOUNTS = st.sampled_from([0, 0, 1, 2, 3, 5, 8, 13])
CAPS = st.sampled_from([None, 0, 5, 10, 20, 10**17])
PLACES = st.integers(0, 4)


class Side:
    """One of the two budgets: two processes of it, each with the same scopes."""

    def __init__(self, engines: list[Any], name: str) -> None:
        self.engines = engines
        self.root = Scope(name, path_of(None, name))
        self.child = Scope("kid", path_of(self.root.path, "kid"), self.root)
        self.group = Group(self.root, "user", path_of(self.root.path, "user", ""))
        self.keys = [
            Scope(f"user:{key}", path_of(self.root.path, "user", key), self.root, self.group) for key in ("a", "b")
        ]
        below = Scope("deep", path_of(self.child.path, "deep"), self.child)
        self.chains = [
            (self.root,),
            (self.child, self.root),
            (self.keys[0], self.root),
            (self.keys[1], self.root),
            (below, self.child, self.root),
        ]
        self.joined = (self.keys[0], self.child, self.root)
        self.claims: list[Any] = []


def shown(row: Any) -> tuple[Any, ...]:
    return (*(getattr(row, name) for name in SHOWN), sorted(row.told))


def plain(answer: Any) -> Any:
    if isinstance(answer, Answer):
        rows = tuple(shown(row) for row in answer.rows) if answer.kind in {REFUSED} else ()
        return answer.kind, answer.at, rows
    return answer


class Compared(RuleBasedStateMachine):
    """The same steps, by two processes, on the server and in memory: the same answers and the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.now = [0.0]
        self.budget = Budget()
        store = Side([self.budget.process(opened=False).engine for _ in range(2)], self.budget.name)
        memory = MemoryBudget()
        model = Side([MemoryStore(self.budget.name, memory) for _ in range(2)], self.budget.name)
        self.sides = (store, model)
        window = Window.parse("every 10s", clock=lambda: self.now[0])
        self.window = window
        for side in self.sides:
            for engine in side.engines:
                engine.open(side.root, 20, 10**17, None, "code")
                engine.open(side.child, 10, None, window, "code")
                engine.open(side.chains[4][0], None, 8, None, "code")
                engine.open(side.group, 8, 10, window, "code")

    def teardown(self) -> None:
        self.budget.close()

    def both(self, step: Any) -> Any:
        """Do a step on both sides, and compare what comes out."""
        outcomes = []
        for side in self.sides:
            try:
                outcomes.append((None, step(side)))
            except (PoolClosed, ValueError, StoreError, LookupError) as error:
                outcomes.append((type(error), None))
        (error, answer), (model_error, model) = outcomes
        assert error is model_error
        assert plain(answer) == plain(model)
        return model

    @rule(place=PLACES, who=st.integers(0, 1), tokens=AMOUNTS, nanos=AMOUNTS, joined=st.booleans())
    def reserve(self, place: int, who: int, tokens: int, nanos: int, joined: bool) -> None:
        def step(side: Side) -> Any:
            chain = side.joined if joined else side.chains[place]
            key = side.engines[who].new_key()
            answer = side.engines[who].reserve(chain, key, tokens, nanos, rows=True)
            if answer.kind == GRANTED:
                side.claims.append((who, chain, key, (tokens, nanos)))
            return answer

        self.both(step)

    @rule(place=PLACES, who=st.integers(0, 1), tokens=AMOUNTS, nanos=AMOUNTS, force=st.booleans())
    def record(self, place: int, who: int, tokens: int, nanos: int, force: bool) -> None:
        self.both(lambda side: side.engines[who].record(side.chains[place], tokens, nanos, force=force))

    @precondition(lambda self: self.sides[1].claims)
    @rule(which=st.integers(0, 99), tokens=AMOUNTS, nanos=AMOUNTS, keep=st.booleans())
    def commit(self, which: int, tokens: int, nanos: int, keep: bool) -> None:
        def step(side: Side) -> Any:
            index = which % len(side.claims)
            who, chain, key, held = side.claims[index]
            if not keep:
                side.claims.pop(index)
            return side.engines[who].commit(chain, key, held, (tokens, nanos))

        self.both(step)

    @precondition(lambda self: self.sides[1].claims)
    @rule(which=st.integers(0, 99), cancel=st.booleans())
    def release(self, which: int, cancel: bool) -> None:
        def step(side: Side) -> Any:
            who, chain, key, held = side.claims.pop(which % len(side.claims))
            engine = side.engines[who]
            return engine.cancel(chain, key, held) if cancel else engine.release(chain, key, held).kind == DONE

        self.both(step)

    @rule(seconds=st.sampled_from([1.0, 4.0, 9.5, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now[0] += seconds

    @rule(place=PLACES, who=st.integers(0, 1))
    def reset(self, place: int, who: int) -> None:
        self.both(lambda side: side.engines[who].reset(side.chains[place][0]))

    @rule(place=PLACES, who=st.integers(0, 1), tokens=CAPS, nanos=st.one_of(CAPS, st.just(UNCHANGED)))
    def set_caps(self, place: int, who: int, tokens: Any, nanos: Any) -> None:
        self.both(lambda side: side.engines[who].set_caps(side.chains[place][0], tokens, nanos, UNCHANGED))

    @rule(place=PLACES, who=st.integers(0, 1), some=st.booleans())
    def set_window(self, place: int, who: int, some: bool) -> None:
        window = Window.parse("every 7s", clock=lambda: self.now[0]) if some else None
        self.both(lambda side: side.engines[who].set_caps(side.chains[place][0], UNCHANGED, UNCHANGED, window))

    @rule(who=st.integers(0, 1), tokens=CAPS, window=st.sampled_from(["every 7s", "every 10s", None, UNCHANGED]))
    def set_group(self, who: int, tokens: Any, window: Any) -> None:
        given = Window.parse(window, clock=lambda: self.now[0]) if isinstance(window, str) else window
        self.both(lambda side: side.engines[who].set_group(side.group, tokens, UNCHANGED, given))
        self.the_numbers_are_the_same()  # also where no key's scope follows yet: each does with its next step
        for place in (2, 3):
            self.both(lambda side, place=place: side.engines[who].record(side.chains[place], 0, 0, force=True))

    @rule(key=st.integers(0, 1), who=st.integers(0, 1))
    def forget(self, key: int, who: int) -> None:
        def step(side: Side) -> None:
            side.engines[who].forget(side.keys[key])  # the model has made it for whoever has only looked

        self.both(step)

    @rule(place=PLACES, who=st.integers(0, 1), parts=st.sampled_from([5 * 10**8, 10**9]))
    def claim_threshold(self, place: int, who: int, parts: int) -> None:
        def step(side: Side) -> bool:
            engine, scope = side.engines[who], side.chains[place][0]
            engine.record(side.chains[place], 0, 0, force=True)  # in the period that it is now
            row = engine.read((scope,))[0]
            return bool(engine.claim_threshold(scope, row.era, parts))

        self.both(step)

    @invariant()
    def the_numbers_are_the_same(self) -> None:
        store, model = ([shown(row) for row in self.rows(side)] for side in self.sides)
        assert store == model

    @staticmethod
    def rows(side: Side) -> list[Any]:
        return [side.engines[1].read(chain)[0] for chain in side.chains]


TestCompared = Compared.TestCase
TestCompared.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
