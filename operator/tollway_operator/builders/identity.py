"""Who owns which id: modelIds and aliases are one space, and the oldest object wins. Called by `models` and `plans`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tollway_operator.observed import Parsed
from tollway_operator.resources import ModelDeployment


@dataclass(frozen=True, slots=True)
class Ids:
    """`owners` maps every modelId and usable alias to its object's namespace/name, `model_ids` an id or alias to the
    modelId that it means."""

    owners: Mapping[str, str]
    model_ids: Mapping[str, str]

    def owner(self, wanted: str) -> str | None:
        return self.owners.get(wanted)


def model_id(parsed: Parsed[ModelDeployment]) -> str:
    """Also of an object that can't be read: its id stays taken."""
    if parsed.resource is not None:
        return parsed.resource.model_id
    written = parsed.raw.spec.get("modelId")
    return written if isinstance(written, str) and written else parsed.raw.name


def assign(models: Iterable[Parsed[ModelDeployment]]) -> Ids:
    """`models` in any order."""
    by_age = sorted(models, key=lambda parsed: parsed.age)
    owners: dict[str, str] = {}
    ids: dict[str, str] = {}
    for parsed in by_age:
        own = model_id(parsed)
        if owners.setdefault(own, parsed.full_name) == parsed.full_name:
            ids[own] = own
    for parsed in by_age:
        own = model_id(parsed)
        if parsed.resource is None or owners[own] != parsed.full_name:
            continue
        for alias in parsed.resource.spec.aliases:
            if owners.setdefault(alias, parsed.full_name) == parsed.full_name:
                ids.setdefault(alias, own)
    return Ids(owners, ids)


def permits(namespace: str, allowed: Iterable[str], asking: str) -> bool:
    """Whether an object of `namespace` with these allowedNamespaces may be named from namespace `asking`."""
    return asking == namespace or any(item in ("*", asking) for item in allowed)
