"""The budget as `ledger.Ledger` has it, a ledger for each scope, and whether a history fits some order of its calls.

A history is what clients have called and heard. It is linearizable if there is one order of the calls, in which none
comes before one that had ended when it began, such that the model gives the same answers and the same final numbers. A
call that had no answer, since its client died or the answer was lost, may be in that order or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from ledger import Ledger

ZERO = Fraction(0)
FOREVER = 10**9
Op = tuple[Any, ...]


def chain_of(text: str) -> tuple[str, ...]:
    """Return the scopes of "a", "a+b" (a join), "u:ann" (a key) or "" (the root alone), the root last."""
    return (*text.split("+"), "") if text else ("",)


@dataclass
class Claim:
    """A claim that was granted."""

    chain: tuple[str, ...]
    tokens: int
    process: str  # its holder; "" after it was handed over
    state: str = "open"  # open, charged, or how it ended: commit, release, settle
    counted: int = 0
    eras: tuple[int, ...] = ()  # of its scopes, when it was charged


@dataclass
class State:
    """All that a budget is."""

    scopes: dict[str, Ledger] = field(default_factory=dict)
    eras: dict[str, int] = field(default_factory=dict)
    windows: frozenset[str] = frozenset()  # the scopes that begin anew when the clock moves
    groups: dict[str, int] = field(default_factory=dict)  # the cap of each key of a group
    claims: dict[str, Claim] = field(default_factory=dict)
    tickets: tuple[tuple[str, str, str], ...] = ()  # claim, scope, process: the oldest first
    cancelled: frozenset[str] = frozenset()
    closed: frozenset[str] = frozenset()
    gave: dict[tuple[str, str], int] = field(default_factory=dict)  # by scope and process
    records: dict[int, tuple[tuple[str, int, int], ...]] = field(default_factory=dict)  # scope, era, tokens: by call

    def copy(self) -> State:
        return State(
            {
                path: Ledger(one.token_cap, one.usd_cap, list(one.spent), dict(one.held))
                for path, one in self.scopes.items()
            },
            dict(self.eras),
            self.windows,
            self.groups,
            {name: Claim(**vars(claim)) for name, claim in self.claims.items()},
            self.tickets,
            self.cancelled,
            self.closed,
            dict(self.gave),
            dict(self.records),
        )

    # ------------------------------------------------------------------ what there is

    def numbers(self, path: str) -> tuple[Any, ...]:
        """Return the cap, what is claimed, what is held, and how many are in flight."""
        one = self.scopes[path]
        held = one.reserved()[0]
        return one.token_cap, one.used()[0] + held, held, len(one.held)

    def waiting(self, path: str) -> int:
        return sum(place == path for _, place, _ in self.tickets)

    def charged(self) -> list[int]:
        return sorted(claim.tokens for claim in self.claims.values() if claim.state == "charged")

    def make(self, path: str, cap: int | None) -> None:
        self.scopes[path] = Ledger(cap, None)
        self.eras[path] = 0

    def meet(self, chain: Sequence[str]) -> None:
        """Make the scopes of keys that are new."""
        for path in chain:
            if path not in self.scopes:
                self.make(path, self.groups[path.partition(":")[0]])

    def blocker(self, chain: Sequence[str], tokens: int, name: str | None) -> int | None:
        mine = next((at for at, ticket in enumerate(self.tickets) if ticket[0] == name), FOREVER)
        for index, path in enumerate(chain):
            older = any(place == path for _, place, _ in self.tickets[:mine])
            if self.scopes[path].over((tokens, ZERO)) is not None or older:
                return index
        return None

    # ------------------------------------------------------------------ what is done to it

    def spend(self, path: str, tokens: int) -> None:
        self.scopes[path].spent.append((tokens, ZERO))

    def unspend(self, path: str, tokens: int) -> None:
        self.scopes[path].spent.remove((tokens, ZERO))

    def end(self, name: str, tokens: int, how: str) -> str:
        """End a claim that is open or was charged. Return which it was."""
        claim = self.claims[name]
        was, claim.state, claim.counted = claim.state, how, tokens
        for index, path in enumerate(claim.chain):
            if was == "open":
                del self.scopes[path].held[hash(name)]
                self.spend(path, tokens)
            elif self.eras[path] == claim.eras[index]:
                self.unspend(path, claim.tokens)
                self.spend(path, tokens)
            else:  # what was charged is gone with its period
                self.spend(path, max(0, tokens - claim.tokens))
        return was

    def charge(self, process: str) -> None:
        """Charge all that a dead process holds; it waits no more."""
        for name, claim in self.claims.items():
            if claim.state == "open" and claim.process == process:
                self.end(name, claim.tokens, "charged")
                claim.eras = tuple(self.eras[path] for path in claim.chain)
        self.tickets = tuple(ticket for ticket in self.tickets if ticket[2] != process)

    def undo(self, op: Op, call: int) -> None:
        """Take back what a call did that had no answer."""
        if op[0] == "record":
            for path, era, tokens in self.records.pop(call):
                if self.eras[path] == era:
                    self.unspend(path, tokens)
        else:
            self.drop(op[1])

    def drop(self, name: str) -> bool:
        self.tickets = tuple(ticket for ticket in self.tickets if ticket[0] != name)
        if name in self.claims and self.claims[name].state in {"open", "charged"}:
            self.end(name, 0, "release")
            return True
        return False

    def begin_anew(self, path: str) -> None:
        self.scopes[path].begin_anew()
        self.eras[path] += 1

    def turn_clock(self) -> None:
        for path in self.windows:
            self.begin_anew(path)


# ---------------------------------------------------------------------- calls

# Each call changes the state and returns what may be answered: a set of (kind, ...), and None where rows say nothing.
# The kinds are those of `_store.py`; the other parts are `at` of a refusal, what was counted of a repeat.


def reserve(state: State, call: Call, name: str, chain: str, tokens: int, *, wait: bool = False) -> set[Any]:
    path = chain_of(chain)
    state.meet(path)
    known = state.claims.get(name)
    if known is not None and known.state == "open":
        return {("granted",)}
    if state.closed & set(path):
        return {("closed",)}
    at = state.blocker(path, tokens, name)
    if name in state.cancelled:
        return {("refused", index) for index in range(len(path))}
    if at is None:
        state.tickets = tuple(ticket for ticket in state.tickets if ticket[0] != name)
        for one in path:
            state.scopes[one].held[hash(name)] = tokens, ZERO
        state.claims[name] = Claim(path, tokens, call.process)
        return {("granted",)}
    if wait:
        ticket = (name, path[at], call.process)
        if any(one[0] == name for one in state.tickets):
            state.tickets = tuple(ticket if one[0] == name else one for one in state.tickets)
        else:
            state.tickets += (ticket,)
    return {("refused", at)}


def record(state: State, call: Call, chain: str, tokens: int) -> set[Any]:
    path = chain_of(chain)
    state.meet(path)
    at = state.blocker(path, tokens, None)
    if at is not None:
        state.records[call.number] = ()
        return {("refused", at)}
    for one in path:
        state.spend(one, tokens)
    state.records[call.number] = tuple((one, state.eras[one], tokens) for one in path)
    return {("done",)}


def commit(state: State, call: Call, name: str, tokens: int) -> set[Any]:
    claim = state.claims[name]
    if claim.state in {"open", "charged"}:
        return {("done",) if state.end(name, tokens, "commit") == "open" else ("late",)}
    return {("settled",) if claim.state == "settle" else ("repeat", claim.counted)}


def release(state: State, call: Call, name: str) -> set[Any]:
    claim = state.claims[name]
    if claim.state in {"open", "charged"}:
        return {("done",) if state.end(name, 0, "release") == "open" else ("late",)}
    return {("settled",)} if claim.state == "settle" else {("done",), ("late",), ("unknown",)}


def settle(state: State, call: Call, name: str, tokens: int) -> set[Any]:
    claim = state.claims[name]
    if claim.state in {"open", "charged"}:
        return {("done",) if state.end(name, tokens, "settle") == "open" else ("late",)}
    # What its holder has settled and knows to be settled, the store may have forgotten.
    return {("repeat", claim.counted)} | (set() if claim.state == "settle" else {("unknown",)})


def cancel(state: State, call: Call, name: str) -> set[Any]:
    before = name in state.cancelled
    state.cancelled |= {name}
    held = state.drop(name)
    return {("cancelled", held), ("cancelled", True)} if before else {("cancelled", held)}


def leave(state: State, call: Call, name: str) -> set[Any]:
    claim = state.claims.get(name)
    if claim is not None and claim.state == "open":
        return {("granted",)}
    state.drop(name)
    return {("left",)}


def hand_over(state: State, call: Call, name: str) -> set[Any]:
    claim = state.claims[name]
    before = not claim.process  # by a call that had no answer
    if claim.state == "open":
        claim.process = ""
        return {("handed",)}
    return {("not open",), ("handed",)} if before else {("not open",)}


def reset(state: State, call: Call, path: str) -> set[Any]:
    state.begin_anew(path)
    return {("ok",)}


def close(state: State, call: Call, path: str) -> set[Any]:
    state.closed |= {path}
    return {("ok",)}


def set_caps(state: State, call: Call, path: str, cap: int) -> set[Any]:
    one = state.scopes[path]
    one.set_caps(cap, None)
    state.gave[path, call.process] = cap
    return {("ok",)}


def open_scope(state: State, call: Call, path: str, cap: int) -> set[Any]:
    if path not in state.scopes:
        state.make(path, cap)
        state.gave[path, call.process] = cap
        return {("opened", True, cap)}
    others = {value for (place, process), value in state.gave.items() if place == path and process != call.process}
    if state.scopes[path].token_cap != cap and others - {cap}:
        return {("mismatch",)}
    state.scopes[path].set_caps(cap, None)
    state.gave[path, call.process] = cap
    return {("opened", False, cap)}


def expired(state: State, call: Call) -> set[Any]:
    return {("expired", *state.charged())}


CALLS: dict[str, Callable[..., set[Any]]] = {
    "reserve": reserve,
    "wait": lambda state, call, name, chain, tokens: reserve(state, call, name, chain, tokens, wait=True),
    "record": record,
    "commit": commit,
    "release": release,
    "settle": settle,
    "cancel": cancel,
    "leave": leave,
    "hand_over": hand_over,
    "reset": reset,
    "set_caps": set_caps,
    "close": close,
    "open": open_scope,
    "expired": expired,
}
TAKEN_BACK = frozenset({"reserve", "wait", "record"})  # what is undone if it had no answer, and its client lives


@dataclass
class Call:
    """One call of a client: an attempt, where it is repeated after a lost answer."""

    number: int
    process: str
    op: Op
    start: int = FOREVER
    end: int = FOREVER
    said: tuple[Any, ...] | None = None  # None: no answer
    rows: tuple[Any, ...] = ()  # the numbers of the chain, where they were answered
    undone: bool = False  # no answer, and its client has taken it back since

    def __str__(self) -> str:
        return f"{self.start}-{self.end} {self.process} {self.op} -> {self.said} {self.rows or ''}"


@dataclass
class Event:
    """What has its place in the order: a call, or what follows from one, or from a death."""

    start: int
    end: int
    must: bool
    apply: Callable[[State], bool]
    after: int = -1  # the event that it undoes: it must be if and only if that one is


def _of_call(call: Call) -> Callable[[State], bool]:
    kind, *arguments = call.op

    def apply(state: State) -> bool:
        expected = CALLS[kind](state, call, *arguments)
        if call.said is None:
            return True
        if call.said not in expected:
            return False
        if not call.rows or kind not in {"reserve", "wait", "record"}:
            return True
        chain = chain_of(arguments[0] if kind == "record" else arguments[1])
        return call.rows == tuple(map(state.numbers, chain))

    return apply


def events_of(calls: Sequence[Call], others: Sequence[Event]) -> list[Event]:
    """Return the events of a history."""
    events = list(others)
    for call in calls:
        events.append(Event(call.start, call.end, call.said is not None, _of_call(call)))
        if call.undone:

            def undo(state: State, call: Call = call) -> bool:
                state.undo(call.op, call.number)
                return True

            events.append(Event(call.start, call.end, False, undo, after=len(events) - 1))
    return events


def fits(initial: State, events: Sequence[Event], final: Callable[[State], bool]) -> bool:
    """Return whether some order of the events gives all answers and the final state."""

    def go(state: State, done: frozenset[int], latest: int) -> bool:
        if all(index in done or not _must(index, done) for index in range(len(events))) and final(state):
            return True
        first = min(
            (event.end for index, event in enumerate(events) if index not in done and _must(index, done)),
            default=FOREVER,
        )
        for index, event in enumerate(events):
            if index in done or event.start > first or event.end < latest:
                continue
            if event.after >= 0 and event.after not in done:
                continue
            after = state.copy()
            if event.apply(after) and go(after, done | {index}, max(latest, event.start)):
                return True
        return False

    def _must(index: int, done: frozenset[int]) -> bool:
        event = events[index]
        return event.must or (event.after >= 0 and event.after in done)

    return go(initial, frozenset(), -1)
