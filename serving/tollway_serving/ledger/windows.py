"""Windows of time as a clock on a wall shows them, across daylight-saving changes. Pure; used by `reports` and by the
usage routes.

A day is from midnight to midnight of its zone, 23 or 25 hours where the clock is changed; an hour or a minute begins
where the clock shows a whole one. Windows of one length in a row are one `Run`, so that a database can sort rows into
them by a division.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Literal
from zoneinfo import ZoneInfo, available_timezones

Size = Literal["MINUTE", "HOUR", "DAY"]

_LENGTH_MS: dict[Size, int] = {"MINUTE": 60_000, "HOUR": 3_600_000, "DAY": 86_400_000}


class TooManyWindowsError(ValueError):
    """More windows than a report may have."""


@dataclass(frozen=True, slots=True)
class Run:
    """`count` windows of `length_ms`, the first one from `start_ms` on (milliseconds since 1970)."""

    start_ms: int
    length_ms: int
    count: int

    @property
    def end_ms(self) -> int:
        return self.start_ms + self.length_ms * self.count


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones() - {"localtime", "posixrules", "Factory"})  # files of a host, no places


def find_zone(name: str) -> ZoneInfo | None:
    """The IANA time zone of this name."""
    return ZoneInfo(name) if name in _zones() else None


def runs(since_ms: int, until_ms: int, size: Size, zone: ZoneInfo, limit: int) -> list[Run]:
    """The windows that hold a moment from `since_ms` to just before `until_ms`, whole. TooManyWindowsError above
    `limit` of them."""
    if (until_ms - since_ms) // _LENGTH_MS[size] > limit:
        raise TooManyWindowsError
    bounds = _days(since_ms, until_ms, zone) if size == "DAY" else _clock(since_ms, until_ms, _LENGTH_MS[size], zone)
    if len(bounds) - 1 > limit:
        raise TooManyWindowsError
    found: list[Run] = []
    for start, end in pairwise(bounds):
        last = found[-1] if found else None
        if last is not None and last.length_ms == end - start:
            found[-1] = Run(last.start_ms, last.length_ms, last.count + 1)
        else:
            found.append(Run(start, end - start, 1))
    return found


def _days(since_ms: int, until_ms: int, zone: ZoneInfo) -> list[int]:
    """Midnights. One that the clock skips is the moment of the skip; a day that it skips has no length and is none."""
    day = _local(since_ms, zone).date()
    bounds: list[int] = []
    while not bounds or bounds[-1] < until_ms:
        at = int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()) * 1000
        if not bounds or at > bounds[-1]:
            bounds.append(at)
        day += timedelta(days=1)
    return bounds


def _clock(since_ms: int, until_ms: int, length_ms: int, zone: ZoneInfo) -> list[int]:
    at = since_ms - (since_ms + _offset_ms(since_ms, zone)) % length_ms
    bounds = [at]
    while at < until_ms:
        # The clock may have been changed by less than a window: the next whole one is then nearer.
        at += length_ms - (at + _offset_ms(at, zone)) % length_ms
        bounds.append(at)
    return bounds


def _local(at_ms: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(at_ms // 1000, UTC).astimezone(zone)


def _offset_ms(at_ms: int, zone: ZoneInfo) -> int:
    offset = _local(at_ms, zone).utcoffset()
    return 0 if offset is None else int(offset.total_seconds()) * 1000
