"""Coverage-guided fuzzing of the conversions, of one pool with hostile amounts, and of families of pools.

    python tests/proof/fuzz.py amounts -max_total_time=60
    python tests/proof/fuzz.py operations -max_total_time=60
    python tests/proof/fuzz.py families -max_total_time=60

These commands need atheris (dependency group `fuzz`). `test_fuzz.py` runs the same targets on random bytes without it.
A target takes bytes, and raises if a promise is broken.
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
    # This folder is on the path already.
    sys.path[:0] = [str(Path(__file__).parents[2] / "src"), str(Path(__file__).parents[1])]
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

    with atheris.instrument_imports(include=["token_budget"]):
        import token_budget  # noqa: F401 - here, so that the fuzzer sees which branches it takes

import math
import struct
from collections import Counter
from contextlib import suppress
from datetime import timedelta

import hostile
from ledger import Amount, Ledger, grid
from scenarios import wake_complete
from token_budget import (
    BudgetExceeded,
    BudgetOverrun,
    BudgetPool,
    BudgetTimeout,
    PoolClosed,
    Reservation,
    ReservationClosed,
    Window,
    _money,
)
from worlds import HandLoop, running


class Source:
    """Takes values off the front of some bytes. After the last byte it takes zeros."""

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
    """Return the value of a number, or None if the pool must refuse it."""
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
    """Check `to_nanos` and `to_tokens` against exact arithmetic."""
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
        assert fits, "a bad amount was accepted"
        assert type(nanos) is int
        assert nanos == round(wanted * 10**9)
    count = source.integer()
    try:
        assert _money.to_tokens(count) == count
        assert 0 <= count <= 10**18
    except ValueError:
        assert not 0 <= count <= 10**18


def operations(data: bytes) -> None:
    """Check a pool against the naive ledger over a sequence of operations, some of which pass bad amounts."""
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
    """A pool and a ledger that get the same operations."""

    def __init__(self, token_cap: int | None, usd_cap: float | None) -> None:
        self.pool = BudgetPool(token_cap, usd_cap)
        self.ledger = Ledger(token_cap, None if usd_cap is None else grid(usd_cap))
        self.open: dict[int, Reservation] = {}
        self.made = 0

    def amounts(self, source: Source) -> tuple[dict[str, Any], Amount | None]:
        """Return amounts to pass, and their values. A value is None if the pool must refuse the amount."""
        tokens, usd = source.integer(), any_usd(source)
        value = exact(usd)
        good = value is not None and 0 <= value <= 10**9 and 0 <= tokens <= 10**18
        return {"tokens": tokens, "usd": usd}, (tokens, grid(value)) if good and value is not None else None

    def record(self, source: Source) -> None:
        passed, worth = self.amounts(source)
        if worth is None:
            expect(ValueError, self.pool.record, **passed)
        elif over(self.ledger, worth):
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
        elif over(self.ledger, worth):
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
        """Check that both have the same numbers."""
        snapshot, used, reserved = self.pool.snapshot(), self.ledger.used(), self.ledger.reserved()
        assert (snapshot.tokens_used, snapshot.tokens_reserved) == (used[0], reserved[0])
        assert snapshot.usd_used_nanos == used[1] * 10**9
        assert snapshot.usd_reserved_nanos == reserved[1] * 10**9
        assert snapshot.in_flight == len(self.ledger.held)


def over(ledger: Ledger, worth: Amount) -> bool:
    """Return whether an amount does not fit. An axis refuses nothing if nothing is asked of it."""
    (tokens, usd), (held_tokens, held_usd) = ledger.used(), ledger.reserved()
    claimed: tuple[Any, ...] = (tokens + held_tokens, usd + held_usd)
    caps = (ledger.token_cap, ledger.usd_cap)
    return any(
        asked and cap is not None and there + asked > cap
        for asked, cap, there in zip(worth, caps, claimed, strict=True)
    )


# ---------------------------------------------------------------- families


def families(data: bytes) -> None:
    """Check the promises of a family of pools over a sequence of operations on any of them, with tasks that wait."""
    warnings.simplefilter("ignore", ResourceWarning)
    source = Source(data)
    family = Family(source)
    steps = [getattr(family, name) for name in STEPS]
    try:
        for _ in range(120):
            if not source.data:
                break
            source.one_of(steps)(source)
            family.compare()
    finally:
        family.end()
    family.compare()
    assert family.root._family.root.line is None
    assert all(account.in_flight == 0 for account in family.spent)


STEPS = (
    *(
        "child",
        "keyed",
        "join",
        "record",
        "record",
        "force",
        "reserve",
        "reserve",
        "commit",
        "commit",
        "release",
        "drop",
    ),
    *("wait", "wait", "wait_a_while", "time_passes", "cancel", "reset", "caps", "window", "close", "forget", "listen"),
)


class Family:
    """A family of pools, and the sum that each account must show, kept by hand."""

    def __init__(self, source: Source) -> None:
        self.now = 0.0
        self.loop = HandLoop()
        self.root = BudgetPool(source.one_of([None, 30, 60, 90]), name="root", window=self.any_window(source))
        self.pools: list[BudgetPool] = [self.root]
        self.groups: list[Any] = []
        self.open: list[Reservation] = []
        self.waiting: list[tuple[Any, Any, BudgetPool]] = []  # coroutine, what it waits for, pool
        self.spent: Counter[Any] = Counter({self.root._account: 0})  # tokens used, by account
        self.ends: dict[Any, float] = {}  # the expected end of each account's period
        self.follow()
        self.heard: list[tuple[Any, list[Any], int]] = []  # account, events, usage when the subscription was made

    def any_window(self, source: Source) -> Window | None:
        seconds = source.one_of([None, None, 60, 600])
        return None if seconds is None else Window.every(timedelta(seconds=seconds), clock=lambda: self.now)

    def pool(self, source: Source) -> BudgetPool:
        return self.pools[source.number() % len(self.pools)]

    def add(self, pool: BudgetPool) -> None:
        self.pools.append(pool)
        for account in pool._chain:
            self.spent.setdefault(account, account.tokens_claimed - account.tokens_reserved)
        self.follow()

    # ------------------------------------------------------------ operations

    def child(self, source: Source) -> None:
        if len(self.pools) < 12:
            with suppress(PoolClosed):
                self.add(self.pool(source).child(source.one_of([None, 10, 20, 40]), window=self.any_window(source)))

    def keyed(self, source: Source) -> None:
        with suppress(PoolClosed):
            if len(self.groups) < 2:
                self.groups.append(self.pool(source).keyed(source.one_of([None, 15]), window=self.any_window(source)))
            if len(self.pools) < 20:
                self.add(source.one_of(self.groups)[source.number() % 4])

    def join(self, source: Source) -> None:
        if len(self.pools) < 12:
            with suppress(PoolClosed):
                self.add(BudgetPool.join(self.pool(source), self.pool(source)))

    def rolled(self, pool: BudgetPool) -> None:
        """Account for the periods that an operation on this pool has begun, before counting its own effect."""
        self.follow()
        for account in pool._chain:
            assert account.window is None or self.now < account.period_end, "a period has not ended"

    def follow(self) -> None:
        for account in self.spent:
            if account.period_end != self.ends.get(account, account.period_end) and self.now >= self.ends[account]:
                self.spent[account] = 0
            self.ends[account] = account.period_end

    def room(self, pool: BudgetPool, tokens: int) -> str | None:
        """Return why the pool refuses: it is closed, it is full, or others wait."""
        waiters = [] if self.root._family.root.line is None else self.root._family.root.line.waiting()
        for account in pool._chain:
            if account.closed:
                return "closed"
            used = self.spent[account] + sum(one._tokens for one in self.flying() if account in one._pool._chain)
            if tokens and used + tokens > account.token_limit:
                return "full"
            if any(one.at is account for one in waiters):
                return "line"
        return None

    def flying(self) -> list[Any]:
        return [one for one in self.open if not one.completed]

    def record(self, source: Source) -> None:
        pool, tokens = self.pool(source), source.number() % 12
        self.look(pool)
        refused = self.room(pool, tokens)
        try:
            pool.record(tokens=tokens)
        except (BudgetExceeded, PoolClosed) as error:
            assert refused is not None, f"it was refused although there is room: {error}"
        else:
            assert refused is None, f"it was admitted although it must be refused: {refused}"
            self.spend(pool, tokens)
        self.settled()

    def look(self, pool: BudgetPool) -> None:
        """Begin the periods that are due, and let the tasks that waited for them continue."""
        pool.snapshot()
        self.rolled(pool)
        self.settled()

    def spend(self, pool: BudgetPool, tokens: int) -> None:
        for account in pool._chain:
            self.spent[account] += tokens

    def force(self, source: Source) -> None:
        pool, tokens = self.pool(source), source.number() % 12
        with suppress(BudgetOverrun):
            pool.record(tokens=tokens, force=True)
        self.rolled(pool)
        self.spend(pool, tokens)
        self.settled()

    def reserve(self, source: Source) -> None:
        pool, tokens = self.pool(source), source.number() % 12
        self.look(pool)
        refused = self.room(pool, tokens)
        try:
            self.open.append(pool.reserve(tokens=tokens))
        except (BudgetExceeded, PoolClosed) as error:
            assert refused is not None, f"it was refused although there is room: {error}"
        else:
            assert refused is None, f"it was admitted although it must be refused: {refused}"
        self.settled()

    def commit(self, source: Source) -> None:
        if self.open:
            reservation = self.open.pop(source.number() % len(self.open))
            tokens = source.number() % 16
            try:
                reservation.commit(tokens=tokens)
            except BudgetOverrun:
                pass
            pool: Any = reservation._pool
            self.rolled(pool)
            self.spend(pool, tokens)
            self.settled()

    def release(self, source: Source) -> None:
        if self.open:
            self.open.pop(source.number() % len(self.open)).release()
            self.settled()

    def drop(self, source: Source) -> None:
        if self.open:
            del self.open[source.number() % len(self.open)]
            self.settled()

    def wait(self, source: Source) -> None:
        self.begin(self.pool(source), source.number() % 12, None)

    def wait_a_while(self, source: Source) -> None:
        self.begin(self.pool(source), source.number() % 12, source.one_of([30, 120, 1000]))

    def begin(self, pool: BudgetPool, tokens: int, timeout: float | None) -> None:
        coroutine = pool.areserve(tokens=tokens, timeout=timeout)
        self.waiting.append((coroutine, None, pool))
        self.settled()

    def cancel(self, source: Source) -> None:
        if self.waiting:
            coroutine, _, _ = self.waiting.pop(source.number() % len(self.waiting))
            with running(self.loop):
                coroutine.close()
            self.settled()

    def settled(self) -> None:
        """Resume each task whose wait is over, until all remaining tasks wait."""
        going = True
        while going:
            going = False
            for item in list(self.waiting):
                coroutine, future, pool = item
                if future is not None and not future.done():
                    continue
                self.waiting.remove(item)
                going = True
                try:
                    with running(self.loop):
                        self.waiting.append((coroutine, coroutine.send(None), pool))
                except StopIteration as stop:
                    self.open.append(stop.value)
                except (BudgetExceeded, BudgetTimeout, PoolClosed):
                    pass
                self.follow()

    def time_passes(self, source: Source) -> None:
        """Let time pass, and wake each task that sleeps until then."""
        self.now += source.one_of([1, 45, 61, 700])
        self.loop.time_out()
        self.settled()

    def reset(self, source: Source) -> None:
        pool = self.pool(source)
        pool.reset()
        self.rolled(pool)
        self.spent[pool._account] = 0
        self.settled()

    def caps(self, source: Source) -> None:
        pool = self.pool(source)
        with suppress(PoolClosed):
            pool.set_caps(token_cap=source.one_of([None, 5, 15, 30, 60]))
        self.settled()

    def window(self, source: Source) -> None:
        pool = self.pool(source)
        self.look(pool)
        with suppress(PoolClosed):
            pool.set_caps(window=self.any_window(source))
        self.ends[pool._account] = pool._account.period_end
        self.settled()

    def close(self, source: Source) -> None:
        pool = self.pool(source)
        if pool is not self.root:
            pool.close()
            self.settled()

    def forget(self, source: Source) -> None:
        """Delete a key. What it used stays counted in the scopes above."""
        if self.groups:
            with suppress(KeyError, ValueError):
                del source.one_of(self.groups)[source.number() % 4]
            self.settled()

    def listen(self, source: Source) -> None:
        if len(self.heard) < 3:
            pool, events = self.pool(source), []  # type: ignore[var-annotated]
            pool.subscribe(events.append)
            account = pool._account
            self.heard.append((account, events, account.in_flight))

    # ------------------------------------------------------------ what must hold

    def compare(self) -> None:
        """Check the sums, the lines and the events."""
        family = self.root._family
        self.root.record(tokens=0, force=True)  # pays what is owed, such as a dropped reservation
        self.follow()
        self.settled()
        flying: Counter[Any] = Counter()
        calls: Counter[Any] = Counter()
        for one in self.flying():
            for account in one._pool._chain:
                flying[account] += one._tokens
                calls[account] += 1
        granted = [one for one in self.granted() if one is not None]
        assert not granted, "a waiter was given room but was not woken"
        for account, used in self.spent.items():
            assert account.tokens_claimed - account.tokens_reserved == used, f"the sum of {account} is wrong: {used}"
            assert (account.tokens_reserved, account.in_flight) == (flying[account], calls[account])
        assert (list(family.owed), list(family.stirred), family.owner) == ([], [], 0)
        wake_complete(family, self.spent)
        for account, events, before in self.heard:
            kinds = Counter(event.kind for event in events)
            gone = kinds["commit"] + kinds["release"] + kinds["drop"]
            assert before + kinds["reserve"] - gone == account.in_flight, "an event was lost or delivered twice"

    def granted(self) -> list[Any]:
        """Return what the tasks that are still asleep hold. It must be nothing."""
        line = self.root._family.root.line
        asleep = sum(future is not None and not future.done() for _, future, _ in self.waiting)
        return [] if asleep == (0 if line is None else len(line.waiting())) else [asleep]

    def end(self) -> None:
        for coroutine, _, _ in self.waiting:
            with running(self.loop):
                coroutine.close()
        self.waiting.clear()
        for reservation in self.open:
            reservation.release()


def expect(error: type[Exception] | None, function: Callable[..., Any], **arguments: Any) -> Any:
    """Call the function and check that it raises exactly this error."""
    try:
        answer = function(**arguments)
    except (ValueError, BudgetExceeded, ReservationClosed) as raised:
        assert type(raised) is error, f"{type(raised)} instead of {error}"
        assert len(str(raised)) < 1000
        return None
    assert error is None, f"no {error}"
    return answer


TARGETS: dict[str, Callable[[bytes], None]] = {"amounts": amounts, "operations": operations, "families": families}

if __name__ == "__main__":
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
