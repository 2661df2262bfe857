"""What a run shows while its child lives, and that it disturbs nobody: not the child, not the run, not the terminal."""

from __future__ import annotations

import errno
import fcntl
import io
import itertools
import os
import re
import select
import signal
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runs import Terminal, a_status
from support import run_program
from token_budget import BudgetPool
from token_budget.cli import _run_display, _run_terminal
from token_budget.cli._run_display import MODES, Display, display
from token_budget.cli._run_line import Line
from token_budget.cli._run_status import RunStatus
from token_budget.cli._run_terminal import Output, is_dumb, say
from token_budget.cli._run_text import TITLE, line, title
from token_budget.cli._run_title import Plain, Title

PUSH, POP = "\x1b[22;0t", "\x1b[23;0t"


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")


def set_title(text: str) -> str:
    return f"\x1b]0;{text}\x07"


class Pseudo:
    """A terminal of this process's own: what is written to ``stream`` is read from the other end."""

    def __init__(self) -> None:
        self.other, here = os.openpty()
        self.path = os.ttyname(here)
        self.stream = os.fdopen(here, "w", encoding="utf-8")

    def read(self) -> str:
        return os.read(self.other, 100_000).decode()

    def read_until(self, text: str) -> str:
        read = ""
        while text not in read:
            assert select.select([self.other], [], [], 30)[0], f"{text!r} does not come after {read!r}"
            read += self.read()
        return read

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.other, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def hang_up(self) -> None:
        if self.other >= 0:
            os.close(self.other)
        self.other = -1


@pytest.fixture
def pseudo() -> Iterator[Pseudo]:
    terminal = Pseudo()
    yield terminal
    terminal.hang_up()
    terminal.stream.close()


class Pipe:
    """A pipe whose reader is this test."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.stream = os.fdopen(self.writer, "w", encoding="utf-8")

    def fill(self) -> int:
        """Write until there is no room; return how much."""
        os.set_blocking(self.writer, False)
        written = 0
        try:
            while True:
                written += os.write(self.writer, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(self.writer, True)
            return written


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    one = Pipe()
    yield one
    one.stream.close()
    try:
        os.close(one.reader)
    except OSError:
        pass


# ---------------------------------------------------------------- the text


def test_the_title_says_what_is_used_and_changes_only_with_it() -> None:
    status = a_status(usd_nanos=421_300_000, in_flight=2, refused=3, calls=7)
    assert title(status) == "claude: $0.4213 of $5.00 (8%), 2 in flight, 3 refused"
    assert title(a_status(seconds=99)) == title(a_status(seconds=1)) == "claude: $0.00 of $5.00 (0%)"


@pytest.mark.parametrize("command", ["a\x1b]0;evil\x07b", "a\x9b2Jb", "a\nb\rc", "\u202etxt", "\udc80", "\x00"])
def test_a_commands_name_cannot_steer_the_terminal(command: str) -> None:
    stream = Terminal()
    Title(Output(stream)).show(a_status(command=command))
    text = stream.getvalue().removeprefix(f"{PUSH}\x1b]0;").removesuffix("\x07")
    assert text.isprintable()
    assert text.endswith(": $0.00 of $5.00 (0%)")
    assert line(a_status(command=command)).isprintable()


def test_a_long_name_leaves_room_for_the_numbers() -> None:
    text = title(a_status(command="n" * 1_000))
    assert len(text) == TITLE
    assert text.endswith("nnn: $0.00 of $5.00 (0%)")
    assert len(title(a_status(command="n" * 1_000, usd_nanos=10**90, usd_cap_nanos=10**90))) == TITLE


def test_a_line_says_the_axes_that_have_a_cap() -> None:
    spent: dict[str, Any] = {"usd_nanos": 10**9, "tokens": 30, "calls": 1}
    assert line(a_status(**spent)) == "token-budget: $1.00 of $5.00 (20%), 1 call, 41.2 s"
    both = a_status(**spent, token_cap=40)
    assert line(both) == "token-budget: $1.00 of $5.00 (20%), 30 tokens of 40 tokens (75%), 1 call, 41.2 s"
    tokens = a_status(**spent, token_cap=40, usd_cap_nanos=None)
    assert line(tokens) == "token-budget: 30 tokens of 40 tokens (75%), 1 call, 41.2 s"
    none = a_status(**spent, usd_cap_nanos=None)
    assert line(none) == "token-budget: $1.00, 1 call, 41.2 s"
    assert line(a_status(usd_cap_nanos=0)) == "token-budget: $0.00 of $0.00 (100%), 0 calls, 41.2 s"


def test_a_run_without_caps_shows_those_of_its_pool() -> None:
    pool = BudgetPool(usd_cap=50)
    pool.record(usd=10)
    status = a_status(usd_cap_nanos=None, usd_nanos=5, pool=pool.snapshot().to_dict())
    assert title(status) == "claude: $10.00 of $50.00 (20%)"


# ---------------------------------------------------------------- auto


def test_the_title_is_written_only_when_it_changes() -> None:
    stream = Terminal()
    face = Title(Output(stream))
    for spent in (0, 0, 10**9, 10**9, 0):
        face.show(a_status(usd_nanos=spent, seconds=spent + 1.0))
    face.close()
    none, one = set_title("claude: $0.00 of $5.00 (0%)"), set_title("claude: $1.00 of $5.00 (20%)")
    assert stream.getvalue() == f"{PUSH}{none}{one}{none}{POP}"


def test_a_title_that_was_never_set_is_not_brought_back() -> None:
    stream = Terminal()
    Title(Output(stream)).close()
    assert stream.getvalue() == ""


def test_a_background_job_leaves_the_title_alone(pseudo: Pseudo, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [os.getpgrp() + 1, os.getpgrp()]
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: groups.pop(0))
    face = Title(Output(pseudo.stream))
    face.show(a_status(usd_nanos=1))
    face.show(a_status(usd_nanos=10**9))
    assert pseudo.read() == f"{PUSH}{set_title('claude: $1.00 of $5.00 (20%)')}"


def test_a_terminal_without_jobs_shows_all(pseudo: Pseudo, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> int:
        raise OSError(errno.ENOTTY, "it is not the controlling terminal")

    monkeypatch.setattr(os, "tcgetpgrp", fail)
    assert Output(pseudo.stream).is_ours
    monkeypatch.delattr(os, "tcgetpgrp")  # Windows
    assert Output(pseudo.stream).is_ours


# ---------------------------------------------------------------- plain


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def plain(stream: io.StringIO) -> tuple[Plain, Callable[..., int]]:
    """Return a face and what shows a status so many seconds later and says how many lines were written."""
    clock = Clock()
    face = Plain(Output(stream), clock)

    def later(seconds: float, **changes: Any) -> int:
        before = stream.getvalue().count("\n")
        clock.now += seconds
        face.show(a_status(**changes))
        return stream.getvalue().count("\n") - before

    return face, later


def test_plain_writes_a_line_every_half_minute() -> None:
    stream = io.StringIO()
    face, later = plain(stream)
    assert [later(seconds) for seconds in (0, 29.5, 0.5, 29.5, 0.5, 1)] == [0, 0, 1, 0, 1, 0]
    face.close()
    assert stream.getvalue() == "token-budget: $0.00 of $5.00 (0%), 0 calls, 41.2 s\n" * 2


@pytest.mark.parametrize("axis", ["usd_nanos", "tokens"])
def test_plain_writes_a_line_at_each_mark_of_a_cap_once(axis: str) -> None:
    _, later = plain(io.StringIO())
    caps: dict[str, Any] = {"usd_nanos": {"usd_cap_nanos": 100}, "tokens": {"usd_cap_nanos": None, "token_cap": 100}}
    spent = (0, 49, 50, 51, 79, 80, 81, 94, 95, 96, 100, 60, 96, 200)
    assert [used for used in spent if later(1, **{axis: used}, **caps[axis])] == [50, 80, 95]


def test_a_mark_that_is_passed_again_is_not_told_again() -> None:
    _, later = plain(io.StringIO())
    cap = {"usd_cap_nanos": 100}
    assert [later(1, usd_nanos=95, **cap), later(30, usd_nanos=10, **cap), later(1, usd_nanos=81, **cap)] == [1, 1, 0]


def test_plain_writes_one_line_where_several_marks_are_passed_at_once() -> None:
    _, later = plain(io.StringIO())
    assert [later(1, usd_nanos=used, usd_cap_nanos=100) for used in (10, 99, 99)] == [0, 1, 0]


def test_the_marks_of_two_caps_are_apart() -> None:
    _, later = plain(io.StringIO())
    caps = {"usd_cap_nanos": 100, "token_cap": 100}
    assert later(1, usd_nanos=50, tokens=0, **caps) == 1
    assert later(1, usd_nanos=50, tokens=50, **caps) == 1
    assert later(1, usd_nanos=60, tokens=60, **caps) == 0


def test_a_line_that_could_not_be_written_is_written_later(pipe: Pipe) -> None:
    written = pipe.fill()
    face = Plain(Output(pipe.stream), Clock())
    face.show(a_status(usd_nanos=50, usd_cap_nanos=100))
    os.read(pipe.reader, written)
    face.show(a_status(usd_nanos=50, usd_cap_nanos=100))
    assert os.read(pipe.reader, 10_000).count(b"\n") == 1


# ---------------------------------------------------------------- line


def test_the_line_is_as_wide_as_the_terminal(pseudo: Pseudo) -> None:
    face = Line(Output(pseudo.stream))
    pseudo.resize(24, 30)
    face.show(a_status())
    assert pseudo.read() == (
        "\x1b7\x1b[r\x1b8\x1bD\x1b7\x1b[1;23r\x1b8\x1b[A\x1b7\x1b[m\x1b[24;1H\x1b[2Ktoken-budget: $0.00 of $5.00 \x1b8"
    )
    pseudo.resize(10, 30)
    face.show(a_status())
    assert "\x1b[1;9r" in pseudo.read()
    face.close()
    assert pseudo.read() == "\x1b7\x1b[r\x1b[m\x1b[10;1H\x1b[2K\x1b8"


def test_a_terminal_of_two_rows_has_no_room_for_a_line(pseudo: Pseudo) -> None:
    face = Line(Output(pseudo.stream))
    for size in ((2, 80), (0, 0)):
        pseudo.resize(*size)
        face.show(a_status())
        face.close()
    pseudo.stream.write("nothing before")
    pseudo.stream.flush()
    assert pseudo.read() == "nothing before"


def test_a_background_job_draws_no_line(pseudo: Pseudo, monkeypatch: pytest.MonkeyPatch) -> None:
    pseudo.resize(24, 80)
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
    face = Line(Output(pseudo.stream))
    face.show(a_status())
    face.close()
    assert not select.select([pseudo.other], [], [], 0)[0]


# ---------------------------------------------------------------- which mode does what


def shown(mode: str, stream: io.StringIO | None, until: Callable[[], bool] = lambda: True) -> str:
    """Start a display, wait until it has looked and so on, close it, and return what it wrote."""
    looked = threading.Event()

    def look() -> RunStatus:
        if until():
            looked.set()
        return a_status()

    one = display(mode, look, stderr=stream, stdout=io.StringIO(), every=0.001)
    one.start()
    if mode != "off" and stream is not None and not (mode == "auto" and is_dumb()):
        assert looked.wait(30)
    one.close()
    assert one._thread is not None
    assert not one._thread.is_alive()
    return "" if stream is None else stream.getvalue()


def test_auto_sets_the_title_of_a_terminal() -> None:
    assert shown("auto", Terminal()) == f"{PUSH}{set_title('claude: $0.00 of $5.00 (0%)')}{POP}"


def test_auto_is_plain_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_budget.cli._run_title._LINE_EVERY", 0.0)
    for mode in ("auto", "line", "plain"):
        assert shown(mode, io.StringIO()).startswith("token-budget: $0.00 of $5.00 (0%), 0 calls, 41.2 s\n")


@pytest.mark.parametrize("kind", ["dumb", "unknown", ""])
def test_a_dumb_terminal_gets_no_sequence(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("token_budget.cli._run_title._LINE_EVERY", 0.0)
    monkeypatch.setenv("TERM", kind)
    assert shown("auto", Terminal()) == ""
    assert re.fullmatch(r"(token-budget: .*\n)+", shown("line", Terminal()))


def test_windows_terminals_obey_though_they_set_no_term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TERM")
    assert is_dumb()
    monkeypatch.setattr(sys, "platform", "win32")
    assert not is_dumb()


def test_off_shows_nothing() -> None:
    assert shown("off", Terminal()) == ""


@pytest.mark.parametrize("mode", ["auto", "line", "plain", "off"])
def test_where_standard_error_is_closed_nothing_is_shown(mode: str) -> None:
    shown(mode, None)
    stream = Terminal()
    stream.close()
    one = display(mode, a_status, stderr=stream, stdout=None, every=0.001)
    one.start()
    one.close()


def test_line_draws_on_a_terminal(pseudo: Pseudo) -> None:
    pseudo.resize(24, 80)
    one = display("line", a_status, stderr=pseudo.stream, stdout=None, every=0.001)
    one.start()
    assert "\x1b[1;23r" in pseudo.read_until("41.2 s\x1b8")
    one.close()
    assert pseudo.read_until("\x1b[24;1H\x1b[2K\x1b8").endswith("\x1b[r\x1b[m\x1b[24;1H\x1b[2K\x1b8")


def test_a_mode_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one of auto, line, rich, plain, off, not 'x'"):
        display("x", a_status, stderr=None, stdout=None)


# ---------------------------------------------------------------- rich


@pytest.fixture
def own_terminal(pseudo: Pseudo, monkeypatch: pytest.MonkeyPatch) -> Pseudo:
    """Make the pseudo-terminal the one that this process has."""
    pytest.importorskip("rich")
    pseudo.resize(24, 80)
    monkeypatch.setattr(_run_display, "_TERMINAL", pseudo.path)
    return pseudo


@pytest.mark.parametrize("shared", ["stderr", "stdout", "both"])
def test_rich_is_refused_on_a_terminal_that_the_child_shares(own_terminal: Pseudo, shared: str) -> None:
    stderr = Terminal() if shared != "stdout" else io.StringIO()
    stdout = Terminal() if shared != "stderr" else io.StringIO()
    with pytest.raises(ValueError, match=r"token-budget status --watch run$"):
        display("rich", a_status, stderr=stderr, stdout=stdout)
    assert stderr.getvalue() == stdout.getvalue() == ""
    assert not select.select([own_terminal.other], [], [], 0)[0]


def test_rich_draws_on_the_terminal_where_the_child_does_not(own_terminal: Pseudo) -> None:
    stderr, stdout = io.StringIO(), io.StringIO()
    calls = itertools.count(76)
    one = display("rich", lambda: a_status(calls=next(calls)), stderr=stderr, stdout=stdout, every=0.001)
    one.start()
    text = own_terminal.read_until("77 calls")
    assert "0% 0 used of 5" in re.sub(r"\x1b\[[0-9;]*m", "", text)
    one.close()
    assert own_terminal.read_until("\x1b[?25h")
    assert stderr.getvalue() == stdout.getvalue() == ""


def test_rich_waits_while_another_job_has_the_terminal(own_terminal: Pseudo, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()

    def group(_: int) -> int:
        asked.set()
        return os.getpgrp() + 1

    monkeypatch.setattr(os, "tcgetpgrp", group)
    one = display("rich", a_status, stderr=None, stdout=None, every=0.001)
    one.start()
    assert asked.wait(30)
    one.close()
    assert not select.select([own_terminal.other], [], [], 0)[0]


def test_without_rich_or_a_terminal_rich_is_refused(own_terminal: Pseudo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_run_display, "_TERMINAL", "/no/terminal")
    with pytest.raises(ValueError, match="a terminal to draw on"):
        display("rich", a_status, stderr=None, stdout=None)
    monkeypatch.setenv("TERM", "dumb")
    with pytest.raises(ValueError, match="obeys"):
        display("rich", a_status, stderr=None, stdout=None)
    monkeypatch.setattr("token_budget.cli._run_rich.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'token-budget-pool\[cli\]'"):
        display("rich", a_status, stderr=None, stdout=None)


# ---------------------------------------------------------------- the thread


class Turns:
    """Plays the event that ends a display: lets it wait so often, and then ends it."""

    def __init__(self, turns: int) -> None:
        self.waits: list[float] = []
        self._turns = turns
        self.ended = False

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        return len(self.waits) >= self._turns

    def is_set(self) -> bool:
        return self.ended

    def set(self) -> None:
        self.ended = True


class Recording:
    def __init__(self) -> None:
        self.seen: list[RunStatus] = []
        self.closed = 0

    def show(self, status: RunStatus) -> None:
        self.seen.append(status)

    def close(self) -> None:
        self.closed += 1


def a_display(face: Any, look: Callable[[], RunStatus], turns: int = 1, **options: Any) -> tuple[Display, Turns]:
    one = Display(lambda: face, look, **options)
    ended = Turns(turns)
    one._ended = ended  # type: ignore[assignment]
    return one, ended


def test_a_display_looks_once_a_second() -> None:
    face = Recording()
    one, ended = a_display(face, a_status, turns=3)
    one.start()
    one.start()
    one.close()
    one.close()
    assert (len(face.seen), face.closed, ended.waits) == (3, 1, [1.0, 1.0, 1.0])
    assert display("auto", a_status, stderr=None, stdout=None)._every == 1.0


def test_a_display_that_was_closed_does_not_start() -> None:
    one, _ = a_display(Recording(), a_status)
    one.close()
    one.start()
    assert one._thread is None


def test_a_look_that_fails_is_left_out() -> None:
    answers: list[Any] = [RuntimeError("the store is away"), a_status(), OSError(), a_status()]

    def look() -> RunStatus:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    face = Recording()
    one, _ = a_display(face, look, turns=4)
    one.start()
    one.close()
    assert (len(face.seen), face.closed) == (2, 1)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_face_that_fails_ends_nothing_but_itself() -> None:
    class Failing(Recording):
        def close(self) -> None:
            raise OSError

    one, _ = a_display(Failing(), a_status)
    one.start()
    one.close()

    def make() -> Any:
        raise OSError

    other = Display(make, a_status)
    other.start()
    other.close()


def test_a_look_that_hangs_does_not_hold_up_the_end() -> None:
    goes_on, looking = threading.Event(), threading.Event()

    def look() -> RunStatus:
        looking.set()
        goes_on.wait()
        return a_status()

    face = Recording()
    one = Display(lambda: face, look)
    one.start()
    assert looking.wait(30)
    one.close(wait=0)  # it comes back
    assert face.closed == 0
    goes_on.set()
    assert one._thread is not None
    assert one._thread.daemon
    one._thread.join(30)
    assert face.closed == 1


def test_where_the_system_gives_no_thread_the_run_goes_on_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    one, _ = a_display(Recording(), a_status)
    one.start()
    one.close()


# ---------------------------------------------------------------- streams that are full, gone or stuck


def test_a_full_pipe_is_not_waited_for(pipe: Pipe) -> None:
    written = pipe.fill()
    output = Output(pipe.stream)
    assert output.write("text") is False
    assert output.write("text", 0.01) is False
    assert not output.is_broken
    assert len(os.read(pipe.reader, 2 * written)) == written
    assert output.write("text") is True
    assert os.read(pipe.reader, 100) == b"text"


def test_a_terminal_that_is_held_is_not_waited_for(pseudo: Pseudo) -> None:
    termios.tcflow(pseudo.stream.fileno(), termios.TCOOFF)  # Ctrl-S
    assert say(pseudo.stream, "text", 0.01) is False
    termios.tcflow(pseudo.stream.fileno(), termios.TCOON)
    assert say(pseudo.stream, "text") is True
    assert pseudo.read() == "text\r\n"


def test_room_that_comes_in_time_is_used(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    written = pipe.fill()
    real = select.select

    def drained(*lists: Any) -> Any:
        assert lists[3] > 0
        os.read(pipe.reader, written)
        return real(*lists)

    monkeypatch.setattr(select, "select", drained)
    assert say(pipe.stream, "text")
    assert os.read(pipe.reader, 100) == b"text\n"


def test_what_was_begun_is_written_to_its_end(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of an escape sequence would swallow what the child writes next."""
    steps: list[Any] = [2, BlockingIOError(), 1, 0]
    real = os.write

    def halting(descriptor: int, data: bytes) -> int:
        step = steps.pop(0) if steps else len(data)
        if isinstance(step, BlockingIOError):
            raise step
        return real(descriptor, data[:step])

    monkeypatch.setattr(os, "write", halting)
    monkeypatch.setattr(_run_terminal, "_pause", lambda _: None)
    assert Output(pipe.stream).write("\x1b]0;text\x07")
    assert os.read(pipe.reader, 100) == b"\x1b]0;text\x07"
    assert steps == []


def test_a_stream_that_the_child_made_non_blocking_is_not_waited_for(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "write", full)
    assert not Output(pipe.stream).write("text")
    assert not Output(pipe.stream).is_broken


def test_a_reader_that_is_gone_ends_the_writing(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    os.close(pipe.reader)
    output = Output(pipe.stream)
    assert output.write("text") is False
    assert output.is_broken
    monkeypatch.setattr(os, "write", None)  # it is not tried again
    assert output.write("text") is False
    face = Title(output)
    face.show(a_status())
    face.close()


def test_a_terminal_that_hung_up_ends_the_writing(pseudo: Pseudo) -> None:
    face = Title(Output(pseudo.stream))
    face.show(a_status())
    pseudo.hang_up()
    face.show(a_status(usd_nanos=1))
    face.close()
    assert say(pseudo.stream, "text") is False


def test_a_closed_stream_is_no_terminal_and_takes_nothing() -> None:
    stream = io.StringIO()
    stream.close()
    assert not Output(stream).is_terminal
    assert not Output(None).is_terminal
    assert not say(stream, "text")
    assert not say(None, "text")


def test_where_select_cannot_be_asked_writing_tells(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise ValueError("filedescriptor out of range in select()")

    monkeypatch.setattr(select, "select", fail)
    assert say(pipe.stream, "text")
    assert os.read(pipe.reader, 100) == b"text\n"


def test_a_character_that_the_stream_cannot_write_does_not_stop_the_line() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file, os.fdopen(writer, "w", encoding="ascii") as stream:
        assert say(stream, "caf\xe9")
        assert os.read(file.fileno(), 100) == b"caf?\n"


# ---------------------------------------------------------------- signals

BACKGROUND = """
import os, pty, sys, termios
from token_budget.cli._run_terminal import say

leader, terminal = pty.fork()
if leader == 0:
    settings = termios.tcgetattr(2)
    settings[3] |= termios.TOSTOP
    termios.tcsetattr(2, termios.TCSANOW, settings)
    job = os.fork()
    if job == 0:
        os.setpgid(0, 0)
        os._exit(7 if say(sys.stderr, "hello") else 8)
    _, status = os.waitpid(job, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        os.kill(job, 9)
        os._exit(99)
    os._exit(os.WEXITSTATUS(status))
read = b""
try:
    while b"hello" not in read:
        read += os.read(terminal, 1000)
except OSError:
    pass
print(os.WEXITSTATUS(os.waitpid(leader, 0)[1]), read)
"""


def test_a_background_job_that_writes_is_not_stopped() -> None:
    """It is in no shell's way: ``stty tostop`` would stop the whole job, with the child."""
    assert run_program(BACKGROUND).stdout == "7 b'hello\\r\\n'\n"


def test_the_threads_signals_are_as_before_the_writing() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTTOU])  # whatever the tests before have left
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    inside: list[set[Any]] = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            inside.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
            return len(text)

    assert say(Stream(), "text")
    assert inside == [before | {signal.SIGTTOU}]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_the_displays_thread_takes_no_signal_of_the_run() -> None:
    masks: list[set[Any]] = []

    def look() -> RunStatus:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        return a_status()

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    one, _ = a_display(Recording(), look)
    one.start()
    one.close()
    assert masks[0] >= {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_windows_has_no_such_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.delattr(signal, "SIGTTOU")
    assert say(stream, "text")
    assert stream.getvalue() == "text\n"


UNCLOSED = """
import threading
from runs import a_status
from token_budget.cli._run_display import Display

class Face:
    def show(self, status):
        print("shown", flush=True)

    def close(self):
        print("closed", flush=True)

looked = threading.Event()

def look():
    looked.set()
    return a_status()

one = Display(Face, look)
one.start()
looked.wait(30)
raise SystemExit("an error")
"""


def test_a_run_that_ends_by_an_error_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    done = run_program(UNCLOSED, check=False)
    assert (done.stdout, done.stderr) == ("shown\nclosed\n", "an error\n")


def test_every_mode_is_known() -> None:
    assert MODES == ("auto", "line", "rich", "plain", "off")


def test_nothing_is_touched_before_the_start(tmp_path: Path) -> None:
    path = tmp_path / "errors.txt"
    with path.open("w", encoding="utf-8") as stream:
        for mode in ("auto", "line", "plain", "off"):
            display(mode, a_status, stderr=stream, stdout=stream).close()
    assert path.read_bytes() == b""
