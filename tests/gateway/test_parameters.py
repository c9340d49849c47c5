"""The rule for parameters on every text route: carried out, hint, refused by name, or ignored by the client's wish."""

from typing import Any

import pytest
from support.backend import Backend
from support.gateway import HELLO, KEY, Running, check_error, model, plan

ENDPOINTS = ("ChatCompletions", "Completions", "Embeddings")
REQUESTS: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": HELLO},
    "/completions": {"prompt": "a"},
    "/embeddings": {"input": "a"},
}
UNSUPPORTED: dict[str, dict[str, Any]] = {
    "/chat/completions": {
        "presence_penalty": 1, "store": True, "service_tier": "flex", "reasoning_effort": "high", "audio": {},
        "functions": [{}], "tools": [{"type": "function", "function": {"name": "f"}}], "top_k": 5,
    },
    "/completions": {"suffix": "z", "echo": True, "best_of": 2, "logit_bias": {"5": 1}, "min_p": 0.5},
    "/embeddings": {"dimensions": 5},
}  # fmt: skip


async def post(running: Running, path: str, body: dict[str, Any], **headers: str) -> tuple[int, Any, Any]:
    sent = {"authorization": f"Bearer {KEY}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    async with running.client.post(f"{running.url}/v1{path}", json=body, headers=sent) as response:
        return response.status, response.headers, await response.json()


def setup(backend: Backend, **changes: Any) -> dict[str, Any]:
    able = model(backend.url, endpoints=ENDPOINTS, capabilities=("Logprobs",), parameters=("temperature",))
    return {"models": [able], "plans": [plan(default_models=dict.fromkeys(ENDPOINTS, "small"), **changes)]}


@pytest.mark.parametrize("path", REQUESTS)
@pytest.mark.parametrize("by", ["header", "plan"])
async def test_unsupported_ones_may_be_ignored(start: Any, backend: Backend, by: str, path: str) -> None:
    running: Running = await start(**setup(backend, unsupported_parameters="Ignore" if by == "plan" else "Refuse"))
    headers = {"x_unsupported_parameters": "ignore"} if by == "header" else {}
    extra = {**UNSUPPORTED[path], "frobnicate": 1, "user": "me"}
    status, answered, body = await post(running, path, {**REQUESTS[path], **extra}, **headers)
    assert status == 200, body
    assert set(answered["x-ignored-parameters"].split(", ")) == set(extra)
    assert not extra.keys() & backend.calls[0].body.keys()
    for wrong in ({"frobnicate": 1}, *({name: value} for name, value in UNSUPPORTED[path].items())):
        (name,) = wrong
        code = "tools_not_supported_by_model" if name == "tools" else "unsupported_parameter"
        refused = await post(running, path, {**REQUESTS[path], **wrong}, x_unsupported_parameters="Refuse")
        check_error(refused, code, name)
    status, answered, _ = await post(running, path, REQUESTS[path], **headers)
    assert "x-ignored-parameters" not in answered
    check_error(await post(running, path, {**REQUESTS[path], "model": 3}, **headers), "invalid_value", "model")


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_ignored_ones_are_named_on_streams_too(start: Any, backend: Backend, streamed: bool) -> None:
    running: Running = await start(**setup(backend, unsupported_parameters="Ignore"))
    body = {**REQUESTS["/completions"], "suffix": "z", "stream": streamed}
    headers = {"authorization": f"Bearer {KEY}"}
    async with running.client.post(f"{running.url}/v1/completions", json=body, headers=headers) as response:
        assert (response.status, response.headers["x-ignored-parameters"]) == (200, "suffix")
        await response.read()


TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g", "h")]


def allowed(*names: str, mode: str = "auto") -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.fixture
async def able(start: Any, backend: Backend) -> Running:
    entry = model(backend.url, capabilities=("Tools",), parameters=("tools", "tool_choice", "parallel_tool_calls"))
    running: Running = await start(models=[entry])
    return running


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_allowed_tools_narrow_the_tools(able: Running, mode: str) -> None:
    status, headers, _ = await able.post(
        {"messages": HELLO, "tools": TOOLS, "tool_choice": allowed("h", "f", mode=mode)}
    )
    assert status == 200
    assert "x-ignored-parameters" not in headers
    sent = able.backend.calls[0].body
    assert sent["tools"] == [TOOLS[0], TOOLS[2]]
    assert sent["tool_choice"] == mode


async def test_tool_choices_that_name_nothing(able: Running) -> None:
    named = {"type": "function", "function": {"name": "x"}}
    for choice in (named, allowed("x"), allowed("f", "x"), allowed(), allowed("f", mode="none")):
        error = check_error(
            await able.post({"messages": HELLO, "tools": TOOLS, "tool_choice": choice}), "invalid_value"
        )
        assert error["param"].startswith("tool_choice")
    for choice in (named, allowed("f"), "required"):
        check_error(await able.post({"messages": HELLO, "tool_choice": choice}), "invalid_value", "tool_choice")
    assert able.backend.calls == []


OLDER: list[tuple[dict[str, Any], str, str]] = [
    ({"functions": [{"name": "f"}]}, "functions", "'tools'"),
    ({"function_call": "auto"}, "function_call", "'tool_choice'"),
    ({"function_call": {"name": "f"}}, "function_call", "'tool_choice'"),
    ({"messages": [{"role": "function", "name": "f", "content": "1"}]}, "messages[0].role", "'tool'"),
    (
        {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": ""}}]},
        "messages[0].function_call",
        "'tool_calls'",
    ),
    ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type", "one string parameter"),
]


async def test_older_and_newer_forms_say_what_to_write(able: Running, subtests: pytest.Subtests) -> None:
    for body, param, words in OLDER:
        with subtests.test(body=repr(body)[:60]):
            status, _, answer = await able.post({"messages": HELLO, **body})
            assert (status, answer["error"]["param"]) == (400, param), answer
            assert words in answer["error"]["message"]
