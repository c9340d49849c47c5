"""A gateway as in production but for Ray: uvicorn, the real SQLite ledger, a catalogue published by the publisher.

Used by the tests and the bench of the gateway.
"""

import asyncio
import hashlib
import io
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn
from support.backend import Backend

from tollway_serving.contract.catalogue import Catalogue, KeyEntry, Limits, ModelEntry, PlanEntry, Target
from tollway_serving.gateway.app import Gateway
from tollway_serving.gateway.errors import TABLE
from tollway_serving.gateway.logs import AccessLog
from tollway_serving.gateway.settings import Settings
from tollway_serving.ledger.publish import open_publisher
from tollway_serving.ledger.store import open_ledger

KEY = "sk-tw-" + "A" * 43 + "canary"
TOKEN = "internal-token-canary"
PROVIDER_KEY = "provider-key-canary"


def model(url: str, model_id: str = "small", **changes: Any) -> ModelEntry:
    values: dict[str, Any] = {
        "model_id": model_id,
        "name": f"ml/{model_id}",
        "created": 1_700_000_000,
        "endpoints": ("ChatCompletions",),
        "capabilities": ("StructuredOutput", "Logprobs"),
        "parameters": ("temperature", "top_p", "n", "stop", "seed", "logprobs", "top_logprobs", "response_format"),
        "context_tokens": 4096,
        "output_tokens": 1024,
        "default_output_tokens": 256,
        "prices": {"input_tokens": 1_000_000, "output_tokens": 2_000_000},  # a credit, two credits a million
        "target": Target(url=url, model=model_id),
    }
    return ModelEntry(**values | changes)


def plan(**changes: Any) -> PlanEntry:
    values: dict[str, Any] = {
        "name": "ml/pro",
        "display_name": "Pro",
        "model_ids": ("small",),
        "default_models": {"ChatCompletions": "small"},
    }
    return PlanEntry(**values | changes)


def key(secret: str = KEY, **changes: Any) -> KeyEntry:
    values: dict[str, Any] = {
        "sha256": hashlib.sha256(secret.encode()).hexdigest(),
        "key_id": "ml/me",
        "uid": "uid-me",
        "account": "ml/me",
        "plan": "ml/pro",
    }
    return KeyEntry(**values | changes)


@dataclass
class Running:
    """One gateway and all that is around it."""

    gateway: Gateway
    url: str
    database: str
    publisher: Any
    backend: Backend
    client: aiohttp.ClientSession
    logs: io.BytesIO
    catalogue: Catalogue = field(default_factory=Catalogue)

    async def publish(self, catalogue: Catalogue) -> None:
        """Publishes and waits until the gateway has it."""
        self.catalogue = catalogue
        revision = await self.publisher.publish(catalogue)
        await until(lambda: self.gateway.catalogue.revision >= revision)

    async def change(self, **changes: Any) -> None:
        """Replaces models, plans or keys of what is published."""
        await self.publish(self.catalogue.model_copy(update=changes))

    async def post(self, body: Any, **options: Any) -> tuple[int, Any, Any]:
        """Status, headers and parsed body of a chat completion."""
        headers = {"authorization": f"Bearer {KEY}", **options.pop("headers", {})}
        headers.setdefault("content-type", "application/json")
        data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
        async with self.client.post(
            f"{self.url}/v1/chat/completions", headers=headers, data=data, **options
        ) as response:
            return response.status, response.headers, await response.json()

    async def stream(self, body: dict[str, Any], **options: Any) -> tuple[Any, bytes]:
        """Headers and raw bytes of a streamed completion."""
        headers = {"authorization": f"Bearer {KEY}", **options.pop("headers", {})}
        async with self.client.post(
            f"{self.url}/v1/chat/completions", headers=headers, json={"stream": True, **body}, **options
        ) as response:
            return response.headers, await response.read()

    async def usage_rows(self, count: int = 0) -> list[dict[str, Any]]:
        """Rows of a SQLite ledger's usage table, oldest first; waits until there are `count`."""
        for _ in range(1000):
            rows = self._usage_rows()
            if len(rows) >= count:
                return rows
            await asyncio.sleep(0.005)
        raise AssertionError(f"{len(rows)} usage rows, {count} expected")

    def _usage_rows(self) -> list[dict[str, Any]]:
        connection = sqlite3.connect(self.database.removeprefix("sqlite:///"))
        try:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute("select * from tollway_usage order by rowid")]
        finally:
            connection.close()

    def metric(self, name: str, **labels: str) -> float:
        return self.gateway.metrics.registry.get_sample_value(name, labels) or 0.0


async def until(condition: Callable[[], bool], within: float = 10.0) -> None:
    """Waits for a state that has no event of its own, by looking often."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.005)


def check_error(answer: tuple[int, Any, Any], code: str, param: str | None = None) -> dict[str, Any]:
    """Status, headers and parsed body must be the contract's for `code`; answers the error object."""
    status, headers, body = answer
    error: dict[str, Any] = body["error"]
    assert set(body) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert (status, error["type"], error["code"]) == (*TABLE[code], code), body
    if param is not None:
        assert error["param"] == param
    assert headers["x-request-id"]
    assert headers["content-type"] == "application/json"
    assert ("retry-after" in headers) == (status in (429, 503))
    return error


HELLO = [{"role": "user", "content": "hello"}]


def write_secrets(folder: Path) -> Path:
    (folder / "providers").mkdir(parents=True, exist_ok=True)
    (folder / "internal-token").write_text(TOKEN + "\nprevious\n")
    (folder / "providers" / "acme").write_text(PROVIDER_KEY + "\n")
    return folder


@asynccontextmanager
async def run_gateway(
    folder: Path,
    backend: Backend,
    *,
    models: Sequence[ModelEntry] = (),
    plans: Sequence[PlanEntry] = (),
    keys: Sequence[KeyEntry] = (),
    limits: Limits | None = None,
    database: str | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    """By default one model, one plan without limits, one key, SQLite. `settings` are fields of Settings."""
    database = database or f"sqlite:///{folder}/ledger.db"
    publisher = open_publisher(database)
    await publisher.start()
    catalogue = Catalogue(
        models=tuple(models or (model(backend.url),)),
        plans=tuple(plans or (plan(limits=limits or Limits()),)),
        keys=tuple(keys or (key(),)),
    )
    await publisher.publish(catalogue)
    secrets = write_secrets(folder / "secrets")
    gateway = Gateway(Settings.load({"database_url": database, "secrets_dir": secrets, **settings}, {}), open_ledger)
    logs = io.BytesIO()
    gateway.access_log = AccessLog(True, logs)
    config = uvicorn.Config(
        gateway,
        host="127.0.0.1",
        port=0,
        lifespan="on",
        log_config=None,
        access_log=False,
        ws="none",
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())  # serve() would take the signals of the test process
    await until(lambda: server.started or task.done())
    if not server.started:
        await task
        raise RuntimeError("the gateway did not start")
    port = server.servers[0].sockets[0].getsockname()[1]
    client = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    try:
        await until(lambda: gateway.catalogue.loaded)
        yield Running(gateway, f"http://127.0.0.1:{port}", database, publisher, backend, client, logs, catalogue)
    finally:
        await client.close()
        server.should_exit = True
        await task
        await publisher.close()
