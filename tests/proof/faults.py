"""Planted faults: each a few words changed in `_pool.py`, as a careless hand might change them.

The scheduler must find every one of them (`test_planted_faults.py`), or its silence about the real code would mean
nothing.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import types
from dataclasses import dataclass
from typing import Any

from scheduler import functions_of
from token_budget import _family, _pool, _waiting


@dataclass(frozen=True)
class Fault:
    """In the function `where`, each text, which stands there once, becomes the other; `found_by` are two operations."""

    name: str
    where: str
    found_by: tuple[str, str]
    edits: tuple[tuple[str, str], ...]
    world: str = "World"  # of `scenarios.py`


def reopened(owner: str, then: str = "", lock: str = "_lock") -> str:
    """Return code that lets the lock go and takes it again."""
    return f"{owner}.{lock}.release(); {owner}.{lock}.acquire(); {then}"


TAKE = "for _ in self._spending:\n"
FITS = "if tokens_after <= self._token_bound and nanos_after <= self._nano_bound:\n"
SUM = "tokens_after = self._tokens_claimed + tokens\n"

FAULTS = [
    Fault(
        "record checks, lets the lock go, then adds",
        "BudgetPool.record",
        ("record_much", "reserve"),
        ((FITS, FITS + reopened("self") + "\n"),),
    ),
    Fault(
        "record works with a total that it read before it took the lock",
        "BudgetPool.record",
        ("record", "record"),
        ((TAKE, "before = self._tokens_claimed + tokens\n" + TAKE), (SUM, "tokens_after = before\n")),
    ),
    Fault(
        "record adds one axis, lets the lock go, then adds the other",
        "BudgetPool.record",
        ("record", "snapshot"),
        (("self._tokens_claimed = tokens_after\n", "self._tokens_claimed = tokens_after\n" + reopened("self") + "\n"),),
    ),
    Fault(
        "a forced spend is added to a total that was read before the lock was taken",
        "BudgetPool._add",
        ("force", "commit"),
        ((TAKE, "before = self._tokens_claimed + tokens\n" + TAKE), (SUM, "tokens_after = before\n")),
    ),
    Fault(
        "reserve checks, lets the lock go, then takes",
        "BudgetPool.reserve",
        ("reserve", "reserve_after_release"),
        ((FITS, FITS + reopened("self") + "\n"),),
    ),
    Fault(
        "reserve counts what is in flight after it let the lock go",
        "BudgetPool.reserve",
        ("reserve", "snapshot"),
        (("self._in_flight = in_flight\n", reopened("self", "self._in_flight = in_flight\n")),),
    ),
    Fault(
        "snapshot reads its two axes at two moments",
        "BudgetPool.snapshot",
        ("snapshot", "record"),
        (("nanos_claimed = self._nanos_claimed\n", reopened("self", "nanos_claimed = self._nanos_claimed\n")),),
    ),
    Fault(
        "snapshot takes no lock",
        "BudgetPool.snapshot",
        ("snapshot", "commit"),
        (("in self._locked:\n", "in [None]:\n"), ("self._lock.release()\n", "pass\n")),
    ),
    Fault(
        "reset forgets what is held",
        "BudgetPool.reset",
        ("reset", "release"),
        (("self._tokens_claimed = self._tokens_reserved\n", "self._tokens_claimed = 0\n"),),
    ),
    Fault(
        "reset works with what was held before it took the lock",
        "BudgetPool.reset",
        ("reset", "commit"),
        (
            (TAKE, "held = self._tokens_reserved\n" + TAKE),
            ("self._tokens_claimed = self._tokens_reserved\n", "self._tokens_claimed = held\n"),
        ),
    ),
    Fault(
        "commit looks whether it is settled before it takes the lock",
        "Reservation.commit",
        ("commit", "commit"),
        (
            ("settled = self._state is not pool._open or token_bound < 0\n", "pass\n"),
            ("for _ in pool._spending:\n", "settled = self._state is not pool._open\nfor _ in pool._spending:\n"),
        ),
    ),
    Fault(
        "commit marks itself committed after it let the lock go",
        "Reservation.commit",
        ("commit", "release"),
        (("self._state = COMMITTED\n", reopened("pool", "self._state = COMMITTED\n")),),
    ),
    Fault(
        "commit gives back what it held, lets the lock go, then adds what it cost",
        "Reservation.commit",
        ("commit", "record_much"),
        (
            (
                "pool._tokens_claimed = tokens_after\n",
                "pool._tokens_claimed -= held_tokens; " + reopened("pool", "pool._tokens_claimed += tokens\n"),
            ),
        ),
    ),
    Fault(
        "release looks whether it is settled before it takes the lock",
        "Reservation.release",
        ("release", "commit"),
        (
            ("if self._state is pool._open and not barred:\n", "if still_open:\n"),
            ("for _ in pool._locked:\n", "still_open = self._state is pool._open\nfor _ in pool._locked:\n"),
        ),
    ),
    Fault(
        "release marks itself released, lets the lock go, then gives back",
        "Reservation.release",
        ("release", "snapshot"),
        (("tokens_claimed = pool._tokens_claimed - held_tokens\n",
          "self._state = RELEASED; " + reopened("pool", "tokens_claimed = pool._tokens_claimed - held_tokens\n")),
         ("pool._in_flight = in_flight\n", reopened("pool", "pool._in_flight = in_flight\n"))),
    ),
    Fault(
        "what was dropped is given back without the lock",
        "Family._quietly",
        ("record", "drop_then_record"),
        (
            (
                "for _ in self.locked:\n",
                "for _ in (None,):\n",
            ),
            (
                "lock.release()\n",
                "pass\n",
            ),
        ),
    ),
    Fault(
        "a dropped reservation is forgotten",
        "Reservation.__del__",
        ("drop", "snapshot"),
        (("pool._family.dropped.append(self)\n", "pass\n"),),
    ),
    Fault(
        "a record on a child looks, lets the lock go, then adds",
        "Family.record",
        ("record_much", "record_much"),
        (
            (
                "first._tokens_claimed = first_tokens\n",
                reopened("self", "first._tokens_claimed = first_tokens\n", "lock"),
            ),
        ),
        "Tree",
    ),
    Fault(
        "a release gives back to the child and not to those above",
        "Family._release",
        ("release", "snapshot"),
        (("self._publish(chain, -tokens", "self._publish(chain[:1], -tokens"),),
        "Tree",
    ),
    Fault(
        "a child's spend is added to one scope after the other, with the lock let go in between",
        "Family._apply",
        ("commit", "tree"),
        (("account._mark = mark\n", reopened("self", "account._mark = mark\n", "lock")),),
        "Tree",
    ),
    Fault(
        "nobody looks who waits when room comes",
        "Family._publish",
        ("wait", "release"),
        (("self._touch(chain)\n", "pass\n"),),
        "Full",
    ),
    Fault(
        "one who was given room is not woken",
        "Family._apply",
        ("wait", "release"),
        (("self.granted.append(waiter)\n", "pass\n"),),
        "Full",
    ),
    Fault(
        "who has timed out stays in the line",
        "Family._apply",
        ("wait_a_while", "release"),
        (("self._forget(waiter)\n", "pass\n"),),
        "Full",
    ),
    Fault(
        "a drop wakes nobody",
        "Reservation.__del__",
        ("wait", "drop"),
        (("if pool._family.waiters:\n", "if False:\n"),),
        "Full",
    ),
    Fault(
        "a reset of a pool that began to be waited for meanwhile serves nobody",
        "BudgetPool.reset",
        ("wait", "reset"),
        (("barred = self._token_bound < 0\n", "barred = False\n"),),
        "Full",
    ),
]  # fmt: skip


def edited(where: str, edits: tuple[tuple[str, str], ...]) -> types.ModuleType:
    """Return `_pool.py` as a module of its own, with the edits made in the function `where` (``Class.method``).

    Where that is a function of `_family.py`, the module works with an edited copy of it.
    """
    owner_name, name = where.split(".")
    edited_module = _pool if inspect.getsource(_pool).count(f"\nclass {owner_name}") else _family
    source = inspect.getsource(edited_module)
    tree = ast.parse(source)
    (owner,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner_name]
    (function,) = [node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == name]
    lines = source.splitlines(keepends=True)
    assert function.end_lineno is not None
    text = "".join(lines[function.lineno - 1 : function.end_lineno])
    for old, new in edits:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {where}"
        start = text.index(old)
        indent = " " * (start - text.rindex("\n", 0, start) - 1)
        first, *rest = new.splitlines(keepends=True)
        deeper = indent + " " * 4 if first.rstrip().endswith(":") and old == first else indent
        text = text[:start] + first + textwrap.indent("".join(rest), deeper) + text[start + len(old) :]
    whole = "".join(lines[: function.lineno - 1]) + text + "".join(lines[function.end_lineno :])
    if edited_module is _pool:
        return _module("planted", whole)
    family = _module("planted_family", whole)
    pool = _module("planted", inspect.getsource(_pool).replace("from token_budget._family", "from planted_family"))
    pool.family = family  # type: ignore[attr-defined]
    return pool


def _module(name: str, source: str) -> types.ModuleType:
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, f"{name}.py", "exec"), vars(module))
    return module


def family_of(module: types.ModuleType) -> Any:
    """Return the module of families that a pool's module, edited or not, works with."""
    return sys.modules[module.Family.__module__]


def watched(module: types.ModuleType) -> list[types.CodeType]:
    """Return the code whose steps count: of a pool's module, and of what it works with."""
    return functions_of(module, family_of(module), _waiting)


def planted(fault: Fault) -> Any:
    """Return the pool's module with the fault in it."""
    return edited(fault.where, fault.edits)
