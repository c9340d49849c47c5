"""The platform on KubeRay, as far as our side of it goes: RayClusters, the Service and pods on a real API server.

KubeRay itself doesn't run here: the tests make the pods that it would, and each Ray is a `ServeRest`.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from support.control_plane import ApiError, ControlPlane
from support.operator_world import MERGE
from support.serve_rest import ServeRest

from tollway_operator import uninstall
from tollway_operator.builders.pools import Demand, Pool
from tollway_operator.builders.ray_cluster import PLATFORM_LABEL, RETIRED_ANNOTATION, cluster_name
from tollway_operator.cluster import Access, Api
from tollway_operator.kuberay import KubeRay
from tollway_operator.kuberay_settings import GatewayPods, KubeRaySettings
from tollway_operator.platform import PlatformStatus
from tollway_operator.serve_api import ServeApi

PLATFORM = "tollway"
DRAIN = 100

RAY_CLUSTERS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "rayclusters.ray.io"},
    "spec": {
        "group": "ray.io",
        "scope": "Namespaced",
        "names": {
            "kind": "RayCluster",
            "listKind": "RayClusterList",
            "plural": "rayclusters",
            "singular": "raycluster",
        },
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


@pytest.fixture(scope="module")
def plane(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    control_plane.apply(RAY_CLUSTERS)
    control_plane.wait_for_crds()
    yield control_plane
    control_plane.kubectl("delete", "crd/rayclusters.ray.io", "--timeout=60s")


class Site:
    """One namespace with an operator's view of KubeRay in it; `now` is the operator's clock."""

    def __init__(self, plane: ControlPlane, namespace: str, api: Api, stack: AsyncExitStack) -> None:
        self.plane, self.namespace, self.api, self._stack = plane, namespace, api, stack
        self.rays: dict[str, ServeRest] = {}
        self.now = 1_000.0

    def settings(self, image: str) -> KubeRaySettings:
        return KubeRaySettings(
            name=PLATFORM, namespace=self.namespace, image=image, gateway=GatewayPods(replicas=1), drain_seconds=DRAIN
        )

    async def operator(self, image: str) -> tuple[KubeRay, str]:
        """One that has just started, with the name of the cluster that it wants."""
        settings = self.settings(image)
        name = cluster_name(settings)
        if name not in self.rays:
            self.rays[name] = await self._stack.enter_async_context(ServeRest(start_seconds=0))
        made = KubeRay(self.api, settings, self._connect, clock=lambda: self.now)
        self._stack.push_async_callback(made.close)
        return made, name

    def _connect(self, address: str) -> ServeApi:
        return ServeApi(next(ray.url for name, ray in self.rays.items() if name in address))

    @property
    def clusters(self) -> str:
        return f"/apis/ray.io/v1/namespaces/{self.namespace}/rayclusters"

    def cluster(self, name: str) -> dict[str, Any] | None:
        try:
            return self.plane.request("GET", f"{self.clusters}/{name}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def groups(self, name: str) -> dict[str, dict[str, Any]]:
        found = self.cluster(name)
        assert found is not None
        return {group["groupName"]: group for group in found["spec"]["workerGroupSpecs"]}

    def serving(self) -> str:
        found = self.plane.request("GET", f"/api/v1/namespaces/{self.namespace}/services/{PLATFORM}")
        return str(found["spec"]["selector"]["ray.io/cluster"])

    def pod(self, name: str, cluster: str, group: str, status: dict[str, Any]) -> None:
        """A pod as KubeRay would make it, in a state that the kubelet or the scheduler would report."""
        labels = {PLATFORM_LABEL: PLATFORM, "ray.io/cluster": cluster, "ray.io/group": group}
        pods = f"/api/v1/namespaces/{self.namespace}/pods"
        spec = {"containers": [{"name": "ray", "image": "ray"}]}
        self.plane.request("POST", pods, {"metadata": {"name": name, "labels": labels}, "spec": spec})
        self.plane.request("PATCH", f"{pods}/{name}/status", {"status": status}, content_type=MERGE)


@pytest.fixture
async def site(plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    async with AsyncExitStack() as stack:
        access = Access()
        stack.push_async_callback(access.close)
        yield Site(plane, namespace, Api(access.session(), access.server), stack)


def demand(minimum: int, maximum: int, name: str = "cpu-aaaa") -> Demand:
    return Demand(Pool(name, "image:1", 1000, 2**30, 0, None, (), "[]"), minimum, maximum)


def app(name: str, pool: str | None = None) -> dict[str, Any]:
    options = {"label_selector": {"tollway.dev/pool": pool}} if pool else {}
    deployments = [{"name": "model", "ray_actor_options": options}]
    return {"name": name, "import_path": "a:b", "route_prefix": f"/{name}", "deployments": deployments}


READY = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}


async def test_pods_follow_the_demand(site: Site) -> None:
    operator, name = await site.operator("image:1")
    await operator.shape([demand(1, 2)])
    assert site.serving() == name
    assert set(site.groups(name)) == {"gateway", "cpu-aaaa"}
    made = site.cluster(name)
    assert made is not None
    status = await operator.shape([demand(1, 2)])
    assert status == PlatformStatus(pools=status.pools), "nothing is wrong"
    assert site.cluster(name) == made, "nothing differs: nothing is written"

    # Ray's autoscaler decides between the bounds.
    body = {"spec": {"workerGroupSpecs": [{**g, "replicas": 2} for g in made["spec"]["workerGroupSpecs"]]}}
    site.plane.request("PATCH", f"{site.clusters}/{name}", body, content_type=MERGE)
    await operator.shape([demand(1, 4)])
    group = site.groups(name)["cpu-aaaa"]
    assert (group["minReplicas"], group["maxReplicas"], group["replicas"]) == (1, 4, 2)

    # Of two busy pods too many only Ray knows which one is idle, so its number is never lowered from here.
    await operator.shape([demand(1, 1)])
    group = site.groups(name)["cpu-aaaa"]
    assert (group["minReplicas"], group["maxReplicas"], group["replicas"]) == (1, 2, 2)
    await operator.shape([demand(1, 4)])

    # A pool that an application still names stays as it is; afterwards it is drained, and only then removed.
    await operator.put((app("gateway"), app("model-a", "cpu-aaaa")))
    await operator.shape([])
    assert site.groups(name)["cpu-aaaa"]["maxReplicas"] == 4
    await operator.put((app("gateway"),))
    site.pod("last", name, "cpu-aaaa", READY)
    await operator.shape([])
    assert site.groups(name)["cpu-aaaa"]["maxReplicas"] == 0
    site.plane.request("DELETE", f"/api/v1/namespaces/{site.namespace}/pods/last?gracePeriodSeconds=0")
    await operator.shape([])
    assert "cpu-aaaa" not in site.groups(name)


async def test_a_pool_stays_while_serve_builds_the_version_that_leaves_it(site: Site) -> None:
    operator, name = await site.operator("image:1")
    old, new = demand(1, 2, "cpu-aaaa"), demand(1, 2, "cpu-bbbb")
    await operator.shape([old])
    await operator.put((app("gateway"), app("model-a", "cpu-aaaa")))
    await operator.shape([old])
    site.pod("first", name, "cpu-aaaa", READY)

    site.rays[name].building.add("model-a")
    await operator.put((app("gateway"), app("model-a", "cpu-bbbb")))
    await operator.shape([new])
    groups = site.groups(name)
    assert groups["cpu-bbbb"]["minReplicas"] == 1
    assert groups["cpu-aaaa"]["minReplicas"] == 1, "the version that serves would lose its pods"
    again, _ = await site.operator("image:1")
    await again.shape([new])
    assert site.groups(name)["cpu-aaaa"]["minReplicas"] == 1, "an operator that has just started knows no better"

    site.rays[name].building.clear()
    await operator.shape([new])
    assert site.groups(name)["cpu-aaaa"]["maxReplicas"] == 0


@pytest.mark.parametrize(
    ("status", "problem", "words"),
    [
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes: Insufficient cpu"}]},
            "WaitingForNode",
            "Insufficient cpu",
        ),
        (
            {
                "containerStatuses": [
                    {
                        "name": "ray",
                        "image": "img:9",
                        "imageID": "",
                        "ready": False,
                        "restartCount": 0,
                        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}},
                    }
                ]
            },
            "ImagePullFailed",
            "img:9: not found",
        ),
        ({"phase": "Failed", "message": "evicted"}, "PodFailed", "evicted"),
        (READY, None, ""),
    ],
)
async def test_why_pods_do_not_start(site: Site, status: dict[str, Any], problem: str | None, words: str) -> None:
    operator, name = await site.operator("image:1")
    await operator.shape([demand(1, 2)])
    site.pod("first", name, "cpu-aaaa", status)
    found = (await operator.shape([demand(1, 2)])).pools["cpu-aaaa"]
    assert (found.pods, found.ready, found.problem) == (1, int(problem is None), problem)
    assert words in found.message


async def test_a_second_cluster_takes_over_when_it_serves_all_that_the_first_does(site: Site) -> None:
    before, first = await site.operator("image:1")
    pool = [demand(1, 2)]
    applications = (app("gateway"), app("model-a", "cpu-aaaa"))
    await before.shape(pool)
    await before.put(applications)
    await before.shape(pool)

    after, second = await site.operator("image:2")
    assert first != second
    assert "applications" in (await after.shape(pool)).upgrade
    assert site.serving() == first
    assert set(site.rays[second].configs) == {"gateway", "model-a"}
    site.rays[second].failing.add("model-a")
    assert "doesn't serve model-a" in (await after.shape(pool)).upgrade
    site.rays[second].failing.clear()
    assert "0 of 1 gateway pods" in (await after.shape(pool)).upgrade
    await after.put((*applications, app("model-b")))
    assert "model-b" in site.rays[first].configs, "until then, changes reach the cluster that serves"
    assert site.serving() == first

    site.pod("gateway", second, "gateway", READY)
    while (await after.shape(pool)).upgrade:  # noqa: ASYNC110 - the successor gets model-b first
        await asyncio.sleep(0.02)
    assert site.serving() == second
    retired = site.cluster(first)
    assert retired is not None, "its requests in flight must be able to end"
    assert retired["metadata"]["annotations"][RETIRED_ANNOTATION] == str(int(site.now))
    assert "model-b" in site.rays[second].configs

    site.now += DRAIN - 1
    await after.shape(pool)
    assert site.cluster(first) is not None
    site.now += 1
    await after.shape(pool)
    assert site.cluster(first) is None
    assert site.cluster(second) is not None


async def test_a_cluster_of_somebody_else_is_left_alone(site: Site) -> None:
    _, name = await site.operator("image:1")
    theirs = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "theirs"}, "spec": {"x": 1}}
    site.plane.request("POST", site.clusters, theirs)
    operator, _ = await site.operator("image:1")
    await operator.shape([])
    await operator.shape([])
    assert (site.cluster("theirs") or {})["spec"] == {"x": 1}
    assert site.cluster(name) is not None


async def test_uninstalling_stops_the_operator_then_waits_for_its_clusters(site: Site) -> None:
    operator, name = await site.operator("image:1")
    await operator.shape([])
    theirs = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "theirs"}, "spec": {"x": 1}}
    site.plane.request("POST", site.clusters, theirs)
    finalizer = {"metadata": {"finalizers": ["ray.io/gcs-ft-redis-cleanup-finalizer"]}}  # KubeRay's own way
    site.plane.request("PATCH", f"{site.clusters}/{name}", finalizer, content_type=MERGE)
    labels = {"app": "operator"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "operator", "image": "x"}]}}
    deployments = f"/apis/apps/v1/namespaces/{site.namespace}/deployments"
    spec = {"replicas": 2, "selector": {"matchLabels": labels}, "template": pod}
    site.plane.request("POST", deployments, {"metadata": {"name": "operator"}, "spec": spec})

    pods = f"/api/v1/namespaces/{site.namespace}/pods"
    # As KubeRay makes one; it has begun to end, and has an hour for its requests.
    marks = {PLATFORM_LABEL: PLATFORM, "ray.io/node-type": "worker"}
    hour = {**pod["spec"], "nodeName": "n", "terminationGracePeriodSeconds": 3600}
    site.plane.request("POST", pods, {"metadata": {"name": "worker", "labels": marks}, "spec": hour})
    site.plane.request("DELETE", f"{pods}/worker")

    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        uninstall.__name__,
        site.namespace,
        PLATFORM,
        "operator",
        env={"KUBECONFIG": str(site.plane.kubeconfig), "PYTHONPATH": ":".join(filter(None, sys.path))},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            while not (site.cluster(name) or {})["metadata"].get("deletionTimestamp"):  # noqa: ASYNC110 - a process's
                await asyncio.sleep(0.05)
        assert site.plane.request("GET", f"{deployments}/operator")["spec"]["replicas"] == 0
        async with asyncio.timeout(30):
            while site.plane.request("GET", f"{pods}/worker")["metadata"]["deletionGracePeriodSeconds"] > 60:  # noqa: ASYNC110 - a process's
                await asyncio.sleep(0.05)
        assert process.returncode is None, "it waits for KubeRay"
        site.plane.request("DELETE", f"{pods}/worker", {"gracePeriodSeconds": 0})  # what its node does then
        site.plane.request("PATCH", f"{site.clusters}/{name}", {"metadata": {"finalizers": None}}, content_type=MERGE)
        out, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert f"deleting RayCluster {name}" in out.decode()
    assert site.cluster(name) is None
    assert site.cluster("theirs") is not None
