"""What it costs to hand room over while few or many wait, to give up waiting, and what a line costs other scopes.

Those who wait are asyncio tasks, but where giving up is timed: there the benchmark itself takes the steps of an event
loop, so that nothing but the pool's work is timed. Flat is 1.00.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from benchmarks._measure import AGAINST_HEADER, Options, Table, against_first, own_copy
from benchmarks._operations import SPENDING, TOKEN_CAP, USD_CAP, large_pool, timing
from token_budget import BudgetPool

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from token_budget import Reservation

    Step = Generator[Any, Any, Reservation]

TOKENS = 1500
# What must hold of the longest line against a line of one.
GIVE_UP_GOAL = "2"


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that is only ever woken from its own thread, and so does not write to itself to wake up."""

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        return self.call_soon(callback, *args, context=context)


class _Line:
    """A full pool and the tasks that wait for its room, which is enough for one at a time."""

    def __init__(self, pool: BudgetPool, waiting: int) -> None:
        self.pool = pool
        self.held: Reservation = pool.reserve(tokens=TOKENS, usd=0.0045)
        self.waiting: deque[asyncio.Task[Reservation]] = deque()
        for _ in range(waiting):
            self.join()

    @classmethod
    async def form(cls, pool: BudgetPool, waiting: int) -> _Line:
        """Return a line in which all wait already."""
        line = cls(pool, waiting)
        await asyncio.sleep(0)
        return line

    def join(self) -> None:
        """Let one more wait, as soon as the event loop runs."""
        self.waiting.append(asyncio.get_running_loop().create_task(_reserve(self.pool)))

    async def close(self) -> None:
        """Send everybody home."""
        self.pool.close()
        self.held.release()
        await asyncio.gather(*self.waiting, return_exceptions=True)


async def _reserve(pool: BudgetPool) -> Reservation:
    return await pool.areserve(tokens=TOKENS, usd=0.0045)


def _join_by_hand(pool: BudgetPool) -> Step:
    """Let one wait whose steps the benchmark takes: closing what is returned is giving up."""
    step: Step = pool.areserve(tokens=TOKENS, usd=0.0045).__await__()
    step.send(None)
    return step


async def _hand_over(line: _Line, calls: int) -> int:
    """Time the releases, each with two looks at the clock; who came in by it is replaced."""
    took = 0
    for _ in range(calls):
        held = line.held
        start = perf_counter_ns()
        held.release()
        took += perf_counter_ns() - start
        line.held = await line.waiting.popleft()
        line.join()
        await asyncio.sleep(0)  # the new one comes as far as the line
    return took


async def _join_and_give_up(line: _Line, calls: int) -> int:
    """Time those who come to the end of the line and leave it again, likewise."""
    took = 0
    for _ in range(calls):
        start = perf_counter_ns()
        _join_by_hand(line.pool).close()
        took += perf_counter_ns() - start
    return took


async def _newest_gives_up(line: _Line, calls: int) -> int:
    """Time only the leaving of those who came last."""
    took = 0
    for _ in range(calls):
        newest = _join_by_hand(line.pool)
        start = perf_counter_ns()
        newest.close()
        took += perf_counter_ns() - start
    return took


async def _oldest_gives_up(line: deque[Step], calls: int, pool: BudgetPool) -> int:
    """Time only the leaving of those who came first, as time-outs make it."""
    took = 0
    for _ in range(calls):
        oldest = line.popleft()
        start = perf_counter_ns()
        oldest.close()
        took += perf_counter_ns() - start
        line.append(_join_by_hand(pool))
    return took


async def _all_at_once(waiting: int, calls: int) -> float:
    """Time releases by which all who wait come in, as many as make the calls; return the time of so many calls."""
    rounds = max(calls // waiting, 1)
    took = 0
    for _ in range(rounds):
        pool = BudgetPool(token_cap=TOKENS * waiting, usd_cap=USD_CAP)
        everything = pool.reserve(tokens=TOKENS * waiting, usd=0.0045)
        tasks = [asyncio.create_task(_reserve(pool)) for _ in range(waiting)]
        await asyncio.sleep(0)
        start = perf_counter_ns()
        everything.release()
        took += perf_counter_ns() - start
        for reservation in await asyncio.gather(*tasks):
            reservation.commit()
    return took * calls / (rounds * waiting)


def _tasks_in_turn(waiting: int, calls: int) -> int:
    """Time tasks of which one holds what the others wait for, gives it back, and waits again."""
    pool = BudgetPool(token_cap=TOKENS, usd_cap=USD_CAP)
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
            assert turns == 0
        await asyncio.gather(*tasks)

    asyncio.run(main())
    begin, end = times
    return end - begin


def run(options: Options) -> list[Table]:
    """Measure lines of different length."""
    calls = 200 if options.tiny else 20_000
    turns = 50 if options.tiny else 5_000  # of the event loop, which takes longer than all that is timed
    counts = (1, 5, 20) if options.tiny else (1, 100, 10_000)
    loop = _Loop()
    try:
        rows = [
            *_in_lines("hand-over by a release", _hand_over, counts, turns, options.repeats, loop),
            *_in_lines("join the line, give up", _join_and_give_up, counts, calls, options.repeats, loop),
            *_in_lines("give up, the newest", _newest_gives_up, counts, calls, options.repeats, loop),
            *_oldest(counts, calls, options.repeats, loop),
        ]
        at_once = {_name(count): _in_loop(loop, own_copy(_all_at_once), count, turns) for count in counts}
        rows += against_first("a release that lets all in, for each", at_once, turns, options.repeats)
        in_turn = {_name(count): partial(own_copy(_tasks_in_turn), count, turns) for count in counts}
        rows += against_first("tasks in turn", in_turn, turns, options.repeats)
        return [
            Table("Waiting: time to hand room over as there are those who wait, 1.00 is flat", AGAINST_HEADER, rows),
            _beside(calls, (*counts[:1], 0, *counts[1:]), options.repeats, loop),
        ]
    finally:
        loop.close()


def _in_lines(
    operation: str,
    body: Callable[[_Line, int], Coroutine[Any, Any, int]],
    counts: tuple[int, ...],
    calls: int,
    repeats: int,
    loop: _Loop,
) -> list[list[str]]:
    """Time what happens in a line, for lines of each length."""
    must = {} if body is _hand_over else {_name(counts[-1]): GIVE_UP_GOAL}
    lines = {_name(count): loop.run_until_complete(_Line.form(BudgetPool(TOKENS, USD_CAP), count)) for count in counts}
    contenders = {name: _in_loop(loop, own_copy(body), line, calls) for name, line in lines.items()}
    rows = against_first(operation, contenders, calls, repeats, must)
    for line in lines.values():
        loop.run_until_complete(line.close())
    return rows


def _oldest(counts: tuple[int, ...], calls: int, repeats: int, loop: _Loop) -> list[list[str]]:
    """Time who waited longest and gives up, for lines of each length."""

    async def form(pool: BudgetPool, count: int) -> deque[Step]:
        return deque(_join_by_hand(pool) for _ in range(count))

    contenders, lines = {}, []
    for count in counts:
        pool = BudgetPool(TOKENS, USD_CAP)
        held = pool.reserve(tokens=TOKENS, usd=0.0045)
        line = loop.run_until_complete(form(pool, count))
        contenders[_name(count)] = _in_loop(loop, own_copy(_oldest_gives_up), line, calls, pool)
        lines.append((line, held))
    rows = against_first("give up, the oldest", contenders, calls, repeats, {_name(counts[-1]): GIVE_UP_GOAL})
    for line, held in lines:
        for step in line:
            step.close()
        held.release()
    return rows


def _beside(calls: int, counts: tuple[int, ...], repeats: int, loop: _Loop) -> Table:
    """Time one child of a pool while others wait for another child."""
    rows = []
    parents = {_name(count): BudgetPool(TOKEN_CAP, USD_CAP) for count in counts}
    lines = [
        loop.run_until_complete(_Line.form(parents[_name(count)].child(TOKENS, USD_CAP), count)) for count in counts
    ]
    siblings = {name: large_pool(parent) for name, parent in parents.items()}
    for operation, body in SPENDING.items():
        contenders = {name: timing(body, sibling, calls) for name, sibling in siblings.items()}
        rows += against_first(operation, contenders, calls, repeats)
    for line in lines:
        loop.run_until_complete(line.close())
    return Table("Waiting: time of one child as others wait for another, 1.00 is flat", AGAINST_HEADER, rows)


def _in_loop(loop: _Loop, body: Callable[..., Coroutine[Any, Any, float]], *arguments: object) -> Callable[[], float]:
    return lambda: loop.run_until_complete(body(*arguments))


def _name(count: int) -> str:
    return f"{count:,} waiting"
