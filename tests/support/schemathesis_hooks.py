"""Loaded by the schemathesis program (test_openapi): most bodies name a model that exists, or none would get far."""

from typing import Any

import schemathesis

_MOST_ITEMS = 200


@schemathesis.hook
def before_load_schema(context: schemathesis.HookContext, raw_schema: dict[str, Any]) -> None:
    """Two changes to what the program is told.

    The document gives a stream's schema as OpenAI's does, as that of a `data` field's JSON; the program takes it for
    that of a whole event, as OpenAPI 3.2 has it. It is told in 3.2's way, so that it holds each event against it.
    And it goes to the limit of each list, which makes bodies of 30 MB where lists are long: those limits are left out.
    """
    error = {"$ref": "#/components/schemas/Error"}
    for item in raw_schema["paths"].values():
        for operation in item.values():
            if not isinstance(operation, dict):
                continue
            for answer in operation["responses"].values():
                stream = answer["content"].get("text/event-stream")
                if stream is None:
                    continue
                stream.pop("example", None)
                chunk = {"anyOf": [stream["schema"], error]}
                payload = {"contentMediaType": "application/json", "contentSchema": chunk}
                data = {"type": "string", "if": {"not": {"const": "[DONE]"}}, "then": payload}
                stream["schema"] = {"type": "object", "required": ["data"], "properties": {"data": data}}
    _shorten(raw_schema["components"]["schemas"])


def _shorten(schema: Any) -> None:
    if isinstance(schema, list):
        for part in schema:
            _shorten(part)
    elif isinstance(schema, dict):
        if isinstance(schema.get("maxItems"), int) and schema["maxItems"] > _MOST_ITEMS:
            del schema["maxItems"]
        for part in schema.values():
            _shorten(part)


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) % 4:
        return {**body, "model": "smollm2"}
    return body
