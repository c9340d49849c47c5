"""Windows of time across changes of the clock."""

from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway_serving.ledger.windows import Run, Size, TooManyWindowsError, find_zone, runs

HOUR = 3_600_000
QUARTER = 900_000
ZONES = ("UTC", "Europe/Zurich", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe",
         "America/Sao_Paulo", "Pacific/Apia", "Africa/Cairo", "America/Havana", "Antarctica/Troll")  # fmt: skip


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def local(at_ms: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(zone)


def lengths(since: str, until: str, size: Size, zone: str) -> list[tuple[int, int]]:
    """(hours times four, count) of each run."""
    found = find_zone(zone)
    assert found is not None
    return [(run.length_ms // QUARTER, run.count) for run in runs(ms(since), ms(until), size, found, 5000)]


def test_days_that_are_shorter_and_longer() -> None:
    assert lengths("2026-03-28T12:00:00+01:00", "2026-03-30T12:00:00+02:00", "DAY", "Europe/Zurich") == [
        (96, 1),
        (92, 1),
        (96, 1),
    ]
    assert lengths("2026-10-24T00:00:00+02:00", "2026-10-27T00:00:00+01:00", "DAY", "Europe/Zurich") == [
        (96, 1),
        (100, 1),
        (96, 1),
    ]


def test_a_midnight_that_the_clock_skips_and_a_day_that_it_skips() -> None:
    # São Paulo, 4 November 2018: 00:00 was 01:00 at once. Apia had no 30 December 2011.
    assert lengths("2018-11-03T12:00:00-03:00", "2018-11-05T12:00:00-02:00", "DAY", "America/Sao_Paulo") == [
        (96, 1),
        (92, 1),
        (96, 1),
    ]
    assert lengths("2011-12-29T00:00:00-10:00", "2012-01-01T00:00:00+14:00", "DAY", "Pacific/Apia") == [(96, 2)]


def test_hours_of_a_zone_beside_the_hour_and_of_one_that_changes_by_half_of_one() -> None:
    zone = find_zone("Asia/Kathmandu")
    assert zone is not None
    (run,) = runs(ms("2026-11-25T08:00:00Z"), ms("2026-11-25T09:00:00Z"), "HOUR", zone, 10)
    assert run == Run(ms("2026-11-25T07:15:00Z"), HOUR, 2)
    assert lengths("2026-04-05T00:00:00+11:00", "2026-04-05T04:00:00+10:30", "HOUR", "Australia/Lord_Howe") == [
        (4, 2),
        (2, 1),
        (4, 2),
    ]


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../etc/passwd", "right/UTC", "localtime", "Europe", "utc\0"])
def test_no_such_zone(name: str) -> None:
    assert find_zone(name) is None


def test_too_many() -> None:
    utc = find_zone("UTC")
    assert utc is not None
    with pytest.raises(TooManyWindowsError):
        runs(0, 4_000_000_000_000, "MINUTE", utc, 1440)
    with pytest.raises(TooManyWindowsError):
        runs(30_000, 1440 * 60_000 + 30_000, "MINUTE", utc, 1440)  # 1,441 minutes hold a moment of it
    assert runs(0, 1440 * 60_000, "MINUTE", utc, 1440) == [Run(0, 60_000, 1440)]


@given(
    st.sampled_from(ZONES),
    st.sampled_from(("HOUR", "DAY")),
    st.integers(ms("2000-01-02T00:00:00Z"), ms("2037-01-01T00:00:00Z")),
    st.integers(1, 60 * 24 * HOUR),
)
def test_windows_follow_each_other_hold_all_and_begin_where_the_clock_says(
    name: str, size: Size, since: int, long: int
) -> None:
    zone = find_zone(name)
    assert zone is not None
    found = runs(since, since + long, size, zone, 5000)
    assert found[0].start_ms <= since < found[0].start_ms + found[0].length_ms
    last = found[-1]
    assert last.end_ms - last.length_ms < since + long <= last.end_ms
    for run, following in pairwise(found):
        assert run.end_ms == following.start_ms
    for run in found:
        assert run.start_ms % QUARTER == run.length_ms % QUARTER == 0, "a roll-up would lie in two windows"
        begins = datetime.fromtimestamp(run.start_ms / 1000, UTC).astimezone(zone)
        changed = (
            datetime.fromtimestamp(run.start_ms / 1000 - 1, UTC).astimezone(zone).utcoffset() != begins.utcoffset()
        )
        assert changed or (begins.minute, begins.second) == (0, 0)
        if size == "DAY":
            assert changed or begins.hour == 0
