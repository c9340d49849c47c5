"""A model's failures, translated into the contract's errors at one border. Used by `fallback` and `relay`.

`Failed` is a failure before the first byte: another model may be tried for its reasons, and `error` is what the client
gets otherwise. Text of a backend reaches a client only where it speaks of the client's own request (a 400).
"""

from typing import Any

import orjson

from tollway_serving.contract.catalogue import FallbackReason, ModelEntry
from tollway_serving.gateway.errors import TABLE, ApiError
from tollway_serving.gateway.upstream import Answer, UpstreamFailed

_CONTEXT_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"})
_MAX_MESSAGE = 500


class Failed(Exception):
    """This model gave no answer."""

    def __init__(self, reasons: tuple[FallbackReason, ...], error: ApiError, detail: str) -> None:
        super().__init__(detail)
        self.reasons = reasons
        self.error = error


def unavailable(entry: ModelEntry, detail: str, retry_after_s: int | None = None) -> Failed:
    return Failed(
        ("Unavailable",),
        ApiError(
            "model_unavailable",
            f"The model '{entry.model_id}' is not available at the moment. Please retry shortly.",
            retry_after_s=retry_after_s,
        ),
        detail,
    )


def overloaded(entry: ModelEntry, detail: str, retry_after_s: int | None = None, limited: bool = False) -> Failed:
    """`limited`: a provider's own rate limit, which is a reason of its own too."""
    return Failed(
        ("Overloaded", "RateLimited") if limited else ("Overloaded",),
        ApiError(
            "model_overloaded",
            f"The model '{entry.model_id}' has more requests than it can take at the moment. Please retry shortly.",
            retry_after_s=retry_after_s or 1,
        ),
        detail,
    )


def starting(entry: ModelEntry, detail: str, retry_after_s: int | None = None) -> Failed:
    return Failed(
        ("Unavailable",),
        ApiError(
            "model_starting",
            f"The model '{entry.model_id}' is starting. Please retry shortly.",
            retry_after_s=retry_after_s or max(1, entry.start_seconds),
        ),
        detail,
    )


def timed_out(entry: ModelEntry, detail: str) -> Failed:
    return Failed(("Timeout",), ApiError("timeout", f"The model '{entry.model_id}' did not answer in time."), detail)


def broken(entry: ModelEntry, failure: UpstreamFailed) -> Failed:
    """No usable answer: not connected, silent, broken off."""
    if failure.trouble == "timeout":
        return timed_out(entry, str(failure))
    if failure.trouble == "connect" and entry.state in ("Starting", "Asleep"):
        return starting(entry, str(failure))
    return unavailable(entry, str(failure))


def refused(entry: ModelEntry, answer: Answer, body: bytes, prompt: str) -> Failed | ApiError:
    """An answer that is not 200: an ApiError is the client's own mistake, which no other model would mend. `prompt` is
    the parameter that has the prompt."""
    message, code, param = _read(body)
    status, retry = answer.status, answer.retry_after_s
    detail = f"status {status} code {code}"
    if code in _CONTEXT_CODES and status < 500:
        return _too_long(entry, message, param or prompt)
    if status in (400, 413, 422):
        known = code if code in TABLE and TABLE[code][0] == 400 else "invalid_value"
        return ApiError(known, message or "The model refused the request as invalid.", param=param)
    if status == 429:
        return overloaded(entry, detail, retry, limited=not entry.target.internal)
    if status in (408, 504):
        return timed_out(entry, detail)
    # Serve's own "too many queued" is a 503 in plain text; a model's has a code.
    if status == 503 and (code == "model_overloaded" or (code is None and entry.target.internal)):
        return overloaded(entry, detail, retry)
    if (status == 503 and code == "model_starting") or (status == 404 and entry.state in ("Starting", "Asleep")):
        return starting(entry, detail, retry)
    return unavailable(entry, detail, retry)


def error_event(entry: ModelEntry, error: Any, prompt: str) -> Failed | ApiError:
    """A stream's `{"error": …}` event; the same for one that is the first and one that ends a begun stream."""
    code = error.get("code") or error.get("type") if isinstance(error, dict) else None
    if code in _CONTEXT_CODES:
        return _too_long(entry, _text(error.get("message")), prompt)
    if code == "model_overloaded":
        return overloaded(entry, "error event")
    if code == "timeout":
        return timed_out(entry, "error event")
    if code in TABLE and TABLE[code][0] == 400:
        return ApiError(code, _text(error.get("message")) or "The model refused the request as invalid.")
    return unavailable(entry, f"error event {str(code)[:100]}")


def _too_long(entry: ModelEntry, message: str | None, param: str) -> Failed:
    text = message or (
        f"This model's maximum context length is {entry.context_tokens} tokens. Please reduce the length of '{param}'."
    )
    return Failed(("ContextTooLong",), ApiError("context_length_exceeded", text, param=param), "context")


def _read(body: bytes) -> tuple[str | None, str | None, str | None]:
    """Message, code and param of an OpenAI error body, or of its older flat form."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None, None, None
    error = value.get("error", value) if isinstance(value, dict) else None
    if not isinstance(error, dict):
        return None, None, None
    code = error.get("code")
    if not isinstance(code, str):
        code = error.get("type")
    param = error.get("param")
    return (
        _text(error.get("message")),
        code if isinstance(code, str) else None,
        param[:200] if isinstance(param, str) else None,
    )


def _text(value: Any) -> str | None:
    """A backend's message, bounded and on one line."""
    if not isinstance(value, str) or not value:
        return None
    return "".join(c if c.isprintable() else " " for c in value[:_MAX_MESSAGE])
