"""A POST with an Idempotency-Key, sent again as clients do: after an answer, during one, after they gave up."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from support.backend import Backend, Behaviour
from support.gateway import HELLO, KEY, Running, check_error, model

Start = Callable[..., Any]

BODY: dict[str, Any] = {"model": "small", "messages": HELLO, "max_tokens": 20}
ONCE = {"idempotency-key": "order-1"}


async def test_a_second_one_gets_the_first_answer_and_its_receipt(running: Running, backend: Backend) -> None:
    status, headers, body = await running.post(BODY, headers=ONCE)
    assert status == 200
    assert "idempotent-replayed" not in headers
    again = await running.post(BODY, headers={**ONCE, "x-request-id": "second"})
    assert again[2] == body
    for name in ("x-charge-id", "x-credits-used", "x-model-used", "content-type"):
        assert again[1][name] == headers[name]
    assert (again[0], again[1]["idempotent-replayed"], again[1]["x-request-id"]) == (200, "true", "second")
    assert len(await running.usage_rows(1)) == len(backend.calls) == 1
    check_error(await running.post({**BODY, "max_tokens": 21}, headers=ONCE), "idempotency_mismatch")
    other = await running.post(BODY, headers={"idempotency-key": "order-2"})
    assert other[1]["x-charge-id"] != headers["x-charge-id"]


async def test_both_prefixes_are_one_route_and_others_are_not(start: Start, backend: Backend) -> None:
    running = await start(models=[model(backend.url, endpoints=("ChatCompletions", "Completions"))])
    _, headers, _ = await running.post(BODY, headers=ONCE)
    auth = {"authorization": f"Bearer {KEY}", **ONCE}
    async with running.client.post(f"{running.url}/api/v1/chat/completions", json=BODY, headers=auth) as answer:
        assert (answer.status, answer.headers["x-charge-id"]) == (200, headers["x-charge-id"])
    prompt = {"model": "small", "prompt": "a"}
    async with running.client.post(f"{running.url}/v1/completions", json=prompt, headers=auth) as answer:
        assert answer.status == 200
        assert answer.headers["x-charge-id"] != headers["x-charge-id"]


async def test_one_in_flight_is_in_progress(running: Running, backend: Backend) -> None:
    gate = asyncio.Event()
    backend.queue.append(Behaviour(gate=gate))
    first = asyncio.create_task(running.post(BODY, headers=ONCE))
    await backend.arrived.wait()
    check_error(await running.post(BODY, headers=ONCE), "idempotency_in_progress")
    gate.set()
    assert (await first)[0] == 200
    assert (await running.post(BODY, headers=ONCE))[1]["idempotent-replayed"] == "true"
    assert len(backend.calls) == 1


async def test_a_client_that_gave_up_gets_the_answer_later_and_pays_once(running: Running, backend: Backend) -> None:
    gate = asyncio.Event()
    backend.queue.append(Behaviour(gate=gate))
    first = asyncio.create_task(running.post(BODY, headers=ONCE))
    await backend.arrived.wait()
    first.cancel()
    await asyncio.wait([first])
    gate.set()
    (row,) = await running.usage_rows(1)
    assert row["status"] == "ok"
    status, headers, _ = await running.post(BODY, headers=ONCE)
    assert (status, headers["x-charge-id"]) == (200, row["charge_id"])
    assert len(backend.calls) == len(await running.usage_rows(1)) == 1


async def test_a_stream_is_not_given_again(running: Running, backend: Backend) -> None:
    body = {"stream": True, **BODY}  # as `stream` sends it, byte by byte
    headers, raw = await running.stream(body, headers=ONCE)
    assert raw.endswith(b"data: [DONE]\n\n")
    assert headers["x-charge-id"]
    check_error(await running.post(body, headers=ONCE), "idempotency_not_replayable")
    assert len(backend.calls) == len(await running.usage_rows(1)) == 1


async def test_an_answer_of_more_than_a_mebibyte_is_not_given_again(running: Running, backend: Backend) -> None:
    backend.queue.append(Behaviour(word="w" * 600_000, words=2))
    status, _, body = await running.post(BODY, headers=ONCE)
    assert status == 200
    assert len(json.dumps(body)) > 1024 * 1024
    check_error(await running.post(BODY, headers=ONCE), "idempotency_not_replayable")


async def test_a_failure_is_tried_again(running: Running, backend: Backend) -> None:
    backend.queue.append(Behaviour(status=500))
    check_error(await running.post(BODY, headers=ONCE), "model_unavailable")
    status, headers, _ = await running.post(BODY, headers=ONCE)
    assert (status, "idempotent-replayed" in headers) == (200, False)
    check_error(await running.post({**BODY, "model": "none"}, headers={"idempotency-key": "x"}), "model_not_found")
    assert (await running.post(BODY, headers={"idempotency-key": "x"}))[0] == 200


@pytest.mark.parametrize("name", ["", " ", "a b", "ä", "k" * 256])
async def test_a_name_that_is_none(running: Running, name: str) -> None:
    check_error(await running.post(BODY, headers={"idempotency-key": name}), "invalid_value")
