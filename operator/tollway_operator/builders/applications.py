"""Serve applications: the gateway, and one for each model that runs in our Ray. Called by `desired`.

What a config holds is compared with what Ray says that it was given, so it is written exactly as Ray keeps it: no
nulls, no defaults, times as floats.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tollway_operator.builders.pools import GATEWAY_POOL, POOL_LABEL, Demand, demand_of
from tollway_operator.builders.sources import loader_secret
from tollway_operator.builders.views import ModelView
from tollway_operator.ports import Kind
from tollway_operator.settings import Settings
from tollway_serving.contract.applications import (
    GATEWAY_APP,
    GATEWAY_DEPLOYMENT,
    GATEWAY_IMPORT_PATH,
    MODEL_DEPLOYMENT,
    model_app,
    model_route,
)

_EMBEDDED_CPUS = 0.05  # so that two cores don't block a third model or a surge
_LONGEST_REQUEST = 3_600.0  # seconds; the CRD bounds timeouts.total
_SHUTDOWN_MARGIN = 5.0
_MODELS_WAIT = 30.0  # seconds; a node's proxy takes a few

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class App:
    """A wanted application. `config` None: of an object that is not accepted; what it has stays."""

    name: str
    config: Config | None
    generation: int = 0
    owner: tuple[Kind, str, str] | None = None  # None: the gateway
    total_s: float = _LONGEST_REQUEST  # its longest request
    demand: Demand | None = None  # its pods, where pods are made for models
    mark: str = ""  # the config's fingerprint


def gateway(settings: Settings) -> App:
    deployment: dict[str, Any] = {
        "name": GATEWAY_DEPLOYMENT,
        "num_replicas": settings.gateway_replicas,
        "max_ongoing_requests": settings.gateway_max_ongoing_requests,
        "max_surge_percent": 100,
        "graceful_shutdown_timeout_s": _LONGEST_REQUEST + _SHUTDOWN_MARGIN,
        "ray_actor_options": {"num_cpus": _EMBEDDED_CPUS if settings.embedded else settings.gateway_cpus},
    }
    if settings.pods is not None:  # a pod takes one replica: a logical CPU
        deployment["max_replicas_per_node"] = 1
        deployment["ray_actor_options"] = {"num_cpus": 1.0, "label_selector": {POOL_LABEL: GATEWAY_POOL}}
    # The gateway asks nobody else for this limit: its requests go past Serve (tollway_serving.gateway.edge).
    args: dict[str, Any] = {"max_requests": settings.gateway_max_ongoing_requests}
    if not settings.embedded:  # on one node nobody sends a request to a replica but the proxy that it would wait for
        args["models_wait_s"] = _MODELS_WAIT
    config = {
        "name": GATEWAY_APP,
        "route_prefix": "/",
        "import_path": GATEWAY_IMPORT_PATH,
        "args": args,
        "deployments": [deployment],
    }
    return App(GATEWAY_APP, config, mark=fingerprint(config))


def model(view: ModelView, adapters: Sequence[ModelView], settings: Settings) -> App | None:
    """None where it needs no application of its own. `adapters` are the models that run in this one."""
    raw = view.parsed.raw
    if view.app is None or view.app != model_app(raw.namespace, raw.name):
        return None
    resource, facts, entry = view.parsed.resource, view.facts, view.entry
    if view.refused or view.unscheduled or resource is None or facts is None or entry is None:
        return App(view.app, None, raw.generation, raw.key)
    spec = resource.spec
    total = entry.timeouts.total_ms / 1000
    written = spec.engine.args.get(facts.slots_arg) if facts.slots_arg else None
    slots = written if isinstance(written, int) else facts.slots
    deployment: dict[str, Any] = {
        "name": MODEL_DEPLOYMENT,
        "max_ongoing_requests": slots,
        "max_queued_requests": entry.queued_requests,
        "max_surge_percent": 100 if spec.rollout == "Surge" else 0,
        "graceful_shutdown_timeout_s": total + _SHUTDOWN_MARGIN,
        "ray_actor_options": _actor_options(view, settings),
    }
    if facts.workers:
        deployment.update(_workers(view, settings))
    scaling = spec.scaling
    if scaling.min_replicas == scaling.max:
        deployment["num_replicas"] = scaling.max
    else:
        deployment["autoscaling_config"] = {
            "min_replicas": scaling.min_replicas,
            "initial_replicas": max(1, scaling.min_replicas),  # a version that can't start is seen at once
            "max_replicas": scaling.max,
            "target_ongoing_requests": float(scaling.target_ongoing_requests),
            "upscale_delay_s": scaling.scale_up_delay_ms / 1000,
            "downscale_delay_s": scaling.scale_down_delay_ms / 1000,
        }
    args: dict[str, Any] = {
        "name": f"{raw.namespace}.{raw.name}",
        "model_id": view.model_id,
        "source": spec.source.uri if spec.source else None,
        "args": dict(spec.engine.args),
        "context_tokens": entry.context_tokens,
        "output_tokens": entry.output_tokens,
        "slots": slots,
    }
    if secret := loader_secret(resource):
        args["source_secret"] = secret
    if spec.pod.gpus and facts.workers and not settings.embedded:
        args |= {"gpus": spec.pod.gpus, "pods": spec.pod.pods}
    if loaded := {other.model_id: _adapter(other) for other in adapters if other.parsed.resource is not None}:
        args["adapters"] = True  # the first one restarts the model; more come and go while it runs
        deployment["user_config"] = {"adapters": loaded}
    config = {
        "name": view.app,
        "route_prefix": model_route(raw.namespace, raw.name),
        "import_path": facts.import_path,
        "args": args,
        "deployments": [deployment],
    }
    demand = demand_of(resource, view.pool) if view.pool is not None else None
    return App(view.app, config, raw.generation, raw.key, total, demand, fingerprint(config))


def _adapter(view: ModelView) -> dict[str, Any]:
    """What the model's replica is told of an adapter."""
    resource = view.parsed.resource
    assert resource is not None  # noqa: S101 - the caller has looked
    assert resource.spec.source is not None  # noqa: S101 - else it were no adapter
    told: dict[str, Any] = {"source": resource.spec.source.uri}
    if secret := loader_secret(resource):
        told["secret"] = secret
    return told


def _workers(view: ModelView, settings: Settings) -> dict[str, Any]:
    """A placement group: the engine starts a worker for each GPU in it, and the replica sits beside the first one. In
    pods of ours it takes all of their logical CPUs and GPUs, so that no other replica gets in between."""
    resource = view.parsed.resource
    assert resource is not None  # noqa: S101 - the caller has looked
    pod = resource.spec.pod
    options = _actor_options(view, settings)
    gpus = 0 if settings.embedded else pod.gpus
    if not gpus:
        return {"placement_group_bundles": [{"CPU": options["num_cpus"]}], "placement_group_strategy": "PACK"}
    cpus = float(view.pool.cpus) if view.pool is not None else options["num_cpus"] + gpus
    first = {"CPU": cpus - (gpus - 1), "GPU": 1.0}
    others = [{"CPU": 1.0, "GPU": 1.0} for _ in range(gpus * pod.pods - 1)]
    group: dict[str, Any] = {
        "placement_group_bundles": [first, *others],
        "placement_group_strategy": "STRICT_PACK" if pod.pods == 1 else "PACK",
        "ray_actor_options": {**options, "num_cpus": 1.0},
    }
    group["ray_actor_options"].pop("num_gpus", None)  # its workers have them
    group["ray_actor_options"].pop("memory", None)
    if view.pool is not None:
        group["placement_group_bundle_label_selector"] = [view.pool.label_selector] * (len(others) + 1)
    return group


def _actor_options(view: ModelView, settings: Settings) -> dict[str, Any]:
    if view.pool is not None:  # a pod takes one replica: all of its logical CPUs
        bound: dict[str, Any] = {"num_cpus": float(view.pool.cpus), "label_selector": view.pool.label_selector}
        return bound | {"num_gpus": float(view.pool.gpus)} if view.pool.gpus else bound
    if settings.embedded or view.parsed.resource is None:
        return {"num_cpus": _EMBEDDED_CPUS}
    pod = view.parsed.resource.spec.pod
    options: dict[str, Any] = {"num_cpus": 1.0 if pod.cpu_milli is None else pod.cpu_milli / 1000}
    if pod.gpus:
        options["num_gpus"] = float(pod.gpus)
    if pod.memory_bytes is not None:
        options["memory"] = float(pod.memory_bytes)
    return options


def same(left: Config | None, right: Config | None) -> bool:
    """Whether two configs say the same: 1 and 1.0 do, and the order of keys says nothing."""
    return left is not None and right is not None and dict(left) == dict(right)


def fingerprint(config: Config) -> str:
    """A short name of a config's content; the same after a round trip through JSON."""
    return hashlib.sha256(json.dumps(_plain(config), sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
