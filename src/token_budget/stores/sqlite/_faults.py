"""What SQLite and the system raise, as what a store raises: to try again, to mend the file, or to restore it."""

from __future__ import annotations

import errno
import sqlite3
from typing import Any

from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError, StoreLost

# Result codes of SQLite (sqlite3.h). Python has `sqlite_errorcode` from 3.11 on; on 3.10 the text tells.
PERM, BUSY, LOCKED, READONLY, INTERRUPT, IOERR = 3, 5, 6, 8, 9, 10
CORRUPT, FULL, CANTOPEN, PROTOCOL, NOLFS, AUTH, NOTADB = 11, 13, 14, 15, 22, 23, 26
MOVED = READONLY | 4 << 8  # SQLITE_READONLY_DBMOVED
TEXTS = {
    "access permission denied": PERM,
    "database is locked": BUSY,
    "database table is locked": LOCKED,
    "database schema is locked": LOCKED,
    "attempt to write a readonly database": READONLY,
    "interrupted": INTERRUPT,
    "disk I/O error": IOERR,
    "database disk image is malformed": CORRUPT,
    "database or disk is full": FULL,
    "unable to open database file": CANTOPEN,
    "locking protocol": PROTOCOL,
    "large file support is disabled": NOLFS,
    "authorization denied": AUTH,
    "file is not a database": NOTADB,
}
_PASSING = {
    BUSY: "another program keeps it locked",
    LOCKED: "another statement keeps it locked",
    INTERRUPT: "interrupted",
    IOERR: "reading or writing failed",
    FULL: "the disk is full",
    CANTOPEN: "it cannot be opened",
    PROTOCOL: "another program keeps it locked",
}
_LASTING = {
    PERM: "no rights to it",
    READONLY: "it is read-only",
    CORRUPT: "it is corrupt: restore it",
    NOLFS: "this SQLite cannot handle a file of its size",
    AUTH: "no rights to it",
    NOTADB: "it is no SQLite database",
}
# What does not go away by itself. ENOENT is a file that went away in the middle.
_NOT_OURS = {
    errno.EACCES: "no rights to it",
    errno.EPERM: "no rights to it",
    errno.EROFS: "its file system is read-only",
    errno.EISDIR: "it is a folder",
    errno.ENOTDIR: "a part of its path is no folder",
    errno.ELOOP: "its symbolic links go round in a circle, or a file beside it is a symbolic link",
    errno.ENAMETOOLONG: "its name is too long",
    errno.ENOLCK: "its file system has no locks",
    errno.EOPNOTSUPP: "its file system has no locks",
    errno.ENOSYS: "its file system has no locks",
}


def code_of(error: sqlite3.Error) -> int:
    """Return SQLite's result code of an error; 1 (SQLITE_ERROR) where it is not known."""
    code: int = getattr(error, "sqlite_errorcode", 0) or TEXTS.get(str(error), 1)  # SQLITE_NOMEM is a MemoryError
    return code


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether another connection is in the way, so that trying again may help."""
    return code_of(error) & 0xFF in {BUSY, PROTOCOL}


def ours(error: BaseException, path: str) -> BaseException:
    """Return what a store raises for an error; the error itself where it is no fault of file or system."""
    if type(error) in {sqlite3.DatabaseError, sqlite3.OperationalError}:
        return _of_sqlite(error, path)
    if isinstance(error, OSError):
        return _of_system(error, path)
    return error  # the subclasses of DatabaseError tell of a mistake in a statement, or of a constraint


def _of_sqlite(error: Any, path: str) -> Exception:
    code = code_of(error)
    primary = code & 0xFF
    if code == MOVED:
        return StoreLost(f"{path} was moved or deleted while it was open. Restore it")
    if primary in _PASSING:
        return BudgetUnavailable(f"{path}: {_PASSING[primary]} ({error})")
    return StoreError(f"{path}: {_LASTING.get(primary, 'it is no budget of this version')} ({error})")


def _of_system(error: OSError, path: str) -> Exception:
    beside = f" ({error.filename})" if error.filename not in {None, path} else ""
    if error.errno in _NOT_OURS:
        return StoreError(f"{path}: {_NOT_OURS[error.errno]}{beside}: {error.strerror}")
    if error.errno == errno.ENOENT:
        return StoreLost(f"{path}{beside} is not there any more. Restore it")
    return BudgetUnavailable(f"{path}{beside}: {error.strerror or error}")
