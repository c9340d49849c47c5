"""Everything that a test of the whole operator needs: an account, a namespace, a stand-in for Ray, a real SQLite ledger
and any number of `tollway operator` processes. Used by tests/api and tests/bench."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from support.control_plane import ApiError, ControlPlane
from support.operator_account import Account, make_account
from support.operator_process import OperatorProcess
from support.serve_rest import ServeRest

from tollway_serving.contract.catalogue import Catalogue
from tollway_serving.ledger.ops import LedgerUnavailable
from tollway_serving.ledger.publish import open_publisher

MERGE = "application/merge-patch+json"
PLURALS = {"ModelDeployment": "modeldeployments", "Plan": "plans", "ApiKey": "apikeys"}


class World:
    def __init__(self, plane: ControlPlane, account: Account, namespace: str, ray: ServeRest, folder: Path) -> None:
        self.plane, self.account, self.namespace, self.ray = plane, account, namespace, ray
        self.folder = folder
        self.database = f"sqlite://{folder}/ledger.db"
        self.operators: list[OperatorProcess] = []

    def operator(self, **extra: str) -> OperatorProcess:
        """A process of it, started."""
        extra = {"TOLLWAY_NAMESPACES": self.namespace, "database": self.database, **extra}
        process = OperatorProcess(
            self.folder, kubeconfig=self.account.kubeconfig, namespace=self.account.namespace, ray=self.ray.url, **extra
        )
        self.operators.append(process)
        return process.start()

    # What users do

    def path(self, kind: str, name: str = "") -> str:
        middle = f"/apis/tollway.dev/v1alpha1/namespaces/{self.namespace}/{PLURALS[kind]}"
        return f"{middle}/{name}" if name else middle

    async def create(self, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        body = {"apiVersion": "tollway.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        return await asyncio.to_thread(self.plane.request, "POST", self.path(kind), body)

    async def plan(self, name: str = "pro", **spec: Any) -> None:
        await self.create("Plan", name, spec)

    async def key(self, name: str, **spec: Any) -> None:
        await self.create("ApiKey", name, {"planRef": {"name": "pro"}, **spec})

    async def model(self, name: str, **spec: Any) -> None:
        source = {"engine": {"name": "llamacpp"}, "source": {"uri": "package://weights/small.gguf"}}
        await self.create("ModelDeployment", name, {**source, **spec})

    async def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return await asyncio.to_thread(self.plane.request, "PATCH", path, body, content_type=MERGE)

    async def delete(self, path: str) -> None:
        await asyncio.to_thread(self.plane.request, "DELETE", path)

    # What there is

    async def get(self, path: str) -> dict[str, Any] | None:
        try:
            return await asyncio.to_thread(self.plane.request, "GET", path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def secret_path(self, name: str) -> str:
        return f"/api/v1/namespaces/{self.namespace}/secrets/{name}"

    async def key_hash(self, name: str) -> str | None:
        """Of the key in a Secret."""
        found = await self.get(self.secret_path(name))
        value = ((found or {}).get("data") or {}).get("OPENAI_API_KEY")
        return None if value is None else hashlib.sha256(base64.b64decode(value)).hexdigest()

    async def catalogue(self) -> Catalogue:
        """What gateways read."""
        publisher = open_publisher(self.database)
        try:
            return await publisher.published()
        except LedgerUnavailable:
            return Catalogue()  # not migrated yet
        finally:
            await publisher.close()

    async def published(self, name: str) -> set[str]:
        """The hashes that are accepted for an ApiKey."""
        return {key.sha256 for key in (await self.catalogue()).keys if key.key_id == f"{self.namespace}/{name}"}

    async def condition(self, kind: str, name: str, type_: str) -> dict[str, Any]:
        found = await self.get(self.path(kind, name))
        conditions = ((found or {}).get("status") or {}).get("conditions") or ()
        return next((condition for condition in conditions if condition["type"] == type_), {})

    async def until_condition(self, kind: str, name: str, type_: str, reason: str, seconds: float = 30) -> str:
        """Waits for a reason; answers its message."""
        found: dict[str, Any] = {}

        async def there() -> bool:
            nonlocal found
            found = await self.condition(kind, name, type_)
            return found.get("reason") == reason

        await self.until(there, f"{kind} {name}: {type_} with reason {reason}", seconds)
        return str(found["message"])

    async def until_usable(self, name: str, seconds: float = 30) -> str:
        """Waits until a key's Secret holds what gateways accept, and only that; answers the hash."""

        async def usable() -> str | None:
            in_secret = await self.key_hash(name)
            return in_secret if in_secret and await self.published(name) == {in_secret} else None

        return str(await self.until(usable, f"key {name} usable", seconds))

    async def until(self, what: Callable[[], Awaitable[Any]], saying: str, seconds: float = 30) -> Any:
        """The first true answer; else an error with the operators' logs."""
        try:
            async with asyncio.timeout(seconds):
                while not (answer := await what()):  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.03)
        except TimeoutError:
            logs = "\n".join(operator.text()[-4000:] for operator in self.operators)
            raise AssertionError(f"not in {seconds:.0f} s: {saying}\n{logs}") from None
        return answer


@asynccontextmanager
async def world(
    plane: ControlPlane, folder: Path, *, watched: Sequence[str] | None = None, start_seconds: float = 0.2
) -> AsyncIterator[World]:
    """With rights in one namespace only; `watched=()`: in the whole cluster."""
    namespace = plane.fresh_namespace()
    account = make_account(plane, watched=[namespace] if watched is None else watched)
    async with ServeRest(start_seconds=start_seconds) as ray:
        made = World(plane, account, namespace, ray, folder)
        try:
            yield made
        finally:
            for operator in made.operators:
                operator.kill()
