"""The page of the gateway: its commands run as written, and its tables are complete."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import token_budget
from capped import HERE
from runs import a_status
from token_budget.cli import _parser, _run_options
from token_budget.cli._provider import Provider
from token_budget.cli._run_summary import report

PAGE = (Path(token_budget.__file__).parent / "gateway" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


def section(title: str) -> str:
    """Return the text below a heading."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def stand_in(folder: Path, name: str, program: str) -> None:
    """Put a program of that name into a folder."""
    path = folder / name
    lines = f"#!{sys.executable} -S\nimport sys\nsys.path.insert(0, {HERE!r})\nfrom caller import call\n"
    path.write_text(f"{lines}{program}\n")
    path.chmod(0o755)


CLAUDE = (
    "assert sys.argv[1] == '-p'\n"
    "print(call(sys.argv[2], model='claude-haiku-4-5', variable='ANTHROPIC_BASE_URL', path='/v1/messages')[0])"
)
AGENT = f"import sys\nsys.path.insert(0, {HERE!r})\nfrom caller import call\nprint(call(model='gpt-5-mini')[0])\n"


@pytest.mark.skipif(os.name != "posix", reason="its commands are those of a POSIX shell")
def test_the_commands_of_the_page_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("aiohttp", "psutil", "truststore", "genai_prices"):
        pytest.importorskip(library)
    folder = tmp_path / "bin"
    folder.mkdir()
    stand_in(folder, "claude", CLAUDE)
    stand_in(folder, "aider", "print(call(sys.argv[2], model='gpt-5-mini', variable='OPENAI_API_BASE')[0])")
    (tmp_path / "agent.py").write_text(AGENT)
    for name, module in (("token-budget", "-m token_budget "), ("python", "")):
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module}"$@"\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with Provider() as provider:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{provider.url}/v1")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", provider.url)
        for number, command in enumerate(COMMANDS):
            done = subprocess.run(
                ["sh", "-c", command], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, (command, done.stderr)
            if " run " not in command:
                assert "team" in done.stdout
                continue
            assert done.stdout == "200\n", (command, done.stderr)
            assert re.fullmatch(r"token-budget: \$\S+( of \S+)? and \S+ tokens spent, 1 call, \S+ s\n", done.stderr), (
                command
            )
            assert len(provider.bills) == 1 + sum(" run " in before for before in COMMANDS[:number])
    assert (tmp_path / "spent.json").exists()


def test_every_block_of_the_page_is_of_commands_that_exist() -> None:
    assert len(COMMANDS) >= 8
    assert all(command.startswith(("token-budget run ", "token-budget status ")) for command in COMMANDS)
    assert "```python" not in PAGE


def test_the_table_of_options_has_every_option_with_its_choices_and_defaults() -> None:
    table = section("Options")
    parser: Any = next(action for action in _parser("run")._actions if action.dest == "command").choices["run"]  # type: ignore[index]
    for action in parser._actions:
        for option in action.option_strings:
            if option in {"-h", "--help"}:
                continue
            assert f"`{option}" in table
            if action.choices:
                assert f"{option} " + "\\|".join(action.choices) in table
    assert f"--wait {parser.get_default('wait'):g}" in table
    assert f"--default-output {parser.get_default('default_output')}" in table


def test_the_table_of_variables_is_what_a_program_gets() -> None:
    from token_budget.gateway._families import FAMILIES

    table = section("What the program gets")
    for family in FAMILIES:
        row = next(line for line in table.splitlines() if re.match(rf"\| .*\b{family.name}\b", line))
        assert all(f"`{variable}`" in row for variable, _ in family.variables), family.name
    known = {variable for family in FAMILIES for variable, _ in family.variables}
    named = set(re.findall(r"`([A-Z_]+)`", table)) - {"TOKEN_BUDGET_GATEWAY", "NO_PROXY", "MY_NAME_BASE_URL"}
    assert named == known


def test_the_table_of_exit_statuses_is_that_of_the_help() -> None:
    on_the_page = re.findall(r"^\| (\d+) \|", section("Exit statuses"), re.MULTILINE)
    in_the_help = re.findall(r"^  (\d+) ", _run_options._EPILOG, re.MULTILINE)
    assert on_the_page == in_the_help


def test_the_keys_of_the_report_are_on_the_page() -> None:
    row = next(line for line in section("Options").splitlines() if "--report FILE" in line)
    assert re.findall(r"`(\w+)`", row) == list(report(a_status(), 0))


def test_the_limits_on_the_page_are_those_of_the_gateway() -> None:
    pytest.importorskip("aiohttp")
    from token_budget.gateway._limits import Limits

    limits = Limits()
    told = (
        f"Bodies up to {limits.body >> 20} MiB, headers up to {limits.header >> 10} KiB, {limits.body_seconds} seconds"
    )
    assert told in section("Security")
    assert f"{limits.connections} connections" in section("Security")


def test_the_page_stays_short() -> None:
    assert len(PAGE.splitlines()) <= 200
