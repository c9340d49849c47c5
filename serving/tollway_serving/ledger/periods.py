"""UTC days, ISO weeks and months as short keys; used by `state` and `admit` (pure), and by the usage queries."""

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

from tollway_serving.contract.units import Period

DAY_MS = 86_400_000


@lru_cache(maxsize=64)
def _keys(day: int) -> tuple[str, str, str]:
    at = date(1970, 1, 1) + timedelta(days=day)
    week = at.isocalendar()
    return at.isoformat(), f"{week.year}-W{week.week:02d}", f"{at.year:04d}-{at.month:02d}"


def period_keys(now_ms: int) -> tuple[str, str, str]:
    """The day, ISO week and month that `now_ms` lies in: ("2026-11-25", "2026-W48", "2026-11")."""
    return _keys(now_ms // DAY_MS)


def period_key(period: Period, now_ms: int) -> str:
    day, week, month = _keys(now_ms // DAY_MS)
    return day if period == "Day" else week if period == "Week" else month


def period_bounds(period: Period, now_ms: int) -> tuple[int, int]:
    """First millisecond of the period that `now_ms` lies in, and first one after it."""
    day = date(1970, 1, 1) + timedelta(days=now_ms // DAY_MS)
    if period == "Day":
        first, after = day, day + timedelta(days=1)
    elif period == "Week":
        first = day - timedelta(days=day.weekday())
        after = first + timedelta(days=7)
    else:
        first = day.replace(day=1)
        after = (first + timedelta(days=31)).replace(day=1)
    return _start_ms(first), _start_ms(after)


def key_bounds(key: str) -> tuple[int, int]:
    """The same for a period's key, as `period_keys` gives them."""
    if "W" in key:
        return period_bounds("Week", _start_ms(date.fromisocalendar(int(key[:4]), int(key[6:]), 1)))
    if len(key) == 7:
        return period_bounds("Month", _start_ms(date(int(key[:4]), int(key[5:]), 1)))
    return period_bounds("Day", _start_ms(date.fromisoformat(key)))


def _start_ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000
