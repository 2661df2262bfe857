"""Which processes that are in a budget's file live, as the kernel tells; and the locks of Windows, by a double."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sqlite_files import add, close_all, count, environment, in_child, opened, other
from token_budget.contract import BudgetUnavailable
from token_budget.stores.sqlite import _alive, _file, _lock
from token_budget.stores.sqlite._alive import Alive, boot_id, who
from token_budget.stores.sqlite._lock import WindowsByte, attempt, byte_lock

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="these tests fork"),
    # From 3.12 on, Python warns about forks beside other threads. These tests make such forks on purpose.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
LINUX = sys.platform == "linux"
SHORT = 0.2  # seconds, for time-outs that are to end


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A path in a folder of its own; what the test left open there is closed."""
    yield tmp_path / "budget.db"
    close_all()


# ---------------------------------------------------------------- who lives


def test_an_owner_lives_as_long_as_its_process(path: Path) -> None:
    connection = opened(path)
    assert connection.alive.lives(connection.owner)
    with other("connection = opened(path); said(str(connection.owner)); wait()", path) as process:
        assert process.process.stdout is not None
        owner = int(process.process.stdout.readline())
        assert 0 < owner < 1 << 62
        assert owner != connection.owner
        assert connection.alive.lives(owner)
        process.process.kill()
        process.process.wait()
        assert not connection.alive.lives(owner)
    assert not connection.alive.lives(12345)


@pytest.mark.skipif(not LINUX, reason="tells whether a process is stopped by /proc")
def test_a_stopped_process_lives(path: Path) -> None:
    connection = opened(path)
    with other("connection = opened(path); said(str(connection.owner)); wait()", path) as process:
        assert process.process.stdout is not None
        owner = int(process.process.stdout.readline())
        process.signal(signal.SIGSTOP)
        assert connection.alive.lives(owner)


def test_an_owner_is_dead_though_a_child_of_its_process_lives(path: Path) -> None:
    connection = opened(path)
    program = """
connection = opened(path)
owner = connection.owner
pid = os.fork()
if pid == 0:
    said(str(owner)); wait(); os._exit(0)
said(str(pid))
os.waitpid(pid, 0)
"""
    with other(program, path) as process:
        assert process.process.stdout is not None
        found = sorted(int(process.process.stdout.readline()) for _ in range(2))
        assert connection.alive.lives(found[1])
        process.process.kill()
        process.process.wait()
        os.kill(found[0], 0)  # the child is there
        assert not connection.alive.lives(found[1])
        process.goes_on()


def test_a_program_that_a_process_executes_in_its_place_is_not_its_owner(path: Path) -> None:
    connection = opened(path)
    program = """
connection = opened(path)
said(str(connection.owner)); wait()
os.set_inheritable(0, True)
os.execv(sys.executable, [sys.executable, "-c", "print('new', flush=True); input()"])
"""
    with other(program, path) as process:
        assert process.process.stdout is not None
        owner = int(process.process.stdout.readline())
        assert connection.alive.lives(owner)
        process.goes_on()
        process.hears("new")
        assert not connection.alive.lives(owner)
        process.goes_on()


@pytest.mark.skipif(not LINUX, reason="needs /proc")
def test_what_a_process_starts_has_none_of_its_files(path: Path) -> None:
    opened(path)
    program = """
import os
for descriptor in range(200):
    try:
        print(os.readlink(f"/proc/self/fd/{descriptor}"))
    except OSError:
        pass
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment(), close_fds=False
    )
    assert "budget.db" not in done.stdout


def test_letting_go_ends_the_owner(path: Path) -> None:
    connection = opened(path)
    owner = connection.owner
    with other(
        f"alive = opened(path).alive; said(str(alive.lives({owner}))); wait(); said(str(alive.lives({owner})))", path
    ) as process:
        process.hears("True")
        connection.let_go()
        process.goes_on()
        process.hears("False")


def test_a_process_that_was_declared_dead_becomes_a_new_owner(path: Path) -> None:
    connection = opened(path)
    heard: list[int] = []
    connection.on_new_owner.append(heard.append)
    before = connection.owner
    after = connection.run(30, True, lambda execute: add(execute) and connection.new_owner())
    assert connection.owner == after != before
    assert heard == [after]
    assert connection.alive.lives(after)
    assert not connection.alive.lives(before)

    def child() -> None:
        connection.run(30, True, add)
        assert heard == [after, connection.owner]

    in_child(child)


def test_a_byte_is_taken_by_one_process_only(path: Path) -> None:
    connection = opened(path)
    assert connection.alive.take(7)
    assert connection.alive.take(7)
    with other("said(opened(path).alive.take(7)); wait()", path) as process:
        process.hears("False")
    connection.alive.give(7)
    connection.alive.give(7)
    assert not connection.alive.lives(7)
    with other("said(opened(path).alive.take(7)); wait()", path) as process:
        process.hears("True")
        assert not connection.alive.take(7)
        assert connection.alive.lives(7)


def test_who_asks_at_the_same_moment_does_not_look_like_an_owner(path: Path) -> None:
    connection = opened(path)
    asking = """
import fcntl
fcntl.lockf(os.open(path + ".alive", os.O_RDWR), fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 99)  # the first half of `lives`
said("asking")
wait()
"""
    with other(asking, path) as process:
        process.hears("asking")
        assert not connection.alive.lives(99)


def test_the_largest_and_the_smallest_owner_have_bytes_of_their_own(path: Path) -> None:
    alive = opened(path).alive
    assert alive.take((1 << 62) - 1)
    assert alive.take(1)
    with other(
        "alive = opened(path).alive; said(str([alive.lives(n) for n in (1, 2, (1 << 62) - 2, (1 << 62) - 1)]))", path
    ) as process:
        process.hears("[True, False, False, True]")


def test_who_tells_host_pid_and_start() -> None:
    host, pid, start = who().split(":")
    assert host
    assert " " not in who()
    assert int(pid) == os.getpid()
    assert 0 <= time.time() - int(start) < 24 * 3600

    def child() -> None:
        assert who().split(":")[1] == str(os.getpid()) != pid
        assert int(who().split(":")[2]) >= int(start)

    in_child(child)


def test_where_the_system_does_not_tell_its_start_a_process_still_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_arguments: object, **_options: object) -> str:
        raise FileNotFoundError

    for function in (boot_id, _alive._start):
        function.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(_alive.Path, "read_text", nothing)  # type: ignore[attr-defined]
        assert boot_id() == ""
        assert abs(int(who().split(":")[2]) - time.time()) < 60
    for function in (boot_id, _alive._start):
        function.cache_clear()
    if LINUX:
        assert len(boot_id()) == 36


# ---------------------------------------------------------------- Windows, played by a double


class Msvcrt:
    """What ``msvcrt.locking`` does, for several descriptors of one file, and with no waiting."""

    LK_NBLCK, LK_UNLCK = 2, 0

    def __init__(self) -> None:
        self.locks: dict[tuple[int, int], int] = {}

    def locking(self, descriptor: int, mode: int, length: int) -> None:
        assert length == 1
        found = os.fstat(descriptor)
        byte = (found.st_ino, os.lseek(descriptor, 0, os.SEEK_CUR))
        assert 0 <= byte[1] <= 0x7FFFFFFF
        if mode == self.LK_UNLCK:
            if self.locks.get(byte) != descriptor:
                raise PermissionError(errno.EACCES, "Permission denied")
            del self.locks[byte]
        elif byte in self.locks:  # also for the one that has it
            raise PermissionError(errno.EACCES, "Permission denied")
        else:
            self.locks[byte] = descriptor


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Msvcrt:
    msvcrt = Msvcrt()
    monkeypatch.setattr(_lock, "fcntl", None)
    monkeypatch.setattr(_lock, "_module", {"msvcrt": msvcrt}.__getitem__)
    monkeypatch.setattr(_lock, "_HAS_FLOCK", False)
    return msvcrt


def test_on_windows_a_lock_keeps_others_out_until_it_is_free(tmp_path: Path, windows: Msvcrt) -> None:
    descriptors = [os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2)]
    first, second = (byte_lock(descriptor, 0) for descriptor in descriptors)
    assert type(first) is WindowsByte
    assert attempt(first)
    assert not attempt(second)
    assert second.is_elsewhere()
    second.free()  # to free what one has not is nothing
    assert second.is_elsewhere()
    first.free()
    assert not second.is_elsewhere()
    assert attempt(second)
    assert len(windows.locks) == 1
    for descriptor in descriptors:
        os.close(descriptor)


def test_on_windows_another_error_than_held_is_raised(
    tmp_path: Path, windows: Msvcrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    lock = byte_lock(descriptor, 0)

    def fails(*_arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(windows, "locking", fails)
    for call in (lambda: attempt(lock), lock.free, lock.is_elsewhere):
        with pytest.raises(OSError, match="Input/output"):
            call()
    os.close(descriptor)


def test_on_windows_owners_live_by_bytes_of_31_bits(tmp_path: Path, windows: Msvcrt) -> None:
    descriptors = [os.open(tmp_path / "alive", os.O_RDWR | os.O_CREAT) for _ in range(2)]
    mine, theirs = map(Alive, descriptors)
    owner = (1 << 62) - 12345
    assert mine.take(owner)
    assert mine.lives(owner)
    assert theirs.lives(owner)
    assert not theirs.take(owner)
    assert theirs.lives(owner % 0x7FFFFFFF), "a dead one on the same byte counts as living"
    mine.give(owner)
    assert not theirs.lives(owner)
    assert not windows.locks
    for descriptor in descriptors:
        os.close(descriptor)


def test_on_windows_a_connection_works(path: Path, windows: Msvcrt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_file, "fcntl", None)
    monkeypatch.setattr(_file, "MOUNTS", str(path.parent / "none"))
    connection = opened(path)
    assert connection.run(30, True, add) == 1
    assert connection.alive.lives(connection.owner)
    assert len(windows.locks) == 1  # the owner's byte
    foreign = os.open(f"{path}.lock", os.O_RDWR)
    windows.locking(foreign, windows.LK_NBLCK, 1)
    with pytest.raises(BudgetUnavailable, match="another process has the file lock"):
        connection.run(SHORT, True, add)
    assert connection.look(SHORT, count) == 1
    windows.locking(foreign, windows.LK_UNLCK, 1)
    os.close(foreign)
    assert connection.run(30, True, add) == 2
    connection.let_go()


def test_without_locks_that_belong_to_an_open_file_ordinary_ones_are_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lock, "_HAS_FLOCK", False)
    connection = opened(path)
    assert connection.run(30, True, add) == 1
    in_child(lambda: connection.run(30, True, add))
    with other(
        "take, free = (lambda f: (f.take, f.free))(opened(path)._file); take(); said('has'); wait()", path
    ) as process:
        process.hears("has")
        with pytest.raises(BudgetUnavailable, match="another process has the file lock"):
            connection.run(SHORT, True, add)
    assert connection.run(30, True, add) == 3
