"""Chunks that are not parsed: what a template takes for known is what parsing would have found."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollway_serving.gateway.sse import EventReader, event
from tollway_serving.gateway.template import Template, learn, place

_TEXTS = st.one_of(
    st.text(max_size=12), st.sampled_from(["", " w", '"', "\\", "\n", "é", "日本", "\u200d", "\x00", "}", '"}'])
)


def chunk(text: str, usage: Any = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    whole: dict[str, Any] = {"id": "c-1", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **more}
    return whole if usage is None else {**whole, "usage": usage}


def learned(usage: Any = None) -> Template:
    template = learn(orjson.dumps(chunk("word", usage)), "content", "word", usage)
    assert template is not None
    return template


def usage_of(prompt: int, output: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": output}


@given(_TEXTS, st.booleans(), st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), max_size=3))
def test_what_it_knows_is_what_is_there(text: str, counted: bool, changes: list[tuple[int, bytes]]) -> None:
    """Whatever a model sends: a chunk like the first one, one that is broken anywhere, one with another text."""
    usage = usage_of(3, 4) if counted else None
    payload = orjson.dumps(chunk(text, usage))
    for place_, put in changes:
        payload = payload[:place_] + put + payload[place_ + len(put) :]
    texts, usages = learned(usage).run([payload])
    if texts:
        assert orjson.loads(payload) == chunk(texts[0].decode(), *usages)
    one = learned(usage).one(event(payload))
    if one is not None:
        assert [event(payload)[6:-2]] == EventReader().feed(event(payload))
        assert orjson.loads(payload) == chunk(one[0].decode(), one[1])
    if payload == orjson.dumps(chunk(text, usage)):
        assert one == ((texts[0], usages[0] if usages else None) if texts else None)


@given(st.lists(st.text(alphabet=st.characters(codec="utf-8", categories=["L", "N"]), max_size=8), min_size=1))
@pytest.mark.parametrize("counted", [False, True])
def test_plain_text_is_known(counted: bool, words: list[str]) -> None:
    first = usage_of(0, 0) if counted else None
    usages = [usage_of(3, count) if counted else None for count in range(len(words))]
    payloads = [orjson.dumps(chunk(word, usage)) for word, usage in zip(words, usages, strict=True)]
    texts, found, at = [], [], 0
    while at < len(payloads):
        some, theirs = learned(first).run(payloads, at)
        assert some
        texts += some
        found += theirs
        at += len(some)
    assert [text.decode() for text in texts] == words
    assert found == (usages if counted else [])


@pytest.mark.parametrize(
    "odd",
    [
        orjson.dumps(chunk("a\nb")),
        orjson.dumps(chunk('say "x"')),
        orjson.dumps({**chunk("a"), "error": {"message": "x"}}),
        orjson.dumps(chunk("a", id="c-2")),
        orjson.dumps(chunk("a")).replace(b"null}]", b'"stop"}]'),
        orjson.dumps(chunk("a")).replace(b'"a"', b'"\xff"'),
        orjson.dumps(chunk("a")) + b" ",
        b"[DONE]",
        b"",
    ],
)
def test_it_knows_those_before_another_one(odd: bytes) -> None:
    one, two = orjson.dumps(chunk("one")), orjson.dumps(chunk("two"))
    assert learned().run([one, two, odd, one]) == ([b"one", b"two"], [])
    assert learned().run([odd, one]) == ([], [])


def test_text_that_is_whole_only_together_is_not_known() -> None:
    half = [orjson.dumps(chunk("a")).replace(b'"a"', b'"%b"' % part) for part in (b"\xc3", b"\xa9")]
    assert learned().run(half) == ([], [])


@pytest.mark.parametrize("broken", [b"{", b'{"completion_tokens":1},"choices":[]', b"7", b"{} "])
def test_counts_that_are_none_are_not_known(broken: bytes) -> None:
    template, good = learned(usage_of(3, 4)), orjson.dumps(chunk("a", usage_of(3, 5)))
    bad = orjson.dumps(chunk("b", usage_of(3, 6))).replace(orjson.dumps(usage_of(3, 6)), broken)
    known = template.run([good, bad])
    if broken == b"{} ":
        assert known == ([b"a", b"b"], [usage_of(3, 5), {}])
    else:
        assert known == ([b"a"], [usage_of(3, 5)])


@pytest.mark.parametrize(
    "payload",
    [
        orjson.dumps(chunk("word", content="word")),  # which of the two?
        orjson.dumps(chunk("word")).replace(b'"word"', b'"wor\\u0064"'),
        orjson.dumps(chunk("word")).replace(b'"content"', b'"conten\\u0074"'),
        orjson.dumps({**chunk("word"), "usage": usage_of(3, 4), "more": 1}),
    ],
)
def test_what_it_does_not_learn_from(payload: bytes) -> None:
    assert learn(payload, "content", "word", orjson.loads(payload).get("usage")) is None


def test_spaces_are_learned_as_they_are() -> None:
    document = b'{"choices": [{"delta": {"content" : "word"}}]}'
    begin = place(document, "content", "word")
    assert begin is not None
    assert document[begin:].startswith(b"word")
    template = learn(document, "content", "word", None)
    assert template is not None
    assert template.run([document.replace(b"word", b"next")]) == ([b"next"], [])
