"""Shell completion: what a shell is told is what the parsers say, and what follows the program is the program's."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from token_budget.cli import COMMANDS, COMPLETE, _parser, _run_completion, main
from token_budget.cli._run_completion import ASKED, SHELLS, answer, programs

pytest.importorskip("click")


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let there be two programs, a file that is none, and a folder of the path that is not there."""
    for name in ("claude", "clang", "class.txt"):
        (tmp_path / name).touch(0o755 if "." not in name else 0o644)
    monkeypatch.setenv("PATH", f"{tmp_path / 'nowhere'}{os.pathsep}{tmp_path}")


def asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str, shell: str = "bash"
) -> list[str]:
    """Return the lines that a shell is told to complete the last of the words."""
    monkeypatch.setenv("COMP_WORDS", shlex.join(["token-budget", *words]))
    monkeypatch.setenv("COMP_CWORD", words[-1] if shell == "fish" else str(len(words)))
    assert answer(_parser(), f"{shell}_complete") == 0
    return [line for line in capsys.readouterr().out.splitlines() if line]


def test_commands_are_completed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(asked(capsys, monkeypatch, "")) == sorted(f"plain,{command}" for command in COMMANDS)
    assert asked(capsys, monkeypatch, "ru") == ["plain,run"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_is_completed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    parsers = next(action.choices for action in _parser()._actions if action.dest == "command")
    assert isinstance(parsers, dict)
    options = {f"plain,{one}" for action in parsers[command]._actions for one in action.option_strings if one[1] == "-"}
    assert set(asked(capsys, monkeypatch, command, "--")) == options


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "--progress", ""], ["auto", "line", "rich", "plain", "off"]),
        (["run", "--cap-output", "f"], ["fit"]),
        (["run", "--hold-keys", "--pr"], ["--price", "--progress"]),
        (["completion", ""], list(SHELLS)),
        (["run", "--usd", "5", "cla"], ["clang", "claude"]),
        (["run", "--usd", "5", "--", "claude"], ["claude"]),
        (["run", "--usd", "5", "claude", "--"], []),
        (["run", "--usd", "5", "claude", "-"], []),
        (["run", "--usd", ""], []),
    ],
)
def test_values_and_programs_are_completed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], told: list[str]
) -> None:
    assert asked(capsys, monkeypatch, *words) == [f"plain,{one}" for one in told]


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--report", "r"],
        ["run", "--usd", "5", "claude", "a.t"],
        ["run", "--usd", "5", "./bin/x"],
        ["run", "--usd", "5", "claude", "--progress", ""],  # the program's own option
    ],
)
def test_files_are_left_to_the_shell(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    assert asked(capsys, monkeypatch, *words) == [f"file,{words[-1]}"]


def test_zsh_and_fish_are_told_the_help_as_well(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked(capsys, monkeypatch, "run", "--us", shell="zsh")[:3] == ["plain", "--usd", "the most dollars"]
    assert asked(capsys, monkeypatch, "run", "--usd", shell="fish")[0] == "plain,--usd\tthe most dollars"
    assert "plain,run\trun a program with a budget" in asked(capsys, monkeypatch, "ru", shell="fish")[0]


@pytest.mark.parametrize("instruction", ["bash_source", "tcsh_complete", "", "bash"])
def test_what_no_shell_asks_is_an_error(capsys: pytest.CaptureFixture[str], instruction: str) -> None:
    assert answer(_parser(), instruction) == 1
    assert capsys.readouterr().out == ""


def test_a_shell_asks_by_a_variable(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ASKED == COMPLETE
    monkeypatch.setenv(COMPLETE, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "token-budget compl")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert main() == 0
    assert capsys.readouterr().out == "plain,completion\n"


def test_an_empty_part_of_the_path_is_the_folder_that_one_is_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    assert programs("cl") == ["clang", "claude"]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_asks_by_that_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    monkeypatch.setenv("PATH", os.defpath)  # click asks bash for its version
    assert main(["completion", shell]) == 0
    assert f"{ASKED}={shell}_complete" in capsys.readouterr().out


def test_without_click_the_script_is_not_to_be_had(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "click.shell_completion", None)
    with pytest.raises(SystemExit) as exit_:
        main(["completion", "bash"])
    assert exit_.value.code == 2
    assert _run_completion.INSTALL in capsys.readouterr().err
    assert answer(_parser(), "bash_complete") == 1


ASK = """
source <(token-budget completion bash)
complete -p token-budget
for last in "$@"; do
    COMP_WORDS=(token-budget run --usd 5 "$last"); COMP_CWORD=4; COMPREPLY=()
    _token_budget_completion token-budget
    echo "${COMPREPLY[*]}"
done
"""


@pytest.mark.skipif(shutil.which("bash", path=os.defpath) is None, reason="there is no bash")
def test_bash_completes_by_its_script(tmp_path: Path) -> None:
    program = tmp_path / "token-budget"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m token_budget "$@"\n')
    program.chmod(0o755)
    bash = str(shutil.which("bash", path=os.defpath))
    environ = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.defpath}"}
    command = [bash, "--norc", "-c", ASK, "bash", "--re", "clau"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    how, *told = done.stdout.splitlines()
    assert how.endswith("-F _token_budget_completion token-budget")
    assert told == ["--repeats --require-metered --report", "claude"]
