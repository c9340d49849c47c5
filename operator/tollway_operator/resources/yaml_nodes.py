"""YAML as kubectl reads it, with line numbers: used only by `load`.

PyYAML's own constructor differs from kubectl's (sexagesimal numbers, dates) and takes duplicate keys in silence, so
values are built here from the node tree, which also knows the line of every field.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_DEPTH = 64
MAX_NODES = 1_000_000  # aliases can make a small file huge

_TAG = "tag:yaml.org,2002:"
_TRUE = ("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON")
_FALSE = ("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF")
_IMPLICIT = (
    ("bool", "|".join((*_TRUE, *_FALSE)), "yYnNtTfFoO"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", "[-+]?(0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?|[-+]?[0-9]+\.|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", "<<", "<"),
)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # libyaml is ten times faster
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way of saying it


for _name, _pattern, _first in _IMPLICIT:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})\\Z"), list(_first))


class BadYaml(Exception):
    """What is wrong, and in which line (from 1)."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(slots=True)
class Node:
    """One YAML value: `value` is what JSON would have, `line_of` finds the line of a field in it."""

    value: Any
    root: yaml.Node

    @property
    def line(self) -> int:
        return _line(self.root)

    def line_of(self, location: tuple[str | int, ...]) -> int:
        """The line of the field, or of the nearest one around it that is written."""
        node, line = self.root, _line(self.root)
        for part in location:
            found = _child(node, part)
            if found is None:
                break
            line, node = found
        return line

    def item(self, *location: str | int) -> "Node":
        """A part, which must be there."""
        node, value = self.root, self.value
        for part in location:
            found = _child(node, part)
            if found is None:
                raise KeyError(part)
            node, value = found[1], value[part]
        return Node(value, node)


def documents(text: str) -> Iterator[Node]:
    """Every document that isn't empty. BadYaml at the first that can't be read."""
    loader = _Loader(text)
    builder = _Builder()
    try:
        while loader.check_node():
            root = loader.get_node()
            value = builder.build(root, 0)
            if value is not None:
                yield Node(value, root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        last = text.rstrip("\n").count("\n") + 1  # what is missing at the end is missed in the line after it
        raise BadYaml(min(mark.line + 1, last) if mark else 1, f"not YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BadYaml(line, f"not YAML: {error.reason}") from error
    except yaml.YAMLError as error:
        raise BadYaml(1, f"not YAML: {error}") from error
    except RecursionError as error:
        raise BadYaml(1, f"nested more than {MAX_DEPTH} deep") from error
    finally:
        loader.dispose()


@dataclass(slots=True)
class _Builder:
    """Builds values from nodes, within one file's limits."""

    nodes: int = 0
    open: set[int] = field(default_factory=set)  # ids of the nodes around the current one

    def build(self, node: yaml.Node, depth: int) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise BadYaml(_line(node), f"more than {MAX_NODES} values in one file")
        if depth > MAX_DEPTH:
            raise BadYaml(_line(node), f"nested more than {MAX_DEPTH} deep")
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if id(node) in self.open:
            raise BadYaml(_line(node), "an alias is part of itself")
        self.open.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            value: Any = [self.build(item, depth + 1) for item in node.value]
        else:
            value = self._mapping(node, depth)
        self.open.discard(id(node))
        return value

    def _mapping(self, node: yaml.Node, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                value = self.build(value_node, depth + 1)
                for part in value if isinstance(value, list) else [value]:
                    if not isinstance(part, dict):
                        raise BadYaml(_line(value_node), "<< takes an object")
                    merged = {**part, **merged}
                continue
            key = _key(key_node)
            if key in own:
                raise BadYaml(_line(key_node), f"the key {key} is there twice")
            own[key] = self.build(value_node, depth + 1)
        return {**merged, **own}


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _child(node: yaml.Node, part: str | int) -> tuple[int, yaml.Node] | None:
    """Line and value of a field or list item."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _TAG + "merge" and _key(key) == part:
                return _line(key), value
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        item = node.value[part]
        return _line(item), item
    return None


def _key(node: yaml.Node) -> str:
    """kubectl makes strings of numbers and booleans that are keys."""
    value = _scalar(node) if isinstance(node, yaml.ScalarNode) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int):
        return str(value)
    raise BadYaml(_line(node), "a key must be a word")


def _scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    match node.tag.removeprefix(_TAG):
        case "str":
            return text
        case "null":
            return None
        case "bool" if text in _TRUE or text in _FALSE:
            return text in _TRUE
        case "int" | "float" as kind:
            try:
                return _integer(text) if kind == "int" else _real(text)
            except ValueError:
                raise BadYaml(_line(node), f"not a number: {text[:40]}") from None
        case "merge":
            return text
        case _:
            raise BadYaml(_line(node), f"the tag {node.tag} is not for objects like these")


def _integer(text: str) -> int:
    plain = text.replace("_", "").lower()
    digits = plain.lstrip("+-")
    if len(digits) > 40:
        raise ValueError
    if re.fullmatch("0[0-7]+", digits):
        return int(plain, 8)
    return int(plain, 0 if digits[:2] in ("0b", "0o", "0x") else 10)


def _real(text: str) -> float | int:
    """kubectl turns YAML into JSON, where 2.0 and 1e3 become integers."""
    number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return int(number) if number.is_integer() and abs(number) < 1e21 else number
