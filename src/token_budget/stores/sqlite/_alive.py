"""Alive: who of the owners in a file still lives. The kernel knows: each holds a lock on a byte of `budget.db.alive`."""

from __future__ import annotations


class Alive:
    """The bytes of `budget.db.alive`, as this process sees them."""

    def take(self, owner: int) -> bool:
        """Lock the byte of an owner for this process. False if another process has it."""
        raise NotImplementedError

    def lives(self, owner: int) -> bool:
        """Return whether a process holds the byte of an owner. A kill -9 is seen at once."""
        raise NotImplementedError


def boot_id() -> str:
    """Return what is the same until the system is started anew; "" where the system tells none."""
    raise NotImplementedError


def who() -> str:
    """Return this process as ``host:pid:start``: its start as a POSIX time in seconds, since pids are used again."""
    raise NotImplementedError
