"""Chat completions, whole and streamed, as the official SDK and raw HTTP see them."""

import openai
import orjson
import pytest
from support.gateway import HELLO, KEY, Running


def frames(raw: bytes) -> list[bytes]:
    """The stream's frames, each without its blank line; fails on anything that is no exact SSE."""
    assert raw.endswith(b"\n\n")
    return raw[:-2].split(b"\n\n")


async def test_whole_answer(running: Running) -> None:
    status, headers, body = await running.post({"messages": HELLO, "max_tokens": 3})
    assert status == 200, body
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "w0 w1 w2", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert body["model"] == headers["x-model-used"] == "small"
    assert headers["x-credits-used"] == "0.000013"
    assert len(headers["x-request-id"]) == 36
    (row,) = await running.usage_rows()
    assert (row["charge_id"], row["charged_micro"]) == (headers["x-charge-id"], 13)
    sent = running.backend.calls[0]
    assert sent.path == "/v1/chat/completions"
    assert sent.headers["x-tollway-token"] == "internal-token-canary"
    assert sent.headers["x-request-id"] == headers["x-request-id"]
    assert "authorization" not in sent.headers
    assert sent.body["max_completion_tokens"] == 3


async def test_stream_without_usage(running: Running) -> None:
    headers, raw = await running.stream({"messages": HELLO, "model": "small"})
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["x-credits-reserved"] == "0.000541"
    *chunks, comment, done = frames(raw)
    assert done == b"data: [DONE]"
    assert comment == f": credits_used=0.000017 charge_id={headers['x-charge-id']}".encode()
    values = [orjson.loads(chunk.removeprefix(b"data: ")) for chunk in chunks]
    assert all("usage" not in value for value in values)
    assert "".join(v["choices"][0]["delta"].get("content", "") for v in values) == "w0 w1 w2 w3 w4"
    assert values[-1]["choices"][0]["finish_reason"] == "stop"
    (row,) = await running.usage_rows()
    assert row["charged_micro"] == 17


async def test_stream_with_usage(running: Running) -> None:
    _, raw = await running.stream({"messages": HELLO, "stream_options": {"include_usage": True}})
    *chunks, usage, done = [frame.removeprefix(b"data: ") for frame in frames(raw)]
    assert done == b"[DONE]"
    assert all(orjson.loads(chunk)["usage"] is None for chunk in chunks)
    last = orjson.loads(usage)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "total_tokens": 12,
        "credits_used": 0.000017,
    }


@pytest.mark.parametrize("prefix", ["/v1", "/api/v1"])
async def test_official_sdk(running: Running, prefix: str) -> None:
    async with openai.AsyncOpenAI(base_url=running.url + prefix, api_key=KEY) as client:
        answer = await client.chat.completions.create(model="small", messages=HELLO, n=2, seed=1, stop=["x"])
        assert [choice.message.content for choice in answer.choices] == ["w0 w1 w2 w3 w4"] * 2
        stream = await client.chat.completions.create(
            model="small", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 12
        listed = [entry.id async for entry in await client.models.list()]
        assert listed == ["small"]
        assert (await client.models.retrieve("small")).owned_by == "tollway"
