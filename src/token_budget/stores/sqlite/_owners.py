"""Owners: the processes that hold claims, and what becomes of the claims of those that died.

A process lives while the kernel has its lock on its byte of `budget.db.alive`. A claim that was handed over lives for a
time of its own, its lease. Who takes the slow path charges the dead first: each of their claims counts in full, because
the provider bills the call all the same, and is listed in ``expired``, so that a late commit can correct it.
"""

from __future__ import annotations

import json
from typing import Any

from token_budget.stores._store import News
from token_budget.stores.sqlite._alive import boot_id, who
from token_budget.stores.sqlite._step import KEPT, Step, ids_of, lost

_EXPIRE = "INSERT OR REPLACE INTO expired (id, root, places, tokens, nanos, at, who) VALUES (?, ?, ?, ?, ?, ?, ?)"
_GIVE = "INSERT OR REPLACE INTO gave (place, what, owner, value) VALUES (?, ?, ?, ?)"
_LEASES = """
    SELECT lease.id, who, chain, tokens, nanos
    FROM lease LEFT JOIN hold ON hold.id = lease.id
    WHERE ends <= ?
"""
# A closed scope is kept for as long as the one above it is open: deleted, it could be opened anew.
_CLOSED_LONG_AGO = """
    SELECT id FROM scope
    WHERE closed > 0 AND closed < ? AND parent != 0 AND in_flight = 0 AND waiters = 0
        AND NOT EXISTS (
            SELECT 1 FROM scope AS above
            WHERE above.closed = 0
                AND above.id = ifnull((SELECT keyed.parent FROM keyed WHERE keyed.id = -scope.parent), scope.parent)
        )
        AND NOT EXISTS (SELECT 1 FROM scope AS below WHERE below.parent = scope.id)
        AND NOT EXISTS (SELECT 1 FROM keyed WHERE keyed.parent = scope.id)
"""
Places = list[tuple[int, int, str]]  # scopes by id, era and path


def prepare(step: Step) -> None:
    """Do what comes first in the slow path: charge the dead, and see to it that the file knows this process."""
    sweep(step)
    register(step)


def register(step: Step) -> None:
    """Have this process among the owners.

    Raises:
        StoreLost: see `is_known`.
    """
    owner = step.owner
    if step.registered == owner:
        if is_known(step):
            return
        owner = step.ledger.connection.new_owner()
    step.write("INSERT OR IGNORE INTO owner (id, who, boot_id) VALUES (?, ?, ?)", (owner, who(), boot_id()))
    # A forked child stands by what its parent gave. A copy: another thread may note what it has given just before.
    for (place, what), value in list(step.ledger.gave.items()):
        step.write(_GIVE, (place, what, owner, value))
    step.registered = owner


def give(step: Step, place: int, what: str, value: Any) -> None:
    """Note a cap or window that this process gives."""
    step.write(_GIVE, (place, what, step.owner, value))
    step.gave[place, what] = value


def is_known(step: Step) -> bool:
    """Return whether this process is among the owners, where it was: False if it was declared dead.

    Raises:
        StoreLost: nobody has declared it dead: this is an older file.
    """
    owner = step.owner
    if step.execute("SELECT 1 FROM owner WHERE id = ?", (owner,)).fetchone() is not None:
        return True
    if step.execute("SELECT 1 FROM ended WHERE id = ?", (owner,)).fetchone() is None:
        raise lost(step.ledger)
    return False


def dead(step: Step) -> list[tuple[int, str]]:
    """Return the owners that are dead, and who they were."""
    me, alive, boot = step.owner, step.ledger.connection.alive, boot_id()
    owners = step.execute("SELECT id, who, boot_id FROM owner").fetchall()
    return [
        (owner, name) for owner, name, booted in owners if owner != me and (booted != boot or not alive.lives(owner))
    ]


def sweep(step: Step) -> None:
    """Charge the claims of those that died, and those whose lease is over; let nobody wait for the dead."""
    for owner, name in dead(step):
        _bury(step, owner, name)
    for claim, name, chain, tokens, nanos in step.execute(_LEASES, (step.time,)).fetchall():
        step.write("DELETE FROM lease WHERE id = ?", (claim,))
        if chain is not None:  # else it was settled
            charge(step, claim, chain, tokens, nanos, name)


def _bury(step: Step, owner: int, name: str) -> None:
    for claim, chain, tokens, nanos in _holds_of(step, owner):
        charge(step, claim, chain, tokens, nanos, name)
    for ticket, scope in step.execute("SELECT ticket, scope FROM waiter WHERE owner = ?", (owner,)).fetchall():
        drop_ticket(step, ticket, scope)
    step.write("DELETE FROM gave WHERE owner = ?", (owner,))
    step.write("DELETE FROM owner WHERE id = ?", (owner,))
    step.write("INSERT OR REPLACE INTO ended (id, at) VALUES (?, ?)", (owner, step.time))
    tidy(step)


def _holds_of(step: Step, owner: int) -> list[tuple[int, str, int, int]]:
    return step.execute(  # type: ignore[no-any-return]
        "SELECT id, chain, tokens, nanos FROM hold WHERE owner = ?", (owner,)
    ).fetchall()


def charge(step: Step, claim: int, chain: str, tokens: int, nanos: int, name: str) -> None:
    """Count a claim in full, and list it. What it holds is used from now on, in the present periods."""
    ids = ids_of(chain)
    places: Places = []
    for row in step.rows(ids):
        row.end_claim((tokens, nanos), (tokens, nanos))
        places.append((row.id, row.era, step.path(row)))
    step.write("DELETE FROM hold WHERE id = ?", (claim,))
    step.write(_EXPIRE, (claim, ids[-1], json.dumps(places), tokens, nanos, step.time, name))
    paths = tuple(path for _, _, path in places)
    if paths[-1:] == (step.ledger.name,):  # a file may have several roots
        step.news.append(News("expired", paths[0], paths, tokens, nanos))


def drop_ticket(step: Step, ticket: int, scope: int) -> None:
    """End somebody's waiting."""
    step.write("DELETE FROM waiter WHERE ticket = ?", (ticket,))
    for row in step.rows([scope]):
        row.waiters -= 1


def tidy(step: Step) -> None:
    """Delete what is kept for 7 days, after that."""
    before = step.time - KEPT
    for table in ("expired", "settled", "ended"):
        step.write(f"DELETE FROM {table} WHERE at < ?", (before,))  # noqa: S608 - the names are the three above
    for (scope,) in step.execute(_CLOSED_LONG_AGO, (before,)).fetchall():
        step.delete(scope)


def let_go(step: Step) -> None:
    """Charge what this process still holds of the root, and end its part in it."""
    owner, root = step.owner, step.id_at(0, step.ledger.name)
    for claim, chain, tokens, nanos in _holds_of(step, owner):
        if ids_of(chain)[-1] == root:
            charge(step, claim, chain, tokens, nanos, who())
    for ticket, scope in step.execute("SELECT ticket, scope FROM waiter WHERE owner = ?", (owner,)).fetchall():
        if _is_of_root(step, scope):
            drop_ticket(step, ticket, scope)
    for (place,) in step.execute("SELECT DISTINCT place FROM gave WHERE owner = ?", (owner,)).fetchall():
        if _is_of_root(step, place):
            step.write("DELETE FROM gave WHERE owner = ? AND place = ?", (owner, place))


def _is_of_root(step: Step, place: int) -> bool:
    """Return whether a scope, or minus a group, is of the root that this ledger is for."""
    table = "scope" if place > 0 else "keyed"
    found = step.execute(f"SELECT parent, name FROM {table} WHERE id = ?", (abs(place),)).fetchone()  # noqa: S608
    return found is not None and step.path_of(*found).partition("/")[0] == step.ledger.name


# ---------------------------------------------------------------------- for those who only look


def as_charged(step: Step) -> dict[int, list[int]]:
    """Return what `sweep` would take from each scope: tokens and nanodollars held, claims in flight, waiters.

    Raises:
        StoreLost: see `is_known`.
    """
    if step.registered == step.owner:
        is_known(step)
    found: dict[int, list[int]] = {}
    claims = [row[2:] for row in step.execute(_LEASES, (step.time,)).fetchall() if row[2] is not None]
    for owner, _ in dead(step):
        claims += [hold[1:] for hold in _holds_of(step, owner)]
        for (scope,) in step.execute("SELECT scope FROM waiter WHERE owner = ?", (owner,)).fetchall():
            found.setdefault(scope, [0, 0, 0, 0])[3] += 1
    for chain, tokens, nanos in claims:
        for scope in ids_of(chain):
            taken = found.setdefault(scope, [0, 0, 0, 0])
            taken[0] += tokens
            taken[1] += nanos
            taken[2] += 1
    return found
