"""Each error code that can be had now, over HTTP, in the contract's one shape."""

import asyncio
import time
from typing import Any

import orjson
import pytest
from support.backend import Backend
from support.gateway import HELLO, KEY, Running, key, model, plan, until
from support.gateway import check_error as check

from tollway_serving.contract.catalogue import Limits, Quota, Target, Timeouts

ASK: dict[str, Any] = {"messages": HELLO}


BAD: list[tuple[Any, str, str | None]] = [
    ({}, "missing_required_parameter", "messages"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": None}, "missing_required_parameter", "messages"),
    ({"messages": "hi"}, "invalid_value", "messages"),
    ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "invalid_value", "messages[0].role"),
    ({"messages": [{"content": "x"}]}, "missing_required_parameter", "messages[0].role"),
    ({"messages": [{"role": "user", "content": "x", "foo": 1}]}, "unsupported_parameter", "messages[0].foo"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "missing_required_parameter", None),
    ({"messages": [{"role": "assistant"}]}, "missing_required_parameter", "messages[0].content"),
    ({**ASK, "model": "other"}, "model_not_found", "model"),
    ({**ASK, "model": ""}, "invalid_value", "model"),
    ({**ASK, "model": 3}, "invalid_value", "model"),
    ({**ASK, "temperature": 2.1}, "invalid_value", "temperature"),
    ({**ASK, "temperature": "1"}, "invalid_value", "temperature"),
    ({**ASK, "temperature": True}, "invalid_value", "temperature"),
    ({**ASK, "n": 0}, "invalid_value", "n"),
    ({**ASK, "n": 11}, "invalid_value", "n"),
    ({**ASK, "n": 1.5}, "invalid_value", "n"),
    ({**ASK, "max_tokens": 0}, "invalid_value", "max_tokens"),
    ({**ASK, "max_tokens": -1}, "invalid_value", "max_tokens"),
    ({**ASK, "max_tokens": 32769}, "invalid_value", "max_tokens"),
    ({**ASK, "max_tokens": 10**30}, "invalid_value", "max_tokens"),
    ({**ASK, "max_tokens": 2000}, "invalid_value", "max_completion_tokens"),
    ({**ASK, "max_tokens": 1, "max_completion_tokens": 2}, "invalid_value", "max_tokens"),
    ({**ASK, "seed": 2**63}, "invalid_value", "seed"),
    ({**ASK, "stop": ["a", "b", "c", "d", "e"]}, "invalid_value", "stop"),
    ({**ASK, "stream": "true"}, "invalid_value", "stream"),
    ({**ASK, "stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    ({**ASK, "top_logprobs": 3}, "invalid_value", "top_logprobs"),
    ({**ASK, "response_format": {"type": "xml"}}, "invalid_value", None),
    ({**ASK, "logit_bias": {"5": 1}}, "unsupported_parameter", "logit_bias"),
    ({**ASK, "presence_penalty": 1}, "unsupported_parameter", "presence_penalty"),
    ({**ASK, "store": True}, "unsupported_parameter", "store"),
    ({**ASK, "service_tier": "flex"}, "unsupported_parameter", "service_tier"),
    ({**ASK, "frobnicate": 1}, "unsupported_parameter", "frobnicate"),
    ({**ASK, "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools_not_supported_by_model", "tools"),
    (
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
        "tools_not_supported_by_model",
        "messages[0].role",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y"}}]}]},
        "image_not_supported_by_model",
        "messages[0].content[0]",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}
            ]
        },
        "audio_not_supported_by_model",
        None,
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
        "unsupported_file_format",
        None,
    ),
    ({"messages": [{"role": "user", "content": "x" * 3_000_000}]}, "context_length_exceeded", "messages"),
    (b"", "invalid_json", None),
    (b"{", "invalid_json", None),
    (b"[]", "invalid_json", None),
    (b'{"messages": NaN}', "invalid_json", None),
    (b'{"temperature": 1e999}', "invalid_json", None),
    (b'{"model": "\xff"}', "invalid_json", None),
    (b'{"model": "\\ud800"}', "invalid_json", None),
    (b'{"model": "a", "model": "small"}', "invalid_json", None),
    (b"[" * 100_000, "invalid_json", None),
    (b'{"a":' * 500 + b"1" + b"}" * 500, "invalid_json", None),
]


async def test_bad_requests(running: Running, subtests: pytest.Subtests) -> None:
    for body, code, param in BAD:
        with subtests.test(body=repr(body)[:80]):
            check(await running.post(body), code, param)
    assert await running.usage_rows() == []
    assert running.backend.calls == []


async def refused(running: Running) -> tuple[int, Any, Any]:
    """The first answer that is no 200."""
    for _ in range(400):
        answer = await running.post(ASK)
        if answer[0] != 200:
            return answer
        await asyncio.sleep(0.01)
    raise AssertionError("every request was answered")


async def test_keys(start: Any) -> None:
    old = "sk-tw-" + "B" * 49
    off = "sk-tw-" + "C" * 49
    running = await start(
        keys=[
            key(),
            key(old, key_id="ml/old", uid="old", expires_at=1_700_000_000),
            key(off, key_id="ml/off", uid="off", state="Suspended"),
        ]
    )
    for header in ("", "Bearer", "Bearer ", "Basic abc", "Bearer nope", f"Bearer {KEY}x", f"Bearer {off}", KEY, "\xff"):
        check(await running.post(ASK, headers={"authorization": header}), "invalid_api_key")
    check(await running.post(ASK, headers={"authorization": f"Bearer {old}"}), "expired_api_key")
    assert (await running.post(ASK, headers={"authorization": f"bearer {KEY}"}))[0] == 200


async def test_a_key_expires_while_it_is_used(start: Any) -> None:
    running = await start(keys=[key(expires_at=int(time.time()) + 2)])
    assert (await running.post(ASK))[0] == 200
    answer = await refused(running)
    check(answer, "expired_api_key")


async def test_revocation_counts_in_a_second(running: Running) -> None:
    assert (await running.post(ASK))[0] == 200
    await running.publisher.publish(running.catalogue.model_copy(update={"keys": (key(state="Suspended"),)}))
    began = time.monotonic()
    answer = await refused(running)
    assert time.monotonic() - began < 1
    check(answer, "invalid_api_key")


async def test_endpoint_of_the_plan(start: Any) -> None:
    running = await start(plans=[plan(endpoints=("Embeddings",))])
    check(await running.post(ASK), "endpoint_not_enabled")


async def test_no_default_model(start: Any) -> None:
    running = await start(plans=[plan(default_models={})])
    check(await running.post(ASK), "missing_required_parameter", "model")


async def test_aliases_and_models_outside_the_plan(start: Any, backend: Backend) -> None:
    running = await start(
        models=[model(backend.url, aliases=("gpt-4o-mini",)), model(backend.url, "large", aliases=("big",))]
    )
    _, headers, body = await running.post({**ASK, "model": "gpt-4o-mini"})
    assert (headers["x-model-used"], body["model"]) == ("small", "small")
    check(await running.post({**ASK, "model": "large"}), "model_not_found")
    check(await running.post({**ASK, "model": "big"}), "model_not_found")
    async with running.client.get(running.url + "/v1/models/large", headers={"authorization": f"Bearer {KEY}"}) as r:
        check((r.status, r.headers, await r.json()), "model_not_found")


@pytest.mark.parametrize(
    ("limits", "code", "part"),
    [
        (Limits(requests_per_minute=1), "rate_limit_exceeded", "requests"),
        (Limits(tokens_per_minute=300), "rate_limit_exceeded", "tokens"),
        (Limits(credits_monthly_micro=40), "insufficient_quota", "credit"),
        (Limits(quotas=(Quota(name="q", meter="Tokens", limit=12),)), "rate_limit_exceeded", "12"),
    ],
    ids=["requests", "tokens", "credits", "quota"],
)
async def test_limits(start: Any, limits: Limits, code: str, part: str) -> None:
    running = await start(limits=limits)
    for _ in range(20):
        answer = await running.post(ASK)
        if answer[0] != 200:
            break
    error = check(answer, code)
    assert part in error["message"].lower()
    if limits.requests_per_minute:
        assert answer[1]["x-ratelimit-limit-requests"] == "1"
        assert answer[1]["x-ratelimit-remaining-requests"] == "0"
        assert answer[1]["x-ratelimit-reset-requests"].endswith("s")
    assert sum(
        s.value for m in running.gateway.metrics.registry.collect() if m.name == "tollway_limits_hit" for s in m.samples
        if s.name.endswith("_total")
    ) == 1  # fmt: skip


async def test_credits_held_by_calls_in_flight(start: Any, backend: Backend) -> None:
    running = await start(limits=Limits(credits_monthly_micro=100))
    gate = asyncio.Event()
    backend.then(gate=gate)
    first = asyncio.create_task(running.stream({**ASK, "max_tokens": 30}))
    await backend.arrived.wait()
    check(await running.post({**ASK, "max_tokens": 30}), "credits_held")
    gate.set()
    await first
    assert (await running.post({**ASK, "max_tokens": 5}))[0] == 200


async def test_concurrent_requests(start: Any, backend: Backend) -> None:
    running = await start(limits=Limits(concurrent_requests=1))
    gate = asyncio.Event()
    backend.then(gate=gate)
    first = asyncio.create_task(running.stream(ASK))
    await backend.arrived.wait()
    check(await running.post(ASK), "rate_limit_exceeded")
    gate.set()
    await first


FAILURES: list[tuple[dict[str, Any], str]] = [
    ({"status": 500}, "model_unavailable"),
    ({"status": 502, "body": b"<html>bad gateway 10.0.0.7</html>"}, "model_unavailable"),
    ({"status": 404, "body": b"Not Found"}, "model_unavailable"),
    ({"status": 401}, "model_unavailable"),
    ({"status": 302, "headers": {"location": "http://169.254.169.254/"}}, "model_unavailable"),
    ({"status": 429}, "model_overloaded"),
    ({"status": 503, "body": b"Request dropped due to backpressure"}, "model_overloaded"),
    ({"status": 503, "body": b'{"error": {"code": "model_starting", "message": "x"}}'}, "model_starting"),
    ({"status": 504}, "timeout"),
    ({"close_at_once": True}, "model_unavailable"),
    ({"body": b"<html>", "content_type": "text/html"}, "model_unavailable"),
    ({"body": b"null"}, "model_unavailable"),
    ({"body": b'{"choices": [1]}'}, "model_unavailable"),
    ({"body": b'{"error": {"message": "boom at engine.py:7"}}'}, "model_unavailable"),
    ({"cut_after": 0}, "model_unavailable"),
    ({"hang_after": 0, "before": 5}, "timeout"),
    (
        {"status": 400, "body": b'{"error": {"code": "context_length_exceeded", "message": "9 > 5"}}'},
        "context_length_exceeded",
    ),
    ({"status": 400, "body": b'{"error": {"message": "bad schema", "param": "response_format"}}'}, "invalid_value"),
]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_models_that_fail(start: Any, backend: Backend, streamed: bool, subtests: pytest.Subtests) -> None:
    running = await start(models=[model(backend.url, timeouts=Timeouts(first_byte_ms=300, total_ms=1000))])
    for changes, code in FAILURES:
        with subtests.test(changes=repr(changes)[:80]):
            backend.then(**changes)
            status, headers, _ = answer = await running.post({**ASK, "stream": streamed})
            error = check(answer, code)
            assert not any(word in error["message"] for word in ("html", "10.0.0.7", "engine.py", "the model says no"))
            row = (await running.usage_rows(len(backend.calls)))[-1]
            assert (row["request_id"], row["status"]) == (headers["x-request-id"], "error")
            assert (row["http_status"], row["error_code"], row["charged_micro"]) == (status, code, 0)
    assert (await running.post(ASK))[0] == 200


async def test_a_model_that_nobody_serves(start: Any) -> None:
    running = await start(models=[model("http://127.0.0.1:9/v1")])
    check(await running.post(ASK), "model_unavailable")
    for state, cold, code in (
        ("Starting", "Wait", "model_starting"),
        ("Asleep", "Refuse", "model_starting"),
        ("Unavailable", "Wait", "model_unavailable"),
    ):
        await running.change(models=(model("http://127.0.0.1:9/v1", state=state, cold_start=cold, start_seconds=17),))
        answer = await running.post(ASK)
        check(answer, code)
        assert answer[1]["retry-after"] == ("17" if code == "model_starting" else "5")


async def test_a_provider_whose_key_is_missing(start: Any, backend: Backend) -> None:
    target = Target(url=backend.url, model="x", internal=False, secret="nobody")
    running = await start(models=[model(backend.url, target=target)])
    check(await running.post(ASK), "model_unavailable")
    assert backend.calls == []


async def test_calls_to_one_model_are_bounded(start: Any, backend: Backend) -> None:
    running = await start(models=[model(backend.url, queued_requests=2)])
    gate = asyncio.Event()
    backend.behaviour.gate = gate
    streams = [asyncio.create_task(running.stream(ASK)) for _ in range(2)]
    await until(lambda: len(backend.calls) == 2)
    check(await running.post(ASK), "model_overloaded")
    gate.set()
    await asyncio.gather(*streams)
    assert (await running.post(ASK))[0] == 200


async def test_all_requests_together_are_bounded(start: Any, backend: Backend) -> None:
    running = await start(max_requests=1)
    gate = asyncio.Event()
    backend.then(gate=gate)
    stream = asyncio.create_task(running.stream(ASK))
    await backend.arrived.wait()
    check(await running.post(ASK), "model_overloaded")
    gate.set()
    await stream


async def test_paths_and_methods(running: Running) -> None:
    for method, path, code in (
        ("GET", "/", "not_found"),
        ("GET", "/v2/models", "not_found"),
        ("POST", "/v1/moderations", "not_found"),
        ("GET", "/v1/chat/completions", "method_not_allowed"),
        ("DELETE", "/api/v1/models", "method_not_allowed"),
        ("POST", "/healthz", "method_not_allowed"),
        ("GET", "/v1/models/", "not_found"),
    ):
        async with running.client.request(method, running.url + path) as response:
            check((response.status, response.headers, await response.json()), code)
            if response.status == 405:
                assert response.headers["allow"]


async def test_body_limits(start: Any) -> None:
    running = await start(max_body_bytes=2000, body_timeout_s=0.3)
    big = {"messages": [{"role": "user", "content": "x" * 3000}]}
    check(await running.post(big), "request_too_large")

    async def drip() -> Any:
        for _ in range(100):
            yield b" " * 100
            await asyncio.sleep(0.01)

    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    url = running.url + "/v1/chat/completions"
    async with running.client.post(url, data=drip(), headers=headers) as response:
        assert (await response.json())["error"]["code"] in ("request_too_large", "invalid_json")

    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rsplit(":", 1)[1]))
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n".encode())
    writer.write(b"content-length: 100\r\n\r\n{")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 3)
    assert b" 400 " in head
    writer.close()


@pytest.mark.parametrize(
    "headers",
    [{"content-type": "text/plain"}, {"content-encoding": "gzip"}, {"x-unsupported-parameters": "maybe"}],
    ids=str,
)
async def test_wrong_headers(running: Running, headers: dict[str, str]) -> None:
    check(await running.post(orjson.dumps(ASK), headers=headers), "invalid_value")
