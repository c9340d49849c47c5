"""values.schema.json and the table of charts/tollway/README.md from values.yaml: used by hack/generate.

Types come from the defaults; a comment `# @schema` above a key adds what they can't say. Unknown keys are refused
everywhere but in maps that say so.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

_RULES = ("type", "enum", "minimum", "pattern", "item", "map")
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


@dataclass
class Notes:
    text: str = ""
    rules: dict[str, str] = field(default_factory=dict)


def schema(values: str) -> str:
    notes = _notes(values)
    root = _object(yaml.safe_load(values), "", notes)
    root["properties"]["global"] = {"type": "object"}  # Helm passes it to every chart
    document = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the chart tollway", **root}
    return json.dumps(document, indent=2) + "\n"


def table(values: str) -> str:
    """One row a value, as Markdown."""
    notes = _notes(values)
    rows = ["| value | default | meaning |", "|---|---|---|"]
    rows += [
        f"| `{path}` | `{json.dumps(default)}` | {notes.get(path, Notes()).text.replace('|', chr(92) + '|')} |"
        for path, default in _leaves(yaml.safe_load(values), "", notes)
    ]
    return "\n".join(rows) + "\n"


def _notes(values: str) -> dict[str, Notes]:
    """By dotted path. Comments stand right above their key, at its indentation."""
    found: dict[str, Notes] = {}
    path: list[tuple[int, str]] = []
    pending = Notes()
    reading = False
    for number, line in enumerate(values.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("# -- "):
            pending, reading = Notes(stripped[5:]), True
        elif stripped.startswith("# @schema "):
            name, _, value = stripped[10:].partition(":")
            if name not in _RULES or not value.strip():
                raise ValueError(f"values.yaml line {number}: {name} is none of {', '.join(_RULES)}, or says nothing")
            pending.rules[name], reading = value.strip(), False
        elif stripped.startswith("#"):
            if reading:
                pending.text += " " + stripped[1:].strip()
        elif match := re.match(r"( *)([A-Za-z][A-Za-z0-9]*):", line):
            indent = len(match[1])
            path = [item for item in path if item[0] < indent] + [(indent, match[2])]
            if pending.text or pending.rules:
                found[".".join(name for _, name in path)] = pending
            pending, reading = Notes(), False
        else:
            pending, reading = Notes(), False
    return found


def _object(values: dict[str, Any], path: str, notes: dict[str, Notes]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {key: _value(value, f"{path}{key}", notes) for key, value in values.items()},
    }


def _value(value: Any, path: str, notes: dict[str, Notes]) -> dict[str, Any]:
    note = notes.get(path, Notes())
    rules = note.rules
    made: dict[str, Any]
    if "map" in rules:
        made = {"type": "object", "additionalProperties": _typed(rules["map"])}
    elif isinstance(value, dict):
        made = _object(value, f"{path}.", notes)
    elif isinstance(value, list):
        if "item" not in rules:
            raise ValueError(f"values.yaml: {path} is a list: say `# @schema item: TYPE`")
        made = {"type": "array", "items": _typed(rules["item"])}
    elif "type" in rules:
        made = _typed(rules["type"])
    else:
        made = {"type": _TYPES[type(value)]}
    if "enum" in rules:
        made["enum"] = [item.strip() for item in rules["enum"].split(",")]
    if "minimum" in rules:
        made["minimum"] = int(rules["minimum"])
    if "pattern" in rules:
        made["pattern"] = rules["pattern"]
    return {"description": note.text, **made} if note.text else made


def _typed(text: str) -> Any:
    names = text.split("|")
    if names == ["any"]:
        return {}
    return {"type": names[0] if len(names) == 1 else names}


def _leaves(values: dict[str, Any], path: str, notes: dict[str, Notes]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{path}{key}"
        if isinstance(value, dict) and value and "map" not in notes.get(name, Notes()).rules:
            if any(isinstance(item, dict) for item in value.values()) or name.count(".") == 0:
                found += _leaves(value, f"{name}.", notes)
                continue
            if notes.get(name) is None:
                found += _leaves(value, f"{name}.", notes)
                continue
        found.append((name, value))
    return found
