"""The Redis engine over a cluster: every script runs there, on keys of one slot, and wakes who waits.

All tests of the engine run over a cluster with ``REDIS_STORE=cluster``; this is a look at every script.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import redis_stores
from redis_server import one_node_cluster
from redis_stores import Budget
from token_budget import Window
from token_budget._arguments import UNCHANGED
from token_budget.stores._store import DONE, GRANTED, LATE
from token_budget.stores.redis._scripts import NAMES


@pytest.fixture
def budget(monkeypatch: Any) -> Iterator[Budget]:
    monkeypatch.setattr(redis_stores, "CLUSTERED", True)
    server = one_node_cluster()
    budget = Budget(server, tokens=100)
    yield budget
    budget.close()
    server.close()


def test_every_script_runs_over_a_cluster(budget: Budget) -> None:
    now = [5.0]
    one, two = budget.process(), budget.process()
    chain = one.child("kid", tokens=50, window=Window.parse("every 10s", clock=lambda: now[0]))
    ann = one.key(one.group(tokens=50, window=Window.daily()), "ann")
    job = one.child("job", ann[0])
    joined = (job[0], ann[0], chain[0], one.root)
    held, handed, left, waiting = (one.engine.new_key() for _ in range(4))
    for key in (held, handed, left):
        assert one.engine.reserve(joined, key, 10, 1).kind == GRANTED
    assert one.engine.commit(joined, held, (10, 1), (11, 2)).kind == DONE
    new = one.engine.hand_over(joined, handed, (10, 1), 60)
    assert two.engine.settle(one.engine.id_of(new), 9, 0)[0].kind == DONE
    assert one.engine.reserve(joined, waiting, 50, 0, wait=True).at == 1  # at the key
    heads = [(joined, waiting, 50, 0)]
    returned: list[Any] = []
    thread = threading.Thread(target=lambda: returned.append([one.engine.watch(heads, 20.0) for _ in range(2)]))
    thread.start()
    while len(returned) < 1:
        two.engine.settle(one.engine.id_of(left), 1, 0)
        two.engine.record((two.root,), 0, 0)
        two.engine.reset(two.key(two.group(), "ann")[0])  # which tells who waits, again and again until it listens
        thread.join(0.05)
    one.engine._watcher._look(heads)
    one.engine.leave(joined, waiting)
    assert one.engine.cancel(joined, waiting, (50, 0)) is False
    now[0] = 25.0
    assert one.engine.record(joined, 5, 0).kind == DONE
    one.engine.set_caps(chain[0], 60, UNCHANGED, UNCHANGED)
    one.engine.set_group(ann[0].group, 70, UNCHANGED, UNCHANGED)  # type: ignore[arg-type]
    assert one.engine.claim_threshold(chain[0], one.numbers(chain[0]).era, 1)
    late = one.engine.new_key()
    one.engine.reserve(joined, late, 3, 0)
    budget.kill(one)
    assert len(two.engine.expired()) == 1
    assert two.engine.keys(ann[0].group) == ["ann"]  # type: ignore[arg-type]
    assert len(two.engine.tree(two.root)) == 4
    assert two.engine.forget(ann[0])
    assert one.engine.commit(joined, late, (3, 0), (4, 0)).kind == LATE
    one.engine.close(chain[0])
    one.engine._process.renew_at = 0.0
    one.engine.tend()
    one.engine.let_go()
    sent = {name for process in (one, two) for name, _ in process.wire.sent}
    assert sent == set(NAMES)
