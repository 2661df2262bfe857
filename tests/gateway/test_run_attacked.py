"""What an attack on `token-budget run` found, and what holds since: no fault of ours reaches the program."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from capped import Runner
from token_budget.cli import INTERRUPTED, _run_child, _run_files, _run_notes, _run_terminal, main
from token_budget.cli._provider import Provider
from token_budget.cli._run_child import inherited
from token_budget.cli._run_completion import programs
from token_budget.cli._run_files import publish, running
from token_budget.cli._run_notes import Notes, say
from token_budget.cli._run_summary import ReportFile
from token_budget.cli._run_tree import Ended, Tree

for _library in ("aiohttp", "psutil", "truststore"):
    pytest.importorskip(_library)

POSIX = sys.platform != "win32"
pytestmark = pytest.mark.skipif(not POSIX, reason="what was attacked is of Unix")
SAYS_HI = ["sh", "-c", "echo hi; exit 3"]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def runner(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Runner]:
    with Provider() as provider:
        yield Runner(provider, tmp_path, capfd)
        assert provider.errors == []


# ---------------------------------------------------------------- the program is not left alone


def _no_temporary_folder() -> str:
    raise FileNotFoundError(2, "No usable temporary directory found")


def test_without_any_folder_for_temporary_files_a_run_goes_on_to_its_end(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(_run_files, "tempfile", SimpleNamespace(gettempdir=_no_temporary_folder))
    assert running() == []
    ran = runner.here("--usd", "1", program=SAYS_HI)
    assert (ran.code, ran.out, ran.report["exit_code"]) == (3, "hi\n", 3)
    assert "temporary" not in ran.err


def test_a_fault_as_the_runs_file_is_written_leaves_signals_as_they_were(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("a fault")

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
    monkeypatch.setattr(_run_files, "publish", fails)
    with pytest.raises(RuntimeError, match="a fault"):
        runner.here("--usd", "1", program=SAYS_HI)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)] == before


def test_on_a_full_disk_no_part_of_the_runs_file_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_run_files, "tempfile", SimpleNamespace(gettempdir=lambda: str(tmp_path / "none")))
    monkeypatch.setattr(os, "replace", full)
    assert publish("http://127.0.0.1:1/s3cr3t", "x") is None
    assert list((tmp_path / "token-budget").iterdir()) == []


SPOIL = """
from pathlib import Path
print(call()[0])
for file in Path().glob("b.db*"):
    if not file.name.endswith(".lock"):
        file.write_bytes(b"no database " * 999)
sys.exit(5)
"""


def test_a_store_that_is_spoilt_meanwhile_keeps_nobody_from_the_programs_exit_status(runner: Runner) -> None:
    pytest.importorskip("sqlite3")
    assert sqlite3.sqlite_version
    ran = runner.here("--pool", "sqlite:b.db#team", "--usd", "1", program=SPOIL)
    assert (ran.code, ran.out, ran.report["exit_code"]) == (5, "200\n", 5)
    assert "token-budget: warning: " in ran.err
    assert "it is no SQLite database" in ran.err


# ---------------------------------------------------------------- what it says


def test_a_standard_error_that_nobody_empties_holds_up_neither_the_end_nor_the_report(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    report = tmp_path / "report.json"
    words = ["run", "--usd", "1", "--progress", "off", "--report", str(report), "--", "sh", "-c", "exit 3"]
    with subprocess.Popen([sys.executable, "-m", "token_budget", *words], stderr=writing) as process:
        try:
            assert process.wait(60) == 3
        finally:
            process.kill()
            os.close(reading)
            os.close(writing)
    assert json.loads(report.read_text())["exit_code"] == 3


def test_what_is_said_waits_for_a_full_stream_and_stops_no_background_job(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[object, str, float]] = []
    monkeypatch.setattr(_run_terminal, "say", lambda *words: heard.append(words))
    say("done")
    assert heard == [(sys.stderr, "token-budget: done", _run_notes.PATIENCE)]


def test_a_name_of_a_program_moves_no_cursor(runner: Runner) -> None:
    ran = runner.here("--usd", "1", program=["no\x1b[31mred\x07"])
    assert ran.code == 127
    assert ran.err == "token-budget: error: no?[31mred?: No such file or directory\n"


def test_lines_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    say("one\ntwo\x1b[2J")
    assert capsys.readouterr().err == "token-budget: one\ntwo?[2J\n"


def test_what_is_logged_after_the_programs_end_is_told_as_carefully_as_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import logging

    notes = Notes()
    notes.open()
    try:
        notes.hush()
        notes.tell()
        logging.getLogger("aiohttp.server").warning("Error handling %s", "s3cr3t")
        assert capsys.readouterr().err == "token-budget: warning: aiohttp.server: Error handling %s\n"
    finally:
        notes.close()


@pytest.mark.parametrize("cap", ["--usd", "--usd=5", "--tokens", "--pool=sqlite:b.db#x"])
def test_a_cap_behind_the_program_is_pointed_out(runner: Runner, cap: str) -> None:
    told = runner.refused(program=["claude", "-p", "hello", cap, "5"])
    assert f"{cap.partition('=')[0]} stands behind the program" in told


def test_a_program_without_a_name_is_none(runner: Runner) -> None:
    assert "which program?" in runner.refused("--usd", "1", program=[""])


def test_commas_in_an_amount_are_named(runner: Runner) -> None:
    assert "without commas, not '1,000'" in runner.refused("--usd", "1,000", program=SAYS_HI)


# ---------------------------------------------------------------- the report


def test_a_report_goes_into_a_pipe_that_is_open() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream:
        assert main(["run", "--usd", "1", "--report", f"/dev/fd/{writing}", "--", *SAYS_HI]) == 3
        os.close(writing)
        assert json.loads(stream.read())["exit_code"] == 3


def test_a_report_on_standard_output_keeps_what_the_program_wrote_there(tmp_path: Path) -> None:
    words = ["run", "--usd", "1", "--report", "/dev/stdout", "--", *SAYS_HI]
    with (tmp_path / "out.txt").open("wb") as file:
        subprocess.run(
            [sys.executable, "-m", "token_budget", *words], stdout=file, stderr=subprocess.DEVNULL, check=False
        )
    first, _, report = (tmp_path / "out.txt").read_text().partition("\n")
    assert first == "hi"
    assert json.loads(report)["exit_code"] == 3


def test_a_report_goes_to_a_descriptor(tmp_path: Path) -> None:
    with (tmp_path / "out.txt").open("w+b") as file:
        ReportFile(f"/dev/fd/{file.fileno()}").write({"calls": 2})
        file.seek(0)
        assert json.loads(file.read()) == {"calls": 2}
    with pytest.raises(OSError, match="Bad file descriptor"):  # closed by now
        ReportFile("/dev/fd/999999")


def test_a_descriptor_for_reading_takes_no_report(tmp_path: Path) -> None:
    (tmp_path / "in.txt").touch()
    with (tmp_path / "in.txt").open("rb") as file, pytest.raises(OSError, match="Bad file descriptor"):
        ReportFile(f"/dev/fd/{file.fileno()}")


def test_standard_streams_are_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    from token_budget.cli._run_summary import _descriptor_of

    assert [_descriptor_of(f"/dev/{name}") for name in ("stdout", "stderr", "fd/63", "null")] == [1, 2, 63, None]
    monkeypatch.setattr(os, "name", "nt")
    found = _descriptor_of("/dev/stdout")
    monkeypatch.undo()
    assert found is None


# ---------------------------------------------------------------- what the program gets


def test_without_a_standard_output_the_program_runs_all_the_same(tmp_path: Path) -> None:
    words = ["run", "--usd", "1", "--report", "report.json", "--", "sh", "-c", "touch ran; exit 3"]
    script = f'exec "{sys.executable}" -m token_budget "$@" >&- 2>&- <&-'
    assert subprocess.run(["sh", "-c", script, "sh", *words], check=False).returncode == 3
    assert (tmp_path / "ran").exists()
    assert json.loads((tmp_path / "report.json").read_text())["exit_code"] == 3


def test_without_a_standard_output_run_is_the_only_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["run", "--usd", "1", "--progress", "off", "--", "sh", "-c", "exit 3"]) == 3
    capfd.readouterr()
    assert main(["completion", "bash"]) == 1
    assert "it is closed" in capfd.readouterr().err


def test_a_locale_that_python_set_for_itself_is_not_passed_on(tmp_path: Path) -> None:
    first = tmp_path / "environ"
    first.write_bytes(b"HOME=/x\0LANG=C\0")
    now = {"HOME": "/x", "LANG": "C", "LC_CTYPE": "C.UTF-8"}
    assert inherited(now, first) == {"HOME": "/x", "LANG": "C"}
    assert inherited({**now, "LC_CTYPE": "de_DE"}, first) == {**now, "LC_CTYPE": "de_DE"}
    first.write_bytes(b"HOME=/x\0LC_CTYPE=C.UTF-8\0")
    assert inherited(now, first) == now
    assert inherited(now, tmp_path / "none") == now


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process began with")
def test_in_the_locale_c_the_program_has_that_locale(tmp_path: Path) -> None:
    words = ["run", "--usd", "1", "--progress", "off", "--", "/usr/bin/env"]
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    ran = subprocess.run(
        [sys.executable, "-m", "token_budget", *words], env=variables, capture_output=True, check=True, timeout=60
    )
    assert b"OPENAI_BASE_URL=" in ran.stdout
    assert b"LC_CTYPE=" not in ran.stdout


# ---------------------------------------------------------------- Ctrl-C before there is a program


def test_ctrl_c_before_the_start_ends_us_as_it_would_have_ended_the_program(tmp_path: Path) -> None:
    """The store's address is a pipe, at which the opening of the budget waits."""
    program = (
        "import os, signal, sys\n"
        "from token_budget.cli import main, run\n"
        "run.checked = lambda options: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(main(['run', '--usd', '1', '--', 'touch', 'ran']))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], check=False, timeout=60, capture_output=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (-signal.SIGINT, b"", b"")
    assert not (tmp_path / "ran").exists()


def test_ctrl_c_in_other_commands_is_an_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    from token_budget.cli import run, store_status

    asked: list[int] = []

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(_run_child, "end_by_interrupt", lambda: asked.append(1))
    monkeypatch.setattr(run, "run", interrupted)
    monkeypatch.setattr(store_status, "run", interrupted)
    assert (main(["status", "run"]), asked) == (INTERRUPTED, [])
    assert (main(["run", "--usd", "1", "--", "x"]), asked) == (INTERRUPTED, [1])


def test_windows_has_no_such_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_run_child, "WINDOWS", True)
    _run_child.end_by_interrupt()


# ---------------------------------------------------------------- completion


def test_a_program_whose_name_a_shell_would_run_is_not_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tb-good", "tb$(touch x)", "tb;touch x", "tb x", "tb*", "tb\nplain,x", "tb`x`", "tb'"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert programs("tb") == ["tb-good"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux adopts")
def test_a_program_that_has_just_ended_makes_nobody_look_at_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_child(*_: object) -> None:
        raise ChildProcessError

    tree = Tree()
    monkeypatch.setattr(tree, "_reap_others", lambda: pytest.fail("it looked"))
    monkeypatch.setattr(os, "waitid", no_child)
    tree.open()
    tree.started(77)
    monkeypatch.setattr(os, "waitid", lambda *_: SimpleNamespace(si_pid=77))
    tree.reap()  # the program has ended, and is about to be reaped
    monkeypatch.setattr(os, "waitid", no_child)
    assert tree.end() == Ended(0, ())
    tree.close()
