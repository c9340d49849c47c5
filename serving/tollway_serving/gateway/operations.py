"""What /openapi.json says of each route beyond what validates it: prose, answers, error codes, examples. For `openapi`.

A route without an entry here can't be documented, and a test fails. Each request's example is sent to a gateway by a
test, and each answer's example is held against its schema.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tollway_serving.gateway import answer_schema as answers
from tollway_serving.gateway.chat_schema import CHAT
from tollway_serving.gateway.parameters import Table

MEANINGS: Final[dict[str, str]] = {
    "invalid_json": "The body is no JSON object, or did not arrive whole and in time.",
    "missing_required_parameter": "`param` is missing.",
    "invalid_value": "`param` has a wrong type, is out of range, or contradicts another parameter.",
    "unsupported_parameter": "`param` is unknown, or would change the answer and this model can't carry it out.",
    "context_length_exceeded": "The prompt and the answer do not fit into the model's context.",
    "audio_not_supported_by_model": "The model takes no audio.",
    "image_not_supported_by_model": "The model takes no images.",
    "tools_not_supported_by_model": "The model calls no tools.",
    "unsupported_file_format": "Files of this kind are not read.",
    "no_audio_stream": "The file has no audio in it.",
    "metadata_stripping_failed": "The file's metadata could not be removed.",
    "invalid_api_key": "The API key is missing, malformed, unknown or revoked.",
    "expired_api_key": "The API key has expired.",
    "endpoint_not_enabled": "The plan does not have this endpoint.",
    "model_not_found": "There is no such model, or the plan does not give it.",
    "file_not_found": "There is no such file.",
    "job_not_found": "There is no such job.",
    "not_found": "There is nothing at this path.",
    "method_not_allowed": "The path does not take this method; `Allow` names those that it takes.",
    "idempotency_in_progress": "A request with this idempotency key is still running.",
    "idempotency_not_replayable": "The answer for this idempotency key can't be repeated.",
    "file_too_large": "The file is larger than the plan allows.",
    "request_too_large": "The body is too large.",
    "storage_limit_exceeded": "The plan's storage is full.",
    "idempotency_mismatch": "Another request had this idempotency key.",
    "rate_limit_exceeded": "A limit of requests, tokens, concurrency or a monthly quota is reached.",
    "insufficient_quota": "The credits are used up.",
    "credits_held": "There are enough credits, but calls in flight hold them: retry.",
    "internal_error": "A bug or a failure of ours.",
    "model_unavailable": "The model can't be reached.",
    "model_overloaded": "The model has more requests than it can take: retry.",
    "model_starting": "The model is starting: retry after `Retry-After`.",
    "ledger_unavailable": "Usage can't be recorded at the moment: retry.",
    "timeout": "The model did not answer in time.",
}
"""What each code of errors.TABLE means."""

_NET = ("rate_limit_exceeded", "model_overloaded", "internal_error")
KEYED = ("invalid_api_key", "expired_api_key", *_NET)
_JSON_BODY = (
    "invalid_json",
    "missing_required_parameter",
    "invalid_value",
    "unsupported_parameter",
    "request_too_large",
)
_METERED = ("insufficient_quota", "credits_held", "ledger_unavailable")
_MODEL = ("endpoint_not_enabled", "model_not_found", "context_length_exceeded", "model_unavailable", "model_starting",
          "timeout")  # fmt: skip
_ONCE = ("idempotency_in_progress", "idempotency_not_replayable", "idempotency_mismatch")
CALL = (*KEYED, *_JSON_BODY, *_METERED, *_MODEL, *_ONCE)
"""Of a call of a model."""


@dataclass(frozen=True, slots=True)
class Operation:
    """`answer` and `chunk` are types of `answer_schema`; `content_type` is for an answer that is no JSON."""

    id: str
    tag: str
    summary: str
    description: str = ""
    answer: Any = None
    chunk: Any = None  # of its stream
    content_type: str = "application/json"
    codes: tuple[str, ...] = ()
    request: Table | None = None  # where the route itself names none
    examples: Mapping[str, Any] = field(default_factory=dict)  # requests
    answer_example: Any = None
    chunk_example: Any = None
    path_parameter: str = ""  # what a trailing {name} is
    path_example: str = ""
    keyless: bool = False


_HELLO = [{"role": "user", "content": "What is a toll road?"}]
_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
_CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
    "required": ["city", "country"],
    "additionalProperties": False,
}
_MODEL_EXAMPLE = {
    "id": "smollm2",
    "object": "model",
    "created": 1764000000,
    "owned_by": "tollway",
    "licence": "apache-2.0",
    "input_format": "MODEL_FORMAT_TEXT",
    "output_format": "MODEL_FORMAT_TEXT",
    "parameters_number": "135M",
    "capabilities": {"supports_audio": False, "supports_image": False, "supports_function_calling": True},
}
_HEAD = {"id": "chatcmpl-1f2e3d4c", "created": 1764000000, "model": "smollm2"}
_STREAM = (
    "With `stream: true` the answer is server-sent events: `data:` frames of chunks, at last `data: [DONE]`. Lines "
    "that begin with a colon are comments: heartbeats of a silent stream, and what a header would have said "
    "had it not been too late for one. "
)
_OPENAPI = Operation(
    id="getOpenapi",
    tag="Service",
    summary="This document",
    answer=dict[str, Any],
    codes=_NET,
    keyless=True,
)
_DOCS = Operation(
    id="getDocs",
    tag="Service",
    summary="This document to read and try",
    answer=str,
    content_type="text/html",
    codes=_NET,
    keyless=True,
)

OPERATIONS: Final[dict[tuple[str, str], Operation]] = {
    ("POST", "/chat/completions"): Operation(
        id="createChatCompletion",
        tag="Text",
        summary="Answer a conversation",
        description=_STREAM + "A stream that fails after it began has one `data:` frame with an Error, and ends.",
        answer=answers.ChatCompletion,
        chunk=answers.ChatCompletionChunk,
        codes=(
            *CALL,
            "audio_not_supported_by_model",
            "image_not_supported_by_model",
            "tools_not_supported_by_model",
            "unsupported_file_format",
            "file_not_found",
        ),
        request=CHAT,
        examples={
            "answer": {"model": "smollm2", "messages": _HELLO, "max_completion_tokens": 100},
            "stream": {
                "model": "smollm2",
                "messages": [{"role": "system", "content": "Be brief."}, *_HELLO],
                "stream": True,
                "stream_options": {"include_usage": True},
            },
            "tools": {
                "model": "smollm2",
                "messages": [{"role": "user", "content": "How is the weather in Paris?"}],
                "tools": [_WEATHER],
                "tool_choice": "required",
            },
            "structured": {
                "model": "smollm2",
                "messages": [{"role": "user", "content": "Where is the Eiffel tower?"}],
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "place", "schema": _CITY, "strict": True},
                },
            },
        },
        answer_example={
            **_HEAD,
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "A road that one pays for.", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 36, "completion_tokens": 8, "total_tokens": 44},
        },
        chunk_example={
            **_HEAD,
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": {"content": "A road"}, "finish_reason": None}],
        },
    ),
    ("POST", "/completions"): Operation(
        id="createCompletion",
        tag="Text",
        summary="Continue a text",
        description="OpenAI's older endpoint. " + _STREAM,
        answer=answers.Completion,
        chunk=answers.Completion,
        codes=CALL,
        examples={
            "answer": {"model": "smollm2", "prompt": "A toll road is", "max_tokens": 32},
            "stream": {"model": "smollm2", "prompt": "A toll road is", "stream": True},
        },
        answer_example={
            **_HEAD,
            "id": "cmpl-1f2e3d4c",
            "object": "text_completion",
            "choices": [{"index": 0, "text": " a road one pays for.", "logprobs": None, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 4, "completion_tokens": 7, "total_tokens": 11},
        },
        chunk_example={
            **_HEAD,
            "id": "cmpl-1f2e3d4c",
            "object": "text_completion",
            "choices": [{"index": 0, "text": " a road", "logprobs": None, "finish_reason": None}],
        },
    ),
    ("POST", "/embeddings"): Operation(
        id="createEmbedding",
        tag="Text",
        summary="Turn texts into vectors",
        answer=answers.EmbeddingList,
        codes=CALL,
        examples={
            "one": {"model": "minilm", "input": "What is a toll road?"},
            "several": {"model": "minilm", "input": ["A toll road.", "A bridge."], "encoding_format": "base64"},
        },
        answer_example={
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.01, -0.03]}],
            "model": "minilm",
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        },
    ),
    ("GET", "/models"): Operation(
        id="listModels",
        tag="Models",
        summary="List the models that the key may use",
        answer=answers.ModelList,
        codes=KEYED,
        answer_example={"object": "list", "data": [_MODEL_EXAMPLE]},
    ),
    ("GET", "/models/{id}"): Operation(
        id="retrieveModel",
        tag="Models",
        summary="One model",
        answer=answers.Model,
        codes=(*KEYED, "model_not_found"),
        answer_example=_MODEL_EXAMPLE,
        path_parameter="A model's id or alias.",
        path_example="smollm2",
    ),
    ("GET", "/usage"): Operation(
        id="getUsage",
        tag="Usage",
        summary="What the account has used this month, and what is left",
        answer=answers.Usage,
        codes=(*KEYED, "ledger_unavailable"),
        answer_example={
            "status": "active",
            "is_free": False,
            "is_trial": False,
            "trial_ends_at": None,
            "period": "2026-11",
            "product": "default/starter",
            "product_label": "Starter",
            "usage_label": "API Requests",
            "total_requests": 42,
            "total_ok": 40,
            "total_errors": 2,
            "total_tokens_in": 12500,
            "total_tokens_out": 3200,
            "rate_limit_per_minute": 60,
            "max_concurrent_requests": 4,
            "monthly_usage_cap": 100,
            "usage_remaining": 60,
            "trial_usage_limit": None,
            "trial_usage_remaining": None,
            "max_file_size": 26214400,
            "addons": [],
            "enabled_features": ["structured_output", "tools"],
            "enabled_endpoints": ["chat_completions", "embeddings"],
            "credits_used": 0.0157,
            "credits_remaining": 49.9843,
            "quotas": [
                {
                    "name": "calls",
                    "meter": "requests",
                    "period": "month",
                    "models": None,
                    "of": "account",
                    "limit": 100,
                    "used": 40,
                    "held": 0,
                    "remaining": 60,
                    "resets_at": "2026-12-01T00:00:00Z",
                }
            ],
        },
    ),
    ("POST", "/usage/completions"): Operation(
        id="queryUsage",
        tag="Usage",
        summary="What the account used, by windows of time",
        description="A call belongs to the window in which it was let in, and is counted when it has ended.",
        answer=answers.UsageWindows,
        codes=(*KEYED, *_JSON_BODY, "ledger_unavailable"),
        examples={
            "days": {"start_time": "2026-11-01T00:00:00Z", "end_time": "2026-12-01T00:00:00Z"},
            "hours by model": {
                "start_time": "2026-11-25T00:00:00+01:00",
                "end_time": "2026-11-26T00:00:00+01:00",
                "window_size": "HOUR",
                "window_timezone": "Europe/Zurich",
                "group_by": ["model"],
                "filter_group_by": {"model": ["smollm2"], "status": ["ok"]},
            },
        },
        answer_example={
            "data": [
                {
                    "groupBy": {"model": "smollm2"},
                    "user_id": "default/me",
                    "input_token": 123,
                    "output_token": 456,
                    "requests": 12,
                    "credits": 0.000579,
                    "windowStart": "2026-11-25T07:00:00Z",
                    "windowEnd": "2026-11-25T08:00:00Z",
                }
            ],
            "start_time": "2026-11-25T00:00:00+01:00",
            "end_time": "2026-11-26T00:00:00+01:00",
            "window_size": "HOUR",
        },
    ),
    ("GET", "/healthz"): Operation(
        id="getHealth",
        tag="Service",
        summary="Whether the replica is alive",
        answer=answers.Health,
        codes=("internal_error",),
        answer_example={"status": "ok"},
        keyless=True,
    ),
    ("GET", "/readyz"): Operation(
        id="getReadiness",
        tag="Service",
        summary="Whether the replica takes requests: the ledger answers and a catalogue is loaded",
        answer=answers.Health,
        codes=("internal_error", "ledger_unavailable", "model_unavailable"),
        answer_example={"status": "ready"},
        keyless=True,
    ),
    ("GET", "/openapi.json"): _OPENAPI,
    ("GET", "/docs"): _DOCS,
    ("GET", "/docs/{name}"): Operation(
        id="getDocsAsset",
        tag="Service",
        summary="A script or a style sheet of the page",
        answer=str,
        content_type="*/*",
        codes=("not_found", *_NET),
        path_parameter="The file's name.",
        path_example="page.js",
        keyless=True,
    ),
}
"""By method and path, as the route has it."""
