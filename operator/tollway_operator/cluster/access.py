"""Where the API server is and who we are there: one connector and credentials that `Api` and Kopf share.

Kopf's own login functions read the ServiceAccount or the kubeconfig. A pod's token is replaced about hourly, so it is
read again every minute, and at once when the server no longer takes it.
"""

import asyncio
import sys
import time
from collections.abc import Callable

import aiohttp
import kopf
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, ClientSession

from tollway_operator.errors import Refused

_REREAD_SECONDS = 60.0

OnAnswer = Callable[[str, bool, int], None]
"""Told of every answer to Kopf: path, whether it is a watch (else a list), HTTP status."""


class Access:
    """Must be made and closed inside the running event loop."""

    def __init__(self) -> None:
        self._info = _read()
        self._headers = self._info.as_http_headers()
        self._read_at = time.monotonic()
        # No limit: each watched kind and namespace holds a connection for good; our own calls bound themselves.
        self._connector = aiohttp.TCPConnector(
            ssl=self._info.as_ssl_context(),
            limit=0,
            enable_cleanup_closed=sys.version_info < (3, 12, 7),  # before, a cancelled call's transport stays open
        )
        self._sessions: list[ClientSession] = []

    @property
    def server(self) -> str:
        return self._info.server.rstrip("/")

    def session(self, on_answer: OnAnswer | None = None) -> ClientSession:
        """A session that authenticates each request; `close` ends it."""

        async def authenticate(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
            request.headers.update(self._current())
            answer = await handler(request)
            if answer.status == 401 and self._renew():
                answer.release()
                request.headers.update(self._headers)
                answer = await handler(request)
            if on_answer is not None and request.method == "GET":
                on_answer(request.url.path, request.url.query.get("watch") == "true", answer.status)
            return answer

        session = ClientSession(
            connector=self._connector,
            connector_owner=False,
            middlewares=(authenticate,),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "tollway-operator"},
        )
        self._sessions.append(session)
        return session

    async def close(self) -> None:
        for session in self._sessions:
            await session.close()
        await self._connector.close()
        await asyncio.sleep(0)  # in which the aborted transports close their sockets

    def _current(self) -> dict[str, str]:
        if time.monotonic() - self._read_at > _REREAD_SECONDS:
            self._renew()
        return self._headers

    def _renew(self) -> bool:
        """Reads the credentials again; whether they are new."""
        self._read_at = time.monotonic()
        headers = _read().as_http_headers()
        changed = headers != self._headers
        self._headers = headers
        return changed


def _read() -> kopf.ConnectionInfo:
    settings = kopf.OperatorSettings()
    info = kopf.login_with_service_account(settings=settings) or kopf.login_with_kubeconfig(settings=settings)
    if info is None:
        raise Refused("No Kubernetes API server: run inside a pod with a ServiceAccount, or set KUBECONFIG.")
    if not info.as_http_headers() and not (info.certificate_path or info.certificate_data):
        raise Refused(
            "The kubeconfig's user has neither a token nor a client certificate (programs under `exec` are not run): "
            "use one with a token, such as `kubectl create token` prints."
        )
    return info
