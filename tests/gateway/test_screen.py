"""A child's screen is the same with a display as alone: in a real terminal (tmux, 80 x 24), at ten looks a second.

Each child is run alone and under each mode at once, in a terminal for each. Compared is all that a user sees: the
characters with their colours, the cursor, the scroll region, and whether the second screen is shown.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from screens import Pane, Tmux, assert_same, tmux, wait_looks

PRINTS = """
import sys, time
for number in range(60):
    print(f"line {number} \\x1b[3{number % 8}m" + "=" * number + "\\x1b[m", flush=True)
    time.sleep(0.01)
"""
PIECES = """
import sys, time
for number in range(20):
    for piece in ("a line ", "in \\x1b[1m", "pieces ", f"\\x1b[m{number}", "\\n"):
        sys.stdout.write(piece)
        sys.stdout.flush()
        time.sleep(0.01)
print("name? ", end="", flush=True)
print("hello", sys.stdin.readline().strip())
"""
ASKS = """
import sys
print("name? ", end="", flush=True)
sys.stdin.readline()
"""
TQDM = """
import sys, time
from tqdm import tqdm
for number in tqdm(range(60), file=sys.stdout, mininterval=0, bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}"):
    if number % 10 == 0:
        tqdm.write(f"at {number}", file=sys.stdout)
    time.sleep(0.01)
"""


@pytest.fixture
def server() -> Iterator[Tmux]:
    with tmux() as one:
        yield one


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def alone_and_shown(server: Tmux, command: list[str], rows: int = 24) -> tuple[Pane, dict[str, Pane]]:
    """Run a command alone and under each mode that leaves the screen to the child."""
    alone = server.pane("none", command, name="alone", rows=rows)
    shown = {mode: server.pane(mode, command, name=mode, rows=rows) for mode in ("auto", "off")}
    shown["plain"] = server.pane("plain", command, name="plain", rows=rows, errors=True)
    return alone, shown


def at_rest(alone: Pane, shown: dict[str, Pane], text: str) -> None:
    """Wait until each child shows this and waits for its user, and the displays have looked a few times since."""
    for pane in (alone, *shown.values()):
        pane.wait(lambda pane=pane: text in pane.text)  # type: ignore[misc]
    wait_looks(*(shown[mode] for mode in shown.keys() & {"auto", "plain", "line"}))


def all_ended(alone: Pane, shown: dict[str, Pane]) -> None:
    for pane in (alone, *shown.values()):
        pane.wait(lambda pane=pane: pane.ended)  # type: ignore[misc]


# ---------------------------------------------------------------- auto, off, plain


def test_sixty_printed_lines_stay_clean(server: Tmux) -> None:
    alone, shown = alone_and_shown(server, program(PRINTS))
    all_ended(alone, shown)
    assert_same(shown, alone)
    assert alone.rows[-2].startswith("line 59 ===")
    assert shown["auto"].looks > 0


def test_lines_in_pieces_and_a_prompt_stay_clean(server: Tmux) -> None:
    alone, shown = alone_and_shown(server, program(PIECES))
    at_rest(alone, shown, "name?")
    assert_same(shown, alone)
    title = shown["auto"].ask("#{pane_title}")
    assert title.endswith("refused") or "of $5.00" in title
    for pane in (alone, *shown.values()):
        pane.keys("ann", "Enter")
    all_ended(alone, shown)
    assert_same(shown, alone)
    assert alone.rows[21] == "hello ann"


def test_the_title_of_before_comes_back(server: Tmux) -> None:
    pane = server.pane("auto", program(ASKS), name="auto")
    before = pane.ask("#{host}")  # tmux's own title of a new terminal
    pane.wait(lambda: pane.ask("#{pane_title}").startswith("claude: $"))
    pane.keys("x", "Enter")
    pane.wait(lambda: pane.ended)
    assert pane.ask("#{pane_title}") == before


def test_a_bar_of_tqdm_stays_clean(server: Tmux) -> None:
    pytest.importorskip("tqdm")
    alone, shown = alone_and_shown(server, program(TQDM))
    all_ended(alone, shown)
    assert_same(shown, alone)
    assert alone.rows[6].startswith("100%|")


def test_plain_writes_its_lines_where_standard_error_goes(server: Tmux) -> None:
    pane = server.pane("plain", program(ASKS), name="plain", errors=True, every=0.02)
    pane.wait(lambda: pane.looks > 55)
    pane.keys("x", "Enter")
    pane.wait(lambda: pane.ended)
    assert [line.partition(",")[0] for line in pane.errors.splitlines()] == [
        "token-budget: $2.50 of $5.00 (50%)",
        "token-budget: $4.00 of $5.00 (80%)",
        "token-budget: $4.80 of $5.00 (96%)",
    ]
    assert "token-budget" not in pane.text


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {number} {'-' * (number % 70)}\n" for number in range(200)), encoding="utf-8")
    return path


def test_less_has_its_screen(server: Tmux, text_file: Path) -> None:
    less = shutil.which("less")
    if less is None:
        pytest.skip("less is not installed")
    alone, shown = alone_and_shown(server, ["env", "LESS=", "LESSOPEN=", less, str(text_file)])
    at_rest(alone, shown, "line 22 ")
    assert_same(shown, alone)
    for pane in (alone, *shown.values()):
        pane.keys("/line 99", "Enter")
    at_rest(alone, shown, "line 121 ")
    assert_same(shown, alone)
    assert alone.ask("#{alternate_on}") == "1"
    for pane in (alone, *shown.values()):
        pane.keys("q")
    all_ended(alone, shown)
    assert_same(shown, alone)


def test_vim_has_its_screen_also_after_a_change_of_size(server: Tmux, text_file: Path) -> None:
    vim = shutil.which("vim")
    if vim is None:
        pytest.skip("vim is not installed")
    options = ["-u", "NONE", "-i", "NONE", "-n", "--cmd", "set shortmess=aoOtTIF ruler laststatus=2"]
    alone, shown = alone_and_shown(server, [vim, *options, str(text_file)])
    at_rest(alone, shown, "line 20 ")
    panes = (alone, *shown.values())
    for pane in panes:
        pane.keys("50Go", "some words", "Escape")
    at_rest(alone, shown, "some words")
    assert_same(shown, alone)
    for pane in panes:
        pane.resize(100, 30)
    at_rest(alone, shown, "some words")
    assert_same(shown, alone)
    for pane in panes:
        pane.resize(60, 12)
    at_rest(alone, shown, "some words")
    assert_same(shown, alone)
    for pane in panes:
        pane.keys(":q!", "Enter")
    all_ended(alone, shown)
    assert_same(shown, alone)


# ---------------------------------------------------------------- line


def line_of(pane: Pane) -> str:
    return pane.rows[-1]


def line_and_alone(server: Tmux, text: str) -> tuple[Pane, Pane]:
    """Run a program with the line, and alone in a terminal that has a row less."""
    command = program(text)
    return server.pane("line", command, name="line"), server.pane("none", command, name="alone", rows=23)


def assert_has_all_rows_but_the_last(pane: Pane, alone: Pane) -> None:
    pane.wait(lambda: pane.rows[:-1] == alone.rows)
    assert pane.ask("#{cursor_x},#{cursor_y}") == alone.ask("#{cursor_x},#{cursor_y}")


def test_the_line_stands_below_what_scrolls(server: Tmux) -> None:
    pane, alone = line_and_alone(server, PRINTS + ASKS)
    at_rest(alone, {"line": pane}, "name?")
    assert_has_all_rows_but_the_last(pane, alone)
    assert line_of(pane).startswith("token-budget: $")
    assert pane.ask("#{scroll_region_upper}-#{scroll_region_lower}") == "0-22"
    for one in (pane, alone):
        one.keys("Enter")
        one.wait(lambda one=one: one.ended)  # type: ignore[misc]
    assert_has_all_rows_but_the_last(pane, alone)
    assert line_of(pane) == ""
    assert pane.ask("#{scroll_region_upper}-#{scroll_region_lower}") == "0-23"


def test_the_line_stands_below_lines_in_pieces_and_a_prompt(server: Tmux) -> None:
    pane, alone = line_and_alone(server, PIECES)
    at_rest(alone, {"line": pane}, "name?")
    assert_has_all_rows_but_the_last(pane, alone)
    for one in (pane, alone):
        one.keys("ann", "Enter")
        one.wait(lambda one=one: one.ended)  # type: ignore[misc]
    assert_has_all_rows_but_the_last(pane, alone)
    assert alone.rows[21] == "hello ann"


def test_the_line_stands_below_a_bar_of_tqdm(server: Tmux) -> None:
    pytest.importorskip("tqdm")
    pane, alone = line_and_alone(server, TQDM + ASKS)
    at_rest(alone, {"line": pane}, "name?")
    assert_has_all_rows_but_the_last(pane, alone)
    assert line_of(pane).startswith("token-budget: $")


def test_the_line_moves_with_the_terminals_size(server: Tmux) -> None:
    pane = server.pane("line", program(PRINTS + ASKS), name="line")
    at_rest(pane, {"line": pane}, "name?")
    for columns, rows in ((100, 30), (60, 12), (80, 24)):
        pane.resize(columns, rows)
        wait_looks(pane)
        pane.wait(lambda: line_of(pane).startswith("token-budget: $"))
        assert pane.ask("#{scroll_region_upper}-#{scroll_region_lower}") == f"0-{rows - 2}"
        x, y = map(int, pane.ask("#{cursor_x} #{cursor_y}").split())
        assert (x, pane.rows[y]) == (6, "name?")
    pane.keys("Enter")
    pane.wait(lambda: pane.ended)
    assert pane.ask("#{scroll_region_upper}-#{scroll_region_lower}") == "0-23"


def test_an_interrupted_run_gives_the_row_back(server: Tmux) -> None:
    pane = server.pane("line", program(PRINTS + ASKS), name="line")
    at_rest(pane, {"line": pane}, "name?")
    pane.keys("C-c")
    pane.wait(lambda: pane.ended)
    assert pane.ask("#{scroll_region_upper}-#{scroll_region_lower}") == "0-23"
    assert "token-budget: $" not in pane.text


def test_the_line_comes_back_below_a_region_that_another_program_has_reset(server: Tmux) -> None:
    resets = "import sys; print('one'); sys.stdout.write('\\x1b7\\x1b[r\\x1b8')"
    pane = server.pane("line", program(f"{ASKS}{resets}{ASKS.replace('name', 'more')}"), name="line")
    at_rest(pane, {"line": pane}, "name?")
    assert pane.ask("#{scroll_region_upper}-#{scroll_region_lower}") == "0-22"
    pane.keys("x", "Enter")
    at_rest(pane, {"line": pane}, "more?")
    assert pane.rows[:3] == ["name? x", "one", "more?"]
    assert pane.ask("#{scroll_region_upper}-#{scroll_region_lower}") == "0-22"
