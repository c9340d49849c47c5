"""What the chunks of one stream have in common, so that most of them need not be parsed. Used by `relay`, `collect`.

A model writes its chunks one like the other: only the text differs, and the counts where it sends them. A chunk with the
bytes of a parsed one before and behind its text, and nothing in the text that JSON writes in more than one way, says the
same as that one with this text in it. All others are parsed.
"""

from typing import Any

import orjson


class Template:
    """Made of one chunk by `learn`."""

    __slots__ = ("_counted", "_head", "_tail", "name")

    def __init__(self, name: str, head: bytes, tail: bytes, counted: bool) -> None:
        self.name = name  # of the field that the text is in
        self._head = head
        self._tail = tail  # from the text's closing quote to the chunk's end, or to its usage
        self._counted = counted

    def match(self, payload: bytes) -> tuple[bytes, dict[str, Any] | None] | None:
        """The text as it stands in a chunk like this one, in UTF-8, and its usage; None: it has to be parsed."""
        if not payload.startswith(self._head):
            return None
        begin = len(self._head)
        end = payload.find(b'"', begin)
        text = payload[begin:end]
        if b"\\" in text or end < 0:
            return None
        try:
            if not text.decode().isprintable():  # a control character is no JSON
                return None
            if not self._counted:
                return (text, None) if payload[end:] == self._tail else None
            if not payload.startswith(self._tail, end) or not payload.endswith(b"}"):
                return None
            usage = orjson.loads(payload[end + len(self._tail) : -1])
        except ValueError:
            return None
        return (text, usage) if type(usage) is dict else None


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
    template = Template(name, payload[:begin], tail, counted)
    # What it was made of is the first to be held against it.
    return template if tail and template.match(payload) == (text.encode(), usage if counted else None) else None


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
