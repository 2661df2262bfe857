"""The audit: what each process was told, from its log, against what the store says of its scope.

A process that was killed has at most one step without an answer, so that its scope has one of two sums:

    reserve     nothing, or all of it charged
    granted     all of it charged
    commit      the cost, or all of it charged
    release     nothing, or all of it charged
    record      nothing, or the amount

A process that ended by itself has none, so its scope has exactly what it was told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

_ANSWERS = frozenset("xuv")  # after which nothing is held, and nothing was added


@dataclass
class Life:
    """What the log of one process says."""

    key: str = ""
    told: int = 0  # nanodollars that it was told are counted
    settled: int = 0  # commits, releases and records that were answered
    unavailable: int = 0
    step: str = ""  # the last one, while it has no answer; "g" while a reservation is open
    asked: int = 0  # nanodollars of the open reservation, or of the record
    cost: int = 0  # of the commit that was asked for
    ended: str = ""  # "z", "!", or the text of an error; "" if it was killed
    longest: int = 0  # nanoseconds from a record to its answer
    grants: list[int] = field(default_factory=list)  # when those were asked that were granted or recorded
    counted: list[tuple[int, int]] = field(default_factory=list)  # when it was told that something counts, and `told`
    began: int = 0  # the step that it is in
    child: int = 0  # the process, if it was forked

    @property
    def sums(self) -> dict[int, int]:
        """What the scope may have, and how much of that was charged because the process died."""
        full = self.told + self.asked
        sums = {
            "": {self.told: 0},
            "r": {self.told: 0, full: self.asked},
            "g": {full: self.asked},
            "c": {self.told + self.cost: 0, full: self.asked},
            "l": {self.told: 0, full: self.asked},
            "p": {self.told: 0, full: 0},
        }
        return sums[self.step]

    def read(self, at: int, what: str, words: list[str]) -> None:
        """Take one line."""
        if what == "b":
            self.key, self.ended = words[0], ""
        elif what in "rp":
            self.step, self.asked, self.began = what, int(words[0]), at
        elif what == "c":
            self.step, self.cost = what, int(words[0])
        elif what == "g":
            self.step = what
            self.grants.append(self.began)
        elif what == "l":
            self.step = what
        elif what == "f":
            self.child = int(words[0])
        elif what in "z!e":
            self.ended = " ".join((what, *words))
        else:
            self._answered(at, what)

    def _answered(self, at: int, what: str) -> None:
        assert what in _ANSWERS or what in "dq", what
        if self.step == "p":
            self.longest = max(self.longest, at - self.began)
        if what == "q":
            self.told += self.asked
            self.grants.append(self.began)
        if what == "d":
            self.told += self.cost
        if what in "dq":
            self.counted.append((at, self.told))
        self.settled += what in "dqv"
        self.unavailable += what == "u"
        self.step, self.asked, self.cost = "", 0, 0

    def told_by(self, moment: int) -> int:
        """Return what it had been told by a moment."""
        return next((told for at, told in reversed(self.counted) if at <= moment), 0)


def life_of(path: Path) -> Life:
    """Read a log."""
    life = Life()
    for line in path.read_text(encoding="ascii").splitlines():
        at, what, *words = line.split()
        life.read(int(at), what, words)
    return life


def audited(life: Life, *, killed: bool, used: int, charged: int, since: int | None = None) -> list[str]:
    """Compare one process with its scope.

    Args:
        life: what it was told.
        killed: whether it was killed.
        used: nanodollars in its scope.
        charged: how much of that the store lists as charged because the process died.
        since: from when on the store may have lost what it answered; None: it may lose nothing.
    """
    if killed:
        return _killed(life, used, charged)
    if life.ended != "z":
        return [f"{life.key}: ended {f'with {life.ended}' if life.ended else 'without a word'}"]
    if since is not None:  # what it was told since then may be lost
        least = life.told_by(since)
        fits = least <= used <= life.told + charged
        return [] if fits else [f"{life.key}: was told {least} before, {life.told} in all; the store has {used}"]
    found = []
    if used != life.told:
        found.append(f"{life.key}: was told {life.told}, and the store has {used}")
    if charged:
        found.append(f"{life.key}: lives, and has {charged} charged")
    return found


def _killed(life: Life, used: int, charged: int) -> list[str]:
    if used not in life.sums:
        return [f"{life.key}: was told {life.told}, then {life.step} {life.asked} {life.cost}; the store has {used}"]
    if charged != life.sums[used]:
        return [f"{life.key}: {charged} are listed as charged in place of {life.sums[used]}"]
    return []
