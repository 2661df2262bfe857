"""The files of the runs that are going on: by them ``token-budget status run`` finds a run, and asks its gateway.

What always holds: a file is its user's alone. It has the gateway's secret, so it stands in a folder that belongs to the
user and that nobody else may enter: in ``XDG_RUNTIME_DIR``, or else in the folder for temporary files. A folder that
another user made there, or a link, is not used. The folder is opened once, and all else goes by its descriptor: what
somebody puts in its place later is never touched. A run without such a folder has no file, and is not found.

The file of a run that was killed stays behind. It is known by its process: when that one was started is written in the
file, since the system uses process ids again.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from token_budget.cli._run_status import RunStatus
from token_budget.contract import BudgetUnavailable

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_NAME = re.compile(r"run-\d+-[0-9a-f]{16}\.json")
_URL = re.compile(r"http://127\.0\.0\.1:(\d{1,5})(/[A-Za-z0-9_~-]+)")
_LARGEST_FILE = 64 * 1024
_LARGEST_STATUS = 64 * 1024 * 1024
_PATIENCE = 2.0  # seconds for the gateway, which is on this machine, to answer
_PROC = Path("/proc")
_BOOT = _PROC / "sys/kernel/random/boot_id"


@dataclass(frozen=True, slots=True)
class Running:
    """A run of this user that is going on."""

    pid: int  # of `token-budget run`
    command: str  # the name of the program
    started: str = field(repr=False)
    url: str = field(repr=False)  # with the secret

    @property
    def lives(self) -> bool:
        """Whether its process is still there."""
        return _lives(self.pid, self.started) is not False

    def ask(self) -> RunStatus:
        """Ask its gateway for its status. It blocks for a few seconds at most.

        Raises:
            BudgetUnavailable: the gateway does not answer, or not with a status.
        """
        from http.client import HTTPConnection, HTTPException

        where = _URL.fullmatch(self.url)
        if where is None:
            raise BudgetUnavailable(f"run {self.pid} does not say where its gateway is")
        connection = HTTPConnection("127.0.0.1", int(where[1]), timeout=_PATIENCE)
        try:
            connection.request("GET", f"{where[2]}/_status")
            response = connection.getresponse()
            body = response.read(_LARGEST_STATUS)
        except (OSError, HTTPException) as error:  # its text may have the address, and with it the secret
            raise BudgetUnavailable(f"run {self.pid} does not answer ({type(error).__name__})") from None
        finally:
            connection.close()
        if response.status != 200:
            raise BudgetUnavailable(f"run {self.pid} answers with status {response.status}")
        try:
            told = json.loads(body)
            return RunStatus.from_dict(told if isinstance(told, dict) else {})
        except ValueError as error:
            raise BudgetUnavailable(f"run {self.pid} gives no status of a run: {error}") from None


class RunFile:
    """The file of this process's run."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._pid = os.getpid()

    def remove(self) -> None:
        """Remove it, when the run has ended. Never raises; does nothing in a forked child, whose run it is not."""
        if os.getpid() == self._pid:
            with suppress(OSError), _opened(self._folder) as folder:
                folder.remove(self._name)


def publish(url: str, command: str) -> RunFile | None:
    """Write the file of this process's run; None where there is no folder of the user's own for it.

    Args:
        url: the gateway's, with its secret: ``http://127.0.0.1:PORT/SECRET``.
        command: the name of the program, without its arguments.
    """
    pid = os.getpid()
    told = {"pid": pid, "started": _started(pid) or "", "command": command, "url": url}
    name = f"run-{pid}-{secrets.token_hex(8)}.json"
    for path in _paths():
        with suppress(OSError), _opened(path, make=True) as folder:
            folder.write(name, json.dumps(told).encode())
            return RunFile(path, name)
    return None


def running() -> list[Running]:
    """Return the runs of this user that are going on, by their process ids. Remove the files of those that are gone."""
    found = []
    for path in _paths():
        with suppress(OSError), _opened(path) as folder:
            for name in filter(_NAME.fullmatch, folder.names()):
                with suppress(OSError, ValueError):
                    one = _read(folder.read(name))
                    lives = _lives(one.pid, one.started)
                    if lives is False:
                        folder.remove(name)
                    elif lives or sys.platform != "linux":
                        found.append(one)
    return sorted(found, key=lambda one: one.pid)


def _read(text: bytes) -> Running:
    told: Any = json.loads(text)
    if not isinstance(told, dict):
        raise ValueError("it is no object")  # noqa: TRY004 - what a file has is a value
    pid, command, started, url = (told.get(key) for key in ("pid", "command", "started", "url"))
    if not (isinstance(pid, int) and isinstance(command, str) and isinstance(started, str) and isinstance(url, str)):
        raise ValueError("it is not the file of a run")  # noqa: TRY004
    return Running(pid, command, started, url)


# ---------------------------------------------------------------- the folder


class _Folder:
    """An open folder. On Windows it is told by its path: folders cannot be opened there, and the user's are private."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self._path = path
        self._descriptor = descriptor

    def names(self) -> list[str]:
        """Return the names in it."""
        return os.listdir(self._path if self._descriptor is None else self._descriptor)  # noqa: PTH208 - by descriptor

    def read(self, name: str) -> bytes:
        """Return what a file has.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no file of this user's alone.
        """
        descriptor = self._open(name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            if not _is_private(os.fstat(descriptor), stat.S_ISREG):
                raise ValueError("it is not private")
            return file.read(_LARGEST_FILE)

    def write(self, name: str, text: bytes) -> None:
        """Make a file, whole or not at all."""
        hidden = f".{name}"
        descriptor = self._open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text)
            os.replace(self._named(hidden), self._named(name), src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except OSError:  # a full disk
            self.remove(hidden)
            raise

    def remove(self, name: str) -> None:
        """Remove a file."""
        os.unlink(self._named(name), dir_fd=self._descriptor)

    def _open(self, name: str, flags: int) -> int:
        return os.open(self._named(name), flags, 0o600, dir_fd=self._descriptor)

    def _named(self, name: str) -> str:
        return name if self._descriptor is not None else str(self._path / name)


@contextmanager
def _opened(path: Path, *, make: bool = False) -> Iterator[_Folder]:
    """Open the folder, and make it before where there is none.

    Raises:
        OSError: there is none, or it is not this user's alone.
    """
    if make:
        with suppress(FileExistsError):
            path.mkdir(0o700)
    if sys.platform == "win32":
        yield _Folder(path, None)
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not _is_private(os.fstat(descriptor), stat.S_ISDIR):
            raise PermissionError(f"{path} is not private")
        yield _Folder(path, descriptor)
    finally:
        os.close(descriptor)


def _is_private(found: os.stat_result, is_kind: Any) -> bool:
    """Return whether it is of this kind, and nobody but this user may do anything with it."""
    if not is_kind(found.st_mode):
        return False
    return sys.platform == "win32" or (found.st_uid == os.geteuid() and not found.st_mode & _OTHERS)


def _paths() -> list[Path]:
    """Return where the folder may be, the best place first."""
    if sys.platform == "win32":
        return [Path(os.environ.get("LOCALAPPDATA") or tempfile.gettempdir()) / "token-budget-runs"]
    paths = []
    with suppress(OSError):  # no folder for temporary files can be written, as on a full disk
        paths = [Path(tempfile.gettempdir()) / f"token-budget-{os.geteuid()}"]
    own = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    if own.is_absolute():
        paths.insert(0, own / "token-budget")
    return paths


# ---------------------------------------------------------------- the process


def _started(pid: int) -> str | None:
    """Return when a process was started, as text that no other process of this machine has; None if there is none.

    On Linux it names the boot and the container as well: a process id of another container says nothing here.
    """
    if sys.platform == "linux":
        return _started_on_linux(pid)
    try:
        psutil: Any = import_module("psutil")
    except ImportError:
        return ""
    try:
        return str(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _started_on_linux(pid: int) -> str | None:
    try:
        state, *values = (
            (_PROC / f"{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except (OSError, ValueError):
        return None
    return None if state in {"Z", "X"} else f"{_here()} {values[18]}"


def _here() -> str:
    """Return the boot and the container."""
    try:
        return f"{_BOOT.read_text(encoding='ascii').strip()} {(_PROC / 'self/ns/pid').stat().st_ino}"
    except OSError:
        return "? ?"


def _lives(pid: int, started: str) -> bool | None:
    """Return whether the process that was started then is there; None where that cannot be known from here."""
    if sys.platform == "linux":
        boot, space, *_ = [*started.split(), "", ""]
        here = _here().split()
        if boot == here[0] and space != here[1]:
            return None  # another container, that shares the folder
    now = _started(pid)
    return None if now == "" else now == started
