"""One connection to a model, and those that wait for their next call: HTTP/1.1, parsed by httptools. For `http_client`.

Heads and trailers are bounded, and a reader that is slow stops the model's sending.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import Final, cast

import httptools

from tollway_serving.gateway.limit import Alarm
from tollway_serving.gateway.upstream import Sink, Trouble, UpstreamFailed, media_type, retry_seconds

_MAX_UNREAD = 256 * 1024  # bytes of a body that wait for their reader before the model has to wait, too
_MAX_OVERHEAD = 64 * 1024  # bytes in a row that are no body: a head, trailers, the extensions of chunks
_ONE_WRITE = 64 * 1024  # a longer body is not copied behind its head
_IDLE_S = 4.0  # before uvicorn (5 s) closes it: a POST on a closing connection is not repeated
_ASKED_FOR: Final = frozenset((b"content-type", b"retry-after", b"x-ignored-parameters"))


@dataclass(frozen=True, slots=True)
class Origin:
    host: str
    port: int
    tls: bool


class HttpAnswer:
    """See `upstream.Answer`."""

    __slots__ = ("_connection", "_done", "_failed", "_left", "_parts", "_silence", "_sink", "_size", "_waiter",
                 "content_type", "ignored", "retry_after_s", "status", "waiting_since")  # fmt: skip

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._parts: list[bytes] = []
        self._size = 0
        self._done = False
        self._failed: tuple[Trouble, str] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Sink | None = None  # is given what comes while somebody waits in `pump`
        self._left: bytes | None = None  # by the sink, for the one who waits
        self._silence: _Silence | None = None
        self.waiting_since = 0.0  # monotonic; 0: nobody waits
        self.status = 0
        self.content_type = ""
        self.retry_after_s: int | None = None
        self.ignored: tuple[str, ...] = ()

    async def head(self) -> None:
        """Returns when the fields of the head are there."""
        while not self.status:
            await self._change()

    async def chunk(self) -> bytes:
        while not self._parts:
            if self._done:
                return b""
            await self._change()
        return self._take()

    async def pump(self, sink: Sink) -> bytes | None:
        while self._parts or not self._done:
            if self._parts:
                left = sink(self._take())
            else:
                self._sink = sink
                try:
                    await self._change()
                finally:
                    self._sink = None
                left, self._left = self._left, None
            if left is not None:
                return left
        return None

    def _take(self) -> bytes:
        parts, self._parts = self._parts, []
        self._size = 0
        if not self._done:  # else the connection is another call's by now
            self._connection.resume()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _change(self) -> None:
        if self._failed is not None:
            raise UpstreamFailed(*self._failed)
        self._waiter = self._connection.loop.create_future()
        self.waiting_since = time.monotonic()
        try:
            await self._waiter
        finally:
            self._waiter = None
            self.waiting_since = 0.0

    def pause(self, seconds: float) -> None:
        if not self._done:
            self._connection.pause(seconds)

    def limit_silence(self, seconds: float) -> None:
        self._silence = _Silence(self, seconds)
        self._silence.set(self._connection.loop)

    def close(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
        if not self._done:
            self._connection.abort()

    # What the connection says.

    def begin(self, status: int, headers: dict[bytes, bytes]) -> None:
        self.status = status
        self.content_type = media_type(headers.get(b"content-type", b""))
        if retry_after := headers.get(b"retry-after"):
            self.retry_after_s = retry_seconds(retry_after.decode("latin-1").strip())
        if ignored := headers.get(b"x-ignored-parameters"):
            self.ignored = tuple(name.strip() for name in ignored.decode("latin-1").split(","))
        self.wake()

    def feed(self, data: bytes) -> bool:
        """Whether there is room for more. A waiter's task goes on only if its sink leaves something to do."""
        if self._sink is None or self._waiter is None or self._waiter.done():
            self._parts.append(data)
            self._size += len(data)
            self.wake()
            return self._size < _MAX_UNREAD
        try:
            self._left = self._sink(data)
        except Exception as error:
            self._sink = None
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(error)
            return True
        if self._left is None:
            self.waiting_since = time.monotonic()
        else:
            self._sink = None
            self.wake()
        return True

    def finish(self) -> None:
        self._done = True
        self.wake()

    def fail(self, trouble: Trouble, detail: str) -> None:
        if self._failed is None and not self._done:
            self._failed = (trouble, detail)
            self.wake(self._failed)

    def wake(self, failed: tuple[Trouble, str] | None = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            if failed is not None:
                self._waiter.set_exception(UpstreamFailed(*failed))
            else:
                self._waiter.set_result(None)


class _Silence(Alarm):
    """One for a whole stream, not one a chunk."""

    __slots__ = ("_answer", "_seconds")

    def __init__(self, answer: HttpAnswer, seconds: float) -> None:
        super().__init__(seconds)
        self._answer = answer
        self._seconds = seconds

    def ring(self) -> None:
        now, since = time.monotonic(), self._answer.waiting_since
        if since and now - since >= self._seconds:
            self._answer.fail("timeout", "silent for too long")
        else:
            self.move((since or now) + self._seconds)
            self.set(asyncio.get_running_loop())


class Connection(asyncio.Protocol):
    """One call at a time. Its parser calls what begins with `on_`."""

    def __init__(self, pool: "Pool", origin: Origin) -> None:
        self.loop = asyncio.get_running_loop()
        self.idle_since = 0.0
        self._pool = pool
        self._origin = origin
        self._body: list[bytes] = []  # of one read
        self.on_body = self._body.append  # a stream has a piece for each event: no Python a piece
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: HttpAnswer | None = None
        self._headers: dict[bytes, bytes] = {}
        self._bounded = False  # the head says where the body ends
        self._begun = False
        self._complete = False
        self._kept = False  # another call may follow
        self._paused = False
        self._resuming: asyncio.TimerHandle | None = None
        self._overhead = 0  # bytes since the last ones of a body
        self._fields = 0  # bytes of headers and trailers

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, head: bytes, body: bytes) -> HttpAnswer:
        transport = self._transport
        assert transport is not None  # noqa: S101  # who has this connection has it connected
        self._answer = HttpAnswer(self)
        self._headers = {}
        self._bounded = self._begun = self._complete = False
        self._overhead = self._fields = 0
        if len(body) <= _ONE_WRITE:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        return self._answer

    def pause(self, seconds: float | None = None) -> None:
        """Until `resume`, or for so long."""
        if self._paused or self._transport is None:
            return
        self._paused = True
        self._transport.pause_reading()
        if seconds is not None:
            self._resuming = self.loop.call_later(seconds, self.resume)

    def resume(self) -> None:
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        self._answer = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        answer, self._answer = self._answer, None
        if answer is None:
            self._pool.forget(self._origin, self)
        elif error is None and self._begun and not self._bounded:
            answer.finish()
        else:
            answer.fail("broken", f"broke off: {type(error).__name__ if error is not None else 'closed'}")

    def data_received(self, data: bytes) -> None:
        if self._answer is None:  # nobody asked
            self.abort()
            return
        self._overhead += len(data)
        wrong = None
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            wrong = error
        if body := self._body:
            self._overhead = 0
            answer = self._answer
            if answer is not None and not answer.feed(body[0] if len(body) == 1 else b"".join(body)):
                self.pause()
            body.clear()
        if wrong is not None:
            if not self._complete:
                self._broken(f"no HTTP: {type(wrong).__name__}")
                return
            self._kept = False  # what follows the answer is none
        if self._complete:
            answer, self._answer = self._answer, None
            self.resume()
            if self._kept:
                self._pool.give_back(self._origin, self)
            else:
                self.abort()
            if answer is not None:
                answer.finish()
        elif self._overhead > _MAX_OVERHEAD:
            self._broken("its head or trailers are too long")

    def _broken(self, detail: str) -> None:
        answer = self._answer
        self.abort()
        if answer is not None:
            answer.fail("broken", detail)

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("an answer that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += len(name) + len(value) + 4
        if self._fields > _MAX_OVERHEAD:
            raise ValueError("its head or trailers are too long")
        if self._begun:
            return  # trailers
        name = name.lower()
        if name in _ASKED_FOR:
            self._headers.setdefault(name, value)
        elif name in (b"content-length", b"transfer-encoding"):
            self._bounded = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            self._headers.clear()  # early hints: the answer follows
            self._bounded = False
            return
        self._begun = True
        self._bounded = self._bounded or status in (204, 304)
        self._overhead = 0
        if self._answer is not None:
            self._answer.begin(status, self._headers)

    def on_message_complete(self) -> None:
        if self._begun:
            self._complete = True
            self._kept = self._bounded and self._parser.should_keep_alive()  # (after the message it would say False)


class Pool:
    """Connections that wait for their next call, by where they lead; the one used last is taken first."""

    def __init__(self) -> None:
        self._idle: dict[Origin, deque[Connection]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def take(self, origin: Origin) -> Connection | None:
        waiting = self._idle.get(origin)
        while waiting:
            connection = waiting.pop()
            if connection.usable:
                return connection
        return None

    def give_back(self, origin: Origin, connection: Connection) -> None:
        connection.idle_since = connection.loop.time()
        self._idle.setdefault(origin, deque()).append(connection)
        if self._timer is None:
            self._timer = connection.loop.call_later(_IDLE_S / 4, self._sweep, connection.loop)

    def forget(self, origin: Origin, connection: Connection) -> None:
        waiting = self._idle.get(origin)
        if waiting and connection in waiting:
            waiting.remove(connection)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        late = loop.time() - _IDLE_S * 3 / 4  # it comes by every quarter
        for origin, waiting in list(self._idle.items()):
            while waiting and waiting[0].idle_since < late:
                waiting.popleft().abort()
            if not waiting:
                del self._idle[origin]
        self._timer = loop.call_later(_IDLE_S / 4, self._sweep, loop) if self._idle else None

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for waiting in self._idle.values():
            while waiting:
                waiting.pop().abort()
