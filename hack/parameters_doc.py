"""docs/parameters.md from the tables that validate requests: called by hack/generate."""

from collections.abc import Iterable, Iterator

import orjson

from tollway_serving.gateway import openapi
from tollway_serving.gateway.app import ROUTES
from tollway_serving.gateway.parameters import Parameter

_HEAD = """# Parameters by route

Made by `hack/generate` from the tables that validate requests: don't edit. `/openapi.json` has the same with every type
and range, and [conformance.md](conformance.md) sets it beside OpenAI's.

- **always**: every model carries it out.
- **where the model can**: it is carried out if the model's entry says so, else refused by name.
- **hint**: accepted, changes nothing, named in `x-ignored-parameters`.
- **refused**: it would change the answer, and nothing here can do it.

The values in the third column ask for what happens anyway: they are hints everywhere. With
`x-unsupported-parameters: ignore`, or where the plan says `unsupportedParameters: Ignore`, what would be refused is
ignored and named in `x-ignored-parameters` too, unknown names among it. A value that is wrong in itself is refused all
the same.
"""
_HOW = {"universal": "always", "engine": "where the model can", "hint": "hint", "never": "refused"}


def markdown() -> str:
    parts = [_HEAD]
    for route in ROUTES:
        table = None if route.bare else openapi.table_of(route)
        if table is not None:
            rows = "\n".join(_rows(table.parameters.values()))
            parts.append(f"## {route.method} {route.path}\n\n{rows}\n")
    return "\n".join(parts)


def _rows(parameters: Iterable[Parameter]) -> Iterator[str]:
    yield "| parameter | here | always accepted | what |"
    yield "|---|---|---|---|"
    for parameter in parameters:
        how = "always; where the model can't, by the gateway" if parameter.here else _HOW[parameter.how]
        if parameter.needs is not None:
            how += f" ({parameter.needs})"
        if parameter.refusal != "unsupported_parameter":
            how += f"; else `{parameter.refusal}`"
        neutral = ", ".join(f"`{orjson.dumps(value).decode()}`" for value in parameter.neutral)
        name = f"`{parameter.name}`" + (" (required)" if parameter.required else "")
        yield f"| {name} | {how} | {neutral} | {' '.join((parameter.doc, parameter.instead)).strip()} |"
