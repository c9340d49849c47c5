"""Server-sent events, read and written: `relay` feeds it what a model sends and gets whole events back.

However the bytes arrive, split or merged, the events are the same. Comments, event names, ids and retry fields are
dropped: OpenAI's streams carry everything in `data`.
"""

DONE = b"[DONE]"

_MARK = b"\xef\xbb\xbf"


class TooLong(Exception):
    """An event longer than the limit: no model of ours sends one."""


class EventReader:
    """Bytes in, payloads of `data` fields out. `limit` bounds one event, in bytes."""

    def __init__(self, limit: int = 4 * 1024 * 1024) -> None:
        self._limit = limit
        self._rest = bytearray()  # an event that is not whole yet, line ends already \n
        self._seen = 0  # how far _rest was searched
        self._held_cr = False  # a \r at the end of the last bytes: a \n may follow
        self._begun = False
        self._mark = b""  # of a byte order mark that has not come whole

    @property
    def between(self) -> bool:
        """Whether what comes next begins an event."""
        return self._begun and not self._rest and not self._held_cr

    def whole(self, data: bytes) -> list[bytes] | None:
        """The payloads of `data` if it is whole events, written as nearly everybody does, and nothing before it waits
        for its end; else None, and `feed` has to read it."""
        if self._rest or self._held_cr or self._mark or not data.startswith(b"data: ") or not data.endswith(b"\n\n"):
            return None
        self._begun = True
        payloads = data[6:-2].split(b"\n\ndata: ")
        return payloads if data.count(b"\n") == 2 * len(payloads) and b"\r" not in data else None

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads of the events that became whole."""
        if (payloads := self.whole(data)) is not None:
            return payloads
        if not self._begun:
            data = self._mark + data
            if len(data) < len(_MARK) and _MARK.startswith(data):
                self._mark = data
                return []
            self._begun = True
            data = data.removeprefix(_MARK)
        if self._held_cr or b"\r" in data:
            data = self._normal(data)
        if self._rest:
            self._rest += data
            end = self._rest.rfind(b"\n\n", max(0, self._seen - 1))
            if end < 0:
                self._seen = len(self._rest)
                self._check()
                return []
            whole = bytes(self._rest[:end])
            del self._rest[: end + 2]
        else:
            end = data.rfind(b"\n\n")
            if end < 0:
                self._rest += data
                self._seen = len(self._rest)
                self._check()
                return []
            whole = data[:end]
            if end + 2 < len(data):
                self._rest += data[end + 2 :]
        self._seen = len(self._rest)
        self._check()
        return _payloads(whole)

    def _normal(self, data: bytes) -> bytes:
        if self._held_cr:
            data = b"\r" + data
        self._held_cr = data.endswith(b"\r")
        if self._held_cr:
            data = data[:-1]
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _check(self) -> None:
        if len(self._rest) > self._limit:
            raise TooLong


def _payloads(whole: bytes) -> list[bytes]:
    events = []
    for block in whole.split(b"\n\n"):
        if block.startswith(b"data: ") and b"\n" not in block:
            events.append(block[6:])
        elif payload := _payload(block):
            events.append(payload)
    return events


def _payload(block: bytes) -> bytes:
    parts = []
    for line in block.split(b"\n"):
        name, colon, value = line.partition(b":")
        if name == b"data":
            parts.append(value.removeprefix(b" ") if colon else b"")
    return b"\n".join(parts)


def event(payload: bytes) -> bytes:
    """One event; `payload` has no line ends (JSON, [DONE])."""
    return b"data: " + payload + b"\n\n"


def comment(text: str) -> bytes:
    """A line that clients skip."""
    return b": " + text.encode("utf-8") + b"\n\n"
