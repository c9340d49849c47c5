"""The little HTTP server of `tollway up`, on loopback: its own metrics, and where Prometheus finds the gateways'.

GET /metrics: this process. GET /metrics/targets: Prometheus' HTTP service discovery, one target a gateway replica, from
the replicas' heartbeats in the ledger.
"""

from urllib.parse import urlsplit

from aiohttp import web
from prometheus_client import REGISTRY
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from tollway_serving.ledger.port import Publisher


class MetricsServer:
    """`await start()` answers the port; `await close()` ends it."""

    def __init__(self, publisher: Publisher, port: int) -> None:
        self._publisher = publisher
        self._port = port
        app = web.Application()
        app.add_routes([web.get("/metrics", self._metrics), web.get("/metrics/targets", self._targets)])
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> int:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        port: int = self._runner.addresses[0][1]
        return port

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), headers={"content-type": CONTENT_TYPE_LATEST})

    async def _targets(self, _request: web.Request) -> web.Response:
        return web.json_response([_target(replica.metrics_url) for replica in await self._publisher.replicas()])


def _target(url: str) -> dict[str, object]:
    parts = urlsplit(url)
    return {
        "targets": [parts.netloc],
        "labels": {"__metrics_path__": parts.path or "/metrics", "job": "tollway-gateway"},
    }
