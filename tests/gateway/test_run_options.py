"""The options of `token-budget run`: what is the program's stays the program's, and what is wrong starts nothing."""

from __future__ import annotations

import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from token_budget import Window
from token_budget.cli import COMMANDS, _parser, _run_options, main
from token_budget.cli._run_options import RunOptions, checked, local_zone, period


def parsed(*words: str) -> RunOptions:
    """Return the options of a command line, checked."""
    options: Any = _parser("run").parse_args(["run", *words])
    return checked(options)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return what a command line is refused for; nothing may be written to standard output."""
    with pytest.raises(SystemExit) as exit_:
        main(["run", *words])
    captured = capsys.readouterr()
    assert exit_.value.code == 2
    assert captured.out == ""
    usage, _, error = captured.err.partition("token-budget run: error: ")
    assert usage == "usage: token-budget run [options] [--] COMMAND [ARGUMENT ...]\n"
    return error


# ---------------------------------------------------------------- whose words they are


@pytest.mark.parametrize(
    ("words", "program"),
    [
        (["--usd", "5", "claude", "-p", "hi", "--usd", "7"], ["claude", "-p", "hi", "--usd", "7"]),
        (["--usd", "5", "--", "claude", "-p", "hi"], ["claude", "-p", "hi"]),
        (["--usd", "5", "--", "--odd", "x"], ["--odd", "x"]),
        (["--usd=5", "make", "--", "-j"], ["make", "--", "-j"]),
        (["--usd", "5", "--", "--", "x"], ["--", "x"]),
        (
            ["--usd", "5", "x", "--p", "--pr", "--help", "--version", "-h", "--re=1"],
            "x --p --pr --help --version -h --re=1",
        ),
        (["--usd", "5", "x", "", "a b", "-1", "@file"], ["x", "", "a b", "-1", "@file"]),
    ],
)
def test_what_follows_the_options_is_the_programs_own(words: list[str], program: list[str] | str) -> None:
    options = parsed(*words)
    assert options.program == (program.split() if isinstance(program, str) else program)
    assert options.usd == Decimal(5)


def test_an_option_that_is_not_known_before_the_program_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unrecognized arguments: --usdd" in refused(capsys, "--usdd", "5", "claude")


def test_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--toke" in refused(capsys, "--usd", "1", "--toke", "5", "x")


# ---------------------------------------------------------------- what is refused before anything starts


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "which program?"),
        (["--usd", "5"], "which program?"),
        (["--usd", "5", "--"], "which program?"),
        (["claude"], "there is no cap"),
        (["--user", "ann", "claude"], "there is no cap"),
        (["--usd", "5", "--user-usd", "5", "claude"], "--user NAME"),
        (["--usd", "5", "--user", "ann", "--user-usd", "5", "claude"], "--pool"),
        (["--usd", "-5", "claude"], "number of dollars"),
        (["--usd", "nan", "claude"], "number of dollars"),
        (["--usd", "five", "claude"], "number of dollars"),
        (["--usd", "1e12", "claude"], "number of dollars"),
        (["--tokens", "1.5", "claude"], "whole number"),
        (["--usd", "5", "--wait", "-1", "claude"], "number from 0"),
        (["--usd", "5", "--per", "year", "claude"], "day, week or month"),
        (["--usd", "5", "--per", "every 5x", "claude"], "day, week or month"),
        (["--usd", "5", "--growth", "0.5", "claude"], "such as 0.5,4"),
        (["--usd", "5", "--growth", "0,4", "claude"], "such as 0.5,4"),
        (["--usd", "5", "--growth", "1,1", "claude"], "such as 0.5,4"),
        (["--usd", "5", "--repeats", "0", "claude"], "whole number"),
        (["--usd", "5", "--price", "free", "claude"], "MODEL=IN,OUT"),
        (["--usd", "5", "--price", "m=1", "claude"], "million tokens"),
        (["--usd", "5", "--price", "m=0,0", "claude"], "free"),
        (["--usd", "5", "--price", "m=-1,1", "claude"], "million tokens"),
        (["--usd", "5", "--job", "", "claude"], "name"),
        (["--usd", "5", "--job", "a\nb", "claude"], "name"),
        (["--usd", "5", "--job", "x" * 201, "claude"], "name"),
        (["--usd", "5", "--cap-output", "maybe", "claude"], "maybe"),
        (["--usd", "5", "--on-exceeded", "stop", "claude"], "stop"),
        (["--usd", "5", "--progress", "loud", "claude"], "loud"),
    ],
)
def test_bad_options_are_refused_with_the_reason(
    capsys: pytest.CaptureFixture[str], words: list[str], why: str
) -> None:
    assert why in refused(capsys, *words)


# ---------------------------------------------------------------- values


def test_all_that_is_said_arrives() -> None:
    words = (
        "--usd 0.1 --tokens 100 --wait 1.5 --pool sqlite:b.db#team --job nightly --user ann --user-usd 2.50 --per week "
        "--calls-per-minute 60 --growth 0.5,4 --repeats 5 --upstream a=http://h --upstream b=http://i --price m=0.1,4 "
        "--price n=free --price o=1,2,0.5,3 --default-output 100 --cap-output fit --broken seen --on-exceeded end "
        "--require-metered --allow-unmetered --hold-keys --progress off --report r.json x y"
    )
    options = vars(parsed(*words.split()))
    told = {key: value for key, value in options.items() if key not in {"parser", "run", "command", "per"}}
    assert told == {
        "usd": Decimal("0.1"),
        "tokens": 100,
        "wait": 1.5,
        "pool": "sqlite:b.db#team",
        "job": "nightly",
        "user": "ann",
        "user_usd": Decimal("2.50"),
        "calls_per_minute": 60,
        "growth": (0.5, 4),
        "repeats": 5,
        "upstream": ["a=http://h", "b=http://i"],
        "price": [("m", ("0.1", "4")), ("n", "free"), ("o", ("1", "2", "0.5", "3"))],
        "default_output": 100,
        "cap_output": "fit",
        "broken": "seen",
        "on_exceeded": "end",
        "require_metered": True,
        "allow_unmetered": True,
        "hold_keys": True,
        "progress": "off",
        "report": "r.json",
        "program": ["x", "y"],
    }
    assert str(options["per"]).startswith("weekly ")


def test_what_is_not_said_is_safe() -> None:
    options = parsed("--tokens", "0", "x")
    assert (options.wait, options.cap_output, options.broken, options.on_exceeded) == (20, "no", "full", "continue")
    assert [options.require_metered, options.allow_unmetered, options.hold_keys] == [False, False, False]
    assert (options.progress, options.default_output, options.tokens, options.per) == ("auto", 4096, 0, None)


@pytest.mark.parametrize("model", ["a=b", "house-*", "ft:gpt-4o:me::1"])
def test_a_price_may_be_of_any_name(model: str) -> None:
    assert parsed("--usd", "1", "--price", f"{model}=1,2", "x").price == [(model, ("1", "2"))]


# ---------------------------------------------------------------- periods


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("day", "daily Europe/Berlin"),
        ("Week", "weekly Europe/Berlin"),
        (" month ", "monthly Europe/Berlin"),
        ("daily Europe/Paris at 06:00", "daily Europe/Paris at 06:00"),
        ("every 5h", "every 5h"),
    ],
)
def test_a_period_is_of_the_local_time_zone_unless_it_names_one(
    monkeypatch: pytest.MonkeyPatch, text: str, window: str
) -> None:
    monkeypatch.setenv("TZ", ":Europe/Berlin")
    assert period(text) == window
    assert str(Window.parse(period(text))) == window


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such link")
def test_the_local_time_zone_is_the_systems_link_where_no_variable_says_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TZ", raising=False)
    zones = tmp_path / "zoneinfo" / "Europe"
    zones.mkdir(parents=True)
    (zones / "Berlin").touch()
    link = tmp_path / "localtime"
    link.symlink_to(zones / "Berlin")
    assert _run_options._linked(str(link)) == "Europe/Berlin"
    assert _run_options._linked(str(zones / "Berlin")) == ""
    monkeypatch.setattr(_run_options, "_linked", lambda _: "Europe/Berlin")
    assert local_zone() == "Europe/Berlin"


@pytest.mark.parametrize(
    ("seconds", "zone"), [(0, "UTC"), (7200, "UTC+02:00"), (-12_600, "UTC-03:30"), (20_700, "UTC+05:45")]
)
def test_a_time_zone_without_a_name_is_its_offset(monkeypatch: pytest.MonkeyPatch, seconds: int, zone: str) -> None:
    class Now:
        tm_gmtoff = seconds

    monkeypatch.setattr("time.localtime", Now)
    monkeypatch.setenv("TZ", "ABC-2DEF")
    assert local_zone() == zone
    assert str(Window.daily(zone)) == f"daily {zone}"


def test_an_empty_variable_of_the_time_zone_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "")
    assert local_zone() == "UTC"


# ---------------------------------------------------------------- the help


@pytest.mark.parametrize("command", ["", *COMMANDS])
@pytest.mark.parametrize("columns", ["80", "100"])
def test_every_help_fits_its_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as exit_:
        main([*filter(None, [command]), "--help"])
    assert exit_.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5
    assert max(map(len, lines)) <= int(columns) - 2


def test_every_command_is_declared_by_its_own_module_and_stands_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(_commands(_parser())) == list(COMMANDS)
    for command, module in COMMANDS.items():
        alone = list(_commands(_parser(command)))
        assert alone == [name for name, other in COMMANDS.items() if other == module]
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(re.search(rf"^ +{command}\s", shown, re.MULTILINE) for command in COMMANDS)


def _commands(parser: Any) -> list[str]:
    return [name for action in parser._actions if action.dest == "command" for name in action.choices]


def test_the_help_of_run_names_every_option_and_every_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = capsys.readouterr().out
    for action in _subparser("run")._actions:
        assert all(f" {option}" in shown for option in action.option_strings)
    statuses = {
        _run_options.USAGE,
        _run_options.REQUIRED,
        _run_options.UNAVAILABLE,
        _run_options.NO_GATEWAY,
        _run_options.NO_REPORT,
        _run_options.MISMATCH,
    }
    assert all(f"\n  {status} " in shown for status in statuses)
    assert "127" in shown
    assert "126" in shown


def _subparser(command: str) -> Any:
    actions: list[Any] = _parser(command)._actions
    return next(action.choices[command] for action in actions if action.dest == "command")


def test_the_modes_of_progress_are_those_of_the_display() -> None:
    from token_budget.cli._run_display import MODES

    assert [tuple(one.choices or ()) for one in _subparser("run")._actions if one.dest == "progress"] == [MODES]
