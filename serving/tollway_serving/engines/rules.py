"""The rules of one grammar while it is being made, and JSON as every grammar here writes it. `grammar` fills them."""

import json
from collections.abc import Mapping
from typing import Any

from tollway_serving.engines import gbnf
from tollway_serving.engines.protocol import EngineError

MAX_RULES = 4000
MAX_BYTES = 300_000  # of grammar text
ANY_ITEMS = 32  # members and items of a value that has no schema
ANY_DEPTH = 5


class Rules:
    """Named rules under one root. Several schemas may share one; each is given with the path that errors name."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}
        self._named: dict[str, str] = {}  # body -> name
        self._size = 0
        self._numbers = gbnf.names("r")
        self.ignored: list[str] = []

    def add(self, body: str, name: str | None = None) -> str:
        """The name of a rule with this body."""
        if name is None:
            if body in self._named:
                return self._named[body]
            name = next(self._numbers)
            self._named[body] = name
        self._rules[name] = body
        self._size += len(body) + len(name)
        if len(self._rules) > MAX_RULES or self._size > MAX_BYTES:
            raise EngineError("The JSON schemas of this request are too large for this model.", param="response_format")
        return name

    def reserve(self) -> str:
        return next(self._numbers)

    def any_value(self, depth: int = ANY_DEPTH) -> str:
        """A JSON value without a schema: of bounded depth and width."""
        scalar = [self.string(), gbnf.NUMBER, '"true"', '"false"', '"null"']
        return self.add(" | ".join([self.any_object(depth), self.any_array(depth), *scalar] if depth else scalar))

    def any_object(self, depth: int = ANY_DEPTH) -> str:
        return self.map_of(self.any_value(depth - 1), 0, ANY_ITEMS)

    def any_array(self, depth: int = ANY_DEPTH) -> str:
        return self.add(f'"[" {gbnf.listed(self.any_value(depth - 1), 0, ANY_ITEMS)} "]"')

    def map_of(self, value: str, low: int, high: int) -> str:
        member = self.add(f'{self.string(1, 64)} ": " {value}')
        return self.add(f'"{{" {gbnf.listed(member, low, high)} "}}"')

    def string(self, low: int = 0, high: int | None = None) -> str:
        char = self.add(gbnf.CHAR, "char")
        return self.add(f'"\\"" {gbnf.repeat(char, low, high)} "\\""')

    def text(self, root: str) -> str:
        """The whole grammar."""
        return f"root ::= {root}\n" + "".join(f"{name} ::= {body}\n" for name, body in self._rules.items())


def written(value: Any) -> str:
    """JSON as the grammars write it: the commonest form, one space after colons and commas."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{written(str(key))}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
