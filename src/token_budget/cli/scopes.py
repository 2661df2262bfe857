"""``token-budget scopes``: users and projects under one budget a day, and two hundred tasks that wait for their turn.

Every task asks with ``areserve`` for its user's, its project's and the day's money at once, and for a place among the
twenty calls that may be in flight. The model is simulated, the budgets are not. At the end the pools are held against
what the tasks noted themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from random import Random
from typing import TYPE_CHECKING

from token_budget import BudgetExceeded, BudgetPool, Window

if TYPE_CHECKING:
    from token_budget import BudgetEvent, BudgetSnapshot, KeyedPools

_CALLS = 200
_ROOM = 20  # calls that may be in flight at once
_TOKENS = 2_000  # what a call reserves at most
_USD = 0.01
_USERS = ("ann", "bob", "cyd", "dan", "eve")
_PROJECTS = ("atlas", "borealis")


class Options(argparse.Namespace):
    """The parsed options."""

    seed: int


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``scopes`` and its option."""
    parser = commands.add_parser(
        "scopes",
        help="users, projects and the whole: daily budgets, and tasks that wait for their turn",
        description="200 asyncio tasks of five users and two projects wait for room for 20 in one daily budget. Exit "
        "status: 0 the pools agree with what the tasks noted, 1 they do not.",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="names the simulated calls (1)")
    parser.set_defaults(run=run)


class Day:
    """The budgets of a day, and what the tasks note beside them."""

    def __init__(self) -> None:
        """Make the pools."""
        daily = Window.daily("UTC")
        self.whole: BudgetPool = BudgetPool(usd_cap=1.0, name="day", window=daily)
        room = self.whole.child(token_cap=_ROOM * _TOKENS, name="in flight")
        self.projects: dict[str, BudgetPool] = {
            name: room.child(usd_cap=0.6, name=name, window=daily) for name in _PROJECTS
        }
        self.users: KeyedPools[BudgetPool] = room.keyed(usd_cap=0.2, name="user", window=daily)
        self.whole.on_threshold(0.8, self._warn)
        self.asked: list[int] = []  # calls in the order in which they asked
        self.served: list[int] = []  # and in which they got room
        self.refused: dict[str, int] = {}  # by the scope that refused
        self.spent: dict[str, int] = {}  # nanodollars by scope
        self.warnings: int = 0
        self.most_in_flight: int = 0

    def _warn(self, event: BudgetEvent) -> None:
        self.warnings += 1
        sys.stdout.write(f"warning, 80 % of the day's money is used or reserved: {event.snapshot}\n")

    async def call(self, number: int, user: str, project: str, cost: int) -> None:
        """Wait for room in all scopes, call the model, say what it cost."""
        scopes = BudgetPool.join(self.users[user], self.projects[project], name=f"{user} on {project}")
        self.asked.append(number)
        try:
            async with scopes.areserve(tokens=_TOKENS, usd=_USD) as reservation:
                self.served.append(number)
                self.most_in_flight = max(self.most_in_flight, self.whole.snapshot().in_flight)
                await asyncio.sleep(0.001 + number % 7 / 2000)  # the model thinks
                reservation.commit(tokens=0, usd=cost / 10**9)  # tokens are places here, and given back
        except BudgetExceeded as error:
            self.refused[str(error.pool)] = self.refused.get(str(error.pool), 0) + 1
            return
        for scope in (f"user:{user}", project, "in flight", "day"):
            self.spent[scope] = self.spent.get(scope, 0) + cost

    async def run(self, random: Random) -> None:
        """Let all calls ask at once."""
        calls = [
            (number, random.choice(_USERS), random.choice(_PROJECTS), random.randrange(2_000_000, 9_000_000))
            for number in range(_CALLS)
        ]
        await asyncio.gather(*[self.call(*call) for call in calls])

    def agrees(self, tree: BudgetSnapshot) -> bool:
        """Hold the pools against the notes: each nanodollar, nothing held, never more at once than there was room."""
        (room,) = tree.children
        shown = {str(snapshot.name): snapshot.usd_used_nanos for snapshot in (tree, room, *room.children)}
        return (
            {name: nanos for name, nanos in shown.items() if nanos} == self.spent
            and tree.in_flight == tree.tokens_reserved == tree.usd_reserved_nanos == 0
            and self.most_in_flight <= _ROOM
            and len(self.served) + sum(self.refused.values()) == _CALLS
            and self.warnings == (tree.usd_used >= 0.8)
        )


def run(options: Options) -> int:
    """Run it and return the exit status."""
    day = Day()
    asyncio.run(day.run(Random(options.seed)))
    tree = day.whole.snapshot(tree=True)
    agreed = day.agrees(tree)
    refused = ", ".join(f"{count} by {name}" for name, count in sorted(day.refused.items())) or "none"
    lines = [
        f"{_CALLS} tasks asked at once; {len(day.served)} were served, at most {day.most_in_flight} at a time",
        f"refused, since their scope's money was gone for today: {refused}",
        f"{tree}, resets at {tree.resets_at:%Y-%m-%d %H:%M} UTC",
        *[f"  {child}" for child in tree.children[0].children],
        f"the pools {'agree' if agreed else 'DO NOT AGREE'} with what the tasks noted, to the nanodollar",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if agreed else 1
