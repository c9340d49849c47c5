"""What the chunks of one stream have in common, so that most of them need not be parsed. Used by `relay`.

A model writes its chunks one like the other: only the text differs, and the counts where it sends them. A chunk with
the bytes of a parsed one before and behind its text, and nothing in the text that JSON writes in more than one way,
says the same as that one with this text in it. All others are parsed.
"""

from typing import Any

import orjson

from tollway_serving.gateway.sse import SEAM


class Template:
    """Made of one chunk by `learn`."""

    __slots__ = ("_between", "_counted", "_head", "_tail")

    def __init__(self, head: bytes, tail: bytes, counted: bool) -> None:
        self._head = head
        self._tail = tail  # from the text's closing quote to the chunk's end, or to its usage
        self._counted = counted
        self._between = SEAM + head if counted else tail + SEAM + head

    def alike(self, payloads: list[bytes], begin: int) -> int:
        """How far those from `begin` on begin like this one: the first that does not."""
        head = self._head
        for at in range(begin, len(payloads)):
            if not payloads[at].startswith(head):
                return at
        return len(payloads)

    def match(self, payloads: bytes) -> tuple[list[bytes], dict[str, Any] | None] | None:
        """The texts of chunks like this one, in UTF-8 as they stand there, and the last one's usage, which counts for
        all; None: one has to be parsed. `payloads` is one or more with `sse.SEAM` between them."""
        head, tail = self._head, self._tail
        if not payloads.startswith(head):
            return None
        if b"\n" in payloads:
            return self._match_several(payloads)
        begin = len(head)
        end = payloads.find(b'"', begin)
        if end < 0 or not payloads.startswith(tail, end):
            return None
        text, behind = payloads[begin:end], payloads[end + len(tail) :]
        try:
            if b"\\" in text or not text.decode().isprintable():  # a control character is no JSON
                return None
            if not self._counted:
                return None if behind else ([text], None)
            usage = orjson.loads(behind[:-1])
        except ValueError:
            return None
        return ([text], usage) if type(usage) is dict and behind[-1:] == b"}" else None

    def _match_several(self, payloads: bytes) -> tuple[list[bytes], dict[str, Any] | None] | None:
        """All at once: a loop in Python would cost more than all else that is done to a chunk."""
        head, tail = self._head, self._tail
        usage = None
        try:
            if self._counted:
                parts = [part.partition(tail) for part in payloads[len(head) :].split(self._between)]
                texts = [part[0] for part in parts]
                seams = len(parts) - 1
                if payloads.count(tail) <= seams or payloads.count(b"\n") > 2 * seams or b"\r" in payloads:
                    return None  # something else is between them
                if payloads[-1:] != b"}" or type(usage := orjson.loads(parts[-1][2][:-1])) is not dict:
                    return None
            else:
                if not payloads.endswith(tail) or len(payloads) < len(head) + len(tail):
                    return None
                texts = payloads[len(head) : -len(tail)].split(self._between)
            together = b" ".join(texts)
            # A line end would begin something else.
            if b'"' in together or b"\\" in together or not together.decode().isprintable():
                return None
        except ValueError:
            return None
        return texts, usage


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
    return template if tail and template.match(payload) == ([text.encode()], usage if counted else None) else None


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
