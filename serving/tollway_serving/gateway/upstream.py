"""What a call to a model is, whatever carries it out (`http_client`), and what every such call sends. For `fallback`.

Whatever goes wrong leaves as UpstreamFailed; foreign exceptions don't.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final, Literal, Protocol

from tollway_serving.contract.catalogue import OWN_HEADERS, Target, Timeouts
from tollway_serving.gateway.secrets import Secrets

Trouble = Literal["connect", "timeout", "broken"]

Sink = Callable[[bytes], bytes | None]
"""Takes bytes at once, in whatever the event loop is doing; answers what is left to do, None: nothing."""

_MEDIA_TYPES: Final = {text.encode(): text for text in ("application/json", "text/event-stream")}
_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,64}\Z")
_VALUE: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*\Z")
_SAME: Final = {
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
    "accept-encoding": "identity",
    "user-agent": "tollway",
}


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

    async def pump(self, sink: Sink) -> bytes | None:
        """Gives `sink` all that comes, as it comes, without waking up the waiting task: that costs more than most sinks
        do. Returns what a sink left, which may be b"", or None at the end. Fails like `chunk`, and with what the sink
        raises."""

    def pause(self, seconds: float) -> None:
        """Leaves what comes within this time to the network, to be read at once afterwards."""

    def limit_silence(self, seconds: float) -> None:
        """From now on a `chunk` that waits for longer fails with "timeout"."""

    def close(self) -> None:
        """Ends the call now: a connection that is not read to its end is dropped, which stops the model."""


class Upstream(Protocol):
    async def start(self) -> None: ...
    async def close(self) -> None: ...
    async def post(self, target: Target, path: str, body: bytes, request_id: str, timeouts: Timeouts) -> Answer:
        """Sends the request; returns with the answer's head. The first byte's and the total time are the caller's."""


def shown_secrets(target: Target, secrets: Secrets) -> dict[str, str]:
    """The header lines that show who asks. UpstreamFailed: a provider's key is missing."""
    shown = {}
    if target.internal and (token := secrets.internal_token()):
        shown["x-tollway-token"] = token
    if target.secret is not None:
        key = secrets.provider(target.secret)
        if key is None:
            raise UpstreamFailed("connect", f"the provider's key {target.secret} is missing in the secrets folder")
        shown["authorization"] = f"Bearer {key}"
    return shown


def request_headers(target: Target, secrets: Mapping[str, str]) -> bytes:
    """The lines of the head that say who asks and how, but for the request's id; made from nothing, no header of a
    client ever reaches a model. UpstreamFailed: a secret is none that a header can carry."""
    headers = dict(_SAME)
    for name, value in target.headers.items():
        if _NAME.match(name) and (lower := name.lower()) not in OWN_HEADERS and _VALUE.match(value):
            headers[lower] = value
    headers |= secrets
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers) or "\0" in lines:
        raise UpstreamFailed("connect", "a secret has characters that no header can carry")
    return lines.encode()


async def read_all(answer: Answer, limit: int) -> bytes:
    """The whole body; UpstreamFailed if it is longer than `limit` bytes."""
    parts, size = [], 0
    while data := await answer.chunk():
        size += len(data)
        if size > limit:
            raise UpstreamFailed("broken", f"the answer is longer than {limit} bytes")
        parts.append(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def media_type(value: bytes) -> str:
    """Of a Content-Type: lower case, without parameters."""
    return _MEDIA_TYPES.get(value) or value.split(b";", 1)[0].strip().lower().decode("latin-1")


def retry_seconds(text: str) -> int | None:
    """A Retry-After in seconds between 1 and an hour."""
    return min(3600, max(1, int(text))) if text.isascii() and text.isdigit() and len(text) < 10 else None
