"""``token-budget reset STORE``: set what is used of a budget in a store to 0, for all processes."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from token_budget.cli._display import filled
from token_budget.cli._store_commands import STATUSES, Options, add_options, with_pool
from token_budget.cli._store_tree import amounts, shown_name

if TYPE_CHECKING:
    import argparse

    from token_budget.stores import StorePool


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``reset`` and its options."""
    parser = commands.add_parser(
        "reset",
        help="set what is used of a budget in SQLite or Redis to 0",
        description="Set what is used of a budget in a store to 0, for all processes that spend from it. Calls in "
        "flight keep what they hold. The budgets below it keep what they have used; caps and windows stay. "
        f"{STATUSES}",
    )
    add_options(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: Options) -> int:
    """Reset it, show what was reset, and return the exit status."""
    return with_pool(options, lambda pool: _reset(options, pool))


def _reset(options: Options, pool: StorePool) -> int:
    before = pool.snapshot()
    pool.reset()
    after = pool.snapshot()
    if options.json:
        told = {"store": pool._family.location, "before": before.to_dict(), "after": after.to_dict()}
        sys.stdout.write(f"{json.dumps(told, indent=2)}\n")
        return 0
    used = amounts(before.tokens_used, before.usd_used_nanos)
    lines = [f"{shown_name(before)} in {pool._family.location}: {used} were used, and are set to 0."]
    if after.in_flight:
        calls = "1 call in flight keeps" if after.in_flight == 1 else f"{after.in_flight:,} calls in flight keep"
        lines.append(f"{calls} {amounts(after.tokens_reserved, after.usd_reserved_nanos)}.")
    lines.append(f"Now: {after}")
    sys.stdout.write("".join(f"{filled(line)}\n" for line in lines))
    return 0
