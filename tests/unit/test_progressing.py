"""Models on pods of ours, as the reconcile sees them: what Progressing says, and which pods stay after a rollback."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.ports import MemoryRay
from support.world import World, llama, make_world

from tollway_operator.builders.pools import Demand, Needs, Pool
from tollway_operator.kuberay_settings import KubeRaySettings
from tollway_operator.observed import Good, Memory, read_memory, write_memory
from tollway_operator.platform import PlatformStatus, PoolStatus
from tollway_operator.ports import AppStatus
from tollway_operator.reconcile import Reconciler


class Pods(MemoryRay):
    """A Ray with pods: every pool is in the same state, and a version can be held back from running."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.upgrade, self.held = PoolStatus(), "", False
        self.demands: Sequence[Demand] = ()

    async def shape(self, demands: Sequence[Demand]) -> PlatformStatus:
        self.demands = demands
        return PlatformStatus({demand.pool.name: self.pool for demand in demands}, upgrade=self.upgrade)

    async def close(self) -> None:
        pass

    def _settle(self, app: AppStatus) -> AppStatus:
        return app if self.held else super()._settle(app)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with make_world(tmp_path) as made:
        defaults = KubeRaySettings(namespace="t", image="i").pod_defaults
        made.settings = replace(made.settings, embedded=False, pods=defaults)
        yield made


async def test_a_new_version_without_room_and_a_platform_upgrade_are_said(world: World) -> None:
    pods = Pods()
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
        assert world.objects.status("ModelDeployment", "small")["servingGeneration"] == 2, "not in a later pass"

        pods.upgrade = "Ray cluster tollway-2 doesn't serve model-ml.small yet"
        await world.until(reconciler, lambda _: says("PlatformUpgrade"))
        assert world.objects.condition("ModelDeployment", "small", "Progressing")[2] == pods.upgrade
        assert world.objects.condition("ModelDeployment", "small", "Ready")[0] == "True"
        pods.upgrade = ""
        await world.until(reconciler, lambda _: says("UpToDate"))


async def test_a_version_that_is_rolled_back_keeps_the_pods_of_the_one_that_serves(world: World) -> None:
    pods = Pods()
    large, small = {"resources": {"memory": "8Gi"}}, {"resources": {"memory": "1Gi"}}
    world.objects.put("ModelDeployment", "small", llama(**large))
    pods.breaks["package://broken"] = "tollway.ModelMissingError: package://broken is not installed"

    def operator() -> Reconciler:
        return Reconciler(world.objects, pods, world.publisher, world.settings, lambda: world.now, platform=pods)

    async with operator() as reconciler:
        await world.settle(reconciler)
        before = pods.demands
        assert [demand.pool.memory_bytes for demand in before] == [8 * 2**30]
        world.objects.put("ModelDeployment", "small", llama("package://broken", **small))
        await world.settle(reconciler)
        assert world.objects.condition("ModelDeployment", "small", "Degraded")[1] == "RolledBack"
        await world.until(reconciler, lambda _: pods.demands == before)
    pods.demands = ()
    async with operator() as reconciler:  # it has been told by its memory alone
        await world.until(reconciler, lambda _: pods.demands == before)
        world.objects.put("ModelDeployment", "small", llama(**small))
        await world.until(reconciler, lambda _: [d.pool.memory_bytes for d in pods.demands] == [2**30])
        await world.settle(reconciler)


def test_the_memory_of_pods_survives_a_restart() -> None:
    needs = Needs((("ml", "hf", ("HF_TOKEN",)),), ("weights",))
    pools = [
        Pool("cpu-1", "image:1", 1000, 2**30),
        Pool("l4-x2-1", "image:1", 500, 2**30, 2, "NVIDIA-L4", (("zone", "a"),), '[{"operator": "Exists"}]', needs),
    ]
    good = {f"model-{pool.name}": Good({"name": pool.name}, 3, Demand(pool, 1, 2)) for pool in pools}
    memory = Memory({**good, "model-old": Good({"name": "old"}, 1)})
    assert read_memory(write_memory(memory)) == memory
