"""The request of POST /usage/completions: its parameter table, and what it asks of the ledger. For `routes.usage`."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from tollway_serving.gateway.chat_messages import strict
from tollway_serving.gateway.errors import ApiError
from tollway_serving.gateway.parameters import Parameter, Table
from tollway_serving.ledger.questions import Dimension, WindowQuery
from tollway_serving.ledger.windows import Size, TooManyWindowsError, find_zone, runs

MAX_WINDOWS: dict[Size, int] = {"MINUTE": 1440, "HOUR": 2400, "DAY": 1100}
"""A day of minutes, a hundred days of hours, three years of days."""

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_FIRST, _LAST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


def _time(value: str) -> str:
    _instant(value)
    return value


def _instant(value: str) -> datetime:
    if not _RFC3339.fullmatch(value):
        raise ValueError("write an RFC 3339 time with its zone, such as 2026-11-25T08:00:00Z")
    try:
        at = datetime.fromisoformat(value.upper())
    except ValueError:
        raise ValueError("there is no such time") from None
    if not _FIRST <= at <= _LAST:
        raise ValueError("it must be between the years 2000 and 2100")
    return at


def _zone(value: str) -> str:
    if find_zone(value) is None:
        raise ValueError("write an IANA time zone, such as UTC or Europe/Zurich")
    return value


def _once(value: list[str]) -> list[str]:
    if len(set(value)) < len(value):
        raise ValueError("each may stand there once")
    return value


_Time = Annotated[
    str,
    Field(max_length=40, json_schema_extra={"format": "date-time", "examples": ["2026-11-25T08:00:00Z"]}),
    AfterValidator(_time),
]
_Zone = Annotated[str, Field(max_length=64, json_schema_extra={"examples": ["Europe/Zurich"]}), AfterValidator(_zone)]
_Values = Annotated[list[Annotated[str, Field(max_length=512)]], Field(min_length=1, max_length=100)]


@strict
class UsageFilter(TypedDict, total=False):
    """Only usage that has one of the values in each of these."""

    model: _Values
    key: _Values
    endpoint: _Values
    status: _Values


USAGE = Table(
    "UsageRequest",
    (
        Parameter("start_time", _Time, "universal", "From the window that holds this time.", required=True),
        Parameter("end_time", _Time, "universal", "To the window that holds the moment before this time; now."),
        Parameter(
            "window_size",
            Size,
            "universal",
            "DAY by default. At most 1,440 minutes, 2,400 hours or 1,100 days.",
        ),
        Parameter("window_timezone", _Zone, "universal", "Where days and hours begin: an IANA name, UTC by default."),
        Parameter(
            "group_by",
            Annotated[list[Dimension], Field(max_length=4), AfterValidator(_once)],
            "universal",
            "A row for each of these in a window.",
        ),
        Parameter("filter_group_by", UsageFilter, "universal", "Only these models, keys, endpoints or statuses."),
    ),
)


@dataclass(frozen=True, slots=True)
class UsageRequest:
    """`start`, `end` and `size` are given back as they came."""

    query: WindowQuery
    unknown: tuple[str, ...]
    start: str
    end: str
    size: Size


def read_usage(body: Any, ignore: bool, account: str, now: datetime) -> UsageRequest:
    """ApiError for a bad one. Where no end is named it is the next whole second after `now`, so that the window that
    has just begun is in it."""
    values, unknown = USAGE.validate(body, ignore)
    start = values["start_time"]
    end = values.get("end_time") or (now + timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    size: Size = values.get("window_size", "DAY")
    name = values.get("window_timezone", "UTC")
    zone = find_zone(name)
    if zone is None:
        raise ApiError("invalid_value", "There is no such time zone.", param="window_timezone")
    since, until = (int(_instant(value).timestamp() * 1000) for value in (start, end))
    if until <= since:
        raise ApiError("invalid_value", "'end_time' must be later than 'start_time'.", param="end_time")
    try:
        windows = runs(since, until, size, zone, MAX_WINDOWS[size])
    except TooManyWindowsError:
        raise ApiError(
            "invalid_value",
            f"That is more than {MAX_WINDOWS[size]:,} windows of {size}. Ask for a shorter time or larger windows.",
            param="start_time",
        ) from None
    only = {dimension: tuple(wanted) for dimension, wanted in values.get("filter_group_by", {}).items()}
    query = WindowQuery(account, tuple(windows), size == "MINUTE", tuple(values.get("group_by", ())), only)
    return UsageRequest(query, unknown, start, end, size)
