"""Tools and response formats: what is generated, by which grammar, and how calls are read while they come."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gbnf import Sentences

from tollway_serving.engines.calls import CallReader
from tollway_serving.engines.constrained import MAX_CALLS, Plan, plan
from tollway_serving.engines.decision import Decider
from tollway_serving.engines.protocol import EngineError


def tool(name: str, description: str = "", parameters: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters, **more},
    }


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = tool("get_weather", "Get the weather", CITY)
TIME = tool("get_time", "Get the time", {"type": "object", "properties": {"zone": {"enum": ["utc", "cet"]}}})
QUESTION = [{"role": "user", "content": "Weather in Paris?"}]


def call(name: str, arguments: str, id_: str = "c1") -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


ASKED = {"role": "assistant", "content": "", "tool_calls": [call("get_weather", '{"city":"Paris"}')]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "18 degrees"}


def planned(messages: list[dict[str, Any]] | None = None, **request: Any) -> Plan:
    return plan({"messages": messages or QUESTION, **request})


def read(text: str, sizes: list[int]) -> tuple[str, list[tuple[str, str]], CallReader]:
    """The calls in `text`, fed in pieces of these sizes (repeated)."""
    reader = CallReader("calls")
    calls: dict[int, tuple[str, str]] = {}
    ids: set[str] = set()
    at, step = 0, 0
    while at < len(text):
        size = sizes[step % len(sizes)]
        plain, deltas = reader.feed(text[at : at + size])
        assert plain == ""
        for delta in deltas:
            if delta.id:
                assert delta.index == len(calls)
                assert delta.id.startswith("call_")
                ids.add(delta.id)
                calls[delta.index] = (str(delta.name), "")
            name, arguments = calls[delta.index]
            calls[delta.index] = (name, arguments + delta.arguments)
        at, step = at + size, step + 1
    assert len(ids) == len(calls)
    return text, list(calls.values()), reader


def test_without_tools_nothing_is_added() -> None:
    assert planned() == Plan(QUESTION)
    assert planned(tools=[], tool_choice="auto") == Plan(QUESTION)
    assert planned(tools=[WEATHER], tool_choice="none") == Plan(QUESTION)


def test_required_calls_are_valid_for_their_function() -> None:
    how = planned(tools=[WEATHER, TIME], tool_choice="required")
    assert how.mode == "calls"
    sentences = Sentences(str(how.call_grammar))
    seen = set()
    for seed in range(80):
        _, calls, reader = read(sentences.random(seed), [7])
        assert reader.finish("stop") == "tool_calls"
        assert 1 <= len(calls) <= MAX_CALLS
        for name, arguments in calls:
            function = next(t["function"] for t in (WEATHER, TIME) if t["function"]["name"] == name)
            jsonschema.validate(json.loads(arguments), function["parameters"])
        seen |= {name for name, _ in calls} | ({"several"} if len(calls) > 1 else set())
    assert seen == {"get_weather", "get_time", "several"}


def test_one_call_and_only_the_named_function() -> None:
    named = {"type": "function", "function": {"name": "get_time"}}
    how = planned(tools=[WEATHER, TIME], tool_choice=named, parallel_tool_calls=False)
    sentences = Sentences(str(how.call_grammar))
    for seed in range(30):
        _, calls, _ = read(sentences.random(seed), [100])
        assert [name for name, _ in calls] == ["get_time"]


def test_functions_without_parameters_take_an_empty_object() -> None:
    how = planned(tools=[tool("now")], tool_choice="required", parallel_tool_calls=False)
    assert Sentences(str(how.call_grammar)).random(1) == '{"name": "now", "arguments": {}}'


def test_the_system_prompt_describes_functions_and_keeps_the_clients() -> None:
    how = planned([{"role": "system", "content": "Be kind."}, *QUESTION], tools=[WEATHER], tool_choice="required")
    assert [message["role"] for message in how.messages] == ["system", "user"]
    assert how.messages[0]["content"].startswith("Be kind.\n\n")
    assert '"name": "get_weather"' in how.messages[0]["content"]
    assert '"city"' in how.messages[0]["content"]


def test_auto_decides_with_the_users_last_words() -> None:
    how = planned(tools=[WEATHER, TIME])
    assert how.mode == "decide"
    assert how.decision is not None
    assert how.decision.labels == ("get_weather", "get_time")
    assert how.decision.neither == "none"
    assert "Weather in Paris?" in how.decision.asked[-1]["content"]
    assert how.decision.asked[:-1] == how.decision.neutral[:-1]
    free = Sentences(str(how.text_grammar))
    assert all(not free.random(seed).startswith(("{", "[")) for seed in range(50))


def test_none_as_a_function_is_no_trouble() -> None:
    how = planned(tools=[tool("none", "Does nothing")])
    assert how.decision is not None
    assert how.decision.neither not in how.decision.labels


def test_results_are_fed_back_and_a_function_is_called_once() -> None:
    how = planned([*QUESTION, ASKED, RESULT], tools=[WEATHER])
    assert how.mode == "text"
    assert [(m["role"], m["content"]) for m in how.messages[1:]] == [
        ("user", "Weather in Paris?"),
        ("assistant", '{"name": "get_weather", "arguments": {"city": "Paris"}}'),
        ("user", "Result of get_weather: 18 degrees"),
    ]
    again = planned([*QUESTION, ASKED, RESULT], tools=[WEATHER, TIME])
    assert again.mode == "decide"
    assert again.decision is not None
    assert again.decision.labels == ("get_time",)
    assert "Weather in Paris?" in again.decision.asked[-1]["content"]
    forced = planned([*QUESTION, ASKED, RESULT], tools=[WEATHER], tool_choice="required")
    assert forced.mode == "calls"


def test_parallel_calls_and_their_results_are_one_turn_each() -> None:
    asked = {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [call("get_weather", '{"city":"A"}', "a"), call("get_time", "{", "b")],
    }
    results = [{"role": "tool", "tool_call_id": i, "content": i.upper()} for i in ("b", "a")]
    how = planned([*QUESTION, asked, *results], tools=[WEATHER, TIME], tool_choice="none")
    assert [m["content"] for m in how.messages[1:]] == [
        'I look.\n[{"name": "get_weather", "arguments": {"city": "A"}}, {"name": "get_time", "arguments": {}]',
        "Result of get_time: B\nResult of get_weather: A",
    ]


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
        ({"tools": [tool("with space")]}, "tools[0].function.name"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": [tool("a", parameters={"type": "array"})]}, "tools[0].function.parameters"),
        ({"tools": [tool(f"f{n}") for n in range(129)]}, "tools"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice.function.name",
        ),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"messages": [*QUESTION, RESULT]}, "messages[1].tool_call_id"),
        ({"messages": [*QUESTION, ASKED, *QUESTION]}, "messages[2].role"),
        ({"messages": [*QUESTION, ASKED]}, "messages"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "c"}]}]}, "messages[0].tool_calls"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"strict": True, "schema": {"not": {}}}}},
            "response_format.json_schema.schema.not",
        ),
        (
            {"tools": [tool("a", parameters={"properties": {"b": {"format": "iri"}}}, strict=True)]},
            "tools[0].function.parameters.properties.b.format",
        ),
    ],
)
def test_refusals_name_the_place(request_: dict[str, Any], param: str) -> None:
    with pytest.raises(EngineError) as caught:
        planned(**request_)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_what_a_wish_leaves_out_is_reported() -> None:
    loose = tool("a", parameters={"properties": {"b": {"type": "integer", "multipleOf": 2}}})
    how = planned(tools=[loose], tool_choice="required")
    assert how.ignored == ("tools[0].function.parameters.properties.b.multipleOf",)
    wish = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}}}
    assert planned(response_format=wish).ignored == ("response_format.json_schema.schema.uniqueItems",)


def test_json_objects_are_bounded_objects() -> None:
    sentences = Sentences(str(planned(response_format={"type": "json_object"}).text_grammar))
    for seed in range(50):
        text = sentences.random(seed, budget=200)
        assert isinstance(json.loads(text), dict)
        assert "\n" not in text
        assert "  " not in text.replace('"', "") or '"' in text


ARGUMENTS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(st.text() | st.integers() | st.none(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)),
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.from_regex(r"\A[A-Za-z0-9_-]{1,8}\Z"), ARGUMENTS), min_size=1, max_size=4),
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_calls_are_read_whole_however_they_are_cut(calls: list[tuple[str, Any]], sizes: list[int]) -> None:
    """Also with braces, quotes and the grammar's own marks inside of strings."""
    written = [json.dumps({"name": name, "arguments": arguments}) for name, arguments in calls]
    text = written[0] if len(calls) == 1 else "[" + ", ".join(written) + "]"
    _, found, reader = read(text, sizes)
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls
    assert reader.finish("stop") == "tool_calls"
    assert reader.finish("length") == "length"


def test_arguments_come_piece_by_piece() -> None:
    reader = CallReader("calls")
    pieces = [reader.feed(piece)[1] for piece in ('{"name": "f', '", "arguments": {"a"', ': "}', 'x"', "}}")]
    assert [[(d.name, d.arguments) for d in deltas] for deltas in pieces] == [
        [],
        [("f", ""), (None, '{"a"')],
        [(None, ': "}')],
        [(None, 'x"')],
        [(None, "}")],
    ]
    assert CallReader("text").feed('{"name": "f') == ('{"name": "f', ())


class Model:
    """Answers the decider with fixed log probabilities: of (request, label)."""

    def __init__(self, table: dict[tuple[str, str], float]) -> None:
        self.table = table
        self.calls = 0

    async def run(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        self.calls += 1
        request = body["messages"][-1]["content"].split("\n")[0].removeprefix("Request: ")
        labels = {Sentences(body["grammar"]).random(seed) for seed in range(20)}
        label = max(labels, key=lambda name: self.table[request, name])
        logprobs = {"content": [{"logprob": self.table[request, label] / 2}] * 2}
        yield {"choices": [{"delta": {"content": label[:2]}, "logprobs": logprobs}]}
        yield {"choices": [{"delta": {"content": label[2:]}}]}


async def test_a_function_is_needed_if_it_is_likelier_than_for_a_request_for_nothing() -> None:
    table = {("N/A", "get_weather"): -4.0, ("N/A", "get_time"): -3.0, ("N/A", "none"): -1.0}
    for weather, neither, needed in [(-1.0, -2.0, True), (-2.0, -1.0, False), (-0.1, -0.5, True), (-5.0, -0.1, False)]:
        model = Model(
            table
            | {
                ("Weather in Paris?", "get_weather"): weather,
                ("Weather in Paris?", "get_time"): -9.0,
                ("Weather in Paris?", "none"): neither,
            }
        )
        decider = Decider(model.run)
        decision = planned(tools=[WEATHER, TIME]).decision
        assert decision is not None
        assert await decider.needed(decision) is needed
        assert model.calls == 4
        assert await decider.needed(decision) is needed
        assert model.calls == 6  # the request for nothing is remembered
