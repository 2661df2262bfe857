"""Window: the periods after which a pool starts to count anew.

A window cuts time into periods that follow each other without a gap: calendar days, weeks or months of a time zone, or
spans of one fixed length. Every moment is in exactly one of them. Moments are POSIX timestamps, seconds since 1970
in UTC, as `time.time` gives them. Windows of one text and one clock are equal.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    import datetime  # noqa: ICN001 - as at run time, where `_lazy` gives the name its meaning
    import typing
else:
    from token_budget._lazy import datetime, typing

_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_UNITS = {"d": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1000, "us": 1}
_UTC = ("UTC", "ETC/UTC")
_TIME_OF_DAY = r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{6})?)?"
_BEGIN, _END = -62_135_596_800, 253_402_300_800  # of the years 1 to 9999


def system_time() -> float:
    """Return the system's time as a POSIX timestamp.

    It asks the module `time` at each call, so that tests may replace ``time.time`` (freezegun, ``unittest.mock``).
    """
    return time.time()


def to_datetime(timestamp: float | None) -> datetime.datetime | None:
    """Return the moment as a datetime in UTC; None for None.

    A moment outside the years 1 to 9999, which `datetime` knows, becomes the nearest moment inside them.
    """
    if timestamp is None:
        return None
    try:
        return datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc) + datetime.timedelta(seconds=timestamp)
    except OverflowError:
        edge = datetime.datetime.max if timestamp > 0 else datetime.datetime.min
        return edge.replace(tzinfo=datetime.timezone.utc)


class Window:
    """The periods of a budget: a pool with a window sets what is used back to 0 at the end of each.

    Make one with `daily`, `weekly`, `monthly` or `every`, or from text with `parse`. ``str(window)`` is text that
    `parse` reads back. A window holds no state: any number of pools may share it.

    ``clock`` is the function that returns the time as a POSIX timestamp. Tests and simulations pass their own; without
    one, it is the system's clock. A clock that steps back never reopens a period that a pool has closed.

    Example:
        >>> from datetime import time
        >>> from token_budget import Window
        >>> print(Window.daily("UTC+02:00", at=time(6)))
        daily UTC+02:00 at 06:00
        >>> [moment / 3600 for moment in Window.parse("daily UTC+02:00 at 06:00").period(0)]
        [-20.0, 4.0]
    """

    __slots__ = ("_identity", "_made_by", "_period_of", "clock")
    clock: typing.Callable[[], float]
    _identity: tuple[str, datetime.tzinfo | None]  # its text, and the zone if the text cannot name it
    _made_by: tuple[str, typing.Any, dict[str, typing.Any]]
    _period_of: typing.Callable[[float], tuple[float, float]]

    def __init__(self, *_: object, **__: object) -> None:
        raise TypeError("make a Window with Window.daily(), weekly(), monthly(), every() or parse()")

    @classmethod
    def daily(
        cls,
        tz: datetime.tzinfo | str | None = None,
        *,
        at: datetime.time | None = None,
        clock: typing.Callable[[], float] | None = None,
    ) -> Window:
        """Make the days of a time zone, from midnight to midnight or from another time of day to the next.

        A day has 23 or 25 hours where the zone's clocks change. A day whose time ``at`` is left out by such a change
        starts with the change; where that time comes twice, the day starts at the first.

        Args:
            tz: a time zone, as a tzinfo or by its IANA name ("Europe/Berlin"); also "UTC" and fixed offsets
                ("UTC+02:00"), which need no time zone database. UTC if it is left out. Any tzinfo works; text can
                name those of `zoneinfo` and pytz and fixed offsets of `datetime.timezone`, and no others: of a window
                with another tzinfo, ``str`` is for people only.
            at: the time at which each day starts, without a tzinfo.
            clock: a function that returns the time as a POSIX timestamp; the system's clock if it is left out.

        Raises:
            TypeError: an argument is of another type.
            ValueError: this system knows no time zone of that name, or ``at`` has a tzinfo.
        """
        start = _checked_time(at)
        shown = start.isoformat().removesuffix(":00")
        zone, name, unnamed = _zone(tz)
        text = f"daily {name}" if shown == "00:00" else f"daily {name} at {shown}"
        periods = _calendar(zone, datetime.date.toordinal, datetime.date.fromordinal, start)
        return cls._of(("daily", tz, {"at": at}), (text, unnamed), periods, clock)

    @classmethod
    def weekly(
        cls,
        tz: datetime.tzinfo | str | None = None,
        *,
        starts: str | int = "monday",
        clock: typing.Callable[[], float] | None = None,
    ) -> Window:
        """Make the weeks of a time zone, from a Monday, midnight, to the next, or from another day of the week.

        ``starts`` is the day on which each week starts: its English name, or 0 for Monday to 6 for Sunday. The other
        arguments are those of `daily`.

        Raises:
            TypeError, ValueError: as for `daily`, or ``starts`` is no day of the week.

        Example:
            >>> Window.weekly(starts="Sunday")
            <Window weekly UTC starts sunday>
        """
        weekday = _checked_weekday(starts)
        origin = weekday + 1  # the ordinal of the first such day: 0001-01-01, whose ordinal is 1, was a Monday
        zone, name, unnamed = _zone(tz)
        text = f"weekly {name} starts {_WEEKDAYS[weekday]}" if weekday else f"weekly {name}"
        periods = _calendar(
            zone, lambda day: (day.toordinal() - origin) // 7, lambda week: datetime.date.fromordinal(week * 7 + origin)
        )
        return cls._of(("weekly", tz, {"starts": starts}), (text, unnamed), periods, clock)

    @classmethod
    def monthly(
        cls,
        tz: datetime.tzinfo | str | None = None,
        *,
        day: int = 1,
        clock: typing.Callable[[], float] | None = None,
    ) -> Window:
        """Make the months of a time zone, from the first, midnight, to the next, or from another day of the month.

        ``day`` is the day on which each period starts, 1 to 31; in a month that has no such day, it is the last one.
        The other arguments are those of `daily`.

        Raises:
            TypeError, ValueError: as for `daily`, or ``day`` is no day of a month.
        """
        checked = _checked_day(day)

        def first_day(month: int) -> datetime.date:
            from calendar import monthrange

            year, month = month // 12, month % 12 + 1
            return datetime.date(year, month, min(checked, monthrange(year, month)[1]))

        zone, name, unnamed = _zone(tz)
        text = f"monthly {name} day {checked}" if checked > 1 else f"monthly {name}"
        periods = _calendar(zone, lambda date: date.year * 12 + date.month - 1, first_day)
        return cls._of(("monthly", tz, {"day": day}), (text, unnamed), periods, clock)

    @classmethod
    def every(cls, length: datetime.timedelta, *, clock: typing.Callable[[], float] | None = None) -> Window:
        """Make spans of one length, counted from 1970-01-01T00:00 UTC: every hour starts on the hour.

        Raises:
            TypeError, ValueError: length is no timedelta, or not above 0.
        """
        if not isinstance(length, datetime.timedelta):
            raise TypeError(f"length must be a datetime.timedelta, not {type(length).__name__}")
        micros = length // datetime.timedelta(microseconds=1)
        if micros <= 0:
            raise ValueError("length must be above 0")
        unit = next(unit for unit, size in _UNITS.items() if micros % size == 0)

        def period(now: float) -> tuple[float, float]:
            numerator, denominator = float(now).as_integer_ratio()
            index = numerator * 1_000_000 // (denominator * micros)
            # The end as a float may be rounded down to this very moment: then the moment is in the next span.
            while now >= (index + 1) * micros / 1_000_000:
                index += 1
            return index * micros / 1_000_000, (index + 1) * micros / 1_000_000

        return cls._of(("every", length, {}), (f"every {micros // _UNITS[unit]}{unit}", None), period, clock)

    @classmethod
    def parse(cls, text: str, *, clock: typing.Callable[[], float] | None = None) -> Window:
        """Make a window from text.

        The text is ``daily``, ``weekly`` or ``monthly``, then a time zone if it is not UTC, then the start if it is not
        midnight, Monday or the first: ``daily Europe/Berlin at 06:00``, ``weekly UTC starts sunday``, ``monthly day
        15``. Or it is ``every``, a whole number and a unit, which is us, ms, s, m, h or d: ``every 90m``.

        Raises:
            TypeError, ValueError: it is no text, or it says no window; the error tells what can be said.

        Example:
            >>> Window.parse("weekly UTC+02:00 starts sunday")
            <Window weekly UTC+02:00 starts sunday>
            >>> Window.parse("every 120m")
            <Window every 2h>
        """
        if not isinstance(text, str):
            raise TypeError(f"a window is parsed from a str, not {type(text).__name__}")
        kind, _, rest = text.strip().partition(" ")
        if kind == "every":
            return cls.every(_read_length(rest.strip()), clock=clock)
        words = ["", *[word for word in rest.split(" ") if word], ""]
        option, read = _OPTIONS.get(kind, ("", str))
        if not option or any(word in words and word != option for word, _ in _OPTIONS.values()):
            raise ValueError(
                f"{text[:50]!r} is no window: say daily, weekly or monthly, then a time zone if it is not UTC, or "
                "every 5h; the start comes last: at 06:00, starts sunday, day 15"
            )
        zone, given, value = " ".join(words).partition(f" {option} ")
        return _made(kind, zone.strip() or None, {option: read(value.strip())} if given else {}, clock)

    def now(self) -> float:
        """Return the time of the window's clock, as a POSIX timestamp."""
        return self.clock()

    def period(self, now: float) -> tuple[float, float]:
        """Return the period that a moment is in, its start and its end, as POSIX timestamps: ``start <= now < end``.

        Raises:
            TypeError: the moment is no number.
            ValueError, OverflowError: the moment, or a calendar's period around it, is not in the years 1 to 9999.
        """
        try:
            known = _BEGIN <= now < _END
        except TypeError:
            raise TypeError(f"a moment is a POSIX timestamp, a number of seconds, not {type(now).__name__}") from None
        if not known:
            raise ValueError(f"{now!r} is no POSIX timestamp, in seconds, of the years 1 to 9999")
        return self._period_of(now)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Window):
            return NotImplemented
        return (self._identity, self.clock) == (other._identity, other.clock)

    def __hash__(self) -> int:
        return hash((str(self), self.clock))  # some zones have no hash

    def __reduce__(self) -> tuple[typing.Any, ...]:
        return _made, (*self._made_by, self.clock)

    def __str__(self) -> str:
        return self._identity[0]

    def __repr__(self) -> str:
        return f"<Window {self}>"

    @classmethod
    def _of(
        cls,
        made_by: tuple[str, typing.Any, dict[str, typing.Any]],
        identity: tuple[str, datetime.tzinfo | None],
        period: typing.Callable[[float], tuple[float, float]],
        clock: typing.Callable[[], float] | None,
    ) -> Window:
        if clock is not None and not callable(clock):
            raise TypeError("clock must be a function that returns a POSIX timestamp, or None for the system's clock")
        window = cls.__new__(cls)
        window._made_by = made_by
        window._identity = identity
        window._period_of = period
        window.clock = system_time if clock is None else clock
        return window


def _made(kind: str, argument: typing.Any, option: dict[str, typing.Any], clock: typing.Any) -> Window:
    window: Window = getattr(Window, kind)(argument, clock=clock, **option)
    return window


def _checked_time(at: datetime.time | None) -> datetime.time:
    if at is None:
        return datetime.time()
    if not isinstance(at, datetime.time):
        raise TypeError(f"at must be a datetime.time, not {type(at).__name__}")
    if at.tzinfo is not None:
        raise ValueError("at must be a time without a tzinfo: the time zone is the window's own, tz")
    return at


def _checked_weekday(starts: str | int) -> int:
    if isinstance(starts, bool) or not isinstance(starts, (str, int)):
        raise TypeError(f"starts must be the name of a day of the week or its number, not {type(starts).__name__}")
    if isinstance(starts, str) and starts.lower() in _WEEKDAYS:
        return _WEEKDAYS.index(starts.lower())
    if isinstance(starts, int) and 0 <= starts <= 6:
        return int(starts)
    raise ValueError(f"{starts!r:.60} is no day of the week: say monday to sunday, or 0 for Monday to 6 for Sunday")


def _checked_day(day: int) -> int:
    if isinstance(day, bool) or not isinstance(day, int):
        raise TypeError(f"day must be an int, not {type(day).__name__}")
    if not 1 <= day <= 31:
        raise ValueError("day must be a day of the month, 1 to 31; where a month has no such day, its last is meant")
    return int(day)


def _read_time(text: str) -> datetime.time:
    from re import fullmatch

    if not fullmatch(_TIME_OF_DAY, text):
        raise ValueError(f"{text[:60]!r} is no time of day: write it as 06:00 or 06:00:30, after the time zone")
    return datetime.time.fromisoformat(text)


# What says where the periods of a calendar start: the argument, which is also the word in text, and its reader.
_OPTIONS: dict[str, tuple[str, typing.Callable[[str], object]]] = {
    "daily": ("at", _read_time),
    "weekly": ("starts", str),
    "monthly": ("day", lambda text: int(text) if text.isdecimal() and len(text) <= 2 else 0),
}


def _read_length(text: str) -> datetime.timedelta:
    digits = text.rstrip("dhmsu")
    unit = text[len(digits) :]
    if not digits.isdecimal() or unit not in _UNITS:
        raise ValueError(
            f"{'every ' + text[:60]!r} is no window: after every say a whole number and a unit, us, ms, s, m, h or d, "
            "as in every 90m"
        )
    micros = _UNITS[unit] * int(digits.lstrip("0")[:40] or "0")  # CPython refuses to read thousands of digits
    try:
        return datetime.timedelta(microseconds=micros)
    except OverflowError:
        raise ValueError(f"{'every ' + text[:60]!r} is too long a window: at most 999999999d") from None


def _zone(tz: datetime.tzinfo | str | None) -> tuple[datetime.tzinfo, str, datetime.tzinfo | None]:
    """Return a time zone, its text, and the zone once more if `Window.parse` cannot read the text."""
    if tz is None or isinstance(tz, str):
        zone = _zone_named("UTC" if tz is None else tz)
        return zone, str(zone), None
    if not isinstance(tz, datetime.tzinfo):
        raise TypeError(f"tz must be a tzinfo or the name of a time zone, not {type(tz).__name__}")
    if isinstance(tz, datetime.timezone):
        return tz, str(datetime.timezone(tz.utcoffset(None))), None  # by its offset, for any name can be given to it
    key = getattr(tz, "key", None)  # of zoneinfo
    if isinstance(key, str):
        return (datetime.timezone.utc, "UTC", None) if key.upper() in _UTC else (tz, key, None)
    name = getattr(tz, "zone", None)  # of pytz, whose zones end with the rules of 2037: zoneinfo's go on
    if isinstance(name, str):
        try:
            return _zone(name)
        except ValueError:
            pass
    return tz, str(tz), tz


def _zone_named(name: str) -> datetime.tzinfo:
    if name.upper() in _UTC:
        return datetime.timezone.utc
    if name.upper().startswith(("UTC", "+", "-")):
        from re import fullmatch

        if not fullmatch(f"UTC[+-]{_TIME_OF_DAY}", name):
            raise ValueError(f"there is no time zone {name[:60]!r}: write a fixed offset as UTC+02:00 or UTC-03:30")
        return datetime.datetime.fromisoformat(f"1970-01-01T00:00{name[3:]}").tzinfo or datetime.timezone.utc
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(
            f"there is no time zone {name[:60]!r} on this system; if the name is right, install the time zone "
            "database: pip install tzdata"
        ) from None


def _calendar(
    zone: datetime.tzinfo,
    number_of: typing.Callable[[datetime.date], int],
    first_day: typing.Callable[[int], datetime.date],
    start: datetime.time | None = None,
) -> typing.Callable[[float], tuple[float, float]]:
    """Return the function that finds the calendar period of a moment.

    The periods of a calendar have numbers: `number_of` tells the number of the period that a date is in, or of the next
    one, and `first_day` the date on which a period starts. `start` is the time of that day, midnight if it is left out.
    """
    from datetime import datetime, time, timedelta, timezone

    at = start or time()
    epoch = datetime(1970, 1, 1, tzinfo=timezone.utc)

    def start_of(number: int) -> float:
        return (_first_moment(datetime.combine(first_day(number), at, zone)) - epoch).total_seconds()

    def period(now: float) -> tuple[float, float]:
        number = number_of((epoch + timedelta(seconds=now)).astimezone(zone).date())
        begin, end = start_of(number), start_of(number + 1)
        # Where clocks go back over the end of a period, its last minutes come a second time after the next one has
        # started. They belong to the next, so that no period is entered twice.
        while now >= end:
            number += 1
            begin, end = end, start_of(number + 1)
        # The date may be in the period before, as early in the day on which one starts. So it is where `datetime` has
        # rounded to the next microsecond, and where a zone has left a day out.
        while now < begin:
            number -= 1
            begin, end = start_of(number), begin
        return begin, end

    return period


def _first_moment(wall: datetime.datetime) -> datetime.datetime:
    """Return the first moment, in UTC, at which the clocks of its zone show that time, or a later one if they skip it.

    The zone is only asked what its clocks show at a moment. Which moment a shown time is, tzinfo classes answer
    differently, and those of pytz wrongly. Datetimes of one tzinfo are compared by what they show.
    """
    from datetime import timedelta, timezone

    zone = wall.tzinfo

    def shown(moment: datetime.datetime) -> datetime.datetime:
        local = moment.astimezone(zone)
        return local if local.tzinfo is zone else local.replace(tzinfo=zone)  # pytz has a tzinfo for each offset

    before = wall.replace(tzinfo=timezone.utc) - timedelta(days=1)
    after = before + timedelta(days=2)  # no clock is a day or more away from UTC
    moment = before + (wall - shown(before))
    if shown(moment) == wall:
        return moment
    # The clocks change on that day, and no clock has shown the time before they do.
    while after - before > timedelta(microseconds=1):
        middle = before + (after - before) // 2
        if shown(middle) < wall:
            before = middle
        else:
            after = middle
    return after
