"""What Progressing says of a model whose pods have no place, and while a second Ray cluster takes over."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from support.ports import MemoryRay
from support.world import llama, make_world

from tollway_operator.builders.pools import Demand
from tollway_operator.kuberay_settings import KubeRaySettings
from tollway_operator.platform import PlatformStatus, PoolStatus
from tollway_operator.ports import AppStatus
from tollway_operator.reconcile import Reconciler


class Pods(MemoryRay):
    """A Ray with pods: every pool is in the same state, and a version can be held back from running."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.upgrade, self.held = PoolStatus(), "", False

    async def shape(self, demands: Sequence[Demand]) -> PlatformStatus:
        return PlatformStatus({demand.pool.name: self.pool for demand in demands}, upgrade=self.upgrade)

    async def close(self) -> None:
        pass

    def _settle(self, app: AppStatus) -> AppStatus:
        return app if self.held else super()._settle(app)


async def test_a_new_version_without_room_and_a_platform_upgrade_are_said(tmp_path: Path) -> None:
    pods = Pods()
    async with make_world(tmp_path) as world:
        world.settings = replace(
            world.settings, embedded=False, pods=KubeRaySettings(namespace="t", image="i").pod_defaults
        )
        world.objects.put("ModelDeployment", "small", llama())

        def says(reason: str) -> bool:
            return world.objects.condition("ModelDeployment", "small", "Progressing")[1] == reason

        async with Reconciler(
            world.objects, pods, world.publisher, world.settings, lambda: world.now, platform=pods
        ) as reconciler:
            await world.settle(reconciler)
            assert says("UpToDate")

            pods.held, pods.pool = True, PoolStatus(2, 1, "WaitingForNode", "0/1 nodes: Insufficient nvidia.com/gpu")
            world.objects.put("ModelDeployment", "small", llama(limits={"contextTokens": 512}))
            await world.until(reconciler, lambda _: says("NoRoom"))
            status, _, message = world.objects.condition("ModelDeployment", "small", "Progressing")
            assert status == "True"
            assert message == "the version before serves: 0/1 nodes: Insufficient nvidia.com/gpu"
            assert world.objects.condition("ModelDeployment", "small", "Ready")[:2] == ("True", "Ready")
            pods.held, pods.pool = False, PoolStatus(1, 1)
            await world.until(reconciler, lambda _: says("UpToDate"))

            pods.upgrade = "Ray cluster tollway-2 doesn't serve model-ml.small yet"
            await world.until(reconciler, lambda _: says("PlatformUpgrade"))
            assert world.objects.condition("ModelDeployment", "small", "Progressing")[2] == pods.upgrade
            assert world.objects.condition("ModelDeployment", "small", "Ready")[0] == "True"
            pods.upgrade = ""
            await world.until(reconciler, lambda _: says("UpToDate"))
