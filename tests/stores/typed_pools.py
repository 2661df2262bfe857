"""Each kind of pool, taken for what the contract says it is. Type checkers read this; nothing runs it."""

from __future__ import annotations

from typing import Any

from token_budget import BudgetEvent, BudgetPool, BudgetSnapshot, KeyedPools, PoolStatistics, Reservation, Window
from token_budget.contract import HeldAmount, Keys, Pool, Spendable
from token_budget.metering import Meter
from token_budget.stores import RedisBudgetPool, SQLiteBudgetPool


def pools(client: Any) -> list[Pool]:
    in_process: Pool = BudgetPool(token_cap=1, name="total")
    in_a_file: Pool = SQLiteBudgetPool("budget.db", name="total", token_cap=1)
    on_a_server: Pool = RedisBudgetPool(client, name="total", token_cap=1)
    spendable: Spendable = in_a_file
    return [in_process, in_a_file, on_a_server, Meter(spendable).pool and in_process]


def what_each_returns(client: Any) -> list[object]:
    """What is made below a pool, joined, reserved or keyed is of the contract too."""
    made: list[object] = []
    for stored in (SQLiteBudgetPool("budget.db", name="total"), RedisBudgetPool(client, name="total")):
        child: Pool = stored.child(name="child")
        joined: Pool = stored.join(stored, stored.child(name="x"), name="both")
        users: Keys = stored.keyed(usd_cap=1, name="user")
        user: Pool = users["ann"]
        held: HeldAmount = stored.reserve(tokens=1)
        identity: str = stored.reserve(tokens=1).hand_over(lease=60).id
        stored.settle(identity, tokens=1, usd=0.5)
        with stored as entered, stored.try_reserve(tokens=1) as reservation:
            reservation.commit(usd=entered.snapshot().usd_used)
        made += [child, joined, user, held]
    in_process = BudgetPool()
    reservation_in_process: Reservation = in_process.reserve()
    held_in_process: HeldAmount = reservation_in_process
    group: KeyedPools[BudgetPool] = in_process.keyed()
    keys_in_process: Keys = group
    both: Pool = in_process.join(in_process, group["ann"])
    return [*made, held_in_process, keys_in_process, both]


async def what_a_pool_gives(pool: Pool) -> list[object]:
    """Whoever takes a `Pool` can do all this with any kind."""
    seen: list[BudgetSnapshot] = []

    def hear(event: BudgetEvent) -> None:
        seen.append(event.snapshot)

    end = pool.subscribe(hear)
    pool.on_threshold(0.8, hear)
    pool.record(tokens=1, usd=0.5, force=True)
    await pool.arecord(tokens=1)
    held: HeldAmount = pool.reserve(tokens=1, timeout=5)
    held.commit(tokens=1)
    waited: HeldAmount = await pool.areserve(usd=1, timeout=None)
    await waited.acommit()
    await waited.arelease()
    tree: BudgetSnapshot = await pool.asnapshot(tree=True)
    counts: PoolStatistics = pool.statistics()
    pool.set_caps(token_cap=None, usd_cap=2.5, window=Window.daily())
    users: Keys = pool.keyed(token_cap=1, name="user")
    users.set_caps(usd_cap=1)
    pool.child(1, 0.5, name="child", window=None).close()
    pool.join(pool, users["ann"], name="both").reset()
    pool.detach()
    end()
    return [tree, counts, pool.name, pool.closed, len(users), "ann" in users]
