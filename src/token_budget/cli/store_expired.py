"""``token-budget expired STORE`` and ``token-budget settle STORE ID``: calls whose process died, and what they cost.

What a process holds when it dies is charged in full, since the provider may bill the call. ``expired`` lists these
charges, and ``settle`` replaces one by what the call cost.
"""

from __future__ import annotations

import argparse
import json
import sys
from decimal import Decimal
from typing import TYPE_CHECKING

from token_budget import BudgetOverrun, ReservationClosed
from token_budget._money import to_nanos
from token_budget.cli._display import filled
from token_budget.cli._options import whole
from token_budget.cli._store_commands import STATUSES, Options, add_options, failed, with_pool
from token_budget.cli._store_tree import amounts

if TYPE_CHECKING:
    from token_budget.stores import StorePool


class SettleOptions(Options):
    """The parsed options of ``settle``."""

    id: str
    tokens: int | None
    usd: Decimal | None


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``expired`` and ``settle``, and their options."""
    parser = commands.add_parser(
        "expired",
        help="list calls in SQLite or Redis that are charged in full, since their process died",
        description="List the calls of a budget that are charged in full: their process died, or their lease ended, "
        f"before they were settled. A store lists them for 7 days. {STATUSES}",
    )
    add_options(parser)
    parser.set_defaults(run=run, parser=parser)
    parser = commands.add_parser(
        "settle",
        help="say what such a call really cost",
        description="Settle a call by its id: one that `expired` lists, or one that was handed over. What it is "
        f"charged or holds is replaced by what it cost. Repeating it counts once. {STATUSES}",
    )
    add_options(parser)
    add = parser.add_argument
    add("id", metavar="ID", help="as `expired` lists it, or as `reservation.id` says")
    add("--tokens", type=whole(0, 10**18), metavar="N", help="how many tokens the call used")
    add("--usd", type=_dollars, metavar="USD", help="how many dollars it cost; at least one of both is needed")
    parser.set_defaults(run=run_settle, parser=parser)


def run(options: Options) -> int:
    """List them, and return the exit status."""
    return with_pool(options, lambda pool: _list(options, pool))


def _list(options: Options, pool: StorePool) -> int:
    found = pool.expired()
    if options.json:
        told = [{**one._asdict(), "at": one.at.isoformat()} for one in found]
        sys.stdout.write(f"{json.dumps({'store': pool._family.location, 'expired': told}, indent=2)}\n")
        return 0
    lines = []
    for one in found:
        host, pid, _ = one.who.rsplit(":", 2)
        pools = ", ".join(name if name.isprintable() else repr(name) for name in one.pools)
        about = f"{amounts(one.tokens, one.usd_nanos)} at {one.at:%Y-%m-%d %H:%M:%S} UTC, of pid {pid} on {host}"
        lines += [one.id, filled(f"{about}, charged to {pools}", first="  ", then="  ")]
    if found:
        lines += [
            "",
            filled("Say what one cost: token-budget settle STORE ID --tokens N --usd X (0, if it was not sent)"),
        ]
    sys.stdout.write("\n".join(lines or ["no call is charged in full for a process that died"]) + "\n")
    return 0


def run_settle(options: SettleOptions) -> int:
    """Settle one, and return the exit status."""
    if options.tokens is None and options.usd is None:
        options.parser.error("say what it cost: --tokens N, --usd X, or both")
    return with_pool(options, lambda pool: _settle(options, pool))


def _settle(options: SettleOptions, pool: StorePool) -> int:
    charged = next((one for one in pool.expired() if one.id == options.id), None)
    if charged is not None:
        # An axis that is left out counts as 0, which is hardly meant where something is charged on it.
        left_out = {"--tokens": charged.tokens if options.tokens is None else 0}
        left_out["--usd"] = charged.usd_nanos if options.usd is None else 0
        for option in (option for option, amount in left_out.items() if amount):
            options.parser.error(f"say {option}, too: {amounts(charged.tokens, charged.usd_nanos)} are charged")
    tokens, usd = options.tokens or 0, options.usd or Decimal(0)
    overrun = None
    try:
        pool.settle(options.id, tokens=tokens, usd=usd)
    except (LookupError, ReservationClosed) as error:
        return failed(options, error)
    except BudgetOverrun as error:  # it is recorded
        overrun = str(error)
    after = pool.snapshot()
    if options.json:
        told = {"id": options.id, "tokens": tokens, "usd_nanos": to_nanos(usd), "overrun": overrun}
        told |= {"store": pool._family.location, "after": after.to_dict()}
        sys.stdout.write(f"{json.dumps(told, indent=2)}\n")
        return 0
    before = "" if charged is None else f", in place of {amounts(charged.tokens, charged.usd_nanos)}"
    lines = [f"{options.id} is counted with {amounts(tokens, to_nanos(usd))}{before}."]
    lines += [f"Now: {after}"] if overrun is None else [f"Now: {after}", overrun]
    sys.stdout.write("".join(f"{filled(line)}\n" for line in lines))
    return 0


def _dollars(text: str) -> Decimal:
    try:
        value = Decimal(text)
        to_nanos(value)
    except (ArithmeticError, ValueError):
        raise argparse.ArgumentTypeError(f"must be a number of dollars from 0 to 10**9, not {text[:60]!r}") from None
    return value
