"""Streams from models that misbehave, and clients that leave: what the client sees and what it is charged."""

import asyncio
import time
from typing import Any

import aiohttp
import orjson
import pytest
from support.gateway import HELLO, KEY, Running, model, until

from tollway_serving.contract.catalogue import Target, Timeouts

ASK = {"messages": HELLO}


def payloads(raw: bytes) -> list[Any]:
    """The stream's data, parsed; [DONE] as text, comments left out."""
    assert raw.endswith(b"\n\n")
    data = [f.removeprefix(b"data: ") for f in raw[:-2].split(b"\n\n") if f.startswith(b"data: ")]
    return ["[DONE]" if d == b"[DONE]" else orjson.loads(d) for d in data]


def text(raw: bytes) -> str:
    return "".join(
        c["delta"].get("content") or "" for p in payloads(raw) if isinstance(p, dict) for c in p.get("choices", ())
    )


@pytest.mark.parametrize(
    "changes",
    [{"split": 1}, {"split": 7}, {"merge": True}, {"line_end": "\r\n", "split": 3}, {"done": False}, {"words": 300}],
    ids=str,
)
async def test_however_the_bytes_arrive(running: Running, changes: dict[str, Any]) -> None:
    running.backend.then(**changes)
    _, raw = await running.stream({**ASK, "max_tokens": 300})
    words = changes.get("words", 5)
    assert text(raw) == " ".join(f"w{i}" for i in range(words))
    assert payloads(raw)[-1] == "[DONE]"
    (row,) = await running.usage_rows()
    assert (row["status"], row["charged_micro"], row["estimated"]) == ("ok", 7 + 2 * words, 0)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"cut_after": 3}, "model_unavailable"),
        ({"garbage_after": 3}, "model_unavailable"),
        ({"error_after": 3}, "model_unavailable"),
        ({"hang_after": 3}, "timeout"),
    ],
    ids=str,
)
async def test_a_failure_in_mid_stream_is_one_frame_and_is_charged(
    start: Any, backend: Any, changes: dict[str, Any], code: str
) -> None:
    running = await start(models=[model(backend.url, timeouts=Timeouts(idle_ms=150))])
    backend.then(**changes)
    _, raw = await running.stream(ASK)
    *chunks, error = payloads(raw)
    assert len(chunks) == 3
    assert error["error"]["code"] == code
    assert "0xdead" not in raw.decode()
    assert set(error) == {"error"}
    (row,) = await running.usage_rows()
    assert (row["status"], row["error_code"], row["charged_micro"]) == ("error", code, 7 + 2 * 3)


async def test_a_stream_that_takes_too_long_in_all(start: Any, backend: Any) -> None:
    running = await start(models=[model(backend.url, timeouts=Timeouts(total_ms=300))])
    backend.then(words=200, pause=0.05)
    _, raw = await running.stream({**ASK, "max_tokens": 200})
    assert payloads(raw)[-1]["error"]["code"] == "timeout"
    await until(backend.calls[0].cancelled.is_set)


@pytest.mark.parametrize("split", [0, 1])
async def test_no_counts_from_a_provider_are_bounded(start: Any, backend: Any, split: int) -> None:
    target = Target(url=backend.url, model="small", internal=False, continuous_usage=False, secret="acme")
    running = await start(models=[model(backend.url, target=target)])
    backend.then(usage=False, split=split)
    _, raw = await running.stream({**ASK, "stream_options": {"include_usage": True}})
    usage = payloads(raw)[-2]["usage"]
    assert usage["completion_tokens"] == len("w0 w1 w2 w3 w4")
    (row,) = await running.usage_rows()
    assert row["estimated"] == 1
    seen = backend.calls[0]
    assert seen.headers["authorization"] == "Bearer provider-key-canary"
    assert "x-tollway-token" not in seen.headers


@pytest.mark.parametrize("ask", [{"stream": True}, {}], ids=["stream", "whole"])
async def test_a_client_that_leaves_before_the_first_token_pays_nothing(running: Running, ask: dict[str, Any]) -> None:
    running.backend.then(first=30)
    await _leave(running, ask, running.backend.arrived.wait)
    await asyncio.wait_for(running.backend.calls[0].cancelled.wait(), 5)
    (row,) = await running.usage_rows(1)
    assert (row["status"], row["charged_micro"]) == ("cancelled", 0)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_a_client_that_leaves_pays_for_what_was_generated(running: Running, streamed: bool) -> None:
    running.backend.then(words=200, pause=0.02)

    async def ten() -> None:
        await until(lambda: bool(running.backend.calls) and running.backend.calls[0].sent >= 10)

    await _leave(running, {"stream": streamed, "max_tokens": 200}, ten)
    await asyncio.wait_for(running.backend.calls[0].cancelled.wait(), 5)
    (row,) = await running.usage_rows(1)
    generated = orjson.loads(row["counts"])["output_tokens"]
    assert row["status"] == "cancelled"
    assert 9 <= generated <= running.backend.calls[0].sent
    assert row["charged_micro"] == 7 + 2 * generated
    assert running.gateway.fallbacks._gate._counts == {}
    assert running.metric("tollway_credits_held", plan="ml/pro") == pytest.approx(0)


@pytest.mark.parametrize("events", [0, 10], ids=["before the first token", "in mid-stream"])
async def test_a_client_that_leaves_stops_the_model_within_100_ms(running: Running, events: int) -> None:
    """The quickest of a few, since a busy machine makes any of them late."""
    took = []
    for _ in range(5):
        running.backend.calls.clear()
        running.backend.then(words=1000, pause=0.005, hang_after=events)

        async def sent() -> None:
            await until(lambda: bool(running.backend.calls) and running.backend.calls[0].sent >= events)

        left = await _leave(running, {"stream": True, "max_tokens": 1000}, sent)
        await asyncio.wait_for(running.backend.calls[0].cancelled.wait(), 5)
        took.append(time.monotonic() - left)
    assert min(took) < 0.1


async def _leave(running: Running, ask: dict[str, Any], when: Any) -> float:
    """Answers when the client left."""
    async with aiohttp.ClientSession() as client:
        task = asyncio.create_task(
            client.post(
                f"{running.url}/v1/chat/completions",
                json={**ASK, **ask},
                headers={"authorization": f"Bearer {KEY}"},
            )
        )
        await when()
        left = time.monotonic()
        if task.done():
            task.result().close()
        task.cancel()
        await asyncio.wait([task])
        return left


async def test_a_slow_reader_holds_the_model_back(start: Any) -> None:
    """Nothing piles up in the gateway: the model can't run ahead of a client that does not read, and neither do
    heartbeats."""
    running = await start(heartbeat_s=0.05)
    running.backend.then(words=1000, word="x" * 50_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rsplit(":", 1)[1]), limit=1024)
    body = orjson.dumps({**ASK, "stream": True, "max_tokens": 1000})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    writer.write(head.encode() + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await reader.readuntil(b"\r\n\r\n")
    seen, before = running.backend.calls[0], -1
    while seen.sent > before:  # until it stands still
        before = seen.sent
        await asyncio.sleep(0.3)
    assert seen.sent < 900
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "heartbeat"]
    writer.close()
    await asyncio.wait_for(seen.cancelled.wait(), 5)


async def test_more_tokens_than_asked_are_overrun_not_charged(running: Running) -> None:
    running.backend.then(words=10, overshoot=5)
    _, raw = await running.stream({**ASK, "max_tokens": 4})
    assert payloads(raw)[-1] == "[DONE]"
    (row,) = await running.usage_rows()
    assert row["charged_micro"] + row["overrun_micro"] == 7 + 2 * 9
    assert row["charged_micro"] <= row["held_micro"]


async def test_chunks_hold_only_what_openai_has(running: Running) -> None:
    running.backend.then(extra={"timings": {"a": 1}, "prompt_logprobs": None})
    _, raw = await running.stream(ASK)
    assert {frozenset(p) for p in payloads(raw)[:-1]} == {frozenset({"id", "object", "created", "model", "choices"})}


@pytest.mark.parametrize("word", ["é", '"', "\\", "\n", "日本", "\u200d", "}]", ": "], ids=ascii)
@pytest.mark.parametrize("changes", [{}, {"merge": True}, {"split": 5}], ids=str)
async def test_whatever_is_said_arrives(running: Running, word: str, changes: dict[str, Any]) -> None:
    running.backend.then(word=word, words=40, **changes)
    _, raw = await running.stream({**ASK, "max_tokens": 40})
    assert text(raw) == " ".join(f"{word}{i}" for i in range(40))
    (row,) = await running.usage_rows()
    assert (row["charged_micro"], row["estimated"]) == (7 + 2 * 40, 0)


async def test_a_slow_reader_gets_everything_in_its_order(running: Running) -> None:
    running.backend.then(words=400, word="x" * 20_000)
    async with aiohttp.ClientSession(read_bufsize=1024) as client:
        body = {**ASK, "stream": True, "max_tokens": 400}
        headers = {"authorization": f"Bearer {KEY}"}
        async with client.post(f"{running.url}/v1/chat/completions", json=body, headers=headers) as response:
            await until(lambda: running.backend.calls[0].sent > 20)
            raw = await response.read()
    assert payloads(raw)[-1] == "[DONE]"
    assert text(raw) == " ".join("x" * 20_000 + str(i) for i in range(400))


async def test_what_goes_beyond_a_hold_asks_nothing_of_the_ledger(running: Running) -> None:
    running.backend.then(words=600, overshoot=590)
    ledger: Any = running.gateway.ledger
    submit, kinds = ledger.submit, []

    def counted(op: Any) -> Any:
        kinds.append(type(op).__name__)
        return submit(op)

    ledger.submit = counted
    _, raw = await running.stream({**ASK, "max_tokens": 10})
    assert payloads(raw)[-1] == "[DONE]"
    assert kinds == ["Reserve", "Settle"]


def stream_of(*chunks: dict[str, Any]) -> dict[str, Any]:
    """A stream as it is, in one piece."""
    frames = b"".join(b"data: " + orjson.dumps(each) + b"\n\n" for each in chunks) + b"data: [DONE]\n\n"
    return {"body": frames, "content_type": "text/event-stream"}


def said(delta: dict[str, Any], usage: int | None = None) -> dict[str, Any]:
    counts = {} if usage is None else {"usage": {"prompt_tokens": 7, "completion_tokens": usage}}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}], **counts}


END: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


async def test_what_is_the_same_in_each_chunk_is_counted_in_each(running: Running) -> None:
    role = {"hidden": "y" * 300}
    running.backend.then(**stream_of(*(said({"role": role, "content": each}) for each in "abcd"), END))
    _, raw = await running.stream({**ASK, "max_tokens": 1000})
    assert text(raw) == "abcd"
    (row,) = await running.usage_rows()
    assert orjson.loads(row["counts"])["output_tokens"] >= 4 * 300 // 4


async def test_the_largest_count_of_a_read_counts(running: Running) -> None:
    """A model's counts don't fall; one whose do is charged for the most that it said."""
    running.backend.then(**stream_of(*(said({"content": "w"}, count) for count in (1, 2, 100, 3)), END))
    await running.stream({**ASK, "max_tokens": 200})
    (row,) = await running.usage_rows()
    assert (orjson.loads(row["counts"])["output_tokens"], row["estimated"]) == (100, 0)


async def test_an_error_between_chunks_that_are_alike_ends_the_stream(running: Running) -> None:
    broken = said({"content": "c"}, 3) | {"error": {"message": "out of memory", "code": 500}}
    running.backend.then(**stream_of(*(said({"content": each}, 2) for each in "ab"), broken, said({"content": "d"}, 4)))
    _, raw = await running.stream(ASK)
    *chunks, last = payloads(raw)
    assert "".join(c["delta"]["content"] for chunk in chunks for c in chunk["choices"]) == "ab"
    assert last["error"]["code"] == "model_unavailable"
