"""What an attack on the SQLite engine has found: each test plays one way in, and fails without its mend."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from sqlite_files import add, close_all, count, opened, quiet

from token_budget.stores import StoreLost


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "budget.db"


@pytest.fixture(autouse=True)
def _closed() -> object:
    yield
    close_all()


def test_files_that_were_replaced_are_noticed_though_the_folders_time_was_put_back(path: Path) -> None:
    connection = opened(path)
    quiet(connection)
    before = path.parent.stat()
    for name in ("", "-wal"):
        shutil.copy2(f"{path}{name}", f"{path}.copy")
        Path(f"{path}.copy").rename(f"{path}{name}")
    os.utime(path.parent, ns=(before.st_atime_ns, before.st_mtime_ns))  # as tar and rsync do
    with pytest.raises(StoreLost, match="replaced"):
        connection.run(30, True, add)
    with pytest.raises(StoreLost, match="replaced"):
        connection.look(30, count)
