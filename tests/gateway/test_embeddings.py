"""Embeddings through the official SDK: forms of the input, encodings, batches, money, refusals."""

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from support.backend import Backend, vector
from support.gateway import KEY, Running, model, plan, until
from support.product import serve_engine

from tollway_serving.contract.engines import ENGINES

MINILM = ENGINES["minilm"]


def able(url: str, **changes: Any) -> Any:
    """A model that can do what the embedded engine can."""
    facts = {"capabilities": (), "parameters": MINILM.parameters, "endpoints": MINILM.endpoints}
    return model(url, "minilm", **facts | changes)


def allowed(**changes: Any) -> Any:
    return plan(**{"model_ids": ("minilm",), "default_models": {"Embeddings": "minilm"}} | changes)


@pytest.fixture
async def running(start: Any, backend: Backend) -> Running:
    return await start(models=[able(backend.url)], plans=[allowed()])


@pytest.fixture
async def client(running: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=running.url + "/v1", api_key=KEY, max_retries=0) as client:
        yield client


async def raw_post(running: Running, **body: Any) -> tuple[int, Any, Any]:
    headers = {"authorization": f"Bearer {KEY}"}
    async with running.client.post(f"{running.url}/api/v1/embeddings", json=body, headers=headers) as response:
        return response.status, response.headers, await response.json()


async def refusal(client: openai.AsyncOpenAI, **request: Any) -> tuple[str, str | None]:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.embeddings.create(**{"model": "minilm", "input": "a", **request})
    return str(caught.value.code), caught.value.param


async def test_whole(running: Running) -> None:
    status, headers, body = await raw_post(running, input=["a", "bcd"])
    assert status == 200
    assert body == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [1, 0.5]},
            {"object": "embedding", "index": 1, "embedding": [3, 0.5]},
        ],
        "model": "minilm",
        "usage": {"prompt_tokens": 14, "total_tokens": 14},
    }
    assert (headers["x-model-used"], headers["x-credits-used"]) == ("minilm", "0.000014")
    (row,) = await running.usage_rows()
    assert (row["endpoint"], row["status"], row["charged_micro"]) == ("Embeddings", "ok", 14)
    assert row["charge_id"] == headers["x-charge-id"]
    (seen,) = running.backend.calls
    assert (seen.path, seen.body) == ("/v1/embeddings", {"input": ["a", "bcd"], "model": "minilm"})


@pytest.mark.parametrize("given", ["text", ["text"], ["one", "zwei"], [5, 6, 7], [[5, 6], [7]]], ids=str)
async def test_inputs(running: Running, client: openai.AsyncOpenAI, given: Any) -> None:
    answer = await client.embeddings.create(model="minilm", input=given)
    several = isinstance(given, list) and not isinstance(given[0], int)
    lengths = [len(one) for one in given] if several else [len(given)]
    assert [(item.index, item.embedding) for item in answer.data] == [(at, [n, 0.5]) for at, n in enumerate(lengths)]
    (seen,) = running.backend.calls
    assert seen.body["input"] == given
    assert seen.body["encoding_format"] == "base64", "the SDK's default"


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("answered", ["float", "base64"])
async def test_encodings(running: Running, encoding: str, answered: str) -> None:
    """Whatever the model answers in, the client gets what it asked for."""
    numbers = [0.25, -1.5, 2**-20]
    data = [{"index": 0, "embedding": vector(numbers, answered)}]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    running.backend.then(body=json.dumps({"data": data, "usage": usage}).encode())
    _, _, body = await raw_post(running, input="a", encoding_format=encoding)
    found = body["data"][0]["embedding"]
    assert type(found) is (str if encoding == "base64" else list)
    assert (list(struct.unpack("<3f", base64.b64decode(found))) if encoding == "base64" else found) == numbers


async def test_model_without_encodings(running: Running, client: openai.AsyncOpenAI, backend: Backend) -> None:
    await running.change(models=(able(backend.url, parameters=()),))
    answer = await client.embeddings.create(model="minilm", input="abc")
    assert answer.data[0].embedding == [3, 0.5]
    assert "encoding_format" not in backend.calls[0].body
    assert await refusal(client, dimensions=2) == ("unsupported_parameter", "dimensions")


async def test_dimensions_and_hints(running: Running, client: openai.AsyncOpenAI) -> None:
    raw = await client.embeddings.with_raw_response.create(model="minilm", input="a", dimensions=2, user="me")
    assert raw.headers["x-ignored-parameters"] == "user"
    assert running.backend.calls[0].body["dimensions"] == 2


async def test_batch_is_split_and_kept_in_order(running: Running, client: openai.AsyncOpenAI) -> None:
    await running.change(models=(able(running.backend.url, inputs_per_call=3),))
    texts = ["x" * length for length in range(1, 9)]
    answer = await client.embeddings.create(model="minilm", input=texts)
    assert [(item.index, item.embedding[0]) for item in answer.data] == [(at, at + 1) for at in range(8)]
    assert [call.body["input"] for call in running.backend.calls] == [texts[:3], texts[3:6], texts[6:]]
    assert running.backend.most_running == 1
    assert answer.usage.prompt_tokens == 7 * 8
    (row,) = await running.usage_rows()
    assert row["charged_micro"] == 7 * 8


async def test_a_failure_later_in_a_batch(running: Running, client: openai.AsyncOpenAI) -> None:
    """Nobody pays for half an answer, and the error names the text by its place in the request."""
    await running.change(models=(able(running.backend.url, inputs_per_call=3),))
    error = {"message": "too many tokens in 'input[1]'", "code": "context_length_exceeded", "param": "input[1]"}
    running.backend.then()
    running.backend.then(status=400, body=json.dumps({"error": error}).encode())
    with pytest.raises(openai.BadRequestError) as caught:
        await client.embeddings.create(model="minilm", input=["a"] * 7)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input[4]")
    assert "too many tokens in 'input[4]'" in str(caught.value)
    (row,) = await running.usage_rows(1)
    assert (row["status"], row["charged_micro"]) == ("error", 0)
    assert len(running.backend.calls) == 2


async def test_client_that_leaves_stops_the_model(running: Running) -> None:
    running.backend.then(before=60)
    running.backend.arrived.clear()
    request = running.client.post(
        f"{running.url}/v1/embeddings", json={"input": "a"}, headers={"authorization": f"Bearer {KEY}"}
    )
    task = asyncio.ensure_future(request)
    await running.backend.arrived.wait()
    task.cancel()
    await until(running.backend.calls[0].cancelled.is_set)
    (row,) = await running.usage_rows(1)
    assert (row["status"], row["charged_micro"]) == ("cancelled", 0)


async def test_client_that_leaves_pays_for_the_calls_that_were_answered(running: Running) -> None:
    await running.change(models=(able(running.backend.url, inputs_per_call=3),))
    running.backend.then()
    running.backend.then(before=60)
    post = asyncio.ensure_future(raw_post(running, input=["a"] * 9))
    await until(lambda: len(running.backend.calls) == 2)
    post.cancel()
    (row,) = await running.usage_rows(1)
    assert (row["status"], row["charged_micro"]) == ("cancelled", 7 * 3)
    async with asyncio.timeout(10):  # the model hears of it when the connection's end arrives
        await running.backend.calls[1].cancelled.wait()


async def test_a_full_batch(running: Running, client: openai.AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model="minilm", input=["x" * (at % 50 + 1) for at in range(2048)])
    assert [(item.index, item.embedding[0]) for item in answer.data] == [(at, at % 50 + 1) for at in range(2048)]
    assert len(running.backend.calls) == 8


async def test_usage_that_is_missing_is_estimated(running: Running) -> None:
    running.backend.then(usage=False)
    _, headers, body = await raw_post(running, input="abc")
    bound = 3 + 16  # a token a byte, and the entry's fixed ones
    assert body["usage"] == {"prompt_tokens": bound, "total_tokens": bound}
    (row,) = await running.usage_rows()
    assert (row["charged_micro"], row["estimated"]) == (bound, 1)
    assert headers["x-credits-used"] == "0.000019"


async def test_prompt_is_held(start: Any, backend: Backend) -> None:
    running = await start(models=[able(backend.url)], plans=[allowed(limits={"credits_monthly_micro": 100})])
    assert (await raw_post(running, input="x" * 80))[0] == 200
    status, _, body = await raw_post(running, input="x" * 80)
    assert (status, body["error"]["code"]) == (429, "insufficient_quota")
    assert len(backend.calls) == 1


async def test_refused(running: Running, client: openai.AsyncOpenAI) -> None:
    assert await refusal(client, input=None) == ("missing_required_parameter", "input")
    assert await refusal(client, encoding_format="hex") == ("invalid_value", "encoding_format")
    assert await refusal(client, dimensions=0) == ("invalid_value", "dimensions")
    assert await refusal(client, extra_body={"stream": True}) == ("unsupported_parameter", "stream")
    for given in ("", [], [[]], [""], ["a"] * 2049):
        assert (await refusal(client, input=given))[0] == "invalid_value"
    assert await refusal(client, input=["a", None]) == ("invalid_value", "input[1]")
    assert await refusal(client, input=[1, -1]) == ("invalid_value", "input[1]")
    assert await refusal(client, input=["a", "x" * 3_000_000]) == ("context_length_exceeded", "input[1]")
    assert await refusal(client, input=[1] * 5000) == ("context_length_exceeded", "input")
    assert running.backend.calls == []
    assert await running.usage_rows() == []


@pytest.mark.parametrize(
    "answer",
    [
        {"data": []},
        {"data": [{"index": 0, "embedding": [1]}] * 2},
        {"data": [{"index": 0, "embedding": [1]}, {"index": 2, "embedding": [1]}]},
        {"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": ["x"]}]},
        {"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": "AAA"}]},
        {"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": []}]},
        {"choices": []},
        [],
    ],
    ids=str,
)
async def test_broken_answers(running: Running, answer: Any) -> None:
    running.backend.then(body=json.dumps(answer).encode())
    status, _, body = await raw_post(running, input=["a", "b"])
    assert (status, body["error"]["code"]) == (503, "model_unavailable")
    (row,) = await running.usage_rows(1)
    assert row["charged_micro"] == 0


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")  # of Ray's own models
async def test_real_engine(start: Any, tmp_path: Path) -> None:
    """MiniLM behind the gateway: near texts are near, tokens are texts, and a large batch is in order."""
    from tollway_serving.engines.minilm import MiniLm
    from tollway_serving.engines.protocol import EngineArgs

    engine = MiniLm(EngineArgs(name="ml.minilm", model_id="minilm", context_tokens=512))
    async with serve_engine(engine, "minilm", tmp_path / "secrets") as url:
        entry = able(url, context_tokens=512, output_tokens=1, inputs_per_call=MINILM.inputs_per_call)
        running: Running = await start(models=[entry], plans=[allowed()])
        async with openai.AsyncOpenAI(base_url=running.url + "/v1", api_key=KEY, max_retries=0) as client:
            texts = ["The cat sleeps.", "A kitten is asleep.", "Taxes rise in April."]
            cat, kitten, taxes = (
                item.embedding for item in (await client.embeddings.create(model="minilm", input=texts)).data
            )
            assert _dot(cat, cat) == pytest.approx(1, abs=1e-5)
            assert _dot(cat, kitten) > 0.5 > _dot(cat, taxes) + 0.2
            plain = await client.embeddings.create(model="minilm", input=texts[0], encoding_format="float")
            assert plain.data[0].embedding == pytest.approx(cat, abs=1e-7)
            tokens = await client.embeddings.create(model="minilm", input=[1996, 4937, 25126, 1012])
            assert tokens.data[0].embedding == pytest.approx(cat, abs=1e-7), "the cat sleeps. in WordPiece"
            assert tokens.usage.prompt_tokens == plain.usage.prompt_tokens == 6
            many = [texts[at % 3] for at in range(2 * MINILM.inputs_per_call + 5)]
            answer = await client.embeddings.create(model="minilm", input=many)
            assert [item.index for item in answer.data] == list(range(len(many)))
            assert all(item.embedding == (cat, kitten, taxes)[item.index % 3] for item in answer.data)
            assert await refusal(client, dimensions=100) == ("unsupported_parameter", "dimensions")
            long = "word " * 600
            too_long = ["a"] * (MINILM.inputs_per_call + 1) + [long]
            place = f"input[{len(too_long) - 1}]"
            assert await refusal(client, input=too_long) == ("context_length_exceeded", place)


def _dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
