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

    def of(self, names: Iterable[str]) -> "Ids":
        """Only what is known of these."""
        return Ids(
            {name: self.owners[name] for name in names if name in self.owners},
            {name: self.model_ids[name] for name in names if name in self.model_ids},
        )


NO_IDS = Ids({}, {})


@dataclass(frozen=True, slots=True)
class Claim:
    """What one object says about ids; in the order of `age` the first one has them."""

    full_name: str
    age: tuple[int, str, str]
    model_id: str
    aliases: tuple[str, ...] = ()


def claim(parsed: Parsed[ModelDeployment]) -> Claim:
    aliases = parsed.resource.spec.aliases if parsed.resource is not None else ()
    return Claim(parsed.full_name, parsed.age, model_id(parsed), aliases)


def model_id(parsed: Parsed[ModelDeployment]) -> str:
    """Also of an object that can't be read: its id stays taken."""
    if parsed.resource is not None:
        return parsed.resource.model_id
    written = parsed.raw.spec.get("modelId")
    return written if isinstance(written, str) and written else parsed.raw.name


def assign(claims: Iterable[Claim]) -> Ids:
    """`claims` in any order."""
    by_age = sorted(claims, key=lambda claim: claim.age)
    owners: dict[str, str] = {}
    ids: dict[str, str] = {}
    for claim in by_age:
        if owners.setdefault(claim.model_id, claim.full_name) == claim.full_name:
            ids[claim.model_id] = claim.model_id
    for claim in by_age:
        if owners[claim.model_id] != claim.full_name:
            continue
        for alias in claim.aliases:
            if owners.setdefault(alias, claim.full_name) == claim.full_name:
                ids.setdefault(alias, claim.model_id)
    return Ids(owners, ids)


def permits(namespace: str, allowed: Iterable[str], asking: str) -> bool:
    """Whether an object of `namespace` with these allowedNamespaces may be named from namespace `asking`."""
    return asking == namespace or any(item in ("*", asking) for item in allowed)
