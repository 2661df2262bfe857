"""What the scheduler explores: pairs of operations on one pool, on trees and keys, with listeners and with waiters.

All amounts move both axes alike (n tokens and n dollars), and every reservation holds HELD of both. So at every step,
while the lock is free, the two axes must agree, and the reserved amount must be HELD times the number of calls in
flight. A change that is cut in half violates this at once, whatever the threads are doing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from itertools import combinations_with_replacement
from typing import Any

from scheduler import ModelLock, Scenario

HELD = 20
CAP = 100
NANOS = 10**9

Operation = Callable[[Any], Any]


class World:
    """A pool with a spend of 10 and two reservations of HELD. Every scenario starts so. ``module`` is the package."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.held: list[Any] = []
        self.taken: list[Any] = []
        self.told: list[Any] = []
        self.armings = 1  # how often a threshold was armed
        self.build()
        self.pool.record(tokens=10, usd=10)
        self.held += [self.pool.reserve(tokens=HELD, usd=HELD) for _ in range(2)]
        self.told.clear()

    def build(self) -> None:
        """Make the pool to spend from and the root above it, and list their accounts."""
        self.pool = self.root = self.module.BudgetPool(token_cap=CAP, usd_cap=CAP)
        self.accounts = [self.pool._account]

    def listen(self, pool: Any) -> None:
        """Subscribe to the pool and keep the events."""
        pool.subscribe(self.told.append)

    def check(self) -> None:
        """Check what this world promises beyond `consistent`, while the lock is free."""


class Tree(World):
    """The same on the pool of a user. It is a child of the pool of a project, which is a child of the whole."""

    def build(self) -> None:
        self.root = self.module.BudgetPool(token_cap=150, usd_cap=150, name="whole")
        project = self.root.child(token_cap=120, usd_cap=120, name="project")
        self.pool = project.child(token_cap=CAP, usd_cap=CAP, name="user")
        self.accounts = list(self.pool._chain)


class Deep(World):
    """The same on the lowest of five pools, where straight runs change five accounts."""

    def build(self) -> None:
        self.root = self.pool = self.module.BudgetPool(token_cap=200, usd_cap=200, name="0")
        for level in range(1, 5):
            self.pool = self.pool.child(token_cap=200 - 25 * level, usd_cap=200 - 25 * level, name=str(level))
        self.accounts = list(self.pool._chain)


class Alarmed(World):
    """A pool with a threshold at half of its cap. It has used 10 of 100. It holds 40, which do not count."""

    def build(self) -> None:
        super().build()
        self.pool.on_threshold(0.5, self.told.append)


class AlarmedTree(Tree):
    """The same, with the threshold on the middle pool of three."""

    def build(self) -> None:
        super().build()
        (project,) = self.pool._parents
        project.on_threshold(0.5, self.told.append)


class Heard(Tree):
    """Three pools with a subscriber each, and a threshold on the whole."""

    def build(self) -> None:
        super().build()
        (project,) = self.pool._parents
        for pool in (self.pool, project, self.root):
            self.listen(pool)
        self.root.on_threshold(0.3, self.told.append)


class Windowed(Tree):
    """The same three pools, with a window of an hour on the middle one and a clock that stands still."""

    def build(self) -> None:
        super().build()
        hour = self.module.Window.every(timedelta(hours=1), clock=clock)
        (project,) = self.pool._parents
        project.set_caps(window=hour)


class Keys(World):
    """Keys below one whole. The key "a" has used 5, and nobody holds its pool."""

    def build(self) -> None:
        self.root = self.module.BudgetPool(token_cap=150, usd_cap=150, name="whole")
        self.users = self.root.keyed(token_cap=CAP, usd_cap=CAP)
        self.pool = self.users["other"]
        self.users["a"].record(tokens=5, usd=5)
        self.found: list[Any] = []
        self.accounts = [*self.pool._chain, self.users._by_key["a"]]


class HeldKey(Keys):
    """The same, and somebody holds the pool of "a"."""

    def build(self) -> None:
        super().build()
        self.a = self.users["a"]


class Full(World):
    """A pool with room for only 10: a request for HELD must wait."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.pool.record(tokens=40, usd=40)


class FullHeard(Full):
    """The same with a subscriber."""

    def build(self) -> None:
        super().build()
        self.listen(self.pool)


class FullTree(Tree):
    """The pool of a user is full, and so is the whole above it."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.pool.record(tokens=40, usd=40)
        self.root.record(tokens=50, usd=50)
        self.other = self.root.child(name="other")
        self.accounts.append(self.other._account)


class Siblings(Tree):
    """The pool of one user is full, the pool of another is not, and the whole has room for both."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.pool.record(tokens=40, usd=40)
        self.other = self.root.child(token_cap=60, usd_cap=60, name="other")
        self.accounts.append(self.other._account)

    def check(self) -> None:
        other, root = self.other._account, self.root._account
        assert other.token_bound == 60, "a waiter for one user's budget closes the bounds of another's"
        assert root.token_bound >= root.token_limit - HELD, "a waiter for a pool below closes the bounds of the whole"


def clock() -> float:
    return 0.0


def numbers(snapshot: Any) -> tuple[int, ...]:
    return (
        snapshot.tokens_used,
        snapshot.tokens_reserved,
        snapshot.usd_used_nanos,
        snapshot.usd_reserved_nanos,
        snapshot.in_flight,
    )


def answered(operation: Callable[[], Any]) -> Any:
    """Run an operation, and return its answer, or its error with the numbers in it."""
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
    world.armings += 1
    return answered(world.pool.reset)


def drop(world: World) -> Any:
    """Drop the second reservation. If two threads try, the second one finds nothing to drop."""
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
    """Read the pools, then settle all that is open. Nothing may be left held, owed or waiting."""
    world.pool.snapshot()
    family = world.root._family
    assert family.root.line is None, "a waiter stays in line"
    told = sorted((event.kind, event.pool or "", event.tokens, numbers(event.snapshot)) for event in world.told)
    outcome = [numbers(account.shown()) for account in world.accounts]
    for reservation in [*world.held, *world.taken]:
        reservation.release()
    world.pool.snapshot()
    after = [numbers(account.shown()) for account in world.accounts]
    for state in after:
        assert state[1] == state[3] == state[4] == 0, f"something stays held: {after}"
    assert sum(event.kind == "threshold" for event in world.told) <= world.armings, "a threshold fired and stays armed"
    for account in world.accounts:
        assert account.line is None, "a line stays"
        check_bounds(account, [])
    assert (family.owner, list(family.owed), list(family.stirred)) == (0, [], []), "some work stays undone"
    assert family.pending is family.owed, "the straight runs stay closed"
    return (outcome, after, told)


# ---------------------------------------------------------------- what holds at every step


def consistent(world: World) -> None:
    """Check the invariants at every step at which the lock is free (P1, P2, P4, P7): see the module's docstring."""
    family = world.root._family
    if family.lock.holder is not None:
        return
    for account in world.accounts:
        claimed, reserved = account.tokens_claimed, account.tokens_reserved
        assert (claimed * NANOS, reserved * NANOS) == (account.nanos_claimed, account.nanos_reserved), "the axes differ"
        assert reserved == HELD * account.in_flight, "what is reserved is not what is in flight"
        assert 0 <= reserved <= claimed, "a counter is negative"
    assert not family.stirred, "the lock was released before a line was served"
    wake_complete(family, world.accounts)
    world.check()


def wake_complete(family: Any, accounts: Iterable[Any]) -> None:
    """Check that the oldest waiter of each scope has no room there, that no wait is hopeless, and the bounds."""
    line = family.root.line
    waiters = [] if line is None else line.waiting()
    for account in accounts:
        here = [waiter for waiter in waiters if waiter.at is account]
        if here:
            head = min(here, key=lambda waiter: waiter.ticket)
            assert not fits(head, account, account.tokens_claimed, account.nanos_claimed), (
                "the lock was released although the head of the line would fit"
            )
        for waiter in waiters:
            if account in waiter.scope._chain:
                assert could_fit(waiter, account), "a waiter waits for room that cannot come"
        check_bounds(account, [waiter for waiter in waiters if account in waiter.scope._chain])


def fits(waiter: Any, account: Any, tokens: int, nanos: int) -> bool:
    """Return whether the waiter fits beside these amounts."""
    return not account.closed and not (
        (waiter.tokens and tokens + waiter.tokens > account.token_limit)
        or (waiter.nanos and nanos + waiter.nanos > account.nano_limit)
    )


def could_fit(waiter: Any, account: Any) -> bool:
    """Return whether the waiter can still fit: when calls in flight end, or in a period that begins in time."""
    used = account.tokens_claimed - account.tokens_reserved, account.nanos_claimed - account.nanos_reserved
    if fits(waiter, account, *used):
        return True
    moment = waiter.lives_until[account][1] if account in waiter.lives_until else None
    return moment is not None and account.period_end <= moment and fits(waiter, account, 0, 0)


def check_bounds(account: Any, waiters: list[Any]) -> None:
    """Check that no bound is too high: within both bounds, there is nobody to notify, wake or refuse."""
    watch = account.watch
    closed = account.closed or (watch is not None and watch.subscribers) or any(one.at is account for one in waiters)
    for bound, limit, asked in (
        (account.token_bound, account.token_limit, "tokens"),
        (account.nano_bound, account.nano_limit, "nanos"),
    ):
        assert bound <= limit, "a bound stays above its limit"
        assert not closed or bound < 0, "a bound stays open to straight runs although somebody must be notified"
        for one in waiters:
            assert bound <= limit - getattr(one, asked), "a bound stays too high for a waiter that needs this scope"
        for threshold in () if watch is None or limit >= 10**19 else watch.armed:
            assert bound * 10**9 < limit * threshold.share, "a bound stays above a threshold"


def scenario(module: Any, *bodies: Sequence[Operation], world: type[World] = World, serial: bool = True) -> Scenario:
    """Make a scenario. Each body is a thread that does its operations one after the other."""
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
        world.pool._family.fork()
        return world  # type: ignore[no-any-return]

    return Scenario(f"forked: {made.name}", setup, made.bodies, final, consistent)


def children(module: Any) -> list[Scenario]:
    """Operations that can race in a forked child."""
    others = [snapshot, reserve, record, release, leave, commit, reset, detach, detach_then_reserve]
    return [forked(module, [detach], [other]) for other in others]


def pairs(module: Any) -> list[Scenario]:
    """Every pair of operations, including two of the same, and each operation with one that is refused on dollars."""
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


def record_above(world: World) -> Any:
    return answered(lambda: world.root.record(tokens=45, usd=45))


def reset_above(world: World) -> Any:
    world.armings += 1
    return answered(world.root.reset)


def tree(world: World) -> Any:
    """Read all scopes at once. The lower two show what was spent through them."""
    top = world.root.snapshot(tree=True)
    found = [top]
    while found[-1].children:
        found.append(found[-1].children[0])
    return [numbers(snapshot) for snapshot in found]


def lower_caps(world: World) -> Any:
    return answered(lambda: world.pool.set_caps(token_cap=40, usd_cap=40))


def close(world: World) -> Any:
    return answered(world.pool.close)


def nested_pairs(module: Any) -> list[Scenario]:
    """Pairs of operations on a chain of three scopes."""
    chosen = [record_much, force, reserve, commit, release, drop, reset_above, record_above, tree, lower_caps, close]
    pairs = combinations_with_replacement(chosen, 2)
    return [scenario(module, [one], [other], world=Tree) for one, other in pairs]


def deep_pairs(module: Any) -> list[Scenario]:
    """Pairs of operations on a chain of five, where straight runs change five accounts."""
    chosen = [record_much, reserve, commit, release, tree, reset_above]
    pairs = combinations_with_replacement(chosen, 2)
    return [scenario(module, [one], [other], world=Deep) for one, other in pairs]


# ---------------------------------------------------------------- listeners and windows


def double_caps(world: World) -> Any:
    """Raise the caps, so that usage is below the share again and the threshold is armed again."""
    world.armings += 1
    return answered(lambda: world.pool.set_caps(token_cap=2 * CAP, usd_cap=2 * CAP))


def listened(module: Any) -> list[Scenario]:
    """Races for a callback: each event is delivered exactly once, as in some serial order."""
    alarmed: list[list[list[Operation]]] = [
        [[record_much], [record_much]],
        [[record_much], [commit_more]],
        [[record_much], [reset]],
        [[record_much], [lower_caps]],
        [[commit_more], [record, record]],
        [[force, record], [double_caps]],
        [[record_much, record_much], [double_caps]],
    ]
    heard: list[list[list[Operation]]] = [
        [[record_much], [record_much]],
        [[reserve], [commit]],
        [[commit], [release]],
        [[force], [drop]],
        [[record_much], [unsubscribe]],
        [[record_much], [reset_above]],
    ]
    return [
        *[scenario(module, *bodies, world=Alarmed) for bodies in alarmed],
        *[scenario(module, *bodies, world=AlarmedTree) for bodies in alarmed[:3]],
        *[scenario(module, *bodies, world=Heard) for bodies in heard],
    ]


def unsubscribe(world: World) -> Any:
    """Add a threshold and remove it."""
    world.root.on_threshold(9, world.told.append)()


def give_window(world: World) -> Any:
    return answered(lambda: world.pool.set_caps(window=world.module.Window.every(timedelta(minutes=1), clock=clock)))


def take_window(world: World) -> Any:
    (project,) = world.pool._parents
    return answered(lambda: project.set_caps(window=None))


def windows(module: Any) -> list[Scenario]:
    """A window is set or removed while other threads spend."""
    others: list[Operation] = [record, reserve, commit, release, reset_above, tree]
    return [
        *[scenario(module, [give_window], [other]) for other in (record, reserve, commit, release, snapshot)],
        *[scenario(module, [give_window], [other], world=Tree) for other in others],
        *[scenario(module, [take_window], [other], world=Windowed) for other in others],
        scenario(module, [record], [commit], world=Windowed),
    ]


# ---------------------------------------------------------------- keys


def look_up(world: Any) -> Any:
    """Look up a key and keep its pool."""
    world.found.append(world.users["a"])


def spend_found(world: Any) -> Any:
    return answered(lambda: world.found[-1].record(tokens=7, usd=7))


def reserve_held(world: Any) -> Any:
    return answered(lambda: world.taken.append(world.a.reserve(tokens=HELD, usd=HELD)))


def spend_held(world: Any) -> Any:
    return answered(lambda: world.a.record(tokens=7, usd=7))


def delete(world: Any) -> Any:
    return answered(lambda: world.users.__delitem__("a"))


def cap_keys(world: Any) -> Any:
    return answered(lambda: world.users.set_caps(token_cap=30, usd_cap=30))


def new_key(world: Any) -> Any:
    """Make one more key. This also looks for old keys to forget."""
    world.users["b"].record(tokens=1, usd=1)


def one_pool_a_key(world: Any) -> Any:
    """Read the outcome. All threads that looked up the key found the same budget, unless it was deleted in between."""
    open_pools = {id(pool) for pool in world.found if not pool.closed}
    assert len(open_pools) <= 1, "one key has two budgets"
    assert not any(one._pool.closed and not one.completed for one in world.taken), "a call stays in a deleted key"
    a = world.users["a"]
    assert open_pools <= {id(a)}, "one key has two budgets"
    return (numbers(a.snapshot()), a.snapshot().token_cap, [pool.closed for pool in world.found], final(world))


def keys(module: Any) -> list[Scenario]:
    """Races about a key."""
    loose: list[list[list[Operation]]] = [
        [[look_up], [look_up]],
        [[look_up, spend_found], [delete]],
        [[look_up, spend_found], [new_key]],
        [[look_up], [cap_keys]],
        [[delete], [delete]],
    ]
    held: list[list[list[Operation]]] = [
        [[delete], [reserve_held]],
        [[delete], [spend_held]],
        [[delete], [look_up]],
        [[cap_keys], [spend_held]],
        [[look_up], [new_key]],
    ]
    made = [
        *[scenario(module, *bodies, world=Keys) for bodies in loose],
        *[scenario(module, *bodies, world=HeldKey) for bodies in held],
    ]
    for one in made:
        one.final = one_pool_a_key
    return made


# ---------------------------------------------------------------- waiting


def wait(world: World) -> Any:
    """Wait for room without a time-out. A lost wake-up is then a deadlock."""
    return answered(lambda: world.taken.append(world.pool.reserve(tokens=HELD, usd=HELD, timeout=None)))


def wait_a_while(world: World) -> Any:
    """Wait for room with a time-out, which may expire at any step."""
    return answered(lambda: world.taken.append(world.pool.reserve(tokens=HELD, usd=HELD, timeout=5)))


def try_and_give_back(world: World) -> Any:
    """Reserve without waiting, and release. It must not overtake waiters, and its release must serve them."""

    def attempt() -> None:
        world.pool.reserve(tokens=HELD, usd=HELD).release()

    return answered(attempt)


def pass_by(world: World) -> Any:
    """Spend an amount that fits, and check that it overtakes no waiter."""
    before = in_line(world)
    answer = record(world)
    assert answer is not None or not before & in_line(world), "it overtook a waiter, which stays in line"
    return answer


def in_line(world: World) -> set[Any]:
    line = world.root._family.root.line
    return set() if line is None else set(line.waiting())


def wait_elsewhere(world: Any) -> Any:
    return answered(lambda: world.taken.append(world.other.reserve(tokens=HELD, usd=HELD, timeout=None)))


def spend_elsewhere(world: Any) -> Any:
    """Spend a little in a scope that the waiter does not need. This is a straight run."""
    return answered(lambda: world.other.record(tokens=5, usd=5))


def block_elsewhere(world: Any) -> Any:
    with world.other.reserve(tokens=HELD, usd=HELD) as reservation:
        reservation.commit(tokens=3, usd=3)


def wait_for_much(world: World) -> Any:
    """Wait for an amount that fits only after both reservations have come back. It is never granted."""
    return answered(lambda: world.taken.append(world.pool.reserve(tokens=60, usd=60, timeout=None)))


def use_up_above(world: World) -> Any:
    """Spend so much of the whole that the waiter can never fit. It would wait for ever if it were not refused."""
    return answered(lambda: world.root.record(tokens=90, usd=90))


def commit_little(world: World) -> Any:
    return answered(lambda: world.held[0].commit(tokens=5, usd=5))


def raise_caps(world: World) -> Any:
    world.pool.set_caps(token_cap=CAP + HELD, usd_cap=CAP + HELD)
    return None if world.pool is world.root else world.root.set_caps(token_cap=None, usd_cap=None)


def force_much(world: World) -> Any:
    return answered(lambda: world.pool.record(tokens=70, usd=70, force=True))


def waits(module: Any) -> list[Scenario]:
    """One thread waits, and another does something that ends the wait."""
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
        scenario(module, [wait], [release], world=FullHeard, serial=False),
        scenario(module, [wait], [spend_elsewhere, release], world=Siblings, serial=False),
        scenario(module, [wait], [block_elsewhere, release], world=Siblings, serial=False),
        scenario(module, [wait_for_much], [use_up_above], world=Tree, serial=False),
        scenario(module, [wait_a_while], [give_window, release], world=Full, serial=False),
        scenario(module, [wait_a_while], [pass_by], world=Full, serial=False),
    ]


def queues(module: Any) -> list[Scenario]:
    """Two threads wait, or one waits and another tries to overtake it."""
    return [
        scenario(module, [wait], [wait], [release, release_other], world=Full, serial=False),
        scenario(module, [wait_a_while], [wait], [release, release_other], world=Full, serial=False),
        scenario(module, [wait_a_while], [wait_a_while], [release], world=Full, serial=False),
        scenario(module, [wait], [try_and_give_back], [release], world=Full, serial=False),
        scenario(module, [wait], [wait_elsewhere], [release, release_other], world=FullTree, serial=False),
        scenario(module, [wait], [block_elsewhere], [release], world=Siblings, serial=False),
    ]


__all__ = ["CAP", "HELD", "ModelLock", "Operation", "World", "pairs", "scenario", "sequences", "triples"]
