"""How long a key is still let in after its ApiKey was changed: from kubectl's point of view to every gateway's.

    python tests/bench/revocation.py [--times 100] [--stores sqlite,postgresql]

A real API server, the operator as a process with nothing but its own rights, and two gateways. The ApiKey's state goes
to Suspended and back again and again, at last a row of keys is deleted; each gateway is asked every 5 ms. The clock
starts before the API server is asked and stops with the last gateway's first refusal (or first answer). Ray is a server
of the tests that speaks Serve's REST API. Needs KUBEBUILDER_ASSETS, as tests/api. Prints a table in Markdown.
"""

import argparse
import asyncio
import base64
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import aiohttp
import uvicorn
from support.control_plane import ROOT, start
from support.operator_world import World, world
from support.postgres import server

from tollway_serving.gateway.app import Gateway
from tollway_serving.gateway.settings import Settings
from tollway_serving.ledger.store import open_ledger

STEP_S = 0.005
DELETED = 20


@asynccontextmanager
async def gateway(database: str) -> AsyncIterator[str]:
    """Its URL."""
    app = Gateway(Settings.load({"database_url": database, "access_log": False}, {}), open_ledger)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="on", log_config=None, access_log=False, ws="none")
    running = uvicorn.Server(config)
    task = asyncio.create_task(running.serve())
    while not running.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    finally:
        running.should_exit = True
        await task


async def all_say(client: aiohttp.ClientSession, urls: list[str], key: str, status: int) -> None:
    """Returns when each gateway has answered with `status`."""

    async def one(url: str) -> None:
        while True:
            async with client.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"}) as answer:
                if answer.status == status:
                    return
            await asyncio.sleep(STEP_S)

    async with asyncio.timeout(60):
        await asyncio.gather(*(one(url) for url in urls))


async def secret(here: World, name: str) -> str:
    found = await here.until(lambda: here.get(here.secret_path(name)), f"the Secret of {name}")
    return base64.b64decode(found["data"]["OPENAI_API_KEY"]).decode()


async def measure(here: World, times: int) -> dict[str, list[float]]:
    took: dict[str, list[float]] = {"Suspended": [], "Active again": [], "deleted": []}
    await here.operator().until_leading()
    await here.plan()
    await here.key("ci")
    await here.until_usable("ci")
    names = [f"gone-{number}" for number in range(DELETED)]
    for name in names:
        await here.key(name)
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(gateway(here.database)) for _ in range(2)]
        client = await stack.enter_async_context(aiohttp.ClientSession())
        keys = {name: await secret(here, name) for name in ("ci", *names)}
        for key in keys.values():
            await all_say(client, urls, key, 200)
        for _ in range(times):
            for state, status, what in (("Suspended", 401, "Suspended"), ("Active", 200, "Active again")):
                begun = time.perf_counter()
                await here.patch(here.path("ApiKey", "ci"), {"spec": {"state": state}})
                await all_say(client, urls, keys["ci"], status)
                took[what].append((time.perf_counter() - begun) * 1000)
        for name in names:
            begun = time.perf_counter()
            await here.delete(here.path("ApiKey", name))
            await all_say(client, urls, keys[name], 401)
            took["deleted"].append((time.perf_counter() - begun) * 1000)
    return took


@contextmanager
def database(store: str, folder: Path) -> Iterator[str]:
    if store == "sqlite":
        yield f"sqlite://{folder}/ledger.db"
        return
    with server(fsync=True) as running:
        yield running.create_database("revocation")


async def bench(times: int, stores: list[str]) -> None:
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| store | ApiKey | changes | p50 ms | p99 | most |\n|---|---|---:|---:|---:|---:|")
    with start(sorted((ROOT / "crds").glob("*.yaml"))) as plane:
        for store in stores:
            with tempfile.TemporaryDirectory(prefix="tollway-bench-") as folder, database(store, Path(folder)) as url:
                async with world(plane, Path(folder)) as here:
                    here.database = url
                    for what, found in (await measure(here, times)).items():
                        found.sort()
                        p50, p99 = found[len(found) // 2], found[min(len(found) - 1, len(found) * 99 // 100)]
                        print(
                            f"| {store} | {what} | {len(found)} | {p50:.0f} | {p99:.0f} | {found[-1]:.0f} |", flush=True
                        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--stores", default="sqlite,postgresql")
    options = parser.parse_args()
    asyncio.run(bench(options.times, options.stores.split(",")))


if __name__ == "__main__":
    main()
