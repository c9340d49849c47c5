"""From a stored or written object to a typed one, or to errors that say what to write.

`parse` is for objects that come through the port (cluster or files), `validate` for what a person wrote. Messages
are the API server's where it has one, so that `kubectl apply` and `tollway up -f` say the same.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tollway_operator import ports
from tollway_operator.resources.api_key import ApiKey
from tollway_operator.resources.common import Metadata, Model, Resource
from tollway_operator.resources.model_deployment import ModelDeployment
from tollway_operator.resources.plan import Plan
from tollway_operator.resources.rules import IntegralFloat, json_type

AnyResource = ModelDeployment | Plan | ApiKey
KINDS: dict[ports.Kind, type[AnyResource]] = {"ModelDeployment": ModelDeployment, "Plan": Plan, "ApiKey": ApiKey}

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing that is wrong. `location` is the way to the field: ("spec", "quotas", 0, "limit")."""

    location: Location
    message: str
    is_unknown: bool = False  # the field is none that this version knows

    @property
    def path(self) -> str:
        """The field as the API server writes it: spec.quotas[0].limit"""
        text = ""
        for part in self.location:
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
        return text

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.location else self.message


@dataclass(frozen=True, slots=True)
class Invalid:
    """An object that can't be used: it is wrong, or has fields that this version doesn't know."""

    errors: tuple[FieldError, ...] = ()
    unknown: tuple[FieldError, ...] = ()

    @property
    def unsupported(self) -> tuple[str, ...]:
        """Paths of the fields that this version doesn't know."""
        return tuple(error.path for error in self.unknown)

    @property
    def message(self) -> str:
        """One line for a condition."""
        if self.errors:
            return "; ".join(str(error) for error in self.errors)
        return "this version of the operator does not know " + ", ".join(self.unsupported)


def parse(raw: ports.Raw) -> AnyResource | Invalid:
    """The typed object of one that the port gave us, defaults filled in."""
    metadata = Metadata(
        name=raw.name,
        namespace=raw.namespace,
        uid=raw.uid,
        generation=raw.generation,
        created=raw.created,
        labels=dict(raw.labels),
    )
    return validate(raw.kind, metadata, raw.spec)


def validate(kind: ports.Kind, metadata: Metadata, spec: Mapping[str, Any] | None) -> AnyResource | Invalid:
    """The typed object, or everything that is wrong with it. `spec` is None where it is missing."""
    fields: dict[str, Any] = {"metadata": metadata}
    if spec is not None:
        fields["spec"] = _numbers_as_stored(spec)
    try:
        return KINDS[kind].model_validate(fields)
    except ValidationError as invalid:
        errors = [_field_error(KINDS[kind], details) for details in invalid.errors(include_url=False)]
    return Invalid(
        errors=tuple(error for error in errors if not error.is_unknown),
        unknown=tuple(error for error in errors if error.is_unknown),
    )


def _numbers_as_stored(value: Any) -> Any:
    """Numbers as the API server reads them: 2.0 is 2, and an integer beyond 64 bits is no integer."""
    if type(value) is str:  # nearly all
        return value
    match value:
        case dict() | Mapping():
            return {key: _numbers_as_stored(item) for key, item in value.items()}
        case list() | tuple():
            return [_numbers_as_stored(item) for item in value]
        case float() if value.is_integer() and abs(value) < 2**53:
            return IntegralFloat(value)
        case int() if not -(2**63) <= value < 2**63:
            return float("inf")
    return value


def spec_of(resource: Resource) -> dict[str, Any]:
    """The spec as the API server would store it: as written, defaults filled in."""
    dumped: dict[str, Any] = resource.model_dump(mode="json", by_alias=True, exclude_none=True).get("spec", {})
    return dumped


def check_update(old: AnyResource, new: AnyResource) -> Invalid | None:
    """What may not change between two versions of one object."""
    errors = tuple(
        FieldError(("spec",), rule.message) for rule in new.spec.TRANSITIONS if not rule.holds(old.spec, new.spec)
    )
    return Invalid(errors) if errors else None


def _field_error(kind: type[BaseModel], details: ErrorDetails) -> FieldError:
    location = tuple(part for part in details["loc"] if part != "[key]")
    value, context = details["input"], details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            return FieldError(location, "unknown field" + _suggestion(kind, location), is_unknown=True)
        case "missing":
            message = "Required value"
        case "rule" | "type":
            message = details["msg"]
        case "duplicate":
            location, message = (*location, context["index"]), f"Duplicate value: {context['shown']}"
        case "string_type":
            message = f'must be of type string: "{json_type(value)}"'
        case "int_type" | "int_parsing_size":
            message = f'must be of type integer: "{json_type(value)}"'
        case "tuple_type":
            message = f'must be of type array: "{json_type(value)}"'
        case "model_type" | "dict_type" | "model_attributes_type":
            message = f'must be of type object: "{json_type(value)}"'
        case "literal_error":
            allowed = ", ".join(json.dumps(item) for item in _literals(str(context["expected"])))
            message = f"Unsupported value: {json.dumps(value)}: supported values: {allowed}"
        case "string_too_long":
            message = f"Too long: may not be more than {context['max_length']} characters"
        case "too_long":
            message = f"Too many: must have at most {context['max_length']} items"
        case "greater_than_equal":
            message = f"should be greater than or equal to {context['ge']}"
        case "less_than_equal":
            message = f"should be less than or equal to {context['le']}"
        case _:
            message = details["msg"]
    return FieldError(location, message)


def _literals(expected: str) -> list[str]:
    """The values in pydantic's "'A', 'B' or 'C'"."""
    return expected.split("'")[1::2]


def _suggestion(kind: type[BaseModel], location: Location) -> str:
    """The field's name that was probably meant, if any."""
    model = _model_at(kind, location[:-1])
    if model is None:
        return ""
    known = [field.alias or name for name, field in model.model_fields.items()]
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _model_at(kind: type[BaseModel], location: Location) -> type[BaseModel] | None:
    model: type[BaseModel] | None = kind
    for part in location:
        if isinstance(part, int):
            continue
        if model is None:
            return None
        field = next((f for name, f in model.model_fields.items() if part in (f.alias, name)), None)
        model = _inner_model(field.annotation) if field else None
    return model


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    """The model in X, X | None, tuple[X, ...] or Annotated of these."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _inner_model(inner)
        if found:
            return found
    return None
