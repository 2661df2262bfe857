"""A naive calendar, to check windows against, and a clock that tests can set.

The calendar shares no code with the package. It finds the UTC offsets of a zone by searching, counts days as whole
numbers, and puts a moment into the latest day that the zone's clocks have shown by then.
"""

from __future__ import annotations

import math
import zoneinfo
from bisect import bisect_left, bisect_right
from datetime import date, datetime, time, timedelta, timezone
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

DAY = 86_400
HOUR = 3600
ZONES = zoneinfo.available_timezones()
needs_zones = pytest.mark.skipif(not ZONES, reason="this system has no time zone database: pip install tzdata")
WEEKDAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
Period = tuple[float, float]


class Clock:
    """A clock that a test sets."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def at(text: str) -> float:
    """Return the timestamp of a moment in UTC: ``2026-03-29T12:00``."""
    return datetime.fromisoformat(text + "+00:00").timestamp()


def later(moment: float) -> float:
    return math.nextafter(moment, math.inf)


def earlier(moment: float) -> float:
    return math.nextafter(moment, -math.inf)


START = at("2026-03-29T12:00")
FIRST, LAST = int(at("1999-11-01T00:00")), int(at("2041-03-01T00:00"))


class Zone:
    """What the clocks of a zone show: from the n-th of these moments on, they are ahead of UTC by the n-th offset."""

    def __init__(self, begins: list[int], offsets: list[int]) -> None:
        self.begins, self.offsets = begins, offsets
        # The latest second that the clocks showed before each change, counted from 1970-01-01 in local time.
        self.shown = [-(10**18)]
        for end, ahead in zip(begins[1:], offsets, strict=False):
            self.shown.append(max(self.shown[-1], end - 1 + ahead))

    def latest(self, moment: float) -> int:
        """Return the latest second that the clocks have shown by that moment."""
        second = math.floor(moment)
        piece = bisect_right(self.begins, second) - 1
        return max(self.shown[piece], second + self.offsets[piece])

    def first(self, wall: int) -> float:
        """Return the first moment at which the clocks show that second or a later one."""
        piece = bisect_left(self.shown, wall) - 1
        return float(max(self.begins[piece], wall - self.offsets[piece]))

    def period(self, rule: str, moment: float) -> Period:
        """Return the period of a window such as ``daily at 06:00``, ``weekly starts sunday`` or ``monthly day 15``."""
        kind, _, start = rule.partition(" ")
        seconds = 0
        if kind == "daily" and start:
            hour = time.fromisoformat(start[3:])
            seconds = hour.hour * HOUR + hour.minute * 60 + hour.second
        begin = day = (self.latest(moment) - seconds) // DAY
        while not starts(kind, start, begin):
            begin -= 1
        end = day + 1
        while not starts(kind, start, end):
            end += 1
        return self.first(begin * DAY + seconds), self.first(end * DAY + seconds)


@cache
def starts(kind: str, start: str, day: int) -> bool:
    """Return whether a period starts on that day, counted from 1970-01-01."""
    that = date(1970, 1, 1) + timedelta(days=day)
    if kind == "weekly":
        return that.strftime("%A").lower() == (start.removeprefix("starts ") or "monday")
    if kind == "monthly":
        wanted = int(start.removeprefix("day ") or 1)
        return that.day == wanted or (that.day < wanted and (that + timedelta(days=1)).day == 1)
    return True


@cache
def look_at_zone(name: str) -> Zone:
    """Find what the clocks of a zone show from 2000 to 2040."""
    zone = zoneinfo.ZoneInfo(name) if name != "UTC" else timezone.utc

    def offset(moment: int) -> int:
        ahead = datetime.fromtimestamp(moment, zone).utcoffset()
        assert ahead is not None
        return round(ahead.total_seconds())

    begins, offsets = [FIRST], [offset(FIRST)]
    for look in range(FIRST, LAST, DAY):
        if offset(look) != offsets[-1]:
            before, after = look - DAY, look
            while after - before > 1:
                middle = (before + after) // 2
                before, after = (before, middle) if offset(middle) == offset(look) else (middle, after)
            assert offset(before) == offsets[-1], "two changes in one day"
            begins.append(after)
            offsets.append(offset(look))
    return Zone(begins, offsets)


def naive_spans(micros: int, moment: float) -> Period:
    """Return the span of that many microseconds, aligned to 1970, that contains the moment. Its ends are floats."""
    index = math.floor(Fraction(moment) * 10**6 / micros) + 2
    while float(Fraction(index * micros, 10**6)) > moment:
        index -= 1
    return float(Fraction(index * micros, 10**6)), float(Fraction((index + 1) * micros, 10**6))


def naive(text: str) -> Callable[[float], Period]:
    """Return a naive function from moments to periods, for a rule such as ``every 5h`` or ``daily Europe/Berlin``."""
    kind, _, rest = text.partition(" ")
    if kind == "every":
        micros = int(rest[:-1]) * {"s": 1, "m": 60, "h": HOUR, "d": DAY}[rest[-1]] * 10**6
        return lambda moment: naive_spans(micros, moment)
    zone = look_at_zone(rest or "UTC")
    return lambda moment: zone.period(kind, moment)
