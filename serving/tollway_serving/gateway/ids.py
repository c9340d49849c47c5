"""Ids of requests and charges: made for each call by `call` and `admission`."""

import os
import re
import time
from collections.abc import Iterator

_TOKEN = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}\Z")


def _ten_bytes() -> Iterator[str]:
    """Random bytes in hexadecimal; drawn many at once, because a system call costs more than the rest of an id."""
    while True:
        drawn = os.urandom(10 * 200).hex()
        for at in range(0, len(drawn), 20):
            yield drawn[at : at + 20]


_random = _ten_bytes()


def uuid7() -> str:
    """A UUIDv7: sorts by time (milliseconds), 74 random bits."""
    stamp = f"{time.time_ns() // 1_000_000:012x}"
    drawn = next(_random)
    return f"{stamp[:8]}-{stamp[8:]}-7{drawn[:3]}-{'89ab'[int(drawn[3], 16) & 3]}{drawn[4:7]}-{drawn[7:19]}"


def valid_request_id(value: bytes | None) -> str | None:
    """A client's own request id if it is one HTTP token of at most 128 characters."""
    return value.decode("ascii") if value and _TOKEN.match(value) else None
