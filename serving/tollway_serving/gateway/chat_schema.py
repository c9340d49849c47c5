"""The request of POST /chat/completions: its parameter table and its rules. Read by `routes.chat`.

Its messages are in `chat_messages`.
"""

from typing import Annotated, Any, Literal, NotRequired

import orjson
from pydantic import Field
from typing_extensions import TypedDict

from tollway_serving.gateway.catalogue import Model
from tollway_serving.gateway.chat_messages import (
    Messages,
    Spoken,
    check_media,
    read_messages,
    sent_messages,
    strict,
)
from tollway_serving.gateway.errors import ApiError
from tollway_serving.gateway.parameters import Fitted, Parameter, Table, at_most
from tollway_serving.ledger.value import value

MAX_TOKENS = 32_768
MAX_TOOLS = 128
_Name = Annotated[str, Field(min_length=1, max_length=128)]
_FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


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
class AllowedTools(TypedDict):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


@strict
class AllowedToolsChoice(TypedDict):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


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
_Stops = Annotated[list[_StopText], Field(max_length=4, fail_fast=True)]
_Key = Annotated[str, Field(max_length=64)]
_Text = Annotated[str, Field(max_length=512)]
_Bias = Annotated[float, Field(ge=-100, le=100)]
_TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]

_TOOLS_INSTEAD = 'Use \'tools\' instead: {"type": "function", "function": {...}} for each.'

CHAT = Table(
    "ChatCompletionRequest",
    (
        Parameter("model", _Name, "universal", "The model's id or an alias; by default the plan's model."),
        Parameter(
            "messages",
            Messages,
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
        Parameter("n", Annotated[int, Field(ge=1, le=10)], "engine", "How many choices.", neutral=(1,), here=True),
        Parameter("stop", _StopText | _Stops, "engine", "Up to 4 texts that end the answer.", neutral=([],), here=True),
        Parameter("seed", Annotated[int, Field(ge=-(2**63), lt=2**63)], "engine", "Repeatable sampling."),
        Parameter("presence_penalty", _Penalty, "engine", "Against known topics.", neutral=(0,)),
        Parameter("frequency_penalty", _Penalty, "engine", "Against repetition.", neutral=(0,)),
        Parameter(
            "logit_bias",
            Annotated[dict[_TokenId, _Bias], Field(max_length=1024), at_most(1024)],
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
            Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)],
            "engine",
            "Functions that the model may call.",
            neutral=([],),
            needs="Tools",
            refusal="tools_not_supported_by_model",
        ),
        Parameter(
            "tool_choice",
            Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice,
            "engine",
            "Which tool is called; allowed_tools narrows the tools to those that it names.",
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
        Parameter("user", _Text, "hint", "Your end user."),
        Parameter("safety_identifier", _Text, "hint", "Your end user."),
        Parameter("prompt_cache_key", _Text, "hint", "For caching."),
        Parameter("prompt_cache_retention", _Key, "hint", "For caching."),
        Parameter(
            "metadata",
            Annotated[dict[_Key, _Text], Field(max_length=16), at_most(16)],
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
        Parameter("functions", list[Any], "never", "Older form of tools.", neutral=([],), instead=_TOOLS_INSTEAD),
        Parameter(
            "function_call",
            str | dict[str, Any],
            "never",
            "Older form of tool_choice.",
            neutral=("none",),
            instead="Use 'tool_choice' with 'tools' instead.",
        ),
    ),
    instead={
        ("role", "function"): "Send a result with the role 'tool' and the call's 'tool_call_id' instead.",
        ("type", "custom"): "Write a function with one string parameter instead.",
        ("function_call", ...): "Send the call in 'tool_calls' instead.",
    },
)


@value
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
    spoken: Spoken


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
    spoken = read_messages(values["messages"])
    prompt_bytes = spoken.size
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
        spoken=spoken,
    )


def read_stream(values: dict[str, Any]) -> tuple[bool, bool]:
    """Whether a stream is wanted, and a last chunk with the usage in it."""
    stream, options = bool(values.get("stream")), values.get("stream_options")
    if options is not None and not stream:
        raise ApiError("invalid_value", "'stream_options' is only allowed with 'stream': true.", param="stream_options")
    return stream, bool(options and options.get("include_usage"))


def fit_chat(request: ChatRequest, model: Model, ignore: bool) -> tuple[Fitted, tuple[tuple[str, str], ...]]:
    """The payload for this model without its token maximum and stream options, which `routes.chat` sets; and the links
    to images in it, by path."""
    links = check_media(request.spoken, model) if request.spoken.media else ()
    if request.spoken.tool_path is not None and "Tools" not in model.capabilities:
        raise ApiError(
            "tools_not_supported_by_model",
            f"The model '{model.entry.model_id}' does not support tools.",
            param=request.spoken.tool_path,
        )
    fitted = CHAT.fit(request.values, model, ignore)
    payload = fitted.payload
    if "tool_choice" in payload:
        _choose_tools(payload)
    for name in ("max_tokens", "max_completion_tokens", "stream", "stream_options"):
        payload.pop(name, None)
    payload["messages"] = list(sent_messages(request.values["messages"]))
    return fitted, links


def _choose_tools(payload: dict[str, Any]) -> None:
    """Every model knows none, auto, required and a name. What allowed_tools asks for is the same with fewer tools."""
    choice, tools = payload["tool_choice"], payload.get("tools")
    if not tools:
        if choice not in ("none", "auto"):
            raise ApiError("invalid_value", "'tool_choice' is only allowed with 'tools'.", param="tool_choice")
        del payload["tool_choice"]
        return
    if isinstance(choice, str):
        return
    known = {tool["function"]["name"] for tool in tools}
    allowed = choice["allowed_tools"]["tools"] if choice["type"] == "allowed_tools" else [choice]
    names = {tool["function"]["name"] for tool in allowed}
    if missing := names - known:
        raise ApiError("invalid_value", f"'tool_choice' names '{min(missing)}', which is none of 'tools'.",
                       param="tool_choice")  # fmt: skip
    if choice["type"] == "allowed_tools":
        payload["tools"] = [tool for tool in tools if tool["function"]["name"] in names]
        payload["tool_choice"] = choice["allowed_tools"]["mode"]
