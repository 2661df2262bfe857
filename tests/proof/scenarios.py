"""What the scheduler explores: every pair of operations on one pool, and some triples.

All amounts move both axes alike (n tokens and n dollars), and every reservation holds HELD of both. So at every step,
whatever thread is where, while the lock is free the two axes must agree, and what is reserved must be HELD times what
is in flight: a change that is cut in half shows at once, whoever is doing what.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import Any

from scheduler import ModelLock, Scenario

HELD = 20
CAP = 100
NANOS = 10**9

Operation = Callable[[Any], Any]


class World:
    """A pool with a spend of 10 and two reservations of HELD, as used by every scenario."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.pool = module.BudgetPool(token_cap=CAP, usd_cap=CAP)
        self.pool.record(tokens=10, usd=10)
        self.held = [self.pool.reserve(tokens=HELD, usd=HELD) for _ in range(2)]
        self.taken: list[Any] = []


def numbers(snapshot: Any) -> tuple[int, ...]:
    return (
        snapshot.tokens_used,
        snapshot.tokens_reserved,
        snapshot.usd_used_nanos,
        snapshot.usd_reserved_nanos,
        snapshot.in_flight,
    )


def answered(operation: Callable[[], Any]) -> Any:
    """Run an operation; return its answer, or its error with the numbers in it."""
    try:
        return operation()
    except Exception as error:  # noqa: BLE001 - an error is an outcome like another
        return (type(error).__name__, getattr(error, "_facts", None))


def record(world: World) -> Any:
    return answered(lambda: world.pool.record(tokens=7, usd=7))


def record_much(world: World) -> Any:
    return answered(lambda: world.pool.record(tokens=45, usd=45))


def force(world: World) -> Any:
    return answered(lambda: world.pool.record(tokens=70, usd=70, force=True))


def reserve(world: World) -> Any:
    return answered(lambda: world.taken.append(world.pool.reserve(tokens=HELD, usd=HELD)))


def commit(world: World) -> Any:
    return answered(lambda: world.held[0].commit(tokens=15, usd=15))


def commit_more(world: World) -> Any:
    return answered(lambda: world.held[0].commit(tokens=60, usd=60))


def release(world: World) -> Any:
    return answered(world.held[0].release)


def leave(world: World) -> Any:
    return answered(lambda: world.held[0].__exit__(None, None, None))


def release_other(world: World) -> Any:
    return answered(world.held[-1].release)


def snapshot(world: World) -> Any:
    return numbers(world.pool.snapshot())


def reset(world: World) -> Any:
    return answered(world.pool.reset)


def drop(world: World) -> Any:
    """Drop the second reservation; of two threads that try, the second finds nothing to drop."""
    return answered(lambda: world.held.pop(1) and None)


def reserve_after_release(world: World) -> Any:
    world.held[0].release()
    return reserve(world)


def drop_then_record(world: World) -> Any:
    drop(world)
    return record(world)


OPERATIONS: list[Operation] = [
    record,
    record_much,
    force,
    reserve,
    commit,
    commit_more,
    release,
    leave,
    snapshot,
    reset,
    drop,
]


def final(world: World) -> Any:
    """Read the pool, then settle all that is open: nothing may be left held, and no counter negative."""
    outcome = numbers(world.pool.snapshot())
    for reservation in [*world.held, *world.taken]:
        reservation.release()
    after = numbers(world.pool.snapshot())
    assert after[1] == after[3] == after[4] == 0, f"something stays held: {after}"
    return (outcome, after)


def consistent(world: World) -> None:
    """Hold at every step at which nobody has the lock (P1, P2, P4, P7): see the module."""
    pool = world.pool
    if pool._lock.holder is not None:
        return
    claimed, reserved = pool._tokens_claimed, pool._tokens_reserved
    assert (claimed * NANOS, reserved * NANOS) == (pool._nanos_claimed, pool._nanos_reserved), "the axes differ"
    assert reserved == HELD * pool._in_flight, "what is reserved is not what is in flight"
    assert 0 <= reserved <= claimed, "a counter is negative"


def scenario(module: Any, *bodies: list[Operation], check: Callable[[World], None] = consistent) -> Scenario:
    """Make the scenario in which each body is a thread that does its operations one after the other."""
    name = " | ".join("; ".join(operation.__name__ for operation in body) for body in bodies)

    def setup() -> World:
        warnings.simplefilter("ignore", ResourceWarning)
        return World(module)

    return Scenario(name, setup, bodies, final, check)


def detach(world: World) -> Any:
    return answered(world.pool.detach)


def detach_then_reserve(world: World) -> Any:
    world.pool.detach()
    return reserve(world)


def forked(module: Any, *bodies: list[Operation]) -> Scenario:
    """Make a scenario that begins in the state of a forked child."""
    made = scenario(module, *bodies)

    def setup() -> World:
        world = made.setup()
        world.pool._after_fork_in_child()
        return world  # type: ignore[no-any-return]

    return Scenario(f"forked: {made.name}", setup, made.bodies, final, consistent)


def children(module: Any) -> list[Scenario]:
    """What can race in a forked child."""
    others = [snapshot, reserve, release, detach, detach_then_reserve]
    return [forked(module, [detach], [other]) for other in others]


def pairs(module: Any) -> list[Scenario]:
    """Every pair of operations, an operation with itself included."""
    return [scenario(module, [one], [other]) for one, other in combinations_with_replacement(OPERATIONS, 2)]


def triples(module: Any) -> list[Scenario]:
    """Three threads: every three of the operations whose races differ most."""
    chosen: list[Operation] = [record_much, reserve, commit, release, snapshot, reset, drop]
    return [scenario(module, *[[one] for one in three]) for three in combinations_with_replacement(chosen, 3)]


def sequences(module: Any) -> list[Scenario]:
    """Two threads that do several operations each, as callers do."""
    return [
        scenario(module, [reserve, snapshot, release], [record_much, commit]),
        scenario(module, [drop, record], [snapshot, reserve]),
        scenario(module, [commit, reset, record], [release, release_other, snapshot]),
        scenario(module, [reset, reserve], [commit_more, reserve]),
    ]


__all__ = ["CAP", "HELD", "ModelLock", "Operation", "World", "pairs", "scenario", "sequences", "triples"]
