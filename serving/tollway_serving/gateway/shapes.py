"""What differs between the answers of a chat and of the older completions. Used by `relay`, `collect` and `text_work`.

A shape says what a choice looks like, whole and in a stream's chunks; how answers are read, counted, settled and sent
is the same for both.
"""

from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any, Final, Protocol

import orjson

_TEXTS = ("content", "refusal", "reasoning_content")
_CHAT_LOGPROBS = ("content", "refusal")
_COMPLETION_LOGPROBS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def utf8_size(text: str) -> int:
    """Bytes in UTF-8; most text is ASCII, which need not be encoded for that."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


class Joined(Protocol):
    """One choice, put together from a stream's chunks."""

    def add(self, choice: dict[str, Any]) -> None: ...
    def finished(self) -> bool:
        """Whether its reason to finish has come."""

    def whole(self) -> dict[str, Any]: ...


class Shape(Protocol):
    """Fields that are not named here never leave."""

    name: str  # of an answer, for logs
    prompt: str  # the request's parameter that has the prompt
    id: str  # of an answer whose model gives none
    whole_object: str
    whole_field: str  # what a whole choice must have, and of which type
    whole_type: type
    whole_fields: frozenset[str]
    chunk_object: str
    chunk_field: str
    chunk_type: type
    chunk_fields: frozenset[str]
    chunk_nulls: tuple[str, ...]  # what a chunk's choice has at least as null, beside its reason to finish
    joined: Callable[[int], Joined]

    def shape_logprobs(self, choice: dict[str, Any]) -> None:
        """Gives the log probabilities of a choice that has some OpenAI's shape."""

    def text(self, choice: dict[str, Any]) -> str:
        """What a whole choice, or a chunk's, says; "" where it says nothing."""

    def set_text(self, choice: dict[str, Any], text: str) -> None: ...

    def said(self, choice: dict[str, Any]) -> tuple[str, str] | None:
        """The field with a chunk's text, and the text, where that is all that was generated."""

    def size(self, choice: dict[str, Any]) -> int:
        """UTF-8 bytes of what was generated, for a whole choice or a chunk's that has no counts."""

    def tidy(self, choice: dict[str, Any]) -> None:
        """Adds what every whole choice of OpenAI's has."""


class _Chat:
    name = "chat completion"
    prompt = "messages"
    id = "chatcmpl-tollway"
    whole_object, whole_field = "chat.completion", "message"
    whole_type: type = dict
    whole_fields = frozenset({"index", "message", "finish_reason", "logprobs"})
    chunk_object, chunk_field = "chat.completion.chunk", "delta"
    chunk_type: type = dict
    chunk_fields = frozenset({"index", "delta", "finish_reason", "logprobs"})
    chunk_nulls: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.joined: Callable[[int], Joined] = _JoinedChat

    def shape_logprobs(self, choice: dict[str, Any]) -> None:
        found = choice["logprobs"]
        if type(found) is not dict:
            choice["logprobs"] = None
            return
        if "content" not in found and isinstance(found.get("tokens"), list):
            found = choice["logprobs"] = {"content": list(_entries(found)), "refusal": None}
        for entry in found.get("content") or ():
            if isinstance(entry, dict) and ("bytes" not in entry or "top_logprobs" not in entry):
                entry.setdefault("bytes", _bytes(entry.get("token")))
                entry.setdefault("top_logprobs", [])

    def text(self, choice: dict[str, Any]) -> str:
        said = (choice.get("delta") or choice.get("message") or {}).get("content")
        return said if isinstance(said, str) else ""

    def set_text(self, choice: dict[str, Any], text: str) -> None:
        choice["delta" if "delta" in choice else "message"]["content"] = text

    def said(self, choice: dict[str, Any]) -> tuple[str, str] | None:
        delta = choice["delta"]
        found = [(name, value) for name, value in delta.items() if value and name != "role"] or [
            ("content", delta.get("content"))
        ]
        name, value = found[0]
        return (name, value) if len(found) == 1 and isinstance(value, str) else None

    def size(self, choice: dict[str, Any]) -> int:
        generated = choice.get("delta")
        if generated is None:
            return len(orjson.dumps(choice["message"]))
        size = 0
        for name, value in generated.items():
            if isinstance(value, str):
                if name != "role":
                    size += utf8_size(value)
            elif value:
                size += len(orjson.dumps(value))
        return size

    def tidy(self, choice: dict[str, Any]) -> None:
        message = choice["message"]
        message.setdefault("role", "assistant")
        message.setdefault("content", None)
        message.setdefault("refusal", None)


class _Completion:
    name = "completion"
    prompt = "prompt"
    id = "cmpl-tollway"
    whole_object, whole_field = "text_completion", "text"
    whole_type: type = str
    whole_fields = frozenset({"index", "text", "finish_reason", "logprobs"})
    chunk_object, chunk_field = whole_object, whole_field
    chunk_type: type = str
    chunk_fields = whole_fields
    chunk_nulls: tuple[str, ...] = ("logprobs",)

    def __init__(self) -> None:
        self.joined: Callable[[int], Joined] = _JoinedCompletion

    def shape_logprobs(self, choice: dict[str, Any]) -> None:
        if type(choice["logprobs"]) is not dict:
            choice["logprobs"] = None

    def text(self, choice: dict[str, Any]) -> str:
        return str(choice["text"])

    def set_text(self, choice: dict[str, Any], text: str) -> None:
        choice["text"] = text

    def said(self, choice: dict[str, Any]) -> tuple[str, str] | None:
        return "text", choice["text"]

    def size(self, choice: dict[str, Any]) -> int:
        return utf8_size(choice["text"])

    def tidy(self, choice: dict[str, Any]) -> None:
        return


class _Choice:
    """What the choices of both shapes have in common."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._reason: Any = None
        self._logprobs: dict[str, list[Any] | None] | None = None

    def finished(self) -> bool:
        return self._reason is not None

    def _add(self, choice: dict[str, Any], names: tuple[str, ...]) -> None:
        if choice.get("finish_reason") is not None:
            self._reason = choice["finish_reason"]
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, dict):
            known = self._logprobs = self._logprobs or dict.fromkeys(names)
            for name in names:
                if isinstance(logprobs.get(name), list):
                    known[name] = (known[name] or []) + logprobs[name]

    def _whole(self, field: str, generated: Any) -> dict[str, Any]:
        return {"index": self._index, field: generated, "logprobs": self._logprobs, "finish_reason": self._reason}


class _JoinedChat(_Choice):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._texts: dict[str, list[str]] = {}
        self._calls: list[dict[str, Any]] = []

    def add(self, choice: dict[str, Any]) -> None:
        self._add(choice, _CHAT_LOGPROBS)
        delta = choice["delta"]
        for name in _TEXTS:
            text = delta.get(name)
            if isinstance(text, str):
                self._texts.setdefault(name, []).append(text)
        if isinstance(delta.get("tool_calls"), list):
            for part in delta["tool_calls"]:
                if isinstance(part, dict):
                    _add_call(self._calls, part)

    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant"}
        for name, texts in self._texts.items():
            text = "".join(texts)
            if text or name == "content":
                message[name] = text
        if self._calls:
            message["tool_calls"] = self._calls
            message["content"] = message.get("content") or None
        return self._whole("message", message)


class _JoinedCompletion(_Choice):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._texts: list[str] = []

    def add(self, choice: dict[str, Any]) -> None:
        self._add(choice, _COMPLETION_LOGPROBS)
        self._texts.append(choice["text"])

    def whole(self) -> dict[str, Any]:
        return self._whole("text", "".join(self._texts))


def _entries(older: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A chat's log probabilities from the older completions' lists, as some engines answer chats."""
    tokens, values, tops = (older.get(name) or () for name in ("tokens", "token_logprobs", "top_logprobs"))
    for token, value, top in zip_longest(tokens, values, tops):
        if isinstance(token, str):
            others = top.items() if isinstance(top, dict) else ()
            yield {
                "token": token,
                "logprob": value if isinstance(value, int | float) else -9999.0,  # OpenAI's "not known"
                "bytes": _bytes(token),
                "top_logprobs": [{"token": other, "logprob": found, "bytes": _bytes(other)} for other, found in others],
            }


def _bytes(token: Any) -> list[int] | None:
    return list(token.encode("utf-8", "surrogatepass")) if isinstance(token, str) else None


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


CHAT: Final[Shape] = _Chat()
COMPLETION: Final[Shape] = _Completion()
