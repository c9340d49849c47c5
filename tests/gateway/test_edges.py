"""What surrounds an answer: headers, parameters that are hints, metrics, logs without secrets, the per-address net."""

import asyncio
import io
import uuid
from collections.abc import Iterator
from typing import Any

import aiohttp
import orjson
import pytest
from multidict import CIMultiDict
from support.backend import Backend
from support.gateway import HELLO, KEY, PROVIDER_KEY, TOKEN, Running, key, model, plan

from tollway_serving.contract.catalogue import Limits, Target
from tollway_serving.gateway import edge
from tollway_serving.gateway.app import PREFIXES, ROUTES
from tollway_serving.gateway.auth import AddressNet
from tollway_serving.gateway.errors import ApiError
from tollway_serving.gateway.ids import uuid7
from tollway_serving.gateway.receipts import duration
from tollway_serving.gateway.settings import Settings

ASK: dict[str, Any] = {"messages": HELLO}


@pytest.mark.parametrize(
    ("sent", "kept"), [("abc-123", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ("ä", False)]
)
async def test_request_id(running: Running, sent: str, kept: bool) -> None:
    for status, headers, _ in (
        await running.post(ASK, headers={"x-request-id": sent}),
        await running.post({}, headers={"x-request-id": sent}),
        await running.post({}, headers={"x-request-id": sent, "authorization": "no"}),
    ):
        found = headers.getall("x-request-id")
        assert len(found) == 1, status
        assert (found[0] == sent) == kept
        if not kept:
            assert str(uuid.UUID(found[0])) == found[0]
        assert int(headers["openai-processing-ms"]) >= 0
    (row,) = await running.usage_rows(1)
    assert (row["request_id"] == sent) == kept


async def test_hints_are_named_and_not_sent(running: Running) -> None:
    hints = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "presence_penalty": 0,
        "logit_bias": {},
        "tools": [],
        "tool_choice": "none",
        "modalities": ["text"],
    }
    status, headers, _ = await running.post({**ASK, **hints, "temperature": 0.5, "top_p": None})
    assert status == 200
    assert set(headers["x-ignored-parameters"].split(", ")) == set(hints)
    sent = running.backend.calls[0].body
    assert sent["temperature"] == 0.5
    assert not set(hints) & set(sent)
    assert "top_p" not in sent


@pytest.mark.parametrize("by", ["header", "plan"])
async def test_unsupported_may_be_ignored(start: Any, by: str) -> None:
    running = await start(plans=[plan(unsupported_parameters="Ignore")] if by == "plan" else None)
    headers = {"x-unsupported-parameters": "ignore"} if by == "header" else {}
    body = {**ASK, "presence_penalty": 1, "frobnicate": {"a": 1}, "bad\r\nname": 1}
    status, answer, _ = await running.post(body, headers=headers)
    assert status == 200
    assert set(answer["x-ignored-parameters"].split(", ")) == {"presence_penalty", "frobnicate"}
    if by == "plan":
        status, _, body = await running.post(body, headers={"x-unsupported-parameters": "refuse"})
        assert (status, body["error"]["code"]) == (400, "unsupported_parameter")


async def test_messages_reach_the_model_as_they_should(running: Running) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "developer", "content": [{"type": "text", "text": "really"}]},
        {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "there"}], "name": "bob"},
        {"role": "assistant", "content": "w0", "refusal": None, "annotations": [], "audio": None, "tool_calls": None},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "user", "content": "again"},
    ]
    assert (await running.post({"messages": messages}))[0] == 200
    sent = running.backend.calls[0].body["messages"]
    assert sent[:3] == messages[:3]
    assert sent[3] == {"role": "assistant", "content": "w0"}
    assert sent[4] == {"role": "assistant", "content": "no"}


async def test_tools_pass_where_the_entry_has_them(start: Any, backend: Backend) -> None:
    entry = model(backend.url, capabilities=("Tools",), parameters=("tools", "tool_choice", "parallel_tool_calls"))
    running = await start(models=[entry])
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    body = {**ASK, "tools": tools, "tool_choice": {"type": "function", "function": {"name": "f"}}}
    status, headers, _ = await running.post({**body, "parallel_tool_calls": False})
    assert status == 200
    assert "x-ignored-parameters" not in headers
    assert backend.calls[0].body["tools"] == tools
    assert (await running.post({**ASK, "tool_choice": "required"}))[2]["error"]["param"] == "tool_choice"


async def test_streamed_parts_make_a_whole_answer(start: Any, backend: Backend) -> None:
    """Tool calls and logprobs of a stream are put together for a client that wants no stream."""
    running = await start()
    parts = [
        {"delta": {"role": "assistant", "content": ""}},
        {"delta": {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f"}}]}},
        {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}},
        {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}},
        {"delta": {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "g", "arguments": "{}"}}]}},
        {"delta": {}, "logprobs": {"content": [{"token": "a"}]}},
        {"delta": {}, "logprobs": {"content": [{"token": "b"}]}, "finish_reason": "tool_calls"},
    ]
    events = [{"id": "x", "created": 1, "choices": [{"index": 0, **part}]} for part in parts]
    usage = {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}
    events.append({"id": "x", "created": 1, "choices": [], "usage": usage})
    raw = b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events) + b"data: [DONE]\n\n"
    backend.then(body=raw, content_type="text/event-stream")
    _, _, body = await running.post(ASK)
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["a", "b"]
    assert choice["message"]["content"] is None
    assert [(c["id"], c["function"]) for c in choice["message"]["tool_calls"]] == [
        ("c1", {"name": "f", "arguments": '{"a":1}'}),
        ("c2", {"name": "g", "arguments": "{}"}),
    ]
    assert body["usage"] == usage


async def test_whole_answers_of_a_provider(start: Any, backend: Backend) -> None:
    target = Target(url=backend.url, model="gpt-x", internal=False, continuous_usage=False, secret="acme")
    running = await start(models=[model(backend.url, target=target)])
    _, headers, body = await running.post(ASK)
    assert body["model"] == headers["x-model-used"] == "small"
    sent = backend.calls[0].body
    assert (sent["model"], sent["max_completion_tokens"]) == ("gpt-x", 256)
    assert not {"stream", "max_tokens", "stream_options"} & set(sent)
    backend.then(usage=False)
    await running.post(ASK)
    rows = await running.usage_rows(2)
    assert [row["estimated"] for row in rows] == [0, 1]


async def test_model_objects(start: Any, backend: Backend) -> None:
    entries = [
        model(backend.url, licence="apache-2.0", parameters_number="135M", capabilities=("Tools", "ImageInput")),
        model(backend.url, "hidden"),
    ]
    running = await start(models=entries)
    for prefix in PREFIXES:
        async with running.client.get(
            f"{running.url}{prefix}/models", headers={"authorization": f"Bearer {KEY}"}
        ) as response:
            body = await response.json()
        assert body == {
            "object": "list",
            "data": [
                {
                    "id": "small",
                    "object": "model",
                    "created": 1_700_000_000,
                    "owned_by": "tollway",
                    "licence": "apache-2.0",
                    "input_format": "MODEL_FORMAT_TEXT",
                    "output_format": "MODEL_FORMAT_TEXT",
                    "parameters_number": "135M",
                    "capabilities": {
                        "supports_audio": False,
                        "supports_image": True,
                        "supports_function_calling": True,
                    },
                }
            ],
        }


async def test_metrics(start: Any) -> None:
    running = await start(limits=Limits(requests_per_minute=3))
    await running.post(ASK)
    await running.stream(ASK)
    await running.post({})
    await running.post(ASK)
    await running.post(ASK)
    (replica,) = await running.publisher.replicas()
    async with aiohttp.ClientSession() as client, client.get(replica.metrics_url) as response:
        text = await response.text()
    labels = 'model="small",plan="ml/pro",route="/chat/completions"'
    for line in (
        f'tollway_requests_total{{{labels},status="200"}} 3.0',
        f'tollway_requests_total{{{labels},status="429"}} 1.0',
        'tollway_errors_total{code="missing_required_parameter",'
        'model="none",plan="ml/pro",route="/chat/completions"} 1.0',
        f'tollway_errors_total{{code="rate_limit_exceeded",{labels}}} 1.0',
        'tollway_tokens_total{kind="input",model="small",plan="ml/pro"} 21.0',
        'tollway_tokens_total{kind="output",model="small",plan="ml/pro"} 15.0',
        'tollway_limits_hit_total{limit="requests_per_minute",plan="ml/pro"} 1.0',
        'tollway_credits_held{plan="ml/pro"} 0.0',
        'tollway_first_token_seconds_count{model="small",route="/chat/completions"} 1.0',
    ):
        assert line in text
    assert "5.1e-05" in text.split("tollway_credits_charged_total{", 1)[1].split("\n", 1)[0]
    assert "sk-tw" not in text
    assert "ml/me" not in text


async def test_no_secret_leaves(start: Any, backend: Backend, capfd: pytest.CaptureFixture[str]) -> None:
    """Keys of clients, providers and our own, in everything that the gateway writes or answers."""
    broken = Target(url=backend.url, model="x", internal=False, secret="acme")
    running = await start(
        models=[model(backend.url), model(backend.url, "remote", target=broken)],
        plans=[plan(model_ids=("small", "remote"))],
    )
    seen = io.StringIO()
    for body in (
        ASK,
        {**ASK, "model": "remote"},
        {**ASK, "model": KEY},
        {KEY: 1},
        {**ASK, "user": KEY},
        b"{" + KEY.encode(),
    ):
        for behaviour in ({}, {"status": 500}, {"status": 401, "body": b'{"error": {"message": "bad key"}}'}):
            backend.then(**behaviour)
            status, headers, answer = await running.post(body)
            seen.write(repr((status, headers, answer)))
    await running.post(ASK, headers={"authorization": "Bearer " + KEY + "x"})
    async with running.client.get(f"{running.url}/v1/models/{KEY}?key={KEY}") as response:
        seen.write(await response.text())
    running.gateway.access_log.flush()
    captured = capfd.readouterr()
    seen.write(running.logs.getvalue().decode() + captured.out + captured.err)
    for secret in (KEY, TOKEN, PROVIDER_KEY):
        assert secret not in seen.getvalue()
    assert '"key":"ml/me"' in seen.getvalue()


async def test_the_log_line(running: Running) -> None:
    _, headers, _ = await running.post(ASK)
    running.gateway.access_log.flush()
    (line,) = [orjson.loads(line) for line in running.logs.getvalue().splitlines()]
    assert line["request_id"] == headers["x-request-id"]
    assert line["charge_id"] == headers["x-charge-id"]
    assert (line["status"], line["plan"], line["model"], line["account"]) == (200, "ml/pro", "small", "ml/me")
    assert (line["input_tokens"], line["output_tokens"], line["credits_micro"]) == (7, 5, 17)


async def test_one_id_for_the_client_the_log_the_ledger_and_the_model(running: Running) -> None:
    broken: dict[str, Any] = {**ASK, "temperature": 9}
    asked = [("whole", ASK), ("stream", {**ASK, "stream": True}), ("bad", broken), ("lost", {**ASK, "model": "none"})]
    times = {}
    for name, body in asked:
        headers = {"authorization": f"Bearer {KEY}", "x-request-id": name}
        async with running.client.post(f"{running.url}/v1/chat/completions", json=body, headers=headers) as response:
            await response.read()
            assert response.headers.getall("x-request-id") == [name]
            assert response.headers.get("x-model-used") == ("small" if response.status == 200 else None)
            times[name] = (response.status, int(response.headers["openai-processing-ms"]))
    running.gateway.access_log.flush()
    lines = {line["request_id"]: line for line in map(orjson.loads, running.logs.getvalue().splitlines())}
    assert {name: line["status"] for name, line in lines.items()} == {
        name: status for name, (status, _) in times.items()
    }
    assert all(lines[name]["duration_ms"] >= milliseconds for name, (_, milliseconds) in times.items())
    rows = {row["request_id"]: row["charge_id"] for row in await running.usage_rows(2)}
    assert rows == {name: lines[name]["charge_id"] for name in ("whole", "stream")}
    assert [call.headers["x-request-id"] for call in running.backend.calls] == ["whole", "stream"]


async def test_address_net(start: Any) -> None:
    running = await start(address_requests=3, client_address_header="x-real-ip")
    for expected in (401, 401, 401, 429):
        status, headers, _ = await running.post(
            ASK, headers={"authorization": "no", "x-real-ip": "10.9.9.9, 198.51.100.7"}
        )
        assert status == expected
    assert 0 < int(headers["retry-after"]) <= 601
    assert (await running.post(ASK, headers={"x-real-ip": "198.51.100.8"}))[0] == 200


async def test_a_client_that_names_itself_before_its_proxy_does_changes_nothing(start: Any) -> None:
    running = await start(address_requests=3, client_address_header="x-real-ip")
    for number, expected in enumerate((200, 200, 200, 429)):
        headers = CIMultiDict({"authorization": f"Bearer {KEY}", "x-real-ip": f"203.0.113.{number}"})
        headers.add("x-real-ip", "198.51.100.7")
        async with running.client.post(f"{running.url}/v1/chat/completions", headers=headers, json=ASK) as answer:
            assert answer.status == expected


def test_without_a_configured_header_an_address_is_the_sockets() -> None:
    """Whatever a client says of itself; and by default 5,000 requests in ten minutes."""
    settings = Settings.load({}, {})
    assert (settings.address_requests, settings.address_window_s) == (5000, 600)
    net = AddressNet(settings.client_address_header, settings.address_requests, settings.address_window_s)
    for number in range(5000):
        net.admit("198.51.100.7", b"203.0.113.%d" % (number % 250))
    with pytest.raises(ApiError) as refused:
        net.admit("198.51.100.7", b"203.0.113.250")
    assert refused.value.code == "rate_limit_exceeded"
    net.admit("198.51.100.8", None)


async def test_two_keys_share_an_account(start: Any) -> None:
    other = "sk-tw-" + "D" * 49
    running = await start(
        keys=[key(), key(other, key_id="ml/other", uid="other")], limits=Limits(requests_per_minute=2)
    )
    assert (await running.post(ASK))[0] == 200
    assert (await running.post(ASK, headers={"authorization": f"Bearer {other}"}))[0] == 200
    assert (await running.post(ASK))[0] == 429


def test_every_route_names_its_meter() -> None:
    assert {(r.method, r.path): r.meters for r in ROUTES} == {
        ("POST", "/chat/completions"): ("requests", "input_tokens", "output_tokens"),
        ("POST", "/completions"): ("requests", "input_tokens", "output_tokens"),
        ("POST", "/embeddings"): ("requests", "input_tokens"),
        ("GET", "/usage"): (),
        ("POST", "/usage/completions"): (),
        ("GET", "/models"): (),
        ("GET", "/models/{id}"): (),
        ("GET", "/healthz"): (),
        ("GET", "/readyz"): (),
        ("GET", "/docs"): (),
        ("GET", "/docs/{name}"): (),
        ("GET", "/openapi.json"): (),
    }


class Direct:
    """Stands for a gateway in Serve's process: what counts is who is asked."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def direct(self, scope: Any, _receive: Any, _send: Any) -> None:
        self.paths.append(scope["path"])


@pytest.fixture
def behind_edge() -> Iterator[tuple[Any, list[Any]]]:
    """Serve's part of a process behind the edge, and the scopes that it was given."""
    seen: list[Any] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope)

    (middleware,) = edge.middlewares()
    yield middleware.cls(app), seen
    edge.answer_here(None)


async def test_serves_control_headers_are_stripped(behind_edge: tuple[Any, list[Any]]) -> None:
    wrapped, seen = behind_edge
    for headers in (
        [(b"accept", b"x"), (b"x-request-timeout-seconds", b"0.01"), (b"x-request-id", b"two words")],
        [(b"accept", b"x"), (b"x-request-id", b"fine")],
    ):
        await wrapped({"type": "http", "path": "/", "headers": headers}, None, None)
    assert [[name for name, _ in scope["headers"]] for scope in seen] == [[b"accept"], [b"accept", b"x-request-id"]]


async def test_a_gateway_is_asked_past_serve_but_for_what_serve_alone_knows(behind_edge: tuple[Any, list[Any]]) -> None:
    wrapped, seen = behind_edge
    gateway = Direct()
    edge.answer_here(gateway)
    for path in ("/v1/chat/completions", "/", "/-/healthz", "/-/routes"):
        await wrapped({"type": "http", "path": path, "headers": []}, None, None)
    assert gateway.paths == ["/v1/chat/completions", "/"]
    assert [scope["path"] for scope in seen] == ["/-/healthz", "/-/routes"]


async def test_a_gateway_on_another_thread_is_asked_through_serve(behind_edge: tuple[Any, list[Any]]) -> None:
    wrapped, seen = behind_edge
    gateway = Direct()
    edge.answer_here(gateway)
    await asyncio.to_thread(asyncio.run, wrapped({"type": "http", "path": "/v1/models", "headers": []}, None, None))
    assert (gateway.paths, len(seen)) == ([], 1)


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "0ms"), (20, "20ms"), (1000, "1s"), (1500, "1.5s"), (60_000, "1m0s"), (3_661_001, "1h1m1.001s")],
)
def test_durations(milliseconds: int, text: str) -> None:
    assert duration(milliseconds).decode() == text


def test_ids_are_uuids_of_version_7_in_order() -> None:
    ids = [uuid7() for _ in range(100)]
    assert all(uuid.UUID(i).version == 7 and uuid.UUID(i).variant == uuid.RFC_4122 for i in ids)
    assert len(set(ids)) == 100
    assert ids[0][:13] <= ids[-1][:13]
