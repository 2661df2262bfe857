"""Coverage-guided fuzzing of the conversions and of sequences of operations with hostile amounts.

    python tests/proof/fuzz.py amounts -max_total_time=60
    python tests/proof/fuzz.py operations -max_total_time=60

needs atheris (dependency group `fuzz`); `test_fuzz.py` runs the same targets on random bytes without it. A target takes
bytes, and raises where a promise is broken.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2] / "src"), str(Path(__file__).parents[1])]
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

    with atheris.instrument_imports(include=["token_budget"]):
        import token_budget  # noqa: F401 - here, so that the fuzzer sees which branches it takes

import math
import struct

import hostile
from ledger import Amount, Ledger, grid
from token_budget import BudgetExceeded, BudgetOverrun, BudgetPool, Reservation, ReservationClosed, _money


class Source:
    """Takes values off the front of some bytes; zeros follow their end."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, count: int) -> bytes:
        taken, self.data = self.data[:count], self.data[count:]
        return taken.ljust(count, b"\0")

    def number(self, count: int = 1) -> int:
        return int.from_bytes(self.take(count), "little")

    def one_of(self, items: Any) -> Any:
        return items[self.number() % len(items)]

    def integer(self) -> int:
        sign = self.one_of([1, 1, 1, -1])
        return int(sign) * self.number(self.one_of([1, 1, 2, 4, 8, 9, 40]))

    def double(self) -> float:
        kind = self.number() % 4
        if kind == 0:
            return float(struct.unpack("<d", self.take(8))[0])
        if kind == 1:
            return self.number(2) / 100
        if kind == 2:
            return (self.number(4) + 0.5) * 1e-9
        return self.number(5) * 1e-9

    def decimal(self) -> Decimal:
        special = self.one_of([None] * 6 + ["NaN", "sNaN", "Infinity", "-Infinity", "-0"])
        if special is not None:
            return Decimal(special)
        digits = tuple(digit % 10 for digit in self.take(1 + self.number() % 40))
        return Decimal((self.number() & 1, digits, self.number(2) % 80 - 60))

    def fraction(self) -> Fraction:
        return Fraction(self.integer(), self.number(self.one_of([1, 4, 12])) + 1)


def exact(value: Any) -> Fraction | None:
    """Return the value of a number, None if it is none that may be passed."""
    if type(value) is Decimal and not value.is_finite():
        return None
    if isinstance(value, float):
        plain = float.__float__(value)
        return Fraction(plain) if math.isfinite(plain) else None
    return Fraction(int.__index__(value)) if isinstance(value, int) else Fraction(value)


def any_usd(source: Source) -> Any:
    make = source.one_of([Source.integer, Source.double, Source.double, Source.decimal, Source.fraction])
    value = make(source)
    wrap = source.number()
    if type(value) is int and wrap < 40:
        return source.one_of([hostile.EvilInt, hostile.LyingInt])(value)
    if type(value) is float and wrap < 40:
        return source.one_of([hostile.EvilFloat, hostile.LyingFloat])(value)
    return value


def amounts(data: bytes) -> None:
    """Hold `to_nanos` and `to_tokens` against exact arithmetic."""
    source = Source(data)
    value = any_usd(source)
    wanted = exact(value)
    fits = wanted is not None and 0 <= wanted <= 10**9
    try:
        nanos = _money.to_nanos(value)
    except ValueError as error:
        assert not fits, "a good amount was refused"
        assert len(str(error)) < 200
    else:
        assert wanted is not None
        assert fits, "a bad amount was taken"
        assert type(nanos) is int
        assert nanos == round(wanted * 10**9)
    count = source.integer()
    try:
        assert _money.to_tokens(count) == count
        assert 0 <= count <= 10**18
    except ValueError:
        assert not 0 <= count <= 10**18


def operations(data: bytes) -> None:
    """Hold a pool against the naive ledger over a sequence of operations, some of them with amounts to be refused."""
    warnings.simplefilter("ignore", ResourceWarning)
    source = Source(data)
    pair = Pair(source.one_of([None, 0, 50, 10**18]), source.one_of([None, 0, 0.3, 10**9]))
    try:
        for _ in range(200):
            if not source.data:
                break
            step = source.one_of(
                [Pair.record, Pair.force, Pair.reserve, Pair.commit, Pair.release, Pair.drop, Pair.reset]
            )
            step(pair, source)
            pair.compare()
    finally:
        for reservation in pair.open.values():
            reservation.release()


class Pair:
    """A pool and a ledger to which the same things are done."""

    def __init__(self, token_cap: int | None, usd_cap: float | None) -> None:
        self.pool = BudgetPool(token_cap, usd_cap)
        self.ledger = Ledger(token_cap, None if usd_cap is None else grid(usd_cap))
        self.open: dict[int, Reservation] = {}
        self.made = 0

    def amounts(self, source: Source) -> tuple[dict[str, Any], Amount | None]:
        """Return amounts to pass, and what they are worth, None where they must be refused."""
        tokens, usd = source.integer(), any_usd(source)
        value = exact(usd)
        good = value is not None and 0 <= value <= 10**9 and 0 <= tokens <= 10**18
        return {"tokens": tokens, "usd": usd}, (tokens, grid(value)) if good and value is not None else None

    def record(self, source: Source) -> None:
        passed, worth = self.amounts(source)
        if worth is None:
            expect(ValueError, self.pool.record, **passed)
        elif self.ledger.over(worth):
            expect(BudgetExceeded, self.pool.record, **passed)
        else:
            expect(None, self.pool.record, **passed)
            self.ledger.spent.append(worth)

    def force(self, source: Source) -> None:
        passed, worth = self.amounts(source)
        if worth is None:
            expect(ValueError, self.pool.record, force=True, **passed)
            return
        self.ledger.spent.append(worth)
        expect(BudgetOverrun if self.ledger.overrun(worth) else None, self.pool.record, force=True, **passed)

    def reserve(self, source: Source) -> None:
        passed, worth = self.amounts(source)
        if worth is None:
            expect(ValueError, self.pool.reserve, **passed)
        elif self.ledger.over(worth):
            expect(BudgetExceeded, self.pool.reserve, **passed)
        else:
            self.made += 1
            self.open[self.made] = expect(None, self.pool.reserve, **passed)
            self.ledger.held[self.made] = worth

    def commit(self, source: Source) -> None:
        passed, worth = self.amounts(source)
        if not self.open:
            return
        key = source.one_of(sorted(self.open))
        if worth is None:
            expect(ValueError, self.open[key].commit, **passed)
            return
        held = self.ledger.held.pop(key)
        self.ledger.spent.append(worth)
        overrun = self.ledger.overrun((worth[0] - held[0], worth[1] - held[1]))
        expect(BudgetOverrun if overrun else None, self.open[key].commit, **passed)
        expect(ReservationClosed, self.open.pop(key).commit)

    def release(self, source: Source) -> None:
        if self.open:
            key = source.one_of(sorted(self.open))
            del self.ledger.held[key]
            self.open.pop(key).release()

    def drop(self, source: Source) -> None:
        if self.open:
            key = source.one_of(sorted(self.open))
            del self.ledger.held[key]
            del self.open[key]

    def reset(self, _source: Source) -> None:
        self.pool.reset()
        self.ledger.spent.clear()

    def compare(self) -> None:
        """Hold that both have the same numbers."""
        snapshot, used, reserved = self.pool.snapshot(), self.ledger.used(), self.ledger.reserved()
        assert (snapshot.tokens_used, snapshot.tokens_reserved) == (used[0], reserved[0])
        assert snapshot.usd_used_nanos == used[1] * 10**9
        assert snapshot.usd_reserved_nanos == reserved[1] * 10**9
        assert snapshot.in_flight == len(self.ledger.held)


def expect(error: type[Exception] | None, function: Callable[..., Any], **arguments: Any) -> Any:
    """Call, and hold that just this error is raised."""
    try:
        answer = function(**arguments)
    except (ValueError, BudgetExceeded, ReservationClosed) as raised:
        assert type(raised) is error, f"{type(raised)} instead of {error}"
        assert len(str(raised)) < 1000
        return None
    assert error is None, f"no {error}"
    return answer


TARGETS: dict[str, Callable[[bytes], None]] = {"amounts": amounts, "operations": operations}

if __name__ == "__main__":
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
