"""A process of ``token-budget stores-demo``: it spends from the budget that all share, and tells each step.

The parent starts an interpreter that runs `main`, and writes its settings and then ``go`` to its standard input. The
worker writes one line to its standard output before and after each step, in one write: what it has
written outlives it, at whatever point it is killed.

    ready                   its pool is open
    reserve N TOKENS NANOS  it asks for room for call N, the most that it can cost
    reserved | refused | unavailable
    commit TOKENS NANOS     it says what the call cost
    committed
    end | failed TEXT       the last line, unless it was killed
"""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from token_budget import BudgetExceeded
from token_budget.contract import BudgetUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TextIO

    from token_budget.contract import HeldAmount

GROUP = "worker"  # each process has a key of this group, so that the store has a sum of its own for it
_PATIENCE = 60.0  # seconds that a call waits for room
_SECONDS_TO_ANSWER = 30.0  # of the store: a busy machine is no reason for a demo to fail
_TRIES = 10  # a commit that got no answer may be repeated safely


class Call(NamedTuple):
    """One call: the most that it can cost, what it costs, and how long the model takes. Money is in nanodollars."""

    number: int
    most: tuple[int, int]
    cost: tuple[int, int]
    seconds: float


def plan(seed: int, worker: int, calls: int) -> Iterator[Call]:
    """Make the calls of one process: the same for the same seed."""
    random = Random(f"{seed}/{worker}")
    for number in range(calls):
        given, limit = random.randrange(200, 2_000), random.choice((256, 512, 1_024))
        made = random.randrange(limit // 8, limit)  # less than it holds: the audit tells the two apart
        most, cost = ((given + out, given * 3_000 + out * 15_000) for out in (limit, made))
        yield Call(number, most, cost, random.uniform(0.005, 0.015))


def work(settings: dict[str, Any], begin: Callable[[], object], say: Callable[..., None]) -> None:
    """Open the budget, wait for the beginning, make the calls and tell each step."""
    from token_budget.stores import open_pool

    pool = open_pool(settings["store"], **settings["caps"], lease=settings["lease"], timeout=_SECONDS_TO_ANSWER)
    mine = pool.keyed(name=GROUP)[str(settings["number"])]
    say("ready")
    begin()
    for call in plan(settings["seed"], settings["number"], settings["calls"]):
        say("reserve", call.number, *call.most)
        tokens, nanos = call.most
        try:
            reservation = mine.reserve(tokens=tokens, usd=nanos / 10**9, timeout=_PATIENCE)
        except BudgetExceeded:
            say("refused")
            continue
        except BudgetUnavailable:
            say("unavailable")
            continue
        say("reserved")
        time.sleep(call.seconds)  # the model answers
        say("commit", *call.cost)
        _commit(reservation, *call.cost)
        say("committed")
    pool.close()


def _commit(reservation: HeldAmount, tokens: int, nanos: int) -> None:
    for _ in range(_TRIES - 1):
        with suppress(BudgetUnavailable):
            return reservation.commit(tokens=tokens, usd=nanos / 10**9)
    return reservation.commit(tokens=tokens, usd=nanos / 10**9)


def main(source: TextIO, descriptor: int) -> int:
    """Read the settings, work, and return the exit status."""

    def say(*words: object) -> None:
        os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())

    logging.getLogger("token_budget").addHandler(logging.NullHandler())  # the parent tells it
    try:
        work(json.loads(source.readline()), source.readline, say)
    except BrokenPipeError:  # the parent has gone
        return 1
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent reports it
        say("failed", type(error).__name__, ascii(str(error))[:2_000])
        return 1
    say("end")
    return 0
