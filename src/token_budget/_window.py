"""Window: the periods after which a pool starts to count anew.

A window cuts time into periods that follow each other without a gap: calendar days, weeks or months of a time zone, or
spans of one fixed length. Every instant is in exactly one of them. Moments are POSIX timestamps, seconds since 1970
in UTC, as `time.time` gives them.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    import datetime  # noqa: ICN001 - as at run time, where `_lazy` gives the name its meaning
    from collections.abc import Callable
    from datetime import date, timedelta, tzinfo
    from typing import Any
else:
    from token_budget._lazy import datetime


def system_time() -> float:
    return time.time()


class Window:
    """The periods of a budget: a pool with a window sets what is used back to 0 at the end of each.

    Make one with `daily`, `weekly`, `monthly` or `every`, or from text with `parse`. It holds no state: any number of
    pools may share it.

    ``clock`` answers the time as a POSIX timestamp; it is there for tests and simulations. A clock that steps back
    never reopens a period that a pool has closed.

    Example:
        >>> from datetime import datetime, timezone
        >>> from token_budget import Window
        >>> noon = datetime(2026, 3, 29, 12, tzinfo=timezone.utc).timestamp()
        >>> start, end = Window.daily("Europe/Berlin").period(noon)
        >>> (end - start) / 3600  # the day on which summer time began
        23.0
    """

    __slots__ = ("_made_by", "_period_of", "_text", "clock")
    clock: Callable[[], float]
    _period_of: Callable[[float], tuple[float, float]]
    _text: str
    _made_by: tuple[str, Any]

    def __init__(self, *_: Any, **__: Any) -> None:
        raise TypeError("make a Window with Window.daily(), weekly(), monthly(), every() or parse()")

    @classmethod
    def _of(
        cls,
        text: str,
        period: Callable[[float], tuple[float, float]],
        clock: Callable[[], float] | None,
        made_by: tuple[str, Any],
    ) -> Window:
        if clock is None:
            clock = system_time
        if not callable(clock):
            raise TypeError("clock must be a function that returns a POSIX timestamp")
        window = cls.__new__(cls)
        window._text = text
        window._made_by = made_by
        window._period_of = period
        window.clock = clock
        return window

    @classmethod
    def daily(cls, tz: tzinfo | str | None = None, *, clock: Callable[[], float] | None = None) -> Window:
        """From midnight to midnight. A day has 23 or 25 hours where the zone's clocks change.

        Args:
            tz: a time zone, as a tzinfo or by its IANA name ("Europe/Berlin"); UTC if it is left out.
            clock: answers the time as a POSIX timestamp.

        Raises:
            TypeError: tz is no time zone.
            ValueError: there is no time zone of that name (Windows needs the package tzdata for any).
        """
        zone, name = _zone(tz)
        return cls._of(f"daily {name}", _calendar(zone, _day), clock, ("daily", tz))

    @classmethod
    def weekly(cls, tz: tzinfo | str | None = None, *, clock: Callable[[], float] | None = None) -> Window:
        """From Monday, midnight, to the next (ISO 8601). Arguments and errors as `daily`."""
        zone, name = _zone(tz)
        return cls._of(f"weekly {name}", _calendar(zone, _week), clock, ("weekly", tz))

    @classmethod
    def monthly(cls, tz: tzinfo | str | None = None, *, clock: Callable[[], float] | None = None) -> Window:
        """From the first of the month, midnight, to the next. Arguments and errors as `daily`."""
        zone, name = _zone(tz)
        return cls._of(f"monthly {name}", _calendar(zone, _month), clock, ("monthly", tz))

    @classmethod
    def every(cls, length: timedelta, *, clock: Callable[[], float] | None = None) -> Window:
        """Spans of one length, counted from 1970-01-01T00:00 UTC: every hour starts on the hour.

        Raises:
            TypeError: length is no timedelta.
            ValueError: length is not above 0.
        """
        from datetime import timedelta

        if not isinstance(length, timedelta):
            raise TypeError(f"length must be a datetime.timedelta, not {type(length).__name__}")
        micros = length // timedelta(microseconds=1)
        if micros <= 0:
            raise ValueError("length must be above 0")

        def period(now: float) -> tuple[float, float]:
            index = int(now * 1_000_000) // micros
            # The nearest floats of the two ends may not enclose a moment that is nearer to one of them than they are.
            if now >= (index + 1) * micros / 1_000_000:
                index += 1
            elif now < index * micros / 1_000_000:
                index -= 1
            return index * micros / 1_000_000, (index + 1) * micros / 1_000_000

        return cls._of(f"every {length}", period, clock, ("every", length))

    @classmethod
    def parse(cls, text: str, *, clock: Callable[[], float] | None = None) -> Window:
        """Make a window from text: ``daily``, ``weekly`` or ``monthly``, with a time zone after it, or ``every 5h``.

        The units of ``every`` are s, m, h and d.

        Raises:
            TypeError, ValueError: the text says none of these.

        Example:
            >>> Window.parse("weekly America/New_York")
            <Window weekly America/New_York>
            >>> Window.parse("every 90m")
            <Window every 1:30:00>
        """
        if not isinstance(text, str):
            raise TypeError(f"a window is parsed from a str, not {type(text).__name__}")
        kind, _, rest = text.strip().partition(" ")
        rest = rest.strip()
        calendars = {"daily": cls.daily, "weekly": cls.weekly, "monthly": cls.monthly}
        if kind in calendars:
            return calendars[kind](rest or None, clock=clock)
        units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
        if kind == "every" and rest[-1:] in units and rest[:-1].isdecimal():
            from datetime import timedelta

            try:
                # 20 digits are too many already; CPython refuses to read thousands with an error of its own.
                return cls.every(timedelta(seconds=int(rest[:-1][:20]) * units[rest[-1]]), clock=clock)
            except OverflowError:
                raise ValueError(f"{text[:60]!r} is too long a window") from None
        raise ValueError(
            f"{text[:60]!r} is no window: say daily, weekly or monthly, then a time zone if it is not UTC, or every 5h"
        )

    def now(self):
        return self.clock()

    def period(self, now: float) -> tuple[float, float]:
        """Return the period that a moment is in, its start and its end, as POSIX timestamps: ``start <= now < end``.

        Raises:
            ValueError, OverflowError: the moment is not in the years that `datetime` knows.
        """
        return self._period_of(now)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Window):
            return NotImplemented
        return (self._made_by, self.clock) == (other._made_by, other.clock)

    def __hash__(self) -> int:
        return hash((self._made_by, self.clock))

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (*self._made_by, self.clock)

    def __repr__(self) -> str:
        return f"<Window {self._text}>"


def _made(kind: str, argument: Any, clock: Callable[[], float]) -> Window:
    made: Window = getattr(Window, kind)(argument, clock=clock)
    return made


def _zone(tz: tzinfo | str | None) -> tuple[tzinfo, str]:
    from datetime import timezone, tzinfo

    if tz is None:
        return timezone.utc, "UTC"
    if isinstance(tz, tzinfo):
        return tz, str(tz)
    if not isinstance(tz, str):
        raise TypeError(f"tz must be a tzinfo or the name of a time zone, not {type(tz).__name__}")
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(tz), tz
    except (KeyError, ValueError, OSError):
        raise ValueError(f"there is no time zone {tz[:60]!r} (on Windows, install the package tzdata)") from None


# A calendar's periods are told by the date on which the one that a date is in begins, and by that of the next.
def _day(day: date) -> tuple[date, date]:
    from datetime import timedelta

    return day, day + timedelta(days=1)


def _week(day: date) -> tuple[date, date]:
    from datetime import timedelta

    monday = day - timedelta(days=day.weekday())
    return monday, monday + timedelta(days=7)


def _month(day: date) -> tuple[date, date]:
    first = day.replace(day=1)
    year, month = divmod(first.year * 12 + first.month, 12)
    return first, first.replace(year=year, month=month + 1)


def _calendar(zone: tzinfo, period_of: Callable[[date], tuple[date, date]]) -> Callable[[float], tuple[float, float]]:
    """Return the function that answers the calendar period of a moment."""
    from datetime import datetime, timedelta

    def period(now: float) -> tuple[float, float]:
        start_day, next_day = period_of(datetime.fromtimestamp(now, zone).date())
        start, end = _first_moment(start_day, zone), _first_moment(next_day, zone)
        # Where clocks go back over midnight, the last minutes of a day come a second time after the next has begun:
        # they belong to the next, so that no period is entered twice.
        if now >= end:
            start, end = end, _first_moment(period_of(next_day)[1], zone)
        while now < start:  # by less than a microsecond, to which `datetime` rounds; and days may be left out
            start_day = period_of(start_day - timedelta(days=1))[0]
            start, end = _first_moment(start_day, zone), start
        return start, end

    return period


def _first_moment(day: date, zone: tzinfo) -> float:
    """Return the first moment whose date in the zone is that day, or a later one where the zone left the day out."""
    from datetime import datetime

    def date_at(moment: float) -> date:
        return datetime.fromtimestamp(moment, zone).date()

    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    early, late = sorted((midnight.timestamp(), midnight.replace(fold=1).timestamp()))
    # Equal: an ordinary midnight. Else the clocks change over it: it comes twice, or, where it is left out, the change
    # is between the two, and nothing else is.
    if early == late or date_at(early) >= day:
        return early
    while late - early > 1:  # clocks change on full seconds
        middle = (early + late) // 2
        if date_at(middle) >= day:
            late = middle
        else:
            early = middle
    return late


def to_datetime(timestamp: float | None) -> datetime.datetime | None:
    """Return the moment in UTC; None for None. Beyond the years 1 to 9999 it is the nearest of their first days."""
    if timestamp is None:
        return None
    try:
        return datetime.datetime.fromtimestamp(timestamp, datetime.timezone.utc)
    except (OverflowError, ValueError, OSError):  # outside the years that `datetime` knows
        return datetime.datetime(9999 if timestamp > 0 else 1, 1, 1, tzinfo=datetime.timezone.utc)
