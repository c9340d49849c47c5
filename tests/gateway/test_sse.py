"""The SSE reader: the same events however the bytes arrive."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway_serving.gateway.sse import EventReader, TooLong, event

_PAYLOADS = st.lists(st.binary(min_size=1, max_size=40).filter(lambda b: b"\r" not in b and b"\n" not in b), max_size=8)
_NOISE = st.sampled_from([b"", b": a comment%b%b", b"event: x%bid: 1%b%b", b"retry: 5%b%b", b"%b", b":%b%b"])


@st.composite
def _streams(draw: st.DrawFn) -> tuple[list[bytes], bytes]:
    """Payloads, and the bytes of a stream that holds them: any line end, noise between, with or without the space."""
    payloads = draw(_PAYLOADS)
    raw = b"\xef\xbb\xbf" if draw(st.booleans()) else b""
    for payload in payloads:
        end = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
        noise = draw(_NOISE)
        raw += noise.replace(b"%b", end)
        space = b" " if payload.startswith(b" ") or draw(st.booleans()) else b""
        raw += b"data:" + space + payload + end + end
    return payloads, raw


@given(_streams(), st.lists(st.integers(0, 600)))
def test_events_do_not_depend_on_how_bytes_arrive(stream: tuple[list[bytes], bytes], cuts: list[int]) -> None:
    payloads, raw = stream
    reader, events = EventReader(), []
    places = sorted({min(cut, len(raw)) for cut in cuts} | {0, len(raw)})
    for begin, end in pairwise(places):
        events += reader.feed(raw[begin:end])
    events += reader.feed(b"\n\n")  # a \r at the very end may have had a \n to come
    assert events == payloads


@given(st.lists(st.binary(min_size=1, max_size=20).filter(lambda b: not set(b) & {10, 13}), max_size=5))
def test_what_we_write_is_read_back(payloads: list[bytes]) -> None:
    raw = b"".join(event(payload) for payload in payloads)
    reader = EventReader()
    assert [e for i in range(len(raw)) for e in reader.feed(raw[i : i + 1])] == payloads


def test_lines_of_one_event_are_joined() -> None:
    assert EventReader().feed(b"data: a\ndata: b\nid: 7\n\n") == [b"a\nb"]


def test_a_byte_order_mark_may_come_in_pieces() -> None:
    reader, raw = EventReader(), b"\xef\xbb\xbfdata: a\n\n"
    assert [e for i in range(len(raw)) for e in reader.feed(raw[i : i + 1])] == [b"a"]
    assert EventReader().feed(b"data: a\n\n") == [b"a"]


def test_an_endless_event_is_given_up() -> None:
    reader = EventReader(limit=1000)
    reader.feed(b"data: " + b"x" * 900)
    with pytest.raises(TooLong):
        reader.feed(b"x" * 200)
