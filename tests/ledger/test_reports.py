"""What customers may ask of their accounts, against sums made by hand, the same on both databases."""

import random
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from support.ledger import catalogue, ledger, publisher, reserve, settle
from support.ledger_history import past_call, write_history

from tollway_serving.contract.catalogue import Limits, Quota
from tollway_serving.ledger import questions, schema
from tollway_serving.ledger.database import Database
from tollway_serving.ledger.publish import open_publisher
from tollway_serving.ledger.questions import Dimension, NotKeptError, TooManyRowsError, Who, WindowQuery, WindowRow
from tollway_serving.ledger.store import Store
from tollway_serving.ledger.verify import verify
from tollway_serving.ledger.windows import Size, find_zone, runs

COLUMNS = {"model": "model_id", "key": "key_id", "endpoint": "endpoint", "status": "status"}


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with publisher(url, catalogue()), ledger(url) as opened:
        yield opened


async def write(url: str, calls: list[dict[str, Any]]) -> None:
    database = Database(url)
    try:
        await database.write(lambda connection: write_history(connection, calls))
    finally:
        await database.close()


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def history(count: int, since: int, until: int) -> list[dict[str, Any]]:
    dice = random.Random(7)
    return [
        past_call(
            number,
            dice.randrange(since, until),
            account=dice.choice(("team/a0", "team/a0", "team/other")),
            key_id=dice.choice(("team/k0", "team/k1")),
            model_id=dice.choice(("small", "large", "ünïcode")),
            endpoint=dice.choice(("ChatCompletions", "Embeddings")),
            status=dice.choice(("ok", "ok", "error", "cancelled", "released")),
            input=dice.randrange(1000),
            output=dice.randrange(1000),
        )
        for number in range(count)
    ]


def by_hand(
    calls: list[dict[str, Any]], size: Size, zone: str, group_by: tuple[Dimension, ...], only: Any
) -> dict[tuple[Any, ...], list[int]]:
    """Sums by what the clock showed (and by its offset: an hour comes twice when the clock goes back)."""
    found: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    shown = {"MINUTE": "%F %H:%M %z", "HOUR": "%F %H %z", "DAY": "%F"}[size]
    for call in calls:
        if call["account"] != "team/a0" or call["status"] == "released":
            continue
        if any(call[COLUMNS[name]] not in wanted for name, wanted in only.items()):
            continue
        clock = datetime.fromtimestamp(call["created_ms"] / 1000, UTC).astimezone(find_zone(zone)).strftime(shown)
        counts = orjson.loads(call["counts"])
        sums = found[(clock, *(call[COLUMNS[name]] for name in group_by))]
        for index, value in enumerate((1, counts["input_tokens"], counts["output_tokens"], call["charged_micro"])):
            sums[index] += value
    return dict(found)


def as_shown(rows: list[WindowRow], size: Size, zone: str) -> dict[tuple[Any, ...], list[int]]:
    shown = {"MINUTE": "%F %H:%M %z", "HOUR": "%F %H %z", "DAY": "%F"}[size]
    found = {}
    for row in rows:
        clock = datetime.fromtimestamp(row.start_ms / 1000, UTC).astimezone(find_zone(zone)).strftime(shown)
        found[(clock, *row.group)] = [row.requests, row.input_tokens, row.output_tokens, row.charged_micro]
    assert len(found) == len(rows), "a group stands twice in a window"
    return found


async def test_windows_are_the_sums_of_their_calls(url: str, store: Store) -> None:
    since, until = ms("2025-10-24T00:00:00+02:00"), ms("2025-10-28T00:00:00+01:00")
    calls = history(600, since, until)
    await write(url, calls)
    asked: list[tuple[Size, str, tuple[Dimension, ...], dict[Dimension, tuple[str, ...]]]] = [
        ("DAY", "Europe/Zurich", (), {}),
        ("DAY", "Asia/Kathmandu", ("status",), {}),
        ("HOUR", "Europe/Zurich", ("model", "key", "endpoint", "status"), {}),
        ("HOUR", "Australia/Lord_Howe", ("key",), {"model": ("small", "ünïcode"), "status": ("ok",)}),
        ("MINUTE", "UTC", ("model",), {"key": ("team/k1",)}),
        ("MINUTE", "Asia/Kolkata", (), {}),
        ("DAY", "UTC", (), {"model": ("nothing' or 1=1 --",)}),
    ]
    for size, zone, group_by, only in asked:
        found_zone = find_zone(zone)
        assert found_zone is not None
        windows = tuple(runs(since, until, size, found_zone, 10_000))
        rows = await store.window_usage(WindowQuery("team/a0", windows, size == "MINUTE", group_by, only))
        assert rows == sorted(rows, key=lambda row: (row.start_ms, [v.encode() for v in row.group]))
        assert as_shown(rows, size, zone) == by_hand(calls, size, zone, group_by, only), (size, zone)


async def test_minutes_from_before_the_retention_and_too_much_at_once(
    url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    since = ms("2025-10-24T00:00:00Z")
    await write(url, history(50, since, since + 3_600_000))
    utc = find_zone("UTC")
    assert utc is not None
    minutes = tuple(runs(since, since + 3_600_000, "MINUTE", utc, 100))
    monkeypatch.setattr("tollway_serving.ledger.reports.MAX_ROWS", 5)
    with pytest.raises(TooManyRowsError):
        await store.window_usage(WindowQuery("team/a0", minutes, True))
    database = Database(url)
    kept = sa.update(schema.meta).where(schema.meta.c.name == "usage_from_ms").values(value=since + 1)
    await database.write(lambda connection: connection.execute(kept))
    await database.close()
    with pytest.raises(NotKeptError) as raised:
        await store.window_usage(WindowQuery("team/a0", minutes, True))
    assert raised.value.from_ms == since + 1
    assert questions.MAX_ROWS == 50_000


async def test_standing_counts_what_was_settled_and_shows_what_is_held(url: str, store: Store) -> None:
    limits = Limits(
        credits_monthly_micro=1_000,
        trial_requests=10,
        quotas=(
            Quota(name="day", meter="Tokens", limit=500, period="Day"),
            Quota(name="calls", meter="Requests", limit=5),
        ),
    )
    narrower = Limits(credits_monthly_micro=200, quotas=(Quota(name="mine", meter="OutputTokens", limit=60),))
    last_month = (datetime.now(UTC).replace(day=1) - timedelta(days=2)).timestamp()
    await write(url, [past_call(1, int(last_month * 1000))])
    ended = reserve(account_limits=limits, key_limits=narrower)
    failed = reserve(account_limits=limits, key_limits=narrower)
    running = reserve(account_limits=limits, key_limits=narrower)
    for op in (ended, failed, running):
        await store.submit(op)
    await store.submit(settle(ended, output=15))
    await store.submit(settle(failed, output=0, status="error", counts={}))
    found = await store.standing(Who("team/a0", limits, "key:uid-0", narrower))
    assert (found.requests, found.ok, found.input_tokens, found.output_tokens) == (2, 1, 10, 15)
    assert (found.credits_used_micro, found.credits_left_micro) == (40, 110)
    assert (found.trial_settled, found.trial_held) == (1, 1)
    assert [(q.quota.name, q.of_key, q.settled, q.held) for q in found.quotas] == [
        ("day", False, 25, 30),
        ("calls", False, 1, 1),
        ("mine", True, 15, 20),
    ]
    unknown = await store.standing(Who("team/nobody", limits))
    assert (unknown.requests, unknown.credits_left_micro, unknown.trial_settled) == (0, 1_000, 0)


async def test_old_calls_go_and_their_sums_stay(url: str, store: Store) -> None:
    now = int(datetime.now(UTC).timestamp() * 1000)
    day = 86_400_000
    old = history(300, now - 300 * day, now - 100 * day)
    new = [call | {"charge_id": f"new-{n}"} for n, call in enumerate(history(100, now - 40 * day, now - 39 * day))]
    await write(url, old + new)
    utc = find_zone("UTC")
    assert utc is not None
    days = WindowQuery("team/a0", tuple(runs(now - 301 * day, now, "DAY", utc, 400)), group_by=("model", "status"))
    before = await store.window_usage(days)
    opened = open_publisher(url, usage_days=45)
    await opened.start()
    await opened.reap()
    await opened.close()
    database = Database(url)
    left = await database.read(lambda connection: list(connection.scalars(sa.select(schema.usage.c.charge_id))))
    await database.close()
    assert sorted(left) == sorted(call["charge_id"] for call in new)
    assert await store.window_usage(days) == before
    roll_ups = [problem for problem in (await verify(url)).problems if "roll-up" in problem]
    assert roll_ups == []
