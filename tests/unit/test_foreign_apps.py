"""Applications that are not ours behind our token, and vLLM's arguments: without vLLM, Ray or sockets."""

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from support.custom_app import Echo, ready

from tollway_serving.engines.adapters import Adapters
from tollway_serving.engines.app import InternalToken
from tollway_serving.engines.guard import Guard, error_body
from tollway_serving.engines.imported import user_application
from tollway_serving.engines.protocol import EngineArgs, ModelMissingError
from tollway_serving.engines.vllm_kwargs import engine_kwargs


@pytest.fixture
def token(tmp_path: Path) -> InternalToken:
    (tmp_path / "token").write_text("now\nbefore\n")
    return InternalToken(tmp_path / "token")


async def call(
    app: Any, path: str, body: Mapping[str, Any], token: bytes = b"now", root: str = "/_models/ml.m"
) -> tuple[int, bytes, list[dict[str, Any]]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": root + path,
        "root_path": root,
        "headers": [(b"x-tollway-token", token)],
    }
    await app(scope, receive, send)
    answer = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], answer, sent


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


async def test_only_gateways_reach_only_the_contracts_routes(token: InternalToken) -> None:
    seen: list[Mapping[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await ready(scope, receive, send)

    guard = Guard(app, token)
    status, body, _ = await call(guard, "/v1/chat/completions", chat("you"))
    assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "hi you")
    assert (await call(guard, "/v1/chat/completions", chat("you"), b"before"))[0] == 200
    for path, shown in (("/v1/chat/completions", b"wrong"), ("/v1/load_lora_adapter", b"now"), ("/metrics", b"now")):
        assert (await call(guard, path, chat("you"), shown))[:2] == (404, b"Not Found")
    assert [(scope["path"], scope["root_path"], scope["headers"]) for scope in seen] == [
        ("/v1/chat/completions", "", [])
    ] * 2, "the token stays outside"


async def test_streams_pass_untouched_and_errors_get_our_codes(token: InternalToken) -> None:
    guard = Guard(ready, token)
    status, body, messages = await call(guard, "/v1/chat/completions", chat("a b c", stream=True))
    assert status == 200
    assert body.endswith(b"data: [DONE]\n\n")
    assert len(messages) == 7
    status, body, _ = await call(guard, "/v1/chat/completions", chat("a" * 101))
    assert (status, json.loads(body)["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (
            400,
            b'{"error": {"message": "bad temperature", "code": 400, "param": "temperature"}}',
            "invalid_value",
            "bad",
        ),
        (
            400,
            b'{"object": "error", "message": "the model\'s context length", "code": 400}',
            "context_length_exceeded",
            "the",
        ),
        (400, b'{"error": {"message": "no", "code": "unsupported_parameter"}}', "unsupported_parameter", "no"),
        (404, b'{"error": {"message": "The model `x` does not exist.", "code": 404}}', "status_404", "The model"),
        (422, b'{"detail": "field required"}', "invalid_value", "field required"),
        (500, b"Internal Server Error", "internal_error", "The model failed."),
        (500, b'{"error": {"message": "maximum model length", "code": 500}}', "internal_error", "maximum"),
    ],
)
def test_what_errors_become(status: int, body: bytes, code: str, message: str) -> None:
    error = error_body(status, body)["error"]
    assert error["code"] == code
    assert error["message"].startswith(message)


@pytest.mark.parametrize("name", ["make", "make_later", "ready"])
async def test_an_import_path_names_an_application_or_what_makes_one(name: str) -> None:
    args = EngineArgs("ml.m", "m", args={"import-path": f"support.custom_app:{name}", "slots": 2, "greeting": "hi"})
    app: Any = await user_application(args, Path("/weights"))
    assert isinstance(app, Echo)
    if name != "ready":
        assert app.model["args"] == {"greeting": "hi"}
        assert (app.model["model_id"], app.model["path"]) == ("m", Path("/weights"))


@pytest.mark.parametrize("path", ["support.custom_app", "support.custom_app:nothing", "no_such_module:app"])
async def test_an_import_path_that_leads_nowhere_is_named(path: str) -> None:
    with pytest.raises(ValueError, match=f"engine.args.import-path: {path}"):
        await user_application(EngineArgs("ml.m", "m", args={"import-path": path}), None)


def test_vllms_arguments() -> None:
    args = {"gpu-memory-utilization": "0.8", "enforce-eager": "true", "tool-call-parser": "hermes", "max-num-seqs": 9}
    found = engine_kwargs(EngineArgs("ml.m", "m", args=args, context_tokens=4096, slots=9, gpus=2, pods=3))
    assert found == {
        "gpu_memory_utilization": 0.8,
        "enforce_eager": True,
        "tool_call_parser": "hermes",
        "enable_auto_tool_choice": True,
        "max_num_seqs": 9,
        "max_model_len": 4096,
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 3,
    }
    plain = engine_kwargs(EngineArgs("ml.m", "m", args={"max-model-len": 512}, adapters=True))
    assert (plain["max_model_len"], plain["enable_lora"], plain["max_lora_rank"]) == (512, True, 64)
    with pytest.raises(ValueError, match=r"engine.args.max-len"):
        engine_kwargs(EngineArgs("ml.m", "m", args={"max-len": 1}))


class Registry:
    """vLLM's, as far as adapters go: what is loaded, by name."""

    def __init__(self) -> None:
        self.loaded: dict[str, str] = {}
        self.arrived: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def load_lora_adapter(self, request: Any) -> Any:
        if "broken" in request.lora_path:
            return SimpleNamespace(error=SimpleNamespace(message="rank 128 is greater than 64"))
        self.loaded[request.lora_name] = request.lora_path
        self.arrived[request.lora_name].set()
        return "loaded"

    async def unload_lora_adapter(self, request: Any) -> str:
        del self.loaded[request.lora_name]
        return "unloaded"


@pytest.fixture
def vllm_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's request classes, which say no more than their fields."""
    module = ModuleType("vllm.entrypoints.serve.lora.protocol")
    for name in ("LoadLoRAAdapterRequest", "UnloadLoRAAdapterRequest"):
        setattr(module, name, SimpleNamespace)
    for parent in ("vllm", "vllm.entrypoints", "vllm.entrypoints.serve", "vllm.entrypoints.serve.lora"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.usefixtures("vllm_requests")
async def test_adapters_come_go_change_and_are_tried_again() -> None:
    missing = {"hf://org/late"}

    async def fetch(uri: str, secret: str | None) -> Path:
        if uri in missing:
            raise ModelMissingError(f"{uri}: not yet")
        return Path("/cache") / (secret or "open") / uri.rpartition("/")[2]

    registry = Registry()
    adapters = Adapters(fetch, retry=0.01)
    await adapters.want({"a": {"source": "hf://org/a"}, "late": {"source": "hf://org/late"}})
    await adapters.begin(registry)
    assert registry.loaded == {"a": "/cache/open/a"}, "one that fails keeps no other away"
    missing.clear()
    await asyncio.wait_for(registry.arrived["late"].wait(), 10)
    assert registry.loaded["late"] == "/cache/open/late"
    await adapters.want({"a": {"source": "hf://org/b", "secret": "ml_s"}, "x": {"source": "hf://org/broken"}})
    assert registry.loaded == {"a": "/cache/ml_s/b"}
    await adapters.want({})
    assert registry.loaded == {}
