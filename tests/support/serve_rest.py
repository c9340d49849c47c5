"""An HTTP server that speaks Ray Serve's REST API, and can misbehave: for tests of the operator that need no Ray.

Applications are RUNNING a moment after they were put. What real Ray does is tested in tests/serve and tests/e2e.
"""

import asyncio
import time
from types import TracebackType
from typing import Any, Literal

from aiohttp import web

Mode = Literal["ok", "slow", "error", "refuse"]


class ServeRest:
    """Use as an async context manager. `mode` can be changed at any time: "slow" answers after a minute, "error" with
    500, "refuse" refuses every PUT as invalid."""

    def __init__(self, *, start_seconds: float = 0.2) -> None:
        self.mode: Mode = "ok"
        self.puts: list[dict[str, Any]] = []
        self.failing: set[str] = set()  # applications that don't come up
        self.building: set[str] = (
            set()
        )  # a new version is being imported: Serve lists no replica, the old ones serve on
        self._start = start_seconds
        self._apps: dict[str, tuple[dict[str, Any], float]] = {}
        self._runner: web.AppRunner | None = None
        self.url = ""

    @property
    def configs(self) -> dict[str, dict[str, Any]]:
        """What was last put, by application."""
        return {name: config for name, (config, _) in self._apps.items()}

    def forget(self) -> None:
        """As a new head does."""
        self._apps.clear()

    async def __aenter__(self) -> "ServeRest":
        app = web.Application(middlewares=[self._misbehave])
        app.router.add_get("/api/serve/applications/", self._get)
        app.router.add_put("/api/serve/applications/", self._put)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    @web.middleware
    async def _misbehave(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.mode == "slow":
            await asyncio.sleep(60)
        if self.mode == "error":
            return web.Response(status=500, text="Traceback: the head is unwell")
        if self.mode == "refuse" and request.method == "PUT":
            return web.Response(status=400, text="route prefixes clash")
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _get(self, _: web.Request) -> web.Response:
        now = time.monotonic()
        apps = {}
        for name, (config, since) in self._apps.items():
            status = (
                "DEPLOYING" if now - since < self._start else "DEPLOY_FAILED" if name in self.failing else "RUNNING"
            )
            if name in self.building:
                status = "DEPLOYING"
            apps[name] = {
                "name": name,
                "status": status,
                "message": "ImportError: no such engine" if status == "DEPLOY_FAILED" else "",
                "deployed_app_config": config,
                "last_deployed_time_s": 0.0,
                "deployments": {}
                if name in self.building
                else {
                    "model": {
                        "status": "HEALTHY",
                        "message": "",
                        "target_num_replicas": 1,
                        "replicas": [{"state": "RUNNING" if status == "RUNNING" else "STARTING"}],
                    }
                },
            }
        return web.json_response({"applications": apps, "http_options": {"port": 8000}})

    async def _put(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.puts.append(body)
        before = self._apps
        self._apps = {}
        for config in body["applications"]:
            known = before.get(config["name"])
            same = known is not None and known[0] == config
            self._apps[config["name"]] = known if known is not None and same else (config, time.monotonic())
        return web.Response(status=200)
