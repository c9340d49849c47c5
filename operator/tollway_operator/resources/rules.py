"""Rules that hold on both sides: each has its CEL text for the API server and its twin for Python, under one message.

Used by the resource models (as annotations of fields and as `RULES` of a model) and, through the JSON schema that
pydantic makes of them, by `crd`. The other annotations here (`IntOrString`, `SetOf`, `MapBy`) do the same for what
Kubernetes says with `x-kubernetes-*`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

RULES_KEY = "x-kubernetes-validations"


class IntegralFloat(int):
    """A float without a fraction: an integer to the API server, except where a string could stand too."""


def json_type(value: object) -> str:
    """The name that the API server gives to a value's type."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case IntegralFloat():
            return "number"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case dict():
            return "object"
        case _:
            return "array"


@dataclass(frozen=True, slots=True)
class Rule:
    """`cel` as the API server runs it; `holds` says the same of the validated Python value."""

    cel: str
    message: str
    holds: Callable[[Any], bool]

    def as_dict(self) -> dict[str, str]:
        return {"rule": self.cel, "message": self.message}

    def enforce(self, value: Any) -> Any:
        if not self.holds(value):
            raise PydanticCustomError("rule", "{message}", {"message": self.message})
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.enforce, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        result = handler(schema)
        result.setdefault(RULES_KEY, []).append(self.as_dict())
        return result


@dataclass(frozen=True, slots=True)
class Transition:
    """A rule between an object's old and new version (CEL's `oldSelf`)."""

    cel: str
    message: str
    holds: Callable[[Any, Any], bool]  # old, new

    def as_dict(self) -> dict[str, str]:
        return {"rule": self.cel, "message": self.message}


@dataclass(frozen=True, slots=True)
class IntOrString:
    """A whole number or a string, kept as written."""

    max_length: int

    def check(self, value: Any) -> int | str:
        if isinstance(value, bool | IntegralFloat) or not isinstance(value, int | str):
            message = f'must be of type integer,string: "{json_type(value)}"'
            raise PydanticCustomError("type", "{message}", {"message": message})
        if isinstance(value, str) and len(value) > self.max_length:
            raise PydanticCustomError("string_too_long", "", {"max_length": self.max_length})
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"x-kubernetes-int-or-string": True, "maxLength": self.max_length}


def _duplicate(index: int, shown: object) -> PydanticCustomError:
    return PydanticCustomError(
        "duplicate", "Duplicate value: {shown}", {"index": index, "shown": json.dumps(shown, separators=(",", ":"))}
    )


@dataclass(frozen=True, slots=True)
class SetOf:
    """A list of scalars, none twice; server-side apply merges them."""

    def check(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        for index, item in enumerate(value):
            if item in value[:index]:
                raise _duplicate(index, item)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "x-kubernetes-list-type": "set"}


@dataclass(frozen=True, slots=True)
class MapBy:
    """A list of objects, none with another's value of `alias`; server-side apply merges them by it."""

    alias: str
    attribute: str

    def check(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        seen: set[str] = set()
        for index, item in enumerate(value):
            key = getattr(item, self.attribute)
            if key in seen:
                raise _duplicate(index, {self.alias: key})
            seen.add(key)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [self.alias]}
