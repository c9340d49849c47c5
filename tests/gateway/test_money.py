"""Money under concurrency and faults: never more than there is, never a request that is answered and not charged."""

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from support.backend import Backend
from support.gateway import HELLO, Running, check_error, model, until

from tollway_serving.contract.catalogue import Limits
from tollway_serving.ledger import schema
from tollway_serving.ledger.database import Database, in_snapshot
from tollway_serving.ledger.state import decode, hold_from_row
from tollway_serving.ledger.verify import verify

ASK: dict[str, Any] = {"messages": HELLO}
EXACT: dict[str, Any] = {"token_bound": {"tenth_bytes_per_token": 10_000, "per_message": 0, "fixed": 6}}
"""A bound that is the 7 tokens which the backend counts: a hold is what the call will cost."""


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_200_at_once_on_credits_for_50(start: Any, backend: Backend, database: str, streamed: bool) -> None:
    """On two replicas. Each costs 7 + 2 * 5 = 17 micro-credits and holds 17: there are credits for exactly 50."""
    limit = 50 * 17
    options: dict[str, Any] = {
        "models": [model(backend.url, queued_requests=1000, **EXACT)],
        "limits": Limits(credits_monthly_micro=limit),
        "database": database,
    }
    replicas = [await start(**options), await start(**options)]
    gate = asyncio.Event()
    backend.behaviour.gate = gate

    async def one(running: Running) -> str:
        if streamed:
            headers, raw = await running.stream({**ASK, "max_tokens": 5})
            if headers["content-type"].startswith("text/event-stream"):
                assert raw.endswith(b"data: [DONE]\n\n")
                return "200"
            answer: tuple[int, Any, Any] = 429, headers, orjson.loads(raw)
        else:
            answer = await running.post({**ASK, "max_tokens": 5})
            if answer[0] == 200:
                assert answer[1]["x-credits-used"] == "0.000017"
                return "200"
        code: str = answer[2]["error"]["code"]
        check_error(answer, code)
        return f"429 {code}"

    async with watched(database) as seen:
        tasks = [asyncio.create_task(one(replicas[i % 2])) for i in range(200)]
        await until(lambda: sum(task.done() for task in tasks) >= 75 and seen[-1:] == [(0, limit)], 60)
        gate.set()
        counts = Counter(await asyncio.gather(*tasks))
        last = await one(replicas[0])
    assert counts.pop("200") == 50
    assert counts.keys() <= {"429 credits_held", "429 insufficient_quota"}
    assert counts.total() == 150
    assert last == "429 insufficient_quota"
    assert all(settled + held <= limit for settled, held in seen), max(map(sum, seen))
    assert seen[-1] == (limit, 0)
    report = await verify(database)
    assert report.problems == []
    assert (report.usage_rows, report.open_holds, report.charged_micro) == (50, 0, limit)
    print({"200": 50, **counts}, len(seen), "observations")  # shown with -rP


@asynccontextmanager
async def watched(url: str) -> AsyncIterator[list[tuple[int, int]]]:
    """Looks at the ledger as often as it can: (settled, held) in micro-credits, by its rows and by its balances."""
    seen: list[tuple[int, int]] = []

    def look(connection: sa.Connection) -> None:
        in_snapshot(connection)
        settled = int(connection.scalar(sa.select(sa.func.sum(schema.usage.c.charged_micro))) or 0)
        rows = connection.execute(sa.select(schema.holds)).mappings()
        held = sum(hold_from_row(dict(row)).micro for row in rows)
        balances = [[0, 0]]
        for (text,) in connection.execute(sa.select(schema.subjects.c.state)):
            balances += decode(text).credits.values()
        assert [sum(pair) for pair in zip(*balances, strict=True)] == [settled, held]
        seen.append((settled, held))

    ledger = Database(url, limit_s=20)

    async def forever() -> None:
        while True:
            await ledger.read(look)

    task = asyncio.create_task(forever())
    try:
        yield seen
        assert not task.done(), task.exception()
        await until(lambda: seen[-1][1] == 0)
    finally:
        task.cancel()
        await asyncio.wait([task])
        await ledger.close()


async def test_without_a_maximum_the_answer_shrinks_to_what_is_affordable(start: Any, backend: Backend) -> None:
    running = await start(models=[model(backend.url, **EXACT)], limits=Limits(credits_monthly_micro=7 + 2 * 3))
    _, headers, body = await running.post(ASK)
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 3
    assert headers["x-credits-used"] == "0.000013"
    assert (await running.post(ASK))[2]["error"]["code"] == "insufficient_quota"


async def test_n_choices_share_what_is_granted(running: Running) -> None:
    _, _, body = await running.post({**ASK, "n": 3, "max_tokens": 2})
    assert running.backend.calls[0].body["max_completion_tokens"] == 2
    assert body["usage"]["completion_tokens"] == 6
    (row,) = await running.usage_rows(1)
    assert row["charged_micro"] == 7 + 2 * 6


async def test_tokens_are_covered_before_they_leave(running: Running) -> None:
    """What a killed gateway would leave behind: never less than what the client has."""
    gate = asyncio.Event()
    running.backend.then(words=300, gate=gate)
    url = running.url + "/v1/chat/completions"
    headers = {"authorization": "Bearer " + "sk-tw-" + "A" * 43 + "canary"}
    body = {**ASK, "stream": True, "max_tokens": 300}
    async with running.client.post(url, json=body, headers=headers) as response:
        received, seen = b"", 0
        while seen < 300:
            received += await response.content.readany()
            seen = received.count(b'"content":"')
        connection = sqlite3.connect(running.database.removeprefix("sqlite:///"))
        covered, prompt = connection.execute("select covered_output, covered_prompt from tollway_holds").fetchone()
        connection.close()
        assert 300 <= covered <= 300 + 1024
        assert prompt == 7
        gate.set()
        await response.read()
    (row,) = await running.usage_rows(1)
    assert row["charged_micro"] == 7 + 600


class Lock:
    """Keeps the ledger's file to itself, as a stopped writer does."""

    def __init__(self, running: Running) -> None:
        self._connection = sqlite3.connect(running.database.removeprefix("sqlite:///"), isolation_level=None)

    def __enter__(self) -> None:
        self._connection.execute("begin immediate")

    def __exit__(self, *_: object) -> None:
        self._connection.execute("rollback")
        self._connection.close()


async def test_a_locked_ledger_is_told_in_time_and_forgotten_when_it_is_back(running: Running) -> None:
    assert (await running.post(ASK))[0] == 200
    with Lock(running):
        began = time.monotonic()
        status, headers, body = await running.post(ASK)
        assert (status, body["error"]["code"]) == (503, "ledger_unavailable")
        assert time.monotonic() - began < 3
        assert headers["retry-after"]
        assert "sqlite" not in orjson.dumps(body).decode().lower()
    assert (await running.post(ASK))[0] == 200


async def test_a_settlement_that_could_not_be_kept_is_kept_later(running: Running) -> None:
    gate = asyncio.Event()
    running.backend.then(gate=gate)
    stream = asyncio.create_task(running.stream(ASK))
    await running.backend.arrived.wait()
    await until(lambda: running.backend.calls[0].sent >= 5)
    with Lock(running):
        gate.set()
        _, raw = await stream
        assert b"ledger_unavailable" in raw
        assert b"[DONE]" not in raw
    (row,) = await running.usage_rows(1)
    assert row["charged_micro"] == 17


@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "order-1"}], ids=["once", "repeatable"])
async def test_an_answer_whose_hold_was_closed_meanwhile_does_not_leave(
    running: Running, headers: dict[str, str]
) -> None:
    """As after a long SIGSTOP: others have taken the gateway for dead, and closed the hold by what was known of it."""
    gate = asyncio.Event()
    running.backend.then(gate=gate, words=20)
    answer = asyncio.create_task(running.post({**ASK, "max_tokens": 20}, headers=headers))
    await running.backend.arrived.wait()
    await until(lambda: running.backend.calls[0].sent >= 20)
    database = Database(running.database)
    silent = sa.update(schema.replicas).values(seen_ms=0)
    await database.write(lambda connection: connection.execute(silent).rowcount)
    await database.close()
    assert await running.publisher.reap() == 1
    (row,) = await running.usage_rows(1)
    gate.set()
    check_error(await answer, "ledger_unavailable")
    assert await running.usage_rows(1) == [row]
    assert row["charged_micro"] <= 200, "of the prompt at the most"


async def test_ready_only_with_a_ledger(running: Running) -> None:
    async with running.client.get(running.url + "/readyz") as response:
        assert response.status == 200
    async with running.client.get(running.url + "/healthz") as response:
        assert response.status == 200


async def test_the_same_account_from_two_replicas(start: Any, backend: Backend) -> None:
    options: dict[str, Any] = {
        "models": [model(backend.url, queued_requests=1000, **EXACT)],
        "limits": Limits(credits_monthly_micro=20 * 17),
    }
    first, second = await start(**options), await start(**options)
    answers = await asyncio.gather(*(r.post({**ASK, "max_tokens": 5}) for _ in range(40) for r in (first, second)))
    # Held credits come back as calls end, so that how many are refused varies; what was charged does not.
    answered = sum(status == 200 for status, _, _ in answers)
    assert answered == 20
    assert sum(row["charged_micro"] for row in await first.usage_rows(20)) == 20 * 17
