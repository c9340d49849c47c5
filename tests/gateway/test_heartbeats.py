"""Comments in a stream that waits: they begin it early, take nothing from it, and cost nobody anything."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import openai
import orjson
import pytest
from support.backend import Backend
from support.gateway import HELLO, KEY, Running, model, plan

from tollway_serving.contract.catalogue import Fallback, Timeouts

ASK: dict[str, Any] = {"messages": HELLO, "stream": True}
BEAT = b": waiting\n\n"


class Frames:
    """A stream, frame by frame. Nothing may be in it but whole comments and one-line events."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self) -> bytes:
        frame = await asyncio.wait_for(self.response.content.readuntil(b"\n\n"), 10)
        lines = frame[:-2].split(b"\n")
        assert all(line.startswith(b": ") for line in lines) or (len(lines) == 1 and frame.startswith(b"data: ")), frame
        return frame

    async def after_beats(self) -> bytes:
        while (frame := await self.next()) == BEAT:
            pass
        return frame

    async def rest(self) -> list[bytes]:
        """Everything to the end, heartbeats left out."""
        frames = []
        while not self.response.content.at_eof():
            if (frame := await self.next()) != BEAT:
                frames.append(frame)
        return frames


@asynccontextmanager
async def asking(running: Running, **ask: Any) -> AsyncIterator[Frames]:
    headers = {"authorization": f"Bearer {KEY}"}
    url = f"{running.url}/v1/chat/completions"
    async with running.client.post(url, json={**ASK, **ask}, headers=headers) as response:
        assert response.status == 200
        yield Frames(response)


def told(comment: bytes) -> dict[str, str]:
    """Comment lines that would have been headers."""
    assert comment.startswith(b": ")
    return dict(line.removeprefix(": ").split(": ", 1) for line in comment.decode().strip().split("\n"))


def content(frames: list[bytes]) -> str:
    chunks = [orjson.loads(f[6:]) for f in frames if f.startswith(b"data: {")]
    return "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])


async def test_while_the_first_token_is_awaited(start: Any, backend: Backend) -> None:
    running = await start(heartbeat_s=0.05)
    backend.then(hold=(hold := asyncio.Event()))
    async with asking(running, stream_options={"include_usage": True}) as stream:
        headers = stream.response.headers
        for _ in range(3):
            assert await stream.next() == BEAT
        hold.set()
        late = told(await stream.after_beats())
        frames = await stream.rest()
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["x-request-id"]
    assert int(headers["openai-processing-ms"]) >= 50
    assert not {"x-model-used", "x-charge-id", "x-credits-reserved"} & set(headers)
    (row,) = await running.usage_rows(1)
    assert (late["x-model-used"], late["x-charge-id"]) == ("small", row["charge_id"])
    assert float(late["x-credits-reserved"]) > 0
    assert content(frames) == "w0 w1 w2 w3 w4"
    assert orjson.loads(frames[-2][6:])["usage"]["completion_tokens"] == 5
    assert frames[-1] == b"data: [DONE]\n\n"
    assert (row["status"], row["http_status"], row["charged_micro"]) == ("ok", 200, 7 + 2 * 5)
    assert row["request_id"] == headers["x-request-id"]


async def test_while_a_stream_pauses(start: Any, backend: Backend) -> None:
    running = await start(heartbeat_s=0.2)
    backend.then(gate=(gate := asyncio.Event()))
    async with asking(running) as stream:
        assert stream.response.headers["x-model-used"] == "small"  # nothing was late
        frames = [await stream.after_beats() for _ in range(6)]  # only the usage is missing
        for _ in range(3):
            assert await stream.next() == BEAT
        gate.set()
        frames += await stream.rest()
    assert content(frames) == "w0 w1 w2 w3 w4"
    assert frames[-1] == b"data: [DONE]\n\n"


async def test_none_without_need(start: Any, backend: Backend) -> None:
    """A stream that flows has none however long it takes; an answer in one piece never has."""
    running = await start(heartbeat_s=0.4)
    backend.then(words=40, pause=0.02)
    async with asking(running) as stream:
        assert BEAT not in await stream.response.read()
    running = await start(heartbeat_s=0.05)
    backend.then(before=0.3)
    status, headers, body = await running.post({**ASK, "stream": False})
    assert (status, body["object"], headers["x-model-used"]) == (200, "chat.completion", "small")


async def test_a_fallback_is_still_taken_after_one(start: Any, backend: Backend) -> None:
    second = await Backend().start()
    try:
        slow = {"fallbacks": (Fallback(model_id="large"),), "timeouts": Timeouts(first_byte_ms=300)}
        running = await start(
            models=[model(backend.url, **slow), model(second.url, "large")],
            plans=[plan(model_ids=("small", "large"))],
            heartbeat_s=0.05,
        )
        backend.then(hold=asyncio.Event())
        async with asking(running) as stream:
            assert await stream.next() == BEAT
            late = told(await stream.after_beats())
            frames = await stream.rest()
    finally:
        await second.close()
    assert (late["x-model-used"], late["x-fallback-from"], late["x-fallback-depth"]) == ("large", "small", "1")
    assert all(orjson.loads(frame[6:])["model"] == "large" for frame in frames if frame.startswith(b"data: {"))
    assert content(frames) == "w0 w1 w2 w3 w4"
    *_, row = await running.usage_rows(2)
    assert (row["model_id"], row["fallback_from"], row["charge_id"]) == ("large", "small", late["x-charge-id"])


async def test_a_failure_after_one_is_an_error_frame(start: Any, backend: Backend) -> None:
    running = await start(heartbeat_s=0.05)
    backend.then(hold=(hold := asyncio.Event()), status=503, body=b"queue full", headers={"retry-after": "7"})
    async with asking(running) as stream:
        assert await stream.next() == BEAT
        hold.set()
        frames = await stream.rest()
    assert frames[0] == b": retry-after: 7\n\n"
    (error,) = [orjson.loads(frame[6:])["error"] for frame in frames[1:]]
    assert (error["type"], error["code"]) == ("server_error", "model_overloaded")
    (row,) = await running.usage_rows(1)
    assert (row["status"], row["http_status"], row["error_code"]) == ("error", 200, "model_overloaded")
    assert row["charged_micro"] == 0
    running.gateway.access_log.flush()
    (line,) = [orjson.loads(line) for line in running.logs.getvalue().splitlines()]
    assert (line["status"], line["code"]) == (200, "model_overloaded")


async def test_a_client_that_leaves_during_one_pays_nothing(start: Any, backend: Backend) -> None:
    running = await start(heartbeat_s=0.05)
    backend.then(hold=asyncio.Event())
    async with asking(running) as stream:
        assert await stream.next() == BEAT
        await asyncio.wait_for(backend.arrived.wait(), 5)
        stream.response.close()
    await asyncio.wait_for(backend.calls[0].cancelled.wait(), 5)
    (row,) = await running.usage_rows(1)
    assert (row["status"], row["http_status"], row["charged_micro"]) == ("cancelled", 499, 0)
    assert running.metric("tollway_credits_held", plan="ml/pro") == pytest.approx(0)


async def test_the_sdk_waits_through_them_and_raises_what_follows(start: Any, backend: Backend) -> None:
    """A read timeout shorter than the wait: each comment starts it anew."""
    running = await start(heartbeat_s=0.05)
    async with openai.AsyncOpenAI(
        api_key=KEY, base_url=f"{running.url}/v1", max_retries=0, timeout=openai.Timeout(5, read=0.4)
    ) as client:
        backend.then(before=1.0)
        began = time.monotonic()
        stream = await client.chat.completions.create(model="small", messages=HELLO, stream=True)  # type: ignore[call-overload]
        words = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert words == "w0 w1 w2 w3 w4"
        assert time.monotonic() - began > 1
        backend.then(before=0.3, status=500)
        stream = await client.chat.completions.create(model="small", messages=HELLO, stream=True)  # type: ignore[call-overload]
        with pytest.raises(openai.APIError, match="not available") as raised:
            await anext(stream)
        assert raised.value.code == "model_unavailable"
