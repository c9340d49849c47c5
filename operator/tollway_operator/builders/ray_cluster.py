"""The RayCluster that KubeRay makes pods of, and the Service in front of its gateways. Called by `kuberay`.

Pure: what is live is an input, because worker groups may only be appended, or drained to zero and then removed (KubeRay
leaves the pods of a group that just vanishes behind as orphans), and because Ray's autoscaler owns their `replicas`.
What can't change under running pods (head, gateways, Ray's version) is part of the cluster's name: a change makes a
second cluster beside the first.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tollway_operator.builders.pools import GATEWAY_POOL, POOL_LABEL, Demand, Pool
from tollway_operator.builders.sources import secret_files
from tollway_operator.kuberay_settings import KubeRaySettings, Pods, Toleration
from tollway_serving.contract.applications import EDGE_ENVIRONMENT

API_VERSION = "ray.io/v1"
PLATFORM_LABEL = "tollway.dev/platform"
RETIRED_ANNOTATION = "tollway.dev/retired-at"
"""Seconds since the epoch at which the cluster stopped being the serving one."""

SERVE_PORT = 8000
DASHBOARD_PORT = 8265
SECRETS_DIR = "/etc/tollway/secrets"
PROVIDERS_DIR = "/etc/tollway/providers"
CACHE_DIR = "/var/cache/tollway"
SOURCES_DIR = "/etc/tollway/sources"
CLAIMS_DIR = "/mnt/tollway/claims"
_HARD_STOP_SECONDS = 3_700  # of a replaced HAProxy; must be longer than the longest request
_GRACE_SECONDS = 3_720  # of a pod that ends while it serves
_DRAIN = ["python", "-m", "tollway_serving.drain"]
_MIN_OBJECT_STORE = 100_000_000  # bytes; requests pass Ray's object store by
_MAX_OBJECT_STORE = 1_000_000_000

Object = dict[str, Any]


def cluster_name(settings: KubeRaySettings) -> str:
    """The same for settings that running pods need no change for."""
    cluster = _spec(settings, [])
    gateway = _gateway(settings)
    fixed = [cluster, gateway["template"], gateway["rayStartParams"]]
    return f"{settings.name}-{hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:6]}"


def ray_cluster(
    settings: KubeRaySettings,
    demands: Sequence[Demand],
    live: Mapping[str, Any] | None,
    *,
    busy: Iterable[str],
    pods: Mapping[str, int],
    owner: Mapping[str, Any] | None = None,
) -> Object:
    """`busy` are the pools that applications of this cluster still name, `pods` counts a group's pods, also those that
    are ending. `owner` is an ownerReference: with its object the cluster goes."""
    live_groups = _groups(live)
    wanted = [_gateway(settings), *(_pool(settings, demand) for demand in demands)]
    groups = _merge(live_groups, wanted, frozenset(busy), pods, append=True)
    metadata: Object = {
        "name": cluster_name(settings),
        "namespace": settings.namespace,
        "labels": {**settings.labels, PLATFORM_LABEL: settings.name},
    }
    if owner is not None:
        metadata["ownerReferences"] = [dict(owner)]
    return {
        "apiVersion": API_VERSION,
        "kind": "RayCluster",
        "metadata": metadata,
        "spec": _spec(settings, groups),
    }


def held(live: Mapping[str, Any], demands: Sequence[Demand], *, busy: Iterable[str], pods: Mapping[str, int]) -> Object:
    """A cluster that another one replaces: its pools follow the demand, but nothing is changed or added."""
    wanted = {demand.pool.name: demand for demand in demands}
    groups = []
    for group in _groups(live):
        demand = wanted.get(group["groupName"])
        sized = {**group, "minReplicas": demand.minimum, "maxReplicas": demand.maximum} if demand else group
        if demand or group["groupName"] == GATEWAY_POOL:
            groups.append(sized)
    merged = _merge(_groups(live), groups, frozenset(busy), pods, append=False)
    named = {"apiVersion": API_VERSION, "kind": "RayCluster", **live}  # items of a list don't say what they are
    return {**named, "spec": {**live["spec"], "workerGroupSpecs": merged}}


def _groups(live: Mapping[str, Any] | None) -> list[Object]:
    return list(live["spec"].get("workerGroupSpecs") or ()) if live else []


def _merge(
    live: Sequence[Object], wanted: Sequence[Object], busy: frozenset[str], pods: Mapping[str, int], *, append: bool
) -> list[Object]:
    """In the live order, new ones at the end."""
    by_name = {group["groupName"]: group for group in wanted}
    merged: list[Object] = []
    for group in live:
        name = group["groupName"]
        if name in by_name:
            merged.append(_sized(by_name.pop(name), int(group.get("replicas") or 0), group.get("scaleStrategy")))
        elif name in busy:
            merged.append(dict(group))
        elif pods.get(name) or group.get("replicas"):
            merged.append({**group, "minReplicas": 0, "maxReplicas": 0, "replicas": 0})
    if append:
        merged += [_sized(group, 0, None) for name, group in by_name.items()]
    return merged


def _sized(group: Object, replicas: int, scale_strategy: Any) -> Object:
    """Ray's autoscaler decides between the bounds, and what it has asked for is kept: also where that is more than is
    wanted now. It takes the idle pods away by itself; KubeRay, told fewer, would take any."""
    replicas = max(replicas, group["minReplicas"])
    kept = {"scaleStrategy": scale_strategy} if scale_strategy else {}
    return {**group, "replicas": replicas, "maxReplicas": max(replicas, group["maxReplicas"]), **kept}


def _spec(settings: KubeRaySettings, groups: list[Object]) -> Object:
    autoscaler = settings.autoscaler
    size = {"cpu": str(autoscaler.cpu), "memory": str(autoscaler.memory)}
    spec: Object = {
        "rayVersion": settings.ray_version,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": autoscaler.idle_seconds,
            "imagePullPolicy": settings.image_pull_policy,
            "resources": {"requests": size, "limits": {"memory": size["memory"]}},
            "securityContext": _container_security(),
            "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108 - a volume of the pod
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
        },
        "authOptions": {"mode": "token", "secretName": settings.platform_secret},
        "headGroupSpec": {
            "rayStartParams": {
                "dashboard-host": "0.0.0.0",  # noqa: S104 - reached through the pod's own address
                "num-cpus": "0",  # no replica runs here
                "object-store-memory": str(_MIN_OBJECT_STORE),
            },
            "template": _template(
                settings,
                settings.image,
                settings.head,
                "head",
                ports={"gcs": 6379, "dashboard": DASHBOARD_PORT, "client": 10001},
                head=True,
            ),
        },
        "workerGroupSpecs": groups,
    }
    if settings.redis is not None:
        redis: Object = {"redisAddress": settings.redis.address}
        if settings.redis.password_secret:
            reference = {"name": settings.redis.password_secret, "key": settings.redis.password_key}
            redis["redisPassword"] = {"valueFrom": {"secretKeyRef": reference}}
        spec["gcsFaultToleranceOptions"] = redis
    return spec


def _gateway(settings: KubeRaySettings) -> Object:
    """One pod a replica; up to twice as many while a new version surges."""
    template = _template(
        settings, settings.image, settings.gateway, GATEWAY_POOL, ports={"serve": SERVE_PORT}, gateway=True
    )
    container = template["spec"]["containers"][0]
    # HAProxy of this very pod: it is unready while it drains, and before it knows a route.
    container["readinessProbe"] = {
        "httpGet": {"path": "/-/healthz", "port": SERVE_PORT},
        "periodSeconds": 2,
        "timeoutSeconds": 5,
        "failureThreshold": 3,
    }
    replicas = settings.gateway.replicas
    return {
        "groupName": GATEWAY_POOL,
        "minReplicas": replicas,
        "maxReplicas": 2 * replicas,
        "labels": {POOL_LABEL: GATEWAY_POOL},
        "rayStartParams": {"num-cpus": "1", "object-store-memory": str(_MIN_OBJECT_STORE)},
        "template": template,
    }


def _pool(settings: KubeRaySettings, demand: Demand) -> Object:
    pool = demand.pool
    selector = dict(pool.node_selector)
    if pool.accelerator:
        selector[settings.models.accelerator_label] = pool.accelerator
    tolerations: tuple[Toleration, ...] = tuple(json.loads(pool.tolerations))
    size = Pods(cpu=f"{pool.cpu_milli}m", memory=pool.memory_bytes, node_selector=selector, tolerations=tolerations)
    template = _template(settings, pool.image, size, "model", ports={})
    container = template["spec"]["containers"][0]
    if pool.gpus:
        for kind in ("requests", "limits"):
            container["resources"][kind][settings.models.gpu_resource] = str(pool.gpus)
    container["volumeMounts"].append({"name": "cache", "mountPath": CACHE_DIR})
    container["env"].append({"name": "TOLLWAY_CACHE_DIR", "value": CACHE_DIR})
    container["env"].append({"name": "HF_HOME", "value": f"{CACHE_DIR}/huggingface"})
    template["spec"]["volumes"].append({"name": "cache", **settings.models.cache})
    _mount_sources(settings, pool, template["spec"])
    store = min(max(pool.memory_bytes // 8, _MIN_OBJECT_STORE), _MAX_OBJECT_STORE)
    return {
        "groupName": pool.name,
        "minReplicas": demand.minimum,
        "maxReplicas": demand.maximum,
        "labels": {POOL_LABEL: pool.name},
        "rayStartParams": {
            "num-cpus": str(pool.cpus),
            "num-gpus": str(pool.gpus),
            "object-store-memory": str(store),
        },
        "template": template,
    }


def _mount_sources(settings: KubeRaySettings, pool: Pool, spec: Object) -> None:
    """Claims, and of the copied Secrets' entries this pool's alone."""
    mounts = spec["containers"][0]["volumeMounts"]
    files = secret_files(pool.needs.secrets)
    if files:
        items = [{"key": name, "path": name} for name in sorted(files)]
        secret = {"secretName": settings.sources_secret, "optional": True, "defaultMode": 0o440, "items": items}
        spec["volumes"].append({"name": "sources", "secret": secret})
        mounts.append({"name": "sources", "mountPath": SOURCES_DIR, "readOnly": True})
        spec["containers"][0]["env"].append({"name": "TOLLWAY_SOURCES_DIR", "value": SOURCES_DIR})
    for number, claim in enumerate(pool.needs.claims):
        volume = {"claimName": claim, "readOnly": True}
        spec["volumes"].append({"name": f"claim-{number}", "persistentVolumeClaim": volume})
        mounts.append({"name": f"claim-{number}", "mountPath": f"{CLAIMS_DIR}/{claim}", "readOnly": True})
    if pool.needs.claims:
        spec["containers"][0]["env"].append({"name": "TOLLWAY_CLAIMS_DIR", "value": CLAIMS_DIR})


def _template(
    settings: KubeRaySettings,
    image: str,
    size: Pods,
    component: str,
    *,
    ports: Mapping[str, int],
    gateway: bool = False,
    head: bool = False,
) -> Object:
    mounts = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod
        {"name": "platform", "mountPath": SECRETS_DIR, "readOnly": True},
    ]
    volumes: list[Object] = [
        {"name": "tmp", "emptyDir": {}},
        # Files, read again when they change. (Ray's own token comes through the environment.)
        {"name": "platform", "projected": {"defaultMode": 0o440, "sources": _secrets(settings, ledger=gateway)}},
    ]
    if gateway:
        mounts.append({"name": "providers", "mountPath": PROVIDERS_DIR, "readOnly": True})
        secret = {"secretName": settings.providers_secret, "optional": True, "defaultMode": 0o440}
        volumes.append({"name": "providers", "secret": secret})
    container: Object = {
        "name": "ray",
        "image": image,
        "imagePullPolicy": settings.image_pull_policy,
        "resources": {
            "requests": {"cpu": _quantity(size.cpu), "memory": _quantity(size.memory)},
            "limits": {"memory": _quantity(size.memory)},
        },
        "env": _environment(settings, gateway=gateway),
        "volumeMounts": mounts,
        "securityContext": _container_security(),
    }
    if ports:
        container["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    security: Object = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if settings.run_as_user is not None:
        security |= {
            "runAsUser": settings.run_as_user,
            "runAsGroup": settings.run_as_user,
            "fsGroup": settings.run_as_user,
        }
    spec: Object = {"containers": [container], "volumes": volumes, "securityContext": security}
    if head:  # nothing there to wait for: the sooner the next one starts the better
        spec["terminationGracePeriodSeconds"] = 5
    else:
        spec["terminationGracePeriodSeconds"] = _GRACE_SECONDS
        # KubeRay's init container is a shell that waits for the head. As process 1 it would not notice that it is to
        # end, and a pod whose head is gone would stay for all of the grace period.
        spec["shareProcessNamespace"] = True
        spec["automountServiceAccountToken"] = False  # (the head's autoscaler resizes groups through the API server)
        container["lifecycle"] = {"preStop": {"exec": {"command": _DRAIN}}}
    if size.node_selector:
        spec["nodeSelector"] = dict(size.node_selector)
    if size.tolerations:
        spec["tolerations"] = [dict(item) for item in size.tolerations]
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    labels = {**settings.labels, PLATFORM_LABEL: settings.name, "app.kubernetes.io/component": component}
    return {"metadata": {"labels": labels}, "spec": spec}


def _secrets(settings: KubeRaySettings, *, ledger: bool) -> list[Object]:
    """Only gateways get at the ledger."""
    token = {"key": "internal-token", "path": "internal-token"}
    sources: list[Object] = [{"secret": {"name": settings.platform_secret, "items": [token]}}]
    if ledger:
        url = {"key": settings.ledger_key, "path": "database-url"}
        sources.append({"secret": {"name": settings.ledger_secret, "items": [url]}})
    return sources


def _environment(settings: KubeRaySettings, *, gateway: bool) -> list[Object]:
    values = {
        "HOME": "/tmp",  # noqa: S108 - the root file system is read-only
        "TOLLWAY_SECRETS_DIR": SECRETS_DIR,
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        **EDGE_ENVIRONMENT,
        "RAY_SERVE_LOG_TO_STDERR": "1",  # which throughput mode turns off: a model's last words are read from there
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # one log line a request, parsed in Python: a third of the throughput
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(_HARD_STOP_SECONDS),
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "FORWARDED_ALLOW_IPS": "",
        **settings.env,
    }
    if gateway:
        values["TOLLWAY_PROVIDERS_DIR"] = PROVIDERS_DIR
        if settings.gateway.client_address_header:
            values["TOLLWAY_CLIENT_ADDRESS_HEADER"] = settings.gateway.client_address_header
        values["TOLLWAY_METRICS_HOST"] = "0.0.0.0"  # noqa: S104 - Prometheus scrapes each replica by its pod's address
    found: list[Object] = [{"name": name, "value": value} for name, value in values.items()]
    if gateway:
        found.append({"name": "TOLLWAY_METRICS_ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
    return found


def _container_security() -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _quantity(value: int | str) -> str:
    return str(value)


def service(settings: KubeRaySettings, active: str, owner: Mapping[str, Any] | None = None) -> Object:
    """Clients' way in: the gateways of the cluster `active`."""
    metadata: Object = {
        "name": settings.name,
        "namespace": settings.namespace,
        "labels": {**settings.labels, PLATFORM_LABEL: settings.name},
    }
    if owner is not None:
        metadata["ownerReferences"] = [dict(owner)]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": "ClusterIP",
            "selector": {"ray.io/cluster": active, "ray.io/group": GATEWAY_POOL},
            "ports": [{"name": "http", "port": 80, "targetPort": SERVE_PORT, "protocol": "TCP"}],
        },
    }


def head_address(settings: KubeRaySettings, cluster: str) -> str:
    """Where the Serve REST API of a cluster answers, from inside of Kubernetes."""
    return f"http://{cluster}-head-svc.{settings.namespace}:{DASHBOARD_PORT}"


def covers(live: Any, wanted: Any) -> bool:
    """Whether `live` has everything that `wanted` says; what the API server added beside it doesn't count."""
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(key in live and covers(live[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return isinstance(live, list) and len(live) == len(wanted) and all(map(covers, live, wanted))
    return bool(live == wanted)
