"""Alive: which of the owners in a file still live. The kernel knows: each holds a lock on a byte of `.alive`.

A kill -9 is seen at once, without a clock or a thread that renews anything. A process that is stopped still lives. A
forked child does not hold its parent's byte, so the parent's death is seen though children of it live.

POSIX frees the locks that a process has on a file when the process closes any descriptor of it. So a program that reads
`.alive` itself (a copy of the folder, made in there) looks dead to others from then on: what its open claims hold is
charged in full, and corrected when they are settled.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from functools import cache
from pathlib import Path

from token_budget.stores._names import encoded
from token_budget.stores.sqlite._lock import PosixByte, WindowsByte, attempt, byte_lock

_DIGITS = 20


class Alive:
    """The bytes of `budget.db.alive`, as this process sees them. The descriptor is the process's only one."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._mine: dict[int, PosixByte | WindowsByte] = {}

    def take(self, owner: int) -> bool:
        """Lock the byte of an owner for this process. False if another process has it."""
        if owner in self._mine:
            return True
        lock = byte_lock(self._descriptor, owner)
        if not attempt(lock):
            return False
        self._mine[owner] = lock
        return True

    def lives(self, owner: int) -> bool:
        """Return whether a process, this one or another, holds the byte of an owner."""
        return owner in self._mine or byte_lock(self._descriptor, owner).is_elsewhere()

    def give(self, owner: int) -> None:
        """Free the byte of an owner of this process: for all others it is dead."""
        lock = self._mine.pop(owner, None)
        if lock is not None:
            lock.free()

    def openings(self) -> int:
        """Return how often the budget was opened, as the file says; 0 where it does not."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        written = os.read(self._descriptor, _DIGITS)
        return int(written) if written.isdigit() else 0

    def note_opening(self, number: int) -> None:
        """Write on the disk how often the budget was opened."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, b"%0*d" % (_DIGITS, number))
        os.fsync(self._descriptor)

    def forked(self) -> None:
        """In a forked child: the bytes are the parent's."""
        self._mine.clear()


def uptime() -> float:
    """Return seconds that all processes of this host count alike, whatever becomes of its time of day."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


@cache
def boot_id() -> str:
    """Return what is the same until the system is started anew; "" where the system tells none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def who() -> str:
    """Return this process as ``host:pid:start``: its start as a POSIX time in seconds, since pids are used again."""
    return f"{encoded(platform.node() or 'localhost')}:{os.getpid()}:{_start(os.getpid())}"


@cache
def _start(_pid: int) -> int:
    """Return when this process was started; where the system does not tell, when it was first asked."""
    if sys.platform == "win32":
        return int(time.time())
    try:
        ticks = int(
            Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
        boots = [line for line in Path("/proc/stat").read_text(encoding="ascii").splitlines() if line[:6] == "btime "]
        return int(boots[0].split()[1]) + ticks // os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return int(time.time())
