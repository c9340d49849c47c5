"""Money under concurrency and faults: never more than there is, never a request that is answered and not charged."""

import asyncio
import sqlite3
import time
from collections import Counter
from typing import Any

import orjson
import pytest
from support.backend import Backend
from support.gateway import HELLO, Running, model, until

from tollway_serving.contract.catalogue import Limits

ASK: dict[str, Any] = {"messages": HELLO}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_200_at_once_on_credits_for_50(start: Any, backend: Backend, streamed: bool) -> None:
    """Each costs 7 + 2 * 5 = 17 micro-credits and holds 17: there are credits for exactly 50."""
    exact = {"token_bound": {"tenth_bytes_per_token": 10_000, "per_message": 0, "fixed": 6}}
    running = await start(
        models=[model(backend.url, queued_requests=1000, **exact)], limits=Limits(credits_monthly_micro=50 * 17)
    )
    gate = asyncio.Event()
    backend.behaviour.gate = gate

    async def one() -> tuple[int, str | None]:
        status, _, body = await running.post({**ASK, "max_tokens": 5})
        return status, body.get("error", {}).get("code")

    async def one_stream() -> tuple[int, str | None]:
        headers, raw = await running.stream({**ASK, "max_tokens": 5})
        if headers["content-type"].startswith("text/event-stream"):
            assert raw.endswith(b"data: [DONE]\n\n")
            return 200, None
        return 429, orjson.loads(raw)["error"]["code"]

    tasks = [asyncio.create_task(one_stream() if streamed else one()) for _ in range(200)]
    await until(lambda: sum(task.done() for task in tasks) >= 150, 60)
    gate.set()
    counts = Counter(await asyncio.gather(*tasks))
    assert counts[200, None] == 50
    assert counts[429, "credits_held"] + counts[429, "insufficient_quota"] == 150
    rows = await running.usage_rows(50)
    assert sum(row["charged_micro"] for row in rows) == 50 * 17
    assert (await one())[1] == "insufficient_quota"


async def test_without_a_maximum_the_answer_shrinks_to_what_is_affordable(start: Any, backend: Backend) -> None:
    exact = {"token_bound": {"tenth_bytes_per_token": 10_000, "per_message": 0, "fixed": 6}}
    running = await start(models=[model(backend.url, **exact)], limits=Limits(credits_monthly_micro=7 + 2 * 3))
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


async def test_ready_only_with_a_ledger(running: Running) -> None:
    async with running.client.get(running.url + "/readyz") as response:
        assert response.status == 200
    async with running.client.get(running.url + "/healthz") as response:
        assert response.status == 200


async def test_the_same_account_from_two_replicas(start: Any, backend: Backend) -> None:
    exact = {"token_bound": {"tenth_bytes_per_token": 10_000, "per_message": 0, "fixed": 6}}
    options: dict[str, Any] = {
        "models": [model(backend.url, queued_requests=1000, **exact)],
        "limits": Limits(credits_monthly_micro=20 * 17),
    }
    first, second = await start(**options), await start(**options)
    answers = await asyncio.gather(*(r.post({**ASK, "max_tokens": 5}) for _ in range(40) for r in (first, second)))
    # Held credits come back as calls end, so that how many are refused varies; what was charged does not.
    answered = sum(status == 200 for status, _, _ in answers)
    assert answered == 20
    assert sum(row["charged_micro"] for row in await first.usage_rows(20)) == 20 * 17
