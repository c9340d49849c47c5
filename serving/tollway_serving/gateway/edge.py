"""What stands before Serve's own handling of a request: named by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH.

In a gateway's replica it hands requests to the gateway at once. Serve's own way there (a context, two ids, two tasks
and its counts for each request) gives the gateway nothing for what it costs: it bounds, counts, logs and watches its
requests itself, the number of its replicas is fixed, and the server of a replica that ends waits for its
open requests. Health checks stay Serve's, so that HAProxy sees what Serve knows.

Elsewhere (a model's replica, the proxies) it removes the request headers that Serve would obey from anyone: a client
could set the timeout with them, or keep a call running after it left.
"""

import asyncio
from typing import Any, Final, Protocol

from starlette.middleware import Middleware

from tollway_serving.gateway.ids import valid_request_id

_CONTROL: Final = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve_multiplexed_model_id",
        b"serve-multiplexed-model-id",
        b"x-session-id",
    }
)
_REQUEST_ID: Final = b"x-request-id"
_OF_SERVE: Final = "/-/"


class Direct(Protocol):
    """A gateway in this process, on the event loop that it was started on."""

    async def direct(self, scope: Any, receive: Any, send: Any) -> None: ...


_here: tuple[Direct, asyncio.AbstractEventLoop] | None = None


def answer_here(gateway: Direct | None) -> None:
    """From now on (None: no longer) requests to this process are that gateway's. Called on its event loop."""
    global _here  # noqa: PLW0603 - Serve makes the middleware by itself, in the same process
    _here = None if gateway is None else (gateway, asyncio.get_running_loop())


class Edge:
    """Pure ASGI: to the gateway of this process, or on to Serve with no more headers than it may see."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            # Serve may run its server in another thread than the gateway (RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD).
            if _here is not None and _here[1] is asyncio.get_running_loop() and not scope["path"].startswith(_OF_SERVE):
                await _here[0].direct(scope, receive, send)
                return
            headers = scope["headers"]
            for name, value in headers:
                if name in _CONTROL or (name == _REQUEST_ID and valid_request_id(value) is None):
                    scope["headers"] = [header for header in headers if _kept(*header)]
                    break
        await self._app(scope, receive, send)


def _kept(name: bytes, value: bytes) -> bool:
    return name not in _CONTROL and (name != _REQUEST_ID or valid_request_id(value) is not None)


def middlewares() -> list[Middleware]:
    """What Serve asks this module for."""
    return [Middleware(Edge)]
