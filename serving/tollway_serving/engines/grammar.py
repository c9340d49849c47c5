"""JSON Schema as a grammar that an engine generates by: `constrained` calls it for response formats and tools.

What the grammar allows is always valid for the schema, sometimes narrower (no free whitespace, bounded lists): the
answer is right by construction. A keyword that can't be kept is refused with its path in strict mode; otherwise it is
left out and reported, so that the caller can name it as ignored.
"""

from collections.abc import Mapping
from decimal import Decimal
from math import ceil, floor
from typing import Any
from urllib.parse import unquote

from tollway_serving.engines import gbnf
from tollway_serving.engines.pattern import UnsupportedPatternError, pattern_grammar
from tollway_serving.engines.protocol import EngineError
from tollway_serving.engines.rules import ANY_ITEMS, Rules, written

MAX_DEPTH = 48
MAX_ENUM = 1000
FREE_ITEMS = 128  # of an array whose schema has no maxItems, so that a small model can't list for ever

_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$schema"}
    | {"$comment", "$defs", "definitions", "discriminator", "externalDocs", "xml", "$id"}
)
_BY_TYPE: dict[str, frozenset[str]] = {
    "object": frozenset(
        {"properties", "required", "additionalProperties", "minProperties", "maxProperties", "unevaluatedProperties"}
    ),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems", "uniqueItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "boolean": frozenset(),
    "null": frozenset(),
}
_TYPED = frozenset().union(*_BY_TYPE.values())


def schema_rule(rules: Rules, schema: Any, path: str, *, strict: bool) -> str:
    """The operand, in `rules`, for values of `schema`, which stands at `path` in the request. `strict`: whether a
    keyword that can't be kept is refused, or added to `rules.ignored`."""
    return _Schema(rules, schema, path, strict).value(schema, path, frozenset(), 0)


class _Schema:
    """Compiles one document: `$ref` points into it."""

    def __init__(self, rules: Rules, document: Any, path: str, strict: bool) -> None:
        self._rules = rules
        self._document = document
        self._path = path
        self._strict = strict
        self._refs: dict[str, str] = {}

    def value(self, schema: Any, path: str, unguarded: frozenset[str], depth: int) -> str:
        """`unguarded`: the references being resolved with nothing written since; meeting one again never ends."""
        if depth > MAX_DEPTH:
            raise EngineError(f"The JSON schema at '{path}' is nested too deeply.", param=path)
        if schema is True or schema == {}:
            return self._rules.any_value()
        if not isinstance(schema, Mapping):
            raise EngineError(f"'{path}' is not a JSON schema that a value can match.", param=path)
        if "$ref" in schema:
            self._only(schema, path, {"$ref"})
            return self._ref(schema["$ref"], f"{path}.$ref", unguarded, depth)
        if "const" in schema or "enum" in schema:
            return self._enum(schema, path)
        for keyword in ("anyOf", "oneOf", "allOf"):
            if keyword in schema and not (schema.keys() & _TYPED) and "type" not in schema:
                self._only(schema, path, {keyword})
                return self._combined(keyword, schema[keyword], f"{path}.{keyword}", unguarded, depth)
        types = self._types(schema, path)
        allowed = {"type"}.union(*(_BY_TYPE[name] for name in types))
        self._only(schema, path, allowed)
        return gbnf.union([self._typed(name, schema, path, depth) for name in types])

    def _typed(self, name: str, schema: Mapping[str, Any], path: str, depth: int) -> str:
        if name == "object":
            return self._object(schema, path, depth)
        if name == "array":
            return self._array(schema, path, depth)
        if name == "string":
            return self._string(schema, path)
        if name in ("integer", "number"):
            return self._number(schema, path, integer=name == "integer")
        return '("true" | "false")' if name == "boolean" else '"null"'

    def _types(self, schema: Mapping[str, Any], path: str) -> list[str]:
        wanted = schema.get("type")
        if wanted is None:
            implied = [name for name in ("object", "array", "string", "number") if schema.keys() & _BY_TYPE[name]]
            return implied[:1] or [name for name in _TYPES if name != "integer"]
        names = [wanted] if isinstance(wanted, str) else wanted
        if not isinstance(names, list) or not names or any(name not in _TYPES for name in names):
            raise EngineError(f"'{path}.type' must be one of {', '.join(_TYPES)}, or a list.", param=f"{path}.type")
        return [name for name in dict.fromkeys(names) if not (name == "integer" and "number" in names)]

    def _only(self, schema: Mapping[str, Any], path: str, allowed: set[str] | frozenset[str]) -> None:
        for keyword in schema:
            if keyword not in allowed and keyword not in _ANNOTATIONS and not keyword.startswith("x-"):
                self._unsupported(path, keyword)

    def _unsupported(self, path: str, keyword: str, why: str = "") -> None:
        """Refuses a keyword, or notes it where the schema is only a wish."""
        where = f"{path}.{keyword}"
        if self._strict:
            message = f"This model cannot keep to '{keyword}' at '{path}' of a JSON schema{why}."
            raise EngineError(message, code="unsupported_parameter", param=where)
        self._rules.ignored.append(where)

    def _ref(self, ref: Any, path: str, unguarded: frozenset[str], depth: int) -> str:
        target = self._resolve(ref, path)
        if ref in unguarded:
            raise EngineError(f"'{path}' refers to itself.", param=path)
        if ref not in self._refs:
            self._refs[ref] = self._rules.reserve()
            body = self.value(target, self._path + _dotted(ref), unguarded | {ref}, depth + 1)
            self._rules.add(body, self._refs[ref])
        return self._refs[ref]

    def _resolve(self, ref: Any, path: str) -> Any:
        here = self._document
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise EngineError(
                f"'{path}' must point into the same schema, such as '#/$defs/name'.",
                code="unsupported_parameter",
                param=path,
            )
        for part in ref.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(here, Mapping) and key in here:
                here = here[key]
            elif isinstance(here, list) and key.isdigit() and int(key) < len(here):
                here = here[int(key)]
            else:
                raise EngineError(f"'{path}' points to nothing.", param=path)
        return here

    def _enum(self, schema: Mapping[str, Any], path: str) -> str:
        self._only(schema, path, {"const", "enum", "type"})
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        if not isinstance(values, list) or not 0 < len(values) <= MAX_ENUM:
            raise EngineError(f"'{path}.enum' must be a list of 1 to {MAX_ENUM} values.", param=f"{path}.enum")
        if "const" in schema:
            values = [value for value in values if _same(value, schema["const"])]
        if "type" in schema:
            types = self._types(schema, path)
            values = [value for value in values if any(_is_a(value, name) for name in types)]
        if not values:
            raise EngineError(f"No value can match '{path}'.", param=path)
        return self._rules.add(gbnf.union([gbnf.literal(written(value)) for value in values]))

    def _combined(self, keyword: str, branches: Any, path: str, unguarded: frozenset[str], depth: int) -> str:
        if not isinstance(branches, list) or not branches:
            raise EngineError(f"'{path}' must be a list of schemas.", param=path)
        parent = path.removesuffix(f".{keyword}")
        if len(branches) > 1 and keyword == "allOf":
            self._unsupported(parent, keyword, " with more than one part")
            branches = branches[:1]
        if len(branches) > 1 and keyword == "oneOf" and not self._exclusive(branches, path):
            self._unsupported(parent, keyword, " whose parts may overlap: use anyOf")
        options = [self.value(part, f"{path}[{at}]", unguarded, depth + 1) for at, part in enumerate(branches)]
        return self._rules.add(gbnf.union(list(dict.fromkeys(options))))

    def _exclusive(self, branches: list[Any], path: str) -> bool:
        """Whether no value can match two branches: by their types, or by a property with a value of each one's own."""
        resolved = [self._followed(branch, path) for branch in branches]
        kinds: list[set[str]] = []
        for branch in resolved:
            names = branch.get("type")
            listed = [names] if isinstance(names, str) else names if isinstance(names, list) else list(_TYPES)
            if "const" in branch or "enum" in branch:
                values = branch["enum"] if isinstance(branch.get("enum"), list) else [branch.get("const")]
                listed = [name for name in _TYPES if any(_is_a(value, name) for value in values)]
            kinds.append({"number" if name == "integer" else str(name) for name in listed})
        if sum(map(len, kinds)) == len(set[str]().union(*kinds)):
            return True
        candidates = [set(branch.get("required") or ()) for branch in resolved]
        return any(self._tells_apart(resolved, name, path) for name in set.intersection(*candidates))

    def _tells_apart(self, branches: list[Mapping[str, Any]], name: str, path: str) -> bool:
        seen: list[str] = []
        for branch in branches:
            part = self._followed((branch.get("properties") or {}).get(name), path)
            values = (
                part.get("enum") if isinstance(part.get("enum"), list) else [part["const"]] if "const" in part else []
            )
            if not values:
                return False
            seen += [written(value) for value in values or ()]
        return len(seen) == len(set(seen))

    def _followed(self, schema: Any, path: str) -> Mapping[str, Any]:
        for _ in range(8):
            if not isinstance(schema, Mapping) or "$ref" not in schema:
                break
            schema = self._resolve(schema["$ref"], f"{path}.$ref")
        return schema if isinstance(schema, Mapping) else {}

    def _object(self, schema: Mapping[str, Any], path: str, depth: int) -> str:
        properties = schema.get("properties") or {}
        required = schema.get("required") or []
        if not isinstance(properties, Mapping) or not all(isinstance(name, str) for name in properties):
            raise EngineError(f"'{path}.properties' must be an object.", param=f"{path}.properties")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise EngineError(f"'{path}.required' must be a list of names.", param=f"{path}.required")
        extra = schema.get("additionalProperties", schema.get("unevaluatedProperties", True))
        missing = [name for name in required if name not in properties]
        if missing and extra is False:
            raise EngineError(f"'{path}.required' names no property: {missing[0]}.", param=f"{path}.required")
        low, high = _count(schema, "minProperties", path) or 0, _count(schema, "maxProperties", path)
        if not properties and not missing:
            return self._map(extra, low, high, path, depth)
        if low > len(required):
            self._unsupported(path, "minProperties")
        if high is not None and high < len(properties) + len(missing):
            self._unsupported(path, "maxProperties")
        members = [
            (self._member(name, part, f"{path}.properties.{name}", depth), name in required)
            for name, part in properties.items()
        ]
        members += [(self._member(name, extra, f"{path}.additionalProperties", depth), True) for name in missing]
        return self._rules.add(f'"{{" {self._members(members)} "}}"')

    def _map(self, extra: Any, low: int, high: int | None, path: str, depth: int) -> str:
        if extra is False or high == 0:
            if low:
                raise EngineError(f"No value can match '{path}'.", param=path)
            return '"{}"'
        if low > 1:  # two members may get the same name
            self._unsupported(path, "minProperties", " above 1")
        value = self.value(extra, f"{path}.additionalProperties", frozenset(), depth + 1)
        return self._rules.map_of(value, min(low, 1), min(ANY_ITEMS, high) if high is not None else ANY_ITEMS)

    def _member(self, name: str, schema: Any, path: str, depth: int) -> str:
        value = self.value(schema, path, frozenset(), depth + 1)
        return self._rules.add(f"{gbnf.literal(written(name) + ': ')} {value}")

    def _members(self, members: list[tuple[str, bool]]) -> str:
        """In the schema's order, commas right though some are optional: chains of rules before the first and after."""
        after, before = '""', '""'
        for member, needed in reversed(members):
            following = self._rules.add(f'", " {member} {after}')
            starting = f"{member} {after}"
            before = self._rules.add(starting if needed else f"{starting} | {before}")
            after = following if needed else self._rules.add(f"{following} | {after}")
        return before

    def _array(self, schema: Mapping[str, Any], path: str, depth: int) -> str:
        low, high = _count(schema, "minItems", path) or 0, _count(schema, "maxItems", path)
        if schema.get("uniqueItems"):
            self._unsupported(path, "uniqueItems")
        items, fixed = schema.get("items", True), schema.get("prefixItems") or []
        if isinstance(items, list):
            fixed, items = items, True  # draft 7's tuples
        if not isinstance(fixed, list):
            raise EngineError(f"'{path}.prefixItems' must be a list of schemas.", param=f"{path}.prefixItems")
        most = high if high is not None else max(low, FREE_ITEMS if not fixed else len(fixed))
        if items is False:
            most = min(most, len(fixed))
        if low > most or low > gbnf.MAX_REPEAT:
            raise EngineError(f"No list can match '{path}'.", param=path)
        if len(fixed) > most or (fixed and low < len(fixed)):
            low = max(low, min(len(fixed), most))
        first = [
            self.value(part, f"{path}.prefixItems[{at}]", frozenset(), depth + 1)
            for at, part in enumerate(fixed[:most])
        ]
        if most <= len(first):
            return self._rules.add('"[" ' + ' ", " '.join(first) + ' "]"') if first else '"[]"'
        item = self.value(items, f"{path}.items", frozenset(), depth + 1)
        most = min(most, gbnf.MAX_REPEAT)
        if not first:
            return self._rules.add(f'"[" {gbnf.listed(item, low, most)} "]"')
        tail = gbnf.repeat(f'(", " {item})', max(0, low - len(first)), most - len(first))
        return self._rules.add('"[" ' + ' ", " '.join(first) + f' {tail} "]"')

    def _string(self, schema: Mapping[str, Any], path: str) -> str:
        low, high = _count(schema, "minLength", path) or 0, _count(schema, "maxLength", path)
        if high is not None and low > high:
            raise EngineError(f"No text can match '{path}'.", param=path)
        for keyword in ("pattern", "format"):
            if keyword not in schema:
                continue
            inner = self._shaped(keyword, schema[keyword], path)
            if inner is None:
                continue
            for other in {"pattern", "format", "minLength", "maxLength"} - {keyword}:
                if other in schema and (keyword, other) != ("format", "pattern"):
                    self._unsupported(path, other, f" beside '{keyword}'")
            return self._rules.add(f'"\\"" {inner} "\\""')
        if low > gbnf.MAX_REPEAT:
            self._unsupported(path, "minLength", f" above {gbnf.MAX_REPEAT}")
            low = gbnf.MAX_REPEAT
        if high is not None and high > gbnf.MAX_REPEAT:
            high = gbnf.MAX_REPEAT
        return self._rules.string(low, high)

    def _shaped(self, keyword: str, wanted: Any, path: str) -> str | None:
        if not isinstance(wanted, str):
            raise EngineError(f"'{path}.{keyword}' must be text.", param=f"{path}.{keyword}")
        if keyword == "format":
            if wanted in gbnf.FORMATS:
                return self._rules.add(gbnf.FORMATS[wanted])
            self._unsupported(path, keyword, f" '{wanted[:40]}'")
            return None
        try:
            return self._rules.add(pattern_grammar(wanted, self._rules.add(gbnf.CHAR, "char")))
        except UnsupportedPatternError as error:
            self._unsupported(path, keyword, f": {error}")
            return None

    def _number(self, schema: Mapping[str, Any], path: str, *, integer: bool) -> str:
        low, high = -gbnf.MAX_NUMBER, gbnf.MAX_NUMBER
        bounds = [
            (name, Decimal(str(schema[name])))
            for name in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
            if _bound(schema, name, path) is not None
        ]
        if not bounds:
            return gbnf.INTEGER if integer else gbnf.NUMBER
        exact = max(0, *(-int(bound.normalize().as_tuple().exponent) for _, bound in bounds))
        if exact > 9:
            raise EngineError(f"The bounds of '{path}' have too many decimals for this model.", param=path)
        options = [gbnf.decimals(*_range(bounds, low, high, 0), 0)]
        if not integer:
            places = max(2, exact)
            options.append(gbnf.decimals(*_range(bounds, low, high, places), places))
        found = list(dict.fromkeys(option for option in options if option))
        if not found:
            raise EngineError(f"No number can match '{path}'.", param=path)
        return self._rules.add(gbnf.union(found))


def _range(bounds: list[tuple[str, Decimal]], low: int, high: int, places: int) -> tuple[int, int]:
    """The bounds in units of the last decimal, both inclusive."""
    scale = 10**places
    low, high = low * scale, high * scale
    least, most = Decimal(low), Decimal(high)
    for name, bound in bounds:
        scaled = max(least, min(most, bound * scale))
        if name == "minimum":
            low = max(low, ceil(scaled))
        elif name == "exclusiveMinimum":
            low = max(low, floor(scaled) + 1)
        elif name == "maximum":
            high = min(high, floor(scaled))
        else:
            high = min(high, ceil(scaled) - 1)
    return low, high


def _bound(schema: Mapping[str, Any], name: str, path: str) -> float | None:
    value = schema.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise EngineError(f"'{path}.{name}' must be a number.", param=f"{path}.{name}")
    return value


def _count(schema: Mapping[str, Any], name: str, path: str) -> int | None:
    value = _bound(schema, name, path)
    if value is not None and (value < 0 or value != int(value)):
        raise EngineError(f"'{path}.{name}' must be a whole number of 0 or more.", param=f"{path}.{name}")
    return None if value is None else int(value)


def _is_a(value: Any, name: str) -> bool:
    match name:
        case "object":
            return isinstance(value, Mapping)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer":
            return isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
        case _:
            return isinstance(value, int | float) and not isinstance(value, bool)


def _same(one: Any, other: Any) -> bool:
    return written(one) == written(other)


def _dotted(ref: str) -> str:
    return "".join(f".{part}" for part in ref.split("/")[1:])
