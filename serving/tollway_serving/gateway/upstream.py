"""The client to models: the one place that opens connections from the gateway. Used by `fallback`.

Everything behind `Upstream` and `Answer` may be replaced (an own protocol on httptools is several times cheaper).
Whatever goes wrong leaves here as UpstreamFailed; foreign exceptions don't.
"""

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Final, Literal, Protocol

import aiohttp

from tollway_serving.contract.catalogue import Target, Timeouts
from tollway_serving.gateway.secrets import Secrets

Trouble = Literal["connect", "timeout", "broken"]

_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,64}\Z")
_RESERVED: Final = frozenset({"host", "content-length", "content-type", "transfer-encoding", "connection", "accept"})


class UpstreamFailed(Exception):
    """No answer, or one that broke off. The message is for logs."""

    def __init__(self, trouble: Trouble, message: str) -> None:
        super().__init__(message)
        self.trouble = trouble


class Answer(Protocol):
    status: int
    content_type: str  # lower case, without parameters
    retry_after_s: int | None
    ignored: tuple[str, ...]  # what the model names in x-ignored-parameters

    async def chunk(self) -> bytes:
        """The next bytes as they came, b"" at the end. UpstreamFailed: broken off, or silent for too long."""

    def limit_silence(self, seconds: float) -> None:
        """From now on a `chunk` that waits for longer fails with "timeout"."""

    def close(self) -> None:
        """Ends the call now: a connection that is not read to its end is dropped, which stops the model."""


class Upstream(Protocol):
    async def start(self) -> None: ...
    async def close(self) -> None: ...
    async def post(self, target: Target, path: str, body: bytes, request_id: str, timeouts: Timeouts) -> Answer:
        """Sends the request; returns with the answer's head. The first byte's and the total time are the caller's."""


def request_headers(target: Target, request_id: str, secrets: Secrets) -> dict[str, str]:
    """Made from nothing: no header of a client ever reaches a model."""
    headers = {
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "accept-encoding": "identity",
        "user-agent": "tollway",
        "x-request-id": request_id,
    }
    headers.update(
        (name, value)
        for name, value in target.headers.items()
        if _NAME.match(name) and name.lower() not in _RESERVED and "\n" not in value and "\r" not in value
    )
    if target.internal and (token := secrets.internal_token()):
        headers["x-tollway-token"] = token
    if target.secret is not None:
        key = secrets.provider(target.secret)
        if key is None:
            raise UpstreamFailed("connect", f"the provider's key {target.secret} is missing in the secrets folder")
        headers["authorization"] = f"Bearer {key}"
    return headers


async def read_all(answer: Answer, limit: int) -> bytes:
    """The whole body; UpstreamFailed if it is longer than `limit` bytes."""
    parts, size = [], 0
    while data := await answer.chunk():
        size += len(data)
        if size > limit:
            raise UpstreamFailed("broken", f"the answer is longer than {limit} bytes")
        parts.append(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class _Silent(Exception):
    pass


class AiohttpAnswer:
    """One aiohttp response. Silence is looked for by one timer a stream, not one a chunk."""

    __slots__ = ("_response", "_silence_s", "_timer", "_waiting_since", "content_type", "ignored", "retry_after_s",
                 "status")  # fmt: skip

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._silence_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._waiting_since = 0.0
        self.status = response.status
        self.content_type = response.headers.get("content-type", "").split(";", 1)[0].strip().lower()
        self.retry_after_s = retry_seconds(response.headers)
        ignored = response.headers.get("x-ignored-parameters")
        self.ignored = tuple(name.strip() for name in ignored.split(",")) if ignored else ()

    async def chunk(self) -> bytes:
        self._waiting_since = time.monotonic()
        try:
            return await self._response.content.readany()
        except _Silent as error:
            raise UpstreamFailed("timeout", "silent for too long") from error
        except (aiohttp.ClientError, ConnectionError, ValueError) as error:
            raise UpstreamFailed("broken", f"broke off: {type(error).__name__}") from error
        finally:
            self._waiting_since = 0.0

    def limit_silence(self, seconds: float) -> None:
        self._silence_s = seconds
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        waited = time.monotonic() - self._waiting_since if self._waiting_since else 0.0
        if waited >= self._silence_s:
            self._response.content.set_exception(_Silent())
        else:
            self._timer = asyncio.get_running_loop().call_later(self._silence_s - waited, self._look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._response.content.is_eof():
            self._response.release()
        else:
            self._response.close()


class AiohttpUpstream:
    """Keep-alive connections, no cookies, no redirects, no proxies from the environment, no decompression."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        # Idle connections are dropped before uvicorn (5 s) does it: a POST on a closing one is not repeated.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0, use_dns_cache=True, ttl_dns_cache=10)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            max_line_size=16 * 1024,
            max_field_size=16 * 1024,
            read_bufsize=256 * 1024,
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(self, target: Target, path: str, body: bytes, request_id: str, timeouts: Timeouts) -> Answer:
        if self._session is None:
            raise UpstreamFailed("connect", "the client is not started")
        headers = request_headers(target, request_id, self._secrets)
        connect = aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_ms / 1000)
        try:
            response = await self._session.post(
                target.url + path, data=body, headers=headers, timeout=connect, allow_redirects=False
            )
        except aiohttp.ConnectionTimeoutError as error:
            raise UpstreamFailed("connect", "no connection in time") from error
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:
            raise UpstreamFailed("connect", f"no connection: {type(error).__name__}") from error
        except (aiohttp.ClientError, ConnectionError, ValueError) as error:
            raise UpstreamFailed("broken", f"no answer: {type(error).__name__}") from error
        return AiohttpAnswer(response)


def retry_seconds(headers: Mapping[str, str]) -> int | None:
    """A Retry-After in seconds between 1 and an hour."""
    text = headers.get("retry-after", "")
    return min(3600, max(1, int(text))) if text.isascii() and text.isdigit() and len(text) < 10 else None
