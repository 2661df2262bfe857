"""Tools for the tests of SQLite's files and locks: a table to write to, other processes, file systems of one's own."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import token_budget
from token_budget.stores.sqlite import _file
from token_budget.stores.sqlite._connection import Connection, _registry

NAMES = ("", "-wal", "-shm", ".lock", ".alive")  # of the five files, after the budget's own name
LINUX = sys.platform == "linux"
FORKING = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="these tests fork"),
    # From 3.12 on, Python warns about forks beside other threads. Here the others are pytest's.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
# For programs of other processes: `connection` and the functions of this module. The path is their first argument.
OPEN = """
import os, sys, time, sqlite3
from sqlite_files import *
path = sys.argv[1]
def said(word): os.write(1, f"{word}\\n".encode())  # in one piece, whoever else says something
def wait(): sys.stdin.readline()
"""


def path_in_folder(tmp_path: Path) -> Iterator[Path]:
    """Fixture: a path in a folder of its own; what the test left open there is closed."""
    folder = tmp_path / "folder"
    folder.mkdir()
    yield folder / "budget.db"
    close_all()


def folder_of_everybody() -> Iterator[Path]:
    """Fixture: a folder that every user may write to, as pytest's are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def modes(path: Path) -> set[int]:
    """Return the modes of the five files."""
    return {stat.S_IMODE(Path(f"{path}{name}").stat().st_mode) for name in NAMES}


def count(execute: Callable[..., Any]) -> int:
    """Work: return what was counted."""
    (value,) = execute("SELECT value FROM counter").fetchone()
    return int(value)


def add(execute: Callable[..., Any], by: int = 1) -> int:
    """Work: count, by a statement that reads and one that writes, so that two at once would lose one."""
    value = count(execute) + by
    execute("UPDATE counter SET value = ?", (value,))
    return value


def make_counter(execute: Callable[..., Any]) -> None:
    """Work: make the table that `add` and `count` use."""
    execute("CREATE TABLE IF NOT EXISTS counter (id INTEGER PRIMARY KEY, value INTEGER)")
    execute("INSERT OR IGNORE INTO counter VALUES (1, 0)")


def opened(path: Path | str, *, timeout: float = 30, create: bool = True) -> Connection:
    """Return a connection to a budget's file with a counter in it."""
    connection = Connection.of(path, timeout=timeout, create=create)
    connection.run(timeout, False, make_counter)
    return connection


def close_all() -> None:
    """Close what this process has open."""
    for connection in list(_registry.connections.values()):
        while connection.users > 0:
            connection.let_go()
        _registry.let_go(connection)  # one that was interrupted before it had a user
    assert not _registry.connections


def whole(connection: Connection) -> None:
    """Fail unless a connection is as between two calls: locks are free, no transaction is open, the file is sound."""
    assert not connection.mutex.locked()
    assert not connection.inside
    if connection._database is not None:
        assert not connection._database.in_transaction
    with other(
        "fd = os.open(path + '.lock', os.O_RDWR); import fcntl; fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        connection.path,
    ) as process:
        process.ends()
    assert connection.look(30, lambda execute: execute("PRAGMA integrity_check").fetchall()) == [("ok",)]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the names and contents of all files of a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def quiet(connection: Connection) -> None:
    """Have the connection trust that nothing changes in the folder, as it does after a moment."""
    until(lambda: connection.look(30, count) is not None and connection._file.changed is not None)
    assert connection._file.changed == _file.time_of_change(Path(connection.path).parent.stat())


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for a condition. Fail if it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.002)


def environment() -> dict[str, str]:
    """Return the variables with which another process finds the package and these tools."""
    paths = [str(Path(token_budget.__file__).parent.parent), str(Path(__file__).parent), str(Path(__file__).parents[1])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}


class Other:
    """Another process that runs a program, and tells how far it is by lines."""

    def __init__(self, program: str, *arguments: object) -> None:
        command = [sys.executable, "-c", OPEN + program, *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        )

    def hears(self, word: str) -> None:
        """Wait until it says this."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if line != word:
            self.process.kill()
            _out, errors = self.process.communicate()
            raise AssertionError(f"it said {line!r}, not {word!r}: {errors}")

    def goes_on(self) -> None:
        """End its `wait`."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)
        if number == signal.SIGSTOP:
            until(lambda: _state(self.process.pid) == "T")

    def ends(self) -> None:
        """Wait for its end. Fail if it failed."""
        _out, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, errors

    def dies(self) -> None:
        """Kill it with -9."""
        self.process.kill()
        self.process.communicate()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


@contextmanager
def other(program: str, *arguments: object) -> Iterator[Other]:
    """Run a program in another process, which does not outlive the block."""
    process = Other(program, *arguments)
    try:
        yield process
    finally:
        process.dies()


def started(body: Callable[[], object], fork: Callable[[], int] | None = None) -> int:
    """Run the body in a forked child, which ends with it whatever happens, and return the child's pid."""
    child = (fork or os.fork)()
    if child:
        return child
    code = 1
    try:
        body()
        code = 0
    except BaseException as error:  # noqa: BLE001 - told by the exit code
        os.write(2, f"in the child: {error!r}\n".encode())
    finally:
        os._exit(code)


def in_child(body: Callable[[], object], fork: Callable[[], int] | None = None) -> None:
    """Run the body in a forked child. Fail if it raises or hangs there."""
    assert end_of(started(body, fork)) == 0


def end_of(child: int) -> int:
    """Return the exit status of a forked child. A hanging one is killed."""
    deadline = time.monotonic() + 60
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def as_nobody(body: Callable[[], object]) -> None:
    """Run the body in a child without root's rights, which pass over the modes of files."""

    def without_rights() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        body()

    in_child(without_rights)


def with_mounts(program: str, folder: Path) -> None:
    """Run a program in another process that may mount what it likes: `mount(options)` onto the folder.

    Skips the test where the system lets us not make a name space of mounts.
    """
    unshare = shutil.which("unshare")
    options = ["-m"] if os.geteuid() == 0 else ["-Urm"]
    if unshare is None or subprocess.run([unshare, *options, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system does not let us mount")
    mounting = """
import subprocess
def mount(*options):
    subprocess.run(["mount", *options], check=True)
"""
    command = [unshare, *options, sys.executable, "-c", OPEN + mounting + program, str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment(), timeout=100)
    assert done.returncode == 0, done.stderr
