"""Ids of requests and charges: made for each call by `call` and `admission`."""

import os
import re
import time
from collections.abc import Iterator

_TOKEN = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}\Z")


def _tails() -> Iterator[str]:
    """What follows the time in a UUIDv7: its version, its variant, 74 random bits. Drawn many at once, because a system
    call costs more than the rest of an id."""
    while True:
        drawn = os.urandom(10 * 200).hex()
        for at in range(0, len(drawn), 20):
            part = drawn[at : at + 20]
            yield f"-7{part[:3]}-{'89ab'[int(part[3], 16) & 3]}{part[4:7]}-{part[7:19]}"


_next = _tails().__next__


def uuid7() -> str:
    """A UUIDv7: sorts by time (milliseconds), 74 random bits."""
    stamp = "%012x" % (time.time_ns() // 1_000_000)
    return f"{stamp[:8]}-{stamp[8:]}{_next()}"


def valid_request_id(value: bytes | None) -> str | None:
    """A client's own request id if it is one HTTP token of at most 128 characters."""
    return value.decode("ascii") if value and _TOKEN.match(value) else None
