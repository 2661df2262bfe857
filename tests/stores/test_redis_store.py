"""The Redis engine: each step against an engine in memory that does the same plainly, and by what the server has."""

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
        rows = tuple(shown(row) for row in answer.rows) if answer.kind == REFUSED else ()
        return answer.kind, answer.at, rows
    return answer


def outcome(step: Any, side: Side) -> Any:
    """Return what a step answers, or the class of what it raises."""
    try:
        return step(side)
    except (PoolClosed, ValueError, StoreError, LookupError) as error:
        return type(error)


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
        answer, model = (outcome(step, side) for side in self.sides)
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

    @rule(key=st.integers(0, 1), who=st.integers(0, 1))
    def forget(self, key: int, who: int) -> None:
        def step(side: Side) -> None:
            side.engines[who].forget(side.keys[key])  # the model has made it for whoever has only looked

        self.both(step)

    # Not of keys: they follow a change of their group with their next step, so that two changes may be one to them.
    @rule(place=st.sampled_from([0, 1, 4]), who=st.integers(0, 1), parts=st.sampled_from([5 * 10**8, 10**9]))
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


# ---------------------------------------------------------------- exact numbers


@pytest.mark.parametrize("cap", [HUGE, HUGE - 1, 2**53 + 1, 10**15, 10**15 - 1])
def test_a_cap_of_any_size_fills_to_the_last_unit_and_not_one_more(budget: Budget, cap: int) -> None:
    one = budget.process(opened=False)
    one.open(tokens=cap, nanos=cap)
    chain = one.child("kid")
    first, second = one.engine.new_key(), one.engine.new_key()
    assert one.engine.reserve(chain, first, cap - 1, cap - 1).kind == GRANTED
    assert one.engine.reserve(chain, one.engine.new_key(), 2, 0).kind == REFUSED
    assert one.engine.reserve(chain, one.engine.new_key(), 0, 2).kind == REFUSED
    assert one.engine.reserve(chain, second, 1, 1).kind == GRANTED
    assert one.engine.record(chain, 1, 0).kind == REFUSED
    assert one.engine.commit(chain, first, (cap - 1, cap - 1), (cap - 3, cap - 1)).kind == DONE
    assert one.engine.release(chain, second, (1, 1)).kind == DONE
    row = one.numbers(chain[0])
    assert (row.tokens_claimed, row.nanos_claimed) == (cap - 3, cap - 1)
    assert one.engine.record(chain, 3, 1).kind == DONE
    assert one.engine.record(chain, 1, 0).kind == one.engine.record(chain, 0, 1).kind == REFUSED


def test_an_axis_of_which_nothing_is_asked_refuses_nothing(budget: Budget) -> None:
    one = budget.process(opened=False)
    one.open(tokens=5, nanos=5)
    one.engine.record((one.root,), 0, 9, force=True)
    assert one.engine.record((one.root,), 5, 0).kind == DONE
    assert one.engine.record((one.root,), 0, 0).kind == DONE
    key = one.engine.new_key()
    assert one.engine.reserve((one.root,), key, 0, 0).kind == GRANTED
    assert one.engine.commit((one.root,), key, (0, 0), (0, 0)).kind == DONE


@pytest.mark.parametrize("axis", [0, 1])
def test_what_would_leave_64_bits_is_refused_before_anything_changes(budget: Budget, axis: int) -> None:
    one = budget.process(opened=False)
    one.open(tokens=0, nanos=0)
    chain = one.child("kid", tokens=HUGE, nanos=HUGE)
    amount = (HUGE, 0) if axis == 0 else (0, HUGE)
    for _ in range(8):
        assert one.engine.record(chain, *amount, force=True).kind == DONE
    assert one.engine.record(chain, 0, 0, force=True).kind == DONE
    before = budget.row(one.root.path), budget.row(chain[0].path)
    with pytest.raises(StoreError, match="more than a store can count"):
        one.engine.record(chain, *amount, force=True)
    key = one.engine.new_key()
    assert one.engine.reserve(chain, key, 0, 0).kind == GRANTED
    with pytest.raises(StoreError, match="more than a store can count"):
        one.engine.commit(chain, key, (0, 0), amount)
    assert one.engine.release(chain, key, (0, 0)).kind == DONE
    assert (budget.row(one.root.path), budget.row(chain[0].path)) == before
    row = one.numbers()
    assert (row.tokens_claimed, row.nanos_claimed)[axis] == 8 * HUGE


def test_without_a_cap_more_than_is_counted_is_an_error_and_no_refusal(budget: Budget) -> None:
    one = budget.process(opened=False)
    one.open()
    for _ in range(8):
        assert one.engine.record((one.root,), HUGE, HUGE).kind == DONE
    before = budget.row(one.root.path)
    for tokens, nanos in ((1, 0), (0, 1)):
        with pytest.raises(StoreError, match="more than a store can count"):
            one.engine.record((one.root,), tokens, nanos)
        with pytest.raises(StoreError, match="more than a store can count"):
            one.engine.reserve((one.root,), one.engine.new_key(), tokens, nanos, wait=True)
    assert budget.row(one.root.path) == before


def test_any_cap_can_be_set_whatever_is_claimed(budget: Budget) -> None:
    one = budget.process(opened=False)
    one.open()
    for _ in range(4):
        one.engine.record((one.root,), HUGE, HUGE)
        one.engine.reserve((one.root,), one.engine.new_key(), HUGE, HUGE)
    for caps in ((0, None), (None, 0), (10, 10), (HUGE, HUGE), (None, None)):
        one.engine.set_caps(one.root, caps[0], caps[1], UNCHANGED)
        row = one.numbers()
        assert (row.token_cap, row.nano_cap) == caps
        assert (row.tokens_claimed, row.tokens_held, row.nanos_claimed) == (8 * HUGE, 4 * HUGE, 8 * HUGE)
    one.engine.reset(one.root)
    assert one.engine.record((one.root,), HUGE, HUGE).kind == DONE


@pytest.mark.parametrize(("old", "new"), [(None, HUGE), (HUGE, None), (HUGE, 0), (0, HUGE), (None, 0), (7, 7)])
@pytest.mark.parametrize("used", [0, 5, HUGE - 1])
def test_a_changed_cap_leaves_what_is_used_and_held(budget: Budget, old: Any, new: Any, used: int) -> None:
    one = budget.process(opened=False)
    one.open(tokens=old)
    one.engine.record((one.root,), used, 0, force=True)
    key = one.engine.new_key()
    held = one.engine.reserve((one.root,), key, 1, 1)
    one.engine.set_caps(one.root, new, UNCHANGED, UNCHANGED)
    row = one.numbers()
    taken = 1 if held.kind == GRANTED else 0
    assert (row.token_cap, row.tokens_claimed, row.tokens_held) == (new, used + taken, taken)
    fits = new is None or used + taken + 1 <= new
    assert one.engine.record((one.root,), 1, 0).kind == (DONE if fits else REFUSED)


def test_amounts_are_exact_whatever_the_order_of_commits(budget: Budget) -> None:
    one = budget.process(opened=False)
    one.open()
    amounts = [3, 10**15, 10**15 - 1, 999_999_999_999_999_999, 2**53 + 1, 1]
    keys = [one.engine.new_key() for _ in amounts]
    for key, amount in zip(keys, amounts, strict=True):
        assert one.engine.reserve((one.root,), key, amount, amount).kind == GRANTED
    for key, amount, cost in zip(keys, amounts, reversed(amounts), strict=True):
        assert one.engine.commit((one.root,), key, (amount, amount), (cost, amount)).kind == DONE
    row = one.numbers()
    assert (row.tokens_claimed, row.tokens_held) == (row.nanos_claimed, row.nanos_held) == (sum(amounts), 0)
    assert row.in_flight == 0


# ---------------------------------------------------------------- what is refused, and where


def test_the_first_scope_in_the_order_of_the_chain_refuses(budget: Budget) -> None:
    one = budget.process(opened=False)
    one.open(tokens=10)
    chain = one.child("kid", tokens=5)
    other = one.child("other", tokens=20)
    joined = (chain[0], other[0], one.root)
    assert one.engine.reserve(joined, one.engine.new_key(), 6, 0).at == 0
    assert one.engine.reserve(other, one.engine.new_key(), 11, 0).at == 1
    assert one.engine.reserve(other, one.engine.new_key(), 21, 0).at == 0
    answer = one.engine.reserve(joined, one.engine.new_key(), 11, 0)
    assert (answer.at, [row.token_cap for row in answer.rows]) == (0, [5, 20, 10])
    assert all(one.used(scope) == (0, 0) for scope in joined)


@pytest.mark.parametrize("closed", [0, 1])
def test_a_closed_scope_anywhere_in_the_chain_is_what_refuses(budget: Budget, closed: int) -> None:
    one, two = budget.process(), budget.process()
    kid = one.child("kid", tokens=0)
    deep = one.child("deep", kid[0], tokens=0)
    theirs = two.child("deep", two.child("kid")[0])
    key = one.engine.new_key()
    one.engine.reserve(deep, key, 0, 0)
    one.engine.close(deep[closed])
    for process, chain in ((one, deep), (two, theirs)):
        with pytest.raises(PoolClosed, match=repr(deep[closed].name)):
            process.engine.reserve(chain, process.engine.new_key(), 1, 0)
        with pytest.raises(PoolClosed):
            process.engine.record(chain, 0, 0)
        assert chain[closed].closed
        assert process.engine.record(chain, 1, 0, force=True).kind == DONE
    assert one.engine.commit(deep, key, (0, 0), (3, 0)).kind == DONE
    assert one.used(deep[0]) == (5, 0)


# ---------------------------------------------------------------- what stands in the server


def test_all_keys_of_a_budget_share_its_hash_tag_whatever_its_names(budget: Budget) -> None:
    odd = Budget(name='a/b {c} 100% *?[x] "q" \N{SNOWMAN}' + budget.name)
    one = odd.process()
    chain = one.child("kid/of *[a] {}")
    user = one.key(one.group("u:v"), "ann/1 *:")
    joined = (user[0], *chain)
    key = one.engine.new_key()
    assert one.engine.reserve(joined, key, 1, 1).kind == GRANTED
    assert one.engine.keys(user[0].group) == ["ann/1 *:"]  # type: ignore[arg-type]
    found = [path for path, _, _ in one.engine.tree(one.root)]
    assert set(found) == {scope.path for scope in joined}
    names = [name for name in odd.raw.scan_iter("tb:*") if budget.name in name]
    assert names
    assert {name[: len(odd.keys.root)] for name in names} == {odd.keys.root}
    odd.close()


def test_what_is_at_rest_leaves_nothing_of_its_process_behind(budget: Budget) -> None:
    one = budget.process()
    chain = one.child("kid")
    for _ in range(20):
        key = one.engine.new_key()
        one.engine.reserve(chain, key, 1, 1)
        one.engine.commit(chain, key, (1, 1), (1, 1))
        one.engine.record(chain, 1, 1)
    assert len(budget.own(one)) < 10  # answers that the next steps delete
    one.engine.let_go()
    kinds = {name.split(":")[2] for name in budget.raw.scan_iter(f"{budget.keys.root}:*")}
    assert kinds == {"n", "o", "s", "z"}
    (ended,) = budget.raw.scan_iter(f"{budget.keys.root}:o:*")
    assert budget.raw.hgetall(ended) == {"e": "1"}
    assert 0 < budget.raw.ttl(ended) <= 86400
    assert budget.raw.zrange(budget.keys.leases, 0, -1) == ["."]
    assert one.numbers().tokens_claimed == 40


def test_a_keys_scope_expires_after_its_period_but_not_while_something_is_in_flight(budget: Budget) -> None:
    one = budget.process()
    group = one.group(window=Window.daily(), tokens=9)
    chain = one.key(group, "ann")
    name = budget.keys.scope(chain[0].path)
    one.engine.record(chain, 1, 0)
    row = one.numbers(chain[0])
    assert budget.raw.pexpiretime(name) == int((row.end + 86400) * 1000)
    keys = [one.engine.new_key() for _ in range(2)]
    for key in keys:
        one.engine.reserve(chain, key, 1, 0)
    assert budget.raw.ttl(name) == -1
    one.engine.commit(chain, keys[0], (1, 0), (1, 0))
    assert budget.raw.ttl(name) == -1
    one.engine.release(chain, keys[1], (1, 0))
    assert budget.raw.pexpiretime(name) == int((row.end + 86400) * 1000)
    assert budget.raw.ttl(budget.keys.root) == -1


def test_a_key_with_values_of_its_own_or_a_clock_of_its_own_does_not_expire(budget: Budget) -> None:
    one = budget.process()
    mine = one.key(one.group(window=Window.daily(), tokens=9), "ann")
    one.engine.record(mine, 1, 0)
    one.engine.set_caps(mine[0], 20, UNCHANGED, UNCHANGED)
    clocked = one.key(one.group("clocked", window=Window.daily(clock=lambda: 0.0), tokens=9), "bob")
    one.engine.record(clocked, 1, 0)
    one.wire.volatile = True  # a server that evicts what expires, though it is in use
    evicting = one.key(one.group("evicting", window=Window.daily(), tokens=9), "cyd")
    one.engine.record(evicting, 1, 0)
    for chain in (mine, clocked, evicting):
        assert budget.raw.ttl(budget.keys.scope(chain[0].path)) == -1


def test_a_key_that_has_expired_is_made_anew_with_what_holds_then(budget: Budget) -> None:
    one = budget.process()
    group = one.group(window=Window.daily(), tokens=9)
    chain = one.key(group, "ann")
    one.engine.record(chain, 8, 0)
    era = one.numbers(chain[0]).era
    budget.raw.delete(budget.keys.scope(chain[0].path))  # as its expiry does
    assert not one.engine.knows(chain[0])
    assert one.used(chain[0]) == (0, 0)
    assert one.engine.record(chain, 9, 0).kind == DONE
    assert one.engine.knows(chain[0])
    assert one.numbers(chain[0]).era > era


def test_a_key_is_small(budget: Budget) -> None:
    one = budget.process()
    chain = one.key(one.group(window=Window.daily(), tokens=10**6, nanos=10**10), "user-12345")
    key = one.engine.new_key()
    one.engine.reserve(chain, key, 5_000, 10**7)
    one.engine.commit(chain, key, (5_000, 10**7), (4_321, 9_876_543))
    name = budget.keys.scope(chain[0].path)
    assert budget.raw.object("encoding", name) == "listpack"
    assert budget.raw.memory_usage(name) - len(name) <= 250


def scopes_of(chain: tuple[Scope, ...]) -> list[str]:
    return [scope.path for scope in chain]


def test_a_join_counts_in_each_of_its_scopes_once(budget: Budget) -> None:
    one = budget.process()
    a, b = one.child("a", tokens=5), one.child("b", tokens=9)
    joined = (a[0], b[0], one.root)
    key = one.engine.new_key()
    one.engine.reserve(joined, key, 5, 0)
    assert one.engine.reserve(a, one.engine.new_key(), 1, 0).kind == REFUSED
    one.engine.commit(joined, key, (5, 0), (7, 0), rows=True)
    assert [one.used(scope) for scope in joined] == [(7, 0)] * 3
