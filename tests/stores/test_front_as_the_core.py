"""The front means what the core means: the same calls on both, and the same answers, errors, numbers and events."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_store import MemoryPool
from token_budget import BudgetExceeded, BudgetPool, Window
from token_budget.contract import Pool

POOLS = ("total", "atlas", "run", "user:ann", "both")
AMOUNTS = st.tuples(st.integers(0, 60), st.integers(0, 60))
CAPS = st.none() | st.integers(0, 120)


class World:
    """A tree of pools, in process or in a store: two levels of children, a key, a join; and what is heard of them."""

    def __init__(self, root: Any, now: list[float]) -> None:
        self.root: Any = root
        self.now = now
        self.heard: list[Any] = []
        self.held: list[Any] = []
        atlas = root.child(90, 0.000_000_05, name="atlas", window=self.window("every 1h"))
        run = atlas.child(60, name="run")
        ann = root.keyed(70, name="user")["ann"]
        ann.record()  # a store makes a key when something is spent there
        both = type(root).join(run, ann, name="both")
        self.pools: dict[str, Any] = dict(zip(POOLS, (root, atlas, run, ann, both), strict=True))
        for name, pool in self.pools.items():
            pool.subscribe(lambda event, name=name: self.hear(name, event))
        for name in ("total", "run", "user:ann"):
            for share in (0.5, 1, 1.5):
                self.pools[name].on_threshold(share, lambda event, at=(name, share): self.hear(at, event))

    def window(self, text: str) -> Window:
        return Window.parse(text, clock=lambda: self.now[0])

    def hear(self, where: Any, event: Any) -> None:
        if event.kind != "roll-over":  # in process it is told by a look, too
            self.heard.append((where, event.to_dict()))

    def take(self) -> list[Any]:
        heard, self.heard = self.heard, []
        return heard

    def do(self, call: tuple[Any, ...]) -> Any:
        """Do one thing. Return what it comes to: a value, or the class, text and facts of an error."""
        what, name, amounts, number, caps = call
        pool, (tokens, usd) = self.pools[name], (amounts[0], amounts[1] / 10**9)
        try:
            return self._do(what, pool, tokens, usd, number, caps)
        except BudgetExceeded as error:
            facts = (error.axis, error.pool, error.exhausted, error.resets_at, error.retry_after, error.cap)
            return type(error), str(error), facts
        except (RuntimeError, ValueError) as error:
            return type(error)

    def _do(self, what: str, pool: Any, tokens: int, usd: float, number: int, caps: Any) -> None:
        held = self.held[number % len(self.held)] if self.held else None
        if what in {"record", "force"}:
            pool.record(tokens=tokens, usd=usd, force=what == "force")
        elif what == "reserve":
            self.held.append(pool.reserve(tokens=tokens, usd=usd))
        elif what == "commit" and held is not None:
            held.commit(tokens=tokens, usd=usd)
        elif what == "as reserved" and held is not None:
            held.commit()
        elif what == "release" and held is not None:
            held.release()
        elif what == "reset":
            pool.reset()
        elif what == "caps" and pool.name != "both":
            pool.set_caps(token_cap=caps[0], usd_cap=None if caps[1] is None else caps[1] / 10**9)
        elif what == "window" and pool.name not in {"both", "total"}:
            pool.set_caps(window=None if caps[0] is None else self.window(f"every {1 + caps[0] % 3}h"))
        elif what == "close" and pool.name in {"run", "user:ann", "both"}:
            pool.close()

    def shown(self) -> list[Any]:
        states = [held.completed for held in self.held]
        tree = self.root.snapshot(tree=True).to_dict()
        return [tree, states, *[(pool.snapshot().to_dict(), pool.closed) for pool in self.pools.values()]]

    def end(self) -> None:
        for held in self.held:
            held.release()


CALLS = st.one_of(
    st.tuples(
        st.sampled_from(["record", "force", "reserve", "reserve", "commit", "as reserved", "release"]),
        st.sampled_from(POOLS),
        AMOUNTS,
        st.integers(0, 20),
        st.just((None, None)),
    ),
    st.tuples(
        st.sampled_from(["reset", "caps", "window", "close", "an hour later"]),
        st.sampled_from(POOLS),
        st.just((0, 0)),
        st.just(0),
        st.tuples(CAPS, CAPS),
    ),
)


@settings(max_examples=300)
@given(st.lists(CALLS, max_size=30))
def test_a_pool_of_a_store_answers_every_call_as_one_in_process_does(calls: list[Any]) -> None:
    now = [3600.0 * 10 + 5]
    core = World(BudgetPool(100, 0.000_000_1, name="total", window=clocked("every 2h", now)), now)
    pool = MemoryPool(token_cap=100, usd_cap=0.000_000_1, name="total", window=clocked("every 2h", now))
    store = World(pool, now)
    try:
        for call in calls:
            if call[0] == "an hour later":
                now[0] += 3600
            assert store.do(call) == core.do(call), call
            assert store.take() == core.take(), call
            assert store.shown() == core.shown(), call
    finally:
        core.end()
        store.end()
        pool.close()


def clocked(text: str, now: list[float]) -> Window:
    return Window.parse(text, clock=lambda: now[0])


def test_a_pool_of_a_store_is_a_pool() -> None:
    pool: Pool = MemoryPool()
    keys: Any = pool.keyed(name="user")
    assert pool.child(name="run").name == "run"
    assert keys["ann"].name == "user:ann"
    pool.close()


@pytest.mark.parametrize("seconds", [0, timedelta(hours=3).total_seconds(), timedelta(hours=9).total_seconds()])
def test_a_clock_that_steps_back_reopens_no_period_in_a_store(seconds: float) -> None:
    now = [3600.0 * 10 + 5]
    pool = MemoryPool(token_cap=100, window=clocked("every 1h", now))
    pool.record(tokens=40)
    now[0] -= seconds
    assert pool.snapshot().tokens_used == 40
    pool.reset()  # takes the clock's period
    shown = pool.snapshot()
    assert shown.tokens_used == 0
    assert shown.window_start is not None
    assert shown.window_start.timestamp() == now[0] - 5
    pool.close()
