"""What the gateway does for models that can't: several choices by several calls, stop sequences."""

from typing import Any

import openai
import orjson
import pytest
from support.backend import Backend
from support.gateway import HELLO, KEY, Running, check_error, model, plan, until

from tollway_serving.contract.catalogue import Limits, Target

ENDPOINTS = ("ChatCompletions", "Completions")
IN, OUT = 1, 2  # micro-credits a token, see support.gateway.model
PROMPT = 7


def setup(backend: Backend, **changes: Any) -> dict[str, Any]:
    """A model of ours and a provider's, which know nothing of `n` and `stop`."""
    plain: dict[str, Any] = {"endpoints": ENDPOINTS, "parameters": ("temperature", "seed"), "capabilities": ()}
    far = Target(url=backend.url, model="far", internal=False, continuous_usage=False, secret="acme")
    models = [model(backend.url, **plain), model(backend.url, "remote", **plain, target=far)]
    return {"models": models, "plans": [plan(model_ids=("small", "remote"), **changes)]}


@pytest.fixture
async def running(start: Any, backend: Backend) -> Running:
    running: Running = await start(**setup(backend))
    return running


def client(running: Running) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=running.url + "/v1", api_key=KEY, max_retries=0)


async def chat(running: Running, streamed: bool, **body: Any) -> tuple[dict[int, str], dict[int, str | None], Any]:
    """Texts and reasons by choice, and the usage."""
    async with client(running) as sdk:
        body = {"model": "small", "messages": HELLO, **body}
        if not streamed:
            answer = await sdk.chat.completions.create(**body)
            return (
                {choice.index: choice.message.content or "" for choice in answer.choices},
                {choice.index: choice.finish_reason for choice in answer.choices},
                answer.usage,
            )
        texts: dict[int, str] = {}
        reasons: dict[int, str | None] = {}
        usage = None
        async for chunk in await sdk.chat.completions.create(
            **body, stream=True, stream_options={"include_usage": True}
        ):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
                if choice.finish_reason:
                    assert choice.index not in reasons
                    reasons[choice.index] = choice.finish_reason
        return texts, reasons, usage


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", ["small", "remote"])
async def test_choices_by_several_calls(running: Running, backend: Backend, streamed: bool, name: str) -> None:
    for word, words in (("a", 3), ("b", 2), ("c", 4)):
        backend.then(word=word, words=words)
    texts, reasons, usage = await chat(running, streamed, model=name, n=3, seed=5, max_tokens=10)
    assert texts == {0: "a0 a1 a2", 1: "b0 b1", 2: "c0 c1 c2 c3"}
    assert set(reasons.values()) == {"stop"}
    assert (usage.prompt_tokens, usage.completion_tokens) == (PROMPT, 9), "the prompt is charged once, as OpenAI has it"
    assert [call.body["seed"] for call in backend.calls] == [5, 4, 3]
    assert all("n" not in call.body and call.body["max_completion_tokens"] == 10 for call in backend.calls)
    assert backend.most_running == 1
    (row,) = await running.usage_rows(1)
    assert (row["status"], row["charged_micro"], row["estimated"]) == ("ok", PROMPT * IN + 9 * OUT, 0)


async def test_choices_of_several_prompts_come_prompt_by_prompt(running: Running, backend: Backend) -> None:
    backend.then(word="a", words=1)
    backend.then(word="b", words=1)
    async with client(running) as sdk:
        answer = await sdk.completions.create(model="small", prompt=["x", "y"], n=2)
        assert [(choice.index, choice.text) for choice in answer.choices] == [
            (0, "a0"),
            (1, "b0"),
            (2, "a0"),
            (3, "b0"),
        ]
        backend.then(word="a", words=1)
        backend.then(word="b", words=1)
        found: dict[int, str] = {}
        async for chunk in await sdk.completions.create(model="small", prompt=["x", "y"], n=2, stream=True):
            for choice in chunk.choices:
                found[choice.index] = found.get(choice.index, "") + choice.text
        assert found == {0: "a0", 1: "b0", 2: "a0", 3: "b0"}
    rows = await running.usage_rows(2)
    assert [row["charged_micro"] for row in rows] == [PROMPT * IN + 4 * OUT] * 2


async def test_a_later_call_that_fails(running: Running, backend: Backend) -> None:
    backend.then(words=2)
    backend.then(status=500)
    check_error(await running.post({"messages": HELLO, "n": 2}), "model_unavailable")
    backend.then(words=2)
    backend.then(status=500)
    _, raw = await running.stream({"messages": HELLO, "n": 2})
    assert b'"code":"model_unavailable"' in raw.split(b"\n\n")[-2]
    assert b"[DONE]" not in raw
    rows = await running.usage_rows(2)
    assert [row["charged_micro"] for row in rows] == [0, PROMPT * IN + 2 * OUT], "what was sent is charged"


async def test_all_choices_are_held(start: Any, backend: Backend) -> None:
    running: Running = await start(**setup(backend, limits=Limits(credits_monthly_micro=100)))
    status, _, body = await running.post({"messages": HELLO, "n": 3, "max_tokens": 15})
    assert (status, body["error"]["code"]) == (429, "insufficient_quota")
    assert (await running.post({"messages": HELLO, "n": 1, "max_tokens": 15}))[0] == 200


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", ["small", "remote"])
@pytest.mark.parametrize("stop", ["w3", [" w3", "w9"], "2 w3", "0 w1 w2 w3 "], ids=repr)
async def test_stop_sequences(running: Running, backend: Backend, streamed: bool, name: str, stop: Any) -> None:
    text = "w0 w1 w2 w3 w4"
    expected = text[: text.index(stop if isinstance(stop, str) else stop[0])]
    texts, reasons, _ = await chat(running, streamed, model=name, stop=stop)
    assert texts == {0: expected}
    assert reasons == {0: "stop"}
    assert "stop" not in backend.calls[0].body


async def test_a_stopped_stream_stops_the_model(running: Running, backend: Backend) -> None:
    backend.then(words=1000, hang_after=4)
    texts, _, usage = await chat(running, True, stop="w2", max_tokens=1000)
    assert texts == {0: "w0 w1 "}
    await until(backend.calls[0].cancelled.is_set)
    assert usage.completion_tokens == 3
    (row,) = await running.usage_rows(1)
    assert (row["status"], row["charged_micro"]) == ("ok", PROMPT * IN + 3 * OUT)


async def test_stops_and_choices_together(running: Running, backend: Backend) -> None:
    for streamed in (False, True):
        backend.then(word="a")
        backend.then(word="b")
        texts, reasons, _ = await chat(running, streamed, n=2, stop=["a1", "b2"])
        assert texts == {0: "a0 ", 1: "b0 b1 "}
        assert reasons == {0: "stop", 1: "stop"}


async def test_what_can_not_be_done_together(running: Running) -> None:
    async with client(running) as sdk:
        await running.change(
            models=(model(running.backend.url, endpoints=ENDPOINTS, parameters=("echo", "best_of"), capabilities=()),)
        )
        for more, param in (({"stop": "x", "echo": True}, "stop"), ({"n": 2, "best_of": 3}, "n")):
            with pytest.raises(openai.BadRequestError) as caught:
                await sdk.completions.create(model="small", prompt="a", **more)
            assert (caught.value.code, caught.value.param) == ("unsupported_parameter", param)


OLDER = {"tokens": ["é", "b"], "token_logprobs": [-0.1, -0.2], "top_logprobs": [{"é": -0.1, "x": -3}, None]}
SHAPED = [
    {"token": "é", "logprob": -0.1, "bytes": [195, 169],
     "top_logprobs": [{"token": "é", "logprob": -0.1, "bytes": [195, 169]},
                      {"token": "x", "logprob": -3, "bytes": [120]}]},
    {"token": "b", "logprob": -0.2, "bytes": [98], "top_logprobs": []},
]  # fmt: skip


@pytest.mark.parametrize("way", ["whole", "stream", "collected"])
@pytest.mark.parametrize("given", [OLDER, {"content": [{"token": "b", "logprob": -0.2}]}, [], "x"], ids=str)
async def test_log_probabilities_have_openais_shape(start: Any, backend: Backend, way: str, given: Any) -> None:
    """Some engines answer chats with the older completions' lists, or leave fields out."""
    entry = model(backend.url) if way == "collected" else model(
        backend.url, target=Target(url=backend.url, model="far", internal=False, continuous_usage=False)
    )  # fmt: skip
    running: Running = await start(models=[entry])
    choice = {"index": 0, "finish_reason": "stop", "logprobs": given}
    said = {"role": "assistant", "content": "éb"}
    if way == "whole":
        backend.then(body=orjson.dumps({"choices": [{**choice, "message": said}]}))
    else:
        event = orjson.dumps({"choices": [{**choice, "delta": said}]})
        backend.then(body=b"data: " + event + b"\n\ndata: [DONE]\n\n", content_type="text/event-stream")
    body = {"messages": HELLO, "logprobs": True, "top_logprobs": 2}
    if way == "stream":
        _, raw = await running.stream(body)
        found = orjson.loads(raw.split(b"\n\n")[0].removeprefix(b"data: "))
    else:
        _, _, found = await running.post(body)
    logprobs = found["choices"][0]["logprobs"]
    if given is OLDER:
        assert logprobs["content"] == SHAPED
    elif isinstance(given, dict):
        assert logprobs["content"] == SHAPED[1:]
    else:
        assert logprobs is None
