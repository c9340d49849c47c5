"""The rule for request parameters, as one table a route: validation reads it, and /openapi.json and the docs will.

A parameter is one of four: *universal* (each model takes it), *engine* (carried out if the model's entry lists it),
*hint* (accepted, changes nothing), *never* (would change the answer and nothing here can do it). An engine or never
parameter whose value is one of `neutral` asks for what happens anyway, so that it counts as a hint. What is marked
`here` the gateway carries out for models that can't. Capability is data
in the model's entry: nothing here knows a model's or an engine's name.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BeforeValidator, ConfigDict, ValidationError, create_model
from pydantic_core import PydanticCustomError

from tollway_serving.contract.catalogue import Capability
from tollway_serving.gateway.catalogue import Model
from tollway_serving.gateway.errors import ApiError
from tollway_serving.ledger.value import value

_MAX_NAMED = 32
_NAME = re.compile(r"[A-Za-z0-9_.\-\[\]]{1,128}\Z")


def at_most(count: int) -> BeforeValidator:
    """Refuses a larger object before its members are checked: there may be millions."""

    def check(value: Any) -> Any:
        if type(value) is dict and len(value) > count:
            raise PydanticCustomError("too_long", "it can have at most {count} members", {"count": count})
        return value

    return BeforeValidator(check)


@dataclass(frozen=True, slots=True)
class Parameter:
    """`type` is what pydantic validates and what the schema is made of; strict, so that "1" is no number."""

    name: str
    type: Any
    how: Literal["universal", "engine", "hint", "never"]
    doc: str
    required: bool = False
    neutral: tuple[Any, ...] = ()
    needs: Capability | None = None
    refusal: str = "unsupported_parameter"
    instead: str = ""  # what to write where it is refused
    here: bool = False  # the gateway carries it out for models that can't


@value
class Fitted:
    """A request as one model gets it."""

    payload: dict[str, Any]
    ignored: tuple[str, ...]
    here: Mapping[str, Any]  # what the gateway carries out in the model's stead


class Table:
    """All parameters of one route."""

    def __init__(
        self, route: str, parameters: Iterable[Parameter], instead: Mapping[tuple[str, Any], str] | None = None
    ) -> None:
        """`instead`: by the name of a field and its value (...: any), what to write where it is refused."""
        self.parameters: Mapping[str, Parameter] = {p.name: p for p in parameters}
        self._instead = instead or {}
        fields: dict[str, Any] = {
            p.name: (p.type, ...) if p.required else (p.type | None, None) for p in self.parameters.values()
        }
        self.model = create_model(route, __config__=ConfigDict(strict=True, extra="forbid"), **fields)
        self._validate = self.model.__pydantic_validator__.validate_python

    def validate(self, body: Any, ignore: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Types, ranges and unknown names, the same for every model. Answers the body without nulls (OpenAI's "not
        set") and the names that are ignored. With `ignore`, unknown names are among those instead of refused."""
        if type(body) is not dict:
            raise ApiError("invalid_json", "The body must be a JSON object.")
        known = self.parameters
        unknown: list[str] = []
        values = body
        if not body.keys() <= known.keys():
            unknown = [name for name in body if name not in known]
            if not ignore:
                name = unknown[0]
                raise ApiError("unsupported_parameter", f"Unknown parameter: {_quote(name)}.", param=name[:64])
        if unknown or None in body.values():
            values = {name: value for name, value in body.items() if value is not None and name in known}
        try:
            self._validate(values)
        except ValidationError as error:
            raise _refusal(error, values, self._instead) from None
        return values, tuple(unknown)

    def fit(self, values: dict[str, Any], model: Model, ignore: bool) -> Fitted:
        """What of `values` this model is sent; ApiError for what it can't do."""
        payload: dict[str, Any] = {}
        ignored: list[str] = []
        here: dict[str, Any] = {}
        for name, given in values.items():
            parameter = self.parameters[name]
            if parameter.how == "universal" or (
                parameter.how == "engine"
                and name in model.parameters
                and (parameter.needs is None or parameter.needs in model.capabilities)
            ):
                payload[name] = given
            elif parameter.how == "hint" or given in parameter.neutral:
                ignored.append(name)
            elif parameter.here:
                here[name] = given
            elif ignore:
                ignored.append(name)
            else:
                raise ApiError(
                    parameter.refusal,
                    f"The model '{model.entry.model_id}' does not support {_quote(name)}"
                    + (f" with this value; it can be {_listed(parameter.neutral)}." if parameter.neutral else ".")
                    + (f" {parameter.instead}" if parameter.instead else ""),
                    param=name,
                )
        return Fitted(payload, tuple(ignored), here)


def ignored_header(names: Iterable[str]) -> bytes:
    """The x-ignored-parameters header; names that no header may carry are counted, not shown."""
    listed = [name for name in dict.fromkeys(names) if _NAME.match(name)]
    return ", ".join(listed[:_MAX_NAMED] + ["…"][: len(listed) > _MAX_NAMED]).replace("…", "...").encode("ascii")


def _quote(name: str) -> str:
    return f"'{name[:64]}'"


def _listed(values: tuple[Any, ...]) -> str:
    return " or ".join(str(value).lower() if isinstance(value, bool) else repr(value) for value in values)


def _refusal(error: ValidationError, values: dict[str, Any], instead: Mapping[tuple[str, Any], str]) -> ApiError:
    """The one of pydantic's findings that lies deepest in the body (a union reports one a branch)."""
    findings = error.errors(include_url=False, include_input=False)
    best = max(findings, key=lambda finding: len(_path(finding["loc"], values, finding["type"])))
    path = _path(best["loc"], values, best["type"])
    kind, context = best["type"], best.get("ctx", {})
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        path.append(str(context["discriminator"]).strip("'"))
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")[:200]
    if kind in ("missing", "union_tag_not_found"):
        return ApiError("missing_required_parameter", f"Missing required parameter: '{param}'.", param=param)
    hint = _hint(path, values, instead)
    if kind == "union_tag_invalid":
        text = f"Invalid value for '{param}': it can be {context['expected_tags']}.{hint}"
        return ApiError("invalid_value", text, param=param)
    if kind == "extra_forbidden":
        return ApiError("unsupported_parameter", f"Unknown parameter: '{param}'.{hint}", param=param)
    message = best["msg"].removeprefix("Value error, ")[:300]
    return ApiError("invalid_value", f"Invalid value for '{param}': {message}.{hint}", param=param)


def _hint(path: list[int | str], values: Any, instead: Mapping[tuple[str, Any], str]) -> str:
    """What `instead` has for the field at this path."""
    if not path:
        return ""
    given = values
    for part in path:
        given = given[part]
    name = str(path[-1])
    found = instead.get((name, given if isinstance(given, str) else None)) or instead.get((name, ...))
    return f" {found}" if found else ""


def _path(loc: tuple[int | str, ...], values: Any, kind: str) -> list[int | str]:
    """pydantic's location without the names of union branches: only what is really in the body."""
    path: list[int | str] = []
    here = values
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if isinstance(here, dict) and (part in here or (last and kind == "missing")):
            here = here.get(part)
            path.append(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
            path.append(part)
    return path
