"""The vllm engine for real: a whole `tollway up`, vLLM's CPU build, a small real model from a hub on this machine.

The hub wants a token, which comes from a Secret; an adapter is a model of its own.
"""

import dataclasses
import http.client
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.origins import Origin, hub
from support.small_model import make
from support.up import PLAN, Up, eventually, key

from tollway_serving.contract.vllm_args import OWNED, VLLM_ARGS

START_S = 600.0
pytestmark = pytest.mark.timeout(1500)


def model(name: str, source: str, more: str = "", args: str = "") -> str:
    return f"""
        apiVersion: tollway.dev/v1alpha1
        kind: ModelDeployment
        metadata: {{name: {name}}}
        spec:
          engine: {{name: vllm{f", args: {args}" if args else ""}}}
          source: {{uri: "{source}", secretRef: {{name: hub}}{more}}}
          pricing: {{perMillionOutputTokens: 1}}
          timeouts: {{firstByte: 5m}}
    """


@pytest.fixture(scope="session")
def folders() -> Path:
    folder = Path(os.environ.get("TOLLWAY_VLLM_MODEL", Path(__file__).parents[2] / ".venv-vllm" / "model"))
    if not (folder / "whole").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make(folder)
    return folder


@pytest.fixture(scope="session")
def origin(folders: Path) -> Iterator[Origin]:
    with hub() as server:
        server.token = "Bearer hf_test"
        for name in ("model", "adapter"):
            for file in (folders / name).iterdir():
                server.files[f"org/{name}/{file.name}"] = file.read_bytes()
        yield server


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory, origin: Origin) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("up"))
    up.write("plan.yaml", PLAN)
    up.write("key.yaml", key("me"))
    up.write(
        "secret.yaml",
        f"""
        apiVersion: v1
        kind: Secret
        metadata: {{name: hub}}
        stringData: {{HF_TOKEN: hf_test, HF_ENDPOINT: "{origin.address}"}}
        """,
    )
    up.write("base.yaml", model("base", "hf://org/model", args="{max-model-len: 512, max-num-seqs: 4}"))
    up.write("tuned.yaml", model("tuned", "hf://org/adapter", more=", adapterOf: base"))
    up.start(env={"TOLLWAY_CACHE_DIR": str(up.state / "cache"), "VLLM_CPU_KVCACHE_SPACE": "1"})
    try:
        up.ready(START_S)
        eventually(lambda: up.chat("base").status == 200, START_S)
        eventually(lambda: up.chat("tuned").status == 200, 60)
        yield up
    finally:
        up.end()


def events(platform: Up, **body: Any) -> list[dict[str, Any]]:
    """A stream as the gateway gets it from the model."""
    token = (platform.state / "platform" / "internal-token").read_text().split()[0]
    connection = http.client.HTTPConnection("127.0.0.1", platform.port, timeout=120)
    headers = {"x-tollway-token": token, "content-type": "application/json"}
    path = "/_models/default.base/v1/chat/completions"
    connection.request("POST", path, json.dumps({**body, "stream": True}), headers)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    lines = [line.removeprefix(b"data: ") for line in answer.read().split(b"\n\n") if line]
    connection.close()
    assert lines[-1] == b"[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_chat_is_answered_and_counted(platform: Up) -> None:
    answer = platform.chat("base", text="What is the capital of France?", max_tokens=24, temperature=0)
    assert answer.status == 200, answer.body
    body = answer.json()
    assert "Paris" in body["choices"][0]["message"]["content"]
    assert 0 < body["usage"]["completion_tokens"] <= 24


def test_a_stream_is_counted_in_every_chunk(platform: Up) -> None:
    chunks = events(
        platform,
        model="base",
        messages=ask("Count to ten."),
        max_tokens=20,
        ignore_eos=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    )
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 20
    assert len(set(counts)) > 10, "not only at the end"


def test_completions_and_structured_output(platform: Up) -> None:
    body = {"model": "base", "prompt": "The sky is", "max_tokens": 5}
    assert platform.call("POST", "/v1/completions", body).json()["choices"][0]["text"]
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    answer = platform.chat("base", max_tokens=40, response_format=wanted)
    assert json.loads(answer.json()["choices"][0]["message"]["content"])["a"] in ("x", "y")


def test_a_prompt_that_is_too_long_says_so(platform: Up) -> None:
    answer = platform.chat("base", text="word " * 600)
    assert (answer.status, answer.error) == (400, "context_length_exceeded")


def test_an_adapter_is_a_model_of_its_own(platform: Up) -> None:
    said = [
        platform.chat(name, text="Tell me a story.", max_tokens=12, temperature=0).json() for name in ("base", "tuned")
    ]
    texts = [body["choices"][0]["message"]["content"] for body in said]
    assert texts[0] != texts[1]
    assert {"base", "tuned"} <= set(platform.models())
    assert platform.status("ModelDeployment", "tuned")["Ready"].startswith("True Ready")


def test_adapters_come_and_go_while_the_model_serves(platform: Up) -> None:
    platform.write("more.yaml", model("more", "hf://org/adapter", more=", adapterOf: base"))
    took = eventually(lambda: platform.chat("more").status == 200, 60)
    assert took < 30, "the model was restarted"
    platform.write("broken.yaml", model("broken", "hf://org/model/config.json", more=", adapterOf: base"))
    eventually(lambda: platform.chat("broken").error == "model_unavailable", 60)
    assert platform.chat("base").status == platform.chat("more").status == 200, "one that fails harms nobody"
    platform.remove("more.yaml")
    platform.remove("broken.yaml")
    eventually(lambda: platform.chat("more").status == 404, 60)
    assert platform.chat("tuned").status == 200


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, while it is imported
def test_the_installed_vllm_knows_every_argument() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import FrontendArgs
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    known = {field.name for kind in (AsyncEngineArgs, FrontendArgs) for field in dataclasses.fields(kind)}
    assert {name.replace("-", "_") for name in (*VLLM_ARGS, *OWNED)} <= known
    assert set(VLLM_ARGS["quantization"].choices) <= set(QUANTIZATION_METHODS)
