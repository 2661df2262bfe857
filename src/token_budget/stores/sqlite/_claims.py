"""Claims that outlive their holder: those charged in full, those settled by their id, those handed over."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from token_budget.stores._store import DONE, LATE, REPEAT, UNKNOWN, Answer, Charged
from token_budget.stores.sqlite._alive import who
from token_budget.stores.sqlite._owners import prepare, tidy
from token_budget.stores.sqlite._rows import Row
from token_budget.stores.sqlite._scopes import key_row
from token_budget.stores.sqlite._step import KEPT, Step, ids_of

_SETTLE = """
    INSERT OR REPLACE INTO settled (id, root, chain, tokens, nanos, elsewhere, at) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
ELSEWHERE = 1  # settled by `settle`
HERE = 0  # settled by its holder


def correct(
    step: Step, claim: int, amount: tuple[int, int], how: int, of: int | None = None
) -> tuple[list[Row], tuple[int, int]] | None:
    """Count what a claim cost that was charged in full. Return its rows and what was charged; None if it was not.

    ``of``: the root that it must be of.

    Where a scope is still in the era of the charge, it is corrected both ways. In a later era the charge is gone: what
    the claim cost above it is new, and nothing comes back.
    """
    found = step.execute("SELECT root, places, tokens, nanos FROM expired WHERE id = ?", (claim,)).fetchone()
    if found is None or (of is not None and found[0] != of):
        return None
    root, places, charged = found[0], json.loads(found[1]), (found[2], found[3])
    more_tokens, more_nanos = amount[0] - charged[0], amount[1] - charged[1]
    rows = []
    for scope, era, path in places:
        row = step.row(scope) or _row_at(step, path)
        if row is None:
            continue
        same = row.id == scope and row.era == era
        row.tokens += more_tokens if same else max(0, more_tokens)
        row.nanos += more_nanos if same else max(0, more_nanos)
        rows.append(row)
    step.write("DELETE FROM expired WHERE id = ?", (claim,))
    note_settled(step, claim, root, [row.id for row in rows], amount, how)
    return rows, charged


def _row_at(step: Step, path: str) -> Row | None:
    """Return the row of a path, of a key that was dropped since a new one; None if the scope is gone for good."""
    parent, row = 0, None
    for part in path.split("/"):
        group, colon, key = part.partition(":")
        row = key_row(step, parent, group, key) if colon else step.row_at(parent, part)
        if row is None:
            return None
        parent = row.id
    return row


def note_settled(step: Step, claim: int, root: int, chain: Sequence[int], amount: tuple[int, int], how: int) -> None:
    """Remember what was counted for a claim, for 7 days."""
    step.write(_SETTLE, (claim, root, ",".join(map(str, chain)), *amount, how, step.time))


def settled(step: Step, claim: int) -> tuple[int, str, tuple[int, int], int] | None:
    """Return the root, the chain, what was counted and how, of a claim that was noted so."""
    sql = "SELECT root, chain, tokens, nanos, elsewhere FROM settled WHERE id = ?"
    found = step.execute(sql, (claim,)).fetchone()
    return None if found is None else (found[0], found[1], (found[2], found[3]), found[4])


# ---------------------------------------------------------------------- settling by id


def settle(step: Step, claim: int, amount: tuple[int, int]) -> tuple[Answer, tuple[str, ...]]:
    """See `Store.settle`."""
    prepare(step)
    tidy(step)
    root = step.root()
    found = step.execute("SELECT chain, tokens, nanos FROM hold WHERE id = ?", (claim,)).fetchone()
    if found is not None:
        chain = ids_of(found[0])
        if chain[-1] != root:
            return Answer(UNKNOWN), ()
        held = (found[1], found[2])
        rows = step.rows(chain)
        for row in rows:
            row.end_claim(held, amount)
        step.write("DELETE FROM hold WHERE id = ?", (claim,))
        step.write("DELETE FROM lease WHERE id = ?", (claim,))
        note_settled(step, claim, root, chain, amount, ELSEWHERE)
        return _settled(step, DONE, rows, held)
    corrected = correct(step, claim, amount, ELSEWHERE, root)
    if corrected is not None:
        return _settled(step, LATE, *corrected)
    before = settled(step, claim)
    if before is None or before[0] != root:
        return Answer(UNKNOWN), ()
    return Answer(REPEAT, counted=before[2]), tuple(step.path(row) for row in step.rows(ids_of(before[1])))


def _settled(step: Step, kind: str, rows: list[Row], held: tuple[int, int]) -> tuple[Answer, tuple[str, ...]]:
    over = any(row.over() for row in rows)
    numbers = tuple(row.numbers() for row in rows) if over else ()
    return Answer(kind, numbers, counted=held), tuple(step.path(row) for row in rows)


# ---------------------------------------------------------------------- what was charged, what is handed over


def expired(step: Step) -> list[Charged]:
    """See `Store.expired`. The ids are those of the file; the store gives them as text."""
    prepare(step)
    found = step.execute(
        "SELECT id, tokens, nanos, who, at, places FROM expired WHERE root = ? AND at >= ? ORDER BY number",
        (step.root(), step.time - KEPT),
    ).fetchall()
    return [
        Charged(id_of(claim), tokens, nanos, name, at, tuple(path for _, _, path in json.loads(places)))
        for claim, tokens, nanos, name, at, places in found
    ]


def hand_over(step: Step, claim: int, lease: float) -> None:
    """See `Store.hand_over`. The claim keeps its key, and its life is a time from now on.

    Raises:
        LookupError: it is not open.
    """
    prepare(step)
    if not step.write("UPDATE hold SET owner = 0 WHERE id = ?", (claim,)):
        raise LookupError(f"no claim {id_of(claim)} is open: it was settled, or charged in full")
    sql = "INSERT OR REPLACE INTO lease (id, ends, who) VALUES (?, ?, ?)"
    step.write(sql, (claim, step.time + lease, who()))


def id_of(claim: int) -> str:
    """Return the text of a claim's id."""
    return f"{claim:016x}"


def claim_of(text: str) -> int | None:
    """Return the id of a claim from its text; None if it is none."""
    return int(text, 16) if re.fullmatch("[0-7][0-9a-f]{15}", text) else None
