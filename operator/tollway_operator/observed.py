"""Everything one pass knows, gathered once and frozen: made by `reconcile`, read by builders, plan and status."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Generic, TypeVar

from tollway_operator.builders.pools import Demand, read_demand, write_demand
from tollway_operator.platform import PlatformStatus
from tollway_operator.ports import Kind, Raw, RayStatus, SecretView, Snapshot
from tollway_operator.resources import ApiKey, Invalid, ModelDeployment, Plan, parse
from tollway_operator.resources.common import Resource
from tollway_serving.contract.catalogue import Catalogue
from tollway_serving.ledger.port import AccountUsage

R_co = TypeVar("R_co", bound=Resource, covariant=True)
_age = attrgetter("age")


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
    full_name: str = field(init=False, compare=False)
    """namespace/name"""

    age: tuple[int, str, str] = field(init=False, compare=False)
    """Sorts the oldest object first, then by namespace and name."""

    def __post_init__(self) -> None:
        raw = self.raw
        object.__setattr__(self, "full_name", f"{raw.namespace}/{raw.name}")
        object.__setattr__(self, "age", (raw.created, raw.namespace, raw.name))


@dataclass(frozen=True, slots=True)
class Good:
    """The config that an application was last seen RUNNING with, the object's generation that it came from, and its
    pods, where pods are made for models."""

    config: Mapping[str, Any]
    generation: int
    demand: Demand | None = None


@dataclass(frozen=True, slots=True)
class Tried:
    """A config that Ray has and was not seen RUNNING yet. Where the next version comes before the next look, this tells
    what the one was that ran in between."""

    fingerprint: str
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
    tried: Mapping[str, Tried] = field(default_factory=dict)


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
        self._read: dict[str, Parsed[Any]] = {}
        self._found: dict[Kind, tuple[Parsed[Any], ...]] = {"ModelDeployment": (), "Plan": (), "ApiKey": ()}
        self._objects: tuple[Raw, ...] = ()

    def unread(self, snapshot: Snapshot) -> Iterator[Raw]:
        """What `parse` would have to read."""
        if snapshot.objects == self._objects:
            return
        for raw in snapshot.objects:
            old = self._read.get(raw.uid)
            if old is None or not (old.raw is raw or _same_text(old.raw, raw)):
                yield raw

    def read(self, raw: Raw) -> None:
        """Ahead of `parse`, which takes long over thousands of new objects at once."""
        self._read[raw.uid] = read_object(raw)

    def parse(self, snapshot: Snapshot) -> Mapping[Kind, tuple[Parsed[Any], ...]]:
        """Each kind's objects, oldest first; the same tuple as before where nothing has changed."""
        if snapshot.objects == self._objects:
            return self._found
        found: dict[Kind, list[Parsed[Any]]] = {kind: [] for kind in self._found}
        read: dict[str, Parsed[Any]] = {}
        for raw in snapshot.objects:
            old = self._read.get(raw.uid)
            if old is None:
                parsed = read_object(raw)
            elif old.raw is raw:
                parsed = old
            elif _same_text(old.raw, raw):
                parsed = Parsed(raw, old.resource, old.problem)
            else:
                parsed = read_object(raw)
            read[raw.uid] = parsed
            found[raw.kind].append(parsed)
        for items in found.values():
            items.sort(key=_age)
        by_age = {kind: tuple(items) for kind, items in found.items()}
        self._found = {kind: before if before == by_age[kind] else by_age[kind] for kind, before in self._found.items()}
        self._read, self._objects = read, snapshot.objects  # deleted objects are forgotten
        return self._found


def _same_text(old: Raw, new: Raw) -> bool:
    """Whether they differ in the status at most."""
    return (old.generation, old.labels, old.spec) == (new.generation, new.labels, new.spec)


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
    tried: dict[str, Tried] = {}
    for key, text in kept.items():
        kind, _, app = key.partition("_")
        try:
            value = json.loads(text)
            if kind == "good":
                good[app] = Good(value["config"], int(value["generation"]), _demand(value))
            elif kind == "tried":
                tried[app] = Tried(str(value["fingerprint"]), int(value["generation"]), _demand(value))
            elif kind == "failed":
                failed[app] = Failed(
                    str(value["fingerprint"]), str(value["message"]), int(value["at"]), int(value["tries"])
                )
            elif kind == "drain":
                drain[app] = Drain(int(value["since"]), int(value["until"]))
        except (ValueError, KeyError, TypeError):
            continue
    return Memory(good, failed, drain, tried)


def _demand(value: Mapping[str, Any]) -> Demand | None:
    return read_demand(value["demand"]) if value.get("demand") else None


def write_memory(memory: Memory) -> dict[str, str]:
    """Memory as `Objects.remember` keeps it. Keys fit a ConfigMap's: letters, digits, `-`, `_` and `.`."""

    def text(value: Mapping[str, Any]) -> str:
        return json.dumps(value, sort_keys=True, separators=(",", ":"))

    def pods(x: Good | Tried) -> dict[str, Any]:
        demand = {"demand": write_demand(x.demand)} if x.demand is not None else {}
        return {"generation": x.generation, **demand}

    return {
        **{f"good_{app}": text({"config": x.config, **pods(x)}) for app, x in memory.good.items()},
        **{f"tried_{app}": text({"fingerprint": x.fingerprint, **pods(x)}) for app, x in memory.tried.items()},
        **{
            f"failed_{app}": text({"fingerprint": x.fingerprint, "message": x.message, "at": x.at, "tries": x.tries})
            for app, x in memory.failed.items()
        },
        **{f"drain_{app}": text({"since": x.since, "until": x.until}) for app, x in memory.drain.items()},
    }
