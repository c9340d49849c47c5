"""A stream put together into one answer: for clients that did not ask for a stream. Called by `routes.chat`.

Our own engines are always asked for a stream. Only so is it known what was generated when a client leaves half-way,
and only so do the limits on the first byte and on silence mean something for an answer that comes whole.
"""

from typing import Any

from tollway_serving.contract.catalogue import ModelEntry
from tollway_serving.gateway import sse
from tollway_serving.gateway.metering import Meter
from tollway_serving.gateway.relay import Peeked, parse_chunk, text_size
from tollway_serving.gateway.upstream import Answer
from tollway_serving.gateway.upstream_errors import error_event, unavailable

_TEXTS = ("content", "refusal", "reasoning_content")
_MAX_ANSWER = 64 * 1024 * 1024


async def collect(entry: ModelEntry, answer: Answer, peeked: Peeked, meter: Meter) -> dict[str, Any]:
    """The whole answer, as a model would have sent it. UpstreamFailed, Failed or ApiError if the stream breaks."""
    answer.limit_silence(entry.timeouts.idle_ms / 1000)
    parts = _Parts()
    events, size = peeked.events, 0
    while True:
        for payload in events:
            if payload == sse.DONE:
                return parts.whole()
            size += len(payload)
            chunk = parse_chunk(payload)
            if chunk is None or size > _MAX_ANSWER:
                raise unavailable(entry, "an event is no chunk, or the answer is too long")
            if chunk.get("error"):
                raise error_event(entry, chunk["error"])
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

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._usage: Any = None
        self._choices: dict[int, dict[str, Any]] = {}
        self._texts: dict[tuple[int, str], list[str]] = {}

    def add(self, chunk: dict[str, Any], meter: Meter) -> None:
        if not self._head:
            self._head = {name: chunk.get(name) for name in ("id", "created", "system_fingerprint")}
        choices = chunk.get("choices") or ()
        usage = chunk.get("usage")
        if usage is not None and meter.usage(usage):
            self._usage = usage
        else:
            for choice in choices:
                meter.text(text_size(choice["delta"]))
        for choice in choices:
            self._add_choice(choice)

    def _add_choice(self, delta_choice: dict[str, Any]) -> None:
        index = delta_choice.get("index")
        index = index if type(index) is int else 0
        choice = self._choices.get(index)
        if choice is None:
            choice = {"index": index, "message": {"role": "assistant"}, "logprobs": None, "finish_reason": None}
            self._choices[index] = choice
        delta = delta_choice["delta"]
        for name in _TEXTS:
            text = delta.get(name)
            if isinstance(text, str):
                self._texts.setdefault((index, name), []).append(text)
        if isinstance(delta.get("tool_calls"), list):
            calls = choice["message"].setdefault("tool_calls", [])
            for part in delta["tool_calls"]:
                if isinstance(part, dict):
                    _add_call(calls, part)
        logprobs = delta_choice.get("logprobs")
        if isinstance(logprobs, dict):
            known = choice["logprobs"] = choice["logprobs"] or {"content": None, "refusal": None}
            for name in known:
                if isinstance(logprobs.get(name), list):
                    known[name] = (known[name] or []) + logprobs[name]
        if delta_choice.get("finish_reason") is not None:
            choice["finish_reason"] = delta_choice["finish_reason"]

    def complete(self) -> bool:
        """Whether every choice that began has its reason to finish."""
        return bool(self._choices) and all(c["finish_reason"] is not None for c in self._choices.values())

    def whole(self) -> dict[str, Any]:
        for (index, name), texts in self._texts.items():
            text = "".join(texts)
            if text or name == "content":
                self._choices[index]["message"][name] = text
        for choice in self._choices.values():
            if choice["message"].get("tool_calls") and not choice["message"].get("content"):
                choice["message"]["content"] = None
        choices = [self._choices[index] for index in sorted(self._choices)]
        return {**self._head, "choices": choices, "usage": self._usage}


def _add_call(calls: list[dict[str, Any]], part: dict[str, Any]) -> None:
    """A part of a tool call: the first one names it, later ones lengthen its arguments."""
    index = part.get("index")
    index = index if type(index) is int and 0 <= index <= len(calls) else max(0, len(calls) - 1)
    if index == len(calls):
        calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call = calls[index]
    if isinstance(part.get("id"), str):
        call["id"] = part["id"]
    function = part.get("function")
    if isinstance(function, dict):
        for name in ("name", "arguments"):
            if isinstance(function.get(name), str):
                call["function"][name] += function[name]
