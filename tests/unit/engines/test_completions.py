"""The older completions on llama.cpp: what is asked of it, and how several prompts and choices become one answer."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from tollway_serving.engines.llamacpp_completions import Prompt, generate, read_job
from tollway_serving.engines.protocol import Chunk, EngineError, Usage


class Server:
    """Answers each choice with two tokens, whose likelihood is the choice's number."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    async def run(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        done = sum(other["n"] for other in self.bodies)
        self.bodies.append(body)
        for index in range(body["n"]):
            text = f"{done + index}"
            entry = {"token": text, "logprob": -1.0 / (1 + done + index), "bytes": [48], "top_logprobs": []}
            timings = {"cache_n": 0, "prompt_n": len(body["prompt"]), "predicted_n": 1}
            logprobs = {"content": [entry]} if body.get("logprobs") else None
            yield {
                "choices": [{"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}],
                "timings": timings,
            }
            usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 2}
            yield {
                "choices": [{"index": index, "text": "", "logprobs": None, "finish_reason": "length"}],
                "usage": usage,
            }


async def count(prompt: Prompt) -> int:
    return len(prompt)


async def text_of(tokens: list[int]) -> str:
    return "".join(map(chr, tokens))


async def answer(server: Server, slots: int = 4, **request: Any) -> tuple[dict[int, str], Usage, list[Chunk]]:
    chunks = [chunk async for chunk in generate(read_job(request, 100), slots, server.run, count, text_of)]
    texts: dict[int, str] = {}
    last = Usage(0, 0)
    for chunk in chunks:
        texts[chunk.index] = texts.get(chunk.index, "") + chunk.text
        assert chunk.usage.prompt_tokens >= last.prompt_tokens
        assert chunk.usage.completion_tokens >= last.completion_tokens
        last = chunk.usage
    assert {chunk.index for chunk in chunks if chunk.finish_reason} == set(texts)
    return texts, chunks[-1].usage, chunks


async def test_defaults() -> None:
    server = Server()
    await answer(server, prompt="abc")
    (body,) = server.bodies
    assert (body["max_tokens"], body["prompt"], body["n"]) == (16, "abc", 1)
    assert "logprobs" not in body


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("ab", ["ab"]), (["ab", "c"], ["ab", "c"]), ([97, 98], [[97, 98]]), ([[97], [98, 99]], [[97], [98, 99]])],
)
async def test_the_four_forms_of_a_prompt(prompt: Any, prompts: list[Prompt]) -> None:
    server = Server()
    texts, usage, _ = await answer(server, prompt=prompt, echo=True)
    assert [body["prompt"] for body in server.bodies] == prompts
    whole = ["".join(map(chr, one)) if isinstance(one, list) else one for one in prompts]
    assert list(texts.values()) == [f"{text}{at}" for at, text in enumerate(whole)]
    assert usage == Usage(sum(map(len, prompts)), 2 * len(prompts))


async def test_choices_are_numbered_prompt_by_prompt_over_calls_of_the_slots() -> None:
    server = Server()
    texts, usage, _ = await answer(server, slots=2, prompt=["ab", "c"], n=3, seed=7, temperature=0.5)
    assert sorted(texts) == [0, 1, 2, 3, 4, 5]
    assert [(body["n"], body["seed"]) for body in server.bodies] == [(2, 7), (1, 9), (2, 7), (1, 9)]
    assert usage == Usage(3, 12)


async def test_best_of_takes_the_likeliest_and_counts_all() -> None:
    texts, usage, chunks = await answer(Server(), prompt="ab", n=2, best_of=5)
    assert texts == {0: "4", 1: "3"}
    assert usage == Usage(2, 10)
    assert all(chunk.logprobs is None for chunk in chunks)


async def test_nothing_is_generated_for_no_tokens() -> None:
    server = Server()
    texts, usage, _ = await answer(server, prompt=["ab", "c"], max_tokens=0, echo=True)
    assert (texts, usage, server.bodies) == ({0: "ab", 1: "c"}, Usage(3, 0), [])


@pytest.mark.parametrize(
    ("request_", "code", "param"),
    [
        ({"prompt": ""}, "invalid_value", "prompt"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": [1, "a"]}, "invalid_value", "prompt"),
        ({"prompt": [[1], []]}, "invalid_value", "prompt"),
        ({"prompt": [-1]}, "invalid_value", "prompt"),
        ({}, "invalid_value", "prompt"),
        ({"prompt": "a", "suffix": "b"}, "unsupported_parameter", "suffix"),
        ({"prompt": "a", "n": 3, "best_of": 2}, "invalid_value", "best_of"),
        ({"prompt": "a", "best_of": 2, "stream": True}, "invalid_value", "best_of"),
        ({"prompt": ["a"] * 65, "n": 2}, "invalid_value", "prompt"),
        ({"prompt": "a", "logprobs": 6}, "invalid_value", "logprobs"),
        ({"prompt": "a", "logprobs": 1, "echo": True}, "unsupported_parameter", "logprobs"),
    ],
)
def test_refusals(request_: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(EngineError) as caught:
        read_job(request_, 100)
    assert (caught.value.code, caught.value.param) == (code, param)


async def test_a_prompt_that_is_too_long() -> None:
    async def refuse(body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        yield {"error": {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 5}}

    with pytest.raises(EngineError) as caught:
        [chunk async for chunk in generate(read_job({"prompt": "a"}, 100), 4, refuse, count, text_of)]
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
