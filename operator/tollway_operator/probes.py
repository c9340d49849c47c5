"""The operator's own small HTTP server: probes for the kubelet, metrics and scrape targets for Prometheus.

Made by `main`. /healthz fails if the reconcile hangs, /readyz until everything is watched and the Lease can be read;
neither depends on Ray or the ledger, whose absence is said in conditions, not by restarts.
"""

import time
from collections.abc import Callable, Iterator, Sequence

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tollway_operator.metrics import METRICS, scrape_targets
from tollway_operator.reconcile import Progress
from tollway_serving.ledger.port import Publisher

_HANGS_AFTER = 900.0
"""Seconds without a finished pass; a pass takes one PUT to Ray (two minutes) at the longest."""


class State:
    """What the probes tell: written by `main`."""

    def __init__(self, troubles: Callable[[], Sequence[str]]) -> None:
        self.troubles = troubles
        """What keeps this replica from seeing or writing, a sentence each."""
        self.leading_since: float | None = None
        self.last_pass: float | None = None

    def on_progress(self, _: Progress) -> None:
        self.last_pass = time.monotonic()

    @property
    def hangs(self) -> bool:
        if self.leading_since is None:
            return False
        return time.monotonic() - max(self.last_pass or 0.0, self.leading_since) > _HANGS_AFTER


class _StateCollector(Collector):
    """Read at scrape time, so that nothing stale stays."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        leading = self._state.leading_since is not None
        yield GaugeMetricFamily("tollway_operator_leading", "Whether this replica holds the Lease.", value=leading)
        troubles = len(self._state.troubles())
        yield GaugeMetricFamily("tollway_operator_troubles", "What it can't watch, list or renew.", value=troubles)
        if self._state.last_pass is not None:
            age = time.monotonic() - self._state.last_pass
            yield GaugeMetricFamily("tollway_operator_last_pass_age_seconds", "Since the last pass ended.", value=age)


def application(state: State, publisher: Publisher) -> web.Application:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(METRICS)
    registry.register(_StateCollector(state))

    async def healthz(_: web.Request) -> web.Response:
        if state.hangs:
            return web.Response(status=503, text=f"no pass of the reconcile has ended for {_HANGS_AFTER:.0f} s\n")
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if troubles := state.troubles():
            return web.Response(status=503, text="\n".join(troubles) + "\n")
        return web.Response(text="leading\n" if state.leading_since is not None else "waiting for the Lease\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def targets(_: web.Request) -> web.Response:
        """Prometheus' HTTP service discovery: each gateway replica with a fresh heartbeat."""
        try:
            replicas = await publisher.replicas()
        except Exception:
            return web.Response(status=503, text="the ledger can't be read now\n")
        return web.json_response(scrape_targets(replicas))

    server = web.Application()
    server.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
            web.get("/metrics/targets", targets),
        ]
    )
    return server
