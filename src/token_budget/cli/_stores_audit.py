"""The audit of ``token-budget stores-demo``: what each process was told, against what the store says.

A process tells each of its steps before and after it. So of a process that was killed at any point, at most one step
has no answer, and that step has two outcomes: the store has done it, or it has not. A call that is held when its
process dies is charged in full.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from token_budget.cli._audit import NOTHING, Amount, Check, Line, Seen, Sum

if TYPE_CHECKING:
    from token_budget import BudgetSnapshot
    from token_budget.cli._audit import Caps

_CALLS = ("committed", "refused", "unavailable")
_TITLES = {
    "committed": "told: committed",
    "refused": "told: refused (asked for)",
    "unavailable": "no answer (asked for)",
    "killed": "killed in the middle",
}


# What became of a call that got no answer.
_NEVER_HELD = "its last call never held anything"
_COMMITTED = "its last call is committed"
_CHARGED = "its last call is charged in full"


@dataclass
class Step:
    """The call that a process is making, as far as it has told."""

    most: Amount  # what it may hold
    bill: Amount  # what the provider would bill for it
    held: bool = False  # it was told that it holds it
    cost: Amount | None = None  # what it asked to be committed


@dataclass
class Page:
    """What one process was told, as it said itself."""

    number: int
    bills: list[Amount]  # of all its calls
    killed: bool = False  # by the demo
    ended: bool = False  # it said that it had made all its calls
    error: str | None = None
    pid: int = 0
    open: Step | None = None
    sums: dict[str, Sum] = field(default_factory=lambda: {key: Sum() for key in _CALLS})

    def note(self, line: str) -> None:
        """Note one line of the process; `_stores_worker` says which there are."""
        line = line.strip()
        word, *rest = line.split()
        step = self.open
        if word == "reserve" and step is None:
            number, tokens, nanos = map(int, rest)
            self.open = Step(Amount(tokens, nanos), self.bills[number])
        elif word in {"refused", "unavailable"} and step is not None and not step.held:
            self._end(word, step.most)
        elif word == "reserved" and step is not None and not step.held:
            step.held = True
        elif word == "commit" and step is not None and step.held:
            step.cost = Amount(*map(int, rest))
        elif word == "committed" and step is not None and step.cost is not None:
            self._end(word, step.cost)
        elif word == "end" and step is None:
            self.ended = True
        elif word == "failed":
            self.error = line.partition(" ")[2]
        elif word != "ready":
            self.error = f"said {line!r} out of order"

    def _end(self, how: str, amount: Amount) -> None:
        self.sums[how].add(amount)
        self.open = None

    @property
    def told(self) -> Amount:
        """What it was told that is counted."""
        return Amount(self.sums["committed"].tokens, self.sums["committed"].nanos)

    @property
    def calls(self) -> int:
        """How many calls it has begun."""
        return sum(one.calls for one in self.sums.values()) + (self.open is not None)

    def possible(self) -> list[tuple[str, Amount]]:
        """Return what the store may have counted for the call without an answer, and what that means."""
        step = self.open
        if step is None:
            return [("every call had its answer", NOTHING)]
        if step.cost is not None:
            return [(_COMMITTED, step.cost), (_CHARGED, step.most)]
        return [(_CHARGED, step.most)] if step.held else [(_NEVER_HELD, NOTHING), (_CHARGED, step.most)]


class Charge(NamedTuple):
    """What the store charged in full for a process that died."""

    id: str
    amount: Amount
    pid: int


@dataclass
class Found:
    """What the store says once all processes have ended."""

    tree: BudgetSnapshot
    charges: list[Charge]
    settled: BudgetSnapshot  # the tree, after the charges were settled by hand with what the calls cost
    seen: Seen  # while the processes ran


def added(one: Amount, other: Amount) -> Amount:
    """Return the sum."""
    return Amount(one.tokens + other.tokens, one.nanos + other.nanos)


def used(snapshot: BudgetSnapshot) -> Amount:
    """Return what is used."""
    return Amount(snapshot.tokens_used, snapshot.usd_used_nanos)


def of_process(tree: BudgetSnapshot, name: str) -> Amount:
    """Return what the store has for one process; nothing, if it never spent."""
    return next((used(child) for child in tree.children if child.name == name), NOTHING)


def lines(pages: list[Page], found: Found) -> dict[str, Line]:
    """Return the lines of the report, by a short key."""
    sums = {key: Sum() for key in _TITLES}
    for page in pages:
        for key, one in page.sums.items():
            sums[key].add(Amount(one.tokens, one.nanos), one.calls)
        if page.open is not None:
            sums["killed"].add(page.open.most)
    shown = {key: Line(_TITLES[key], one.calls, Amount(one.tokens, one.nanos)) for key, one in sums.items()}
    total = Amount(sum(charge.amount.tokens for charge in found.charges), sum(c.amount.nanos for c in found.charges))
    shown["charged"] = Line("store: charged in full", len(found.charges), total)
    shown["in_store"] = Line("store: used", None, used(found.tree))
    shown["settled"] = Line("store: used once settled", None, used(found.settled))
    return shown


def checks(pages: list[Page], found: Found, caps: Caps, calls: int, group: str) -> list[Check]:
    """Return the promises and whether they were kept; ``calls`` is how many each process was to make."""
    names = {page.number: f"{group}:{page.number}" for page in pages}
    outcomes = {page.number: _outcome(page, of_process(found.tree, names[page.number])) for page in pages}
    return [
        _told(pages, found, names, outcomes),
        _sum(found),
        _nothing_held(found.tree),
        _below_caps(found.seen, caps),
        _charged(pages, found, outcomes),
        _settled(pages, found, outcomes),
        _ended(pages, calls),
    ]


def _outcome(page: Page, stored: Amount) -> str | None:
    """Return what became of the call without an answer, or None where the sum is none that it can be."""
    return next((meaning for meaning, amount in page.possible() if added(page.told, amount) == stored), None)


def _text(amount: Amount) -> str:
    return f"{amount.tokens:,} tokens and {amount.nanos:,} nanodollars"


def _told(pages: list[Page], found: Found, names: dict[int, str], outcomes: dict[int, str | None]) -> Check:
    wrong, unanswered = [], []
    for page in pages:
        if outcomes[page.number] is None:
            expected = " or ".join(_text(added(page.told, amount)) for _, amount in page.possible())
            stored = _text(of_process(found.tree, names[page.number]))
            wrong.append(f"process {page.number} was told {expected}, the store has {stored}")
        elif page.open is not None:
            unanswered.append(f"; of process {page.number} {outcomes[page.number]}")
    detail = "; ".join(wrong) or f"{len(pages)} of {len(pages)}{''.join(unanswered)}"
    return Check("the store has for each process what it was told", not wrong, detail)


def _sum(found: Found) -> Check:
    total, parts = used(found.tree), NOTHING
    for child in found.tree.children:
        parts = added(parts, used(child))
    detail = f"{_text(total)}, the processes' {_text(parts)}" if total != parts else _text(total)
    return Check("the budget is the sum of its processes", total == parts, detail)


def _nothing_held(tree: BudgetSnapshot) -> Check:
    left = (tree.tokens_reserved, tree.usd_reserved_nanos, tree.in_flight)
    return Check(
        "nothing is held at the end, also not by the killed one",
        left == (0, 0, 0),
        f"{left[0]:,} tokens, {left[1]:,} nanodollars, {left[2]:,} in flight",
    )


def _below_caps(seen: Seen, caps: Caps) -> Check:
    most = Amount(seen.most_tokens, seen.most_nanos)
    kept = most.tokens <= (caps.tokens or math.inf) and most.nanos <= (caps.nanos or math.inf)
    snapshots = f"{seen.snapshots:,} snapshots" + (f", {seen.broken:,} of them wrong" if seen.broken else "")
    return Check(
        "used and held were never above a cap", kept and not seen.broken, f"{snapshots}, at most {_text(most)}"
    )


def _charged(pages: list[Page], found: Found, outcomes: dict[int, str | None]) -> Check:
    expected = [
        (page.pid, page.open.most) for page in pages if page.open is not None and outcomes[page.number] == _CHARGED
    ]
    listed = [(charge.pid, charge.amount) for charge in found.charges]
    texts = [f"{_text(amount)} of pid {pid}" for pid, amount in listed]
    return Check(
        "what is charged in full is listed with its process",
        sorted(expected) == sorted(listed),
        ", ".join(texts) or "none",
    )


def _settled(pages: list[Page], found: Found, outcomes: dict[int, str | None]) -> Check:
    """Compare the store, after it was settled by hand, with what the calls cost that were made."""
    cost = NOTHING
    for page in pages:
        cost = added(cost, page.told)
        if page.open is not None and outcomes[page.number] != _NEVER_HELD:
            cost = added(cost, page.open.bill)
    stored = used(found.settled)
    detail = _text(stored) if stored == cost else f"{_text(stored)}, the calls cost {_text(cost)}"
    return Check("settled by hand, the store has what the calls cost", stored == cost, detail)


def _ended(pages: list[Page], calls: int) -> Check:
    wrong = []
    for page in pages:
        if page.error is not None:
            wrong.append(f"process {page.number} {page.error}")
        elif not page.killed and not (page.ended and page.calls == calls):
            wrong.append(f"process {page.number} ended after {page.calls:,} of {calls:,} calls")
    made = sum(page.calls for page in pages)
    detail = "; ".join(wrong) or f"{made:,} calls of {len(pages)} processes"
    return Check("each process made its calls, but for the killed one", not wrong, detail)
