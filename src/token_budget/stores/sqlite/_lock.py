"""Locks on bytes of a file, which the kernel frees when their process ends, however it ends.

On POSIX these are the locks of ``fcntl``. They are the process's: a forked child does not have them, nor does what it
executes, and a process never keeps itself out. Closing any descriptor of a file frees all that the process has on it,
so each file has one descriptor a process. On Windows they are the locks of ``msvcrt``; that path is tested with a
double of that module only.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from time import monotonic, sleep
from typing import Any


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


fcntl = _module("fcntl")  # None: Windows

# What a lock that another process holds is refused with; which of them is the system's choice.
HELD = frozenset({errno.EAGAIN, errno.EACCES, errno.EDEADLK})

_FIRST_PAUSE = 50e-6
_LONGEST_PAUSE = 1e-3

# `struct flock` of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi")
_HAS_FLOCK = sys.platform == "linux" and sys.maxsize > 1 << 32


class PosixByte:
    """The lock on one byte, with ``fcntl``. ``take`` raises OSError (`HELD`) where another process has it."""

    __slots__ = ("_byte", "_descriptor", "free", "take")

    def __init__(self, descriptor: int, byte: int) -> None:
        self._descriptor = descriptor
        self._byte = byte
        # Partials of functions in C: the two calls are in every transaction, and Ctrl-C cannot come in half way.
        self.take: Callable[[], Any] = partial(fcntl.lockf, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        self.free: Callable[[], Any] = partial(fcntl.lockf, descriptor, fcntl.LOCK_UN, 1, byte)

    def is_elsewhere(self) -> bool:
        """Return whether another process has it. Two that ask at once do not see each other."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, self._byte)
        except OSError as error:
            if error.errno in HELD:
                return True
            raise
        self.free()
        return False


class WindowsByte:
    """The same with ``msvcrt``, whose locks begin at the descriptor's position, in some runtimes one of 31 bits.

    Bytes are therefore folded into 31 bits. Where a dead owner's byte falls on a living one's, the dead one counts as
    living until that one ends, which is the safe side. Locks bind the descriptor, so whoever holds one never asks.
    """

    __slots__ = ("_byte", "_descriptor", "_msvcrt", "free", "take")

    def __init__(self, descriptor: int, byte: int, msvcrt: Any) -> None:
        self._descriptor = descriptor
        self._byte = byte % 0x7FFFFFFF
        self._msvcrt = msvcrt
        self.take: Callable[[], Any] = partial(self._do, msvcrt.LK_NBLCK)
        self.free: Callable[[], Any] = self._free

    def _do(self, what: int) -> None:
        os.lseek(self._descriptor, self._byte, os.SEEK_SET)
        self._msvcrt.locking(self._descriptor, what, 1)

    def _free(self) -> None:
        try:
            self._do(self._msvcrt.LK_UNLCK)
        except OSError as error:
            if error.errno not in HELD:  # else it was not taken, which is no error on POSIX either
                raise

    def is_elsewhere(self) -> bool:
        """Return whether another descriptor has it. Of two that ask at once, one may see the other."""
        try:
            self.take()
        except OSError as error:
            if error.errno in HELD:
                return True
            raise
        self._free()
        return False


def byte_lock(descriptor: int, byte: int) -> PosixByte | WindowsByte:
    """Return the lock on one byte of an open file."""
    if fcntl is not None:
        return PosixByte(descriptor, byte)
    return WindowsByte(descriptor, byte, _module("msvcrt"))


def poll(attempt: Callable[[], bool], deadline: float) -> bool:
    """Try until it succeeds or the deadline (of `time.monotonic`) is over, with pauses that grow from 50 us to 1 ms.

    The system's own waiting has no time-out: a holder that is stopped (SIGSTOP, a debugger) would hang everybody.
    """
    pause = _FIRST_PAUSE
    while not attempt():
        left = deadline - monotonic()
        if left <= 0:
            return False
        sleep(min(pause, left))
        pause = min(pause * 1.3, _LONGEST_PAUSE)
    return True


def attempt(lock: PosixByte | WindowsByte) -> bool:
    """Take a lock. False where another process has it."""
    try:
        lock.take()
    except OSError as error:
        if error.errno in HELD:
            return False
        raise
    return True


def holder(descriptor: int, byte: int) -> int | None:
    """Return the pid of who has the lock on a byte, where the system tells it."""
    if not _HAS_FLOCK:
        return None
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind, _whence, _start, _length, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return pid if kind != fcntl.F_UNLCK and pid > 0 else None


def share(descriptor: int, start: int, length: int) -> None:
    """Lock bytes for reading, for as long as the descriptor is open here or in a forked child.

    On Linux such a lock belongs to the open file (``F_OFD_SETLK``): closing another descriptor does not free it, and
    children have it too. Elsewhere it is the process's.
    """
    if fcntl is None:
        return  # Windows: SQLite's own locks belong to its handle
    if _HAS_FLOCK:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, start, length, 0))
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, length, start)
