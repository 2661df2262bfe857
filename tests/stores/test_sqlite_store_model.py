"""The SQLite ledger against an engine in memory that does the same plainly: the same steps, by several processes."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from memory_store import MemoryBudget, MemoryStore
from sqlite_ledger import Played, audit
from token_budget import PoolClosed, Window
from token_budget._arguments import UNCHANGED
from token_budget.stores._names import path_of
from token_budget.stores._store import DONE, GRANTED, LATE, REFUSED, UNKNOWN, Answer, Group, Scope

SHOWN = (
    "token_cap", "nano_cap", "tokens_claimed", "tokens_held", "nanos_claimed", "nanos_held", "in_flight", "start",
    "end", "waiting", "closed",
)  # fmt: skip
AMOUNTS = st.sampled_from([0, 0, 1, 2, 3, 5, 8, 13])
CAPS = st.sampled_from([None, 0, 5, 10, 20, 10**17])
PLACES = st.integers(0, 5)
WHO = st.integers(0, 1)


class Side:
    """One of the two budgets: two processes of it, each with scopes of its own."""

    def __init__(self, engines: list[Any]) -> None:
        self.engines = engines
        self.scopes = [scopes() for _ in engines]
        self.claims: list[Any] = []  # (who, place, key, held) of those that are held
        self.waiters: list[Any] = []
        self.lost: list[Any] = []  # the ids of claims whose holder died, or that were handed over

    def chain(self, who: int, place: int) -> tuple[Scope, ...]:
        return self.scopes[who][place]  # type: ignore[no-any-return]

    def group(self, who: int) -> Group:
        group: Group | None = self.scopes[who][2][0].group
        assert group is not None
        return group


def scopes() -> list[Any]:
    """Return the chains of one process: the root, a child, two keys, a child's child, and a join."""
    root = Scope("total", "total")
    child = Scope("kid", "total/kid", root)
    group = Group(root, "user", path_of("total", "user", ""))
    keys = [Scope(f"user:{key}", path_of("total", "user", key), root, group) for key in ("a", "b")]
    below = Scope("deep", "total/kid/deep", child)
    return [(root,), (child, root), (keys[0], root), (keys[1], root), (below, child, root), (keys[0], child, root)]


class Compared(RuleBasedStateMachine):
    """The same steps in the file and in memory: the same answers and the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.now = [0.0]
        self.folder = Path(tempfile.mkdtemp())
        self.living: set[int] = set()
        self.memory = MemoryBudget()
        self.reopened = False  # to open a scope arms its thresholds in memory, and only changed caps do in the file
        self.played = [self.process() for _ in range(2)]
        self.window = Window.parse("every 10s", clock=lambda: self.now[0])
        store = Side([one.store for one in self.played])
        model = Side([MemoryStore("total", self.memory) for _ in range(2)])
        self.sides = (store, model)
        for side, who in itertools.product(self.sides, (0, 1)):
            self.open(side, who)

    def process(self) -> Played:
        return Played(self.folder / "budget.db", self.living)

    def open(self, side: Side, who: int) -> None:
        engine, chains = side.engines[who], side.scopes[who]
        for chain in chains[:5]:
            chain[0].window = self.window  # it tells the clock, which is the test's own
        engine.open(chains[0][0], 20, 10**17, None, "mine")
        engine.open(chains[1][0], 10, None, self.window, "mine")
        engine.open(chains[4][0], None, 8, None, "mine")
        engine.open(side.group(who), 8, 10, self.window, "mine")

    def teardown(self) -> None:
        audit(self.folder / "budget.db")
        for one in self.played:
            one.close()
        shutil.rmtree(self.folder)

    def both(self, step: Any) -> Any:
        """Do a step on both sides, and compare what comes out."""
        answer, model = (outcome(step, side) for side in self.sides)
        assert plain(answer) == plain(model)
        return model

    # ------------------------------------------------------------------ spending

    @rule(place=PLACES, who=WHO, tokens=AMOUNTS, nanos=AMOUNTS, wait=st.booleans())
    def reserve(self, place: int, who: int, tokens: int, nanos: int, wait: bool) -> None:
        def step(side: Side) -> Any:
            key = side.engines[who].new_key()
            answer = side.engines[who].reserve(side.chain(who, place), key, tokens, nanos, wait=wait, rows=True)
            entry = (who, place, key, (tokens, nanos))
            if answer.kind == GRANTED:
                side.claims.append(entry)
            elif wait:
                side.waiters.append(entry)
            return answer

        self.both(step)

    @precondition(lambda self: self.sides[1].waiters)
    @rule(which=st.integers(0, 99), leave=st.booleans())
    def try_again(self, which: int, leave: bool) -> None:
        def step(side: Side) -> Any:
            index = which % len(side.waiters)
            who, place, key, amount = side.waiters[index]
            chain = side.chain(who, place)
            if leave:
                side.waiters.pop(index)
                return side.engines[who].leave(chain, key)
            answer = side.engines[who].reserve(chain, key, *amount, wait=True, rows=True)
            if answer.kind == GRANTED:
                side.claims.append(side.waiters.pop(index))
            return answer

        self.both(step)

    @rule(place=PLACES, who=WHO, tokens=AMOUNTS, nanos=AMOUNTS, force=st.booleans())
    def record(self, place: int, who: int, tokens: int, nanos: int, force: bool) -> None:
        self.both(lambda side: side.engines[who].record(side.chain(who, place), tokens, nanos, force=force))

    @precondition(lambda self: self.sides[1].claims)
    @rule(which=st.integers(0, 99), tokens=AMOUNTS, nanos=AMOUNTS, keep=st.booleans())
    def commit(self, which: int, tokens: int, nanos: int, keep: bool) -> None:
        def step(side: Side) -> Any:
            index = which % len(side.claims)
            who, place, key, held = side.claims[index]
            if not keep:
                side.claims.pop(index)
            return side.engines[who].commit(side.chain(who, place), key, held, (tokens, nanos))

        self.both(step)

    @precondition(lambda self: self.sides[1].claims)
    @rule(which=st.integers(0, 99), cancel=st.booleans())
    def release(self, which: int, cancel: bool) -> None:
        def step(side: Side) -> Any:
            who, place, key, held = side.claims.pop(which % len(side.claims))
            engine = side.engines[who]
            if cancel:
                return engine.cancel(side.chain(who, place), key, held)
            return engine.release(side.chain(who, place), key, held).kind == DONE

        self.both(step)

    # ------------------------------------------------------------------ claims without a holder

    @precondition(lambda self: self.sides[1].claims)
    @rule(which=st.integers(0, 99))
    def hand_over(self, which: int) -> None:
        def step(side: Side) -> Any:
            who, place, key, held = side.claims.pop(which % len(side.claims))
            try:
                new = side.engines[who].hand_over(side.chain(who, place), key, held, 3600.0)
            except LookupError:
                return "settled before"
            side.lost.append(side.engines[who].id_of(new))
            return "handed over"

        self.both(step)

    @rule(who=WHO)
    def die(self, who: int) -> None:
        """One is killed, the other finds out, and a new one begins."""
        store, model = self.sides
        self.reopened = True
        for side in self.sides:
            begin_periods(side, 1 - who)
        self.played[who].die()
        model.engines[who].die()
        for side in self.sides:
            side.engines[1 - who].expired()
            for holder, _, key, _ in side.claims:
                if holder == who:
                    side.lost.append(side.engines[who].id_of(key))
            side.claims = [claim for claim in side.claims if claim[0] != who]
            side.waiters = [waiter for waiter in side.waiters if waiter[0] != who]
        self.played.append(self.process())
        store.engines[who] = self.played[-1].store
        self.played[who], self.played[-1] = self.played[-1], self.played[who]
        for side in self.sides:
            side.scopes[who] = scopes()
            self.open(side, who)

    @precondition(lambda self: self.sides[1].lost)
    @rule(which=st.integers(0, 99), who=WHO, tokens=AMOUNTS, nanos=AMOUNTS)
    def settle(self, which: int, who: int, tokens: int, nanos: int) -> None:
        def step(side: Side) -> Any:
            claim = side.lost[which % len(side.lost)]
            begin_periods(side, who)
            answer, _ = side.engines[who].settle(claim, tokens, nanos)
            # A claim that its own holder had settled is not remembered for others: the file forgets it.
            return None if answer.kind in {UNKNOWN, "repeat"} else (answer.kind, answer.counted)

        self.both(step)

    @rule(who=WHO)
    def expired(self, who: int) -> None:
        listed = self.both(
            lambda side: sorted((one.tokens, one.nanos, one.paths) for one in side.engines[who].expired())
        )
        assert isinstance(listed, list)

    # ------------------------------------------------------------------ what changes a scope

    @rule(seconds=st.sampled_from([1.0, 4.0, 9.5, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now[0] += seconds

    @rule(place=PLACES, who=WHO)
    def reset(self, place: int, who: int) -> None:
        self.both(lambda side: side.engines[who].reset(side.chain(who, place)[0]))

    @rule(place=PLACES, who=WHO, tokens=CAPS, nanos=st.one_of(CAPS, st.just(UNCHANGED)))
    def set_caps(self, place: int, who: int, tokens: Any, nanos: Any) -> None:
        self.both(lambda side: side.engines[who].set_caps(side.chain(who, place)[0], tokens, nanos, UNCHANGED))

    @rule(place=PLACES, who=WHO, some=st.booleans())
    def set_window(self, place: int, who: int, some: bool) -> None:
        window = Window.parse("every 7s", clock=lambda: self.now[0]) if some else None
        self.both(lambda side: side.engines[who].set_caps(side.chain(who, place)[0], UNCHANGED, UNCHANGED, window))

    @rule(who=WHO, tokens=CAPS, window=st.sampled_from(["every 7s", "every 10s", UNCHANGED]))
    def set_group(self, who: int, tokens: Any, window: Any) -> None:
        given = Window.parse(window, clock=lambda: self.now[0]) if isinstance(window, str) else window
        self.both(lambda side: side.engines[who].set_group(side.group(who), tokens, UNCHANGED, given))

    @rule(key=st.integers(2, 3), who=WHO)
    def forget(self, key: int, who: int) -> None:
        def step(side: Side) -> None:
            if side.lost or any(waiter[1] in {key, 5} for waiter in side.waiters):
                return  # the model keeps the tickets of a scope that is gone, and takes a new one for the one charged
            side.engines[who].forget(side.chain(who, key)[0])  # the model has made it for whoever has only looked

        self.both(step)

    @precondition(lambda self: not self.reopened)
    @rule(place=PLACES, who=WHO, parts=st.sampled_from([5 * 10**8, 10**9]))
    def claim_threshold(self, place: int, who: int, parts: int) -> None:
        def step(side: Side) -> bool:
            engine, scope = side.engines[who], side.chain(who, place)[0]
            engine.record(side.chain(who, place), 0, 0, force=True)  # in the period that it is now
            row = engine.read((scope,))[0]
            return bool(engine.claim_threshold(scope, row.era, parts))

        self.both(step)

    @invariant()
    def the_numbers_are_the_same(self) -> None:
        for who in (0, 1):
            store, model = (
                [row for place in range(6) for row in side.engines[who].read(side.chain(who, place))]
                for side in self.sides
            )
            assert list(map(shown, store)) == list(map(shown, model))
            if not self.reopened:
                assert [row.told for row in store] == [row.told for row in model]


def begin_periods(side: Side, who: int) -> None:
    """Begin the periods that it is now, which the model leaves to other steps where a claim is charged or settled."""
    for place in range(5):
        side.engines[who].record(side.chain(who, place), 0, 0, force=True)


def shown(row: Any) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in SHOWN)


def plain(answer: Any) -> Any:
    if isinstance(answer, Answer):
        rows = tuple(shown(row) for row in answer.rows) if answer.kind in {REFUSED, LATE, GRANTED} else ()
        return answer.kind, answer.at, answer.counted, bool(answer.ticket), rows
    return answer


def outcome(step: Any, side: Side) -> Any:
    """Return what a step answers, or the class of what it raises."""
    try:
        return step(side)
    except (PoolClosed, ValueError, LookupError) as error:
        return type(error)


TestCompared = Compared.TestCase
TestCompared.settings = settings(
    max_examples=40,
    stateful_step_count=50,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
