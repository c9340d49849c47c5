"""The raw ASGI application around an engine; each engine's deployment builds one in its replica.

Routes (below the application's prefix): GET /v1/models, POST /v1/tokenize, and what the engine can do of POST
/v1/chat/completions, /v1/completions, /v1/embeddings. Without the internal token every path is a plain 404, as if
nothing were there: only gateways may call models.
"""

import asyncio
import hmac
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import structlog

from tollway_serving.engines.answers import ChatShape, CompletionShape, Shape
from tollway_serving.engines.protocol import (
    ChatEngine,
    Chunk,
    CompletionEngine,
    EmbeddingEngine,
    Engine,
    EngineError,
    Usage,
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

TOKEN_HEADER = b"x-tollway-token"
MAX_BODY = 32 * 2**20  # bytes; the gateway refuses larger ones first
MAX_IGNORED = 32
log = structlog.get_logger(__name__)


class InternalToken:
    """The tokens that gateways may show: a file of one a line, read again when it changes (at most once a second)."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._checked = 0.0
        self._stamp: tuple[int, int] | None = None
        self._tokens: tuple[bytes, ...] = ()

    def accepts(self, shown: bytes) -> bool:
        now = time.monotonic()
        if now - self._checked >= 1 or not self._tokens:
            self._checked = now
            self._reload()
        return any(hmac.compare_digest(shown, token) for token in self._tokens)

    def _reload(self) -> None:
        try:
            stat = self._file.stat()
            if (stat.st_mtime_ns, stat.st_ino) == self._stamp:
                return
            self._tokens = tuple(line.strip() for line in self._file.read_bytes().splitlines() if line.strip())
            self._stamp = (stat.st_mtime_ns, stat.st_ino)
        except OSError as error:
            log.warning("internal token can't be read; keeping the last one", error=str(error))


class EngineApp:
    """`await app(scope, receive, send)`. One instance serves all requests of a replica."""

    def __init__(self, engine: Engine, model_id: str, token: InternalToken) -> None:
        self._engine = engine
        self._model_id = model_id
        self._token = token
        self._created = int(time.time())
        self._routes: dict[tuple[str, str], Callable[[Receive, Send], Awaitable[None]]] = {
            ("POST", "/v1/tokenize"): self._tokenize,
            ("GET", "/v1/models"): self._models,
        }
        if isinstance(engine, ChatEngine):
            self._routes["POST", "/v1/chat/completions"] = partial(self._chat, engine)
        if isinstance(engine, CompletionEngine):
            self._routes["POST", "/v1/completions"] = partial(self._complete, engine)
        if isinstance(engine, EmbeddingEngine):
            self._routes["POST", "/v1/embeddings"] = partial(self._embed, engine)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await _lifespan(receive, send)
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        shown = next((value for name, value in scope["headers"] if name == TOKEN_HEADER), b"")
        route = self._routes.get((scope["method"], path))
        if route is None or not self._token.accepts(shown):
            return await _answer(send, 404, b"Not Found", b"text/plain; charset=utf-8")
        try:
            await route(receive, send)
        except EngineError as error:
            await _json(send, error.body(), error.status)
        except Exception:
            log.exception("request failed", path=path)
            failure = EngineError("The model failed.", status=500, type_="server_error", code="internal_error")
            await _json(send, failure.body(), failure.status)
        return None

    async def _models(self, receive: Receive, send: Send) -> None:
        model = {"id": self._model_id, "object": "model", "created": self._created, "owned_by": "tollway"}
        await _json(send, {"object": "list", "data": [model]})

    async def _tokenize(self, receive: Receive, send: Send) -> None:
        await _json(send, {"count": await self._engine.count_tokens(await _read_json(receive))})

    async def _chat(self, engine: ChatEngine, receive: Receive, send: Send) -> None:
        request = await _read_json(receive)
        await _until_gone(receive, self._generate(engine.chat(request), ChatShape(), request, send))

    async def _complete(self, engine: CompletionEngine, receive: Receive, send: Send) -> None:
        request = await _read_json(receive)
        shape = CompletionShape(request.get("logprobs"))
        await _until_gone(receive, self._generate(engine.complete(request), shape, request, send))

    async def _embed(self, engine: EmbeddingEngine, receive: Receive, send: Send) -> None:
        await _until_gone(receive, self._answer_vectors(engine, await _read_json(receive), send))

    async def _answer_vectors(self, engine: EmbeddingEngine, request: dict[str, Any], send: Send) -> None:
        answer = await engine.embed(request)
        await _json(send, {"object": "list", "model": self._model_id, **answer.body()})

    async def _generate(
        self, generator: AsyncGenerator[Chunk], shape: Shape, request: dict[str, Any], send: Send
    ) -> None:
        head = {"id": shape.id_prefix + uuid.uuid4().hex, "created": int(time.time()), "model": self._model_id}
        async with aclosing(generator) as chunks:
            if request.get("stream"):
                await _stream(chunks, shape, head, request.get("stream_options") or {}, send)
                return
            pieces = [chunk async for chunk in chunks]
        body = {**head, "object": shape.whole_object, "choices": shape.whole(pieces), "usage": pieces[-1].usage.body()}
        await _json(send, body, headers=_ignored(pieces[0]))


async def _stream(
    chunks: AsyncGenerator[Chunk], shape: Shape, head: dict[str, Any], options: dict[str, Any], send: Send
) -> None:
    """SSE. The first chunk decides the status: an error before it is still a plain JSON answer."""
    chunk: Chunk = await anext(chunks)
    include, continuous = bool(options.get("include_usage")), bool(options.get("continuous_usage_stats"))
    head = {**head, "object": shape.chunk_object}

    async def frame(body: dict[str, Any], more: bool = True) -> None:
        await send({"type": "http.response.body", "body": b"data: %b\n\n" % orjson.dumps(body), "more_body": more})

    async def event(choices: list[dict[str, Any]], usage: Usage) -> None:
        body = {**head, "choices": choices}
        if continuous or (include and not choices):
            body["usage"] = usage.body()
        elif include:
            body["usage"] = None
        await frame(body)

    headers = [(b"cache-control", b"no-cache"), *_ignored(chunk)]
    await _start(send, 200, b"text/event-stream; charset=utf-8", headers)
    try:
        while True:
            for choice in shape.choices(chunk):
                await event([choice], chunk.usage)
            following = await anext(chunks, None)
            if following is None:
                break
            chunk = following
        if include:
            await event([], chunk.usage)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})
    except EngineError as error:
        await frame(error.body(), more=False)
    except Exception:
        log.exception("generation failed after it began")
        failure = EngineError("The model failed.", status=500, type_="server_error", code="internal_error")
        await frame(failure.body(), more=False)


def _ignored(chunk: Chunk) -> list[tuple[bytes, bytes]]:
    """What the engine accepted without effect; the gateway adds it to its own list."""
    paths = [path for path in chunk.ignored if path.isascii() and path.isprintable() and "," not in path]
    return [(b"x-ignored-parameters", ", ".join(paths[:MAX_IGNORED]).encode())] if paths else []


async def _until_gone(receive: Receive, work: Awaitable[None]) -> None:
    """Awaits `work`, or cancels it as soon as the client is gone."""
    task = asyncio.ensure_future(work)

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        await asyncio.wait({task})
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if not task.cancelled():
        task.result()


async def _read_json(receive: Receive) -> dict[str, Any]:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise EngineError(f"The body is larger than {MAX_BODY} bytes.", status=413, code="request_too_large")
        if not message.get("more_body"):
            break
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise EngineError("The body is not valid JSON.", code="invalid_json") from None
    if not isinstance(parsed, dict):
        raise EngineError("The body must be a JSON object.", code="invalid_json")
    return parsed


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _start(send: Send, status: int, content_type: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type), *headers]}
    )


async def _answer(
    send: Send, status: int, body: bytes, content_type: bytes, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    await _start(send, status, content_type, [(b"content-length", str(len(body)).encode()), *headers])
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _json(
    send: Send, body: dict[str, Any], status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    await _answer(send, status, orjson.dumps(body), b"application/json", headers)
