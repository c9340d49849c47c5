"""The request of POST /chat/completions: its messages, its parameter table and what can be counted of it.

Read by `routes.chat`. The types follow OpenAI's; fields that only answers have (`refusal`, `annotations`, …) are
allowed in an assistant's message, because clients send answers back as they got them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired

import orjson
from pydantic import ConfigDict, Discriminator, Field, Tag, with_config
from typing_extensions import TypedDict

from tollway_serving.contract.catalogue import Capability
from tollway_serving.gateway.catalogue import Model
from tollway_serving.gateway.errors import ApiError
from tollway_serving.gateway.parameters import Fitted, Parameter, Table

strict = with_config(ConfigDict(strict=True, extra="forbid"))

MAX_TOKENS = 32_768
_Name = Annotated[str, Field(min_length=1, max_length=128)]
_FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


@strict
class TextPart(TypedDict):
    type: Literal["text"]
    text: str


@strict
class RefusalPart(TypedDict):
    type: Literal["refusal"]
    refusal: str


@strict
class ImageUrl(TypedDict):
    url: Annotated[str, Field(min_length=1)]
    detail: NotRequired[Literal["auto", "low", "high"] | None]


@strict
class ImagePart(TypedDict):
    type: Literal["image_url"]
    image_url: ImageUrl


@strict
class InputAudio(TypedDict):
    data: str
    format: Literal["wav", "mp3"]


@strict
class AudioPart(TypedDict):
    type: Literal["input_audio"]
    input_audio: InputAudio


@strict
class FileReference(TypedDict):
    file_id: NotRequired[str | None]
    file_data: NotRequired[str | None]
    filename: NotRequired[str | None]


@strict
class FilePart(TypedDict):
    type: Literal["file"]
    file: FileReference


UserPart = Annotated[TextPart | ImagePart | AudioPart | FilePart, Field(discriminator="type")]
AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


def _shape(value: Any) -> str:
    return "string" if isinstance(value, str) else "parts"


_Texts = Annotated[list[TextPart], Field(min_length=1, max_length=2048)]
TextContent = Annotated[Annotated[str, Tag("string")] | Annotated[_Texts, Tag("parts")], Discriminator(_shape)]
_UserParts = Annotated[list[UserPart], Field(min_length=1, max_length=2048)]
UserContent = Annotated[Annotated[str, Tag("string")] | Annotated[_UserParts, Tag("parts")], Discriminator(_shape)]
_AssistantParts = Annotated[list[AssistantPart], Field(min_length=1, max_length=2048)]
AssistantContent = Annotated[
    Annotated[str, Tag("string")] | Annotated[_AssistantParts, Tag("parts")], Discriminator(_shape)
]


@strict
class SystemMessage(TypedDict):
    role: Literal["system"]
    content: TextContent
    name: NotRequired[str | None]


@strict
class DeveloperMessage(TypedDict):
    role: Literal["developer"]
    content: TextContent
    name: NotRequired[str | None]


@strict
class UserMessage(TypedDict):
    role: Literal["user"]
    content: UserContent
    name: NotRequired[str | None]


@strict
class FunctionCall(TypedDict):
    name: str
    arguments: str


@strict
class ToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: FunctionCall
    index: NotRequired[int | None]


@strict
class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: NotRequired[AssistantContent | None]
    name: NotRequired[str | None]
    tool_calls: NotRequired[list[ToolCall] | None]
    refusal: NotRequired[str | None]
    reasoning_content: NotRequired[str | None]
    annotations: NotRequired[list[Any] | None]
    audio: NotRequired[None]
    function_call: NotRequired[None]


@strict
class ToolMessage(TypedDict):
    role: Literal["tool"]
    content: TextContent
    tool_call_id: str


Message = Annotated[
    SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


@strict
class StreamOptions(TypedDict):
    include_usage: NotRequired[bool | None]
    include_obfuscation: NotRequired[bool | None]


@strict
class Function(TypedDict):
    name: _FunctionName
    description: NotRequired[str | None]
    parameters: NotRequired[dict[str, Any] | None]
    strict: NotRequired[bool | None]


@strict
class Tool(TypedDict):
    type: Literal["function"]
    function: Function


@strict
class NamedFunction(TypedDict):
    name: _FunctionName


@strict
class NamedTool(TypedDict):
    type: Literal["function"]
    function: NamedFunction


@strict
class TextFormat(TypedDict):
    type: Literal["text"]


@strict
class JsonObjectFormat(TypedDict):
    type: Literal["json_object"]


@strict
class JsonSchema(TypedDict):
    name: _FunctionName
    description: NotRequired[str | None]
    schema: NotRequired[dict[str, Any] | None]
    strict: NotRequired[bool | None]


@strict
class JsonSchemaFormat(TypedDict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
_Count = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]
_StopText = Annotated[str, Field(min_length=1, max_length=1024)]
_Stops = Annotated[list[_StopText], Field(max_length=4)]
_Bias = Annotated[float, Field(ge=-100, le=100)]
_TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]

CHAT = Table(
    "ChatCompletionRequest",
    (
        Parameter("model", _Name, "universal", "The model's id or an alias; by default the plan's model."),
        Parameter(
            "messages",
            Annotated[list[Message], Field(min_length=1, max_length=4096)],
            "universal",
            "The conversation so far.",
            required=True,
        ),
        Parameter("stream", bool, "universal", "Server-sent events instead of one answer."),
        Parameter("stream_options", StreamOptions, "universal", "include_usage: a last chunk with the usage."),
        Parameter("max_completion_tokens", _Count, "universal", "The most tokens that one choice may have."),
        Parameter("max_tokens", _Count, "universal", "Older name of max_completion_tokens."),
        Parameter("temperature", Annotated[float, Field(ge=0, le=2)], "engine", "Randomness.", neutral=(1,)),
        Parameter("top_p", Annotated[float, Field(ge=0, le=1)], "engine", "Nucleus sampling.", neutral=(1,)),
        Parameter("n", Annotated[int, Field(ge=1, le=10)], "engine", "How many choices.", neutral=(1,)),
        Parameter("stop", _StopText | _Stops, "engine", "Up to 4 texts that end the answer.", neutral=([],)),
        Parameter("seed", Annotated[int, Field(ge=-(2**63), lt=2**63)], "engine", "Repeatable sampling."),
        Parameter("presence_penalty", _Penalty, "engine", "Against known topics.", neutral=(0,)),
        Parameter("frequency_penalty", _Penalty, "engine", "Against repetition.", neutral=(0,)),
        Parameter(
            "logit_bias",
            Annotated[dict[_TokenId, _Bias], Field(max_length=1024)],
            "engine",
            "Bias by token id.",
            neutral=({},),
        ),
        Parameter("logprobs", bool, "engine", "Log probabilities.", neutral=(False,), needs="Logprobs"),
        Parameter(
            "top_logprobs",
            Annotated[int, Field(ge=0, le=20)],
            "engine",
            "Alternatives at each position; needs logprobs.",
            neutral=(0,),
            needs="Logprobs",
        ),
        Parameter(
            "response_format",
            ResponseFormat,
            "engine",
            "text, json_object or json_schema.",
            neutral=({"type": "text"},),
            needs="StructuredOutput",
        ),
        Parameter(
            "tools",
            Annotated[list[Tool], Field(max_length=128)],
            "engine",
            "Functions that the model may call.",
            neutral=([],),
            needs="Tools",
            refusal="tools_not_supported_by_model",
        ),
        Parameter(
            "tool_choice",
            Literal["none", "auto", "required"] | NamedTool,
            "engine",
            "Which tool is called.",
            neutral=("none", "auto"),
            needs="Tools",
            refusal="tools_not_supported_by_model",
        ),
        Parameter(
            "parallel_tool_calls",
            bool,
            "engine",
            "Several calls in one answer.",
            neutral=(True, False),
            needs="Tools",
            refusal="tools_not_supported_by_model",
        ),
        Parameter(
            "reasoning_effort",
            Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"],
            "engine",
            "How long to think.",
            neutral=("none",),
            needs="Reasoning",
        ),
        Parameter("verbosity", Literal["low", "medium", "high"], "engine", "Length.", neutral=("medium",)),
        Parameter("top_k", Annotated[int, Field(ge=-1, le=10**6)], "engine", "Not OpenAI's.", neutral=(-1, 0)),
        Parameter("min_p", Annotated[float, Field(ge=0, le=1)], "engine", "Not OpenAI's.", neutral=(0,)),
        Parameter("repetition_penalty", Annotated[float, Field(gt=0, le=2)], "engine", "Not OpenAI's.", neutral=(1,)),
        Parameter("user", Annotated[str, Field(max_length=512)], "hint", "Your end user."),
        Parameter("safety_identifier", Annotated[str, Field(max_length=512)], "hint", "Your end user."),
        Parameter("prompt_cache_key", Annotated[str, Field(max_length=512)], "hint", "For caching."),
        Parameter("prompt_cache_retention", Annotated[str, Field(max_length=64)], "hint", "For caching."),
        Parameter(
            "metadata",
            Annotated[
                dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
            ],
            "hint",
            "Up to 16 pairs of your own.",
        ),
        Parameter("prompt_cache_options", dict[str, Any], "hint", "For caching."),
        Parameter("prediction", dict[str, Any], "hint", "Only makes known answers faster."),
        Parameter("store", bool, "never", "Answers are never stored.", neutral=(False,)),
        Parameter(
            "service_tier",
            Literal["auto", "default", "flex", "scale", "priority"],
            "never",
            "There is one tier.",
            neutral=("auto", "default"),
        ),
        Parameter(
            "modalities",
            Annotated[list[Literal["text", "audio"]], Field(max_length=2)],
            "never",
            "Answers are text.",
            neutral=(["text"], []),
        ),
        Parameter("audio", dict[str, Any], "never", "Answers are text."),
        Parameter("web_search_options", dict[str, Any], "never", "There is no web search."),
        Parameter("moderation", dict[str, Any], "never", "There is no moderation."),
        Parameter("functions", list[Any], "never", "Older form of tools.", neutral=([],)),
        Parameter("function_call", str | dict[str, Any], "never", "Older form of tool_choice.", neutral=("none",)),
    ),
)

_MEDIA: dict[str, tuple[Capability, str, str]] = {
    "image_url": ("ImageInput", "image_not_supported_by_model", "images"),
    "input_audio": ("AudioInput", "audio_not_supported_by_model", "audio"),
}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A valid request, before a model is chosen. `prompt_bytes` bounds its text from above, in UTF-8 bytes."""

    values: dict[str, Any]
    unknown: tuple[str, ...]
    model: str | None
    stream: bool
    include_usage: bool
    n: int
    max_tokens: int | None  # of one choice, as the client asked
    prompt_bytes: int
    messages: int
    media: tuple[tuple[str, str], ...]  # (part type, path)
    tool_path: str | None  # a message that speaks of tools


def read_chat(body: Any, ignore: bool) -> ChatRequest:
    """Checks everything that does not depend on the model."""
    values, unknown = CHAT.validate(body, ignore)
    stream, include_usage = read_stream(values)
    limit, older = values.get("max_completion_tokens"), values.get("max_tokens")
    if limit is not None and older is not None and limit != older:
        raise ApiError(
            "invalid_value", "Give 'max_completion_tokens' or 'max_tokens', not two values.", param="max_tokens"
        )
    if values.get("top_logprobs") and not values.get("logprobs"):
        raise ApiError("invalid_value", "'top_logprobs' is only allowed with 'logprobs': true.", param="top_logprobs")
    prompt_bytes, media, tool_path = 0, [], None
    for index, message in enumerate(values["messages"]):
        content = message.get("content")
        if isinstance(content, str):
            prompt_bytes += _bytes(content)
        elif content:
            for position, part in enumerate(content):
                prompt_bytes += _bytes(part.get("text") or part.get("refusal") or "")
                if part["type"] in ("image_url", "input_audio", "file"):
                    media.append((part["type"], f"messages[{index}].content[{position}]"))
        if len(message) > 2:
            prompt_bytes += _bytes(message.get("name") or "") + _bytes(message.get("reasoning_content") or "")
            if message.get("tool_calls"):
                prompt_bytes += len(orjson.dumps(message["tool_calls"]))
                tool_path = tool_path or f"messages[{index}].tool_calls"
        if message["role"] == "tool":
            tool_path = tool_path or f"messages[{index}].role"
        elif content is None and message.get("refusal") is None and not message.get("tool_calls"):
            path = f"messages[{index}].content"
            raise ApiError("missing_required_parameter", f"Missing required parameter: '{path}'.", param=path)
    for name in ("tools", "response_format"):
        if name in values:
            prompt_bytes += len(orjson.dumps(values[name]))
    return ChatRequest(
        values=values,
        unknown=unknown,
        model=values.get("model"),
        stream=stream,
        include_usage=include_usage,
        n=values.get("n", 1),
        max_tokens=limit if limit is not None else older,
        prompt_bytes=prompt_bytes,
        messages=len(values["messages"]),
        media=tuple(media),
        tool_path=tool_path,
    )


def read_stream(values: dict[str, Any]) -> tuple[bool, bool]:
    """Whether a stream is wanted, and a last chunk with the usage in it."""
    stream, options = bool(values.get("stream")), values.get("stream_options")
    if options is not None and not stream:
        raise ApiError("invalid_value", "'stream_options' is only allowed with 'stream': true.", param="stream_options")
    return stream, bool(options and options.get("include_usage"))


def fit_chat(request: ChatRequest, model: Model, ignore: bool) -> Fitted:
    """The payload for this model without its token maximum and stream options, which `routes.chat` sets."""
    for kind, path in request.media:
        if kind not in _MEDIA:
            raise ApiError("unsupported_file_format", f"The model '{model.entry.model_id}' takes no files.", param=path)
        capability, code, what = _MEDIA[kind]
        if capability not in model.capabilities:
            raise ApiError(code, f"The model '{model.entry.model_id}' does not take {what}.", param=path)
    if request.tool_path is not None and "Tools" not in model.capabilities:
        raise ApiError(
            "tools_not_supported_by_model",
            f"The model '{model.entry.model_id}' does not support tools.",
            param=request.tool_path,
        )
    fitted = CHAT.fit(request.values, model, ignore)
    payload = fitted.payload
    if "tool_choice" in payload and not payload.get("tools"):
        if payload["tool_choice"] not in ("none", "auto"):
            raise ApiError("invalid_value", "'tool_choice' is only allowed with 'tools'.", param="tool_choice")
        del payload["tool_choice"]
    for name in ("max_tokens", "max_completion_tokens", "stream", "stream_options"):
        payload.pop(name, None)
    payload["messages"] = list(_messages(request.values["messages"]))
    return fitted


def _messages(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """As a model wants them: without nulls and what only answers have; a refusal is what the assistant said."""
    for message in messages:
        if len(message) > 2 or "content" not in message:
            sent = {k: v for k, v in message.items() if v is not None and k not in ("annotations", "refusal")}
            if message.get("refusal") and not message.get("content"):
                sent["content"] = message["refusal"]
            yield sent
        else:
            yield message


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
