"""Ids of requests and charges: made for each call by `call` and `admission`."""

import os
import re
import time

_TOKEN = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}\Z")


def uuid7() -> str:
    """A UUIDv7: sorts by time (milliseconds), 74 random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def valid_request_id(value: bytes | None) -> str | None:
    """A client's own request id if it is one HTTP token of at most 128 characters."""
    return value.decode("ascii") if value and _TOKEN.match(value) else None
