"""The shapes of answers: read by `operations` for /openapi.json. Nothing is validated by them at run time.

Tests hold every answer against them. They are open: an answer may gain a field in a later release.
"""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

Count = Annotated[int, Field(ge=0)]
_Created = Annotated[int, Field(ge=0, description="Seconds since 1970.")]
_ModelId = Annotated[str, Field(description="The id of the model that answered.")]
_Fingerprint = Annotated[str | None, Field(description="The engine's own version, where it tells one.")]
ModelFormat = Literal[
    "MODEL_FORMAT_TEXT",
    "MODEL_FORMAT_AUDIO",
    "MODEL_FORMAT_IMAGE",
    "MODEL_FORMAT_VIDEO",
    "MODEL_FORMAT_EMBEDDING",
    "MODEL_FORMAT_DOCUMENT",
]


class PromptTokensDetails(TypedDict):
    cached_tokens: NotRequired[Count | None]
    audio_tokens: NotRequired[Count | None]


class CompletionTokensDetails(TypedDict):
    reasoning_tokens: NotRequired[Count | None]
    audio_tokens: NotRequired[Count | None]
    accepted_prediction_tokens: NotRequired[Count | None]
    rejected_prediction_tokens: NotRequired[Count | None]


class CompletionUsage(TypedDict):
    """What the answer is charged by."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: NotRequired[PromptTokensDetails]
    completion_tokens_details: NotRequired[CompletionTokensDetails]
    credits_used: NotRequired[Annotated[float, Field(ge=0, description="The charge; in a stream's usage chunk only.")]]


class AnsweredFunction(TypedDict):
    name: str
    arguments: Annotated[str, Field(description="JSON, as the model wrote it.")]


class AnsweredToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: AnsweredFunction


class AnswerMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: NotRequired[list[AnsweredToolCall]]
    reasoning_content: NotRequired[str | None]
    annotations: NotRequired[list[Any]]


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(TypedDict):
    content: NotRequired[list[TokenLogprob] | None]
    refusal: NotRequired[list[TokenLogprob] | None]


FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class ChatChoice(TypedDict):
    index: Count
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: _Created
    model: _ModelId
    choices: Annotated[list[ChatChoice], Field(min_length=1)]
    usage: CompletionUsage
    system_fingerprint: NotRequired[_Fingerprint]


class FunctionDelta(TypedDict):
    name: NotRequired[str]
    arguments: NotRequired[str]


class ToolCallDelta(TypedDict):
    """The first piece of a call has its id and name; the arguments come in pieces."""

    index: Count
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: NotRequired[FunctionDelta]


class Delta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str | None]
    refusal: NotRequired[str | None]
    tool_calls: NotRequired[list[ToolCallDelta]]
    reasoning_content: NotRequired[str | None]


class ChunkChoice(TypedDict):
    index: Count
    delta: Delta
    logprobs: NotRequired[ChoiceLogprobs | None]
    finish_reason: FinishReason | None


class ChatCompletionChunk(TypedDict):
    """One `data:` frame. The last frame is `[DONE]`; a failure is one frame with an Error, and the stream ends."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: _Created
    model: _ModelId
    choices: list[ChunkChoice]
    usage: NotRequired[
        Annotated[CompletionUsage | None, Field(description="With stream_options.include_usage: in the last chunk.")]
    ]
    system_fingerprint: NotRequired[_Fingerprint]


class CompletionLogprobs(TypedDict):
    """Lists of one length, a member for each token of the text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[Count]


class CompletionChoice(TypedDict):
    index: Count
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length", "content_filter"] | None


class Completion(TypedDict):
    """A whole answer; in a stream the same object is one `data:` frame."""

    id: str
    object: Literal["text_completion"]
    created: _Created
    model: _ModelId
    choices: list[CompletionChoice]
    usage: NotRequired[CompletionUsage | None]
    system_fingerprint: NotRequired[_Fingerprint]


class Embedding(TypedDict):
    object: Literal["embedding"]
    index: Annotated[int, Field(ge=0, description="The input's place in the request.")]
    embedding: Annotated[
        list[float] | str, Field(description="Numbers, or the base64 of little-endian float32 numbers.")
    ]


class EmbeddingUsage(TypedDict):
    prompt_tokens: Count
    total_tokens: Count


class EmbeddingList(TypedDict):
    object: Literal["list"]
    data: list[Embedding]
    model: _ModelId
    usage: EmbeddingUsage


class ModelCapabilities(TypedDict):
    supports_audio: bool
    supports_image: bool
    supports_function_calling: bool


class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: _Created
    owned_by: str
    licence: str | None
    input_format: ModelFormat
    output_format: ModelFormat
    parameters_number: Annotated[str | None, Field(description="Such as 3.28B.")]
    capabilities: ModelCapabilities


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[Model]


_Limit = Annotated[int | None, Field(ge=0, description="null: no limit.")]
_Credits = Annotated[float, Field(ge=0, description="An exact decimal number, to a millionth.")]


class QuotaUsage(TypedDict):
    name: str
    meter: str
    period: Literal["day", "week", "month"]
    models: Annotated[list[str] | None, Field(description="Which models count; null: all.")]
    of: Annotated[Literal["account", "key"], Field(description="Whose limit it is: the plan's, or the key's own.")]
    limit: Count
    used: Count
    held: Annotated[int, Field(ge=0, description="By calls in flight.")]
    remaining: Count
    resets_at: str


class Usage(TypedDict):
    """The account in the current month (UTC), and what the key may still use."""

    status: Annotated[Literal["active", "inactive"], Field(description="inactive: the trial has ended.")]
    is_free: bool
    is_trial: bool
    trial_ends_at: str | None
    period: Annotated[str, Field(description="Such as 2026-11.")]
    product: Annotated[str, Field(description="The plan.")]
    product_label: str
    usage_label: str
    total_requests: Annotated[int, Field(ge=0, description="Calls that were let in and have ended.")]
    total_ok: Annotated[int, Field(ge=0, description="Those that count as successful requests.")]
    total_errors: Annotated[int, Field(ge=0, description="The others.")]
    total_tokens_in: Count
    total_tokens_out: Count
    rate_limit_per_minute: _Limit
    max_concurrent_requests: _Limit
    monthly_usage_cap: Annotated[int | None, Field(ge=0, description="Successful requests a month; null: no limit.")]
    usage_remaining: _Limit
    trial_usage_limit: Annotated[str | None, Field(description="Successful requests in the trial.")]
    trial_usage_remaining: str | None
    max_file_size: Annotated[int | None, Field(ge=0, description="Bytes; null: no limit.")]
    addons: list[str]
    enabled_features: Annotated[list[str], Field(description="What the key's models can do.")]
    enabled_endpoints: Annotated[list[str], Field(description="Routes that the key may use and a model answers.")]
    credits_used: _Credits
    credits_remaining: Annotated[
        float | None, Field(ge=0, description="Without what calls in flight hold; null: no limit.")
    ]
    quotas: list[QuotaUsage]


class UsageGroup(TypedDict):
    model: NotRequired[str]
    key: NotRequired[str]
    endpoint: NotRequired[str]
    status: NotRequired[str]


class UsageWindow(TypedDict):
    groupBy: UsageGroup
    user_id: Annotated[str, Field(description="The account.")]
    input_token: Count
    output_token: Count
    requests: Annotated[int, Field(ge=0, description="Calls, failed ones included.")]
    credits: _Credits
    windowStart: Annotated[str, Field(description="In UTC.")]
    windowEnd: str


class UsageWindows(TypedDict):
    """Only windows with calls in them."""

    data: list[UsageWindow]
    start_time: str
    end_time: str
    window_size: Literal["MINUTE", "HOUR", "DAY"]


class Health(TypedDict):
    status: Literal["ok", "ready"]


class ErrorDetail(TypedDict):
    message: Annotated[str, Field(description="For people; may change.")]
    type: Annotated[str, Field(description="Follows from the status.")]
    param: Annotated[str | None, Field(description="The parameter at fault, as a path: messages[0].content.")]
    code: Annotated[str, Field(description="What to branch on.")]


class Error(TypedDict):
    error: ErrorDetail
