"""OpenAI's older completions on llama.cpp: several prompts, echo and best_of. Called by the `llamacpp` engine.

Prompts are worked on one after the other, the choices of each in parallel slots. Knows no server: `run` and
`detokenize` are given, so that the rules here have unit tests.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from tollway_serving.engines.llamacpp_wire import DEFAULTS, Decoder, failure
from tollway_serving.engines.protocol import Chunk, EngineError, Usage

MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""

MAX_CHOICES = 128  # of all prompts together
MAX_LOGPROBS = 5
_SAMPLING = ("temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias")

Run = Callable[[dict[str, Any]], AsyncGenerator[dict[str, Any]]]
Prompt = str | list[int]


@dataclass(frozen=True, slots=True)
class Job:
    prompts: list[Prompt]
    n: int
    best_of: int
    echo: bool
    logprobs: int | None
    max_tokens: int
    body: dict[str, Any]  # llama.cpp's, without prompt and n


def read_job(request: Mapping[str, Any], output_tokens: int) -> Job:
    """EngineError names the parameter at fault. The gateway has checked types and ranges that don't depend on us."""
    prompts = _prompts(request.get("prompt"))
    n = request.get("n") or 1
    best_of = request.get("best_of") or n
    logprobs, echo = request.get("logprobs"), bool(request.get("echo"))
    maximum = request.get("max_tokens")
    maximum = MAX_TOKENS if maximum is None else maximum
    if request.get("suffix"):
        raise EngineError("This model cannot fill in before a suffix.", code="unsupported_parameter", param="suffix")
    if best_of < n:
        raise EngineError("'best_of' must be at least 'n'.", param="best_of")
    if best_of > n and request.get("stream"):
        raise EngineError("'best_of' above 'n' cannot be streamed.", param="best_of")
    if len(prompts) * best_of > MAX_CHOICES:
        raise EngineError(f"At most {MAX_CHOICES} choices can be made in one request.", param="prompt")
    if logprobs is not None and not 0 <= logprobs <= MAX_LOGPROBS:
        raise EngineError(f"'logprobs' must be 0 to {MAX_LOGPROBS}.", param="logprobs")
    if logprobs is not None and echo:
        message = "This model has no log probabilities of the prompt: leave out 'echo' or 'logprobs'."
        raise EngineError(message, code="unsupported_parameter", param="logprobs")
    body = {
        **DEFAULTS,
        **{name: request[name] for name in _SAMPLING if request.get(name) is not None},
        "max_tokens": min(maximum, output_tokens),
        "stream": True,
        "timings_per_token": True,
        "return_progress": True,
    }
    if logprobs is not None or best_of > n:
        body["logprobs"] = max(1, logprobs or 0)
    return Job(prompts, n, best_of, echo, logprobs, body["max_tokens"], body)


def _prompts(prompt: Any) -> list[Prompt]:
    if isinstance(prompt, str):
        prompts: list[Any] = [prompt]
    elif _is_tokens(prompt):
        prompts = [prompt]
    else:
        prompts = prompt if isinstance(prompt, list) else []
    if not prompts or not all((isinstance(one, str) and one) or _is_tokens(one) for one in prompts):
        raise EngineError(
            "'prompt' must be text, a list of texts, a list of tokens or a list of those, none of them empty.",
            param="prompt",
        )
    return prompts


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int and token >= 0 for token in value)


async def generate(
    job: Job,
    slots: int,
    run: Run,
    count: Callable[[Prompt], Awaitable[int]],
    detokenize: Callable[[list[int]], Awaitable[str]],
) -> AsyncGenerator[Chunk]:
    done = Usage(0, 0)
    for at, prompt in enumerate(job.prompts):
        pieces = _pieces(job, prompt, slots, run) if job.max_tokens else _nothing(job, await count(prompt))
        chosen = _best(job, pieces) if job.best_of > job.n else pieces
        echoed: set[int] = set()
        usage = done
        async with aclosing(chosen):
            async for chunk in chosen:
                usage = _sum(done, chunk.usage)
                text = chunk.text
                if job.echo and chunk.index not in echoed:
                    echoed.add(chunk.index)
                    text = (prompt if isinstance(prompt, str) else await detokenize(prompt)) + text
                yield replace(chunk, index=at * job.n + chunk.index, text=text, usage=usage)
        done = usage


async def _pieces(job: Job, prompt: Prompt, slots: int, run: Run) -> AsyncGenerator[Chunk]:
    """All choices of one prompt."""
    decoder = Decoder(top_logprobs=job.logprobs or 0)
    for first in range(0, job.best_of, slots):
        body = {**job.body, "prompt": prompt, "n": min(slots, job.best_of - first)}
        if first and "seed" in body:
            body["seed"] += first
        decoder.next_call(first)
        async with aclosing(run(body)) as events:
            async for event in events:
                if "error" in event:
                    raise failure(event["error"], "prompt")
                for chunk in decoder.chunks(_as_chat(event)):
                    yield chunk if job.logprobs is not None or job.best_of > job.n else replace(chunk, logprobs=None)


async def _nothing(job: Job, prompt_tokens: int) -> AsyncGenerator[Chunk]:
    for index in range(job.n):
        yield Chunk(index, "", Usage(prompt_tokens, 0), finish_reason="length")


async def _best(job: Job, pieces: AsyncGenerator[Chunk]) -> AsyncGenerator[Chunk]:
    """The `n` choices whose tokens are likeliest on average; what the others took is in the usage."""
    found: dict[int, list[Chunk]] = {}
    usage = Usage(0, 0)
    async with aclosing(pieces):
        async for chunk in pieces:
            found.setdefault(chunk.index, []).append(chunk)
            usage = chunk.usage
    ranked = sorted(found.values(), key=_likelihood, reverse=True)
    for index, chunks in enumerate(ranked[: job.n]):
        for chunk in chunks:
            yield replace(
                chunk, index=index, usage=usage, logprobs=chunk.logprobs if job.logprobs is not None else None
            )


def _likelihood(chunks: list[Chunk]) -> float:
    values = [entry["logprob"] for chunk in chunks for entry in chunk.logprobs or ()]
    return sum(values) / len(values) if values else 0.0


def _as_chat(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event of llama.cpp's completions in the form of its chat's, which the decoder reads."""
    choices = [{**choice, "delta": {"content": choice["text"]}} for choice in event.get("choices", ())]
    return {**event, "choices": choices}


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(
        one.prompt_tokens + other.prompt_tokens,
        one.completion_tokens + other.completion_tokens,
        one.cached_tokens + other.cached_tokens,
    )
