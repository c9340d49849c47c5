"""docs/conformance.md from OpenAI's OpenAPI file and our routes: called by hack/conformance.

What is said of a parameter is found by asking the code that validates requests, with the entry of a model on the
embedded engine; nothing is written down twice.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from tollway_serving.contract.catalogue import Endpoint, ModelEntry, Target
from tollway_serving.contract.engines import ENGINES
from tollway_serving.gateway import openapi
from tollway_serving.gateway.app import ROUTES
from tollway_serving.gateway.catalogue import Model
from tollway_serving.gateway.errors import ApiError
from tollway_serving.gateway.parameters import Parameter, Table
from tollway_serving.gateway.route import Route

Json = dict[str, Any]

_METHODS: Final = ("get", "post", "put", "patch", "delete")
_WIDEST: Final[float] = 2**63 - 1024  # numbers beyond this are no limit: none that a client writes is there
_ENDPOINTS: Final[dict[str, Endpoint]] = {
    "/chat/completions": "ChatCompletions",
    "/completions": "Completions",
    "/embeddings": "Embeddings",
}
"""Of the routes that embedded engines answer."""

_HEAD: Final = """# Beside OpenAI's API

Made by `hack/conformance FILE` from OpenAI's OpenAPI file, version {version} (sha256 `{digest}…`), and from the tables
that validate requests: don't edit.

{operations} of OpenAI's {of_operations} operations are here. Of the {of_parameters} parameters of their bodies
{accepted} are accepted ({hints} of them as hints, which change nothing and are named in `x-ignored-parameters`),
{refused} are refused by name, {absent} are absent: refused as unknown. With `x-unsupported-parameters: ignore` nothing
of this is refused; it is named in `x-ignored-parameters` instead.

- **accepted**: by every model. **where the model can**: its entry says so, else it is refused by name.
- **embedded**: what a model on the embedded engine does. The values beside a refusal are accepted all the same, because
  they ask for what happens anyway.
- **narrower**: values, kinds of objects and ranges that OpenAI's file allows and we do not. Lengths of texts and lists
  are not compared.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One parameter of OpenAI's."""

    name: str
    verdict: str
    embedded: str
    narrower: str


def markdown(file: bytes, spec: Json) -> str:
    """The page. `file` is what `spec` was read from."""
    ours = {(route.method.lower(), _shape(route.path)): route for route in ROUTES if not route.bare}
    theirs = {
        (method, _shape(path)): (path, item[method])
        for path, item in spec["paths"].items()
        for method in _METHODS
        if method in item
    }
    present = [key for key in theirs if key in ours]
    tables = [(key, table) for key in present if (table := openapi.table_of(ours[key])) is not None]
    rows = {key: _rows(spec, theirs[key][1], ours[key], table) for key, table in tables}
    verdicts = [row.verdict for found in rows.values() for row in found]
    parts = [
        _HEAD.format(
            version=spec["info"]["version"],
            digest=hashlib.sha256(file).hexdigest()[:16],
            operations=len(present),
            of_operations=len(theirs),
            of_parameters=len(verdicts),
            accepted=sum(not verdict.startswith(("refused", "absent")) for verdict in verdicts),
            hints=verdicts.count("hint"),
            refused=verdicts.count("refused by name"),
            absent=verdicts.count("absent"),
        )
    ]
    for key, table in tables:
        parts.append(f"## {key[0].upper()} {theirs[key][0]}\n\n" + "\n".join(_table(rows[key])) + "\n")
        known = {row.name for row in rows[key]}
        if beyond := [f"`{name}`" for name in table.parameters if name not in known]:
            parts.append(f"Beyond OpenAI's: {', '.join(beyond)}.\n")
    parts.append("## Operations\n\n" + "\n".join(_operations(theirs, ours)) + "\n")
    return "\n".join(parts)


def _shape(path: str) -> str:
    """A path whatever its parameters are called."""
    return "/".join("{}" if part.startswith("{") else part for part in path.split("/"))


def _table(rows: list[Row]) -> Iterator[str]:
    yield "| parameter | here | embedded | narrower |"
    yield "|---|---|---|---|"
    for row in rows:
        yield f"| `{row.name}` | {row.verdict} | {row.embedded} | {row.narrower} |"


def _operations(theirs: Mapping[tuple[str, str], tuple[str, Json]], ours: Mapping[Any, Route]) -> Iterator[str]:
    """A line a group: what is here, and how many are not."""
    yield "| group | here | absent |"
    yield "|---|---|---|"
    groups: dict[str, tuple[list[str], int]] = {}
    for key, (path, _) in theirs.items():
        group = path.split("/")[1].partition("?")[0]
        here, absent = groups.get(group, ([], 0))
        if key in ours:
            groups[group] = ([*here, f"`{key[0].upper()} {path}`"], absent)
        else:
            groups[group] = (here, absent + 1)
    for group, (here, absent) in sorted(groups.items(), key=lambda item: (not item[1][0], item[0])):
        yield f"| {group} | {', '.join(here) or '–'} | {absent or '–'} |"
    if beyond := sorted(f"`{route.method} {route.path}`" for key, route in ours.items() if key not in theirs):
        yield f"\nBeyond OpenAI's: {', '.join(beyond)}."


def _rows(spec: Json, operation: Json, route: Route, table: Table) -> list[Row]:
    contents = operation.get("requestBody", {}).get("content", {})
    properties: dict[str, Json] = {}
    for content in contents.values():
        properties |= _properties(spec, content["schema"])
    own = openapi.build(ROUTES)
    mine = own["components"]["schemas"][table.model.__name__]["properties"]
    rows = []
    for name, schema in sorted(properties.items()):
        parameter = table.parameters.get(name)
        if parameter is None:
            rows.append(Row(name, "absent", "refused", ""))
            continue
        narrower = "" if parameter.how == "never" else _narrower(_Values(spec, schema), _Values(own, mine[name]))
        rows.append(Row(name, _verdict(parameter), _embedded(route, table, parameter), narrower))
    return rows


def _verdict(parameter: Parameter) -> str:
    if parameter.here:
        return "accepted"
    return {
        "universal": "accepted",
        "engine": "where the model can",
        "hint": "hint",
        "never": "refused by name",
    }[parameter.how]


def _embedded(route: Route, table: Table, parameter: Parameter) -> str:
    endpoint = _ENDPOINTS.get(route.path)
    facts = next((facts for facts in ENGINES.values() if facts.import_path and endpoint in facts.endpoints), None)
    if facts is None:
        return ""
    entry = ModelEntry(
        model_id="embedded",
        name="embedded/model",
        endpoints=facts.endpoints,
        context_tokens=facts.context_tokens,
        output_tokens=facts.output_tokens,
        default_output_tokens=facts.output_tokens,
        target=Target(url="", model="embedded"),
    )
    model = Model(entry, frozenset(facts.parameters), frozenset(facts.capabilities))
    try:
        fitted = table.fit({parameter.name: object()}, model, ignore=False)
    except ApiError as refusal:
        values = ", ".join(f"`{orjson.dumps(value).decode()}`" for value in parameter.neutral)
        return f"refused: {refusal.code}" + (f"; {values}" if values else "")
    return "carried out" if fitted.payload or fitted.here else "no effect"


def _resolve(spec: Json, schema: Json) -> Json:
    while "$ref" in schema:
        schema = spec["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def _properties(spec: Json, schema: Json) -> dict[str, Json]:
    schema = _resolve(spec, schema)
    found: dict[str, Json] = {}
    for part in (*schema.get("allOf", ()), *schema.get("anyOf", ()), *schema.get("oneOf", ())):
        found |= _properties(spec, part)
    return found | schema.get("properties", {})


class _Values:
    """The plain values that a schema allows at its top: names of an enum, a number's range, types, kinds of objects."""

    def __init__(self, spec: Json, schema: Json) -> None:
        self.names: set[Any] = set()
        self.types: set[str] = set()
        self.kinds: set[str] = set()  # values of `type` or `role` in objects
        self.low, self.high = -_WIDEST, _WIDEST
        self.free = False  # a string that may be anything, beside names
        self._take(spec, schema, 0)

    def _take(self, spec: Json, schema: Json, depth: int) -> None:
        schema = _resolve(spec, schema)
        parts = [*schema.get("allOf", ()), *schema.get("anyOf", ()), *schema.get("oneOf", ())]
        for part in parts:
            self._take(spec, part, depth)
        names = schema.get("enum", [schema["const"]] if "const" in schema else [])
        if depth == 0:
            self.names.update(name for name in names if name is not None)
            kinds = schema.get("type", [])
            self.types.update(kind for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind != "null")
            self.free = self.free or (schema.get("type") == "string" and not names)
            self.low = max(schema.get("minimum", self.low), -_WIDEST)
            self.high = min(schema.get("maximum", self.high), _WIDEST)
        if "items" in schema and depth == 0:
            self._take(spec, schema["items"], 1)
        for tag in ("type", "role"):
            if tag in schema.get("properties", {}):
                named = _resolve(spec, schema["properties"][tag])
                self.kinds.update(named.get("enum", [named["const"]] if "const" in named else []))


def _narrower(theirs: _Values, ours: _Values) -> str:
    found = []
    if theirs.names and not ours.free:
        missing = sorted(f"`{name}`" for name in theirs.names - ours.names)
        found += [f"no {', '.join(missing)}"] if missing else []
    if ours.kinds and (missing := sorted(f"`{kind}`" for kind in theirs.kinds - ours.kinds)):
        found.append(f"no {', '.join(missing)}")
    numbers = {"integer", "number"}
    lost = {kind for kind in theirs.types - ours.types if not (kind in numbers and ours.types & numbers)}
    if lost and ours.types:
        found.append("no " + ", ".join(sorted(lost)))
    if theirs.types & numbers and ours.types & numbers:
        if ours.low > theirs.low:
            found.append(f"at least {ours.low:,}")
        if ours.high < theirs.high:
            found.append(f"at most {ours.high:,}")
    return "; ".join(found)
