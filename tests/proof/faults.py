"""Planted faults: each changes a few words of the package, as a careless edit might.

The scheduler must find all of `FAULTS` (`test_planted_faults.py`). Interrupts and handlers must find all of
`INTERRUPTED` (`test_interrupts.py`). Otherwise a pass of those proofs on the real code would mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import planting
from planting import Edit, Edits


@dataclass(frozen=True)
class Fault:
    """Edits of the function `where`, in which each old text occurs once. Two operations, `found_by`, find the fault."""

    name: str
    where: str
    found_by: tuple[str, str]
    edits: tuple[Edit, ...]
    world: str = "World"  # a class of `scenarios.py`
    beside: tuple[tuple[str, tuple[Edit, ...]], ...] = ()  # edits of other functions

    def all_edits(self) -> Edits:
        return {self.where: self.edits, **dict(self.beside)}


def reopened(owner: str, then: str = "") -> str:
    """Return code that releases the lock and takes it again."""
    return f"{owner}.lock.release(); {owner}.lock.acquire(); {then}"


TAKE = "for _ in family.spending:\n"
FITS = "if tokens_after <= account.token_bound and nanos_after <= account.nano_bound:\n"
SUM = "tokens_after = account.tokens_claimed + tokens\n"
OPEN = "self._state is family.opened\n"
FEW = "first, second, third = few\n"
RECORD, RESERVE = "_pool.BudgetPool.record", "_pool.BudgetPool.reserve"
COMMIT, RELEASE = "_reservation.Reservation.commit", "_reservation.Reservation.release"
SNAPSHOT = "_governed.Governed.snapshot"

FAULTS = [
    Fault(
        "record checks, lets the lock go, then adds",
        RECORD,
        ("record_much", "reserve"),
        ((FITS, FITS + reopened("family") + "\n"),),
    ),
    Fault(
        "record works with a total that it read before it took the lock",
        RECORD,
        ("record", "record"),
        ((TAKE, "before = account.tokens_claimed + tokens\n" + TAKE), (SUM, "tokens_after = before\n")),
    ),
    Fault(
        "record adds one axis, lets the lock go, then adds the other",
        RECORD,
        ("record", "snapshot"),
        (
            (
                "account.tokens_claimed = tokens_after\n",
                "account.tokens_claimed = tokens_after\n" + reopened("family") + "\n",
            ),
        ),
    ),
    Fault(
        "an operation of many steps decides, lets the lock go, then publishes",
        "_family.Family.change",
        ("force", "commit"),
        (("self._publish(made)\n", reopened("self", "self._publish(made)\n")),),
        # so that the other thread enters by a straight run
        beside=(("_family.Family.run", (("self.pending = True\n", "pass\n"),)),),
    ),
    Fault(
        "reserve checks, lets the lock go, then takes",
        RESERVE,
        ("reserve", "reserve_after_release"),
        ((FITS, FITS + reopened("family") + "\n"),),
    ),
    Fault(
        "reserve counts what is in flight after it let the lock go",
        RESERVE,
        ("reserve", "snapshot"),
        (("account.in_flight = in_flight\n", reopened("family", "account.in_flight = in_flight\n")),),
    ),
    Fault(
        "snapshot reads its two axes at two moments",
        SNAPSHOT,
        ("snapshot", "record"),
        (
            (
                "nanos_claimed = account.nanos_claimed\n",
                reopened("family", "nanos_claimed = account.nanos_claimed\n"),
            ),
        ),
    ),
    Fault(
        "snapshot takes no lock",
        SNAPSHOT,
        ("snapshot", "commit"),
        (("in family.locked:\n", "in [None]:\n"), ("family.lock.release()\n", "pass\n")),
    ),
    Fault(
        "reset forgets what is held",
        "_periods.begin_anew",
        ("reset", "release"),
        (("(tokens, tokens, nanos,", "(0, tokens, nanos,"),),
    ),
    Fault(
        "reset notes what it does before it takes the lock",
        "_settings.reset",
        ("reset", "commit"),
        (
            (
                "spend(scope, _reset)\n",
                "from token_budget._change import Change\n"
                "early = Change()\n"
                "_reset(early, scope._family, scope._chain)\n"
                "spend(scope, lambda change, *_: change.stores.extend(early.stores))\n",
            ),
        ),
    ),
    Fault(
        "commit looks whether it is settled before it takes the lock",
        COMMIT,
        ("commit", "commit"),
        ((OPEN, "still_open\n"), (TAKE, "still_open = " + OPEN + TAKE)),
    ),
    Fault(
        "commit marks itself committed after it let the lock go",
        COMMIT,
        ("commit", "release"),
        (("self._state = COMMITTED\n", reopened("family", "self._state = COMMITTED\n")),),
    ),
    Fault(
        "commit gives back what it held, lets the lock go, then adds what it cost",
        COMMIT,
        ("commit", "record_much"),
        (
            (
                "account.tokens_claimed = tokens_after\n",
                "account.tokens_claimed -= held_tokens; " + reopened("family", "account.tokens_claimed += tokens\n"),
            ),
        ),
    ),
    Fault(
        "release looks whether it is settled before it takes the lock",
        RELEASE,
        ("release", "commit"),
        (
            (OPEN, "still_open\n"),
            ("for _ in family.locked:\n", "still_open = " + OPEN + "for _ in family.locked:\n"),
        ),
    ),
    Fault(
        "release marks itself released, lets the lock go, then gives back",
        RELEASE,
        ("release", "snapshot"),
        (
            (
                "tokens_reserved = account.tokens_reserved - self._tokens\n",
                "self._state = RELEASED; "
                + reopened("family", "tokens_reserved = account.tokens_reserved - self._tokens\n"),
            ),
            ("account.in_flight = in_flight\n", reopened("family", "account.in_flight = in_flight\n")),
        ),
    ),
    Fault(
        "what was dropped is given back without the lock",
        "_ledger.drop",
        ("record", "drop_then_record"),
        (
            (
                "scope._family.run(takes, OWE, decided, scope, (), _release, (claim, DROPPED))",
                "decided(scope, (), _release, (claim, DROPPED))",
            ),
        ),
    ),
    Fault(
        "a dropped reservation is forgotten",
        "_reservation.Reservation.__del__",
        ("drop", "snapshot"),
        (("family.owed.append(self)\n", "pass\n"),),
    ),
    Fault(
        "a record on a child looks, lets the lock go, then adds",
        "_straight.record",
        ("record_much", "record_much"),
        (("first.tokens_claimed = first_tokens\n", reopened("family", "first.tokens_claimed = first_tokens\n")),),
        "Tree",
    ),
    Fault(
        "a child's spend is added to one scope after the other, with the lock let go in between",
        "_straight.settle",
        ("commit", "tree"),
        (("second.tokens_claimed += more_tokens\n", reopened("family", "second.tokens_claimed += more_tokens\n")),),
        "Tree",
    ),
    Fault(
        "a child's reserve looks at its bounds before it takes the lock",
        "_straight.reserve",
        ("reserve", "record_much"),
        (
            (FEW, FEW + "fits = first.tokens_claimed + tokens <= first.token_bound or False\n"),
            ("first.tokens_claimed + tokens <= first.token_bound\n", "fits\n"),
            ("and first.nanos_claimed + nanos <= first.nano_bound\n", "and True\n"),
        ),
        "Tree",
    ),
    Fault(
        "a release over subscribers gives back to the child and not to those above",
        "_ledger._release",
        ("release", "snapshot"),
        (("change.hold(chain, -claim", "change.hold(chain[:1], -claim"),),
        "Heard",
    ),
    Fault(
        "the fourth of five scopes is changed before the lock is taken",
        "_straight._reserve_five",
        ("reserve", "commit"),
        (
            ("d, e = more\n", "d, e = more\nbefore = d.tokens_claimed + tokens\n"),
            ("d.tokens_claimed += tokens\n", "d.tokens_claimed = before\n"),
        ),
        "Deep",
    ),
    Fault(
        "the lowest of five scopes does not count what is in flight",
        "_straight._settle_five",
        ("release", "tree"),
        (("e.in_flight -= 1\n", "pass\n"),),
        "Deep",
    ),
    Fault(
        "nobody looks who waits when room comes",
        "_change.Change.numbers",
        ("wait", "release"),
        (("self.stirred.append(account)\n", "pass\n"),),
        "Full",
    ),
    Fault(
        "one who was given room is not woken",
        "_line.end",
        ("wait", "release"),
        (("change.debts.append(waiter)\n", "pass\n"),),
        "Full",
    ),
    Fault(
        "who has timed out stays in the line",
        "_line.withdraw",
        ("wait_a_while", "snapshot"),
        (("end(change, waiter, WITHDRAWN)\n", 'change.set(waiter, "state", WITHDRAWN)\n'),),
        "Full",
    ),
    Fault(
        "a drop wakes nobody",
        "_reservation.Reservation.__del__",
        ("wait", "drop"),
        (("if family.root.line is not None:\n", "if False:\n"),),
        "Full",
    ),
    Fault(
        "the bounds are not lowered when a waiter joins",
        "_line.join",
        ("wait", "release"),
        (("_need(change, account, line, demand)\n", 'change.set(account, "line", line)\n'),),
        "Full",
    ),
    Fault(
        "what a waiter asks of a scope where it does not wait is not folded into its bounds",
        "_account.Account.bounds",
        ("wait_for_much", "use_up_above"),
        (
            (
                "token_bound = token_limit - demand[0]\n",
                "demand = demand if demand == EVERYTHING else NOTHING\ntoken_bound = token_limit - demand[0]\n",
            ),
        ),
        "Tree",
    ),
    Fault(
        "a newcomer gets past one who waits",
        "_line.blocker",
        ("wait_a_while", "pass_by"),
        (("if head is not None and (ticket is None or head.ticket < ticket):\n", "if False:\n"),),
        "Full",
    ),
    Fault(
        "a threshold is not folded into the bounds",
        "_account.Account.bounds",
        ("record_much", "record_much"),
        (("for threshold in watch.armed:\n", "for threshold in ():\n"),),
        "Alarmed",
    ),
    Fault(
        "a threshold stays armed after it was told",
        "_change.Change.thresholds",
        ("record_much", "commit_more"),
        (
            (
                "self.gate(account, watch=watch.with_armed(tuple(one for one in watch.armed if one not in reached)))\n",
                "pass\n",
            ),
        ),
        "Alarmed",
    ),
    Fault(
        "a telling is told by two",
        "_telling.Telling._pay",
        ("reserve", "commit"),
        (("next(self)\n", "self.__reduce__()[1][0](self.event)\n"),),
        "Heard",
        beside=(
            (
                "_family.Family._pay",
                (
                    (
                        "if whose is not None and not (calls_back and (whose is mine.me or whose() is None)):\n",
                        "if False:\n",
                    ),
                ),
            ),
        ),
    ),
    Fault(
        "a key's handle is made by two",
        "_keyed.KeyedPools._remembered",
        ("look_up", "look_up"),
        (
            ("if account.handle is seen and model._times is times and account.window is window:\n", "if True:\n"),
        ),
        "Keys",
    ),
    Fault(
        "a key is deleted while a call is in flight",
        "_group.Group._close",
        ("delete", "reserve_held"),
        (("if account.in_flight:\n", "if False:\n"),),
        "HeldKey",
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Interrupted:
    """A fault that shows only when one thread is interrupted, in an operation of a world of `worlds.py`.

    ``does`` is what a signal handler does there. With "", an interrupt is raised instead.
    """

    name: str
    case: tuple[str, str]
    does: str
    edits: Edits

    def all_edits(self) -> Edits:
        return self.edits


INTERRUPTED = [
    Interrupted(
        "a debt is struck before it is paid",
        ("below", "record"),
        "",
        {
            "_family.Family._pay": (
                ("debt._pay(self.locked)\n", "self.owed.remove(debt); debt._pay(self.locked)\n"),
            )
        },
    ),
    Interrupted(
        "a callback that was called is called again by whoever comes next",
        ("below", "record"),
        "",
        {"_telling.Telling._pay": (("next(self)\n", "self.__reduce__()[1][0](self.event)\n"),)},
    ),
    Interrupted(
        "a release marks itself released by a store of its own, outside of the one call",
        ("below", "release"),
        "",
        {"_ledger._release": (('change.set(claim, "_state", state)\n', "claim._state = state\n"),)},
    ),
    Interrupted(
        "what is in flight is counted by a store of its own, outside of the one call",
        ("below", "commit"),
        "",
        {
            "_change.Change.numbers": (
                ("self.after[account] = numbers\n", "self.after[account] = numbers\naccount.in_flight = numbers[4]\n"),
            )
        },
    ),
    Interrupted(
        "a change is published though a handler of its thread has changed the family meanwhile",
        ("below", "record"),
        "record",
        {"_family.Family.change": (
                (
                    "if self.version == version:\n                self._publish(made)\n",
                    "if True:\n    self._publish(made)\n",
                ),
            )},
    ),
    Interrupted(
        "whoever is inside does not close the straight runs",
        ("deep", "record_forced"),
        "record",
        {"_family.Family.run": (("self.pending = True\n", "pass\n"),)},
    ),
    Interrupted(
        "nobody is known to be inside",
        ("below", "record"),
        "record",
        {"_family.Family.run": (("self.owner = me\n", "pass\n"),)},
    ),
    Interrupted(
        "the bell of a waiter is rung by the one who served it, and is no debt",
        ("lined", "release"),
        "",
        {
            "_line.end": (("change.debts.append(waiter)\n", "pass\n"),),
            "_line.serve": (
                (
                    "return family.change(_serve, (family, account))",
                    "head = account.line.head(account)\n"
                    "more = family.change(_serve, (family, account))\n"
                    "if head is not None and head.state is not WAITING: head.bell.ring()\n"
                    "return more",
                ),
            ),
        },
    ),
]  # fmt: skip

# A store in the one call may free the value that it replaces, and with it an object of the caller with a finaliser.
# `keep` holds that value until the call is over. Without `keep`, the finaliser sees half a change.
NOT_KEPT: Edits = {"_settings.give_window": (("change.keep(account.window)\n", "pass\n"),)}


def planted(fault: Any) -> Any:
    """Return a copy of the package with the fault in it."""
    return planting.planted(fault.all_edits())
