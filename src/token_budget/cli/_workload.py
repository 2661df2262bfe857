"""The calls that the demo makes: how large each is, how long it takes, and how it ends.

Sizes come from a seed or from a trace of real calls. Everything is drawn before the run, by one seeded generator, so
that the same seed always gives the same calls, whatever the threads do later.
"""

from __future__ import annotations

import csv
import enum
import json
from array import array
from bisect import bisect_left, insort
from collections import deque
from itertools import chain, islice
from math import ceil, log
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from random import Random

# How often a call fails in each way: as on a bad day of a busy service.
_UNSENT_SHARE = 0.04
_TIMED_OUT_SHARE = 0.03
_CANCELLED_SHARE = 0.02

_INPUT_NAMES = ("ContextTokens", "input_tokens", "prompt_tokens")
_OUTPUT_NAMES = ("GeneratedTokens", "output_tokens", "completion_tokens")
_MOST_TOKENS = 10**8  # in one column of a trace: far above any model, far below what the pool takes
_FIRST_GUESS = 256  # output tokens reserved for the first call of a trace
_REMEMBERED = 1000  # answers of a trace from which the next estimate is made
_SHOWN_CHARACTERS = 60


class TraceError(Exception):
    """The trace cannot be read; the text names the file and the line."""


class Fate(enum.Enum):
    """How a call ends, if the budget admits it."""

    ANSWERED = "answered"
    UNSENT = "connection refused: never sent, so not billed"
    TIMED_OUT = "timed out after it was sent: billed"
    CANCELLED = "cancelled before it was sent: not billed"


class Prices(NamedTuple):
    """US dollars per million tokens."""

    input: float
    output: float

    def usd(self, input_tokens: int, output_tokens: int) -> float:
        """Return the price of one call in dollars: a float, as most programs compute it."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


_FATES = tuple(Fate)


class Sizes(NamedTuple):
    """The tokens of one call. The reservation for the output is an estimate: some answers are longer."""

    input_tokens: int
    reserved_output_tokens: int
    output_tokens: int


class Call(NamedTuple):
    """One call of the simulated model. `connect` and `answer` raise what a client library raises."""

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


class PackedCalls:
    """Calls in 41 bytes each, so that a million of them fit in memory: a `Call` is made when it is asked for."""

    def __init__(self, first: int, prices: Prices) -> None:
        self._first = first
        self._prices = prices
        self._sizes = [array("q") for _ in Sizes._fields]
        self._connect_seconds = array("d")
        self._answer_seconds = array("d")
        self._fates = bytearray()

    def append(self, sizes: Sizes, connect_seconds: float, answer_seconds: float, fate: Fate) -> None:
        """Add a call at the end."""
        for column, value in zip(self._sizes, sizes, strict=True):
            column.append(value)
        self._connect_seconds.append(connect_seconds)
        self._answer_seconds.append(answer_seconds)
        self._fates.append(_FATES.index(fate))

    def __len__(self) -> int:
        """Return the number of calls."""
        return len(self._fates)

    def __getitem__(self, index: int) -> Call:
        """Return the call at an index."""
        input_tokens, reserved, output_tokens = (column[index] for column in self._sizes)
        return Call(
            self._first + index,
            input_tokens + reserved,
            self._prices.usd(input_tokens, reserved),
            input_tokens + output_tokens,
            self._prices.usd(input_tokens, output_tokens),
            self._connect_seconds[index],
            self._answer_seconds[index],
            _FATES[self._fates[index]],
        )

    def __iter__(self) -> Iterator[Call]:
        """Return the calls one by one; faster than by index."""
        usd, number = self._prices.usd, self._first
        columns = zip(*self._sizes, self._connect_seconds, self._answer_seconds, self._fates, strict=True)
        for fed, reserved, made, connect, answer, fate in columns:
            yield Call(
                number, fed + reserved, usd(fed, reserved), fed + made, usd(fed, made), connect, answer, _FATES[fate]
            )
            number += 1


Calls: TypeAlias = "list[Call] | PackedCalls"


class Workload(NamedTuple):
    """The calls of one run: the first half is made by threads, the second half by asyncio tasks."""

    in_threads: Calls
    in_tasks: Calls

    def __len__(self) -> int:
        """Return the number of calls."""
        return len(self.in_threads) + len(self.in_tasks)


def total(calls: Iterable[Call]) -> tuple[int, float]:
    """Return the tokens and dollars that calls cost together when none is refused."""
    tokens, usd = 0, 0.0
    for call in calls:
        of_call = call.bill
        tokens += of_call[0]
        usd += of_call[1]
    return tokens, usd


def plan(sizes: Iterable[Sizes], calls: int, prices: Prices, random: Random) -> Workload:
    """Return calls of these sizes, with their durations and fates drawn.

    Only tasks can be cancelled. From four calls on, at least one task is: an early one, so that the budget admits it.

    Args:
        sizes: the size of each call.
        calls: how many sizes there are.
        prices: what tokens cost.
        random: where durations and fates are drawn from.
    """
    half = calls // 2
    surely_cancelled = half + calls // 8 if calls >= 4 else None
    workload = PackedCalls(0, prices), PackedCalls(half, prices)
    for number, size in enumerate(sizes):
        in_task = number >= half
        fate = _draw_fate(random, cancellable=in_task)
        if number == surely_cancelled:
            fate = Fate.CANCELLED
        connect_seconds = random.uniform(0.02, 0.08)
        # A tenth of a second for the first token, then 2,500 tokens a second: many times as fast as a real model.
        answer_seconds = random.lognormvariate(log(0.1 + size.output_tokens / 2500), 0.4)
        workload[in_task].append(size, connect_seconds, min(answer_seconds, 3.0), fate)
    return Workload(*workload)


def _draw_fate(random: Random, *, cancellable: bool) -> Fate:
    drawn = random.random()
    if drawn < _UNSENT_SHARE:
        return Fate.UNSENT
    if drawn < _UNSENT_SHARE + _TIMED_OUT_SHARE:
        return Fate.TIMED_OUT
    if cancellable and drawn < _UNSENT_SHARE + _TIMED_OUT_SHARE + _CANCELLED_SHARE:
        return Fate.CANCELLED
    return Fate.ANSWERED


def simulated_sizes(calls: int, random: Random) -> Iterator[Sizes]:
    """Draw sizes as of a mixed service: most calls are small, a few are very large.

    A third of the answers are longer than what is reserved for them, so that some overrun a nearly spent budget.
    """
    for _ in range(calls):
        input_tokens = int(min(random.lognormvariate(log(1500), 0.9), 30_000))
        expected = random.lognormvariate(log(400), 0.7)
        reserved = 64 * ceil(1.1 * expected / 64)  # in steps, as people set such limits
        output_tokens = int(min(expected * random.lognormvariate(0, 0.5), 8_000))
        yield Sizes(input_tokens, reserved, output_tokens)


def estimated_sizes(trace: Iterable[tuple[int, int]]) -> Iterator[Sizes]:
    """Make sizes from (input, output) tokens. The reservation for the output is estimated from the answers before it.

    The estimate is the length that four in five of the last thousand answers did not exceed.
    """
    in_order: deque[int] = deque()
    ascending: list[int] = []
    for input_tokens, output_tokens in trace:
        estimate = ascending[4 * len(ascending) // 5] if ascending else _FIRST_GUESS
        yield Sizes(input_tokens, estimate, output_tokens)
        in_order.append(output_tokens)
        insort(ascending, output_tokens)
        if len(in_order) > _REMEMBERED:
            del ascending[bisect_left(ascending, in_order.popleft())]


def read_trace(
    path: str, *, limit: int | None = None, input_column: str | None = None, output_column: str | None = None
) -> list[tuple[int, int]]:
    """Return the (input, output) tokens of each call in a file of CSV with a header, or of JSON lines.

    Args:
        path: the file, in UTF-8.
        limit: how many calls to read at most; None for all.
        input_column: the name of the column of input tokens; None to look for the usual names. Case is ignored.
        output_column: the name of the column of output tokens, in the same way.

    Raises:
        TraceError: the file or one of its lines cannot be used, or it contains no call.
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
        raise TraceError(f"{path}: after line {lines.number}: the text is not UTF-8") from None
    except (ValueError, RecursionError, csv.Error) as error:
        raise TraceError(f"{path}: line {lines.number}: {error}") from None
    if not calls and limit != 0:
        raise TraceError(f"{path}: it contains no call")
    return calls


class _Lines:
    """An iterator of lines that counts them, for error messages."""

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
    """Return the lines up to the first one that is not blank: it shows the format, and a pipe cannot be read twice."""
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
            raise ValueError(f"{len(row)} fields, but the header has {len(header)}")
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
    """Return the first wanted name that is among the names, as it is spelled there."""
    spelled = {name.strip().lower(): name for name in names}
    for name in wanted:
        found = spelled.get(name.strip().lower())
        if found is not None:
            return found
    raise ValueError(f"no column of {kind} tokens (looked for {', '.join(wanted)}); name it with --{kind}-column")


def _count(field: object, kind: str) -> int:
    """Return a field as a count of tokens: a JSON integer, or a text of digits."""
    if type(field) is int and 0 <= field <= _MOST_TOKENS:
        return field
    if isinstance(field, str):
        digits = field.strip()
        if digits.isascii() and digits.isdigit() and len(digits) <= 18 and int(digits) <= _MOST_TOKENS:
            return int(digits)
    raise ValueError(
        f"{kind} tokens must be a whole number from 0 to {_MOST_TOKENS:,}, not {repr(field)[:_SHOWN_CHARACTERS]}"
    )
