"""A small HTTP server that answers as a model does, and misbehaves on request: for the gateway's tests.

It speaks OpenAI's chat, older completions and embeddings.

It stands for what can't be had in a test: a paid provider, an engine that crashes mid-answer, one that sends garbage.
What it does is told by its `Behaviour`, or by a `Behaviour` queued for the next calls. Real sockets, raw bytes: nothing
of aiohttp's server tidies up what is meant to be broken.
"""

import asyncio
import base64
import contextlib
import json
import struct
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass
class Behaviour:
    """How one call is answered. Times are seconds."""

    status: int = 200
    word: str = "w"  # each token is this and its number
    words: int = 5  # generated tokens, unless the request's maximum is lower
    before: float = 0.0  # until the head
    first: float = 0.0  # between the head and the first event
    pause: float = 0.0  # between events
    split: int = 0  # bytes a write; 0: an event a write
    merge: bool = False  # all events in one write
    hang_after: int | None = None  # events, then silence
    cut_after: int | None = None  # events, then the connection breaks
    garbage_after: int | None = None  # events, then something that is no JSON
    error_after: int | None = None  # events, then an error event
    done: bool = True  # ends with [DONE]
    usage: bool = True  # obeys continuous_usage_stats and include_usage
    body: bytes | None = None  # instead of everything above, with `content_type`
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)  # further fields in each chunk or answer
    close_at_once: bool = False  # accepts and closes
    line_end: str = "\n"
    hold: asyncio.Event | None = None  # wait for it before the head
    gate: asyncio.Event | None = None  # wait for it before the last event
    prompt_tokens: int = 7
    overshoot: int = 0  # tokens beyond the request's maximum


@dataclass
class Seen:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)  # the gateway closed the connection early
    sent: int = 0  # events

    @property
    def chat(self) -> bool:
        return not self.path.endswith("/completions") or self.path.endswith("/chat/completions")

    @property
    def choices(self) -> int:
        prompt = self.body.get("prompt")
        several = isinstance(prompt, list) and not isinstance(prompt[0], int)
        return int(self.body.get("n", 1)) * (len(prompt) if several else 1)


class Backend:
    """`url` is what a model's target is set to. `calls` has every request, oldest first."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour or Behaviour()
        self.queue: deque[Behaviour] = deque()
        self.calls: list[Seen] = []
        self.arrived = asyncio.Event()  # set with each request; tests clear it
        self.running = 0
        self.most_running = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self) -> "Backend":
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def then(self, **changes: Any) -> None:
        """Queues a behaviour for one call."""
        self.queue.append(replace(self.behaviour, **changes))

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        except asyncio.IncompleteReadError:
            return False
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        seen = Seen(head[0].split(" ")[1], headers, json.loads(body) if body else {})
        self.calls.append(seen)
        behaviour = self.queue.popleft() if self.queue else self.behaviour
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.arrived.set()
        answer = asyncio.ensure_future(self._answer(seen, behaviour, writer))
        # A client that leaves ends the answer, as it does in a real engine.
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait([answer, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() or isinstance(answer.exception(), ConnectionError):
                seen.cancelled.set()
                return False
            return answer.result()
        finally:
            self.running -= 1
            for future in (answer, leaving):
                future.cancel()
            with contextlib.suppress(BaseException):
                await asyncio.gather(answer, leaving, return_exceptions=True)

    async def _answer(self, seen: Seen, b: Behaviour, writer: asyncio.StreamWriter) -> bool:
        if b.close_at_once:
            return False
        await asyncio.sleep(b.before)
        if b.hold is not None:
            await b.hold.wait()
        streamed = bool(seen.body.get("stream")) and b.status == 200 and b.body is None
        if not streamed:
            body = b.body if b.body is not None else json.dumps(self._whole(seen, b)).encode()
            self._head(writer, b, b.content_type, f"content-length: {len(body)}")
            await asyncio.sleep(b.first)
            if b.cut_after is not None:
                writer.write(body[: len(body) // 2])
                return False
            writer.write(body)
            await writer.drain()
            return True
        self._head(writer, b, "text/event-stream; charset=utf-8", "transfer-encoding: chunked")
        await asyncio.sleep(b.first)
        merged = b""
        async for data in self._events(seen, b):
            seen.sent += 1
            if b.merge:
                merged += data
            else:
                for part in [data[i : i + b.split] for i in range(0, len(data), b.split)] if b.split else [data]:
                    writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                    await writer.drain()
                    if b.split:
                        await asyncio.sleep(0)
        if merged:
            writer.write(f"{len(merged):x}\r\n".encode() + merged + b"\r\n")
        if b.cut_after is not None:
            await writer.drain()
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    @staticmethod
    def _head(writer: asyncio.StreamWriter, b: Behaviour, content_type: str, length: str) -> None:
        lines = [f"HTTP/1.1 {b.status} X", f"content-type: {content_type}", length]
        lines += [f"{name}: {value}" for name, value in b.headers.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    @staticmethod
    def _size(seen: Seen, b: Behaviour) -> int:
        limit = seen.body.get("max_completion_tokens") or seen.body.get("max_tokens") or b.words
        return min(b.words, limit) + b.overshoot

    def _whole(self, seen: Seen, b: Behaviour) -> dict[str, Any]:
        if b.status != 200:
            return {"error": {"message": "the model says no", "type": "x", "param": None, "code": None}}
        if seen.path.endswith("/embeddings"):
            return _embeddings(seen, b)
        size, n, chat = self._size(seen, b), seen.choices, seen.chat
        answer = {
            "id": "chatcmpl-backend" if chat else "cmpl-backend",
            "object": "chat.completion" if chat else "text_completion",
            "created": 1_700_000_000,
            "model": seen.body.get("model"),
            "choices": [
                {
                    "index": i,
                    **_generated(chat, " ".join(f"{b.word}{k}" for k in range(size))),
                    "finish_reason": "length" if size < b.words else "stop",
                }
                for i in range(n)
            ],
            **b.extra,
        }
        if b.usage:
            answer["usage"] = _usage(b.prompt_tokens, size * n)
        return answer

    async def _events(self, seen: Seen, b: Behaviour) -> AsyncIterator[bytes]:
        size, n, chat = self._size(seen, b), seen.choices, seen.chat
        options = seen.body.get("stream_options") or {}
        continuous = b.usage and options.get("continuous_usage_stats")
        chunk = {
            "id": "chatcmpl-backend" if chat else "cmpl-backend",
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": 1_700_000_000,
            "model": seen.body.get("model"),
            **b.extra,
        }
        events: list[dict[str, Any]] = []
        for i in range(n):
            for k in range(size):
                text = f"{b.word}{k}" if k == 0 else f" {b.word}{k}"
                delta: dict[str, Any] = {"content": text}
                if k == 0:
                    delta["role"] = "assistant"
                piece = {"delta": delta} if chat else {"text": text}
                events.append({**chunk, "choices": [{"index": i, **piece, "finish_reason": None}]})
                if continuous:
                    events[-1]["usage"] = _usage(b.prompt_tokens, i * size + k + 1)
            end_piece: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
            last = {"index": i, **end_piece, "finish_reason": "length" if size < b.words else "stop"}
            events.append({**chunk, "choices": [last]})
        if b.usage and options.get("include_usage"):
            events.append({**chunk, "choices": [], "usage": _usage(b.prompt_tokens, size * n)})
        end = b.line_end
        for number, event in enumerate(events):
            if number == b.hang_after:
                await asyncio.sleep(3600)
            if number == b.cut_after:
                return
            if number == b.garbage_after:
                yield f"data: <html>{end}{end}".encode()
            if number == b.error_after:
                yield f'data: {{"error": {{"message": "CUDA error at 0xdead", "code": 500}}}}{end}{end}'.encode()
                return
            if b.gate is not None and number == len(events) - 1:
                await b.gate.wait()
            yield f"data: {json.dumps(event)}{end}{end}".encode()
            if b.pause:
                await asyncio.sleep(b.pause)
        if b.done:
            yield f"data: [DONE]{end}{end}".encode()


def _generated(chat: bool, text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}} if chat else {"text": text}


def _embeddings(seen: Seen, b: Behaviour) -> dict[str, Any]:
    """Each text's vector has its length in it, and the items come in reverse: they are told apart by their index."""
    given = seen.body["input"]
    texts = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    data: list[dict[str, Any]] = [
        {"object": "embedding", "index": at, "embedding": vector([len(text), 0.5], seen.body.get("encoding_format"))}
        for at, text in enumerate(texts)
    ]
    answer = {"object": "list", "data": data[::-1], "model": "backend", **b.extra}
    if b.usage:
        tokens = b.prompt_tokens * len(texts)
        answer["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return answer


def vector(numbers: list[float], encoding: str | None) -> Any:
    if encoding == "base64":
        return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
    return numbers


def _usage(prompt: int, output: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
