"""The platform of our own on Kubernetes: a RayCluster that KubeRay makes pods of, driven through the Serve REST API.

Made by `main` and shaped by `platform_link`; the reconcile sees a Ray. One RayCluster serves, the one that the Service
selects. When what its running pods can't change is to change (Ray's version, images, the head), a second one comes up
beside it, gets the same applications, and takes the Service over once it serves all that the first one serves.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from tollway_operator.builders.applications import same
from tollway_operator.builders.pod_states import addresses, by_group, gpu_memory, pool_statuses, ready_pods
from tollway_operator.builders.pools import GATEWAY_POOL, POOL_LABEL, Demand
from tollway_operator.builders.ray_cluster import (
    API_VERSION,
    PLATFORM_LABEL,
    RETIRED_ANNOTATION,
    cluster_name,
    covers,
    head_address,
    held,
    ray_cluster,
    service,
)
from tollway_operator.cluster.api import AlreadyExists, Api
from tollway_operator.errors import Conflict, Forbidden, Gone, NotOurs, OperatorError, Unreachable
from tollway_operator.kuberay_settings import KubeRaySettings
from tollway_operator.platform import PlatformStatus
from tollway_operator.ports import AppStatus, RayStatus
from tollway_operator.serve_api import ServeApi
from tollway_serving.contract.applications import GATEWAY_APP

log = structlog.get_logger(__name__)

_NODES_FRESH = 60.0  # seconds for which a list of the cluster's nodes is good enough

Config = Mapping[str, Any]
Object = dict[str, Any]
Connect = Callable[[str], ServeApi]
"""Makes the client of a Ray cluster's Serve REST API from its address."""


class KubeRay:
    def __init__(
        self,
        api: Api,
        settings: KubeRaySettings,
        connect: Connect,
        *,
        owner: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._settings = settings
        self._connect = connect
        self._owner = owner
        self._clock = clock
        self._name = cluster_name(settings)
        self._clusters_path = f"/apis/{API_VERSION}/namespaces/{settings.namespace}/rayclusters"
        self._services_path = f"/api/v1/namespaces/{settings.namespace}/services"
        self._pods_path = f"/api/v1/namespaces/{settings.namespace}/pods"
        self._selector = f"{PLATFORM_LABEL}={settings.name}"
        self._rays: dict[str, ServeApi] = {}
        self._active: str | None = None
        self._applications: tuple[Config, ...] | None = None
        self._groups: Mapping[str, frozenset[str]] = {}  # worker groups of each cluster, as last seen
        self._held: dict[str, Mapping[str, frozenset[str]]] = {}  # pools of each cluster's applications, as last seen
        self._nodes: tuple[float, list[Object] | None] | None = None

    async def close(self) -> None:
        for ray in self._rays.values():
            await ray.close()

    # Ray, as the reconcile sees it

    async def status(self) -> RayStatus:
        return await self._serving().status()

    async def put(self, applications: tuple[Config, ...]) -> None:
        """To the serving cluster. One that is to replace it gets them in `shape`."""
        self._applications = applications
        active = self._serving()
        if self._active == self._name:
            await active.put(applications)
            return
        # It gets no new pools any more: an application that needs one keeps what it has there.
        groups = self._groups.get(self._active or "", frozenset())
        there = (await active.status()).apps
        kept = [_fitting(config, there.get(str(config["name"])), groups) for config in applications]
        await active.put(tuple(config for config in kept if config is not None))

    async def logs(self, app: str, lines: int = 20) -> str:
        return await self._serving().logs(app, lines)

    def _serving(self) -> ServeApi:
        if self._active is None:
            raise Unreachable("the Ray cluster is being made")
        return self._ray(self._active)

    def _ray(self, cluster: str) -> ServeApi:
        if cluster not in self._rays:
            self._rays[cluster] = self._connect(head_address(self._settings, cluster))
        return self._rays[cluster]

    # Pods, as the platform link sees them

    async def shape(self, demands: Sequence[Demand]) -> PlatformStatus:
        found = {str(item["metadata"]["name"]): item for item in await self._list(self._clusters_path)}
        clusters = {name: item for name, item in found.items() if not item["metadata"].get("deletionTimestamp")}
        if self._name in found and self._name not in clusters:
            return PlatformStatus(problem=f"RayCluster {self._name} is being deleted; it is made anew afterwards")
        pods = await self._list(self._pods_path)
        front = await self._get(f"{self._services_path}/{self._settings.name}")
        active = _selected(front)
        active = active if active in clusters else None
        for name in dict.fromkeys((active or self._name, self._name)):
            clusters[name] = await self._ensure(name, clusters.get(name), demands, by_group(pods, name))
        self._groups = {
            name: frozenset(group["groupName"] for group in item["spec"].get("workerGroupSpecs") or ())
            for name, item in clusters.items()
        }
        upgrade = ""
        if active is None:
            active = self._name
        elif active != self._name:
            self._active = active
            upgrade = await self._hand_over(active, by_group(pods, self._name))
            if not upgrade:
                await self._retire(clusters[active])
                active = self._name
        await self._select(front, active)
        self._active = active
        await self._clean_up(clusters, active)
        live, groups = clusters[active], by_group(pods, active)
        label = self._settings.models.accelerator_label
        nodes = await self._list_nodes(demands)
        return PlatformStatus(
            pools=pool_statuses(demands, groups, live, nodes, label),
            gpu_mib=gpu_memory(nodes, label, self._settings.models.gpu_memory_label),
            problem=str((live.get("status") or {}).get("reason") or ""),
            upgrade=upgrade,
        )

    async def _ensure(
        self, name: str, live: Object | None, demands: Sequence[Demand], groups: Mapping[str, list[Mapping[str, Any]]]
    ) -> Object:
        """Makes or changes one cluster, if it isn't as wanted; what the API server has then."""
        counts = {group: len(members) for group, members in groups.items()}
        busy = await self._busy(name, live, groups)
        if name != self._name:
            assert live is not None  # noqa: S101 - only clusters that are there are held
            wanted = held(live, demands, busy=busy, pods=counts)
        else:
            wanted = ray_cluster(self._settings, demands, live, busy=busy, pods=counts, owner=self._owner)
        if live is None:
            log.info("make_ray_cluster", name=name)
            try:
                return await self._api.create(self._clusters_path, wanted)
            except AlreadyExists as error:
                raise NotOurs(f"RayCluster {name} is there, but is not ours: {error}") from error
        if covers(live, {"metadata": {"labels": wanted["metadata"]["labels"]}, "spec": wanted["spec"]}):
            return live
        log.info("change_ray_cluster", name=name, groups=_sizes(wanted))
        labels = {**(live["metadata"].get("labels") or {}), **wanted["metadata"]["labels"]}
        body = {**wanted, **live, "metadata": {**live["metadata"], "labels": labels}, "spec": wanted["spec"]}
        # With the resourceVersion that was read: Ray's autoscaler may have resized a group meanwhile.
        return await self._api.replace(f"{self._clusters_path}/{name}", body)

    async def _busy(
        self, name: str, live: Object | None, groups: Mapping[str, list[Mapping[str, Any]]]
    ) -> frozenset[str]:
        """Pools that applications name or whose pods have replicas; all while Ray doesn't say."""
        if live is None:
            return frozenset()
        everything = frozenset(group["groupName"] for group in live["spec"].get("workerGroupSpecs") or ())
        try:
            apps = (await self._ray(name).status()).apps
        except OperatorError:
            return everything
        if any(app.config is None for app in apps.values()):
            return everything
        before, held = self._held.get(name, {}), {}
        for app in apps.values():
            pools = _pools(app.config or {}) | {group for group, pods in groups.items() if addresses(pods) & app.nodes}
            # While Serve builds a new version it lists no replica, though those of the old one serve on.
            silent = app.status != "RUNNING" and not app.replica_states and not app.total_replicas
            held[app.name] = frozenset(pools | before.get(app.name, everything) if silent else pools)
        self._held[name] = held
        return frozenset().union(*held.values())

    # A second cluster takes over

    async def _hand_over(self, active: str, groups: Mapping[str, list[Mapping[str, Any]]]) -> str:
        """Sends the applications to the successor. What it still lacks; "" when it may take over."""
        successor = self._ray(self._name)
        try:
            there = (await successor.status()).apps
        except OperatorError as error:
            return f"Ray cluster {self._name} is starting: {error}"
        try:
            serving: Mapping[str, AppStatus] = (await self._ray(active).status()).apps
        except OperatorError:
            serving = {}  # it doesn't answer: nothing to compare with
        wanted = self._applications
        if wanted is None:  # this operator has just started: what serves is what was wanted
            wanted = tuple(app.config for app in serving.values() if app.config is not None)
        groups_there = self._groups.get(self._name, frozenset())
        ours = tuple(config for config in wanted if _pools(config) <= groups_there)
        if any(not same(_config(there, config), config) for config in ours):
            try:
                await successor.put(ours)
            except OperatorError as error:
                return f"Ray cluster {self._name} doesn't take the applications: {error}"
            return f"Ray cluster {self._name} is getting its applications"
        taken = {str(config["name"]) for config in ours}
        needed = {str(config["name"]) for config in wanted if _serves(serving.get(str(config["name"])))} | {GATEWAY_APP}
        lacking = sorted(name for name in needed if name not in taken or not _serves(there.get(name)))
        if lacking:
            return f"Ray cluster {self._name} doesn't serve {', '.join(lacking)} yet"
        ready = ready_pods(groups.get(GATEWAY_POOL, []))
        if ready < self._settings.gateway.replicas:
            return f"{ready} of {self._settings.gateway.replicas} gateway pods of Ray cluster {self._name} are ready"
        return ""

    async def _retire(self, cluster: Object) -> None:
        name = cluster["metadata"]["name"]
        log.info("ray_cluster_takes_over", name=self._name, instead_of=name)
        stamp = {RETIRED_ANNOTATION: str(int(self._clock()))}
        await self._api.merge(f"{self._clusters_path}/{name}", {"metadata": {"annotations": stamp}})
        cluster["metadata"].setdefault("annotations", {}).update(stamp)

    async def _clean_up(self, clusters: Mapping[str, Object], active: str) -> None:
        """Clusters that neither serve nor are to: one that has served goes when its requests have had their time."""
        for name, cluster in clusters.items():
            retired = (cluster["metadata"].get("annotations") or {}).get(RETIRED_ANNOTATION)
            path = f"{self._clusters_path}/{name}"
            if name in (active, self._name):
                if retired is not None:  # wanted again
                    await self._api.merge(path, {"metadata": {"annotations": {RETIRED_ANNOTATION: None}}})
                continue
            if retired is not None and self._clock() < int(retired) + self._settings.drain_seconds:
                continue
            log.info("delete_ray_cluster", name=name)
            try:
                await self._api.delete(path, cluster["metadata"]["uid"])
            except (Gone, Conflict):
                continue
            self._held.pop(name, None)
            if (ray := self._rays.pop(name, None)) is not None:
                await ray.close()

    async def _select(self, front: Object | None, active: str) -> None:
        wanted = service(self._settings, active, self._owner)
        if front is None or not covers(
            front, {"metadata": {"labels": wanted["metadata"]["labels"]}, "spec": wanted["spec"]}
        ):
            log.info("point_service", cluster=active)
            await self._api.apply(f"{self._services_path}/{self._settings.name}", wanted)

    # Reading

    async def _list(self, path: str) -> list[Object]:
        return [item async for page in self._api.pages(path, self._selector) for item in page.items]

    async def _get(self, path: str) -> Object | None:
        try:
            return await self._api.get(path)
        except Gone:
            return None

    async def _list_nodes(self, demands: Sequence[Demand]) -> list[Object] | None:
        """None without the right to: an installation in one namespace doesn't have it."""
        if not any(demand.pool.accelerator for demand in demands):
            return []
        now = time.monotonic()
        if self._nodes is None or now - self._nodes[0] > _NODES_FRESH:
            nodes: list[Object] | None
            try:
                nodes = [item async for page in self._api.pages("/api/v1/nodes") for item in page.items]
            except Forbidden:
                nodes = None
            self._nodes = (now, nodes)
        return self._nodes[1]


async def owner_reference(api: Api, namespace: str, deployment: str) -> Mapping[str, Any]:
    """To the operator's own Deployment, so that what it makes goes when it is deleted."""
    found = await api.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/{deployment}")
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment, "uid": found["metadata"]["uid"]}


def _selected(front: Object | None) -> str | None:
    selector = (front or {}).get("spec", {}).get("selector") or {}
    return selector.get("ray.io/cluster")


def _pools(config: Config) -> frozenset[str]:
    """The pools that an application's deployments are bound to."""
    found = set()
    for deployment in config.get("deployments") or ():
        selector = (deployment.get("ray_actor_options") or {}).get("label_selector") or {}
        if pool := selector.get(POOL_LABEL):
            found.add(str(pool))
    return frozenset(found)


def _config(apps: Mapping[str, AppStatus], config: Config) -> Config | None:
    app = apps.get(str(config["name"]))
    return app.config if app is not None else None


def _serves(app: AppStatus | None) -> bool:
    """A model that sleeps serves, too."""
    return app is not None and app.status == "RUNNING" and app.running_replicas >= min(1, app.total_replicas)


def _fitting(config: Config, there: AppStatus | None, groups: frozenset[str]) -> Config | None:
    """The config, or what the cluster has of that application where the config needs a pool that isn't there."""
    if _pools(config) <= groups:
        return config
    return there.config if there is not None else None


def _sizes(cluster: Object) -> dict[str, str]:
    return {
        group["groupName"]: f"{group['minReplicas']}-{group['maxReplicas']}"
        for group in cluster["spec"]["workerGroupSpecs"]
    }
