"""The beginning of a text model's answer, whole or streamed: enough to know that it is one. Used by `text_work`."""

from typing import Any

import orjson

from tollway_serving.contract.catalogue import ModelEntry
from tollway_serving.gateway import sse
from tollway_serving.gateway.shapes import Shape
from tollway_serving.gateway.upstream import Answer, read_all
from tollway_serving.gateway.upstream_errors import error_event, unavailable

MAX_ANSWER = 64 * 1024 * 1024


async def read_object(entry: ModelEntry, answer: Answer, prompt: str) -> dict[str, Any]:
    """The JSON object that an answer is. Failed or ApiError where it is none, or is an error."""
    body = await read_all(answer, MAX_ANSWER)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise unavailable(entry, "the answer is no JSON") from None
    if not isinstance(value, dict):
        raise unavailable(entry, "the answer is no object")
    if value.get("error"):
        raise error_event(entry, value["error"], prompt)
    return value


async def peek_whole(entry: ModelEntry, answer: Answer, shape: Shape) -> dict[str, Any]:
    """The parsed answer of a call that is not streamed."""
    value = await read_object(entry, answer, shape.prompt)
    choices = value.get("choices")
    if isinstance(choices, list) and choices:
        field, kind = shape.whole_field, shape.whole_type
        if all(isinstance(choice, dict) and isinstance(choice.get(field), kind) for choice in choices):
            return value
    raise unavailable(entry, f"the answer is no {shape.name}")


class Peeked:
    """A stream's beginning."""

    __slots__ = ("events", "first", "reader")

    def __init__(self, reader: sse.EventReader, events: list[bytes], first: dict[str, Any]) -> None:
        self.reader = reader
        self.events = events
        self.first = first  # of `events`, parsed


async def peek_stream(entry: ModelEntry, answer: Answer, shape: Shape) -> Peeked:
    """Reads until the first event is whole and is a chunk."""
    if answer.content_type != "text/event-stream":
        raise unavailable(entry, f"a stream was asked for, {answer.content_type[:50]!r} came")
    reader = sse.EventReader()
    while True:
        data = await answer.chunk()
        if not data:
            raise unavailable(entry, "the stream ended before its first event")
        try:
            events = reader.feed(data)
        except sse.TooLong:
            raise unavailable(entry, "an event is too long") from None
        if events:
            break
    first = parse_chunk(events[0], shape)
    if first is None:
        raise unavailable(entry, "the first event is no chunk")
    if first.get("error"):
        raise error_event(entry, first["error"], shape.prompt)
    return Peeked(reader, events, first)


def parse_chunk(payload: bytes, shape: Shape) -> dict[str, Any] | None:
    """A chunk or an error; None: neither."""
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    if type(value) is not dict:
        return None
    choices = value.get("choices")
    if type(choices) is list:
        for choice in choices:
            if type(choice) is not dict or type(choice.get(shape.chunk_field)) is not shape.chunk_type:
                return None
    elif not value.get("error"):
        return None
    return value
