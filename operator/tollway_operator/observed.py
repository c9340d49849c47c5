"""Everything one pass knows, gathered once and frozen: made by `reconcile`, read by builders, plan and status."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tollway_operator.builders.pools import Demand, read_demand, write_demand
from tollway_operator.platform import PlatformStatus
from tollway_operator.ports import Kind, Raw, RayStatus, SecretView, Snapshot
from tollway_operator.resources import ApiKey, Invalid, ModelDeployment, Plan, parse
from tollway_operator.resources.common import Resource
from tollway_serving.contract.catalogue import Catalogue
from tollway_serving.ledger.port import AccountUsage

R_co = TypeVar("R_co", bound=Resource, covariant=True)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something is not as its object wants it: a documented reason and a sentence that says what to write."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Parsed(Generic[R_co]):
    """An object and what its spec means; where this release can't read it `resource` is None and `problem` says why."""

    raw: Raw
    resource: R_co | None
    problem: Problem | None = None

    @property
    def full_name(self) -> str:
        """namespace/name"""
        return f"{self.raw.namespace}/{self.raw.name}"

    @property
    def age(self) -> tuple[int, str, str]:
        """Sorts the oldest object first, then by namespace and name."""
        return (self.raw.created, self.raw.namespace, self.raw.name)


@dataclass(frozen=True, slots=True)
class Good:
    """The config that an application was last seen RUNNING with, the object's generation that it came from, and its
    pods, where pods are made for models."""

    config: Mapping[str, Any]
    generation: int
    demand: Demand | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """A config that did not come up."""

    fingerprint: str
    message: str
    at: int  # seconds since the epoch
    tries: int = 1


@dataclass(frozen=True, slots=True)
class Drain:
    """An application whose object is gone: it ends when its requests have, at `until` at the latest."""

    since: int
    until: int


@dataclass(frozen=True, slots=True)
class Memory:
    """What survives a restart of the operator, by application."""

    good: Mapping[str, Good] = field(default_factory=dict)
    failed: Mapping[str, Failed] = field(default_factory=dict)
    drain: Mapping[str, Drain] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Observed:
    now: int  # seconds since the epoch
    models: tuple[Parsed[ModelDeployment], ...] = ()
    plans: tuple[Parsed[Plan], ...] = ()
    keys: tuple[Parsed[ApiKey], ...] = ()
    secrets: Mapping[tuple[str, str], SecretView] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    complete: bool = True  # every watched namespace was listed: an absent object is a deleted one
    ray: RayStatus | None = None  # None: Ray does not answer
    ray_error: str = ""
    ray_busy: bool = False  # an application set is on its way, and its effect not seen yet
    platform: PlatformStatus | None = None  # the pods; None: nobody makes any, or they were not looked at yet
    last_words: Mapping[str, str] = field(default_factory=dict)  # log lines of failed applications
    published: Catalogue | None = None  # None: the ledger does not answer
    ledger_error: str = ""
    holds: Mapping[str, int] | None = None  # open holds by model id; None: unknown
    usage: Mapping[str, AccountUsage] = field(default_factory=dict)  # by account, as last read
    seen_keys: frozenset[str] = frozenset()  # uids of ApiKeys that this process has seen alive


class Parser:
    """Reads specs, each version of an object once."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[int, Parsed[Resource]]] = {}

    def parse(self, snapshot: Snapshot) -> dict[Kind, list[Parsed[Any]]]:
        found: dict[Kind, list[Parsed[Any]]] = {"ModelDeployment": [], "Plan": [], "ApiKey": []}
        read: dict[str, tuple[int, Parsed[Resource]]] = {}
        for raw in snapshot.objects:
            before = self._read.get(raw.uid)
            if before is not None and before[0] == raw.generation and before[1].raw.spec == raw.spec:
                old = before[1]
                parsed = old if old.raw is raw else Parsed(raw, old.resource, old.problem)
            else:
                parsed = read_object(raw)
            read[raw.uid] = (raw.generation, parsed)
            found[raw.kind].append(parsed)
        self._read = read  # deleted objects are forgotten
        for items in found.values():
            items.sort(key=lambda item: item.age)
        return found


def read_object(raw: Raw) -> Parsed[Resource]:
    found = parse(raw)
    if isinstance(found, Invalid):
        return Parsed(raw, None, Problem("InvalidArgs" if _args_only(found) else "UnsupportedField", found.message))
    return Parsed(raw, found)


def _args_only(invalid: Invalid) -> bool:
    return bool(invalid.errors) and all(error.location[:3] == ("spec", "engine", "args") for error in invalid.errors)


def read_memory(kept: Mapping[str, str]) -> Memory:
    """The inverse of `write_memory`; what can't be read is dropped, as if it had never been kept."""
    good: dict[str, Good] = {}
    failed: dict[str, Failed] = {}
    drain: dict[str, Drain] = {}
    for key, text in kept.items():
        kind, _, app = key.partition("_")
        try:
            value = json.loads(text)
            if kind == "good":
                demand = read_demand(value["demand"]) if value.get("demand") else None
                good[app] = Good(value["config"], int(value["generation"]), demand)
            elif kind == "failed":
                failed[app] = Failed(
                    str(value["fingerprint"]), str(value["message"]), int(value["at"]), int(value["tries"])
                )
            elif kind == "drain":
                drain[app] = Drain(int(value["since"]), int(value["until"]))
        except (ValueError, KeyError, TypeError):
            continue
    return Memory(good, failed, drain)


def write_memory(memory: Memory) -> dict[str, str]:
    """Memory as `Objects.remember` keeps it. Keys fit a ConfigMap's: letters, digits, `-`, `_` and `.`."""

    def text(value: Mapping[str, Any]) -> str:
        return json.dumps(value, sort_keys=True, separators=(",", ":"))

    def good(x: Good) -> dict[str, Any]:
        demand = {"demand": write_demand(x.demand)} if x.demand is not None else {}
        return {"config": x.config, "generation": x.generation, **demand}

    return {
        **{f"good_{app}": text(good(x)) for app, x in memory.good.items()},
        **{
            f"failed_{app}": text({"fingerprint": x.fingerprint, "message": x.message, "at": x.at, "tries": x.tries})
            for app, x in memory.failed.items()
        },
        **{f"drain_{app}": text({"since": x.since, "until": x.until}) for app, x in memory.drain.items()},
    }
