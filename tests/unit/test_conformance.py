"""hack/conformance: what it finds in an OpenAPI file made for this, and that the page is not stale."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from tollway_serving.gateway import openapi
from tollway_serving.gateway.app import ROUTES

ROOT = Path(__file__).resolve().parent.parent.parent
TABLES = {f"{route.method} {route.path}": (route, openapi.table_of(route)) for route in ROUTES if not route.bare}


@pytest.fixture(scope="module")
def conformance() -> Any:
    found = importlib.util.spec_from_file_location("conformance_doc", ROOT / "hack" / "conformance_doc.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def rows(page: str, title: str) -> dict[str, list[str]]:
    """A table's rows by parameter: here, embedded, narrower."""
    section = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"
    ]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_compares(conformance: Any) -> None:
    properties = {
        "prompt": {"type": "string"},
        "best_of": {"type": "integer", "minimum": 0, "maximum": 30},
        "suffix": {"anyOf": [{"$ref": "#/components/schemas/Suffix"}, {"type": "null"}]},
        "user": {"type": "string"},
        "stream": {"type": "boolean", "nullable": True},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "stop": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "boolean"}]},
        "telepathy": {"type": "boolean"},
    }
    body = {"allOf": [{"$ref": "#/components/schemas/Request"}]}
    spec = {
        "info": {"version": "9.9.9"},
        "paths": {
            "/completions": {
                "post": {"requestBody": {"content": {"application/json": {"schema": body}}}},
                "get": {},
            },
            "/models/{any}": {"get": {}},
            "/ether": {"post": {}},
        },
        "components": {"schemas": {"Request": {"properties": properties}, "Suffix": {"type": "string"}}},
    }
    page = conformance.markdown(b"file", spec)
    assert "version 9.9.9 (sha256 `3b9c358f36f0a31b…`)" in page
    assert "2 of OpenAI's 4 operations are here. Of the 8 parameters" in page
    assert re.search(r"\n7 are accepted \(1 of them .*\n0 are refused by name, 1 are absent", page)
    assert rows(page, "POST /completions") == {
        "prompt": ["accepted", "carried out", ""],
        "best_of": ["where the model can", "carried out", "at most 20"],
        "suffix": ["where the model can", 'refused: unsupported_parameter; `""`', ""],
        "user": ["hint", "no effect", ""],
        "stream": ["accepted", "carried out", ""],
        "temperature": ["where the model can", "carried out", ""],
        "stop": ["accepted", "carried out", "no boolean"],
        "telepathy": ["absent", "refused", ""],
    }
    assert "| completions | `POST /completions` | 1 |" in page
    assert "| models | `GET /models/{any}` | – |" in page
    assert "| ether | – | 1 |" in page


def test_narrower_names_and_kinds(conformance: Any) -> None:
    def values(schema: dict[str, Any]) -> Any:
        return conformance._Values({"components": {"schemas": {}}}, schema)

    def kind(name: str) -> dict[str, Any]:
        return {"type": "object", "properties": {"type": {"const": name}}}

    narrower = conformance._narrower
    assert narrower(values({"enum": ["a", "b", None]}), values({"enum": ["a"]})) == "no `b`"
    assert narrower(values({"enum": ["a", "b"]}), values({"type": "string"})) == ""
    assert narrower(values({"oneOf": [kind("x"), kind("y")]}), values(kind("x"))) == "no `y`"
    assert narrower(values(kind("x")), values({"type": "object"})) == ""
    assert narrower(values({"type": "integer"}), values({"type": "number", "minimum": 1})) == "at least 1"
    assert narrower(values({"type": "integer"}), values({"type": "integer", "minimum": -(2**63)})) == ""


@pytest.mark.parametrize("title", [title for title, (_, table) in TABLES.items() if table is not None])
def test_page_is_what_the_tables_say(conformance: Any, title: str) -> None:
    """Stale, or lacks a new route? Run hack/conformance with OpenAI's file."""
    route, table = TABLES[title]
    assert table is not None
    page = (ROOT / "docs" / "conformance.md").read_text("utf-8")
    found = rows(page, title)
    beyond = page.rpartition("Beyond OpenAI's: ")[2]
    assert bool(found) != (f"`{title}`" in beyond), f"{title} is not in the page: run hack/conformance"
    for name, (here, embedded, _) in found.items():
        parameter = table.parameters.get(name)
        if parameter is None:
            assert here == "absent", name
        else:
            assert here == conformance._verdict(parameter), name
            assert embedded == conformance._embedded(route, table, parameter), name


def test_page_has_every_route(conformance: Any) -> None:
    """A new route is in the page: among OpenAI's operations, or as one that goes beyond them."""
    page = (ROOT / "docs" / "conformance.md").read_text("utf-8")
    listed = {
        (method.lower(), conformance._shape(path))
        for method, path in re.findall(r"`([A-Z]+) (/[^`]*)`", page.partition("## Operations")[2])
    }
    assert listed == {(route.method.lower(), conformance._shape(route.path)) for route in ROUTES if not route.bare}
