"""Images behind links, for models of our own: those get them inline and open no connection themselves. For `fallback`.

A link is a client's, so the address is checked where the socket is made: what a name says a moment later, a redirect or
an odd way to write an address can't change where it goes. Nothing of ours is sent along.
"""

import asyncio
import base64
import socket
import ssl
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from tollway_serving.gateway.errors import ApiError
from tollway_serving.gateway.media import IMAGE_TYPES, Network, image_type, link, public_address

_AT_ONCE = 8  # links, of all requests
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_HOPS = 4
_CHUNK = 64 * 1024


class _NotPublic(OSError):
    pass


class _Resolver(AbstractResolver):
    """The system's, in threads of its own: a name server that hangs must not keep the gateway's other work waiting."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="resolve")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        def look() -> list[Any]:
            return socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)

        found = await asyncio.get_running_loop().run_in_executor(self._threads, look)
        return [
            ResolveResult(hostname=host, host=address[0], port=port, family=kind, proto=proto, flags=0)
            for kind, _, proto, _, address in found
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Fetcher:
    """One a replica. `limit` bounds all images of one request together, in bytes."""

    def __init__(self, limit: int, timeout_s: float, allowed: Sequence[Network]) -> None:
        self._limit = limit
        self._timeout_s = timeout_s
        self._allowed = tuple(allowed)
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def images(self, links: Sequence[tuple[str, str]]) -> dict[str, str]:
        """A data URL for each link; `links` are paths in the request and URLs. ApiError names the first one that can't
        be had."""
        if self._session is None:
            self._session = self._open()
        left = [self._limit]
        found: dict[str, str] = {}
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._all(links, left, found)
        except TimeoutError:
            path = next(path for path, url in links if url not in found)
            raise _refusal(path, f"did not come within {self._timeout_s:g} seconds") from None
        return found

    async def _all(self, links: Sequence[tuple[str, str]], left: list[int], found: dict[str, str]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for url, path in {url: path for path, url in reversed(links)}.items():
                    group.create_task(self._one(url, path, left, found))
        except* ApiError as errors:
            first = errors.exceptions[0]
            raise first from None

    def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=0,
            force_close=True,
            use_dns_cache=False,
            resolver=_Resolver(),
            socket_factory=self._socket,
            ssl=ssl.create_default_context(),  # not aiohttp's, which is as old as its import
        )
        return aiohttp.ClientSession(
            connector=connector,
            connector_owner=True,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            headers={"user-agent": "tollway", "accept": "image/*", "accept-encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None),
        )

    def _socket(self, info: Any) -> socket.socket:
        family, kind, proto, _, address = info
        if not public_address(address[0], self._allowed):
            raise _NotPublic("no public address")
        made = socket.socket(family, kind, proto)
        made.setblocking(False)
        return made

    async def _one(self, url: str, path: str, left: list[int], found: dict[str, str]) -> None:
        async with self._at_once:
            try:
                data = await self._get(url, path, left)
            except (aiohttp.ClientError, OSError, ValueError):
                # One answer for all: whether a name is known here, or a port open, is nobody's business.
                raise _refusal(path, "could not be fetched from a public https address") from None
        kind = image_type(data)
        if kind is None:
            raise _refusal(path, f"is no image; it can be {IMAGE_TYPES}")
        found[url] = f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"

    async def _get(self, text: str, path: str, left: list[int]) -> bytes:
        assert self._session is not None  # noqa: S101  # opened before
        url = link(text)
        for _ in range(_HOPS):
            async with self._session.get(url, allow_redirects=False) as answer:
                if answer.status in _REDIRECTS and "location" in answer.headers:
                    url = link(str(url.join(URL(answer.headers["location"]))))
                    continue
                if answer.status != 200:
                    raise _refusal(path, f"could not be fetched: status {answer.status}")
                data = bytearray()
                async for part in answer.content.iter_chunked(_CHUNK):
                    left[0] -= len(part)
                    if left[0] < 0:
                        raise _refusal(path, f"is too large: images may have {self._limit} bytes together")
                    data += part
                return bytes(data)
        raise _refusal(path, "could not be fetched: too many redirects")


def _refusal(path: str, what: str) -> ApiError:
    return ApiError("invalid_value", f"The image of '{path}' {what}.", param=f"{path}.image_url.url")
