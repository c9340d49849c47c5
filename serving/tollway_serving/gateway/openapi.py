"""/openapi.json (3.1), made from the routes, the tables that validate their bodies and errors.TABLE. For `routes.docs`.

Nothing is described twice: a parameter's schema is what pydantic validates, its text and its class (universal, engine,
hint, never) are the table's. `operations` adds what validation does not know: prose, answers, examples.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final

import orjson
from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from tollway_serving.gateway import answer_schema
from tollway_serving.gateway.errors import TABLE
from tollway_serving.gateway.operations import MEANINGS, OPERATIONS, Operation
from tollway_serving.gateway.parameters import Parameter, Table
from tollway_serving.gateway.route import Route

Json = dict[str, Any]

_PREFIXES = ("/v1", "/api/v1")
_REF: Final = "#/components/schemas/{model}"
_MODE: JsonSchemaMode = "validation"
_HOW: Final = {
    "universal": "",
    "engine": "Refused by name where the model can't carry it out.",
    "hint": "A hint: accepted, and changes nothing.",
    "never": "Refused by name.",
}
_HEADERS: Final[dict[str, tuple[str, Json]]] = {
    "x-request-id": (
        "The client's own, if it sent one that is an HTTP token of at most 128 characters; else a new one.",
        {"type": "string", "minLength": 1, "maxLength": 128},
    ),
    "openai-processing-ms": ("Milliseconds from the request's head to the answer's.", {"type": "integer"}),
    "retry-after": ("Seconds.", {"type": "integer", "minimum": 0}),
    "allow": ("The methods of this path.", {"type": "string"}),
    "x-charge-id": ("The ledger's id of this charge.", {"type": "string"}),
    "x-credits-used": ("Credits charged.", {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$"}),
    "x-credits-reserved": (
        "Streams: credits held. The charge is in the usage chunk, or in a comment before [DONE].",
        {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$"},
    ),
    "x-model-used": ("The model that answered.", {"type": "string"}),
    "x-fallback-from": ("The model asked for, where another one answered.", {"type": "string"}),
    "x-fallback-depth": ("How many models were tried before.", {"type": "integer"}),
    "idempotent-replayed": (
        "true: the answer to an earlier request with this Idempotency-Key, given again with its receipt.",
        {"type": "string", "const": "true"},
    ),
    "x-ignored-parameters": ("Parameters that were accepted without effect, by name.", {"type": "string"}),
    **{
        f"x-ratelimit-{what}-{kind}": (f"{text} of {kind} a minute.", {"type": "string"})
        for kind in ("requests", "tokens")
        for what, text in (("limit", "The limit"), ("remaining", "What is left"), ("reset", "Time until all is back"))
    },
}
_ALWAYS = ("x-request-id", "openai-processing-ms")
_RECEIPT = tuple(name for name in _HEADERS if name not in (*_ALWAYS, "retry-after", "allow"))
_UNSUPPORTED: Final[Json] = {
    "name": "x-unsupported-parameters",
    "in": "header",
    "description": "ignore: parameters that the model can't carry out, and unknown ones, are ignored and named in "
    "x-ignored-parameters instead of being refused. By default the plan decides.",
    "schema": {"type": "string", "enum": ["refuse", "ignore"]},
}
_IDEMPOTENCY: Final[Json] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A name of the client's own for this request: sent again within 24 hours it gets the answer that it "
    "got, and is charged once. With a stream it is charged once and can't be given again.",
    "schema": {"type": "string", "pattern": r"^[\x21-\x7e]{1,255}$"},
}


@cache
def document(routes: tuple[Route, ...]) -> bytes:
    """The whole document, in JSON. Made once a process (tens of milliseconds)."""
    return orjson.dumps(build(routes))


def build(routes: Iterable[Route]) -> Json:
    """The document as a dictionary. KeyError for a route that `operations` does not know."""
    described = [(route, OPERATIONS[route.method, route.path]) for route in routes]
    refs, schemas = _schemas(described)
    paths: dict[str, Json] = {}
    for route, operation in described:
        item = paths.setdefault(route.path, {"servers": []})
        for prefix in ("/",) if route.bare else _PREFIXES:
            if {"url": prefix} not in item["servers"]:
                item["servers"].append({"url": prefix})
        item[route.method.lower()] = _operation(route, operation, refs)
    for item in paths.values():
        if item["servers"] == [{"url": prefix} for prefix in _PREFIXES]:
            del item["servers"]  # the document's own
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tollway",
            "version": "1",
            "description": "A metered, OpenAI-compatible API. Official OpenAI SDKs work with their base URL set to "
            "this host's /v1. Parameters are carried out, accepted as hints, or refused by name; an answer's "
            "x-ignored-parameters header names what had no effect.",
        },
        "servers": [{"url": prefix} for prefix in _PREFIXES],
        "security": [{"key": []}],
        "tags": [{"name": name} for name in dict.fromkeys(operation.tag for _, operation in described)],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key: sk-tw-…"}},
            "headers": {
                name: {"description": text, "schema": schema} for name, (text, schema) in sorted(_HEADERS.items())
            },
        },
    }


def table_of(route: Route) -> Table | None:
    """The parameters of a route's body."""
    return route.request or OPERATIONS[route.method, route.path].request


def _schemas(described: list[tuple[Route, Operation]]) -> tuple[Mapping[Any, Json], dict[str, Json]]:
    """References by type or table, and all schemas by name."""
    tables: list[Table] = []
    types: list[Any] = [answer_schema.Error]
    for route, operation in described:
        table = table_of(route)
        if table is not None and table not in tables:
            tables.append(table)
        types += [kind for kind in (operation.answer, operation.chunk) if kind is not None and kind not in types]
    wanted: list[tuple[Any, JsonSchemaMode, TypeAdapter[Any]]] = [
        (table.model, _MODE, TypeAdapter(table.model)) for table in tables
    ]
    wanted += [(kind, _MODE, TypeAdapter(kind)) for kind in types]
    made, rest = TypeAdapter.json_schemas(wanted, ref_template=_REF)
    schemas: dict[str, Json] = {name: _tidy(schema) for name, schema in rest["$defs"].items()}
    for table in tables:
        _describe(schemas[table.model.__name__], table)
    return {key: schema for (key, _), schema in made.items()}, dict(sorted(schemas.items()))


def _tidy(schema: Any) -> Any:
    """pydantic's schema without its made-up titles; a map whose names have a pattern has no other names."""
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tidy = {
        name: {key: _tidy(value) for key, value in part.items()} if name in ("properties", "$defs") else _tidy(part)
        for name, part in schema.items()
        if not (name == "title" and isinstance(part, str))
    }
    if "patternProperties" in tidy:
        tidy["additionalProperties"] = False
    return tidy


def _describe(schema: Json, table: Table) -> None:
    for parameter in table.parameters.values():
        described = schema["properties"][parameter.name]
        described.pop("default", None)  # null: not set
        described["description"] = _text(parameter)
        described["x-support"] = parameter.how
        if parameter.neutral:
            described["x-neutral"] = list(parameter.neutral)
        if parameter.needs is not None:
            described["x-capability"] = parameter.needs


def _text(parameter: Parameter) -> str:
    how = "Where the model can't carry it out, the gateway does." if parameter.here else _HOW[parameter.how]
    if parameter.neutral and parameter.how in ("engine", "never"):
        values = " or ".join(orjson.dumps(value).decode() for value in parameter.neutral)
        how += f" {values} is always accepted, because it is what happens anyway."
    return f"{parameter.doc} {how}".strip()


def _operation(route: Route, operation: Operation, refs: Mapping[Any, Json]) -> Json:
    table = table_of(route)
    described: Json = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": _responses(route, operation, refs),
        "x-meters": list(route.meters) or "free",
    }
    if operation.description:
        described["description"] = operation.description.strip()
    if operation.keyless:
        described["security"] = []
    parameters = [_path_parameter(route, operation)] if "{" in route.path else []
    if table is not None:
        parameters.append(_UNSUPPORTED)
        if route.meters:
            parameters.append(_IDEMPOTENCY)
        body: Json = {"schema": refs[table.model]}
        if operation.examples:
            body["examples"] = {name: {"value": value} for name, value in operation.examples.items()}
        described["requestBody"] = {"required": True, "content": {"application/json": body}}
    if parameters:
        described["parameters"] = parameters
    return described


def _path_parameter(route: Route, operation: Operation) -> Json:
    return {
        "name": route.path.partition("{")[2].rstrip("}"),
        "in": "path",
        "required": True,
        "description": operation.path_parameter,
        "schema": {"type": "string", "minLength": 1},
        "example": operation.path_example,
    }


def _responses(route: Route, operation: Operation, refs: Mapping[Any, Json]) -> Json:
    content: Json = {"schema": refs[operation.answer]}
    if operation.answer_example is not None:
        content["example"] = operation.answer_example
    answer: Json = {operation.content_type: content}
    if operation.chunk is not None:
        answer["text/event-stream"] = {"schema": refs[operation.chunk]}
        if operation.chunk_example is not None:
            answer["text/event-stream"]["example"] = operation.chunk_example
    responses: Json = {
        "200": {
            "description": "The answer.",
            "headers": _headers(*_ALWAYS, *(_RECEIPT if route.meters else ())),
            "content": answer,
        }
    }
    for status in sorted({TABLE[code][0] for code in operation.codes}):
        codes = [code for code in TABLE if code in operation.codes and TABLE[code][0] == status]
        responses[str(status)] = {
            "description": " ".join(f"`{code}`: {MEANINGS[code]}" for code in codes),
            "headers": _headers(*_ALWAYS, *(("retry-after",) if status in (429, 503) else ())),
            "content": {"application/json": _errors(codes, refs[answer_schema.Error])},
        }
    return responses


def _headers(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _errors(codes: list[str], error: Json) -> Json:
    only = {"properties": {"type": {"const": TABLE[codes[0]][1]}, "code": {"enum": codes}}}
    return {
        "schema": {"allOf": [error, {"properties": {"error": only}}]},
        "examples": {
            code: {"value": {"error": {"message": MEANINGS[code], "type": TABLE[code][1], "param": None, "code": code}}}
            for code in codes
        },
    }
