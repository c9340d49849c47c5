"""What stands before Serve's own handling of a request: named by RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH.

Serve obeys some request headers from anyone: a client could set the timeout with them, or keep a call running after it
left. They are removed here, where Serve has not looked yet; so is a request id that is none, which Serve would echo.
"""

from typing import Any, Final

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


class StripControlHeaders:
    """Pure ASGI; changes the list of headers only if there is something to remove."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
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
    return [Middleware(StripControlHeaders)]
