"""The CustomResourceDefinitions, made from the pydantic models: run by hack/generate, read by nobody at run time.

Pure: models in, dicts and YAML out. A structural schema is less than JSON Schema: no $ref, no anyOf, no null; what
can't be said in it raises SchemaError here instead of an error from an API server later.
"""

from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from tollway_operator.resources import ApiKey, ModelDeployment, Plan
from tollway_operator.resources.common import GROUP, VERSION, Resource
from tollway_operator.resources.rules import RULES_KEY
from tollway_operator.resources.status import ApiKeyStatus, ModelDeploymentStatus, PlanStatus

Schema = dict[str, Any]

HEADER = "# Made by hack/generate from operator/tollway_operator/resources: don't edit.\n"

_KEPT = (
    "description",
    "type",
    "format",
    "x-kubernetes-int-or-string",
    "enum",
    "default",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "required",
    RULES_KEY,
    "properties",
    "additionalProperties",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "items",
)
"""What may be in a structural schema, in the order in which it reads well."""
_DROPPED = frozenset({"title", "additionalProperties", "$defs"})


class SchemaError(Exception):
    """A model has something that a structural schema can't say; the message is the way to it."""


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    path: str
    type: str = "string"
    description: str = ""
    wide: bool = False  # only with `kubectl get -o wide`


@dataclass(frozen=True, slots=True)
class Kind:
    model: type[Resource]
    status: type[BaseModel]
    plural: str
    short_names: tuple[str, ...]
    columns: tuple[Column, ...]

    @property
    def name(self) -> str:
        return self.model.__name__


def _condition(type_: str, field: str = "status") -> str:
    return f'.status.conditions[?(@.type=="{type_}")].{field}'


_WHY = Column("Message", _condition("Ready", "message"), description="What the reason means here.", wide=True)
_AGE = Column("Age", ".metadata.creationTimestamp", "date")

KINDS = (
    Kind(
        ModelDeployment,
        ModelDeploymentStatus,
        "modeldeployments",
        ("md",),
        (
            Column("Model", ".status.modelId", description="The id that clients write."),
            Column("Engine", ".spec.engine.name", description="The program that runs it."),
            Column("Ready", _condition("Ready"), description="Whether it answers."),
            Column("Reason", _condition("Ready", "reason"), description="Why."),
            Column("Replicas", ".status.replicas.ready", "integer", "Copies that answer."),
            Column("Wanted", ".status.replicas.desired", "integer", "Copies that there should be."),
            _WHY,
            _AGE,
        ),
    ),
    Kind(
        Plan,
        PlanStatus,
        "plans",
        (),
        (
            Column("Tier", ".spec.tier", description="Paid or Free."),
            Column("Credits", ".spec.credits.monthly", description="Credits a month; empty: no limit."),
            Column("Models", ".status.models", "integer", "Models that it gives."),
            Column("Keys", ".status.keys", "integer", "ApiKeys on it."),
            Column("Ready", _condition("Ready"), description="Whether the gateways know it."),
            _WHY,
            _AGE,
        ),
    ),
    Kind(
        ApiKey,
        ApiKeyStatus,
        "apikeys",
        ("ak",),
        (
            Column("Plan", ".status.plan", description="The Plan that it is on."),
            Column("Key", ".status.prefix", description="How the key starts."),
            Column("Ready", _condition("Ready"), description="Whether calls get through."),
            Column("Reason", _condition("Ready", "reason"), description="Why."),
            Column("Expires", ".spec.expiresAt", description="When it ends."),
            _WHY,
            _AGE,
        ),
    ),
)


class _Generator(GenerateJsonSchema):
    """pydantic's JSON schema without what only pydantic means by it: nulls, titles, defaults that say nothing."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        inner = self.generate_inner(schema["schema"])
        default = self.get_default_value(schema)
        if isinstance(default, BaseModel):
            # Whole, not {}: the API server checks rules on a default before it fills in the fields' own defaults.
            written = default.model_dump(mode="json", by_alias=True, exclude_none=True)
            return {**inner, "default": written} if written else inner
        if isinstance(default, int | str) or (isinstance(default, tuple) and default):
            return {**inner, "default": self.encode_default(default)}
        return inner

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        return {"type": "string", "enum": list(schema["expected"])}


def structural(model: type[BaseModel]) -> Schema:
    """The structural schema of one model. SchemaError if it can't be said."""
    whole = model.model_json_schema(by_alias=True, schema_generator=_Generator, mode="validation")
    return _inlined(whole, whole.get("$defs", {}), model.__name__, ())


def _inlined(node: Schema, definitions: dict[str, Schema], where: str, open_refs: tuple[str, ...]) -> Schema:
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        if name in open_refs:
            raise SchemaError(f"{where}: {name} contains itself")
        beside = {key: value for key, value in node.items() if key != "$ref"}
        return _inlined({**definitions[name], **beside}, definitions, where, (*open_refs, name))
    values = node.get("additionalProperties")
    result: Schema = {}
    for key, value in node.items():
        if key == "properties":
            result[key] = {
                name: _inlined(inner, definitions, f"{where}.{name}", open_refs) for name, inner in value.items()
            }
        elif key == "items":
            result[key] = _inlined(value, definitions, f"{where}[]", open_refs)
        elif key in _KEPT and key != "additionalProperties":
            result[key] = value
        elif key not in _DROPPED:
            raise SchemaError(f"{where}: a structural schema has no {key}")
    if isinstance(values, dict):
        result["additionalProperties"] = _inlined(values, definitions, f"{where}{{}}", open_refs)
    if result.get("type") == "integer":
        result["format"] = "int64"
    if "type" not in result and "x-kubernetes-int-or-string" not in result:
        raise SchemaError(f"{where}: a structural schema needs a type")
    return {key: result[key] for key in _KEPT if key in result}


def definition(kind: Kind) -> Schema:
    """The CustomResourceDefinition of one kind."""
    model = structural(kind.model)
    root: Schema = {
        "type": "object",
        "description": model["description"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": model["properties"]["spec"],
            "status": {"description": "What there is.", **structural(kind.status)},
        },
        RULES_KEY: model[RULES_KEY],
    }
    if "spec" in model["required"]:
        root["required"] = ["spec"]
    names: Schema = {
        "kind": kind.name,
        "listKind": f"{kind.name}List",
        "plural": kind.plural,
        "singular": kind.name.lower(),
        "categories": ["tollway"],
    }
    if kind.short_names:
        names["shortNames"] = list(kind.short_names)
    columns = [
        {"name": column.name, "type": column.type, "jsonPath": column.path}
        | ({"description": column.description} if column.description else {})
        | ({"priority": 1} if column.wide else {})
        for column in kind.columns
    ]
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": root},
        "subresources": {"status": {}},
        "additionalPrinterColumns": columns,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}", "labels": {"app.kubernetes.io/part-of": "tollway"}},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def files() -> dict[str, str]:
    """What belongs into crds/: YAML by file name."""
    return {
        f"{GROUP}_{kind.plural}.yaml": HEADER
        + yaml.dump(definition(kind), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
        for kind in KINDS
    }
