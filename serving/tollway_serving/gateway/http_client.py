"""Requests to models over keep-alive connections (`http_connection`): `upstream.Upstream` as `app` makes it.

A library's client was most of what relaying cost (docs/decisions.md). Nothing here follows redirects, keeps cookies,
decompresses, or asks the environment for a proxy.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, urlsplit

from tollway_serving.contract.catalogue import Target, Timeouts
from tollway_serving.gateway.http_connection import Connection, HttpAnswer, Origin, Pool
from tollway_serving.gateway.limit import Limit
from tollway_serving.gateway.secrets import Secrets
from tollway_serving.gateway.upstream import UpstreamFailed, request_headers, shown_secrets

_MAX_ADDRESSES = 4096
_PORTS: Final = {"http": 80, "https": 443}


def _parse(url: str) -> tuple[Origin, bytes, bytes]:
    """Where to connect, the Host header, the path's beginning. ValueError: no URL that can be asked."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("not an http(s) URL of a host and a path")
    origin = Origin(parts.hostname, parts.port or _PORTS[parts.scheme], parts.scheme == "https")
    host = origin.host.encode("idna") if ":" not in origin.host else b"[%b]" % origin.host.encode("ascii")
    authority = host if parts.port is None else b"%b:%d" % (host, parts.port)
    return origin, authority, quote(parts.path, safe="/%:@!$&'()*+,;=~").encode("ascii")


@dataclass(frozen=True, slots=True)
class _Address:
    target: Target
    secrets: Mapping[str, str] = field(repr=False)
    origin: Origin
    base: bytes  # of the path
    lines: bytes = field(repr=False)  # of the head, that are the same for each request


class HttpUpstream:
    """See `upstream.Upstream`. There is no limit on connections: a model's `queuedRequests` bounds its calls."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._pool = Pool()
        self._addresses: dict[int, _Address] = {}  # by the identity of their targets, which they keep alive
        self._tls: ssl.SSLContext | None = None

    async def start(self) -> None:
        self._tls = await asyncio.to_thread(ssl.create_default_context)  # reads a few hundred certificates

    async def close(self) -> None:
        self._pool.close()

    async def post(self, target: Target, path: str, body: bytes, request_id: str, timeouts: Timeouts) -> HttpAnswer:
        address = self._address(target)
        head = b"POST %b%b HTTP/1.1\r\n%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (
            address.base,
            path.encode("ascii"),
            address.lines,
            request_id.encode("ascii"),
            len(body),
        )
        connection = self._pool.take(address.origin) or await self._connect(address.origin, timeouts.connect_ms / 1000)
        answer = connection.ask(head, body)
        try:
            await answer.head()
        except BaseException:
            answer.close()
            raise
        return answer

    def _address(self, target: Target) -> _Address:
        """What all requests to a target have in common, made once for as long as its secrets stay."""
        secrets = shown_secrets(target, self._secrets)
        known = self._addresses.get(id(target))
        if known is not None and known.target is target and known.secrets == secrets:
            return known
        try:
            origin, authority, base = _parse(target.url)
        except ValueError as error:
            raise UpstreamFailed("connect", f"no URL to ask: {error}") from error
        if len(self._addresses) >= _MAX_ADDRESSES:
            self._addresses.clear()
        lines = b"host: %b\r\n%b" % (authority, request_headers(target, secrets))
        known = self._addresses[id(target)] = _Address(target, secrets, origin, base, lines)
        return known

    async def _connect(self, origin: Origin, limit_s: float) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            with Limit(limit_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._pool, origin),
                    origin.host,
                    origin.port,
                    ssl=self._tls if origin.tls else None,
                )
        except TimeoutError as error:
            raise UpstreamFailed("connect", "no connection in time") from error
        except (OSError, UnicodeError) as error:
            raise UpstreamFailed("connect", f"no connection: {type(error).__name__}") from error
        return connection
