"""``token-budget scopes``: users and projects share a daily budget, and two hundred tasks wait for their turn.

Each task calls ``areserve`` once and so reserves money of its user, of its project and of the day, and one of the
twenty places for calls in flight. The model is simulated, the budgets are real. At the end the pools are compared with
the tasks' own notes.
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
        help="users and projects share a daily budget, and tasks wait for their turn",
        description="200 asyncio tasks of five users and two projects share one daily budget, in which 20 calls may be "
        "in flight. Exit status: 0 the pools agree with what the tasks noted; 1 they do not, or the output cannot be "
        "written.",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="the same seed gives the same calls (1)")
    parser.set_defaults(run=run, parser=parser)


class Day:
    """The budgets of a day, and the notes of the tasks."""

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
        self.served: list[int] = []  # calls in the order in which they got room
        self.refused: dict[str, int] = {}  # how many calls each scope refused
        self.spent: dict[str, int] = {}  # nanodollars by scope
        self.warnings: list[str] = []
        self.most_in_flight: int = 0

    def _warn(self, event: BudgetEvent) -> None:
        # Kept for the end: the pool logs what a callback raises, and a full disk must end the program.
        self.warnings.append(f"warning: 80 % of the day's money is used: {event.snapshot}")

    async def call(self, number: int, user: str, project: str, cost: int) -> None:
        """Wait for room in all scopes, call the model, and commit the cost."""
        scopes = BudgetPool.join(self.users[user], self.projects[project], name=f"{user} on {project}")
        self.asked.append(number)
        try:
            async with scopes.areserve(tokens=_TOKENS, usd=_USD) as reservation:
                self.served.append(number)
                self.most_in_flight = max(self.most_in_flight, self.whole.snapshot().in_flight)
                await asyncio.sleep(0.001 + number % 7 / 2000)  # the model thinks
                reservation.commit(tokens=0, usd=cost / 10**9)  # here tokens are places: all are given back
        except BudgetExceeded as error:
            self.refused[str(error.pool)] = self.refused.get(str(error.pool), 0) + 1
            return
        for scope in (f"user:{user}", project, "in flight", "day"):
            self.spent[scope] = self.spent.get(scope, 0) + cost

    async def run(self, random: Random) -> None:
        """Make all calls at once."""
        calls = [
            (number, random.choice(_USERS), random.choice(_PROJECTS), random.randrange(2_000_000, 9_000_000))
            for number in range(_CALLS)
        ]
        await asyncio.gather(*[self.call(*call) for call in calls])

    def agrees(self, tree: BudgetSnapshot) -> bool:
        """Compare the pools with the notes: every nanodollar, nothing held, and no more in flight than places."""
        (room,) = tree.children
        shown = {str(snapshot.name): snapshot.usd_used_nanos for snapshot in (tree, room, *room.children)}
        return (
            {name: nanos for name, nanos in shown.items() if nanos} == self.spent
            and tree.in_flight == tree.tokens_reserved == tree.usd_reserved_nanos == 0
            and self.most_in_flight <= _ROOM
            and len(self.served) + sum(self.refused.values()) == _CALLS
            and len(self.warnings) == (tree.usd_used >= 0.8)
        )


def run(options: Options) -> int:
    """Run the calls of a day and return the exit status."""
    day = Day()
    asyncio.run(day.run(Random(options.seed)))
    tree = day.whole.snapshot(tree=True)
    agreed = day.agrees(tree)
    refused = ", ".join(f"{count} by {name}" for name, count in sorted(day.refused.items())) or "none"
    lines = [
        *day.warnings,
        f"{_CALLS} tasks asked at once; {len(day.served)} were served, at most {day.most_in_flight} at a time",
        f"refused because the scope's money for today was spent: {refused}",
        f"{tree}, resets at {tree.resets_at:%Y-%m-%d %H:%M} UTC",
        *[f"  {child}" for child in tree.children[0].children],
        f"the pools {'agree' if agreed else 'DO NOT AGREE'} with what the tasks noted, to the nanodollar",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if agreed else 1
