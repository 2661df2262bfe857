"""What the commands that look into a store share: which store, opening it without making one, and exit statuses."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from token_budget.contract import BudgetUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from token_budget.stores import StorePool

_STORE = "TOKEN_BUDGET_STORE"
_NAME = "TOKEN_BUDGET_NAME"
STATUSES = (
    "Exit status: 0 done; 1 the store cannot be reached, has no such budget or has lost it, or the output cannot be "
    "written; 2 bad options; 130 ended by Ctrl-C."
)


class Options(argparse.Namespace):
    """The parsed options that all these commands have."""

    parser: argparse.ArgumentParser
    store: str | None
    json: bool


def add_options(parser: argparse.ArgumentParser, others: str = "") -> None:
    """Declare the store, what else may stand in its place, and JSON."""
    told = f"sqlite:budget.db#nightly, redis://host/0#nightly{others}; or what ${_STORE} and ${_NAME} say"
    parser.add_argument("store", nargs="?", metavar="STORE", help=told)
    parser.add_argument("--json", action="store_true", help="print JSON, with exact nanodollars")


@contextmanager
def quiet() -> Iterator[None]:
    """Let the pools log nothing to standard error, where the program has not said otherwise: the commands tell it."""
    logger, handler = logging.getLogger("token_budget"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def with_pool(options: Options, act: Callable[[StorePool], int]) -> int:
    """Open the budget that the options name, which must exist, call `act` with it, and return the exit status."""
    from token_budget.stores import StoreError

    with quiet():
        try:
            pool = _opened(options)
        except (ImportError, ValueError) as error:
            options.parser.error(str(error))
        except (BudgetUnavailable, StoreError) as error:
            return failed(options, error)
        with pool:
            try:
                return act(pool)
            except (BudgetUnavailable, StoreError) as error:
                return failed(options, error)


def failed(options: Options, error: Exception) -> int:
    """Say what went wrong, and return the exit status of that."""
    sys.stderr.write(f"{options.parser.prog}: error: {error}\n")
    return 1


def store_of_environment() -> str:
    """Return the store that the environment names; "" where it names none."""
    return os.environ.get(_STORE, "").strip()


def _opened(options: Options) -> StorePool:
    from token_budget.stores import StorePool, open_pool
    from token_budget.stores._opening import named, place_of

    where, name = options.store, None
    if where is None:
        where, name = store_of_environment(), os.environ.get(_NAME, "").strip() or None
        if not where:
            raise ValueError(f"which store? Say it, or set {_STORE}")
    where = named(where, name, _NAME)
    if place_of(where).kind == "memory":
        raise ValueError("a budget in memory is known to its own process alone")
    pool = open_pool(where, caps="stored", create=False)
    assert isinstance(pool, StorePool)  # noqa: S101 - for the type checker
    return pool
