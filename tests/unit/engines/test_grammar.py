"""What the grammars allow is valid for the schemas they were made of: checked by writing random sentences of them."""

import json
import re
import string
from datetime import datetime, time
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.gbnf import Sentences

from tollway_serving.engines.gbnf import FORMATS
from tollway_serving.engines.grammar import schema_rule
from tollway_serving.engines.pattern import UnsupportedPatternError, pattern_grammar
from tollway_serving.engines.protocol import EngineError
from tollway_serving.engines.rules import Rules, written

FORMAT_CHECKS = jsonschema.FormatChecker()
FORMAT_CHECKS.checks("time", raises=ValueError)(lambda v: not isinstance(v, str) or time.fromisoformat(v) is not None)
FORMAT_CHECKS.checks("date-time", raises=ValueError)(lambda v: not isinstance(v, str) or datetime.fromisoformat(v))


def compiled(schema: Any, *, strict: bool = True) -> tuple[Sentences, list[str]]:
    rules = Rules()
    root = schema_rule(rules, schema, "schema", strict=strict)
    return Sentences(rules.text(root)), rules.ignored


def check(schema: Any, count: int = 40) -> list[Any]:
    """Random values of the grammar, each validated."""
    sentences, ignored = compiled(schema)
    assert ignored == []
    validator = jsonschema.Draft202012Validator(schema, format_checker=FORMAT_CHECKS)
    values = []
    for seed in range(count):
        text = sentences.random(seed)
        value = json.loads(text)
        validator.validate(value)
        values.append(value)
    return values


def obj(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS: dict[str, Any] = {
    "scalars": obj(a={"type": "string"}, b={"type": "integer"}, c={"type": "number"}, d={"type": "boolean"}),
    "null or text": obj(a={"type": ["string", "null"]}),
    "optional": {"type": "object", "properties": {k: {"type": "integer"} for k in "abc"}, "required": ["b"]},
    "all optional": {"type": "object", "properties": {k: {"type": "boolean"} for k in "abcd"}},
    "no properties": obj(),
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "map of at most two": {"type": "object", "additionalProperties": {"type": "null"}, "maxProperties": 2},
    "required beyond properties": {"type": "object", "required": ["x"], "additionalProperties": {"type": "integer"}},
    "any": True,
    "anything object": {"type": "object"},
    "list": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 4},
    "empty list": {"type": "array", "maxItems": 0},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False},
    "tuple and more": {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "null"}, "minItems": 3},
    "enum": {"enum": ["red", 'gr"een', "blå", 3, None, {"a": [1, 2]}, "tab\t\\"]},
    "typed enum": {"type": "string", "enum": ["a", "b", 3]},
    "const": {"const": {"x": True}},
    "any of": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "integer"}, obj(k={"const": 1})]},
    "one of by type": {"oneOf": [{"type": "string"}, {"type": "number"}, {"type": "null"}]},
    "one of by tag": {
        "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
        "$defs": {
            "cat": obj(kind={"const": "cat"}, lives={"type": "integer", "minimum": 1, "maximum": 9}),
            "dog": obj(kind={"enum": ["dog", "puppy"]}, name={"type": "string"}),
        },
    },
    "all of one": {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "integer"}}},
    "recursive": {
        "$defs": {
            "node": {**obj(name={"type": "string"}, children={"type": "array", "items": {"$ref": "#/$defs/node"}})}
        },
        "$ref": "#/$defs/node",
    },
    "recursive root": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}},
    "escaped pointer": {"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"type": "null"}}},
    "lengths": {"type": "string", "minLength": 3, "maxLength": 7},
    "long": {"type": "string", "maxLength": 100_000},
    "strange names": obj(**{'a"b\\c\n': {"type": "null"}, "ключ": {"type": "null"}, "": {"type": "null"}}),
    "numbers": obj(
        a={"type": "integer", "minimum": 7, "maximum": 1203},
        b={"type": "integer", "minimum": -12, "exclusiveMaximum": 4},
        c={"type": "number", "minimum": 0, "maximum": 1},
        d={"type": "number", "exclusiveMinimum": -0.125, "maximum": 0.5},
        e={"type": "number", "exclusiveMinimum": 0},
        f={"type": "integer", "maximum": -3},
        g={"type": "number", "minimum": 0.3, "maximum": 0.4},
        h={"type": "integer", "minimum": 5, "maximum": 5},
    ),
    "annotated": {"type": "string", "title": "T", "description": "D", "default": "x", "examples": ["y"], "x-order": 1},
    **{f"format {name}": {"type": "string", "format": name} for name in FORMATS},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_sentences_are_valid(name: str) -> None:
    check(SCHEMAS[name])


def test_every_choice_is_reachable() -> None:
    assert {tuple(sorted(value)) for value in check(SCHEMAS["optional"], 200)} == {
        ("b",),
        ("a", "b"),
        ("b", "c"),
        ("a", "b", "c"),
    }
    assert len({tuple(value) for value in check(SCHEMAS["all optional"], 600)}) == 16
    assert set(check({"type": "integer", "minimum": -3, "maximum": 12}, 2000)) == set(range(-3, 13))


def test_layout_leaves_no_room_for_whitespace() -> None:
    sentences, _ = compiled(
        obj(a={"type": "integer"}, b={"type": "array", "items": {"type": "integer"}, "minItems": 2})
    )
    for seed in range(20):
        text = sentences.random(seed)
        assert text == written(json.loads(text))


REFUSED: dict[str, tuple[Any, str]] = {
    "multipleOf": (obj(a={"type": "integer", "multipleOf": 3}), "schema.properties.a.multipleOf"),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, "schema.uniqueItems"),
    "not": ({"type": "string", "not": {"const": "a"}}, "schema.not"),
    "if": ({"type": "object", "if": {}, "then": {}}, "schema.if"),
    "patternProperties": ({"type": "object", "patternProperties": {"^a": {}}}, "schema.patternProperties"),
    "look-ahead": ({"type": "string", "pattern": "^(?=a)b$"}, "schema.pattern"),
    "unknown format": ({"type": "string", "format": "iri"}, "schema.format"),
    "format and length": ({"type": "string", "format": "date", "maxLength": 3}, "schema.maxLength"),
    "overlapping oneOf": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "schema.oneOf"),
    "allOf": ({"allOf": [{"type": "object"}, {"type": "object"}]}, "schema.allOf"),
    "anyOf beside properties": ({"type": "object", "properties": {}, "anyOf": [{}]}, "schema.anyOf"),
    "keyword nobody knows": ({"type": "string", "colour": 1}, "schema.colour"),
    "remote reference": ({"$ref": "other.json#/a"}, "schema.$ref"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_keywords_are_refused_by_path_or_reported(name: str) -> None:
    schema, path = REFUSED[name]
    with pytest.raises(EngineError) as caught:
        compiled(schema)
    assert (caught.value.param, caught.value.status, caught.value.code) == (path, 400, "unsupported_parameter")
    if name != "remote reference":
        sentences, ignored = compiled(schema, strict=False)
        assert path in ignored
        json.loads(sentences.random(1))


BROKEN: dict[str, tuple[Any, str]] = {
    "no schema": (3, "schema"),
    "false": (False, "schema"),
    "type": (obj(a={"type": "text"}), "schema.properties.a.type"),
    "required": ({"type": "object", "required": "a"}, "schema.required"),
    "required but forbidden": ({"type": "object", "required": ["a"], "additionalProperties": False}, "schema.required"),
    "enum": ({"enum": []}, "schema.enum"),
    "impossible enum": ({"type": "integer", "enum": ["a"]}, "schema"),
    "dangling": ({"$ref": "#/$defs/a"}, "schema.$ref"),
    "itself": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {}]}}},
        "schema.$defs.a.anyOf[0].$ref",
    ),
    "minimum": ({"type": "integer", "minimum": "3"}, "schema.minimum"),
    "empty range": ({"type": "integer", "minimum": 3, "maximum": 2}, "schema"),
    "lengths": ({"type": "string", "minLength": 3, "maxLength": 2}, "schema"),
    "items": ({"type": "array", "minItems": 3, "maxItems": 2}, "schema"),
    "minLength": ({"type": "string", "minLength": -1}, "schema.minLength"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("strict", [True, False])
def test_broken_schemas_name_the_place(name: str, strict: bool) -> None:
    schema, path = BROKEN[name]
    with pytest.raises(EngineError) as caught:
        compiled(schema, strict=strict)
    assert (caught.value.param, caught.value.code) == (path, "invalid_value")


def test_size_is_bounded() -> None:
    wide = {"type": "object", "properties": {f"p{n}": {"const": "x" * 300 + str(n)} for n in range(2000)}}
    deep: Any = {"type": "string"}
    for _ in range(200):
        deep = {"type": "array", "items": deep}
    for schema in (wide, deep, {"enum": list(range(1001))}):
        with pytest.raises(EngineError):
            compiled(schema)


NAMES = st.text(string.ascii_letters + '_- "\\é', min_size=1, max_size=6)


@st.composite
def integers(draw: st.DrawFn) -> dict[str, Any]:
    low, high = sorted(draw(st.tuples(st.integers(-5000, 5000), st.integers(-5000, 5000))))
    return {"type": "integer", "minimum": low, "maximum": high}


@st.composite
def numbers(draw: st.DrawFn) -> dict[str, Any]:
    low, high = sorted(draw(st.tuples(st.integers(-99999, 99999), st.integers(-99999, 99999))))
    return {"type": "number", "minimum": low / 1000, "maximum": high / 1000}


@st.composite
def objects(draw: st.DrawFn, parts: st.SearchStrategy[Any]) -> dict[str, Any]:
    properties = draw(st.dictionaries(NAMES, parts, max_size=4))
    required = [name for name in properties if draw(st.booleans())]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


LEAVES = st.one_of(
    st.sampled_from([{"type": name} for name in ("string", "integer", "number", "boolean", "null")]),
    integers(),
    numbers(),
    st.builds(lambda values: {"enum": values}, st.lists(st.text(max_size=5) | st.integers(), min_size=1, max_size=4)),
    st.sampled_from([{"type": "string", "format": name} for name in FORMATS]),
)
ANY_SCHEMA = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        objects(parts),
        st.builds(lambda item, low: {"type": "array", "items": item, "minItems": low}, parts, st.integers(0, 3)),
        st.builds(lambda options: {"anyOf": options}, st.lists(parts, min_size=1, max_size=3)),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ANY_SCHEMA)
def test_any_schema(schema: Any) -> None:
    check(schema, 8)


PATTERNS = [
    r"^[A-Z]{3}-\d{4}$",
    r"^(foo|bar)+$",
    r"^\w+@\w+\.(com|org)$",
    r"^[^\"\\\d]{1,5}$",
    r'^"[^"]*"$',
    r"^a.c$",
    r"b\\c",
    r"^x|y$",
    r"^[\w.\-]+?$",
    r"^\u00e9?[à-ü]*$",
    r"^[\]\[^-]{2}$",
    r"^(?:(?:a|b){2}c?){1,2}$",
    r"^\S+\s\S+$",
    r"^$",
    r"^a{0}b$",
    r"^[0-9a-fA-F]{8}$",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(pattern: str) -> None:
    for value in check({"type": "string", "pattern": pattern}, 60):
        assert re.search(pattern, value)


@pytest.mark.parametrize(
    "pattern",
    ["a(?!b)", "(a", "[a", "a)", "*a", r"\bword", r"(a)\1", "a{3,1}", "[z-a]", r"\p{L}", "a" * 1001, "a{5000}"],
)
def test_patterns_refused(pattern: str) -> None:
    with pytest.raises(UnsupportedPatternError):
        pattern_grammar(pattern, "char")
