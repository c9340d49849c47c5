"""Every error that a client can see: the contract's table and its one body. Raised anywhere here, sent by `call`.

A code decides its status and type, so that neither can disagree with the contract. Messages are for clients: no
internal names, no foreign text that was not checked.
"""

import re
from typing import Final

import orjson

TABLE: Final[dict[str, tuple[int, str]]] = {
    code: (status, type_)
    for status, type_, codes in (
        (
            400,
            "invalid_request_error",
            (
                "invalid_json",
                "missing_required_parameter",
                "invalid_value",
                "unsupported_parameter",
                "context_length_exceeded",
                "audio_not_supported_by_model",
                "image_not_supported_by_model",
                "tools_not_supported_by_model",
                "unsupported_file_format",
                "no_audio_stream",
                "metadata_stripping_failed",
            ),
        ),
        (401, "authentication_error", ("invalid_api_key", "expired_api_key")),
        (403, "permission_error", ("endpoint_not_enabled",)),
        (404, "invalid_request_error", ("model_not_found", "file_not_found", "job_not_found", "not_found")),
        (405, "invalid_request_error", ("method_not_allowed",)),
        (409, "invalid_request_error", ("idempotency_in_progress", "idempotency_not_replayable")),
        (413, "invalid_request_error", ("file_too_large", "request_too_large", "storage_limit_exceeded")),
        (422, "invalid_request_error", ("idempotency_mismatch",)),
        (429, "rate_limit_error", ("rate_limit_exceeded", "insufficient_quota", "credits_held")),
        (500, "server_error", ("internal_error",)),
        (503, "server_error", ("model_unavailable", "model_overloaded", "model_starting", "ledger_unavailable")),
        (504, "server_error", ("timeout",)),
    )
    for code in codes
}
"""By code: HTTP status and type."""

_KEY_LIKE: Final = re.compile(r"sk-[A-Za-z0-9_-]{8,}")  # pasted where a model or a parameter should be
_DEFAULT_RETRY_S: Final = {429: 1, 503: 5}


class ApiError(Exception):
    """An answer in the contract's error shape. `headers` are added to the response beside the usual ones."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.status, self.type = TABLE[code]
        self.retry_after_s = retry_after_s if retry_after_s is not None else _DEFAULT_RETRY_S.get(self.status)
        self.headers = headers

    def body(self) -> bytes:
        """The JSON body; also the payload of a stream's error frame."""
        return orjson.dumps(
            {
                "error": {
                    "message": _KEY_LIKE.sub("sk-...", self.message),
                    "type": self.type,
                    "param": _KEY_LIKE.sub("sk-...", self.param) if self.param is not None else None,
                    "code": self.code,
                }
            }
        )


def internal_error() -> ApiError:
    """What a client learns of a bug of ours: nothing but the request id in the headers."""
    return ApiError("internal_error", "The server had an error while processing your request. Sorry about that!")


def ledger_unavailable() -> ApiError:
    return ApiError(
        "ledger_unavailable", "Usage can't be recorded at the moment. Please retry shortly.", retry_after_s=2
    )
