"""Stop sequences across chunks: a text is cut where it would be if it had come whole."""

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tollway_serving.gateway import shapes
from tollway_serving.gateway.stops import Stopper


def chunk(text: str, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"index": index, "delta": {"content": text}, "finish_reason": finish}


@given(
    text=st.text("ab\n", max_size=30),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 30), max_size=10),
)
def test_as_if_the_text_had_come_whole(text: str, stops: list[str], cuts: list[int]) -> None:
    found = [at for at in map(text.find, stops) if at >= 0]
    expected = text[: min(found)] if found else text
    stopper = Stopper(tuple(stops), shapes.CHAT, 1)
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    sent = []
    for start, end in pairwise(edges):
        sent += stopper.feed([chunk(text[start:end])])
    sent += stopper.feed([{"index": 0, "delta": {}, "finish_reason": "length"}])
    said = "".join(choice["delta"].get("content", "") for choice in sent)
    if found:
        # The first one that is whole ends it: of another one that began before it the end had not come yet.
        assert expected == said or said.startswith(expected)
        assert not any(stop in said for stop in stops)
    else:
        assert said == text
    assert stopper.ended == bool(found)
    assert [choice["finish_reason"] for choice in sent if choice["finish_reason"]] == ["stop" if found else "length"]
    whole = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
    stopper.whole(whole)
    assert whole["message"] == {"role": "assistant", "content": expected}


def test_choices_end_for_themselves() -> None:
    stopper = Stopper(("END",), shapes.COMPLETION, 2)

    def feed(text: str, index: int) -> list[str]:
        return [c["text"] for c in stopper.feed([{"index": index, "text": text, "finish_reason": None}])]

    assert feed("aE", 0) == ["a"]
    assert feed("bE", 1) == ["b"]
    assert feed("ND", 0) == [""]
    assert not stopper.ended
    assert feed("more", 0) == []
    assert feed("x", 1) == ["Ex"]
    assert feed("END", 1) == [""]
    assert stopper.ended
    assert not stopper.again().ended


def test_tool_calls_and_refusals_pass() -> None:
    stopper = Stopper(("x",), shapes.CHAT, 1)
    choice = {"index": 0, "delta": {"tool_calls": [{"index": 0}], "content": None}, "finish_reason": None}
    assert stopper.feed([choice]) == [choice]
    assert choice["delta"] == {"tool_calls": [{"index": 0}], "content": None}
    whole = {"index": 0, "message": {"content": None, "refusal": "x"}, "finish_reason": "stop"}
    stopper.whole(whole)
    assert whole["message"] == {"content": None, "refusal": "x"}
