"""The calls that the demo makes: how large each is, how long it takes, and what becomes of it.

Sizes come from a seed or from a trace of real calls. Everything is drawn before the run, by one seeded generator, so
that a seed names a workload whatever the threads do later.
"""

from __future__ import annotations

import csv
import enum
import json
from bisect import insort
from dataclasses import dataclass
from itertools import chain, islice
from math import ceil, log
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from random import Random

# Chances of the ways in which a call goes wrong: what a busy service shows on a bad day.
_UNSENT_SHARE = 0.04
_TIMED_OUT_SHARE = 0.03
_CANCELLED_SHARE = 0.02

_INPUT_NAMES = ("ContextTokens", "input_tokens", "prompt_tokens")
_OUTPUT_NAMES = ("GeneratedTokens", "output_tokens", "completion_tokens")
_MOST_TOKENS = 10**8  # in one column of a trace: far above any model, far below what the pool takes
_FIRST_GUESS = 256  # output tokens reserved for the first call of a trace
_SHOWN_CHARACTERS = 60


class TraceError(Exception):
    """The trace cannot be read; the text names the file and the line."""


class Fate(enum.Enum):
    """What becomes of a call that the budget admits."""

    ANSWERED = "answered"
    UNSENT = "connection refused: never sent, so not billed"
    TIMED_OUT = "timed out after it was sent: billed"
    CANCELLED = "cancelled before it was sent: not billed"


class Prices(NamedTuple):
    """US dollars for a million tokens."""

    input: float
    output: float

    def usd(self, input_tokens: int, output_tokens: int) -> float:
        """Return the price of one call in dollars, as the float that most programs would compute."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


class Sizes(NamedTuple):
    """The tokens of one call. The output is reserved by an estimate: some answers are longer."""

    input_tokens: int
    reserved_output_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the simulated model. `connect` and `answer` raise what a client library would raise."""

    number: int
    reserved_tokens: int
    reserved_usd: float
    tokens: int
    usd: float
    connect_seconds: float
    answer_seconds: float
    fate: Fate

    def connect(self) -> None:
        """Send the request, after `connect_seconds`."""
        if self.fate is Fate.UNSENT:
            raise ConnectionRefusedError(self.fate.value)

    def answer(self) -> tuple[int, float]:
        """Return the tokens and dollars that the answer cost, after `answer_seconds`."""
        if self.fate is Fate.TIMED_OUT:
            raise TimeoutError(self.fate.value)
        return self.tokens, self.usd

    @property
    def bill(self) -> tuple[int, float]:
        """The tokens and dollars that this call adds to what is used, if it is admitted."""
        if self.fate is Fate.ANSWERED:
            return self.tokens, self.usd
        if self.fate is Fate.TIMED_OUT:  # nobody learns what it cost: the caller counts what was reserved
            return self.reserved_tokens, self.reserved_usd
        return 0, 0.0


class Workload(NamedTuple):
    """The calls of one run: the first half is made by threads, the second by asyncio tasks."""

    in_threads: list[Call]
    in_tasks: list[Call]

    def __len__(self) -> int:
        """Return the number of calls."""
        return len(self.in_threads) + len(self.in_tasks)

    def total(self) -> tuple[int, float]:
        """Return the tokens and dollars that all calls come to when none is refused."""
        bills = [call.bill for call in chain(self.in_threads, self.in_tasks)]
        return sum(tokens for tokens, _ in bills), sum(usd for _, usd in bills)


def plan(sizes: Sequence[Sizes], prices: Prices, random: Random) -> Workload:
    """Return calls of these sizes, with their times and fates drawn.

    Only tasks can be cancelled. Where there are enough, at least one is: an early one, which the budget admits.
    """
    half = len(sizes) // 2
    surely_cancelled = half + len(sizes) // 8 if len(sizes) >= 4 else None
    calls = []
    for number, size in enumerate(sizes):
        fate = _draw_fate(random, cancellable=number >= half)
        if number == surely_cancelled:
            fate = Fate.CANCELLED
        calls.append(_draw_call(number, size, fate, prices, random))
    return Workload(calls[:half], calls[half:])


def _draw_fate(random: Random, *, cancellable: bool) -> Fate:
    drawn = random.random()
    if drawn < _UNSENT_SHARE:
        return Fate.UNSENT
    if drawn < _UNSENT_SHARE + _TIMED_OUT_SHARE:
        return Fate.TIMED_OUT
    if cancellable and drawn < _UNSENT_SHARE + _TIMED_OUT_SHARE + _CANCELLED_SHARE:
        return Fate.CANCELLED
    return Fate.ANSWERED


def _draw_call(number: int, size: Sizes, fate: Fate, prices: Prices, random: Random) -> Call:
    answer_median = 0.1 + size.output_tokens / 2500  # a first token, then 2500 a second: many times as fast as life
    return Call(
        number,
        size.input_tokens + size.reserved_output_tokens,
        prices.usd(size.input_tokens, size.reserved_output_tokens),
        size.input_tokens + size.output_tokens,
        prices.usd(size.input_tokens, size.output_tokens),
        connect_seconds=random.uniform(0.02, 0.08),
        answer_seconds=min(random.lognormvariate(log(answer_median), 0.4), 3.0),
        fate=fate,
    )


def simulated_sizes(count: int, random: Random) -> list[Sizes]:
    """Return sizes as of a mixed service: most calls small, a few very large, a third of the answers above estimate.

    So many, that some come when the budget is all but spent, and overrun it.
    """
    sizes = []
    for _ in range(count):
        input_tokens = int(min(random.lognormvariate(log(1500), 0.9), 30_000))
        expected = random.lognormvariate(log(400), 0.7)
        reserved = 64 * ceil(1.1 * expected / 64)  # in steps, as people set such limits
        output_tokens = int(min(expected * random.lognormvariate(0, 0.5), 8_000))
        sizes.append(Sizes(input_tokens, reserved, output_tokens))
    return sizes


def estimated_sizes(trace: Iterable[tuple[int, int]]) -> list[Sizes]:
    """Return sizes from (input, output) tokens, with the output reserved that a caller would guess from the past.

    The guess is what four in five of the earlier answers stayed within.
    """
    sizes = []
    seen: list[int] = []
    for input_tokens, output_tokens in trace:
        guess = seen[4 * len(seen) // 5] if seen else _FIRST_GUESS
        sizes.append(Sizes(input_tokens, guess, output_tokens))
        insort(seen, output_tokens)
    return sizes


def read_trace(
    path: str, *, limit: int | None = None, input_column: str | None = None, output_column: str | None = None
) -> list[tuple[int, int]]:
    """Return the (input, output) tokens of each call in a file of CSV with a header, or of JSON lines.

    Args:
        path: the file, in UTF-8.
        limit: how many calls to read at most; None for all.
        input_column: what the column of input tokens is called; None to look for the usual names. Case is ignored.
        output_column: the same for output tokens.

    Raises:
        TraceError: the file or one of its lines cannot be used, or there is no call in it.
    """
    inputs = _INPUT_NAMES if input_column is None else (input_column,)
    outputs = _OUTPUT_NAMES if output_column is None else (output_column,)
    lines = _Lines([])
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            head = _until_content(file)
            lines = _Lines(chain(head, file))
            is_json = bool(head) and head[-1].lstrip().startswith("{")
            fields = (_json_fields if is_json else _csv_fields)(lines, inputs, outputs)
            calls = [(_count(fed, "input"), _count(made, "output")) for fed, made in islice(fields, limit)]
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TraceError(f"{path}: after line {lines.number}: this is not text in UTF-8") from None
    except (ValueError, RecursionError, csv.Error) as error:
        raise TraceError(f"{path}: line {lines.number}: {error}") from None
    if not calls and limit != 0:
        raise TraceError(f"{path}: there is no call in it")
    return calls


class _Lines:
    """Passes lines on and knows the number of the last one, for messages."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        return line


def _until_content(file: Iterable[str]) -> list[str]:
    """Read up to the first line that is not blank, which shows the format; a pipe cannot be read twice."""
    head = []
    for line in file:
        head.append(line)
        if line.strip():
            break
    return head


def _csv_fields(lines: _Lines, inputs: Sequence[str], outputs: Sequence[str]) -> Iterator[tuple[object, object]]:
    rows = (row for row in csv.reader(lines) if any(map(str.strip, row)))
    header = next(rows, None)
    if header is None:
        return
    input_index = header.index(_column(header, inputs, "input"))
    output_index = header.index(_column(header, outputs, "output"))
    for row in rows:
        if max(input_index, output_index) >= len(row):
            raise ValueError(f"{len(row)} fields where the header has {len(header)}")
        yield row[input_index], row[output_index]


def _json_fields(lines: _Lines, inputs: Sequence[str], outputs: Sequence[str]) -> Iterator[tuple[object, object]]:
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
        if not isinstance(row, dict):
            raise ValueError("not a JSON object")  # noqa: TRY004 - a bad line is a bad value of the file
        yield row[_column(row, inputs, "input")], row[_column(row, outputs, "output")]


def _column(names: Iterable[str], wanted: Sequence[str], kind: str) -> str:
    """Return the first wanted name that there is, as it is spelled there."""
    spelled = {name.strip().lower(): name for name in names}
    for name in wanted:
        found = spelled.get(name.strip().lower())
        if found is not None:
            return found
    raise ValueError(f"no column of {kind} tokens (looked for {', '.join(wanted)}); name it with --{kind}-column")


def _count(field: object, kind: str) -> int:
    """Return a field as a count of tokens: an integer of JSON, or its digits."""
    if type(field) is int and 0 <= field <= _MOST_TOKENS:
        return field
    if isinstance(field, str):
        digits = field.strip()
        if digits.isascii() and digits.isdigit() and len(digits) <= 18 and int(digits) <= _MOST_TOKENS:
            return int(digits)
    raise ValueError(
        f"{kind} tokens must be a whole number from 0 to {_MOST_TOKENS:,}, not {repr(field)[:_SHOWN_CHARACTERS]}"
    )
