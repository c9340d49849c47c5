"""OpenAI's bodies out of an engine's chunks: `app` streams or collects them through the shape of its route.

Pure, so that every engine's answers look alike and each shape has a unit test. One object serves one answer.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from tollway_serving.engines.protocol import CallDelta, Chunk


class Shape(Protocol):
    """How one route's answers look."""

    id_prefix: str
    whole_object: str
    chunk_object: str

    def choices(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """The choices of the stream's events that this chunk becomes, one an event."""

    def whole(self, chunks: Iterable[Chunk]) -> list[dict[str, Any]]:
        """All choices of an answer that is not streamed."""


class ChatShape:
    id_prefix, whole_object, chunk_object = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def __init__(self) -> None:
        self._begun: set[int] = set()

    def choices(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        def choice(delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
            return {"index": chunk.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

        if chunk.index not in self._begun:
            self._begun.add(chunk.index)
            yield choice({"role": "assistant", "content": None if chunk.calls else ""})
        if chunk.text or chunk.logprobs:
            yield choice({"content": chunk.text}, _chat_logprobs(chunk.logprobs))
        if chunk.calls:
            yield choice({"tool_calls": [call.body() for call in chunk.calls]})
        if chunk.finish_reason:
            yield choice({}, None, chunk.finish_reason)

    def whole(self, chunks: Iterable[Chunk]) -> list[dict[str, Any]]:
        return [_chat_choice(index, pieces) for index, pieces in _by_index(chunks)]


class CompletionShape:
    """The older /completions, with its own form of log probabilities and offsets into the text."""

    id_prefix, whole_object, chunk_object = "cmpl-", "text_completion", "text_completion"

    def __init__(self, top_logprobs: int | None) -> None:
        self._top = top_logprobs  # None: no log probabilities were asked for
        self._lengths: dict[int, int] = {}

    def choices(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        if chunk.text or chunk.logprobs or chunk.finish_reason:
            logprobs = self._logprobs(chunk.index, chunk.text, chunk.logprobs)
            yield {"index": chunk.index, "text": chunk.text, "logprobs": logprobs, "finish_reason": chunk.finish_reason}

    def whole(self, chunks: Iterable[Chunk]) -> list[dict[str, Any]]:
        return [self._whole_choice(index, pieces) for index, pieces in _by_index(chunks)]

    def _whole_choice(self, index: int, pieces: list[Chunk]) -> dict[str, Any]:
        merged: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for piece in pieces:
            for name, values in (self._logprobs(index, piece.text, piece.logprobs) or {}).items():
                merged[name] += values or []
        body: dict[str, Any] | None = None if self._top is None else dict(merged)
        if body and not self._top:
            body["top_logprobs"] = None
        return {
            "index": index,
            "text": "".join(piece.text for piece in pieces),
            "logprobs": body,
            "finish_reason": _reason(pieces),
        }

    def _logprobs(self, index: int, text: str, entries: list[dict[str, Any]] | None) -> dict[str, Any] | None:
        offset = self._lengths.get(index, 0)
        self._lengths[index] = offset + len(text)
        if self._top is None or entries is None:
            return None
        offsets = []
        for entry in entries:
            offsets.append(offset)
            offset += len(entry["token"])
        tops = [{other["token"]: other["logprob"] for other in entry["top_logprobs"][: self._top]} for entry in entries]
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": tops if self._top else None,
            "text_offset": offsets,
        }


def _chat_choice(index: int, pieces: list[Chunk]) -> dict[str, Any]:
    logprobs = [entry for piece in pieces for entry in piece.logprobs or ()]
    has_logprobs = any(piece.logprobs is not None for piece in pieces)
    text = "".join(piece.text for piece in pieces)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if calls := _joined(call for piece in pieces for call in piece.calls):
        message |= {"content": text or None, "tool_calls": calls}
    return {
        "index": index,
        "message": message,
        "logprobs": _chat_logprobs(logprobs if has_logprobs else None),
        "finish_reason": _reason(pieces),
    }


def _joined(deltas: Iterable[CallDelta]) -> list[dict[str, Any]]:
    """Whole calls out of their pieces."""
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        if delta.id is not None:
            calls[delta.index] = {
                "id": delta.id,
                "type": "function",
                "function": {"name": delta.name, "arguments": ""},
            }
        calls[delta.index]["function"]["arguments"] += delta.arguments
    return [calls[index] for index in sorted(calls)]


def _chat_logprobs(entries: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    return None if entries is None else {"content": entries, "refusal": None}


def _by_index(chunks: Iterable[Chunk]) -> list[tuple[int, list[Chunk]]]:
    pieces: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        pieces.setdefault(chunk.index, []).append(chunk)
    return sorted(pieces.items())


def _reason(pieces: list[Chunk]) -> str:
    return next((piece.finish_reason for piece in pieces if piece.finish_reason), "stop")
