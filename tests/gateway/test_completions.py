"""The older completions through the official SDK: forms of the prompt, choices, streams, money, refusals."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from support.backend import Backend, Behaviour
from support.gateway import KEY, Running, model, plan, until
from support.product import serve_engine

from tollway_serving.contract.catalogue import Target
from tollway_serving.contract.engines import ENGINES

LLAMACPP = ENGINES["llamacpp"]
PRICE_IN, PRICE_OUT = 1, 2  # micro-credits a token, see support.gateway.model


def able(url: str, **changes: Any) -> Any:
    """A model with all that the embedded engine can do."""
    facts = {"capabilities": LLAMACPP.capabilities, "parameters": LLAMACPP.parameters, "endpoints": LLAMACPP.endpoints}
    return model(url, **facts | changes)


@pytest.fixture
async def running(start: Any, backend: Backend) -> Running:
    defaults = {"Completions": "small"}
    return await start(models=[able(backend.url)], plans=[plan(default_models=defaults)])


@pytest.fixture
async def client(running: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=running.url + "/v1", api_key=KEY, max_retries=0) as client:
        yield client


async def refusal(client: openai.AsyncOpenAI, **request: Any) -> tuple[str, str | None]:
    """The code and the parameter of a 400."""
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(**{"model": "small", "prompt": "A toll road", **request})
    return str(caught.value.code), caught.value.param


async def test_whole(running: Running, client: openai.AsyncOpenAI) -> None:
    raw = await client.completions.with_raw_response.create(model="small", prompt="A toll road", max_tokens=3)
    answer = raw.parse()
    assert json.loads(raw.text) == {
        "id": "cmpl-backend",
        "object": "text_completion",
        "created": 1_700_000_000,
        "model": "small",
        "choices": [{"index": 0, "text": "w0 w1 w2", "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }
    assert answer.usage is not None
    charged = 7 * PRICE_IN + 3 * PRICE_OUT
    assert raw.headers["x-credits-used"] == f"{charged / 10**6:f}"
    (row,) = await running.usage_rows()
    assert (row["endpoint"], row["status"], row["charged_micro"]) == ("Completions", "ok", charged)
    assert row["charge_id"] == raw.headers["x-charge-id"]
    (seen,) = running.backend.calls
    assert seen.path == "/v1/completions"
    assert seen.body["prompt"] == "A toll road"
    assert seen.body["stream"] is True, "our own engines are metered while they generate"
    assert "max_completion_tokens" not in seen.body


@pytest.mark.parametrize(
    ("prompt", "choices"),
    [
        ("one", 1),
        (["one"], 1),
        (["one", "zwei", "drei"], 3),
        ([5, 6, 7], 1),
        ([[5, 6], [7]], 2),
    ],
    ids=str,
)
async def test_prompts(running: Running, client: openai.AsyncOpenAI, prompt: Any, choices: int) -> None:
    answer = await client.completions.create(model="small", prompt=prompt)
    assert [choice.index for choice in answer.choices] == list(range(choices))
    (seen,) = running.backend.calls
    assert seen.body["prompt"] == prompt
    assert seen.body["max_tokens"] == 16, "OpenAI's default"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5 * choices


async def test_model_may_be_omitted(running: Running) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    async with running.client.post(f"{running.url}/api/v1/completions", json={"prompt": "a"}, headers=headers) as got:
        assert (got.status, got.headers["x-model-used"]) == (200, "small")


async def test_stream(running: Running, client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(
        model="small", prompt="A", stream=True, n=2, stream_options={"include_usage": True}
    )
    texts: dict[int, str] = {}
    reasons = {}
    usages = []
    async for chunk in stream:
        assert (chunk.object, chunk.model, chunk.id) == ("text_completion", "small", "cmpl-backend")
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            reasons[choice.index] = choice.finish_reason
    assert texts == dict.fromkeys((0, 1), "w0 w1 w2 w3 w4")
    assert reasons == dict.fromkeys((0, 1), "stop")
    assert usages.pop().completion_tokens == 10
    assert set(usages) == {None}
    (row,) = await running.usage_rows()
    assert row["charged_micro"] == 7 * PRICE_IN + 10 * PRICE_OUT


async def test_frames_are_exact(running: Running) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    body = {"prompt": "A", "stream": True, "max_tokens": 1}
    async with running.client.post(f"{running.url}/v1/completions", json=body, headers=headers) as response:
        charge = response.headers["x-charge-id"]
        frames = (await response.read()).decode().split("\n\n")
    assert json.loads(frames[0].removeprefix("data: ")) == {
        "id": "cmpl-backend",
        "object": "text_completion",
        "created": 1_700_000_000,
        "model": "small",
        "choices": [{"index": 0, "text": "w0", "logprobs": None, "finish_reason": None}],
    }
    assert frames[-3:] == [f": credits_used=0.000009 charge_id={charge}", "data: [DONE]", ""]


async def test_client_that_leaves_pays_for_what_was_generated(running: Running, client: openai.AsyncOpenAI) -> None:
    running.backend.then(words=100, hang_after=3)
    stream = await client.completions.create(model="small", prompt="A", stream=True, max_tokens=100)
    for _ in range(3):
        await anext(stream)
    await stream.close()
    (row,) = await running.usage_rows(1)
    assert (row["status"], row["charged_micro"]) == ("cancelled", 7 * PRICE_IN + 3 * PRICE_OUT)
    await until(running.backend.calls[0].cancelled.is_set)


async def test_best_of_is_not_asked_for_as_a_stream(running: Running, client: openai.AsyncOpenAI) -> None:
    running.backend.then(words=2)
    await client.completions.create(model="small", prompt="A", best_of=3, n=2)
    (seen,) = running.backend.calls
    assert (seen.body["best_of"], seen.body["n"]) == (3, 2)
    assert "stream" not in seen.body


async def test_best_of_is_held_whole(start: Any, backend: Backend) -> None:
    """Three candidates of 16 tokens and the prompt's bound: the account can't pay for that, but for one it could."""
    account = plan(limits={"credits_monthly_micro": 90}, default_models={"Completions": "small"})
    running = await start(models=[able(backend.url)], plans=[account])
    async with openai.AsyncOpenAI(base_url=running.url + "/v1", api_key=KEY, max_retries=0) as client:
        with pytest.raises(openai.RateLimitError):
            await client.completions.create(model="small", prompt="A", best_of=3, max_tokens=16)
        assert (await client.completions.create(model="small", prompt="A", max_tokens=16)).choices


async def test_what_happens_anyway_is_accepted(running: Running, client: openai.AsyncOpenAI) -> None:
    raw = await client.completions.with_raw_response.create(
        model="small", prompt="A", best_of=2, n=2, suffix="", user="me", echo=True, logprobs=0, stop=["x"], seed=1
    )
    assert raw.headers["x-ignored-parameters"] == "suffix, user"
    (seen,) = running.backend.calls
    assert "best_of" not in seen.body, "n candidates, n answered"
    assert (seen.body["echo"], seen.body["logprobs"], seen.body["stop"]) == (True, 0, ["x"])
    assert not {"suffix", "user"} & seen.body.keys()


async def test_refused(running: Running, client: openai.AsyncOpenAI) -> None:
    assert await refusal(client, suffix="the end") == ("unsupported_parameter", "suffix")
    assert await refusal(client, top_p=2) == ("invalid_value", "top_p")
    assert await refusal(client, logprobs=6) == ("invalid_value", "logprobs")
    assert await refusal(client, n=3, best_of=2) == ("invalid_value", "best_of")
    assert await refusal(client, best_of=0) == ("invalid_value", "best_of")
    assert await refusal(client, best_of=2, stream=True) == ("invalid_value", "best_of")
    assert await refusal(client, stream_options={"include_usage": True}) == ("invalid_value", "stream_options")
    assert await refusal(client, max_tokens=-1) == ("invalid_value", "max_tokens")
    assert await refusal(client, max_tokens=2000) == ("invalid_value", "max_tokens")
    assert await refusal(client, prompt=["a"] * 65, n=2) == ("invalid_value", "prompt")
    assert await refusal(client, prompt=None) == ("missing_required_parameter", "prompt")
    assert await refusal(client, extra_body={"messages": []}) == ("unsupported_parameter", "messages")
    for prompt in ("", [], [[]], [""]):
        assert (await refusal(client, prompt=prompt))[0] == "invalid_value"
    assert await refusal(client, prompt=["a", 1]) == ("invalid_value", "prompt[1]")
    assert await refusal(client, prompt=[[1], [2, "x"]]) == ("invalid_value", "prompt[1][1]")
    assert running.backend.calls == []
    assert await running.usage_rows() == []


async def test_context(running: Running, client: openai.AsyncOpenAI) -> None:
    code = "context_length_exceeded"
    assert await refusal(client, prompt=[1] * 5000) == (code, "prompt")
    assert await refusal(client, prompt=["short", [1] * 5000][:1] * 2 + ["x" * 3_000_000]) == (code, "prompt[2]")
    assert await refusal(client, prompt=[1] * 4000, max_tokens=500) == (code, "prompt")
    error = {"error": {"message": "too long", "type": "x", "code": code, "param": None}}
    running.backend.then(status=400, body=json.dumps(error).encode())
    assert await refusal(client) == (code, "prompt")


async def test_unsupported_may_be_ignored(running: Running, client: openai.AsyncOpenAI) -> None:
    raw = await client.completions.with_raw_response.create(
        model="small", prompt="A", suffix="z", extra_headers={"x-unsupported-parameters": "ignore"}
    )
    assert raw.headers["x-ignored-parameters"] == "suffix"


async def test_what_an_engine_ignores_is_named(running: Running, client: openai.AsyncOpenAI, backend: Backend) -> None:
    """Beside what the gateway ignores; a provider's header says nothing of our parameters."""
    backend.then(headers={"x-ignored-parameters": "logit_bias.5, user, bad name"})
    raw = await client.completions.with_raw_response.create(model="small", prompt="A", user="me")
    assert raw.headers["x-ignored-parameters"] == "user, logit_bias.5"
    await running.change(models=(able("", target=Target(url=backend.url, model="m", internal=False)),))
    backend.then(headers={"x-ignored-parameters": "seed"})
    raw = await client.completions.with_raw_response.create(model="small", prompt="A")
    assert "x-ignored-parameters" not in raw.headers


async def test_models_without_completions(start: Any, backend: Backend) -> None:
    running = await start()
    async with openai.AsyncOpenAI(base_url=running.url + "/v1", api_key=KEY, max_retries=0) as client:
        assert await refusal(client) == ("invalid_value", "model")
        assert backend.calls == []
        await running.change(models=(model(backend.url, endpoints=("Completions",)),))
        assert await refusal(client, echo=True) == ("unsupported_parameter", "echo")
        assert await refusal(client, best_of=2) == ("unsupported_parameter", "best_of")
        await running.change(plans=(plan(endpoints=("ChatCompletions",)),))
        with pytest.raises(openai.PermissionDeniedError):
            await client.completions.create(model="small", prompt="A")


async def test_broken_answers(running: Running, client: openai.AsyncOpenAI) -> None:
    chat = Behaviour(body=b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}}]}')
    running.backend.queue.append(chat)
    running.backend.queue.append(Behaviour(cut_after=2))
    for _ in range(2):
        with pytest.raises(openai.InternalServerError) as caught:
            await client.completions.create(model="small", prompt="A")
        assert caught.value.code == "model_unavailable"
    rows = await running.usage_rows(2)
    assert [row["charged_micro"] for row in rows] == [0, 0]


@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")  # of Ray's own models
async def test_real_engine(start: Any, tmp_path: Path) -> None:
    """SmolLM2 on llama.cpp behind the gateway: every form of prompt, echo, choices, log probabilities, a stream."""
    from tollway_serving.engines.llamacpp import LlamaCpp
    from tollway_serving.engines.protocol import EngineArgs

    engine = LlamaCpp(EngineArgs(name="ml.small", model_id="small", context_tokens=256, slots=2))
    async with serve_engine(engine, "small", tmp_path / "secrets") as url:
        running: Running = await start(models=[able(url, context_tokens=256, output_tokens=64)])
        async with openai.AsyncOpenAI(base_url=running.url + "/v1", api_key=KEY, max_retries=0) as client:
            request: dict[str, Any] = {"model": "small", "temperature": 0, "max_tokens": 4}
            whole = await client.completions.create(
                prompt=["The capital of France is", "One, two,"], echo=True, **request
            )
            assert whole.choices[0].text.startswith("The capital of France is Paris")
            assert whole.choices[1].text.startswith("One, two, ")
            assert whole.usage is not None
            assert whole.usage.completion_tokens <= 8
            stream = await client.completions.create(
                prompt="The capital of France is", stream=True, logprobs=2, **request
            )
            pieces = [chunk async for chunk in stream]
            assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text[24:]
            tokens = [piece.choices[0].logprobs for piece in pieces if piece.choices[0].logprobs]
            assert sum(len(found.tokens or ()) for found in tokens) == 4
            assert all(len(top) == 2 for found in tokens for top in found.top_logprobs or ())
            likeliest = await client.completions.create(prompt=[1, 2, 3], best_of=2, n=1, logprobs=0, **request)
            assert len(likeliest.choices) == 1
            assert likeliest.usage is not None
            assert likeliest.usage.completion_tokens == 8, "both candidates are charged"
            with pytest.raises(openai.BadRequestError) as caught:
                await client.completions.create(prompt="a", echo=True, logprobs=1, **request)
            assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "logprobs")
            with pytest.raises(openai.BadRequestError) as caught:
                await client.completions.create(prompt=["a", "b " * 300], **request)
            assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
        rows = await running.usage_rows(3)
        assert [row["status"] for row in rows][:3] == ["ok"] * 3
