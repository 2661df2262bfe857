"""What the scheduler explores: every pair of operations on one pool, and some triples.

All amounts move both axes alike (n tokens and n dollars), and every reservation holds HELD of both. So at every step,
whatever thread is where, while the lock is free the two axes must agree, and what is reserved must be HELD times what
is in flight: a change that is cut in half shows at once, whoever is doing what.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
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
        self.accounts = [self.pool]


class Tree(World):
    """The same on the pool of a user, below that of a project, below the whole."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.held.clear()
        self.root = module.BudgetPool(token_cap=150, usd_cap=150, name="whole")
        project = self.root.child(token_cap=120, usd_cap=120, name="project")
        self.pool = project.child(token_cap=CAP, usd_cap=CAP, name="user")
        self.pool.record(tokens=10, usd=10)
        self.held += [self.pool.reserve(tokens=HELD, usd=HELD) for _ in range(2)]
        self.accounts = [pool._scopes()[0] for pool in (self.pool, project, self.root)]


class Full(World):
    """A pool with room for 10 only: who wants HELD must wait."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.pool.record(tokens=40, usd=40)


class FullTree(Tree):
    """The pool of a user that is full, below a whole that is full too."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.pool.record(tokens=40, usd=40)
        self.root.record(tokens=50, usd=50)
        self.other = self.root.child(name="other")
        self.accounts.append(self.other._scopes()[0])


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


def drop_all(world: World) -> Any:
    world.held.clear()


def refused_usd(world: World) -> Any:
    """Ask for more dollars than there are, and no tokens."""
    return answered(lambda: world.pool.reserve(tokens=0, usd=200))


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
    """Read the pools, then settle all that is open: nothing may be left held, and no counter negative."""
    world.pool.snapshot()
    outcome = [numbers(account._shown()) for account in world.accounts]
    for reservation in [*world.held, *world.taken]:
        reservation.release()
    world.pool.snapshot()
    after = [numbers(account._shown()) for account in world.accounts]
    for state in after:
        assert state[1] == state[3] == state[4] == 0, f"something stays held: {after}"
    assert not world.pool._family.waiters, "somebody stays in line"
    assert all(account._queue is None for account in world.accounts), "a line stays"
    return (outcome, after)


def consistent(world: World) -> None:
    """Hold at every step at which nobody has the lock (P1, P2, P4, P7): see the module."""
    family = world.pool._family
    if family.lock.holder is not None:
        return
    for account in world.accounts:
        claimed, reserved = account._tokens_claimed, account._tokens_reserved
        assert (claimed * NANOS, reserved * NANOS) == (account._nanos_claimed, account._nanos_reserved), (
            "the axes differ"
        )
        assert reserved == HELD * account._in_flight, "what is reserved is not what is in flight"
        assert 0 <= reserved <= claimed, "a counter is negative"
    if family.waiters:
        assert family.journal is None
        wake_complete(family, world.accounts)


def wake_complete(family: Any, accounts: Any) -> None:
    """Hold that the oldest waiter of each scope is blocked there, and that nobody waits for what can never come."""
    for account in accounts:
        queue = account._queue
        if queue is None:
            continue
        head = queue.head(account)
        if head is not None:
            blocker = family._blocker(head.chain, head.tokens, head.nanos, head.ticket)
            assert blocker is account, "the lock was let go, and the head of the queue would fit"
        for waiter in queue.members.values():
            assert family._hopeless(waiter.chain, waiter.tokens, waiter.nanos) is None, "one waits for what cannot come"


def scenario(module: Any, *bodies: Sequence[Operation], world: type[World] = World, serial: bool = True) -> Scenario:
    """Make the scenario in which each body is a thread that does its operations one after the other."""
    name = " | ".join("; ".join(operation.__name__ for operation in body) for body in bodies)
    if world is not World:
        name = f"{world.__name__}: {name}"

    def setup() -> World:
        warnings.simplefilter("ignore", ResourceWarning)
        return world(module)

    return Scenario(name, setup, bodies, final, consistent, serial)


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
    others = [snapshot, reserve, record, release, leave, commit, reset, detach, detach_then_reserve]
    return [forked(module, [detach], [other]) for other in others]


def pairs(module: Any) -> list[Scenario]:
    """Every pair of operations, an operation with itself included, and what is refused on dollars with each."""
    return [
        *[scenario(module, [one], [other]) for one, other in combinations_with_replacement(OPERATIONS, 2)],
        *[scenario(module, [refused_usd], [other]) for other in OPERATIONS],
    ]


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
        scenario(module, [drop_all, record], [snapshot, reserve, snapshot]),
    ]


# ---------------------------------------------------------------- scopes


def record_above(world: Any) -> Any:
    return answered(lambda: world.root.record(tokens=45, usd=45))


def reset_above(world: Any) -> Any:
    return answered(world.root.reset)


def tree(world: Any) -> Any:
    """Read all scopes at once: what the lower two have is what went through them."""
    top = world.root.snapshot(tree=True)
    found = [top]
    while found[-1].children:
        found.append(found[-1].children[0])
    return [numbers(snapshot) for snapshot in found]


def lower_caps(world: Any) -> Any:
    return answered(lambda: world.pool.set_caps(token_cap=40, usd_cap=40))


def close(world: Any) -> Any:
    return answered(world.pool.close)


def nested_pairs(module: Any) -> list[Scenario]:
    """Pairs of operations on a chain of three scopes."""
    chosen = [record_much, force, reserve, commit, release, drop, reset_above, record_above, tree, lower_caps, close]
    pairs = combinations_with_replacement(chosen, 2)
    return [scenario(module, [one], [other], world=Tree) for one, other in pairs]


# ---------------------------------------------------------------- waiting


def wait(world: World) -> Any:
    """Wait for room for ever: a wake-up that is lost is a deadlock."""
    return answered(lambda: world.taken.append(world.pool.reserve(tokens=HELD, usd=HELD, timeout=None)))


def wait_a_while(world: World) -> Any:
    """Wait until the time is over, which may be at any step."""
    return answered(lambda: world.taken.append(world.pool.reserve(tokens=HELD, usd=HELD, timeout=5)))


def try_and_give_back(world: World) -> Any:
    """Come late and do not wait: must not get past who waits, and hand on what it got before they did."""

    def attempt() -> None:
        world.pool.reserve(tokens=HELD, usd=HELD).release()

    return answered(attempt)


def wait_elsewhere(world: Any) -> Any:
    return answered(lambda: world.taken.append(world.other.reserve(tokens=HELD, usd=HELD, timeout=None)))


def commit_little(world: World) -> Any:
    return answered(lambda: world.held[0].commit(tokens=5, usd=5))


def raise_caps(world: World) -> Any:
    world.pool.set_caps(token_cap=CAP + HELD, usd_cap=CAP + HELD)
    return None if world.pool is world.accounts[0] else world.root.set_caps(token_cap=None, usd_cap=None)  # type: ignore[attr-defined]


def force_much(world: World) -> Any:
    return answered(lambda: world.pool.record(tokens=70, usd=70, force=True))


def waits(module: Any) -> list[Scenario]:
    """One waits, and something happens that ends its waiting."""
    enders: list[list[Operation]] = [
        [release],
        [commit_little],
        [leave],
        [drop],
        [reset],
        [raise_caps],
        [force_much],
        [close],
    ]
    return [
        *[scenario(module, [one], other, world=Full, serial=False) for one in (wait, wait_a_while) for other in enders],
        *[
            scenario(module, [wait], other, world=FullTree, serial=False)
            for other in ([release], [drop], [raise_caps], [force_much], [close])
        ],
        scenario(module, [wait_a_while], [release], world=FullTree, serial=False),
    ]


def queues(module: Any) -> list[Scenario]:
    """Two wait, or one waits and another would like to pass."""
    return [
        scenario(module, [wait], [wait], [release, release_other], world=Full, serial=False),
        scenario(module, [wait_a_while], [wait], [release, release_other], world=Full, serial=False),
        scenario(module, [wait_a_while], [wait_a_while], [release], world=Full, serial=False),
        scenario(module, [wait], [try_and_give_back], [release], world=Full, serial=False),
        scenario(module, [wait], [wait_elsewhere], [release, release_other], world=FullTree, serial=False),
    ]


__all__ = ["CAP", "HELD", "ModelLock", "Operation", "World", "pairs", "scenario", "sequences", "triples"]
