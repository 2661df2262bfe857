"""The tables of a budget's file, and the numbers that stand for "none" in them.

What always holds between two transactions, for each scope and axis:

* ``room = limit - used - held``, where the limit is the cap, or `NO_CAP` where there is none. What is used is not kept.
* What is held and in flight is the sum over the open claims (``hold``) whose chain has the scope.
* ``waiters`` is the number of rows in ``waiter`` that are at the scope.
* An id of a scope is never used again, so that one that a process remembers finds that scope or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

APPLICATION_ID = 0x54425047  # "TBPG"
VERSION = 1  # of these tables; `PRAGMA user_version`
PAGE_SIZE = 1024  # with 4096, two small updates took 1.4 times as long
NO_CAP = 1 << 62
FAR = (1 << 48) - 1  # the end of a period that never ends: later than any clock, in six bytes
CLAIMED_AT_MOST = 9 * 10**18  # used + held: with this bound no number leaves 64 bits, which SQLite would round

# A number that has left 64 bits becomes a REAL in SQLite, without an error. These bounds refuse it, and cost nothing
# that could be measured (a test of ``typeof`` cost 4 %).
_BOUNDS = "BETWEEN -9000000000000000000 AND 9000000000000000000"
_COUNT = "BETWEEN 0 AND 9000000000000000000"

_STATEMENTS = (
    # parent: 0 for a root, the id of the scope above, or minus the id of the group whose key this is.
    # closed: 0, or when it was closed. own: which values a key has of its own (1 token_cap, 2 nano_cap, 4 window).
    # told: the thresholds that were told in this era, as "800000000,900000000".
    f"""
    CREATE TABLE scope (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        parent INTEGER NOT NULL,
        name TEXT NOT NULL,
        token_cap INTEGER,
        nano_cap INTEGER,
        token_room INTEGER NOT NULL CHECK (token_room {_BOUNDS}),
        nano_room INTEGER NOT NULL CHECK (nano_room {_BOUNDS}),
        token_held INTEGER NOT NULL CHECK (token_held {_COUNT}),
        nano_held INTEGER NOT NULL CHECK (nano_held {_COUNT}),
        in_flight INTEGER NOT NULL CHECK (in_flight {_COUNT}),
        window INTEGER,
        starts REAL,
        ends REAL NOT NULL,
        era INTEGER NOT NULL,
        waiters INTEGER NOT NULL,
        closed INTEGER NOT NULL,
        own INTEGER NOT NULL,
        told TEXT,
        UNIQUE (parent, name)
    )
    """,
    "CREATE INDEX scope_closed ON scope (closed) WHERE closed > 0",
    # The text of a window, once for all scopes that have it.
    "CREATE TABLE window (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE)",
    # What the keys of a `keyed` group begin with. starts, ends: the latest period that a key was made in, which a clock
    # that goes back does not reopen for keys that were dropped since.
    """
    CREATE TABLE keyed (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        parent INTEGER NOT NULL,
        name TEXT NOT NULL,
        token_cap INTEGER,
        nano_cap INTEGER,
        window INTEGER,
        starts REAL,
        ends REAL,
        UNIQUE (parent, name)
    )
    """,
    # How often the file was opened. `.alive` has the same number: where that is larger, the file is not the latest.
    "CREATE TABLE opening (number INTEGER NOT NULL)",
    "INSERT INTO opening VALUES (0)",
    # The processes that live, and those that were found dead, for 7 days: a process that finds itself nowhere has an
    # older copy of the file before it.
    "CREATE TABLE owner (id INTEGER PRIMARY KEY, who TEXT NOT NULL, boot_id TEXT NOT NULL)",
    "CREATE TABLE ended (id INTEGER PRIMARY KEY, at REAL NOT NULL)",
    "CREATE INDEX ended_at ON ended (at)",
    # The caps and windows that a living process has given. place: the id of a scope, or minus that of a group.
    """
    CREATE TABLE gave (
        place INTEGER NOT NULL,
        what TEXT NOT NULL,
        owner INTEGER NOT NULL,
        value,
        PRIMARY KEY (place, what, owner)
    ) WITHOUT ROWID
    """,
    # The open claims. chain: the ids of the scopes, "3,1". owner 0: it was handed over, and has a row in ``lease``.
    """
    CREATE TABLE hold (
        id INTEGER PRIMARY KEY,
        owner INTEGER NOT NULL,
        chain TEXT NOT NULL,
        tokens INTEGER NOT NULL,
        nanos INTEGER NOT NULL
    )
    """,
    "CREATE TABLE lease (id INTEGER PRIMARY KEY, ends REAL NOT NULL, who TEXT NOT NULL)",
    "CREATE INDEX lease_ends ON lease (ends)",
    # What was charged in full because its holder died. places: "[[3, 17, "total/a"], [1, 4, "total"]]", the scopes by
    # id, era and path. Number: the order of charging.
    """
    CREATE TABLE expired (
        number INTEGER PRIMARY KEY,
        id INTEGER NOT NULL UNIQUE,
        root INTEGER NOT NULL,
        places TEXT NOT NULL,
        tokens INTEGER NOT NULL,
        nanos INTEGER NOT NULL,
        at REAL NOT NULL,
        who TEXT NOT NULL
    )
    """,
    "CREATE INDEX expired_at ON expired (at)",
    # What was settled in a way that its holder, or another process, may repeat later. elsewhere: by `settle`.
    """
    CREATE TABLE settled (
        id INTEGER PRIMARY KEY,
        root INTEGER NOT NULL,
        chain TEXT NOT NULL,
        tokens INTEGER NOT NULL,
        nanos INTEGER NOT NULL,
        elsewhere INTEGER NOT NULL,
        at REAL NOT NULL
    )
    """,
    "CREATE INDEX settled_at ON settled (at)",
    # Who waits for room, and at which scope. The ticket is the order of arrival. seen: the latest sign of life of its
    # process, in seconds of `_alive.uptime`.
    """
    CREATE TABLE waiter (
        ticket INTEGER PRIMARY KEY AUTOINCREMENT,
        claim INTEGER NOT NULL UNIQUE,
        owner INTEGER NOT NULL,
        scope INTEGER NOT NULL,
        seen REAL NOT NULL
    )
    """,
    "CREATE INDEX waiter_place ON waiter (scope, ticket)",
)


def create(execute: Callable[..., Any]) -> None:
    """Make the tables of an empty database, inside the caller's transaction."""
    for statement in _STATEMENTS:
        execute(statement)
