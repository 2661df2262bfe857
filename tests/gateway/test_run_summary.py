"""What a run says when it has ended: its summary, and its report."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from runs import a_status
from token_budget import BudgetPool
from token_budget.cli._run_summary import ReportFile, report, summary_line
from token_budget.cli._run_text import dollars

POSIX = hasattr(os, "geteuid")


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (0, "$0.00"),
        (1, "$0.000000001"),
        (999_999, "$0.000999999"),
        (1_000_000, "$0.0010"),
        (10_000_000, "$0.01"),
        (1_234_449_999, "$1.2344"),
        (1_234_450_000, "$1.2345"),
        (1_999_999_999, "$2.0000"),
        (1_234_560_000_000, "$1,234.56"),
        (10**18 + 1, "$1,000,000,000.0000"),
    ],
)
def test_dollars_are_as_exact_as_matters(nanos: int, text: str) -> None:
    assert dollars(nanos) == text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "$0.00 of $5.00 and 0 tokens spent, 0 calls, 41.2 s"),
        (
            {"usd_nanos": 421_300_000, "tokens": 12_345, "calls": 1, "usd_cap_nanos": None, "seconds": 3_661.0},
            "$0.4213 and 12,345 tokens spent, 1 call, 3,661 s",
        ),
        (
            {"refused": 3, "held_usd_nanos": 10**7, "held_tokens": 400, "calls": 2_000},
            "$0.00 of $5.00 and 0 tokens spent, 2,000 calls, 3 refused, $0.01 and 400 tokens still held, 41.2 s",
        ),
        ({"held_tokens": 1}, "$0.00 of $5.00 and 0 tokens spent, 0 calls, $0.00 and 1 token still held, 41.2 s"),
        ({"held_usd_nanos": 10**7}, "$0.00 of $5.00 and 0 tokens spent, 0 calls, $0.01 still held, 41.2 s"),
        (
            {"tokens": 9, "token_cap": 9, "usd_nanos": 5 * 10**9},
            "$5.00 of $5.00 and 9 tokens of 9 tokens spent, 0 calls, 41.2 s; cap reached: 5 USD and 9 tokens",
        ),
        (
            {"tokens": 999, "token_cap": 1_000, "usd_nanos": 5 * 10**9 - 1, "cap_reached": "usd of 'n\x1b[2J'"},
            "$5.0000 of $5.00 and 999 tokens of 1,000 tokens spent, 0 calls, 41.2 s; cap reached: usd of 'n?[2J'",
        ),
        (
            {"tokens": 999, "token_cap": 1_000, "usd_nanos": 5 * 10**9 - 1},
            "$5.0000 of $5.00 and 999 tokens of 1,000 tokens spent, 0 calls, 41.2 s",
        ),
    ],
)
def test_the_summary_is_one_line(changes: dict[str, Any], text: str) -> None:
    assert summary_line(a_status(**changes)) == f"token-budget: {text}"


def test_the_report_has_the_numbers_of_this_run_and_the_whole_pool() -> None:
    pool = BudgetPool(usd_cap=50, name="nightly").snapshot().to_dict()
    status = a_status(
        usd_nanos=1_500_000_001,
        tokens=70,
        held_usd_nanos=2 * 10**9,
        held_tokens=80,
        calls=3,
        refused=1,
        by_model={"gpt-5": {"usd_nanos": 1}},
        pool=pool,
    )
    assert report(status, 65) == {
        "spent": {"usd": 1.500000001, "usd_nanos": 1_500_000_001, "tokens": 70},
        "held": {"usd": 2.0, "usd_nanos": 2 * 10**9, "tokens": 80},
        "calls": 3,
        "refused": 1,
        "by_model": {"gpt-5": {"usd_nanos": 1}},
        "seconds": 41.25,
        "exit_code": 65,
        "pool": pool,
    }


# ---------------------------------------------------------------- its file


@pytest.mark.skipif(not POSIX, reason="Windows has no modes")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_report_has_the_rights_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "out.json"
    before = os.umask(umask)
    try:
        ReportFile(str(path)).write({"calls": 3})
    finally:
        os.umask(before)
    assert json.loads(path.read_text(encoding="utf-8")) == {"calls": 3}
    assert path.read_text(encoding="utf-8").endswith("}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert list(tmp_path.iterdir()) == [path]


def test_before_the_end_the_report_of_before_is_untouched(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("before", encoding="utf-8")
    file = ReportFile(str(path))
    assert path.read_text(encoding="utf-8") == "before"
    assert list(tmp_path.iterdir()) == [path]
    file.write({})
    assert path.read_text(encoding="utf-8") == "{}\n"
    assert not list(tmp_path.glob(".*"))


def test_looking_for_the_place_leaves_nothing_there(tmp_path: Path) -> None:
    ReportFile(str(tmp_path / "out.json"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not POSIX, reason="Windows has other rights")
@pytest.mark.parametrize("place", ["no/folder/out.json", "folder", "", "file/out.json"])
def test_a_place_that_cannot_be_written_is_found_before(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        ReportFile(place)


@pytest.mark.skipif(not POSIX, reason="Windows has other rights")
def test_a_folder_that_may_not_be_written_is_found_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:  # root may write everywhere
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError):
        ReportFile(str(tmp_path / "out.json"))


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_report_that_cannot_be_written_leaves_the_one_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "out.json"
    path.write_text("before", encoding="utf-8")
    file = ReportFile(str(path))
    owner: Any = {"fsync": os, "replace": Path}[fails]
    monkeypatch.setattr(owner, fails, full)
    with pytest.raises(OSError, match="No space left"):
        file.write({"calls": 1})
    assert path.read_text(encoding="utf-8") == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.touch()
    link.symlink_to(real)
    ReportFile(str(link)).write({"calls": 1})
    assert link.is_symlink()
    assert json.loads(real.read_text(encoding="utf-8")) == {"calls": 1}


def test_the_longest_name_has_room(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    ReportFile(str(path)).write({})
    assert path.exists()


@pytest.mark.skipif(not POSIX, reason="Windows has no such pipes")
def test_what_is_no_regular_file_is_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        ReportFile(str(pipe)).write({"calls": 2})
        assert json.loads(os.read(reader, 1_000)) == {"calls": 2}
    finally:
        os.close(reader)
    assert list(tmp_path.iterdir()) == [pipe]
    ReportFile(os.devnull).write({})
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="cannot be written"):
        ReportFile(str(pipe))
