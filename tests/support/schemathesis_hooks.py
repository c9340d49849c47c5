"""Loaded by the schemathesis program (test_openapi): most bodies name a model that exists, or none would get far."""

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) % 4:
        return {**body, "model": "smollm2"}
    return body
