"""What the chunks of one stream have in common, so that most of them need not be parsed. Used by `relay`.

A model writes its chunks one like the other: only the text differs, and the counts where it sends them. A chunk with
the bytes of a parsed one before and behind its text, and nothing in the text that JSON writes in more than one way,
says the same as that one with this text in it. All others are parsed.
"""

from typing import Any

import orjson

_MOST = 64  # looked at in one go: where each text has to be parsed, those behind it are looked at again each time


class Template:
    """Made of one chunk by `learn`."""

    __slots__ = ("_counted", "_event_head", "_event_tail", "_head", "_tail")

    def __init__(self, head: bytes, tail: bytes, counted: bool) -> None:
        self._head = head
        self._tail = tail  # from the text's closing quote to the chunk's end, or to its usage
        self._counted = counted
        self._event_head = b"data: " + head
        self._event_tail = tail if counted else tail + b"\n\n"

    def one(self, event: bytes) -> tuple[bytes, dict[str, Any] | None] | None:
        """The text and the usage of one event as it came in, if it is like this chunk: at a model's pace nothing else
        comes, and this costs half of `run`."""
        begin = len(self._event_head)
        end = event.find(b'"', begin)
        if end < 0 or not event.startswith(self._event_head) or not event.startswith(self._event_tail, end):
            return None
        text = event[begin:end]
        if not _plain(text):
            return None
        behind = event[end + len(self._event_tail) :]
        if not self._counted:
            return None if behind else (text, None)
        if behind.find(b"\n") != len(behind) - 2 or b"\r" in behind:
            return None
        usage = _usage(behind[:-2], 0)
        return None if usage is None else (text, usage)

    def run(self, payloads: list[bytes], begin: int = 0) -> tuple[list[bytes], list[dict[str, Any]]]:
        """The texts of the chunks from `begin` on that are like this one, up to the first that is not, in UTF-8 as they
        stand there; and the usage of each, where they have one."""
        head, tail, counted = self._head, self._tail, self._counted
        at, length = len(head), len(tail)
        texts, usages = [], []
        for payload in payloads[begin : begin + _MOST]:
            end = payload.find(b'"', at)
            if end < 0 or not payload.startswith(head) or not payload.startswith(tail, end):
                break
            if counted:
                if (usage := _usage(payload, end + length)) is None:
                    break
                usages.append(usage)
            elif len(payload) != end + length:
                break
            texts.append(payload[at:end])
        if texts and not _plain(b" ".join(texts)):
            first = next(index for index, text in enumerate(texts) if not _plain(text))
            del texts[first:], usages[first:]
        return texts, usages


def _usage(payload: bytes, begin: int) -> dict[str, Any] | None:
    """The object at the end of a payload, before the brace that closes the chunk."""
    try:
        usage = orjson.loads(payload[begin:-1]) if payload.endswith(b"}") else None
    except orjson.JSONDecodeError:
        return None
    return usage if type(usage) is dict else None


def _plain(text: bytes) -> bool:
    """Whether JSON has no other way to write this, and it is one: no escapes, no control characters, whole UTF-8."""
    try:
        return b"\\" not in text and text.decode().isprintable()
    except UnicodeDecodeError:
        return False


def learn(payload: bytes, name: str, text: str, usage: Any) -> Template | None:
    """Of a chunk that was parsed: `name` is the field that has `text`, `usage` what the chunk has as its usage."""
    begin = place(payload, name, text)
    if begin is None:
        return None
    end = begin + len(text.encode())
    counted = type(usage) is dict
    if counted:
        key = payload.rfind(b'"usage"')
        tail = payload[end : payload.find(b"{", key)] if key > end and payload.count(b'"usage"') == 1 else b""
    else:
        tail = payload[end:]
    template = Template(payload[:begin], tail, counted)
    # What it was made of is the first to be held against it.
    return template if tail and template.run([payload]) == ([text.encode()], [usage] if counted else []) else None


def place(document: bytes, name: str, text: str) -> int | None:
    """Where `text` begins in a document of which only one field has this name; None: that is not to be said."""
    key = b'"%b"' % name.encode()
    # Within a string these quotes would be escaped.
    if document.count(key) != 1:
        return None
    behind = document.index(key) + len(key)
    begin = document.find(b'"', behind) + 1
    written = text.encode("utf-8", "replace") + b'"'
    return begin if document[behind : begin - 1].strip() == b":" and document.startswith(written, begin) else None
