"""What it costs to hand room over while few or many wait, and what those who wait cost the others.

Those who wait are what `reserve` and `areserve` put in line, with a bell that wakes nobody: no thread and no event loop
has a part in it, but in "tasks in turn", where each task wakes the next. Flat is 1.00.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from benchmarks._measure import AGAINST_HEADER, Options, Table, against_first, own_copy
from benchmarks.growth import SPENDING
from token_budget import BudgetPool
from token_budget._waiting import Waiter

if TYPE_CHECKING:
    from token_budget import Reservation

TOKENS = 1500


class _Bell:
    """Plays the bell of a waiter."""

    __slots__ = ()

    def ring(self) -> bool:
        """Say that it was heard."""
        return True

    def deaf(self) -> bool:
        """Say that somebody hears it."""
        return False


class _Line:
    """A full pool and those who wait for its room, which is enough for one at a time."""

    def __init__(self, pool: BudgetPool, waiting: int) -> None:
        self.pool = pool
        self.held: Reservation = pool.reserve(tokens=TOKENS, usd=0.0045)
        self.waiting: deque[Waiter] = deque()
        for _ in range(waiting):
            self.join()

    def join(self) -> None:
        """Let one more wait."""
        self.waiting.append(_waiting(self.pool))

    def close(self) -> None:
        """Send everybody home."""
        self.pool.close()
        self.held.release()


def _new_waiter(pool: BudgetPool) -> Waiter:
    bell: Any = _Bell()
    return Waiter(pool._scopes(), pool.areserve(tokens=TOKENS, usd=0.0045)._reservation, bell)


def _waiting(pool: BudgetPool) -> Waiter:
    waiter = _new_waiter(pool)
    pool._family.reserve(waiter.reservation, waiter)
    return waiter


def _hand_over(line: _Line, calls: int) -> int:
    """Time the releases, each with two looks at the clock; who came in by it is replaced."""
    took = 0
    for _ in range(calls):
        held = line.held
        start = perf_counter_ns()
        held.release()
        took += perf_counter_ns() - start
        line.held = line.waiting.popleft().reservation
        line.join()
    assert not line.held.completed  # or this measured something else
    return took


def _give_up(line: _Line, calls: int) -> int:
    """Time those who come to the end of the line and leave it again, likewise."""
    family = line.pool._family
    took = 0
    for _ in range(calls):
        waiter = _new_waiter(line.pool)
        start = perf_counter_ns()
        family.reserve(waiter.reservation, waiter)
        family.withdraw(waiter)
        took += perf_counter_ns() - start
    return took


def _all_at_once(waiting: int, calls: int) -> float:
    """Time releases by which all who wait come in, as many as make the calls; return the time of so many calls."""
    rounds = max(calls // waiting, 1)
    took = 0
    for _ in range(rounds):
        pool = BudgetPool(token_cap=TOKENS * waiting, usd_cap=10.0**6)
        everything = pool.reserve(tokens=TOKENS * waiting, usd=0.0045)
        waiters = [_waiting(pool) for _ in range(waiting)]
        start = perf_counter_ns()
        everything.release()
        took += perf_counter_ns() - start
        for waiter in waiters:
            waiter.reservation.commit()  # or it was not granted, and this raises
    return took * calls / (rounds * waiting)


def _tasks_in_turn(waiting: int, calls: int) -> int:
    """Time tasks of which one holds what the others wait for, gives it back, and waits again."""
    pool = BudgetPool(token_cap=TOKENS, usd_cap=10.0**6)
    turns = 0
    times: list[int] = []

    async def spend() -> None:
        nonlocal turns
        while turns <= waiting + calls:
            async with pool.areserve(tokens=TOKENS, usd=0.0045):
                turns += 1
                if turns in {waiting + 1, waiting + 1 + calls}:  # everybody has had a turn by then; so many later
                    times.append(perf_counter_ns())

    async def main() -> None:
        with pool.reserve(tokens=TOKENS, usd=0.0045):
            tasks = [asyncio.create_task(spend()) for _ in range(waiting + 1)]
            await asyncio.sleep(0)  # they come as far as they can
            assert len(pool._family.waiters) == len(tasks)
        await asyncio.gather(*tasks)

    asyncio.run(main())
    begin, end = times
    return end - begin


def run(options: Options) -> list[Table]:
    """Measure lines of different length."""
    calls = 200 if options.tiny else 20_000
    counts = (1, 5, 20) if options.tiny else (1, 100, 10_000)
    rows = []
    for operation, loop in {"hand-over by a release": _hand_over, "wait, give up": _give_up}.items():
        lines = {_name(count): _Line(BudgetPool(TOKENS, 10.0**6), count) for count in counts}
        contenders = {name: partial(own_copy(loop), line, calls) for name, line in lines.items()}
        rows += against_first(operation, contenders, calls, options.repeats)
        for line in lines.values():
            line.close()
    at_once = {_name(count): partial(own_copy(_all_at_once), count, calls) for count in counts}
    rows += against_first("a release that lets all in, for each", at_once, calls, options.repeats)
    in_turn = {_name(count): partial(own_copy(_tasks_in_turn), count, calls) for count in counts}
    rows += against_first("tasks in turn", in_turn, calls, options.repeats)
    return [
        Table("Waiting: time to hand room over as there are those who wait, 1.00 is flat", AGAINST_HEADER, rows),
        _beside(calls, (*counts[:1], 0, *counts[1:]), options.repeats),
    ]


def _beside(calls: int, counts: tuple[int, ...], repeats: int) -> Table:
    """Time one child of a pool while others wait for another child."""
    rows = []
    parents = {_name(count): BudgetPool(10**12, 10.0**6) for count in counts}
    lines = [_Line(parents[_name(count)].child(TOKENS, 10.0**6), count) for count in counts]
    siblings = {name: parent.child(10**12, 10.0**6) for name, parent in parents.items()}
    for sibling in siblings.values():
        sibling.record(tokens=10**10, usd=1000)  # as in growth
    for operation, loop in SPENDING.items():
        contenders = {name: partial(own_copy(loop), sibling, calls) for name, sibling in siblings.items()}
        rows += against_first(operation, contenders, calls, repeats)
    for line in lines:
        line.close()
    return Table("Waiting: time of one child as others wait for another, 1.00 is flat", AGAINST_HEADER, rows)


def _name(count: int) -> str:
    return f"{count:,} waiting"
