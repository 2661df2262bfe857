"""The files of one budget: `budget.db`, SQLite's `-wal` and `-shm` beside it, and ours, `.lock` and `.alive`.

What always holds:

* `budget.db` comes into being whole, with its tables, under the file lock. So a file that is empty, or is not there
  though `.alive` is, had a budget in it: nobody gets a fresh one.
* Each opening is counted in `budget.db` (so at first in the log), and after that in `.alive`. So who opens a file whose
  log is lost, or an older copy, sees that it has counted less.
* While a process has the files open it holds shared locks on the bytes by which SQLite sees that a database is in use
  (`share`). So nobody deletes the log or the shared memory as "the last one out": neither a parent under the children
  that it forked, nor another program after this one has lost SQLite's own locks, as it does when anybody in here opens
  and closes `budget.db`.
* No descriptor of `budget.db` and `-shm` is closed before SQLite's connection is: that would drop its locks.
"""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from operator import attrgetter
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import quote

from token_budget.contract import BudgetUnavailable
from token_budget.stores._errors import StoreError, StoreLost
from token_budget.stores.sqlite import _schema
from token_budget.stores.sqlite._alive import Alive
from token_budget.stores.sqlite._lock import attempt, byte_lock, fcntl, holder, poll, share

MOUNTS = "/proc/self/mountinfo"
# Where WAL's shared memory or locks do not reach the other hosts that may have the file open.
_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\w*|ncpfs|9p|afs|coda|ceph|lustre|gpfs|beegfs|pvfs2|orangefs|ocfs2|gfs2|glusterfs|davfs2?"
    r"|vboxsf|prl_fs|drvfs|fuse\.(sshfs|ceph\w*|gluster\w*|glusterfs|davfs2?|s3fs|gcsfuse|rclone|juicefs|mfs|moosefs"
    r"|seaweedfs|vmhgfs-fuse|grpcfuse|osxfs|goofys|curlftpfs|smbnetfs|mount-s3|nfs\w*|lustre|beegfs)|fakeowner"
)
_OLDEST = (3, 24)  # it has UPSERT
# Seconds after which another change of a folder gets another time. Files have the time of the kernel's latest tick, of
# at most 10 ms. A file system that keeps coarser times (FAT: 2 s) has multiples of that.
_GRAIN = 0.05
_COARSE_GRAIN = 3.0
_TICK = 10_000_000  # nanoseconds
# Where SQLite locks (its os_unix.c): the bytes of readers of the database, and "the shared memory is in use".
_READERS = (0x40000002, 510)
_IN_USE = (128, 1)

Identity = tuple[int, int]
# When a folder was changed last. Of the two times that POSIX has, the one that nobody can put back: who unpacks an
# archive over the files puts back the other one. On Windows `st_ctime_ns` is when the folder was made.
time_of_change = attrgetter("st_mtime_ns" if sys.platform == "win32" else "st_ctime_ns")

_lstat = os.lstat


def identity(found: os.stat_result) -> Identity:
    """Return what tells a file from all others on this host."""
    return found.st_dev, found.st_ino


def resolved(path: str | os.PathLike[str]) -> str:
    """Return an absolute path without symbolic links, so that two paths to one file are one."""
    text = os.fsdecode(path)
    if text == ":memory:":
        raise ValueError("a budget in memory is one process's: use BudgetPool, or give a file")
    if not text or "\0" in text:
        raise ValueError("the path of a budget's file must not be empty or have a null character in it")
    return os.path.realpath(text)


def uri(path: str, options: str) -> str:
    """Return a path as SQLite takes it where options are given."""
    return f"file:{quote(os.fsencode(path))}?{options}"


# ---------------------------------------------------------------------- before anything is opened or made


def examine(path: str, *, create: bool) -> bool:
    """Return whether there is a budget's file, without changing anything. False only where one may be made."""
    if sqlite3.sqlite_version_info < _OLDEST:
        raise StoreError(f"{path}: SQLite {sqlite3.sqlite_version} is too old: it must be 3.24 or newer")
    _check_mount(path)
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        _check_missing(path, create=create)
        return False
    if not stat.S_ISREG(found.st_mode):
        raise StoreError(f"{path} is {'a folder' if stat.S_ISDIR(found.st_mode) else 'no regular file'}")
    _check_owner(path, found)
    if found.st_size == 0:
        raise StoreLost(f"{path} is empty: what it had is lost, or it never was a budget. Restore it, or {_anew(path)}")
    if found.st_nlink > 1:
        raise StoreError(f"{path} has {found.st_nlink} hard links: SQLite would keep a log for each of its names")
    if not os.access(path, os.R_OK | os.W_OK):
        raise StoreError(f"{path} is read-only for this process")
    for beside in (path + "-wal", path + "-shm"):
        there = os.path.lexists(beside)
        usable = os.access(beside, os.R_OK | os.W_OK) if there else os.access(Path(path).parent, os.W_OK | os.X_OK)
        if not usable:
            raise StoreError(f"{path}: no rights to {'write' if there else 'make'} {beside}")
    if os.path.lexists(path + "-shm") and not os.path.lexists(path + "-wal") and os.path.lexists(path + "-shm"):
        # SQLite makes the log first, and deletes it last. The second look: another program may be closing the file.
        raise StoreLost(f"{path}: its log {path}-wal was deleted. Restore it, or {_anew(path)}")
    _check_header(path)
    return True


def _anew(path: str) -> str:
    return f"delete {path} and all files beside it whose names begin with {Path(path).name} to begin anew"


def _check_missing(path: str, *, create: bool) -> None:
    folder = str(Path(path).parent)
    if not create:
        raise StoreLost(f"there is no budget in {path}, and create=False makes none")
    if not Path(folder).is_dir():
        raise StoreError(f"{path}: there is no folder {folder}")
    left = [path + suffix for suffix in (".alive", "-wal", "-shm") if os.path.lexists(path + suffix)]
    if left and not os.path.lexists(path):  # else another process has just made it
        raise StoreLost(f"{path} was deleted: {left[0]} is still there. Restore it, or {_anew(path)}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(f"{path}: no rights to make a file in {folder}")


def _check_owner(path: str, found: os.stat_result) -> None:
    """Refuse a file that another user may have put where we make ours: in a folder that is everybody's."""
    if sys.platform == "win32" or found.st_uid in {0, os.geteuid()}:
        return
    everybodys = stat.S_ISVTX | stat.S_IWOTH
    if Path(path).parent.stat().st_mode & everybodys == everybodys:
        raise StoreError(f"{path} belongs to user {found.st_uid}, in a folder where everybody makes files: use another")


def _check_header(path: str) -> None:
    """Read whose file it is. ``immutable``: SQLite locks nothing, makes no files, and drops no locks by closing."""
    with closing(sqlite3.connect(uri(path, "mode=ro&immutable=1"), uri=True, isolation_level=None)) as database:
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
    if application != _schema.APPLICATION_ID:
        raise StoreError(f"{path} is another program's database, not a budget's")
    if version > _schema.VERSION:
        raise StoreError(
            f"{path} was written by a newer version of this package (format {version}; this one knows"
            f" {_schema.VERSION}): upgrade the package"
        )
    if version < _schema.VERSION:
        raise StoreError(f"{path} has format {version}; this version of the package knows {_schema.VERSION} only")


def mount_of(path: str) -> tuple[str, str] | None:
    """Return the mount point that a path is under and the type of its file system; None where /proc does not tell."""
    try:
        lines = Path(MOUNTS).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    best: tuple[str, str] | None = None
    for line in lines:
        left, _, right = line.partition(" - ")
        fields, types = left.split(" "), right.split(" ")
        if len(fields) < 5:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and (best is None or len(point) >= len(best[0])):  # the last one covers those at the same point
            best = point, types[0]
    return best


def _check_mount(path: str) -> None:
    mount = mount_of(path)
    if mount is None:
        return
    point, kind = mount
    if _NETWORK.fullmatch(kind):
        raise StoreError(
            f"{path} is on a network file system ({kind}, mounted at {point}), where SQLite cannot share a file."
            " For many hosts use RedisBudgetPool"
        )
    if point == path:
        raise StoreError(
            f"{path} is mounted as a single file: SQLite's log beside it would not be shared. Mount its folder"
        )


# ---------------------------------------------------------------------- making


def sibling(path: str, mode: int) -> int:
    """Open a file of ours beside the database, or make it with the database's mode, whatever the umask."""
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        return _opened(path, flags)
    _set_mode(descriptor, mode)
    return descriptor


def _opened(path: str, flags: int) -> int:
    try:
        descriptor = os.open(path, flags)
    except PermissionError:
        if sys.platform == "win32" or Path(path).stat().st_uid != os.geteuid():
            raise
        Path(path).chmod(0o600)  # it is ours: under an odd umask another process is between making it and `_set_mode`
        descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StoreError(f"{path} is no regular file")
    return descriptor


def _set_mode(descriptor: int, mode: int) -> None:
    if sys.platform != "win32":
        os.fchmod(descriptor, mode)


def make(path: str) -> None:
    """Make a budget's file under another name, then give it its own. Called under the file lock only."""
    new = path + ".unfinished"  # what a maker that died has left is taken away
    for left in (new, new + "-journal"):
        Path(left).unlink(missing_ok=True)
    try:
        _fill(new)
        Path(new).rename(path)
    except BaseException:
        with suppress(OSError):
            Path(new).unlink()
        raise
    sync_folder(str(Path(path).parent))


def _fill(new: str) -> None:
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        _set_mode(descriptor, 0o600)
    finally:
        os.close(descriptor)
    with closing(sqlite3.connect(uri(new, "mode=rw"), uri=True, isolation_level=None)) as database:
        execute = database.execute
        execute(f"PRAGMA page_size = {_schema.PAGE_SIZE}")
        execute("PRAGMA journal_mode = MEMORY")  # synchronous is FULL: it is on the disk when it is committed
        execute("BEGIN IMMEDIATE")
        execute(f"PRAGMA application_id = {_schema.APPLICATION_ID}")
        execute(f"PRAGMA user_version = {_schema.VERSION}")
        _schema.create(execute)
        execute("COMMIT")


def sync_folder(folder: str) -> None:
    """Make sure that the names of new files are on the disk. Windows has no such call."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def syncing(descriptor: int) -> Callable[[], Any]:
    """Return what makes sure that what was written to a file is on the disk."""
    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS, where fsync leaves it to the drive's cache
    if full is not None:
        return partial(fcntl.fcntl, descriptor, full)
    return partial(getattr(os, "fdatasync", os.fsync), descriptor)


# ---------------------------------------------------------------------- open


def _nothing() -> bool:
    return False


class BudgetFile:
    """The files of one budget, open in this process. Forked children go on with its descriptors."""

    def __init__(self, path: str) -> None:
        self.path: str = path
        self.folder: str = str(Path(path).parent)
        self.is_open: bool = False
        self.changed: int | None = None  # the folder's time of change, where nothing changed in it since it was checked
        self._seen: tuple[int, float] = (0, 0.0)  # its latest time of change, and when that was seen first
        self.identity: Identity = (0, 0)
        self._known: list[tuple[str, Identity]] = []
        self._descriptors: dict[str, int] = {}
        self._kept: frozenset[str] = frozenset()
        self._without_lock()

    def _without_lock(self) -> None:
        self.take: Callable[[], Any] = _nothing
        self.free: Callable[[], Any] = _nothing
        self.try_lock: Callable[[], bool] = _nothing

    def open(self, deadline: float, connect: Callable[[], Callable[[int], int]], *, create: bool) -> None:
        """Open all files, and make what is missing.

        ``connect`` opens SQLite's connection, under the file lock, and returns what counts the opening there.
        """
        if not self.is_open:
            self.close()  # what an interrupted opening has left
            examine(self.path, create=create)
            self._add(".lock", self._sibling(".lock"))
            lock = byte_lock(self._descriptors[".lock"], 0)
            self.take, self.free, self.try_lock = lock.take, lock.free, partial(attempt, lock)
        try:
            if not poll(self.try_lock, deadline):
                raise BudgetUnavailable(self.locked_by())
            if self.is_open:
                self._join(connect)
            else:
                self._begin(connect, create=create)
        finally:
            try:  # as in `Connection.run`
                self.free()
            finally:
                pass

    def _begin(self, connect: Callable[[], Callable[[int], int]], *, create: bool) -> None:
        path = self.path
        if not examine(path, create=create):  # again, under the lock: another process may have made or deleted it
            make(path)
        self._add(".alive", self._sibling(".alive"))
        self.alive: Alive = Alive(self._descriptors[".alive"])
        self._add("", os.open(path, os.O_RDWR))
        count = connect()
        self._add("-wal", os.open(path + "-wal", os.O_RDWR))
        self._add("-shm", os.open(path + "-shm", os.O_RDWR))
        self._share()
        sync_folder(self.folder)
        self.sync: Callable[[], Any] = syncing(self._descriptors["-wal"])
        self.identity = dict(self._known)[path]
        self._note(count)
        self.check()
        self.is_open = True

    def _note(self, count: Callable[[int], int]) -> None:
        """Count an opening in the database, and then in `.alive`. The log is synced first: so it never has less."""
        known = self.alive.openings()
        number = count(known)
        if number <= known:
            raise StoreLost(
                f"{self.path} is an older copy, or its log ({self.path}-wal) was deleted: a part of what was spent is"
                f" not in it. Restore it. Or delete {self.path}.alive to go on with what it has"
            )
        self.sync()
        self.alive.note_opening(number)

    def _join(self, connect: Callable[[], Any]) -> None:
        """In a forked child, which has the parent's descriptors and SQLite's picture of the shared memory."""
        self._share()
        self.check()  # where the shared memory is another now, SQLite would go on with the parent's in this process
        connect()

    def _sibling(self, suffix: str) -> int:
        """Open a file of ours beside the database. Refuse that of a user who has no part in it, and could lock it."""
        descriptor = sibling(self.path + suffix, self._mode())
        if sys.platform == "win32":
            return descriptor
        trusted = {0, os.geteuid()}
        with suppress(FileNotFoundError):
            trusted.add(Path(self.path).stat().st_uid)
        owner = os.fstat(descriptor).st_uid
        if owner not in trusted:
            os.close(descriptor)
            raise StoreError(f"{self.path}{suffix} belongs to user {owner}, who has no part in the budget: delete it")
        return descriptor

    def _mode(self) -> int:
        try:
            return Path(self.path).stat().st_mode & 0o666
        except FileNotFoundError:
            return 0o600

    def _add(self, suffix: str, descriptor: int) -> None:
        self._descriptors[suffix] = descriptor
        self._known.append((self.path + suffix, identity(os.fstat(descriptor))))

    def _share(self) -> None:
        """Keep the log and the shared memory from being deleted while this process or a child of it lives."""
        share(self._descriptors[""], *_READERS)
        share(self._descriptors["-shm"], *_IN_USE)

    def locked_by(self) -> str:
        """Say that the file lock was not free in time, and who has it."""
        pid = holder(self._descriptors[".lock"], 0)
        who = "another process" if pid is None else f"process {pid}"
        return f"{self.path}: {who} has the file lock and does not let go; it may be stopped, or its disk hangs"

    def check(self) -> None:
        """Raise StoreLost where a file was deleted or replaced. A file that is open does not tell by itself.

        Each of that changes the folder, so that as long as the folder's time of change is `changed` all is as it was.
        Where other programs change the folder all the time, each call comes here: a Path would take ten times as long.
        """
        self.changed = None
        before, now = time_of_change(os.stat(self.folder)), monotonic()  # noqa: PTH116
        for path, known in self._known:
            try:
                found = identity(_lstat(path))
            except (FileNotFoundError, NotADirectoryError):
                raise StoreLost(f"{path} was deleted while it was in use. Restore it, or {_anew(self.path)}") from None
            if found != known:
                raise StoreLost(
                    f"{path} was replaced while it was in use. Restore it, or start this program anew to go on with the"
                    " new one"
                )
        changed, since = self._seen
        if before != changed:
            self._seen = (before, now)
        elif now - since > (_GRAIN if before % _TICK else _COARSE_GRAIN):  # else another change may get the same time
            self.changed = before

    def close(self) -> None:
        """Close the files; SQLite's connection must be closed before. The process then has no locks on them."""
        self.is_open = False
        self.changed = None
        self._without_lock()  # a descriptor's number is soon another file's
        self._known.clear()
        while self._descriptors:  # each is taken out first: to close a number twice may close somebody else's file
            suffix, descriptor = self._descriptors.popitem()
            if suffix not in self._kept:
                with suppress(OSError):
                    os.close(descriptor)

    def forked(self) -> None:
        """In a forked child: SQLite keeps its picture of the parent's shared memory here, so we keep that in being."""
        self._kept = frozenset({"", "-shm"})
        self.alive.forked()
