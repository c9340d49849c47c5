"""Chunks as OpenAI's bodies: chat and completions, streamed and whole say the same."""

from typing import Any

from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tollway_serving.engines.answers import ChatShape, CompletionShape
from tollway_serving.engines.protocol import CallDelta, Chunk, Usage

HEAD = {"id": "x", "created": 1, "model": "m"}


def logprob(token: str, value: float = -0.5) -> dict[str, Any]:
    top = [
        {"token": token, "logprob": value, "bytes": list(token.encode())},
        {"token": "~", "logprob": -9.0, "bytes": [126]},
    ]
    return {**top[0], "top_logprobs": top}


def chunk(index: int, text: str = "", **more: Any) -> Chunk:
    return Chunk(index, text, Usage(1, 1), **more)


CALLS = [
    chunk(0, calls=(CallDelta(0, "call_a", "f"), CallDelta(0, arguments="{"))),
    chunk(1, "plain"),
    chunk(0, calls=(CallDelta(0, arguments="}"), CallDelta(1, "call_b", "g"))),
    chunk(0, calls=(CallDelta(1, arguments="{}"),)),
    chunk(0, finish_reason="tool_calls"),
    chunk(1, finish_reason="stop"),
]


def test_calls_whole() -> None:
    answer = {**HEAD, "object": ChatShape.whole_object, "choices": ChatShape().whole(CALLS)}
    first, second = ChatCompletion.model_validate(answer, strict=True).choices
    assert first.finish_reason == "tool_calls"
    assert first.message.content is None
    assert [(c.id, c.function.name, c.function.arguments) for c in first.message.tool_calls or ()] == [  # type: ignore[union-attr]
        ("call_a", "f", "{}"),
        ("call_b", "g", "{}"),
    ]
    assert (second.message.content, second.message.tool_calls, second.finish_reason) == ("plain", None, "stop")


def test_calls_streamed() -> None:
    shape = ChatShape()
    choices = [choice for piece in CALLS for choice in shape.choices(piece)]
    for choice in choices:
        ChatCompletionChunk.model_validate({**HEAD, "object": shape.chunk_object, "choices": [choice]}, strict=True)
    first = [choice["delta"] for choice in choices if choice["index"] == 0]
    assert first[0] == {"role": "assistant", "content": None}
    assert first[1] == {
        "tool_calls": [
            {"index": 0, "id": "call_a", "type": "function", "function": {"name": "f", "arguments": ""}},
            {"index": 0, "function": {"arguments": "{"}},
        ]
    }
    assert [choice["finish_reason"] for choice in choices if choice["index"] == 0] == [None] * 4 + ["tool_calls"]
    assert [choice["delta"] for choice in choices if choice["index"] == 1] == [
        {"role": "assistant", "content": ""},
        {"content": "plain"},
        {},
    ]


def test_chat_logprobs_have_openais_shape() -> None:
    pieces = [
        chunk(0, "a", logprobs=[logprob("a")]),
        chunk(0, "b", logprobs=[logprob("b")]),
        chunk(0, finish_reason="length"),
    ]
    answer = {**HEAD, "object": "chat.completion", "choices": ChatShape().whole(pieces)}
    (choice,) = ChatCompletion.model_validate(answer, strict=True).choices
    assert choice.logprobs is not None
    assert [entry.token for entry in choice.logprobs.content or ()] == ["a", "b"]
    assert choice.finish_reason == "length"
    assert ChatShape().whole([chunk(0, "a")])[0]["logprobs"] is None


def test_completion_logprobs_have_the_older_shape_and_offsets() -> None:
    pieces = [
        chunk(0, "Hi a", logprobs=[logprob(" a", -0.25)]),
        chunk(0, "é!", logprobs=[logprob("é"), logprob("!")]),
        chunk(0, finish_reason="stop"),
    ]
    pieces[0] = chunk(0, " a", logprobs=[logprob(" a", -0.25)])
    answer = {**HEAD, "object": "text_completion", "choices": CompletionShape(1).whole(pieces)}
    (choice,) = Completion.model_validate(answer, strict=True).choices
    assert choice.text == " aé!"
    assert choice.logprobs is not None
    assert choice.logprobs.model_dump() == {
        "tokens": [" a", "é", "!"],
        "token_logprobs": [-0.25, -0.5, -0.5],
        "top_logprobs": [{" a": -0.25}, {"é": -0.5}, {"!": -0.5}],
        "text_offset": [0, 2, 3],
    }
    assert CompletionShape(0).whole(pieces)[0]["logprobs"]["top_logprobs"] is None
    assert CompletionShape(None).whole(pieces)[0]["logprobs"] is None


def test_completions_streamed_are_the_same_as_whole() -> None:
    pieces = [
        chunk(1, "b", logprobs=[logprob("b")]),
        chunk(0, "a", logprobs=[logprob("a")]),
        chunk(1, "c", logprobs=[logprob("c")]),
    ]
    pieces += [chunk(1, finish_reason="length"), chunk(0, finish_reason="stop")]
    shape = CompletionShape(2)
    streamed: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        for choice in shape.choices(piece):
            Completion.model_validate(
                {**HEAD, "object": "text_completion", "choices": [{**choice, "finish_reason": "stop"}]}
            )
            mine = streamed.setdefault(choice["index"], {"text": "", "text_offset": [], "finish_reason": None})
            mine["text"] += choice["text"]
            mine["text_offset"] += (choice["logprobs"] or {}).get("text_offset", [])
            mine["finish_reason"] = choice["finish_reason"] or mine["finish_reason"]
    whole = {c["index"]: c for c in CompletionShape(2).whole(pieces)}
    for index, mine in streamed.items():
        assert (mine["text"], mine["finish_reason"]) == (whole[index]["text"], whole[index]["finish_reason"])
        assert mine["text_offset"] == whole[index]["logprobs"]["text_offset"]
