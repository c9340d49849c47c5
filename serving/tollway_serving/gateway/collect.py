"""A stream put together into one answer: for clients that did not ask for a stream. Called by `text_work`.

Our own engines are always asked for a stream. Only so is it known what was generated when a client leaves half-way,
and only so do the limits on the first byte and on silence mean something for an answer that comes whole.
"""

from typing import Any

from tollway_serving.contract.catalogue import ModelEntry
from tollway_serving.gateway import sse
from tollway_serving.gateway.metering import Meter
from tollway_serving.gateway.peek import MAX_ANSWER, Peeked, parse_chunk
from tollway_serving.gateway.shapes import Joined, Shape
from tollway_serving.gateway.upstream import Answer
from tollway_serving.gateway.upstream_errors import error_event, unavailable


async def collect(entry: ModelEntry, answer: Answer, peeked: Peeked, meter: Meter, shape: Shape) -> dict[str, Any]:
    """The whole answer, as a model would have sent it. UpstreamFailed, Failed or ApiError if the stream breaks."""
    answer.limit_silence(entry.timeouts.idle_ms / 1000)
    parts = _Parts(shape)
    events, size = peeked.events, 0
    first: dict[str, Any] | None = peeked.first
    while True:
        for payload in events:
            if payload == sse.DONE:
                return parts.whole()
            size += len(payload)
            chunk, first = first or parse_chunk(payload, shape), None
            if chunk is None or size > MAX_ANSWER:
                raise unavailable(entry, "an event is no chunk, or the answer is too long")
            if chunk.get("error"):
                raise error_event(entry, chunk["error"], shape.prompt)
            parts.add(chunk, meter)
        data = await answer.chunk()
        if not data:
            if not parts.complete():
                raise unavailable(entry, "the stream ended before its answer")
            return parts.whole()
        try:
            events = peeked.reader.feed(data)
        except sse.TooLong:
            raise unavailable(entry, "an event is too long") from None


class _Parts:
    """What has come so far, by choice."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._head: dict[str, Any] = {}
        self._usage: Any = None
        self._choices: dict[int, Joined] = {}

    def add(self, chunk: dict[str, Any], meter: Meter) -> None:
        if not self._head:
            self._head = {name: chunk.get(name) for name in ("id", "created", "system_fingerprint")}
        choices = chunk.get("choices") or ()
        usage = chunk.get("usage")
        if usage is not None and meter.usage(usage):
            self._usage = usage
        else:
            for choice in choices:
                meter.text(self._shape.size(choice))
        for choice in choices:
            index = choice.get("index")
            index = index if type(index) is int else 0
            joined = self._choices.get(index)
            if joined is None:
                joined = self._choices[index] = self._shape.joined(index)
            if choice.get("logprobs") is not None:
                self._shape.shape_logprobs(choice)
            joined.add(choice)

    def complete(self) -> bool:
        """Whether every choice that began has its reason to finish."""
        return bool(self._choices) and all(choice.finished() for choice in self._choices.values())

    def whole(self) -> dict[str, Any]:
        choices = [choice.whole() for _, choice in sorted(self._choices.items())]
        return {**self._head, "choices": choices, "usage": self._usage}
