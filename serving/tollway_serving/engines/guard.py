"""Our manners around an ASGI application that speaks OpenAI HTTP but is not ours: `vllm` and `custom` put it in front.

Only gateways get in, only to the routes of the contract, and errors leave in the contract's form. An answer that is no
error passes untouched.
"""

import re
from collections.abc import MutableMapping
from typing import Any, Protocol

import orjson

from tollway_serving.engines.app import TOKEN_HEADER, InternalToken, Receive, Scope, Send

_ROUTES = frozenset(
    {
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
    }
)
_TOO_LONG = re.compile("maximum (context|model|input|sequence) length|context length|max_model_len", re.IGNORECASE)
_LARGEST_ERROR = 1 << 20


class Application(Protocol):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class Guard:
    def __init__(self, app: Application, token: InternalToken) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        shown = next((value for name, value in scope["headers"] if name == TOKEN_HEADER), b"")
        if scope["type"] != "http" or (scope["method"], path) not in _ROUTES or not self._token.accepts(shown):
            if scope["type"] == "http":
                await _answer(send, 404, b"Not Found", b"text/plain; charset=utf-8")
            return None
        headers = [(name, value) for name, value in scope["headers"] if name != TOKEN_HEADER]
        inner = {**scope, "path": path, "raw_path": path.encode(), "root_path": "", "headers": headers}
        return await self._app(inner, receive, _Errors(send))


class _Errors:
    """`send`, but an answer that is an error is held until it is whole, and then written anew."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._status = 0  # of an error; 0: the answer is none, or not begun
        self._body = bytearray()

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._status = message["status"]
        elif self._status and message["type"] == "http.response.body":
            if len(self._body) < _LARGEST_ERROR:
                self._body += message.get("body", b"")
            if not message.get("more_body"):
                body = orjson.dumps(error_body(self._status, bytes(self._body)))
                await _answer(self._send, self._status, body, b"application/json")
        else:
            await self._send(message)


def error_body(status: int, body: bytes) -> dict[str, Any]:
    """OpenAI's form with a code that gateways understand. Servers write numbers there, or other words."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = None
    error = value.get("error", value) if isinstance(value, dict) else None
    found = error if isinstance(error, dict) else {}
    message = next((found[key] for key in ("message", "detail") if isinstance(found.get(key), str)), "")
    code = found.get("code")
    if 400 <= status < 500 and _TOO_LONG.search(message):
        code = "context_length_exceeded"
    elif not isinstance(code, str):
        code = "invalid_value" if status in (400, 422) else "internal_error" if status >= 500 else f"status_{status}"
    kind = "server_error" if status >= 500 else "invalid_request_error"
    said = message or ("The model failed." if status >= 500 else "The model refused the request.")
    param = found.get("param")
    return {"error": {"message": said, "type": kind, "param": param if isinstance(param, str) else None, "code": code}}


async def _answer(send: Send, status: int, body: bytes, content_type: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
