"""Files that cannot keep a budget: each is refused with what to do, and left as it is, byte for byte."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from sqlite_files import (
    FORKING,
    LINUX,
    NAMES,
    add,
    as_nobody,
    contents,
    folder_of_everybody,
    opened,
    other,
    path_in_folder,
    with_mounts,
)
from token_budget.stores._errors import StoreError
from token_budget.stores.sqlite import _file, _schema
from token_budget.stores.sqlite._connection import Connection

pytestmark = FORKING
path, open_folder = pytest.fixture(path_in_folder), pytest.fixture(folder_of_everybody)


# ---------------------------------------------------------------- files that are not ours


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE theirs (a)")
    database.close()


def with_version(path: Path, version: int) -> None:
    opened(path).let_go()
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version = {version}")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    for name in NAMES[1:]:
        Path(f"{path}{name}").unlink(missing_ok=True)


def corrupted(path: Path) -> None:
    with_version(path, _schema.VERSION)
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"\xa5" * (len(whole) - 100))


def cut(path: Path) -> None:
    with_version(path, _schema.VERSION)
    path.write_bytes(path.read_bytes()[:700])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: path.write_text("this is a text\n" * 1000), "no SQLite database"),
        (lambda path: path.write_bytes(b"\0"), "no SQLite database|another program's"),
        (foreign, "another program's database"),
        (lambda path: with_version(path, 99), r"newer version .*format 99.*upgrade"),
        (lambda path: with_version(path, 0), "has format 0"),
        (corrupted, "corrupt|no SQLite database"),
        (cut, "corrupt|no SQLite database|another program's"),
    ],
)
def test_a_file_that_is_no_budget_of_this_version_is_refused_and_left_as_it_is(
    path: Path, make: Any, text: str
) -> None:
    make(path)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(StoreError, match=text):
            Connection.of(path, timeout=30)
    assert path.read_bytes() == before
    assert path.name not in {name for name in contents(path.parent) if name.endswith((".unfinished", "-journal"))}


def test_nothing_is_made_beside_a_file_of_another_program(path: Path) -> None:
    foreign(path)
    before = contents(path.parent)
    with pytest.raises(StoreError):
        Connection.of(path, timeout=30)
    assert contents(path.parent) == before


def test_a_database_that_its_program_has_open_is_refused_without_a_trace(path: Path) -> None:
    foreign(path)
    theirs = sqlite3.connect(path, isolation_level=None)
    theirs.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="another program's"):
        Connection.of(path, timeout=30)
    # To open and close the file by hand would have dropped SQLite's locks in this process.
    with other("sqlite3.connect(path, timeout=0).execute('BEGIN IMMEDIATE')", path) as process:
        _out, errors = process.process.communicate(timeout=60)
    assert "database is locked" in errors
    theirs.close()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: os.mkfifo(path), "no regular file"),
        (lambda path: path.symlink_to("/dev/null"), "no regular file"),
        (lambda path: path.symlink_to(path), "circle|no such|not there"),
        (lambda path: (path.parent / "real").write_text("") or path.symlink_to("real/more"), "no folder"),
    ],
)
def test_what_is_no_file_is_refused(path: Path, make: Any, text: str) -> None:
    make(path)
    with pytest.raises(StoreError, match=text):
        Connection.of(path, timeout=30)


def test_a_socket_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("budget.db")
        with pytest.raises(StoreError, match="no regular file"):
            Connection.of(path, timeout=30)


def test_a_name_that_is_too_long_is_refused(path: Path) -> None:
    with pytest.raises(StoreError, match="too long"):
        Connection.of(path.parent / ("x" * 300), timeout=30)


def test_a_folder_that_does_not_exist_is_not_made(path: Path) -> None:
    with pytest.raises(StoreError, match="there is no folder"):
        Connection.of(path.parent / "none" / "budget.db", timeout=30)
    assert not contents(path.parent)


def test_a_sqlite_that_is_too_old_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 22, 0))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.22.0")
    with pytest.raises(StoreError, match=r"3\.22\.0 is too old: .* 3\.24"):
        Connection.of(path, timeout=30)
    assert not contents(path.parent)


def test_a_file_with_two_names_is_refused(path: Path) -> None:
    opened(path).let_go()
    (path.parent / "second.db").hardlink_to(path)
    with pytest.raises(StoreError, match="hard links"):
        Connection.of(path, timeout=30)


def test_a_link_in_the_place_of_a_file_of_ours_is_not_followed(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "somebody's"
    target.write_text("untouched")
    target.chmod(0o644)
    Path(f"{path}.lock").symlink_to(target)
    with pytest.raises(StoreError, match=r"symbolic link.*\.lock"):
        Connection.of(path, timeout=30)
    assert target.read_text() == "untouched"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert not path.exists()


def test_a_folder_in_the_place_of_a_file_of_ours_is_refused(path: Path) -> None:
    Path(f"{path}.lock").mkdir()
    with pytest.raises(StoreError, match=r"a folder.*\.lock"):
        Connection.of(path, timeout=30)


# ---------------------------------------------------------------- rights


@pytest.mark.parametrize("mode", [0o400, 0o000])
def test_without_rights_to_write_a_file_is_refused_and_left_as_it_is(open_folder: Path, mode: int) -> None:
    path = open_folder / "budget.db"
    as_nobody(lambda: opened(path).let_go())
    before = path.read_bytes()
    path.chmod(mode)

    def refused() -> None:
        with pytest.raises(StoreError, match="read-only for this process"):
            Connection.of(path, timeout=30)

    as_nobody(refused)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", [".lock", ".alive", "-wal", "-shm"])
def test_without_rights_to_a_file_beside_it_a_budget_is_refused(open_folder: Path, name: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    path = open_folder / "budget.db"
    as_nobody(lambda: opened(path).let_go())
    before = path.read_bytes()
    os.chown(f"{path}{name}", 0, 0)

    def refused() -> None:
        with pytest.raises(StoreError, match=f"no rights.*{name}"):
            Connection.of(path, timeout=30)

    as_nobody(refused)
    assert path.read_bytes() == before


def test_a_folder_that_we_may_not_write_to_is_refused(open_folder: Path) -> None:
    (open_folder / "inner").mkdir(mode=0o555)
    (open_folder / "inner").chmod(0o555)

    def refused() -> None:
        with pytest.raises(StoreError, match="no rights to make a file"):
            Connection.of(open_folder / "inner" / "budget.db", timeout=30)

    as_nobody(refused)
    assert not contents(open_folder / "inner")


def test_a_folder_that_we_may_not_look_into_is_refused(open_folder: Path) -> None:
    (open_folder / "inner").mkdir()
    (open_folder / "inner").chmod(0o000)

    def refused() -> None:
        with pytest.raises(StoreError, match="no rights"):
            Connection.of(open_folder / "inner" / "budget.db", timeout=30)

    as_nobody(refused)


def test_another_user_can_neither_read_nor_open_a_budget(open_folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    path = open_folder / "budget.db"
    opened(path).let_go()

    def kept_out() -> None:
        for name in NAMES:
            with pytest.raises(PermissionError):
                Path(f"{path}{name}").read_bytes()
        with pytest.raises(StoreError, match="read-only for this process|no rights"):
            Connection.of(path, timeout=30)

    as_nobody(kept_out)


@pytest.mark.skipif(not LINUX, reason="needs mounts")
def test_a_read_only_file_system_is_refused(tmp_path: Path) -> None:
    with_mounts(
        """
from token_budget.stores._errors import StoreError
mount("-t", "tmpfs", "none", path)
opened(path + "/budget.db").let_go()
mount("-o", "remount,ro", path)
for name in ("budget.db", "new.db"):
    try:
        Connection.of(path + "/" + name, timeout=30)
    except StoreError as error:
        assert "read-only" in str(error) or "no rights" in str(error), error
    else:
        raise AssertionError("it was opened")
""",
        tmp_path,
    )


# ---------------------------------------------------------------- file systems


LOCAL = "22 1 0:21 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"


@pytest.mark.parametrize(
    "kind",
    ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "lustre", "vboxsf"],
)
def test_a_network_file_system_is_refused_with_a_pointer_to_redis(
    path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(path.parent.resolve()).replace(" ", "\\040")
    mounts = path.parent.parent / "mounts"
    mounts.write_text(
        f"{LOCAL}30 22 0:50 / {folder} rw - {kind} host:/share rw\n31 22 0:51 / {folder}er rw - ext4 x rw\n"
    )
    monkeypatch.setattr(_file, "MOUNTS", str(mounts))
    for create in (True, False):
        with pytest.raises(StoreError, match=rf"network file system \({kind}, mounted at .*RedisBudgetPool"):
            Connection.of(path, timeout=30, create=create)
    assert not contents(path.parent)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "fuseblk", "fuse.encfs", "f2fs"])
def test_a_local_file_system_is_used(path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = path.parent.parent / "mounts"
    mounts.write_text(f"12 1 0:2 / / rw - nfs root rw\n13 12 0:3 / {path.parent.parent.resolve()} rw - {kind} x rw\n")
    monkeypatch.setattr(_file, "MOUNTS", str(mounts))
    assert opened(path).run(30, True, add) == 1


def test_mount_points_are_read_as_the_kernel_writes_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = path.parent.parent / "mounts"
    monkeypatch.setattr(_file, "MOUNTS", str(mounts))
    mounts.write_text(
        LOCAL
        + "30 22 0:50 / /srv/a\\040b\\134c rw master:1 shared:2 - nfs4 host:/x rw\n"
        + "31 22 0:51 / /srv/deep rw - nfs4 x rw\n"
        + "32 31 0:52 / /srv/deep rw - xfs over rw\n"
        + "33 31 0:53 / /srv/deep/er rw - btrfs x rw\n"
        + "a line that no kernel writes\n"
    )
    assert _file.mount_of("/srv/a b\\c/budget.db") == ("/srv/a b\\c", "nfs4")
    assert _file.mount_of("/srv/deep/budget.db") == ("/srv/deep", "xfs")  # the later one covers the earlier
    assert _file.mount_of("/srv/deep/er/budget.db") == ("/srv/deep/er", "btrfs")
    assert _file.mount_of("/srv/deeper/budget.db") == ("/", "ext4")


def test_where_the_system_does_not_tell_its_mounts_the_file_is_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_file, "MOUNTS", str(path.parent / "none"))
    assert opened(path).run(30, True, add) == 1


@pytest.mark.skipif(not LINUX, reason="needs mounts")
def test_the_mounts_of_this_system_are_read(tmp_path: Path) -> None:
    with_mounts(
        """
from token_budget.stores.sqlite import _file
os.mkdir(path + "/a b")
mount("-t", "tmpfs", "none", path + "/a b")
assert _file.mount_of(path + "/a b/budget.db") == (os.path.realpath(path) + "/a b", "tmpfs")
""",
        tmp_path,
    )


@pytest.mark.skipif(not LINUX, reason="needs mounts")
def test_a_file_that_is_mounted_alone_is_refused(tmp_path: Path) -> None:
    with_mounts(
        """
from token_budget.stores._errors import StoreError
opened(path + "/outer.db").let_go()
open(path + "/inner.db", "w").close()
mount("--bind", path + "/outer.db", path + "/inner.db")
try:
    Connection.of(path + "/inner.db", timeout=30)
except StoreError as error:
    assert "Mount its folder" in str(error), error
else:
    raise AssertionError("it was opened")
""",
        tmp_path,
    )
