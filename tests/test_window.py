"""Windows: periods without gap or overlap in every time zone, and pools that count anew once at the end of each."""

from __future__ import annotations

import asyncio
import copy
import math
import pickle
import threading
import time
import zoneinfo
from bisect import bisect_left, bisect_right
from datetime import date, datetime, timedelta, timezone, tzinfo
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from support import caught, run_together
from token_budget import (
    BudgetEvent,
    BudgetExceeded,
    BudgetOverrun,
    BudgetPool,
    BudgetSnapshot,
    PoolClosed,
    Reservation,
    Window,
)

if TYPE_CHECKING:
    from collections.abc import Callable

DAY = 86_400
HOUR = 3600

ZONES = zoneinfo.available_timezones()
needs_zones = pytest.mark.skipif(not ZONES, reason="this machine has no time zone data: install the package tzdata")

# Clocks that change at midnight or over it, by odd amounts, for good, across a whole day, or in winter.
SAMPLE = (
    "Africa/Cairo", "Africa/Casablanca", "Africa/Juba", "Africa/Sao_Tome", "Africa/Windhoek", "America/Asuncion",
    "America/Campo_Grande", "America/Caracas", "America/Goose_Bay", "America/Havana", "America/Metlakatla",
    "America/New_York", "America/Santiago", "America/Sao_Paulo", "America/Scoresbysund", "America/St_Johns",
    "Antarctica/Casey", "Antarctica/Macquarie", "Antarctica/Troll", "Asia/Amman", "Asia/Beirut", "Asia/Damascus",
    "Asia/Dhaka", "Asia/Gaza", "Asia/Karachi", "Asia/Kathmandu", "Asia/Pyongyang", "Asia/Tehran", "Atlantic/Azores",
    "Australia/Lord_Howe", "Europe/Berlin", "Europe/Dublin", "Europe/Istanbul", "Europe/Lisbon", "Europe/London",
    "Europe/Volgograd", "Pacific/Apia", "Pacific/Chatham", "Pacific/Easter", "Pacific/Fakaofo", "UTC",
)  # fmt: skip


def at(text: str) -> float:
    """Return the timestamp of a moment in UTC: ``2026-03-29T12:00``."""
    return datetime.fromisoformat(text + "+00:00").timestamp()


def later(moment: float) -> float:
    return math.nextafter(moment, math.inf)


def earlier(moment: float) -> float:
    return math.nextafter(moment, -math.inf)


START = at("2026-03-29T12:00")


class Clock:
    """A clock that somebody else sets."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


# ------------------------------------------------------------------ the naive calendar

# What the windows are checked against, written a second time by other means: the offsets from UTC that a zone goes
# through are found by looking, days are whole numbers, and a moment belongs to the latest day that the zone's clocks
# have shown by then.

FIRST, LAST = int(at("1999-11-01T00:00")), int(at("2041-03-01T00:00"))
Period = tuple[float, float]


class Zone:
    """What the clocks of a zone show: from the first of these moments on, they are ahead of UTC by the first offset."""

    def __init__(self, begins: list[int], offsets: list[int]) -> None:
        self.begins, self.offsets = begins, offsets
        # The latest day, in days since 1970-01-01, that was shown before each change.
        self.shown = [-DAY]
        for end, ahead in zip(begins[1:], offsets, strict=False):
            self.shown.append(max(self.shown[-1], (end - 1 + ahead) // DAY))

    def day(self, moment: float) -> int:
        """Return the latest day that was shown by then."""
        second = math.floor(moment)
        piece = bisect_right(self.begins, second) - 1
        return max(self.shown[piece], (second + self.offsets[piece]) // DAY)

    def first(self, day: int) -> float:
        """Return the first moment at which that day is shown, or a later one."""
        piece = bisect_left(self.shown, day) - 1
        return float(max(self.begins[piece], day * DAY - self.offsets[piece]))

    def period(self, kind: str, moment: float) -> Period:
        day = self.day(moment)
        begin, end = day, day + 1
        if kind == "weekly":
            begin = day - (day + 3) % 7  # 1970-01-01 was a Thursday
            end = begin + 7
        elif kind == "monthly":
            that = date(1970, 1, 1) + timedelta(days=day)
            begin = day - that.day + 1
            end = begin + 28
            while (date(1970, 1, 1) + timedelta(days=end)).month == that.month:
                end += 1
        return self.first(begin), self.first(end)


@cache
def look_at_zone(name: str) -> Zone:
    """Find what the clocks of a zone show from 2000 to 2040."""
    zone = zoneinfo.ZoneInfo(name)

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
    """Return the span of that many microseconds, counted from 1970, whose ends as floats enclose the moment."""
    index = math.floor(Fraction(moment) * 10**6 / micros) + 2
    while float(Fraction(index * micros, 10**6)) > moment:
        index -= 1
    return float(Fraction(index * micros, 10**6)), float(Fraction((index + 1) * micros, 10**6))


def naive(text: str) -> Callable[[float], Period]:
    """Return the naive function that answers the period of a moment, for a window as `Window.parse` reads it."""
    kind, _, rest = text.partition(" ")
    if kind == "every":
        micros = int(rest[:-1]) * {"s": 1, "m": 60, "h": HOUR, "d": DAY}[rest[-1]] * 10**6
        return lambda moment: naive_spans(micros, moment)
    zone = look_at_zone(rest or "UTC")
    return lambda moment: zone.period(kind, moment)


# ------------------------------------------------------------------ periods by example

EXAMPLES = [
    ("daily", "2026-02-28T00:00", "2026-03-01T00:00", 24),
    ("daily UTC", "2024-02-29T00:00", "2024-03-01T00:00", 24),
    ("daily", "1969-12-31T00:00", "1970-01-01T00:00", 24),
    ("daily Asia/Kathmandu", "2026-07-14T18:15", "2026-07-15T18:15", 24),
    ("daily Europe/Berlin", "2026-03-28T23:00", "2026-03-29T22:00", 23),
    ("daily Europe/Berlin", "2026-10-24T22:00", "2026-10-25T23:00", 25),
    ("daily America/New_York", "2026-03-08T05:00", "2026-03-09T04:00", 23),
    ("daily America/New_York", "2026-11-01T04:00", "2026-11-02T05:00", 25),
    ("daily Australia/Lord_Howe", "2026-04-04T13:00", "2026-04-05T13:30", 24.5),
    ("daily Australia/Lord_Howe", "2026-10-03T13:30", "2026-10-04T13:00", 23.5),
    # St John's: at 00:01 the clocks went back to 23:01, and forward to 01:01.
    ("daily America/St_Johns", "2006-10-28T02:30", "2006-10-29T02:30", 24),
    ("daily America/St_Johns", "2006-10-29T02:30", "2006-10-30T03:30", 25),
    ("daily America/St_Johns", "2006-04-02T03:30", "2006-04-03T02:30", 23),
    # Samoa left out Friday, 2011-12-30.
    ("daily Pacific/Apia", "2011-12-29T10:00", "2011-12-30T10:00", 24),
    ("daily Pacific/Apia", "2011-12-30T10:00", "2011-12-31T10:00", 24),
    ("weekly Pacific/Apia", "2011-12-26T10:00", "2012-01-01T10:00", 6 * 24),
    ("monthly Pacific/Apia", "2011-12-01T10:00", "2011-12-31T10:00", 30 * 24),
    # Sao Paulo: from 00:00 to 01:00; at 24:00 back to 23:00.
    ("daily America/Sao_Paulo", "2018-11-03T03:00", "2018-11-04T03:00", 24),
    ("daily America/Sao_Paulo", "2018-11-04T03:00", "2018-11-05T02:00", 23),
    ("daily America/Sao_Paulo", "2019-02-16T02:00", "2019-02-17T03:00", 25),
    # Havana: from 00:00 to 01:00; at 01:00 back to 00:00, which midnight comes twice, here on the first of a month.
    ("daily America/Havana", "2026-03-08T05:00", "2026-03-09T04:00", 23),
    ("daily America/Havana", "2026-10-31T04:00", "2026-11-01T04:00", 24),
    ("daily America/Havana", "2026-11-01T04:00", "2026-11-02T05:00", 25),
    ("monthly America/Havana", "2026-10-01T04:00", "2026-11-01T04:00", 31 * 24),
    ("monthly America/Havana", "2026-11-01T04:00", "2026-12-01T05:00", 30 * 24 + 1),
    # Toronto, 1919: from 23:30 to 00:30.
    ("daily America/Toronto", "1919-03-30T05:00", "1919-03-31T04:30", 23.5),
    ("daily America/Toronto", "1919-03-31T04:30", "1919-04-01T04:00", 23.5),
    # Beirut: from 00:00 to 01:00; at 24:00 back to 23:00.
    ("daily Asia/Beirut", "2026-03-28T22:00", "2026-03-29T21:00", 23),
    ("daily Asia/Beirut", "2026-10-23T21:00", "2026-10-24T22:00", 25),
    # Dhaka: at the end of 2009 back to 23:00, at the same time the end of a day and of a month.
    ("daily Asia/Dhaka", "2009-12-30T17:00", "2009-12-31T18:00", 25),
    ("monthly Asia/Dhaka", "2009-11-30T17:00", "2009-12-31T18:00", 31 * 24 + 1),
    ("weekly", "2026-07-13T00:00", "2026-07-20T00:00", 7 * 24),
    ("weekly", "2024-12-30T00:00", "2025-01-06T00:00", 7 * 24),
    ("weekly America/New_York", "2026-03-02T05:00", "2026-03-09T04:00", 7 * 24 - 1),
    ("weekly Europe/Berlin", "2026-10-18T22:00", "2026-10-25T23:00", 7 * 24 + 1),
    ("monthly", "2026-12-01T00:00", "2027-01-01T00:00", 31 * 24),
    ("monthly", "2024-02-01T00:00", "2024-03-01T00:00", 29 * 24),
    ("monthly", "2100-02-01T00:00", "2100-03-01T00:00", 28 * 24),
    ("monthly Europe/Berlin", "2026-02-28T23:00", "2026-03-31T22:00", 31 * 24 - 1),
    ("every 1h", "2026-07-14T09:00", "2026-07-14T10:00", 1),
    ("every 90m", "1970-01-01T01:30", "1970-01-01T03:00", 1.5),
    ("every 5h", "1970-01-01T20:00", "1970-01-02T01:00", 5),
    ("every 5h", "1969-12-31T19:00", "1970-01-01T00:00", 5),
    ("every 1d", "2026-03-29T00:00", "2026-03-30T00:00", 24),
    ("every 7d", "2026-07-09T00:00", "2026-07-16T00:00", 7 * 24),  # from Thursday, as 1970-01-01 was
    ("every 30s", "2026-07-14T09:00:30", "2026-07-14T09:01", 30 / 3600),
]


@pytest.mark.parametrize(("text", "start", "end", "hours"), EXAMPLES)
@needs_zones
def test_a_period_is_what_a_calendar_on_the_wall_says(text: str, start: str, end: str, hours: float) -> None:
    window = Window.parse(text)
    period = (at(start), at(end))
    assert period[1] - period[0] == hours * HOUR
    for moment in (period[0], later(period[0]), sum(period) / 2, period[1] - 1, period[1] - 0.001):
        assert window.period(moment) == period
    assert window.period(period[0] - 0.001)[1] == period[0]
    assert window.period(period[1])[0] == period[1]


@pytest.mark.parametrize("text", ["daily", "weekly", "monthly", "every 5h", "daily Europe/Berlin", "daily Asia/Tehran"])
@needs_zones
def test_the_last_moment_before_the_end_that_a_float_can_tell_is_in_the_period(text: str) -> None:
    window = Window.parse(text)
    period = window.period(at("2012-01-01T12:00"))
    assert window.period(earlier(period[1])) == period
    before = window.period(earlier(period[0]))
    assert before[0] < period[0] == before[1]


@needs_zones
def test_the_last_moment_before_a_day_that_was_left_out_is_in_the_day_before() -> None:
    window = Window.daily("Pacific/Apia")
    end = at("2011-12-30T10:00")
    assert window.period(earlier(end)) == (at("2011-12-29T10:00"), end)


@needs_zones
def test_minutes_that_come_twice_do_not_reopen_the_day_that_they_ended() -> None:
    window = Window.daily("America/St_Johns")
    zone = zoneinfo.ZoneInfo("America/St_Johns")
    begun = at("2006-10-29T02:30")
    again = [begun + second for second in range(60, 3600)]
    assert {datetime.fromtimestamp(moment, zone).date() for moment in again} == {date(2006, 10, 28)}
    assert {window.period(moment)[0] for moment in again} == {begun}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("America/Havana", "2026-11-01T05:00"),
        ("America/Sao_Paulo", "2018-11-04T03:00"),
        ("America/St_Johns", "2006-10-29T02:31"),
        ("America/Toronto", "1919-03-31T04:30"),
        ("Asia/Beirut", "2026-10-24T21:00"),
        ("Pacific/Apia", "2011-12-30T10:00"),
    ],
)
@needs_zones
def test_a_day_begins_at_the_first_second_that_shows_its_date(name: str, change: str) -> None:
    window, zone = Window.daily(name), zoneinfo.ZoneInfo(name)
    shown = date.min
    begun = []
    for second in range(int(at(change)) - DAY - 7200, int(at(change)) + DAY + 7200):
        today = datetime.fromtimestamp(second, zone).date()
        if today > shown:
            shown = today
            begun.append(float(second))
    assert len(begun) >= 3
    days = list(pairwise(begun[1:]))
    assert [window.period(moment) for moment in begun[1:-1]] == days
    if days[0][0] > FIRST:
        assert [look_at_zone(name).period("daily", moment) for moment in begun[1:-1]] == days


def test_utc_is_the_zone_if_none_is_given() -> None:
    moment = at("2026-07-15T12:00")
    for make in (Window.daily, Window.weekly, Window.monthly):
        assert make().period(moment) == make(timezone.utc).period(moment)


def test_a_fixed_offset_is_a_zone() -> None:
    tz = timezone(timedelta(hours=5, minutes=45))
    assert Window.daily(tz).period(at("2026-07-15T12:00")) == (at("2026-07-14T18:15"), at("2026-07-15T18:15"))
    assert Window.weekly(tz).period(at("2026-07-15T12:00")) == (at("2026-07-12T18:15"), at("2026-07-19T18:15"))
    assert Window.monthly(tz).period(at("2026-07-15T12:00")) == (at("2026-06-30T18:15"), at("2026-07-31T18:15"))


@needs_zones
def test_a_zone_may_be_given_by_its_name_or_as_a_tzinfo() -> None:
    moment = at("2026-10-25T12:00")
    zone = zoneinfo.ZoneInfo("Europe/Berlin")
    assert Window.daily("Europe/Berlin").period(moment) == Window.daily(zone).period(moment)


def test_ends_are_floats_and_the_moment_may_be_an_int() -> None:
    for window in (Window.daily(), Window.weekly(), Window.monthly(), Window.every(timedelta(hours=5))):
        assert [type(end) for end in window.period(1_800_000_000)] == [float, float]
        assert window.period(1_800_000_000) == window.period(1_800_000_000.0)


def test_spans_may_be_of_any_length() -> None:
    assert Window.every(timedelta(microseconds=1)).period(1.5) == (1.5, 1.500001)
    assert Window.every(timedelta(milliseconds=250)).period(7.3) == (7.25, 7.5)
    assert Window.every(timedelta(days=36525)).period(5.0) == (0.0, 36525.0 * DAY)


# ------------------------------------------------------------------ periods by property

AROUND = sorted(sign * distance for sign in (-1, 1) for distance in (0.5, 60, 1800, HOUR - 60, HOUR, 2 * HOUR, DAY))
KINDS = {"daily": Window.daily, "weekly": Window.weekly, "monthly": Window.monthly}


def check_around(name: str, zone: Zone, change: int) -> None:
    moments = [change + distance for distance in AROUND] + [float(change)]
    for kind, make in KINDS.items():
        window = make(name)
        seen: set[Period] = set()
        for moment in moments:
            start, end = window.period(moment)
            assert start <= moment < end, (kind, name, moment)
            assert (start, end) == zone.period(kind, moment), (kind, name, moment)
            seen.add((start, end))
        periods = sorted(seen)
        for start, end in periods:
            assert window.period(start) == window.period(end - 1) == (start, end), (kind, name, start)
            assert window.period(end)[0] == end, (kind, name, end)
            assert window.period(start - 1)[1] == start, (kind, name, start)
        for period, following in pairwise(periods):
            assert period[1] <= following[0], (kind, name, period)


@needs_zones
def test_around_every_change_of_every_zone_the_periods_follow_each_other_and_begin_with_their_date(full: bool) -> None:
    names = sorted(ZONES if full else ZONES.intersection(SAMPLE))
    checked: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    changes = 0
    for name in names:
        zone = look_at_zone(name)
        clocks = (tuple(zone.begins), tuple(zone.offsets))
        if clocks in checked:  # another name of the same clocks
            continue
        checked.add(clocks)
        for change in [*zone.begins[1:], int(at("2020-02-29T12:00"))]:
            if at("2000-01-01T00:00") <= change < at("2041-01-01T00:00"):
                check_around(name, zone, change)
                changes += 1
    assert changes > (6000 if full else 1000)


@pytest.mark.parametrize("kind", list(KINDS))
@needs_zones
@given(
    name=st.sampled_from(sorted(ZONES.intersection(SAMPLE)) or ["UTC"]),
    moment=st.floats(FIRST + 62 * DAY, LAST - 60 * DAY),
)
def test_any_moment_is_in_the_period_that_the_naive_calendar_says(kind: str, name: str, moment: float) -> None:
    moment = round(moment * 1024) / 1024  # not nearer to an end than a microsecond
    assert KINDS[kind](name).period(moment) == look_at_zone(name).period(kind, moment)


class OneChange(tzinfo):
    """A zone whose clocks change once, from one offset to another."""

    def __init__(self, change: int, before: int, after: int) -> None:
        self._utc = datetime(1970, 1, 1) + timedelta(seconds=change)  # noqa: DTZ001 - as `fromutc` is given them
        self._before, self._after = timedelta(seconds=before), timedelta(seconds=after)

    def utcoffset(self, dt: datetime | None) -> timedelta:
        assert dt is not None
        shifts = (self._before, self._after)
        end = self._utc + (min(shifts) if dt.fold else max(shifts))
        return self._before if dt.replace(tzinfo=None) < end else self._after

    def dst(self, dt: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, dt: datetime | None) -> str:
        return "one change"

    def fromutc(self, dt: datetime) -> datetime:
        since = dt.replace(tzinfo=None) - self._utc
        if since < timedelta(0):
            return dt + self._before
        return (dt + self._after).replace(fold=since < self._before - self._after)


offsets = st.one_of(
    st.integers(-13 * 4, 13 * 4).map(lambda quarters: quarters * 900), st.integers(-13 * HOUR, 13 * HOUR)
)


@hypothesis.settings(max_examples=hypothesis.settings().max_examples // 3)
@given(
    change=st.one_of(st.integers(-40 * DAY, 40 * DAY), st.integers(-40 * 96, 40 * 96).map(lambda n: n * 900)),
    before=offsets,
    after=offsets,
    distances=st.lists(st.integers(-2 * DAY, 2 * DAY) | st.integers(-90, 90), max_size=6),
)
def test_clocks_may_change_at_any_second_by_any_amount(
    change: int, before: int, after: int, distances: list[int]
) -> None:
    change += int(START)
    tz, zone = OneChange(change, before, after), Zone([FIRST, change], [before, after])
    for kind, make in KINDS.items():
        window = make(tz)
        for distance in (*distances, 0, -1, 0.5):
            start, end = window.period(change + distance)
            assert start <= change + distance < end
            assert (start, end) == zone.period(kind, change + distance)
            assert window.period(start) == window.period(end - 1) == (start, end)
            assert window.period(end)[0] == end


@given(
    micros=st.one_of(st.integers(1, 10**4), st.integers(1, 10**14), st.integers(1, 10**6).map(lambda n: n * 10**6)),
    moment=st.one_of(st.floats(-(2.0**32), 2.0**32), st.integers(-(2**32), 2**32).map(float)),
)
def test_spans_enclose_every_moment_and_follow_each_other(micros: int, moment: float) -> None:
    window = Window.every(timedelta(microseconds=micros))
    start, end = window.period(moment)
    assert start <= moment < end
    assert (start, end) == naive_spans(micros, moment)
    assert window.period(start) == window.period(earlier(end)) == (start, end)
    assert window.period(end)[0] == end
    assert window.period(earlier(start))[1] == start


# ------------------------------------------------------------------ making windows


def test_a_window_is_made_by_its_constructors_only() -> None:
    make: Any = Window
    for arguments in ((), ("daily",), (1, 2)):
        with pytest.raises(TypeError, match=r"Window\.daily\(\), weekly\(\), monthly\(\), every\(\) or parse\(\)"):
            make(*arguments)
    with pytest.raises(TypeError, match="every"):
        make(clock=time.time)


@pytest.mark.parametrize("make", [Window.daily, Window.weekly, Window.monthly])
@pytest.mark.parametrize("tz", [1, 1.5, b"UTC", date(2026, 1, 1), timedelta(hours=1), ["UTC"], True, tzinfo])
def test_what_is_no_zone_is_a_type_error(make: Callable[[Any], Window], tz: Any) -> None:
    with pytest.raises(TypeError, match=f"tz must be a tzinfo or the name of a time zone, not {type(tz).__name__}"):
        make(tz)


@pytest.mark.parametrize("make", [Window.daily, Window.weekly, Window.monthly])
@pytest.mark.parametrize(
    "name",
    ["", "Nowhere/Land", "America", "../UTC", "/etc/passwd", "UTC\0", "\ud800", "Europe/Berlin ", "+01:00", "x" * 5000],
)
def test_a_name_of_no_zone_is_a_value_error_that_tells_the_name_and_what_windows_needs(
    make: Callable[[str], Window], name: str
) -> None:
    with pytest.raises(ValueError, match="install the package tzdata") as raised:
        make(name)
    assert repr(name[:60]) in str(raised.value)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("length", [5, 5.0, "5h", None, date(2026, 1, 1)])
def test_a_length_that_is_no_timedelta_is_a_type_error(length: Any) -> None:
    with pytest.raises(TypeError, match=f"length must be a datetime.timedelta, not {type(length).__name__}"):
        Window.every(length)


@pytest.mark.parametrize("length", [timedelta(0), timedelta(microseconds=-1), timedelta(days=-1), timedelta.min])
def test_a_length_that_is_not_above_zero_is_a_value_error(length: timedelta) -> None:
    with pytest.raises(ValueError, match="length must be above 0"):
        Window.every(length)


@pytest.mark.parametrize("clock", [None, 5, 5.0, "now", datetime(2026, 1, 1, tzinfo=timezone.utc)])
def test_a_clock_that_cannot_be_called_is_a_type_error(clock: Any) -> None:
    makers: list[Callable[[], Window]] = [
        lambda: Window.daily(clock=clock),
        lambda: Window.weekly(timezone.utc, clock=clock),
        lambda: Window.monthly(clock=clock),
        lambda: Window.every(timedelta(1), clock=clock),
        lambda: Window.parse("daily", clock=clock),
        lambda: Window.parse("every 5h", clock=clock),
    ]
    for make in makers:
        with pytest.raises(TypeError, match="clock must be a function that returns a POSIX timestamp"):
            make()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("daily", "daily UTC"),
        ("weekly", "weekly UTC"),
        ("monthly", "monthly UTC"),
        ("daily Europe/Berlin", "daily Europe/Berlin"),
        ("weekly America/New_York", "weekly America/New_York"),
        ("monthly Asia/Kathmandu", "monthly Asia/Kathmandu"),
        ("  monthly   Asia/Kathmandu\n", "monthly Asia/Kathmandu"),
        ("every 30s", "every 0:00:30"),
        ("every 90m", "every 1:30:00"),
        ("every 5h", "every 5:00:00"),
        ("every 7d", "every 7 days, 0:00:00"),
        (" every  07d ", "every 7 days, 0:00:00"),
    ],
)
@needs_zones
def test_each_form_of_text_gives_its_window(text: str, shown: str) -> None:
    clock = Clock(0)
    window = Window.parse(text, clock=clock)
    assert repr(window) == f"<Window {shown}>"
    assert window.clock is clock
    assert Window.parse(text).clock is time.time


def test_the_text_of_a_window_tells_the_zone_that_was_given() -> None:
    assert repr(Window.daily(timezone.utc)) == "<Window daily UTC>"
    assert repr(Window.weekly(timezone(timedelta(hours=-3)))) == "<Window weekly UTC-03:00>"
    assert repr(Window.every(timedelta(milliseconds=1500))) == "<Window every 0:00:01.500000>"


@needs_zones
def test_a_parsed_window_has_the_periods_of_the_one_made_by_hand() -> None:
    by_hand = {
        "daily": Window.daily(),
        "weekly Europe/Berlin": Window.weekly("Europe/Berlin"),
        "monthly Asia/Dhaka": Window.monthly("Asia/Dhaka"),
        "every 30s": Window.every(timedelta(seconds=30)),
        "every 90m": Window.every(timedelta(minutes=90)),
        "every 5h": Window.every(timedelta(hours=5)),
        "every 3d": Window.every(timedelta(days=3)),
    }
    for text, window in by_hand.items():
        for moment in range(int(at("2026-10-20T00:00")), int(at("2026-11-03T00:00")), 7777):
            assert Window.parse(text).period(moment) == window.period(moment)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "hourly", "Daily", "DAILY UTC", "daily,UTC", "daily\tUTC", "UTC daily", "every", "every ", "every 5",
        "every h", "every 5H", "every 5w", "every 5 h", "every -5h", "every +5h", "every 1.5h", "every 1e3s",
        "every 1_0h", "every five h", "5h", "yearly", "every day", "x" * 5000,
    ],
)  # fmt: skip
def test_text_that_says_no_window_is_a_value_error_that_tells_what_to_say(text: str) -> None:
    with pytest.raises(
        ValueError, match="say daily, weekly or monthly, then a time zone if it is not UTC, or every 5h"
    ) as raised:
        Window.parse(text)
    assert repr(text.strip()[:50])[1:-1] in str(raised.value)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("text", ["daily Nowhere/Land", "weekly 5h", "monthly Europe/Berlin Europe/Paris"])
def test_text_with_a_zone_that_there_is_not_is_a_value_error_that_tells_it(text: str) -> None:
    with pytest.raises(ValueError, match="there is no time zone") as raised:
        Window.parse(text)
    assert repr(text.partition(" ")[2]) in str(raised.value)


def test_a_span_of_nothing_is_a_value_error_in_text_too() -> None:
    for text in ("every 0h", "every 000s"):
        with pytest.raises(ValueError, match="length must be above 0"):
            Window.parse(text)


def test_a_span_beyond_what_a_timedelta_can_tell_is_a_value_error() -> None:
    for digits in (10, 300, 4000):
        with pytest.raises(ValueError, match="is too long a window"):
            Window.parse("every " + "9" * digits + "d")


@pytest.mark.parametrize("text", [None, 5, b"daily", timedelta(hours=5), Window.daily()])
def test_only_text_is_parsed(text: Any) -> None:
    with pytest.raises(TypeError, match=f"a window is parsed from a str, not {type(text).__name__}"):
        Window.parse(text)


@pytest.mark.parametrize("moment", [math.nan, math.inf, -math.inf, 1e12, -1e12, 1e300])
def test_a_moment_in_no_year_that_datetime_knows_is_an_error(moment: float) -> None:
    for window in (Window.daily(), Window.weekly(), Window.monthly()):
        with pytest.raises((ValueError, OverflowError)):
            window.period(moment)


@pytest.mark.parametrize("moment", [math.nan, math.inf, -math.inf])
def test_what_is_no_moment_is_in_no_span(moment: float) -> None:
    with pytest.raises((ValueError, OverflowError)):
        Window.every(timedelta(hours=5)).period(moment)


# ------------------------------------------------------------------ pools


def hourly(clock: Callable[[], float]) -> Window:
    return Window.every(timedelta(hours=1), clock=clock)


def roll_overs(pool: BudgetPool) -> list[BudgetEvent]:
    """Return the list to which each roll-over of the pool will be added."""
    events: list[BudgetEvent] = []

    def hear(event: BudgetEvent) -> None:
        if event.kind == "roll-over":
            events.append(event)

    pool.subscribe(hear)
    return events


@pytest.mark.parametrize("window", ["daily", Window, timedelta(hours=1), 5, {"every": 5}, lambda: 0.0])
def test_a_window_of_another_type_is_a_type_error_that_tells_how_to_make_one(window: Any) -> None:
    pool = BudgetPool()
    for make in (BudgetPool, pool.child, pool.keyed):
        with pytest.raises(TypeError, match=r"window must be a Window \(Window\.daily\(\) and so on\), not"):
            make(window=window)
    assert pool.snapshot(tree=True).children == ()


def test_without_a_window_a_snapshot_tells_no_period() -> None:
    pool = BudgetPool(usd_cap=10)
    assert (pool.snapshot().window_start, pool.snapshot().resets_at) == (None, None)
    assert pool.child(window=hourly(Clock(START))).snapshot().window_start is not None
    assert pool.snapshot().window_start is None


@needs_zones
def test_a_snapshot_tells_its_period_as_aware_utc_datetimes() -> None:
    clock = Clock(START)
    pool = BudgetPool(usd_cap=10, window=Window.daily("Europe/Berlin", clock=clock))
    snapshot = pool.snapshot()
    assert snapshot.window_start == datetime(2026, 3, 28, 23, tzinfo=timezone.utc)
    assert snapshot.resets_at == datetime(2026, 3, 29, 22, tzinfo=timezone.utc)
    for moment in (snapshot.window_start, snapshot.resets_at):
        assert moment is not None
        assert moment.tzinfo is timezone.utc


def test_the_clock_is_the_systems_if_none_is_given() -> None:
    pool = BudgetPool(window=Window.daily())
    before = datetime.now(timezone.utc)
    snapshot = pool.snapshot()
    assert snapshot.window_start is not None
    assert snapshot.resets_at is not None
    assert snapshot.window_start <= datetime.now(timezone.utc)
    assert before < snapshot.resets_at
    assert snapshot.resets_at - snapshot.window_start == timedelta(days=1)


@needs_zones
def test_the_cap_holds_through_the_day_and_the_next_day_has_all_of_it() -> None:
    clock = Clock(START)
    pool = BudgetPool(usd_cap=10, window=Window.daily("Europe/Berlin", clock=clock))
    pool.record(usd=10)
    clock.now = earlier(at("2026-03-29T22:00"))
    with pytest.raises(BudgetExceeded):
        pool.record(usd=1)
    clock.now = at("2026-03-29T22:00")
    pool.record(usd=10)
    with pytest.raises(BudgetExceeded):
        pool.record(usd=1)


OPERATIONS: dict[str, Callable[[BudgetPool], object]] = {
    "record": lambda pool: pool.record(),
    "record by force": lambda pool: pool.record(force=True),
    "a record that is refused": lambda pool: caught(BudgetExceeded, pool.record, tokens=11),
    "reserve": lambda pool: pool.reserve().release(),
    "try_reserve": lambda pool: pool.try_reserve().release(),
    "snapshot": lambda pool: pool.snapshot(),
    "tree": lambda pool: pool.snapshot(tree=True),
    "repr": repr,
    "set_caps": lambda pool: pool.set_caps(usd_cap=3),
    "close": lambda pool: pool.close(),
    "subscribe": lambda pool: pool.subscribe(print),
    "child": lambda pool: pool.child(),
    "a child's record": lambda pool: pool.child().record(),
    "a key's record": lambda pool: pool.keyed()["key"].record(),
    "a join's record": lambda pool: BudgetPool.join(pool).record(),
}


@pytest.mark.parametrize("operation", list(OPERATIONS.values()), ids=list(OPERATIONS))
def test_any_operation_at_the_end_of_the_period_rolls_the_pool_over(operation: Callable[[BudgetPool], object]) -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    events = roll_overs(pool)
    pool.record(tokens=7, usd=0.5)
    clock.now = earlier(START + HOUR)
    operation(BudgetPool(10, window=hourly(clock)))  # another pool's period is none of this one's business
    assert pool.snapshot().tokens_used == 7
    assert events == []
    clock.now = START + HOUR
    operation(pool)
    assert len(events) == 1
    after = events[0].snapshot
    assert (after.tokens_used, after.usd_used, after.in_flight) == (0, 0, 0)
    assert after.window_start == datetime(2026, 3, 29, 13, tzinfo=timezone.utc)
    assert after.resets_at == datetime(2026, 3, 29, 14, tzinfo=timezone.utc)
    assert (events[0].tokens, events[0].usd, events[0].pool) == (0, 0, None)
    assert (pool.snapshot().tokens_used, pool.snapshot().window_start) == (0, after.window_start)
    assert len(events) == 1


@pytest.mark.parametrize("operation", list(OPERATIONS.values()), ids=list(OPERATIONS))
def test_the_first_operation_of_all_may_be_the_one_after_the_end(operation: Callable[[BudgetPool], object]) -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    clock.now = START + HOUR
    operation(pool)
    clock.now = START  # so that this look does not do it
    assert pool.snapshot().window_start == datetime.fromtimestamp(START + HOUR, timezone.utc)


def test_the_first_snapshot_of_all_shows_the_period_of_its_moment() -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    clock.now = START + HOUR
    assert pool.snapshot().window_start == datetime.fromtimestamp(START + HOUR, timezone.utc)


def test_until_somebody_looks_nothing_rolls_over_and_then_all_at_once() -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    events = roll_overs(pool)
    pool.record(tokens=7)
    clock.now = START + 1000.5 * HOUR
    assert events == []
    assert pool.snapshot().tokens_used == 0
    assert len(events) == 1
    assert pool.snapshot().window_start == datetime.fromtimestamp(START + 1000 * HOUR, timezone.utc)


def test_a_call_with_bad_arguments_does_not_roll_over() -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    events = roll_overs(pool)
    clock.now = START + HOUR
    with pytest.raises(ValueError, match="tokens"):
        pool.record(tokens=-1)
    assert events == []


def test_reservations_in_flight_keep_what_they_hold_and_count_where_they_are_committed() -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    committed, dearer, released = pool.reserve(tokens=3), pool.reserve(tokens=2), pool.reserve(tokens=4)
    pool.record(tokens=1)
    clock.now = START + HOUR
    snapshot = pool.snapshot()
    assert (snapshot.tokens_used, snapshot.tokens_reserved, snapshot.in_flight) == (0, 9, 3)
    with pytest.raises(BudgetExceeded):
        pool.record(tokens=2)
    pool.record(tokens=1)
    committed.commit(tokens=2)
    clock.now = START + 2 * HOUR
    with pytest.raises(BudgetOverrun):
        dearer.commit(tokens=7)  # 4 are held
    snapshot = pool.snapshot()
    assert (snapshot.tokens_used, snapshot.tokens_reserved, snapshot.in_flight) == (7, 4, 1)
    clock.now = START + 3 * HOUR
    released.release()
    snapshot = pool.snapshot()
    assert (snapshot.tokens_used, snapshot.tokens_reserved, snapshot.in_flight) == (0, 0, 0)


def test_an_overrun_ends_with_its_period() -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    with pytest.raises(BudgetOverrun):
        pool.record(tokens=50, force=True)
    clock.now = START + HOUR
    assert pool.snapshot().tokens_remaining == 10


def test_a_clock_that_steps_back_changes_nothing_and_reopens_nothing() -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    events = roll_overs(pool)
    pool.record(tokens=5)
    clock.now = START + HOUR
    pool.record(tokens=3)
    before = pool.snapshot()
    for back in (1, HOUR, 24 * HOUR, 10**9):
        clock.now = START + HOUR - back
        assert pool.snapshot() == before
        with pytest.raises(BudgetExceeded):
            pool.record(tokens=8)
    pool.record(tokens=1)
    clock.now = earlier(START + 2 * HOUR)  # the same period yet, as if the clock had never been wrong
    assert pool.snapshot().tokens_used == 4
    assert len(events) == 1
    clock.now = START + 2 * HOUR
    assert pool.snapshot().tokens_used == 0
    assert len(events) == 2


def test_a_clock_that_leaps_ahead_and_comes_back_has_ended_the_period() -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    clock.now = START + 50 * HOUR
    pool.record(tokens=3)
    clock.now = START
    for hour in range(51):
        clock.now = START + hour * HOUR
        assert pool.snapshot().tokens_used == 3
    clock.now = START + 51 * HOUR
    assert pool.snapshot().tokens_used == 0


def test_neither_reset_nor_new_caps_move_the_period() -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    clock.now = START + 1800
    pool.record(tokens=5)
    pool.reset()
    pool.set_caps(token_cap=20, usd_cap=1)
    snapshot = pool.snapshot()
    assert (snapshot.tokens_used, snapshot.token_cap) == (0, 20)
    assert snapshot.window_start == datetime.fromtimestamp(START, timezone.utc)
    pool.record(tokens=20)
    clock.now = START + HOUR
    assert pool.snapshot().tokens_remaining == 20


def test_a_closed_pool_shows_its_new_period_and_stays_closed() -> None:
    clock = Clock(START)
    total = BudgetPool(100)
    pool = total.child(10, window=hourly(clock))
    held = pool.reserve(tokens=2)
    pool.record(tokens=5)
    pool.close()
    clock.now = START + HOUR
    held.commit()
    assert (pool.snapshot().tokens_used, total.snapshot().tokens_used) == (2, 7)
    with pytest.raises(PoolClosed):
        pool.record(tokens=1)


def test_a_threshold_calls_back_once_in_each_period() -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))
    calls: list[BudgetEvent] = []
    pool.on_threshold(0.5, calls.append)
    for hour in range(3):
        clock.now = START + hour * HOUR
        for _ in range(9):
            pool.record(tokens=1)
        assert len(calls) == hour + 1
    held = pool.reserve(tokens=1)
    clock.now -= HOUR
    held.commit()
    assert len(calls) == 3


def test_who_waits_is_given_the_room_that_the_end_of_the_period_makes() -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=hourly(clock))

    async def main() -> BudgetSnapshot:
        held = pool.reserve(tokens=4)
        pool.record(tokens=5)
        waiting = asyncio.ensure_future(wait())
        await asyncio.sleep(0)  # it asks, and waits
        assert not waiting.done()
        clock.now = START + HOUR
        assert pool.snapshot().tokens_reserved == 9
        given = await waiting
        snapshot = pool.snapshot()
        held.release()
        given.release()
        return snapshot

    async def wait() -> Reservation:
        return await pool.areserve(tokens=5, timeout=30)

    snapshot = asyncio.run(main())
    assert (snapshot.tokens_used, snapshot.tokens_reserved, snapshot.in_flight) == (0, 9, 2)


def test_a_window_may_be_shared_for_it_holds_no_state() -> None:
    clock = Clock(START)
    window = hourly(clock)
    early, other = BudgetPool(10, window=window), BudgetPool(10, window=window)
    early.record(tokens=1)
    other.record(tokens=2)
    clock.now = START + HOUR
    assert early.snapshot().tokens_used == 0
    late = BudgetPool(10, window=window)
    clock.now = START
    assert (other.snapshot().tokens_used, early.snapshot().tokens_used, late.snapshot().tokens_used) == (2, 0, 0)
    assert other.snapshot().window_start != early.snapshot().window_start == late.snapshot().window_start


def test_parents_and_children_end_their_periods_each_by_its_own() -> None:
    clock = Clock(at("2026-07-15T12:00"))
    month = BudgetPool(100, window=Window.monthly(clock=clock))
    day = month.child(10, window=Window.daily(clock=clock))
    run = day.child(5)
    run.record(tokens=5)
    clock.now += DAY
    assert [pool.snapshot().tokens_used for pool in (run, day, month)] == [5, 0, 5]
    with pytest.raises(BudgetExceeded):
        run.record(tokens=1)
    day.record(tokens=10)
    assert [pool.snapshot().tokens_used for pool in (run, day, month)] == [5, 10, 15]
    clock.now = at("2026-08-01T00:00")
    assert [pool.snapshot().tokens_used for pool in (run, day, month)] == [5, 0, 0]


def test_only_who_is_asked_and_who_is_above_rolls_over_but_a_tree_shows_all_in_their_periods() -> None:
    clock = Clock(START)
    total = BudgetPool(window=hourly(clock))
    child = total.child(window=hourly(clock))
    below = child.child(window=hourly(clock))
    key = child.keyed(window=hourly(clock))["key"]
    rolled = [roll_overs(pool) for pool in (total, child, below, key)]
    below.record(tokens=1)
    key.record(tokens=1)
    clock.now += HOUR
    total.record()
    assert list(map(len, rolled)) == [1, 0, 0, 0]
    below.record()
    assert list(map(len, rolled)) == [1, 1, 1, 0]
    clock.now += HOUR
    tree = total.snapshot(tree=True)
    assert list(map(len, rolled)) == [2, 2, 2, 1]
    shown = [tree, *tree.children, *tree.children[0].children]
    assert [one.tokens_used for one in shown] == [0, 0, 0, 0]
    assert {one.window_start for one in shown} == {datetime.fromtimestamp(START + 2 * HOUR, timezone.utc)}


def test_a_join_rolls_over_each_scope_that_it_counts_against() -> None:
    clock = Clock(START)
    total = BudgetPool()
    hour, two = (total.child(10, window=Window.every(timedelta(hours=n), clock=clock)) for n in (1, 2))
    both = BudgetPool.join(hour, two)
    both.record(tokens=10)
    assert both.snapshot().window_start is None
    clock.now += HOUR
    with pytest.raises(BudgetExceeded):
        both.record(tokens=1)
    assert (hour.snapshot().tokens_used, two.snapshot().tokens_used, total.snapshot().tokens_used) == (0, 10, 10)
    clock.now += HOUR
    both.record(tokens=1)
    assert (hour.snapshot().tokens_used, two.snapshot().tokens_used, total.snapshot().tokens_used) == (1, 1, 11)


def test_each_key_has_periods_of_its_own_budget() -> None:
    clock = Clock(START)
    users = BudgetPool().keyed(usd_cap=1, window=hourly(clock))
    users["ann"].record(usd=1)
    users["bob"].record(usd=0.5)
    with pytest.raises(BudgetExceeded):
        users["ann"].record(usd=0.5)
    clock.now += HOUR
    assert users["bob"].snapshot().usd_used == 0
    users["ann"].record(usd=1)
    assert users["ann"].snapshot().resets_at == datetime.fromtimestamp(START + 2 * HOUR, timezone.utc)


def test_a_clock_that_steps_back_does_not_let_a_key_spend_one_period_twice() -> None:
    clock = Clock(START)
    users = BudgetPool().keyed(usd_cap=1, window=hourly(clock))
    users["ann"].record(usd=1)
    clock.now += HOUR
    users["bob"].record(usd=1)
    users["cid"].record(usd=1)
    assert "ann" not in users  # forgotten: her period is over
    clock.now -= HOUR
    users["ann"].record(usd=1)  # she spends what the second period gives her, and not the first's again
    assert users["ann"].snapshot().window_start == users["bob"].snapshot().window_start
    for now in (clock.now, clock.now + HOUR):
        clock.now = now
        with pytest.raises(BudgetExceeded):
            users["ann"].record(usd=1)


def test_a_span_longer_than_datetime_knows_can_be_shown() -> None:
    pool = BudgetPool(window=Window.every(timedelta(days=10_000_000), clock=Clock(START)))
    assert pool.snapshot().resets_at is not None


def test_a_clock_that_fails_fails_the_operation_and_changes_nothing() -> None:
    clock = Clock(START)
    broken = False

    def read() -> float:
        if broken:
            raise OSError("the clock is broken")
        return clock.now

    pool = BudgetPool(10, window=hourly(read))
    held = pool.reserve(tokens=2)
    pool.record(tokens=5)
    before = pool.snapshot()
    broken = True
    for operation in (pool.record, pool.reserve, pool.snapshot, held.commit, pool.child, pool.reset):
        with pytest.raises(OSError, match="the clock is broken"):
            operation()
    broken = False
    assert pool.snapshot() == before
    held.commit()
    assert pool.snapshot().tokens_used == 7


@pytest.mark.parametrize("now", [math.nan, math.inf, -math.inf, None, "now"])
def test_a_clock_that_tells_no_time_makes_no_pool(now: Any) -> None:
    for window in (Window.daily(clock=lambda: now), hourly(lambda: now)):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            BudgetPool(window=window)


@pytest.mark.parametrize("now", [math.nan, math.inf, -math.inf, 1e300, None, "now"])
def test_a_clock_that_stops_telling_the_time_ends_no_period(now: Any) -> None:
    clock = Clock(START)
    pool = BudgetPool(10, window=Window.daily(clock=clock))
    events = roll_overs(pool)
    pool.record(tokens=5)
    clock.now = now
    try:
        pool.record(tokens=0)
    except (TypeError, ValueError, OverflowError):
        pass
    clock.now = START
    assert pool.snapshot().tokens_used == 5
    assert events == []


# ------------------------------------------------------------------ threads


class Gate(tzinfo):
    """UTC, but whoever computes a period, having seen that the last one has ended, goes through `enter`."""

    def __init__(self) -> None:
        self.enter: Callable[[], object] = lambda: None

    def utcoffset(self, dt: datetime | None) -> timedelta:
        self.enter()
        return timedelta(0)

    def dst(self, dt: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, dt: datetime | None) -> str:
        return "Gate"


def once_each(action: Callable[[], object]) -> Callable[[], None]:
    """Return a function that does it at the first call of each thread."""
    seen: set[int] = set()

    def call() -> None:
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            action()

    return call


class Slow:
    """Holds up a thread, the first that comes to `stop`, until it is let go."""

    def __init__(self, body: Callable[[], object]) -> None:
        self._inside, self._go = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=body, daemon=True)
        self.results: list[BaseException] = []

    def stop(self) -> None:
        if threading.get_ident() == self._thread.ident and not self._inside.is_set():
            self._inside.set()
            assert self._go.wait(30)

    def start(self) -> None:
        self._thread.start()
        assert self._inside.wait(30)

    def finish(self) -> None:
        self._go.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


def test_two_threads_that_have_both_seen_the_end_roll_the_pool_over_once() -> None:
    clock, gate = Clock(START), Gate()
    pool = BudgetPool(10, window=Window.daily(gate, clock=clock))
    events = roll_overs(pool)
    pool.record(tokens=5)
    clock.now += DAY
    barrier = threading.Barrier(2)
    gate.enter = once_each(lambda: barrier.wait(30))
    run_together(lambda: pool.record(tokens=1), lambda: pool.record(tokens=2))
    assert pool.snapshot().tokens_used == 3
    assert len(events) == 1


@pytest.mark.usefixtures("racing")
def test_threads_that_read_the_end_from_the_clock_at_one_moment_roll_the_pool_over_once() -> None:
    barrier = threading.Barrier(4)
    meet: Callable[[], object] = lambda: None  # noqa: E731
    clock = Clock(START)

    def read() -> float:
        now = clock.now
        meet()
        return now

    pool = BudgetPool(100, window=hourly(read))
    events = roll_overs(pool)
    for hour in range(1, 51):
        pool.record(tokens=50)
        clock.now += HOUR
        meet = once_each(lambda: barrier.wait(30))
        run_together(lambda: pool.record(tokens=1), *[lambda: pool.record(tokens=2)] * 2, pool.snapshot)
        meet = lambda: None  # noqa: E731
        assert pool.snapshot().tokens_used == 5
        assert len(events) == hour


def test_a_thread_that_read_the_clock_before_the_end_spends_in_the_period_that_another_has_begun() -> None:
    clock = Clock(START)
    slow = Slow(lambda: pool.record(tokens=4))

    def read() -> float:
        now = clock.now
        slow.stop()
        return now

    pool = BudgetPool(10, window=hourly(read))
    events = roll_overs(pool)
    pool.record(tokens=7)
    slow.start()
    clock.now += HOUR
    pool.record(tokens=1)
    slow.finish()
    assert pool.snapshot().tokens_used == 5
    assert len(events) == 1


@pytest.mark.parametrize("days", [1, 2])
def test_a_thread_that_is_late_with_a_period_does_not_end_it_again_nor_go_back_to_it(days: int) -> None:
    clock, gate = Clock(START), Gate()
    pool = BudgetPool(10, window=Window.daily(gate, clock=clock))
    events = roll_overs(pool)
    pool.record(tokens=7)
    slow = Slow(lambda: pool.record(tokens=4))
    gate.enter = slow.stop
    clock.now = START + DAY
    slow.start()  # has seen the end of the first day
    clock.now = START + days * DAY
    pool.record(tokens=1)
    before = pool.snapshot()
    slow.finish()
    after = pool.snapshot()
    assert (before.tokens_used, after.tokens_used) == (1, 5)
    assert after.window_start == before.window_start == datetime(2026, 3, 29 + days, tzinfo=timezone.utc)
    assert len(events) == 1


@pytest.mark.usefixtures("racing")
def test_threads_over_many_periods_lose_no_spend_and_see_each_period_begin_once() -> None:
    clock, tick = Clock(START), threading.Lock()
    total = BudgetPool(window=hourly(clock))
    pool = total.child(window=Window.every(timedelta(hours=3), clock=clock))
    told: list[BudgetEvent] = []
    pool.subscribe(told.append)
    of_total = roll_overs(total)

    def spend() -> None:
        for _ in range(150):
            with tick:
                clock.now += 1000
            with pool.reserve(tokens=2) as reservation:
                reservation.commit(tokens=1)

    run_together(*[spend] * 4)
    used: dict[datetime | None, int] = {}  # by period, for events of two threads may be told in either order
    for event in told:
        start = event.snapshot.window_start
        used[start] = max(used.get(start, 0), event.snapshot.tokens_used)
    assert sum(used.values()) == 600
    # A period in which nobody came is left out; each other one but the first began, once.
    begun = [event.snapshot.window_start for event in told if event.kind == "roll-over"]
    assert len(begun) == len(set(begun)) > 1
    assert set(begun) == set(used) - {datetime.fromtimestamp(START, timezone.utc)}
    of_total_begun = [event.snapshot.window_start for event in of_total]
    assert len(of_total_begun) == len(set(of_total_begun)) > 1
    assert total.snapshot().window_start in of_total_begun
    assert (pool.snapshot().in_flight, total.snapshot().in_flight) == (0, 0)


# ------------------------------------------------------------------ pools against the naive model

TEXTS = (
    "daily", "daily Europe/Berlin", "daily America/St_Johns", "daily Pacific/Apia", "daily Asia/Beirut",
    "weekly America/Havana", "weekly Pacific/Apia", "monthly Asia/Dhaka", "every 5h", "every 90m", "every 3d",
)  # fmt: skip
CHANGES = ("2006-10-29T02:31", "2009-12-31T17:00", "2011-12-30T10:00", "2026-03-29T01:00", "2026-10-24T21:00")
CAP = 20
jumps = st.one_of(
    st.integers(-3 * DAY, 3 * DAY), st.integers(-HOUR, HOUR), st.sampled_from([0, 0.5, 60, -60, HOUR, DAY, -DAY])
)
amounts = st.integers(0, 8)


class Scope:
    """What a pool with a window is, as plainly as possible: all that was ever spent, and when by the latest clock."""

    def __init__(self, text: str | None, now: float) -> None:
        self.period: Callable[[float], Period] = naive(text) if text else lambda _: (-math.inf, math.inf)
        self.latest = now
        self.spent: list[tuple[float, int]] = []
        self.held: dict[int, int] = {}
        self.rolled = 0

    def see(self, now: float) -> None:
        latest = max(self.latest, now)
        self.rolled += self.period(latest) != self.period(self.latest)
        self.latest = latest

    def used(self) -> int:
        now = self.period(self.latest)
        return sum(amount for moment, amount in self.spent if self.period(moment) == now)

    def claimed(self) -> int:
        return self.used() + sum(self.held.values())


class PoolsAgainstNaiveWindows(RuleBasedStateMachine):
    """A family of pools with windows of all kinds, under a clock that jumps: each rule does one thing to both."""

    @initialize(
        texts=st.lists(st.none() | st.sampled_from(TEXTS), min_size=4, max_size=4),
        start=st.sampled_from(CHANGES),
        jump=jumps,
    )
    def start(self, texts: list[str | None], start: str, jump: float) -> None:
        self.clock = Clock(at(start) + jump)
        windows = [None if text is None else Window.parse(text, clock=self.clock) for text in texts]
        root = BudgetPool(CAP, window=windows[0])
        left, right = root.child(CAP, window=windows[1]), root.child(CAP, window=windows[2])
        key = left.keyed(CAP, window=windows[3])["key"]
        self.pools = [root, left, right, key, BudgetPool.join(left, right)]
        self.scopes = [Scope(text, self.clock.now) for text in [*texts, None]]
        self.chains = [[0], [1, 0], [2, 0], [3, 1, 0], [4, 1, 2, 0]]
        self.rolled = [roll_overs(pool) for pool in self.pools]
        self.open: dict[int, tuple[int, Reservation]] = {}
        self.made = 0
        self.asked: list[int] = []

    def see(self, which: int) -> list[Scope]:
        """Tell the model that a pool is asked, and return what it counts against."""
        self.asked = self.chains[which]
        chain = [self.scopes[index] for index in self.asked]
        for scope in chain:
            scope.see(self.clock.now)
        return chain

    def fits(self, which: int, chain: list[Scope], tokens: int) -> bool:
        return all(scope.claimed() + tokens <= CAP for scope in chain if scope is not self.scopes[4])

    @rule(by=jumps)
    def jump(self, by: float) -> None:
        self.clock.now += by

    @rule(which=st.integers(0, 4), end=st.booleans(), by=st.sampled_from([-1, -1 / 1024, 0, 0, 0, 1]))
    def land(self, which: int, end: bool, by: float) -> None:
        moment = self.scopes[which].period(self.scopes[which].latest)[end]
        if math.isfinite(moment):
            self.clock.now = moment + by

    @rule(which=st.integers(0, 4), tokens=amounts)
    def record(self, which: int, tokens: int) -> None:
        chain = self.see(which)
        if self.fits(which, chain, tokens):
            self.pools[which].record(tokens=tokens)
            for scope in chain:
                scope.spent.append((scope.latest, tokens))
        else:
            with pytest.raises(BudgetExceeded):
                self.pools[which].record(tokens=tokens)

    @rule(which=st.integers(0, 4), tokens=amounts)
    def reserve(self, which: int, tokens: int) -> None:
        chain = self.see(which)
        if self.fits(which, chain, tokens):
            self.made += 1
            self.open[self.made] = (which, self.pools[which].reserve(tokens=tokens))
            for scope in chain:
                scope.held[self.made] = tokens
        else:
            with pytest.raises(BudgetExceeded):
                self.pools[which].reserve(tokens=tokens)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), tokens=st.none() | amounts)
    def settle(self, data: st.DataObject, tokens: int | None) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        which, reservation = self.open.pop(number)
        chain = self.see(which)
        if tokens is None:
            reservation.release()
        else:
            try:
                reservation.commit(tokens=tokens)
            except BudgetOverrun:
                assert tokens > reservation.reserved_tokens
        for scope in chain:
            del scope.held[number]
            if tokens is not None:
                scope.spent.append((scope.latest, tokens))

    @rule(which=st.integers(0, 4))
    def look(self, which: int) -> None:
        self.see(which)

    @rule()
    def look_at_all(self) -> None:
        for scope in self.scopes:
            scope.see(self.clock.now)
        root = self.pools[0].snapshot(tree=True)
        left, right = root.children
        (key,) = left.children
        assert [one.tokens_used for one in (root, left, right, key)] == [scope.used() for scope in self.scopes[:4]]

    @rule(which=st.integers(0, 4))
    def reset(self, which: int) -> None:
        chain = self.see(which)
        self.pools[which].reset()
        chain[0].spent.clear()

    @invariant()
    def same(self) -> None:
        """Compare those that were asked last, for looking at others would make their periods end."""
        for index in getattr(self, "asked", ()):
            self.see(index)
            snapshot, scope = self.pools[index].snapshot(), self.scopes[index]
            assert snapshot.tokens_used == scope.used()
            assert snapshot.tokens_reserved == sum(scope.held.values())
            assert snapshot.in_flight == len(scope.held)
            start, end = scope.period(scope.latest)
            if math.isfinite(end):
                assert snapshot.window_start == datetime.fromtimestamp(start, timezone.utc)
                assert snapshot.resets_at == datetime.fromtimestamp(end, timezone.utc)
        self.asked = []
        if hasattr(self, "rolled"):
            assert [len(events) for events in self.rolled] == [scope.rolled for scope in self.scopes]

    def teardown(self) -> None:
        for _, reservation in getattr(self, "open", {}).values():
            reservation.release()


TestPoolsAgainstNaiveWindows = needs_zones(PoolsAgainstNaiveWindows.TestCase)
TestPoolsAgainstNaiveWindows.settings = hypothesis.settings(max_examples=hypothesis.settings().max_examples // 5)


def test_a_window_can_be_compared_pickled_and_copied() -> None:
    windows = [
        Window.daily(),
        Window.daily("Europe/Berlin") if zoneinfo.available_timezones() else Window.weekly(timezone.utc),
        Window.weekly(),
        Window.monthly(),
        Window.every(timedelta(hours=5)),
    ]
    for window in windows:
        assert pickle.loads(pickle.dumps(window)) == copy.deepcopy(window) == window
        assert hash(copy.copy(window)) == hash(window)
        assert repr(pickle.loads(pickle.dumps(window))) == repr(window)
    assert len(set(windows)) == len(windows)
    assert Window.daily() != "daily"
    assert Window.daily(clock=lambda: 0.0) != Window.daily()
