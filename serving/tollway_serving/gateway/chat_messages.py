"""A chat's messages: their shapes, what is known of them before a model reads them, and how a model gets them.

Used by `chat_schema`. The types follow OpenAI's; fields that only answers have (`refusal`, `annotations`, …) are
allowed in an assistant's message, because clients send answers back as they got them.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NotRequired

import orjson
from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, with_config
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from tollway_serving.contract.catalogue import Capability
from tollway_serving.gateway.catalogue import Model
from tollway_serving.gateway.errors import ApiError
from tollway_serving.gateway.media import check_part, outside
from tollway_serving.gateway.shapes import utf8_size
from tollway_serving.ledger.value import value

strict = with_config(ConfigDict(strict=True, extra="forbid"))

MAX_MESSAGES = 4096
MAX_PARTS = 2048  # of one message
MAX_IN_ALL = 16_384  # parts and tool calls of all messages: what takes long to check must end
MAX_CALLS = 128
MAX_LINKS = 16


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
    filename: NotRequired[Annotated[str, Field(max_length=256)] | None]


@strict
class FilePart(TypedDict):
    type: Literal["file"]
    file: FileReference


UserPart = Annotated[TextPart | ImagePart | AudioPart | FilePart, Field(discriminator="type")]
AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


def _shape(value: Any) -> str:
    return "string" if isinstance(value, str) else "parts"


_Texts = Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
TextContent = Annotated[Annotated[str, Tag("string")] | Annotated[_Texts, Tag("parts")], Discriminator(_shape)]
_UserParts = Annotated[list[UserPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
UserContent = Annotated[Annotated[str, Tag("string")] | Annotated[_UserParts, Tag("parts")], Discriminator(_shape)]
_AssistantParts = Annotated[list[AssistantPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
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
    tool_calls: NotRequired[Annotated[list[ToolCall], Field(max_length=MAX_CALLS, fail_fast=True)] | None]
    refusal: NotRequired[str | None]
    reasoning_content: NotRequired[str | None]
    annotations: NotRequired[Annotated[list[Any], Field(max_length=128)] | None]
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


def _bounded(messages: Any) -> Any:
    """Refused before it is checked: 20 MB of tiny parts would keep every other request waiting."""
    if type(messages) is list and len(messages) <= MAX_MESSAGES:
        count = 0
        for message in messages:
            if type(message) is dict:
                if type(inner := message.get("content")) is list:
                    count += len(inner)
                if type(inner := message.get("tool_calls")) is list:
                    count += len(inner)
        if count > MAX_IN_ALL:
            text = "Messages have at most {most} parts and tool calls, all together"
            raise PydanticCustomError("too_many", text, {"most": MAX_IN_ALL})
    return messages


Messages = Annotated[
    list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True), BeforeValidator(_bounded)
]


@value
class Spoken:
    """What is known of valid messages. `size` bounds their text from above, in UTF-8 bytes."""

    size: int
    media: tuple[tuple[str, dict[str, Any]], ...]  # a part's path, and the part
    tool_path: str | None  # a message that speaks of tools


def read_messages(messages: list[dict[str, Any]]) -> Spoken:
    """ApiError for a message that says nothing."""
    size, media, tool_path = 0, [], None
    for index, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, str):
            size += utf8_size(content)
        elif content:
            for position, part in enumerate(content):
                size += utf8_size(part.get("text") or part.get("refusal") or "")
                if part["type"] in _MEDIA:
                    media.append((f"messages[{index}].content[{position}]", part))
        if len(message) > 2:
            size += utf8_size(message.get("name") or "") + utf8_size(message.get("reasoning_content") or "")
            if message.get("tool_calls"):
                size += len(orjson.dumps(message["tool_calls"]))
                tool_path = tool_path or f"messages[{index}].tool_calls"
        if message["role"] == "tool":
            tool_path = tool_path or f"messages[{index}].role"
        elif content is None and message.get("refusal") is None and not message.get("tool_calls"):
            path = f"messages[{index}].content"
            raise ApiError("missing_required_parameter", f"Missing required parameter: '{path}'.", param=path)
    return Spoken(size, tuple(media), tool_path)


_MEDIA: dict[str, tuple[Capability, str, str]] = {
    "image_url": ("ImageInput", "image_not_supported_by_model", "images"),
    "input_audio": ("AudioInput", "audio_not_supported_by_model", "audio"),
    "file": ("FileInput", "unsupported_file_format", "files"),
}


def check_media(spoken: Spoken, model: Model) -> tuple[tuple[str, str], ...]:
    """ApiError for what this model does not take, and for what is no image, audio or file. Answers the links among
    them that are to be fetched here: path and URL."""
    links = []
    for path, part in spoken.media:
        capability, code, what = _MEDIA[part["type"]]
        if capability not in model.capabilities:
            raise ApiError(code, f"The model '{model.entry.model_id}' does not take {what}.", param=path)
    target = model.entry.target
    handed_on = not target.internal and outside(target.url)
    for path, part in spoken.media:
        try:
            url = check_part(part, handed_on)
        except ValueError as error:
            where, text = error.args
            raise ApiError(
                "invalid_value", f"Invalid value for '{path}.{where}': {text}.", param=f"{path}.{where}"
            ) from None
        if url:
            links.append((path, url))
        if part["type"] == "file" and part["file"].get("file_id") is not None:
            raise ApiError("file_not_found", "There is no file with this id.", param=f"{path}.file.file_id")
    if len(links) > MAX_LINKS:
        raise ApiError("invalid_value", f"At most {MAX_LINKS} images can be links.", param=links[MAX_LINKS][0])
    return () if handed_on else tuple(links)


def sent_messages(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """As a model wants them: without nulls and what only answers have; a refusal is what the assistant said."""
    for message in messages:
        if len(message) > 2 or "content" not in message:
            sent = {k: v for k, v in message.items() if v is not None and k not in ("annotations", "refusal")}
            if message.get("refusal") and not message.get("content"):
                sent["content"] = message["refusal"]
            yield sent
        else:
            yield message


def inline(messages: list[dict[str, Any]], images: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The messages with data URLs in the place of links."""
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            parts = [
                {**part, "image_url": {**part["image_url"], "url": images[part["image_url"]["url"]]}}
                if part["type"] == "image_url" and part["image_url"]["url"] in images
                else part
                for part in content
            ]
            yield {**message, "content": parts}
        else:
            yield message
