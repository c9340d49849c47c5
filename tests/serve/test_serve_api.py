"""The Serve REST client and the reconcile on a real Ray: what it keeps of a config, and what it does with a bad one."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.ports import MemoryObjects
from support.serve_rest import ServeRest
from support.world import WatchedPublisher, World, llama, on

from tollway_cli.local_ray import LocalRay
from tollway_cli.ray_head import Head, plan_head
from tollway_operator.builders import applications
from tollway_operator.builders.applications import same
from tollway_operator.errors import Refused, Unreachable
from tollway_operator.ports import RayStatus
from tollway_operator.reconcile import Reconciler
from tollway_operator.serve_api import ServeApi
from tollway_operator.settings import Settings
from tollway_serving.contract.engines import ENGINES
from tollway_serving.ledger.publish import open_publisher

APPS = """
import os
import sys
from ray import serve


class App:
    def __init__(self, args):
        print("loading", args.get("source"), file=sys.stderr, flush=True)
        if "broken" in str(args.get("source")):
            raise RuntimeError("the weights are broken")
        self.args = args

    async def __call__(self, request):
        return {"pid": os.getpid(), **self.args}


def model(args):
    return serve.deployment(name="model")(App).bind(args)


def gateway(args):
    return serve.deployment(name="gateway")(App).bind(args)
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A Ray as `tollway up` starts it, with the applications above on its path."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "core_test_apps.py").write_text(APPS)
    token = folder / "ray-token"
    token.write_text("0" * 64)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    planned = plan_head(folder, folder, {**os.environ, "PYTHONPATH": path})
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    ray = LocalRay(planned, 2, lock, folder / "ray.log")
    try:
        yield planned
    finally:
        ray.stop()
        os.close(lock)


@pytest.fixture
async def api(head: Head) -> AsyncIterator[ServeApi]:
    made = _api(head)
    async with asyncio.timeout(120):
        while True:
            try:
                await made.status()
                break
            except Unreachable:
                await asyncio.sleep(0.2)  # Ray tells nobody when it is ready
    try:
        yield made
    finally:
        await made.close()


def _api(head: Head) -> ServeApi:
    port = 28_000 + os.getpid() % 1_000
    options = {"host": "127.0.0.1", "port": port}
    token = head.token_file.read_text()
    return ServeApi(head.dashboard, http_options=options, proxy_location="HeadOnly", token=token)


async def until(api: ServeApi, check: Callable[[RayStatus], bool]) -> RayStatus:
    async with asyncio.timeout(180):
        while not check(status := await api.status()):  # noqa: ASYNC110 - Serve has no watch
            await asyncio.sleep(0.2)
    return status


async def words(api: ServeApi, app: str) -> str:
    """Once the node's agent, which reads the files, has registered."""
    async with asyncio.timeout(60):
        while True:
            with suppress(Unreachable):
                return await api.logs(app)
            await asyncio.sleep(0.2)


def is_(name: str, state: str) -> Callable[[RayStatus], bool]:
    return lambda status: name in status.apps and status.apps[name].status == state


@pytest.fixture
def test_applications(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's own configs, of applications that start in a moment."""
    facts = replace(ENGINES["llamacpp"], import_path="core_test_apps:model")
    monkeypatch.setitem(ENGINES, "llamacpp", facts)
    monkeypatch.setattr(applications, "GATEWAY_IMPORT_PATH", "core_test_apps:gateway")


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("test_applications")
async def test_a_life_on_a_real_ray(api: ServeApi, tmp_path: Path) -> None:
    publisher = WatchedPublisher(open_publisher(f"sqlite:///{tmp_path}/ledger.db"))
    await publisher.start()
    settings = Settings(base_url="http://127.0.0.1/v1", embedded=True, fast_interval=0.3, slow_interval=0.3)
    world = World(publisher, MemoryObjects(), settings=settings)
    world.objects.put("ModelDeployment", "small", llama())
    world.objects.put("ModelDeployment", "scaled", llama(autoscaling={"minReplicas": 0, "maxReplicas": 2}))
    world.objects.put("Plan", "pro")
    world.objects.put("ApiKey", "ci", on())
    ahead = 0.0
    async with Reconciler(world.objects, api, publisher, settings, lambda: time.time() + ahead) as reconciler:
        await _settle(world, reconciler)
        status = await api.status()
        assert {name: item.status for name, item in status.apps.items()} == {
            "gateway": "RUNNING",
            "model-ml.small": "RUNNING",
            "model-ml.scaled": "RUNNING",
        }
        first = status.apps["model-ml.small"].config

        # Nothing more is sent: Ray keeps a config as it was put.
        deployed = {name: item.last_deployed for name, item in status.apps.items()}
        for _ in range(3):
            assert (await reconciler.reconcile()).details == ()
        assert {name: item.last_deployed for name, item in (await api.status()).apps.items()} == deployed

        # A version that can't start is rolled back, with the engine's words; the neighbours' replicas stay.
        world.objects.put("ModelDeployment", "small", llama("package://broken"))
        await world.until(reconciler, lambda progress: not progress.settled)
        await _settle(world, reconciler)
        _, reason, message = world.objects.condition("ModelDeployment", "small", "Degraded")
        assert reason == "RolledBack"
        assert "RuntimeError: the weights are broken; its last lines: " in message
        assert "loading package://broken" in message
        assert world.objects.condition("ModelDeployment", "small", "Ready")[0] == "True"
        assert same((await api.status()).apps["model-ml.small"].config, first)

        # A change by hand is repaired; a deleted model goes.
        by_hand = [dict(item.config or {}) for item in (await api.status()).apps.values()]
        by_hand = [item for item in by_hand if item["name"] != "model-ml.scaled"]
        await api.put(tuple(by_hand))
        world.objects.delete("ModelDeployment", "small")
        await world.until(reconciler, lambda progress: not progress.settled)
        ahead = 10.0  # seconds in which gateways have heard of it
        await _settle(world, reconciler)
        assert set((await api.status()).apps) == {"gateway", "model-ml.scaled"}
    await publisher.close()


async def _settle(world: World, reconciler: Reconciler) -> None:
    stop = asyncio.Event()
    async with asyncio.timeout(240):
        while True:
            progress = await reconciler.reconcile()
            if progress.settled and not progress.details:
                return
            await reconciler.wait(stop)


@pytest.mark.timeout(600)
async def test_failures_in_rays_words(api: ServeApi) -> None:
    def config(name: str, source: str, **deployment: Any) -> dict[str, Any]:
        return {
            "name": name,
            "route_prefix": f"/{name}",
            "import_path": "core_test_apps:model",
            "args": {"source": source},
            "deployments": [{"name": "model", "ray_actor_options": {"num_cpus": 0.05}, **deployment}],
        }

    await api.put((config("bad", "broken"), config("good", "fine")))
    status = await until(api, lambda seen: is_("bad", "DEPLOY_FAILED")(seen) and is_("good", "RUNNING")(seen))
    failed, good = status.apps["bad"], status.apps["good"]
    assert failed.message.strip().splitlines()[-1] == "RuntimeError: the weights are broken"
    assert (failed.running_replicas, good.running_replicas, good.total_replicas) == (0, 1, 1)
    assert (await words(api, "bad")).splitlines()[-1] == "loading broken"
    assert await api.logs("absent") == ""
    with pytest.raises(Refused, match="num_cpus"):
        await api.put((config("good", "fine", ray_actor_options={"num_cpus": -1}),))
    assert is_("good", "RUNNING")(await api.status()), "what is refused changes nothing"


async def test_an_answer_of_any_size_is_read() -> None:
    """It comes in many parts: a thousand applications are a megabyte."""
    apps = tuple({"name": f"model-ml.m{number}", "args": {"text": "x" * 800}} for number in range(1_000))
    async with ServeRest(start_seconds=0) as ray:
        api = ServeApi(ray.url)
        try:
            await api.put(apps)
            status = await api.status()
        finally:
            await api.close()
    assert {name: app.config for name, app in status.apps.items()} == {app["name"]: app for app in apps}


async def test_nobody_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        api = ServeApi(f"http://127.0.0.1:{probe.getsockname()[1]}")
        try:
            with pytest.raises(Unreachable, match="doesn't answer"):
                await api.status()
        finally:
            await api.close()


async def test_a_wrong_token_is_said(head: Head, api: ServeApi) -> None:
    assert await api.status() is not None
    other = ServeApi(head.dashboard, token="1" * 64)
    try:
        with pytest.raises(Unreachable, match="auth token"):
            await other.status()
    finally:
        await other.close()
