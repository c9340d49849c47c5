"""docs/objects.md from the CRDs: called by hack/generate, so that the reference says what the API server says."""

from collections.abc import Iterator
from typing import Any

import yaml

_HEAD = """# The three objects

Made by hack/generate from the CRDs: don't edit. `group: tollway.dev/v1alpha1`; all three are namespaced. An example of
every field is in [crds/examples](../crds/examples), what the conditions say in [conditions.md](conditions.md).

Amounts of credits are whole numbers or quoted decimals with at most six places. Durations are Go's, such as `1h30m`.
A field that this version takes but can't carry out yet is refused in the condition `Accepted`, never ignored.
"""

_ORDER = ("modeldeployments", "plans", "apikeys")


def markdown(crds: dict[str, str]) -> str:
    """From the files by name, as crd.files() gives them."""
    parts = [_HEAD]
    for plural in _ORDER:
        definition = yaml.safe_load(crds[f"tollway.dev_{plural}.yaml"])
        names = definition["spec"]["names"]
        schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        short = "".join(f", `{name}`" for name in names.get("shortNames", []))
        parts.append(f"## {names['kind']}\n\n`kubectl get {plural}`{short}. {schema.get('description', '')}\n")
        for part in ("spec", "status"):
            if part in schema["properties"]:
                rows = list(_rows(schema["properties"][part], ""))
                parts.append(f"### {part}\n\n| field | type | what |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _rows(schema: dict[str, Any], prefix: str) -> Iterator[str]:
    required = set(schema.get("required", ()))
    for name, field in schema.get("properties", {}).items():
        path = f"{prefix}{name}"
        words = [field.get("description", "")]
        if name in required:
            words.append("Required.")
        if "default" in field and not isinstance(field["default"], dict):
            words.append(f"Default `{field['default']}`.")
        yield f"| `{path}` | {_type(field)} | {' '.join(filter(None, words)).replace('|', '/')} |"
        yield from _rows(field, f"{path}.")
        if isinstance(field.get("items"), dict):
            yield from _rows(field["items"], f"{path}[].")


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("x-kubernetes-int-or-string"):
        return "number or string"
    kind = field.get("type", "any")
    if kind == "array":
        return "list of " + _type(field["items"]).replace("object", "objects")
    if kind == "integer":
        low, high = field.get("minimum"), field.get("maximum")
        return "integer" + (f", {low} to {high}" if low is not None and high is not None else "")
    if "additionalProperties" in field:
        return "map"
    return str(kind)
