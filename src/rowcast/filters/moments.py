"""Dates and times: literals → PostgreSQL's text output, and sort keys of that output. No I/O.

The one rule of this room: only the ISO forms are read, because what the others mean depends on DateStyle, and `now`
or `today` on the clock. The session's time zone is UTC, as for every session that rows come from.
"""

from __future__ import annotations

import calendar
import re
from datetime import datetime, timedelta
from typing import Final

_DATE = r"(?P<year>[0-9]{4}|[1-9][0-9]{4,6})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})"
_TIME = (
    r"(?P<hour>[01][0-9]|2[0-3]):(?P<minute>[0-5][0-9])"
    r"(?::(?P<second>[0-5][0-9])(?:\.(?P<fraction>[0-9]{1,6}))?)?"
)
_ZONE = r"(?: ?(?P<zone>Z|(?P<sign>[+-])(?P<hours>0[0-9]|1[0-5])(?::?(?P<minutes>[0-5][0-9]))?))"
_ERA = r"(?P<era> BC)?"
_DATES: Final = re.compile(_DATE + _ERA)
_TIMES: Final = re.compile(_TIME)
_TIMESTAMPS: Final = re.compile(f"{_DATE}(?:[T ]{_TIME})?{_ERA}")
_TIMESTAMPS_WITH_ZONE: Final = re.compile(f"{_DATE}(?:[T ]{_TIME}{_ZONE}?)?{_ERA}")
_INFINITIES: Final = {"infinity": "infinity", "-infinity": "-infinity"}
_FIRST_YEAR_BC: Final = 4713  # the calendar of PostgreSQL begins in November 4714 BC
_LAST_YEAR_OF_DATES: Final = 5_874_897
_LAST_YEAR_OF_TIMESTAMPS: Final = 294_276


def read_date(text: str) -> str:
    """Raises ValueError with the form that is expected."""
    if infinite := _INFINITIES.get(text.lower()):
        return infinite
    match = _DATES.fullmatch(text)
    if match is None or not _is_day(match, _LAST_YEAR_OF_DATES):
        raise ValueError("a day as YYYY-MM-DD")
    return text


def read_time(text: str) -> str:
    """Raises ValueError with the form that is expected."""
    if text in {"24:00", "24:00:00"}:  # the last moment of a day, which is not the first of the next
        return "24:00:00"
    match = _TIMES.fullmatch(text)
    if match is None:
        raise ValueError("a time as HH:MM:SS, up to six digits of fraction")
    return _time_of(match)


def read_timestamp(text: str) -> str:
    """Raises ValueError with the form that is expected."""
    if infinite := _INFINITIES.get(text.lower()):
        return infinite
    match = _TIMESTAMPS.fullmatch(text)
    if match is None or not _is_day(match, _LAST_YEAR_OF_TIMESTAMPS):
        raise ValueError("a time as YYYY-MM-DD HH:MM:SS without a zone, up to six digits of fraction")
    return _write(match)


def read_timestamptz(text: str) -> str:
    """Raises ValueError with the form that is expected."""
    if infinite := _INFINITIES.get(text.lower()):
        return infinite
    match = _TIMESTAMPS_WITH_ZONE.fullmatch(text)
    if match is None or not _is_day(match, _LAST_YEAR_OF_TIMESTAMPS):
        raise ValueError(
            "a time as YYYY-MM-DDTHH:MM:SSZ (or +HH:MM; UTC without one), up to six digits of fraction"
        )
    offset = timedelta(hours=int(match["hours"] or 0), minutes=int(match["minutes"] or 0))
    if not offset:
        return _write(match, "+00")
    if len(match["year"]) > 4 or match["era"]:
        raise ValueError("a time in UTC, for years before 1 and after 9999")
    try:
        local = datetime.fromisoformat(
            f"{match['year']}-{match['month']}-{match['day']} {match['hour']}:{match['minute']}"
        )
        instant = local - offset if match["sign"] == "+" else local + offset
    except OverflowError:
        raise ValueError("a time in UTC, for years before 1 and after 9999") from None
    return f"{instant.isoformat(' ', 'minutes')}:{_seconds_of(match)}+00"


def order_of(text: bytes) -> bytes:
    """Sort key of a date, timestamp or timestamptz in PostgreSQL's text output.

    From year 1 to 9999 the output sorts as it is. Infinities do too beside it: `-` is below the digits, `i` above.
    """
    if (text[4:5] == b"-" and not text.endswith(b"C")) or text.endswith(b"infinity"):
        return text
    year, _, rest = text.partition(b"-")
    if text.endswith(
        b"C"
    ):  # 0044-03-15 BC: later years have smaller numbers; `/` is between `-` and the digits
        return b"/%07d-%b" % (9_999_999 - int(year), rest)
    return b":%07d-%b" % (int(year), rest)  # `:` is between the digits and `i`


def _is_day(match: re.Match[str], last_year: int) -> bool:
    year, month = int(match["year"]), int(match["month"])
    if not 1 <= year <= (_FIRST_YEAR_BC if match["era"] else last_year) or not 1 <= month <= 12:
        return False
    # The calendar repeats every 400 years; 1 BC is the year 0 of it.
    same_year = 2000 + (1 - year if match["era"] else year) % 400
    return 1 <= int(match["day"]) <= calendar.monthrange(same_year, month)[1]


def _write(match: re.Match[str], zone: str = "") -> str:
    time = _time_of(match) if match["hour"] else "00:00:00"
    return f"{match['year']}-{match['month']}-{match['day']} {time}{zone}{match['era'] or ''}"


def _time_of(match: re.Match[str]) -> str:
    return f"{match['hour']}:{match['minute']}:{_seconds_of(match)}"


def _seconds_of(match: re.Match[str]) -> str:
    fraction = (match["fraction"] or "").rstrip("0")
    return f"{match['second'] or '00'}.{fraction}" if fraction else match["second"] or "00"
