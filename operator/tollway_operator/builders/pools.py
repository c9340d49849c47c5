"""GPU and CPU pools: which pods a model's replicas need, and how many. Read by `applications` and `ray_cluster`.

A pool is one worker group of the Ray cluster, and one of its pods takes exactly one replica (or one part of a replica
that spans pods). Models that ask for the same pods share a pool. Its name is also the value of a Ray node label, by
which Serve finds it: never a custom resource.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from tollway_operator.resources.model_deployment import ModelDeployment

POOL_LABEL = "tollway.dev/pool"
"""Label of Ray nodes and of their pods."""

GATEWAY_POOL = "gateway"
"""The pool of the gateway's replicas; no model's pool has this name."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What is mounted into the pods of a model and its adapters for their sources: Secrets (namespace, name, entries)
    and claims. Other needs make another pool, so that no model sees another one's Secret."""

    secrets: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    claims: tuple[str, ...] = ()


NOTHING = Needs()


@dataclass(frozen=True, slots=True)
class PodDefaults:
    """What a model's pods get where its object doesn't say."""

    image: str
    engine_images: Mapping[str, str]  # by engine.name
    cpu_milli: int
    memory_bytes: int
    tolerations: tuple[Mapping[str, str], ...] = ()  # of every pod with GPUs
    namespace: str = ""  # that the pods are in


@dataclass(frozen=True, slots=True)
class Pool:
    """Equal pools are one group."""

    name: str
    image: str
    cpu_milli: int
    memory_bytes: int
    gpus: int = 0
    accelerator: str | None = None
    node_selector: tuple[tuple[str, str], ...] = ()
    tolerations: str = "[]"  # JSON, a list
    needs: Needs = Needs()

    @property
    def cpus(self) -> int:
        """Logical CPUs of its Ray nodes: a replica takes all of them. Each GPU's worker counts as one beside it."""
        return max(-(-self.cpu_milli // 1000), self.gpus + 1 if self.gpus else 1)

    @property
    def label_selector(self) -> dict[str, str]:
        return {POOL_LABEL: self.name}


@dataclass(frozen=True, slots=True)
class Demand:
    """Pods of a pool: `minimum` always, up to `maximum` where Serve asks for them (a rollout's surge included)."""

    pool: Pool
    minimum: int
    maximum: int


def write_demand(demand: Demand) -> dict[str, Any]:
    """For JSON; short, as the operator's memory has one a model."""
    usual = {item.name: item.default for item in fields(Pool)}
    pool = {name: getattr(demand.pool, name) for name in usual if getattr(demand.pool, name) != usual[name]}
    if demand.pool.needs != NOTHING:
        pool["needs"] = [demand.pool.needs.secrets, demand.pool.needs.claims]
    return {"pool": pool, "minimum": demand.minimum, "maximum": demand.maximum}


def read_demand(value: Mapping[str, Any]) -> Demand:
    """The inverse. KeyError, TypeError or ValueError where it is none."""
    found = dict(value["pool"])
    secrets, claims = found.pop("needs", ((), ()))
    needs = Needs(tuple((space, name, tuple(entries)) for space, name, entries in secrets), tuple(claims))
    selector = tuple((key, text) for key, text in found.pop("node_selector", ()))
    return Demand(Pool(**found, node_selector=selector, needs=needs), int(value["minimum"]), int(value["maximum"]))


def pool_of(model: ModelDeployment, defaults: PodDefaults, needs: Needs = NOTHING) -> Pool:
    pod, engine = model.spec.pod, model.spec.engine
    image = engine.image or defaults.engine_images.get(engine.name) or defaults.image
    tolerations: list[dict[str, Any]] = [item.model_dump(by_alias=True, exclude_none=True) for item in pod.tolerations]
    if pod.gpus:
        tolerations += [dict(item) for item in defaults.tolerations if dict(item) not in tolerations]
    cpu = defaults.cpu_milli if pod.cpu_milli is None else pod.cpu_milli
    memory = defaults.memory_bytes if pod.memory_bytes is None else pod.memory_bytes
    selector = tuple(sorted(pod.node_selector.items()))
    accelerator = pod.accelerator if pod.gpus else None
    what: list[Any] = [image, cpu, memory, pod.gpus, accelerator, selector, tolerations]
    if needs != NOTHING:
        what += [needs.secrets, needs.claims]
    key = json.dumps(what, sort_keys=True)
    return Pool(
        name=f"{_kind(pod.gpus, accelerator)}-{hashlib.sha256(key.encode()).hexdigest()[:8]}",
        image=image,
        cpu_milli=cpu,
        memory_bytes=memory,
        gpus=pod.gpus,
        accelerator=accelerator,
        node_selector=selector,
        tolerations=json.dumps(tolerations, sort_keys=True),
        needs=needs,
    )


def _kind(gpus: int, accelerator: str | None) -> str:
    """The readable part of a pool's name: cpu, gpu-x1, l4-x2. Short, for pods' names hold it."""
    if not gpus:
        return "cpu"
    words = re.sub("[^a-z0-9]+", "-", (accelerator or "gpu").lower()).strip("-").removeprefix("nvidia-")
    return f"{words[:16].strip('-') or 'gpu'}-x{gpus}"


def demand_of(model: ModelDeployment, pool: Pool) -> Demand:
    """Of one model. Rolling out with surge starts every new replica beside the old ones."""
    scaling, pods = model.spec.scaling, model.spec.pod.pods
    surge = 2 if model.spec.rollout == "Surge" else 1
    return Demand(pool, scaling.min_replicas * pods, scaling.max * pods * surge)


def together(demands: Iterable[Demand]) -> tuple[Demand, ...]:
    """One a pool, by name."""
    found: dict[str, Demand] = {}
    for demand in demands:
        before = found.get(demand.pool.name, Demand(demand.pool, 0, 0))
        found[demand.pool.name] = Demand(demand.pool, before.minimum + demand.minimum, before.maximum + demand.maximum)
    return tuple(found[name] for name in sorted(found))
