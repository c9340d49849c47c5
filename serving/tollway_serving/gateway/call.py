"""One HTTP request from its head to its last byte: body in, answer out, what is known of it for log and metrics.

Made by `app` for each request and handed to a route. Knows ASGI, nothing of models or money.
"""

import asyncio
import json
import re
import time
from collections.abc import Coroutine, Generator
from functools import partial
from hashlib import sha256
from typing import Any

import orjson

from tollway_serving.gateway import sse
from tollway_serving.gateway.errors import ApiError
from tollway_serving.gateway.heartbeat import Heartbeat
from tollway_serving.gateway.ids import uuid7, valid_request_id
from tollway_serving.gateway.limit import Alarm, Limit
from tollway_serving.ledger.ops import Repeat

Header = tuple[bytes, bytes]

IDEMPOTENCY_KEY = b"idempotency-key"

_ESCAPED_COLON = re.compile(rb"\\u003[aA]")
_JSON = b"application/json"
_WATCH_AFTER_S = 0.04
_MOST_OPENED = 1_000_000  # braces and brackets: an empty object takes 30 times its two bytes of memory
_STREAM: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
_CLOSE = ((b"connection", b"close"),)  # the rest of the body would be read for nothing


class ClientGone(Exception):
    """The client left before its answer was complete; nobody is there to be told."""


class Call:
    """`record` collects the fields of the access log line."""

    __slots__ = (
        "_emit_id",
        "_headers",
        "_heartbeat",
        "_receive",
        "_send",
        "_sending",
        "_watch",
        "began",
        "began_at",
        "body_sha256",
        "code",
        "gone",
        "model",
        "plan",
        "record",
        "repeat",
        "request_id",
        "rest",
        "route",
        "scope",
        "sent_at",
        "started",
        "status",
        "streaming",
    )

    def __init__(self, scope: Any, receive: Any, send: Any, emit_id: bool) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._emit_id = emit_id
        self._headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))  # the first one stays
        self.started = time.monotonic()
        self.began_at = time.time()
        self.request_id = valid_request_id(self.header(b"x-request-id")) or uuid7()
        self.route = "unknown"
        self.rest = ""  # of the path, where a route takes it
        self.plan = "none"
        self.model = "none"
        self.status = 0
        self.code: str | None = None
        self.began = False  # the answer's head is out
        self.gone = False
        self.streaming = False  # events are going out, and the last one is not
        self.sent_at: float | None = self.started
        self.record: dict[str, Any] = {}
        self.body_sha256 = ""  # where the client has an Idempotency-Key
        self.repeat: Repeat | None = None  # that request, if it is answered here and now
        self._watch: _Watch | None = None
        self._heartbeat: Heartbeat | None = None
        self._sending: _Begun | None = None

    def header(self, name: bytes) -> bytes | None:
        """A request header by its lower-case name; the first one if it came twice."""
        return self._headers.get(name)

    def last_header(self, name: bytes) -> bytes | None:
        """The last of them: what the nearest proxy added behind those that came with the request."""
        return next((bytes(value) for each, value in reversed(self.scope["headers"]) if each == name), None)

    def milliseconds(self) -> int:
        return int((time.monotonic() - self.started) * 1000)

    async def json(self, limit: int, timeout_s: float) -> Any:
        """The body, parsed; ApiError for anything that is not bounded, complete, plain JSON."""
        headers = self._headers
        if (kind := headers.get(b"content-type", _JSON)) != _JSON and not _is_json(kind):
            raise ApiError("invalid_value", "The Content-Type must be application/json.")
        if (coding := headers.get(b"content-encoding")) and coding.strip().lower() != b"identity":
            raise ApiError("invalid_value", "A compressed body is not supported; send it without Content-Encoding.")
        body = await self.body(limit, timeout_s)
        if len(body) > _MOST_OPENED and body.count(b"{") + body.count(b"[") > _MOST_OPENED:
            raise ApiError("request_too_large", f"The body may have at most {_MOST_OPENED} objects and lists.")
        if IDEMPOTENCY_KEY in headers:
            self.body_sha256 = sha256(body).hexdigest()
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise ApiError("invalid_json", f"The body is not valid JSON: {str(error)[:200]}.") from None
        try:
            # A name that came twice leaves fewer colons than were sent, unless some were sent as escapes: the cheap
            # test for what few ever do.
            doubled = body.count(b":") != orjson.dumps(value).count(b":") or (
                b"\\u003" in body and _ESCAPED_COLON.search(body) is not None
            )
        except TypeError:
            raise ApiError("invalid_json", "The body is nested too deeply.") from None
        if doubled and (name := await asyncio.to_thread(_twice, body)) is not None:
            raise ApiError("invalid_json", f"The name '{name[:64]}' stands twice in one object.")
        return value

    async def body(self, limit: int, timeout_s: float) -> bytes:
        length = self._headers.get(b"content-length")
        if length is not None and length.isdigit() and int(length) > limit:
            raise _too_large(limit)
        kept: bytearray | None = None  # one buffer, so that a body in tiny pieces takes no more memory than its bytes
        try:
            with Limit(timeout_s):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        self.gone = True
                        raise ClientGone
                    data: bytes = message.get("body", b"")
                    if len(data) + (len(kept) if kept is not None else 0) > limit:
                        raise _too_large(limit)
                    if kept is None and not message.get("more_body"):
                        return data
                    kept = kept if kept is not None else bytearray()
                    kept += data
                    if not message.get("more_body"):
                        return bytes(kept)
        except TimeoutError:
            raise ApiError("invalid_json", "The body did not arrive in time.", headers=_CLOSE) from None

    def watch(self) -> None:
        """From here on a client that leaves cancels the calling task; `gone` tells that from other cancellations."""
        task = asyncio.current_task()
        if task is not None and self._watch is None:
            self._watch = _Watch(self, task)
            self._watch.set(task.get_loop())

    def unwatch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            self._heartbeat = None

    async def wait_gone(self) -> None:
        """Returns when the client has left."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True

    async def begin(self, status: int, headers: list[Header]) -> None:
        """Sends the answer's head."""
        self.status = status
        self.began = True
        if self._emit_id:
            headers.append((b"x-request-id", self.request_id.encode("ascii")))
        headers.append((b"openai-processing-ms", b"%d" % self.milliseconds()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, data: bytes, more: bool = True) -> None:
        self.sent_at = None
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self.sent_at = time.monotonic()

    def send_now(self, data: bytes) -> bool:
        """The same without an await, for more of a stream. False: the client is slow, and `sent` has to be awaited
        before anything else is sent."""
        self.sent_at = None
        sending = self._send({"type": "http.response.body", "body": data, "more_body": True})
        try:
            waits_for = sending.send(None)
        except StopIteration:
            self.sent_at = time.monotonic()
            return True
        self._sending = _Begun(sending, waits_for)
        return False

    async def sent(self) -> None:
        """Returns when the client has taken what `send_now` could not send at once."""
        if self._sending is not None:
            await self._sending
            self._sending = None
            self.sent_at = time.monotonic()

    def keep_alive(self, interval_s: float) -> None:
        """The answer will be a stream: comments go out whenever it is silent for so long, even before it begins."""
        if self._heartbeat is None:
            self._heartbeat = Heartbeat(self, interval_s)

    async def comment(self, text: str) -> None:
        """A heartbeat's. The first thing sent, it begins the answer with the headers that are known."""
        if not self.began:
            await self._begin_stream([])
        await self.send(sse.comment(text))

    async def stream(self, headers: list[Header]) -> None:
        """Begins a stream. Where a heartbeat did so before, `headers` follow as comments."""
        if self._heartbeat is not None:
            await self._heartbeat.quiet()
        if self.began:
            await self.send(_late(headers))
        else:
            await self._begin_stream(headers)

    async def _begin_stream(self, headers: list[Header]) -> None:
        self.streaming = True
        await self.begin(200, [*_STREAM, *headers])

    async def end(self, data: bytes) -> None:
        """A stream's last bytes: nothing leaves after them."""
        if self._heartbeat is not None:
            await self._heartbeat.stop()
        self.streaming = False
        await self.send(data, more=False)

    async def respond(self, status: int, body: bytes, headers: list[Header] | None = None) -> None:
        """A whole answer in JSON."""
        await self.begin(
            status,
            [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                *(headers or ()),
            ],
        )
        await self.send(body, more=False)

    async def fail(self, error: ApiError) -> None:
        """Answers an error: in a stream that has begun as an event, and not at all once an answer's end is out."""
        self.code = error.code
        if self._heartbeat is not None:
            await self._heartbeat.stop()
        headers = list(error.headers)
        if error.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % error.retry_after_s))
        if self.streaming:
            await self.end(_late(headers) + sse.event(error.body()))
        elif not self.began:
            await self.respond(error.status, error.body(), headers)


class _Begun:
    """A coroutine that ran until it waits for something: awaiting this is awaiting the rest of it."""

    __slots__ = ("_coroutine", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        waits_for = self._waits_for
        while True:
            try:
                value = yield waits_for
            except BaseException as error:
                step = partial(self._coroutine.throw, error)
            else:
                step = partial(self._coroutine.send, value)
            try:
                waits_for = step()
            except StopIteration:
                return


class _Watch(Alarm):
    """Only calls that take a while are watched: the server remembers who left before, and a task costs more."""

    __slots__ = ("_call", "_task", "_watching")

    def __init__(self, call: Call, task: "asyncio.Task[Any]") -> None:
        super().__init__(_WATCH_AFTER_S)
        self._call = call
        self._task = task
        self._watching: asyncio.Task[None] | None = None

    def ring(self) -> None:
        self._watching = asyncio.create_task(self._wait())

    def cancel(self) -> None:
        super().cancel()
        if self._watching is not None:
            self._watching.cancel()

    async def _wait(self) -> None:
        await self._call.wait_gone()
        self._task.cancel()


def _late(headers: list[Header]) -> bytes:
    """Headers for which it is too late, as comments."""
    return b"".join(b": %b: %b\n" % header for header in headers) + b"\n" if headers else b""


def _is_json(content_type: bytes) -> bool:
    kind = content_type.split(b";", 1)[0].strip().lower()
    return kind in (b"", _JSON) or (kind.startswith(b"application/") and kind.endswith(b"+json"))


def _too_large(limit: int) -> ApiError:
    return ApiError("request_too_large", f"The body may have at most {limit} bytes.", headers=_CLOSE)


def _twice(body: bytes) -> str | None:
    """The first name that stands twice in one object."""
    doubled: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> None:
        seen = set()
        for name, _ in items:
            if name in seen:
                doubled.append(name)
            seen.add(name)

    json.loads(body, object_pairs_hook=pairs)
    return doubled[0] if doubled else None
