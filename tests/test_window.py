"""Windows: periods without gap or overlap in every time zone, the arguments that make them, and their text."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
import time
import typing
import zoneinfo
from datetime import date, datetime, timedelta, timezone, tzinfo
from datetime import time as daytime
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from unittest import mock

import hypothesis
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from calendars import (
    DAY,
    FIRST,
    HOUR,
    LAST,
    START,
    WEEKDAYS,
    ZONES,
    Clock,
    Period,
    Zone,
    at,
    earlier,
    later,
    look_at_zone,
    naive_spans,
    needs_zones,
)
from support import run_program
from token_budget import BudgetPool, Window
from token_budget._window import system_time, to_datetime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
NAMES = sorted(ZONES.intersection(SAMPLE)) or ["UTC"]
RULES = ("daily", "weekly", "monthly", "daily at 00:30", "daily at 02:30", "weekly starts sunday", "monthly day 31")
KINDS: dict[str, Callable[..., Window]] = {"daily": Window.daily, "weekly": Window.weekly, "monthly": Window.monthly}


def on(zone: tzinfo | str, rule: str) -> Window:
    """Return the window of a rule, as ``daily at 06:00``, in a time zone."""
    window = Window.parse(rule)
    kind, _, option = window._made_by
    return KINDS[kind](zone, **option)


# ------------------------------------------------------------------ periods by example

EXAMPLES = [
    ("daily", "2026-02-28T00:00", "2026-03-01T00:00", 24),
    ("daily UTC", "2024-02-29T00:00", "2024-03-01T00:00", 24),
    ("daily", "1969-12-31T00:00", "1970-01-01T00:00", 24),
    ("daily UTC+05:45", "2025-07-14T18:15", "2025-07-15T18:15", 24),
    ("daily Asia/Kathmandu", "2025-07-14T18:15", "2025-07-15T18:15", 24),
    ("daily Europe/Berlin", "2025-03-29T23:00", "2025-03-30T22:00", 23),
    ("daily Europe/Berlin", "2025-10-25T22:00", "2025-10-26T23:00", 25),
    ("daily America/New_York", "2025-03-09T05:00", "2025-03-10T04:00", 23),
    ("daily America/New_York", "2025-11-02T04:00", "2025-11-03T05:00", 25),
    ("daily Australia/Lord_Howe", "2025-04-05T13:00", "2025-04-06T13:30", 24.5),
    ("daily Australia/Lord_Howe", "2025-10-04T13:30", "2025-10-05T13:00", 23.5),
    # St John's: at 00:01 the clocks went back to 23:01, and forward to 01:01.
    ("daily America/St_Johns", "2006-10-28T02:30", "2006-10-29T02:30", 24),
    ("daily America/St_Johns", "2006-10-29T02:30", "2006-10-30T03:30", 25),
    ("daily America/St_Johns", "2006-04-02T03:30", "2006-04-03T02:30", 23),
    # Samoa skipped Friday, 2011-12-30.
    ("daily Pacific/Apia", "2011-12-29T10:00", "2011-12-30T10:00", 24),
    ("daily Pacific/Apia", "2011-12-30T10:00", "2011-12-31T10:00", 24),
    ("daily Pacific/Apia at 06:00", "2011-12-29T16:00", "2011-12-30T10:00", 18),
    ("daily Pacific/Apia at 06:00", "2011-12-30T10:00", "2011-12-30T16:00", 6),
    ("weekly Pacific/Apia", "2011-12-26T10:00", "2012-01-01T10:00", 6 * 24),
    ("weekly Pacific/Apia starts friday", "2011-12-23T10:00", "2011-12-30T10:00", 7 * 24),
    ("weekly Pacific/Apia starts friday", "2011-12-30T10:00", "2012-01-05T10:00", 6 * 24),
    ("monthly Pacific/Apia", "2011-12-01T10:00", "2011-12-31T10:00", 30 * 24),
    ("monthly Pacific/Apia day 30", "2011-11-30T10:00", "2011-12-30T10:00", 30 * 24),
    # Sao Paulo: clocks go from 00:00 to 01:00, and at 24:00 back to 23:00.
    ("daily America/Sao_Paulo", "2018-11-03T03:00", "2018-11-04T03:00", 24),
    ("daily America/Sao_Paulo", "2018-11-04T03:00", "2018-11-05T02:00", 23),
    ("daily America/Sao_Paulo", "2019-02-16T02:00", "2019-02-17T03:00", 25),
    # Havana: clocks go from 00:00 to 01:00, and from 01:00 back to 00:00, so midnight comes twice (here on the 1st).
    ("daily America/Havana", "2020-03-08T05:00", "2020-03-09T04:00", 23),
    ("daily America/Havana", "2020-10-31T04:00", "2020-11-01T04:00", 24),
    ("daily America/Havana", "2020-11-01T04:00", "2020-11-02T05:00", 25),
    ("monthly America/Havana", "2020-10-01T04:00", "2020-11-01T04:00", 31 * 24),
    ("monthly America/Havana", "2020-11-01T04:00", "2020-12-01T05:00", 30 * 24 + 1),
    # Toronto, 1919: clocks went from 23:30 to 00:30.
    ("daily America/Toronto", "1919-03-30T05:00", "1919-03-31T04:30", 23.5),
    ("daily America/Toronto", "1919-03-31T04:30", "1919-04-01T04:00", 23.5),
    # Dhaka: at the end of 2009, which ends a day and a month, clocks went back to 23:00.
    ("daily Asia/Dhaka", "2009-12-30T17:00", "2009-12-31T18:00", 25),
    ("monthly Asia/Dhaka", "2009-11-30T17:00", "2009-12-31T18:00", 31 * 24 + 1),
    # Berlin: 02:30 is skipped in March, and comes twice in October.
    ("daily Europe/Berlin at 06:00", "2025-03-29T05:00", "2025-03-30T04:00", 23),
    ("daily Europe/Berlin at 02:30", "2025-03-29T01:30", "2025-03-30T01:00", 23.5),
    ("daily Europe/Berlin at 02:30", "2025-03-30T01:00", "2025-03-31T00:30", 23.5),
    ("daily Europe/Berlin at 02:30", "2025-10-25T00:30", "2025-10-26T00:30", 24),
    ("daily Europe/Berlin at 02:30", "2025-10-26T00:30", "2025-10-27T01:30", 25),
    ("daily at 23:59:59.500000", "2026-07-14T23:59:59.500", "2026-07-15T23:59:59.500", 24),
    ("weekly", "2026-07-13T00:00", "2026-07-20T00:00", 7 * 24),
    ("weekly", "2024-12-30T00:00", "2025-01-06T00:00", 7 * 24),
    ("weekly starts sunday", "2026-07-12T00:00", "2026-07-19T00:00", 7 * 24),
    ("weekly starts tuesday", "2026-07-14T00:00", "2026-07-21T00:00", 7 * 24),
    ("weekly America/New_York", "2025-03-03T05:00", "2025-03-10T04:00", 7 * 24 - 1),
    ("weekly Europe/Berlin", "2025-10-19T22:00", "2025-10-26T23:00", 7 * 24 + 1),
    ("monthly", "2026-12-01T00:00", "2027-01-01T00:00", 31 * 24),
    ("monthly", "2024-02-01T00:00", "2024-03-01T00:00", 29 * 24),
    ("monthly", "2100-02-01T00:00", "2100-03-01T00:00", 28 * 24),
    ("monthly day 15", "2026-12-15T00:00", "2027-01-15T00:00", 31 * 24),
    ("monthly day 31", "2026-01-31T00:00", "2026-02-28T00:00", 28 * 24),
    ("monthly day 31", "2024-02-29T00:00", "2024-03-31T00:00", 31 * 24),
    ("monthly day 29", "2026-02-28T00:00", "2026-03-29T00:00", 29 * 24),
    ("monthly Europe/Berlin", "2025-02-28T23:00", "2025-03-31T22:00", 31 * 24 - 1),
    ("every 1h", "2026-07-14T09:00", "2026-07-14T10:00", 1),
    ("every 90m", "1970-01-01T01:30", "1970-01-01T03:00", 1.5),
    ("every 5h", "1970-01-01T20:00", "1970-01-02T01:00", 5),
    ("every 5h", "1969-12-31T19:00", "1970-01-01T00:00", 5),
    ("every 1d", "2026-03-29T00:00", "2026-03-30T00:00", 24),
    ("every 7d", "2026-07-09T00:00", "2026-07-16T00:00", 7 * 24),  # begins on a Thursday, as 1970-01-01 was one
    ("every 30s", "2026-07-14T09:00:30", "2026-07-14T09:01", 30 / 3600),
    ("every 146000d", "1970-01-01T00:00", "2369-09-26T00:00", 146_000 * 24),
]


@pytest.mark.parametrize(
    ("text", "start", "end", "hours"),
    [pytest.param(*case, marks=[needs_zones] if "/" in case[0] else []) for case in EXAMPLES],
)
def test_periods_agree_with_a_wall_calendar(text: str, start: str, end: str, hours: float) -> None:
    window = Window.parse(text)
    period = (at(start), at(end))
    assert period[1] - period[0] == hours * HOUR
    for moment in (period[0], later(period[0]), sum(period) / 2, period[1] - 1, period[1] - 0.001, earlier(period[1])):
        assert window.period(moment) == period
    assert window.period(period[0] - 0.001)[1] == window.period(earlier(period[0]))[1] == period[0]
    assert window.period(period[1])[0] == period[1]


@needs_zones
def test_repeated_minutes_do_not_reopen_the_day_that_they_ended() -> None:
    window = Window.daily("America/St_Johns")
    zone = zoneinfo.ZoneInfo("America/St_Johns")
    begun = at("2006-10-29T02:30")
    again = [begun + second for second in range(60, 3600)]
    assert {datetime.fromtimestamp(moment, zone).date() for moment in again} == {date(2006, 10, 28)}
    assert {window.period(moment)[0] for moment in again} == {begun}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("America/Havana", "2020-11-01T05:00"),
        ("America/Sao_Paulo", "2018-11-04T03:00"),
        ("America/St_Johns", "2006-10-29T02:31"),
        ("America/Toronto", "1919-03-31T04:30"),
        ("Asia/Beirut", "2025-10-25T21:00"),
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


def test_ends_are_floats_and_the_moment_may_be_an_int() -> None:
    for window in (Window.daily(), Window.weekly(), Window.monthly(), Window.every(timedelta(hours=5))):
        assert [type(end) for end in window.period(1_800_000_000)] == [float, float]
        assert window.period(1_800_000_000) == window.period(1_800_000_000.0)


@pytest.mark.parametrize("moment", [math.nan, math.inf, -math.inf, 253_402_300_800, -62_135_596_801, 1.8e12, 1e300])
def test_a_moment_outside_the_years_of_datetime_is_an_error_for_every_window(moment: float) -> None:
    for window in (Window.daily(), Window.weekly(), Window.monthly(), Window.every(timedelta(hours=5))):
        with pytest.raises(ValueError, match="is no POSIX timestamp, in seconds, of the years 1 to 9999"):
            window.period(moment)


@pytest.mark.parametrize("moment", [None, "now", datetime(2026, 1, 1, tzinfo=timezone.utc)])
def test_a_moment_must_be_a_number(moment: Any) -> None:
    for window in (Window.daily(), Window.every(timedelta(hours=5))):
        with pytest.raises(TypeError, match=f"a number of seconds, not {type(moment).__name__}"):
            window.period(moment)


@pytest.mark.parametrize("length", [timedelta(days=365 * 400), timedelta(days=10_000_000), timedelta.max])
def test_spans_of_many_centuries_enclose_every_moment_and_can_be_shown(length: timedelta) -> None:
    for moment in (START, -START, 253_402_300_799.0, -62_135_596_800.0):
        start, end = Window.every(length).period(moment)
        assert start <= moment < end
        assert end - start == pytest.approx(length.total_seconds())
    assert BudgetPool(window=Window.every(length, clock=Clock(START))).snapshot().resets_at is not None


def test_a_timestamp_becomes_a_datetime_in_utc_and_never_overflows() -> None:
    assert to_datetime(None) is None
    assert to_datetime(START + 0.25) == datetime(2026, 3, 29, 12, 0, 0, 250_000, timezone.utc)
    assert to_datetime(-0.5) == datetime(1969, 12, 31, 23, 59, 59, 500_000, timezone.utc)
    for huge in (253_402_300_800.0, 1e20, math.inf):
        assert to_datetime(huge) == datetime.max.replace(tzinfo=timezone.utc)
        assert to_datetime(-huge) == datetime.min.replace(tzinfo=timezone.utc)


# ------------------------------------------------------------------ periods by property

AROUND = sorted(sign * distance for sign in (-1, 1) for distance in (0.5, 60, 1800, HOUR - 60, HOUR, 2 * HOUR, DAY))


def check_around(name: str, zone: Zone, change: int, rules: Sequence[str]) -> None:
    moments = [change + distance for distance in AROUND] + [float(change)]
    for rule in rules:
        window = on(name, rule)
        seen: set[Period] = set()
        for moment in moments:
            start, end = window.period(moment)
            assert start <= moment < end, (rule, name, moment)
            assert (start, end) == zone.period(rule, moment), (rule, name, moment)
            seen.add((start, end))
        periods = sorted(seen)
        for start, end in periods:
            assert window.period(start) == window.period(end - 1) == (start, end), (rule, name, start)
            assert window.period(end)[0] == end, (rule, name, end)
            assert window.period(start - 1)[1] == start, (rule, name, start)
        for period, following in pairwise(periods):
            assert period[1] <= following[0], (rule, name, period)


@needs_zones
@pytest.mark.timeout(600)  # long under a tracer, which therefore leaves it out
@pytest.mark.no_cover
def test_around_every_change_of_every_zone_the_periods_follow_each_other_and_begin_with_their_date(full: bool) -> None:
    names = sorted(ZONES if full else ZONES.intersection(SAMPLE))
    checked: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    changes = 0
    for name in names:
        zone = look_at_zone(name)
        clocks = (tuple(zone.begins), tuple(zone.offsets))
        if clocks in checked:  # another name for the same clocks
            continue
        checked.add(clocks)
        for change in [*zone.begins[1:], int(at("2020-02-29T12:00"))]:
            if at("2000-01-01T00:00") <= change < at("2041-01-01T00:00"):
                changes += 1
                check_around(name, zone, change, RULES if full or changes % 9 == 0 else RULES[:3])
    assert changes > (6000 if full else 1000)


@given(
    rule=st.sampled_from(("daily", "weekly", "monthly")).flatmap(
        lambda kind: (
            st.sampled_from([kind])
            if kind == "daily"
            else st.sampled_from(WEEKDAYS).map("weekly starts {}".format)
            if kind == "weekly"
            else st.integers(1, 31).map("monthly day {}".format)
        )
    )
    | st.times().map(lambda hour: f"daily at {hour.replace(microsecond=0).isoformat()}"),
    name=st.sampled_from(NAMES),
    moment=st.floats(FIRST + 62 * DAY, LAST - 62 * DAY),
)
def test_any_moment_is_in_the_period_that_the_naive_calendar_says(rule: str, name: str, moment: float) -> None:
    moment = round(moment * 1024) / 1024  # at least a microsecond away from each end
    assert on(name, rule).period(moment) == look_at_zone(name).period(rule, moment)


class OneChange(tzinfo):
    """A zone whose clocks change once, from one offset to another."""

    def __init__(self, change: int, before: int, after: int) -> None:
        self._arguments = (change, before, after)
        self._utc = datetime(1970, 1, 1) + timedelta(seconds=change)  # noqa: DTZ001 - as `fromutc` is given them
        self._before, self._after = timedelta(seconds=before), timedelta(seconds=after)

    def __repr__(self) -> str:
        return "one change"  # all zones with one change have the same name

    def __getinitargs__(self) -> tuple[int, int, int]:
        return self._arguments

    def utcoffset(self, dt: datetime | None) -> timedelta:
        raise AssertionError("a window must only ask what the clocks show")

    dst = tzname = utcoffset  # type: ignore[assignment]

    def fromutc(self, dt: datetime) -> datetime:
        since = dt.replace(tzinfo=None) - self._utc
        if since < timedelta(0):
            return dt + self._before
        return (dt + self._after).replace(fold=since < self._before - self._after)


offsets = st.one_of(
    st.integers(-13 * 4, 13 * 4).map(lambda quarters: quarters * 900), st.integers(-13 * HOUR, 13 * HOUR)
)


@given(
    rule=st.sampled_from(RULES),
    change=st.one_of(st.integers(-40 * DAY, 40 * DAY), st.integers(-40 * 96, 40 * 96).map(lambda n: n * 900)),
    before=offsets,
    after=offsets,
    distances=st.lists(st.integers(-2 * DAY, 2 * DAY) | st.integers(-90, 90), max_size=6),
)
@example(rule="daily", change=-1800, before=13 * HOUR, after=-13 * HOUR, distances=[])  # clocks go back by two days
def test_clocks_may_change_at_any_second_by_any_amount(
    rule: str, change: int, before: int, after: int, distances: list[int]
) -> None:
    change += int(START)
    zone = Zone([FIRST, change], [before, after])
    window = on(OneChange(change, before, after), rule)
    for distance in (*distances, 0, -1, 0.5):
        start, end = window.period(change + distance)
        assert start <= change + distance < end
        assert (start, end) == zone.period(rule, change + distance)
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


@given(micros=st.integers(1, 100), moment=st.floats(-6e10, 2.5e11))
def test_spans_too_short_for_floats_of_far_centuries_enclose_their_moment(micros: int, moment: float) -> None:
    window = Window.every(timedelta(microseconds=micros))
    start, end = window.period(moment)
    assert start <= moment < end
    assert window.period(end)[0] == end


# ------------------------------------------------------------------ zones of every make


class LocalMeanTime(tzinfo):
    """A zone like those of pytz: as the tzinfo of a datetime it is local mean time. `fromutc` sets the right tzinfo."""

    def __init__(self, zone: str | None, like: tzinfo, mean: timedelta | None = None) -> None:
        self.zone, self._like = zone, like
        self._offset = timedelta(minutes=53) if mean is None else mean

    def utcoffset(self, dt: datetime | None) -> timedelta | None:
        return None if dt is None else self._offset

    dst = utcoffset

    def tzname(self, dt: datetime | None) -> str:
        return "LMT"

    def fromutc(self, dt: datetime) -> datetime:
        shown = dt.replace(tzinfo=timezone.utc).astimezone(self._like)
        offset = shown.utcoffset()
        return shown.replace(tzinfo=LocalMeanTime(self.zone, self._like, offset), fold=0)

    def localize(self, dt: datetime) -> datetime:
        raise NotImplementedError

    normalize = localize


def zones_of_berlin() -> dict[str, Callable[[], tzinfo]]:
    def real(package: str, make: str) -> tzinfo:
        zone: tzinfo = getattr(pytest.importorskip(package), make)("Europe/Berlin")
        return zone

    berlin: Callable[[], tzinfo] = lambda: zoneinfo.ZoneInfo("Europe/Berlin")  # noqa: E731
    return {
        "zoneinfo": berlin,
        "a zone like pytz's": lambda: LocalMeanTime("Europe/Berlin", berlin()),
        "a zone like pytz's that zoneinfo does not know": lambda: LocalMeanTime("Berlin/West", berlin()),
        "a zone like pytz's without a name": lambda: LocalMeanTime(None, berlin()),
        "pytz": lambda: real("pytz", "timezone"),
        "dateutil": lambda: real("dateutil.tz", "gettz"),
    }


@pytest.mark.parametrize("make", zones_of_berlin().values(), ids=zones_of_berlin())
@pytest.mark.parametrize("rule", RULES)
@needs_zones
def test_periods_end_at_the_zones_midnight_for_zones_of_every_library(rule: str, make: Callable[[], tzinfo]) -> None:
    window, right = on(make(), rule), on("Europe/Berlin", rule)
    for day in range(int(at("2025-01-01T00:00")), int(at("2026-01-01T00:00")), DAY * 9 // 2):
        assert window.period(day) == right.period(day)
    for change in (at("2025-03-30T01:00"), at("2025-10-26T01:00")):
        for distance in (-HOUR, -1, 0, 1799, 1801, HOUR, DAY):
            assert window.period(change + distance) == right.period(change + distance)


@needs_zones
def test_a_pytz_zone_that_zoneinfo_knows_is_written_and_compared_as_the_zoneinfo_zone() -> None:
    double = LocalMeanTime("Europe/Berlin", zoneinfo.ZoneInfo("Europe/Berlin"))
    assert Window.daily(double) == Window.daily("Europe/Berlin") == Window.daily(zoneinfo.ZoneInfo("Europe/Berlin"))
    pytz = pytest.importorskip("pytz")
    assert str(Window.daily(pytz.timezone("Europe/Berlin"))) == "daily Europe/Berlin"
    assert Window.daily(pytz.utc) == Window.daily()


def test_a_zone_without_a_name_is_compared_by_itself() -> None:
    one, other = OneChange(0, 0, HOUR), OneChange(0, 0, HOUR)
    assert Window.daily(one) == Window.daily(one) != Window.daily(other)
    assert hash(Window.daily(one)) == hash(Window.daily(one))
    pickled = pickle.loads(pickle.dumps(Window.daily(one, at=daytime(6))))
    assert pickled.period(START) == Window.daily(one, at=daytime(6)).period(START)


NO_DATABASE = """
import sys, zoneinfo
zoneinfo.reset_tzpath(())
sys.modules["tzdata"] = None
from token_budget import Window
sys.modules["zoneinfo"] = None  # what follows does not even import it
for text in ("daily", "daily UTC", "weekly utc starts sunday", "monthly Etc/UTC day 15", "daily UTC+02:00 at 06:00"):
    assert Window.parse(text).period(0)
assert str(Window.daily("UTC")) == str(Window.daily("Etc/UTC")) == "daily UTC"
sys.modules["zoneinfo"] = zoneinfo
try:
    Window.daily("Europe/Berlin")
except ValueError as error:
    print(error)
"""


def test_utc_and_fixed_offsets_need_no_time_zone_database_and_other_zones_say_how_to_get_one() -> None:
    done = subprocess.run([sys.executable, "-c", NO_DATABASE], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "there is no time zone 'Europe/Berlin' on this system; if the name is right, install the time zone database: "
        "pip install tzdata\n"
    )


# ------------------------------------------------------------------ the clock


@pytest.mark.parametrize("make", [*KINDS.values(), lambda clock: Window.every(timedelta(1), clock=clock)])
def test_the_clock_is_the_given_one_or_the_systems(make: Callable[..., Window]) -> None:
    clock = Clock(5.0)
    assert make(clock=clock).clock is clock
    assert make(clock=clock).now() == 5.0
    assert pickle.loads(pickle.dumps(make(clock=time.monotonic))).clock is time.monotonic
    assert make(clock=None).clock is Window.parse("daily").clock is Window.parse("every 5h").clock is system_time
    assert Window.parse("daily", clock=clock).clock is Window.parse("every 5h", clock=clock).clock is clock
    before = time.time()
    assert before <= make(clock=None).now() <= time.time()


def test_the_systems_clock_is_looked_up_when_it_is_used() -> None:
    window = Window.daily()
    pool = BudgetPool(10, window=window)
    pool.record(tokens=10)
    with mock.patch("time.time", return_value=time.time() + DAY):
        assert window.now() == window.clock() == time.time()
        assert pool.snapshot().tokens_used == 0


def test_freezegun_sets_the_time_of_windows_made_before_and_during_the_freeze() -> None:
    pytest.importorskip("freezegun")
    run_program("""
import freezegun
from datetime import datetime, timezone
from token_budget import BudgetPool, Window

with freezegun.freeze_time("2024-01-01 22:00"):  # of its own process: it visits every module that is loaded
    pool = BudgetPool(10, window=Window.daily("UTC-01:00"))
    pool.record(tokens=10)
    assert pool.snapshot().resets_at == datetime(2024, 1, 2, 1, tzinfo=timezone.utc)
with freezegun.freeze_time("2024-01-02 00:59:59"):
    assert pool.snapshot().tokens_used == 10
with freezegun.freeze_time("2024-01-02 01:00"):
    assert pool.snapshot().tokens_used == 0
""")


@pytest.mark.parametrize("clock", [5, 5.0, "now", datetime(2026, 1, 1, tzinfo=timezone.utc)])
def test_a_clock_that_cannot_be_called_is_a_type_error(clock: Any) -> None:
    makers: list[Callable[..., Window]] = [
        *KINDS.values(),
        lambda clock: Window.every(timedelta(1), clock=clock),
        lambda clock: Window.parse("daily", clock=clock),
        lambda clock: Window.parse("every 5h", clock=clock),
    ]
    for make in makers:
        with pytest.raises(TypeError, match="clock must be a function that returns a POSIX timestamp, or None for"):
            make(clock=clock)


# ------------------------------------------------------------------ arguments


def test_a_window_is_made_by_its_constructors_only() -> None:
    make: Any = Window
    for arguments in ((), ("daily",), (1, 2)):
        with pytest.raises(TypeError, match=r"Window\.daily\(\), weekly\(\), monthly\(\), every\(\) or parse\(\)"):
            make(*arguments)
    with pytest.raises(TypeError, match="every"):
        make(clock=time.time)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        *[
            (lambda tz=tz, make=make: make(tz), TypeError, f"the name of a time zone, not {type(tz).__name__}")
            for make in KINDS.values()
            for tz in (1, 1.5, b"UTC", date(2026, 1, 1), timedelta(hours=1), ["UTC"], True, tzinfo)
        ],
        *[
            (lambda starts=starts: Window.weekly(starts=starts), TypeError, "starts must be the name of a day")
            for starts in (None, True, 6.0, b"sunday", daytime(6))
        ],
        *[
            (lambda starts=starts: Window.weekly(starts=starts), ValueError, "say monday to sunday, or 0 for Monday")
            for starts in (-1, 7, "", "sun", "Sonntag", "sunday ", "x" * 5000)
        ],
        *[
            (lambda day=day: Window.monthly(day=day), TypeError, f"day must be an int, not {type(day).__name__}")
            for day in (None, True, 15.0, "15", date(2026, 1, 15))
        ],
        *[(lambda day=day: Window.monthly(day=day), ValueError, "1 to 31") for day in (-1, 0, 32, 10**5000)],
        *[
            (lambda at=at: Window.daily(at=at), TypeError, f"at must be a datetime.time, not {type(at).__name__}")
            for at in (6, "06:00", timedelta(hours=6), datetime(2026, 1, 1, 6, tzinfo=timezone.utc))
        ],
        (lambda: Window.daily(at=daytime(6, tzinfo=timezone.utc)), ValueError, "at must be a time without a tzinfo"),
        *[
            (lambda length=length: Window.every(length), TypeError, f"datetime.timedelta, not {type(length).__name__}")
            for length in (5, 5.0, "5h", None, date(2026, 1, 1))
        ],
        *[
            (lambda length=length: Window.every(length), ValueError, "length must be above 0")
            for length in (timedelta(0), timedelta(microseconds=-1), timedelta(days=-1), timedelta.min)
        ],
    ],
)
def test_a_bad_argument_is_an_error_that_says_what_is_accepted(
    make: Callable[[], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as raised:
        make()
    assert type(raised.value) is error
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("make", KINDS.values())
@pytest.mark.parametrize(
    "name", ["", "Nowhere/Land", "America", "../UTC", "/etc/passwd", "\ud800", "Europe/Berlin ", "x" * 5000]
)
def test_an_unknown_zone_is_a_value_error_that_says_its_name_and_what_to_install(
    make: Callable[[str], Window], name: str
) -> None:
    with pytest.raises(ValueError, match="if the name is right, .*: pip install tzdata") as raised:
        make(name)
    assert repr(name[:60]) in str(raised.value)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    "name",
    ["UTC+2", "UTC+0200", "UTC+02:0", "UTC+24:00", "UTC+02:60", "utc+02:00", "UTC\0", "+01:00", "UTC-\u06601:00"],
)
def test_a_fixed_offset_of_another_form_is_a_value_error_that_shows_the_form(name: str) -> None:
    with pytest.raises(ValueError, match=r"write a fixed offset as UTC\+02:00 or UTC-03:30") as raised:
        Window.daily(name)
    assert repr(name) in str(raised.value)


def test_arguments_with_the_same_meaning_make_equal_windows() -> None:
    offset = timezone(timedelta(hours=2), "CEST")
    for group in (
        [Window.daily(), Window.daily(timezone.utc), Window.daily("UTC"), Window.daily(at=daytime(0, fold=1))],
        [Window.weekly(), Window.weekly("utc", starts=0), Window.weekly(starts="MONDAY")],
        [Window.weekly(starts=6), Window.weekly(None, starts="Sunday")],
        [Window.monthly(), Window.monthly(timezone(timedelta(0)), day=1)],
        [Window.daily(offset), Window.daily("UTC+02:00"), Window.daily(timezone(timedelta(hours=2)))],
        [Window.every(timedelta(hours=24)), Window.every(timedelta(days=1))],
    ):
        assert len(set(group)) == 1
    different = [Window.daily(), Window.weekly(), Window.monthly(), Window.every(timedelta(1))]
    different += [Window.weekly(starts=day) for day in range(1, 7)] + [Window.monthly(day=day) for day in range(2, 32)]
    different += [
        Window.daily(at=daytime(6)),
        Window.daily(offset),
        Window.daily(clock=Clock(0)),
        Window.every(timedelta(2)),
    ]
    assert len(set(different)) == len(different)
    assert Window.daily() != "daily UTC"
    assert Window.daily() != Window.daily(clock=Clock(0))
    if ZONES:
        assert Window.daily(zoneinfo.ZoneInfo("UTC")) == Window.daily(zoneinfo.ZoneInfo("Etc/UTC")) == Window.daily()


def test_the_annotations_of_everything_public_can_be_read() -> None:
    for name in ("daily", "weekly", "monthly", "every", "parse", "now", "period", "__eq__", "__hash__", "__init__"):
        assert typing.get_type_hints(getattr(Window, name))["return"] is not None
    assert typing.get_type_hints(Window.daily)["at"] == typing.Optional[daytime]  # noqa: UP045 - as 3.10 reads it
    assert typing.get_type_hints(Window)["clock"] is not None
    assert typing.get_type_hints(to_datetime)["return"] == typing.Optional[datetime]  # noqa: UP045
    assert typing.get_type_hints(system_time) == {"return": float}


# ------------------------------------------------------------------ text

zones = (
    st.none()
    | st.sampled_from(NAMES)
    | st.sampled_from(NAMES).map(lambda name: zoneinfo.ZoneInfo(name) if ZONES else timezone.utc)
    | st.timedeltas(timedelta(hours=-24, microseconds=1), timedelta(hours=24, microseconds=-1)).map(timezone)
    | st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
)
windows = (
    st.builds(Window.daily, zones, at=st.none() | st.times() | st.sampled_from([daytime(6), daytime(6, 30, 15)]))
    | st.builds(Window.weekly, zones, starts=st.sampled_from(WEEKDAYS) | st.integers(0, 6))
    | st.builds(Window.monthly, zones, day=st.integers(1, 31))
    | st.builds(Window.every, st.timedeltas(timedelta(microseconds=1)))
    | st.builds(Window.every, st.sampled_from(["hours", "minutes"]).map(lambda unit: timedelta(**{unit: 90})))
)


@hypothesis.settings(max_examples=hypothesis.settings().max_examples // 2)
@given(window=windows)
@example(window=Window.every(timedelta.max))
def test_the_text_of_a_window_parses_to_an_equal_window(window: Window) -> None:
    again = Window.parse(str(window))
    assert again == window
    assert (hash(again), str(again), repr(window)) == (hash(window), str(window), f"<Window {window}>")
    assert again.period(START) == window.period(START)
    assert pickle.loads(pickle.dumps(window)) == copy.deepcopy(window) == copy.copy(window) == window


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("daily", "daily UTC"),
        ("weekly", "weekly UTC"),
        ("monthly", "monthly UTC"),
        ("daily at 06:00", "daily UTC at 06:00"),
        ("daily UTC+00:00 at 06:00:00", "daily UTC at 06:00"),
        ("daily UTC-03:30 at 06:00:30", "daily UTC-03:30 at 06:00:30"),
        ("weekly starts Sunday", "weekly UTC starts sunday"),
        ("weekly UTC  starts monday", "weekly UTC"),
        ("monthly   day 15", "monthly UTC day 15"),
        ("monthly UTC day 01", "monthly UTC"),
        pytest.param("daily Europe/Berlin", "daily Europe/Berlin", marks=needs_zones),
        pytest.param("  monthly   Asia/Kathmandu\n", "monthly Asia/Kathmandu", marks=needs_zones),
        pytest.param("daily Europe/Berlin at 06:00", "daily Europe/Berlin at 06:00", marks=needs_zones),
        ("every 30s", "every 30s"),
        ("every 90m", "every 90m"),
        ("every 300m", "every 5h"),
        ("every 1500ms", "every 1500ms"),
        ("every 1001us", "every 1001us"),
        (" every  07d ", "every 7d"),
        ("every " + "0" * 5000 + "1d", "every 1d"),
        ("every 999999999d", "every 999999999d"),
    ],
)
def test_each_form_of_text_gives_its_window(text: str, shown: str) -> None:
    assert str(Window.parse(text)) == shown


START_COMES_LAST = (
    "then a time zone if it is not UTC, or every 5h; the start comes last: at 06:00, starts sunday, day 15"
)
UNITS = "after every say a whole number and a unit, us, ms, s, m, h or d, as in every 90m"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        *[
            (text, START_COMES_LAST)
            for text in (
                "", " ", "hourly", "Daily", "DAILY UTC", "daily,UTC", "daily\tUTC", "UTC daily", "5h", "yearly",
                "x" * 5000, "every5h", "at", "daily starts sunday", "weekly UTC day 15", "monthly at 06:00",
            )
        ],
        *[
            (text, UNITS)
            for text in (
                "every", "every 5", "every h", "every 5H", "every 5w", "every 5 h", "every -5h", "every +5h",
                "every 1.5h", "every 1e3s", "every 1_0h", "every five h", "every day", "every 90min", "every 5sm",
                "every " + "x" * 5000,
            )
        ],
        *[("daily UTC at " + bad, "write it as 06:00") for bad in ("", "6", "6:00", "0600", "24:00", "06:00+02:00")],
        ("daily at 06:00 UTC", "'06:00 UTC' is no time of day: write it as 06:00 or 06:00:30, after the time zone"),
        *[("weekly starts " + bad, "say monday to sunday") for bad in ("", "sun", "6", "sunday UTC")],
        *[("monthly day " + bad, "1 to 31") for bad in ("", "0", "32", "-1", "015", "15 day 16")],
        ("daily Nowhere/Land", "there is no time zone 'Nowhere/Land'"),
        ("weekly 5h", "there is no time zone '5h'"),
        ("monthly Europe/Berlin Europe/Paris", "there is no time zone 'Europe/Berlin Europe/Paris'"),
        ("every 0h", "length must be above 0"),
        ("every 000s", "length must be above 0"),
        *[("every " + "9" * digits + "d", "is too long a window: at most 999999999d") for digits in (10, 300, 4000)],
        ("every 1" + "0" * 20 + "us", "is too long a window"),
    ],
)  # fmt: skip
def test_bad_text_is_a_value_error_that_says_what_to_write(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        Window.parse(text)
    assert len(str(raised.value)) < 200
    if words in {START_COMES_LAST, UNITS}:
        assert repr(text.strip()[:50])[1:-1] in str(raised.value)


@pytest.mark.parametrize("text", [None, 5, b"daily", timedelta(hours=5), Window.daily()])
def test_only_text_is_parsed(text: Any) -> None:
    with pytest.raises(TypeError, match=f"a window is parsed from a str, not {type(text).__name__}"):
        Window.parse(text)
